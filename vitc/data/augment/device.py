"""What is done to every batch on the device? Mirror, PCA lighting, normalisation, random erasing.

Shapes: B batch, C channels, H W pixels; all are static but for the number of erased images, which
the host has drawn. Nothing waits for the device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.config import AugmentConfig
from vitc.data.sampling import BatchPlan, Place, hashes, normal, power_of

PINNED_FROM = 1 << 15  # bytes
# Covariance of ImageNet's RGB values in [0, 1]: standard deviations along its main axes and the
# axes, in columns (Krizhevsky et al., 2012; the numbers of fb.resnet.torch and pycls).
PCA_STD = np.array([0.2175, 0.0188, 0.0045])
PCA_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
ERASE_TRIES = 10  # for a rectangle before the image is left whole, as in timm
ERASE_DRAWS = 2 * ERASE_TRIES + 2


def to_device(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """Host values on the device, without waiting for CUDA.

    CUDA stages small values that are not pinned at once, but may make larger ones wait for its
    stream; those are pinned first (torch's allocator keeps them until they are copied).
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.nbytes > PINNED_FROM:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def finish(
    images: Tensor,
    flip: Tensor | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    channels_last: bool,
    lighting: Tensor | None = None,
) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (B, C, H, W), mirrored where `flip` is set, and normalised.

    flip: bool (B,) or None; mean, std: one a channel, for pixels in [0, 1]; channels_last: the
    memory format of the result; lighting: float32 (B, C), added to pixels in [0, 1] before
    normalisation.
    """
    if flip is not None:
        images = mirror(images, flip)
    scale, offset = _affine(mean, std, images.device)
    if lighting is not None:
        offset = offset + lighting[:, :, None, None] * (255 * scale)
    # In place, and the memory format last: both measured faster on a CPU than the other way.
    out = images.float().mul_(scale).add_(offset)
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


def draw_flip(plan: BatchPlan, augment: AugmentConfig, place: Place) -> NDArray[np.bool_]:
    """bool (micro,): which samples are mirrored left to right."""
    return plan.uniforms("flip", place, 1)[:, 0] < augment.flip


def mirror(images: Tensor, flip: Tensor) -> Tensor:
    """(B, C, H, W), mirrored left to right where `flip` (bool (B,)) is set."""
    both = torch.cat([images, images.flip(-1)])
    rows = torch.arange(len(images), device=images.device)
    return both.index_select(0, rows + len(images) * flip)


@functools.lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) factors that take a pixel in [0, 255] to (pixel / 255 - mean) / std."""
    with torch.inference_mode(False):  # cached: training uses it after evaluation
        m = torch.tensor(mean, dtype=torch.float64)
        s = torch.tensor(std, dtype=torch.float64)
        scale, offset = 1 / (255 * s), -m / s
        return tuple(t.float().view(1, -1, 1, 1).to(device) for t in (scale, offset))  # type: ignore[return-value]


def draw_lighting(
    plan: BatchPlan, augment: AugmentConfig, place: Place
) -> NDArray[np.float32] | None:
    """float32 (micro, in_chans): what is added to each sample's channels, for pixels in [0, 1]; 0
    for opacity. None without lighting."""
    if augment.lighting == 0:
        return None
    along = augment.lighting * normal(plan.uniforms("lighting", place, 3)) * PCA_STD
    added = np.zeros((plan.micro, plan.in_chans), np.float32)
    for c in range(3):  # not a matrix product, which may add in another order elsewhere
        red, green, blue = (along[:, k] * PCA_AXES[c, k] for k in range(3))
        added[:, c] = red + green + blue
    return added


# -- erasing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Erasing:
    """The rectangles to erase from a micro-batch: int64 (micro, 4) of top, left, bottom, right, all
    0 for none, and int64 (micro,) 32-bit keys of the noise that fills them."""

    boxes: NDArray[np.int64]
    keys: NDArray[np.int64]


def draw_erasing(plan: BatchPlan, augment: AugmentConfig, place: Place) -> Erasing | None:
    """Random erasing (arXiv 1708.04896); None without it."""
    if augment.erase == 0:
        return None
    u = plan.uniforms("erase", place, 1 + ERASE_DRAWS)
    boxes = erase_boxes(u[:, 1:], plan.size, augment)
    boxes[u[:, 0] >= augment.erase] = 0
    positions = place.positions(plan.micro)
    keys = hashes(plan.seed_augment, "erase_noise", place.epoch, positions, 1)[:, 0]
    return Erasing(boxes, (keys >> np.uint64(32)).astype(np.int64))


def erase_boxes(
    u: NDArray[np.float64], size: tuple[int, int], augment: AugmentConfig
) -> NDArray[np.int64]:
    """int64 (n, 4): top, left, bottom, right of the rectangles to erase from images of `size`.

    From (n, ERASE_DRAWS) uniforms: the share of the area is uniform in `erase_area`, height / width
    log-uniform in `erase_ratio`; the first of ten tries that is smaller than the image in both
    directions is placed anywhere in it; if none is, the box is empty (as in timm).
    """
    area, aspect = u[:, :ERASE_TRIES], u[:, ERASE_TRIES : 2 * ERASE_TRIES]
    (least, most), (low, high) = augment.erase_area, augment.erase_ratio
    pixels = (least + area * (most - least)) * (size[0] * size[1])
    ratio = low * power_of(high / low, aspect)
    tall, wide = np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))
    fits = (tall < size[0]) & (wide < size[1])
    rows, first = np.arange(len(u)), fits.argmax(axis=1)
    h, w = tall[rows, first], wide[rows, first]
    top, left = np.floor(u[:, -2] * (size[0] - h + 1)), np.floor(u[:, -1] * (size[1] - w + 1))
    boxes = np.stack([top, left, top + h, left + w], axis=1).astype(np.int64)
    boxes[~fits[rows, first]] = 0
    return boxes


