"""Which side an image is on, by names and labels alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vitc.data.split import (
    balanced_subset,
    hashed,
    hold_out,
    hold_out_groups,
    proportional_subset,
    shares,
)


@pytest.mark.parametrize(
    ("count", "expected"), [(2, (1, 0)), (3, (1, 1)), (4, (1, 1)), (10, (2, 2)), (100, (15, 15))]
)
def test_shares_leave_training_then_validation_then_test_an_image(
    count: int, expected: tuple[int, int]
) -> None:
    assert shares(count, 0.15, 0.15) == expected


def test_shares_never_take_the_last_training_image() -> None:
    for count in range(2, 30):
        for val, test in ((0.9, 0.09), (0.01, 0.98), (0.5, 0.49), (0.0, 0.99), (0.99, 0.0)):
            n_val, n_test = shares(count, val, test)
            assert n_val + n_test < count
            assert (n_val > 0) == (val > 0)


def test_hold_out_is_the_same_whatever_the_order_of_the_images() -> None:
    names = [f"c{i % 3}/{i}.jpg" for i in range(90)]
    labels = np.array([i % 3 for i in range(90)])
    order = np.random.default_rng(0).permutation(90)
    side = hold_out(labels, names, 0.2, 0.1, 5)
    moved = hold_out(labels[order], [names[i] for i in order], 0.2, 0.1, 5)
    assert (side[order] == moved).all()


def test_a_subset_is_balanced_and_contained_in_a_larger_one() -> None:
    labels = np.repeat([0, 1, 2], [50, 5, 100])
    names = [str(i) for i in range(155)]
    before: set[int] = set()
    sizes = {3: [1, 1, 1], 15: [5, 5, 5], 26: [11, 5, 10], 105: [50, 5, 50], 140: [50, 5, 85]}
    for count, expected in sizes.items():
        chosen = balanced_subset(labels, names, count, 0)
        assert np.bincount(labels[chosen]).tolist() == expected
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())


def test_a_proportional_subset_has_every_class_and_is_contained_in_a_larger_one() -> None:
    labels = np.repeat([0, 1, 3], [50, 1, 100])  # no image of class 2
    names = [str(i) for i in range(151)]
    before: set[int] = set()
    sizes = {
        2: [1, 1],
        3: [1, 1, 0, 1],
        16: [5, 1, 0, 10],
        76: [25, 1, 0, 50],
        151: [50, 1, 0, 100],
    }
    for count, expected in sizes.items():
        chosen = proportional_subset(labels, names, count, 0)
        assert np.bincount(labels[chosen]).tolist() == expected
        assert (np.diff(chosen) > 0).all()
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())


def test_groups_of_several_classes_still_leave_every_class_on_each_side() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        groups = [f"g{i}" for i in rng.integers(0, 15, 120)]
        labels = rng.integers(0, 4, 120)
        side = hold_out_groups(labels, groups, 0.15, 0.15, int(rng.integers(99)))
        assert len(set(zip(groups, side.tolist(), strict=True))) == len(set(groups))
        for s in (0, 1, 2):
            assert set(labels[side == s]) == {0, 1, 2, 3}


def test_the_hash_that_orders_images_never_changes() -> None:
    expected = int.from_bytes(hashlib.blake2b(b"0/split/a", digest_size=8).digest(), "little")
    assert hashed(0, "split", ["a"]).tolist() == [expected] == [0x76DDA08F7AC739D2]
