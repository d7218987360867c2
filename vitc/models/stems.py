"""How do pixels become tokens? The paper's stems, then others that the field argues about.

Shape letters: B batch, C channels, H W pixels, h w token grid, D embed_dim, p patch_size.

All map (B, C, H, W) to (B, D, h, w). `init` of the conv stem distinguishes two generations of the
paper's code. The others start as PyTorch makes their convolutions (uniform,
variance 1 / (3 fan_in)) unless stated otherwise, the projection to D from a truncated normal of
variance 1 / fan_in, bias 0; each follows the source in its docstring.
Raise ConfigError: all problems of the config at once; in `forward`, an input they cannot divide.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitc.errors import ConfigError, refuse
from vitc.models.backbone import traced
from vitc.models.config import Activation, Init
from vitc.models.custom import load_stem
from vitc.models.stem_config import (
    Act,
    ConvStackConfig,
    ConvStemConfig,
    CustomStemConfig,
    DualPatchNormStemConfig,
    Norm,
    OverlapStemConfig,
    PatchifyStemConfig,
    ScaledReluStemConfig,
    StemConfig,
)

LN_EPS = 1e-6  # as in the transformer


class Stem(nn.Module):
    """What a stem is to the transformer: (B, C, H, W) -> (B, D, H / reduction, W / reduction)."""

    def __init__(self, config: StemConfig, in_chans: int, embed_dim: int) -> None:
        refuse(config.problems(), "The paper's stems: paper Table 3; vitc show MODEL")
        super().__init__()
        self.in_chans, self.embed_dim = in_chans, embed_dim
        assert config.reduction is not None  # it is None of custom stems only
        self.reduction = config.reduction


def check_images(x: Tensor, in_chans: int, reduction: int) -> None:
    """Raises ConfigError unless x is (B, in_chans, H, W), H and W divisible by reduction."""
    if traced(x):
        return
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ConfigError(
            f"The model got a tensor of shape {tuple(x.shape)}; it takes (batch, {in_chans}, "
            f"height, width).",
            f"It was built with in_chans={in_chans}.",
        )
    height, width = x.shape[2:]
    if min(height, width) < reduction or height % reduction or width % reduction:
        raise ConfigError(
            f"Images of {height}x{width} are not divisible by the stem's reduction {reduction}.",
            f"Resize or pad them to multiples of {reduction}.",
        )


class LayeredStem(Stem):
    """A stem of `layers` in a row, then the convolution `proj` to D channels."""

    layers: nn.ModuleList
    proj: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_chans, self.reduction)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.proj(x)  # (B, D, h, w)
        return out


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position: (B, C, h, w) -> (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class ConvNormAct(nn.Module):
    """Convolution, norm, activation; the convolution has a bias only where no norm follows.

    BatchNorm has eps 1e-5 and momentum 0.1. LayerNorm is over the channels of each position.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        stride: int,
        padding: int,
        groups: int = 1,
        norm: Norm = "bn",
        act: Act | Activation = "relu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_chans, out_chans, kernel_size, stride, padding, groups=groups, bias=norm == "none"
        )
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm = norm_layer(norm, out_chans)
        self.act = act_layer(act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """The norm of a name for (B, channels, h, w)."""
    if norm == "bn":
        return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)  # also pycls's for every CNN
    return LayerNorm2d(channels, eps=LN_EPS) if norm == "ln" else nn.Identity()


def act_layer(act: Act | Activation) -> nn.Module:
    """The activation function of a name."""
    if act == "relu":
        return nn.ReLU(inplace=True)
    if act == "relu6":
        return nn.ReLU6(inplace=True)
    layers: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "none": nn.Identity}
    return layers[act]()


def normal_(tensor: Tensor, std: float) -> None:
    """Draw from N(0, std); on the meta device there is nothing to draw, and torch is slow at it."""
    if not tensor.is_meta:
        nn.init.normal_(tensor, std=std)


