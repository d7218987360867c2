"""What the front door knows and how it decides: pure functions of what was seen and measured."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.config import RunConfig
from vitc.data.check_quick import small
from vitc.data.decode import header, is_jpeg
from vitc.data.sources.base import Split
from vitc.data.split import shares
from vitc.errors import BrokenFileError, DataError
from vitc.optim.config import OptimConfig
from vitc.resolve import load_config
from vitc.wording import counted

if TYPE_CHECKING:
    from vitc.training.probe import Probe


DEFAULT_BUDGET_SECONDS = 1800.0
BOUND_SHARE = 0.85  # of the budget that a run takes if the budget is what limits its epochs
OWN_LENGTH = {"train.epochs", "train.budget_seconds"}  # settings by which users fix the length
DECODE_SHARE = 1 / 3  # of the time, at most, for decoding the training images once
VAL_SHARE = 0.1  # of the time, at most, for measuring on validation at the end, and for its page
LEAST_VAL = 500  # images, on which an accuracy is uncertain by up to 4.4 points
START_SECONDS = 3.0  # reading the folder, the first step, the last checkpoint
PAGE_SECONDS = 6.5  # starting, the run page but for its answers, and ending the process
MOST_REPORTED = 20_000  # validation images, for a run page without being asked
SAMPLE = 64  # images looked at to learn sizes, colours and how fast they are read
EVALUATIONS = 20  # on validation over a run, at most
# Of the wanted epochs that a model must reach within the budget to be chosen. At 0.36 of them the
# next smaller model is 4 to 7 points better, at 0.67 of them they are level (docs/LOG.md).
LEAST_SHARE = 0.6
SMALL_SIDE = 40  # pixels up to which images are treated as MNIST's and CIFAR's are
RECIPE = "cifar10_vit_c"  # its optimizer settings are used, the learning rate scaled
# Of a fresh model's rate, for weights that are trained. Measured: vit_c_tiny from five classes of
# CIFAR-10 (JPEG q75) to 50 images each of the other five; see docs/LOG.md.
TRAINED_SHARE = 0.3
# From scratch, unless the user names another: ahead of AdamW on three sets, level on three. Mixing
# under it adds 2 to 4 points at 24 and 80 epochs, costs 3 at 14, and changes little at 50
# (docs/LOG.md).
OPTIMIZER = "muon"
MIXING_EPOCHS_MUON = 20
MIX_PROB_MUON = 0.8
# Under AdamW mixing costs 5 to 11 points at 30 and 54 epochs of two sets, and makes no difference
# at 110 of one (docs/LOG.md).
MIXING_EPOCHS = 100
# Up to so many training images a small model with weights learnt from formulas is ahead of a larger
# one from scratch, in 20 minutes too (docs/results/formula.md).
FORMULA_IMAGES = 5_000
ADAMW_DECAY = 0.05  # weight decay of short runs
WARMUP_SHARE = 0.25  # of a run
CACHE_SCALE = 1.6  # of img_size: crops of 0.4 of the area then have the pixels of the input
TINY_WIDTH = 64  # embed_dim of its model
OTHER_WIDTH = 128  # by which the rate of models without an embed_dim is scaled
REDUCTION = 16  # of models without tokens: the image sizes that they take are multiples of it
SIDES = (64, 96, 128, 160, 192)  # at which a model is tried that is made for larger images
WORKER_BYTES = 150_000_000  # own memory of a forked loader process
TIGHT_SHARE = 0.8  # of a machine's memory, above which a run may not fit beside other programs
FEW_OF_A_CLASS = 10  # training images; with fewer a class is warned of
LEAST_LEFT = 0.9  # of the share of images that is to be trained on
FEW_TOKENS = 16  # with fewer, attention has next to nothing to compare


@dataclass(frozen=True)
class Look:
    """The images, as far as choices depend on them."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    """Training images a class."""
    val: int
    """Validation images."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of a sample."""

    @property
    def train(self) -> int:
        return sum(self.counts)

    @property
    def short_side(self) -> int:
        """Median over the sample, in pixels."""
        return round(statistics.median(min(size) for size in self.sizes))


