"""What do a model's answers on labelled images show? Numbers in, records out; free of torch.

labels: int64 (N,), indices of K classes. logits: float32 (N, K). Shares are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitc.data.store import Ints
from vitc.stats.proportions import Interval, wilson

Floats = NDArray[np.float32]

NOT_LEARNT = 10.0  # percent of a class's images right, at most
BINS = 15  # of equal width, as in Guo et al. (arXiv 1706.04599)
LEAST_TO_FIT = 100  # images, for a temperature
MOST_TO_FIT = 20_000
COLDEST, HOTTEST = 0.01, 100.0  # temperatures
AT_BOUND = f"the best one is at a bound of the search, {COLDEST:g} to {HOTTEST:g}"
FEWEST_DECIMALS = 3  # of a threshold
TARGETS = (90.0, 95.0, 99.0)  # accuracy of the answers that are kept, in percent
MOST_POINTS = 400  # of a curve


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Softmax of logits / temperature: float32 (N, K)."""
    z = logits / np.float32(temperature)
    e = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
    found: Floats = e / e.sum(axis=1, keepdims=True)
    return found


def share(count: int, n: int) -> Interval:
    """`count` of n images in percent, with Wilson's 95 % interval; n at least 1."""
    low, high = wilson(100 * count / n, n)
    return Interval(low, 100 * count / n, high, method="Wilson")


# -- classes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassResult:
    """One class: `n` images, `correct` of them predicted as this class, `predicted` in all.

    recall: correct of n; precision: correct of predicted; f1: their harmonic mean. None: there are
    no images to compute it from.
    """

    name: str
    n: int
    correct: int
    predicted: int
    recall: Interval | None
    precision: Interval | None
    f1: Interval | None

    @property
    def learnt(self) -> bool:
        """Whether more than a tenth of its images are right; True where it has none."""
        return self.recall is None or self.recall.estimate > NOT_LEARNT


@dataclass(frozen=True)
class Confused:
    """`count` of the `n` images of class `label` were answered with `answer`; both are indices."""

    label: int
    answer: int
    count: int
    n: int


def class_results(classes: Sequence[str], confusion: Ints) -> tuple[ClassResult, ...]:
    """One record a class, in their order.

    confusion: int64 (K, K), images of class i predicted as class j. The interval of F1 is that of
    TP / (TP + FP + FN), a share of the images that are of the class or predicted as it, put through
    F1 = 2 J / (1 + J).
    """
    found = []
    for i, name in enumerate(classes):
        n, predicted = int(confusion[i].sum()), int(confusion[:, i].sum())
        correct = int(confusion[i, i])
        either = n + predicted - correct
        f1 = None
        if either:
            j = share(correct, either)
            low, middle, high = (200 * v / (100 + v) for v in (j.low, j.estimate, j.high))
            f1 = Interval(low, middle, high, method=j.method)
        recall = share(correct, n) if n else None
        precision = share(correct, predicted) if predicted else None
        found.append(ClassResult(name, n, correct, predicted, recall, precision, f1))
    return tuple(found)


def most_confused(confusion: Ints) -> tuple[Confused, ...]:
    """Every pair of classes that was confused, the most frequent first."""
    wrong = confusion - np.diag(np.diag(confusion))
    i, j = np.nonzero(wrong)
    n = confusion.sum(axis=1)
    order = np.lexsort((j, i, -wrong[i, j] / n[i], -wrong[i, j]))
    pairs = ((int(i[o]), int(j[o])) for o in order)
    return tuple(Confused(a, b, int(wrong[a, b]), int(n[a])) for a, b in pairs)


# -- images ----------------------------------------------------------------------------------------


def worst_images(labels: Ints, probs: Floats) -> Ints:
    """Positions of the wrong answers, those first that gave the label the least probability."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != labels)
    given = probs[wrong, labels[wrong]]
    return wrong[np.argsort(given, kind="stable")].astype(np.int64)


def likely_label_errors(labels: Ints, probs: Floats) -> Ints:
    """Positions of images whose label is probably wrong, the least probable label first.

    Confident learning (Northcutt et al., arXiv 1911.00068): a class counts for an image if its
    probability is at least the mean that images of that class give it; an image for which the most
    probable of those classes is not its label is suspected, unless the model's answer is the label.
    The images must not have been trained on.
    """
    k = probs.shape[1]
    counts = np.bincount(labels, minlength=k)
    own = probs[np.arange(len(labels)), labels]
    threshold = np.full(k, np.inf)
    there = counts > 0
    threshold[there] = np.bincount(labels, own, minlength=k)[there] / counts[there]
    confident = np.where(probs >= threshold, probs, -1.0)
    best = confident.argmax(axis=1)
    suspected = confident.max(axis=1, initial=-1.0) >= 0
    suspected &= (best != labels) & (probs.argmax(axis=1) != labels)
    found = np.flatnonzero(suspected)
    return found[np.argsort(own[found], kind="stable")].astype(np.int64)


# -- how sure --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Answers of a confidence from `low` to `high`: their number, mean confidence and accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: Interval


@dataclass(frozen=True)
class Fit:
    """What is fitted on images and then applied to others: a temperature (None: `why` there is
    none) and, for each of TARGETS, the confidence from which answers reach it (None: none does;
    empty: nothing was fitted)."""

    temperature: float | None
    thresholds: tuple[float | None, ...]
    split: str
    n: int
    why: str = ""


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error in points, and the bins it is the mean of; the same after
    dividing the logits by a temperature (None and empty: none was fitted).

    cross_fitted: the temperature of each half of the images fitted on is that of the other half;
    `temperature` itself is of all of them.
    """

    ece: float
    bins: tuple[Bin, ...]
    temperature: float | None
    ece_after: float | None
    bins_after: tuple[Bin, ...]
    cross_fitted: bool


