"""Which runs a study makes, fixed and hashed before the first of them.

A study compares *contenders* (a recipe's model, or any model under a recipe) on the same *draws* of
settings such as (lr, weight decay), for each optimizer apart: ranges, draws, budget and seeds are
identical, so that trial i of one contender and trial i of another form a pair.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vitc.config import (
    CUSTOM_PARTS,
    SCHEMA,
    RunConfig,
    flat_values,
    from_dict,
    to_dict,
    upgrade,
)
from vitc.data.sampling import uniform
from vitc.errors import ConfigError
from vitc.plugins.names import STEM, Custom
from vitc.wording import short

TUNING_SEEDS = 250_000  # where its seeds start; the A/A control's are 500,000 on
TUNING = "tuning"  # folder of a first study whose best settings the measured one takes
HPARAMS = "hparams"  # the measure of a plan that names none
_NO_RESULT = (  # settings that decide no result: where a trial runs, how often it saves
    "train.device",
    "train.save_every_seconds",
    "train.save_every_steps",
    "train.keep_checkpoints",
    "train.keep_every_epochs",
    "train.keep_best",
    "data.workers",
)
DATA_PLACE = ("path", "workers", "resident")  # settings of where images are, not of which
DATA_HANDLING = frozenset(  # and of what is done with them
    {
        "fit",
        "eval_crop",
        "balance",
        "bad_files",
        "cache_side",
        "cache_decode",
        "mean",
        "std",
        "augment",
    }
)
NOT_HASHED = {1: _NO_RESULT, 2: _NO_RESULT}  # by schema, with its names


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where one setting is drawn from: log-uniform between low and high, or uniform."""

    low: float
    high: float
    log: bool = True

    def at(self, u: float) -> float:
        """The value at quantile u in [0, 1), rounded to 4 digits so that it reads well."""
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + u * (self.high - self.low)
        return float(f"{value:.4g}")

    def whole(self, value: float) -> int:
        """The value as an integer, the nearest one that is in the range."""
        return max(math.ceil(self.low), min(round(value), math.floor(self.high)))

    def problems(self, name: str, whole: bool = False) -> list[str]:
        """`whole`: the setting is an integer."""
        if not self.low < self.high:
            return [f"The range of {name} is {self.low} to {self.high}; low must be below high."]
        if whole and math.ceil(self.low) > math.floor(self.high):
            return [
                f"The range of {name} is {self.low} to {self.high}, in which there is no integer, "
                "and the setting is one; widen the range."
            ]
        if self.log and self.low <= 0:
            return [f"The range of {name} starts at {self.low}; a log range starts above 0."]
        return []


def key_of(contender: str, optim: str, point: str) -> str:
    """The name of a group in files and messages."""
    return "/".join(filter(None, (contender, optim, point)))


