"""How long does a step of this config take on this machine, and how much memory? Measured."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from vitc.config import RunConfig
from vitc.data.loader import MicroBatch
from vitc.data.sampling import Mix, steps_per_epoch
from vitc.data.sources import DataSet
from vitc.optim.ema import build_ema
from vitc.optim.optimizers import build_optimizer
from vitc.train.device import Processes, autocast, machine_settings
from vitc.train.loop import initial_model
from vitc.train.state import TrainState
from vitc.train.step import NormStatistics, StepSettings, train_step

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Probe:
    """What a few real steps cost."""

    step_seconds: float
    """One optimizer step, without reading its images."""
    forward_seconds: float
    """Evaluating one image."""
    memory_bytes: int
    """Peak of the device, or of this process where the device is the CPU; 0: not known."""


def probe(
    config: RunConfig, data: DataSet, device: torch.device, seconds: float = 0.8
) -> Probe | None:
    """Time `config`'s step and evaluation on made-up images; None where memory does not suffice.

    Takes about twice `seconds`, and at least two steps. Generators, thread count and every other
    global setting of torch are afterwards as before.
    """
    cuda = device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[device] if cuda else []),
        machine_settings(config.train, device),
    ):
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            step, forward = _measure(config, data, device, seconds)
            memory = torch.cuda.max_memory_allocated(device) if cuda else _process_peak()
        except torch.OutOfMemoryError:
            return None
        finally:
            if cuda:
                torch.cuda.empty_cache()
    return Probe(step, forward, memory)


def _measure(
    config: RunConfig, data: DataSet, device: torch.device, seconds: float
) -> tuple[float, float]:
    t = config.train
    model = initial_model(config, len(data.classes)).to(device)
    if t.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if t.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    steps = steps_per_epoch(len(data.splits["train"]), t.batch)
    ema = build_ema(
        model,
        config.optim.ema,
        config.optim.schedule,
        epochs=t.epochs,
        steps_per_epoch=steps,
        batch=t.batch,
    )
    state = TrainState(model, build_optimizer(config.optim, model), ema)
    settings = StepSettings(
        device=device,
        procs=Processes(),
        precision=t.precision,
        channels_last=t.channels_last,
        mean=data.mean,
        std=data.std,
        num_classes=len(data.classes),
        label_smoothing=config.data.augment.label_smoothing,
        clip_norm=config.optim.clip_norm,
    )
    micros = [_made_up(config, len(data.classes), device)] * (t.batch // t.micro)
    norms = NormStatistics(model, len(micros), settings.procs)
    lr = config.optim.peak_lr(t.batch) / 100

    def step() -> None:
        loss, _ = train_step(state, model, micros, lr, norms, settings)
        state.step = state.step % (steps * t.epochs) + 1  # no run is longer than its schedule
        if state.ema is not None:
            state.ema.update(model, state.step)
        loss.item()  # the work is done when this is here

    model.train()
    step_seconds = _time(step, seconds)
    return step_seconds, _time(_forward(model, config, settings), seconds / 3) / t.micro


def _made_up(config: RunConfig, num_classes: int, device: torch.device) -> MicroBatch:
    """A micro-batch of stripes, mixed and dropped as the config's own would be."""
    b, m = config.train.micro, config.model
    c, (h, w) = m.in_chans, m.size
    stripes = (torch.arange(h * w, device=device) % 251).to(torch.uint8).view(h, w)
    augment = config.data.augment
    kind = "mixup" if augment.mixup_alpha else "cutmix" if augment.cutmix_alpha else "none"
    return MicroBatch(
        images=stripes.repeat(b, c, 1, 1),
        labels=torch.arange(b, device=device) % num_classes,
        flip=torch.arange(b, device=device) % 2 == 0,
        mix=Mix(kind, 0.5, (0, 0, h // 2, w), np.roll(np.arange(b), 1)),  # type: ignore[arg-type]
        drop_path=torch.ones(2 * m.depth, b, device=device) if m.drop_path_rate else None,
        skipped=(),
    )


def _forward(model: nn.Module, config: RunConfig, s: StepSettings) -> Callable[[], None]:
    shape = config.train.micro, config.model.in_chans, *config.model.size
    images = torch.zeros(shape, device=s.device)
    if s.channels_last:
        images = images.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        model.eval()
        with autocast(s.precision, s.device):
            model(images).sum().item()

    return forward


def _time(work: Callable[[], None], seconds: float) -> float:
    """Median duration of `work`, done for `seconds` or once after a first time unmeasured."""
    work()
    times: list[float] = []
    start = time.perf_counter()
    while not times or (time.perf_counter() - start < seconds and len(times) < 50):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def _process_peak() -> int:
    """Most memory this process ever held, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
        model = initial_model(config, config.model.num_classes or 10).train()
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
