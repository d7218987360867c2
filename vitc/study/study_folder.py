"""A study on disk: plan.json, written before the first trial, and what may change it later."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitc.config import SCHEMA, differences, from_saved, upgrade
from vitc.errors import ConfigError
from vitc.files import LOCK, read_json, write_json
from vitc.plugins.consent import with_sources
from vitc.plugins.names import SOURCES
from vitc.runs.folder import keep_sources
from vitc.study.design import HPARAMS, TUNING, Group, Plan, Range, Trial, sha_of
from vitc.study.effect import check_apart

PLAN_FILE = "plan.json"
Keep = int | Literal["all"]  # trials that keep their checkpoints: see `vitc.study.kept`
KEEP = 3  # of a new study; those of earlier versions keep all
RECORD = {
    "plan": dict,
    "hash": str,
    "created": str,
    "command": str,
    "environment": dict,
    "history": list,
}
PLAN_FIELDS = (  # of two plans of one study, apart from contenders and ranges, these agree
    "name",
    "measure",
    "reference",
    "seed",
    "classes",
    "exhibit",
    "seed_start",
    "looks",
    "margin",
    "differ",
)
PRIMARY = "top-1 error of the EMA weights on validation after the last epoch"
DIVERGED = (
    "a run failed to learn if its loss stopped being finite or its answers stay near chance; such "
    "runs are an endpoint of their own and count as chance error in curves over all draws"
)


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
                "config": g.settings,
                **_group_extras(g),
            }
            for g in plan.groups
        ],
        "ranges": {
            o: {n: dataclasses.asdict(r) for n, r in rs.items()} for o, rs in plan.ranges.items()
        },
        "draws": _draws(plan),
        "draw_count": plan.draws,
        "seed": plan.seed,
        "classes": plan.classes,
        "batch": sorted({g.config.train.batch for g in plan.groups}),
        "budget_epochs": sorted({g.config.train.epochs for g in plan.groups}),
        **({} if plan.measure == HPARAMS else {"measure": plan.measure}),
        **({"exhibit": plan.exhibit} if plan.exhibit else {}),
        **({"seed_start": plan.seed_start} if plan.seed_start else {}),
        **({"looks": plan.looks} if plan.looks > 1 else {}),
        **({"margin": plan.margin} if plan.margin is not None else {}),
        **({"differ": list(plan.differ)} if plan.differ else {}),
    }


def _draws(plan: Plan) -> list[dict[str, Any]]:
    every = ((o, i) for o in plan.optims for i in range(plan.draws))
    return [{"optim": o, "draw": i, **plan.draw_values(o, i)} for o, i in every]


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


def from_json(values: Mapping[str, Any], schema: int = SCHEMA, about: Sequence[str] = ()) -> Plan:
    """The plan that `to_json` wrote under a schema. Raises ConfigError where it is not one."""
    try:
        return Plan(
            name=values["name"],
            groups=tuple(
                Group(
                    contender=g["contender"],
                    optim=g["optim"],
                    seed_shift=g["seed_shift"],
                    config=from_saved({"schema": schema, **g["config"]}, g["contender"]),
                    stored=g["config"],
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
            about=tuple(values.get("about", about)),
            schema=schema,
            exhibit=values.get("exhibit", ""),
            seed_start=values.get("seed_start", 0),
            looks=values.get("looks", 1),
            margin=values.get("margin"),
            differ=tuple(values.get("differ", ())),
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
            schema = record.get("schema", 1)
            if type(schema) is int and schema > SCHEMA:
                raise ConfigError(
                    f"{file} is of schema {schema}; this version reads schemas up to {SCHEMA}.",
                    "Use the version of vitc that began the study, or a newer one.",
                )
            lacking = [name for name, kind in RECORD.items() if type(record.get(name)) is not kind]
            if lacking:
                raise ConfigError(f"{file} is damaged: it has no {', '.join(lacking)}.")
            if sha_of(record["plan"]) != record["hash"]:
                raise ConfigError(
                    f"{file} was changed after it was written: its hash does not fit."
                )
        except ConfigError as error:
            raise ConfigError(
                error.message,
                error.hint
                or "Restore it from a copy, or start a new study with another --out. The trials "
                f"are runs of their own, in {self.trials}.",
            ) from error
        try:
            plan = from_json(record["plan"], schema, record.get("about", ()))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error.message}", error.hint) from error
        return _relocated(plan, record.get("moved", {})), record

    def moves(self, plan: Plan) -> dict[str, str]:
        """Where images are now that the plan on disk, as it was first stored, has elsewhere."""
        if not self.exists():
            return {}
        old, _ = self.read()
        here = {g.key: g.config.data.path for g in plan.groups}
        return {
            str(g.settings["data"]["path"]): str(here[g.key])
            for g in old.groups
            if here.get(g.key, g.config.data.path) != g.config.data.path
        }

    def joined(self, plan: Plan) -> Plan:
        """The plan that its command runs here: as it is, or the stored one with its draws.

        What is stored stays, under the schema it was stored in, so that its trials are found.
        Raises ConfigError: a setting differs, or there are fewer draws than before; in a new study
        groups that would share their trials (`effect.check_apart`).
        """
        if not self.exists():
            check_apart(plan)
            return plan
        old, _ = self.read()
        differing = plan_differences(old, plan)
        if differing:
            raise ConfigError(
                f"{self.path} holds another study:\n  " + "\n  ".join(differing),
                "Give another --out, or the settings it was started with.",
            )
        if plan.draws < old.draws:
            raise ConfigError(
                f"{self.path} has {old.draws} draws, more than {plan.draws}; draws are never "
                "removed.",
                f"Use --draws {old.draws} or more.",
            )
        here = {g.key: g.config for g in plan.groups}  # a custom stem may have moved since
        groups = tuple(dataclasses.replace(g, config=here[g.key]) for g in old.groups)
        return dataclasses.replace(old, draws=plan.draws, groups=groups)

    def start(
        self,
        plan: Plan,
        environment: Mapping[str, Any],
        command: str,
        keep: Keep | None = None,
    ) -> dict[str, Any]:
        """Write the plan before the first trial, or join the study that is there; its record.

        The same plan continues; the same plan with more draws is extended, which is noted in the
        history. Anything else is refused with what differs (`joined`). `keep`: which trials keep
        their checkpoints, no part of the plan; None: as before, and in a new study `KEEP`.
        """
        names = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        if not self.exists() and names - {LOCK, TUNING, SOURCES}:
            raise ConfigError(
                f"{self.path} is not empty and is not a study.", "Give another --out."
            )
        if self.exists():
            joined, (old, record), moves = self.joined(plan), self.read(), self.moves(plan)
            before = record.get("keep", "all")
            if keep not in (None, before):
                record["keep"] = keep
                what = f"checkpoints that stay: {keep}, no longer {before} (--keep)"
                record["history"].append({"when": _now(), "what": what, "command": command})
                self._write(record)
            if moves:  # the plan keeps the place that trial ids are hashes of
                record["moved"] = {**record.get("moved", {}), **moves}
                what = "; ".join(f"the images of {a} are in {b} now" for a, b in moves.items())
                record["history"].append({"when": _now(), "what": what, "command": command})
                self._write(record)
            if joined.draws > old.draws:
                joined.check_trials()
                record["plan"] |= {"draws": _draws(joined), "draw_count": joined.draws}
                record["hash"] = sha_of(record["plan"])
                what = f"extended from {old.draws} to {joined.draws} draws"
                entry = {"when": _now(), "what": what, "command": command}
                record["history"].append(entry | {"draws": [old.draws, joined.draws]})
                self._write(record)
        else:
            plan.check_trials()
            values = to_json(plan)
            record = {
                "schema": SCHEMA,
                "hash": sha_of(values),
                "first_hash": sha_of(values),
                "created": _now(),
                "command": command,
                "environment": dict(environment),
                "plan": values,
                "about": list(plan.about),
                "primary_metric": PRIMARY,
                "divergence_rule": DIVERGED,
                "keep": KEEP if keep is None else keep,
                "history": [],
            }
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(record)
        for group in plan.groups:
            keep_sources(self.path, group.config)
        return record

    def with_sources(self, plan: Plan) -> Plan:
        """The plan with its custom classes found again: their files, or the study's copies.

        Raises ConfigError: one was never admitted (`vitc.plugins.trust`), or is nowhere.
        """
        groups = []
        for g in plan.groups:
            parts = {n: with_sources(getattr(g.config, n), self.path) for n in ("model", "optim")}
            config = dataclasses.replace(g.config, **parts)
            groups.append(dataclasses.replace(g, config=config))
        return dataclasses.replace(plan, groups=tuple(groups))

    def note(self, what: str, command: str) -> None:
        """Add a deviation to the history: a retry, another machine, a change of engine."""
        _, record = self.read()
        record["history"].append({"when": _now(), "what": what, "command": command})
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        write_json(self.path / PLAN_FILE, record, indent=1)


def _relocated(plan: Plan, moved: Mapping[str, str]) -> Plan:
    """The plan with the images where they are now; what is stored of it stays."""
    groups = []
    for g in plan.groups:
        place = moved.get(str(g.settings["data"]["path"])) if moved else None
        if place is not None:
            data = dataclasses.replace(g.config.data, path=place)
            config = dataclasses.replace(g.config, data=data)
            g = dataclasses.replace(g, config=config)
        groups.append(g)
    return dataclasses.replace(plan, groups=tuple(groups))


def looks_taken(record: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How often the draws of a study were complete, and its extensions that were not planned.

    Each extension is a look at the results before it. One is planned if the plan has that many
    looks and the draws at most doubled.
    """
    planned = record["plan"].get("looks", 1)
    extensions = [h for h in record["history"] if h["what"].startswith("extended from ")]
    unplanned = []
    for look, entry in enumerate(extensions, start=2):
        before, after = entry.get("draws", (1, math.inf))
        if look > planned or after > 2 * before:
            unplanned.append(entry["what"])
    return 1 + len(extensions), unplanned


