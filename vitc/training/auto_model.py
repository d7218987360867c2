"""Which model the front door chooses, how long it trains, and what that costs: by measuring."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig
from vitc.data.dataset import DataSet
from vitc.errors import ConfigError
from vitc.models.config import ViTConfig
from vitc.models.zoo import model_config
from vitc.optim.optimizers import AdamWConfig
from vitc.recipes import get_recipe
from vitc.stats.proportions import wilson
from vitc.training import auto_rules as rules
from vitc.training.auto_rules import Choices, Look, Machine, Rung
from vitc.weights import catalog
from vitc.wording import counted, duration, few

if TYPE_CHECKING:
    import torch

    from vitc.training.probe import Probe


@dataclass(frozen=True)
class Trial:
    """A rung's settings and how they ran here."""

    settings: dict[str, Any]
    config: RunConfig
    cost: Probe
    reasons: dict[str, str]
    """Why these threads and this precision."""


def choose_model(
    choices: Choices,
    base: RunConfig,
    data: DataSet,
    look: Look,
    device: torch.device,
    machine: Machine,
    left: float,
    only: Collection[str] = (),
) -> Trial:
    """Climb from the cheapest rung for as long as `left` seconds pay for enough epochs of the next.

    only: the models that may be chosen; empty: all.
    """
    least = choices.fixed.get(
        "train.epochs", math.ceil(rules.LEAST_SHARE * rules.wanted_epochs(look.train))
    )
    ladder = _rungs(choices.fixed, look)
    best: Trial | None = None
    reason = f"more would be too much for {counted(look.train, 'image')} of these sizes"
    if only and any(rung.model not in only for rung in ladder):
        ladder = [rung for rung in ladder if rung.model in only]
        reason = "no larger one has weights learnt from formulas"
    for rung in ladder:
        if best is not None and machine.kind == "cpu":  # not tried where it is far too slow
            # At the speed, in flops, of the best so far.
            config = choices.config(base, {"model": rung.model, "model.img_size": rung.img_size})
            ratio = _flops(config) / _flops(best.config)
            seconds = ratio * rules.epoch_seconds(look, config.train.batch, best.cost)
            if seconds * least > 1.5 * left:
                reason = _too_slow(rung, least, seconds, left)
                break
        trial = _tried(choices, base, rung, ladder[0].img_size, data, look, device)
        if trial is None:
            reason = f"{rung.model} at {rung.img_size} pixels does not fit the device's memory"
            break
        seconds = rules.epoch_seconds(look, trial.config.train.batch, trial.cost)
        if best is not None and seconds * least > left:
            reason = _too_slow(rung, least, seconds, left)
            break
        best = trial
    if best is None:
        raise ConfigError(
            f"{ladder[0].model} at {ladder[0].img_size} pixels does not fit into the memory of "
            f"{machine.name}.",
            "Use a smaller --train.micro_batch, --model.img_size or --model.",
        )
    if "data.cache_side" in best.settings:
        settings = {k: v for k, v in best.settings.items() if not k.startswith("data.cache_")}
        settings |= rules.caching(look, settings["model.img_size"])
        best = replace(best, settings=settings, config=choices.config(base, settings))
    _note_model(choices, best, look, reason)
    return best


def _too_slow(rung: Rung, least: int, seconds: float, left: float) -> str:
    return (
        f"{counted(least, 'epoch')} of the next larger, {rung.model} at {rung.img_size} pixels, "
        f"would take {duration(seconds * least)}, more than the {duration(left)} that are left"
    )


def _rungs(fixed: Mapping[str, Any], look: Look) -> list[Rung]:
    """The ladder, or what a model or an image size that the user fixed leaves of it."""
    ladder = rules.rungs_for(look)
    if "model" in fixed:
        own, reduction = model_config(fixed["model"]).size[0], _reduction(fixed["model"])
        side = max(ladder[0].img_size, min(own, look.short_side))
        side = max(1, round(side / reduction)) * reduction
        # Smaller than its own size where the budget asks for it, down to as many tokens as pay.
        smaller = [s for s in rules.SIDES if s < side and not s % reduction and s >= 4 * reduction]
        ladder = [Rung(fixed["model"], s, 0) for s in (*smaller, side)]
    if "model.img_size" in fixed:
        size = fixed["model.img_size"]
        sides = size if isinstance(size, tuple) else (size, size)
        fitting = [r for r in ladder if not any(s % _reduction(r.model) for s in sides)]
        models = dict.fromkeys(r.model for r in fitting or ladder[:1])
        ladder = [Rung(model, min(sides), 0) for model in models]
    return ladder


def _reduction(model: str) -> int:
    """Pixels a side of one token, or of one place of a CNN's last feature map, about."""
    config = model_config(model)
    own = config.stem.reduction if isinstance(config, ViTConfig) else None
    return own or rules.REDUCTION


