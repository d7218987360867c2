"""How easily does a model train: plans of runs, engines to run them, statistics, one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitc.runs.folder import Run
    from vitc.runs.results import load_runs
    from vitc.stats.compare import Comparison, compare
    from vitc.stats.curves import edf, interval
    from vitc.stats.profiles import sensitivity, time_to_target
    from vitc.stats.proportions import Interval
    from vitc.study.reporting import report
    from vitc.study.screening_page import card
    from vitc.study.studies import StudyResult, run

__all__ = [
    "Comparison",
    "Interval",
    "Run",
    "StudyResult",
    "card",
    "compare",
    "edf",
    "interval",
    "load_runs",
    "report",
    "run",
    "sensitivity",
    "time_to_target",
]

_MODULES = {
    "Comparison": "stats.compare",
    "Interval": "stats.proportions",
    "Run": "runs.folder",
    "card": "study.screening_page",
    "compare": "stats.compare",
    "edf": "stats.curves",
    "interval": "stats.curves",
    "load_runs": "runs.results",
    "StudyResult": "study.studies",
    "sensitivity": "stats.profiles",
    "time_to_target": "stats.profiles",
    "report": "study.reporting",
    "run": "study.studies",
}


def __getattr__(name: str) -> Any:
    """Import scipy and torch only when something that needs them is asked for (PEP 562)."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"vitc.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
