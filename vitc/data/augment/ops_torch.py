"""The operations of `ops` for whole batches on the device, with the same results.

Shapes: n images, C channels, H W pixels. Every kind of operation that a batch needs runs over the
whole of it, neutral where an image has another: shapes are static, and codes and arguments stay on
the host, so that nothing waits for the device. That suits a GPU. A CPU is two to ten times faster
one image at a time for images above 32 pixels, and about as fast there (benchmarks/augment.py).

Point operations, colour, sharpness and blur are in whole numbers, or in float32 in Pillow's order
of operations: bit-equal to `ops.apply`. Moves are an affine gather, of the nearest pixel in
Pillow's fixed point, or bilinear in float64 as Pillow computes: equal too, but for a value or two
in a thousand by 1 where its compiler has fused multiplications and additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.augment.device import to_device
from vitc.data.augment.ops import (
    CODE,
    FILL,
    FIXED,
    GEOMETRIC,
    MAX_BLUR,
    POINT,
    Chain,
    apply,
    changes_nothing,
    fixed_table,
    matrix,
)

BLOCK = 2**23  # values that a bilinear move holds in float64 at a time: 64 MB

Codes = NDArray[np.int8]
Args = NDArray[np.float64]
Change = Callable[[Tensor, Codes, Args], Tensor]


def change(images: Tensor, chain: Chain) -> Tensor:
    """uint8 (n, C, H, W) after each image's operations, by the faster back end for its device."""
    if batches_are_faster(images.device):
        return apply_chain(images, chain)
    pixels = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    rows = zip(pixels, chain.codes.tolist(), chain.args.tolist(), strict=True)
    changed = np.stack([apply(image, c, a, chain.bilinear) for image, c, a in rows])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous().to(images.device)


def batches_are_faster(device: torch.device) -> bool:
    return device.type == "cuda"


def apply_chain(images: Tensor, chain: Chain) -> Tensor:
    """uint8 (n, C, H, W) after each image's operations, in order; a new tensor or, where nothing
    changes, the same."""
    move = _move_bilinear if chain.bilinear else _move_nearest
    kinds: list[tuple[frozenset[int], Change]] = [
        (GEOMETRIC, move),
        (POINT, _look_up),
        (frozenset({CODE["color"]}), _colour),
        (frozenset({CODE["sharpness"]}), _sharpen),
        (frozenset({CODE["blur"]}), _blur),
    ]
    for codes, args in zip(chain.codes.T, chain.args.T, strict=True):
        pairs = zip(codes.tolist(), args.tolist(), strict=True)
        neutral = [changes_nothing(code, arg) for code, arg in pairs]
        for kind, run in kinds:
            own = np.isin(codes, list(kind)) & ~np.array(neutral)
            if own.any():
                images = run(images, np.where(own, codes, CODE["identity"]).astype(np.int8), args)
    return images


def _colours(images: Tensor) -> int:
    return min(images.shape[1], 3)


def _factors(codes: Codes, args: Args, name: str, device: torch.device) -> Tensor:
    """float32 (n, 1, 1, 1): the factors of one operation, 1 for images that have another."""
    factors = np.where(codes == CODE[name], args, 1.0).astype(np.float32)
    return to_device(factors, device).view(-1, 1, 1, 1)


