"""How do pixels become tokens? The paper's two stems: one patchify convolution, or a few 3x3.

Shape letters: B batch, C channels, H W pixels, h w token grid, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from torch import Tensor, nn

from vitc.models.config import Init
from vitc.models.rivals import (
    DepthwiseStem,
    DualPatchNormStem,
    NormFreeStem,
    OverlapStem,
    ScaledReluStem,
)
from vitc.models.stem_config import (
    ConvStemConfig,
    DepthwiseStemConfig,
    DualPatchNormStemConfig,
    NormFreeStemConfig,
    OutsideStemConfig,
    OverlapStemConfig,
    PatchifyStemConfig,
    ScaledReluStemConfig,
    StemConfig,
)
from vitc.models.stem_parts import (
    ConvNormAct,
    Stem,
    act_layer,
    check_config,
    norm_layer,
    start_projection,
)

__all__ = ["STEMS", "ConvNormAct", "ConvStem", "PatchifyStem", "Stem", "build_stem"]


class PatchifyStem(Stem):
    """One convolution whose kernel is its stride (paper section 3; Dosovitskiy et al. 2020).

    (B, C, H, W) -> (B, D, h, w). With config.bn_relu, BatchNorm and ReLU follow (paper appendix A).
    Weights: truncated normal of variance 1 / fan_in, bias 0, in both generations of the authors'
    code. Raises ConfigError: a patch size below 1; in `forward`, an input it cannot divide.
    """

    def __init__(
        self, config: PatchifyStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        check_config(config)
        super().__init__(in_chans, embed_dim, config.reduction)
        self.proj = nn.Conv2d(in_chans, embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = norm_layer("bn" if config.bn_relu else "none", embed_dim)
        self.act = act_layer("relu" if config.bn_relu else "none")
        start_projection(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        out: Tensor = self.act(self.norm(self.proj(x)))  # (B, D, h, w)
        return out


class ConvStem(Stem):
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
        check_config(config)
        super().__init__(in_chans, embed_dim, config.reduction)
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
                nn.init.normal_(layer.conv.weight, std=sqrt(2 / layer.conv.out_channels))
        gain = {"2021": 2, "2022": 1}[init]
        nn.init.normal_(self.proj.weight, std=sqrt(gain / embed_dim))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # Conv2d has one by default

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.proj(x)  # (B, D, h, w)
        return out


STEMS: dict[type[StemConfig], Callable[..., Stem]] = {
    PatchifyStemConfig: PatchifyStem,
    ConvStemConfig: ConvStem,
    DualPatchNormStemConfig: DualPatchNormStem,
    ScaledReluStemConfig: ScaledReluStem,
    OverlapStemConfig: OverlapStem,
    DepthwiseStemConfig: DepthwiseStem,
    NormFreeStemConfig: NormFreeStem,
}


def build_stem(config: StemConfig, in_chans: int, embed_dim: int, init: Init = "2021") -> nn.Module:
    """The stem a config describes. Raises ConfigError, all problems at once."""
    if isinstance(config, OutsideStemConfig):
        from vitc.models.custom_stem import load_stem

        return load_stem(config, in_chans, embed_dim)
    return STEMS[type(config)](config, in_chans, embed_dim, init)
