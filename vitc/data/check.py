"""What is wrong with this data set, and what cures it? `vitc data check`. Free of torch.

Every image is read as training would read it, by several processes, and leaves a record of a few
hundred bytes; findings are pure functions of these records, in the order of the source, so they are
the same for any number of processes. Nothing is written, and no file is changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import stat
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from enum import IntFlag
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.data.config import DataConfig
from vitc.data.dataset import open_data, read_source
from vitc.data.decode import Header, examined, header, to_channels
from vitc.data.near_duplicates import MINI, miniature, near_groups, perceptual_hash, small_grey
from vitc.data.sources import SOURCES
from vitc.data.sources.base import IMAGE_SUFFIXES, SPLIT_WORDS, Found, Split, some
from vitc.data.sources.folder import survey_folder
from vitc.data.store import Ints, Names, name_key, shown
from vitc.errors import BrokenFileError, DataError, RunError
from vitc.machine import cores
from vitc.wording import counted

Severity = Literal["stop", "warn", "note"]  # training fails; results suffer; worth knowing
SEVERITIES: tuple[Severity, ...] = ("stop", "warn", "note")
Progress = Callable[[int, int], None]  # images done, of how many

CHUNK = 32  # images a task
EXAMPLES = 5  # of a finding
RARE = 10  # training images; a class with fewer is pointed out
UNEVEN = 10  # times as many images in the largest class as in the smallest
LONG_SIDE = 4  # times the short one
DRAWS = 11  # broken images in a row at which training stops: `sampling.stand_ins`
LONG_RUN_EPOCHS = 100
TINY_SIDE, LARGE_SIDE = 32, 320  # pixels of the short side
FORMAT_OF = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG"),
    "png": "PNG",
    "gif": "GIF",
    **dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "PPM"),
    "webp": "WEBP",
    "avif": "AVIF",
    **dict.fromkeys(("tif", "tiff"), "TIFF"),
    **dict.fromkeys(("jp2", "j2k"), "JPEG2000"),
    "bmp": "BMP",
    "dib": "BMP",
    "ico": "ICO",
}


class Mark(IntFlag):
    """What one image is. Those of the first line could not be read."""

    EMPTY, UNREADABLE, NO_IMAGE, TOO_LARGE, DAMAGED = 1, 2, 4, 8, 16
    DOUBT, SUFFIX, ANIMATED, ROTATED, DEEP, PALETTE, ALPHA, INKS, GREY, FLAT = (
        1 << i for i in range(5, 15)
    )


BROKEN = Mark.EMPTY | Mark.UNREADABLE | Mark.NO_IMAGE | Mark.TOO_LARGE | Mark.DAMAGED
RECORD = np.dtype(
    [
        ("marks", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("format", "S9"),
        ("mode", "S16"),
        ("content", "<u8", 2),
        ("pixels", "<u8", 2),
        ("hash", "<u8"),
        ("seconds", "<f4"),
    ]
)


@dataclass(frozen=True, eq=False)
class Finding:
    """One kind of thing that was found: how bad, how many, what cures it, and where.

    places: int64 (n,), the images by their number in `Report.names`; groups: int64 (n,), equal for
    images that belong together; names: what is not an image of the data set.
    """

    kind: str
    severity: Severity
    count: int
    text: str
    cure: str
    examples: tuple[str, ...] = ()
    places: Ints | None = None
    groups: Ints | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """What there is in a data set and what was found in it, worst first.

    counts: int64 (classes,) for each split. positions: int64 (examined,), which of all images were
    looked at; records: RECORD (examined,). names: of all images, split after split; details: why,
    by number.
    """

    config: DataConfig
    classes: tuple[str, ...]
    splits: dict[str, Split]
    counts: dict[str, Ints]
    names: Names
    positions: Ints
    records: NDArray[Any]
    details: dict[int, str]
    notes: tuple[str, ...]
    cores: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(f.severity == "stop" for f in self.findings)

    @property
    def status(self) -> str:
        return "would fail" if self.fails else "findings" if self.findings else "good"

    @property
    def readable(self) -> NDArray[np.bool_]:
        good: NDArray[np.bool_] = (self.records["marks"] & BROKEN) == 0
        return good

    @property
    def rate(self) -> float | None:
        """Images a second that one core reads and decodes; None: pixels are stored."""
        seen = self.records[self.readable]
        seconds = float(seen["seconds"].sum(dtype=np.float64))
        return len(seen) / seconds if seconds > 0 else None

    def place(self, number: int) -> tuple[str, int]:
        """The split of an image, and its index there."""
        for name, split in self.splits.items():
            if number < len(split):
                return name, number
            number -= len(split)
        raise IndexError(number)

    def quantiles(self) -> dict[str, list[int]]:
        """Short and long side, in pixels: smallest, 5 %, 25 %, 50 %, 75 %, 95 %, largest."""
        seen = self.records[self.readable]
        if not len(seen):
            return {}
        sides = np.stack([seen["height"], seen["width"]])
        at = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
        return {
            name: np.quantile(values, at, method="nearest").astype(int).tolist()
            for name, values in (("short_side", sides.min(0)), ("long_side", sides.max(0)))
        }

    def tally(self, column: str) -> dict[str, int]:
        """How many images are of each format, or mode, the most frequent first."""
        tallied = Counter(v.decode() for v in self.records[self.readable][column].tolist())
        return dict(sorted(tallied.items(), key=lambda item: (-item[1], item[0])))


def check(
    config: DataConfig,
    *,
    workers: int | None = None,
    sample: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Examine the data set that `config` names, or `sample` of its images, evenly spaced.

    Raises ConfigError: a wrong path or setting; RunError: a process died on a file.
    """
    classes, splits, notes, refusals = _opened(config)
    labels = {name: np.bincount(s.labels, minlength=len(classes)) for name, s in splits.items()}
    total = sum(map(len, splits.values()))
    positions = np.arange(total)
    if sample is not None and sample < total:
        positions = np.unique(np.linspace(0, total - 1, sample).round().astype(np.int64))
        notes.append(
            f"Only {sample:,} of {total:,} images, evenly spaced, were examined: copies "
            "and faults of the others are not seen."
        )
    looked = _look_at_all(_Work(list(splits.values())), positions, workers or cores(), progress)
    report = Report(
        config=config,
        classes=classes,
        splits=splits,
        counts={name: part.astype(np.int64) for name, part in labels.items()},
        names=Names.of(n for split in splits.values() for n in split.names),
        positions=positions,
        records=looked.records,
        details=looked.details,
        notes=tuple(notes),
        cores=cores(),
    )
    found = [*refusals, *_file_findings(report), *_copies(report, looked.minis)]
    found += [*_class_findings(report), *_size_findings(report), *_litter(report)]
    found.sort(key=lambda f: SEVERITIES.index(f.severity))  # stable: in the order they are made
    report.findings.extend(found)
    return report


