"""How is a trial run, once, wherever it is placed? In worker processes here, or in a torchrun.

A trial is idempotent: whoever runs it holds its claim (a lock file in its run folder), finds its
result or its last checkpoint there, and notes the try in `tries.json`. So any number of machines
may work on one study folder, and what a killed process leaves is taken up by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vitc.config import RunConfig, to_saved
from vitc.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    InterruptedRun,
    LostProcess,
    RunError,
    VitcError,
)
from vitc.files import LOCK, FolderLock, read_json, write_json
from vitc.machine import STOP_SIGNALS, deciding_versions, install_line, other_versions
from vitc.runs.folder import CHECKPOINTS, CLAIM, CONFIG, ENDED, LATEST, SUMMARY, TRIES, Run
from vitc.study.design import Trial
from vitc.study.study_folder import StudyFolder

BUSY = "busy"  # another process is running the trial
STOPPED = 143  # exit code of a worker that was asked to stop: 128 + SIGTERM
DEATHS = 2  # of a trial's process, without a new checkpoint in between; then it is given up
MOST_TRIES = 10  # the same, for whatever reason: machines that go away, jobs that are too short
LOCK_SECONDS = 60.0  # a lost process may write a little longer than its parent lives
SAVE_SECONDS = 120.0  # for a trial that was asked to stop, to save its state


# -- one trial -------------------------------------------------------------------------------------


def run_trial(study: StudyFolder, trial: Trial, engine: str) -> str:
    """Run a trial from its last checkpoint in this process; returns its status, or BUSY.

    A trial that has ended is not run again. One whose process died too often without reaching a
    new checkpoint is recorded as failed. Under torchrun the first process alone keeps the books.
    Raises ConfigError, RunError: its folder cannot be written.
    """
    out = study.trial(trial)
    if status_of(out) in ENDED or os.environ.get("RANK", "0") != "0":
        return status_of(out) if status_of(out) in ENDED else _train(trial.config, out)[0]
    try:
        out.mkdir(parents=True, exist_ok=True)
        claim = FolderLock(out, CLAIM)
    except OSError as error:
        raise RunError(f"The folder {out} cannot be made: {error.strerror}.") from error
    except ConfigError as error:
        if isinstance(error.__cause__, BlockingIOError):
            return BUSY
        raise
    with claim:
        if status_of(out) in ENDED:  # the process that had the claim before has finished it
            return status_of(out)
        if not _free(out):
            return BUSY
        tries, checkpoint = read_tries(out), reached(out)
        reason = _given_up(tries, checkpoint)
        if reason is not None:
            record_failure(out, trial.config, reason)
            return "failed"
        here = {
            "engine": engine,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": deciding_versions(),
            "checkpoint": checkpoint,
        }
        _write_tries(out, [*tries, here])
        status = "interrupted"  # by Ctrl-C or SIGTERM where the run does not handle it yet
        try:
            status, error_text = _train(trial.config, out)
            if status == "failed":
                record_failure(out, trial.config, error_text)
        finally:
            _write_tries(out, [*tries, {**here, "ended": status}])
        return status


def _train(config: RunConfig, out: Path) -> tuple[str, str]:
    """Run a config in its folder: its status, and the reason where that is `failed`."""
    from vitc.training.loop import run

    try:
        return run(config, out, quiet=True).status, ""
    except (InterruptedRun, LostProcess):
        return "interrupted", ""
    except DivergedError:
        return "diverged", ""
    except VitcError as error:
        return "failed", error.message
    except Exception:
        return "failed", traceback.format_exc(limit=5)


def status_of(out: Path) -> str:
    """The status in a trial's summary.json, empty where there is none. Raises CheckpointError."""
    return str(Run(out).summary.get("status", ""))


def claimed(out: Path) -> bool:
    """Whether a process is running the trial in this folder, on any machine that sees it."""
    if not (out / CLAIM).exists():
        return False
    try:
        FolderLock(out, CLAIM).close()
    except ConfigError as error:
        return isinstance(error.__cause__, BlockingIOError)
    return False


def vanished(out: Path) -> bool:
    """Whether the last process that ran a trial has gone without noting how its try ended."""
    tries = read_tries(out)
    return bool(tries) and "ended" not in tries[-1] and not claimed(out)


def locks_work(folder: Path) -> bool:
    """Whether the file system of a folder has locks, without which nothing can be claimed."""
    try:
        with FolderLock(folder, CLAIM) as lock:
            return lock.held
    except ConfigError as error:
        return isinstance(error.__cause__, BlockingIOError)


def _free(out: Path) -> bool:
    """Wait until nobody writes the run folder: a lost process may still be saving its state."""
    end = time.monotonic() + LOCK_SECONDS
    while (out / LOCK).exists():
        try:
            FolderLock(out).close()
            break
        except ConfigError:
            if time.monotonic() > end:
                return False
        time.sleep(0.2)
    return True


