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
from math import cos, pi, sqrt
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from vitc.errors import ConfigError
from vitc.plugins.consent import CustomConfig
from vitc.plugins.load import build, load
from vitc.plugins.names import SCHEDULE
from vitc.settings import Settings, out_of_bounds, setting


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What every schedule has; a concrete one is a subclass with its own fields."""

    decays: ClassVar[bool] = True
    """Whether the rate falls after the warm-up; of a custom one it is not known, so: yes."""

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

    def misfits(self, epochs: int) -> list[str]:
        """What is wrong with it for a run of so many epochs, a sentence each."""
        warmup = self.warmup(epochs)
        if warmup < epochs:
            return []
        return [f"optim.schedule.warmup_epochs {warmup} leaves none of the {epochs} train.epochs."]


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(ScheduleConfig):
    """A linear warm-up to the peak, then `after`; a concrete one is a subclass."""

    warmup_epochs: float | None = setting(None, at_least=0)
    """Length of the warm-up; None: the smaller of 5 epochs and 10 % of the run."""
    warmup_start: float = setting(0.0, at_least=0, at_most=1)
    """Fraction of lr at which the warm-up starts (the authors' configs: 0.1)."""

    def lr(self, step: float, *, peak: float, epochs: int, steps_per_epoch: int) -> float:
        """Linear from `warmup_start * peak` at step 0 to exactly `peak` at the whole step W =
        `warmup_steps(...)`, then `peak * after(...)`, which starts at 1: the requested rate is
        reached. In schedules that decay during the warm-up it never is
        (huggingface/pytorch-image-models#1544).
        """
        total = epochs * steps_per_epoch
        assert 0 <= step <= total, f"step {step} is outside the run's 0..{total}"
        warm = self.warmup_steps(epochs, steps_per_epoch)
        if step < warm:
            return peak * self.ramp(step / warm)
        return peak * self.after(step / total, (step - warm) / (total - warm))

    def ramp(self, progress: float) -> float:
        """The share of the peak during the warm-up, `progress` from 0 to 1."""
        return self.warmup_start + (1 - self.warmup_start) * progress

    def after(self, run: float, rest: float) -> float:
        """The share of the peak at `run`, a share of the whole run, and `rest`, one of what
        follows the warm-up."""
        raise NotImplementedError

    def warmup(self, epochs: int) -> float:
        return min(5.0, 0.1 * epochs) if self.warmup_epochs is None else self.warmup_epochs

    def problems(self) -> list[str]:
        return out_of_bounds(self, "optim.schedule")


@dataclass(frozen=True, kw_only=True)
class CosineConfig(WarmupConfig):
    """Linear warm-up, then one half period of a cosine."""

    floor: float = setting(0.0, at_least=0, at_most=1)
    """Fraction of lr at which the cosine ends (the authors' configs: 0.005)."""
    per: Literal["step", "epoch"] = "step"
    """lr changes every step, or once an epoch as in the authors' code."""

    def lr(self, step: float, *, peak: float, epochs: int, steps_per_epoch: int) -> float:
        """At the end of the run the floor.

        `per="step"`: after the warm-up half a cosine over the *remaining* steps.

        `per="epoch"`: the authors' code (facebookresearch/pycls, core/optimizer.py), constant
        within an epoch e: half a cosine over the *whole* run, times `warmup_start +
        (1 - warmup_start) * e / warmup_epochs` while e < warmup_epochs. Its peak is a little below
        `peak` (0.04 % at the paper's 5 of 400 epochs).
        """
        if self.per == "step":
            return super().lr(step, peak=peak, epochs=epochs, steps_per_epoch=steps_per_epoch)
        epoch, warmup = step // steps_per_epoch, self.warmup(epochs)
        ramp = self.ramp(epoch / warmup) if epoch < warmup else 1.0
        return peak * ramp * self.after(epoch / epochs, epoch / epochs)

    def after(self, run: float, rest: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * rest))

    @property
    def summary(self) -> str:
        return f"half a cosine, every {self.per}"

    def problems(self) -> list[str]:
        found = super().problems()
        if self.per == "epoch" and self.warmup_start == 0 and self.warmup_epochs != 0:
            found.append(
                "optim.schedule.per 'epoch' with optim.schedule.warmup_start 0 trains the whole "
                "first epoch at learning rate 0; the authors start at 0.1."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class LinearConfig(WarmupConfig):
    """Linear warm-up, then a line down."""

    floor: float = setting(0.0, at_least=0, at_most=1)
    """Fraction of lr at which the line ends."""

    def after(self, run: float, rest: float) -> float:
        return 1 - (1 - self.floor) * rest

    @property
    def summary(self) -> str:
        return "a line, every step"


@dataclass(frozen=True, kw_only=True)
class ConstantConfig(WarmupConfig):
    """Linear warm-up, then the peak to the end."""

    decays = False

    def after(self, run: float, rest: float) -> float:
        return 1.0

    @property
    def summary(self) -> str:
        return "constant"


@dataclass(frozen=True, kw_only=True)
class StepConfig(WarmupConfig):
    """Linear warm-up, then steps down at fixed shares of the run."""

    drops: tuple[float, ...] = setting((1 / 3, 2 / 3, 8 / 9), above=0, below=1)
    """Shares of the run at which lr drops; the default: after 30, 60 and 80 of 90 epochs
    (arXiv 1706.02677)."""
    factor: float = setting(0.1, above=0, below=1)
    """What lr is multiplied by at each drop."""

    def after(self, run: float, rest: float) -> float:
        return float(self.factor ** sum(run >= drop for drop in self.drops))

    @property
    def summary(self) -> str:
        return f"times {self.factor:g} at {' and '.join(f'{d:.3g}' for d in self.drops)} of the run"

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.drops or list(self.drops) != sorted(set(self.drops)):
            found.append(
                f"optim.schedule.drops {self.drops} must be rising shares of the run; without "
                "any, use --optim.schedule constant."
            )
        return found

    def misfits(self, epochs: int) -> list[str]:
        found, warmup = super().misfits(epochs), self.warmup(epochs)
        if not found and self.drops and self.drops[0] * epochs < warmup:
            found.append(
                f"optim.schedule.drops starts at {self.drops[0]:.3g} of {epochs} train.epochs, "
                f"within the {warmup:g} epochs of warm-up."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class WsdConfig(WarmupConfig):
    """Warm-up, stable, decay: the peak until the last part of the run, which falls as 1 - sqrt
    (arXiv 2405.18392). A run can be made longer from its stable part."""

    decay: float = setting(0.2, above=0, at_most=1)
    """Share of the run, at its end, over which lr falls."""
    floor: float = setting(0.0, at_least=0, at_most=1)
    """Fraction of lr at which the decay ends."""

    def after(self, run: float, rest: float) -> float:
        decayed = max(0.0, 1 - (1 - run) / self.decay)
        return 1 - (1 - self.floor) * sqrt(decayed)

    @property
    def summary(self) -> str:
        return f"constant until the last {100 * self.decay:g} % of the run, then 1 - sqrt"

    def misfits(self, epochs: int) -> list[str]:
        found, warmup = super().misfits(epochs), self.warmup(epochs)
        if not found and warmup + self.decay * epochs > epochs + 1e-9:
            found.append(
                f"optim.schedule.decay {self.decay:g} of {epochs} train.epochs begins within the "
                f"{warmup:g} epochs of warm-up; lower one of them."
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
    "linear": LinearConfig,
    "constant": ConstantConfig,
    "step": StepConfig,
    "wsd": WsdConfig,
    "custom": CustomScheduleConfig,
}


def without_decay(schedule: ScheduleConfig) -> ConstantConfig:
    """A constant schedule with the warm-up of another."""
    if not isinstance(schedule, WarmupConfig):
        return ConstantConfig()
    return ConstantConfig(warmup_epochs=schedule.warmup_epochs, warmup_start=schedule.warmup_start)
