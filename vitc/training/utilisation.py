"""How well did a run use its device? Its time by what it was spent on, and its share of the rate
of large matrix products."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from vitc.errors import ConfigError
from vitc.models.complexity import complexity
from vitc.training.build import Setup

LEAST_SECONDS = 60.0  # of training steps: below, measuring costs more than it helps
SIDES = {"cuda": 8192}  # of the matrices; elsewhere 512, which fill a CPU's cores in 2 ms
TRIES, PRODUCTS = 13, 10
SPENT = {
    "steps": "training steps",
    "loading": "waiting for images",
    "evaluation": "validation",
    "saving": "checkpoints",
    "preparing": "preparing",
}


def matmul_rate(device: torch.device, side: int, precision: str) -> float:
    """Floating-point operations a second of square matrix products: the best of the tries."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(side, side, device=device, dtype=kind) for _ in range(2))
    best = 0.0
    for _ in range(TRIES):
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, PRODUCTS * 2 * side**3 / (time.perf_counter() - started))
    return best


def model_utilisation(setup: Setup, model: torch.nn.Module, images: int, seconds: float) -> float:
    """Floating-point operations of the model's forward and backward passes over those that matrix
    products of this device do in the same time (MFU). Raises ConfigError: they cannot be counted.
    """
    passes = 3  # forward, and backward at twice its cost
    here = images / setup.procs.world
    done = passes * 2 * complexity(model, setup.config.model.size).flops * here
    side = SIDES.get(setup.device.type, 512)
    return done / seconds / matmul_rate(setup.device, side, setup.config.train.precision)


def utilisation(
    setup: Setup, model: torch.nn.Module, images: int, spent: Mapping[str, float]
) -> tuple[float | None, str]:
    """(MFU, or None where it is not known; a line for people) of a process that took some steps."""
    total = sum(spent.values()) or 1.0
    shares = [f"{100 * spent[k] / total:.0f} % {what}" for k, what in SPENT.items() if k in spent]
    line = f"time: {', '.join(shares)}"
    if spent.get("steps", 0.0) < LEAST_SECONDS or images == 0:
        return None, line
    try:
        mfu = model_utilisation(setup, model, images, spent["steps"])
    except ConfigError:  # a custom model that cannot run without data
        return None, line
    kind = f"{setup.config.train.precision} matrix products"
    return round(mfu, 4), f"{line}; the steps reach {100 * mfu:.0f} % of the rate of {kind} (MFU)"
