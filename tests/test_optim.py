"""Which parameters are decayed, and whether the optimizers do what their formulas say."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitc.errors import ConfigError
from vitc.machine import install_line
from vitc.models.zoo import create_model
from vitc.optim import muon
from vitc.optim.config import EmaConfig, OptimConfig
from vitc.optim.ema import OwnAverage
from vitc.optim.groups import (
    HIDDEN,
    WEIGHTS,
    build_optimizer,
    decay_groups,
    hidden_matrices,
    lr_scales,
    parameter_groups,
    set_lr,
)
from vitc.optim.optimizers import (
    OPTIMIZERS,
    AdamWConfig,
    AdamWScheduleFreeConfig,
    LionConfig,
    MuonConfig,
    NAdamWConfig,
    SGDConfig,
    SGDScheduleFreeConfig,
)
from vitc.optim.schedule import WsdConfig
from vitc.training.step import _guarded_update

ADAMW = AdamWConfig(lr=1e-2, weight_decay=0.3)
SGD = SGDConfig(lr=1e-1, weight_decay=0.05)
MUON = MuonConfig()


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


def nadamw_by_hand(w: Tensor, gradients: list[Tensor], lr: list[float], decay: float) -> Tensor:
    """Dozat 2016, algorithm 8, with its schedule of the momentum; the decay decoupled; float64."""
    w = w.double().clone()
    m, v, product = torch.zeros_like(w), torch.zeros_like(w), 1.0
    for t, (g, eta) in enumerate(zip(gradients, lr, strict=True), 1):
        g = g.double()
        now, then = (0.9 * (1 - 0.5 * 0.96 ** (s * 0.004)) for s in (t, t + 1))
        product *= now
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        mean = then * m / (1 - product * then) + (1 - now) * g / (1 - product)
        w = w - eta * decay * w - eta * mean / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w


def lion_by_hand(w: Tensor, gradients: list[Tensor], lr: list[float], decay: float) -> Tensor:
    """Chen et al. 2023, algorithm 2, in float64."""
    w = w.double().clone()
    m = torch.zeros_like(w)
    for g, eta in zip(gradients, lr, strict=True):
        g = g.double()
        w = w - eta * (torch.sign(0.9 * m + 0.1 * g) + decay * w)
        m = 0.99 * m + 0.01 * g
    return w


def muon_by_hand(w: Tensor, gradients: list[Tensor], lr: list[float], decay: float) -> Tensor:
    """Jordan's momentum and quintic iteration over the flattened kernel, each product rounded to
    bfloat16 as in his code, or to float32 where bfloat16 is slow; the size of the
    update as in Liu et al. 2025, equation 4."""
    kind = torch.bfloat16 if muon.fast_in_bf16(w.device) else torch.float32
    w = w.double().clone()
    m = torch.zeros_like(w)
    for g, eta in zip(gradients, lr, strict=True):
        m = 0.95 * m + 0.05 * g.double()
        x = (0.05 * g.double() + 0.95 * m).flatten(1).to(kind)
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = (x / x.norm()).double()
        for _ in range(5):
            a = (x @ x.T).to(kind).double()
            b = (-4.775 * a + 2.0315 * a @ a).to(kind).double()
            x = (3.4445 * x + b @ x).to(kind).double()
        singular = torch.linalg.svdvals(x)
        assert 0.3 < singular.min() <= singular.max() < 1.3
        size = 0.2 * max(x.shape) ** 0.5
        w = w - eta * decay * w - eta * size * (x.T if tall else x).reshape(w.shape)
    return w


Update = Callable[[Tensor, Tensor, int], Tensor]


def averaged(z: Tensor, gradients: list[Tensor], lr: list[float], update: Update) -> Tensor:
    """Defazio et al. 2024, equations 1 to 3, in float64: y after the last step. Steps weigh by the
    square of the largest rate so far; `update` is of the gradient at y."""
    x = y = z = z.double().clone()
    total = 0.0
    for t, (g, eta) in enumerate(zip(gradients, lr, strict=True), 1):
        weight = max(lr[:t]) ** 2
        total += weight
        z = z - eta * update(y, g.double(), t)
        x = x + (weight / total if total else 0.0) * (z - x)
        y = 0.9 * x + 0.1 * z
    return y


def adamw_free_by_hand(w: Tensor, gradients: list[Tensor], lr: list[float], decay: float) -> Tensor:
    v = torch.zeros_like(w).double()

    def update(y: Tensor, g: Tensor, t: int) -> Tensor:
        v.mul_(0.999).add_(0.001 * g**2)
        return g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + decay * y

    return averaged(w, gradients, lr, update)


def sgd_free_by_hand(w: Tensor, gradients: list[Tensor], lr: list[float], decay: float) -> Tensor:
    return averaged(w, gradients, lr, lambda y, g, t: g + decay * y)


ByHand = Callable[[Tensor, list[Tensor], list[float], float], Tensor]
HANDS: dict[str, tuple[OptimConfig, ByHand]] = {
    "adamw": (ADAMW, adamw_by_hand),
    "sgd": (SGD, sgd_by_hand),
    "nadamw": (NAdamWConfig(lr=1e-2, weight_decay=0.3), nadamw_by_hand),
    "muon": (MuonConfig(lr=1e-2, weight_decay=0.3), adamw_by_hand),  # but for hidden matrices
    "lion": (LionConfig(lr=1e-2, weight_decay=0.3), lion_by_hand),
    "adamw_schedulefree": (AdamWScheduleFreeConfig(lr=1e-2, weight_decay=0.3), adamw_free_by_hand),
    "sgd_schedulefree": (SGDScheduleFreeConfig(lr=1e-1, weight_decay=0.05), sgd_free_by_hand),
}
PACKAGES = {"lion": "lion_pytorch"} | dict.fromkeys(
    ("adamw_schedulefree", "sgd_schedulefree"), "schedulefree"
)


def need_package_of(kind: str) -> None:
    if kind in PACKAGES:
        pytest.importorskip(PACKAGES[kind])


EVERY = pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS if kind != "custom"])


@EVERY
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_with_a_changing_rate_equal_the_formula(
    kind: str, layout: torch.memory_format
) -> None:
    config, by_hand = HANDS[kind]
    need_package_of(kind)
    torch.manual_seed(0)
    convs = nn.Conv2d(8, 6, 3), nn.Conv2d(6, 20, 1), nn.Conv2d(20, 4, 3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *convs)
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(config, model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = [config.lr * r for r in (0.0, 0.5, 1.0, 0.7, 0.1)]
    gradients: dict[str, list[Tensor]] = {name: [] for name in start}
    for lr in rates:
        optimizer.zero_grad()
        x = torch.randn(4, 3, 8, 8).to(memory_format=layout)
        (model(x) * torch.randn(4, 4, 2, 2)).mean().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            gradients[name].append(p.grad.clone())
        set_lr(optimizer, lr)
        optimizer.step()
    for name, p in model.named_parameters():
        decay = config.weight_decay if p.ndim == 4 else 0.0
        hidden = kind == "muon" and name in ("2.weight", "3.weight")
        formula, atol = (muon_by_hand, 1e-5) if hidden else (by_hand, 1e-6)
        want = formula(start[name], gradients[name], rates, decay)
        torch.testing.assert_close(p.detach().double(), want, rtol=1e-5, atol=atol)


@EVERY
def test_a_gradient_that_is_not_finite_changes_no_weight(kind: str) -> None:
    need_package_of(kind)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(HANDS[kind][0], model)
    for bad in (False, True):
        model(torch.ones(2, 3)).sum().backward()
        before = [p.detach().clone() for p in model.parameters()]
        _guarded_update(optimizer, torch.tensor(not bad))
        same = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert same == bad


# ------------------------------------------------------------------ Muon and schedule-free weights


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("vit_p_tiny", {"stem.proj.weight", "pos_embed", "cls_token", "head.weight"}),
        ("vit_c_tiny", {"stem.layers.0.conv.weight", "pos_embed", "cls_token", "head.weight"}),
        ("resnet_50", {"stem.conv.conv.weight", "head.weight"}),
    ],
)
def test_muon_has_all_weights_but_those_of_image_classifier_and_embeddings(
    name: str, apart: set[str]
) -> None:
    model = create_model(name, num_classes=3)
    names = {p: n for n, p in model.named_parameters()}
    groups = {g["name"]: {names[p] for p in g["params"]} for g in parameter_groups(MUON, model)}
    assert groups[WEIGHTS] == apart
    assert groups[HIDDEN] | apart == set(decay_groups(model)[0])
    layered, scale_of = MuonConfig(layer_decay=0.5), lr_scales(model, 0.5)
    for group in parameter_groups(layered, model):
        scales = {scale_of[names[p]] for p in group["params"]}
        assert scales == {group["lr_scale"]}


@pytest.mark.parametrize("bf16", [True, False])
def test_muon_is_torchs_and_in_float32_where_bfloat16_is_slow(
    bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "fast_in_bf16", lambda device: bf16)
    torch.manual_seed(0)
    start = [torch.randn(6, 20), torch.randn(20, 6), torch.randn(8, 8)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    group = {"lr": 1e-2, "weight_decay": 0.3}
    optimizer = muon.Muon([{"params": ours, **group}], 1e-2, 0.95)
    peer = torch.optim.Muon([{"params": theirs, **group}], adjust_lr_fn="match_rms_adamw")
    gradients: list[list[Tensor]] = [[] for _ in start]
    for _ in range(4):
        for mine, other, kept in zip(ours, theirs, gradients, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
            kept.append(mine.grad.clone())
        optimizer.step()
        peer.step()
    for mine, other, before, kept in zip(ours, theirs, start, gradients, strict=True):
        want = muon_by_hand(before, kept, [1e-2] * 4, 0.3)
        if bf16:
            assert torch.equal(mine, other)
        else:
            torch.testing.assert_close(mine.detach().double(), want, rtol=1e-5, atol=1e-6)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> list[Tensor]:
    """The parameters after three steps at rates of their own on images of `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(3):
        set_lr(optimizer, 0.01 * (step + seed))
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5, generator=generator)).pow(2).mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


Trained = tuple[nn.Module, torch.optim.Optimizer]


def _restored(trained: Trained) -> Trained:
    model, optimizer = trained
    other = copy.deepcopy(model)
    restored = build_optimizer(MUON, other)
    _steps(other, restored, 7)  # whose state and groups are replaced
    other.load_state_dict(model.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else it would share tensors
    return other, restored


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda trained: pickle.loads(pickle.dumps(trained)), _restored],
    ids=["copied", "pickled", "restored"],
)
def test_muon_can_be_copied_pickled_and_restored_to_the_bit(
    again: Callable[[Trained], Trained],
) -> None:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(MUON, model)
    start = _steps(model, optimizer, 1)
    other = again((model, optimizer))
    got = _steps(*other, 2)
    assert all(map(torch.equal, model.parameters(), start))  # the original is as it was
    assert all(map(torch.equal, got, _steps(model, optimizer, 2)))
    states = (o.state_dict()["state"].values() for o in (optimizer, other[1]))
    for mine, its in zip(*states, strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_muon_leaves_depthwise_kernels_to_adamw_and_needs_a_hidden_matrix() -> None:
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), depthwise, nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
    assert hidden_matrices(model) == {model[2].weight}
    model[2].requires_grad_(False)
    with pytest.raises(
        ConfigError, match="for hidden weight matrices, and none is trained"
    ) as caught:
        build_optimizer(MUON, model)
    assert "--optim adamw" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["adamw_schedulefree", "sgd_schedulefree"])
def test_the_average_of_a_schedule_free_optimizer_is_what_its_package_evaluates(kind: str) -> None:
    need_package_of(kind)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    optimizer = build_optimizer(HANDS[kind][0], model)
    average = OwnAverage(model, optimizer)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).pow(2).mean().backward()
        set_lr(optimizer, 0.1 * step)
        optimizer.step()
        average.update(model, step + 1)
    optimizer.eval()  # type: ignore[attr-defined]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(average.module.state_dict()[name], value, msg=name)


def test_a_schedule_free_optimizer_refuses_what_it_replaces() -> None:
    found = AdamWScheduleFreeConfig(schedule=WsdConfig(), ema=EmaConfig()).problems()
    assert len(found) == 2
    assert "--optim.schedule constant" in found[0]
    assert "--optim.ema.kind none" in found[1]
    assert not AdamWScheduleFreeConfig().problems()


@pytest.mark.parametrize(
    ("kind", "package"), [("lion", "lion-pytorch"), ("sgd_schedulefree", "schedulefree")]
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(ConfigError, match=f"optim {kind} needs the package {package}") as caught:
        build_optimizer(HANDS[kind][0], nn.Linear(2, 2))
    assert install_line("optim") in str(caught.value.hint)
