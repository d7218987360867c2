"""The CNN baselines of the paper's Table 2."""

from __future__ import annotations

from torch import nn

from vitc.models.cnn_config import CNNConfig


class CNN(nn.Module):
    """A CNN."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
