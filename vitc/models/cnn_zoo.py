"""Which CNNs have names? Those of the paper's Table 2. No torch here."""

from __future__ import annotations

from vitc.models.cnn_config import CNNConfig
from vitc.models.model_config import Reported

CNNS: dict[str, CNNConfig] = {}

REPORTED_CNNS: dict[str, Reported] = {}
