"""What is each image of a data set like? Free of torch.

Several processes read every image as in training and record a few hundred bytes of each.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitc.data.dataset import find_image
from vitc.data.decode import Header, examined, header, to_channels
from vitc.data.near_duplicates import MINI, miniature, perceptual_hash, small_grey
from vitc.data.pool import Progress, in_order
from vitc.data.sources.base import IMAGE_SUFFIXES, Split
from vitc.data.store import Ints, shown
from vitc.errors import BrokenFileError, RunError

CHUNK = 32  # images a task


class Mark(IntFlag):
    """What one image is; those of the first line are broken."""

    EMPTY, UNREADABLE, NO_IMAGE, TOO_LARGE, DAMAGED = 1, 2, 4, 8, 16
    DOUBT, SUFFIX, ANIMATED, ROTATED, DEEP, PALETTE, ALPHA, INKS, GREY, FLAT = (
        1 << i for i in range(5, 15)
    )


BROKEN = Mark.EMPTY | Mark.UNREADABLE | Mark.NO_IMAGE | Mark.TOO_LARGE | Mark.DAMAGED
RECORD = np.dtype(
    [
        ("marks", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("format", "S9"),
        ("mode", "S16"),
        ("content", "<u8", 2),
        ("pixels", "<u8", 2),
        ("hash", "<u8"),
        ("seconds", "<f4"),
    ]
)


# -- one image -------------------------------------------------------------------------------------


def _record(split: Split, index: int) -> tuple[NDArray[Any], NDArray[np.uint8], str]:
    """An image's RECORD (), its miniature, and why it is broken or doubted."""
    record, mini = np.zeros((), RECORD), np.zeros(MINI * MINI, np.uint8)
    name = split.names[index]
    started = time.perf_counter()
    try:
        stored = split.stored(index)
    except BrokenFileError as e:
        empty = split.sizes is not None and split.sizes[index] == 0
        record["marks"] = Mark.EMPTY if empty else Mark.UNREADABLE
        return record, mini, e.why
    try:
        if isinstance(stored, bytes):
            pixels, doubt = examined(stored, 3, name)
        else:
            pixels, doubt = to_channels(stored, 3), ""
    except BrokenFileError as e:
        assert isinstance(stored, bytes)
        kinds = {"too large": Mark.TOO_LARGE, "no image": Mark.NO_IMAGE}
        mark = kinds.get(e.kind, Mark.DAMAGED)
        named_image = mark == Mark.NO_IMAGE and header(stored) is not None
        record["marks"] = Mark.DAMAGED if named_image else mark
        return record, mini, e.why
    found: Header | None = None
    marks = Mark.DOUBT if doubt else Mark(0)
    if isinstance(stored, bytes):
        record["seconds"] = time.perf_counter() - started
        found = header(stored)
        record["content"] = _digest(stored)
    if found is not None:
        marks |= _marks(found, name)
        record["format"], record["mode"] = found.format.encode(), found.mode.encode()
    else:
        record["format"], record["mode"] = b"pixels", b"stored"
    record["height"], record["width"] = pixels.shape[:2]
    record["pixels"] = _digest(str(pixels.shape).encode(), np.ascontiguousarray(pixels).data)
    grey = small_grey(pixels)
    mini = miniature(grey)
    if mini.min() == mini.max() and (pixels == pixels[0, 0]).all():
        marks |= Mark.FLAT
    record["hash"], record["marks"] = perceptual_hash(grey), marks
    return record, mini, doubt


def _digest(*parts: bytes | memoryview) -> NDArray[np.uint64]:
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(part)
    return np.frombuffer(h.digest(), "<u8")


def _marks(found: Header, name: str) -> Mark:
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    named, format_ = Image.registered_extensions().get(f".{suffix}"), found.format
    named = "HEIF" if suffix in ("heic", "heif") else named
    same = {named, format_} <= {"BMP", "DIB"} or named == format_
    whether = {
        Mark.SUFFIX: suffix in IMAGE_SUFFIXES and not same,
        Mark.ANIMATED: found.animated,
        Mark.ROTATED: found.orientation != 1,
        Mark.DEEP: found.bits > 8,
        Mark.PALETTE: found.mode.startswith("P") and found.format != "GIF",
        Mark.ALPHA: found.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "+" in found.mode,
        Mark.INKS: found.mode in ("CMYK", "YCCK"),
        Mark.GREY: found.mode in ("1", "L", "LA", "I", "F") or found.mode.startswith("I;16"),
    }
    return Mark(sum(mark for mark, is_so in whether.items() if is_so))


# -- all images ------------------------------------------------------------------------------------


class Looked(NamedTuple):
    records: NDArray[Any]
    minis: NDArray[np.uint8]
    details: dict[int, str]


def _look(splits: dict[str, Split], positions: Sequence[int]) -> Looked:
    records = np.zeros(len(positions), RECORD)
    minis = np.zeros((len(positions), MINI * MINI), np.uint8)
    details = {}
    for row, position in enumerate(positions):
        name, index = find_image(splits, position)
        records[row], minis[row], why = _record(splits[name], index)
        if why:
            details[position] = why
    return Looked(records, minis, details)


def look_at_all(
    splits: dict[str, Split], positions: Ints, workers: int, progress: Progress | None
) -> Looked:
    """The records of the images at `positions`. Raises RunError: a process died on a file."""
    records = np.zeros(len(positions), RECORD)
    minis = np.zeros((len(positions), MINI * MINI), np.uint8)
    details: dict[int, str] = {}
    chunks = [positions[i : i + CHUNK].tolist() for i in range(0, len(positions), CHUNK)]
    done = 0
    try:
        look = functools.partial(_look, splits)
        with contextlib.closing(in_order(look, chunks, workers)) as parts:
            for part in parts:
                end = done + len(part.records)
                records[done:end], minis[done:end] = part.records, part.minis
                details |= part.details
                done = end
                if progress is not None:
                    progress(done, len(positions))
    except BrokenProcessPool as e:
        split, index = find_image(splits, int(positions[done]))
        raise RunError(
            f"A worker process died on {shown(splits[split].names[index])!r} or one of the "
            f"{2 * workers * CHUNK:,} images after it: out of memory, or a bug in a decoder.",
            "Fewer --workers need less memory.",
        ) from e
    return Looked(records, minis, details)
