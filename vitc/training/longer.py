"""With which settings is a finished run trained longer?

As a run of its own, in a new folder, that starts from the average of its weights and has a schedule
of its own: a short warm-up, since the learning rate ended at zero, to a share of the first peak (to
all of it, where that run started from trained weights itself), then down again. The finished run
stays as it is, so that the two can be compared. Free of torch.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitc.config import RunConfig, flat_values, read_config
from vitc.data.cache import decoding_seconds
from vitc.data.dataset import open_data
from vitc.data.sampling import steps_per_epoch
from vitc.data.sources.base import Split
from vitc.errors import ConfigError
from vitc.optim.schedule import CosineConfig, ScheduleConfig, WarmupConfig
from vitc.resolve import load_config
from vitc.runs.folder import CONFIG, Run
from vitc.training.auto_rules import DECODE_SHARE, PAGE_SECONDS, TRAINED_SHARE, run_length
from vitc.training.pace import CLOCKS
from vitc.wording import counted, duration

WARMUP_SHARE = 0.1  # of the new run
EPOCH_START = 0.1  # of the peak, where the rate changes once an epoch: the authors' start
LIMIT, EVERY = "data.max_train", "train.eval_every_epochs"
KEPT = ("model", "data", "init")  # settings that would make it another run


def longer(
    run: Path, budget: float | None, settings: Mapping[str, Any], out: Path | None = None
) -> tuple[RunConfig, Path, list[str]]:
    """The config of a run that trains `run` longer, for train.epochs more of `settings` or for
    `budget` seconds; where it is kept (None: beside it); and why it is so.

    Raises ConfigError: `run` has not finished, or `settings` would change the model or images.
    """
    own = flat_values(settings)
    before, folder = load_config(run), Run(run)
    if folder.status != "done":
        resume = f"Resume it first: vitc train {shlex.quote(str(run))}"
        raise ConfigError(f"{run} has not finished, so it cannot be trained longer.", resume)
    others = [k for k in own if k in KEPT or k.startswith(("model.", "init.", "data.path"))]
    if others:
        raise ConfigError(
            f"--{others[0]} has no effect here: {run} is trained longer with its own model and "
            "images.",
            f"For others: vitc train IMAGES --init {shlex.quote(str(run))}",
        )
    place = next_folder(run) if out is None else out
    images, limit, limited = _images(folder, before, own, budget, place)
    length, often = _length(folder, before, images, own, budget)
    epochs = length["train.epochs"]
    tuned = bool(before.init.weights) and not before.init.only  # its rate is for trained weights
    chosen: dict[str, Any] = {
        "init.weights": str(run),
        "init.source": "auto",
        "init.average": "ema",
        "init.only": (),
        "init.probe_images": 0,
        "optim.lr": before.optim.lr if tuned else float(f"{TRAINED_SHARE * before.optim.lr:.3g}"),
        "train.budget_seconds": None,
        **limit,
        **length,
    }
    chosen |= _warmup(before.optim.schedule, epochs)
    config = load_config(before, **{**chosen, **own})
    time = duration(budget) if budget is not None else counted(epochs, "epoch")
    top1 = "" if folder.top1 is None else f", {folder.top1:.2f} % on validation"
    decays = before.optim.schedule.decays
    ended = "the learning rate had ended at its floor" if decays else f"that of {run} was constant"
    notes = [
        f"start: {run} — because it is trained longer, from the average of its weights (step "
        f"{folder.summary.get('step'):,}{top1})",
        *limited,
        f"length: {time} more",
        *often,
        f"peak learning rate: {config.optim.lr:g} — because that of {run} was "
        f"{before.optim.lr:g}"
        + (", for trained weights, too" if tuned else " and its weights are trained"),
        f"schedule: {config.optim.schedule.warmup(epochs):g} epochs of warm-up, then "
        f"{config.optim.schedule.summary} — because {ended}",
    ]
    return config, place, notes


def _warmup(schedule: ScheduleConfig, epochs: int) -> dict[str, Any]:
    """Settings of the warm-up; of a custom schedule there are none."""
    if not isinstance(schedule, WarmupConfig):
        return {}
    found: dict[str, Any] = {"optim.schedule.warmup_epochs": round(WARMUP_SHARE * epochs, 3)}
    if isinstance(schedule, CosineConfig) and schedule.per == "epoch" and not schedule.warmup_start:
        found["optim.schedule.warmup_start"] = EPOCH_START  # 0 would last for the first epoch
    return found


# -- how many images -------------------------------------------------------------------------------


def _images(
    run: Run, before: RunConfig, own: Mapping[str, Any], budget: float | None, place: Path
) -> tuple[int, dict[str, Any], list[str]]:
    """How many images are trained on; a setting and a note where the run was given a part of them.

    A run with a time to end in was limited for the sake of that time, as a rule (whether its user
    limited it is not recorded), and now has another. What validates stays the same: it is held out
    before training images are left out.
    """
    used, recorded = before.data.max_train, int(run.data.get("counts", {}).get("train", 0))
    if LIMIT in own:
        return len(_train_images(load_config(before, **own))), {}, []
    if used is None or used > recorded:  # it had no effect
        return recorded, {}, []
    what = "training images used"
    if before.train.budget_seconds is None:
        because = f"because {run.path} was limited to as many; --{LIMIT} N sets another number"
        return recorded, {}, [f"{what}: {used:,} — {because}"]
    whole = load_config(before, **{**own, LIMIT: None})
    train = _train_images(whole)
    begun = _begun(run.path, place)
    if begun is not None:
        most = begun.data.max_train or len(train)
    else:
        most = len(train) if budget is None else max(used, _decodable(whole, train, budget))
    because = f"because the {used:,} of {run.path} were for its time; --{LIMIT} {used} keeps them"
    if most >= len(train):
        return len(train), {LIMIT: None}, [f"{what}: all {len(train):,} — {because}"]
    because += f". Decoding all {len(train):,} would take more than a third of the time"
    return most, {LIMIT: most}, [f"{what}: {most:,} — {because}"]


def _train_images(config: RunConfig) -> Split:
    return open_data(config.data, config.model.in_chans).splits["train"]


def _decodable(config: RunConfig, train: Split, budget: float) -> int:
    """So many images as a third of the time is enough to decode, as where settings are chosen."""
    clock = CLOCKS[config.train.clock]
    each = decoding_seconds(train, config.data, config.model.in_chans, clock)
    return int(DECODE_SHARE * budget / each) if each else len(train)


def _begun(run: Path, place: Path) -> RunConfig | None:
    """The config of the run in `place` that trains `run` longer, if it has begun: it keeps its
    images. Decoding takes another time at each look, and the same command is to resume."""
    if not (place / CONFIG).is_file():
        return None
    config = read_config(place)
    return config if config.init.weights == os.path.abspath(run) else None


# -- how long --------------------------------------------------------------------------------------


def _length(
    run: Run, before: RunConfig, images: int, own: Mapping[str, Any], budget: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Settings of the length and of how often is evaluated, with a note on the latter.

    A run that has or had a time is evaluated as often as where settings are chosen.
    """
    epoch, evaluation = _epoch_seconds(run, before, images), _evaluation_seconds(run)
    epochs, chosen = int(own.get("train.epochs", 0)), dict[str, Any]()
    if budget is not None:
        if not (epochs or epoch):
            raise ConfigError(
                f"How long an epoch of {run.path} takes is not recorded.",
                "Set the length with --train.epochs.",
            )
        epochs = epochs or max(1, round(budget / epoch))
        chosen["train.budget_seconds"] = round(max(1.0, budget - PAGE_SECONDS - evaluation), 1)
    every, because = min(before.train.eval_every_epochs, epochs), f"those of {run.path}"
    if budget is not None or before.train.budget_seconds is not None:
        every = run_length(epoch or math.inf, evaluation, math.inf, epochs).eval_every
        because = f"one takes {evaluation:.1g} s"
    chosen |= {"train.epochs": epochs, EVERY: every}
    note = f"epochs between evaluations: {every} — because {because}"
    return chosen, [] if EVERY in own else [note]


