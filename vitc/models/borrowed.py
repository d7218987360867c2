"""Models of the timm library, where it is installed: by their own names, freshly initialised.

timm is an extra, imported only here and only when a name asks for it.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from torch import nn

from vitc.errors import ConfigError, suggest
from vitc.models.config import TimmConfig


def timm_config(name: str) -> TimmConfig:
    """The config of `timm:NAME`, with that model's own input size.

    Raises ConfigError: timm is not installed or does not load, or it has no such model.
    """
    timm = _timm()
    asked = name.removeprefix("timm:")
    bare, _, tag = asked.partition(".")
    if not timm.is_model(bare):
        known = timm.list_models()
        raise ConfigError(
            f"timm has no model {bare!r}.{suggest(bare, known)}",
            f"timm {timm.__version__} has {len(known)}; timm.list_models() lists them.",
        )
    if tag:
        raise ConfigError(
            f"{name} names pretrained weights (.{tag}), but a model starts fresh.",
            f"Model and weights apart: --model timm:{bare} --init {name}",
        )
    size = timm.get_pretrained_cfg(bare).input_size
    return TimmConfig(name=f"timm:{bare}", img_size=size[-1] if size[1] == size[2] else size[1:])


def build_timm(config: TimmConfig) -> nn.Module:
    """The model, freshly drawn, without dropout: what is random in training is drawn on the host.

    Raises ConfigError: timm is not there, or cannot build it so (another size of images, ...).
    """
    timm = _timm()
    classes = 1000 if config.num_classes is None else config.num_classes
    settings: dict[str, Any] = {"num_classes": classes, "in_chans": config.in_chans,
                                "drop_rate": 0.0}  # fmt: skip
    entry = timm.model_entrypoint(config.timm_name)
    own = timm.get_pretrained_cfg(config.timm_name).input_size[1:]
    if tuple(config.size) != tuple(own) and _takes_size(entry, timm, config.timm_name):
        settings["img_size"] = config.size
    try:
        model: nn.Module = timm.create_model(config.timm_name, pretrained=False, **settings)
    except (TypeError, ValueError, RuntimeError, AssertionError) as e:
        raise ConfigError(
            f"timm cannot build {config.timm_name!r} for {config.size[0]}x{config.size[1]} images "
            f"with {config.in_chans} channels and {classes} classes: {e}",
            f"Choose a model that takes that size, or set --model.img_size to its own ({own[0]}).",
        ) from e
    random = [
        name
        for name, module in model.named_modules()
        if (getattr(module, "p", 0) and "Dropout" in type(module).__name__)
        or getattr(module, "drop_prob", 0)
    ]
    if random:
        raise ConfigError(
            f"{config.name} keeps dropout in {random[0]} that cannot be switched off; a run with "
            f"it could not be resumed exactly."
        )
    return model


def _takes_size(entry: Any, timm: Any, name: str) -> bool:
    """Whether the architecture is built for one size of images (a ViT), or takes any (a CNN)."""
    module = import_module(entry.__module__)
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, nn.Module)
               and c.__module__ == entry.__module__]  # fmt: skip
    probe = timm.create_model(name, pretrained=False, num_classes=0)
    return type(probe) in classes and "img_size" in inspect.signature(type(probe)).parameters


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as e:
        raise ConfigError(
            "Models named timm:... need the timm library, which is not installed.",
            'Install it with: pip install -c constraints.txt "vitc[peers]"',
        ) from e
    except RuntimeError as e:  # torchvision's operators, beside a CPU-only torch
        raise ConfigError(
            f"timm is installed but does not load: {e}",
            "Its dependency torchvision does not match torch; install the torchvision that was "
            "built for it.",
        ) from e
