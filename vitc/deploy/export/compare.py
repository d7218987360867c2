"""Does an exported file answer as its original, how fast, and how large is it?"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitc.data.sources.base import Split
from vitc.deploy.classifier import Classifier
from vitc.deploy.export.base import FileModel, Input, Precision
from vitc.deploy.measures import probabilities
from vitc.errors import BrokenFileError, DataError, RunError
from vitc.machine import environment, memory_kept
from vitc.stats.paired import compare_accuracy
from vitc.views.model import Page, Table, Text
from vitc.wording import counted

BATCH = 32  # images of the original at a time
BATCHES = (1, 8, 64)  # whose latency is measured
MOST_REPEATS, ENOUGH_SECONDS = 30, 1.0  # of a measurement


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call with `batch` prepared images: median, fastest and slowest of n."""

    batch: int
    median: float
    fastest: float
    slowest: float
    n: int


@dataclass(frozen=True)
class ExportReport:
    """What was compared on n images, all from their pixels: the file with its original in fp32.

    agreement: percent of images with the same most probable class; `disagree` names the others.
    max_diff: the largest difference of two logits; max_probability_diff: of two probabilities.
    top1_change: exported minus original accuracy, in points, with its 95 % interval. Sizes in
    bytes; that of the original is of its tensors.
    """

    path: Path
    run: str
    format: str
    precision: Precision
    input: Input
    images: str
    n: int
    agreement: float
    max_diff: float
    max_probability_diff: float
    top1: float
    top1_original: float
    top1_change: float
    top1_interval: tuple[float, float]
    size: int
    size_original: int
    latency: tuple[Latency, ...]
    latency_original: tuple[Latency, ...]
    threads: int
    disagree: tuple[str, ...] = ()
    exact_resize: bool = False
    """Whether images are resized as by PyTorch, since with the engine's own way, which is faster,
    too many answers differed."""
    kept_float: tuple[str, ...] = ()
    """Layers that int8 left in float."""
    not_fitted: str = ""
    """Why the file has no temperature, or no thresholds either."""
    calibration: str = ""
    """Where the images are from that int8 took its ranges from."""
    calibrated: int = 0
    """How many of the images compared are among them."""

    def to_dict(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self), "path": str(self.path), **environment()}


@dataclass(frozen=True, eq=False)
class Answers:
    """names of N readable images; labels int64 (N,); logits float32 (N, K)."""

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]


def spread_over(split: Split, most: int) -> Split:
    """At most so many images, evenly spread over the split."""
    if len(split) <= most:
        return split
    return split.take(np.linspace(0, len(split) - 1, most).astype(np.int64))


def answers_of(classifier: Classifier, split: Split) -> Answers:
    """A model's answers from the pixels of images as they are; broken ones are left out.

    Raises DataError: none can be read; CheckpointError, RunError: answers that are not finite.
    """
    model, positions, logits = classifier.model, [], []
    from_pixels = isinstance(model, FileModel) and model.input == "image"
    images = readable(split, classifier.in_chans)
    with memory_kept():
        while group := list(itertools.islice(images, BATCH)):
            positions += [i for i, _ in group]
            if from_pixels:
                logits += [model.run(pixels[None]) for _, pixels in group]  # type: ignore[operator]
            else:
                prepared = torch.stack([classifier.prepare(pixels) for _, pixels in group])
                logits.append(classifier.logits(prepared).cpu().numpy())
    if not positions:
        raise DataError("None of the images could be read: there is nothing to compare.")
    found = np.concatenate(logits)
    if not np.isfinite(found).all():
        raise RunError(f"The outputs of {classifier.name} are not finite.")
    return Answers(tuple(split.names[i] for i in positions), split.labels[positions], found)


