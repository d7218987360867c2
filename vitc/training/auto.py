"""The front door: images and no recipe. What lies there, what is this machine, so what to run?

Every choice is a pure function of what was seen and measured, and is said in one line with its
reason; what the user has fixed is kept, and said too. Torch is loaded only once the images are in
order, so that a wrong folder is answered at once. Images are a folder of them, or whatever else
`--data` can tell by its name: a pack, shards, tables, a list.
"""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.config import RunConfig, load_config, resolve_config, with_data
from vitc.data.dataset import DataSet, open_data
from vitc.data.sampling import steps_per_epoch
from vitc.data.sources.base import Split
from vitc.errors import BrokenFileError, ConfigError, DataError
from vitc.models.config import ViTConfig
from vitc.models.zoo import model_config
from vitc.optim.config import OptimConfig, SGDConfig
from vitc.recipes import get_recipe
from vitc.wording import counted, duration

if TYPE_CHECKING:
    import torch

    from vitc.training.probe import Probe

DEFAULT_BUDGET_SECONDS = 1800.0
START_SECONDS = 3.0  # reading the folder, the first step, the last checkpoint
SAMPLE = 64  # images looked at to learn sizes, colours and how fast they are read
EVALUATIONS = 20  # on validation over a run, at most
LEAST_SHARE = 0.4  # of the wanted epochs that a model must reach within the budget to be chosen
SMALL_SIDE = 40  # pixels up to which images are treated as MNIST's and CIFAR's are
RECIPE = "cifar10_vit_c"  # whose optimizer settings are used, the learning rate scaled
# Of a fresh model's rate, for weights that are trained. Measured: vit_c_tiny from five classes of
# CIFAR-10 (JPEG q75) to 50 images each of the other five; see docs/LOG.md.
TRAINED_SHARE = 0.3
TINY_WIDTH = 64  # embed_dim of its model
WORKER_BYTES = 150_000_000  # what a forked loader process comes to own
FEW_OF_A_CLASS = 10  # training images; with fewer a class is warned of
FEW_TOKENS = 16  # with fewer, attention has next to nothing to compare


@dataclass(frozen=True)
class Proposal:
    """A config for one's images, why it is so, and what it will cost."""

    config: RunConfig
    lines: list[str]
    """One a choice, `what: value — because reason`; then time, memory and what to expect."""
    seconds: float
    """Expected duration of the run, evaluations included."""
    memory_bytes: int
    """Expected peak memory, of the GPU or else of the run's processes; 0: not known."""


def propose(
    images: Path,
    budget_seconds: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Proposal:
    """What to train on `images` within `budget_seconds` (None: at most 30 minutes).

    `images`: a folder of them, or of shards, or a file: a pack (.vitc), a list (.csv), ...
    `overrides`: settings the user fixed, by their dotted names as `load_config` takes them; every
    choice respects them. Takes seconds: a sample of the images is opened, and real steps are timed.
    No random generator and no global setting of torch is changed. Raises ConfigError: a setting
    that cannot be; DataError: images that cannot be trained on.
    """
    fixed = dict(overrides or {})
    if fixed.get("train.precision") == "auto":  # what a choice here comes to as well
        del fixed["train.precision"]
    budget = DEFAULT_BUDGET_SECONDS if budget_seconds is None else budget_seconds
    _refuse(images, budget, fixed)
    weights, theirs = _as_the_weights(fixed)
    choices = Choices({**fixed, **theirs}, frozenset(theirs))
    base = _base(images, fixed)
    data, look = _choose_images(choices, base)
    device, machine = _choose_device(choices)
    _choose_views(choices, look)
    _choose_batch(choices, look, machine)
    trial = _choose_model(choices, base, data, look, device, machine, budget)
    _choose_rate(choices, trial)
    seconds = _choose_length(choices, look, trial, budget, default=budget_seconds is None)
    config = choices.config(base, trial.settings)
    if weights:
        choices.lines.insert(1, weights)
    _say_schedule(choices, config)
    memory = memory_bytes(config, data, machine, trial.cost)
    _say_costs(choices, machine, trial, seconds, memory)
    _say_expectations(choices, look, config)
    return Proposal(config, choices.lines, seconds, memory)


def name_of(images: Path) -> str:
    """What a run on these images is called: as their folder, or their file without its suffix."""
    where = images.resolve()
    return (where.stem if where.is_file() else where.name) or "run"


# -- what was seen ---------------------------------------------------------------------------------


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
    gray: bool
    """Whether no image of the sample has colour."""

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

    kind: Literal["cuda", "mps", "cpu"]
    name: str
    cores: int
    memory_bytes: int
    """Of the GPU, or else of the host."""


def sample(split: Split, skip_broken: bool) -> tuple[tuple[tuple[int, int], ...], bool]:
    """(height, width) of a few images, evenly spread, and whether all are gray.

    Raises BrokenFileError, unless such files are skipped.
    """
    places = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(np.int64)).tolist()
    if split.pixels is not None:
        size = (split.pixels.shape[1], split.pixels.shape[2])
        return (size,), all(_is_gray(split.pixels[i]) for i in places)
    sizes, gray = [], True
    for i in places:
        try:
            pixels = split.read(i, 3)
        except BrokenFileError:
            if not skip_broken:
                raise
            continue
        sizes.append((pixels.shape[0], pixels.shape[1]))
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


