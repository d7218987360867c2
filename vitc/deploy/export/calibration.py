"""Which images does int8 take its ranges from, and on which is the file then compared?"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.dataset import open_data
from vitc.data.identity import images_of, trained_on
from vitc.data.sources.base import Split
from vitc.deploy.classifier import Classifier
from vitc.deploy.export.compare import readable, spread_over
from vitc.errors import DataError, VitcError
from vitc.training.measured import Measured
from vitc.wording import counted

MOST = 128  # images
FEWEST = 20  # images to compare on: of fewer, one other answer is below the 95 % required


@dataclass(frozen=True, eq=False)
class Calibration:
    """images: uint8 (N, C, h, w), prepared as in evaluation. compared: what the file is compared
    on; `shared` of these are calibration images. note: where they are from, for a reader."""

    images: Tensor
    compared: Split
    shared: int
    note: str


def choose_calibration(
    c: Classifier, images: Measured, data: str | None, most_compared: int
) -> Calibration:
    """Images for the ranges, and at most `most_compared` others of `images` to compare on.

    The former are of the run's training split, or else of that of `data`, or else some of `images`.
    Raises DataError: none can be read.
    """
    notes = []
    for what, split in _sources(c, images, data):
        divided = split is images.split and len(split) >= 2 * FEWEST
        most = min(MOST, len(split) // 2 if divided else len(split))
        order = _in_order(len(split), most)
        found = list(itertools.islice(readable(split.take(order), c.in_chans), most))
        if found:
            break
        notes.append(f"None of the {counted(len(split), 'image')} of {what} can be read.")
    else:
        raise DataError("None of the images can be read: int8 has nothing to take its ranges from.")
    used = order[[i for i, _ in found]]
    others = images.split
    if divided:
        others = others.take(np.setdiff1d(np.arange(len(split)), used))
        what += ", which are left out of the comparison"
    compared, shared = _without(split.take(used), spread_over(others, most_compared))
    notes.append(f"Ranges of int8: from {counted(len(found), 'image')} of {what}.")
    if shared:
        notes.append(
            f"{shared:,} of the {counted(len(compared), 'image')} compared are among them, as too "
            "few are left without these: the result may be too good."
        )
    prepared = torch.stack([c.prepare(pixels) for _, pixels in found])
    return Calibration(prepared, compared, shared, " ".join(notes))


def _sources(c: Classifier, images: Measured, data: str | None) -> Iterator[tuple[str, Split]]:
    """What the images for the ranges can be of, the best first."""
    train = images.data.splits.get("train")
    own = train if data is None else _own_training_split(c)
    if own is not None and images.name != "train":
        yield "the run's training split", own
    if train is not None and train is not own and images.name not in ("train", "all"):
        yield f"the training split of {data}", train
    yield "those to compare on", images.split


def _own_training_split(c: Classifier) -> Split | None:
    """None: of no run, or its images are not there."""
    if c.run is not None:
        with contextlib.suppress(VitcError):
            return open_data(c.config.data, c.in_chans).splits["train"]
    return None


def _in_order(n: int, most: int) -> NDArray[np.int64]:
    """Positions of n images: first so many that are evenly spread, then the others."""
    first = np.linspace(0, n - 1, most).astype(np.int64)
    return np.concatenate([first, np.setdiff1d(np.arange(n), first)])


def _without(used: Split, compared: Split) -> tuple[Split, int]:
    """What is compared without the images used, by content, and how many of these it has: all
    stay where too few would be left."""
    mine, others = (images_of((), {"train": split}, limit=0) for split in (used, compared))
    same = trained_on(mine, others)
    count = int(same.sum())
    if not count or count > len(compared) - FEWEST:
        return compared, count
    return compared.take(np.flatnonzero(~same)), 0
