"""Trials as SLURM jobs, through submitit; SLURM queues, places and throttles them.

One trial a job, or `pack` trials side by side in one whole-node job; all jobs of a study are one
array (of at most ARRAY_LIMIT). A job whose wall time ends, or that is pre-empted, has its trials
save their state and is queued again under its number: trials may be longer than the wall time.
If the study's own process ends, the jobs go on; the same command finds them again.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitc.config import RunConfig
from vitc.errors import ConfigError, RunError
from vitc.files import read_json, write_atomically, write_json
from vitc.machine import environment
from vitc.runs.folder import CHECKPOINTS, LATEST, read_summary
from vitc.study.launch import Job, LocalEngine, Outcome, Tries
from vitc.study.work import (
    LEFT,
    RESULTS,
    SAVE_SECONDS,
    Span,
    Torchrun,
    spec_file,
    trust_words,
    trusted_words,
    unseen,
    write_spec,
)

INSTALL = "pip install 'vitc[slurm]'"
CLUSTERS = ("slurm", "local")
FOLDER = "slurm"  # in the study's folder: scripts, logs, what submitit pickles, QUEUED, answers
QUEUED = "queued.json"  # job number -> ids of its trials, of the jobs that may still be about
ANSWER = ".answer"  # trial id + this: what became of a trial, in JSON: no pickle of a job is read
STOP = "stop"  # while this file is there, jobs save and end: submitit's local ones hear no signal
ARRAY_LIMIT = 1000  # SLURM's usual MaxArraySize is 1001
REQUEUES = 10_000  # by wall time; pre-emptions are not counted
SIGNAL_SECONDS = 90  # before the end of the wall time a job is told of it
POLL_SECONDS = {"slurm": 5.0, "local": 0.5}
GONE_SECONDS = 60.0  # after which a job that SLURM no longer lists, without an answer, is lost
REFUSED_SECONDS = 600.0  # sbatch is asked again for so long: a busy controller, one that restarts
FINAL = re.compile(  # what sbatch says of jobs that it will not take later either
    r"invalid (partition|account|qos|wckey|license|feature|generic|time|node|job array|--)"
    r"|(specification|limit) (is )?invalid|access/permission denied|(not|than) permitted"
    r"|configuration is not available|no partition specified|unrecognized",
    re.IGNORECASE,
)
ALIVE = {
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "RESIZING",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
}
NODE_TROUBLE = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REVOKED", "INTERRUPTED", ""}
MUST_AGREE = ("torch", "vitc")


@dataclass
class SlurmEngine:
    """Runs jobs through SLURM: `gpus` and `cpus` a trial over `nodes`, `pack` trials a job,
    `hours` of wall time a job, `max_jobs` at a time.

    `options` go to sbatch as they are: partition, account, qos, constraint. `cluster` is slurm, or
    submitit's stand-in on this machine, local.
    """

    gpus: int = 0
    cpus: int = 1
    nodes: int = 1
    pack: int = 1
    max_jobs: int = 100
    hours: float = 24.0
    options: Mapping[str, str] = field(default_factory=dict)
    cluster: str = "slurm"
    stop: threading.Event = field(default_factory=threading.Event)
    name: str = field(default="slurm", init=False)

    def __post_init__(self) -> None:
        found = []
        if self.cluster not in CLUSTERS:
            found.append(f"--slurm-cluster {self.cluster!r}; allowed: {', '.join(CLUSTERS)}.")
        if self.pack > 1 and (self.gpus > 1 or self.nodes > 1):
            found.append("--pack is for trials of one GPU or none, on one node.")
        if self.nodes > 1 and (self.gpus < self.nodes or self.gpus % self.nodes):
            found.append(
                f"--nodes-per-trial {self.nodes} needs --gpus-per-trial in a multiple of it "
                f"(all nodes together), not {self.gpus}."
            )
        if self.nodes > 1 and self.cluster != "slurm":
            found.append(f"--slurm-cluster {self.cluster} has one node.")
        if self.hours * 3600 < 2 * self.signal_seconds:
            found.append(
                f"--hours {self.hours:g} is too short: a job is told {self.signal_seconds} s "
                f"before its end, and must reach a step of its trials before that."
            )
        if found:
            raise ConfigError("\n".join(found))

    @property
    def workers(self) -> int:
        return self.max_jobs * self.pack

    @property
    def signal_seconds(self) -> int:
        """How long before the end of the wall time a job saves; the stand-in is for tests."""
        return SIGNAL_SECONDS if self.cluster == "slurm" else 5

    @property
    def span(self) -> Span:
        """Over what one trial spreads."""
        return Span(max(1, self.gpus // self.nodes), self.nodes)

    # -- before and after ------------------------------------------------------------------------

    def prepare(self, study: Path, devices: Collection[str]) -> list[str]:
        """Look whether submitit and SLURM are here. Raises ConfigError.

        The machines of the jobs are not known yet: each job looks itself whether it sees the
        study's folder and has the versions of this machine, and says so where not.
        """
        self._executor(study)
        return []

    def close(self) -> None:
        """Nothing is left after `run`."""

    def parameters(self, job_name: str) -> dict[str, Any]:
        """What submitit is asked for; its names for SLURM are sbatch's, `_` for `-`."""
        a_node = self.pack * self.gpus // self.nodes
        if self.cluster != "slurm":
            seconds = {"timeout_min": self.hours * 60, "signal_delay_s": self.signal_seconds}
            return seconds | {"gpus_per_node": a_node}
        cores = self.pack * self.cpus
        found: dict[str, Any] = {
            "job_name": job_name,
            "time": max(1, round(self.hours * 60)),
            "nodes": self.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": cores,
            # since 22.05 srun no longer takes this from the job
            "srun_args": [f"--cpus-per-task={cores}"],
            "signal_delay_s": self.signal_seconds,
            "array_parallelism": self.max_jobs,
            "additional_parameters": {"requeue": True},
            **self.options,
        }
        if a_node:
            found["gpus_per_node"] = a_node
        if self.pack > 1:
            found["exclusive"] = True
        return found

    def _executor(self, study: Path) -> Any:
        submitit = import_submitit()
        folder = study.resolve() / FOLDER
        kind = submitit.SlurmExecutor if self.cluster == "slurm" else submitit.LocalExecutor
        try:
            executor = kind(folder=folder, max_num_timeout=REQUEUES)
        except RuntimeError as error:
            raise ConfigError(
                f"SLURM is not here: {error}",
                "Start the study on a login node; --dry-run shows the job script anywhere.",
            ) from error
        executor.update_parameters(**self.parameters(f"vitc-{study.name}"))
        return executor

    def script(self, study: Path, jobs: int) -> str:
        """The job script for `jobs` jobs, as it would be handed to sbatch; nothing is written.

        Raises ConfigError: submitit is not here.
        """
        import_submitit()
        from submitit.slurm.slurm import _make_sbatch_string

        if self.cluster != "slurm":
            raise ConfigError(f"--dry-run: --slurm-cluster {self.cluster} has no job script.")
        folder = study.resolve() / FOLDER
        command = f"{sys.executable} -u -m submitit.core._submit {folder}"
        count = min(jobs, ARRAY_LIMIT)
        return str(
            _make_sbatch_string(
                command=command,
                folder=folder,
                map_count=count if count > 1 else None,
                **self.parameters(f"vitc-{study.name}"),
            )
        )

    # -- running ---------------------------------------------------------------------------------

    def run(
        self,
        jobs: Sequence[Job],
        done: Callable[[Outcome], None],
        tick: Callable[[Sequence[Job]], None],
    ) -> None:
        """As `Engine.run`.

        Raises RunError: SLURM refuses the jobs, for good or for REFUSED_SECONDS; or it does not
        answer, and jobs of an earlier call may be in its queue.
        """
        if not jobs:
            return
        study = jobs[0].out.parents[1]
        executor = self._executor(study)
        self._folder = study.resolve() / FOLDER
        self._folder.mkdir(exist_ok=True)
        (self._folder / STOP).unlink(missing_ok=True)
        queue = _Queue(self._folder, self.cluster)
        placed = queue.found_again({job.id: job for job in jobs})
        there = {job.id for batch in placed.values() for job in batch.jobs}
        waiting = deque(job for job in jobs if job.id not in there)
        tries = Tries()
        self._refused_since: float | None = None
        try:
            while (waiting or placed) and not self.stop.is_set():
                if waiting and self._room(placed):
                    placed |= self._submit(executor, study, waiting, len(placed))
                    queue.write(placed)
                tick([job for batch in placed.values() for job in batch.jobs])
                for number in queue.over(placed) if placed else ():
                    batch = placed.pop(number)
                    queue.write(placed)
                    for job in batch.jobs:
                        outcome, own_fault = self._ended(batch, job, queue.state(number))
                        if outcome.status == "lost":
                            if tries.again(job, own_fault):
                                waiting.append(job)
                                continue
                            outcome = Outcome(job, "failed", outcome.seconds, outcome.error)
                        done(outcome)
                if placed or waiting:
                    self.stop.wait(POLL_SECONDS[self.cluster])
        finally:
            self._cancel(placed, queue, done)

    def _room(self, placed: Mapping[str, _Placed]) -> bool:
        """Whether more may be handed over: an array throttles itself, and stands alone."""
        return len(placed) < self.max_jobs if self.cluster != "slurm" or placed else True

    def _submit(
        self, executor: Any, study: Path, waiting: deque[Job], already: int
    ) -> dict[str, _Placed]:
        """Hand over what may run now: an array of all, or as many as `max_jobs` leaves room for.

        What sbatch does not take just now goes back to `waiting`.
        """
        alone = self.cluster == "slurm" and not already
        most = ARRAY_LIMIT if alone else self.max_jobs - already
        batches: list[list[Job]] = []
        while waiting and len(batches) < most:
            batches.append([waiting.popleft() for _ in range(min(self.pack, len(waiting)))])
        for job in (job for batch in batches for job in batch):
            (self._folder / f"{job.id}{ANSWER}").unlink(missing_ok=True)
        calls = [self._batch(study, batch) for batch in batches]
        array = executor.batch() if len(calls) > 1 else contextlib.nullcontext()
        try:
            # submitit prints what sbatch says, at each refusal again
            with contextlib.redirect_stderr(io.StringIO()), array:
                handles = [executor.submit(call) for call in calls]
        except Exception as error:  # submitit's, and what sbatch says
            self._refused(error)
            waiting.extendleft(job for batch in reversed(batches) for job in reversed(batch))
            return {}
        self._refused_since = None
        now = time.monotonic()
        return {
            handle.job_id: _Placed(handle, batch, now)
            for handle, batch in zip(handles, batches, strict=True)
        }

    def _refused(self, error: Exception) -> None:
        """Say once that sbatch did not take jobs, or raise RunError where asking again is vain.

        If it did take them and only its answer was lost, asking again runs nothing twice: a job
        finds what it is to run under its number, and submitit puts that there after the answer.
        """
        why, minutes = str(error).strip(), f"{REFUSED_SECONDS / 60:g} minutes"
        # submitit raises from this where sbatch itself refused
        by_sbatch = isinstance(error.__cause__, subprocess.CalledProcessError)
        if not by_sbatch or FINAL.search(why):
            raise RunError(
                f"SLURM did not take the jobs: {why}",
                "Check --partition, --account, --qos, --constraint and --hours; --dry-run shows "
                "the script.",
            ) from error
        if self._refused_since is None:
            self._refused_since = time.monotonic()
            _say(f"sbatch does not take jobs now: {why}; asking again for {minutes}")
        if time.monotonic() - self._refused_since > REFUSED_SECONDS:
            raise RunError(
                f"SLURM did not take the jobs for {minutes}: {why}",
                "The same command goes on, once SLURM takes jobs again.",
            ) from error
        for pattern in (".submission_file_*", "*.pkl"):  # submitit's; those of a job say its number
            for file in self._folder.glob(pattern):
                if file.suffix != ".pkl" or "_" not in file.name:
                    file.unlink(missing_ok=True)

    def _batch(self, study: Path, jobs: Sequence[Job]) -> Batch:
        if self.span.processes * self.span.nodes > 1:
            for job in jobs:
                write_spec(job.config, job.out.resolve(), self.name)
        return Batch(
            trials=[(job.id, job.label, job.config, str(job.out.resolve())) for job in jobs],
            span=self.span,
            gpus=self.gpus,
            folder=str(study.resolve() / FOLDER),
            wall_seconds=self.hours * 3600,
            save_seconds=min(SAVE_SECONDS, 0.8 * self.signal_seconds),
            versions=environment()["versions"],
            trusted=trusted_words(),
        )

    def _ended(self, batch: _Placed, job: Job, state: str) -> tuple[Outcome, bool]:
        """What became of a trial, `lost` where it is to be tried again; whether by its own fault.

        Its run folder is asked first: what stands there is so, whatever SLURM says.
        """
        seconds = time.monotonic() - batch.since
        summary = read_summary(job.out) or {}
        if summary.get("status") in RESULTS:
            took = float(summary.get("train_seconds") or seconds)
            return Outcome(job, str(summary["status"]), took), False
        status, error, took = _answer(self._folder, job.id) or ("", None, seconds)
        if status and status not in ("interrupted", "died"):
            return Outcome(job, status, took, error), True
        if self.stop.is_set():
            return Outcome(job, "interrupted", took, error), False
        log = batch.handle.paths.stderr
        if state.startswith("CANCELLED"):
            return Outcome(job, LEFT, took, "its job was cancelled, and not by this study"), False
        why = error or f"its job ended ({state or 'state unknown'}) without a word; log: {log}"
        own = status == "died" or (not status and state not in NODE_TROUBLE)
        return Outcome(job, "lost", took, why), own

    def _cancel(
        self, placed: Mapping[str, _Placed], queue: _Queue, done: Callable[[Outcome], None]
    ) -> None:
        """End what is placed: running trials save their state, waiting jobs go.

        Jobs that were not seen to end stay noted: the next call looks for them.
        """
        if not placed:
            return
        (self._folder / STOP).touch()
        if self.cluster == "slurm":  # its SIGTERM has the trials save; SIGKILL comes 30 s later
            _slurm(["scancel", *placed])
        end = time.monotonic() + SAVE_SECONDS
        left = dict(placed)
        while left and time.monotonic() < end:
            for number in queue.over(left, at_once=True):
                left.pop(number)
            time.sleep(0.5 if left else 0)
        if self.cluster != "slurm":
            for number in list(left):
                left.pop(number).handle.cancel(check=False)
        elif left:
            _slurm(["scancel", *left])
            _say(f"{_numbers(left)} not seen to end; the same command finds what still runs")
        queue.write(left)
        (self._folder / STOP).unlink(missing_ok=True)
        for batch in placed.values():
            for job in batch.jobs:
                outcome, _ = self._ended(batch, job, "")
                lost = outcome.status == "lost"  # an error ended `run`, not the user
                done(Outcome(job, "interrupted", outcome.seconds) if lost else outcome)


