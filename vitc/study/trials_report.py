"""The report of trials that other programs ran: verdicts, tables and figures on one page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitc.files import to_json
from vitc.stats import curves, proportions
from vitc.stats.compare import Comparison
from vitc.study.contrasts import card, headline
from vitc.study.figures import bands_inform
from vitc.study.measures.hparams import interval_text
from vitc.study.reporting import write_report
from vitc.study.trials_file import Columns, OtherTrials, Rival, compare_trials, read_trials
from vitc.views.model import (
    Bullets,
    Cards,
    Chart,
    Figures,
    Forest,
    ForestRow,
    Heading,
    Line,
    Part,
    Table,
)
from vitc.wording import bounds, counted, no_formula, short

SHOWN_KS = (1, 4, 16, 64)  # best of k draws, as columns


@dataclass(frozen=True)
class TrialsReport:
    """Where the page is, and what it shows."""

    path: Path
    """The HTML page; figures/, trials.csv, table.tex and results.json are beside it."""
    found: OtherTrials
    verdicts: Sequence[str]
    """One sentence for each contender but the reference."""
    tables: Sequence[Table]


def trials_report(
    files: Sequence[Path],
    out: Path,
    columns: Columns,
    reference: str = "",
    classes: int = 0,
) -> TrialsReport:
    """Compare the trials in CSV or JSON Lines files and write their report into `out`.

    `reference` and `classes`: as `compare_trials`. Raises ConfigError.
    """
    from vitc.views import latex

    found = compare_trials(read_trials(files, columns), columns, reference, classes)
    verdicts = [_verdict(r) for r in found.rivals]
    tables = [_comparisons(found), _contenders(found)]
    title = f"Trials of {', '.join(found.contenders)}"
    parts: list[Part] = [
        Heading(title, level=1),
        Cards(
            [
                card(text, f"{r.contender} against {r.reference}", r.comparison)
                for r, text in zip(found.rivals, verdicts, strict=True)
            ]
        ),
        Bullets([*_failures(found), *found.notes]),
        Figures([_forest(found), _tuning(found), _distribution(found)]),
        *tables,
    ]
    values = {
        "reference": found.reference,
        "learning_line": found.line,
        "comparisons": [
            {"contender": r.contender, "paired": r.paired, **asdict(r.comparison)}
            for r in found.rivals
        ],
        "notes": list(found.notes),
    }
    texts = {
        "results.json": to_json(values, indent=1),
        "trials.csv": _trials_csv(found),
        "table.tex": "\n".join(map(latex.tabular, tables)),
    }
    write_report(out, title, parts, texts)
    return TrialsReport(out / "report.html", found, verdicts, tables)


# -- text and tables -------------------------------------------------------------------------------


def _verdict(rival: Rival) -> str:
    """Both endpoints side by side."""
    c = rival.comparison
    where = "draws on which both learnt" if rival.paired else "runs that learnt"
    if math.isnan(c.difference):
        error = f"error: nothing to compare, as no {where}"
    else:
        error = (
            f"error {c.difference:+.1f} points ({_bounds(c.interval)}; p {_p(c.p)}; "
            f"{_learnt(rival)} {where})"
        )
    return (
        f"{rival.contender} against {rival.reference}: {c.verdict}. "
        f"{error[0].upper()}{error[1:]}. Failed to learn: {_lost(rival)} (p {_p(_p_failures(c))})."
    )


def _p_failures(c: Any) -> float:
    return float(c.failures["p"] if isinstance(c, Comparison) else c.p_failures)


def _learnt(rival: Rival) -> str:
    n = rival.comparison.n
    return str(n) if isinstance(n, int) else f"{n[0]} and {n[1]}"


def _lost(rival: Rival) -> str:
    c = rival.comparison
    if isinstance(c, Comparison):
        f = c.failures
        return f"{f['a']} against {f['b']}, on {f['only_a']} and {f['only_b']} draws alone"
    sides = []
    for lost, learnt in zip(c.failures, c.n, strict=True):
        share = proportions.share(lost, lost + learnt)
        low, high = 100 * share.low, 100 * share.high
        sides.append(f"{lost} of {lost + learnt} ({low:.0f} to {high:.0f} %)")
    return " against ".join(sides)


def _bounds(interval: tuple[float, float]) -> str:
    return " to ".join(bounds(interval, "+.1f"))


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _failures(found: OtherTrials) -> list[str]:
    """How many runs of each contender failed to learn, and why they count as such."""
    sentences = []
    for name in found.contenders:
        trials = found.of(name)
        marked = sum(t.marked for t in trials)
        near = sum(found.failed(t) for t in trials) - marked
        text = f"{name}: {marked} of {counted(len(trials), 'run')} failed or have no error"
        if near:
            text += f", and {near} stayed near chance (error above {found.line:.1f} %)"
        sentences.append(text + ".")
    return sentences


def _comparisons(found: OtherTrials) -> Table:
    rows = [
        {
            "contender": r.contender,
            "reference": r.reference,
            "verdict": r.comparison.verdict,
            "difference": f"{r.comparison.difference:+.2f}",
            "interval": _bounds(r.comparison.interval),
            "p": _p(r.comparison.p),
            "learnt": _learnt(r),
            "failed to learn": _lost(r),
            "p of failures": _p(_p_failures(r.comparison)),
        }
        for r in found.rivals
    ]
    together = "" if len(rows) == 1 else f" The {len(rows)} intervals hold together."
    note = (
        "Difference of the errors in points where runs learnt, with its 95 % interval; negative: "
        f"the contender is better.{together}"
    )
    return Table.of("Against the reference", rows, note, brief=True)


def _contenders(found: OtherTrials) -> Table:
    rows = []
    for name in found.contenders:
        trials = found.of(name)
        learnt = [t.error for t in trials if not found.failed(t)]
        middle = curves.median(learnt) if learnt else None
        best = curves.tuning_curve(_all_errors(found, name)).mean
        rows.append(
            {
                "contender": name,
                "runs": str(len(trials)),
                "failed to learn": str(len(trials) - len(learnt)),
                "median where learnt": interval_text(middle, dash=" to "),
                "best": f"{min(learnt):.1f}" if learnt else "-",
                **{
                    f"best of {k}": f"{best[k - 1]:.1f}" if k <= len(trials) else "-"
                    for k in SHOWN_KS
                },
            }
        )
    note = (
        "Error in %. In the best of k draws a run that failed to learn counts "
        f"{found.chance_error:g} %."
    )
    return Table.of("Contenders", rows, note, brief=True)


def _all_errors(found: OtherTrials, name: str) -> list[float]:
    return [found.chance_error if found.failed(t) else t.error for t in found.of(name)]


def _trials_csv(found: OtherTrials) -> str:
    buffer = io.StringIO()
    settings = list(dict.fromkeys(s for t in found.trials for s in t.settings))
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["contender", "draw", *settings, "error", "failed_to_learn", "from"])
    for t in found.trials:
        error = "" if math.isnan(t.error) else repr(t.error)
        own = [t.settings.get(s, "") for s in settings]
        texts = [no_formula(x) for x in (t.contender, t.draw, *own)]
        writer.writerow([*texts, error, found.failed(t), no_formula(t.where)])
    return buffer.getvalue()


# -- figures ---------------------------------------------------------------------------------------


def _forest(found: OtherTrials) -> Forest:
    """Each contender's interval against the reference, and failures of both."""
    rows = []
    for r in found.rivals:
        trials = [found.of(name) for name in (r.contender, r.reference)]
        low, high = r.comparison.interval
        dots, titles = _paired_differences(found, r)
        rows.append(
            ForestRow(
                label=r.contender,
                verdict=headline(r.comparison),
                look=found.contenders.index(r.contender),
                estimate=r.comparison.difference,
                low=low,
                high=high,
                dots=dots,
                failed=[(sum(map(found.failed, mine)), len(mine)) for mine in trials],
                titles=titles,
            )
        )
    return Forest(
        "difference",
        f"Error against {found.reference}, where runs learnt",
        "points; below 0: lower",
        "failed to learn",
        rows,
    )


