"""What would `vitc train` take with these arguments? Planned as it plans; nothing is written."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig, flat_values
from vitc.deploy.front_door import plan_training
from vitc.errors import ConfigError
from vitc.recipes import RECIPES
from vitc.recipes.imagenet import ROWS, Row
from vitc.resolve import resolve_config, what_is
from vitc.runs.folder import HARMLESS
from vitc.wording import read_duration

if TYPE_CHECKING:
    from vitc.training.cost import RunCost

PAPER = "8xV100"  # the one machine whose times ship with vitc
IMAGES, CLASSES = 1_281_167, 1000  # of ImageNet-1k
DEVICES = ("auto", "cuda", "mps", "cpu", PAPER)


def plan(
    what: RunConfig | str | os.PathLike[str],
    *,
    device: str = "auto",
    budget: str | float | timedelta | None = None,
    start: str = "auto",
    **overrides: Any,
) -> RunCost:
    """Time, memory and disk that `vitc.train` would take with the same arguments.

    A recipe, config or unfinished run, images, or a finished run to be trained longer. Some of its
    steps are timed on this machine, in about ten seconds; with `device="8xV100"` the times are the
    paper's, for its ImageNet recipes. Nothing is written. Raises ConfigError and DataError.
    """
    if device not in DEVICES:
        raise ConfigError(
            f"No measurements of {device!r} ship with vitc.",
            f"Allowed: {', '.join(DEVICES)}; for another machine, run vitc plan there.",
        )
    if device == PAPER:
        return _shipped(what, overrides, None if budget is None else read_duration(budget))
    if device != "auto":
        overrides["train.device"] = device
    seconds = None if budget is None else read_duration(budget)
    return _measured(what, seconds, start, overrides)


def _measured(
    what: RunConfig | str | os.PathLike[str],
    budget: float | None,
    start: str,
    overrides: Mapping[str, Any],
) -> RunCost:
    from vitc.data.dataset import open_data
    from vitc.data.sources.index import cache_aside
    from vitc.training.compiling import with_compile
    from vitc.training.cost import Around, estimate, is_cached
    from vitc.training.device import machine_settings, pick_device
    from vitc.training.parallel import Processes
    from vitc.training.probe import with_precision

    name = None if isinstance(what, RunConfig) else os.fspath(what)
    resumed = name is not None and what_is(name) == "run"
    with_caches = copy_context()  # where the cache folder is that of the user
    with _hints(name), cache_aside():
        started = time.monotonic()
        planned = plan_training(what, None, budget, overrides, not resumed, start)
        choosing = time.monotonic() - started if planned.images else 0.0
        config = planned.config.checked()
        device = pick_device(config.train.device)
        same = resumed and planned.out == Path(str(name))
        begun, kept = _done(planned.out) if same else (0, {})
        config, reasons = with_precision(config, device, planned.out if begun else None)
        started = time.monotonic()
        data = open_data(config.data, config.model.in_chans)
        opening = time.monotonic() - started
        with machine_settings(config.train, device):
            config, compiling = with_compile(
                config, data, device, planned.out if begun else None, Processes()
            )
        places = (planned.out.resolve(), *planned.out.resolve().parents)
        around = Around(
            begun=begun,
            kept=kept,
            choosing=choosing,
            opening=opening,
            cached=with_caches.run(is_cached, config, data),
            out=next(place for place in places if place.is_dir()),
        )
        cost = estimate(config, data, device, around)
    notes = (*cost.notes, *planned.notes, *planned.remarks, *reasons, *compiling)
    return replace(cost, expected=_expected(name, overrides), notes=notes)


def _done(run: Path) -> tuple[int, Mapping[str, Any]]:
    """Steps that the last checkpoint of an unfinished run holds, and what is kept with them.
    Raises ConfigError: it has finished."""
    from vitc.runs.checkpoint import kept_with, latest_checkpoint
    from vitc.runs.folder import CHECKPOINT_NAME, CHECKPOINTS, Run

    if run.is_dir() and Run(run).status == "done":
        raise ConfigError(
            f"{run} has finished: nothing is left to plan.",
            "Plan training it longer with --budget TIME or --train.epochs N; what it took: vitc "
            f"show {shlex.quote(str(run))}",
        )
    found, _ = latest_checkpoint(run / CHECKPOINTS)
    match = None if found is None else CHECKPOINT_NAME.fullmatch(found.name)
    return (int(match[1]), kept_with(found)) if found and match else (0, {})


@contextmanager
def _hints(name: str | None) -> Iterator[None]:
    """Adds to errors what can be done where the images or the device are elsewhere."""
    try:
        yield
    except ConfigError as error:
        more = ""
        if "is not available here" in error.message:
            more = "Measurements of other machines do not ship with vitc: run vitc plan there."
        if name in RECIPES and _row(name) is not None:
            more += f" Or --device {PAPER}: the times that the paper measured."
        hint = " ".join(filter(None, (error.hint, more.strip())))
        raise ConfigError(error.message, hint or None) from error


def _row(recipe: str) -> Row | None:
    """The paper's row of Table 2 that a recipe follows, with its batch and its images."""
    model = recipe.removeprefix("imagenet_")
    return ROWS.get(model) if model != recipe else None


def _shipped(
    what: RunConfig | str | os.PathLike[str], overrides: Mapping[str, Any], budget: float | None
) -> RunCost:
    """The paper's time of an epoch, times the epochs."""
    import torch

    from vitc.models.zoo import build_model
    from vitc.training.cost import Range, RunCost
    from vitc.training.space import checkpoint_bytes

    row = None if isinstance(what, RunConfig) else _row(os.fspath(what))
    others = [k for k in flat_values(overrides) if k not in ("train.epochs", "data", "data.path")]
    if row is None or others or budget is not None:
        why = f"--{others[0]}" if others else "--budget" if row is not None else f"{what}"
        known = ", ".join(f"imagenet_{model}" for model in ROWS)
        raise ConfigError(
            f"The times of {PAPER} that ship with vitc do not cover {why}.",
            f"They are those of the paper's Table 2: {known}, with --train.epochs. For all else "
            "run vitc plan on the machine itself.",
        )
    config = resolve_config(str(what), **overrides)  # without images
    epochs = config.train.epochs
    averaged = config.optim.ema.kind != "none"
    with torch.device("meta"):
        weights = checkpoint_bytes(build_model(config.model, CLASSES), config.optim, averaged)
    return RunCost(
        name=config.name,
        model=config.model.name,
        device="8 V100 of 32 GB",
        measured="the paper's Table 2, minutes of one epoch",
        images=IMAGES,
        epochs=epochs,
        steps=IMAGES // config.train.batch * epochs,
        epoch_seconds=Range(60 * row.minutes),
        seconds=Range(60 * row.minutes * epochs),
        checkpoint_bytes=(config.train.keep_checkpoints + 1) * weights,
        expected=_expected(str(what), overrides),
        notes=("no interval and no memory: the paper prints one number, the time of an epoch",),
    )


def _expected(name: str | None, overrides: Mapping[str, Any]) -> str:
    """What is known of a recipe's accuracy, unless the settings make it another."""
    if name not in RECIPES:
        return ""
    others = flat_values(overrides).keys() - HARMLESS - {"data", "optim", "optim.kind"}
    if name.startswith("imagenet_") and overrides.get("train.epochs") in (100, 200):
        others -= {"train.epochs"}
    return "" if others else RECIPES[name].expected