def import_submitit() -> Any:
    """submitit, or a ConfigError with the line that installs it."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--engine slurm needs submitit, which is not here.", INSTALL) from error
    return submitit


# -- what is queued --------------------------------------------------------------------------------


@dataclass
class _Placed:
    """A job of the cluster's with its trials."""

    handle: Any
    jobs: list[Job]
    since: float


@dataclass
class _Queue:
    """What the cluster says of our jobs; asked with squeue alone, as accounting may be missing."""

    folder: Path
    cluster: str
    states: dict[str, str] = field(default_factory=dict)

    def over(self, placed: Mapping[str, _Placed], at_once: bool = False) -> list[str]:
        """The numbers of those jobs that have ended."""
        if self.cluster != "slurm":
            return [n for n, b in placed.items() if b.handle.done()]
        now = time.monotonic()
        listed = _squeue()
        if listed is not None:
            self.states |= listed
        ended = []
        for number, batch in placed.items():
            if listed is not None and listed.get(number, "") in ALIVE:
                continue
            # a result can be on its way over the network file system, a new job not listed yet
            grace = now - batch.since > GONE_SECONDS or at_once or number in (listed or {})
            if batch.handle.paths.result_pickle.exists() or (listed is not None and grace):
                ended.append(number)
        return ended

    def state(self, number: str) -> str:
        """SLURM's last word on a job, as NODE_FAIL; empty where there was none."""
        return self.states.get(number, "") if self.states.get(number) not in ALIVE else ""

    def write(self, placed: Mapping[str, _Placed]) -> None:
        """Note which jobs are queued, for a study whose own process is killed."""
        values = {
            "cluster": self.cluster,
            "jobs": {n: [j.id for j in b.jobs] for n, b in placed.items()},
        }
        write_json(self.folder / QUEUED, values, indent=None)

    def found_again(self, jobs: Mapping[str, Job]) -> dict[str, _Placed]:
        """Jobs of an earlier call that are still queued or running, with those trials of ours.

        Raises RunError: squeue gives no answer, so that trials could be submitted twice.
        """
        file = self.folder / QUEUED
        noted = read_json(file) if file.exists() else {}
        if self.cluster != "slurm" or noted.get("cluster") != "slurm" or not noted.get("jobs"):
            return {}
        submitit, listed = import_submitit(), _squeue()
        if listed is None:
            raise RunError(
                "SLURM's controller does not answer; the study may still have "
                f"{_numbers(noted['jobs'])} in its queue.",
                "Try again in some minutes; what runs goes on.",
            )
        found = {}
        for number, ids in noted["jobs"].items():
            ours = [jobs[i] for i in ids if i in jobs]
            if ours and listed.get(number, "") in ALIVE:
                handle = submitit.SlurmJob(folder=self.folder, job_id=number, tasks=[0])
                found[number] = _Placed(handle, ours, time.monotonic())
        return found


