"""What is each image of a data set like? Free of torch.

Several processes read every image as in training and record a few hundred bytes of each.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
import time
import warnings
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vitc.data.dataset import find_image
from vitc.data.decode import Header, examined, header, to_channels
from vitc.data.near_duplicates import FLAT_GREY, MINI, miniature, perceptual_hash, small_grey
from vitc.data.pool import Progress, in_order
from vitc.data.sources.base import IMAGE_SUFFIXES, Split
from vitc.data.store import Ints, Pixels, shown
from vitc.errors import BrokenFileError, RunError

CHUNK = 32  # images a task
COLOURS = 48  # of 4 x 4 patches
FLAT_COLOURS = 6  # levels of 255 between the patches of an image of a single colour, or nearly
# Beginnings of files that are no images, after white space; then those of ISO media files.
_TEXT = re.compile(
    rb"\s*(?:\xef\xbb\xbf)?\s*(?:<(?:!doctype|html|head|body|\?xml|svg)|[{\[]\s*\")", re.I
)
_HEIF = re.compile(rb"....ftyp(?:hei|hev|mif1|msf1|avi[fs])", re.DOTALL)
_CAMERAS = ("JPEG", "MPO", "TIFF", "WEBP")  # formats with EXIF that is read without the pixels
_TAKEN = ((36867, 37521), (36868, 37522))  # EXIF: when taken or digitised, parts of that second


class Mark(IntFlag):
    """What one image is; those of the first line are broken."""

    EMPTY, UNREADABLE, NO_IMAGE, TOO_LARGE, DAMAGED = 1, 2, 4, 8, 16
    DOUBT, SUFFIX, ANIMATED, ROTATED, DEEP, PALETTE, ALPHA, INKS, GREY, FLAT = (
        1 << i for i in range(5, 15)
    )
    TEXT, HEIF, UNSUPPORTED, NEARLY_FLAT = (1 << i for i in range(15, 19))


BROKEN = Mark(31) | Mark.TEXT | Mark.HEIF | Mark.UNSUPPORTED
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
        ("colours", "u1", COLOURS),
        ("taken", "<f8"),
        ("camera", "<u8"),
        ("seconds", "<f4"),
    ]
)


# -- one image -------------------------------------------------------------------------------------


def _record(split: Split, index: int) -> tuple[NDArray[Any], NDArray[np.uint8], str]:
    """An image's RECORD (), its miniature, and why it is broken or doubted."""
    record, mini = np.zeros((), RECORD), np.zeros(MINI * MINI, np.uint8)
    record["taken"] = np.nan
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
        record["marks"] = _why_not(stored, e.kind)
        cure = (e.hint or "").partition(" Training leaves")[0]
        return record, mini, f"{e.why}. {cure}" if e.kind == "unsupported" else e.why
    found: Header | None = None
    marks = Mark.DOUBT if doubt else Mark(0)
    if isinstance(stored, bytes):
        record["seconds"] = time.perf_counter() - started
        found = header(stored)
        record["content"] = _digest(stored)
        record["taken"], record["camera"] = taken(stored)
    if found is not None:
        marks |= _marks(found, name)
        record["format"], record["mode"] = found.format.encode(), found.mode.encode()
    else:
        record["format"], record["mode"] = b"pixels", b"stored"
    record["height"], record["width"] = pixels.shape[:2]
    record["pixels"] = _digest(str(pixels.shape).encode(), np.ascontiguousarray(pixels).data)
    grey = small_grey(pixels)
    mini = miniature(grey)
    record["colours"] = colours(pixels)
    patches = np.ptp(record["colours"].reshape(-1, 3), axis=0)
    if mini.std() < FLAT_GREY and patches.max() <= FLAT_COLOURS:
        marks |= Mark.FLAT if (pixels == pixels[0, 0]).all() else Mark.NEARLY_FLAT
    record["hash"], record["marks"] = perceptual_hash(grey), marks
    return record, mini, doubt


def _digest(*parts: bytes | memoryview) -> NDArray[np.uint64]:
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(part)
    return np.frombuffer(h.digest(), "<u8")


def _why_not(data: bytes, kind: str) -> Mark:
    """What a file is that cannot be read, as far as its beginning shows; kind: of the error."""
    if _TEXT.match(data):
        return Mark.TEXT
    if _HEIF.match(data):
        return Mark.HEIF if kind in ("unsupported", "no image") else Mark.DAMAGED
    kinds = {"too large": Mark.TOO_LARGE, "unsupported": Mark.UNSUPPORTED}
    if kind == "no image":
        return Mark.NO_IMAGE if header(data) is None else Mark.DAMAGED
    return kinds.get(kind, Mark.DAMAGED)


def colours(pixels: Pixels) -> NDArray[np.uint8]:
    """uint8 (COLOURS,): the mean colours of 4 x 4 patches of a picture (H, W, 3)."""
    height, width = pixels.shape[:2]
    step = max(1, min(height, width) // 64)  # every pixel of a large picture is not needed
    small = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
    return np.asarray(small.resize((4, 4), Image.Resampling.BOX)).reshape(-1)


def taken(data: bytes) -> tuple[float, int]:
    """When an image was taken, in seconds from any fixed time, and a number for its camera.

    By EXIF; the time is nan where it is missing or cannot be read.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=_CAMERAS) as image:
            warnings.simplefilter("ignore")
            exif = image.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif) if exif else {}
            camera = hashlib.blake2b(f"{exif.get(271)}/{exif.get(272)}".encode(), digest_size=8)
            for key, part in _TAKEN:
                if key in details:
                    at = datetime.strptime(str(details[key]).strip("\0 "), "%Y:%m:%d %H:%M:%S")
                    second = at.replace(tzinfo=UTC).timestamp()
                    digits = re.match(r"\d*", str(details.get(part, "")))
                    fraction = float(f"0.{digits[0] if digits else ''}0")
                    return second + fraction, int.from_bytes(camera.digest(), "little")
    except Exception:  # Pillow's readers raise nearly anything on damaged metadata
        pass
    return np.nan, 0


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
