"""Trials as tasks on a Ray cluster: one that is there, or a local one for the study's duration.

Ray queues the tasks and places them where their CPUs and GPUs are free. A task whose node went away
is placed again, on its last checkpoint; the run folder keeps it from being counted twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.study.launch import Job, Outcome, Tries
from vitc.study.work import (
    LEFT,
    SAVE_SECONDS,
    Span,
    Torchrun,
    run_trial,
    trust_words,
    trusted_words,
    unseen,
    write_spec,
)

INSTALL = "pip install 'vitc[ray]'"
ADDRESS = re.compile(r"auto|[A-Za-z0-9_.\-]+:\d{1,5}|\[[0-9A-Fa-f:]+\]:\d{1,5}")
MARKER = ".seen-"  # a file for a moment, to ask every node whether it sees the study's folder
MUST_AGREE = ("torch", "vitc")
CHECK_SECONDS = 300.0  # for every node to start a process and answer
STORE_BYTES = 80 << 20  # nothing but a config goes through Ray's object store


@dataclass
class RayEngine:
    """Runs every job as a Ray task of `cpus` cores and `gpus` GPUs (a share, or a whole number).

    `address`: of a cluster that is there ("auto": the one this machine belongs to); "": a local one
    is started, on the loopback alone and without a dashboard, and ended by `close`.
    """

    address: str = ""
    gpus: float = 0.0
    cpus: int = 1
    workers: int = 1
    stop: threading.Event = field(default_factory=threading.Event)
    name: str = field(default="ray", init=False)

    def __post_init__(self) -> None:
        if self.address and not ADDRESS.fullmatch(self.address):
            raise ConfigError(
                f"--ray-address {self.address!r} is neither auto nor HOST:PORT.",
                "For example: --ray-address auto on a node of the cluster, or 10.0.0.1:6379. "
                "Ray's client (ray://) is not used: start the study on a node.",
            )

    # -- before and after ------------------------------------------------------------------------

    def prepare(self, study: Path, devices: Collection[str]) -> list[str]:
        """Connect; look at the nodes. Returns where their versions differ from here.

        Raises ConfigError: Ray is missing or not reachable, a node does not see the study's
        folder, none is large enough for a trial.
        """
        ray = import_ray()
        self._connect(ray)
        try:
            nodes = [n for n in ray.nodes() if n["Alive"]]
            self._measure(nodes)
            return self._look_from(ray, nodes, study)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        ray = import_ray()
        if ray.is_initialized():
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        from vitc.machine import cores

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local: dict[str, Any] = {
            "num_cpus": cores(),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",  # else Ray asks the network which address is its own
            "object_store_memory": STORE_BYTES,
        }
        try:
            with _own_signals():
                ray.init(
                    address=self.address or "local",
                    configure_logging=False,
                    log_to_driver=False,
                    **({} if self.address else local),
                )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"at {self.address}" if self.address else "on this machine"
            raise ConfigError(
                f"There is no Ray cluster {where}: {str(error).splitlines()[0]}",
                "Look with `ray status` on a node; without --ray-address a local one is started.",
            ) from error

    def _measure(self, nodes: Sequence[dict[str, Any]]) -> None:
        """How many trials fit at a time. Raises ConfigError where none ever would."""
        have = [n["Resources"] for n in nodes]
        fit = sum(self._fitting(r.get("CPU", 0.0), r.get("GPU", 0.0)) for r in have)
        if not fit:
            sizes = "; ".join(f"{r.get('CPU', 0):g} CPUs, {r.get('GPU', 0):g} GPUs" for r in have)
            raise ConfigError(
                f"No node is large enough for a trial of {self.cpus} CPUs and {self.gpus:g} GPUs; "
                f"there are: {sizes}.",
                "Lower --cpus-per-trial or --gpus-per-trial, or add nodes first.",
            )
        self.workers = fit

    def _fitting(self, cpus: float, gpus: float) -> int:
        by_cpu = math.floor(cpus / self.cpus)
        if not self.gpus:
            return by_cpu
        # Ray shares out single GPUs: what does not fill one is not joined with the next
        by_gpu = (
            math.floor(gpus) * math.floor(1 / self.gpus + 1e-9)
            if self.gpus < 1
            else math.floor(gpus / self.gpus)
        )
        return min(by_cpu, by_gpu)

    def _look_from(self, ray: Any, nodes: Sequence[dict[str, Any]], study: Path) -> list[str]:
        """Ask every node whether it sees the study's folder, and for its versions."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from vitc.machine import environment

        token = secrets.token_hex(8)
        marker = study.resolve() / f"{MARKER}{token}"
        marker.write_text(token)
        try:
            look = ray.remote(num_cpus=0, max_retries=0)(_look)
            asked = [
                look.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
                ).remote(str(marker))
                for n in nodes
            ]
            answers = ray.get(asked, timeout=CHECK_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            raise ConfigError(
                f"Not every node of the Ray cluster answered within {CHECK_SECONDS:.0f} s.",
                "Look with `ray status`; end the node that hangs.",
            ) from error
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"A node of the Ray cluster cannot run vitc: {why}",
                "Install the same vitc and torch on every node.",
            ) from error
        finally:
            marker.unlink(missing_ok=True)
        blind = sorted({a["host"] for a in answers if a["seen"] != token})
        if blind:
            raise ConfigError(
                f"{', '.join(blind)} of the Ray cluster does not see {study.resolve()}.",
                "Put the study (--out) on a file system that all nodes mount under the same name.",
            )
        here = environment()["versions"]
        return sorted(
            {
                f"{k} {here[k]} here, {a['versions'].get(k)} on {a['host']}"
                for a in answers
                for k in MUST_AGREE
                if _public(str(a["versions"].get(k))) != _public(str(here[k]))
            }
        )

    # -- running ---------------------------------------------------------------------------------

    def run(
        self,
        jobs: Sequence[Job],
        done: Callable[[Outcome], None],
        tick: Callable[[Sequence[Job]], None],
    ) -> None:
        """As `Engine.run`. The cluster must be connected (`prepare`)."""
        ray = import_ray()
        task = ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, retry_exceptions=False
        )(_task)
        waiting, tries = deque(jobs), Tries()
        placed: dict[Any, tuple[Job, float]] = {}
        trusted = trusted_words()
        try:
            while (waiting or placed) and not self.stop.is_set():
                while waiting:
                    job = waiting.popleft()
                    ref = task.remote(job.config, str(job.out.resolve()), self.gpus, trusted)
                    placed[ref] = (job, time.monotonic())
                tick([job for job, _ in placed.values()])
                ready, _ = ray.wait(list(placed), num_returns=len(placed), timeout=0.5)
                for ref in ready:
                    job, since = placed.pop(ref)
                    outcome, own_fault = self._ended(ray, ref, job, since)
                    if outcome.status == "lost":
                        if tries.again(job, own_fault):
                            waiting.append(job)
                            continue
                        outcome = Outcome(job, "failed", outcome.seconds, outcome.error)
                    done(outcome)
        finally:
            self._cancel(ray, placed, done)

    def _ended(self, ray: Any, ref: Any, job: Job, since: float) -> tuple[Outcome, bool]:
        """What became of a task, `lost` where it is to be tried again; whether by its own fault."""
        errors = ray.exceptions
        try:
            status, error, seconds = ray.get(ref)
        except errors.TaskCancelledError:
            return Outcome(job, "interrupted", time.monotonic() - since), False
        except errors.RayTaskError as trouble:  # raised by our own code, before the trial began
            why = str(trouble).strip().splitlines()[-1]
            return Outcome(job, "failed", time.monotonic() - since, why), True
        except errors.RayError as trouble:
            own = isinstance(trouble, errors.WorkerCrashedError | errors.OutOfMemoryError)
            why = str(trouble).strip().splitlines()[0]
            return Outcome(job, "lost", time.monotonic() - since, why), own
        lost = status == "died" or (status == "interrupted" and not self.stop.is_set())
        own = status == "died"
        return Outcome(job, "lost" if lost else status, seconds, error), own

    def _cancel(
        self, ray: Any, placed: dict[Any, tuple[Job, float]], done: Callable[[Outcome], None]
    ) -> None:
        """Stop what is placed: running trials hear Ctrl-C, as on this machine, and save."""
        for ref in placed:
            with contextlib.suppress(Exception):  # it has ended, or its node is gone
                ray.cancel(ref, force=False)
        ready, late = (
            ray.wait(list(placed), num_returns=len(placed), timeout=SAVE_SECONDS)
            if placed
            else ([], [])
        )
        for ref in late:
            with contextlib.suppress(Exception):
                ray.cancel(ref, force=True)
        for ref in ready:
            outcome, _ = self._ended(ray, ref, *placed[ref])
            done(
                outcome
                if outcome.status != "lost"
                else Outcome(outcome.job, "interrupted", outcome.seconds)
            )


