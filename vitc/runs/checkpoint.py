"""Everything that changes during a run, and its way to disk and back, bit for bit.

A checkpoint is a folder `checkpoints/step_N`:

    model.safetensors   the model's state_dict
    ema.safetensors     the average's, under the same names; absent without one
    optim.safetensors   `<parameter name>/<key>`, e.g. `blocks.0.mlp.fc1.weight/exp_avg`, and
                        `.groups.<number>/<key>`; in lists and the like `<key>/<place>`
    state.json          counters, memory formats, SHA-256 of the files above and of itself

It is written under a temporary name, every file and folder is synced, then it is renamed;
`checkpoints/latest`, the name of the newest, is replaced last. Nothing in it is executed or
unpickled. Tensors on disk are contiguous (the format knows no other) and get their strides back.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitc import files
from vitc.errors import CheckpointError
from vitc.files import TEMPORARY, discard, plain, read_json, sync_folder
from vitc.optim.ema import Ema, OwnAverage
from vitc.runs import tensors as stored
from vitc.runs.folder import CHECKPOINT_NAME, CHECKPOINTS, LATEST, TRIES, Run
from vitc.runs.optimizer_state import held, put_groups, restored, settings_of, well_formed
from vitc.runs.tensors import dtype_shape, misfits, read_tensors, write_tensors
from vitc.wording import few

FORMAT = 1
VALUES = ("step", "seconds", "skipped", "best", "last_eval", "sums")  # of TrainState, as JSON
STATE = "state.json"
MODEL, EMA, OPTIM = "model.safetensors", "ema.safetensors", "optim.safetensors"


@dataclass(eq=False)
class TrainState:
    """All that a step changes; what it does not hold is a pure function of config and `step`.

    `model` is the bare module: not compiled, not wrapped for several processes.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | OwnAverage | None = None
    step: int = 0
    """Optimizer steps taken."""
    best: dict[str, float] = field(default_factory=dict)
    """The best validation so far: top1 and its epoch."""
    last_eval: dict[str, Any] = field(default_factory=dict)
    """The last line of validation; empty before the first."""
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Running sums since the last train line; an absent one is 0."""
    seconds: float = 0.0
    """Wall time of training so far."""
    skipped: int = 0
    """Broken files skipped so far."""

    def __post_init__(self) -> None:
        self._given = settings_of(self.optimizer)

    def check_optimizer(self) -> None:
        """Raises CheckpointError, as `snapshot`: as soon as a step has shown what it keeps."""
        held(self.model, self.optimizer, self._given)

    def _modules(self) -> dict[str, nn.Module]:
        return {MODEL: self.model, **({EMA: self.ema.module} if self.ema is not None else {})}

    def snapshot(self, extra: Mapping[str, Any]) -> Snapshot:
        """What a checkpoint of now holds, its tensors still those of the state. `extra` is plain
        JSON values for `load` to give back.

        Raises CheckpointError: the optimizer keeps what a checkpoint cannot hold.
        """
        optimizer = held(self.model, self.optimizer, self._given)
        parts: dict[str, Mapping[str, Tensor]] = {
            **{name: m.state_dict() for name, m in self._modules().items()},
            OPTIM: optimizer.tensors,
        }
        state = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in VALUES},
            "extra": extra,
            "optimizer": optimizer.record,
            "memory_formats": {name: stored.odd_strides(part) for name, part in parts.items()},
        }
        return Snapshot(self.step, parts, copy.deepcopy(state))

    def load(self, path: Path) -> dict[str, Any]:
        """Become what `path` (a `step_N` folder) holds, on the devices there are; returns `extra`.

        All is checked before anything is changed. Raises CheckpointError: missing, damaged, of
        another model (naming missing, unexpected and misshapen tensors) or another optimizer.
        """
        state = _verified(path)
        if (self.ema is not None) != (EMA in state["sha256"]):
            raise CheckpointError(
                f"{path} holds {'no' if self.ema else 'an'} average of the weights, but the run "
                f"keeps {'one' if self.ema else 'none'}.",
                "Resume with the optim.ema that the run started with.",
            )
        fills = []
        for name, module in self._modules().items():
            targets = module.state_dict(keep_vars=True)  # the parameters and buffers themselves
            values = read_tensors(path / name)
            check_fit(path / name, values, targets)
            fills.append((targets, values, _checked_strides(path, state, name, values)))
        values = read_tensors(path / OPTIM)
        strides = _checked_strides(path, state, OPTIM, values)
        record = state["optimizer"]
        entries, groups = restored(
            path / OPTIM, record, values, strides, self.model, self.optimizer
        )

        for targets, values, strides in fills:
            for name, target in targets.items():
                stored.fill(target, values[name], strides[name])
        self.optimizer.state.clear()
        self.optimizer.state.update(entries)
        put_groups(self.optimizer, self._given, groups)
        for name in VALUES:
            setattr(self, name, state[name])
        self.sums = defaultdict(float, self.sums)
        extra: dict[str, Any] = state["extra"]
        return extra


@dataclass(frozen=True)
class Snapshot:
    """A state at one step, as it goes to disk."""

    step: int
    parts: Mapping[str, Mapping[str, Tensor]]
    """The tensors of each file, by their names there."""
    state: Mapping[str, Any]
    """The content of state.json, but for the checksums."""

    def write(
        self, folder: Path, *, keep: int = 2, stays: Callable[[int], bool] = lambda step: False
    ) -> Path:
        """Write `folder/step_N`, make it the latest, then prune to `keep` and those of steps that
        `stays` names; returns its path.

        Raises CheckpointError where the disk is full or refuses: earlier checkpoints are kept, and
        training may continue.
        """
        final = folder / f"step_{self.step}"
        temporary = folder / f"{TEMPORARY}{final.name}"
        try:
            if not folder.exists():
                folder.mkdir(parents=True)
                sync_folder(folder.parent)
            files.remove_leftovers(folder)
            temporary.mkdir()
            _put_in_place(temporary, final, self._write_files(temporary))
            files.write_atomically(folder / LATEST, f"{final.name}\n")
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            last = "There is no earlier one."
            with contextlib.suppress(CheckpointError):
                if paths := _candidates(folder)[0]:
                    last = f"The last good one is {paths[0].name}."
            raise CheckpointError(
                f"The checkpoint of step {self.step} cannot be written to {folder}: "
                f"{error.strerror or error}. {last}",
                "Free space or repair the disk, then repeat the command to resume.",
            ) from error
        _prune(folder, self.step, keep, stays)
        return final

    def _write_files(self, folder: Path) -> dict[str, str]:
        """Returns the SHA-256 of those that hold tensors."""
        sha256 = {name: write_tensors(folder / name, part) for name, part in self.parts.items()}
        state = {**self.state, "sha256": sha256}
        text = _encode(state)
        text = _encode({**state, "self": hashlib.sha256(text.encode()).hexdigest()}, indent=1)
        files.write_file(folder / STATE, [text.encode()])
        return sha256


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest good checkpoint in `checkpoints/`, if any, and what is wrong with newer ones.

    Raises CheckpointError where all are damaged.
    """
    paths, troubles = _candidates(folder)
    for path in paths:
        try:
            _verified(path)
        except CheckpointError as error:
            troubles.append(error.message)
        else:
            return path, troubles
    if troubles:
        raise CheckpointError(
            f"No checkpoint in {folder} can be used.\n" + "\n".join(troubles),
            "Restore one from a backup, or restart with --overwrite.",
        )
    return None, []


