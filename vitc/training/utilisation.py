"""How well does a run use its device? Its time by what it was spent on, its share of the rate of
large matrix products, and what limits it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from vitc.errors import ConfigError
from vitc.models.complexity import complexity
from vitc.runs.results import SPENT
from vitc.training.build import NORMS, Setup
from vitc.wording import counted

LEAST_SECONDS = 60.0  # of training steps: below, measuring costs more than it helps
SIDES = {"cuda": 8192}  # of the matrices; elsewhere 512, which fill a CPU's cores in 2 ms
TRIES, PRODUCTS = 13, 10


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
    if {*setup.config.train.freeze} - {NORMS}:
        raise ConfigError("The operations of a step with frozen layers are not counted.")
    passes = 3  # forward, and backward at twice its cost
    here = images / setup.procs.world
    done = passes * 2 * complexity(model, setup.config.model.size).flops * here
    side = SIDES.get(setup.device.type, 512)
    return done / seconds / matmul_rate(setup.device, side, setup.config.train.precision)


def utilisation(
    setup: Setup, model: torch.nn.Module, images: int, seconds: float, spent: Mapping[str, float]
) -> tuple[float | None, str]:
    """(MFU, or None where it is not known; a line for people) of a run, this process of which took
    `seconds` for steps with so many images; the whole `spent` its time as given."""
    total = sum(spent.values()) or 1.0
    shares = [f"{100 * spent[k] / total:.0f} % {what}" for k, what in SPENT.items() if k in spent]
    line = f"time: {', '.join(shares)}"
    if seconds < LEAST_SECONDS or images == 0:
        return None, line
    try:
        mfu = model_utilisation(setup, model, images, seconds)
    except ConfigError:  # layers are frozen, or a custom model cannot run without data
        return None, line
    kind = f"{setup.config.train.precision} matrix products"
    return round(mfu, 4), f"{line}; the steps reach {100 * mfu:.0f} % of the rate of {kind} (MFU)"


LOADER_SHARE = 0.15  # of the time waited for images, above which more loader speed pays


def loader_limits(share: float, workers: int | None) -> bool:
    """Whether reading images limits the rate, by the share of the time waited for them."""
    return workers is not None and share >= LOADER_SHARE


def what_limits(wait: float, seconds: float, workers: int | None, cores: int, device: str) -> str:
    """One line: is it reading images or computing that bounds the rate, and what to change.

    `wait` of `seconds` were spent waiting for images; `workers` None: they are resident.
    """
    share = wait / max(seconds, 1e-9)
    waiting = f"{100 * share:.0f} % of the time is spent waiting for images"
    if workers is None:
        return f"computing limits the rate: the images are resident on {device} ({waiting})"
    if not loader_limits(share, workers):
        faster = "a smaller --model or --model.img_size" if device == "cpu" else "--train.compile"
        return f"computing limits the rate, not the loader ({waiting}); faster: {faster}"
    ways = ["pack the images once, smaller: vitc data pack SRC OUT --short-side 256"]
    if workers < cores:
        ways.insert(0, f"--data.workers {cores} (now {workers}, for {cores} cores)")
    line = f"the loader limits the rate: {waiting}"
    if workers >= cores and device == "cpu":
        line += f", as it shares {counted(cores, 'core')} with training"
    return f"{line}; faster: {'; or '.join(ways)}"
