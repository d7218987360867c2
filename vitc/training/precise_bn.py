"""BatchNorm statistics recomputed from training images, before a model is evaluated.

Running averages lag behind the weights and weigh the last batches most. pycls recomputes both
the model's and its average's after every epoch, from 8,192 images ("Precise-BN": Wu and Johnson,
arXiv 2105.07576, section 3): the mean over micro-batches of each one's mean and variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitc.training.device import Processes


def norms_in_training(model: nn.Module) -> list[str]:
    """Names of the BatchNorms in training mode that keep running statistics: not frozen ones."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]


@torch.no_grad()
def renew(
    models: Sequence[nn.Module], names: Sequence[str], batches: Iterable[Tensor], procs: Processes
) -> None:
    """Replace the running mean and variance of the BatchNorms `names` of each model.

    batches: images as the model sees them in training, float (b, C, H, W), alike for all models.
    The new statistics are the means over all batches of all processes. Nothing but these norms
    runs in training mode, so that nothing is dropped; the models are left in eval mode.
    """
    if not names:
        return
    for model in models:
        model.eval()
    norms = [[cast(_BatchNorm, model.get_submodule(n)) for n in names] for model in models]
    sums = [torch.zeros_like(_flat(own)) for own in norms]
    count = 0
    with _one_batch_statistics([norm for own in norms for norm in own]):
        for images in batches:
            count += 1
            for model, own, total in zip(models, norms, sums, strict=True):
                model(images)
                total += _flat(own)
    for own, total in zip(norms, sums, strict=True):
        procs.sum_(total)
        buffers = _statistics(own)
        means = torch.split(total / (count * procs.world), [b.numel() for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))


@contextmanager
def _one_batch_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Training mode with momentum 1: running statistics are those of the batch just seen."""
    momenta = [n.momentum for n in norms]
    counters = [n.num_batches_tracked for n in norms]
    counts = [c if c is None else c.clone() for c in counters]
    for norm in norms:
        norm.momentum = 1.0
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False
        for counter, count in zip(counters, counts, strict=True):
            if counter is not None and count is not None:
                counter.copy_(count)


def _statistics(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    return [t for n in norms for t in (n.running_mean, n.running_var) if t is not None]


def _flat(norms: Sequence[_BatchNorm]) -> Tensor:
    return torch.cat([t.flatten() for t in _statistics(norms)])
