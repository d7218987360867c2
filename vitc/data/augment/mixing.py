"""Mixup, CutMix, label smoothing, and the loss that takes their soft targets.

Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitc.data.augment.device import to_device
from vitc.data.sampling import Mix, SampleMix


def mix(
    images: Tensor, labels: Tensor, mix: Mix | SampleMix, num_classes: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Images float (B, C, H, W) mixed with their partners, and targets float32 (B, K).

    A target is 1 - eps + eps / K for the class of label (int64 (B,)) and eps / K for the others,
    mixed after that as the image is (as in pycls); every row sums to 1. mixup:
    arXiv 1710.09412; CutMix: arXiv 1905.04899. CutMix writes into `images`.
    """
    targets = smooth(labels, num_classes, label_smoothing)
    if isinstance(mix, SampleMix):
        return _mix_each(images, targets, mix)
    if mix.kind == "none":
        return images, targets
    partner = to_device(mix.partner, images.device)
    targets = torch.lerp(targets[partner], targets, mix.lam)
    if mix.kind == "mixup":
        return torch.lerp(images[partner], images, mix.lam), targets
    top, left, bottom, right = mix.box
    images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partner]
    return images, targets


def _mix_each(images: Tensor, targets: Tensor, mix: SampleMix) -> tuple[Tensor, Tensor]:
    """Every sample by its own lambda: all over the image (mixup) or 0 inside its box (CutMix)."""
    device, (h, w) = images.device, images.shape[2:]
    partner, boxes = to_device(mix.partner, device), to_device(mix.boxes, device)
    lam = to_device(mix.lam.astype(np.float32), device)
    cutmix = to_device(mix.cutmix, device).view(-1, 1, 1)
    top, left, bottom, right = (t.view(-1, 1, 1) for t in boxes.T)
    y = torch.arange(h, device=device).view(1, h, 1)
    x = torch.arange(w, device=device).view(1, 1, w)
    outside = (y < top) | (y >= bottom) | (x < left) | (x >= right)  # (B, H, W)
    own = torch.where(cutmix, outside.float(), lam.view(-1, 1, 1))
    targets = torch.lerp(targets[partner], targets, lam.view(-1, 1))
    return torch.lerp(images[partner], images, own[:, None]), targets


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
