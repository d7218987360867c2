"""train.patience: a run ends after evaluations no better, and keeps the best, marked as chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitc
from vitc.config import RunConfig
from vitc.deploy.card import results_of
from vitc.deploy.live import one_line
from vitc.deploy.show_run import run_page
from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.runs.checkpoint import TrainState, load_weights_of
from vitc.runs.folder import BEST
from vitc.training.best import forget_undone, keep_if_best
from vitc.training.log import RunLog
from vitc.training.loop import run
from vitc.training.parallel import Processes
from vitc.training.validate import Validation

SCORES = {1: 10.0, 2: 30.0, 3: 20.0, 4: 30.0, 5: 90.0, 6: 95.0}  # top1 by epoch
Weights = dict[int, dict[str, Tensor]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Evaluations give SCORES; returns the weights at each."""
    weights: Weights = {}
    real = Validation.measure

    def measure(self: Validation, provider: Any) -> dict[str, Any]:
        state, before = self.state, dict(self.state.best)
        line = real(self, provider)
        line["top1"] = SCORES[line["epoch"]]
        better = line["top1"] > before.get("top1", -1.0)
        best = {"top1": line["top1"], "epoch": line["epoch"], "step": state.step}
        state.best = best if better else before
        state.last_eval = {k: v for k, v in line.items() if k != "kind"}
        weights[line["epoch"]] = {k: v.clone() for k, v in state.model.state_dict().items()}
        return line

    monkeypatch.setattr(Validation, "measure", measure)
    return weights


def config(**more: Any) -> RunConfig:
    settings: dict[str, Any] = {"model": "vit_c_tiny", "data": "synthetic"}
    settings |= {"train.epochs": 6, "train.batch": 128, "train.threads": 1, "data.workers": 0}
    settings |= {
        "data.max_train": 256,
        "model.img_size": 32,
        "optim.lr": 1e-3,
        "train.device": "cpu",
    }
    return load_config(RunConfig(), **settings | more)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a.keys() | b.keys())


def test_it_ends_and_keeps_the_best_which_is_marked(seen: Weights, tmp_path: Path) -> None:
    result = run(config(**{"train.patience": 2}), tmp_path / "run", quiet=True)
    assert list(seen) == [1, 2, 3, 4]
    assert (result.top1, result.summary["best_of"]) == (30.0, 4)
    assert same(load_weights_of(tmp_path / "run", ema=False), seen[2])
    assert not same(seen[2], seen[4])
    events = (tmp_path / "run" / "events.log").read_text()
    assert (
        "stopped after epoch 4 of 6: 2 evaluations no better than 30.00 % after epoch 2" in events
    )
    assert "was chosen there and is a little too good" in events
    notes = vitc.evaluate(tmp_path / "run").notes
    assert any("best of 4 evaluations on these validation images" in note for note in notes)
    assert not any("best of" in n for n in vitc.evaluate(tmp_path / "run", split="test").notes)
    results = results_of(tmp_path / "run", "ema")
    assert results is not None
    assert (results["top1"], results["step"], results["best_of"]) == (30.0, 4, 4)
    card = (vitc.save_pretrained(tmp_path / "run", tmp_path / "saved") / "README.md").read_text()
    assert "after epoch 2 (step 4), the best of 4 evaluations on these images" in card
    assert "after the last epoch" not in card
    assert "top1 30.00 %" in one_line(tmp_path / "run", run_page(tmp_path / "run"))


def test_without_an_early_stop_the_best_is_kept_too(seen: Weights, tmp_path: Path) -> None:
    result = run(config(**{"train.patience": 5}), tmp_path / "run", quiet=True)
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    assert (result.top1, result.summary["best_of"]) == (95.0, 6)


def test_a_run_that_ended_early_and_was_killed_before_its_summary_takes_no_further_step(
    seen: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "close", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config(**{"train.patience": 2}), tmp_path / "run", quiet=True)
    result = run(config(**{"train.patience": 2}), tmp_path / "run", quiet=True)
    assert list(seen) == [1, 2, 3, 4]
    assert (result.top1, result.summary["step"]) == (30.0, 8)


def test_the_best_is_of_a_step_and_of_what_a_rollback_left(tmp_path: Path) -> None:
    model = vitc.create_model("vit_c_tiny", num_classes=2)
    state = TrainState(model, torch.optim.SGD(model.parameters()))
    state.step, state.best = 10, {"top1": 40.0, "epoch": 1, "step": 10}
    state.last_eval = {"top1": 40.0, "epoch": 1, "step": 10}
    keep_if_best(tmp_path, state, dict(state.last_eval))
    worse = {"top1": 30.0, "epoch": 1, "step": 12}  # at the end of the run's time
    state.last_eval, kept = worse, (tmp_path / BEST).read_bytes()
    keep_if_best(tmp_path, state, worse)
    assert (tmp_path / BEST).read_bytes() == kept
    forget_undone(tmp_path, state, Processes())
    assert (tmp_path / BEST).exists()
    state.step = 5
    forget_undone(tmp_path, state, Processes())
    assert not (tmp_path / BEST).exists()
    assert state.best == {}


@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    seen: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(**{"train.patience": 2, "train.save_every_steps": 3})
    whole = run(settings, tmp_path / "whole", quiet=True)
    measure: Callable[..., dict[str, Any]] = Validation.measure

    def killed(self: Validation, provider: Any) -> dict[str, Any]:
        if self.state.step // self.setup.steps_per_epoch == 3:
            raise KeyboardInterrupt
        return measure(self, provider)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "run", quiet=True)
    again = run(settings, tmp_path / "run", quiet=True)
    assert (again.top1, again.summary["step"]) == (whole.top1, whole.summary["step"])
    for ema in (False, True):
        weights = [load_weights_of(tmp_path / name, ema=ema) for name in ("whole", "run")]
        assert same(*weights)


def test_kept_weights_are_removed_with_a_discarded_run_and_at_the_end(tmp_path: Path) -> None:
    run(config(**{"train.patience": 1, "train.epochs": 1}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoints" / BEST).exists()
    (tmp_path / "run" / "checkpoints" / BEST).write_bytes(b"of a run that was killed")
    run(config(**{"train.epochs": 1}), tmp_path / "run", overwrite=True, quiet=True)
    assert not (tmp_path / "run" / "checkpoints" / BEST).exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best_of"] is None


def test_patience_needs_validation_images(
    photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = photo_folder(2, 80)
    with pytest.raises(ConfigError, match=r"train\.patience 2 needs validation images"):
        run(
            config(**{"train.patience": 2, "data.val_fraction": 0.0, "data": str(folder)}),
            tmp_path / "run",
            quiet=True,
        )
