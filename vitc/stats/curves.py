"""How easily does it train? Every number of a study, with the uncertainty that belongs to it.

`values` is always one number a draw (one random lr and weight decay, or one seed): top-1 *error* in
percent, lower is better, and a diverged run counts as chance error, 100 * (1 - 1/K), never as
missing. Paper means arXiv 2106.14881. Two rules hold throughout:

- Intervals are exact where exactness exists (order statistics, binomials, sign flips) and resampled
  elsewhere. Coverages quoted are of 95 % intervals, measured over 2,000 or more simulated studies;
  `pytest -m "slow or not slow" tests/test_statistics.py` measures them again.
- No interval is put on a minimum. The best of n draws says little about the best of the next n, and
  a bootstrap of it says nothing; `tuning_curve` answers what is meant: how good is the best of k?

Draws must be random (independent, seeded). Quasi-random draws spread more evenly than the theory
assumes and make the intervals too wide, not too narrow: with 64 scrambled Sobol or Halton draws of
a smooth error, with or without noise, 95 % intervals and bands covered 99.6 to 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from vitc.errors import ConfigError

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 2000  # an interval's end moves by 2 % of its width (1 sigma) between seeds: measured
FEWEST_TO_RESAMPLE = 12  # fewer runs hold too little of the tails: Student's t covers as much
MOST_TO_RESAMPLE = 4000  # beyond, skewness no longer matters and the weights would take 64 MB
MOST_FOR_EXACT_TEST = 400  # draws; beyond, the law's table grows and its normal limit is as good


@dataclass(frozen=True)
class Interval:
    """An estimate between two bounds, in the unit of the values.

    A bound is infinite where so few runs cannot bound it at that confidence.
    """

    low: float
    estimate: float
    high: float
    confidence: float = 0.95
    method: str = ""


# ---- what comes in ------------------------------------------------------------------------------


def _checked(values: npt.ArrayLike, name: str = "values") -> FloatArray:
    """(n,) finite floats, n >= 1. Raises ConfigError; its hint says how to count a diverged run."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ConfigError(
            f"{name} has shape {array.shape}; allowed is one number a run, at least one run."
        )
    if not np.isfinite(array).all():
        raise ConfigError(
            f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite.",
            hint="Count a diverged run as chance error, 100 * (1 - 1/num_classes).",
        )
    return array


def _checked_pair(
    a: npt.ArrayLike, b: npt.ArrayLike, names: tuple[str, str] = ("a", "b")
) -> tuple[FloatArray, FloatArray]:
    """Two (n,) arrays whose entries i belong to the same draw. Raises ConfigError."""
    first, second = _checked(a, names[0]), _checked(b, names[1])
    if first.size != second.size:
        raise ConfigError(
            f"{names[0]} has {first.size} runs, {names[1]} {second.size}; they must be the same.",
            hint="Give the draws that both have, in the same order.",
        )
    return first, second


