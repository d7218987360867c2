"""A study as one HTML file that needs nothing else; its figures, tables and numbers beside it."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from vitc.errors import ConfigError
from vitc.study.analysis import (
    WITHIN_POINTS,
    Comparison,
    GroupResult,
    Row,
    Section,
    analyse,
    results_json,
)
from vitc.study.figures import INK, Picture, chart_pictures, pictures
from vitc.study.findings import Finding, Table, find
from vitc.study.plan import HPARAMS, Plan, StudyFolder
from vitc.study.runs import Run
from vitc.study.statistics import Interval
from vitc.train.progress import duration
from vitc.train.runlog import write_atomically

LEVEL = 0.05


def report(
    folders: Sequence[Path], out: Path | None = None
) -> tuple[Path, list[Section | Finding]]:
    """Write report.html, figures/, trials.csv, table.tex and results.json.

    Returns the page and what it shows. `out` defaults to <study>/report for one study; several
    need one. Nothing of the studies is changed, so it can be made again at any time, also while
    trials run. Raises ConfigError.
    """
    if out is None:
        if len(folders) != 1:
            raise ConfigError("Several studies need a place for their report.", "Add --out DIR.")
        out = folders[0] / "report"
    drawn_ones = [f for f in folders if StudyFolder(f).read()[0].measure == HPARAMS]
    studies = analyse(drawn_ones) if drawn_ones or not folders else []
    findings = [_whole(find(f)) for f in folders if f not in drawn_ones]
    sections: list[Section | Finding] = [*studies, *findings]
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawn = [list(pictures(s, i) if isinstance(s, Section) else chart_pictures(s, i))
             for i, s in enumerate(sections)]  # fmt: skip
    svgs = {p.name: _save_figure(p, figures) for ps in drawn for p in ps}
    write_atomically(out / "trials.csv", trials_csv(sections))
    write_atomically(out / "table.tex", table_tex(studies) + tables_tex(findings))
    values = {**results_json(studies), "findings": [_finding_values(f) for f in findings]}
    write_atomically(out / "results.json", json.dumps(_finite(values), indent=1))
    page = _page(sections, drawn, svgs)
    write_atomically(out / "report.html", page)
    return out / "report.html", sections


def _finite(value: Any) -> Any:
    """JSON has no infinity: an open bound becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _whole(f: Finding) -> Finding:
    """With the second test set where one was read, and the paper's numbers beside ours."""
    from vitc.study.paper import beside
    from vitc.study.second import second_parts

    parts = f.parts
    second = second_parts(f)
    if second is not None:
        table, chart, sentence, values = second
        parts = replace(parts, tables=[*parts.tables, table], charts=[*parts.charts, chart],
                        sentences=[*parts.sentences, sentence],
                        values={**parts.values, "second_test_set": values})  # fmt: skip
    printed = beside(f)
    if printed is not None:
        parts = replace(parts, tables=[*parts.tables, printed])
    return replace(f, parts=parts)


def _finding_values(f: Finding) -> dict[str, Any]:
    return {
        "name": f.name,
        "measure": f.plan.measure,
        "folders": f.folders,
        "plan_hashes": [r["hash"] for r in f.records],
        "unfinished_trials": f.unfinished,
        "chance_error": f.plan.chance_error,
        "seeds": f.plan.draws,
        **f.parts.values,
        "exhibit": f.plan.exhibit or None,
        "notes": f.notes,
    }


def _save_figure(picture: Picture, folder: Path) -> str:
    """SVG, PNG and PDF on disk; returns the SVG for the page, in the page's own ink."""
    import matplotlib as mpl

    for suffix in ("png", "pdf"):
        picture.figure.savefig(folder / f"{picture.name}.{suffix}", dpi=200)
    buffer = io.StringIO()
    # Ids are hashed with the salt, so that several pictures in one page never share one.
    with mpl.rc_context({"svg.hashsalt": picture.name, "svg.fonttype": "none"}):
        picture.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    (folder / f"{picture.name}.svg").write_text(svg, encoding="utf-8")
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    label = html.escape(picture.title, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


# -- words -----------------------------------------------------------------------------------------


def verdict(section: Section) -> str:
    """Two sentences: what was found, with its interval; and what would change it."""
    rivals = [c for c in section.comparisons if not c.is_control]
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
        for c in open_ones if c.draws_needed and c.draws_needed > c.n
    ]  # fmt: skip
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
        told = [t for i, t in enumerate(tables) if i == 0 or t.title == "Beside the paper"]
        return "\n".join([*section.parts.sentences, *section.notes, *map(plain_table, told)])
    lines = [verdict(section), *readings(section), *section.notes, *section.plan.about]
    return "\n".join(lines)


