"""A study's progress: its trials by state, and the lines that `vitc study status` prints."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vitc.errors import CheckpointError, ConfigError
from vitc.files import writer_of
from vitc.runs.folder import CONFIG, SUMMARY, Run
from vitc.study.design import TUNING, Plan, Trial
from vitc.study.kept import disk_line
from vitc.study.study_folder import StudyFolder


@dataclass(frozen=True)
class Standing:
    """How far a study is: trials by status, and what the finished ones cost."""

    total: int
    counts: Counter[str]
    seconds: float
    runs: dict[str, Run]

    @property
    def ended(self) -> int:
        return sum(self.counts[s] for s in ("done", "diverged", "failed"))


def trials_by_id(plan: Plan) -> dict[str, Trial]:
    """Every run of the plan once: two contenders of the same config share their runs."""
    return {t.id: t for t in plan.trials()}


def standing(folder: StudyFolder, plan: Plan) -> Standing:
    """Read every trial's folder; `waiting` are those that have none.

    Raises CheckpointError where one is damaged.
    """
    counts: Counter[str] = Counter()
    runs: dict[str, Run] = {}
    seconds = 0.0
    trials = trials_by_id(plan).values()
    for trial in trials:
        path = folder.trial(trial)
        if not (path / CONFIG).exists():
            counts["waiting"] += 1
            continue
        run = runs[trial.id] = _run_in(path)
        counts[_status(run)] += 1
        seconds += float(run.summary.get("train_seconds") or 0.0)
    return Standing(len(trials), counts, seconds, runs)


def _status(run: Run) -> str:
    """Of a trial; one whose process is gone without an end is interrupted."""
    gone = run.status == "running" and writer_of(run.path)[1] is False
    return "interrupted" if gone else run.status


def _run_in(path: Path) -> Run:
    numbers = ("top1", "top1_raw", "top1_best", "train_seconds", "step", "peak_memory_bytes")
    try:
        run = Run(path)
        for name in numbers:
            value = run.summary.get(name)
            if not isinstance(value, int | float | None):
                raise CheckpointError(f"{path / SUMMARY} is damaged: {name} is {value!r}.")
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(
            error.message, f"Remove {path}: the study's command then runs that trial again."
        ) from error
    return run


def status_lines(folder: StudyFolder) -> list[str]:
    """What `vitc study status DIR` prints, from any terminal, while the study runs or after.

    Raises ConfigError: no study; CheckpointError: a damaged trial.
    """
    tuning = StudyFolder(folder.path / TUNING)
    if not tuning.exists():
        return _status_lines(folder)
    if not folder.exists():
        return ["Nothing is measured yet: the tuning comes first.", *_status_lines(tuning)]
    return [*_status_lines(tuning), *_status_lines(folder)]


def _status_lines(folder: StudyFolder) -> list[str]:
    plan, record = folder.read()
    now = standing(folder, plan)
    order = ("done", "diverged", "failed", "running", "interrupted", "waiting")
    counts = ", ".join(f"{now.counts[s]} {s}" for s in order if now.counts[s])
    lines = [f"{plan.name} ({record['hash'][:12]}): {now.ended} of {now.total} trials; {counts}"]
    trials = trials_by_id(plan).values()
    for trial in trials:
        run = now.runs.get(trial.id)
        if run is None or run.ended:
            continue
        metrics = run.metrics("train")
        step = metrics[-1]["step"] if metrics else 0
        lines.append(f"  {_status(run)}: {trial.label}, step {step}, {folder.trial(trial)}")
    for trial in trials:
        run = now.runs.get(trial.id)
        if run is not None and run.status == "failed":
            why = str(run.summary.get("error", "")).strip().splitlines()
            lines.append(f"  failed: {trial.label}: {why[-1] if why else 'no reason recorded'}")
    lines.append(disk_line(folder, list(trials), record.get("keep", "all")))
    if now.ended == now.total:
        lines.append(f"Next: vitc report {shlex.quote(str(folder.path))}")
    else:
        started = [c for c in (record["command"], *(h["command"] for h in record["history"])) if c]
        lines.append(f"If it was stopped, resume it with: {started[-1] if started else '-'}")
    return lines