@dataclass(frozen=True)
class Kept:
    """Answers of at least `threshold` confidence, chosen to reach the accuracy `target`: their
    share of all images and their accuracy. None: no such threshold, or no such answers."""

    target: float
    threshold: float | None
    coverage: Interval | None
    accuracy: Interval | None


@dataclass(frozen=True)
class Coverage:
    """Accuracy of the most confident answers against their share of all images, and `kept`."""

    curve: tuple[tuple[float, float], ...]
    kept: tuple[Kept, ...]


def fit(labels: Ints, logits: Floats, split: str) -> Fit:
    probs = probabilities(logits)
    confidence, right = _answers(labels, probs)
    thresholds = tuple(_threshold(confidence, right, target) for target in TARGETS)
    n, why, temperature = len(labels), "", None
    if n < LEAST_TO_FIT:
        why = f"there are fewer than {LEAST_TO_FIT} images"
    elif right.all():
        why = f"all of the {n:,} images are classified correctly"
    else:
        temperature = best_temperature(labels, logits)
        why = "" if temperature else AT_BOUND
    return Fit(temperature, thresholds, split, n, why)


def no_fit(why: str, split: str, n: int) -> Fit:
    """For images that nothing may be fitted on."""
    return Fit(None, (), split, n, why)


def within_bounds(temperature: float) -> bool:
    """Whether a temperature is the best one, and not where the search ended."""
    return 1.01 * COLDEST < temperature < HOTTEST / 1.01


def best_temperature(labels: Ints, logits: Floats) -> float | None:
    """The temperature of the least cross-entropy on these images; None: it is at a bound of the
    search, as where no answer is wrong, or none right."""
    from scipy.optimize import minimize_scalar

    every = -(-len(labels) // MOST_TO_FIT)
    y, z = labels[::every], logits[::every].astype(np.float32)
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(y)), y]

    def loss(log_t: float) -> float:
        scaled = z * np.float32(np.exp(-log_t))
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - own * np.exp(-log_t)))

    bounds = np.log(COLDEST), np.log(HOTTEST)
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    found = float(np.exp(best.x))
    return found if within_bounds(found) else None


def calibration(
    labels: Ints, logits: Floats, fitted: Fit, own: NDArray[np.bool_] | None
) -> Calibration:
    """`own`: which of these images `fitted` is of, on which its temperature is cross-fitted here,
    if each half of them gives one; None: it is of others."""
    before, ece = calibration_error(labels, probabilities(logits))
    if fitted.temperature is None:
        return Calibration(ece, before, None, None, (), False)
    probs = probabilities(logits, fitted.temperature)
    halves = [] if own is None else [np.flatnonzero(own)[first::2] for first in (0, 1)]
    best = [best_temperature(labels[half], logits[half]) for half in halves]
    crossed = own is not None and None not in best
    if crossed:
        for half, temperature in zip(halves, reversed(best), strict=True):
            probs[half] = probabilities(logits[half], temperature or 1.0)
    after, ece_after = calibration_error(labels, probs)
    return Calibration(ece, before, fitted.temperature, ece_after, after, crossed)


def calibration_error(labels: Ints, probs: Floats) -> tuple[tuple[Bin, ...], float]:
    """Bins of equal width that hold answers, and the expected calibration error in points."""
    confidence, right = _answers(labels, probs)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins, error = [], 0.0
    for b in np.unique(place).tolist():
        inside = place == b
        n = int(inside.sum())
        mean = 100 * float(confidence[inside].mean())
        accuracy = share(int(right[inside].sum()), n)
        bins.append(Bin(100 * b / BINS, 100 * (b + 1) / BINS, n, mean, accuracy))
        error += n / len(labels) * abs(mean - accuracy.estimate)
    return tuple(bins), error


def coverage(labels: Ints, probs: Floats, fitted: Fit) -> Coverage:
    confidence, right = _answers(labels, probs)
    x, y, _ = _curve(confidence, right)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int))
    kept = []
    for target, threshold in zip(TARGETS, fitted.thresholds, strict=False):
        many = 0 if threshold is None else int((confidence >= threshold).sum())
        part = share(many, len(labels)) if threshold is not None else None
        correct = 0 if threshold is None else int(right[confidence >= threshold].sum())
        kept.append(Kept(target, threshold, part, share(correct, many) if many else None))
    return Coverage(tuple((float(x[i]), float(y[i])) for i in chosen), tuple(kept))


def _answers(labels: Ints, probs: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidence of each answer in [0, 1], and whether it is right."""
    return probs.max(axis=1).astype(np.float64), probs.argmax(axis=1) == labels


def _curve(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Share of images and accuracy in percent of all answers at least as confident as each
    confidence that occurs, and these, falling."""
    order = np.argsort(-confidence, kind="stable")
    c, hits = confidence[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(c[1:] != c[:-1], True))  # equal ones are kept together
    return 100 * (last + 1) / len(c), 100 * hits[last] / (last + 1), c[last]


def _threshold(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], target: float
) -> float | None:
    """The least confidence from which answers are right in `target` percent; None: no such.

    Of all numbers that keep these answers and no others, one of few decimals: typed, it does the
    same.
    """
    _, accuracy, level = _curve(confidence, right)
    good = np.flatnonzero(accuracy >= target)
    if not len(good):
        return None
    least = float(level[good[-1]])
    below = float(np.append(level, 0.0)[good[-1] + 1])
    for decimals in range(FEWEST_DECIMALS, 17):
        found = math.floor(least * 10.0**decimals) / 10.0**decimals
        if below < found <= least:
            return found
    return least
