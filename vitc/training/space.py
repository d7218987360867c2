"""Is there room on the disk for a run's checkpoints? Asked before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from vitc.errors import RunError
from vitc.optim.config import OptimConfig
from vitc.runs.folder import CHECKPOINT_NAME, CHECKPOINTS
from vitc.wording import counted, size


def checkpoint_bytes(model: nn.Module, optim: OptimConfig, averaged: bool) -> int:
    """About what a checkpoint takes: weights, their average, and the optimizer's moments."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = optim.moments * sum(p.numel() * p.element_size() for p in trained)
    total: int = weights * (2 if averaged else 1) + moments
    return total


def room_for_checkpoints(folder: Path, needed: int, keep: int) -> str:
    """A warning where `keep` checkpoints of `needed` bytes, and one that is being written, do not
    fit into `folder`'s disk beside those that are there; empty: they do.

    Raises RunError: there is no room for a single one.
    """
    free = shutil.disk_usage(folder).free
    checkpoints = folder / CHECKPOINTS
    there = sum(1 for p in checkpoints.glob("step_*") if CHECKPOINT_NAME.fullmatch(p.name))
    more = max(1, keep + 1 - there)
    if free < needed:
        raise RunError(
            f"A checkpoint takes about {size(needed)}, but the disk of {folder} has "
            f"{size(free)} free.",
            "Free space, or choose another --out; then repeat the command.",
        )
    if free < more * needed:
        return (
            f"Warning: {counted(keep, 'checkpoint')} of about {size(needed)} (train."
            f"keep_checkpoints), and one being written, may not fit: {size(free)} are free."
        )
    return ""