def readable(split: Split, in_chans: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(position, pixels (H, W, C)) of each image that is not broken."""
    for i in range(len(split)):
        with contextlib.suppress(BrokenFileError):
            yield i, np.ascontiguousarray(split.read(i, in_chans))


def compare(
    original: Classifier, exported: Classifier, before: Answers, after: Answers, file: Path
) -> dict[str, Any]:
    """The measured fields of an ExportReport. before, after: the answers of the two models."""
    best = [a.logits.argmax(axis=1) for a in (before, after)]
    same = best[0] == best[1]
    right = [b == before.labels for b in best]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    n = len(before.names)
    change = compare_accuracy(gained, lost, n)
    probs = [probabilities(a.logits) for a in (before, after)]
    tensors = original.model.state_dict().values()
    return {
        "n": n,
        "agreement": 100 * float(same.mean()),
        "max_diff": float(np.abs(after.logits - before.logits).max()),
        "max_probability_diff": float(np.abs(probs[1] - probs[0]).max()),
        "top1": 100 * float(right[1].mean()),
        "top1_original": 100 * float(right[0].mean()),
        "top1_change": change.difference,
        "top1_interval": change.interval,
        "size": size_of(file),
        "size_original": sum(t.numel() * t.element_size() for t in tensors),
        "latency": latencies(exported),
        "latency_original": latencies(original),
        "threads": torch.get_num_threads(),
        "disagree": tuple(before.names[i] for i in np.flatnonzero(~same)[:20]),
    }


def size_of(file: Path) -> int:
    """Bytes of an exported file, alone in its folder, and of those beside it."""
    return sum(f.stat().st_size for f in file.parent.glob(f"{escape(file.stem)}.*"))


def latencies(classifier: Classifier) -> tuple[Latency, ...]:
    """Of uint8 images of the model's size, normalisation included."""
    c = classifier
    assert c.preprocessing.img_size is not None
    shape = (c.in_chans, *c.preprocessing.img_size)
    rng = np.random.default_rng(0)
    found = []
    for batch in BATCHES:
        images = torch.from_numpy(rng.integers(0, 256, (batch, *shape), dtype=np.uint8))
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        model = c.model
        if isinstance(model, FileModel) and model.input == "image":
            found.append(_timed(lambda m=model, p=pixels: m.run(p), batch))  # type: ignore[misc]
        else:
            found.append(_timed(lambda x=images: c.logits(x), batch))  # type: ignore[misc]
    return tuple(found)


def _timed(call: Callable[[], object], batch: int) -> Latency:
    times: list[float] = []
    while len(times) < 2 or (len(times) <= MOST_REPEATS and sum(times[1:]) < ENOUGH_SECONDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if len(times) == 1 and times[0] > ENOUGH_SECONDS:
            break
    ms = [1000 * t for t in (times[1:] or times)]  # the first call allocates and plans
    return Latency(batch, statistics.median(ms), min(ms), max(ms), len(ms))


def report_page(r: ExportReport) -> Page:
    """One table: the original, the file, and the difference."""
    low, high = r.top1_interval
    rows = [
        (
            "top-1",
            f"{r.top1_original:.2f} %",
            f"{r.top1:.2f} %",
            f"{r.top1_change:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})",
        ),
        ("same class", "", f"{r.agreement:.2f} %", f"of {counted(r.n, 'image')} ({r.images})"),
        ("logits", "", "", f"at most {r.max_diff:.2g}"),
        ("probabilities", "", "", f"at most {r.max_probability_diff:.2g}"),
        (
            "size",
            f"{r.size_original / 1e6:.2f} MB",
            f"{r.size / 1e6:.2f} MB",
            f"{r.size / r.size_original:.2f} x",
        ),
    ]
    for before, after in zip(r.latency_original, r.latency, strict=True):
        rows.append(
            (
                f"batch {after.batch}",
                f"{before.median:.1f} ms",
                f"{after.median:.1f} ms",
                f"{before.median / after.median:.2f} times as fast",
            )
        )
    title = f"{r.path} ({r.format}, {r.precision}) and {r.run}"
    notes = [
        Text(
            "The original is computed by PyTorch in fp32, also where its run was measured in bf16. "
            f"Latency: median, {counted(r.threads, 'thread')}."
        )
    ]
    if r.exact_resize:
        notes.append(
            Text(
                "Images are resized by matrix products, to PyTorch's pixels: with the engine's own "
                "Resize, which is faster for large ones, fewer answers than required were the same."
            )
        )
    if r.kept_float:
        some, more = r.kept_float[:3], len(r.kept_float) - 3
        rest = [f"{more} more (in the report)"] if more > 0 else []
        notes.append(Text(f"Left in float: {', '.join([*some, *rest])}."))
    if r.calibration:
        notes.append(Text(r.calibration))
    if r.not_fitted:
        notes.append(Text(r.not_fitted))
    table = Table(title, ("", "original", "exported", "difference"), rows)
    return Page(title, [table, *notes], r.to_dict())
