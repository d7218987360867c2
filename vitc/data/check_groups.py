"""Are people, bursts or scenes on both sides of the splits, and which setting keeps them together?

Images belong together by their names, by the time they were taken, or because files that follow
each other look alike. Each is reported only where it crosses a split, with the regular expression
for `data.group` that keeps most of them in one; every expression is tried before it is offered.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.data.check_images import COLOURS
from vitc.data.check_report import EXAMPLES, Finding, Report, Severity
from vitc.data.config import DataConfig
from vitc.data.name_groups import (
    NameGroups,
    Numbered,
    codes_of,
    divides,
    joins,
    keys_of,
    name_groups,
    numbered,
    stem_of,
    time_of,
)
from vitc.data.sources import SOURCES
from vitc.data.split import hold_out_groups
from vitc.data.split_words import SPLITS
from vitc.data.store import Ints, shown
from vitc.wording import counted

BURST = 10.0  # seconds between two images of one scene
MOST_A_SECOND = 30  # images; more of one second have a time that no camera wrote
ALIKE = 0.15  # correlation of colours above chance, from which files in a row belong together
CERTAIN = 5.0  # standard deviations that it must be above chance
LEAST_PAIRS = 3  # across splits
EXPLAINED = 0.8  # of the pairs that are in one group of a setting already
KEPT = 0.5  # of the pairs that an offered expression must keep together
ENOUGH = 100  # pairs that show whether images of a group look alike
PAIRS = 20_000  # looked at for how alike they are
LAGS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_DAY = r"(\d{4}-?\d\d-?\d\d"
TIMES = (_DAY + r"\D{1,4}\d\d\D?\d\d)", _DAY + r"\D{1,4}\d\d)", _DAY + ")")  # minute, hour, day

Pairs = NDArray[np.int64]  # (2, pairs): positions of two images


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of n images, for their groups.

    given: the splits that the source has itself; labels, sides int64 (n,): class and split (its
    index in SPLITS); taken float64 (n,): seconds, nan where unknown; camera uint64 (n,); colours
    uint8 (n, C): a small picture of each, zeros where none was read.
    """

    config: DataConfig
    given: frozenset[str]
    names: Sequence[str]
    labels: Ints
    sides: Ints
    taken: NDArray[np.float64]
    camera: NDArray[np.uint64]
    colours: NDArray[np.uint8]

    @property
    def sampled(self) -> bool:
        """Whether many images were not read."""
        return bool(self.colours.any(axis=1).mean() < 0.5)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """(n, C), of length 1: how its colours differ from the mean of its class; or zeros."""
        values = self.colours.astype(np.float32)
        known = self.colours.any(axis=1)
        for label in np.unique(self.labels[known]).tolist():
            rows = known & (self.labels == label)
            values[rows] -= values[rows].mean(axis=0)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        values /= np.maximum(lengths, 1e-6)
        values[~known | (lengths[:, 0] < 1.0)] = 0
        return values

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """float64 (n,): `taken`, or else the time in the file's name."""
        by_name = np.array([time_of(name) for name in self.names])
        return np.where(np.isfinite(self.taken), self.taken, by_name)

    @cached_property
    def numbered(self) -> Numbered | None:
        return numbered(self.names)

    @cached_property
    def by_name(self) -> list[NameGroups]:
        return name_groups(self.names, self.labels)

    def crossing(self, pairs: Pairs) -> NDArray[np.bool_]:
        crosses: NDArray[np.bool_] = self.sides[pairs[0]] != self.sides[pairs[1]]
        return crosses


def seen_in(report: Report) -> Seen:
    """All names of a report, and what is known of the images that were read."""
    total = len(report.names)
    rows = np.flatnonzero(report.readable)
    places, records = report.positions[rows], report.records[rows]
    taken, camera = np.full(total, np.nan), np.zeros(total, np.uint64)
    colours = np.zeros((total, COLOURS), np.uint8)
    taken[places], camera[places] = records["taken"], records["camera"]
    colours[places] = records["colours"]
    return Seen(
        config=report.config,
        given=report.given,
        names=list(report.names),
        labels=report.labels,
        sides=report.sides,
        taken=taken,
        camera=camera,
        colours=colours,
    )


class Setting(NamedTuple):
    """A regular expression for `data.group` that was tried: its groups, int64 (n,), the share of
    the pairs it keeps together, and the split of each image with it."""

    regex: str
    groups: Ints
    kept: float
    sides: Ints

    @property
    def settings(self) -> dict[str, str]:
        return {"data.group": self.regex}


