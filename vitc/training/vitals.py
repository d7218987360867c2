"""How are activations, attention, norms and updates inside a model? Measured on the device.

A separate pass over a few images of the step that was just taken, in eval mode and without
gradients: it changes nothing and draws nothing, so a run has the same weights with and without it.
Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm

from vitc.models.custom import evaluating
from vitc.models.vit import Block, VisionTransformer

EVERY = 50  # steps between two measurements
IMAGES = 8  # of the step's first micro-batch, and at most a quarter of it

Vitals = dict[str, Tensor]  # float32 on the device, of one dimension or none


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    }


@torch.no_grad()
def measure(
    model: nn.Module, images: Tensor, answers: Callable[[Tensor], Tensor] | None = None
) -> Vitals:
    """What 8 images give, in the caller's precision. images: as the model sees them, (b, C, H, W);
    answers: from these to logits, where that is not the model itself (`StepSettings.answers`).

    `logit_spread`: how much the logits differ between images, relative to their size;
    `norm_variance`: mean running variance of each BatchNorm; of our ViTs `activation_rms`, the root
    mean square after each block, `attention_logit`, the largest of each block, and
    `attention_entropy`, 1 where attention is even and 0 where one key takes all.
    """
    norms = [norm.running_var for norm in batch_norms(model).values()]
    found: Vitals = {}
    if norms:
        found["norm_variance"] = torch.stack([v.float().mean() for v in norms if v is not None])
    with evaluating(model):
        if isinstance(model, VisionTransformer):
            tokens, each = model.embed(images), []
            sizes = []
            for block in model.blocks:
                each.append(attention(block, tokens))
                tokens = block(tokens)
                sizes.append(rms(tokens))
            logits = model.forward_head(model.norm(tokens))
            found["activation_rms"] = torch.stack(sizes)
            found["attention_logit"] = torch.stack([largest for largest, _ in each])
            found["attention_entropy"] = torch.stack([entropy for _, entropy in each])
        else:
            logits = (answers or model)(images)
    logits = logits.float()
    found["logit_spread"] = logits.std(0, correction=0).mean() / rms(logits).clamp_min(1e-12)
    return found


def attention(block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(largest attention logit by size, mean entropy in [0, 1]) of a block that reads `tokens`."""
    assert isinstance(block, Block)
    q, k, _ = block.attn.heads(block.norm1(tokens))
    logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)  # (B, heads, N, N)
    shares = logits.softmax(dim=-1)
    entropy = torch.special.entr(shares).sum(dim=-1).mean() / math.log(logits.shape[-1])
    return logits.abs().max(), entropy


def rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()


class UpdateRatio:
    """The size of one update of the weights, relative to theirs."""

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        self.weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.before = [p.clone() for p in self.weights]

    @torch.no_grad()
    def measure(self) -> Tensor:
        """After the update."""
        moved = torch._foreach_sub(self.weights, self.before)
        return get_total_norm(moved) / get_total_norm(self.before).clamp_min(1e-12)
