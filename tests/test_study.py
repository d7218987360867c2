"""A study as it runs: workers that die, interruptions, extension, and what it then says."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines import Here
from tests.invented import HERE, done, write_trial
from tests.test_work import until
from vitc.cli.main import main
from vitc.cli.report import report_on
from vitc.errors import CheckpointError, ConfigError, InterruptedRun
from vitc.resolve import load_config
from vitc.study import load_runs
from vitc.study.contenders import contenders_of
from vitc.study.design import TUNING, Plan
from vitc.study.launch import LocalEngine
from vitc.study.measures.base import length_points, measure_plan, request_of
from vitc.study.measures.hparams import Hparams, hparams_plan
from vitc.study.quick import quick_plan
from vitc.study.reporting import report
from vitc.study.runner import conduct
from vitc.study.standing import standing, status_lines
from vitc.study.studies import continued
from vitc.study.study_folder import StudyFolder
from vitc.study.tuning import tuning_plan

QUICKLY = {"train.epochs": 1, "train.batch": 64}


def plan(draws: int = 2, **overrides: Any) -> Plan:
    return hparams_plan(
        ["debug"], ["vit_c_tiny", "vit_p_tiny"], ["adamw"], draws=draws, **{**QUICKLY, **overrides}
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 2 x 2 trials, run once for all tests that only read it."""
    path = tmp_path_factory.mktemp("study") / "s"
    conduct(StudyFolder(path), plan(), engine=Here(), quiet=True, command="vitc study ...")
    return path


def test_every_trial_is_an_ordinary_run_folder(study: Path) -> None:
    runs = load_runs(study)
    assert len(runs) == 4
    assert {r.status for r in runs} == {"done"}
    assert all(r.top1 is not None and r.metrics("eval") for r in runs)
    assert {r.summary["hardware"]["threads"] for r in runs} == {1}


def test_extending_a_study_keeps_the_trials_that_ended(study: Path, tmp_path: Path) -> None:
    def files() -> dict[str, Any]:
        every = (study / "trials").iterdir()
        return {p.name: (p.stat().st_ino, (p / "events.log").read_text()) for p in every}

    before = files()
    now = conduct(StudyFolder(study), plan(3), engine=Here(), quiet=True)
    assert (now.ended, now.total) == (6, 6)
    after = files()
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    assert "6 of 6 trials" in status_lines(StudyFolder(study))[0]


def test_a_later_command_keeps_the_reference_and_the_looks_of_the_plan(tmp_path: Path) -> None:
    words: dict[str, Any] = {"recipes": ["debug"], "models": ["vit_c_tiny", "vit_p_tiny"]}
    words |= QUICKLY
    begun = request_of(Hparams(), **words, runs=2, name="s", reference="vit_c_tiny", looks=3)
    folder = StudyFolder(tmp_path / "s")
    folder.start(Hparams().plan(replace(begun, margin=1.5)), HERE, "vitc study hparams")
    request = continued(request_of(Hparams(), **words, runs=4), folder, "hparams")
    assert (request.reference, request.looks, request.margin) == ("vit_c_tiny", 3, 1.5)
    assert folder.joined(Hparams().plan(request)).draws == 4
    with pytest.raises(ConfigError, match="looks: 3 -> 2"):
        folder.joined(Hparams().plan(replace(request, looks=2)))


@pytest.mark.usefixtures("undrawn")
def test_the_report_can_be_made_again_and_says_its_verdict(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study)]) == 0
    out = capsys.readouterr().out
    assert "vit_c_tiny" in out
    assert "draws" in out
    assert (study / "report" / "report.html").exists()
    assert main(["study", "status", str(study)]) == 0
    assert "Next: vitc report" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_stopped_midway_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    slow = plan(2, **{"train.epochs": 200})

    def stop_when_training() -> None:
        until(lambda: any(f.stat().st_size for f in folder.path.glob("trials/*/metrics.jsonl")))
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_when_training)
    stopper.start()
    with pytest.raises(InterruptedRun) as caught:
        conduct(folder, slow, engine=LocalEngine(1), quiet=True)
    stopper.join()
    assert caught.value.run_exit_code == 143
    now = standing(folder, slow)
    assert now.ended == 0
    (run,) = [run for run in now.runs.values() if run.status == "interrupted"]
    assert (run.path / "checkpoints" / "latest").exists()


def test_mixed_contenders_are_refused_unless_allowed(tmp_path: Path) -> None:
    p = plan(1)
    other = p.groups[0].with_config(load_config(p.groups[0].config, **{"train.batch": 32}))
    unfair = replace(p, groups=(other, p.groups[1]))
    with pytest.raises(ConfigError, match="batch"):
        conduct(StudyFolder(tmp_path / "s"), unfair, quiet=True)
    assert not (tmp_path / "s" / "plan.json").exists()


