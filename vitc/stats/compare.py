"""Is one contender better than another on the same draws? By how much, and which fails more often?

`compare` answers both with one procedure, so that its interval and its p-value never disagree. The
functions below it are the older, separate ones that the report of random draws still uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import scipy

from vitc.errors import ConfigError
from vitc.stats.curves import median, resample_weights
from vitc.stats.proportions import (
    FloatArray,
    Interval,
    checked,
    checked_confidence,
    checked_pair,
    paired_differences,
)

MOST_FOR_EXACT_TEST = 400  # draws; beyond, the law's table grows and its normal limit is as good
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
    errors_a, errors_b, fa, fb = _checked_runs(a, b, failed_a, failed_b)
    if family < 1 or looks < 1 or (margin is not None and not margin > 0):
        raise ConfigError(
            f"family {family}, looks {looks}, margin {margin}; allowed are family and looks of 1 "
            "or more, and a margin above 0."
        )
    alpha = 1 - checked_confidence(level)
    nominal = look_level(alpha / family, looks)
    learnt = ~(fa | fb)
    differences = np.round(errors_a[learnt] - errors_b[learnt], 9)
    estimate, interval, p = _signed_rank(differences, nominal)
    only_a, only_b = int((fa & ~fb).sum()), int((fb & ~fa).sum())
    p_failures = 1.0
    if only_a + only_b:
        p_failures = float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)
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
        against = float(scipy.stats.binom.sf(winners - 1, sum(only), 0.5)) <= AGAINST
        return "mixed" if against else ("lower" if sign < 0 else "higher")
    if failures_differ:
        return "fails more" if only[0] > only[1] else "fails less"
    if margin is not None and -margin < interval[0] and interval[1] < margin:
        return "equivalent"
    return "open"


def _checked_runs(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    failed_a: npt.ArrayLike | None,
    failed_b: npt.ArrayLike | None,
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
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


def _signed_rank(differences: FloatArray, level: float) -> tuple[float, tuple[float, float], float]:
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
    tail = 2 * _rank_sum_cdf(tuple(range(1, n + 1)))  # two-sided p by the smaller rank sum
    below = float(((walsh < 0).sum() + (walsh <= 0).sum()) / 2)
    p = float(tail[math.ceil(min(below, walsh.size - below))])
    sizes = np.abs(differences)
    if np.unique(sizes).size < n or not sizes.all():
        p = max(p, _sign_flip_p(differences))  # the untied law alone is too bold with ties
    p = min(1.0, p)
    depth = int((tail < level).sum())
    if depth == 0:
        return estimate, (-math.inf, math.inf), p
    low, high = float(walsh[depth - 1]), float(walsh[-depth])
    if p >= level:
        low, high = min(low, 0.0), max(high, 0.0)
    elif low <= 0 <= high:  # rejected, but an end is exactly 0: halfway to the next average
        if estimate > 0:
            low = float(walsh[walsh > 0][0]) / 2
        else:
            high = float(walsh[walsh < 0][-1]) / 2
    return estimate, (low, high), p


def _sign_flip_p(differences: FloatArray) -> float:
    """Two-sided p of the rank sum under all sign flips: mid-ranks, zeros ranked but not flipped."""
    doubled = np.round(2 * scipy.stats.rankdata(np.abs(differences))).astype(int)
    flipped = np.sort(doubled[differences != 0])
    cdf = _rank_sum_cdf(tuple(flipped.tolist()))
    positive = int(doubled[differences > 0].sum())
    above = 1 - float(cdf[positive - 1]) if positive else 1.0
    return min(1.0, 2 * min(float(cdf[positive]), above))


@lru_cache(maxsize=32)
def _rank_sum_cdf(ranks: tuple[int, ...]) -> FloatArray:
    """P(sum <= s) for s = 0..total when each rank counts with chance 1/2."""
    if len(ranks) <= MOST_FOR_EXACT_TEST:
        return np.cumsum(_rank_sum_law(ranks))
    total, deviation = sum(ranks), math.sqrt(sum(r * r for r in ranks)) / 2
    cdf: FloatArray = scipy.special.ndtr((np.arange(total + 1) + 0.5 - total / 2) / deviation)
    return cdf


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


# -- the older tests -------------------------------------------------------------------------------


def paired_median_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, confidence: float = 0.95
) -> Interval:
    """Median of a_i - b_i over shared draws, in points; negative means A is better.

    Pairing takes out the spread of the draws themselves, usually most of it. The interval is that
    of `median`, with its coverage. It is not the difference of the two medians.
    Raises ConfigError unless a and b have the same draws.
    """
    return median(paired_differences(a, b), confidence)


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
    which both diverged, are left out, which keeps the test exact. Beyond 400 draws:
    scipy's normal approximation.

    Fewer than 6 differing draws can never reach p < 0.05. Its power at a given gap: `draws_needed`.
    Raises ConfigError if unpaired.
    """
    differences = paired_differences(a, b)
    differences = differences[differences != 0]
    n = differences.size
    if n == 0:
        return PairedTest(1.0, 0.0, 0, "no draw differs")
    ranks = scipy.stats.rankdata(np.abs(differences))
    statistic = float(ranks[differences > 0].sum())
    if n > MOST_FOR_EXACT_TEST:
        p = float(scipy.stats.wilcoxon(differences, method="approx").pvalue)
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
    p = checked(pvalues, "pvalues")
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

    Noether's formula (JASA 82, 1987, pp. 645-647) on the paired differences seen so far: it needs
    only how often the sum of two differences has the gap's sign, which a few diverged runs hardly
    change. Asked for power 0.8 it gave 0.77 to 0.87, and 0.95 for a gap as large as the spread.

    `gap`: the median difference worth finding, in points; None: the one observed, which is
    optimistic. For m contenders under Holm plan with level = 0.05 / m. Returns None where no number
    of draws is enough: the gap is 0, or the differences lean the other way.
    Raises ConfigError for less than two differing draws or a power or level outside (0, 1).
    """
    seen = np.round(checked(differences, "differences"), 9)
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
    z = float(scipy.stats.norm.isf(level / 2) + scipy.stats.norm.isf(1 - power))
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

    A crossing is beyond noise when each contender leads by more than `noise` on its own side; it
    lies anywhere between the two leads. `noise` is the bootstrap quantile of the greatest deviation
    of F_a - F_b over all errors, resampling shared draws together if `paired`. Of contenders that
    are equal on the good half of the errors 0.2 % falsely cross; spreads of 3 and 7 points around
    one median are found in 95 % of studies with 64 paired draws, 34 % with 32. Raises ConfigError
    if paired runs differ in number.
    """
    first, second = checked_pair(a, b) if paired else (checked(a, "a"), checked(b, "b"))
    x = np.union1d(first, second)
    below_a, below_b = (np.less_equal.outer(runs, x) for runs in (first, second))  # (n, len(x))
    lead = below_a.mean(axis=0) - below_b.mean(axis=0)
    weights_a = resample_weights(first.size, seed)
    weights_b = weights_a if paired else resample_weights(second.size, seed + 1)
    deviation = np.abs(weights_a @ below_a - weights_b @ below_b - lead).max(axis=1)
    noise = float(np.quantile(deviation, checked_confidence(confidence), method="higher"))
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
