"""How a model is optimised, as values: no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then one half period of a cosine: a closed form of the step."""

    warmup_epochs: float | None = None
    """Length of the warm-up; None: the smaller of 5 epochs and 10 % of the run."""
    warmup_start: float = 0.0
    """Fraction of lr at which the warm-up starts (the authors' configs: 0.1)."""
    floor: float = 0.0
    """Fraction of lr at which the cosine ends (the authors' configs: 0.005)."""
    per: Literal["step", "epoch"] = "step"
    """lr changes every step, or once an epoch as in the authors' code."""

    def problems(self) -> list[str]:
        found = []
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            found.append(f"optim.schedule.warmup_epochs {self.warmup_epochs} must not be negative.")
        for name in ("warmup_start", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"optim.schedule.{name} {getattr(self, name)} must be in [0, 1].")
        if self.per == "epoch" and self.warmup_start == 0 and self.warmup_epochs != 0:
            found.append(
                "optim.schedule.per 'epoch' with optim.schedule.warmup_start 0 trains the whole "
                "first epoch at learning rate 0; the authors start at 0.1."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of weights and BatchNorm statistics."""

    kind: Literal["fraction", "pycls", "none"] = "fraction"
    """fraction: horizon is a share of the run; pycls: the authors' formula; none: no average."""
    horizon: float = 0.08
    """With kind fraction: 1 / (1 - decay), as a share of the run's steps."""
    alpha: float = 1e-5
    """With kind pycls: EMA_ALPHA; an update mixes in alpha * batch / epochs * period."""
    period: int = 32
    """With kind pycls: steps between updates."""

    def problems(self) -> list[str]:
        found = []
        if not 0 < self.horizon <= 1:
            found.append(f"optim.ema.horizon {self.horizon} must be in (0, 1].")
        if self.kind != "fraction" and self.horizon != 0.08:
            found.append(f"optim.ema.horizon has no effect with optim.ema.kind {self.kind!r}.")
        if self.kind != "pycls" and (self.alpha != 1e-5 or self.period != 32):
            found.append(
                f"optim.ema.alpha and period have no effect with optim.ema.kind {self.kind!r}."
            )
        if self.alpha <= 0 or self.period < 1:
            found.append("optim.ema.alpha must be above 0 and period at least 1.")
        return found


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What every optimizer has; a concrete one is a subclass with its own fields."""

    lr: float
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float
    """On weights, pos_embed and cls_token; never on norm gains or any bias (paper section 5.4)."""
    lr_per_batch: int | None = None
    """None: lr is absolute. 2048: lr is quoted for batch 2048, as in the paper, and scales
    linearly with train.batch."""
    clip_norm: float | None = None
    """Clip the global gradient norm to this; None: never (the paper does not clip)."""
    layer_decay: float = 1.0
    """Each layer's lr over the next one's, from the head down to the stem (BEiT, arXiv 2106.08254);
    1: the same lr for all, as the paper."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Weight average over the run."""

    def problems(self) -> list[str]:
        found = [*self.schedule.problems(), *self.ema.problems()]
        if not self.lr > 0:
            found.append(f"optim.lr {self.lr} must be above 0.")
        if self.weight_decay < 0:
            found.append(f"optim.weight_decay {self.weight_decay} must not be negative.")
        if self.lr_per_batch is not None and self.lr_per_batch < 1:
            found.append(f"optim.lr_per_batch {self.lr_per_batch} must be at least 1.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            found.append(f"optim.clip_norm {self.clip_norm} must be above 0; None: no clipping.")
        if not 0 < self.layer_decay <= 1:
            found.append(f"optim.layer_decay {self.layer_decay} must be in (0, 1].")
        return found

    def peak_lr(self, batch: int) -> float:
        """The learning rate after warm-up for `batch` images a step."""
        return self.lr if self.lr_per_batch is None else self.lr * batch / self.lr_per_batch


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimConfig):
    """AdamW (arXiv 1711.05101); defaults are the paper's for 1-18GF (Table 2) per batch 2048."""

    lr: float = 1e-3
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 0.24
    """Decoupled; a step shrinks decayed tensors by lr * weight_decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not all(0 <= b < 1 for b in self.betas):
            found.append(f"optim.betas {self.betas} must be in [0, 1).")
        if not self.eps > 0:
            found.append(f"optim.eps {self.eps} must be above 0.")
        return found


@dataclass(frozen=True, kw_only=True)
class SGDConfig(OptimConfig):
    """SGD with Nesterov momentum; weight decay is added to the gradient, as in pycls."""

    lr: float = 1.9
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 1.3e-5
    """Added to the gradient of decayed tensors."""
    momentum: float = 0.9
    """Momentum (paper section 5.4)."""
    nesterov: bool = True
    """Nesterov's form; pycls's default, not stated in the paper."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not 0 <= self.momentum < 1:
            found.append(f"optim.momentum {self.momentum} must be in [0, 1).")
        if self.nesterov and self.momentum == 0:
            found.append("optim.nesterov has no effect with optim.momentum 0.")
        return found


OPTIMIZERS: dict[str, type[OptimConfig]] = {"adamw": AdamWConfig, "sgd": SGDConfig}
