"""What a CNN baseline is, as values. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Literal, get_args

from vitc.models.model_config import ModelConfig

CNNStem = Literal["simple", "resnet", "cifar"]
CNNBlock = Literal["bottleneck", "mbconv"]
Activation = Literal["relu", "silu"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "stem_type": get_args(CNNStem),
    "block": get_args(CNNBlock),
    "activation": get_args(Activation),
}
# Settings of one kind of block that the other cannot use.
_OF_BLOCK = {
    "bottleneck_ratio": "bottleneck",
    "group_widths": "bottleneck",
    "zero_init_last": "bottleneck",
    "expand_ratios": "mbconv",
}

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
    stem_type: CNNStem = "resnet"
    """simple: a 3x3 of stride 2; resnet: a 7x7 of stride 2 and a 3x3 max pooling of stride 2;
    cifar: a 3x3 of stride 1, for small images."""
    stem_width: int = 64
    """Output channels of the stem."""
    block: CNNBlock = "bottleneck"
    """bottleneck: 1x1, kxk, SE, 1x1 and a ReLU after the sum (ResNet, RegNet); mbconv: 1x1 up,
    kxk depthwise, SE, linear 1x1 down (EfficientNet, arXiv 1905.11946)."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    """Output channels of each stage."""
    strides: tuple[int, ...] = (1, 2, 2, 2)
    """Stride of each stage's first block."""
    kernel_sizes: tuple[int, ...] | None = None
    """Kernel of each stage's kxk convolution, odd; None: 3 for all."""
    bottleneck_ratio: float = 0.25
    """With block bottleneck: channels inside a block over its output channels."""
    group_widths: tuple[int, ...] | None = None
    """With block bottleneck: channels in a group of each stage's kxk; None: one group."""
    expand_ratios: tuple[int, ...] | None = None
    """With block mbconv: channels inside a block over its input channels, each stage; None: 1."""
    se_ratio: float = 0.0
    """Width of squeeze-and-excitation over a block's input channels (arXiv 1709.01507); 0: none."""
    head_width: int | None = None
    """Channels of a 1x1 convolution before pooling; None: no such convolution."""
    activation: Activation = "relu"
    """Non-linearity, in squeeze-and-excitation too."""
    zero_init_last: bool = False
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
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                found.append(
                    f"model.{name} {getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        default = {f.name: f.default for f in fields(CNNConfig)}
        for name, block in _OF_BLOCK.items():
            if self.block != block and getattr(self, name) != default[name]:
                found.append(
                    f"model.{name} {getattr(self, name)} has no effect with model.block "
                    f"{self.block!r}; it is a setting of {block!r}."
                )
        stages = self._stage_problems()
        return found + (stages or self._width_problems())

    def _stage_problems(self) -> list[str]:
        """What is wrong with the numbers, each for itself."""
        if not self.depths:
            return ["model.depths is empty; a CNN has at least one stage."]
        found = []
        for name in (
            "depths",
            "widths",
            "strides",
            "kernel_sizes",
            "group_widths",
            "expand_ratios",
        ):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != len(self.depths):
                found.append(
                    f"model.{name} {values} has {len(values)} entries for the "
                    f"{len(self.depths)} stages of model.depths."
                )
            if min(values, default=1) < 1:
                found.append(f"model.{name} {values} must all be at least 1.")
        for name in ("stem_width", "head_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"model.{name} {value} must be at least 1.")
        if any(k % 2 == 0 for k in self.kernels):
            found.append(f"model.kernel_sizes {self.kernels} must all be odd.")
        if not 0 < self.bottleneck_ratio < float("inf"):
            found.append(f"model.bottleneck_ratio {self.bottleneck_ratio} must be above 0.")
        if not 0 <= self.se_ratio <= 1:
            found.append(f"model.se_ratio {self.se_ratio} must be in [0, 1].")
        return found

    def _width_problems(self) -> list[str]:
        """What is wrong with the widths inside the blocks, once each number is fine for itself."""
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