def _answer(folder: Path, trial: str) -> tuple[str, str | None, float] | None:
    """(status, error, seconds) of a trial as its job left it; None where the job left no word."""
    file = folder / f"{trial}{ANSWER}"
    if not file.exists():
        return None
    values = read_json(file)
    return str(values["status"]), values["error"], float(values["seconds"])


def _numbers(jobs: Collection[str]) -> str:
    """Their numbers as in squeue, an array's once."""
    arrays = dict.fromkeys(number.partition("_")[0] for number in jobs)
    return f"{'job' if len(jobs) == 1 else 'jobs'} {', '.join(arrays)}"


def _say(text: str) -> None:
    print(f"slurm: {text}", file=sys.stderr)


def _squeue() -> dict[str, str] | None:
    """Job number -> state, of this user's jobs now and some minutes back; None: no answer."""
    text = _slurm(["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i %T"])
    if text is None:
        return None
    return {words[0]: words[1] for words in map(str.split, text.splitlines()) if len(words) == 2}


def _slurm(command: Sequence[str]) -> str | None:
    """What a command of SLURM's prints; None where its controller does not answer just now."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


# -- in the job ------------------------------------------------------------------------------------


@dataclass
class Batch:
    """What a job runs: its trials side by side, or one trial over several processes.

    submitit pickles it, calls it on the node, and calls `checkpoint` when the job is told of its
    end (wall time, pre-emption), in a signal handler that stands in the way of the call.
    """

    trials: list[tuple[str, str, RunConfig, str]]  # id, label, config, run folder
    span: Span
    gpus: int
    folder: str
    wall_seconds: float
    save_seconds: float
    versions: Mapping[str, Any]
    trusted: str

    def __call__(self) -> None:
        """Run the trials, and leave an answer for each."""
        self._began, self._reached_then = time.monotonic(), self._reached()
        why = unseen(Path(self.trials[0][3])) or self._other_versions()
        if why is not None:
            for job in self._jobs():
                self._answer(Outcome(job, LEFT, 0.0, why))
            return
        trust_words(self.trusted)
        if self.span.processes * self.span.nodes > 1:
            self._over_processes()
        else:
            self._side_by_side()

    def _jobs(self) -> list[Job]:
        return [Job(i, label, config, Path(out)) for i, label, config, out in self.trials]

    def _answer(self, outcome: Outcome) -> None:
        values = {"status": outcome.status, "error": outcome.error, "seconds": outcome.seconds}
        write_atomically(Path(self.folder) / f"{outcome.job.id}{ANSWER}", json.dumps(values))

    def _told_to_stop(self) -> bool:
        return (Path(self.folder) / STOP).exists()

    def _side_by_side(self) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = visible.split(",") if visible else [str(i) for i in range(len(self.trials))]
        self._engine = LocalEngine(
            workers=len(self.trials), gpus=gpus if self.gpus else (), name="slurm"
        )

        def tick(running: Sequence[Job]) -> None:
            if self._told_to_stop():
                self._engine.stop.set()

        self._engine.run(self._jobs(), self._answer, tick)

    def _over_processes(self) -> None:
        import submitit

        here = submitit.JobEnvironment()
        number = here.raw_job_id  # each task of an array has its own, the same on all its nodes
        names = here.hostnames if self.span.nodes > 1 else [socket.gethostname()]
        port = 20_000 + int(number) % 20_000 if number.isdigit() else 20_000
        span = Span(self.span.processes, self.span.nodes, here.node, names[0], port)
        (job,) = self._jobs()
        self._torchrun = Torchrun(spec_file(job.out), span)
        status, error = self._torchrun.wait(self._told_to_stop)
        if here.global_rank == 0:
            self._answer(Outcome(job, status, time.monotonic() - self._began, error))
        elif status not in RESULTS:
            time.sleep(self.save_seconds)  # the first task is about to have the job queued again

    def checkpoint(self) -> Any:
        """Save all trials; returns what is to be queued again, or None: it would be for nothing."""
        import submitit

        if hasattr(self, "_engine"):
            self._engine.interrupt(self.save_seconds)
        if hasattr(self, "_torchrun"):
            self._torchrun.stop()
        whole_slot = time.monotonic() - self._began > self.wall_seconds / 2
        if whole_slot and self._reached() == self._reached_then:
            return None
        values = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return submitit.helpers.DelayedSubmission(Batch(**values))

    def _reached(self) -> list[tuple[str, bool]]:
        """How far each trial is on disk: its last checkpoint, and whether it has its result."""
        found = []
        for job in self._jobs():
            latest = job.out / CHECKPOINTS / LATEST
            step = latest.read_text(errors="replace") if latest.is_file() else ""
            found.append((step, (read_summary(job.out) or {}).get("status") in RESULTS))
        return found

    def _other_versions(self) -> str | None:
        here = environment()["versions"]
        other = [
            f"{k} {here[k]} on {socket.gethostname()}, {self.versions.get(k)} where the study was "
            "started"
            for k in MUST_AGREE
            if here[k].partition("+")[0] != str(self.versions.get(k)).partition("+")[0]
        ]
        return "; ".join(other) or None
