"""A stem from outside the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitc.models.stem_config import OutsideStemConfig

if TYPE_CHECKING:
    from torch import nn


def name_stem(config: OutsideStemConfig) -> OutsideStemConfig:
    """The config of a stem that the user names: absolute path, hash of its source; trusted."""
    raise NotImplementedError


def load_stem(config: OutsideStemConfig, in_chans: int, embed_dim: int) -> nn.Module:
    """The stem, built."""
    raise NotImplementedError
