"""Which of a recipe's optimizer settings a user asked for."""

from __future__ import annotations

from collections.abc import Mapping

from vitc.errors import ConfigError, unknown
from vitc.optim.config import OPTIMIZERS, OptimConfig


def choose_optim(
    recipe: str, optim: str | None, settings: Mapping[str, OptimConfig]
) -> OptimConfig:
    """The recipe's settings for `optim`; None: its first. `settings` is by names of OPTIMIZERS.

    Raises ConfigError: no such optimizer, or one this recipe has no learning rate for.
    """
    if optim is None:
        return next(iter(settings.values()))
    if optim not in OPTIMIZERS:
        raise unknown("optimizer", optim, OPTIMIZERS)
    if optim not in settings:
        raise ConfigError(
            f"Recipe {recipe!r} has no learning rate and weight decay for optim {optim!r}.",
            f"It has them for: {', '.join(settings)}. To set your own, save its config, change "
            f"optim in it and train that file.",
        )
    return settings[optim]
