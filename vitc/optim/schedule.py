"""Where is the learning rate computed? A schedule is a closed form of the step, without state.

So a resumed run, a plot and a check of the settings all ask the same method. `step` is the number
of finished updates, from 0 at the start to epochs * steps_per_epoch; of a run that ends with its
time it is their share of those planned, and need not be whole. A schedule is one class and
one entry in `SCHEDULES`. Free of torch.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cache, partial
from math import cos, pi
from types import SimpleNamespace
from typing import Any, Literal

from vitc.errors import ConfigError
from vitc.plugins.consent import CustomConfig
from vitc.plugins.load import build, load
from vitc.plugins.names import SCHEDULE
from vitc.settings import Settings, out_of_bounds, setting


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What every schedule has; a concrete one is a subclass with its own fields."""

    def lr(self, step: float, *, peak: float, epochs: int, steps_per_epoch: int) -> float:
        """Learning rate of the update that follows `step` finished ones."""
        raise NotImplementedError

    def warmup(self, epochs: int) -> float:
        """Length of the warm-up of a run of so many epochs, in epochs; 0: none."""
        return 0.0

    def warmup_steps(self, epochs: int, steps_per_epoch: int) -> int:
        """The step at which the warm-up ends; always one that the run takes."""
        return min(round(self.warmup(epochs) * steps_per_epoch), epochs * steps_per_epoch - 1)

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        raise NotImplementedError

    def problems(self) -> list[str]:
        return []


@dataclass(frozen=True, kw_only=True)
class CosineConfig(ScheduleConfig):
    """Linear warm-up, then one half period of a cosine."""

    warmup_epochs: float | None = setting(None, at_least=0)
    """Length of the warm-up; None: the smaller of 5 epochs and 10 % of the run."""
    warmup_start: float = setting(0.0, at_least=0, at_most=1)
    """Fraction of lr at which the warm-up starts (the authors' configs: 0.1)."""
    floor: float = setting(0.0, at_least=0, at_most=1)
    """Fraction of lr at which the cosine ends (the authors' configs: 0.005)."""
    per: Literal["step", "epoch"] = "step"
    """lr changes every step, or once an epoch as in the authors' code."""

    def lr(self, step: float, *, peak: float, epochs: int, steps_per_epoch: int) -> float:
        """At the end of the run the floor.

        `per="step"`: linear from `warmup_start * peak` at step 0 to exactly `peak` at the whole
        step W = `warmup_steps(...)`, then half a cosine over the *remaining* steps down to
        `floor * peak`. The cosine starts where the warm-up ends, so that the requested rate is
        reached; in schedules that decay during the warm-up it never is
        (huggingface/pytorch-image-models#1544).

        `per="epoch"`: the authors' code (facebookresearch/pycls, core/optimizer.py), constant
        within an epoch e: half a cosine over the *whole* run, times `warmup_start +
        (1 - warmup_start) * e / warmup_epochs` while e < warmup_epochs. Its peak is a little below
        `peak` (0.04 % at the paper's 5 of 400 epochs).
        """
        total = epochs * steps_per_epoch
        assert 0 <= step <= total, f"step {step} is outside the run's 0..{total}"

        def line(progress: float) -> float:  # from warmup_start to 1
            return self.warmup_start + (1 - self.warmup_start) * progress

        def cosine(progress: float) -> float:  # half a period, from 1 to floor
            return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * progress))

        if self.per == "epoch":
            epoch = step // steps_per_epoch
            warmup = self.warmup(epochs)
            ramp = line(epoch / warmup) if epoch < warmup else 1.0
            return peak * ramp * cosine(epoch / epochs)
        warm = self.warmup_steps(epochs, steps_per_epoch)
        if step < warm:
            return peak * line(step / warm)
        return peak * cosine((step - warm) / (total - warm))

    def warmup(self, epochs: int) -> float:
        return min(5.0, 0.1 * epochs) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def summary(self) -> str:
        return f"half a cosine, every {self.per}"

    def problems(self) -> list[str]:
        found = out_of_bounds(self, "optim.schedule")
        if self.per == "epoch" and self.warmup_start == 0 and self.warmup_epochs != 0:
            found.append(
                "optim.schedule.per 'epoch' with optim.schedule.warmup_start 0 trains the whole "
                "first epoch at learning rate 0; the authors start at 0.1."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class CustomScheduleConfig(CustomConfig, ScheduleConfig):
    """A class of the user's own with `lr(step, total_steps)`, the share of the peak; or a function
    of these two."""

    KIND = SCHEDULE

    settings: Settings = field(default_factory=Settings)
    """What the class is called with: --optim.schedule.settings.NAME VALUE."""

    @property
    def summary(self) -> str:
        return self.custom.what

    def lr(self, step: float, *, peak: float, epochs: int, steps_per_epoch: int) -> float:
        return peak * float(_built(self).lr(int(step), epochs * steps_per_epoch))


@cache
def _built(config: CustomScheduleConfig) -> Any:
    cls, settings, label = load(config.custom)
    settings |= config.settings
    if not inspect.isfunction(cls):
        return build(SCHEDULE, cls, {}, settings, label)
    try:
        inspect.signature(cls).bind(0, 1, **settings)
    except TypeError as error:
        raise ConfigError(
            f"The schedule {label} cannot be called: {error}.", SCHEDULE.contract
        ) from error
    return SimpleNamespace(lr=partial(cls, **settings))


SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "cosine": CosineConfig,
    "custom": CustomScheduleConfig,
}
