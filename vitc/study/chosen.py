"""The test images, read once by each contender's chosen run: the best draw on validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitc.files import read_json, write_json
from vitc.study.design import Plan
from vitc.study.standing import standing
from vitc.study.study_folder import StudyFolder

CHOSEN_FILE = "chosen.json"


def read_chosen(folder: Path) -> dict[str, dict[str, Any]]:
    """What `measure_chosen` wrote, by group key; empty before it was ever called."""
    file = folder / CHOSEN_FILE
    return read_json(file) if file.exists() else {}


def measure_chosen(
    folder: StudyFolder,
    plan: Plan,
    show: Callable[[str], None],
    allow_changed_data: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluate every group's best run on the test split, unless that very run already was.

    Returns, by group key: `trial`, `draw`, and `evaluate_run`'s top1, interval and n. A group
    without a finished run is left out. Raises ConfigError where the data has no test split.
    """
    from vitc.training.evaluate import evaluate_run

    runs = standing(folder, plan).runs
    found = read_chosen(folder.path)
    for group in plan.groups:
        done = [
            (run.top1, trial)
            for trial in plan.trials()
            if (trial.contender, trial.optim) == (group.contender, group.optim)
            and (run := runs.get(trial.id)) is not None
            and run.top1 is not None
        ]
        if not done:
            continue
        _, best = max(done, key=lambda pair: pair[0] or 0.0)
        if found.get(group.key, {}).get("trial") == best.id:
            continue
        result = evaluate_run(
            folder.trial(best), split="test", allow_changed_data=allow_changed_data
        )
        keep = ("top1", "top1_low", "top1_high", "top5", "loss", "n", "weights", "split")
        found[group.key] = {"trial": best.id, "draw": best.draw, **{k: result[k] for k in keep}}
        show(
            f"{group.key}: draw {best.draw} was best on validation; test error "
            f"{100 - result['top1']:.2f} % "
            f"({100 - result['top1_high']:.1f}-{100 - result['top1_low']:.1f})"
        )
        write_json(folder.path / CHOSEN_FILE, found, indent=1)
    return found
