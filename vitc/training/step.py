"""One optimizer step, readable on one screen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vitc.config import RunConfig
from vitc.data.augment.device import erase, finish
from vitc.data.augment.mixing import mix, soft_cross_entropy
from vitc.data.loader import MicroBatch
from vitc.models.cnn import CNN
from vitc.optim.groups import set_lr
from vitc.runs.checkpoint import TrainState
from vitc.training.device import autocast
from vitc.training.parallel import Processes


@dataclass(frozen=True)
class StepSettings:
    """The settings of a run's steps; mean, std and num_classes are those of its images."""

    config: RunConfig
    device: torch.device
    procs: Processes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int

    def answers(self, model: nn.Module) -> Callable[..., Tensor]:
        """From `ready_images` to logits: the model, or what of it follows the features that are
        kept (`train.cache_features`)."""
        parts = self.config.cached_parts
        return functools.partial(cast(CNN, model).forward_from, parts=parts) if parts else model


def train_step(
    state: TrainState,
    forward: nn.Module,
    micros: Sequence[MicroBatch],
    lr: float,
    norms: NormStatistics,
    s: StepSettings,
) -> dict[str, Tensor]:
    """Advance `state` by one step over this process's micro-batches.

    `forward` is the model, or the model compiled or wrapped for several processes. Returns
    `loss`, averaged over the micro-batches of all processes, and `grad_norm`, before clipping:
    0-d float32 on the device, for the caller to read when it waits for the device anyway. A step
    with a non-finite loss or gradient changes no weight.
    """
    set_lr(state.optimizer, lr)
    total = torch.zeros((), device=s.device)
    distributed = forward if isinstance(forward, DistributedDataParallel) else None
    for i, micro in enumerate(micros):
        norms.before_micro(i)
        # Gradients travel between processes once a step, with the last micro-batch.
        last = i == len(micros) - 1
        with nullcontext() if last or distributed is None else distributed.no_sync():
            loss = micro_loss(forward, micro, s)
            (loss / len(micros)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / len(micros)
    norms.after_step()

    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    clip_norm = s.config.optim.clip_norm
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), clip_norm, grad_norm)
    s.procs.sum_(total)
    total /= s.procs.world
    finite = torch.isfinite(total) & torch.isfinite(grad_norm)
    skips = s.config.train.on_divergence == "continue"
    if skips:
        norms.keep_if(finite)
    _guarded_update(state.optimizer, finite, sticky=not skips)
    state.optimizer.zero_grad(set_to_none=True)
    return {"loss": total, "grad_norm": grad_norm}


def micro_loss(forward: nn.Module, micro: MicroBatch, s: StepSettings) -> Tensor:
    """The mean loss of a micro-batch: 0-d float32, with its graph."""
    smoothing = s.config.data.augment.label_smoothing
    images, targets = mix(ready_images(micro, s), micro.labels, micro.mix, s.num_classes, smoothing)
    with autocast(s.config.train.precision, s.device):
        # Only a ViT takes what residual branches are multiplied by.
        extra = () if micro.drop_path is None else (micro.drop_path,)
        logits = s.answers(forward)(images, *extra)
    return soft_cross_entropy(logits, targets)


def ready_images(micro: MicroBatch, s: StepSettings) -> Tensor:
    """float32 (b, C, H, W): a micro-batch as the model trains on it, but for mixing.

    With `train.cache_features` they are features, of which nothing is left to do.
    """
    last = s.config.train.channels_last
    if s.config.cached_parts:
        form = torch.channels_last if last else torch.contiguous_format
        return micro.images.float().contiguous(memory_format=form)
    images = finish(micro.images, micro.flip, s.mean, s.std, last, micro.lighting)
    return erase(images, micro.erased)


def _guarded_update(optimizer: torch.optim.Optimizer, finite: Tensor, sticky: bool = True) -> None:
    """Step the optimizer only where `finite`.

    Fused optimizers skip the update of every tensor when their `found_inf` is 1; that keeps a
    GPU's step free of a host sync. The flag sticks if `sticky`: after one bad step no later one
    counts, so the weights at the time of the report are those before the bad step. With any other
    optimizer, and on the CPU, the host checks before the step.
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if finite.device.type != "cuda" or not fused:
        if bool(finite):
            optimizer.step()
        return
    bad = (~finite).float()
    before = getattr(optimizer, "found_inf", None) if sticky else None
    optimizer.found_inf = bad if before is None else torch.maximum(bad, before)  # type: ignore[attr-defined]
    optimizer.step()


def running_statistics(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    return [t for n in norms for t in (n.running_mean, n.running_var) if t is not None]


class NormStatistics:
    """BatchNorm's running statistics over a step of G micro-batches, on all processes.

    Each micro-batch starts from the statistics before the step, and the step's result is the mean
    of the G single updates: the order of micro-batches, and which process has which, then does
    not matter. (Updating one after the other would weigh the last one most.) Norms that are in
    eval mode when this is made, being frozen, have no part in it. `guarded`: the statistics before
    the step are kept, for `keep_if`.
    """

    def __init__(
        self, model: nn.Module, micros: int, procs: Processes, guarded: bool = False
    ) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        self.floats = running_statistics(norms)
        self.counts = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.alone = micros * procs.world == 1 or not self.floats
        self.micros, self.procs = micros, procs
        self.guarded = guarded
        self.start: list[Tensor] = []
        self.sums: list[Tensor] = []

    @torch.no_grad()
    def before_micro(self, index: int) -> None:
        if index == 0 and (self.guarded or not self.alone):
            self.start = [b.clone() for b in self.floats]
        if self.alone:
            return
        if index == 0:
            self.sums = [torch.zeros_like(b) for b in self.floats]
            return
        torch._foreach_add_(self.sums, self.floats)
        torch._foreach_copy_(self.floats, self.start)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.alone:
            return
        torch._foreach_add_(self.sums, self.floats)
        flat = torch.cat([s.flatten() for s in self.sums])
        self.procs.sum_(flat)
        flat /= self.micros * self.procs.world
        parts = torch.split(flat, [b.numel() for b in self.floats])
        for b, part in zip(self.floats, parts, strict=True):
            b.copy_(part.view_as(b))
        for count in self.counts:  # one step, however many micro-batches it had
            count -= self.micros - 1

    @torch.no_grad()
    def keep_if(self, finite: Tensor) -> None:
        """After the step: take the statistics back to those before it unless `finite`."""
        for now, before in zip(self.floats, self.start, strict=True):
            now.copy_(torch.where(finite, now, before))
