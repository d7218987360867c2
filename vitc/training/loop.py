"""A run from config to summary: wire the rooms together, step, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitc.config import RunConfig, from_dict, load_config
from vitc.data.dataset import DataSet, open_data
from vitc.data.loader import EvalLoader, TrainLoader, open_eval, open_train
from vitc.data.pixels import Resident
from vitc.data.sampling import BatchPlan, steps_per_epoch
from vitc.errors import DivergedError, InterruptedRun, RunError
from vitc.files import read_json
from vitc.machine import cores, environment
from vitc.optim.schedule import lr_at
from vitc.plugins.consent import with_sources
from vitc.progress import Progress
from vitc.runs.checkpoint import latest_checkpoint
from vitc.runs.folder import CONFIG, RunFolder
from vitc.stats.proportions import wilson
from vitc.training.build import batch_plan, fresh_state, step_settings
from vitc.training.device import (
    Processes,
    autocast,
    describe,
    forget_peak_memory,
    machine_settings,
    peak_memory,
    pick_device,
    precision_note,
    processes,
)
from vitc.training.evaluate import EVAL_BATCH, evaluate
from vitc.training.freeze import train_mode
from vitc.training.initialise import (
    InitialWeights,
    begin,
    check_weights,
    with_preparation,
)
from vitc.training.precise_bn import norms_in_training, renew
from vitc.training.probe import faster_precision
from vitc.training.report import what_limits
from vitc.training.step import NormStatistics, ready_images, train_step
from vitc.wording import counted, duration


@dataclass(frozen=True)
class RunResult:
    """What a run came to; `summary` is what its summary.json holds."""

    path: Path
    status: str
    top1: float | None
    summary: dict[str, Any] = field(repr=False)


def train(
    config_or_recipe: RunConfig | str | Path, out: str | Path | None = None, **overrides: Any
) -> RunResult:
    """Train a recipe, config file or RunConfig, into `out` (default runs/<name>).

    Overrides are dotted (`**{"optim.lr": 1e-3}`) or nested. An unfinished run of the same config
    in `out` is continued. Raises ConfigError, DataError, and RunError and its kinds.
    """
    config = load_config(config_or_recipe, **overrides)
    return run(config, Path(out) if out is not None else Path("runs") / config.name)


def run(
    config: RunConfig,
    out: Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    notes: Sequence[str] = (),
) -> RunResult:
    """Run `config` in the folder `out`, from its last checkpoint if it has one.

    `notes` are lines to keep in the run's events.log (why the config is as it is). Raises
    ConfigError (another config or a finished run is there), DataError, DivergedError (the loss
    stopped being finite), InterruptedRun (SIGTERM or Ctrl-C; state saved), RunError.
    """
    config.checked()
    config = dataclasses.replace(config, model=with_sources(config.model, out))
    device = pick_device(config.train.device)
    if config.train.precision == "auto":
        config, why = _decided(config, out, device, overwrite)
        notes = [*notes, why]
    initial = InitialWeights(config.init)
    config, prepared = with_preparation(config, out, overwrite, initial)
    notes = [*notes, *prepared]
    with machine_settings(config.train, device), processes(device) as procs:
        data = open_data(config.data, config.model.in_chans)
        steps = steps_per_epoch(len(data.splits["train"].labels), config.train.batch)
        plan = batch_plan(config, procs)
        check_weights(config, out, overwrite, data.classes, initial)
        folder = RunFolder.open(out, config, overwrite=overwrite, writer=procs.first)
        procs.wait()  # nobody reads checkpoints that the first process is about to remove
        with folder, contextlib.ExitStack() as stack:
            folder.write_data(data_record(config, data))
            trainer = Trainer(config, folder, data, plan, steps, device, procs, quiet, initial)
            for note in notes:
                folder.event(note)
            stop = stack.enter_context(StopSignal())
            return trainer.run(stop)


def _decided(
    config: RunConfig, out: Path, device: torch.device, overwrite: bool
) -> tuple[RunConfig, str]:
    """The config with precision auto decided: as the run that is there has it, or by a probe."""
    if (out / CONFIG).exists() and not overwrite:
        precision, why = from_dict(read_json(out / CONFIG)).train.precision, "the run began so"
    else:
        precision, why = faster_precision(config, device)
    train = dataclasses.replace(config.train, precision=precision)
    return dataclasses.replace(config, train=train), f"precision {precision}: {why}"


def data_record(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """data.json: what predicting and evaluating need to know of the images."""
    return {
        "source": data.source,
        "classes": list(data.classes),
        "counts": {name: len(split.labels) for name, split in data.splits.items()},
        "img_size": list(config.model.size),
        "in_chans": config.model.in_chans,
        "mean": list(data.mean),
        "std": list(data.std),
        "fit": config.data.fit,
        "eval_crop": config.data.eval_crop,
        "fingerprint": data.fingerprint,
        "notes": list(data.notes),
    }


class StopSignal:
    """SIGTERM or Ctrl-C, remembered until the step in hand is done; the second one is not held."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self.before[s] = signal.signal(s, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)
        self.before = {}

    def __exit__(self, *error: object) -> None:
        self._restore()


