"""Who runs the trials: on this machine, persistent workers that take one trial after another.

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
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vitc.config import RunConfig
from vitc.errors import ConfigError, InterruptedRun, VitcError

RETRIES = 1  # of a trial whose worker died; then it is recorded as failed


@dataclass(frozen=True)
class Job:
    """One trial to run: its config and the run folder to run it in."""

    id: str
    label: str
    config: RunConfig
    out: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `status` as in summary.json, or `failed` with the reason."""

    job: Job
    status: str
    seconds: float
    error: str | None = None


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    lifeline: Connection
    job: Job | None = None
    started: float = 0.0


@dataclass
class LocalEngine:
    """Runs jobs on this machine in `workers` processes of `threads` threads each."""

    workers: int
    threads: int = 1
    stop: threading.Event = field(default_factory=threading.Event)

    name = "local"

    def run(self, jobs: Sequence[Job], done: Callable[[Outcome], None],
            tick: Callable[[Sequence[Job]], None]) -> None:  # fmt: skip
        """Run all jobs; `done` is told of each end, `tick` about twice a second what runs.

        Returns when all have ended, or once `stop` is set and the running ones have saved their
        state. A worker that dies loses its trial only.
        """
        if self.workers < 1:
            raise ConfigError(f"workers {self.workers} must be at least 1.")
        waiting = deque(jobs)
        tries: dict[str, int] = {}
        pool = [self._start() for _ in range(min(self.workers, len(jobs)))]
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
                        pool[i] = self._start()
                        tries[outcome.job.id] = tries.get(outcome.job.id, 0) + 1
                        if tries[outcome.job.id] <= RETRIES:
                            waiting.appendleft(outcome.job)
                            continue
                        outcome = Outcome(outcome.job, "failed", outcome.seconds, outcome.error)
                    done(outcome)
                self._sleep(pool)
        finally:
            self._shut(pool, done)

    def _start(self) -> _Worker:
        context = mp.get_context("spawn")  # fork copies torch's thread pools in an unknown state
        ours, theirs = context.Pipe()
        lifeline_read, lifeline_write = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(theirs, lifeline_read, self.threads), daemon=False
        )
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


def _work(pipe: Connection, lifeline: Connection, threads: int) -> None:
    """A worker's life: run what comes through the pipe until the engine is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    from vitc.train.loop import run

    while True:
        try:
            config, out = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((run(config, out, quiet=True).status, None))
        except InterruptedRun as error:
            pipe.send(("interrupted", error.message))
            return
        except VitcError as error:
            from vitc.errors import DivergedError

            status = "diverged" if isinstance(error, DivergedError) else "failed"
            pipe.send((status, error.message))
        except Exception:
            pipe.send(("failed", traceback.format_exc(limit=5)))


def _die_with(lifeline: Connection) -> None:
    """End this process when the engine's end of the lifeline closes, however the engine ended."""
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(1)
