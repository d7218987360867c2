"""What happens on the device: cutting, mirroring, normalising, mixing, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitc.data.augment import finish, resample, shift
from vitc.data.config import AugmentConfig
from vitc.data.decode import crop_resize
from vitc.data.mixing import mix, smooth, soft_cross_entropy
from vitc.data.sampling import Mix, cutmix_box, random_resized_boxes, uniform

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


def noise(*shape: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


# -- finish ---------------------------------------------------------------------------------------


def test_finish_normalises_pixels_of_zero_to_one() -> None:
    images = noise(5, 3, 8, 6)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    out = finish(images, None, MEAN, STD, channels_last=False)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_finish_mirrors_the_chosen_images_left_to_right() -> None:
    images = noise(4, 3, 8, 6)
    before = images.clone()
    flip = torch.tensor([True, False, False, True])
    out = finish(images, flip, MEAN, STD, channels_last=False)
    plain = finish(images, None, MEAN, STD, channels_last=False)
    assert torch.equal(out[1:3], plain[1:3])
    assert torch.equal(out[[0, 3]], plain[[0, 3]].flip(-1))
    assert torch.equal(images, before)


def test_finish_gives_the_memory_format_asked_for_and_the_same_numbers() -> None:
    images, flip = noise(4, 3, 8, 6), torch.tensor([True, False, False, True])
    plain = finish(images, flip, MEAN, STD, channels_last=False)
    last = finish(images, flip, MEAN, STD, channels_last=True)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_training_can_use_what_evaluation_has_cached() -> None:
    with torch.inference_mode():
        finish(noise(1, 1, 4, 4), None, (0.123,), (0.456,), channels_last=False)
    weight = torch.ones(1, 1, 4, 4, requires_grad=True)
    (
        finish(noise(1, 1, 4, 4), None, (0.123,), (0.456,), channels_last=False) * weight
    ).sum().backward()
    assert weight.grad is not None


# -- cuts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [0, 1, 4])
def test_shift_is_a_cut_from_the_padded_image(channels: int, pixels: int) -> None:
    images = noise(6, channels, 9, 7)
    rng = np.random.default_rng(1)
    offsets = torch.from_numpy(rng.integers(0, 2 * pixels + 1, (6, 2)))
    out = shift(images, offsets, pixels)
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    for i, (top, left) in enumerate(offsets.tolist()):
        assert torch.equal(out[i], padded[i, :, top : top + 9, left : left + 7])


def test_the_last_offset_of_the_last_image_stays_inside_the_memory() -> None:
    images = noise(2, 1, 4, 4)
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
    images = noise(24, 3, *shape)
    crop = uniform(0, "crop", 0, np.arange(24), 22)
    boxes = random_resized_boxes(crop, *shape, AugmentConfig(crop="random_resized"))
    out = resample(images, torch.from_numpy(boxes), size)
    assert out.dtype == torch.uint8
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        pixels = images[i].permute(1, 2, 0).contiguous().numpy()
        expected = crop_resize(pixels, (top, left, h, w), size)
        assert (out[i].int() - expected.int()).abs().max() <= 1


def test_resample_of_the_whole_image_to_its_size_changes_nothing() -> None:
    images = noise(3, 3, 12, 10)
    boxes = torch.tensor([[0, 0, 12, 10]] * 3)
    assert torch.equal(resample(images, boxes, (12, 10)), images)


def test_resample_stays_exact_under_autocast() -> None:
    images, boxes = noise(3, 3, 12, 10), torch.tensor([[1, 2, 7, 7]] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = resample(images, boxes, (8, 8))
    assert torch.equal(cast, resample(images, boxes, (8, 8)))


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
