"""Which models have names? The paper's (its Table 1), and small ones for small images.

Free of torch: the table answers help and errors at once; `build_model` loads torch.
"""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from math import log
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from vitc.errors import ConfigError, refuse, unknown
from vitc.models.config import (
    PAPER_SIZES,
    CNNConfig,
    CustomModelConfig,
    Init,
    ModelConfig,
    TimmConfig,
    TorchvisionConfig,
    ViTConfig,
)
from vitc.models.stem_config import (
    STEM_KINDS,
    ConvStemConfig,
    CustomStemConfig,
    PatchifyStemConfig,
    ResidualStemConfig,
    StemConfig,
    carried,
)
from vitc.settings import coerce

if TYPE_CHECKING:
    from torch import nn


class Reported(NamedTuple):
    """A model's cost as the paper prints it, ViTs in Table 1 and CNNs in Table 2. Its counter is
    not public: of ViTs it differs from pycls's by up to 0.5 % in flops, 1.3 % in activations."""

    gflops: float
    """10^9 multiply-adds."""
    params_m: float
    """10^6 parameters."""
    activations_m: float
    """10^6 activations."""


class Size(NamedTuple):
    """What a ViT_P and its ViT_C share, and the ViT_C's stem."""

    embed_dim: int
    num_heads: int
    mlp_ratio: float
    depth: int
    """Blocks of the ViT_P; the ViT_C has one less: its stem takes those flops (paper section 4)."""
    img_size: int
    patch_size: int
    channels: tuple[int, ...]
    """Of the convolutional stem: they double where its stride is 2 and stay where it is 1."""
    strides: tuple[int, ...]
    removed: int = 1
    """Blocks that the ViT_C has less."""


SIZES: dict[str, Size] = {
    # Paper Table 1 and Table 3, and its deep 16GF (appendix B). 36GF has the stem of 18GF: one as
    # dear as a block "would be unreasonably large". 72GF (appendix C) has it too, and all blocks.
    "1gf": Size(192, 3, 3.0, 12, 224, 16, (24, 48, 96, 192), (2, 2, 2, 2)),
    "4gf": Size(384, 6, 3.0, 12, 224, 16, (48, 96, 192, 384), (2, 2, 2, 2)),
    "16gf": Size(384, 6, 3.0, 48, 224, 16, (48, 96, 192, 384), (2, 2, 2, 2)),
    "18gf": Size(768, 12, 4.0, 12, 224, 16, (64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2)),
    "36gf": Size(1024, 16, 4.0, 14, 224, 16, (64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2)),
    "72gf": Size(1152, 18, 4.0, 22, 224, 16, (64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2), 0),
    # Ours, by the paper's rules. The stem's widths are those that bring the ViT_C's flops within
    # 0.6 % of the ViT_P's; `complexity.twin_match` and `vitc show` give the difference.
    # 28-32 pixels (MNIST family, CIFAR): seconds to minutes an epoch on a laptop
    "tiny": Size(64, 2, 3.0, 4, 32, 8, (18, 36, 72), (2, 2, 2)),
    "tiny_patch4": Size(64, 2, 3.0, 4, 32, 4, (48, 96), (2, 2)),
    "mini": Size(192, 3, 3.0, 12, 32, 4, (64, 128, 128, 128), (2, 2, 1, 1)),
    # 64 pixels, and photos at 96 and 128, where 224 costs more than few images can repay
    "small64": Size(256, 4, 3.0, 12, 64, 8, (48, 96, 96, 192), (2, 2, 1, 2)),
    "mini96": Size(192, 3, 3.0, 6, 96, 8, (52, 104, 208), (2, 2, 2)),
    "small128": Size(256, 4, 3.0, 8, 128, 16, (24, 48, 48, 96, 192), (2, 2, 1, 2, 2)),
}


