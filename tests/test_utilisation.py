"""The share of a device's rate that a run reaches: counted by hand, and left out where unknown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitc.models.complexity import complexity
from vitc.models.zoo import create_model
from vitc.training import utilisation as module
from vitc.training.parallel import Processes
from vitc.training.utilisation import matmul_rate, utilisation


def setup_of(world: int = 1, freeze: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        procs=Processes(0, world),
        device=torch.device("cpu"),
        config=SimpleNamespace(
            model=SimpleNamespace(size=(32, 32)),
            train=SimpleNamespace(precision="fp32", freeze=freeze),
        ),
    )


@pytest.mark.parametrize("world", [1, 2])
def test_the_share_is_that_of_the_counted_flops(
    monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    model = create_model("vit_c_tiny", num_classes=10, img_size=32)
    flops = complexity(model).flops
    monkeypatch.setattr(module, "matmul_rate", lambda *args: 1e9)
    spent = {"steps": 80.0, "loading": 15.0, "evaluation": 5.0}
    mfu, line = utilisation(setup_of(world), model, 1000, 80.0, spent)
    assert mfu == pytest.approx(6 * flops * 1000 / world / 80 / 1e9, rel=1e-3)
    assert "80 % training steps, 15 % waiting for images, 5 % validation" in line


def test_short_runs_and_models_that_cannot_be_counted_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NeedsData(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool(x.sum() > 0) else -x

    model = create_model("vit_c_tiny", num_classes=10, img_size=32)
    assert utilisation(setup_of(), model, 1000, 10.0, {"steps": 10.0})[0] is None
    assert utilisation(setup_of(), NeedsData(), 1000, 100.0, {"steps": 100.0})[0] is None
    frozen = setup_of(freeze=("norms", "stem"))  # a third of the operations, or less
    assert utilisation(frozen, model, 1000, 100.0, {"steps": 100.0})[0] is None
    assert utilisation(setup_of(freeze=("norms",)), model, 1000, 100.0, {"steps": 100.0})[0]


def test_the_rate_of_matrix_products_is_measured() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), 64, "fp32") < 1e14
