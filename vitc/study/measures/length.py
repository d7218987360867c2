"""How much is lost by training for fewer epochs (paper section 5.1 and Figure 2)?"""

from __future__ import annotations

from collections.abc import Sequence

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
    contender_optims,
    difference_sentences,
    difference_tables,
    differences,
    level,
    line_of,
    mean,
    name_of,
    paired,
    points_of,
    seeds_note,
    shown,
    untrained,
    values_of,
    verdict_of,
)
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Tuned, Tuning
from vitc.views.model import Chart, Table


class Length(Measure):
    """Error above that of the longest schedule, seed by seed."""

    name = "length"
    summary = "How much is lost by shorter training? Error above the longest schedule's."
    example = (
        "vitc study length fashion_vit_p --models vit_c_tiny vit_p_tiny --lengths 5 10 20 40\n"
        "vitc study length fashion_vit_p --models vit_c_tiny vit_p_tiny --retune 8 --seeds 5"
    )
    options = (LENGTHS, RETUNE)
    untuned = FIXED

    def tuning(self, request: Request) -> Tuning | None:
        return tuning_at_every_length(request, points_of_lengths(request))

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        return seeded_plan(self, request, points_of_lengths(request), tuned)

    def read(self, plan: Plan, results: Sequence[Result]) -> Finding:
        cells = Cells.of(plan, results)
        points = points_of(plan)
        shortest, longest = points[0], points[-1]
        lengths = [float(epochs_of(p)) for p in points]
        rows, lines, values = [], [], []
        losses: dict[Key, Errors] = {}
        for look, (contender, optim) in enumerate(contender_optims(plan)):
            last = cells.trained(contender, optim, longest)
            losses[contender, optim, ""] = paired(cells.errors(contender, optim, shortest), last)
            means = []
            for point in points:
                error = cells.errors(contender, optim, point)
                delta = paired(error, last)
                m = mean(delta)
                means.append(m)
                rows.append(
                    [
                        contender,
                        optim,
                        str(epochs_of(point)),
                        str(len(error)),
                        str(cells.diverged(contender, optim, point)),
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
        found = differences(plan, losses)
        what = f"the loss from {longest} to {shortest}"
        sentences = verdict_of(difference_sentences(found, what, "loses"), plan)
        if len(points) < 2:
            sentences = [f"There is one length only ({longest}): nothing to compare it with."]
        endless = {(c, o): cells.diverged(c, o, longest) for c, o in contender_optims(plan)}
        head = [
            "contender",
            "optimizer",
            "epochs",
            "seeds",
            "diverged",
            "error % (95 %)",
            f"above {longest} (95 %)",
        ]
        note = "Negative: the contender loses less."
        title, above = "Error above the longest schedule", f"error above {longest} (points)"
        return Finding(
            [*sentences, *untrained(endless, plan.draws, f"at {longest}")],
            [
                Table("Error by length of training", head, rows, seeds_note(plan), brief=True),
                *difference_tables(found, f"Loss at {shortest}, against the reference", note),
            ],
            [Chart("length", title, "epochs", above, lines, log_x=True)],
            {"lengths": values, "comparisons": [d.values for d in found]},
        )
