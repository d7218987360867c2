"""Is a custom stem what a stem must be? Built, checked and tried once before a run needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitc.errors import ConfigError, VitcError
from vitc.models.stem_config import CustomStemConfig
from vitc.plugins.load import build, load, why
from vitc.plugins.names import STEM


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
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"The stem {label} is not a subclass of torch.nn.Module.", STEM.contract)
    given = {"in_chans": in_chans, "embed_dim": embed_dim}
    stem: nn.Module = build(STEM, cls, given, settings, label)
    reduction = getattr(stem, "reduction", None)
    if type(reduction) is not int or reduction < 1:
        raise ConfigError(
            f"The stem {label} has reduction {reduction!r}; it must be an integer of at least 1: "
            f"the factor by which it reduces height and width.",
            STEM.contract,
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in stem.parameters()):
        raise ConfigError(
            f"The stem {label} has parameters without a shape (a lazy module).",
            "Give every layer its number of channels: in_chans and embed_dim are known.",
        )
    return stem


def try_stem(stem: nn.Module, in_chans: int, embed_dim: int, size: tuple[int, int]) -> None:
    """Run a custom stem once, on zeros. Neither its statistics nor its mode change.

    Raises ConfigError: its forward raises, or does not return (1, D, H / reduction, W / reduction)
    in the dtype of the image.
    """
    cls, reduction = type(stem), stem.reduction
    weight = next(iter(stem.parameters()), torch.empty(0))
    image = torch.zeros(1, in_chans, *size, dtype=weight.dtype, device=weight.device)
    modes = [(m, m.training) for m in stem.modules()]
    try:
        with torch.no_grad():
            out = stem.eval()(image)
    except VitcError:
        raise
    except Exception as error:
        raise ConfigError(
            f"The stem {cls.__name__} fails on images of {size[0]}x{size[1]}: {why(error, cls)}",
            STEM.contract,
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    assert isinstance(reduction, int)
    expected = (1, embed_dim, size[0] // reduction, size[1] // reduction)
    shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if shape != expected or out.dtype != image.dtype:
        dtype = f", {out.dtype}" if isinstance(out, torch.Tensor) else ""
        raise ConfigError(
            f"The stem {cls.__name__} returns {shape}{dtype} for images of {size[0]}x{size[1]}; it "
            f"must return {expected}, {image.dtype}.",
            STEM.contract,
        )
