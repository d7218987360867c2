"""How long do a model's forward pass, backward pass and whole training step take here?

Two protocols. pycls's (paper section on timing, `pycls/core/benchmark.py`): dummy images, 3 warm-up
iterations, then 30 timed; the forward pass in evaluation (`test_fw`), forward and backward in
training (`train_fw`, `train_bw`), no optimizer. Ours: the step that training runs, with guard,
optimizer and average of the weights, images already on the device. Neither reads data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.models.complexity import complexity
from vitc.models.zoo import model_config
from vitc.resolve import load_config
from vitc.training.build import fresh_state, train_mode
from vitc.training.compiling import blank_step, compiled_steps, trial
from vitc.training.config import TrainConfig
from vitc.training.device import (
    autocast,
    forget_peak_memory,
    machine_settings,
    peak_memory,
    pick_device,
)
from vitc.training.parallel import Processes
from vitc.training.probe import with_precision
from vitc.training.step import NormStatistics, train_step

WARM_UP, TIMED = 3, 30  # pycls's PREC_TIME.WARMUP_ITER and NUM_ITER
IMAGENET_TRAIN = 1_281_167  # images of ImageNet-1k
CLASSES = 1000
MOST_SPREAD = 0.2  # between the quartiles, over the median: more than an idle machine shows


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one iteration over the timed ones."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third."""


@dataclass(frozen=True)
class Bench:
    """One model on one device; times are of one batch, memory is the step's peak."""

    model: str
    device: str
    batch: int
    precision: str
    flops: int
    params: int
    activations: int
    test_fw: Timing
    train_fw: Timing
    train_bw: Timing
    step: Timing
    memory_mib: float | None
    """Of the allocator on a GPU; of the whole process on CPU. None: not known."""
    epoch_minutes: float
    """An ImageNet-1k epoch on this one device, by the whole step."""
    epoch_minutes_pycls: float
    """The same by train_fw + train_bw, as pycls estimates it."""

    @property
    def busy(self) -> str:
        """A warning where the repeats vary so much that something else uses the machine, or ""."""
        t = self.step
        if t.high - t.low <= MOST_SPREAD * t.median:
            return ""
        return (
            f"Warning: the steps of {self.model} vary, half of them from {t.low:.1f} to "
            f"{t.high:.1f} ms: other programs use this machine, so its times cannot be compared. "
            "Run it again when the machine is idle."
        )


def bench(
    config: RunConfig, warm_up: int = WARM_UP, timed: int = TIMED, classes: int = CLASSES
) -> Bench:
    """Time one config's model with a head of so many classes.

    Raises ConfigError: too few iterations, or the batch is too large for the device's memory.
    """
    if warm_up < 0 or timed < 1:
        raise ConfigError(f"{warm_up} warm-up and {timed} timed iterations; at least 1 is timed.")
    device = pick_device(config.train.device)
    config, _ = with_precision(config, device, None)
    try:
        with machine_settings(config.train, device):
            return _bench(config, device, warm_up, timed, classes)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"{config.model.name} with batch {config.train.batch} does not fit into the memory of "
            f"this {device.type}.",
            "Lower --train.batch; times an image are given for any batch.",
        ) from None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _bench(
    config: RunConfig, device: torch.device, warm_up: int, timed: int, classes: int
) -> Bench:
    t = config.train
    forget_peak_memory(device)
    state = fresh_state(config, classes, 1, device)
    model = state.model
    if t.compile == "auto":
        raise ConfigError(
            "train.compile auto is decided for a run of some length; here no run follows.",
            "Give --train.compile true or false.",
        )
    if t.compile:
        works, why = trial(config, None, classes, device)
        if not works:
            raise ConfigError(f"Compiled steps cannot be timed: {why}.")
    compiled = compiled_steps(config, model)
    micro, settings = blank_step(config, classes, device)
    extra = () if micro.drop_path is None else (micro.drop_path,)
    shape = micro.images.shape
    zeros, noise = torch.zeros(shape, device=device), torch.rand(shape, device=device)
    if t.channels_last:
        zeros, noise = (x.contiguous(memory_format=torch.channels_last) for x in (zeros, noise))

    @torch.no_grad()
    def test_fw() -> None:
        with autocast(t.precision, device):
            model(zeros)

    losses: list[torch.Tensor] = []

    def train_fw() -> None:
        with compiled, autocast(t.precision, device):
            logits = model(noise, *extra)
        losses[:] = [torch.nn.functional.cross_entropy(logits.float(), micro.labels)]

    def train_bw() -> None:
        losses.pop().backward()  # type: ignore[no-untyped-call]

    model.eval()
    (eval_forward,) = _time([test_fw], device, warm_up, timed)
    train_mode(model)
    fw, bw = _time([train_fw, train_bw], device, warm_up, timed)
    model.zero_grad(set_to_none=True)

    micros = [micro] * (t.batch // t.micro)
    norms = NormStatistics(model, len(micros), Processes())

    def step() -> None:
        with compiled:
            train_step(state, model, micros, 1e-6, norms, settings)
        if state.ema is not None:
            state.ema.update(model, 1)

    (whole,) = _time([step], device, warm_up, timed)
    memory = peak_memory(device)
    cost = complexity(model, config.model.img_size, config.model.in_chans)
    steps = IMAGENET_TRAIN / t.batch
    return Bench(
        model=config.model.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        batch=t.batch,
        precision=t.precision,
        flops=cost.flops,
        params=cost.params,
        activations=cost.activations,
        test_fw=eval_forward,
        train_fw=fw,
        train_bw=bw,
        step=whole,
        memory_mib=None if memory is None else memory / 2**20,
        epoch_minutes=steps * whole.median / 60e3,
        epoch_minutes_pycls=steps * len(micros) * (fw.median + bw.median) / 60e3,
    )


def _time(
    parts: list[Callable[[], None]], device: torch.device, warm_up: int, timed: int
) -> list[Timing]:
    """Each part of an iteration, timed apart, the device waited for after each."""
    times: list[list[float]] = [[] for _ in parts]
    for i in range(warm_up + timed):
        for part, found in zip(parts, times, strict=True):
            _wait(device)
            start = time.perf_counter()
            part()
            _wait(device)
            if i >= warm_up:
                found.append(1e3 * (time.perf_counter() - start))
    quartiles = [np.percentile(found, (50, 25, 75)).tolist() for found in times]
    return [Timing(*each) for each in quartiles]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def bench_config(model: str, **settings: object) -> RunConfig:
    """What `bench` times of a model: batch 64 and AdamW with an average, unless set otherwise.

    Raises ConfigError.
    """
    base = RunConfig(name="bench", model=model_config(model), train=TrainConfig(batch=64))
    return load_config(base, **settings)
