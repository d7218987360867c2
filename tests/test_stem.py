"""The stems: their layers as the paper describes them, their initialisation, what they refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitc.errors import ConfigError
from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.models.stems import ConvNormAct, ConvStem, PatchifyStem, build_stem
from vitc.models.zoo import MODELS

# Paper Table 3 (S1's first width is 52 there by its flops, 42 by a slip) and Table 1's sizes.
PAPER_CONV_STEMS = {
    "1gf": ((24, 48, 96, 192), (2, 2, 2, 2)),
    "4gf": ((48, 96, 192, 384), (2, 2, 2, 2)),
    "18gf": ((64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2)),
    "36gf": ((64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2)),
}
PAPER_ABLATIONS = [  # channels, kernels, strides, paddings
    ((52, 104, 208, 416), (3, 3, 3, 2), (2, 2, 2, 2), (1, 1, 1, 0)),
    ((32, 64, 128, 256), (3, 3, 3, 4), (2, 2, 1, 4), (1, 1, 1, 0)),
    ((17, 34, 68, 136), (3, 3, 3, 8), (2, 1, 1, 8), (1, 1, 1, 0)),
    ((8, 16, 32, 64), (3, 3, 3, 16), (1, 1, 1, 16), (1, 1, 1, 0)),
]


def conv_stem(init: str = "2021", in_chans: int = 3, embed_dim: int = 64) -> ConvStem:
    config = ConvStemConfig(channels=(32, 64), strides=(2, 2))
    return ConvStem(config, in_chans, embed_dim, init)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", PAPER_CONV_STEMS)
def test_a_conv_stem_is_conv_norm_relu_then_one_convolution_with_bias(size: str) -> None:
    config = MODELS[f"vit_c_{size}"]
    assert isinstance(config, ViTConfig)
    stem = build_stem(config.stem, 3, config.embed_dim)
    assert isinstance(stem, ConvStem)
    leaves = [m for m in stem.modules() if not list(m.children())]
    *body, last = leaves
    channels, strides = PAPER_CONV_STEMS[size]
    assert len(body) == 3 * len(channels)
    widths = (3, *channels)
    for i, stride in enumerate(strides):
        conv, norm, act = body[3 * i : 3 * i + 3]
        assert isinstance(conv, nn.Conv2d)
        assert (conv.in_channels, conv.out_channels) == widths[i : i + 2]
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (stride, stride), (1, 1))
        assert conv.bias is None
        assert conv.groups == 1
        assert isinstance(norm, nn.BatchNorm2d)
        assert (norm.num_features, norm.eps, norm.momentum) == (channels[i], 1e-5, 0.1)
        assert isinstance(act, nn.ReLU)
    assert isinstance(last, nn.Conv2d)
    assert (last.kernel_size, last.stride, last.padding) == ((1, 1), (1, 1), (0, 0))
    assert (last.in_channels, last.out_channels) == (channels[-1], config.embed_dim)
    assert last.bias is not None
    assert stem.reduction == math.prod(strides) == 16


def test_a_conv_stem_computes_what_its_layers_say_in_that_order() -> None:
    torch.manual_seed(0)
    stem = conv_stem().eval()
    with torch.no_grad():
        for tensor in [*stem.parameters(), *stem.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.5)
    x = torch.randn(2, 3, 16, 16)
    expected = x
    for layer in stem.layers:
        assert isinstance(layer, ConvNormAct)
        conv, norm = layer.conv, layer.norm
        expected = nn.functional.conv2d(expected, conv.weight, stride=2, padding=1)
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        shape = (1, -1, 1, 1)
        expected = (expected - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        expected = (expected * norm.weight.view(shape) + norm.bias.view(shape)).clamp(min=0)
    expected = nn.functional.conv2d(expected, stem.proj.weight, stem.proj.bias)
    assert expected.std() > 0.1
    torch.testing.assert_close(stem(x), expected)


def test_a_patchify_stem_is_a_linear_map_of_each_patch() -> None:
    torch.manual_seed(0)
    stem = PatchifyStem(PatchifyStemConfig(patch_size=4), 2, 8)
    nn.init.normal_(stem.proj.bias)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 8, 12)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    expected = patches @ stem.proj.weight.flatten(1).T + stem.proj.bias
    assert stem.reduction == 4
    torch.testing.assert_close(stem(x), expected.permute(0, 3, 1, 2))


def test_patchify_starts_lecun_normal_in_both_initialisations() -> None:
    torch.manual_seed(0)
    for init in ("2021", "2022"):
        stem = PatchifyStem(PatchifyStemConfig(patch_size=8), 3, 400, init)  # type: ignore[arg-type]
        assert stem.proj.weight.std().item() == pytest.approx((1 / 192) ** 0.5, rel=0.02)
        assert stem.proj.bias is not None
        assert not stem.proj.bias.any()


def test_2021_leaves_the_3x3_as_torch_makes_them_and_draws_the_1x1_with_variance_2_over_d() -> None:
    torch.manual_seed(0)
    stem = conv_stem("2021", embed_dim=512)
    conv = stem.layers[1].conv
    bound = (1 / (9 * 32)) ** 0.5  # uniform(-bound, bound): Kaiming with a = sqrt 5
    assert isinstance(conv, nn.Conv2d)
    assert 0.98 * bound < conv.weight.abs().max().item() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert stem.proj.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.03)
    assert stem.proj.bias is not None
    assert not stem.proj.bias.any()


def test_2022_draws_the_3x3_without_the_kernels_area_and_the_1x1_with_variance_1_over_d() -> None:
    torch.manual_seed(0)
    stem = conv_stem("2022", embed_dim=512)
    for layer, channels in zip(stem.layers, (32, 64), strict=True):
        assert isinstance(layer, ConvNormAct)
        assert layer.conv.weight.std().item() == pytest.approx((2 / channels) ** 0.5, rel=0.06)
    assert stem.proj.weight.std().item() == pytest.approx((1 / 512) ** 0.5, rel=0.03)


@pytest.mark.parametrize(("channels", "kernels", "strides", "paddings"), PAPER_ABLATIONS)
def test_the_default_padding_is_the_papers_for_every_stem_of_its_table_3(
    channels: tuple[int, ...],
    kernels: tuple[int, ...],
    strides: tuple[int, ...],
    paddings: tuple[int, ...],
) -> None:
    config = ConvStemConfig(channels=channels, kernel_sizes=kernels, strides=strides)
    assert config.pads == paddings
    assert config.problems() == []
    stem = ConvStem(config, 3, 24)
    assert stem.reduction == 16
    assert stem(torch.randn(1, 3, 32, 48)).shape == (1, 24, 2, 3)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_named_ablations_are_those_of_the_papers_table_3(number: int) -> None:
    config = MODELS[f"vit_s{number}_4gf"]
    assert isinstance(config, ViTConfig)
    assert isinstance(config.stem, ConvStemConfig)
    stem = config.stem
    row = (stem.channels, stem.kernels, stem.strides, stem.pads)
    assert row == PAPER_ABLATIONS[number - 1]
    assert (stem.norm, stem.act) == ("bn", "relu")


def test_appendix_a_changes_norm_and_non_linearity_and_nothing_else() -> None:
    bn, ln = MODELS["vit_p_bn_4gf"], MODELS["vit_c_ln_4gf"]
    assert isinstance(bn, ViTConfig)
    assert isinstance(ln, ViTConfig)
    assert bn.stem == PatchifyStemConfig(patch_size=16, bn_relu=True)
    c = MODELS["vit_c_4gf"]
    assert isinstance(c, ViTConfig)
    assert isinstance(c.stem, ConvStemConfig)
    assert ln.stem == dataclasses.replace(c.stem, norm="ln")


@settings(deadline=None)
@given(kernel=st.integers(1, 7), stride=st.integers(1, 5), padding=st.integers(0, 4) | st.none())
def test_a_convolution_is_refused_exactly_when_it_skips_a_pixel_or_divides_inexactly(
    kernel: int, stride: int, padding: int | None
) -> None:
    config = ConvStemConfig(
        channels=(1,),
        strides=(stride,),
        kernel_sizes=(kernel,),
        paddings=None if padding is None else (padding,),
    )
    pad = config.pads[0]
    good = True
    for n in (stride, 4 * stride, 5 * stride):
        outputs = (n + 2 * pad - kernel) // stride + 1
        seen = {stride * o - pad + k for o in range(outputs) for k in range(kernel)}
        good &= outputs == n // stride and set(range(n)) <= seen
    assert good == (config.problems() == [])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ConvStemConfig(channels=(8, 16, 32), strides=(2, 2)), "strides (2, 2) has 2 entries"),
        (
            ConvStemConfig(channels=(8, 16), strides=(2, 2), kernel_sizes=(3,)),
            "kernel_sizes (3,) has 1 entries",
        ),
        (
            ConvStemConfig(channels=(8, 16), strides=(2, 2), paddings=(1, 1, 1)),
            "paddings (1, 1, 1) has 3 entries",
        ),
        (ConvStemConfig(channels=(), strides=()), "channels is empty"),
        (ConvStemConfig(channels=(8,), strides=(0,)), "at least 1"),
        (ConvStemConfig(channels=(0,), strides=(2,)), "at least 1"),
        (
            ConvStemConfig(channels=(8,), strides=(4,)),
            "kernel 3, stride 4 never sees 1 of every 4 pixels a side; use a kernel of at least 4",
        ),
        (
            ConvStemConfig(channels=(8,), strides=(2,), paddings=(0,)),
            "padding 0 does not divide the size by 2 exactly; use padding 1",
        ),
        (
            ConvStemConfig(channels=(8,), strides=(3,), paddings=(1,)),
            "padding 1 never sees the last row and column; use padding 0",
        ),
        (
            ConvStemConfig(channels=(8,), strides=(2,), paddings=(-1,)),
            "padding -1 does not divide the size by 2 exactly; use padding 1",
        ),
        (
            ConvStemConfig(channels=(8,), strides=(1,), kernel_sizes=(2,)),
            "no padding of an even kernel keeps the size; use an odd one",
        ),
        (PatchifyStemConfig(patch_size=0), "patch_size 0 must be at least 1"),
    ],
)
def test_a_stem_that_cannot_work_is_refused_with_the_reason(
    config: ConvStemConfig | PatchifyStemConfig, reason: str
) -> None:
    with pytest.raises(ConfigError) as e:
        build_stem(config, 3, 16)
    assert reason in e.value.message


def test_all_problems_of_a_stem_are_told_at_once() -> None:
    config = ConvStemConfig(channels=(8, 8), strides=(4, 2), paddings=(0, 0))
    with pytest.raises(ConfigError) as e:
        ConvStem(config, 3, 16)
    assert "convolution 0" in e.value.message
    assert "convolution 1" in e.value.message


@pytest.mark.parametrize(
    "stem", [conv_stem(), PatchifyStem(PatchifyStemConfig(patch_size=4), 3, 8)]
)
def test_an_input_the_stem_cannot_take_is_refused_with_the_reason(stem: nn.Module) -> None:
    with pytest.raises(ConfigError, match="30x32 are not divisible by the stem's reduction 4"):
        stem(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ConfigError, match=r"it takes \(batch, 3, height, width\)"):
        stem(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ConfigError, match=r"shape \(3, 32, 32\)"):
        stem(torch.zeros(3, 32, 32))


def test_a_stem_gives_the_same_in_channels_last_memory() -> None:
    torch.manual_seed(0)
    stem, x = conv_stem(), torch.randn(2, 3, 16, 16)
    stem.eval()
    expected = stem(x)
    stem.to(memory_format=torch.channels_last)
    torch.testing.assert_close(stem(x.to(memory_format=torch.channels_last)), expected)
