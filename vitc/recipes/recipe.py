"""What is a recipe? A config with a name, tuned settings by optimizer, and its documentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from vitc.config import RunConfig, with_kind
from vitc.errors import unknown
from vitc.optim.config import OptimConfig
from vitc.optim.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Recipe:
    """One row of `RECIPES`; called with an optimizer's name it gives the config."""

    doc: str
    """What it is in one line, then source, command, cost and expected result."""
    config: RunConfig
    """All but its optimizer. Not checked: the data may be open (`--data DIR`)."""
    tuned: Mapping[str, OptimConfig]
    """Settings of the optimizers for which it has tuned ones, the first being its default."""

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        return self.doc.partition("\n")[0]

    def __call__(self, optim: str | None = None) -> RunConfig:
        """The config under `optim`, by name or FILE.py:Class; None: its own optimizer.

        Under one that it has no tuned settings for, lr and weight decay are that optimizer's
        defaults (`untuned` has a note). Raises ConfigError: no such optimizer.
        """
        own = next(iter(self.tuned.values()))
        if optim is None or optim in self.tuned:
            chosen = own if optim is None else self.tuned[optim]
        elif optim in OPTIMIZERS or ":" in optim or optim.endswith(".py"):
            chosen = with_kind(own, "optim", optim)
        else:
            raise unknown("optimizer", optim, OPTIMIZERS)
        return dataclasses.replace(self.config, optim=chosen)

    def untuned(self, optim: str | None) -> str | None:
        """A note where the recipe has no tuned settings for this optimizer."""
        if optim is None or optim in self.tuned:
            return None
        return (
            f"{self.config.name} has no tuned settings for {optim}: unless set, lr and weight "
            f"decay are its defaults. Tuned: {', '.join(self.tuned)}."
        )