def _differences(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    first, second = _checked_pair(a, b)
    # Rounding restores the ties that binary fractions break: 31.2 - 30.0 is not 41.2 - 40.0.
    rounded: FloatArray = np.round(first - second, 9)
    return rounded


def _checked_confidence(confidence: float) -> float:
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence is {confidence}; allowed is 0.5 to below 1, such as 0.95.")
    return confidence


# ---- the error distribution ---------------------------------------------------------------------


def edf(values: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Empirical distribution function: x, the distinct errors ascending; F(x), the share <= x.

    Both have shape (distinct,), and F ends at 1. The paper's reference [30] writes the share with
    error *below* e; we count `<=`, as pycls plots it: only so does a curve of n runs reach 1 at
    its worst error. The two differ at the jumps alone. Source: paper section 4, pycls `plot_edf`.
    Raises ConfigError if a value is missing or not finite.
    """
    x, counts = np.unique(_checked(values), return_counts=True)
    return x, np.cumsum(counts) / counts.sum()


def edf_delta(values: npt.ArrayLike, best: float | None = None) -> tuple[FloatArray, FloatArray]:
    """EDF of error minus the best error, in points: the paper's Figures 4 and 5, bottom row.

    The paper subtracts the error at the optimal lr and weight decay; pass that as `best`. Without
    it the best of these draws is taken, which is itself random: a band around this curve is then
    conditional on that best, and contenders with unequal numbers of draws are not comparable.
    """
    array = _checked(values)
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

    - `dkw`: simultaneous, the same width everywhere; Massart's constant in the Dvoretzky-Kiefer-
      Wolfowitz inequality (1990), sqrt(log(2/alpha) / 2n), valid for every n. The exact Kolmogorov
      quantile (`scipy.stats.kstwo`) would be 2 % narrower at n = 32 and 64 and cover 95 % sharp;
      the bound has a margin and can be checked by hand.
    - `equal_precision`: simultaneous, exact, tighter at both ends, so the one to judge the best
      runs by: a beta interval around each order statistic, all widened by the same exactly
      computed level (Learned-Miller and DeStefano, IEEE Trans. Inf. Theory 54, 2008; opda's
      `ld_equal_tailed` simulates that level).

    Coverage is at least nominal, also with ties and an atom of diverged runs: a discrete
    distribution only removes places where a band could fail. Raises ConfigError.
    """
    array = np.sort(_checked(values))
    x, F = edf(array)
    low, high = _band_by_count(array.size, _checked_confidence(confidence), kind)
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
    return stats.beta.ppf(alpha / 2, i, n + 1 - i), stats.beta.isf(alpha / 2, i, n + 1 - i)


def _simultaneous_alpha(n: int, alpha: float) -> float:
    """The pointwise level at which all n beta intervals hold together with 1 - alpha."""

    def excess(log_level: float) -> float:
        return _chance_inside(*_beta_intervals(n, math.exp(log_level))) - (1 - alpha)

    # Bonferroni's level is too small, alpha itself too large (a half keeps n = 1 bracketed).
    bracket = math.log(alpha / (2 * n)), math.log(alpha) + 1e-9
    return math.exp(optimize.brentq(excess, *bracket, xtol=1e-6))


def _chance_inside(low: FloatArray, high: FloatArray) -> float:
    """P(low_i <= U_(i) <= high_i for every i) for n ordered uniforms; low, high ascending, (n,).

    Exact: walk through all the bounds in time order, keeping the distribution of how many points
    have passed and dropping the states that break a bound. Increments are Poisson; conditioning on
    n points at the end makes them uniform (Khmaladze and Shinjikashvili 2001, Moscovich and Nadler
    2017, https://doi.org/10.1016/j.spl.2016.11.027).
    """
    n = low.size
    times = np.unique(np.concatenate([low, high, [1.0]]))
    least = np.searchsorted(high, times, side="right")  # these must have passed by then
    most = np.searchsorted(low, times, side="left")  # and no more than these may have
    least[-1] = most[-1] = n
    if (least > most).any():
        return 0.0
    spans = most - np.append(0, least[:-1])  # the largest increment that stays inside, each step
    pmf = stats.poisson.pmf(np.arange(spans.max() + 1), n * np.diff(times, prepend=0.0)[:, None])
    state, first = np.ones(1), 0  # P(first + j points have passed), and no bound broken so far
    for step, span in enumerate(spans):
        moved = np.convolve(state, pmf[step, : span + 1])
        state = moved[least[step] - first : most[step] - first + 1]
        first = least[step]
    return float(state[0] / stats.poisson.pmf(n, n))


# ---- one number a contender ---------------------------------------------------------------------


def interval(
    values: npt.ArrayLike,
    statistic: Literal["median", "mean"] = "median",
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The median or mean of the runs with its confidence interval.

    `median` uses order statistics (see `median`), `mean` a bootstrap (see `area`), whose resamples
    `seed` fixes. Raises ConfigError for another statistic.
    """
    array = _checked(values)
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

    From (RESAMPLES,) resampled and (n,) leave-one-out statistics. Resampling n of n values shrinks
    the spread by sqrt((n-1)/n); the normal quantile is enlarged as much (Hesterberg 2015, arXiv
    1411.5279, "narrowness bias"), the one difference from `scipy.stats.bootstrap`.
    """
    n, tie = without.size, 1e-9 * float(np.ptp(replicates))
    # Half of the ties count as below: means of many diverged runs lie on a lattice.
    share = np.mean((replicates < estimate - tie) + 0.5 * (np.abs(replicates - estimate) <= tie))
    bias = special.ndtri(np.clip(share, 1 / replicates.size, 1 - 1 / replicates.size))
    pull = without.mean() - without
    acceleration = (pull**3).sum() / (6 * max((pull**2).sum() ** 1.5, 1e-300))
    tails = np.array([1 - confidence, 1 + confidence]) / 2
    z = bias + special.ndtri(tails) * math.sqrt(n / (n - 1))
    levels = special.ndtr(bias + z / np.maximum(1 - acceleration * z, 1e-9))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def median(values: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """The median error with its order-statistic interval, in the unit of the values.

    The ranks come from the binomial(n, 1/2) law of how many values fall below the median, which
    needs no assumption about their distribution, and are interpolated between the two neighbouring
    levels (Hettmansperger and Sheather 1986, https://doi.org/10.1016/0167-7152(86)90021-0), since
    whole ranks jump: at n = 32 from 94.99 % to 98 %. Coverage at n = 32 to 128: 94.5 to 96.0 % for
    normal, lognormal and mixtures with up to 40 % diverged, errors in steps of 0.2 points included.
    It is more where many runs share the median's very value (steps of 1 point: 99 %; more than half
    diverged: 100 %), as for any interval. Bounds are infinite from fewer than 6 runs at 95 %.
    """
    x = np.sort(_checked(values))
    n, estimate, method = x.size, float(np.median(x)), "order statistics, interpolated"
    depth, weight = _median_depth(n, _checked_confidence(confidence))
    if depth == 0:
        return Interval(-math.inf, estimate, math.inf, confidence, method)
    low = (1 - weight) * x[depth - 1] + weight * x[depth]
    high = (1 - weight) * x[n - depth] + weight * x[n - depth - 1]
    return Interval(float(low), estimate, float(high), confidence, method)


@lru_cache(maxsize=256)
def _median_depth(n: int, confidence: float) -> tuple[int, float]:
    """Depth d of the interval from the d-th to the d-th last value, and its weight on d + 1.

    Depth 0: even the interval from least to greatest value has less than the confidence.
    """
    levels = 1 - 2 * stats.binom.cdf(np.arange(n // 2), n, 0.5)  # of depth 1, 2, ...
    depth = int((levels >= confidence).sum())
    if depth == 0:
        return 0, 0.0
    level, inner = 1 - 2 * stats.binom.cdf([depth - 1, depth], n, 0.5)
    part = float((level - confidence) / (level - inner))
    return depth, (n - depth) * part / (depth + (n - 2 * depth) * part)


def area(
    values: npt.ArrayLike, low: float, high: float, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Area above the EDF between two errors, in points: the integral of 1 - F(e) from low to high.

    It equals the mean of min(max(error, low), high) - low: how far a random draw lands above `low`,
    where nothing worse than `high` counts further. 0 is perfect, high - low hopeless; divided by
    high - low and taken from 1 it is the share under the EDF. Contenders must share both limits.

    Interval: BCa bootstrap, kept within [0, high - low]; Student's t for fewer than 12 runs.
    Coverage at n = 32 to 128: 93.1 to 96.4 % for 18 cases of normal, lognormal and mixtures
    with 5 to 80 % diverged, capped near and far.
    Chosen over Student's t, the bootstrap-t (up to 98.7 %) and Hall's skewness correction (90 to
    97 %). It fails where failures are too rare to be in the sample while `high` is far off (5 %
    diverged at an error of 90 %, 32 draws: 82 %): what was not seen cannot be resampled.
    Then a `high` within the range of the good runs, or `share_within`, is the sounder reading.
    Raises ConfigError unless low < high.
    """
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"area from {low} to {high}; allowed are finite limits, low < high.")
    return _mean_interval(np.clip(_checked(values), low, high) - low, confidence, seed, high - low)


def _mean_interval(
    x: FloatArray, confidence: float, seed: int, most: float | None = None
) -> Interval:
    """The mean of (n,) values with its interval, kept within [0, most] if `most` is given."""
    n, mean = x.size, float(x.mean())
    floor, ceiling = (-math.inf, math.inf) if most is None else (0.0, most)
    tail = (1 - _checked_confidence(confidence)) / 2
    if n == 1:
        return Interval(floor, mean, ceiling, confidence, "one run bounds nothing")
    if FEWEST_TO_RESAMPLE <= n <= MOST_TO_RESAMPLE:
        centred = x - mean
        replicates = _resample_weights(n, seed) @ centred
        low, high = _bca_bounds(replicates, 0.0, -centred / (n - 1), confidence)
        method = "BCa bootstrap"
    else:
        high = float(stats.t.isf(tail, n - 1) * x.std(ddof=1)) / math.sqrt(n)
        low, method = -high, "Student's t"
    return Interval(max(mean + low, floor), mean, min(mean + high, ceiling), confidence, method)


@lru_cache(maxsize=4)
def _resample_weights(n: int, seed: int) -> FloatArray:
    """(RESAMPLES, n): the share each run has in each bootstrap resample; the same on every call."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return counts / n


def share(count: int, n: int, confidence: float = 0.95) -> Interval:
    """`count` of n runs, such as the diverged ones, as a share in [0, 1] with its interval.

    Wilson's score with continuity correction. Plain Wilson covers 95 % only on average over the
    true share: computed exactly at n = 32 it swings between 92 and 97 % for shares in [0.05, 0.95]
    and falls to 84 % outside. Corrected, the least coverage over all shares is 95.3 % at n = 32 and
    at least 95.0 % for every other n tried from 9 to 256 (94.9 % at 8), for 10 % more width at
    n = 32 and 4 % at 256. Raises ConfigError unless 0 <= count <= n and n >= 1.
    """
    if not (0 <= count <= n and n >= 1):
        raise ConfigError(f"{count} of {n} runs; allowed are 0 <= count <= n and n >= 1.")
    level = _checked_confidence(confidence)
    found = stats.binomtest(count, n).proportion_ci(level, method="wilsoncc")
    method = "Wilson, continuity-corrected"
    return Interval(float(found.low), count / n, float(found.high), confidence, method)


def share_within(
    values: npt.ArrayLike, best: float | None, points: float, confidence: float = 0.95
) -> Interval:
    """Share of draws, in [0, 1], whose error is within `points` of the best one; see `share`.

    The paper's sentence "60 % of runs within 4 % of the best" (section 5.3). `best` is an error in
    percent, known from elsewhere; None takes the best of these draws. That makes the threshold
    random, which no binomial theory covers; measured with normal and lognormal errors, 32 and 64
    draws: the share of all further draws under that threshold is covered in 95.7 to 97.0 %.
    """
    array = _checked(values)
    if not points >= 0:
        raise ConfigError(f"points is {points}; allowed is a distance of 0 or more.")
    threshold = (array.min() if best is None else best) + points
    close = int((array <= threshold + 1e-9).sum())  # 31.2 + 4 counts an error of 35.2
    return share(close, array.size, confidence)


def share_difference(a: Interval, b: Interval) -> Interval:
    """a - b of two shares, each with its interval, by Newcombe's hybrid rule.

    Each bound takes the distance from the estimates to their own bounds, added in squares (method
    10 of Newcombe, Statistics in Medicine 17, 1998; 11 where, as `share`'s, they are continuity-
    corrected). For shares of the same draws, which go
    together, it is wider than need be.
    """
    d = a.estimate - b.estimate
    low = d - math.hypot(a.estimate - a.low, b.high - b.estimate)
    high = d + math.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(low, d, high, a.confidence, "Newcombe, of " + a.method)


def scaled(i: Interval, factor: float) -> Interval:
    """In another unit, such as percent; `factor` above 0."""
    return Interval(i.low * factor, i.estimate * factor, i.high * factor, i.confidence, i.method)


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
    They hold at all k at once, with at least the nominal coverage. The price is honesty about large
    k: where n draws cannot bound the best of k, a bound stands at the edge of `support`, the range
    in percent that no error can leave. Source: Lourie, Cho, He 2023, arXiv 2311.09480 (opda, which
    the tests compare with). Raises ConfigError for k outside 1..n or values outside the support.
    """
    x = np.sort(_checked(values))
    n, (floor, ceiling) = x.size, support
    counts = np.arange(1, n + 1) if ks is None else np.asarray(ks)
    whole = counts.ndim == 1 and counts.size > 0 and counts.dtype.kind in "iu"
    if not whole or counts.min() < 1 or counts.max() > n:
        raise ConfigError(f"ks is {ks}; allowed are whole numbers from 1 to the {n} draws made.")
    if not -math.inf < floor <= x[0] <= x[-1] <= ceiling < math.inf:
        raise ConfigError(
            f"Values from {x[0]:g} to {x[-1]:g} do not lie in a finite support, {support}.",
            hint="Give support=(lowest, highest) value a run can possibly have.",
        )
    low, high = _band_by_count(n, _checked_confidence(confidence), "equal_precision")
    k = counts[:, None]
    below = np.arange(n + 1)  # how many draws are at or below the error
    reached = 1 - 0.5 ** (1 / counts)  # the quantile of one draw that is the best of k's median
    edges = np.concatenate([[floor], x, [ceiling]])  # from below = 0 up to "not among the draws"

    def expected(survival: FloatArray) -> FloatArray:
        """(len(ks),) mean of the best, from its survival between edges, (len(ks), n + 1)."""
        mean: FloatArray = floor + np.sum(survival * np.diff(edges), axis=1)
        return mean

    return TuningCurve(
        ks=counts,
        mean=expected(stats.hypergeom.pmf(0, n, below, k)),  # none of `below` is in a k-subset
        mean_low=expected((1 - high) ** k),
        mean_high=expected((1 - low) ** k),
        median=x[np.searchsorted(below[1:] / n, reached - 1e-12)],
        median_low=edges[np.searchsorted(high, reached)],
        median_high=edges[np.searchsorted(low, reached)],
        n=n,
        confidence=confidence,
    )


class Reach(NamedTuple):
    """Draws one contender needs for what another reaches; None where its own draws never do.

    `low` and `high` read the same off the bands: the fewest draws that could be enough, and the
    number that is enough beyond noise. Both curves' bands hold together with at least
    1 - (alpha_a + alpha_b).
    """

    low: int | None
    draws: int | None
    high: int | None
    target: float  # the expected best error of the other after k draws


def draws_to_reach(curve_a: TuningCurve, curve_b: TuningCurve, k: int) -> Reach:
    """How many draws of A are as good as k draws of B: "C with 3 reaches what P reaches with 30".

    Compares expected bests. Only the ks of curve A are considered; nothing is extrapolated beyond
    the draws A was given. Raises ConfigError if k is not on curve B.
    """
    (at,) = np.nonzero(curve_b.ks == k)
    if at.size == 0:
        raise ConfigError(f"k is {k}; curve_b has k from {curve_b.ks.min()} to {curve_b.ks.max()}.")

    def first(best: FloatArray, target: float) -> int | None:
        enough = curve_a.ks[best <= target + 1e-9]
        return int(enough.min()) if len(enough) else None

    target = float(curve_b.mean[at[0]])
    return Reach(
        low=first(curve_a.mean_low, float(curve_b.mean_high[at[0]])),
        draws=first(curve_a.mean, target),
        high=first(curve_a.mean_high, float(curve_b.mean_low[at[0]])),
        target=target,
    )


# ---- two contenders on the same draws -----------------------------------------------------------


def paired_median_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, confidence: float = 0.95
) -> Interval:
    """Median of a_i - b_i over shared draws, in points; negative means A is better.

    Pairing takes out the spread of the draws themselves, usually most of it. The interval is that
    of `median`, with its coverage. It is not the difference of the two medians.
    Raises ConfigError unless a and b have the same draws.
    """
    return median(_differences(a, b), confidence)


class PairedTest(NamedTuple):
    """Two-sided p, the rank sum of the positive differences, and the draws that differ at all."""

    p: float
    statistic: float
    n: int
    method: str


def paired_test(a: npt.ArrayLike, b: npt.ArrayLike) -> PairedTest:
    """Is one contender better on shared draws? Wilcoxon's signed-rank test, exact also with ties.

    Null hypothesis: on every draw the two could have been swapped. Then each difference has either
    sign with chance 1/2, whatever its size, so the law of the rank sum is known exactly; ties take
    mid-ranks (scipy's own exact law assumes none). Draws without a difference, such as those on
    which both diverged, say nothing and are left out, which keeps the test exact. Beyond 400 draws:
    scipy's normal approximation.

    The law is discrete, so the level is at most 5 %, not 5 %: without ties 3.1 % at 6 draws, 3.9 %
    at 8, 4.9 % at 10, 4.3 % at 12, 4.9 to 5.0 % from 32. Fewer than 6 differing draws can never
    reach p < 0.05. Its power at a given gap: `draws_needed`. Raises ConfigError if unpaired.
    """
    differences = _differences(a, b)
    differences = differences[differences != 0]
    n = differences.size
    if n == 0:
        return PairedTest(1.0, 0.0, 0, "no draw differs")
    ranks = stats.rankdata(np.abs(differences))
    statistic = float(ranks[differences > 0].sum())
    if n > MOST_FOR_EXACT_TEST:
        p = float(stats.wilcoxon(differences, method="approx").pvalue)
        return PairedTest(p, statistic, n, "Wilcoxon signed-rank, normal approximation")
    chance = _rank_sum_law(tuple(np.sort(np.round(2 * ranks).astype(int)).tolist()))
    at = round(2 * statistic)
    p = min(1.0, 2 * min(float(chance[: at + 1].sum()), float(chance[at:].sum())))
    return PairedTest(p, statistic, n, "Wilcoxon signed-rank, exact")


@lru_cache(maxsize=16)
def _rank_sum_law(doubled_ranks: tuple[int, ...]) -> FloatArray:
    """P(sum = s) for s = 0..total when each rank counts with chance 1/2; mid-ranks come doubled."""
    law = np.zeros(sum(doubled_ranks) + 1)
    law[0] = 1.0
    for rank in doubled_ranks:
        law[rank:] = (law[rank:] + law[:-rank]) / 2
        law[:rank] /= 2
    return law


def holm(pvalues: npt.ArrayLike) -> FloatArray:
    """Holm's step-down adjusted p-values, (m,) in the order given.

    Calling those below 0.05 keeps the chance of any false call among m comparisons below 5 %,
    however they depend on each other (Holm 1979, https://www.jstor.org/stable/4615733).
    Raises ConfigError for anything outside [0, 1].
    """
    p = _checked(pvalues, "pvalues")
    if ((p < 0) | (p > 1)).any():
        raise ConfigError(f"pvalues run from {p.min():g} to {p.max():g}; allowed is 0 to 1.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return adjusted


def draws_needed(
    differences: npt.ArrayLike,
    gap: float | None = None,
    power: float = 0.8,
    level: float = 0.05,
) -> int | None:
    """Shared draws after which `paired_test` finds a gap: what would change an open verdict.

    The spread comes from the paired differences seen so far, their shape included: Noether's
    formula (JASA 82, 1987, pp. 645-647) needs only how often the sum of two differences has the
    gap's sign, so a few diverged runs do not blow it up as they would a standard deviation. Asked
    for power 0.8 it gave 0.77 to 0.87, measured, and 0.95 for a gap as large as the spread.

    `gap` is in points, the median difference worth finding; None takes what was observed, which is
    optimistic right after a study that looked promising. For m contenders under Holm plan with
    level = 0.05 / m. Draws without a difference stay without one and are paid for.
    None: no number of draws is enough, because the gap is 0 or the differences lean the other way.
    Raises ConfigError for less than two differing draws or a power or level outside (0, 1).
    """
    seen = np.round(_checked(differences, "differences"), 9)
    differing = seen[seen != 0]
    if not (0 < level < power < 1):
        raise ConfigError(f"power {power} and level {level}; allowed are 0 < level < power < 1.")
    if differing.size < 2:
        raise ConfigError(f"{differing.size} of {seen.size} draws differ; at least 2 are needed.")
    if gap is not None:
        differing = differing - np.median(differing) + gap
    i, j = np.triu_indices(differing.size, 1)
    pair_sums = differing[i] + differing[j]
    lean = abs(float((np.sign(pair_sums)).mean())) / 2  # |P(sum > 0) - 1/2|
    if lean < 1e-9 or (gap is not None and np.sign(pair_sums).sum() * gap <= 0):
        return None
    z = float(stats.norm.isf(level / 2) + stats.norm.isf(1 - power))
    fewest = math.ceil(1 - math.log2(level) + 1e-9)  # 2^(1-n), the least p of n draws, is below
    wanted: float = max(z**2 / (3 * lean**2), fewest) * seen.size / differing.size
    return math.ceil(wanted)


class Crossing(NamedTuple):
    """Two EDFs change places between the errors `low` and `high`.

    `leader`, "a" or "b", has more runs at or below an error on the side of the smaller errors.
    """

    low: float
    high: float
    leader: str


class Crossings(NamedTuple):
    """Every sign change seen, those beyond noise, and the noise: a difference of shares."""

    seen: list[Crossing]
    beyond_noise: list[Crossing]
    noise: float


def edfs_cross(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    paired: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> Crossings:
    """Where two error distributions cross, so that neither contender is better throughout.

    EDFs of finite samples cross all the time. A crossing is beyond noise when each contender leads
    by more than `noise` on its own side; then it lies anywhere between the two leads. `noise` is
    the bootstrap quantile of the greatest deviation of F_a - F_b over all errors, resampling shared
    draws together if `paired` (pairing matters: EDFs of paired runs move together).
    Measured, contenders equal on the good half of the errors and A better on the bad half: a false
    crossing in 0.2 % of studies. Spreads of 3 and 7 points around one median: found in 95 % of
    studies with 64 paired draws, 34 % with 32. Raises ConfigError if paired runs differ in number.
    """
    first, second = _checked_pair(a, b) if paired else (_checked(a, "a"), _checked(b, "b"))
    x = np.union1d(first, second)
    below_a, below_b = (np.less_equal.outer(runs, x) for runs in (first, second))  # (n, len(x))
    lead = below_a.mean(axis=0) - below_b.mean(axis=0)
    weights_a = _resample_weights(first.size, seed)
    weights_b = weights_a if paired else _resample_weights(second.size, seed + 1)
    deviation = np.abs(weights_a @ below_a - weights_b @ below_b - lead).max(axis=1)
    noise = float(np.quantile(deviation, _checked_confidence(confidence), method="higher"))
    return Crossings(_sign_changes(x, lead, 1e-12), _sign_changes(x, lead, noise), noise)


def _sign_changes(x: FloatArray, lead: FloatArray, noise: float) -> list[Crossing]:
    """Changes of sign in `lead`, a step function on (len(x),), where |lead| <= noise has none."""
    (clear,) = np.nonzero(np.abs(lead) > noise)
    return [
        # the earlier lead ends at the next step, the later one starts at its own
        Crossing(float(x[i + 1]), float(x[j]), "a" if lead[i] > 0 else "b")
        for i, j in pairwise(clear)
        if lead[i] * lead[j] < 0
    ]


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

    `b` times, draw `fraction` of the runs with replacement, take the setting `metric` of the one
    with the least error; report percentiles. pycls gives lr and weight decay as log10, which the
    interpolated percentiles depend on. It describes the good region and is no confidence interval
    for the optimum. Source: pycls `sweep/analysis.py` get_filters, paper Figures 4 and 5, top.
    Raises ConfigError if the two differ in number, or no run would be drawn.
    """
    errors, settings = _checked_pair(values, metric, ("values", "metric"))
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

    On the border means within the outer `margin` of the range, in its logarithm if `log`. For the
    paper's ranges, [centre/8, 4 centre], an eighth is a factor of 1.54. A setting without any
    effect has its best value there by luck with chance 2 * margin, one time in four: a hint to
    look, not a finding. Several equally good draws count with their median position; if all are
    equal there is no best. Raises ConfigError if a draw lies outside [low, high].
    """
    settings, values = _checked_pair(draws, errors, ("draws", "errors"))
    if not (low < high and (low > 0 or not log) and 0 < margin < 0.5):
        raise ConfigError(
            f"Range {low} to {high} (log={log}) with margin {margin}; allowed are low < high, "
            "above 0 if log, and a margin between 0 and 0.5."
        )
    slack = 1e-9 * (high - low)  # log-uniform draws can round past an end
    if settings.min() < low - slack or settings.max() > high + slack:
        raise ConfigError(
            f"Draws from {settings.min():g} to {settings.max():g} leave the range {low:g} to "
            f"{high:g} they were said to come from."
        )
    ends = np.array([low, high])
    ends, settings = (np.log(ends), np.log(settings)) if log else (ends, settings)
    best = settings[values == values.min()]
    position = float((np.median(best) - ends[0]) / (ends[1] - ends[0]))
    if np.ptp(values) == 0 or margin < position < 1 - margin:
        return Border(None, position)
    return Border("low" if position <= margin else "high", position)
