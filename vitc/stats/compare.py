"""Is one contender better than another on the same draws? By how much, and which fails more often?

`compare` answers both with one procedure, so that its interval and its p-value never disagree;
`compare_means` likewise from the few seeds of a measure. docs/inference.md has the rates of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt
import scipy

from vitc.errors import ConfigError
from vitc.stats.proportions import FloatArray, checked_confidence

MOST_FOR_EXACT_TEST = 400  # draws; beyond, the law's table grows and its normal limit is as good
MOST_TO_SIMULATE, SIMULATED = 40, 2000  # draws of a study, and studies, for the smallest gap
AGAINST = 0.25  # one-sided p of failures below which they speak against the better error

Verdict = Literal["lower", "higher", "mixed", "fails more", "fails less", "equivalent", "open"]


class Failures(TypedDict):
    """Runs that failed to learn: of a, of b, on draws where only one of them did, and its p."""

    a: int
    b: int
    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """a against b on the same draws; errors in points, so negative means a is better.

    `difference` and `interval` are of the `n` draws on which both learnt: the pseudo-median of
    a - b (Hodges-Lehmann). `interval` contains 0 exactly if `p` is not below 1 - level.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    verdict: Verdict
    failures: Failures
    n: int


def compare(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    failed_a: npt.ArrayLike | None = None,
    failed_b: npt.ArrayLike | None = None,
    level: float = 0.95,
    family: int = 1,
    looks: int = 1,
    margin: float | None = None,
) -> Comparison:
    """Compare the errors of two contenders, in points, on the same draws; see `Comparison`.

    There are two endpoints. The error is compared where both learnt, by Wilcoxon's signed-rank
    test and the interval that inverts it; how often each failed to learn, by the exact sign test
    on the draws where only one did. An error at chance never enters the differences.

    `failed_a`, `failed_b`: (n,) whether each run failed to learn; None: where its error is not
    finite. `family` comparisons hold together (Bonferroni). `looks` is how often the data are
    looked at in all, with at most twice as many draws each time; p is for the last of them.
    `margin`: contenders whose difference is surely smaller are "equivalent".

    The verdict, in this order: "mixed" (the better error fails more often), "lower" or "higher"
    (a's error), "fails more" or "fails less" (a), "equivalent", "open". Raises ConfigError.
    """
    runs = _checked_runs(a, b, failed_a, failed_b)
    nominal = _nominal(level, family, looks, margin)
    return _compared(runs, 1 - level, nominal, margin, lambda d: _signed_rank(d, nominal))


@dataclass(frozen=True)
class Luck:
    """What tuning adds to a difference of means: the settings that were chosen could have been
    others. `deviation` in points; `df`: how well it is known, half the number of tuning draws."""

    deviation: float
    df: float


def compare_means(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    failed_a: npt.ArrayLike | None = None,
    failed_b: npt.ArrayLike | None = None,
    family: int = 1,
    looks: int = 1,
    margin: float | None = None,
    luck: Luck | None = None,
) -> Comparison:
    """As `compare` at level 0.95, for seeds too few for ranks: the mean difference by Student's t.

    Below 6 seeds ranks can show nothing; t can, for differences that are about normal. `luck` is
    added where the settings were tuned: without it identical contenders, tuned with 8 draws each,
    differ in 7 to 32 % of studies, with it in 2 to 5 %. Raises ConfigError.
    """
    runs = _checked_runs(a, b, failed_a, failed_b)
    nominal = _nominal(0.95, family, looks, margin)
    return _compared(runs, 1 - 0.95, nominal, margin, lambda d: _student(d, nominal, luck))


