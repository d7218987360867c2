"""The front door: images and no recipe. What should be trained on them, on this machine?

Every choice is a pure function of what was seen and measured, and is noted in one line with its
reason; what the user has fixed is kept, and noted too. Torch is imported only when the images are
valid, so that a wrong folder is reported at once. Images are a folder, or anything else that
`--data` recognises by its name: a pack, shards, tables, a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitc.config import RunConfig
from vitc.data.cache import decoding_seconds
from vitc.data.check_quick import as_lines, quick_findings
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.sampling import steps_per_epoch
from vitc.data.sources.base import Split
from vitc.errors import ConfigError
from vitc.machine import core_seconds, cores, processor_seconds
from vitc.optim.config import OptimConfig
from vitc.optim.optimizers import MuonConfig
from vitc.recipes import get_recipe
from vitc.resolve import resolve_config, with_data
from vitc.training import auto_model, auto_start
from vitc.training import auto_rules as rules
from vitc.training.auto_rules import Choices, Look, Machine
from vitc.training.pace import CLOCKS
from vitc.wording import counted, duration

if TYPE_CHECKING:
    import torch

LITTLE_LEFT = 0.3  # of the budget: less for training is worth a warning
MOST_BUSY = 4  # times as long as on a quiet machine, at most, the run page is taken to need


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
    group: str = ""
    """A data.group that keeps images together which seem to belong together and are now in several
    splits; empty: none was found, or the source divides the images itself."""


class Time:
    """The seconds given for choosing, training and the run page together; None: the default for
    each of the `runs`, which share what is given."""

    def __init__(self, given: float | None, clock: Callable[[], float], runs: int = 1) -> None:
        self.given, self.clock, self.runs = given, clock, runs
        self.started, self.worked, self.core_time = clock(), processor_seconds(), core_seconds()

    @property
    def budget(self) -> float:
        """Of one run."""
        return rules.DEFAULT_BUDGET_SECONDS if self.given is None else self.given / self.runs

    @property
    def left(self) -> float:
        """For one run: choosing was for all of them."""
        return self.budget - (self.clock() - self.started) / self.runs

    @property
    def busy(self) -> float:
        """How many times as long as on a quiet machine choosing has taken, `MOST_BUSY` at most;
        1 where processor time counts, which waiting for a core does not use.

        Where two threads worked at once, their processor time hides that each waited for a core.
        """
        if self.clock is CLOCKS["processor"]:
            return 1.0
        used, worked = self.clock() - self.started, processor_seconds() - self.worked
        ran, waited = (now - then for now, then in zip(core_seconds(), self.core_time, strict=True))
        slower = max(used / max(worked, 0.01), 1 + waited / max(ran, 0.01))
        return min(MOST_BUSY, max(1.0, slower))


def propose(
    images: Path,
    budget_seconds: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    start: str = "auto",
    processes: int = 1,
    runs: int = 1,
) -> Proposal:
    """What to train on `images` within `budget_seconds` (None: at most 30 minutes a run).

    `images`: a folder of them, or of shards, or a file: a pack (.vitc), a list (.csv), ...
    `overrides`: settings the user fixed, by their dotted names as `load_config` takes them; every
    choice respects them. `start`: from "pretrained" weights of the catalog, from "scratch", or
    "auto": pretrained where some are here and the images are large enough. `processes`: how many
    will train it. `runs`: how many runs of these settings there will be within that time, those of
    folds and seeds, with one page. Takes seconds: a sample of the images is opened, and real steps
    are timed. No random generator and no global setting of torch is changed. Raises ConfigError: a
    setting that cannot be; DataError: images that cannot be trained on.
    """
    fixed = dict(overrides or {})
    time = Time(budget_seconds, CLOCKS[fixed.get("train.clock", "wall")], runs)
    if fixed.get("train.precision") == "auto":  # decided by measuring here too
        del fixed["train.precision"]
    _refuse(images, time.budget, fixed)
    weights, theirs = _as_the_weights(fixed)
    choices = Choices({**fixed, **theirs}, frozenset(theirs), runs=runs)
    if "train.clock" in fixed and "train.budget_seconds" not in fixed:
        choices.settings["train.budget_seconds"] = time.budget  # which clock is meant of
    # What choices are laid over: a small recipe's optimizer, its learning rate absolute.
    optim = fixed.get("optim", fixed.get("optim.kind"))
    recipe = get_recipe(rules.RECIPE, optim)
    base = RunConfig(name=name_of(images), optim=recipe.optim)
    base = with_data(base, str(images.absolute()))  # a folder may have the name of a source
    given, sizes, gray = _sampled(choices, base)
    entries = auto_start.find_starts(start, fixed, sizes)
    made = auto_start.formula_models(start, fixed)  # they see three channels
    gray = gray and not (entries or made)
    data, look = _choose_images(choices, base, given, sizes, gray, time)
    device, machine = _choose_device(choices)
    _choose_views(choices, look)
    _choose_batch(choices, look, machine, processes)
    tuned, seconds = None, None
    for entry in entries:
        tuned = auto_start.pretrained_trial(
            choices, base, look, device, entry, time.left, processes
        )
        if tuned is not None:
            trial, seconds = tuned
            auto_start.note_start(choices, entry, trial.config, look)
            choices.settings |= trial.settings
            break
        choices.warn(f"the features of {entry.where} take too long here: it starts without them.")
    if tuned is None:
        only = tuple(made) if start == "formula" or look.train <= rules.FORMULA_IMAGES else ()
        seen, budget = (data, look, device, machine), time.budget
        base, trial = _with_optimizer(
            choices,
            base,
            optim is None and not weights,
            lambda own: auto_model.choose_model(choices, own, *seen, budget, only),
        )
        auto_model.choose_rate(choices, base, trial)
        if trial.config.model.name in made:
            auto_start.take_formula(choices, made[trial.config.model.name])
    # The clocks of several processes differ: their run ends after the epochs that were planned.
    bounded = processes == 1 and not fixed.keys() & rules.OWN_LENGTH
    look = _limit_validation(choices, look, trial, time.left)
    seconds, end = _choose_time(choices, look, trial, seconds, time, bounded)
    if end is not None:
        choices.settings["train.budget_seconds"] = end
    _choose_mixing(choices, trial.config.optim)
    config = choices.config(base, trial.settings)
    if hint := weights or auto_start.missing_start(start, entries, look):
        choices.lines.insert(1, hint)
    auto_model.choose_schedule(choices, config)
    config = choices.config(base, trial.settings)
    memory = rules.memory_bytes(machine.kind, trial.cost)
    auto_model.note_costs(choices, machine, trial, seconds, memory)
    auto_model.note_expectations(choices, look, config)
    return Proposal(config, choices.lines, seconds, memory, choices.group)


def name_of(images: Path) -> str:
    """What a run on these images is called: as their folder, or their file without its suffix."""
    where = images.resolve()
    return (where.stem if where.is_file() else where.name) or "run"


def _refuse(images: Path, budget: float, fixed: Mapping[str, Any]) -> None:
    """Raises ConfigError: what no choice can mend."""
    if not images.exists():
        raise ConfigError(
            f"{images} does not exist.", "Give a folder of images, or a pack of them."
        )
    if not 0 < budget < math.inf:
        raise ConfigError(f"A budget of {budget} seconds: it must be above 0.")
    twice = [key for key in ("data", "data.path") if key in fixed]
    if twice:
        raise ConfigError(
            f"The images are those of {images}, but --{twice[0]} {fixed[twice[0]]} names others.",
            "Give one of the two.",
        )


def _as_the_weights(fixed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A line on the weights to start from, and the settings that they fix."""
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
            f"{where} does not name the model of the zoo that it belongs to.",
            "Set --model NAME (models: vitc show --list), and the preprocessing of its images "
            "with --data.mean and --data.std.",
        )
    theirs = {"model": model["name"]}
    for key in ("img_size", "in_chans"):
        if isinstance(model.get(key), int) and f"model.{key}" not in fixed:
            theirs[f"model.{key}"] = model[key]
    return f"start: {where} — because you set --init", theirs


