"""How do pixels become tokens? The paper's two stems: one patchify convolution, or a few 3x3.

Shape letters: B batch, C channels, H W pixels, h w token grid, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from torch import Tensor, nn

from vitc.errors import ConfigError
from vitc.models.config import Init
from vitc.models.stem_config import (
    ConvStemConfig,
    OutsideStemConfig,
    PatchifyStemConfig,
    StemConfig,
)


class Stem(nn.Module):
    """What a stem is to the transformer: (B, C, H, W) -> (B, D, H / reduction, W / reduction)."""

    def __init__(self, in_chans: int, embed_dim: int, reduction: int) -> None:
        super().__init__()
        self.in_chans, self.embed_dim, self.reduction = in_chans, embed_dim, reduction

    def check_input(self, x: Tensor) -> None:
        """Raises ConfigError unless x is (B, in_chans, H, W), H and W divisible by reduction."""
        shape, r = tuple(x.shape), self.reduction
        if len(shape) != 4 or shape[1] != self.in_chans:
            raise ConfigError(
                f"The stem got a tensor of shape {shape}; it takes (batch, {self.in_chans}, "
                f"height, width).",
                f"It was built with in_chans={self.in_chans}.",
            )
        if shape[2] % r or shape[3] % r:
            raise ConfigError(
                f"Images of {shape[2]}x{shape[3]} are not divisible by the stem's reduction {r}.",
                f"Resize or pad them to multiples of {r}.",
            )


class PatchifyStem(Stem):
    """One convolution whose kernel is its stride (paper section 3; Dosovitskiy et al. 2020).

    (B, C, H, W) -> (B, D, h, w). Weights: truncated normal of variance 1 / fan_in, bias 0, in both
    generations of the authors' code.
    Raises ConfigError: a patch size below 1; in `forward`, an input it cannot divide.
    """

    def __init__(
        self, config: PatchifyStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        _check(config)
        super().__init__(in_chans, embed_dim, config.reduction)
        self.proj = nn.Conv2d(in_chans, embed_dim, config.patch_size, stride=config.patch_size)
        nn.init.trunc_normal_(self.proj.weight, std=sqrt(1 / self.proj.weight[0].numel()))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # Conv2d has one by default

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        out: Tensor = self.proj(x)  # (B, D, h, w)
        return out


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm (eps 1e-5, momentum 0.1), ReLU."""

    def __init__(
        self, in_chans: int, out_chans: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(out_chans, eps=1e-5, momentum=0.1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class ConvStem(Stem):
    """Convolutions with BatchNorm and ReLU, then a 1x1 with neither (paper section 4, Table 3).

    (B, C, H, W) -> (B, D, h, w). Its reduction is the product of its strides.

    The paper does not state the initialisation. "2021": the authors' code of July 2021, which
    leaves the convolutions as PyTorch makes them and draws the 1x1 from N(0, 2 / D). "2022":
    pycls since 8709e4f, N(0, 2 / out_channels) - without the kernel's area - and N(0, 1 / D).
    Raises ConfigError, all problems at once: lists of unequal length; a kernel or padding that
    skips pixels or does not divide by its stride; in `forward`, an input it cannot divide.
    """

    def __init__(
        self, config: ConvStemConfig, in_chans: int, embed_dim: int, init: Init = "2021"
    ) -> None:
        _check(config)
        super().__init__(in_chans, embed_dim, config.reduction)
        widths = (in_chans, *config.channels)
        layers = [
            ConvNormAct(widths[i], widths[i + 1], kernel, stride, padding)
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


def _check(config: StemConfig) -> None:
    problems = config.problems()
    if problems:
        raise ConfigError("\n".join(problems), "The paper's stems: paper Table 3; vitc show MODEL")


STEMS: dict[type[StemConfig], Callable[..., Stem]] = {
    PatchifyStemConfig: PatchifyStem,
    ConvStemConfig: ConvStem,
}


def build_stem(config: StemConfig, in_chans: int, embed_dim: int, init: Init = "2021") -> nn.Module:
    """The stem a config describes. Raises ConfigError, all problems at once."""
    if isinstance(config, OutsideStemConfig):
        from vitc.models.outside import load_stem

        return load_stem(config, in_chans, embed_dim)
    return STEMS[type(config)](config, in_chans, embed_dim, init)
