"""The parts of a run from its config and images: model, frozen parts, state, batch plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitc.config import RunConfig
from vitc.data.dataset import DataSet
from vitc.data.sampling import BatchPlan, steps_per_epoch
from vitc.errors import ConfigError, suggest
from vitc.machine import memory
from vitc.models.config import ViTConfig
from vitc.models.zoo import build_model, classifier_name
from vitc.optim.config import check_ema, ema_alpha
from vitc.optim.ema import Ema, OwnAverage
from vitc.optim.groups import build_optimizer
from vitc.plugins.consent import customs
from vitc.runs.checkpoint import TrainState
from vitc.runs.images import record_of
from vitc.runs.legs import Legs, config_at, lr_at
from vitc.training.parallel import Processes
from vitc.training.step import StepSettings
from vitc.wording import size

BACKBONE = "backbone"  # for train.freeze: all but the classifier
NORMS = "norms"  # for train.freeze: every BatchNorm


@dataclass(frozen=True)
class Setup:
    """What a run is made of and never changes while it goes."""

    config: RunConfig
    data: DataSet
    device: torch.device
    procs: Processes
    plan: BatchPlan
    settings: StepSettings
    steps_per_epoch: int
    legs: Legs = ()
    """Earlier parts of the run under other settings; `config` is that of the last."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.config.train.epochs

    def lr(self, step: float) -> float:
        """The learning rate of the step that follows `step` finished ones of those planned."""
        return lr_at(self.config, self.legs, step, self.steps_per_epoch)


def set_up(
    config: RunConfig, data: DataSet, device: torch.device, procs: Processes, legs: Legs = ()
) -> Setup:
    """Raises ConfigError: more images a batch than there are, a budget of time for several."""
    if config.train.budget_seconds is not None and procs.world > 1:
        raise ConfigError(
            "train.budget_seconds cannot be used by several processes, whose clocks differ.",
            "Use --train.epochs.",
        )
    if config.train.cache_features and procs.world > 1:
        raise ConfigError(
            "train.cache_features cannot be used by several processes: each would compute the "
            "features of all images.",
            "Leave it out.",
        )
    if config.train.patience is not None and "val" not in data.splits:
        raise ConfigError(
            f"train.patience {config.train.patience} needs validation images; there are none.",
            "Hold some out with --data.val_fraction, or leave it out.",
        )
    settings = StepSettings(config, device, procs, data.mean, data.std, len(data.classes))
    steps = steps_per_epoch(len(data.splits["train"].labels), config.train.batch)
    return Setup(config, data, device, procs, batch_plan(config, procs), settings, steps, legs)


