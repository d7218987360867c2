"""Shares of runs or images with their intervals, and the interval that every estimate is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitc.errors import ConfigError

FloatArray = npt.NDArray[np.float64]


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


# -- checks of what comes in -----------------------------------------------------------------------


def checked(values: npt.ArrayLike, name: str = "values") -> FloatArray:
    """(n,) finite floats, n >= 1. Raises ConfigError; its hint is how to count a diverged run."""
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


def checked_pair(
    a: npt.ArrayLike, b: npt.ArrayLike, names: tuple[str, str] = ("a", "b")
) -> tuple[FloatArray, FloatArray]:
    """Two (n,) arrays whose entries i belong to the same draw. Raises ConfigError."""
    first, second = checked(a, names[0]), checked(b, names[1])
    if first.size != second.size:
        raise ConfigError(
            f"{names[0]} has {first.size} runs, {names[1]} {second.size}; they must be the same.",
            hint="Give the draws that both have, in the same order.",
        )
    return first, second


def paired_differences(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    first, second = checked_pair(a, b)
    # Rounding restores the ties that binary fractions break: 31.2 - 30.0 is not 41.2 - 40.0.
    rounded: FloatArray = np.round(first - second, 9)
    return rounded


def checked_confidence(confidence: float) -> float:
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence is {confidence}; allowed is 0.5 to below 1, such as 0.95.")
    return confidence


# -- shares ----------------------------------------------------------------------------------------


def share(count: int, n: int, confidence: float = 0.95) -> Interval:
    """`count` of n runs, such as the diverged ones, as a share in [0, 1] with its interval.

    Wilson's score with continuity correction: plain Wilson covers 95 % only on average over the
    true share (84 % for small ones at n = 32), this at least 95.0 % of any share for every n tried
    from 9 to 256. Raises ConfigError unless 0 <= count <= n and n >= 1.
    """
    from scipy.stats import binomtest  # late: training needs `wilson` alone

    if not (0 <= count <= n and n >= 1):
        raise ConfigError(f"{count} of {n} runs; allowed are 0 <= count <= n and n >= 1.")
    level = checked_confidence(confidence)
    found = binomtest(count, n).proportion_ci(level, method="wilsoncc")
    method = "Wilson, continuity-corrected"
    return Interval(float(found.low), count / n, float(found.high), confidence, method)


def share_within(
    values: npt.ArrayLike, best: float | None, points: float, confidence: float = 0.95
) -> Interval:
    """Share of draws, in [0, 1], whose error is within `points` of the best one; see `share`.

    As in the paper's "60 % of runs within 4 % of the best" (section 5.3). `best` is an error in
    percent; None takes the best of these draws, a random threshold: the share of all further draws
    under it is covered in 95.7 to 97.0 % (normal and lognormal errors, 32 and 64 draws).
    """
    array = checked(values)
    if not points >= 0:
        raise ConfigError(f"points is {points}; allowed is a distance of 0 or more.")
    threshold = (array.min() if best is None else best) + points
    close = int((array <= threshold + 1e-9).sum())  # 31.2 + 4 counts an error of 35.2
    return share(close, array.size, confidence)


def share_difference(a: Interval, b: Interval) -> Interval:
    """a - b of two shares, each with its interval, by Newcombe's hybrid rule.

    Each bound takes the distance from the estimates to their own bounds, added in squares (method
    10 of Newcombe, Statistics in Medicine 17, 1998; 11 where, as `share`'s, they are continuity-
    corrected). It is wider than need be for shares of the same draws.
    """
    d = a.estimate - b.estimate
    low = d - math.hypot(a.estimate - a.low, b.high - b.estimate)
    high = d + math.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(low, d, high, a.confidence, "Newcombe, of " + a.method)


def scaled(i: Interval, factor: float) -> Interval:
    """In another unit, such as percent; `factor` above 0."""
    return Interval(i.low * factor, i.estimate * factor, i.high * factor, i.confidence, i.method)


def wilson(percent: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % interval, in percent, of an accuracy measured on n images.

    Source: E. B. Wilson, JASA 22 (1927).
    """
    if n < 1 or not math.isfinite(percent):
        return 0.0, 100.0
    p = percent / 100
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
