"""Who runs a study's trials? This machine, a Ray cluster or SLURM.

An engine launches workers and waits; it queues and places nothing. Workers claim trials in the
study's folder (`vitc.study.work`), which alone holds what was run, so an engine may die at any
moment and lose nothing but the steps since the last checkpoints.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vitc.errors import ConfigError, RunError
from vitc.runs.folder import ENDED
from vitc.study.design import Plan
from vitc.study.launch_ray import RayEngine
from vitc.study.launch_slurm import SlurmEngine
from vitc.study.study_folder import StudyFolder
from vitc.study.work import Pool, claimed, read_tries, status_of


class Engine(Protocol):
    """What launches workers. Its fields are its flags on the command line (`cli.work.FLAGS`)."""

    name: str

    @property
    def size(self) -> int:
        """About how many trials run at a time, for the estimate of the time left."""

    def device(self, asked: str | None) -> str | None:
        """The device of the trials, of those `asked` for; None: to be looked for on this machine.

        Raises ConfigError: the flags and `asked` contradict each other.
        """

    def prepare(self, study: StudyFolder, device: str, allow_mixed: bool) -> None:
        """Connect, before the first `run`, for trials on "cpu", "cuda" or "mps"; whether machines
        with other versions than the study's may run them.

        Raises ConfigError: the engine is not installed or not reachable, or has no such device.
        """

    def run(self, study: StudyFolder, ids: Sequence[str], going: Callable[[], bool]) -> None:
        """Launch workers for these trials; return once all workers have ended.

        `going()` is asked about twice a second; when it is False, running trials save their state
        first. Trials may be left unfinished: they are launched again. Raises RunError, ConfigError:
        workers cannot run.
        """

    def close(self) -> None:
        """After the last `run`, also after an error; may be called twice."""


@dataclass
class LocalEngine:
    """Worker processes on this machine."""

    workers: int | None = None
    name: str = dataclasses.field(default="local", init=False)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers {self.workers} must be at least 1.")

    @property
    def size(self) -> int:
        return self.workers or default_workers()

    def device(self, asked: str | None) -> str | None:
        return asked

    def prepare(self, study: StudyFolder, device: str, allow_mixed: bool) -> None:
        from vitc.training.device import pick_device

        pick_device(device)

    def run(self, study: StudyFolder, ids: Sequence[str], going: Callable[[], bool]) -> None:
        Pool(study, ids, self.size).run(going)

    def close(self) -> None:
        """Nothing is left after `run`."""


def default_workers() -> int:
    """One a core on CPU; four a GPU, whose kernels on small models leave room for each other."""
    from vitc.machine import cores
    from vitc.training.device import pick_device

    return cores() if pick_device().type == "cpu" else 4


ENGINES: dict[str, type[LocalEngine] | type[RayEngine] | type[SlurmEngine]] = {
    "local": LocalEngine,
    "ray": RayEngine,
    "slurm": SlurmEngine,
}


def device_of(plan: Plan) -> str:
    """The device of a plan's trials. Raises ConfigError: there are several."""
    devices = {g.config.train.device for g in plan.groups}
    if len(devices) > 1:
        raise ConfigError(f"The trials are for several devices: {', '.join(sorted(devices))}.")
    return devices.pop()


def run_all(
    study: StudyFolder,
    ids: Sequence[str],
    engine: Engine,
    going: Callable[[], bool],
    wait: bool = True,
) -> None:
    """Launch what is unfinished, again and again, until all trials have ended or `going()` ends.

    Trials that another process has claimed are waited for, or left to it. Raises RunError: two
    launches have tried none of them.
    """
    before: dict[str, int] = {}
    unchanged = 0
    while going():
        left = [i for i in ids if status_of(study.trials / i) not in ENDED]
        free = [i for i in left if not claimed(study.trials / i)]
        if not left or not (free or wait):
            return
        if not free:
            time.sleep(1.0)
            continue
        now = {i: len(read_tries(study.trials / i)) for i in free}
        unchanged = unchanged + 1 if now == before else 0
        if unchanged == 2:
            raise RunError(
                f"{len(free)} of the trials cannot be run, the first in {study.trials / free[0]}.",
                f"The reasons are above, or in the logs of engine {engine.name}.",
            )
        before = now
        engine.run(study, free, going)
