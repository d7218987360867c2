"""Counted flops, parameters and activations: the paper's models exactly, and what models never
seen cost by closed forms. Integers of `PAPER` come from running pycls's own counter."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitc
from vitc.errors import ConfigError
from vitc.models.complexity import Complexity, complexity, parts, twin_match
from vitc.models.stem_config import PatchifyStemConfig
from vitc.models.stems import build_stem
from vitc.models.zoo import REPORTED, create_model, list_models, model_config

PAPER = {  # 1000 classes at 224: the model, its stem, one block
    "vit_p_1gf": (
        Complexity(1083059944, 4830376, 5520748),
        Complexity(28939008, 147648, 37632),
        Complexity(87827328, 370944, 456843),
    ),
    "vit_p_4gf": (
        Complexity(3909048808, 18507112, 11040496),
        Complexity(57878016, 295296, 75264),
        Complexity(320898816, 1479168, 913686),
    ),
    "vit_p_18gf": (
        Complexity(17580319720, 86567656, 23895544),
        Complexity(115756032, 590592, 150528),
        Complexity(1455316224, 7087872, 1978668),
    ),
    "vit_p_36gf": (
        Complexity(35997187048, 178364392, 37136840),
        Complexity(154341376, 787456, 200704),
        Complexity(2560130048, 12596224, 2638224),
    ),
    "vit_c_1gf": (
        Complexity(1079227240, 4567936, 5628385),
        Complexity(112933632, 256152, 602112),
        Complexity(87827328, 370944, 456843),
    ),
    "vit_c_4gf": (
        Complexity(3965674216, 17754136, 11255770),
        Complexity(435402240, 1021488, 1204224),
        Complexity(320898816, 1479168, 913686),
    ),
    "vit_c_18gf": (
        Complexity(17726621416, 81573160, 24024268),
        Complexity(1717373952, 2683968, 2257920),
        Complexity(1455316224, 7087872, 1978668),
    ),
    "vit_c_36gf": (
        Complexity(35025829864, 167796008, 36606008),
        Complexity(1743114240, 2815296, 2308096),
        Complexity(2560130048, 12596224, 2638224),
    ),
}
PAPER_EXTRAS = {  # the same of paper appendices A to C: whole models
    "vit_p_bn_4gf": Complexity(3909048808, 18507112 + 2 * 384, 11040496),  # gains and biases
    "vit_c_ln_4gf": Complexity(3965674216, 17754136, 11255770),
    "vit_p_16gf": Complexity(15461406184, 71757160, 43933192),
    "vit_c_16gf": Complexity(15518031592, 71004184, 44148466),
    "vit_p_72gf": Complexity(71206897384, 352954216, 65522836),
    "vit_c_72gf": Complexity(72789247720, 354949288, 67630228),
}
TABLE_3 = {  # as printed: 10^6 flops, params, activations of the stem
    "vit_p_4gf": ("58", "0.3", "0.1"),  # printed 0.8, which must mean 0.08
    "vit_c_4gf": ("435", "1.0", "1.2"),
    "vit_s1_4gf": ("422", "0.8", "1.3"),
    "vit_s2_4gf": ("422", "0.7", "1.1"),
    "vit_s3_4gf": ("458", "0.7", "1.6"),
    "vit_s4_4gf": ("407", "0.6", "2.9"),
}
PAPER_STEM_OVER_BLOCK = {
    "vit_c_1gf": 1.286,
    "vit_c_36gf": 0.681,
}


def meta(name: str, *args: Any, **overrides: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, *args, **overrides)


def minus(a: Complexity, b: Complexity) -> tuple[int, int, int]:
    return a.flops - b.flops, a.params - b.params, a.activations - b.activations


# ------------------------------------------------------------------------------- the paper's models


SLOW = ("vit_p_16gf", "vit_c_16gf", "vit_p_72gf", "vit_p_4gf", "vit_c_18gf")  # others show it


def some(names: dict[str, Any]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in names]


@pytest.mark.parametrize("name", some(PAPER))
def test_the_papers_models_cost_exactly_what_pycls_counts(name: str) -> None:
    model = meta(name)
    whole, stem, block = PAPER[name]
    assert complexity(model) == whole
    by_name = {part.name: part for part in parts(model)}
    blocks = by_name[f"blocks.0-{model.config.depth - 1}"]
    assert (by_name["stem"].each, blocks.each) == (stem, block)
    assert blocks.repeats == model.config.depth


@pytest.mark.parametrize("name", some(PAPER_EXTRAS))
def test_the_deep_and_the_largest_models_cost_exactly_what_pycls_counts(name: str) -> None:
    assert complexity(meta(name)) == PAPER_EXTRAS[name]


@pytest.mark.slow  # other sizes have their formula below
def test_the_largest_model_at_384_costs_exactly_what_pycls_counts() -> None:
    expected = Complexity(224323811560, 355387048, 284932468)
    assert complexity(meta("vit_c_72gf"), 384) == expected
    assert complexity(meta("vit_c_72gf", img_size=384)) == expected
    assert complexity(meta("vit_c_72gf", dynamic_img_size=True), 384) == expected


@pytest.mark.parametrize("name", TABLE_3)
def test_every_stem_of_table_3_costs_what_is_printed(name: str) -> None:
    stem = next(p.each for p in parts(meta(name)) if p.name == "stem")
    flops, params, activations = TABLE_3[name]
    assert stem.flops / 1e6 == pytest.approx(int(flops), abs=0.51)  # S4's 407.504 is printed 407
    assert f"{stem.params / 1e6:.1f}" == params
    assert f"{stem.activations / 1e6:.1f}" == activations
    if name == "vit_s1_4gf":  # its first width is printed as 42
        printed = dataclasses.replace(model_config(name).stem, channels=(42, 104, 208, 416))
        found = complexity(build_stem(printed, 3, 384), img_size=224)
        assert f"{found.flops / 1e6:.0f}" == "389"


@pytest.mark.parametrize(
    ("base", "changes", "cost"),
    [
        ("vit_p_1gf", {"mlp_ratio": 4.0}, (1257806824, 5717416, 5974636)),  # ViT-T
        ("vit_p_4gf", {"mlp_ratio": 4.0}, (4607128552, 22050664, 11948272)),  # ViT-S
        ("vit_p_36gf", {"depth": 24}, (61598487528, 304326632, 63519080)),  # ViT-L
        (
            "vit_p_72gf",  # a ViT-H of patch 16, as pycls's example for sharded training has it
            {
                "embed_dim": 1280,
                "num_heads": 16,
                "depth": 32,
                "global_pool": "avg",
                "class_token": False,
            },
            (126726037480, 632196840, 100202472),
        ),
    ],
)
def test_the_original_vits_cost_exactly_what_pycls_counts(
    base: str, changes: dict[str, Any], cost: tuple[int, int, int]
) -> None:
    assert complexity(meta(base, **changes)) == Complexity(*cost)


def test_registers_and_qk_norm_cost_their_tokens_and_their_gains() -> None:
    n, d, mlp, heads = 197 + 4, 192, 576, 3
    block = n * (4 * d * d + 4 * d) + 2 * n * n * d + n * (2 * d * mlp + mlp + d)
    whole = complexity(meta("vit_p_1gf", registers=4))
    assert whole.flops == PAPER["vit_p_1gf"][1].flops + 12 * block + 1000 * (d + 1)
    assert whole.params == PAPER["vit_p_1gf"][0].params + 4 * d
    acts = 5 * d * n + heads * n * n + (mlp + d) * n
    assert whole.activations == 196 * d + 12 * acts + 1000
    n -= 5  # no registers and no class token
    block = n * (4 * d * d + 4 * d) + 2 * n * n * d + n * (2 * d * mlp + mlp + d)
    whole = complexity(meta("vit_p_1gf", class_token=False, global_pool="avg"))
    assert whole.flops == PAPER["vit_p_1gf"][1].flops + 12 * block + 1000 * (d + 1)
    assert whole.params == PAPER["vit_p_1gf"][0].params - 2 * d
    acts = 5 * d * n + heads * n * n + (mlp + d) * n
    assert whole.activations == d * n + 12 * acts + 1000
    normed = minus(complexity(meta("vit_p_1gf", qk_norm=True)), PAPER["vit_p_1gf"][0])
    assert normed == (0, 12 * 4 * 64, 0)


def test_no_integer_of_the_papers_exact_table_stands_in_the_package() -> None:
    rows = [*PAPER.values(), PAPER_EXTRAS.values()]
    table = {str(n) for row in rows for c in row for n in vars(c).values()}
    assert len(table) > 50
    for file in Path(vitc.__file__).parent.rglob("*.py"):
        numbers = set(re.findall(r"\d+", file.read_text().replace("_", "").replace(",", "")))
        assert not table & numbers, file


def test_the_papers_printed_numbers_are_near_the_counted_ones() -> None:
    for name, (whole, _, _) in PAPER.items():
        reported = REPORTED[name]
        assert whole.flops / 1e9 == pytest.approx(reported.gflops, abs=0.101)
        assert whole.params / 1e6 == pytest.approx(reported.params_m, abs=0.14)
        assert whole.activations / 1e6 == pytest.approx(reported.activations_m, rel=0.013)


@pytest.mark.parametrize("name", ["vit_p_4gf", "vit_c_18gf"])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "explicit"])
def test_however_attention_is_computed_it_costs_the_same(name: str, attention: str) -> None:
    assert complexity(meta(name, attention=attention)) == PAPER[name][0]


# ----------------------------------------------------------------- changes, by their closed forms


def test_ten_classes_cost_990_rows_of_the_head_less() -> None:
    less = minus(PAPER["vit_c_4gf"][0], complexity(meta("vit_c_4gf", num_classes=10)))
    assert less == (990 * 385, 990 * 385, 990)
    no_head = minus(PAPER["vit_c_4gf"][0], complexity(meta("vit_c_4gf", num_classes=0)))
    assert no_head == (1000 * 385, 1000 * 385, 1000)


def test_one_input_channel_costs_two_thirds_of_the_first_convolution_less() -> None:
    patchify = minus(PAPER["vit_p_1gf"][0], complexity(meta("vit_p_1gf", in_chans=1)))
    assert patchify == (256 * 2 * 192 * 196, 256 * 2 * 192, 0)
    conv = minus(PAPER["vit_c_1gf"][0], complexity(meta("vit_c_1gf", in_chans=1)))
    assert conv == (9 * 2 * 24 * 112**2, 9 * 2 * 24, 0)


def vit_cost(h: int, w: int, d: int, mlp: int, heads: int, depth: int, patch: int) -> Complexity:
    n = h * w
    length, k = n + 1, 1000
    attention = length * (4 * d * d + 4 * d) + 2 * length**2 * d
    block = attention + length * (2 * d * mlp + mlp + d)
    acts = 3 * d * length + heads * length**2 + 2 * d * length + (mlp + d) * length
    params = 4 * d * d + 4 * d + 2 * d * mlp + mlp + d + 4 * d
    stem = patch * patch * 3 * d + d
    own = d + length * d
    return Complexity(
        stem * n + depth * block + (d + 1) * k,
        stem + depth * params + (d + 1) * k + 2 * d + own,
        d * n + depth * acts + k,
    )


@pytest.mark.parametrize("size", [384, (160, 96)])
def test_another_image_size_costs_what_the_formula_says(size: int | tuple[int, int]) -> None:
    h, w = (size, size) if isinstance(size, int) else size
    expected = vit_cost(h // 16, w // 16, 192, 576, 3, 12, 16)
    assert complexity(meta("vit_p_1gf", img_size=size)) == expected
    model = create_model("vit_p_1gf")
    assert complexity(model, img_size=size) == expected
    assert complexity(model) == PAPER["vit_p_1gf"][0]
    assert model.img_size == (224, 224)
    assert model.pos_embed.shape == (1, 197, 192)


def test_an_image_size_the_stem_cannot_divide_is_refused_and_the_model_stays() -> None:
    model = create_model("vit_p_tiny")
    with pytest.raises(ConfigError, match="img_size 30 is not divisible"):
        complexity(model, img_size=30)
    assert model.training
    assert model.config.img_size == 32


# ---------------------------------------------------------------------------------- parts and twins


def test_parts_add_up_to_the_whole_and_name_what_they_are() -> None:
    model = meta("vit_c_tiny")
    found = parts(model)
    assert [(p.name, p.repeats) for p in found] == [
        ("(own)", 1),
        ("stem", 1),
        ("blocks.0-2", 3),
        ("norm", 1),
        ("head", 1),
    ]
    total = Complexity()
    for part in found:
        for _ in range(part.repeats):
            total += part.each
    assert total == complexity(model)
    assert found[0].each == Complexity(0, 64 + 17 * 64, 0)
    assert found[-1].each == Complexity(65000, 65000, 1000)


def test_parts_of_a_list_are_told_apart_where_they_differ() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU())
    found = parts(nn.ModuleDict({"body": net})["body"], img_size=2)
    assert [(p.name, p.repeats) for p in found] == [("0", 1), ("1", 1), ("2", 1)]

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out

    assert [(p.name, p.repeats) for p in parts(Wrapped(), 2)] == [("body.0", 1), ("body.1-2", 2)]


def stem_over_block(name: str) -> float:
    """Flops of the stem over those of one block; the paper aims at 1."""
    flops = {part.name.partition(".")[0]: part.each.flops for part in parts(meta(name))}
    return flops["stem"] / flops["blocks"]


def test_a_conv_model_tells_how_well_it_matches_its_twin() -> None:
    for name in ("vit_c_1gf", "vit_c_36gf"):
        match = twin_match(name)
        assert match is not None
        assert match.twin == name.replace("_c_", "_p_")
        ours, theirs = PAPER[name][0].flops, PAPER[match.twin][0].flops
        assert match.flops_mismatch == pytest.approx(ours / theirs - 1)
        assert stem_over_block(name) == pytest.approx(PAPER_STEM_OVER_BLOCK[name], abs=6e-4)
    assert twin_match("vit_p_tiny") is None


def test_the_small_conv_models_match_their_twins_within_what_the_zoo_says() -> None:
    small = [name for name in list_models("vit_c_*") if not name.endswith("gf")]
    assert len(small) >= 6
    for name in small:
        match = twin_match(name)
        assert match is not None
        assert abs(match.flops_mismatch) < 0.006
        assert 0.9 < stem_over_block(name) < 1.35


# ------------------------------------------------------------------------------ modules never seen


class Wrap(nn.Module):
    """Gives the image of (1, C, H, W) to a function, with some modules to own parameters."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (1, H W, C)


