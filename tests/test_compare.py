"""`vitc.study.compare`: numbers worked out with an independent program, scipy, and duality."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vitc.errors import ConfigError
from vitc.stats.compare import look_level
from vitc.study import compare

A = [34.1, 36.2, 35.5, 33.9, 40.2, 37.7, 36.1, 38.4, 35.0, 41.3, 39.9, 36.6]
B = [36.0, 37.9, 35.1, 36.4, 41.7, 40.0, 37.9, 38.1, 37.2, 44.0, 42.1, 38.2]
LIKE_A = [a + 0.1 * (-1) ** i for i, a in enumerate(A)]


def runs(*failed: int) -> list[bool]:
    return [i in failed for i in range(len(A))]


@pytest.mark.parametrize(
    ("b", "failed", "options", "difference", "interval", "p", "verdict"),
    [
        (B, (), {}, -1.875, (-2.25, -0.9), 0.00244140625, "lower"),
        (B, (), {"family": 5}, -1.875, (-2.35, -0.65), 0.01220703125, "lower"),
        (B, (), {"looks": 4}, -1.875, (-2.35, -0.7), 0.00762074172, "lower"),
        (B, (), {"level": 0.99}, -1.875, (-2.35, -0.65), 0.00244140625, "lower"),
        (B, (0, 1, 2, 3), {}, -1.9, (-2.45, -0.75), 0.015625, "mixed"),
        (B, (9, 10, 11), {}, -1.75, (-2.2, -0.65), 0.01953125, "mixed"),
        (LIKE_A, (0, 1, 2, 3, 4, 5), {}, 0.0, (-0.1, 0.1), 1.0, "fails more"),
        (LIKE_A, (), {"margin": 1.0}, 0.0, (-0.1, 0.1), 1.0, "equivalent"),
        (LIKE_A, (), {}, 0.0, (-0.1, 0.1), 1.0, "open"),
        (A, (), {}, 0.0, (0.0, 0.0), 1.0, "open"),
    ],
)
def test_differences_intervals_and_verdicts_are_those_of_the_reference(
    b: list[float],
    failed: tuple[int, ...],
    options: dict[str, Any],
    difference: float,
    interval: tuple[float, float],
    p: float,
    verdict: str,
) -> None:
    found = compare(A, b, runs(*failed), runs(), **options)
    assert found.difference == pytest.approx(difference)
    assert found.interval == pytest.approx(interval)
    assert found.p == pytest.approx(p)
    assert found.verdict == verdict
    assert found.n == len(A) - len(failed)
    other = compare(b, A, runs(), runs(*failed), **options)
    assert other.difference == pytest.approx(-difference)
    assert other.interval == pytest.approx((-interval[1], -interval[0]))
    swapped = {"lower": "higher", "fails more": "fails less"}
    assert other.verdict == swapped.get(verdict, verdict)


def test_failures_are_an_endpoint_of_their_own() -> None:
    found = compare(A, B, runs(0, 1, 2, 3), runs(3))
    assert found.failures == {"a": 4, "b": 1, "only_a": 3, "only_b": 0, "p": 0.25}
    gone = [math.nan if failed else a for a, failed in zip(A, runs(0, 1, 2, 3), strict=True)]
    assert compare(gone, B, failed_b=runs(3)) == found


def test_five_draws_bound_nothing_and_no_draw_compares_nothing() -> None:
    few = compare(A[:5], B[:5])
    assert (few.interval, few.verdict) == ((-math.inf, math.inf), "open")
    none = compare(A, B, runs(*range(12)))
    assert math.isnan(none.difference)
    assert (none.n, none.p, none.verdict) == (0, 1.0, "fails more")


@pytest.mark.parametrize("n", [6, 9, 15, 40])
def test_p_is_scipys_exact_one_without_ties(n: int) -> None:
    a, b = np.random.default_rng(n).normal(30, 2, (2, n))
    expected = stats.wilcoxon(np.round(a - b, 9), method="exact").pvalue
    assert compare(a, b).p == pytest.approx(expected, abs=1e-12)


def test_with_ties_p_is_no_smaller_than_that_of_all_sign_flips() -> None:
    differences = np.array([-3, -3, -2, -2, -2, -1, -1, 0, 1, 1.0])
    sizes = np.abs(differences)
    ranks = stats.rankdata(sizes)
    signs = np.array(np.meshgrid(*[[0, 1] if s else [0.5] for s in sizes])).reshape(len(sizes), -1)
    sums, observed = ranks @ signs, ranks @ (0.5 * (1 + np.sign(differences)))
    exact = 2 * min((sums <= observed + 1e-9).mean(), (sums >= observed - 1e-9).mean())
    assert compare(differences, np.zeros(10)).p >= exact - 1e-12


@pytest.mark.parametrize("step", [0.0, 0.25, 1.0])
def test_the_interval_excludes_zero_exactly_if_p_rejects(step: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        n = int(rng.integers(1, 30))
        a, b = rng.normal(30, 2, n), rng.normal(30.8, 2, n)
        if step:
            a, b = np.round(a / step) * step, np.round(b / step) * step
        family, looks = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        found = compare(a, b, rng.random(n) < 0.1, rng.random(n) < 0.1, 0.9, family, looks)
        low, high = found.interval
        assert (found.p < 0.1) == (low > 0 or high < 0)


def test_more_draws_than_the_exact_table_holds_join_it() -> None:
    rng = np.random.default_rng(2)
    b = rng.normal(30, 2, 401)
    a = b + rng.normal(0.1, 1, 401)
    exact, limit = compare(a[:400], b[:400]), compare(a, b)
    assert limit.p == pytest.approx(exact.p, rel=0.3)
    assert limit.interval == pytest.approx(exact.interval, abs=0.02)


def test_the_level_of_a_look_keeps_the_level_of_all() -> None:
    known = {1: 0.05, 2: 0.029386, 3: 0.020790, 4: 0.016018, 5: 0.012984, 6: 0.010889}
    for looks, level in known.items():
        assert look_level(0.05, looks) == pytest.approx(level, abs=1e-6)
    assert look_level(0.01, 4) == pytest.approx(0.0029373, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((A, B[:5]), {}),
        ((A, B, runs()[:3]), {}),
        (([[1.0]], [[2.0]]), {}),
        (([math.nan, 1.0], [1.0, 2.0], [False, False]), {}),
        ((A, B), {"level": 1.5}),
        ((A, B), {"family": 0}),
        ((A, B), {"looks": 0}),
        ((A, B), {"margin": -1.0}),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        compare(*arguments, **options)