# -- choices: pure functions of what was seen ------------------------------------------------------


class Rung(NamedTuple):
    """A model of the zoo at an input size, and from how many training images it earns its cost."""

    model: str
    img_size: int
    min_images: int


# Cheapest first. All have convolutional stems: with them a ViT learns from few images, and under
# any optimizer, what it does not with patches (paper section 5). All have 4x4 tokens or more.
PHOTO_RUNGS = (
    Rung("vit_c_tiny", 64, 0),
    Rung("vit_c_mini96", 64, 150),
    Rung("vit_c_mini96", 96, 1_000),
    Rung("vit_c_small128", 128, 5_000),
    Rung("vit_c_1gf", 224, 30_000),
    Rung("vit_c_4gf", 224, 150_000),
)
SMALL_RUNGS = (
    Rung("vit_c_tiny", 32, 0),
    Rung("vit_c_tiny_patch4", 32, 2_000),
    Rung("vit_c_mini", 32, 20_000),
)


def rungs_for(look: Look) -> list[Rung]:
    """The rungs that these images can use, cheapest first; at least one."""
    ladder = SMALL_RUNGS if look.short_side <= SMALL_SIDE else PHOTO_RUNGS
    fitting = [
        r for r in ladder if look.train >= r.min_images and r.img_size <= 1.25 * look.short_side
    ]
    return fitting or [ladder[0]]


def batch_size(train: int, kind: str) -> int:
    """At least BatchNorm's 16 images, ten steps an epoch if so, at most 128 (on a GPU 256)."""
    if train < 16:
        return max(1, train)
    ten_steps = 1 << int(math.log2(train / 10))
    return min(128 if kind == "cpu" else 256, max(16, ten_steps))


def wanted_epochs(train: int) -> int:
    """How long training from scratch keeps paying: 200 epochs of 250 images, 50 of 13,000."""
    return int(min(300.0, max(30.0, 200 * math.pow(250 / max(1, train), 0.35))))


def held_out_shares(total: int) -> tuple[float, float]:
    """(validation, test) shares of images that come without a split.

    Of few images none is kept for a test: nothing is chosen by validation (the last epoch is
    taken), so its number is an honest one.
    """
    if total < 2000:
        return 0.2, 0.0
    share = round(min(0.15, max(0.02, 1500 / total)), 3)
    return share, share


def fit_for(sizes: Sequence[tuple[int, int]]) -> tuple[Literal["crop", "pad", "squash"], str]:
    """How images of these (height, width) become square, and why."""
    ratios = [width / height for height, width in sizes]
    if max(max(size) for size in sizes) < 32:
        return "pad", "the images are smaller than the input, and are not blown up"
    lost = statistics.median(1 - min(r, 1 / r) for r in ratios)
    said = f"a square from the middle loses {lost:.0%} of the median image"
    if lost < 0.45:
        return "crop", said
    low, high = np.quantile(ratios, (0.1, 0.9))
    if high / low < 1.2:
        return "squash", f"{said}, and all have about the same shape (width {high:.1f} x height)"
    return "pad", f"{said}, and their shapes differ"


