"""Which images need no download? The embedded subset of Fashion-MNIST, and synthetic ones."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.sources.base import Found, Source, Split

EMBEDDED = Path(__file__).parents[1] / "embedded" / "fashion_mnist_12k.npz"
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class Fashion(Source):
    """A balanced subset of Fashion-MNIST; an image's name is its place in the original files."""

    kind = origin = "fashion"
    title = "Fashion-MNIST, the subset shipped with vitc"

    def read(self, config: DataConfig) -> Found:
        return Found(FASHION_CLASSES, dict(_fashion()))


@functools.cache  # a study's worker reads it for every trial
def _fashion() -> dict[str, Split]:
    splits = {}
    with np.load(EMBEDDED, allow_pickle=False) as arrays:
        for name, original in (("train", "train"), ("val", "train"), ("test", "t10k")):
            splits[name] = Split(
                labels=arrays[f"{name}_labels"].astype(np.int64),
                names=[f"{original}/{i}" for i in arrays[f"{name}_positions"].tolist()],
                pixels=arrays[f"{name}_images"][..., None],
            )
    return splits


class Synthetic(Source):
    """Ten classes of noisy coloured stripes, 32x32, that differ in direction and colour.

    Shifted at random by up to 3 of a period of 16 pixels. Integer arithmetic and a hash's bytes
    only, so that every machine makes the same pixels.
    """

    kind = origin = "synthetic"
    title = "synthetic patterns, made by vitc"

    def read(self, config: DataConfig) -> Found:
        return Found(tuple(f"pattern {i}" for i in range(10)), dict(_patterns()))


@functools.cache  # as above
def _patterns() -> dict[str, Split]:
    directions = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1))
    y, x = np.mgrid[:32, :32]
    splits = {}
    for name, count in (("train", 512), ("val", 128), ("test", 128)):
        seed = f"synthetic/{name}".encode()
        noise = hashlib.shake_128(seed).digest(count * (32 * 32 * 3 + 1))
        phases = np.frombuffer(noise, np.uint8, count).astype(np.int64)
        grain = np.frombuffer(noise, np.uint8, offset=count).reshape(count, 32, 32, 3) // 2
        labels = np.arange(count, dtype=np.int64) % 10
        pixels = np.empty((count, 32, 32, 3), np.uint8)
        for i, label in enumerate(labels.tolist()):
            a, b = directions[label % 5]
            wave = np.abs((a * x + b * y + int(phases[i]) % 4) % 16 - 8) * 16  # 0 … 128
            tint = np.array((3, 2, 1) if label < 5 else (1, 2, 3))
            pixels[i] = wave[..., None] * tint // 3 + grain[i]
        splits[name] = Split(labels, [f"{name}/{i}" for i in range(count)], pixels)
    return splits
