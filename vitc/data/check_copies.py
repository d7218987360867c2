"""Which images are in a data set more than once, across splits, across classes, or within one?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vitc.data.check_images import Mark
from vitc.data.check_report import EXAMPLES, Finding, Report, Severity
from vitc.data.near_duplicates import near_groups
from vitc.data.sources import SOURCES
from vitc.data.store import Ints, shown
from vitc.wording import counted

_WHERE = ("across splits", "across classes", "within a class")
_CURES = (
    "remove one side: the score counts images that were trained on",
    "decide which label is right and remove the others",
    "remove all but one, where the others only weigh it more",
)
_TOGETHER = "--data.group REGEX keeps copies on one side of a split, where their names agree"


def copy_findings(report: Report, minis: NDArray[np.uint8]) -> Iterator[Finding]:
    """Images that are the same, or nearly: across splits, across classes, within a class."""
    rows = np.flatnonzero(report.readable)
    if not len(rows):
        return
    digests = report.records["pixels"][rows]
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    same = first[inverse.reshape(-1)]  # for each image, the first of those equal to it
    firsts = np.flatnonzero(same == np.arange(len(rows)))
    near = firsts[near_groups(report.records["hash"][rows[firsts]], minis[rows[firsts]])]
    tied = np.arange(len(rows))
    tied[firsts] = near
    tied = tied[same]  # each image: the first of all that are near to it
    labels = np.concatenate([s.labels for s in report.splits.values()])[report.positions[rows]]
    bounds = np.cumsum([len(s) for s in report.splits.values()])
    side = np.searchsorted(bounds, report.positions[rows], side="right")
    flat = (report.records["marks"][rows] & Mark.FLAT) != 0
    several = np.zeros(len(rows), np.int64)
    np.add.at(several, tied[firsts], 1)
    for kind, group, wanted in (
        ("same", same, ~flat),
        ("near", tied, several[tied] > 1),  # at least two that are not equal
    ):
        spread = _varies(group, side), _varies(group, labels)
        many = (np.bincount(group, minlength=len(rows)) > 1)[group] & wanted
        chosen = (many & spread[0], many & spread[1], many & ~spread[0] & ~spread[1])
        for where, (members, place) in enumerate(zip(chosen, _WHERE, strict=True)):
            if members.any():
                yield _copy_finding(report, kind, where, rows[members], group[members], place)


def _varies(group: Ints, values: Ints) -> NDArray[np.bool_]:
    """For each member, whether its group has more than one value. A group's number is a member."""
    differs = np.zeros(len(group), np.bool_)
    np.logical_or.at(differs, group, values != values[group])
    return differs[group]


def _copy_finding(
    report: Report, kind: str, where: int, rows: Ints, groups: Ints, place: str
) -> Finding:
    order = np.argsort(groups, kind="stable")
    rows, groups = rows[order], groups[order]
    places = report.positions[rows]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    examples = []
    for start, end in zip(starts[:EXAMPLES], [*starts[1:], len(rows)][:EXAMPLES], strict=False):
        names = [shown(report.names[p]) for p in places[start:end][:3].tolist()]
        more = f" and {end - start - 3:,} more" if end - start > 3 else ""
        examples.append(" = ".join(names) + more if kind == "same" else " ~ ".join(names) + more)
    what = "identical" if kind == "same" else "nearly identical"
    severity: Severity = "note" if where == 2 else "warn"
    suffix = ("leak", "conflict", "copies")[where]
    return Finding(
        f"{kind}_{suffix}",
        severity,
        len(rows),
        f"{counted(len(starts), 'group')} of {what} images {place}, {len(rows):,} images in all.",
        _copy_cure(report, where),
        tuple(examples),
        places=places,
        groups=groups,
    )


def _copy_cure(report: Report, where: int) -> str:
    if "group" not in SOURCES[report.config.source].settings:
        return "none here, where images have no files: know that the score is a little too good"
    together = "" if where == 1 or report.config.group is not None else f"; {_TOGETHER}"
    return f"{_CURES[where]} (--csv FILE lists them){together}"