@dataclass(frozen=True, kw_only=True)
class Group:
    """One contender under one optimizer, at one point of a measure: one error distribution."""

    contender: str
    optim: str
    config: RunConfig
    seed_shift: int = 0
    """Added to every seed: the A/A control is a contender against itself with other seeds."""
    point: str = ""
    """Where on the measure's axis, such as its length in epochs; "": the measure has no axis."""
    seed_names: tuple[str, ...] = ("train.seed",)
    """What the draw seeds; every other seed is then the same in all draws."""
    ranges: dict[str, Range] | None = None
    """Its own ranges, drawn from at the same quantiles; None: those of the plan."""
    stored: Mapping[str, Any] | None = field(default=None, compare=False)
    """The config as plan.json has it, under the plan's schema: what trial ids are hashes of. None:
    the group is not on disk yet."""

    @property
    def key(self) -> str:
        return key_of(self.contender, self.optim, self.point)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The config as plan.json has it, or will have it."""
        return to_dict(self.config) if self.stored is None else self.stored

    @cached_property
    def images(self) -> dict[str, Any]:
        """The settings that decide which images its trials use, wherever these are."""
        apart = DATA_HANDLING.union(DATA_PLACE)
        return {k: v for k, v in to_dict(self.config.data).items() if k not in apart}

    def with_config(self, config: RunConfig) -> Group:
        """The group with other settings: its trials are others."""
        return dataclasses.replace(self, config=config, stored=None)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the study; `id` is the hash of its settings as the plan has them."""

    id: str
    group: Group
    draw: int
    values: dict[str, float]
    """What was drawn, by the names of the plan's schema."""
    seeds: dict[str, int]
    schema: int = SCHEMA

    @property
    def contender(self) -> str:
        return self.group.contender

    @property
    def optim(self) -> str:
        return self.group.optim

    @property
    def point(self) -> str:
        return self.group.point

    @cached_property
    def config(self) -> RunConfig:
        """Built when it is asked for: a report of thousands of trials needs few of them."""
        settings = upgrade({**self.values, **self.seeds}, self.schema)
        del settings["schema"]
        return from_dict(settings, self.group.config)

    @property
    def images(self) -> str:
        """What decides its images: trials of which it is equal must have been run on the same."""
        own = self.group.images
        drawn = {k: v for k, v in self.values.items() if k.removeprefix("data.") in own}
        return json.dumps([own, drawn], sort_keys=True)

    @property
    def label(self) -> str:
        where = f" {self.point}" if self.point else ""
        return f"{self.contender}/{self.optim}{where} draw {self.draw}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the trials of a study."""

    name: str
    groups: tuple[Group, ...]
    ranges: dict[str, dict[str, Range]]
    """Optimizer -> setting -> range; the same for every contender."""
    draws: int
    seed: int = 0
    reference: str = ""
    """The contender that the others are compared with; "": the last one."""
    classes: int = 10
    """Classes of the data: chance error is 100 (1 - 1 / classes)."""
    measure: str = HPARAMS
    """What is measured; it decides how the report reads the trials (`study.measures.MEASURES`)."""
    about: tuple[str, ...] = ()
    """Sentences for the report on where the settings come from; no part of the hash."""
    exhibit: str = ""
    """The figure or table of the paper (`study.paper.exhibits.EXHIBITS`) that this is, and its
    scale."""
    seed_start: int = 0
    """Added to every seed: draws that only choose settings are no run that is measured after."""
    looks: int = 1
    """How often the results are looked at in all, each time with at most twice as many draws."""
    margin: float | None = None
    """Contenders whose errors differ by fewer points are equivalent; None: that is not asked."""
    differ: tuple[str, ...] = ()
    """Of `MUST_AGREE`, what contenders differ in by design, as those that are schedules."""
    schema: int = SCHEMA
    """The schema of the groups' stored settings and of the names in the ranges."""

    @property
    def chance_error(self) -> float:
        return 100 * (1 - 1 / self.classes)

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(g.contender for g in self.groups))

    @property
    def optims(self) -> list[str]:
        return list(dict.fromkeys(g.optim for g in self.groups))

    @property
    def baseline(self) -> str:
        """The contender that the others are compared with."""
        return self.reference or self.contenders[-1]

    @property
    def controls(self) -> set[str]:
        """The A/A controls: the reference again, with other seeds."""
        return {g.contender for g in self.groups if g.seed_shift}

    def ranges_of(self, group: Group) -> dict[str, Range]:
        """What a group's draws come from: its own ranges, or those all contenders share."""
        return self.ranges.get(group.optim, {}) if group.ranges is None else group.ranges

    def draw_values(
        self, optim: str, draw: int, ranges: Mapping[str, Range] | None = None
    ) -> dict[str, float]:
        """The settings of one draw: a pure function of (seed, optimizer, draw index).

        So the first 16 draws of a study of 32 are those of a study of 16. Other `ranges` than the
        plan's are drawn from at the same quantiles.
        """
        ranges = self.ranges.get(optim, {}) if ranges is None else ranges
        if not ranges:
            return {}
        u = uniform(self.seed, f"study {optim}", 0, np.array([draw]), len(ranges))[0]
        values = {name: r.at(float(x)) for (name, r), x in zip(ranges.items(), u, strict=True)}
        whole = self._whole.get(optim, set())
        return {n: ranges[n].whole(v) if n in whole else v for n, v in values.items()}

    @cached_property
    def _whole(self) -> dict[str, set[str]]:
        """Optimizer -> the settings of its groups that are integers."""
        found: dict[str, set[str]] = {}
        for group in self.groups:
            flat = flat_values(group.settings)
            found.setdefault(group.optim, set()).update(
                n for n, v in flat.items() if type(v) is int
            )
        return found

    def trials(self) -> Iterator[Trial]:
        """All trials, draw by draw: an unfinished study then holds whole pairs."""
        settings = [hashed_settings(group.settings, self.schema) for group in self.groups]
        for draw in range(self.draws):
            for group, stored in zip(self.groups, settings, strict=True):
                values = self.draw_values(group.optim, draw, group.ranges)
                base = 1000 * self.seed + self.seed_start + group.seed_shift
                seeds = {"train.seed": base, **dict.fromkeys(group.seed_names, base + draw)}
                yield Trial(
                    id=sha_of(_with(stored, {**values, **seeds}))[:12],
                    group=group,
                    draw=draw,
                    values=values,
                    seeds=seeds,
                    schema=self.schema,
                )

    def checked(self) -> Plan:
        """Itself, or a ConfigError listing every problem."""
        found: list[str] = []
        if self.draws < 1:
            found.append(f"A study needs at least 1 draw, not {self.draws}.")
        if self.looks < 1 or (self.margin is not None and not self.margin > 0):
            found.append(
                f"looks {self.looks} and margin {self.margin}: a study needs at least 1 look, and "
                "a margin is above 0 points."
            )
        if not self.groups:
            found.append("A study needs at least one contender.")
        keys = [g.key for g in self.groups]
        found += [
            f"Contender {k} is there twice." for k in sorted({k for k in keys if keys.count(k) > 1})
        ]
        for optim in self.optims:
            if self.measure == HPARAMS and not self.ranges.get(optim):
                found.append(f"No range is given for optimizer {optim!r}.")
        own = ((g.optim, g.ranges or {}) for g in self.groups)
        for optim, ranges in (*self.ranges.items(), *own):
            for name, r in ranges.items():
                found += r.problems(name, name in self._whole.get(optim, set()))
        if self.reference and self.reference not in self.contenders:
            found.append(
                f"The reference {self.reference!r} is not a contender; "
                f"contenders: {', '.join(self.contenders)}."
            )
        if found:
            raise ConfigError("\n".join(found), "See: vitc study hparams --help")
        next(self.trials()).config.checked()
        return self

    def check_trials(self) -> None:
        """Refuse draws that no run can have before the first one is run. Raises ConfigError."""
        for trial in self.trials():
            trial.config.checked()


