"""Engines for clusters: their flags, how they retry, and that results stay the same."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vitc.cli.main import main
from vitc.errors import ConfigError, InterruptedRun, RunError
from vitc.files import FolderLock
from vitc.runs.folder import CONFIG
from vitc.study import launch_slurm as engine_slurm
from vitc.study import load_runs
from vitc.study import work as trial
from vitc.study.analysis import analyse
from vitc.study.design import Plan, StudyFolder
from vitc.study.launch import LOST_RETRIES, RETRIES, Job, LocalEngine, Outcome
from vitc.study.launch_ray import RayEngine
from vitc.study.launch_slurm import Batch, SlurmEngine
from vitc.study.placement import Placement
from vitc.study.runner import conduct, hparams_plan, standing
from vitc.study.summary import facts
from vitc.study.work import Span, Torchrun, deaf_children, run_trial, spec_file, write_spec

QUICKLY = {"train.epochs": 1, "train.batch": 64, "train.precision": "fp32", "train.device": "cpu"}


def plan(draws: int = 2, models: Sequence[str] = ("vit_p_tiny",), **overrides: Any) -> Plan:
    return hparams_plan(["debug"], models, ["adamw"], draws=draws, **{**QUICKLY, **overrides})


def jobs(study: Path, count: int) -> list[Job]:
    """Jobs of a study of which nothing exists but its folders."""
    (study / "trials").mkdir(parents=True)
    (study / "plan.json").write_text("{}")
    trials = list(plan(count).trials())
    return [Job(t.id, f"draw {t.draw}", t.config, study / "trials" / t.id) for t in trials]


def finish(job: Job, status: str = "done") -> None:
    """Leave behind what a trial that ended leaves."""
    job.out.mkdir(exist_ok=True)
    (job.out / "summary.json").write_text(json.dumps({"status": status, "train_seconds": 1.0}))


class Told:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    @property
    def statuses(self) -> list[str]:
        return [o.status for o in self.outcomes]

    def done(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


# -- flags -----------------------------------------------------------------------------------------

STUDY = [
    "study",
    "hparams",
    "debug",
    "--draws",
    "2",
    "--train.precision",
    "fp32",
    "--train.epochs",
    "1",
]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--engine", "ray", "--workers", "2"], "--workers has no effect with --engine ray"),
        (["--ray-address", "auto"], "--ray-address has no effect with --engine local"),
        (["--engine", "slurm", "--ray-address", "auto"], "--ray-address has no effect"),
        (["--engine", "ray", "--partition", "gpu"], "--partition has no effect"),
        (["--engine", "ray", "--hours", "2"], "it is for: slurm"),
        (["--gpus-per-trial", "1"], "it is for: ray, slurm"),
        (["--engine", "ray", "--gpus-per-trial", "1.5"], "a share of one GPU or a whole number"),
        (["--engine", "ray", "--gpus-per-trial", "-1"], "must not be negative"),
        (["--engine", "ray", "--gpus-per-trial", "nan"], "must not be negative"),
        (["--engine", "slurm", "--gpus-per-trial", "0.5"], "whole GPUs"),
        (["--engine", "slurm", "--gpus-per-trial", "2", "--pack", "2"], "one GPU or none"),
        (["--engine", "slurm", "--nodes-per-trial", "2", "--gpus-per-trial", "3"], "a multiple"),
        (["--engine", "slurm", "--hours", "0.01"], "too short"),
        (["--engine", "slurm", "--hours", "-1"], "above 0"),
        (["--engine", "slurm", "--slurm-cluster", "pbs"], "invalid choice"),
        (["--engine", "ray", "--ray-address", "ray://x:1"], "neither auto nor HOST:PORT"),
        (["--engine", "ray", "--gpus-per-trial", "1", "--train.device", "cpu"], "go together"),
        (["--engine", "kubernetes"], "invalid choice"),
    ],
)
def test_a_flag_without_effect_or_sense_is_one_message(
    words: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, *words]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_quick_on_a_cluster_needs_draws_as_its_budget_is_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "quick", "--engine", "ray"]) == 2
    assert "--draws" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_without_its_package_an_engine_says_the_line_that_installs_it(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit" if engine == "slurm" else "ray", None)
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, "--engine", engine]) == 2
    assert f"pip install 'vitc[{engine}]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "asked", "device"),
    [
        (None, None, "cpu"),
        (None, "cuda", "cuda"),
        (0.25, None, "cuda"),
        (4, "cuda", "cuda"),
        (0, "auto", "cpu"),
    ],
)
def test_the_device_of_trials_elsewhere_is_told_by_their_gpus(
    gpus: float | None, asked: str | None, device: str
) -> None:
    assert Placement(engine="ray", gpus_per_trial=gpus).device(asked) == device


def test_trials_for_a_gpu_are_planned_where_none_is(tmp_path: Path) -> None:
    config = next(plan(1, **{"train.device": "cuda", "train.precision": "bf16"}).trials()).config
    assert (config.train.device, config.train.threads) == ("cuda", None)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU here")
def test_what_can_only_be_measured_on_the_gpu_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"--train\.precision"):
        plan(1, **{"train.device": "cuda", "train.precision": "auto"})
    with pytest.raises(ConfigError, match="cuda"):
        LocalEngine(1).prepare(Path(), ["cuda"])


def test_a_study_for_the_cpu_gets_no_gpus_later() -> None:
    with pytest.raises(ConfigError, match="are for cpu, but get 2 GPUs"):
        Placement(engine="slurm", gpus_per_trial=2).make("cpu")


# -- SLURM's script --------------------------------------------------------------------------------


def test_sbatch_is_asked_for_what_the_flags_say() -> None:
    engine = Placement(
        engine="slurm",
        gpus_per_trial=1,
        cpus_per_trial=6,
        pack=4,
        partition="gpu",
        account="a1",
        qos="low",
        constraint="a100",
        max_jobs=7,
        hours=1.5,
    ).make("cuda")
    assert isinstance(engine, SlurmEngine)
    asked = engine.parameters("vitc-s")
    assert {k: asked[k] for k in ("partition", "account", "qos", "constraint")} == {
        "partition": "gpu",
        "account": "a1",
        "qos": "low",
        "constraint": "a100",
    }
    assert (asked["time"], asked["array_parallelism"], asked["exclusive"]) == (90, 7, True)
    assert (asked["gpus_per_node"], asked["cpus_per_task"], asked["nodes"]) == (4, 24, 1)
    assert asked["srun_args"] == ["--cpus-per-task=24"]


def test_a_trial_over_nodes_has_its_gpus_shared_out() -> None:
    engine = SlurmEngine(gpus=8, nodes=2)
    asked = engine.parameters("vitc-s")
    assert (asked["nodes"], asked["gpus_per_node"], asked["ntasks_per_node"]) == (2, 4, 1)
    words = Span(4, 2, 1, "node7", 20_001).command(Path("spec.json"))
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=node7"} < {*words}


def test_the_dry_run_prints_the_job_script_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="NOT TESTED: submitit is not installed (vitc[slurm])")
    monkeypatch.chdir(tmp_path)
    words = [
        "--engine",
        "slurm",
        "--gpus-per-trial",
        "1",
        "--partition",
        "gpu",
        "--pack",
        "2",
        "--qos",
        "low",
        "--max-jobs",
        "3",
        "--hours",
        "12",
        "--dry-run",
    ]
    assert main([*STUDY, "--draws", "20", *words]) == 0
    out = capsys.readouterr().out
    assert "20 of 20 trials" in out
    for line in (
        "--array=0-9%3",
        "--partition=gpu",
        "--qos=low",
        "--time=720",
        "--exclusive",
        "--gpus-per-node=2",
        "--requeue",
        "--signal=USR2@90",
    ):
        assert f"#SBATCH {line}\n" in out
    assert re.search(r"^srun .* -m submitit\.core\._submit ", out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_on_this_machine_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, "--dry-run"]) == 0
    assert "2 of 2 trials would run with engine local" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# -- SLURM, with a stand-in for the cluster --------------------------------------------------------


class Handle:
    """A job as submitit gives it back."""

    def __init__(self, number: str, folder: Path) -> None:
        self.job_id, self.cancelled = number, False
        self.paths = SimpleNamespace(
            result_pickle=folder / f"{number}_0_result.pkl", stderr=folder / f"{number}.err"
        )

    def cancel(self, check: bool = True) -> None:
        self.cancelled = True


class Cluster:
    """A SLURM that answers from memory: each submitted job ends at once, as `ends` has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.submitted, self.listed = folder, [], {}
        self.ends: Callable[[int, Batch], str] = lambda number, batch: "COMPLETED"
        self.commands: list[Sequence[str]] = []
        self.arrays: list[int] = []
        monkeypatch.setattr(SlurmEngine, "_executor", lambda engine, study: self)
        monkeypatch.setattr(engine_slurm, "_slurm", self.answer)
        monkeypatch.setitem(engine_slurm.POLL_SECONDS, "slurm", 0.0)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        before = len(self.submitted)
        yield
        self.arrays.append(len(self.submitted) - before)

    def submit(self, batch: Batch) -> Handle:
        number = len(self.submitted)
        self.submitted.append(batch)
        self.listed[str(number)] = self.ends(number, batch)
        return Handle(str(number), self.folder)

    def answer(self, command: Sequence[str]) -> str:
        self.commands.append(command)
        return "".join(f"{number} {state}\n" for number, state in self.listed.items())


