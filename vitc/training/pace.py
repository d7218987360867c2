"""How far along is a run: by its steps, or, where it has a time to end in, by its time?

A schedule is a function of the position, from 0 to the planned number of steps. A run without a
budget moves by one a step. One with `train.budget_seconds` is re-planned as it goes, so that the
position reaches the end when the time does: each re-planning is recorded in metrics.jsonl and
kept in checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitc.machine import processor_seconds
from vitc.training.config import TrainConfig

REPLAN_SHARE = 0.02  # of the budget between two re-plannings
SAVING_SECONDS = 0.5  # of the last checkpoint, about
LONGEST = 50  # times the planned steps, after which a run ends even if the time does not
KEYS = ("position", "rate", "used")

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.monotonic,
    "processor": processor_seconds,
}


@dataclass
class Pace:
    """The position of a run of `steps` planned steps; `budget` seconds, or None."""

    steps: int
    budget: float | None
    clock: Callable[[], float]
    counted: float
    position: float = 0
    """Planned steps covered."""
    rate: float = 1
    """Planned steps that one step covers."""
    used: float = 0.0
    """Seconds until `counted`, a reading of the clock."""
    evaluation_steps: float = 0
    """That take as long as an evaluation, about."""
    reserve: float | None = None
    """Seconds kept for the last evaluation and checkpoint; None: no evaluation was timed yet."""
    stopped: bool = False
    """It was ended before its plan."""
    marks: list[tuple[float, int]] = field(default_factory=list)
    """(seconds used, steps taken) at the start and at each re-planning."""

    @staticmethod
    def of(config: TrainConfig, steps: int, started: float, evaluation_steps: float) -> Pace:
        """Of a run of so many planned steps; its clock showed `started` when it began."""
        clock = CLOCKS[config.clock]
        return Pace(steps, config.budget_seconds, clock, started, evaluation_steps=evaluation_steps)

    def resume(self, kept: Mapping[str, Any], step: int) -> None:
        """Resume after `step` steps with what `state` gave then."""
        self.position, self.marks = step, []
        if self.budget is not None and all(key in kept for key in KEYS):
            self.position, self.rate = float(kept["position"]), float(kept["rate"])
            self.used += float(kept["used"])
        if kept.get("stopped") == self.steps:  # of this plan, not of a longer one
            self.end()

    @property
    def state(self) -> dict[str, float]:
        """For a checkpoint; nothing where a step counts one and all that were planned are taken."""
        stopped: dict[str, float] = {"stopped": self.steps} if self.stopped else {}
        if self.budget is None:
            return stopped
        return {
            **dict(zip(KEYS, (self.position, self.rate, self.seconds()), strict=True)),
            **stopped,
        }

    @property
    def most_steps(self) -> int:
        """Steps that batches must be ready for."""
        return self.steps if self.budget is None else LONGEST * self.steps + 1  # for rounding

    @property
    def left(self) -> int:
        """Steps to come, at the rate of now."""
        return round((self.steps - self.position) / self.rate)

    @property
    def ended(self) -> bool:
        return self.position >= self.steps

    def end(self) -> None:
        """No step follows, whatever was planned."""
        self.position, self.stopped = self.steps, True

    def advance(self) -> None:
        """A step was taken."""
        self.position = min(self.position + self.rate, self.steps)

    def replan(self, step: int) -> bool:
        """After `step` steps: whether the rate was changed, which happens at most 50 times.

        A step will take as long as in the last half of the time, evaluations included.
        """
        if self.budget is None:
            return False
        used = self.seconds()
        self.marks = self.marks or [(used, step)]
        last = self.marks[-1][0]
        if used - last < REPLAN_SHARE * self.budget or self.ended:
            return False
        half = [mark for mark in self.marks if mark[0] <= used / 2]
        start, first = (half or self.marks)[-1 if half else 0]
        self.marks.append((used, step))
        step_seconds = (used - start) / (step - first)
        reserve = self.reserve
        if reserve is None:
            reserve = SAVING_SECONDS + self.evaluation_steps * step_seconds
        steps = max(1.0, (self.budget - reserve - used) / step_seconds)
        self.rate = max((self.steps - self.position) / steps, 1 / LONGEST)
        return True

    def seconds(self) -> float:
        """Time used so far, that of earlier processes included."""
        now = self.clock()
        self.used += now - self.counted
        self.counted = now
        return self.used
