"""Trials from elsewhere: read from CSV and JSON Lines, compared, and reported."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitc.cli.main import main
from vitc.errors import ConfigError
from vitc.stats import curves
from vitc.stats.unpaired import compare_unpaired
from vitc.study import compare
from vitc.study.trials_file import Columns, OtherTrials, compare_trials, read_trials
from vitc.study.trials_report import trials_report

ERRORS = {
    "mine": [31.0, 40.5, 35.2, 33.0, 52.0, 38.1, 90.0, 36.6],
    "base": [33.1, 42.0, 38.0, 34.9, 53.0, 40.9, 41.0, 88.0],
}


def rows(**changed: Any) -> list[dict[str, Any]]:
    """Eight trials of two contenders with shared draws; mine fails on draw 6, base on draw 7."""
    found = [
        {"model": name, "seed": i, "lr": 0.1 / (i + 1), "err": e, "state": "finished"}
        for name, errors in ERRORS.items()
        for i, e in enumerate(errors)
    ]
    return [row | changed for row in found]


def write(path: Path, table: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def found(file: Path, reference: str = "base", classes: int = 10, **columns: Any) -> OtherTrials:
    named = Columns(**{"error": "err", "contender": "model", "draw": "seed", **columns})
    return compare_trials(read_trials([file], named), named, reference, classes)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_shared_draws_are_compared_as_a_studys_are(suffix: str, tmp_path: Path) -> None:
    study = found(write(tmp_path / f"t.{suffix}", rows()), settings=("lr",))
    (rival,) = study.rivals
    lost = [np.array(ERRORS[name]) > study.line for name in ("mine", "base")]
    assert study.line == pytest.approx(81.0)  # of ten classes
    assert [x.nonzero()[0].tolist() for x in lost] == [[6], [7]]
    assert rival.paired
    assert rival.comparison == compare(ERRORS["mine"], ERRORS["base"], *lost)
    assert not any("not checked" in note for note in study.notes)


def test_a_shared_draw_is_named_over_its_dot_with_its_settings(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", rows())
    asked = Columns(error="err", contender="model", draw="seed", settings=("lr",))
    page = trials_report([file], tmp_path / "out", asked, "base", 10).path.read_text()
    assert "<title>draw 0: -2.1 points, 31.0 % against 33.1 %; lr 0.1</title>" in page
    assert page.count("<title>draw ") == 6


def test_draws_that_are_not_shared_are_found_and_named(tmp_path: Path) -> None:
    other = [row | {"lr": row["lr"] * (1 + (row["model"] == "mine"))} for row in rows()]
    study = found(write(tmp_path / "t.csv", other), settings=("lr",))
    assert any("settings differ on 8 of 8 draws" in note for note in study.notes)
    lost = [np.array(ERRORS[name]) > study.line for name in ("mine", "base")]
    unpaired = compare_unpaired(ERRORS["mine"], ERRORS["base"], *lost)
    assert study.rivals[0].comparison == unpaired
    assert found(tmp_path / "t.csv", draw="").rivals[0].comparison == unpaired


def test_failures_are_states_missing_errors_and_chance(tmp_path: Path) -> None:
    table = rows()
    table[0]["err"], table[1]["err"], table[2]["state"] = "NaN", "", "diverged"
    study = found(write(tmp_path / "t.csv", table), failed="state")
    mine = [t.draw for t in study.of("mine") if study.failed(t)]
    assert mine == ["0", "1", "2", "6"]
    assert [t.draw for t in study.of("mine") if t.marked] == ["0", "1", "2"]
    known = found(tmp_path / "t.csv", failed="state", classes=0)
    assert math.isinf(known.line)
    assert any("--classes" in note for note in known.notes)


def test_columns_inside_json_shares_and_files_as_contenders(tmp_path: Path) -> None:
    for name, errors in ERRORS.items():
        curves_ = [{"curve": [{"top1": 0.1}, {"top1": 1 - e / 100}]} for e in errors]
        write(tmp_path / f"{name}.jsonl", [*curves_, {"curve": []}])
    columns = Columns(accuracy="curve.-1.top1", unit="share")
    trials = read_trials([tmp_path / "base.jsonl", tmp_path / "mine.jsonl"], columns)
    assert [t.error for t in trials if t.contender == "mine"][:8] == pytest.approx(ERRORS["mine"])
    assert sum(t.marked for t in trials) == 2  # the empty curves
    assert compare_trials(trials, columns).reference == "base"


@pytest.mark.parametrize(
    ("changed", "columns", "message"),
    [
        ({}, {"error": "eror"}, "no column 'eror'. Did you mean 'err'?"),
        ({}, {"error": "", "accuracy": ""}, "--error"),
        ({"err": "good"}, {}, "line 2: 'good' is no number"),
        ({"err": 101.0}, {}, "101"),
        ({"err": 0.25}, {}, "--unit share"),
        ({}, {"classes": 1}, "--classes 1"),
        ({"state": "PRUNED"}, {"failed": "state"}, "'pruned'"),
        ({"seed": 1}, {}, "more than once"),
        ({"model": "one"}, {"draw": ""}, "only contender"),
        ({"model": ""}, {}, "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_message(
    changed: dict[str, Any], columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        found(write(tmp_path / "t.csv", rows(**changed)), **{"reference": "", **columns})
    assert message in f"{error.value.message} {error.value.hint}"


def test_shares_beside_percent_are_noticed_in_any_file_or_contender(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{c}.csv", rows(model=c)) for c in ("percent", "share")]
    shares = [row | {"err": row["err"] / 100} for row in rows()]
    files[1] = write(tmp_path / "share.csv", shares)
    columns = Columns(error="err", draw="")
    with pytest.raises(
        ConfigError, match=r"share\.csv runs from 0\.\d+ to 0\.\d+.*others are larger"
    ):
        read_trials(files, columns)
    assert read_trials(files, Columns(error="err", unit="percent"))
    mixed = write(
        tmp_path / "both.csv",
        [r | {"model": "p"} for r in rows()] + [r | {"model": "s"} for r in shares],
    )
    with pytest.raises(ConfigError, match="of s runs from"):
        read_trials([mixed], Columns(error="err", contender="model"))


def test_files_of_one_name_and_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    files = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        files.append(write(tmp_path / place / "results.csv", rows()))
    with pytest.raises(ConfigError, match="2 files are called 'results'"):
        read_trials(files, Columns(error="err"))
    assert read_trials(files, Columns(error="err", contender="model"))
    (tmp_path / "twice.csv").write_text("err,err\n1,50\n")
    with pytest.raises(ConfigError, match="more than one column 'err'"):
        read_trials([tmp_path / "twice.csv"], Columns(error="err"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"err": 1, "err": 30}', "line 1 is not a JSON object: the key 'err' appears"),
        ("t.json", '[{"err": 30}]', "one JSON object a line"),
        ("t.csv", "err\n3_0.5\n", "'3_0.5' is no number"),
        ("t.csv", "err\n٣٠\n", "'٣٠' is no number"),
    ],
)
def test_trials_that_would_be_misread_are_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_trials([tmp_path / name], Columns(error="err"))
    assert message in f"{error.value.message} {error.value.hint}"


def test_contenders_of_almost_one_name_are_named(tmp_path: Path) -> None:
    table = [r | {"model": r["model"] + " " * (r["seed"] % 2)} for r in rows()]
    notes = " ".join(found(write(tmp_path / "t.csv", table), draw="").notes)
    assert "almost the same name: 'mine', 'mine ', 'base', 'base '" in notes


def test_numbers_are_the_same_however_they_are_spelt_and_tabs_divide_columns(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_text("err\tseed\tlr\n20\t0\t1e-3\n30\t1.0\t0.010\n")
    (tmp_path / "b.jsonl").write_text(
        '{"err": 25, "seed": 0.0, "lr": 0.001}\n{"err": 31, "seed": "1", "lr": 1e-2}\n'
    )
    columns = Columns(error="err", draw="seed", settings=("lr",))
    a, b, c, d = read_trials([tmp_path / "a.csv", tmp_path / "b.jsonl"], columns)
    assert (a.draw, a.settings) == (c.draw, c.settings) == ("0", {"lr": "0.001"})
    assert (b.draw, b.settings) == (d.draw, d.settings) == ("1", {"lr": "0.01"})


def test_the_command_writes_a_page_and_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [row | {"model": f"={row['model']}<b>"} for row in rows()]
    file = write(tmp_path / "sweep.csv", table)
    words = ["report", str(file), "--error", "err", "--contender", "model", "--draw", "seed"]
    assert main([*words, "--classes", "10", "--reference", "=base<b>", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["comparisons"][0]["verdict"] == "lower"
    out = tmp_path / "sweep_report"
    assert values["report"] == str(out / "report.html")
    assert "<b>" not in (out / "report.html").read_text().replace("&lt;b&gt;", "")
    kept = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert len(kept) == 16
    assert kept[0]["contender"] == "'=mine<b>"
    assert [k["draw"] for k in kept if k["failed_to_learn"] == "True"] == ["6", "7"]


@pytest.mark.parametrize(
    "words",
    [["{file}", "--error", "err", "--page", "x.md"], ["{folder}", "--error", "err"], ["{file}"]],
)
def test_options_without_effect_are_refused(words: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", rows())
    assert main(["report", *(w.format(file=file, folder=tmp_path) for w in words)]) == 2


def test_an_array_is_no_file_of_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.json").write_text('[{"err": 30}]')
    assert main(["report", str(tmp_path / "t.json"), "--error", "err"]) == 2
    assert "a JSON object a line, no array" in capsys.readouterr().err.replace("\n", " ")


# -- runs that share no draws ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 9), (20, 12), (45, 50)])
def test_unpaired_p_values_are_those_of_scipy(size: tuple[int, int]) -> None:
    from scipy import stats

    rng = np.random.default_rng(sum(size))
    a, b = rng.normal(30, 2, size[0]), rng.normal(31.5, 2, size[1])
    method = "exact" if sum(size) <= 60 else "asymptotic"
    ours = compare_unpaired(a, b)
    assert ours.p == pytest.approx(stats.mannwhitneyu(a, b, method=method).pvalue)
    assert ours.difference == pytest.approx(np.median(np.subtract.outer(a, b)))


def test_unpaired_intervals_agree_with_their_p_and_hold_under_equality() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(300):
        m, n = (int(k) for k in rng.choice([6, 10, 16, 30, 40], 2))
        a, b = (np.round(rng.exponential(3, k) + 30, rng.integers(1, 6)) for k in (m, n))
        one = compare_unpaired(a, b, rng.random(m) < 0.2, rng.random(n) < 0.2)
        low, high = one.interval
        assert (low <= 0 <= high) == (one.p >= 1 - 0.95)
        called += one.verdict in ("lower", "higher", "mixed")
    assert called / 300 <= 0.085  # 5 % and three standard errors


def test_unpaired_failures_speak_against_the_better_error() -> None:
    a, b = np.linspace(20, 24, 20), np.linspace(26, 30, 20)
    assert compare_unpaired(a, b).verdict == "lower"
    dead = np.arange(20) < 8
    assert compare_unpaired(a, b, dead, ~(a > 0)).verdict == "mixed"
    same = compare_unpaired(a, a + 0.01, dead, ~(a > 0))
    assert (same.verdict, same.failures, same.n) == ("fails more", (8, 0), (12, 20))


@pytest.mark.slow
def test_tuning_curves_of_512_trials_with_failures_are_those_of_opda() -> None:
    opda = pytest.importorskip(
        "opda.nonparametric", reason="opda is missing: tuning curves were NOT compared with it"
    )
    rng = np.random.default_rng(0)
    learnt = 25 + 60 * rng.beta(1.2, 2.0, 288)
    for chance in (np.full(224, 99.9), np.full(0, 99.9)):
        errors = np.append(learnt, chance)
        ours = curves.tuning_curve(errors)
        theirs = opda.EmpiricalDistribution(errors, a=0.0, b=100.0)
        mean = theirs.u_tuning_curve(ours.ks, minimize=True)
        middle = theirs.quantile_tuning_curve(ours.ks, minimize=True)
        assert np.abs(ours.mean - mean).max() < 1e-6
        assert np.abs(ours.median - middle).max() < 1e-6
