"""A study as one HTML file that needs nothing else; its figures, tables and numbers beside it."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vitc.errors import ConfigError
from vitc.files import to_json, write_atomically
from vitc.runs.folder import Run
from vitc.study.analysis import analyse
from vitc.study.contrasts import MOST_CARDS, cards, unit_of
from vitc.study.design import HPARAMS, Plan, key_of
from vitc.study.figures import claim_and_other_figures
from vitc.study.paper.claims import claims
from vitc.study.paper.exhibits import EXHIBITS
from vitc.study.results import PAPER_PRIMARY, Protocol, Section, left_out
from vitc.study.study_folder import DIVERGED, PRIMARY, looks_taken
from vitc.views.latex import tabular
from vitc.views.model import (
    Bullets,
    Cards,
    Chart,
    Details,
    Figures,
    Forest,
    Heading,
    Page,
    Part,
    Table,
    Text,
)
from vitc.views.text import columns
from vitc.wording import bounds, counted, duration, no_formula

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = (  # of a trial, as columns of trials.csv
    "status",
    "failed_to_learn",
    "error",
    "error_raw",
    "error_best_epoch",
    "train_seconds",
    "steps",
    "peak_memory_bytes",
)
MOST_NAMED = 3  # contenders in the question
PAGE_DPI = 144  # on a page of a repository, a few tens of kilobytes each


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    page: Path | None = None,
    protocol: Protocol = "last",
    allow_changed_data: bool = False,
) -> tuple[Path, list[Section]]:
    """Write report.html, figures/, trials.csv, table.tex and results.json.

    Returns the HTML file and what it shows. `out` defaults to <study>/report for one study, or
    report_paper by the paper's protocol (see `analysis.analyse`); several need one. `page`, a
    Markdown file, is written as well, with its figures and numbers in a folder of its name.
    Nothing of the studies is changed, so a report can be made at any time, also while trials run.
    `allow_changed_data` and errors raised: as `analysis.analyse`.
    """
    from vitc.views import latex

    if page is not None:
        _check_page(page)
    if out is None:
        if len(folders) != 1:
            raise ConfigError("Several studies need a place for their report.", "Add --out DIR.")
        out = folders[0] / ("report" if protocol == "last" else "report_paper")
    sections = analyse(folders, protocol, allow_changed_data)
    values = {
        "protocol": protocol,
        "sections": [_values(s) for s in sections if s.plan.measure == HPARAMS],
        "findings": [_values(s) for s in sections if s.plan.measure != HPARAMS],
    }
    numbers = {
        "trials.csv": trials_csv(sections),
        "results.json": to_json(values, indent=1),  # an open bound becomes null
    }
    parts = [part for i, s in enumerate(sections) for part in _parts(s, i, page)]
    compared = [comparisons_tex(s) for s in sections]
    # of random draws the contenders have a table of their own
    tables = [t for s in sections if not s.finding.draws for t in s.finding.tables]
    tex = [*compared, contenders_tex(sections), *map(latex.tabular, tables)]
    title = " + ".join(s.name for s in sections)
    texts = {**numbers, "table.tex": "\n".join(filter(None, tex))}
    drawn = write_report(out, title, parts, texts)
    if page is not None:
        brief = {c.name: drawn[c.name] for c in charts_of(parts) if c.brief}
        _write_page(page, parts, brief, numbers)
    return out / "report.html", sections


def write_report(
    out: Path, title: str, parts: Sequence[Part], texts: Mapping[str, str]
) -> dict[str, Figure]:
    """Write report.html, figures/ and the `texts` by file name; returns the figures by name."""
    from vitc.views import figures, html

    (out / "figures").mkdir(parents=True, exist_ok=True)
    drawn = {chart.name: figures.save(chart, out / "figures") for chart in charts_of(parts)}
    for name, text in texts.items():
        write_atomically(out / name, text)
    svgs = {name: svg for name, (_, svg) in drawn.items()}
    write_atomically(out / "report.html", html.render(Page(title, parts), svgs))
    return {name: figure for name, (figure, _) in drawn.items()}


def charts_of(parts: Sequence[Part]) -> list[Chart | Forest]:
    return [chart for part in parts if isinstance(part, Figures) for chart in part.charts]


# -- the page --------------------------------------------------------------------------------------


def _parts(s: Section, index: int, page: Path | None) -> list[Part]:
    """A study as parts of a page: the verdict first, how it was made last."""
    f = s.finding
    claim, figures = claim_and_other_figures(s, index)
    many = len(f.verdict) > MOST_CARDS
    sentences: list[Part] = [Heading("Every comparison"), Bullets(f.verdict)] if many else []
    agreement = agreement_text(s)
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
        Text(question(s)),
        *([Text(s.exploratory, "warning")] if s.exploratory else []),
        *([Text(left_out(s.unfinished), "warning")] if s.unfinished else []),
        Cards(cards(f.contrasts, f.verdict, s.plan)),
        Text(limits(s)),
        *claim,
        *f.tables[:1],
        *([Bullets(f.remarks)] if f.remarks else []),
        *([Bullets(f.warnings, "warning")] if f.warnings else []),
        *([Text(agreement)] if agreement else []),
        *map(Text, s.plan.about),
        *sentences,
        *figures,
        *f.tables[1:],
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


def summary_text(section: Section) -> str:
    """What the terminal shows at the end of a study."""
    f = section.finding
    tables = [columns(t) for t in f.tables if t.brief]
    first = [section.exploratory] if section.exploratory else []
    return "\n".join([*first, *f.sentences, *section.plan.about, *f.warnings, *tables])


def title_of(s: Section) -> str:
    name, _, scale = s.plan.exhibit.partition(" ")
    if name in EXHIBITS:
        return f"{EXHIBITS[name].title}: {name}, {scale} scale"
    drawn = dict.fromkeys(n.removeprefix("optim.") for rs in s.plan.ranges.values() for n in rs)
    return f"{s.name}: random draws of {' and '.join(drawn)}" if drawn else s.name


def question(s: Section) -> str:
    """What was asked, of which images and models, how long, how often and when."""
    plan = s.plan
    config = plan.groups[0].config
    trains = [g.config.train for g in plan.groups]
    lengths = sorted({t.epochs for t in trains})
    epochs = f"{lengths[0]} to " if len(lengths) > 1 else ""
    epochs += counted(lengths[-1], "epoch")
    rivals = [c for c in plan.contenders if c != plan.baseline and c not in plan.controls]
    who = " or ".join(rivals) if len(rivals) <= MOST_NAMED else f"one of {len(rivals)} contenders"
    asked = f"Is {who} easier to train than {plan.baseline}? " if rivals else ""
    images = f", {config.data.max_train} training images" if config.data.max_train else ""
    return (
        f"{asked}{config.data.source}{images} · {config.model.img_size} px · {epochs}, "
        f"batch {_all(trains, 'batch')} · {counted(plan.draws, unit_of(plan))} a contender · "
        f"{s.records[0]['created'][:10]}"
    )


def limits(s: Section) -> str:
    """What the study does not show."""
    plan = s.plan
    taken = max(looks_taken(r)[0] for r in s.records)
    planned = max(r["plan"].get("looks", 1) for r in s.records)
    controlled = "" if plan.controls else " There is no A/A control (--control)."
    gaps = [c.smallest_gap for c in s.finding.contrasts if c.smallest_gap and not c.is_control]
    low, high = min((g for g, _ in gaps), default=0.0), max((g for _, g in gaps), default=math.inf)
    found = f" Smaller gaps than {low:.1f} to {high:.1f} points are easily missed."
    return (
        "It does not show what other images, model sizes, batches, lengths"
        f"{' or ranges' if plan.ranges else ''} would give."
        f"{found if math.isfinite(high) else ''} Looks at the results: {taken}, planned "
        f"{planned}.{controlled}"
    )


def agreement_text(s: Section) -> str:
    """Empty where the study bears on none of the paper's claims."""
    verdicts = [c.verdict for c in claims(s)]
    if not verdicts:
        return ""
    words = {
        "agrees": "with the sign that the paper claims",
        "disagrees": "with the opposite one",
        "open": "open",
    }
    counts = ", ".join(f"{sum(x == v for x in verdicts)} {w}" for v, w in words.items())
    many = len(verdicts)
    return (
        f"On the paper's claims {many} difference{'s bear' if many > 1 else ' bears'}: {counts}; "
        "see the table."
    )


