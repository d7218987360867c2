"""What happens on the device: cutting, mirroring, normalising, mixing, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from vitc.data.augment.crop import random_resized_boxes, resample, shift
from vitc.data.augment.device import Erased, Erasing, erase, erased, finish, noise
from vitc.data.augment.mixing import (
    Mix,
    SampleMix,
    cutmix_box,
    draw_mix,
    mix,
    smooth,
    soft_cross_entropy,
)
from vitc.data.config import AugmentConfig
from vitc.data.decode import crop_resize
from vitc.data.sampling import BatchPlan, Place, uniform

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


def noise_images(*shape: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


# -- finish ---------------------------------------------------------------------------------------


def test_finish_normalises_pixels_of_zero_to_one() -> None:
    images = noise_images(5, 3, 8, 6)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    out = finish(images, None, MEAN, STD, channels_last=False)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_finish_mirrors_the_chosen_images_left_to_right() -> None:
    images = noise_images(4, 3, 8, 6)
    before = images.clone()
    flip = torch.tensor([True, False, False, True])
    out = finish(images, flip, MEAN, STD, channels_last=False)
    plain = finish(images, None, MEAN, STD, channels_last=False)
    assert torch.equal(out[1:3], plain[1:3])
    assert torch.equal(out[[0, 3]], plain[[0, 3]].flip(-1))
    assert torch.equal(images, before)


def test_finish_gives_the_memory_format_asked_for_and_the_same_numbers() -> None:
    images, flip = noise_images(4, 3, 8, 6), torch.tensor([True, False, False, True])
    plain = finish(images, flip, MEAN, STD, channels_last=False)
    last = finish(images, flip, MEAN, STD, channels_last=True)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_lighting_is_added_to_pixels_of_zero_to_one_before_they_are_normalised() -> None:
    images = noise_images(4, 3, 8, 6)
    light = torch.tensor([[0.1, -0.2, 0.3], [0, 0, 0], [-0.05, 0.0, 0.02], [1, 1, 1]])
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    out = finish(images, None, MEAN, STD, channels_last=False, lighting=light)
    expected = (images / 255 + light[:, :, None, None] - mean) / std
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    plain = finish(images, None, MEAN, STD, channels_last=False)
    assert torch.equal(out[1], plain[1])
    assert torch.equal(plain, finish(images, None, MEAN, STD, channels_last=False))


def test_training_can_use_what_evaluation_has_cached() -> None:
    with torch.inference_mode():
        finish(noise_images(1, 1, 4, 4), None, (0.123,), (0.456,), channels_last=False)
    weight = torch.ones(1, 1, 4, 4, requires_grad=True)
    (
        finish(noise_images(1, 1, 4, 4), None, (0.123,), (0.456,), channels_last=False) * weight
    ).sum().backward()
    assert weight.grad is not None


# -- cuts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [0, 1, 4])
def test_shift_is_a_cut_from_the_padded_image(channels: int, pixels: int) -> None:
    images = noise_images(6, channels, 9, 7)
    rng = np.random.default_rng(1)
    offsets = torch.from_numpy(rng.integers(0, 2 * pixels + 1, (6, 2)))
    out = shift(images, offsets, pixels)
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    for i, (top, left) in enumerate(offsets.tolist()):
        assert torch.equal(out[i], padded[i, :, top : top + 9, left : left + 7])


def test_the_last_offset_of_the_last_image_stays_inside_the_memory() -> None:
    images = noise_images(2, 1, 4, 4)
    out = shift(images, torch.tensor([[4, 4], [4, 4]]), 2)
    assert torch.equal(out[1, 0, :2, :2], images[1, 0, 2:, 2:])
    assert out[1, 0, 2:].sum() + out[1, 0, :, 2:].sum() == 0


@pytest.mark.parametrize(
    ("shape", "size"),
    [((32, 32), (32, 32)), ((64, 48), (32, 32)), ((28, 28), (56, 40)), ((50, 41), (7, 13))],
)
def test_resample_is_within_one_of_the_loaders_resize(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    images = noise_images(24, 3, *shape)
    crop = uniform(0, "crop", 0, np.arange(24), 22)
    boxes = random_resized_boxes(crop, *shape, AugmentConfig(crop="random_resized"))
    out = resample(images, torch.from_numpy(boxes), size)
    assert out.dtype == torch.uint8
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        pixels = images[i].permute(1, 2, 0).contiguous().numpy()
        expected = crop_resize(pixels, (top, left, h, w), size)
        assert (out[i].int() - expected.int()).abs().max() <= 1


def test_resample_of_the_whole_image_to_its_size_changes_nothing() -> None:
    images = noise_images(3, 3, 12, 10)
    boxes = torch.tensor([[0, 0, 12, 10]] * 3)
    assert torch.equal(resample(images, boxes, (12, 10)), images)


def test_resample_stays_exact_under_autocast() -> None:
    images, boxes = noise_images(3, 3, 12, 10), torch.tensor([[1, 2, 7, 7]] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = resample(images, boxes, (8, 8))
    assert torch.equal(cast, resample(images, boxes, (8, 8)))


# -- erasing --------------------------------------------------------------------------------------

BOXES = np.array([[2, 1, 7, 5], [0, 0, 0, 0], [0, 0, 12, 10], [11, 9, 12, 10]])
KEYS = np.array([7, 8, 2**32 - 1, 2**31])


def to_erase(fill: str) -> Erased:
    what = erased(Erasing(BOXES, KEYS), fill, torch.device("cpu"))  # type: ignore[arg-type]
    assert what is not None
    return what


@pytest.mark.parametrize("fill", ["noise", "mean"])
def test_only_the_rectangles_are_erased(fill: str) -> None:
    images = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    out = erase(images.clone(), to_erase(fill))
    inside = torch.zeros(4, 12, 10, dtype=torch.bool)
    for i, (top, left, bottom, right) in enumerate(BOXES.tolist()):
        inside[i, top:bottom, left:right] = True
    inside = inside[:, None].expand_as(images)
    assert torch.equal(out[~inside], images[~inside])
    assert (out[inside] != images[inside]).all()
    if fill == "mean":
        assert (out[inside] == 0).all()


def test_erasing_keeps_the_memory_format_and_nothing_to_erase_is_nothing() -> None:
    images = torch.zeros(4, 3, 12, 10).contiguous(memory_format=torch.channels_last)
    assert erase(images, to_erase("noise")).is_contiguous(memory_format=torch.channels_last)
    assert erase(images, None) is images
    assert erased(Erasing(BOXES[1:2], KEYS[1:2]), "noise", torch.device("cpu")) is None


def test_the_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    zeros = torch.zeros(4, 3, 12, 10)
    together = erase(zeros.clone(), to_erase("noise"))
    for i in (0, 2, 3):
        alone = erased(Erasing(BOXES[i : i + 1], KEYS[i : i + 1]), "noise", torch.device("cpu"))
        assert torch.equal(erase(zeros[:1].clone(), alone)[0], together[i])


def lowbias32(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """In numpy's unsigned numbers, as its author writes it in C."""
    x = x.astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def test_noise_is_the_normal_quantile_of_a_hash_of_key_and_place() -> None:
    keys = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    out = noise(torch.from_numpy(keys.view(np.int32)), torch.Size((3, 5, 7))).flatten(1)
    rank = lowbias32(lowbias32(keys)[:, None] ^ np.arange(105, dtype=np.uint32)) >> np.uint32(16)
    u = (rank + 0.5) / 65536
    from scipy.special import ndtri

    np.testing.assert_allclose(out.numpy(), ndtri(u), atol=1e-5)


