"""Where are the images inside large files? What tar shards and tables have in common.

The files that a pattern names, the images of several files as one, and the index of each file,
which is kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vitc.data.litter import is_litter, listed
from vitc.data.sources.base import Split
from vitc.data.store import Ints, Names, OpenFiles, Ranges
from vitc.errors import ConfigError, suggest
from vitc.files import write_atomically

MAX_BRACES = 1_000_000  # files that one pattern may stand for


@dataclass(frozen=True, eq=False)
class Index:
    """The images of one file: offset, size int64 (n,) in bytes; code int64 (n,) into labels.

    stamp: size and time of change of the file, and of a copy where that is what is read. others:
    members that are not used, unused: some of them; without: labels that are none. keys: of .json
    members, but those of labels. marks: the keys that may speak of a split with their values, as
    JSON; mark: int64 (n,) into marks, where there are any. doubt: `tar_labels.short_texts`.
    """

    stamp: tuple[int, ...]
    names: Names
    offset: Ints
    size: Ints
    labels: tuple[str, ...]
    code: Ints
    others: int = 0
    without: int = 0
    unused: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    doubt: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    mark: Ints | None = None

    def __len__(self) -> int:
        return len(self.offset)


def joined(
    paths: Sequence[str],
    places: Sequence[str],
    stamps: Sequence[tuple[int, ...]],
    parts: Sequence[Index],
) -> tuple[Split, list[str]]:
    """The images of several files as one, and the texts that their labels are indices into.

    paths: of the files; the images' names begin with them, as far as they differ. places: of the
    files that are read instead.
    """
    known: dict[str, int] = {}
    codes = [
        np.array([known.setdefault(text, len(known)) for text in part.labels], np.int64)[part.code]
        for part in parts
    ]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    bases = [os.path.relpath(path, folder or None) for path in paths]
    names = Names.of(
        f"{base}/{name}" for base, part in zip(bases, parts, strict=True) for name in part.names
    )
    store = Ranges(
        files=OpenFiles(Names.of(places), np.array(stamps, np.int64)),
        file=np.repeat(np.arange(len(paths), dtype=np.int32), [len(part) for part in parts]),
        offset=np.concatenate([part.offset for part in parts]),
        size=np.concatenate([part.size for part in parts]),
        names=names,
    )
    return Split(np.concatenate(codes), names, store=store, sizes=store.size), list(known)


# -- which files -----------------------------------------------------------------------------------


def find_files(spec: str, suffixes: Sequence[str]) -> list[str]:
    """The files that a path or pattern names, in order. Raises ConfigError: there are none."""
    found: list[str] = []
    for part in spec.split("::"):
        for path in braces(os.path.expanduser(part)):
            if os.path.isdir(path):
                inside = [name for name in listed(path) if not is_litter(name)]
                matches = [os.path.join(path, n) for n in inside if n.endswith(tuple(suffixes))]
            elif os.path.exists(path):  # a name may have brackets in it
                matches = [path]
            else:
                matches = glob.glob(path) if glob.has_magic(path) else []
            if not matches:
                folder = Path(path).parent
                if not folder.is_dir():
                    raise ConfigError(f"There is no folder {folder}.")
                near = suggest(Path(path).name, listed(str(folder)))
                like = " like" if glob.has_magic(path) or os.path.isdir(path) else ""
                hint = f"Supported: {', '.join(suffixes)}."
                raise ConfigError(f"There is no file{like} {path}.{near}", hint)
            found += sorted(matches)
    doubled = len(found) - len(set(found))
    if doubled:
        raise ConfigError(f"{spec!r} names {doubled:,} files twice.")
    return found


def braces(pattern: str) -> list[str]:
    """`a{00..02}.tar` -> a00.tar, a01.tar, a02.tar; `{x,y}` -> x, y; several multiply."""
    choices: list[Sequence[str]] = []
    limit = MAX_BRACES
    for i, piece in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", piece)
        choice: Sequence[str] = [piece]
        if i % 2 and numbers:
            first, last = int(numbers[1]), int(numbers[2])
            if first > last or last - first >= limit:
                raise ConfigError(
                    f"The range {{{piece}}} must go up, and name at most {MAX_BRACES:,} files "
                    "in all."
                )
            width = len(numbers[1]) if numbers[1].startswith("0") else 0
            choice = [f"{n:0{width}d}" for n in range(first, last + 1)]
        elif i % 2:
            choice = piece.split(",") if "," in piece else ["{" + piece + "}"]
        limit //= len(choice)
        choices.append(choice)
    return ["".join(parts) for parts in itertools.product(*choices)]


# -- the cache -------------------------------------------------------------------------------------


_TEXTS = ("unused", "keys", "doubt", "marks")  # fields of an index that hold texts
_instead: ContextVar[Path | None] = ContextVar("cache folder", default=None)


@contextmanager
def cache_aside() -> Iterator[None]:
    """Within it nothing is written to the cache folder, and what is there can be read."""
    there = cache_folder()
    with TemporaryDirectory(prefix="vitc-") as place:
        for file in there.glob("*/*"):
            link = Path(place, file.relative_to(there))
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file)
        token = _instead.set(Path(place))
        try:
            yield
        finally:
            _instead.reset(token)


def cache_folder() -> Path:
    """The folder of indexes of large files; it may be deleted at any time."""
    if (instead := _instead.get()) is not None:
        return instead
    place = os.environ.get("XDG_CACHE_HOME", "")
    return Path(place if os.path.isabs(place) else os.path.expanduser("~/.cache")) / "vitc"


def cache_file(kind: str, path: str) -> Path:
    """The index of the file `path` in the cache."""
    key = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return cache_folder() / kind / f"{key}.index"


def save_index(file: Path, index: Index) -> None:
    """Written as a whole or not at all; where the cache cannot be written, it is made again."""
    about = {name: getattr(index, name) for name in ("stamp", "labels", "others", "without")}
    about |= {name: getattr(index, name) for name in _TEXTS}
    head = json.dumps({**about, "n": len(index)}).encode()
    columns = [index.offset, index.size, index.code, index.names.ends]
    columns += [] if index.mark is None else [index.mark]
    body = head + b"\n" + b"".join(c.astype("<i8").tobytes() for c in columns)
    body += index.names.blob.tobytes()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, hashlib.sha256(body).digest() + body)


def load_index(file: Path, stamp: tuple[int, ...]) -> Index | None:
    """What was saved, if it is whole and of the file as it is now."""
    try:
        raw = file.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        line, _, body = raw[32:].partition(b"\n")
        head: dict[str, Any] = json.loads(line)
    except (OSError, ValueError):
        return None
    if tuple(head["stamp"][: len(stamp)]) != stamp:
        return None
    n = int(head["n"])
    texts = {name: tuple(head.get(name, ())) for name in _TEXTS}
    wide = 5 if texts["marks"] else 4
    numbers = np.frombuffer(body, "<i8", wide * n).astype(np.int64).reshape(wide, n)
    offset, size, code, ends = numbers[:4]
    names = Names(np.frombuffer(body, np.uint8, offset=8 * wide * n).copy(), ends)
    counts = int(head["others"]), int(head.get("without", 0))
    return Index(
        *(tuple(head["stamp"]), names, offset, size, tuple(head["labels"]), code, *counts),
        unused=texts["unused"],
        keys=texts["keys"],
        doubt=texts["doubt"],
        marks=texts["marks"],
        mark=numbers[4] if texts["marks"] else None,
    )