REPORTED: dict[str, Reported] = {
    "vit_p_1gf": Reported(1.1, 4.8, 5.5),
    "vit_p_4gf": Reported(3.9, 18.5, 11.1),
    "vit_p_18gf": Reported(17.5, 86.7, 24.0),  # 86.6 in the paper's Table 2, which is right
    "vit_p_36gf": Reported(35.9, 178.4, 37.3),
    "vit_c_1gf": Reported(1.1, 4.6, 5.7),
    "vit_c_4gf": Reported(4.0, 17.8, 11.3),
    "vit_c_18gf": Reported(17.7, 81.6, 24.1),
    "vit_c_36gf": Reported(35.0, 167.8, 36.7),
    # Table 2
    "resnet_50": Reported(4.1, 25.6, 11.3),
    "resnet_101": Reported(7.8, 44.5, 16.4),
    "resnet_152": Reported(11.5, 60.2, 22.8),
    "resnet_200": Reported(15.0, 64.7, 32.3),
    "regnety_1gf": Reported(1.0, 9.6, 6.2),
    "regnety_4gf": Reported(4.1, 22.4, 14.5),
    "regnety_16gf": Reported(15.5, 72.3, 30.7),
    "regnety_32gf": Reported(31.1, 128.6, 46.2),
    "effnet_b2": Reported(1.0, 9.1, 13.8),
    "effnet_b4": Reported(4.4, 19.3, 49.5),
    "effnet_b5": Reported(10.3, 30.4, 98.9),
}


REPORTED_STEMS: dict[str, Reported] = {
    # Paper Table 3: of the stem alone
    "vit_p_4gf": Reported(0.058, 0.3, 0.8),
    "vit_c_4gf": Reported(0.435, 1.0, 1.2),
    "vit_s1_4gf": Reported(0.422, 0.8, 1.3),
    "vit_s2_4gf": Reported(0.422, 0.7, 1.1),
    "vit_s3_4gf": Reported(0.458, 0.7, 1.6),
    "vit_s4_4gf": Reported(0.407, 0.6, 2.9),
}

SLIPS: dict[str, str] = {
    "vit_p_4gf": "The paper's Table 3 prints 0.8 M activations for this stem; by counting, 0.08 M "
    "must be meant.",
    "vit_s1_4gf": "The paper's Table 3 prints 42 for the stem's first width. It is 52 here, which "
    "gives the printed flops, parameters and activations and doubles as the others do.",
}
"""Misprints in the paper, by model."""

REPORTED_GFLOPS: dict[str, dict[int, float]] = {
    # Paper appendix C, by image size: nothing else of it is printed
    "vit_c_72gf": {224: 72, 384: 224},
}


def _vit_p(size: str) -> ViTConfig:
    s = SIZES[size]
    return ViTConfig(
        name=f"vit_p_{size}",
        stem=PatchifyStemConfig(patch_size=s.patch_size),
        embed_dim=s.embed_dim,
        depth=s.depth,
        num_heads=s.num_heads,
        mlp_ratio=s.mlp_ratio,
        img_size=s.img_size,
    )


def _vit_c(size: str) -> ViTConfig:
    s, twin = SIZES[size], _vit_p(size)
    stem = ConvStemConfig(channels=s.channels, strides=s.strides)
    depth = s.depth - s.removed
    return dataclasses.replace(twin, name=f"vit_c_{size}", stem=stem, depth=depth)


_P, _C = _vit_p("4gf"), _vit_c("4gf")
ABLATIONS: list[ViTConfig] = [
    # Paper Table 3, stems of about equal cost that reduce the size later and later. What stands
    # after their convolutions (BatchNorm and ReLU after all but the last) and the number of blocks
    # (11, as "overall model flops remain comparable") is an inference: the paper does not state it.
    # S1's first width is printed as 42: see SLIPS.
    dataclasses.replace(_C, name="vit_s1_4gf", stem=ConvStemConfig(
        channels=(52, 104, 208, 416), kernel_sizes=(3, 3, 3, 2), strides=(2, 2, 2, 2))),
    dataclasses.replace(_C, name="vit_s2_4gf", stem=ConvStemConfig(
        channels=(32, 64, 128, 256), kernel_sizes=(3, 3, 3, 4), strides=(2, 2, 1, 4))),
    dataclasses.replace(_C, name="vit_s3_4gf", stem=ConvStemConfig(
        channels=(17, 34, 68, 136), kernel_sizes=(3, 3, 3, 8), strides=(2, 1, 1, 8))),
    dataclasses.replace(_C, name="vit_s4_4gf", stem=ConvStemConfig(
        channels=(8, 16, 32, 64), kernel_sizes=(3, 3, 3, 16), strides=(1, 1, 1, 16))),
    # Paper appendix A, norm and non-linearity.
    dataclasses.replace(_P, name="vit_p_bn_4gf", stem=PatchifyStemConfig(bn_relu=True)),
    dataclasses.replace(_C, name="vit_c_ln_4gf", stem=ConvStemConfig(norm="ln")),
]  # fmt: skip