class Trainer:
    """One run in one process: its state, its data and its folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: DataSet,
        plan: BatchPlan,
        steps: int,
        device: torch.device,
        procs: Processes,
        quiet: bool,
        initial: InitialWeights,
    ) -> None:
        self.initial = initial
        self.config, self.folder, self.data, self.plan = config, folder, data, plan
        self.device, self.procs = device, procs
        self.steps_per_epoch = steps
        self.total_steps = steps * config.train.epochs
        self.quiet = quiet or not procs.first
        self.state = fresh_state(config, len(data.classes), steps, device)
        self.settings = step_settings(config, device, procs, data.mean, data.std, len(data.classes))
        self.held: Resident | str | None = None  # where training images are, once they are opened
        self.limit_said = False
        self.started = time.monotonic()
        self.told: set[str] = set()  # what need not be said again
        self.pending: list[tuple[Tensor, Tensor]] = []  # (loss, gradient norm) not yet read
        self.last_save = self.last_read = time.monotonic()

    # -- the run ---------------------------------------------------------------------------------

    def run(self, stop: StopSignal) -> RunResult:
        forget_peak_memory(self.device)
        with Progress(
            self.config.name, self.total_steps, "step", quiet=self.quiet
        ) as self.progress:
            self._introduce()
            self._resume()
            self.progress.start_at(self.state.step)
            self.last_save = self.last_read = self.started = time.monotonic()
            try:
                with open_train(
                    self.data,
                    self.config.data,
                    self.plan,
                    self.device,
                    self.state.step,
                    self.total_steps,
                ) as batches:
                    self.folder.event(batches.note)
                    self.held = batches.held
                    self._steps(batches, stop)
                    if self.state.step == self.total_steps and not self.folder.finished:
                        return self._finish()
            except RunError as error:
                status = {DivergedError: "diverged", InterruptedRun: "interrupted"}
                self._close(status.get(type(error), "failed"), error)
                raise
            except Exception as error:
                self._close("failed", error)
                raise
        raise RunError(f"The loader ended at step {self.state.step} of {self.total_steps}.")

    def _steps(self, batches: TrainLoader, stop: StopSignal) -> None:
        state, t = self.state, self.config.train
        forward = self._forward_module()
        train_mode(state.model)
        norms = NormStatistics(state.model, self.plan.micros_here, self.procs)
        for micros in batches:
            lr = self.lr(state.step)
            outcome = train_step(state, forward, micros, lr, norms, self.settings)
            state.step += 1
            if state.ema is not None:
                state.ema.update(state.model, state.step)
            self.pending.append(outcome)
            self._note_skipped(name for micro in micros for name in micro.skipped)
            logging = state.step % t.log_every_steps == 0
            epoch_end = state.step % self.steps_per_epoch == 0
            if logging or epoch_end or self.device.type != "cuda":
                self._read_outcomes()
            if logging:
                self._log_train(lr)
            if epoch_end or state.step == self.total_steps:
                self._say_limit(batches)
            if epoch_end and self._evaluates(state.step // self.steps_per_epoch):
                self._evaluate()
                train_mode(state.model)
            if logging or epoch_end or self.procs.world == 1:
                stopped = self.procs.any(stop.number is not None, self.device)
                if stopped and state.step < self.total_steps:
                    self._interrupt(stop.number or signal.SIGTERM)
            if self._save_due() and state.step < self.total_steps:
                self._save()

    def _say_limit(self, batches: TrainLoader) -> None:
        """Once, after the first epoch here: does the loader or computing limit the rate?"""
        if self.limit_said:
            return
        self.limit_said = True
        seconds = time.monotonic() - self.started
        self._tell(
            what_limits(batches.wait_seconds, seconds, batches.workers, cores(), self.device.type)
        )

    def _forward_module(self) -> nn.Module:
        forward = self.state.model
        if self.config.train.compile:
            forward = torch.compile(forward, dynamic=False)  # type: ignore[assignment]
        if self.procs.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            forward = DistributedDataParallel(
                forward, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        return forward

    def lr(self, step: int) -> float:
        """The learning rate of the step that follows `step` finished ones."""
        optim = self.config.optim
        return lr_at(
            step,
            peak=optim.peak_lr(self.config.train.batch),
            schedule=optim.schedule,
            epochs=self.config.train.epochs,
            steps_per_epoch=self.steps_per_epoch,
        )

    # -- what is read, logged, evaluated ---------------------------------------------------------

    def _read_outcomes(self) -> None:
        """Bring pending losses to the host; the one place that waits for the device."""
        if not self.pending:
            return
        values = torch.stack([torch.stack(pair) for pair in self.pending]).tolist()
        first = self.state.step - len(values) + 1
        self.pending = []
        for step, (loss, norm) in enumerate(values, first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._diverged(step, loss, norm)
            self.state.sums["loss"] += loss
            self.state.sums["grad_norm"] += norm
            self.state.sums["steps"] += 1

    def _log_train(self, lr: float) -> None:
        state = self.state
        now = time.monotonic()
        state.seconds += now - self.last_read
        self.last_read = now
        steps = state.sums["steps"]
        rate = state.step * self.config.train.batch / max(state.seconds, 1e-9)
        loss = state.sums["loss"] / steps
        line: dict[str, Any] = {
            "kind": "train",
            "step": state.step,
            "epoch": round(state.step / self.steps_per_epoch, 4),
            "loss": loss,
            "grad_norm": state.sums["grad_norm"] / steps,
            "lr": lr,
            "images_per_second": round(rate, 1),
            "seconds": round(state.seconds, 3),
        }
        state.sums.update(loss=0.0, grad_norm=0.0, steps=0.0)
        self.folder.metric(line)
        self.progress.update(state.step, note=f"{rate:,.0f} img/s  loss {loss:.3f}")

    def _evaluates(self, epoch: int) -> bool:
        if "val" not in self.data.splits:
            return False
        t = self.config.train
        return epoch % t.eval_every_epochs == 0 or epoch == t.epochs

    def _evaluate(self) -> None:
        """Raw and EMA weights on validation; training time does not count it."""
        state = self.state
        state.seconds += time.monotonic() - self.last_read
        self._renew_norms()
        raw = evaluate(state.model, self._val_batches, self.settings)
        main = raw
        if state.ema is not None:
            main = evaluate(state.ema.module, self._val_batches, self.settings)
        line: dict[str, Any] = {
            "kind": "eval",
            "step": state.step,
            "epoch": state.step // self.steps_per_epoch,
            "split": "val",
        }
        line |= {k: main[k] for k in ("n", "top1", "top5", "loss")}
        line["n"] = int(line["n"])
        line |= {f"{k}_raw": raw[k] for k in ("top1", "top5", "loss")}
        for name in self._val_batches.skipped:
            self._tell_once(f"not evaluated on broken file {name}")
        if line["top1"] > state.best.get("top1", -1.0):
            state.best = {"top1": line["top1"], "epoch": line["epoch"]}
        state.last_eval = {k: v for k, v in line.items() if k != "kind"}
        self.folder.metric(line)
        which = "" if state.ema is None else f" (EMA; raw {raw['top1']:.2f})"
        self.progress.line(
            f"epoch {line['epoch']:>3}/{self.config.train.epochs}  "
            f"val top1 {line['top1']:.2f}{which}  loss {line['loss']:.3f}"
        )
        self.last_read = time.monotonic()

    def _renew_norms(self) -> None:
        """BatchNorm's statistics from the images of the steps to come, unmixed, in train mode."""
        steps = self.config.train.precise_bn_images // self.config.train.batch
        names = norms_in_training(self.state.model) if steps else []
        if not names:
            return
        s, start = self.settings, self.state.step
        models = [self.state.model, *([self.state.ema.module] if self.state.ema else [])]
        with (
            open_train(
                self.data,
                self.config.data,
                self.plan,
                self.device,
                start,
                start + steps,
                held=self.held,
            ) as batches,
            autocast(s.precision, self.device),
        ):
            images = (ready_images(micro, s) for micros in batches for micro in micros)
            renew(models, names, images, self.procs)

    @functools.cached_property
    def _val_batches(self) -> EvalLoader:
        return open_eval(
            self.data.splits["val"],
            self.data,
            self.config.data,
            self.plan,
            self.device,
            batch=EVAL_BATCH,
        )

    def _note_skipped(self, names: Iterable[str]) -> None:
        for name in names:
            self.state.skipped += 1
            self._tell_once(f"skipped broken file {name}, in this and every later epoch")

    # -- saving, ending --------------------------------------------------------------------------

    def _save_due(self) -> bool:
        t = self.config.train
        by_steps = t.save_every_steps is not None and self.state.step % t.save_every_steps == 0
        return by_steps or time.monotonic() - self.last_save >= t.save_every_seconds

    def _save(self) -> None:
        self._read_outcomes()
        now = time.monotonic()
        self.state.seconds += now - self.last_read
        self.last_read = self.last_save = now
        if self.procs.first:
            self.folder.sync()
            extra = {
                "threads": torch.get_num_threads(),
                "device": str(self.device),
                "seed_order": self.plan.seed_order,
                "seed_augment": self.plan.seed_augment,
            }
            self.state.save(self.folder.checkpoints, extra, keep=self.config.train.keep_checkpoints)

    def _resume(self) -> None:
        found, troubles = latest_checkpoint(self.folder.checkpoints)
        for trouble in troubles:
            self._tell(trouble)
        if found is None:
            self.folder.cut_back(0)
            for line in begin(self.initial, self.state, self.data.classes):
                self._tell(line)
            return
        extra = self.state.load(found)
        self.folder.cut_back(self.state.step)
        threads, here = int(extra.get("threads", 0)), torch.get_num_threads()
        if self.device.type == "cpu" and threads and threads != here:
            if self.config.train.threads is None:
                torch.set_num_threads(threads)  # machine_settings puts the old number back
                self._tell(f"using {counted(threads, 'thread')} as the run did before, not {here}")
            else:
                self._tell(
                    f"train.threads is {here} but the run had {threads}: "
                    "it goes on, not bit-exactly"
                )
        self._tell(f"resumed at step {self.state.step} of {self.total_steps} from {found}")

    def _interrupt(self, number: int) -> None:
        self._save()
        name = signal.Signals(number).name
        raise InterruptedRun(
            f"Stopped by {name} at step {self.state.step} of {self.total_steps}; state saved.",
            f"Go on with: vitc train {self.folder.path}",
            number,
        )

    def _diverged(self, step: int, loss: float, norm: float) -> None:
        found, _ = latest_checkpoint(self.folder.checkpoints)
        raise DivergedError(
            f"Diverged at step {step} of {self.total_steps}: loss {loss}, gradient norm {norm}, "
            f"lr {self.lr(step - 1):.3g}. No weight took that step. "
            f"Last good checkpoint: {found or 'none'}.",
            "Lower --optim.lr, lengthen --optim.schedule.warmup_epochs, or set "
            "--optim.clip_norm 1.",
        )

    def _finish(self) -> RunResult:
        self._save()
        summary = self._close("done")
        self.progress.line(
            f"done in {duration(self.state.seconds)}{self._in_words(summary)}  ->  "
            f"{self.folder.path}"
        )
        return RunResult(self.folder.path, "done", summary["top1"], summary)

    def _in_words(self, summary: Mapping[str, Any]) -> str:
        if summary["top1"] is None:
            return "; there were no validation images to measure it on"
        n = int(self.state.last_eval["n"])
        low, high = wilson(summary["top1"], n)
        return (
            f": val top1 {summary['top1']:.2f} % (95 % interval {low:.1f}-{high:.1f} on "
            f"{counted(n, 'image')}), best {summary['top1_best']:.2f} %"
        )

    def _close(self, status: str, error: Exception | None = None) -> dict[str, Any]:
        """Write summary.json; a run that failed says so and why."""
        state, last = self.state, self.state.last_eval
        summary: dict[str, Any] = {
            "status": status,
            "run": str(self.folder.path),
            "top1": last.get("top1"),
            "top1_raw": last.get("top1_raw"),
            "top1_best": state.best.get("top1"),
            "top5": last.get("top5"),
            "step": state.step,
            "total_steps": self.total_steps,
            "epochs": self.config.train.epochs,
            "train_seconds": round(state.seconds, 3),
            "images_per_second": round(
                state.step * self.config.train.batch / max(state.seconds, 1e-9), 1
            ),
            "skipped_files": state.skipped,
            "peak_memory_bytes": peak_memory(self.device),
            "data_fingerprint": self.data.fingerprint,
            "device": describe(self.device),
            **environment(),
        }
        if error is not None:
            summary["error"] = str(error)
            self.folder.event(f"{status}: {error}")
        else:
            self.folder.event(f"{status} at step {state.step}")
        self.folder.write_summary(summary)
        return summary

    # -- words -----------------------------------------------------------------------------------

    def _introduce(self) -> None:
        t, counts = self.config.train, {n: len(s.labels) for n, s in self.data.splits.items()}
        for note in self.data.notes:
            self._tell(note)
        slow = precision_note(t.precision, self.device)
        if slow:
            self._tell(slow)
        images = ", ".join(f"{n} {count:,}" for n, count in counts.items())
        self.progress.line(
            f"{self.config.name}: {self.config.model.name} on {self.data.source} "
            f"({images} images, {len(self.data.classes)} classes), "
            f"{counted(t.epochs, 'epoch')} of {counted(self.steps_per_epoch, 'step')}, "
            f"batch {t.batch}, {t.precision}, on {describe(self.device)}"
        )

    def _tell_once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self._tell(text)

    def _tell(self, text: str) -> None:
        self.folder.event(text)
        self.progress.line(text)
