"""The paper's measures as plans: contenders at points of an axis, with n seeds at each.

A measure is a `Plan` whose groups carry a `point` (a length, a rate, a set-up) and whose draws are
seeds: seed i of one contender and seed i of another form a pair. `findings` reads the trials. What
is tuned first is an ordinary study of random draws in the folder `tuning` inside the measure's.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vitc.config import RunConfig, leaves, load_config
from vitc.errors import ConfigError, RunError
from vitc.recipes.ranges import study_ranges
from vitc.study.design import HPARAMS, TUNING_SEEDS, Group, Plan, Range, StudyFolder
from vitc.study.runner import (
    again,
    count_classes,
    for_study,
    one_precision,
    reference_of,
    standing,
)

if TYPE_CHECKING:
    from vitc.study.results import Finding, Result

SHARES = (0.125, 0.25, 0.5, 1.0)  # of the recipe's epochs: the paper's 50 to 400
SEED_PARTS: dict[str, tuple[str, ...]] = {
    "all": ("train.seed",),
    "init": ("train.seed_init",),
    "order": ("train.seed_order",),
    "augmentation": ("train.seed_augment",),
}
FIXED_SEEDS = 100_000  # where the seeds lie that do not vary, beyond those that do


@dataclass(frozen=True)
class Times:
    """A setting's own value times a factor: its value at a point of `vary`."""

    factor: float


Points = Mapping[str, Mapping[str, Any]]  # label -> settings there


class Measure(ABC):
    """One kind of study: which trials it plans, and what is concluded from their results.

    A new one is a class like these and an entry in `vitc.study.measures.MEASURES`.
    """

    name: ClassVar[str]
    joins: ClassVar[bool] = False
    """Several studies of it on the same draws are read as one."""

    @abstractmethod
    def read(self, plan: Plan, results: Sequence[Result]) -> Finding:
        """What the results give so far, finished or not."""


def measure_plan(
    measure: str,
    groups: Sequence[Group],
    points: Points,
    *,
    seeds: int,
    name: str,
    seed: int = 0,
    reference: str = "",
    control: bool = False,
    chosen: Mapping[str, Mapping[str, float]] | None = None,
    about: Sequence[str] = (),
    exhibit: str = "",
    classes: int | None = None,
) -> Plan:
    """Every group at every point with `seeds` seeds.

    `chosen` are settings by the key of the group at its point, or of the group anywhere, as
    `best_values` finds them. `classes` None: counted in the data. Raises ConfigError.
    """
    reference = reference_of(groups, reference)
    at_points = [
        _at(g, point, settings, chosen or {}) for point, settings in points.items() for g in groups
    ]
    at_points = one_precision([*at_points, *(again(at_points, reference) if control else [])])
    return Plan(
        name=name,
        groups=tuple(at_points),
        ranges={},
        draws=seeds,
        seed=seed,
        reference=reference,
        classes=count_classes(at_points[0].config) if classes is None else classes,
        measure=measure,
        about=tuple(about),
        exhibit=exhibit,
    ).checked()


def _at(
    group: Group, point: str, settings: Mapping[str, Any], chosen: Mapping[str, Mapping[str, float]]
) -> Group:
    here = dataclasses.replace(group, point=point)
    values = chosen.get(here.key, chosen.get(group.key, {}))
    config = load_config(group.config, **values)
    own = leaves(config)
    resolved = {}
    for setting, value in settings.items():
        if isinstance(value, Times):
            base = own.get(setting)
            if not isinstance(base, int | float) or isinstance(base, bool):
                raise ConfigError(f"--times {setting}: its value {base!r} is no number.")
            value = type(base)(base * value.factor)
        resolved[setting] = value
    return here.with_config(for_study(load_config(config, **resolved)))


def default_lengths(epochs: int) -> list[int]:
    """An eighth, a quarter, a half and all of the recipe's epochs, as the paper's 50 to 400."""
    return sorted({max(1, round(share * epochs)) for share in SHARES})


def length_points(lengths: Sequence[int]) -> Points:
    """Points at these epochs, ascending."""
    return {f"{e} epochs": {"train.epochs": e} for e in sorted(set(lengths))}


def epochs_of(point: str) -> int:
    """The length that a point of `length_points` names."""
    return int(point.partition(" ")[0])


def seed_plan(groups: Sequence[Group], *, seeds: int, **settings: Any) -> Plan:
    """Every group with one kind of randomness varied at a time, and with all; see `SEED_PARTS`.

    What does not vary has seeds of its own, so that no run is in two of the sets: the law of their
    variances' ratio is that of independent ones.
    """
    if seeds < 2:
        raise ConfigError(f"A variance needs at least 2 seeds, not {seeds}.")
    plan = measure_plan("seeds", groups, {part: {} for part in SEED_PARTS}, seeds=seeds, **settings)
    varied = [_varying(g, SEED_PARTS[g.point], plan.seed) for g in plan.groups]
    return dataclasses.replace(plan, groups=tuple(varied)).checked()


