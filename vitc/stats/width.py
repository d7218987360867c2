"""Over how many octaves of a setting does a contender train nearly as well as at its best?

A threshold above the best draw is not robust: one lucky minimum moves it, and identical contenders
then differ in 7 to 30 % of studies. Here both the threshold and what is near it come from a smooth
of the error over the logarithm of the setting, and draws are resampled jointly: 0.5 to 4.3 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vitc.errors import ConfigError
from vitc.stats.compare import look_level
from vitc.stats.curves import RESAMPLES, resample_weights
from vitc.stats.proportions import FloatArray, checked_confidence

NEAR = 4.0  # points: the paper's "within 4 % of the best", section 5.3
CAP = 12.0  # points above the 10 % quantile: how bad a bad run is does not matter beyond
GRID = 81  # points over the range
BANDWIDTH = 0.12  # of the range at 32 draws: 0.6 octaves of 5
FEWEST = 12  # draws below which a smooth shows nothing


@dataclass(frozen=True)
class Widths:
    """Octaves near the best of two contenders, and their difference a - b over `n` shared draws.

    As in `Comparison`, the interval contains 0 exactly if p is not below 1 - level.
    """

    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    p: float
    n: int
    span: float
    """Octaves that were drawn from: a width as large as that is a lower bound."""

    @property
    def verdict(self) -> Literal["wider", "narrower", "open"]:
        low, high = self.interval
        return "wider" if low > 0 else "narrower" if high < 0 else "open"


class Surface(NamedTuple):
    """The runs of a contender: (n,) values of the setting, errors in points, whether each failed to
    learn; and the range that the setting was drawn from."""

    settings: npt.ArrayLike
    errors: npt.ArrayLike
    failed: npt.ArrayLike
    low: float
    high: float


def compare_widths(
    a: Surface, b: Surface, level: float = 0.95, family: int = 1, looks: int = 1
) -> Widths | None:
    """The widths of two contenders on the same draws; None: too few draws, or one never learnt.

    `family` and `looks` as in `compare`. Raises ConfigError.
    """
    n = np.size(a.settings)
    if any(np.shape(x) != (n,) for x in (*a[:3], *b[:3])) or min(a.low, b.low) <= 0:
        raise ConfigError(
            f"Settings, errors and failures have shapes {[np.shape(x) for x in (*a[:3], *b[:3])]}; "
            "they must be one number a draw of the same draws, from ranges above 0."
        )
    if n < FEWEST or np.all(a.failed) or np.all(b.failed):
        return None
    ours, theirs = _widths(a), _widths(b)
    alpha = 1 - checked_confidence(level)
    nominal = look_level(alpha / family, looks)
    resampled = np.sort(ours[1:] - theirs[1:])
    below, above = int((resampled <= 0).sum()), int((resampled >= 0).sum())
    p = 2 * (1 + min(below, above)) / (RESAMPLES + 1)
    rank = int(nominal * (RESAMPLES + 1) / 2)
    ends = (float(resampled[rank - 1]), float(resampled[-rank])) if rank else (-np.inf, np.inf)
    return Widths(
        a=float(ours[0]),
        b=float(theirs[0]),
        difference=float(ours[0] - theirs[0]),
        interval=ends,
        p=min(1.0, p * alpha / nominal),
        n=n,
        span=float(np.log2([a.high / a.low, b.high / b.low]).min()),
    )


def _widths(s: Surface) -> FloatArray:
    """(1 + RESAMPLES,): the octaves of these draws, then those of every resample of them."""
    x, n = np.log2(np.asarray(s.settings, dtype=np.float64)), np.size(s.settings)
    errors = np.where(s.failed, np.inf, np.asarray(s.errors, dtype=np.float64))
    good = float(np.quantile(errors, 0.1, method="lower"))
    capped = np.minimum(errors, (good if np.isfinite(good) else errors.min()) + CAP)
    low, high = np.log2([s.low, s.high])
    grid = np.linspace(low, high, GRID)
    bandwidth = BANDWIDTH * (high - low) * (n / 32) ** -0.2
    kernel = np.exp(-0.5 * ((x[:, None] - grid) / bandwidth) ** 2)
    weights = np.concatenate([np.full((1, n), 1 / n), resample_weights(n, 0)])
    smooth = (weights * capped) @ kernel / np.maximum(weights @ kernel, 1e-300)
    near = smooth <= smooth.min(axis=1, keepdims=True) + NEAR
    widths: FloatArray = near.mean(axis=1) * (high - low)
    return widths
