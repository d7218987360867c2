"""What a study came to, in words and tables that know no markup.

The HTML report, the Markdown page and the terminal show what is told here.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitc.stats.curves import Interval
from vitc.study.design import HPARAMS, Plan
from vitc.study.measures.findings import Finding, Table
from vitc.study.paper.claims import CLAIMS, claims_table
from vitc.study.paper.exhibits import BESIDE, ORDER
from vitc.study.results import PAPER_PRIMARY, WITHIN_POINTS, Comparison, GroupResult, Row, Section
from vitc.study.runs import Run
from vitc.wording import duration

LEVEL = 0.05
AGAINST_THE_PAPER = (CLAIMS, BESIDE, ORDER)  # tables that the terminal shows after the first


# -- words -----------------------------------------------------------------------------------------


def verdict(section: Section) -> str:
    """Two sentences: what was found, with its interval; and what would change it."""
    rivals = [c for c in section.comparisons if not c.is_control]
    if len(section.plan.contenders) == 1:
        return (
            f"{section.plan.contenders[0]} is the only contender: it is compared with none. "
            "Another recipe, or --models with two names, would change that."
        )
    if not rivals:
        return (
            "There is nothing to compare yet: the reference and another contender need at least "
            "two shared draws with a result. More finished trials would change that."
        )
    first = rivals[0].contender
    mine = [c for c in rivals if c.contender == first]
    return f"{_finding(mine)} {_what_would_change(mine)}"


def _finding(comparisons: list[Comparison]) -> str:
    parts = []
    for c in comparisons:
        d = c.difference
        size = (
            f"{_points(abs(d.estimate))} points (median paired difference; 95 % interval "
            f"{_bounds(d)}; {c.n} shared draws; Holm-corrected p {_p(c.p_holm)})"
        )
        if c.p_holm >= LEVEL:
            parts.append(
                f"under {c.optim} no difference between {c.contender} and {c.reference} is shown: "
                f"{c.contender}'s error is {'lower' if d.estimate < 0 else 'higher'} by {size}"
            )
        else:
            better = "lower" if d.estimate < 0 else "higher"
            parts.append(
                f"under {c.optim} {c.contender}'s error is {better} than {c.reference}'s by {size}"
            )
        if c.crossings.beyond_noise:
            at = c.crossings.beyond_noise[0]
            parts[-1] += f", but the distributions cross near {at.low:.0f}-{at.high:.0f} % error"
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _what_would_change(comparisons: list[Comparison]) -> str:
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
        "More draws could change it, but what was seen gives no way to say how many; a longer "
        "budget or other ranges could as well."
    )


def readings(section: Section) -> list[str]:
    """Tuning curves and crossings read out, one sentence each."""
    found = []
    for c in section.comparisons:
        if c.is_control:
            verdict_ = (
                "no difference" if c.p_holm >= LEVEL else "A DIFFERENCE, which is noise or a fault"
            )
            found.append(
                f"Control: {c.contender} is {c.reference} with other seeds. Under {c.optim} it "
                f"shows {verdict_}: {_signed(c.difference.estimate)} points, 95 % interval "
                f"{_bounds(c.difference, signed=True)}, p {_p(c.p_holm)}."
            )
            continue
        total = _group(section, c.reference, c.optim)
        draws = len(total.errors)
        if c.reach and c.reach.draws:
            n = c.reach.draws
            low = "1" if c.reach.low is None else str(c.reach.low)
            high = f"more than {draws}" if c.reach.high is None else str(c.reach.high)
            found.append(
                f"Under {c.optim}, {c.contender} with {n} draw{'s' if n > 1 else ''} reaches what "
                f"{c.reference} reaches with {draws} ({c.reach.target:.1f} % error; by the bands, "
                f"{low} to {high} draws)."
            )
        elif c.reach:
            found.append(
                f"Under {c.optim}, {c.contender} does not reach with {draws} draws what "
                f"{c.reference} reaches with {draws} ({c.reach.target:.1f} % error)."
            )
        if c.crossings.seen:
            beyond = c.crossings.beyond_noise
            where = (beyond or c.crossings.seen)[0]
            weight = "beyond noise" if beyond else "within noise"
            found.append(
                f"Under {c.optim} the error distributions of {c.contender} and {c.reference} "
                f"cross ({weight}) between {where.low:.1f} and {where.high:.1f} % error: neither "
                f"is better at every quantile."
            )
    return found


def _group(section: Section, contender: str, optim: str) -> GroupResult:
    return next(g for g in section.groups if (g.contender, g.optim) == (contender, optim))


def summary_text(section: Section | Finding) -> str:
    """What the terminal shows at the end of a study."""
    if isinstance(section, Finding):
        tables = section.parts.tables
        told = [t for i, t in enumerate(tables) if i == 0 or t.title in AGAINST_THE_PAPER]
        return "\n".join([*section.parts.sentences, *section.notes, *map(plain_table, told)])
    lines = [verdict(section), *readings(section), *section.notes, *section.plan.about]
    return "\n".join(lines)


def plain_table(table: Table) -> str:
    """A table for the terminal, its columns in line."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([f"{table.title}:", *lines])


