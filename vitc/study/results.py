"""From run folders to the numbers of a report: one row a trial, then statistics, no words."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitc.errors import ConfigError, VitcError
from vitc.runs.folder import read_metrics
from vitc.stats import curves as st
from vitc.study.chosen import read_chosen
from vitc.study.design import MUST_AGREE, Group, Plan, StudyFolder, settings_of
from vitc.study.runner import standing

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity

Tests = dict[tuple[str, str], dict[str, Any]]  # (contender, optim) -> its entry in chosen.json
Protocol = Literal["last", "paper"]  # which of a run's evaluations is its error
PAPER_PRIMARY = "minimum over epochs of the top-1 error of the EMA weights on validation"
WITHIN_POINTS = 2.0  # "share of draws within x points of the best"


@dataclass(frozen=True)
class Row:
    """One trial. `error` is top-1 error in percent; chance where it diverged; None where there
    is no result (failed, running, waiting)."""

    study: str
    id: str
    contender: str
    optim: str
    draw: int
    values: dict[str, float]
    status: str
    error: float | None
    error_raw: float | None
    error_best_epoch: float | None
    train_seconds: float | None
    steps: int
    peak_memory_bytes: int | None
    seed: int
    folder: str
    note: str = ""
    point: str = ""


@dataclass(frozen=True)
class GroupResult:
    """One contender under one optimizer."""

    contender: str
    optim: str
    rows: list[Row]
    curves: list[tuple[list[float], list[float]]]
    """Validation error over epochs, one (epochs, errors) a trial that has a result."""
    losses: list[tuple[list[float], list[float]]]
    """Training loss over epochs, likewise."""
    median: st.Interval | None
    area: st.Interval | None
    share: st.Interval | None
    tuning: st.TuningCurve | None
    borders: dict[str, st.Border]
    cost: Complexity | None
    """Of one image; None where the model cannot be counted, and `uncounted` says why."""
    uncounted: str
    test: dict[str, Any]
    """What the chosen run scored on the test images; empty where they were not read."""

    @property
    def flops(self) -> float:
        """nan where not counted; so are `params` and `activations`."""
        return self.cost.flops if self.cost else math.nan

    @property
    def params(self) -> float:
        return self.cost.params if self.cost else math.nan

    @property
    def activations(self) -> float:
        return self.cost.activations if self.cost else math.nan

    @property
    def errors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([r.error for r in self.rows if r.error is not None])

    @property
    def best(self) -> Row | None:
        good = [r for r in self.rows if r.error is not None]
        return min(good, key=lambda r: r.error or 0.0, default=None)

    def count(self, status: str) -> int:
        return sum(r.status == status for r in self.rows)

    @property
    def seconds_a_trial(self) -> float:
        """Mean training time of the trials that ran to the end; 0 while there is none."""
        done = [r.train_seconds for r in self.rows if r.status == "done" and r.train_seconds]
        return float(np.mean(done)) if done else 0.0

    @property
    def step_ms(self) -> float | None:
        each = [
            1e3 * r.train_seconds / r.steps
            for r in self.rows
            if r.status == "done" and r.train_seconds and r.steps
        ]
        return plain_statistics.median(each) if each else None

    @property
    def memory_mib(self) -> float | None:
        each = [r.peak_memory_bytes / 2**20 for r in self.rows if r.peak_memory_bytes]
        return plain_statistics.median(each) if each else None


@dataclass(frozen=True)
class Comparison:
    """A contender against the reference on the draws that both have a result for."""

    contender: str
    reference: str
    optim: str
    n: int
    difference: st.Interval
    """Median of (contender's error - reference's), points; negative: the contender is better."""
    p: float
    p_holm: float
    crossings: st.Crossings
    reach: st.Reach | None
    draws_needed: int | None
    is_control: bool


@dataclass(frozen=True)
class Section:
    """What one study, or several joined ones, came to."""

    name: str
    plan: Plan
    records: list[dict[str, Any]]
    folders: list[str]
    groups: list[GroupResult]
    comparisons: list[Comparison]
    unfinished: int
    notes: list[str] = field(default_factory=list)
    protocol: Protocol = "last"

    @property
    def rows(self) -> list[Row]:
        return [r for g in self.groups for r in g.rows]

    def of(self, optim: str) -> list[GroupResult]:
        return [g for g in self.groups if g.optim == optim]


def analyse(folders: Sequence[Path], protocol: Protocol = "last") -> list[Section]:
    """One section a study; studies with the same ranges, seed and budget become one.

    `protocol`: a run's error is that after its last epoch, or the least of all its epochs ("paper",
    as in the authors' sweeps). Raises ConfigError: no folder, or one that is not a study.
    """
    if not folders:
        raise ConfigError("No study is given.", "For example: vitc report studies/quick")
    read = [(folder, *StudyFolder(folder).read()) for folder in folders]
    sections: list[tuple[Plan, list[dict[str, Any]], list[Path], list[Row], Tests, list[str]]] = []
    for folder, plan, record in read:
        plan = StudyFolder(folder).with_sources(plan)
        new = rows_of(StudyFolder(folder), plan, protocol)
        chosen = read_chosen(folder) if protocol == "last" else {}  # it names the best last epoch
        tests = {(g.contender, g.optim): chosen.get(g.key, {}) for g in plan.groups}
        apart = [_apart(s[0], plan, s[1][0], record) for s in sections]
        home = next(
            (s for s, differing in zip(sections, apart, strict=True) if not differing), None
        )
        if home is None:
            why = [
                f"Not joined with {s[2][0]}: they differ in {', '.join(differing)}."
                for s, differing in zip(sections, apart, strict=True)
            ]
            sections.append((plan, [record], [folder], new, tests, why))
            continue
        old_plan, records, paths, old, old_tests, why = home
        taken = set(old_plan.contenders)
        names = {c: f"{c} ({plan.name})" if c in taken else c for c in plan.contenders}
        joined = replace(
            old_plan,
            name=f"{old_plan.name} + {plan.name}",
            groups=(
                *old_plan.groups,
                *(replace(g, contender=names[g.contender]) for g in plan.groups),
            ),
            draws=max(old_plan.draws, plan.draws),
        )
        rows = [*old, *(replace(r, contender=names[r.contender]) for r in new)]
        renamed = {(names[c], o): test for (c, o), test in tests.items()}
        if records[0]["environment"]["hardware"] != record["environment"]["hardware"]:
            why = [*why, f"{folder} ran on other hardware than {paths[0]}."]
        sections[sections.index(home)] = (
            joined,
            [*records, record],
            [*paths, folder],
            rows,
            old_tests | renamed,
            why,
        )
    return [_section(*s, protocol) for s in sections]


def _apart(a: Plan, b: Plan, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps two studies from being one: their contenders would form no fair pairs."""
    found = [] if (a.ranges, a.seed) == (b.ranges, b.seed) else ["draws"]
    if any(g.ranges is not None for g in (*a.groups, *b.groups)):
        found.append("ranges of single contenders")
    found += [
        n
        for n, read in MUST_AGREE.items()
        if settings_of(a.groups, read) != settings_of(b.groups, read)
    ]
    if old["environment"]["versions"] != new["environment"]["versions"]:
        found.append("versions")
    return found