Runs = tuple[FloatArray, FloatArray, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
Bounds = tuple[float, tuple[float, float], float]  # estimate, interval, p


def _nominal(level: float, family: int, looks: int, margin: float | None) -> float:
    """The level of one test in one look. Raises ConfigError."""
    if family < 1 or looks < 1 or (margin is not None and not margin > 0):
        raise ConfigError(
            f"family {family}, looks {looks}, margin {margin}; allowed are family and looks of 1 "
            "or more, and a margin above 0."
        )
    return look_level((1 - checked_confidence(level)) / family, looks)


def _compared(
    runs: Runs,
    alpha: float,
    nominal: float,
    margin: float | None,
    bounded: Callable[[FloatArray], Bounds],
) -> Comparison:
    errors_a, errors_b, fa, fb = runs
    learnt = ~(fa | fb)
    differences = np.round(errors_a[learnt] - errors_b[learnt], 9)
    estimate, interval, p = bounded(differences)
    only_a, only_b = int((fa & ~fb).sum()), int((fb & ~fa).sum())
    p_failures = min(1.0, 2 * _sign_test(min(only_a, only_b), only_a + only_b))
    better = 0 if p >= nominal else (-1 if estimate < 0 else 1)
    return Comparison(
        difference=estimate,
        interval=interval,
        p=min(1.0, p * alpha / nominal),
        verdict=_verdict(better, (only_a, only_b), p_failures < nominal, interval, margin),
        failures=Failures(
            a=int(fa.sum()),
            b=int(fb.sum()),
            only_a=only_a,
            only_b=only_b,
            p=min(1.0, p_failures * alpha / nominal),
        ),
        n=differences.size,
    )


def _verdict(
    sign: int,
    only: tuple[int, int],
    failures_differ: bool,
    interval: tuple[float, float],
    margin: float | None,
) -> Verdict:
    """`sign` is that of the difference of errors, 0 where none is shown; `only` are the draws on
    which a alone failed, and b alone."""
    if sign:
        winners = only[0] if sign < 0 else only[1]
        against = _sign_test(sum(only) - winners, sum(only)) <= AGAINST
        return "mixed" if against else ("lower" if sign < 0 else "higher")
    if failures_differ:
        return "fails more" if only[0] > only[1] else "fails less"
    if margin is not None and -margin < interval[0] and interval[1] < margin:
        return "equivalent"
    return "open"


@lru_cache(maxsize=4096)
def _sign_test(count: int, n: int) -> float:
    """One-sided p: so few, or fewer, of n draws that could have gone either way."""
    return float(scipy.stats.binom.cdf(count, n, 0.5))


def _checked_runs(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    failed_a: npt.ArrayLike | None,
    failed_b: npt.ArrayLike | None,
) -> Runs:
    """Errors and failures, each (n,). Raises ConfigError."""
    errors = [np.asarray(x, dtype=np.float64) for x in (a, b)]
    failed = [
        ~np.isfinite(e) if f is None else np.asarray(f, dtype=bool)
        for e, f in zip(errors, (failed_a, failed_b), strict=True)
    ]
    shapes = [x.shape for x in (*errors, *failed)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ConfigError(
            f"a, b and their failures have shapes {', '.join(map(str, shapes))}; they must be one "
            "number a draw, of the same draws in the same order."
        )
    for name, e, f in zip("ab", errors, failed, strict=True):
        if not np.isfinite(e[~f]).all():
            raise ConfigError(
                f"{name} has errors that are not finite for runs that did not fail.",
                f"Give failed_{name}=None, or mark those runs as failed.",
            )
    return errors[0], errors[1], failed[0], failed[1]


def _signed_rank(differences: FloatArray, level: float) -> Bounds:
    """(estimate, interval, p) of (n,) differences, dual at `level`: p < level exactly if the
    interval excludes 0.

    All come from the Walsh averages, the means of all pairs: the estimate is their median, the
    rank sum is the number below 0, and the interval's ends are two of them.
    """
    n = differences.size
    if n == 0:
        return math.nan, (-math.inf, math.inf), 1.0
    i, j = np.triu_indices(n)
    walsh = np.sort(np.round((differences[i] + differences[j]) / 2, 9))
    estimate = float(np.median(walsh))
    tail = _tail(n)
    below = float(((walsh < 0).sum() + (walsh <= 0).sum()) / 2)
    p = float(tail[math.ceil(min(below, walsh.size - below))])
    sizes = np.abs(differences)
    if np.unique(sizes).size < n or not sizes.all():
        p = max(p, _sign_flip_p(differences))  # the untied law alone is too bold with ties
    p = min(1.0, p)
    depth = _depth(n, level)
    if depth == 0:
        return estimate, (-math.inf, math.inf), p
    return estimate, dual_ends(walsh, depth, estimate, p, level), p


def dual_ends(
    values: FloatArray, depth: int, estimate: float, p: float, level: float
) -> tuple[float, float]:
    """The interval of a rank test, which excludes 0 exactly if p < level.

    values: (n,) ascending, the statistics that the test counts by their signs; its ends are the
    `depth`-th from each side, 1 <= depth <= n, adjusted where ties with 0 would make both disagree.
    """
    low, high = float(values[depth - 1]), float(values[-depth])
    if p >= level:
        low, high = min(low, 0.0), max(high, 0.0)
    elif low <= 0 <= high:  # rejected, but an end is exactly 0: halfway to the next value
        if estimate > 0:
            low = float(values[values > 0][0]) / 2
        else:
            high = float(values[values < 0][-1]) / 2
    return low, high


def _student(differences: FloatArray, level: float, luck: Luck | None) -> Bounds:
    """(mean, interval, p) by Student's t, with luck by Welch and Satterthwaite's approximation."""
    n = differences.size
    if n == 0:
        return math.nan, (-math.inf, math.inf), 1.0
    mean = float(differences.mean())
    if n == 1:
        return mean, (-math.inf, math.inf), 1.0
    parts = [(float(differences.var(ddof=1)) / n, n - 1.0)]
    parts += [(luck.deviation**2, luck.df)] if luck is not None else []
    variance = sum(v for v, _ in parts)
    if variance == 0:  # all differences are the same: no spread is known, only their sign
        p = 2.0 ** (1 - n) if mean else 1.0
        return mean, (mean, mean) if p < level else (-math.inf, math.inf), p
    df = variance**2 / sum(v**2 / df for v, df in parts)
    half = float(scipy.stats.t.isf(level / 2, df)) * math.sqrt(variance)
    p = 2 * float(scipy.stats.t.sf(abs(mean) / math.sqrt(variance), df))
    return mean, (mean - half, mean + half), p


def _sign_flip_p(differences: FloatArray) -> float:
    """Two-sided p of the rank sum under all sign flips: mid-ranks, zeros ranked but not flipped."""
    doubled = np.round(2 * scipy.stats.rankdata(np.abs(differences))).astype(int)
    flipped = np.sort(doubled[differences != 0])
    cdf = _rank_sum_cdf(tuple(flipped.tolist()))
    positive = int(doubled[differences > 0].sum())
    above = 1 - float(cdf[positive - 1]) if positive else 1.0
    return min(1.0, 2 * min(float(cdf[positive]), above))


def _tail(n: int) -> FloatArray:
    """Two-sided p by the smaller rank sum of n differences without ties."""
    return 2 * _rank_sum_cdf(tuple(range(1, n + 1)))


@lru_cache(maxsize=1024)
def _depth(n: int, level: float) -> int:
    """How many Walsh averages lie outside the interval on each side; 0: it is unbounded."""
    return int((_tail(n) < level).sum())


@lru_cache(maxsize=32)
def _rank_sum_cdf(ranks: tuple[int, ...]) -> FloatArray:
    """P(sum <= s) for s = 0..total when each rank counts with chance 1/2."""
    if len(ranks) <= MOST_FOR_EXACT_TEST:
        return np.cumsum(_rank_sum_law(ranks))
    total, deviation = sum(ranks), math.sqrt(sum(r * r for r in ranks)) / 2
    cdf: FloatArray = scipy.special.ndtr((np.arange(total + 1) + 0.5 - total / 2) / deviation)
    return cdf


@lru_cache(maxsize=16)
def _rank_sum_law(doubled_ranks: tuple[int, ...]) -> FloatArray:
    """P(sum = s) for s = 0..total when each rank counts with chance 1/2; mid-ranks come doubled."""
    law = np.zeros(sum(doubled_ranks) + 1)
    law[0] = 1.0
    for rank in doubled_ranks:
        law[rank:] = (law[rank:] + law[:-rank]) / 2
        law[:rank] /= 2
    return law


# -- levels and power ------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def look_level(alpha: float, looks: int) -> float:
    """The level of each single look at which all looks together keep `alpha`.

    The draws double between looks, which is the most that a plan allows: fewer new draws make the
    looks more alike and the error smaller. Armitage, McPherson and Rowe (1969), by quadrature of
    the chance that the running sum has not crossed its bound.
    """
    if looks == 1:
        return alpha
    nodes, weights = np.polynomial.legendre.leggauss(201)
    sizes = 2.0 ** np.arange(looks)

    def excess(level: float) -> float:
        bounds = -scipy.special.ndtri(level / 2) * np.sqrt(sizes)
        sums = nodes * bounds[0]
        mass = weights * bounds[0] * scipy.stats.norm.pdf(sums)
        for bound, added in zip(bounds[1:-1], np.diff(sizes)[:-1], strict=True):
            moved = nodes * bound
            density = scipy.stats.norm.pdf(moved[:, None] - sums, scale=math.sqrt(added)) @ mass
            sums, mass = moved, weights * bound * density
        step = math.sqrt(sizes[-1] - sizes[-2])
        stays = scipy.special.ndtr((bounds[-1] - sums) / step) - scipy.special.ndtr(
            (-bounds[-1] - sums) / step
        )
        return float(1 - mass @ stays) - alpha

    return float(scipy.optimize.brentq(excess, 0.9 * alpha / looks, alpha, xtol=1e-9))


def fewest_draws(level: float) -> int:
    """The least number of draws that can reject at this nominal level: 2^(1 - n) is below it."""
    return math.floor(1 - math.log2(level) + 1e-9) + 1


@lru_cache(maxsize=256)
def smallest_gap(n: int, level: float, means: bool = False, power: float = 0.8) -> float:
    """The gap that n draws find with `power` at a nominal level, in standard deviations of the
    paired differences, taken as normal; infinite where n draws can reject nothing.

    A study finds a gap exactly if it is above minus the lower end of the interval without it, so
    the quantile of that end over simulated studies is the answer; from 41 draws the normal limit.
    `means`: of `compare_means`, by the noncentral t law.
    """
    if means:
        if n < 2:
            return math.inf
        bound = scipy.stats.t.isf(level / 2, n - 1)
        shift = scipy.optimize.brentq(
            lambda x: scipy.stats.nct.sf(bound, n - 1, x) - power, 0.0, 4 * bound + 4
        )
        return float(shift) / math.sqrt(n)
    depth = _depth(n, level)
    if depth == 0:
        return math.inf
    if n > MOST_TO_SIMULATE:
        z = scipy.special.ndtri([1 - level / 2, power]).sum()
        return float(z) / math.sqrt(n * 3 / math.pi)
    studies = np.random.default_rng(0).normal(size=(SIMULATED, n))
    i, j = np.triu_indices(n)
    walsh = (studies[:, i] + studies[:, j]) / 2
    ends = np.partition(walsh, depth - 1, axis=1)[:, depth - 1]
    return float(np.quantile(-ends, power))
