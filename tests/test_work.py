"""`vitc.study.work`: a trial is run once, on whichever machine, and taken up where it was lost."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engines import Here
from vitc.cli.main import main
from vitc.errors import ConfigError, RunError
from vitc.files import FolderLock, read_json, write_json
from vitc.machine import environment
from vitc.runs.folder import CLAIM, CONFIG, TRIES
from vitc.study import load_runs, work
from vitc.study.design import Plan, Trial
from vitc.study.launch import LocalEngine
from vitc.study.measures.hparams import hparams_plan
from vitc.study.runner import conduct, work_on
from vitc.study.standing import standing
from vitc.study.study_folder import StudyFolder
from vitc.study.work import (
    BUSY,
    DEATHS,
    Pool,
    Span,
    allow_again,
    check_machine,
    claimed,
    deaf_children,
    read_tries,
    run_spread,
    run_trial,
)

QUICKLY = {"train.epochs": 1, "train.batch": 64, "train.precision": "fp32", "train.device": "cpu"}


def plan(draws: int = 1, **overrides: Any) -> Plan:
    settings = {**QUICKLY, **overrides}
    return hparams_plan(["debug"], ["vit_p_tiny"], ["adamw"], draws=draws, **settings)


def study(path: Path, draws: int = 1, **overrides: Any) -> tuple[StudyFolder, list[Trial]]:
    """A study that has its plan and no trial yet."""
    folder, made = StudyFolder(path / "s"), plan(draws, **overrides)
    folder.start(made, environment() | {"engine": "local"}, "", keep="all")
    return folder, list(made.trials())


def nothing_twice(folder: Path) -> None:
    """Each trial was started once, and no step is logged twice."""
    for run in load_runs(folder / "trials"):
        assert (run.path / "events.log").read_text().count("  started") == 1
        steps = [line["step"] for line in run.metrics("train")]
        assert steps == sorted(set(steps))


def results(folder: Path) -> dict[str, Any]:
    """What trials came to, by id: metrics without times, and every byte of the weights."""
    found = {}
    for run in load_runs(folder / "trials"):
        lines = [{k: v for k, v in line.items() if "second" not in k} for line in run.metrics()]
        step = (run.path / "checkpoints" / "latest").read_text().strip()
        files = (run.path / "checkpoints" / step).glob("*.safetensors")
        found[run.path.name] = (run.status, lines, {p.name: p.read_bytes() for p in files})
    return found


# -- one trial -------------------------------------------------------------------------------------


def test_a_trial_notes_where_it_ran_and_is_not_run_twice(tmp_path: Path) -> None:
    folder, (trial,) = study(tmp_path)
    assert run_trial(folder, trial, "ray") == "done"
    before = (folder.trial(trial) / "events.log").read_text()
    assert run_trial(folder, trial, "slurm") == "done"
    assert (folder.trial(trial) / "events.log").read_text() == before
    (entry,) = read_tries(folder.trial(trial))
    assert (entry["engine"], entry["ended"], entry["process"]) == ("ray", "done", os.getpid())
    (run,) = load_runs(folder.trial(trial))
    assert run.places == [("ray", socket.gethostname())]


def test_places_of_the_former_spelling_are_read(tmp_path: Path) -> None:
    folder, (trial,) = study(tmp_path)
    out = folder.trial(trial)
    out.mkdir(parents=True)
    write_json(out / CONFIG, {"model": {}, "data": {}, "optim": {}, "train": {}})
    (out / "events.log").write_text("2026-01-01T00:00:00+00:00  placed by engine ray on host n1\n")
    write_json(out / TRIES, {"schema": 1, "tries": [{"engine": "local", "host": "n2"}]})
    (run,) = load_runs(out)
    assert run.places == [("ray", "n1"), ("local", "n2")]


def test_a_trial_that_another_process_runs_or_writes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LOCK_SECONDS", 0.3)
    folder, (trial,) = study(tmp_path)
    out = folder.trial(trial)
    out.mkdir(parents=True)
    with FolderLock(out, CLAIM):
        assert claimed(out)
        assert run_trial(folder, trial, "ray") == BUSY
    with FolderLock(out):
        assert not claimed(out)
        assert run_trial(folder, trial, "ray") == BUSY
    assert not (out / CONFIG).exists()
    assert read_tries(out) == []


def test_a_trial_that_fails_is_recorded_with_its_reason_and_not_tried_again(
    tmp_path: Path,
) -> None:
    folder, (trial,) = study(tmp_path)
    data = dataclasses.replace(trial.config.data, path="/not/there")
    config = dataclasses.replace(trial.config, data=data)
    broken = dataclasses.replace(trial, group=dataclasses.replace(trial.group, config=config))
    assert run_trial(folder, broken, "local") == "failed"
    summary = read_json(folder.trial(trial) / "summary.json")
    assert summary["status"] == "failed"
    assert "data.path" in summary["error"]
    assert run_trial(folder, trial, "local") == "failed"
    allow_again(folder.trial(trial))
    (folder.trial(trial) / CONFIG).unlink()
    assert run_trial(folder, trial, "local") == "done"


@pytest.mark.parametrize(
    ("ends", "failed"),
    [
        (["died"] * (DEATHS - 1), False),
        (["died"] * DEATHS, True),
        ([None] * (work.MOST_TRIES - 1), False),
        ([None] * work.MOST_TRIES, True),
        (["interrupted"] * (work.MOST_TRIES - 1), False),
        (["interrupted"] * work.MOST_TRIES, True),
    ],
)
def test_a_trial_whose_process_dies_too_often_is_given_up_with_the_reason(
    ends: list[str | None], failed: bool, tmp_path: Path
) -> None:
    folder, (trial,) = study(tmp_path)
    out = folder.trial(trial)
    out.mkdir(parents=True)
    entry = {"engine": "local", "host": "n1", "process": 1, "checkpoint": ""}
    ended = [entry | ({} if e is None else {"ended": e, "reason": "signal SIGSEGV"}) for e in ends]
    elsewhere = [entry | {"ended": "died", "checkpoint": "step_16"}] * 9  # it got beyond that one
    write_json(out / TRIES, {"schema": 1, "tries": [*elsewhere, *ended]})
    assert run_trial(folder, trial, "local") == ("failed" if failed else "done")
    if failed:
        error = read_json(out / "summary.json")["error"]
        assert f"{len(ends)} tries" in error
        assert "n1" in error


def test_children_never_hear_what_slurm_sends_to_all() -> None:
    with deaf_children():
        assert {signal.SIGUSR1, signal.SIGUSR2} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGUSR1, signal.SIGUSR2}


def test_a_trial_over_nodes_is_one_torchrun_on_each() -> None:
    words = Span(4, 2, 1, "node7", 20_001).command(Path("s"), "t", "slurm")
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=node7"} < {*words}


@pytest.mark.slow
def test_a_trial_in_two_processes_is_stopped_and_resumed(tmp_path: Path) -> None:
    longer = {"train.epochs": 12, "train.save_every_steps": 16, "train.log_every_steps": 4}
    folder, (trial,) = study(tmp_path, **longer, **{"train.micro_batch": 32})
    saved = folder.trial(trial) / "checkpoints" / "latest"
    Pool(folder, [trial.id], 1, "ray", span=Span(2)).run(lambda: not saved.exists())
    assert read_json(folder.trial(trial) / "summary.json")["status"] == "interrupted"
    assert run_spread(folder, trial.id, "ray", Span(2)) == "done"
    nothing_twice(folder.path)
    assert load_runs(folder.trial(trial))[0].top1 is not None


# -- this machine's workers ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deaths", "status"), [(1, "done"), pytest.param(2, "failed", marks=pytest.mark.slow)]
)
def test_a_trial_whose_worker_dies_is_tried_once_more(
    tmp_path: Path, deaths: int, status: str
) -> None:
    folder, (first, second) = study(tmp_path, 2, **{"train.epochs": 6})
    killed = 0

    def going() -> bool:
        nonlocal killed
        metrics = folder.trial(first) / "metrics.jsonl"
        begun = len(read_tries(folder.trial(first))) if metrics.exists() else 0
        if killed < deaths and begun > killed:  # a worker that began no try would not count
            killed += 1
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
            time.sleep(0.1)
        return True

    Pool(folder, [first.id, second.id], 1).run(going)
    assert killed == deaths
    assert [work.status_of(folder.trial(t)) for t in (first, second)] == [status, "done"]
    assert [t["ended"] for t in read_tries(folder.trial(first))][:deaths] == ["died"] * deaths
    assert read_tries(folder.trial(first))[0]["reason"] == "signal SIGKILL"
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named_and_the_other_trials_are_run(
    tmp_path: Path,
) -> None:
    folder, made = StudyFolder(tmp_path / "s"), plan(2)
    blocked, other = made.trials()
    folder.start(made, {"versions": {}, "hardware": {}}, "")
    folder.trials.mkdir()
    folder.trial(blocked).write_text("a file where the run folder should be")
    with pytest.raises(RunError, match=blocked.id):
        conduct(folder, made, engine=LocalEngine(1), quiet=True, allow_mixed=True)
    assert read_json(folder.trial(other) / "summary.json")["status"] == "done"


def test_work_takes_a_slice_and_refuses_what_is_no_slice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEngine, "run", Here.run)
    folder, trials = study(tmp_path, 3)
    assert main(["study", "work", str(folder.path), "--slice", "2/2", "--workers", "1"]) == 0
    assert [(folder.trial(t) / "summary.json").exists() for t in trials] == [False, True, False]
    assert "1 of 3 trials" in capsys.readouterr().out
    assert main(["study", "work", str(folder.path), "--slice", "3/2"]) == 2
    assert "I/N" in capsys.readouterr().err


def test_a_machine_without_the_study_or_with_other_versions_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=socket.gethostname()):
        check_machine(StudyFolder(tmp_path / "none"))
    folder, made = StudyFolder(tmp_path / "s"), plan()
    folder.start(made, {"versions": {"torch": "1.0", "vitc": "0"}, "hardware": {}}, "")
    with pytest.raises(ConfigError, match=r"torch 1\.0 -> "):
        work_on(folder, LocalEngine(1), quiet=True)
    assert not folder.trials.exists()
    check_machine(folder, allow_mixed=True)


def test_without_file_locks_machines_need_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = study(tmp_path)
    monkeypatch.setattr("vitc.files.fcntl", None)
    with pytest.raises(ConfigError, match="no locks"):
        work_on(folder, LocalEngine(1), quiet=True)


# -- kills -----------------------------------------------------------------------------------------

LONGER = {"train.epochs": 12, "train.save_every_steps": 16, "train.log_every_steps": 4}
VITC = "import sys; from vitc.cli.main import main; sys.exit(main(sys.argv[1:]))"


def start(*words: str) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", VITC, *words]
    return subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload, no-any-return]


def until(condition: Callable[[], Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the study of the kill tests, without any kill."""
    folder = StudyFolder(tmp_path_factory.mktemp("alone") / "s")
    conduct(folder, plan(4, **LONGER), engine=LocalEngine(2), keep="all", quiet=True)
    return results(folder.path)


