"""Who runs the trials. Here: persistent workers on this machine that take one after another.

An engine queues, places and retries; `vitc.study.work` runs, wherever it is. Engines for clusters
are `engine_ray` and `engine_slurm`.

A worker pays for `import torch` and the first optimizer step once, not once a trial. On CPU it is
single-threaded, one a core: two such processes beat one with two threads by about a third on small
models. The run folders are the only truth: an engine may die at any moment and lose nothing but
the steps since the last checkpoints.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.study.work import deaf_children, run_trial

RETRIES = 1  # of a trial whose worker died; then it is recorded as failed
LOST_RETRIES = 10  # of a trial whose machine went away, which is no fault of the trial's


@dataclass(frozen=True)
class Job:
    """One trial to run: its config and the run folder to run it in."""

    id: str
    label: str
    config: RunConfig
    out: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `status` as in summary.json, or `failed` with the reason, or `left`
    with the reason why it was not run: then nothing is recorded of it."""

    job: Job
    status: str
    seconds: float
    error: str | None = None


class Engine(Protocol):
    """What `conduct` asks of an engine."""

    @property
    def name(self) -> str:
        """As in --engine; it stands in the study's record and in every trial's events.log."""

    @property
    def workers(self) -> int:
        """About how many trials run at a time, for the estimate of the time left."""

    @property
    def stop(self) -> threading.Event:
        """Set: `run` returns once the running trials have saved their state."""

    def prepare(self, study: Path, devices: Collection[str]) -> list[str]:
        """Before anything is run, for trials on these devices ("cpu", "cuda", "mps").

        Returns in which versions the machines differ from this one. Raises ConfigError.
        """

    def run(
        self,
        jobs: Sequence[Job],
        done: Callable[[Outcome], None],
        tick: Callable[[Sequence[Job]], None],
    ) -> None:
        """Run all jobs: `done` is told of each end, `tick` from time to time what is placed."""

    def close(self) -> None:
        """After the last `run`, also after an error; may be called twice."""


