"""How much is lost with SGD instead of AdamW (paper section 5.2 and Figure 3)?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitc.errors import ConfigError
from vitc.study.contenders import Request
from vitc.study.contrasts import (
    Contrast,
    Key,
    Outcomes,
    Pairs,
    contrast_table,
    contrasts,
    controls,
    verdict,
)
from vitc.study.design import Plan
from vitc.study.measures import base, seeded
from vitc.study.measures.length import Length
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Tuned, Tuning
from vitc.views.model import Chart, Line, Table
from vitc.wording import counted

Ruled = list[dict[int, tuple[float, bool]]]  # by point: seed -> (error, whether a shorter run's)


class Optimizer(base.Measure):
    """The second optimizer's error minus the first's, at each length.

    Twice: of the runs that learnt, and by the paper's rule, which copies the best result of a
    shorter schedule for one that did not (section 5.2). The same runs give the loss by length.
    """

    name = "optimizer"
    summary = "How much is lost with SGD? Its error above AdamW's, at each length."
    example = (
        "vitc study optimizer fashion_vit_p --models vit_c_tiny vit_p_tiny --lengths 5 10 20 40"
    )
    optims = ("adamw", "sgd")
    options = (base.LENGTHS, base.RETUNE)
    untuned = base.FIXED

    def tuning(self, request: Request) -> Tuning | None:
        if len(set(request.optims)) != 2:
            raise ConfigError(
                f"A gap is between two optimizers, not {len(set(request.optims))}.",
                "For example: --optims adamw sgd",
            )
        return base.tuning_at_every_length(request)

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        return base.seeded_plan(self, request, base.points_of_lengths(request), tuned)

    def read(self, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Finding:
        cells = seeded.Cells.of(plan, results, tuning)
        points = seeded.points_of(plan)
        first, *others = plan.optims
        second, last = others[0] if others else "another optimizer", points[-1]
        ruled = {
            (c, o): _by_the_papers_rule(cells, c, o, points)
            for c in plan.contenders
            for o in plan.optims
        }
        keys = [(c, second, p) for c in plan.contenders for p in points]
        keys = [k for k in keys if k in cells and (k[0], first, k[2]) in cells]
        gaps = {
            (c, o, p): cells.outcomes(c, o, p).minus(cells.outcomes(c, first, p))
            for c, o, p in keys
        }
        final: dict[Key, Outcomes] = {(c, o, ""): g for (c, o, p), g in gaps.items() if p == last}

        def compare(pairs: Pairs | None = None) -> list[Contrast]:
            return contrasts(plan, "gap", f"{second} - {first} gap at {last}", final, pairs)

        found = compare()
        own = [
            f"At {last} {contender}'s error under {optim} is "
            f"{seeded.shown(seeded.mean(gap.values), signed=True)} points above {first}'s "
            f"({len(gap.values)} seeds that learnt under both)."
            for (contender, optim, _), gap in final.items()
            if gap.values
        ]
        substituted = sum(sub for at in ruled.values() for here in at for _, sub in here.values())
        gone = sum(len(cells.outcomes(*key).failed) for key in cells.runs)
        rule = (
            f"{counted(gone, 'run')} failed to learn; {substituted} of them "
            f"{'is' if substituted == 1 else 'are'} replaced by the best result of a shorter "
            "schedule, as in the paper (hollow, dashed). All other numbers leave them out."
            if gone
            else "No run failed to learn, so the paper's rule changed nothing."
        )
        both = [_compared(cells, ruled, first, *key, gap) for key, gap in gaps.items()]
        by_length = (
            Length().read(plan, results, tuning) if len(points) > 1 else Finding([], [], [], [], {})
        )
        note = f"{seeded.seeds_note(plan)} {rule}"

        def compare_all(pairs: Pairs) -> list[Contrast]:
            return [*compare(pairs), *(by_length.compare(pairs) if by_length.compare else [])]

        return Finding(
            verdict=verdict(found, plan),
            remarks=[*controls(found, plan), *own, rule, *by_length.sentences],
            tables=[
                *contrast_table(found, f"Gap at {last}, against the reference", plan),
                Table.of("Gap between the optimizers", [row for row, _ in both], note, brief=True),
                *(replace(t, brief=False) for t in by_length.tables),
            ],
            charts=[_chart(plan, cells, ruled), *by_length.charts],
            values={
                "gaps": [values for _, values in both],
                "comparisons": [c.values for c in found],
                "substituted": substituted,
                **({"length": by_length.values} if by_length.values else {}),
            },
            contrasts=(*found, *by_length.contrasts),
            compare=compare_all,
        )


def _compared(
    cells: seeded.Cells,
    ruled: Mapping[tuple[str, str], Ruled],
    first: str,
    contender: str,
    optim: str,
    point: str,
    gap: Outcomes,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The row of a contender's gap to the first optimizer at a point, and its values."""
    old, new = (contender, first, point), (contender, optim, point)
    at = seeded.points_of(cells.plan).index(point)
    mine, theirs = (
        {seed: error for seed, (error, _) in ruled[contender, o][at].items()}
        for o in (optim, first)
    )
    mean = seeded.mean(gap.values)
    by_rule = seeded.mean(Outcomes(mine).minus(Outcomes(theirs)).values)
    row = {
        "contender": contender,
        "epochs": str(base.epochs_of(point)),
        f"{first} error % (95 %)": seeded.shown(seeded.level(cells.outcomes(*old).values)),
        f"{optim} error % (95 %)": seeded.shown(seeded.level(cells.outcomes(*new).values)),
        "failed to learn": f"{cells.count(*old)}; {cells.count(*new)}",
        f"{optim} - {first}, points (95 %)": seeded.shown(mean, signed=True),
        "by the paper's rule": seeded.shown(by_rule, signed=True),
    }
    values = {
        "contender": contender,
        "optim": optim,
        "against": first,
        "epochs": base.epochs_of(point),
        "n": len(gap.values),
        "failed_to_learn": len(gap.failed),
        "gap": seeded.values_of(mean),
        "gap_by_the_papers_rule": seeded.values_of(by_rule),
    }
    return row, values


