"""How is a data set packed into one file (`vitc data pack`)? Its format is in `sources.packed`.

Workers read, check and re-encode images; this process writes them in the order of the source, so
the file is the same for any number of workers. It grows under a temporary name with a journal of
its content; after a kill at any instant, the same command checks both and resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vitc.data.broken import MAX_FILE_BYTES
from vitc.data.config import DataConfig
from vitc.data.dataset import find_image, read_source
from vitc.data.decode import (
    read_image,
    to_channels,
)
from vitc.data.pool import Progress, in_order
from vitc.data.shrink import shrunk
from vitc.data.sources.base import Found, Split, some
from vitc.data.sources.packed import HEADER, SUFFIX, About, Encoding, open_pack, write_index
from vitc.data.split_words import SPLITS
from vitc.data.store import Names, Pixels
from vitc.errors import BrokenFileError, ConfigError, DataError, RunError
from vitc.files import sync_folder
from vitc.machine import cores
from vitc.wording import counted

CHUNK = 16  # images a task; few, to bound the bytes waiting to be written
QUALITY, RAW_SIDE = 95, 256  # defaults for re-encoded images
JOURNAL = struct.Struct("<6I")  # kept?, length, crc32, height, width, CRC-32 of these five
JOURNAL_MAGIC = b"VITCJNL1"
MAX_NAMED = 1000  # broken images named in the pack


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How images are stored; by default as in the source: the files' own bytes, or pixels.

    short_side: larger images are resized to it (smaller ones are never enlarged) and stored as
    JPEG of `quality`; raw: as pixels. channels: of re-encoded images. scaled: as of `shrunk`.
    """

    short_side: int | None = None
    quality: int | None = None
    raw: bool = False
    channels: int | None = None
    bad_files: Literal["stop", "skip"] = "stop"
    scaled: bool = False

    def check(self) -> None:
        """Raises ConfigError: invalid values, or options without effect."""
        if self.short_side is not None and not 1 <= self.short_side <= 8192:
            raise ConfigError(f"--short-side {self.short_side} must be in 1 ... 8192.")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality {self.quality} must be in 1 ... 100.")
        if self.raw and self.quality is not None:
            raise ConfigError("--quality has no effect with --raw: pixels are stored as they are.")
        if self.channels is not None and not self.reencodes:
            raise ConfigError(
                "--channels has no effect where the files' own bytes are stored.",
                "Use it with --short-side or --raw.",
            )
        if self.channels not in (None, 1, 3, 4) or (self.channels == 4 and not self.raw):
            raise ConfigError(f"--channels {self.channels} must be 1 or 3, or with --raw 4.")

    @property
    def reencodes(self) -> bool:
        return self.raw or self.short_side is not None or self.quality is not None


class Packed(NamedTuple):
    """A finished pack: its path, images and bytes, the names of broken files, and the number of
    images after which an interrupted pack was resumed (0: it was not)."""

    path: Path
    images: int
    bytes: int
    skipped: tuple[str, ...]
    resumed: int


