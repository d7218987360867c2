"""How long does a step of this config take on this machine, and how much memory? Measured."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitc.config import RunConfig, cached_parts, read_config
from vitc.data.cache import training_split
from vitc.data.dataset import DataSet
from vitc.data.loader import Provider, open_eval, open_train
from vitc.data.pixels import Resident
from vitc.data.sources.base import Split
from vitc.machine import computes_bf16, processor_seconds
from vitc.models.cnn import CNN
from vitc.models.config import ViTConfig
from vitc.models.folding import folded
from vitc.training.build import Setup, freeze, fresh_state, initial_model, set_up, train_mode
from vitc.training.cached_features import CachedFeatures, cached_features
from vitc.training.compiling import compiled_steps
from vitc.training.device import (
    autocast,
    forget_peak_memory,
    machine_settings,
    peak_memory,
)
from vitc.training.evaluate import eval_batch, evaluate
from vitc.training.pace import CLOCKS
from vitc.training.parallel import Processes
from vitc.training.space import checkpoint_bytes
from vitc.training.step import NormStatistics, train_step

Precision = Literal["fp32", "bf16"]
MOST_STEPS = 100  # of a probe
CACHED_STEPS = 4  # on whose images features are computed to be kept
PATIENCE = 4  # times as long as asked for, after which a probe is content with fewer steps
EVAL_IMAGES = 64  # that a probe evaluates, at most


@dataclass(frozen=True)
class Probe:
    """What a few real steps cost."""

    step_seconds: float
    """One optimizer step, from reading its images to updating the average of the weights."""
    eval_seconds: float
    """Evaluating one validation image, with reading it; 0 without validation images."""
    memory_bytes: int
    """Peak of the device, or of this process where the device is the CPU; 0: not known."""
    times: tuple[float, ...] = ()
    """Of single steps, the first half of them left out."""
    processor_seconds: float = 0.0
    """Of processor time, of one of these steps with its share of the loader processes."""
    wait_share: float = 0.0
    """Of their time, spent waiting for images."""
    workers: int | None = None
    """Loader processes; None: the training images are resident."""
    unheld_bytes: int = 0
    """Of the images that a run holds and these steps did not."""
    holding_seconds: float = 0.0
    """Decoding, before the first step of a run, all images that it holds."""
    checkpoint_bytes: int = 0
    eval_share: float = 1.0
    """Of the time of evaluating, that processors worked on it."""
    models: int = 2
    """That an evaluation measures: the weights, and their average if one is kept."""


def probe(
    config: RunConfig,
    data: DataSet,
    device: torch.device,
    seconds: float = 1.0,
    evaluates: bool = True,
    steps: int = 2,
) -> Probe | None:
    """Time `config`'s steps and evaluation on some of its images; None: the memory is too small.

    Takes `seconds`, and so many `steps` at least unless they take `PATIENCE` times as long; then
    one or two evaluations of a few images if it `evaluates`. The loader takes part, because its
    processes and the step compete for the cores. Seconds are of `train.clock`; processor time
    counts the loader's processes too. Generators, thread count and every other global setting of
    torch are afterwards as before. Raises BrokenFileError.
    """
    cuda = device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[device] if cuda else []),
        machine_settings(config.train, device),
    ):
        if cuda:
            forget_peak_memory(device)
        try:
            return _measure(config, data, device, seconds, evaluates, steps)
        except torch.OutOfMemoryError:
            return None
        finally:
            if cuda:
                torch.cuda.empty_cache()


def _measure(
    config: RunConfig,
    data: DataSet,
    device: torch.device,
    seconds: float,
    evaluates: bool,
    steps: int,
) -> Probe:
    t = config.train
    clock = CLOCKS[t.clock]
    if t.clock == "processor" and config.data.cache_side is not None:
        # The loader's processes decode images into the cache now, once, and not in later epochs.
        clock = time.process_time
    setup = set_up(config, data, device, Processes())
    plan, settings = setup.plan, setup.settings
    state = fresh_state(config, len(data.classes), setup.steps_per_epoch, device)
    model = state.model
    compiled = compiled_steps(config, model)
    train_mode(model)
    norms = NormStatistics(model, plan.micros_here, settings.procs)
    lr = config.optim.peak_lr(t.batch) / 100

    whole, _ = training_split(data, config.data, config.model.in_chans)
    full = {**data.splits, "train": whole}
    splits = {}  # images enough to measure with, evenly spread over those of each split
    most_train = (CACHED_STEPS if t.cache_features else MOST_STEPS) * t.batch
    for name, most in (("train", most_train), ("val", EVAL_IMAGES)):
        if name in full:
            n = len(full[name])
            places = np.linspace(0, n - 1, min(n, most)).astype(np.int64)
            splits[name] = full[name].take(places)
    data = dataclasses.replace(data, splits=splits)
    times: list[float] = []
    waits: list[float] = []
    busy: list[float] = []
    before = clock()
    cached = cached_features(dataclasses.replace(setup, data=data), model)
    train_mode(model)
    with open_train(data, config.data, plan, device, 0, MOST_STEPS, cached) as batches:
        unheld = [_unheld(batches.provider, whole, clock() - before)]
        workers, begun = batches.workers, processor_seconds()
        before = clock()
        for micros in batches:
            with compiled:
                outcome = train_step(state, model, micros, lr, norms, settings)
            state.step = min(state.step + 1, setup.steps)
            if state.ema is not None:
                state.ema.update(model, state.step)
            outcome["loss"].item()  # waits until the work is done
            times.append(clock() - before)
            waits.append(batches.wait_seconds - sum(waits))
            busy.append(processor_seconds())
            before = clock()
            timed = sum(times[1:])  # the first step is not like the others
            if timed > seconds and (len(times) >= steps or timed > PATIENCE * seconds):
                break
    first = (len(times) + 1) // 2 if len(times) > 1 else 0  # batches made ahead are used up
    steady = times[first:]

    took, eval_share = 0.0, 1.0
    if evaluates and "val" in data.splits:
        took, eval_share, held = _evaluation(setup, data, model, full["val"], clock, seconds)
        unheld.append(held)
    return Probe(
        step_seconds=sum(steady) / len(steady),
        eval_seconds=took,
        memory_bytes=peak_memory(device) or 0,
        times=tuple(steady),
        processor_seconds=(busy[-1] - (busy[first - 1] if first else begun)) / len(steady),
        wait_share=min(1.0, sum(waits[first:]) / max(sum(steady), 1e-9)),
        workers=workers,
        unheld_bytes=sum(size for size, _ in unheld),
        holding_seconds=sum(decoding for _, decoding in unheld),
        eval_share=eval_share,
        models=1 if state.ema is None else 2,
        checkpoint_bytes=checkpoint_bytes(model, config.optim, state.ema is not None),
    )


def _evaluation(
    setup: Setup,
    data: DataSet,
    model: nn.Module,
    whole: Split,
    clock: Callable[[], float],
    seconds: float,
) -> tuple[float, float, tuple[int, float]]:
    """(Seconds of an image of `data`'s validation split, share that processors worked, `_unheld` of
    the whole split)."""
    config, before = setup.config, clock()
    images = open_eval(
        data.splits["val"],
        data,
        config.data,
        setup.plan,
        setup.device,
        eval_batch(config, setup.device),
        often=True,
    )
    unheld = _unheld(images.provider, whole, clock() - before)
    for _ in range(2):  # the first time is a little slow: a second one where it is cheap
        before, worked = clock(), processor_seconds()
        evaluate(model, images, setup.settings)
        took = clock() - before
        # A clock of processor time moves in hundredths of a second.
        share = (processor_seconds() - worked) / took if took else 1.0
        if took > seconds / 3:
            break
    return took / sum(map(len, images.batches)), share, unheld  # padding included


def _unheld(provider: Provider, whole: Split, seconds: float) -> tuple[int, float]:
    """Bytes and seconds that holding the whole split takes beyond its images that are held here;
    those took `seconds`."""
    if not isinstance(provider, Resident):
        return 0, 0.0
    held = len(provider.images)
    more = len(whole) - held
    computed = whole.pixels is None or isinstance(provider, CachedFeatures)
    decoding = seconds / held * len(whole) if computed else 0.0
    return more * provider.images[0].nbytes, decoding


def faster_precision(
    config: RunConfig, device: torch.device, repeats: int = 5
) -> tuple[Precision, str]:
    """("bf16" | "fp32", why): which trains this model faster on this device. Takes about a second.

    A GPU with bf16 units gets bf16 and a CPU without such instructions fp32, unmeasured. On other
    CPUs the answer differs: bf16 products run at twice the rate of fp32 ones on some, at half of it
    on others that also have the instructions.
    """
    if not computes_bf16(device):
        return "fp32", f"this {device.type} has no bf16 instructions"
    if device.type == "cuda":
        return "bf16", "this GPU computes it"
    seconds = _step_seconds(config, device, ("fp32", "bf16"), (False,), repeats)
    ratio = statistics.median(
        fp32 / bf16
        for fp32, bf16 in zip(seconds["fp32", False], seconds["bf16", False], strict=True)
    )
    return "bf16" if ratio > 1 else "fp32", f"a step in bf16 runs at {ratio:.2f}x the rate of fp32"


def faster_channels_last(config: RunConfig, device: torch.device) -> bool:
    """Whether a step in the config's precision is faster with train.channels_last. Measured."""
    precision = config.train.precision
    seconds = _step_seconds(config, device, (precision,), (False, True), 5)
    return min(seconds[precision, True]) < min(seconds[precision, False])


