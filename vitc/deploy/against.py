"""Which of two models is better on the same images, by how much, and on which images?"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitc.deploy.classifier import Classifier
from vitc.deploy.evaluation import (
    SPLITS,
    Evaluation,
    answers_on,
    measure,
    predict_split,
    with_test_kept,
)
from vitc.deploy.run_page import MOST_CLASSES, file_name, jpeg, percent, save_page
from vitc.errors import DataError
from vitc.runs.results import AGAINST
from vitc.stats.paired import PairedAccuracy, compare_accuracy
from vitc.training.measured import same_images
from vitc.views.model import Bullets, Heading, Page, Part, Table, Text, Thumbnail, Thumbnails
from vitc.wording import counted, no_formula, short

SHOWN, BOTH_WRONG = 24, 12  # images of each kind, as pictures


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """Two models on the same images: `a` and `b` measured on them, and the paired difference.

    `paired`: accuracy of a minus that of b in points, its interval and the p of McNemar's exact
    test, which never disagree. `only_a`, `only_b`, `neither`: positions of the images that one
    alone, or none, classifies correctly.
    """

    a: Evaluation = field(repr=False)
    b: Evaluation = field(repr=False)
    paired: PairedAccuracy

    @cached_property
    def right(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether a's and b's answers are correct."""
        a, b = self.a, self.b
        return (
            a.probabilities.argmax(axis=1) == a.labels,
            b.probabilities.argmax(axis=1) == b.labels,
        )

    @property
    def only_a(self) -> NDArray[np.int64]:
        return self._surest(self.a, self.right[0] & ~self.right[1])

    @property
    def only_b(self) -> NDArray[np.int64]:
        return self._surest(self.b, self.right[1] & ~self.right[0])

    @property
    def neither(self) -> NDArray[np.int64]:
        return self._surest(self.a, ~self.right[0] & ~self.right[1])

    def _surest(self, e: Evaluation, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Positions of the chosen images, those of `e`'s most confident answers first."""
        places = np.flatnonzero(chosen)
        order = np.argsort(-e.probabilities[places].max(axis=1), kind="stable")
        return places[order].astype(np.int64)

    @property
    def sentence(self) -> str:
        """The verdict: which is better, or that this is open."""
        c = self.paired
        low, high = c.interval
        sure = f"({100 * c.level:g} % interval {low:+.1f} to {high:+.1f}, McNemar p = {c.p:.2g})"
        if c.p >= 1 - c.level:
            return f"Which is better is open: the difference is {c.difference:+.1f} points {sure}."
        better, worse = (self.a, self.b) if c.difference > 0 else (self.b, self.a)
        return (
            f"{better.run} is better than {worse.run}: the difference is {c.difference:+.1f} "
            f"points {sure}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as `vitc evaluate --against --json` prints them."""
        return {"a": self.a.to_dict(), "b": self.b.to_dict(), "paired": asdict(self.paired)}


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    data: str | None = None,
    split: str | None = None,
    device: str = "auto",
    *,
    weights: str = "ema",
    allow_changed_data: bool = False,
    skip_broken: bool = False,
) -> ModelComparison:
    """Measure two runs or saved models on the same images.

    The images are those of `evaluate(a, data, split)`: of the run a val, unless `split` is given;
    or others, `data`. A reading of a run's own test images is kept in its folder. Raises DataError
    where the two were not trained on the same of them, which would decide the comparison, or b does
    not know their classes; else as `evaluate`.
    """
    first, second = (Classifier.load(run, device, weights) for run in (a, b))
    allowed = {"allow_changed_data": allow_changed_data, "skip_broken": skip_broken}
    found = predict_split(first, data, split, **allowed)
    readable = replace(found.images, split=found.pictures)
    images = same_images(second.training, readable, first.classes, str(b))
    for note in images.notes:
        logging.getLogger("vitc").warning(f"{b}: {note}")
    if found.seen is not None and images.seen is not None and (found.seen != images.seen).any():
        seen = {str(a): found.seen, str(b): images.seen, "both": found.seen & images.seen}
        counts = ", ".join(f"{run} on {int(which.sum()):,}" for run, which in seen.items())
        raise DataError(
            f"Of the {counted(len(found.names), 'image')} to compare on, the two were not trained "
            f"on the same: {counts}.",
            "Name images that neither was trained on: vitc evaluate A DATA --against B.",
        )
    other = answers_on(second, images)
    if other.names != found.names:
        raise DataError(f"{b} cannot read all images that {a} reads.", "Look for broken files.")
    left = with_test_kept(first, measure(first, found, str(a), look_for_copies=False))
    right = with_test_kept(second, measure(second, other, str(b), look_for_copies=False))
    if left.split == "test":
        logging.getLogger("vitc").warning(
            "Choose between runs on validation images: the better of two test results is too good."
        )
    hits = [e.probabilities.argmax(axis=1) == e.labels for e in (left, right)]
    only_a, only_b = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    return ModelComparison(left, right, compare_accuracy(only_a, only_b, left.n))


# -- the page --------------------------------------------------------------------------------------


def write_comparison(c: ModelComparison, command: str, file: Path | None = None) -> Path:
    """Write the page to `file` (default: against.html in the run a), and .json and .csv beside it.

    Returns the file. Raises RunError: it cannot be written.
    """
    file = file or Path(c.a.run) / AGAINST
    save_page(comparison_page(c, command), images_csv(c), file)
    return file


def comparison_page(c: ModelComparison, command: str = "") -> Page:
    title = f"{c.a.run} against {c.b.run}: {counted(c.a.n, SPLITS[c.a.split])}"
    rows = [
        (e.run, f"{e.top1:.1f} % ({e.interval[0]:.1f} to {e.interval[1]:.1f})", f"{e.loss:.3f}")
        for e in (c.a, c.b)
    ]
    p = c.paired
    both = p.n - p.only_a - p.only_b - len(c.neither)
    counts = [
        ("both correct", f"{both:,}"),
        ("only the first", f"{p.only_a:,}"),
        ("only the second", f"{p.only_b:,}"),
        ("neither", f"{len(c.neither):,}"),
    ]
    notes = [f"{e.run}: {note}" for e in (c.a, c.b) for note in e.notes]
    parts: list[Part] = [
        Heading(title, level=1),
        Text(c.sentence, "verdict"),
        Text(
            "The difference is the first minus the second, in points of accuracy. Its interval "
            "covers the choice of images, not another training run with another seed."
        ),
        *([Bullets(notes, "warning")] if notes else []),
        Table("Accuracy", ("model", "accuracy (95 % interval)", "loss"), rows, tight=True),
        Table("Images", ("", "images"), counts, tight=True),
        _classes(c),
        *_pictures(c, "Only the first is correct", c.only_a, SHOWN),
        *_pictures(c, "Only the second is correct", c.only_b, SHOWN),
        *_pictures(c, "Both are wrong", c.neither, BOTH_WRONG),
        *([Bullets([f"This page: {command}"])] if command else []),
    ]
    return Page(title, parts, {"schema": 1, "command": command, **c.to_dict()})


def _classes(c: ModelComparison) -> Table:
    """Recall of each class by both, those first on which they differ most."""
    second = {r.name: r for r in c.b.per_class}
    found = [(r, second[r.name]) for r in c.a.per_class if r.n and r.name in second]
    found.sort(key=lambda pair: -abs(pair[0].correct - pair[1].correct))
    rows = [
        (short(a.name, 40), f"{a.n:,}", percent(a.recall), percent(b.recall))
        for a, b in found[:MOST_CLASSES]
    ]
    return Table("Recall by class", ("class", "images", "first", "second"), rows, tight=True)


def _pictures(
    c: ModelComparison, title: str, places: NDArray[np.int64], most: int
) -> Iterator[Part]:
    if not len(places):
        return
    yield Heading(title)
    yield Text(f"{min(most, len(places))} of {counted(len(places), 'image')}, the surest first.")
    yield Thumbnails(
        [
            Thumbnail(
                [
                    f"label: {_label(c.a, i)}",
                    f"first: {_answer(c.a, i)}",
                    f"second: {_answer(c.b, i)}",
                    file_name(c.a.names[i]),
                ],
                jpeg(c.a.pictures, i),
            )
            for i in places[:most].tolist()
        ]
    )


def _label(e: Evaluation, i: int) -> str:
    return short(e.classes[int(e.labels[i])], 40)


def _answer(e: Evaluation, i: int) -> str:
    best = int(e.probabilities[i].argmax())
    return f"{short(e.classes[best], 40)} ({100 * float(e.probabilities[i, best]):.0f} %)"


def images_csv(c: ModelComparison) -> str:
    """One line for each image."""
    out = io.StringIO()
    rows = csv.writer(out)
    head = ("image", "label", "first", "first_confidence", "second", "second_confidence")
    rows.writerow(head)
    best = [e.probabilities.argmax(axis=1) for e in (c.a, c.b)]
    for i, name in enumerate(c.a.names):
        answers = [
            value
            for e, answer in zip((c.a, c.b), best, strict=True)
            for value in (e.classes[int(answer[i])], float(e.probabilities[i, answer[i]]))
        ]
        rows.writerow(map(no_formula, [name, c.a.classes[int(c.a.labels[i])], *answers]))
    return out.getvalue()
