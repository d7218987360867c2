"""When is an image file refused before its pixels are read, and how is a refusal worded?"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vitc.errors import BrokenFileError

MAX_PIXELS = 2**27  # 134 million, 403 MB as RGB: a 108-megapixel photo passes
MAX_FILE_BYTES = 2**30
_LEAVE_OUT = (
    "vitc train leaves such files out with --data.bad_files skip, vitc evaluate with --skip-broken."
)
_HINT = f"Replace or remove it; {_LEAVE_OUT}"


def broken(name: str, why: str, kind: str = "damaged", hint: str | None = None) -> BrokenFileError:
    return BrokenFileError(f"{name!r} cannot be used: {why}.", hint or _HINT, why, kind)


def unsupported(name: str, why: str, cure: str) -> BrokenFileError:
    """The file may be good, but cannot be read here; `cure`: what to do."""
    return broken(name, why, "unsupported", f"{cure} {_LEAVE_OUT}")


def file_bytes(file: Path, name: str) -> bytes:
    """A regular file's content. Raises BrokenFileError: empty, too large, or no regular file."""
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise broken(name, "it is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            why = f"its {status.st_size:,} bytes exceed {MAX_FILE_BYTES:,}"
            raise broken(name, why, "too large")
        data = file.read_bytes()
    except OSError as e:
        raise broken(name, e.strerror or str(e)) from e
    if not data:
        raise broken(name, "the file is empty")
    return data


def check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        why = f"its {width:,} x {height:,} pixels exceed the {MAX_PIXELS:,} allowed"
        raise broken(name, why, "too large")
