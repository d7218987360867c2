"""Do a run's steps run compiled: which parts of the model, does it work here, does it pay?"""

from __future__ import annotations

import dataclasses
import statistics
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitc.config import RunConfig, read_config
from vitc.data.augment.mixing import Mix
from vitc.data.dataset import DataSet
from vitc.data.loader import MicroBatch
from vitc.models.config import ViTConfig
from vitc.models.vit import VisionTransformer
from vitc.training.build import fresh_state, train_mode
from vitc.training.pace import CLOCKS
from vitc.training.parallel import Processes
from vitc.training.step import StepSettings, micro_loss
from vitc.wording import duration, short

LEAST_SECONDS = 1800.0  # of steps: a trial takes up to a minute, and its answer may be no
REPEATS = 5


def parts(model: nn.Module) -> list[nn.Module]:
    """What is compiled: the stem and each block of a ViT, of which equal ones share what is
    compiled for the first; any other model as a whole."""
    return [model.stem, *model.blocks] if isinstance(model, VisionTransformer) else [model]


class CompiledParts:
    """A context in which the parts of a model run compiled, for shapes that do not change.

    Outside of it they run as always: an evaluation or a measurement, whose batches and modes are
    others, would wait for a compilation of its own. The model stays what it is, without a wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parts = [(part, torch.compile(part.forward, dynamic=False)) for part in parts(model)]

    def __enter__(self) -> None:
        for part, forward in self.parts:
            part.forward = forward

    def __exit__(self, *_: object) -> None:
        for part, _forward in self.parts:
            del part.forward  # its class's method shows again


def compiled_steps(config: RunConfig, model: nn.Module) -> AbstractContextManager[None]:
    """The context of a training step of this config, for one after the other."""
    return CompiledParts(model) if config.train.compile is True else nullcontext()


def with_compile(
    config: RunConfig, data: DataSet, device: torch.device, begun: Path | None, procs: Processes
) -> tuple[RunConfig, list[str]]:
    """The config with train.compile true or false, in all processes as in the first, and why.

    auto is decided by a trial, and a run that has begun keeps what was. Where compiling fails, the
    steps run uncompiled.
    """
    t = config.train
    if not t.compile:
        return config, []

    def decide() -> tuple[bool, str]:
        if t.compile == "auto" and begun is not None and not read_config(begun).train.compile:
            return False, "compile false: the run began with it"
        micros = t.epochs * len(data.splits["train"]) / t.micro / procs.world
        asked = t.compile == "auto" and begun is None
        compiles, why = trial(config, micros if asked else None, len(data.classes), device)
        if begun is not None and not compiles:
            why += "; not bit-exact from here"
        return compiles, why

    compiles, why = procs.follow(decide)
    train = dataclasses.replace(t, compile=compiles)
    return dataclasses.replace(config, train=train), [f"compile {str(compiles).lower()}: {why}"]


def trial(
    config: RunConfig, passes: float | None, classes: int, device: torch.device
) -> tuple[bool, str]:
    """Whether steps run compiled, and why: where that works (`passes` None), or where it saves time
    in so many forward and backward passes.

    It takes the time of a compilation, which later steps of this process do without.
    """
    t = config.train
    clock = CLOCKS[t.clock]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = fresh_state(config, classes, 1, device).model
        train_mode(model)
        micro, settings = blank_step(config, classes, device)

        def seconds(context: AbstractContextManager[None]) -> float:
            start = clock()
            with context:
                micro_loss(model, micro, settings).backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return clock() - start

        planned = 0.0
        if passes is not None:
            single = min(seconds(nullcontext()) for _ in range(2))  # the first is not like others
            planned = t.budget_seconds or passes * single
            if planned < LEAST_SECONDS:
                return False, f"it does not pay in {duration(planned)} of steps"
        torch.compiler.reset()  # it compiles a function for eight shapes or models at most
        try:
            compiled = CompiledParts(model)
            compiling = seconds(compiled)
        except Exception as error:
            return False, f"it fails here ({_reason(error)})"
        if passes is None:
            return True, f"compiling took {duration(compiling)}"
        pairs = [(seconds(compiled), seconds(nullcontext())) for _ in range(REPEATS)]
    ratio = statistics.median(after / before for after, before in pairs)
    pays = (1 - ratio) * planned > compiling
    return pays, (
        f"compiled steps take {ratio:.2f} of the time of others, which is {duration(planned)} in "
        f"all, and compiling takes {duration(compiling)}"
    )


def _reason(error: BaseException) -> str:
    """The first line of what went wrong below torch's own wrappers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return short(lines[0] if lines else type(error).__name__, 120)


def blank_step(
    config: RunConfig, classes: int, device: torch.device
) -> tuple[MicroBatch, StepSettings]:
    """A micro-batch of noise that is not augmented, and the settings of steps with it."""
    t, channels = config.train, config.model.in_chans
    drop = None  # a ViT with drop-path takes its factors as an argument: here nothing is dropped
    if isinstance(config.model, ViTConfig) and config.model.drop_path_rate:
        drop = torch.ones(2 * config.model.depth, t.micro, device=device)
    shape = (t.micro, channels, *config.model.size)
    micro = MicroBatch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
        labels=torch.arange(t.micro, device=device) % classes,
        flip=torch.zeros(t.micro, dtype=torch.bool, device=device),
        lighting=None,
        erased=None,
        mix=Mix("none", 1.0, (0, 0, 0, 0), np.arange(t.micro)),
        drop_path=drop,
        skipped=(),
    )
    mean, std = (0.5,) * channels, (0.25,) * channels
    return micro, StepSettings(config, device, Processes(), mean, std, classes)
