"""The legs of a run: where did it continue with another learning rate, schedule or length?

config.json has the settings of the last leg. legs.json, where there are several, has those of each
earlier one and the step up to which they hold, so that the learning rate stays a closed form of the
step: a run resumed from a checkpoint before the border repeats it bit for bit. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitc.config import SCHEMA, RunConfig, differences, flat_values, from_dict, to_dict, upgrade
from vitc.data.sampling import steps_per_epoch
from vitc.errors import CheckpointError, ConfigError
from vitc.files import read_json, write_json
from vitc.wording import counted

LEGS = "legs.json"
REWARM = 0.1  # of the steps that are left: the learning rate rises to its schedule over them
LR_CUT = 0.5  # at each rollback


@dataclass(frozen=True)
class Leg:
    """Steps of a run, up to the step `until`, under settings that were changed then."""

    until: int
    config: RunConfig
    factor: float = 1.0
    """Its last step took so many times its learning rate, against the next leg: after rollbacks."""


Legs = tuple[Leg, ...]


def may_change(name: str) -> bool:
    """Whether a setting, by its dotted name, may change from one leg of a run to the next."""
    return name in ("optim.lr", "train.epochs") or name.startswith("optim.schedule.")


def read_legs(folder: Path, config: RunConfig) -> Legs:
    """The earlier legs of a run of `config`. Raises CheckpointError: the file is damaged."""
    file = folder / LEGS
    if not file.exists():
        return ()
    values = read_json(file, CheckpointError)
    try:
        return tuple(
            Leg(
                int(leg["until"]),
                _under(config, leg["settings"], values["schema"]),
                float(leg.get("factor", 1)),
            )
            for leg in values["legs"]
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}.") from error


def _under(config: RunConfig, settings: dict[str, object], schema: int) -> RunConfig:
    flat = upgrade(settings, schema)
    del flat["schema"]
    return from_dict(flat, config)


def write_legs(folder: Path, legs: Legs) -> None:
    """Before config.json is replaced: if that does not happen, the same settings hold on both
    sides of the border, and nothing changes there. Raises OSError."""
    found = []
    for leg in legs:
        flat = flat_values(to_dict(leg.config))
        settings = {k: flat[k] for k in flat if may_change(k)}
        factor = {} if leg.factor == 1 else {"factor": leg.factor}
        found.append({"until": leg.until, "settings": settings, **factor})
    write_json(folder / LEGS, {"schema": SCHEMA, "legs": found})


def config_at(config: RunConfig, legs: Legs, step: float) -> RunConfig:
    """The settings of the step that follows `step` finished ones."""
    return next((leg.config for leg in legs if step < leg.until), config)


def changes(config: RunConfig, legs: Legs) -> list[tuple[int, list[str]]]:
    """The step of each border, and what changed there: `optim.lr: 0.001 -> 0.0003`."""
    after = [*(leg.config for leg in legs), config][1:]
    return [(a.until, differences(a.config, b)) for a, b in zip(legs, after, strict=True)]


def lr_at(config: RunConfig, legs: Legs, step: float, each: int) -> float:
    """The learning rate of the step that follows `step` finished ones; an epoch has `each` steps.

    In its own schedule, whatever the leg; where that is above the rate at the border, it rises to
    it linearly over `REWARM` of the steps that were left there.
    """
    over = [leg for leg in legs if leg.until <= step]
    here = config_at(config, legs, step)
    planned = _planned(here, step, each)
    if not over:
        return planned
    border = over[-1].until
    left = here.train.epochs * each - border
    share = (step - border) / max(1, round(REWARM * left))
    if share >= 1:
        return planned
    before = over[-1].factor * lr_at(over[-1].config, tuple(over[:-1]), border, each)
    if _planned(here, border, each) <= before:
        return planned
    return before + share * (planned - before)


def _planned(config: RunConfig, step: float, each: int) -> float:
    optim, t = config.optim, config.train
    peak = optim.peak_lr(t.batch)
    return optim.schedule.lr(step, peak=peak, epochs=t.epochs, steps_per_epoch=each)


def with_rates(rollbacks: Sequence[Mapping[str, Any]], lr: float) -> list[dict[str, Any]]:
    """The records of rollbacks, those of earlier versions with the `lr` that they cut."""
    return [{"lr": lr, **record} for record in rollbacks]


def cuts(rollbacks: Sequence[Mapping[str, Any]], config: RunConfig) -> int:
    """How many of these rollbacks cut the learning rate of the steps under `config`.

    Each cuts the optim.lr under which the run went bad: one that the user sets later is his own
    answer to that, and begins uncut.
    """
    return sum(record["lr"] == config.optim.lr for record in rollbacks)


def next_leg(
    before: RunConfig,
    now: RunConfig,
    legs: Legs,
    step: int,
    images: int,
    rollbacks: Sequence[Mapping[str, Any]] = (),
) -> tuple[Legs, list[str]]:
    """The legs of a run that continues after `step` steps with the settings `now`, and notes.

    before: its settings so far; images: of its training split; rollbacks: the records of those
    before `step`. Raises ConfigError: the run has gone further than it is to go now, or ends with
    its time.
    """
    changed = [c for c in differences(before, now) if may_change(c.split(":")[0])]
    if not changed or step == 0:
        return (legs if step else ()), []
    if before.train.budget_seconds is not None:
        raise ConfigError(
            f"{changed[0].split(':')[0]} cannot change within a run with train.budget_seconds, "
            "whose schedule follows its time.",
            "Resume it as it is, or start another from its weights: --init RUN.",
        )
    each = steps_per_epoch(images, now.train.batch)
    if now.train.epochs * each <= step:
        raise ConfigError(
            f"train.epochs {now.train.epochs} is {now.train.epochs * each:,} steps; the run has "
            f"taken {step:,} already.",
            f"Use --train.epochs {step // each + 1} or more.",
        )
    earlier = tuple(leg for leg in legs if leg.until < step)
    here = config_at(before, legs, step - 1)
    rollbacks = with_rates(rollbacks, here.optim.lr)
    cut, then = (cuts(rollbacks, config) for config in (here, now))
    legs = (*earlier, Leg(step, here, LR_CUT ** (cut - then)))
    old = LR_CUT**cut * lr_at(here, earlier, step, each)
    new = LR_CUT**then * _planned(now, step, each)
    how = "continues at" if new == old else "falls to"
    schedule = "its schedule"
    if then:
        schedule += f" times {LR_CUT**then:g} (after {counted(then, 'rollback')})"
    text = f"the learning rate {how} {new:.3g} on {schedule}"
    if new > old:
        steps = max(1, round(REWARM * (now.train.epochs * each - step)))
        text = (
            f"the learning rate rises from {old:.3g} to {schedule} over {steps:,} steps "
            f"(re-warm-up: {100 * REWARM:g} % of what is left)"
        )
    if cut and not then:
        text += f", without the {counted(cut, 'cut')} by rollbacks so far"
    return legs, [f"leg {len(legs) + 1} of the run begins after step {step:,}: {text}"]
