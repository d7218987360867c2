"""How much is lost with SGD instead of AdamW (paper section 5.2 and Figure 3)?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitc.errors import ConfigError
from vitc.study.contenders import Request
from vitc.study.design import Plan
from vitc.study.measures import base, seeded
from vitc.study.measures.length import Length
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Tuned, Tuning
from vitc.views.model import Chart, Line, Table

Ruled = list[dict[int, tuple[float, bool]]]  # by point: seed -> (error, whether a shorter run's)


class Optimizer(base.Measure):
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
    options = (base.LENGTHS, base.RETUNE)
    untuned = base.FIXED

    def tuning(self, request: Request) -> Tuning | None:
        if len(set(request.optims)) != 2:
            raise ConfigError(
                f"A gap is between two optimizers, not {len(set(request.optims))}.",
                "For example: --optims adamw sgd",
            )
        return base.tuning_at_every_length(request, base.points_of_lengths(request))

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        return base.seeded_plan(self, request, base.points_of_lengths(request), tuned)

    def read(self, plan: Plan, results: Sequence[Result]) -> Finding:
        cells = seeded.Cells.of(plan, results)
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
            (c, o, p): seeded.paired(cells.errors(c, o, p), cells.trained(c, first, p))
            for c, o, p in keys
        }
        final: dict[seeded.Key, seeded.Errors] = {
            (c, o, ""): g for (c, o, p), g in gaps.items() if p == last
        }
        found = seeded.differences(plan, final)
        own = [
            f"At {last} {contender}'s error under {optim} is "
            f"{seeded.shown(seeded.mean(gap), signed=True)} points above {first}'s "
            f"({len(gap)} seeds)."
            for (contender, optim, _), gap in final.items()
            if gap
        ]
        substituted = sum(sub for at in ruled.values() for here in at for _, sub in here.values())
        gone = sum(cells.diverged(*key) for key in cells.runs)
        rule = (
            f"Of {gone} diverged runs {substituted} had a shorter schedule to take the place of, "
            "as in the paper: drawn hollow and dashed. The other numbers count all of them as "
            "chance error."
            if gone
            else "No run diverged, so the paper's rule changed nothing."
        )
        both = [_compared(cells, ruled, first, *key, gap) for key, gap in gaps.items()]
        sentences = seeded.difference_sentences(found, f"the gap to {first} at {last}", "loses")
        by_length = Length().read(plan, results) if len(points) > 1 else Finding([], [], [], {})
        note = f"{seeded.seeds_note(plan)} {rule}"
        against = f"Gap at {last}, against the reference"
        smaller = "Negative: the contender has the smaller gap."
        return Finding(
            [
                *seeded.verdict_of(sentences, plan),
                *own,
                *seeded.untrained(cells, [(c, first) for c, *_ in final], last),
                rule,
                *by_length.sentences,
            ],
            [
                Table.of("Gap between the optimizers", [row for row, _ in both], note, brief=True),
                *seeded.difference_tables(found, against, smaller),
                *(replace(t, brief=False) for t in by_length.tables),
            ],
            [_chart(plan, cells, ruled), *by_length.charts],
            {
                "gaps": [values for _, values in both],
                "comparisons": [d.values for d in found],
                "substituted": substituted,
                **({"length": by_length.values} if by_length.values else {}),
            },
        )


def _compared(
    cells: seeded.Cells,
    ruled: Mapping[tuple[str, str], Ruled],
    first: str,
    contender: str,
    optim: str,
    point: str,
    gap: seeded.Errors,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The row of a contender's gap to the first optimizer at a point, and its values."""
    old, new = (contender, first, point), (contender, optim, point)
    at = seeded.points_of(cells.plan).index(point)
    mine, theirs = (
        {seed: error for seed, (error, _) in ruled[contender, o][at].items()}
        for o in (optim, first)
    )
    mean, by_rule = seeded.mean(gap), seeded.mean(seeded.paired(mine, theirs))
    row = {
        "contender": contender,
        "epochs": str(base.epochs_of(point)),
        "seeds": str(len(gap)),
        f"{first} error % (95 %)": seeded.shown(seeded.level(cells.errors(*old))),
        f"{optim} error % (95 %)": seeded.shown(seeded.level(cells.errors(*new))),
        "diverged": f"{cells.diverged(*old)} / {cells.diverged(*new)}",
        f"{optim} - {first}, points (95 %)": seeded.shown(mean, signed=True),
        "by the paper's rule": seeded.shown(by_rule, signed=True),
    }
    values = {
        "contender": contender,
        "optim": optim,
        "against": first,
        "epochs": base.epochs_of(point),
        "n": len(gap),
        "diverged": cells.diverged(*new),
        "gap": seeded.values_of(mean),
        "gap_by_the_papers_rule": seeded.values_of(by_rule),
    }
    return row, values


def _by_the_papers_rule(
    cells: seeded.Cells, contender: str, optim: str, points: Sequence[str]
) -> Ruled:
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
