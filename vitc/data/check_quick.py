"""What of `vitc data check` fits into two seconds? For `vitc train`, which warns of it.

All that follows from names, sizes and labels; copies among files of one size; and what a sample of
images in a row shows, as far as the time goes. Nothing is found for certain: the whole check is
`vitc data check`.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import time
from collections.abc import Iterator, Sequence

import numpy as np
import simplejpeg

from vitc.data.broken import MAX_PIXELS
from vitc.data.check_classes import class_findings
from vitc.data.check_folder import stray_findings
from vitc.data.check_groups import group_findings, seen_in
from vitc.data.check_images import RECORD, colours, taken
from vitc.data.check_masks import mask_findings
from vitc.data.check_report import EXAMPLES, Finding, Report, class_counts
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, find_image
from vitc.data.decode import is_jpeg
from vitc.data.name_groups import numbered
from vitc.data.sources.base import Split
from vitc.data.store import Ints, Names, Pixels, shown
from vitc.errors import BrokenFileError
from vitc.wording import counted

SECONDS = 2.0
MOST_LINES = 5
MOST_NAMES = 20_000  # images looked at by name
WINDOW = 12  # images in a row
WINDOWS = 24
# Reported by the front door itself, which chooses what cures them.
KNOWN = frozenset({"single", "rare", "unbalanced", "hidden", "other"})


def quick_warnings(config: DataConfig, data: DataSet) -> list[str]:
    """What `quick_findings` finds, as lines."""
    return as_lines(config, quick_findings(config, data))


def as_lines(config: DataConfig, found: Sequence[Finding]) -> list[str]:
    """One line a finding with its cure, MOST_LINES at most, then where to see all."""
    lines = [f"{finding.text} {finding.brief}" for finding in found[:MOST_LINES]]
    if found:
        left = len(found) - MOST_LINES
        lines.append(
            f"Found in {SECONDS:.0f} s of looking{f'; {left} more' if left > 0 else ''}: "
            f"vitc data check {shlex.quote(str(config.path))} shows all."
        )
    return lines


def quick_findings(config: DataConfig, data: DataSet, seconds: float = SECONDS) -> list[Finding]:
    """Findings that stop or harm training, worst first, of at most `seconds` of looking."""
    end = time.monotonic() + seconds
    splits = _fewer(data.splits)
    count = sum(map(len, splits.values()))
    report = Report(
        config=config,
        classes=data.classes,
        splits=splits,
        counts=class_counts(data.splits, data.classes),
        given=data.given,
        positions=np.arange(count),
        records=np.zeros(count, RECORD),
    )
    report.records["taken"] = np.nan
    found = [*_empty(report), *mask_findings(report), *class_findings(report)]
    if count == sum(map(len, data.splits.values())):
        found += stray_findings(report, end - 0.75 * seconds)
    found += _same(report, end - 0.5 * seconds)
    _look(report, end - 0.1 * seconds)
    found += group_findings(seen_in(report))
    harmful = [f for f in found if f.severity != "note" and f.kind not in KNOWN]
    return sorted(harmful, key=lambda f: f.severity != "stop")


def _fewer(splits: dict[str, Split]) -> dict[str, Split]:
    """Blocks of a thousand images of each split, so that at most MOST_NAMES remain."""
    total = sum(map(len, splits.values()))
    if total <= MOST_NAMES:
        return splits
    part = total // MOST_NAMES + 1
    return {
        name: split.take(np.flatnonzero(np.arange(len(split)) // 1000 % part == 0))
        for name, split in splits.items()
    }


def _empty(report: Report) -> Iterator[Finding]:
    sizes = [s.sizes if s.sizes is not None else np.ones(len(s)) for s in report.splits.values()]
    places = np.flatnonzero(np.concatenate(sizes) == 0)
    if len(places):
        examples = tuple(shown(report.names[p]) for p in places[:EXAMPLES].tolist())
        text = f"{counted(len(places), 'image file')} of 0 bytes: {examples[0]!r}."
        cure = "remove them, or leave them out with --data.bad_files skip"
        yield Finding("empty", "stop", len(places), text, cure, examples, places=places)


def _same(report: Report, end: float) -> Iterator[Finding]:
    """Files of the same size and content in several splits, or in several classes."""
    if any(split.sizes is None for split in report.splits.values()):
        return
    sizes = np.concatenate([np.asarray(split.sizes) for split in report.splits.values()])
    labels, sides = report.labels, report.sides
    _, of, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    suspects = np.flatnonzero((counts[of] > 1) & (sizes > 0))
    first: dict[bytes, int] = {}
    leaks: list[tuple[int, int]] = []
    conflicts: list[tuple[int, int]] = []
    for place in suspects[np.argsort(sizes[suspects], kind="stable")].tolist():
        if time.monotonic() > end:
            break
        name, index = find_image(report.splits, place)
        with contextlib.suppress(BrokenFileError):
            stored = report.splits[name].stored(index)
            data = stored if isinstance(stored, bytes) else stored.tobytes()
            other = first.setdefault(hashlib.blake2b(data, digest_size=16).digest(), place)
            if sides[other] != sides[place]:
                leaks.append((other, place))
            if labels[other] != labels[place]:
                conflicts.append((other, place))
    for kind, pairs, where, cure in (
        ("same_leak", leaks, "several splits", "remove one of each: the score is too good"),
        ("same_conflict", conflicts, "several classes", "keep the one with the right label"),
    ):
        if pairs:
            example = " = ".join(shown(report.names[p]) for p in pairs[0])
            text = f"{counted(len(pairs), 'file')} with identical copies in {where}: {example}."
            yield Finding(kind, "warn", len(pairs), text, cure, (example,))


def _look(report: Report, end: float) -> None:
    """Record colours and time of a sample of images in a row, until `end`."""
    for place in _sample(report.names).tolist():
        if time.monotonic() > end:
            break
        name, index = find_image(report.splits, place)
        with contextlib.suppress(BrokenFileError):
            stored = report.splits[name].stored(index)
            record = report.records[place]
            if isinstance(stored, bytes):
                record["taken"], record["camera"] = taken(stored)
            record["colours"] = colours(small(report.splits[name], index, stored))


def _sample(names: Names) -> Ints:
    """Windows of images in a row, in the order of their numbers, spread over the data set; every
    second window comes first, so that less time means fewer of them."""
    files = numbered(list(names))
    order = np.arange(len(names)) if files is None else files.order
    starts = np.unique(np.linspace(0, max(0, len(order) - WINDOW), WINDOWS).astype(np.int64))
    starts = np.concatenate([starts[::2], starts[1::2]])
    places = (starts[:, None] + np.arange(WINDOW)[None]).reshape(-1)
    chosen: Ints = order[places[places < len(order)]]
    return np.array(list(dict.fromkeys(chosen.tolist())), np.int64)


def small(split: Split, index: int, stored: bytes | Pixels) -> Pixels:
    """The picture in colour, decoded at a fraction of its size where it is a JPEG.

    Raises BrokenFileError.
    """
    if isinstance(stored, bytes) and is_jpeg(stored):
        with contextlib.suppress(ValueError, KeyError):
            height, width, *_ = simplejpeg.decode_jpeg_header(stored, strict=False)
            if height * width > MAX_PIXELS:
                return split.read(index, 3)  # refuses it
            small = simplejpeg.decode_jpeg(
                stored, "RGB", fastdct=True, min_height=64, min_width=64, min_factor=1
            )
            return np.asarray(small)
    return split.read(index, 3)
