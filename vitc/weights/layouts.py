"""How does each library name the tensors of a ViT? Recognised, and renamed from and to ours.

    vitc          stem.proj, stem.layers.0.conv, blocks.0.attn.qkv, pos_embed (1, N, D)
    pycls         stem.cstem0_conv, encoder.block_0.self_attention.block.*, pos_embedding (N, 1, D)
    pycls_branch  the authors' branches: self_attention.attn_proj, pos_embedding (1, N, D)
    torchvision   conv_proj, encoder.layers.encoder_layer_0.*, also with conv_stem_configs
    timm          patch_embed.proj, blocks.0.attn.qkv; DeiT has the same names

All five order queries, keys and values alike in one matrix, so that converting moves tensors and
computes nothing, but for the position embedding of registers. Reading takes either attention and
either position embedding of pycls: its `main` had both orders of the latter.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vitc.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitc.errors import CheckpointError
from vitc.wording import few

Layout = Literal["vitc", "pycls", "pycls_branch", "torchvision", "timm"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

# -- preprocessing ---------------------------------------------------------------------------------


CONVENTIONS: dict[str, Preprocessing] = {
    # pycls/datasets/imagenet.py: cv2.imread gives BGR, "mean and SD values in BGR order", and
    # cv2.INTER_LINEAR resizes.
    "pycls": Preprocessing(IMAGENET_MEAN[::-1], IMAGENET_STD[::-1], "bgr", "bilinear"),
    # torchvision/transforms/_presets.py; resizing differs between its weights.
    "torchvision": Preprocessing(IMAGENET_MEAN, IMAGENET_STD),
}
"""What a library has always done to ImageNet; its weights files do not store it. timm has no one
convention: some of its ViTs take mean and standard deviation 0.5."""


def convention(layout: str) -> Preprocessing | None:
    """The preprocessing that a layout's library implies; None where it implies none."""
    return CONVENTIONS.get(layout.partition("_")[0])


# -- names -----------------------------------------------------------------------------------------

# (ours, theirs); # stands for a number, and what follows a name (".weight") stays as it is.
Rules = tuple[tuple[str, str], ...]

_PYCLS_BLOCK: Rules = (
    ("cls_token", "class_token"),
    ("pos_embed", "pos_embedding"),
    ("blocks.#.norm1", "encoder.block_#.ln_1"),
    ("blocks.#.norm2", "encoder.block_#.ln_2"),
    ("blocks.#.mlp.fc1", "encoder.block_#.mlp_block.linear_1"),
    ("blocks.#.mlp.fc2", "encoder.block_#.mlp_block.linear_2"),
    ("norm", "encoder.ln"),
    ("head", "head.head_fc"),
)
_PYCLS_ATTENTION: Rules = (
    ("blocks.#.attn.qkv.weight", "encoder.block_#.self_attention.block.in_proj_weight"),
    ("blocks.#.attn.qkv.bias", "encoder.block_#.self_attention.block.in_proj_bias"),
    ("blocks.#.attn.proj", "encoder.block_#.self_attention.block.out_proj"),
)
_BRANCH_ATTENTION: Rules = (
    ("blocks.#.attn.qkv", "encoder.block_#.self_attention.attn_proj"),
    ("blocks.#.attn.proj", "encoder.block_#.self_attention.out_proj"),
)
_TORCHVISION_OLD_MLP: Rules = (  # before torchvision 0.13
    ("blocks.#.mlp.fc1", "encoder.layers.encoder_layer_#.mlp.linear_1"),
    ("blocks.#.mlp.fc2", "encoder.layers.encoder_layer_#.mlp.linear_2"),
)

