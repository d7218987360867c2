"""What verdicts are worth, by simulated studies: false calls, wrong sides, coverage, power.

Studies are seeded, so a test always passes or always fails. Bounds are those of docs/inference.md
with 3 standard errors of the simulated share; `-m slow` repeats every rate with more studies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vitc.errors import ConfigError
from vitc.stats import effects
from vitc.stats.compare import (
    Comparison,
    compare,
    compare_means,
    fewest_draws,
    look_level,
    smallest_gap,
)
from vitc.stats.curves import interval
from vitc.stats.proportions import learning_line
from vitc.stats.width import Surface, Widths, compare_widths
from vitc.study.bench import Bench, Timing
from vitc.study.contenders import contenders_of, reference_of
from vitc.study.contrasts import contrasts, power_lines, shown_width
from vitc.study.design import Plan
from vitc.study.measures.base import length_points, measure_plan
from vitc.study.measures.hparams import hparams_plan
from vitc.study.measures.seeded import Cells
from vitc.study.results import Result

FloatArray = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], FloatArray]

LAWS: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
    "two clumps": lambda rng, shape: 6.0 * (rng.random(shape) < 0.3) + rng.normal(0, 0.5, shape),
    "grid": lambda rng, shape: np.round(rng.normal(size=shape) * 2.56) / 2.56,
}
SIZES = [
    pytest.param(150, id="fast"),
    pytest.param(4000, id="wide", marks=pytest.mark.slow),
]
studies_of = pytest.mark.parametrize("studies", SIZES)
all_laws = pytest.mark.parametrize("law", LAWS)


def slack(share: float, studies: int) -> float:
    return 3.0 * math.sqrt(share * (1 - share) / studies)


def rate(made: Callable[[np.random.Generator], bool], studies: int, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    return sum(made(rng) for _ in range(studies)) / studies


def two(rng: np.random.Generator, law: str, n: int, failing: float, gap: float = 0.0) -> Any:
    """Two contenders on n draws, the first with errors `gap` higher: arguments of `compare`."""
    a, b = LAWS[law](rng, (2, n))
    gone = rng.random((2, n)) < failing
    return a + gap, b, *gone


def decided(c: Comparison) -> bool:
    return c.verdict in ("lower", "higher")


# -- one comparison --------------------------------------------------------------------------------


@studies_of
@all_laws
@pytest.mark.parametrize(("n", "failing"), [(8, 0.0), (16, 0.1), (64, 0.4)])
def test_a_contender_against_itself_is_called_better_or_worse_in_6_percent(
    law: str, n: int, failing: float, studies: int
) -> None:
    found = rate(lambda g: decided(compare(*two(g, law, n, failing))), studies)
    assert found <= 0.055 + slack(0.055, studies)


@studies_of
@all_laws
def test_three_planned_extensions_keep_the_level(law: str, studies: int) -> None:
    """One look after the other, from 8 draws to 64, until a difference shows: 14 % uncorrected."""

    def called(rng: np.random.Generator, looks: int = 4) -> bool:
        runs = two(rng, law, 64, 0.1)
        return any(decided(compare(*(x[:n] for x in runs), looks=looks)) for n in (8, 16, 32, 64))

    assert rate(called, studies // 2) <= 0.055 + slack(0.055, studies // 2)
    if studies > 1000:
        assert rate(lambda g: called(g, 1), studies // 2) >= 0.08


@studies_of
def test_five_identical_contenders_are_all_left_open_in_94_percent(studies: int) -> None:
    def called(rng: np.random.Generator) -> bool:
        runs = rng.normal(size=(6, 24))
        return any(decided(compare(x, runs[0], family=5)) for x in runs[1:])

    assert rate(called, studies // 2) <= 0.05 + slack(0.05, studies // 2)


@studies_of
@pytest.mark.parametrize("law", ["normal", "t3", "exponential", "two clumps"])
@pytest.mark.parametrize("n", [8, 32])
def test_intervals_cover(law: str, n: int, studies: int) -> None:
    """The pseudo-median of symmetric differences is the gap of the two."""

    def covered(rng: np.random.Generator) -> bool:
        low, high = compare(*two(rng, law, n, 0.1, gap=1.5)).interval
        return low <= 1.5 <= high

    least = 0.9 if law == "two clumps" else 0.935
    assert rate(covered, studies) >= least - slack(least, studies)


@studies_of
def test_interval_and_p_never_disagree(studies: int) -> None:
    """The former interval of the median left 0 out or held it against p in 9 to 34 % of studies."""

    def disagree(rng: np.random.Generator) -> bool:
        law, n = rng.choice(list(LAWS)), int(rng.integers(1, 40))
        options = {"family": int(rng.choice([1, 5])), "looks": int(rng.choice([1, 4]))}
        gap = float(rng.normal())
        level = float(rng.choice([0.8, 0.95]))
        c = compare(*two(rng, law, n, 0.2 * rng.random(), gap), level=level, **options)
        return (c.p < 1 - level) != (c.interval[0] > 0 or c.interval[1] < 0)

    assert rate(disagree, (5 * studies) // 2) == 0


@studies_of
@all_laws
@pytest.mark.parametrize(("size", "most"), [(0.05, 0.025), (0.4, 0.01)])
def test_the_wrong_side_is_named_rarely(law: str, size: float, most: float, studies: int) -> None:
    """`size`: the gap over the standard error of the differences' mean."""
    n = 16
    spread = float(np.std(np.subtract(*LAWS[law](np.random.default_rng(1), (2, 100_000)))))
    gap = size * spread / math.sqrt(n)
    wrong = rate(lambda g: compare(*two(g, law, n, 0.1, gap)).verdict == "lower", studies)
    assert wrong <= most + slack(most, studies)


