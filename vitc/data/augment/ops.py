"""The operations of augmentation: what a magnitude means to each, and what it does to an image.

One table (`OPS`, `SCALES`) serves both back ends: this one, Pillow's, for one image at a time in
the loader processes, and `ops_torch`, for whole batches on the device. A sample's operations come
as codes and arguments (`Chain`), drawn on the host by `policies`.

Images: uint8 (H, W, C), C = 1 (grey), 3 (RGB) or 4 (RGB and opacity, which moves with the image
and is blurred with it, and is otherwise left alone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
Matrix = tuple[float, float, float, float, float, float]

FILL = (
    128,
    128,
    128,
    0,
)  # what a moved image leaves behind: grey (EfficientNet's code), no opacity
MAX_BLUR = 2.0

# Argument of each: shears in pixels a pixel; translations in pixels; degrees anticlockwise; bits
# kept; first inverted value; what is added below 128; factors, where 1 changes nothing; sigma in
# pixels. The others have none.
OPS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "invert",
    "brightness",
    "auto_contrast",
    "equalize",
    "contrast",
    "color",
    "sharpness",
    "blur",
)
CODE = {name: code for code, name in enumerate(OPS)}
GEOMETRIC = frozenset(CODE[n] for n in OPS[1:6])
POINT = frozenset(CODE[n] for n in OPS[6:14])  # each value of a channel to another
FIXED = frozenset(CODE[n] for n in OPS[6:11])  # of those, the ones that need not see the image


@dataclass(frozen=True)
class Chain:
    """What happens to n images: int8 (n, S) codes and float64 (n, S) arguments, applied in order.

    `bilinear`: how geometric operations take pixels between pixels; else the nearest one.
    """

    codes: NDArray[np.int8]
    args: NDArray[np.float64]
    bilinear: bool


# -- what a magnitude means -----------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """An operation's argument at magnitude m in [0, 1]: from `low` (m = 0) to `high`.

    sign: negate: with even odds the negative; around_one: 1 plus or minus it. unit: it is a share
    of the image's width or height. whole: whole steps from `low`, cut off or to the nearest.
    least: it is never below.
    """

    low: float
    high: float
    sign: Literal["none", "negate", "around_one"] = "none"
    unit: Literal["value", "width", "height"] = "value"
    whole: Literal["no", "floor", "nearest"] = "no"
    least: float = -math.inf

    def argument(
        self, m: NDArray[np.float64], minus: NDArray[np.bool_], size: tuple[int, int]
    ) -> NDArray[np.float64]:
        """float64 (n,): the arguments for magnitudes (n,); `minus` (n,) draws the signs and `size`
        is the image's (H, W)."""
        way = m * abs(self.high - self.low)
        if self.whole != "no":
            way = np.floor(way if self.whole == "floor" else way + 0.5)
        value = self.low + way if self.high >= self.low else self.low - way
        value = np.maximum(value, self.least)
        if self.unit != "value":
            value = value * (size[1] if self.unit == "width" else size[0])
        if self.sign == "none":
            return value
        value = np.where(minus, -value, value)
        return value if self.sign == "negate" else 1 + value


_NONE = {name: Scale(0, 0) for name in ("identity", "invert", "auto_contrast", "equalize")}
_FACTORS = ("color", "contrast", "brightness", "sharpness")

# autoaugment: the ranges of arXiv 1805.09501, Table 6. v0: those of EfficientNet's code, as pycls
# has them (a bit is always kept). rand: timm's "increasing" ones, the same read so that more is
# stronger. trivial: the wide ranges of arXiv 2103.10158.
SCALES: dict[str, dict[str, Scale]] = {
    "autoaugment": _NONE
    | {
        "shear_x": Scale(0, 0.3, "negate"),
        "shear_y": Scale(0, 0.3, "negate"),
        "rotate": Scale(0, 30, "negate"),
        "posterize": Scale(4, 8, whole="floor"),
        "solarize": Scale(0, 256, whole="floor"),
        **{name: Scale(0.1, 1.9) for name in _FACTORS},
    },
    "v0": _NONE
    | {
        "shear_x": Scale(0, 0.3, "negate"),
        "shear_y": Scale(0, 0.3, "negate"),
        "translate_x": Scale(0, 0.45, "negate", "width"),
        "translate_y": Scale(0, 0.45, "negate", "height"),
        "rotate": Scale(0, 30, "negate"),
        "posterize": Scale(0, 4, whole="floor", least=1),
        "solarize": Scale(0, 256, whole="floor"),
        "solarize_add": Scale(0, 110, whole="floor"),
        **{name: Scale(0.1, 1.9) for name in _FACTORS},
    },
    "rand": _NONE
    | {
        "shear_x": Scale(0, 0.3, "negate"),
        "shear_y": Scale(0, 0.3, "negate"),
        "translate_x": Scale(0, 0.45, "negate", "width"),
        "translate_y": Scale(0, 0.45, "negate", "height"),
        "rotate": Scale(0, 30, "negate"),
        "posterize": Scale(4, 0, whole="floor", least=1),
        "solarize": Scale(256, 0, whole="floor"),
        "solarize_add": Scale(0, 110, whole="floor"),
        **{name: Scale(0, 0.9, "around_one") for name in _FACTORS},
    },
    "trivial": _NONE
    | {
        "shear_x": Scale(0, 0.99, "negate"),
        "shear_y": Scale(0, 0.99, "negate"),
        "translate_x": Scale(0, 32, "negate", whole="floor"),
        "translate_y": Scale(0, 32, "negate", whole="floor"),
        "rotate": Scale(0, 135, "negate"),
        "posterize": Scale(8, 2, whole="nearest"),
        "solarize": Scale(255, 0, whole="floor"),
        **{name: Scale(0, 0.99, "around_one") for name in _FACTORS},
    },
}