# -- small data: residual stems --------------------------------------------------------------------
# Ours, for a few thousand photos from scratch, where the paper's stem is too shallow: most of the
# cost is in the convolutions, two blocks see all of the image, and the head reads the mean of the
# tokens. Measured against the paper's stem: docs/LOG.md.


def _vit_r(
    name: str, img_size: int, channels: tuple[int, ...], strides: tuple[int, ...]
) -> ViTConfig:
    return ViTConfig(
        name=name,
        stem=ResidualStemConfig(channels=channels, strides=strides),
        embed_dim=channels[-1],
        depth=2,
        num_heads=channels[-1] // 64,
        img_size=img_size,
        class_token=False,
        global_pool="avg",
    )


def _widths(w: int) -> tuple[int, ...]:
    return (w, w, w, 2 * w, 2 * w, 4 * w, 4 * w)


_SIDES = {32: (1, 2, 1, 2, 1, 2, 1), 64: (2, 2, 1, 2, 1, 2, 1)}  # strides, to 4x4 tokens
RESIDUALS: list[ViTConfig] = [
    _vit_r(f"vit_r_{name}{'' if side == 32 else side}", side, _widths(width), strides)
    for side, strides in _SIDES.items()
    for name, width in (("tiny", 32), ("mini", 48), ("small", 64))
]

# -- CNNs of the paper's Table 2 -------------------------------------------------------------------
# ResNets and RegNetYs are the authors' own configs (branch `vitconfigs` of
# facebookresearch/pycls), the EfficientNets pycls's `dds_baselines`; all without dropout and drop
# connect, as the paper (section 5.4) and those configs have it. The RegNetYs are not the ones of
# pycls's published zoo that have the same names.