def better_but_dying(rng: np.random.Generator, n: int, dies: float = 0.4) -> Any:
    a, b = rng.normal(30, 2, n), rng.normal(36, 2, n)
    return a, b, rng.random(n) < dies, np.zeros(n, dtype=bool)


@studies_of
@pytest.mark.parametrize(("n", "least"), [(16, 0.95), (24, 0.99), (64, 0.99)])
def test_six_points_better_and_dead_in_40_percent_is_no_winner(
    n: int, least: float, studies: int
) -> None:
    """By the sign of the median and the p of the rank sum 42 % of 64 draws named a winner."""
    found = rate(lambda g: compare(*better_but_dying(g, n)).verdict == "mixed", studies)
    assert found >= least - slack(least, studies)
    winner = rate(lambda g: decided(compare(*better_but_dying(g, n))), studies)
    assert winner <= 0.01 + slack(0.01, studies)


@studies_of
def test_equivalence_is_found_where_it_holds_and_not_where_it_does_not(studies: int) -> None:
    def called(gap: float, n: int) -> float:
        return rate(
            lambda g: compare(*two(g, "normal", n, 0, gap), margin=1.4).verdict == "equivalent",
            studies,
        )

    assert called(0.0, 16) >= 0.8
    assert called(0.0, 24) >= 0.9
    assert called(1.4, 24) <= 0.05 + slack(0.05, studies)


# -- levels and power ------------------------------------------------------------------------------


@studies_of
@pytest.mark.parametrize(("n", "family", "looks"), [(8, 1, 1), (16, 2, 1), (24, 1, 4), (64, 5, 1)])
def test_the_smallest_gap_is_found_with_80_percent_power(
    n: int, family: int, looks: int, studies: int
) -> None:
    gap = smallest_gap(n, look_level(0.05 / family, looks))

    def found(rng: np.random.Generator) -> bool:
        d = rng.normal(gap, 1, n)
        return decided(compare(d, np.zeros(n), family=family, looks=looks))

    assert rate(found, studies) == pytest.approx(0.8, abs=0.02 + slack(0.8, studies))


def test_the_smallest_gap_of_means_is_that_of_the_t_test() -> None:
    assert smallest_gap(10, 0.05, means=True) == pytest.approx(1.0, abs=0.01)  # Cohen, paired
    assert math.isinf(smallest_gap(1, 0.05, means=True))


