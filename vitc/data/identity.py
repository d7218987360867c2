"""Are these the same images? A digest of every image, and what changed between two data sets.

The digest of an image is a hash of its size and bytes. Of a large set (`SMALL_SET`) at most
`SAMPLE` bytes of an image are read, spread over it, so that opening stays cheap; the digests of its
files are kept in the user's cache folder, valid while no file's inode, size, time of modification
or time of change differs. Free of torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitc.data.sources.base import Split
from vitc.data.sources.index import cache_folder
from vitc.data.split_words import SPLITS
from vitc.data.store import Files, Ints, Names, name_key
from vitc.errors import CheckpointError
from vitc.files import write_atomically
from vitc.wording import few

SMALL_SET = 64 << 20  # bytes of images, up to which all of them are read
SAMPLE = 1 << 16  # bytes of an image that are read in larger sets
BEFORE = len(SPLITS)  # split of images that were trained on before the data changed
SETTLED_NS = 2 * 10**9  # since the last change of a file, before its digest is kept
UNKNOWN = 0  # digest of an image that cannot be read, or that its source does not let be read
MAX_BYTES = 4 << 30  # of the arrays in a file, unpacked
Digests = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Images:
    """Every image of a data set.

    names of n; labels: int64 (n,), indices into `classes`; splits: uint8 (n,), indices into SPLITS,
    or BEFORE; contents: uint64 (n,), their digests. limit: the bytes of an image that the digests
    are of, 0: all.
    """

    classes: tuple[str, ...]
    names: Names
    labels: Ints
    splits: NDArray[np.uint8]
    contents: Digests
    limit: int

    def __len__(self) -> int:
        return len(self.names)

    def take(self, chosen: NDArray[np.bool_]) -> Images:
        places = np.flatnonzero(chosen)
        return Images(
            self.classes,
            self.names.take(places),
            self.labels[places],
            self.splits[places],
            self.contents[places],
            self.limit,
        )

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which of them were trained on."""
        return np.isin(self.splits, (SPLITS.index("train"), BEFORE))


def images_of(
    classes: tuple[str, ...], splits: Mapping[str, Split], limit: int | None = None
) -> Images:
    """The images of a data set, their bytes read; limit None: chosen by the size of the set."""
    if limit is None:
        total = sum(int(s.sizes.sum()) for s in splits.values() if s.sizes is not None)
        limit = 0 if total <= SMALL_SET else SAMPLE
    counts = [len(split) for split in splits.values()]
    return Images(
        classes,
        Names.of(name for split in splits.values() for name in split.names),
        np.concatenate([split.labels for split in splits.values()]),
        np.repeat(np.array([SPLITS.index(s) for s in splits], np.uint8), counts),
        np.concatenate([digests(split, limit) for split in splits.values()]),
        limit,
    )


def digests(split: Split, limit: int) -> Digests:
    """The digest of each image, uint64 (n,); of at most `limit` bytes of each, 0: of all."""
    kept = _kept_file(split, limit) if limit else None
    if kept is not None:
        with contextlib.suppress(OSError, ValueError):
            values: Digests = np.load(kept, allow_pickle=False)
            if values.shape == (len(split),) and values.dtype == np.uint64:
                return values

    def some_of(start: int) -> list[int]:
        places = range(start, min(start + 256, len(split)))
        return [_digest(split.sample(i, limit)) for i in places]

    with ThreadPoolExecutor(max_workers=16) as pool:  # waiting for a network's files overlaps
        parts = pool.map(some_of, range(0, len(split), 256))
        found = np.array([value for part in parts for value in part], np.uint64)
    if kept is not None:
        buffer = io.BytesIO()
        np.save(buffer, found)
        with contextlib.suppress(OSError):  # then they are read again the next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, buffer.getvalue())
    return found


def _kept_file(split: Split, limit: int) -> Path | None:
    """Where the digests of a split of files are kept; None: nowhere.

    Not of files that changed just now: they could change again within one tick of the clock.
    """
    if not isinstance(split.store, Files):
        return None
    places = np.arange(len(split)) if split.places is None else split.places
    try:
        marks = split.store.marks(places)
    except OSError:  # a file that cannot be looked at: its digest is UNKNOWN
        return None
    if marks[:, -1].max() > time.time_ns() - SETTLED_NS:
        return None
    key = blake2b(b"%d " % limit, digest_size=16)
    names = Names.of(split.names)
    for part in (names.blob, names.ends, marks):
        key.update(np.ascontiguousarray(part).data)
    return cache_folder() / "digests" / f"{key.hexdigest()}.npy"


def _digest(raw: bytes) -> int:
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "little") or 1 if raw else UNKNOWN


# -- what changed ----------------------------------------------------------------------------------


