"""A second test set (paper appendix G, Figure 11): every finished run read on it once, and a line.

The study's choices saw validation only; here the runs it ended with are evaluated on images that
none of them was chosen by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vitc.files import read_json, write_json
from vitc.stats.effects import fit_line
from vitc.study.design import Plan
from vitc.study.measures.base import epochs_of
from vitc.study.measures.seeded import Cells, mean, points_of, shown
from vitc.study.results import Section, results_of
from vitc.study.standing import standing
from vitc.study.study_folder import StudyFolder
from vitc.views.model import Chart, Line, Table

SECOND_FILE = "second.json"
PAPER_FIT = "y = 1.31 x + 5.0, r 0.99 (ImageNet-V2 over validation, Figure 11)"


def measure_second(
    folder: StudyFolder, plan: Plan, data: str | None, show: Callable[[str], None]
) -> dict[str, Any]:
    """Evaluate every finished run of the longest schedule on `data`, or on its own test split.

    Returns {"data": what, "top1": {trial: percent}}; what was evaluated before is not again, unless
    the data is another. Raises ConfigError, DataError.
    """
    from vitc.training.evaluate import evaluate_run

    file = folder.path / SECOND_FILE
    what = data or "the test split"
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    if found.get("data") != what:
        found = {"data": what, "top1": {}}
    longest = max(g.config.train.epochs for g in plan.groups)
    runs = standing(folder, plan).runs
    for trial in plan.trials():
        run = runs.get(trial.id)
        new = trial.id not in found["top1"] and trial.group.config.train.epochs == longest
        if run is None or run.top1 is None or not new:
            continue
        split = "test" if data is None else None
        result = evaluate_run(folder.trial(trial), data, split)
        found["top1"][trial.id] = result["top1"]
        show(
            f"{trial.label}: top1 {run.top1:.2f} % on validation, {result['top1']:.2f} % on {what}"
        )
        write_json(file, found, indent=1)
    return found


def with_second_test_set(section: Section) -> Section:
    """The section with table, chart, sentence and values of the fit; itself: no second set was
    read.

    Errors are those after the last epoch under either protocol: the second set was read then.
    """
    study = StudyFolder(Path(section.folders[0]))
    file = study.path / SECOND_FILE
    if not file.exists():
        return section
    found = read_json(file)
    top1: dict[str, float] = found["top1"]
    results = section.results
    if section.protocol != "last":
        results = results_of(study, study.with_sources(section.plan))
    cells = Cells.of(section.plan, results)
    longest = max(points_of(section.plan), key=epochs_of)
    rows, x, y, lines = [], [], [], []
    for look, (contender, optim, point) in enumerate(cells.runs):
        both = [r for r in cells.at(contender, optim, point).values() if r.id in top1]
        if point != longest or not both:
            continue
        a = mean({r.draw: r.error for r in both if r.error is not None})
        b = mean({r.draw: 100 - top1[r.id] for r in both})
        if a is None or b is None:
            continue
        rows.append(
            {
                "contender": contender,
                "optimizer": optim,
                "runs": str(len(both)),
                "validation error % (95 %)": shown(a),
                "second set, error % (95 %)": shown(b),
            }
        )
        x.append(a.estimate)
        y.append(b.estimate)
        lines.append(Line(contender, look, [a.estimate], [b.estimate]))
    fit = fit_line(x, y) if x else None
    values: dict[str, Any] = {"data": found["data"], "fit": None}
    if fit is None:
        sentence = "Too few contenders were read on the second test set for a line."
    else:
        sentence = (
            f"Error on {found['data']} over validation error, {fit.n} contenders: slope "
            f"{shown(fit.slope)}, intercept {shown(fit.intercept)}, r {fit.r:.2f}. The paper's: "
            f"{PAPER_FIT}."
        )
        ends = [min(x), max(x)]
        at = [fit.slope.estimate * e + fit.intercept.estimate for e in ends]
        lines.append(Line("fit", len(lines), ends, at, marker="_"))
        values["fit"] = {
            "slope": asdict(fit.slope),
            "intercept": asdict(fit.intercept),
            "r": fit.r,
            "residual_deviation": fit.spread,
            "n": fit.n,
        }
    if section.protocol != "last":
        sentence += " Here both errors are those after the last epoch."
    title, on = "Error on a second test set", f"error on {found['data']} (%)"
    f = section.finding
    finding = replace(
        f,
        remarks=[*f.remarks, sentence],
        tables=[*f.tables, Table.of("A second test set", rows, sentence)],
        charts=[*f.charts, Chart("second", title, "validation error (%)", on, lines)],
        values={**f.values, "second_test_set": values},
    )
    return replace(section, finding=finding)
