"""Every estimator of `vitc.stats.curves` against a closed form, brute force or simulation.

Simulated studies are seeded, so a test either always passes or always fails. Intervals are 95 %.
`-m slow` widens the grids; the coverages quoted in the docstrings come from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, special, stats

from vitc.errors import ConfigError
from vitc.stats import curves as statistics
from vitc.stats import proportions
from vitc.stats.proportions import Interval

FloatArray = npt.NDArray[np.float64]
Curve = Callable[[FloatArray], FloatArray]

CHANCE = 90.0  # the error of a diverged run with ten classes
STUDIES = 2000


@dataclass(frozen=True)
class Law:
    """What errors are drawn from: the quantile function and the distribution function."""

    ppf: Curve
    cdf: Curve

    def draw(self, rng: np.random.Generator, n: int) -> FloatArray:
        return self.ppf(rng.random(n))

    @property
    def median(self) -> float:
        return float(self.ppf(np.array(0.5)))


def diverging(share: float, good: Law) -> Law:
    """`share` of the runs at chance error, the others from `good`."""

    def ppf(u: FloatArray) -> FloatArray:
        inside = np.minimum(np.asarray(u) / (1 - share), 1 - 1e-12)
        runs = np.minimum(good.ppf(inside), CHANCE)  # no run is worse than guessing
        return np.where(np.asarray(u) < 1 - share, runs, CHANCE)

    return Law(ppf, lambda e: np.where(e < CHANCE, (1 - share) * good.cdf(e), 1.0))


NORMAL = Law(lambda u: 35 + 5 * special.ndtri(u), lambda e: special.ndtr((e - 35) / 5))
SKEWED = Law(  # lognormal, sigma 1
    lambda u: 25 + 5 * np.exp(special.ndtri(u)),
    lambda e: special.ndtr(np.log(np.maximum((e - 25) / 5, 1e-300))),
)
# A validation set of 500 images: errors in steps of 0.2 points, so ties are common.
STEPS = Law(
    lambda u: np.round(5 * NORMAL.ppf(u)) / 5,
    lambda e: NORMAL.cdf((np.floor(5 * np.asarray(e) + 1e-8) + 0.5) / 5),
)
LAWS = {
    "normal": NORMAL,
    "skewed": SKEWED,
    "steps": STEPS,
    "a tenth diverged": diverging(0.1, NORMAL),
    "a quarter diverged": diverging(0.25, NORMAL),
    "skewed, 40 % diverged": diverging(0.4, SKEWED),
}


def coverage(
    make: Callable[[np.random.Generator], Interval], truth: float, studies: int = STUDIES
) -> float:
    """The share of simulated studies whose interval holds the truth."""
    rng = np.random.default_rng(20210628)
    found = (make(rng) for _ in range(studies))
    return sum(i.low - 1e-9 <= truth <= i.high + 1e-9 for i in found) / studies


# ---- the error distribution ---------------------------------------------------------------------


def test_the_edf_counts_runs_at_or_below_an_error_and_ends_at_one() -> None:
    x, F = statistics.edf([30.0, 90.0, 25.0, 30.0])
    assert x.tolist() == [25.0, 30.0, 90.0]
    assert F.tolist() == [0.25, 0.75, 1.0]


def test_the_edf_of_the_distance_to_the_best_starts_at_zero_or_at_the_given_best() -> None:
    assert statistics.edf_delta([30.0, 90.0, 25.0])[0].tolist() == [0.0, 5.0, 65.0]
    assert statistics.edf_delta([30.0, 90.0, 25.0], best=24.0)[0].tolist() == [1.0, 6.0, 66.0]


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]], 3.0])
def test_values_that_are_missing_or_not_one_number_a_run_are_refused(bad: npt.ArrayLike) -> None:
    with pytest.raises(ConfigError):
        statistics.edf(bad)


def test_a_diverged_run_given_as_nan_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        statistics.median([30.0, math.nan])
    assert "chance error" in str(caught.value.hint)


def test_the_exact_chance_of_staying_in_a_band_is_kolmogorovs_for_a_kolmogorov_band() -> None:
    for n, d in [(1, 0.7), (5, 0.3), (32, 0.2), (100, 0.09)]:
        i = np.arange(1, n + 1)
        low, high = np.clip(i / n - d, 0, 1), np.clip((i - 1) / n + d, 0, 1)
        assert statistics._chance_inside(low, high) == pytest.approx(stats.kstwo.cdf(d, n))


def test_dkw_is_massarts_bound_and_never_narrower_than_the_exact_quantile() -> None:
    band = statistics.edf_band(np.arange(64.0), kind="dkw")
    margin = math.sqrt(math.log(2 / 0.05) / 128)
    assert band.high[31] - band.F[31] == pytest.approx(margin)
    assert band.high_before == pytest.approx(margin)
    assert stats.kstwo.ppf(0.95, 64) < margin


def band_at(band: statistics.Band, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The two bounds on F at any errors: steps that hold up to the next x."""
    step = np.searchsorted(band.x, errors, side="right")
    low, high = np.append(0.0, band.low), np.append(band.high_before, band.high)
    return low[step], high[step]


