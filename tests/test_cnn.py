"""The CNN baselines: cost to the integer, logits of other libraries, initialisation, behaviour."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import vitc
from vitc.deploy.show import list_page, model_page
from vitc.errors import ConfigError
from vitc.models.cnn import CNN, ConvNorm
from vitc.models.complexity import complexity
from vitc.models.config import CNNConfig
from vitc.models.timm import import_peer
from vitc.models.zoo import (
    CNNS,
    MODELS,
    REPORTED,
    build_model,
    create_model,
    list_models,
    model_config,
    regnet_stages,
)
from vitc.resolve import load_config
from vitc.views.model import Table

# ------------------------------------------------------- definitions of others in the same family


def regnet(se: float, depth: int, w_0: int, w_a: float, w_m: float, group_width: int) -> CNNConfig:
    depths, widths, groups = regnet_stages(depth, w_0, w_a, w_m, group_width)
    return CNNConfig(
        name="published",
        stem_type="simple",
        stem_width=32,
        depths=depths,
        widths=widths,
        strides=(2,) * len(depths),
        bottleneck_ratio=1.0,
        group_widths=groups,
        se_ratio=se,
    )


def resnext(depths: tuple[int, ...]) -> CNNConfig:
    return CNNConfig(depths=depths, bottleneck_ratio=0.5, group_widths=(4, 8, 16, 32))


def effnet(
    size: int, stem: int, depths: tuple[int, ...], widths: tuple[int, ...], head: int
) -> CNNConfig:
    return dataclasses.replace(
        CNNS["effnet_b2"],
        name="published",
        img_size=size,
        stem_width=stem,
        depths=depths,
        widths=widths,
        head_width=head,
    )


# pycls's published zoo: its generating numbers, and the costs that its own counter gives.
# fmt: off
REGNETX = {
    "200MF": ((13, 24, 36.44, 2.49, 8), (199040872, 2684792, 2164056)),
    "400MF": ((22, 24, 24.48, 2.54, 16), (397678568, 5157512, 3143272)),
    "600MF": ((16, 48, 36.97, 2.24, 24), (600891112, 6196040, 3975096)),
    "800MF": ((16, 56, 35.73, 2.28, 16), (799700712, 7259656, 5148744)),
    "1.6GF": ((18, 80, 34.01, 2.25, 24), (1602850792, 9190136, 7933512)),
    "3.2GF": ((25, 88, 26.31, 2.25, 48), (3176622952, 15296552, 11367432)),
    "4.0GF": ((23, 96, 38.65, 2.43, 40), (3964499816, 22118248, 12201608)),
    "6.4GF": ((17, 184, 60.83, 2.07, 56), (6460292264, 26209256, 16369744)),
    "8.0GF": ((23, 80, 49.56, 2.88, 120), (7995133416, 39572648, 14059688)),
    "12GF": ((19, 168, 73.36, 2.37, 112), (12086679016, 46106056, 21366568)),
    "16GF": ((22, 216, 55.59, 2.1, 128), (15940756456, 54278536, 25515496)),
    "32GF": ((23, 320, 69.86, 2.0, 168), (31735930792, 107811560, 36302160)),
}
REGNETY = {
    "200MF": ((13, 24, 36.44, 2.49, 8), (199519076, 3162996, 2168052)),
    "400MF": ((16, 48, 27.89, 2.09, 8), (401849056, 4344144, 3892496)),
    "600MF": ((15, 48, 32.54, 2.32, 16), (601227608, 6055160, 4334296)),
    "800MF": ((14, 56, 38.84, 2.4, 16), (797183328, 6263168, 5249888)),
    "1.6GF": ((27, 48, 20.71, 2.65, 24), (1612087326, 11202430, 8044814)),
    "3.2GF": ((21, 80, 42.63, 2.66, 24), (3176496162, 19436338, 11263418)),
    "4.0GF": ((22, 96, 31.41, 2.24, 64), (3973301344, 20646656, 12287200)),
    "6.4GF": ((25, 112, 33.22, 2.27, 72), (6355221876, 30583252, 16407188)),
    "8.0GF": ((17, 192, 76.82, 2.19, 56), (7963074196, 39180068, 17968916)),
    "12GF": ((19, 168, 73.36, 2.37, 112), (12092395504, 51822544, 21384496)),
    "16GF": ((18, 200, 106.23, 2.48, 112), (15911534044, 83590140, 23041228)),
    "32GF": ((20, 232, 115.89, 2.53, 232), (32279583362, 145046770, 30261570)),
}
EFFNET = {
    "B0": (effnet(224, 32, (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 1280),
           (385825092, 5288548, 6748036)),
    "B1": (effnet(240, 32, (2, 3, 3, 4, 4, 5, 2), (16, 24, 40, 80, 112, 192, 320), 1280),
           (686817992, 7794184, 10884328)),
    "B2": (CNNS["effnet_b2"], (993578282, 9109994, 13832834)),
    "B3": (effnet(300, 40, (2, 3, 3, 5, 5, 6, 2), (24, 32, 48, 96, 136, 232, 384), 1536),
           (1827162472, 12233232, 23831296)),
    "B4": (CNNS["effnet_b4"], (4393801064, 19341616, 49489032)),
    "B5": (CNNS["effnet_b5"], (10266426072, 30389784, 98857400)),
}
RESNET = {
    "50": (CNNS["resnet_50"], (4089185256, 25557032, 11315688)),
    "101": (CNNS["resnet_101"], (7801406440, 44549160, 16433640)),
    "152": (CNNS["resnet_152"], (11513627624, 60192808, 22755816)),
    "X-50": (resnext((3, 4, 6, 3)), (4230480872, 25028904, 14602216)),
    "X-101": (resnext((3, 4, 23, 3)), (7969997800, 44177704, 21426152)),
    "X-152": (resnext((3, 8, 36, 3)), (11709514728, 59951400, 29855720)),
}
PAPER = {
    "1GF": (CNNS["regnety_1gf"], (1047175162, 9600538, 6210106)),
    "4GF": (CNNS["regnety_4gf"], (4095782704, 22408976, 14465008)),
    "16GF": (CNNS["regnety_16gf"], (15459535460, 72282900, 30702212)),
    "32GF": (CNNS["regnety_32gf"], (31073411646, 128552446, 46221350)),
}
# fmt: on
EXACT = [
    *(
        pytest.param(
            regnet(0.0, *definition),
            cost,
            id=f"RegNetX-{n}",
            marks=() if n == "200MF" else pytest.mark.slow,
        )
        for n, (definition, cost) in REGNETX.items()
    ),
    *(pytest.param(regnet(0.25, *d), cost, id=f"RegNetY-{n}") for n, (d, cost) in REGNETY.items()),
    *(pytest.param(config, cost, id=f"EffNet-{n}") for n, (config, cost) in EFFNET.items()),
    *(
        pytest.param(
            config,
            cost,
            id=f"ResNet-{n}",
            marks=pytest.mark.slow if n in ("X-101", "X-152") else (),
        )
        for n, (config, cost) in RESNET.items()
    ),
    *(pytest.param(config, cost, id=f"paper's Y-{n}") for n, (config, cost) in PAPER.items()),
]


@functools.cache
def cost_of(config: CNNConfig) -> tuple[int, int, int]:
    with torch.device("meta"):
        counted = complexity(CNN(config))
    return counted.flops, counted.params, counted.activations


@pytest.mark.slow
@pytest.mark.parametrize(("config", "cost"), EXACT)
def test_its_cost_is_the_published_one_to_the_integer(
    config: CNNConfig, cost: tuple[int, int, int]
) -> None:
    assert config.problems() == []
    assert cost_of(config) == cost


@pytest.mark.parametrize("name", CNNS)
def test_the_papers_printed_cost_is_the_counted_one_rounded(name: str) -> None:
    flops, params, activations = cost_of(CNNS[name])
    ours = flops / 1e9, params / 1e6, activations / 1e6
    # ResNet-200's activations are 32.39 M, printed as 32.3: cut off rather than rounded
    slack = 0.1 if name == "resnet_200" else 0.05
    assert ours == pytest.approx(REPORTED[name], abs=slack + 1e-9)


@pytest.mark.parametrize(("name", "factor"), [("regnety_16gf", 4), ("regnety_32gf", 8)])
def test_larger_regnetys_are_the_4gf_under_the_fast_compound_rule(name: str, factor: int) -> None:
    """arXiv 2103.06877: a tenth of the scaling by depth, 8 tenths by width and groups, a tenth by
    resolution, of flops that go as d w^2 r^2."""
    base, large = CNNS["regnety_4gf"], CNNS[name]
    deeper, wider, finer = factor**0.1, factor**0.4, factor**0.05
    assert large.depths == tuple(round(d * deeper) for d in base.depths)
    assert base.group_widths is not None
    group = round(base.group_widths[0] * wider / 8) * 8
    assert large.group_widths == (group,) * 4
    eights = (round(w * wider / 8) * 8 for w in base.widths)
    assert large.widths == tuple(round(w / group) * group for w in eights)
    assert large.size[0] == round(base.size[0] * finer / 4) * 4


def test_every_cnn_of_the_paper_is_there_with_its_sizes_in_training_and_test() -> None:
    names = {f"resnet_{d}" for d in (50, 101, 152, 200)}
    names |= {f"regnety_{g}gf" for g in (1, 4, 16, 32)} | {f"effnet_b{b}" for b in (2, 4, 5)}
    assert (
        set(CNNS)
        == names
        == {n for n in REPORTED if not n.startswith("vit_")}
        == {n for n in MODELS if MODELS[n] in CNNS.values()}
    )
    assert set(list_models("regnety_*")) <= names
    sizes = {n: (c.img_size, c.test_size) for n, c in CNNS.items()}
    assert sizes["resnet_200"] == (224, 256)
    assert sizes["regnety_1gf"] == (232, 262)
    assert sizes["regnety_32gf"] == (268, 304)
    assert sizes["effnet_b5"] == (456, 522)
    assert model_config("resnet_50", img_size=64).test_size is None, "not at the paper's size"
    with pytest.raises(ConfigError, match="cannot be rebuilt"):
        create_model("regnetz_4gf")


def test_show_lists_every_cnn_and_puts_its_cost_beside_the_papers() -> None:
    tables = [part for part in list_page().parts if isinstance(part, Table)]
    table = next(t for t in tables if t.title.startswith("CNNs"))
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert list(rows) == [*CNNS, "effnet_lite0"]
    assert rows["regnety_4gf"]["stages"] == "2-6-16-2"
    assert (rows["regnety_4gf"]["image"], rows["regnety_4gf"]["test"]) == ("240", "272")
    shown = model_page(CNNS["regnety_4gf"])
    assert shown.values["flops"] == cost_of(CNNS["regnety_4gf"])[0]
    assert shown.values["reported"]["params"] == pytest.approx(22.4e6)
    assert "the paper's test size 272, on 240x240 images" in str(shown.parts[0])


# ---------------------------------------------------------------------------- parity with others


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and buffer away from its default, so that no fault hides behind it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                tensor.fill_(7)
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim > 1:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            else:
                gain = name.endswith("norm.weight")
                tensor.copy_((1 if gain else 0) + 0.3 * noise)
    return model


def peer_models() -> Any:
    try:
        return import_peer("torchvision").models
    except ImportError:
        pytest.skip("NO PARITY CHECKED: torchvision is not installed (extra `peers`)")


def renamed(model: nn.Module, rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """The state under a peer's names: the first rule that matches the whole name, then the norm."""
    out = {}
    for name, tensor in model.state_dict().items():
        for pattern, theirs in rules:
            if re.fullmatch(pattern, name):
                out[re.sub(pattern, theirs, name)] = tensor.clone()
                break
        else:
            raise AssertionError(f"no rule for {name}")
    return out


