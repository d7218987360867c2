"""The measures: which runs they plan, what they say of known numbers, and the paper's exhibits."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.invented import HERE, Error, invent
from vitc.cli import study as cli_study
from vitc.cli.main import main
from vitc.errors import ConfigError, RunError
from vitc.stats import effects
from vitc.study.analysis import analyse
from vitc.study.contenders import contenders_of
from vitc.study.design import Plan, Trial, mixed
from vitc.study.launch_slurm import SlurmEngine
from vitc.study.measures import MEASURES
from vitc.study.measures.base import default_lengths, length_points, measure_plan, request_of
from vitc.study.measures.peak import best_optimizer
from vitc.study.measures.vary import vary_points
from vitc.study.paper.beside import beside
from vitc.study.paper.claims import claims, claims_table, pairs
from vitc.study.paper.exhibits import EXHIBITS, PAPER_LENGTHS
from vitc.study.paper.numbers import TABLE2, TABLE3
from vitc.study.paper.plans import entry_groups, exhibit_plan
from vitc.study.reporting import report
from vitc.study.runner import conduct
from vitc.study.study_folder import StudyFolder, from_json, to_json
from vitc.study.tuning import Tuned, before_measuring, best_values, tuning_plan

BOTH = ("adamw", "sgd")


def groups(optims: tuple[str, ...] = ("adamw",), **overrides: Any) -> Any:
    return contenders_of(["debug"], ["vit_c_tiny", "vit_p_tiny"], optims, **overrides)


def lengths(
    measure: str = "length",
    seeds: int = 4,
    at: tuple[int, ...] = (1, 2, 4),
    optims: tuple[str, ...] = ("adamw",),
) -> Plan:
    return measure_plan(measure, groups(optims), length_points(at), seeds=seeds, name="m")


def seed_plan(seeds: int, **words: Any) -> Plan:
    measure = MEASURES["seeds"]
    models = ["vit_c_tiny", "vit_p_tiny"]
    return measure.plan(request_of(measure, recipes="debug", models=models, runs=seeds, **words))


def found(tmp_path: Path, plan: Plan, error: Error) -> Any:
    invent(StudyFolder(tmp_path / "s"), plan, error)
    return analyse([tmp_path / "s"])[0]


# -- plans -----------------------------------------------------------------------------------------


def test_a_length_plan_changes_the_epochs_alone_and_pairs_by_seed() -> None:
    plan = lengths()
    trials = list(plan.trials())
    assert len(trials) == 2 * 3 * 4
    assert {(t.point, t.config.train.epochs) for t in trials} == {
        ("1 epochs", 1),
        ("2 epochs", 2),
        ("4 epochs", 4),
    }
    assert len({(t.config.optim.lr, t.config.optim.weight_decay) for t in trials}) == 1
    assert all(t.config.train.seed == t.draw for t in trials)
    assert mixed(plan) == []


def test_a_measures_plan_survives_json_and_more_seeds_keep_the_first() -> None:
    plan = seed_plan(3)
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
    few = [t.id for t in lengths(seeds=2).trials()]
    assert [t.id for t in lengths(seeds=3).trials()][: len(few)] == few


def test_seeds_are_varied_one_kind_at_a_time() -> None:
    plan = seed_plan(3)
    for part, name in (
        ("init", "seed_init"),
        ("order", "seed_order"),
        ("augmentation", "seed_augment"),
        ("all", "seed"),
    ):
        mine = [
            t.config.train for t in plan.trials() if (t.point, t.contender) == (part, "vit_p_tiny")
        ]
        for other in ("seed", "seed_init", "seed_order", "seed_augment"):
            assert len({getattr(t, other) for t in mine}) == (3 if other == name else 1), part
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        seed_plan(1)


def test_no_run_is_in_two_sets_of_seeds_and_contenders_share_theirs() -> None:
    def drawn(t: Trial) -> tuple[int, ...]:
        own = t.config.train
        parts = (own.seed_init, own.seed_order, own.seed_augment)
        return tuple(own.seed if part is None else part for part in parts)

    for seed in (0, 3):
        plan = seed_plan(5, seed=seed, control=True)
        of = {c: [drawn(t) for t in plan.trials() if t.contender == c] for c in plan.contenders}
        assert all(len(set(runs)) == 4 * 5 for runs in of.values())
        assert of["vit_c_tiny"] == of["vit_p_tiny"]
        assert not set(of["vit_p_tiny"]) & set(of["vit_p_tiny again"])


def test_no_run_that_chose_the_settings_is_measured() -> None:
    tuned = before_measuring(tuning_plan(groups(), length_points([2]), draws=6, name="t"))
    best = {t.draw: t.values for t in tuned.trials()}
    for draw, values in best.items():
        best_of = Tuned({g.key: values for g in groups()})
        plan = measure_plan(
            "length", groups(), length_points([2]), seeds=6, tuned=best_of, name="m"
        )
        assert not {t.id for t in tuned.trials()} & {t.id for t in plan.trials()}, draw
    assert from_json(json.loads(json.dumps(to_json(tuned)))) == tuned


def test_a_sentence_worded_better_since_does_not_end_a_study(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    folder.start(replace(lengths(), about=("As it was said.",)), HERE, "vitc study")
    folder.start(replace(lengths(seeds=6), about=("As it is said now.",)), HERE, "vitc study")
    plan, _ = folder.read()
    assert (plan.draws, plan.about) == (6, ("As it was said.",))


def test_the_default_lengths_are_halves_of_the_recipes() -> None:
    assert default_lengths(40) == [5, 10, 20, 40]
    assert default_lengths(400) == list(PAPER_LENGTHS)
    assert default_lengths(2) == [1, 2]


def test_each_length_takes_the_values_tuned_for_it_and_factors_multiply_them(
    tmp_path: Path,
) -> None:
    folder = StudyFolder(tmp_path / "tuning")
    points = length_points([1, 2])
    plan = tuning_plan(groups(), points, draws=3, name="t")

    def error(t: Trial) -> float | None:
        if t.point == "1 epochs":
            return None if t.draw == 1 else 50 - t.draw
        return 50 + t.draw

    invent(folder, plan, error)
    values, errors = best_values(folder, plan)
    assert {errors[f"vit_{k}_tiny/adamw/1 epochs"] for k in "cp"} == {48}
    measured = measure_plan("length", groups(), points, seeds=1, name="v", tuned=Tuned(values))
    by = {(t.contender, t.point): t.config.optim.lr for t in measured.trials()}
    draws = [plan.draw_values("adamw", i)["optim.lr"] for i in range(3)]
    assert by["vit_p_tiny", "1 epochs"] == draws[2]
    assert by["vit_p_tiny", "2 epochs"] == draws[0]
    best = Tuned({g.key: values[f"{g.key}/1 epochs"] for g in groups()})
    times = vary_points([], [("optim.lr", [1.0, 4.0])], [])
    varied = measure_plan("vary", groups(), times, seeds=1, name="v", tuned=best)
    rates = {t.config.optim.lr for t in varied.trials()}
    assert sorted(rates) == pytest.approx([draws[2], 4 * draws[2]])


def test_nothing_is_chosen_until_every_draw_has_a_result_and_one_trained(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "tuning")
    plan = tuning_plan(groups(), length_points([1]), draws=3, name="t")
    invent(folder, plan, lambda t: None if t.contender == "vit_p_tiny" else 40.0)
    with pytest.raises(RunError, match="vit_p_tiny/adamw"):
        best_values(folder, plan)
    failed, missing, *_ = [folder.trial(t) for t in plan.trials()]
    (failed / "summary.json").write_text(json.dumps({"status": "failed", "error": "killed"}))
    shutil.rmtree(missing)
    with pytest.raises(RunError, match=r"Of 6 draws .* 1 failed and 1 have no") as error:
        best_values(folder, plan)
    assert "--retry-failed" in str(error.value.hint)


def test_the_better_optimizer_is_taken_for_each_contender() -> None:
    errors = {
        "vit_c_tiny/adamw": 2.0,
        "vit_c_tiny/sgd": 1.0,
        "vit_p_tiny/adamw": 1.0,
        "vit_p_tiny/sgd": 2.0,
    }
    best = best_optimizer(groups(BOTH), errors)
    assert [(g.contender, g.optim) for g in best] == [
        ("vit_c_tiny", "sgd"),
        ("vit_p_tiny", "adamw"),
    ]


# -- what they say ---------------------------------------------------------------------------------


def falling(trial: Trial) -> float:
    """ViT_P loses 8 points at one epoch, ViT_C 2, with a little noise of the seed."""
    epochs, is_p = trial.config.train.epochs, trial.contender == "vit_p_tiny"
    loss = {1: 4, 2: 1, 4: 0}[epochs] * (2.0 if is_p else 0.5)
    return 30 + loss + 0.1 * trial.draw * (1 + (epochs == 1) * (1 if is_p else 0.8))


def test_the_loss_by_shorter_training_is_paired_by_seed(tmp_path: Path) -> None:
    section = found(tmp_path, lengths(), falling)
    delta = {(v["contender"], v["epochs"]): v["delta"] for v in section.finding.values["lengths"]}
    # the seeds add 0, .1, .2, .3 to both lengths, and as much or less again at one epoch
    assert delta["vit_p_tiny", 1]["estimate"] == pytest.approx(8.15)
    assert delta["vit_c_tiny", 1]["estimate"] == pytest.approx(2.12)
    assert delta["vit_p_tiny", 4]["estimate"] == 0
    (c,) = section.finding.values["comparisons"]
    assert c["difference"] == pytest.approx(-6.03)
    assert "loss from 4 to 1 epochs is lower than vit_p_tiny's by 6.0" in section.finding.verdict[0]


def test_one_seed_gives_no_interval_and_it_is_said(tmp_path: Path) -> None:
    section = found(tmp_path, lengths(seeds=1), falling)
    assert section.finding.contrasts[0].found.verdict == "open"
    assert "(too few for an interval)" in section.finding.verdict[0]
    assert any("One seed" in table.note for table in section.finding.tables)


def gap(trial: Trial) -> float | None:
    epochs = trial.config.train.epochs
    if trial.optim == "sgd" and trial.contender == "vit_p_tiny" and epochs == 4:
        return None
    return 40 - 2 * epochs + (1 if trial.optim == "sgd" else 0) + 0.1 * trial.draw


def test_a_run_that_died_has_no_gap_and_by_the_papers_rule_a_shorter_ones(tmp_path: Path) -> None:
    section = found(tmp_path, lengths("optimizer", optims=BOTH), gap)
    row = next(
        v
        for v in section.finding.values["gaps"]
        if (v["contender"], v["epochs"]) == ("vit_p_tiny", 4)
    )
    assert (row["failed_to_learn"], row["n"], row["gap"]) == (4, 0, None)
    assert row["gap_by_the_papers_rule"]["estimate"] == pytest.approx(37 - 32)  # 2 epochs of SGD
    assert section.finding.values["substituted"] == 4
    line = next(x for x in section.finding.charts[0].lines if x.label == "vit_p_tiny, sgd")
    assert line.substituted == [False, False, True]
    contrast = section.finding.contrasts[0]
    assert contrast.found.failures["only_b"] == 4
    assert any("4 diverged" in note for note in section.finding.warnings)


def test_without_a_shorter_schedule_the_rule_leaves_chance(tmp_path: Path) -> None:
    section = found(tmp_path, lengths("optimizer", at=(4,), optims=BOTH), gap)
    row = next(v for v in section.finding.values["gaps"] if v["contender"] == "vit_p_tiny")
    assert row["gap_by_the_papers_rule"]["estimate"] == pytest.approx(90 - 32 - 0.15)


def test_peak_puts_costs_beside_errors_and_says_that_two_models_are_few(tmp_path: Path) -> None:
    section = found(tmp_path, lengths("peak"), falling)
    c = next(v for v in section.finding.values["contenders"] if v["contender"] == "vit_c_tiny")
    assert c["image_ms"] == 100 / 16  # models of one table may have other batches
    assert c["flops"] > 1e6
    assert c["errors"][4]["estimate"] == pytest.approx(30.15)
    assert section.finding.values["correlations"]["n"] == 2
    assert "too few" in " ".join(section.finding.sentences)


def test_spreads_by_what_is_varied_and_seeds_needed(tmp_path: Path) -> None:
    wide = {"all": 2.0, "init": 1.0, "order": 0.5, "augmentation": 0.0}

    def error(trial: Trial) -> float:
        return 30 + wide[trial.point] * (-1) ** trial.draw

    section = found(tmp_path, seed_plan(10, name="m"), error)
    ratio = {v["varied"]: v["spread_ratio"] for v in section.finding.values["spreads"]}
    assert ratio["init"]["estimate"] == pytest.approx(0.5)
    assert ratio["order"]["estimate"] == pytest.approx(0.25)
    assert ratio["augmentation"] is None
    assert "needs" in section.finding.sentences[0]


def test_varied_settings_show_error_and_failures_to_learn(tmp_path: Path) -> None:
    points = vary_points([], [("optim.lr", [1.0, 8.0])], [])
    plan = measure_plan("vary", groups(), points, seeds=4, name="m")
    section = found(tmp_path, plan, lambda t: None if "x8" in t.point and t.draw else 30.0)
    at = {(v["contender"], v["point"]): v for v in section.finding.values["points"]}
    assert at["vit_p_tiny", "lr x8"]["failed_to_learn"] == 3
    assert at["vit_p_tiny", "lr x8"]["failed_to_learn_share"]["estimate"] == 0.75
    assert at["vit_p_tiny", "lr x8"]["change"]["estimate"] == 0  # of the one that learnt


def test_a_measures_report_stands_alone_and_holds_its_numbers(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    invent(folder, lengths("optimizer", optims=BOTH), gap)
    page, _ = report([folder.path])
    text = page.read_text()
    assert "<script" not in text
    assert "by the paper&#39;s rule" in text
    values = json.loads((page.parent / "results.json").read_text())
    assert values["findings"][0]["measure"] == "optimizer"
    assert r"\toprule" in (page.parent / "table.tex").read_text()
    header = (page.parent / "trials.csv").read_text().splitlines()[0]
    assert "point" in header.split(",")
    assert {p.name for p in (page.parent / "figures").iterdir()} == {
        f"{chart}.{kind}"
        for chart in ("forest_0", "forest_0_1", "optimizer_0", "length_0")
        for kind in ("svg", "png", "pdf")
    }, "a forest of the gaps, one of the losses, and the levels"


def test_the_optimizer_study_tells_the_loss_by_length_too(tmp_path: Path) -> None:
    section = found(tmp_path, lengths("optimizer", optims=BOTH), gap)
    told = {
        (v["contender"], v["optim"], v["epochs"])
        for v in section.finding.values["length"]["lengths"]
    }
    assert {("vit_c_tiny", "sgd", 2), ("vit_p_tiny", "adamw", 2)} <= told
    assert "Error by length of training" in [t.title for t in section.finding.tables]


def test_the_draws_that_tuned_are_in_the_interval(tmp_path: Path) -> None:
    folder, points = StudyFolder(tmp_path / "s"), length_points([1, 4])
    rng = np.random.default_rng(0)
    first = before_measuring(tuning_plan(groups(), points, draws=8, name="t"))
    inside = StudyFolder(folder.path / "tuning")
    invent(inside, first, lambda t: 40 + 3 * float(rng.normal()))
    plan = measure_plan("length", groups(), points, seeds=4, name="m")
    invent(folder, plan, lambda t: 30 + 0.1 * float(rng.normal()))
    (tuned,) = analyse([folder.path])[0].finding.contrasts
    shutil.rmtree(inside.path)
    (untuned,) = analyse([folder.path])[0].finding.contrasts
    assert tuned.found.difference == untuned.found.difference
    low, high = tuned.found.interval
    assert high - low > 5 * (untuned.found.interval[1] - untuned.found.interval[0])


# -- against the paper -----------------------------------------------------------------------------


def test_a_claim_agrees_disagrees_or_stays_open_by_its_interval(tmp_path: Path) -> None:
    def error(ahead: float) -> Any:
        def of(t: Trial) -> float:
            c, sgd = t.contender == "vit_c_tiny", t.optim == "sgd"
            return 30 + 0.1 * t.draw * (1 + c) + sgd * (5 - ahead * c + 0.1 * (-1) ** t.draw * c)

        return of

    def verdicts(ahead: float) -> dict[str, str]:
        plan = lengths("optimizer", optims=BOTH, seeds=4)
        section = found(tmp_path / str(ahead), plan, error(ahead))
        return {c.contrast.what: c.verdict for c in claims(section)}

    what = "sgd - adamw gap at 4 epochs"
    assert verdicts(3.0)[what] == "agrees"
    assert verdicts(-3.0)[what] == "disagrees"
    assert verdicts(0.0)[what] == "open"


def test_claims_are_the_reports_comparisons_with_the_control_beside_them(tmp_path: Path) -> None:
    plan = measure_plan("length", groups(), length_points([1, 4]), seeds=4, name="m", control=True)
    rng = np.random.default_rng(0)
    section = found(tmp_path, plan, lambda t: 30 + float(rng.normal()))
    (claim,) = claims(section)
    assert claim.contrast is section.finding.contrasts[0]
    assert claim.control is section.finding.contrasts[1]
    assert claim.control.contender == "vit_p_tiny again"
    (row,) = claims_table(section).rows  # type: ignore[union-attr]
    assert row[-1].endswith(": open")
    big = contenders_of(
        ["debug"], ["vit_c_4gf", "vit_p_4gf", "vit_p_tiny", "vit_c_tiny"], ["adamw"]
    )
    plan = measure_plan(
        "length", big, length_points([1, 4]), seeds=4, name="m", reference="vit_p_4gf"
    )
    section = found(tmp_path / "big", plan, lambda t: 30 + float(rng.normal()))
    of = {(c.contrast.contender, c.contrast.reference) for c in claims(section)}
    assert of == {("vit_c_4gf", "vit_p_4gf"), ("vit_c_tiny", "vit_p_tiny")}


def test_only_a_vit_c_and_its_own_vit_p_are_held_against_the_paper() -> None:
    models = ["vit_c_tiny", "vit_p_tiny_patch4", "vit_p_tiny"]
    these = contenders_of(["debug"], models, ["adamw"])
    plan = measure_plan("length", these, length_points([2, 4]), seeds=2, name="m")
    assert pairs(plan) == [("vit_c_tiny", "vit_p_tiny")]
    changed = contenders_of(["debug"], ["vit_c_tiny"], ["adamw"], (), **{"model.stem.norm": "ln"})
    plan = measure_plan("length", [*changed, these[2]], length_points([2, 4]), seeds=2, name="m")
    assert pairs(plan) == []


def test_a_contender_that_never_trains_is_not_called_stable(tmp_path: Path) -> None:
    def never_p(t: Trial) -> float | None:
        if t.contender == "vit_p_tiny" and t.optim == "sgd":
            return None
        return 30 + 5 / t.config.train.epochs + 0.1 * t.draw

    section = found(tmp_path, lengths("optimizer", optims=BOTH, seeds=6), never_p)
    c = section.finding.contrasts[0]
    assert (c.kind, c.found.n, c.found.verdict) == ("gap", 0, "fails less")
    assert "6 of vit_p_tiny's" in section.finding.verdict[0]
    losses = {c.optim: c.found for c in section.finding.contrasts if c.kind == "loss"}
    assert (losses["adamw"].n, losses["sgd"].n) == (6, 0)
    gap = next(v for v in section.finding.values["gaps"] if v["contender"] == "vit_p_tiny")
    assert gap["gap"] is None
    assert section.finding.values["substituted"] == 0  # nothing shorter trained either
    assert {c.verdict for c in claims(section) if c.contrast.kind == "gap"} == {"agrees"}


def test_the_order_of_the_optimizers_changes_no_verdict(tmp_path: Path) -> None:
    def error(t: Trial) -> float:
        gap = 2.0 if t.contender == "vit_c_tiny" else 8.0
        return 30 + 0.1 * t.draw + gap * (t.optim == "sgd") * (1 + 0.01 * t.draw)

    for i, optims in enumerate((("adamw", "sgd"), ("sgd", "adamw"))):
        section = found(tmp_path / str(i), lengths("optimizer", optims=optims), error)
        assert [c.verdict for c in claims(section) if c.contrast.kind == "gap"] == ["agrees"]


def test_a_pair_of_the_paper_differs_by_the_block_the_stem_replaces() -> None:
    both = contenders_of(["debug"], ["vit_p_tiny"], ["adamw"], ("conv", "patchify"))
    plan = measure_plan("length", both, length_points([2, 4]), seeds=2, name="m")
    assert pairs(plan) == []
    models = ["vit_c_16gf", "vit_c_4gf", "vit_p_4gf", "vit_p_16gf"]
    big = contenders_of(["debug"], models, ["adamw"])
    plan = measure_plan("length", big, length_points([2, 4]), seeds=2, name="m")
    assert set(pairs(plan)) == {("vit_c_16gf", "vit_p_16gf"), ("vit_c_4gf", "vit_p_4gf")}


@pytest.mark.slow
def test_a_noisier_contender_is_not_called_more_sensitive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = {"vit_c_tiny": 0.3, "vit_p_tiny": 0.9}
    plan = measure_plan(
        "vary",
        groups(),
        vary_points([], [("optim.lr", [1.0, 2.0, 3.0, 4.0, 5.0])], []),
        seeds=5,
        name="m",
    )
    called = 0
    for i in range(20):
        section = found(
            tmp_path / str(i), plan, lambda t: 30 + float(rng.normal(0, noise[t.contender]))
        )
        called += any(c.found.verdict != "open" for c in section.finding.contrasts)
    assert called <= 4  # 5 % of 20, with room: P(more than 4) is 0.3 %


@pytest.mark.slow
def test_of_many_equal_contenders_few_are_called_different(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ten = [replace(g, contender=f"c{i}") for i in range(10) for g in groups()[:1]]
    ten = [replace(g, config=replace(g.config, name=g.contender)) for g in ten]
    plan = measure_plan("length", ten, length_points([2, 4]), seeds=3, name="m")
    called = 0
    for i in range(20):
        section = found(tmp_path / str(i), plan, lambda t: 30 + float(rng.normal(0, 1)))
        called += any(c.found.verdict != "open" for c in section.finding.contrasts)
    assert called <= 4


def test_the_papers_order_is_held_against_ours_with_its_sign(tmp_path: Path) -> None:
    entries = EXHIBITS["fig7"].small.entries
    plan = exhibit_plan("fig7", "small", entry_groups(entries, None), count=4)
    better = {"vit_c_tiny": 2.0, "vit_c_tiny(ln)": -1.0}
    section = found(
        tmp_path, plan, lambda t: 30 + 0.01 * t.draw * len(t.contender) - better.get(t.contender, 0)
    )
    order = {row[0]: row for row in beside(section)[1].rows}
    assert order["vit_c_4gf"][5] == "-2.3"
    assert order["vit_c_4gf"][-1] == "agrees"
    assert order["vit_c_ln_4gf"][-1] == "disagrees"
    assert "vit_p_4gf" not in order


# -- statistics of few -----------------------------------------------------------------------------


def test_a_correlation_is_bounded_only_from_four_pairs() -> None:
    x = np.arange(3.0)
    assert effects.correlation(x, np.ones(3)) is None
    few = effects.correlation(x, x)
    assert few is not None
    assert (few.low, few.high) == (-1, 1)
    assert "too few" in few.method
    four = effects.correlation([1, 2, 3, 4], [1, 2, 3, 3])
    assert four is not None
    assert four.low < 0 < four.estimate < four.high <= 1


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 20])
def test_correlation_intervals_cover(n: int) -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(1000):
        x = rng.normal(size=n)
        y = 0.8 * x + 0.6 * rng.normal(size=n)
        r = effects.correlation(x, y, seed=i)
        assert r is not None
        inside += r.low <= 0.8 <= r.high
    assert inside / 1000 > 0.91


def test_a_line_is_found_with_its_intervals() -> None:
    x = np.array([15.0, 17.0, 19.0, 21.0])
    fit = effects.fit_line(x, 1.31 * x + 5.0 + np.array([0.1, -0.1, -0.1, 0.1]))
    assert fit is not None
    assert fit.slope.low < 1.31 < fit.slope.high
    assert fit.slope.estimate == pytest.approx(1.31)
    assert fit.spread == pytest.approx(math.sqrt(0.04 / 2))
    two = effects.fit_line([1, 2], [1, 3])
    assert two is not None
    assert math.isinf(two.slope.high)
    assert effects.fit_line([1.0, 1.0], [1.0, 2.0]) is None


def test_seeds_needed_have_the_power_asked_for() -> None:
    n = effects.seeds_needed(1.0, 1.0)
    assert n == 17  # Cohen's table: d = 1, 80 %, two-sided 5 %
    assert effects.seeds_needed(1.0, 1.0, paired=True) == 10
    assert effects.seeds_needed(0.0, 1.0) == 2
    assert effects.seeds_needed(1e6, 1.0) is None


# -- the verbs -------------------------------------------------------------------------------------


@pytest.fixture
def invented(undrawn: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Plan]:
    """The verbs as they are, but every trial's result is made up: error falls with length."""
    plans: list[Plan] = []

    def conduct(folder: StudyFolder, plan: Plan, **words: Any) -> None:
        plans.append(plan)
        invent(
            folder,
            plan,
            lambda t: (
                60
                - t.config.train.epochs
                + t.draw
                + 0.1 * t.config.optim.lr
                + (t.contender == "vit_p_tiny")
            ),
        )

    monkeypatch.setattr("vitc.study.runner.conduct", conduct)
    monkeypatch.chdir(tmp_path)
    return plans


