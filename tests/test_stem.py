"""The stems: what each computes, written out from its source; how it starts; what it refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vitc.config import RunConfig, from_dict
from vitc.errors import ConfigError
from vitc.models.complexity import complexity
from vitc.models.config import ViTConfig
from vitc.models.stem_config import (
    STEM_KINDS,
    ConvStemConfig,
    CustomStemConfig,
    DepthwiseStemConfig,
    DualPatchNormStemConfig,
    NormFreeStemConfig,
    OverlapStemConfig,
    PatchifyStemConfig,
    ResidualStemConfig,
    ScaledReluStemConfig,
    StemConfig,
)
from vitc.models.stems import (
    ConvStem,
    DepthwiseStem,
    DualPatchNormStem,
    NormFreeStem,
    OverlapStem,
    PatchifyStem,
    ScaledReluStem,
    StandardisedConv,
    build_stem,
)
from vitc.models.zoo import MODELS, create_model

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
def test_the_papers_conv_stems_are_its_table_3_and_all_else_is_the_default(size: str) -> None:
    config = MODELS[f"vit_c_{size}"]
    assert isinstance(config, ViTConfig)
    channels, strides = PAPER_CONV_STEMS[size]
    assert config.stem == ConvStemConfig(channels=channels, strides=strides)
    assert config.stem.reduction == math.prod(strides) == 16
    layer = conv_stem().layers[0]
    assert (layer.conv.kernel_size, layer.conv.padding, layer.conv.bias) == ((3, 3), (1, 1), None)
    assert (layer.norm.eps, layer.norm.momentum) == (1e-5, 0.1)


def test_a_patchify_stem_is_a_linear_map_of_each_patch() -> None:
    torch.manual_seed(0)
    stem = PatchifyStem(PatchifyStemConfig(patch_size=4), 2, 8)
    nn.init.normal_(stem.proj.bias)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 8, 12)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    expected = patches @ stem.proj.weight.flatten(1).T + stem.proj.bias
    assert stem.reduction == 4
    torch.testing.assert_close(stem(x), expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_default_padding_gives_every_stem_of_the_papers_table_3(number: int) -> None:
    channels, kernels, strides, paddings = PAPER_ABLATIONS[number - 1]
    config = ConvStemConfig(channels=channels, kernel_sizes=kernels, strides=strides)
    assert MODELS[f"vit_s{number}_4gf"].stem == config  # type: ignore[attr-defined]
    assert config.pads == paddings
    assert config.problems() == []
    stem = ConvStem(config, 3, 24)
    assert stem.reduction == 16
    assert stem(torch.randn(1, 3, 32, 48)).shape == (1, 24, 2, 3)


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
        (DualPatchNormStemConfig(patch_size=0), "stem.patch_size 0 must be at least 1"),
        (ScaledReluStemConfig(patch_size=7), "patch_size 7 must be even: the stem's first"),
        (ScaledReluStemConfig(width=0), "stem.width 0 must be at least 1"),
        (OverlapStemConfig(patch_size=1), "patch_size 1 leaves nothing to overlap"),
        (OverlapStemConfig(patch_size=4, kernel_size=4), "kernel_size 4 must be above"),
        (OverlapStemConfig(patch_size=4, kernel_size=8), "patch_size 4 and at most 7"),
        (DepthwiseStemConfig(strides=(2,)), "strides (2,) has 1 entries"),
        (NormFreeStemConfig(channels=(), strides=()), "channels is empty"),
        (ConvStemConfig(norm="gn"), "stem.norm 'gn' must be one of bn, ln, none"),  # type: ignore[arg-type]
        (ConvStemConfig(act="silu"), "stem.act 'silu' must be one of relu, gelu, none"),  # type: ignore[arg-type]
        (
            ConvStemConfig(channels=(8, 8), strides=(4, 2), paddings=(0, 0)),
            "use padding 1",  # of the second convolution: all problems at once
        ),
    ],
)
def test_a_stem_that_cannot_work_is_refused_with_the_reason(
    config: StemConfig, reason: str
) -> None:
    with pytest.raises(ConfigError) as e:
        build_stem(config, 3, 16)
    assert reason in e.value.message


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


REDUCED_BY_8: list[StemConfig] = [
    PatchifyStemConfig(patch_size=8),
    PatchifyStemConfig(patch_size=8, bn_relu=True),
    ConvStemConfig(channels=(8, 16, 32), strides=(2, 2, 2)),
    ConvStemConfig(channels=(8, 16, 32), strides=(2, 2, 2), norm="ln", act="gelu"),
    ConvStemConfig(channels=(8, 16, 32), strides=(2, 2, 2), norm="none"),
    DualPatchNormStemConfig(patch_size=8),
    ScaledReluStemConfig(patch_size=8, width=16),
    OverlapStemConfig(patch_size=8),
    OverlapStemConfig(patch_size=8, kernel_size=11),
    DepthwiseStemConfig(channels=(8, 16, 32), strides=(2, 2, 2)),
    NormFreeStemConfig(channels=(8, 16, 32), strides=(2, 2, 2)),
    ResidualStemConfig(channels=(8, 16, 32, 32), strides=(2, 2, 2, 1)),
]


def filled(stem: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor and float buffer away from its default; the variance is kept near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in [*stem.named_parameters(), *stem.named_buffers()]:
            if not t.is_floating_point():
                continue
            noise = torch.randn(t.shape, generator=generator, dtype=t.dtype)
            if name.endswith("running_var"):
                t.copy_(0.5 + noise.abs())
            elif t.ndim > 1:
                t.copy_(noise / t[0].numel() ** 0.5)
            else:
                t.copy_(0.3 * noise + (1 if "norm" in name and "weight" in name else 0))
                t.add_(1 if name.endswith("gain") else 0)
    return stem


def built(config: StemConfig, in_chans: int = 3, embed_dim: int = 24, **kw: Any) -> Any:
    return filled(build_stem(config, in_chans, embed_dim, **kw)).double().eval()


def bn(x: Tensor, norm: Any) -> Tensor:
    shape = (1, -1, 1, 1)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
    return x * norm.weight.view(shape) + norm.bias.view(shape)


def ln(x: Tensor, norm: Any, dim: int) -> Tensor:
    mean = x.mean(dim, keepdim=True)
    var = (x - mean).square().mean(dim, keepdim=True)
    shape = [1] * x.ndim
    shape[dim] = -1
    return (x - mean) / (var + 1e-6).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ------------------------------------------------------------------------------- what they compute


def test_dual_patchnorm_normalises_each_patch_and_then_each_token() -> None:
    stem, x = built(DualPatchNormStemConfig(patch_size=4), in_chans=2), image(2, 2, 8, 12)
    assert isinstance(stem, DualPatchNormStem)
    for i in range(2):
        for j in range(3):
            patch = x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1)
            token = ln(patch, stem.norm_in, 1) @ stem.proj.weight.T + stem.proj.bias
            torch.testing.assert_close(stem(x)[:, :, i, j], ln(token, stem.norm_out, 1))


def test_scaled_relu_is_7x7_and_two_3x3_with_batch_norm_and_relu_then_patchify() -> None:
    stem, x = built(ScaledReluStemConfig(width=8)), image(2, 3, 32, 48)
    assert isinstance(stem, ScaledReluStem)
    expected = x
    for layer, (kernel, stride) in zip(stem.layers, [(7, 2), (3, 1), (3, 1)], strict=True):
        assert layer.conv.weight.shape[2:] == (kernel, kernel)
        expected = F.conv2d(expected, layer.conv.weight, None, stride, kernel // 2)
        expected = bn(expected, layer.norm).clamp(min=0)
    expected = F.conv2d(expected, stem.proj.weight, stem.proj.bias, stride=8)
    torch.testing.assert_close(stem(x), expected)
    assert build_stem(ScaledReluStemConfig(), 3, 8).layers[0].conv.out_channels == 64  # type: ignore[index, union-attr]


@pytest.mark.parametrize("kernel", [None, 5])
def test_overlap_sees_a_window_larger_than_its_stride_and_normalises_tokens(
    kernel: int | None,
) -> None:
    stem = built(OverlapStemConfig(patch_size=4, kernel_size=kernel))
    assert isinstance(stem, OverlapStem)
    k = kernel or 7
    x = image(2, 3, 8, 12)
    expected = F.conv2d(x, stem.proj.weight, stem.proj.bias, 4, k - 4)
    assert stem.proj.weight.shape[-1] == k
    torch.testing.assert_close(stem(x), ln(expected, stem.norm, 1))


def test_depthwise_is_one_full_convolution_and_then_separable_ones() -> None:
    stem = built(DepthwiseStemConfig(channels=(8, 16), strides=(2, 2)))
    assert isinstance(stem, DepthwiseStem)
    x = image(2, 3, 8, 12)
    first, second = stem.layers
    expected = bn(F.conv2d(x, first.conv.weight, None, 2, 1), first.norm).clamp(min=0)
    deep = second.depthwise
    expected = F.conv2d(expected, deep.conv.weight, None, 2, 1, groups=8)
    expected = bn(expected, deep.norm).clamp(min=0)
    point = second.pointwise
    expected = bn(F.conv2d(expected, point.conv.weight), point.norm).clamp(min=0)
    expected = F.conv2d(expected, stem.proj.weight, stem.proj.bias)
    torch.testing.assert_close(stem(x), expected)


def test_norm_free_standardises_filters_and_scales_the_relu() -> None:
    stem = built(NormFreeStemConfig(channels=(8, 16), strides=(2, 2)))
    assert isinstance(stem, NormFreeStem)
    x = image(2, 3, 8, 12)
    expected = x
    for layer in stem.layers:
        w = layer.weight
        flat = w.flatten(1)
        std = flat.std(1, correction=0) * flat.shape[1] ** 0.5
        w = (w - flat.mean(1)[:, None, None, None]) / std[:, None, None, None]
        w = w * layer.gain[:, None, None, None]
        relu = F.conv2d(expected, w, layer.bias, 2, 1).clamp(min=0)
        expected = relu / (1 / 2 - 1 / (2 * math.pi)) ** 0.5  # the variance of a unit normal's ReLU
    expected = F.conv2d(expected, stem.proj.weight, stem.proj.bias)
    torch.testing.assert_close(stem(x), expected)


def test_norm_free_keeps_the_variance_of_the_signal_where_plain_convolutions_lose_it() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"channels": (64,) * 6, "strides": (1,) * 6}
    free = build_stem(NormFreeStemConfig(**shape), 3, 64)
    plain = build_stem(ConvStemConfig(norm="none", **shape), 3, 64)
    outputs = []
    for stem in (free, plain):
        layers: Any = stem.layers
        layers[-1].register_forward_hook(lambda _, __, out: outputs.append(out[..., 8:-8, 8:-8]))
        stem(torch.randn(4, 3, 32, 32))
    assert outputs[0].var().item() == pytest.approx(1, rel=0.3)
    assert outputs[1].var().item() < 0.01


def test_a_filter_of_equal_weights_gives_no_nan_but_nothing() -> None:
    conv = StandardisedConv(3, 2, 3, 1, 1)
    nn.init.constant_(conv.weight, 0.3)
    assert not conv(torch.randn(1, 3, 4, 4)).any()
    with pytest.raises(ConfigError, match="filters of a single weight"):
        build_stem(NormFreeStemConfig(channels=(4,), strides=(1,), kernel_sizes=(1,)), 1, 8)


def test_the_papers_bn_relu_follows_the_patchify_convolution() -> None:
    stem, x = built(PatchifyStemConfig(patch_size=4, bn_relu=True)), image(2, 3, 8, 12)
    assert isinstance(stem, PatchifyStem)
    expected = F.conv2d(x, stem.proj.weight, stem.proj.bias, 4)
    torch.testing.assert_close(stem(x), bn(expected, stem.norm).clamp(min=0))


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_the_conv_stem_is_convolution_norm_and_relu_then_one_convolution(norm: Any) -> None:
    stem = built(ConvStemConfig(channels=(8, 16), strides=(2, 2), norm=norm))
    assert isinstance(stem, ConvStem)
    x = image(2, 3, 8, 12)
    expected = x
    for layer in stem.layers:
        expected = F.conv2d(expected, layer.conv.weight, None, 2, 1)
        normed = bn(expected, layer.norm) if norm == "bn" else ln(expected, layer.norm, 1)
        expected = normed.clamp(min=0)
    torch.testing.assert_close(stem(x), F.conv2d(expected, stem.proj.weight, stem.proj.bias))


def test_without_norm_a_convolution_has_a_bias_and_the_activation_is_chosen() -> None:
    config = ConvStemConfig(channels=(8,), strides=(2,), norm="none", act="gelu")
    stem, x = built(config), image(2, 3, 8, 8)
    layer = stem.layers[0]
    expected = F.gelu(F.conv2d(x, layer.conv.weight, layer.conv.bias, 2, 1))
    torch.testing.assert_close(stem(x), F.conv2d(expected, stem.proj.weight, stem.proj.bias))
    linear = built(ConvStemConfig(channels=(8,), strides=(2,), norm="none", act="none"))
    torch.testing.assert_close(linear(x) - linear(0 * x), -(linear(-x) - linear(0 * x)))


def test_the_residual_stem_is_a_convolution_basic_blocks_and_one_convolution() -> None:
    config = ResidualStemConfig(channels=(8, 16, 16), strides=(2, 2, 1))
    stem, x = built(config), image(2, 3, 8, 12)

    def conv_norm(x: Tensor, layer: Any, stride: int, padding: int) -> Tensor:
        return bn(F.conv2d(x, layer.conv.weight, None, stride, padding), layer.norm)

    first, wider, same = stem.layers
    expected = conv_norm(x, first, 2, 1).clamp(min=0)
    branch = conv_norm(conv_norm(expected, wider.conv1, 2, 1).clamp(min=0), wider.conv2, 1, 1)
    expected = (branch + conv_norm(expected, wider.shortcut, 2, 0)).clamp(min=0)
    branch = conv_norm(conv_norm(expected, same.conv1, 1, 1).clamp(min=0), same.conv2, 1, 1)
    expected = (branch + expected).clamp(min=0)
    torch.testing.assert_close(stem(x), F.conv2d(expected, stem.proj.weight, stem.proj.bias))
    assert "must all be odd" in " ".join(
        ResidualStemConfig(channels=(8, 8), strides=(2, 2), kernel_sizes=(3, 2)).problems()
    )


# -------------------------------------------------------------------------------- what all promise


def test_every_kind_of_stem_has_its_module_and_is_tried_here() -> None:
    assert {type(c) for c in REDUCED_BY_8} == set(STEM_KINDS.values()) - {CustomStemConfig}


@pytest.mark.parametrize("config", REDUCED_BY_8, ids=str)
def test_every_stem_divides_any_multiple_of_its_reduction(config: StemConfig) -> None:
    assert config.problems() == []
    assert config.reduction == 8
    for in_chans, (h, w) in [(3, (8, 8)), (1, (16, 40)), (4, (24, 8))]:
        stem = build_stem(config, in_chans, 24).eval()
        assert stem.reduction == 8
        assert stem(torch.randn(2, in_chans, h, w)).shape == (2, 24, h // 8, w // 8)
        with pytest.raises(ConfigError, match="are not divisible by the stem's reduction 8"):
            stem(torch.zeros(2, in_chans, 12, 16))


@pytest.mark.parametrize("config", REDUCED_BY_8, ids=str)
def test_every_pixel_reaches_a_token_through_every_stem(config: StemConfig) -> None:
    stem = built(config)
    x = image(16, 3, 24, 16).requires_grad_()  # many: a ReLU may be shut for one of them
    stem(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(dim=(0, 1)) > 0).all()


@pytest.mark.parametrize("config", REDUCED_BY_8, ids=str)
def test_every_stem_trains_in_every_memory_format_dtype_and_on_meta(config: StemConfig) -> None:
    torch.manual_seed(0)
    stem, x = build_stem(config, 3, 24), torch.randn(4, 3, 16, 16)
    stem(x).square().sum().backward()
    for name, p in stem.named_parameters():
        assert p.grad is not None, name
    stem.eval()
    expected = stem(x)
    stem.to(memory_format=torch.channels_last)
    torch.testing.assert_close(stem(x.to(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rough = stem(x).float()
    assert (rough - expected).norm() < 0.03 * expected.norm()
    with torch.device("meta"):
        meta = build_stem(config, 3, 24)
    assert all(p.is_meta for p in meta.parameters())
    assert complexity(meta, 16).params == sum(p.numel() for p in stem.parameters())


@pytest.mark.parametrize("config", REDUCED_BY_8, ids=str)
def test_weight_decay_spares_gains_and_biases_of_every_stem(config: StemConfig) -> None:
    model: Any = create_model("vit_p_tiny", stem=config)
    exempt = {n for n in model.no_weight_decay() if n.startswith("stem.")}
    names = {n for n, _ in model.named_parameters() if n.startswith("stem.")}
    spared = {n for n in names if "norm" in n or n.endswith(("bias", "gain"))}
    assert exempt == spared
    assert names - exempt


# ----------------------------------------------------------------------------- choosing one by name


@pytest.mark.parametrize("kind", ["dual_patchnorm", "scaled_relu", "overlap", "patchify"])
def test_a_stem_of_patches_keeps_the_reduction_of_the_one_it_replaces(kind: str) -> None:
    model: Any = create_model("vit_c_tiny", stem=kind)
    assert model.stem.reduction == 8
    config = from_dict(
        {"model": {"stem": kind}}, RunConfig(model=create_model("vit_c_tiny").config)
    )  # type: ignore[arg-type]
    assert isinstance(config.model, ViTConfig)
    assert config.model.stem == STEM_KINDS[kind](patch_size=8)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["depthwise", "norm_free"])
def test_a_stack_of_convolutions_keeps_widths_and_strides(kind: str) -> None:
    model: Any = create_model("vit_c_tiny", stem=kind)
    assert model.stem.reduction == 8
    assert model.stem.proj.in_channels == 72


def test_patchify_for_a_conv_stem_is_the_plain_one() -> None:
    model: Any = create_model("vit_c_ln_4gf", stem="patchify", depth=1, img_size=32)
    assert [n for n, _ in model.stem.named_parameters()] == ["proj.weight", "proj.bias"]


# --------------------------------------------------------------------------------- initialisation


def spread(tensor: Tensor, std: float, rel: float = 0.05) -> None:
    assert tensor.numel() >= 2000
    assert tensor.std().item() == pytest.approx(std, rel=rel)
    assert abs(tensor.mean().item()) < 4 * std / tensor.numel() ** 0.5


@pytest.mark.parametrize("init", ["2021", "2022"])
@pytest.mark.parametrize(
    "config",
    [
        PatchifyStemConfig(patch_size=8, bn_relu=True),
        DualPatchNormStemConfig(patch_size=8),
        ScaledReluStemConfig(patch_size=8, width=64),
        OverlapStemConfig(patch_size=8),
        DepthwiseStemConfig(channels=(48, 96, 300), strides=(2, 2, 2)),
        NormFreeStemConfig(channels=(96, 96, 300), strides=(2, 2, 2)),
        ResidualStemConfig(channels=(48, 96, 300), strides=(2, 2, 2)),
    ],
    ids=lambda c: type(c).__name__,
)
def test_rivals_start_as_their_docs_say_whatever_the_init(config: StemConfig, init: Any) -> None:
    torch.manual_seed(0)
    stem = build_stem(config, 3, 300, init)
    for name, p in stem.named_parameters():
        fan_in = p[0].numel()
        if p.ndim == 1:
            ones = ("norm" in name and name.endswith("weight")) or name.endswith("gain")
            assert (p == float(ones)).all(), name
        elif name.startswith("proj."):
            spread(p, fan_in**-0.5)
            assert p.abs().max() <= 2  # cut at +-2, as torch cuts
        elif isinstance(config, NormFreeStemConfig):
            spread(p, fan_in**-0.5)
        elif p.numel() >= 2000:
            spread(p, (3 * fan_in) ** -0.5)
            assert p.abs().max() <= fan_in**-0.5
        else:  # a depthwise filter of 9, a first layer: uniform within the same bound
            assert 0.9 * fan_in**-0.5 < p.abs().max() <= fan_in**-0.5


@pytest.mark.parametrize(("init", "gain"), [("2021", 2), ("2022", 1)])
@pytest.mark.parametrize("norm", ["bn", "ln", "none"])
def test_the_conv_stem_starts_alike_with_every_norm(init: Any, gain: int, norm: Any) -> None:
    torch.manual_seed(0)
    stem: Any = build_stem(
        ConvStemConfig(channels=(96, 128), strides=(2, 2), norm=norm), 3, 256, init
    )
    spread(stem.proj.weight, (gain / 256) ** 0.5)
    for layer, fan_in in zip(stem.layers, (27, 9 * 96), strict=True):
        std = (3 * fan_in) ** -0.5 if init == "2021" else (2 / layer.conv.out_channels) ** 0.5
        spread(layer.conv.weight, std)
    for name, p in stem.named_parameters():
        if p.ndim == 1:
            assert (p == float("norm.weight" in name)).all(), name


# -------------------------------------------------------------------- against the source's own code


def test_overlap_and_scaled_standardisation_agree_with_timm() -> None:
    from vitc.models.timm import import_peer

    try:
        import_peer("timm")
    except ImportError as e:
        pytest.skip(f"NOT COMPARED with timm, which is not installed: {e}")
    from timm.layers import ScaledStdConv2d  # type: ignore[import-not-found, unused-ignore]
    from timm.models.pvt_v2 import OverlapPatchEmbed  # type: ignore[import-not-found, unused-ignore]

    stem, x = built(OverlapStemConfig(patch_size=4)), image(2, 3, 8, 12)
    theirs = OverlapPatchEmbed(7, 4, 3, 24).double()
    theirs.norm.eps = 1e-6
    theirs.load_state_dict(stem.state_dict())
    torch.testing.assert_close(stem(x), theirs(x).permute(0, 3, 1, 2))

    free = built(NormFreeStemConfig(channels=(8,), strides=(2,))).layers[0]
    conv = ScaledStdConv2d(3, 8, 3, 2, 1, eps=1e-12).double()
    state = free.state_dict()
    conv.load_state_dict({**state, "gain": state["gain"].view(8, 1, 1, 1)})
    torch.testing.assert_close(free(x), conv(x))
