"""Which images are broken, doubtful or odd, and what else lies in the folder?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitc.data.check_images import BROKEN, Mark
from vitc.data.check_report import EXAMPLES, Finding, Report, Severity
from vitc.data.sources.base import IMAGE_SUFFIXES, SPLIT_OF, some
from vitc.data.store import Ints, shown
from vitc.wording import counted

LONG_SIDE = 4  # times the short one
DRAWS = 11  # broken images in a row at which training stops: `sampling.stand_ins`
LONG_RUN_EPOCHS = 100
TINY_SIDE, LARGE_SIDE = 32, 320  # pixels of the short side


# -- findings: of single files ---------------------------------------------------------------------

# In this order, which is worst first within a severity: kind, severity, what it is, what cures it.
_LEAVE_OUT = "--data.bad_files skip leaves them out; or replace or remove them (--csv FILE: all)"
_BY_MARK: tuple[tuple[Mark, str, Severity, str, str], ...] = (
    (Mark.UNREADABLE, "unreadable", "stop", "cannot be opened or read", _LEAVE_OUT),
    (Mark.DAMAGED, "damaged", "stop", "that cannot be decoded", _LEAVE_OUT),
    (Mark.NO_IMAGE, "no_image", "stop", "not in a supported format", _LEAVE_OUT),
    (Mark.EMPTY, "empty", "stop", "of 0 bytes", _LEAVE_OUT),
    (
        Mark.TOO_LARGE,
        "bomb",
        "stop",
        "with more pixels or bytes than are allowed (a bomb?)",
        _LEAVE_OUT,
    ),
    (
        Mark.DOUBT,
        "doubtful",
        "warn",
        "read, but the decoder had to guess: parts may be made up",
        "look at them (--html FILE), and remove what is spoilt",
    ),
    (Mark.FLAT, "constant", "warn", "of one colour all over", "remove them, unless they are meant"),
    (
        Mark.SUFFIX,
        "suffix",
        "note",
        "in another format than the suffix; the content counts",
        "nothing to do; other programs may want them renamed",
    ),
    (
        Mark.ANIMATED,
        "animated",
        "note",
        "with several frames, of which only the first is seen",
        "split them into single images where the others matter",
    ),
    (
        Mark.INKS,
        "cmyk",
        "note",
        "in CMYK, converted without a colour profile",
        "convert them to sRGB with their profile where colours matter",
    ),
    (
        Mark.DEEP,
        "deep",
        "note",
        "of more than 8 bits a channel, scaled to 8 by the full range",
        "stretch them to the range in use first, where they look dark (--html FILE)",
    ),
    (
        Mark.ALPHA,
        "alpha",
        "note",
        "with transparency, laid over white",
        "--model.in_chans 4 keeps the opacity; or flatten them",
    ),
    (Mark.PALETTE, "palette", "note", "with a palette, looked up", "nothing to do"),
    (
        Mark.ROTATED,
        "rotated",
        "note",
        "turned upright by their EXIF orientation",
        "nothing to do; other programs may show them on their side",
    ),
)


def _finding(
    report: Report,
    rows: NDArray[np.bool_] | Ints,
    kind: str,
    severity: Severity,
    text: str,
    cure: str,
) -> Finding:
    """Of the images at these rows of the records."""
    places = report.positions[rows]
    examples = []
    for place in places[:EXAMPLES].tolist():
        why = report.details.get(place)
        examples.append(shown(report.names[place]) + (f" ({why})" if why else ""))
    return Finding(kind, severity, len(places), text, cure, tuple(examples), places=places)


def file_findings(report: Report) -> Iterator[Finding]:
    marks = report.records["marks"]
    for mark, kind, severity, text, cure in _BY_MARK:
        rows = (marks & mark) != 0
        if not rows.any():
            continue
        if severity == "stop" and report.config.bad_files == "skip":
            severity, cure = "warn", "replace or remove them; data.bad_files skip leaves them out"
        noun = counted(int(rows.sum()), "image file" if mark & BROKEN else "image")
        yield _finding(report, rows, kind, severity, f"{noun} {text}.", cure)
    yield from _emptied(report)
    yield from _too_many(report)
    grey = (marks & Mark.GREY) != 0
    readable = report.readable
    if grey.any() and (readable & ~grey).any():
        share = grey.sum() / readable.sum()
        yield _finding(
            report,
            grey,
            "grey",
            "note",
            f"{counted(int(grey.sum()), 'grey image')} ({share:.1%}) among coloured "
            "ones, repeated in all channels.",
            "nothing to do, unless grey goes with a class: then it is what is learnt",
        )


def _emptied(report: Report) -> Iterator[Finding]:
    """Classes that have training images, all of them broken."""
    train = report.splits.get("train")
    if train is None or report.readable.all():
        return
    inside = report.positions < len(train)
    labels = train.labels[report.positions[inside]]
    bad = ~report.readable[inside]
    seen = np.bincount(labels, minlength=len(report.classes))
    broken = np.bincount(labels[bad], minlength=len(report.classes))
    lost = np.flatnonzero((broken == seen) & (broken == report.counts["train"]) & (broken > 0))
    if len(lost):
        names = [report.classes[i] for i in lost]
        yield Finding(
            "emptied",
            "stop",
            len(names),
            f"All training images of {some(names)} are broken.",
            "replace them, or remove the class",
            examples=tuple(names[:EXAMPLES]),
            names=tuple(names),
        )


def _too_many(report: Report) -> Iterator[Finding]:
    """So many broken images that training, which skips them, meets DRAWS in a row and stops."""
    train = report.splits.get("train")
    if train is None or report.config.bad_files != "skip":
        return
    share = float((~report.readable[report.positions < len(train)]).mean())
    if LONG_RUN_EPOCHS * len(train) * share**DRAWS > 0.5:
        yield Finding(
            "too_many",
            "stop",
            1,
            f"{share:.0%} of the training images are broken: training that skips them "
            f"gives up when {DRAWS} in a row are.",
            "replace or remove them (--csv FILE: all); skipping is for a few",
        )


# -- findings: sizes, and what else lies there -----------------------------------------------------


def size_findings(report: Report) -> Iterator[Finding]:
    rows = np.flatnonzero(report.readable)
    seen = report.records[rows]
    if not len(seen):
        return
    sides = np.stack([seen["height"], seen["width"]])
    short, long = sides.min(0), sides.max(0)
    narrow = rows[long >= LONG_SIDE * short.astype(np.int64)]
    if len(narrow):
        yield _finding(
            report,
            narrow,
            "narrow",
            "note",
            f"{counted(len(narrow), 'image')} at least {LONG_SIDE} times as long as "
            "wide; evaluation sees the middle only.",
            "--data.fit pad shows all of them; or cut them",
        )
    middle = int(np.median(short))
    tiny = rows[short < TINY_SIDE]
    if len(tiny) and middle >= 2 * TINY_SIDE:
        yield _finding(
            report,
            tiny,
            "tiny",
            "note",
            f"{counted(len(tiny), 'image')} with a side below {TINY_SIDE} pixels, among "
            f"others of {middle:,}.",
            "remove thumbnails and icons",
        )
    if middle >= LARGE_SIDE and report.rate is not None:
        yield Finding(
            "large",
            "note",
            int((short >= LARGE_SIDE).sum()),
            f"Half of the images have a short side of {middle:,} pixels or more: "
            "decoding them takes most of the time.",
            f"vitc data pack {report.config.path} OUT.vitc --short-side 256",
        )


def litter_findings(report: Report) -> Iterator[Finding]:
    """What in a folder is no image of the data set and may have been meant as one."""
    config = report.config
    if config.source != "folder" or config.path is None:
        return
    root = Path(config.path).expanduser()
    kinds = ("loose", "links", "folders", "special", "other", "hidden")
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, kind in _strangers(root):
        found[kind].append(name)
    if found["loose"]:
        known = set(report.names)
        found["loose"] = [name for name in found["loose"] if shown(name) not in known]
    kinds_of: tuple[tuple[str, Severity, str, str], ...] = (
        (
            "loose",
            "warn",
            "image in no class folder/images in no class folder, left out",
            "move them into the folder of their class",
        ),
        (
            "links",
            "warn",
            "symbolic link to nothing/symbolic links to nothing, passed over",
            "repair or remove them",
        ),
        (
            "folders",
            "warn",
            "folder named like an image/folders named like images",
            "rename them; images inside are read as any others",
        ),
        (
            "special",
            "warn",
            "pipe, socket or device/pipes, sockets or devices, passed over",
            "remove them",
        ),
        (
            "other",
            "note",
            "file that is no image/files that are no images, passed over",
            "nothing to do, unless they are images: then rename or convert them",
        ),
        (
            "hidden",
            "note",
            "hidden file or folder/hidden files and folders, passed over",
            "nothing to do, unless they are images: then rename them",
        ),
    )
    for kind, severity, words, cure in kinds_of:
        names = sorted(found[kind])
        if names:
            one, several = words.split("/")
            text = f"{counted(len(names), one, several)}: {some(names)}."
            shown_names = tuple(map(shown, names))
            yield Finding(
                kind, severity, len(names), text, cure, shown_names[:EXAMPLES], names=shown_names
            )


def _strangers(root: Path) -> Iterator[tuple[str, str]]:
    """Path below the root, and what it is, of all that is no image file with a fitting name."""
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
            suffix = entry.name.rpartition(".")[2].lower()
            is_image = "." in entry.name and suffix in IMAGE_SUFFIXES
            if entry.name.startswith("."):
                yield path, "hidden"
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:
                yield path, "links"
                continue
            if stat.S_ISDIR(mode):
                stack.append((entry.path, f"{path}/"))
                if is_image:
                    yield path, "folders"
            elif not stat.S_ISREG(mode):
                yield path, "special"
            elif not is_image:
                yield path, "other"
            elif not below or below[:-1].lower() in SPLIT_OF:
                yield path, "loose"  # if it is not in a class of that name