def _sampled(
    choices: Choices, base: RunConfig
) -> tuple[Mapping[str, Split], tuple[tuple[int, int], ...], bool]:
    """The images as they come; (height, width) of a few; whether none of these has colour."""
    fixed = choices.fixed
    own = {key: value for key, value in fixed.items() if key.startswith("data.")}
    whole = {**own, "data.val_fraction": 0.0, "data.test_fraction": 0.0}
    channels = fixed.get("model.in_chans", 3)
    given = open_data(resolve_config(base, **whole).data, channels).splits
    skip_broken = fixed.get("data.bad_files") == "skip"
    return given, *rules.sample(given["train"], skip_broken)


def _choose_images(
    choices: Choices,
    base: RunConfig,
    given: Mapping[str, Split],
    sizes: tuple[tuple[int, int], ...],
    gray: bool,
    time: Time,
) -> tuple[DataSet, Look]:
    """Open the images again, with the shares that are to be held out, and no more to train on than
    the time that is left allows for."""
    fixed, channels = choices.fixed, choices.fixed.get("model.in_chans", 3)
    total = len(given["train"])
    if "val" not in given:
        _choose_held_out(choices, base, given)
    if gray or "model.in_chans" in fixed:
        because = f"none of {counted(min(rules.SAMPLE, total), 'image')} looked at has colour"
        channels = choices.take("model.in_chans", "channels", 1, because)
    _limit_images(choices, base, given, sizes, channels, time)
    config = _data_config(choices, base)
    data = open_data(config, channels)
    counts = np.bincount(data.splits["train"].labels, minlength=len(data.classes)).tolist()
    val_images = len(data.splits["val"]) if "val" in data.splits else 0
    look = Look(data.classes, tuple(counts), val_images, sizes)
    shown = ", ".join(look.classes[:3]) + (", ..." if len(look.classes) > 3 else "")
    choices.lines.insert(
        0,
        f"images: {look.train:,} to train on, {look.val:,} to validate; "
        f"{counted(len(look.classes), 'class', 'classes')} ({shown}) of "
        f"{_range(look.counts, 'training image')}; "
        f"{_range([side for size in sizes for side in size], 'pixel')} a side",
    )
    found = quick_findings(config, data)
    for text in as_lines(config, found):
        choices.warn(text)
    divided = "val" not in given or config.folds is not None  # not by the source
    if divided and config.group is None:
        choices.group = next(filter(None, (f.setting.get("data.group") for f in found)), "")
    return data, look


