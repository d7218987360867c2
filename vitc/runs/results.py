"""What was measured after a run had ended, kept in its folder. Free of torch.

    test.json                 every reading of the test split, in order
    report.html, .json, .csv  the run page, its numbers, and one line for each image
    against.*                 the same of the last comparison with another model

A run that is restarted loses them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitc.errors import CheckpointError
from vitc.files import read_json, write_json
from vitc.runs.folder import RESULTS, Run

TEST, REPORT, NUMBERS, IMAGES, AGAINST, *_ = RESULTS


def state_of(run: Path, weights: str) -> dict[str, Any] | None:
    """Which weights a finished run's results are of; None: it has not finished."""
    summary = Run(run).summary
    if summary.get("status") != "done":
        return None
    return {"step": summary.get("step"), "weights": weights}


def keep_test(run: Path, values: Mapping[str, Any]) -> None:
    """Add a reading of the test split to those that the run has. Raises OSError."""
    read = [*test_results(run), {"read": datetime.now(UTC).isoformat(timespec="seconds"), **values}]
    write_json(run / TEST, {"schema": 1, "results": read})


def test_results(run: Path) -> list[dict[str, Any]]:
    """The readings of the test split, the latest last; those of a damaged file are none."""
    found: Any = []
    if (run / TEST).is_file():
        with contextlib.suppress(CheckpointError):
            found = read_json(run / TEST, CheckpointError).get("results", [])
    return [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []


def last_test(run: Path, weights: str) -> dict[str, Any] | None:
    """The last reading of the test split by these weights of the run as it is now."""
    state = state_of(run, weights)
    if state is None:
        return None
    fitting = [r for r in test_results(run) if {k: r.get(k) for k in state} == state]
    return fitting[-1] if fitting else None


def fitted_on_val(run: Path, weights: str) -> dict[str, Any] | None:
    """What the run page fitted on the validation split of these weights, as it is stored."""
    state = state_of(run, weights)
    if state is None or not (run / NUMBERS).is_file():
        return None
    with contextlib.suppress(CheckpointError):
        values = read_json(run / NUMBERS, CheckpointError)
        fit = values.get("fit")
        if values.get("state") == state and isinstance(fit, dict) and fit.get("split") == "val":
            return fit
    return None
