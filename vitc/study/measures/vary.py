"""How sensitive is a contender to a setting? Errors over its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitc.errors import ConfigError
from vitc.stats import proportions
from vitc.study.contenders import Request
from vitc.study.contrasts import (
    Contrast,
    Key,
    Outcomes,
    contrast_table,
    contrasts,
    controls,
    verdict,
)
from vitc.study.design import Plan
from vitc.study.effect import check_replaced
from vitc.study.measures import base, seeded
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Points, Times, Tuned, Tuning
from vitc.views.model import Chart, Table


class Vary(base.Measure):
    """Error and failures to learn at each point, and the change from the first point.

    Contenders are compared by that change, point by point: the distance from their best to their
    worst point would be larger for the noisier one, sensitive or not.
    """

    name = "vary"
    summary = "How sensitive is it to a setting? Error and failures to learn at its values."
    example = (
        "vitc study vary fashion_vit_p --set optim.schedule.warmup_epochs 0 1 2 5\n"
        "vitc study vary fashion_vit_p --models vit_c_tiny vit_p_tiny --tune 8 "
        "--times optim.lr 1 2 4 8\n"
        "vitc study vary fashion_vit_p --set train.batch 32 64 128\n"
        "vitc study vary cifar10_vit_c --data ~/cifar10 --setup plain data.augment.flip=0.5 "
        "--setup strong data.augment.policy=randaugment data.augment.erase=0.25"
    )
    options = (
        *(
            base.Option(name=name, words="+", repeated=True, metavar=metavar, help=about)
            for name, metavar, about in (
                ("set", "SETTING", "SETTING VALUE...: points at which a setting has these values"),
                (
                    "times",
                    "SETTING",
                    "SETTING FACTOR...: points at which it is its value times these; with --tune "
                    "times the best one found",
                ),
                ("setup", "NAME", "NAME SETTING=VALUE...: a point of several settings together"),
            )
        ),
        base.tune_option(0),
        replace(base.TUNE_EPOCHS, help=""),  # --help is long; docs/paper.md has it
    )
    untuned = base.RECIPES_OWN

    def tuning(self, request: Request) -> Tuning | None:
        return base.short_tuning(request)

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        o = request.options
        points = vary_points(o["set"], o["times"], o["setup"])
        if not (request.begun or o["tune"]):  # tuning is done with the setting of all
            fixed = {
                label: {n: v for n, v in of.items() if not isinstance(v, Times)}
                for label, of in points.items()
            }
            check_replaced(request.settings, fixed, "point")
        return base.seeded_plan(self, request, points, tuned)

    def read(self, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Finding:
        cells = seeded.Cells.of(plan, results, tuning)
        points = seeded.points_of(plan)
        start, *_ = points
        rows, values, lines = [], [], []
        extremes: list[str] = []
        changes: dict[Key, Outcomes] = {}
        for look, (contender, optim) in enumerate(seeded.contender_optims(plan)):
            first = cells.outcomes(contender, optim, start)
            means = []
            for point in points:
                here = cells.outcomes(contender, optim, point)
                change = here.minus(first)
                mean, changed = seeded.level(here.values), seeded.mean(change.values)
                runs, gone = len(here.draws), len(here.failed)
                share = proportions.share(gone, runs) if runs else None
                means.append(mean)
                if point != start:
                    changes[contender, optim, point] = change
                rows.append(
                    {
                        "contender": contender,
                        "optimizer": optim,
                        "point": point,
                        "error % (95 %)": seeded.shown(mean),
                        f"against {start} (95 %)": "-"
                        if point == start
                        else seeded.shown(changed, signed=True),
                        "failed to learn": f"{gone} of {runs}: {seeded.percent(share)}",
                    }
                )
                values.append(
                    {
                        "contender": contender,
                        "optim": optim,
                        "point": point,
                        "n": len(here.values),
                        "error": seeded.values_of(mean),
                        "change": seeded.values_of(changed),
                        "failed_to_learn": gone,
                        "failed_to_learn_share": seeded.values_of(share),
                    }
                )
            name = seeded.name_of(plan, contender, optim)
            known = [(m.estimate, p) for m, p in zip(means, points, strict=True) if m is not None]
            if known:
                (best, at), (most, where) = min(known), max(known)
                extremes.append(
                    f"{name}: best at {at} ({best:.2f} %), worst at {where} ({most:.2f} %)."
                )
            lines.append(seeded.line_of(name, look, [float(i) for i in range(len(points))], means))
        found = contrasts(plan, "change", f"change from {start}", changes)
        found.sort(key=lambda c: points.index(c.point))
        axis = "top-1 error (%) of the runs that learnt"
        return Finding(
            verdict=_verdict(found, plan),
            remarks=[*controls(found, plan), *extremes],
            tables=[
                Table.of("Error at each point", rows, seeded.seeds_note(plan), brief=True),
                *contrast_table(found, f"Change from {start}, against the reference", plan),
            ],
            charts=[Chart("vary", "Error at each point", "", axis, lines, ticks=points)],
            values={"points": values, "comparisons": [c.values for c in found]},
            contrasts=tuple(found),
        )


def vary_points(
    sets: Sequence[tuple[str, Sequence[Any]]] = (),
    times: Sequence[tuple[str, Sequence[float]]] = (),
    setups: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> Points:
    """One point a value, axes one at a time; a set-up is a point of several settings together.

    Raises ConfigError: no point, or one twice.
    """
    points: list[tuple[str, Mapping[str, Any]]] = []
    for name, values in sets:
        short = name.rpartition(".")[2]
        points += [
            (f"{short} {v:g}" if isinstance(v, float) else f"{short} {v}", {name: v})
            for v in values
        ]
    for name, factors in times:
        points += [(f"{name.rpartition('.')[2]} x{f:g}", {name: Times(f)}) for f in factors]
    points += list(setups)
    labels = [label for label, _ in points]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if not points or twice:
        raise ConfigError(
            f"The point {twice[0]!r} is there twice." if twice else "Nothing is varied.",
            "Use --set SETTING VALUE..., --times SETTING FACTOR... or --setup NAME SETTING=VALUE.",
        )
    return dict(points)


def _verdict(found: Sequence[Contrast], plan: Plan) -> list[str]:
    """The changes that differ from the reference's; one sentence where none is shown to."""
    rivals = [c for c in found if not c.is_control]
    shown = [c for c in rivals if c.found.verdict != "open"]
    if shown or not rivals:
        return verdict(shown, plan)
    return [
        f"No point changes a contender's error otherwise than {plan.baseline}'s, as far as "
        f"{plan.draws} seeds show."
    ]
