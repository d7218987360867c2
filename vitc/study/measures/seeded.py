"""Runs by contender, optimizer and point, and their differences, paired by seed.

What the measures with seeds (all but random draws) share. Errors are top-1 in percent, a diverged
run counts as chance error, and what is compared is compared on the seeds that both have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vitc.stats import curves as st
from vitc.stats.proportions import Interval
from vitc.study.design import Plan
from vitc.study.results import Result
from vitc.views.model import Line, Table

Key = tuple[str, str, str]  # contender, optimizer, point
Errors = Mapping[int, float]  # seed's index -> error, or a difference of errors


@dataclass(frozen=True)
class Cells:
    """The results of a study by (contender, optimizer, point), of the runs that have one."""

    plan: Plan
    runs: Mapping[Key, Mapping[int, Result]]

    @classmethod
    def of(cls, plan: Plan, results: Sequence[Result]) -> Cells:
        found: dict[Key, dict[int, Result]] = {}
        for r in results:
            cell = found.setdefault((r.contender, r.optim, r.point), {})
            if r.error is not None:
                cell[r.draw] = r
        return cls(plan, found)

    def __contains__(self, key: Key) -> bool:
        return key in self.runs

    def at(self, contender: str, optim: str, point: str) -> Mapping[int, Result]:
        return self.runs.get((contender, optim, point), {})

    def errors(self, contender: str, optim: str, point: str) -> dict[int, float]:
        cell = self.at(contender, optim, point)
        return {draw: r.error for draw, r in cell.items() if r.error is not None}

    def trained(self, contender: str, optim: str, point: str) -> dict[int, float]:
        """The errors of the runs that did not diverge.

        What a loss or a gap is measured from must have trained: chance minus chance would call a
        contender stable that never learns.
        """
        cell = self.at(contender, optim, point)
        errors = self.errors(contender, optim, point)
        return {draw: e for draw, e in errors.items() if cell[draw].status != "diverged"}

    def diverged(self, contender: str, optim: str, point: str) -> int:
        return sum(r.status == "diverged" for r in self.at(contender, optim, point).values())


def points_of(plan: Plan) -> list[str]:
    return list(dict.fromkeys(g.point for g in plan.groups))


def contender_optims(plan: Plan) -> list[tuple[str, str]]:
    return list(dict.fromkeys((g.contender, g.optim) for g in plan.groups))


def name_of(plan: Plan, contender: str, optim: str) -> str:
    return contender if len(plan.optims) == 1 else f"{contender}, {optim}"


# -- estimates -------------------------------------------------------------------------------------


def paired(a: Errors, b: Errors) -> dict[int, float]:
    """a - b on the seeds that both have."""
    return {i: a[i] - b[i] for i in a if i in b}


def mean(values: Errors, confidence: float = 0.95) -> Interval | None:
    """The mean over seeds with its interval, unbounded from one; None from nothing."""
    return st.interval(list(values.values()), "mean", confidence) if values else None


def level(errors: Errors) -> Interval | None:
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
    low = "?" if math.isinf(i.low) else f"{i.low:{sign}.1f}"
    high = "?" if math.isinf(i.high) else f"{i.high:{sign}.1f}"
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


# -- contenders against the reference --------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The mean of (contender's - reference's) over their shared seeds, in points."""

    contender: str
    reference: str
    optim: str
    n: int
    difference: Interval
    point: str = ""
    is_control: bool = False

    @property
    def certain(self) -> bool:
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def values(self) -> dict[str, Any]:
        """As plain values, for results.json."""
        found = asdict(self)
        del found["is_control"]
        if not self.point:
            del found["point"]
        return found


def differences(plan: Plan, values: Mapping[Key, Errors]) -> list[Difference]:
    """Every contender against the reference, at the same point under the same optimizer.

    Where there are several, the intervals hold together with 95 % (Bonferroni), the controls' too.
    """
    reference = plan.reference or plan.contenders[-1]
    controls = {g.contender for g in plan.groups if g.seed_shift}
    pairs = {
        key: paired(mine, values[reference, key[1], key[2]])
        for key, mine in values.items()
        if key[0] != reference and (reference, key[1], key[2]) in values
    }
    many = sum(bool(d) for d in pairs.values())
    found = []
    for (contender, optim, point), pair in pairs.items():
        m = mean(pair, 1 - 0.05 / max(many, 1))
        if m is not None:
            d = Difference(contender, reference, optim, len(pair), m, point, contender in controls)
            found.append(d)
    return found


def difference_sentences(found: Sequence[Difference], what: str, verb: str) -> list[str]:
    together = f"; the {len(found)} intervals hold together" if len(found) > 1 else ""
    sentences = []
    for d in found:
        size = d.difference.estimate
        if d.certain:
            how = "more" if size > 0 else "less"
            verdict = f"{d.contender} {verb} {abs(size):.2f} points {how} than {d.reference}"
        else:
            verdict = f"no difference between {d.contender} and {d.reference} is shown"
        text = (
            f"{f'under {d.optim}, ' if d.optim else ''}{verdict}: {what} differs by "
            f"{shown(d.difference, signed=True)} ({d.n} shared seeds{together})."
        )
        if d.is_control:
            sentences.append(f"Control, {d.reference} with other seeds: {text}")
        else:
            sentences.append(text[:1].upper() + text[1:])
    return sentences


def difference_tables(found: Sequence[Difference], title: str, note: str) -> list[Table]:
    """One table; none where nothing was compared."""
    if not found:
        return []
    rows = [
        {
            **({"point": d.point} if d.point else {}),
            "contender": d.contender,
            "against": d.reference,
            "optimizer": d.optim,
            "seeds": str(d.n),
            "difference, points": shown(d.difference, signed=True),
        }
        for d in found
    ]
    return [Table.of(title, rows, note)]


# -- sentences that several measures have ----------------------------------------------------------


def seeds_note(plan: Plan) -> str:
    if plan.draws == 1:
        word = "--count" if plan.exhibit else "--seeds"
        return f"One seed: no interval can be given; {word} 3 or more would give one."
    return f"Means over {plan.draws} seeds with 95 % intervals (Student's t); seeds are paired."


def verdict_of(found: Iterable[str], plan: Plan) -> list[str]:
    """The comparisons, or why there are none."""
    sentences = list(found)
    if sentences:
        return sentences
    if len(plan.contenders) == 1:
        return [f"{plan.contenders[0]} is the only contender: it is compared with none."]
    return ["There is nothing to compare yet."]


def untrained(cells: Cells, of: Iterable[tuple[str, str]], point: str) -> list[str]:
    """One sentence a (contender, optimizer) on the seeds that its difference leaves out."""
    return [
        f"{contender} under {optim}: {n} of {cells.plan.draws} seeds diverged at {point}, so they "
        "have no difference and are left out of it."
        for contender, optim in of
        if (n := cells.diverged(contender, optim, point))
    ]
