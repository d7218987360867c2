"""A run from config to summary: resume, take steps, log, evaluate, save."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from vitc.config import RunConfig, leaves
from vitc.data.check_quick import quick_warnings
from vitc.data.dataset import open_data
from vitc.data.loader import Provider, TrainLoader, open_train
from vitc.errors import DivergedError, InterruptedRun, LostProcess, RunError
from vitc.plugins.consent import with_sources
from vitc.progress import Progress
from vitc.runs.checkpoint import TrainState, latest_checkpoint
from vitc.runs.folder import Run, RunFolder
from vitc.runs.images import images_of_weights, leaks
from vitc.runs.writer import Writer
from vitc.training.best import forget_undone, keep_if_best, return_to_better, without_patience
from vitc.training.build import Setup, data_record, fresh_state, initial_model, set_up, train_mode
from vitc.training.cached_features import check_memory
from vitc.training.compiling import compiled_steps, with_compile
from vitc.training.device import forget_peak_memory, kind_of, machine_settings, pick_device
from vitc.training.evaluate import not_finite
from vitc.training.guard import KEEP_GOOD, Guard
from vitc.training.initialise import InitialWeights, resume
from vitc.training.linear_probe import classifier
from vitc.training.log import RunLog
from vitc.training.pace import CLOCKS, SAVING_SECONDS, Pace
from vitc.training.parallel import in_processes, is_restart, processes
from vitc.training.profiling import StepProfile
from vitc.training.retention import Retention
from vitc.training.settle import check_same_data, settled
from vitc.training.space import checkpoint_bytes, room_for_checkpoints
from vitc.training.step import NormStatistics, train_step
from vitc.training.stop import StopSignal
from vitc.training.trackers import check_installed, open_tracker
from vitc.training.validate import Validation, evaluation_steps

STATUSES: dict[type[Exception], str] = {
    DivergedError: "diverged",
    InterruptedRun: "interrupted",
    LostProcess: "interrupted",
}


class Taken(NamedTuple):
    """A step whose results are not yet read."""

    step: int
    position: float
    """In the plan, after it."""
    lr: float
    results: dict[str, Tensor]


@dataclass(frozen=True)
class RunResult:
    """How a run ended; `summary` is the content of its summary.json.

    After training on images of one's own with settings chosen for them: `report`, the run page,
    and `evaluation`, what `vitc.evaluate` found for it on validation.
    """

    path: Path
    status: str
    top1: float | None
    summary: dict[str, Any] = field(repr=False)
    report: Path | None = None
    evaluation: Any = field(default=None, repr=False)


def run(
    config: RunConfig,
    out: Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    notes: Sequence[str] = (),
    allow_changed_data: bool = False,
    inspect: bool = False,
    changes: bool = False,
    choosing: float = 0.0,
) -> RunResult:
    """Run `config` in the folder `out`, from its last checkpoint if it has one.

    `notes`: lines for the run's events.log (why the config is as it is); `choosing`: seconds that
    choosing it took. `allow_changed_data`: resume although the images are not those that the run
    began with; its folder notes it. `inspect`: warn of what two seconds of looking find in the
    images of a new run. `changes`: the learning rate, schedule and length may be others than so far
    (`vitc.runs.legs`). Raises ConfigError (another config or a finished run is there), DataError,
    DivergedError (the loss diverged), InterruptedRun (SIGTERM or Ctrl-C; state saved), RunError.
    """
    config.checked()
    check_installed(config.train.track)
    entered = time.monotonic()
    started = CLOCKS[config.train.clock]()
    config = with_sources(config, out)
    device = pick_device(config.train.device)
    overwrite = overwrite and not is_restart()
    initial = InitialWeights(config.init)
    with processes(device) as procs, machine_settings(config.train, device):
        config, legs, begun, decided = settled(
            config, out, overwrite, device, initial, procs, changes
        )
        data = open_data(config.data, config.model.in_chans)
        check_same_data(data, procs)
        config, compiling = with_compile(config, data, device, out if begun else None, procs)
        setup = set_up(config, data, device, procs, legs)
        if config.init.weights and not begun:  # weights that do not fit create no folder
            fresh = initial_model(config, len(data.classes))
            initial.load(fresh, data.classes)
            if config.init.probe_images:
                classifier(fresh)
        check_memory(setup)
        folder = RunFolder.open(
            out, config, overwrite=overwrite, writer=procs.first, legs=legs, changes=changes
        )
        procs.wait()  # nobody reads checkpoints that the first process is about to remove
        with folder:
            earlier = None if begun else images_of_weights(config.init.weights)
            if procs.first:
                folder.write_data(data_record(config, data), data, allow_changed_data, earlier)
            each = setup.steps_per_epoch
            state = fresh_state(config, len(data.classes), each, device, legs)
            pace = Pace.of(config.train, setup.steps, started, evaluation_steps(setup, state))
            for note in (*notes, *decided, *compiling):
                folder.event(note)
            keep = Retention.of(config.train, setup.steps_per_epoch).count(setup.steps)
            keep += KEEP_GOOD if config.train.on_divergence == "rollback" else 0
            crowded = room_for_checkpoints(
                out, checkpoint_bytes(state.model, config.optim, state.ema is not None), keep
            )
            quiet = quiet or not procs.first
            with (
                Progress(config.name, setup.steps, "steps", quiet=quiet) as progress,
                StopSignal() as stop,
            ):
                kind = config.train.track if procs.first else "none"
                followed = open_tracker(kind, out, config.name, leaves(config))
                log = RunLog(setup, folder, progress, followed)
                log.spent.begin(entered, choosing)
                if procs.watch is not None and procs.first:
                    procs.watch.report = log.note
                log.introduce()
                if inspect and procs.first and not begun and config.data.path is not None:
                    for text in quick_warnings(config.data, data):
                        log.note(f"Warning: {text}")
                for line in (*leaks(earlier, data), *([crowded] if crowded else [])):
                    log.note(line)
                guard = Guard(setup, state, folder, log)
                return Trainer(setup, state, folder, log, stop, pace, guard, initial).run()


class Trainer:
    """One run in one process, from the step that `state` is at to the last."""

    def __init__(
        self,
        setup: Setup,
        state: TrainState,
        folder: RunFolder,
        log: RunLog,
        stop: StopSignal,
        pace: Pace,
        guard: Guard,
        initial: InitialWeights,
    ) -> None:
        self.setup, self.state, self.folder = setup, state, folder
        self.log, self.stop, self.pace, self.guard = log, stop, pace, guard
        self.initial = initial
        self.writer = Writer(folder, log.note_once)
        self.retention = Retention.of(setup.config.train, setup.steps_per_epoch)
        self.checked = False  # whether checkpoints can hold what the optimizer keeps
        self.unevaluated = False  # an evaluation was broken off: it comes before any further step
        self.validation = Validation(setup, state, self._asked)
        wanted = setup.config.train.profile and setup.procs.first
        self.profile = StepProfile(folder.path, setup.device, wanted)
        self.pending: list[Taken] = []
        self.counted_until = 0.0  # time.monotonic() up to which state.seconds counts
        self.saved_at = 0.0  # time.monotonic() of the last checkpoint

    def run(self) -> RunResult:
        setup, state, log = self.setup, self.state, self.log
        spent = log.spent
        try:
            # Of several processes none may leave the others waiting for it.
            stop = self.stop if setup.procs.world == 1 else None
            kept, cached = resume(setup, state, self.folder, log, self.initial, self.pace, stop)
            self.guard.resume(kept)
            self.unevaluated = bool(kept.get("unevaluated"))
            forget_peak_memory(setup.device)
            log.start(state.step)
            self.counted_until = self.saved_at = time.monotonic()
            with setup.procs.losses_reported(), contextlib.ExitStack() as stack, self.writer:
                stack.callback(self.profile.stop)
                batches = stack.enter_context(self._open(cached))
                spent.opened(batches)
                self.folder.event(batches.note)
                self._steps(batches)
                while self.guard.asked is not None:
                    self._roll_back()
                    batches = stack.enter_context(self._open(batches.provider))
                    spent.opened(batches)
                    self._steps(batches)
                if not self.pace.ended:
                    raise RunError(f"The loader ended at step {state.step} of {setup.steps}.")
                for line in self.profile.close():
                    self.log.note(line)
                self._keep_best()
                self._count_time()
                self._save(wait=True)
                summary = self.log.close(state, "done", self.guard.summary)
                if setup.procs.first:
                    self.folder.drop_alternatives()
                return RunResult(self.folder.path, "done", summary["top1"], summary)
        except Exception as error:
            if not self.folder.finished:
                status = STATUSES.get(type(error), "failed")
                self.log.close(state, status, self.guard.summary, error)
            raise

    def _open(self, provider: Provider | None) -> TrainLoader:
        """The batches of the steps that are left."""
        setup = self.setup
        return open_train(
            setup.data,
            setup.config.data,
            setup.plan,
            setup.device,
            self.state.step,
            self.pace.most_steps,
            provider,
        )

    def _steps(self, batches: TrainLoader) -> None:
        """Take steps until the run ends, or has to be rolled back."""
        setup, state, t, pace = self.setup, self.state, self.setup.config.train, self.pace
        forward, compiled = state.model, compiled_steps(setup.config, state.model)
        if setup.procs.world > 1:
            forward = in_processes(forward, setup.device)
        train_mode(state.model)
        if self.unevaluated:
            self._evaluate(batches)
        skips, guard = t.on_divergence == "continue", self.guard
        norms = NormStatistics(state.model, setup.plan.micros_here, setup.procs, skips)
        if guard.good_step() and not pace.ended:
            guard.keep_good(self._extra(), self.writer)
        for micros in batches:
            self.writer.check()
            if pace.ended:  # of a run that was finished when it was last saved
                return
            lr = guard.lr(pace.position)
            left_out = guard.leaves_out(state.step + 1)
            if not left_out:
                guard.before_step()
                with compiled:
                    outcome = train_step(state, forward, micros, lr, norms, setup.settings)
            state.step += 1
            self._check_optimizer()
            setup.procs.at(state.step)
            before = pace.position
            pace.advance()
            if not left_out:
                self.pending.append(Taken(state.step, pace.position, lr, outcome))
                if state.ema is not None:
                    state.ema.update(state.model, pace.position, before)
            guard.after_step(micros[0], pace.position)
            for line in self.profile.step():
                self.log.note(line)
            for name in (name for micro in micros for name in micro.skipped):
                self.log.broken_file(state, name)

            logging = state.step % t.log_every_steps == 0
            epoch, within = divmod(state.step, setup.steps_per_epoch)
            keeping = guard.good_step()
            reading = logging or within == 0 or keeping or pace.ended
            if reading or setup.device.type != "cuda":
                self._read(batches.provider)
            if guard.asked is not None:
                return
            if logging:
                self._count_time()
                self.log.train_line(state, lr)
                self.log.beat(state, batches)
            if pace.replan(state.step):
                self.log.replanned(state, pace)
            if within == 0 or pace.ended:
                self.log.limit(batches)
            if self.validation.due(epoch, within == 0, pace.ended):
                self._evaluate(batches)
            elif pace.ended and setup.config.optim.schedule_free:  # of what is deployed
                Validation(setup, state).renew_norms(batches.provider)
            if logging or within == 0 or setup.procs.world == 1 or setup.device.type == "cpu":
                self._stop_if_asked(batches)
            by_steps = t.save_every_steps is not None and state.step % t.save_every_steps == 0
            due = by_steps or self.retention.stays(state.step, state.best.get("step"))
            # Clocks differ: processes must not read, and perhaps roll back, at different steps.
            if reading or setup.procs.world == 1:
                due = due or time.monotonic() - self.saved_at >= t.save_every_seconds
            if pace.ended:
                return
            if keeping:
                guard.keep_good(self._extra(), self.writer)
            if due:
                self._read(batches.provider)
                if guard.asked is not None:
                    return
                self._save()

    def _check_optimizer(self) -> None:
        """Refuse what no checkpoint can hold once a step has shown it, not hours later."""
        if not self.checked:
            self.state.check_optimizer()
            self.checked = True

    def _read(self, provider: Provider) -> None:
        """Bring what steps returned to the host; the one place that waits for the device."""
        if not self.pending:
            return
        taken, self.pending = self.pending, []
        results = [torch.stack(list(one.results.values())) for one in taken]
        for one, row in zip(taken, torch.stack(results).tolist(), strict=True):
            outcome = dict(zip(one.results, row, strict=True))
            if not all(map(math.isfinite, row)):
                self.writer.wait()  # before anybody looks for the last good state
                self.guard.bad_step(one.step, one.lr, outcome, provider)
            else:
                self.guard.observe(one.step, one.position, outcome)
                for name, value in outcome.items():
                    self.state.sums[name] += value
                self.state.sums["steps"] += 1
            if self.guard.asked is not None:
                return
        self.guard.read_vitals()

    def _roll_back(self) -> None:
        """Return to a good state, and make it the latest checkpoint."""
        self.pending = []
        self.writer.wait()
        used = self.pace.seconds()
        self.pace.resume(self.guard.roll_back(), self.state.step)
        self.pace.used = used  # time that was spent stays spent
        forget_undone(self.folder.checkpoints, self.state, self.setup.procs)
        self.saved_at = time.monotonic()
        self._save(wait=True)
        self.folder.cut_back(self.state.step)
        self.log.start(self.state.step)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.counted_until
        self.counted_until = now
        self.log.spent.lap("steps")

    def _evaluate(self, batches: TrainLoader) -> None:
        """Measure on validation; its time is not training time."""
        self._count_time()
        before = self.pace.seconds()
        line = self.validation.measure(batches.provider)
        self.unevaluated = line is None
        if line is None:
            self._evaluated()
            self._stop()
        self.pace.reserve = SAVING_SECONDS + self.pace.seconds() - before
        for name in self.validation.batches.skipped:
            self.log.note_once(f"not evaluated on broken file {name}")
        self.log.eval_line(line)
        self._stop_early(line)
        train_mode(self.state.model)
        self._evaluated()

    def _evaluated(self) -> None:
        """The time since it was counted was spent on an evaluation."""
        self.counted_until = time.monotonic()
        self.log.spent.lap("evaluation")

    def _stop_early(self, line: dict[str, Any]) -> None:
        """With train.patience: keep the weights if they are the best, end after too many worse."""
        t, state = self.setup.config.train, self.state
        if t.patience is None:
            return
        if self.setup.procs.first:
            self.writer.wait()  # it removes what is unfinished in that folder
            keep_if_best(self.folder.checkpoints, state, line)
        if without_patience(state, t.patience, t.eval_every_epochs) and not self.pace.ended:
            best = state.best
            self.log.note(
                f"stopped after epoch {line['epoch']} of {t.epochs}: {t.patience} evaluations no "
                f"better than {best['top1']:.2f} % after epoch {best['epoch']:.0f}"
            )
            self.pace.end()

    def _keep_best(self) -> None:
        """Return to better weights than the last, if there are any."""
        evaluations = None
        if self.setup.config.train.patience is not None:
            self.setup.procs.wait()
            evaluations = len(Run(self.folder.path).metrics("eval"))
        notes, line = return_to_better(self.folder.checkpoints, self.state, evaluations)
        if line is not None:
            self.log.eval_line(line)
        for note in notes:
            self.log.note(note)

    def _save(self, *, wait: bool = False) -> None:
        """Save a checkpoint; all results of steps have been read. `wait` until it is on disk."""
        self._count_time()
        self.saved_at = time.monotonic()
        self._check_finite()
        if not self.setup.procs.first:
            return
        keep, best = self.retention, self.state.best.get("step")
        self.writer.save(
            self.state.snapshot(self._extra()),
            lambda snapshot: snapshot.write(
                self.folder.checkpoints, keep=keep.last, stays=lambda step: keep.stays(step, best)
            ),
        )
        if wait:
            self.writer.wait()
        self.log.spent.lap("saving")

    def _extra(self) -> dict[str, Any]:
        """What a checkpoint holds besides the state."""
        return {
            **self.pace.state,
            **self.guard.kept,
            "threads": torch.get_num_threads(),
            "device": kind_of(self.setup.device),
            "seed_order": self.setup.plan.seed_order,
            "seed_augment": self.setup.plan.seed_augment,
            **self.log.kept,
            **({"unevaluated": True} if self.unevaluated else {}),
        }

    def _check_finite(self) -> None:
        """What no step guards: running statistics that are not finite must not be saved."""
        models = [self.state.model, *([self.state.ema.module] if self.state.ema else [])]
        for model in models:
            if where := not_finite(dict(model.named_buffers())):
                self.writer.wait()
                found, _ = latest_checkpoint(self.folder.checkpoints)
                raise DivergedError(
                    f"Diverged by step {self.state.step} of {self.log.steps}: {where}. "
                    f"Last good checkpoint: {found or 'none'}.",
                    "They come from an input image or an earlier layer; lower --optim.lr, or "
                    "train in fp32.",
                )

    def _asked(self) -> bool:
        """Whether this process, or as far as it knows another one, was asked to stop."""
        return self.setup.procs.asked(self.stop.number is not None)

    def _stop_if_asked(self, batches: TrainLoader) -> None:
        if self.setup.procs.any(self._asked(), self.setup.device) and not self.pace.ended:
            self._read(batches.provider)
            if self.guard.asked is None:  # else first to the good state, then stop
                self._stop()

    def _stop(self) -> NoReturn:
        self._save(wait=True)
        number = self.stop.number or signal.SIGTERM
        raise InterruptedRun(
            f"Stopped by {signal.Signals(number).name} at step {self.state.step} of "
            f"{self.log.steps}; state saved.",
            f"Resume with: vitc train {shlex.quote(str(self.folder.path))}",
            number,
        )
