"""What training length and optimizer came to (paper sections 5.1 and 5.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vitc.study.design import Plan
from vitc.study.measures.base import epochs_of
from vitc.study.measures.findings import (
    Chart,
    Key,
    Line,
    Parts,
    Table,
    against_reference,
    cells,
    contender_optims,
    diverged_count,
    errors_of,
    level,
    line_of,
    mean,
    name_of,
    paired,
    points_of,
    seeds_note,
    shown,
    trained,
    untrained,
    values_of,
    verdict_of,
)
from vitc.study.results import Row


def length(plan: Plan, rows: Sequence[Row]) -> Parts:
    """Error above that of the longest schedule, seed by seed (paper section 4 and Figure 2)."""
    by = cells(rows)
    points = points_of(plan)
    longest = points[-1]
    lengths = [float(epochs_of(p)) for p in points]
    table, lines, values = [], [], []
    shortest: dict[tuple[str, str], dict[int, float]] = {}
    endless: dict[tuple[str, str], int] = {}
    for look, (contender, optim) in enumerate(contender_optims(plan)):
        last = trained(by.get((contender, optim, longest), {}))
        endless[contender, optim] = diverged_count(by, (contender, optim, longest))
        means = []
        for point in points:
            error = errors_of(by.get((contender, optim, point), {}))
            delta = paired(error, last)
            m = mean(delta)
            means.append(m)
            if point == points[0]:
                shortest[contender, optim] = delta
            table.append(
                [
                    contender,
                    optim,
                    str(epochs_of(point)),
                    str(len(error)),
                    str(diverged_count(by, (contender, optim, point))),
                    shown(level(error)),
                    "0" if point == longest and m else shown(m, signed=True),
                ]
            )
            values.append(
                {
                    "contender": contender,
                    "optim": optim,
                    "epochs": epochs_of(point),
                    "n": len(error),
                    "error": values_of(level(error)),
                    "pairs": len(delta),
                    "delta": values_of(m),
                }
            )
        lines.append(line_of(name_of(plan, contender, optim), look, lengths, means))
    found, against, differences = against_reference(
        plan, shortest, f"the loss from {longest} to {points[0]}", "loses"
    )
    head = [
        "contender",
        "optimizer",
        "epochs",
        "seeds",
        "diverged",
        "error % (95 %)",
        f"above {longest} (95 %)",
    ]
    tables = [Table("Error by length of training", head, table, seeds_note(plan))]
    if against:
        tables.append(
            Table(
                f"Loss at {points[0]}, against the reference",
                ["contender", "against", "optimizer", "seeds", "difference, points"],
                against,
                "Negative: the contender loses less.",
            )
        )
    found = verdict_of(found, plan)
    if len(points) < 2:
        found = [f"There is one length only ({longest}): nothing to compare it with."]
    return Parts(
        [*found, *untrained(endless, plan.draws, f"at {longest}")],
        tables,
        [
            Chart(
                "length",
                "Error above the longest schedule",
                "epochs",
                f"error above {longest} (points)",
                lines,
                log_x=True,
            )
        ],
        {"lengths": values, "comparisons": differences},
    )


# -- optimizer -------------------------------------------------------------------------------------


def optimizer(plan: Plan, rows: Sequence[Row]) -> Parts:
    """SGD's error minus AdamW's at each length (paper section 4 and Figure 3).

    Twice: a diverged run as chance error, and by the paper's rule, which copies the best result of
    a shorter schedule for it (section 5.2). The same runs tell the loss by length under each.
    """
    by = cells(rows)
    points = points_of(plan)
    lengths = [float(epochs_of(p)) for p in points]
    first, *others = plan.optims
    table, lines, values = [], [], []
    gaps: dict[tuple[str, str], dict[int, float]] = {}
    baseless: dict[tuple[str, str], int] = {}
    substituted = 0
    for look, contender in enumerate(plan.contenders):
        ruled = {o: _by_the_papers_rule(by, contender, o, points) for o in plan.optims}
        for optim in plan.optims:
            if all((contender, optim, p) not in by for p in points):
                continue
            means = [level({i: e for i, (e, _) in at.items()}) for at in ruled[optim]]
            instead = [any(sub for _, sub in at.values()) for at in ruled[optim]]
            substituted += sum(sub for at in ruled[optim] for _, sub in at.values())
            line = line_of(
                f"{contender}, {optim}", look, lengths, means, marker="^" if optim == first else "v"
            )
            there = [s for s, m in zip(instead, means, strict=True) if m is not None]
            lines.append(Line(**{**line.__dict__, "substituted": there}))
        for other in others:
            for k, point in enumerate(points):
                mine, theirs = by.get((contender, other, point)), by.get((contender, first, point))
                if mine is None or theirs is None:
                    continue
                gap = paired(errors_of(mine), trained(theirs))
                rule = paired(
                    {i: e for i, (e, _) in ruled[other][k].items()},
                    {i: e for i, (e, _) in ruled[first][k].items()},
                )
                if k == len(points) - 1:
                    gaps[contender, other] = gap
                    baseless[contender, first] = diverged_count(by, (contender, first, point))
                diverged = (
                    diverged_count(by, (contender, first, point)),
                    diverged_count(by, (contender, other, point)),
                )
                table.append(
                    [
                        contender,
                        str(epochs_of(point)),
                        str(len(gap)),
                        shown(level(errors_of(theirs))),
                        shown(level(errors_of(mine))),
                        f"{diverged[0]} / {diverged[1]}",
                        shown(mean(gap), signed=True),
                        shown(mean(rule), signed=True),
                    ]
                )
                values.append(
                    {
                        "contender": contender,
                        "optim": other,
                        "against": first,
                        "epochs": epochs_of(point),
                        "n": len(gap),
                        "diverged": diverged[1],
                        "gap": values_of(mean(gap)),
                        "gap_by_the_papers_rule": values_of(mean(rule)),
                    }
                )
    found, against, differences = against_reference(
        plan, gaps, f"the gap to {first} at {points[-1]}", "loses"
    )
    own = [
        f"At {points[-1]} {contender}'s error under {optim} is {shown(mean(gap), signed=True)} "
        f"points above {first}'s ({len(gap)} seeds)."
        for (contender, optim), gap in gaps.items()
        if mean(gap) is not None
    ]
    gone = sum(diverged_count(by, key) for key in by)
    rule_text = (
        f"Of {gone} diverged runs {substituted} had a shorter schedule to take the place of, as in "
        "the paper: drawn hollow and dashed. The numbers beside the rule's count all as chance "
        "error."
        if gone
        else "No run diverged, so the paper's rule changed nothing."
    )
    second = others[0] if others else "another optimizer"
    head = [
        "contender",
        "epochs",
        "seeds",
        f"{first} error % (95 %)",
        f"{second} error % (95 %)",
        "diverged",
        f"{second} - {first}, points (95 %)",
        "by the paper's rule",
    ]
    tables = [Table("Gap between the optimizers", head, table, f"{seeds_note(plan)} {rule_text}")]
    if against:
        tables.append(
            Table(
                f"Gap at {points[-1]}, against the reference",
                ["contender", "against", "optimizer", "seeds", "difference, points"],
                against,
                "Negative: the contender has the smaller gap.",
            )
        )
    title = "Error by length and optimizer"
    chart = Chart("optimizer", title, "epochs", "top-1 error (%)", lines, log_x=True)
    if len(points) == 1:  # no axis of lengths: contenders side by side
        ticks = plan.contenders
        lines = [_at_its_tick(line, ticks) for line in lines]
        title = f"Error at {points[0]} by optimizer"
        chart = Chart("optimizer", title, "", "top-1 error (%)", lines, ticks=ticks)
    by_length = length(plan, rows) if len(points) > 1 else Parts([], [], [], {})
    return Parts(
        [
            *verdict_of(found, plan),
            *own,
            *untrained(baseless, plan.draws, f"at {points[-1]}"),
            rule_text,
            *by_length.sentences,
        ],
        [*tables, *by_length.tables],
        [chart, *by_length.charts],
        {
            "gaps": values,
            "comparisons": differences,
            "substituted": substituted,
            **({"length": by_length.values} if by_length.values else {}),
        },
    )


def _at_its_tick(line: Line, ticks: Sequence[str]) -> Line:
    """A line of one point, at the place of its contender."""
    place = ticks.index(line.label.rpartition(", ")[0])
    return replace(line, x=[float(place)] * len(line.x))


def _by_the_papers_rule(
    by: Mapping[Key, Mapping[int, Row]], contender: str, optim: str, points: Sequence[str]
) -> list[dict[int, tuple[float, bool]]]:
    """At each point: seed -> (error, whether it stands for a diverged run).

    A diverged run is shown at the best result of a shorter schedule of its seed; where there is
    none it stays at chance, for itself.
    """
    shorter: dict[int, float] = {}
    found = []
    for point in points:
        here: dict[int, tuple[float, bool]] = {}
        for seed, row in by.get((contender, optim, point), {}).items():
            assert row.error is not None
            if row.status == "diverged":
                here[seed] = (shorter.get(seed, row.error), seed in shorter)
            else:
                here[seed] = (row.error, False)
                shorter[seed] = min(row.error, shorter.get(seed, math.inf))
        found.append(here)
    return found
