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


def wilson(percent: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval, in percent, of an accuracy measured on n images.

    Source: E. B. Wilson, JASA 22 (1927).
    """
    if n < 1 or not math.isfinite(percent):
        return 0.0, 100.0
    p, z = percent / 100, 1.959963984540054  # the normal quantile of 97.5 %
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def learning_line(classes: int, images: int = 0, largest_share: float = 0.0) -> float:
    """The error, in percent, above which a run failed to learn: its answers are near chance.

    `images` of the split that the error is on and the share of its largest class, which constant
    answers reach; 0: not known. A binomial test against chance is not enough, for the answers of
    one network depend on each other: 12 to 22 % of untrained networks pass it at p < 0.001. So the
    accuracy must also be twice chance, or a tenth of the way from chance to perfect: above 81 %
    error for ten classes. Of untrained networks 0.8 to 2.2 % are then called trained, of constant
    answers none.
    """
    from scipy.stats import binom

    chance = max(1 / classes, largest_share)
    least = min(2 * chance, chance + 0.1 * (1 - chance))
    if images:
        least = max(least, float(binom.isf(0.001, images, chance) + 1) / images)
    return 100 * (1 - min(least, 1.0))