def _varying(group: Group, names: tuple[str, ...], seed: int) -> Group:
    fixed = {
        name: 1000 * seed + group.seed_shift + FIXED_SEEDS
        for (name,) in SEED_PARTS.values()
        if names != SEED_PARTS["all"] and name not in ("train.seed", *names)
    }
    varied = dataclasses.replace(group, seed_names=names)
    return varied.with_config(load_config(group.config, **fixed))


# -- tuning first ----------------------------------------------------------------------------------


def tuning_plan(
    groups: Sequence[Group],
    points: Points,
    *,
    draws: int,
    name: str,
    seed: int = 0,
    classes: int | None = None,
) -> Plan:
    """Random draws of lr and weight decay for every group at every point, before the measure.

    The ranges are those of the first group of each optimizer (`recipes.ranges`), for all. Raises
    ConfigError.
    """
    at_points = one_precision([_at(g, p, s, {}) for p, s in points.items() for g in groups])
    if len(points) > 1:
        at_points = [
            dataclasses.replace(g, contender=f"{g.contender} at {g.point}") for g in at_points
        ]
    else:
        at_points = [dataclasses.replace(g, point="") for g in at_points]
    return Plan(
        name=name,
        groups=tuple(at_points),
        ranges=shared_ranges(groups, {}),
        draws=draws,
        seed=seed,
        classes=count_classes(at_points[0].config) if classes is None else classes,
        measure=HPARAMS,
    ).checked()


def with_precision(groups: Sequence[Group], plan: Plan) -> list[Group]:
    """The groups with the precision they have in a plan of them.

    Precision auto is measured: once more for another plan of theirs, it could come out otherwise.
    """
    return [
        g.with_config(load_config(g.config, **{"train.precision": p.config.train.precision}))
        for g, p in zip(groups, plan.groups, strict=False)
    ]


def before_measuring(plan: Plan) -> Plan:
    """The draws with seeds of their own, so that the best of them is no run that is measured.

    A run that won by its luck would otherwise bring it into the mean of the measured seeds.
    """
    return dataclasses.replace(plan, seed_start=TUNING_SEEDS).checked()


def shared_ranges(
    groups: Sequence[Group], ranges: Mapping[str, Mapping[str, Range]]
) -> dict[str, dict[str, Range]]:
    """Optimizer -> setting -> range, of its first group; `ranges` replaces or adds some."""
    found: dict[str, dict[str, Range]] = {}
    for g in groups:
        if g.optim not in found:
            found[g.optim] = {**family_ranges(g.config, g.optim), **ranges.get(g.optim, {})}
    return found


def family_ranges(config: RunConfig, optim: str) -> dict[str, Range]:
    """The ranges of `recipes.ranges` for one config."""
    own = study_ranges(config, optim)
    return {name: Range(low=low, high=high) for name, (low, high) in own.items()}


def best_values(
    folder: StudyFolder, plan: Plan
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """By the key that `measure_plan` looks for: the settings of the best draw, and its error.

    Raises RunError: a draw has no result, or a group no draw that trained.
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
    runs = at.runs
    values: dict[str, dict[str, float]] = {}
    errors: dict[str, float] = {}
    for trial in plan.trials():
        key = "/".join(
            x
            for x in (trial.contender.removesuffix(f" at {trial.point}"), trial.optim, trial.point)
            if x
        )
        run = runs.get(trial.id)
        if run is None or run.top1 is None:
            errors.setdefault(key, float("inf"))
        elif 100 - run.top1 < errors.get(key, float("inf")):
            values[key], errors[key] = dict(trial.values), 100 - run.top1
    hopeless = [key for key, error in errors.items() if error == float("inf")]
    if hopeless:
        raise RunError(
            f"No draw of {', '.join(hopeless)} trained, so nothing can be chosen for it.",
            f"See: vitc report {folder.path}; then other ranges or more draws.",
        )
    return values, errors


def best_optimizer(groups: Sequence[Group], errors: Mapping[str, float]) -> list[Group]:
    """Of each contender the group of the optimizer whose best draw was best."""
    best: dict[str, Group] = {}
    for g in groups:
        if g.contender not in best or errors[g.key] < errors[best[g.contender].key]:
            best[g.contender] = g
    return list(best.values())


# -- points of vary --------------------------------------------------------------------------------


def vary_points(
    sets: Sequence[tuple[str, Sequence[Any]]],
    times: Sequence[tuple[str, Sequence[float]]],
    setups: Sequence[tuple[str, Mapping[str, Any]]],
) -> Points:
    """One point a value, axes one at a time; a set-up is a point of several settings together.

    Raises ConfigError: no point, or one twice.
    """
    points: list[tuple[str, Mapping[str, Any]]] = []
    for name, values in sets:
        points += [(f"{name.rpartition('.')[2]} {_plain(v)}", {name: v}) for v in values]
    for name, factors in times:
        points += [(f"{name.rpartition('.')[2]} x{f:g}", {name: Times(f)}) for f in factors]
    points += list(setups)
    labels = [label for label, _ in points]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if not points or twice:
        raise ConfigError(
            f"The point {twice[0]!r} is there twice." if twice else "Nothing is varied.",
            "Use --set SETTING VALUE..., --times SETTING FACTOR... or --setup NAME SETTING=VALUE.",
        )
    return dict(points)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
