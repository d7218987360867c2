"""A study as it runs: workers that die, interruptions, extension, and what it then says."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vitc.cli import main
from vitc.errors import ConfigError, InterruptedRun
from vitc.study import load_runs
from vitc.study.conduct import conduct, hparams_plan, standing, status_lines
from vitc.study.engines import Job, LocalEngine, Outcome
from vitc.study.plan import Plan, StudyFolder

QUICKLY = {"train.epochs": 1, "train.batch": 64}


def plan(draws: int = 2, **overrides: Any) -> Plan:
    return hparams_plan(["debug"], ["vit_c_tiny", "vit_p_tiny"], ["adamw"], draws=draws,
                        **{**QUICKLY, **overrides})  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 2 x 2 trials, run once for all tests that only read it."""
    path = tmp_path_factory.mktemp("study") / "s"
    conduct(StudyFolder(path), plan(), workers=2, quiet=True, command="vitc study ...")
    return path


def test_every_trial_is_an_ordinary_run_folder(study: Path) -> None:
    runs = load_runs(study)
    assert len(runs) == 4
    assert {r.status for r in runs} == {"done"}
    assert all(r.top1 is not None and r.metrics("eval") for r in runs)
    assert {r.summary["hardware"]["threads"] for r in runs} == {1}


def test_extending_a_study_keeps_the_trials_that_ended(study: Path, tmp_path: Path) -> None:
    before = {p.name: (p.stat().st_ino, (p / "events.log").read_text())
              for p in (study / "trials").iterdir()}  # fmt: skip
    now = conduct(StudyFolder(study), plan(3), workers=2, quiet=True)
    assert (now.ended, now.total) == (6, 6)
    after = {p.name: (p.stat().st_ino, (p / "events.log").read_text())
             for p in (study / "trials").iterdir()}  # fmt: skip
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    assert "6 of 6 trials" in status_lines(StudyFolder(study))[0]


def test_the_report_can_be_made_again_and_says_its_verdict(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study)]) == 0
    out = capsys.readouterr().out
    assert "vit_c_tiny" in out
    assert "shared draws" in out
    assert (study / "report" / "report.html").exists()
    assert main(["study", "status", str(study)]) == 0
    assert "Next: vitc report" in capsys.readouterr().out


def test_a_study_stopped_midway_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    slow = plan(2, **{"train.epochs": 200})
    stopper = threading.Timer(6, os.kill, (os.getpid(), signal.SIGTERM))
    stopper.start()
    with pytest.raises(InterruptedRun) as caught:
        conduct(folder, slow, workers=1, quiet=True)
    stopper.join()
    assert caught.value.run_exit_code == 143
    now = standing(folder, slow)
    assert now.ended < 4
    for run in now.runs.values():
        if run.status == "interrupted":
            assert (run.path / "checkpoints" / "latest").exists()


class Recorder:
    """What an engine told while it ran."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.killed = 0

    def done(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def jobs(tmp_path: Path, count: int, epochs: int) -> list[Job]:
    trials = list(plan(count, **{"train.epochs": epochs}).trials())[:count]
    return [Job(t.id, f"draw {t.draw}", t.config, tmp_path / t.id) for t in trials]


@pytest.mark.parametrize(
    ("deaths", "status"), [(1, "done"), pytest.param(2, "failed", marks=pytest.mark.slow)]
)
def test_a_trial_whose_worker_dies_is_tried_once_more(
    tmp_path: Path, deaths: int, status: str
) -> None:
    engine, told = LocalEngine(workers=1), Recorder()
    first, second = jobs(tmp_path, 2, epochs=6)

    def tick(running: Sequence[Job]) -> None:
        metrics = first.out / "metrics.jsonl"
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        if running and running[0] is first and told.killed < deaths and lines > told.killed:
            told.killed += 1
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
            time.sleep(0.1)

    engine.run([first, second], told.done, tick)
    assert told.killed == deaths
    assert {o.job.id: o.status for o in told.outcomes} == {first.id: status, second.id: "done"}
    assert not multiprocessing.active_children()


def test_a_failing_trial_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    p = plan(1)
    blocked = next(p.trials())
    folder.trials.mkdir(parents=True)
    folder.trial(blocked).write_text("a file where the run folder should be")
    engine, told = LocalEngine(workers=1), Recorder()
    work = [Job(t.id, t.contender, t.config, folder.trial(t)) for t in p.trials()]
    engine.run(work, told.done, lambda running: None)
    assert [o.status for o in told.outcomes] == ["failed", "done"]


def test_mixed_contenders_are_refused_unless_allowed(tmp_path: Path) -> None:
    import dataclasses

    p = plan(1)
    other = dataclasses.replace(
        p.groups[0].config, train=dataclasses.replace(p.groups[0].config.train, batch=32)
    )
    unfair = dataclasses.replace(
        p, groups=(dataclasses.replace(p.groups[0], config=other), p.groups[1])
    )
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
    ],
)
def test_a_users_mistake_is_one_message(
    words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


STUDY = (
    "import sys, torch; torch.set_num_threads(1); from vitc.cli import main; "
    "sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.slow
def test_a_study_killed_twice_repeats_no_finished_trial(tmp_path: Path) -> None:
    """16 draws; once `kill -9` of the engine and all its workers, once SIGTERM."""
    out = tmp_path / "s"
    words = ["study", "hparams", "debug", "--models", "vit_c_tiny", "vit_p_tiny", "--draws", "16",
             "--train.epochs", "2", "--out", str(out)]  # fmt: skip
    command = [sys.executable, "-c", STUDY, *words]

    def ended() -> dict[str, tuple[int, str]]:
        """Folder inode and the first line of events.log, with its time, of finished trials."""
        return {
            p.parent.name: (p.parent.stat().st_ino,
                            (p.parent / "events.log").read_text().splitlines()[0])
            for p in out.glob("trials/*/summary.json")
            if json.loads(p.read_text())["status"] in ("done", "diverged")
        }  # fmt: skip

    def stopped_after(count: int, number: int) -> dict[str, tuple[int, str]]:
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        while len(ended()) < count and process.poll() is None:
            time.sleep(0.05)
        before = ended()
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(120) == (-9 if number == signal.SIGKILL else 143)
        return before

    first = stopped_after(5, signal.SIGKILL)
    time.sleep(0.5)
    second = stopped_after(15, signal.SIGTERM)
    done = subprocess.run([*command, "--json"], check=True, timeout=600, capture_output=True)
    last = ended()
    assert len(last) == 32
    assert first.items() <= second.items() <= last.items()
    assert json.loads(done.stdout.splitlines()[-1])["sections"][0]["unfinished_trials"] == 0
    for events in out.glob("trials/*/events.log"):  # one start each; the stopped ones went on
        assert events.read_text().count("  begun") == 1
