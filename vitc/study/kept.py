"""Which trials of a study keep their checkpoints, and how much does the study take on disk?

A report needs none, and a trial that has ended is never resumed: so only the best of each group
keeps its checkpoints, to be evaluated or deployed, and the last few to end. Trials that failed or
have not ended keep theirs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vitc.files import TEMPORARY, discard, remove_leftovers
from vitc.runs.folder import CHECKPOINTS, SUMMARY, Run
from vitc.study.design import Trial
from vitc.study.study_folder import Keep, StudyFolder
from vitc.wording import counted, size

NEVER_RESUMED = ("done", "diverged")


def drop_checkpoints(folder: StudyFolder, trials: Sequence[Trial], keep: Keep) -> None:
    """Remove the checkpoints of trials that have ended, but for the best of each group and the last
    `keep` to end. `trials`: all of the plan, in its order.

    Any process may call it at any time. A trial is removed only where a better one of its group is
    there, so the best of all stays however many processes remove; a kill leaves no half of one.
    """
    if keep == "all":
        return
    runs: dict[str, Run] = {}
    for trial in trials:
        path = folder.trial(trial)
        run = Run(path)
        if (path / CHECKPOINTS).is_dir() and run.status in NEVER_RESUMED:
            runs[trial.id] = run
        elif (path / f"{TEMPORARY}gone-{CHECKPOINTS}").exists():  # of a kill while it was removed
            remove_leftovers(path)
    best: dict[str, tuple[float, str]] = {}
    for trial in trials:
        top1 = runs[trial.id].top1 if trial.id in runs else None
        if top1 is not None and top1 > best.get(trial.group.key, (-1.0, ""))[0]:
            best[trial.group.key] = top1, trial.id
    ended = sorted(runs, key=lambda name: (runs[name].path / SUMMARY).stat().st_mtime_ns)
    stay = {name for _, name in best.values()}.union(ended[len(ended) - keep :] if keep else ())
    for name in runs.keys() - stay:
        discard(runs[name].path / CHECKPOINTS)


def disk_line(folder: StudyFolder, trials: Sequence[Trial], keep: Keep) -> str:
    """What a study takes on disk, and which of its trials have checkpoints."""
    held = [p for t in trials if (p := folder.trial(t) / CHECKPOINTS).is_dir()]
    every = {folder.trial(t) for t in trials}
    which = "every trial keeps its own (--keep N removes most)"
    if keep != "all":
        which = f"those of each group's best and of the last {keep} to end are kept (--keep)"
    return (
        f"On disk: {size(folder_bytes(folder.path))}, {size(sum(map(folder_bytes, set(held))))} of "
        f"it checkpoints of {len(set(held))} of {counted(len(every), 'trial')}; {which}."
    )


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder; of those that vanish meanwhile none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
