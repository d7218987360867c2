"""The average of the model over the run: the weights that are evaluated and deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Ema:
    """Exponential moving average of a model: weights and BatchNorm statistics (paper section 5.4).

    `module` is the average: a copy of the model, in eval mode, that asks for no gradient.
    `alpha(before, position)`, the weight of the new model in an update, is a pure function of the
    position in the plan before and after it (`config.ema_alpha`), so the tensors of `module` are
    the whole state.
    """

    def __init__(self, model: nn.Module, alpha: Callable[[float, float], float]) -> None:
        self.alpha = alpha
        self.module = _copy(model)
        self._floats, self._others = _split(self.module)

    @torch.no_grad()
    def update(self, model: nn.Module, position: float, before: float | None = None) -> None:
        """Take in `model`, whose update led to `position` (the first to 1) from `before`; None:
        from one less."""
        alpha = self.alpha(position - 1 if before is None else before, position)
        if alpha == 0:
            return
        floats, others = _split(model)
        if floats:
            torch._foreach_lerp_(self._floats, floats, alpha)
        if others:
            torch._foreach_copy_(self._others, others)


class OwnAverage:
    """The average x that a schedule-free optimizer keeps, as a module to evaluate and deploy.

    The model itself holds y = beta x + (1 - beta) z, where gradients are taken, and the optimizer
    the fast weights z: x follows from these two. So no mode is switched, and a checkpoint with y
    (the model), z and x resumes bit-exactly. BatchNorm's statistics are y's until `validate.renew`
    takes those of x. Source: arXiv 2405.15682, section 2.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.module = _copy(model)
        self._own = dict(zip(model.parameters(), self.module.parameters(), strict=True))

    @torch.no_grad()
    def update(self, model: nn.Module, position: float, before: float | None = None) -> None:
        """Follow `model` after a finished update."""
        for own, new in zip(_split(self.module), _split(model), strict=True):
            if own:
                torch._foreach_copy_(own, new)
        for group in self.optimizer.param_groups:
            beta = group["betas"][0] if "betas" in group else group["momentum"]
            fast = {p: self.optimizer.state.get(p, {}).get("z") for p in group["params"]}
            fast = {p: z for p, z in fast.items() if z is not None}  # none: it had no gradient yet
            if fast:
                own = [self._own[p] for p in fast]
                torch._foreach_lerp_(own, list(fast.values()), 1 - 1 / beta)


def _copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that asks for no gradient."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    copied.zero_grad(set_to_none=True)
    return copied


def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(averaged, copied): float tensors, and the rest, for example BatchNorm's counter.

    `parameters()` and `buffers()` name a shared tensor once. A state_dict names it twice, and a
    tensor averaged twice a step would have another horizon than its neighbours.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    floats = [t for t in tensors if t.is_floating_point()]
    return floats, [t for t in tensors if not t.is_floating_point()]
