"""Trials that differ in numbers and seeds alone, trained together as one batched program.

For one accelerator and small models. Where a probe finds that trials are faster one by one, or
where they cannot share a program, the workers of this machine run them (`engines.LocalEngine`).
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitc.config import RunConfig
from vitc.errors import CheckpointError, ConfigError, InterruptedRun
from vitc.study.engines import Job, LocalEngine, Outcome, default_workers
from vitc.study.runs import read_run
from vitc.study.trial import RESULTS, placed
from vitc.train.runlog import CONFIG, read_summary

MEMBERS = 64  # of a population, at most
Pays = Callable[[RunConfig, int], tuple[bool, str]]


@dataclass
class PopulationEngine:
    """Runs jobs in populations of at most `members`, in this process.

    `pays` says, for the config of a population and its size, whether to train it together and why;
    None: by `train.population_probe`, asked once for each kind of trial and size. What came of it
    is said on stderr and kept in `said`.
    """

    members: int = MEMBERS
    beside: int | None = None
    """Workers for trials that are not trained together; None: `default_workers`."""
    pays: Pays | None = None
    name: str = "population"
    stop: threading.Event = field(default_factory=threading.Event)
    said: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ConfigError(f"A population of {self.members} member(s) is none: at least 2.")

    @property
    def workers(self) -> int:
        return self.members

    def prepare(self, study: Path, devices: Collection[str]) -> list[str]:
        """Nothing to set up; raises ConfigError where a device of the trials' is not here."""
        return self._local().prepare(study, devices)

    def close(self) -> None:
        """Nothing is left after `run`."""

    def run(self, jobs: Sequence[Job], done: Callable[[Outcome], None],
            tick: Callable[[Sequence[Job]], None]) -> None:  # fmt: skip
        """Run all jobs: `done` is told of each end, `tick` from time to time what runs.

        Returns when all have ended, or once `stop` is set and the running ones have saved their
        state. What ends a population as a whole (memory, say) leaves its trials to the workers.
        """
        singly: list[Job] = []
        answers: dict[tuple[int, int], bool] = {}
        for kind, alike in enumerate(alike_jobs(jobs)):
            for chunk in even_parts(alike, self.members):
                if self.stop.is_set():
                    return
                key = (kind, len(chunk))
                if key not in answers:
                    answers[key] = self._pays(chunk)
                singly += self._together(chunk, done, tick) if answers[key] else chunk
        if singly and not self.stop.is_set():
            self._local().run(singly, done, tick)

    def _local(self) -> LocalEngine:
        workers = self.beside or default_workers()
        return LocalEngine(workers=workers, name=self.name, stop=self.stop)

    def _pays(self, chunk: Sequence[Job]) -> bool:
        if len(chunk) < 2:
            return False
        pays, why = (self.pays or self._measured)(chunk[0].config, len(chunk))
        self._say(f"{len(chunk)} trials {'together' if pays else 'one by one'}: {why}")
        return pays

    def _say(self, text: str) -> None:
        self.said.append(text)
        print(f"population: {text}", file=sys.stderr)

    def _measured(self, config: RunConfig, members: int) -> tuple[bool, str]:
        from vitc.train.device import pick_device
        from vitc.train.population_probe import population_pays

        device = pick_device(config.train.device)
        # On a CPU populations would run side by side as well, one a core, as single runs do.
        beside = 1 if device.type == "cpu" else (self.beside or default_workers())
        return population_pays(config, members, device, beside=beside)

    def _together(
        self, chunk: Sequence[Job], done: Callable[[Outcome], None],
        tick: Callable[[Sequence[Job]], None],
    ) -> list[Job]:  # fmt: skip
        """Train them; returns those that are left for single runs."""
        from vitc.train.device import pick_device
        from vitc.train.population import run_population
        from vitc.train.population_probe import free_memory

        started = time.monotonic()
        notes = [placed(self.name), *self.said[-1:]]
        left: list[Job] = []
        try:
            run_population(
                [job.config for job in chunk],
                [job.out for job in chunk],
                quiet=True,
                stopped=lambda: signal.SIGTERM if self.stop.is_set() else None,
                tick=lambda: tick(chunk),
                notes=notes,
            )
        except InterruptedRun as error:
            self._tell(chunk, done, started, ("interrupted", error.message))
            return []
        except Exception as error:  # a worker will find out whether it is the trial's own fault
            self._say(f"{len(chunk)} trials one by one: {error}")
            left = [job for job in chunk if _status(job) not in RESULTS]
        finally:
            free_memory(pick_device(chunk[0].config.train.device))
        self._tell([job for job in chunk if job not in left], done, started, ("failed", ""))
        return left

    @staticmethod
    def _tell(
        chunk: Sequence[Job], done: Callable[[Outcome], None], started: float,
        otherwise: tuple[str, str],
    ) -> None:  # fmt: skip
        """Tell how each ended: as its folder says, or `otherwise` where it has no result."""
        seconds = time.monotonic() - started
        for job in chunk:
            status, error = _status(job), read_run(job.out).summary.get("error")
            if status not in RESULTS:
                status, error = otherwise
            done(Outcome(job, status, seconds, error))


def _status(job: Job) -> str:
    """As in the trial's summary.json; empty where it has none."""
    try:
        return str((read_summary(job.out) or {}).get("status", ""))
    except CheckpointError:
        return ""


def alike_jobs(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups of those that can be one population, in the order of their first ones."""
    from vitc.train.population import population_problems

    groups: list[tuple[int, list[Job]]] = []
    for job in jobs:
        step = _step(job)
        for at, group in groups:
            if at == step >= 0 and not population_problems([group[0].config, job.config]):
                group.append(job)
                break
        else:
            groups.append((step, [job]))
    return [group for _, group in groups]


def _step(job: Job) -> int:
    """The step that the trial goes on from; -1: its checkpoints are damaged, which it has to say
    alone."""
    from vitc.train.state import latest_checkpoint

    if not (job.out / CONFIG).exists():
        return 0
    try:
        found, _ = latest_checkpoint(job.out / "checkpoints")
    except CheckpointError:
        return -1
    return 0 if found is None else int(found.name.partition("_")[2].partition("-")[0])


def even_parts(jobs: Sequence[Job], most: int) -> list[list[Job]]:
    """Parts of at most `most`, of sizes that differ by one at most: a rest of two would be slow."""
    parts = -(-len(jobs) // most)
    return [list(jobs[i * len(jobs) // parts : (i + 1) * len(jobs) // parts]) for i in range(parts)]
