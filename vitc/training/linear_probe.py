"""Which classifier suits the features of the weights that a run starts from? (`init.probe_images`)

A linear probe: the features of each image once, prepared as in evaluation, then a multinomial
logistic regression on them, its L2 penalty chosen on validation. Deterministic. Fine-tuning starts
there; the run keeps the better of the two by validation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitc import files
from vitc.data.augment.device import finish
from vitc.data.cache import training_split
from vitc.data.loader import open_eval
from vitc.data.sources.base import Split
from vitc.data.split import balanced_subset
from vitc.data.store import Ints, name_key
from vitc.errors import ConfigError
from vitc.machine import computes_bf16
from vitc.models.folding import folded
from vitc.models.zoo import classifier_name
from vitc.runs.folder import START
from vitc.runs.tensors import opened, read_tensors, write_tensors
from vitc.training.build import Setup
from vitc.training.cached_features import CachedFeatures
from vitc.training.device import autocast
from vitc.training.evaluate import Counts, eval_batch
from vitc.training.stop import StopSignal
from vitc.wording import counted

# On standardised features, of the mean cross-entropy; the strongest first, each fit starting from
# the last.
PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
ITERATIONS = 60  # of L-BFGS for each
HOLD_OUT = 5  # without validation images every fifth training image chooses the penalty


@dataclass(frozen=True, eq=False)
class Probed:
    """A linear classifier of a model's features: weight float32 (K, D), bias (K,).

    `chosen_on`: "val" or "train" (held-out images of it); `top1` (percent), `top5` and `loss` are
    measured there, with `n` images, before the fit on all `images` training images.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    images: int
    chosen_on: str
    n: int
    top1: float
    top5: float
    loss: float
    evaluation_seconds: float
    """For the features of the validation images: as long as an evaluation takes."""

    @property
    def line(self) -> str:
        where = "validation" if self.chosen_on == "val" else "held-out training images"
        return (
            f"linear probe on {counted(self.images, 'training image')}: top1 {self.top1:.2f} % on "
            f"{where} ({self.n:,}), L2 penalty {self.penalty:g} chosen there"
        )


def put_in_place(model: nn.Module, probed: Probed) -> None:
    """Make it the model's classifier."""
    head = classifier(model)
    with torch.no_grad():
        head.weight.copy_(probed.weight)
        assert head.bias is not None
        head.bias.copy_(probed.bias)


def classifier(model: nn.Module) -> nn.Linear:
    """Raises ConfigError: the model's last layer is none that can be fitted."""
    name = classifier_name(model)
    head = model.get_submodule(name)
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ConfigError(
            f"init.probe_images needs a model that ends in a linear layer with a bias; {name} is "
            f"a {type(head).__name__}.",
            "Leave init.probe_images out.",
        )
    return head


def probe_head(
    setup: Setup,
    model: nn.Module,
    cached: CachedFeatures | None = None,
    stop: StopSignal | None = None,
) -> Probed:
    """The linear probe of `model`, which holds trained weights, on the images of `setup`, or the
    features of its first layers that are kept.

    The model is left in eval mode. Raises ConfigError as `classifier`, and what reading images
    raises.
    """
    classifier(model)
    device, precision = setup.device, setup.config.train.precision
    split, _ = training_split(setup.data, setup.config.data, setup.config.model.in_chans)
    count = max(setup.config.init.probe_images, len(setup.data.classes))
    places = _places(split, count, setup.config.data.split_seed)
    # A forward pass alone is twice as fast in bf16, whatever the run trains in.
    faster = "bf16" if computes_bf16(device) else precision
    fast = folded(model)
    if cached is None:
        x, y = features_of(setup, fast, split.take(places), faster, stop)
    else:
        batches = cached.batches(places, eval_batch(setup.config, device))
        x, y = _pooled(fast, setup.settings.answers(fast), batches, faster, device)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / std
    classes, whole, chosen_on = len(setup.data.classes), (x, y), "val"
    before = time.monotonic()
    if "val" in setup.data.splits:
        held_x, held_y = features_of(setup, model, setup.data.splits["val"], precision, stop)
        held_x = (held_x - mean) / std
    else:
        chosen_on, held = "train", torch.arange(len(y)) % HOLD_OUT == HOLD_OUT - 1
        x, y, held_x, held_y = x[~held], y[~held], x[held], y[held]
    seconds = time.monotonic() - before
    best: tuple[tuple[float, float], float, dict[str, float], Tensor] | None = None
    for penalty, weight in _fits(x, y, classes, PENALTIES):
        counts = Counts(held_x.device)
        counts.add(_logits(held_x, weight), held_y)
        found = counts.result()
        rank = (found["top1"], -found["loss"])
        if best is None or rank > best[0]:
            best = rank, penalty, found, weight
    assert best is not None
    _, penalty, found, weight = best
    if chosen_on == "train":
        *_, (_, weight) = _fits(*whole, classes, [p for p in PENALTIES if p >= penalty])
    scaled = weight[:, :-1] / std
    return Probed(
        weight=scaled,
        bias=weight[:, -1] - scaled @ mean,
        penalty=penalty,
        images=len(whole[1]),
        chosen_on=chosen_on,
        n=int(found["n"]),
        top1=found["top1"],
        top5=found["top5"],
        loss=found["loss"],
        evaluation_seconds=seconds,
    )


