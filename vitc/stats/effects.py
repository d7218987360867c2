"""Statistics of a few runs or a few models: correlations, lines, shares of variance, power.

All intervals of 95 %. What so little data cannot bound has infinite bounds, or is None.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from vitc.errors import ConfigError
from vitc.stats.curves import RESAMPLES
from vitc.stats.proportions import Interval

FEWEST_FOR_CORRELATION = 4  # Fisher's z has the standard error 1 / sqrt(n - 3)
FEWEST_TO_BOOTSTRAP = 12
MOST_SEEDS = 100_000


def _pairs(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], ...]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigError(f"Pairs need two rows of finite numbers, not {a.shape} and {b.shape}.")
    return a, b


def correlation(x: npt.ArrayLike, y: npt.ArrayLike, seed: int = 0) -> Interval | None:
    """Pearson's r of (n,) and (n,) with its 95 % interval; None: a constant, or fewer than two.

    From 12 pairs a bootstrap of the pairs, percentiles on Fisher's scale; from 4 Fisher's z, which
    assumes normal values; below that r means nothing, and the bounds are -1 and 1.
    """
    a, b = _pairs(x, y)
    n = a.size
    if n < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if n < FEWEST_FOR_CORRELATION:
        return Interval(-1.0, r, 1.0, method=f"{n} are too few to bound a correlation")
    if n < FEWEST_TO_BOOTSTRAP:
        z, half = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12)), 1.96 / math.sqrt(n - 3)
        return Interval(math.tanh(z - half), r, math.tanh(z + half), method="Fisher's z")
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    da = a[drawn] - a[drawn].mean(axis=1, keepdims=True)
    db = b[drawn] - b[drawn].mean(axis=1, keepdims=True)
    norm = np.sqrt((da**2).sum(axis=1) * (db**2).sum(axis=1))
    rs = (da * db).sum(axis=1)[norm > 0] / norm[norm > 0]
    low, high = np.quantile(
        rs, scipy.special.ndtr(np.array([-1.96, 1.96]) * math.sqrt(n / (n - 1)))
    )
    return Interval(float(low), r, float(high), method="bootstrap of the pairs")


class Fit(NamedTuple):
    """y = slope x + intercept by least squares; `spread` is the residuals' standard deviation."""

    slope: Interval
    intercept: Interval
    r: float
    spread: float
    n: int


def fit_line(x: npt.ArrayLike, y: npt.ArrayLike) -> Fit | None:
    """The line through (n,) and (n,) as in the paper's Figure 11; None: fewer than two x.

    Intervals are Student's t for normal residuals of one size; unbounded from two points.
    """
    a, b = _pairs(x, y)
    n = a.size
    if n < 2 or np.ptp(a) == 0:
        return None
    found = scipy.stats.linregress(a, b)
    spread = math.inf
    half = np.array([math.inf, math.inf])
    if n > 2:
        residuals = b - found.slope * a - found.intercept
        spread = float(np.sqrt((residuals**2).sum() / (n - 2)))
        half = scipy.stats.t.isf(0.025, n - 2) * np.array([found.stderr, found.intercept_stderr])
    slope, intercept = float(found.slope), float(found.intercept)
    return Fit(
        Interval(slope - half[0], slope, slope + half[0], method="least squares"),
        Interval(intercept - half[1], intercept, intercept + half[1], method="least squares"),
        float(found.rvalue),
        spread,
        n,
    )


def variance_share(part: npt.ArrayLike, whole: npt.ArrayLike) -> Interval | None:
    """Variance of the runs in `part` over that in `whole`, with the F law's interval.

    The two are independent sets of two or more runs, taken as normal. None: fewer, or all runs of
    `whole` are the same.
    """
    a, b = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    if min(a.size, b.size) < 2 or b.var(ddof=1) == 0:
        return None
    ratio = float(a.var(ddof=1) / b.var(ddof=1))
    low, high = scipy.stats.f.ppf([0.025, 0.975], a.size - 1, b.size - 1)
    return Interval(ratio / float(high), ratio, ratio / float(low), method="F ratio")


def deviation(values: npt.ArrayLike) -> Interval | None:
    """Standard deviation of (n,) runs with the chi-square interval; None from fewer than two."""
    a = np.asarray(values, dtype=np.float64)
    if a.size < 2:
        return None
    sd, df = float(a.std(ddof=1)), a.size - 1
    low, high = scipy.stats.chi2.ppf([0.975, 0.025], df)
    return Interval(sd * math.sqrt(df / low), sd, sd * math.sqrt(df / high), method="chi-square")


def seeds_needed(
    sd: float, gap: float, power: float = 0.8, level: float = 0.05, paired: bool = False
) -> int | None:
    """Seeds a contender after which a t test finds a gap of `gap` points; None: over 100,000.

    `sd` is that of one contender's runs (two samples of one spread), or if `paired` that of the
    differences on shared seeds. The power is the noncentral t law's, exact for normal runs.
    """
    if not (sd >= 0 and gap > 0 and 0 < level < power < 1):
        raise ConfigError(f"seeds_needed(sd {sd}, gap {gap}, power {power}, level {level}).")
    low, high = 2, 2
    while _power(high, sd, gap, level, paired) < power:
        low, high = high + 1, high * 2
        if high > MOST_SEEDS:
            return None
    while low < high:
        middle = (low + high) // 2
        enough = _power(middle, sd, gap, level, paired) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    return high


def _power(n: int, sd: float, gap: float, level: float, paired: bool) -> float:
    if sd == 0:
        return 1.0
    df = n - 1 if paired else 2 * n - 2
    shift = gap / sd * math.sqrt(n if paired else n / 2)
    if shift > 30:  # certain, and scipy's series would not end
        return 1.0
    return float(scipy.stats.nct.sf(scipy.stats.t.isf(level / 2, df), df, shift))
