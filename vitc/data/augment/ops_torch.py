"""How does torch change a whole batch? The device back end of `ops`, with Pillow's results.

Shapes: n images, C channels, H W pixels; one argument an image, neutral where it has another
operation.

Point operations, colour, sharpness and blur use integers, or float32 in Pillow's order of
operations: bit-equal to Pillow. Moves are an affine gather, of the nearest pixel in Pillow's fixed
point, or bilinear in float64 as in Pillow: equal too, except for one or two values in a thousand
that differ by 1 where Pillow's compiler has fused multiplications and additions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.augment.device import to_device
from vitc.data.augment.ops_pillow import FILL

BLOCK = 2**23  # values that a bilinear move holds in float64 at a time: 64 MB

Args = NDArray[np.float64]


def colours(images: Tensor) -> int:
    """How many of the channels are colours, and not opacity."""
    return min(images.shape[1], 3)


def _factors(args: Args, device: torch.device) -> Tensor:
    return to_device(args.astype(np.float32), device).view(-1, 1, 1, 1)


def _blend(low: Tensor, high: Tensor, factors: Tensor) -> Tensor:
    """low + factor (high - low) in float32, clipped to uint8, as Pillow's Image.blend."""
    low, high = low.float(), high.float()
    return (high - low).mul_(factors).add_(low).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """uint8 (n, 1, H, W): luminance, as Pillow computes it."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, i : i + 1].int() for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8)


# -- point operations: a table of 256 values for each image and channel ---------------------------


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """The colours of images through tables, uint8 (n, colours, 256)."""
    c = colours(images)
    out = tables.gather(2, images[:, :c].flatten(2).long())
    return torch.cat([out.view_as(images[:, :c]), images[:, c:]], dim=1)


def histograms(images: Tensor) -> Tensor:
    """int64 (n, C, 256): how often each value occurs."""
    n, c = images.shape[:2]
    plane = torch.arange(n * c, device=images.device).view(n, c, 1) * 256
    flat = (images.flatten(2) + plane).view(-1)
    counts = torch.zeros(n * c * 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return counts.view(n, c, 256)


def equalized(counts: Tensor) -> Tensor:
    """uint8 (n, C, 256) from histograms: as `ops_pillow.equalized`."""
    ramp = torch.arange(256, device=counts.device)
    highest = torch.where(counts > 0, ramp, 0).amax(2, keepdim=True)
    before = counts.cumsum(2) - counts
    step = before.gather(2, highest) // 255
    even = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, even, ramp).to(torch.uint8)


def stretched(counts: Tensor) -> Tensor:
    """uint8 (n, C, 256) from histograms: as `ops_pillow.stretched`."""
    ramp = torch.arange(256, device=counts.device)
    low = torch.where(counts > 0, ramp, 255).amin(2, keepdim=True)
    high = torch.where(counts > 0, ramp, 0).amax(2, keepdim=True)
    width = (high - low).clamp(min=1).double()
    scale = torch.full_like(width, 255.0) / width  # a number / a tensor is rounded twice
    wide = (ramp * scale + -low * scale).long().clamp_(0, 255)
    return torch.where(high > low, wide, ramp).to(torch.uint8)


def contrast_tables(images: Tensor, factors: Args) -> Tensor:
    """uint8 (n, 1, 256): away from (above 1) or towards (below) the mean luminance, rounded."""
    grey = _grey(images).flatten(1)
    mean = (grey.long().sum(1).double() / grey.shape[1] + 0.5).long().view(-1, 1, 1)
    ramp = torch.arange(256, device=images.device).view(1, 1, 256)
    return _blend(mean, ramp, _factors(factors, images.device)[..., 0])


# -- colour, sharpness, blur ----------------------------------------------------------------------


def colour(images: Tensor, factors: Args) -> Tensor:
    """Away from (above 1) or towards (below) the grey image."""
    c = colours(images)
    out = _blend(_grey(images), images[:, :c], _factors(factors, images.device))
    return torch.cat([out, images[:, c:]], dim=1)


def sharpen(images: Tensor, factors: Args) -> Tensor:
    """Away from (above 1) or towards (below) `ops_pillow.smoothed`; the edge is unchanged."""
    c = colours(images)
    out = images.clone()
    wide = images[:, :c].int()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = (2 * (total + 4 * wide[:, :, 1:-1, 1:-1]) + 13) // 26
    inner = images[:, :c, 1:-1, 1:-1]
    out[:, :c, 1:-1, 1:-1] = _blend(smooth, inner, _factors(factors, images.device))
    return out


def blur(images: Tensor, sigmas: Args) -> Tensor:
    """Three running means along each row, then along each column, which approximate a Gaussian:
    Pillow's GaussianBlur (Gwosdek et al., 2011), in its fixed point."""
    weights = np.array([_box(sigma) for sigma in sigmas.tolist()], np.float64)
    own = to_device(weights, images.device)
    across = _means(images.double(), own)
    return _means(across.mT, own).mT.to(torch.uint8).contiguous()


