"""A population is its single runs: the same weights, numbers and folders, trained together."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitc.config import RunConfig, load_config
from vitc.data.loader import TrainLoader
from vitc.data.resident import Resident
from vitc.data.sampling import requests
from vitc.data.sources import DataSet, open_data
from vitc.errors import ConfigError, DivergedError, InterruptedRun, RunError
from vitc.models.vit import Attention, Mlp
from vitc.optim.ema import build_ema
from vitc.optim.schedule import ema_alpha, lr_at
from vitc.train.build import batch_plan, fresh_state, step_settings
from vitc.train.device import Processes
from vitc.train.evaluate import evaluate_run, load_model
from vitc.train.freeze import train_mode
from vitc.train.loop import run
from vitc.train.population import held_images, population_problems, run_population
from vitc.train.population_probe import population_pays
from vitc.train.runlog import read_metrics, read_summary
from vitc.train.stack import Stack
from vitc.train.stack_batches import StackedBatches
from vitc.train.state import TrainState, load_weights_of
from vitc.train.step import NormStatistics, train_step

CPU = torch.device("cpu")
STEPS = 20
BASE: dict[str, Any] = {
    "train.batch": 8, "train.epochs": 1, "train.device": "cpu", "train.threads": 1,
    "model.depth": 2, "train.precision": "fp32",
}  # fmt: skip
MIXED = {"data.augment.mixup_alpha": 0.8, "data.augment.cutmix_alpha": 1.0}


def config_of(model: str = "vit_c_tiny", optim: str = "adamw", **settings: Any) -> RunConfig:
    return load_config("debug", model=model, optim=optim, **{**BASE, **settings})


class InDouble(nn.Module):
    """A float64 model fed with the float32 images that a step makes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, *extra: Tensor) -> Tensor:
        out: Tensor = self.model(images.double(), *extra)
        return out


def double_state(config: RunConfig, data: DataSet, epoch: int) -> TrainState:
    """A fresh state in float64, with an average of its own: it keeps the tensors it began with."""
    state = fresh_state(config, len(data.classes), epoch, CPU)
    state.model.double()
    t, optim = config.train, config.optim
    state.ema = build_ema(
        state.model, optim.ema, optim.schedule, epochs=t.epochs, steps_per_epoch=epoch,
        batch=t.batch,
    )  # fmt: skip
    return state


def in_double(config: RunConfig, data: DataSet, epoch: int) -> TrainState:
    """Float64 weights that are nowhere special: a fresh head and biases are zero."""
    state = double_state(config, data, epoch)
    generator = torch.Generator().manual_seed(config.train.seed)
    with torch.no_grad():
        for p in state.model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    if state.ema is not None:
        state.ema.load_state_dict(state.model.state_dict())
    return state


def lr_of(config: RunConfig, step: int, epoch: int) -> float:
    optim, t = config.optim, config.train
    return lr_at(
        step, peak=optim.peak_lr(t.batch), schedule=optim.schedule, epochs=t.epochs,
        steps_per_epoch=epoch,
    )  # fmt: skip


def alone(
    config: RunConfig, data: DataSet, held: Resident, epoch: int, steps: int = STEPS
) -> tuple[TrainState, list[tuple[float, float]]]:
    """`steps` steps of a single run, by `train_step`."""
    state = in_double(config, data, epoch)
    plan = batch_plan(config, Processes())
    settings = step_settings(config, CPU, Processes(), data.mean, data.std, len(data.classes))
    asked = requests(plan, config.data, held.split.labels, 0, steps)
    loader = TrainLoader(
        split=held.split, config=config.data, plan=plan, device=CPU, steps=range(steps),
        steps_per_epoch=epoch, fetched=held.fetch(asked, config.data, plan), note="",
    )  # fmt: skip
    train_mode(state.model)
    norms = NormStatistics(state.model, plan.micros_here, Processes())
    outcomes = []
    for micros in loader:
        lr = lr_of(config, state.step, epoch)
        loss, norm = train_step(state, InDouble(state.model), micros, lr, norms, settings)
        state.step += 1
        if state.ema is not None:
            state.ema.update(state.model, state.step)
        outcomes.append((float(loss), float(norm)))
    return state, outcomes


