"""A finished run trained longer: a run of its own beside it, with a schedule of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vitc
from vitc.cli.main import main
from vitc.config import read_config, to_saved
from vitc.data.dataset import open_data
from vitc.deploy.front_door import plan_training
from vitc.errors import ConfigError
from vitc.runs.folder import Run
from vitc.training import longer
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
    summary["time_spent"]["evaluation"] = 2.0 * len(Run(run).metrics("eval"))
    summary |= {"train_seconds": 30.0}
    (run / "summary.json").write_text(json.dumps(summary))
    plan = plan_training(run, None, 600.0, {})
    assert plan.config.train.epochs == 20
    assert plan.config.train.budget_seconds == 600 - PAGE_SECONDS - 2  # for one of them
    again = plan_training(run, None, 600.0, {})
    assert again.config == plan.config  # so that the same command resumes it
    del summary["train_seconds"]
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="How long an epoch"):
        plan_training(run, None, 600.0, {})


def _change(file: Path, **parts: dict[str, Any]) -> None:
    values = json.loads(file.read_text())
    for name, part in parts.items():
        values[name] = values.get(name, {}) | part
    file.write_text(json.dumps(values))


@pytest.fixture
def short(photo_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A finished run of one step on 16 of 48 photos, as a short budget chooses it."""
    settings: dict[str, Any] = {
        "data.path": str(photo_folder(count=20)),
        "data.max_train": 16,
        "data.val_fraction": 0.2,
        "data.test_fraction": 0.0,
        "model.img_size": 32,
        "train.batch": 16,
        "train.epochs": 1,
        "train.budget_seconds": 0.1,
    }
    result = vitc.train("cifar10_vit_c", tmp_path / "short", **settings, data="folder")
    assert result.status == "done"
    return result.path


def test_images_left_out_for_want_of_time_are_trained_on_with_the_same_validation(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_training(short, None, None, {"train.epochs": 2})
    assert plan.config.data == replace(read_config(short).data, max_train=None)
    assert any(
        line.startswith("training images used: all 48 — because the 16 of") for line in plan.notes
    )
    splits = [open_data(c.data, 3).splits for c in (read_config(short), plan.config)]
    assert list(splits[0]["val"].names) == list(splits[1]["val"].names)
    assert set(splits[0]["train"].names) < set(splits[1]["train"].names)
    own = plan_training(short, None, None, {"train.epochs": 2, "data.max_train": 20})
    assert own.config.data.max_train == 20
    # No more of them than a third of the time is enough to decode.
    _change(short / "config.json", data={"cache_side": 24, "workers": 1})
    monkeypatch.setattr(longer, "decoding_seconds", lambda *_, **__: 0.1)
    plan = plan_training(short, None, 9.0, {})
    assert plan.config.data.max_train == 30
    assert any(line.startswith("training images used: 30 — ") for line in plan.notes)
    plan.out.mkdir()
    (plan.out / "config.json").write_text(json.dumps(to_saved(plan.config)))
    monkeypatch.setattr(longer, "decoding_seconds", lambda *_, **__: 0.05)
    assert plan_training(short, None, 9.0, {}).config == plan.config  # which resumes it
    other = plan_training(short, short.parent / "other", 9.0, {})
    assert other.config.data.max_train is None
    (short.parent / "other").mkdir()
    (short.parent / "other" / "config.json").write_text(json.dumps(to_saved(plan.config)))
    again = plan_training(short, short.parent / "other", 9.0, {})
    assert (again.config, again.out) == (plan.config, short.parent / "other")


@pytest.mark.parametrize("limit", [30, None])
def test_a_run_named_by_a_relative_path_is_resumed_with_the_images_that_it_began_with(
    short: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    _change(short / "config.json", data={"cache_side": 24, "workers": 1})
    monkeypatch.chdir(short.parent)
    seconds = {30: 0.1, None: 0.001}
    monkeypatch.setattr(longer, "decoding_seconds", lambda *_, **__: seconds[limit])
    plan = plan_training(Path("short"), None, 9.0, {})
    assert plan.config.data.max_train == limit
    plan.out.mkdir()
    (plan.out / "config.json").write_text(json.dumps(to_saved(plan.config)))
    for other in (0.05, 0.11, 0.2):  # what decoding takes now
        monkeypatch.setattr(longer, "decoding_seconds", lambda *_, other=other, **__: other)
        for name in (Path("short"), short, Path("../", short.parent.name, "short")):
            assert plan_training(name, plan.out, 9.0, {}).config == plan.config


def test_the_peak_is_lowered_for_trained_weights_once(run: Path) -> None:
    peak = read_config(run).optim.lr
    rates = []
    for init in ({}, {"weights": "x.safetensors"}, {"weights": "x.safetensors", "only": ["stem"]}):
        _change(run / "config.json", init=init)
        plan = plan_training(run, None, None, {"train.epochs": 2})
        rates.append(plan.config.optim.lr / peak)
        note = next(line for line in plan.notes if line.startswith("peak learning rate"))
        assert ("for trained weights, too" in note) == (init == {"weights": "x.safetensors"})
    # The only part of the third that was trained before is its stem.
    assert rates == pytest.approx([TRAINED_SHARE, 1.0, TRAINED_SHARE])


def test_a_rate_that_changes_once_an_epoch_warms_up_from_above_zero(run: Path) -> None:
    own = {"per": "epoch", "warmup_start": 0.0, "warmup_epochs": 0.0}
    _change(run / "config.json", optim={"schedule": {"kind": "cosine", **own}})
    schedule = plan_training(run, None, None, {"train.epochs": 20}).config.optim.schedule
    assert (schedule.per, schedule.warmup_start, schedule.warmup(20)) == ("epoch", 0.1, 2.0)
    _change(run / "config.json", optim={"schedule": {"kind": "cosine", **own, "per": "step"}})
    schedule = plan_training(run, None, None, {"train.epochs": 20}).config.optim.schedule
    assert (schedule.per, schedule.warmup_start) == ("step", 0.0)


def test_a_run_is_trained_longer_from_inside_its_folder(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short)
    assert next_folder(Path(".")) == short.with_name("short_2")
    assert next_folder(Path("../short")) == Path("../short_2")


def test_a_limit_of_a_run_without_a_time_is_kept_and_noted(short: Path) -> None:
    _change(short / "config.json", train={"budget_seconds": None})
    plan = plan_training(short, None, None, {"train.epochs": 2})
    assert plan.config.data.max_train == 16
    assert any(line.startswith("training images used: 16 — because") for line in plan.notes)


def test_evaluations_take_a_tenth_of_the_time_at_most(run: Path) -> None:
    spent = {"steps": 2.0, "loading": 0.0, "evaluation": 6.0, "preparing": 30.0}
    _change(run / "summary.json", time_spent=spent)
    summary = json.loads((run / "summary.json").read_text()) | {"train_seconds": 31.0}
    (run / "summary.json").write_text(json.dumps(summary))
    plan = plan_training(run, None, 600.0, {})
    assert plan.config.train.epochs == 300  # decoding took most of the 31 seconds
    assert plan.config.train.eval_every_epochs == 30
    assert "epochs between evaluations: 30 — because one takes 6 s" in plan.notes
    plan = plan_training(run, None, 600.0, {"train.eval_every_epochs": 7})
    assert plan.config.train.eval_every_epochs == 7


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
