"""Which optimizers are there? Each is one class, its settings and `build`, and one entry.

Free of torch until one is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitc.errors import ConfigError
from vitc.machine import install_line
from vitc.optim.config import EmaConfig, Like, OptimConfig
from vitc.optim.schedule import ConstantConfig, ScheduleConfig, without_decay
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
class NAdamWConfig(OptimConfig):
    """AdamW with Nesterov's momentum (Dozat 2016), by torch.optim.NAdam with decoupled decay."""

    like = Like("adamw")

    lr: float = 1e-3
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 0.24
    """Decoupled; a step shrinks decayed tensors by lr * weight_decay."""
    betas: tuple[float, float] = setting((0.9, 0.999), at_least=0, below=1)
    """Decay of the first and second moment."""
    eps: float = setting(1e-8, above=0)
    """Added to the root of the second moment."""

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import NAdam

        return NAdam(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, decoupled_weight_decay=True
        )


@dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimConfig):
    """Muon (Jordan 2024) for hidden weight matrices, AdamW for the rest.

    Its update is the momentum with all singular values near 1, scaled to the size of AdamW's
    (arXiv 2502.16982), so both have one lr and one weight decay, those that suit AdamW. As in
    Jordan's code a convolution's kernel is the matrix (output channels, all the rest), and AdamW
    keeps the layer that sees the image, the classifier, embeddings, norms and biases; as in timm
    also depthwise kernels. A ViT's qkv weight is one matrix.
    """

    like = Like("adamw")

    lr: float = 1e-3
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 0.24
    """Decoupled; a step shrinks decayed tensors by lr * weight_decay."""
    momentum: float = setting(0.95, at_least=0, below=1)
    """Muon's momentum, in Nesterov's form."""
    betas: tuple[float, float] = setting((0.9, 0.999), at_least=0, below=1)
    """AdamW's decay of the first and second moment."""
    eps: float = setting(1e-8, above=0)
    """Added to the root of AdamW's second moment."""

    @property
    def moments(self) -> int:
        return 1  # of matrices, nearly all of a model; AdamW's part has two

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)

    @property
    def hidden_momentum(self) -> float:
        return self.momentum


@dataclass(frozen=True, kw_only=True)
class LionConfig(OptimConfig):
    """Lion (arXiv 2302.06675): the sign of a momentum; by lion-pytorch.

    The authors use a learning rate 3 to 10 times below AdamW's, and a weight decay as many times
    above it.
    """

    like = Like("adamw", 0.2, 5)

    lr: float = 2e-4
    """Peak learning rate: for lr_per_batch images a step, or absolute where that is None."""
    weight_decay: float = 1.2
    """Decoupled; a step shrinks decayed tensors by lr * weight_decay."""
    betas: tuple[float, float] = setting((0.9, 0.99), at_least=0, below=1)
    """Share of the momentum in the update, and the momentum's own decay."""

    @property
    def moments(self) -> int:
        return 1

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        library = _library("lion_pytorch", "optim lion")
        built: Optimizer = library.Lion(groups, lr=self.lr, betas=self.betas)
        return built


@dataclass(frozen=True, kw_only=True)
class AdamWScheduleFreeConfig(OptimConfig):
    """Schedule-free AdamW (arXiv 2405.15682), by the authors' package schedulefree.

    Gradients are taken between the fast weights and their average; the average is what is
    evaluated and deployed, in place of `ema`, with BatchNorm statistics of its own. The rate
    stays constant after the warm-up. The authors find rates of 1 to 10 times AdamW's best.
    """

    like = Like("adamw", 2, 0.5)
    schedule_free = True

    lr: float = 2e-3
    """Learning rate after the warm-up: for lr_per_batch images a step, or absolute where that is
    None."""
    weight_decay: float = 0.12
    """Decoupled; a step shrinks decayed tensors by lr * weight_decay."""
    schedule: ScheduleConfig = field(default_factory=ConstantConfig)
    """Learning rate over the run."""
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(kind="none"))
    """Weight average over the run."""
    betas: tuple[float, float] = setting((0.9, 0.999), above=0, below=1)
    """Share of the average in the weights whose gradient is taken; decay of the second moment."""
    eps: float = setting(1e-8, above=0)
    """Added to the root of the second moment."""

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        library = _library("schedulefree", "optim adamw_schedulefree")
        built: Optimizer = library.AdamWScheduleFree(
            groups, lr=self.lr, betas=self.betas, eps=self.eps
        )
        built.train()  # type: ignore[attr-defined]
        return built


@dataclass(frozen=True, kw_only=True)
class SGDScheduleFreeConfig(OptimConfig):
    """Schedule-free SGD (arXiv 2405.15682), by the authors' package schedulefree.

    See `AdamWScheduleFreeConfig`. The authors find rates of 10 to 50 times those of SGD with
    momentum.
    """

    lr_scaling = "linear"
    like = Like("sgd", 10, 1)
    schedule_free = True

    lr: float = 19.0
    """Learning rate after the warm-up: for lr_per_batch images a step, or absolute where that is
    None."""
    weight_decay: float = 1.3e-5
    """Added to the gradient of decayed tensors."""
    schedule: ScheduleConfig = field(default_factory=ConstantConfig)
    """Learning rate over the run."""
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(kind="none"))
    """Weight average over the run."""
    momentum: float = setting(0.9, above=0, below=1)
    """Share of the average in the weights whose gradient is taken."""

    @property
    def moments(self) -> int:
        return 1

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        library = _library("schedulefree", "optim sgd_schedulefree")
        built: Optimizer = library.SGDScheduleFree(groups, lr=self.lr, momentum=self.momentum)
        built.train()  # type: ignore[attr-defined]
        return built


def _library(name: str, what: str) -> Any:
    """A package of the extra `optim`. Raises ConfigError: it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the package {name.replace('_', '-')}, which is not installed here.",
            f"Install it with: {install_line('optim')}",
        ) from error


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
    "nadamw": NAdamWConfig,
    "muon": MuonConfig,
    "lion": LionConfig,
    "adamw_schedulefree": AdamWScheduleFreeConfig,
    "sgd_schedulefree": SGDScheduleFreeConfig,
    "custom": CustomOptimizerConfig,
}

SCHEDULE_FREE = (
    "Its learning rate stays constant after the warm-up; it averages the weights itself."
)


def switched(old: OptimConfig, new: OptimConfig) -> OptimConfig:
    """Another optimizer in place of `old`: clipping, schedule and average stay, as far as it has
    them.

    lr and weight decay mean something else for another one. Where `old` is what `new` is like,
    they are `old`'s times its factors, else those of `new`, which are quoted per batch 2048.
    """
    names = {f.name for f in fields(OptimConfig)} - {"lr", "weight_decay", "lr_per_batch"}
    values: dict[str, Any] = {"lr_per_batch": 2048, **{n: getattr(old, n) for n in names}}
    if new.schedule_free:
        values |= {"schedule": without_decay(old.schedule), "ema": new.ema}
    if new.like is not None and type(old) is OPTIMIZERS[new.like.optim]:
        values |= {
            "lr": float(f"{old.lr * new.like.lr:.4g}"),
            "weight_decay": float(f"{old.weight_decay * new.like.weight_decay:.4g}"),
            "lr_per_batch": old.lr_per_batch,
        }
    return replace(new, **values)
