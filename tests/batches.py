"""What tests of images and batches share: a plan, pictures, and a test of frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc
from torch import Tensor

from vitc.data.sampling import BatchPlan, Place

HERE = Place(0, 0)


def plan(**changes: Any) -> BatchPlan:
    values: dict[str, Any] = {
        "batch": 8,
        "micro": 4,
        "seed_order": 0,
        "seed_augment": 1,
        "size": (32, 40),
        "in_chans": 3,
        "depth": 2,
        "drop_path_rate": 0.5,
    }
    return BatchPlan(**{**values, **changes})


def plausible(observed: ArrayLike, expected: ArrayLike | None = None, p: float = 1e-3) -> bool:
    """Chi-square, by default against equal frequencies; seeds are fixed, so it stays as it is."""
    seen = np.asarray(observed, float)
    odds = np.full(len(seen), seen.mean()) if expected is None else np.asarray(expected)
    assert ((odds > 0) | (seen == 0)).all()
    seen, odds = seen[odds > 0], odds[odds > 0]
    return float(chdtrc(len(seen) - 1, ((seen - odds) ** 2 / odds).sum())) > p


def noise_images(*shape: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def scene(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A smooth RGB picture without any symmetry: JPEG keeps it closely."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 200], -1).astype(np.uint8)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(x) * np.cos(y), np.cos(x + y), np.sin(x - 2 * y)]
    return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)
