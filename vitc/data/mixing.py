"""Mixup, CutMix, label smoothing, and the loss that takes their soft targets.

Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitc.data.augment import to_device
from vitc.data.sampling import Mix


def mix(
    images: Tensor, labels: Tensor, mix: Mix, num_classes: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Images float (B, C, H, W) mixed with their partners, and targets float32 (B, K).

    A target is 1 - eps + eps / K for the class of label (int64 (B,)) and eps / K for the others,
    mixed after that as the image is (as in pycls); every row sums to 1. mixup:
    arXiv 1710.09412; CutMix: arXiv 1905.04899. CutMix writes into `images`.
    """
    targets = smooth(labels, num_classes, label_smoothing)
    if mix.kind == "none":
        return images, targets
    partner = to_device(mix.partner, images.device)
    targets = torch.lerp(targets[partner], targets, mix.lam)
    if mix.kind == "mixup":
        return torch.lerp(images[partner], images, mix.lam), targets
    top, left, bottom, right = mix.box
    images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partner]
    return images, targets


def smooth(labels: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """float32 (B, K): 1 - eps + eps / K at the label (int64 (B,)), eps / K elsewhere."""
    off = label_smoothing / num_classes
    hot = labels[:, None] == torch.arange(num_classes, device=labels.device)
    return hot.float().mul_(1 - label_smoothing).add_(off)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, 0-d: logits (B, K), targets (B, K) probabilities.

    In float32 at least, whatever precision the logits came in.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return -(targets * torch.log_softmax(logits, dim=1, dtype=dtype)).sum(1).mean()
