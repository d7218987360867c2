"""What is a model, as values? No torch here, so that help and errors answer at once.

Shape letters used in the whole room: B batch, C channels, H W pixels, h w token grid, N tokens,
D embed_dim, K classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf, prod
from typing import Literal, get_args

from vitc.models.stem_config import PatchifyStemConfig, StemConfig
from vitc.plugins.consent import CustomConfig
from vitc.plugins.names import MODEL
from vitc.settings import out_of_bounds, setting

MAX_SIDE, MAX_WIDTH, MAX_DEPTH = 2**14, 2**15, 1000  # more is a slip of the finger

GlobalPool = Literal["token", "avg"]
Init = Literal["2021", "2022"]
AttentionKind = Literal["auto", "sdpa", "explicit"]
CNNStem = Literal["simple", "resnet", "cifar"]
CNNBlock = Literal["bottleneck", "mbconv"]
Activation = Literal["relu", "relu6", "silu"]
Padding = Literal["half", "same"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every model has; a concrete one is a subclass with its own fields."""

    name: str = "model"
    """Name in the zoo, for messages and reports."""
    img_size: int | tuple[int, int] = setting(224, at_least=1, at_most=MAX_SIDE)
    """Input size in pixels, one side or (height, width)."""
    in_chans: int = setting(3, at_least=1, at_most=MAX_WIDTH)
    """Input channels C."""
    num_classes: int | None = setting(None, at_least=1, at_most=2**24)
    """Classes K of the head; None: as many as the data has (1000 without data)."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def head_classes(self) -> int:
        """Classes of a head that no data decides; 0: no head."""
        return 1000 if self.num_classes is None else self.num_classes

    @property
    def summary(self) -> str:
        """What it is made of, in a few words."""
        return self.name

    def problems(self) -> list[str]:
        return out_of_bounds(self, "model")


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """A pre-norm Vision Transformer behind any stem (paper section 3 and Table 1)."""

    name: str = "vit"
    """Name in the zoo, for messages and reports."""
    stem: StemConfig = field(default_factory=PatchifyStemConfig)
    """The stem: a kind of `STEM_KINDS`, or a custom one as path/to/my.py:MyStem."""
    embed_dim: int = setting(384, at_least=1, at_most=MAX_WIDTH)
    """Width D of a token."""
    depth: int = setting(12, at_least=1, at_most=MAX_DEPTH)
    """Number of transformer blocks."""
    num_heads: int = setting(6, at_least=1)
    """Attention heads; must divide embed_dim."""
    mlp_ratio: float = setting(3.0, above=0, at_most=64)
    """Hidden width of the MLP over embed_dim."""
    img_size: int | tuple[int, int] = setting(224, at_least=1, at_most=MAX_SIDE)
    """Input size in pixels, one side or (height, width); divisible by the stem's reduction."""
    class_token: bool = True
    """Prepend a learned class token."""
    global_pool: GlobalPool = setting("token", one_of=get_args(GlobalPool))
    """What the head sees: the class token, or the mean of the patch tokens."""
    registers: int = setting(0, at_least=0, at_most=MAX_WIDTH)
    """Extra learned tokens that no head reads (arXiv 2309.16588); the paper has none."""
    qk_norm: bool = False
    """LayerNorm of queries and keys in each head (arXiv 2302.05442); the paper has none."""
    dynamic_img_size: bool = False
    """Take images of any size the stem divides: pos_embed is resampled in each forward pass."""
    drop_path_rate: float = setting(0.0, at_least=0, below=1)
    """Stochastic depth of the last block, rising linearly from 0 at the first; the paper has 0."""
    init: Init = setting("2021", one_of=get_args(Init))
    """Initialisation: the authors' code when the paper appeared, or pycls since March 2022."""
    attention: AttentionKind = setting("auto", one_of=get_args(AttentionKind))
    """How attention is computed; auto: two matmuls and a softmax for bf16 on CPU, else SDPA."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) in tokens; None: known only once the stem is built."""
        reduction = self.stem.reduction
        return None if reduction is None else (self.size[0] // reduction, self.size[1] // reduction)

    @property
    def summary(self) -> str:
        """What it is made of, in a few words."""
        return f"{self.depth} blocks, {self.embed_dim} wide, {self.num_heads} heads"

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP."""
        return round(self.embed_dim * self.mlp_ratio)

    def problems(self, reduction: int | None = None) -> list[str]:
        """`reduction`: that of a built stem, which is then checked instead of `stem`."""
        found = [] if reduction else [f"model.{p}" for p in self.stem.problems()]
        reduction = 1 if found else reduction or self.stem.reduction or 1
        found += out_of_bounds(self, "model")
        if min(self.size) < reduction or any(s % reduction for s in self.size):
            near = tuple(max(1, round(s / reduction)) * reduction for s in self.size)
            found.append(
                f"model.img_size {self.img_size} is not divisible by the stem's reduction "
                f"{reduction}; the nearest that is: {near[0] if near[0] == near[1] else near}."
            )
        if self.num_heads >= 1 and self.embed_dim % self.num_heads:
            found.append(
                f"model.embed_dim {self.embed_dim} is not divisible by model.num_heads "
                f"{self.num_heads}."
            )
        if not 1 <= self.embed_dim * self.mlp_ratio < inf:
            found.append(
                f"model.mlp_ratio {self.mlp_ratio} leaves the MLP no hidden width; the paper has "
                f"3 and 4."
            )
        if self.drop_path_rate > 0 and self.depth == 1:
            found.append(
                f"model.drop_path_rate {self.drop_path_rate} has no effect with model.depth 1: it "
                f"rises from 0 at the first block."
            )
        if self.global_pool == "token" and not self.class_token:
            found.append(
                "model.global_pool 'token' needs model.class_token; use --model.global_pool avg."
            )
        return found


# -- CNNs ------------------------------------------------------------------------------------------

_LISTS = ("widths", "strides", "kernel_sizes", "group_widths", "expand_ratios")  # one entry a stage

# Images that the paper's CNNs train on, and what the shorter side is resized to before evaluation
# cuts that size from the middle. Authors' branch `vitconfigs` of pycls; EfficientNets: its dds
# configs, whose costs are those of the paper's Table 2.
PAPER_SIZES: dict[str, tuple[int, int]] = {
    "resnet_50": (224, 256),
    "resnet_101": (224, 256),
    "resnet_152": (224, 256),
    "resnet_200": (224, 256),
    "regnety_1gf": (232, 262),
    "regnety_4gf": (240, 272),
    "regnety_16gf": (256, 292),
    "regnety_32gf": (268, 304),
    "effnet_b2": (260, 298),
    "effnet_b4": (380, 434),
    "effnet_b5": (456, 522),
}


@dataclass(frozen=True, kw_only=True)
class CNNConfig(ModelConfig):
    """A CNN of the paper's comparison: ResNet, RegNetY or EfficientNet (paper Table 2).

    One family: a stem, stages of residual blocks, an optional 1x1 convolution, pooling and a
    linear classifier. The defaults are ResNet-50 (arXiv 1512.03385, stride on the 3x3).
    """

    name: str = "cnn"
    """Name in the zoo, for messages and reports."""
    stem_type: CNNStem = setting("resnet", one_of=get_args(CNNStem))
    """simple: a 3x3 of stride 2; resnet: a 7x7 of stride 2 and a 3x3 max pooling of stride 2;
    cifar: a 3x3 of stride 1, for small images."""
    stem_width: int = setting(64, at_least=1, at_most=MAX_WIDTH)
    """Output channels of the stem."""
    block: CNNBlock = setting("bottleneck", one_of=get_args(CNNBlock))
    """bottleneck: 1x1, kxk, SE, 1x1 and a ReLU after the sum (ResNet, RegNet); mbconv: 1x1 up,
    kxk depthwise, SE, linear 1x1 down (EfficientNet, arXiv 1905.11946)."""
    depths: tuple[int, ...] = setting((3, 4, 6, 3), at_least=1, at_most=MAX_DEPTH)
    """Blocks of each stage."""
    widths: tuple[int, ...] = setting((256, 512, 1024, 2048), at_least=1, at_most=MAX_WIDTH)
    """Output channels of each stage."""
    strides: tuple[int, ...] = setting((1, 2, 2, 2), at_least=1)
    """Stride of each stage's first block."""
    kernel_sizes: tuple[int, ...] | None = setting(None, at_least=1)
    """Kernel of each stage's kxk convolution, odd; None: 3 for all."""
    bottleneck_ratio: float = setting(0.25, above=0, below=inf, needs=("block", "bottleneck"))
    """With block bottleneck: channels inside a block over its output channels."""
    group_widths: tuple[int, ...] | None = setting(None, at_least=1, needs=("block", "bottleneck"))
    """With block bottleneck: channels in a group of each stage's kxk; None: one group."""
    expand_ratios: tuple[int, ...] | None = setting(None, at_least=1, needs=("block", "mbconv"))
    """With block mbconv: channels inside a block over its input channels, each stage; None: 1."""
    se_ratio: float = setting(0.0, at_least=0, at_most=1)
    """Width of squeeze-and-excitation over a block's input channels (arXiv 1709.01507); 0: none."""
    head_width: int | None = setting(None, at_least=1, at_most=MAX_WIDTH)
    """Channels of a 1x1 convolution before pooling; None: no such convolution."""
    activation: Activation = setting("relu", one_of=get_args(Activation))
    """Non-linearity, in squeeze-and-excitation too."""
    padding: Padding = setting("half", one_of=get_args(Padding))
    """half: by half the kernel on all sides; same: as TensorFlow pads, with stride 2 only as much
    as the kernel needs, an odd pixel below and to the right."""
    norm_eps: float = setting(1e-5, above=0, below=1)
    """What BatchNorm adds to the variance; TensorFlow's EfficientNets: 1e-3."""
    zero_init_last: bool = setting(False, needs=("block", "bottleneck"))
    """With block bottleneck: start the last BatchNorm gain of each block at 0, so that a fresh
    block passes its shortcut on. pycls can; its default, which the configs of its published
    baselines keep, is to start all gains at 1."""

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel of each stage's kxk convolution."""
        return self.kernel_sizes or (3,) * len(self.depths)

    @property
    def reduction(self) -> int:
        """By how much the stem and the stages divide the size, rounding up."""
        return {"simple": 2, "resnet": 4, "cifar": 1}[self.stem_type] * prod(self.strides)

    @property
    def num_features(self) -> int:
        """Channels that the classifier reads."""
        return self.head_width or self.widths[-1]

    @property
    def test_size(self) -> int | None:
        """What the paper's evaluation resizes the shorter side to, in pixels, before it cuts
        `img_size` from the middle: data.eval_crop is the ratio of the two. None: not a model of
        the paper, or not at the size it is trained at there."""
        train, test = PAPER_SIZES.get(self.name, (0, 0))
        return test if self.size == (train, train) else None

    @property
    def summary(self) -> str:
        """What it is made of, in a few words."""
        stages = "-".join(str(d) for d in self.depths)
        widths = "-".join(str(w) for w in self.widths)
        words = [f"{self.block} blocks {stages}", f"{widths} wide"]
        if self.group_widths is not None:
            groups = dict.fromkeys(self.group_widths)
            words.append(f"groups of {'-'.join(str(g) for g in groups)}")
        if self.se_ratio:
            words.append(f"squeeze-and-excitation {self.se_ratio:g}")
        if self.test_size is not None:
            words.append(f"the paper's test size {self.test_size}")
        return ", ".join(words)

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.depths:
            found.append("model.depths is empty; a CNN has at least one stage.")
        for name in _LISTS:
            values = getattr(self, name)
            if values is not None and len(values) != len(self.depths):
                found.append(
                    f"model.{name} {values} has {len(values)} entries for the "
                    f"{len(self.depths)} stages of model.depths."
                )
        if any(k % 2 == 0 for k in self.kernels):
            found.append(f"model.kernel_sizes {self.kernels} must all be odd.")
        return found or self._width_problems()

    def _width_problems(self) -> list[str]:
        """What is wrong with the widths inside the blocks, once each number is valid by itself."""
        found = []
        inner = [inner_width(width, self.bottleneck_ratio) for width in self.widths]
        if self.block == "bottleneck" and min(inner) < 1:
            found.append(
                f"model.bottleneck_ratio {self.bottleneck_ratio} leaves no channel inside a block "
                f"of {min(self.widths)}."
            )
        for stage, (width, group) in enumerate(zip(inner, self.group_widths or (), strict=False)):
            if width % group:
                found.append(
                    f"model.group_widths: {group} does not divide the {width} channels inside a "
                    f"block of stage {stage + 1}."
                )
        narrowest = min(self.stem_width, *self.widths)
        if self.se_ratio and se_width(narrowest, self.se_ratio, self.block) < 1:
            found.append(
                f"model.se_ratio {self.se_ratio} leaves no channel for a block with {narrowest} "
                f"input channels."
            )
        return found


def inner_width(width: int, ratio: float) -> int:
    """Channels inside a bottleneck block."""
    return round(width * ratio)


def se_width(in_width: int, ratio: float, block: CNNBlock) -> int:
    """Channels of squeeze-and-excitation: a share of a block's input channels, to the nearest in
    pycls's bottleneck blocks and downwards in its EfficientNets."""
    return int(in_width * ratio) if block == "mbconv" else round(in_width * ratio)


@dataclass(frozen=True, kw_only=True)
class TimmConfig(ModelConfig):
    """A model of the timm library, freshly initialised, without dropout (extra `peers`)."""

    name: str = "timm:"
    """timm:<name as timm knows it>."""

    @property
    def timm_name(self) -> str:
        return self.name.removeprefix("timm:")

    def problems(self) -> list[str]:
        found = super().problems()
        # hf-hub:... would fetch a stranger's config
        if not re.fullmatch(r"timm:\w*", self.name):
            found.append(f"model.name {self.name!r} must be timm:NAME, a name that timm knows.")
        return found


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig(ModelConfig):
    """A classifier of the torchvision library, freshly initialised, without dropout (extra
    `peers`)."""

    name: str = "torchvision:"
    """torchvision:<name as torchvision.models knows it>."""

    @property
    def torchvision_name(self) -> str:
        return self.name.removeprefix("torchvision:")

    def problems(self) -> list[str]:
        found = super().problems()
        if not re.fullmatch(r"torchvision:\w*", self.name):
            found.append(
                f"model.name {self.name!r} must be torchvision:NAME, a name of torchvision.models."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class CustomModelConfig(CustomConfig, ModelConfig):
    """A custom model: a torch.nn.Module class of the user's own, by file or module."""

    KIND = MODEL

    name: str = "custom"
    """Name of the class, for messages and reports."""


MODEL_KINDS: dict[str, type[ModelConfig]] = {
    "vit": ViTConfig,
    "cnn": CNNConfig,
    "timm": TimmConfig,
    "torchvision": TorchvisionConfig,
    "custom": CustomModelConfig,
}
