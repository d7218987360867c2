"""Flat names, shared by processes without copying."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from vitc.data.store import Names


def test_names_are_flat_and_behave_as_a_list() -> None:
    texts = ["a/1.jpg", "", "ü.png", "caf\udce9", "x" * 300]
    names = Names.of(texts)
    assert list(names) == texts == [names[i] for i in range(5)]
    assert names == texts
    assert names != texts[:-1]
    assert names[-1] == texts[-1]
    assert names[1:3] == texts[1:3]
    assert names.take(np.array([4, 0, 0, 3])) == [texts[4], texts[0], texts[0], texts[3]]
    assert len(Names.of([])) == 0
    with pytest.raises(IndexError):
        names[5]
    assert pickle.loads(pickle.dumps(names)) == texts
    many = Names.of(f"{i}" for i in range(200_000))
    order = np.random.default_rng(0).permutation(200_000)
    assert many.take(order) == [str(i) for i in order.tolist()]