def _tried(
    choices: Choices,
    base: RunConfig,
    rung: Rung,
    cached: int,
    data: DataSet,
    look: Look,
    device: torch.device,
) -> Trial | None:
    """Take a few steps in the faster precision; None where the memory does not suffice.

    Before that is so, the micro-batch is halved, but never below BatchNorm's 16 images. cached: the
    size that images are kept for, that of the first rung, so that they are decoded once for all.
    """
    from vitc.training.probe import faster_channels_last, faster_precision, probe

    settings: dict[str, Any] = {"model": rung.model, "model.img_size": rung.img_size}
    reasons: dict[str, str] = {}
    if "data.cache_side" not in choices.fixed:
        settings |= rules.caching(look, cached)
    if device.type == "cpu" and "train.threads" not in choices.fixed:
        settings["train.threads"], reasons["threads"] = _threads(
            choices, base, settings, data, device
        )
    reasons["precision"] = "you set --train.precision"
    if "train.precision" not in choices.fixed:
        precision, why = faster_precision(choices.config(base, settings), device)
        settings["train.precision"], reasons["precision"] = precision, why
    if "train.channels_last" not in choices.fixed:
        settings["train.channels_last"] = faster_channels_last(
            choices.config(base, settings), device
        )
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
        config = choices.config(base, own)
        cost = probe(config, data, device, seconds=0.5, evaluates=False)
        return math.inf if cost is None else cost.step_seconds

    best = torch.get_num_threads()
    why = "torch uses one here" if best == 1 else ""
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


def _flops(config: RunConfig) -> int:
    import torch

    from vitc.models.complexity import complexity
    from vitc.models.zoo import build_model

    with torch.device("meta"):
        return complexity(build_model(config.model)).flops


def _note_model(choices: Choices, trial: Trial, look: Look, reason: str) -> None:
    config, fixed = trial.config, choices.fixed
    side = counted(look.short_side, "pixel")
    because = f"the images are {side} at the short side (median)"
    if "model.img_size" in fixed:
        because = choices.reason("model.img_size")
    elif "model" in fixed:
        because = f"{because}; {reason}"
    tokens = None
    if isinstance(config.model, ViTConfig) and config.model.grid is not None:
        h, w = config.model.grid
        tokens, because = h * w, f"{because}; {h}x{w} tokens"
    size = config.model.size
    choices.note("image size", f"{size[0]}x{size[1]}", because)
    stem = "its convolutional stem needs fewer epochs than patches do, and any optimizer trains it"
    choices.note(
        "model",
        config.model.name,
        choices.reason("model") if "model" in fixed else f"{stem}; {reason}",
    )
    choices.note("precision", config.train.precision, trial.reasons["precision"])
    if "threads" in trial.reasons:
        choices.note("threads", str(config.train.threads), trial.reasons["threads"])
    if config.train.micro_batch is not None and "train.micro_batch" not in fixed:
        choices.note("micro-batch", str(config.train.micro_batch), "more does not fit in memory")
    if tokens is not None and tokens < rules.FEW_TOKENS:
        choices.warn(
            f"{config.model.img_size} pixels are only {counted(tokens, 'token')} for "
            f"{config.model.name}: too few to learn from. Use a larger --model.img_size or a "
            "--model with smaller patches."
        )


def peak_rate(base: RunConfig, config: RunConfig, fixed: Mapping[str, Any]) -> tuple[float, str]:
    """The peak learning rate of `config`, and why: `base`'s, which is the recipe's, scaled to batch
    and width, and less for trained weights.

    In the unit of `optim.lr_per_batch` where the user fixed that.
    """
    # A model without a width of its own gets 1e-3 at batch 64, as plain scripts have it.
    width = config.model.embed_dim if isinstance(config.model, ViTConfig) else rules.OTHER_WIDTH
    of_batch, batch = get_recipe(rules.RECIPE).train.batch, config.train.batch
    lr, because = rules.learning_rate(base.optim, of_batch, batch, width)
    if config.init.weights:
        lr = float(f"{rules.TRAINED_SHARE * lr:.2g}")
        because += f"; times {rules.TRAINED_SHARE:g}, as the weights are trained already"
    return lr * rate_unit(fixed, batch), because


def rate_unit(fixed: Mapping[str, Any], batch: int) -> float:
    """By what an absolute learning rate is multiplied to be one of `optim.lr_per_batch` images."""
    per: float | None = fixed.get("optim.lr_per_batch")
    return 1.0 if per is None else per / batch


def choose_rate(choices: Choices, base: RunConfig, trial: Trial) -> None:
    lr, because = peak_rate(base, trial.config, choices.fixed)
    choices.take("optim.lr", "peak learning rate", lr, because)
    decay = isinstance(trial.config.optim, AdamWConfig)
    if decay and "optim.weight_decay" not in choices.fixed:
        choices.settings["optim.weight_decay"] = rules.ADAMW_DECAY


