"""How good is a trained model on a split: accuracy with its interval, by class, confusions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitc.deploy.classifier import Classifier
from vitc.stats.proportions import wilson
from vitc.training.device import describe
from vitc.training.evaluate import EVAL_BATCH, Counts, logits_of, open_measured
from vitc.training.measured import Asked, Measured, choose_images
from vitc.views.model import Page, Table
from vitc.wording import counted


@dataclass(frozen=True, eq=False)
class SplitLogits:
    """A model's answers on images. names of N; labels int64 (N,); logits float32 (N, K).

    images: what they are, and what must be known of them.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    images: Measured


@dataclass(frozen=True)
class ClassResult:
    """One class: `n` images, `correct` of them predicted as this class."""

    name: str
    n: int
    correct: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured on the `n` images of a split ("all": of all); accuracies in percent.

    `interval`: Wilson's 95 % interval of top1, of the choice of images alone. `confusion`: int64
    (K, K), images of class i predicted as class j. `trained_on`: how many of the images the model
    was trained on, by their content; None: not known. `notes`: what a reader must know.
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
    trained_on: int | None = None
    notes: tuple[str, ...] = ()

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
    classifier: Classifier, data: str | None = None, split: str | None = None, **allowed: bool
) -> SplitLogits:
    """The logits of every readable image of a split of the run's data (val), or of other images.

    Computed as during training, in the run's precision. allowed: see `evaluate`. Raises
    ConfigError, DataError.
    """
    c = classifier
    images = choose_images(c.training, Asked(data, split, **allowed))
    batches, settings = open_measured(images, c.config, c.preprocessing, c.device)
    labels, logits = [], []
    order = np.concatenate([*batches.batches, np.zeros(0, np.int64)])
    for found, target in logits_of(c.model, batches, settings):
        logits.append(found.float().cpu())
        labels.append(target.cpu())
    label = torch.cat(labels)
    seen = label >= 0
    names = [batches.split.names[i] for i in order[seen.numpy()].tolist()]
    return SplitLogits(tuple(names), label[seen].numpy(), torch.cat(logits)[seen].numpy(), images)


def evaluate(
    run: str | os.PathLike[str],
    data: str | None = None,
    split: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    device: str = "auto",
    *,
    allow_changed_data: bool = False,
    skip_unknown_classes: bool = False,
) -> Evaluation:
    """Evaluate a run's last checkpoint, or a saved model.

    On a split of the run's own images: val, unless `split` is given; read test once, for the run
    chosen on val. Or on other images, `data`: all of them, or where they have splits of their own
    val, else test; classes are matched by name. Images that were trained on are counted and
    reported. `allow_changed_data`: although the run's own images changed since it was trained.
    `skip_unknown_classes`: leave out images of classes that the model does not know. Raises
    ConfigError, DataError, CheckpointError.
    """
    classifier = Classifier.load(run, device, weights)
    allowed = {
        "allow_changed_data": allow_changed_data,
        "skip_unknown_classes": skip_unknown_classes,
    }
    found = predict_split(classifier, data, split, **allowed)
    labels, logits = torch.from_numpy(found.labels), torch.from_numpy(found.logits)
    counts = Counts(torch.device("cpu"))
    for i in range(0, len(labels), EVAL_BATCH):  # in the batches of an evaluation during training
        counts.add(logits[i : i + EVAL_BATCH], labels[i : i + EVAL_BATCH])
    result = counts.result()
    k = len(classifier.classes)
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (found.labels, found.logits.argmax(axis=1)), 1)
    return Evaluation(
        run=str(run),
        split=found.images.name,
        weights=weights,
        n=int(result["n"]),
        top1=result["top1"],
        top5=result["top5"],
        loss=result["loss"],
        interval=wilson(result["top1"], int(result["n"])),
        per_class=tuple(
            ClassResult(name, int(confusion[i].sum()), int(confusion[i, i]))
            for i, name in enumerate(classifier.classes)
        ),
        confusion=confusion,
        data_fingerprint=found.images.data.fingerprint,
        device=describe(classifier.device),
        trained_on=found.images.trained_on,
        notes=found.images.notes,
    )


def evaluation_page(e: Evaluation) -> Page:
    """What an evaluation measured; top-5 only where there are more than five classes."""
    interval = f"(95 % interval {e.interval[0]:.2f} to {e.interval[1]:.2f})"
    rows = [("top-1", f"{e.top1:.2f} %  {interval}")]
    if len(e.per_class) > 5:
        rows.append(("top-5", f"{e.top5:.2f} %"))
    rows.append(("loss", f"{e.loss:.4f}"))
    kind = "average (EMA)" if e.weights == "ema" else "raw"
    images = (
        f"all {counted(e.n, 'image')}" if e.split == "all" else counted(e.n, f"{e.split} image")
    )
    title = f"{e.run}: {images}, {kind} weights"
    return Page(title, [Table(title, ("", "value"), rows)], e.to_dict())
