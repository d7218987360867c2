"""Which images does a step take, and where do its random numbers come from?

A number is a hash of (seed, stream, epoch, position, repeat, draw): without a generator's state,
every step can be computed alone, in any process and in any order. Parameters are bit-equal on every
machine: only integer arithmetic and what IEEE 754 rounds alike (+ - * / sqrt) lead to them; powers
and logarithms are rounded to 2^-20. A position is a place in the epoch's order; micro-batches are
counted over all processes.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitc.errors import ConfigError

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: increment of splitmix64
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # its two multipliers (Steele et al., 2014)
_MASK = (1 << 64) - 1


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
    """int64 (n,): the order of an epoch over n images with the given labels.

    balance none: every image once. sqrt, full: the n places are shared among the classes, in
    proportion to the square root of their counts or evenly. In a class with q places for m images,
    every image appears floor(q / m) times; a seeded choice, new each epoch, appears once more.
    """
    n = len(labels)
    luck = hashes(seed, "order", epoch, np.arange(n), 1)[:, 0]
    order: NDArray[np.int64] = np.argsort(luck, kind="stable").astype(np.int64, copy=False)
    if balance == "none":
        return order
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = np.sqrt(counts) if balance == "sqrt" else np.ones(len(counts))
    shares = n * weights / math.fsum(weights)  # fsum: exact, so the order does not matter
    quotas: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: n - int(quotas.sum())]] += 1
    luck = hashes(seed, "balance", epoch, np.arange(n), 1)[:, 0]
    by_class = np.lexsort((luck, member))  # images grouped by class, in a seeded order
    rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # place within the class
    whole, extra = np.divmod(quotas, counts)
    times = np.repeat(whole, counts) + (rank < np.repeat(extra, counts))
    return np.repeat(by_class, times).astype(np.int64, copy=False)[order]


def stand_ins(seed: int, epoch: int, position: int, index: int, n: int) -> Iterator[int]:
    """`index`, then ten other images in [0, n), tried in turn while their files are broken."""
    yield index
    for repeat in range(10):
        yield int(uniform(seed, "stand_in", epoch, [position], 1, repeat)[0, 0] * n)


def eval_batches(n: int, batch: int, rank: int = 0, world: int = 1) -> list[NDArray[np.int64]]:
    """int64 (b,) each: the indices that process `rank` evaluates; -1 is padding.

    Each process takes a contiguous block of ceil(n / world) indices, in as many batches of one size
    b <= batch, so shapes are static.
    """
    block = -(-n // world)
    batch = min(batch, block)
    if batch == 0:
        return []
    own = np.arange(-(-block // batch) * batch) + rank * block
    own[(own >= n) | (own >= (rank + 1) * block)] = -1
    return list(own.reshape(-1, batch))


def steps_per_epoch(n: int, batch: int) -> int:
    """Full batches in n images; the remainder is dropped. Raises ConfigError: there is none."""
    if n < batch:
        raise ConfigError(
            f"train.batch {batch} is more than the {n} training images: no step is possible.",
            f"Use --train.batch {2 ** (n.bit_length() - 1) if n else 1} or less, or more images.",
        )
    return n // batch


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How a run's samples are divided into steps, micro-batches and processes.

    Step s of an epoch takes the positions [s * batch, (s + 1) * batch) of its order, in batch /
    micro micro-batches. Process `rank` of `world` takes a contiguous block of them. Raises
    ConfigError unless every process gets the same number of micro-batches.
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
                "A step consists of full micro-batches: change one of the two.",
            )
        if self.micros % self.world:
            raise ConfigError(
                f"A step has {self.micros} micro-batches (train.batch {self.batch} / micro-batch "
                f"{self.micro}), which {self.world} processes cannot share evenly.",
                self._remedy(),
            )

    def _remedy(self) -> str:
        up = -(-self.micros // self.world) * self.world * self.micro
        if self.batch % self.world:
            return f"Use a batch that {self.world} divides, such as --train.batch {up}."
        micro = shared_micro(self.batch, self.micro, self.world)
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

    def uniforms(self, stream: str, place: Place, draws: int) -> NDArray[np.float64]:
        """float64 (micro, draws) in [0, 1): the numbers of one stream for each sample."""
        positions = place.positions(self.micro)
        return uniform(self.seed_augment, stream, place.epoch, positions, draws)


def shared_micro(batch: int, micro: int, world: int) -> int:
    """The largest micro-batch up to `micro` that gives `world` processes equal shares of a batch,
    which `world` must divide."""
    part = batch // world
    return max(m for m in range(1, min(micro, part) + 1) if part % m == 0)


@dataclass(frozen=True)
class Place:
    """One micro-batch of a run: its epoch, and its index there, counted over all processes."""

    epoch: int
    index: int

    def positions(self, micro: int) -> NDArray[np.int64]:
        """int64 (micro,): its places in the epoch's order."""
        return np.arange(self.index * micro, (self.index + 1) * micro)


def order_places(plan: BatchPlan, place: Place, repeats: int) -> NDArray[np.int64]:
    """int64 (micro,): the places in the epoch's order of a micro-batch's images.

    With repeated augmentation (arXiv 1902.05509) a step of B positions takes B / repeats places of
    the order, each `repeats` times, and deals them out over its micro-batches in turn, as DeiT does
    over its processes. An epoch keeps its n // B steps and so shows n / repeats images.
    """
    positions = place.positions(plan.micro)
    if repeats == 1:
        return positions
    step, within = np.divmod(positions, plan.batch)
    micro, row = np.divmod(within, plan.micro)
    dealt: NDArray[np.int64] = (step * plan.batch + row * plan.micros + micro) // repeats
    return dealt


def drop_path_rates(depth: int, rate: float) -> NDArray[np.float64]:
    """float64 (depth,): from 0 at the first block linearly to `rate` at the last."""
    return np.array([rate]) if depth == 1 else np.linspace(0.0, rate, depth)


def draw_drop_path(plan: BatchPlan, place: Place) -> NDArray[np.float32] | None:
    """float32 (2 * depth, micro) of 0 or 1 / keep; None without drop-path.

    Row 2 i is for block i's attention, row 2 i + 1 for its MLP; the mean of a multiplier is 1.
    """
    if plan.drop_path_rate == 0:
        return None
    keep = 1 - np.repeat(drop_path_rates(plan.depth, plan.drop_path_rate), 2)
    u = plan.uniforms("drop_path", place, len(keep))
    return np.ascontiguousarray(np.where(u < keep, 1 / keep, 0.0).T, dtype=np.float32)


# -- from uniforms to other distributions ---------------------------------------------------------


def normal(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal quantiles at probabilities `u`, within 8.3 of 0.

    Rounded to 2^-20, so that the last bits of the machine's logarithms do not show.
    """
    inside = np.clip(u, 2.0**-53, 1 - 2.0**-53).ravel().tolist()
    quantile = NormalDist().inv_cdf
    values = np.array([quantile(x) for x in inside]).reshape(u.shape)
    return np.round(values * 2**20) / 2**20


def betas(alpha: float, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (n,): the quantiles of Beta(alpha, alpha) at probabilities (n,).

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


def power_of(base: float, exponent: NDArray[np.float64]) -> NDArray[np.float64]:
    """base ** exponent for exponents in [0, 1), to 20 bits of the exponent.

    exp and pow differ in the last bit between machines, sqrt and * do not; a box must round to the
    same pixels on every machine.
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