def choose_length(
    choices: Choices,
    look: Look,
    trial: Trial,
    budget: float,
    left: float,
    default: bool,
    bounded: bool,
) -> float:
    """Epochs and evaluations; returns the seconds of the run. left: those of the budget for it.

    bounded: the run can be ended by its time, within an epoch, too.
    """
    batch = trial.config.train.batch
    epoch = rules.epoch_seconds(look, batch, trial.cost)
    evaluation = rules.evaluation_seconds(trial.config, look.val, trial.cost)
    wanted = rules.wanted_epochs(look.train)
    fixed = choices.fixed.get("train.epochs")
    if fixed is not None:
        length = rules.run_length(epoch, evaluation, math.inf, fixed)
    else:
        length = rules.run_length(epoch, evaluation, left, wanted if default else 3 * wanted)
    start = "from trained weights, too" if trial.config.init.weights else "from scratch"
    because = f"for {counted(look.train, 'image')} it should be about {wanted} {start}"
    if length.epochs != wanted:
        limit = "the cap without --budget is" if default else "the budget is"
        because += f", one takes {epoch:.2g} s, and {limit} {duration(budget)}"
        because += f", {duration(left)} of it for training"
    choices.take("train.epochs", "epochs", length.epochs, because)
    every = choices.take(
        "train.eval_every_epochs",
        "epochs between evaluations",
        length.eval_every,
        f"one takes {evaluation:.1g} s",
    )
    seconds = length.seconds
    if every != length.eval_every:
        seconds = rules.run_seconds(length.epochs, every, epoch, evaluation)
    if seconds > left and length.epochs == 1 and bounded:
        return left
    if seconds > left and length.epochs == 1 and "data.max_train" not in choices.fixed:
        seconds = _fewer_images(choices, look, batch, epoch, evaluation, budget, left)
    if seconds > 1.2 * budget:
        choices.warn(f"this is expected to take {duration(seconds)}, not {duration(budget)}.")
    return seconds


def choose_schedule(choices: Choices, config: RunConfig) -> None:
    """A long warm-up, as in a one-cycle schedule, unless the user set one or a custom schedule."""
    schedule, epochs = config.optim.schedule, config.train.epochs
    warmup, because = schedule.warmup(epochs), "you set the schedule"
    if getattr(schedule, "warmup_epochs", 0) is None:
        warmup, because = rules.WARMUP_SHARE * epochs, "that is a quarter of the run"
        choices.settings["optim.schedule.warmup_epochs"] = warmup
    length = f"{warmup:g} epoch{'s' * (warmup != 1)}"
    choices.note("schedule", f"{length} of warm-up, then {schedule.summary}", because)


def _fewer_images(
    choices: Choices,
    look: Look,
    batch: int,
    epoch: float,
    evaluation: float,
    budget: float,
    left: float,
) -> float:
    """One epoch of as many images as is left of the budget for; returns the seconds it takes."""
    share = max(0.0, left - rules.START_SECONDS - evaluation) / epoch
    images = max(batch, len(look.classes), int(look.train * share) // batch * batch)
    if images < look.train:
        because = f"not one epoch of {look.train:,} fits the budget of {duration(budget)}"
        because += f", {duration(left)} of it for training"
        choices.take("data.max_train", "training images used", images, because)
    return rules.START_SECONDS + evaluation + epoch * min(1.0, images / look.train)


def note_costs(
    choices: Choices, machine: Machine, trial: Trial, seconds: float, memory: int
) -> None:
    reading = "" if trial.config.train.cache_features else " with reading them"
    choices.note(
        "time",
        f"about {duration(seconds)}",
        f"a step of {counted(trial.config.train.batch, 'image')} took "
        f"{_ms(trial.cost.step_seconds)}{reading}, measured just now",
    )
    if memory:
        choices.note("memory", f"about {memory / 1e9:.1f} GB", "that is what these steps needed")
    if tight := rules.tight_memory(memory, machine):
        choices.warn(tight)


def note_expectations(choices: Choices, look: Look, config: RunConfig) -> None:
    """What a model trained on so many images can be, and how surely that is known."""
    n = config.data.max_train or look.train
    least = rules.FEW_OF_A_CLASS
    rare = [c for c, count in zip(look.classes, look.counts, strict=True) if count < least]
    if rare:
        choices.warn(
            f"fewer than {least} training images of {few(rare, 3)}: too few to learn a class from."
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
    if config.init.weights and config.init.weights not in {e.where for e in catalog.FORMULA}:
        level = "it depends on the weights: the closer their images are to these, the better"
    else:
        level += f", since it sees no other photos than these {counted(n, 'image')}{pretrained}"
    choices.lines.append(
        f"expect: {level}. "
        f"Chance is {chance:.1f} %, always naming the largest class {largest:.1f} %."
    )
    if look.val:
        low, high = wilson(50.0, look.val)  # accuracies near one half are the least certain
        doubt = (high - low) / 2
        tail = " Differences smaller than that mean nothing." if doubt > 2 else ""
        choices.lines.append(
            f"certainty: an accuracy measured on {counted(look.val, 'validation image')} is "
            "uncertain by "
            f"up to {doubt:.1f} points either way (95 %).{tail}"
        )
