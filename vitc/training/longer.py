"""With which settings is a finished run trained longer?

As a run of its own, in a new folder, that starts from the average of its weights and has a schedule
of its own: a short warm-up, since the learning rate ended at zero, to a share of the first peak,
then down again. The finished run stays as it is, so that the two can be compared. Free of torch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitc.config import RunConfig, flat_values
from vitc.data.sampling import steps_per_epoch
from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.runs.folder import Run
from vitc.training.auto_rules import PAGE_SECONDS, TRAINED_SHARE
from vitc.wording import counted, duration

WARMUP_SHARE = 0.1  # of the new run
KEPT = ("model", "data", "init")  # settings that would make it another run


def longer(
    run: Path, budget: float | None, settings: Mapping[str, Any]
) -> tuple[RunConfig, Path, list[str]]:
    """The config of a run that trains `run` longer, for train.epochs more of `settings` or for
    `budget` seconds; where it is kept; and why it is so.

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
    epochs = int(own.get("train.epochs", 0))
    chosen: dict[str, Any] = {
        "init.weights": str(run),
        "init.source": "auto",
        "init.average": "ema",
        "init.only": (),
        "init.probe_images": 0,
        "optim.lr": float(f"{TRAINED_SHARE * before.optim.lr:.3g}"),
        "train.budget_seconds": None,
    }
    if budget is not None:
        epochs = epochs or max(1, round(budget / _epoch_seconds(folder, before)))
        chosen["train.budget_seconds"] = round(max(1.0, budget - PAGE_SECONDS), 1)
    chosen["train.epochs"] = epochs
    warmup = round(WARMUP_SHARE * epochs, 3)
    if hasattr(before.optim.schedule, "warmup_epochs"):
        chosen["optim.schedule.warmup_epochs"] = warmup
    chosen["train.eval_every_epochs"] = min(before.train.eval_every_epochs, epochs)
    config = load_config(before, **{**chosen, **own})
    length = duration(budget) if budget is not None else counted(epochs, "epoch")
    top1 = "" if folder.top1 is None else f", {folder.top1:.2f} % on validation"
    decays = before.optim.schedule.decays
    ended = "the learning rate had ended at its floor" if decays else f"that of {run} was constant"
    notes = [
        f"start: {run} — because it is trained longer, from the average of its weights (step "
        f"{folder.summary.get('step'):,}{top1})",
        f"length: {length} more",
        f"peak learning rate: {config.optim.lr:g} — because that of {run} was "
        f"{before.optim.lr:g} and its weights are trained",
        f"schedule: {config.optim.schedule.warmup(epochs):g} epochs of warm-up, then "
        f"{config.optim.schedule.summary} — because {ended}",
    ]
    return config, next_folder(run), notes


def _epoch_seconds(run: Run, config: RunConfig) -> float:
    """How long an epoch took, without evaluations."""
    seconds, step = (float(run.summary.get(k) or 0) for k in ("train_seconds", "step"))
    images = int(run.data.get("counts", {}).get("train", 0))
    if not seconds * step * images:
        raise ConfigError(
            f"How long an epoch of {run.path} takes is not recorded.",
            "Set the length with --train.epochs.",
        )
    return seconds / step * steps_per_epoch(images, config.train.batch)


def next_folder(run: Path) -> Path:
    """`runs/photos_2` of `runs/photos`, `runs/photos_3` of that."""
    numbered = re.fullmatch(r"(.+)_([1-9]\d{0,5})", run.name)
    name, number = (run.name, 1) if numbered is None else (numbered[1], int(numbered[2]))
    return run.with_name(f"{name}_{number + 1}")
