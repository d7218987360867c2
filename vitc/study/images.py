"""Were the trials of a study run on the same images, and are these still the same?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitc.config import RunConfig, to_dict
from vitc.data.dataset import open_data
from vitc.data.identity import changes
from vitc.errors import CheckpointError, DataError
from vitc.files import discard, read_json
from vitc.runs.folder import DATA, Run
from vitc.runs.images import ALLOW, LISTING, kept_images, what_changed
from vitc.study.design import DATA_PLACE, Group, Plan, Trial
from vitc.study.results import LEFT_OUT, Result
from vitc.study.standing import trials_by_id
from vitc.wording import counted, few


def data_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of the data without its place."""
    return {k: v for k, v in to_dict(config.data).items() if k not in DATA_PLACE}


def mixed_data(plan: Plan) -> list[str]:
    """A note where contenders were meant to see different images (--allow-mixed, an exhibit)."""
    groups = {(g.optim, g.point): g for g in plan.groups}
    for g in plan.groups:
        first = groups[g.optim, g.point]
        if g.images != first.images or g.config.data.path != first.config.data.path:
            return [
                f"Contenders were trained on different data ({first.contender}: "
                f"{_data_of(first)}; {g.contender}: {_data_of(g)}): their errors are not of the "
                "same images."
            ]
    return []


def _data_of(group: Group) -> str:
    return group.config.data.path or group.config.data.source


# -- before trials are run -------------------------------------------------------------------------


def check_unchanged(
    plan: Plan, runs: Mapping[str, Run], allow: bool, moved: bool = False
) -> list[str]:
    """What changed in the images since trials of the plan were run; looked at where trials are
    still to run, or where the images have `moved` to another path.

    `allow`: unfinished trials on other images are then discarded, so that none sees both. Raises
    DataError otherwise; nothing is opened where no trial is left, or none was run.
    """
    trials = trials_by_id(plan)
    begun: dict[str, dict[str, Run]] = defaultdict(dict)  # settings -> fingerprint -> a run
    waiting: dict[str, Trial] = {}
    for name, trial in trials.items():
        key, run = trial.images, runs.get(name)
        if moved or run is None or not run.ended:
            waiting.setdefault(key, trial)
        if run is not None and (run.path / DATA).exists():
            begun[key].setdefault(_fingerprint(run), run)
    found = []
    for key, trial in waiting.items():
        if key not in begun:
            continue
        config = trial.config
        data = open_data(config.data, config.model.in_chans)
        for fingerprint, run in begun[key].items():
            changed = what_changed(run.path, read_json(run.path / DATA, CheckpointError), data)
            if changed is None:
                continue
            text = f"The images changed since the trial {run.path} was run: {changed}."
            if not allow:
                raise DataError(
                    text,
                    f"Restore them, or give another --out. {ALLOW} runs the other trials on the "
                    "images as they are; the report then compares no trials on different images.",
                )
            found.append(text)
            for name, other in runs.items():
                if not other.ended and name in trials and _fingerprint(other) == fingerprint:
                    discard(other.path)
    return found


def _fingerprint(run: Run) -> str:
    """Empty where the run has not opened its data yet."""
    known = run.summary.get("data_fingerprint")
    if known is None and (run.path / DATA).exists():
        known = read_json(run.path / DATA, CheckpointError).get("fingerprint")
    return str(known or "")


# -- in a report -----------------------------------------------------------------------------------


def comparable(folder: Path, results: list[Result], allow: bool) -> tuple[list[Result], list[str]]:
    """The results, and notes where trials that should have seen the same images did not, or where
    some have no record of theirs.

    `allow`: those of draws in which they differ are then left out. Raises DataError otherwise.
    """
    difference, notes = images_apart(results), _unrecorded(results)
    if difference is None:
        return results, notes
    text = (
        f"The trials of {folder} were run on different images ({difference.where}): {difference}."
    )
    if not allow:
        raise DataError(
            text,
            f"Compare trials on the same images. {ALLOW} leaves out the draws in which contenders "
            "saw different ones.",
        )
    seen: dict[tuple[Any, ...], set[str]] = defaultdict(set)

    def draw_of(r: Result) -> tuple[Any, ...]:
        return r.images, r.optim, r.point, r.draw

    for r in results:
        if r.fingerprint:
            seen[draw_of(r)].add(difference.same.get(r.fingerprint, r.fingerprint))
    kept = [
        replace(r, status=LEFT_OUT, error=None, error_raw=None, error_best_epoch=None)
        if len(seen[draw_of(r)]) > 1
        else r
        for r in results
    ]
    count = sum(r.status == LEFT_OUT for r in kept)
    rest = "In each draw the contenders saw the same ones."
    if count:
        rest = f"{count} trials of draws in which contenders saw different ones are left out."
    return kept, [f"{text} {rest}", *notes]


def _unrecorded(results: list[Result]) -> list[str]:
    """A note on finished trials without a record of their images, where others have one."""
    if not any(r.fingerprint for r in results):
        return []
    lost = [
        r.id
        for r in results
        if r.error is not None and not r.fingerprint and not Path(r.folder, DATA).exists()
    ]
    if not lost:
        return []
    return [
        f"{counted(len(lost), 'trial')} without a record of the images, {few(lost, 3)}: whether "
        "they are those of the other trials is not known."
    ]


@dataclass(frozen=True)
class Difference:
    """That results of equal settings are of different images: what differs, between which trials,
    and which fingerprints are of the same images all the same (an earlier version's -> today's)."""

    what: str
    where: str
    same: Mapping[str, str]

    def __str__(self) -> str:
        return self.what


def images_apart(results: Sequence[Result]) -> Difference | None:
    """How the images of results with equal settings differ; None: not at all, as far as known."""
    groups: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for r in results:
        if r.fingerprint:
            groups[r.images][r.fingerprint].append(r)
    same: dict[str, str] = {}
    apart: list[list[Result]] = []
    for prints in groups.values():
        if len(prints) < 2:
            continue
        records = {f: _record(Path(rs[0].folder)) for f, rs in prints.items()}
        newer = {record[LISTING]: f for f, record in records.items() if LISTING in record}
        same |= {f: newer[f] for f, record in records.items() if f in newer and f != newer[f]}
        merged: dict[str, list[Result]] = defaultdict(list)
        for f, of in prints.items():
            merged[same.get(f, f)] += of
        if len(merged) > 1 and not apart:
            apart = sorted(merged.values(), key=len, reverse=True)[:2]
    if not apart:
        return None
    first, second = (Path(part[0].folder) for part in apart)
    where = f"{len(apart[0])} as {first.name}, {len(apart[1])} as {second.name}"
    old, new = kept_images(first), kept_images(second)
    if old is None or new is None or old.limit != new.limit:
        return Difference("which ones is not recorded", where, same)
    return Difference("; ".join(changes(old, new)) or "their order", where, same)


def _record(run: Path) -> dict[str, Any]:
    return read_json(run / DATA, CheckpointError) if (run / DATA).exists() else {}
