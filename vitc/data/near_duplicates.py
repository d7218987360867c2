"""Which of a million images are near duplicates, without comparing all pairs? Free of torch.

A picture is reduced to the signs of its 64 lowest frequencies (a perceptual hash) and to a 16 x 16
grey miniature. Two are near duplicates if at most NEAR_BITS of the signs differ and the miniatures
by at most NEAR_GREY in the mean, brightness aside: scaled, compressed or brightened copies are,
other views of the same object are not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from vitc.data.store import Ints, Pixels

BITS = 64
NEAR_BITS = 4  # of 64
NEAR_GREY = 6.0  # of 255
MINI = 16  # side of a miniature
FLAT_GREY = 2.0  # standard deviation of a miniature below which it is not compared
SIDE = 32  # of the picture whose frequencies are taken
BUCKET = 512  # pictures compared each with each; larger groups are first split by other bits
DEEPEST = 3  # how often
MAX_PAIRS = 2**21  # kept before they are merged into groups

Hashes = NDArray[np.uint64]


def small_grey(pixels: Pixels) -> NDArray[np.uint8]:
    """uint8 (SIDE, SIDE): the luminance of a picture (H, W, 1 | 3), squeezed to a square."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = min(image.size) // (2 * SIDE)
    if factor > 1:
        image = image.reduce(factor)
    return np.array(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8)


def miniature(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (MINI * MINI,): `small_grey` halved."""
    blocks = grey.reshape(MINI, SIDE // MINI, MINI, SIDE // MINI).astype(np.uint16)
    halved: NDArray[np.uint8] = ((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8)
    return halved.reshape(-1)


@functools.cache
def _cosines() -> tuple[NDArray[np.float64], tuple[Ints, Ints]]:
    """The first rows of a cosine transform, and which of their products are the lowest 64
    frequencies but the mean."""
    k, x = np.mgrid[:12, :SIDE]
    rows = np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE))
    places = sorted(itertools.product(range(12), repeat=2), key=lambda p: (sum(p), p))
    chosen = np.array(places[1 : BITS + 1])
    return rows, (chosen[:, 0], chosen[:, 1])


def perceptual_hash(grey: NDArray[np.uint8]) -> int:
    """64 bits: which of the lowest frequencies of `small_grey` are above their median."""
    rows, chosen = _cosines()
    values = (rows @ grey.astype(np.float64) @ rows.T)[chosen]
    return int.from_bytes(np.packbits(values > np.median(values)).tobytes(), "big")


# -- who is near whom ------------------------------------------------------------------------------


def near_groups(hashes: Hashes, minis: NDArray[np.uint8]) -> Ints:
    """int64 (n,): the same number for pictures that near duplicates tie together, each number the
    position of the first of them.

    hashes uint64 (n,), minis uint8 (n, MINI**2). Hashes that differ in at most NEAR_BITS bits
    agree on one of NEAR_BITS + 1 bands of bits: only pictures that agree on a band are compared.
    """
    group = np.arange(len(hashes))
    distinct = np.flatnonzero(_spread(minis) >= FLAT_GREY)
    found: list[Ints] = []
    for part in _candidates(hashes, distinct, DEEPEST):
        found += _near(hashes, minis, part)
        if sum(pairs.shape[1] for pairs in found) > MAX_PAIRS:
            group, found = _tied(group, found), []
    return _tied(group, found)


def _tied(group: Ints, pairs: list[Ints]) -> Ints:
    """The groups when those of each pair, int64 (2, pairs), are one; the first picture counts."""
    if not pairs:
        return group
    n, ends = len(group), np.concatenate([*pairs, np.stack([np.arange(len(group)), group])], axis=1)
    graph = sparse.coo_array((np.ones(ends.shape[1], np.bool_), (ends[0], ends[1])), shape=(n, n))
    _, component = csgraph.connected_components(graph, directed=False)
    first = np.full(n, n, np.int64)
    np.minimum.at(first, component, np.arange(n))
    tied: Ints = first[component]
    return tied


def _spread(minis: NDArray[np.uint8]) -> NDArray[np.float64]:
    spread = np.empty(len(minis))
    for start in range(0, len(minis), 4096):
        spread[start : start + 4096] = minis[start : start + 4096].std(axis=1)
    return spread


def _candidates(hashes: Hashes, members: Ints, depth: int) -> Iterator[Ints]:
    """Sets of positions that agree on a band, each small enough to be compared with each other."""
    edges = np.linspace(0, BITS, NEAR_BITS + 2).astype(int)
    # Deeper levels cut elsewhere: the bits of the level above are equal within a bucket.
    edges = (edges + 5 * (DEEPEST - depth)).tolist()
    for low, high in itertools.pairwise(edges):
        by = low % BITS  # rotated right, so that the band is in the lowest bits
        right = hashes[members] >> np.uint64(by)
        turned = right | (hashes[members] << np.uint64(BITS - by)) if by else right
        band = turned & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        cuts = np.flatnonzero(np.diff(band[order])) + 1
        for bucket in np.split(members[order], cuts):
            if len(bucket) <= 1:
                continue
            if len(bucket) > BUCKET and depth and len(bucket) < len(members):
                yield from _candidates(hashes, bucket, depth - 1)
            else:
                yield bucket


def _near(hashes: Hashes, minis: NDArray[np.uint8], bucket: Ints) -> Iterator[Ints]:
    """int64 (2, pairs): the pictures of a bucket that are near each other."""
    for start in range(0, len(bucket), BUCKET):
        rows = bucket[start : start + BUCKET]
        for other in range(0, start + 1, BUCKET):
            columns = bucket[other : other + BUCKET]
            close = _bits(hashes[rows][:, None] ^ hashes[columns][None]) <= NEAR_BITS
            close &= rows[:, None] > columns[None]
            i, j = np.nonzero(close)
            for first in range(0, len(i), 65536):
                a, b = rows[i[first : first + 65536]], columns[j[first : first + 65536]]
                apart = minis[a].astype(np.float32) - minis[b]
                apart -= apart.mean(axis=1, keepdims=True)  # brighter is no other picture
                alike = np.abs(apart).mean(axis=1) <= NEAR_GREY
                if alike.any():
                    yield np.stack([a[alike], b[alike]])


def _bits(values: Hashes) -> NDArray[np.uint8]:
    """How many bits are set in each, by adding them up within ever larger fields."""
    m1, m2, m4 = (
        np.uint64(m) for m in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
    )
    values = values - ((values >> np.uint64(1)) & m1)
    values = (values & m2) + ((values >> np.uint64(2)) & m2)
    values = (values + (values >> np.uint64(4))) & m4
    return ((values * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)