def _epoch_seconds(run: Run, config: RunConfig, images: int) -> float:
    """How long an epoch of so many images takes, without evaluations; 0: it is not recorded."""
    seconds, step = (float(run.summary.get(k) or 0) for k in ("train_seconds", "step"))
    spent = {"preparing": 0.0, "saving": 0.0, **(run.summary.get("time_spent") or {})}
    steps = spent.get("steps", 0.0) + spent.get("loading", 0.0)
    # Of a run that an earlier version resumed `spent` is of its last process alone. In one of few
    # steps most of the time may have been for decoding images once.
    if seconds - steps <= spent["preparing"] + spent["saving"]:
        seconds = min(seconds, steps)
    if not seconds * step * images:
        return 0.0
    return seconds / step * steps_per_epoch(images, config.train.batch)


def _evaluation_seconds(run: Run) -> float:
    spent = (run.summary.get("time_spent") or {}).get("evaluation", 0.0)
    return float(spent) / max(1, len(run.metrics("eval")))


def next_folder(run: Path) -> Path:
    """`runs/photos_2` of `runs/photos`, `runs/photos_3` of that."""
    run = run if run.name not in ("", "..") else run.resolve()
    numbered = re.fullmatch(r"(.+)_([1-9]\d{0,5})", run.name)
    name, number = (run.name, 1) if numbered is None else (numbered[1], int(numbered[2]))
    return run.with_name(f"{name}_{number + 1}")
