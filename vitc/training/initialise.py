"""What a run begins with when that is not a fresh draw: the weights of another (`--init`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vitc.config import RunConfig, from_dict
from vitc.errors import ConfigError
from vitc.files import read_json
from vitc.runs.checkpoint import TrainState
from vitc.runs.folder import CONFIG
from vitc.training.build import initial_model
from vitc.training.config import InitConfig
from vitc.weights.fit import fill
from vitc.weights.load import Weights, read_weights

# --init is the asking: what a new task changes is fitted, and each fitting is said.
FITTED = ("head", "pos_embed", "channels")


def with_preparation(config: RunConfig, out: Path, overwrite: bool) -> tuple[RunConfig, list[str]]:
    """The config with the mean and standard deviation its weights were trained with, and why.

    A run that is there keeps what it began with, for its weights may be gone by now. Raises
    ConfigError: the weights do not say, and neither does the user; CheckpointError: no such
    weights.
    """
    init, data = config.init, config.data
    if not init.weights:
        return config, []
    if init.weights == str(out.absolute()):
        raise ConfigError(
            f"--init {init.weights} is the folder the run itself would go to.",
            "Choose another --out; or go on with that run: vitc train RUN.",
        )
    why: list[str] = []
    if (out / CONFIG).exists() and not overwrite:
        before = from_dict(read_json(out / CONFIG)).data
        mean, std = before.mean, before.std
    else:
        mean, std, why = _preparation(config, read_weights(init.weights, init.source, init.average))
    if data.mean is not None:
        return config, why
    return dataclasses.replace(config, data=dataclasses.replace(data, mean=mean, std=std)), why


_Stats = tuple[float, ...] | None


def _preparation(config: RunConfig, weights: Weights) -> tuple[_Stats, _Stats, list[str]]:
    """mean, std in RGB order, and what is to be said of them."""
    known, asked = weights.preprocessing, config.data.mean
    if known is None and asked is None:
        raise ConfigError(
            f"{weights.where} does not say with which mean and standard deviation its images were "
            f"prepared.",
            "Say it with --data.mean R G B --data.std R G B (in [0, 1]); for example 0.5 0.5 0.5 "
            "twice for many timm ViTs, 0.485 0.456 0.406 and 0.229 0.224 0.225 for most others.",
        )
    if known is None:
        return asked, config.data.std, []
    mean, std = known.mean, known.std
    if known.channels == "bgr":
        mean, std = mean[::-1], std[::-1]
    if asked is not None:
        note = f"data.mean {asked} as you set it; {weights.where} was trained with {mean}"
        return asked, config.data.std, [note] if asked != mean else []
    if len(mean) != config.model.in_chans:
        raise ConfigError(
            f"{weights.where} was trained on images of {len(mean)} channels, but model.in_chans is "
            f"{config.model.in_chans}.",
            f"Use --model.in_chans {len(mean)}: images are turned into that many channels.",
        )
    said = ", ".join(f"{m:g}" for m in mean), ", ".join(f"{s:g}" for s in std)
    return mean, std, [f"images are prepared as for the weights: mean {said[0]}, std {said[1]}"]


def check_weights(config: RunConfig, out: Path, overwrite: bool, classes: Sequence[str]) -> None:
    """Refuse weights that do not fit before the run's folder is made.

    Raises CheckpointError and ConfigError as `load_weights`.
    """
    if config.init.weights and (overwrite or not (out / CONFIG).exists()):
        _fitted(initial_model(config, len(classes)), config.init, classes)


def begin(config: RunConfig, state: TrainState, classes: Sequence[str]) -> list[str]:
    """Give the fresh `state` (at step 0) the weights of config.init; returns what is to be said.

    Raises CheckpointError and ConfigError as `load_weights`; then nothing has changed.
    """
    if not config.init.weights:
        return []
    said = _fitted(state.model, config.init, classes)
    if state.ema is not None:
        state.ema.load_state_dict(state.model.state_dict())
    return said


def _fitted(model: nn.Module, init: InitConfig, classes: Sequence[str]) -> list[str]:
    """Load the weights, fitted: the position embedding is resampled to the model's grid, BGR
    weights are made RGB, and the head stays fresh where the classes are others."""
    assert init.weights
    weights = read_weights(init.weights, init.source, init.average)
    said = [
        f"starting from {weights.where} ({weights.source} layout, sha256 {weights.sha256[:12]})"
    ]
    others = weights.classes is not None and weights.classes != tuple(classes)
    fresh_head = others and not init.only
    if fresh_head:
        said.append("the head is fresh: the weights know other classes")
    adapt = list(FITTED)
    if weights.preprocessing is None:  # the user has said mean and std, in RGB order
        adapt.remove("channels")
        said.append("the weights do not say the order of their channels: taken as RGB")
    report = fill(model, weights, adapt=adapt, only=init.only, fresh_head=fresh_head)
    return [*said, *report.adapted]
