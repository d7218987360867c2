"""What is a stem, as values? One frozen class a kind, each with its source. No torch here.

A new stem: its config `MyStemConfig` here with an entry in `STEM_KINDS`, its module `MyStem` in
`stems`. A custom stem needs neither: `--model.stem path/to/my.py:MyStem`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal, get_args

from vitc.plugins.consent import CustomConfig
from vitc.plugins.names import STEM
from vitc.settings import out_of_bounds, setting

Norm = Literal["bn", "ln", "none"]
Act = Literal["relu", "gelu", "none"]


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    """What every kind has: how much it reduces the size, and what is wrong with it."""

    @property
    def reduction(self) -> int | None:
        """Pixels a side of a token; None: known only once the stem is built."""
        raise NotImplementedError

    def problems(self) -> list[str]:
        return out_of_bounds(self, "stem")


@dataclass(frozen=True, kw_only=True)
class PatchConfig(StemConfig):
    """What stems of square patches have: no kind by itself."""

    patch_size: int = setting(16, at_least=1)
    """Pixels a side of a patch; also the stem's reduction."""

    @property
    def reduction(self) -> int:
        return self.patch_size


@dataclass(frozen=True, kw_only=True)
class PatchifyStemConfig(PatchConfig):
    """One convolution whose kernel is its stride: the standard ViT's stem (paper section 3)."""

    bn_relu: bool = False
    """BatchNorm and ReLU after the convolution: ViT_P(bn) of paper appendix A."""


@dataclass(frozen=True, kw_only=True)
class ConvStackConfig(StemConfig):
    """What stems of a few convolutions and a final 1x1 have: no kind by itself."""

    channels: tuple[int, ...] = setting((48, 96, 192, 384), at_least=1, at_most=2**15)
    """Output channels, one entry per convolution; the final 1x1 goes to embed_dim."""
    strides: tuple[int, ...] = setting((2, 2, 2, 2), at_least=1)
    """Stride of each convolution; their product is the stem's reduction."""
    kernel_sizes: tuple[int, ...] | None = setting(None, at_least=1)
    """Kernel of each convolution; None: 3 for all, as the paper."""
    paddings: tuple[int, ...] | None = None
    """Zero padding of each; None: the least that loses no pixel, 1 for the paper's 3x3."""

    @property
    def reduction(self) -> int:
        return prod(self.strides)

    @property
    def kernels(self) -> tuple[int, ...]:
        return (3,) * len(self.channels) if self.kernel_sizes is None else self.kernel_sizes

    @property
    def pads(self) -> tuple[int, ...]:
        if self.paddings is not None:
            return self.paddings
        pairs = zip(self.kernels, self.strides, strict=False)  # unequal lengths: see problems()
        return tuple(_least_padding(k, s) for k, s in pairs)

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("strides", "kernel_sizes", "paddings"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.channels):
                found.append(
                    f"stem.{name} {values} has {len(values)} entries, but stem.channels "
                    f"{self.channels} names {len(self.channels)} convolutions."
                )
        if not self.channels:
            found.append("stem.channels is empty; name at least one convolution.")
        if found:
            return found
        for i, (k, s, p) in enumerate(zip(self.kernels, self.strides, self.pads, strict=True)):
            problem = _window_problem(k, s, p)
            if problem is not None:
                found.append(f"stem convolution {i}: kernel {k}, stride {s}{problem}")
        return found


@dataclass(frozen=True, kw_only=True)
class ConvStemConfig(ConvStackConfig):
    """A few 3x3 convolutions with BatchNorm and ReLU, then one 1x1 (paper section 4, Table 3)."""

    norm: Norm = setting("bn", one_of=get_args(Norm))
    """After each convolution but the last; ln: over the channels of each position (ViT_C(ln))."""
    act: Act = setting("relu", one_of=get_args(Act))
    """After each norm; the paper has ReLU."""


@dataclass(frozen=True, kw_only=True)
class DepthwiseStemConfig(ConvStackConfig):
    """The conv stem with depthwise-separable convolutions after the first (arXiv 1704.04861)."""


@dataclass(frozen=True, kw_only=True)
class NormFreeStemConfig(ConvStackConfig):
    """The conv stem without norms: standardised weights, scaled ReLUs (arXiv 2102.06171)."""