def balance_for(counts: Sequence[int]) -> tuple[Literal["none", "sqrt"], str]:
    """Whether rare classes are shown more often than they come, and why."""
    most = counted(max(counts), "training image")
    said = f"the largest class has {most}, the smallest {min(counts):,}"
    if max(counts) < 4 * min(counts):
        return "none", said
    return "sqrt", f"{said}: rare classes are shown more often than they come"


_ONE_SIDED = re.compile(r"(?:^|[^a-z])(?:left|right)(?:[^a-z]|$)", re.IGNORECASE)


def flip_for(classes: Sequence[str]) -> tuple[float, str]:
    """Probability of mirroring: none where a mirrored image would be of another class."""
    if any(_ONE_SIDED.search(name) for name in classes):
        return 0.0, "a class name tells left from right"
    if all(len(name) == 1 for name in classes):
        return 0.0, "the classes are named by one character: a mirrored one may be another"
    return 0.5, "a mirrored photo is of the same class"


def half_width(n: int) -> float:
    """Half of Wilson's 95 % interval, in points, of an accuracy near 50 % measured on n images."""
    z = 1.959963984540054
    return 100 * z / (1 + z * z / n) * math.sqrt(0.25 / n + (z / (2 * n)) ** 2)


def learning_rate(optim: OptimConfig, at_batch: int, batch: int, width: int) -> tuple[float, str]:
    """The peak learning rate, absolute, and why: a tiny recipe's, scaled to batch and embed_dim."""
    peak, sgd = optim.peak_lr(at_batch), isinstance(optim, SGDConfig)
    scaled = peak * (batch / at_batch) ** (1.0 if sgd else 0.5) * (TINY_WIDTH / width) ** 0.5
    how = "linearly" if sgd else "by the square root"
    said = (
        f"the small recipes' {peak:g} at batch {at_batch} and width {TINY_WIDTH} is scaled {how} "
        f"to batch {batch}, by the inverse square root to width {width}"
    )
    return float(f"{scaled:.2g}"), said


# -- costs: pure functions of what was measured ----------------------------------------------------


def epoch_seconds(look: Look, batch: int, cost: Probe) -> float:
    """One pass over the training images."""
    return look.train // batch * cost.step_seconds


def evaluation_seconds(look: Look, cost: Probe) -> float:
    """One evaluation on validation: of the weights as they are, and of their average."""
    return 2 * look.val * cost.eval_seconds


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
        evaluations = math.ceil(epochs / every)
        return Length(epochs, every, START_SECONDS + epochs * epoch + evaluations * evaluation)

    epochs = max(1, int(min(most, (budget - START_SECONDS) / epoch)))
    while epochs > 1 and length(epochs).seconds > budget:
        epochs = min(epochs - 1, int(epochs * 0.98))
    return length(epochs)


def memory_bytes(config: RunConfig, data: DataSet, machine: Machine, cost: Probe) -> int:
    """Peak memory of a run whose step was seen to need `cost.memory_bytes`; 0: not known."""
    if not cost.memory_bytes:
        return 0
    held = sum(s.pixels.nbytes for s in data.splits.values() if s.pixels is not None)
    workers = 0
    if not held and machine.kind == "cpu":
        workers = min(machine.cores, 8) if config.data.workers is None else config.data.workers
    return cost.memory_bytes + held + workers * WORKER_BYTES


# -- choosing aloud --------------------------------------------------------------------------------


@dataclass
class Choices:
    """Settings chosen so far and a line of reason for each; what the user fixed stays as it is."""

    fixed: Mapping[str, Any]
    theirs: frozenset[str] = frozenset()
    """Those of `fixed` that the weights to start from fix, not the user."""
    settings: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def take(self, key: str, what: str, value: Any, because: str) -> Any:
        """`value` for the setting `key`, or what the user fixed; either is said."""
        if key in self.fixed:
            value, because = self.fixed[key], self.reason(key)
        else:
            self.settings[key] = value
        self.say(what, str(value), because)
        return value

    def reason(self, key: str) -> str:
        """Why a setting is fixed."""
        return "the weights have it so" if key in self.theirs else f"you set --{key}"

    def say(self, what: str, value: str, because: str) -> None:
        self.lines.append(f"{what}: {value} — because {because}")

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    def config(self, base: RunConfig, more: Mapping[str, Any] | None = None) -> RunConfig:
        """`base` with all that is chosen, `more`, and above all what the user fixed."""
        return load_config(base, **{**self.settings, **(more or {}), **self.fixed})


