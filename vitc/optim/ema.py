"""The average of the model over the run: the weights that are evaluated and deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a model: weights and BatchNorm statistics (paper section 5.4).

    `module` is the average: a copy of the model, in eval mode, that asks for no gradient.
    `alpha(step)`, the weight of the new model in an update, is a pure function of the step
    (`config.ema_alpha`), so the tensors of `module` are the whole state.
    """

    def __init__(self, model: nn.Module, alpha: Callable[[int], float]) -> None:
        self.alpha = alpha
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.module.zero_grad(set_to_none=True)
        self._floats, self._others = _split(self.module)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in `model` after `step` finished updates (the first is 1)."""
        alpha = self.alpha(step)
        if alpha == 0:
            return
        floats, others = _split(model)
        if floats:
            torch._foreach_lerp_(self._floats, floats, alpha)
        if others:
            torch._foreach_copy_(self._others, others)


def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(averaged, copied): float tensors, and the rest, for example BatchNorm's counter.

    `parameters()` and `buffers()` name a shared tensor once. A state_dict names it twice, and a
    tensor averaged twice a step would have another horizon than its neighbours.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    floats = [t for t in tensors if t.is_floating_point()]
    return floats, [t for t in tensors if not t.is_floating_point()]