def _by_the_papers_rule(
    cells: seeded.Cells, contender: str, optim: str, points: Sequence[str]
) -> Ruled:
    """A run that failed to learn counts as the best result of a shorter schedule of its seed; where
    there is none it stays at chance, for itself."""
    shorter: dict[int, float] = {}
    found = []
    for point in points:
        here: dict[int, tuple[float, bool]] = {}
        for seed, result in cells.at(contender, optim, point).items():
            if result.failed_to_learn:
                here[seed] = (shorter.get(seed, cells.plan.chance_error), seed in shorter)
            elif result.error is not None:
                here[seed] = (result.error, False)
                shorter[seed] = min(result.error, shorter.get(seed, math.inf))
        found.append(here)
    return found


def _chart(plan: Plan, cells: seeded.Cells, ruled: Mapping[tuple[str, str], Ruled]) -> Chart:
    """Error by length; where there is one length only, contenders side by side."""
    points = seeded.points_of(plan)
    lines: list[Line] = []
    for look, contender in enumerate(plan.contenders):
        for optim in plan.optims:
            if all((contender, optim, p) not in cells for p in points):
                continue
            means = [
                seeded.level({i: e for i, (e, _) in at.items()}) for at in ruled[contender, optim]
            ]
            x = [float(base.epochs_of(p)) for p in points]
            if len(points) == 1:
                x = [float(look)]
            marker = "^" if optim == plan.optims[0] else "v"
            line = seeded.line_of(f"{contender}, {optim}", look, x, means, marker)
            instead = [any(sub for _, sub in at.values()) for at in ruled[contender, optim]]
            there = [s for s, m in zip(instead, means, strict=True) if m is not None]
            lines.append(replace(line, substituted=there))
    if len(points) == 1:
        title = f"Error at {points[0]} by optimizer"
        return Chart("optimizer", title, "", "top-1 error (%)", lines, ticks=plan.contenders)
    title = "Error by length and optimizer"
    return Chart("optimizer", title, "epochs", "top-1 error (%)", lines, log_x=True)
