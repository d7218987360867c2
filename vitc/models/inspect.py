"""What does a model look at? Attention, position embeddings, and a stem's filters and outputs.

Every function computes without gradients and leaves the model as it was: each module back in its
own mode, no hook behind. They run in eval mode, on the device and in the dtype of model and input.

Shape letters: B batch, C channels, H W pixels, h w token grid, N tokens, D embed_dim, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitc.errors import ConfigError
from vitc.models.custom import evaluating
from vitc.models.vit import Attention, VisionTransformer

# -- attention -------------------------------------------------------------------------------------


def class_attention(model: nn.Module, x: Tensor) -> Tensor:
    """What the head's token attends to: float32 (depth, B, heads, h, w), a share for every patch.

    The class token's row over the patches. Where the head reads the mean of the patches instead
    (global_pool "avg", always so without a class token), the mean of their rows. A sum below 1
    leaves the rest to the prefix tokens. x: (B, C, H, W) as the model takes it. Raises ConfigError:
    a model that is not one of our ViTs; images it does not take.
    """
    vit = _vit(model)
    rows = _each_block(vit, x, lambda weights: _head_row(vit, weights))
    maps = torch.stack(rows)  # (depth, B, heads, h w)
    return maps.reshape(*maps.shape[:-1], *_grid(vit, x))


def attention_rollout(model: nn.Module, x: Tensor) -> Tensor:
    """How much of each patch reaches the head, all blocks together: float32 (B, h, w).

    Abnar & Zuidema 2020 (arXiv 2005.00928), section 3: the heads' mean, half of it replaced by the
    identity for the residual connection, multiplied through the blocks; then the rows that the
    head reads, as in `class_attention`. A sum below 1 leaves the rest to the prefix tokens.
    Raises ConfigError as `class_attention`.
    """
    vit = _vit(model)
    flow: Tensor | None = None
    for mean in _each_block(vit, x, lambda weights: weights.mean(dim=1)):  # (B, N, N)
        mixed = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        flow = mixed if flow is None else mixed @ flow
    assert flow is not None  # a ViT has a block
    return _head_row(vit, flow).reshape(-1, *_grid(vit, x))


def attention_distance(model: nn.Module, x: Tensor) -> Tensor:
    """How far each head looks: float32 (depth, heads), pixels, the mean over images and patches.

    The distance between two patches' centres, weighted by attention among the patches alone
    (Dosovitskiy et al. 2020, arXiv 2010.11929, Fig. 7 right): what goes to prefix tokens has no
    place, and does not count. Raises ConfigError as `class_attention`.
    """
    vit = _vit(model)
    h, w = _grid(vit, x)
    rows = torch.arange(h, device=x.device) * (x.shape[-2] / h)
    columns = torch.arange(w, device=x.device) * (x.shape[-1] / w)
    centres = torch.cartesian_prod(rows, columns)  # (h w, 2)
    apart = torch.linalg.vector_norm(centres[:, None] - centres, dim=-1)  # (h w, h w)

    def mean_distance(weights: Tensor) -> Tensor:
        among = weights[:, :, -h * w :, -h * w :]
        among = among / among.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(among.dtype).tiny)
        mean: Tensor = (among * apart).sum(dim=-1).mean(dim=(0, 2))  # (heads,)
        return mean

    return torch.stack(_each_block(vit, x, mean_distance))


def _each_block(model: nn.Module, x: Tensor, keep: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`keep` of each block's weights (B, heads, N, N), so that not all need be held at once."""
    vit = _vit(model)
    kept: list[Tensor] = []

    def see(attention: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(attention, Attention)
        q, k, _ = attention.heads(args[0])
        # float32 before the softmax: a bf16 model's rows would sum to 1 only within 1 %.
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
        kept.append(keep(scores.softmax(dim=-1)))

    with evaluating(vit), contextlib.ExitStack() as hooks:
        for module in vit.blocks.modules():
            if isinstance(module, Attention):
                hooks.callback(module.register_forward_pre_hook(see).remove)
        vit.forward_features(x)
    return kept


def _head_row(vit: VisionTransformer, weights: Tensor) -> Tensor:
    """(..., N, N) -> (..., h w): the rows that the head reads, over the patches."""
    prefix = vit.num_prefix_tokens
    over_patches = weights[..., prefix:]
    if vit.config.global_pool == "token":
        return over_patches[..., 0, :]
    return over_patches[..., prefix:, :].mean(dim=-2)


# -- position embedding ----------------------------------------------------------------------------


def pos_embed_similarity(model: nn.Module) -> Tensor:
    """Cosine between the position embeddings of any two patches: float32 (h, w, h, w).

    Dosovitskiy et al. 2020 (arXiv 2010.11929), Fig. 7 centre. [i, j] is the map of the patch in
    row i and column j. Raises ConfigError: a model that is not one of our ViTs.
    """
    vit = _vit(model)
    h, w = vit.grid
    patches = F.normalize(vit.pos_embed.detach().float()[0, -h * w :], dim=-1)  # (h w, D)
    return (patches @ patches.T).clamp(-1, 1).reshape(h, w, h, w)


# -- stem ------------------------------------------------------------------------------------------


def stem_filters(model: nn.Module) -> Tensor:
    """The kernels of the first convolution: float32 (D, C, k, k).

    A patchify stem's patch filters, the first 3x3s of a convolutional one; of a model without a
    `stem`, its first convolution in the order it names its parts. C / groups where it is grouped.
    Raises ConfigError: there is no 2-D convolution.
    """
    root = _stem(model)
    for module in root.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach().float()
    raise ConfigError(
        f"{type(root).__name__} has no 2-D convolution, so no filters to show.",
        "The outputs of its layers can be: vitc show MODEL|RUN --features IMAGE",
    )


def filter_components(filters: Tensor, count: int = 28) -> tuple[Tensor, Tensor]:
    """Principal components of filters (D, C, k, k): (n, C, k, k), and their shares (n,).

    The patterns that a patchify stem's filters are mostly made of (Dosovitskiy et al. 2020, arXiv
    2010.11929, Fig. 7 left), the greatest share of the variance first; n is `count`, or fewer
    where there are no more. Each has length 1 and a sign that makes its largest weight positive.
    """
    flat = filters.flatten(1).float()
    _, size, patterns = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    largest = patterns.gather(1, patterns.abs().argmax(dim=1, keepdim=True))
    patterns = torch.where(largest < 0, -patterns, patterns)[:count]
    share = size.square() / size.square().sum().clamp_min(torch.finfo(size.dtype).tiny)
    return patterns.reshape(-1, *filters.shape[1:]), share[:count]


def stem_features(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    """(name, (B, C, h, w)) of every layer of the stem, in the order they ran.

    x: (B, C, H, W) as the model takes it. Layers are the stem's children, those of a Sequential or
    ModuleList one by one; what gives no (B, C, h, w) is passed over. A stem that makes its tokens
    outside any layer ends with ("output", ...). A model without a `stem` is taken as one itself: a
    CNN's stages. Raises ConfigError: there is no such layer; images that the stem does not take.
    """
    root = _stem(model)
    seen: list[tuple[str, Tensor]] = []

    def remember(name: str) -> Callable[[nn.Module, object, object], None]:
        def see(module: nn.Module, args: object, out: object) -> None:
            if isinstance(out, Tensor) and out.ndim == 4:
                seen.append((name, out.clone()))  # the next layer may work in place

        return see

    with evaluating(root), contextlib.ExitStack() as hooks:
        for name, layer in _layers(root):
            hooks.callback(layer.register_forward_hook(remember(name)).remove)
        out = root(x)
    if isinstance(out, Tensor) and out.ndim == 4 and not (seen and torch.equal(seen[-1][1], out)):
        seen.append(("output", out))
    if not seen:
        raise ConfigError(
            f"No layer of {type(root).__name__} outputs maps (batch, channels, height, width)."
        )
    return seen


def _layers(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in root.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from _layers(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _stem(model: nn.Module) -> nn.Module:
    """What makes the tokens; `patch_embed` is timm's word for it."""
    for name in ("stem", "patch_embed"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            return part
    return model


# -- all of them -----------------------------------------------------------------------------------


def _vit(model: nn.Module) -> VisionTransformer:
    if isinstance(model, VisionTransformer):
        return model
    raise ConfigError(
        f"{type(model).__name__} is not one of vitc's ViTs: its attention and position embedding "
        f"cannot be shown.",
        "They can for every ViT of vitc show --list. Filters and feature maps can be shown for any "
        "model with convolutions: --filters, --features IMAGE.",
    )


def _grid(vit: VisionTransformer, x: Tensor) -> tuple[int, int]:
    """(h, w) of the tokens of x, which a model of dynamic size need not share with its config."""
    reduction = vit.img_size[0] // vit.grid[0]
    return x.shape[-2] // reduction, x.shape[-1] // reduction
