"""What does a step spend its time on? With `train.profile`, a few early steps are traced."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from vitc.wording import counted

FIRST, STEPS = 3, 5  # the first steps are not like the others
OPERATIONS = 10
TRACE = "trace.json.gz"


class StepProfile:
    """If `wanted`, traces some steps of a run and writes the trace to its folder."""

    def __init__(self, folder: Path, device: torch.device, wanted: bool) -> None:
        self.file, self.cuda = folder / TRACE, device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        self.profiler = profile(activities=activities) if wanted else None
        self.taken, self.running = 0, False

    def step(self) -> list[str]:
        """After each step; once all are traced, the most expensive operations, a line each."""
        if self.profiler is None:
            return []
        self.taken += 1
        if self.taken == FIRST:
            self.profiler.start()
            self.running = True
        if self.taken != FIRST + STEPS:
            return []
        self.stop()
        self.profiler.export_chrome_trace(str(self.file))
        # Times without those of the operations that one calls, which are counted by themselves.
        key = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        found = sorted(self.profiler.key_averages(), key=lambda e: -getattr(e, key))
        self.profiler = None
        total = sum(getattr(e, key) for e in found) or 1.0
        where = "GPU" if self.cuda else "CPU"
        lines = [
            f"profile of {STEPS} steps: {total / STEPS / 1e3:.1f} ms of {where} time a step; "
            f"trace: {self.file} (https://ui.perfetto.dev or chrome://tracing)"
        ]
        for e in found[:OPERATIONS]:
            time = getattr(e, key)
            share, each = 100 * time / total, time / STEPS / 1e3
            calls = e.count / STEPS
            lines.append(f"  {share:5.1f} %  {each:8.2f} ms  {calls:6.0f} calls  {e.key}")
        return lines

    def stop(self) -> None:
        """Trace no further steps: all are traced, or the run was broken off."""
        if self.running and self.profiler is not None:
            self.profiler.stop()
        self.running = False

    def close(self) -> list[str]:
        """At the run's end: a line if it was too short for a trace."""
        if self.profiler is None:
            return []
        self.stop()
        self.profiler = None
        return [
            f"no trace: train.profile traces steps {FIRST + 1} to {FIRST + STEPS} after a start or "
            f"resume, and the run ended after {counted(self.taken, 'step')}"
        ]
