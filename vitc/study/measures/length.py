"""How much is lost by training for fewer epochs (paper section 5.1 and Figure 2)?"""

from __future__ import annotations

from collections.abc import Sequence

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
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Tuned, Tuning
from vitc.views.model import Chart, Table


class Length(base.Measure):
    """Error above that of the longest schedule, seed by seed."""

    name = "length"
    summary = "How much is lost by shorter training? Error above the longest schedule's."
    example = (
        "vitc study length fashion_vit_p --models vit_c_tiny vit_p_tiny --lengths 5 10 20 40\n"
        "vitc study length fashion_vit_p --models vit_c_tiny vit_p_tiny --retune 8 --seeds 5"
    )
    options = (base.LENGTHS, base.RETUNE)
    untuned = base.FIXED

    def tuning(self, request: Request) -> Tuning | None:
        return base.tuning_at_every_length(request)

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        return base.seeded_plan(self, request, base.points_of_lengths(request), tuned)

    def read(self, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Finding:
        cells = seeded.Cells.of(plan, results, tuning)
        points = seeded.points_of(plan)
        shortest, longest = points[0], points[-1]
        lengths = [float(base.epochs_of(p)) for p in points]
        rows, lines, values = [], [], []
        losses: dict[Key, Outcomes] = {}
        for look, (contender, optim) in enumerate(seeded.contender_optims(plan)):
            last = cells.outcomes(contender, optim, longest)
            losses[contender, optim, ""] = cells.outcomes(contender, optim, shortest).minus(last)
            means = []
            for point in points:
                here = cells.outcomes(contender, optim, point)
                above = here.minus(last).values
                mean, level = seeded.mean(above), seeded.level(here.values)
                means.append(mean)
                rows.append(
                    {
                        "contender": contender,
                        "optimizer": optim,
                        "epochs": str(base.epochs_of(point)),
                        "failed to learn": cells.count(contender, optim, point),
                        "error % (95 %)": seeded.shown(level),
                        f"above {longest} (95 %)": "0"
                        if point == longest and mean
                        else seeded.shown(mean, signed=True),
                    }
                )
                values.append(
                    {
                        "contender": contender,
                        "optim": optim,
                        "epochs": base.epochs_of(point),
                        "n": len(here.values),
                        "failed_to_learn": len(here.failed),
                        "error": seeded.values_of(level),
                        "pairs": len(above),
                        "delta": seeded.values_of(mean),
                    }
                )
            name = seeded.name_of(plan, contender, optim)
            lines.append(seeded.line_of(name, look, lengths, means))

        def compare(pairs: Pairs | None = None) -> list[Contrast]:
            what = f"loss from {base.epochs_of(longest)} to {shortest}"
            return contrasts(plan, "loss", what, losses, pairs) if len(points) > 1 else []

        found = compare()
        title, ylabel = "Error above the longest schedule", f"error above {longest} (points)"
        one = f"There is one length only ({longest}): nothing to compare it with."
        note = seeded.seeds_note(plan)
        return Finding(
            verdict=verdict(found, plan) if len(points) > 1 else [one],
            remarks=controls(found, plan),
            tables=[
                *contrast_table(found, f"Loss at {shortest}, against the reference", plan),
                Table.of("Error by length of training", rows, note, brief=True),
            ],
            charts=[Chart("length", title, "epochs", ylabel, lines, log_x=True)],
            values={"lengths": values, "comparisons": [c.values for c in found]},
            contrasts=tuple(found),
            compare=compare,
        )
