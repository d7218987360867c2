"""What a run reports: lines on the screen, metrics.jsonl, events.log and summary.json."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping
from typing import Any

from vitc.data.loader import TrainLoader
from vitc.machine import computes_bf16, cores, environment
from vitc.progress import Progress
from vitc.runs.checkpoint import TrainState
from vitc.runs.folder import RunFolder
from vitc.stats.proportions import learning_line, wilson
from vitc.training.build import Setup, largest_share
from vitc.training.device import describe, peak_memory
from vitc.training.pace import Pace
from vitc.training.trackers import Followed
from vitc.training.usage import Spent, Usage
from vitc.training.utilisation import utilisation, what_limits
from vitc.wording import counted, duration

FEW_STEPS = 50  # too few to blame the learning rate where nothing was learnt


class RunLog:
    """Writes what happens in a run to its folder and to stderr."""

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        progress: Progress,
        followed: Followed | None = None,
    ) -> None:
        self.setup, self.folder, self.progress = setup, folder, progress
        self.followed = followed
        self.started = time.monotonic()
        self.usage: Usage | None = None
        self.noted: set[str] = set()
        self.limit_noted = False
        self.loss_noted = False
        self.spent = Spent()
        self.broken: set[str] = set()  # files that training skipped
        self.steps = setup.steps  # of the whole run, as far as is known

    @property
    def kept(self) -> dict[str, Any]:
        """For a checkpoint, so that totals are of the whole run."""
        broken = {"broken": sorted(self.broken)} if self.broken else {}
        return {"spent": self.spent.whole(), **broken}

    def resume(self, kept: Mapping[str, Any]) -> None:
        """Resume with what `kept` gave then."""
        self.spent.earlier = kept.get("spent", {})
        self.broken = set(kept.get("broken", ()))

    def metric(self, line: Mapping[str, Any]) -> None:
        """Write a line to metrics.jsonl, and its numbers to the run's tracker."""
        self.folder.metric(line)
        if self.followed is not None:
            self.followed.log(line)
            if self.followed.lost:
                self.note_once(
                    f"Warning: tracking has stopped ({self.followed.lost}); metrics.jsonl has "
                    "everything"
                )

    def note(self, text: str) -> None:
        """Write a line to the screen and events.log."""
        self.folder.event(text)
        self.progress.line(text)

    def note_once(self, text: str) -> None:
        if text not in self.noted:
            self.noted.add(text)
            self.note(text)

    def broken_file(self, state: TrainState, name: str) -> None:
        """Training skips this file, which counts once."""
        if name not in self.broken:
            self.broken.add(name)
            state.skipped += 1
            self.note(f"skipped broken file {name}, in this and every later epoch")

    def _note_lost_output(self) -> None:
        """Once, in events.log: the run does not depend on its terminal."""
        if self.progress.lost and not self.loss_noted:
            self.loss_noted = True
            self.folder.event(
                f"stderr is lost ({self.progress.lost}): progress is in metrics.jsonl alone"
            )

    def introduce(self) -> None:
        """What is trained, on what, for how long, where."""
        setup, t = self.setup, self.setup.config.train
        for note in setup.data.notes:
            self.note(note)
        if t.precision == "bf16" and setup.device.type != "mps" and not computes_bf16(setup.device):
            self.note("bf16 is emulated on this device; --train.precision fp32 may be faster.")
        splits = ", ".join(f"{name} {len(s.labels):,}" for name, s in setup.data.splits.items())
        shares = f" in micro-batches of {t.micro}" if t.micro < t.batch else ""
        if setup.procs.world > 1:
            shares += f" over {setup.procs.world} processes"
        about = "about " if t.budget_seconds else ""  # the time decides how many
        self.progress.line(
            f"{setup.config.name}: {setup.config.model.name} on {setup.data.source} "
            f"({splits} images, {len(setup.data.classes)} classes), "
            f"{about}{counted(t.epochs, 'epoch')} of {counted(setup.steps_per_epoch, 'step')}, "
            f"batch {t.batch}{shares}, {t.precision}, on {describe(setup.device)}"
        )

    def start(self, step: int) -> None:
        """The first step is about to be taken after `step` earlier ones."""
        self.started = time.monotonic()
        self.usage = self.usage or Usage(self.setup, step)
        self.progress.start_at(step)
        if self.followed is not None:
            self.followed.start(step)

    def train_line(self, state: TrainState, lr: float) -> None:
        """Write the means since the last train line, and reset the sums."""
        steps = state.sums["steps"] or math.nan  # all of them may have been left out
        means = {name: state.sums[name] / steps for name in ("loss", "grad_norm")}
        state.sums.update(dict.fromkeys(state.sums, 0.0))
        rate = self._rate(state)
        self.metric(
            {
                "kind": "train",
                "step": state.step,
                "epoch": round(state.step / self.setup.steps_per_epoch, 4),
                **means,
                "lr": lr,
                "images_per_second": rate,
                "seconds": round(state.seconds, 3),
            }
        )
        note = f"{rate:,.0f} img/s  loss {means['loss']:.3f}"
        self.progress.update(state.step, note=note)
        self._note_lost_output()

    def beat(self, state: TrainState, batches: TrainLoader) -> None:
        """Every few seconds: what the run uses, for who looks on."""
        if self.usage is not None and self.usage.due:
            self.folder.beat(self.usage.look(state.step, state.model, batches, self.spent))

    def replanned(self, state: TrainState, pace: Pace) -> None:
        """The run has a time to end in, and its remaining steps were counted again."""
        steps = state.step + pace.left
        self.metric(
            {
                "kind": "pace",
                "step": state.step,
                "position": pace.position,
                "rate": pace.rate,
                "steps": steps,
                "used_seconds": round(pace.used, 3),
            }
        )
        self.steps = steps
        self.progress.update(state.step, total=steps)

    def _rate(self, state: TrainState) -> float:
        images = state.step * self.setup.config.train.batch
        return round(images / max(state.seconds, 1e-9), 1)

    def eval_line(self, line: dict[str, Any]) -> None:
        self.metric(line)
        average = self.setup.config.optim.average
        which = f" ({average}; raw {line['top1_raw']:.2f})" if average else ""
        each = self.setup.steps_per_epoch
        where = f"epoch {line['epoch']:>3}/{math.ceil(self.steps / each)}"
        if line["step"] % each:  # the time has ended the run within an epoch
            where = f"step {line['step']}/{self.steps}"
        self.progress.line(f"{where}  val top1 {line['top1']:.2f}{which}  loss {line['loss']:.3f}")

    def limit(self, batches: TrainLoader) -> None:
        """After the first epoch here: does reading images or computing limit the rate?"""
        if self.limit_noted:
            return
        self.limit_noted = True
        seconds, device = time.monotonic() - self.started, self.setup.device.type
        self.note(what_limits(batches.wait_seconds, seconds, batches.workers, cores(), device))

    def close(
        self,
        state: TrainState,
        status: str,
        guarded: Mapping[str, Any],
        error: Exception | None = None,
    ) -> dict[str, Any]:
        """Write summary.json, with the error where there was one; returns its content.

        guarded: `Guard.summary`.
        """
        setup, last = self.setup, state.last_eval
        mfu, used = None, ""
        if error is None and setup.procs.first:
            first = self.usage.first_step if self.usage else state.step
            images = (state.step - first) * setup.config.train.batch
            seconds = self.spent.here()["steps"]
            mfu, used = utilisation(setup, state.model, images, seconds, self.spent.whole())
            self.folder.event(used)
        summary: dict[str, Any] = {
            "status": status,
            "run": str(self.folder.path),
            "top1": last.get("top1"),
            "top1_raw": last.get("top1_raw"),
            "top1_best": state.best.get("top1"),
            "best_of": last.get("best_of"),
            "top5": last.get("top5"),
            "failed_to_learn": self._failed_to_learn(last),
            "step": state.step,
            "total_steps": state.step if status == "done" else self.steps,
            "epochs": setup.config.train.epochs,
            "train_seconds": round(state.seconds, 3),
            "time_spent": {name: round(s, 3) for name, s in self.spent.whole().items()},
            "images_per_second": self._rate(state),
            "mfu": mfu,
            "skipped_files": state.skipped,
            **guarded,
            "peak_memory_bytes": peak_memory(setup.device),
            "data_fingerprint": setup.data.fingerprint,
            "device": describe(setup.device),
            **environment(),
        }
        if error is not None:
            summary["error"] = str(error)
        outcome = f" at step {state.step}" if error is None else f": {error}"
        self.folder.event(f"{status}{outcome}")
        self.folder.write_summary(summary)
        if self.followed is not None:
            self.followed.close(status)
        if error is None:
            self._result(state, summary)
            self.progress.line(used)
        self._note_lost_output()
        return summary

    def _result(self, state: TrainState, summary: Mapping[str, Any]) -> None:
        """Print the result of a run that is done."""
        result = "; no validation images"
        if summary["top1"] is not None:
            n = int(state.last_eval["n"])
            low, high = wilson(summary["top1"], n)
            result = (
                f": val top1 {summary['top1']:.2f} % (95 % interval {low:.1f}-{high:.1f} on "
                f"{counted(n, 'image')}), best {summary['top1_best']:.2f} %"
            )
        took = duration(max(state.seconds, sum(summary["time_spent"].values())))
        self.progress.line(f"done in {took}{result}  ->  {self.folder.path}")
        if summary["failed_to_learn"]:
            where = shlex.quote(str(self.folder.path))
            advice = "a lower --optim.lr, a longer warm-up or more epochs"
            if state.step < FEW_STEPS:
                advice = f"more time or epochs: it took {counted(state.step, 'step')}"
            self.note(
                f"It failed to learn: {summary['top1']:.1f} % is near what always answering "
                f"one class gives. Try {advice}; "
                f"the loss is drawn by vitc show {where} --plot curves.png"
            )

    def _failed_to_learn(self, last: Mapping[str, Any]) -> bool | None:
        """Whether the last evaluation is near chance; None: there is none."""
        data = self.setup.data
        if last.get("top1") is None or len(data.classes) < 2:
            return None
        largest = largest_share(data.splits["val"].labels)
        return bool(100 - last["top1"] >= learning_line(len(data.classes), 0, largest))
