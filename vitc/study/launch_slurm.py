"""How are trials launched with SLURM? As one submitit array whose tasks take a slice each.

SLURM queues, places and throttles the tasks. A task whose wall time ends, or that is pre-empted,
has its trials save their state and is requeued: trials may be longer than the wall time. If the
study's own process ends, the tasks continue; the same command submits what is then unfinished,
and no trial is run twice, as each is claimed in its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitc.errors import ConfigError, RunError
from vitc.plugins.consent import TRUSTED_ENV, consent
from vitc.runs.folder import ENDED
from vitc.study import work
from vitc.study.study_folder import StudyFolder

FOLDER = "slurm"  # in the study's folder: submitit's scripts, logs and pickles
ARRAY_LIMIT = 1000  # SLURM's usual MaxArraySize is 1001
REQUEUES = 10_000  # by wall time; pre-emptions are not counted
SIGNAL_SECONDS = {"slurm": 90, "local": 5}  # before the end of the wall time trials are saved
WATCH_SECONDS = 5.0  # how often the tasks are looked at
GONE_SECONDS = 60.0  # after which trials whose process vanished are launched again
PAUSES = (10.0, 60.0, 240.0)  # after which sbatch is tried again: a busy controller, one restarting
FINAL = re.compile(  # what sbatch answers on jobs that it will not take later either
    r"invalid (partition|account|qos|wckey|license|feature|generic|time|node|job array|--)"
    r"|(specification|limit) (is )?invalid|access/permission denied|(not|than) permitted"
    r"|configuration is not available|no partition specified|unrecognized",
    re.IGNORECASE,
)


@dataclass
class SlurmEngine:
    """One array; each of its tasks runs `pack` trials side by side, or one over several nodes.

    `slurm_cluster` is slurm, or local: submitit's stand-in on this machine.
    """

    gpus_per_trial: float | None = None
    cpus_per_trial: int = 1
    nodes_per_trial: int = 1
    pack: int = 1
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    max_jobs: int = 100
    hours: float = 24.0
    slurm_cluster: str = "slurm"
    name: str = field(default="slurm", init=False)

    def __post_init__(self) -> None:
        self.gpus = gpus = self.gpus_per_trial or 0
        nodes, saving = self.nodes_per_trial, SIGNAL_SECONDS[self.slurm_cluster]
        found = []
        if not 0 <= gpus < math.inf or gpus != int(gpus):
            found.append(
                f"--gpus-per-trial {gpus:g}: SLURM allocates whole GPUs; share one with "
                "--engine ray."
            )
        if self.pack > 1 and (gpus > 1 or nodes > 1):
            found.append("--pack is for trials of one GPU or none, on one node.")
        if nodes > 1 and (gpus < nodes or gpus % nodes):
            found.append(
                f"--nodes-per-trial {nodes} needs --gpus-per-trial in a multiple of it "
                f"(all nodes together), not {gpus:g}."
            )
        if nodes > 1 and self.slurm_cluster != "slurm":
            found.append(f"--slurm-cluster {self.slurm_cluster} has one node.")
        if not 0 < self.hours < math.inf:
            found.append(f"--hours {self.hours:g} must be above 0.")
        elif self.hours * 3600 < 2 * saving:
            found.append(
                f"--hours {self.hours:g} is too short: a job saves its trials {saving} s before "
                "its end, and must reach a step of them before that."
            )
        if found:
            raise ConfigError("\n".join(found))

    @property
    def size(self) -> int:
        return self.max_jobs * self.pack

    def device(self, asked: str | None) -> str | None:
        return work.gpus_and_device(self.gpus_per_trial, asked)[1]

    def prepare(self, study: StudyFolder, device: str, allow_mixed: bool) -> None:
        self.allow_mixed = allow_mixed
        self.gpus, _ = work.gpus_and_device(self.gpus_per_trial, device)
        self._executor(study.path)

    def close(self) -> None:
        """Nothing is left after `run`."""

    # -- the script --------------------------------------------------------------------------------

    def parameters(self, study: Path) -> dict[str, Any]:
        """What submitit is asked for; its names for SLURM are sbatch's, `_` for `-`."""
        gpus = self.pack * int(self.gpus) // self.nodes_per_trial
        saving = SIGNAL_SECONDS[self.slurm_cluster]
        if self.slurm_cluster != "slurm":
            values = {"timeout_min": self.hours * 60, "signal_delay_s": saving}
            return values | {"gpus_per_node": gpus}
        cores = self.pack * self.cpus_per_trial
        options = {n: getattr(self, n) for n in ("partition", "account", "qos", "constraint")}
        return {
            "job_name": _job_name(study),
            "time": max(1, round(self.hours * 60)),
            "nodes": self.nodes_per_trial,
            "ntasks_per_node": 1,
            "cpus_per_task": cores,
            "srun_args": [f"--cpus-per-task={cores}"],  # srun does not inherit it since 22.05
            "signal_delay_s": saving,
            "array_parallelism": self.max_jobs,
            "additional_parameters": {"requeue": True},
            **{name: value for name, value in options.items() if value is not None},
            **({"gpus_per_node": gpus} if gpus else {}),
            **({"exclusive": True} if self.pack > 1 else {}),
        }

    def script(self, study: Path, trials: int, device: str) -> str:
        """The job script for so many trials, as submitit would write it. Raises ConfigError."""
        self.gpus, _ = work.gpus_and_device(self.gpus_per_trial, device)
        work.import_package("submitit", self.name)
        from submitit.slurm.slurm import _make_sbatch_string

        if self.slurm_cluster != "slurm":
            raise ConfigError(f"--dry-run: --slurm-cluster {self.slurm_cluster} has no job script.")
        folder, count = study.resolve() / FOLDER, self.tasks(trials)
        return str(
            _make_sbatch_string(
                command=f"{sys.executable} -u -m submitit.core._submit {folder}",
                folder=folder,
                map_count=count if count > 1 else None,
                **self.parameters(study),
            )
        )

    def tasks(self, trials: int) -> int:
        """Into how many tasks trials are sliced; the stand-in starts all of its tasks at once."""
        most = ARRAY_LIMIT if self.slurm_cluster == "slurm" else self.max_jobs
        return min(-(-trials // self.pack), most)

    def _executor(self, study: Path) -> Any:
        submitit = work.import_package("submitit", self.name)
        kind = submitit.SlurmExecutor if self.slurm_cluster == "slurm" else submitit.LocalExecutor
        try:
            executor = kind(folder=study.resolve() / FOLDER, max_num_timeout=REQUEUES)
        except RuntimeError as error:
            raise ConfigError(
                f"SLURM is not on this machine: {error}",
                "Start the study on a login node; --dry-run shows the job script anywhere.",
            ) from error
        executor.update_parameters(**self.parameters(study))
        return executor

    # -- submitting and waiting --------------------------------------------------------------------

    def run(self, study: StudyFolder, ids: Sequence[str], going: Callable[[], bool]) -> None:
        executor, count = self._executor(study.path), self.tasks(len(ids))
        span = work.Span(max(1, int(self.gpus) // self.nodes_per_trial), self.nodes_per_trial)
        whole = work.Pool(StudyFolder(study.path.resolve()), (), self.pack, self.name, span=span)
        saving = min(work.SAVE_SECONDS, 0.8 * SIGNAL_SECONDS[self.slurm_cluster])
        slices = [
            Slice(
                pool=replace(whole, ids=ids[i::count]),
                share_gpus=bool(self.gpus) and self.pack > 1,
                save_seconds=saving,
                trusted=consent(),
                allow_mixed=self.allow_mixed,
            )
            for i in range(count)
        ]
        if self.slurm_cluster == "slurm":  # replaced: what an earlier call has left waiting
            _slurm("scancel", "--me", "--state=PENDING", f"--name={_job_name(study.path)}")
        jobs = _submit(executor, slices, going)
        over = False
        try:
            over = self._wait(jobs, study, ids, going)
        finally:
            if not over:
                self._end(jobs, study, ids)
            for job in jobs if self.slurm_cluster == "local" else ():
                job._process.wait(work.SAVE_SECONDS)
        if not over:
            return
        errors = work.import_package("submitit", self.name).core.utils.UncompletedJobError
        for job in jobs:
            with contextlib.suppress(errors):  # killed, or not requeued: see its log
                reasons = job.results() if self._over(job) else []
                if any(reasons):
                    raise ConfigError(f"Job {job.job_id} could not run: {max(reasons, key=bool)}")

    def _wait(
        self, jobs: Sequence[Any], study: StudyFolder, ids: Sequence[str], going: Callable[[], bool]
    ) -> bool:
        """Wait until all jobs are over, or all that is left are trials whose process vanished;
        False: `going()` ended before."""
        self._accounting = self.slurm_cluster == "local" or _slurm("sacct", "--noheader")
        looked = since = time.monotonic()
        while jobs and going():
            time.sleep(0.5)
            if time.monotonic() < looked + WATCH_SECONDS:
                continue
            looked = time.monotonic()
            left = [study.trials / i for i in ids if work.status_of(study.trials / i) not in ENDED]
            if not left or all(map(self._over, jobs)):
                return True
            if not all(map(work.vanished, left)):
                since = looked
            elif looked > since + GONE_SECONDS:
                return True
        return False

    def _over(self, job: Any) -> bool:
        """Whether a job has ended. Without SLURM's accounting (sacct) only the result that it
        leaves shows it; of one that was killed, the released claims of its trials do."""
        return bool(job.done() if self._accounting else job.paths.result_pickle.exists())

    def _end(self, jobs: Sequence[Any], study: StudyFolder, ids: Sequence[str]) -> None:
        """End the jobs: waiting ones are removed, running ones save their trials."""
        if self.slurm_cluster == "slurm":  # SIGTERM, and after SLURM's KillWait SIGKILL
            _slurm("scancel", *dict.fromkeys(job.job_id.partition("_")[0] for job in jobs))
        else:
            for job in jobs:
                job._process.send_signal(signal.SIGTERM)  # handed on to the job's task
        end = time.monotonic() + work.SAVE_SECONDS
        while any(work.claimed(study.trials / i) for i in ids) and time.monotonic() < end:
            time.sleep(0.5)


def _submit(executor: Any, slices: Sequence[Slice], going: Callable[[], bool]) -> list[Any]:
    """The slices as one array. Raises RunError: sbatch refuses it for good, or for too long."""
    for pause in (*PAUSES, None):
        array = executor.batch() if len(slices) > 1 else contextlib.nullcontext()
        try:
            with contextlib.redirect_stderr(io.StringIO()), array:  # submitit repeats sbatch's
                return [executor.submit(each) for each in slices]
        except Exception as error:  # submitit's own kinds, and what sbatch answers
            why = str(error).strip()
            by_sbatch = isinstance(error.__cause__, subprocess.CalledProcessError)
            if pause is None or not by_sbatch or FINAL.search(why):
                raise RunError(
                    f"SLURM rejected the jobs: {why}",
                    "Check --partition, --account, --qos, --constraint and --hours (--dry-run "
                    "shows the script). Once SLURM accepts jobs, the same command continues.",
                ) from error
        print(f"sbatch is not accepting jobs at the moment: {why}; retrying", file=sys.stderr)
        end = time.monotonic() + pause
        while time.monotonic() < end:
            if not going():
                return []
            time.sleep(0.5)
    return []


@dataclass
class Slice:
    """What a task of the array runs: the trials of a pool, each worker on a GPU of its own.

    submitit pickles it, calls it on the node, and calls `checkpoint` when the job is warned of its
    end (wall time, pre-emption), in a signal handler that interrupts the call.
    """

    pool: work.Pool
    share_gpus: bool
    save_seconds: float
    trusted: str
    allow_mixed: bool

    def __call__(self) -> str | None:
        """Run the trials; returns why this machine cannot."""
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        os.environ[TRUSTED_ENV] = self.trusted
        try:
            work.check_machine(self.pool.study, self.allow_mixed)
        except ConfigError as error:
            return f"{error.message} {error.hint or ''}"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = visible.split(",") if visible else [str(i) for i in range(self.pool.workers)]
        pool = replace(self.pool, gpus=gpus if self.share_gpus else (), span=self.span_here())
        pool.run(lambda: not stopped)
        unfinished = any(work.status_of(pool.study.trials / i) not in ENDED for i in pool.ids)
        if pool.span.rank and unfinished:
            time.sleep(self.save_seconds)  # the first task is about to have the job requeued
        return None

    def span_here(self) -> work.Span:
        """The span as this task of the job sees it."""
        span = self.pool.span
        if span.nodes == 1:
            return span
        import submitit

        here = submitit.JobEnvironment()
        number = here.raw_job_id  # each task of an array has its own, the same on all its nodes
        port = 20_000 + int(number) % 20_000 if number.isdigit() else 20_000
        return replace(span, rank=here.node, address=here.hostnames[0], port=port)

    def checkpoint(self) -> Any:
        """Save all trials; returns what is to be requeued."""
        import submitit

        work.stop_processes(multiprocessing.active_children(), self.save_seconds)
        return submitit.helpers.DelayedSubmission(self)


def _job_name(study: Path) -> str:
    place = hashlib.sha256(str(study.resolve()).encode()).hexdigest()
    return f"vitc-{study.name}-{place[:6]}"


def _slurm(*command: str) -> bool:
    """Whether a command of SLURM's succeeds; False also where its controller does not answer."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    return False
