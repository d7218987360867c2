"""Does a population train faster here than its members one after the other? Measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

import torch

from vitc.config import RunConfig, load_config
from vitc.data.sources import DataSet, open_data
from vitc.errors import ConfigError
from vitc.train.build import batch_plan, fresh_state, step_settings
from vitc.train.device import Processes, machine_settings
from vitc.train.population import held_images, population_problems, unbatched
from vitc.train.probe import MOST_STEPS, probe
from vitc.train.stack import Stack
from vitc.train.stack_batches import StackedBatches

WORTH = 1.1  # times as fast, from which on a population is used


def population_pays(
    config: RunConfig,
    members: int,
    device: torch.device,
    *,
    beside: int = 1,
    seconds: float = 1.0,
) -> tuple[bool, str]:
    """Whether `members` runs like `config` are better trained as one population, and why.

    Times a few real steps both ways, at least `seconds` each and never compiled; members have seeds
    of their own, so that each has its own batches. `beside` runs would else go side by side, and
    are counted as if none slowed another, in favour of single runs. Runs that cannot be a
    population, or do not fit the memory, do not pay. Raises DataError, ConfigError where the images
    cannot be opened.
    """
    problems = population_problems([config])
    if problems:
        return False, problems[0]
    if members < 2:
        return False, "there is one run alone"
    data = open_data(config.data, config.model.in_chans)
    alone = probe(config, data, device, seconds)
    if alone is None:
        return False, "not even one run fits the memory"
    seed = config.train.seed
    configs = [load_config(config, **{"train.seed": seed + i}) for i in range(members)]
    try:
        together = stacked_step_seconds(configs, data, device, seconds)
    except ConfigError as error:  # the images cannot be held
        return False, error.message
    except torch.OutOfMemoryError:
        return False, f"{members} members do not fit the memory of {device.type}"
    except RuntimeError as error:
        return False, unbatched(config, error)
    finally:
        free_memory(device)
    single = members * alone.step_seconds / beside
    ratio = single / together
    return ratio >= WORTH, (
        f"a step of {members} runs takes {1e3 * together:.1f} ms together and {1e3 * single:.1f} "
        f"ms {f'{beside} at a time' if beside > 1 else 'one after the other'}: {ratio:.2f}x"
        + (", both uncompiled" if config.train.compile else "")
    )


def free_memory(device: torch.device) -> None:
    """Give back what torch's allocator keeps: single runs may follow, in other processes."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def stacked_step_seconds(
    configs: Sequence[RunConfig], data: DataSet, device: torch.device, seconds: float = 1.0
) -> float:
    """Mean seconds of a population's step, with making its batches; after two that do not count.

    Torch's generators and global settings are afterwards as before. Raises ConfigError: the images
    cannot be held; torch.OutOfMemoryError.
    """
    first = configs[0]
    cuda = device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[device] if cuda else []),
        machine_settings(first.train, device),
    ):
        held, epoch = held_images(first, data, device)
        classes = len(data.classes)
        states = [fresh_state(c, classes, epoch, torch.device("cpu")) for c in configs]
        precision = first.train.precision
        stack = Stack(states, [c.optim for c in configs], device, precision=precision)
        settings = step_settings(first, device, Processes(), data.mean, data.std, classes)
        plans = [batch_plan(c, Processes()) for c in configs]
        total = min(MOST_STEPS, epoch * first.train.epochs)
        batches = StackedBatches(held, first.data, plans, settings, range(total))
        lrs = [c.optim.peak_lr(c.train.batch) / 100 for c in configs]
        times: list[float] = []
        last: torch.Tensor | None = None
        before = time.perf_counter()
        for micros in batches:
            outcome = stack.step(micros, lrs)
            stack.update_average([0.1] * len(configs))
            if last is not None:
                last[0, 0].item()  # one step behind: the host draws while the device works
            last = outcome
            times.append(time.perf_counter() - before)
            before = time.perf_counter()
            if sum(times[2:]) > seconds:
                break
    steady = times[2:] or times[-1:]
    return sum(steady) / len(steady)
