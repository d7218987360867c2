"""The error distributions of random draws, by contender and optimizer, and their comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitc.errors import ConfigError
from vitc.runs.folder import Run
from vitc.stats import compare, proportions
from vitc.stats import curves as st
from vitc.stats.proportions import Interval
from vitc.study.design import Group, Plan
from vitc.study.results import Result, cost_of, uncounted_note

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity

LEVEL = 0.05
WITHIN_POINTS = 2.0  # "share of draws within x points of the best"


@dataclass(frozen=True)
class GroupDraws:
    """All draws of one contender under one optimizer."""

    contender: str
    optim: str
    results: list[Result]
    curves: list[tuple[list[float], list[float]]]
    """Validation error over epochs, one (epochs, errors) a trial that has a result."""
    losses: list[tuple[list[float], list[float]]]
    """Training loss over epochs, likewise."""
    median: Interval | None
    area: Interval | None
    share: Interval | None
    tuning: st.TuningCurve | None
    borders: dict[str, st.Border]
    cost: Complexity | None
    """Of one image; None where the model cannot be counted, and `uncounted` is the reason."""
    uncounted: str
    is_control: bool
    point: str

    @cached_property
    def known(self) -> list[tuple[Result, float]]:
        """The trials that have a result, with their errors."""
        return [(r, r.error) for r in self.results if r.error is not None]

    @cached_property
    def errors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([error for _, error in self.known])

    @cached_property
    def best(self) -> Result | None:
        return min(self.known, key=lambda pair: pair[1])[0] if self.known else None

    @property
    def test(self) -> dict[str, Any]:
        """What the chosen run scored on the test images; empty where they were not read."""
        return next((r.test for r in self.results if r.test is not None), {})

    def count(self, status: str) -> int:
        return sum(r.status == status for r in self.results)

    @property
    def seconds_a_trial(self) -> float:
        """Mean training time of the trials that ran to the end; 0 while there is none."""
        done = [r.train_seconds for r in self.results if r.status == "done" and r.train_seconds]
        return float(np.mean(done)) if done else 0.0

    @property
    def step_ms(self) -> float | None:
        each = [
            1e3 * r.train_seconds / r.steps
            for r in self.results
            if r.status == "done" and r.train_seconds and r.steps
        ]
        return statistics.median(each) if each else None

    @property
    def memory_mib(self) -> float | None:
        each = [r.peak_memory_bytes / 2**20 for r in self.results if r.peak_memory_bytes]
        return statistics.median(each) if each else None


@dataclass(frozen=True)
class DrawsComparison:
    """A contender against the reference on the draws that both have a result for."""

    contender: str
    reference: str
    optim: str
    n: int
    difference: Interval
    """Median of (contender's error - reference's), points; negative: the contender is better."""
    p: float
    p_holm: float
    crossings: compare.Crossings
    reach: st.Reach | None
    draws_needed: int | None
    is_control: bool


# -- the draws of a contender ----------------------------------------------------------------------


def groups_of_draws(plan: Plan, results: Sequence[Result]) -> list[GroupDraws]:
    models = {g.config.model: g for g in plan.groups}
    costs = {model: cost_of(g, plan.classes) for model, g in models.items()}
    found = []
    for optim in plan.optims:
        # one "best" for all contenders of an optimizer, so that their shares compare
        best = min(
            (r.error for r in results if r.optim == optim and r.error is not None), default=0.0
        )
        for g in plan.groups:
            if g.optim == optim:
                mine = [r for r in results if (r.contender, r.optim) == (g.contender, optim)]
                found.append(_group(plan, g, mine, best, costs[g.config.model]))
    return found


def _group(
    plan: Plan,
    g: Group,
    results: list[Result],
    best: float,
    cost: tuple[Complexity | None, str],
) -> GroupDraws:
    known = [r for r in results if r.error is not None]
    errors = np.array([r.error for r in known])
    any_ = bool(known)
    many = len(known) >= st.FEWEST_TO_RESAMPLE and best < plan.chance_error
    metrics = [Run(Path(r.folder)).metrics() for r in known]
    return GroupDraws(
        contender=g.contender,
        optim=g.optim,
        results=results,
        curves=[
            (epochs, [100 - v for v in values])
            for epochs, values in (_curve(lines, "eval", "top1") for lines in metrics)
        ],
        losses=[_curve(lines, "train", "loss") for lines in metrics],
        median=st.median(errors) if any_ else None,
        area=st.area(errors, best, plan.chance_error) if many else None,
        share=proportions.share_within(errors, best, WITHIN_POINTS) if any_ else None,
        tuning=st.tuning_curve(errors, support=(0.0, 100.0)) if any_ else None,
        borders={
            n: st.on_border([r.values[n] for r in known], errors, r.low, r.high, log=r.log)
            for n, r in plan.ranges_of(g).items()
            if any_
        },
        cost=cost[0],
        uncounted=cost[1],
        is_control=bool(g.seed_shift),
        point=g.point,
    )


def _curve(
    lines: Sequence[dict[str, Any]], kind: str, name: str
) -> tuple[list[float], list[float]]:
    """(epochs, values) of a metric in the lines of a metrics.jsonl."""
    mine = [m for m in lines if m.get("kind") == kind and m.get(name) is not None]
    return [float(m["epoch"]) for m in mine], [float(m[name]) for m in mine]


def draws_warnings(plan: Plan, groups: Sequence[GroupDraws]) -> list[str]:
    uncounted = {g.contender: g.uncounted for g in groups if g.cost is None}
    found = [uncounted_note(contender, why) for contender, why in uncounted.items()]
    ranges = {(g.contender, g.optim): plan.ranges_of(g) for g in plan.groups}
    for g in groups:
        for name, border in g.borders.items():
            if border.side:
                r = ranges[g.contender, g.optim][name]
                found.append(
                    f"{g.contender} under {g.optim}: the best {name} lies on the {border.side} "
                    f"border of its range {r.low:g} to {r.high:g}; a wider range may be better."
                )
    return found


# -- comparisons -----------------------------------------------------------------------------------


def compare_draws(plan: Plan, groups: Sequence[GroupDraws]) -> list[DrawsComparison]:
    """Every contender against the reference under the same optimizer, tuned at the same length."""
    reference = plan.reference or plan.contenders[-1]
    bases = {g.optim: g for g in groups if g.contender == reference}
    rivals = [g for g in groups if g.contender != reference]
    found: list[DrawsComparison] = []
    for g in rivals:
        base = bases[g.optim]
        theirs = {r.draw: error for r, error in base.known}
        shared = [(error, theirs[r.draw]) for r, error in g.known if r.draw in theirs]
        if g.point != base.point or len(shared) < 2:
            continue
        a, b = (np.array(x) for x in zip(*shared, strict=True))
        try:
            needed = compare.draws_needed(a - b, level=LEVEL / len(rivals))  # as Holm's first
        except ConfigError:
            needed = None
        found.append(
            DrawsComparison(
                contender=g.contender,
                reference=reference,
                optim=g.optim,
                n=len(shared),
                difference=compare.paired_median_difference(a, b),
                p=compare.paired_test(a, b).p,
                p_holm=1.0,
                crossings=compare.edfs_cross(a, b),
                reach=_reach(g, base),
                draws_needed=needed,
                is_control=g.is_control,
            )
        )
    adjusted = compare.holm([c.p for c in found]).tolist() if found else []
    return [replace(c, p_holm=p) for c, p in zip(found, adjusted, strict=True)]


def _reach(a: GroupDraws, b: GroupDraws) -> st.Reach | None:
    """How many draws the contender needs for what the reference reaches with all its draws."""
    if a.tuning is None or b.tuning is None:
        return None
    return st.draws_to_reach(a.tuning, b.tuning, int(b.tuning.ks[-1]))
