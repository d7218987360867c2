"""Which weights does a run start from, and how are they fitted to it (`--init`)?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torch import nn

from vitc.config import RunConfig, read_config
from vitc.errors import ConfigError
from vitc.runs.checkpoint import TrainState
from vitc.runs.folder import CONFIG
from vitc.training.build import initial_model
from vitc.training.config import InitConfig
from vitc.weights.fit import fill
from vitc.weights.load import Weights, read_weights

# What --init adapts without being asked, each with a note in the run's events.log.
FITTED = ("head", "pos_embed", "channels")


class InitialWeights:
    """The weights of `config.init`, read and hashed once, when they are first needed."""

    def __init__(self, init: InitConfig) -> None:
        self.init = init

    @cached_property
    def weights(self) -> Weights:
        """Raises CheckpointError and ConfigError as `read_weights`."""
        return read_weights(self.init.weights or "", self.init.source, self.init.average)


def with_preparation(
    config: RunConfig, out: Path, overwrite: bool, initial: InitialWeights
) -> tuple[RunConfig, list[str]]:
    """The config with the mean and standard deviation of its initial weights, and notes on them.

    An existing run keeps what it started with; its weights may no longer exist. Raises ConfigError:
    neither the weights nor the user give them; CheckpointError: no such weights.
    """
    init, data = config.init, config.data
    if not init.weights:
        return config, []
    if init.weights == str(out.absolute()):
        raise ConfigError(
            f"--init {init.weights} is the folder that the run itself would be written to.",
            "Choose another --out; or resume that run: vitc train RUN.",
        )
    notes: list[str] = []
    if (out / CONFIG).exists() and not overwrite:
        before = read_config(out).data
        mean, std = before.mean, before.std
    else:
        mean, std, notes = _preparation(config, initial.weights)
    if data.mean is not None:
        return config, notes
    return dataclasses.replace(config, data=dataclasses.replace(data, mean=mean, std=std)), notes


_Stats = tuple[float, ...] | None


def _preparation(config: RunConfig, weights: Weights) -> tuple[_Stats, _Stats, list[str]]:
    """mean, std in RGB order, and notes on them."""
    known, asked = weights.preprocessing, config.data.mean
    if known is None and asked is None:
        raise ConfigError(
            f"{weights.where} does not state the mean and standard deviation of its images.",
            "Set --data.mean R G B --data.std R G B (in [0, 1]); for example 0.5 0.5 0.5 twice for "
            "many timm ViTs, 0.485 0.456 0.406 and 0.229 0.224 0.225 for most others.",
        )
    if known is None:
        return asked, config.data.std, []
    mean, std = known.mean, known.std
    if known.channels == "bgr":
        mean, std = mean[::-1], std[::-1]
    if asked is not None:
        note = f"data.mean is {asked} as set; {weights.where} was trained with {mean}"
        return asked, config.data.std, [note] if asked != mean else []
    if len(mean) != config.model.in_chans:
        raise ConfigError(
            f"{weights.where} was trained on images of {len(mean)} channels, but model.in_chans is "
            f"{config.model.in_chans}.",
            f"Use --model.in_chans {len(mean)}: images are converted to that many channels.",
        )
    texts = [", ".join(f"{v:g}" for v in values) for values in (mean, std)]
    return mean, std, [f"images are prepared as for the weights: mean {texts[0]}, std {texts[1]}"]


def check_weights(
    config: RunConfig, out: Path, overwrite: bool, classes: Sequence[str], initial: InitialWeights
) -> None:
    """Refuse weights that do not fit, before the run's folder is created.

    Raises CheckpointError and ConfigError as `load_weights`.
    """
    if config.init.weights and (overwrite or not (out / CONFIG).exists()):
        _load_fitted(initial_model(config, len(classes)), initial, classes)


def begin(initial: InitialWeights, state: TrainState, classes: Sequence[str]) -> list[str]:
    """Give the fresh `state` (at step 0) the initial weights; returns notes on them.

    Raises CheckpointError and ConfigError as `load_weights`; nothing has changed then.
    """
    if not initial.init.weights:
        return []
    notes = _load_fitted(state.model, initial, classes)
    if state.ema is not None:
        state.ema.load_state_dict(state.model.state_dict())
    return notes


def _load_fitted(model: nn.Module, initial: InitialWeights, classes: Sequence[str]) -> list[str]:
    """Load the weights: the position embedding is resampled to the model's grid, BGR weights
    become RGB, and the head stays fresh if the classes differ. Returns notes."""
    init, weights = initial.init, initial.weights
    notes = [
        f"starting from {weights.where} ({weights.source} layout, sha256 {weights.sha256[:12]})"
    ]
    fresh_head = weights.classes not in (None, tuple(classes)) and not init.only
    if fresh_head:
        notes.append("the head is fresh: the weights have other classes")
    adapt = list(FITTED)
    if weights.preprocessing is None:  # the user has set mean and std, in RGB order
        adapt.remove("channels")
        notes.append("the weights do not state the order of their channels: taken as RGB")
    report = fill(model, weights, adapt=adapt, only=init.only, fresh_head=fresh_head)
    return [*notes, *report.adapted]