def _choose_held_out(choices: Choices, base: RunConfig, given: Mapping[str, Split]) -> None:
    """The shares of the images that validate and test, and what they come to class by class."""
    fixed, labels = choices.fixed, given["train"].labels
    images = counted(len(labels), "image")
    val, test = rules.held_out_shares(len(labels))
    if "data.val_fraction" in fixed:
        val = _data_config(choices, base).val_fraction
    counts = [n for n in np.bincount(labels).tolist() if n]
    of_val, of_test = rules.held_out_of(counts, val, test)
    crowded = bool(test) and rules.too_few_for_a_test(counts, val, test)
    if {"data.group", "data.folds"} & fixed.keys():  # which are not held out class by class
        of_val, of_test, crowded = val, test, False

    def reason(share: float, realised: float) -> str:
        same = abs(realised - share) < 0.01
        comes = "" if same else f"; class by class it comes to {realised:.2f}"
        return f"there are {images}, none set aside for validation{comes}"

    because = reason(val, of_val)
    choices.take("data.val_fraction", "share held out for validation", val, because)
    if "test" in given:
        return
    because = reason(test, of_test)
    if not test:
        because = f"each of {images} counts to train on and to validate"
    elif crowded:
        because = f"one of each class for it would leave {1 - of_val - of_test:.0%} of {images} to "
        because += "train on"
    test = 0.0 if crowded else test
    choices.take("data.test_fraction", "share held out for the test", test, because)


