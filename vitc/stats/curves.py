"""How easily does it train? Every number of a study, with the uncertainty that belongs to it.

`values` is always one number a draw (one random lr and weight decay, or one seed): top-1 *error* in
percent, lower is better, and a run that failed to learn counts as chance error, 100 * (1 - 1/K),
never as missing. Paper means arXiv 2106.14881. Two rules hold throughout:

- Intervals are exact where exactness exists (order statistics, binomials, sign flips) and resampled
  elsewhere. Coverages quoted are of 95 % intervals, measured over 2,000 or more simulated studies;
  `pytest -m "slow or not slow" tests/test_statistics.py` measures them again.
- No interval is put on a minimum. The best of n draws shows little of the best of the next n, and
  a bootstrap of it shows nothing; `tuning_curve` answers what is meant: how good is the best of k?

Draws must be random (independent, seeded). Quasi-random draws spread more evenly than the theory
assumes and make the intervals too wide, not too narrow: with 64 scrambled Sobol or Halton draws of
a smooth error, with or without noise, 95 % intervals and bands covered 99.6 to 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from vitc.errors import ConfigError
from vitc.stats.proportions import (
    FloatArray,
    Interval,
    checked,
    checked_confidence,
    checked_pair,
)

RESAMPLES = 2000  # an interval's end moves by 2 % of its width (1 sigma) between seeds: measured
FEWEST_TO_RESAMPLE = 40  # of 12 to 16 runs the bootstrap covers 92 to 93 %, Student's t 95 %
MOST_TO_RESAMPLE = 4000  # beyond, skewness no longer matters and the weights would take 64 MB


# ---- the error distribution ---------------------------------------------------------------------


def edf(values: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Empirical distribution function: x, the distinct errors ascending; F(x), the share <= x.

    Both have shape (distinct,), and F ends at 1. Source: paper section 4, pycls `plot_edf`. Raises
    ConfigError if a value is missing or not finite.
    """
    x, counts = np.unique(checked(values), return_counts=True)
    return x, np.cumsum(counts) / counts.sum()


def edf_delta(values: npt.ArrayLike, best: float | None = None) -> tuple[FloatArray, FloatArray]:
    """EDF of error minus the best error, in points: the paper's Figures 4 and 5, bottom row.

    `best`: the error at the best settings; None: that of the best draw, which is itself random, so
    that contenders with unequal numbers of draws are not comparable.
    """
    array = checked(values)
    return edf(array - (array.min() if best is None else best))


@dataclass(frozen=True, eq=False)
class Band:
    """A confidence band on a distribution function; `low`, `F`, `high` at each of `x` (distinct,).

    Like F, the bounds are steps that hold up to the next x. Left of the first x they are 0 and
    `high_before`.
    """

    x: FloatArray
    F: FloatArray
    low: FloatArray
    high: FloatArray
    high_before: float
    kind: str
    confidence: float


BandKind = Literal["dkw", "equal_precision"]


def edf_band(values: npt.ArrayLike, confidence: float = 0.95, kind: BandKind = "dkw") -> Band:
    """Bounds on the distribution function that these random draws came from.

    Both kinds are simultaneous.
    - `dkw`: the same width everywhere, sqrt(log(2/alpha) / 2n); Massart's constant in the
      Dvoretzky-Kiefer-Wolfowitz inequality (1990), valid for every n.
    - `equal_precision`: exact, and tighter at both ends, so the one to judge the best runs by: a
      beta interval around each order statistic, all widened by the same exactly computed level
      (Learned-Miller and DeStefano, IEEE Trans. Inf. Theory 54, 2008).

    Coverage is at least nominal, also with ties and an atom of diverged runs: a discrete
    distribution only removes places where a band could fail. Raises ConfigError.
    """
    array = np.sort(checked(values))
    x, F = edf(array)
    low, high = _band_by_count(array.size, checked_confidence(confidence), kind)
    counts = np.searchsorted(array, x, side="right")
    return Band(x, F, low[counts], high[counts], float(high[0]), kind, confidence)