# -- what is there ---------------------------------------------------------------------------------


def _opened(
    config: DataConfig,
) -> tuple[tuple[str, ...], dict[str, Split], list[str], list[Finding]]:
    """Classes and splits as training has them; where it would refuse them, as far as possible."""
    try:
        data = open_data(config)
        return data.classes, data.splits, list(data.notes), []
    except DataError as e:
        refusal = Finding("refused", "stop", 1, e.message, e.hint or "Repair it.")
    found = _as_it_lies(config)
    if found is None:
        return (), {}, [], [refusal]
    return found.classes, found.splits, list(found.notes), [refusal]


def _as_it_lies(config: DataConfig) -> Found | None:
    """The source's own splits, or what a folder holds however unfit for training it is."""
    with contextlib.suppress(DataError):
        return read_source(config)
    if config.source != "folder" or config.path is None:
        return None
    root = Path(config.path).expanduser()
    with contextlib.suppress(DataError):
        return survey_folder(root)
    return None


# -- one image -------------------------------------------------------------------------------------


def _record(split: Split, index: int) -> tuple[NDArray[Any], NDArray[np.uint8], str]:
    """An image's RECORD (), its miniature, and why it is broken or doubted."""
    record, mini = np.zeros((), RECORD), np.zeros(MINI * MINI, np.uint8)
    name = split.names[index]
    started = time.perf_counter()
    try:
        stored = split.stored(index)
    except BrokenFileError as e:
        mark = (
            Mark.EMPTY if split.sizes is not None and split.sizes[index] == 0 else Mark.UNREADABLE
        )
        record["marks"] = mark
        return record, mini, _why(e)
    said: Header | None = None
    try:
        if isinstance(stored, bytes):
            pixels, doubt = examined(stored, 3, name)
        else:
            pixels, doubt = to_channels(stored, 3), ""
    except BrokenFileError as e:
        assert isinstance(stored, bytes)
        said = header(stored)
        record["marks"] = _broken_mark(said, e)
        return record, mini, _why(e)
    marks = Mark.DOUBT if doubt else Mark(0)
    if isinstance(stored, bytes):
        record["seconds"] = time.perf_counter() - started
        said = header(stored)
        record["content"] = _digest(stored)
    if said is not None:
        marks |= _marks(said, name)
        record["format"], record["mode"] = said.format.encode(), said.mode.encode()
    else:
        record["format"], record["mode"] = b"pixels", b"stored"
    record["height"], record["width"] = pixels.shape[:2]
    record["pixels"] = _digest(str(pixels.shape).encode(), np.ascontiguousarray(pixels).data)
    grey = small_grey(pixels)
    mini = miniature(grey)
    if mini.min() == mini.max() and (pixels == pixels[0, 0]).all():
        marks |= Mark.FLAT
    record["hash"], record["marks"] = perceptual_hash(grey), marks
    return record, mini, doubt


