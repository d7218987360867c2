"""What a model is, as values: no torch here, so that help and errors answer at once.

Shape letters used in the whole room: B batch, C channels, H W pixels, h w token grid, N tokens,
D embed_dim, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args


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


StemConfig = PatchifyStemConfig | ConvStemConfig
STEM_KINDS: dict[str, type[PatchifyStemConfig] | type[ConvStemConfig]] = {
    "patchify": PatchifyStemConfig,
    "conv": ConvStemConfig,
}

GlobalPool = Literal["token", "avg"]
Init = Literal["2021", "2022"]
AttentionKind = Literal["auto", "sdpa", "explicit"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "global_pool": get_args(GlobalPool),
    "init": get_args(Init),
    "attention": get_args(AttentionKind),
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
    global_pool: GlobalPool = "token"
    """What the head sees: the class token, or the mean of the patch tokens."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, rising linearly from 0 at the first; the paper has 0."""
    init: Init = "2021"
    """Initialisation: the authors' code when the paper appeared, or pycls since March 2022."""
    attention: AttentionKind = "auto"
    """How attention is computed; auto: two matmuls and a softmax for bf16 on CPU, else SDPA."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return self.size[0] // self.stem.reduction, self.size[1] // self.stem.reduction

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP."""
        return round(self.embed_dim * self.mlp_ratio)

    def problems(self) -> list[str]:
        found = [f"model.{p}" for p in self.stem.problems()]
        found += self.body_problems(1 if found else self.stem.reduction)
        if self.num_classes is not None and self.num_classes < 1:
            found.append(f"model.num_classes {self.num_classes} must be at least 1.")
        return found

    def body_problems(self, reduction: int) -> list[str]:
        """What is wrong behind any stem that divides the size by `reduction`."""
        found = []
        if min(self.size) < reduction or any(s % reduction for s in self.size):
            near = tuple(max(1, round(s / reduction)) * reduction for s in self.size)
            found.append(
                f"model.img_size {self.img_size} is not divisible by the stem's reduction "
                f"{reduction}; the nearest that is: {near[0] if near[0] == near[1] else near}."
            )
        if self.num_heads < 1 or self.embed_dim < 1 or self.embed_dim % self.num_heads:
            found.append(
                f"model.embed_dim {self.embed_dim} is not divisible by "
                f"model.num_heads {self.num_heads}."
            )
        if self.depth < 1:
            found.append(f"model.depth {self.depth} must be at least 1.")
        elif not 1 <= self.embed_dim * self.mlp_ratio < float("inf"):
            found.append(
                f"model.mlp_ratio {self.mlp_ratio} leaves the MLP no hidden width; the paper has "
                f"3 and 4."
            )
        if self.in_chans < 1:
            found.append(f"model.in_chans {self.in_chans} must be at least 1.")
        if not 0 <= self.drop_path_rate < 1:
            found.append(f"model.drop_path_rate {self.drop_path_rate} must be in [0, 1).")
        if self.drop_path_rate > 0 and self.depth == 1:
            found.append(
                f"model.drop_path_rate {self.drop_path_rate} has no effect with model.depth 1: it "
                f"rises from 0 at the first block."
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                found.append(
                    f"model.{name} {getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        if self.global_pool == "token" and not self.class_token:
            found.append(
                "model.global_pool 'token' needs model.class_token; use --model.global_pool avg."
            )
        return found