def group_findings(seen: Seen) -> Iterator[Finding]:
    if not len(seen.names) or len(np.unique(seen.sides)) < 2:
        return
    explained: list[Ints] = []  # groupings that are set or proposed
    if seen.config.group is not None:
        explained.append(codes_of(keys_of(seen.config.group, seen.names)))
    for of_names in seen.by_name:
        groups = codes_of(keys_of(of_names.regex, seen.names))
        pairs = _in_groups(groups)
        if seen.crossing(pairs).sum() < LEAST_PAIRS or _kept(pairs, explained) > EXPLAINED:
            continue
        finding = _by_name(seen, of_names, groups)
        if finding is not None:
            explained += [groups] if finding.severity == "warn" else []
            yield finding
    for kind, pairs, further, text in (_times(seen), _neighbours(seen), _same_names(seen)):
        if _kept(pairs, explained) > EXPLAINED or seen.crossing(pairs).sum() < LEAST_PAIRS:
            continue
        setting = best_setting(seen, np.concatenate([pairs, further], axis=1))
        if setting is not None:
            explained.append(setting.groups)
        yield _finding(seen, kind, "warn", pairs, text, setting)


def groups_checked(seen: Seen) -> dict[str, str]:
    """By what groups were looked for, and among how many images; or why not."""
    kinds = ("groups_by_name", "groups_by_time", "files_in_a_row")
    if len(np.unique(seen.sides)) < 2:
        return dict.fromkeys(kinds, "not checked: there is one split only")
    timed = int(np.isfinite(seen.times).sum())
    by_name = f"{len(seen.names):,} names"
    by_time = f"{timed:,} images" if timed else "not checked: no image has a time"
    in_a_row = "not checked: file names have no running numbers"
    if seen.numbered is not None:
        known = alike(seen, _at_lag(seen.numbered, 1)).pairs
        in_a_row = f"{known:,} pairs" if known else "not checked: too few of them were read"
    return dict(zip(kinds, (by_name, by_time, in_a_row), strict=True))


def _kept(pairs: Pairs, groupings: Sequence[Ints]) -> float:
    """The largest share of the pairs that one of these keeps together."""
    if not pairs.shape[1]:
        return 1.0
    return max((float((g[pairs[0]] == g[pairs[1]]).mean()) for g in groupings), default=0.0)


def _in_groups(groups: Ints) -> Pairs:
    """Each image of a group with the next one of the same group."""
    order = np.argsort(groups, kind="stable")
    same = np.flatnonzero(np.diff(groups[order]) == 0)
    return np.stack([order[same], order[same + 1]])


# -- what belongs together -------------------------------------------------------------------------


class Alike(NamedTuple):
    """How alike the images of pairs are: the mean correlation of their colours above that of images
    of the same classes at random, how many standard deviations that is, and of how many pairs."""

    close: float
    deviations: float
    pairs: int

    @property
    def certain(self) -> bool:
        return self.close >= ALIKE and self.deviations >= CERTAIN


def alike(seen: Seen, pairs: Pairs) -> Alike:
    """Of the pairs whose images were read."""
    vectors = seen.vectors
    known = np.asarray(vectors.any(axis=1))
    pairs = pairs[:, known[pairs[0]] & known[pairs[1]]]
    count = min(PAIRS, pairs.shape[1])
    if count < 2 * LEAST_PAIRS:
        return Alike(0.0, 0.0, count)
    first, second = pairs[:, np.linspace(0, pairs.shape[1] - 1, count).astype(int)]
    rows = np.flatnonzero(known)
    rows = rows[np.argsort(seen.labels[rows], kind="stable")]
    rng = np.random.default_rng(0)
    other, chance = np.arange(len(vectors)), []
    for _ in range(20):
        other[rows] = rows[np.lexsort((rng.random(len(rows)), seen.labels[rows]))]
        chance.append(float((vectors[first] * vectors[other[second]]).sum(1).mean()))
    close = float((vectors[first] * vectors[second]).sum(1).mean() - np.mean(chance))
    return Alike(close, close / max(float(np.std(chance)), 1 / (4 * np.sqrt(count))), count)


Linked = tuple[str, Pairs, Pairs, str]  # kind, pairs, those that a setting should keep too, text
NO_PAIRS = np.zeros((2, 0), np.int64)


def _times(seen: Seen) -> Linked:
    """Images of one camera taken within seconds of each other, by EXIF or else by their names."""
    taken = seen.times
    rows = np.flatnonzero(np.isfinite(taken))
    order = rows[np.lexsort((taken[rows], seen.camera[rows]))]
    apart = np.diff(taken[order])
    near = (apart <= BURST) & (np.diff(seen.camera[order].astype(np.int64)) == 0)
    seconds = np.floor(taken[order])
    _, second, counts = np.unique(seconds, return_inverse=True, return_counts=True)
    crowded = (counts > MOST_A_SECOND)[second]
    near &= ~crowded[:-1] & ~crowded[1:]
    pairs = np.stack([order[:-1][near], order[1:][near]])
    text = (
        f"were taken within {BURST:.0f} s of an image in another split, by their EXIF or name: "
        "a burst or one scene?"
    )
    return "group_times", pairs, NO_PAIRS, text


