"""Random draws of hyper-parameters: how good is the best of k, and is one contender better?

Every contender is trained on the same draws (paper sections 4 and 5.3), so contenders are compared
draw by draw, and each one's error distribution is shown whole.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitc.errors import ConfigError
from vitc.runs.folder import Run
from vitc.stats import compare, proportions
from vitc.stats import curves as st
from vitc.stats.proportions import Interval
from vitc.study.design import Group, Plan
from vitc.study.measures.base import Measure
from vitc.study.results import Finding, Result, cost_of, uncounted_note
from vitc.views.model import Table

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity

LEVEL = 0.05
WITHIN_POINTS = 2.0  # "share of draws within x points of the best"


@dataclass(frozen=True)
class GroupDraws:
    """All draws of one contender under one optimizer."""

    contender: str
    optim: str
    results: list[Result]
    curves: list[tuple[list[float], list[float]]]
    """Validation error over epochs, one (epochs, errors) a trial that has a result."""
    losses: list[tuple[list[float], list[float]]]
    """Training loss over epochs, likewise."""
    median: Interval | None
    area: Interval | None
    share: Interval | None
    tuning: st.TuningCurve | None
    borders: dict[str, st.Border]
    cost: Complexity | None
    """Of one image; None where the model cannot be counted, and `uncounted` is the reason."""
    uncounted: str
    is_control: bool
    point: str

    @property
    def known(self) -> list[tuple[Result, float]]:
        """The trials that have a result, with their errors."""
        return [(r, r.error) for r in self.results if r.error is not None]

    @property
    def errors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([error for _, error in self.known])

    @property
    def best(self) -> Result | None:
        return min(self.known, key=lambda pair: pair[1])[0] if self.known else None

    @property
    def test(self) -> dict[str, Any]:
        """What the chosen run scored on the test images; empty where they were not read."""
        return next((r.test for r in self.results if r.test is not None), {})

    def count(self, status: str) -> int:
        return sum(r.status == status for r in self.results)

    @property
    def seconds_a_trial(self) -> float:
        """Mean training time of the trials that ran to the end; 0 while there is none."""
        done = [r.train_seconds for r in self.results if r.status == "done" and r.train_seconds]
        return float(np.mean(done)) if done else 0.0

    @property
    def step_ms(self) -> float | None:
        each = [
            1e3 * r.train_seconds / r.steps
            for r in self.results
            if r.status == "done" and r.train_seconds and r.steps
        ]
        return statistics.median(each) if each else None

    @property
    def memory_mib(self) -> float | None:
        each = [r.peak_memory_bytes / 2**20 for r in self.results if r.peak_memory_bytes]
        return statistics.median(each) if each else None


@dataclass(frozen=True)
class DrawsComparison:
    """A contender against the reference on the draws that both have a result for."""

    contender: str
    reference: str
    optim: str
    n: int
    difference: Interval
    """Median of (contender's error - reference's), points; negative: the contender is better."""
    p: float
    p_holm: float
    crossings: compare.Crossings
    reach: st.Reach | None
    draws_needed: int | None
    is_control: bool


class Hparams(Measure):
    """Trials with random settings, the same for every contender."""

    name = "hparams"
    joins = True

    def read(self, plan: Plan, results: Sequence[Result]) -> Finding:
        groups = _groups(plan, results)
        comparisons = _compare(plan, groups)
        tables = [_contenders_table(groups)]
        if comparisons:
            tables.append(_comparisons_table(comparisons))
        return Finding(
            sentences=[_verdict(plan, comparisons), *_readings(groups, comparisons)],
            tables=tables,
            charts=[],
            values={
                "groups": [_group_values(g) for g in groups],
                "comparisons": [_comparison_values(c) for c in comparisons],
            },
            warnings=_warnings(plan, groups),
            draws=tuple(groups),
        )


# -- the draws of a contender ----------------------------------------------------------------------


def _groups(plan: Plan, results: Sequence[Result]) -> list[GroupDraws]:
    found = []
    for optim in plan.optims:
        # one "best" for all contenders of an optimizer, so that their shares compare
        best = min(
            (r.error for r in results if r.optim == optim and r.error is not None), default=0.0
        )
        for g in plan.groups:
            if g.optim == optim:
                mine = [r for r in results if (r.contender, r.optim) == (g.contender, optim)]
                found.append(_group(plan, g, mine, best))
    return found


def _group(plan: Plan, g: Group, results: list[Result], best: float) -> GroupDraws:
    known = [r for r in results if r.error is not None]
    errors = np.array([r.error for r in known])
    any_ = bool(known)
    many = len(known) >= st.FEWEST_TO_RESAMPLE and best < plan.chance_error
    cost, uncounted = cost_of(g, plan.classes)
    metrics = [Run(Path(r.folder)).metrics() for r in known]
    return GroupDraws(
        contender=g.contender,
        optim=g.optim,
        results=results,
        curves=[
            (epochs, [100 - v for v in values])
            for epochs, values in (_curve(lines, "eval", "top1") for lines in metrics)
        ],
        losses=[_curve(lines, "train", "loss") for lines in metrics],
        median=st.median(errors) if any_ else None,
        area=st.area(errors, best, plan.chance_error) if many else None,
        share=proportions.share_within(errors, best, WITHIN_POINTS) if any_ else None,
        tuning=st.tuning_curve(errors, support=(0.0, 100.0)) if any_ else None,
        borders={
            n: st.on_border([r.values[n] for r in known], errors, r.low, r.high, log=r.log)
            for n, r in plan.ranges_of(g).items()
            if any_
        },
        cost=cost,
        uncounted=uncounted,
        is_control=bool(g.seed_shift),
        point=g.point,
    )


def _curve(
    lines: Sequence[dict[str, Any]], kind: str, name: str
) -> tuple[list[float], list[float]]:
    """(epochs, values) of a metric in the lines of a metrics.jsonl."""
    mine = [m for m in lines if m.get("kind") == kind and m.get(name) is not None]
    return [float(m["epoch"]) for m in mine], [float(m[name]) for m in mine]


def _warnings(plan: Plan, groups: Sequence[GroupDraws]) -> list[str]:
    uncounted = {g.contender: g.uncounted for g in groups if g.cost is None}
    found = [uncounted_note(contender, why) for contender, why in uncounted.items()]
    ranges = {(g.contender, g.optim): plan.ranges_of(g) for g in plan.groups}
    for g in groups:
        for name, border in g.borders.items():
            if border.side:
                r = ranges[g.contender, g.optim][name]
                found.append(
                    f"{g.contender} under {g.optim}: the best {name} lies on the {border.side} "
                    f"border of its range {r.low:g} to {r.high:g}; a wider range may be better."
                )
    return found


# -- comparisons -----------------------------------------------------------------------------------


def _compare(plan: Plan, groups: Sequence[GroupDraws]) -> list[DrawsComparison]:
    """Every contender against the reference under the same optimizer, tuned at the same length."""
    reference = plan.reference or plan.contenders[-1]
    bases = {g.optim: g for g in groups if g.contender == reference}
    rivals = [g for g in groups if g.contender != reference]
    found: list[DrawsComparison] = []
    for g in rivals:
        base = bases[g.optim]
        theirs = {r.draw: error for r, error in base.known}
        shared = [(error, theirs[r.draw]) for r, error in g.known if r.draw in theirs]
        if g.point != base.point or len(shared) < 2:
            continue
        a, b = (np.array(x) for x in zip(*shared, strict=True))
        try:
            needed = compare.draws_needed(a - b, level=LEVEL / len(rivals))  # as Holm's first
        except ConfigError:
            needed = None
        found.append(
            DrawsComparison(
                contender=g.contender,
                reference=reference,
                optim=g.optim,
                n=len(shared),
                difference=compare.paired_median_difference(a, b),
                p=compare.paired_test(a, b).p,
                p_holm=1.0,
                crossings=compare.edfs_cross(a, b),
                reach=_reach(g, base),
                draws_needed=needed,
                is_control=g.is_control,
            )
        )
    adjusted = compare.holm([c.p for c in found]).tolist() if found else []
    return [replace(c, p_holm=p) for c, p in zip(found, adjusted, strict=True)]


def _reach(a: GroupDraws, b: GroupDraws) -> st.Reach | None:
    """How many draws the contender needs for what the reference reaches with all its draws."""
    if a.tuning is None or b.tuning is None:
        return None
    return st.draws_to_reach(a.tuning, b.tuning, int(b.tuning.ks[-1]))


# -- sentences -------------------------------------------------------------------------------------


def _verdict(plan: Plan, comparisons: Sequence[DrawsComparison]) -> str:
    """Two sentences: what was found, with its interval; and what would change it."""
    rivals = [c for c in comparisons if not c.is_control]
    if len(plan.contenders) == 1:
        return (
            f"{plan.contenders[0]} is the only contender: it is compared with none. "
            "Another recipe, or --models with two names, would change that."
        )
    if not rivals:
        return (
            "There is nothing to compare yet: the reference and another contender need at least "
            "two shared draws with a result. More finished trials would change that."
        )
    mine = [c for c in rivals if c.contender == rivals[0].contender]
    text = "; ".join(map(_finding, mine))
    return f"{text[0].upper()}{text[1:]}. {_what_would_change(mine)}"


def _finding(c: DrawsComparison) -> str:
    d = c.difference
    size = (
        f"{_points(abs(d.estimate))} points (median paired difference; 95 % interval "
        f"{_bounds(d)}; {c.n} shared draws; Holm-corrected p {_p(c.p_holm)})"
    )
    better = "lower" if d.estimate < 0 else "higher"
    if c.p_holm >= LEVEL:
        text = (
            f"under {c.optim} no difference between {c.contender} and {c.reference} is shown: "
            f"{c.contender}'s error is {better} by {size}"
        )
    else:
        text = f"under {c.optim} {c.contender}'s error is {better} than {c.reference}'s by {size}"
    if c.crossings.beyond_noise:
        at = c.crossings.beyond_noise[0]
        text += f", but the distributions cross near {at.low:.0f}-{at.high:.0f} % error"
    return text


def _what_would_change(comparisons: Sequence[DrawsComparison]) -> str:
    open_ones = [c for c in comparisons if c.p_holm >= LEVEL]
    if not open_ones:
        return (
            "More draws from these ranges would hardly change the sign; another budget, other "
            "ranges or other data could, and none of those was tried here."
        )
    needs = [
        f"about {c.draws_needed} shared draws under {c.optim} (there are {c.n})"
        for c in open_ones
        if c.draws_needed and c.draws_needed > c.n
    ]
    if needs:
        return (
            f"More draws would change it: a difference of the size seen is found with 80 % power "
            f"by {' and '.join(needs)}, if it is real."
        )
    return (
        "More draws could change it, but what was seen gives no way to estimate how many; a "
        "longer budget or other ranges could as well."
    )


def _readings(groups: Sequence[GroupDraws], comparisons: Sequence[DrawsComparison]) -> list[str]:
    """Tuning curves and crossings in words, one sentence each."""
    found = []
    draws_of = {(g.contender, g.optim): len(g.errors) for g in groups}
    for c in comparisons:
        if c.is_control:
            verdict = (
                "no difference" if c.p_holm >= LEVEL else "A DIFFERENCE, which is noise or a fault"
            )
            found.append(
                f"Control: {c.contender} is {c.reference} with other seeds. Under {c.optim} it "
                f"shows {verdict}: {c.difference.estimate:+.2f} points, 95 % interval "
                f"{_bounds(c.difference, signed=True)}, p {_p(c.p_holm)}."
            )
            continue
        if c.reach is not None:
            found.append(_reach_sentence(c, c.reach, draws_of[c.reference, c.optim]))
        if c.crossings.seen:
            beyond = c.crossings.beyond_noise
            where = (beyond or c.crossings.seen)[0]
            found.append(
                f"Under {c.optim} the error distributions of {c.contender} and {c.reference} "
                f"cross ({'beyond' if beyond else 'within'} noise) between {where.low:.1f} and "
                f"{where.high:.1f} % error: neither is better at every quantile."
            )
    return found


def _reach_sentence(c: DrawsComparison, reach: st.Reach, draws: int) -> str:
    if not reach.draws:
        return (
            f"Under {c.optim}, {c.contender} does not reach with {draws} draws what "
            f"{c.reference} reaches with {draws} ({reach.target:.1f} % error)."
        )
    low = "1" if reach.low is None else str(reach.low)
    high = f"more than {draws}" if reach.high is None else str(reach.high)
    return (
        f"Under {c.optim}, {c.contender} with {reach.draws} draw{'s' if reach.draws > 1 else ''} "
        f"reaches what {c.reference} reaches with {draws} ({reach.target:.1f} % error; by the "
        f"bands, {low} to {high} draws)."
    )


def _points(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else f"{value:.2f}"


def _bounds(i: Interval, signed: bool = False) -> str:
    """The interval of a difference, as sizes on the side of the estimate, or signed."""
    signed = signed or i.low <= 0 <= i.high
    low, high = (i.low, i.high) if signed else sorted((abs(i.low), abs(i.high)))
    sign = "+" if signed else ""
    return " to ".join("unbounded" if math.isinf(x) else f"{x:{sign}.1f}" for x in (low, high))


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


# -- tables and values -----------------------------------------------------------------------------


def _contenders_table(groups: Sequence[GroupDraws]) -> Table:
    columns: dict[str, list[str]] = {
        "contender": [g.contender for g in groups],
        "optimizer": [g.optim for g in groups],
        "draws": [str(len(g.errors)) for g in groups],
        "diverged": [str(g.count("diverged")) for g in groups],
        "failed": [str(g.count("failed")) for g in groups],
        "best error %": [
            f"{g.best.error:.2f}" if g.best and g.best.error is not None else "-" for g in groups
        ],
        "test error % of that draw (95 %)": [_test(g.test) for g in groups],
        "best settings": [_settings(g.best) for g in groups],
        "median error % (95 %)": [_interval(g.median) for g in groups],
        f"within {WITHIN_POINTS:g} points of the best": [_share(g.share) for g in groups],
        "Mflops": [f"{g.cost.flops / 1e6:,.1f}" if g.cost else "-" for g in groups],
        "params": [f"{g.cost.params:,}" if g.cost else "-" for g in groups],
        "activations": [f"{g.cost.activations:,}" if g.cost else "-" for g in groups],
        "step ms": [f"{g.step_ms:.1f}" if g.step_ms else "-" for g in groups],
        "memory MiB": [f"{g.memory_mib:,.0f}" if g.memory_mib else "-" for g in groups],
        "s a trial": [f"{g.seconds_a_trial:.1f}" if g.seconds_a_trial else "-" for g in groups],
    }
    note = (
        "Flops are multiply-adds of one image's forward pass. Step time and memory are medians "
        "over the trials as they ran, several at a time on one machine; memory is the peak of the "
        "whole process on CPU, of the allocator on a GPU."
    )
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table("Contenders", list(columns), rows, note)


def _interval(i: Interval | None) -> str:
    if i is None:
        return "-"
    low = "?" if math.isinf(i.low) else f"{i.low:.1f}"
    high = "?" if math.isinf(i.high) else f"{i.high:.1f}"
    return f"{i.estimate:.1f} ({low}-{high})"


def _test(test: dict[str, Any]) -> str:
    if not test:
        return "not read"
    return f"{100 - test['top1']:.2f} ({100 - test['top1_high']:.1f}-{100 - test['top1_low']:.1f})"


def _settings(best: Result | None) -> str:
    if best is None:
        return "-"
    return ", ".join(f"{n.removeprefix('optim.')} {v:.3g}" for n, v in best.values.items())


def _share(i: Interval | None) -> str:
    return "-" if i is None else f"{100 * i.estimate:.0f} % ({100 * i.low:.0f}-{100 * i.high:.0f})"


def _comparisons_table(comparisons: Sequence[DrawsComparison]) -> Table:
    head = [
        "contender",
        "against",
        "optimizer",
        "shared draws",
        "median difference, points",
        "95 % interval",
        "p",
        "Holm p",
        "EDFs cross",
    ]
    rows = []
    for c in comparisons:
        seen, beyond = bool(c.crossings.seen), bool(c.crossings.beyond_noise)
        rows.append(
            [
                c.contender + (" (control)" if c.is_control else ""),
                c.reference,
                c.optim,
                str(c.n),
                f"{c.difference.estimate:+.2f}",
                _bounds(c.difference, signed=True),
                _p(c.p),
                _p(c.p_holm),
                "beyond noise" if beyond else "within noise" if seen else "no",
            ]
        )
    note = (
        "Difference of top-1 errors on the same draw; negative: the contender is better. "
        "Wilcoxon signed-rank tests, exact; Holm-corrected over all rows."
    )
    return Table("On shared draws", head, rows, note)


def _group_values(g: GroupDraws) -> dict[str, Any]:
    t = g.tuning
    return {
        "contender": g.contender,
        "optim": g.optim,
        "n": len(g.errors),
        "diverged": g.count("diverged"),
        "failed": g.count("failed"),
        "best_error": g.best.error if g.best else None,
        "best_values": g.best.values if g.best else None,
        "median_error": asdict(g.median) if g.median else None,
        "mean_error_clipped": asdict(g.area) if g.area else None,
        f"share_within_{WITHIN_POINTS:g}_points": asdict(g.share) if g.share else None,
        "tuning_curve": t
        and {
            "draws": t.ks.tolist(),
            "mean": t.mean.tolist(),
            "low": t.mean_low.tolist(),
            "high": t.mean_high.tolist(),
        },
        "flops": g.cost and g.cost.flops,
        "params": g.cost and g.cost.params,
        "activations": g.cost and g.cost.activations,
        "step_ms": g.step_ms,
        "memory_mib": g.memory_mib,
        "test": g.test or None,
    }


def _comparison_values(c: DrawsComparison) -> dict[str, Any]:
    return {
        "contender": c.contender,
        "reference": c.reference,
        "optim": c.optim,
        "n": c.n,
        "paired_median_difference": asdict(c.difference),
        "p": c.p,
        "p_holm": c.p_holm,
        "edfs_cross": bool(c.crossings.seen),
        "edfs_cross_beyond_noise": bool(c.crossings.beyond_noise),
        "draws_needed_80_percent_power": c.draws_needed,
        "control": c.is_control,
    }
