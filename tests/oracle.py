"""Measures of a classifier's answers, computed slowly and apart from vitc, for its tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def bounds(count: int, n: int) -> tuple[float, float]:
    """Wilson's interval in percent, by solving (p - p0)^2 = z^2 p0 (1 - p0) / n."""
    z, p = 1.959963984540054, count / n
    roots = np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p]).real
    low, high = sorted(roots)
    return 100 * max(0.0, low), 100 * min(1.0, high)


def written(count: int, n: int) -> str:
    if n == 0:
        return "–"
    low, high = bounds(count, n)
    return f"{100 * count / n:.1f} % ({low:.1f} to {high:.1f})"


def class_rows(labels: list[int], answers: list[int], names: list[str]) -> list[list[str]]:
    """The table of classes, by counting."""
    pairs = list(zip(labels, answers, strict=True))
    rows = []
    for c, name in enumerate(names):
        tp = sum(y == c == a for y, a in pairs)
        n, predicted = labels.count(c), answers.count(c)
        if n + predicted == 0:
            continue
        f1 = 200 * tp / (n + predicted)
        low, high = (200 * j / (100 + j) for j in bounds(tp, n + predicted - tp))
        cells = [name, f"{tp} of {n}", written(tp, n), written(tp, predicted)]
        rows.append((f1, -n, [*cells, f"{f1:.1f} % ({low:.1f} to {high:.1f})"]))
    return [cells for _, _, cells in sorted(rows, key=lambda row: row[:2])]


def ece(labels: NDArray[Any], probs: NDArray[Any]) -> float:
    """Expected calibration error of 15 bins, in points."""
    total = 0.0
    for b in range(15):
        top = (b + 1) / 15 if b < 14 else 2.0  # a sum of rounded numbers may exceed 1
        inside = [i for i in range(len(labels)) if b / 15 < probs[i].max() <= top]
        if inside:
            right = sum(probs[i].argmax() == labels[i] for i in inside)
            total += abs(sum(float(probs[i].max()) for i in inside) - right)
    return 100 * total / len(labels)


def cross_entropy(labels: NDArray[Any], logits: NDArray[Any], t: float) -> float:
    z = logits.astype(np.float64) / t
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]))


def invented(n: int, k: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels and overconfident logits, about two thirds of them right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(0, 2, (n, k))
    logits[np.arange(n), labels] += 4 * rng.random(n)
    return labels, logits.astype(np.float32)
