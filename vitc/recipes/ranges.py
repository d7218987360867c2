"""From which ranges a study draws: the paper's, or its rule around a recipe's own values."""

from __future__ import annotations

from vitc.config import RunConfig

# Paper Table 4 right, for every ViT, per batch 2048.
PAPER_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "adamw": {"optim.lr": (2.5e-4, 8.0e-3), "optim.weight_decay": (0.02, 0.8)},
    "sgd": {"optim.lr": (0.1, 3.2), "optim.weight_decay": (4.0e-6, 1.2e-4)},
}


def study_ranges(config: RunConfig, optim: str) -> dict[str, tuple[float, float]]:
    """Setting -> (low, high), drawn log-uniformly.

    The paper's ranges where lr is quoted per batch 2048, as it is there. Elsewhere its rule,
    [centre / 8, centre * 4], around the config's own lr and weight decay: for a recipe of a
    ViT_P, around what suits the ViT_P. It leans to the left because too large values do not train.
    """
    if config.optim.lr_per_batch == 2048 and optim in PAPER_RANGES:
        return PAPER_RANGES[optim]
    centres = {"optim.lr": config.optim.lr, "optim.weight_decay": config.optim.weight_decay}
    return {name: (c / 8, c * 4) for name, c in centres.items() if c > 0}
