"""How a model is optimised: the optimizer, the schedule and the weight average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitc.optim.config import (
    OPTIMIZERS,
    AdamWConfig,
    EmaConfig,
    OptimConfig,
    ScheduleConfig,
    SGDConfig,
)
from vitc.optim.schedule import check_ema, horizon_steps, lr_at

if TYPE_CHECKING:
    from vitc.optim.ema import Ema, build_ema
    from vitc.optim.optimizers import build_optimizer, decay_groups, set_lr

__all__ = [
    "OPTIMIZERS",
    "AdamWConfig",
    "Ema",
    "EmaConfig",
    "OptimConfig",
    "SGDConfig",
    "ScheduleConfig",
    "build_ema",
    "build_optimizer",
    "check_ema",
    "decay_groups",
    "horizon_steps",
    "lr_at",
    "set_lr",
]

_HOMES = {
    "Ema": "ema",
    "build_ema": "ema",
    "build_optimizer": "optimizers",
    "decay_groups": "optimizers",
    "set_lr": "optimizers",
}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for (PEP 562)."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"vitc.optim.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
