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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitc.config import RunConfig, all_leaf_types, differences, from_dict, to_dict
from vitc.data.sampling import uniform
from vitc.errors import ConfigError
from vitc.files import LOCK, read_json, write_json
from vitc.plugins.consent import with_sources
from vitc.plugins.names import STEM, Custom
from vitc.runs.folder import keep_sources
from vitc.wording import short

PLAN_FILE = "plan.json"
PLAN_VERSION = 1
RECORD = {
    "plan": dict,
    "hash": str,
    "created": str,
    "command": str,
    "environment": dict,
    "history": list,
}
TUNING_SEEDS = 250_000  # where its seeds start; the A/A control's are 500,000 on
TUNING = "tuning"  # folder of a first study whose best settings the measured one takes
HPARAMS = "hparams"  # the measure of a plan that says none
PRIMARY = "top-1 error of the EMA weights on validation after the last epoch"
DIVERGED = "a run whose loss stops being finite counts as chance error and stays in the statistics"


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

    def problems(self, name: str) -> list[str]:
        if not self.low < self.high:
            return [f"The range of {name} is {self.low} to {self.high}; low must be below high."]
        if self.log and self.low <= 0:
            return [f"The range of {name} starts at {self.low}; a log range starts above 0."]
        return []


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

    @property
    def key(self) -> str:
        return "/".join(x for x in (self.contender, self.optim, self.point) if x)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the study; `id` is the hash of its resolved config."""

    id: str
    contender: str
    optim: str
    draw: int
    values: dict[str, float]
    config: RunConfig
    point: str = ""

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
    """What is measured; it decides how the report reads the trials (`reading.MEASURES`)."""
    about: tuple[str, ...] = ()
    """Sentences on how the settings were come by, for the report."""
    exhibit: str = ""
    """The figure or table of the paper that this is (`paper.EXHIBITS`), and at which scale."""
    seed_start: int = 0
    """Added to every seed: draws that only choose settings are no run that is measured after."""

    @property
    def chance_error(self) -> float:
        return 100 * (1 - 1 / self.classes)

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(g.contender for g in self.groups))

    @property
    def optims(self) -> list[str]:
        return list(dict.fromkeys(g.optim for g in self.groups))

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
        types = all_leaf_types()
        values = {name: r.at(float(x)) for (name, r), x in zip(ranges.items(), u, strict=True)}
        return {n: round(v) if types.get(n) is int else v for n, v in values.items()}

    def trials(self) -> Iterator[Trial]:
        """All trials, draw by draw: an unfinished study then holds whole pairs."""
        for draw in range(self.draws):
            for group in self.groups:
                values = self.draw_values(group.optim, draw, group.ranges)
                base = 1000 * self.seed + self.seed_start + group.seed_shift
                seeds = {"train.seed": base, **dict.fromkeys(group.seed_names, base + draw)}
                config = from_dict({**values, **seeds}, group.config).checked()
                yield Trial(
                    id=config_hash(config),
                    contender=group.contender,
                    optim=group.optim,
                    draw=draw,
                    values=values,
                    config=config,
                    point=group.point,
                )

    def checked(self) -> Plan:
        """Itself, or a ConfigError listing every problem."""
        found: list[str] = []
        if self.draws < 1:
            found.append(f"A study needs at least 1 draw, not {self.draws}.")
        if not self.groups:
            found.append("A study needs at least one contender.")
        keys = [g.key for g in self.groups]
        found += [
            f"Contender {k} is there twice." for k in sorted({k for k in keys if keys.count(k) > 1})
        ]
        for optim in self.optims:
            if self.measure == HPARAMS and not self.ranges.get(optim):
                found.append(f"No range is given for optimizer {optim!r}.")
        for ranges in (*self.ranges.values(), *(g.ranges or {} for g in self.groups)):
            for name, r in ranges.items():
                found += r.problems(name)
        if self.reference and self.reference not in self.contenders:
            found.append(
                f"The reference {self.reference!r} is not a contender; "
                f"contenders: {', '.join(self.contenders)}."
            )
        if found:
            raise ConfigError("\n".join(found), "See: vitc study hparams --help")
        next(self.trials())  # a setting that no config has is refused here, not at trial 1
        return self


def config_hash(config: RunConfig) -> str:
    """12 hex digits of what decides a run's result; where and how often it logs does not."""
    values = to_dict(config)
    for name in ("device", "save_every_seconds", "save_every_steps", "keep_checkpoints"):
        values["train"].pop(name)
    values["data"].pop("workers")
    stem = values["model"].get("stem", {})
    if stem.get("sha256"):  # of a stem from outside the content counts, not where it lies
        stem["source"] = Custom(STEM, stem["source"]).what
    return _sha(values)[:12]


