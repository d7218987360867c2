"""Which images count as near duplicates: against all pairs, and against what copies undergo."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests.mutants import photo, resaved
from vitc.data.decode import Pixels
from vitc.data.near_duplicates import NEAR_BITS, miniature, near_groups, perceptual_hash, small_grey


def test_near_copies_are_robust_to_what_happens_to_copies_and_strict_with_others() -> None:
    def print_of(pixels: Pixels) -> tuple[int, Pixels]:
        grey = small_grey(pixels)
        return perceptual_hash(grey), miniature(grey)

    def as_pixels(data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    originals = [photo(200, 260, i) for i in range(15)]
    changed = [as_pixels(resaved(p, 0.6, 50)) for p in originals]
    brighter = [np.clip(p * 0.85 + 38, 0, 255).astype(np.uint8) for p in originals]
    mirrored = [np.ascontiguousarray(p[:, ::-1]) for p in originals]
    prints = [print_of(p) for p in [*originals, *changed, *brighter, *mirrored]]
    hashes = np.array([h for h, _ in prints], np.uint64)
    group = near_groups(hashes, np.array([m for _, m in prints]))
    assert (group[:15] == np.arange(15)).all()
    assert (group[15:30] == np.arange(15)).mean() > 0.9
    assert (group[30:45] == np.arange(15)).mean() > 0.9
    assert (group[45:] >= 45).all()


def test_the_banded_index_finds_exactly_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 1800, dtype=np.uint64)
    hashes[:500] = hashes[0] & np.uint64(0xFFFFFFFFFFFFF000)  # a crowd that shares four bands
    hashes[:500] |= rng.integers(0, 2**12, 500, dtype=np.uint64)
    for i in range(1100, 1600):  # near ones of another, up to a bit too many
        flips = rng.choice(64, rng.integers(0, NEAR_BITS + 2), replace=False)
        mask = sum(1 << int(f) for f in flips)
        hashes[i] = hashes[i - 400] ^ np.uint64(mask)
    minis = np.tile(np.arange(256, dtype=np.uint8), (1800, 1))
    minis[400:450] = 255 - minis[400:450]  # told apart by the miniature alone

    root = np.arange(1800)
    for i in range(1800):
        bits = np.unpackbits((hashes[: i + 1] ^ hashes[i]).view(np.uint8)).reshape(-1, 64).sum(1)
        near = (bits <= NEAR_BITS) & (minis[: i + 1, 0] == minis[i, 0])
        linked = np.unique(root[: i + 1][near])
        root[np.isin(root, linked)] = linked.min()
    group = near_groups(hashes, minis)
    assert (group == root).all()
    assert 500 < len(set(group.tolist())) < 1750


def test_flat_pictures_are_not_near_each_other() -> None:
    hashes = np.zeros(5, np.uint64)
    minis = np.full((5, 256), 100, np.uint8) + np.arange(5, dtype=np.uint8)[:, None]
    assert near_groups(hashes, minis).tolist() == [0, 1, 2, 3, 4]
