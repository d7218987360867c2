"""Is a custom stem or model what it must be? Built, checked and run once before a run needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor, nn

from vitc.errors import ConfigError, VitcError
from vitc.models.config import CustomModelConfig
from vitc.models.stem_config import CustomStemConfig
from vitc.plugins.load import build, load, why
from vitc.plugins.names import MODEL, STEM, Kind


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode without gradients; afterwards every module is back in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def load_stem(config: CustomStemConfig, in_chans: int, embed_dim: int) -> nn.Module:
    """The stem of a config: its class called with in_chans, embed_dim and its settings.

    (B, in_chans, H, W) -> (B, embed_dim, H / reduction, W / reduction). Raises ConfigError: its
    file is not trusted or has another hash, raises while it is imported, or as `make_stem`.
    """
    cls, settings, label = load(config.custom)
    return make_stem(cls, in_chans, embed_dim, settings, label)


def make_stem(
    cls: Any, in_chans: int, embed_dim: int, settings: Mapping[str, Any], label: str = ""
) -> nn.Module:
    """`cls(in_chans=..., embed_dim=..., **settings)`. Raises ConfigError: it is not a stem."""
    label = label or getattr(cls, "__qualname__", repr(cls))
    stem = _make(STEM, cls, {"in_chans": in_chans, "embed_dim": embed_dim}, settings, label)
    reduction = getattr(stem, "reduction", None)
    if type(reduction) is not int or reduction < 1:
        raise ConfigError(
            f"The stem {label} has reduction {reduction!r}; it must be an integer of at least 1: "
            f"the factor by which it reduces height and width.",
            STEM.contract,
        )
    return stem


def try_stem(stem: nn.Module, in_chans: int, embed_dim: int, size: tuple[int, int]) -> None:
    """Run a custom stem once, on zeros. Raises ConfigError: it fails, or returns another shape."""
    reduction = stem.reduction
    assert isinstance(reduction, int)
    expected = (1, embed_dim, size[0] // reduction, size[1] // reduction)
    _try(STEM, stem, (1, in_chans, *size), expected)


def load_model(config: CustomModelConfig) -> nn.Module:
    """The model of a config: its class called with num_classes, with in_chans and img_size if it
    takes them, and with its settings; then run once.

    Raises ConfigError: as `load_stem`; it keeps dropout, fails, or does not return (B, K).
    """
    cls, settings, label = load(config.custom)
    classes, channels = config.head_classes, config.in_chans
    given = {"num_classes": classes, "in_chans": channels, "img_size": config.img_size}
    model = _make(MODEL, cls, given, settings, label)
    refuse_dropout(model, f"The model {label}")
    describe(model, config)
    _try(MODEL, model, (1, channels, *config.size), (1, classes) if classes else None)
    return model


def describe(model: nn.Module, config: Any) -> None:
    """Give a model of others the attributes of ours: config, img_size, in_chans, num_classes."""
    known = {"img_size": config.size, "in_chans": config.in_chans}
    for name, value in (known | {"num_classes": config.head_classes}).items():
        if not hasattr(model, name):
            setattr(model, name, value)
    model.config = config


def refuse_dropout(model: nn.Module, the: str) -> None:
    """Raises ConfigError: the model draws random numbers, which are not the run's own."""
    for name, module in model.named_modules():
        dropout = getattr(module, "p", 0) and "Dropout" in type(module).__name__
        if dropout or getattr(module, "drop_prob", 0):
            raise ConfigError(
                f"{the} has active dropout in {name}; a run with it could not be resumed exactly.",
                "Build it without dropout.",
            )


def _make(
    kind: Kind, cls: Any, given: Mapping[str, Any], settings: Mapping[str, Any], label: str
) -> nn.Module:
    the = f"The {kind.noun} {label}"
    if not (issubclass(cls, nn.Module) if isinstance(cls, type) else isfunction(cls)):
        raise ConfigError(
            f"{the} is not a subclass of torch.nn.Module, nor a function that builds one.",
            kind.contract,
        )
    module: nn.Module = build(kind, cls, given, settings, label)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{the} returns no torch.nn.Module.", kind.contract)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        raise ConfigError(
            f"The {kind.noun} {label} has parameters without a shape (a lazy module).",
            f"Give every layer its number of channels: {' and '.join(kind.given)} are known.",
        )
    return module


def _try(
    kind: Kind, module: nn.Module, image: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    """Run a module once, on zeros; neither its statistics nor its mode change.

    Raises ConfigError: its forward raises, or does not return the `expected` shape in the dtype of
    the image.
    """
    the, size = f"The {kind.noun} {type(module).__name__}", f"images of {image[2]}x{image[3]}"
    weight = next(iter(module.parameters()), torch.empty(0))
    x = torch.zeros(*image, dtype=weight.dtype, device=weight.device)
    try:
        with evaluating(module):
            out = module(x)
    except VitcError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{the} fails on {size}: {why(error, type(module))}", kind.contract
        ) from error
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if (shape != expected and expected is not None) or out.dtype != x.dtype:
        dtype = f", {out.dtype}" if isinstance(out, Tensor) else ""
        raise ConfigError(
            f"{the} returns {shape}{dtype} for {size}; it must return {expected}, {x.dtype}.",
            kind.contract,
        )