@dataclass(frozen=True)
class Machine:
    """Where it will run."""

    kind: str
    """cuda, mps or cpu."""
    name: str
    cores: int
    memory_bytes: int
    """Of the GPU, or else of the host."""


def sample(split: Split, skip_broken: bool) -> tuple[tuple[tuple[int, int], ...], bool]:
    """(height, width) of a few images, evenly spread, and whether all are gray.

    Raises BrokenFileError unless broken files are skipped.
    """
    places = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(np.int64)).tolist()
    if split.pixels is not None:
        size = (split.pixels.shape[1], split.pixels.shape[2])
        return (size,), all(_is_gray(split.pixels[i]) for i in places)
    sizes, gray = [], True
    for i in places:
        try:
            stored = split.stored(i)
            pixels = small(split, i, stored)  # of 12 megapixels in a third of the time
        except BrokenFileError:
            if not skip_broken:
                raise
            continue
        found = header(stored) if isinstance(stored, bytes) and is_jpeg(stored) else None
        height, width = pixels.shape[:2] if found is None else found.upright
        sizes.append((height, width))
        gray = gray and _is_gray(pixels)
    if not sizes:
        raise DataError(
            f"All of {counted(len(places), 'image')} looked at are broken files.",
            "Repair the data set first.",
        )
    return tuple(sizes), gray


def _is_gray(pixels: NDArray[np.uint8]) -> bool:
    """Whether the channels of (H, W, C) agree, but for what JPEG's rounding makes of them."""
    spread = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
    return bool(np.percentile(spread, 99) <= 8)


class Rung(NamedTuple):
    """A model of the zoo at an input size, and from how many training images it earns its cost."""

    model: str
    img_size: int
    min_images: int


# Cheapest first. All have convolutional stems: with them a ViT learns from few images, and under
# any optimizer, what it does not with patches (paper section 5). From a few thousand images a
# residual stem learns more in the same time than the paper's: docs/LOG.md. All have 4x4 tokens.
PHOTO_RUNGS = (
    Rung("vit_r_tiny64", 64, 0),
    Rung("vit_r_mini64", 64, 0),
    Rung("vit_r_small64", 64, 500),
    Rung("vit_r_small64", 96, 1_000),
    Rung("vit_r_small64", 128, 3_000),
    Rung("vit_c_1gf", 224, 30_000),
    Rung("vit_c_4gf", 224, 150_000),
)
SMALL_RUNGS = (
    Rung("vit_r_tiny", 32, 0),
    Rung("vit_r_mini", 32, 0),
    Rung("vit_r_small", 32, 2_000),
)


def rungs_for(look: Look) -> list[Rung]:
    """The rungs that these images can use, cheapest first; at least one."""
    ladder = SMALL_RUNGS if look.short_side <= SMALL_SIDE else PHOTO_RUNGS
    fitting = [
        r for r in ladder if look.train >= r.min_images and r.img_size <= 1.25 * look.short_side
    ]
    return fitting or [ladder[0]]


def batch_size(train: int, kind: str) -> int:
    """At least BatchNorm's 16 images, ten steps an epoch if so, at most 64 (on a GPU 256)."""
    if train < 16:
        return max(1, train)
    ten_steps = 1 << int(math.log2(train / 10))
    return min(64 if kind == "cpu" else 256, max(16, ten_steps))


def wanted_epochs(train: int) -> int:
    """How long training from scratch keeps paying: 200 epochs of 250 images, 50 of 13,000."""
    return int(min(300.0, max(30.0, 200 * math.pow(250 / max(1, train), 0.35))))


def held_out_shares(total: int) -> tuple[float, float]:
    """(validation, test) shares of images that come without a split.

    Of few images none is kept for a test. What is chosen by validation is one of two at most, the
    linear probe or the fine-tuned weights, so its number is nearly an honest one.
    """
    if total < 2000:
        return 0.2, 0.0
    share = round(min(0.15, max(0.02, 1500 / total)), 3)
    return share, share


