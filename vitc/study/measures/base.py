"""What a measure is, and what the measures with seeds at points of an axis share.

A measure is a class with its options, `plan` and `read`; adding one is the class and an entry in
`vitc.study.measures.MEASURES`. Its plans are run by `vitc.study.studies`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vitc.errors import ConfigError
from vitc.study.contenders import (
    Request,
    again,
    count_classes,
    differ_by_design,
    groups_asked,
    one_precision,
    reference_of,
)
from vitc.study.controls import control_groups
from vitc.study.design import Group, Plan
from vitc.study.tuning import UNTUNED, Points, Tuned, Tuning, at_point

if TYPE_CHECKING:
    from vitc.study.results import Finding, Result

SHARES = (0.125, 0.25, 0.5, 1.0)  # of the recipe's epochs: the paper's 50 to 400


FIXED = ("lr and weight decay are the recipe's at every length, as in the paper",)
RECIPES_OWN = ("lr and weight decay are the recipe's",)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting of a measure: a keyword of `vitc.study.run` and a flag of its verb."""

    name: str
    help: str
    """Empty: not listed by --help."""
    default: Any = None
    least: int | None = None
    """The value is an integer of at least this."""
    choices: tuple[str, ...] = ()
    words: int | str | None = None
    """How many words the value has on a command line, as argparse's nargs."""
    repeated: bool = False
    """Every occurrence adds one value."""
    metavar: str | tuple[str, ...] | None = None


