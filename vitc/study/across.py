"""What do the same draws give in several tasks, such as other images or another length?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vitc.stats.profiles import sensitivity
from vitc.study.design import HPARAMS
from vitc.study.images import data_settings
from vitc.study.measures.hparams import interval_text
from vitc.study.results import Result, Section
from vitc.views.model import Table

FEWEST = 16  # draws below which the interval of a sensitivity was not checked


def with_sensitivity(sections: list[Section]) -> list[Section]:
    """Where sections have contenders on the same draws, a table of them in the first one."""
    tasks: dict[str, Section] = {}
    for s in sections:
        config = s.plan.groups[0].config
        task = json.dumps([data_settings(config), config.train.epochs, config.train.batch])
        if s.plan.measure == HPARAMS:
            tasks.setdefault(task, s)
    first, *others = tasks.values() or [None]
    if first is None or not others:
        return sections
    names = [s.name for s in tasks.values()]
    by_name = {
        s.name if names.count(s.name) == 1 else s.folders[0]: (s.results, s.plan.chance_error)
        for s in tasks.values()
    }
    tables = sensitivity_table(by_name)
    finding = replace(first.finding, tables=[*first.finding.tables, *tables])
    return [replace(s, finding=finding) if s is first else s for s in sections]


def sensitivity_table(tasks: Mapping[str, tuple[Sequence[Result], float]]) -> list[Table]:
    """What each contender loses by one setting for all of the tasks; none where fewer than two of
    them share enough draws.

    `tasks`: name -> the results there and the error of chance, which a run that failed to learn
    counts as.
    """
    found: dict[tuple[str, str], dict[str, dict[int, tuple[Mapping[str, float], float]]]] = {}
    for task, (results, chance) in tasks.items():
        for r in results:
            if r.error is not None:
                error = chance if r.failed_to_learn else r.error
                cell = found.setdefault((r.contender, r.optim), {}).setdefault(task, {})
                cell[r.draw] = (r.values, error)
    rows = []
    for (contender, optim), by_task in found.items():
        cells = list(by_task.values())
        shared = [
            i
            for i in sorted(set.intersection(*map(set, cells)))
            if all(c[i][0] == cells[0][i][0] for c in cells)
        ]
        if len(cells) < 2 or len(shared) < FEWEST:
            continue
        lost = sensitivity([[cell[i][1] for i in shared] for cell in cells])
        rows.append(
            {
                "contender": contender,
                "optimizer": optim,
                "tasks": ", ".join(by_task),
                "draws": str(len(shared)),
                "lost by one setting for all, points (95 %)": interval_text(lost, digits=2),
            }
        )
    note = (
        "The best of a quarter of the draws, chosen once for all tasks or for each: the "
        "hyperparameter sensitivity of Adkins et al. (arXiv 2412.07165), in points of error. Noise "
        "alone makes it larger than 0, as in the A/A control."
    )
    return [Table.of("Sensitivity to the task", rows, note)] if rows else []