def _why(error: BrokenFileError) -> str:
    return error.message.partition(" cannot be used: ")[2].removesuffix(".") or error.message


def _broken_mark(said: Header | None, error: BrokenFileError) -> Mark:
    if "exceed" in error.message and "exceed 16 bits" not in error.message:
        return Mark.TOO_LARGE
    return Mark.NO_IMAGE if said is None and "no image" in error.message else Mark.DAMAGED


def _digest(*parts: bytes | memoryview) -> NDArray[np.uint64]:
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(part)
    return np.frombuffer(h.digest(), "<u8")


def _marks(said: Header, name: str) -> Mark:
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    is_of = {"DIB": "BMP"}.get(said.format, said.format)
    whether = {
        Mark.SUFFIX: suffix in IMAGE_SUFFIXES and FORMAT_OF[suffix] != is_of,
        Mark.ANIMATED: said.animated,
        Mark.ROTATED: said.orientation != 1,
        Mark.DEEP: said.bits > 8,
        Mark.PALETTE: said.mode.startswith("P") and said.format != "GIF",
        Mark.ALPHA: said.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "+" in said.mode,
        Mark.INKS: said.mode in ("CMYK", "YCCK"),
        Mark.GREY: said.mode in ("1", "L", "LA", "I", "F") or said.mode.startswith("I;16"),
    }
    marks = Mark(0)
    for mark, is_so in whether.items():
        if is_so:
            marks |= mark
    return marks


# -- all images ------------------------------------------------------------------------------------


class _Looked(NamedTuple):
    records: NDArray[Any]
    minis: NDArray[np.uint8]
    details: dict[int, str]


@dataclass(frozen=True, eq=False)
class _Work:
    """All images, one split after another, and what is to be known of them."""

    splits: list[Split]

    def find(self, position: int) -> tuple[Split, int]:
        for split in self.splits:
            if position < len(split):
                return split, position
            position -= len(split)
        raise IndexError(position)

    def name(self, position: int) -> str:
        split, index = self.find(position)
        return shown(split.names[index])

    def look(self, positions: Sequence[int]) -> _Looked:
        records = np.zeros(len(positions), RECORD)
        minis = np.zeros((len(positions), MINI * MINI), np.uint8)
        details = {}
        for row, position in enumerate(positions):
            records[row], minis[row], why = _record(*self.find(position))
            if why:
                details[position] = why
        return _Looked(records, minis, details)