def test_noise_is_normal_and_uncorrelated() -> None:
    out = noise(torch.arange(40, dtype=torch.int32), torch.Size((3, 50, 50))).double()
    flat = out.flatten()
    assert kstest(flat.numpy(), "norm").pvalue > 1e-3
    assert abs(flat.std().item() - 1) < 4 / np.sqrt(2 * len(flat))
    for a, b in (
        (out[:, :, 1:], out[:, :, :-1]),
        (out[:, :, :, 1:], out[:, :, :, :-1]),
        (out[:, 1:], out[:, :-1]),
        (out[1:], out[:-1]),
    ):
        correlation = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(a.numel())


# -- mixing ---------------------------------------------------------------------------------------


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
    own = SampleMix(cutmix, lam, boxes, PARTNER)
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
    plan = BatchPlan(
        batch=64,
        micro=64,
        seed_order=0,
        seed_augment=0,
        size=(16, 12),
        in_chans=1,
        depth=1,
        drop_path_rate=0.0,
    )
    augment = AugmentConfig(cutmix_alpha=1.0, mix_per="sample")
    drawn = draw_mix(plan, augment, Place(0, 0))
    images = torch.arange(64.0).view(64, 1, 1, 1).expand(-1, 1, 16, 12)
    out, targets = mix(images, torch.arange(64), drawn, 64, 0.0)
    own = (out == images).float().mean((1, 2, 3))
    moved = torch.from_numpy(drawn.partner) != torch.arange(64)
    torch.testing.assert_close(targets.diagonal()[moved], own[moved])


# -- loss -----------------------------------------------------------------------------------------


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
