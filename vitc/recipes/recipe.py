"""What is a recipe? A config with a name, tuned settings by optimizer, and its documentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from vitc.config import RunConfig, with_kind
from vitc.errors import unknown
from vitc.optim.config import Like, OptimConfig
from vitc.optim.optimizers import OPTIMIZERS, SCHEDULE_FREE


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

    @property
    def expected(self) -> str:
        """The accuracy that is known of it, in a sentence or two."""
        text = self.doc.partition("Expected:")[2].partition("\n\n")[0]
        return " ".join(text.split())

    def __call__(self, optim: str | None = None) -> RunConfig:
        """The config under `optim`, by name or FILE.py:Class; None: its own optimizer.

        Under one that it has no tuned settings for, lr and weight decay follow from those of the
        optimizer that it is like, or are its defaults (`untuned` has a note). Raises ConfigError:
        no such optimizer.
        """
        own = next(iter(self.tuned.values()))
        if optim is None or optim in self.tuned:
            chosen = own if optim is None else self.tuned[optim]
        elif optim in OPTIMIZERS or ":" in optim or optim.endswith(".py"):
            like = self._like(optim)
            chosen = with_kind(own if like is None else self.tuned[like.optim], "optim", optim)
        else:
            raise unknown("optimizer", optim, OPTIMIZERS)
        return dataclasses.replace(self.config, optim=chosen)

    def untuned(self, optim: str | None) -> str | None:
        """A note where the recipe has no tuned settings for this optimizer."""
        if optim is None or optim in self.tuned:
            return None
        like, rule = self._like(optim), "its defaults"
        if like is not None:
            rule = f"those of {like.optim} times {like.lr:g} and {like.weight_decay:g}"
        note = (
            f"{self.config.name} has no tuned settings for {optim}: unless set, lr and weight "
            f"decay are {rule}. Tuned: {', '.join(self.tuned)}."
        )
        if optim in OPTIMIZERS and OPTIMIZERS[optim].schedule_free:
            note += f" {SCHEDULE_FREE}"
        return note

    def _like(self, optim: str) -> Like | None:
        """What an optimizer is like, if the recipe has tuned settings for that."""
        like = OPTIMIZERS[optim].like if optim in OPTIMIZERS else None
        return like if like is not None and like.optim in self.tuned else None
