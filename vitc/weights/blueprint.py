"""The model that a config asks for, without its memory, held against the tensors of a file.

A config from a stranger may ask for a model of terabytes, or of a billion blocks. It is refused
here, before anything of that size is allocated or looped over: a model whose names and shapes are
those of a file that lies on the disk is as large as that file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vitc.config import leaves
from vitc.errors import CheckpointError, VitcError
from vitc.models.config import ModelConfig
from vitc.models.zoo import build_model
from vitc.wording import few, short

SMALL = 1 << 16
"""An integer setting up to this needs no weights to justify it: an image's side, say."""
SPARE = 64
"""Parameters a model may make and replace while it is built, beyond twice those it ends with."""


class Kind(NamedTuple):
    """Of a tensor: its shape, and whether it holds floating-point numbers."""

    shape: tuple[int, ...]
    floating: bool


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """The kind of each tensor of a state_dict."""
    return {name: Kind(tuple(t.shape), t.is_floating_point()) for name, t in tensors.items()}


def blueprint(
    config: ModelConfig, num_classes: int, there: Mapping[str, Kind], where: str
) -> nn.Module:
    """The model of `config` on the meta device, which fits the tensors `there` exactly.

    `where` names their file in messages. Raises CheckpointError: the config cannot work, or asks
    for another model than those tensors are; ConfigError: timm or a stem from outside is needed
    and not there.
    """
    problems = config.problems()
    if problems:
        raise CheckpointError(
            f"{where}: the config of the model cannot work.\n"
            + few(map(short, problems), join="\n")
        )
    _check_integers(config, there, where)
    most = 2 * len(there) + SPARE
    try:
        with _at_most(most, where), torch.device("meta"):
            model = build_model(config, num_classes)
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, VitcError):  # ConfigError is a ValueError
            raise
        raise CheckpointError(
            f"{where}: the model it asks for cannot be built: {short(str(error))}."
        ) from error
    check_fit(there, kinds(model.state_dict()), where)
    return model


def check_fit(there: Mapping[str, Kind], here: Mapping[str, Kind], where: str) -> None:
    """Refuse tensors `there` that are not those of the model `here`, by name and shape."""
    problems = {
        "missing": [name for name in here if name not in there],
        "unexpected": [short(name) for name in there if name not in here],
        "of another shape or type": [
            f"{name} ({_said(there[name])} there, {_said(kind)} in the model)"
            for name, kind in here.items()
            if name in there and there[name] != kind
        ],
    }
    said = [
        f"{len(names)} {what}: {few(map(short, names))}"
        for what, names in problems.items()
        if names
    ]
    if said:
        raise CheckpointError(
            f"{where}: the weights are not those of the model in the config. {'; '.join(said)}.",
            "config.json and the weights must come from the same save.",
        )


def _check_integers(config: ModelConfig, there: Mapping[str, Kind], where: str) -> None:
    """No integer of a config exceeds the number of its weights, or it is not these weights'."""
    most = max(SMALL, sum(_numel(kind.shape) for kind in there.values()))
    for name, value in leaves(config, "model.").items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not abs(number) <= most:  # nan too
                raise CheckpointError(
                    f"{where}: {name} {short(str(number))} asks for a model that these weights "
                    f"cannot be of."
                )


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


@contextmanager
def _at_most(parameters: int, where: str) -> Iterator[None]:
    """Stop a build in this thread once it has made more than so many parameters."""
    made, thread = 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > parameters:
            raise CheckpointError(
                f"{where}: the config asks for a model of more tensors than the weights have.",
                "config.json and the weights must come from the same save.",
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _said(kind: Kind) -> str:
    return f"{kind.shape}{'' if kind.floating else ' integers'}"
