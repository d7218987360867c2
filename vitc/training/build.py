"""From a config to the parts of a run: model, state, batch plan, step settings."""

from __future__ import annotations

import torch
from torch import nn

from vitc.config import RunConfig
from vitc.data.sampling import BatchPlan
from vitc.models.config import ViTConfig
from vitc.models.zoo import build_model
from vitc.optim.ema import build_ema
from vitc.optim.optimizers import build_optimizer
from vitc.runs.checkpoint import TrainState
from vitc.training.device import Processes
from vitc.training.freeze import freeze
from vitc.training.step import StepSettings


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
        model.set_grad_checkpointing(True)  # type: ignore[operator]
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
    """What `config` says of a step; `mean`, `std` and `num_classes` come with the images."""
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
