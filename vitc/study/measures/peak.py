"""Peak performance against what models cost, and what their time goes with (section 6, Fig. 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vitc.errors import ConfigError
from vitc.stats import effects
from vitc.stats.proportions import Interval
from vitc.study.contenders import Request
from vitc.study.contrasts import (
    Contrast,
    Outcomes,
    Pairs,
    contrast_table,
    contrasts,
    controls,
    verdict,
)
from vitc.study.design import Group, Plan
from vitc.study.measures import base, seeded
from vitc.study.results import Finding, Result, cost_of, uncounted_note
from vitc.study.tuning import UNTUNED, Tuned, Tuning
from vitc.views.model import Chart, Table

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity


class Peak(base.Measure):
    """Error of the long runs against what the models cost (Figures 6, 9)."""

    name = "peak"
    summary = "Tune a little, train long: error against flops, params, activations and time."
    example = (
        "vitc study peak fashion_vit_p --models vit_c_tiny vit_p_tiny vit_p_tiny_patch4 "
        "--tune 8 --optims adamw sgd"
    )
    options = (
        replace(base.LENGTHS, help="epochs of the runs (default: the recipe's)"),
        base.tune_option(8),
        base.TUNE_EPOCHS,
    )
    untuned = base.RECIPES_OWN

    def tuning(self, request: Request) -> Tuning | None:
        found = base.short_tuning(request)
        if len(request.optims) > 1 and found is None:
            raise ConfigError(
                "Without --tune it is not known which optimizer is best.",
                "Give one --optims, or --tune N.",
            )
        return found

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        points = base.points_of_lengths(request, every_length=False)
        if len(request.optims) == 1 or not tuned.errors:
            return base.seeded_plan(self, request, points, tuned)
        groups = best_optimizer(base.groups_of(request)[0], tuned.errors)
        about = "of each contender the optimizer whose best draw was best is run"
        tuned = replace(tuned, about=(*tuned.about, about))
        return base.seeded_plan(self, request, points, tuned, groups)

    def read(self, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Finding:
        cells = seeded.Cells.of(plan, results, tuning)
        last = seeded.points_of(plan)[-1]
        contenders = [_contender(cells, *key) for key in seeded.contender_optims(plan)]
        finals = {(c.group.contender, "", ""): c.final for c in contenders}

        def compare(pairs: Pairs | None = None) -> list[Contrast]:
            return contrasts(plan, "error", f"error at {last}", finals, pairs)

        found = compare()
        note = f"{seeded.seeds_note(plan)} Times are of training steps of several trials at a time."
        costs = [
            (c.cost.params, c.cost.flops, c.cost.activations, c.image_ms)
            for c in contenders
            if c.cost is not None and c.image_ms is not None
        ]
        correlated, sentence = time_correlations(costs)
        return Finding(
            verdict=verdict(found, plan),
            remarks=[
                *controls(found, plan),
                sentence,
                *(uncounted_note(c.group.contender, c.why) for c in contenders if c.cost is None),
            ],
            tables=[
                *contrast_table(found, f"Error at {last}, against the reference", plan),
                Table.of("Peak performance", [c.row for c in contenders], note, brief=True),
                correlated,
            ],
            charts=_charts(contenders, last),
            values={
                "contenders": [c.values for c in contenders],
                "comparisons": [c.values for c in found],
                "correlations": correlation_values(costs),
            },
            contrasts=tuple(found),
            compare=compare,
        )


def best_optimizer(groups: Sequence[Group], errors: Mapping[str, float]) -> list[Group]:
    """Of each contender the group of the optimizer whose best draw was best."""
    best: dict[str, Group] = {}
    for g in groups:
        if g.contender not in best or errors[g.key] < errors[best[g.contender].key]:
            best[g.contender] = g
    return list(best.values())


@dataclass(frozen=True)
class _Contender:
    """A contender's errors by point beside what its model costs."""

    group: Group
    cost: Complexity | None
    why: str
    """Why the model could not be counted."""
    image_ms: float | None
    final: Outcomes
    levels: dict[str, Interval | None]
    failed_to_learn: str

    @property
    def row(self) -> dict[str, str]:
        optim, cost = self.group.config.optim, self.cost
        return {
            "contender": self.group.contender,
            "optimizer": self.group.optim,
            "lr / weight decay": f"{optim.lr:.3g} / {optim.weight_decay:.3g}",
            **{f"error % at {p} (95 %)": seeded.shown(i) for p, i in self.levels.items()},
            "failed to learn": self.failed_to_learn,
            "Mflops": f"{cost.flops / 1e6:,.1f}" if cost else "-",
            "params (M)": f"{cost.params / 1e6:,.3f}" if cost else "-",
            "activations (M)": f"{cost.activations / 1e6:,.3f}" if cost else "-",
            "ms an image": "-" if self.image_ms is None else f"{self.image_ms:.3f}",
        }

    @property
    def values(self) -> dict[str, Any]:
        return {
            "contender": self.group.contender,
            "optim": self.group.optim,
            "lr": self.group.config.optim.lr,
            "weight_decay": self.group.config.optim.weight_decay,
            "flops": self.cost and self.cost.flops,
            "params": self.cost and self.cost.params,
            "activations": self.cost and self.cost.activations,
            "image_ms": self.image_ms,
            "n": len(self.final.values),
            "failed_to_learn": len(self.final.failed),
            "errors": {base.epochs_of(p): seeded.values_of(i) for p, i in self.levels.items()},
        }


