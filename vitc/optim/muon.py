"""How does Muon train hidden weights, kernels too, beside an optimizer of the other parameters?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


class WithMuon(Optimizer):
    """Two optimizers as one: `rest`, and a Muon over the groups `hidden`, as `build` makes it.

    `param_groups` and `state` are those of the model's own parameters, so that rates, clipping and
    checkpoints need not know. torch's Muon takes matrices alone: it gets views of the weights.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        hidden: Sequence[dict[str, Any]],
        rest: Optimizer,
        build: Callable[[list[dict[str, Any]]], Optimizer],
    ) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.hidden, self.rest = hidden, rest
        rest.state = self.state
        views = [[Parameter(as_matrix(p, p)) for p in group["params"]] for group in hidden]
        self.muon = build([{"params": params} for params in views])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group, views in zip(self.hidden, self.muon.param_groups, strict=True):
            views["lr"], views["weight_decay"] = group["lr"], group["weight_decay"]
            for p, view in zip(group["params"], views["params"], strict=True):
                if p.grad is None:
                    continue
                view.grad = as_matrix(p.grad, p)
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = as_matrix(self.state[p]["momentum_buffer"], p)
                self.muon.state[view]["momentum_buffer"] = buffer
        self.muon.step()
        self.muon.zero_grad()  # the views must not keep gradients alive
        self.rest.step()


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """(output channels, the rest) in the storage order of `like`, of which it is then a view.

    The order of columns does not matter: orthogonalisation commutes with it.
    """
    rest = sorted(range(1, like.ndim), key=like.stride, reverse=True)
    return tensor.detach().permute(0, *rest).flatten(1)
