"""How are the images and labels of a micro-batch mixed? Mixup, CutMix, label smoothing, the loss.

Drawn on the host (`draw_mix`), applied on the device (`mix`).
Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.augment.device import to_device
from vitc.data.config import AugmentConfig
from vitc.data.sampling import BatchPlan, Place, betas, hashes, uniform

# -- drawing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mix:
    """How a micro-batch is mixed with itself: sample i with sample partner[i].

    `lam` is the share of sample i in the result; `box` (top, left, bottom, right) in pixels is the
    area that CutMix takes from the partner.
    """

    kind: Literal["none", "mixup", "cutmix"]
    lam: float
    box: tuple[int, int, int, int]
    partner: NDArray[np.int64]


@dataclass(frozen=True)
class SampleMix:
    """As `Mix`, but for each of the n samples: bool (n,) CutMix or mixup, float64 (n,) lambdas,
    int64 (n, 4) boxes and int64 (n,) partners."""

    cutmix: NDArray[np.bool_]
    lam: NDArray[np.float64]
    boxes: NDArray[np.int64]
    partner: NDArray[np.int64]


def draw_mix(plan: BatchPlan, augment: AugmentConfig, place: Place) -> Mix | SampleMix:
    """How the micro-batch is mixed: as a whole, as the authors' code (pycls) does in each process,
    or per sample. With both alphas above 0, mixup or CutMix with even odds."""
    if augment.mix_per == "sample" and augment.mixes:
        return _draw_sample_mix(plan, augment, place)
    alphas = {"mixup": augment.mixup_alpha, "cutmix": augment.cutmix_alpha}
    kinds: list[Literal["mixup", "cutmix"]] = [k for k in ("mixup", "cutmix") if alphas[k] > 0]
    drawn = uniform(plan.seed_augment, "mix", place.epoch, [place.index], 5)[0].tolist()
    coin, u, *centre, whether = drawn
    if not kinds or whether >= augment.mix_prob:
        return Mix("none", 1.0, (0, 0, 0, 0), np.arange(plan.micro))
    kind = kinds[int(coin * len(kinds))]
    lam = float(betas(alphas[kind], np.array([u]))[0])
    partner = _draw_partner(plan, place)
    if kind == "mixup":
        return Mix(kind, lam, (0, 0, 0, 0), partner)
    box, lam = cutmix_box(lam, (centre[0], centre[1]), plan.size)
    return Mix(kind, lam, box, partner)


def _draw_partner(plan: BatchPlan, place: Place) -> NDArray[np.int64]:
    """int64 (micro,): a permutation of the micro-batch."""
    keys = hashes(plan.seed_augment, "partner", place.epoch, place.positions(plan.micro), 1)
    partner: NDArray[np.int64] = np.argsort(keys[:, 0], kind="stable")
    return partner


def _draw_sample_mix(plan: BatchPlan, augment: AugmentConfig, place: Place) -> SampleMix:
    u = plan.uniforms("mix_sample", place, 5)
    alphas = np.array([augment.mixup_alpha, augment.cutmix_alpha])
    # If only one alpha is above 0, it is used for both.
    cutmix = u[:, 0] < 0.5 if alphas.all() else np.full(plan.micro, augment.cutmix_alpha > 0)
    mixup_lam, cutmix_lam = (betas(a, u[:, 1]) for a in np.where(alphas > 0, alphas, alphas.max()))
    lam = np.where(cutmix, cutmix_lam, mixup_lam)
    boxes = np.zeros((plan.micro, 4), np.int64)
    for i in np.flatnonzero(cutmix).tolist():
        boxes[i], lam[i] = cutmix_box(float(lam[i]), (float(u[i, 2]), float(u[i, 3])), plan.size)
    as_it_is = u[:, 4] >= augment.mix_prob
    cutmix[as_it_is], lam[as_it_is] = False, 1.0
    return SampleMix(cutmix, lam, boxes, _draw_partner(plan, place))


def cutmix_box(
    lam: float, centre: tuple[float, float], size: tuple[int, int]
) -> tuple[tuple[int, int, int, int], float]:
    """The box of CutMix (arXiv 1905.04899) and the share of pixels outside it.

    The box has sides sqrt(1 - lam) of the image's around a uniform pixel and is clipped to the
    image, so the returned share may be above `lam`. `centre` two uniforms, `size` (H, W).
    """
    edges = []
    for u, length in zip(centre, size, strict=True):
        half = int(length * math.sqrt(1 - lam)) // 2
        middle = int(u * length)
        edges.append((max(middle - half, 0), min(middle + half, length)))
    (top, bottom), (left, right) = edges
    return (top, left, bottom, right), 1 - (bottom - top) * (right - left) / (size[0] * size[1])


# -- applying -------------------------------------------------------------------------------------


def mix(
    images: Tensor, labels: Tensor, mix: Mix | SampleMix, num_classes: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Images float (B, C, H, W) mixed with their partners, and targets float32 (B, K).

    Targets are smoothed, then mixed like the images (as in pycls); every row sums to 1. Mixup:
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
    """Each sample by its own lambda: in the whole image (mixup), or 0 inside its box (CutMix)."""
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

    In float32 at least, whatever the precision of the logits.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return -(targets * torch.log_softmax(logits, dim=1, dtype=dtype)).sum(1).mean()