def _blend(low: Tensor, high: Tensor, factors: Tensor) -> Tensor:
    """low + factor (high - low) in float32, cut off to uint8, as Pillow's Image.blend."""
    low, high = low.float(), high.float()
    return (high - low).mul_(factors).add_(low).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """uint8 (n, 1, H, W): luminance, as Pillow has it."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, i : i + 1].int() for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8)


# -- point operations: a table of 256 values for each image and channel ---------------------------


def _look_up(images: Tensor, codes: Codes, args: Args) -> Tensor:
    colours = _colours(images)
    tables = _tables(images, codes, args)
    out = tables.gather(2, images[:, :colours].flatten(2).long())
    return torch.cat([out.view_as(images[:, :colours]), images[:, colours:]], dim=1)


def _tables(images: Tensor, codes: Codes, args: Args) -> Tensor:
    """uint8 (n, colours, 256): where each value goes."""
    device, colours = images.device, _colours(images)
    fixed = np.tile(np.arange(256, dtype=np.uint8), (len(codes), 1))
    for row in np.flatnonzero(np.isin(codes, list(FIXED))).tolist():
        fixed[row] = fixed_table(int(codes[row]), float(args[row]))
    tables = to_device(fixed, device)[:, None].expand(-1, colours, -1)
    spread, stretch = codes == CODE["equalize"], codes == CODE["auto_contrast"]
    if spread.any() or stretch.any():
        counts = _histograms(images[:, :colours])
        tables = torch.where(_rows(spread, device), _equalized(counts), tables)
        tables = torch.where(_rows(stretch, device), _stretched(counts), tables)
    contrast = codes == CODE["contrast"]
    if contrast.any():
        factors = _factors(codes, args, "contrast", device)[..., 0]  # (n, 1, 1)
        ramp = torch.arange(256, device=device).view(1, 1, 256)
        own = _blend(_mean_grey(images), ramp, factors)
        tables = torch.where(_rows(contrast, device), own, tables)
    return tables.contiguous()


def _rows(which: NDArray[np.bool_], device: torch.device) -> Tensor:
    return to_device(which, device).view(-1, 1, 1)


def _histograms(images: Tensor) -> Tensor:
    """int64 (n, C, 256): how often each value occurs."""
    n, c = images.shape[:2]
    plane = torch.arange(n * c, device=images.device).view(n, c, 1) * 256
    flat = (images.flatten(2) + plane).view(-1)
    counts = torch.zeros(n * c * 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return counts.view(n, c, 256)


def _equalized(counts: Tensor) -> Tensor:
    """uint8 (n, C, 256) from histograms: as `ops.equalized`."""
    ramp = torch.arange(256, device=counts.device)
    highest = torch.where(counts > 0, ramp, 0).amax(2, keepdim=True)
    before = counts.cumsum(2) - counts
    step = before.gather(2, highest) // 255
    even = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, even, ramp).to(torch.uint8)


def _stretched(counts: Tensor) -> Tensor:
    """uint8 (n, C, 256) from histograms: as `ops.stretched`."""
    ramp = torch.arange(256, device=counts.device)
    low = torch.where(counts > 0, ramp, 255).amin(2, keepdim=True)
    high = torch.where(counts > 0, ramp, 0).amax(2, keepdim=True)
    width = (high - low).clamp(min=1).double()
    scale = torch.full_like(width, 255.0) / width  # a number / a tensor is rounded twice
    wide = (ramp * scale + -low * scale).long().clamp_(0, 255)
    return torch.where(high > low, wide, ramp).to(torch.uint8)


def _mean_grey(images: Tensor) -> Tensor:
    """int64 (n, 1, 1): the mean luminance, rounded to a whole value."""
    grey = _grey(images).flatten(1)
    mean = grey.long().sum(1).double() / grey.shape[1]
    return (mean + 0.5).long().view(-1, 1, 1)


# -- colour, sharpness, blur ----------------------------------------------------------------------


def _colour(images: Tensor, codes: Codes, args: Args) -> Tensor:
    colours = _colours(images)
    factors = _factors(codes, args, "color", images.device)
    out = _blend(_grey(images), images[:, :colours], factors)
    return torch.cat([out, images[:, colours:]], dim=1)


def _sharpen(images: Tensor, codes: Codes, args: Args) -> Tensor:
    colours = _colours(images)
    factors = _factors(codes, args, "sharpness", images.device)
    out = images.clone()
    wide = images[:, :colours].int()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = (2 * (total + 4 * wide[:, :, 1:-1, 1:-1]) + 13) // 26
    inner = images[:, :colours, 1:-1, 1:-1]
    out[:, :colours, 1:-1, 1:-1] = _blend(smooth, inner, factors)
    return out


def _blur(images: Tensor, codes: Codes, args: Args) -> Tensor:
    """Three running means along each row, then along each column, which come near a Gaussian:
    Pillow's GaussianBlur (Gwosdek et al., 2011), in its fixed point."""
    weights = np.zeros((len(codes), 3), np.int64)
    weights[:, 0] = 1 << 24
    for row in np.flatnonzero(codes == CODE["blur"]).tolist():
        weights[row] = _box(float(args[row]))
    own = to_device(weights.astype(np.float64), images.device)
    across = _means(images.double(), own)
    return _means(across.mT, own).mT.to(torch.uint8).contiguous()