MODELS = ["debug", "--models", "vit_c_tiny", "vit_p_tiny", "--seeds", "2"]
VARIED = "--times optim.lr 1 2 --set train.batch 16 32 --setup both train.batch=32 optim.lr=0.01"


@pytest.mark.parametrize(
    ("words", "trials", "text"),
    [
        ("length --lengths 1 2", [8], "lr and weight decay are the recipe's"),
        ("length --lengths 1 2 --retune 3", [12, 8], "were tuned"),
        ("optimizer --lengths 1 2", [16], "sgd - adamw"),
        ("peak --tune 2 --optims adamw sgd", [8, 4], "whose best draw was best"),
        ("seeds", [16], "spread relative to all"),
        (f"vary {VARIED}", [20], "both"),
    ],
)
def test_each_verb_plans_runs_and_reports(
    invented: list[Plan],
    words: str,
    trials: list[int],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, (verb, *options) = Path("out"), words.split()
    command = ["study", verb, *MODELS, *options, "--out", str(out)]
    assert main(command) == 0
    assert [len(list(p.trials())) for p in invented] == trials
    assert text in capsys.readouterr().out
    assert (out / "report" / "report.html").exists()
    assert main(["study", "status", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    command[command.index("--seeds") + 1] = "3"
    assert main(command) == 0, "more seeds extend it"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["optimizer", "debug", "--optims", "adamw"], "two optimizers"),
        (["length", "debug", "--lengths", "1", "--train.epochs", "2"], "no effect with --lengths"),
        (["vary", "debug"], "Nothing is varied"),
        (["vary", "debug", "--set", "train.batches", "1"], "train.batch"),
        (["vary", "debug", "--set", "train.batch", "many"], "integer"),
        (["vary", "debug", "--times", "train.precision", "2"], "no number"),
        (["vary", "debug", "--setup", "x", "train.batch"], "SETTING=VALUE"),
        (["peak", "debug", "--tune", "0", "--optims", "adamw", "sgd"], "which optimizer"),
        (["length", "debug", "--optim", "sgd"], "--optims"),
        (["paper", "fig12"], "Did you mean"),
        (["paper", "fig2", "--scale", "full"], "--dry-run"),
        (["paper", "fig9", "--count", "2"], "no effect"),
        (["paper", "fig2", "--second", "x"], "fig11"),
        (["paper", "fig2", "--train.epochs", "2"], "--lengths"),
    ],
)
def test_a_users_mistake_is_one_message(
    invented: list[Plan],
    words: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(["study", *words]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


FP32 = ["--train.precision", "fp32"]
TUNED = [
    (["length", *MODELS, "--lengths", "1", "2"], "--retune"),
    (["peak", *MODELS], "--tune"),
    (["vary", *MODELS, "--set", "train.batch", "16", "32"], "--tune"),
    (["paper", "fig7", "--count", "2", "--lengths", "2"], "--tune"),
]


@pytest.fixture
def untold(invented: list[Plan], monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """As `invented`, and no report is made."""
    monkeypatch.setattr(cli_study, "report_on", lambda *args, **more: 0)
    return invented


@pytest.mark.parametrize(("words", "flag"), TUNED)
def test_other_draws_than_were_measured_are_refused_before_any_is_run(
    words: list[str], flag: str, untold: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", *words, *FP32, "--out", "out"]
    assert main([*command, flag, "2"]) == 0
    assert "chosen on the validation images that the errors are on" in " ".join(untold[-1].about)
    untold.clear()
    for draws in ("3", "1"):
        assert main([*command, flag, draws]) == 2
        assert f"Use {flag} 2, or give another --out" in capsys.readouterr().err
    runs = next(i for i, word in enumerate(command) if word in ("--seeds", "--count"))
    command[runs + 1] = "1"
    assert main([*command, flag, "2"]) == 2
    assert f"Use {command[runs]} 2 or more" in capsys.readouterr().err
    assert untold == []


def test_tuning_that_has_only_begun_may_be_extended_but_not_cut(
    untold: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "peak", *MODELS, *FP32, "--out", "out", "--tune"]
    assert main([*command, "2"]) == 0
    (Path("out") / "plan.json").unlink()
    shutil.rmtree(Path("out") / "trials")
    assert main([*command, "1"]) == 2
    assert "Use --tune 2 or more" in capsys.readouterr().err
    assert main([*command, "3"]) == 0
    assert [p.draws for p in untold] == [2, 2, 3, 2]


def test_a_study_without_tuning_is_not_tuned_later(
    untold: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    length = ["study", "length", *MODELS, *FP32, "--lengths", "1", "2", "--out", "out"]
    assert main(length) == 0
    assert main([*length, "--retune", "2"]) == 2
    assert "Leave --retune out" in capsys.readouterr().err
    assert len(untold) == 1


@pytest.mark.parametrize(("words", "flag"), TUNED)
def test_precision_is_measured_once_for_tuning_and_measuring(
    words: list[str], flag: str, untold: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["bf16", "fp32"])
    monkeypatch.setattr("vitc.training.probe.faster_precision", lambda *a: (next(answers), ""))
    command = ["study", *words, "--train.precision", "auto", "--train.device", "cpu", "--out", "o"]
    assert main([*command, flag, "2"]) == 0
    precisions = {g.config.train.precision for p in untold for g in p.groups}
    assert (len(untold), precisions) == (2, {"bf16"})


def test_a_mistake_of_the_measured_plan_is_told_before_tuning(
    untold: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["vary", *MODELS, *FP32, "--tune", "2", "--times", "train.precision", "2"]
    assert main(["study", *words]) == 2
    assert "no number" in capsys.readouterr().err
    assert untold == []


# -- the paper -------------------------------------------------------------------------------------

TRAINED = [n for n, e in EXHIBITS.items() if e.measure != "bench"]


def test_every_figure_and_table_of_the_paper_with_runs_is_there() -> None:
    tables = {f"table{i}" for i in (1, 2, 3, 5)}
    assert set(EXHIBITS) == {f"fig{i}" for i in range(2, 12)} | tables
    page = (Path(__file__).parents[1] / "docs" / "paper.md").read_text()
    assert all(f"| `{name}" in page for name in EXHIBITS)


@pytest.fixture(scope="module")
def full() -> dict[str, tuple[str, list[Plan]]]:
    """Of each exhibit at full scale its cost and its plans, as a dry run prints them."""
    found = {}
    for name in TRAINED:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["study", "paper", name, "--scale", "full", "--dry-run", "--json"]) == 0
        values = json.loads(out.getvalue().splitlines()[-1])
        found[name] = values["cost"][-1], [from_json(plan) for plan in values["plans"]]
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_a_full_scale_plan_is_complete_and_the_docs_give_its_runs_and_hours(
    name: str, full: dict[str, tuple[str, list[Plan]]]
) -> None:
    cost, plans = full[name]
    configs = [g.config for g in plans[-1].groups]
    assert all(c.data.path is not None and c.train.batch >= 256 for c in configs)
    assert {c.train.epochs for c in configs} <= {50, 100, 200, 400}
    assert plans[-1].chance_error == pytest.approx(99.9)
    assert all(mixed(tuning) == [] for tuning in plans[:-1]), "draws that choose settings"
    page = (Path(__file__).parents[1] / "docs" / "paper.md").read_text()
    (row,) = [x for x in page.splitlines() if x.startswith("|") and f"| `{name}" in x]
    runs, hours = cost.split(" h on the paper's 8 V100")[0].split(" runs, ")
    assert f"| {runs} | " in row, cost
    assert f" {hours} |" in row, cost


def test_full_scale_has_the_papers_runs_rates_and_ranges(
    full: dict[str, tuple[str, list[Plan]]],
) -> None:
    runs = {name: int(cost.split()[0]) for name, (cost, _) in full.items()}
    assert (runs["fig2"], runs["fig3"], runs["fig4"] + runs["fig5"]) == (36, 72, 9 * 2 * 64)
    at = {g.contender: g.config.optim for g in full["fig2"][1][-1].groups}
    assert (at["vit_p_1gf"].lr, at["vit_p_1gf"].weight_decay) == (2e-3, 0.20)
    assert (at["regnety_4gf"].lr, at["regnety_4gf"].weight_decay) == (2.54, 2.4e-5)
    four = full["fig4"][1][-1]
    ranges = {g.contender: four.ranges_of(g)["optim.lr"] for g in four.groups}
    assert (ranges["vit_p_4gf"].low, ranges["vit_p_4gf"].high) == (2.5e-4, 8e-3)
    assert (ranges["regnety_4gf"].low, ranges["regnety_4gf"].high) == (1.25e-3, 4e-2)
    deit = next(g.config for g in full["table5"][1][-1].groups if g.contender == "row 8 vit_p_18gf")
    assert (deit.optim.weight_decay, deit.data.augment.repeats) == (0.5, 3)
    assert deit.optim.ema.kind == "none"


@pytest.mark.parametrize(
    "name",
    [n if i % 3 == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(TRAINED)],
)
def test_a_small_exhibit_runs_through_to_its_report(
    name: str,
    invented: list[Plan],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "fig11":
        monkeypatch.setattr("vitc.study.paper.second.measure_second", lambda *a: {})
    words = ["study", "paper", name, "--count", "2", "--train.precision", "fp32"]
    words += ["--tune", "2"] if EXHIBITS[name].small.tune else []
    assert main([*words, "--out", "out"]) == 0
    page = (Path("out") / "report" / "report.html").read_text()
    title = EXHIBITS[name].title
    assert title.replace("'", "&#39;") in page
    printed = EXHIBITS[name].printed
    assert ("Beside the paper" in page) == bool(printed)
    monkeypatch.setattr(cli_study, "report_on", lambda *args, **more: 0)
    assert main([*words, "--out", "out"]) == 0, "the same command goes on"


def test_the_papers_numbers_stand_beside_ours(
    invented: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "paper", "table2", "--count", "2", "--tune", "2"]) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if x.split()[:1] == ["vit_c_1gf"] and " 400 " in x)
    cells = line.split()
    assert cells[4] == "%"
    assert float(cells[5]) == TABLE2["vit_c_1gf"].errors[400]
    assert cells[6:8] == ["vit_c_tiny", "40"]
    assert float(cells[8]) == pytest.approx(60 - 40 + 0.5, abs=0.1)


def test_an_exhibits_contenders_may_differ_but_its_machines_may_not(
    untold: list[Plan], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["study", "paper", "table5", "--count", "2", *FP32]
    assert main(command) == 0
    assert mixed(untold[0]), "its rows differ in augmentation"
    monkeypatch.setattr("vitc.study.runner.conduct", conduct)  # all has ended
    assert main(command) == 2
    assert "begun elsewhere" in capsys.readouterr().err
    assert main([*command, "--allow-mixed"]) == 0
    notes = StudyFolder(Path("studies/table5_small")).read()[1]["history"]
    assert [n["what"].partition(":")[0] for n in notes] == [
        "continued with other conditions",
        "mixed on purpose",
    ]


@pytest.mark.parametrize("name", [n for n in TRAINED if EXHIBITS[n].small.tune])
def test_draws_that_choose_settings_differ_in_nothing_else(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "paper", name, "--dry-run", "--json", *FP32]) == 0
    tuned, _ = json.loads(capsys.readouterr().out)["plans"]
    assert mixed(from_json(tuned)) == []


def test_a_dry_run_for_slurm_has_the_job_scripts_of_tuning_and_measuring(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def script(engine: SlurmEngine, study: Path, trials: int, device: str) -> str:
        return f"#SBATCH {study.name} {trials}"

    monkeypatch.setattr(SlurmEngine, "script", script)
    monkeypatch.chdir(tmp_path)
    words = ["study", "paper", "fig7", "--scale", "full", "--dry-run", "--engine", "slurm"]
    assert main([*words, "--gpus-per-trial", "8"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH tuning 256\n" in out
    assert "#SBATCH fig7_full 4\n" in out
    assert list(tmp_path.iterdir()) == []


def test_small_figure_10_changes_the_set_up_alone() -> None:
    made = entry_groups(EXHIBITS["fig10"].small.entries, None)
    at = {g.contender: g.config for g in made}
    deit, c, p = at["vit_p_tiny deit"], at["vit_c_tiny"], at["vit_p_tiny"]
    assert (c.data, c.optim, c.train) == (p.data, p.optim, p.train)
    assert (deit.optim.lr, deit.optim.weight_decay) == (p.optim.lr, p.optim.weight_decay)
    assert (p.data.augment.policy, p.optim.ema.kind != "none") == ("v0", True)
    assert (deit.data.augment.policy, deit.optim.ema.kind) == ("randaugment", "none")
    for config in at.values():
        assert (config.data.augment.mixup_alpha, config.data.augment.cutmix_alpha) == (0.8, 1.0)


def test_other_images_than_imagenets_are_said_to_be_others() -> None:
    made = entry_groups(EXHIBITS["fig2"].full.entries, "x")
    for classes, said in ((1000, False), (2, True)):
        plan = exhibit_plan("fig2", "full", made, classes=classes)
        assert ("not ImageNet-1k" in " ".join(plan.about)) == said


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("scale", ["small", "full"])
def test_a_plain_vit_p_is_what_the_others_are_compared_with(name: str, scale: Any) -> None:
    data, fp32 = "x" if scale == "full" else None, {"train.precision": "fp32"}
    made = entry_groups(getattr(EXHIBITS[name], scale).entries, data, **fp32)
    plan = exhibit_plan(name, scale, made, classes=10)
    plain = {"small": ("vit_p_tiny", "row 1"), "full": ("vit_p_4gf", "row 1 vit_p_4gf")}[scale]
    assert (plan.reference or plan.contenders[-1]) in plain


@pytest.mark.parametrize("protocol", ["last", "paper"])
def test_the_second_test_set_is_held_against_the_last_epoch(protocol: Any, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    plan = lengths("peak")
    invent(folder, plan, falling)
    top1 = {}
    for trial in plan.trials():
        file = folder.trial(trial) / "summary.json"
        summary = json.loads(file.read_text())
        top1[trial.id] = summary["top1"] - 2 - (trial.contender == "vit_c_tiny")
        file.write_text(json.dumps(summary | {"top1_best": summary["top1"] + 5 + trial.draw}))
    (folder.path / "second.json").write_text(json.dumps({"data": "another", "top1": top1}))
    (section,) = analyse([folder.path], protocol)
    (table,) = (t for t in section.finding.tables if t.title == "A second test set")
    sentence = section.finding.sentences[-1]
    assert {row[0]: row[3].split()[0] for row in table.rows} == {
        "vit_c_tiny": "30.15",
        "vit_p_tiny": "30.15",
    }
    assert ("after the last epoch" in sentence) == (protocol == "paper")


def test_printed_gaps_are_as_the_paper_prints_them_slip_included() -> None:
    for model, (adamw, sgd, difference) in TABLE3.items():
        if model != "vit_s4_4gf":
            assert sgd - adamw == pytest.approx(difference)
    assert TABLE3["vit_s4_4gf"][2] == 1.3


def test_models_and_times_beside_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "paper", "table1", "--scale", "full", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "17.5 / 86.7 / 24" in out
    assert "Nothing was timed" in out


def test_small_models_have_no_minutes_of_imagenet_and_one_number_of_classes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = EXHIBITS["table1"].small.entries[:1]
    small = replace(EXHIBITS["table1"], small=replace(EXHIBITS["table1"].small, entries=entries))
    monkeypatch.setitem(EXHIBITS, "table1", small)
    words = ["study", "paper", "table1", "--iterations", "1", "--train.batch", "2", *FP32]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "an ImageNet epoch" not in out
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    head, row = values["models"]
    (times,) = values["times"]
    assert f"{times['params'] / 1e6:.3f}" == row[head.index("params (M)")]
    assert "epoch_minutes" not in times


@pytest.mark.slow
def test_what_time_goes_with_stands_beside_figure_9(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "paper", "fig9", "--iterations", "1", "--train.batch", "4"]) == 0
    assert "0.93" in capsys.readouterr().out


def test_bench_times_what_pycls_times_and_the_whole_step(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    words = ["bench", "vit_p_tiny", "--train.batch", "8", "--iterations", "2", "--out", str(file)]
    assert main([*words, "--train.precision", "auto"]) == 0
    (model,) = json.loads(file.read_text())["models"]
    assert model["precision"] in ("fp32", "bf16")  # what was timed
    for name in ("test_fw", "train_fw", "train_bw", "step"):
        assert 0 < model[name]["low"] <= model[name]["median"] <= model[name]["high"]
    assert model["epoch_minutes"] == pytest.approx(1_281_167 / 8 * model["step"]["median"] / 60_000)
    assert "images/s" in capsys.readouterr().out
    assert main(["bench", "vit_p_tine"]) == 2
    assert "Did you mean" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_small_exhibit_trains_from_a_clean_clone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A few steps teach nothing, and draws of which none has learnt choose no settings.
    monkeypatch.setattr("vitc.study.results.learning_line", lambda *_: 100.0)
    e = EXHIBITS[name].small
    lengths = [str(i + 1) for i in range(len(e.lengths))]
    words = f"study paper {name} --count 1 --out out --workers 2 --train.precision fp32"
    words += " --data.max_train 256 --train.batch 64" + (" --tune 1" if e.tune else "")
    assert main([*words.split(), "--lengths", *lengths]) == 0
    values = json.loads((tmp_path / "out" / "report" / "results.json").read_text())
    (section,) = [*values["sections"], *values["findings"]]
    assert section["unfinished_trials"] == 0