def kept_with(path: Path) -> dict[str, Any]:
    """What was given to `snapshot` as `extra` for the checkpoint `path` (a `step_N` folder).

    Raises CheckpointError: missing or damaged.
    """
    extra: dict[str, Any] = _verified(path, only=())["extra"]
    return extra


def load_weights_of(path: str | Path, ema: bool = True) -> dict[str, Tensor]:
    """The weights of a run folder's last checkpoint, or of a `step_N` folder, on CPU.

    `ema`: the average, or the raw weights where the run keeps no average. Names, shapes and dtypes
    are the model's state_dict. Raises CheckpointError: none there, or damaged; an older
    checkpoint is never taken in silence.
    """
    path = Path(path)
    others: list[Path] = []
    try:
        if not (path / STATE).exists():
            others, troubles = _candidates(path / CHECKPOINTS)
            if troubles:
                raise CheckpointError("\n".join(troubles))
            if not others:
                raise _no_checkpoint(path)
            path = others.pop(0)
        state = _verified(path, only=(EMA, MODEL) if ema else (MODEL,))
        return read_tensors(path / (EMA if ema and EMA in state["sha256"] else MODEL))
    except CheckpointError as error:
        hint = f"Older checkpoints there: {', '.join(map(str, others))}."
        if not others:
            hint = error.hint or "Give the folder of a run, or one of its checkpoints/step_N."
        raise CheckpointError(error.message, hint) from error


