"""Which weights does a run keep: the last, with `train.patience` those of its best evaluation, or
those of the linear probe that it started from?

The best of several evaluations is chosen on validation, whose result is then a little too good:
`best_of` in summary.json is how many it was chosen from, and the run page warns of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from vitc import files
from vitc.runs.checkpoint import TrainState
from vitc.runs.folder import BEST
from vitc.runs.tensors import opened, read_tensors, write_tensors
from vitc.training.linear_probe import kept_start
from vitc.training.parallel import Processes


def keep_if_best(checkpoints: Path, state: TrainState, line: dict[str, Any]) -> None:
    """Save the weights and their average after an evaluation that is better than all before it."""
    if state.best.get("step") != line["step"]:  # an epoch may have two, at its end and the run's
        return
    tensors = {
        f"{i}.{k}": v for i, m in enumerate(_models(state)) for k, v in m.state_dict().items()
    }
    checkpoints.mkdir(parents=True, exist_ok=True)
    with files.replacing(checkpoints / BEST) as temporary:
        write_tensors(temporary, tensors, {"val": json.dumps(state.last_eval)})


def without_patience(state: TrainState, patience: int, every: int) -> bool:
    """Whether the last `patience` evaluations, one every so many epochs, were no better than the
    best before them."""
    return bool(state.last_eval["epoch"] - state.best["epoch"] >= patience * every)


def return_to_better(
    checkpoints: Path, state: TrainState, evaluations: int | None
) -> tuple[list[str], dict[str, Any] | None]:
    """Load better weights than the last, if there are any; notes, and what they reach as a line of
    metrics.jsonl where that has no such line. `evaluations`: how many there were, with patience."""
    notes = [return_to_best(checkpoints, state, evaluations) if evaluations is not None else None]
    before = state.last_eval.get("top1")
    notes.append(return_to_start(checkpoints, state, evaluations or 1))
    probed = state.last_eval.get("top1") != before
    return list(filter(None, notes)), {"kind": "eval", **state.last_eval} if probed else None


def return_to_best(checkpoints: Path, state: TrainState, evaluations: int) -> str | None:
    """Load the weights of the best evaluation, of so many; returns a note. None: there are none."""
    file = checkpoints / BEST
    if not file.exists():
        return None
    with opened(file) as kept:
        values = json.loads(kept.metadata()["val"])
    tensors = read_tensors(file)
    for i, model in enumerate(_models(state)):
        own = {k.removeprefix(f"{i}."): v for k, v in tensors.items() if k.startswith(f"{i}.")}
        model.load_state_dict(own)
    state.last_eval = {**values, "best_of": evaluations}
    return (
        f"kept the weights of epoch {values['epoch']}, the best of {evaluations} evaluations on "
        f"validation: {values['top1']:.2f} % was chosen there and is a little too good"
    )


def forget_undone(checkpoints: Path, state: TrainState, procs: Processes) -> None:
    """After a return to an earlier step: best weights from after it are none of this run. Those
    before them were not kept, so the next evaluation is the best."""
    file = checkpoints / BEST
    if not file.exists():
        return
    with opened(file) as kept:
        undone = json.loads(kept.metadata()["val"])["step"] > state.step
    procs.wait()
    if undone:
        state.best = {}
        if procs.first:
            file.unlink()


def return_to_start(checkpoints: Path, state: TrainState, evaluations: int) -> str | None:
    """Load the linear probe that the run started from, if validation prefers it to weights chosen
    among so many evaluations; returns a note. None: there is none to choose."""
    tuned = state.last_eval.get("top1")
    start = None if tuned is None else kept_start(checkpoints)
    if start is None or tuned is None:
        return None
    tensors, result = start
    probed = result["top1"]
    scores = f"on validation: the linear probe {probed:.2f} %, fine-tuned {tuned:.2f} %"
    state.last_eval["best_of"] = evaluations + 1
    if probed <= tuned:
        return f"kept the fine-tuned weights; {scores}"
    for model in _models(state):
        model.load_state_dict(tensors)
    state.last_eval |= result | {f"{name}_raw": value for name, value in result.items()}
    state.best["top1"] = max(state.best["top1"], probed)
    return f"kept the linear probe; {scores}"


def _models(state: TrainState) -> list[nn.Module]:
    return [state.model, *([state.ema.module] if state.ema is not None else [])]
