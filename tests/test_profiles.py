"""Time to a target, and the cost of one setting for several tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from vitc import study
from vitc.errors import ConfigError
from vitc.stats.profiles import _best_of
from vitc.stats.proportions import FloatArray, share

CURVES = [
    ([1, 2, 3], [60.0, 40.0, 30.0]),
    ([1, 2, 3], [35.0, 45.0, 50.0]),  # there at first, whatever comes later
    ([1], [70.0]),  # diverged
    ([], []),
]


def test_the_share_of_draws_that_have_reached_a_target_grows_with_time() -> None:
    found = study.time_to_target(CURVES, 40.0)
    assert found.times == (1, 2, 3)
    assert [s.estimate for s in found.shares] == [0.25, 0.5, 0.5]
    assert found.shares[1] == share(2, 4)
    assert study.time_to_target(CURVES, 29.0).shares[-1].estimate == 0
    assert study.time_to_target(CURVES, 40.0, [2.5]).shares[0].estimate == 0.5


@pytest.mark.parametrize(
    ("curves", "target"), [([], 40.0), (CURVES, math.nan), ([([1, 2], [30.0])], 40.0)]
)
def test_what_is_no_profile_is_refused(curves: list, target: float) -> None:
    with pytest.raises(ConfigError, match="finite target"):
        study.time_to_target(curves, target)


def test_the_best_of_k_is_the_mean_over_all_subsets() -> None:
    values = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    for k in (1, 2, 4):
        each = [min(c) for c in itertools.combinations(values, k)]
        assert _best_of(values, k) == pytest.approx(np.mean(each))


def test_one_setting_that_is_best_everywhere_loses_nothing() -> None:
    draws = np.arange(16.0)
    found = study.sensitivity([30 + draws, 50 + 2 * draws])
    assert (found.low, found.estimate) == (0, 0)
    apart = study.sensitivity([30 + draws, 30 + draws[::-1]], best_of=8)
    assert apart.estimate > 3
    assert apart.low > 0


@pytest.mark.parametrize(
    ("errors", "best_of", "text"),
    [
        (np.ones((1, 20)), None, "2 tasks"),
        (np.ones((2, 7)), None, "8 draws"),
        (np.full((2, 20), np.nan), None, "not finite"),
        (np.ones((2, 20)), 11, "half of the 20"),
    ],
)
def test_too_few_tasks_or_draws_are_refused(
    errors: FloatArray, best_of: int | None, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        study.sensitivity(errors, best_of)


Tasks = Callable[[np.random.Generator, int], FloatArray]


def tasks(*centres: float) -> Tasks:
    """Errors of draws over one setting with its optimum elsewhere in each task; the largest values
    fail."""

    def make(rng: np.random.Generator, n: int) -> FloatArray:
        x = rng.uniform(-1, 1, n)
        errors = 30 + 15 * (x - np.array(centres)[:, None]) ** 2
        found: FloatArray = np.where(x > 0.85, 90.0, errors + rng.normal(0, 0.8, errors.shape))
        return found

    return make


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, pytest.param(24, marks=pytest.mark.slow), 64])
@pytest.mark.parametrize("make", [tasks(0, 0), tasks(-0.4, 0.4), tasks(-0.5, 0, 0.5)])
def test_the_interval_of_a_sensitivity_covers(make: Tasks, n: int) -> None:
    rng, k, studies = np.random.default_rng(5), n // 4, 150
    one = [make(rng, k) for _ in range(20000)]
    truth = np.mean([t.mean(axis=0).min() - t.min(axis=1).mean() for t in one])
    found = [study.sensitivity(make(rng, n)) for _ in range(studies)]
    covered = np.mean([f.low <= truth <= f.high for f in found])
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / studies)
