"""A study as one HTML file that needs nothing else; its figures, tables and numbers beside it."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vitc.errors import ConfigError
from vitc.files import write_atomically
from vitc.study.analysis import analyse
from vitc.study.design import HPARAMS
from vitc.study.figures import INK, Picture, pictures
from vitc.study.page import check_page, write_page
from vitc.study.results import Protocol, Section, Table
from vitc.study.summary import deviations, facts, ranges, troubles, unfinished_text


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    page: Path | None = None,
    protocol: Protocol = "last",
) -> tuple[Path, list[Section]]:
    """Write report.html, figures/, trials.csv, table.tex and results.json.

    Returns the HTML file and what it shows. `out` defaults to <study>/report for one study, or
    report_paper by the paper's protocol (see `analysis.analyse`); several need one. `page`, a
    Markdown file, is written as well. Nothing of the studies is changed, so it can be made again
    at any time, also while trials run. Raises ConfigError.
    """
    if page is not None:
        check_page(page)
    if out is None:
        if len(folders) != 1:
            raise ConfigError("Several studies need a place for their report.", "Add --out DIR.")
        out = folders[0] / ("report" if protocol == "last" else "report_paper")
    sections = analyse(folders, protocol)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawn = [list(pictures(s, i)) for i, s in enumerate(sections)]
    svgs = {p.name: _save_figure(p, figures) for ps in drawn for p in ps}
    trials = trials_csv(sections)
    write_atomically(out / "trials.csv", trials)
    write_atomically(out / "table.tex", table_tex(sections) + tables_tex(sections))
    values = {
        "protocol": protocol,
        "sections": [_values(s) for s in sections if s.plan.measure == HPARAMS],
        "findings": [_values(s) for s in sections if s.plan.measure != HPARAMS],
    }
    numbers = json.dumps(_finite(values), indent=1)
    write_atomically(out / "results.json", numbers)
    write_atomically(out / "report.html", _page(sections, drawn, svgs))
    if page is not None:
        write_page(page, sections, drawn, {"trials.csv": trials, "results.json": numbers})
    return out / "report.html", sections


def _finite(value: Any) -> Any:
    """JSON has no infinity: an open bound becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _values(s: Section) -> dict[str, Any]:
    """A section for results.json."""
    values: dict[str, Any] = {
        "name": s.name,
        "folders": s.folders,
        "plan_hashes": [r["hash"] for r in s.records],
        "unfinished_trials": s.unfinished,
        "chance_error": s.plan.chance_error,
        **s.finding.values,
    }
    if s.plan.measure == HPARAMS:
        return {**values, "notes": s.finding.warnings}
    return {
        **values,
        "measure": s.plan.measure,
        "seeds": s.plan.draws,
        "exhibit": s.plan.exhibit or None,
        "notes": [*s.plan.about, *s.finding.warnings],
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


# -- tables ----------------------------------------------------------------------------------------


def trials_csv(sections: Sequence[Section]) -> str:
    """Tidy: one row a trial, one column a drawn setting."""
    rows = [r for s in sections for r in s.results]
    settings = list(dict.fromkeys(n for r in rows for n in r.values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "study",
            "trial",
            "contender",
            "optim",
            "point",
            "draw",
            "seed",
            *settings,
            "status",
            "error",
            "error_raw",
            "error_best_epoch",
            "train_seconds",
            "steps",
            "peak_memory_bytes",
            "folder",
            "note",
        ]
    )
    for r in rows:
        values = [r.values.get(n, "") for n in settings]
        writer.writerow(
            [
                _cell(x)
                for x in (
                    r.study,
                    r.id,
                    r.contender,
                    r.optim,
                    r.point,
                    r.draw,
                    r.seed,
                    *values,
                    r.status,
                    r.error,
                    r.error_raw,
                    r.error_best_epoch,
                    r.train_seconds,
                    r.steps,
                    r.peak_memory_bytes,
                    r.folder,
                    " ".join(r.note.split()),
                )
            ]
        )
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
    groups = [g for s in sections for g in s.finding.draws]
    if not groups:
        return ""
    lines = [
        "% error: top-1 error in percent; median with its 95 % interval",
        r"\begin{tabular}{llrrrrrrr}",
        r"\toprule",
        r"contender & optimizer & draws & diverged & best & median & Mflops & params (M) & "
        r"step (ms) \\",
        r"\midrule",
    ]
    for g in groups:
        median = (
            "--"
            if g.median is None
            else (f"{g.median.estimate:.1f} [{g.median.low:.1f}, {g.median.high:.1f}]")
        )
        best = f"{g.best.error:.1f}" if g.best and g.best.error is not None else "--"
        step = f"{g.step_ms:.1f}" if g.step_ms else "--"
        cells = [
            _tex(g.contender),
            _tex(g.optim),
            str(len(g.errors)),
            str(g.count("diverged")),
            best,
            median,
            *(
                [f"{g.cost.flops / 1e6:.1f}", f"{g.cost.params / 1e6:.3f}"]
                if g.cost
                else ["--"] * 2
            ),
            step,
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def tables_tex(sections: Sequence[Section]) -> str:
    """The tables of the measures, one tabular each."""
    lines = []
    for table in (t for s in sections if not s.finding.draws for t in s.finding.tables):
        lines += [
            f"% {_tex(table.title)}",
            rf"\begin{{tabular}}{{{'l' * len(table.head)}}}",
            r"\toprule",
            " & ".join(map(_tex, table.head)) + r" \\",
            r"\midrule",
            *(" & ".join(map(_tex, row)) + r" \\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    return "\n".join(lines)


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text if c.isprintable())


# -- the page --------------------------------------------------------------------------------------


def _page(
    sections: Sequence[Section],
    drawn: Sequence[Sequence[Picture]],
    svgs: dict[str, str],
) -> str:
    title = " + ".join(s.name for s in sections)
    style = resources.files("vitc.study").joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(_section(s, ps, svgs) for s, ps in zip(sections, drawn, strict=True))
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
            for optim in (*s.plan.optims, "")
        ]
        return "".join(f'<div class="figures">{row}</div>' for row in rows if row)

    verdict, *others = s.finding.sentences
    charts = figures("chart")
    parts = [
        f"<h1>{_e(s.name)}</h1>{_unfinished(s)}",
        f'<p class="verdict">{_e(verdict)}</p>',
        _list(others),
        _list(s.finding.warnings, ' class="warning"'),
        "".join(f"<p>{_e(line)}</p>" for line in s.plan.about),
        charts,
        _draws_figures(figures) if s.finding.draws else "",
        *(_shown(t, 2 + bool(s.finding.draws and i)) for i, t in enumerate(s.finding.tables)),
        _shown(troubles(s)),
        f"<h2>Plan, deviations and conditions</h2>{_conditions(s)}",
    ]
    return f"<section>{''.join(parts)}</section>"


def _draws_figures(figures: Callable[[str], str]) -> str:
    curves = figures("curves")
    return "".join(
        [
            "<h2>Error against number of draws, and against compute</h2>"
            "<p>Expected best top-1 error after k random draws, with simultaneous 95 % bands.</p>",
            figures("tuning"),
            "<h2>All draws</h2><p>Share of draws at or below an error, with 95 % Kolmogorov bands; "
            "and the same against each contender's own best draw.</p>",
            figures("edf"),
            "<h2>Where the good settings lie</h2>",
            figures("scatter"),
            f"<h2>Learning curves</h2>{curves}" if curves else "",
        ]
    )


def _list(lines: Sequence[str], attributes: str = "") -> str:
    items = "".join(f"<li>{_e(line)}</li>" for line in lines)
    return f"<ul{attributes}>{items}</ul>" if items else ""


def _unfinished(s: Section) -> str:
    text = unfinished_text(s)
    return f'<p class="warning">{_e(text)}</p>' if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls inside its own box on a narrow screen; cells are escaped here."""
    top = "".join(f"<th>{_e(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{_e(c)}</td>" for c in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _shown(table: Table, level: int = 2) -> str:
    """A told table under its title; its note alone where it has no rows."""
    title = f"<h{level}>{_e(table.title)}</h{level}>"
    body = _table(table.head, table.rows) if table.rows else ""
    return title + body + (f"<p>{_e(table.note)}</p>" if table.note else "")


def _conditions(s: Section) -> str:
    drawn = ranges(s.plan)
    settings = json.dumps(
        {
            "/".join(filter(None, (g["contender"], g["optim"], g.get("point")))): g["config"]
            for r in s.records
            for g in r["plan"]["groups"]
        },
        indent=1,
    )
    return (
        _table(["", ""], facts(s).rows)
        + (_shown(drawn, 3) if drawn.rows else "")
        + _shown(deviations(s), 3)
        + f"<details><summary>Every setting of every contender</summary><pre>{_e(settings)}"
        "</pre></details>"
    )
