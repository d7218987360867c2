"""Frozen parts do not move, neither weights nor statistics; layers have their own rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.test_loop import assert_same_run, kill_and_resume
from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.models.zoo import create_model
from vitc.optim.groups import build_optimizer, lr_scales, set_lr
from vitc.optim.optimizers import AdamWConfig, SGDConfig
from vitc.resolve import load_config
from vitc.runs.checkpoint import load_weights_of
from vitc.training.build import freeze, initial_model, train_mode
from vitc.training.loop import run


def short(**overrides: Any) -> RunConfig:
    base: dict[str, Any] = {"train.epochs": 1, "train.threads": 1, "data.max_train": 128}
    return load_config("debug", **{**base, **overrides})


@pytest.mark.parametrize("micro_batch", [None, 16])
def test_a_frozen_stem_keeps_every_bit_and_its_statistics(
    tmp_path: Path, micro_batch: int | None
) -> None:
    config = short(**{"train.freeze": ["stem"], "train.micro_batch": micro_batch})
    before = initial_model(config, 10).state_dict()
    run(config, tmp_path / "r", quiet=True)
    after = load_weights_of(tmp_path / "r", ema=False)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    stem = {name for name in before if name.startswith("stem.")}
    assert any("running_mean" in name for name in stem)
    assert not moved & stem
    assert {"head.weight", "blocks.0.attn.qkv.weight", "pos_embed"} <= moved


def test_a_linear_probe_trains_the_head_alone(tmp_path: Path) -> None:
    config = short(**{"train.freeze": ["backbone"]})
    before = initial_model(config, 10).state_dict()
    run(config, tmp_path / "r", quiet=True)
    after = load_weights_of(tmp_path / "r", ema=False)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_norms_are_the_batch_norms_alone_and_keep_their_statistics(tmp_path: Path) -> None:
    config = short(**{"train.freeze": ["norms"]})
    before = initial_model(config, 10).state_dict()
    run(config, tmp_path / "r", quiet=True)
    after = load_weights_of(tmp_path / "r", ema=False)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in kept} == {"stem"}
    assert all(".norm." in name for name in kept)
    assert any("running_mean" in name for name in kept)


def test_frozen_parts_run_in_eval_mode_and_the_others_train() -> None:
    model = create_model("vit_c_tiny", 10)
    freeze(model, ["stem", "blocks.0"])
    train_mode(model)
    assert not model.stem.layers[0].norm.training
    assert not model.blocks[0].training
    assert model.blocks[1].training
    assert model.training


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["stm"], ("train.freeze 'stm'", "Its parts: cls_token", "backbone", "mean 'stem'")),
        (["backbon"], ("Did you mean 'backbone'", "for example blocks.0.")),
        (["blocks.0.attn.qkw"], ("Did you mean 'blocks.0.attn.qkv",)),
        (["backbone", "head"], ("leaves nothing to train", "--train.freeze backbone")),
    ],
)
def test_a_part_that_is_none_is_refused(parts: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        freeze(create_model("vit_p_tiny", 10), parts)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("part", ["stem.layers", "blocks.1"])
def test_a_part_is_a_prefix_that_ends_at_a_dot(part: str) -> None:
    model = create_model("vit_c_tiny", 10, depth=12)
    freeze(model, [part])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(f"{part}.")}


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"train.freeze": ["stem"]}, {"optim.layer_decay": 0.65}])
def test_a_run_with_it_resumes_exactly(tmp_path: Path, setting: dict[str, Any]) -> None:
    every = {"train.epochs": 8, "train.log_every_steps": 1, "train.save_every_steps": 2}
    config = short(**every, **setting)
    run(config, tmp_path / "whole", quiet=True)
    assert_same_run(tmp_path / "whole", kill_and_resume(config, tmp_path, kill_at=3))


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def layers(self) -> list[list[str]]:
        groups = ("stem", "blocks.0", "blocks.1", "head")
        return [[n for n, _ in self.named_parameters() if n.startswith(g)] for g in groups]


def test_each_layer_has_the_rate_of_the_next_times_the_decay() -> None:
    model = Layered()
    assert lr_scales(model, 0.5) == {
        "stem.weight": 0.125,
        "stem.bias": 0.125,
        "blocks.0.weight": 0.25,
        "blocks.0.bias": 0.25,
        "blocks.1.weight": 0.5,
        "blocks.1.bias": 0.5,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }
    optimizer = build_optimizer(AdamWConfig(layer_decay=0.5, weight_decay=0.1), model)
    set_lr(optimizer, 1.0)
    held = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert held[id(model.stem.weight)] == (0.125, 0.1)
    assert held[id(model.stem.bias)] == (0.125, 0.0)
    assert held[id(model.head.weight)] == (1.0, 0.1)


def test_the_step_taken_is_the_scaled_one() -> None:
    model = Layered()
    optimizer = build_optimizer(
        SGDConfig(layer_decay=0.5, weight_decay=0.0, momentum=0.0, nesterov=False), model
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    set_lr(optimizer, 0.1)
    optimizer.step()
    for name, scale in lr_scales(model, 0.5).items():
        expected = before[name] - 0.1 * scale
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), expected)


def test_a_model_without_layers_is_refused_and_so_is_a_decay_out_of_range() -> None:
    with pytest.raises(ConfigError, match="method layers"):
        build_optimizer(AdamWConfig(layer_decay=0.7), nn.Linear(2, 2))
    for wrong in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"optim\.layer_decay"):
            load_config(RunConfig(), **{"optim.layer_decay": wrong})
