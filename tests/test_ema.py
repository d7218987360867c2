"""The average of the weights against its closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vitc.errors import ConfigError
from vitc.optim.config import EmaConfig, ema_alpha
from vitc.optim.ema import Ema, build_ema
from vitc.optim.schedule import CosineConfig

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


def averaged(states: list[dict[str, Tensor]], ema: EmaConfig, key: str) -> Tensor:
    """The average by its closed form: each model's weight is written out, in float64."""
    weights: list[float] = []
    for step in range(1, len(states) + 1):
        alpha = ema_alpha(step, ema, CosineConfig(), **RUN)
        weights = [w * (1 - alpha) for w in weights] + [alpha]
    assert sum(weights) == pytest.approx(1.0)
    terms = [w * s[key].double() for w, s in zip(weights, states, strict=True)]
    return torch.stack(terms).sum(0)


@pytest.mark.parametrize(
    "ema", [EmaConfig(), EmaConfig(horizon=0.5), EmaConfig(kind="pycls", alpha=0.4, period=3)]
)
def test_the_average_is_its_closed_form_for_weights_and_running_statistics(ema: EmaConfig) -> None:
    steps = models(40)
    average = Ema(steps[0], ema, CosineConfig(), **RUN)
    for step, model in enumerate(steps, 1):
        average.update(model, step)
    states = [m.state_dict() for m in steps]
    got = average.state_dict()
    assert set(got) == set(states[0])
    for key, value in got.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value.double(), averaged(states, ema, key), rtol=0, atol=1e-6
            )


def test_integer_buffers_are_copied() -> None:
    steps = models(40)
    average = Ema(steps[0], EmaConfig(), CosineConfig(), **RUN)
    for step, model in enumerate(steps, 1):
        average.update(model, step)
    assert average.module.bn.num_batches_tracked == 40  # type: ignore[union-attr]


def test_the_first_models_of_a_run_are_averaged_plainly_and_the_initial_weights_forgotten() -> None:
    initial, *steps = models(11)
    average = Ema(initial, EmaConfig(horizon=1.0), CosineConfig(), **RUN)
    for step, model in enumerate(steps, 1):
        average.update(model, step)
    mean = torch.stack([m.conv.weight.detach() for m in steps]).mean(0)
    torch.testing.assert_close(average.state_dict()["conv.weight"], mean)


def test_the_average_is_a_model_of_its_own_in_eval_mode_without_gradients() -> None:
    model = Toy().train()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    average = Ema(model, EmaConfig(), CosineConfig(), **RUN)
    assert not any(m.training for m in average.module.modules())
    assert not any(p.requires_grad or p.grad is not None for p in average.module.parameters())
    assert model.training
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    before = copy.deepcopy(average.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in average.state_dict().items())
    assert average.module.tied.weight is average.module.head.weight  # type: ignore[union-attr]


def test_channels_last_weights_are_averaged_by_value_not_by_storage() -> None:
    steps = models(40)
    steps[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Ema(steps[0], EmaConfig(), CosineConfig(), **RUN)
    for step, model in enumerate(steps, 1):
        average.update(model, step)  # contiguous but for the first
    want = averaged([m.state_dict() for m in steps], EmaConfig(), "conv.weight")
    torch.testing.assert_close(
        average.state_dict()["conv.weight"].double(), want, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("ema", [EmaConfig(), EmaConfig(kind="pycls", alpha=0.4, period=3)])
def test_saved_and_loaded_in_the_middle_it_goes_on_to_the_same_bits(ema: EmaConfig) -> None:
    steps = models(40)
    whole = Ema(steps[0], ema, CosineConfig(), **RUN)
    for step, model in enumerate(steps, 1):
        whole.update(model, step)
    first = Ema(steps[0], ema, CosineConfig(), **RUN)
    for step, model in enumerate(steps[:17], 1):
        first.update(model, step)
    second = Ema(Toy(), ema, CosineConfig(), **RUN)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step, model in enumerate(steps[17:], 18):
        second.update(model, step)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_a_weight_that_does_not_change_is_its_own_average() -> None:
    model = models(1)[0]
    average = Ema(model, EmaConfig(), CosineConfig(), **RUN)
    for step in range(1, 41):
        average.update(model, step)
    assert all(torch.equal(v, average.state_dict()[k]) for k, v in model.state_dict().items())


def test_no_average_builds_nothing_and_an_unfit_one_is_refused() -> None:
    assert build_ema(Toy(), EmaConfig(kind="none"), CosineConfig(), **RUN) is None
    assert isinstance(build_ema(Toy(), EmaConfig(), CosineConfig(), **RUN), Ema)
    with pytest.raises(ConfigError, match="tuned to ImageNet"):
        build_ema(Toy(), EmaConfig(kind="pycls"), CosineConfig(), **RUN)
