"""Which images come from a formula alone? Fractals and contours of any number of classes.

A class is the parameters of a drawing, an image one variation of it in other colours. Weights
pretrained on them carry no photo's licence: FractalDB (arXiv 2103.13023), RCDB and ExFractalDB
(arXiv 2206.09132). Even classes are attractors of two to eight affine maps whose singular values
are drawn as in arXiv 2110.03091, odd ones are nested radial contours.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.data.config import DataConfig
from vitc.data.sampling import uniform
from vitc.data.sources.base import Found, Source, Split
from vitc.data.store import Names, Pixels
from vitc.errors import ConfigError

Floats = NDArray[np.float32]

POINTS = 256  # that walk at the same time
STEPS, LEFT_OUT = 20, 4  # of a walk; the first are not on the attractor yet
MOST_MAPS = 8
LEAST_COVERAGE = 0.15  # of a 32x32 grid over the attractor; thinner ones are drawn again
HARMONICS = 12
MOST_CONTOURS = 12
PER_CONTOUR = 384  # points
SPLIT_IMAGES = {"val": 2}  # of a class, beside the training images


class Spec(NamedTuple):
    """What is made: the numbers that a name like formula:classes=100,side=96 holds."""

    classes: int = 1000
    images: int = 100
    """Training images a class."""
    side: int = 64
    """Pixels a side."""
    seed: int = 0


ALLOWED = {
    "classes": (2, 100_000),
    "images": (1, 1_000_000),
    "side": (8, 1024),
    "seed": (0, 2**31 - 1),
}
MOST_IMAGES = 10_000_000  # in all: their names and labels are held in memory


def parse_spec(text: str) -> Spec:
    """The numbers in `formula:classes=100,images=50,side=64,seed=1`: some of them, in any order.

    Raises ConfigError: another word, not a number, out of bounds.
    """
    given: dict[str, int] = {}
    kind, _, numbers = text.partition(":")
    for part in [kind] * (kind != Formula.kind) + [p for p in numbers.split(",") if p]:
        name, _, value = part.partition("=")
        if name not in Spec._fields or name in given or not re.fullmatch("[0-9]{1,10}", value):
            raise ConfigError(
                f"{text}: {part!r} is not a setting of formula images.",
                f"Each of {', '.join(f'{f}=N' for f in Spec._fields)} may be given once: "
                "formula:classes=100,images=50",
            )
        given[name] = int(value)
        low, high = ALLOWED[name]
        if not low <= given[name] <= high:
            raise ConfigError(f"{text}: {name} must be {low:,} to {high:,}.")
    spec = Spec(**given)
    if spec.classes * spec.images > MOST_IMAGES:
        raise ConfigError(
            f"{text}: {spec.classes:,} classes of {spec.images:,} images are too many.",
            f"At most {MOST_IMAGES:,} images in all.",
        )
    return spec


class Formula(Source):
    """Fractals and radial contours; the same pixels from the same seed, on any thread count."""

    kind = origin = "formula"
    made = True
    title = "fractals and contours, made by vitc from formulas"
    path = "its numbers: --data.path formula:classes=N,images=N,side=PIXELS,seed=N"

    def matches(self, path: str) -> bool:
        return path.startswith("formula:")

    def absolute(self, path: str) -> str:
        return path

    def read(self, config: DataConfig) -> Found:
        """Raises ConfigError: the numbers in `data.path`."""
        spec = parse_spec(str(config.path))
        store, splits, first = FormulaStore(spec), {}, 0
        for name, images in (("train", spec.images), *SPLIT_IMAGES.items()):
            count = images * spec.classes
            places = np.arange(first, first + count, dtype=np.int64)
            names = Names.of(f"{name}/{i}" for i in range(count))
            unknown = np.full(count, -1, np.int64)
            splits[name] = Split(places % spec.classes, names, None, store, places, unknown)
            first += count
        classes = tuple(f"{'contour' if i % 2 else 'fractal'} {i}" for i in range(spec.classes))
        return Found(classes, splits, content=repr(spec).encode())


@dataclass(frozen=True)
class FormulaStore:
    """The images as a `Store`: image i is variation i // classes of class i % classes."""

    spec: Spec

    def read(self, place: int) -> Pixels:
        """uint8 (side, side, 3)."""
        variation, label = divmod(place, self.spec.classes)
        u = _numbers(self.spec.seed, "formula/image", label, variation, LOOKS + 6 * MOST_MAPS)
        points = (contours if label % 2 else fractal)(self.spec.seed, label, u[LOOKS:])
        return coloured(placed(points, u, self.spec.side), u, self.spec.side)

    def sample(self, place: int, limit: int) -> bytes:
        """Empty: `Found.content` identifies them all."""
        return b""


