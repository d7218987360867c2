"""What does a run take: time, memory and disk? Estimated from a few of its real steps here."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from vitc.config import RunConfig
from vitc.data.cache import cache_bytes, decoding_seconds, training_split
from vitc.data.dataset import DataSet
from vitc.data.pixels import device_memory
from vitc.data.sampling import steps_per_epoch
from vitc.data.sources import SOURCES
from vitc.errors import ConfigError
from vitc.machine import cores
from vitc.training import auto_rules as rules
from vitc.training.device import describe
from vitc.training.guard import KEEP_GOOD
from vitc.training.pace import CLOCKS, Pace
from vitc.training.probe import Probe, probe
from vitc.training.utilisation import loader_limits, what_limits

PROBES, PROBE_SECONDS, PROBE_STEPS = 2, 2.0, 4  # half of the steps are counted
SEGMENTS = 4  # of a probe's steps, whose means show how the rate varies
LAUNCH_SECONDS = 2.0  # importing torch
OWN_BYTES = 40_000_000  # of a run's process, besides its steps: logs, checkpoints, what it imports
BUSY_SHARE = 0.8  # of the time that a thread computes, where nothing else uses the machine
LINE_BYTES = {"train": 190, "eval": 400}  # of metrics.jsonl, about


class Range(NamedTuple):
    """An estimate with its 95 % interval; bounds are None where nothing is known of them."""

    value: float
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float, more: float = 0.0) -> Range:
        """Times `factor`, and `more`."""
        low, high = (None if b is None else b * factor + more for b in (self.low, self.high))
        return Range(self.value * factor + more, low, high)


@dataclass(frozen=True)
class RunCost:
    """What a run takes. None: not known, and `notes` has the reason."""

    name: str
    model: str
    device: str
    measured: str
    """Where the numbers come from."""
    images: int | None
    epochs: float
    """That are left."""
    steps: int | None
    epoch_seconds: Range
    """With an epoch's share of the evaluations."""
    seconds: Range
    """From the command to its end; of processor time under `train.clock processor`."""
    processor_seconds: float | None = None
    """Of processor time, of all threads and loader processes: what other programs do not change."""
    memory_bytes: int | None = None
    """Peak of all processes on a CPU, of the allocator on a GPU."""
    process_bytes: int | None = None
    """The same without loader processes: `peak_memory_bytes` of summary.json."""
    memory_there: int | None = None
    """Of the device, or of the host."""
    checkpoint_bytes: int | None = None
    """Most that checkpoints take at one time."""
    cache_bytes: int = 0
    """Pixels kept in the cache folder, where they are not there yet."""
    metrics_bytes: int = 0
    free_disk: int | None = None
    limit: Literal["loader", "compute", "memory"] | None = None
    advice: str = ""
    """What limits the rate or the size, and what to change."""
    expected: str = ""
    """The accuracy that is known of this recipe."""
    notes: tuple[str, ...] = ()

    @property
    def disk_bytes(self) -> int | None:
        """Of checkpoints, cache and metrics together."""
        if self.checkpoint_bytes is None:
            return None
        return self.checkpoint_bytes + self.cache_bytes + self.metrics_bytes

    def price(self, per_hour: float) -> Range:
        """Of the whole run, in the unit of the price of an hour."""
        return self.seconds.scaled(per_hour / 3600)


class Around(NamedTuple):
    """What happens around a run: of its command, but not of its steps."""

    begun: int = 0
    """Steps that are done: it is resumed."""
    kept: Mapping[str, Any] = {}
    """What its checkpoint holds besides the state."""
    choosing: float = 0.0
    """Seconds in which its settings are chosen."""
    opening: float = 0.0
    """Seconds in which its images are found."""
    cached: bool = True
    """Whether the images that it keeps decoded are in the cache folder, if it keeps any."""
    out: Path = Path()
    """A folder on the disk that it writes to."""


