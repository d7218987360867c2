"""What does a run do when it goes bad? `train.on_divergence`: stop, rollback or continue.

rollback: good states are kept in `checkpoints/good/`, at steps that follow from the config alone.
The run returns to the newest one before the first bad step, with half the learning rate from there
on, and leaves out the bad step's batch. What was rolled back is part of the state of every
checkpoint, so that a killed run repeats it and ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitc.config import RunConfig
from vitc.data.loader import MicroBatch, Provider
from vitc.errors import DivergedError
from vitc.runs.checkpoint import TrainState, latest_checkpoint
from vitc.runs.folder import GOOD, RunFolder
from vitc.runs.legs import LR_CUT, config_at, cuts, with_rates
from vitc.runs.writer import Writer
from vitc.training.build import Setup
from vitc.training.device import autocast
from vitc.training.diagnose import UNREPRODUCED, diagnose
from vitc.training.divergence import UNDONE, Finding, Watch
from vitc.training.evaluate import not_finite
from vitc.training.log import RunLog
from vitc.training.step import ready_images
from vitc.training.vitals import EVERY, IMAGES, UpdateRatio, batch_norms, measure
from vitc.wording import counted

KEEP_GOOD = 3  # good states
GOOD_EVERY = (50, 1000)  # steps between good states: an epoch, within these bounds
MOST_ROLLBACKS = 5  # at one optim.lr
MOST_SKIPPED = 50  # steps in a row without a finite result, with on_divergence continue
MOST_NOTES = 10  # of such steps, each on a line


class Guard:
    """Watches one run in one process, and keeps what is needed to roll it back."""

    def __init__(self, setup: Setup, state: TrainState, folder: RunFolder, log: RunLog) -> None:
        self.setup, self.state, self.folder, self.log = setup, state, folder, log
        optim, epochs = setup.config.optim, setup.config.train.epochs
        self.watch = Watch(
            chance_loss(setup),
            optim.schedule.warmup_steps(epochs, setup.steps_per_epoch),
            list(batch_norms(state.model)),
        )
        self.policy = setup.config.train.on_divergence
        self.left_out: list[int] = []
        """Steps whose batch is not trained on."""
        self.rollbacks: list[dict[str, Any]] = []
        """Each with `lr`, the setting under which the run went bad."""
        self.skipped = 0
        """Steps without a finite result, with on_divergence continue."""
        self.in_a_row = 0
        self.asked: Finding | None = None
        """Why the run is to be rolled back as soon as the loop can."""
        self.before: UpdateRatio | None = None
        self.pending: list[tuple[int, float, dict[str, Tensor]]] = []
        """Vitals that are not yet read, with their step and its position."""

    # -- state -------------------------------------------------------------------------------------

    KEPT = ("left_out", "rollbacks", "skipped", "in_a_row")

    @property
    def kept(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"watch": {**{k: getattr(self, k) for k in self.KEPT}, **self.watch.state}}

    @property
    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        skipped = self.skipped if self.policy == "continue" else 0
        return {"skipped_steps": skipped, "rollbacks": self.rollbacks}

    def resume(self, extra: Mapping[str, Any]) -> None:
        """Resume with what `kept` gave; checkpoints of earlier versions have nothing of it."""
        values = extra.get("watch", {})
        self.watch.resume(values)
        for name in self.KEPT:
            if name in values:
                setattr(self, name, values[name])
        self.rollbacks = with_rates(self.rollbacks, self._config(self.state.step - 1).optim.lr)

    # -- in the loop -------------------------------------------------------------------------------

    def _config(self, step: int) -> RunConfig:
        """The settings of the step that follows `step` finished ones."""
        return config_at(self.setup.config, self.setup.legs, step)

    def lr(self, position: float) -> float:
        """The learning rate of the step to come, at `position`: the planned one, cut by rollbacks.

        A closed form of step and records: a run resumed from before a change of optim.lr takes the
        same rates again, on both sides of it.
        """
        cut = LR_CUT ** cuts(self.rollbacks, self._config(self.state.step))
        return self.setup.lr(position) * cut

    def leaves_out(self, step: int) -> bool:
        return step in self.left_out

    def before_step(self) -> None:
        """Before every 50th step: keep its weights, to measure its update."""
        if self.setup.procs.first and (self.state.step + 1) % EVERY == 0:
            self.before = UpdateRatio(self.state.model)

    def after_step(self, micro: MicroBatch, position: float) -> None:
        """After every 50th step, which led to `position`: measure the model on a few of its
        images."""
        if self.before is None:
            return
        s = self.setup.settings
        images = ready_images(micro, s)
        images = images[: min(IMAGES, max(2, len(images) // 4))]
        with autocast(s.config.train.precision, s.device):
            vitals = measure(self.state.model, images, s.answers(self.state.model))
        vitals["update_ratio"] = self.before.measure()
        self.pending.append((self.state.step, position, vitals))
        self.before = None

    def read_vitals(self) -> None:
        """Bring the vitals to the host, write them to metrics.jsonl and report what they show."""
        for step, position, vitals in self.pending:
            sizes = [v.numel() for v in vitals.values()]
            flat = torch.cat([v.flatten() for v in vitals.values()]).cpu()
            parts = zip(vitals.items(), torch.split(flat, sizes), strict=True)
            values = {k: (part if v.ndim else part[0]).tolist() for (k, v), part in parts}
            self.log.metric({"kind": "watch", "step": step, **values})
            for finding in self.watch.inspect(step, values, position):
                self._warn(finding)
        self.pending = []

    def good_step(self) -> bool:
        """Whether the state after this step is kept as a good one."""
        least, most = GOOD_EVERY
        every = min(max(self.setup.steps_per_epoch, least), most)
        return self.policy == "rollback" and self.state.step % every == 0

    def keep_good(self, extra: Mapping[str, Any], writer: Writer) -> None:
        """Keep the state to return to, if it is good."""
        state = self.state
        tensors = {**dict(state.model.named_buffers()), **dict(state.model.named_parameters())}
        if self.setup.procs.first and not not_finite(tensors):
            place = self.folder.checkpoints / GOOD
            writer.save(state.snapshot(extra), lambda s: s.write(place, keep=KEEP_GOOD))

    # -- findings ----------------------------------------------------------------------------------

    def observe(self, step: int, position: float, outcome: Mapping[str, float]) -> None:
        """A step with a finite result, which led to `position`."""
        self.in_a_row = 0
        loss, norm = outcome["loss"], outcome["grad_norm"]
        for finding in self.watch.observe(step, loss, norm, position):
            if self.policy == "rollback" and finding.cause in UNDONE:
                self.asked = self.asked or finding
            else:
                self._warn(finding)

    def bad_step(
        self, step: int, lr: float, outcome: Mapping[str, float], provider: Provider
    ) -> None:
        """A step without a finite result: stop, ask for a rollback, or report that it is left out.

        Raises DivergedError with the cause, the first bad step, the place and the remedy.
        """
        seen = ", ".join(f"{name.replace('_', ' ')} {v:g}" for name, v in outcome.items())
        self.skipped += 1
        self.in_a_row += 1
        finding = None
        if self.policy != "continue" or self.skipped <= MOST_NOTES:
            found = self.setup.procs.gather(
                diagnose(self.setup, self.state.model, provider, self.watch, step, lr, seen)
            )
            # Of several processes one may have the bad image: its finding, with a place, is all's.
            finding = next((f for f in found if f.where not in ("", UNREPRODUCED)), found[0])
        if self.policy == "rollback":
            self.asked = finding
            return
        if self.policy == "continue" and self.in_a_row < MOST_SKIPPED:
            if finding is not None:
                self.log.note(f"Warning: step {step} is left out: {finding.text}. {finding.remedy}")
            return
        finding = finding or Finding("unknown", step, "", f"{seen}, {MOST_SKIPPED} steps in a row")
        raise self.diverged(step, finding)

    def diverged(self, step: int, finding: Finding, more: str = "") -> DivergedError:
        found, _ = latest_checkpoint(self.folder.checkpoints)
        return DivergedError(
            f"Diverged at step {step} of {self.log.steps}: {finding.text}.{more} No weight was "
            f"changed by that step. Last good checkpoint: {found or 'none'}.",
            finding.remedy,
        )

    def _warn(self, finding: Finding) -> None:
        self.log.note(f"Warning: {finding.text}. {finding.remedy}")

    # -- rollback ----------------------------------------------------------------------------------

    def roll_back(self) -> dict[str, Any]:
        """Return to the newest good state before what `asked` found; returns its `extra`.

        Raises DivergedError: there is no such state, or this happened too often.
        """
        finding, state = self.asked, self.state
        assert finding is not None
        self.asked, self.pending, self.before = None, [], None
        self.setup.procs.wait()
        good = good_before(self.folder.checkpoints / GOOD, finding.step)
        config = self._config(finding.step - 1)
        cut, lr = cuts(self.rollbacks, config), config.optim.lr
        if good is None or cut >= MOST_ROLLBACKS:
            why = "no good state before it" if good is None else "the lr was cut that often before"
            times = len(self.rollbacks) if good is None else cut
            more = f" Rolled back {counted(times, 'time')}; not again: {why}."
            raise self.diverged(finding.step, finding, more)
        at, seconds, factor = state.step, state.seconds, LR_CUT ** (cut + 1)
        record = {"at": at, "since": finding.step, "cause": finding.cause, "lr": lr}
        record["lr_factor"] = factor
        rollbacks, left_out = [*self.rollbacks, record], [*self.left_out, finding.step]
        vars(state.optimizer).pop("found_inf", None)  # else no step would count any more
        extra = state.load(good)
        state.seconds = seconds
        self.resume(extra)
        self.left_out, self.rollbacks = left_out, rollbacks
        record["to"] = state.step
        # A rollback may lead to before a change of optim.lr, to steps that are not cut by it.
        since = "from here" if self._config(state.step).optim.lr == lr else f"at optim.lr {lr:g}"
        self.log.note(
            f"rolled back from step {at} to step {state.step}: {finding.text}. The learning rate "
            f"is {factor:g} times the planned one {since}, the batch of step {finding.step} is "
            "left out"
        )
        return extra


def good_before(folder: Path, step: int) -> Path | None:
    """The newest good state from before step `step`; later ones are of a future to be undone."""
    names = [p.name.removeprefix("step_") for p in folder.glob("step_*")]
    before = [int(n) for n in names if n.isdigit() and int(n) < step]  # a kill may leave step_N.old
    return folder / f"step_{max(before)}" if before else None


def chance_loss(setup: Setup) -> float:
    """The training loss of always answering the shares of the classes, in nats."""
    count, data = len(setup.data.classes), setup.config.data
    labels = np.asarray(setup.data.splits["train"].labels)
    shares = np.bincount(labels[labels >= 0], minlength=count) / max(1, (labels >= 0).sum())
    if data.balance != "none":  # drawn more evenly than they are: an upper bound
        shares = np.full(count, 1 / count)
    smoothing = data.augment.label_smoothing
    soft = (1 - smoothing) * shares + smoothing / count
    return float(-sum(p * math.log(p) for p in soft if p > 0))