def assert_same(ours: nn.Module, theirs: nn.Module, rules: list[tuple[str, str]]) -> None:
    """Same logits with evaluation's and with training's BatchNorm, and the same updated buffers."""
    filled(ours)
    theirs.load_state_dict(renamed(ours, rules))
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for mode in (False, True):
        ours.train(mode), theirs.train(mode)
        with torch.no_grad():
            mine, expected = ours(x), theirs(x)
        assert expected.std() >= 0.1
        assert (mine - expected).abs().max() <= 1e-5 * expected.abs().max()
    after = theirs.state_dict()
    for name, tensor in renamed(ours, rules).items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-4, atol=1e-4)


def test_resnet_50_gives_torchvisions_logits() -> None:
    theirs = peer_models().resnet50(weights=None, num_classes=10)
    rules = [
        (r"stem\.conv\.conv\.(.*)", r"conv1.\1"),
        (r"stem\.conv\.norm\.(.*)", r"bn1.\1"),
        (r"stages\.0\.(\d+)\.conv(\d)\.conv\.(.*)", r"layer1.\1.conv\2.\3"),
        (r"head\.(.*)", r"fc.\1"),
    ]
    for stage in range(4):
        here, there = rf"stages\.{stage}\.(\d+)", f"layer{stage + 1}"
        rules += [
            (here + r"\.conv(\d)\.conv\.(.*)", there + r".\1.conv\2.\3"),
            (here + r"\.conv(\d)\.norm\.(.*)", there + r".\1.bn\2.\3"),
            (here + r"\.shortcut\.conv\.(.*)", there + r".\1.downsample.0.\2"),
            (here + r"\.shortcut\.norm\.(.*)", there + r".\1.downsample.1.\2"),
        ]
    assert_same(create_model("resnet_50", 10, img_size=64), theirs, rules)