def import_ray() -> Any:
    """Ray, or a ConfigError with the line that installs it."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray, which is not here.", INSTALL) from error
    return ray


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our SIGTERM and Ctrl-C: `ray.init` puts a handler of its own in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _public(version: str) -> str:
    """A version without its build: 2.13.0+cpu and 2.13.0+cu130 are one."""
    return version.partition("+")[0]


# -- on the node -----------------------------------------------------------------------------------


def _look(marker: str) -> dict[str, Any]:
    """What a node says of itself: whether it sees the file, its name, its versions."""
    from vitc.machine import environment

    with contextlib.suppress(OSError):
        seen = Path(marker).read_text()
        return {"seen": seen, "host": socket.gethostname(), "versions": environment()["versions"]}
    return {"seen": None, "host": socket.gethostname(), "versions": {}}


def _task(config: RunConfig, out: str, gpus: float, trusted: str) -> tuple[str, str | None, float]:
    """One trial on the node where Ray has placed it: (status, error, seconds)."""
    started = time.monotonic()
    path = Path(out)
    blind = unseen(path)
    if blind is not None:
        return LEFT, blind, 0.0
    trust_words(trusted)
    with _Cancelled() as cancelled:
        if gpus > 1:
            status, error = Torchrun(write_spec(config, path, "ray"), Span(round(gpus))).wait()
        else:
            import torch

            torch.set_num_threads(1)
            status, error = run_trial(config, path, "ray")
    if cancelled.heard:
        return "interrupted", None, time.monotonic() - started
    return status, error, time.monotonic() - started


class _Cancelled:
    """Ray's Ctrl-C where the trial does not listen yet: it can come out of an import as that
    import's failure, and is none of the trial's."""

    def __init__(self) -> None:
        self.heard = False

    def __enter__(self) -> _Cancelled:
        self.before = signal.signal(signal.SIGINT, self._hear)
        return self

    def _hear(self, number: int, frame: object) -> None:
        self.heard = True
        raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> bool:
        signal.signal(signal.SIGINT, self.before)
        return self.heard and kind is not None
