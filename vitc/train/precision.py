"""Which arithmetic trains this model faster on this machine? Measured, where it is not known."""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch

from vitc.config import RunConfig
from vitc.models.zoo import build_model
from vitc.train.device import autocast, machine_settings

Precision = Literal["fp32", "bf16"]


def faster_precision(
    config: RunConfig, device: torch.device, repeats: int = 5
) -> tuple[Precision, str]:
    """("bf16" | "fp32", why): which trains this model faster on this device. Takes about a second.

    A GPU with bf16 units gets bf16 and a CPU without such instructions fp32, unmeasured. On other
    CPUs the answer differs: bf16 products run at twice the rate of fp32 ones on some, at half of it
    on others that also have the instructions.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU computes it") if native else ("fp32", "this GPU lacks bf16")
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return "fp32", f"this {device.type} has no bf16 instructions"
    with torch.random.fork_rng(devices=[]), machine_settings(config.train, device):
        model = build_model(config.model, config.model.num_classes or 10).train()
        images = torch.zeros(_probe_batch(config), config.model.in_chans, *config.model.size)

        def step(precision: str) -> float:
            start = time.perf_counter()
            with autocast(precision, device):
                logits = model(images)
            logits.float().square().sum().backward()
            return time.perf_counter() - start

        for precision in ("fp32", "bf16"):
            step(precision)
        times = [(step("fp32"), step("bf16")) for _ in range(repeats)]
    ratio = statistics.median(fp32 / bf16 for fp32, bf16 in times)
    return "bf16" if ratio > 1 else "fp32", f"a step in bf16 runs at {ratio:.2f}x the rate of fp32"


def _probe_batch(config: RunConfig) -> int:
    """Images enough to fill the cores for some 10 ms, and no more than the run's micro-batch."""
    h, w = config.model.grid
    per_image = config.model.depth * h * w * config.model.embed_dim**2 * 10  # multiply-adds, about
    return max(2, min(config.train.micro, round(4e8 / per_image)))