@pytest.mark.parametrize(
    ("family", "looks", "least"), [(1, 1, 6), (2, 1, 7), (3, 1, 7), (1, 4, 7), (4, 1, 8), (6, 1, 8)]
)
def test_fewer_draws_can_reject_nothing(family: int, looks: int, least: int) -> None:
    level = look_level(0.05 / family, looks)
    assert fewest_draws(level) == least
    assert math.isinf(smallest_gap(least - 1, level))
    assert smallest_gap(least, level) < 4
    a = np.arange(1.0, 40.0)
    for n in (least - 1, least):
        assert decided(compare(a[:n], 0 * a[:n], family=family, looks=looks)) == (n == least)


def study(draws: int, models: int = 2, optims: int = 1, **words: Any) -> Plan:
    names = ["vit_c_tiny", "vit_p_tiny", "vit_p_tiny_patch4"][:models]
    return hparams_plan(["debug"], names, ("adamw", "sgd")[:optims], draws=draws, **words)


def test_a_plan_states_what_it_can_find_before_the_first_trial() -> None:
    (line,) = power_lines(study(6, optims=2))
    assert line.startswith("Warning: 6 draws are too few to reach significance (2 comparisons")
    assert "at least 7 are needed" in line
    (line,) = power_lines(study(16, control=True))
    assert "1 comparison with vit_p_tiny, 1 look" in line
    assert "1.5 standard deviations" not in line
    assert "0.77 standard deviations" in line
    assert "at least 7 are needed" in power_lines(study(6, looks=4))[0]
    assert power_lines(study(8, models=1)) == []
    seeds = measure_plan("peak", study(1).groups, length_points([2]), seeds=1, name="m")
    assert "1 seed is too few to reach significance" in power_lines(seeds)[0]


def test_the_reference_is_the_first_patchify_stem_unless_named() -> None:
    def of(*models: str, reference: str = "") -> str:
        return reference_of(contenders_of(["debug"], models, ["adamw"]), reference)

    assert of("vit_c_tiny", "vit_p_tiny_patch4", "vit_p_tiny") == "vit_p_tiny_patch4"
    assert of("vit_c_tiny", "vit_c_tiny_patch4") == "vit_c_tiny"
    assert of("vit_p_tiny", "vit_c_tiny", reference="vit_c_tiny") == "vit_c_tiny"
    with pytest.raises(ConfigError, match="not a contender"):
        of("vit_p_tiny", reference="mine")


# -- failed to learn -------------------------------------------------------------------------------


def test_the_line_between_chance_and_learning() -> None:
    assert learning_line(10) == pytest.approx(81)
    assert learning_line(1000) == pytest.approx(99.8)
    assert learning_line(2) == pytest.approx(45)
    assert learning_line(2, largest_share=0.9) == pytest.approx(9)  # always the larger class: 10
    assert learning_line(10, images=50) == pytest.approx(72)  # few images: chance itself spreads
    assert learning_line(10, images=100_000) == pytest.approx(81)


@studies_of
def test_untrained_networks_rarely_count_as_trained(studies: int) -> None:
    """Correct answers of one untrained network: a binomial's mean, four times its deviation."""
    rng = np.random.default_rng(0)
    share = rng.beta(0.1 * 70, 0.9 * 70, 10 * studies)  # sd 37 of 1,000, as measured
    errors = 100 - rng.binomial(1000, share) / 10
    assert errors.std() == pytest.approx(4, abs=0.4)
    trained = (errors <= learning_line(10, 1000)).mean()
    assert trained <= 0.022 + slack(0.022, errors.size)
    binomial_alone = 100 - 13.1  # p < 0.001
    assert (errors <= binomial_alone).mean() >= 0.12


# -- few seeds -------------------------------------------------------------------------------------


@studies_of
@pytest.mark.parametrize("law", ["normal", "t3", "exponential"])
@pytest.mark.parametrize("n", [3, 5, 8])
def test_few_seeds_with_failures_cover_the_gap_where_both_learn(
    law: str, n: int, studies: int
) -> None:
    """Means over all runs, those at chance included, covered 40 % with a tenth failing."""

    def covered(rng: np.random.Generator) -> bool:
        low, high = compare_means(*two(rng, law, n, 0.1, gap=1.0)).interval
        return low <= 1.0 <= high

    assert rate(covered, studies) >= 0.94 - slack(0.94, studies)