def pack(
    config: DataConfig,
    out: Path,
    options: PackOptions,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Pack the data set of `config`, with the splits of its source, into the file `out`.

    Nothing is held out until the pack is opened. Every image is decoded once, so a pack contains
    no broken ones. Raises ConfigError: a wrong option or path, or `out` exists; DataError,
    BrokenFileError: of the source; RunError: a worker died, the disk is full.
    """
    options.check()
    _check_out(out, overwrite)
    return pack_found(
        read_source(config),
        out,
        options,
        workers=workers or cores(),
        overwrite=overwrite,
        progress=progress,
    )


def pack_found(
    found: Found,
    out: Path,
    options: PackOptions,
    *,
    workers: int,
    overwrite: bool = False,
    wait: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Pack an opened data set; `wait` for another process that writes the same file.

    Raises as `pack`.
    """
    splits = {name: found.splits[name] for name in SPLITS if name in found.splits}
    work = _Work(splits, *_form(splits["train"], options))
    partial, journal = Path(f"{out}.partial"), Path(f"{out}.journal")
    if overwrite:
        journal.unlink(missing_ok=True)
    try:
        with _locked(partial, wait) as payload, journal.open("a+b") as log:
            done = _Done.read(payload, log, len(work), _digest(found, work))
            resumed = done.count
            skipped = _write(work, payload, log, done, workers, options.bad_files, progress)
            about = _about(found, work, done, skipped)
            names = Names.of(n for split in splits.values() for n in split.names)
            labels = np.concatenate([split.labels for split in splits.values()])[done.good]
            kept = np.flatnonzero(done.good)
            write_index(payload, about, names.take(kept), labels, done.entries[kept])
            size = payload.seek(0, os.SEEK_END)
            os.replace(partial, out)
            sync_folder(out.parent)
            journal.unlink(missing_ok=True)
    except BrokenProcessPool as e:
        raise RunError(
            "A packing process died. The usual cause is too little memory.",
            "Run the same command with fewer --workers to resume.",
        ) from e
    except OSError as e:
        raise RunError(
            f"{out} cannot be written: {e.strerror or e}.",
            "Fix this, then run the same command again to resume.",
        ) from e
    return Packed(out, int(done.good.sum()), size, skipped, resumed)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != SUFFIX:
        raise ConfigError(
            f"The packed file {str(out)!r} must end in {SUFFIX}.",
            f"For example: {out.with_suffix(SUFFIX)}",
        )
    if not out.parent.is_dir():
        raise ConfigError(f"There is no folder {out.parent} to write {out.name} into.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise ConfigError(f"{out} exists already.", "Give another name, or --overwrite.")


@contextlib.contextmanager
def _locked(partial: Path, wait: bool) -> Iterator[BinaryIO]:
    """The unfinished file, opened for writing by one process at a time."""
    import fcntl

    with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as f:
        try:
            fcntl.lockf(
                f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            )  # not kept alive by forked workers
        except (BlockingIOError, PermissionError):
            raise ConfigError(
                f"Another process is writing {partial}.", "Wait for it, or give another name."
            ) from None
        yield f


def _form(train: Split, options: PackOptions) -> tuple[_Form, bool]:
    """How images are stored, and whether they are unchanged."""
    if options.reencodes:
        channels = options.channels or 3
        if options.raw:
            side = options.short_side or RAW_SIDE
            return _Form("raw", channels, side, scaled=options.scaled), False
        return _Form("jpeg", channels, options.short_side, options.quality or QUALITY), False
    with contextlib.suppress(BrokenFileError):
        if not isinstance(first := train.stored(0), bytes):
            return _Form("raw", int(first.shape[-1])), True
    return _Form("source"), True


def _digest(found: Found, work: _Work) -> bytes:
    """What an unfinished pack and the one that resumes it must have in common."""
    form = work.form if work.form.scaled else work.form[:4]  # as before `scaled` was
    head = [found.classes, list(work.splits), form, versions(work.form.encoding)]
    h = hashlib.sha256(json.dumps(head).encode())
    for split in work.splits.values():
        h.update(split.labels.astype("<i8").tobytes() + Names.of(split.names).blob.tobytes())
        if split.pixels is not None:
            h.update(str(split.pixels.shape).encode() + np.ascontiguousarray(split.pixels).data)
        elif split.sizes is not None:
            h.update(split.sizes.astype("<i8").tobytes())
    return h.digest()


def _about(found: Found, work: _Work, done: _Done, skipped: tuple[str, ...]) -> About:
    bounds = np.cumsum([len(split) for split in work.splits.values()])[:-1]
    good = dict(zip(work.splits, np.split(done.good, bounds), strict=True))
    left = np.bincount(work.splits["train"].labels[good["train"]], minlength=len(found.classes))
    empty = [c for c, n in zip(found.classes, left.tolist(), strict=True) if n == 0]
    if empty:
        raise DataError(f"All training images of {some(empty)} are broken.")
    return About(
        classes=found.classes,
        counts={name: int(part.sum()) for name, part in good.items() if part.any()},
        encoding=work.form.encoding,
        origin=found.origin,
        lossless=work.lossless and not found.content,
        channels=work.form.channels,
        short_side=work.form.short_side,
        quality=work.form.quality,
        made=versions(work.form.encoding),
        notes=tuple(found.notes),
        skipped=skipped[:MAX_NAMED],
    )


def versions(encoding: Encoding) -> dict[str, str]:
    """Versions of the packages that determine the bytes."""
    parts = ("vitc",) if encoding == "source" else ("vitc", "torch", "pillow", "simplejpeg")
    found = {}
    for part in parts:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[part] = metadata.version(part)
    return found


# -- what is done -------------------------------------------------------------------------


@dataclass(eq=False)
class _Done:
    """The images processed so far, `count` of n: good bool (n,), whether each is in the file;
    entries uint32 (n, 4): length, crc32, height, width."""

    good: NDArray[np.bool_]
    entries: NDArray[np.uint32]
    count: int = 0

    @staticmethod
    def read(payload: BinaryIO, log: BinaryIO, n: int, digest: bytes) -> _Done:
        """What an interrupted pack has written; both files are truncated to that.

        Raises ConfigError: it was a pack of other images or options.
        """
        done = _Done(np.zeros(n, np.bool_), np.zeros((n, 4), np.uint32))
        log.seek(0)
        head = JOURNAL_MAGIC + digest
        there = log.read(len(head))
        if there == head:
            payload.seek(HEADER.size)
            while done.count < n and done._take(log.read(JOURNAL.size), payload):
                pass
        elif len(there) == len(head):
            raise ConfigError(
                f"{log.name.removesuffix('.journal')} was started with other images, options or "
                "versions.",
                "Use --overwrite to start over, or the same images and options to resume.",
            )
        end = HEADER.size + int(done.entries[:, 0].sum(dtype=np.int64))
        payload.truncate(end)
        payload.seek(0)
        payload.write(bytes(HEADER.size))
        payload.seek(end)
        log.truncate(len(head) + done.count * JOURNAL.size if done.count else 0)
        log.seek(0, os.SEEK_END)
        if not done.count:
            log.write(head)
        return done

    def _take(self, raw: bytes, payload: BinaryIO) -> bool:
        """Read one entry of the journal; False unless it and its record are complete."""
        if len(raw) < JOURNAL.size:
            return False
        kept, length, crc, height, width, check = JOURNAL.unpack(raw)
        if check != zlib.crc32(raw[:-4]) or length > MAX_FILE_BYTES:
            return False
        if kept and zlib.crc32(payload.read(length)) != crc:
            return False
        self.add(length, crc, height, width, kept=bool(kept))
        return True

    def add(self, length: int, crc: int, height: int, width: int, kept: bool) -> bytes:
        """Add the next image; returns its entry in the journal."""
        self.entries[self.count] = length, crc, height, width
        self.good[self.count] = kept
        self.count += 1
        entry = JOURNAL.pack(kept, length, crc, height, width, 0)[:-4]
        return entry + struct.pack("<I", zlib.crc32(entry))


# -- making records --------------------------------------------------------------------------------


class _Form(NamedTuple):
    encoding: Encoding
    channels: int | None = None
    short_side: int | None = None
    quality: int | None = None
    scaled: bool = False


class _Made(NamedTuple):
    """One image as it is stored, or why it cannot be."""

    payload: bytes
    height: int
    width: int
    broken: BrokenFileError | None = None


@dataclass(frozen=True, eq=False)
class _Work:
    """All images, split after split, and how they are stored."""

    splits: dict[str, Split]
    form: _Form
    lossless: bool

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def name(self, number: int) -> str:
        split, index = find_image(self.splits, number)
        return self.splits[split].names[index]

    def make_all(self, numbers: range) -> list[_Made]:
        return [self.make(i) for i in numbers]

    def make(self, number: int) -> _Made:
        split, index = find_image(self.splits, number)
        try:
            return self._made(self.splits[split].stored(index), self.splits[split].names[index])
        except BrokenFileError as error:
            return _Made(b"", 0, 0, error)

    def _made(self, stored: bytes | Pixels, name: str) -> _Made:
        form = self.form
        if form.encoding == "source":
            if not isinstance(stored, bytes):
                raise DataError(
                    f"{name!r} is stored as pixels, but the first image as an encoded file.",
                    "Pack with --raw or --short-side N.",
                )
            height, width = read_image(stored, 3, name).shape[:2]
            return _Made(stored, height, width)
        assert form.channels is not None
        if form.short_side is not None:
            pixels = shrunk(stored, form.channels, name, form.short_side, form.scaled)
        elif isinstance(stored, bytes):
            pixels = read_image(stored, form.channels, name)
        else:
            pixels = to_channels(stored, form.channels)
        height, width = pixels.shape[:2]
        if form.encoding == "raw":
            return _Made(np.ascontiguousarray(pixels).tobytes(), height, width)
        assert form.quality is not None
        space, sampling = ("GRAY", "444") if form.channels == 1 else ("RGB", "420")
        pixels = np.ascontiguousarray(pixels)
        jpeg = simplejpeg.encode_jpeg(pixels, form.quality, space, sampling)
        return _Made(jpeg, height, width)


# -- writing them, in order ------------------------------------------------------------------------


def _write(
    work: _Work,
    payload: BinaryIO,
    log: BinaryIO,
    done: _Done,
    workers: int,
    bad_files: str,
    progress: Progress | None,
) -> tuple[str, ...]:
    """Append every image not yet done. Returns the names of all broken images."""
    skipped = [work.name(i) for i in np.flatnonzero(~done.good[: done.count]).tolist()]
    shown = time.monotonic()
    tasks = [range(i, min(i + CHUNK, len(work))) for i in range(done.count, len(work), CHUNK)]
    start = None if work.form.short_side is None else _single_thread
    with contextlib.closing(in_order(work.make_all, tasks, workers, start)) as chunks:
        for chunk in chunks:
            entries: list[bytes] = []
            for made in chunk:
                if made.broken is not None:
                    if bad_files == "stop":
                        break
                    skipped.append(work.name(done.count))
                    entries.append(done.add(0, 0, 0, 0, kept=False))
                    continue
                payload.write(made.payload)
                crc = zlib.crc32(made.payload)
                entries.append(done.add(len(made.payload), crc, made.height, made.width, kept=True))
            payload.flush()  # the records before their entries in the journal
            log.write(b"".join(entries))
            log.flush()
            if made.broken is not None and bad_files == "stop":
                raise BrokenFileError(
                    made.broken.message,
                    "Run the same command with --bad-files skip to resume without such files.",
                )
            if progress is not None and (time.monotonic() - shown > 0.2 or done.count == len(work)):
                shown = time.monotonic()
                progress(done.count, len(work))
    return tuple(skipped)


def _single_thread() -> None:
    """For a worker that resizes images: the others use the other cores."""
    import torch

    torch.set_num_threads(1)


def describe(path: Path) -> str:
    """One line on a pack: its images, classes and encoding."""
    made = open_pack(path)
    about = made.about
    splits = ", ".join(f"{count:,} {name}" for name, count in about.counts.items())
    side = f", shorter side at most {about.short_side}" if about.short_side else ""
    forms = {
        "source": "the files' own bytes",
        "jpeg": f"JPEG of quality {about.quality}{side}",
        "raw": f"pixels{side}",
    }
    classes = counted(len(about.classes), "class", "classes")
    return (
        f"{counted(len(made), 'image')} ({splits}) of {classes} from a {about.origin} source, "
        f"as {forms[about.encoding]}"
    )
