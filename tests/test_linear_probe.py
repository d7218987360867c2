"""The linear probe before the first step: is it the optimum, and does a run keep the better?"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from vitc.config import RunConfig
from vitc.data.sources.base import Split
from vitc.errors import ConfigError, RunError
from vitc.resolve import load_config
from vitc.runs.folder import Run
from vitc.training import linear_probe, loop
from vitc.training.evaluate import evaluate_run
from vitc.training.loop import run


def config(weights: Path, **settings: Any) -> RunConfig:
    base = RunConfig(name="tuned")
    values = {
        "model": "vit_c_tiny",
        "data": "synthetic",
        "model.img_size": 32,
        "data.workers": 0,
        "init.weights": str(weights),
        "init.probe_images": 10**6,
        "train.epochs": 1,
        "train.batch": 128,
        "train.threads": 1,
        "optim.lr": 1e-4,
        **settings,
    }
    return load_config(base, **values)


def events(folder: Path) -> str:
    return (folder / "events.log").read_text()


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_fit_is_the_minimum_of_the_penalised_loss(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (200,), generator=generator)
    x = torch.randn(200, 6, generator=generator) + F.one_hot(y, 6)
    *_, (last, weight) = linear_probe._fits(x, y, 3, (1.0, penalty))
    assert last == penalty
    weight.requires_grad_(True)
    loss = F.cross_entropy(x @ weight[:, :-1].T + weight[:, -1], y)
    loss = loss + penalty / 2 * weight[:, :-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.norm() < 1e-3
    assert loss < math.log(3)


def test_a_run_starts_from_the_probe_and_keeps_what_is_better_on_validation(
    trained: Path, tmp_path: Path
) -> None:
    gentle = run(config(trained), tmp_path / "gentle", quiet=True)
    text = events(tmp_path / "gentle")
    assert "linear probe on" in text
    assert "kept the fine-tuned weights" in text or "kept the linear probe" in text

    wild = config(trained, **{"optim.lr": 3.0, "optim.weight_decay": 1.0, "optim.clip_norm": 1.0})
    result = run(wild, tmp_path / "wild", quiet=True)
    text = events(tmp_path / "wild")
    assert "kept the linear probe; on validation: the linear probe" in text
    folder = Run(tmp_path / "wild")
    lines = folder.metrics("eval")
    assert lines[-1]["top1"] > lines[-2]["top1"]
    assert lines[-1]["step"] == lines[-2]["step"]
    assert result.top1 == result.summary["top1_raw"] == lines[-1]["top1"]
    assert result.summary["best_of"] == 2
    assert not (tmp_path / "wild" / "checkpoints" / linear_probe.START).exists()
    (last,) = (tmp_path / "wild" / "checkpoints").glob("step_*")
    model, ema = (load_file(last / f"{name}.safetensors") for name in ("model", "ema"))
    assert all(torch.equal(ema[name], tensor) for name, tensor in model.items())
    # What is measured afterwards is what the run reports: both were fp32.
    assert evaluate_run(tmp_path / "wild")["top1"] == pytest.approx(result.top1)
    assert gentle.top1 is not None
    assert result.top1 is not None
    assert gentle.top1 >= result.top1


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights_and_remembers_its_start(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = {"optim.lr": 3.0, "optim.weight_decay": 1.0, "optim.clip_norm": 1.0}
    whole = config(trained, **wild, **{"train.save_every_steps": 1, "train.keep_checkpoints": 1})
    run(whole, tmp_path / "whole", quiet=True)

    step = loop.train_step

    def dies(state: Any, *rest: Any) -> Any:
        if state.step == 2:
            raise RunError("killed")
        return step(state, *rest)

    weights = tmp_path / "weights"
    shutil.copytree(trained, weights)
    init = dataclasses.replace(whole.init, weights=str(weights))
    copy = dataclasses.replace(whole, init=init)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(RunError, match="killed"):
            run(copy, tmp_path / "cut", quiet=True)
    shutil.rmtree(weights)  # a resumed run needs them no more
    run(copy, tmp_path / "cut", quiet=True)
    assert "kept the linear probe" in events(tmp_path / "cut")
    (a,), (b,) = (
        (tmp_path / name / "checkpoints").glob("step_*/model.safetensors")
        for name in ("whole", "cut")
    )
    there, here = load_file(a), load_file(b)
    assert all(torch.equal(there[name], here[name]) for name in there)


def test_fewer_images_are_some_of_each_class(trained: Path, tmp_path: Path) -> None:
    few = config(trained, **{"init.probe_images": 64})
    run(few, tmp_path / "few", quiet=True)
    assert "linear probe on 64 training images" in events(tmp_path / "few")


@pytest.mark.parametrize("count", [4, 9, 200])
def test_a_rare_class_has_a_part_in_the_fit(count: int) -> None:
    labels = np.array([0] * 50 + [1] + [2] * 50 + [3] * 2)
    split = Split(labels, [f"{label}/{i}.png" for i, label in enumerate(labels)])
    chosen = labels[linear_probe._places(split, count, 0)]
    assert len(chosen) == min(count, len(labels))
    assert set(chosen.tolist()) == {0, 1, 2, 3}


def test_a_head_is_fitted_to_one_image_of_each_class_at_least(
    trained: Path, tmp_path: Path
) -> None:
    run(config(trained, **{"init.probe_images": 1}), tmp_path / "one", quiet=True)
    assert "linear probe on 10 training images" in events(tmp_path / "one")


def test_a_probe_needs_weights_and_a_linear_last_layer() -> None:
    with pytest.raises(ConfigError, match=r"probe_images has no effect without init\.weights"):
        load_config("debug", **{"init.probe_images": 5})

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 3, 1)

    with pytest.raises(ConfigError, match="Conv2d"):
        linear_probe.classifier(Odd())
