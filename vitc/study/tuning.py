"""A first study of random draws, whose best settings the measured study takes.

It is an ordinary study in the folder `tuning` inside the measured one's.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitc.config import RunConfig, leaves
from vitc.errors import ConfigError, RunError
from vitc.resolve import load_config
from vitc.study.contenders import count_classes, for_study, one_precision
from vitc.study.controls import family_ranges
from vitc.study.design import HPARAMS, TUNING, TUNING_SEEDS, Group, Plan, Range, key_of
from vitc.study.effect import check_effect
from vitc.study.results import results_of
from vitc.study.standing import standing
from vitc.study.study_folder import StudyFolder

CHOSEN = (
    "chosen on the validation images that the errors are on; the measured runs have other seeds"
)
Points = Mapping[str, Mapping[str, Any]]  # label -> settings there


@dataclass(frozen=True)
class Times:
    """A setting's own value times a factor: its value at a point of `vary`."""

    factor: float


@dataclass(frozen=True)
class Tuning:
    """Random draws of lr and weight decay for every contender at every point."""

    draws: int
    points: Points
    about: str
    """Where the settings come from, for the report."""


@dataclass(frozen=True)
class Tuned:
    """The settings of the best draw and its error, by the key of a group at its point, or of the
    group anywhere. Empty: the recipes' own settings are taken."""

    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    about: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join(
            f"{key}: " + ", ".join(f"{n.removeprefix('optim.')} {v:g}" for n, v in best.items())
            for key, best in self.values.items()
        )


UNTUNED = Tuned()


def at_point(
    group: Group, point: str, settings: Mapping[str, Any], tuned: Tuned = UNTUNED
) -> Group:
    """The group with the settings of a point of the measure. Raises ConfigError."""
    here = dataclasses.replace(group, point=point)
    values = tuned.values.get(here.key, tuned.values.get(group.key, {}))
    config = load_config(group.config, **values)
    resolved = {name: _resolved(config, name, value) for name, value in settings.items()}
    made = here.with_config(for_study(load_config(config, **resolved)))
    check_effect(resolved, [made], f"the point {point!r}")
    return made


def _resolved(config: RunConfig, name: str, value: Any) -> Any:
    if not isinstance(value, Times):
        return value
    base = leaves(config).get(name)
    if not isinstance(base, int | float) or isinstance(base, bool):
        raise ConfigError(f"--times {name}: its value {base!r} is no number.")
    return type(base)(base * value.factor)


def tuning_plan(
    groups: Sequence[Group],
    points: Points,
    *,
    draws: int,
    name: str,
    seed: int = 0,
    classes: int | None = None,
) -> Plan:
    """Random draws of lr and weight decay for every group at every point.

    The ranges are those of the first group of each optimizer (`recipes.ranges`), for all. Raises
    ConfigError.
    """
    at_points = one_precision([at_point(g, p, s) for p, s in points.items() for g in groups])
    many = len(points) > 1
    named = [
        dataclasses.replace(g, contender=f"{g.contender} at {g.point}")
        if many
        else dataclasses.replace(g, point="")
        for g in at_points
    ]
    shared: dict[str, dict[str, Range]] = {}
    for g in groups:
        shared.setdefault(g.optim, family_ranges(g.config, g.optim))
    return Plan(
        name=name,
        groups=tuple(named),
        ranges=shared,
        draws=draws,
        seed=seed,
        classes=count_classes(named[0].config) if classes is None else classes,
        measure=HPARAMS,
    ).checked()


def before_measuring(plan: Plan) -> Plan:
    """The draws with seeds of their own, so that the best of them is no run that is measured.

    A run that won by its luck would otherwise bring it into the mean of the measured seeds.
    """
    return dataclasses.replace(plan, seed_start=TUNING_SEEDS).checked()


def best_values(
    folder: StudyFolder, plan: Plan
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The settings of the best draw, and its error, by the keys of `Tuned`.

    Raises RunError: a draw has no result, or a group no draw that learnt.
    """
    at = standing(folder, plan)
    ended, failed = at.counts["done"] + at.counts["diverged"], at.counts["failed"]
    if ended < at.total:
        raise RunError(
            f"Of {at.total} draws in {folder.path} {failed} failed and {at.total - ended - failed} "
            "have no result yet, so which is best is not known.",
            "The same command runs what is missing, with --retry-failed also what failed. Why: "
            f"vitc study status {folder.path}",
        )
    values: dict[str, dict[str, float]] = {}
    errors: dict[str, float] = {}
    for r in results_of(folder, plan):
        contender = r.contender.removesuffix(f" at {r.point}")
        key = key_of(contender, r.optim, r.point)
        if r.error is None or r.failed_to_learn:
            errors.setdefault(key, float("inf"))
        elif r.error < errors.get(key, float("inf")):
            values[key], errors[key] = dict(r.values), r.error
    hopeless = [key for key, error in errors.items() if error == float("inf")]
    if hopeless:
        raise RunError(
            f"No draw of {', '.join(hopeless)} learnt anything, so nothing can be chosen for it.",
            f"See: vitc report {shlex.quote(str(folder.path))}; then other ranges or more draws.",
        )
    return values, errors


def check_draws(folder: StudyFolder, draws: int, option: str) -> None:
    """Raises ConfigError: so many draws of tuning would end the study, before any of them is run.

    Once it measures they are fixed: others could choose other settings. `option` sets them.
    """
    inside = StudyFolder(folder.path / TUNING)
    had = inside.read()[0].draws if inside.exists() else 0
    if folder.exists() and draws != had:
        without = "Leave --retune out" if option == "retune" else f"Use --{option} 0"
        state = f"the best of {had} draws" if had else "settings that were not tuned"
        raise ConfigError(
            f"{folder.path} already measures {state}: with {draws} it would be another study.",
            f"{f'Use --{option} {had}' if had else without}, or give another --out.",
        )
    if draws < had:
        raise ConfigError(
            f"{inside.path} has {had} draws, more than {draws}; draws are never removed.",
            f"Use --{option} {had} or more, or give another --out.",
        )