def regnet_stages(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(depths, widths, group widths) of a RegNet's stages (arXiv 2003.13678 section 3.3).

    Block j wants w_0 + w_a * j channels; it gets the nearest w_0 * w_m^k, made a multiple of 8, and
    blocks alike form a stage, whose width then becomes the nearest multiple of the group width.
    """
    widths = []
    for j in range(depth):
        k = round(log((w_0 + w_a * j) / w_0) / log(w_m))
        widths.append(round(w_0 * w_m**k / 8) * 8)
    stages = sorted(set(widths))
    groups = tuple(min(group_width, w) for w in stages)
    fitted = (max(1, round(w / g)) * g for w, g in zip(stages, groups, strict=True))
    return tuple(widths.count(w) for w in stages), tuple(fitted), groups


def _resnet(name: str, depths: tuple[int, ...]) -> CNNConfig:
    return CNNConfig(name=name, img_size=PAPER_SIZES[name][0], depths=depths)


def _regnety(
    name: str, depths: tuple[int, ...], widths: tuple[int, ...], group_widths: tuple[int, ...]
) -> CNNConfig:
    return CNNConfig(
        name=name,
        img_size=PAPER_SIZES[name][0],
        stem_type="simple",
        stem_width=32,
        depths=depths,
        widths=widths,
        strides=(2, 2, 2, 2),
        bottleneck_ratio=1.0,
        group_widths=group_widths,
        se_ratio=0.25,
    )


def _effnet(
    name: str, stem_width: int, depths: tuple[int, ...], widths: tuple[int, ...], head_width: int
) -> CNNConfig:
    return CNNConfig(
        name=name,
        img_size=PAPER_SIZES[name][0],
        stem_type="simple",
        stem_width=stem_width,
        block="mbconv",
        depths=depths,
        widths=widths,
        strides=(1, 2, 2, 2, 1, 2, 1),
        kernel_sizes=(3, 3, 5, 3, 5, 5, 3),
        expand_ratios=(1, 6, 6, 6, 6, 6, 6),
        se_ratio=0.25,
        head_width=head_width,
        activation="silu",
    )


CNNS: dict[str, CNNConfig] = {
    config.name: config
    for config in (
        _resnet("resnet_50", (3, 4, 6, 3)),
        _resnet("resnet_101", (3, 4, 23, 3)),
        _resnet("resnet_152", (3, 8, 36, 3)),
        _resnet("resnet_200", (3, 24, 36, 3)),
        _regnety("regnety_1gf", (1, 4, 10, 3), (40, 120, 328, 904), (4,) * 4),
        _regnety("regnety_4gf", *regnet_stages(26, 88, 30.3, 2.404, 32)),
        # The 4GF, scaled 4 and 8 times by the fast compound rule of arXiv 2103.06877
        _regnety("regnety_16gf", (2, 7, 18, 2), (168, 336, 896, 2128), (56,) * 4),
        _regnety("regnety_32gf", (2, 7, 20, 2), (216, 432, 1152, 2808), (72,) * 4),
        _effnet("effnet_b2", 32, (2, 3, 3, 4, 4, 5, 2), (16, 24, 48, 88, 120, 208, 352), 1408),
        _effnet("effnet_b4", 48, (2, 4, 4, 6, 6, 8, 2), (24, 32, 56, 112, 160, 272, 448), 1792),
        _effnet("effnet_b5", 48, (3, 5, 5, 7, 7, 9, 3), (24, 40, 64, 128, 176, 304, 512), 2048),
    )
}


# EfficientNet-Lite0, made for phones: B0 without squeeze-and-excitation, its activation ReLU6, here
# with TensorFlow's padding and BatchNorm, as its trained weights need (weights/catalog.py). Not in
# the paper. github.com/tensorflow/tpu, models/official/efficientnet/lite
LITE0 = CNNConfig(
    name="effnet_lite0",
    stem_type="simple",
    stem_width=32,
    block="mbconv",
    depths=(1, 2, 2, 3, 3, 4, 1),
    widths=(16, 24, 40, 80, 112, 192, 320),
    strides=(1, 2, 2, 2, 1, 2, 1),
    kernel_sizes=(3, 3, 5, 3, 5, 5, 3),
    expand_ratios=(1, 6, 6, 6, 6, 6, 6),
    head_width=1280,
    activation="relu6",
    padding="same",
    norm_eps=1e-3,
)

# -- all ------------------------------------------------------------------------------------------

_VITS = [config for size in SIZES for config in (_vit_p(size), _vit_c(size))]
_PAPER = [config for config in _VITS if config.name.endswith("gf")]
MODELS: dict[str, ModelConfig] = {
    config.name: config for config in [*_PAPER, *ABLATIONS, *_VITS, *RESIDUALS]
}
MODELS |= {**CNNS, LITE0.name: LITE0}

NO_REGNETZ = (
    "The paper's RegNetZ cannot be rebuilt: it names the family (arXiv 2103.06877) but not the "
    "configs, and no public ones come to its flops, parameters and activations."
)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern ("vit_c_*"), the paper's first."""
    return [name for name in MODELS if fnmatchcase(name, pattern)]


def patchify_twin(name: str) -> str | None:
    """The ViT_P that a ViT_C's flops are matched to; None for any other model.

    The ablations of the paper's appendix A are ViT_C-4GF but for the stem: theirs is ViT_P-4GF.
    """
    if name in ("vit_s1_4gf", "vit_s2_4gf", "vit_s3_4gf", "vit_s4_4gf", "vit_c_ln_4gf"):
        return "vit_p_4gf"
    twin = name.replace("vit_c_", "vit_p_", 1)
    return twin if twin != name and twin in MODELS else None


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """The config of a named model with some of its fields replaced.

    `timm:NAME` is a model of the timm library where that is installed; its own input size is taken
    unless img_size is given. torchvision:NAME is one of torchvision, FILE.py:Class a custom model.
    Raises ConfigError: unknown name or field (with a suggestion), values of a wrong type or that
    cannot work.
    """
    if not isinstance(name, str):
        raise ConfigError(f"The model's name is {name!r}; it must be one of list_models().")
    if name.startswith("timm:"):
        from vitc.models.timm import timm_config

        config: ModelConfig = timm_config(name)
    elif name.startswith("torchvision:"):
        from vitc.models.torchvision import torchvision_config

        config = torchvision_config(name)
    elif ":" in name or name.endswith(".py"):
        config = CustomModelConfig.named(name)
        config = dataclasses.replace(config, name=config.custom.what)
    elif name in MODELS:
        config = MODELS[name]
    elif name.startswith("regnetz"):
        raise ConfigError(NO_REGNETZ, f"Near it: {', '.join(list_models('regnety_*'))}.")
    else:
        raise unknown("model", name, MODELS)
    fields = [f.name for f in dataclasses.fields(config)]
    for key in overrides:
        if key not in fields:
            raise unknown("model setting", key, fields)
    hints = get_type_hints(type(config))
    for key in overrides.keys() - {"stem"}:
        overrides[key] = coerce(_plain(overrides[key]), hints[key], f"model.{key}")
    config = dataclasses.replace(config, **overrides)
    refuse(config.problems(), f"The settings of {name}: vitc show {name}")
    return config


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, also those in a list or tuple."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def create_model(
    name: str,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    init: Init = "2021",
    **overrides: Any,
) -> nn.Module:
    """A named model, its weights freshly drawn from torch's generator.

    `name`: one of `list_models()`, timm:NAME, torchvision:NAME, or a custom model as
    FILE.py:Class(setting=value).
    `img_size` None: the model's own, one side or (height, width) in pixels. `num_classes` 0: no
    head, the model returns (B, D) features. `init` "2021" is the authors' code when the paper
    appeared, "2022" pycls since; it concerns ViTs only. `overrides` are further fields of the
    model's config; among them `stem`, for ViTs: a kind ("dual_patchnorm"), a config of one, a
    custom stem ("path/to/my.py:MyStem"), a class that is called with in_chans and embed_dim, or a
    built module. Raises ConfigError: unknown name or setting (with a suggestion), values of a wrong
    type or that cannot work.
    """
    num_classes = coerce(_plain(num_classes), int, "num_classes")
    if num_classes < 0:
        raise ConfigError(f"num_classes is {num_classes}; it must be 0 (no head) or more.")
    stem: str | type[nn.Module] | nn.Module | StemConfig | None = overrides.pop("stem", None)
    if img_size is not None:
        overrides["img_size"] = img_size
    config = model_config(name, in_chans=in_chans, **overrides)
    if not isinstance(config, ViTConfig):
        if init != "2021" or stem is not None:
            raise ConfigError(f"init and stem have no effect with {name}: it is not a ViT.")
        return build_model(config, num_classes)
    config = dataclasses.replace(config, init=init)
    if not (stem is None or isinstance(stem, str | StemConfig | type) or hasattr(stem, "forward")):
        raise ConfigError(
            f"stem is {stem!r}; it must be a kind's name, path/to/my.py:MyStem, a stem's config, a "
            f"class, or a built module."
        )
    if isinstance(stem, str):
        stem = stem_config(stem, config.stem)
    if isinstance(stem, StemConfig):
        return build_model(dataclasses.replace(config, stem=stem), num_classes)
    return build_model(config, num_classes, stem)


