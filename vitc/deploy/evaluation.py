"""How good is a trained model on a split: accuracy with its interval, by class, confusions."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitc.data.cache import training_split
from vitc.data.copies import Copies, near_copies
from vitc.data.sources import SOURCES
from vitc.data.sources.base import Split
from vitc.deploy import measures
from vitc.deploy.classifier import Classifier
from vitc.deploy.measures import Calibration, ClassResult, Confused, Coverage, Fit
from vitc.errors import DataError
from vitc.machine import memory_kept
from vitc.runs.folder import Run
from vitc.runs.results import fitted_on_val, keep_test, state_of
from vitc.stats.proportions import wilson
from vitc.training.device import describe
from vitc.training.evaluate import Counts, eval_batch, logits_of, open_measured
from vitc.training.measured import Asked, Measured, choose_images
from vitc.views.model import Page, Part, Table, Text
from vitc.wording import counted, few, printable, short

SPLITS = {"val": "validation image", "test": "test image", "all": "image"}


@dataclass(frozen=True, eq=False)
class SplitLogits:
    """A model's answers on images. names of N; labels int64 (N,); logits float32 (N, K).

    images: what they are, and what must be known of them. pictures: those N images. seen: bool
    (N,), which of them the model was trained on; None: not known.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    images: Measured
    pictures: Split
    seen: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured on the `n` readable images of a split ("all": all); accuracies in percent.

    `interval`: Wilson's 95 % interval of top1, of the choice of images alone. `confusion`: int64
    (K, K), images of class i predicted as class j. `trained_on`: how many of the images the model
    was trained on, by their content; None: not known. `notes`: what a reader must know.
    `names`, `labels` int64 (N,), `probabilities` float32 (N, K) and `pictures` are of each image;
    `worst` and `label_errors` are positions among them (see `vitc.deploy.measures`).
    `largest_class`: its name, and the accuracy of always answering it. `train`: the training
    images, where these are held-out ones of the run's own data; `copies`: near duplicates of them.
    """

    run: str
    split: str
    weights: str
    n: int
    top1: float
    top5: float
    loss: float
    interval: tuple[float, float]
    per_class: tuple[ClassResult, ...]
    confusion: NDArray[np.int64]
    data_fingerprint: str
    device: str
    trained_on: int | None
    notes: tuple[str, ...]
    names: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    probabilities: NDArray[np.float32] = field(repr=False)
    pictures: Split = field(repr=False)
    largest_class: tuple[str, float]
    confused: tuple[Confused, ...] = field(repr=False)
    worst: NDArray[np.int64] = field(repr=False)
    label_errors: NDArray[np.int64] = field(repr=False)
    fit: Fit
    calibration: Calibration = field(repr=False)
    coverage: Coverage = field(repr=False)
    copies: Copies | None = field(repr=False)
    train: Split | None = field(repr=False)

    average: str | None = None
    """Which average of a run's weights this is; empty: its last weights; None: of no run."""
    answered_by: str = ""
    """The models that answered each image, where `run` predicts with more of them: by folds."""
    choices: tuple[str, ...] = ()
    """Why the runs of folds are as they are; events.log has it of one run."""

    @property
    def measured_on(self) -> str:
        """The images and the weights, in words."""
        images = counted(self.n, SPLITS[self.split])
        return images if self.average is None else f"{images}, {self.average or 'last'} weights"

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.per_class)

    @property
    def not_learnt(self) -> tuple[ClassResult, ...]:
        """Classes with at most a tenth of their images right, those with most images first."""
        missed = [c for c in self.per_class if not c.learnt]
        return tuple(sorted(missed, key=lambda c: -c.n))

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the classes, as `vitc evaluate --json` prints them."""
        return {
            "run": self.run,
            "split": self.split,
            "classes": len(self.per_class),
            "weights": self.weights,
            "n": self.n,
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "top1_low": self.interval[0],
            "top1_high": self.interval[1],
            "trained_on": self.trained_on,
            "notes": list(self.notes),
            "data_fingerprint": self.data_fingerprint,
            "device": self.device,
        }


def predict_split(
    classifier: Classifier,
    data: str | None = None,
    split: str | None = None,
    allow_changed_data: bool = False,
    skip_unknown_classes: bool = False,
    skip_broken: bool = False,
) -> SplitLogits:
    """The logits of every readable image of a split of the run's data (val), or of other images.

    Computed as during training, in the run's precision. What is allowed: see `evaluate`. Raises
    ConfigError, DataError.
    """
    asked = Asked(data, split, allow_changed_data, skip_unknown_classes)
    if skip_broken:
        config = classifier.config
        skipping = replace(config, data=replace(config.data, bad_files="skip"))
        classifier = replace(classifier, config=skipping)
    return answers_on(classifier, choose_images(classifier.training, asked))


def answers_on(classifier: Classifier, images: Measured) -> SplitLogits:
    """The logits of every readable image, computed as during training.

    How many could not be read is logged and among the notes. Raises CheckpointError: the logits
    are not finite.
    """
    c = classifier
    batches, settings = open_measured(images, c.config, c.preprocessing, c.device)
    labels, logits = [], []
    order = np.concatenate([*batches.batches, np.zeros(0, np.int64)])
    with memory_kept():
        for found, target in logits_of(c.model, batches, settings):
            logits.append(found.float().cpu())
            labels.append(target.cpu())
    label = torch.cat(labels)
    readable = label >= 0
    places = order[readable.numpy()]
    pictures, answers = batches.split.take(places), torch.cat(logits)[readable]
    c.check_finite(answers)
    if len(pictures) < len(images.split):
        note = unreadable(batches.skipped, len(images.split))
        logging.getLogger("vitc").warning(note)
        images = replace(images, notes=(*images.notes, note))
    return SplitLogits(
        tuple(pictures.names),
        label[readable].numpy(),
        answers.numpy(),
        images,
        pictures,
        None if images.seen is None else images.seen[places],
    )


def unreadable(names: Sequence[str], total: int) -> str:
    """A note on the images that are not among those measured on."""
    which = few(map(printable, names), 3)
    return f"{len(names):,} of {counted(total, 'image')} could not be read: {which}."


def evaluate(
    run: str | os.PathLike[str],
    data: str | None = None,
    split: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    device: str = "auto",
    *,
    allow_changed_data: bool = False,
    skip_unknown_classes: bool = False,
    skip_broken: bool = False,
) -> Evaluation:
    """Evaluate a run's last checkpoint, or a saved model.

    On a split of the run's own images: val, unless `split` is given; read test once, for the run
    chosen on val. Or on other images, `data`: all of them, or where they have splits of their own
    val, else test; classes are matched by name. Images that were trained on are counted and
    reported. `allow_changed_data`: although the run's own images changed since it was trained.
    `skip_unknown_classes`: leave out images of classes that the model does not know.
    `skip_broken`: leave out images that cannot be read, and report them. Raises ConfigError,
    DataError, CheckpointError.
    """
    classifier = Classifier.load(run, device, weights)
    allowed = {
        "allow_changed_data": allow_changed_data,
        "skip_unknown_classes": skip_unknown_classes,
        "skip_broken": skip_broken,
    }
    found = predict_split(classifier, data, split, **allowed)
    return with_test_kept(classifier, measure(classifier, found, str(run)))


def measure(
    classifier: Classifier,
    found: SplitLogits,
    run: str,
    look_for_copies: bool = True,
) -> Evaluation:
    """All that a model's answers show; temperature and thresholds as the run's page has them, or
    else from those of these images that were not trained on. Raises DataError: there are none."""
    labels, logits = torch.from_numpy(found.labels), torch.from_numpy(found.logits)
    counts = Counts(torch.device("cpu"))
    size = eval_batch(classifier.config, classifier.device)  # as during training
    for i in range(0, len(labels), size):
        counts.add(logits[i : i + size], labels[i : i + size])
    result = counts.result()
    k, n = len(classifier.classes), int(result["n"])
    if not n:
        raise DataError("None of the images could be read: there is nothing to measure.")
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (found.labels, found.logits.argmax(axis=1)), 1)
    probs = measures.probabilities(found.logits)
    largest = int(confusion.sum(axis=1).argmax())
    own = _own_training_images(classifier, found)
    copies = None
    if look_for_copies and own is not None and SOURCES[found.images.data.source].of_user:
        c = classifier.config
        kept_small, _ = training_split(found.images.data, c.data, c.model.in_chans, make=False)
        copies = near_copies(found.pictures, kept_small)
    kept = None
    if own is not None and found.images.name != "val":
        kept = kept_fit(classifier)
    unseen = np.ones(n, np.bool_) if found.seen is None else ~found.seen
    fit = kept or _fit_on(found, unseen)
    return Evaluation(
        run=run,
        split=found.images.name,
        weights=classifier.weights,
        n=n,
        top1=result["top1"],
        top5=result["top5"],
        loss=result["loss"],
        interval=wilson(result["top1"], n),
        per_class=measures.class_results(classifier.classes, confusion),
        confusion=confusion,
        data_fingerprint=found.images.data.fingerprint,
        device=describe(classifier.device),
        trained_on=None if found.seen is None else int(found.seen.sum()),
        notes=(*found.images.notes, *_chosen_on(classifier, found)),
        names=found.names,
        labels=found.labels,
        probabilities=probs,
        pictures=found.pictures,
        largest_class=(classifier.classes[largest], 100 * int(confusion[largest].sum()) / n),
        confused=measures.most_confused(confusion),
        worst=measures.worst_images(found.labels, probs),
        label_errors=measures.likely_label_errors(found.labels, probs),
        fit=fit,
        calibration=measures.calibration(found.labels, found.logits, fit, None if kept else unseen),
        coverage=measures.coverage(found.labels, probs, fit),
        copies=copies,
        train=own,
        average=classifier.average,
    )


def _fit_on(found: SplitLogits, unseen: NDArray[np.bool_]) -> Fit:
    """What those of the images give that the model was not trained on."""
    labels, logits, name = found.labels[unseen], found.logits[unseen], found.images.name
    if not len(labels):
        return measures.no_fit("the model was trained on all of these images", name, 0)
    return measures.fit(labels, logits, name)


def _own_training_images(classifier: Classifier, found: SplitLogits) -> Split | None:
    """The training images, where the images measured on are held-out ones of the run's own data,
    which has not changed."""
    data, record = found.images.data, classifier.record or {}
    if found.images.name == "all":
        return None
    if record.get("fingerprint") not in (data.fingerprint, data.listing):
        return None
    return data.splits["train"]


def _chosen_on(classifier: Classifier, found: SplitLogits) -> list[str]:
    """A note where the weights were chosen by their result on these images."""
    if classifier.run is None or found.images.name != "val":
        return []
    many = Run(classifier.run).summary.get("best_of")
    if not isinstance(many, int) or _own_training_images(classifier, found) is None:
        return []
    return [
        f"These weights are the best of {many} evaluations on these validation images: the result "
        "is a little too good. That on test images is not."
    ]


def kept_fit(classifier: Classifier) -> Fit | None:
    """What was fitted on the run's validation images, if the run page of this state has it."""
    if classifier.run is None:
        return None
    stored = fitted_on_val(classifier.run, classifier.weights) or {}
    temperature, thresholds, n = (stored.get(k) for k in ("temperature", "thresholds", "n"))
    if not isinstance(thresholds, list) or len(thresholds) != len(measures.TARGETS):
        return None
    if not isinstance(n, int) or not all(
        v is None or isinstance(v, float) for v in (temperature, *thresholds)
    ):
        return None
    why = str(stored.get("why", ""))
    if temperature is not None and not measures.within_bounds(temperature):  # by an earlier version
        temperature, why = None, measures.AT_BOUND
    return Fit(temperature, tuple(thresholds), "val", n, why)


