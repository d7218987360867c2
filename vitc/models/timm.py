"""How is a model of the timm library built? By its own name, freshly initialised.

timm is an extra, imported only here and only when a model or weights are named timm:NAME.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import torch
from torch import nn

from vitc.errors import ConfigError, suggest
from vitc.machine import install_line
from vitc.models.config import TimmConfig
from vitc.models.custom import describe, refuse_dropout


def timm_config(name: str) -> TimmConfig:
    """The config of `timm:NAME`, with that model's own input size.

    Raises ConfigError: timm is not installed or does not load, or it has no such model.
    """
    timm, bare = timm_with(name)
    tag = name.partition(".")[2]
    if tag:
        raise ConfigError(
            f"{name} names pretrained weights (.{tag}), but a model starts fresh.",
            f"Name model and weights separately: --model timm:{bare} --init {name}",
        )
    size = timm.get_pretrained_cfg(bare).input_size
    return TimmConfig(name=f"timm:{bare}", img_size=size[-1] if size[1] == size[2] else size[1:])


def build_timm(config: TimmConfig) -> nn.Module:
    """The model, freshly drawn, without dropout: what is random in training is drawn on the host.

    Raises ConfigError: timm is not there, or cannot build it so (another size of images, ...).
    """
    timm = _timm()
    classes, channels = config.head_classes, config.in_chans
    settings: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "drop_rate": 0.0}
    own = timm.get_pretrained_cfg(config.timm_name).input_size[1:]
    try:
        try:
            size = {"img_size": config.size} if tuple(config.size) != tuple(own) else {}
            model: nn.Module = timm.create_model(config.timm_name, **settings, **size)
        except TypeError:  # built for any size, so it takes none
            model = timm.create_model(config.timm_name, **settings)
    except (TypeError, ValueError, RuntimeError, AssertionError) as e:
        raise ConfigError(
            f"timm cannot build {config.timm_name!r} for {config.size[0]}x{config.size[1]} images "
            f"with {channels} channels and {classes} classes: {e}",
            f"Choose a model that takes that size, or set --model.img_size to its own ({own[0]}).",
        ) from e
    refuse_dropout(model, config.name)
    describe(model, config)
    return model


def timm_with(name: str) -> tuple[Any, str]:
    """The library, and the model of timm:NAME.TAG without its tag.

    Raises ConfigError: timm is not installed, or has no such model.
    """
    timm, bare = _timm(), name.removeprefix("timm:").partition(".")[0]
    if not timm.is_model(bare):
        known = timm.list_models()
        raise ConfigError(
            f"timm has no model {bare!r}.{suggest(bare, known)}",
            f"timm {timm.__version__} has {len(known)}; timm.list_models() lists them, "
            "timm.list_pretrained() their weights.",
        )
    return timm, bare


def _timm() -> Any:
    try:
        return import_peer("timm")
    except ImportError as e:
        raise ConfigError(
            "Models and weights named timm:... need the timm library, which is not installed.",
            f"Install it with: {install_line('timm')}",
        ) from e


def import_peer(name: str) -> Any:
    """timm, torchvision or one of their modules, also with a torch that torchvision does not fit.

    A torchvision linked to CUDA cannot load its compiled part beside a CPU-only torch; and timm
    imports torchvision at once. Its models need none of that part but the names of two operators,
    which are declared here where loading has failed. Raises ImportError: not installed.
    """
    try:
        return import_module(name)
    except RuntimeError as e:
        if "torchvision::nms" not in str(e):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _KEPT.append(library)  # the declarations live as long as it
    half_loaded = {m for m in sys.modules if m.partition(".")[0] in ("torchvision", "timm")}
    for module in half_loaded:
        del sys.modules[module]
    return import_module(name)


_KEPT: list[Any] = []
