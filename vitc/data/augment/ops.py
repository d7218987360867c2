"""Which operations do the policies use? One row each: ranges, and how it changes an image or batch.

`policies` draws a sample's operations on the host as codes and arguments (`Chain`). Pillow applies
them to one image in a loader process (`apply`), or torch to a whole batch on the device
(`apply_chain`), with the same results.

Images: uint8 (H, W, C), C = 1 (grey), 3 (RGB) or 4 (RGB and opacity; opacity moves and blurs with
the image and is otherwise unchanged). Batches: uint8 (n, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitc.data.augment import ops_pillow, ops_torch
from vitc.data.augment.device import to_device
from vitc.data.store import Pixels

Matrix = tuple[float, float, float, float, float, float]
Codes = NDArray[np.int8]
Args = NDArray[np.float64]
Counts = NDArray[np.int64]

MAX_BLUR = 2.0
_RAMP = np.arange(256)


@dataclass(frozen=True)
class Chain:
    """The operations on n images: int8 (n, S) codes and float64 (n, S) arguments, in order.

    `bilinear`: how moves interpolate; otherwise they take the nearest pixel.
    """

    codes: Codes
    args: Args
    bilinear: bool


@dataclass(frozen=True)
class Scale:
    """An operation's argument at magnitude m in [0, 1]: from `low` (m = 0) to `high`.

    sign: negate: negated with even odds; around_one: 1 plus or minus it. unit: a share of the
    image's width or height. whole: whole steps from `low`, rounded down or to the nearest.
    least: lower bound.
    """

    low: float
    high: float
    sign: Literal["none", "negate", "around_one"] = "none"
    unit: Literal["value", "width", "height"] = "value"
    whole: Literal["no", "floor", "nearest"] = "no"
    least: float = -math.inf

    def argument(self, m: Args, minus: NDArray[np.bool_], size: tuple[int, int]) -> Args:
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


@dataclass(frozen=True)
class Operation:
    """One operation. At `neutral` it changes no image; NaN: it always may.

    `ranges`: its argument in each set of policies that uses it. What it does is one of `matrix`
    (argument, height, width): a move; `table` (argument): where each value of a channel goes,
    uint8 (256,); `spread`: the same from a histogram, on the host (C, 256) and the device
    (n, C, 256); `from_mean`: towards or away from the mean luminance; `host` (picture, argument)
    and `device` (images, arguments (n,)).
    """

    name: str
    neutral: float
    ranges: Mapping[str, Scale] = field(default_factory=dict)
    matrix: Callable[[float, int, int], Matrix] | None = None
    table: Callable[[float], Pixels] | None = None
    spread: tuple[Callable[[Counts], Pixels], Callable[[Tensor], Tensor]] | None = None
    from_mean: bool = False
    host: Callable[[Image.Image, float], Image.Image] | None = None
    device: Callable[[Tensor, Args], Tensor] | None = None

    @property
    def is_point(self) -> bool:
        """Whether it maps each value of a channel to another, wherever it is."""
        return self.table is not None or self.spread is not None or self.from_mean


# -- moves (a, b, c, d, e, f): the pixel at (x, y) is from (a x + b y + c, d x + e y + f) ----------


def rotation(degrees: float, height: int, width: int) -> Matrix:
    """Anticlockwise about the centre; pixel centres are at halves."""
    angle = -math.radians(degrees % 360)  # as Pillow, where the last bits decide about truncation
    c, s = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return c, s, x - (c * x + s * y), -s, c, y - (-s * x + c * y)


# -- the table ------------------------------------------------------------------------------------

# autoaugment: the ranges of arXiv 1805.09501, Table 6. v0: those of EfficientNet's code, as in
# pycls (at least one bit is kept). rand: timm's "increasing" ones: the same ranges, where more is
# stronger. trivial: the wide ranges of arXiv 2103.10158. three: 3-Augment, without magnitudes.
_NONE = {name: Scale(0, 0) for name in ("autoaugment", "v0", "rand", "trivial")}
_SHEAR = {name: Scale(0, 0.3, "negate") for name in ("autoaugment", "v0", "rand")}
_FACTOR = {
    "autoaugment": Scale(0.1, 1.9),
    "v0": Scale(0.1, 1.9),
    "rand": Scale(0, 0.9, "around_one"),
    "trivial": Scale(0, 0.99, "around_one"),
}


def _moved_by(unit: Literal["width", "height"]) -> dict[str, Scale]:
    by_share = Scale(0, 0.45, "negate", unit)
    return {"v0": by_share, "rand": by_share, "trivial": Scale(0, 32, "negate", whole="floor")}


OPERATIONS = (
    Operation("identity", 0, _NONE),
    Operation(  # pixels a pixel; the first row stays in place
        "shear_x",
        0,
        _SHEAR | {"trivial": Scale(0, 0.99, "negate")},
        matrix=lambda v, h, w: (1, v, 0, 0, 1, 0),
    ),
    Operation(
        "shear_y",
        0,
        _SHEAR | {"trivial": Scale(0, 0.99, "negate")},
        matrix=lambda v, h, w: (1, 0, 0, v, 1, 0),
    ),
    Operation(  # pixels
        "translate_x", 0, _moved_by("width"), matrix=lambda v, h, w: (1, 0, v, 0, 1, 0)
    ),
    Operation("translate_y", 0, _moved_by("height"), matrix=lambda v, h, w: (1, 0, 0, 0, 1, v)),
    Operation(  # degrees
        "rotate",
        0,
        {name: Scale(0, 30, "negate") for name in ("autoaugment", "v0", "rand")}
        | {"trivial": Scale(0, 135, "negate")},
        matrix=rotation,
    ),
    Operation(  # bits kept
        "posterize",
        8,
        {
            "autoaugment": Scale(4, 8, whole="floor"),
            "v0": Scale(0, 4, whole="floor", least=1),
            "rand": Scale(4, 0, whole="floor", least=1),
            "trivial": Scale(8, 2, whole="nearest"),
        },
        table=lambda bits: (_RAMP & -(1 << (8 - int(bits)))).astype(np.uint8),
    ),
    Operation(  # the first value that is inverted
        "solarize",
        256,
        {
            "autoaugment": Scale(0, 256, whole="floor"),
            "v0": Scale(0, 256, whole="floor"),
            "rand": Scale(256, 0, whole="floor"),
            "trivial": Scale(255, 0, whole="floor"),
        },
        table=lambda first: np.where(first > _RAMP, _RAMP, 255 - _RAMP).astype(np.uint8),
    ),
    Operation(  # what is added below 128
        "solarize_add",
        0,
        {name: Scale(0, 110, whole="floor") for name in ("v0", "rand")},
        table=lambda v: np.minimum(_RAMP + int(v) * (_RAMP < 128), 255).astype(np.uint8),
    ),
    Operation("invert", math.nan, _NONE, table=lambda _: (255 - _RAMP).astype(np.uint8)),
    Operation("brightness", 1, _FACTOR, table=lambda v: ops_pillow.blend_table(0, v)),
    Operation("auto_contrast", math.nan, _NONE, spread=(ops_pillow.stretched, ops_torch.stretched)),
    Operation("equalize", math.nan, _NONE, spread=(ops_pillow.equalized, ops_torch.equalized)),
    Operation("contrast", 1, _FACTOR, from_mean=True),
    Operation("color", 1, _FACTOR, host=ops_pillow.colour, device=ops_torch.colour),
    Operation("sharpness", 1, _FACTOR, host=ops_pillow.sharpen, device=ops_torch.sharpen),
    Operation("blur", 0, host=ops_pillow.blur, device=ops_torch.blur),  # sigma in pixels
)
OPS = tuple(op.name for op in OPERATIONS)
CODE = {name: code for code, name in enumerate(OPS)}


def _changes_nothing(op: Operation, arg: float) -> bool:
    return op.name == "identity" or arg == op.neutral


# -- one image, by Pillow -------------------------------------------------------------------------


def apply(pixels: Pixels, codes: Sequence[int], args: Sequence[float], bilinear: bool) -> Pixels:
    """The image (H, W, C) after the operations, in order; itself if none changes anything.

    Bit-equal to Pillow's own functions. Tables of neighbouring point operations are composed, so
    that the pixels are read and written once.
    """
    steps = [(OPERATIONS[c], a) for c, a in zip(codes, args, strict=True)]
    steps = [(op, a) for op, a in steps if not _changes_nothing(op, a)]
    if not steps:
        return pixels
    channels = pixels.shape[2]
    fixed = [op.table(arg) for op, arg in steps if op.table is not None]
    if channels < 4 and len(fixed) == len(steps):
        return ops_pillow.one_table(pixels, fixed)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    table: Pixels | None = None
    for op, arg in steps:
        if table is not None and (op.from_mean or not op.is_point):
            picture, table = ops_pillow.look_up(picture, table), None
        if op.is_point:
            table = _composed(table, op, arg, picture)
        elif op.matrix is not None:
            where = op.matrix(arg, picture.height, picture.width)
            picture = ops_pillow.move(picture, where, bilinear)
        elif op.host is not None:
            picture = op.host(picture, arg)
    if table is not None:
        picture = ops_pillow.look_up(picture, table)
    return np.asarray(picture).reshape(pixels.shape)


def _composed(before: Pixels | None, op: Operation, arg: float, picture: Image.Image) -> Pixels:
    """uint8 (C, 256): the tables `before` (None: none) and then this operation's, as one.

    `before` has not been applied to `picture` yet, but determines the histogram of the result.
    """
    colours = 3 if picture.mode == "RGBA" else len(picture.mode)
    if op.table is not None:
        own = op.table(arg)[None].repeat(colours, 0)
    elif op.spread is not None:
        counts = ops_pillow.counts(picture)[:colours]
        if before is not None:
            pairs = zip(before[:colours], counts, strict=True)
            counts = np.stack(
                [np.bincount(t, weights=n, minlength=256).astype(np.int64) for t, n in pairs]
            )
        own = op.spread[0](counts)
    else:
        own = ops_pillow.blend_table(ops_pillow.mean_grey(picture), arg)[None].repeat(colours, 0)
    if colours < len(picture.mode):
        own = np.concatenate([own, _RAMP.astype(np.uint8)[None]])
    return own if before is None else own[np.arange(len(own))[:, None], before]


# -- a batch, by torch ----------------------------------------------------------------------------


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
    """uint8 (n, C, H, W) after each image's operations, in order; itself if none changes it.

    Every kind of operation is applied to the whole batch, neutral where an image has another:
    shapes are static, and codes and arguments stay on the host, so nothing waits for the device. A
    CPU is two to ten times faster one image at a time above 32 pixels (benchmarks/augment.py).
    """
    h, w = images.shape[2:]
    for codes, args in zip(chain.codes.T, chain.args.T, strict=True):
        ops = [OPERATIONS[code] for code in codes.tolist()]
        acts = np.array(
            [not _changes_nothing(op, arg) for op, arg in zip(ops, args.tolist(), strict=True)]
        )
        rows = np.flatnonzero(acts).tolist()
        matrices = np.tile(np.array([1.0, 0, 0, 0, 1, 0]), (len(ops), 1))
        for row in rows:
            if (matrix := ops[row].matrix) is not None:
                matrices[row] = matrix(float(args[row]), h, w)
        if any(ops[row].matrix for row in rows):
            images = ops_torch.move(images, matrices, chain.bilinear)
        if any(ops[row].is_point for row in rows):
            images = ops_torch.look_up(images, _tables(images, ops, args, acts))
        for op in {ops[row].name: ops[row] for row in rows}.values():
            if op.device is not None:
                own = np.where(acts & (codes == CODE[op.name]), args, op.neutral)
                images = op.device(images, own)
    return images


def _tables(images: Tensor, ops: list[Operation], args: Args, acts: NDArray[np.bool_]) -> Tensor:
    """uint8 (n, colours, 256): the tables of the point operations, the identity for others."""
    device, colours = images.device, ops_torch.colours(images)
    fixed = np.tile(_RAMP.astype(np.uint8), (len(ops), 1))
    for row in np.flatnonzero(acts).tolist():
        if (table := ops[row].table) is not None:
            fixed[row] = table(float(args[row]))
    tables = to_device(fixed, device)[:, None].expand(-1, colours, -1)

    def chosen(own: Tensor, which: list[Any]) -> Tensor:
        rows = to_device(acts & np.array(which, np.bool_), device).view(-1, 1, 1)
        return torch.where(rows, own, tables)

    spreads = {op.spread for op, own in zip(ops, acts.tolist(), strict=True) if own and op.spread}
    counts = ops_torch.histograms(images[:, :colours]) if spreads else None
    for spread in spreads:
        assert counts is not None
        tables = chosen(spread[1](counts), [op.spread is spread for op in ops])
    by_mean = [op.from_mean for op in ops]
    if (acts & np.array(by_mean)).any():
        own = ops_torch.contrast_tables(images, np.where(by_mean, args, 1.0))
        tables = chosen(own, by_mean)
    return tables.contiguous()