L, D = 16, 6  # tokens of a 4 x 4 image, channels
ATTENTION = L * (4 * D * D + 4 * D) + 2 * L * L * D
ATTENTION_ACTS = 5 * D * L + 2 * L * L
FEED_FORWARD = L * (2 * D * 24 + 24 + D)


def mha() -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(D, 2, batch_first=True)
    return module.eval().requires_grad_(False)  # as its fused inference path wants it


SEEN_FOR_THE_FIRST_TIME: dict[str, tuple[nn.Module, int, int]] = {
    "grouped": (nn.Conv2d(D, 9, 3, padding=1, groups=3), 9 * 2 * 9 * L + 9 * L, 9 * L),
    "depthwise": (nn.Conv2d(D, D, 3, 2, 1, groups=D, bias=False), 9 * D * 4, 4 * D),
    "dilated, same": (nn.Conv2d(D, 5, 3, padding="same", dilation=2), (9 * D + 1) * 5 * L, 5 * L),
    "transposed": (
        nn.ConvTranspose2d(D, 4, 2, stride=2, groups=2),
        D * L * 2 * 4 + 4 * 64,
        4 * 64,
    ),
    "1d": (Wrap(lambda s, x: s.f(x.flatten(2)), f=nn.Conv1d(D, 3, 5)), (5 * D + 1) * 3 * 12, 36),
    "3d": (
        Wrap(lambda s, x: s.f(x[:, None]), f=nn.Conv3d(1, 2, (3, 1, 2), bias=False)),
        3 * 2 * 2 * 4 * 4 * 3,
        2 * 4 * 4 * 3,
    ),
    "functional convolution": (
        Wrap(lambda s, x: F.conv2d(x, x.new_ones(7, D, 2, 2))),
        4 * D * 7 * 9,
        7 * 9,
    ),
    "linear": (Wrap(lambda s, x: s.f(tokens(x)), f=nn.Linear(D, 7)), (D + 1) * 7 * L, 7 * L),
    "linear, 2-d": (Wrap(lambda s, x: s.f(tokens(x)[0]), f=nn.Linear(D, 7)), 49 * L, 7 * L),
    "linear without bias": (
        Wrap(lambda s, x: F.linear(tokens(x), s.f.weight), f=nn.Linear(D, 7)),
        D * 7 * L,
        7 * L,
    ),
    "addmm": (
        Wrap(lambda s, x: torch.addmm(s.f.bias, tokens(x)[0], s.f.weight.T), f=nn.Linear(D, 7)),
        (D + 1) * 7 * L,
        7 * L,
    ),
    "broadcast matmul": (
        Wrap(lambda s, x: x.new_ones(5, 1, 3, L) @ x.new_ones(1, 2, L, D)),
        5 * 2 * 3 * L * D,
        5 * 2 * 3 * D,
    ),
    "matrix with vector": (Wrap(lambda s, x: tokens(x) @ x.new_ones(D)), L * D, L),
    "bmm": (Wrap(lambda s, x: torch.bmm(tokens(x), x.flatten(2))), L * L * D, L * L),
    "einsum": (
        Wrap(lambda s, x: torch.einsum("bchw,bcij->bhwij", x, x)),
        L * L * D,
        L * L,
    ),
    "attention without weights": (
        Wrap(lambda s, x: s.f(*3 * [tokens(x)], need_weights=False), f=mha()),
        ATTENTION,
        ATTENTION_ACTS,
    ),
    "attention with weights and mask": (
        Wrap(lambda s, x: s.f(*3 * [tokens(x)], attn_mask=x.new_ones(L, L)), f=mha()),
        ATTENTION,
        ATTENTION_ACTS,
    ),
    "cross-attention": (
        Wrap(lambda s, x: s.f(tokens(x), tokens(x)[:, :5], tokens(x)[:, :5]), f=mha()),
        (2 * L + 2 * 5) * (D * D + D) + 2 * L * 5 * D,
        (2 * L + 2 * 5) * D + 2 * L * 5 + L * D,
    ),
    "fused attention, fewer key heads": (
        Wrap(
            lambda s, x: F.scaled_dot_product_attention(
                x.new_ones(1, 4, L, 8),
                x.new_ones(1, 2, 5, 8),
                x.new_ones(1, 2, 5, 3),
                enable_gqa=True,
            )
        ),
        4 * L * 5 * (8 + 3),
        4 * L * 5 + 4 * L * 3,
    ),
    "encoder layer": (
        Wrap(
            lambda s, x: s.f(tokens(x)),
            f=nn.TransformerEncoderLayer(D, 2, 24, batch_first=True).eval().requires_grad_(False),
        ),
        ATTENTION + FEED_FORWARD,
        ATTENTION_ACTS + (24 + D) * L,
    ),
    "recurrent": (
        Wrap(lambda s, x: s.f(tokens(x)), f=nn.GRU(D, 5, batch_first=True)),
        L * 3 * 5 * (D + 1 + 5 + 1),
        L * 3 * 5 * 2,
    ),
    "windowed pooling": (
        nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.Conv2d(D, 1, 1, bias=False)),
        D,
        D * 4 + D + 1,
    ),
    "1-d pooling": (Wrap(lambda s, x: F.max_pool1d(x.flatten(2), 4)), 0, D * 4),
    "global pooling": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(D, 2)),
        14,
        2,
    ),
    "normalisation and activation": (
        nn.Sequential(nn.BatchNorm2d(D), nn.GELU(), nn.GroupNorm(2, D), nn.Softmax(1)),
        0,
        0,
    ),
    "a parametrized layer": (
        nn.utils.parametrizations.weight_norm(nn.Conv2d(D, 2, 1, bias=False)),
        2 * D * L,
        2 * L,
    ),
}


