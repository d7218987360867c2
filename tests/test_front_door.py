"""`vitc.train` and `vitc train`: from images to a run with its page, and what a reader is shown."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitc
import vitc.training.auto as auto
from vitc.config import RunConfig
from vitc.deploy import front_door
from vitc.errors import ConfigError, InterruptedRun
from vitc.resolve import load_config
from vitc.runs.folder import Run
from vitc.training import auto_rules
from vitc.training.probe import Probe
from vitc.training.validate import Validation

SMALL: dict[str, Any] = {
    "model.img_size": 32,
    "train.epochs": 2,
    "train.batch": 8,
    "train.threads": 1,
    "train.device": "cpu",
    "data.workers": 0,
    "optim.lr": 1e-3,
}
SCRIPT = """
import vitc
result = vitc.train("photos", out="run", model="vit_c_tiny", **{
    "model.img_size": 32, "train.epochs": 1, "train.batch": 8, "data.workers": 2,
    "train.threads": 1, "train.precision": "fp32", "train.channels_last": False})
print(result.status, result.report)
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes in train, val and test."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 16, "val": 6, "test": 5}.items():
        for c in range(2):
            folder = tmp_path / "photos" / split / f"class_{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (40, 40, 3)).astype(np.uint8)
                pixels[..., c] += np.uint8(100)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path / "photos"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The choice of settings is replaced by small ones; returns what it was asked for."""
    calls: list[Any] = []

    def propose(
        folder: Path, budget: float | None, settings: Any, start: str, world: int
    ) -> auto.Proposal:
        calls.append((folder, budget, dict(settings)))
        own = {**SMALL, "model": "vit_c_tiny", **settings}
        config = load_config(RunConfig(name="photos"), data=str(folder), **own)
        return auto.Proposal(config, ["model: small — because few"], 5.0, 10**6)

    monkeypatch.setattr(auto, "propose", propose)
    return calls


def test_images_are_trained_on_and_evaluated_and_the_page_is_there(
    images: Path, asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = vitc.train(
        images, out, budget="6 min", train={"seed": 3}, **{"model.img_size": [32, 32]}
    )
    assert asked == [(images, 360.0, {"train.seed": 3, "model.img_size": (32, 32)})]
    assert (result.status, result.path, result.report) == ("done", out, out / "report.html")
    assert result.evaluation.to_dict() == vitc.evaluate(out).to_dict()
    assert (result.evaluation.top1, result.evaluation.n) == (result.top1, 12)
    assert "model: small — because few" in capsys.readouterr().err
    assert "model: small — because few" in (out / "events.log").read_text()


def test_the_time_for_choosing_settings_is_the_runs_and_a_resumed_run_keeps_it(
    images: Path, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose, out = auto.propose, tmp_path / "run"

    def slow(*asked: Any) -> auto.Proposal:
        time.sleep(0.5)
        return propose(*asked)

    def stop(self: Validation, provider: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(auto, "propose", slow)
    with monkeypatch.context() as stopping:
        stopping.setattr(Validation, "measure", stop)
        with pytest.raises(InterruptedRun):
            vitc.train(images, out)
    before = Run(out).summary["time_spent"]
    assert before["choosing"] >= 0.5
    result = vitc.train(images, out)
    spent = result.summary["time_spent"]
    assert spent["choosing"] == before["choosing"]
    assert spent["preparing"] > before["preparing"]
    assert result.report is not None
    assert "choosing settings" in result.report.read_text()
    assert len(asked) == 1
    own = vitc.train("debug", tmp_path / "other", data=str(images), model="vit_c_tiny", **SMALL)
    assert "choosing" not in own.summary["time_spent"]
    assert own.report is not None
    assert "choosing settings" not in own.report.read_text()


def test_test_images_are_left_to_the_run_that_is_chosen(
    images: Path, asked: list[Any], tmp_path: Path
) -> None:
    vitc.train(images, tmp_path / "run")
    own = vitc.train("debug", tmp_path / "other", data=str(images), model="vit_c_tiny", **SMALL)
    assert own.report == tmp_path / "other" / "report.html"
    assert not list(tmp_path.glob("*/test.json"))


def test_a_finished_run_is_not_trained_again_unless_it_is_discarded(
    images: Path, asked: list[Any], tmp_path: Path
) -> None:
    vitc.train(images, tmp_path / "run")
    with pytest.raises(ConfigError, match="finished"):
        vitc.train(images, tmp_path / "run")
    assert len(asked) == 1
    assert vitc.train(images, tmp_path / "run", overwrite=True).status == "done"
    assert len(asked) == 2


def test_a_run_whose_page_cannot_be_written_is_a_finished_run(
    images: Path, asked: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    plan = front_door.plan_training(images, tmp_path / "run", None, {})
    from vitc.training.loop import run

    result = run(plan.config, plan.out, quiet=True)
    (plan.out / "report.html").mkdir()  # no file can be put there
    assert front_door._with_page(plan, result) == result
    assert "There is no run page: " in caplog.text


def test_a_misspelt_argument_is_named_with_the_one_that_was_meant(
    images: Path, asked: list[Any]
) -> None:
    with pytest.raises(ConfigError, match=r"Unknown argument 'budgt'\. Did you mean 'budget'"):
        vitc.train(images, budgt="5m")
    assert not asked


def test_a_place_for_the_run_that_is_taken_is_refused_before_settings_are_chosen(
    images: Path, tmp_path: Path, asked: list[Any]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine")
    for place, words in (("notes", "not empty"), ("notes/todo.txt", "cannot be made")):
        with pytest.raises(ConfigError, match=words):
            vitc.train(images, out=tmp_path / place)
    assert not asked


@pytest.mark.parametrize("budget", ["6", "soon", 0])
def test_a_budget_that_is_no_time_is_refused_at_once(
    budget: Any, images: Path, asked: list[Any]
) -> None:
    with pytest.raises(ConfigError, match="must be a time such as 90s"):
        vitc.train(images, budget=budget)
    assert not asked


def test_a_budget_is_for_images_alone() -> None:
    with pytest.raises(ConfigError, match="debug is not a folder of images"):
        vitc.train("debug", budget="6m")


def test_time_for_the_page_is_kept_free() -> None:
    cost = Probe(1.0, 0.5, 0, holding_seconds=7.0)
    assert auto_rules.page_seconds(12, cost) == auto_rules.PAGE_SECONDS + 12 * 0.5 + 7


@pytest.mark.slow
def test_a_script_needs_no_main_guard(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    photo_folder(classes=2, count=30)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done run/report.html\n"), done.stderr


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "/tmp/elsewhere", "..", "a\\b", "a\x1b[2Jb", ""]
)
def test_a_config_names_no_place_outside_runs(name: str, tmp_path: Path) -> None:
    config = dataclasses.replace(load_config("debug"), name=name)
    with pytest.raises(ConfigError, match="not that of a folder"):
        front_door.plan_training(config, None, None, {})
    assert front_door.plan_training(config, tmp_path, None, {}).out == tmp_path
