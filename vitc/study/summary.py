"""What stands around a study's finding: its title, its trials, how it was planned and run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitc.runs.folder import Run
from vitc.study.design import HPARAMS, Plan
from vitc.study.paper.claims import claims
from vitc.study.paper.exhibits import EXHIBITS
from vitc.study.results import PAPER_PRIMARY, Result, Section
from vitc.study.study_folder import DIVERGED, PRIMARY
from vitc.views.latex import tabular
from vitc.views.model import Table
from vitc.views.text import columns
from vitc.wording import duration


def summary_text(section: Section) -> str:
    """What the terminal shows at the end of a study."""
    f = section.finding
    tables = [columns(t) for t in f.tables if t.brief]
    return "\n".join([*f.sentences, *section.plan.about, *f.warnings, *tables])


def title_of(s: Section) -> str:
    name, _, scale = s.plan.exhibit.partition(" ")
    if name in EXHIBITS:
        return f"{EXHIBITS[name].title}: {name}, {scale} scale"
    drawn = dict.fromkeys(n.removeprefix("optim.") for rs in s.plan.ranges.values() for n in rs)
    return f"{s.name}: random draws of {' and '.join(drawn)}" if drawn else s.name


def agreement_text(s: Section) -> str:
    """Empty where the study bears on none of the paper's claims."""
    verdicts = [c.verdict for c in claims(s)]
    if not verdicts:
        return ""
    words = {
        "agrees": "with the sign that the paper claims",
        "disagrees": "with the opposite one",
        "open": "open (the interval holds zero)",
    }
    counts = ", ".join(f"{sum(x == v for x in verdicts)} {w}" for v, w in words.items())
    many = len(verdicts)
    return (
        f"On the paper's claims {many} difference{'s bear' if many > 1 else ' bears'}: {counts}; "
        "see the table."
    )


# -- tables ----------------------------------------------------------------------------------------


def unfinished_text(s: Section) -> str:
    """Empty where every trial has a result."""
    if not s.unfinished:
        return ""
    return f"{s.unfinished} trials have no result yet; this report is of the others."


def count_word(plan: Plan) -> str:
    return "draws" if plan.measure == HPARAMS else "seeds"


def troubles(s: Section) -> Table:
    """Every diverged and failed trial."""
    rows = [
        [r.contender, r.optim, str(r.draw), r.status, r.point or _values(r), _first_line(r.note)]
        for r in s.results
        if r.status in ("diverged", "failed")
    ]
    head = ["contender", "optimizer", "draw", "what", "settings", "why"]
    return Table("Diverged and failed trials", head, rows, "" if rows else "None.")


def _values(r: Result) -> str:
    return ", ".join(f"{n} {v:g}" for n, v in r.values.items())


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "-"


# -- conditions ------------------------------------------------------------------------------------


def facts(s: Section, command: str) -> Table:
    """Where, when, with what and by which command: name and value a row.

    `command`: the one that makes this report again.
    """
    plan = s.plan
    record = s.records[0]
    versions = ", ".join(f"{k} {v}" for k, v in record["environment"]["versions"].items())
    hardware = ", ".join(f"{k} {v}" for k, v in record["environment"]["hardware"].items())
    config = plan.groups[0].config
    trains = [g.config.train for g in plan.groups]
    seconds = sum(r.train_seconds or 0.0 for r in s.results)
    epochs = sorted({g.config.train.epochs for g in plan.groups})
    rows = [
        [
            "primary metric",
            PRIMARY if s.protocol == "last" else f"{PAPER_PRIMARY}; planned: {PRIMARY}",
        ],
        ["diverged runs", DIVERGED],
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
        ["made again by", command],
    ]
    return Table("Conditions", ["what", "value"], rows, level=3)


def _all(configs: Sequence[object], name: str) -> str:
    return ", ".join(dict.fromkeys(str(getattr(c, name)) for c in configs))


def _places(s: Section) -> str:
    """Which engine ran how many trials on which host; a trial that was moved counts in each."""
    counts = Counter(
        f"{engine} on {host}" for row in s.results for engine, host in Run(Path(row.folder)).places
    )
    return "; ".join(f"{place}: {n} trial{'s' if n > 1 else ''}" for place, n in counts.items())


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


def contenders_tex(sections: Sequence[Section]) -> str:
    """The contenders of random draws as a table for a paper; empty where nothing was drawn."""
    groups = [g for s in sections for g in s.finding.draws]
    if not groups:
        return ""
    rows = []
    for g in groups:
        m = g.median
        median = "--" if m is None else f"{m.estimate:.1f} [{m.low:.1f}, {m.high:.1f}]"
        best = f"{g.best.error:.1f}" if g.best and g.best.error is not None else "--"
        cost = (
            [f"{g.cost.flops / 1e6:.1f}", f"{g.cost.params / 1e6:.3f}"] if g.cost else ["--", "--"]
        )
        step = f"{g.step_ms:.1f}" if g.step_ms else "--"
        counts = [str(len(g.errors)), str(g.count("diverged"))]
        rows.append([g.contender, g.optim, *counts, best, median, *cost, step])
    head = ["contender", "optimizer", "draws", "diverged", "best", "median", "Mflops"]
    head += ["params (M)", "step (ms)"]
    title = "error: top-1 error in percent; median with its 95 % interval"
    return tabular(Table(title, head, rows), columns="llrrrrrrr")