def together(
    configs: Sequence[RunConfig], data: DataSet, held: Resident, epoch: int, steps: int = STEPS
) -> tuple[Stack, Tensor]:
    """`steps` steps of a population; float64 (steps, 2, M) losses and gradient norms."""
    stack = Stack([in_double(c, data, epoch) for c in configs], [c.optim for c in configs], CPU)
    settings = step_settings(configs[0], CPU, Processes(), data.mean, data.std, len(data.classes))
    plans = [batch_plan(c, Processes()) for c in configs]
    outcomes = []
    for step, micros in enumerate(
        StackedBatches(held, configs[0].data, plans, settings, range(steps))
    ):
        outcomes.append(stack.step(micros, [lr_of(c, step, epoch) for c in configs]))
        stack.update_average([alpha_of(c, step + 1, epoch) for c in configs])
    return stack, torch.stack(outcomes)


def alpha_of(config: RunConfig, step: int, epoch: int) -> float:
    optim, t = config.optim, config.train
    return ema_alpha(
        step, optim.ema, optim.schedule, epochs=t.epochs, steps_per_epoch=epoch, batch=t.batch
    )


def opened(config: RunConfig) -> tuple[DataSet, Resident, int]:
    data = open_data(config.data, config.model.in_chans)
    held, epoch = held_images(config, data, CPU)
    return data, held, epoch


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    """Weights, statistics, average and optimizer state by name."""
    found = {f"model/{n}": t for n, t in state.model.state_dict().items()}
    if state.ema is not None:
        found |= {f"ema/{n}": t for n, t in state.ema.state_dict().items()}
    for name, p in state.model.named_parameters():
        for key, value in state.optimizer.state.get(p, {}).items():
            found[f"{key}/{name}"] = value
    return found


def assert_equal_states(
    got: TrainState, expected: TrainState, rtol: float = 1e-6, atol: float = 1e-12
) -> None:
    mine, theirs = tensors_of(got), tensors_of(expected)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        # A fused optimizer keeps its float64 state, as we do, and its steps in float32.
        torch.testing.assert_close(mine[name], value, rtol=rtol, atol=atol, msg=name)


VARIED: dict[str, list[dict[str, Any]]] = {
    "adamw": [
        {"optim.lr": 1e-3, "optim.weight_decay": 0.3, "train.seed": 3},
        {"optim.lr": 4e-3, "optim.weight_decay": 0.0, "train.seed": 4, "optim.betas": [0.8, 0.95]},
        {"optim.lr": 3e-4, "optim.weight_decay": 0.1, "train.seed": 5, "optim.clip_norm": 0.3,
         "train.epochs": 2},
    ],
    "sgd": [
        {"optim.lr": 0.05, "optim.weight_decay": 1e-3, "train.seed": 3},
        {"optim.lr": 0.01, "optim.weight_decay": 0.0, "train.seed": 4, "optim.momentum": 0.5},
        {"optim.lr": 0.1, "optim.weight_decay": 1e-4, "train.seed": 5, "optim.clip_norm": 0.3,
         "train.epochs": 2},
    ],
}  # fmt: skip


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
@pytest.mark.parametrize("model", ["vit_p_tiny", "vit_c_tiny"])
def test_twenty_steps_equal_those_of_single_runs(model: str, optim: str) -> None:
    """Own lr, decay, momentum, clipping, length, weights, order, cuts and mixing: float64."""
    common = {**MIXED, "model.drop_path_rate": 0.2, "data.augment.flip": 0.5}
    configs = [config_of(model, optim, **common, **own) for own in VARIED[optim]]
    data, held, epoch = opened(configs[0])
    stack, outcomes = together(configs, data, held, epoch)
    for m, config in enumerate(configs):
        expected, losses = alone(config, data, held, epoch)
        torch.testing.assert_close(
            outcomes[:, :, m], torch.tensor(losses, dtype=torch.float64), rtol=2e-6, atol=0
        )  # a single run's loss is kept in float32
        got = double_state(config, data, epoch)
        stack.give(m, got)
        assert_equal_states(got, expected)