def answer(batch: Batch, status: str, error: str | None = None) -> None:
    for job in batch._jobs():
        batch._answer(Outcome(job, status, 1.0, error))
        if status in ("done", "diverged"):
            finish(job, status)


def run_slurm(engine: SlurmEngine, work: list[Job]) -> Told:
    told = Told()
    engine.run(work, told.done, lambda running: None)
    return told


def test_all_jobs_of_a_study_are_one_throttled_array_of_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: answer(batch, "done") or "COMPLETED"
    told = run_slurm(SlurmEngine(pack=2, max_jobs=1), jobs(tmp_path, 5))
    assert told.statuses == ["done"] * 5
    assert [len(b.trials) for b in cluster.submitted] == [2, 2, 1]
    assert cluster.arrays == [3]
    assert json.loads((tmp_path / "slurm" / "queued.json").read_text())["jobs"] == {}


@pytest.mark.parametrize(
    ("state", "tries"),
    [
        ("FAILED", RETRIES),
        ("OUT_OF_MEMORY", RETRIES),
        ("TIMEOUT", RETRIES),
        ("NODE_FAIL", LOST_RETRIES),
        ("PREEMPTED", LOST_RETRIES),
    ],
)
def test_a_job_that_dies_is_tried_again_more_often_when_its_node_did(
    state: str, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: state
    told = run_slurm(SlurmEngine(), jobs(tmp_path, 1))
    assert len(cluster.submitted) == 1 + tries
    assert told.statuses == ["failed"]
    assert state in str(told.outcomes[0].error)


def test_a_trial_that_fails_by_its_own_fault_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: answer(batch, "failed", "bad data") or "COMPLETED"
    told = run_slurm(SlurmEngine(), jobs(tmp_path, 1))
    assert (len(cluster.submitted), told.outcomes[0].error) == (1, "bad data")


def test_a_result_that_is_there_counts_once_whatever_became_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: answer(batch, "diverged") or "NODE_FAIL"
    told = run_slurm(SlurmEngine(), jobs(tmp_path, 1))
    assert (len(cluster.submitted), told.statuses) == (1, ["diverged"])


def test_a_job_that_somebody_cancelled_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: "CANCELLED"
    told = run_slurm(SlurmEngine(), jobs(tmp_path, 2))
    assert (len(cluster.submitted), told.statuses) == (2, ["left", "left"])


def noted(study: Path, numbers: dict[str, list[str]]) -> Path:
    """The note of jobs that an earlier call has left."""
    (study / "slurm").mkdir()
    file = study / "slurm" / "queued.json"
    file.write_text(json.dumps({"cluster": "slurm", "jobs": numbers}))
    return file


def test_what_a_killed_study_had_queued_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    work = jobs(tmp_path, 3)
    noted(tmp_path, {"77": [work[0].id], "78": [work[1].id]})
    fake = ModuleType("submitit")
    fake.SlurmJob = lambda folder, job_id, tasks: Handle(job_id, folder)
    monkeypatch.setitem(sys.modules, "submitit", fake)
    cluster.listed = {"77": "RUNNING", "78": "NODE_FAIL"}
    cluster.ends = lambda number, batch: answer(batch, "done") or "COMPLETED"
    told = Told()

    def tick(running: Sequence[Job]) -> None:
        if len(cluster.submitted) == 2 and cluster.listed["77"] == "RUNNING":
            finish(work[0])
            cluster.listed["77"] = "COMPLETED"

    SlurmEngine().run(work, told.done, tick)
    assert told.statuses == ["done"] * 3
    again = [i for batch in cluster.submitted for i, *_ in batch.trials]
    assert again == [work[1].id, work[2].id]


def test_stopping_cancels_the_jobs_and_leaves_a_study_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: "RUNNING"
    engine, told = SlurmEngine(), Told()

    def cancelled(command: Sequence[str]) -> str:
        if command[0] == "scancel":
            for batch in cluster.submitted:
                answer(batch, "interrupted")
            cluster.listed = dict.fromkeys(cluster.listed, "CANCELLED")
        return cluster.answer(command)

    monkeypatch.setattr(engine_slurm, "_slurm", cancelled)
    engine.run(jobs(tmp_path, 2), told.done, lambda running: engine.stop.set())
    assert told.statuses == ["interrupted", "interrupted"]
    assert ["scancel", "0", "1"] in cluster.commands
    assert not (tmp_path / "slurm" / "stop").exists()


class Refusals:
    """sbatch says no `times` times, as submitit hands it on, and keeps the files it leaves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, why: str) -> None:
        self.times, self.asked, self.why = 10**6, 0, why
        self.cluster, self.take = cluster, cluster.submit
        monkeypatch.setattr(cluster, "submit", self)

    def __call__(self, batch: Batch) -> Handle:
        self.asked += 1
        if self.asked > self.times:
            return self.take(batch)
        (self.cluster.folder / f"{self.asked:032x}.pkl").touch()
        (self.cluster.folder / f".submission_file_{self.asked:032x}.sh").touch()
        print(self.why, file=sys.stderr)
        refused = subprocess.CalledProcessError(1, ["sbatch"], stderr=self.why)
        raise RuntimeError(self.why) from refused


BUSY = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.mark.parametrize(
    "why",
    [
        "sbatch: error: invalid partition specified: gpuu",
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition "
        "combination specified",
        "sbatch: error: Batch job submission failed: Invalid qos specification",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or "
        "exceeds some limit)",
    ],
)
def test_what_sbatch_refuses_for_good_is_said_at_once(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Refusals(monkeypatch, Cluster(monkeypatch, tmp_path / "slurm"), why)
    with pytest.raises(RunError, match=re.escape(why)) as caught:
        run_slurm(SlurmEngine(), jobs(tmp_path, 1))
    assert (sbatch.asked, "--partition" in str(caught.value.hint)) == (1, True)


def test_an_error_that_is_not_sbatchs_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, asked = Cluster(monkeypatch, tmp_path / "slurm"), []

    def broken(batch: Batch) -> Handle:
        asked.append(batch)
        raise RuntimeError("cannot make sense of sbatch")

    monkeypatch.setattr(cluster, "submit", broken)
    with pytest.raises(RunError, match="cannot make sense"):
        run_slurm(SlurmEngine(), jobs(tmp_path, 1))
    assert len(asked) == 1


@pytest.mark.parametrize(
    "why",
    [
        BUSY,
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Protocol authentication error",
    ],
)
def test_jobs_that_sbatch_does_not_take_now_are_handed_over_later_and_in_order(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: answer(batch, "done") or "COMPLETED"
    sbatch, work = Refusals(monkeypatch, cluster, why), jobs(tmp_path, 5)
    sbatch.times = 3
    told = run_slurm(SlurmEngine(pack=2), work)
    assert told.statuses == ["done"] * 5
    assert [i for b in cluster.submitted for i, *_ in b.trials] == [job.id for job in work]
    assert capsys.readouterr().err.count(why) == 1
    assert not [*cluster.folder.glob("*.pkl"), *cluster.folder.glob(".submission*")]


def test_what_runs_goes_on_while_sbatch_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: ["NODE_FAIL", "RUNNING", "RUNNING"][number]
    work, told, taken = jobs(tmp_path, 2), Told(), cluster.submit
    refused: list[int] = []

    def sometimes(batch: Batch) -> Handle:
        if len(cluster.submitted) < 2 or len(refused) >= 4:
            return taken(batch)
        refused.append(1)
        raise RuntimeError(BUSY) from subprocess.CalledProcessError(1, ["sbatch"])

    def tick(running: Sequence[Job]) -> None:
        if len(cluster.submitted) == 3:
            for number, job in (("1", work[1]), ("2", work[0])):
                finish(job)
                cluster.listed[number] = "COMPLETED"

    monkeypatch.setattr(cluster, "submit", sometimes)
    monkeypatch.setattr(engine_slurm, "SAVE_SECONDS", 0.1)
    SlurmEngine().run(work, told.done, tick)
    assert (told.statuses, len(refused)) == (["done", "done"], 4)
    assert not [c for c in cluster.commands if c[0] == "scancel"]


def test_sbatch_is_not_asked_again_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    sbatch = Refusals(monkeypatch, cluster, BUSY)
    monkeypatch.setattr(engine_slurm, "REFUSED_SECONDS", 0.2)
    with pytest.raises(RunError, match=r"for .* minutes: .*Socket timed out"):
        run_slurm(SlurmEngine(), jobs(tmp_path, 1))
    assert sbatch.asked > 1


def test_nothing_is_submitted_while_jobs_may_run_that_squeue_does_not_tell_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, work = Cluster(monkeypatch, tmp_path / "slurm"), jobs(tmp_path, 2)
    sbatch = Refusals(monkeypatch, cluster, "invalid partition")  # were it asked
    file = noted(tmp_path, {"77_0": [work[0].id], "77_1": [work[1].id]})
    before = file.read_text()
    monkeypatch.setitem(sys.modules, "submitit", ModuleType("submitit"))
    monkeypatch.setattr(engine_slurm, "_slurm", lambda command: None)
    with pytest.raises(RunError, match=r"does not answer; .* jobs 77 in its queue"):
        run_slurm(SlurmEngine(), work)
    assert (sbatch.asked, file.read_text()) == (0, before)


def test_jobs_that_did_not_hear_of_the_end_stay_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch, tmp_path / "slurm")
    cluster.ends = lambda number, batch: "RUNNING"
    work, engine, told = jobs(tmp_path, 2), SlurmEngine(), Told()
    monkeypatch.setattr(engine_slurm, "SAVE_SECONDS", 0.1)

    def away(command: Sequence[str]) -> None:
        if command[0] == "scancel":  # one job ends by itself
            (tmp_path / "slurm" / "1_0_result.pkl").touch()

    def tick(running: Sequence[Job]) -> None:
        monkeypatch.setattr(engine_slurm, "_slurm", away)
        engine.stop.set()

    engine.run(work, told.done, tick)
    assert told.statuses == ["interrupted", "interrupted"]
    left = json.loads((tmp_path / "slurm" / "queued.json").read_text())["jobs"]
    assert left == {"0": [work[0].id]}
    assert "job 0 not seen to end" in capsys.readouterr().err


def test_two_trials_of_an_array_meet_at_two_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(tmp_path, span=Span(2, 2))
    batch._began = time.monotonic()
    spans: list[Span] = []

    def torchrun(spec: Path, span: Span) -> Any:
        spans.append(span)
        return SimpleNamespace(wait=lambda told: ("interrupted", None))

    monkeypatch.setattr(engine_slurm, "Torchrun", torchrun)
    fake = ModuleType("submitit")
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(engine_slurm.time, "sleep", lambda seconds: None)
    for task, number, node in ((0, "901", 0), (0, "901", 1), (1, "902", 0)):
        here = SimpleNamespace(
            job_id=f"900_{task}",
            raw_job_id=number,
            node=node,
            global_rank=node,
            hostnames=["a", "b"],
        )
        fake.JobEnvironment = lambda here=here: here
        batch._over_processes()
    first, second, other = (span.port for span in spans)
    assert first == second != other


def batch_of(study: Path, **changed: Any) -> Batch:
    (study / "slurm").mkdir(exist_ok=True)
    return dataclasses.replace(SlurmEngine()._batch(study, jobs(study, 1)), **changed)


def test_a_job_that_does_not_see_the_study_says_so(tmp_path: Path) -> None:
    batch = batch_of(tmp_path)
    (tmp_path / "plan.json").unlink()
    batch()
    (found,) = tmp_path.glob("slurm/*.answer")
    assert json.loads(found.read_text())["status"] == "left"
    assert "does not see" in json.loads(found.read_text())["error"]


def test_a_job_with_another_torch_leaves_its_trials(tmp_path: Path) -> None:
    batch_of(tmp_path, versions={"torch": "1.0", "vitc": "unknown"})()
    (found,) = tmp_path.glob("slurm/*.answer")
    assert "torch" in json.loads(found.read_text())["error"]
    assert list((tmp_path / "trials").iterdir()) == []


@pytest.mark.parametrize(("step", "queued_again"), [("step_9", True), ("step_5", False)])
def test_a_job_is_queued_again_only_if_its_time_sufficed_for_a_checkpoint(
    step: str, queued_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ModuleType("submitit")
    fake.helpers = SimpleNamespace(DelayedSubmission=lambda batch: batch)
    monkeypatch.setitem(sys.modules, "submitit", fake)
    batch = batch_of(tmp_path, wall_seconds=100.0)
    latest = Path(batch.trials[0][3]) / "checkpoints" / "latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("step_5\n")
    batch._began, batch._reached_then = time.monotonic() - 95, batch._reached()
    latest.write_text(f"{step}\n")
    again = batch.checkpoint()
    assert (again == batch) if queued_again else again is None


# -- Ray, with a stand-in for the cluster ----------------------------------------------------------


class RayError(Exception):
    pass


def fake_ray(ends: Callable[[int, str], Any]) -> Any:
    """A Ray whose n-th task comes to ends(n, its run folder): a result, or an error raised."""
    names = (
        "TaskCancelledError",
        "RayTaskError",
        "WorkerCrashedError",
        "OutOfMemoryError",
        "NodeDiedError",
    )
    kinds = {name: type(name, (RayError,), {}) for name in names}
    placed: list[str] = []

    def remote(**options: Any) -> Any:
        def place(config: Any, out: str, gpus: float, trusted: str) -> int:
            placed.append(out)
            return len(placed) - 1

        return lambda function: SimpleNamespace(remote=place)

    def get(ref: int) -> Any:
        end = ends(ref, placed[ref])
        if isinstance(end, str):
            raise kinds[end](end)
        return end

    return SimpleNamespace(
        remote=remote,
        get=get,
        placed=placed,
        cancelled=[],
        exceptions=SimpleNamespace(RayError=RayError, **kinds),
        wait=lambda refs, num_returns, timeout: (refs, []),
        cancel=lambda ref, force: None,
    )


def run_ray(monkeypatch: pytest.MonkeyPatch, ray: Any, work: list[Job]) -> Told:
    monkeypatch.setattr("vitc.study.launch_ray.import_ray", lambda: ray)
    told = Told()
    RayEngine().run(work, told.done, lambda running: None)
    return told


@pytest.mark.parametrize(
    ("trouble", "tries"),
    [
        ("NodeDiedError", LOST_RETRIES),
        ("WorkerCrashedError", RETRIES),
        ("OutOfMemoryError", RETRIES),
        ("RayTaskError", 0),
        (("failed", "bad data", 1.0), 0),
        (("interrupted", None, 1.0), LOST_RETRIES),
        (("died", "exit code 3", 1.0), RETRIES),
    ],
)
def test_a_lost_task_is_placed_again_more_often_when_its_node_is_gone(
    trouble: Any, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = fake_ray(lambda n, out: trouble)
    told = run_ray(monkeypatch, ray, jobs(tmp_path, 1))
    assert len(ray.placed) == 1 + tries
    assert told.statuses == ["failed"]


def test_a_task_lost_once_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake_ray(lambda n, out: "NodeDiedError" if n == 0 else ("done", None, 2.0))
    told = run_ray(monkeypatch, ray, jobs(tmp_path, 3))
    assert told.statuses == ["done"] * 3
    assert len({o.job.id for o in told.outcomes}) == 3
    assert len(ray.placed) == 4


@pytest.mark.parametrize(
    ("gpus", "cpus", "node", "fit"),
    [
        (0, 1, (4, 0), 4),
        (0.25, 1, (64, 2), 8),
        (0.3, 1, (64, 2), 6),
        (4, 2, (64, 8), 2),
        (1, 8, (16, 8), 2),
        (2, 1, (64, 1), 0),
        (0, 8, (4, 0), 0),
    ],
)
def test_what_fits_on_a_node_is_known_beforehand(
    gpus: float, cpus: int, node: tuple[int, int], fit: int
) -> None:
    engine = RayEngine(gpus=gpus, cpus=cpus)
    nodes = [{"Resources": {"CPU": float(node[0]), "GPU": float(node[1])}}]
    if fit:
        engine._measure(nodes)
        assert engine.workers == fit
    else:
        with pytest.raises(ConfigError, match="No node is large enough"):
            engine._measure(nodes)


# -- a trial, wherever it is -----------------------------------------------------------------------


def test_a_trial_says_where_it_ran_and_is_not_run_twice(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, 1)
    assert run_trial(job.config, job.out, "ray") == ("done", None)
    before = (job.out / "events.log").read_text()
    assert run_trial(job.config, job.out, "slurm") == ("done", None)
    assert (job.out / "events.log").read_text() == before
    (run,) = load_runs(job.out)
    assert run.places == [("ray", os.uname().nodename)]


def test_a_trial_that_another_process_still_writes_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LOCK_SECONDS", 0.3)
    (job,) = jobs(tmp_path, 1)
    job.out.mkdir()
    with FolderLock(job.out):
        status, error = run_trial(job.config, job.out, "ray")
    assert status == "left"
    assert "is being written by process" in str(error)
    assert not (job.out / CONFIG).exists()


def test_children_never_hear_what_slurm_sends_to_all() -> None:
    with deaf_children():
        assert {signal.SIGUSR1, signal.SIGUSR2} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGUSR1, signal.SIGUSR2}


class Here(LocalEngine):
    """An engine of any name that runs trials in this very process."""

    def __init__(self, name: str) -> None:
        super().__init__(workers=1, name=name)

    def run(
        self,
        jobs: Sequence[Job],
        done: Callable[[Outcome], None],
        tick: Callable[[Sequence[Job]], None],
    ) -> None:
        for job in jobs:
            status, error = run_trial(job.config, job.out, self.name)
            done(Outcome(job, status, 1.0, error))


def test_a_study_moves_between_engines_and_the_report_says_so(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    conduct(folder, plan(1), engine=Here("local"), quiet=True)
    now = conduct(folder, plan(2), engine=Here("ray"), quiet=True)
    assert (now.ended, now.total) == (2, 2)
    _, record = folder.read()
    assert "continued with engine ray" in [entry["what"] for entry in record["history"]]
    assert sorted(place for run in now.runs.values() for place, _ in run.places) == ["local", "ray"]
    (section,) = analyse([folder.path])
    (places,) = [text for name, text in facts(section, "").rows if name == "trials ran"]
    host = os.uname().nodename
    assert f"local on {host}: 1 trial" in places
    assert f"ray on {host}: 1 trial" in places


def test_machines_with_other_versions_are_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(tmp_path / "s")
    monkeypatch.setattr(Here, "prepare", lambda *_: ["torch 2.13 here, 1.0 on node7"])
    with pytest.raises(ConfigError, match="node7"):
        conduct(folder, plan(1), engine=Here("ray"), quiet=True)
    conduct(folder, plan(1), engine=Here("ray"), quiet=True, allow_mixed=True)
    assert any("node7" in entry["what"] for entry in folder.read()[1]["history"])


# -- the real ones ---------------------------------------------------------------------------------


def needs(name: str, extra: str) -> Any:
    """The package, or a skip that says what was not tested."""
    return pytest.importorskip(name, reason=f"NOT TESTED: {name} is not installed (vitc[{extra}])")


def results(study: Path) -> dict[str, Any]:
    """What trials came to, by id: metrics without times, and every byte of the weights."""
    found = {}
    for run in load_runs(study / "trials"):
        lines = [{k: v for k, v in line.items() if "second" not in k} for line in run.metrics()]
        step = (run.path / "checkpoints" / "latest").read_text().strip()
        folder = run.path / "checkpoints" / step
        weights = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}
        found[run.path.name] = (run.status, lines, weights)
    return found


def nothing_twice(study: Path) -> None:
    """Each trial was begun once, and no step is logged twice."""
    for run in load_runs(study / "trials"):
        assert (run.path / "events.log").read_text().count("  begun") == 1
        steps = [line["step"] for line in run.metrics("train")]
        assert steps == sorted(set(steps))


def continued(study: Path) -> int:
    return sum("  continued" in p.read_text() for p in study.glob("trials/*/events.log"))


def once(condition: Callable[[], Any], act: Callable[[], None]) -> threading.Thread:
    """Wait in a thread for a condition, then act."""

    def watch() -> None:
        end = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


LONGER = {"train.epochs": 12, "train.save_every_steps": 16, "train.log_every_steps": 4}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the study that the real engines are compared on, as this machine has them."""
    folder = StudyFolder(tmp_path_factory.mktemp("local") / "s")
    conduct(folder, plan(4, **LONGER), workers=2, quiet=True)
    return results(folder.path)


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_comes_to_the_same_results(
    tmp_path: Path, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("ray", "ray")
    from ray.cluster_utils import Cluster as RayCluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    size = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = RayCluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    node = cluster.add_node(**size)
    folder = StudyFolder(tmp_path / "s")

    def two_running() -> bool:
        return len(list(folder.trials.glob("*/checkpoints/latest"))) == 2

    killer = once(two_running, lambda: cluster.remove_node(node, allow_graceful=False))
    try:
        engine = RayEngine(address=cluster.address)
        now = conduct(folder, plan(4, **LONGER), engine=engine, quiet=True)
    finally:
        killer.join()
        cluster.shutdown()
    assert (now.ended, now.total) == (4, 4)
    assert continued(folder.path) == 1
    nothing_twice(folder.path)
    assert results(folder.path) == local


@pytest.mark.slow
def test_a_local_ray_cluster_is_stopped_and_goes_on_on_this_machine(
    tmp_path: Path, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("ray", "ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    folder = StudyFolder(tmp_path / "s")
    stopper = once(
        lambda: list(folder.trials.glob("*/checkpoints/latest")),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(InterruptedRun):
        conduct(folder, plan(4, **LONGER), engine=RayEngine(), quiet=True)
    stopper.join()
    stopped = standing(folder, plan(4, **LONGER)).counts
    assert stopped["interrupted"] >= 1
    assert stopped["done"] < 4
    conduct(folder, plan(4, **LONGER), workers=2, quiet=True)
    nothing_twice(folder.path)
    assert results(folder.path) == local
    assert {p for r in load_runs(folder.path) for p, _ in r.places} == {"ray", "local"}


@pytest.mark.slow
def test_submitit_jobs_shorter_than_a_trial_and_one_killed_come_to_the_same_results(
    tmp_path: Path, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two packs of two, one job killed with all it started, wall time shorter than a pack."""
    needs("submitit", "slurm")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    folder = StudyFolder(tmp_path / "s")
    engine = SlurmEngine(cluster="local", pack=2, max_jobs=1, hours=20 / 3600)
    killer = once(
        lambda: len(list(folder.trials.glob("*/checkpoints/latest"))) == 2,
        lambda: kill_jobs(folder.path / "slurm"),
    )
    now = conduct(folder, plan(4, **LONGER), engine=engine, quiet=True)
    killer.join()
    assert (now.ended, now.total) == (4, 4)
    logs = "".join(p.read_text() for p in folder.path.glob("slurm/*_log.*"))
    assert continued(folder.path) >= 2
    assert "Requeued job" in logs
    nothing_twice(folder.path)
    assert results(folder.path) == local


def kill_jobs(folder: Path) -> None:
    """`kill -9` of the jobs that submitit runs in this folder, as their command lines name it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and str(folder).encode() in words:
                os.kill(int(process.name), signal.SIGKILL)


@pytest.mark.slow
def test_a_trial_in_two_processes_is_stopped_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    config = next(plan(1, **{**LONGER, "train.micro_batch": 32}).trials()).config
    job = Job("t", "t", config, tmp_path / "trials" / "t")
    assert write_spec(config, job.out, "ray") == spec_file(job.out)
    saved = job.out / "checkpoints" / "latest"
    status, error = Torchrun(spec_file(job.out), Span(2)).wait(saved.exists)
    assert status == "interrupted", error
    assert Torchrun(spec_file(job.out), Span(2)).wait() == ("done", None)
    nothing_twice(tmp_path)
    assert continued(tmp_path) == 1
    assert load_runs(job.out)[0].top1 is not None


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A SLURM of one node, this machine, on the loopback; skips loudly where it cannot be."""
    missing = [w for w in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(w) is None]
    if missing or os.getuid() != 0:
        pytest.skip(
            "NOT TESTED: a real SLURM needs root and Debian's slurm-wlm and munge "
            f"(missing: {', '.join(missing) or 'root'})"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    conf.write_text(SLURM_CONF.format(host=host, folder=folder, ports=ports))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    munge = [f"--{what}={folder / f'munge.{what}'}" for what in ("socket", "seed-file", "log-file")]
    commands = [
        [
            "munged",
            "--force",
            "--foreground",
            f"--key-file={key}",
            f"--pid-file={folder}/munge.pid",
            *munge,
        ],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    daemons = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "wb") as out:
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out))
            time.sleep(2)
        idle = wait_for(lambda: "idle" in said("sinfo", "-h", "-o", "%T"), 30)
        assert idle, "".join(p.read_text()[-2000:] for p in folder.glob("*.out"))
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait_for(condition: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_a_real_slurm_preempts_a_job_and_the_results_are_the_same(
    tmp_path: Path, slurm: Path, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("submitit", "slurm")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    folder = StudyFolder(tmp_path / "s")

    def preempt() -> None:
        job = said("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()[0]
        said("scancel", "--signal=USR2", job)
        assert wait_for(lambda: job in said("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i"), 60)
        said("scontrol", "update", f"job={job}", "StartTime=now")  # else SLURM waits two minutes

    preemptor = once(lambda: list(folder.trials.glob("*/checkpoints/latest")), preempt)
    engine = SlurmEngine(pack=2, max_jobs=1, hours=1)
    now = conduct(folder, plan(4, **LONGER), engine=engine, quiet=True)
    preemptor.join()
    assert (now.ended, now.total) == (4, 4)
    assert continued(folder.path) == 2
    nothing_twice(folder.path)
    assert results(folder.path) == local