def _points(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else f"{value:.2f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _bounds(i: Interval, signed: bool = False) -> str:
    """The interval of a difference, as sizes on the side of the estimate, or signed."""
    if signed or i.low <= 0 <= i.high:
        return f"{_bound(i.low)} to {_bound(i.high)}"
    low, high = sorted((abs(i.low), abs(i.high)))
    return f"{_plain_bound(low)} to {_plain_bound(high)}"


def _bound(value: float) -> str:
    return "unbounded" if abs(value) == float("inf") else f"{value:+.1f}"


def _plain_bound(value: float) -> str:
    return "unbounded" if value == float("inf") else f"{value:.1f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


# -- tables ----------------------------------------------------------------------------------------


def unfinished_text(s: Section | Finding) -> str:
    """Empty where every trial has a result."""
    if not s.unfinished:
        return ""
    return f"{s.unfinished} trials have no result yet; this report is of the others."


def count_word(plan: Plan) -> str:
    return "draws" if plan.measure == HPARAMS else "seeds"


def section_tables(s: Section) -> list[Table]:
    """The contenders; where there is anything to compare, their comparisons; the paper's claims."""
    claimed = claims_table(s)
    return [
        _contenders(s),
        *([_comparisons(s)] if s.comparisons else []),
        *([claimed] if claimed else []),
    ]


def _contenders(s: Section) -> Table:
    head = [
        "contender",
        "optimizer",
        "draws",
        "diverged",
        "failed",
        "best error %",
        "test error % of that draw (95 %)",
        "best settings",
        "median error % (95 %)",
        f"within {WITHIN_POINTS:g} points of the best",
        "Mflops",
        "params",
        "activations",
        "step ms",
        "memory MiB",
        "s a trial",
    ]
    rows = []
    for g in s.groups:
        best = g.best
        rows.append(
            [
                g.contender,
                g.optim,
                str(len(g.errors)),
                str(g.count("diverged")),
                str(g.count("failed")),
                f"{best.error:.2f}" if best and best.error is not None else "-",
                _test(g),
                ", ".join(f"{n.removeprefix('optim.')} {v:.3g}" for n, v in best.values.items())
                if best
                else "-",
                _interval(g.median),
                _share(g.share),
                *(
                    [f"{g.flops / 1e6:,.1f}", f"{g.params:,}", f"{g.activations:,}"]
                    if g.cost
                    else ["-"] * 3
                ),
                f"{g.step_ms:.1f}" if g.step_ms else "-",
                f"{g.memory_mib:,.0f}" if g.memory_mib else "-",
                f"{g.seconds_a_trial:.1f}" if g.seconds_a_trial else "-",
            ]
        )
    note = (
        "Flops are multiply-adds of one image's forward pass. Step time and memory are medians "
        "over the trials as they ran, several at a time on one machine; memory is the peak of the "
        "whole process on CPU, of the allocator on a GPU."
    )
    return Table("Contenders", head, rows, note)


def _interval(i: Interval | None) -> str:
    if i is None:
        return "-"
    low = "?" if i.low == float("-inf") else f"{i.low:.1f}"
    high = "?" if i.high == float("inf") else f"{i.high:.1f}"
    return f"{i.estimate:.1f} ({low}-{high})"


def _test(g: GroupResult) -> str:
    if not g.test:
        return "not read"
    low, high = 100 - g.test["top1_high"], 100 - g.test["top1_low"]
    return f"{100 - g.test['top1']:.2f} ({low:.1f}-{high:.1f})"


def _share(i: Interval | None) -> str:
    return "-" if i is None else f"{100 * i.estimate:.0f} % ({100 * i.low:.0f}-{100 * i.high:.0f})"


def _comparisons(s: Section) -> Table:
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
    rows = [
        [
            c.contender + (" (control)" if c.is_control else ""),
            c.reference,
            c.optim,
            str(c.n),
            _signed(c.difference.estimate),
            _bounds(c.difference, signed=True),
            _p(c.p),
            _p(c.p_holm),
            "beyond noise"
            if c.crossings.beyond_noise
            else "within noise"
            if c.crossings.seen
            else "no",
        ]
        for c in s.comparisons
    ]
    note = (
        "Difference of top-1 errors on the same draw; negative: the contender is better. "
        "Wilcoxon signed-rank tests, exact; Holm-corrected over all rows."
    )
    return Table("On shared draws", head, rows, note)


def troubles(s: Section | Finding) -> Table:
    """Every diverged and failed trial."""
    rows = [
        [r.contender, r.optim, str(r.draw), r.status, r.point or _values(r), _first_line(r.note)]
        for r in s.rows
        if r.status in ("diverged", "failed")
    ]
    head = ["contender", "optimizer", "draw", "what", "settings", "why"]
    return Table("Diverged and failed trials", head, rows, "" if rows else "None.")


def _values(r: Row) -> str:
    return ", ".join(f"{n} {v:g}" for n, v in r.values.items())


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "-"


# -- conditions ------------------------------------------------------------------------------------


def facts(s: Section | Finding) -> Table:
    """Where, when, with what and by which command: name and value a row."""
    plan = s.plan
    record = s.records[0]
    versions = ", ".join(f"{k} {v}" for k, v in record["environment"]["versions"].items())
    hardware = ", ".join(f"{k} {v}" for k, v in record["environment"]["hardware"].items())
    config = plan.groups[0].config
    trains = [g.config.train for g in plan.groups]
    seconds = sum(r.train_seconds or 0.0 for r in s.rows)
    epochs = sorted({g.config.train.epochs for g in plan.groups})
    rows = [
        [
            "primary metric",
            record["plan"]["primary_metric"]
            if s.protocol == "last"
            else f"{PAPER_PRIMARY}; planned: {record['plan']['primary_metric']}",
        ],
        ["diverged runs", record["plan"]["divergence_rule"]],
        [f"{count_word(plan)} a contender", f"{plan.draws}, seed {plan.seed}, the same for all"],
        [
            "budget",
            f"{', '.join(map(str, epochs))} epochs, batch {_all(trains, 'batch')}, "
            f"{_all(trains, 'precision')}",
        ],
        [
            "data",
            f"{config.data.source}"
            + (f", {config.data.max_train} training images" if config.data.max_train else ""),
        ],
        ["training time", f"{duration(seconds)}, all trials added up"],
        ["begun", record["created"]],
        ["plan hash", ", ".join(r["hash"] for r in s.records)],
        ["versions", versions],
        ["hardware", hardware],
        ["trials ran", _places(s)],
        ["commands", "; ".join(r["command"] for r in s.records if r["command"])],
        [
            "made again by",
            f"vitc report {shlex.join(s.folders)}"
            + (" --protocol paper" if s.protocol == "paper" else ""),
        ],
    ]
    return Table("Conditions", ["", ""], rows)


def _all(configs: Sequence[object], name: str) -> str:
    return ", ".join(dict.fromkeys(str(getattr(c, name)) for c in configs))


def _places(s: Section | Finding) -> str:
    """Which engine ran how many trials on which host; a trial that was moved counts in each."""
    counts = Counter(
        f"{engine} on {host}"
        for row in s.rows
        for engine, host in Run(Path(row.folder), {}, {}).places
    )
    return "; ".join(f"{place}: {n} trial{'s' if n > 1 else ''}" for place, n in counts.items())


def ranges(plan: Plan) -> Table:
    """What was drawn from; without rows where nothing was."""
    rows = [
        [o, n, f"{r.low:g}", f"{r.high:g}", "log-uniform" if r.log else "uniform"]
        for o, rs in plan.ranges.items()
        for n, r in rs.items()
    ]
    rows += [
        [
            f"{g.optim}, {g.contender} only",
            n,
            f"{r.low:g}",
            f"{r.high:g}",
            "log-uniform" if r.log else "uniform",
        ]
        for g in plan.groups
        if g.ranges is not None
        for n, r in g.ranges.items()
    ]
    return Table("Ranges", ["optimizer", "setting", "low", "high", "law"], rows)


def deviations(s: Section | Finding) -> Table:
    """What was changed after the first trial."""
    rows = [[h["when"], h["what"], h.get("command", "")] for r in s.records for h in r["history"]]
    note = "" if rows else "None: what was planned was run."
    return Table("Deviations from the first plan", ["when", "what", "command"], rows, note)
