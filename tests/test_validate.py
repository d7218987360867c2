"""Recomputed BatchNorm statistics are the means over the batches, and only where they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitc.config import RunConfig
from vitc.data import loader
from vitc.data.pixels import Resident, hold
from vitc.data.sources.base import Split
from vitc.errors import ConfigError
from vitc.models.zoo import create_model
from vitc.resolve import load_config
from vitc.training.build import freeze, train_mode
from vitc.training.loop import run
from vitc.training.parallel import Processes
from vitc.training.validate import norms_in_training, renew


def short(**overrides: Any) -> RunConfig:
    base: dict[str, Any] = {"train.epochs": 2, "train.threads": 1, "data.max_train": 256}
    return load_config("debug", **{**base, **overrides})


def test_the_statistics_are_the_means_over_the_batches() -> None:
    model = create_model("vit_c_tiny", 10).train()
    batches = [torch.randn(16, 3, 32, 32) * (1 + i) + i for i in range(3)]
    renew([model], norms_in_training(model), batches, Processes())
    conv = model.stem.layers[0].conv
    with torch.no_grad():
        outs = [conv(b) for b in batches]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outs]).mean(0)
    var = torch.stack([o.var((0, 2, 3)) for o in outs]).mean(0)
    norm = model.stem.layers[0].norm
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_weights_counters_momentum_and_the_generator_stay_as_they_were() -> None:
    model = create_model("vit_c_tiny", 10, drop_path_rate=0.5).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    images = torch.randn(4, 3, 32, 32)
    state = torch.get_rng_state()
    renew([model], norms_in_training(model), [images], Processes())
    assert torch.equal(torch.get_rng_state(), state)  # nothing was dropped at random
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    norm = model.stem.layers[0].norm
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 0
    assert not any(m.training for m in model.modules())


def test_a_frozen_norm_has_no_part_and_a_vit_p_has_none() -> None:
    model = create_model("vit_c_tiny", 10)
    freeze(model, ["stem.layers.0"])
    train_mode(model)
    assert norms_in_training(model) == ["stem.layers.1.norm", "stem.layers.2.norm"]
    assert norms_in_training(create_model("vit_p_tiny", 10).train()) == []


@pytest.mark.slow
def test_a_run_with_it_learns_and_differs_in_statistics_alone(tmp_path: Path) -> None:
    plain = run(short(), tmp_path / "plain", quiet=True)
    precise = run(short(**{"train.precise_bn_images": 128}), tmp_path / "precise", quiet=True)
    assert plain.status == precise.status == "done"
    a, b = (
        load_file(next((tmp_path / n / "checkpoints").glob("step_*")) / "model.safetensors")
        for n in ("plain", "precise")
    )
    differ = {name for name in a if not torch.equal(a[name], b[name])}
    assert differ == {n for n in a if n.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize("val_fraction", [0.0, pytest.param(0.15, marks=pytest.mark.slow)])
def test_a_schedule_free_average_gets_statistics_of_its_own(
    val_fraction: float, tmp_path: Path
) -> None:
    pytest.importorskip("schedulefree")
    free = {"optim": "adamw_schedulefree", "data.val_fraction": val_fraction}
    run(short(**free), tmp_path / "run", quiet=True)
    folder = next((tmp_path / "run" / "checkpoints").glob("step_*"))
    raw, average = (load_file(folder / f"{name}.safetensors") for name in ("model", "ema"))
    norms = [n for n in raw if n.endswith(("running_mean", "running_var"))]
    assert norms
    assert not any(torch.equal(raw[n], average[n]) for n in norms)
    state = load_file(folder / "optim.safetensors")
    for name in ("head.weight", "stem.layers.0.conv.weight"):
        x = raw[name].lerp(state[f"{name}/z"], 1 - 1 / 0.9)
        torch.testing.assert_close(average[name], x)


def test_images_held_on_the_device_are_not_prepared_again_at_each_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def counted(split: Split, *args: Any) -> Resident | str:
        opened.append(args[4])  # whether for training
        return hold(split, *args)

    monkeypatch.setattr(loader, "hold", counted)
    run(short(**{"train.precise_bn_images": 64}), tmp_path / "run", quiet=True)
    assert sorted(opened) == [False, True]  # validation and training images, once each


def test_less_than_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"less than one train\.batch"):
        short(**{"train.precise_bn_images": 5})
