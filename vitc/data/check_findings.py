"""What is found in a data set: broken and odd files, duplicates, uneven classes, stray files?

Each finding is a pure function of what `check_images` recorded and of the names in a folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.data.check_images import BROKEN, Mark
from vitc.data.check_report import EXAMPLES, Finding, Report, Severity
from vitc.data.near_duplicates import near_groups
from vitc.data.sources import SOURCES
from vitc.data.sources.base import IMAGE_SUFFIXES, some
from vitc.data.split_words import SPLIT_OF
from vitc.data.store import Ints, name_key, shown
from vitc.wording import counted

LONG_SIDE = 4  # times the short one
TINY_SIDE, LARGE_SIDE = 32, 320  # pixels of the short side
DRAWS = 11  # broken images in a row at which training stops: `sampling.stand_ins`
LONG_RUN_EPOCHS = 100
RARE = 10  # training images; a class with fewer is reported
UNEVEN = 10  # times as many images in the largest class as in the smallest


class Kind(NamedTuple):
    """A kind of finding: its name, how bad it is, the sentence after the count, the cure."""

    name: str
    severity: Severity
    text: str
    cure: str


def of_images(report: Report, rows: NDArray[np.bool_] | Ints, noun: str, kind: Kind) -> Finding:
    """The finding for the images at these rows of the records."""
    places = report.positions[rows]
    examples = []
    for place in places[:EXAMPLES].tolist():
        why = report.details.get(place)
        examples.append(shown(report.names[place]) + (f" ({why})" if why else ""))
    name, severity, text, cure = kind
    text = f"{counted(len(places), noun)} {text}."
    return Finding(name, severity, len(places), text, cure, tuple(examples), places=places)


def of_names(names: Sequence[str], text: str, kind: Kind) -> Finding:
    """The finding for classes or stray files; `text` is the count with its noun."""
    text = f"{text} {kind.text}: {some(names)}."
    names = tuple(map(shown, names))
    return Finding(kind.name, kind.severity, len(names), text, kind.cure, names[:EXAMPLES], names)


# -- single files: in this order, which is worst first within a severity ---------------------------

_LEAVE_OUT = "--data.bad_files skip leaves them out; or replace or remove them (--csv FILE: all)"
_NOTHING = "nothing to do"
BY_MARK = {
    Mark.UNREADABLE: Kind("unreadable", "stop", "cannot be opened or read", _LEAVE_OUT),
    Mark.DAMAGED: Kind("damaged", "stop", "that cannot be decoded", _LEAVE_OUT),
    Mark.NO_IMAGE: Kind("no_image", "stop", "not in a supported format", _LEAVE_OUT),
    Mark.EMPTY: Kind("empty", "stop", "of 0 bytes", _LEAVE_OUT),
    Mark.TOO_LARGE: Kind("bomb", "stop", "with too many pixels or bytes (a bomb?)", _LEAVE_OUT),
    Mark.DOUBT: Kind(
        "doubtful",
        "warn",
        "read, but the decoder had to guess: parts may be made up",
        "look at them (--html FILE), and remove what is spoilt",
    ),
    Mark.FLAT: Kind("constant", "warn", "of a single colour", "remove them, unless intended"),
    Mark.SUFFIX: Kind(
        "suffix",
        "note",
        "in another format than the suffix; the content counts",
        f"{_NOTHING}; other programs may want them renamed",
    ),
    Mark.ANIMATED: Kind(
        "animated",
        "note",
        "with several frames: only the first is used",
        "split them into single images where the others matter",
    ),
    Mark.INKS: Kind(
        "cmyk",
        "note",
        "in CMYK, converted without a colour profile",
        "convert them to sRGB with their profile where colours matter",
    ),
    Mark.DEEP: Kind(
        "deep",
        "note",
        "of more than 8 bits a channel, scaled to 8 by the full range",
        "stretch them to the range in use first, where they look dark (--html FILE)",
    ),
    Mark.ALPHA: Kind(
        "alpha",
        "note",
        "with transparency, composited on white",
        "--model.in_chans 4 keeps the opacity; or flatten them",
    ),
    Mark.PALETTE: Kind("palette", "note", "with a palette, looked up", _NOTHING),
    Mark.ROTATED: Kind(
        "rotated",
        "note",
        "turned upright by their EXIF orientation",
        f"{_NOTHING}; other programs may show them on their side",
    ),
}


def file_findings(report: Report) -> Iterator[Finding]:
    marks = report.records["marks"]
    for mark, kind in BY_MARK.items():
        rows = (marks & mark) != 0
        if not rows.any():
            continue
        if kind.severity == "stop" and report.config.bad_files == "skip":
            cure = "replace or remove them; data.bad_files skip leaves them out"
            kind = kind._replace(severity="warn", cure=cure)
        yield of_images(report, rows, "image file" if mark & BROKEN else "image", kind)
    yield from _training_without(report)
    grey, readable = (marks & Mark.GREY) != 0, report.readable
    if grey.any() and (readable & ~grey).any():
        text = f"({grey.sum() / readable.sum():.1%}) among coloured ones, repeated in all channels"
        cure = f"{_NOTHING}, unless grey goes with a class: then the model learns that"
        yield of_images(report, grey, "grey image", Kind("grey", "note", text, cure))


def _training_without(report: Report) -> Iterator[Finding]:
    """Classes with broken training images only; so many broken ones that skipping them fails."""
    train = report.splits.get("train")
    if train is None or report.readable.all():
        return
    inside = report.positions < len(train)
    labels = train.labels[report.positions[inside]]
    bad = ~report.readable[inside]
    broken = np.bincount(labels[bad], minlength=len(report.classes))
    lost = np.flatnonzero((broken == report.counts["train"]) & (broken > 0)).tolist()
    if lost:
        kind = Kind("emptied", "stop", "are broken", "replace them, or remove the class")
        yield of_names([report.classes[i] for i in lost], "All training images of classes", kind)
    share = float(bad.mean())
    if report.config.bad_files == "skip" and LONG_RUN_EPOCHS * len(train) * share**DRAWS > 0.5:
        yield Finding(
            "too_many",
            "stop",
            1,
            f"{share:.0%} of the training images are broken: training that skips them "
            f"gives up when {DRAWS} in a row are.",
            "replace or remove them (--csv FILE: all); skipping is for a few",
        )


def size_findings(report: Report) -> Iterator[Finding]:
    rows = np.flatnonzero(report.readable)
    seen = report.records[rows]
    if not len(seen):
        return
    sides = np.stack([seen["height"], seen["width"]])
    short, long = sides.min(0), sides.max(0)
    middle = int(np.median(short))
    narrow = rows[long >= LONG_SIDE * short.astype(np.int64)]
    if len(narrow):
        text = f"at least {LONG_SIDE} times as long as wide; evaluation sees the middle only"
        cure = "--data.fit pad shows all of them; or cut them"
        yield of_images(report, narrow, "image", Kind("narrow", "note", text, cure))
    tiny = rows[short < TINY_SIDE]
    if len(tiny) and middle >= 2 * TINY_SIDE:
        text = f"with a side below {TINY_SIDE} pixels, among others of {middle:,}"
        kind = Kind("tiny", "note", text, "remove thumbnails and icons")
        yield of_images(report, tiny, "image", kind)
    if middle >= LARGE_SIDE and report.rate is not None:
        yield Finding(
            "large",
            "note",
            int((short >= LARGE_SIDE).sum()),
            f"Half of the images have a short side of {middle:,} pixels or more: "
            "decoding them takes most of the time.",
            f"vitc data pack {report.config.path} OUT.vitc --short-side 256",
        )


# -- copies ----------------------------------------------------------------------------------------

_ACROSS = (
    ("leak", "across splits", "remove one side: the score counts images that were trained on"),
    ("conflict", "across classes", "decide which label is right and remove the others"),
    ("copies", "within a class", "remove all but one, where the others only weigh it more"),
)


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
        leaks, conflicts = _varies(group, side), _varies(group, labels)
        many = (np.bincount(group, minlength=len(rows)) > 1)[group] & wanted
        chosen = (many & leaks, many & conflicts, many & ~leaks & ~conflicts)
        for members, across in zip(chosen, _ACROSS, strict=True):
            if members.any():
                yield _copies(report, kind, rows[members], group[members], *across)


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


# -- classes ---------------------------------------------------------------------------------------


def class_findings(report: Report) -> Iterator[Finding]:
    if not report.classes or "train" not in report.counts:
        return
    yield from _alike_names(report.classes)
    train = report.counts["train"]

    def those(chosen: NDArray[np.bool_], kind: Kind) -> Iterator[Finding]:
        names = [report.classes[i] for i in np.flatnonzero(chosen).tolist()]
        if names:
            yield of_names(names, counted(len(names), "class", "classes"), kind)

    add = "add images, or remove the class"
    yield from those(train == 1, Kind("single", "warn", "with one training image", add))
    text = f"with fewer than {RARE} training images"
    cure = "add images; --data.balance sqrt shows them more often"
    yield from those((train > 1) & (train < RARE), Kind("rare", "note", text, cure))
    there = train[train > 0]
    if len(there) and there.max() >= UNEVEN * there.min():
        low, high = int(there.min()), int(there.max())
        small = report.classes[int(np.flatnonzero(train == low)[0])]
        large = report.classes[int(np.argmax(train))]
        yield Finding(
            "unbalanced",
            "warn",
            len(there),
            f"The largest class has {high / low:,.0f} times as many training images as "
            f"the smallest: {large!r} {high:,}, {small!r} {low:,}.",
            "--data.balance sqrt (or full) shows rare classes more often",
        )
    for split, counts in report.counts.items():
        cure = "add images there, or remove the split's folder, so that images are held out for it"
        kind = Kind(f"absent_{split}", "warn", f"without {split} images", cure)
        if split == "train":
            yield from those(counts == 0, kind._replace(cure="add images"))
        else:
            yield from those((counts == 0) & (train > 0), kind)


def _alike_names(classes: Sequence[str]) -> Iterator[Finding]:
    """Class names equal but for case, spaces, punctuation and a plural's s."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        letters = re.sub(r"[\W_]+", "", name_key(name).casefold())
        if len(letters) > 3 and letters.endswith("s") and not letters.endswith("ss"):
            letters = letters[:-1]
        groups.setdefault(letters or name, []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if alike:
        examples = tuple(" ~ ".join(map(repr, names)) for names in alike[:EXAMPLES])
        yield Finding(
            "alike_names",
            "warn",
            len(alike),
            f"{counted(len(alike), 'group')} of class names that are nearly equal: "
            f"{'; '.join(examples[:3])}.",
            "merge the folders where one class was meant",
            examples,
            tuple(n for names in alike for n in names),
        )


# -- what else is in the folder --------------------------------------------------------------------

_UNLESS = f"{_NOTHING}, unless they are images: then rename or convert them"
STRAY = {
    "image": Kind(
        "loose", "warn", "in no class folder, left out", "move them into the folder of their class"
    ),
    "symbolic link": Kind("links", "warn", "to nothing, ignored", "repair or remove them"),
    "folder": Kind(
        "folders", "warn", "named like an image", "rename; images inside are read as any others"
    ),
    "special file": Kind("special", "warn", "(pipe, socket, device), ignored", "remove them"),
    "other file": Kind("other", "note", "in no image format, ignored", _UNLESS),
    "hidden file": Kind("hidden", "note", "(or folder), ignored", _UNLESS),
}


def stray_findings(report: Report) -> Iterator[Finding]:
    """What in a folder is no image of the data set and may have been meant as one."""
    config = report.config
    if config.source != "folder" or config.path is None:
        return
    found: dict[str, list[str]] = {noun: [] for noun in STRAY}
    for name, noun in _strays(Path(config.path).expanduser()):
        found[noun].append(name)
    known = set(report.names) if found["image"] else set()
    found["image"] = [name for name in found["image"] if shown(name) not in known]
    for noun, names in found.items():
        if names:
            yield of_names(sorted(names), counted(len(names), noun), STRAY[noun])


def _strays(root: Path) -> Iterator[tuple[str, str]]:
    """Path below the root, and its noun in STRAY, of all that is no image file in a class."""
    stack, seen = [(str(root), "")], set()
    while stack:
        folder, below = stack.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            continue  # reported when the data set is opened
        for entry in entries:
            path = below + entry.name
            is_image = "." in entry.name and entry.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
            if entry.name.startswith("."):
                yield path, "hidden file"
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:
                yield path, "symbolic link"
                continue
            if stat.S_ISDIR(mode):
                stack.append((entry.path, f"{path}/"))
                if is_image:
                    yield path, "folder"
            elif not stat.S_ISREG(mode):
                yield path, "special file"
            elif not is_image:
                yield path, "other file"
            elif not below or below[:-1].lower() in SPLIT_OF:
                yield path, "image"  # if it is not in a class of that name
