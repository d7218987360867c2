"""What stems are made of: their common base, and the layers that several of them share.

Shape letters: B batch, C channels, H W pixels, h w token grid, D embed_dim.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor, nn
from torch.nn import functional as F

from vitc.errors import ConfigError
from vitc.models.stem_config import Act, Norm, StemConfig

LN_EPS = 1e-6  # as in the transformer


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
        act: Act = "relu",
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
        return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    return LayerNorm2d(channels, eps=LN_EPS) if norm == "ln" else nn.Identity()


def act_layer(act: Act) -> nn.Module:
    """The activation function of a name."""
    if act == "relu":
        return nn.ReLU(inplace=True)
    return nn.GELU() if act == "gelu" else nn.Identity()


def start_projection(layer: nn.Conv2d | nn.Linear) -> None:
    """Weights from a truncated normal of variance 1 / fan_in, bias 0: as the patchify stem's."""
    nn.init.trunc_normal_(layer.weight, std=sqrt(1 / layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_config(config: StemConfig) -> None:
    """Raises ConfigError with all problems of a stem's config at once."""
    problems = config.problems()
    if problems:
        raise ConfigError("\n".join(problems), "The paper's stems: paper Table 3; vitc show MODEL")
