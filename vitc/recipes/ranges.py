"""From which ranges a study draws: the paper's, or its rule around a recipe's own values."""

from __future__ import annotations

from typing import Literal

from vitc.config import RunConfig
from vitc.models.config import CNNConfig, ViTConfig
from vitc.optim.config import Like

Family = Literal["vit", "cnn"]

# Paper Table 4 right, per batch 2048. Its right half names RegNetYs; the paper draws for no other
# CNN, but trains all of them with the same SGD values (section 6), so they share these ranges.
PAPER_RANGES: dict[Family, dict[str, dict[str, tuple[float, float]]]] = {
    "vit": {
        "adamw": {"optim.lr": (2.5e-4, 8.0e-3), "optim.weight_decay": (0.02, 0.8)},
        "sgd": {"optim.lr": (0.1, 3.2), "optim.weight_decay": (4.0e-6, 1.2e-4)},
    },
    "cnn": {
        "adamw": {"optim.lr": (1.25e-3, 4.0e-2), "optim.weight_decay": (0.0075, 0.24)},
        "sgd": {"optim.lr": (0.25, 8.0), "optim.weight_decay": (3.0e-6, 8.0e-5)},
    },
}


def study_ranges(config: RunConfig, optim: str) -> dict[str, tuple[float, float]]:
    """Setting -> (low, high), drawn log-uniformly.

    The paper's ranges for the model's family where lr is quoted per batch 2048, as it is there:
    ViTs, and CNNs of this package; for an optimizer that is like AdamW or SGD, that one's times
    its factors. Elsewhere (timm's models too, of whatever family) its rule,
    [centre / 8, centre * 4], around the config's own lr and weight decay: for a recipe of a
    ViT_P, around what suits the ViT_P. It leans to the left because too large values do not train.
    """
    vit, cnn = isinstance(config.model, ViTConfig), isinstance(config.model, CNNConfig)
    family: Family | None = "vit" if vit else "cnn" if cnn else None
    like = config.optim.like or Like(optim)
    if config.optim.lr_per_batch == 2048 and family and like.optim in PAPER_RANGES[family]:
        ranges = PAPER_RANGES[family][like.optim]
        factors = {"optim.lr": like.lr, "optim.weight_decay": like.weight_decay}
        return {n: (low * factors[n], high * factors[n]) for n, (low, high) in ranges.items()}
    centres = {"optim.lr": config.optim.lr, "optim.weight_decay": config.optim.weight_decay}
    return {name: (c / 8, c * 4) for name, c in centres.items() if c > 0}