def _places(split: Split, count: int, seed: int) -> Ints:
    """The images that the head is fitted to, at most `count`: all, or as many of each class as
    there are, at most equal. Evenly spread over the split there may be none of a rare class."""
    if count >= len(split):
        return np.arange(len(split))
    return balanced_subset(split.labels, [name_key(name) for name in split.names], count, seed)


def features_of(
    setup: Setup, model: nn.Module, split: Split, precision: str, stop: StopSignal | None = None
) -> tuple[Tensor, Tensor]:
    """What the classifier reads of each image of a split: float32 (N, D), and labels (N,), on CPU.

    Broken images that are skipped are left out. Raises InterruptedRun: `stop` was signalled.
    """
    device, last = setup.device, setup.config.train.channels_last
    plan, data = setup.plan, setup.data
    images = open_eval(
        split, data, setup.config.data, plan, device, batch=eval_batch(setup.config, device)
    )
    each = (stop or StopSignal()).ends(images)
    batches = ((finish(x, None, data.mean, data.std, last), known) for x, known in each)
    return _pooled(model, model, batches, precision, device)


@torch.no_grad()
def _pooled(
    model: nn.Module,
    answers: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: str,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """What the classifier reads, as `features_of`, where `answers` gives what it makes of it."""
    parent, _, leaf = classifier_name(model).rpartition(".")
    owner, head = model.get_submodule(parent), classifier(model)
    model.eval()
    setattr(owner, leaf, nn.Identity())
    found, labels = [], []
    try:
        for ready, known in batches:
            with autocast(precision, device):
                features = answers(ready)
            found.append(features[known >= 0].float().cpu())
            labels.append(known[known >= 0].cpu())
    finally:
        setattr(owner, leaf, head)
    return torch.cat(found), torch.cat(labels)


def _fits(
    x: Tensor, y: Tensor, classes: int, penalties: Sequence[float]
) -> Iterator[tuple[float, Tensor]]:
    """(penalty, float32 (K, D + 1) weights and biases) of the logistic regression for each."""
    weight = torch.zeros(classes, x.shape[1] + 1, requires_grad=True)
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weight], max_iter=ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def loss(optimizer: torch.optim.Optimizer = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(_logits(x, weight), y)
            value = value + penalty / 2 * weight[:, :-1].square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield penalty, weight.detach().clone()


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    # Contiguous, as its gradient by a narrow transposed view takes four times as long on a CPU.
    return F.linear(x, weight[:, :-1].contiguous(), weight[:, -1])


# -- the better of the two -------------------------------------------------------------------------


def keep_start(checkpoints: Path, model: nn.Module, probed: Probed) -> None:
    """Save the weights that fine-tuning starts from, to be compared with when it has ended."""
    if probed.chosen_on != "val":
        return
    numbers = {"top1": probed.top1, "top5": probed.top5, "loss": probed.loss}
    checkpoints.mkdir(parents=True, exist_ok=True)
    with files.replacing(checkpoints / START) as temporary:
        write_tensors(temporary, model.state_dict(), {"val": json.dumps(numbers)})


def kept_start(checkpoints: Path) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """The weights that fine-tuning started from and their top1, top5 and loss on validation; None:
    they were not kept."""
    file = checkpoints / START
    if not file.exists():
        return None
    with opened(file) as kept:
        numbers = json.loads(kept.metadata()["val"])
    return read_tensors(file), numbers
