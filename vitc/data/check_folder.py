"""What in a folder is no image of the data set and may have been meant as one?"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from vitc.data.check_report import Finding, Kind, Report, of_names
from vitc.data.litter import is_image, is_litter, own_output
from vitc.data.sources.base import IMAGE_SUFFIXES
from vitc.data.split_words import SPLIT_OF
from vitc.data.store import shown
from vitc.wording import counted

_UNLESS = "nothing to do, unless they are images: then rename or convert them"
STRAY = {
    "folder of vitc": Kind(
        "own_output",
        "note",
        "(a run, study, model or report) among the images, passed over",
        "nothing to do; --out FOLDER writes elsewhere",
    ),
    "image": Kind(
        "loose", "warn", "in no class folder, left out", "move them into the folder of their class"
    ),
    "symbolic link": Kind("links", "warn", "to nothing, ignored", "repair or remove them"),
    "folder": Kind(
        "folders", "warn", "named like an image", "rename; images inside are read as any others"
    ),
    "special file": Kind("special", "warn", "(pipe, socket, device), ignored", "remove them"),
    "other file": Kind("other", "note", "in no image format, ignored", _UNLESS),
    "hidden file": Kind("hidden", "note", "(or of a file manager), ignored", _UNLESS),
}


def stray_findings(report: Report, end: float = math.inf) -> Iterator[Finding]:
    """What in a folder is no image of the data set and may have been meant as one.

    end: the time (`time.monotonic`) at which no more of the folder is looked at.
    """
    config = report.config
    if config.source != "folder" or config.path is None:
        return
    found: dict[str, list[str]] = {noun: [] for noun in STRAY}
    for name, noun in _strays(Path(config.path).expanduser()):
        found[noun].append(name)
        if time.monotonic() > end:
            break
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
        inside = {entry.name for entry in entries}
        if below and own_output(folder, inside):
            yield below.rstrip("/"), "folder of vitc"
            continue
        for entry in entries:
            path = below + entry.name
            named_image = is_image(entry.name, IMAGE_SUFFIXES)
            if is_litter(entry.name):
                yield path, "hidden file"
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:
                yield path, "symbolic link"
                continue
            if stat.S_ISDIR(mode):
                stack.append((entry.path, f"{path}/"))
                if named_image:
                    yield path, "folder"
            elif not stat.S_ISREG(mode):
                yield path, "special file"
            elif not named_image:
                yield path, "other file"
            elif not below or below[:-1].lower() in SPLIT_OF:
                yield path, "image"  # if it is not in a class of that name
