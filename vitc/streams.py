"""How does a program outlive its terminal? Output that may be closed, full or without a reader."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class Stream:
    """A text stream whose failure is remembered in `lost`, in words; then output is dropped.

    `needed`: its text is the result, so that the failure is raised as OSError too. `number`: the
    file descriptor that is turned to os.devnull after a failure, or Python would write what is
    left in its buffer as it exits, and fail again.
    """

    def __init__(self, stream: TextIO | None, needed: bool = False, number: int = 0) -> None:
        self.needed, self.number = needed, number
        self.lost = "" if stream is not None else "it is closed"
        self.inner: TextIO = stream if stream is not None else io.StringIO()  # never written

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not yet set: an object that is being unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def write(self, text: str) -> int:
        self._do(lambda: self.inner.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self.inner.flush)

    def _do(self, output: Any) -> None:
        try:
            if not self.lost:
                output()
            elif self.needed:
                raise OSError(self.lost)
        except (OSError, ValueError) as error:
            if isinstance(error, UnicodeError):
                raise
            if not self.lost:
                self.lost = getattr(error, "strerror", None) or str(error)
                self._turn_away()
            if self.needed:
                raise

    def _turn_away(self) -> None:
        if self.number:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.number)


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Stream, Stream]]:
    """sys.stdout and sys.stderr as Streams; only the former is needed."""
    before = sys.stdout, sys.stderr
    for stream in before:
        with contextlib.suppress(AttributeError, ValueError):  # file names may not be valid text
            cast(Any, stream).reconfigure(errors="backslashreplace")
    out = Stream(before[0], needed=True, number=1 if before[0] is sys.__stdout__ else 0)
    err = Stream(before[1], number=2 if before[1] is sys.__stderr__ else 0)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before


def fill_closed() -> None:
    """Open os.devnull where a standard stream is closed: a file opened later would take its
    number, and receive what C libraries write to stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the locale's encoding is ASCII, in
    which file names and class names beyond it could be neither opened nor printed."""
    if sys.flags.utf8_mode or sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
        return
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, arguments)