@studies_of
def test_a_failure_does_not_make_the_better_contender_look_worse(studies: int) -> None:
    """A point worse, both failing in a tenth of 5 seeds: the mean of all runs had 54 % reversed."""

    def reversed_(rng: np.random.Generator) -> bool:
        a, b = rng.normal(31, 0.5, 5), rng.normal(30, 0.5, 5)
        return compare_means(a, b, *(rng.random((2, 5)) < 0.1)).difference < 0

    assert rate(reversed_, studies) <= 0.05


def test_seeds_that_all_differ_alike_reject_by_their_sign_alone() -> None:
    four, six = (compare_means([30.0] * n, [31.0] * n) for n in (4, 6))
    assert (four.verdict, four.p, four.interval) == ("open", 0.125, (-math.inf, math.inf))
    assert (six.verdict, six.interval) == ("lower", (-1.0, -1.0))
    one = compare_means([30.0], [31.0])
    assert (one.difference, one.p, one.verdict) == (-1.0, 1.0, "open")
    assert compare_means([math.nan], [31.0]).n == 0


@studies_of
@pytest.mark.parametrize("n", [12, 16, 30])
def test_a_mean_is_covered_by_students_t_below_40_runs(n: int, studies: int) -> None:
    """The bootstrap that began at 12 runs covered 92 to 93 % up to 16."""

    def covered(rng: np.random.Generator) -> bool:
        i = interval(rng.normal(size=n), "mean")
        return i.low <= 0 <= i.high

    assert rate(covered, 2 * studies) >= 0.95 - slack(0.95, 2 * studies)


@studies_of
@pytest.mark.parametrize("law", ["normal", "t5", "exponential"])
@pytest.mark.parametrize("n", [5, 10, 20])
def test_ratios_of_spread_are_covered(law: str, n: int, studies: int) -> None:
    """The F ratio of variances covered 71 to 91 % for t5 and exponential errors."""
    draw = LAWS.get(law, lambda g, shape: g.standard_t(5, shape))

    def covered(rng: np.random.Generator) -> bool:
        i = effects.spread_ratio(*draw(rng, (2, n)))
        return i is not None and i.low <= 1 <= i.high

    assert rate(covered, studies) >= 0.93 - slack(0.93, studies)


@studies_of
def test_a_deviation_is_covered_and_none_where_runs_are_alike(studies: int) -> None:
    for law, least in (("normal", 0.93), ("exponential", 0.82)):

        def covered(rng: np.random.Generator, law: str = law) -> bool:
            i = effects.deviation(LAWS[law](rng, (10,)))
            return i is not None and i.low <= 1 <= i.high

        assert rate(covered, studies) >= least - slack(least, studies)
    assert effects.deviation([1.0]) is None
    assert effects.deviation([1.0, 1.0, 1.0]) is None
    two_runs = effects.deviation([1.0, 2.0])
    assert two_runs is not None
    assert two_runs.low < two_runs.estimate < two_runs.high


# -- settings that were tuned ----------------------------------------------------------------------


def tuned_study(plan: Plan, rng: np.random.Generator, tuned: bool = True) -> Cells:
    """Two equal contenders: 8 draws of lr, the best of each chosen by short, noisy runs."""
    x = 5 * rng.random(8) - 2.5
    template = Result(
        study="m",
        id="",
        contender="",
        optim="adamw",
        draw=0,
        values={},
        status="done",
        error=0.0,
        error_raw=None,
        error_best_epoch=None,
        train_seconds=1.0,
        steps=1,
        peak_memory_bytes=None,
        seed=0,
        folder="",
    )
    tuning, results = [], []
    for contender in plan.contenders:
        short = 40 + 1.5 * x**2 + rng.normal(0, 1, 8)
        here = replace(template, contender=contender)
        tuning += [replace(here, draw=i, error=float(e)) for i, e in enumerate(short)]
        level = 30 + 1.5 * x[short.argmin()] ** 2
        long = level + rng.normal(0, 1, plan.draws)
        results += [
            replace(here, draw=i, error=float(e), point="4 epochs") for i, e in enumerate(long)
        ]
    return Cells.of(plan, results, tuning if tuned else ())