def _sha(values: Any) -> str:
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
    "schedule": lambda c: to_dict(c.optim.schedule),
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
            if len(settings_of(groups, read)) > 1:
                shown = ", ".join(
                    f"{g.contender}: {short(str(read(g.config)), 40)}" for g in groups
                )
                found.append(f"{where}: contenders differ in {name} ({shown})")
    return found


def settings_of(groups: Iterable[Group], read: Callable[[RunConfig], Any]) -> set[str]:
    """The values that groups have of one of `MUST_AGREE`, as text to compare."""
    return {json.dumps(read(g.config), sort_keys=True) for g in groups}


# -- plan.json -------------------------------------------------------------------------------------


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: what is hashed, and what `from_json` reads back."""
    return {
        "name": plan.name,
        "contenders": plan.contenders,
        "reference": plan.reference,
        "groups": [
            {
                "contender": g.contender,
                "optim": g.optim,
                "seed_shift": g.seed_shift,
                "config": to_dict(g.config),
                **_group_extras(g),
            }
            for g in plan.groups
        ],
        "ranges": {
            o: {n: dataclasses.asdict(r) for n, r in rs.items()} for o, rs in plan.ranges.items()
        },
        "draws": [
            {"optim": o, "draw": i, **plan.draw_values(o, i)}
            for o in plan.optims
            for i in range(plan.draws)
        ],
        "draw_count": plan.draws,
        "seed": plan.seed,
        "classes": plan.classes,
        "batch": sorted({g.config.train.batch for g in plan.groups}),
        "budget_epochs": sorted({g.config.train.epochs for g in plan.groups}),
        "primary_metric": PRIMARY,
        "divergence_rule": DIVERGED,
        **({} if plan.measure == HPARAMS else {"measure": plan.measure}),
        **({"about": list(plan.about)} if plan.about else {}),
        **({"exhibit": plan.exhibit} if plan.exhibit else {}),
        **({"seed_start": plan.seed_start} if plan.seed_start else {}),
    }


def _group_extras(g: Group) -> dict[str, Any]:
    """What few groups have; left out elsewhere, so that a plan without it keeps its hash."""
    extras: dict[str, Any] = {}
    if g.point:
        extras["point"] = g.point
    if g.seed_names != ("train.seed",):
        extras["seed_names"] = list(g.seed_names)
    if g.ranges is not None:
        extras["ranges"] = {n: dataclasses.asdict(r) for n, r in g.ranges.items()}
    return extras


def from_json(values: Mapping[str, Any]) -> Plan:
    """The plan that `to_json` wrote. Raises ConfigError where it is not one."""
    try:
        return Plan(
            name=values["name"],
            groups=tuple(
                Group(
                    contender=g["contender"],
                    optim=g["optim"],
                    seed_shift=g["seed_shift"],
                    config=from_dict(g["config"]),
                    point=g.get("point", ""),
                    seed_names=tuple(g.get("seed_names", ("train.seed",))),
                    ranges={n: Range(**r) for n, r in g["ranges"].items()}
                    if "ranges" in g
                    else None,
                )
                for g in values["groups"]
            ),
            ranges={
                o: {n: Range(**r) for n, r in rs.items()} for o, rs in values["ranges"].items()
            },
            draws=values["draw_count"],
            seed=values["seed"],
            reference=values["reference"],
            classes=values["classes"],
            measure=values.get("measure", HPARAMS),
            about=tuple(values.get("about", ())),
            exhibit=values.get("exhibit", ""),
            seed_start=values.get("seed_start", 0),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"This is not a study's plan: {error!r}.") from error


@dataclass(frozen=True)
class StudyFolder:
    """A study on disk: plan.json, trials/<id>/ (ordinary run folders), and later the report."""

    path: Path

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    def trial(self, trial: Trial) -> Path:
        return self.trials / trial.id

    def exists(self) -> bool:
        return (self.path / PLAN_FILE).exists()

    def read(self) -> tuple[Plan, dict[str, Any]]:
        """(plan, the whole record with hash, environment and history)."""
        if not self.exists() and StudyFolder(self.path / TUNING).exists():
            raise ConfigError(
                f"{self.path} has only begun its tuning; nothing is measured yet.",
                f"How far it is: vitc study status {self.path}; the draws so far: vitc report "
                f"{self.path / TUNING}",
            )
        if not self.exists():
            raise ConfigError(
                f"{self.path} is not a study: it has no {PLAN_FILE}.",
                "Start one with: vitc study quick --out DIR",
            )
        file = self.path / PLAN_FILE
        try:
            record = read_json(file)
            lacking = [name for name, kind in RECORD.items() if type(record.get(name)) is not kind]
            if lacking:
                raise ConfigError(f"{file} is damaged: it has no {', '.join(lacking)}.")
            if _sha(record["plan"]) != record["hash"]:
                raise ConfigError(
                    f"{file} was changed after it was written: its hash does not fit."
                )
        except ConfigError as error:
            raise ConfigError(
                error.message,
                "Restore it from a copy, or start a new study with another --out. The trials are "
                f"runs of their own, in {self.trials}.",
            ) from error
        return from_json(record["plan"]), record

    def start(self, plan: Plan, environment: Mapping[str, Any], command: str) -> dict[str, Any]:
        """Write the plan before the first trial, or join the study that is there.

        The same plan continues; the same plan with more draws is extended, which is noted in the
        history. Anything else is refused with what differs.
        """
        names = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        if not self.exists() and names - {LOCK, TUNING}:
            raise ConfigError(
                f"{self.path} is not empty and is not a study.", "Give another --out."
            )
        values = to_json(plan)
        if not self.exists():
            record: dict[str, Any] = {
                "version": PLAN_VERSION,
                "hash": _sha(values),
                "first_hash": _sha(values),
                "created": _now(),
                "command": command,
                "environment": dict(environment),
                "plan": values,
                "history": [],
            }
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(record)
            self._keep_sources(plan)
            return record
        old, record = self.read()
        self._keep_sources(plan)
        # sentences may be worded better since: they decide no trial
        plan = dataclasses.replace(_as_it_was(plan, old), about=old.about)
        values = to_json(plan)
        if record["hash"] == _sha(values):
            return record
        if _sha(to_json(dataclasses.replace(plan, draws=old.draws))) != record["hash"]:
            raise ConfigError(
                f"{self.path} holds another study: {_plan_difference(record['plan'], values)}.",
                "Give another --out, or the settings it was started with.",
            )
        if plan.draws < old.draws:
            raise ConfigError(
                f"{self.path} has {old.draws} draws, more than {plan.draws}; draws are never "
                "taken back.",
                f"Use --draws {old.draws} or more.",
            )
        record["plan"], record["hash"] = values, _sha(values)
        record["history"].append(
            {
                "when": _now(),
                "what": f"extended from {old.draws} to {plan.draws} draws",
                "command": command,
            }
        )
        self._write(record)
        return record

    def _keep_sources(self, plan: Plan) -> None:
        for group in plan.groups:
            keep_sources(self.path, group.config)

    def with_sources(self, plan: Plan) -> Plan:
        """The plan with its stems from outside found again: their files, or the study's copies.

        Raises ConfigError: one was never admitted (`vitc.plugins.trust`), or is nowhere.
        """
        models = [with_sources(g.config.model, self.path) for g in plan.groups]
        configs = [
            dataclasses.replace(g.config, model=m) for g, m in zip(plan.groups, models, strict=True)
        ]
        groups = [
            dataclasses.replace(g, config=c) for g, c in zip(plan.groups, configs, strict=True)
        ]
        return dataclasses.replace(plan, groups=tuple(groups))

    def note(self, what: str, command: str) -> None:
        """Add a deviation to the history: a retry, another machine, a change of engine."""
        _, record = self.read()
        record["history"].append({"when": _now(), "what": what, "command": command})
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        write_json(self.path / PLAN_FILE, record, indent=1)


def _as_it_was(plan: Plan, old: Plan) -> Plan:
    """The plan with the old configs where nothing but the place of a stem's file differs."""

    def before(group: Group) -> Group:
        same = [g for g in old.groups if dataclasses.replace(g, config=group.config) == group]
        return next((g for g in same if not differences(g.config, group.config)), group)

    return dataclasses.replace(plan, groups=tuple(map(before, plan.groups)))


def _plan_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [k for k in new if old.get(k) != new[k] and k not in ("draws", "draw_count")]
    return f"it differs in {', '.join(names)}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
