"""The step: micro-batches are order-free, processes agree, and a bad step changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.test_loop import MIXED, TRAIN, lines, tiny, weights
from vitc.config import to_dict
from vitc.training.loop import run
from vitc.training.parallel import Processes
from vitc.training.step import NormStatistics, _guarded_update


def test_statistics_of_a_step_are_the_mean_of_single_updates() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    start = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[union-attr]
    batches = [torch.randn(4, 3, 5, 5) * (i + 1) + i for i in range(4)]
    singles = []
    for x in batches:
        alone = nn.BatchNorm2d(3)
        alone(x)
        singles.append((alone.running_mean, alone.running_var))
    kept = NormStatistics(norm, micros=4, procs=Processes())
    for i, x in enumerate(batches):
        kept.before_micro(i)
        norm(x)
    kept.after_step()
    for got, parts in zip(
        (norm.running_mean, norm.running_var), zip(*singles, strict=True), strict=True
    ):
        torch.testing.assert_close(got, torch.stack(parts).mean(0))
    assert not torch.equal(start[0], norm.running_mean)
    assert int(norm.num_batches_tracked) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_update_that_is_not_finite_is_not_taken(kind: type[torch.optim.Optimizer]) -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = kind([w], lr=0.1)  # type: ignore[call-arg]
    w.grad = torch.full((3,), torch.nan)
    _guarded_update(optimizer, torch.tensor(False))
    assert torch.equal(w.detach(), torch.ones(3))
    w.grad = torch.ones(3)
    _guarded_update(optimizer, torch.tensor(True))
    assert (w < 1).all()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_fused_optimizers_honour_found_inf(kind: type[torch.optim.Optimizer]) -> None:
    """The promise of torch on which the GPU path of the guard stands."""
    w = nn.Parameter(torch.ones(3))
    optimizer = kind([w], lr=0.1, fused=True)  # type: ignore[call-arg]
    w.grad = torch.ones(3)
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(w.detach(), torch.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [pytest.param("vit_p_tiny", marks=pytest.mark.slow), "vit_c_tiny"]
)
def test_two_processes_with_two_micro_batches_each_equal_one_with_four(
    tmp_path: Path, model: str
) -> None:
    one_epoch = {"train.epochs": 1, "train.batch": 128, "train.micro_batch": 32}
    config = tiny(model=model, **MIXED, **one_epoch, **{"train.device": "cpu"})
    run(config, tmp_path / "one", quiet=True)
    file, script = tmp_path / "c.json", tmp_path / "run.py"
    file.write_text(json.dumps(to_dict(config)))
    script.write_text(TRAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(script), str(file), str(tmp_path / "two")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    subprocess.run(command, check=True, timeout=120, capture_output=True, env=env)

    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    moved = {k: v for k, v in one.items() if k.startswith("model") and v.is_floating_point()}
    for name, value in moved.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5, msg=name)
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