def _refuse(images: Path, budget: float, fixed: Mapping[str, Any]) -> None:
    """What no choice can mend."""
    if not images.exists():
        raise ConfigError(
            f"There is no folder or file {images}.", "Give a folder of images, or a pack of them."
        )
    if not 0 < budget < math.inf:
        raise ConfigError(f"A budget of {budget} seconds: it must be above 0.")
    twice = [key for key in ("data", "data.path") if key in fixed]
    if twice:
        raise ConfigError(
            f"The images are those of {images}, but --{twice[0]} {fixed[twice[0]]} names others.",
            "Give one of the two.",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "Images alone cannot be trained on by several processes: each would measure, and "
            "choose, for itself.",
            "Train them in one process with --train.epochs 1, and give the config.json of that run "
            "to torchrun.",
        )


def _as_the_weights(fixed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A line on the weights to start from; model, image size and channels as they have them."""
    where = fixed.get("init", fixed.get("init.weights"))
    if not where:
        return "", {}
    if "model" in fixed:
        return f"start: {where} — because you set --init; the model is the one you set", {}
    from vitc.models.zoo import MODELS
    from vitc.weights.load import read_weights

    model = read_weights(where, fixed.get("init.source", "auto")).model or {}
    if model.get("name") not in MODELS:
        raise ConfigError(
            f"{where} does not say which model of the zoo it is of.",
            "Say it with --model NAME, and how its images were prepared with --data.mean and "
            "--data.std (models: vitc show --list).",
        )
    theirs = {"model": model["name"]}
    for key in ("img_size", "in_chans"):
        if isinstance(model.get(key), int) and f"model.{key}" not in fixed:
            theirs[f"model.{key}"] = model[key]
    return f"start: {where} — because you set --init", theirs


def _base(images: Path, fixed: Mapping[str, Any]) -> RunConfig:
    """What choices are laid over: the images, and a small recipe's optimizer, its lr absolute."""
    recipe = get_recipe(RECIPE, fixed.get("optim", fixed.get("optim.kind")))
    return with_data(RunConfig(name=name_of(images), optim=recipe.optim), str(images))


def _optimizer(fixed: Mapping[str, Any]) -> str | None:
    name: str | None = fixed.get("optim", fixed.get("optim.kind"))
    return name


def _choose_images(choices: Choices, base: RunConfig) -> tuple[DataSet, Look]:
    """Open the images twice: as they come, then with the shares that are to be held out."""
    fixed = choices.fixed
    own = {key: value for key, value in fixed.items() if key.startswith("data.")}
    whole = {**own, "data.val_fraction": 0.0, "data.test_fraction": 0.0}
    channels = fixed.get("model.in_chans", 3)
    given = open_data(resolve_config(base, **whole).data, channels).splits
    sizes, gray = sample(given["train"], skip_broken=fixed.get("data.bad_files") == "skip")
    total = len(given["train"])
    if "val" not in given:
        val, test = held_out_shares(total)
        because = f"there are {counted(total, 'image')}, and no validation images beside them"
        choices.take("data.val_fraction", "share held out for validation", val, because)
        if "test" not in given:
            if not test:
                because = (
                    f"each of {counted(total, 'image')} counts, and nothing is chosen by validation"
                )
            choices.take("data.test_fraction", "share held out for the test", test, because)
    if gray or "model.in_chans" in fixed:
        because = f"none of {counted(min(SAMPLE, total), 'image')} looked at has colour"
        channels = choices.take("model.in_chans", "channels", 1, because)
    chosen = {key: v for key, v in choices.settings.items() if key.startswith("data.")}
    data = open_data(resolve_config(base, **{**chosen, **own}).data, channels)
    counts = np.bincount(data.splits["train"].labels, minlength=len(data.classes)).tolist()
    val_images = len(data.splits["val"]) if "val" in data.splits else 0
    look = Look(data.classes, tuple(counts), val_images, sizes, gray)
    choices.lines.insert(0, _images_line(look))
    return data, look


def _images_line(look: Look) -> str:
    sides = [side for size in look.sizes for side in size]
    shown = ", ".join(look.classes[:3]) + (", ..." if len(look.classes) > 3 else "")
    return (
        f"images: {look.train:,} to train on, {look.val:,} to validate; "
        f"{counted(len(look.classes), 'class', 'classes')} ({shown}) of "
        f"{_range(look.counts, 'training image')}; {_range(sides, 'pixel')} a side"
    )


def _range(values: Sequence[int], noun: str) -> str:
    low, high = min(values), max(values)
    return counted(high, noun) if low == high else f"{low:,} to {counted(high, noun)}"


def _choose_device(choices: Choices) -> tuple[torch.device, Machine]:
    """The device: what `train.device` names, else the fastest there is."""
    from vitc.data.pixels import device_memory
    from vitc.machine import cores
    from vitc.training.device import describe, pick_device

    device = pick_device(choices.fixed.get("train.device", "auto"))
    kind: Any = device.type
    because = "torch sees no GPU" if kind == "cpu" else "it is the fastest device here"
    if "train.device" in choices.fixed:
        because = "you set --train.device"
    choices.say("device", describe(device), because)
    return device, Machine(kind, describe(device), cores(), device_memory(device))


def _choose_views(choices: Choices, look: Look) -> None:
    """How an image reaches the model: shape, balance, crop, mirror, mixing."""
    fit, because = fit_for(look.sizes)
    choices.take("data.fit", "fit to a square", fit, because)
    balance, because = balance_for(look.counts)
    choices.take("data.balance", "balance of classes", balance, because)
    if look.short_side <= SMALL_SIDE:
        crop, because = "shift", "images this small lose too much when a part is cut out"
        if choices.fixed.get("data.fit", fit) == "crop" and "data.eval_crop" not in choices.fixed:
            choices.settings["data.eval_crop"] = 1.0  # evaluation keeps every pixel
    else:
        crop, because = "random_resized", "each epoch then sees another part of each photo"
    crop = choices.take("data.augment.crop", "training crop", crop, because)
    if crop == "random_resized" and "data.augment.scale" not in choices.fixed:
        choices.settings["data.augment.scale"] = (0.35, 1.0)
    flip, because = flip_for(look.classes)
    choices.take("data.augment.flip", "mirror", flip, because)
    mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1}
    for name, value in mixing.items():
        if f"data.augment.{name}" not in choices.fixed:
            choices.settings[f"data.augment.{name}"] = value
    choices.say(
        "mixing",
        ", ".join(f"{n} {choices.fixed.get(f'data.augment.{n}', v)}" for n, v in mixing.items()),
        "without it a ViT learns few images by heart (the values are the paper's)",
    )