def _range(values: Sequence[int], noun: str) -> str:
    low, high = min(values), max(values)
    return counted(high, noun) if low == high else f"{low:,} to {counted(high, noun)}"


def _data_config(choices: Choices, base: RunConfig, **more: Any) -> DataConfig:
    """Of what is chosen and fixed by now, over which `more` is laid."""
    chosen = {**choices.settings, **more, **choices.fixed}
    own = {key: value for key, value in chosen.items() if key.startswith("data.")}
    return resolve_config(base, **own).data


def _limit_images(
    choices: Choices,
    base: RunConfig,
    given: Mapping[str, Split],
    sizes: tuple[tuple[int, int], ...],
    channels: int,
    time: Time,
) -> None:
    """Only so many training images as a third of the time is enough to decode, once; one of each
    class at least.

    More of them would leave fewer steps, a doubling of which is worth 2.8 points on validation; one
    of the images 1.6 (single runs, docs/LOG.md).
    """
    if {"data.max_train", "data.folds"} & choices.fixed.keys():
        return
    least = rules.caching(Look((), (), 0, sizes), rules.SIDES[0])
    config, train = _data_config(choices, base, **least), given["train"]
    each = decoding_seconds(train, config, channels, time.clock)
    if not each:
        return
    held_out = sum(choices.settings.get(f"data.{k}_fraction", 0.0) for k in ("val", "test"))
    count = int(len(train) * (1 - held_out))
    classes = 1 + max(int(split.labels.max(initial=0)) for split in given.values())
    left = time.left
    most = max(classes, int(rules.DECODE_SHARE * left / each))
    if count > most:
        because = f"decoding {count:,} would take {duration(each * count)}, "
        because += f"more than a third of the {duration(max(0.0, left))} that are left"
        choices.take("data.max_train", "training images used", most, because)


def _choose_device(choices: Choices) -> tuple[torch.device, Machine]:
    """The device: what `train.device` names, else the fastest present."""
    from vitc.data.pixels import device_memory
    from vitc.training.device import describe, pick_device

    device = pick_device(choices.fixed.get("train.device", "auto"))
    because = "torch sees no GPU" if device.type == "cpu" else "it is the fastest device here"
    if "train.device" in choices.fixed:
        because = "you set --train.device"
    choices.note("device", describe(device), because)
    return device, Machine(device.type, describe(device), cores(), device_memory(device))


def _with_optimizer(
    choices: Choices,
    base: RunConfig,
    automatic: bool,
    choose_model: Callable[[RunConfig], auto_model.Trial],
) -> tuple[RunConfig, auto_model.Trial]:
    """`base` with the optimizer that is chosen if that is `automatic`, and the model for it."""
    from vitc.optim.groups import NoHiddenMatrices

    if not automatic:
        return base, choose_model(base)
    better = replace(base, optim=get_recipe(rules.RECIPE, rules.OPTIMIZER).optim)
    why = "from scratch it learns more than AdamW in the same time"
    choices.note("optimizer", rules.OPTIMIZER, why)
    try:
        return better, choose_model(better)
    except NoHiddenMatrices:
        why = f"{rules.OPTIMIZER} is for hidden weight matrices, and none is trained"
        choices.note("optimizer", "adamw", why)
        return base, choose_model(base)


def _choose_views(choices: Choices, look: Look) -> None:
    """How an image reaches the model: shape, balance, crop, mirror, mixing."""
    fit, because = rules.fit_for(look.sizes)
    choices.take("data.fit", "fit to a square", fit, because)
    balance, because = rules.balance_for(look.counts)
    choices.take("data.balance", "balance of classes", balance, because)
    if choices.fixed.get("data.fit", fit) == "crop" and "data.eval_crop" not in choices.fixed:
        # The whole square: 1 to 2 points better than 0.875 of it over six networks (docs/LOG.md).
        choices.settings["data.eval_crop"] = 1.0
    if look.short_side <= rules.SMALL_SIDE:
        crop, because = "shift", "images this small lose too much when a part is cut out"
    else:
        crop, because = "random_resized", "each epoch then sees another part of each photo"
    crop = choices.take("data.augment.crop", "training crop", crop, because)
    if crop == "random_resized" and "data.augment.scale" not in choices.fixed:
        choices.settings["data.augment.scale"] = (0.35, 1.0)
    flip, because = rules.flip_for(look.classes)
    choices.take("data.augment.flip", "mirror", flip, because)


