"""Which settings take no effect in a study: what it decides itself, draws or seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitc.config import flat_values, leaves
from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.study.design import NOT_HASHED, Group, Plan
from vitc.wording import short

SEED = "train.seed"
DECIDED = {  # a setting -> why a study sets it otherwise, and what to do
    SEED: (
        "every trial has a seed of its own.",
        "Leave it out. Other seeds: --seed N; more of them: --seeds N or --draws N.",
    ),
    "train.threads": (
        "a trial on CPU has 1 thread, as many trials share the cores.",
        "Leave it out. How many trials run at a time: --workers N.",
    ),
    "train.eval_every_epochs": (
        "a trial is evaluated every second epoch at most, and 4 times in all at most.",
        "Leave it out, or give a value that is not below the study's own.",
    ),
}


def check_effect(settings: Mapping[str, Any], groups: Sequence[Group], whose: str = "") -> None:
    """Refuse settings that none of these groups has as they were given. Raises ConfigError.

    `whose`: the contender or point that they are of; "": of every trial.
    """
    for name, (why, hint) in DECIDED.items():
        if name not in settings:
            continue
        given = leaves(load_config(groups[0].config, **{name: settings[name]}))[name]
        kept = list(dict.fromkeys(leaves(g.config)[name] for g in groups))
        if name == SEED or given not in kept:
            own = "" if name == SEED else f" (here {', '.join(map(str, kept))})"
            raise ConfigError(
                f"{name} {given}{f' of {whose}' if whose else ''} has no effect in a study: "
                f"{why.removesuffix('.')}{own}.",
                hint,
            )


def check_replaced(
    settings: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], each: str
) -> None:
    """Refuse a setting of every trial for which `each` of these has a value of its own, by name.
    Raises ConfigError."""
    for name in settings if own else ():
        if all(name in theirs for theirs in own.values()):
            raise ConfigError(
                f"{name} {settings[name]} has no effect: every {each} has its own {name}.",
                "Leave one of the two out.",
            )


def check_drawn(
    contenders: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Iterable[str]], hint: str
) -> None:
    """Refuse a contender's own value of a setting whose draws replace it. Raises ConfigError.

    `drawn`: by contender the settings whose ranges do not come from its own values. `hint`: what
    there is instead.
    """
    for contender, own in contenders.items():
        lost = [name for name in drawn.get(contender, ()) if name in own]
        if lost:
            raise ConfigError(
                f"{lost[0]} {own[lost[0]]} of {contender} has no effect: draws replace it, "
                "from a range that does not come from the contender's own value.",
                f"Leave it out. {hint}",
            )


def check_apart(plan: Plan) -> None:
    """Refuse groups that would share their trials: no difference could show. Raises ConfigError.

    Those that differ in a setting that decides no result, as `data.workers`, may share them, and so
    may points of a contender at which its settings agree, as the recipe's own value on two axes.
    """
    ids: dict[str, list[str]] = {g.key: [] for g in plan.groups}
    for trial in plan.trials():
        ids[trial.group.key].append(trial.id)
    seen: dict[tuple[str, ...], Group] = {}
    for group in plan.groups:
        first = seen.setdefault(tuple(ids[group.key]), group)
        if first is group:
            continue
        a, b = flat_values(first.settings), flat_values(group.settings)
        differ = [n for n in {**a, **b} if a.get(n) != b.get(n)]
        one = not differ and (first.contender, first.optim) == (group.contender, group.optim)
        if one or set(differ) & set(NOT_HASHED[plan.schema]):
            continue
        names = f"{first.key} and {group.key}"
        why = f"they differ only in {short(', '.join(differ), 200)}, which has no effect here"
        raise ConfigError(
            f"{names} would be the same trials: {why if differ else 'all their settings agree'}.",
            "Leave one of them out, or let them differ in a setting that the study neither draws "
            "nor seeds. A contender against itself under other seeds: --control.",
        )
