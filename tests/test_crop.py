"""Evaluation's view of an image, and training crops of an image or a batch."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.batches import noise_images, plausible, scene, smooth
from vitc.data.augment.crop import (
    eval_image,
    frame,
    random_resized_boxes,
    resample,
    shift,
    shift_offsets,
    train_image,
)
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.decode import Pixels, crop_resize
from vitc.data.sampling import uniform


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


def test_resample_of_the_whole_image_changes_nothing_and_autocast_does_not_matter() -> None:
    images = noise_images(3, 3, 12, 10)
    whole, boxes = torch.tensor([[0, 0, 12, 10]] * 3), torch.tensor([[1, 2, 7, 7]] * 3)
    assert torch.equal(resample(images, whole, (12, 10)), images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = resample(images, boxes, (8, 8))
    assert torch.equal(cast, resample(images, boxes, (8, 8)))


AUGMENT = AugmentConfig(crop="random_resized", mixup_alpha=0.8, cutmix_alpha=1.0)


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    seed=st.integers(0, 1000),
    frame=st.sampled_from([None, (32, 32), (64, 48)]),
)
@settings(max_examples=80, deadline=None)
def test_cuts_are_inside_the_image(
    height: int, width: int, seed: int, frame: tuple[int, int] | None
) -> None:
    crop = uniform(seed, "crop", 0, np.arange(20), 22)
    boxes = random_resized_boxes(crop, height, width, AUGMENT, frame)
    top, left, h, w = boxes.T
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    one = [random_resized_boxes(row[None], height, width, AUGMENT, frame)[0] for row in crop]
    assert np.array_equal(np.stack(one), boxes)


def boxes_of(height: int, width: int, augment: AugmentConfig, n: int = 20_000) -> NDArray[np.int64]:
    return random_resized_boxes(uniform(0, "crop", 0, np.arange(n), 22), height, width, augment)


def test_the_first_try_decides_the_area_and_the_aspect_ratio() -> None:
    narrow = AugmentConfig(crop="random_resized", scale=(0.1, 0.5), ratio=(0.8, 1.25))
    _, _, h, w = boxes_of(1000, 1000, narrow).T.astype(float)
    share, ratio = h * w / 1e6, w / h
    assert share.min() > 0.099
    assert share.max() < 0.501
    assert share.mean() == pytest.approx(0.3, abs=0.004)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.005)
    assert np.log(ratio).std() == pytest.approx(np.log(1.25 / 0.8) / np.sqrt(12), abs=0.003)


def test_cuts_are_anywhere_that_they_fit() -> None:
    half = AugmentConfig(crop="random_resized", scale=(0.25, 0.25), ratio=(1.0, 1.0))
    boxes = boxes_of(100, 100, half)
    assert (boxes[:, 2:] == 50).all()
    for place in boxes[:, :2].T:
        assert plausible(np.bincount(place, minlength=51), p=1e-4)


def test_a_long_image_gives_its_middle_and_a_squashed_one_is_cut_in_its_distorted_frame() -> None:
    large = AugmentConfig(crop="random_resized", scale=(0.9, 1.0))
    assert boxes_of(100, 1000, large, 5).tolist() == [[0, 433, 100, 133]] * 5
    assert boxes_of(1000, 100, large, 5).tolist() == [[433, 0, 133, 100]] * 5
    square = AugmentConfig(crop="random_resized", scale=(0.25, 0.25), ratio=(1.0, 1.0))
    crop = uniform(0, "crop", 0, np.arange(5), 22)
    boxes = random_resized_boxes(crop, 100, 400, square, frame=(32, 32))
    assert boxes[:, 2:].tolist() == [[50, 200]] * 5


def test_shifts_are_uniform_over_all_offsets() -> None:
    offsets = shift_offsets(uniform(0, "crop", 0, np.arange(9000), 2), 4)
    counts = np.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81)
    assert len(counts) == 81
    assert plausible(counts, p=1e-4)
    assert (shift_offsets(uniform(0, "crop", 0, np.arange(9), 2), 0) == 0).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_an_image_of_the_right_size_keeps_every_pixel(fit: Any) -> None:
    seen = eval_image(scene(), (48, 64), fit, 0.875)
    assert seen.dtype == torch.uint8
    assert (seen.permute(1, 2, 0).numpy() == scene()).all()
    original = scene()
    eval_image(original, (48, 64), fit, 1.0).zero_()
    assert (original == scene()).all()  # the tensor shares no memory with the image


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3000, 2), (20, 20), (100, 37), (300, 400)])
def test_any_shape_reaches_the_size(fit: Any, shape: tuple[int, int]) -> None:
    for channels in (1, 3, 4):
        image = np.full((*shape, channels), 7, np.uint8)
        seen = eval_image(image, (32, 48), fit, 0.875)
        assert seen.shape == (channels, 32, 48)
        assert set(seen.unique().tolist()) <= ({0, 7} if fit == "pad" else {7})


def resized_then_cut(image: Pixels, size: int, share: float) -> torch.Tensor:
    """The field's words: the shorter side to size / share, then the centre."""
    edge = round(size / share)
    scale = edge / min(image.shape[:2])
    whole = round(image.shape[0] * scale), round(image.shape[1] * scale)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    big = torch.nn.functional.interpolate(pixels, size=whole, mode="bilinear", antialias=True)[0]
    top, left = round((whole[0] - size) / 2), round((whole[1] - size) / 2)
    return big[:, top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (256, 256), (600, 241)])