def data_record(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """data.json: what predicting and evaluating need to know of the images."""
    return {
        "source": data.source,
        "classes": list(data.classes),
        "counts": {name: len(split.labels) for name, split in data.splits.items()},
        "largest_class": {name: largest_share(s.labels) for name, s in data.splits.items()},
        "img_size": list(config.model.size),
        "in_chans": config.model.in_chans,
        "mean": list(data.mean),
        "std": list(data.std),
        "fit": config.data.fit,
        "eval_crop": config.data.eval_crop,
        **record_of(data),
        "notes": list(data.notes),
    }


def largest_share(labels: Sequence[int] | np.ndarray[Any, Any]) -> float:
    """The share of the images that the largest class has: what constant answers reach."""
    known = np.asarray(labels)
    known = known[known >= 0]
    return round(float(np.bincount(known).max()) / known.size, 6) if known.size else 0.0


def initial_model(config: RunConfig, num_classes: int) -> nn.Module:
    """The freshly initialised model on CPU: the same weights for the same seed_init everywhere."""
    t = config.train
    _check_memory(config, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed if t.seed_init is None else t.seed_init)
        model = build_model(config.model, num_classes)
    if t.micro == 1:
        _check_statistics(model, config)
    return model


COPIES = 3  # of the weights that a step holds at least: themselves, gradients, moments


def _check_memory(config: RunConfig, num_classes: int) -> None:
    """Raises ConfigError: the weights alone exceed the machine's memory."""
    if any(customs(config)):  # a custom class is built once, and not without memory
        return
    with torch.device("meta"):
        model = build_model(config.model, num_classes)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if COPIES * weights > memory():
        raise ConfigError(
            f"The weights of {config.model.name} take {size(weights)}, and training holds them "
            f"{COPIES} times or more; this machine has {size(memory())} of memory.",
            "Choose a smaller --model, or fewer classes.",
        )


def _check_statistics(model: nn.Module, config: RunConfig) -> None:
    """Raises ConfigError: a BatchNorm would have one value per channel, of which no variance can
    be taken. Found by a pass without data, in the mode of training."""
    shape = 1, config.model.in_chans, *config.model.size
    copy = deepcopy(model).to("meta")
    freeze(copy, config.train.freeze)
    train_mode(copy)
    try:
        with torch.no_grad():
            copy(torch.empty(shape, device="meta"))
    except Exception as error:  # a custom model may not run without data: it is tried for real
        if "more than 1 value per channel" not in str(error):
            return
        side = config.model.img_size
        raise ConfigError(
            f"With micro-batches of 1 image (train.batch {config.train.batch}) and model.img_size "
            f"{side}, BatchNorm has one value per channel, which has no variance.",
            "Use --train.batch 2 or more (and so --train.micro_batch), or larger images.",
        ) from error


def fresh_state(
    config: RunConfig,
    num_classes: int,
    steps_per_epoch: int,
    device: torch.device,
    legs: Legs = (),
) -> TrainState:
    """Model, optimizer and average at step 0, on the device and in the config's memory format."""
    t = config.train
    model = initial_model(config, num_classes).to(device)
    if t.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze(model, t.freeze)
    if t.grad_checkpointing:
        enable = getattr(model, "set_grad_checkpointing", None)
        if enable is None:
            raise ConfigError(
                f"train.grad_checkpointing needs a model with set_grad_checkpointing(); "
                f"{config.model.name} has none.",
                "Leave it out; --train.micro_batch saves memory too.",
            )
        enable(True)
    optimizer = build_optimizer(config.optim, model)
    average = config.optim.ema
    ema: Ema | OwnAverage | None = None
    if config.optim.schedule_free:
        ema = OwnAverage(model, optimizer)
    elif average.kind != "none":
        own: dict[str, int] = {"steps_per_epoch": steps_per_epoch, "batch": t.batch}
        check_ema(average, epochs=t.epochs, **own)

        def alpha(before: float, position: float) -> float:
            here = config_at(config, legs, before)
            epochs, schedule = here.train.epochs, here.optim.schedule
            return ema_alpha(position, average, schedule, epochs=epochs, before=before, **own)

        ema = Ema(model, alpha)
    return TrainState(model, optimizer, ema)


def batch_plan(config: RunConfig, procs: Processes) -> BatchPlan:
    """What the data room must know to draw this run's batches."""
    t, model = config.train, config.model
    return BatchPlan(
        batch=t.batch,
        micro=t.micro,
        seed_order=t.seed if t.seed_order is None else t.seed_order,
        seed_augment=t.seed if t.seed_augment is None else t.seed_augment,
        size=config.model.size,
        in_chans=config.model.in_chans,
        depth=model.depth if isinstance(model, ViTConfig) else 0,
        drop_path_rate=model.drop_path_rate if isinstance(model, ViTConfig) else 0.0,
        rank=procs.rank,
        world=procs.world,
    )


def freeze(model: nn.Module, parts: Collection[str]) -> None:
    """Take the parameters of `parts` out of training.

    A part is the start of parameters' names, up to a dot (stem, blocks.0, pos_embed), or
    `backbone` for all but the classifier, or `norms` for every BatchNorm. Raises ConfigError: a
    part that no parameter belongs to (with a suggestion), or nothing left to train.
    """
    parameters = dict(model.named_parameters())
    for part in parts:
        chosen = [p for name, p in parameters.items() if _belongs(name, part, model)]
        if not chosen:
            known = list(dict.fromkeys(name.partition(".")[0] for name in parameters))
            near = suggest(part, [*known, BACKBONE, NORMS, *parameters])
            raise ConfigError(
                f"train.freeze {part!r} is no part of the model.{near}",
                f"Its parts: {', '.join([*known, BACKBONE, NORMS])}; a longer name is a part of "
                f"one of these, for example {max(parameters, key=len).rpartition('.')[0]}.",
            )
        for p in chosen:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ConfigError(
            f"train.freeze {', '.join(parts)} leaves nothing to train.",
            f"For a linear probe: --train.freeze {BACKBONE}",
        )


def _belongs(name: str, part: str, model: nn.Module) -> bool:
    if part == NORMS:
        return isinstance(model.get_submodule(name.rpartition(".")[0]), _BatchNorm)
    if part == BACKBONE:
        head = classifier_name(model)
        return not _belongs(name, head, model)
    return name == part or name.startswith(f"{part}.")


def train_mode(model: nn.Module) -> None:
    """Training mode, but eval mode for frozen parts: their BatchNorm keeps its statistics."""
    model.train()
    for module in model.modules():
        trained = [p.requires_grad for p in module.parameters()]
        if trained and not any(trained):
            module.eval()