@lru_cache(maxsize=64)
def _band_by_count(n: int, confidence: float, kind: str) -> tuple[FloatArray, FloatArray]:
    """Bounds on F(e), each (n + 1,), indexed by how many of the n values are <= e."""
    alpha = 1 - confidence
    if kind == "dkw":
        shares, margin = np.arange(n + 1) / n, math.sqrt(math.log(2 / alpha) / (2 * n))
        return np.maximum(shares - margin, 0.0), np.minimum(shares + margin, 1.0)
    if kind != "equal_precision":
        raise ConfigError(f"Unknown band {kind!r}.", hint="Known: 'dkw', 'equal_precision'.")
    low, high = _beta_intervals(n, _simultaneous_alpha(n, alpha))
    # k values <= e: F(e) lies above the k-th order statistic's bound, below the next one's.
    return np.append(0.0, low), np.append(high, 1.0)


def _beta_intervals(n: int, alpha: float) -> tuple[FloatArray, FloatArray]:
    """(n,) bounds on F at each order statistic; F at the i-th is distributed as Beta(i, n+1-i)."""
    i = np.arange(1, n + 1)
    return scipy.stats.beta.ppf(alpha / 2, i, n + 1 - i), scipy.stats.beta.isf(
        alpha / 2, i, n + 1 - i
    )


def _simultaneous_alpha(n: int, alpha: float) -> float:
    """The pointwise level at which all n beta intervals hold together with 1 - alpha."""

    def excess(log_level: float) -> float:
        return _chance_inside(*_beta_intervals(n, math.exp(log_level))) - (1 - alpha)

    # Bonferroni's level is too small, alpha itself too large (a half keeps n = 1 bracketed).
    bracket = math.log(alpha / (2 * n)), math.log(alpha) + 1e-9
    return math.exp(scipy.optimize.brentq(excess, *bracket, xtol=1e-6))


def _chance_inside(low: FloatArray, high: FloatArray) -> float:
    """P(low_i <= U_(i) <= high_i for every i) for n ordered uniforms; low, high ascending, (n,).

    Exact: the distribution of how many points have passed, followed over all bounds in order; a
    Poisson process with n points at the end is n uniforms (Moscovich and Nadler 2017,
    https://doi.org/10.1016/j.spl.2016.11.027).
    """
    n = low.size
    times = np.unique(np.concatenate([low, high, [1.0]]))
    least = np.searchsorted(high, times, side="right")  # these must have passed by then
    most = np.searchsorted(low, times, side="left")  # and no more than these may have
    least[-1] = most[-1] = n
    if (least > most).any():
        return 0.0
    spans = most - np.append(0, least[:-1])  # the largest increment that stays inside, each step
    pmf = scipy.stats.poisson.pmf(
        np.arange(spans.max() + 1), n * np.diff(times, prepend=0.0)[:, None]
    )
    state, first = np.ones(1), 0  # P(first + j points have passed), and no bound broken so far
    for step, span in enumerate(spans):
        moved = np.convolve(state, pmf[step, : span + 1])
        state = moved[least[step] - first : most[step] - first + 1]
        first = least[step]
    return float(state[0] / scipy.stats.poisson.pmf(n, n))


# ---- one number a contender ---------------------------------------------------------------------


