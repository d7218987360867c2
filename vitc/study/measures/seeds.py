"""How errors spread: by what is seeded, and over the values of a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitc.stats import curves as st
from vitc.stats import effects
from vitc.stats.curves import Interval
from vitc.study.design import Plan
from vitc.study.measures.findings import (
    Chart,
    Parts,
    Table,
    cells,
    contender_optims,
    diverged_count,
    errors_of,
    level,
    line_of,
    mean,
    name_of,
    paired,
    percent,
    points_of,
    seeds_note,
    shown,
    trained,
    untrained,
    values_of,
    verdict_of,
)
from vitc.study.results import Row

GAPS = (0.5, 1.0, 2.0)  # points, for which the seeds needed are said


# -- seeds -----------------------------------------------------------------------------------------


def seeds(plan: Plan, rows: Sequence[Row]) -> Parts:
    """How much of the spread each kind of randomness makes, and the seeds that a gap needs."""
    by = cells(rows)
    points = points_of(plan)
    table, power, sentences, values, lines = [], [], [], [], []
    contenders = contender_optims(plan)
    for look, (contender, optim) in enumerate(contenders):
        whole = list(errors_of(by.get((contender, optim, "all"), {})).values())
        spreads = []
        for point in points:
            runs = list(errors_of(by.get((contender, optim, point), {})).values())
            sd = _spread_of(runs)
            share = None if point == "all" else effects.variance_share(runs, whole)
            spreads.append(sd)
            table.append(
                [
                    contender,
                    optim,
                    point,
                    str(len(runs)),
                    str(diverged_count(by, (contender, optim, point))),
                    f"{np.mean(runs):.2f}" if runs else "-",
                    _spread(sd),
                    percent(share) if point != "all" else "100 %",
                ]
            )
            values.append(
                {
                    "contender": contender,
                    "optim": optim,
                    "varied": point,
                    "n": len(runs),
                    "deviation": values_of(sd),
                    "variance_share": values_of(share),
                }
            )
        lines.append(
            line_of(
                name_of(plan, contender, optim),
                look,
                [float(i) for i in range(len(points))],
                spreads,
            )
        )
        sd = _spread_of(whole)
        if sd is not None:
            power.append([contender, optim, _spread(sd), *(_needed(sd, gap) for gap in GAPS)])
            sentences.append(
                f"{name_of(plan, contender, optim)}: runs that differ in all seeds spread by "
                f"{_spread(sd)} points; a gap of 1 point between two such contenders needs "
                f"{_needed(sd, 1.0)} seeds each."
            )
    reference = plan.reference or plan.contenders[-1]
    for contender, optim in contenders:
        mine = errors_of(by.get((contender, optim, "all"), {}))
        theirs = errors_of(by.get((reference, optim, "all"), {}))
        sd = _spread_of(list(paired(mine, theirs).values()))
        if contender != reference and sd is not None:
            power.append(
                [
                    f"{contender} - {reference}, shared seeds",
                    optim,
                    _spread(sd),
                    *(_needed(sd, gap, paired=True) for gap in GAPS),
                ]
            )
    few = (
        f" {plan.draws} seeds bound a share of variance within a factor of some "
        f"{_factor(plan.draws):.0f} only."
        if plan.draws < 30
        else ""
    )
    return Parts(
        sentences or ["There are too few runs yet to tell a spread."],
        [
            Table(
                "Spread of the error by what is varied",
                [
                    "contender",
                    "optimizer",
                    "varied",
                    "runs",
                    "diverged",
                    "mean error %",
                    "standard deviation (95 %)",
                    "share of the variance of all (95 %)",
                ],
                table,
                "One kind of seed varies while the others stay; the shares need not add up to "
                f"100 %, for the kinds act on each other.{few}",
            ),
            Table(
                "Seeds needed, each contender, for 80 % power at the 5 % level",
                [
                    "contender",
                    "optimizer",
                    "standard deviation (95 %)",
                    *(f"gap of {g:g}" for g in GAPS),
                ],
                power,
                "Of a t test; in brackets for the ends of the deviation's interval.",
            ),
        ],
        [
            Chart(
                "seeds",
                "Spread by what is varied",
                "varied",
                "standard deviation (points)",
                lines,
                ticks=points,
            )
        ],
        {"spreads": values},
    )


def _spread_of(errors: Sequence[float]) -> Interval | None:
    """None also where all are the same, as of runs that all diverged: no spread is known."""
    return effects.deviation(errors) if np.ptp(errors or [0.0]) > 0 else None


def _spread(i: Interval | None) -> str:
    return "-" if i is None else f"{i.estimate:.2f} ({i.low:.2f} to {i.high:.2f})"


def _needed(sd: Interval, gap: float, paired: bool = False) -> str:
    low, n, high = (
        effects.seeds_needed(s, gap, paired=paired) for s in (sd.low, sd.estimate, sd.high)
    )
    words = ["over 100,000" if x is None else str(x) for x in (low, n, high)]
    return f"{words[1]} ({words[0]} to {words[2]})"


def _factor(n: int) -> float:
    from scipy import stats

    return math.sqrt(float(stats.f.isf(0.025, n - 1, n - 1))) ** 2


# -- vary ------------------------------------------------------------------------------------------


def vary(plan: Plan, rows: Sequence[Row]) -> Parts:
    """Error and share of diverged runs at each point, and the change from the first point.

    Contenders are compared by that change, point by point: the distance from their best to their
    worst point would be larger for the noisier one, sensitive or not.
    """
    by = cells(rows)
    points = points_of(plan)
    table, values, lines = [], [], []
    extremes: list[str] = []
    changes: dict[str, dict[tuple[str, str], dict[int, float]]] = {p: {} for p in points[1:]}
    baseless: dict[tuple[str, str], int] = {}
    for look, (contender, optim) in enumerate(contender_optims(plan)):
        first = trained(by.get((contender, optim, points[0]), {}))
        baseless[contender, optim] = diverged_count(by, (contender, optim, points[0]))
        means = []
        for point in points:
            error = errors_of(by.get((contender, optim, point), {}))
            change = paired(error, first)
            m, n, gone = level(error), len(error), diverged_count(by, (contender, optim, point))
            share = st.share(gone, n) if n else None
            means.append(m)
            if point != points[0]:
                changes[point][contender, optim] = change
            table.append(
                [
                    contender,
                    optim,
                    point,
                    str(n),
                    shown(m),
                    "-" if point == points[0] else shown(mean(change), signed=True),
                    "-" if share is None else f"{gone} of {n}: {percent(share)}",
                ]
            )
            values.append(
                {
                    "contender": contender,
                    "optim": optim,
                    "point": point,
                    "n": n,
                    "error": values_of(m),
                    "change": values_of(mean(change)),
                    "diverged": gone,
                    "diverged_share": values_of(share),
                }
            )
        known = [(m.estimate, p) for m, p in zip(means, points, strict=True) if m is not None]
        if known:
            best, at = min(known)
            most, where = max(known)
            extremes.append(
                f"{name_of(plan, contender, optim)}: best at {at} ({best:.2f} %), "
                f"worst at {where} ({most:.2f} %)."
            )
        lines.append(
            line_of(
                name_of(plan, contender, optim), look, [float(i) for i in range(len(points))], means
            )
        )
    found, against, differences = _changes_against(plan, changes)
    tables = [
        Table(
            "Error at each point",
            [
                "contender",
                "optimizer",
                "point",
                "seeds",
                "error % (95 %)",
                f"against {points[0]} (95 %)",
                "diverged",
            ],
            table,
            seeds_note(plan),
        )
    ]
    if against:
        tables.append(
            Table(
                f"Change from {points[0]}, against the reference",
                ["point", "contender", "against", "optimizer", "seeds", "difference, points"],
                against,
                "Negative: the contender's error rises less. The intervals hold together with 95 % "
                "(Bonferroni).",
            )
        )
    return Parts(
        [*verdict_of(found, plan), *extremes, *untrained(baseless, plan.draws, f"at {points[0]}")],
        tables,
        [
            Chart(
                "vary",
                "Error at each point",
                "",
                "top-1 error (%); diverged = chance",
                lines,
                ticks=points,
            )
        ],
        {"points": values, "comparisons": differences},
    )


def _changes_against(
    plan: Plan, changes: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]]
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Each contender's change to each point minus the reference's: sentences, rows, values."""
    reference = plan.reference or plan.contenders[-1]
    differences = {
        (point, contender, optim): paired(change, at[reference, optim])
        for point, at in changes.items()
        for (contender, optim), change in at.items()
        if contender != reference and (reference, optim) in at
    }
    many = sum(bool(d) for d in differences.values())
    first = points_of(plan)[0]
    certain, rows, values = [], [], []
    for (point, contender, optim), difference in differences.items():
        m = mean(difference, 1 - 0.05 / max(many, 1))
        if m is None:
            continue
        rows.append(
            [point, contender, reference, optim, str(len(difference)), shown(m, signed=True)]
        )
        values.append(
            {
                "contender": contender,
                "reference": reference,
                "optim": optim,
                "point": point,
                "n": len(difference),
                "difference": values_of(m),
            }
        )
        if m.low > 0 or m.high < 0:
            certain.append(
                f"{name_of(plan, contender, optim)}: from {first} to {point} its error "
                f"changes by {shown(m, signed=True)} points against {reference}'s."
            )
    if rows and not certain:
        certain = [
            f"No point changes a contender's error otherwise than {reference}'s, as far as "
            f"{plan.draws} seeds tell."
        ]
    return certain, rows, values