@pytest.mark.slow
def test_two_machines_on_one_folder_run_no_trial_twice_and_one_takes_over(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    """Two `vitc study work` at a time; the first is killed with its workers, in mid-trial."""
    folder, trials = study(tmp_path, 4, **LONGER)
    first, second = (start("study", "work", str(folder.path), "--workers", "1") for _ in range(2))
    running = "trials/*/checkpoints/latest"
    until(lambda: len(list(folder.path.glob(running))) >= 2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert second.wait(300) == 0
    until(lambda: not any(claimed(folder.trial(t)) for t in trials), 5)
    assert work_on(folder, LocalEngine(1), quiet=True).ended == 4
    tries = [read_tries(folder.trial(t)) for t in trials]
    assert sorted(len(t) for t in tries) == [1, 1, 1, 2]
    nothing_twice(folder.path)
    assert results(folder.path) == alone


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["conductor", "worker", "both"])
def test_a_killed_study_loses_and_repeats_nothing(
    victim: str, tmp_path: Path, alone: dict[str, Any]
) -> None:
    folder = StudyFolder(tmp_path / "s")
    settings = [w for n, v in {**QUICKLY, **LONGER}.items() for w in (f"--{n}", str(v))]
    words = ["study", "hparams", "debug", "--models", "vit_p_tiny", "--draws", "4", *settings]
    words += ["--workers", "2", "--keep", "all", "--out", str(folder.path)]
    process = start(*words)
    until(lambda: len(list(folder.path.glob("trials/*/checkpoints/latest"))) == 2)
    workers = {read_tries(p.parent)[-1]["process"] for p in folder.path.glob(f"trials/*/{TRIES}")}
    assert len(workers) == 2
    if victim == "worker":
        os.kill(min(workers), signal.SIGKILL)
        assert process.wait(300) == 0
    elif victim == "conductor":
        process.kill()
        until(lambda: not any(Path(f"/proc/{w}").exists() for w in workers), 10)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if victim != "worker":
        time.sleep(0.5)
        assert start(*words).wait(300) == 0
    now = standing(folder, folder.read()[0])
    assert (now.ended, now.counts["done"]) == (4, 4)
    ends = [t.get("ended") for p in folder.trials.iterdir() for t in read_tries(p)]
    lost = {"worker": ["died"], "conductor": [None, None], "both": [None, None]}[victim]
    assert sorted(ends, key=str) == sorted([*lost, *["done"] * 4], key=str)
    nothing_twice(folder.path)
    assert results(folder.path) == alone


def test_a_study_stopped_by_sigterm_saves_and_resumes(tmp_path: Path) -> None:
    """The stop reaches workers at any instant, also before a run handles signals itself."""
    folder, (trial,) = study(tmp_path, 1, **{"train.epochs": 400})
    Pool(folder, [trial.id], 1).run(lambda: not read_tries(folder.trial(trial)))
    entries = read_tries(folder.trial(trial))
    assert [e["ended"] for e in entries] == ["interrupted"]
    assert not claimed(folder.trial(trial))
