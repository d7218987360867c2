"""The run: configuration in, run folder out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitc.train.evaluate import evaluate_run
    from vitc.train.loop import RunResult, train

__all__ = ["RunResult", "evaluate_run", "train"]

_HOMES = {"RunResult": "loop", "train": "loop", "evaluate_run": "evaluate"}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for (PEP 562)."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"vitc.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
