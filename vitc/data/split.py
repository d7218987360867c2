"""Which image is trained on, which validates, which tests? Pure functions of names and labels.

Each image (or group) gets a number hashed from its name, and the lowest are held out: the same on
every machine and under every library version, and a few images more change the side of few others.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vitc.data.store import Ints

TRAIN, VAL, TEST = 0, 1, 2


def hashed(seed: int, stream: str, names: Iterable[str]) -> NDArray[np.uint64]:
    """One evenly spread 64-bit number for each name."""
    start = hashlib.blake2b(f"{seed}/{stream}/".encode(), digest_size=8)
    numbers = []
    for name in names:
        h = start.copy()
        h.update(name.encode("utf-8", "surrogateescape"))
        numbers.append(int.from_bytes(h.digest(), "little"))
    return np.array(numbers, dtype=np.uint64)


def by_class(labels: Ints, numbers: NDArray[np.uint64]) -> list[Ints]:
    """For each class the positions of its images, lowest number first."""
    order = np.lexsort((numbers, labels))
    counts = np.bincount(labels)
    return [part.astype(np.int64) for part in np.split(order, np.cumsum(counts)[:-1])]


def shares(count: int, val: float, test: float) -> tuple[int, int]:
    """How many of a class's `count` >= 2 images validate and test.

    At least one image trains, then at least one validates, then at least one tests.
    """
    n_val = min(max(1, int(count * val + 0.5)), count - 1) if val else 0
    n_test = min(max(1, int(count * test + 0.5)), count - 1 - n_val) if test else 0
    return n_val, n_test


def hold_out(labels: Ints, names: Sequence[str], val: float, test: float, seed: int) -> Ints:
    """TRAIN, VAL or TEST for each image; every class is shared out alike.

    labels int64 (n,), every class 0 … K-1 with at least two images.
    """
    side = np.full(len(labels), TRAIN, dtype=np.int64)
    for members in by_class(labels, hashed(seed, "split", names)):
        n_val, n_test = shares(len(members), val, test)
        side[members[:n_val]] = VAL
        side[members[n_val : n_val + n_test]] = TEST
    return side


def hold_out_fold(
    labels: Ints, names: Sequence[str], folds: int, fold: int, test: float, seed: int
) -> Ints:
    """TRAIN, VAL or TEST for each image: the test images of `hold_out` without validation, and the
    `fold`-th (from 0) of `folds` parts of the others validates, class by class.

    labels int64 (n,), every class 0 … K-1 with at least two images.
    """
    side = np.full(len(labels), TRAIN, dtype=np.int64)
    for label, members in enumerate(by_class(labels, hashed(seed, "split", names))):
        n_test = shares(len(members), 0.0, test)[1]
        side[members[:n_test]] = TEST
        rest = members[n_test:]  # classes start at different folds, so that these are equally large
        side[rest[(np.arange(len(rest)) + label) % folds == fold]] = VAL
    return side


def hold_out_fold_of_groups(
    labels: Ints, groups: Sequence[str], folds: int, fold: int, test: float, seed: int
) -> Ints:
    """The same with whole groups: largest first, each to the fold that has least of its classes."""
    side = np.full(len(labels), TRAIN, dtype=np.int64)
    if test:
        side = hold_out_groups(labels, groups, 0.0, test, seed)
    keys, group_of = np.unique(np.array(groups, dtype=object), return_inverse=True)
    sizes = np.zeros((len(keys), int(labels.max()) + 1), dtype=np.int64)
    np.add.at(sizes, (group_of, labels), side != TEST)
    have = np.zeros((folds, sizes.shape[1]))
    total = np.maximum(sizes.sum(axis=0), 1)
    place = np.zeros(len(keys), dtype=np.int64)
    for g in np.lexsort((hashed(seed, "split", keys), -sizes.sum(axis=1))):
        place[g] = int(np.argmin(have @ (sizes[g] / total)))
        have[place[g]] += sizes[g] / total
    side[(place[group_of] == fold) & (side != TEST)] = VAL
    return side


def hold_out_groups(
    labels: Ints, groups: Sequence[str], val: float, test: float, seed: int
) -> Ints:
    """TRAIN, VAL or TEST for each image; a group stays whole, classes are shared out in proportion.

    Largest group first, each to the side that lacks most of the group's classes. A side without
    some class then gets the smallest group that another side can spare; where groups tie classes
    together there may be none, which the caller checks.
    """
    keys, group_of = np.unique(np.array(groups, dtype=object), return_inverse=True)
    num_classes = int(labels.max()) + 1
    cells, counts = np.unique(group_of * num_classes + labels, return_counts=True)
    starts = np.searchsorted(cells, np.arange(len(keys) + 1) * num_classes)
    kinds = [cells[a:b] % num_classes for a, b in itertools.pairwise(starts)]
    sizes = [counts[a:b] for a, b in itertools.pairwise(starts)]

    totals = np.bincount(labels).astype(np.float64)
    fractions = np.array([1 - val - test, val, test])
    lacking = fractions[:, None] * totals  # (side, class) images still to give
    open_sides = np.flatnonzero(fractions > 0)
    place = np.zeros(len(keys), dtype=np.int64)
    group_sizes = np.bincount(group_of)
    for g in np.lexsort((hashed(seed, "split", keys), -group_sizes)):
        need = lacking[open_sides][:, kinds[g]] @ (sizes[g] / totals[kinds[g]])
        place[g] = open_sides[int(np.argmax(need))]
        lacking[place[g], kinds[g]] -= sizes[g]

    have = np.zeros((3, num_classes), dtype=np.int64)
    for g in range(len(keys)):
        have[place[g], kinds[g]] += sizes[g]
    by_size = np.argsort(group_sizes, kind="stable")
    for side in open_sides:
        for label in np.flatnonzero(have[side] == 0):
            for g in by_size:
                giver = place[g]
                if giver == side or label not in kinds[g]:
                    continue
                if giver == TEST or (have[giver, kinds[g]] > sizes[g]).all():
                    have[giver, kinds[g]] -= sizes[g]
                    have[side, kinds[g]] += sizes[g]
                    place[g] = side
                    break
    return place[group_of]


def proportional_subset(labels: Ints, names: Sequence[str], count: int, seed: int) -> Ints:
    """Positions of `count` images, ascending: of each class its share, or one where that is less.

    A smaller subset of the same seed is contained in a larger one.
    """
    members = by_class(labels, hashed(seed, "subset", names))
    places = np.concatenate([np.arange(len(m)) / max(1, len(m)) for m in members])
    chosen = np.argsort(places, kind="stable")[:count]
    return np.sort(np.concatenate(members)[chosen])


def balanced_subset(labels: Ints, names: Sequence[str], count: int, seed: int) -> Ints:
    """Positions of `count` images, ascending: as many of each class as there are, at most equal.

    A smaller subset of the same seed is contained in a larger one.
    """
    members = by_class(labels, hashed(seed, "subset", names))
    present = [m for m in members if len(m)]
    level, left = 0, count  # every class gives its first min(size, level) images
    while present and left >= len(present):
        step = min(left // len(present), min(len(m) for m in present) - level)
        level += step
        left -= step * len(present)
        present = [m for m in present if len(m) > level]
    chosen = [m[:level] for m in members] + [m[level : level + 1] for m in present[:left]]
    return np.sort(np.concatenate(chosen))
