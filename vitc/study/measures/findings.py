"""What a measure came to: sentences, tables, charts and plain values, and what all of them share.

The functions that read a measure's trials into these are in `reading.MEASURES`.
Errors are top-1 in percent, a diverged run counts as chance error, and seeds are paired: what is
compared is compared on the seeds that both have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitc.stats import curves as st
from vitc.stats.curves import Interval
from vitc.study.design import Plan
from vitc.study.results import Protocol, Row


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the report escapes them."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One contender in a chart; `low` and `high` are its intervals, nan where unbounded.

    `substituted` marks points that stand for a diverged run: drawn hollow, the way there dashed.
    """

    label: str
    look: int
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    marker: str = "o"
    substituted: list[bool] = field(default_factory=list)
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """A figure of lines; with `ticks`, x are their places and the axis is not numeric."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    lines: list[Line]
    log_x: bool = False
    ticks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """What a measure's function returns; `sentences[0]` is the verdict."""

    sentences: list[str]
    tables: list[Table]
    charts: list[Chart]
    values: dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One study of a measure, read."""

    name: str
    plan: Plan
    records: list[dict[str, Any]]
    folders: list[str]
    rows: list[Row]
    parts: Parts
    notes: list[str]
    unfinished: int
    protocol: Protocol = "last"


# -- cells: one group's runs -----------------------------------------------------------------------

Key = tuple[str, str, str]  # contender, optimizer, point


def cells(rows: Sequence[Row]) -> dict[Key, dict[int, Row]]:
    """(contender, optimizer, point) -> seed's index -> its row, of the runs with a result."""
    found: dict[Key, dict[int, Row]] = {}
    for r in rows:
        cell = found.setdefault((r.contender, r.optim, r.point), {})
        if r.error is not None:
            cell[r.draw] = r
    return found


def errors_of(cell: Mapping[int, Row]) -> dict[int, float]:
    return {draw: r.error for draw, r in cell.items() if r.error is not None}


def trained(cell: Mapping[int, Row]) -> dict[int, float]:
    """The errors of the runs that did not diverge.

    What a loss or a gap is measured from must have trained: chance minus chance would call a
    contender stable that never learns.
    """
    return {draw: e for draw, e in errors_of(cell).items() if cell[draw].status != "diverged"}


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """a - b on the seeds that both have."""
    return {i: a[i] - b[i] for i in a if i in b}


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
    low = "?" if math.isinf(i.low) else f"{i.low:{sign}.1f}"
    high = "?" if math.isinf(i.high) else f"{i.high:{sign}.1f}"
    return f"{i.estimate:{sign}.2f} ({low} to {high})"


def values_of(i: Interval | None) -> dict[str, Any] | None:
    return None if i is None else asdict(i)


def points_of(plan: Plan) -> list[str]:
    return list(dict.fromkeys(g.point for g in plan.groups))


def line_of(
    label: str, look: int, x: Sequence[float], means: Sequence[Interval | None], marker: str = "o"
) -> Line:
    there = [(a, m) for a, m in zip(x, means, strict=True) if m is not None]
    return Line(
        label=label,
        look=look,
        x=[a for a, _ in there],
        y=[m.estimate for _, m in there],
        low=[_finite(m.low) for _, m in there],
        high=[_finite(m.high) for _, m in there],
        marker=marker,
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def seeds_note(plan: Plan) -> str:
    if plan.draws == 1:
        word = "--count" if plan.exhibit else "--seeds"
        return f"One seed: no interval can be given; {word} 3 or more would give one."
    return f"Means over {plan.draws} seeds with 95 % intervals (Student's t); seeds are paired."


def against_reference(
    plan: Plan, groups: Mapping[tuple[str, str], Mapping[int, float]], what: str, verb: str
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Every contender against the reference, paired by seed: sentences, table rows, values.

    Where there are several, the intervals hold together with 95 % (Bonferroni), the controls' too.
    """
    sentences, rows, values = [], [], []
    reference = plan.reference or plan.contenders[-1]
    controls = {g.contender for g in plan.groups if g.seed_shift}
    differences = {
        key: paired(mine, groups[reference, key[1]])
        for key, mine in groups.items()
        if key[0] != reference and (reference, key[1]) in groups
    }
    many = sum(bool(d) for d in differences.values())
    for (contender, optim), difference in differences.items():
        m = mean(difference, 1 - 0.05 / max(many, 1))
        if m is None:
            continue
        certain = m.low > 0 or m.high < 0
        how = "more" if m.estimate > 0 else "less"
        verdict = (
            f"{contender} {verb} {abs(m.estimate):.2f} points {how} than {reference}"
            if certain
            else f"no difference between {contender} and {reference} is shown"
        )
        name = f"under {optim}, " if optim else ""
        text = (
            f"{name}{verdict}: {what} differs by {shown(m, signed=True)} ({len(difference)} shared "
            f"seeds{f'; the {many} intervals hold together' if many > 1 else ''})."
        )
        if contender in controls:
            sentences.append(f"Control, {reference} with other seeds: {text}")
        else:
            sentences.append(text[:1].upper() + text[1:])
        rows.append([contender, reference, optim, str(len(difference)), shown(m, signed=True)])
        values.append(
            {
                "contender": contender,
                "reference": reference,
                "optim": optim,
                "n": len(difference),
                "difference": values_of(m),
            }
        )
    return sentences, rows, values


def verdict_of(found: Sequence[str], plan: Plan) -> list[str]:
    """The comparisons, or why there are none."""
    if found:
        return list(found)
    if len(plan.contenders) == 1:
        return [f"{plan.contenders[0]} is the only contender: it is compared with none."]
    return ["There is nothing to compare yet."]


def untrained(left_out: Mapping[tuple[str, str], int], of: int, what: str) -> list[str]:
    """One sentence on the seeds that a difference leaves out."""
    return [
        f"{contender}{f' under {optim}' if optim else ''}: {n} of {of} seeds diverged {what}, so "
        "they have no difference and are left out of it."
        for (contender, optim), n in left_out.items()
        if n
    ]


def contender_optims(plan: Plan) -> list[tuple[str, str]]:
    return list(dict.fromkeys((g.contender, g.optim) for g in plan.groups))


def name_of(plan: Plan, contender: str, optim: str) -> str:
    return contender if len(plan.optims) == 1 else f"{contender}, {optim}"


def diverged_count(by: Mapping[Key, Mapping[int, Row]], key: Key) -> int:
    return sum(r.status == "diverged" for r in by.get(key, {}).values())


def percent(i: Interval | None) -> str:
    if i is None:
        return "-"
    return f"{100 * i.estimate:.0f} % ({100 * i.low:.0f} to {100 * i.high:.0f})"
