"""Which images are the same, or nearly: within a class, across classes, across splits?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vitc.data.check_groups import Seen, best_setting
from vitc.data.check_images import Mark
from vitc.data.check_report import EXAMPLES, Finding, Report
from vitc.data.near_duplicates import near_groups
from vitc.data.sources import SOURCES
from vitc.data.store import Ints, shown
from vitc.wording import counted

_ACROSS = (
    ("leak", "across splits", "remove one side: the score counts images that were trained on"),
    ("conflict", "across classes", "decide which label is right and remove the others"),
    ("copies", "within a class", "remove all but one, where the others only weigh it more"),
)


def copy_findings(report: Report, minis: NDArray[np.uint8], seen: Seen) -> Iterator[Finding]:
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
    places = report.positions[rows]
    labels, sides = report.labels[places], report.sides[places]
    flat = (report.records["marks"][rows] & Mark.FLAT) != 0
    several = np.zeros(len(rows), np.int64)
    np.add.at(several, tied[firsts], 1)
    for kind, group, wanted in (
        ("same", same, ~flat),
        ("near", tied, several[tied] > 1),  # at least two that are not equal
    ):
        leaks, conflicts = _varies(group, sides), _varies(group, labels)
        many = (np.bincount(group, minlength=len(rows)) > 1)[group] & wanted
        chosen = (many & leaks, many & conflicts, many & ~leaks & ~conflicts)
        for members, across in zip(chosen, _ACROSS, strict=True):
            if members.any():
                finding = _copies(report, kind, rows[members], group[members], *across)
                yield _with_setting(finding, seen) if across[0] == "leak" else finding


def _with_setting(finding: Finding, seen: Seen) -> Finding:
    """The finding with the expression on names that keeps nearly all copies together, if any."""
    assert finding.places is not None
    assert finding.groups is not None
    same = np.flatnonzero(np.diff(finding.groups) == 0)
    pairs = np.stack([finding.places[same], finding.places[same + 1]])
    setting = best_setting(seen, pairs)
    if setting is None or setting.kept < 0.9 or (setting.sides == seen.sides).all():
        return finding
    cure = f"--data.group {shlex.quote(setting.regex)} keeps {setting.kept:.0%} of them together"
    return replace(finding, cure=f"{cure}; or remove one side", setting=setting.settings)


def _varies(group: Ints, values: Ints) -> NDArray[np.bool_]:
    """For each member, whether its group has more than one value. A group's number is a member."""
    differs = np.zeros(len(group), np.bool_)
    np.logical_or.at(differs, group, values != values[group])
    return differs[group]


def _copies(
    report: Report, kind: str, rows: Ints, groups: Ints, across: str, where: str, cure: str
) -> Finding:
    order = np.argsort(groups, kind="stable")
    places, groups = report.positions[rows[order]], groups[order]
    what, sign = ("identical", " = ") if kind == "same" else ("nearly identical", " ~ ")
    parts = np.split(places, np.flatnonzero(np.diff(groups)) + 1)
    examples = []
    for part in parts[:EXAMPLES]:
        more = f" and {len(part) - 3:,} more" if len(part) > 3 else ""
        examples.append(sign.join(shown(report.names[p]) for p in part[:3].tolist()) + more)
    if "group" not in SOURCES[report.config.source].settings:
        cure = "none here, where images have no files: know that the score is a little too good"
    else:
        cure += " (--csv FILE lists them)"
        if across != "conflict" and report.config.group is None:
            cure += "; --data.group REGEX keeps copies in one split, where their names agree"
    return Finding(
        f"{kind}_{across}",
        "note" if across == "copies" else "warn",
        len(places),
        f"{counted(len(parts), 'group')} of {what} images {where}, {len(places):,} images in all.",
        cure,
        tuple(examples),
        places=places,
        groups=groups,
    )