class Tries:
    """Counts how often jobs were lost, by their own fault or by their machine's."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, bool]] = Counter()

    def again(self, job: Job, own_fault: bool) -> bool:
        """Note one more loss; whether the job is to be tried again."""
        self.counts[job.id, own_fault] += 1
        return self.counts[job.id, own_fault] <= (RETRIES if own_fault else LOST_RETRIES)


def default_workers() -> int:
    """One a core on CPU; four a GPU, whose kernels on small models leave room for each other."""
    from vitc.machine import cores
    from vitc.training.device import pick_device

    return cores() if pick_device().type == "cpu" else 4


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    lifeline: Connection
    job: Job | None = None
    started: float = 0.0


@dataclass
class LocalEngine:
    """Runs jobs on this machine in `workers` processes of `threads` threads each.

    `gpus`, as CUDA_VISIBLE_DEVICES names them: worker i sees the i-th alone; empty: all see all.
    """

    workers: int
    threads: int = 1
    gpus: Sequence[str] = ()
    name: str = "local"
    stop: threading.Event = field(default_factory=threading.Event)
    _pool: list[_Worker] = field(default_factory=list, init=False)

    def prepare(self, study: Path, devices: Collection[str]) -> list[str]:
        """Nothing to set up; raises ConfigError where a device of the trials' is not here."""
        from vitc.training.device import pick_device

        for device in devices:
            pick_device(device)
        return []

    def close(self) -> None:
        """Nothing is left after `run`."""

    def run(
        self,
        jobs: Sequence[Job],
        done: Callable[[Outcome], None],
        tick: Callable[[Sequence[Job]], None],
    ) -> None:
        """Run all jobs; `done` is told of each end, `tick` about twice a second what runs.

        Returns when all have ended, or once `stop` is set and the running ones have saved their
        state. A worker that dies loses its trial only.
        """
        if self.workers < 1:
            raise ConfigError(f"workers {self.workers} must be at least 1.")
        waiting = deque(jobs)
        tries = Tries()
        self._pool = pool = [self._start(i) for i in range(min(self.workers, len(jobs)))]
        try:
            while waiting or any(w.job for w in pool):
                if self.stop.is_set():
                    break
                for worker in pool:
                    if worker.job is None and waiting:
                        self._give(worker, waiting.popleft())
                tick([w.job for w in pool if w.job])
                for i, worker in enumerate(pool):
                    outcome = self._ended(worker)
                    if outcome is None:
                        continue
                    if outcome.status == "died":
                        pool[i] = self._start(i)
                        if tries.again(outcome.job, own_fault=True):
                            waiting.appendleft(outcome.job)
                            continue
                        outcome = Outcome(outcome.job, "failed", outcome.seconds, outcome.error)
                    done(outcome)
                self._sleep(pool)
        finally:
            self._shut(pool, done)

    def interrupt(self, seconds: float) -> None:
        """Have the running trials save their state, and wait up to `seconds` until they have.

        For a signal handler that stands in the way of `run`, which must not be gone on with.
        """
        end = time.monotonic() + seconds
        busy = [w for w in self._pool if w.job is not None and w.process.is_alive()]
        for worker in busy:
            os.kill(worker.process.pid, signal.SIGTERM)
        for worker in busy:
            worker.process.join(max(0.0, end - time.monotonic()))

    def _start(self, number: int) -> _Worker:
        context = mp.get_context("spawn")  # fork copies torch's thread pools in an unknown state
        ours, theirs = context.Pipe()
        lifeline_read, lifeline_write = context.Pipe(duplex=False)
        gpu = self.gpus[number % len(self.gpus)] if self.gpus else None
        process = context.Process(
            target=_work, args=(theirs, lifeline_read, self.threads, gpu, self.name), daemon=False
        )
        with deaf_children():
            process.start()
        theirs.close()
        lifeline_read.close()
        return _Worker(process, ours, lifeline_write)

    def _give(self, worker: _Worker, job: Job) -> None:
        worker.job, worker.started = job, time.monotonic()
        with contextlib.suppress(OSError):  # it died meanwhile: seen by _ended
            worker.pipe.send((job.config, job.out))

    def _ended(self, worker: _Worker) -> Outcome | None:
        job = worker.job
        if job is None:
            return None
        seconds = time.monotonic() - worker.started
        try:
            if worker.pipe.poll():
                status, error = worker.pipe.recv()
                worker.job = None
                return Outcome(job, status, seconds, error)
        except (EOFError, OSError):
            pass
        if worker.process.is_alive():
            return None
        worker.process.join()
        code = worker.process.exitcode
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        worker.job = None
        return Outcome(job, "died", seconds, f"its worker died ({why})")

    @staticmethod
    def _sleep(pool: Sequence[_Worker]) -> None:
        busy = [w for w in pool if w.job]
        wait([x for w in busy for x in (w.pipe, w.process.sentinel)], timeout=0.5)

    @staticmethod
    def _shut(pool: Sequence[_Worker], done: Callable[[Outcome], None]) -> None:
        for worker in pool:
            if worker.job is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGTERM)  # its run saves its state
            else:
                worker.lifeline.close()
        for worker in pool:
            job = worker.job
            if job is not None:
                try:
                    if worker.pipe.poll(60):
                        status, error = worker.pipe.recv()
                        done(Outcome(job, status, time.monotonic() - worker.started, error))
                except (EOFError, OSError):
                    pass
            worker.lifeline.close()
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


def _work(
    pipe: Connection, lifeline: Connection, threads: int, gpu: str | None, engine: str
) -> None:
    """A worker's life: run what comes through the pipe until the engine is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            config, out = pipe.recv()
        except (EOFError, OSError):
            return
        status, error = run_trial(config, out, engine)
        pipe.send((status, error))
        if status == "interrupted":
            return


def _die_with(lifeline: Connection) -> None:
    """End this process when the engine's end of the lifeline closes, however the engine ended."""
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(1)