def rows_of(folder: StudyFolder, plan: Plan, protocol: Protocol = "last") -> list[Row]:
    """One row a trial of the plan, whatever its state; its error by the protocol."""
    metric = "top1_best" if protocol == "paper" else "top1"
    runs = standing(folder, plan).runs
    rows = []
    for trial in plan.trials():
        run = runs.get(trial.id)
        summary = run.summary if run else {}
        status = run.status if run else "waiting"
        error = {"done": _error(summary.get(metric)), "diverged": plan.chance_error}.get(status)
        rows.append(
            Row(
                study=plan.name,
                id=trial.id,
                contender=trial.contender,
                optim=trial.optim,
                draw=trial.draw,
                values=trial.values,
                status=status,
                error=error,
                error_raw=_error(summary.get("top1_raw")) if status == "done" else None,
                error_best_epoch=_error(summary.get("top1_best")) if status == "done" else None,
                train_seconds=summary.get("train_seconds"),
                steps=int(summary.get("step") or 0),
                peak_memory_bytes=summary.get("peak_memory_bytes"),
                seed=trial.config.train.seed,
                folder=str(folder.trial(trial)),
                note=str(summary.get("error") or ""),
                point=trial.point,
            )
        )
    return rows


def protocol_notes(plan: Plan, protocol: Protocol) -> list[str]:
    """What a reader must know of errors that are minima over epochs."""
    if protocol == "last":
        return []
    rare = max(g.config.train.eval_every_epochs for g in plan.groups)
    return [
        "Errors are minima over a run's epochs, as in the authors' sweeps (--protocol paper): the "
        "epoch is chosen on the images it is reported on, so they are too low."
        + (f" Runs were evaluated every {rare} epochs only." if rare > 1 else "")
    ]