@pytest.mark.parametrize("settings", [
    {"optim.layer_decay": 0.7},
    {"train.freeze": ("stem", "blocks.0")},
    {"optim.ema.kind": "none", "optim.nesterov": False},
    {"train.micro_batch": 4},
    {"data.augment.mix_per": "sample", **MIXED},
    {"data.augment.erase": 0.5, "data.augment.lighting": 0.1},
])  # fmt: skip
def test_what_members_have_in_common_acts_as_in_single_runs(settings: dict[str, Any]) -> None:
    own = [{"optim.lr": 0.05, "train.seed": 1}, {"optim.lr": 0.02, "train.seed": 2}]
    configs = [config_of("vit_c_tiny", "sgd", **settings, **o) for o in own]
    data, held, epoch = opened(configs[0])
    stack, _ = together(configs, data, held, epoch, steps=5)
    for m, config in enumerate(configs):
        expected, _ = alone(config, data, held, epoch, steps=5)
        got = double_state(config, data, epoch)
        stack.give(m, got)
        assert_equal_states(got, expected)


def test_members_of_the_same_seeds_share_their_batches() -> None:
    configs = [config_of(**MIXED, **{"optim.lr": lr, "train.seed_init": i})
               for i, lr in enumerate((1e-3, 2e-3))]  # fmt: skip
    data, held, epoch = opened(configs[0])
    plans = [batch_plan(c, Processes()) for c in configs]
    settings = step_settings(configs[0], CPU, Processes(), data.mean, data.std, len(data.classes))
    first = next(iter(StackedBatches(held, configs[0].data, plans, settings, range(1))))[0]
    assert first.shared
    assert first.images.shape[0] == 8
    stack, _ = together(configs, data, held, epoch, steps=5)
    for m, config in enumerate(configs):
        expected, _ = alone(config, data, held, epoch, steps=5)
        got = double_state(config, data, epoch)
        stack.give(m, got)
        assert_equal_states(got, expected)


def test_members_may_share_batches_in_groups() -> None:
    configs = [config_of(**MIXED, **{"train.seed": s}) for s in (1, 2, 1)]
    data, held, _ = opened(configs[0])
    plans = [batch_plan(c, Processes()) for c in configs]
    settings = step_settings(configs[0], CPU, Processes(), data.mean, data.std, len(data.classes))
    batches = StackedBatches(held, configs[0].data, plans, settings, range(2))
    steps = iter(batches)
    images = next(steps)[0].images
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    batches.keep([1, 2])
    later = next(steps)[0].images
    single = StackedBatches(held, configs[0].data, plans[2:], settings, range(1, 2))
    torch.testing.assert_close(later[1], next(iter(single))[0].images)


