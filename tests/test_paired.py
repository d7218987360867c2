"""Two models on the same images: the interval and McNemar's p are one procedure, and cover."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy.stats import binom, multinomial

from vitc.errors import ConfigError
from vitc.stats.paired import compare_accuracy


def exact_p(only_a: int, only_b: int) -> float:
    """McNemar's exact p: twice the smaller tail of a fair coin."""
    return min(1.0, 2 * float(binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_interval_contains_zero_exactly_if_p_is_not_below_the_level(level: float) -> None:
    for a, b in itertools.product(range(0, 31, 5), range(31)):
        found = compare_accuracy(a, b, 70, level)
        low, high = found.interval
        assert found.p == pytest.approx(exact_p(a, b))
        assert (low <= 0 <= high) == (found.p >= 1 - level)
        assert -100 <= low <= found.difference <= high <= 100
        assert found.difference == pytest.approx(100 * (a - b) / 70)
        mirrored = compare_accuracy(b, a, 70, level)
        assert mirrored.interval == pytest.approx((-high, -low))


@pytest.mark.parametrize(("n", "wins"), [(20, (0.7, 0.25)), (40, (0.1, 0.1)), (40, (0.2, 0.0))])
def test_the_interval_covers_the_difference(n: int, wins: tuple[float, float]) -> None:
    true, missed = 100 * (wins[0] - wins[1]), 0.0
    law = multinomial(n, [*wins, 1 - sum(wins)])
    for a in range(n + 1):
        for b in range(n + 1 - a):
            weight = float(law.pmf([a, b, n - a - b]))
            if weight > 1e-7:
                low, high = compare_accuracy(a, b, n).interval
                missed += weight * (not low - 1e-9 <= true <= high + 1e-9)
    assert missed <= 0.05


def test_of_many_images_it_is_the_usual_interval() -> None:
    found = compare_accuracy(1000, 800, 10_000)
    half = 1.96 * math.sqrt(1800 - 200**2 / 10_000) / 100
    assert found.interval == pytest.approx((2 - half, 2 + half), abs=0.05)


def test_models_that_never_differ_may_still_be_different() -> None:
    found = compare_accuracy(0, 0, 100)
    assert (found.difference, found.p) == (0.0, 1.0)
    assert found.interval == pytest.approx((-3.62, 3.62), abs=0.01)  # no difference in 100


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_are_none_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="counts of n images"):
        compare_accuracy(*counts)
