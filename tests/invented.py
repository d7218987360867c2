"""Studies on disk whose trials were never trained: their results are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from vitc.config import to_dict
from vitc.study.design import Plan, Trial
from vitc.study.study_folder import StudyFolder

HERE: dict[str, Any] = {
    "versions": {"torch": "2.13.0", "vitc": "0.1.0"},
    "hardware": {"cpu": "some", "cores": 2},
    "engine": "local",
}
Error = Callable[[Trial], float | None]  # None: the trial diverged


def invent(
    folder: StudyFolder, plan: Plan, error: Error, curves: bool = False, command: str = "vitc study"
) -> None:
    """A study whose trials have these errors; `curves`: with two evaluations each."""
    folder.start(plan, HERE, command)
    for trial in plan.trials():
        value = error(trial)
        summary = done(100 - value) if value is not None else {"status": "diverged", "error": NAN}
        write_trial(folder, trial, {**MEASURED, **summary})
        if curves and value is not None:
            lines = [
                {"kind": "eval", "step": 20 * e, "epoch": e, "top1": 90 - value + 5 * e}
                for e in (1, 2)
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder.trial(trial) / "metrics.jsonl").write_text(text)


NAN = "Diverged at <b>step 3</b>"
MEASURED = {"step": 40, "train_seconds": 4.0, "peak_memory_bytes": 1 << 28}


def done(top1: float) -> dict[str, Any]:
    """The summary of a trial that has finished."""
    return {**MEASURED, "status": "done", **dict.fromkeys(("top1", "top1_raw", "top1_best"), top1)}


def write_trial(folder: StudyFolder, trial: Trial, summary: dict[str, Any]) -> None:
    """A trial's folder with this summary; empty: it is still running."""
    run = folder.trial(trial)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(to_dict(trial.config)))
    if summary:
        (run / "summary.json").write_text(json.dumps(summary))
