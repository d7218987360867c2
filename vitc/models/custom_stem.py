"""A stem from outside the package (docs/stems.md): named, kept, found again, built.

How it is trusted and imported: `vitc.plugins`. Free of torch at import.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc import plugins as outside
from vitc.errors import ConfigError, VitcError
from vitc.models.config import ModelConfig, ViTConfig
from vitc.models.stem_config import OutsideStemConfig
from vitc.plugins import NAMING, STEM, admitted, refuse_unknown, sha, with_hash

if TYPE_CHECKING:
    from torch import nn


def name_stem(config: OutsideStemConfig) -> OutsideStemConfig:
    """The config of a stem that the user names just now: absolute path, hash of its file; trusted.

    `config.sha256` is not looked at. The file is read, not run. Raises ConfigError: no such file,
    module or class (with suggestions), a file that is no Python, settings that are no literals.
    """
    named = outside.name(config.outsider)
    return OutsideStemConfig(source=named.source, sha256=named.sha256)


# -- found again, and kept -------------------------------------------------------------------------


def with_source(model: ModelConfig, folder: str | Path) -> ModelConfig:
    """The model with its stem from outside found again for a run or study in `folder`.

    Its file, if it is still what the config's hash says; else the copy in `folder`, or in the study
    whose trial `folder` is. A model without such a stem comes back as it is. Raises ConfigError: it
    was not admitted (see `vitc.plugins.trust`), or that content is nowhere.
    """
    stem = _stem(model)
    if stem is None:
        return model
    folder, one = Path(folder), stem.outsider
    named = folder.is_file() or any((folder / name).is_file() for name in NAMING)
    said = folder if named else None
    if stem.sha256:
        refuse_unknown(one, stem.sha256, said)
    file, content = with_hash(one, folder.parent if folder.is_file() else folder)
    refuse_unknown(one, sha(content), said)  # where the config has no hash
    found = dataclasses.replace(stem, sha256=sha(content))
    if file != outside.found_at(one):
        outside.say(f"{one.place} has changed or gone; using the copy {file}.")
        found = dataclasses.replace(found, source=f"{file}:{one.what}")
    assert isinstance(model, ViTConfig)  # it has a stem
    return dataclasses.replace(model, stem=found)


def found_again(model: ModelConfig, folder: Path) -> ModelConfig:
    """As `with_source`; but what was not admitted, or is nowhere, is left for those who use it."""
    stem = _stem(model)
    if stem is None or stem.sha256 not in admitted():
        return model
    try:
        return with_source(model, folder)
    except ConfigError:
        return model


def copies(model: ModelConfig) -> dict[str, bytes]:
    """Name -> content of what a run folder keeps in `sources/`: the file of a stem from outside.

    Empty for a model without one. Raises ConfigError where the file is not what it was.
    """
    stem = _stem(model)
    if stem is None:
        return {}
    file, content = with_hash(stem.outsider, None)
    return {_copy_name(file.name, sha(content)): content}


def _stem(model: ModelConfig) -> OutsideStemConfig | None:
    stem = model.stem if isinstance(model, ViTConfig) else None
    return stem if isinstance(stem, OutsideStemConfig) else None


def _copy_name(name: str, sha256: str) -> str:
    prefix = f"{sha256[:12]}_"
    return prefix + name.removeprefix(prefix)  # a copy of a copy


# -- built -----------------------------------------------------------------------------------------


def load_stem(config: OutsideStemConfig, in_chans: int, embed_dim: int) -> nn.Module:
    """The stem, built: its class called with in_chans, embed_dim and its settings.

    (B, in_chans, H, W) -> (B, embed_dim, H / reduction, W / reduction). Raises ConfigError: its
    file was not admitted (see `vitc.plugins.trust`) or is not what the hash says, raises while it
    is imported, or does not give a module with an integer `reduction`.
    """
    import torch  # noqa: F401 -- before the file does, so that its generator is kept

    cls, settings, said, _ = outside.load(config.outsider)
    return make_stem(cls, in_chans, embed_dim, settings, said)


def make_stem(
    cls: Any, in_chans: int, embed_dim: int, settings: Mapping[str, Any], said: str = ""
) -> nn.Module:
    """`cls(in_chans=..., embed_dim=..., **settings)`, checked to be a stem. Raises ConfigError."""
    from torch import nn

    said = said or getattr(cls, "__qualname__", repr(cls))
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"The stem {said} is no class of torch.nn.Module.", STEM.contract)
    given = {"in_chans": in_chans, "embed_dim": embed_dim}
    stem: nn.Module = outside.make(STEM, cls, given, settings, said)
    reduction = getattr(stem, "reduction", None)
    if type(reduction) is not int or reduction < 1:
        raise ConfigError(
            f"The stem {said} has reduction {reduction!r}; it must be an integer of at least 1: by "
            f"how much it divides height and width.",
            STEM.contract,
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in stem.parameters()):
        raise ConfigError(
            f"The stem {said} has parameters without a shape (a lazy module).",
            "Make every layer with its number of channels: in_chans and embed_dim are given.",
        )
    return stem


def try_stem(stem: nn.Module, in_chans: int, embed_dim: int, size: tuple[int, int]) -> None:
    """Run a stem of another's making once, on zeros: what is wrong with it is said before a run.

    Raises ConfigError: its forward raises, or gives no float (1, D, H / reduction, W / reduction).
    """
    import torch

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
            f"The stem {cls.__name__} cannot be run on images of {size[0]}x{size[1]}: "
            f"{outside.why(error, cls)}",
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
            f"The stem {cls.__name__} gives {shape}{dtype} for images of {size[0]}x{size[1]}; it "
            f"must give {expected}, {image.dtype}.",
            STEM.contract,
        )