def _contender(cells: seeded.Cells, contender: str, optim: str) -> _Contender:
    plan = cells.plan
    points = seeded.points_of(plan)
    group = next(g for g in plan.groups if (g.contender, g.optim) == (contender, optim))
    cost, why = cost_of(group, plan.classes)
    images = group.config.train.batch  # models of one table may differ in it
    each = [
        1e3 * r.train_seconds / r.steps / images
        for r in cells.at(contender, optim, points[-1]).values()
        if r.train_seconds and r.steps
    ]
    return _Contender(
        group=group,
        cost=cost,
        why=why,
        image_ms=float(np.median(each)) if each else None,
        final=cells.outcomes(contender, optim, points[-1]),
        levels={p: seeded.level(cells.outcomes(contender, optim, p).values) for p in points},
        failed_to_learn=cells.count(contender, optim, points[-1]),
    )


def _charts(contenders: Sequence[_Contender], last: str) -> list[Chart]:
    """Error against each cost that is known."""
    costs: list[tuple[str, Callable[[_Contender], float | None]]] = [
        ("ms an image", lambda c: c.image_ms),
        ("Gflops", lambda c: c.cost.flops / 1e9 if c.cost else None),
        ("params (M)", lambda c: c.cost.params / 1e6 if c.cost else None),
        ("activations (M)", lambda c: c.cost.activations / 1e6 if c.cost else None),
    ]
    found = []
    for n, (what, cost) in enumerate(costs):
        lines = [
            seeded.line_of(c.group.contender, look, [x], [c.levels[last]])
            for look, c in enumerate(contenders)
            if (x := cost(c)) is not None
        ]
        if lines:
            title = f"Error at {last} against {what}"
            found.append(Chart(f"peak_{n}", title, what, "top-1 error (%)", lines, log_x=True))
    return found


PAPER_R = {"params": 0.71, "flops": 0.75, "activations": 0.93}  # Figure 9, of its models and GPUs


def correlation_values(costs: Sequence[tuple[float, float, float, float]]) -> dict[str, Any]:
    """Pearson's r of the time an image with params, flops, activations; `costs` hold the four."""
    columns = np.array(costs, dtype=np.float64).reshape(-1, 4)
    return {
        name: seeded.values_of(effects.correlation(columns[:, i], columns[:, 3]))
        for i, name in enumerate(PAPER_R)
    } | {"n": len(costs)}


def time_correlations(costs: Sequence[tuple[float, float, float, float]]) -> tuple[Table, str]:
    """The table with the paper's Figure 9, and what so many models allow to conclude."""
    rows = []
    for name, i in list(correlation_values(costs).items())[:-1]:
        ours = "-" if i is None else f"{i['estimate']:.2f} ({i['low']:.2f} to {i['high']:.2f})"
        rows.append(
            {
                "time an image against": name,
                "Pearson's r (95 %)": ours,
                "interval": i["method"] if i else "-",
                "paper, Figure 9": f"{PAPER_R[name]:.2f}",
            }
        )
    n, fewest = len(costs), effects.FEWEST_TO_BOOTSTRAP
    sentence = f"Time an image against cost: {n} models."
    if n < fewest:
        sentence += (
            f" That is too few to separate the three correlations; {fewest} or more give a "
            "bootstrap interval."
        )
    return Table.of("What time goes with", rows, sentence), sentence
