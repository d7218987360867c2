"""What every optimizer has, and the weight average, as values: no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from vitc.errors import ConfigError
from vitc.optim.schedule import CosineConfig, ScheduleConfig
from vitc.settings import out_of_bounds, setting

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Like(NamedTuple):
    """The optimizer whose tuned lr and weight decay also suit another, times these factors."""

    optim: str
    lr: float = 1
    weight_decay: float = 1


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of weights and BatchNorm statistics."""

    kind: Literal["fraction", "pycls", "none"] = "fraction"
    """fraction: horizon is a share of the run; pycls: the authors' formula; none: no average but
    that of a schedule-free optimizer."""
    horizon: float = setting(0.08, above=0, at_most=1, needs=("kind", "fraction"))
    """With kind fraction: 1 / (1 - decay), as a share of the run's steps."""
    alpha: float = setting(1e-5, above=0, needs=("kind", "pycls"))
    """With kind pycls: EMA_ALPHA; an update mixes in alpha * batch / epochs * period."""
    period: int = setting(32, at_least=1, needs=("kind", "pycls"))
    """With kind pycls: steps between updates."""

    def problems(self) -> list[str]:
        return out_of_bounds(self, "optim.ema")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What every optimizer has; a concrete one is a subclass with its own fields and `build`."""

    lr_scaling: ClassVar[Literal["linear", "square root"]] = "square root"
    """How lr follows the batch where it is chosen from the data."""
    like: ClassVar[Like | None] = None
    """What a recipe's lr and weight decay, and a study's ranges, are derived from."""
    schedule_free: ClassVar[bool] = False
    """It averages the weights itself, in place of `ema`, and wants a rate that does not fall."""
    lr: float
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float
    """On weights, pos_embed and cls_token; never on norm gains or any bias (paper section 5.4)."""
    lr_per_batch: int | None = setting(None, at_least=1)
    """None: lr is absolute. 2048: lr is quoted for batch 2048, as in the paper, and scales
    linearly with train.batch."""
    clip_norm: float | None = setting(None, above=0)
    """Clip the global gradient norm to this; None: never (the paper does not clip)."""
    layer_decay: float = setting(1.0, above=0, at_most=1)
    """Each layer's lr over the next one's, from the head down to the stem (BEiT, arXiv 2106.08254);
    1: the same lr for all, as the paper."""
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    """Learning rate over the run."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Weight average over the run."""

    @property
    def moments(self) -> int:
        """Tensors of a parameter's size that the optimizer keeps; of a custom one a guess."""
        return 2

    def problems(self) -> list[str]:
        parts = [*self.schedule.problems(), *self.ema.problems()]
        found = [*parts, *out_of_bounds(self, "optim")]
        if not self.lr > 0:
            found.append(f"optim.lr {self.lr} must be above 0.")
        if self.weight_decay < 0:
            found.append(f"optim.weight_decay {self.weight_decay} must not be negative.")
        if self.schedule_free and self.schedule.decays:
            found.append(
                f"optim.schedule ({self.schedule.summary}) lowers the learning rate, but a "
                "schedule-free optimizer needs a constant one: use --optim.schedule constant."
            )
        if self.schedule_free and self.ema.kind != "none":
            found.append(
                f"optim.ema.kind {self.ema.kind!r} has no effect with a schedule-free optimizer, "
                "which averages the weights itself: use --optim.ema.kind none."
            )
        return found

    @property
    def average(self) -> str:
        """Which average of the weights a run keeps, to be deployed; empty: none."""
        if self.schedule_free:
            return "schedule-free"
        return "" if self.ema.kind == "none" else "EMA"

    @property
    def hidden_momentum(self) -> float | None:
        """Muon's, which then trains hidden weights; None: `build`'s optimizer trains all."""
        return None

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        """The optimizer over groups of parameters, each with its weight_decay.

        `fused`: torch's fused kernels can be used on them. A step of one that is not `fused` in its
        groups is checked on the host, since `found_inf` is honoured by fused kernels alone.
        """
        raise NotImplementedError

    def peak_lr(self, batch: int) -> float:
        """The learning rate after warm-up for `batch` images a step."""
        return self.lr if self.lr_per_batch is None else self.lr * batch / self.lr_per_batch


