"""What is decided only when a run starts: precision "auto", and how the weights' images looked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from vitc.config import RunConfig, read_config
from vitc.runs.folder import CONFIG
from vitc.training.initialise import InitialWeights, with_preparation
from vitc.training.probe import faster_precision


def decided(
    config: RunConfig,
    out: Path,
    device: torch.device,
    overwrite: bool,
    initial: InitialWeights,
) -> tuple[RunConfig, list[str]]:
    """The config without open questions, and why each was answered so.

    A run that is resumed keeps what was decided when it began. Raises ConfigError and
    CheckpointError as `with_preparation`.
    """
    reasons = []
    if config.train.precision == "auto":
        if (out / CONFIG).exists() and not overwrite:
            saved = read_config(out)
            precision, why = saved.train.precision, "the run began with it"
        else:
            precision, why = faster_precision(config, device)
        train = dataclasses.replace(config.train, precision=precision)
        config = dataclasses.replace(config, train=train)
        reasons.append(f"precision {precision}: {why}")
    config, prepared = with_preparation(config, out, overwrite, initial)
    return config, [*reasons, *prepared]