def record_failure(out: Path, config: RunConfig, error: str) -> None:
    """Record a trial as failed, with the reason, where its run has not done so itself."""
    if status_of(out) in ENDED:
        return
    if not (out / CONFIG).exists():
        write_json(out / CONFIG, to_saved(config))
    lines = Run(out).metrics()
    step = int(lines[-1]["step"]) if lines else 0
    summary = {"status": "failed", "run": str(out), "error": error, "step": step}
    write_json(out / SUMMARY, summary)


# -- tries.json: where and when a trial was run, and how each try ended ----------------------------


def read_tries(out: Path) -> list[dict[str, Any]]:
    """The tries of a trial, the oldest first. Raises CheckpointError: the file is damaged."""
    file = out / TRIES
    return list(read_json(file, CheckpointError).get("tries", [])) if file.exists() else []


def _write_tries(out: Path, tries: Sequence[Mapping[str, Any]]) -> None:
    write_json(out / TRIES, {"schema": 1, "tries": list(tries)})


def reached(out: Path) -> str:
    """The name of a trial's last checkpoint, as step_40; empty before the first one."""
    file = out / CHECKPOINTS / LATEST
    return file.read_text(errors="replace").strip() if file.is_file() else ""


def _given_up(tries: Sequence[Mapping[str, Any]], reached: str) -> str | None:
    """Why a trial is not tried again: too many of its tries got no further than this checkpoint."""
    here = [t for t in tries if t.get("checkpoint") == reached]
    deaths = [t for t in here if t.get("ended") == "died"]
    if len(deaths) < DEATHS and len(here) < MOST_TRIES:
        return None
    last = (deaths or here)[-1]
    return (
        f"{len(here)} tries have not got beyond {reached or 'the first checkpoint'}; the last one "
        f"on {last.get('host')}: {last.get('reason', last.get('ended', 'no trace'))}"
    )


def _mark_death(study: StudyFolder, ids: Sequence[str], process: int | None, reason: str) -> bool:
    """Note at the trial that a process of this machine (None: any) ran why that process died."""
    for out in (study.trials / name for name in ids):
        tries = read_tries(out)
        last = tries[-1] if tries else {"ended": "never begun"}
        here = last.get("host") == socket.gethostname() and "ended" not in last
        if here and (not claimed(out) if process is None else last.get("process") == process):
            tries[-1] |= {"ended": "died", "reason": reason}
            _write_tries(out, tries)
            return True
    return False


def allow_again(out: Path) -> None:
    """Make a failed trial one to run, whatever its tries came to."""
    tries = read_tries(out)
    if tries:
        _write_tries(out, [t | {"checkpoint": None} for t in tries])  # none counts any more
    (out / SUMMARY).unlink(missing_ok=True)


# -- one trial over several processes --------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Over what a trial spreads: `processes` on each of `nodes` machines, this one being `rank`."""

    processes: int = 1
    nodes: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0

    def command(self, study: Path, trial: str, engine: str) -> list[str]:
        """The `torchrun` of a trial on this machine."""
        where = ["--standalone"]
        if self.nodes > 1:
            where = [
                f"--nnodes={self.nodes}",
                f"--node-rank={self.rank}",
                f"--master-addr={self.address}",
                f"--master-port={self.port}",
            ]
        where += [f"--nproc-per-node={self.processes}", "-m", "vitc.study.work"]
        return [sys.executable, "-m", "torch.distributed.run", *where, str(study), trial, engine]


def import_package(name: str, engine: str) -> Any:
    """The package an engine stands on. Raises ConfigError with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--engine {engine} needs {name}, which is not installed.",
            f"Install it with: {install_line(engine)}",
        ) from error


def gpus_and_device(gpus: float | None, asked: str | None) -> tuple[float, str]:
    """The GPUs of a trial on another machine, and so its device: by --gpus-per-trial, or else by
    the device asked for. Raises ConfigError: the two contradict each other."""
    device = "cuda" if gpus or (gpus is None and asked == "cuda") else "cpu"
    if asked not in (None, "auto", device):
        raise ConfigError(
            f"The trials are for {asked}, which contradicts --gpus-per-trial {gpus or 0:g}.",
            "Leave --train.device out: --gpus-per-trial decides, when the study is started.",
        )
    return float(device == "cuda") if gpus is None else gpus, device


def run_spread(study: StudyFolder, trial: str, engine: str, span: Span) -> str:
    """Run a trial in the processes of `span`; returns its status, `` where they died.

    A KeyboardInterrupt or SystemExit meanwhile is raised again once the trial has saved its state.
    """
    command = span.command(study.path, trial, engine)
    with deaf_children():
        process = subprocess.Popen(command, preexec_fn=_end_with_parent)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # torchrun forwards it to its processes
            try:
                process.wait(SAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if code and span.rank == 0:
        _mark_death(study, [trial], None, f"torchrun ended with exit code {code}")
    return status_of(study.trials / trial)


def _end_with_parent() -> None:
    """Linux: SIGTERM when the process that started this one dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main(folder: str, name: str, engine: str) -> int:
    """One of the processes of a trial's torchrun."""
    (trial,) = trials_of(StudyFolder(Path(folder)), [name])
    status = run_trial(StudyFolder(Path(folder)), trial, engine)
    if status in ("done", "diverged", "interrupted"):
        return 0
    if os.environ.get("RANK", "0") != "0":  # torchrun ends all processes with the first that
        time.sleep(5)  # fails: the one that writes the folder comes first
    return 1