def band_holds(kind: statistics.BandKind, law: Law, n: int, studies: int = STUDIES) -> float:
    """Share of studies in which the band holds everywhere: at each value and just before it."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(studies):
        band = statistics.edf_band(law.draw(rng, n), kind=kind)
        errors = np.concatenate([band.x, band.x - 1e-7])
        low, high = band_at(band, errors)
        held += bool(((low <= law.cdf(errors)) & (law.cdf(errors) <= high)).all())
    return held / studies


@pytest.mark.parametrize(
    "name", [pytest.param("normal", marks=pytest.mark.slow), "steps", "a quarter diverged"]
)
def test_simultaneous_bands_cover_at_least_the_nominal_share(name: str) -> None:
    assert band_holds("dkw", LAWS[name], n=32) >= 0.95
    # This one is exact for continuous errors, so it may fall short by the noise of 2,000 studies.
    assert band_holds("equal_precision", LAWS[name], n=32) >= 0.95 - 2.6 * math.sqrt(0.0475 / 2000)


def test_an_unknown_band_is_refused() -> None:
    with pytest.raises(ConfigError, match="Unknown band"):
        statistics.edf_band([1.0, 2.0], kind="wald")  # type: ignore[arg-type]


# ---- one number a contender ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("law", [*LAWS.values(), diverging(0.5, NORMAL), diverging(0.6, NORMAL)])
@pytest.mark.parametrize("n", [9, 32])
def test_the_median_is_covered_in_95_percent_of_studies_whatever_the_law(law: Law, n: int) -> None:
    """Also where the law has a gap at its median: interpolated ranks covered 87 % there."""
    covered = coverage(lambda g: statistics.median(law.draw(g, n)), law.median)
    assert covered >= 0.95 - 2.6 * math.sqrt(0.0475 / STUDIES)


def test_the_median_has_no_bounds_from_five_runs_and_the_extremes_from_six() -> None:
    five = statistics.median([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (five.low, five.estimate, five.high) == (-math.inf, 3.0, math.inf)
    six = statistics.median(np.arange(6.0))
    assert (six.low, six.high) == (0, 5)


def test_the_bootstrap_agrees_with_scipys_but_for_the_widening() -> None:
    values = SKEWED.draw(np.random.default_rng(5), 300)
    ours = statistics.interval(values, "mean")
    z = stats.norm.ppf(0.975) * math.sqrt(300 / 299)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=2 * stats.norm.cdf(z) - 1,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)


def test_the_bootstrap_of_a_normal_statistic_is_the_normal_interval_widened() -> None:
    replicates = special.ndtri((np.arange(100_000) + 0.5) / 100_000)
    low, high = statistics._bca_bounds(replicates, 0.0, np.linspace(-1, 1, 12), 0.95)
    assert (low, high) == pytest.approx(
        (-1.96 * math.sqrt(12 / 11), 1.96 * math.sqrt(12 / 11)), 1e-3
    )


def test_one_interval_function_serves_median_and_mean() -> None:
    values = NORMAL.draw(np.random.default_rng(1), 64)
    assert statistics.interval(values) == statistics.median(values)
    mean = statistics.interval(values, "mean")
    assert statistics.interval(values, "mean", seed=1) != mean
    wide = statistics.interval(values, "mean", confidence=0.99)
    assert wide.low < mean.low < mean.estimate < mean.high < wide.high


def test_few_runs_get_students_t_for_a_mean() -> None:
    few = statistics.interval([30.0, 31.0, 33.0], "mean")
    expected = stats.ttest_1samp([30.0, 31.0, 33.0], 0).confidence_interval(0.95)
    assert (few.low, few.high) == pytest.approx((expected.low, expected.high))
    assert statistics.interval([30.0], "mean").high == math.inf


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_runs_all_alike_give_an_interval_without_width_and_no_warning(
    statistic: Literal["median", "mean"],
) -> None:
    found = statistics.interval([90.0] * 20, statistic)
    assert found.low == pytest.approx(found.estimate) == found.high


@pytest.mark.parametrize("statistic", [min, np.max, np.std, "min", "best"])
def test_no_interval_is_put_on_a_minimum(statistic: object) -> None:
    values = NORMAL.draw(np.random.default_rng(1), 64)
    with pytest.raises(ConfigError) as caught:
        statistics.interval(values, statistic)  # type: ignore[arg-type]
    assert "tuning_curve" in str(caught.value.hint)


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0, 95.0, math.nan])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigError):
        statistics.median([1.0, 2.0], confidence)


@pytest.mark.parametrize("n", [9, 16, 32, 64, 128])
def test_shares_are_covered_in_at_least_95_percent_whatever_the_true_share(n: int) -> None:
    found = [proportions.share(k, n) for k in range(n + 1)]
    low, high = np.array([i.low for i in found]), np.array([i.high for i in found])
    p = np.linspace(0.001, 0.999, 999)[:, None]
    covered = stats.binom.pmf(np.arange(n + 1), n, p) * ((low <= p) & (p <= high))
    assert covered.sum(axis=1).min() >= 0.95  # exact: a sum over all outcomes, no simulation
    with pytest.raises(ConfigError):
        proportions.share(3, 2)


# ---- the best of k draws ------------------------------------------------------------------------


def test_the_expected_best_is_the_mean_over_all_subsets() -> None:
    values = np.array([31.0, 90.0, 27.5, 90.0, 40.0, 33.0, 28.0])
    curve = statistics.tuning_curve(values)
    for k, mean in zip(curve.ks, curve.mean, strict=True):
        assert mean == pytest.approx(np.mean([min(c) for c in itertools.combinations(values, k)]))
    assert curve.median[0] == np.sort(values)[3]  # the lower median of seven
    assert curve.mean[-1] == curve.median[-1] == 27.5


def test_tuning_curve_bands_hold_at_every_k_at_once_for_mean_and_median() -> None:
    rng, ks = np.random.default_rng(8), np.arange(1, 33)
    for law in (NORMAL, diverging(0.25, NORMAL)):
        median = law.ppf(1 - 0.5 ** (1 / ks))
        e = np.linspace(0, 100, 20_001)
        mean = integrate.trapezoid((1 - law.cdf(e)) ** ks[:, None], e, axis=1)
        held = 0
        for _ in range(1000):
            curve = statistics.tuning_curve(law.draw(rng, 32))
            held += bool(
                (curve.median_low <= median).all()
                and (median <= curve.median_high).all()
                and (curve.mean_low <= mean).all()
                and (mean <= curve.mean_high + 1e-3).all()
            )
        assert held / 1000 >= 0.95 - 2.6 * math.sqrt(0.0475 / 1000)


def test_the_best_of_all_draws_has_no_lower_bound_but_the_support() -> None:
    values = NORMAL.draw(np.random.default_rng(1), 64)
    curve = statistics.tuning_curve(values, ks=[1, 64])
    assert curve.median_low[0] > values.min()
    assert curve.median_low[1] == 0.0
    assert curve.median_high[1] < np.median(values)


def test_a_tuning_curve_refuses_ks_and_values_it_cannot_answer_for() -> None:
    for ks in ([0], [4], [], [1.5], [[1]]):
        with pytest.raises(ConfigError):
            statistics.tuning_curve([1.0, 2.0, 3.0], ks=ks)  # type: ignore[arg-type]
    for support in ((2.0, 100.0), (0.0, 2.5), (0.0, math.inf), (math.nan, 100.0)):
        with pytest.raises(ConfigError):
            statistics.tuning_curve([1.0, 2.0, 3.0], support=support)


def test_tuning_curves_and_bands_are_those_of_opda() -> None:
    opda = pytest.importorskip(
        "opda.nonparametric", reason="opda is missing: tuning curves were NOT compared with it"
    )
    values = np.sort(NORMAL.draw(np.random.default_rng(2), 13))
    curve = statistics.tuning_curve(values)
    theirs = opda.EmpiricalDistribution(values, a=0.0, b=100.0)
    assert curve.mean == pytest.approx(theirs.u_tuning_curve(curve.ks, minimize=True))
    assert (curve.median == theirs.quantile_tuning_curve(curve.ks, minimize=True)).all()
    for kind, method in [("equal_precision", "ld_equal_tailed"), ("dkw", "dkw")]:
        low, _, high = opda.EmpiricalDistribution.confidence_bands(
            values, 0.95, 0.0, 100.0, generator=np.random.default_rng(0), method=method, n_jobs=1
        )
        ours = statistics.edf_band(values, kind=kind)  # type: ignore[arg-type]
        assert ours.low == pytest.approx(low.cdf(values), abs=2e-3)  # opda simulates the level
        assert ours.high == pytest.approx(high.cdf(values), abs=2e-3)
        if kind == "equal_precision":
            args = {"minimize": True}
            assert curve.mean_low == pytest.approx(
                high.average_tuning_curve(curve.ks, **args), 0.01
            )
            assert curve.mean_high == pytest.approx(
                low.average_tuning_curve(curve.ks, **args), 0.01
            )
            assert (curve.median_low == high.quantile_tuning_curve(curve.ks, **args)).all()
            assert (curve.median_high == low.quantile_tuning_curve(curve.ks, **args)).all()


# ---- the hyper-parameters of the good runs ------------------------------------------------------


def test_best_range_follows_the_exact_law_of_the_best_of_a_resample() -> None:
    # 16 of 64 with replacement: P(rank of the best > r) = (1 - r/64)^16.
    ranks = np.arange(1.0, 65.0)
    found = statistics.best_range(values=ranks, metric=ranks, b=20_000)
    above = (1 - ranks / 64) ** 16
    expected = [ranks[np.argmax(above <= 1 - q)] for q in (0.025, 0.5, 0.975)]
    assert np.abs(np.array(found) - expected).max() <= 1
    assert found.low == 1.0
    assert found == statistics.best_range(ranks, ranks, b=20_000)


def test_best_range_is_narrow_for_a_setting_that_matters_and_wide_for_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    lr, decay = rng.uniform(-4, -2, 64), rng.uniform(-2, 0, 64)
    errors = 30 + 20 * (lr + 3) ** 2
    matters, idle = statistics.best_range(errors, lr), statistics.best_range(errors, decay)
    assert matters.low <= -3 <= matters.high
    assert matters.high - matters.low < 0.5 < 1 < idle.high - idle.low
    for bad in ({"fraction": 0.01}, {"fraction": 1.5}, {"b": 0}):
        with pytest.raises(ConfigError):
            statistics.best_range(errors, lr, **bad)


def test_a_best_value_on_the_border_of_its_range_is_said_with_the_side() -> None:
    lr = np.array([1e-4, 1e-3, 1e-2, 9e-2])
    assert statistics.on_border(lr, [9, 8, 7, 6], 1e-4, 1e-1).side == "high"
    assert statistics.on_border(lr, [6, 7, 8, 9], 1e-4, 1e-1) == statistics.Border("low", 0.0)
    assert statistics.on_border(lr, [8, 6, 7, 9], 1e-4, 1e-1).side is None
    # 1e-2 is in the middle of a logarithmic range and near the bottom of a linear one.
    assert statistics.on_border(lr, [8, 9, 6, 7], 1e-4, 1e-1, log=True).side is None
    assert statistics.on_border(lr, [8, 9, 6, 7], 1e-4, 1e-1, log=False).side == "low"
    assert statistics.on_border(lr, [90, 90, 90, 90], 1e-4, 1e-1).side is None
    assert statistics.on_border([-1.0, 0.0], [1, 2], -1.0, 1.0, log=False).side == "low"


def test_a_setting_without_effect_lies_on_the_border_one_time_in_four() -> None:
    rng = np.random.default_rng(0)
    sides = [
        statistics.on_border(rng.random(16), rng.random(16), 0, 1, log=False).side
        for _ in range(STUDIES)
    ]
    assert np.mean([side is not None for side in sides]) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("low", "high", "log", "margin"),
    [(1.0, 1.0, True, 0.1), (0.0, 1.0, True, 0.1), (0.5, 2.0, True, 0.5), (0.5, 0.9, True, 0.1)],
)
def test_an_impossible_range_is_refused(low: float, high: float, log: bool, margin: float) -> None:
    with pytest.raises(ConfigError):
        statistics.on_border([0.6, 1.0], [30.0, 31.0], low, high, log=log, margin=margin)


# ---- the wide grids behind the numbers in the docstrings ----------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dkw", "equal_precision"])
@pytest.mark.parametrize("n", [8, 32, 64, 128])
def test_wide_band_coverage(kind: statistics.BandKind, n: int) -> None:
    for law in (NORMAL, STEPS, diverging(0.25, SKEWED)):
        assert band_holds(kind, law, n, studies=8000) >= 0.95 - 2.6 * math.sqrt(0.0475 / 8000)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [stats.qmc.Sobol, stats.qmc.Halton])
@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_quasi_random_draws_make_intervals_too_wide_not_too_narrow(
    sampler: type[stats.qmc.QMCEngine], noise: float
) -> None:
    rng, held = np.random.default_rng(14), 0

    def errors(u: FloatArray) -> FloatArray:
        smooth = 25 + 25 * (u[:, 0] - 0.6) ** 2 + 30 * (u[:, 1] - 0.4) ** 2
        return smooth + noise * rng.normal(size=len(u))

    truth = np.median(errors(rng.random((2_000_000, 2))))
    for _ in range(500):
        found = statistics.median(errors(sampler(2, scramble=True, rng=rng).random(64)))
        held += bool(found.low <= truth <= found.high)
    assert held / 500 >= 0.97
