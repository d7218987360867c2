"""Is one contender better than another where their runs share no draws?

The counterpart of `compare` for two groups of independent runs, with the same two endpoints. Shared
draws take out the spread of the settings; without them a gap needs many more runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy

from vitc.errors import ConfigError
from vitc.stats.compare import AGAINST, Verdict, dual_ends, look_level
from vitc.stats.proportions import FloatArray, checked_confidence

MOST_FOR_EXACT_LAW = 60  # runs of both together; beyond, the normal limit is as good
MOST_PAIRS = 40_000_000  # differences of every run with every other that fit into memory


@dataclass(frozen=True)
class UnpairedComparison:
    """a against b on different draws; errors in points, so negative means a is better.

    `difference` and `interval` are of the runs that learnt, `n` of a and of b: the shift between
    the two (Hodges-Lehmann). `interval` contains 0 exactly if `p` is not below 1 - level.
    `failures`: how many of a and of b failed to learn, and the p of Fisher's exact test.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    verdict: Verdict
    failures: tuple[int, int]
    p_failures: float
    n: tuple[int, int]


def compare_unpaired(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    failed_a: npt.ArrayLike | None = None,
    failed_b: npt.ArrayLike | None = None,
    level: float = 0.95,
    family: int = 1,
    looks: int = 1,
) -> UnpairedComparison:
    """Compare the errors of two contenders, in points, whose runs were drawn independently.

    The error where runs learnt: Wilcoxon's rank-sum test and the interval that inverts it. How
    often they failed to learn: Fisher's exact test on all runs. Arguments and verdict are those of
    `compare`, but that there is no margin. Raises ConfigError.
    """
    (x, fx), (y, fy) = _checked(a, failed_a, "a"), _checked(b, failed_b, "b")
    alpha = 1 - checked_confidence(level)
    if family < 1 or looks < 1:
        raise ConfigError(f"family {family}, looks {looks}; allowed are numbers of 1 or more.")
    nominal = look_level(alpha / family, looks)
    learnt = np.round(x[~fx], 9), np.round(y[~fy], 9)
    difference, interval, p = _rank_sum(*learnt, nominal)
    table = [[int(fx.sum()), int((~fx).sum())], [int(fy.sum()), int((~fy).sum())]]
    p_failures = float(scipy.stats.fisher_exact(table).pvalue)
    verdict: Verdict = "open"
    if p < nominal:
        verdict, side = ("lower", "greater") if difference < 0 else ("higher", "less")
        if scipy.stats.fisher_exact(table, alternative=side).pvalue <= AGAINST:
            verdict = "mixed"
    elif p_failures < nominal:
        more = table[0][0] * y.size > table[1][0] * x.size
        verdict = "fails more" if more else "fails less"
    return UnpairedComparison(
        difference=difference,
        interval=interval,
        p=min(1.0, p * alpha / nominal),
        verdict=verdict,
        failures=(table[0][0], table[1][0]),
        p_failures=min(1.0, p_failures * alpha / nominal),
        n=(table[0][1], table[1][1]),
    )


def _checked(
    values: npt.ArrayLike, failed: npt.ArrayLike | None, name: str
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    errors = np.asarray(values, dtype=np.float64)
    lost = ~np.isfinite(errors) if failed is None else np.asarray(failed, dtype=bool)
    if errors.ndim != 1 or not errors.size or lost.shape != errors.shape:
        raise ConfigError(f"{name} needs one error a run, and failed_{name} one value for each.")
    if not np.isfinite(errors[~lost]).all():
        raise ConfigError(f"An error of {name} is not finite, but its run did not fail to learn.")
    return errors, lost


def _rank_sum(
    x: FloatArray, y: FloatArray, level: float
) -> tuple[float, tuple[float, float], float]:
    """Shift of x against y, its interval at 1 - level, and p: one procedure on all differences.

    Ties keep the law of untied values, which has the larger spread.
    """
    unbounded = (-math.inf, math.inf)
    if not x.size or not y.size:
        return math.nan, unbounded, 1.0
    if x.size * y.size > MOST_PAIRS:
        raise ConfigError(f"{x.size} and {y.size} runs are too many to compare.")
    gaps: FloatArray = np.sort(np.round(np.subtract.outer(x, y), 9), axis=None)
    shift = float(np.median(gaps))
    tail = 2 * _law(x.size, y.size)  # two-sided p by the smaller count
    below = float(((gaps < 0).sum() + (gaps <= 0).sum()) / 2)
    p = min(1.0, float(tail[math.ceil(min(below, gaps.size - below))]))
    depth = int((tail < level).sum())
    if depth == 0:
        return shift, unbounded, p
    return shift, dual_ends(gaps, depth, shift, p, level), p


@lru_cache(maxsize=64)
def _law(m: int, n: int) -> FloatArray:
    """P(U <= u) for u = 0..mn, where U counts the pairs in which the first is smaller."""
    if m + n > MOST_FOR_EXACT_LAW:
        deviation = math.sqrt(m * n * (m + n + 1) / 12)
        limit: FloatArray = scipy.special.ndtr((np.arange(m * n + 1) + 0.5 - m * n / 2) / deviation)
        return limit
    # the generating function prod_i (1 - q^(n + i)) / (1 - q^i), i = 1..m
    ways = np.zeros(m * n + 1)
    ways[0] = 1.0
    for i in range(1, m + 1):
        if n + i <= m * n:
            ways[n + i :] -= ways[: -(n + i)].copy()
        for start in range(i):
            ways[start::i] = np.cumsum(ways[start::i])
    exact: FloatArray = np.cumsum(ways) / ways.sum()
    return exact