_BODY: dict[Layout, Rules] = {
    "pycls": _PYCLS_BLOCK + _PYCLS_ATTENTION,
    "pycls_branch": _PYCLS_BLOCK + _BRANCH_ATTENTION,
    "torchvision": (
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("blocks.#.norm1", "encoder.layers.encoder_layer_#.ln_1"),
        ("blocks.#.norm2", "encoder.layers.encoder_layer_#.ln_2"),
        (
            "blocks.#.attn.qkv.weight",
            "encoder.layers.encoder_layer_#.self_attention.in_proj_weight",
        ),
        ("blocks.#.attn.qkv.bias", "encoder.layers.encoder_layer_#.self_attention.in_proj_bias"),
        ("blocks.#.attn.proj", "encoder.layers.encoder_layer_#.self_attention.out_proj"),
        ("blocks.#.mlp.fc1", "encoder.layers.encoder_layer_#.mlp.0"),
        ("blocks.#.mlp.fc2", "encoder.layers.encoder_layer_#.mlp.3"),
        ("norm", "encoder.ln"),
        ("head", "heads.head"),
    ),
    "timm": tuple(
        (name, name)
        for name in (
            "cls_token",
            "pos_embed",
            "reg_token",
            "blocks.#.norm1",
            "blocks.#.norm2",
            "blocks.#.attn.qkv",
            "blocks.#.attn.q_norm",
            "blocks.#.attn.k_norm",
            "blocks.#.attn.proj",
            "blocks.#.mlp.fc1",
            "blocks.#.mlp.fc2",
            "norm",
            "head",
        )
    ),
}
_PATCHIFY: dict[Layout, Rules] = {
    "pycls": (("stem.proj", "stem.patchify"),),
    "pycls_branch": (("stem.proj", "stem.patchify"),),
    "torchvision": (("stem.proj", "conv_proj"),),
    "timm": (("stem.proj", "patch_embed.proj"),),
}
_PYCLS_CONV: Rules = (
    ("stem.layers.#.conv", "stem.cstem#_conv"),
    ("stem.layers.#.norm", "stem.cstem#_bn"),
    ("stem.proj", "stem.cstem_last_conv"),
)
_CONV: dict[Layout, Rules] = {
    "pycls": _PYCLS_CONV,
    "pycls_branch": _PYCLS_CONV,
    "torchvision": (
        ("stem.layers.#.conv", "conv_proj.conv_bn_relu_#.0"),
        ("stem.layers.#.norm", "conv_proj.conv_bn_relu_#.1"),
        ("stem.proj", "conv_proj.conv_last"),
    ),
}
_ALSO_READ: dict[Layout, Rules] = {
    "pycls": _BRANCH_ATTENTION,
    "pycls_branch": _PYCLS_ATTENTION,
    "torchvision": _TORCHVISION_OLD_MLP,
}
_OURS = re.compile(r"(cls_token|reg_token|pos_embed|stem\..+|blocks\.\d+\..+|norm\..+|head\..+)")


