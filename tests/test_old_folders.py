"""Run, study and pack folders of an earlier version: resumed to the bit, extended, reported, used.

tests/golden/folders/ holds them (scripts/make_goldens.py), with what the version that wrote them
made of them. Studies must find their trials and train none again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitc
from tests import golden_cases as cases
from tests.golden_cases import config_differences, differences, golden, text_differences

SAME_MACHINE = cases.machine() == golden("runs")["machine"]
MEASURES = ("hparams", "length", "optimizer", "peak", "seeds", "vary", "stems")


@pytest.fixture(autouse=True)
def _undrawn() -> Iterator[None]:
    with cases.figures_undrawn():
        yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return cases.unpack("images", tmp_path)


def predicted(run: Path, images: Path, *words: str) -> list[Any]:
    """Of every image its three likeliest classes, the images named as in the goldens."""
    code, out = cases.run("predict", run, images, "--json", "--topk", "3", *words)
    assert code == 0, out
    found = [json.loads(line) for line in out.splitlines()]
    return [p | {"image": f"/tmp/vitc_goldens/images/{_short(p['image'])}"} for p in found]


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def assert_predicted(old: list[Any], new: list[Any]) -> None:
    assert len(new) == 24
    assert not close(old, new)
    assert [p["image"] for p in new] == [p["image"] for p in old]
    if SAME_MACHINE:  # elsewhere, two classes that are almost equal may change places
        assert not text_differences(old, new)


def close(old: Any, new: Any, tolerance: float = 1e-6) -> list[str]:
    """Differences; of numbers that another machine rounds otherwise, only large ones."""
    return differences(old, new, tolerance if SAME_MACHINE else max(tolerance, 1e-3))


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.KILLED)
def test_a_run_killed_in_mid_training_ends_as_if_it_never_was(
    name: str, tmp_path: Path, images: Path
) -> None:
    old, run = golden("runs")[name], cases.unpack(name, tmp_path)
    words: list[str | Path] = ["--trust"] if name == "killed_stem" else []
    if name == "killed_pack":  # the pack has moved since
        words = ["--data", shutil.copy(cases.FOLDERS / "photos.vitc", tmp_path)]
    assert not (run / "summary.json").exists()
    summary = cases.run_json("train", run, *words)
    assert summary["status"] == "done"
    metrics = cases.without(cases.metrics(run), cases.WALL)
    if not SAME_MACHINE:
        assert not differences(old["metrics"], metrics, None)
        return
    assert cases.state_of(run) == old["state"]
    assert metrics == old["metrics"]
    assert not close(old["eval"], cases.run_json("eval", run))
    assert_predicted(old["predict"], predicted(run, images))


def test_a_finished_run_is_evaluated_shown_and_predicted_from(tmp_path: Path, images: Path) -> None:
    old, run = golden("runs")["done"], cases.unpack("done", tmp_path)
    assert_predicted(old["predict"], predicted(run, images))
    assert_predicted(old["predict --raw"], predicted(run, images, "--raw"))
    assert not close(old["eval"], cases.run_json("eval", run))
    test = cases.run_json("eval", run, "--split", "test", "--raw")
    assert not close(old["eval --split test --raw"], test)
    assert not close(old["show"], cases.run_json("show", run))


def test_the_python_api_reads_a_finished_run(tmp_path: Path, images: Path) -> None:
    run = cases.unpack("done", tmp_path)
    saved = json.loads((run / "config.json").read_text())
    config = vitc.load_config(run)
    assert (config.train.epochs, config.optim.lr) == (
        saved["train"]["epochs"],
        saved["optim"]["lr"],
    )
    files = sorted((images / "class_1").iterdir())
    predictions = vitc.Predictor(run)(files)
    assert np.allclose(predictions.probs.sum(1), 1, atol=1e-5)
    old = [p["top"][0] for p in golden("runs")["done"]["predict"] if "class_1" in p["image"]]
    best = [float(p.max()) for p in predictions.probs]
    assert not close([p["probability"] for p in old], best)
    assert len(vitc.study.load_runs(tmp_path)) == 1


@pytest.mark.parametrize("name", ["done", "saved"])
def test_a_run_starts_from_the_weights_of_one(name: str, tmp_path: Path) -> None:
    old, weights = golden("runs")[name]["init"], cases.unpack(name, tmp_path)
    out = tmp_path / "out"
    cases.run_json(*cases.init_words(weights, out))
    metrics = cases.without(cases.metrics(out), cases.WALL)
    assert not differences(old["metrics"], metrics, None)
    if SAME_MACHINE:
        assert cases.state_of(out) == old["state"]
        assert metrics == old["metrics"]


def test_a_saved_model_is_predicted_from(tmp_path: Path, images: Path) -> None:
    saved = cases.unpack("saved", tmp_path)
    assert_predicted(golden("runs")["saved"]["predict"], predicted(saved, images))


def test_a_pack_is_verified(tmp_path: Path) -> None:
    made = cases.run_json("data", "verify", cases.FOLDERS / "photos.vitc")
    assert made["images"] == golden("runs")["pack"]["photos.vitc"]["images"] == 24


# -- studies ---------------------------------------------------------------------------------------


def untouched(study: Path) -> dict[str, str]:
    """What a trial's folder would not keep if it were run again."""
    return {str(p.relative_to(study)): p.read_text() for p in study.rglob("events.log")}


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[] if m == "hparams" else pytest.mark.slow) for m in MEASURES]
)
def test_the_same_command_trains_nothing_again_and_reports_the_same(
    name: str, tmp_path: Path
) -> None:
    old, study = golden("studies")[name], cases.unpack(name, tmp_path)
    before = untouched(study)
    words: list[str | Path] = [*cases.study_words(name, study), "--allow-mixed"]
    if name == "stems":  # the stem's file has moved since: here is the study's copy of it
        stem = shutil.copy(next(study.rglob("*my_stem.py")), tmp_path / "my_stem.py")
        words = [str(w).replace("/tmp/vitc_goldens/my_stem.py", str(stem)) for w in words]
    results = cases.run_json(*words)
    assert untouched(study) == before
    assert set(cases.trials_of(study)) == set(old["trials"])
    assert not differences(old["results"], results)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_a_report_of_it_has_the_same_numbers(name: str, tmp_path: Path) -> None:
    study = cases.unpack(name, tmp_path)
    words = ["--trust"] if name == "stems" else []
    results = cases.run_json("report", study, *words)
    assert not differences(golden("studies")[name]["results"], results)
    code, _ = cases.run("study", "status", study)
    assert code == 0


