"""A study as one HTML file that needs nothing else; its figures, tables and numbers beside it."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vitc.errors import ConfigError
from vitc.files import write_atomically
from vitc.study.analysis import analyse
from vitc.study.design import HPARAMS, key_of
from vitc.study.figures import draw_figures
from vitc.study.results import Protocol, Section
from vitc.study.summary import (
    agreement_text,
    contenders_tex,
    deviations,
    facts,
    ranges,
    title_of,
    troubles,
    unfinished_text,
)
from vitc.views.model import Bullets, Details, Figures, Heading, Page, Part, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = (  # of a trial, as columns of trials.csv
    "status",
    "error",
    "error_raw",
    "error_best_epoch",
    "train_seconds",
    "steps",
    "peak_memory_bytes",
)
PAGE_DPI = 110  # beside each other on a page of a repository, a few tens of kilobytes each


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    page: Path | None = None,
    protocol: Protocol = "last",
) -> tuple[Path, list[Section]]:
    """Write report.html, figures/, trials.csv, table.tex and results.json.

    Returns the HTML file and what it shows. `out` defaults to <study>/report for one study, or
    report_paper by the paper's protocol (see `analysis.analyse`); several need one. `page`, a
    Markdown file, is written as well, with its figures and numbers in a folder of its name.
    Nothing of the studies is changed, so a report can be made at any time, also while trials run.
    Raises ConfigError.
    """
    from vitc.views import figures, html, latex

    if page is not None:
        _check_page(page)
    if out is None:
        if len(folders) != 1:
            raise ConfigError("Several studies need a place for their report.", "Add --out DIR.")
        out = folders[0] / ("report" if protocol == "last" else "report_paper")
    sections = analyse(folders, protocol)
    values = {
        "protocol": protocol,
        "sections": [_values(s) for s in sections if s.plan.measure == HPARAMS],
        "findings": [_values(s) for s in sections if s.plan.measure != HPARAMS],
    }
    files = {
        "trials.csv": trials_csv(sections),
        "results.json": json.dumps(_finite(values), indent=1),
    }
    parts = [part for i, s in enumerate(sections) for part in _parts(s, i, page)]
    tables = [t for s in sections if not s.finding.draws for t in s.finding.tables]
    tex = [contenders_tex(sections), *map(latex.tabular, tables)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    charts = [c for part in parts if isinstance(part, Figures) for c in part.charts]
    drawn = {chart.name: figures.save(chart, out / "figures") for chart in charts}
    for name, text in {**files, "table.tex": "\n".join(filter(None, tex))}.items():
        write_atomically(out / name, text)
    title = " + ".join(s.name for s in sections)
    text = html.render(Page(title, parts), {name: svg for name, (_, svg) in drawn.items()})
    write_atomically(out / "report.html", text)
    if page is not None:
        _write_page(page, parts, {c.name: drawn[c.name][0] for c in charts if c.brief}, files)
    return out / "report.html", sections


# -- the page --------------------------------------------------------------------------------------


def _parts(s: Section, index: int, page: Path | None) -> list[Part]:
    """A study as parts of a page: the verdict first, how it was made last."""
    f = s.finding
    verdict, *others = f.sentences
    if f.draws:
        figures = draw_figures(s, index)
    else:
        charts = [replace(c, name=f"{c.name}_{index}") for c in f.charts]
        charts = [c for c in charts if any(line.x for line in c.lines)]
        figures = [Figures(charts)] if charts else []
    unfinished, agreement = unfinished_text(s), agreement_text(s)
    settings = {
        key_of(g["contender"], g["optim"], g.get("point", "")): g["config"]
        for r in s.records
        for g in r["plan"]["groups"]
    }
    command = ["vitc", "report", *s.folders]
    command += ["--protocol", "paper"] if s.protocol == "paper" else []
    command += ["--page", str(page)] if page is not None else []
    drawn_from = ranges(s.plan)
    return [
        Heading(title_of(s), level=1),
        *([Text(unfinished, "warning")] if unfinished else []),
        Text(verdict, "verdict"),
        *([Bullets(others)] if others else []),
        *([Text(agreement)] if agreement else []),
        *([Bullets(f.warnings, "warning")] if f.warnings else []),
        *map(Text, s.plan.about),
        *figures,
        *f.tables,
        troubles(s),
        Heading("Plan, deviations and conditions"),
        facts(s, shlex.join(command)),
        *([drawn_from] if drawn_from.rows else []),
        deviations(s),
        Details("Every setting of every contender", json.dumps(settings, indent=1)),
    ]


def _check_page(page: Path) -> None:
    """Raises ConfigError: no Markdown file, or its folder has other contents."""
    if page.suffix != ".md":
        raise ConfigError(f"--page {page} is not a Markdown file.", "Name it FILE.md.")
    beside = page.with_suffix("")
    if beside.exists() and not (beside.is_dir() and (beside / "trials.csv").is_file()):
        raise ConfigError(
            f"{beside} exists and holds no trials.csv of an earlier page: its figures and "
            "numbers would go there.",
            "Give the page another name.",
        )


def _write_page(
    page: Path, parts: Sequence[Part], figures: dict[str, Figure], files: dict[str, str]
) -> None:
    """The Markdown page; in a folder of its name PNG figures and `files` (name -> text)."""
    from vitc.views import markdown

    beside = page.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(beside / f"{name}.png", dpi=PAGE_DPI)
    for name, text in files.items():
        write_atomically(beside / name, text)
    links = ", ".join(f"[{name}]({quote(beside.name)}/{name})" for name in files)
    body = markdown.render(parts, beside.name)
    write_atomically(page, f"{body}\nEvery trial and number: {links}.\n")


# -- numbers --------------------------------------------------------------------------------------


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
        return values | {"notes": s.finding.warnings}
    return values | {
        "measure": s.plan.measure,
        "seeds": s.plan.draws,
        "exhibit": s.plan.exhibit or None,
        "notes": [*s.plan.about, *s.finding.warnings],
    }


def trials_csv(sections: Sequence[Section]) -> str:
    """Tidy: one row a trial, one column a drawn setting."""
    results = [r for s in sections for r in s.results]
    settings = list(dict.fromkeys(n for r in results for n in r.values))
    rows = [
        {
            "study": r.study,
            "trial": r.id,
            **{name: getattr(r, name) for name in ("contender", "optim", "point", "draw", "seed")},
            **{name: r.values.get(name) for name in settings},
            **{name: getattr(r, name) for name in MEASURED},
            "folder": r.folder,
            "note": " ".join(r.note.split()),
        }
        for r in results
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """A string that a spreadsheet would run as a formula stays a string."""
    formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if formula else value
