"""Peak performance against what models cost, and what their time goes with (section 6, Fig. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitc.stats import effects
from vitc.study.design import Plan
from vitc.study.measures.base import epochs_of
from vitc.study.measures.findings import (
    Chart,
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
    points_of,
    seeds_note,
    shown,
    values_of,
    verdict_of,
)
from vitc.study.results import Row, cost_of, uncounted_note


def peak(plan: Plan, rows: Sequence[Row]) -> Parts:
    """Error of the long runs against what the models cost; what time goes with (Figures 6, 9)."""
    by = cells(rows)
    points = points_of(plan)
    last = points[-1]
    table, values, costs = [], [], []
    uncounted: dict[str, str] = {}
    finals: dict[tuple[str, str], dict[int, float]] = {}
    lines: dict[str, list[Line]] = {
        "ms an image": [],
        "Gflops": [],
        "params (M)": [],
        "activations (M)": [],
    }
    for look, (contender, optim) in enumerate(contender_optims(plan)):
        group = next(g for g in plan.groups if (g.contender, g.optim) == (contender, optim))
        cost, why = cost_of(group, plan.classes)
        if cost is None:
            uncounted[contender] = why
        cell = by.get((contender, optim, last), {})
        images = group.config.train.batch  # models of one table may differ in it
        each = [
            1e3 * r.train_seconds / r.steps / images
            for r in cell.values()
            if r.train_seconds and r.steps
        ]
        image_ms = float(np.median(each)) if each else None
        final = errors_of(cell)
        finals[contender, ""] = final
        m = level(final)
        lr, decay = group.config.optim.lr, group.config.optim.weight_decay
        table.append(
            [
                contender,
                optim,
                f"{lr:.3g} / {decay:.3g}",
                *(shown(level(errors_of(by.get((contender, optim, p), {})))) for p in points),
                str(diverged_count(by, (contender, optim, last))),
                *(
                    ["-"] * 3
                    if cost is None
                    else [
                        f"{cost.flops / 1e6:,.1f}",
                        f"{cost.params / 1e6:,.3f}",
                        f"{cost.activations / 1e6:,.3f}",
                    ]
                ),
                "-" if image_ms is None else f"{image_ms:.3f}",
            ]
        )
        values.append(
            {
                "contender": contender,
                "optim": optim,
                "lr": lr,
                "weight_decay": decay,
                "flops": cost and cost.flops,
                "params": cost and cost.params,
                "activations": cost and cost.activations,
                "image_ms": image_ms,
                "n": len(final),
                "errors": {
                    epochs_of(p): values_of(level(errors_of(by.get((contender, optim, p), {}))))
                    for p in points
                },
            }
        )
        if image_ms is not None:
            lines["ms an image"].append(line_of(contender, look, [image_ms], [m]))
        if cost is None:
            continue
        if image_ms is not None:
            costs.append((cost.params, cost.flops, cost.activations, image_ms))
        lines["Gflops"].append(line_of(contender, look, [cost.flops / 1e9], [m]))
        lines["params (M)"].append(line_of(contender, look, [cost.params / 1e6], [m]))
        lines["activations (M)"].append(line_of(contender, look, [cost.activations / 1e6], [m]))
    found, against, differences = against_reference(plan, finals, f"the error at {last}", "errs")
    tables = [
        Table(
            "Peak performance",
            [
                "contender",
                "optimizer",
                "lr / weight decay",
                *(f"error % at {p} (95 %)" for p in points),
                "diverged",
                "Mflops",
                "params (M)",
                "activations (M)",
                "ms an image",
            ],
            table,
            f"{seeds_note(plan)} Time: of training steps as the trials ran, several at a time.",
        )
    ]
    if against:
        tables.append(
            Table(
                f"Error at {last}, against the reference",
                ["contender", "against", "optimizer", "seeds", "difference, points"],
                against,
                "Negative: the contender is better.",
            )
        )
    correlated, sentence = time_correlations(costs)
    return Parts(
        [
            *verdict_of(found, plan),
            sentence,
            *(uncounted_note(contender, why) for contender, why in uncounted.items()),
        ],
        [*tables, correlated],
        [
            Chart(
                f"peak_{n}",
                f"Error at {last} against {what}",
                what,
                "top-1 error (%)",
                at,
                log_x=True,
            )
            for n, (what, at) in enumerate(lines.items())
            if at
        ],
        {
            "contenders": values,
            "comparisons": differences,
            "correlations": correlation_values(costs),
        },
    )


COSTS = ("params", "flops", "activations")
PAPER_R = {"params": 0.71, "flops": 0.75, "activations": 0.93}  # Figure 9, of its models and GPUs


def correlation_values(costs: Sequence[tuple[float, float, float, float]]) -> dict[str, Any]:
    """Pearson's r of the time an image with params, flops, activations; `costs` hold the four."""
    columns = np.array(costs, dtype=np.float64).reshape(-1, 4)
    return {
        name: values_of(effects.correlation(columns[:, i], columns[:, 3]))
        for i, name in enumerate(COSTS)
    } | {"n": len(costs)}


def time_correlations(
    costs: Sequence[tuple[float, float, float, float]],
) -> tuple[Table, str]:
    """The table beside the paper's Figure 9, and what can be said from so many models."""
    found = correlation_values(costs)
    rows = []
    for name in COSTS:
        i = found[name]
        ours = "-" if i is None else f"{i['estimate']:.2f} ({i['low']:.2f} to {i['high']:.2f})"
        rows.append([name, ours, i["method"] if i else "-", f"{PAPER_R[name]:.2f}"])
    n = len(costs)
    sentence = f"Time an image against cost: {n} models."
    if n < effects.FEWEST_TO_BOOTSTRAP:
        sentence += (
            f" That is too few to tell the three correlations apart; {effects.FEWEST_TO_BOOTSTRAP} "
            "or more give a bootstrap interval."
        )
    head = ["time an image against", "Pearson's r (95 %)", "interval", "paper, Figure 9"]
    return Table("What time goes with", head, rows, sentence), sentence