def hashed_settings(stored: Mapping[str, Any], schema: int) -> dict[str, Any]:
    """What decides a run's result; where and how often it saves does not."""
    values = json.loads(json.dumps(stored))
    for name in NOT_HASHED[schema]:
        component, _, leaf = name.rpartition(".")
        values[component].pop(leaf, None)
    for part in CUSTOM_PARTS:  # of a custom class the content counts, wherever its file is
        table = values
        for name in part.split("."):
            table = table.get(name, {})
        if table.get("sha256"):
            table["source"] = Custom(STEM, table["source"]).what
    return typing.cast(dict[str, Any], values)


def _with(values: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others by their dotted names; what is not changed is shared."""
    out = dict(values)
    for name, value in changed.items():
        head, _, rest = name.partition(".")
        out[head] = _with(out.get(head, {}), {rest: value}) if rest else value
    return out


def sha_of(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# -- what differs between contenders and must not --------------------------------------------------


MUST_AGREE: dict[str, Callable[[RunConfig], Any]] = {
    "precision": lambda c: c.train.precision,
    "compile": lambda c: c.train.compile,
    "device": lambda c: c.train.device,
    "threads": lambda c: c.train.threads,
    "epochs": lambda c: c.train.epochs,
    "batch": lambda c: c.train.batch,
    "data": lambda c: to_dict(c.data),
    "schedule": lambda c: to_dict(c.optim)["schedule"],
    "ema": lambda c: to_dict(c.optim.ema),
}


def mixed(plan: Plan) -> list[str]:
    """Settings in which contenders differ although they must agree for a fair comparison.

    What a measure varies along its axis differs between points, never between contenders at one.
    """
    found = []
    for optim, point in dict.fromkeys((g.optim, g.point) for g in plan.groups):
        groups = [g for g in plan.groups if (g.optim, g.point) == (optim, point)]
        where = f"{optim} at {point}" if point else optim
        for name, read in MUST_AGREE.items():
            if name not in plan.differ and len(settings_of(groups, read)) > 1:
                shown = ", ".join(
                    f"{g.contender}: {short(str(read(g.config)), 40)}" for g in groups
                )
                found.append(f"{where}: contenders differ in {name} ({shown})")
    return found


def settings_of(groups: Iterable[Group], read: Callable[[RunConfig], Any]) -> set[str]:
    """The values that groups have of one of `MUST_AGREE`, as text to compare."""
    return {json.dumps(read(g.config), sort_keys=True) for g in groups}