def plain_table(table: Table) -> str:
    """A table for the terminal, its columns in line."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
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


def trials_csv(sections: Sequence[Section | Finding]) -> str:
    """Tidy: one row a trial, one column a drawn setting."""
    rows = [r for s in sections for r in s.rows]
    settings = list(dict.fromkeys(n for r in rows for n in r.values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["study", "trial", "contender", "optim", "point", "draw", "seed",
                     *settings, "status",
                     "error", "error_raw", "error_best_epoch", "train_seconds", "steps",
                     "peak_memory_bytes", "folder", "note"])  # fmt: skip
    for r in rows:
        values = [r.values.get(n, "") for n in settings]
        writer.writerow([_cell(x) for x in (
            r.study, r.id, r.contender, r.optim, r.point, r.draw, r.seed, *values, r.status,
            r.error, r.error_raw, r.error_best_epoch, r.train_seconds, r.steps, r.peak_memory_bytes,
            r.folder, " ".join(r.note.split()),
        )])  # fmt: skip
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is kept a text."""
    if value is None:
        return ""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def table_tex(sections: Sequence[Section]) -> str:
    """The table of contenders for a paper; needs the booktabs package."""
    if not sections:
        return ""
    lines = [
        "% error: top-1 error in percent; median with its 95 % interval",
        r"\begin{tabular}{llrrrrrrr}",
        r"\toprule",
        r"contender & optimizer & draws & diverged & best & median & Mflops & params (M) & "
        r"step (ms) \\",
        r"\midrule",
    ]
    for g in (g for s in sections for g in s.groups):
        median = "--" if g.median is None else (
            f"{g.median.estimate:.1f} [{g.median.low:.1f}, {g.median.high:.1f}]")  # fmt: skip
        best = f"{g.best.error:.1f}" if g.best and g.best.error is not None else "--"
        step = f"{g.step_ms:.1f}" if g.step_ms else "--"
        cells = [_tex(g.contender), _tex(g.optim), str(len(g.errors)), str(g.count("diverged")),
                 best, median, f"{g.flops / 1e6:.1f}", f"{g.params / 1e6:.3f}", step]  # fmt: skip
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def tables_tex(findings: Sequence[Finding]) -> str:
    """The tables of the measures, one tabular each."""
    lines = []
    for table in (t for f in findings for t in f.parts.tables):
        lines += [f"% {_tex(table.title)}", rf"\begin{{tabular}}{{{'l' * len(table.head)}}}",
                  r"\toprule", " & ".join(map(_tex, table.head)) + r" \\", r"\midrule",
                  *(" & ".join(map(_tex, row)) + r" \\" for row in table.rows),
                  r"\bottomrule", r"\end{tabular}", ""]  # fmt: skip
    return "\n".join(lines)


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text if c.isprintable())


# -- the page --------------------------------------------------------------------------------------


def _page(
    sections: Sequence[Section | Finding],
    drawn: Sequence[Sequence[Picture]],
    svgs: dict[str, str],
) -> str:
    title = " + ".join(s.name for s in sections)
    style = resources.files("vitc.study").joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(_section(s, ps, svgs) if isinstance(s, Section) else _finding_page(s, ps, svgs)
                   for s, ps in zip(sections, drawn, strict=True))  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing may load or run, whatever a name in the page holds
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        '<link rel="icon" href="data:,">'
        f"<title>{_e(title)} - how easily it trains</title><style>{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _section(s: Section, drawn: Sequence[Picture], svgs: dict[str, str]) -> str:
    def figures(part: str) -> str:
        rows = [
            "".join(
                f"<figure>{svgs[p.name]}<figcaption>{_e(p.title)}</figcaption></figure>"
                for p in drawn
                if (p.part, p.optim) == (part, optim)
            )
            for optim in s.plan.optims
        ]
        return "".join(f'<div class="figures">{row}</div>' for row in rows if row)

    unfinished = _unfinished(s)
    read_out = "".join(f"<li>{_e(line)}</li>" for line in readings(s))
    notes = "".join(f"<li>{_e(line)}</li>" for line in s.notes)
    parts = [
        f"<h1>{_e(s.name)}</h1>{unfinished}",
        f'<p class="verdict">{_e(verdict(s))}</p>',
        f"<ul>{read_out}</ul>" if read_out else "",
        f'<ul class="warning">{notes}</ul>' if notes else "",
        "".join(f"<p>{_e(line)}</p>" for line in s.plan.about),
        "<h2>Error against number of draws, and against compute</h2>"
        "<p>Expected best top-1 error after k random draws, with simultaneous 95 % bands.</p>",
        figures("tuning"),
        "<h2>All draws</h2><p>Share of draws at or below an error, with 95 % Kolmogorov bands; and "
        "the same against each contender's own best draw.</p>",
        figures("edf"),
        "<h2>Where the good settings lie</h2>",
        figures("scatter"),
        f"<h2>Learning curves</h2>{figures('curves')}" if figures("curves") else "",
        f"<h2>Contenders</h2>{_contenders(s)}{_comparisons(s)}",
        f"<h2>Diverged and failed trials</h2>{_troubles(s)}",
        f"<h2>Plan, deviations and conditions</h2>{_conditions(s)}",
    ]
    return f"<section>{''.join(parts)}</section>"


