"""Which parameters are decayed, and whether the optimizers do what their formulas say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitc.errors import ConfigError
from vitc.models.zoo import create_model
from vitc.optim.config import OptimConfig
from vitc.optim.groups import build_optimizer, decay_groups, set_lr
from vitc.optim.optimizers import AdamWConfig, SGDConfig

ADAMW = AdamWConfig(lr=1e-2, weight_decay=0.3)
SGD = SGDConfig(lr=1e-1, weight_decay=0.05)


# ---------------------------------------------------------------------------- what is decayed


def test_vit_c_1gf_has_the_group_sizes_of_the_authors_code() -> None:
    decayed, exempt = decay_groups(create_model("vit_c_1gf"))
    assert len(decayed) == 52
    assert len(exempt) == 8 + 46 + 46  # of BatchNorm, of LayerNorm, other biases
    sizes = [p.numel() for p in (*decayed.values(), *exempt.values())]
    assert sum(sizes) == 4_567_936  # paper, Table 1: 4.6 M


@pytest.mark.parametrize("name", ["vit_p_tiny", "vit_c_tiny"])
def test_exempt_is_what_the_model_says_it_does_not_decay(name: str) -> None:
    model = create_model(name)
    decayed, exempt = decay_groups(model)
    assert set(exempt) == model.no_weight_decay()
    assert {"pos_embed", "cls_token"} <= set(decayed)


class Foreign(nn.Module):
    """Misleading names and shapes on purpose: nothing may hang on what a thing is called."""

    def __init__(self) -> None:
        super().__init__()
        self.bias_proj = nn.Linear(4, 4)
        self.ln_bn = nn.Conv2d(4, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2)
        self.a = nn.LayerNorm((3, 4))  # its gain is a matrix
        self.b = nn.GroupNorm(2, 4)
        self.c = nn.BatchNorm1d(4)
        self.d = nn.InstanceNorm2d(4, affine=True)
        self.e = nn.RMSNorm(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.norm_token = nn.Parameter(torch.zeros(1, 1, 4))


def test_ownership_decides_in_modules_we_have_never_seen() -> None:
    decayed, exempt = decay_groups(Foreign())
    assert set(decayed) == {
        "bias_proj.weight",
        "ln_bn.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "norm_token",
    }
    assert {"attention.in_proj_bias", "attention.out_proj.bias", "a.weight", "a.bias"} <= set(
        exempt
    )
    assert {"b.weight", "c.weight", "d.weight", "e.weight", "scale", "temperature"} <= set(exempt)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = Foreign()
    model.ln_bn.requires_grad_(False)
    optimizer = build_optimizer(ADAMW, model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(held) == len(trainable)
    assert {id(p) for p in held} == {id(p) for p in trainable}
    assert not any(model.ln_bn.weight is p for p in held)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_a_shared_parameter_is_counted_once_and_exempt_if_any_owner_exempts_it() -> None:
    model = nn.ModuleDict(
        {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": nn.LayerNorm((4, 4))}
    )
    model["b"].weight = model["a"].weight
    decayed, exempt = decay_groups(model)
    assert set(decayed) == {"a.weight"}
    assert set(exempt) == {"a.bias", "b.bias", "norm.weight", "norm.bias"}
    model["norm"].weight = model["a"].weight
    decayed, exempt = decay_groups(model)
    assert not decayed
    assert "a.weight" in exempt
    build_optimizer(ADAMW, model)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(ADAMW, nn.Linear(2, 2).requires_grad_(False))


# ---------------------------------------------------------------------------- what a step does


def adamw_by_hand(w: Tensor, gradients: list[Tensor], lr: list[float], decay: float) -> Tensor:
    """Loshchilov & Hutter, algorithm 2, in float64: decoupled decay, bias-corrected moments."""
    w = w.double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, eta) in enumerate(zip(gradients, lr, strict=True), 1):
        g = g.double()
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        w = w - eta * decay * w - eta * step
    return w


def sgd_by_hand(w: Tensor, gradients: list[Tensor], lr: list[float], decay: float) -> Tensor:
    """Nesterov's momentum as torch writes it, the decay inside the gradient, in float64."""
    w = w.double().clone()
    m = torch.zeros_like(w)
    for g, eta in zip(gradients, lr, strict=True):
        g = g.double() + decay * w
        m = 0.9 * m + g
        w = w - eta * (g + 0.9 * m)
    return w


ByHand = Callable[[Tensor, list[Tensor], list[float], float], Tensor]
HANDS = pytest.mark.parametrize(
    ("config", "by_hand"), [(ADAMW, adamw_by_hand), (SGD, sgd_by_hand)], ids=["adamw", "sgd"]
)


@HANDS
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_with_a_changing_rate_equal_the_formula(
    config: OptimConfig, by_hand: ByHand, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(config, model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = [config.lr * r for r in (0.0, 0.5, 1.0, 0.7, 0.1)]
    gradients: dict[str, list[Tensor]] = {name: [] for name in start}
    for lr in rates:
        optimizer.zero_grad()
        x = torch.randn(4, 3, 8, 8).to(memory_format=layout)
        (model(x) * torch.randn(4, 8, 6, 6)).mean().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            gradients[name].append(p.grad.clone())
        set_lr(optimizer, lr)
        optimizer.step()
    for name, p in model.named_parameters():
        decay = config.weight_decay if name == "0.weight" else 0.0
        want = by_hand(start[name], gradients[name], rates, decay)
        torch.testing.assert_close(p.detach().double(), want, rtol=1e-5, atol=1e-6)
