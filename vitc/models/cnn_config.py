"""What a CNN baseline is, as values. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from vitc.models.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class CNNConfig(ModelConfig):
    """A CNN of the paper's comparison: ResNet, RegNetY or EfficientNet (paper Table 2)."""

    name: str = "cnn"
    """Name in the zoo, for messages and reports."""
