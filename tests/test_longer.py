"""A finished run trained longer: a run of its own beside it, with a schedule of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vitc
from vitc.cli.main import main
from vitc.config import read_config
from vitc.deploy.front_door import plan_training
from vitc.errors import ConfigError
from vitc.training.auto_rules import PAGE_SECONDS, TRAINED_SHARE
from vitc.training.longer import next_folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of one epoch of 1,000 images at most, of which a test may change files."""
    shutil.copytree(trained, tmp_path / "first")
    return tmp_path / "first"


def test_it_starts_from_the_average_with_a_warm_up_to_a_share_of_the_first_peak(
    run: Path, tmp_path: Path
) -> None:
    before = read_config(run)
    result = vitc.train(run, **{"train.epochs": 2, "train.log_every_steps": 1})
    config = read_config(result.path)
    assert (result.status, result.path) == ("done", tmp_path / "first_2")
    assert config.init.weights == str(run)
    assert config.optim.lr == pytest.approx(TRAINED_SHARE * before.optim.lr)
    assert config.optim.schedule.warmup(2) == pytest.approx(0.2)
    assert (config.model, config.data.path, config.train.epochs) == (before.model, None, 2)
    events = (result.path / "events.log").read_text()
    assert f"start: {run} — because it is trained longer" in events
    assert "length: 2 epochs more" in events
    lines = (result.path / "metrics.jsonl").read_text().splitlines()
    rates = [m["lr"] for m in map(json.loads, lines) if m["kind"] == "train"]
    assert rates[0] < max(rates) <= config.optim.lr
    assert rates[-1] < 0.5 * max(rates)
    assert read_config(run) == before  # the first one is as it was


def test_a_budget_is_planned_by_the_time_that_an_epoch_took(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"train_seconds": 30.0}
    (run / "summary.json").write_text(json.dumps(summary))
    plan = plan_training(run, None, 600.0, {})
    assert plan.config.train.epochs == 20
    assert plan.config.train.budget_seconds == 600 - PAGE_SECONDS
    again = plan_training(run, None, 600.0, {})
    assert again.config == plan.config  # so that the same command resumes it
    del summary["train_seconds"]
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="How long an epoch"):
        plan_training(run, None, 600.0, {})


def test_the_users_settings_are_kept(run: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"optim.lr": 0.5, "train.epochs": 7, "train.seed": 3}
    plan = plan_training(run, tmp_path / "x", None, own)
    assert plan.out == tmp_path / "x"
    assert (plan.config.optim.lr, plan.config.train.epochs, plan.config.train.seed) == (0.5, 7, 3)


@pytest.mark.parametrize("setting", [{"model": "vit_c_mini"}, {"data": "fashion"}, {"init": "x"}])
def test_another_model_or_other_images_are_not_more_of_the_same(
    setting: dict[str, Any], run: Path
) -> None:
    with pytest.raises(ConfigError, match="trained longer with its own model and images"):
        plan_training(run, None, None, {"train.epochs": 3, **setting})


def test_a_run_that_has_not_finished_is_resumed_first(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "summary.json").unlink()
    assert main(["train", str(run), "--budget", "1m"]) == 2
    assert f"Resume it first: vitc train {run}" in capsys.readouterr().err


def test_a_finished_run_names_the_way_to_train_it_longer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(run)]) == 2
    assert f"Train it longer: vitc train {run} --train.epochs N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "following"), [("a", "a_2"), ("a_2", "a_3"), ("a_09", "a_09_2"), ("_5", "_5_2")]
)
def test_folders_are_numbered(name: str, following: str) -> None:
    assert next_folder(Path("runs", name)) == Path("runs", following)
