"""What a measure came to: its trials read into sentences, tables, charts and plain values.

One function a measure, in `MEASURES`; the report shows what they return and knows none of them.
Errors are top-1 in percent, a diverged run counts as chance error, and seeds are paired: what is
compared is compared on the seeds that both have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitc.errors import unknown
from vitc.study import effects
from vitc.study import statistics as st
from vitc.study.analysis import (
    Protocol,
    Row,
    cost_of,
    protocol_notes,
    rows_of,
    uncounted_note,
)
from vitc.study.measures import epochs_of
from vitc.study.plan import HPARAMS, Plan, StudyFolder
from vitc.study.statistics import Interval

GAPS = (0.5, 1.0, 2.0)  # points, for which the seeds needed are said


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the report escapes them."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One contender in a chart; `low` and `high` are its intervals, nan where unbounded.

    `substituted` marks points that stand for a diverged run: drawn hollow, the way there dashed.
    """

    label: str
    look: int
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    marker: str = "o"
    substituted: list[bool] = field(default_factory=list)
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """A figure of lines; with `ticks`, x are their places and the axis is not numeric."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    lines: list[Line]
    log_x: bool = False
    ticks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """What a measure's function returns; `sentences[0]` is the verdict."""

    sentences: list[str]
    tables: list[Table]
    charts: list[Chart]
    values: dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One study of a measure, read."""

    name: str
    plan: Plan
    records: list[dict[str, Any]]
    folders: list[str]
    rows: list[Row]
    parts: Parts
    notes: list[str]
    unfinished: int
    protocol: Protocol = "last"


def find(folder: Path, protocol: Protocol = "last") -> Finding:
    """Read one measure's folder, finished or not; `protocol` as of `analysis.analyse`.

    Raises ConfigError: no study, or of no measure that is known here.
    """
    study = StudyFolder(folder)
    plan, record = study.read()
    if plan.measure not in MEASURES:
        raise unknown("measure", plan.measure, [HPARAMS, *MEASURES])
    rows = rows_of(study, study.with_sources(plan), protocol)
    troubles = [
        f"{sum(r.status == s for r in rows)} of {len(rows)} runs {s}"
        + ("; they count as chance error" if s == "diverged" else "; they are left out")
        for s in ("diverged", "failed") if any(r.status == s for r in rows)
    ]  # fmt: skip
    return Finding(
        name=plan.name,
        plan=plan,
        records=[record],
        folders=[str(folder)],
        rows=rows,
        parts=MEASURES[plan.measure](plan, rows),
        notes=[*protocol_notes(plan, protocol), *plan.about, *troubles],
        protocol=protocol,
        unfinished=sum(r.status in ("waiting", "running", "interrupted") for r in rows),
    )


# -- cells: one group's runs -----------------------------------------------------------------------

Key = tuple[str, str, str]  # contender, optimizer, point


def cells(rows: Sequence[Row]) -> dict[Key, dict[int, Row]]:
    """(contender, optimizer, point) -> seed's index -> its row, of the runs with a result."""
    found: dict[Key, dict[int, Row]] = {}
    for r in rows:
        cell = found.setdefault((r.contender, r.optim, r.point), {})
        if r.error is not None:
            cell[r.draw] = r
    return found


def errors_of(cell: Mapping[int, Row]) -> dict[int, float]:
    return {draw: r.error for draw, r in cell.items() if r.error is not None}


def trained(cell: Mapping[int, Row]) -> dict[int, float]:
    """The errors of the runs that did not diverge.

    What a loss or a gap is measured from must have trained: chance minus chance would call a
    contender stable that never learns.
    """
    return {draw: e for draw, e in errors_of(cell).items() if cell[draw].status != "diverged"}


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """a - b on the seeds that both have."""
    return {i: a[i] - b[i] for i in a if i in b}


def mean(values: Mapping[int, float], confidence: float = 0.95) -> Interval | None:
    """The mean over seeds with its interval, unbounded from one; None from nothing."""
    return st.interval(list(values.values()), "mean", confidence) if values else None


def level(errors: Mapping[int, float]) -> Interval | None:
    """As `mean`, of errors: no bound leaves 0 to 100 percent."""
    i = mean(errors)
    if i is None or math.isinf(i.low):
        return i
    return replace(i, low=max(i.low, 0.0), high=min(i.high, 100.0))