class Measure(ABC):
    """One kind of study: which trials it plans, and what is concluded from their results."""

    name: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    runs: ClassVar[str] = "seeds"
    """What trials of one group differ in: `draws` of settings, or `seeds` alone."""
    default_runs: ClassVar[int] = 3
    optims: ClassVar[tuple[str, ...]] = ("adamw",)
    untuned: ClassVar[tuple[str, ...]] = ()
    """Where the settings come from when nothing was tuned, for the report."""
    joins: ClassVar[bool] = False
    """Several studies of it on the same draws are read as one."""

    def tuning(self, request: Request) -> Tuning | None:
        """What is tuned before the measure; None: nothing."""
        return None

    @abstractmethod
    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        """The trials. Raises ConfigError."""

    @abstractmethod
    def read(self, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Finding:
        """What the results show so far, finished or not; `tuning`: the draws before them."""


def request_of(measure: Measure, **words: Any) -> Request:
    """A request from keywords: fields of `Request`, options of the measure, dotted settings."""
    fields = {f.name for f in dataclasses.fields(Request)} - {"options", "settings"}
    options = {o.name: [] if o.repeated else o.default for o in measure.options}
    given: dict[str, Any] = {"optims": measure.optims}
    settings = {}
    for name, value in words.items():
        if name in options:
            options[name] = value
        elif name in fields:
            given[name] = tuple(value) if isinstance(value, list | tuple) else value
        else:
            settings[name] = value
    if isinstance(given.get("recipes"), str):
        given["recipes"] = (given["recipes"],)
    return Request(**given, options=options, settings=settings)


# -- points and seeds ------------------------------------------------------------------------------


def groups_of(request: Request) -> tuple[list[Group], str]:
    """The contenders of a request, with those that its controls add; and the reference.

    Raises ConfigError.
    """
    groups = groups_asked(request)
    if "time_matched" in request.controls:
        raise ConfigError(
            "--controls time_matched has no effect here.", "It is for vitc study hparams."
        )
    reference = reference_of(groups, request.reference, request.begun)
    return [*groups, *control_groups(groups, request.controls, reference)], reference


def seeded_plan(
    measure: Measure,
    request: Request,
    points: Points,
    tuned: Tuned = UNTUNED,
    groups: Sequence[Group] | None = None,
) -> Plan:
    """Every contender (or these `groups`) at every point with the request's number of seeds."""
    every, reference = groups_of(request)
    return measure_plan(
        measure.name,
        every if groups is None else groups,
        points,
        seeds=request.runs,
        tuned=tuned,
        control=request.control,
        reference=reference,
        looks=max(request.looks, 1),
        margin=request.margin,
        differ=differ_by_design(request),
        seed=request.seed,
        name=request.name,
        about=tuned.about or measure.untuned,
    )


def measure_plan(
    measure: str,
    groups: Sequence[Group],
    points: Points,
    *,
    seeds: int,
    tuned: Tuned = UNTUNED,
    control: bool = False,
    **plan: Any,
) -> Plan:
    """Every group at every point with `seeds` seeds; `plan` holds further fields of `Plan`.

    `classes` not given: counted in the data. Raises ConfigError.
    """
    reference = reference_of(groups, plan.pop("reference", ""))
    at_points = [at_point(g, p, s, tuned) for p, s in points.items() for g in groups]
    at_points = one_precision([*at_points, *(again(at_points, reference) if control else [])])
    if plan.get("classes") is None:
        plan["classes"] = count_classes(at_points[0].config)
    found = Plan(
        groups=tuple(at_points),
        ranges={},
        draws=seeds,
        reference=reference,
        measure=measure,
        **plan,
    )
    return found.checked()


def default_lengths(epochs: int) -> list[int]:
    """An eighth, a quarter, a half and all of the recipe's epochs, as the paper's 50 to 400."""
    return sorted({max(1, round(share * epochs)) for share in SHARES})


def length_points(lengths: Sequence[int]) -> Points:
    """Points at these epochs, ascending."""
    return {f"{e} epochs": {"train.epochs": e} for e in sorted(set(lengths))}


def epochs_of(point: str) -> int:
    """The length that a point of `length_points` names."""
    return int(point.partition(" ")[0])


LENGTHS = Option(
    name="lengths",
    least=1,
    words="+",
    metavar="EPOCHS",
    help="epochs of the runs (default: 1/8, 1/4, 1/2 and all of the recipe's, as the paper's "
    "50 100 200 400)",
)
RETUNE = Option(
    name="retune",
    least=1,
    metavar="N",
    help="tune lr and weight decay with N draws at every length first (default: as the recipe)",
)
TUNE_EPOCHS = Option(
    name="tune_epochs",
    least=1,
    metavar="EPOCHS",
    help="length of the draws (default: an eighth of the recipe's)",
)


def tune_option(default: int) -> Option:
    return Option(
        name="tune",
        least=0,
        default=default,
        metavar="N",
        help=f"draws of lr and weight decay first; 0: the recipe's own (default: {default})",
    )


def recipe_epochs(request: Request) -> int:
    return groups_of(request)[0][0].config.train.epochs


def points_of_lengths(request: Request, every_length: bool = True) -> Points:
    """The lengths asked for; else the usual ones, or that of the recipe. Raises ConfigError."""
    lengths = request.options["lengths"]
    if lengths and "train.epochs" in request.settings:
        raise ConfigError("--train.epochs has no effect with --lengths, which sets them.")
    if not lengths:
        epochs = recipe_epochs(request)
        lengths = default_lengths(epochs) if every_length else [epochs]
    return length_points(lengths)


def tuning_at_every_length(request: Request) -> Tuning | None:
    """The draws of `retune` at the lengths asked for. Raises ConfigError."""
    points, draws = points_of_lengths(request), request.options["retune"]
    if not draws:
        return None
    about = f"lr and weight decay were tuned at every length with {draws} draws"
    return Tuning(draws, points, about)


def short_tuning(request: Request) -> Tuning | None:
    """The draws of `tune`, of a fraction of the recipe's epochs. Raises ConfigError."""
    draws = request.options["tune"]
    if not draws:
        return None
    epochs = request.options["tune_epochs"] or default_lengths(recipe_epochs(request))[0]
    return best_of_draws(draws, epochs)


def best_of_draws(draws: int, epochs: int) -> Tuning:
    """So many draws of so many epochs, the best of which gives lr and weight decay."""
    about = f"lr and weight decay are the best of {draws} draws of {epochs} epochs"
    return Tuning(draws, length_points([epochs]), about)