def troubles(s: Section) -> Table:
    """Every trial that failed to learn or has no result because it failed."""
    rows = []
    for r in s.results:
        if r.failed_to_learn or r.status == "failed":
            where = r.point or ", ".join(f"{n} {v:g}" for n, v in r.values.items())
            why = (r.note.strip().splitlines() or ["-"])[0][:300]
            what = f"ended at {r.error:.1f} %, near chance" if r.status == "done" else r.status
            rows.append([r.contender, r.optim, str(r.draw), what, where, why])
    head = ["contender", "optimizer", "draw", "what", "settings", "why"]
    return Table("Trials that failed or failed to learn", head, rows, "" if rows else "None.")


# -- conditions ------------------------------------------------------------------------------------


def facts(s: Section, command: str) -> Table:
    """Where, when, with what and by which command: name and value a row.

    `command`: the one that makes this report again.
    """
    plan = s.plan
    record = s.records[0]
    runs = "draws" if plan.measure == HPARAMS else "seeds"
    versions, hardware = (
        ", ".join(f"{k} {v}" for k, v in record["environment"][name].items())
        for name in ("versions", "hardware")
    )
    data = plan.groups[0].config.data
    images = f", {data.max_train} training images" if data.max_train else ""
    primary = PRIMARY if s.protocol == "last" else f"{PAPER_PRIMARY}; planned: {PRIMARY}"
    # a trial that was moved counts at each place
    places = Counter(
        f"{engine} on {host}" for row in s.results for engine, host in Run(Path(row.folder)).places
    )
    ran = "; ".join(f"{place}: {n} trial{'s' if n > 1 else ''}" for place, n in places.items())
    trains = [g.config.train for g in plan.groups]
    seconds = sum(r.train_seconds or 0.0 for r in s.results)
    epochs = sorted({g.config.train.epochs for g in plan.groups})
    rows = [
        ["primary metric", primary],
        ["failed to learn", DIVERGED],
        ["reference", plan.baseline],
        [f"{runs} a contender", f"{plan.draws}, seed {plan.seed}, the same for all"],
        [
            "budget",
            f"{', '.join(map(str, epochs))} {'epoch' if epochs == [1] else 'epochs'}, "
            f"batch {_all(trains, 'batch')}, "
            f"{_all(trains, 'precision')}",
        ],
        ["data", f"{data.source}{images}"],
        ["training time", f"{duration(seconds)}, all trials added up"],
        ["started", record["created"]],
        ["plan hash", ", ".join(r["hash"] for r in s.records)],
        ["versions", versions],
        ["hardware", hardware],
        ["trials ran", ran],
        ["commands", "; ".join(r["command"] for r in s.records if r["command"])],
        ["reproduce with", command],
    ]
    return Table("Conditions", ["what", "value"], rows, level=3)


