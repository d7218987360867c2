"""Which images do tar shards (WebDataset's layout) hold? They are read in any order, not unpacked.

Each shard is read through once, header by header; the index of its images is kept in the user's
cache and is valid while the shard keeps its size and modification time. Tars are not
trusted, so they are parsed here, with every size checked before it is used: links, devices, names
that lead out of the folder and two members of one name are refused, though nothing is ever written.
(Python's tarfile read two of five members of a damaged file without an error.)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.sources import base, index
from vitc.data.store import Ints, Names, label_codes, shown, stamp
from vitc.errors import DataError

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of a pax header or a long name
MAX_LABEL = 1 << 20  # bytes of a .cls or .json member
MAX_MEMBERS = 10_000_000  # of one shard; each takes some 300 bytes of memory while it is indexed
LABEL_KEYS = ("label", "cls", "class", "class_name", "class_id")  # of a .json member
_PACKERS = {
    b"\x1f\x8b": "gzip: gunzip",
    b"BZh": "bzip2: bunzip2",
    b"\xfd7zXZ": "xz: unxz",
    b"\x28\xb5\x2f\xfd": "zstd: unzstd",
}
_LAYOUT = (
    "Expected KEY.jpg with KEY.cls or KEY.json next to it (WebDataset's layout), or CLASS/KEY.jpg."
)


class Tar(base.Source):
    """The images in tar files: one, a folder of them, a pattern, or several joined by `::`.

    An image's label is its key's .cls or .json, or else the folder of its key. Its split is a
    folder train, val or test around that, or such a word in the shard's name; else train.
    """

    kind = origin = "tar"
    title = "tar shards"
    path = "tar shards: --data.path 'train-{000..012}.tar', a pattern with *, or a folder of them"
    suffixes = (".tar", ".tar.gz", ".tgz")
    settings = frozenset({"group"})

    def matches(self, path: str) -> bool:
        if not os.path.isdir(path):
            return super().matches(path)
        names = base.entries(path)
        return any(name.endswith(".tar") for name in names) and not any(
            os.path.isdir(os.path.join(path, name)) for name in names
        )

    def absolute(self, path: str) -> str:
        return "::".join(map(super().absolute, path.split("::")))

    def read(self, config: DataConfig) -> base.Found:
        """Raises ConfigError: no such files; DataError: compressed, damaged or not trustworthy."""
        paths = index.find_files(str(config.path), self.suffixes)
        parts = [_indexed(path) for path in paths]
        if not any(len(part) for part in parts):
            raise DataError(f"No images in {base.some(paths)}.", _LAYOUT)
        others = sum(part.others for part in parts)
        notes = [f"{others:,} members of the tar files belong to no image."] if others else []
        splits = np.concatenate([_splits(p, part) for p, part in zip(paths, parts, strict=True)])
        images, texts = index.joined(paths, paths, [part.stamp for part in parts], parts)
        return base.by_label(str(config.path), images, texts, splits, notes)


# -- the index of one shard ------------------------------------------------------------------------


def _indexed(path: str) -> index.Index:
    """The shard's index: from the cache, or made and put there."""
    try:
        mark = stamp(os.stat(path))
        with open(path, "rb") as f:
            kept = index.cache_file("tars", path)
            found = index.load_index(kept, mark)
            if found is None or not _agrees(found, f):
                found = _make_index(path, f, mark)
                index.save_index(kept, found)
            return found
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}.") from e


def _agrees(found: index.Index, f: BinaryIO) -> bool:
    """Whether the headers of some images are where the index has them, with the same size."""
    n = len(found)
    for i in np.unique(np.linspace(0, n - 1, 16).astype(np.int64)).tolist() if n else []:
        f.seek(int(found.offset[i]) - BLOCK)
        with contextlib.suppress(_Damaged):
            if _header(f.read(BLOCK))[1] == found.size[i]:
                continue
        return False
    return True