def _limit_validation(
    choices: Choices, look: Look, trial: auto_model.Trial, seconds: float
) -> Look:
    """The images with no more to validate than so many `seconds` allow for."""
    val: int | None = trial.settings.get("data.max_val")
    if val is None:
        val = rules.validation_images(choices.fixed, look.val, trial.cost, seconds)
    if val < look.val:
        because = f"measuring on all {look.val:,} would take more than a tenth of the time"
        choices.take("data.max_val", "validation images used", val, because)
    return replace(look, val=val)


def _choose_time(
    choices: Choices,
    look: Look,
    trial: auto_model.Trial,
    seconds: float | None,
    time: Time,
    bounded: bool,
) -> tuple[float, float | None]:
    """The expected seconds of the run, and the time in which it is to end; None: after its epochs.

    seconds: of a run whose length is chosen; None: it is not. bounded: time can end it. The run
    page will take as many times longer than on a quiet machine as choosing did.
    """
    page = rules.page_seconds(look.val, trial.cost, time.runs)
    left = max(1.0, time.left - time.busy * page)
    if bounded and left < LITTLE_LEFT * time.budget:
        choices.warn(
            f"of {duration(time.budget)}, {duration(left)} are left to train: the rest goes into "
            "reading the images, choosing settings and the run page. Give a longer --budget."
        )
    least = rules.BOUND_SHARE * left
    if seconds is None:
        default = time.given is None
        seconds = auto_model.choose_length(
            choices, look, trial, time.budget, left, default, bounded
        )
        # Of few epochs, one more may be what the time was too short for.
        more = rules.epoch_seconds(look, trial.config.train.batch, trial.cost)
        more += rules.evaluation_seconds(trial.config, look.val, trial.cost)
        least = min(least, left - more)
    ends = bounded and ("train.clock" in choices.fixed or seconds >= least)
    return min(seconds, left) if ends else seconds, round(left, 1) if ends else None


def _choose_mixing(choices: Choices, optim: OptimConfig) -> None:
    """Mixup and CutMix where the images will be seen often, label smoothing always."""
    epochs = choices.fixed.get("train.epochs", choices.settings.get("train.epochs", 0))
    muon = isinstance(optim, MuonConfig)
    often = epochs >= (rules.MIXING_EPOCHS_MUON if muon else rules.MIXING_EPOCHS)
    mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0} if often else {}
    if often and muon:
        mixing["mix_prob"] = rules.MIX_PROB_MUON
    mixing["label_smoothing"] = 0.1
    for name, value in mixing.items():
        if f"data.augment.{name}" not in choices.fixed:
            choices.settings[f"data.augment.{name}"] = value
    seen = f"each image is seen {counted(epochs, 'time')}"
    choices.note(
        "mixing",
        ", ".join(f"{n} {choices.fixed.get(f'data.augment.{n}', v)}" for n, v in mixing.items()),
        f"{seen}: without it a model would overfit"
        if often
        else f"{seen}, too seldom for mixup and CutMix to pay",
    )


def _choose_batch(choices: Choices, look: Look, machine: Machine, processes: int) -> None:
    batch = rules.batch_size(look.train, machine.kind)
    unit = processes * (choices.fixed.get("train.micro_batch") or 1)
    batch = max(1, batch // unit) * unit
    steps = counted(look.train // batch, "step")
    because = f"an epoch of {counted(look.train, 'image')} then has {steps}"
    batch = choices.take("train.batch", "batch", batch, because)
    steps_per_epoch(look.train, batch)  # refuses a batch set by the user that is too large
    if batch < 16:
        choices.warn(
            f"batch {batch}: the stem's BatchNorm wants 16 images or more to measure means and "
            "variances on; more images would help."
        )
