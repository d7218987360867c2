"""How are a million images and their names held in a few flat arrays? Free of torch.

A list of a million Python strings takes 100 MB in the main process and, page by page as reading
one writes to its reference count, the same again in every forked loader process. Arrays are shared.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from vitc.data.broken import file_bytes
from vitc.errors import BrokenFileError

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Stored: TypeAlias = "bytes | Pixels"  # an encoded image, or uint8 (H, W, C)

OPEN_FILES = 64  # a process may have 1,024; a data set may have more shards than that


class Store(Protocol):
    """Images that can be read by their number, in any order, from any process.

    It is pickled or forked into loader processes, and opens its files when it is first read there.
    """

    def read(self, place: int) -> Stored:
        """The bytes of an image file, or pixels uint8 (H, W, C). Raises BrokenFileError."""


class Sampled(Store, Protocol):
    """A store that can read parts of an image; `Split.sample` reads those of others whole."""

    def sample(self, place: int, limit: int) -> bytes:
        """What identifies an image: its size and at most `limit` bytes of it, spread over it; 0:
        all. Empty: the store does not let it be read. Called from several threads. Raises
        BrokenFileError."""


PIECES = 4  # of a sample


def pieces(size: int, limit: int) -> list[tuple[int, int]]:
    """(offset, length) of a sample of at most `limit` of `size` bytes; 0: all."""
    if not limit or size <= limit:
        return [(0, size)]
    length = limit // PIECES
    return [((size - length) * i // (PIECES - 1), length) for i in range(PIECES)]


def sample_of(stored: Stored, limit: int) -> bytes:
    """As `Sampled.sample`, of an image that was read."""
    if isinstance(stored, bytes):
        parts = [stored[at : at + length] for at, length in pieces(len(stored), limit)]
        return b"".join([b"%d " % len(stored), *parts])
    return b"%d %d %d " % stored.shape + stored.tobytes()


class Names(Sequence[str]):
    """Strings as one array of UTF-8 and one of their ends; bytes that are not text are kept.

    blob: uint8; ends: int64 (n,).
    """

    def __init__(self, blob: Pixels, ends: Ints) -> None:
        self.blob, self.ends = blob, ends

    @staticmethod
    def of(texts: Iterable[str]) -> Names:
        """The same strings, flat; Names are returned unchanged."""
        if isinstance(texts, Names):
            return texts
        raw = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([len(r) for r in raw], dtype=np.int64)
        return Names(np.frombuffer(b"".join(raw), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self)), dtype=np.int64))
        at = range(len(self))[index]
        start = int(self.ends[at - 1]) if at else 0
        return _text(self.blob[start : int(self.ends[at])].tobytes())

    def __iter__(self) -> Iterator[str]:
        raw = self.blob.tobytes()
        start = 0
        for chunk in range(0, len(self), 4096):  # not all n numbers as Python objects at once
            for end in self.ends[chunk : chunk + 4096].tolist():
                yield _text(raw[start:end])
                start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.blob, other.blob)
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def take(self, positions: Ints) -> Names:
        """The texts at `positions`, in that order."""
        lengths = np.diff(self.ends, prepend=0)[positions]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = self.ends[positions] - lengths
        blob = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        for first in range(0, len(positions), 65536):  # the numbers of all bytes would take 8x more
            part = slice(first, first + 65536)
            long, begin = lengths[part], int(ends[first] - lengths[first])
            inside = np.arange(int(long.sum())) - np.repeat(np.cumsum(long) - long, long)
            blob[begin : begin + len(inside)] = self.blob[np.repeat(starts[part], long) + inside]
        return Names(blob, ends)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def label_codes(texts: Iterable[str]) -> tuple[Ints, list[str]]:
    """For each string its index, int64 (n,), in the distinct ones, in order of appearance."""
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(text, len(known)) for text in texts), np.int64)
    return codes, list(known)


def name_key(name: str) -> str:
    """The name as it compares equal on any system: macOS may store é as e and an accent."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def shown(name: str) -> str:
    """The name with bytes that are not text escaped, so that it can be printed and saved."""
    if name.isascii():
        return name
    return name_key(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# -- one file an image ----------------------------------------------------------------------------


class Files:
    """A store of image files below a folder; a million Path objects would take a gigabyte.

    names: their paths below the root, with "/"; shown: those names as they can be printed.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root, self.names = root, Names.of(names)
        plain = bool((self.names.blob < 128).all())  # ASCII, as most are: quickly decided
        self.shown = self.names if plain else Names.of(map(shown, self.names))

    def path(self, place: int) -> Path:
        return self.root / self.names[place]

    def read(self, place: int) -> bytes:
        return file_bytes(self.path(place), self.shown[place])

    def marks(self, places: Ints) -> Ints:
        """By which files are known to be as they were, int64 (n, 4): inode, size, and the times of
        modification and of change in ns. Raises OSError."""
        found = [os.stat(os.path.join(self.root, self.names[i])) for i in places.tolist()]
        rows = [(f.st_ino, f.st_size, f.st_mtime_ns, f.st_ctime_ns) for f in found]
        return np.array(rows, np.int64).reshape(-1, 4)

    def sample(self, place: int, limit: int) -> bytes:
        name = self.names[place]
        try:
            wait_for_no_pipe = getattr(os, "O_NONBLOCK", 0)
            file = os.open(os.path.join(self.root, name), os.O_RDONLY | wait_for_no_pipe)
            try:
                size = os.fstat(file).st_size
                parts = [os.pread(file, length, at) for at, length in pieces(size, limit)]
            finally:
                os.close(file)
        except OSError as e:
            raise unreadable(name, str(e.strerror)) from e
        return b"".join([b"%d " % size, *parts])


# -- files that stay open -------------------------------------------------------------------------


@dataclass(eq=False)
class OpenFiles:
    """Reads ranges of files that must not change; keeps the latest few open, in each process.

    stamps: int64 (files, 2): size in bytes and time of change in ns, as when they were indexed.
    """

    paths: Names
    stamps: Ints
    _open: OrderedDict[int, int] = field(default_factory=OrderedDict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "stamps": self.stamps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, file: int, offset: int, size: int, name: str) -> bytes:
        """`size` bytes from `offset`. Raises BrokenFileError: the file changed, or is too short."""
        try:
            with self._lock:  # a file is not closed while another thread reads from it
                data = os.pread(self._handle(file, name), size, offset)
        except OSError as e:
            raise unreadable(name, f"{self.paths[file]}: {e.strerror}") from e
        if len(data) != size:
            raise unreadable(name, f"{self.paths[file]} ends before it")
        return data

    def sample(self, file: int, offset: int, size: int, name: str, limit: int) -> bytes:
        """As `Sampled.sample`, of `size` bytes from `offset`."""
        parts = [self.read(file, offset + at, n, name) for at, n in pieces(size, limit)]
        return b"".join([b"%d " % size, *parts])

    def _handle(self, file: int, name: str) -> int:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        handle = os.open(self.paths[file], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if stamp(os.fstat(handle)) != tuple(self.stamps[file].tolist()):
            os.close(handle)
            raise unreadable(name, f"{self.paths[file]} has changed since it was indexed")
        self._open[file] = handle
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return handle

    def __del__(self) -> None:
        for handle in getattr(self, "_open", {}).values():
            os.close(handle)


def stamp(status: os.stat_result) -> tuple[int, int]:
    """By which a file is known to be the same: size in bytes, time of change in ns."""
    return status.st_size, status.st_mtime_ns


def unreadable(name: str, why: str) -> BrokenFileError:
    return BrokenFileError(
        f"{name!r} cannot be used: {why}.",
        "If the files have changed, start again. --data.bad_files skip leaves broken images out.",
        why,
    )


@dataclass(frozen=True, eq=False)
class Ranges:
    """A store of image files inside larger files: tar shards, Arrow files.

    file: int32 (n,); offset, size: int64 (n,) in bytes; names of n.
    """

    files: OpenFiles
    file: NDArray[np.int32]
    offset: Ints
    size: Ints
    names: Names

    def read(self, place: int) -> bytes:
        where = int(self.file[place]), int(self.offset[place]), int(self.size[place])
        return self.files.read(*where, self.names[place])

    def sample(self, place: int, limit: int) -> bytes:
        file, start, size = int(self.file[place]), int(self.offset[place]), int(self.size[place])
        return self.files.sample(file, start, size, self.names[place], limit)
