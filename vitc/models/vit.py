"""How do tokens become logits? The transformer behind the stem, of the paper's models.

Shape letters: B batch, C channels, H W pixels, h w token grid, N tokens (class token included),
D embed_dim, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vitc.errors import ConfigError, refuse
from vitc.models.backbone import NORM_GROUP, Backbone, chosen_layers, traced
from vitc.models.config import AttentionKind, ViTConfig
from vitc.models.custom import make_stem, try_stem
from vitc.models.stem_config import CustomStemConfig
from vitc.models.stems import build_stem, check_images, normal_

NORM_EPS = 1e-6  # all configs of the authors' branch; pycls's default is 1e-5
Intermediates = list[Tensor] | list[tuple[Tensor, Tensor]]
NORM_TYPES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


class Attention(nn.Module):
    """Multi-head self-attention with biases everywhere, (B, N, D) -> (B, N, D).

    Computes what nn.MultiheadAttention computes, and starts with its initialisation, which both
    generations of the authors' code use: qkv Xavier-uniform over the joint (3 D, D) matrix, the
    output weight as PyTorch makes a Linear, biases 0. `qk_norm`: LayerNorm of each head's queries
    and keys, gain and bias shared by the heads (arXiv 2302.05442, in timm's form).
    """

    def __init__(
        self, dim: int, num_heads: int, kind: AttentionKind, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.kind = num_heads, kind
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(dim // num_heads, eps=NORM_EPS) if qk_norm else nn.Identity()
            for _ in range(2)
        )
        self.proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, N, D / heads), normalised where asked for."""
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Autocast normalises in float32; the products stay in the dtype of the values.
        return self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.heads(x)
        # On CPU torch's fused kernel slows a bf16 step of a tiny model to half the speed, and
        # makes a float32 one 3-8 % faster (measured: one core, D 64 and 192, N 17 to 197).
        explicit = self.kind == "explicit" or (
            self.kind == "auto"
            and not traced(q)
            and q.device.type == "cpu"
            and q.dtype in (torch.bfloat16, torch.float16)
        )
        attend = explicit_attention if explicit else F.scaled_dot_product_attention
        out: Tensor = self.proj(attend(q, k, v).transpose(1, 2).reshape(b, n, d))
        return out


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (B, heads, N, d), as two batched matmuls and a softmax.

    The softmax stays in the dtype of its input: torch sums it in float32 either way, and a float32
    result, rounded again for the second matmul, measures as no more accurate and slower.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, N, N)
    out: Tensor = scores.softmax(dim=-1) @ v
    return out


class Mlp(nn.Module):
    """Linear, exact GELU, Linear on the last dimension: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """x + Attention(norm(x)), then x + Mlp(norm(x)); drop_path (2, B) multiplies the branches."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        attention: AttentionKind,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, attention, qk_norm)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, mlp_dim)

    def forward(self, x: Tensor, drop_path: Tensor | None = None) -> Tensor:
        x = _add(x, self.attn(self.norm1(x)), None if drop_path is None else drop_path[0])
        return _add(x, self.mlp(self.norm2(x)), None if drop_path is None else drop_path[1])


