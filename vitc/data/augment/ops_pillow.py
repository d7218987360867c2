"""How does Pillow change one image? The host back end of `ops`, for loader processes.

Pictures have the modes L, RGB or RGBA; opacity moves and blurs with the image, and is otherwise
unchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vitc.data.store import Pixels

FILL = (128, 128, 128, 0)  # behind a moved image: grey (EfficientNet's code), no opacity
_RAMP = np.arange(256)


# -- tables ---------------------------------------------------------------------------------------


def blend_table(low: int, factor: float) -> Pixels:
    """uint8 (256,): low + factor (value - low) in float32, clipped, as Pillow's Image.blend."""
    start = np.float32(low)
    wide = start + np.float32(factor) * (_RAMP.astype(np.float32) - start)
    table: Pixels = np.clip(wide, 0, 255).astype(np.uint8)
    return table


def one_table(pixels: Pixels, tables: list[Pixels]) -> Pixels:
    """Pixels through tables for all channels, composed: Python's bytes are looked up fastest."""
    table = tables[0]
    for after in tables[1:]:
        table = after[table]
    through = bytearray(pixels.tobytes()).translate(table.tobytes())
    return np.frombuffer(through, np.uint8).reshape(pixels.shape)


def look_up(picture: Image.Image, table: Pixels) -> Image.Image:
    """The picture through a table for each channel, uint8 (C, 256)."""
    return picture.point(table.ravel().tolist())


def counts(picture: Image.Image) -> NDArray[np.int64]:
    """int64 (C, 256): how often each value occurs."""
    return np.fromiter(picture.histogram(), np.int64).reshape(-1, 256)


def mean_grey(picture: Image.Image) -> int:
    """The mean luminance, rounded."""
    grey = counts(picture if picture.mode == "L" else picture.convert("L"))[0]
    return int(int((grey * _RAMP).sum()) / int(grey.sum()) + 0.5)


def equalized(counts: NDArray[np.int64]) -> Pixels:
    """uint8 (C, 256): the tables that spread histograms (C, 256) evenly, as Pillow's equalize."""
    before = np.cumsum(counts, axis=1) - counts
    highest = before[np.arange(len(counts)), 255 - (counts[:, ::-1] > 0).argmax(axis=1)]
    step = highest[:, None] // 255  # 0: one value alone, or hardly a pixel of the others
    even = np.minimum((before + step // 2) // np.maximum(step, 1), 255)
    return np.where(step > 0, even, _RAMP).astype(np.uint8)


def stretched(counts: NDArray[np.int64]) -> Pixels:
    """uint8 (C, 256): the tables that map the lowest value present in histograms (C, 256) to 0 and
    the highest to 255, as Pillow's autocontrast."""
    there = counts > 0
    low = there.argmax(axis=1)[:, None]
    high = 255 - there[:, ::-1].argmax(axis=1)[:, None]
    scale = 255.0 / np.maximum(high - low, 1)
    wide = np.clip((_RAMP * scale + -low * scale).astype(np.int64), 0, 255)
    return np.where(high > low, wide, _RAMP).astype(np.uint8)


# -- pictures -------------------------------------------------------------------------------------


def move(
    picture: Image.Image,
    where: tuple[float, float, float, float, float, float],
    bilinear: bool,
    fill: int = FILL[0],
) -> Image.Image:
    """The picture resampled at the places given by an affine matrix."""
    if picture.mode == "RGBA":  # Pillow would weight its colours by their opacity
        opacity = move(picture.getchannel("A"), where, bilinear, FILL[3])
        moved = move(picture.convert("RGB"), where, bilinear)
        moved.putalpha(opacity)
        return moved
    how = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST
    colour = fill if picture.mode == "L" else (fill,) * 3
    affine = Image.Transform.AFFINE
    return picture.transform(picture.size, affine, where, resample=how, fillcolor=colour)


def colour(picture: Image.Image, factor: float) -> Image.Image:
    """Away from (above 1) or towards (below) the grey picture."""
    grey = picture
    if picture.mode != "L":
        grey = picture.convert("LA" if picture.mode == "RGBA" else "L").convert(picture.mode)
    return Image.blend(grey, picture, factor)


def sharpen(picture: Image.Image, factor: float) -> Image.Image:
    """Away from (above 1) or towards (below) the smoothed picture; its edge is unchanged."""
    smooth = Image.fromarray(smoothed(np.asarray(picture)))
    if picture.mode == "RGBA":
        smooth.putalpha(picture.getchannel("A"))
    return Image.blend(smooth, picture, factor)


def smoothed(pixels: Pixels) -> Pixels:
    """(H, W) or (H, W, C) with every pixel the mean of its 3 x 3 neighbours, itself weighted five;
    the outermost pixels unchanged.

    Pillow's SMOOTH filter, which takes three times as long: a sum is never half-way between two
    values, so integers round as its floats do.
    """
    out = pixels.copy()
    wide = pixels.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    total += 4 * wide[1:-1, 1:-1]
    total *= 2
    total += 13
    total //= 26
    out[1:-1, 1:-1] = total
    return out


def blur(picture: Image.Image, sigma: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(sigma))