def _finding_page(f: Finding, drawn: Sequence[Picture], svgs: dict[str, str]) -> str:
    figures = "".join(
        f"<figure>{svgs[p.name]}<figcaption>{_e(p.title)}</figcaption></figure>" for p in drawn
    )
    verdict_, *others = f.parts.sentences
    tables = "".join(
        f"<h2>{_e(t.title)}</h2>{_table(t.head, t.rows)}" + (f"<p>{_e(t.note)}</p>" * bool(t.note))
        for t in f.parts.tables
    )
    parts = [
        f"<h1>{_e(f.name)}</h1>{_unfinished(f)}",
        f'<p class="verdict">{_e(verdict_)}</p>',
        f"<ul>{''.join(f'<li>{_e(x)}</li>' for x in others)}</ul>" if others else "",
        f'<ul class="warning">{"".join(f"<li>{_e(x)}</li>" for x in f.notes)}</ul>'
        if f.notes else "",
        f'<div class="figures">{figures}</div>' if figures else "",
        tables,
        f"<h2>Diverged and failed trials</h2>{_troubles(f)}",
        f"<h2>Plan, deviations and conditions</h2>{_conditions(f)}",
    ]  # fmt: skip
    return f"<section>{''.join(parts)}</section>"


def _unfinished(s: Section | Finding) -> str:
    return (
        f'<p class="warning">{s.unfinished} trials have no result yet; this report is of the '
        "others.</p>"
        if s.unfinished else ""
    )  # fmt: skip