def shown(i: Interval | None, signed: bool = False) -> str:
    """`6.3 (5.1 to 7.5)`, with `?` for a bound that so few runs do not give."""
    if i is None:
        return "-"
    sign = "+" if signed else ""
    low = "?" if math.isinf(i.low) else f"{i.low:{sign}.1f}"
    high = "?" if math.isinf(i.high) else f"{i.high:{sign}.1f}"
    return f"{i.estimate:{sign}.2f} ({low} to {high})"


def _values(i: Interval | None) -> dict[str, Any] | None:
    return None if i is None else asdict(i)


def _points(plan: Plan) -> list[str]:
    return list(dict.fromkeys(g.point for g in plan.groups))


def _line(label: str, look: int, x: Sequence[float], means: Sequence[Interval | None],
          marker: str = "o") -> Line:  # fmt: skip
    there = [(a, m) for a, m in zip(x, means, strict=True) if m is not None]
    return Line(
        label=label,
        look=look,
        x=[a for a, _ in there],
        y=[m.estimate for _, m in there],
        low=[_finite(m.low) for _, m in there],
        high=[_finite(m.high) for _, m in there],
        marker=marker,
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _seeds_note(plan: Plan) -> str:
    if plan.draws == 1:
        word = "--count" if plan.exhibit else "--seeds"
        return f"One seed: no interval can be given; {word} 3 or more would give one."
    return f"Means over {plan.draws} seeds with 95 % intervals (Student's t); seeds are paired."


def _against(
    plan: Plan, groups: Mapping[tuple[str, str], Mapping[int, float]], what: str, verb: str
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Every contender against the reference, paired by seed: sentences, table rows, values.

    Where there are several, the intervals hold together with 95 % (Bonferroni), the controls' too.
    """
    sentences, rows, values = [], [], []
    reference = plan.reference or plan.contenders[-1]
    controls = {g.contender for g in plan.groups if g.seed_shift}
    differences = {
        key: paired(mine, groups[reference, key[1]])
        for key, mine in groups.items()
        if key[0] != reference and (reference, key[1]) in groups
    }
    many = sum(bool(d) for d in differences.values())
    for (contender, optim), difference in differences.items():
        m = mean(difference, 1 - 0.05 / max(many, 1))
        if m is None:
            continue
        certain = m.low > 0 or m.high < 0
        how = "more" if m.estimate > 0 else "less"
        verdict = (
            f"{contender} {verb} {abs(m.estimate):.2f} points {how} than {reference}"
            if certain else f"no difference between {contender} and {reference} is shown"
        )  # fmt: skip
        name = f"under {optim}, " if optim else ""
        text = (
            f"{name}{verdict}: {what} differs by {shown(m, signed=True)} ({len(difference)} shared "
            f"seeds{f'; the {many} intervals hold together' if many > 1 else ''})."
        )
        if contender in controls:
            sentences.append(f"Control, {reference} with other seeds: {text}")
        else:
            sentences.append(text[:1].upper() + text[1:])
        rows.append([contender, reference, optim, str(len(difference)), shown(m, signed=True)])
        values.append({"contender": contender, "reference": reference, "optim": optim,
                       "n": len(difference), "difference": _values(m)})  # fmt: skip
    return sentences, rows, values


def _verdict(found: Sequence[str], plan: Plan) -> list[str]:
    """The comparisons, or why there are none."""
    if found:
        return list(found)
    if len(plan.contenders) == 1:
        return [f"{plan.contenders[0]} is the only contender: it is compared with none."]
    return ["There is nothing to compare yet."]


def _untrained(left_out: Mapping[tuple[str, str], int], of: int, what: str) -> list[str]:
    """One sentence on the seeds that a difference leaves out."""
    return [
        f"{contender}{f' under {optim}' if optim else ''}: {n} of {of} seeds diverged {what}, so "
        "they have no difference and are left out of it."
        for (contender, optim), n in left_out.items() if n
    ]  # fmt: skip


# -- training length -------------------------------------------------------------------------------


def _length(plan: Plan, rows: Sequence[Row]) -> Parts:
    """Error above that of the longest schedule, seed by seed (paper section 4 and Figure 2)."""
    by = cells(rows)
    points = _points(plan)
    longest = points[-1]
    lengths = [float(epochs_of(p)) for p in points]
    table, lines, values = [], [], []
    shortest: dict[tuple[str, str], dict[int, float]] = {}
    endless: dict[tuple[str, str], int] = {}
    for look, (contender, optim) in enumerate(_contenders(plan)):
        last = trained(by.get((contender, optim, longest), {}))
        endless[contender, optim] = _diverged(by, (contender, optim, longest))
        means = []
        for point in points:
            error = errors_of(by.get((contender, optim, point), {}))
            delta = paired(error, last)
            m = mean(delta)
            means.append(m)
            if point == points[0]:
                shortest[contender, optim] = delta
            table.append([contender, optim, str(epochs_of(point)), str(len(error)),
                          str(_diverged(by, (contender, optim, point))), shown(level(error)),
                          "0" if point == longest and m else shown(m, signed=True)])  # fmt: skip
            values.append({"contender": contender, "optim": optim, "epochs": epochs_of(point),
                           "n": len(error), "error": _values(level(error)),
                           "pairs": len(delta), "delta": _values(m)})  # fmt: skip
        lines.append(_line(_name(plan, contender, optim), look, lengths, means))
    found, against, differences = _against(
        plan, shortest, f"the loss from {longest} to {points[0]}", "loses"
    )
    head = ["contender", "optimizer", "epochs", "seeds", "diverged", "error % (95 %)",
            f"above {longest} (95 %)"]  # fmt: skip
    tables = [Table("Error by length of training", head, table, _seeds_note(plan))]
    if against:
        tables.append(Table(f"Loss at {points[0]}, against the reference",
                            ["contender", "against", "optimizer", "seeds", "difference, points"],
                            against, "Negative: the contender loses less."))  # fmt: skip
    found = _verdict(found, plan)
    if len(points) < 2:
        found = [f"There is one length only ({longest}): nothing to compare it with."]
    return Parts(
        [*found, *_untrained(endless, plan.draws, f"at {longest}")],
        tables,
        [Chart("length", "Error above the longest schedule", "epochs",
               f"top-1 error above that at {longest} (points)", lines, log_x=True)],
        {"lengths": values, "comparisons": differences},
    )  # fmt: skip


def _contenders(plan: Plan) -> list[tuple[str, str]]:
    return list(dict.fromkeys((g.contender, g.optim) for g in plan.groups))


def _name(plan: Plan, contender: str, optim: str) -> str:
    return contender if len(plan.optims) == 1 else f"{contender}, {optim}"


def _diverged(by: Mapping[Key, Mapping[int, Row]], key: Key) -> int:
    return sum(r.status == "diverged" for r in by.get(key, {}).values())


# -- optimizer -------------------------------------------------------------------------------------


def _optimizer(plan: Plan, rows: Sequence[Row]) -> Parts:
    """SGD's error minus AdamW's at each length (paper section 4 and Figure 3).

    Twice: a diverged run as chance error, and by the paper's rule, which copies the best result of
    a shorter schedule for it (section 5.2). The same runs tell the loss by length under each.
    """
    by = cells(rows)
    points = _points(plan)
    lengths = [float(epochs_of(p)) for p in points]
    first, *others = plan.optims
    table, lines, values = [], [], []
    gaps: dict[tuple[str, str], dict[int, float]] = {}
    baseless: dict[tuple[str, str], int] = {}
    substituted = 0
    for look, contender in enumerate(plan.contenders):
        ruled = {o: _by_the_papers_rule(by, contender, o, points) for o in plan.optims}
        for optim in plan.optims:
            if all((contender, optim, p) not in by for p in points):
                continue
            means = [level({i: e for i, (e, _) in at.items()}) for at in ruled[optim]]
            instead = [any(sub for _, sub in at.values()) for at in ruled[optim]]
            substituted += sum(sub for at in ruled[optim] for _, sub in at.values())
            line = _line(f"{contender}, {optim}", look, lengths, means,
                         marker="^" if optim == first else "v")  # fmt: skip
            there = [s for s, m in zip(instead, means, strict=True) if m is not None]
            lines.append(Line(**{**line.__dict__, "substituted": there}))
        for other in others:
            for k, point in enumerate(points):
                mine, theirs = by.get((contender, other, point)), by.get((contender, first, point))
                if mine is None or theirs is None:
                    continue
                gap = paired(errors_of(mine), trained(theirs))
                rule = paired({i: e for i, (e, _) in ruled[other][k].items()},
                              {i: e for i, (e, _) in ruled[first][k].items()})  # fmt: skip
                if k == len(points) - 1:
                    gaps[contender, other] = gap
                    baseless[contender, first] = _diverged(by, (contender, first, point))
                diverged = (_diverged(by, (contender, first, point)),
                            _diverged(by, (contender, other, point)))  # fmt: skip
                table.append([contender, str(epochs_of(point)), str(len(gap)),
                              shown(level(errors_of(theirs))), shown(level(errors_of(mine))),
                              f"{diverged[0]} / {diverged[1]}", shown(mean(gap), signed=True),
                              shown(mean(rule), signed=True)])  # fmt: skip
                values.append({"contender": contender, "optim": other, "against": first,
                               "epochs": epochs_of(point), "n": len(gap),
                               "diverged": diverged[1], "gap": _values(mean(gap)),
                               "gap_by_the_papers_rule": _values(mean(rule))})  # fmt: skip
    found, against, differences = _against(
        plan, gaps, f"the gap to {first} at {points[-1]}", "loses"
    )
    own = [
        f"At {points[-1]} {contender}'s error under {optim} is {shown(mean(gap), signed=True)} "
        f"points above {first}'s ({len(gap)} seeds)."
        for (contender, optim), gap in gaps.items() if mean(gap) is not None
    ]  # fmt: skip
    gone = sum(_diverged(by, key) for key in by)
    rule_text = (
        f"Of {gone} diverged runs {substituted} had a shorter schedule to take the place of, as in "
        "the paper: drawn hollow and dashed. The numbers beside the rule's count all as chance "
        "error."
        if gone
        else "No run diverged, so the paper's rule changed nothing."
    )
    second = others[0] if others else "another optimizer"
    head = ["contender", "epochs", "seeds", f"{first} error % (95 %)", f"{second} error % (95 %)",
            "diverged", f"{second} - {first}, points (95 %)", "by the paper's rule"]  # fmt: skip
    tables = [Table("Gap between the optimizers", head, table,
                    f"{_seeds_note(plan)} {rule_text}")]  # fmt: skip
    if against:
        tables.append(Table(f"Gap at {points[-1]}, against the reference",
                            ["contender", "against", "optimizer", "seeds", "difference, points"],
                            against, "Negative: the contender has the smaller gap."))  # fmt: skip
    chart = Chart("optimizer", "Error by length and optimizer", "epochs", "top-1 error (%)", lines,
                  log_x=True)  # fmt: skip
    by_length = _length(plan, rows) if len(points) > 1 else Parts([], [], [], {})
    return Parts(
        [*_verdict(found, plan), *own, *_untrained(baseless, plan.draws, f"at {points[-1]}"),
         rule_text, *by_length.sentences],
        [*tables, *by_length.tables],
        [chart, *by_length.charts],
        {"gaps": values, "comparisons": differences, "substituted": substituted,
         **({"length": by_length.values} if by_length.values else {})},
    )  # fmt: skip


def _by_the_papers_rule(
    by: Mapping[Key, Mapping[int, Row]], contender: str, optim: str, points: Sequence[str]
) -> list[dict[int, tuple[float, bool]]]:
    """At each point: seed -> (error, whether it stands for a diverged run).

    A diverged run is shown at the best result of a shorter schedule of its seed; where there is
    none it stays at chance, for itself.
    """
    shorter: dict[int, float] = {}
    found = []
    for point in points:
        here: dict[int, tuple[float, bool]] = {}
        for seed, row in by.get((contender, optim, point), {}).items():
            assert row.error is not None
            if row.status == "diverged":
                here[seed] = (shorter.get(seed, row.error), seed in shorter)
            else:
                here[seed] = (row.error, False)
                shorter[seed] = min(row.error, shorter.get(seed, math.inf))
        found.append(here)
    return found


# -- peak ------------------------------------------------------------------------------------------


def _peak(plan: Plan, rows: Sequence[Row]) -> Parts:
    """Error of the long runs against what the models cost; what time goes with (Figures 6, 9)."""
    by = cells(rows)
    points = _points(plan)
    last = points[-1]
    table, values, costs = [], [], []
    uncounted: dict[str, str] = {}
    finals: dict[tuple[str, str], dict[int, float]] = {}
    lines: dict[str, list[Line]] = {
        "ms an image": [], "Gflops": [], "params (M)": [], "activations (M)": []
    }  # fmt: skip
    for look, (contender, optim) in enumerate(_contenders(plan)):
        group = next(g for g in plan.groups if (g.contender, g.optim) == (contender, optim))
        cost, why = cost_of(group, plan.classes)
        if cost is None:
            uncounted[contender] = why
        cell = by.get((contender, optim, last), {})
        images = group.config.train.batch  # models of one table may differ in it
        each = [1e3 * r.train_seconds / r.steps / images for r in cell.values()
                if r.train_seconds and r.steps]  # fmt: skip
        image_ms = float(np.median(each)) if each else None
        final = errors_of(cell)
        finals[contender, ""] = final
        m = level(final)
        lr, decay = group.config.optim.lr, group.config.optim.weight_decay
        table.append([contender, optim, f"{lr:.3g} / {decay:.3g}",
                      *(shown(level(errors_of(by.get((contender, optim, p), {})))) for p in points),
                      str(_diverged(by, (contender, optim, last))),
                      *(["-"] * 3 if cost is None else
                        [f"{cost.flops / 1e6:,.1f}", f"{cost.params / 1e6:,.3f}",
                         f"{cost.activations / 1e6:,.3f}"]),
                      "-" if image_ms is None else f"{image_ms:.3f}"])  # fmt: skip
        values.append({"contender": contender, "optim": optim, "lr": lr, "weight_decay": decay,
                       "flops": cost and cost.flops, "params": cost and cost.params,
                       "activations": cost and cost.activations,
                       "image_ms": image_ms, "n": len(final),
                       "errors": {epochs_of(p): _values(level(errors_of(
                           by.get((contender, optim, p), {})))) for p in points}})  # fmt: skip
        if image_ms is not None:
            lines["ms an image"].append(_line(contender, look, [image_ms], [m]))
        if cost is None:
            continue
        if image_ms is not None:
            costs.append((cost.params, cost.flops, cost.activations, image_ms))
        lines["Gflops"].append(_line(contender, look, [cost.flops / 1e9], [m]))
        lines["params (M)"].append(_line(contender, look, [cost.params / 1e6], [m]))
        lines["activations (M)"].append(_line(contender, look, [cost.activations / 1e6], [m]))
    found, against, differences = _against(plan, finals, f"the error at {last}", "errs")
    tables = [Table(
        "Peak performance",
        ["contender", "optimizer", "lr / weight decay", *(f"error % at {p} (95 %)" for p in points),
         "diverged", "Mflops", "params (M)", "activations (M)", "ms an image"],
        table, f"{_seeds_note(plan)} Time: of training steps as the trials ran, several at a time.",
    )]  # fmt: skip
    if against:
        tables.append(Table(f"Error at {last}, against the reference",
                            ["contender", "against", "optimizer", "seeds", "difference, points"],
                            against, "Negative: the contender is better."))  # fmt: skip
    correlated, sentence = time_correlations(costs)
    return Parts(
        [*_verdict(found, plan), sentence,
         *(uncounted_note(contender, why) for contender, why in uncounted.items())],
        [*tables, correlated],
        [Chart(f"peak_{n}", f"Error at {last} against {what}", what, "top-1 error (%)", at,
               log_x=True)
         for n, (what, at) in enumerate(lines.items()) if at],
        {"contenders": values, "comparisons": differences,
         "correlations": correlation_values(costs)},
    )  # fmt: skip


COSTS = ("params", "flops", "activations")
PAPER_R = {"params": 0.71, "flops": 0.75, "activations": 0.93}  # Figure 9, of its models and GPUs


def correlation_values(costs: Sequence[tuple[float, float, float, float]]) -> dict[str, Any]:
    """Pearson's r of the time an image with params, flops, activations; `costs` hold the four."""
    columns = np.array(costs, dtype=np.float64).reshape(-1, 4)
    return {
        name: _values(effects.correlation(columns[:, i], columns[:, 3]))
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


# -- seeds -----------------------------------------------------------------------------------------


def _seeds(plan: Plan, rows: Sequence[Row]) -> Parts:
    """How much of the spread each kind of randomness makes, and the seeds that a gap needs."""
    by = cells(rows)
    points = _points(plan)
    table, power, sentences, values, lines = [], [], [], [], []
    contenders = _contenders(plan)
    for look, (contender, optim) in enumerate(contenders):
        whole = list(errors_of(by.get((contender, optim, "all"), {})).values())
        spreads = []
        for point in points:
            runs = list(errors_of(by.get((contender, optim, point), {})).values())
            sd = _spread_of(runs)
            share = None if point == "all" else effects.variance_share(runs, whole)
            spreads.append(sd)
            table.append([contender, optim, point, str(len(runs)),
                          str(_diverged(by, (contender, optim, point))),
                          f"{np.mean(runs):.2f}" if runs else "-", _spread(sd),
                          _percent(share) if point != "all" else "100 %"])  # fmt: skip
            values.append({"contender": contender, "optim": optim, "varied": point,
                           "n": len(runs), "deviation": _values(sd),
                           "variance_share": _values(share)})  # fmt: skip
        lines.append(_line(_name(plan, contender, optim), look,
                           [float(i) for i in range(len(points))], spreads))  # fmt: skip
        sd = _spread_of(whole)
        if sd is not None:
            power.append([contender, optim, _spread(sd), *(_needed(sd, gap) for gap in GAPS)])
            sentences.append(
                f"{_name(plan, contender, optim)}: runs that differ in all seeds spread by "
                f"{_spread(sd)} points; a gap of 1 point between two such contenders needs "
                f"{_needed(sd, 1.0)} seeds each."
            )
    reference = plan.reference or plan.contenders[-1]
    for contender, optim in contenders:
        mine = errors_of(by.get((contender, optim, "all"), {}))
        theirs = errors_of(by.get((reference, optim, "all"), {}))
        sd = _spread_of(list(paired(mine, theirs).values()))
        if contender != reference and sd is not None:
            power.append([f"{contender} - {reference}, shared seeds", optim, _spread(sd),
                          *(_needed(sd, gap, paired=True) for gap in GAPS)])  # fmt: skip
    few = (
        f" {plan.draws} seeds bound a share of variance within a factor of some "
        f"{_factor(plan.draws):.0f} only."
        if plan.draws < 30 else ""
    )  # fmt: skip
    return Parts(
        sentences or ["There are too few runs yet to tell a spread."],
        [Table("Spread of the error by what is varied",
               ["contender", "optimizer", "varied", "runs", "diverged", "mean error %",
                "standard deviation (95 %)", "share of the variance of all (95 %)"], table,
               "One kind of seed varies while the others stay; the shares need not add up to "
               f"100 %, for the kinds act on each other.{few}"),
         Table("Seeds needed, each contender, for 80 % power at the 5 % level",
               ["contender", "optimizer", "standard deviation (95 %)",
                *(f"gap of {g:g}" for g in GAPS)], power,
               "Of a t test; in brackets for the ends of the deviation's interval.")],
        [Chart("seeds", "Spread by what is varied", "varied", "standard deviation (points)", lines,
               ticks=points)],
        {"spreads": values},
    )  # fmt: skip


def _spread_of(errors: Sequence[float]) -> Interval | None:
    """None also where all are the same, as of runs that all diverged: no spread is known."""
    return effects.deviation(errors) if np.ptp(errors or [0.0]) > 0 else None


def _spread(i: Interval | None) -> str:
    return "-" if i is None else f"{i.estimate:.2f} ({i.low:.2f} to {i.high:.2f})"


def _percent(i: Interval | None) -> str:
    if i is None:
        return "-"
    return f"{100 * i.estimate:.0f} % ({100 * i.low:.0f} to {100 * i.high:.0f})"


def _needed(sd: Interval, gap: float, paired: bool = False) -> str:
    low, n, high = (
        effects.seeds_needed(s, gap, paired=paired) for s in (sd.low, sd.estimate, sd.high)
    )
    words = ["over 100,000" if x is None else str(x) for x in (low, n, high)]
    return f"{words[1]} ({words[0]} to {words[2]})"


def _factor(n: int) -> float:
    from scipy import stats

    return math.sqrt(float(stats.f.isf(0.025, n - 1, n - 1))) ** 2


# -- vary ------------------------------------------------------------------------------------------


def _vary(plan: Plan, rows: Sequence[Row]) -> Parts:
    """Error and share of diverged runs at each point, and the change from the first point.

    Contenders are compared by that change, point by point: the distance from their best to their
    worst point would be larger for the noisier one, sensitive or not.
    """
    by = cells(rows)
    points = _points(plan)
    table, values, lines = [], [], []
    extremes: list[str] = []
    changes: dict[str, dict[tuple[str, str], dict[int, float]]] = {p: {} for p in points[1:]}
    baseless: dict[tuple[str, str], int] = {}
    for look, (contender, optim) in enumerate(_contenders(plan)):
        first = trained(by.get((contender, optim, points[0]), {}))
        baseless[contender, optim] = _diverged(by, (contender, optim, points[0]))
        means = []
        for point in points:
            error = errors_of(by.get((contender, optim, point), {}))
            change = paired(error, first)
            m, n, gone = level(error), len(error), _diverged(by, (contender, optim, point))
            share = st.share(gone, n) if n else None
            means.append(m)
            if point != points[0]:
                changes[point][contender, optim] = change
            table.append([contender, optim, point, str(n), shown(m),
                          "-" if point == points[0] else shown(mean(change), signed=True),
                          "-" if share is None else f"{gone} of {n}: {_percent(share)}",
                          ])  # fmt: skip
            values.append({"contender": contender, "optim": optim, "point": point, "n": n,
                           "error": _values(m), "change": _values(mean(change)), "diverged": gone,
                           "diverged_share": _values(share)})  # fmt: skip
        known = [(m.estimate, p) for m, p in zip(means, points, strict=True) if m is not None]
        if known:
            best, at = min(known)
            most, where = max(known)
            extremes.append(f"{_name(plan, contender, optim)}: best at {at} ({best:.2f} %), "
                            f"worst at {where} ({most:.2f} %).")  # fmt: skip
        lines.append(_line(_name(plan, contender, optim), look,
                           [float(i) for i in range(len(points))], means))  # fmt: skip
    found, against, differences = _changes_against(plan, changes)
    tables = [Table("Error at each point",
                    ["contender", "optimizer", "point", "seeds", "error % (95 %)",
                     f"against {points[0]} (95 %)", "diverged"],
                    table, _seeds_note(plan))]  # fmt: skip
    if against:
        tables.append(Table(
            f"Change from {points[0]}, against the reference",
            ["point", "contender", "against", "optimizer", "seeds", "difference, points"], against,
            "Negative: the contender's error rises less. The intervals hold together with 95 % "
            "(Bonferroni).",
        ))  # fmt: skip
    return Parts(
        [*_verdict(found, plan), *extremes, *_untrained(baseless, plan.draws, f"at {points[0]}")],
        tables,
        [Chart("vary", "Error at each point", "", "top-1 error (%); diverged = chance", lines,
               ticks=points)],
        {"points": values, "comparisons": differences},
    )  # fmt: skip


def _changes_against(
    plan: Plan, changes: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]]
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Each contender's change to each point minus the reference's: sentences, rows, values."""
    reference = plan.reference or plan.contenders[-1]
    differences = {
        (point, contender, optim): paired(change, at[reference, optim])
        for point, at in changes.items()
        for (contender, optim), change in at.items()
        if contender != reference and (reference, optim) in at
    }
    many = sum(bool(d) for d in differences.values())
    certain, rows, values = [], [], []
    for (point, contender, optim), difference in differences.items():
        m = mean(difference, 1 - 0.05 / max(many, 1))
        if m is None:
            continue
        rows.append([point, contender, reference, optim, str(len(difference)),
                     shown(m, signed=True)])  # fmt: skip
        values.append({"contender": contender, "reference": reference, "optim": optim,
                       "point": point, "n": len(difference), "difference": _values(m)})  # fmt: skip
        if m.low > 0 or m.high < 0:
            certain.append(
                f"{_name(plan, contender, optim)}: from {_points(plan)[0]} to {point} its error "
                f"changes by {shown(m, signed=True)} points against {reference}'s."
            )
    if rows and not certain:
        certain = [
            f"No point changes a contender's error otherwise than {reference}'s, as far as "
            f"{plan.draws} seeds tell."
        ]
    return certain, rows, values


MEASURES: dict[str, Callable[[Plan, Sequence[Row]], Parts]] = {
    "length": _length,
    "optimizer": _optimizer,
    "peak": _peak,
    "seeds": _seeds,
    "vary": _vary,
}