def _rename_all(
    tensors: Mapping[str, Tensor], rules: Rules
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors by their new names, and the names that no rule covers, which are kept."""
    renamer = []  # (pattern of the old name, template of the new one), tried in this order
    for old, new in rules:
        pattern = re.escape(old).replace(r"\#", r"(\d+)") + r"((?:\.[a-z_]+)?)"
        numbers = itertools.count(1)
        template = re.sub("#", lambda _, n=numbers: rf"\g<{next(n)}>", new)  # type: ignore[misc]
        renamer.append((re.compile(pattern), rf"{template}\g<{old.count('#') + 1}>"))
    out: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        found = ((pattern.fullmatch(name), template) for pattern, template in renamer)
        key = next((match.expand(template) for match, template in found if match), None)
        if key is None:
            unknown.append(name)
            key = name
        if key in out:
            raise CheckpointError(f"The weights hold {key} twice, once as {name}.")
        out[key] = tensor
    return out, tuple(unknown)


# -- recognising -----------------------------------------------------------------------------------


def recognise(names: Iterable[str]) -> Layout | None:
    """The layout of the tensors of a ViT, by their names; None: not a known ViT."""
    found = set(names)
    if "encoder.pos_embedding" in found and any(n.startswith("conv_proj.") for n in found):
        return "torchvision"
    if "pos_embedding" in found and any(n.startswith("encoder.block_") for n in found):
        branch = any(".self_attention.attn_proj." in n for n in found)
        return "pycls_branch" if branch else "pycls"
    if "pos_embed" in found and any(n.startswith("blocks.0.attn.") for n in found):
        if any(n.startswith("stem.") for n in found):
            return "vitc"
        if any(n.startswith("patch_embed.") for n in found):
            return "timm"
    return None


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the bare module has them: `module.` of data-parallel training and averaging,
    `_orig_mod.` of torch.compile are taken off where all names have them."""
    out = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    for prefix in ("module.", "_orig_mod.", "module."):
        while out and all(name.startswith(prefix) for name in out):
            out = {name.removeprefix(prefix): tensor for name, tensor in out.items()}
    return out


@dataclass(frozen=True)
class Shape:
    """What the tensors of a ViT, in our layout, show of it. (Heads and strides leave no trace.)"""

    embed_dim: int
    depth: int
    mlp_dim: int
    stem: tuple[int, ...]
    """Channels of the convolutions before the last 1x1; empty: patchify, or an unknown stem."""
    patch_size: int | None
    """Pixels a side of a patch; None: not a patchify stem."""
    stem_norm: str
    """What its stem normalises with: bn, ln (or another without statistics) or none."""
    tokens: int
    """Length of the position embedding."""
    classes: int | None
    """None: no classifier."""
    in_chans: int | None
    """None: an unknown stem."""

    def __str__(self) -> str:
        stem = f"conv stem {self.stem}" if self.stem else f"patches of {self.patch_size}"
        if not self.stem and self.patch_size is None:
            stem = "another stem"
        classes = "no classifier" if self.classes is None else f"{self.classes} classes"
        return (
            f"a ViT of {self.depth} blocks, {self.embed_dim} wide (MLP {self.mlp_dim}), {stem}, "
            f"{self.tokens} positions, {classes}"
        )


def describe(tensors: Mapping[str, Tensor]) -> Shape | None:
    """The shape of a ViT from its tensors in our layout; None: they are not those of a ViT."""
    fc1, pos = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("pos_embed")
    if fc1 is None or pos is None or fc1.ndim != 2 or pos.ndim != 3:
        return None
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    channels: list[int] = []
    while (conv := tensors.get(f"stem.layers.{len(channels)}.conv.weight")) is not None:
        channels.append(conv.shape[0])
    proj, head = tensors.get("stem.proj.weight"), tensors.get("head.weight")
    first = tensors.get("stem.layers.0.conv.weight", proj)
    of_stem = [name for name in tensors if name.startswith("stem.")]
    norm = "ln" if any(".norm." in name for name in of_stem) else "none"
    patchify = proj is not None and not channels and proj.ndim == 4
    return Shape(
        embed_dim=pos.shape[-1],
        depth=len(blocks),
        mlp_dim=fc1.shape[0],
        stem=tuple(channels),
        patch_size=proj.shape[-1] if proj is not None and patchify else None,
        stem_norm="bn" if any(name.endswith("running_mean") for name in of_stem) else norm,
        tokens=pos.shape[1],
        classes=None if head is None else head.shape[0],
        in_chans=None if first is None else first.shape[1],
    )


def first_convolution(tensors: Mapping[str, Tensor]) -> str:
    """The name of the tensor that reads the image: the first with 4 dimensions, 3 of input.

    `tensors` in the model's order: a file may have sorted its own. Empty: there is none.
    """
    return next((n for n, t in tensors.items() if t.ndim == 4 and t.shape[1] == 3), "")


# -- theirs to ours --------------------------------------------------------------------------------

_REFUSED: dict[str, str] = {
    "dist_token": "they are of a distilled DeiT, which has a second token and a second classifier",
    "head_dist.": "they are of a distilled DeiT, which has a second token and a second classifier",
    "fc_norm.": "their model normalises after pooling, ours before",
    "norm_pre.": "their model normalises the tokens before the first block",
    ".ls1.gamma": "their model scales each branch (LayerScale)",
    "gamma_1": "their model scales each branch (LayerScale)",
    "pre_logits.": "their model has a further layer before the classifier",
    "patch_embed.backbone.": "their model is a hybrid with a CNN as its stem",
    "patch_embed.norm.": "their model normalises the patches",
}


def foreign_part(tensors: Iterable[str]) -> str | None:
    """Why our ViT cannot compute that of another library, by its names; None: it may be able to."""
    names = list(tensors)
    for part, why in _REFUSED.items():
        found = next((name for name in names if part in name), None)
        if found is not None:
            return f"{why} (they hold {found})"
    return None


def to_vitc(
    tensors: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors in our layout, and the names that have no counterpart in it (kept as they are).

    Only `pos_embed`, and `reg_token` with it, may change shape. Raises CheckpointError: an
    architecture that ours cannot compute (a distilled DeiT, LayerScale, ...), a damaged position
    embedding.
    """
    if layout == "vitc":
        return dict(tensors), tuple(n for n in tensors if not _OURS.fullmatch(n))
    foreign = foreign_part(tensors)
    if foreign is not None:
        raise CheckpointError(
            f"These weights cannot become a ViT of this package: {foreign}.",
            "Use the weights of another model, or train that model as timm:NAME.",
        )
    rules = _BODY[layout] + _PATCHIFY[layout] + _CONV.get(layout, ()) + _ALSO_READ.get(layout, ())
    out, unknown = _rename_all(tensors, tuple((theirs, ours) for ours, theirs in rules))
    pos = out.get("pos_embed")
    if pos is not None:
        if pos.ndim != 3:
            raise CheckpointError(
                f"The position embedding has shape {tuple(pos.shape)}; it must have 3 dimensions."
            )
        if layout in ("pycls", "pycls_branch") and pos.shape[1] == 1:
            out["pos_embed"] = pos.transpose(0, 1)  # (N, 1, D), batch second
    if pos is not None and layout == "timm":
        # timm's positions cover class token, registers and grid, or the grid alone
        # (no_embed_class); ours the class token and the grid.
        registers, first, n = out.get("reg_token"), int("cls_token" in out), pos.shape[1]
        prefix = first + (registers.shape[1] if registers is not None else 0)
        if prefix and _square(n) and not _square(n - prefix):
            none = pos.new_zeros(1, first, pos.shape[2])
            out["pos_embed"] = torch.cat([none, pos], dim=1)
        elif registers is not None:
            out["reg_token"] = registers + pos[:, first:prefix]
            out["pos_embed"] = torch.cat([pos[:, :first], pos[:, prefix:]], dim=1)
    return out, unknown


def _square(n: int) -> bool:
    return n > 0 and isqrt(n) ** 2 == n


# -- ours to theirs --------------------------------------------------------------------------------


def from_vitc(
    tensors: Mapping[str, Tensor], layout: Layout, stem: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Tensors in our layout as another library stores them; bit-equal when read back.

    `stem`: the saved config of their stem ({"kind": "conv", "act": "relu"}), if it is known: kinds
    can share names, and an activation leaves no trace in them. Raises CheckpointError: the
    architecture of that library has no place for a tensor, or lacks something.
    """
    if layout == "vitc":
        odd = [name for name in tensors if not _OURS.fullmatch(name)]
        if odd:
            raise CheckpointError(f"Not part of a ViT: {few(odd)}.")
        return dict(tensors)
    conv = "stem.layers.0.conv.weight" in tensors
    problem = _misfit(tensors, layout, conv, stem or {})
    if problem is not None:
        raise CheckpointError(
            f"These weights cannot be written for {layout}: {problem}.",
            "pycls and torchvision have the paper's two stems, timm the patchify one; vitc all.",
        )
    rules = _BODY[layout] + (_CONV if conv else _PATCHIFY)[layout]
    out, unknown = _rename_all(tensors, rules)
    if unknown:
        raise CheckpointError(
            f"These weights cannot be written for {layout}, which has no place for "
            f"{few(list(unknown))}."
        )
    pos = tensors["pos_embed"]
    if layout == "pycls":
        out["pos_embedding"] = pos.transpose(0, 1).contiguous()
    registers = tensors.get("reg_token")
    if registers is not None:  # only timm has a place for them
        first = int("cls_token" in tensors)
        none = torch.zeros_like(registers)
        out["pos_embed"] = torch.cat([pos[:, :first], none, pos[:, first:]], dim=1)
    return out


def _misfit(
    tensors: Mapping[str, Tensor], layout: Layout, conv: bool, stem: Mapping[str, Any]
) -> str | None:
    """Why that library cannot compute what these tensors do, other than unknown names."""
    if "pos_embed" not in tensors or "stem.proj.weight" not in tensors:
        return "they are not of a ViT with one of the paper's stems"
    if stem.get("kind", "conv") not in ("patchify", "conv"):
        return f"it has no {stem['kind']} stem"
    if stem.get("act", "relu") != "relu":
        return f"its stem has ReLUs, these {stem['act']}"
    if conv and layout == "timm":
        return "its ViT has no convolutional stem"
    if layout == "torchvision" and "cls_token" not in tensors:
        return "its ViT always has a class token"
    first = next(t for name, t in tensors.items() if name.startswith("stem.") and t.ndim == 4)
    if layout != "timm" and first.shape[1] != 3:
        return f"its ViT takes 3 channels, these take {first.shape[1]}"
    if conv and "stem.layers.0.norm.running_mean" not in tensors:
        return "its stem has BatchNorm, these have another normalisation"
    if not conv or layout == "torchvision":
        return None
    convs = [t for n, t in tensors.items() if n.startswith("stem.") and n.endswith("conv.weight")]
    kernels = {conv.shape[-1] for conv in convs}
    return None if kernels == {3} else f"its stem has 3x3 convolutions, these have {kernels}"