def plan_differences(old: Plan, new: Plan) -> list[str]:
    """What differs between two plans by meaning, by the name of the setting; draws may be added.

    Images may be elsewhere: whether they are the same is seen when trials are run.
    """
    found = [
        f"{name}: {getattr(old, name)!r} -> {getattr(new, name)!r}"
        for name in PLAN_FIELDS
        if getattr(old, name) != getattr(new, name)
    ]
    for optim in dict.fromkeys([*old.ranges, *new.ranges]):
        lines = _range_differences(old.ranges.get(optim), new.ranges.get(optim), old.schema)
        found += [f"{optim}: {line}" for line in lines]
    before, after = ({g.key: g for g in plan.groups} for plan in (old, new))
    found += [f"contender {key} is not in the study" for key in after if key not in before]
    found += [f"contender {key} is missing" for key in before if key not in after]
    for key in before.keys() & after.keys():
        a, b = before[key], after[key]
        lines = [d for d in differences(a.config, b.config) if not d.startswith("data.path:")]
        found += [f"{key}: {line}" for line in lines]
        found += [f"{key}: {line}" for line in _range_differences(a.ranges, b.ranges, old.schema)]
        found += [
            f"{key}: {name} {getattr(a, name)} -> {getattr(b, name)}"
            for name in ("seed_shift", "seed_names")
            if getattr(a, name) != getattr(b, name)
        ]
    return found


def _range_differences(
    old: Mapping[str, Range] | None, new: Mapping[str, Range] | None, schema: int
) -> list[str]:
    before, after = upgrade(old or {}, schema), upgrade(new or {}, SCHEMA)
    absent = "(not drawn)"
    return [
        f"range of {name}: {before.get(name, absent)} -> {after.get(name, absent)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