# -- what both back ends compute on the host ------------------------------------------------------


def matrix(code: int, arg: float, height: int, width: int) -> Matrix:
    """(a, b, c, d, e, f) of a geometric operation: what comes to (x, y) stood at
    (a x + b y + c, d x + e y + f); pixel centres at halves. Of any other: nothing moves.

    Shears keep the first row or column in place; rotation is about the centre.
    """
    name = OPS[code]
    if name == "shear_x":
        return 1, arg, 0, 0, 1, 0
    if name == "shear_y":
        return 1, 0, 0, arg, 1, 0
    if name == "translate_x":
        return 1, 0, arg, 0, 1, 0
    if name == "translate_y":
        return 1, 0, 0, 0, 1, arg
    if name == "rotate":
        angle = -math.radians(arg % 360)  # as Pillow, whose last bits decide about truncation
        c, s = round(math.cos(angle), 15), round(math.sin(angle), 15)
        x, y = width / 2, height / 2
        return c, s, x - (c * x + s * y), -s, c, y - (-s * x + c * y)
    return 1, 0, 0, 0, 1, 0


def changes_nothing(code: int, arg: float) -> bool:
    """Whether every image stays as it is, to the last bit."""
    name = OPS[code]
    if code in GEOMETRIC or name in ("blur", "solarize_add"):
        return arg == 0
    if name in ("color", "sharpness", "brightness", "contrast"):
        return arg == 1
    return (
        name == "identity"
        or (name == "posterize" and arg >= 8)
        or (name == "solarize" and arg >= 256)
    )


def blend(low: NDArray[np.float32], high: NDArray[np.float32], factor: float) -> Pixels:
    """low + factor (high - low) in float32, cut off to uint8: what Pillow's Image.blend gives."""
    return np.clip(low + np.float32(factor) * (high - low), 0, 255).astype(np.uint8)


_RAMP = np.arange(256)
_FLOAT_RAMP = _RAMP.astype(np.float32)


def fixed_table(code: int, arg: float) -> Pixels:
    """uint8 (256,): where the operation, one of FIXED, sends each value."""
    name = OPS[code]
    if name == "posterize":
        return (_RAMP & -(1 << (8 - int(arg)))).astype(np.uint8)
    if name == "solarize":
        return np.where(arg > _RAMP, _RAMP, 255 - _RAMP).astype(np.uint8)
    if name == "solarize_add":
        return np.where(_RAMP < 128, np.minimum(_RAMP + int(arg), 255), _RAMP).astype(np.uint8)
    if name == "invert":
        return (255 - _RAMP).astype(np.uint8)
    assert name == "brightness", name
    return blend(np.zeros(256, np.float32), _FLOAT_RAMP, arg)


# -- one image, by Pillow -------------------------------------------------------------------------


def apply(pixels: Pixels, codes: Sequence[int], args: Sequence[float], bilinear: bool) -> Pixels:
    """The image (H, W, C) after the operations, in order; itself where none changes anything.

    As Pillow's own functions give them, bit by bit. Tables of neighbouring point operations are
    composed, so that the pixels are read and written once.
    """
    steps = [(c, a) for c, a in zip(codes, args, strict=True) if not changes_nothing(c, a)]
    if not steps:
        return pixels
    channels = pixels.shape[2]
    if channels < 4 and all(code in FIXED for code, _ in steps):
        return _one_table(pixels, steps)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    table: Pixels | None = None
    for code, arg in steps:
        if table is not None and (code not in POINT or OPS[code] == "contrast"):
            picture, table = _look_up(picture, table), None
        if code in POINT:
            table = _composed(table, code, arg, picture)
        elif code in GEOMETRIC:
            picture = _move(picture, matrix(code, arg, picture.height, picture.width), bilinear)
        elif OPS[code] == "blur":
            picture = picture.filter(ImageFilter.GaussianBlur(arg))
        elif OPS[code] == "color":
            picture = Image.blend(_grey(picture), picture, arg)
        else:
            picture = _sharpen(picture, arg)
    if table is not None:
        picture = _look_up(picture, table)
    return np.asarray(picture).reshape(pixels.shape)