def _make_index(path: str, f: BinaryIO, mark: tuple[int, int]) -> index.Index:
    """The images of a shard, labelled by .cls, by .json, or by the folder of their key."""
    f.seek(0)
    start = f.read(8)
    for magic, name in _PACKERS.items():
        if start.startswith(magic):
            kind, _, tool = name.partition(": ")
            raise DataError(
                f"{path} is compressed ({kind}): its images can only be read in sequence, "
                "and training reads them in random order.",
                f"Decompress it once ({tool} {Path(path).name}); images are compressed already.",
            )
    try:
        images, labels, others = _contents(f, mark[0])
    except _Damaged as e:
        raise DataError(
            f"{path} is refused: {e}.", "Write the shards again, with plain files only."
        ) from None
    texts = []
    for key, (name, _, _) in images.items():
        folders = [part for part in key.split("/")[:-1] if part]
        if len(folders) > 1 and folders[0].lower() in base.SPLIT_OF:
            folders = folders[1:]
        if key not in labels and not folders:
            raise DataError(
                f"{shown(name)!r} in {path} has no label: no .cls, no .json with "
                f"{' or '.join(LABEL_KEYS)}, and no folder.",
                _LAYOUT,
            )
        texts.append(labels[key] if key in labels else shown(folders[0]))
    code, known = label_codes(texts)
    where = np.array([image[1:] for image in images.values()], np.int64).reshape(-1, 2)
    names = Names.of(shown(image[0]) for image in images.values())
    offset, size = where.T.copy()
    return index.Index(mark, names, offset, size, tuple(known), code, others)


