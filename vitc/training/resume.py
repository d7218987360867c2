"""When a run is saved, and how it is resumed from what was saved."""

from __future__ import annotations

import time

import torch

from vitc.runs.checkpoint import TrainState, latest_checkpoint
from vitc.runs.folder import RunFolder
from vitc.training.build import Setup
from vitc.training.initialise import InitialWeights, begin
from vitc.training.log import RunLog
from vitc.wording import counted


class Saver:
    """Writes the checkpoints of a run; only its first process does."""

    def __init__(self, setup: Setup, state: TrainState, folder: RunFolder) -> None:
        self.setup, self.state, self.folder = setup, state, folder
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save, by the steps or the seconds since the last checkpoint."""
        t = self.setup.config.train
        by_steps = t.save_every_steps is not None and self.state.step % t.save_every_steps == 0
        return by_steps or time.monotonic() - self.last >= t.save_every_seconds

    def save(self) -> None:
        self.last = time.monotonic()
        if not self.setup.procs.first:
            return
        self.folder.sync()
        extra = {
            "threads": torch.get_num_threads(),
            "device": str(self.setup.device),
            "seed_order": self.setup.plan.seed_order,
            "seed_augment": self.setup.plan.seed_augment,
        }
        keep = self.setup.config.train.keep_checkpoints
        self.state.save(self.folder.checkpoints, extra, keep=keep)


def resume(
    setup: Setup, state: TrainState, folder: RunFolder, log: RunLog, initial: InitialWeights
) -> None:
    """Load the newest good checkpoint into `state`, or begin where there is none."""
    found, damaged = latest_checkpoint(folder.checkpoints)
    for problem in damaged:
        log.note(problem)
    if found is None:
        folder.cut_back(0)
        for line in begin(initial, state, setup.data.classes):
            log.note(line)
        return
    extra = state.load(found)
    folder.cut_back(state.step)
    threads, here = int(extra.get("threads", 0)), torch.get_num_threads()
    if setup.device.type == "cpu" and threads and threads != here:
        if setup.config.train.threads is None:
            torch.set_num_threads(threads)  # machine_settings puts the old number back
            log.note(f"using {counted(threads, 'thread')} as the run did before, not {here}")
        else:
            log.note(
                f"train.threads is {here}, but the run had {threads} before: "
                "it is resumed, not bit-exactly"
            )
    log.note(f"resumed at step {state.step} of {setup.steps} from {found}")
