"""How are trials launched on a Ray cluster? As one task each, on a running cluster or a local one.

Ray queues the tasks, places them where their CPUs and GPUs are free, and retries those whose node
or process died; the trial's folder keeps a retried one from being run twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitc.errors import ConfigError, InterruptedRun, RunError, VitcError
from vitc.machine import cores
from vitc.plugins.consent import TRUSTED_ENV, consent
from vitc.study import work
from vitc.study.study_folder import StudyFolder

ADDRESS = re.compile(r"auto|[A-Za-z0-9_.\-]+:\d{1,5}|\[[0-9A-Fa-f:]+\]:\d{1,5}")
STORE_BYTES = 80 << 20  # nothing but names goes through Ray's object store


@dataclass
class RayEngine:
    """One Ray task a trial, of some cores and GPUs: a share of one GPU, or several.

    `ray_address`: of a running cluster ("auto": the one this machine belongs to). Without it a
    local one is started, on the loopback alone and without a dashboard, and ended by `close`.
    """

    ray_address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: int = 1
    size: int = field(default=1, init=False)
    name: str = field(default="ray", init=False)

    def __post_init__(self) -> None:
        found = []
        gpus = self.gpus_per_trial or 0.0
        if not (0 <= gpus < math.inf):
            found.append(f"--gpus-per-trial {gpus:g} must not be negative.")
        elif gpus > 1 and gpus != int(gpus):
            found.append(f"--gpus-per-trial {gpus:g} must be a share of one GPU or an integer.")
        if self.ray_address and not ADDRESS.fullmatch(self.ray_address):
            found.append(
                f"--ray-address {self.ray_address!r} is neither auto nor HOST:PORT: auto on a node "
                "of the cluster, or 10.0.0.1:6379. Ray's client (ray://) is not supported."
            )
        if found:
            raise ConfigError("\n".join(found))

    def device(self, asked: str | None) -> str | None:
        return work.gpus_and_device(self.gpus_per_trial, asked)[1]

    def prepare(self, study: StudyFolder, device: str, allow_mixed: bool) -> None:
        self.allow_mixed = allow_mixed
        self.gpus, _ = work.gpus_and_device(self.gpus_per_trial, device)
        ray = work.import_package("ray", self.name)
        self._connect(ray)
        try:
            self.size = self._room([n["Resources"] for n in ray.nodes() if n["Alive"]])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        ray = work.import_package("ray", self.name)
        if ray.is_initialized():
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local: dict[str, Any] = {
            "num_cpus": cores(),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",  # else Ray asks the network for its own address
            "object_store_memory": STORE_BYTES,
        }
        try:
            with _own_signals():
                ray.init(
                    address=self.ray_address or "local",
                    configure_logging=False,
                    log_to_driver=False,
                    **({} if self.ray_address else local),
                )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"at {self.ray_address}" if self.ray_address else "on this machine"
            raise ConfigError(
                f"There is no Ray cluster {where}: {str(error).splitlines()[0]}",
                "Run `ray status` on a node; without --ray-address a local cluster is started.",
            ) from error

    def _room(self, nodes: Sequence[dict[str, float]]) -> int:
        """How many trials fit at a time. Raises ConfigError: none ever would."""
        cpus, fit = self.cpus_per_trial, 0
        for node in nodes:
            by_cpu, gpus = math.floor(node.get("CPU", 0.0) / cpus), node.get("GPU", 0.0)
            if not self.gpus:
                fit += by_cpu
            elif self.gpus < 1:  # Ray shares out single GPUs: rests of two are not joined
                fit += min(by_cpu, math.floor(gpus) * math.floor(1 / self.gpus + 1e-9))
            else:
                fit += min(by_cpu, math.floor(gpus / self.gpus))
        if not fit:
            sizes = "; ".join(f"{r.get('CPU', 0):g} CPUs, {r.get('GPU', 0):g} GPUs" for r in nodes)
            raise ConfigError(
                f"No node is large enough for a trial of {cpus} CPUs and {self.gpus:g} GPUs; "
                f"there are: {sizes}.",
                "Lower --cpus-per-trial or --gpus-per-trial, or add nodes first.",
            )
        return fit

    def run(self, study: StudyFolder, ids: Sequence[str], going: Callable[[], bool]) -> None:
        ray = work.import_package("ray", self.name)
        task = ray.remote(
            num_cpus=self.cpus_per_trial,
            num_gpus=self.gpus,
            max_retries=-1,  # tries.json has the limit
            retry_exceptions=[InterruptedRun],
        )(_task)
        place, trusted = str(study.path.resolve()), consent()
        waiting = [task.remote(place, i, self.gpus, trusted, self.allow_mixed) for i in ids]
        try:
            while waiting and going():
                ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
                for each in ready:
                    ray.get(each)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VitcError):  # of a machine that cannot run trials
                raise error.cause from error
            raise RunError(f"A Ray task failed: {str(error).strip().splitlines()[-1]}") from error
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray failed: {str(error).strip().splitlines()[0]}") from error
        finally:
            _cancel(ray, waiting)


def _cancel(ray: Any, tasks: list[Any]) -> None:
    """Stop tasks: those that run get a KeyboardInterrupt, on which trials save their state."""
    for force in (False, True):
        for task in tasks:
            with contextlib.suppress(Exception):  # it has ended, or its node is gone
                ray.cancel(task, force=force)
        if tasks and not force:
            _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=work.SAVE_SECONDS)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our SIGTERM and Ctrl-C: `ray.init` replaces them with handlers of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _task(folder: str, name: str, gpus: float, trusted: str, allow_mixed: bool) -> str:
    """One trial, on the node where Ray has placed it; returns its status.

    Raises InterruptedRun: the trial was stopped, not by us, and Ray is to run it again.
    """
    os.environ[TRUSTED_ENV] = trusted
    study = StudyFolder(Path(folder))
    work.check_machine(study, allow_mixed)
    if gpus > 1:
        status = work.run_spread(study, name, "ray", work.Span(round(gpus)))
    else:
        import torch

        torch.set_num_threads(1)
        (trial,) = work.trials_of(study, [name])
        status = work.run_trial(study, trial, "ray")
    if status == "interrupted":
        raise InterruptedRun("The trial was interrupted; its state is saved.", None, signal.SIGTERM)
    return status