def _contents(
    f: BinaryIO, length: int
) -> tuple[dict[str, tuple[str, int, int]], dict[str, str], int]:
    """Key -> (name, offset, size) of each image, key -> label, and the number of other members."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    seen: set[str] = set()
    others = 0
    for name, offset, size in _members(f, length):
        if name in seen:
            raise _Damaged(f"two members are named {shown(name)!r}")
        seen.add(name)
        if len(seen) > MAX_MEMBERS:
            raise _Damaged(f"it has more than {MAX_MEMBERS:,} members")
        folder, _, leaf = name.rpartition("/")
        if leaf.startswith("."):
            continue
        stem, _, suffix = leaf.partition(".")
        key, last = f"{folder}/{stem}", suffix.lower().rpartition(".")[2]
        if last in base.IMAGE_SUFFIXES:
            if key in images:
                raise _Damaged(
                    f"{shown(key.lstrip('/'))!r} has two images: "
                    f"{images[key][0]!r} and {shown(name)!r}"
                )
            images[key] = name, offset, size
        elif suffix.lower() in ("cls", "json"):
            found = _label(f, offset, size, name, suffix.lower())
            if found is not None and (suffix.lower() == "cls" or key not in labels):
                labels[key] = found
        else:
            others += 1
    return images, labels, others


def _splits(path: str, part: index.Index) -> Ints:
    """The split of each image, as an index into SPLITS."""
    found = np.full(len(part), base.split_of_name(path), np.int64)
    for i, name in enumerate(part.names):
        first, _, rest = name.partition("/")
        if "/" in rest and first.lower() in base.SPLIT_OF:
            found[i] = base.SPLITS.index(base.SPLIT_OF[first.lower()])
    return found


def _label(f: BinaryIO, offset: int, size: int, name: str, kind: str) -> str | None:
    if size > MAX_LABEL:
        raise _Damaged(f"the label {shown(name)!r} has {size:,} bytes")
    position = f.tell()
    f.seek(offset)
    raw = f.read(size)
    f.seek(position)
    try:
        text = raw.decode("utf-8").strip()
        if kind == "cls":
            value: Any = text
        else:
            values = json.loads(text)
            there = [key for key in LABEL_KEYS if isinstance(values, dict) and key in values]
            if not there:
                return None
            value = values[there[0]]
    except (ValueError, RecursionError) as e:
        raise _Damaged(f"the label {shown(name)!r} cannot be read: {e}") from None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise _Damaged(
            f"the label {shown(name)!r} is {str(value)[:40]!r}, not a number or a name "
            "(multi-label data is not supported)"
        )
    return str(value)


# -- the members of a tar --------------------------------------------------------------------------


class _Damaged(Exception):
    """Why a tar is refused."""


_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"K": "a link with a long name",
}


def _members(f: BinaryIO, length: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the content, its size) of every plain file (POSIX.1-2017 pax, 4.18; GNU).

    Raises _Damaged.
    """
    at = 0
    long_name: str | None = None
    long_size: int | None = None
    while True:
        f.seek(at)
        block = f.read(BLOCK)
        if len(block) < BLOCK:
            if at == 0 or block:
                raise _Damaged("it is cut off, or no tar file")
            return  # without the two zero blocks, as some writers leave it
        if not any(block):
            return
        name, size, kind = _header(block)
        content = at + BLOCK
        if kind not in b"xgL":
            size = size if long_size is None else long_size
            name = name if long_name is None else long_name
        if content + size > length:
            raise _Damaged(f"it is cut off, or the size {size:,} of {shown(name)!r} is wrong")
        at = content + -(-size // BLOCK) * BLOCK
        if kind in (b"x", b"g", b"L"):
            if size > MAX_EXTENDED:
                raise _Damaged(f"a header of {size:,} bytes")
            raw = f.read(size)
            if kind == b"L":
                long_name = raw.rstrip(b"\0").decode("utf-8", "surrogateescape")
                continue
            values = _pax(raw)
            if values.keys() & {"linkpath", "GNU.sparse.major", "GNU.sparse.map"}:
                raise _Damaged("it has links or sparse files")
            if kind == b"x":
                long_name = values.get("path", long_name)
                digits = values.get("size")
                if digits is not None:
                    if not re.fullmatch("[0-9]{1,20}", digits):
                        raise _Damaged(f"a size of {digits[:40]!r}")
                    long_size = int(digits)
            elif values.keys() & {"path", "size"}:
                raise _Damaged("a name or size for all its members at once")
            continue
        long_name = long_size = None
        if kind == b"5":
            _check_name(name.rstrip("/") or ".")
            continue
        if kind not in (b"0", b"\0", b"7"):
            what = _KINDS.get(kind, f"an entry of kind {kind!r}")
            raise _Damaged(f"{shown(name)!r} is {what}")
        yield _check_name(name), content, size


def _check_name(name: str) -> str:
    """The name without a leading ./; refused where it would lead out of a folder."""
    while name.startswith("./"):
        name = name[2:]
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise _Damaged(f"the name {shown(name)!r} leads outside")
    return name


def _header(block: bytes) -> tuple[str, int, bytes]:
    """(name, size, kind) of a member."""
    if len(block) < BLOCK:
        raise _Damaged("it is cut off")
    checksum = block[148:156].split(b"\0")[0].strip()
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if not checksum.isdigit() or _octal(checksum) != total:
        raise _Damaged("a header does not match its checksum, or it is no tar file")
    size = block[124:136]
    if size[0] & 0x80:  # GNU: base 256
        bytes_ = int.from_bytes(bytes([size[0] & 0x7F]) + size[1:], "big")
    else:
        bytes_ = _octal(size.split(b"\0")[0].strip() or b"0")
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("utf-8", "surrogateescape"), bytes_, block[156:157]


def _octal(digits: bytes) -> int:
    try:
        return int(digits, 8)
    except ValueError:
        raise _Damaged("a header holds no numbers where they belong") from None


def _pax(raw: bytes) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of an extended header."""
    values = {}
    at = 0
    while at < len(raw) and raw[at : at + 1] != b"\0":
        match = re.compile(rb"(\d{1,7}) ").match(raw, at)
        if match is None or int(match[1]) <= len(match[0]):
            raise _Damaged("a damaged extended header")
        record = raw[match.end() : at + int(match[1])]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _Damaged("a damaged extended header")
        values[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        at += int(match[1])
    return values
