"""What a model is, as values: no torch here, so that help and errors answer at once.

Shape letters used in the whole room: B batch, C channels, H W pixels, h w token grid, N tokens,
D embed_dim, K classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from vitc.models.cnn_config import CNNConfig
from vitc.models.model_config import ModelConfig
from vitc.models.stem_config import (
    STEM_KINDS,
    ConvStemConfig,
    CustomStemConfig,
    DepthwiseStemConfig,
    DualPatchNormStemConfig,
    NormFreeStemConfig,
    OverlapStemConfig,
    PatchifyStemConfig,
    ScaledReluStemConfig,
    StemConfig,
    carried,
)
from vitc.plugins.consent import name_class
from vitc.plugins.names import MODEL, Custom

__all__ = [
    "MODEL_KINDS",
    "STEM_KINDS",
    "AttentionKind",
    "CNNConfig",
    "ConvStemConfig",
    "CustomStemConfig",
    "DepthwiseStemConfig",
    "DualPatchNormStemConfig",
    "GlobalPool",
    "Init",
    "ModelConfig",
    "NormFreeStemConfig",
    "OverlapStemConfig",
    "PatchifyStemConfig",
    "ScaledReluStemConfig",
    "StemConfig",
    "TimmConfig",
    "ViTConfig",
    "carried",
]

GlobalPool = Literal["token", "avg"]
Init = Literal["2021", "2022"]
AttentionKind = Literal["auto", "sdpa", "explicit"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "global_pool": get_args(GlobalPool),
    "init": get_args(Init),
    "attention": get_args(AttentionKind),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """A pre-norm Vision Transformer behind any stem (paper section 3 and Table 1)."""

    name: str = "vit"
    """Name in the zoo, for messages and reports."""
    stem: StemConfig = field(default_factory=PatchifyStemConfig)
    """The stem: a kind of `STEM_KINDS`, or a custom one as path/to/my.py:MyStem."""
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
    class_token: bool = True
    """Prepend a learned class token."""
    global_pool: GlobalPool = "token"
    """What the head sees: the class token, or the mean of the patch tokens."""
    registers: int = 0
    """Extra learned tokens that no head reads (arXiv 2309.16588); the paper has none."""
    qk_norm: bool = False
    """LayerNorm of queries and keys in each head (arXiv 2302.05442); the paper has none."""
    dynamic_img_size: bool = False
    """Take images of any size the stem divides: pos_embed is resampled in each forward pass."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, rising linearly from 0 at the first; the paper has 0."""
    init: Init = "2021"
    """Initialisation: the authors' code when the paper appeared, or pycls since March 2022."""
    attention: AttentionKind = "auto"
    """How attention is computed; auto: two matmuls and a softmax for bf16 on CPU, else SDPA."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) in tokens; None: known only once the stem is built."""
        reduction = self.stem.reduction
        return None if reduction is None else (self.size[0] // reduction, self.size[1] // reduction)

    @property
    def summary(self) -> str:
        """What it is made of, in a few words."""
        return f"{self.depth} blocks, {self.embed_dim} wide, {self.num_heads} heads"

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP."""
        return round(self.embed_dim * self.mlp_ratio)

    def problems(self) -> list[str]:
        found = [f"model.{p}" for p in self.stem.problems()]
        found += self.body_problems(1 if found else self.stem.reduction or 1)
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
        if self.registers < 0:
            found.append(f"model.registers {self.registers} must not be negative.")
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


@dataclass(frozen=True, kw_only=True)
class TimmConfig(ModelConfig):
    """A model of the timm library, freshly initialised, without dropout (extra `peers`)."""

    name: str = "timm:"
    """timm:<name as timm knows it>."""

    @property
    def timm_name(self) -> str:
        return self.name.removeprefix("timm:")

    def problems(self) -> list[str]:
        found = super().problems()
        if not re.fullmatch(r"timm:\w*", self.name):  # hf-hub:... would fetch a stranger's config
            found.append(f"model.name {self.name!r} must be timm:NAME, a name that timm knows.")
        return found


@dataclass(frozen=True, kw_only=True)
class CustomModelConfig(ModelConfig):
    """A custom model: a torch.nn.Module class of the user's own, by file or module."""

    name: str = "custom"
    """Name of the class, for messages and reports."""
    source: str = ""
    """path/to/file.py:Class or package.module:Class, with settings if it has any:
    my.py:Net(width=32)."""
    sha256: str = ""
    """SHA-256 of the file that defines it; filled in when it is named."""

    @classmethod
    def named(cls, source: str) -> CustomModelConfig:
        """The model that the user names; its file is trusted as it is. Raises ConfigError."""
        one = name_class(MODEL, source)
        return cls(name=one.what, source=one.source, sha256=one.sha256)

    @property
    def custom(self) -> Custom:
        return Custom(MODEL, self.source, self.sha256)

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.source:
            found.append("model.source is empty; name the class: --model path/to/my.py:Net.")
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            found.append(f"model.sha256 {self.sha256[:70]!r} is not 64 hexadecimal digits.")
        return found


MODEL_KINDS: dict[str, type[ModelConfig]] = {
    "vit": ViTConfig,
    "cnn": CNNConfig,
    "timm": TimmConfig,
    "custom": CustomModelConfig,
}
