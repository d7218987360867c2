"""What is decided before a run's first step, once, and the same in all its processes?"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitc.config import RunConfig, flat_values, read_config, to_dict
from vitc.data.dataset import DataSet
from vitc.data.identity import changes
from vitc.data.sampling import shared_micro
from vitc.errors import CheckpointError, ConfigError, DataError
from vitc.machine import deciding_versions
from vitc.resolve import load_config
from vitc.runs.checkpoint import kept_with
from vitc.runs.folder import CHECKPOINTS, CONFIG, DATA, Run, last_step
from vitc.runs.images import like
from vitc.runs.legs import Legs, next_leg, read_legs
from vitc.training.initialise import InitialWeights
from vitc.training.parallel import Processes
from vitc.training.probe import with_precision
from vitc.wording import counted, few

OWN = ("name", "data.path", "data.workers", "train.threads")  # settings of a process alone


def settled(
    config: RunConfig,
    out: Path,
    overwrite: bool,
    device: torch.device,
    initial: InitialWeights,
    procs: Processes,
    changes: bool,
) -> tuple[RunConfig, Legs, bool, list[str]]:
    """The config with what the first process decides for all, the run's earlier legs, whether it
    has begun in `out`, in which case it keeps what was decided then, and notes.

    `changes`: its learning rate, schedule or length may be others than so far. Raises ConfigError:
    the processes have other settings, or cannot share a step.
    """
    flat = flat_values(to_dict(config))
    same = {key: value for key, value in flat.items() if key not in OWN}
    versions = deciding_versions()
    procs.agree(
        {**same, "device": device.type, "torch": versions["torch"], "vitc": versions["vitc"]},
        "different settings",
        "Start all of them with one command, in one environment.",
    )

    def decide() -> tuple[RunConfig, Legs, bool, list[str]]:
        begun = (out / CONFIG).exists() and not overwrite
        before = out if begun else None
        found, precision = with_precision(config, device, before)
        found, shares = with_shares(found, before, procs.world)
        found, prepared = initial.prepare(found, out, begun)
        legs, turned = _with_legs(found, before, changes)
        return found, legs, begun, [*precision, *shares, *prepared, *turned]

    found, legs, begun, notes = procs.follow(decide)
    if not procs.first:
        found = load_config(found, **{key: flat[key] for key in OWN if key in flat})
    return found, legs, begun, notes


def _with_legs(config: RunConfig, begun: Path | None, changes: bool) -> tuple[Legs, list[str]]:
    """The earlier legs of a run that continues with `config`, and notes. Raises ConfigError."""
    if begun is None:
        return (), []
    try:
        before = read_config(begun)
    except ConfigError:  # of another version: refused with the reason later
        return (), []
    legs, run = read_legs(begun, before), Run(begun)
    if not changes or run.status == "done" or not (run.path / DATA).exists():
        return legs, []
    images, step = run.data["counts"]["train"], last_step(begun / CHECKPOINTS)
    rollbacks = _rollbacks(begun / CHECKPOINTS / f"step_{step}")
    return next_leg(before, config, legs, step, images, rollbacks)


def _rollbacks(checkpoint: Path) -> list[dict[str, Any]]:
    """The records of those before a checkpoint."""
    with suppress(CheckpointError):  # none, or damaged: an earlier one is resumed from
        found: list[dict[str, Any]] = kept_with(checkpoint).get("watch", {}).get("rollbacks", [])
        return found
    return []


def with_shares(config: RunConfig, begun: Path | None, world: int) -> tuple[RunConfig, list[str]]:
    """The config with a micro-batch of which each of `world` processes gets as many, where the
    user has set none; a run that has begun keeps its own.

    Raises ConfigError: so many processes cannot share the steps of a run that has begun.
    """
    t = config.train
    chosen = t.micro_batch
    before = None
    if begun is not None:
        with suppress(ConfigError):  # of another version: refused with the reason later
            before = read_config(begun).train
    if before is not None:
        if chosen is None and before.batch == t.batch:
            chosen = before.micro_batch
        micros = before.batch // before.micro
        if micros % world:
            able = [n for n in range(1, micros + 1) if micros % n == 0]
            raise ConfigError(
                f"{world} processes cannot share a step of the run in {begun}: it began with "
                f"{counted(micros, 'micro-batch', 'micro-batches')} of {before.micro} images a "
                "step.",
                f"Resume it with {few(map(str, able), join=' or ')} of them, or start another "
                "run with --out.",
            )
    elif chosen is None and (t.batch // t.micro) % world and t.batch % world == 0:
        chosen = shared_micro(t.batch, t.micro, world)
    if chosen == t.micro_batch:
        return config, []
    note = (
        f"micro-batches of {chosen} images, so that {world} processes share a step of {t.batch}: "
        f"BatchNorm and mixing take {chosen} at a time (--train.micro_batch)"
        if begun is None
        else f"micro-batches of {chosen} images, as the run began"
    )
    return replace(config, train=replace(t, micro_batch=chosen)), [note]


def check_same_data(data: DataSet, procs: Processes) -> None:
    """Raises DataError: some process sees other images, classes or splits than the first one.

    Contents are compared once a machine; names, sizes, labels and splits by every process.
    """
    if procs.watch is None:
        return
    reads = os.environ.get("LOCAL_RANK", "0") == "0"
    mine = data.listing, data.fingerprint if reads else None
    everyone = procs.gather(mine)
    listing, contents = everyone[0]
    others = [
        rank
        for rank, (names, bytes_) in enumerate(everyone)
        if names != listing or (None not in (bytes_, contents) and bytes_ != contents)
    ]
    if not others:
        return
    first = procs.follow(lambda: data.images)
    text = ""
    if procs.rank in others:
        found = changes(first, like(first, data))
        text = "; ".join(found) or "their order, sizes or the kind of their source"
    texts = procs.gather(text)
    lines = [f"  {procs.watch.name(r)}: {texts[r]}" for r in others[:5]]
    error = DataError(
        "The processes of this run see different images; against those of "
        f"{procs.watch.name(0)}:\n" + "\n".join(lines),
        "Give every machine the same copy, or one that all of them mount.",
    )
    error.elsewhere = not procs.first
    raise error
