"""Which weights does a run start from? Those of its last checkpoint, or of `--init`, fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitc.config import RunConfig, read_config
from vitc.errors import ConfigError
from vitc.runs.checkpoint import TrainState, latest_checkpoint
from vitc.runs.folder import RunFolder
from vitc.training.build import Setup
from vitc.training.cached_features import CachedFeatures, cached_features
from vitc.training.config import InitConfig
from vitc.training.device import kind_of
from vitc.training.linear_probe import keep_start, probe_head, put_in_place
from vitc.training.log import RunLog
from vitc.training.pace import SAVING_SECONDS, Pace
from vitc.training.stop import StopSignal
from vitc.weights.fit import ADAPTABLE, fill
from vitc.weights.load import Weights, read_weights
from vitc.wording import counted, short


class InitialWeights:
    """The weights of `config.init`, read and hashed once, when they are first needed."""

    def __init__(self, init: InitConfig) -> None:
        self.init = init

    @cached_property
    def weights(self) -> Weights:
        """Raises CheckpointError and ConfigError as `read_weights`."""
        return read_weights(self.init.weights or "", self.init.source, self.init.average)

    def prepare(self, config: RunConfig, out: Path, begun: bool) -> tuple[RunConfig, list[str]]:
        """The config with the mean and standard deviation of the weights' images, and notes.

        A run that has `begun` in `out` keeps its own; its weights may no longer exist. Raises
        ConfigError: neither the weights nor the user give them; CheckpointError: no such weights.
        """
        data = config.data
        if not self.init.weights:
            return config, []
        if self.init.weights == str(out.absolute()):
            raise ConfigError(
                f"--init {self.init.weights} is the folder that the run itself would be written "
                "to.",
                "Choose another --out; or resume that run: vitc train RUN.",
            )
        notes: list[str] = []
        if begun:
            before = read_config(out).data
            mean, std = before.mean, before.std
        else:
            mean, std, notes = _mean_and_std(config, self.weights)
        if data.mean is not None:
            return config, notes
        data = dataclasses.replace(data, mean=mean, std=std)
        return dataclasses.replace(config, data=data), notes

    def load(self, model: nn.Module, classes: Sequence[str]) -> list[str]:
        """Load the weights, if there are any, into a fresh model; returns notes.

        The position embedding is resampled to the model's grid, BGR weights become RGB, and the
        head stays fresh if the classes differ. Raises CheckpointError and ConfigError as `fill`;
        nothing has changed then.
        """
        init = self.init
        if not init.weights:
            return []
        weights = self.weights
        notes = [
            f"starting from {weights.where} ({weights.source} layout, sha256 {weights.sha256[:12]})"
        ]
        fresh_head = weights.classes not in (None, tuple(classes)) and not init.only
        if fresh_head:
            notes.append("the head is fresh: the weights have other classes")
        adapt = list(ADAPTABLE)  # without being asked, each with a note in events.log
        if weights.preprocessing is None:  # the user has set mean and std, in RGB order
            adapt.remove("channels")
            notes.append("the weights do not state the order of their channels: taken as RGB")
        report = fill(model, weights, adapt=adapt, only=init.only, fresh_head=fresh_head)
        return [*notes, *report.adapted]


def _mean_and_std(config: RunConfig, weights: Weights) -> tuple[Any, Any, list[str]]:
    """mean, std in RGB order, and notes on them."""
    known, asked = weights.preprocessing, config.data.mean
    if known is None and asked is None:
        raise ConfigError(
            f"{weights.where} does not state the mean and standard deviation of its images.",
            "Set --data.mean R G B --data.std R G B (in [0, 1]); for example 0.5 0.5 0.5 twice for "
            "many timm ViTs, 0.485 0.456 0.406 and 0.229 0.224 0.225 for most others.",
        )
    if known is None:
        return asked, config.data.std, []
    mean, std = known.mean, known.std
    if known.channels == "bgr":
        mean, std = mean[::-1], std[::-1]
    if asked is not None:
        note = f"data.mean is {asked} as set; {weights.where} was trained with {mean}"
        return asked, config.data.std, [note] if asked != mean else []
    if len(mean) != config.model.in_chans:
        raise ConfigError(
            f"{weights.where} was trained on images of {len(mean)} channels, but model.in_chans is "
            f"{config.model.in_chans}.",
            f"Use --model.in_chans {len(mean)}: images are converted to that many channels.",
        )
    texts = [", ".join(f"{v:g}" for v in values) for values in (mean, std)]
    return mean, std, [f"images are prepared as for the weights: mean {texts[0]}, std {texts[1]}"]


def resume(
    setup: Setup,
    state: TrainState,
    folder: RunFolder,
    log: RunLog,
    initial: InitialWeights,
    pace: Pace,
    stop: StopSignal | None = None,
) -> tuple[dict[str, Any], CachedFeatures | None]:
    """Load the newest good checkpoint into `state`; where there is none, the initial weights.

    Returns what was saved with it besides the state, and the features to train on if not images.
    """
    found, damaged = latest_checkpoint(folder.checkpoints)
    for problem in damaged:
        log.note(problem)
    setup.procs.agree(
        {"checkpoint": found and found.name},
        f"different checkpoints of {folder.path}",
        "Put the run folder where all machines see it: --out DIR.",
    )
    if found is None:
        folder.cut_back(0)
        for line in initial.load(state.model, setup.data.classes):
            log.note(line)
        setup.procs.share(state.model)
        if setup.config.cached_parts or setup.config.init.probe_images:
            log.note("computing features of the images before the first step")
        cached = cached_features(setup, state.model, stop)
        if setup.config.init.probe_images:
            probed = probe_head(setup, state.model, cached, stop)
            put_in_place(state.model, probed)
            log.note(probed.line)
            pace.reserve = SAVING_SECONDS + probed.evaluation_seconds
            if setup.procs.first:
                keep_start(folder.checkpoints, state.model, probed)
        if state.ema is not None:
            state.ema.module.load_state_dict(state.model.state_dict())
        return {}, cached
    extra = state.load(found)
    log.resume(extra)
    pace.resume(extra, state.step)
    folder.cut_back(state.step)
    _note_machine(setup, extra, log)
    if setup.config.train.budget_seconds is not None:
        log.steps = state.step + pace.left
    log.note(f"resumed at step {state.step} of {log.steps} from {found}")
    return extra, cached_features(setup, state.model, stop)


def _note_machine(setup: Setup, extra: Mapping[str, Any], log: RunLog) -> None:
    """Take the threads that the run had; note where the next steps may differ in their bits."""
    was, now = short(str(extra.get("device", ""))), kind_of(setup.device)
    # Of an earlier version: cuda:0, without the GPU's name.
    sort = was.partition(":")[0]
    if was and now != was and now.partition(" ")[0] != sort:
        log.note(f"on {now}, before on {was}: not bit-exact from here")
    threads, here = int(extra.get("threads", 0)), torch.get_num_threads()
    if setup.device.type == "cpu" and threads and threads != here:
        if setup.config.train.threads is None:
            torch.set_num_threads(threads)  # machine_settings restores the old number
            log.note(f"using {counted(threads, 'thread')} as before, not {here}")
        else:
            log.note(f"train.threads was {threads} before and is {here}: not bit-exact from here")