def _neighbours(seen: Seen) -> Linked:
    """Files that follow each other by number, if they look alike; and how far that reaches."""
    none = "group_neighbours", NO_PAIRS, NO_PAIRS, ""
    files = seen.numbered
    if files is None:
        return none
    in_row = _at_lag(files, 1)
    near = alike(seen, in_row)
    far = alike(seen, _at_lag(files, max(50, len(files.order) // 8))).close
    if not near.certain or near.close - max(far, 0.0) < ALIKE:
        return none  # an order by something else, such as where they came from
    reach = 1
    for lag in LAGS[1:]:
        if alike(seen, _at_lag(files, lag)).close - far < 0.5 * (near.close - far):
            break
        reach = lag
    lags = sorted({max(1, reach // 4), max(1, reach // 2), reach} - {1})
    further = np.concatenate([NO_PAIRS, *(_at_lag(files, lag) for lag in lags)], axis=1)
    text = (
        "have a number near that of an image in another split, and files in a row look alike "
        f"(their colours correlate by {near.close:.2f} more than at random): {_QUESTION}"
    )
    return "group_neighbours", in_row, further, text


def _same_names(seen: Seen) -> Linked:
    """Files of the same name in several folders, such as one person's in each class, if alike."""
    groups = codes_of([stem_of(name) for name in seen.names])
    pairs = _in_groups(groups) if joins(groups) > 0.5 else NO_PAIRS
    found = alike(seen, pairs)
    text = (
        "have the name of an image in another split, from another folder, and such images look "
        f"alike (their colours correlate by {found.close:.2f} more than at random): {_QUESTION}"
    )
    return "group_same_names", pairs if found.certain else NO_PAIRS, NO_PAIRS, text


def _at_lag(files: Numbered, lag: int) -> Pairs:
    """The pairs of files of one series that are `lag` places from each other."""
    series = np.concatenate([[0], np.cumsum(~files.follows)])
    same = series[lag:] == series[:-lag] if lag < len(series) else np.zeros(0, np.bool_)
    return np.stack([files.order[: len(same)][same], files.order[lag:][same]])


# -- which setting keeps it together ---------------------------------------------------------------


def best_setting(seen: Seen, pairs: Pairs) -> Setting | None:
    """The expression that keeps most of these pairs in one split; of several, by smaller groups."""
    candidates = [g.regex for g in seen.by_name if g.why != "words"]
    candidates += [r"/([^/]+)/[^/]*$", r"([^/]+)$", *TIMES]
    candidates += seen.numbered.blocks if seen.numbered is not None else []
    tried = [s for c in dict.fromkeys(candidates) if (s := try_setting(seen, c, pairs))]
    tried = [s for s in tried if s.kept >= KEPT]
    if not tried:
        return None
    most = max(s.kept for s in tried)
    return max((s for s in tried if s.kept >= most - 0.05), key=lambda s: len(np.unique(s.groups)))


def try_setting(seen: Seen, regex: str, pairs: Pairs) -> Setting | None:
    """None: it matches too little, or its groups cannot be shared out to the splits."""
    keys = keys_of(regex, seen.names)
    if sum(key is not None for key in keys) < 0.5 * len(keys):
        return None
    groups = codes_of(keys)
    if not divides(groups, seen.labels):
        return None
    sides = _resplit(seen, keys)
    return None if sides is None else Setting(regex, groups, _kept(pairs, [groups]), sides)


def _resplit(seen: Seen, keys: Sequence[str | None]) -> Ints | None:
    """The split of each image if `data.group` were set; those that the source gives stay."""
    config, given = seen.config, seen.given
    val = 0.0 if "val" in given else config.val_fraction
    test = 0.0 if given & {"val", "test"} else config.test_fraction
    if not val and not test:
        return seen.sides
    stay = np.isin(seen.sides, [SPLITS.index(s) for s in given - {"train"}])
    rows = np.flatnonzero(~stay)
    alone = [f"\0{i}" if keys[i] is None else str(keys[i]) for i in rows.tolist()]
    classes, labels = np.unique(seen.labels[rows], return_inverse=True)
    sides = seen.sides.copy()
    sides[rows] = hold_out_groups(labels, alone, val, test, config.split_seed)
    for side in [0] + [1] * bool(val):
        if len(np.unique(labels[sides[rows] == side])) < len(classes):
            return None
    return sides


# -- as findings -----------------------------------------------------------------------------------

BY_NAME = {  # kind and text by what names were grouped by
    "copies": ("group_copies", "are copies, by their names, of images in another split."),
    "folders": ("group_folders", "share a folder below their class with images of another split"),
    "numbers": ("group_names", "have names that start as those of images in another split"),
    "words": ("group_words", "have names that start as those of images in another split"),
}
_QUESTION = "one person, burst or scene?"


def _by_name(seen: Seen, of_names: NameGroups, groups: Ints) -> Finding | None:
    """None: the names alone suggest it, and the images do not look alike."""
    pairs = _in_groups(groups)
    found = alike(seen, pairs)
    certain = of_names.named or of_names.why == "copies" or found.certain
    if not certain and found.pairs >= ENOUGH and found.close < ALIKE / 3:
        return None
    kind, text = BY_NAME[of_names.why]
    if of_names.why != "copies":
        text += f": {_QUESTION}"
    setting = try_setting(seen, of_names.regex, pairs)
    return _finding(seen, kind, "warn" if certain else "note", groups, text, setting)


def _finding(
    seen: Seen, kind: str, severity: Severity, together: Ints, text: str, setting: Setting | None
) -> Finding:
    """The finding for images that belong together, where they are in several splits.

    together: `Pairs`, or the group of each image, int64 (n,).
    """
    held, partner = _held_out(seen, together)
    total = int((seen.sides > 0).sum())
    examples = tuple(
        " ~ ".join(f"{shown(seen.names[i])} ({SPLITS[seen.sides[i]]})" for i in pair)
        for pair in zip(partner[:EXAMPLES].tolist(), held[:EXAMPLES].tolist(), strict=True)
    )
    least = "At least " if kind == "group_times" and seen.sampled else ""
    figures: dict[str, int] = {}
    cure = "none of the expressions tried on the names keeps them together"
    if "group" not in SOURCES[seen.config.source].settings:
        cure, setting = "none here, where images have no files: the score is too good", None
    elif setting is None:
        cure += ": put what belongs together into one split (--csv FILE lists the images)"
    else:
        cure, figures = _cure(seen, together, setting)
    return Finding(
        kind,
        severity,
        len(held),
        f"{least}{len(held):,} of {counted(total, 'val or test image')} {text}",
        cure,
        examples,
        places=np.stack([partner, held], axis=1).reshape(-1),
        groups=np.repeat(np.arange(len(held)), 2),
        setting={} if setting is None else setting.settings,
        figures=figures,
    )


def _held_out(seen: Seen, together: Ints) -> tuple[Ints, Ints]:
    """Each image of val and test with a partner in another split, preferably train; its partner."""
    if together.ndim == 1:  # with the first and the last image of its group, by split
        order = np.lexsort((seen.sides, together))
        starts = np.flatnonzero(np.diff(together[order], prepend=np.nan))
        lengths = np.diff(starts, append=len(order))
        first = np.repeat(order[starts], lengths)
        last = np.repeat(order[starts + lengths - 1], lengths)
        pairs = np.concatenate([np.stack([order, first]), np.stack([order, last])], axis=1)
    else:
        pairs = np.concatenate([together, together[::-1]], axis=1)
    pairs = pairs[:, (seen.sides[pairs[0]] > 0) & seen.crossing(pairs)]
    pairs = pairs[:, np.lexsort((seen.sides[pairs[1]], pairs[0]))]
    held, at = np.unique(pairs[0], return_index=True)
    return held, pairs[1][at]


def _cure(seen: Seen, together: Ints, setting: Setting) -> tuple[str, dict[str, int]]:
    """What the setting does: its groups, how many are in several splits, and what it leaves."""
    codes, sizes = np.unique(setting.groups, return_counts=True)
    order = np.lexsort((seen.sides, setting.groups))
    ends = np.flatnonzero(np.diff(setting.groups[order], append=-len(order) - 2))
    starts = np.concatenate([[0], ends[:-1] + 1])
    straddling = int((seen.sides[order[starts]] != seen.sides[order[ends]]).sum())
    with_it = replace(seen, sides=setting.sides)
    left = len(_held_out(with_it, together)[0])
    word = f"--data.group {shlex.quote(setting.regex)}"
    figures = {"groups": len(codes), "in_several_splits": straddling, "left": left}
    least = f"{sizes.min():,} to " if sizes.min() < sizes.max() else ""
    about = (
        f"{counted(len(codes), 'group')} of {least}{counted(int(sizes.max()), 'image')}, "
        f"{straddling:,} of them in several splits now"
    )
    if (setting.sides == seen.sides).all():
        where = "one folder per class, without splits, and set " if seen.given else ""
        return f"put the images into {where}{word}: {about}", figures
    return f"{word} keeps groups in one split: {about}; {left:,} such images remain", figures
