"""What was measured after a run had ended, kept in its folder. Free of torch.

    test.json                 every reading of the test split, in order
    report.html, .json, .csv  the run page, its numbers, and one line for each image
    against.*                 the same of the last comparison with another model

A run that is restarted loses them. Also: which runs are below a folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitc.data.litter import holds_run, listed
from vitc.errors import CheckpointError, ConfigError
from vitc.files import read_json, write_json
from vitc.runs.folder import CONFIG, RESULTS, Run

TEST, REPORT, NUMBERS, IMAGES, AGAINST, *_ = RESULTS
SPENT = {  # what the time of a run is spent on, by the keys of `time_spent`
    "steps": "training steps",
    "loading": "waiting for images",
    "evaluation": "validation",
    "saving": "checkpoints",
    "preparing": "preparing",
    "choosing": "choosing settings",  # only where they were, before the run
}


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


def load_runs(folder: str | Path) -> list[Run]:
    """Every run folder in or below `folder`, by path. Raises ConfigError if there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder.", "Give a run, a study, or a folder of runs.")
    folders = sorted(p.parent for p in root.rglob(CONFIG) if p.is_file())
    found = [folder for folder in folders if holds_run(str(folder), listed(str(folder)))]
    if not found:
        raise ConfigError(f"{root} contains no run.", "A run folder holds a config.json.")
    return [Run(path) for path in found]