# -- points ----------------------------------------------------------------------------------------


def fractal(seed: int, label: int, v: NDArray[np.float64]) -> Floats:
    """float32 (2, n): points of an attractor whose maps differ from its class's by up to 15 %.

    v: numbers in [0, 1) that decide how.
    """
    maps, which = class_maps(seed, label)
    return walked(
        maps * (0.85 + 0.3 * v[: maps.size].reshape(maps.shape)).astype(np.float32), which
    )


def walked(maps: Floats, which: Pixels) -> Floats:
    """The points of many walks under randomly chosen maps (the chaos game), float32 (2, n).

    which: uint8 (STEPS, POINTS), the map that each walk takes in each step.
    """
    a, b, c, d, e, f = (np.take(numbers, which) for numbers in np.ascontiguousarray(maps.T))
    found = np.empty((2, STEPS, POINTS), np.float32)
    x = y = np.zeros(POINTS, np.float32)
    for step in range(STEPS):
        x, y = a[step] * x + b[step] * y + e[step], c[step] * x + d[step] * y + f[step]
        found[0, step], found[1, step] = x, y
    return found[:, LEFT_OUT:].reshape(2, -1)


@functools.lru_cache(maxsize=100_000)
def class_maps(seed: int, label: int) -> tuple[Floats, Pixels]:
    """The maps of a class, float32 (k, 6) as a b c d e f, and which of them its walks take.

    The first of the seeded draws whose attractor covers enough of the plane.
    """
    luck = uniform(seed, "formula/walk", label, np.arange(STEPS), POINTS)
    for attempt in range(200):
        u = _numbers(seed, "formula/class", label, attempt, 2 + 6 * MOST_MAPS)
        k = 2 + int(u[0] * (MOST_MAPS - 1))
        turn_a, turn_b, large, small, e, f = u[1 : 1 + 6 * k].reshape(6, k)
        large = 0.3 + 0.65 * large
        small = large * (0.2 + 0.8 * small)
        # So many maps of such singular values fill the plane about once (arXiv 2110.03091).
        size = np.minimum(1.0, np.sqrt((0.7 + 0.5 * u[-1]) / (large * small).sum()))
        large, small = np.minimum(0.95, large * size), small * size
        (ca, sa), (cb, sb) = _turned(turn_a), _turned(turn_b)
        linear = (
            ca * large * cb - sa * small * sb,
            -ca * large * sb - sa * small * cb,
            sa * large * cb + ca * small * sb,
            -sa * large * sb + ca * small * cb,
        )
        maps = np.stack((*linear, 2 * e - 1, 2 * f - 1), axis=1).astype(np.float32)
        weight = large * small + 0.01
        border = np.cumsum(weight)[:-1] / weight.sum()
        which = np.searchsorted(border, luck, side="right").astype(np.uint8)
        points = walked(maps, which)
        x, y = (_unit(points) * 31.99).astype(np.int64)
        if (np.bincount(32 * y + x) > 0).sum() >= LEAST_COVERAGE * 32 * 32:
            break
    return maps, which