def test_a_study_begun_with_other_versions_is_not_continued_silently(study: Path) -> None:
    file = study / "plan.json"
    record = json.loads(file.read_text())
    record["environment"]["versions"]["torch"] = "1.0"
    original = file.read_text()
    file.write_text(json.dumps(record))
    try:
        with pytest.raises(ConfigError, match=r"torch 1\.0"):
            conduct(StudyFolder(study), plan(3), quiet=True)
        conduct(StudyFolder(study), plan(3), quiet=True, allow_mixed=True)
        history = json.loads(file.read_text())["history"]
        assert any("torch 1.0" in entry["what"] for entry in history)
    finally:
        file.write_text(original)


QUICK = ["study", "quick", "--draws", "1", "--dry-run"]  # nothing runs, should it not be refused


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["study", "status", "nowhere"], 2, "not a study"),
        (["report", "nowhere"], 2, "not a study"),
        (["study", "quack"], 2, "Did you mean 'quick'"),
        (["study", "hparams"], 2, "RECIPE"),
        (["study", "hparams", "debug", "--optims", "adamx"], 2, "adamw"),
        (["study", "hparams", "debug", "--range", "optim.lr", "a", "b"], 2, "two numbers"),
        (["study", "hparams", "debug", "--range", "sgd:optim.lr", "1", "2"], 2, "not in the study"),
        (["study", "hparams", "debug", "--optim", "sgd"], 2, "--optims"),
        ([*QUICK, "--model.stem", "conv"], 2, "--stems conv patchify conv"),
        ([*QUICK, "--model", "vit_s1_4gf"], 2, "--models vit_s1_4gf vit_p_tiny"),
        ([*QUICK, "--optim", "sgd"], 2, "--optims sgd"),
        ([*QUICK, "--model.stem.norm", "ln"], 2, "each with its own stem"),
        ([*QUICK, "--optim.momentum", "0.8"], 2, "holds for every contender"),
    ],
)
def test_a_users_mistake_is_one_message(
    words: list[str],
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def invented(path: Path, p: Plan, trials: dict[int, dict[str, Any]]) -> StudyFolder:
    """A study on disk whose trials, by their number in the plan, have these summaries."""
    folder = StudyFolder(path)
    folder.start(p, {"versions": {}, "hardware": {}, "engine": "local"}, "vitc study this")
    for number, trial in enumerate(p.trials()):
        if number in trials:
            write_trial(folder, trial, trials[number])
    return folder


@pytest.mark.usefixtures("undrawn")
def test_a_study_without_a_result_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = invented(tmp_path / "s", plan(), {0: {}, 1: {"status": "failed", "error": "boom"}}).path
    assert main(["study", "status", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 of 4 trials; 1 failed, 1 interrupted, 2 waiting" in out
    assert "boom" in out
    assert out.splitlines()[-1].endswith("resume it with: vitc study this")
    assert main(["report", str(path)]) == 0
    out = capsys.readouterr().out
    assert "nothing to compare yet" in out
    assert f"Failed: 1 trial; why: vitc study status {path}" in out
    assert "Next: the same command runs the 3 trials" in out
    assert "tighter intervals" not in out


@pytest.mark.usefixtures("undrawn")
def test_a_study_ends_well_with_diverged_trials_and_not_with_failed_ones(tmp_path: Path) -> None:
    diverged = {"status": "diverged", "error": "Diverged at step 3"}
    good = {0: done(40), 1: diverged, 2: done(50), 3: done(45)}
    ended = invented(tmp_path / "a", plan(), good).path
    failed = invented(tmp_path / "b", plan(), {**good, 1: {"status": "failed", "error": "?"}}).path
    short = invented(tmp_path / "c", plan(), {0: done(40)}).path
    codes = [report_on([path], None, as_json=False, ran=True) for path in (ended, failed, short)]
    assert codes == [0, 1, 1]
    assert report_on([failed], None, as_json=True) == 0  # making the report went well


def test_a_measure_that_is_being_tuned_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, points = tmp_path / "s", length_points([1, 2])
    groups = contenders_of(["debug"], ["vit_c_tiny", "vit_p_tiny"], ["adamw"])
    tuning = tuning_plan(groups, points, draws=2, name="s tuning", classes=10)
    invented(path / TUNING, tuning, {0: done(40)})
    assert main(["study", "status", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Nothing is measured yet")
    assert "s tuning" in out
    assert "1 of 8 trials" in out
    assert main(["report", str(path)]) == 2
    assert f"vitc report {path / TUNING}" in capsys.readouterr().err
    invented(path, measure_plan("length", groups, points, seeds=2, name="s", classes=10), {})
    lines = status_lines(StudyFolder(path))
    assert any(line.startswith("s tuning") for line in lines)
    assert any(line.startswith("s (") and "0 of 8 trials" in line for line in lines)


@pytest.mark.parametrize("verb", [["study", "status"], ["report"]])
@pytest.mark.parametrize("damage", ["cut", "empty", "no history", "no environment"])
def test_a_damaged_plan_is_one_message(
    verb: list[str], damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = invented(tmp_path / "s", plan(), {}).path
    file = path / "plan.json"
    text = file.read_text()
    whole = json.loads(text)
    what = damage.removeprefix("no ")
    without = json.dumps({k: v for k, v in whole.items() if k != what})
    file.write_text({"cut": text[: len(text) // 2], "empty": ""}.get(damage, without))
    assert main([*verb, str(path)]) == 2
    err = capsys.readouterr().err
    assert str(file) in err
    assert "Restore it from a copy" in err
    assert "Traceback" not in err
    assert not (path / "report").exists()


@pytest.mark.parametrize("summary", ['{"status": "do', '{"status": "done", "top1": "x"}'])
def test_a_damaged_trial_is_named_with_what_to_do(summary: str, tmp_path: Path) -> None:
    p = plan()
    folder = invented(tmp_path / "s", p, {0: done(40)})
    trial = folder.trial(next(p.trials()))
    (trial / "summary.json").write_text(summary)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        standing(folder, p)
    assert f"Remove {trial}" in (caught.value.hint or "")


STEMS = """
import torch


class Odd(torch.nn.Module):
    def __init__(self, in_chans, embed_dim):
        super().__init__()
        self.reduction = 8
        self.conv = torch.nn.Conv2d(in_chans, embed_dim, 8, 8)

    def forward(self, x):
        return self.conv(x) if float(x.abs().sum()) >= 0 else x


class Measured(Odd):
    def __init__(self, in_chans, embed_dim):
        super().__init__(in_chans, int(torch.ones(1).item()) * embed_dim)

    def forward(self, x):
        return self.conv(x)
"""


@pytest.mark.usefixtures("undrawn")
def test_a_model_that_cannot_be_counted_takes_no_report(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text(STEMS)
    p = hparams_plan(
        ["debug"],
        ["vit_p_tiny"],
        ["adamw"],
        draws=2,
        stems=[f"{file}:Odd", f"{file}:Measured", "patchify"],
        **{**QUICKLY, "train.precision": "fp32"},
    )
    study = invented(tmp_path / "s", p, {i: done(40 + i) for i in range(6)}).path
    page, (section,) = report([study])
    values = json.loads((page.parent / "results.json").read_text())["sections"][0]
    counts = {g["contender"]: (g["flops"], g["params"], g["activations"]) for g in values["groups"]}
    assert counts["vit_p_tiny+Odd"] == (None, None, None)
    assert all(counts["vit_p_tiny+Measured"]), "made with data, where it cannot be without"
    assert all(counts["vit_p_tiny+patchify"])
    (told,) = [n for n in section.finding.warnings if "could not be counted" in n]
    assert told.startswith("vit_p_tiny+Odd: ")
    assert "item()" in told
    assert told in values["notes"]
    html = page.read_text()
    assert "could not be counted" in html
    assert "<td>-</td><td>-</td><td>-</td><td>100.0</td>" in html


def test_quick_keeps_its_contenders_under_settings_that_hold_for_all() -> None:
    settings = {"train.precision": "fp32", "model.depth": 2, "optim.clip_norm": 1.0}
    p, _ = quick_plan(1, 1, draws=1, **settings)
    assert {g.config.model.depth for g in p.groups} == {2}  # type: ignore[attr-defined]
    assert p.reference in p.contenders
    with pytest.raises(ConfigError, match=r"--model\.stem has no effect in vitc study quick"):
        quick_plan(1, 1, draws=1, **{"model.stem": "dual_patchnorm"})


def test_a_study_says_what_it_draws_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(words: str) -> str:
        where = ["--train.precision", "fp32", "--out", str(tmp_path / "s")]
        assert main(["study", "hparams", *words.split(), "--dry-run", *where]) == 0
        return capsys.readouterr().err

    both = printed("fashion_vit_p --models vit_c_tiny resnet_50")
    assert "same ranges, adamw: lr 0.00025 to 0.008, weight_decay" in both
    assert "the recipe of a ViT, and may not suit resnet_50." in both
    assert "may not suit" not in printed("fashion_vit_p --models vit_c_tiny vit_p_tiny")
    idle = printed("debug --models vit_c_tiny vit_p_tiny --ranges separate")
    assert "--ranges separate changes nothing here" in idle