def _no_checkpoint(path: Path) -> CheckpointError:
    """Of a run folder; a trial's may have been removed by its study (`vitc.study.kept`)."""
    beside = sorted(path.parent.glob(f"*/{CHECKPOINTS}/{LATEST}"))
    if Run(path).status != "done" or not (path / TRIES).exists():
        return CheckpointError(f"{path} holds no checkpoint.")
    kept = few((str(file.parent.parent) for file in beside), 3) or "none"
    return CheckpointError(
        f"{path} is a trial of a study, which has removed its checkpoints: those of each group's "
        "best and of the last to end are kept.",
        f"Trials that have theirs: {kept}. To keep all of a later study: --keep all.",
    )


def _numbered(folder: Path) -> list[tuple[int, bool, Path]]:
    """(step, whether it is no `.old`, path) of every checkpoint in a folder, newest first."""
    matches = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    found = [(int(m[1]), m[2] is None, path) for m, path in matches if m and path.is_dir()]
    return sorted(found, reverse=True)


def _candidates(folder: Path) -> tuple[list[Path], list[str]]:
    """Checkpoints in the order to try: the one `latest` names, then newest first; and troubles."""
    paths = [path for _, _, path in _numbered(folder)] if folder.is_dir() else []
    try:
        with open(folder / LATEST, encoding="utf-8", errors="replace") as file:
            name = file.read(100).strip()
    except FileNotFoundError:  # a kill before the first `latest`, or no checkpoint at all
        return paths, []
    except OSError as error:
        raise CheckpointError(f"{folder / LATEST} cannot be read: {error.strerror}.") from error
    named = [path for path in paths if path.name == name]
    if not named:
        return paths, [f"{folder / LATEST} names {name!r}, which is not there."]
    return named + [path for path in paths if path.name != name], []