def stem_config(name: str, old: StemConfig) -> StemConfig:
    """The config of the kind `name`, or of a custom stem named path/to/file.py:Class.

    A kind keeps what it can of `old`, the stem that it replaces: see `carried`.
    """
    if ":" in name or name.endswith(".py"):
        return CustomStemConfig.named(name)
    if name not in STEM_KINDS:
        raise unknown("stem", name, STEM_KINDS)
    kind = STEM_KINDS[name]
    return old if type(old) is kind else kind(**carried(old, kind))


def build_model(
    config: ModelConfig,
    num_classes: int | None = None,
    stem: type[nn.Module] | nn.Module | None = None,
) -> nn.Module:
    """The model a config describes, its weights freshly drawn from torch's generator.

    `num_classes` replaces the config's, which may be None; 1000 if both are, 0 for no head. `stem`
    replaces a ViT's config.stem: a module, or a class called with in_chans and embed_dim. Raises
    ConfigError: values that cannot work, all at once.
    """
    refuse(config.problems())
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
    if isinstance(config, ViTConfig):
        from vitc.models.vit import build_vit

        return build_vit(config, stem)
    if isinstance(config, CNNConfig):
        from vitc.models.cnn import CNN

        return CNN(config)
    if isinstance(config, CustomModelConfig):
        from vitc.models.custom import load_model

        return load_model(config)
    if isinstance(config, TorchvisionConfig):
        from vitc.models.torchvision import build_torchvision

        return build_torchvision(config)
    from vitc.models.timm import build_timm

    assert isinstance(config, TimmConfig)
    return build_timm(config)


def classifier_name(model: nn.Module) -> str:
    """The name of the module that gives the logits: `head`, or what a timm model names."""
    if not hasattr(model, "get_classifier"):
        return "head"
    head = model.get_classifier()  # type: ignore[operator]
    return next((name for name, module in model.named_modules() if module is head), "head")
