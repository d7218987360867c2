"""How much is lost with SGD instead of AdamW (paper section 5.2 and Figure 3)?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitc.errors import ConfigError
from vitc.study.contenders import Request
from vitc.study.design import Plan
from vitc.study.measures.base import (
    FIXED,
    LENGTHS,
    RETUNE,
    Measure,
    epochs_of,
    points_of_lengths,
    seeded_plan,
    tuning_at_every_length,
)
from vitc.study.measures.cells import (
    Cells,
    Errors,
    Key,
    difference_sentences,
    difference_tables,
    differences,
    level,
    line_of,
    mean,
    paired,
    points_of,
    seeds_note,
    shown,
    untrained,
    values_of,
    verdict_of,
)
from vitc.study.measures.length import Length
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Tuned, Tuning
from vitc.views.model import Chart, Line, Table

Ruled = list[dict[int, tuple[float, bool]]]  # by point: seed -> (error, whether a shorter run's)


class Optimizer(Measure):
    """The second optimizer's error minus the first's, at each length.

    Twice: a diverged run as chance error, and by the paper's rule, which copies the best result of
    a shorter schedule for it (section 5.2). The same runs give the loss by length under each.
    """

    name = "optimizer"
    summary = "How much is lost with SGD? Its error above AdamW's, at each length."
    example = (
        "vitc study optimizer fashion_vit_p --models vit_c_tiny vit_p_tiny --lengths 5 10 20 40"
    )
    optims = ("adamw", "sgd")
    options = (LENGTHS, RETUNE)
    untuned = FIXED

    def tuning(self, request: Request) -> Tuning | None:
        if len(set(request.optims)) != 2:
            raise ConfigError(
                f"A gap is between two optimizers, not {len(set(request.optims))}.",
                "For example: --optims adamw sgd",
            )
        return tuning_at_every_length(request, points_of_lengths(request))

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        return seeded_plan(self, request, points_of_lengths(request), tuned)

    def read(self, plan: Plan, results: Sequence[Result]) -> Finding:
        cells = Cells.of(plan, results)
        points = points_of(plan)
        first, *others = plan.optims
        second, last = others[0] if others else "another optimizer", points[-1]
        ruled = {
            (c, o): _by_the_papers_rule(cells, c, o, points)
            for c in plan.contenders
            for o in plan.optims
        }
        gaps = _gaps(cells, ruled)
        final: dict[Key, Errors] = {
            (g.contender, g.optim, ""): g.gap for g in gaps if g.point == last
        }
        found = differences(plan, final)
        own = [
            f"At {last} {contender}'s error under {optim} is {shown(mean(gap), signed=True)} "
            f"points above {first}'s ({len(gap)} seeds)."
            for (contender, optim, _), gap in final.items()
            if gap
        ]
        substituted = sum(sub for at in ruled.values() for here in at for _, sub in here.values())
        gone = sum(cells.diverged(*key) for key in cells.runs)
        rule = (
            f"Of {gone} diverged runs {substituted} had a shorter schedule to take the place of, "
            "as in the paper: drawn hollow and dashed. The numbers beside the rule's count all as "
            "chance error."
            if gone
            else "No run diverged, so the paper's rule changed nothing."
        )
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
        note = f"{seeds_note(plan)} {rule}"
        table = Table("Gap between the optimizers", head, [g.row for g in gaps], note, brief=True)
        baseless = {(c, first): cells.diverged(c, first, last) for c, *_ in final}
        sentences = difference_sentences(found, f"the gap to {first} at {last}", "loses")
        by_length = Length().read(plan, results) if len(points) > 1 else Finding([], [], [], {})
        return Finding(
            [
                *verdict_of(sentences, plan),
                *own,
                *untrained(baseless, plan.draws, f"at {last}"),
                rule,
                *by_length.sentences,
            ],
            [
                table,
                *difference_tables(
                    found,
                    f"Gap at {last}, against the reference",
                    "Negative: the contender has the smaller gap.",
                ),
                *(replace(t, brief=False) for t in by_length.tables),
            ],
            [_chart(plan, cells, ruled), *by_length.charts],
            {
                "gaps": [g.values for g in gaps],
                "comparisons": [d.values for d in found],
                "substituted": substituted,
                **({"length": by_length.values} if by_length.values else {}),
            },
        )


def _by_the_papers_rule(cells: Cells, contender: str, optim: str, points: Sequence[str]) -> Ruled:
    """A diverged run counts as the best result of a shorter schedule of its seed; where there is
    none it stays at chance, for itself."""
    shorter: dict[int, float] = {}
    found = []
    for point in points:
        here: dict[int, tuple[float, bool]] = {}
        errors = cells.errors(contender, optim, point)
        for seed, result in cells.at(contender, optim, point).items():
            if result.status == "diverged":
                here[seed] = (shorter.get(seed, errors[seed]), seed in shorter)
            else:
                here[seed] = (errors[seed], False)
                shorter[seed] = min(errors[seed], shorter.get(seed, math.inf))
        found.append(here)
    return found


@dataclass(frozen=True)
class _Gap:
    """One contender at one length: the gap of an optimizer to the first, seed by seed."""

    contender: str
    optim: str
    point: str
    gap: Errors
    row: list[str]
    values: dict[str, Any]


def _gaps(cells: Cells, ruled: Mapping[tuple[str, str], Ruled]) -> list[_Gap]:
    plan, found = cells.plan, []
    first, *others = plan.optims
    for contender in plan.contenders:
        for other in others:
            for k, point in enumerate(points_of(plan)):
                mine, base = (contender, other, point), (contender, first, point)
                if mine not in cells or base not in cells:
                    continue
                gap = paired(cells.errors(*mine), cells.trained(*base))
                rule = paired(
                    {i: e for i, (e, _) in ruled[contender, other][k].items()},
                    {i: e for i, (e, _) in ruled[contender, first][k].items()},
                )
                row = [
                    contender,
                    str(epochs_of(point)),
                    str(len(gap)),
                    shown(level(cells.errors(*base))),
                    shown(level(cells.errors(*mine))),
                    f"{cells.diverged(*base)} / {cells.diverged(*mine)}",
                    shown(mean(gap), signed=True),
                    shown(mean(rule), signed=True),
                ]
                values = {
                    "contender": contender,
                    "optim": other,
                    "against": first,
                    "epochs": epochs_of(point),
                    "n": len(gap),
                    "diverged": cells.diverged(*mine),
                    "gap": values_of(mean(gap)),
                    "gap_by_the_papers_rule": values_of(mean(rule)),
                }
                found.append(_Gap(contender, other, point, gap, row, values))
    return found


def _chart(plan: Plan, cells: Cells, ruled: Mapping[tuple[str, str], Ruled]) -> Chart:
    """Error by length; where there is one length only, contenders side by side."""
    points = points_of(plan)
    lines: list[Line] = []
    for look, contender in enumerate(plan.contenders):
        for optim in plan.optims:
            if all((contender, optim, p) not in cells for p in points):
                continue
            means = [level({i: e for i, (e, _) in at.items()}) for at in ruled[contender, optim]]
            x = [float(epochs_of(p)) for p in points]
            if len(points) == 1:
                x = [float(look)]
            marker = "^" if optim == plan.optims[0] else "v"
            line = line_of(f"{contender}, {optim}", look, x, means, marker)
            instead = [any(sub for _, sub in at.values()) for at in ruled[contender, optim]]
            there = [s for s, m in zip(instead, means, strict=True) if m is not None]
            lines.append(replace(line, substituted=there))
    if len(points) == 1:
        title = f"Error at {points[0]} by optimizer"
        return Chart("optimizer", title, "", "top-1 error (%)", lines, ticks=plan.contenders)
    title = "Error by length and optimizer"
    return Chart("optimizer", title, "epochs", "top-1 error (%)", lines, log_x=True)