def _add(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return x + branch
    # In float32: 1 / keep rounded to bf16 would bias every branch by up to 0.4 %.
    return (x + branch * scale[:, None, None]).to(x.dtype)


class VisionTransformer(Backbone):
    """A pre-norm ViT behind a built stem (paper sections 3 and 4): (B, C, H, W) -> (B, K).

    `stem` is any module with an integer `reduction` that maps (B, C, H, W) to
    (B, D, H / reduction, W / reduction). `config.stem` is not read. `config.num_classes` None
    means 1000, 0 means no head: `forward` then gives the (B, D) features.
    Tokens: the class token, the registers, the grid row by row. `pos_embed` (1, 1 + h w, D) covers
    the class token and the grid; registers have no place in the image and start from N(0, 0.02)
    themselves, or nothing would distinguish them. (timm's pos_embed covers registers too unless
    no_embed_class, and then not the class token either; DINOv2 does as here.)
    The head starts at zero, as in the authors' code, so that a fresh model's logits are all 0.
    Raises ConfigError, all problems at once.
    """

    def __init__(self, config: ViTConfig, stem: nn.Module) -> None:
        reduction = _reduction(stem)
        _check(config, reduction)
        super().__init__()
        self.config, self.in_chans = config, config.in_chans
        self.img_size = config.size
        self.grid = config.size[0] // reduction, config.size[1] // reduction
        self.num_features = self.embed_dim = dim = config.embed_dim
        self.num_prefix_tokens = int(config.class_token) + config.registers
        self.grad_checkpointing, self.global_pool = False, config.global_pool
        rates = [config.drop_path_rate * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self._keep = [1 - rate for rate in rates for _ in range(2)]  # two branches a block

        self.stem = stem
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        registers = torch.empty(1, config.registers, dim).normal_(std=0.02)
        self.reg_token = nn.Parameter(registers) if config.registers else None
        tokens = int(config.class_token) + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim))
        normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_dim, config.attention, config.qk_norm)
            for _ in range(config.depth)
        )
        self.norm: nn.Module = nn.LayerNorm(dim, eps=NORM_EPS)
        self.reset_classifier(config.head_classes)

    def forward(self, x: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, K). `drop_path`: see `forward_features`."""
        return self.forward_head(self.forward_features(x, drop_path))

    def forward_features(self, x: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, N, D) after the final norm, class token first.

        `drop_path`: float (2 depth, B), what each sample's residual branch is multiplied by: 0, or
        1 / (1 - its rate); rows in the order attention, MLP of block 0, of block 1, ... Without
        it, a model in training mode draws one from torch's generator if drop_path_rate > 0.
        Raises ConfigError: images of another size or number of channels than it was built for (with
        dynamic_img_size: of a size the stem cannot divide); a stem whose output has another shape.
        """
        if traced(drop_path):
            drop_path = None  # torch.fx makes an unknown of it, though nothing was given
        self._check_input(x, drop_path)
        if drop_path is None and self.training and min(self._keep) < 1:
            drop_path = self._draw_drop_path(x)
        tokens = self.embed(x)
        for i in range(len(self.blocks)):
            tokens = self._run_block(i, tokens, drop_path)
        out: Tensor = self.norm(tokens)
        return out

    def _run_block(self, i: int, tokens: Tensor, drop_path: Tensor | None) -> Tensor:
        scale = None if drop_path is None else drop_path[2 * i : 2 * i + 2]
        if self.grad_checkpointing and torch.is_grad_enabled():
            # A block draws nothing, so that no generator's state need be kept.
            tokens = checkpoint(
                self.blocks[i], tokens, scale, use_reentrant=False, preserve_rng_state=False
            )
        else:
            tokens = self.blocks[i](tokens, scale)
        return tokens

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): what the first block reads."""
        grid = self.grid
        pos_embed: Tensor = self.pos_embed
        if self.config.dynamic_img_size:
            reduction = _reduction(self.stem)
            grid = x.shape[2] // reduction, x.shape[3] // reduction
            pos_embed = resample_pos_embed(pos_embed, self.grid, grid)
        tokens: Tensor = self.stem(x)
        self._check_stem_output(tokens, (x.shape[0], self.embed_dim, *grid))
        tokens = tokens.flatten(2).transpose(1, 2)  # (B, h w, D)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + pos_embed
        if self.reg_token is not None:
            first = int(self.cls_token is not None)
            registers = self.reg_token.expand(x.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :first], registers, tokens[:, first:]], dim=1)
        return tokens

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        return_prefix_tokens: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates]:
        """What blocks give out, for detection, segmentation or probing; timm's names and order.

        `indices`: None all blocks, n the last n, or a list of blocks, negative ones from the end.
        The outputs stand in the order of the blocks, (B, D, h, w) or with output_fmt "NLC"
        (B, h w, D); `norm` puts them through the final norm, `return_prefix_tokens` makes each a
        pair with its class token and registers (B, prefix, D). Returns (features as of
        `forward_features`, outputs), or with `intermediates_only` the outputs alone: then, and with
        `stop_early`, no block is run after the last of them.
        Raises ConfigError: no such block, no such format; images as in `forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(f"output_fmt {output_fmt!r} must be NCHW or NLC.")
        chosen = chosen_layers(indices, len(self.blocks))
        self._check_input(x, None)
        drop_path = self._draw_drop_path(x) if self.training and min(self._keep) < 1 else None
        reduction = _reduction(self.stem)
        grid = x.shape[2] // reduction, x.shape[3] // reduction
        tokens = self.embed(x)
        outputs: list[Tensor] = []
        prefixes: list[Tensor] = []
        short = intermediates_only or stop_early
        for i in range(chosen[-1] + 1 if short else len(self.blocks)):
            tokens = self._run_block(i, tokens, drop_path)
            if i in chosen:
                out = self.norm(tokens) if norm else tokens
                prefixes.append(out[:, : self.num_prefix_tokens])
                patches = out[:, self.num_prefix_tokens :]  # (B, h w, D)
                nchw = output_fmt == "NCHW"
                outputs.append(patches.transpose(1, 2).unflatten(2, grid) if nchw else patches)
        pairs = list(zip(outputs, prefixes, strict=True))
        intermediates: Intermediates = pairs if return_prefix_tokens else outputs
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of each block's output, for timm: `num_chs`, `reduction`, `module`."""
        reduction = _reduction(self.stem)
        return [
            {"num_chs": self.embed_dim, "reduction": reduction, "module": f"blocks.{i}"}
            for i in range(len(self.blocks))
        ]

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = None,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the blocks after the last of `indices`, and norm and head; returns the places."""
        chosen = chosen_layers(indices, len(self.blocks))
        self.blocks = self.blocks[: chosen[-1] + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> Intermediates:
        """As of every backbone, with `return_prefix_tokens` in pairs with the class token and
        registers (B, prefix, D)."""
        outputs = self.forward_intermediates(
            x,
            n,
            norm=norm,
            return_prefix_tokens=return_prefix_tokens,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )
        assert isinstance(outputs, list)
        return outputs

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, D) -> (B, K): pool and classify; with `pre_logits`, only pool: (B, D).

        Without pooling (`reset_classifier(0, "")`) the tokens themselves."""
        if not self.global_pool:
            return x
        if self.global_pool == "token":
            pooled = x[:, 0]
        else:
            pooled = x[:, self.num_prefix_tokens :].mean(dim=1)
        return pooled if pre_logits else self.head(pooled)

    def _check_input(self, x: Tensor, drop_path: Tensor | None) -> None:
        if traced(x):
            return
        expected = (self.in_chans, *self.img_size)
        if not x.is_floating_point():
            raise ConfigError(
                f"The model got {str(x.dtype).removeprefix('torch.')} images; it takes floats.",
                "Normalise them by the mean and std of its data; Predictor does all that.",
            )
        if self.config.dynamic_img_size:
            check_images(x, self.in_chans, _reduction(self.stem))
        elif tuple(x.shape[1:]) != expected:
            c, h, w = expected
            raise ConfigError(
                f"The model got a tensor of shape {tuple(x.shape)}; it was built for "
                f"(batch, {c}, {h}, {w}).",
                "Resize the images, or build it with another img_size and in_chans; "
                "set_input_size changes the size of a trained one; with dynamic_img_size it takes "
                "any that its stem divides.",
            )
        if drop_path is not None and tuple(drop_path.shape) != (len(self._keep), x.shape[0]):
            raise ConfigError(
                f"drop_path has shape {tuple(drop_path.shape)}; it must be (2 * depth, batch) = "
                f"{(len(self._keep), x.shape[0])}."
            )

    def _check_stem_output(self, tokens: Tensor, expected: tuple[int, ...]) -> None:
        if traced(tokens):
            return
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        if shape != expected:
            raise ConfigError(
                f"{type(self.stem).__name__} returned {shape}; a stem of reduction "
                f"{_reduction(self.stem)} must return (batch, embed_dim, h, w) = {expected} here.",
                "Build the stem with the model's embed_dim, and set its true reduction.",
            )

    def _draw_drop_path(self, x: Tensor) -> Tensor:
        keep = torch.tensor(self._keep, device=x.device)[:, None]
        return (torch.rand(len(self._keep), x.shape[0], device=x.device) < keep) / keep

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of zeros for `num_classes`, or none for 0: `forward` then gives features.

        `global_pool`: token, avg, or without a head "" (tokens); None: as it is.
        """
        pools = ("token", "avg", "") if self.cls_token is not None else ("avg", "")
        if not self._reset(num_classes, global_pool, pools):
            self.head = nn.Identity()
            return
        like = self.pos_embed
        head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.head = head

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size: the position embedding is resampled (bicubic) in place.

        Raises ConfigError: a size that the stem cannot divide.
        """
        reduction = _reduction(self.stem)
        config = dataclasses.replace(self.config, img_size=img_size)
        _check(config, reduction)
        grid = config.size[0] // reduction, config.size[1] // reduction
        if grid != self.grid:
            self.pos_embed = nn.Parameter(
                resample_pos_embed(self.pos_embed.detach(), self.grid, grid),
                requires_grad=self.pos_embed.requires_grad,
            )
        self.config, self.img_size, self.grid = config, config.size, grid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, about a third more time.

        The stem is left out: its BatchNorm would update its running statistics twice.
        """
        self.grad_checkpointing = enable

    def layers(self) -> list[list[str]]:
        """Every parameter's name once, from input to output, for lr decay by layer: what makes the
        tokens (stem, cls_token, reg_token, pos_embed); each block; the final norm and the head."""
        groups: list[list[str]] = [[] for _ in range(len(self.blocks) + 2)]
        for name, _ in self.named_parameters():
            part, _, rest = name.partition(".")
            if part == "blocks":
                groups[1 + int(rest.partition(".")[0])].append(name)
            else:
                groups[-1 if part in ("norm", "head") else 0].append(name)
        return groups

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions of `layers`, in timm's form; `coarse` makes no difference here."""
        return {
            "stem": r"^stem|^cls_token|^reg_token|^pos_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (NORM_GROUP,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters the default recipe does not decay: norm gains, every bias.

        By ownership: what a normalisation layer owns, any module's `bias`, any other vector.
        pos_embed and cls_token are decayed: the paper (section 5.4) exempts norms and biases only.
        """
        exempt = {
            id(p)
            for module in self.modules()
            for name, p in module.named_parameters(recurse=False)
            if isinstance(module, NORM_TYPES) or name == "bias" or p.ndim <= 1
        }
        return {name for name, p in self.named_parameters() if id(p) in exempt}


def build_vit(
    config: ViTConfig, stem: type[nn.Module] | nn.Module | None = None
) -> VisionTransformer:
    """The ViT of a config; `stem` replaces its own. A custom stem is checked, and run once."""
    custom = stem is not None or isinstance(config.stem, CustomStemConfig)
    if stem is None:
        stem = build_stem(config.stem, config.in_chans, config.embed_dim, config.init)
    elif isinstance(stem, type):
        stem = make_stem(stem, config.in_chans, config.embed_dim, {})
    model = VisionTransformer(config, stem)
    if custom:
        try_stem(stem, config.in_chans, config.embed_dim, config.size)
    return model


def resample_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(1, N, D) for a grid (h, w) to another grid, bicubic; tokens before the grid's are kept.

    The same grid gives the same tensor. Without antialiasing: a smooth embedding (correlated over
    2 to 3 tokens) comes back from 14x14 over 24x24 with an error of 0.4 to 0.8 % of its norm, with
    antialiasing 0.9 to 1.5 %, white noise 6 and 38 %; and its scale is kept. The price: shrinking a
    noisy one to half keeps the noise. (torchvision resamples as here, timm with antialiasing.)
    """
    if old == new:
        return pos_embed
    prefix = pos_embed.shape[1] - old[0] * old[1]
    image = pos_embed[:, prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    image = F.interpolate(image, new, mode="bicubic", align_corners=False)
    grid = image.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :prefix], grid], dim=1)


def _reduction(stem: nn.Module) -> int:
    reduction = getattr(stem, "reduction", None)
    if not isinstance(reduction, int) or reduction < 1:
        raise ConfigError(
            f"{type(stem).__name__}.reduction is {reduction!r}; it must be an integer of at least "
            f"1, the factor by which the stem reduces height and width."
        )
    return reduction


def _check(config: ViTConfig, reduction: int) -> None:
    problems = dataclasses.replace(config, num_classes=None).problems(reduction)  # 0: no head
    refuse(problems, "The paper's sizes: paper Table 1; vitc show MODEL")