def _means(values: Tensor, weights: Tensor) -> Tensor:
    """float64 (n, C, H, W) of whole numbers: thrice the mean over five neighbours in a row, the
    edge repeated, whose weights (n, 3) in 2^-24 are those of the distances 0, 1 and 2. Exact: the
    sums need 32 of the 53 bits."""
    at, one, two = (weights[:, i].view(-1, 1, 1, 1) for i in range(3))
    for _ in range(3):
        wide = F.pad(values, (2, 2, 0, 0), mode="replicate")
        total = values * at
        total.addcmul_(wide[..., 1:-3] + wide[..., 3:-1], one)
        total.addcmul_(wide[..., :-4] + wide[..., 4:], two)
        values = total.add_(1 << 23).mul_(2.0**-24).floor_()
    return values


def _box(sigma: float) -> tuple[int, int, int]:
    """Weights in 2^-24 of the distances 0, 1, 2: the box of a fractional radius up to 2 of which
    three in a row have the variance sigma^2, in float32 as Pillow computes it."""
    assert sigma <= MAX_BLUR
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


def _matrices(images: Tensor, codes: Codes, args: Args) -> NDArray[np.float64]:
    h, w = images.shape[2:]
    pairs = zip(codes.tolist(), args.tolist(), strict=True)
    return np.array([matrix(code, arg, h, w) for code, arg in pairs], np.float64)


def _gathered(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(n, C, H, W): the pixel at row y and column x, int64 (n, H, W), of each channel."""
    n, c, h, w = images.shape
    place = (y * w + x).view(n, 1, h * w).expand(-1, c, -1)
    return images.flatten(2).gather(2, place).view(images.shape)


def _filled(moved: Tensor, inside: Tensor) -> Tensor:
    c = moved.shape[1]
    fill = torch.tensor(FILL[:c], dtype=torch.uint8).to(moved.device, non_blocking=True)
    return torch.where(inside[:, None], moved, fill.view(1, c, 1, 1))


def _move_nearest(images: Tensor, codes: Codes, args: Args) -> Tensor:
    h, w = images.shape[2:]
    a, b, c, d, e, f = _matrices(images, codes, args).T
    terms = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5])
    whole = np.floor(terms * 65536 + 0.5).astype(np.int64)  # 2^-16 pixels
    a_, b_, c_, d_, e_, f_ = (t.view(-1, 1, 1) for t in to_device(whole, images.device))
    y = torch.arange(h, device=images.device).view(1, h, 1)
    x = torch.arange(w, device=images.device).view(1, 1, w)
    from_x, from_y = (c_ + a_ * x + b_ * y) >> 16, (f_ + d_ * x + e_ * y) >> 16
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    return _filled(_gathered(images, from_y.clamp(0, h - 1), from_x.clamp(0, w - 1)), inside)


def _move_bilinear(images: Tensor, codes: Codes, args: Args) -> Tensor:
    matrices = to_device(_matrices(images, codes, args), images.device)
    few = max(1, BLOCK // images[0].numel())
    pairs = zip(torch.split(images, few), torch.split(matrices, few), strict=True)
    return torch.cat([_bilinear(part, where) for part, where in pairs])


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