def _error(top1: float | None) -> float | None:
    return None if top1 is None else 100 - top1


def _section(
    plan: Plan,
    records: list[dict[str, Any]],
    folders: list[Path],
    rows: list[Row],
    tests: Tests,
    apart: list[str],
    protocol: Protocol,
) -> Section:
    # One area limit and one "best" for all contenders of an optimizer, so that they compare.
    groups = []
    for optim in plan.optims:
        known = [r.error for r in rows if r.optim == optim and r.error is not None]
        best = min(known, default=None)
        for g in plan.groups:
            if g.optim == optim:
                mine = [r for r in rows if (r.contender, r.optim) == (g.contender, optim)]
                test = tests.get((g.contender, optim), {})
                groups.append(_group(plan, g, mine, best, test))
    comparisons = _compare(plan, groups)
    unfinished = sum(r.status in ("waiting", "running", "interrupted") for r in rows)
    return Section(
        name=plan.name,
        plan=plan,
        records=records,
        folders=[str(f) for f in folders],
        groups=groups,
        comparisons=comparisons,
        unfinished=unfinished,
        notes=[*apart, *protocol_notes(plan, protocol), *_notes(plan, groups)],
        protocol=protocol,
    )


def _group(
    plan: Plan, g: Group, rows: list[Row], best: float | None, test: dict[str, Any]
) -> GroupResult:
    errors = np.array([r.error for r in rows if r.error is not None])
    known = [r for r in rows if r.error is not None]
    ranges = plan.ranges_of(g)
    cost, uncounted = cost_of(g, plan.classes)
    settings = {n: np.array([r.values[n] for r in known]) for n in ranges}
    return GroupResult(
        contender=g.contender,
        optim=g.optim,
        rows=rows,
        curves=[_curve(r, "eval", "top1") for r in rows if r.error is not None],
        losses=[_curve(r, "train", "loss") for r in rows if r.error is not None],
        median=st.median(errors) if len(errors) else None,
        area=st.area(errors, best or 0.0, plan.chance_error)
        if len(errors) >= st.FEWEST_TO_RESAMPLE
        else None,
        share=st.share_within(errors, best, WITHIN_POINTS) if len(errors) else None,
        tuning=st.tuning_curve(errors, support=(0.0, 100.0)) if len(errors) else None,
        borders={
            n: st.on_border(settings[n], errors, r.low, r.high, log=r.log)
            for n, r in ranges.items()
            if len(errors)
        },
        cost=cost,
        uncounted=uncounted,
        test=test,
    )


def cost_of(g: Group, classes: int) -> tuple[Complexity | None, str]:
    """What one image costs in a contender's model; None and the reason where nobody can tell.

    Whatever the code of somebody else's stem or model raises must not take the report of trials
    that ran. One that cannot be made without data is made with it: its size is a trial's.
    """
    from vitc.models.complexity import complexity
    from vitc.models.zoo import build_model

    why = ""
    for make in (meta_model, lambda g, classes: build_model(g.config.model, classes)):
        try:
            return complexity(make(g, classes)), ""
        except Exception as error:
            told = error.message if isinstance(error, VitcError) else f"{error}"
            why = (told.strip().splitlines() or [""])[0] or type(error).__name__
    return None, why


def meta_model(g: Group, classes: int) -> Any:
    import torch

    from vitc.models.zoo import build_model

    with torch.device("meta"):
        return build_model(g.config.model, classes)


