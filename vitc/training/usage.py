"""What does a run use right now: processors, memory, device, and what is its time spent on?

Written every few seconds to heartbeat.json, for `vitc show RUN` and its live page. Only counters of
the system and of torch are read: no step waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import torch

from vitc.data.loader import TrainLoader
from vitc.errors import ConfigError
from vitc.machine import cores, processor_seconds, status_bytes
from vitc.training.build import Setup
from vitc.training.utilisation import LEAST_SECONDS, model_utilisation, what_limits

BEAT_SECONDS = 5.0  # between two looks, at least


class Spent:
    """Seconds of a run by what they were spent on (`SPENT`), of this process and of those that it
    resumed."""

    def __init__(self) -> None:
        self.until = time.monotonic()  # up to which all is counted
        self.earlier: Mapping[str, float] = {}
        self.parts = {"preparing": 0.0, "evaluation": 0.0, "saving": 0.0, "steps": 0.0}
        self.batches: list[TrainLoader] = []

    def begin(self, entered: float, choosing: float) -> None:
        """The run was entered then, after `choosing` seconds for its settings; 0: it had them."""
        self.until = entered
        if choosing:
            self.parts["choosing"] = choosing

    def lap(self, what: str) -> None:
        """The time since the last lap was spent on this."""
        now = time.monotonic()
        self.parts[what] += now - self.until
        self.until = now

    def opened(self, batches: TrainLoader) -> None:
        """Steps follow, with these batches."""
        self.lap("preparing")
        self.batches.append(batches)

    def here(self) -> dict[str, float]:
        """Of this process. Steps wait for images: that is their loading, and not counted twice."""
        waited = sum(batches.wait_seconds for batches in self.batches)
        steps = max(0.0, self.parts["steps"] - waited)
        return {**self.parts, "steps": steps, "loading": waited}

    def whole(self) -> dict[str, float]:
        """Of the run; those who resume it find it in its checkpoint."""
        here = self.here()
        return {k: here.get(k, 0.0) + self.earlier.get(k, 0.0) for k in {**here, **self.earlier}}


class Usage:
    """What the first process of a run uses, from one look to the next."""

    def __init__(self, setup: Setup, step: int) -> None:
        self.setup, self.first_step = setup, step
        self.at = time.monotonic()
        self.all, self.own = processor_seconds(), time.process_time()
        self.share: float | None = None  # of the matmul rate, of an image a second; 0: unknown

    @property
    def due(self) -> bool:
        return self.setup.procs.first and time.monotonic() - self.at >= BEAT_SECONDS

    def look(
        self, step: int, model: torch.nn.Module, batches: TrainLoader, spent: Spent
    ) -> dict[str, Any]:
        """Averages since the last look, and seconds since the start, by what they were spent on."""
        now, total, own = time.monotonic(), processor_seconds(), time.process_time()
        seconds = now - self.at
        computing = (own - self.own) / seconds
        loading = (total - self.all) / seconds - computing  # processes of the loader
        self.at, self.all, self.own = now, total, own
        spent.lap("steps")
        steps = spent.here()["steps"]
        waited, device = batches.wait_seconds, self.setup.device
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": step,
            "cores": cores(),
            "cores_computing": round(computing, 2),
            "cores_loading": round(max(0.0, loading), 2),
            "memory_bytes": status_bytes("VmRSS"),
            **gpu(device),
            "time_spent": spent.whole(),
            "mfu": self._mfu(step, model, steps),
            "limit": what_limits(waited, waited + steps, batches.workers, cores(), device.type),
        }

    def _mfu(self, step: int, model: torch.nn.Module, seconds: float) -> float | None:
        if seconds < LEAST_SECONDS:
            return None
        if self.share is None:
            self.share = 0.0
            with suppress(ConfigError):  # frozen layers, or a custom model without data
                self.share = model_utilisation(self.setup, model, 1, 1.0)
        images = (step - self.first_step) * self.setup.config.train.batch
        return round(self.share * images / seconds, 4) or None


def gpu(device: torch.device) -> dict[str, Any]:
    """How busy the device is, as a share of the last moments, and its memory; empty on a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    found: dict[str, Any] = {"gpu_memory_bytes": total - free, "gpu_memory_total": total}
    with suppress(Exception):  # without NVIDIA's library for it
        found["gpu_use"] = torch.cuda.utilization(device) / 100
    return found
