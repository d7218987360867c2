"""The average of the weights against its closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vitc.optim.config import EmaConfig, ema_alpha
from vitc.optim.ema import Ema
from vitc.optim.schedule import CosineConfig

DEFAULT = EmaConfig()
RUN = {"epochs": 5, "steps_per_epoch": 8, "batch": 4}


class Toy(nn.Module):
    """A convolution, a BatchNorm and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.head.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).mean((2, 3))
        out: Tensor = self.tied(self.head(x))
        return out


def models(steps: int) -> list[Toy]:
    """The same model with new numbers in every tensor and buffer, once a step."""
    torch.manual_seed(0)
    out = []
    for step in range(1, steps + 1):
        model = Toy()
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
            model.bn.running_mean.normal_()  # type: ignore[union-attr]
            model.bn.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
            model.bn.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        out.append(model)
    return out


def average_of(model: nn.Module, ema: EmaConfig = DEFAULT) -> Ema:
    return Ema(
        model,
        lambda before, position: ema_alpha(position, ema, CosineConfig(), before=before, **RUN),
    )


def updated(average: Ema, steps: list[Toy], first: int = 1) -> dict[str, Tensor]:
    for step, model in enumerate(steps, first):
        average.update(model, step)
    return average.module.state_dict()


def averaged(states: list[dict[str, Tensor]], ema: EmaConfig, key: str) -> Tensor:
    """The average by its closed form: each model's weight is written out, in float64."""
    weights: list[float] = []
    for step in range(1, len(states) + 1):
        alpha = ema_alpha(step, ema, CosineConfig(), **RUN)
        weights = [w * (1 - alpha) for w in weights] + [alpha]
    assert sum(weights) == pytest.approx(1.0)
    terms = [w * s[key].double() for w, s in zip(weights, states, strict=True)]
    return torch.stack(terms).sum(0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "ema", [EmaConfig(), EmaConfig(horizon=0.5), EmaConfig(kind="pycls", alpha=0.4, period=3)]
)
def test_the_average_is_its_closed_form_for_weights_and_running_statistics(
    ema: EmaConfig, channels_last: bool
) -> None:
    steps = models(40)
    if channels_last:  # the others are contiguous: averaged by value, not by storage
        steps[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got = updated(average_of(steps[0], ema), steps)
    states = [m.state_dict() for m in steps]
    assert set(got) == set(states[0])
    for key, value in got.items():
        if value.is_floating_point():
            want = averaged(states, ema, key)
            torch.testing.assert_close(value.double(), want, rtol=0, atol=1e-6)
    if ema.kind == "fraction":
        assert got["bn.num_batches_tracked"] == 40  # integers are copied


def test_the_first_models_of_a_run_are_averaged_plainly_and_the_initial_weights_forgotten() -> None:
    initial, *steps = models(11)
    got = updated(average_of(initial, EmaConfig(horizon=1.0)), steps)
    mean = torch.stack([m.conv.weight.detach() for m in steps]).mean(0)
    torch.testing.assert_close(got["conv.weight"], mean)


def test_the_average_is_a_model_of_its_own_in_eval_mode_without_gradients() -> None:
    model = Toy().train()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    average = average_of(model)
    assert not any(m.training for m in average.module.modules())
    assert not any(p.requires_grad or p.grad is not None for p in average.module.parameters())
    assert model.training
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    before = copy.deepcopy(average.module.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in average.module.state_dict().items())
    assert average.module.tied.weight is average.module.head.weight  # type: ignore[union-attr]


@pytest.mark.parametrize("ema", [EmaConfig(), EmaConfig(kind="pycls", alpha=0.4, period=3)])
def test_saved_and_loaded_in_the_middle_it_continues_to_the_same_bits(ema: EmaConfig) -> None:
    steps = models(40)
    whole = updated(average_of(steps[0], ema), steps)
    saved = updated(average_of(steps[0], ema), steps[:17])
    second = average_of(Toy(), ema)
    second.module.load_state_dict(copy.deepcopy(saved))
    got = updated(second, steps[17:], 18)
    assert all(torch.equal(value, got[key]) for key, value in whole.items())


def test_a_weight_that_does_not_change_is_its_own_average() -> None:
    model = models(1)[0]
    got = updated(average_of(model), [model] * 40)
    assert all(torch.equal(v, got[k]) for k, v in model.state_dict().items())