def _count_word(plan: Plan) -> str:
    return "draws" if plan.measure == HPARAMS else "seeds"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls inside its own box on a narrow screen; cells are escaped here."""
    top = "".join(f"<th>{_e(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{_e(c)}</td>" for c in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _contenders(s: Section) -> str:
    head = ["contender", "optimizer", "draws", "diverged", "failed", "best error %",
            "test error % of that draw (95 %)", "best settings", "median error % (95 %)",
            f"within {WITHIN_POINTS:g} points of the best",
            "Mflops", "params", "activations", "step ms", "memory MiB", "s a trial"]  # fmt: skip
    rows = []
    for g in s.groups:
        best = g.best
        rows.append([
            g.contender, g.optim, str(len(g.errors)), str(g.count("diverged")),
            str(g.count("failed")),
            f"{best.error:.2f}" if best and best.error is not None else "-",
            _test(g),
            ", ".join(f"{n.removeprefix('optim.')} {v:.3g}" for n, v in best.values.items())
            if best else "-",
            _interval(g.median), _share(g.share),
            f"{g.flops / 1e6:,.1f}", f"{g.params:,}", f"{g.activations:,}",
            f"{g.step_ms:.1f}" if g.step_ms else "-",
            f"{g.memory_mib:,.0f}" if g.memory_mib else "-",
            f"{g.seconds_a_trial:.1f}" if g.seconds_a_trial else "-",
        ])  # fmt: skip
    note = (
        "<p>Flops are multiply-adds of one image's forward pass. Step time and memory are medians "
        "over the trials as they ran, several at a time on one machine; memory is the peak of the "
        "whole process on CPU, of the allocator on a GPU.</p>"
    )
    return _table(head, rows) + note


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


def _comparisons(s: Section) -> str:
    head = ["contender", "against", "optimizer", "shared draws", "median difference, points",
            "95 % interval", "p", "Holm p", "EDFs cross"]  # fmt: skip
    rows = [
        [
            c.contender + (" (control)" if c.is_control else ""), c.reference, c.optim, str(c.n),
            _signed(c.difference.estimate), _bounds(c.difference, signed=True), _p(c.p),
            _p(c.p_holm),
            "beyond noise" if c.crossings.beyond_noise
            else "within noise" if c.crossings.seen else "no",
        ]
        for c in s.comparisons
    ]  # fmt: skip
    if not rows:
        return ""
    return (
        "<h3>On shared draws</h3>"
        + _table(head, rows)
        + "<p>Difference of top-1 errors on the same draw; negative: the contender is better. "
        "Wilcoxon signed-rank tests, exact; Holm-corrected over all rows.</p>"
    )


def _troubles(s: Section | Finding) -> str:
    rows = [r for r in s.rows if r.status in ("diverged", "failed")]
    if not rows:
        return "<p>None.</p>"
    body = [[r.contender, r.optim, str(r.draw), r.status,
             r.point or _values(r), _first_line(r.note)] for r in rows]  # fmt: skip
    return _table(["contender", "optimizer", "draw", "what", "settings", "why"], body)


def _values(r: Row) -> str:
    return ", ".join(f"{n} {v:g}" for n, v in r.values.items())


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "-"


def _places(s: Section | Finding) -> str:
    """Which engine ran how many trials on which host; a trial that was moved counts in each."""
    counts = Counter(
        f"{engine} on {host}"
        for row in s.rows
        for engine, host in Run(Path(row.folder), {}, {}).places
    )
    return "; ".join(f"{place}: {n} trial{'s' if n > 1 else ''}" for place, n in counts.items())


def _conditions(s: Section | Finding) -> str:
    plan = s.plan
    ranges = [
        [o, n, f"{r.low:g}", f"{r.high:g}", "log-uniform" if r.log else "uniform"]
        for o, rs in plan.ranges.items() for n, r in rs.items()
    ]  # fmt: skip
    ranges += [
        [f"{g.optim}, {g.contender} only", n, f"{r.low:g}", f"{r.high:g}",
         "log-uniform" if r.log else "uniform"]
        for g in plan.groups if g.ranges is not None for n, r in g.ranges.items()
    ]  # fmt: skip
    record = s.records[0]
    deviations = [
        [h["when"], h["what"], h.get("command", "")] for r in s.records for h in r["history"]
    ]
    versions = ", ".join(f"{k} {v}" for k, v in record["environment"]["versions"].items())
    hardware = ", ".join(f"{k} {v}" for k, v in record["environment"]["hardware"].items())
    config = plan.groups[0].config
    seconds = sum(r.train_seconds or 0.0 for r in s.rows)
    epochs = sorted({g.config.train.epochs for g in plan.groups})
    facts = [
        ["primary metric", record["plan"]["primary_metric"]],
        ["diverged runs", record["plan"]["divergence_rule"]],
        [f"{_count_word(plan)} a contender", f"{plan.draws}, seed {plan.seed}, the same for all"],
        ["budget", f"{', '.join(map(str, epochs))} epochs, batch {config.train.batch}, "
                   f"{config.train.precision}"],
        ["data", f"{config.data.source}" + (f", {config.data.max_train} training images"
                                            if config.data.max_train else "")],
        ["training time", f"{duration(seconds)}, all trials added up"],
        ["begun", record["created"]],
        ["plan hash", ", ".join(r["hash"] for r in s.records)],
        ["versions", versions],
        ["hardware", hardware],
        ["trials ran", _places(s)],
        ["commands", "; ".join(r["command"] for r in s.records if r["command"])],
        ["made again by", f"vitc report {shlex.join(s.folders)}"],
    ]  # fmt: skip
    settings = json.dumps({"/".join(filter(None, (g["contender"], g["optim"], g.get("point")))):
                           g["config"] for r in s.records for g in r["plan"]["groups"]},
                          indent=1)  # fmt: skip
    deviation_table = (
        _table(["when", "what", "command"], deviations)
        if deviations
        else "<p>None: what was planned was run.</p>"
    )
    return (
        _table(["", ""], facts)
        + (
            "<h3>Ranges</h3>" + _table(["optimizer", "setting", "low", "high", "law"], ranges)
            if ranges
            else ""
        )
        + "<h3>Deviations from the first plan</h3>"
        + deviation_table
        + f"<details><summary>Every setting of every contender</summary><pre>{_e(settings)}"
        "</pre></details>"
    )
