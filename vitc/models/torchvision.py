"""How is a model of the torchvision library built? By its own name, freshly initialised.

torchvision is an extra, imported only here and only when a model is named torchvision:NAME.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vitc.errors import ConfigError, suggest
from vitc.machine import install_line
from vitc.models.config import TorchvisionConfig
from vitc.models.custom import describe, refuse_dropout
from vitc.models.timm import import_peer

# What a family's models call the size of their images; others take any size.
SIZED = {"vit": "image_size", "maxvit": "input_size"}
# Without their second classifier, which would make them return two outputs in training.
ONE_OUTPUT = {"aux_logits": False, "init_weights": True}
FIXED_SETTINGS = {"googlenet": ONE_OUTPUT, "inception": ONE_OUTPUT}


def torchvision_config(name: str) -> TorchvisionConfig:
    """The config of `torchvision:NAME`.

    Raises ConfigError: torchvision is not installed, or it has no such classifier.
    """
    models, bare = _models(), name.removeprefix("torchvision:")
    known = models.list_models(module=models)
    if bare not in known:
        raise ConfigError(
            f"torchvision has no classifier {bare!r}.{suggest(bare, known)}",
            "torchvision.models.list_models(module=torchvision.models) lists them.",
        )
    return TorchvisionConfig(name=f"torchvision:{bare}")


def build_torchvision(config: TorchvisionConfig) -> nn.Module:
    """The model, freshly drawn, without dropout: what is random in training is drawn on the host.

    Raises ConfigError: torchvision is not there, or cannot build it so (another size of images).
    """
    models, classes, name = _models(), config.head_classes, config.torchvision_name
    if config.in_chans != 3:
        raise ConfigError(
            f"{config.name} takes images of 3 channels, not of {config.in_chans}.",
            "Set --model.in_chans 3: grey images are then repeated in each channel.",
        )
    family = name.partition("_")[0]
    settings: dict[str, Any] = dict(FIXED_SETTINGS.get(family, {}))
    if family in SIZED:
        square = config.size[0] == config.size[1]
        side = SIZED[family]
        settings[side] = config.size[0] if side == "image_size" and square else tuple(config.size)
    try:
        model: nn.Module = models.get_model(
            name, weights=None, num_classes=classes or 1, **settings
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as e:
        raise ConfigError(
            f"torchvision cannot build {name!r} for {config.size[0]}x{config.size[1]} images "
            f"and {classes} classes: {e}",
            "Choose a model that takes that size, or set --model.img_size to 224.",
        ) from e
    if not classes:
        _without_head(model, config.name)
    for module in model.modules():
        if "Dropout" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
    refuse_dropout(model, config.name)
    describe(model, config)
    return model


def _without_head(model: nn.Module, name: str) -> None:
    """Replace the last layer by nothing. Raises ConfigError: it is not linear."""
    layers = [(path, layer) for path, layer in model.named_modules() if not [*layer.children()]]
    linear = [path for path, layer in layers if isinstance(layer, nn.Linear)]
    if not linear or linear[-1] not in [path for path, _ in layers[-2:]]:
        raise ConfigError(
            f"{name} does not end in a linear layer, so it has no form without a head.",
            "Set num_classes to 1 or more.",
        )
    model.set_submodule(linear[-1], nn.Identity())


def _models() -> Any:
    try:
        return import_peer("torchvision.models")
    except ImportError as e:
        raise ConfigError(
            "Models named torchvision:... need the torchvision library, which is not installed.",
            f"Install it with: {install_line('peers')}",
        ) from e
