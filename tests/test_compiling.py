"""Compiled steps: of which parts, when a run takes them, and what happens where they fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vitc.config import RunConfig
from vitc.errors import ConfigError, InterruptedRun
from vitc.models.zoo import create_model
from vitc.resolve import load_config
from vitc.study.bench import bench, bench_config
from vitc.study.contenders import for_study
from vitc.training import compiling
from vitc.training.compiling import CompiledParts, trial
from vitc.training.loop import Trainer, run

CPU = torch.device("cpu")
SMALL = {"data.max_train": 64, "train.batch": 16, "train.epochs": 2, "train.threads": 1}


def tiny(**settings: Any) -> RunConfig:
    return load_config("debug", **{**SMALL, **settings})


def stopped(config: RunConfig, out: Path) -> None:
    """A run that is asked to stop after its third step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_asked", lambda trainer: trainer.state.step >= 3)
        with pytest.raises(InterruptedRun):
            run(config, out, quiet=True)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of compiling: the kinds of what ran "compiled", each time it did."""
    ran: list[str] = []

    def compile_(forward: Any, dynamic: bool) -> Callable[..., Any]:
        assert not dynamic

        def call(*args: Any) -> Any:
            ran.append(type(forward.__self__).__name__)
            return forward(*args)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    return ran


def refuse(forward: Any, dynamic: bool) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise RuntimeError("torch's wrapper") from OSError("no C++ compiler\nand more")

    return call


def events(folder: Path) -> str:
    return (folder / "events.log").read_text()


def test_only_inside_the_context_are_a_vits_stem_and_blocks_compiled(compiled: list[str]) -> None:
    model = create_model("vit_c_tiny", num_classes=10, img_size=32)
    names, images = list(model.state_dict()), torch.zeros(2, 3, 32, 32)
    context = CompiledParts(model)
    for _ in range(2):
        with context:
            model(images)
    depth = len(model.blocks)
    assert compiled == ["ConvStem", *["Block"] * depth] * 2
    model(images)
    assert len(compiled) == 2 * (1 + depth)
    assert list(model.state_dict()) == names


def test_another_model_is_compiled_as_a_whole() -> None:
    model: nn.Module = create_model("resnet_50")
    assert compiling.parts(model) == [model]


@pytest.mark.parametrize(
    ("passes", "least", "compiles", "why"),
    [
        (None, 0, True, "compiling took"),
        (10, 600, False, "does not pay in"),
        (10**9, 600, True, "in all"),
        (1, 0, False, "in all"),
    ],
)
def test_auto_weighs_the_time_saved_in_all_steps_against_that_of_compiling(
    monkeypatch: pytest.MonkeyPatch,
    passes: int | None,
    least: float,
    compiles: bool,
    why: str,
) -> None:
    now = [0.0]
    monkeypatch.setitem(compiling.CLOCKS, "wall", lambda: now[0])
    monkeypatch.setattr(compiling, "LEAST_SECONDS", least)
    first = [30.0]

    def takes(seconds: float) -> Callable[..., torch.Tensor]:
        def loss(*_: object) -> torch.Tensor:
            now[0] += seconds
            return torch.zeros((), requires_grad=True)

        return loss

    class Fast:
        def __init__(self, model: nn.Module) -> None:
            pass

        def __enter__(self) -> None:
            monkeypatch.setattr(compiling, "micro_loss", takes(first.pop() if first else 0.8))

        def __exit__(self, *_: object) -> None:
            monkeypatch.setattr(compiling, "micro_loss", takes(1.0))

    monkeypatch.setattr(compiling, "micro_loss", takes(1.0))
    monkeypatch.setattr(compiling, "CompiledParts", Fast)
    found, reason = trial(tiny(), passes, 10, CPU)
    assert found is compiles
    assert why in reason
    assert bool(first) == (least > 0 and passes == 10)  # too short: nothing was compiled


def test_auto_is_decided_once_saved_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    asked: list[float | None] = []

    def decide(config: RunConfig, passes: float | None, *_: object) -> tuple[bool, str]:
        asked.append(passes)
        return True, "measured in a test"

    monkeypatch.setattr(compiling, "trial", decide)
    out, config = tmp_path / "r", tiny(**{"train.compile": "auto"})
    stopped(config, out)
    assert json.loads((out / "config.json").read_text())["train"]["compile"] is True
    assert "compile true: measured in a test" in events(out)
    assert compiled
    run(config, out, quiet=True)
    assert asked == [2 * 64 / 16, None]  # and then only whether it still works


@pytest.mark.parametrize("asked", ["auto", True])
def test_where_compiling_fails_steps_run_uncompiled_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool | str
) -> None:
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", refuse)
    assert run(tiny(**{"train.compile": asked}), tmp_path / "r", quiet=True).status == "done"
    assert json.loads((tmp_path / "r/config.json").read_text())["train"]["compile"] is False
    (line,) = [line for line in events(tmp_path / "r").splitlines() if "compile" in line]
    assert "compile false: it fails here (no C++ compiler)" in line


def test_a_run_that_is_resumed_where_compiling_fails_is_not_bit_exact_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    out, config = tmp_path / "r", tiny(**{"train.compile": True})
    stopped(config, out)
    monkeypatch.setattr(torch, "compile", refuse)
    assert run(config, out, quiet=True).status == "done"
    assert "(no C++ compiler); not bit-exact from here" in events(out)


def test_trials_of_a_study_are_compiled_only_if_that_is_asked_for() -> None:
    for asked, found in (("auto", False), (True, True), (False, False)):
        assert for_study(tiny(**{"train.compile": asked})).train.compile is found


def test_a_benchmark_never_times_other_steps_than_those_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", refuse)
    small = {"model.img_size": 32, "train.batch": 2, "train.device": "cpu"}
    for asked, message in (("auto", "true or false"), (True, "no C\\+\\+ compiler")):
        with pytest.raises(ConfigError) as error:
            bench(bench_config("vit_c_tiny", **small, **{"train.compile": asked}), 0, 1, 10)
        assert error.match(message) or message in str(error.value.hint)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler hides some of its own in another way
def test_a_compiled_run_resumes_bit_exactly_and_learns_what_another_does(tmp_path: Path) -> None:
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        step = (folder / "checkpoints" / "latest").read_text().strip()
        return load_file(folder / "checkpoints" / step / "model.safetensors")

    config = tiny(**{"train.compile": True, "model.drop_path_rate": 0.1})
    run(config, tmp_path / "whole", quiet=True)
    assert "compile true" in events(tmp_path / "whole")
    stopped(config, tmp_path / "resumed")
    torch.compiler.reset()  # as in another process
    run(config, tmp_path / "resumed", quiet=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    run(load_config(config, **{"train.compile": False}), tmp_path / "eager", quiet=True)
    for name, value in weights(tmp_path / "eager").items():
        torch.testing.assert_close(whole[name], value, rtol=0.05, atol=0.01)