def test_a_member_that_diverges_moves_no_more_and_touches_no_other() -> None:
    calm = [config_of("vit_c_tiny", "sgd", **{"optim.lr": lr, "train.seed": i})
            for i, lr in enumerate((0.05, 0.02))]  # fmt: skip
    wild = config_of("vit_c_tiny", "sgd", **{"optim.lr": 1e200, "train.seed": 7})
    data, held, epoch = opened(wild)
    stack, outcomes = together([calm[0], wild, calm[1]], data, held, epoch, steps=8)
    assert stack.alive.tolist() == [True, False, True]
    bad = ~torch.isfinite(outcomes[:, :, 1]).all(dim=1)
    first = int(bad.nonzero()[0])
    assert 0 < first < 8
    before, _ = together([wild, calm[0]], data, held, epoch, steps=first)
    got, then = (double_state(wild, data, epoch) for _ in range(2))
    stack.give(1, got)
    before.give(0, then)
    for a, b in zip(got.model.parameters(), then.model.parameters(), strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    for row, config in ((0, calm[0]), (2, calm[1])):
        expected, _ = alone(config, data, held, epoch, steps=8)
        state = double_state(config, data, epoch)
        stack.give(row, state)
        assert_equal_states(state, expected)


def test_members_that_go_leave_the_others_as_they_are() -> None:
    configs = [config_of(**{"train.seed": s}) for s in range(3)]
    data, _, epoch = opened(configs[0])
    stack = Stack([in_double(c, data, epoch) for c in configs], [c.optim for c in configs], CPU)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = stack.predict(images, average=True)
    stack.keep([2, 0])
    torch.testing.assert_close(stack.predict(images, average=True), before[[2, 0]])
    assert len(stack) == 2


DEVICES = [
    pytest.param("cpu"),
    pytest.param("cuda", marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA here: populations are not tried on a GPU")),
]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["vit_p_tiny", "vit_c_tiny"])
@pytest.mark.parametrize("name", DEVICES)
def test_losses_are_near_those_of_single_runs_in_any_precision(
    tmp_path: Path, name: str, model: str, precision: str
) -> None:
    settings = {"train.device": name, "train.precision": precision, "train.log_every_steps": 1}
    configs = [config_of(model, **{**settings, "train.seed": i}) for i in range(3)]
    run_population(configs, [tmp_path / f"p{i}" for i in range(3)], quiet=True)
    for i, config in enumerate(configs):
        run(config, tmp_path / f"s{i}", quiet=True)
        here, there = ([m["loss"] for m in read_metrics(tmp_path / f"{kind}{i}", "train")][:5]
                       for kind in "ps")  # fmt: skip
        assert len(here) == 5
        assert here == pytest.approx(there, rel=2e-2 if precision == "bf16" else 1e-3)


def test_a_convolution_that_gives_bf16_meets_a_batch_norm_that_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under CUDA's autocast; that of CPUs leaves convolutions under vmap in float32."""
    forward = nn.Conv2d.forward
    monkeypatch.setattr(
        nn.Conv2d, "forward", lambda self, x: forward(self, x.float()).to(torch.bfloat16)
    )
    config = config_of("vit_c_tiny", **{"train.precision": "bf16"})
    data, held, epoch = opened(config)
    states = [fresh_state(config, len(data.classes), epoch, CPU) for _ in range(2)]
    stack = Stack(states, [config.optim] * 2, CPU, precision="bf16")
    settings = step_settings(config, CPU, Processes(), data.mean, data.std, len(data.classes))
    plans = [batch_plan(config, Processes())] * 2
    for micros in StackedBatches(held, config.data, plans, settings, range(3)):
        losses, norms = stack.step(micros, [1e-3, 1e-3])
        assert torch.isfinite(losses).all()
        assert torch.isfinite(norms).all()


def test_attention_under_vmap_is_never_a_fused_kernel() -> None:
    """One that is fused keeps nothing for the backward pass there, and fails on CUDA."""
    config = config_of("vit_p_tiny")
    data, _, epoch = opened(config)
    stack = Stack([fresh_state(config, len(data.classes), epoch, CPU)] * 2, [config.optim] * 2, CPU)
    kinds = {m.kind for m in stack.template.modules() if isinstance(m, Attention)}
    assert kinds == {"explicit"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, within its compiler
def test_a_compiled_population_is_the_same() -> None:
    configs = [config_of(**{"train.seed": s, "model.depth": 1}) for s in range(2)]
    data, held, epoch = opened(configs[0])
    settings = step_settings(configs[0], CPU, Processes(), data.mean, data.std, len(data.classes))
    plans = [batch_plan(c, Processes()) for c in configs]
    stacks = [
        Stack([in_double(c, data, epoch) for c in configs], [c.optim for c in configs], CPU,
              compiled=compiled)
        for compiled in (False, True)
    ]  # fmt: skip
    for micros in StackedBatches(held, configs[0].data, plans, settings, range(4)):
        eager, compiled = (stack.step(micros, [1e-3, 2e-3]) for stack in stacks)
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=0)
    for name, buffer in stacks[0].buffers.items():
        torch.testing.assert_close(stacks[1].buffers[name], buffer, rtol=1e-6, atol=1e-9)


# -- run folders ----------------------------------------------------------------------------------


def small(model: str = "vit_p_tiny", **settings: Any) -> RunConfig:
    few = {"train.batch": 32, "train.epochs": 1, "train.log_every_steps": 4, "model.depth": 1}
    settings = {**few, **settings}
    return load_config("debug", model=model, **{**BASE, **settings})


def test_the_folders_are_those_of_single_runs(tmp_path: Path) -> None:
    """Own seeds, rates and lengths; losses to float32 tolerance, accuracy to one image."""
    own: list[dict[str, Any]] = [
        {"optim.lr": 1e-3, "train.seed": 0}, {"optim.lr": 3e-3, "train.seed": 1},
        {"optim.lr": 1e-3, "train.seed": 2, "train.epochs": 2}, {"optim.lr": 5e-4},
    ]  # fmt: skip
    configs = [small("vit_c_tiny", **o) for o in own]
    outs = [tmp_path / f"member_{i}" for i in range(4)]
    results = run_population(configs, outs, quiet=True)
    assert [r.status for r in results] == ["done"] * 4
    for config, out, result in zip(configs, outs, results, strict=True):
        single = tmp_path / f"single_{out.name}"
        run(config, single, quiet=True)
        for kind in ("train", "eval"):
            mine, theirs = read_metrics(out, kind), read_metrics(single, kind)
            assert len(mine) == len(theirs) > 0
            for a, b in zip(mine, theirs, strict=True):
                assert a.keys() == b.keys()
                assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])
                assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        summary, other = read_summary(out), read_summary(single)
        assert summary is not None
        assert other is not None
        assert summary.keys() - other.keys() == {"population"}
        assert other.keys() <= summary.keys()
        assert summary["population"] == 4
        assert summary["top1"] == pytest.approx(other["top1"], abs=100 / 128 + 1e-9)
        assert summary["step"] == summary["total_steps"] == other["total_steps"]
        assert (out / "data.json").read_text() == (single / "data.json").read_text()
        assert (out / "config.json").read_text() == (single / "config.json").read_text()
        assert result.summary == summary
        evaluated = evaluate_run(out, device="cpu")
        assert evaluated["top1"] == pytest.approx(summary["top1"], abs=100 / 128 + 1e-9)
        model, _ = load_model(out)
        assert not model.training
        with pytest.raises(ConfigError, match="is finished"):
            run(config, out, quiet=True)
    times = [r.summary["train_seconds"] for r in results]
    assert max(times) == times[2]  # the longest ran on alone