def start_projection(layer: nn.Conv2d | nn.Linear) -> None:
    """Weights from a truncated normal of variance 1 / fan_in, bias 0: as the patchify stem's."""
    nn.init.trunc_normal_(layer.weight, std=sqrt(1 / layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


# -- the paper's ----------------------------------------------------------------------------------


class PatchifyStem(Stem):
    """One convolution whose kernel is its stride (paper section 3; Dosovitskiy et al. 2020).

    (B, C, H, W) -> (B, D, h, w). With config.bn_relu, BatchNorm and ReLU follow (paper appendix A).
    Weights: truncated normal of variance 1 / fan_in, bias 0, in both generations of the authors'
    code. Raises ConfigError: a patch size below 1; in `forward`, an input it cannot divide.
    """

    def __init__(self, config: PatchifyStemConfig, in_chans: int, embed_dim: int) -> None:
        super().__init__(config, in_chans, embed_dim)
        self.proj = nn.Conv2d(in_chans, embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = norm_layer("bn" if config.bn_relu else "none", embed_dim)
        self.act = act_layer("relu" if config.bn_relu else "none")
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_chans, self.reduction)
        out: Tensor = self.act(self.norm(self.proj(x)))  # (B, D, h, w)
        return out


class ConvStem(LayeredStem):
    """Convolutions with BatchNorm and ReLU, then a 1x1 with neither (paper section 4, Table 3).

    (B, C, H, W) -> (B, D, h, w). Its reduction is the product of its strides.

    config.norm "ln" is LayerNorm for BatchNorm, the paper's ViT_C(ln) (appendix A). The paper does
    not state over which axes: here over the channels of each position, eps 1e-6, as a transformer's
    tokens are normalised. With norm "none" the convolutions have a bias.

    The paper does not state the initialisation. "2021": the authors' code of July 2021, which
    leaves the convolutions as PyTorch makes them and draws the 1x1 from N(0, 2 / D). "2022":
    pycls since 8709e4f, N(0, 2 / out_channels) - without the kernel's area - and N(0, 1 / D).
    Raises ConfigError, all problems at once: lists of unequal length; a kernel or padding that
    skips pixels or does not divide by its stride; in `forward`, an input it cannot divide.
    """

    def __init__(
        self, config: ConvStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        super().__init__(config, in_chans, embed_dim)
        widths = (in_chans, *config.channels)
        layers = [
            ConvNormAct(
                widths[i], widths[i + 1], kernel, stride, padding, norm=config.norm, act=config.act
            )
            for i, (kernel, stride, padding) in enumerate(
                zip(config.kernels, config.strides, config.pads, strict=True)
            )
        ]
        self.layers = nn.ModuleList(layers)
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1)

        if init == "2022":
            for layer in layers:
                normal_(layer.conv.weight, std=sqrt(2 / layer.conv.out_channels))
        gain = {"2021": 2, "2022": 1}[init]
        normal_(self.proj.weight, std=sqrt(gain / embed_dim))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # Conv2d has one by default


# -- others ---------------------------------------------------------------------------------------


class DualPatchNormStem(Stem):
    """LayerNorm of each patch's pixels, linear projection, LayerNorm of each token.

    Dual PatchNorm (Kumar, Dehghani, Houlsby 2023, arXiv 2302.01327): both norms with gain and bias,
    the first over all C p p numbers of a patch. Uncertain: eps, taken as the transformer's 1e-6.
    """

    def __init__(self, config: DualPatchNormStemConfig, in_chans: int, embed_dim: int) -> None:
        super().__init__(config, in_chans, embed_dim)
        pixels = in_chans * config.patch_size**2
        self.norm_in = nn.LayerNorm(pixels, eps=LN_EPS)
        self.proj = nn.Linear(pixels, embed_dim)
        self.norm_out = nn.LayerNorm(embed_dim, eps=LN_EPS)
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_chans, self.reduction)
        b, c, height, width = x.shape
        p = self.reduction
        x = x.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        tokens: Tensor = self.norm_out(self.proj(self.norm_in(x.flatten(3))))  # (B, h, w, D)
        return tokens.permute(0, 3, 1, 2)


class ScaledReluStem(LayeredStem):
    """A 7x7 convolution of stride 2 and two 3x3, each with BatchNorm and ReLU, then a patchify one.

    Wang et al. 2021 (arXiv 2109.03810), who take VOLO's stem: 64 channels, the last convolution's
    kernel and stride are p / 2. BatchNorm before it is what scales the ReLU. Uncertain: the
    initialisation, which the paper does not state, and patches other than 16.
    """

    def __init__(self, config: ScaledReluStemConfig, in_chans: int, embed_dim: int) -> None:
        super().__init__(config, in_chans, embed_dim)
        width, rest = config.width, config.patch_size // 2
        self.layers = nn.ModuleList(
            [
                ConvNormAct(in_chans, width, 7, 2, 3),
                ConvNormAct(width, width, 3, 1, 1),
                ConvNormAct(width, width, 3, 1, 1),
            ]
        )
        self.proj = nn.Conv2d(width, embed_dim, rest, stride=rest)
        start_projection(self.proj)


class OverlapStem(Stem):
    """One convolution whose kernel is larger than its stride, then LayerNorm of each token.

    Overlapping patch embedding of PVT v2 (Wang et al. 2021, arXiv 2106.13797): stride p, kernel
    2 p - 1, padding p - 1. CvT (2103.15808) and T2T (2101.11986) overlap with kernel 7 at stride 4,
    too. Those models reduce the size in stages; one stage of stride 16 is ours.
    """

    def __init__(self, config: OverlapStemConfig, in_chans: int, embed_dim: int) -> None:
        super().__init__(config, in_chans, embed_dim)
        self.proj = nn.Conv2d(
            in_chans, embed_dim, config.kernel, config.patch_size, padding=config.padding
        )
        self.norm = LayerNorm2d(embed_dim, eps=LN_EPS)
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_chans, self.reduction)
        out: Tensor = self.norm(self.proj(x))  # (B, D, h, w)
        return out


