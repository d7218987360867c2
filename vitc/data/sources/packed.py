"""What is in a pack, `*.vitc`, the one file of a data set? The format: docs/pack-format.md.

A pack is not trusted. Every size in it is checked against the file's before memory is
allocated, offsets follow from lengths alone (so that records cannot overlap), and the index is
hashed. Names in it are for messages; they are never used as paths.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vitc.data.broken import MAX_FILE_BYTES, MAX_PIXELS
from vitc.data.config import DataConfig
from vitc.data.decode import CHANNELS
from vitc.data.sources.base import Found, Source, Split
from vitc.data.split_words import SPLITS
from vitc.data.store import Ints, Names, OpenFiles, Pixels, Stored, sample_of, stamp, unreadable
from vitc.errors import BrokenFileError, ConfigError, DataError

SUFFIX = ".vitc"
MAGIC, END = b"\x89VITC\r\n\n", b"VITCEND\n"  # broken where a transfer turns line ends
VERSION = 1
HEADER = struct.Struct("<8sIIQQQQ16x")  # magic, version, 0, payload, n, names and about in bytes
COLUMNS = ("length", "crc32", "label", "height", "width", "name_length")  # uint32 (n,) each
RECORD = 4 * len(COLUMNS)
FOOTER = 32 + len(END)  # SHA-256 of header and index
MAX_ABOUT = 16 << 20  # bytes of JSON: 21,000 classes take half of one
MAX_INDEX = 8 << 30  # bytes, 100 million images; a sparse file can be of any size and cost nothing
AGAIN = "The pack is incomplete or damaged: copy it again, or pack the images again."

Encoding = Literal["source", "jpeg", "raw"]


@dataclass(frozen=True)
class About:
    """The metadata of a pack, in JSON.

    counts: images of "train", then "val" and "test" if present. encoding: source: the
    files' own bytes; jpeg: re-encoded; raw: pixels. origin: `Source.origin` of the source they came
    from. lossless: the images are unchanged.
    """

    classes: tuple[str, ...]
    counts: dict[str, int]
    encoding: Encoding
    origin: str
    lossless: bool
    channels: int | None = None
    short_side: int | None = None
    quality: int | None = None
    made: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The same bytes for the same values."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, eq=False)
class Pack:
    """An opened pack: its index, in memory, and where its images are.

    ends: int64 (n,), where each record ends in the file; crc32, height, width: uint32 (n,);
    labels: int64 (n,). Records stand split by split in the order of `about.counts`.
    """

    path: Path
    about: About
    names: Names
    labels: Ints
    ends: Ints
    crc32: NDArray[np.uint32]
    height: NDArray[np.uint32]
    width: NDArray[np.uint32]
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Ints:
        """Bytes of each record, int64 (n,)."""
        return np.diff(self.ends, prepend=HEADER.size)

    def parts(self) -> dict[str, range]:
        """The records of each split."""
        found, start = {}, 0
        for split, count in self.about.counts.items():
            found[split] = range(start, start + count)
            start += count
        return found


def open_pack(path: Path) -> Pack:
    """A pack's index, checked; no image is read.

    Raises ConfigError: no such file; DataError: not a pack, of a newer version, or damaged.
    """
    try:
        with path.open("rb") as f:
            return _read_index(path, f, stamp(os.fstat(f.fileno())))
    except (FileNotFoundError, IsADirectoryError) as e:
        raise ConfigError(
            f"There is no packed file {path}.", "vitc data pack SRC OUT.vitc makes one."
        ) from e
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}.") from e


def _read_index(path: Path, f: BinaryIO, mark: tuple[int, int]) -> Pack:
    head = f.read(HEADER.size)
    if len(head) < HEADER.size or head[:8] != MAGIC:
        raise DataError(
            f"{path} is not a packed data set: it does not start like one.",
            f"Expected a file made by vitc data pack (*{SUFFIX}).",
        )
    _, version, zero, payload, n, names_bytes, about_bytes = HEADER.unpack(head)
    if version != VERSION or zero or any(head[48:]):
        raise DataError(
            f"{path} is a pack of version {version}; this vitc reads {VERSION}.", "Update vitc."
        )
    if not n or not payload:
        raise DataError(f"{path} was never finished.", "Run the same vitc data pack again.")
    size = HEADER.size + payload + RECORD * n + names_bytes + about_bytes + FOOTER
    index_bytes = RECORD * n + names_bytes
    if size != mark[0] or about_bytes > MAX_ABOUT or index_bytes > MAX_INDEX:
        raise DataError(
            f"{path} has {mark[0]:,} bytes; its header declares {size:,}, {about_bytes:,} of them "
            f"JSON (at most {MAX_ABOUT:,}), {index_bytes:,} index (at most {MAX_INDEX:,}).",
            AGAIN,
        )
    f.seek(HEADER.size + payload)
    raw = f.read(index_bytes + about_bytes)
    digest = hashlib.sha256(head)
    digest.update(raw)
    if f.read(FOOTER) != digest.digest() + END:
        raise DataError(f"{path} is damaged: its index does not match the checksum.", AGAIN)
    columns = np.frombuffer(raw, "<u4", count=len(COLUMNS) * n).reshape(len(COLUMNS), n)
    column = dict(zip(COLUMNS, columns, strict=True))
    ends = HEADER.size + np.cumsum(column["length"], dtype=np.int64)
    name_ends = np.cumsum(column["name_length"], dtype=np.int64)
    if ends[-1] != HEADER.size + payload or name_ends[-1] != names_bytes:
        raise DataError(f"{path} is damaged: its records do not fill it.", AGAIN)
    about = _about(path, raw[index_bytes:], n)
    _check_columns(path, about, column)
    return Pack(
        path=path,
        about=about,
        names=Names(np.frombuffer(raw, np.uint8, names_bytes, RECORD * n).copy(), name_ends),
        labels=column["label"].astype(np.int64),
        ends=ends,
        crc32=column["crc32"].copy(),  # so that `raw` is not kept
        height=column["height"].copy(),
        width=column["width"].copy(),
        stamp=mark,
    )


def _check_columns(path: Path, about: About, column: dict[str, NDArray[np.uint32]]) -> None:
    wide = {name: column[name].astype(np.uint64) for name in ("length", "height", "width")}
    wrong = column["label"] >= len(about.classes)
    wrong |= (wide["length"] == 0) | (wide["length"] > MAX_FILE_BYTES)
    area = wide["height"] * wide["width"]
    wrong |= (area == 0) | (area > MAX_PIXELS)
    if about.encoding == "raw":
        wrong |= wide["length"] != area * np.uint64(about.channels or 0)
    if wrong.any():
        i = int(np.argmax(wrong))
        values = ", ".join(f"{name} {int(column[name][i]):,}" for name in COLUMNS[:5])
        raise DataError(f"{path}: record {i:,} is invalid: {values}.", AGAIN)


def _about(path: Path, raw: bytes, n: int) -> About:
    """The JSON part. Raises DataError: a value that cannot be."""
    wrong = DataError(f"{path} has invalid metadata.", AGAIN)
    try:
        values: Any = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise wrong from e
    if not isinstance(values, dict) or values.keys() != About.__dataclass_fields__.keys():
        raise wrong
    classes, counts, channels, made = (values[k] for k in ("classes", "counts", "channels", "made"))
    strings = [classes, values["notes"], values["skipped"]]
    good = (
        all(isinstance(t, list) and all(isinstance(v, str) for v in t) for t in strings)
        and len(set(classes)) == len(classes) >= 2
        and isinstance(counts, dict)
        and "train" in counts
        and counts.keys() <= set(SPLITS)
        and all(type(c) is int and c > 0 for c in counts.values())
        and sum(counts.values()) == n
        and values["encoding"] in get_args(Encoding)
        and (channels is None if values["encoding"] == "source" else channels in CHANNELS)
        and isinstance(values["origin"], str)
        and type(values["lossless"]) is bool
        and isinstance(made, dict)
        and all(isinstance(v, str) for v in made.values())
        and all(type(values[name]) in (int, type(None)) for name in ("short_side", "quality"))
    )
    if not good:
        raise wrong
    values["counts"] = {name: counts[name] for name in SPLITS if name in counts}
    for name in ("classes", "notes", "skipped"):
        values[name] = tuple(values[name])
    return About(**values)


class Packed(Source):
    """A data set in one file."""

    kind = origin = "packed"
    title = "a packed data set"
    path = "a packed file: --data.path FILE.vitc"
    suffixes = (SUFFIX,)
    settings = frozenset({"group"})

    def read(self, config: DataConfig) -> Found:
        pack = open_pack(Path(str(config.path)).expanduser())
        about, store, sizes = pack.about, PackedStore(pack), pack.lengths
        splits = {}
        for name, part in pack.parts().items():
            places = np.arange(part.start, part.stop, dtype=np.int64)
            pixels = as_array(pack, part)
            stored = {"store": store, "places": places, "sizes": sizes[places]}
            held: dict[str, Any] = stored if pixels is None else {"pixels": pixels}
            splits[name] = Split(pack.labels[places], pack.names.take(places), **held)
        if about.lossless:
            return Found(about.classes, splits, about.notes, origin=about.origin)
        made = replace(about, made={}, notes=(), skipped=())  # how its images were made
        content = made.to_json() + pack.crc32.tobytes()
        return Found(about.classes, splits, about.notes, content=content)


# -- reading images -------------------------------------------------------------------------------


@dataclass(eq=False)
class PackedStore:
    """The images of a pack, as a `Store`.

    Encoded images are read: one request of the right length to a disk or a network, and a file
    that is cut off meanwhile is an error. Pixels are mapped: cropping an image
    touches only the rows of the crop, and copies nothing. Neither checks the checksum: for encoded
    images it would cost 4 % of decoding, for pixels as much as the crop; `vitc data verify` does.
    """

    pack: Pack
    _files: OpenFiles = field(init=False, repr=False)
    _pixels: Pixels | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._files = OpenFiles(Names.of([os.fspath(self.pack.path)]), np.array([self.pack.stamp]))

    def __getstate__(self) -> Pack:
        return self.pack

    def __setstate__(self, pack: Pack) -> None:
        self.__init__(pack)  # type: ignore[misc]

    def read(self, place: int) -> Stored:
        start, end = int(self.pack.ends[place - 1]) if place else HEADER.size, self.pack.ends[place]
        if self.pack.about.encoding != "raw":
            return self._files.read(0, start, int(end) - start, self.pack.names[place])
        if self._pixels is None:
            self._pixels = mapped(self.pack)
        shape = int(self.pack.height[place]), int(self.pack.width[place]), -1
        return self._pixels[start:end].reshape(shape)

    def sample(self, place: int, limit: int) -> bytes:
        if self.pack.about.encoding == "raw":
            return sample_of(self.read(place), limit)
        start, end = int(self.pack.ends[place - 1]) if place else HEADER.size, self.pack.ends[place]
        return self._files.sample(0, start, int(end) - start, self.pack.names[place], limit)


def mapped(pack: Pack) -> Pixels:
    """The whole file, uint8 (bytes,), read-only. Raises BrokenFileError: it has changed."""
    try:
        with pack.path.open("rb") as f:
            if stamp(os.fstat(f.fileno())) != pack.stamp:
                raise unreadable(str(pack.path), "it has changed since it was opened")
            return np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as e:
        raise unreadable(str(pack.path), e.strerror or str(e)) from e


def as_array(pack: Pack, part: range) -> Pixels | None:
    """uint8 (n, H, W, C), a view of the file: a split of images that were pixels of one size
    at their origin, such as CIFAR's; None for others."""
    about = pack.about
    if about.encoding != "raw" or not about.lossless:
        return None
    shape = len(part), int(pack.height[0]), int(pack.width[0]), about.channels or 0
    if (pack.height != shape[1]).any() or (pack.width != shape[2]).any():
        return None
    start = int(pack.ends[part.start - 1]) if part.start else HEADER.size
    return mapped(pack)[start : int(pack.ends[part.stop - 1])].reshape(shape)