def held_out_of(counts: Sequence[int], val: float, test: float) -> tuple[float, float]:
    """(validation, test) shares that these become where each class gives one image at least."""
    parts = np.array([shares(count, val, test) for count in counts])
    of_val, of_test = (parts.sum(axis=0) / sum(counts)).tolist()
    return of_val, of_test


def too_few_for_a_test(counts: Sequence[int], val: float, test: float) -> bool:
    """Whether a test, of one image of each class at least, would leave clearly too few to train
    on: thousands of images, but a handful of each class."""
    few = sum(counts) < FEW_OF_A_CLASS * len(counts)
    return few and 1 - sum(held_out_of(counts, val, test)) < LEAST_LEFT * (1 - val - test)


def fit_for(sizes: Sequence[tuple[int, int]]) -> tuple[Literal["crop", "pad", "squash"], str]:
    """How images of these (height, width) become square, and why."""
    ratios = [width / height for height, width in sizes]
    if max(max(size) for size in sizes) < 32:
        return "pad", "the images are smaller than the input, and are not blown up"
    lost = statistics.median(1 - min(r, 1 / r) for r in ratios)
    reason = f"a square from the middle loses {lost:.0%} of the median image"
    if lost < 0.45:
        return "crop", reason
    low, high = np.quantile(ratios, (0.1, 0.9))
    if high / low < 1.2:
        return "squash", f"{reason}, and all have about the same shape (width {high:.1f} x height)"
    return "pad", f"{reason}, and their shapes differ"


def balance_for(counts: Sequence[int]) -> tuple[Literal["none", "sqrt"], str]:
    """Whether rare classes are shown more often than they come, and why."""
    most = counted(max(counts), "training image")
    reason = f"the largest class has {most}, the smallest {min(counts):,}"
    if max(counts) < 4 * min(counts):
        return "none", reason
    return "sqrt", f"{reason}: rare classes are shown more often than they occur"


_ONE_SIDED = re.compile(r"(?:^|[^a-z])(?:left|right)(?:[^a-z]|$)", re.IGNORECASE)


def flip_for(classes: Sequence[str]) -> tuple[float, str]:
    """Probability of mirroring: none where a mirrored image would be of another class."""
    if any(_ONE_SIDED.search(name) for name in classes):
        return 0.0, "a class name contains left or right"
    if all(len(name) == 1 for name in classes):
        return 0.0, "the classes are named by one character: a mirrored one may be another"
    return 0.5, "a mirrored photo is of the same class"


def learning_rate(optim: OptimConfig, at_batch: int, batch: int, width: int) -> tuple[float, str]:
    """The peak learning rate, absolute, and why: a tiny recipe's, scaled to batch and embed_dim."""
    peak, linear = optim.peak_lr(at_batch), optim.lr_scaling == "linear"
    scaled = peak * (batch / at_batch) ** (1.0 if linear else 0.5) * (TINY_WIDTH / width) ** 0.5
    how = "linearly" if linear else "by the square root"
    reason = (
        f"the small recipes' {peak:g} at batch {at_batch} and width {TINY_WIDTH} is scaled {how} "
        f"to batch {batch}, by the inverse square root to width {width}"
    )
    return float(f"{scaled:.2g}"), reason


def caching(look: Look, img_size: int, scale: float = CACHE_SCALE) -> dict[str, Any]:
    """Settings: the shorter side at which images are decoded once, as large as the largest crops
    need; None: they are not much larger than that."""
    side = math.ceil(scale * img_size)
    if look.short_side <= 1.25 * side:
        return {"data.cache_side": None}
    return {"data.cache_side": side, "data.cache_decode": "scaled"}


def epoch_seconds(look: Look, batch: int, cost: Probe) -> float:
    """One pass over the training images."""
    return look.train // batch * cost.step_seconds


def page_seconds(images: int, cost: Probe, runs: int = 1) -> float:
    """The page that follows a run, for which so many validation images are decoded and answered
    again; or the share of one of so many `runs` in the page of them all."""
    return PAGE_SECONDS / runs + cost.holding_seconds + images * cost.eval_seconds