def _all(configs: Sequence[object], name: str) -> str:
    return ", ".join(dict.fromkeys(str(getattr(c, name)) for c in configs))


def ranges(plan: Plan) -> Table:
    """What was drawn from; without rows where nothing was."""
    own = {f"{g.optim}, {g.contender} only": g.ranges for g in plan.groups if g.ranges is not None}
    rows = [
        [where, name, f"{r.low:g}", f"{r.high:g}", "log-uniform" if r.log else "uniform"]
        for where, drawn in {**plan.ranges, **own}.items()
        for name, r in drawn.items()
    ]
    return Table("Ranges", ["optimizer", "setting", "low", "high", "law"], rows, level=3)


def deviations(s: Section) -> Table:
    """What was changed after the first trial."""
    rows = [[h["when"], h["what"], h.get("command", "")] for r in s.records for h in r["history"]]
    note = "" if rows else "None: what was planned was run."
    return Table("Deviations from the first plan", ["when", "what", "command"], rows, note, level=3)


def comparisons_tex(s: Section) -> str:
    """Every comparison as a table for a paper; empty where nothing was compared."""
    rows = []
    for c in s.finding.contrasts:
        f, gone = c.found, c.found.failures
        low, high = bounds(f.interval, ".1f", "--")
        difference = f"{f.difference:.1f} [{low}, {high}]" if f.n else "--"
        p = "--" if math.isnan(f.p) else "< 0.001" if f.p < 0.001 else f"{f.p:.3f}"
        who = ", ".join(filter(None, (c.contender, c.point)))
        failed = f"{gone['a']} / {gone['b']} of {c.pairs}"
        rows.append([who, c.reference, c.optim, str(f.n), difference, p, failed, f.verdict])
    if not rows:
        return ""
    whats = ", ".join(dict.fromkeys(c.what for c in s.finding.contrasts))
    head = ["contender", "against", "optimizer", "n", "difference", "p", "failed to learn"]
    title = (
        f"difference in {whats}, in points, with its 95 % interval, over the n "
        f"{unit_of(s.plan)}s on which both learnt; failed to learn: contender / reference"
    )
    return tabular(Table(title, [*head, "verdict"], rows), columns="lllrrrrl")


def contenders_tex(sections: Sequence[Section]) -> str:
    """The contenders of random draws as a table for a paper; empty where nothing was drawn."""
    groups = [g for s in sections for g in s.finding.draws]
    if not groups:
        return ""
    rows = []
    for g in groups:
        m = g.median
        median = "--"
        if m is not None:
            low, high = bounds((m.low, m.high), ".1f", "--")
            median = f"{m.estimate:.1f} [{low}, {high}]"
        best = f"{g.best.error:.1f}" if g.best and g.best.error is not None else "--"
        cost = ["--", "--"]
        if g.cost:
            cost = [f"{g.cost.flops / 1e6:.1f}", f"{g.cost.params / 1e6:.3f}"]
        step = f"{g.step_ms:.1f}" if g.step_ms else "--"
        counts = [str(len(g.errors)), str(g.failed_to_learn)]
        rows.append([g.contender, g.optim, *counts, best, median, *cost, step])
    head = ["contender", "optimizer", "draws", "failed to learn", "best", "median", "Mflops"]
    head += ["params (M)", "step (ms)"]
    title = "error: top-1 error in percent; median with its 95 % interval"
    return tabular(Table(title, head, rows), columns="llrrrrrrr")


# -- numbers --------------------------------------------------------------------------------------


def _values(s: Section) -> dict[str, Any]:
    """A section for results.json."""
    values: dict[str, Any] = {
        "name": s.name,
        "folders": s.folders,
        "plan_hashes": [r["hash"] for r in s.records],
        "unfinished_trials": s.unfinished,
        "exploratory": s.exploratory or None,
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
    writer.writerows({name: no_formula(v) for name, v in row.items()} for row in rows)
    return buffer.getvalue()
