"""Which other stems does the field argue about? Each follows its source, said in its docstring.

Shape letters: B batch, C channels, H W pixels, h w token grid, D embed_dim, p patch_size.

All map (B, C, H, W) to (B, D, h, w) and start alike whatever `init` is, which tells two generations
of the paper's code apart: convolutions as PyTorch makes them (uniform, variance 1 / (3 fan_in)),
unless said otherwise; the projection to D from a truncated normal of variance 1 / fan_in, bias 0.
Raise ConfigError: all problems of the config at once; in `forward`, an input they cannot divide.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitc.errors import ConfigError
from vitc.models.config import Init
from vitc.models.stem_config import (
    DepthwiseStemConfig,
    DualPatchNormStemConfig,
    NormFreeStemConfig,
    OverlapStemConfig,
    ScaledReluStemConfig,
)
from vitc.models.stem_parts import (
    LN_EPS,
    ConvNormAct,
    LayerNorm2d,
    Stem,
    check_config,
    start_projection,
)


class DualPatchNormStem(Stem):
    """LayerNorm of each patch's pixels, linear projection, LayerNorm of each token.

    Dual PatchNorm (Kumar, Dehghani, Houlsby 2023, arXiv 2302.01327): both norms with gain and bias,
    the first over all C p p numbers of a patch. Uncertain: eps, taken as the transformer's 1e-6.
    """

    def __init__(
        self, config: DualPatchNormStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        check_config(config)
        super().__init__(in_chans, embed_dim, config.reduction)
        pixels = in_chans * config.patch_size**2
        self.norm_in = nn.LayerNorm(pixels, eps=LN_EPS)
        self.proj = nn.Linear(pixels, embed_dim)
        self.norm_out = nn.LayerNorm(embed_dim, eps=LN_EPS)
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        b, c, height, width = x.shape
        p = self.reduction
        x = x.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        tokens: Tensor = self.norm_out(self.proj(self.norm_in(x.flatten(3))))  # (B, h, w, D)
        return tokens.permute(0, 3, 1, 2)


class ScaledReluStem(Stem):
    """A 7x7 convolution of stride 2 and two 3x3, each with BatchNorm and ReLU, then a patchify one.

    Wang et al. 2021 (arXiv 2109.03810), who take VOLO's stem: 64 channels, the last convolution's
    kernel and stride are p / 2. BatchNorm before it is what scales the ReLU. Uncertain: the
    initialisation, which the paper does not state, and patches other than 16.
    """

    def __init__(
        self, config: ScaledReluStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        check_config(config)
        super().__init__(in_chans, embed_dim, config.reduction)
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

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.proj(x)  # (B, D, h, w)
        return out


class OverlapStem(Stem):
    """One convolution whose kernel is larger than its stride, then LayerNorm of each token.

    Overlapping patch embedding of PVT v2 (Wang et al. 2021, arXiv 2106.13797): stride p, kernel
    2 p - 1, padding p - 1. CvT (2103.15808) and T2T (2101.11986) overlap with kernel 7 at stride 4,
    too. Those models reduce the size in stages; one stage of stride 16 is ours.
    """

    def __init__(
        self, config: OverlapStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        check_config(config)
        super().__init__(in_chans, embed_dim, config.reduction)
        self.proj = nn.Conv2d(
            in_chans, embed_dim, config.kernel, config.patch_size, padding=config.padding
        )
        self.norm = LayerNorm2d(embed_dim, eps=LN_EPS)
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
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


class DepthwiseStem(Stem):
    """The paper's conv stem of MobileNet's layers: one full convolution, then separable ones.

    The layer and the full first one are MobileNet's (Howard et al. 2017, arXiv 1704.04861); that
    they make a ViT's stem, of the paper's widths and strides and with its final 1x1, is ours.
    """

    def __init__(
        self, config: DepthwiseStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        check_config(config)
        super().__init__(in_chans, embed_dim, config.reduction)
        widths = (in_chans, *config.channels)
        windows = zip(config.kernels, config.strides, config.pads, strict=True)
        self.layers = nn.ModuleList(
            (SeparableConv if i else ConvNormAct)(widths[i], widths[i + 1], *window)
            for i, window in enumerate(windows)
        )
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1)
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.proj(x)  # (B, D, h, w)
        return out


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
        nn.init.normal_(self.weight, std=sqrt(1 / self.weight[0].numel()))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def standardised(self) -> Tensor:
        """The filters as they are applied: (out, in, k, k)."""
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        squares = centred.square().sum(dim=(1, 2, 3), keepdim=True)
        return centred * squares.clamp(min=self.EPS).rsqrt() * self.gain[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding)


class NormFreeStem(Stem):
    """The paper's conv stem with scaled weight standardisation and scaled ReLU for BatchNorm.

    What the field means by norm-free (Brock et al. 2021, arXiv 2101.08692 and 2102.06171): leaving
    the norms out alone lets each layer shrink the signal, so filters are standardised and the ReLU
    multiplied by sqrt(2 / (1 - 1 / pi)), which keeps the variance of a unit normal input at 1.
    Weights N(0, 1 / fan_in), gains 1, biases 0. Their adaptive gradient clipping belongs to an
    optimizer and is not here; that the layers make a ViT's stem is ours.
    """

    SCALE = sqrt(2 / (1 - 1 / pi))

    def __init__(
        self, config: NormFreeStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        check_config(config)
        super().__init__(in_chans, embed_dim, config.reduction)
        widths = (in_chans, *config.channels)
        windows = zip(config.kernels, config.strides, config.pads, strict=True)
        self.layers = nn.ModuleList(
            StandardisedConv(widths[i], widths[i + 1], *window) for i, window in enumerate(windows)
        )
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1)
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        for layer in self.layers:
            x = layer(x).relu() * self.SCALE
        out: Tensor = self.proj(x)  # (B, D, h, w)
        return out