def _look_at_all(work: _Work, positions: Ints, workers: int, progress: Progress | None) -> _Looked:
    records = np.zeros(len(positions), RECORD)
    minis = np.zeros((len(positions), MINI * MINI), np.uint8)
    details: dict[int, str] = {}
    done = 0
    with contextlib.closing(_parts(work, positions, workers)) as parts:
        for part in parts:
            records[done : done + len(part.records)] = part.records
            minis[done : done + len(part.records)] = part.minis
            details |= part.details
            done += len(part.records)
            if progress is not None:
                progress(done, len(positions))
    return _Looked(records, minis, details)


def _parts(work: _Work, positions: Ints, workers: int) -> Generator[_Looked, None, None]:
    chunks = [positions[i : i + CHUNK].tolist() for i in range(0, len(positions), CHUNK)]
    if workers <= 1 or len(chunks) <= 1:
        yield from map(work.look, chunks)
        return
    method = "fork" if sys.platform.startswith("linux") else "spawn"
    pool = ProcessPoolExecutor(
        workers, get_context(method), initializer=_start_worker, initargs=(work, os.getpid())
    )
    waiting: deque[Future[_Looked]] = deque()
    done = 0
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_look_chunk, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
                done += 1
        while waiting:
            yield waiting.popleft().result()
            done += 1
    except BrokenProcessPool as e:
        raise RunError(
            f"A checking process died on {work.name(chunks[done][0])!r} or one of the "
            f"{2 * workers * CHUNK:,} images after it: of too little memory, or a decoder's fault.",
            "Fewer --workers take less memory.",
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_work: _Work | None = None  # of a worker process, which serves one check


def _start_worker(work: _Work, parent: int) -> None:
    global _worker_work
    _worker_work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's affair
    threading.Thread(target=_end_when_orphaned, args=(parent,), daemon=True).start()


def _end_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _look_chunk(chunk: list[int]) -> _Looked:
    assert _worker_work is not None
    return _worker_work.look(chunk)


# -- findings: of single files ---------------------------------------------------------------------

# In this order, which is worst first within a severity: kind, severity, what it is, what cures it.
_LEAVE_OUT = "--data.bad_files skip leaves them out; or replace or remove them (--csv FILE: all)"
_BY_MARK: tuple[tuple[Mark, str, Severity, str, str], ...] = (
    (Mark.UNREADABLE, "unreadable", "stop", "cannot be opened or read", _LEAVE_OUT),
    (Mark.DAMAGED, "damaged", "stop", "that cannot be decoded", _LEAVE_OUT),
    (Mark.NO_IMAGE, "no_image", "stop", "of no kind that is read", _LEAVE_OUT),
    (Mark.EMPTY, "empty", "stop", "of 0 bytes", _LEAVE_OUT),
    (
        Mark.TOO_LARGE,
        "bomb",
        "stop",
        "with more pixels or bytes than are allowed (a bomb?)",
        _LEAVE_OUT,
    ),
    (
        Mark.DOUBT,
        "doubtful",
        "warn",
        "read, but the decoder had to guess: parts may be made up",
        "look at them (--html FILE), and remove what is spoilt",
    ),
    (Mark.FLAT, "constant", "warn", "of one colour all over", "remove them, unless they are meant"),
    (
        Mark.SUFFIX,
        "suffix",
        "note",
        "of another format than the suffix says; the content counts",
        "nothing to do; other programs may want them renamed",
    ),
    (
        Mark.ANIMATED,
        "animated",
        "note",
        "with several frames, of which only the first is seen",
        "split them into single images where the others matter",
    ),
    (
        Mark.INKS,
        "cmyk",
        "note",
        "in CMYK, converted without a colour profile",
        "convert them to sRGB with their profile where colours matter",
    ),
    (
        Mark.DEEP,
        "deep",
        "note",
        "of more than 8 bits a channel, scaled to 8 by the full range",
        "stretch them to the range in use first, where they look dark (--html FILE)",
    ),
    (
        Mark.ALPHA,
        "alpha",
        "note",
        "with transparency, laid over white",
        "--model.in_chans 4 keeps the opacity; or flatten them",
    ),
    (Mark.PALETTE, "palette", "note", "with a palette, looked up", "nothing to do"),
    (
        Mark.ROTATED,
        "rotated",
        "note",
        "turned upright as EXIF says",
        "nothing to do; other programs may show them lying",
    ),
)


def _finding(
    report: Report,
    rows: NDArray[np.bool_] | Ints,
    kind: str,
    severity: Severity,
    text: str,
    cure: str,
) -> Finding:
    """Of the images at these rows of the records."""
    places = report.positions[rows]
    return Finding(
        kind, severity, len(places), text, cure, _examples(report, places), places=places
    )


def _examples(report: Report, places: Ints) -> tuple[str, ...]:
    found = []
    for place in places[:EXAMPLES].tolist():
        why = report.details.get(place)
        found.append(shown(report.names[place]) + (f" ({why})" if why else ""))
    return tuple(found)


def _file_findings(report: Report) -> Iterator[Finding]:
    marks = report.records["marks"]
    for mark, kind, severity, text, cure in _BY_MARK:
        rows = (marks & mark) != 0
        if not rows.any():
            continue
        if severity == "stop" and report.config.bad_files == "skip":
            severity, cure = "warn", "replace or remove them; data.bad_files skip leaves them out"
        noun = counted(int(rows.sum()), "image file" if mark & BROKEN else "image")
        yield _finding(report, rows, kind, severity, f"{noun} {text}.", cure)
    yield from _emptied(report)
    yield from _too_many(report)
    grey = (marks & Mark.GREY) != 0
    readable = report.readable
    if grey.any() and (readable & ~grey).any():
        share = grey.sum() / readable.sum()
        yield _finding(
            report,
            grey,
            "grey",
            "note",
            f"{counted(int(grey.sum()), 'grey image')} ({share:.1%}) among coloured "
            "ones, repeated in all channels.",
            "nothing to do, unless grey goes with a class: then it is what is learnt",
        )


def _emptied(report: Report) -> Iterator[Finding]:
    """Classes that have training images, all of them broken."""
    train = report.splits.get("train")
    if train is None or report.readable.all():
        return
    inside = report.positions < len(train)
    labels = train.labels[report.positions[inside]]
    bad = ~report.readable[inside]
    seen = np.bincount(labels, minlength=len(report.classes))
    broken = np.bincount(labels[bad], minlength=len(report.classes))
    lost = np.flatnonzero((broken == seen) & (broken == report.counts["train"]) & (broken > 0))
    if len(lost):
        names = [report.classes[i] for i in lost]
        yield Finding(
            "emptied",
            "stop",
            len(names),
            f"All training images of {some(names)} are broken.",
            "replace them, or remove the class",
            examples=tuple(names[:EXAMPLES]),
            names=tuple(names),
        )


def _too_many(report: Report) -> Iterator[Finding]:
    """So many broken images that training, which skips them, meets DRAWS in a row and stops."""
    train = report.splits.get("train")
    if train is None or report.config.bad_files != "skip":
        return
    share = float((~report.readable[report.positions < len(train)]).mean())
    if LONG_RUN_EPOCHS * len(train) * share**DRAWS > 0.5:
        yield Finding(
            "too_many",
            "stop",
            1,
            f"{share:.0%} of the training images are broken: training that skips them "
            f"gives up when {DRAWS} in a row are.",
            "replace or remove them (--csv FILE: all); skipping is for a few",
        )


# -- findings: copies ------------------------------------------------------------------------------

_WHERE = ("across splits", "across classes", "within a class")
_CURES = (
    "remove one side: the score counts images that were trained on",
    "decide which label is right and remove the others",
    "remove all but one, where the others only weigh it more",
)
_TOGETHER = "--data.group REGEX, where their names tell, keeps copies on one side of a split"


def _copies(report: Report, minis: NDArray[np.uint8]) -> Iterator[Finding]:
    """Images that are the same, or nearly: across splits, across classes, within a class."""
    rows = np.flatnonzero(report.readable)
    if not len(rows):
        return
    same = _first_equal(report.records["pixels"][rows])
    firsts = np.flatnonzero(same == np.arange(len(rows)))
    near = firsts[near_groups(report.records["hash"][rows[firsts]], minis[rows[firsts]])]
    tied = np.arange(len(rows))
    tied[firsts] = near
    tied = tied[same]  # each image: the first of all that are near to it
    labels = np.concatenate([s.labels for s in report.splits.values()])[report.positions[rows]]
    bounds = np.cumsum([len(s) for s in report.splits.values()])
    side = np.searchsorted(bounds, report.positions[rows], side="right")
    flat = (report.records["marks"][rows] & Mark.FLAT) != 0
    several = np.zeros(len(rows), np.int64)
    np.add.at(several, tied[firsts], 1)
    for kind, group, wanted in (
        ("same", same, ~flat),
        ("near", tied, several[tied] > 1),  # at least two that are not equal
    ):
        spread = _varies(group, side), _varies(group, labels)
        many = (np.bincount(group, minlength=len(rows)) > 1)[group] & wanted
        chosen = (many & spread[0], many & spread[1], many & ~spread[0] & ~spread[1])
        for where, (members, place) in enumerate(zip(chosen, _WHERE, strict=True)):
            if members.any():
                yield _copy_finding(report, kind, where, rows[members], group[members], place)


def _first_equal(digests: NDArray[np.uint64]) -> Ints:
    """int64 (n,): for each of n digests (n, 2) the position of the first that equals it."""
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    found: Ints = first[inverse.reshape(-1)]
    return found


def _varies(group: Ints, values: Ints) -> NDArray[np.bool_]:
    """For each member, whether its group has more than one value. A group's number is a member."""
    differs = np.zeros(len(group), np.bool_)
    np.logical_or.at(differs, group, values != values[group])
    return differs[group]


def _copy_finding(
    report: Report, kind: str, where: int, rows: Ints, groups: Ints, place: str
) -> Finding:
    order = np.argsort(groups, kind="stable")
    rows, groups = rows[order], groups[order]
    places = report.positions[rows]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    examples = []
    for start, end in zip(starts[:EXAMPLES], [*starts[1:], len(rows)][:EXAMPLES], strict=False):
        names = [shown(report.names[p]) for p in places[start:end][:3].tolist()]
        more = f" and {end - start - 3:,} more" if end - start > 3 else ""
        examples.append(" = ".join(names) + more if kind == "same" else " ~ ".join(names) + more)
    what = "identical" if kind == "same" else "nearly identical"
    severity: Severity = "note" if where == 2 else "warn"
    suffix = ("leak", "conflict", "copies")[where]
    return Finding(
        f"{kind}_{suffix}",
        severity,
        len(rows),
        f"{counted(len(starts), 'group')} of {what} images {place}, {len(rows):,} images in all.",
        _copy_cure(report, where),
        tuple(examples),
        places=places,
        groups=groups,
    )


def _copy_cure(report: Report, where: int) -> str:
    if "group" not in SOURCES[report.config.source].settings:
        return "none here, where images have no files: know that the score is a little too good"
    together = "" if where == 1 or report.config.group is not None else f"; {_TOGETHER}"
    return f"{_CURES[where]} (--csv FILE lists them){together}"


# -- findings: classes -----------------------------------------------------------------------------


def _class_findings(report: Report) -> Iterator[Finding]:
    if not report.classes or "train" not in report.counts:
        return
    yield from _alike_names(report.classes)
    train = report.counts["train"]
    alone = [c for c, n in zip(report.classes, train.tolist(), strict=True) if n == 1]
    rare = [c for c, n in zip(report.classes, train.tolist(), strict=True) if 1 < n < RARE]
    if alone:
        yield _of_classes(
            "single", "warn", alone, "with one training image", "add images, or remove the class"
        )
    if rare:
        yield _of_classes(
            "rare",
            "note",
            rare,
            f"with fewer than {RARE} training images",
            "add images; --data.balance sqrt shows them more often",
        )
    there = train[train > 0]
    if len(there) and there.max() >= UNEVEN * there.min():
        low, high = int(there.min()), int(there.max())
        small = report.classes[int(np.flatnonzero(train == low)[0])]
        large = report.classes[int(np.argmax(train))]
        yield Finding(
            "unbalanced",
            "warn",
            int((train > 0).sum()),
            f"The largest class has {high / low:,.0f} times as many training images as "
            f"the smallest: {large!r} {high:,}, {small!r} {low:,}.",
            "--data.balance sqrt (or full) shows rare classes more often",
        )
    for split, counts in report.counts.items():
        missing = (counts == 0) & ((train > 0) if split != "train" else True)
        absent = [c for c, gone in zip(report.classes, missing.tolist(), strict=True) if gone]
        if absent:
            cure = "add images there, or let the split be held out: remove its folder"
            yield _of_classes(
                f"absent_{split}",
                "warn",
                absent,
                f"without {split} images",
                "add images" if split == "train" else cure,
            )


def _of_classes(
    kind: str, severity: Severity, names: Sequence[str], text: str, cure: str
) -> Finding:
    noun = counted(len(names), "class", "classes")
    return Finding(
        kind,
        severity,
        len(names),
        f"{noun} {text}: {some(names)}.",
        cure,
        tuple(names[:EXAMPLES]),
        names=tuple(names),
    )


def _alike_names(classes: Iterable[str]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_plain(name), []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if alike:
        examples = tuple(" ~ ".join(map(repr, names)) for names in alike[:EXAMPLES])
        yield Finding(
            "alike_names",
            "warn",
            len(alike),
            f"{counted(len(alike), 'group')} of class names that are nearly one name: "
            f"{'; '.join(examples[:3])}.",
            "merge the folders where one class was meant",
            examples,
            names=tuple(n for names in alike for n in names),
        )


def _plain(name: str) -> str:
    """The name without case, spaces, punctuation and a plural's s."""
    letters = re.sub(r"[\W_]+", "", name_key(name).casefold())
    if len(letters) > 3 and letters.endswith("s") and not letters.endswith("ss"):
        letters = letters[:-1]
    return letters or name


# -- findings: sizes, and what else lies there -----------------------------------------------------


def _size_findings(report: Report) -> Iterator[Finding]:
    rows = np.flatnonzero(report.readable)
    seen = report.records[rows]
    if not len(seen):
        return
    sides = np.stack([seen["height"], seen["width"]])
    short, long = sides.min(0), sides.max(0)
    narrow = rows[long >= LONG_SIDE * short.astype(np.int64)]
    if len(narrow):
        yield _finding(
            report,
            narrow,
            "narrow",
            "note",
            f"{counted(len(narrow), 'image')} at least {LONG_SIDE} times as long as "
            "wide; evaluation sees the middle only.",
            "--data.fit pad shows all of them; or cut them",
        )
    middle = int(np.median(short))
    tiny = rows[short < TINY_SIDE]
    if len(tiny) and middle >= 2 * TINY_SIDE:
        yield _finding(
            report,
            tiny,
            "tiny",
            "note",
            f"{counted(len(tiny), 'image')} with a side below {TINY_SIDE} pixels, among "
            f"others of {middle:,}.",
            "remove thumbnails and icons",
        )
    if middle >= LARGE_SIDE and report.rate is not None:
        yield Finding(
            "large",
            "note",
            int((short >= LARGE_SIDE).sum()),
            f"Half of the images have a short side of {middle:,} pixels or more: "
            "decoding them takes most of the time.",
            f"vitc data pack {report.config.path} OUT.vitc --short-side 256",
        )


def _litter(report: Report) -> Iterator[Finding]:
    """What in a folder is no image of the data set and may have been meant as one."""
    config = report.config
    if config.source != "folder" or config.path is None:
        return
    root = Path(config.path).expanduser()
    kinds = ("loose", "links", "folders", "special", "other", "hidden")
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, kind in _strangers(root):
        found[kind].append(name)
    if found["loose"]:
        known = set(report.names)
        found["loose"] = [name for name in found["loose"] if shown(name) not in known]
    told: tuple[tuple[str, Severity, str, str], ...] = (
        (
            "loose",
            "warn",
            "image in no class folder/images in no class folder, left out",
            "move them into the folder of their class",
        ),
        (
            "links",
            "warn",
            "symbolic link to nothing/symbolic links to nothing, passed over",
            "repair or remove them",
        ),
        (
            "folders",
            "warn",
            "folder named like an image/folders named like images",
            "rename them; images inside are read as any others",
        ),
        (
            "special",
            "warn",
            "pipe, socket or device/pipes, sockets or devices, passed over",
            "remove them",
        ),
        (
            "other",
            "note",
            "file that is no image/files that are no images, passed over",
            "nothing to do, unless they are images: then rename or convert them",
        ),
        (
            "hidden",
            "note",
            "hidden file or folder/hidden files and folders, passed over",
            "nothing to do, unless they are images: then rename them",
        ),
    )
    for kind, severity, words, cure in told:
        names = sorted(found[kind])
        if names:
            one, several = words.split("/")
            text = f"{counted(len(names), one, several)}: {some(names)}."
            shown_names = tuple(map(shown, names))
            yield Finding(
                kind, severity, len(names), text, cure, shown_names[:EXAMPLES], names=shown_names
            )


_SPLIT_FOLDERS = frozenset(word for words in SPLIT_WORDS.values() for word in words)


def _strangers(root: Path) -> Iterator[tuple[str, str]]:
    """Path below the root, and what it is, of all that is no image file with a fitting name."""
    stack, seen = [(str(root), "")], set()
    while stack:
        folder, below = stack.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            continue  # opening the data set tells of it
        for entry in entries:
            path, is_image = below + entry.name, _named_as_image(entry.name)
            if entry.name.startswith("."):
                yield path, "hidden"
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:
                yield path, "links"
                continue
            if stat.S_ISDIR(mode):
                stack.append((entry.path, f"{path}/"))
                if is_image:
                    yield path, "folders"
            elif not stat.S_ISREG(mode):
                yield path, "special"
            elif not is_image:
                yield path, "other"
            elif not below or below[:-1].lower() in _SPLIT_FOLDERS:
                yield path, "loose"  # if it is not in a class of that name


def _named_as_image(name: str) -> bool:
    return "." in name and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


# -- as values -------------------------------------------------------------------------------------


def to_values(report: Report) -> dict[str, Any]:
    """The report as plain values, for JSON. All but `speed` is the same for any number of
    processes."""
    rate = report.rate
    speed = None
    if rate is not None:
        processes = min(8, report.cores)
        speed = {
            "images_per_second_a_core": round(rate, 1),
            "processes": processes,
            "images_per_second": round(rate * processes, 1),
        }
    return {
        "status": report.status,
        "source": report.config.source,
        "path": report.config.path,
        "images": {name: len(split) for name, split in report.splits.items()},
        "examined": len(report.positions),
        "broken": int((~report.readable).sum()),
        "classes": {
            name: {split: int(counts[i]) for split, counts in report.counts.items()}
            for i, name in enumerate(report.classes)
        },
        "sizes": report.quantiles(),
        "formats": report.tally("format"),
        "modes": report.tally("mode"),
        "findings": [
            {
                "kind": f.kind,
                "severity": f.severity,
                "count": f.count,
                "text": f.text,
                "cure": f.cure,
                "examples": list(f.examples),
            }
            for f in report.findings
        ],
        "notes": list(report.notes),
        "speed": speed,
    }


COLUMNS = ("kind", "severity", "file", "split", "class", "detail", "group")


def rows(report: Report) -> Iterator[tuple[str, ...]]:
    """One row of COLUMNS for each file of each finding."""
    for finding in report.findings:
        head = finding.kind, finding.severity
        for i, place in enumerate([] if finding.places is None else finding.places.tolist()):
            split, index = report.place(place)
            label = report.classes[int(report.splits[split].labels[index])]
            group = "" if finding.groups is None else str(finding.groups[i])
            why = report.details.get(place, "")
            yield (*head, shown(report.names[place]), split, label, why, group)
        for name in finding.names:
            yield (*head, name, "", "", "", "")