def estimate(config: RunConfig, data: DataSet, device: torch.device, around: Around) -> RunCost:
    """What `config` takes on `device`.

    Takes a few seconds: real steps are timed, four in each of two probes where that takes less than
    eight seconds. Nothing is
    written but pixels into the cache folder. Raises ConfigError: it does not fit the memory.
    """
    probes = [_probed(config, data, device) for _ in range(PROBES)]
    cost = max(probes, key=lambda p: p.memory_bytes)
    machine = rules.Machine(device.type, describe(device), cores(), device_memory(device))
    t, n = config.train, len(data.splits["train"])
    each = steps_per_epoch(n, t.batch)
    pace = Pace.of(t, each * t.epochs, CLOCKS[t.clock](), 0)
    pace.resume(around.kept, around.begun)
    steps = max(0, pace.left)
    step = step_seconds([p.times or (p.step_seconds,) for p in probes])
    saved_on_the_way = steps > (t.save_every_steps or math.inf)
    saved_on_the_way |= steps * step.value > t.save_every_seconds
    memory, process = _memory(device, cost, copied=saved_on_the_way)
    limit, advice = _limit(cost, machine, memory)
    share = statistics.fmean(p.processor_seconds for p in probes) / step.value
    busy = min(1.0, share) if device.type == "cpu" and limit != "loader" else 1.0

    evaluation = rules.evaluation_seconds(config, len(data.splits.get("val", ())), cost)
    each_epoch = each * step.value + evaluation / t.eval_every_epochs
    work = _preparing(config, data, probes, around)
    run = rules.run_seconds(steps / each, t.eval_every_epochs, each * step.value, evaluation)
    work += run - rules.START_SECONDS
    # Other programs may slow the evaluations of the probe more or less than its steps.
    evaluating = run - rules.START_SECONDS - steps * step.value
    worked = share * (work - evaluating) + cost.eval_share * evaluating
    fixed = LAUNCH_SECONDS + _page_seconds(config, data, cost)
    if t.budget_seconds is not None:  # the run adapts its length to it
        work = max(0.0, t.budget_seconds - pace.used) if steps else 0.0
        seconds = Range(work, work, work).scaled(1, around.choosing + fixed / busy)
        worked = share * work
    else:
        fixed += rules.START_SECONDS
        seconds = step.scaled(work / step.value, around.choosing + fixed / busy)
    kept = t.keep_checkpoints + (KEEP_GOOD if t.on_divergence == "rollback" else 0)
    saves = 1 + int(seconds.value / max(t.save_every_seconds, 1e-9))
    if t.save_every_steps is not None:
        saves = 1 + steps // t.save_every_steps
    lines = {"train": steps / t.log_every_steps, "eval": steps / each / t.eval_every_epochs}
    return RunCost(
        name=config.name,
        model=config.model.name,
        device=machine.name,
        measured="probes on this machine, under its load of now",
        images=n,
        epochs=steps / each,
        steps=steps,
        epoch_seconds=step.scaled(each_epoch / step.value),
        seconds=seconds,
        processor_seconds=worked + share * around.choosing + fixed,
        memory_bytes=memory,
        process_bytes=process,
        memory_there=machine.memory_bytes,
        checkpoint_bytes=min(kept + 1, saves) * cost.checkpoint_bytes,
        cache_bytes=0 if around.cached else _kept_bytes(config, data),
        metrics_bytes=round(sum(count * LINE_BYTES[kind] for kind, count in lines.items())),
        free_disk=shutil.disk_usage(around.out).free,
        limit=limit,
        advice=advice,
        notes=tuple(_notes(config, step, busy, around.begun)),
    )


def _memory(device: torch.device, cost: Probe, *, copied: bool) -> tuple[int | None, int | None]:
    """Bytes of all processes, and of the one that trains; None: not known.

    `copied`: steps follow a checkpoint, whose copy of the state stays for the next one.
    """
    if not cost.memory_bytes:
        return None, None
    own = OWN_BYTES + copied * cost.checkpoint_bytes if device.type == "cpu" else 0
    alone = cost.memory_bytes + cost.unheld_bytes + own
    return rules.memory_bytes(device.type, cost) + own, alone


