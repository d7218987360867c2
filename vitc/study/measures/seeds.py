"""What makes runs differ: how much of the spread does each kind of randomness make?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.stats import effects
from vitc.stats.proportions import Interval
from vitc.study.contenders import Request
from vitc.study.design import Group, Plan
from vitc.study.measures import base, seeded
from vitc.study.results import Finding, Result
from vitc.study.tuning import UNTUNED, Tuned
from vitc.views.model import Chart, Table

SEED_PARTS: dict[str, tuple[str, ...]] = {
    "all": ("train.seed",),
    "init": ("train.seed_init",),
    "order": ("train.seed_order",),
    "augmentation": ("train.seed_augment",),
}
FIXED_SEEDS = 100_000  # where the seeds start that do not vary, beyond those that do
GAPS = (0.5, 1.0, 2.0)  # points, for which the seeds needed are given


class Seeds(base.Measure):
    """Spread of the error by what is seeded, and the seeds that a gap needs."""

    name = "seeds"
    summary = "What makes runs differ: initial weights, order, augmentation? Seeds a gap needs."
    example = "vitc study seeds fashion_vit_p --models vit_c_tiny vit_p_tiny --seeds 20"
    default_runs = 10

    def plan(self, request: Request, tuned: Tuned = UNTUNED) -> Plan:
        """Every contender with one kind of randomness varied at a time, and with all.

        What does not vary has seeds of its own, so that no run is in two of the sets: the law of
        their variances' ratio is that of independent ones.
        """
        if request.runs < 2:
            raise ConfigError(f"A variance needs at least 2 seeds, not {request.runs}.")
        own = request.contenders.values()
        parts = {name for (name,) in SEED_PARTS.values()}
        fixed = [n for settings in (request.settings, *own) for n in settings if n in parts]
        if fixed and not request.begun:
            raise ConfigError(
                f"{fixed[0]} has no effect in vitc study seeds, which sets all seeds itself.",
                "Leave it out. Other seeds: --seed N.",
            )
        plan = base.seeded_plan(self, request, {part: {} for part in SEED_PARTS})
        varied = [_varying(g, SEED_PARTS[g.point], plan.seed) for g in plan.groups]
        return replace(plan, groups=tuple(varied)).checked()

    def read(self, plan: Plan, results: Sequence[Result], tuning: Sequence[Result] = ()) -> Finding:
        cells = seeded.Cells.of(plan, results)
        points = seeded.points_of(plan)
        rows, values, lines = [], [], []
        for look, (contender, optim) in enumerate(seeded.contender_optims(plan)):
            whole = list(cells.outcomes(contender, optim, "all").values.values())
            spreads = []
            for point in points:
                runs = list(cells.outcomes(contender, optim, point).values.values())
                sd = effects.deviation(runs)
                ratio = None if point == "all" else effects.spread_ratio(runs, whole)
                spreads.append(sd)
                rows.append(
                    {
                        "contender": contender,
                        "optimizer": optim,
                        "varied": point,
                        "failed to learn": cells.count(contender, optim, point),
                        "mean error %": f"{np.mean(runs):.2f}" if runs else "-",
                        "standard deviation (95 %)": _spread(sd),
                        "spread relative to all (95 %)": "1"
                        if point == "all"
                        else seeded.shown(ratio),
                    }
                )
                values.append(
                    {
                        "contender": contender,
                        "optim": optim,
                        "varied": point,
                        "n": len(runs),
                        "deviation": seeded.values_of(sd),
                        "spread_ratio": seeded.values_of(ratio),
                    }
                )
            name, x = seeded.name_of(plan, contender, optim), [float(i) for i in range(len(points))]
            lines.append(seeded.line_of(name, look, x, spreads))
        note = (
            "One kind of seed varies while the others stay; squares of the spreads need not add "
            "up, for the kinds act on each other. Relative spreads are ratios of mean distances "
            "from the median."
        )
        sentences, power = _power(cells)
        spread = "standard deviation (points)"
        return Finding(
            sentences or ["There are too few runs yet to estimate a spread."],
            [],
            [Table.of("Spread of the error by what is varied", rows, note, brief=True), power],
            [Chart("seeds", "Spread by what is varied", "varied", spread, lines, ticks=points)],
            {"spreads": values},
        )


def _varying(group: Group, names: tuple[str, ...], seed: int) -> Group:
    fixed = {
        name: 1000 * seed + group.seed_shift + FIXED_SEEDS
        for (name,) in SEED_PARTS.values()
        if names != SEED_PARTS["all"] and name not in ("train.seed", *names)
    }
    return replace(group, seed_names=names).with_config(load_config(group.config, **fixed))


def _power(cells: seeded.Cells) -> tuple[list[str], Table]:
    """The seeds that gaps need: sentences, and a table that has paired seeds too."""
    plan = cells.plan
    sentences, rows, paired_rows = [], [], []

    def row(name: str, optim: str, sd: Interval, paired: bool = False) -> dict[str, str]:
        needed = {f"gap of {gap:g}": _needed(sd, gap, paired) for gap in GAPS}
        deviation = {"standard deviation (95 %)": _spread(sd)}
        return {"contender": name, "optimizer": optim, **deviation, **needed}

    for contender, optim in seeded.contender_optims(plan):
        mine = cells.outcomes(contender, optim, "all")
        sd = effects.deviation(list(mine.values.values()))
        if sd is not None:
            rows.append(row(contender, optim, sd))
            sentences.append(
                f"{seeded.name_of(plan, contender, optim)}: runs that differ in all seeds spread "
                f"by {_spread(sd)} points; a gap of 1 point between two such contenders needs "
                f"{_needed(sd, 1.0)} seeds each."
            )
        theirs = cells.outcomes(plan.baseline, optim, "all")
        sd = effects.deviation(list(mine.minus(theirs).values.values()))
        if contender != plan.baseline and sd is not None:
            name = f"{contender} - {plan.baseline}, shared seeds"
            paired_rows.append(row(name, optim, sd, paired=True))
    title = "Seeds needed, each contender, for 80 % power at the 5 % level"
    note = "Of a t test; in brackets for the ends of the deviation's interval."
    return sentences, Table.of(title, [*rows, *paired_rows], note)


def _spread(i: Interval | None) -> str:
    return "-" if i is None else f"{i.estimate:.2f} ({i.low:.2f} to {i.high:.2f})"


def _needed(sd: Interval, gap: float, paired: bool = False) -> str:
    low, n, high = (
        effects.seeds_needed(s, gap, paired=paired) for s in (sd.low, sd.estimate, sd.high)
    )
    words = ["over 100,000" if x is None else str(x) for x in (low, n, high)]
    return f"{words[1]} ({words[0]} to {words[2]})"