def test_a_member_that_diverges_is_recorded_with_its_step(tmp_path: Path) -> None:
    settings = {"optim": "sgd", "optim.lr": 0.05, "train.epochs": 1}
    calm = load_config(small(**settings), **{"train.seed": 1})
    wild = load_config(small(**settings), **{"optim.lr": 1e30})
    results = run_population([wild, calm], [tmp_path / "wild", tmp_path / "calm"], quiet=True)
    assert [r.status for r in results] == ["diverged", "done"]
    with pytest.raises(DivergedError):
        run(wild, tmp_path / "single", quiet=True)
    mine, theirs = read_summary(tmp_path / "wild"), read_summary(tmp_path / "single")
    assert mine is not None
    assert theirs is not None
    assert mine["step"] == theirs["step"]
    assert mine["error"].splitlines()[0].startswith(f"Diverged at step {mine['step']} of ")
    assert mine["population"] == 2
    run(calm, tmp_path / "calm_single", quiet=True)
    a, b = (load_weights_of(tmp_path / n) for n in ("calm", "calm_single"))
    for name, value in b.items():
        torch.testing.assert_close(a[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_all_members_diverging_ends_the_population(tmp_path: Path) -> None:
    configs = [small(optim="sgd", **{"optim.lr": 1e30, "train.seed": s}) for s in range(2)]
    results = run_population(configs, [tmp_path / "a", tmp_path / "b"], quiet=True)
    assert [r.status for r in results] == ["diverged"] * 2


def test_a_stopped_population_goes_on_together_or_alone(tmp_path: Path) -> None:
    configs = [small(**{"train.seed": s}) for s in range(2)]
    whole = [tmp_path / f"whole_{s}" for s in range(2)]
    run_population(configs, whole, quiet=True)
    outs = [tmp_path / f"part_{s}" for s in range(2)]
    asked = iter([None] * 6)

    def stopped() -> int | None:
        return next(asked, signal.SIGTERM)

    with pytest.raises(InterruptedRun) as caught:
        run_population(configs, outs, quiet=True, stopped=stopped)
    assert caught.value.run_exit_code == 143
    for out in outs:
        summary = read_summary(out)
        assert summary is not None
        assert (summary["status"], summary["step"]) == ("interrupted", 7)
    run(configs[0], outs[0], quiet=True)
    run_population(configs[1:], outs[1:], quiet=True)
    for a, b in zip(whole, outs, strict=True):
        mine, theirs = load_weights_of(b), load_weights_of(a)
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-4, msg=name)
        assert len(read_metrics(a)) == len(read_metrics(b))


def test_members_at_different_steps_are_not_continued_together(tmp_path: Path) -> None:
    configs = [small(**{"train.seed": s}) for s in range(2)]
    outs = [tmp_path / str(s) for s in range(2)]
    for config, out, steps in zip(configs, outs, (3, 5), strict=True):
        asked = iter([None] * steps)
        with pytest.raises(InterruptedRun):
            run_population([config], [out], quiet=True, stopped=lambda a=asked: next(a, 15))
    with pytest.raises(ConfigError, match="at different steps: 4, 6"):
        run_population(configs, outs, quiet=True)
    run(configs[0], outs[0], quiet=True)


def test_sigterm_saves_every_member(tmp_path: Path) -> None:
    configs = [small(**{"train.seed": s}) for s in range(2)]
    outs = [tmp_path / str(s) for s in range(2)]
    with pytest.raises(InterruptedRun):
        run_population(configs, outs, quiet=True, tick=lambda: os.kill(os.getpid(), signal.SIGTERM))
    for out in outs:
        assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
        assert load_weights_of(out)


def test_a_checkpoint_of_a_member_is_that_of_a_single_run(tmp_path: Path) -> None:
    """Saved on the way by number of steps, and every file of it."""
    configs = [small(**{"train.seed": s, "train.save_every_steps": 4}) for s in range(2)]
    outs = [tmp_path / str(s) for s in range(2)]
    run_population(configs, outs, quiet=True)
    run(configs[0], tmp_path / "single", quiet=True)
    for name in ("checkpoints", "checkpoints/step_16", "checkpoints/step_12"):
        mine, theirs = (
            {p.name for p in (folder / name).iterdir()} for folder in (outs[0], tmp_path / "single")
        )
        assert mine == theirs
    states = [json.loads((f / "checkpoints/step_16/state.json").read_text())
              for f in (outs[0], tmp_path / "single")]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    assert states[0]["optimizer"] == states[1]["optimizer"]


# -- what cannot be a population -----------------------------------------------------------------


@pytest.mark.parametrize(("settings", "said"), [
    ({"train.batch": 64}, "train.batch"),
    ({"model.depth": 3}, "model.depth"),
    ({"data.augment.flip": 0.5}, "data.augment.flip"),
    ({"optim.ema.kind": "none"}, "optim.ema.kind"),
    ({"optim": "sgd", "optim.lr": 0.1}, "optim"),
])  # fmt: skip
def test_members_that_differ_in_more_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"Members differ in {said}"):
        run_population([small(), small(**settings)], [tmp_path / "a", tmp_path / "b"], quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [
    {"train.grad_checkpointing": True}, {"train.channels_last": True},
    {"train.precise_bn_images": 64}, {"train.precision": "auto"}, {"data.resident": "off"},
])  # fmt: skip
def test_settings_that_a_population_cannot_keep_are_refused(settings: dict[str, Any]) -> None:
    assert len(population_problems([small(**settings)])) == 1
    assert population_problems([small()]) == []
    assert population_pays(small(**settings), 4, CPU)[0] is False