def with_test_kept(classifier: Classifier, e: Evaluation) -> Evaluation:
    """The same; a result on the run's own test images is kept in its folder, if that can be
    written."""
    run = classifier.run
    state = None if run is None else state_of(run, e.weights)
    if run is not None and state is not None and e.split == "test" and e.train is not None:
        try:
            keep_test(run, {**e.to_dict(), **state})
        except OSError as error:
            what = f"The test result is not kept in {run}: {error.strerror or error}."
            logging.getLogger("vitc").warning(what)
    return e


def not_learnt(e: Evaluation) -> str:
    """`Not learnt: hat (0 of 12 correct)`."""
    missed, most = e.not_learnt, 8
    named = few((f"{short(c.name, 60)} ({c.correct} of {c.n} correct)" for c in missed), most)
    many = f" {len(missed)} of {len(e.classes)} classes:" if len(missed) > most else ""
    return f"Not learnt:{many} {named}."


def evaluation_page(e: Evaluation) -> Page:
    """What an evaluation measured; top-5 only where there are more than five classes."""
    interval = f"(95 % interval {e.interval[0]:.2f} to {e.interval[1]:.2f})"
    name, baseline = e.largest_class
    rows = [("top-1", f"{e.top1:.2f} %  {interval}")]
    if len(e.per_class) > 5:
        rows.append(("top-5", f"{e.top5:.2f} %"))
    rows.append(("loss", f"{e.loss:.4f}"))
    rows.append(("largest class alone", f"{baseline:.2f} %  ({short(name, 60)})"))
    title = f"{e.run}: {e.measured_on}"
    parts: list[Part] = [Text(not_learnt(e))] if e.not_learnt else []
    return Page(title, [*parts, Table(title, ("", "value"), rows)], e.to_dict())
