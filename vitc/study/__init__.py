"""How easily does a model train: plans of runs, engines to run them, statistics, one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitc.stats.curves import Interval, edf, interval
    from vitc.study.report import report
    from vitc.study.runs import Run, load_runs

__all__ = ["Interval", "Run", "edf", "interval", "load_runs", "report"]

_MODULES = {
    "Interval": "stats.curves",
    "Run": "study.runs",
    "edf": "stats.curves",
    "interval": "stats.curves",
    "load_runs": "study.runs",
    "report": "study.report",
}


def __getattr__(name: str) -> Any:
    """Import scipy and torch only when something that needs them is asked for (PEP 562)."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"vitc.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
