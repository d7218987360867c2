"""The error distributions of random draws, by contender and optimizer, and their comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitc.runs.folder import Run
from vitc.stats import curves as st
from vitc.stats.proportions import FloatArray, Interval
from vitc.stats.width import Surface, Widths, compare_widths
from vitc.study.contrasts import Contrast, Outcomes, Pairs, contrasts
from vitc.study.design import Group, Plan, Range
from vitc.study.results import Result, cost_of, uncounted_note

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity

LR = "optim.lr"
FEWEST_SHARED = 2  # draws with a result, to compare anything


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
    """Of the runs that learnt."""
    tuning: st.TuningCurve | None
    borders: dict[str, st.Border]
    cost: Complexity | None
    """Of one image; None where the model cannot be counted, and `uncounted` is the reason."""
    uncounted: str
    is_control: bool
    point: str
    ranges: Mapping[str, Range]
    """What its settings were drawn from."""
    chance: float
    """The error of chance, in percent."""

    @cached_property
    def known(self) -> list[tuple[Result, float]]:
        """The trials that have a result, with their errors."""
        return [(r, r.error) for r in self.results if r.error is not None]

    @cached_property
    def errors(self) -> FloatArray:
        """Of all draws; one that failed to learn counts as chance."""
        return np.array([self.chance if r.failed_to_learn else e for r, e in self.known])

    @cached_property
    def best(self) -> Result | None:
        learnt = [pair for pair in self.known if not pair[0].failed_to_learn]
        return min(learnt, key=lambda pair: pair[1])[0] if learnt else None

    @property
    def failed_to_learn(self) -> int:
        return sum(r.failed_to_learn for r in self.results)

    @property
    def test(self) -> dict[str, Any]:
        """What the best run scored on the test images; empty where it did not read them."""
        return (self.best.test or {}) if self.best else {}

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


# -- the draws of a contender ----------------------------------------------------------------------


def groups_of_draws(plan: Plan, results: Sequence[Result]) -> list[GroupDraws]:
    models = {g.config.model: g for g in plan.groups}
    costs = {model: cost_of(g, plan.classes) for model, g in models.items()}
    return [
        _group(plan, g, mine, costs[g.config.model])
        for optim in plan.optims
        for g in plan.groups
        if g.optim == optim
        for mine in [[r for r in results if (r.contender, r.optim) == (g.contender, optim)]]
    ]


def _group(
    plan: Plan, g: Group, results: list[Result], cost: tuple[Complexity | None, str]
) -> GroupDraws:
    known = [(r, r.error) for r in results if r.error is not None]
    learnt = [e for r, e in known if not r.failed_to_learn]
    counted = [plan.chance_error if r.failed_to_learn else e for r, e in known]
    metrics = [Run(Path(r.folder)).metrics() for r, _ in known]
    ranges = plan.ranges_of(g)
    return GroupDraws(
        contender=g.contender,
        optim=g.optim,
        results=results,
        curves=[
            (epochs, [100 - v for v in values])
            for epochs, values in (_curve(lines, "eval", "top1") for lines in metrics)
        ],
        losses=[_curve(lines, "train", "loss") for lines in metrics],
        median=st.median(learnt) if learnt else None,
        tuning=st.tuning_curve(counted, support=(0.0, 100.0)) if known else None,
        borders={
            n: st.on_border([r.values[n] for r, _ in known], counted, r.low, r.high, log=r.log)
            for n, r in ranges.items()
            if known
        },
        cost=cost[0],
        uncounted=cost[1],
        is_control=bool(g.seed_shift),
        point=g.point,
        ranges=ranges,
        chance=plan.chance_error,
    )


def _curve(
    lines: Sequence[dict[str, Any]], kind: str, name: str
) -> tuple[list[float], list[float]]:
    """(epochs, values) of a metric in the lines of a metrics.jsonl."""
    mine = [m for m in lines if m.get("kind") == kind and m.get(name) is not None]
    return [float(m["epoch"]) for m in mine], [float(m[name]) for m in mine]


def draws_warnings(groups: Sequence[GroupDraws]) -> list[str]:
    uncounted = {g.contender: g.uncounted for g in groups if g.cost is None}
    found = [uncounted_note(contender, why) for contender, why in uncounted.items()]
    for g in groups:
        for name, border in g.borders.items():
            if border.side:
                r = g.ranges[name]
                found.append(
                    f"{g.contender} under {g.optim}: the best {name} lies on the {border.side} "
                    f"border of its range {r.low:g} to {r.high:g}; a wider range may be better."
                )
    return found


# -- comparisons -----------------------------------------------------------------------------------


def compare_draws(
    plan: Plan, groups: Sequence[GroupDraws], pairs: Pairs | None = None
) -> list[Contrast]:
    """The contenders of each pair under the same optimizer, tuned at the same length."""
    by_key = {(g.contender, g.optim, g.point): g for g in groups}
    outcomes = {key: Outcomes.of(g.results) for key, g in by_key.items()}
    outcomes = {key: o for key, o in outcomes.items() if len(o.draws) >= FEWEST_SHARED}
    found = contrasts(plan, "error", "error", outcomes, pairs)
    family = sum(not c.is_control for c in found)
    return [
        replace(
            c,
            width=_width(
                plan,
                by_key[c.contender, c.optim, c.point],
                by_key[c.reference, c.optim, c.point],
                1 if c.is_control else family,
            ),
        )
        for c in found
    ]


def _width(plan: Plan, a: GroupDraws, b: GroupDraws, family: int) -> Widths | None:
    """None where lr was not drawn on a logarithmic scale."""
    if not all(LR in g.ranges and g.ranges[LR].log for g in (a, b)):
        return None
    both = {r.draw for r, _ in a.known} & {r.draw for r, _ in b.known}
    ours, theirs = (
        Surface(
            settings=[r.values[LR] for r, _ in g.known if r.draw in both],
            errors=[error for r, error in g.known if r.draw in both],
            failed=[r.failed_to_learn for r, _ in g.known if r.draw in both],
            low=g.ranges[LR].low,
            high=g.ranges[LR].high,
        )
        for g in (a, b)
    )
    return compare_widths(ours, theirs, family=family, looks=plan.looks)