@pytest.mark.parametrize("studies", [pytest.param(100, id="fast"), SIZES[1]])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_luck_of_tuning_is_in_the_interval(seeds: int, studies: int) -> None:
    """Equal contenders, tuned with 8 draws each, differed falsely in 7, 12 and 14 % of studies."""
    two_models = contenders_of(["debug"], ["vit_c_tiny", "vit_p_tiny"], ["adamw"])
    plan = measure_plan("peak", two_models, length_points([4]), seeds=seeds, name="m")

    def called(rng: np.random.Generator, tuned: bool = True) -> bool:
        cells = tuned_study(plan, rng, tuned)
        outcomes = {(c, "", ""): cells.outcomes(c, "adamw", "4 epochs") for c in plan.contenders}
        (found,) = contrasts(plan, "error", "error", outcomes)
        return decided(found.found)

    assert rate(called, studies) <= 0.055 + slack(0.055, studies)
    if seeds == 8 and studies > 1000:
        assert rate(lambda g: called(g, tuned=False), studies) >= 0.09


# -- width -----------------------------------------------------------------------------------------


def widths(
    rng: np.random.Generator, n: int, curvatures: tuple[float, float], failing: float = 0.0
) -> Widths:
    x = 5 * rng.random(n) - 2.5
    surfaces = [
        Surface(2**x, 30 + c * x**2 + rng.normal(0, 2, n), rng.random(n) < failing, 2**-2.5, 2**2.5)
        for c in curvatures
    ]
    found = compare_widths(*surfaces)  # type: ignore[misc, arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("studies", [pytest.param(20, id="fast"), SIZES[1]])
@pytest.mark.parametrize(("n", "failing"), [(16, 0.2), (32, 0.0), (64, 0.0)])
def test_equal_contenders_are_equally_wide(n: int, failing: float, studies: int) -> None:
    """A threshold above the best draw called 7 to 30 % of them different."""
    found = rate(lambda g: widths(g, n, (1.5, 1.5), failing).verdict != "open", studies)
    assert found <= 0.05 + slack(0.05, studies)


def test_a_wider_contender_is_found_with_an_interval_dual_to_p() -> None:
    rng = np.random.default_rng(0)
    found = [widths(rng, 64, (0.6, 3.0)) for _ in range(8)]
    assert sum(w.verdict == "wider" for w in found) >= 7
    for w in [*found, *(widths(rng, 24, (1.5, 1.0)) for _ in range(20))]:
        assert (w.p < 0.05) == (w.interval[0] > 0 or w.interval[1] < 0)
        assert w.difference == pytest.approx(w.a - w.b)
        assert 0 < w.a <= w.span == 5
    tight = widths(np.random.default_rng(1), 400, (4.0, 4.0))
    assert tight.a == pytest.approx(2.0, abs=0.5)  # 4 x^2 <= 4: one octave on each side


def test_too_few_draws_or_none_that_learnt_have_no_width() -> None:
    x = np.linspace(1, 32, 16)
    good = Surface(x, x, np.zeros(16, dtype=bool), 1, 32)
    flat = good._replace(errors=np.full(16, 30.0))
    both = compare_widths(flat, flat)
    assert both is not None
    assert shown_width(both) == "the whole range for both, open"
    assert compare_widths(good, good._replace(failed=np.ones(16, dtype=bool))) is None
    few = Surface(x[:11], x[:11], np.zeros(11, dtype=bool), 1, 32)
    assert compare_widths(few, few) is None
    with pytest.raises(ConfigError, match="same draws"):
        compare_widths(good, few)


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("high", "warned"), [(7.9, False), (117.0, True)])
def test_times_of_a_busy_machine_are_warned_of(high: float, warned: bool) -> None:
    still = Timing(5.0, 5.0, 5.0)
    found = Bench(
        model="vit_c_tiny",
        device="cpu",
        batch=8,
        precision="fp32",
        flops=1,
        params=1,
        activations=1,
        test_fw=still,
        train_fw=still,
        train_bw=still,
        step=Timing(7.6, 7.5, high),
        memory_mib=None,
        epoch_minutes=1.0,
        epoch_minutes_pycls=1.0,
    )
    assert bool(found.busy) == warned