@pytest.mark.slow
def test_a_longer_study_keeps_the_draws_of_the_shorter_one(tmp_path: Path) -> None:
    old, study = golden("studies")["hparams"], cases.unpack("hparams", tmp_path)
    before = untouched(study)
    results = cases.run_json(*cases.longer_words("hparams", study), "--allow-mixed")
    after = untouched(study)
    assert len(after) == len(before) * 3 // 2
    assert {name: after[name] for name in before} == before
    new = cases.trials_of(study)
    assert set(new) == set(old["extended"]["trials"])
    if SAME_MACHINE:
        assert new == old["extended"]["trials"]
        timeless = cases.without(old["extended"]["results"], cases.WALL)
        assert not differences(timeless, cases.without(results, cases.WALL))


@pytest.mark.slow
def test_an_interrupted_study_is_finished(tmp_path: Path) -> None:
    old, study = golden("studies")["half"], cases.unpack("half", tmp_path)
    before = untouched(study)
    assert len(before) == 3
    results = cases.run_json(*cases.study_words("half", study), "--allow-mixed")
    after = untouched(study)
    assert sorted(after[name] == text for name, text in before.items()) == [False, True, True]
    assert all(after[name].startswith(text) for name, text in before.items())
    assert set(cases.trials_of(study)) == set(old["trials"])
    if SAME_MACHINE:
        assert cases.trials_of(study) == old["trials"]
        timeless = cases.without(old["results"], cases.WALL)
        assert not differences(timeless, cases.without(results, cases.WALL))


def ordered(trials: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials by model, optimizer settings and draw: ids are hashes, also of later settings."""
    return sorted(trials.values(), key=lambda t: json.dumps(t))


@pytest.mark.slow
def test_a_fresh_study_has_the_same_plan_trials_and_numbers(tmp_path: Path) -> None:
    old, study = golden("studies")["length"], tmp_path / "length"
    stored = json.loads((cases.unpack("length", tmp_path / "old") / "plan.json").read_text())
    reference = ["--reference", stored["plan"]["reference"]]  # the last was the default
    cases.run_json(*cases.study_words("length", study), *reference)
    for file in study.glob("trials/*/data.json"):  # that version did not record the largest class
        record = json.loads(file.read_text())
        del record["largest_class"]
        file.write_text(json.dumps(record))
    results = cases.run_json("report", study)
    stored_trials, trials = ordered(old["trials"]), ordered(cases.trials_of(study))
    results_of = frozenset(("status", "top1", "step"))
    assert cases.without(trials, results_of) == cases.without(stored_trials, results_of)
    fresh = json.loads((study / "plan.json").read_text())
    assert not differences(stored["plan"], fresh["plan"], 0.0)
    for a, b in zip(stored["plan"]["groups"], fresh["plan"]["groups"], strict=True):
        assert not config_differences(a, b)
    if SAME_MACHINE:
        assert trials == stored_trials
        timeless = cases.without(old["results"], cases.WALL)
        assert not differences(timeless, cases.without(results, cases.WALL))
