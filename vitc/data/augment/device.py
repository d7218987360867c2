"""What happens to a batch of uint8 images on the device: cut, mirror, light, normalise, erase.

Shapes: B batch, C channels, H W pixels. All shapes are static (but that of the erased images, whose
number the host has drawn), nothing waits for the device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.augment.policies import normal
from vitc.data.sampling import Erasing

PINNED_FROM = 1 << 15  # bytes


def to_device(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """Host values on the device; CUDA is not waited for.

    It stages small values that are not pinned at once, and may wait with larger ones for its
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
    """uint8 (B, C, H, W) -> float32 (B, C, H, W), mirrored where `flip` and normalised.

    flip: bool (B,) or None; mean, std: one a channel, for pixels in [0, 1]; channels_last: the
    memory format of the result; lighting: float32 (B, C), added to pixels in [0, 1] before they
    are normalised.
    """
    if flip is not None:
        images = mirror(images, flip)
    scale, offset = _affine(mean, std, images.device)
    if lighting is not None:
        offset = offset + lighting[:, :, None, None] * (255 * scale)
    # In place, and the memory format last: both measured faster on a CPU than the other way.
    out = images.float().mul_(scale).add_(offset)
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


def mirror(images: Tensor, flip: Tensor) -> Tensor:
    """(B, C, H, W), those where `flip` (bool (B,)) turned left to right."""
    both = torch.cat([images, images.flip(-1)])
    rows = torch.arange(len(images), device=images.device)
    return both.index_select(0, rows + len(images) * flip)


@functools.lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) factors that take a pixel in [0, 255] to (pixel / 255 - mean) / std."""
    with torch.inference_mode(False):  # cached: training will use what evaluation made
        m = torch.tensor(mean, dtype=torch.float64)
        s = torch.tensor(std, dtype=torch.float64)
        scale, offset = 1 / (255 * s), -m / s
        return tuple(t.float().view(1, -1, 1, 1).to(device) for t in (scale, offset))  # type: ignore[return-value]


def shift(images: Tensor, offsets: Tensor, pixels: int) -> Tensor:
    """uint8 (B, C, H, W) padded by `pixels` of black on every side and cut back to (H, W).

    offsets: int64 (B, 2), the cut's top and left in the padded image, in [0, 2 * pixels].
    """
    b, c, h, w = images.shape
    padded = F.pad(images, (pixels,) * 4)
    high, wide = h + 2 * pixels, w + 2 * pixels
    device = images.device
    # Each row of the result is a run of w bytes in `padded`: select it from the view of all runs.
    plane = torch.arange(b * c, device=device).view(b, c, 1) * (high * wide)
    top, left = offsets[:, 0].view(b, 1, 1), offsets[:, 1].view(b, 1, 1)
    start = plane + (top + torch.arange(h, device=device)) * wide + left  # (B, C, H)
    runs = padded.as_strided((padded.numel() - w + 1, w), (1, 1))
    return runs.index_select(0, start.view(-1)).view(b, c, h, w)


def resample(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cuts of uint8 (B, C, H, W), each resized to `size`: uint8 (B, C, *size).

    boxes: int64 (B, 4) of top, left, height, width in pixels. Antialiased bilinear filtering as
    `decode.crop_resize`, with every pixel within 1 of it: here in float32, as two batched matrix
    products; there in torch's 8-bit fixed-point kernel, rounded between the two directions.
    """
    b, c, high, wide = images.shape
    boxes = boxes.float()
    down = _taps(boxes[:, 0], boxes[:, 2], high, size[0])  # (B, h, H)
    across = _taps(boxes[:, 1], boxes[:, 3], wide, size[1])  # (B, w, W)
    with torch.autocast(images.device.type, enabled=False):
        rows = images.transpose(1, 2).float().reshape(b, high, c * wide)
        rows = torch.bmm(down, rows).view(b, size[0] * c, wide)
        out = torch.bmm(rows, across.transpose(1, 2)).view(b, size[0], c, size[1])
    # Within [0, 255.5), as the weights are those of a mean: the cast rounds.
    return out.add_(0.5).to(torch.uint8).transpose(1, 2).contiguous()


def _taps(start: Tensor, length: Tensor, pixels: int, out: int) -> Tensor:
    """float32 (B, out, pixels): how much of each pixel each output takes along one axis.

    A triangle around the output's centre, as wide as an output is where that is more than a
    pixel, cut off at the box and normalised.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / out
    slope = 1 / scale.clamp(min=1)
    centre = start + (torch.arange(out, device=start.device).view(-1, 1) + 0.5) * scale
    pixel = torch.arange(pixels, device=start.device) + 0.5
    inside = (pixel > start) & (pixel < start + length)  # (B, 1, pixels)
    triangle = (pixel * slope - centre * slope).abs_().sub_(1).clamp_(max=0).mul_(inside)
    return triangle.div_(triangle.sum(-1, keepdim=True))  # both below 0


# -- erasing --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Erased:
    """What is erased from a micro-batch, on the device: int64 (E,) the images, int64 (E, 4) the
    rectangle of each (top, left, bottom, right), int32 (E,) the keys of their noise, or None for
    the mean colour."""

    rows: Tensor
    boxes: Tensor
    keys: Tensor | None


def erased(erasing: Erasing, fill: Literal["noise", "mean"], device: torch.device) -> Erased | None:
    """The drawn rectangles on the device; None where there is none."""
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
    """Normalised images, float32 (B, C, H, W), with the rectangles overwritten in place: by 0, the
    data's mean colour, or by `noise`."""
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
    int32 (E,), and its place, and so the same in any batch and on any device.

    The hash is "lowbias32" (github.com/skeeto/hash-prospector, public domain), whose products
    wrap around; its upper 16 bits choose a quantile, so the largest number is 4.3.
    """
    place = torch.arange(shape.numel(), dtype=torch.int32, device=keys.device)
    x = _lowbias32(_lowbias32(keys.clone())[:, None] ^ place)
    quantiles = _normal_quantiles(keys.device)
    return quantiles[((x >> 16) & 0xFFFF).long()].view(-1, *shape)


def _lowbias32(x: Tensor) -> Tensor:
    """Overwrites `x`, int32. A shift to the right must bring in zeros, hence the masks."""
    x.bitwise_xor_((x >> 16) & 0xFFFF).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15) & 0x1FFFF).mul_(0x846CA68B - 2**32)
    return x.bitwise_xor_((x >> 16) & 0xFFFF)


@functools.lru_cache(maxsize=4)
def _normal_quantiles(device: torch.device) -> Tensor:
    """float32 (65536,): the middles of as many equal parts of a standard normal distribution."""
    values = normal((np.arange(1 << 16) + 0.5) / (1 << 16))
    with torch.inference_mode(False):
        return torch.from_numpy(values.astype(np.float32)).to(device)
