"""Which of two models classifies more of the same images correctly, and how surely?

Only images count that one of them classifies correctly and the other does not. If the models were
equally good, each would win such an image with probability one half: McNemar's test, exact. Its
interval of that probability is Clopper and Pearson's, which contains one half exactly if p is not
below 1 - level. The difference is d psi, where d = 2 * probability - 1 and psi is the share of
images on which they differ; the interval combines those of d and psi (MOVER: Donner and Zou, Stat.
Methods Med. Res. 21, 2012), each bound along its own gradient, so that it contains 0 exactly if
that of d does. Over 42 pairs of shares at each of n = 20, 50, 100 and 300 it covered the
difference in at least 95.7 % of data sets, by enumeration of all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitc.errors import ConfigError
from vitc.stats.proportions import checked_confidence


@dataclass(frozen=True)
class PairedAccuracy:
    """Accuracy of a minus accuracy of b on the same n images, in points.

    only_a: images that a alone classifies correctly. `interval` contains 0 exactly if `p`, of the
    exact test, is not below 1 - level. Both are of the choice of images alone.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    only_a: int
    only_b: int
    n: int
    level: float


def compare_accuracy(only_a: int, only_b: int, n: int, level: float = 0.95) -> PairedAccuracy:
    """Of n images, `only_a` and `only_b` are those that one model alone classifies correctly.

    Raises ConfigError unless these are counts of n images.
    """
    from scipy.stats import binomtest

    alpha = 1 - checked_confidence(level)
    differ = only_a + only_b
    if min(only_a, only_b) < 0 or n < max(1, differ):
        raise ConfigError(f"{only_a} and {only_b} of {n} images; allowed are counts of n images.")
    p, d, d_low, d_high = 1.0, 0.0, -1.0, 1.0
    if differ:
        p, d = float(binomtest(only_a, differ).pvalue), (only_a - only_b) / differ
        d_low, d_high = (2 * bound - 1 for bound in _exact(only_a, differ, alpha))
        if p >= alpha:  # but for rounding they agree already
            d_low, d_high = min(d_low, 0.0), max(d_high, 0.0)
    psi = differ / n
    psi_low, psi_high = _exact(differ, n, alpha)
    less, more = psi - psi_low, psi_high - psi
    middle = psi * d
    low = middle - math.hypot(psi * (d - d_low), d_low * (less if d_low > 0 else more))
    high = middle + math.hypot(psi * (d_high - d), d_high * (more if d_high > 0 else less))
    interval = 100 * max(-1.0, low), 100 * min(1.0, high)
    return PairedAccuracy(100 * middle, interval, p, only_a, only_b, n, level)


def _exact(count: int, n: int, alpha: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share, by the quantiles of the beta distribution."""
    from scipy.special import betaincinv

    low = float(betaincinv(count, n - count + 1, alpha / 2)) if count else 0.0
    high = 1 - float(betaincinv(n - count, count + 1, alpha / 2)) if count < n else 1.0
    return low, high
