"""How good is the model during a run: raw and EMA weights on validation, at the end of epochs."""

from __future__ import annotations

import functools
from typing import Any

from vitc.data.loader import EvalLoader, open_eval, open_train
from vitc.data.pixels import Provider
from vitc.runs.checkpoint import TrainState
from vitc.training.build import Setup
from vitc.training.device import autocast
from vitc.training.evaluate import EVAL_BATCH, evaluate
from vitc.training.precise_bn import norms_in_training, renew
from vitc.training.step import ready_images


class Validation:
    """The validation split of a run, opened when it is first needed."""

    def __init__(self, setup: Setup, state: TrainState) -> None:
        self.setup, self.state = setup, state

    def due(self, epoch: int) -> bool:
        """Whether the run is evaluated after this epoch, counted from 1."""
        t = self.setup.config.train
        here = "val" in self.setup.data.splits
        return here and (epoch % t.eval_every_epochs == 0 or epoch == t.epochs)

    def measure(self, provider: Provider) -> dict[str, Any]:
        """The line for metrics.jsonl; models are left in eval mode.

        `provider`: of the training images, for BatchNorm's statistics.
        """
        setup, state = self.setup, self.state
        self._renew_norms(provider)
        raw = main = evaluate(state.model, self._batches, setup.settings)
        if state.ema is not None:
            main = evaluate(state.ema.module, self._batches, setup.settings)
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
            state.best = {"top1": line["top1"], "epoch": line["epoch"]}
        state.last_eval = {k: v for k, v in line.items() if k != "kind"}
        return line

    @property
    def skipped(self) -> tuple[str, ...]:
        """Broken files of the last measurement."""
        return self._batches.skipped

    @functools.cached_property
    def _batches(self) -> EvalLoader:
        s = self.setup
        split = s.data.splits["val"]
        return open_eval(split, s.data, s.config.data, s.plan, s.device, batch=EVAL_BATCH)

    def _renew_norms(self, provider: Provider) -> None:
        """BatchNorm's statistics from the images of the steps to come, unmixed, in train mode."""
        setup, state = self.setup, self.state
        t, s = setup.config.train, setup.settings
        steps = t.precise_bn_images // t.batch
        names = norms_in_training(state.model) if steps else []
        if not names:
            return
        models = [state.model, *([state.ema.module] if state.ema else [])]
        with (
            open_train(
                setup.data,
                setup.config.data,
                setup.plan,
                setup.device,
                state.step,
                state.step + steps,
                provider=provider,
            ) as batches,
            autocast(s.precision, s.device),
        ):
            images = (ready_images(micro, s) for micros in batches for micro in micros)
            renew(models, names, images, setup.procs)
