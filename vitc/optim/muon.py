"""How does Muon train hidden weights, kernels too, beside an optimizer of the other parameters?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vitc.machine import computes_bf16

# The quintic a x + b x^3 + c x^5 of Jordan's code, whose slope at 0 brings up small values fast.
QUINTIC = 3.4445, -4.775, 2.0315
ITERATIONS = 5


class Muon(Optimizer):
    """Muon (Jordan 2024) over weights whose first dimension is that of the outputs.

    To the bit torch.optim.Muon with `match_rms_adamw` (arXiv 2502.16982) on devices that are fast
    in bfloat16. On a processor without its instructions, as most laptops', torch's Muon takes 0.9
    of the 1.4 seconds of a step of vit_r_tiny64, for what takes 0.06 in float32.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr})
        self.momentum = momentum

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "momentum": self.momentum}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                average = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - self.momentum)
                update = orthogonal(as_matrix(p.grad.lerp(average, self.momentum), p))
                matrix = as_matrix(p, p)
                matrix.mul_(1 - lr * decay)
                matrix.add_(update, alpha=-lr * (0.2 * max(matrix.shape) ** 0.5))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (m, n) with its singular values brought near 1 by a Newton-Schulz iteration, in
    bfloat16 where that is fast, else in float32."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.bfloat16 if fast_in_bf16(matrix.device) else torch.float32, copy=True)
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def fast_in_bf16(device: torch.device) -> bool:
    """A CPU is with AMX; AVX-512's instructions alone can halve the rate (docs/performance.md)."""
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported())
    return computes_bf16(device)


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """(output channels, the rest) in the storage order of `like`, of which it is then a view.

    The order of columns does not matter: orthogonalisation commutes with it.
    """
    rest = sorted(range(1, like.ndim), key=like.stride, reverse=True)
    return tensor.detach().permute(0, *rest).flatten(1)


class Joined(Optimizer):
    """Optimizers of disjoint `groups` as one. They share its groups and its state, so that rates,
    clipping and checkpoints need not know of them."""

    def __init__(self, groups: Sequence[dict[str, Any]], parts: Sequence[Optimizer]) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose parts share its groups and state as the original's do; or by
        `load_state_dict`, which replaces both: the parts then get the new ones."""
        places = {id(group): i for i, group in enumerate(self.__dict__.get("param_groups", ()))}
        super().__setstate__(state)
        if places:
            for part in self.parts:
                groups = [self.param_groups[places[id(group)]] for group in part.param_groups]
                part.__setstate__({"state": self.state, "param_groups": groups})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