def _one_table(pixels: Pixels, steps: list[tuple[int, float]]) -> Pixels:
    """Operations with one table for all channels: Python's bytes are looked up fastest."""
    table = fixed_table(*steps[0])
    for code, arg in steps[1:]:
        table = fixed_table(code, arg)[table]
    through = bytearray(pixels.tobytes()).translate(table.tobytes())
    return np.frombuffer(through, np.uint8).reshape(pixels.shape)


def _composed(before: Pixels | None, code: int, arg: float, picture: Image.Image) -> Pixels:
    """uint8 (C, 256): the tables `before` (None: nothing) and this operation's, as one.

    `picture` is what `before` has yet to be applied to: its histogram tells that of the result.
    """
    colours = 3 if picture.mode == "RGBA" else len(picture.mode)
    if OPS[code] == "contrast":
        assert before is None
        grey = _counts(picture if picture.mode == "L" else picture.convert("L"))[0]
        mean = int(int((grey * _RAMP).sum()) / int(grey.sum()) + 0.5)
        own = blend(np.full(256, mean, np.float32), _FLOAT_RAMP, arg)[None].repeat(colours, 0)
    elif code in FIXED:
        own = fixed_table(code, arg)[None].repeat(colours, 0)
    else:
        counts = _counts(picture)[:colours]
        if before is not None:
            pairs = zip(before[:colours], counts, strict=True)
            counts = np.stack(
                [np.bincount(t, weights=n, minlength=256).astype(np.int64) for t, n in pairs]
            )
        own = (equalized if OPS[code] == "equalize" else stretched)(counts)
    if colours < len(picture.mode):
        own = np.concatenate([own, _RAMP.astype(np.uint8)[None]])
    return own if before is None else own[np.arange(len(own))[:, None], before]


def _counts(picture: Image.Image) -> NDArray[np.int64]:
    """int64 (C, 256): how often each value occurs."""
    return np.fromiter(picture.histogram(), np.int64).reshape(-1, 256)


def equalized(counts: NDArray[np.int64]) -> Pixels:
    """uint8 (C, 256): the tables that spread histograms (C, 256) evenly, as Pillow's equalize."""
    before = np.cumsum(counts, axis=1) - counts
    highest = before[np.arange(len(counts)), 255 - (counts[:, ::-1] > 0).argmax(axis=1)]
    step = highest[:, None] // 255  # 0: one value alone, or hardly a pixel of the others
    even = np.minimum((before + step // 2) // np.maximum(step, 1), 255)
    return np.where(step > 0, even, _RAMP).astype(np.uint8)


def stretched(counts: NDArray[np.int64]) -> Pixels:
    """uint8 (C, 256): the tables that take the lowest value that occurs in histograms (C, 256) to 0
    and the highest to 255, as Pillow's autocontrast."""
    there = counts > 0
    low = there.argmax(axis=1)[:, None]
    high = 255 - there[:, ::-1].argmax(axis=1)[:, None]
    scale = 255.0 / np.maximum(high - low, 1)
    wide = np.clip((_RAMP * scale + -low * scale).astype(np.int64), 0, 255)
    return np.where(high > low, wide, _RAMP).astype(np.uint8)


def _look_up(picture: Image.Image, table: Pixels) -> Image.Image:
    return picture.point(table.ravel().tolist())


def _move(picture: Image.Image, where: Matrix, bilinear: bool, fill: int = FILL[0]) -> Image.Image:
    if picture.mode == "RGBA":  # Pillow would weigh its colours by their opacity
        opacity = _move(picture.getchannel("A"), where, bilinear, FILL[3])
        moved = _move(picture.convert("RGB"), where, bilinear)
        moved.putalpha(opacity)
        return moved
    how = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        where,
        resample=how,
        fillcolor=fill if picture.mode == "L" else (fill,) * 3,
    )


def _grey(picture: Image.Image) -> Image.Image:
    if picture.mode == "L":
        return picture
    return picture.convert("LA" if picture.mode == "RGBA" else "L").convert(picture.mode)


def _sharpen(picture: Image.Image, factor: float) -> Image.Image:
    """Away from (above 1) or towards (below) the smoothed picture; its edge stays."""
    smooth = Image.fromarray(smoothed(np.asarray(picture)))
    if picture.mode == "RGBA":
        smooth.putalpha(picture.getchannel("A"))
    return Image.blend(smooth, picture, factor)


def smoothed(pixels: Pixels) -> Pixels:
    """(H, W) or (H, W, C) with every pixel the mean of its 3 x 3 neighbours, itself five-fold; the
    outermost pixels unchanged. Pillow's SMOOTH filter, which takes three times as long: the sum
    is never half-way between two numbers, so whole numbers round as its floats do."""
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