def changes(old: Images, new: Images) -> list[str]:
    """What changed, a phrase each: `3 removed ('a/1.jpg', ...)`; both with digests of one limit."""
    old = old.take(old.splits != BEFORE)
    found: dict[str, list[str]] = defaultdict(list)
    where = {name_key(name): i for i, name in enumerate(old.names)}
    keys = [name_key(name) for name in new.names]
    held = set(old.contents.tolist()) & set(new.contents.tolist())
    for j, key in enumerate(keys):
        if key not in where:
            continue
        i = where[key]
        before, now = int(old.contents[i]), int(new.contents[j])
        if UNKNOWN not in (before, now) and before != now:
            kind = "exchanged with others" if {before, now} <= held else "with other content"
        elif old.classes[old.labels[i]] != new.classes[new.labels[j]]:
            kind = "of another class"
        elif old.splits[i] != new.splits[j]:
            kind = f"moved from {SPLITS[old.splits[i]]} to {SPLITS[new.splits[j]]}"
        else:
            continue
        found[kind].append(repr(key))
    removed: dict[int, list[int]] = defaultdict(list)
    there = set(keys)
    for key, i in where.items():
        if key not in there:
            removed[int(old.contents[i])].append(i)
    for j, key in enumerate(keys):
        if key in where:
            continue
        content = int(new.contents[j])
        if content == UNKNOWN or not removed[content]:
            found["added"].append(repr(key))
            continue
        i = removed[content].pop(0)
        same = old.classes[old.labels[i]] == new.classes[new.labels[j]]
        kind = "renamed" if same else "of another class"
        found[kind].append(f"{old.names[i]!r} is now {key!r}")
    gone = [repr(old.names[i]) for left in removed.values() for i in left]
    if gone:
        found["removed"] = gone
    return [f"{len(names):,} {kind} ({few(names, 3)})" for kind, names in found.items()]


def trained_on(old: Images, new: Images) -> NDArray[np.bool_]:
    """Which images of `new` a run on `old` was trained on, bool (n,): by content.

    By name where the content of one of the two is unknown. Both with digests of one limit.
    """
    trained = old.take(old.trained)
    found: NDArray[np.bool_] = np.isin(new.contents, trained.contents)
    found &= new.contents != UNKNOWN
    unknown = trained.contents == UNKNOWN
    if not unknown.any() and (new.contents != UNKNOWN).all():
        return found
    every = set(map(name_key, trained.names))
    unread = set(map(name_key, trained.take(unknown).names))
    for i, name in enumerate(map(name_key, new.names)):
        found[i] |= name in (every if new.contents[i] == UNKNOWN else unread)
    return found


def count_alike(old: Images, new: Images) -> int:
    """How many images of `new` have the name of one that was trained on, or the same but for the
    suffix, with other content."""
    trained = {_without_suffix(name) for name in old.take(old.trained).names}
    others = new.take(~trained_on(old, new))
    return sum(_without_suffix(name) in trained for name in others.names)


def _without_suffix(name: str) -> str:
    folder, slash, file = name_key(name).rpartition("/")
    return f"{folder}{slash}{file.rpartition('.')[0] or file}"


def joined(before: Images, now: Images) -> Images:
    """`now`, and as BEFORE the images of `before` that were trained on and are not any more."""
    old = before.take(before.trained)
    old = old.take(~np.isin(old.contents, now.contents[now.trained]))
    classes = tuple(dict.fromkeys([*now.classes, *old.classes]))
    label_of = np.array([classes.index(c) for c in old.classes], np.int64)
    return Images(
        classes,
        Names.of([*now.names, *old.names]),
        np.concatenate([now.labels, label_of[old.labels]]),
        np.concatenate([now.splits, np.full(len(old), BEFORE, np.uint8)]),
        np.concatenate([now.contents, old.contents]),
        now.limit,
    )


# -- as a file -------------------------------------------------------------------------------------


def to_bytes(images: Images) -> bytes:
    """The content of a file, an npz: some 10 bytes an image besides its name."""
    about = json.dumps({"classes": images.classes, "limit": images.limit}).encode()
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        about=np.frombuffer(about, np.uint8),
        names=images.names.blob,
        ends=images.names.ends,
        labels=images.labels.astype(np.int32),
        splits=images.splits,
        contents=images.contents,
    )
    return buffer.getvalue()


def from_file(file: Path) -> Images:
    """The reverse of `to_bytes`. Raises CheckpointError: damaged, or too large for memory."""
    try:
        with zipfile.ZipFile(file) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > MAX_BYTES:
                raise CheckpointError(f"{file} unpacks to more than {MAX_BYTES >> 30} GiB.")
        with np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            names = Names(arrays["names"], arrays["ends"].astype(np.int64))
            labels, splits = arrays["labels"].astype(np.int64), arrays["splits"]
            contents, classes = arrays["contents"], tuple(map(str, about["classes"]))
            limit = int(about["limit"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        raise CheckpointError(f"{file} cannot be read: {e}.") from e
    n = len(names)
    good = (
        labels.shape == splits.shape == contents.shape == (n,)
        and splits.dtype == np.uint8
        and contents.dtype == np.uint64
        and (
            not n or (labels.min() >= 0 and labels.max() < len(classes) and splits.max() <= BEFORE)
        )
        and (np.diff(names.ends, prepend=0) >= 0).all()
        and (not n or names.ends[-1] == len(names.blob))
    )
    if not good:
        raise CheckpointError(f"{file} is damaged: its arrays do not fit each other.")
    return Images(classes, names, labels, splits, contents, limit)
