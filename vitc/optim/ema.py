"""The average of the model over the run: the weights that are evaluated and deployed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitc.optim.config import EmaConfig, check_ema, ema_alpha
from vitc.optim.schedule import ScheduleConfig


class Ema:
    """Exponential moving average of a model: weights and BatchNorm statistics (paper section 5.4).

    `module` is the average: a copy of the model, in eval mode, that asks for no gradient. How
    much of the new model an update takes in is a pure function of the step
    (`config.ema_alpha`), so the tensors of `module` are all the state there is.

    Raises ConfigError where the authors' formula (`pycls`) does not fit the run's length.
    """

    def __init__(
        self,
        model: nn.Module,
        ema: EmaConfig,
        schedule: ScheduleConfig,
        *,
        epochs: int,
        steps_per_epoch: int,
        batch: int,
    ) -> None:
        check_ema(ema, epochs=epochs, steps_per_epoch=steps_per_epoch, batch=batch)
        self.ema, self.schedule = ema, schedule
        self.epochs, self.steps_per_epoch, self.batch = epochs, steps_per_epoch, batch
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.module.zero_grad(set_to_none=True)
        self._floats, self._others = _split(self.module)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in `model` as it stands after `step` finished updates (the first is 1)."""
        alpha = ema_alpha(
            step,
            self.ema,
            self.schedule,
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            batch=self.batch,
        )
        if alpha == 0:
            return
        floats, others = _split(model)
        if floats:
            torch._foreach_lerp_(self._floats, floats, alpha)
        if others:
            torch._foreach_copy_(self._others, others)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors under the model's own names."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict()`; names and shapes must be this model's."""
        self.module.load_state_dict(state)


def build_ema(
    model: nn.Module,
    ema: EmaConfig,
    schedule: ScheduleConfig,
    *,
    epochs: int,
    steps_per_epoch: int,
    batch: int,
) -> Ema | None:
    """The average that `ema` asks for over a run of this length, or None for kind `none`."""
    if ema.kind == "none":
        return None
    return Ema(model, ema, schedule, epochs=epochs, steps_per_epoch=steps_per_epoch, batch=batch)


def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(averaged, copied): float tensors, and the rest, such as BatchNorm's counter of batches.

    `parameters()` and `buffers()` name a shared tensor once. A state_dict names it twice, and a
    tensor averaged twice a step would have another horizon than its neighbours.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    floats = [t for t in tensors if t.is_floating_point()]
    return floats, [t for t in tensors if not t.is_floating_point()]
