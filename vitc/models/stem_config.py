"""What a stem is, as values: one frozen class a kind, each with its source. No torch here.

A new stem: its config here with an entry in `STEM_KINDS`, its module with an entry in
`stem.STEMS`. A stem from outside the package needs neither: `--model.stem path/to/my.py:MyStem`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


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

    @property
    def reduction(self) -> int:
        return self.patch_size

    def problems(self) -> list[str]:
        if self.patch_size < 1:
            return [f"stem.patch_size {self.patch_size} must be at least 1."]
        return []


@dataclass(frozen=True, kw_only=True)
class ConvStemConfig(StemConfig):
    """A few 3x3 convolutions with BatchNorm and ReLU, then one 1x1 (paper section 4, Table 3)."""

    channels: tuple[int, ...] = (48, 96, 192, 384)
    """Output channels, one entry per 3x3 convolution; the final 1x1 goes to embed_dim."""
    strides: tuple[int, ...] = (2, 2, 2, 2)
    """Stride of each 3x3 convolution; their product is the stem's reduction."""
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
class OutsideStemConfig(StemConfig):
    """A stem class from outside the package, by file or module (docs/stems.md)."""

    source: str = ""
    """path/to/file.py:Class or package.module:Class, with settings if it has any:
    my.py:MyStem(width=32)."""
    sha256: str = ""
    """SHA-256 of the file that defines it; filled in when it is named."""

    @property
    def reduction(self) -> int | None:
        return None

    def problems(self) -> list[str]:
        if not self.source:
            return ["stem.source is empty; name the class: --model.stem path/to/my.py:MyStem."]
        return []


STEM_KINDS: dict[str, type[StemConfig]] = {
    "patchify": PatchifyStemConfig,
    "conv": ConvStemConfig,
    "outside": OutsideStemConfig,
}
