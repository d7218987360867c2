"""Which optimizers are there? Each is one class, its settings and `build`, and one entry.

Free of torch until one is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from vitc.errors import ConfigError
from vitc.optim.config import OptimConfig
from vitc.plugins.consent import CustomConfig
from vitc.plugins.load import build, load
from vitc.plugins.names import OPTIMIZER
from vitc.settings import Settings, setting

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimConfig):
    """AdamW (arXiv 1711.05101); defaults are the paper's for 1-18GF (Table 2) per batch 2048."""

    lr: float = 1e-3
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 0.24
    """Decoupled; a step shrinks decayed tensors by lr * weight_decay."""
    betas: tuple[float, float] = setting((0.9, 0.999), at_least=0, below=1)
    """Decay of the first and second moment."""
    eps: float = setting(1e-8, above=0)
    """Added to the root of the second moment."""

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)


@dataclass(frozen=True, kw_only=True)
class SGDConfig(OptimConfig):
    """SGD with Nesterov momentum; weight decay is added to the gradient, as in pycls."""

    lr_scaling = "linear"

    lr: float = 1.9
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 1.3e-5
    """Added to the gradient of decayed tensors."""
    momentum: float = setting(0.9, at_least=0, below=1)
    """Momentum (paper section 5.4)."""
    nesterov: bool = True
    """Nesterov's form; pycls's default, not stated in the paper."""

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import SGD

        momentum, nesterov = self.momentum, self.nesterov
        return SGD(groups, lr=self.lr, momentum=momentum, nesterov=nesterov, fused=fused)

    @property
    def moments(self) -> int:
        return 1 if self.momentum else 0

    def problems(self) -> list[str]:
        found = super().problems()
        if self.nesterov and self.momentum == 0:
            found.append("optim.nesterov has no effect with optim.momentum 0.")
        return found


@dataclass(frozen=True, kw_only=True)
class CustomOptimizerConfig(CustomConfig, OptimConfig):
    """A class of the user's own: a torch.optim.Optimizer, by file or module."""

    KIND = OPTIMIZER

    lr: float = 1e-3
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 0.0
    """Set in the group of decayed parameters; what it does is up to the class."""
    settings: Settings = field(default_factory=Settings)
    """What the class is called with besides parameters and lr: --optim.settings.NAME VALUE."""

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import Optimizer

        cls, settings, label = load(self.custom)
        given = {"params": groups, "lr": self.lr, "weight_decay": self.weight_decay}
        built = build(OPTIMIZER, cls, given, settings | self.settings, label)
        if not isinstance(built, Optimizer):
            raise ConfigError(f"{label} is not a torch.optim.Optimizer.", OPTIMIZER.contract)
        return built


OPTIMIZERS: dict[str, type[OptimConfig]] = {
    "adamw": AdamWConfig,
    "sgd": SGDConfig,
    "custom": CustomOptimizerConfig,
}


def switched(old: OptimConfig, new: OptimConfig) -> OptimConfig:
    """Another optimizer in place of `old`: clipping, schedule and average stay.

    lr and weight decay mean something else for another one, so they are those of `new`, which are
    quoted per batch 2048.
    """
    shared = {f.name for f in fields(OptimConfig)} - {"lr", "weight_decay", "lr_per_batch"}
    return replace(new, lr_per_batch=2048, **{name: getattr(old, name) for name in shared})