def validation_images(fixed: Mapping[str, Any], given: int, cost: Probe, seconds: float) -> int:
    """On how many of the validation images that are there a run of so many seconds measures.

    Each is answered by the weights and their average, and for the page.
    """
    if {"data.max_val", "data.folds"} & fixed.keys():
        return given
    each = (cost.models + 1) * cost.eval_seconds
    return given if not each else min(given, max(LEAST_VAL, int(VAL_SHARE * seconds / each)))


class Length(NamedTuple):
    """How long a run is."""

    epochs: int
    eval_every: int
    seconds: float


def run_length(epoch: float, evaluation: float, budget: float, most: int) -> Length:
    """As many epochs, up to `most` and at least one, as `budget` seconds pay for.

    Evaluations take at most a tenth of the time, and are at most 20. epoch and evaluation: the
    seconds of one.
    """

    def length(epochs: int) -> Length:
        every = max(1, math.ceil(epochs / EVALUATIONS), math.ceil(10 * evaluation / epoch))
        every = min(every, epochs)
        return Length(epochs, every, run_seconds(epochs, every, epoch, evaluation))

    epochs = max(1, int(min(most, (budget - START_SECONDS) / epoch)))
    while epochs > 1 and length(epochs).seconds > budget:
        epochs = min(epochs - 1, int(epochs * 0.98))
    return length(epochs)


def run_seconds(epochs: float, every: int, epoch: float, evaluation: float) -> float:
    """Of a run that is evaluated after every `every` epochs and at its end."""
    return START_SECONDS + epochs * epoch + math.ceil(epochs / every) * evaluation


def evaluation_seconds(config: RunConfig, images: int, cost: Probe) -> float:
    """One evaluation during a run: of its weights and of their average, on so many images."""
    return cost.models * (images + config.train.precise_bn_images) * cost.eval_seconds


def memory_bytes(kind: str, cost: Probe) -> int:
    """Peak memory of a run's processes, or of its GPU, from that of its probe; 0: unknown."""
    if not cost.memory_bytes:
        return 0
    workers = (cost.workers or 0) if kind == "cpu" else 0
    return cost.memory_bytes + cost.unheld_bytes + workers * WORKER_BYTES


def tight_memory(memory: int, machine: Machine) -> str:
    """A warning where a run of so many bytes may not fit the machine; "": it does."""
    if memory <= TIGHT_SHARE * machine.memory_bytes:
        return ""
    return (
        f"this machine has {machine.memory_bytes / 1e9:.1f} GB in all; a smaller "
        "--train.micro_batch or --model.img_size needs less."
    )


@dataclass
class Choices:
    """Settings chosen so far and a line of reason for each; what the user fixed stays as it is."""

    fixed: Mapping[str, Any]
    theirs: frozenset[str] = frozenset()
    """Those of `fixed` that the weights to start from fix, not the user."""
    settings: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    group: str = ""
    """See `Proposal.group`."""
    runs: int = 1
    """That will be trained with these settings, and have one page."""

    def take(self, key: str, what: str, value: Any, because: str) -> Any:
        """`value` for the setting `key`, or what the user fixed; either way it is noted."""
        if key in self.fixed:
            value, because = self.fixed[key], self.reason(key)
        else:
            self.settings[key] = value
        self.note(what, str(value), because)
        return value

    def reason(self, key: str) -> str:
        """Why a setting is fixed."""
        return "the weights require it" if key in self.theirs else f"you set --{key}"

    def note(self, what: str, value: str, because: str) -> None:
        """A line on a choice, in place of an earlier one on the same."""
        self.lines[:] = [line for line in self.lines if not line.startswith(f"{what}: ")]
        self.lines.append(f"{what}: {value} — because {because}")

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    def config(self, base: RunConfig, more: Mapping[str, Any] | None = None) -> RunConfig:
        """`base` with all that is chosen, `more`, and above all what the user fixed."""
        return load_config(base, **{**self.settings, **(more or {}), **self.fixed})