# -- many trials on this machine -------------------------------------------------------------------


def trials_of(study: StudyFolder, ids: Sequence[str]) -> list[Trial]:
    """These trials of a study, in the plan's order, its custom classes found again."""
    plan, _ = study.read()
    wanted = set(ids)
    found = {t.id: t for t in study.with_sources(plan).trials() if t.id in wanted}
    return list(found.values())


def check_machine(study: StudyFolder, allow_mixed: bool = False) -> None:
    """Raises ConfigError: this machine does not see the study, or has other versions than it."""
    host = socket.gethostname()
    if not study.exists():
        raise ConfigError(
            f"{host} does not see the study {study.path}.",
            "A study for several machines needs a file system that all of them mount under the "
            "same name.",
        )
    differing = other_versions(study.read()[1]["environment"]["versions"])
    if differing and not allow_mixed:
        raise ConfigError(
            f"{host} differs from where the study was started in {'; '.join(differing)}.",
            "Install the same versions there, or give --allow-mixed; the report will name it.",
        )


@dataclass
class _Worker:
    process: Any
    lifeline: Connection
    number: int


@dataclass
class Pool:
    """Worker processes that run the trials `ids` of a study; each takes the next one that is free.

    Workers are persistent: `import torch` and the first step are paid once. On CPU each has one
    thread: two such processes beat one with two threads by about a third on small models. `gpus`,
    as CUDA_VISIBLE_DEVICES names them: worker i sees the i-th alone; empty: all see all.
    """

    study: StudyFolder
    ids: Sequence[str]
    workers: int
    engine: str = "local"
    gpus: Sequence[str] = ()
    span: Span = field(default_factory=Span)

    def run(self, going: Callable[[], bool]) -> None:
        """Until no trial is left, or `going()`, asked about twice a second, is False.

        Running trials then save their state. A worker that dies is replaced, and the reason noted
        at its trial. Raises RunError: workers die before they run a trial.
        """
        pool = [self._start(i) for i in range(min(self.workers, len(self.ids)))]
        early = 0
        try:
            while pool and going():
                wait([w.process.sentinel for w in pool], timeout=0.5)
                for worker in [w for w in pool if not w.process.is_alive()]:
                    pool.remove(worker)
                    code = worker.process.exitcode
                    if code == 0:
                        continue
                    why = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
                    if code != STOPPED and not _mark_death(
                        self.study, self.ids, worker.process.pid, why
                    ):
                        early += 1
                    if early > 2:
                        raise RunError(f"Workers die before they run a trial ({why}).")
                    if going():
                        pool.append(self._start(worker.number))
        finally:
            stop_processes([w.process for w in pool], SAVE_SECONDS)
            for worker in pool:
                worker.lifeline.close()

    def _start(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")  # fork copies torch's thread pools half-way
        lifeline_read, lifeline_write = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self, number, lifeline_read))
        with deaf_children(), _main_left_alone():
            process.start()
        lifeline_read.close()
        return _Worker(process, lifeline_write, number)


@contextlib.contextmanager
def _main_left_alone() -> Iterator[None]:
    """Keep new processes from importing the caller's script: it may have no main guard."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def stop_processes(processes: Sequence[Any], seconds: float) -> None:
    """Have the running trials of worker processes save their state, for at most `seconds`."""
    end = time.monotonic() + seconds
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(pool: Pool, number: int, lifeline: Connection) -> None:
    """A worker process: run, one after another, the trials that no other process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    for number in STOP_SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, lambda *_: sys.exit(STOPPED))
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    if pool.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = pool.gpus[number % len(pool.gpus)]
    import torch

    torch.set_num_threads(1)
    shared = locks_work(pool.study.path)
    for index, trial in enumerate(trials_of(pool.study, pool.ids)):
        if not shared and index % pool.workers != number:
            continue  # no locks on this file system: the workers share the trials out beforehand
        try:
            if pool.span.processes * pool.span.nodes > 1:
                status = run_spread(pool.study, trial.id, pool.engine, pool.span)
            else:
                status = run_trial(pool.study, trial, pool.engine)
        except VitcError as error:
            print(f"{trial.label}: {error.message}", file=sys.stderr)
            continue
        if status == "interrupted":
            sys.exit(STOPPED)


def _die_with(lifeline: Connection) -> None:
    """End this process when the parent's end of the lifeline closes, however the parent ended."""
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(1)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Block SIGUSR1 and SIGUSR2 in processes started meanwhile: SLURM sends them to every process
    of a job, and only the first one can handle them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
