"""What is done to every batch: mirroring, lighting, normalising and erasing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import kstest

from tests.batches import HERE, noise_images, plan, plausible
from vitc.data.augment import device
from vitc.data.augment.device import PCA_AXES, PCA_STD, Erasing, erase, erased, finish
from vitc.data.config import AugmentConfig
from vitc.data.sampling import BatchPlan, uniform

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


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


def test_finish_adds_lighting_to_pixels_of_zero_to_one_and_normalises_them() -> None:
    images = noise_images(4, 3, 8, 6)
    light = torch.tensor([[0.1, -0.2, 0.3], [0, 0, 0], [-0.05, 0.0, 0.02], [1, 1, 1]])
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    out = finish(images, None, MEAN, STD, channels_last=False, lighting=light)
    expected = (images / 255 + light[:, :, None, None] - mean) / std
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    plain = finish(images, None, MEAN, STD, channels_last=False)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain, (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(out[1], plain[1])


def test_training_can_use_what_evaluation_has_cached() -> None:
    with torch.inference_mode():
        finish(noise_images(1, 1, 4, 4), None, (0.123,), (0.456,), channels_last=False)
    weight = torch.ones(1, 1, 4, 4, requires_grad=True)
    out = finish(noise_images(1, 1, 4, 4), None, (0.123,), (0.456,), channels_last=False)
    (out * weight).sum().backward()
    assert weight.grad is not None


BOXES = np.array([[2, 1, 7, 5], [0, 0, 0, 0], [0, 0, 12, 10], [11, 9, 12, 10]])


KEYS = np.array([7, 8, 2**32 - 1, 2**31])


def to_erase(fill: str) -> device.Erased:
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
    out = device.noise(torch.from_numpy(keys.view(np.int32)), torch.Size((3, 5, 7))).flatten(1)
    rank = lowbias32(lowbias32(keys)[:, None] ^ np.arange(105, dtype=np.uint32)) >> np.uint32(16)
    u = (rank + 0.5) / 65536
    np.testing.assert_allclose(out.numpy(), ndtri(u), atol=1e-5)


def test_noise_is_normal_and_uncorrelated() -> None:
    out = device.noise(torch.arange(40, dtype=torch.int32), torch.Size((3, 50, 50))).double()
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


def test_flips_have_their_probability() -> None:
    for p in (0.0, 0.3, 1.0):
        flips = device.draw_flip(plan(batch=4096, micro=4096), AugmentConfig(flip=p), HERE)
        assert abs(flips.mean() - p) <= 4 * np.sqrt(p * (1 - p) / 4096)


N = 60_000


def many(n: int = N, **changes: object) -> BatchPlan:
    return plan(batch=n, micro=n, **changes)


def test_lighting_has_the_covariance_of_its_axes() -> None:
    added = device.draw_lighting(many(), AugmentConfig(lighting=0.1), HERE)
    assert added is not None
    assert (added.dtype, added.shape) == (np.float32, (N, 3))
    expected = PCA_AXES @ np.diag((0.1 * PCA_STD) ** 2) @ PCA_AXES.T
    spread = np.sqrt(np.diag(expected))
    assert np.abs(added.mean(0) / spread).max() < 4 / np.sqrt(N)
    error = (np.cov(added.T) - expected) / np.outer(spread, spread)
    assert np.abs(error).max() < 4 * np.sqrt(2 / N)
    along = added @ np.linalg.inv(PCA_AXES).T / (0.1 * PCA_STD)
    for k in range(3):
        assert kstest(along[:, k], "norm").pvalue > 1e-3
    assert pytest.approx(np.eye(3), abs=2e-3) == PCA_AXES.T @ PCA_AXES


def test_lighting_leaves_opacity_alone() -> None:
    added = device.draw_lighting(plan(in_chans=4), AugmentConfig(lighting=0.1), HERE)
    assert added is not None
    assert added.shape == (4, 4)
    assert (added[:, 3] == 0).all()
    assert (added[:, :3] != 0).all()
    assert device.draw_lighting(plan(), AugmentConfig(), HERE) is None


def test_erasing_has_its_probability_area_and_ratio() -> None:
    augment = AugmentConfig(erase=0.25)
    erasing = device.draw_erasing(many(size=(1000, 1000)), augment, HERE)
    assert erasing is not None
    top, left, bottom, right = erasing.boxes.T.astype(float)
    some = bottom > top
    assert abs(some.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / N)
    assert (erasing.boxes[~some] == 0).all()
    h, w = (bottom - top)[some], (right - left)[some]
    assert (top >= 0).all() and (left >= 0).all()  # noqa: PT018
    assert (h < 1000).all() and (w < 1000).all()  # noqa: PT018
    assert bottom.max() <= 1000 and right.max() <= 1000  # noqa: PT018
    share, ratio = h * w / 1e6, h / w
    assert share.min() > 0.0195
    assert share.max() < 0.334
    assert ratio.min() > 0.298
    assert ratio.max() < 3.36
    # Nearly all first tries fit, those of a large area and far from a square aside.
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.004)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.03)
    assert len(np.unique(erasing.keys)) > N * 0.999
    assert erasing.keys.max() < 2**32


def test_erased_boxes_are_anywhere_that_they_fit_and_never_the_whole_image() -> None:
    half = AugmentConfig(erase=1.0, erase_area=(0.25, 0.25), erase_ratio=(1.0, 1.0))
    boxes = device.erase_boxes(uniform(0, "erase", 0, np.arange(N), 22), (40, 40), half)
    assert (boxes[:, 2:] - boxes[:, :2] == 20).all()
    for place in boxes[:, :2].T:
        assert plausible(np.bincount(place, minlength=21))
    all_ = AugmentConfig(erase=1.0, erase_area=(1.0, 1.0), erase_ratio=(1.0, 1.0))
    assert (device.erase_boxes(uniform(0, "erase", 0, np.arange(9), 22), (40, 40), all_) == 0).all()
