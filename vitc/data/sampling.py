"""Which image comes when, with which random parameters: pure functions of seeds and counters.

A number is a hash of (seed, stream, epoch, position, repeat, draw); there is no generator and so
no state: every step can be computed alone, in any process, in any order. Only integer arithmetic
and the operations that IEEE 754 rounds alike everywhere (+ - * / sqrt) lead from the hash to a
parameter, so parameters are bit-equal on every machine; a lambda, which needs powers, is rounded
to 2^-20. Position is the place in the epoch's order; micro-batches are counted over all processes.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitc.data.augment.ops import Chain
from vitc.data.augment.policies import chain, chain_draws, normal
from vitc.data.config import AugmentConfig, DataConfig
from vitc.errors import ConfigError

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: increment of splitmix64
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # its two multipliers (Steele et al., 2014)
_MASK = (1 << 64) - 1

CROP_TRIES = 10  # of a random resized crop before the middle is taken, as in pycls
CROP_DRAWS = {"none": 0, "shift": 2, "random_resized": 2 * CROP_TRIES + 2}
ERASE_TRIES = 10  # of a rectangle before the image is left whole, as in timm
ERASE_DRAWS = 2 * ERASE_TRIES + 2


# -- numbers from counters ------------------------------------------------------------------------


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser, a bijection of 64-bit integers (JDK's SplittableRandom)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _M1) & _MASK
    x = ((x ^ (x >> 27)) * _M2) & _MASK
    return x ^ (x >> 31)


@functools.lru_cache(maxsize=256)
def _stream_number(stream: str | int) -> int:
    if isinstance(stream, int):
        return stream
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")


def hashes(
    seed: int, stream: str | int, epoch: int, positions: ArrayLike, draws: int, repeat: int = 0
) -> NDArray[np.uint64]:
    """uint64 (n, draws): one 64-bit hash per position and draw.

    Within one (seed, stream, epoch, repeat) and draw, different positions never collide.
    """
    key = 0
    for part in (seed, _stream_number(stream), epoch, repeat):
        key = _mix_int((key + _GOLDEN + part) & _MASK)
    place = np.asarray(positions).astype(np.uint64)
    state = _mix(place * np.uint64(_GOLDEN) + np.uint64(key))
    steps = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return _mix(_mix(state[:, None] + steps))


def uniform(
    seed: int, stream: str | int, epoch: int, positions: ArrayLike, draws: int, repeat: int = 0
) -> NDArray[np.float64]:
    """float64 (n, draws) in [0, 1), multiples of 2^-53: one number per position and draw."""
    bits = hashes(seed, stream, epoch, positions, draws, repeat) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


# -- which image when -----------------------------------------------------------------------------


def epoch_indices(
    seed: int, epoch: int, labels: NDArray[np.int64], balance: Literal["none", "sqrt", "full"]
) -> NDArray[np.int64]:
    """int64 (n,): the epoch's order of the n images whose labels are given.

    balance none: every image once. sqrt, full: the n places are shared among the classes that
    occur in proportion to the square root of their counts, or evenly (largest remainders get the
    odd places); within a class with q places for m images every image comes floor(q / m) times
    and a seeded choice, new each epoch, once more.
    """
    n = len(labels)
    luck = hashes(seed, "order", epoch, np.arange(n), 1)[:, 0]
    order: NDArray[np.int64] = np.argsort(luck, kind="stable").astype(np.int64, copy=False)
    if balance == "none":
        return order
    chosen: NDArray[np.int64] = _balanced(seed, epoch, labels, balance)[order]
    return chosen


def _balanced(
    seed: int, epoch: int, labels: NDArray[np.int64], balance: Literal["none", "sqrt", "full"]
) -> NDArray[np.int64]:
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quotas = _quotas(len(labels), np.sqrt(counts) if balance == "sqrt" else np.ones(len(counts)))
    luck = hashes(seed, "balance", epoch, np.arange(len(labels)), 1)[:, 0]
    by_class = np.lexsort((luck, member))  # images grouped by class, the luckiest first
    first = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - np.repeat(first, counts)  # place within the class
    whole, extra = np.divmod(quotas, counts)
    times = np.repeat(whole, counts) + (rank < np.repeat(extra, counts))
    return np.repeat(by_class, times).astype(np.int64, copy=False)


def _quotas(n: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """n whole places shared in proportion to weights: each gets its floor, the largest
    remainders one more."""
    shares = n * weights / math.fsum(weights)  # fsum: its order of adding cannot matter
    quotas: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    largest = np.argsort(quotas - shares, kind="stable")[: n - int(quotas.sum())]
    quotas[largest] += 1
    return quotas


def stand_ins(seed: int, epoch: int, position: int, index: int, n: int) -> Iterator[int]:
    """`index`, then ten others in [0, n): which image a position takes while files are broken."""
    yield index
    for repeat in range(10):
        yield int(uniform(seed, "stand_in", epoch, [position], 1, repeat)[0, 0] * n)


def eval_batches(n: int, batch: int, rank: int = 0, world: int = 1) -> list[NDArray[np.int64]]:
    """int64 (b,) each: the indices that process `rank` evaluates, -1 where a batch is filled up.

    Each process takes one contiguous block of ceil(n / world) indices, in order; all processes
    have the same number of batches, all of one size b <= batch: shapes stay static.
    """
    block = -(-n // world)
    batch = min(batch, block)
    if batch == 0:
        return []
    own = np.arange(-(-block // batch) * batch) + rank * block
    own[(own >= n) | (own >= (rank + 1) * block)] = -1
    return list(own.reshape(-1, batch))


def steps_per_epoch(n: int, batch: int) -> int:
    """Whole batches in n images; the rest of the epoch's order is dropped.

    Raises ConfigError when there is not even one.
    """
    if n < batch:
        raise ConfigError(
            f"train.batch {batch} is more than the {n} training images: an epoch has no step.",
            f"Use --train.batch {2 ** (n.bit_length() - 1) if n else 1} or less, or more images.",
        )
    return n // batch


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How a run's samples fall into steps, micro-batches and processes.

    Step s of an epoch takes the positions [s * batch, (s + 1) * batch) of the epoch's order and
    cuts them into batch / micro micro-batches. Process `rank` of `world` takes a contiguous block
    of them. Raises ConfigError when the processes cannot take whole ones, equally many each.
    """

    batch: int
    micro: int
    seed_order: int
    seed_augment: int
    size: tuple[int, int]
    """(H, W) of the images in pixels."""
    in_chans: int
    depth: int
    """Transformer blocks, for drop-path; each has two branches."""
    drop_path_rate: float = 0.0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.micro:
            raise ConfigError(
                f"train.batch {self.batch} is not a multiple of the micro-batch {self.micro}.",
                "A step is a whole number of micro-batches: change one of the two.",
            )
        if self.micros % self.world:
            raise ConfigError(
                f"A step has {self.micros} micro-batches (train.batch {self.batch} / micro-batch "
                f"{self.micro}), which {self.world} processes cannot share evenly.",
                self._way_out(),
            )

    def _way_out(self) -> str:
        up = -(-self.micros // self.world) * self.world * self.micro
        if self.batch % self.world:
            return f"Use a batch that {self.world} divides, such as --train.batch {up}."
        part = self.batch // self.world
        micro = max(m for m in range(1, min(self.micro, part) + 1) if part % m == 0)
        return (
            f"Use --train.micro_batch {micro} (changes the statistics of a BatchNorm model) "
            f"or --train.batch {up}."
        )

    @property
    def micros(self) -> int:
        """Micro-batches of a step, over all processes."""
        return self.batch // self.micro

    @property
    def micros_here(self) -> int:
        """Micro-batches of a step in this process."""
        return self.micros // self.world

    def places(self, start_step: int, total_steps: int, steps: int) -> Iterator[Place]:
        """This process's micro-batches of the steps [start, total), `steps` an epoch, in order."""
        for step in range(start_step, total_steps):
            epoch, within = divmod(step, steps)
            first = within * self.micros + self.rank * self.micros_here
            for index in range(first, first + self.micros_here):
                yield Place(epoch, index)


@dataclass(frozen=True)
class Place:
    """One micro-batch of a run: which of its epoch, counted over all processes."""

    epoch: int
    index: int

    def positions(self, micro: int) -> NDArray[np.int64]:
        """int64 (micro,): its places in the epoch's order."""
        return np.arange(self.index * micro, (self.index + 1) * micro)


@dataclass(frozen=True)
class Request:
    """What to fetch for a micro-batch: int64 (micro,) indices of images, the uniforms
    float64 (micro, draws) of their cuts, and the operations on what was cut; then also
    which of the cuts are mirrored before: bool (micro,)."""

    place: Place
    indices: NDArray[np.int64]
    crop: NDArray[np.float64]
    flip: NDArray[np.bool_] | None
    chain: Chain | None


def requests(
    plan: BatchPlan,
    config: DataConfig,
    labels: NDArray[np.int64],
    start_step: int,
    total_steps: int,
) -> Iterator[Request]:
    """This process's micro-batches of the steps [start, total) of a run, in order."""
    steps = steps_per_epoch(len(labels), plan.batch)
    epoch, order = -1, labels
    for place in plan.places(start_step, total_steps, steps):
        if place.epoch != epoch:
            epoch = place.epoch
            order = epoch_indices(plan.seed_order, epoch, labels, config.balance)
        augment = config.augment
        indices = order[order_places(plan, place, augment.repeats)]
        operations = draw_chain(plan, augment, place)
        flip = None if operations is None else draw_flip(plan, augment, place)
        yield Request(place, indices, draw_crop(plan, augment, place), flip, operations)


def order_places(plan: BatchPlan, place: Place, repeats: int) -> NDArray[np.int64]:
    """int64 (micro,): the places in the epoch's order that a micro-batch's images stand at.

    With repeated augmentation (arXiv 1902.05509) a step of B positions takes B / repeats places
    of the order, each `repeats` times, and deals them out over its micro-batches in turn, as DeiT
    does over its processes: copies of an image meet in one only where a step has fewer than
    `repeats`. An epoch keeps its n // B steps and so shows n / repeats images.
    """
    positions = place.positions(plan.micro)
    if repeats == 1:
        return positions
    step, within = np.divmod(positions, plan.batch)
    micro, row = np.divmod(within, plan.micro)
    dealt: NDArray[np.int64] = (step * plan.batch + row * plan.micros + micro) // repeats
    return dealt


# -- the parameters of a micro-batch --------------------------------------------------------------


@dataclass(frozen=True)
class Mix:
    """How a micro-batch is mixed with itself: sample i with sample partner[i].

    `lam` is the share of sample i in the result; `box` (top, left, bottom, right) in pixels is
    what CutMix takes from the partner.
    """

    kind: Literal["none", "mixup", "cutmix"]
    lam: float
    box: tuple[int, int, int, int]
    partner: NDArray[np.int64]


@dataclass(frozen=True)
class SampleMix:
    """As `Mix`, but each of the n samples has its own: bool (n,) whether by CutMix, float64 (n,)
    lambdas, int64 (n, 4) boxes and int64 (n,) partners."""

    cutmix: NDArray[np.bool_]
    lam: NDArray[np.float64]
    boxes: NDArray[np.int64]
    partner: NDArray[np.int64]


def draw_crop(plan: BatchPlan, augment: AugmentConfig, place: Place) -> NDArray[np.float64]:
    """float64 (micro, CROP_DRAWS[crop]): the uniforms from which each sample's cut follows."""
    draws = CROP_DRAWS[augment.crop]
    return uniform(plan.seed_augment, "crop", place.epoch, place.positions(plan.micro), draws)


def draw_flip(plan: BatchPlan, augment: AugmentConfig, place: Place) -> NDArray[np.bool_]:
    """bool (micro,): which samples are mirrored left to right."""
    u = uniform(plan.seed_augment, "flip", place.epoch, place.positions(plan.micro), 1)
    return u[:, 0] < augment.flip


def draw_chain(plan: BatchPlan, augment: AugmentConfig, place: Place) -> Chain | None:
    """Each sample's operations of the policy and of colour jitter; None where there are none."""
    if not augment.alters:
        return None
    positions = place.positions(plan.micro)
    u = uniform(plan.seed_augment, "policy", place.epoch, positions, chain_draws(augment))
    return chain(augment, u, plan.size)


# Covariance of ImageNet's RGB values in [0, 1]: standard deviations along its main axes and the
# axes, in columns (Krizhevsky et al., 2012; the numbers of fb.resnet.torch, which pycls has too).
PCA_STD = np.array([0.2175, 0.0188, 0.0045])
PCA_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def draw_lighting(
    plan: BatchPlan, augment: AugmentConfig, place: Place
) -> NDArray[np.float32] | None:
    """float32 (micro, in_chans): what is added to each sample's channels, for pixels in [0, 1];
    opacity gets 0. None without lighting."""
    if augment.lighting == 0:
        return None
    positions = place.positions(plan.micro)
    u = uniform(plan.seed_augment, "lighting", place.epoch, positions, 3)
    along = augment.lighting * normal(u) * PCA_STD
    added = np.zeros((plan.micro, plan.in_chans), np.float32)
    for c in range(3):  # written out: a matrix product may add in another order elsewhere
        red, green, blue = (along[:, k] * PCA_AXES[c, k] for k in range(3))
        added[:, c] = red + green + blue
    return added


@dataclass(frozen=True)
class Erasing:
    """Which rectangles of a micro-batch are erased: int64 (micro, 4) of top, left, bottom, right,
    all 0 where none is, and int64 (micro,) keys in 32 bits of the noise that fills them."""

    boxes: NDArray[np.int64]
    keys: NDArray[np.int64]


def draw_erasing(plan: BatchPlan, augment: AugmentConfig, place: Place) -> Erasing | None:
    """Random erasing (arXiv 1708.04896); None where it is off."""
    if augment.erase == 0:
        return None
    seed, epoch, positions = plan.seed_augment, place.epoch, place.positions(plan.micro)
    u = uniform(seed, "erase", epoch, positions, 1 + ERASE_DRAWS)
    boxes = erase_boxes(u[:, 1:], plan.size, augment)
    boxes[u[:, 0] >= augment.erase] = 0
    keys = hashes(seed, "erase_noise", epoch, positions, 1)[:, 0] >> np.uint64(32)
    return Erasing(boxes, keys.astype(np.int64))


def draw_mix(plan: BatchPlan, augment: AugmentConfig, place: Place) -> Mix | SampleMix:
    """How the micro-batch is mixed: per micro-batch as the authors' code (pycls) does in each
    process, or per sample; with both alphas above 0, mixup or CutMix with even odds."""
    if augment.mix_per == "sample" and augment.mixes:
        return _draw_sample_mix(plan, augment, place)
    alphas = {"mixup": augment.mixup_alpha, "cutmix": augment.cutmix_alpha}
    kinds: list[Literal["mixup", "cutmix"]] = [k for k in ("mixup", "cutmix") if alphas[k] > 0]
    if not kinds:
        return Mix("none", 1.0, (0, 0, 0, 0), np.arange(plan.micro))
    coin, u, *centre = uniform(plan.seed_augment, "mix", place.epoch, [place.index], 4)[0].tolist()
    kind = kinds[int(coin * len(kinds))]
    lam = beta(alphas[kind], u)
    partner = _draw_partner(plan, place)
    if kind == "mixup":
        return Mix(kind, lam, (0, 0, 0, 0), partner)
    box, lam = cutmix_box(lam, (centre[0], centre[1]), plan.size)
    return Mix(kind, lam, box, partner)


def _draw_partner(plan: BatchPlan, place: Place) -> NDArray[np.int64]:
    """int64 (micro,): a permutation of the micro-batch."""
    keys = hashes(plan.seed_augment, "partner", place.epoch, place.positions(plan.micro), 1)
    partner: NDArray[np.int64] = np.argsort(keys[:, 0], kind="stable")
    return partner


def _draw_sample_mix(plan: BatchPlan, augment: AugmentConfig, place: Place) -> SampleMix:
    positions = place.positions(plan.micro)
    u = uniform(plan.seed_augment, "mix_sample", place.epoch, positions, 4)
    alphas = np.array([augment.mixup_alpha, augment.cutmix_alpha])
    # One alone is always used, and its alpha stands for both.
    cutmix = u[:, 0] < 0.5 if alphas.all() else np.full(plan.micro, augment.cutmix_alpha > 0)
    mixup_lam, cutmix_lam = (betas(a, u[:, 1]) for a in np.where(alphas > 0, alphas, alphas.max()))
    lam = np.where(cutmix, cutmix_lam, mixup_lam)
    boxes = np.zeros((plan.micro, 4), np.int64)
    for i in np.flatnonzero(cutmix).tolist():
        boxes[i], lam[i] = cutmix_box(float(lam[i]), (float(u[i, 2]), float(u[i, 3])), plan.size)
    return SampleMix(cutmix, lam, boxes, _draw_partner(plan, place))


def cutmix_box(
    lam: float, centre: tuple[float, float], size: tuple[int, int]
) -> tuple[tuple[int, int, int, int], float]:
    """The box of CutMix (arXiv 1905.04899) and the share of pixels outside it.

    The box has sides sqrt(1 - lam) of the image's around a uniform pixel and is clipped to the
    image, so the returned share may be above `lam`. `centre` two uniforms, `size` (H, W).
    """
    edges = []
    for u, length in zip(centre, size, strict=True):
        half = int(length * math.sqrt(1 - lam)) // 2
        middle = int(u * length)
        edges.append((max(middle - half, 0), min(middle + half, length)))
    (top, bottom), (left, right) = edges
    return (top, left, bottom, right), 1 - (bottom - top) * (right - left) / (size[0] * size[1])


def drop_path_rates(depth: int, rate: float) -> NDArray[np.float64]:
    """float64 (depth,): from 0 at the first block linearly to `rate` at the last."""
    return np.array([rate]) if depth == 1 else np.linspace(0.0, rate, depth)


def draw_drop_path(plan: BatchPlan, place: Place) -> NDArray[np.float32] | None:
    """float32 (2 * depth, micro) of 0 or 1 / keep, or None where nothing is dropped.

    Row 2 i belongs to block i's attention, row 2 i + 1 to its MLP; the mean of a multiplier is 1.
    """
    if plan.drop_path_rate == 0:
        return None
    keep = 1 - np.repeat(drop_path_rates(plan.depth, plan.drop_path_rate), 2)
    positions = place.positions(plan.micro)
    u = uniform(plan.seed_augment, "drop_path", place.epoch, positions, len(keep))
    return np.ascontiguousarray(np.where(u < keep, 1 / keep, 0.0).T, dtype=np.float32)


# -- from uniforms to parameters ------------------------------------------------------------------


def beta(alpha: float, u: float) -> float:
    """The value that a Beta(alpha, alpha) variable stays below with probability `u`."""
    return float(betas(alpha, np.array([u]))[0])


def betas(alpha: float, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (n,): `beta` of each of the probabilities (n,).

    Interpolated in a table of the distribution function and rounded to 2^-20, so that the last
    bits of the machine's powers do not show.
    """
    below, grid, power = _beta_table(alpha)
    w = np.interp(np.minimum(u, 1 - u), below, grid)
    x = np.minimum(np.round(w ** (1 / power) * 2**20) / 2**20, 0.5)
    return np.where(u < 0.5, x, 1 - x)


@functools.lru_cache(maxsize=32)
def _beta_table(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """P(x < grid^(1/power)) on a grid for x in [0, 1/2], the lower half of the distribution.

    The density x^(alpha-1) (1-x)^(alpha-1) is infinite at 0 for alpha < 1; in w = x^alpha it is
    (1 - w^(1/alpha))^(alpha-1) / alpha, bounded. Trapezoids of 2^-14 of the range.
    """
    power = min(alpha, 1.0)
    grid = np.linspace(0.0, 0.5**power, (1 << 14) + 1)
    x = grid ** (1 / power)
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return below / (2 * below[-1]), grid, power


def _power(base: float, exponent: NDArray[np.float64]) -> NDArray[np.float64]:
    """base ** exponent for exponents in [0, 1), to 20 bits of the exponent.

    exp and pow differ in the last bit between machines, sqrt and * do not; a cut that rounds to
    another pixel on another machine would be another cut.
    """
    coarse, fine = _power_tables(base)
    bits = (exponent * 2.0**20).astype(np.int64)
    power: NDArray[np.float64] = coarse[bits >> 10] * fine[bits & 1023]
    return power


@functools.lru_cache(maxsize=8)
def _power_tables(base: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """base ** (i / 2^10) and base ** (i / 2^20) for i < 1024, by repeated square roots."""
    tables = []
    for _ in range(2):
        table = np.ones(1)
        for _ in range(10):
            base = math.sqrt(base)
            table = np.stack([table, table * base], axis=1).reshape(-1)  # one bit more
        tables.append(table)
    return tables[0], tables[1]


def random_resized_boxes(
    crop: NDArray[np.float64],
    height: int,
    width: int,
    augment: AugmentConfig,
    frame: tuple[int, int] | None = None,
) -> NDArray[np.int64]:
    """int64 (n, 4): top, left, height, width of n cuts from images of one size, in pixels.

    `crop` holds (n, 22) uniforms. Inception's crop (arXiv 1409.4842): a share of the area, uniform
    in `augment.scale`, and an aspect ratio, log-uniform in `augment.ratio`, are tried up to ten
    times until they fit; then the largest cut of an allowed ratio is taken from the middle.
    `frame` (H, W): area and ratio are those of the image distorted to this shape (fit squash).
    """
    frame_h, frame_w = frame or (height, width)
    to_h, to_w = height / frame_h, width / frame_w
    area, aspect = crop[:, :CROP_TRIES], crop[:, CROP_TRIES : 2 * CROP_TRIES]
    low, high = augment.ratio
    share = augment.scale[0] + area * (augment.scale[1] - augment.scale[0])
    ratio = low * _power(high / low, aspect)
    cut_w = np.rint(np.sqrt(share * ratio * (frame_h * frame_w)) * to_w)
    cut_h = np.rint(np.sqrt(share / ratio * (frame_h * frame_w)) * to_h)
    fits = (cut_w >= 1) & (cut_w <= width) & (cut_h >= 1) & (cut_h <= height)
    rows, first = np.arange(len(crop)), fits.argmax(axis=1)
    found = fits[rows, first]
    middle_h, middle_w = _middle(frame_h, frame_w, augment.ratio)
    h = np.where(found, cut_h[rows, first], max(1, round(middle_h * to_h)))
    w = np.where(found, cut_w[rows, first], max(1, round(middle_w * to_w)))
    free_h, free_w = height - h, width - w
    top = np.where(found, np.floor(crop[:, -2] * (free_h + 1)), free_h // 2)
    left = np.where(found, np.floor(crop[:, -1] * (free_w + 1)), free_w // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.int64)


def _middle(height: int, width: int, ratio: tuple[float, float]) -> tuple[float, float]:
    """(height, width) of the largest cut whose width / height is within `ratio`."""
    if width < ratio[0] * height:
        return width / ratio[0], width
    if width > ratio[1] * height:
        return height, height * ratio[1]
    return height, width


def shift_offsets(crop: NDArray[np.float64], pixels: int) -> NDArray[np.int64]:
    """int64 (n, 2) in [0, 2 * pixels]: where the cut starts (top, left) in the padded image."""
    return np.floor(crop * (2 * pixels + 1)).astype(np.int64)


def erase_boxes(
    u: NDArray[np.float64], size: tuple[int, int], augment: AugmentConfig
) -> NDArray[np.int64]:
    """int64 (n, 4): top, left, bottom, right of the rectangles to erase from images of `size`.

    `u` holds (n, ERASE_DRAWS) uniforms. The share of the area is uniform in `erase_area`, height /
    width log-uniform in `erase_ratio`; the first of ten tries that is smaller than the image both
    ways is put anywhere in it; where none is, the box is empty (as in timm).
    """
    area, aspect = u[:, :ERASE_TRIES], u[:, ERASE_TRIES : 2 * ERASE_TRIES]
    (least, most), (low, high) = augment.erase_area, augment.erase_ratio
    pixels = (least + area * (most - least)) * (size[0] * size[1])
    ratio = low * _power(high / low, aspect)
    tall, wide = np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))
    fits = (tall < size[0]) & (wide < size[1])
    rows, first = np.arange(len(u)), fits.argmax(axis=1)
    h, w = tall[rows, first], wide[rows, first]
    top, left = np.floor(u[:, -2] * (size[0] - h + 1)), np.floor(u[:, -1] * (size[1] - w + 1))
    boxes = np.stack([top, left, top + h, left + w], axis=1).astype(np.int64)
    boxes[~fits[rows, first]] = 0
    return boxes
