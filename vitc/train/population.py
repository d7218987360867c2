"""Many runs of one architecture as one batched program, written as so many ordinary runs.

On an accelerator a tiny model leaves most of the device idle, and the host cannot start kernels
fast enough to fill it; M runs that differ in learning rate, weight decay, seeds or length then
train in little more time than one. Whether that pays is measured by `population_probe`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitc.config import RunConfig, differences
from vitc.data.augment import finish
from vitc.data.folders import counted
from vitc.data.loader import EvalLoader, open_eval
from vitc.data.resident import Resident, hold
from vitc.data.sampling import BatchPlan, steps_per_epoch
from vitc.data.sources import DataSet, open_data
from vitc.errors import ConfigError, DivergedError, InterruptedRun, RunError
from vitc.models.outside import with_source
from vitc.optim.schedule import ema_alpha
from vitc.train.begin import check_weights, with_preparation
from vitc.train.build import batch_plan, step_settings
from vitc.train.device import Processes, forget_peak_memory, machine_settings, pick_device
from vitc.train.evaluate import EVAL_BATCH
from vitc.train.loop import RunResult, StopSignal, Trainer, data_record
from vitc.train.metrics import Counts
from vitc.train.progress import RunProgress
from vitc.train.runlog import RunFolder
from vitc.train.stack import Stack
from vitc.train.stack_batches import StackedBatches

CPU = torch.device("cpu")

MAY_DIFFER = {
    "name", "optim.lr", "optim.lr_per_batch", "optim.weight_decay", "optim.betas", "optim.eps",
    "optim.momentum", "optim.clip_norm", "train.epochs", "train.seed", "train.seed_init",
    "train.seed_order", "train.seed_augment", "train.keep_checkpoints",
}  # fmt: skip
MAY_DIFFER_WITHIN = ("optim.schedule.", "optim.ema.")


# -- what can be one population --------------------------------------------------------------------


def population_problems(configs: Sequence[RunConfig]) -> list[str]:
    """Why these runs cannot be one population, one sentence each; empty where they can.

    Members may differ in the optimizer's numbers, schedule, average, seeds and epochs.
    """
    if not configs:
        return ["A population has at least one member."]
    first, train = configs[0], configs[0].train
    found = []
    for setting in ("grad_checkpointing", "channels_last", "precise_bn_images"):
        if getattr(train, setting):
            found.append(f"train.{setting} {getattr(train, setting)} is not for a population.")
    if train.precision == "auto":
        found.append("train.precision auto: a population wants it decided, fp32 or bf16.")
    if first.data.resident == "off":
        found.append("data.resident off: a population holds its images on the device.")
    if first.data.bad_files == "skip" and first.data.source == "outside":
        found.append("data.source outside with data.bad_files skip is not for a population.")
    differing: dict[str, str] = {}
    for other in configs[1:]:
        for text in differences(first, other):
            name, _, values = text.partition(": ")
            if not _may_differ(name):
                differing.setdefault(name, values)
    found += [f"Members differ in {name}: {values}." for name, values in differing.items()]
    return found


def _may_differ(name: str) -> bool:
    within = name.startswith(MAY_DIFFER_WITHIN) and name != "optim.ema.kind"
    return within or name in MAY_DIFFER


def _checked(configs: Sequence[RunConfig]) -> None:
    found = population_problems(configs)
    if found:
        raise ConfigError(
            "These runs cannot be one population.\n" + "\n".join(found),
            "Members may differ in lr, weight decay, momentum or betas, schedule, seeds and "
            "epochs; run others one by one.",
        )


# -- running ---------------------------------------------------------------------------------------


def run_population(
    configs: Sequence[RunConfig],
    outs: Sequence[Path],
    *,
    overwrite: bool = False,
    quiet: bool = False,
    stopped: Callable[[], int | None] | None = None,
    tick: Callable[[], None] | None = None,
    notes: Sequence[str] = (),
) -> list[RunResult]:
    """Run `configs` together, each into its folder of `outs`: `done` or `diverged`, in order.

    The folders are those of single runs; summary.json also has `population`, the number of
    members, and its `train_seconds` are the member's share of the time. A member that diverges is
    recorded with its step and the others go on. Unfinished members, all at the same step, are
    continued: `vitc train` on its folder continues one alone. `stopped` tells the signal by which
    to end (None: go on) in place of this function's own watch for SIGTERM and Ctrl-C; `tick` is
    called whenever losses are read; `notes` go into every events.log.

    Raises ConfigError (members differ in what they must share, a finished or another run is there,
    the images cannot be held), DataError, RunError, InterruptedRun (all states are saved).
    """
    if len(configs) != len(outs) or len(set(outs)) != len(outs):
        raise ConfigError(f"{len(configs)} runs need as many folders, not {len(set(outs))}.")
    configs = [
        dataclasses.replace(c.checked(), model=with_source(c.model, out))
        for c, out in zip(configs, outs, strict=True)
    ]
    _checked(configs)
    device = pick_device(configs[0].train.device)
    prepared = [with_preparation(c, o, overwrite) for c, o in zip(configs, outs, strict=True)]
    configs = [config for config, _ in prepared]
    with machine_settings(configs[0].train, device), contextlib.ExitStack() as stack:
        data = open_data(configs[0].data, configs[0].model.in_chans)
        held, steps = held_images(configs[0], data, device)
        for config, out in zip(configs, outs, strict=True):
            check_weights(config, out, overwrite, data.classes)
        members = []
        for (config, said), out in zip(prepared, outs, strict=True):
            folder = stack.enter_context(RunFolder.open(out, config, overwrite=overwrite))
            folder.write_data(data_record(config, data))
            for note in (*notes, *said):
                folder.event(note)
            members.append(Member(config, folder, data, steps, device, len(configs)))
        if stopped is None:
            signals = stack.enter_context(StopSignal())

            def stopped() -> int | None:
                return signals.number

        return Population(members, held, data, device, quiet).run(stopped, tick)


def held_images(config: RunConfig, data: DataSet, device: torch.device) -> tuple[Resident, int]:
    """The training images on the device, and the steps of an epoch."""
    plan = batch_plan(config, Processes())
    split = data.splits["train"]
    steps = steps_per_epoch(len(split), plan.batch)
    held = hold(split, data, config.data, plan, device, training=True)
    if not isinstance(held, Resident):
        raise ConfigError(
            f"A population holds its images on the device, but {held}.",
            "Run the members one by one; or try --data.resident on.",
        )
    if held.broken.any():
        raise ConfigError(
            f"{counted(int(held.broken.sum()), 'training image')} cannot be read; a population "
            f"takes none in their place.",
            "Remove them from the data set, or run the members one by one.",
        )
    return held, steps


class Member(Trainer):
    """One run of a population: its folder, its schedule, and its state as of the last saving.

    The state is on the host; the one that trains is a row of the population's `Stack`.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: DataSet,
        steps: int,
        device: torch.device,
        size: int,
    ) -> None:
        plan = batch_plan(config, Processes())
        super().__init__(config, folder, data, plan, steps, CPU, Processes(), quiet=True)
        self.device, self.size = device, size
        self.progress = RunProgress(config.name, self.total_steps, quiet=True)
        self.result: RunResult | None = None

    def begin(self) -> None:
        """As the folder says: from the start, or from its last checkpoint."""
        self._introduce()
        self._resume()
        self.folder.event(f"one of a population of {self.size}, trained together")

    def alpha(self, step: int) -> float:
        """Weight of the model after `step` updates in its average."""
        optim, t = self.config.optim, self.config.train
        return ema_alpha(
            step,
            optim.ema,
            optim.schedule,
            epochs=t.epochs,
            steps_per_epoch=self.steps_per_epoch,
            batch=t.batch,
        )

    def read(self, step: int, outcomes: Tensor) -> None:
        """Take in the losses and gradient norms, on the host (n, 2), of the n steps up to `step`.

        Raises DivergedError, with the run's step that of the first value that is not finite.
        """
        bad = (~torch.isfinite(outcomes).all(dim=1)).nonzero()
        taken = len(outcomes) if len(bad) == 0 else int(bad[0]) + 1
        self.state.step = step - len(outcomes) + taken
        self.pending = [(row[0], row[1]) for row in outcomes[:taken]]
        self._read_outcomes()

    def log(self) -> None:
        self.last_read = time.monotonic()  # the population has counted the time
        self._log_train(self.lr(self.state.step - 1))

    def evaluates(self, epoch: int) -> bool:
        return self._evaluates(epoch)

    def note_evaluation(
        self, main: Mapping[str, float], raw: Mapping[str, float], skipped: Sequence[str]
    ) -> None:
        self._note_evaluation(main, raw, skipped)

    def save_due(self) -> bool:
        return self._save_due()

    def save(self) -> None:
        self.last_read = time.monotonic()
        self._save()

    def finish(self) -> None:
        self.last_read = time.monotonic()
        self.result = self._finish()

    def end(self, status: str, error: Exception) -> None:
        summary = self._close(status, error)
        self.result = RunResult(self.folder.path, status, summary["top1"], summary)

    def interrupt(self, number: int) -> None:
        self.last_read = time.monotonic()
        try:
            self._interrupt(number)
        except InterruptedRun as error:
            self.end("interrupted", error)

    def _close(self, status: str, error: Exception | None = None) -> dict[str, Any]:
        summary = {**super()._close(status, error), "population": self.size}
        self.folder.write_summary(summary)
        return summary