def _choose_batch(choices: Choices, look: Look, machine: Machine) -> None:
    batch = batch_size(look.train, machine.kind)
    micro = choices.fixed.get("train.micro_batch")
    if micro:
        batch = max(1, batch // micro) * micro
    steps = counted(look.train // batch, "step")
    because = f"an epoch of {counted(look.train, 'image')} then has {steps}"
    batch = choices.take("train.batch", "batch", batch, because)
    steps_per_epoch(look.train, batch)  # a batch that the user set may be too large: it says so
    if batch < 16:
        choices.warn(
            f"batch {batch}: the stem's BatchNorm wants 16 images or more to measure means and "
            "variances on; more images would help."
        )


# -- the model, measured ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A rung's settings and how they ran here."""

    settings: dict[str, Any]
    config: RunConfig
    cost: Probe
    reasons: dict[str, str]
    """Why these threads and this precision."""


def _choose_model(
    choices: Choices,
    base: RunConfig,
    data: DataSet,
    look: Look,
    device: torch.device,
    machine: Machine,
    budget: float,
) -> Trial:
    """Climb from the cheapest rung for as long as the budget pays for enough epochs of the next."""
    least = choices.fixed.get("train.epochs", math.ceil(LEAST_SHARE * wanted_epochs(look.train)))
    ladder = _rungs(choices.fixed, look)
    best: Trial | None = None
    reason = f"more would be too much for {counted(look.train, 'image')} of these sizes"
    for rung in ladder:
        if best is not None and machine.kind == "cpu":  # not even tried where there is no hope
            seconds = _predicted_epoch(best, rung, choices, base, look)
            if seconds * least > 1.5 * budget:
                reason = _too_slow(rung, least, seconds, budget)
                break
        trial = _tried(choices, base, rung, data, device)
        if trial is None:
            reason = f"{rung.model} at {rung.img_size} pixels does not fit the device's memory"
            break
        seconds = epoch_seconds(look, trial.config.train.batch, trial.cost)
        if best is not None and seconds * least > budget:
            reason = _too_slow(rung, least, seconds, budget)
            break
        best = trial
    if best is None:
        raise ConfigError(
            f"{ladder[0].model} at {ladder[0].img_size} pixels does not fit the memory of "
            f"{machine.name}.",
            "Use a smaller --train.micro_batch, --model.img_size or --model.",
        )
    _say_model(choices, best, look, reason)
    return best


def _too_slow(rung: Rung, least: int, seconds: float, budget: float) -> str:
    return (
        f"{counted(least, 'epoch')} of the next larger, {rung.model} at {rung.img_size} pixels, "
        f"would take {duration(seconds * least)}, more than {duration(budget)}"
    )


def _rungs(fixed: Mapping[str, Any], look: Look) -> list[Rung]:
    """The ladder, or what a model or an image size that the user fixed leaves of it."""
    ladder = rungs_for(look)
    if "model" in fixed:
        own, reduction = model_config(fixed["model"]).size[0], _reduction(fixed["model"])
        side = max(ladder[0].img_size, min(own, look.short_side))
        ladder = [Rung(fixed["model"], max(1, round(side / reduction)) * reduction, 0)]
    if "model.img_size" in fixed:
        size = fixed["model.img_size"]
        sides = size if isinstance(size, tuple) else (size, size)
        fitting = [r for r in ladder if not any(s % _reduction(r.model) for s in sides)]
        models = dict.fromkeys(r.model for r in fitting or ladder[:1])
        ladder = [Rung(model, min(sides), 0) for model in models]
    return ladder


def _reduction(model: str) -> int:
    config = model_config(model)
    if not isinstance(config, ViTConfig) or config.stem.reduction is None:
        raise ConfigError(
            f"What is chosen for a folder is measured for ViTs of the zoo; {model} is none.",
            f"Name a recipe: vitc train cifar10_vit_c --data FOLDER --model {model}",
        )
    return config.stem.reduction


def _vit(config: RunConfig) -> ViTConfig:
    assert isinstance(config.model, ViTConfig)  # `_reduction` has let no other pass
    return config.model


def _tried(
    choices: Choices, base: RunConfig, rung: Rung, data: DataSet, device: torch.device
) -> Trial | None:
    """Take a few steps in the faster precision; None where the memory does not suffice.

    Before that is so, the micro-batch is halved, but never below BatchNorm's 16 images.
    """
    from vitc.training.probe import faster_precision, probe

    settings: dict[str, Any] = {"model": rung.model, "model.img_size": rung.img_size}
    reasons: dict[str, str] = {}
    if device.type == "cpu" and "train.threads" not in choices.fixed:
        settings["train.threads"], reasons["threads"] = _threads(
            choices, base, settings, data, device
        )
    reasons["precision"] = "you set --train.precision"
    if "train.precision" not in choices.fixed:
        precision, why = faster_precision(choices.config(base, settings), device)
        settings["train.precision"], reasons["precision"] = precision, why
    while True:
        config = choices.config(base, settings)
        cost = probe(config, data, device)
        if cost is not None:
            return Trial(settings, config, cost, reasons)
        micro = config.train.micro
        if "train.micro_batch" in choices.fixed or micro % 2 or micro < 32:
            return None
        settings["train.micro_batch"] = micro // 2


def _threads(
    choices: Choices,
    base: RunConfig,
    settings: Mapping[str, Any],
    data: DataSet,
    device: torch.device,
) -> tuple[int, str]:
    """How many CPU threads, and why: half of them for as long as that is faster.

    Threads wait for each other many times a step. Where other programs, or our own loader
    processes, keep a core busy, two threads can be ten times slower than one.
    """
    import torch

    from vitc.training.probe import probe

    def step_seconds(threads: int) -> float:
        own = {**settings, "train.threads": threads, "train.precision": "fp32"}
        cost = probe(choices.config(base, own), data, device, seconds=0.5)
        return math.inf if cost is None else cost.step_seconds

    best = torch.get_num_threads()
    why = "there is one core" if best == 1 else ""
    seconds = step_seconds(best) if best > 1 else 0.0
    while best > 1:
        half = step_seconds(best // 2)
        why = f"a step takes {_ms(seconds)} with {best}, {_ms(half)} with {best // 2}"
        if half > 0.95 * seconds:
            break
        best, seconds = best // 2, half
    return best, why


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _predicted_epoch(
    best: Trial, rung: Rung, choices: Choices, base: RunConfig, look: Look
) -> float:
    """Seconds an epoch of the next rung would take at the speed, in flops, of the best so far."""
    config = choices.config(base, {"model": rung.model, "model.img_size": rung.img_size})
    ratio = _flops(config) / _flops(best.config)
    return ratio * epoch_seconds(look, config.train.batch, best.cost)


def _flops(config: RunConfig) -> int:
    import torch

    from vitc.models.complexity import complexity
    from vitc.models.zoo import build_model

    with torch.device("meta"):
        return complexity(build_model(config.model)).flops


def _say_model(choices: Choices, trial: Trial, look: Look, reason: str) -> None:
    config, fixed = trial.config, choices.fixed
    reduction = _vit(config).stem.reduction or 1
    h, w = (side // reduction for side in config.model.size)
    side = counted(look.short_side, "pixel")
    because = f"the images are {side} at the short side (median); {h}x{w} tokens"
    if "model.img_size" in fixed:
        because = f"{choices.reason('model.img_size')}; {h}x{w} tokens"
    size = config.model.size
    choices.say("image size", f"{size[0]}x{size[1]}", because)
    stem = "its convolutional stem needs fewer epochs than patches do, and any optimizer trains it"
    choices.say(
        "model",
        config.model.name,
        choices.reason("model") if "model" in fixed else f"{stem}; {reason}",
    )
    choices.say("precision", config.train.precision, trial.reasons["precision"])
    if "threads" in trial.reasons:
        choices.say("threads", str(config.train.threads), trial.reasons["threads"])
    if config.train.micro_batch is not None and "train.micro_batch" not in fixed:
        choices.say("micro-batch", str(config.train.micro_batch), "more does not fit in memory")
    if h * w < FEW_TOKENS:
        choices.warn(
            f"{config.model.img_size} pixels are only {counted(h * w, 'token')} for "
            f"{config.model.name}, "
            f"which reduces by {reduction}: too few to learn from. Use a larger "
            "--model.img_size or a --model with smaller patches."
        )


def _choose_rate(choices: Choices, trial: Trial) -> None:
    """The learning rate, in the unit that `optim.lr_per_batch` says where the user set that."""
    config = trial.config
    recipe = get_recipe(RECIPE, _optimizer(choices.fixed))
    lr, because = learning_rate(
        recipe.optim, recipe.train.batch, config.train.batch, _vit(config).embed_dim
    )
    if config.init.weights:
        lr = float(f"{TRAINED_SHARE * lr:.2g}")
        because += f"; times {TRAINED_SHARE:g}, as the weights are trained already"
    per = choices.fixed.get("optim.lr_per_batch")
    if per is not None:
        lr *= per / config.train.batch
    choices.take("optim.lr", "peak learning rate", lr, because)


# -- length, cost, expectation ---------------------------------------------------------------------


def _choose_length(
    choices: Choices, look: Look, trial: Trial, budget: float, default: bool
) -> float:
    """Epochs and evaluations; returns the seconds of the run."""
    batch = trial.config.train.batch
    epoch = epoch_seconds(look, batch, trial.cost)
    evaluation = evaluation_seconds(look, trial.cost)
    wanted = wanted_epochs(look.train)
    fixed = choices.fixed.get("train.epochs")
    if fixed is not None:
        length = run_length(epoch, evaluation, math.inf, fixed)
    else:
        length = run_length(epoch, evaluation, budget, wanted if default else 3 * wanted)
    start = "from trained weights, too" if trial.config.init.weights else "from scratch"
    because = f"for {counted(look.train, 'image')} it should be about {wanted} {start}"
    if length.epochs != wanted:
        limit = "the cap without --budget is" if default else "the budget is"
        because += f", one takes {epoch:.2g} s, and {limit} {duration(budget)}"
    choices.take("train.epochs", "epochs", length.epochs, because)
    every = choices.take(
        "train.eval_every_epochs",
        "epochs between evaluations",
        length.eval_every,
        f"one takes {evaluation:.1g} s",
    )
    seconds = length.seconds
    if every != length.eval_every:
        seconds = START_SECONDS + length.epochs * epoch
        seconds += math.ceil(length.epochs / every) * evaluation
    if seconds > budget and length.epochs == 1 and "data.max_train" not in choices.fixed:
        seconds = _fewer_images(choices, look, batch, epoch, evaluation, budget)
    if seconds > 1.2 * budget:
        choices.warn(f"this is expected to take {duration(seconds)}, not {duration(budget)}.")
    return seconds


def _say_schedule(choices: Choices, config: RunConfig) -> None:
    schedule, epochs = config.optim.schedule, config.train.epochs
    warmup = schedule.warmup_epochs
    because = "you set --optim.schedule.warmup_epochs"
    if warmup is None:
        warmup, because = min(5.0, 0.1 * epochs), "that is a tenth of the run, but 5 epochs at most"
    epochs_said = f"{warmup:g} epoch{'s' * (warmup != 1)}"
    choices.say("schedule", f"{epochs_said} of warm-up, then half a cosine", because)


def _fewer_images(
    choices: Choices, look: Look, batch: int, epoch: float, evaluation: float, budget: float
) -> float:
    """One epoch of as many images as the budget pays for; returns the seconds it takes."""
    share = max(0.0, budget - START_SECONDS - evaluation) / epoch
    images = max(batch, len(look.classes), int(look.train * share) // batch * batch)
    if images < look.train:
        because = f"not one epoch of {look.train:,} fits the budget of {duration(budget)}"
        choices.take("data.max_train", "training images used", images, because)
    return START_SECONDS + evaluation + epoch * min(1.0, images / look.train)


def _say_costs(
    choices: Choices, machine: Machine, trial: Trial, seconds: float, memory: int
) -> None:
    choices.say(
        "time",
        f"about {duration(seconds)}",
        f"a step of {counted(trial.config.train.batch, 'image')} took "
        f"{_ms(trial.cost.step_seconds)} with "
        "reading them, measured just now",
    )
    if memory:
        choices.say("memory", f"about {memory / 1e9:.1f} GB", "that is what these steps needed")
    if memory > 0.8 * machine.memory_bytes:
        choices.warn(
            f"this machine has {machine.memory_bytes / 1e9:.1f} GB in all; a smaller "
            "--train.micro_batch or --model.img_size needs less."
        )


def _say_expectations(choices: Choices, look: Look, config: RunConfig) -> None:
    """What a model trained on so many images can be, and how surely that is known."""
    n = config.data.max_train or look.train
    rare = [c for c, count in zip(look.classes, look.counts, strict=True) if count < FEW_OF_A_CLASS]
    if rare:
        more = f" and {len(rare) - 3} more" if len(rare) > 3 else ""
        choices.warn(
            f"fewer than {FEW_OF_A_CLASS} training images of {', '.join(rare[:3])}{more}: too few "
            "to learn a class from."
        )
    chance, largest = 100 / len(look.classes), 100 * max(look.counts) / look.train
    if n < 2_000:
        level = "a rough model: colours, textures and coarse shapes are learnt, little else"
    elif n < 20_000:
        level = "a fair model of classes that look different, a rough one of those that do not"
    else:
        level = "a good model, and a better one the longer it trains"
    pretrained = (
        ""
        if n >= 200_000
        else "; fine-tuning a model pretrained on millions of images would do far better"
    )
    if config.init.weights:
        said = "what the weights make of it: the nearer their images were to these, the better"
    else:
        said = f"{level}, since it starts from scratch with {counted(n, 'image')}{pretrained}"
    choices.lines.append(
        f"expect: {said}. "
        f"Chance is {chance:.1f} %, always naming the largest class {largest:.1f} %."
    )
    if look.val:
        doubt = half_width(look.val)
        tail = " Differences smaller than that mean nothing." if doubt > 2 else ""
        choices.lines.append(
            f"certainty: an accuracy measured on {counted(look.val, 'validation image')} is "
            "uncertain by "
            f"up to {doubt:.1f} points either way (95 %).{tail}"
        )