def _page_seconds(config: RunConfig, data: DataSet, cost: Probe) -> float:
    """The run page, where one follows the run."""
    val = len(data.splits.get("val", ()))
    written = SOURCES[config.data.source].of_user and 0 < val <= rules.MOST_REPORTED
    return rules.page_seconds(val, cost) if written else 0.0


def _preparing(config: RunConfig, data: DataSet, probes: Sequence[Probe], around: Around) -> float:
    """Seconds before the first step: finding images, decoding those that are held or kept, and
    fitting the head."""
    n, val = (len(data.splits.get(split, ())) for split in ("train", "val"))
    seconds = around.opening + max(p.holding_seconds for p in probes)
    if not around.cached:
        train = data.splits["train"]
        seconds += len(train) * decoding_seconds(train, config.data, config.model.in_chans)
    if config.init.probe_images and not around.begun:
        seconds += (min(n, config.init.probe_images) + 2 * val) * probes[-1].eval_seconds
    return seconds


def _probed(config: RunConfig, data: DataSet, device: torch.device) -> Probe:
    found = probe(config, data, device, PROBE_SECONDS, steps=PROBE_STEPS)
    if found is None:
        raise ConfigError(
            f"{config.model.name} with micro-batches of {config.train.micro} images does not fit "
            f"into the memory of {describe(device)}.",
            "Use a smaller --train.micro_batch, --model.img_size or --model, or "
            "--train.grad_checkpointing.",
        )
    return found


def step_seconds(probes: Sequence[Sequence[float]]) -> Range:
    """Seconds of a step from those of each probe's; the interval is for the mean of a later
    segment as long as theirs: a run meets the same variation of the machine (Student's t)."""
    from scipy.stats import t

    means = [
        float(np.mean(part))
        for times in probes
        for part in np.array_split(np.asarray(times), min(SEGMENTS, len(times)))
    ]
    value = statistics.fmean(time for times in probes for time in times)
    if len(means) < 3:
        return Range(value)
    spread = float(t.ppf(0.975, len(means) - 1)) * statistics.stdev(means)
    spread *= math.sqrt(1 + 1 / len(means))
    return Range(value, max(0.0, value - spread), value + spread)


def _limit(
    cost: Probe, machine: rules.Machine, memory: int | None
) -> tuple[Literal["loader", "compute", "memory"], str]:
    line = what_limits(cost.wait_share, 1.0, cost.workers, machine.cores, machine.kind)
    if tight := rules.tight_memory(memory or 0, machine):
        return "memory", f"memory is short: {tight} Then {line}"
    return "loader" if loader_limits(cost.wait_share, cost.workers) else "compute", line


def _kept_bytes(config: RunConfig, data: DataSet) -> int:
    side, split = config.data.cache_side, data.splits["train"]
    if side is None or split.pixels is not None:
        return 0
    return cache_bytes(len(split), config.model.in_chans, side)


def is_cached(config: RunConfig, data: DataSet) -> bool:
    """Whether pixels that the run keeps decoded are in the cache folder, if it keeps any."""
    kept = _kept_bytes(config, data)
    return not kept or bool(training_split(data, config.data, config.model.in_chans, False)[1])


def _notes(config: RunConfig, step: Range, busy: float, begun: int) -> list[str]:
    found = []
    if busy < BUSY_SHARE:
        found.append(
            f"the processor worked on these steps {100 * busy:.0f} % of the time: other programs "
            f"use this machine, without which the run takes about {busy:.2g} of the time"
        )
    if step.low is None:
        found.append("no interval: a probe has too few steps of this length to see how they vary")
    if config.train.patience is not None:
        found.append("train.patience may end it earlier")
    if config.train.budget_seconds is not None:
        epochs = "those left at its pace so far" if begun else "those planned"
        found.append(f"train.budget_seconds decides its length: the epochs are {epochs}")
    if config.train.clock == "processor":
        found.append("seconds are of processor time (train.clock)")
    return found