def _means(values: Tensor, weights: Tensor) -> Tensor:
    """float64 (n, C, H, W) of integers: three times the mean over five neighbours in a row, the
    edge repeated; weights (n, 3) in 2^-24 for the distances 0, 1 and 2. Exact: the sums need 32 of
    the 53 bits."""
    at, one, two = (weights[:, i].view(-1, 1, 1, 1) for i in range(3))
    for _ in range(3):
        wide = F.pad(values, (2, 2, 0, 0), mode="replicate")
        total = values * at
        total.addcmul_(wide[..., 1:-3] + wide[..., 3:-1], one)
        total.addcmul_(wide[..., :-4] + wide[..., 4:], two)
        values = total.add_(1 << 23).mul_(2.0**-24).floor_()
    return values


def _box(sigma: float) -> tuple[int, int, int]:
    """Weights in 2^-24 of the distances 0, 1, 2, for sigma in [0, 2]: the box with a fractional
    radius up to 2 that, applied three times, has the variance sigma^2; in float32 as in Pillow."""
    one = np.float32
    variance = one(one(sigma) * one(sigma) / one(3))
    length = one(math.sqrt(12.0 * float(variance) + 1.0))
    whole = one(math.floor((float(length) - 1.0) / 2.0))
    part = one((one(2) * whole + one(1)) * (whole * (whole + one(1)) - one(3) * variance))
    part = one(part / (one(6) * (variance - (whole + one(1)) * (whole + one(1)))))
    radius = float(one(whole + part))
    full = int(one(1 << 24) / one(radius * 2 + 1))
    edge = ((1 << 24) - (int(radius) * 2 + 1) * full) // 2
    return (full, edge, 0) if int(radius) == 0 else (full, full, edge)


# -- moves ----------------------------------------------------------------------------------------


def move(images: Tensor, matrices: Args, bilinear: bool) -> Tensor:
    """The images resampled at the places given by affine matrices, float64 (n, 6)."""
    if not bilinear:
        return _nearest(images, matrices)
    few = max(1, BLOCK // images[0].numel())
    own = to_device(matrices, images.device)
    pairs = zip(torch.split(images, few), torch.split(own, few), strict=True)
    return torch.cat([_bilinear(part, where) for part, where in pairs])


def _gathered(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(n, C, H, W): the pixel at row y and column x, int64 (n, H, W), of each channel."""
    n, c, h, w = images.shape
    place = (y * w + x).view(n, 1, h * w).expand(-1, c, -1)
    return images.flatten(2).gather(2, place).view(images.shape)


def _filled(moved: Tensor, inside: Tensor) -> Tensor:
    c = moved.shape[1]
    fill = torch.tensor(FILL[:c], dtype=torch.uint8).to(moved.device, non_blocking=True)
    return torch.where(inside[:, None], moved, fill.view(1, c, 1, 1))


def _nearest(images: Tensor, matrices: Args) -> Tensor:
    h, w = images.shape[2:]
    a, b, c, d, e, f = matrices.T
    terms = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5])
    whole = np.floor(terms * 65536 + 0.5).astype(np.int64)  # 2^-16 pixels
    a_, b_, c_, d_, e_, f_ = (t.view(-1, 1, 1) for t in to_device(whole, images.device))
    y = torch.arange(h, device=images.device).view(1, h, 1)
    x = torch.arange(w, device=images.device).view(1, 1, w)
    from_x, from_y = (c_ + a_ * x + b_ * y) >> 16, (f_ + d_ * x + e_ * y) >> 16
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    return _filled(_gathered(images, from_y.clamp(0, h - 1), from_x.clamp(0, w - 1)), inside)


def _bilinear(images: Tensor, matrices: Tensor) -> Tensor:
    h, w = images.shape[2:]
    kind = {"dtype": torch.float64, "device": images.device}
    y = (torch.arange(h, **kind) + 0.5).view(1, h, 1)  # type: ignore[call-overload]
    x = (torch.arange(w, **kind) + 0.5).view(1, 1, w)  # type: ignore[call-overload]
    a, b, c, d, e, f = (t.view(-1, 1, 1) for t in matrices.T)
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    from_x, from_y = from_x - 0.5, from_y - 0.5
    left, top = from_x.floor(), from_y.floor()
    right_share, low_share = (from_x - left)[:, None], (from_y - top)[:, None]
    x0, y0 = left.long(), top.long()
    rows = []
    for row in (y0.clamp(0, h - 1), (y0 + 1).clamp(0, h - 1)):
        west = _gathered(images, row, x0.clamp(0, w - 1)).double()
        east = _gathered(images, row, (x0 + 1).clamp(0, w - 1)).double()
        rows.append(west + (east - west) * right_share)
    moved = rows[0] + (rows[1] - rows[0]) * low_share
    return _filled(moved.to(torch.uint8), inside)