def contours(seed: int, label: int, v: NDArray[np.float64]) -> Floats:
    """float32 (2, n): closed lines around each other, of radii that a few harmonics bend.

    v: numbers in [0, 1) by which an image differs from its class.
    """
    u = _contour_class(seed, label)
    count = 1 + int(u[0] * MOST_CONTOURS)
    corners = 3 + int(u[1] ** 2 * 60)  # the lines are straight between so many
    amplitude = u[4 : 4 + HARMONICS] ** 2 * (0.05 + 0.5 * u[2]) * (0.7 + 0.6 * v[2 : 2 + HARMONICS])
    phase = u[4 + HARMONICS :] + 0.15 * (v[2 + HARMONICS : 2 + 2 * HARMONICS] - 0.5)
    wave = np.arange(1, HARMONICS + 1)
    angle = np.arange(corners) / corners
    bend = amplitude / np.sqrt(wave)
    radius = 1 + (bend[:, None] * _turned(wave[:, None] * angle + phase[:, None])[0]).sum(0)
    cosine, sine = _turned(angle + v[0])
    x, y = radius * cosine, radius * sine * (0.6 + 0.8 * v[1])
    at = np.arange(PER_CONTOUR) * (corners / PER_CONTOUR)
    corner, part = at.astype(np.int64), at % 1
    after = (corner + 1) % corners
    line = np.stack([q[corner] * (1 - part) + q[after] * part for q in (x, y)])
    steps = (np.arange(count) / count)[:, None]
    drift = 0.3 * (v[2 + 2 * HARMONICS : 4 + 2 * HARMONICS] - 0.5)[:, None, None]
    nested = line[:, None] * (1 - (0.3 + 0.6 * u[3]) * steps) + drift * steps
    points: Floats = nested.reshape(2, -1).astype(np.float32)
    return points


@functools.lru_cache(maxsize=100_000)
def _contour_class(seed: int, label: int) -> NDArray[np.float64]:
    return _numbers(seed, "formula/contour", label, 0, 4 + 2 * HARMONICS)


def _numbers(seed: int, stream: str, label: int, which: int, draws: int) -> NDArray[np.float64]:
    """float64 (draws,) in [0, 1), of a class and its variation or attempt."""
    numbers: NDArray[np.float64] = uniform(seed, stream, label, [which], draws)[0]
    return numbers


def _turned(turns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of so many full turns."""
    return np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)


# -- pixels ----------------------------------------------------------------------------------------

LOOKS = 19  # numbers that decide where a drawing is and in which colours
# By how many points fall on a pixel.
DENSITY = np.array([0, 0.55, 0.7, 0.8, 0.87, 0.93, 1], np.float32)


def _unit(points: Floats) -> Floats:
    """Moved and scaled to [0, 1]."""
    low, high = points.min(axis=1), points.max(axis=1)
    unit: Floats = (points - low[:, None]) / np.maximum(high - low, 1e-6)[:, None]
    return unit


def placed(points: Floats, u: NDArray[np.float64], side: int) -> Floats:
    """float32 (side, side) in [0, 1]: how dense the points are, turned, scaled and moved.

    points: float32 (2, n). u: float64 (LOOKS,) in [0, 1), of which the first five decide where.
    """
    x, y = _unit(points) - np.float32(0.5)
    (cosine,), (sine,) = _turned(0.25 * (u[0:1] - 0.5))
    wide, high = side * (0.65 + 0.5 * u[1:3])
    across, down = side * (0.5 + 0.2 * (u[3:5] - 0.5))
    # Not by a matrix product: libraries round those differently.
    x, y = (
        np.floor(np.float32(a) * x + np.float32(b) * y + np.float32(c)).astype(np.int32)
        for a, b, c in ((wide * cosine, -wide * sine, across), (high * sine, high * cosine, down))
    )
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    counts = np.bincount((y * side + x)[inside], minlength=side * side).reshape(side, side)
    return DENSITY[np.minimum(counts, len(DENSITY) - 1)]


def coloured(dense: Floats, u: NDArray[np.float64], side: int) -> Pixels:
    """uint8 (side, side, 3): a ramp between two colours over a ramp between two others.

    dense: float32 (side, side), the share of the upper one. u: as for `placed`; the rest of it
    decides the colours.
    """
    under = u[5:11].reshape(2, 3)
    apart = 0.25 + 0.5 * u[11:17].reshape(2, 3)  # in each channel
    over = under + np.where(under < 0.5, apart, -apart)
    at = np.arange(side) / side - 0.5
    slopes = 2 * u[17:19] - 1
    ramp = np.clip(0.5 + slopes[0] * at[:, None] + slopes[1] * at, 0, 1).astype(np.float32)
    pixels = np.empty((side, side, 3), np.uint8)
    for channel in range(3):
        low, high = (
            np.float32(255) * np.clip(start + ramp * np.float32(end - start), 0, 1)
            for start, end in (under[:, channel], over[:, channel])
        )
        pixels[..., channel] = low + dense * (high - low)
    return pixels
