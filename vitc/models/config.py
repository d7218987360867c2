"""What a model is, as values: no torch here, so that help and errors answer at once.

Shape letters used in the whole room: B batch, C channels, H W pixels, h w token grid, N tokens,
D embed_dim, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PatchifyStemConfig:
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
class ConvStemConfig:
    """A few 3x3 convolutions with BatchNorm and ReLU, then one 1x1 (paper section 4, Table 3)."""

    channels: tuple[int, ...] = (48, 96, 192, 384)
    """Output channels, one entry per 3x3 convolution; the final 1x1 goes to embed_dim."""
    strides: tuple[int, ...] = (2, 2, 2, 2)
    """Stride of each 3x3 convolution; their product is the stem's reduction."""
    kernel_sizes: tuple[int, ...] | None = None
    """Kernel of each convolution; None: 3 for all, as the paper."""
    paddings: tuple[int, ...] | None = None
    """Zero padding of each; None: kernel // 2, which loses no pixel."""

    @property
    def reduction(self) -> int:
        return prod(self.strides)

    @property
    def kernels(self) -> tuple[int, ...]:
        return (3,) * len(self.channels) if self.kernel_sizes is None else self.kernel_sizes

    @property
    def pads(self) -> tuple[int, ...]:
        return tuple(k // 2 for k in self.kernels) if self.paddings is None else self.paddings

    def problems(self) -> list[str]:
        lists = {"strides": self.strides, "kernel_sizes": self.kernels, "paddings": self.pads}
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
            # An input divisible by s gives exactly input / s outputs only if s - 1 <= k-1... the
            # output floor((n + 2p - k) / s) + 1 equals n / s for every such n iff 0 <= k - 2p <= s
            # with k - 2p >= 1; and no pixel is skipped iff k >= s.
            if k < s:
                found.append(
                    f"stem convolution {i}: kernel {k} with stride {s} never sees "
                    f"{s - k} of every {s} pixels a side; use a kernel of at least {s}."
                )
            elif not 1 <= k - 2 * p <= s:
                found.append(
                    f"stem convolution {i}: kernel {k}, stride {s}, padding {p} does not divide "
                    f"the size by {s} exactly; use padding {(k - 1) // 2}."
                )
        return found


StemConfig = PatchifyStemConfig | ConvStemConfig
STEM_KINDS: dict[str, type[PatchifyStemConfig] | type[ConvStemConfig]] = {
    "patchify": PatchifyStemConfig,
    "conv": ConvStemConfig,
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A pre-norm Vision Transformer behind any stem (paper section 3 and Table 1)."""

    name: str = "vit"
    """Name in the zoo, for messages and reports."""
    stem: PatchifyStemConfig | ConvStemConfig = PatchifyStemConfig()
    """The stem: patchify or conv."""
    embed_dim: int = 384
    """Width D of a token."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 6
    """Attention heads; must divide embed_dim."""
    mlp_ratio: float = 3.0
    """Hidden width of the MLP over embed_dim."""
    img_size: int | tuple[int, int] = 224
    """Input size in pixels, one side or (height, width); divisible by the stem's reduction."""
    in_chans: int = 3
    """Input channels C."""
    num_classes: int | None = None
    """Classes K of the head; None: as many as the data has (1000 without data)."""
    class_token: bool = True
    """Prepend a learned class token."""
    global_pool: Literal["token", "avg"] = "token"
    """What the head sees: the class token, or the mean of the patch tokens."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, rising linearly from 0 at the first; the paper has 0."""
    init: Literal["2021", "2022"] = "2021"
    """Initialisation: the authors' code when the paper appeared, or pycls since March 2022."""
    attention: Literal["auto", "sdpa", "explicit"] = "auto"
    """How attention is computed; auto: two matmuls and a softmax on CPU, SDPA elsewhere."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return self.size[0] // self.stem.reduction, self.size[1] // self.stem.reduction

    def problems(self) -> list[str]:
        found = [f"model.{p}" for p in self.stem.problems()]
        r = self.stem.reduction
        if not found and (min(self.size) < r or any(s % r for s in self.size)):
            below = tuple(max(1, round(s / r)) * r for s in self.size)
            found.append(
                f"model.img_size {self.img_size} is not divisible by the stem's reduction {r}; "
                f"the nearest that is: {below[0] if below[0] == below[1] else below}."
            )
        if self.num_heads < 1 or self.embed_dim < 1 or self.embed_dim % self.num_heads:
            found.append(
                f"model.embed_dim {self.embed_dim} is not divisible by "
                f"model.num_heads {self.num_heads}."
            )
        if self.depth < 1:
            found.append(f"model.depth {self.depth} must be at least 1.")
        if self.mlp_ratio <= 0:
            found.append(f"model.mlp_ratio {self.mlp_ratio} must be above 0.")
        if self.in_chans < 1:
            found.append(f"model.in_chans {self.in_chans} must be at least 1.")
        if self.num_classes is not None and self.num_classes < 1:
            found.append(f"model.num_classes {self.num_classes} must be at least 1.")
        if not 0 <= self.drop_path_rate < 1:
            found.append(f"model.drop_path_rate {self.drop_path_rate} must be in [0, 1).")
        if self.global_pool == "token" and not self.class_token:
            found.append(
                "model.global_pool 'token' needs model.class_token; use --model.global_pool avg."
            )
        return found
