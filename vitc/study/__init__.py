"""How easily does a model train: plans of runs, engines to run them, statistics, one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitc.study.report import report
    from vitc.study.runs import Run, load_runs
    from vitc.study.statistics import Interval, edf, interval

__all__ = ["Interval", "Run", "edf", "interval", "load_runs", "report"]

_HOMES = {
    "Interval": "statistics",
    "Run": "runs",
    "edf": "statistics",
    "interval": "statistics",
    "load_runs": "runs",
    "report": "report",
}


def __getattr__(name: str) -> Any:
    """Import scipy and torch only when something that needs them is asked for (PEP 562)."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"vitc.study.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
