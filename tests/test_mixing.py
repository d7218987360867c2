"""Mixup, CutMix, smoothed targets and the loss, against their definitions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.batches import HERE, plan
from vitc.data.augment import mixing
from vitc.data.augment.mixing import Mix, cutmix_box, draw_mix, mix, smooth, soft_cross_entropy
from vitc.data.config import AugmentConfig
from vitc.data.sampling import Place, betas, uniform


def micro_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 16, 12, generator=generator), torch.tensor([0, 2, 1, 2])


PARTNER = np.array([2, 0, 3, 1])


def test_smoothing_has_the_papers_values() -> None:
    targets = smooth(torch.tensor([1, 0]), 4, 0.1)
    expected = torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.925, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(targets, expected)
    assert torch.equal(smooth(torch.tensor([2]), 3, 0.0), torch.tensor([[0.0, 0.0, 1.0]]))


def test_without_mixing_images_pass_and_targets_are_smoothed() -> None:
    images, labels = micro_batch()
    out, targets = mix(images, labels, Mix("none", 1.0, (0, 0, 0, 0), PARTNER), 3, 0.1)
    assert out is images
    assert torch.equal(targets, smooth(labels, 3, 0.1))


def test_mixup_is_the_weighted_mean_of_images_and_targets() -> None:
    images, labels = micro_batch()
    out, targets = mix(images, labels, Mix("mixup", 0.3, (0, 0, 0, 0), PARTNER), 3, 0.1)
    partner = torch.from_numpy(PARTNER)
    torch.testing.assert_close(out, 0.3 * images + 0.7 * images[partner])
    single = smooth(labels, 3, 0.1)
    torch.testing.assert_close(targets, 0.3 * single + 0.7 * single[partner])
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


@given(lam=st.floats(0, 1), y=st.floats(0, 0.999), x=st.floats(0, 0.999))
@settings(max_examples=50, deadline=None)
def test_cutmix_takes_the_box_from_the_partner_and_its_share_of_the_target(
    lam: float, y: float, x: float
) -> None:
    images, labels = micro_batch()
    box, share = cutmix_box(lam, (y, x), (16, 12))
    out, targets = mix(images.clone(), labels, Mix("cutmix", share, box, PARTNER), 3, 0.0)
    inside = torch.zeros(16, 12, dtype=torch.bool)
    inside[box[0] : box[2], box[1] : box[3]] = True
    assert torch.equal(out, torch.where(inside, images[torch.from_numpy(PARTNER)], images))
    own = (out == images).all(1).float().mean((1, 2))  # (4,): share of pixels that stayed
    torch.testing.assert_close(own, torch.full((4,), share))
    single = smooth(labels, 3, 0.0)
    expected = share * single + (1 - share) * single[torch.from_numpy(PARTNER)]
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_each_sample_can_be_mixed_by_its_own_lambda_or_box() -> None:
    images, labels = micro_batch()
    cutmix = np.array([True, False, True, False])
    boxes = np.array([[2, 3, 10, 9], [0, 0, 0, 0], [0, 0, 16, 12], [0, 0, 0, 0]])
    lam = np.array([1 - 48 / 192, 0.3, 0.0, 1.0])
    own = mixing.SampleMix(cutmix, lam, boxes, PARTNER)
    out, targets = mix(images.clone(), labels, own, 3, 0.1)
    other, single = images[torch.from_numpy(PARTNER)], smooth(labels, 3, 0.1)
    expected = images[0].clone()
    expected[:, 2:10, 3:9] = other[0, :, 2:10, 3:9]
    assert torch.equal(out[0], expected)
    torch.testing.assert_close(out[1], 0.3 * images[1] + 0.7 * other[1])
    assert torch.equal(out[2], other[2])
    assert torch.equal(out[3], images[3])
    share = torch.from_numpy(lam).float()[:, None]
    theirs = single[torch.from_numpy(PARTNER)]
    torch.testing.assert_close(targets, share * single + (1 - share) * theirs)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_the_target_of_a_cutmix_sample_is_its_share_of_pixels() -> None:
    augment = AugmentConfig(cutmix_alpha=1.0, mix_per="sample")
    drawn = draw_mix(plan(batch=64, micro=64, size=(16, 12), seed_augment=0), augment, HERE)
    images = torch.arange(64.0).view(64, 1, 1, 1).expand(-1, 1, 16, 12)
    out, targets = mix(images, torch.arange(64), drawn, 64, 0.0)
    own = (out == images).float().mean((1, 2, 3))
    moved = torch.from_numpy(drawn.partner) != torch.arange(64)
    torch.testing.assert_close(targets.diagonal()[moved], own[moved])


def test_the_loss_is_torchs_for_smoothed_labels() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    loss = soft_cross_entropy(logits, smooth(labels, 5, 0.1))
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_the_loss_is_taken_in_float32_whatever_the_logits_are() -> None:
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = smooth(torch.arange(64) % 5, 5, 0.1)
    loss = soft_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, soft_cross_entropy(logits.float(), targets))
    assert soft_cross_entropy(logits.double(), targets).dtype == torch.float64


def test_logits_of_zero_lose_the_logarithm_of_the_number_of_classes() -> None:
    loss = soft_cross_entropy(torch.zeros(3, 10), smooth(torch.tensor([1, 2, 3]), 10, 0.1))
    assert loss.item() == pytest.approx(np.log(10), rel=1e-6)


AUGMENT = AugmentConfig(crop="random_resized", mixup_alpha=0.8, cutmix_alpha=1.0)


@given(
    lam=st.floats(0, 1),
    y=st.floats(0, 1, exclude_max=True),
    x=st.floats(0, 1, exclude_max=True),
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
def test_cutmix_lambda_is_the_share_of_pixels_outside_the_box(
    lam: float, y: float, x: float, size: tuple[int, int]
) -> None:
    (top, left, bottom, right), share = cutmix_box(lam, (y, x), size)
    inside = np.zeros(size, bool)
    inside[top:bottom, left:right] = True
    assert 0 <= top <= bottom <= size[0]
    assert 0 <= left <= right <= size[1]
    assert share == pytest.approx(1 - inside.mean(), abs=1e-12)
    assert share >= lam - 1e-12  # the box is never larger than asked for


def test_a_cutmix_box_inside_the_image_has_the_side_of_the_square_root() -> None:
    box, share = cutmix_box(0.75, (0.5, 0.5), (32, 64))
    assert box == (8, 16, 24, 48)
    assert share == 0.75


def test_mixup_and_cutmix_alternate_by_a_fair_coin() -> None:
    mixes = [draw_mix(plan(), AUGMENT, Place(e, i)) for e in range(20) for i in range(50)]
    share = np.mean([m.kind == "mixup" for m in mixes])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(1000)
    lams = [m.lam for m in mixes if m.kind == "mixup"]
    assert abs(np.mean(lams) - 0.5) < 0.05
    for m in mixes:
        assert sorted(m.partner.tolist()) == [0, 1, 2, 3]
    assert len({m.partner.tobytes() for m in mixes}) == 24


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_one_alpha_alone_is_always_used(kind: str) -> None:
    alone = AugmentConfig(**{f"{kind}_alpha": 1.0})  # type: ignore[arg-type]
    assert {draw_mix(plan(), alone, Place(0, i)).kind for i in range(30)} == {kind}
    none = draw_mix(plan(), AugmentConfig(), HERE)
    assert (none.kind, none.lam) == ("none", 1.0)


def test_a_share_of_the_batches_or_images_is_mixed_as_it_would_be_without_the_share() -> None:
    some = dataclasses.replace(AUGMENT, mix_prob=0.8)
    places = [Place(e, i) for e in range(20) for i in range(50)]
    pairs = [(draw_mix(plan(), AUGMENT, p), draw_mix(plan(), some, p)) for p in places]
    mixed = [(a, b) for a, b in pairs if b.kind != "none"]  # type: ignore[union-attr]
    assert abs(len(mixed) / 1000 - 0.8) < 4 * 0.4 / np.sqrt(1000)
    assert all(a.lam == b.lam for a, b in mixed)
    each = dataclasses.replace(some, mix_per="sample")
    mix = draw_mix(plan(batch=4000, micro=4000), each, HERE)
    assert abs((mix.lam == 1).mean() - 0.2) < 4 * 0.4 / np.sqrt(4000) + 0.02


def test_mixing_per_sample_draws_for_each_sample() -> None:
    augment = AugmentConfig(mixup_alpha=0.8, cutmix_alpha=1.0, mix_per="sample")
    mix = draw_mix(plan(batch=4000, micro=4000), augment, HERE)
    assert not hasattr(mix, "kind")
    assert abs(mix.cutmix.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)  # type: ignore[union-attr]
    u = uniform(1, "mix_sample", 0, np.arange(4000), 4)[:, 1]
    one = [float(betas(0.8, np.array([x]))[0]) for x in u[~mix.cutmix].tolist()]  # type: ignore[union-attr]
    assert mix.lam[~mix.cutmix].tolist() == one  # type: ignore[union-attr]
    assert sorted(mix.partner.tolist()) == list(range(4000))
    top, left, bottom, right = mix.boxes.T  # type: ignore[union-attr]
    share = 1 - (bottom - top) * (right - left) / (32 * 40)
    assert np.array_equal(mix.lam[mix.cutmix], share[mix.cutmix])  # type: ignore[union-attr]
    for kind in ("mixup", "cutmix"):
        alone = AugmentConfig(**{f"{kind}_alpha": 0.5}, mix_per="sample")  # type: ignore[arg-type]
        cutmix = draw_mix(plan(batch=100, micro=100), alone, HERE).cutmix  # type: ignore[union-attr]
        assert set(cutmix.tolist()) == {kind == "cutmix"}