def interval(
    values: npt.ArrayLike,
    statistic: Literal["median", "mean"] = "median",
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The median or mean of the runs with its confidence interval.

    `median` uses order statistics (see `median`), `mean` Student's t, and from 40 runs a BCa
    bootstrap, whose resamples `seed` fixes. Raises ConfigError for another statistic.
    """
    array = checked(values)
    if statistic == "median":
        return median(array, confidence)
    if statistic == "mean":
        return _mean_interval(array, confidence, seed)
    raise ConfigError(
        f"statistic is {statistic!r}; allowed are 'median' and 'mean'.",
        hint="For the best of k draws, with bands, use tuning_curve(values).",
    )


def _bca_bounds(
    replicates: FloatArray, estimate: float, without: FloatArray, confidence: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds (Efron 1987, https://doi.org/10.2307/2289144).

    From (RESAMPLES,) resampled and (n,) leave-one-out statistics. Unlike in `scipy.stats.bootstrap`
    the normal quantile is enlarged by sqrt(n/(n-1)), which resampling takes from the spread
    (Hesterberg 2015, arXiv 1411.5279, "narrowness bias").
    """
    n, tie = without.size, 1e-9 * float(np.ptp(replicates))
    # Half of the ties count as below: means of many diverged runs lie on a lattice.
    share = np.mean((replicates < estimate - tie) + 0.5 * (np.abs(replicates - estimate) <= tie))
    bias = scipy.special.ndtri(np.clip(share, 1 / replicates.size, 1 - 1 / replicates.size))
    pull = without.mean() - without
    acceleration = (pull**3).sum() / (6 * max((pull**2).sum() ** 1.5, 1e-300))
    tails = np.array([1 - confidence, 1 + confidence]) / 2
    z = bias + scipy.special.ndtri(tails) * math.sqrt(n / (n - 1))
    levels = scipy.special.ndtr(bias + z / np.maximum(1 - acceleration * z, 1e-9))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def median(values: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """The median error with its exact order-statistic interval, in the unit of the values.

    Ranks by the binomial(n, 1/2) law, not interpolated between levels, which covers 87 % only where
    a law has a gap at its median: coverage is 95 % or more for any law. Bounds are infinite from
    fewer than 6 runs.
    """
    x = np.sort(checked(values))
    n, estimate, method = x.size, float(np.median(x)), "order statistics"
    levels = 1 - 2 * scipy.stats.binom.cdf(np.arange(n // 2), n, 0.5)  # of depth 1, 2, ...
    depth = int((levels >= checked_confidence(confidence)).sum())
    if depth == 0:
        return Interval(-math.inf, estimate, math.inf, confidence, method)
    return Interval(float(x[depth - 1]), estimate, float(x[n - depth]), confidence, method)


def _mean_interval(x: FloatArray, confidence: float, seed: int) -> Interval:
    n, mean = x.size, float(x.mean())
    tail = (1 - checked_confidence(confidence)) / 2
    if n == 1:
        return Interval(-math.inf, mean, math.inf, confidence, "one run bounds nothing")
    if FEWEST_TO_RESAMPLE <= n <= MOST_TO_RESAMPLE:
        centred = x - mean
        replicates = resample_weights(n, seed) @ centred
        low, high = _bca_bounds(replicates, 0.0, -centred / (n - 1), confidence)
        method = "BCa bootstrap"
    else:
        high = float(scipy.stats.t.isf(tail, n - 1) * x.std(ddof=1)) / math.sqrt(n)
        low, method = -high, "Student's t"
    return Interval(mean + low, mean, mean + high, confidence, method)


@lru_cache(maxsize=4)
def resample_weights(n: int, seed: int) -> FloatArray:
    """(RESAMPLES, n): the share each run has in each bootstrap resample; the same on every call."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return counts / n


# ---- the best of k draws ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TuningCurve:
    """Error of the best of k random draws, for each of `ks` (len(ks),), with simultaneous bands.

    `mean` is the expected best, `median` the error the best of k beats half of the time.
    """

    ks: npt.NDArray[np.int64]
    mean: FloatArray
    mean_low: FloatArray
    mean_high: FloatArray
    median: FloatArray
    median_low: FloatArray
    median_high: FloatArray
    n: int
    confidence: float


def tuning_curve(
    values: npt.ArrayLike,
    ks: Sequence[int] | npt.NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    support: tuple[float, float] = (0.0, 100.0),
) -> TuningCurve:
    """How good is the best of k draws? Estimates and bands from n draws, k = 1..n by default.

    `mean` averages the best over all k-subsets of the draws, which is unbiased (resampling k draws
    with replacement is not: it promises too little). `median` is the EDF's quantile 1 - 0.5^(1/k).
    Both bands come from one simultaneous band on the distribution function (`edf_band`, kind
    "equal_precision"), of which the best of k is a falling functional: its survival is (1 - F)^k.
    They hold at all k at once, with at least the nominal coverage; where n draws cannot bound the
    best of k, a bound is the edge of `support`, the range in percent that no error can leave.
    Source: Lourie, Cho, He 2023, arXiv 2311.09480. Raises ConfigError for k outside 1..n or values
    outside the support.
    """
    x = np.sort(checked(values))
    n, (floor, ceiling) = x.size, support
    counts = np.arange(1, n + 1) if ks is None else np.asarray(ks)
    whole = counts.ndim == 1 and counts.size > 0 and counts.dtype.kind in "iu"
    if not whole or counts.min() < 1 or counts.max() > n:
        raise ConfigError(f"ks is {ks}; allowed are integers from 1 to the {n} draws made.")
    if not -math.inf < floor <= x[0] <= x[-1] <= ceiling < math.inf:
        raise ConfigError(
            f"Values from {x[0]:g} to {x[-1]:g} do not lie in a finite support, {support}.",
            hint="Give support=(lowest, highest) value a run can possibly have.",
        )
    low, high = _band_by_count(n, checked_confidence(confidence), "equal_precision")
    k = counts[:, None]
    below = np.arange(n + 1)  # how many draws are at or below the error
    reached = 1 - 0.5 ** (1 / counts)  # the quantile of one draw that is the best of k's median
    edges = np.concatenate([[floor], x, [ceiling]])  # from below = 0 up to "not among the draws"

    def expected(survival: FloatArray) -> FloatArray:
        """(len(ks),) mean of the best, from its survival between edges, (len(ks), n + 1)."""
        mean: FloatArray = floor + np.sum(survival * np.diff(edges), axis=1)
        return mean

    # that none of `below` is in a k-subset: each of the k is one of the others that are left
    drawn = np.arange(counts.max())[:, None]
    missed = np.cumprod(np.maximum(n - below - drawn, 0) / (n - drawn), axis=0)
    return TuningCurve(
        ks=counts,
        mean=expected(missed[counts - 1]),
        mean_low=expected((1 - high) ** k),
        mean_high=expected((1 - low) ** k),
        median=x[np.searchsorted(below[1:] / n, reached - 1e-12)],
        median_low=edges[np.searchsorted(high, reached)],
        median_high=edges[np.searchsorted(low, reached)],
        n=n,
        confidence=confidence,
    )


# ---- the hyper-parameters of the good runs ------------------------------------------------------


class BestRange(NamedTuple):
    """2.5th, 50th and 97.5th percentile of a setting over the best runs of resampled studies."""

    low: float
    best: float
    high: float


def best_range(
    values: npt.ArrayLike,
    metric: npt.ArrayLike,
    b: int = 2500,
    fraction: float = 0.25,
    seed: int = 0,
) -> BestRange:
    """Where a setting's good values lie: pycls's filter, the vertical bars in its scatter plots.

    `b` times, draw `fraction` of the runs with replacement and take the setting `metric` of the one
    with the least error (lr and weight decay as log10). No confidence interval for the optimum.
    Source: pycls `sweep/analysis.py` get_filters, paper Figures 4 and 5, top.
    Raises ConfigError if the two differ in number, or no run would be drawn.
    """
    errors, settings = checked_pair(values, metric, ("values", "metric"))
    size = int(errors.size * fraction)
    if not (b >= 1 and 1 <= size <= errors.size):
        raise ConfigError(
            f"b {b} and fraction {fraction} of {errors.size} runs draw {size} runs; allowed are "
            "b >= 1 and a fraction up to 1 that leaves at least one run."
        )
    drawn = np.random.default_rng(seed).integers(errors.size, size=(b, size))
    best = drawn[np.arange(b), errors[drawn].argmin(axis=1)]
    low, middle, high = np.percentile(settings[best], [2.5, 50, 97.5])
    return BestRange(float(low), float(middle), float(high))


class Border(NamedTuple):
    """`side` is "low", "high" or None; `position` of the best draw in its range, 0 to 1."""

    side: Literal["low", "high"] | None
    position: float


def on_border(
    draws: npt.ArrayLike,
    errors: npt.ArrayLike,
    low: float,
    high: float,
    log: bool = True,
    margin: float = 0.125,
) -> Border:
    """Does the best draw lie on the border of the sampled range, so that the range should move?

    On the border means within the outer `margin` of the range, in its logarithm if `log`. A setting
    without any effect has its best value there with chance 2 * margin, one time in four: a hint,
    not a finding. Several equally good draws count with their median position; if all are equal
    there is no best. Raises ConfigError if a draw lies outside [low, high].
    """
    settings, values = checked_pair(draws, errors, ("draws", "errors"))
    if not (low < high and (low > 0 or not log) and 0 < margin < 0.5):
        raise ConfigError(
            f"Range {low} to {high} (log={log}) with margin {margin}; allowed are low < high, "
            "above 0 if log, and a margin between 0 and 0.5."
        )
    slack = 1e-9 * (high - low)  # log-uniform draws can round past an end
    if settings.min() < low - slack or settings.max() > high + slack:
        raise ConfigError(
            f"Draws from {settings.min():g} to {settings.max():g} leave the range {low:g} to "
            f"{high:g} given for them."
        )
    ends = np.array([low, high])
    ends, settings = (np.log(ends), np.log(settings)) if log else (ends, settings)
    best = settings[values == values.min()]
    position = float((np.median(best) - ends[0]) / (ends[1] - ends[0]))
    if np.ptp(values) == 0 or margin < position < 1 - margin:
        return Border(None, position)
    return Border("low" if position <= margin else "high", position)