class SeparableConv(nn.Module):
    """A depthwise convolution, then a pointwise one, each with BatchNorm and ReLU."""

    def __init__(
        self, in_chans: int, out_chans: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_chans, in_chans, kernel_size, stride, padding, groups=in_chans
        )
        self.pointwise = ConvNormAct(in_chans, out_chans, 1, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class StackStem(LayeredStem):
    """A stack of layers of the config's windows, then a 1x1: the first layer of one class, the
    others of another, both called with channels in and out, kernel, stride and padding."""

    FIRST: type[nn.Module] = ConvNormAct
    OTHERS: type[nn.Module] = ConvNormAct

    def __init__(self, config: ConvStackConfig, in_chans: int, embed_dim: int) -> None:
        super().__init__(config, in_chans, embed_dim)
        widths = (in_chans, *config.channels)
        windows = zip(config.kernels, config.strides, config.pads, strict=True)
        self.layers = nn.ModuleList(
            (self.OTHERS if i else self.FIRST)(widths[i], widths[i + 1], *window)
            for i, window in enumerate(windows)
        )
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1)
        start_projection(self.proj)


class DepthwiseStem(StackStem):
    """The paper's conv stem of MobileNet's layers: one full convolution, then separable ones.

    The layer and the full first one are MobileNet's (Howard et al. 2017, arXiv 1704.04861); that
    they make a ViT's stem, of the paper's widths and strides and with its final 1x1, is ours.
    """

    OTHERS = SeparableConv


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm, the sum with the shortcut, ReLU (arXiv 1512.03385).

    (B, in_chans, h, w) -> (B, out_chans, h / stride, w / stride). The first convolution has the
    stride. The shortcut is the input itself, or a 1x1 and BatchNorm where the shape changes.
    """

    def __init__(
        self, in_chans: int, out_chans: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, out_chans, kernel_size, stride, padding)
        same = kernel_size // 2
        self.conv2 = ConvNormAct(out_chans, out_chans, kernel_size, 1, same, act="none")
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_chans == out_chans
            else ConvNormAct(in_chans, out_chans, 1, stride, 0, act="none")
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.conv2(self.conv1(x)) + self.shortcut(x)).relu()
        return out


class ResidualStem(StackStem):
    """The paper's conv stem made deeper by residual connections: one convolution, basic blocks.

    The blocks are ResNet's (He et al. 2016, arXiv 1512.03385). That a few of them, down to the
    tokens' size, make the stem of a shallow ViT for small data sets, with the paper's final 1x1,
    is ours (docs/stems.md); BiT's and Dosovitskiy's hybrids (2010.11929) put whole ResNets there.
    """

    OTHERS = BasicBlock


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters are brought to mean 0 and variance gain^2 / fan_in when used."""

    EPS = 1e-4  # of the sum of squares, as in the authors' code

    def __init__(
        self, in_chans: int, out_chans: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__(in_chans, out_chans, kernel_size, stride, padding)
        if self.weight[0].numel() < 2:
            raise ConfigError(
                "A norm_free stem cannot standardise filters of a single weight.",
                "Use a kernel above 1 or more channels.",
            )
        # A vector, so that weight decay spares it like the gain of a norm.
        self.gain = nn.Parameter(torch.ones(out_chans))
        normal_(self.weight, std=sqrt(1 / self.weight[0].numel()))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def standardised(self) -> Tensor:
        """The filters as they are applied: (out, in, k, k)."""
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        squares = centred.square().sum(dim=(1, 2, 3), keepdim=True)
        return centred * squares.clamp(min=self.EPS).rsqrt() * self.gain[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding)


class NormFreeStem(StackStem):
    """The paper's conv stem with scaled weight standardisation and scaled ReLU for BatchNorm.

    What the field means by norm-free (Brock et al. 2021, arXiv 2101.08692 and 2102.06171): leaving
    the norms out alone lets each layer shrink the signal, so filters are standardised and the ReLU
    multiplied by sqrt(2 / (1 - 1 / pi)), which keeps the variance of a unit normal input at 1.
    Weights N(0, 1 / fan_in), gains 1, biases 0. Their adaptive gradient clipping belongs to an
    optimizer and is not here; that the layers make a ViT's stem is ours.
    """

    FIRST = OTHERS = StandardisedConv
    SCALE = sqrt(2 / (1 - 1 / pi))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_chans, self.reduction)
        for layer in self.layers:
            x = layer(x).relu() * self.SCALE
        out: Tensor = self.proj(x)  # (B, D, h, w)
        return out


def build_stem(config: StemConfig, in_chans: int, embed_dim: int, init: Init = "2021") -> nn.Module:
    """The stem of a config: `MyStem` here of a `MyStemConfig`. Raises ConfigError."""
    if isinstance(config, CustomStemConfig):
        return load_stem(config, in_chans, embed_dim)
    if isinstance(config, ConvStemConfig):
        return ConvStem(config, in_chans, embed_dim, init)
    cls: type[nn.Module] = globals()[type(config).__name__.removesuffix("Config")]
    return cls(config, in_chans, embed_dim)