def ema_alpha(
    position: float,
    ema: EmaConfig,
    schedule: ScheduleConfig,
    *,
    epochs: int,
    steps_per_epoch: int,
    batch: int,
    before: float | None = None,
) -> float:
    """Weight of the model at `position`, in planned steps, in the average; 0: left out, 1: a copy.

    `before`: the position before its update, where that covers more or less than one planned step,
    as in a run with a time to end in. The average is then the planned one, stretched or shortened
    as the learning rate is: a model weighs as much as the planned steps that it stands for.

    `fraction`: max(1/h, 1/step) with h = `horizon_steps(...)`: the plain mean of all models so
    far until step h, then an exponential average with decay 1 - 1/h. At the end of a run of T
    steps the model of i steps ago weighs (1 - 1/h)^i / h: with the default h = 0.08 T half the
    weight lies on the last 5.5 % of the run, 95 % on the last 24 %, 0.001 % on the first h steps.

    `pycls`: facebookresearch/pycls, core/net.py `update_model_ema`: at every `period`-th step of
    an epoch, its first included, min(1, alpha * batch / epochs * period); during the warm-up
    epochs a copy.
    """
    before = position - 1 if before is None else before
    assert 0 <= before < position
    if ema.kind == "none":
        return 0.0
    if ema.kind == "fraction":
        covered, horizon = position - before, ema.horizon * epochs * steps_per_epoch
        return min(1.0, max(covered / horizon, covered / position))
    due = [_pycls_updates(ema, place, steps_per_epoch) for place in (before, position)]
    updates = due[1] - due[0]
    if updates == 0:
        return 0.0
    if before // steps_per_epoch < schedule.warmup(epochs):
        return 1.0
    alpha = _pycls_alpha(ema, epochs, batch)
    return alpha if updates == 1 else 1 - (1 - alpha) ** updates


def horizon_steps(ema: EmaConfig, *, epochs: int, steps_per_epoch: int, batch: int) -> float:
    """How many steps the average reaches back, 1 / (1 - decay per step); 1: the last model alone.

    The authors' alpha of 1e-5 gives 1 / (1e-5 * 1.28 million images) = 7.8 % of any run on
    ImageNet, whatever its batch and epochs; the default fraction keeps that for every data set.
    """
    if ema.kind == "none":
        return 1.0
    if ema.kind == "fraction":
        return max(1.0, ema.horizon * epochs * steps_per_epoch)
    # The authors count steps within the epoch, so an epoch shorter than a period updates once.
    steps_per_update = steps_per_epoch / ceil(steps_per_epoch / ema.period)
    return steps_per_update / _pycls_alpha(ema, epochs, batch)


def _pycls_alpha(ema: EmaConfig, epochs: int, batch: int) -> float:
    return min(1.0, ema.alpha * batch / epochs * ema.period)


def _pycls_updates(ema: EmaConfig, position: float, steps_per_epoch: int) -> int:
    """Updates in the planned steps before `position`: one at each `period`-th of an epoch."""
    epochs, rest = divmod(position, steps_per_epoch)
    return int(epochs) * ceil(steps_per_epoch / ema.period) + ceil(rest / ema.period)


def check_ema(ema: EmaConfig, *, epochs: int, steps_per_epoch: int, batch: int) -> None:
    """Refuse an average that would end the run still made of its beginning.

    Only `pycls` can do that: its alpha is a constant tuned to ImageNet. Raises ConfigError where
    its horizon exceeds half the run, with the reason and the two ways out.
    """
    if ema.kind != "pycls":
        return
    horizon = horizon_steps(ema, epochs=epochs, steps_per_epoch=steps_per_epoch, batch=batch)
    total = epochs * steps_per_epoch
    if horizon <= total / 2:
        return
    images = batch * steps_per_epoch
    raise ConfigError(
        f"optim.ema.kind 'pycls' with optim.ema.alpha {ema.alpha:g} averages over "
        f"{horizon:,.0f} steps, but the run has {total:,}: at its end the average would still be "
        f"largely the end of the warm-up. The authors' formula is tuned to ImageNet, where alpha "
        f"* images of an epoch is 12.8; here it is {ema.alpha * images:.2g}, and below about 2 "
        f"the horizon exceeds half the run.",
        "Use --optim.ema.kind fraction, which averages over 8 % of any run, or "
        f"--optim.ema.alpha {12.8 / images:.1e}.",
    )
