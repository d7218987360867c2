"""Run folders as a study sees them: read only, whatever wrote them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitc.errors import ConfigError
from vitc.files import read_json
from vitc.runs.folder import CONFIG, EVENTS, TRIES, read_metrics, read_summary

ENDED = ("done", "diverged", "failed")  # a trial with such a status is never run again
PLACED = re.compile(r"^\S+  placed by engine (\w+) on host (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """One run folder: its config and its result as they stand."""

    path: Path
    config: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)

    @property
    def status(self) -> str:
        """done | diverged | interrupted | failed, or running where no summary is there yet."""
        return str(self.summary.get("status", "running"))

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def top1(self) -> float | None:
        """EMA weights, last epoch, validation, percent; None unless the run is done."""
        return self.summary.get("top1") if self.status == "done" else None

    @property
    def places(self) -> list[tuple[str, str]]:
        """(engine, host) of each part of a trial, in order; one that was moved has several.

        Empty for a run that no study's engine placed. Studies of version 0.1 have them in
        events.log.
        """
        file = self.path / EVENTS
        found = PLACED.findall(file.read_text(errors="replace")) if file.is_file() else []
        tries = self.path / TRIES
        entries = read_json(tries).get("tries", []) if tries.is_file() else []
        return list(dict.fromkeys([*found, *((e["engine"], e["host"]) for e in entries)]))

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, all or of one kind ("train", "eval")."""
        return read_metrics(self.path, kind)


def read_run(path: Path) -> Run:
    """The run in a folder. Raises ConfigError, CheckpointError where it is none or damaged."""
    return Run(path, read_json(path / CONFIG), read_summary(path) or {})


def load_runs(folder: str | Path) -> list[Run]:
    """Every run folder below `folder` (or itself), by path. Raises ConfigError: there is none."""
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder.", "Give a run, a study, or a folder of runs.")
    found = sorted(p.parent for p in root.rglob(CONFIG) if (p.parent / CONFIG).is_file())
    if not found:
        raise ConfigError(f"There is no run in {root}.", "A run folder holds a config.json.")
    return [read_run(path) for path in found]
