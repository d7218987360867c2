"""What is a CNN? The paper's baselines (Table 2) as one family: ResNet, RegNet, EfficientNet.

Follows facebookresearch/pycls (`models/anynet.py`, `regnet.py`, `effnet.py`, `blocks.py`), which
the authors trained them with. Shape letters: B batch, C channels, H W pixels, h w the grid
that is left of them, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import sqrt
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.nn import functional as F

from vitc.errors import ConfigError, refuse
from vitc.models.backbone import NORM_GROUP, Backbone, chosen_layers, traced
from vitc.models.config import Activation, CNNConfig, inner_width, se_width
from vitc.models.stems import ConvNormAct, act_layer, check_images, normal_


class ConvNorm(ConvNormAct):
    """Convolution without bias, BatchNorm, and the activation unless that is None.

    (B, C, H, W) -> (B, out_chans, ceil(H / stride), ceil(W / stride)): padded by half the kernel,
    or after `pad_same` by what the last position lacks.
    """

    pads_same = False

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = None,
    ) -> None:
        padding, act = kernel_size // 2, activation or "none"
        super().__init__(in_chans, out_chans, kernel_size, stride, padding, groups, act=act)

    def pad_same(self) -> None:
        """Pad as TensorFlow does; with stride 1 that is by half the kernel, too."""
        if self.conv.stride[0] > 1:
            self.pads_same, self.conv.padding = True, (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_same:
            x = padded_same(x, self.conv.kernel_size[0], self.conv.stride[0])
        return super().forward(x)


@fx.wrap
def padded_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, C, H, W) with what the last position lacks, half of it on either side. To torch.fx one
    step, since how much depends on the size."""
    lacking = [max(0, kernel - 1 - (side - 1) % stride) for side in x.shape[:1:-1]]
    return F.pad(x, [n for pad in lacking for n in (pad // 2, pad - pad // 2)])


class SqueezeExcite(nn.Module):
    """Scale every channel by a function of the means of all: (B, C, h, w) -> the same
    (arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = act_layer(activation)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        out: Tensor = x * self.fc2(self.act(self.fc1(means))).sigmoid()
        return out


class Bottleneck(nn.Module):
    """1x1, kxk with stride and groups, SE, 1x1; the sum with its shortcut, then the activation.

    (B, in_chans, h, w) -> (B, width, ceil(h / stride), ceil(w / stride)). The shortcut is the input
    itself, or a 1x1 and BatchNorm where the shape changes (arXiv 1512.03385, 2003.13678).
    """

    def __init__(self, config: CNNConfig, stage: int, in_chans: int, stride: int) -> None:
        super().__init__()
        act, width = config.activation, config.widths[stage]
        inner = inner_width(width, config.bottleneck_ratio)
        groups = inner // config.group_widths[stage] if config.group_widths else 1
        self.conv1 = ConvNorm(in_chans, inner, 1, activation=act)
        self.conv2 = ConvNorm(inner, inner, config.kernels[stage], stride, groups, act)
        self.se = _squeeze_excite(config, inner, in_chans)
        self.conv3 = ConvNorm(inner, width, 1)
        same = stride == 1 and in_chans == width
        self.shortcut = nn.Identity() if same else ConvNorm(in_chans, width, 1, stride)
        self.act = act_layer(act)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv3(self.se(self.conv2(self.conv1(x))))
        out: Tensor = self.act(self.shortcut(x) + branch)
        return out


class MBConv(nn.Module):
    """1x1 up, kxk depthwise with stride, SE, linear 1x1 down (arXiv 1905.11946).

    (B, in_chans, h, w) -> (B, width, ceil(h / stride), ceil(w / stride)). The input is added where
    it has the output's shape.
    """

    def __init__(self, config: CNNConfig, stage: int, in_chans: int, stride: int) -> None:
        super().__init__()
        act, width = config.activation, config.widths[stage]
        inner = in_chans * (config.expand_ratios[stage] if config.expand_ratios else 1)
        up = inner != in_chans
        self.expand = ConvNorm(in_chans, inner, 1, activation=act) if up else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, config.kernels[stage], stride, inner, act)
        self.se = _squeeze_excite(config, inner, in_chans)
        self.project = ConvNorm(inner, width, 1)
        self.has_shortcut = stride == 1 and in_chans == width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + out if self.has_shortcut else out


def _squeeze_excite(config: CNNConfig, channels: int, in_chans: int) -> nn.Module:
    if config.se_ratio == 0:
        return nn.Identity()
    hidden = se_width(in_chans, config.se_ratio, config.block)
    return SqueezeExcite(channels, hidden, config.activation)


class CNN(Backbone):
    """A CNN of the paper's comparison (Table 2): (B, C, H, W) -> (B, K).

    It takes images of any size; `img_size` is what it is trained at, and what its cost is counted
    for. `config.num_classes` None means 1000, 0 means no head: `forward` then gives the
    (B, num_features) features. Raises ConfigError, all problems at once.
    """

    def __init__(self, config: CNNConfig) -> None:
        _check(config)
        super().__init__()
        self.config, self.in_chans, self.img_size = config, config.in_chans, config.size
        self.num_features, self.global_pool = config.num_features, "avg"
        kernel, stride = {"simple": (3, 2), "resnet": (7, 2), "cifar": (3, 1)}[config.stem_type]
        act, width = config.activation, config.stem_width
        self.stem = nn.Sequential()  # (B, stem_width, H / r, W / r), r being 1, 2 or 4
        self.stem.add_module("conv", ConvNorm(config.in_chans, width, kernel, stride, 1, act))
        if config.stem_type == "resnet":
            self.stem.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList()
        block = MBConv if config.block == "mbconv" else Bottleneck
        for stage, depth in enumerate(config.depths):
            blocks = nn.Sequential()
            for i in range(depth):
                blocks.append(block(config, stage, width, config.strides[stage] if i == 0 else 1))
                width = config.widths[stage]
            self.stages.append(blocks)
        if config.head_width is None:
            self.conv_head: nn.Module = nn.Identity()
        else:
            self.conv_head = ConvNorm(width, config.head_width, 1, activation=config.activation)
        for layer in self.modules():
            if isinstance(layer, ConvNorm) and config.padding == "same":
                layer.pad_same()
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = config.norm_eps
        init_weights(self, config.zero_init_last)
        self.reset_classifier(config.head_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features, h, w), before pooling.

        Raises ConfigError: images with another number of channels than it was built for; a single
        one in training, so small that BatchNorm would see one value a channel.
        """
        self._check_input(x)
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.conv_head(x)
        return out

    def forward_to(self, x: Tensor, parts: int) -> Tensor:
        """(B, C, H, W) -> (B, C', h, w): what the first `parts` of stem and stages give.

        Raises ConfigError: images as in `forward_features`.
        """
        self._check_input(x)
        for part in [self.stem, *self.stages][:parts]:
            x = part(x)
        return x

    def forward_from(self, x: Tensor, parts: int) -> Tensor:
        """(B, C', h, w) -> (B, K): from what `forward_to` gives to what `forward` does."""
        for part in [self.stem, *self.stages][parts:]:
            x = part(x)
        return self.forward_head(self.conv_head(x))

    def _check_input(self, x: Tensor) -> None:
        check_images(x, self.in_chans, 1)
        if traced(x):
            return
        if self.training and len(x) == 1 and max(x.shape[2:]) <= self.config.reduction:
            raise ConfigError(
                f"BatchNorm cannot train on one image of {x.shape[2]}x{x.shape[3]}: "
                f"{self.config.name} divides the size by {self.config.reduction} and leaves one "
                f"value a channel.",
                "Train on at least 2 images at once (--train.micro_batch), or on larger ones.",
            )

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """What stem (0) and stages (1 to 4) give out, (B, C, h, w) each; timm's names and order.

        `indices`: None all, n the last n, or a list, negative ones from the end. Returns (features
        as of `forward_features`, outputs), or with `intermediates_only` the outputs alone: then,
        and with `stop_early`, no stage is run after the last of them. `norm` makes no difference:
        every stage ends normalised. Raises ConfigError: no such stage, no such format; images as
        in `forward_features`.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt {output_fmt!r} must be NCHW.")
        parts = [self.stem, *self.stages]
        chosen = chosen_layers(indices, len(parts), "stage")
        self._check_input(x)
        outputs: list[Tensor] = []
        for i, part in enumerate(parts):
            x = part(x)
            if i in chosen:
                outputs.append(x)
            if i == chosen[-1] and (stop_early or intermediates_only):
                break
        return outputs if intermediates_only else (self.conv_head(x), outputs)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of the outputs of stem and stages, for timm: `num_chs`, `reduction`, `module`."""
        config, reduction = self.config, {"simple": 2, "resnet": 4, "cifar": 1}
        info = [(config.stem_width, reduction[config.stem_type], "stem")]
        for i, width in enumerate(config.widths[: len(self.stages)]):
            info.append((width, info[-1][1] * config.strides[i], f"stages.{i}"))
        return [dict(zip(("num_chs", "reduction", "module"), row, strict=True)) for row in info]

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = None,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and the head; returns the places."""
        chosen = chosen_layers(indices, 1 + len(self.stages), "stage")
        self.stages = self.stages[: chosen[-1]]
        if prune_head:
            self.conv_head = nn.Identity()
            self.reset_classifier(0, "")
        return chosen

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, h, w) -> (B, K): average and classify; with `pre_logits`, only the
        average: (B, num_features). Without pooling (`reset_classifier(0, "")`) the maps."""
        if not self.global_pool:
            return x
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.head(pooled)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes`, or none for 0: `forward` then gives features.

        Its weights are drawn from torch's generator, N(0, 0.01), its biases 0, as in pycls.
        `global_pool`: avg, or without a head "" (maps); None: as it is.
        """
        if not self._reset(num_classes, global_pool, ("avg", "")):
            self.head = nn.Identity()
            return
        like = next(self.stem.parameters())
        head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        init_weights(head)
        self.head = head

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size; no weight depends on it.

        Raises ConfigError: a size below 1.
        """
        config = dataclasses.replace(self.config, img_size=img_size)
        _check(config)
        self.config, self.img_size = config, config.size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refused: every block has BatchNorms, which a second forward pass would update again."""
        if enable:
            raise ConfigError(
                f"{self.config.name} cannot recompute its blocks in the backward pass: their "
                f"BatchNorms would update their running statistics twice a step.",
                "Leave --train.grad_checkpointing out; --train.micro_batch saves memory too, but "
                "changes over how many images BatchNorm averages.",
            )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters the default recipe does not decay: norm gains, every bias.

        In a CNN those are its vectors; the weights of convolutions and of the head are not.
        """
        return {name for name, p in self.named_parameters() if p.ndim <= 1}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions for timm: the stem; each block, or with `coarse` each stage."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^conv_head", (NORM_GROUP,))]}

    def layers(self) -> list[list[str]]:
        """Names of all parameters in groups from input to output: the stem, each block, and the
        head with the 1x1 convolution before it. For learning rates that fall towards the input."""
        prefixes = ["stem."]
        for s, depth in enumerate(self.config.depths):
            prefixes += [f"stages.{s}.{i}." for i in range(depth)]
        groups = [[n for n, _ in self.named_parameters() if n.startswith(p)] for p in prefixes]
        last = [n for n, _ in self.named_parameters() if n.startswith(("conv_head.", "head."))]
        return [*groups, last] if last else groups


def init_weights(module: nn.Module, zero_init_last: bool = False) -> None:
    """The initialisation of pycls's CNNs, for every layer in `module`.

    Convolutions: N(0, sqrt(2 / (kernel area * output channels))), not divided by groups, so that
    depthwise ones start small. The biases of squeeze-and-excitation, the only convolutions that
    have one: as PyTorch makes them. BatchNorm: gain 1, bias 0; `zero_init_last`: gain 0 where a
    bottleneck's branch ends. Linear: N(0, 0.01), bias 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            normal_(layer.weight, std=sqrt(2 / fan_out))
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    if zero_init_last:
        for layer in module.modules():
            if isinstance(layer, Bottleneck) and isinstance(layer.conv3.norm, nn.BatchNorm2d):
                nn.init.zeros_(layer.conv3.norm.weight)


def _check(config: CNNConfig) -> None:
    problems = dataclasses.replace(config, num_classes=None).problems()  # 0 means no head here
    refuse(problems, "The paper's CNNs: vitc show --list")
