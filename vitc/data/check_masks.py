"""Are there masks among the images? They would be trained on as images of the class."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from vitc.data.check_report import EXAMPLES, Finding, Report
from vitc.data.name_groups import stem_of
from vitc.data.store import shown

LEAST, SHARE = 3, 0.01  # masks, and their share of the images, that are reported
# Behind the name of the image, with a number where it has several: a_mask.png, a.mask_2.png.
_MASK = re.compile(
    r"(.+)[ ._-](?:masks?|seg|segmentation|labels?|gt|ground_?truth)(?:[ ._-]?\d{1,2})?",
    re.IGNORECASE | re.DOTALL,
)
# Folders that stand beside each other and have files of the same names in them.
MASKS = frozenset(
    ("mask", "masks", "seg", "segmentation", "segmentations", "labels", "annotations", "gt")
)
IMAGES = frozenset(("image", "images", "img", "imgs", "photos", "pictures", "original"))


def mask_findings(report: Report) -> Iterator[Finding]:
    """Files named like another image with a word for masks, in their name or that of a folder."""
    names = list(report.names)
    sides = report.sides
    images: dict[tuple[str, str], int] = {}
    suspects: dict[int, tuple[str, str]] = {}
    for place, name in enumerate(names):
        folder, stem, suspect = _read(name)
        if suspect:
            suspects[place] = folder, stem
        else:
            images[folder, stem] = place
    pairs = [(place, images[key]) for place, key in suspects.items() if key in images]
    if len(pairs) < max(LEAST, SHARE * len(names)):
        return
    apart = sum(bool(sides[mask] != sides[image]) for mask, image in pairs)
    examples = [f"{shown(names[mask])!r} of {shown(names[image])!r}" for mask, image in pairs]
    text = (
        f"{len(pairs):,} of {len(names):,} images look like masks of others by their names: "
        f"{', '.join(examples[:2])}. They are trained on as images of their class"
    )
    text += f", {apart:,} of them in another split than their image." if apart else "."
    cure = "move the masks out of the data set (vitc data check --csv FILE lists them)"
    folders = {
        _folder(names[image]) for mask, image in pairs if _folder(names[mask]).lower() in MASKS
    }
    if len(folders) == 1 and report.config.source == "folder":
        cure += f", or, where every class holds such folders, --data.splits train={folders.pop()}"
    yield Finding(
        "masks",
        "warn",
        len(pairs),
        text,
        cure,
        tuple(examples[:EXAMPLES]),
        places=np.array([mask for mask, _ in pairs], np.int64),
        figures={"apart": apart},
    )


def _read(name: str) -> tuple[str, str, bool]:
    """The folder and the stem that an image and its masks share; whether it may be a mask."""
    folder, last, stem = name.rpartition("/")[0], _folder(name).lower(), stem_of(name)
    found = _MASK.fullmatch(stem)
    mask = last in MASKS
    if mask or last in IMAGES:
        folder = folder.rpartition("/")[0]
    return folder, (found[1].rstrip(" ._-") if found else stem), mask or found is not None


def _folder(name: str) -> str:
    """The folder that a file is in, without those above it."""
    return name.rpartition("/")[0].rpartition("/")[2]
