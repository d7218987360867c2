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
from vitc.training.evaluate import EVAL_BATCH, Counts, logits_of, open_split
from vitc.views.model import Page, Table
from vitc.wording import counted


@dataclass(frozen=True, eq=False)
class SplitLogits:
    """A model's answers on a split. names of N; labels int64 (N,); logits float32 (N, K)."""

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    fingerprint: str


@dataclass(frozen=True)
class ClassResult:
    """One class: `n` images, `correct` of them predicted as this class."""

    name: str
    n: int
    correct: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured on the `n` images of a split; accuracies in percent.

    `interval`: Wilson's 95 % interval of top1, of the choice of images alone. `confusion`: int64
    (K, K), images of class i predicted as class j.
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
            "data_fingerprint": self.data_fingerprint,
            "device": self.device,
        }


def predict_split(
    classifier: Classifier, data: str | None = None, split: str = "val"
) -> SplitLogits:
    """The logits of every readable image of a split of the run's data, or of other images.

    Computed as during training, in the run's precision. Raises ConfigError, DataError.
    """
    c = classifier
    batches, settings, fingerprint = open_split(
        c.config, c.classes, c.preprocessing, c.device, data, split
    )
    names, labels, logits = [], [], []
    order = np.concatenate([*batches.batches, np.zeros(0, np.int64)])
    for found, target in logits_of(c.model, batches, settings):
        logits.append(found.float().cpu())
        labels.append(target.cpu())
    label = torch.cat(labels)
    seen = label >= 0
    names = [batches.split.names[i] for i in order[seen.numpy()].tolist()]
    return SplitLogits(
        tuple(names), label[seen].numpy(), torch.cat(logits)[seen].numpy(), fingerprint
    )


def evaluate(
    run: str | os.PathLike[str],
    data: str | None = None,
    split: str = "val",
    weights: Literal["ema", "raw"] = "ema",
    device: str = "auto",
) -> Evaluation:
    """Evaluate a run's last checkpoint, or a saved model, on a split.

    `data`: other images than the run's own, with the same classes. Read `split` test once, for the
    run chosen on val. Raises ConfigError, DataError, CheckpointError.
    """
    classifier = Classifier.load(run, device, weights)
    found = predict_split(classifier, data, split)
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
        split=split,
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
        data_fingerprint=found.fingerprint,
        device=describe(classifier.device),
    )


def evaluation_page(e: Evaluation) -> Page:
    """What an evaluation measured; top-5 only where there are more than five classes."""
    interval = f"(95 % interval {e.interval[0]:.2f} to {e.interval[1]:.2f})"
    rows = [("top-1", f"{e.top1:.2f} %  {interval}")]
    if len(e.per_class) > 5:
        rows.append(("top-5", f"{e.top5:.2f} %"))
    rows.append(("loss", f"{e.loss:.4f}"))
    kind = "average (EMA)" if e.weights == "ema" else "raw"
    title = f"{e.run}: {counted(e.n, f'{e.split} image')}, {kind} weights"
    return Page(title, [Table(title, ("", "value"), rows)], e.to_dict())