def test_crop_is_the_fields_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    image = smooth(*shape)
    seen = eval_image(image, (224, 224), "crop", 0.875).float()
    difference = (seen - resized_then_cut(image, 224, 0.875)).abs()
    assert difference.mean() < 1.5  # boxes are rounded to whole pixels
    wrong = eval_image(image, (224, 224), "squash", 0.875).float()
    assert (wrong - resized_then_cut(image, 224, 0.875)).abs().mean() > 5


def test_pad_gives_28_pixels_a_border_of_two_zeros_and_blurs_nothing() -> None:
    image = scene(28, 28) // 2 + 100
    seen = eval_image(image, (32, 32), "pad", 0.875).permute(1, 2, 0).numpy()
    assert (seen[2:30, 2:30] == image).all()
    seen[2:30, 2:30] = 0
    assert not seen.any()


def test_pad_enlarges_by_whole_factors_only_and_shrinks_to_fit() -> None:
    def inner(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
        seen = eval_image(np.full((height, width, 1), 9, np.uint8), size, "pad", 0.875)[0]
        rows, columns = seen.any(1), seen.any(0)
        for side in (rows, columns):  # centred
            first, last = int(side.int().argmax()), int(side.flip(0).int().argmax())
            assert abs(first - last) <= 1
        return int(rows.sum()), int(columns.sum())

    assert inner(14, 14, (32, 32)) == (28, 28)
    assert inner(15, 9, (32, 32)) == (30, 18)
    assert inner(31, 2, (32, 32)) == (31, 2)
    assert inner(100, 50, (32, 32)) == (32, 16)
    assert inner(50, 400, (32, 64)) == (8, 64)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize(
    "shape", [(40, 40), (60, 45), (30, 90), (200, 33), (7, 300), (1, 64), (64, 1), (32, 31)]
)
def test_a_crop_of_a_padded_image_has_the_pixels_of_the_whole_frame(
    shape: tuple[int, int], size: tuple[int, int], channels: int
) -> None:
    pixels = noise_images(1, channels, *shape)[0].permute(1, 2, 0).contiguous().numpy()
    config = DataConfig(fit="pad", augment=AugmentConfig(crop="random_resized"))
    whole = frame(pixels, size, "pad")
    draws = uniform(3, "crop", 0, np.arange(40), 22)
    boxes = random_resized_boxes(draws, *whole.shape[:2], config.augment)
    black = 0
    for crop, (top, left, h, w) in zip(draws, boxes.tolist(), strict=True):
        expected = crop_resize(whole, (top, left, h, w), size)
        out = train_image(pixels, "x", channels, crop, size, config)
        assert out.shape == expected.shape
        assert torch.equal(out, expected)
        black += not expected.any()
    if (shape, size) == ((7, 300), (32, 32)):
        assert black, "no crop missed the image"


@pytest.mark.parametrize("shape", [(50_000, 1), (1, 50_000), (20_000, 800)])
def test_the_frame_of_a_strip_takes_no_more_memory_than_the_largest_image(
    shape: tuple[int, int],
) -> None:
    file = io.BytesIO()
    Image.new("RGB", shape, (200, 0, 0)).save(file, "PNG")
    config = DataConfig(fit="pad", augment=AugmentConfig(crop="random_resized", scale=(1.0, 1.0)))
    tracemalloc.start()
    try:
        out = train_image(file.getvalue(), "strip.png", 3, np.zeros(22), (32, 32), config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out.shape == (3, 32, 32)
    assert not out[1:].any()
    assert abs(out[0].float().mean() - 200 * min(shape) / max(shape)) < 1
    assert peak < 500e6  # of 1.2 to 7.5 GB for the whole frame
