"""Which files and images are broken or odd, and which sizes? Free of torch.

Each finding is a pure function of what `check_images` recorded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vitc.data.check_images import BROKEN, Mark
from vitc.data.check_report import Finding, Kind, Report, of_images, of_names
from vitc.machine import install_line

LONG_SIDE = 4  # times the short one
TINY_SIDE, LARGE_SIDE = 32, 320  # pixels of the short side
DRAWS = 11  # broken images in a row at which training stops: `sampling.stand_ins`
LONG_RUN_EPOCHS = 100

# -- single files: in this order, which is worst first within a severity ---------------------------

_LEAVE_OUT = "--data.bad_files skip leaves them out; or replace or remove them (--csv FILE: all)"
_NOTHING = "nothing to do"
BY_MARK = {
    Mark.UNREADABLE: Kind("unreadable", "stop", "that cannot be opened or read", _LEAVE_OUT),
    Mark.DAMAGED: Kind("damaged", "stop", "that cannot be decoded", _LEAVE_OUT),
    Mark.NO_IMAGE: Kind("no_image", "stop", "not in a supported format", _LEAVE_OUT),
    Mark.TEXT: Kind(
        "text",
        "stop",
        "with a web page or other text inside: a failed download?",
        "download or export them again, or remove them; --data.bad_files skip leaves them out",
    ),
    Mark.HEIF: Kind(
        "heif",
        "stop",
        "in HEIC or AVIF, whatever their suffix, which cannot be read here",
        f"{install_line('heif')} reads HEIC; or convert them to JPEG; or leave them out with "
        "--data.bad_files skip",
    ),
    Mark.UNSUPPORTED: Kind(
        "unsupported",
        "stop",
        "of a layout that cannot be read here",
        "convert them to 8-bit PNG or JPEG, or install what their lines name; or leave them out "
        "with --data.bad_files skip",
    ),
    Mark.EMPTY: Kind("empty", "stop", "of 0 bytes", _LEAVE_OUT),
    Mark.TOO_LARGE: Kind("bomb", "stop", "with too many pixels or bytes (a bomb?)", _LEAVE_OUT),
    Mark.DOUBT: Kind(
        "doubtful",
        "warn",
        "read, but the decoder had to guess: parts may be made up",
        "look at them (--html FILE), and remove what is spoilt",
    ),
    Mark.FLAT: Kind("constant", "warn", "of a single colour", "remove them, unless intended"),
    Mark.NEARLY_FLAT: Kind(
        "nearly_constant", "warn", "of nearly a single colour", "remove them, unless intended"
    ),
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
        if mark is Mark.TEXT and (size := _one_size(report, rows)):
            kind = kind._replace(text=f"of {size:,} bytes each, {kind.text}")
        yield of_images(report, rows, "image file" if mark & BROKEN else "image", kind)
    yield from _training_without(report)
    grey, readable = (marks & Mark.GREY) != 0, report.readable
    if grey.any() and (readable & ~grey).any():
        text = f"({grey.sum() / readable.sum():.1%}) among coloured ones, repeated in all channels"
        cure = f"{_NOTHING}, unless grey goes with a class: then the model learns that"
        yield of_images(report, grey, "grey image", Kind("grey", "note", text, cure))


def _one_size(report: Report, rows: NDArray[np.bool_]) -> int:
    """The size that all of several files have in common; 0: they differ, or it is not known."""
    sizes = [split.sizes for split in report.splits.values() if split.sizes is not None]
    if len(sizes) < len(report.splits) or rows.sum() < 2:
        return 0
    found = np.unique(np.concatenate(sizes)[report.positions[rows]])
    return int(found[0]) if len(found) == 1 else 0


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
