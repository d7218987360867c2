"""How good is the model during a run: raw and EMA weights on validation, at the end of epochs.

BatchNorm's running averages lag behind the weights and weigh the last batches most. pycls
recomputes both the model's and its average's after every epoch, from 8,192 images ("Precise-BN":
Wu and Johnson, arXiv 2105.07576, section 3): the mean over micro-batches of each one's mean and
variance. `train.precise_bn_images` asks for that before each evaluation. The average of a
schedule-free optimizer never sees a training batch, so its statistics are always recomputed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitc.data.loader import EvalLoader, Provider, open_eval, open_train
from vitc.optim.ema import OwnAverage
from vitc.runs.checkpoint import TrainState
from vitc.training.build import Setup
from vitc.training.device import autocast
from vitc.training.evaluate import eval_batch, evaluate
from vitc.training.parallel import Processes
from vitc.training.step import ready_images, running_statistics

OWN_IMAGES = 2048  # at most, for BatchNorm of a schedule-free optimizer's average

FORWARD_SHARE = 1 / 3  # of a step, that its forward pass is

Batch = TypeVar("Batch")


def evaluation_steps(setup: Setup, state: TrainState) -> float:
    """Training steps that take as long as an evaluation, about."""
    t, models = setup.config.train, 1 if state.ema is None else 2
    images = models * (len(setup.data.splits.get("val", ())) + t.precise_bn_images)
    return FORWARD_SHARE * images / t.batch


class Validation:
    """The validation split of a run, opened when it is first needed.

    `asked`: whether the run was asked to stop, for which a measurement is broken off.
    """

    def __init__(
        self, setup: Setup, state: TrainState, asked: Callable[[], bool] = lambda: False
    ) -> None:
        self.setup, self.state, self.asked = setup, state, asked

    def due(self, epoch: int, epoch_ends: bool, run_ends: bool) -> bool:
        """Whether the run is evaluated after this step: at the end of every so many epochs, and of
        the run. `epoch` is counted from 1."""
        every = self.setup.config.train.eval_every_epochs
        here = "val" in self.setup.data.splits
        return here and (run_ends or (epoch_ends and epoch % every == 0))

    def measure(self, provider: Provider) -> dict[str, Any] | None:
        """The line for metrics.jsonl; models are left in eval mode. None: it was broken off, and
        the state is what it was.

        `provider`: of the training images, for BatchNorm's statistics.
        """
        setup, state = self.setup, self.state
        if not self.renew_norms(provider):
            return None
        raw = main = self._evaluated(state.model)
        if state.ema is not None and raw is not None:
            main = self._evaluated(state.ema.module)
        if raw is None or main is None:
            return None
        line: dict[str, Any] = {
            "kind": "eval",
            "step": state.step,
            "epoch": state.step // setup.steps_per_epoch,
            "split": "val",
            "n": int(main["n"]),
            **{name: main[name] for name in ("top1", "top5", "loss")},
            **{f"{name}_raw": raw[name] for name in ("top1", "top5", "loss")},
        }
        if line["top1"] > state.best.get("top1", -1.0):
            state.best = {"top1": line["top1"], "epoch": line["epoch"], "step": state.step}
        state.last_eval = {k: v for k, v in line.items() if k != "kind"}
        return line

    @functools.cached_property
    def batches(self) -> EvalLoader:
        s = self.setup
        split = s.data.splits["val"]
        return open_eval(
            split,
            s.data,
            s.config.data,
            s.plan,
            s.device,
            batch=eval_batch(s.config, s.device),
            often=True,
        )

    def _evaluated(self, model: nn.Module) -> dict[str, float] | None:
        found = evaluate(model, self._until_asked(self.batches), self.setup.settings)
        return None if self._broken_off() else found

    def _until_asked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.asked():
                return
            yield batch

    def _broken_off(self) -> bool:
        """Whether any process was asked to stop: all ask together, after each pass over images."""
        return self.setup.procs.any(self.asked(), self.setup.device)

    def renew_norms(self, provider: Provider) -> bool:
        """BatchNorm's statistics from the images of the steps to come, unmixed, in train mode.

        False: it was broken off, and they are what they were.
        """
        setup, state, t = self.setup, self.state, self.setup.config.train
        steps = t.precise_bn_images // t.batch
        models = [state.model, *([state.ema.module] if state.ema else [])]
        if not steps and isinstance(state.ema, OwnAverage):
            steps = min(max(1, OWN_IMAGES // t.batch), setup.steps_per_epoch)
            models = [state.ema.module]
        names = norms_in_training(state.model) if steps else []
        if not names:
            return True
        end = state.step + steps
        data, plan = setup.data, setup.plan
        norms = [cast(_BatchNorm, model.get_submodule(n)) for model in models for n in names]
        before = [t.clone() for t in running_statistics(norms)]
        with (
            open_train(
                data, setup.config.data, plan, setup.device, state.step, end, provider=provider
            ) as batches,
            autocast(t.precision, setup.device),
        ):
            every = self._until_asked(batches)
            images = (ready_images(micro, setup.settings) for micros in every for micro in micros)
            renew(models, names, images, setup.procs)
        if not self._broken_off():
            return True
        for buffer, value in zip(running_statistics(norms), before, strict=True):
            buffer.copy_(value)
        return False


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
    norms = [[cast(_BatchNorm, model.get_submodule(n)) for n in names] for model in models]
    every = [norm for own in norms for norm in own]
    before = [(n.momentum, n.num_batches_tracked) for n in every]
    for model in models:
        model.eval()
    for norm in every:  # with momentum 1 running statistics are those of the batch just seen
        norm.training, norm.momentum, norm.num_batches_tracked = True, 1.0, None
    sums = [torch.zeros_like(_flat(own)) for own in norms]
    count = 0
    try:
        for images in batches:
            count += 1
            for model, own, total in zip(models, norms, sums, strict=True):
                model(images)
                total += _flat(own)
    finally:
        for norm, (momentum, counter) in zip(every, before, strict=True):
            norm.training, norm.momentum, norm.num_batches_tracked = False, momentum, counter
    for own, total in zip(norms, sums, strict=True):
        procs.sum_(total)
        buffers = running_statistics(own)
        means = torch.split(total / max(1, count * procs.world), [b.numel() for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))


def _flat(norms: Sequence[_BatchNorm]) -> Tensor:
    return torch.cat([t.flatten() for t in running_statistics(norms)])