def _step_seconds(
    config: RunConfig,
    device: torch.device,
    precisions: Sequence[str],
    layouts: Sequence[bool],
    repeats: int,
) -> dict[tuple[str, bool], list[float]]:
    """Seconds of forward and backward passes by (precision, channels last), taken in turns: of
    `repeats`, or, where they are slow, as many as a second allows, but two or more."""
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        machine_settings(config.train, device),
    ):
        model = initial_model(config, config.model.num_classes or 10).to(device).train()
        batch = min(config.train.micro, 8)
        if isinstance(config.model, ViTConfig) and config.model.grid is not None:
            # Enough to fill the cores for some 10 ms.
            h, w = config.model.grid
            multiply_adds = config.model.depth * h * w * config.model.embed_dim**2 * 10  # about
            batch = max(2, min(config.train.micro, round(4e8 / multiply_adds)))
        images = torch.zeros(batch, config.model.in_chans, *config.model.size, device=device)
        forms = {False: torch.contiguous_format, True: torch.channels_last}
        seconds: dict[tuple[str, bool], list[float]] = {}
        began = time.perf_counter()
        for repeat in range(repeats + 1):  # the first is not like the others
            if repeat > 2 and time.perf_counter() - began > 1:
                break
            for last in layouts:
                model = model.to(memory_format=forms[last])  # type: ignore[call-overload]
                for precision in precisions:
                    start = time.perf_counter()
                    with autocast(precision, device):
                        logits = model(images.contiguous(memory_format=forms[last]))
                    logits.float().square().sum().backward()
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    if repeat:
                        took = time.perf_counter() - start
                        seconds.setdefault((precision, last), []).append(took)
    return seconds