class Population:
    """The members that still train, their stack and their batches."""

    def __init__(
        self,
        members: Sequence[Member],
        held: Resident,
        data: DataSet,
        device: torch.device,
        quiet: bool,
    ) -> None:
        self.all, self.members = list(members), list(members)
        self.held, self.data, self.device, self.quiet = held, data, device, quiet
        first = members[0]
        self.config, self.steps_per_epoch = first.config, first.steps_per_epoch
        self.total_steps = max(m.total_steps for m in members)
        self.settings = step_settings(
            first.config, device, Processes(), data.mean, data.std, len(data.classes)
        )
        self.loss = math.nan  # the median over members, when last read
        self.pending: list[Tensor] = []  # (2, M) losses and gradient norms, not yet read
        self.last_read = time.monotonic()

    def run(
        self, stopped: Callable[[], int | None], tick: Callable[[], None] | None
    ) -> list[RunResult]:
        forget_peak_memory(self.device)
        title = f"{self.config.name}, {len(self.all)} members"
        with RunProgress(title, self.total_steps, self.quiet) as self.progress:
            try:
                self._begin()
                self._steps(stopped, tick or _nothing)
            except InterruptedRun:
                raise
            except torch.OutOfMemoryError as error:
                told = RunError(
                    f"{len(self.members)} members do not fit the memory of {self.device.type}.",
                    "Make a population of fewer members.",
                )
                for member in self.members:
                    member.end("failed", told)
                raise told from error
            except Exception as error:
                for member in self.members:
                    member.end("failed", error)
                raise
        results = [m.result for m in self.all if m.result is not None]
        assert len(results) == len(self.all)
        return results

    def _begin(self) -> None:
        for member in self.members:
            member.begin()
        steps = sorted({m.state.step for m in self.members})
        if len(steps) > 1:
            raise ConfigError(
                f"The runs to go on with are at different steps: {', '.join(map(str, steps))}.",
                "Continue each alone with vitc train RUN; or --overwrite starts all anew.",
            )
        self.step = self.began_at = steps[0]
        self.progress.start_at(self.step)
        self.stack = Stack(
            [m.state for m in self.members],
            [m.config.optim for m in self.members],
            self.device,
            precision=self.config.train.precision,
            compiled=self.config.train.compile,
        )
        self.batches = StackedBatches(
            self.held,
            self.config.data,
            [m.plan for m in self.members],
            self.settings,
            range(self.step, self.total_steps),
        )
        self.val: EvalLoader | None = None
        if "val" in self.data.splits:
            plan: BatchPlan = self.members[0].plan
            self.val = open_eval(self.data.splits["val"], self.data, self.config.data, plan,
                                 self.device, batch=EVAL_BATCH)  # fmt: skip

    def _steps(self, stopped: Callable[[], int | None], tick: Callable[[], None]) -> None:
        now = time.monotonic()
        self.last_read = now
        for member in self.members:
            member.last_save = now
        self._finish()  # runs that were killed after their last step
        if not self.members:
            return
        for micros in self.batches:
            self._step(micros)
            logging = self.step % self.config.train.log_every_steps == 0
            epoch_end = self.step % self.steps_per_epoch == 0
            if logging or epoch_end:
                self._read()
                tick()
            if logging:
                self._log()
            if epoch_end:
                self._evaluate()
                self._finish()
            number = stopped()
            if number is not None and self.members:
                self._interrupt(number)
            if any(m.save_due() for m in self.members):
                self._save()
            if not self.members:
                return

    def _step(self, micros: Sequence[Any]) -> None:
        lrs = [m.lr(self.step) for m in self.members]
        try:
            self.pending.append(self.stack.step(micros, lrs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.step > self.began_at:
                raise
            raise RunError(unbatched(self.config, error), "Run the members one by one.") from error
        self.step += 1
        for member in self.members:
            member.state.step = self.step
        self.stack.update_average([m.alpha(self.step) for m in self.members])

    # -- what is read, logged, evaluated ---------------------------------------------------------

    def _count_time(self) -> None:
        """The time since the last call, shared evenly among those who trained in it."""
        now = time.monotonic()
        share = (now - self.last_read) / max(1, len(self.members))
        self.last_read = now
        for member in self.members:
            member.state.seconds += share

    def _read(self) -> None:
        """Bring pending outcomes to the host, and end the runs that have diverged."""
        if not self.pending:
            return
        outcomes = torch.stack(self.pending).double().cpu()  # (n, 2, M)
        self.pending = []
        self.loss = float(outcomes[-1, 0].nanmedian())
        self._count_time()
        going = []
        for row, member in enumerate(self.members):
            try:
                member.read(self.step, outcomes[:, :, row])
            except DivergedError as error:
                member.end("diverged", error)
                self.progress.say(f"{member.folder.path}: {error.message}")
            else:
                going.append(row)
        self._keep(going)

    def _log(self) -> None:
        for member in self.members:
            member.log()
        if self.members:
            seconds = self.members[0].state.seconds
            images = self.step * self.config.train.batch  # of one, in its share of the time
            self.progress.step(self.step, self.loss, images / max(seconds, 1e-9))

    def _evaluate(self) -> None:
        """Raw and averaged weights on validation, of all if one is due; time does not count it."""
        epoch = self.step // self.steps_per_epoch
        due = [m.evaluates(epoch) for m in self.members]
        if self.val is None or not any(due):
            return
        raw = self._accuracy(average=False)
        main = raw if self.stack.average is None else self._accuracy(average=True)
        for row, member in enumerate(self.members):
            if due[row]:
                member.note_evaluation(main[row], raw[row], self.val.skipped)
        tops = [100 - main[row]["top1"] for row in range(len(main))]
        self.progress.say(
            f"epoch {epoch:>3}  val error {min(tops):.2f} to {max(tops):.2f}, median "
            f"{statistics.median(tops):.2f}, of {len(tops)} members"
        )
        self.last_read = time.monotonic()

    def _accuracy(self, average: bool) -> list[dict[str, float]]:
        """What `evaluate` gives, of every member."""
        assert self.val is not None
        s = self.settings
        counts = [Counts(self.device) for _ in self.members]
        for images, labels in self.val:
            logits = self.stack.predict(finish(images, None, s.mean, s.std, False), average)
            for one, own in zip(counts, logits, strict=True):
                one.add(own, labels)
        return [one.result() for one in counts]

    # -- ends ------------------------------------------------------------------------------------

    def _keep(self, rows: Sequence[int]) -> None:
        if len(rows) == len(self.members):
            return
        self.members = [self.members[r] for r in rows]
        if rows:
            self.stack.keep(rows)
            self.batches.keep(rows)

    def _synchronise(self) -> None:
        """Every member's state on the host is what it is on the device."""
        for row, member in enumerate(self.members):
            self.stack.give(row, member.state)

    def _save(self) -> None:
        self._read()
        self._synchronise()
        for member in self.members:
            member.save()
        self.last_read = time.monotonic()

    def _finish(self) -> None:
        """Save and close the runs that have taken their last step."""
        done = [row for row, m in enumerate(self.members) if self.step == m.total_steps]
        if not done:
            return
        for row in done:
            self.stack.give(row, self.members[row].state)
            self.members[row].finish()
        self._keep([r for r in range(len(self.members)) if r not in done])
        self.last_read = time.monotonic()

    def _interrupt(self, number: int) -> None:
        self._read()
        self._synchronise()
        for member in self.members:
            member.interrupt(number)
        raise InterruptedRun(
            f"Stopped at step {self.step} of {self.total_steps}; the states of "
            f"{len(self.members)} members are saved.",
            "Repeat the command, or continue one alone: vitc train RUN",
            number,
        )


def unbatched(config: RunConfig, error: RuntimeError) -> str:
    """What is said of a model with operations that torch cannot do for all members at once."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return f"{config.model.name} cannot be computed as a population: {said[0]}"


def _nothing() -> None:
    pass
