"""From a config and its images to the parts of a run: model, state, batch plan, step settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitc.config import RunConfig
from vitc.data.dataset import DataSet
from vitc.data.sampling import BatchPlan, steps_per_epoch
from vitc.errors import ConfigError
from vitc.models.config import ViTConfig
from vitc.models.zoo import build_model
from vitc.optim.ema import build_ema
from vitc.optim.groups import build_optimizer
from vitc.runs.checkpoint import TrainState
from vitc.training.device import Processes
from vitc.training.freeze import freeze
from vitc.training.step import StepSettings


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

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.config.train.epochs

    def lr(self, step: int) -> float:
        """The learning rate of the step that follows `step` finished ones."""
        optim = self.config.optim
        return optim.schedule.lr(
            step,
            peak=optim.peak_lr(self.config.train.batch),
            epochs=self.config.train.epochs,
            steps_per_epoch=self.steps_per_epoch,
        )


def set_up(config: RunConfig, data: DataSet, device: torch.device, procs: Processes) -> Setup:
    settings = step_settings(config, device, procs, data.mean, data.std, len(data.classes))
    steps = steps_per_epoch(len(data.splits["train"].labels), config.train.batch)
    return Setup(config, data, device, procs, batch_plan(config, procs), settings, steps)


def data_record(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """data.json: what predicting and evaluating need to know of the images."""
    return {
        "source": data.source,
        "classes": list(data.classes),
        "counts": {name: len(split.labels) for name, split in data.splits.items()},
        "img_size": list(config.model.size),
        "in_chans": config.model.in_chans,
        "mean": list(data.mean),
        "std": list(data.std),
        "fit": config.data.fit,
        "eval_crop": config.data.eval_crop,
        "fingerprint": data.fingerprint,
        "notes": list(data.notes),
    }


def initial_model(config: RunConfig, num_classes: int) -> nn.Module:
    """The freshly initialised model on CPU: the same weights for the same seed_init everywhere."""
    t = config.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed if t.seed_init is None else t.seed_init)
        return build_model(config.model, num_classes)


def fresh_state(
    config: RunConfig, num_classes: int, steps_per_epoch: int, device: torch.device
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
    ema = build_ema(
        model,
        config.optim.ema,
        config.optim.schedule,
        steps_per_epoch=steps_per_epoch,
        epochs=t.epochs,
        batch=t.batch,
    )
    return TrainState(model, build_optimizer(config.optim, model), ema)


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


def step_settings(
    config: RunConfig,
    device: torch.device,
    procs: Processes,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_classes: int,
) -> StepSettings:
    """The part of `config` that a step needs; `mean`, `std` and `num_classes` are the data's."""
    return StepSettings(
        device=device,
        procs=procs,
        precision=config.train.precision,
        channels_last=config.train.channels_last,
        mean=mean,
        std=std,
        num_classes=num_classes,
        label_smoothing=config.data.augment.label_smoothing,
        clip_norm=config.optim.clip_norm,
    )
