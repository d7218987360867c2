"""What does a recipe or config do: its schedule in numbers, its learning rate, every setting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from vitc.config import RunConfig, flat_values, to_dict
from vitc.errors import ConfigError, DataError
from vitc.optim.config import horizon_steps
from vitc.views.model import Chart, Line, Page, Part, Table, Text
from vitc.wording import counted

UNKNOWN_STEPS = 1000  # an epoch, where images cannot be counted: over epochs curves look the same
MOST_POINTS = 4000  # of a curve


def config_page(config: RunConfig, doc: str = "") -> Page:
    """What the run is, its schedule in numbers, and every setting."""
    schedule = schedule_numbers(config)
    rows = [(name, plain(value)) for name, value in flat_values(to_dict(config)).items()]
    problems = config.problems()
    if schedule["train_images"] is not None and schedule["steps_per_epoch"] is None:
        problems.append(
            f"train.batch {config.train.batch} exceeds the {schedule['train_images']} "
            "training images."
        )
    parts: list[Part] = [
        *([Text(doc)] if doc else []),
        Table("Schedule", ("", "value", "why"), _schedule_rows(config, schedule)),
        Table("Settings (their meaning: vitc train RECIPE --help)", ("setting", "value"), rows),
    ]
    if problems:
        parts.append(Text("It cannot run yet:\n" + "\n".join(f"  {p}" for p in problems)))
    values = {
        "recipe": config.name,
        "settings": to_dict(config),
        "schedule": schedule,
        "problems": problems,
    }
    return Page(config.name, parts, values)


def plain(value: Any) -> str:
    """A setting or result as a cell of a table."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items() if v not in (None, []))
    number = isinstance(value, float) and math.isfinite(value)
    return f"{value:g}" if number else str(value).replace("\n", " ")


def lr_chart(config: RunConfig, steps_per_epoch: int | None) -> Chart:
    """The learning rate over the epochs of a run, as the loop will set it."""
    steps = steps_per_epoch or UNKNOWN_STEPS
    total = steps * config.train.epochs
    at = range(0, total, max(1, total // MOST_POINTS))
    lr = list(map(_lr_of(config, steps), at))
    line = Line("", 0, [step / steps for step in at], lr, form="curve")
    return Chart("lr", config.name, "epoch", "learning rate", [line])


def _lr_of(config: RunConfig, steps: int) -> Callable[[int], float]:
    return functools.partial(
        config.optim.schedule.lr,
        peak=config.optim.peak_lr(config.train.batch),
        epochs=config.train.epochs,
        steps_per_epoch=steps,
    )


def count_images(config: RunConfig) -> int | None:
    """How many images the run trains on; None where they are not at hand."""
    from vitc.data.dataset import open_data

    try:
        return len(open_data(config.data, config.model.in_chans).splits["train"])
    except (ConfigError, DataError, OSError):
        return None


def schedule_numbers(config: RunConfig) -> dict[str, Any]:
    """The schedule as numbers; steps only where the training images can be counted."""
    t, optim = config.train, config.optim
    images = count_images(config)
    steps = None if images is None else images // t.batch or None
    grain = steps or UNKNOWN_STEPS
    lr = _lr_of(config, grain)
    horizon = None
    if optim.ema.kind != "none":
        horizon = horizon_steps(optim.ema, epochs=t.epochs, steps_per_epoch=grain, batch=t.batch)
    # pycls's formula has a horizon in steps, so in epochs only where those are known
    in_epochs = horizon is not None and (steps is not None or optim.ema.kind != "pycls")
    return {
        "train_images": images,
        "batch": t.batch,
        "micro_batch": t.micro,
        "epochs": t.epochs,
        "steps_per_epoch": steps,
        "total_steps": None if steps is None else steps * t.epochs,
        "warmup_epochs": optim.schedule.warmup(t.epochs),
        "warmup_steps": None if steps is None else optim.schedule.warmup_steps(t.epochs, steps),
        "first_lr": lr(0),
        "peak_lr": optim.peak_lr(t.batch),
        "last_lr": None if steps is None else lr(steps * t.epochs - 1),
        "ema_horizon_steps": None if steps is None else horizon,
        "ema_horizon_epochs": horizon * (1 / grain) if in_epochs and horizon is not None else None,
    }


def _schedule_rows(config: RunConfig, s: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    t, optim, images = config.train, config.optim, s["train_images"]
    known, micros = s["steps_per_epoch"] is not None, t.batch // t.micro
    count = ("?", "the images are not here: steps are unknown")
    if images is not None:
        count = (f"{images:,}", "")
    warmup = _several(f"{s['warmup_epochs']:g}", "epoch")
    steps, last, per_epoch = "?", "?", ""
    if known:
        steps, last = f"{s['total_steps']:,}", f"{s['last_lr']:.3g}"
        warmup += f", {counted(s['warmup_steps'], 'step')}"
        per_epoch = f"of {counted(s['steps_per_epoch'], 'step')}"
    default_warmup = getattr(optim.schedule, "warmup_epochs", 0) is None
    peak = "absolute"
    if optim.lr_per_batch is not None:
        peak = f"{optim.lr:g} per {optim.lr_per_batch} images x batch {t.batch}"
    parts = f"{micros} micro-batches of {t.micro}" if micros > 1 else ""
    rows = [
        ("training images", *count),
        ("step", counted(t.batch, "image"), parts),
        ("epochs", str(t.epochs), per_epoch),
        ("steps", steps, ""),
        ("warm-up", warmup, "the smaller of 5 epochs and 10 %" if default_warmup else "set"),
        ("lr, first", f"{s['first_lr']:.3g}", ""),
        ("lr, peak", f"{s['peak_lr']:.4g}", peak),
        ("lr, last", last, optim.schedule.summary),
        ("weight decay", f"{optim.weight_decay:g}", "not on norm gains and biases"),
    ]
    epochs = s["ema_horizon_epochs"]
    if epochs is not None:
        horizon = _several(f"{epochs:.3g}", "epoch")
        if known:
            horizon += ", " + _several(f"{s['ema_horizon_steps']:,.0f}", "step")
        rows.append(("EMA horizon", horizon, f"{100 * epochs / t.epochs:.3g} % of the run"))
    return rows


def _several(number: str, noun: str) -> str:
    """`1 epoch`, `0.5 epochs`: for a formatted number."""
    return f"{number} {noun}{'s' * (number != '1')}"