def test_regnety_400mf_by_definition_gives_torchvisions_logits() -> None:
    theirs = peer_models().regnet_y_400mf(weights=None, num_classes=10)
    rules = [
        (r"stem\.conv\.conv\.(.*)", r"stem.0.\1"),
        (r"stem\.conv\.norm\.(.*)", r"stem.1.\1"),
        (r"head\.(.*)", r"fc.\1"),
    ]
    for stage in range(4):
        for block in range(12):
            here = rf"stages\.{stage}\.{block}\."
            there = f"trunk_output.block{stage + 1}.block{stage + 1}-{block}."
            for layer, inner in (
                ("conv1", "f.a"),
                ("conv2", "f.b"),
                ("conv3", "f.c"),
                ("shortcut", "proj"),
            ):
                rules += [
                    (here + layer + r"\.conv\.(.*)", there + inner + r".0.\1"),
                    (here + layer + r"\.norm\.(.*)", there + inner + r".1.\1"),
                ]
            rules.append((here + r"se\.(.*)", there + r"f.se.\1"))
    config = dataclasses.replace(regnet(0.25, *REGNETY["400MF"][0]), num_classes=10)
    assert_same(CNN(config), theirs, rules)


def test_efficientnet_b0_by_definition_gives_torchvisions_logits() -> None:
    theirs = peer_models().efficientnet_b0(
        weights=None, num_classes=10, stochastic_depth_prob=0.0, dropout=0.0
    )
    rules = [
        (r"stem\.conv\.conv\.(.*)", r"features.0.0.\1"),
        (r"stem\.conv\.norm\.(.*)", r"features.0.1.\1"),
        (r"conv_head\.conv\.(.*)", r"features.8.0.\1"),
        (r"conv_head\.norm\.(.*)", r"features.8.1.\1"),
        (r"head\.(.*)", r"classifier.1.\1"),
    ]
    for stage in range(7):
        here, there = rf"stages\.{stage}\.(\d+)\.", rf"features.{stage + 1}.\1.block."
        first = 1 if stage else 0  # the first stage does not expand
        for at, layer in ((0, "expand"), (first, "depthwise"), (first + 2, "project")):
            rules += [
                (here + layer + r"\.conv\.(.*)", there + str(at) + r".0.\2"),
                (here + layer + r"\.norm\.(.*)", there + str(at) + r".1.\2"),
            ]
        rules.append((here + r"se\.(.*)", there + str(first + 1) + r".\2"))
    assert_same(CNN(dataclasses.replace(EFFNET["B0"][0], num_classes=10)), theirs, rules)


