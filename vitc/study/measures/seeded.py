"""Runs by contender, optimizer and point, and their means: what the measures with seeds share.

Errors are top-1 in percent, of the runs that learnt; how many failed to learn stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from vitc.stats import curves as st
from vitc.stats.proportions import FloatArray, Interval
from vitc.study.contrasts import Key, Outcomes
from vitc.study.design import Plan
from vitc.study.results import Result
from vitc.views.model import Line
from vitc.wording import bounds


@dataclass(frozen=True)
class Cells:
    """The results of a study by (contender, optimizer, point), of the runs that have one."""

    plan: Plan
    runs: Mapping[Key, Mapping[int, Result]]
    luck: Mapping[Key, FloatArray] = field(default_factory=dict)
    tuning_draws: int = 0

    @classmethod
    def of(cls, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Cells:
        """`tuning`: the draws that the settings of the runs were chosen from."""
        found: dict[Key, dict[int, Result]] = {}
        for r in results:
            cell = found.setdefault((r.contender, r.optim, r.point), {})
            if r.error is not None:
                cell[r.draw] = r
        draws = len({r.draw for r in tuning})
        return cls(plan, found, _resampled_bests(plan, tuning, draws), draws)

    def __contains__(self, key: Key) -> bool:
        return key in self.runs

    def at(self, contender: str, optim: str, point: str) -> Mapping[int, Result]:
        return self.runs.get((contender, optim, point), {})

    def outcomes(self, contender: str, optim: str, point: str) -> Outcomes:
        key = (contender, optim, point)
        luck = self.luck.get(key, self.luck.get((contender, optim, "")))
        found = Outcomes.of(list(self.at(*key).values()))
        return replace(found, luck=luck, tuning_draws=self.tuning_draws)

    def count(self, contender: str, optim: str, point: str) -> str:
        """How many runs failed to learn: `1 of 5`."""
        cell = self.at(contender, optim, point)
        return f"{sum(r.failed_to_learn for r in cell.values())} of {len(cell)}"


def _resampled_bests(plan: Plan, tuning: Sequence[Result], draws: int) -> dict[Key, FloatArray]:
    """The best error of each resample of the tuning draws, the same draws for all contenders.

    Its spread is that of a best draw that could have been another. The resampled runs are the
    short ones that tuned: how much longer ones with their settings differ is taken as the same.
    """
    errors: dict[Key, FloatArray] = {}
    order = {draw: i for i, draw in enumerate(sorted({r.draw for r in tuning}))}
    for r in tuning:
        key = (r.contender.removesuffix(f" at {r.point}"), r.optim, r.point)
        mine = errors.setdefault(key, np.full(draws, plan.chance_error))
        if r.error is not None and not r.failed_to_learn:
            mine[order[r.draw]] = r.error
    drawn = np.random.default_rng(0).integers(draws, size=(st.RESAMPLES, draws)) if draws else None
    return {} if drawn is None else {key: e[drawn].min(axis=1) for key, e in errors.items()}


def points_of(plan: Plan) -> list[str]:
    return list(dict.fromkeys(g.point for g in plan.groups))


def contender_optims(plan: Plan) -> list[tuple[str, str]]:
    return list(dict.fromkeys((g.contender, g.optim) for g in plan.groups))


def name_of(plan: Plan, contender: str, optim: str) -> str:
    return contender if len(plan.optims) == 1 else f"{contender}, {optim}"


# -- estimates -------------------------------------------------------------------------------------


def mean(values: Mapping[int, float], confidence: float = 0.95) -> Interval | None:
    """The mean over seeds with its interval, unbounded from one; None from nothing."""
    return st.interval(list(values.values()), "mean", confidence) if values else None


def level(errors: Mapping[int, float]) -> Interval | None:
    """As `mean`, of errors: no bound leaves 0 to 100 percent."""
    i = mean(errors)
    if i is None or math.isinf(i.low):
        return i
    return replace(i, low=max(i.low, 0.0), high=min(i.high, 100.0))


def shown(i: Interval | None, signed: bool = False) -> str:
    """`6.3 (5.1 to 7.5)`, with `?` for a bound that so few runs do not give."""
    if i is None:
        return "-"
    sign = "+" if signed else ""
    low, high = bounds((i.low, i.high), f"{sign}.1f")
    return f"{i.estimate:{sign}.2f} ({low} to {high})"


def percent(i: Interval | None) -> str:
    if i is None:
        return "-"
    return f"{100 * i.estimate:.0f} % ({100 * i.low:.0f} to {100 * i.high:.0f})"


def values_of(i: Interval | None) -> dict[str, Any] | None:
    return None if i is None else asdict(i)


def line_of(
    label: str, look: int, x: Sequence[float], means: Sequence[Interval | None], marker: str = "o"
) -> Line:
    there = [(a, m) for a, m in zip(x, means, strict=True) if m is not None]
    return Line(
        label=label,
        look=look,
        x=[a for a, _ in there],
        y=[m.estimate for _, m in there],
        low=[m.low if math.isfinite(m.low) else math.nan for _, m in there],
        high=[m.high if math.isfinite(m.high) else math.nan for _, m in there],
        marker=marker,
    )


def seeds_note(plan: Plan) -> str:
    if plan.draws == 1:
        word = "--count" if plan.exhibit else "--seeds"
        return f"One seed: no interval can be given; {word} 3 or more would give one."
    return (
        f"Means over {plan.draws} seeds with 95 % intervals (Student's t), of the runs that learnt."
    )