def _verified(path: Path, only: Iterable[str] | None = None) -> dict[str, Any]:
    """The content of state.json, once it and the files it names (or `only` those) prove whole."""
    if not path.is_dir():
        raise CheckpointError(f"Checkpoint {path} does not exist.")
    state = read_json(path / STATE, CheckpointError, _decode)
    if type(state.get("format")) is int and state["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer vitc (format {state['format']}, here {FORMAT}).",
            "Update vitc.",
        )
    own = state.pop("self", None)
    try:
        found = hashlib.sha256(_encode(state).encode()).hexdigest()
    except RecursionError as error:
        raise CheckpointError(f"{path / STATE} is damaged: nested too deep.") from error
    if found != own or not _well_formed(state):
        raise CheckpointError(f"{path / STATE} is damaged: its checksum does not match.")
    for name, sha256 in state["sha256"].items():
        if only is None or name in only:
            try:
                with open(path / name, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise CheckpointError(f"{path / name} cannot be read: {error.strerror}.") from error
            if found != sha256:
                raise CheckpointError(f"{path / name} is damaged: its checksum does not match.")
    return state


def _well_formed(state: dict[str, Any]) -> bool:
    """Whether state.json has the parts that loading relies on: a stranger can forge a checksum."""
    return (
        state.get("format") == FORMAT
        and all(type(state.get(k)) is int and state[k] >= 0 for k in ("step", "skipped"))
        and type(state.get("seconds")) in (int, float)
        and all(isinstance(state.get(k), dict) for k in ("last_eval", "extra", "memory_formats"))
        and all(_all_numbers(state.get(k)) for k in ("best", "sums"))
        and isinstance(state.get("sha256"), dict)
        and {MODEL, OPTIM} <= set(state["sha256"]) <= {MODEL, OPTIM, EMA}
        and well_formed(state.get("optimizer"))
    )


def _all_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(type(v) in (int, float) for v in value.values())


def _put_in_place(temporary: Path, final: Path, sha256: dict[str, str]) -> None:
    """Rename a complete checkpoint to its name; at every instant a good one can be found.

    A checkpoint of the same step may be there. With the same tensors (saved before and after an
    evaluation) only state.json is new; a good one with others steps aside as `step_N.old`, which
    is a candidate too, until `latest` is written.
    """
    sync_folder(temporary)
    if final.exists():
        try:
            before = _verified(final)
        except CheckpointError:
            discard(final)
        else:
            if before["sha256"] == sha256:
                os.replace(temporary / STATE, final / STATE)
                sync_folder(final)
                shutil.rmtree(temporary, ignore_errors=True)
                return
            old = final.with_name(f"{final.name}.old")
            discard(old)
            os.replace(final, old)
    os.replace(temporary, final)
    sync_folder(final.parent)


def _prune(folder: Path, step: int, keep: int, stays: Callable[[int], bool]) -> None:
    """Leave `step`, the `keep - 1` before it and those that stay; later ones are damaged, or of an
    undone future."""
    kept = 0
    for number, whole, path in _numbered(folder):
        kept += whole and number <= step
        if not whole or number > step or (kept > max(1, keep) and not stays(number)):
            discard(path)


def _encode(state: Mapping[str, Any], indent: int | None = None) -> str:
    """Strict JSON that gives every float back bit for bit, also inf and nan."""
    exact = plain(state, non_finite=lambda v: {"$float": repr(v)})
    return json.dumps(exact, indent=indent, allow_nan=False, sort_keys=True)


def _decode(values: dict[str, Any]) -> Any:
    if set(values) == {"$float"} and values["$float"] in ("inf", "-inf", "nan"):
        return float(values["$float"])
    return values


def check_fit(path: Path, values: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not exactly those of the model, by name, shape and dtype."""
    there, here = ({n: dtype_shape(t) for n, t in part.items()} for part in (values, expected))
    problem = misfits(there, here)
    if problem:
        raise CheckpointError(
            f"{path} is of another model. {problem}.",
            "Use the config that the checkpoint was written with.",
        )


def _checked_strides(
    path: Path, state: dict[str, Any], part: str, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """The strides that each tensor of a part had; a forged entry must not reach the allocator."""
    found = {name: stored.row_major(tensor.shape) for name, tensor in tensors.items()}
    saved = state["memory_formats"].get(part)
    for name, stride in saved.items() if isinstance(saved, dict) else ():
        good = (
            name in tensors
            and isinstance(stride, list)
            and len(stride) == tensors[name].ndim
            and all(type(s) is int and 0 <= s < 1 << 62 for s in stride)
            and stored.is_dense(tensors[name].shape, stride)
        )
        if not good:
            raise CheckpointError(f"{path / STATE} is damaged: {stride!r} is no stride of {name}.")
        found[name] = tuple(stride)
    return found