BOTTLENECK = CNNConfig(
    stem_width=8,
    depths=(1, 2),
    widths=(16, 24),
    strides=(1, 2),
    kernel_sizes=(3, 5),
    bottleneck_ratio=0.5,
    group_widths=(4, 6),
    se_ratio=0.25,
    head_width=20,
    img_size=32,
    num_classes=5,
)
MBCONV = CNNConfig(
    stem_type="simple",
    stem_width=8,
    block="mbconv",
    depths=(1, 2),
    widths=(8, 12),
    strides=(1, 2),
    kernel_sizes=(3, 5),
    expand_ratios=(1, 4),
    se_ratio=0.25,
    head_width=20,
    activation="silu",
    img_size=32,
    num_classes=5,
)


def reference(model: nn.Module, config: CNNConfig, x: Tensor) -> Tensor:
    """The same network from torch's functions and the model's tensors, written out flat."""
    w = model.state_dict()
    act = F.relu if config.activation == "relu" else F.silu

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.conv.weight"]
        groups = x.shape[1] // kernel.shape[1]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        stats = [w[f"{name}.norm.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *stats)

    def excite(x: Tensor, name: str) -> Tensor:
        s = F.adaptive_avg_pool2d(x, 1)
        for i in (1, 2):
            s = F.conv2d(s, w[f"{name}.fc{i}.weight"], w[f"{name}.fc{i}.bias"])
            s = act(s) if i == 1 else s.sigmoid()
        return x * s

    x = act(conv(x, "stem.conv", 1 if config.stem_type == "cifar" else 2))
    if config.stem_type == "resnet":
        x = F.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(config.depths):
        for i in range(depth):
            b, stride = f"stages.{stage}.{i}", config.strides[stage] if i == 0 else 1
            y = x
            if config.block == "bottleneck":
                y = act(conv(y, f"{b}.conv1"))
                y = excite(act(conv(y, f"{b}.conv2", stride)), f"{b}.se")
                y = conv(y, f"{b}.conv3")
                x = act(y + (x if x.shape == y.shape else conv(x, f"{b}.shortcut", stride)))
            else:
                y = act(conv(y, f"{b}.expand")) if f"{b}.expand.conv.weight" in w else y
                y = excite(act(conv(y, f"{b}.depthwise", stride)), f"{b}.se")
                y = conv(y, f"{b}.project")
                x = x + y if x.shape == y.shape else y
    x = act(conv(x, "conv_head"))
    return F.linear(x.flatten(2).mean(2), w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("stem", ["simple", "resnet", "cifar"])
@pytest.mark.parametrize("config", [BOTTLENECK, MBCONV], ids=["bottleneck", "mbconv"])
def test_it_computes_what_a_reference_of_torchs_functions_does(
    config: CNNConfig, stem: Any
) -> None:
    config = dataclasses.replace(config, stem_type=stem)
    model = filled(CNN(config)).eval()
    x = torch.randn(3, 3, 37, 32)
    with torch.no_grad():
        expected = reference(model, config, x)
        assert expected.std() >= 0.1
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("name", ["resnet_50", "regnety_1gf", "effnet_b2"])
def test_each_kind_of_tensor_starts_as_in_pycls(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            area = layer.kernel_size[0] * layer.kernel_size[1]
            expected = (2 / (area * layer.out_channels)) ** 0.5  # whatever the groups
            n = layer.weight.numel()
            assert layer.weight.std().item() == pytest.approx(expected, rel=5 / (2 * n) ** 0.5)
            assert abs(layer.weight.mean().item()) < 5 * expected / n**0.5
            assert (layer.bias is not None) == (".se." in path)
            if layer.bias is not None:  # left as PyTorch makes it
                bound = layer.in_channels**-0.5
                assert 0.5 * bound < layer.bias.abs().max() <= bound
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
            assert (layer.running_mean == 0).all()
            assert (layer.running_var == 1).all()
            assert (layer.eps, layer.momentum) == (1e-5, 0.1)
        elif isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.01)
            assert (layer.bias == 0).all()


def test_zero_init_last_makes_fresh_blocks_pass_their_shortcut_on() -> None:
    model = CNN(dataclasses.replace(BOTTLENECK, zero_init_last=True)).eval()
    zero = [n for n, p in model.named_parameters() if n.endswith("norm.weight") and not p.any()]
    assert zero == [f"stages.{b}.conv3.norm.weight" for b in ("0.0", "1.0", "1.1")]
    x = torch.randn(2, 24, 4, 4).relu()
    torch.testing.assert_close(model.stages[1][1](x), x)  # type: ignore[index]


def test_one_seed_gives_one_model_and_logits_of_a_fresh_one_are_small() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(create_model("regnety_1gf", 10, img_size=32))
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert made[0](torch.randn(8, 3, 32, 32)).abs().max() < 5


# -------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("config", [BOTTLENECK, MBCONV], ids=["bottleneck", "mbconv"])
def test_it_has_the_fields_habits(config: CNNConfig) -> None:
    model = CNN(config).eval()
    assert (model.in_chans, model.img_size, model.num_classes) == (3, (32, 32), 5)
    assert model.num_features == 20
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 20, 4, 4) if config.stem_type == "resnet" else (2, 20, 8, 8)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(x), model.head(pooled))
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, 20)
    model.set_input_size((40, 24))
    assert model.img_size == (40, 24) == model.config.size
    assert model(torch.randn(2, 3, 40, 24)).shape == (2, 20)
    assert complexity(model, 64).flops > complexity(model).flops
    assert model.img_size == (40, 24)
    assert CNN(dataclasses.replace(config, num_classes=None)).num_classes == 1000
    assert create_model("resnet_50", 0, img_size=32).num_classes == 0


