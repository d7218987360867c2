"""What does reading an image by Pillow need: silence, and the orientation of the camera?"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from PIL import ExifTags, Image

from vitc.data.store import Pixels

_lock = threading.Lock()  # warnings.catch_warnings replaces a list that all threads share


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread of the parent may hold it forever
    os.register_at_fork(after_in_child=_renew_lock)


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's warnings, all on files that it then reads or rejects."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _has_metadata(data: bytes) -> bool:
    """Whether an APP1 segment (EXIF or XMP) precedes the picture."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0xE1, 0xDA):
            return marker == 0xE1
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def jpeg_orientation(data: bytes) -> int:
    """1 … 8. Only files with EXIF or XMP pay for Pillow's reading of the header."""
    if not _has_metadata(data):
        return 1
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return orientation_of(image)
    except Exception:  # damaged metadata; the pixels are good
        return 1


def orientation_of(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's readers raise nearly anything on garbage
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


class Turn(NamedTuple):
    """How stored rows and columns become upright: swapped, then each reversed or not."""

    swap: bool
    rows: bool
    columns: bool


def turn_of(orientation: int) -> Turn:
    """Of an EXIF orientation (EXIF 2.3, tag 0x0112)."""
    return Turn(
        orientation in (5, 6, 7, 8), orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    )


def turned(pixels: Pixels, turn: Turn) -> Pixels:
    if turn.swap:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if turn.rows else 1, :: -1 if turn.columns else 1]