def test_images_that_cannot_be_held_are_refused(
    tmp_path: Path, photo_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(small(), data=str(photo_folder()), **{"train.batch": 4})
    monkeypatch.setattr("vitc.data.resident.device_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match="holds its images on the device, but"):
        run_population([config] * 2, [tmp_path / "a", tmp_path / "b"], quiet=True)
    pays, why = population_pays(config, 2, CPU, seconds=0.01)
    assert not pays
    assert "holds its images" in why


def test_broken_images_are_refused(tmp_path: Path) -> None:
    config = small()
    data, held, _ = opened(config)
    broken = np.array([True] + [False] * (len(held.broken) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vitc.train.population.hold",
            lambda *a, **k: dataclasses.replace(held, broken=broken),
        )
        with pytest.raises(ConfigError, match="1 training image cannot be read"):
            held_images(config, data, CPU)


def test_a_model_that_cannot_be_batched_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an operation that waits for a number, as a stem from outside may have."""
    forward = Mlp.forward

    def waits(self: Mlp, x: Tensor) -> Tensor:
        return forward(self, x) if x.sum().item() > -1e9 else x

    monkeypatch.setattr(Mlp, "forward", waits)
    config = small()
    with pytest.raises(RunError, match="vit_p_tiny cannot be computed as a population"):
        run_population([config] * 2, [tmp_path / "a", tmp_path / "b"], quiet=True)
    pays, why = population_pays(config, 2, CPU, seconds=0.01)
    assert not pays
    assert "cannot be computed as a population" in why


def test_the_probe_times_both_ways_and_says_so() -> None:
    pays, why = population_pays(small(), 2, CPU, seconds=0.05)
    ratio = float(why.rpartition(" ")[2].removesuffix("x"))
    assert math.isfinite(ratio)
    assert pays == (ratio >= 1.1) or abs(ratio - 1.1) < 0.01
    assert population_pays(small(), 1, CPU) == (False, "there is one run alone")
