"""Where images lie in large files, with their labels and splits; kept in the user's cache.

What tar shards and tables have in common. Free of torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitc.data.sources.folder import SPLIT_WORDS, name_key, some
from vitc.data.store import Ints, Names, OpenFiles, Ranges, Store
from vitc.errors import DataError, suggest
from vitc.files import write_atomically
from vitc.wording import counted

SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}


@dataclass(frozen=True, eq=False)
class Index:
    """The images of one file: offset, size int64 (n,) in bytes; code int64 (n,) into labels.

    stamp: size and time of change of the file, and of a copy where that is what is read.
    """

    stamp: tuple[int, ...]
    names: Names
    offset: Ints
    size: Ints
    labels: tuple[str, ...]
    code: Ints
    others: int = 0

    def __len__(self) -> int:
        return len(self.offset)


class Labelled(NamedTuple):
    """Images with their labels as texts, before there are classes.

    In a store, or files below root by their names. codes: int64 (n,), which of `labels`; splits:
    int64 (n,), which of `SPLIT_WORDS`; sizes: int64 (n,) bytes; order: the classes in order of
    label, where the source says it.
    """

    store: Store | None
    names: Names
    sizes: Ints
    labels: list[str]
    codes: Ints
    splits: Ints
    notes: list[str]
    order: list[str] | None = None
    root: Path = Path()


def joined(
    paths: Sequence[str],
    places: Sequence[str],
    stamps: Sequence[tuple[int, ...]],
    parts: Sequence[Index],
    splits: Ints,
    notes: list[str],
    order: list[str] | None = None,
) -> Labelled:
    """The images of several files as one.

    paths: of the files, with which the names begin, as far as they differ; places: of what is read
    for them.
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
    return Labelled(
        store, names, store.size, list(known), np.concatenate(codes), splits, notes, order
    )


def split_of_name(path: str) -> int:
    """The split that a word in a file's name tells, as an index into `SPLIT_WORDS`; else train."""
    words = re.split(r"[^a-z]+", os.path.basename(path).lower())
    told = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    return list(SPLIT_WORDS).index(told[0]) if told else 0


def classes_of(found: Labelled, where: str) -> tuple[tuple[str, ...], Ints]:
    """The classes, and the label of each image, int64 (n,).

    Classes are those of training images, in the order the source says; or else by number where all
    are numbers, by name otherwise. Raises DataError: one class, or others outside training.
    """
    present = np.zeros((len(SPLIT_WORDS), len(found.labels)), np.bool_)
    present[found.splits, found.codes] = True
    train = [text for text, there in zip(found.labels, present[0], strict=True) if there]
    if not train:
        raise DataError(
            f"{where} has no training images.",
            "The split of each image: train, val or test; without, train.",
        )
    strange = [
        text for i, text in enumerate(found.labels) if present[:, i].any() and not present[0, i]
    ]
    if strange:
        raise DataError(
            f"{where} has {counted(len(strange), 'class', 'classes')} outside training only: "
            f"{some(strange, 5)}.{suggest(strange[0], train)}",
            f"Those of training: {some(sorted(train), 10)}.",
        )
    if len(train) < 2:
        raise DataError(
            f"{where} has one class only, {train[0]!r}: there is nothing to tell apart.",
            "Labels may stand where they were not looked for: docs/sources.md.",
        )
    if found.order is not None:
        classes = [text for text in found.order if text in set(train)]
    elif all(re.fullmatch(r"0|[1-9][0-9]{0,17}", text) for text in train):
        classes = sorted(train, key=int)
    else:
        classes = sorted(train, key=name_key)
    place = {text: i for i, text in enumerate(classes)}
    order = np.array([place.get(text, -1) for text in found.labels], np.int64)
    return tuple(classes), order[found.codes]


# -- the cache -------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where what was found out about large files is kept; it may be deleted at any time."""
    place = os.environ.get("XDG_CACHE_HOME", "")
    return Path(place if os.path.isabs(place) else os.path.expanduser("~/.cache")) / "vitc"


def cache_file(kind: str, path: str, cache: Path | None = None) -> Path:
    """The index of the file `path` in the cache."""
    key = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return (cache or cache_folder()) / kind / f"{key}.index"


def save_index(file: Path, index: Index) -> None:
    """Written as a whole or not at all; where the cache cannot be written, it is made again."""
    head = json.dumps(
        {
            "stamp": index.stamp,
            "labels": index.labels,
            "others": index.others,
            "n": len(index),
        }
    ).encode()
    columns = (index.offset, index.size, index.code, index.names.ends)
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
    offset, size, code, ends = np.frombuffer(body, "<i8", 4 * n).astype(np.int64).reshape(4, n)
    names = Names(np.frombuffer(body, np.uint8, offset=32 * n).copy(), ends)
    return Index(
        tuple(head["stamp"]), names, offset, size, tuple(head["labels"]), code, int(head["others"])
    )