def _curve(row: Row, kind: str, name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of a metric; accuracies as errors."""
    lines = [m for m in read_metrics(row.folder, kind) if m.get(name) is not None]
    values = [float(m[name]) for m in lines]
    return [float(m["epoch"]) for m in lines], [100 - v if name == "top1" else v for v in values]


def _compare(plan: Plan, groups: list[GroupResult]) -> list[Comparison]:
    reference = plan.reference or plan.contenders[-1]
    shifted = {g.contender for g in plan.groups if g.seed_shift}
    points = {g.contender: g.point for g in plan.groups}
    many = len({(g.contender, g.optim) for g in plan.groups if g.contender != reference})
    found: list[Comparison] = []
    for optim in plan.optims:
        base = next(g for g in groups if (g.contender, g.optim) == (reference, optim))
        for g in groups:
            if g.optim != optim or g.contender == reference:
                continue
            if points[g.contender] != points[reference]:
                continue  # tuned at another length
            shared = _shared(g, base)
            if len(shared) < 2:
                continue
            mine, theirs = (np.array(x) for x in zip(*shared, strict=True))
            difference = mine - theirs
            try:
                needed = st.draws_needed(difference, level=0.05 / many)  # as Holm's first
            except ConfigError:
                needed = None
            found.append(
                Comparison(
                    contender=g.contender,
                    reference=reference,
                    optim=optim,
                    n=len(shared),
                    difference=st.paired_median_difference(mine, theirs),
                    p=st.paired_test(mine, theirs).p,
                    p_holm=1.0,
                    crossings=st.edfs_cross(mine, theirs),
                    reach=_reach(g, base),
                    draws_needed=needed,
                    is_control=g.contender in shifted,
                )
            )
    if not found:
        return []
    adjusted = st.holm([c.p for c in found]).tolist()
    return [replace(c, p_holm=p) for c, p in zip(found, adjusted, strict=True)]


def _shared(a: GroupResult, b: GroupResult) -> list[tuple[float, float]]:
    """(a's error, b's error) on each draw that both have a result for."""
    other = {r.draw: r.error for r in b.rows}
    pairs = [(r.error, other.get(r.draw)) for r in a.rows]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _reach(a: GroupResult, b: GroupResult) -> st.Reach | None:
    """How many draws the contender needs for what the reference reaches with all its draws."""
    if a.tuning is None or b.tuning is None:
        return None
    return st.draws_to_reach(a.tuning, b.tuning, int(b.tuning.ks[-1]))


def _notes(plan: Plan, groups: list[GroupResult]) -> list[str]:
    """What a reader must know before believing a number."""
    uncounted = {g.contender: g.uncounted for g in groups if g.cost is None}
    notes = [uncounted_note(contender, why) for contender, why in uncounted.items()]
    for g in groups:
        for name, border in g.borders.items():
            if border.side:
                mine = next(
                    x for x in plan.groups if (x.contender, x.optim) == (g.contender, g.optim)
                )
                r = plan.ranges_of(mine)[name]
                notes.append(
                    f"{g.contender} under {g.optim}: the best {name} lies on the {border.side} "
                    f"border of its range {r.low:g} to {r.high:g}; a wider range may be better."
                )
    return notes


def uncounted_note(contender: str, why: str) -> str:
    return f"{contender}: flops, parameters and activations could not be counted: {why}"


def results_json(sections: Sequence[Section]) -> dict[str, Any]:
    """Everything the report shows, as plain values."""
    return {
        "sections": [
            {
                "name": s.name,
                "folders": s.folders,
                "plan_hashes": [r["hash"] for r in s.records],
                "unfinished_trials": s.unfinished,
                "chance_error": s.plan.chance_error,
                "groups": [
                    {
                        "contender": g.contender,
                        "optim": g.optim,
                        "n": len(g.errors),
                        "diverged": g.count("diverged"),
                        "failed": g.count("failed"),
                        "best_error": g.best.error if g.best else None,
                        "best_values": g.best.values if g.best else None,
                        "median_error": asdict(g.median) if g.median else None,
                        "mean_error_clipped": asdict(g.area) if g.area else None,
                        f"share_within_{WITHIN_POINTS:g}_points": asdict(g.share)
                        if g.share
                        else None,
                        "tuning_curve": None
                        if g.tuning is None
                        else {
                            "draws": g.tuning.ks.tolist(),
                            "mean": g.tuning.mean.tolist(),
                            "low": g.tuning.mean_low.tolist(),
                            "high": g.tuning.mean_high.tolist(),
                        },
                        "flops": g.cost and g.cost.flops,
                        "params": g.cost and g.cost.params,
                        "activations": g.cost and g.cost.activations,
                        "step_ms": g.step_ms,
                        "memory_mib": g.memory_mib,
                        "test": g.test or None,
                    }
                    for g in s.groups
                ],
                "comparisons": [
                    {
                        "contender": c.contender,
                        "reference": c.reference,
                        "optim": c.optim,
                        "n": c.n,
                        "paired_median_difference": asdict(c.difference),
                        "p": c.p,
                        "p_holm": c.p_holm,
                        "edfs_cross": bool(c.crossings.seen),
                        "edfs_cross_beyond_noise": bool(c.crossings.beyond_noise),
                        "draws_needed_80_percent_power": c.draws_needed,
                        "control": c.is_control,
                    }
                    for c in s.comparisons
                ],
                "notes": s.notes,
            }
            for s in sections
        ]
    }