@dataclass(frozen=True, kw_only=True)
class ResidualStemConfig(ConvStackConfig):
    """The conv stem with residual blocks after its first convolution (arXiv 1512.03385).

    Each entry of `channels` but the first is a basic block; the stride is that of its first 3x3.
    """

    def problems(self) -> list[str]:
        found = super().problems()
        if any(k % 2 == 0 for k in self.kernels):
            found.append(f"stem.kernel_sizes {self.kernels} must all be odd.")
        return found


@dataclass(frozen=True, kw_only=True)
class DualPatchNormStemConfig(PatchConfig):
    """Patchify with a LayerNorm before and one after (Dual PatchNorm, arXiv 2302.01327)."""


@dataclass(frozen=True, kw_only=True)
class ScaledReluStemConfig(PatchConfig):
    """Three convolutions with BatchNorm and ReLU, then a patchify one (arXiv 2109.03810).

    The first convolution halves the size, the last does the rest.
    """

    width: int = setting(64, at_least=1, at_most=2**15)
    """Channels of the three convolutions."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.patch_size % 2:
            found.append(
                f"stem.patch_size {self.patch_size} must be even: the stem's first convolution "
                f"has stride 2."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class OverlapStemConfig(PatchConfig):
    """Patchify whose kernel is larger than its stride, then a LayerNorm (arXiv 2106.13797)."""

    kernel_size: int | None = None
    """Pixels a side of what a token sees; None: 2 patch_size - 1, the paper's."""

    @property
    def kernel(self) -> int:
        return 2 * self.patch_size - 1 if self.kernel_size is None else self.kernel_size

    @property
    def padding(self) -> int:
        """Then every multiple of the stride is divided by it, and the last pixel is seen."""
        return self.kernel - self.patch_size

    def problems(self) -> list[str]:
        found = super().problems()
        if self.patch_size == 1:
            found.append("stem.patch_size 1 leaves nothing to overlap; use at least 2.")
        largest = 2 * self.patch_size - 1
        if not found and not self.patch_size < self.kernel <= largest:
            found.append(
                f"stem.kernel_size {self.kernel_size} must be above stem.patch_size "
                f"{self.patch_size} and at most {largest}."
            )
        return found


def _least_padding(kernel: int, stride: int) -> int:
    return max(0, (kernel - stride + 1) // 2)


def _window_problem(kernel: int, stride: int, padding: int) -> str | None:
    """Why a convolution skips pixels, or does not divide every multiple of its stride by it.

    Windows start at -padding and then every `stride` pixels. Between two no pixel is skipped if
    kernel >= stride. The output size (n + 2 padding - kernel) // stride + 1 is n / stride for all
    multiples n of the stride if 1 <= kernel - 2 padding <= stride. The last window then starts at
    n - stride - padding, so it reaches the last pixel if kernel - padding >= stride.
    """
    best = _least_padding(kernel, stride)
    if kernel < stride:
        return (
            f" never sees {stride - kernel} of every {stride} pixels a side; use a kernel of at "
            f"least {stride}."
        )
    if kernel - 2 * best < 1:
        return ": no padding of an even kernel keeps the size; use an odd one."
    if not 1 <= kernel - 2 * padding <= stride:
        return (
            f", padding {padding} does not divide the size by {stride} exactly; use padding {best}."
        )
    if kernel - padding < stride:
        return f", padding {padding} never sees the last row and column; use padding {best}."
    return None


@dataclass(frozen=True, kw_only=True)
class CustomStemConfig(CustomConfig, StemConfig):
    """A custom stem: a class of the user's own, by file or module (docs/stems.md)."""

    KIND = STEM

    @property
    def reduction(self) -> int | None:
        return None


STEM_KINDS: dict[str, type[StemConfig]] = {
    "patchify": PatchifyStemConfig,
    "conv": ConvStemConfig,
    "dual_patchnorm": DualPatchNormStemConfig,
    "scaled_relu": ScaledReluStemConfig,
    "overlap": OverlapStemConfig,
    "depthwise": DepthwiseStemConfig,
    "norm_free": NormFreeStemConfig,
    "residual": ResidualStemConfig,
    "custom": CustomStemConfig,
}


def carried(old: StemConfig, kind: type[StemConfig]) -> dict[str, Any]:
    """What a stem of another kind keeps of `old`: settings of the same name, and the reduction
    where that is a setting (a conv stem of reduction 8 becomes patches of 8)."""
    names = {f.name for f in fields(kind)}
    kept = {f.name: getattr(old, f.name) for f in fields(old) if f.name in names}
    if "patch_size" in names and old.reduction is not None:
        kept["patch_size"] = old.reduction
    return kept