# -- checking every byte ---------------------------------------------------------------------------


def verify(path: Path) -> Pack:
    """The pack, every checksum of it compared.

    Raises ConfigError: no such file; BrokenFileError: damaged, with the name of the first bad
    record and how many there are.
    """
    try:
        pack = open_pack(path)
    except DataError as e:
        raise BrokenFileError(e.message, e.hint) from e
    bad = []
    with path.open("rb") as f:
        f.seek(HEADER.size)
        for i, length in enumerate(pack.lengths.tolist()):
            if zlib.crc32(f.read(length)) != pack.crc32[i]:
                bad.append(i)
    if bad:
        raise BrokenFileError(
            f"{path} is damaged: {len(bad):,} of {len(pack):,} records do not match their "
            f"checksum, the first of them {pack.names[bad[0]]!r} (record {bad[0]:,}).",
            AGAIN,
        )
    return pack


# -- writing ---------------------------------------------------------------------------------------


def write_index(
    f: BinaryIO, about: About, names: Names, labels: Ints, entries: NDArray[np.uint32]
) -> None:
    """Write index, footer and header around the payload, which ends at the position of `f`.

    entries: uint32 (n, 4): length, crc32, height, width. The header comes last: until then the file
    is known to be unfinished.
    """
    payload = f.tell() - HEADER.size
    texts = names.blob.tobytes()
    metadata = about.to_json()
    if len(metadata) > MAX_ABOUT:
        raise DataError(f"The class names take {len(metadata):,} bytes; at most {MAX_ABOUT:,}.")
    head = HEADER.pack(MAGIC, VERSION, 0, payload, len(labels), len(texts), len(metadata))
    name_lengths = np.diff(names.ends, prepend=0)
    columns = (entries[:, 0], entries[:, 1], labels, entries[:, 2], entries[:, 3], name_lengths)
    index = b"".join(np.asarray(c).astype("<u4").tobytes() for c in columns) + texts + metadata
    f.write(index)
    f.write(hashlib.sha256(head + index).digest() + END)
    f.flush()
    os.fsync(f.fileno())
    f.seek(0)
    f.write(head)
    f.flush()
    os.fsync(f.fileno())