@dataclass(frozen=True, eq=False)
class Erased:
    """`Erasing` on the device: int64 (E,) rows of the images, int64 (E, 4) their rectangles (top,
    left, bottom, right), int32 (E,) the keys of their noise, or None for the mean colour."""

    rows: Tensor
    boxes: Tensor
    keys: Tensor | None


def erased(
    erasing: Erasing | None, fill: Literal["noise", "mean"], device: torch.device
) -> Erased | None:
    """The drawn rectangles on the device; None if there are none."""
    if erasing is None:
        return None
    top, left, bottom, right = erasing.boxes.T
    rows = np.flatnonzero((bottom > top) & (right > left))
    if len(rows) == 0:
        return None
    keys = erasing.keys[rows].astype(np.uint32).view(np.int32) if fill == "noise" else None
    return Erased(
        to_device(rows, device),
        to_device(erasing.boxes[rows], device),
        None if keys is None else to_device(keys, device),
    )


def erase(images: Tensor, what: Erased | None) -> Tensor:
    """Normalised images, float32 (B, C, H, W), with the rectangles overwritten in place: with 0,
    the data's mean colour, or with `noise`."""
    if what is None:
        return images
    h, w = images.shape[2:]
    top, left, bottom, right = (t.view(-1, 1, 1) for t in what.boxes.T)
    y = torch.arange(h, device=images.device).view(1, h, 1)
    x = torch.arange(w, device=images.device).view(1, 1, w)
    inside = ((y >= top) & (y < bottom) & (x >= left) & (x < right))[:, None]  # (E, 1, H, W)
    own = images.index_select(0, what.rows)
    fill = own.new_zeros(()) if what.keys is None else noise(what.keys, own.shape[1:])
    return images.index_copy_(0, what.rows, torch.where(inside, fill, own))


def noise(keys: Tensor, shape: torch.Size) -> Tensor:
    """float32 (E, *shape), standard normal to 16 bits: a number is a hash of its image's key,
    int32 (E,), and its place, so it is the same in any batch and on any device.

    The hash is "lowbias32" (github.com/skeeto/hash-prospector, public domain), with
    products that wrap around; its upper 16 bits choose a quantile, so the largest number is 4.3.
    """
    place = torch.arange(shape.numel(), dtype=torch.int32, device=keys.device)
    x = _lowbias32(_lowbias32(keys.clone())[:, None] ^ place)
    quantiles = _normal_quantiles(keys.device)
    return quantiles[((x >> 16) & 0xFFFF).long()].view(-1, *shape)


def _lowbias32(x: Tensor) -> Tensor:
    """Overwrites `x`, int32. The masks make the shifts logical: zeros enter from the left."""
    x.bitwise_xor_((x >> 16) & 0xFFFF).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15) & 0x1FFFF).mul_(0x846CA68B - 2**32)
    return x.bitwise_xor_((x >> 16) & 0xFFFF)


@functools.lru_cache(maxsize=4)
def _normal_quantiles(device: torch.device) -> Tensor:
    """float32 (65536,): the medians of 65,536 equally likely parts of a standard normal."""
    values = normal((np.arange(1 << 16) + 0.5) / (1 << 16))
    with torch.inference_mode(False):
        return torch.from_numpy(values.astype(np.float32)).to(device)