@pytest.mark.parametrize("config", [BOTTLENECK, MBCONV], ids=["bottleneck", "mbconv"])
def test_norms_and_biases_are_not_decayed_and_layers_hold_every_parameter_once(
    config: CNNConfig,
) -> None:
    model = CNN(config)
    names = [n for n, _ in model.named_parameters()]
    exempt = {n for n in names if "norm." in n or n.endswith("bias")}
    assert model.no_weight_decay() == exempt
    layers = model.layers()
    assert sorted(n for layer in layers for n in layer) == sorted(names)
    assert len(layers) == 1 + sum(config.depths) + 1
    assert all(n.startswith("stem.") for n in layers[0])
    assert all(n.startswith("stages.1.1.") for n in layers[3])
    assert {"head.weight", "head.bias", "conv_head.conv.weight"} <= set(layers[-1])
    headless = CNN(dataclasses.replace(config, head_width=None))
    headless.reset_classifier(0)
    assert all(headless.layers())


@pytest.mark.parametrize(
    "extra",
    [
        {},
        pytest.param(
            {
                "optim": "sgd",
                "model.stem_type": "cifar",
                "train.precision": "bf16",
                "train.channels_last": True,
            },
            marks=pytest.mark.slow,  # where bf16 is emulated
        ),
    ],
)
def test_a_cnn_trains_on_a_recipe_of_small_images(tmp_path: Path, extra: dict[str, Any]) -> None:
    config = load_config(
        "debug",
        **{
            "model": "regnety_1gf",
            "model.img_size": 32,
            "train.epochs": 1,
            "data.max_train": 32,
            "model.depths": [1, 1, 1, 1],
            **extra,
        },
    )
    assert isinstance(config.model, CNNConfig)
    assert config.model.group_widths == (4,) * 4
    result = vitc.train(config, out=tmp_path / "run")
    assert (result.status, result.summary["step"]) == ("done", 2)
    assert vitc.load_config(tmp_path / "run").model == config.model