@pytest.mark.parametrize("what", SEEN_FOR_THE_FIRST_TIME)
def test_a_module_never_seen_costs_its_closed_form(what: str) -> None:
    model, flops, activations = SEEN_FOR_THE_FIRST_TIME[what]
    found = complexity(model, img_size=4, in_chans=D)
    assert (found.flops, found.activations) == (flops, activations)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert model.to("meta") is model
    assert complexity(model, img_size=4, in_chans=D) == found


def test_a_shared_layer_works_twice_and_owns_its_parameters_once() -> None:
    layer = nn.Conv2d(4, 4, 1)
    found = complexity(nn.Sequential(layer, nn.ReLU(), layer), img_size=3)
    assert found == Complexity(2 * 20 * 9, 20, 2 * 4 * 9)


def test_channels_come_from_the_first_convolution_and_the_size_may_be_oblong() -> None:
    model = nn.Sequential(nn.Conv2d(5, 2, 1, bias=False), nn.Conv2d(2, 3, 1, bias=False))
    assert complexity(model, img_size=(2, 7)) == Complexity(14 * 16, 16, 14 * 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes_are_counted(dtype: torch.dtype) -> None:
    model = create_model("vit_c_tiny").to(dtype)
    assert complexity(model) == complexity(meta("vit_c_tiny"))


def test_a_compiled_model_is_counted_as_what_it_wraps() -> None:
    model = create_model("vit_p_tiny")
    assert complexity(torch.compile(model, backend="eager")) == complexity(model)  # type: ignore[arg-type]


# -------------------------------------------------------------------------- leaving the model alone


class Restless(nn.Module):
    """Does in `forward` what makes counting hard: keeps, changes and creates tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))
        self.scale = torch.arange(4.0)  # neither parameter nor buffer: it moves nowhere
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x.to(self.conv.weight.device)
        if self.cache is None:
            self.cache = torch.arange(x.shape[-1], device=x.device) + torch.tensor([0.5])
        y = self.norm(self.conv(x)) * self.scale.view(1, -1, 1, 1)
        out: Tensor = y + self.cache + torch.zeros(1).expand(4, 1, 1)
        return out


def test_counting_leaves_a_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = Restless()
    model.train()
    model.conv.eval()
    model.conv.weight.requires_grad_(False)
    model(torch.randn(2, 3, 4, 4))
    model.cache = None
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {n: t.detach().clone() for n, t in tensors.items()}
    attributes = {n: dict(vars(m)) for n, m in model.named_modules()}
    generator, mha_fast_path = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()

    assert complexity(model, img_size=4) == Complexity(4 * 4 * 16, 16 + 8, 4 * 16)
    assert parts(model, img_size=4)[0].name == "conv"

    assert {**dict(model.named_parameters()), **dict(model.named_buffers())} == tensors
    for name, tensor in tensors.items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, values[name])
    for name, module in model.named_modules():
        assert vars(module) == attributes[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert model.cache is None
    assert model.training
    assert not model.conv.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.backends.mha.get_fastpath_enabled() == mha_fast_path
    model(torch.randn(2, 3, 4, 4)).sum().backward()  # still trains


def test_a_model_whose_path_depends_on_values_is_refused_with_the_reason_and_left_alone() -> None:
    model = Wrap(lambda s, x: s.f(x) if x.sum() > 0 else x, f=nn.Conv2d(3, 4, 1))
    with pytest.raises(ConfigError, match="Wrap cannot be counted at 8x8 with 3 channels"):
        complexity(model, img_size=8)
    assert model.training
    assert not model.f._forward_hooks


def test_what_is_not_known_about_a_model_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="img_size of Conv2d is unknown"):
        complexity(nn.Conv2d(3, 4, 1))
    with pytest.raises(ConfigError, match="has no in_chans and no convolution"):
        complexity(nn.Linear(4, 4), img_size=4)
    with pytest.raises(ConfigError, match="cannot be counted at 8x8 with 2 channels"):
        complexity(nn.Conv2d(3, 4, 1), img_size=8, in_chans=2)


def test_counting_works_inside_other_contexts() -> None:
    model = create_model("vit_c_tiny")
    expected = complexity(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert complexity(model) == expected
    with torch.device("meta"):
        assert complexity(model) == expected
    with torch.inference_mode():
        assert complexity(model) == expected


def test_a_stem_alone_is_counted() -> None:
    stem = build_stem(PatchifyStemConfig(patch_size=16), 3, 192)
    assert complexity(stem, img_size=224) == PAPER["vit_p_1gf"][1]
    assert vitc.complexity(stem, img_size=224) == vitc.Complexity(
        *vars(PAPER["vit_p_1gf"][1]).values()
    )