Answers = Callable[[Tensor], Tensor]


class ImageSeconds(NamedTuple):
    """What an image costs, without reading it, by the clock of the run."""

    features: float
    """A forward pass in the faster precision."""
    evaluation: float
    """A forward pass in the run's precision."""
    steps: tuple[float, ...]
    """A forward and backward pass, for each of the ways to freeze; inf: not timed."""
    cached: float = math.inf
    """The same for the last of them, on the features that its first layers give."""
    feature_bytes: int = 0
    """What these take."""


def image_seconds(
    config: RunConfig,
    device: torch.device,
    frozen: Sequence[tuple[str, ...]],
    threads: int,
    most: float = math.inf,
) -> ImageSeconds:
    """Measured on images without content, in a few seconds.

    `frozen`: values of train.freeze, each cheaper than the one before it. They are timed from the
    last to the first, until a step takes more than `most` seconds an image.
    """
    train = dataclasses.replace(config.train, threads=threads if device.type == "cpu" else None)
    clock, batch = CLOCKS[train.clock], 8 if device.type == "cpu" else 64
    last = torch.channels_last if train.channels_last else torch.contiguous_format
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        machine_settings(train, device),
    ):
        model = initial_model(config, config.model.num_classes or 10).to(device, memory_format=last)  # type: ignore[call-overload]
        images = torch.zeros(batch, config.model.in_chans, *config.model.size, device=device)
        images = images.contiguous(memory_format=last)

        def seconds(precision: str, images: Tensor, answers: Answers, grad: bool = False) -> float:
            times = []
            for _ in range(2):  # the first is not like the others
                start = clock()
                with torch.set_grad_enabled(grad), autocast(precision, device):
                    logits = answers(images)
                if grad:
                    logits.float().square().sum().backward()  # type: ignore[no-untyped-call]
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(clock() - start)
            return times[-1] / batch

        def freeze_only(parts: tuple[str, ...]) -> None:
            model.requires_grad_(True)
            freeze(model, parts)
            train_mode(model)

        model.eval()
        faster = "bf16" if computes_bf16(device) else train.precision
        features = seconds(faster, images, folded(model))  # as they are computed
        evaluation = seconds(train.precision, images, model)
        steps = [math.inf] * len(frozen)
        for n in reversed(range(len(frozen))):
            freeze_only(frozen[n])
            steps[n] = seconds(train.precision, images, model, True)
            if steps[n] > most:
                break
        cached, feature_bytes = math.inf, 0
        through = cached_parts(config.model, frozen[-1])
        if through and isinstance(model, CNN):
            freeze_only(frozen[-1])
            with torch.no_grad():
                kept = model.forward_to(images, through)
            rest = functools.partial(model.forward_from, parts=through)
            cached = seconds(train.precision, kept, rest, True)
            feature_bytes = kept[0].numel() * (2 if faster == "bf16" else 4)
    return ImageSeconds(features, evaluation, tuple(steps), cached, feature_bytes)


def with_precision(
    config: RunConfig, device: torch.device, begun: Path | None
) -> tuple[RunConfig, list[str]]:
    """The config with train.precision "auto" decided, and why; a run that has begun keeps its."""
    if config.train.precision != "auto":
        return config, []
    if begun is not None:
        precision, why = read_config(begun).train.precision, "the run began with it"
    else:
        precision, why = faster_precision(config, device)
    train = dataclasses.replace(config.train, precision=precision)
    return dataclasses.replace(config, train=train), [f"precision {precision}: {why}"]
