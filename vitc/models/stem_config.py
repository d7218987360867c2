"""What a stem is, as values: one frozen class a kind, each with its source. No torch here.

A new stem: its config here with an entry in `STEM_KINDS`, its module with an entry in
`stem.STEMS`. A custom stem needs neither: `--model.stem path/to/my.py:MyStem`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal, get_args

from vitc.plugins.consent import name_class
from vitc.plugins.names import STEM, Custom

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
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PatchifyStemConfig(StemConfig):
    """One convolution whose kernel is its stride: the standard ViT's stem (paper section 3)."""

    patch_size: int = 16
    """Pixels a side of a patch; also the stem's reduction."""
    bn_relu: bool = False
    """BatchNorm and ReLU after the convolution: ViT_P(bn) of paper appendix A."""

    @property
    def reduction(self) -> int:
        return self.patch_size

    def problems(self) -> list[str]:
        return _patch_problems(self.patch_size)


def _patch_problems(patch_size: int) -> list[str]:
    return [] if patch_size >= 1 else [f"stem.patch_size {patch_size} must be at least 1."]


@dataclass(frozen=True, kw_only=True)
class ConvStackConfig(StemConfig):
    """What stems of a few convolutions and a final 1x1 have: no kind by itself."""

    channels: tuple[int, ...] = (48, 96, 192, 384)
    """Output channels, one entry per convolution; the final 1x1 goes to embed_dim."""
    strides: tuple[int, ...] = (2, 2, 2, 2)
    """Stride of each convolution; their product is the stem's reduction."""
    kernel_sizes: tuple[int, ...] | None = None
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
        lists = {"strides": self.strides, "kernel_sizes": self.kernels}
        if self.paddings is not None:
            lists["paddings"] = self.paddings
        found = [
            f"stem.{name} {values} has {len(values)} entries, but stem.channels {self.channels} "
            f"names {len(self.channels)} convolutions."
            for name, values in lists.items()
            if len(values) != len(self.channels)
        ]
        if not self.channels:
            found.append("stem.channels is empty; name at least one convolution.")
        if min((*self.channels, *self.strides, *self.kernels, 1)) < 1:
            found.append("stem.channels, strides and kernel_sizes must be at least 1.")
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

    norm: Norm = "bn"
    """After each convolution but the last; ln: over the channels of each position (ViT_C(ln))."""
    act: Act = "relu"
    """After each norm; the paper has ReLU."""

    def problems(self) -> list[str]:
        found = super().problems()
        for name, allowed in (("norm", get_args(Norm)), ("act", get_args(Act))):
            if getattr(self, name) not in allowed:
                found.append(
                    f"stem.{name} {getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        return found


@dataclass(frozen=True, kw_only=True)
class DepthwiseStemConfig(ConvStackConfig):
    """The conv stem with depthwise-separable convolutions after the first (arXiv 1704.04861)."""


@dataclass(frozen=True, kw_only=True)
class NormFreeStemConfig(ConvStackConfig):
    """The conv stem without norms: standardised weights, scaled ReLUs (arXiv 2102.06171)."""


@dataclass(frozen=True, kw_only=True)
class DualPatchNormStemConfig(StemConfig):
    """Patchify with a LayerNorm before and one after (Dual PatchNorm, arXiv 2302.01327)."""

    patch_size: int = 16
    """Pixels a side of a patch; also the stem's reduction."""

    @property
    def reduction(self) -> int:
        return self.patch_size

    def problems(self) -> list[str]:
        return _patch_problems(self.patch_size)


@dataclass(frozen=True, kw_only=True)
class ScaledReluStemConfig(StemConfig):
    """Three convolutions with BatchNorm and ReLU, then a patchify one (arXiv 2109.03810)."""

    patch_size: int = 16
    """Pixels a side of a token, even: the first convolution halves, the last does the rest."""
    width: int = 64
    """Channels of the three convolutions."""

    @property
    def reduction(self) -> int:
        return self.patch_size

    def problems(self) -> list[str]:
        found = _patch_problems(self.patch_size)
        if self.patch_size % 2:
            found.append(
                f"stem.patch_size {self.patch_size} must be even: the stem's first convolution "
                f"has stride 2."
            )
        if self.width < 1:
            found.append(f"stem.width {self.width} must be at least 1.")
        return found


@dataclass(frozen=True, kw_only=True)
class OverlapStemConfig(StemConfig):
    """Patchify whose kernel is larger than its stride, then a LayerNorm (arXiv 2106.13797)."""

    patch_size: int = 16
    """Pixels a side of a token: the stride, and the stem's reduction."""
    kernel_size: int | None = None
    """Pixels a side of what a token sees; None: 2 patch_size - 1, the paper's."""

    @property
    def reduction(self) -> int:
        return self.patch_size

    @property
    def kernel(self) -> int:
        return 2 * self.patch_size - 1 if self.kernel_size is None else self.kernel_size

    @property
    def padding(self) -> int:
        """Then every multiple of the stride is divided by it, and the last pixel is seen."""
        return self.kernel - self.patch_size

    def problems(self) -> list[str]:
        found = _patch_problems(self.patch_size)
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
class CustomStemConfig(StemConfig):
    """A custom stem: a class of the user's own, by file or module (docs/stems.md)."""

    source: str = ""
    """path/to/file.py:Class or package.module:Class, with settings if it has any:
    my.py:MyStem(width=32)."""
    sha256: str = ""
    """SHA-256 of the file that defines it; filled in when it is named."""

    @property
    def reduction(self) -> int | None:
        return None

    @classmethod
    def named(cls, source: str) -> CustomStemConfig:
        """The stem that the user names; its file is trusted as it is. Raises ConfigError."""
        one = name_class(STEM, source)
        return cls(source=one.source, sha256=one.sha256)

    @property
    def custom(self) -> Custom:
        return Custom(STEM, self.source, self.sha256)

    def problems(self) -> list[str]:
        if not self.source:
            return ["stem.source is empty; name the class: --model.stem path/to/my.py:MyStem."]
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            return [f"stem.sha256 {self.sha256[:70]!r} is not 64 hexadecimal digits."]
        return []


STEM_KINDS: dict[str, type[StemConfig]] = {
    "patchify": PatchifyStemConfig,
    "conv": ConvStemConfig,
    "dual_patchnorm": DualPatchNormStemConfig,
    "scaled_relu": ScaledReluStemConfig,
    "overlap": OverlapStemConfig,
    "depthwise": DepthwiseStemConfig,
    "norm_free": NormFreeStemConfig,
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
