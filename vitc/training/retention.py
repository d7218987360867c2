"""Which checkpoints does a run keep: the last ones, every so many epochs, the best?"""

from __future__ import annotations

from dataclasses import dataclass

from vitc.training.config import TrainConfig


@dataclass(frozen=True)
class Retention:
    """What the settings train.keep_* ask for. `every`: steps between checkpoints that stay."""

    last: int
    every: int | None
    best: bool

    @staticmethod
    def of(config: TrainConfig, steps_per_epoch: int) -> Retention:
        epochs = config.keep_every_epochs
        every = None if epochs is None else epochs * steps_per_epoch
        return Retention(config.keep_checkpoints, every, config.keep_best)

    def stays(self, step: int, best: float | None) -> bool:
        """Whether the checkpoint of a step stays beside the last ones; `best`: the step of the best
        evaluation so far. Such a step has one in any case."""
        return bool((self.every and step % self.every == 0) or (self.best and step == best))

    def count(self, steps: int) -> int:
        """Checkpoints on disk at the end of a run of so many steps, at most."""
        return self.last + self.best + (steps // self.every if self.every else 0)