def _paired_differences(found: OtherTrials, rival: Rival) -> tuple[list[float], list[str]]:
    """Of the draws on which both learnt, with what each was; none where draws are not shared."""
    if not rival.paired:
        return [], []
    theirs = {t.draw: t for t in found.of(rival.reference) if not found.failed(t)}
    differences, titles = [], []
    for t in found.of(rival.contender):
        if t.draw in theirs and not found.failed(t):
            difference, other = t.error - theirs[t.draw].error, theirs[t.draw].error
            settings = "".join(f"; {n} {short(v, 40)}" for n, v in t.settings.items())
            errors = f"{difference:+.1f} points, {t.error:.1f} % against {other:.1f} %"
            differences.append(difference)
            titles.append(f"draw {short(t.draw, 40)}: {errors}{settings}")
    return differences, titles


def _tuning(found: OtherTrials) -> Chart:
    lines = []
    banded = bands_inform([len(found.of(name)) for name in found.contenders])
    for i, name in enumerate(found.contenders):
        t = curves.tuning_curve(_all_errors(found, name))
        x = t.ks.tolist()
        lines.append(Line(name, i, x, t.mean.tolist(), form="curve"))
        if banded:
            low_high = {"low": t.mean_low.tolist(), "high": t.mean_high.tolist()}
            lines.append(Line("", i, x, **low_high, form="band"))
    return Chart(
        "tuning",
        f"Best of k draws{', with simultaneous 95 % bands' if banded else ''}",
        "number of draws k",
        "expected best error (%)",
        lines,
        log_x=True,
        ylim=(0.0, 100.0),
    )


def _distribution(found: OtherTrials) -> Chart:
    lines = []
    for i, name in enumerate(found.contenders):
        x, share = curves.edf(_all_errors(found, name))
        lines.append(Line(name, i, x.tolist(), share.tolist(), form="steps"))
    return Chart("errors", "All runs", "error (%)", "share of runs at or below it", lines)
