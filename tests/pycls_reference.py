"""The forward pass of the paper's ViTs, written out from its description on a pycls state dict.

Plain torch functions and no module of this package, so that agreement means something. Reads the
names of pycls's `main` (nn.MultiheadAttention, positions (N, 1, D)) and of the authors' branches
(attn_proj, positions (1, N, D)). LayerNorm eps 1e-6, BatchNorm eps 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LN_EPS, BN_EPS = 1e-6, 1e-5


def forward(
    sd: Mapping[str, Tensor],
    images: Tensor,
    heads: int,
    strides: Sequence[int] = (),
    batch_statistics: bool = False,
) -> Tensor:
    """(B, C, H, W) -> (B, K). `strides` of the 3x3 convolutions; none: the patchify stem.

    `batch_statistics`: BatchNorm as in training, with the batch's own mean and variance.
    """
    tokens = _stem(sd, images, strides, batch_statistics)
    tokens = tokens.flatten(2).permute(0, 2, 1)  # row by row
    if "class_token" in sd:
        first = sd["class_token"].reshape(1, 1, -1).repeat(len(images), 1, 1)
        tokens = torch.cat([first, tokens], dim=1)
    positions = sd["pos_embedding"]
    tokens = tokens + positions.reshape(1, *tokens.shape[1:])  # either order is one row a token
    depth = len({name.split(".")[1] for name in sd if name.startswith("encoder.block_")})
    for i in range(depth):
        tokens = _block(sd, f"encoder.block_{i}", tokens, heads)
    tokens = _layer_norm(sd, "encoder.ln", tokens)
    pooled = tokens[:, 0] if "class_token" in sd else tokens.mean(dim=1)
    return _linear(sd, "head.head_fc", pooled)


def _stem(sd: Mapping[str, Tensor], x: Tensor, strides: Sequence[int], batch: bool) -> Tensor:
    if not strides:
        weight = sd["stem.patchify.weight"]
        return F.conv2d(x, weight, sd["stem.patchify.bias"], stride=weight.shape[-1])
    for i, stride in enumerate(strides):
        x = F.conv2d(x, sd[f"stem.cstem{i}_conv.weight"], stride=stride, padding=1)
        mean, var = sd[f"stem.cstem{i}_bn.running_mean"], sd[f"stem.cstem{i}_bn.running_var"]
        if batch:
            mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        gain, bias = sd[f"stem.cstem{i}_bn.weight"], sd[f"stem.cstem{i}_bn.bias"]
        scale = gain / torch.sqrt(var + BN_EPS)
        x = x * scale[:, None, None] + (bias - mean * scale)[:, None, None]
        x = x.clamp(min=0)
    return F.conv2d(x, sd["stem.cstem_last_conv.weight"], sd["stem.cstem_last_conv.bias"])


def _block(sd: Mapping[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    x = x + _attention(sd, f"{name}.self_attention", _layer_norm(sd, f"{name}.ln_1", x), heads)
    hidden = _linear(sd, f"{name}.mlp_block.linear_1", _layer_norm(sd, f"{name}.ln_2", x))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))  # the exact GELU
    return x + _linear(sd, f"{name}.mlp_block.linear_2", hidden)


def _attention(sd: Mapping[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    if f"{name}.block.in_proj_weight" in sd:
        joint = F.linear(x, sd[f"{name}.block.in_proj_weight"], sd[f"{name}.block.in_proj_bias"])
        out = f"{name}.block.out_proj"
    else:
        joint = _linear(sd, f"{name}.attn_proj", x)
        out = f"{name}.out_proj"
    d = x.shape[-1]
    results = []
    for h in range(heads):  # one head after the other: no reshaping that could share a mistake
        width = d // heads
        q, k, v = (joint[..., p * d + h * width : p * d + (h + 1) * width] for p in range(3))
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(width), dim=-1)
        results.append(weights @ v)
    return _linear(sd, out, torch.cat(results, dim=-1))


def _layer_norm(sd: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    var = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(var + LN_EPS) * sd[f"{name}.weight"] + sd[f"{name}.bias"]


def _linear(sd: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, sd[f"{name}.weight"], sd[f"{name}.bias"])
