"""The same draws in several tasks, and how many of them reach a target: tables of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.invented import invent
from vitc.study.analysis import analyse
from vitc.study.design import Trial
from vitc.study.measures.hparams import hparams_plan
from vitc.study.study_folder import StudyFolder

SETTINGS: dict[str, Any] = {"train.precision": "fp32", "data.max_train": 128, "train.batch": 32}


def made(folder: Path, epochs: int, draws: int = 16, curves: bool = False, **words: Any) -> Path:
    """A study whose best learning rate is the lower the longer it trains; one in eight fails."""
    plan = hparams_plan(
        ["debug"],
        ["vit_c_tiny", "vit_p_tiny"],
        ["adamw"],
        draws=draws,
        reference="vit_p_tiny",
        control=True,
        name=folder.name,
        **{**SETTINGS, "train.epochs": epochs, "train.eval_every_epochs": epochs, **words},
    )
    ranges = plan.ranges["adamw"]["optim.lr"]

    def error(trial: Trial) -> float | None:
        if trial.draw % 8 == 7:
            return None
        x = np.log2(trial.values["optim.lr"] / ranges.low)
        return float(30 + 2 * (x - (3 if epochs == 2 else 1.5)) ** 2 + trial.draw % 3)

    invent(StudyFolder(folder), plan, error, curves=curves)
    return folder


def titles(tables: list[Any]) -> list[str]:
    return [t.title for t in tables]


def test_studies_of_several_tasks_on_the_same_draws_show_what_one_setting_costs(
    tmp_path: Path,
) -> None:
    sections = analyse([made(tmp_path / "short", 2), made(tmp_path / "long", 4)])
    (table,) = [t for t in sections[0].finding.tables if t.title == "Sensitivity to the task"]
    assert [row[0] for row in table.rows] == ["vit_c_tiny", "vit_p_tiny", "vit_p_tiny again"]
    assert {row[2] for row in table.rows} == {"short, long"}
    assert {row[3] for row in table.rows} == {"16"}
    assert all(float(row[4].split()[0]) > 0 for row in table.rows)
    assert "Sensitivity to the task" not in titles(sections[1].finding.tables)


@pytest.mark.parametrize(
    ("draws", "seed"), [(15, 0), (16, 1)], ids=["too few draws", "other draws"]
)
def test_without_enough_shared_draws_there_is_no_such_table(
    draws: int, seed: int, tmp_path: Path
) -> None:
    folders = [made(tmp_path / "a", 2, draws), made(tmp_path / "b", 4, draws, seed=seed)]
    for section in analyse(folders):
        assert "Sensitivity to the task" not in titles(section.finding.tables)


def test_draws_that_reach_the_references_median_error_are_counted_by_epoch(tmp_path: Path) -> None:
    (section,) = analyse([made(tmp_path / "s", 2, curves=True)])
    (table,) = [t for t in section.finding.tables if "reach the reference" in t.title]
    assert table.head[4:] == ["by epoch 1, %", "by epoch 2, %"]
    values = section.finding.values["time_to_target"]
    assert [v["contender"] for v in values] == ["vit_c_tiny", "vit_p_tiny", "vit_p_tiny again"]
    shares = [s["estimate"] for s in values[1]["shares"]]
    assert shares[0] <= shares[1]
    assert table.rows[1][3] == "16", "those that diverged are counted, and reach nothing"


def test_runs_that_were_evaluated_once_have_no_such_table(tmp_path: Path) -> None:
    (section,) = analyse([made(tmp_path / "s", 2)])
    assert section.finding.values["time_to_target"] == []
    assert not [t for t in section.finding.tables if "reach the reference" in t.title]
