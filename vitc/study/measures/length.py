"""How much is lost by training for fewer epochs (paper section 5.1 and Figure 2)?"""

from __future__ import annotations

from collections.abc import Sequence

from vitc.study.contenders import Request
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
        return base.tuning_at_every_length(request, base.points_of_lengths(request))

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        return base.seeded_plan(self, request, base.points_of_lengths(request), tuned)

    def read(self, plan: Plan, results: Sequence[Result]) -> Finding:
        cells = seeded.Cells.of(plan, results)
        points = seeded.points_of(plan)
        shortest, longest = points[0], points[-1]
        lengths = [float(base.epochs_of(p)) for p in points]
        rows, lines, values = [], [], []
        losses: dict[seeded.Key, seeded.Errors] = {}
        for look, (contender, optim) in enumerate(seeded.contender_optims(plan)):
            last = cells.trained(contender, optim, longest)
            short = cells.errors(contender, optim, shortest)
            losses[contender, optim, ""] = seeded.paired(short, last)
            means = []
            for point in points:
                error = cells.errors(contender, optim, point)
                delta = seeded.paired(error, last)
                mean, level = seeded.mean(delta), seeded.level(error)
                means.append(mean)
                above = "0" if point == longest and mean else seeded.shown(mean, signed=True)
                rows.append(
                    {
                        "contender": contender,
                        "optimizer": optim,
                        "epochs": str(base.epochs_of(point)),
                        "seeds": str(len(error)),
                        "diverged": str(cells.diverged(contender, optim, point)),
                        "error % (95 %)": seeded.shown(level),
                        f"above {longest} (95 %)": above,
                    }
                )
                values.append(
                    {
                        "contender": contender,
                        "optim": optim,
                        "epochs": base.epochs_of(point),
                        "n": len(error),
                        "error": seeded.values_of(level),
                        "pairs": len(delta),
                        "delta": seeded.values_of(mean),
                    }
                )
            name = seeded.name_of(plan, contender, optim)
            lines.append(seeded.line_of(name, look, lengths, means))
        found = seeded.differences(plan, losses)
        what = f"the loss from {longest} to {shortest}"
        sentences = seeded.verdict_of(seeded.difference_sentences(found, what, "loses"), plan)
        if len(points) < 2:
            sentences = [f"There is one length only ({longest}): nothing to compare it with."]
        against = f"Loss at {shortest}, against the reference"
        title, ylabel = "Error above the longest schedule", f"error above {longest} (points)"
        note = seeded.seeds_note(plan)
        return Finding(
            [*sentences, *seeded.untrained(cells, seeded.contender_optims(plan), longest)],
            [
                Table.of("Error by length of training", rows, note, brief=True),
                *seeded.difference_tables(found, against, "Negative: the contender loses less."),
            ],
            [Chart("length", title, "epochs", ylabel, lines, log_x=True)],
            {"lengths": values, "comparisons": [d.values for d in found]},
        )
