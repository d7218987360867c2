"""Which held-out images have a near duplicate among the training images? Within a few seconds.

Found are pairs that `vitc.data.near_duplicates` takes for one picture; where time ends first, some
training images were not looked at. `vitc data check` looks at all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vitc.data.near_duplicates import (
    miniature,
    near_groups,
    perceptual_hash,
    small_grey,
)
from vitc.data.sources.base import Split
from vitc.data.thumbnails import read_small
from vitc.errors import BrokenFileError

SECONDS = 2.0
SMALL = 64  # pixels a side of what is compared


@dataclass(frozen=True)
class Copies:
    """`pairs`: (index of a held-out image, index of a training image that looks the same), one for
    each such held-out image; of how many images of each split were looked at."""

    pairs: tuple[tuple[int, int], ...]
    held_out: int
    train: int


def near_copies(held_out: Split, train: Split, seconds: float = SECONDS) -> Copies:
    """Look at held-out images for at most half the time, then at training images, in an order that
    is random and always the same."""
    start = time.monotonic()
    first = _look(held_out, start + seconds / 2)
    second = _look(train, start + seconds)
    places = np.array([*first, *second], np.int64)
    if not first or not second:
        return Copies((), len(first), len(second))
    looked = [*first.values(), *second.values()]
    hashes = np.array([h for h, _ in looked], np.uint64)
    groups = near_groups(hashes, np.stack([mini for _, mini in looked]))
    in_train: dict[int, int] = {}
    for place, group in zip(places[len(first) :].tolist(), groups[len(first) :], strict=True):
        in_train.setdefault(int(group), place)
    pairs = [
        (place, in_train[int(group)])
        for place, group in zip(places[: len(first)].tolist(), groups[: len(first)], strict=True)
        if int(group) in in_train
    ]
    return Copies(tuple(sorted(pairs)), len(first), len(second))


def _look(split: Split, end: float) -> dict[int, tuple[int, np.ndarray]]:
    """Hash and miniature of images by their index, of as many as are read before `end`."""
    found = {}
    for index in np.random.default_rng(0).permutation(len(split)).tolist():
        if time.monotonic() > end:
            break
        try:
            grey = small_grey(read_small(split, index, SMALL))
        except BrokenFileError:
            continue
        found[index] = perceptual_hash(grey), miniature(grey)
    return found