def test_recomputing_is_refused_because_batchnorm_would_count_twice() -> None:
    model = CNN(BOTTLENECK)
    model.set_grad_checkpointing(False)
    with pytest.raises(ConfigError, match="running statistics twice"):
        model.set_grad_checkpointing()


def test_wrong_input_and_wrong_sizes_are_refused() -> None:
    model = CNN(BOTTLENECK)
    with pytest.raises(ConfigError, match=r"shape \(2, 1, 32, 32\); it takes \(batch, 3,"):
        model(torch.randn(2, 1, 32, 32))
    with pytest.raises(ConfigError, match="one image of 8x5: cnn divides the size by 8"):
        model(torch.randn(1, 3, 8, 5))
    assert model(torch.randn(1, 3, 9, 5)).shape == model(torch.randn(2, 3, 8, 5))[:1].shape
    assert model.eval()(torch.randn(1, 3, 8, 5)).shape == (1, 5)
    with pytest.raises(ConfigError, match="img_size 0 must be at least 1"):
        model.set_input_size(0)
    with pytest.raises(ConfigError, match="num_classes -1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": ()}, "model.depths is empty"),
        ({"depths": (1, 0)}, r"model.depths \(1, 0\) must be at least 1"),
        ({"widths": (16,)}, r"model.widths \(16,\) has 1 entries for the 2 stages"),
        ({"strides": (1, 2, 2)}, "has 3 entries for the 2 stages"),
        ({"kernel_sizes": (3, 4)}, "must all be odd"),
        ({"group_widths": (4, 7)}, "7 does not divide the 12 channels inside a block of stage 2"),
        ({"bottleneck_ratio": 0.0}, r"bottleneck_ratio 0.0 must be above 0"),
        ({"bottleneck_ratio": 0.01, "group_widths": None}, "leaves no channel inside"),
        ({"se_ratio": 1.5}, "se_ratio 1.5 must be in"),
        ({"se_ratio": 0.01}, "leaves no channel for a block with 8 input channels"),
        ({"head_width": 0}, "head_width 0 must be at least 1"),
        ({"stem_width": 0}, "stem_width 0 must be at least 1"),
        ({"stem_type": "odd"}, "stem_type 'odd' must be one of simple, resnet, cifar"),
        ({"activation": "gelu"}, "activation 'gelu' must be one of relu, relu6, silu"),
        ({"block": "mbconv"}, "model.bottleneck_ratio has no effect with model.block 'mbconv'"),
        ({"expand_ratios": (1, 6)}, "expand_ratios has no effect with model.block 'bottleneck'"),
        ({"img_size": 0}, "img_size 0 must be at least 1"),
        ({"in_chans": 0}, "in_chans 0 must be at least 1"),
    ],
)
def test_values_that_cannot_work_are_said(change: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(BOTTLENECK, **change)
    assert any(re.search(message, p) for p in config.problems()), config.problems()
    with pytest.raises(ConfigError, match=message):
        CNN(config)


@settings(max_examples=25, deadline=None)
@given(
    stem=st.sampled_from(["simple", "resnet", "cifar"]),
    block=st.sampled_from(["bottleneck", "mbconv"]),
    stages=st.lists(
        st.tuples(
            st.integers(1, 2),
            st.integers(1, 40),
            st.integers(1, 3),
            st.sampled_from([1, 2, 3, 5]),
            st.integers(1, 4),
            st.integers(1, 4),
        ),
        max_size=3,
    ),
    optional=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    ratio=st.floats(0, 3),
    se=st.sampled_from([0.0, 0.05, 0.25, 1.0]),
    size=st.integers(1, 40),
)
def test_what_has_no_problems_can_be_built_and_run(
    stem: Any,
    block: Any,
    stages: list[tuple[int, ...]],
    optional: tuple[bool, bool, bool],
    ratio: float,
    se: float,
    size: int,
) -> None:
    columns = tuple(zip(*stages, strict=True)) or ((),) * 6
    depths, widths, strides, kernels, groups, expand = columns
    config = CNNConfig(
        stem_type=stem,
        stem_width=12,
        block=block,
        depths=depths,
        widths=widths,
        strides=strides,
        kernel_sizes=kernels if optional[0] else None,
        group_widths=groups if optional[1] and block == "bottleneck" else None,
        expand_ratios=expand if optional[2] and block == "mbconv" else None,
        bottleneck_ratio=ratio if block == "bottleneck" else 0.25,
        se_ratio=se,
        img_size=size,
    )
    if config.problems():
        return
    with torch.device("meta"):
        model = CNN(config).eval()
        assert model(torch.empty(2, 3, size, size)).shape == (2, 1000)
    assert config.summary


def test_every_problem_is_said_at_once() -> None:
    config = dataclasses.replace(BOTTLENECK, in_chans=0, stem_width=0, widths=(0, 1), se_ratio=-1)
    assert len(config.problems()) == 4


def test_the_width_rule_is_that_of_the_regnet_paper() -> None:
    depths, widths, groups = regnet_stages(26, 88, 30.3, 2.404, 32)
    assert (sum(depths), groups) == (26, (32,) * 4)
    assert all(w % 32 == 0 for w in widths)
    assert widths == tuple(sorted(widths))
    assert regnet_stages(1, 8, 5.0, 2.5, 16) == ((1,), (8,), (8,)), "a group is no wider than all"


def test_configs_are_read_without_torch() -> None:
    code = (
        "import sys; from vitc.models.zoo import CNNS;"
        "assert all(not c.problems() and c.summary and c.test_size for c in CNNS.values());"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("side", [7, 8, 15])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_same_adds_what_the_last_position_lacks_and_the_odd_pixel_at_the_end(
    side: int, kernel: int
) -> None:
    layer = ConvNorm(1, 1, kernel, stride=2, activation="relu6").eval()
    layer.pad_same()
    with torch.no_grad():
        layer.conv.weight.fill_(0.0)
        layer.conv.weight[0, 0, 0, 0] = 1.0  # reads the pixel at the start of each window
    image = torch.arange(1.0, side * side + 1).view(1, 1, side, side) / (side * side)
    out = layer(image)[0, 0] * (1 + 1e-5) ** 0.5
    positions = -(-side // 2)
    before = max(0, (positions - 1) * 2 + kernel - side) // 2
    assert out.shape == (positions, positions)
    for row in range(positions):
        for column in range(positions):
            y, x = 2 * row - before, 2 * column - before
            expected = image[0, 0, y, x].item() if min(y, x) >= 0 else 0.0
            assert out[row, column].item() == pytest.approx(expected, abs=1e-6)


def test_lite0_is_b0_without_squeeze_and_excitation() -> None:
    """Multiply-adds and parameters as github.com/tensorflow/tpu states them: 407 M with pooling
    and biases counted its own way, 4.7 M parameters."""
    config = MODELS["effnet_lite0"]
    flops, params, _ = cost_of(config)
    assert flops == 385188552
    assert params == 4652008
    model = build_model(config, 1000)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert not any("SqueezeExcite" in type(m).__name__ for m in model.modules())
