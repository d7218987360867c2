"""What does a checkpoint hold of an optimizer, and how does it come back?

What it keeps for a parameter (`state[parameter]`) and in its groups, where that is tensors,
numbers, booleans or None. Anything else would be missing after a resume, and the rest of the run
would be another one without notice: it is refused when the run begins, not when it is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitc.errors import CheckpointError
from vitc.runs.tensors import DTYPES, dtype_shape

PLAIN = (bool, int, float, type(None))
KERNELS = frozenset({"fused", "foreach", "capturable", "differentiable"})
"""Entries of a group that choose torch's kernels: of this process, whatever a checkpoint holds."""
GROUP = ".groups."  # before a group's number in the file; no parameter's name begins with a dot
SMALL = 1 << 16  # elements of a tensor that any parameter may have

Groups = list[dict[str, Any]]


class Held(NamedTuple):
    """As it goes to disk."""

    tensors: dict[str, Tensor]
    """`<parameter>/<key>` and `.groups.<number>/<key>`."""
    record: dict[str, Any]
    """The rest, as JSON."""


def settings_of(optimizer: Optimizer) -> Groups:
    """What the groups of a new optimizer hold besides parameters: what the config decides."""
    return [
        {key: _copied(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def held(model: nn.Module, optimizer: Optimizer, given: Groups) -> Held:
    """All that a checkpoint must hold of `optimizer`, whose groups began as `given`.

    Raises CheckpointError: it keeps something else.
    """
    owned = _owned(model, optimizer)
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    on_host = []

    def keep(name: str, key: Any, value: Any, like: Owner, plain: dict[str, Any]) -> None:
        if problem := _problem(key, value, like):
            place = name.replace(GROUP, "group ")
            raise _refused(optimizer, f"{key!r} of {place} as {problem}")
        if not isinstance(value, Tensor):
            plain[key] = value
            return
        tensors[f"{name}/{key}"] = value
        if value.device.type == "cpu" != like.device.type:
            on_host.append(f"{name}/{key}")

    for name, (parameter, owner) in owned.items():
        state = optimizer.state.get(parameter, {})
        if not isinstance(state, Mapping):
            raise _refused(optimizer, f"the state of {name} as {type(state).__name__}")
        for key, value in state.items():
            keep(name, key, value, owner, scalars.setdefault(name, {}))
    parameters = {parameter for parameter, _ in owned.values()}
    for of, state in optimizer.state.items():
        if of not in parameters and not (isinstance(state, Mapping) and not state):
            what = "another tensor" if isinstance(of, Tensor) else repr(of)[:100]
            raise _refused(optimizer, f"state of {what}, no parameter of the model")
    if len(optimizer.param_groups) != len(given):
        raise _refused(optimizer, f"{len(optimizer.param_groups)} groups, not {len(given)}")
    groups: Groups = []
    for i, (group, before) in enumerate(zip(optimizer.param_groups, given, strict=True)):
        groups.append({})
        for key, value in group.items():
            if not _is_state(key, value, before):
                continue
            if not _may_become(key, value, before):
                was, now = type(before[key]).__name__, type(value).__name__
                raise _refused(optimizer, f"{key!r} of group {i}, once {was}, as {now}")
            keep(f"{GROUP}{i}", key, value, _of_group(group), groups[-1])
    record = {
        "name": type(optimizer).__name__,
        "groups": groups,
        "scalars": {name: plain for name, plain in scalars.items() if plain},
        **({"on_host": on_host} if on_host else {}),
    }
    return Held(tensors, record)


def well_formed(record: object) -> bool:
    """Whether the JSON of a checkpoint has the parts that `restored` relies on."""
    return (
        isinstance(record, dict)
        and isinstance(record.get("name"), str)
        and isinstance(record.get("groups"), list)
        and all(_all_plain(group) and "params" not in group for group in record["groups"])
        and isinstance(record.get("scalars"), dict)
        and all(_all_plain(plain) for plain in record["scalars"].values())
        and isinstance(record.get("on_host", []), list)
    )


def restored(
    file: Path,
    record: dict[str, Any],
    values: Mapping[str, Tensor],
    strides: Mapping[str, tuple[int, ...]],
    model: nn.Module,
    optimizer: Optimizer,
) -> tuple[dict[Tensor, dict[str, Any]], Groups]:
    """What `optimizer.state` and its groups shall be, by a `well_formed` record and the tensors of
    `file`; nothing is changed yet. Raises CheckpointError: of another optimizer or model."""
    here = type(optimizer).__name__
    if record["name"] != here or len(record["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{file.parent} was written with optimizer {record['name']} "
            f"({len(record['groups'])} groups), but the run has {here} "
            f"({len(optimizer.param_groups)} groups).",
            "Resume with the config that the run started with.",
        )
    owned = _owned(model, optimizer)
    places = {f"{GROUP}{i}": _of_group(g) for i, g in enumerate(optimizer.param_groups)}
    owners = {**{name: owner for name, (_, owner) in owned.items()}, **places}
    on_host = {name for name in record.get("on_host", []) if isinstance(name, str)}
    found: dict[str, dict[str, Any]] = {}
    for full, value in values.items():
        name, _, key = full.rpartition("/")
        owner = owners.get(name)
        if owner is None or (name in places and not key) or not _fits(value, owner):
            raise CheckpointError(
                f"{file} is of another model: it holds {full}, {dtype_shape(value)}.",
                "Use the config that the checkpoint was written with.",
            )
        # As torch: counters stay on the host unless the kernel reads them.
        counted = key in ("step", "mu_product") and not owner.on_device
        host = counted or full in on_host
        device = torch.device("cpu") if host else owner.device
        copy = torch.empty_strided(value.shape, strides[full], dtype=value.dtype, device=device)
        found.setdefault(name, {})[key] = copy.copy_(value)
    for name, plain in record["scalars"].items():
        if name not in owned:
            raise CheckpointError(f"{file.parent} is damaged: optimizer state of {name!r}.")
        found.setdefault(name, {}).update(plain)
    state = {owned[name][0]: entries for name, entries in found.items() if name in owned}
    groups = [
        {**numbers, **found.get(f"{GROUP}{i}", {})} for i, numbers in enumerate(record["groups"])
    ]
    return state, groups


def put_groups(optimizer: Optimizer, given: Groups, groups: Groups) -> None:
    """Make the groups what they were: as `given`, but for what has changed since."""
    for group, before, saved in zip(optimizer.param_groups, given, groups, strict=True):
        for key in group.keys() - before.keys() - {"params"}:
            del group[key]
        group.update({key: _copied(value) for key, value in before.items()})
        group.update({k: v for k, v in saved.items() if _may_become(k, v, before)})


class Owner(NamedTuple):
    """What state belongs to: a parameter, or a group."""

    shape: torch.Size
    elements: int
    dtype: torch.dtype
    device: torch.device
    fused: bool
    on_device: bool
    """Whether counters are on the device."""


def _owned(model: nn.Module, optimizer: Optimizer) -> dict[str, tuple[Tensor, Owner]]:
    """The optimizer's parameters, by their names in the model, and what their state must fit."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[Tensor, Owner]] = {}
    for group in optimizer.param_groups:
        fused = bool(group.get("fused"))
        on_device = fused or bool(group.get("capturable"))
        for p in group["params"]:
            if p not in names:
                raise _refused(optimizer, f"a parameter {tuple(p.shape)} that is not the model's")
            owner = Owner(p.shape, p.numel(), p.dtype, p.device, fused, on_device)
            found[names[p]] = p, owner
    return found


def _of_group(group: Mapping[str, Any]) -> Owner:
    params: list[Tensor] = group["params"]
    device = params[0].device if params else torch.device("cpu")
    elements = sum(p.numel() for p in params)
    return Owner(torch.Size(), elements, torch.float32, device, False, True)


def _problem(key: object, value: object, owner: Owner) -> str:
    """Why a checkpoint cannot hold it; empty: it can."""
    if not isinstance(key, str) or not key or "/" in key:
        return "a name"
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
            return f"{type(value).__name__} ({value.layout})"
        return "" if _fits(value, owner) else f"{dtype_shape(value)}"
    # A float of another library, as numpy's, comes back as Python's, of the same bits.
    return "" if isinstance(value, float) or type(value) in PLAIN else type(value).__name__


def _fits(value: Tensor, owner: Owner) -> bool:
    """Whether a tensor can be state of `owner`.

    The most is a matrix of all its elements against each other. A fused kernel of the CPU does not
    look at shapes: state must have the parameter's there, or a file could make it write elsewhere.
    """
    if owner.fused:
        scalar = value.shape == torch.Size() and value.dtype == torch.float32
        return scalar or (value.shape == owner.shape and value.dtype == owner.dtype)
    return value.dtype in DTYPES and value.numel() <= max(SMALL, owner.elements**2)


def _is_state(key: str, value: object, before: Mapping[str, Any]) -> bool:
    """Whether an entry of a group is the optimizer's doing, or a number, not a setting as given."""
    if key == "params" or key in KERNELS:
        return False
    if isinstance(value, Tensor | float) or type(value) is int:
        return True
    return key not in before or not _same(value, before[key]) or _has_tensor(value)


def _may_become(key: str, value: object, before: Mapping[str, Any]) -> bool:
    """Whether an entry of a group, given as in `before`, may have become `value`: what a switch, a
    text or a function was is never a number."""
    if key in KERNELS:
        return False
    was = before.get(key)
    if type(was) is bool:
        return type(value) is bool
    return was is None or isinstance(was, int | float | Tensor)


def _all_plain(values: object) -> bool:
    return isinstance(values, dict) and all(type(v) in PLAIN for v in values.values())


def _copied(value: Any) -> Any:
    """A copy that later changes in place do not reach, of tensors and containers."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return {k: _copied(v) for k, v in value.items()} if type(value) is dict else value


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return a is b or (type(a) in (*PLAIN, str) and bool(a == b))


def _has_tensor(value: object) -> bool:
    if type(value) is dict:
        return any(map(_has_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def _refused(optimizer: Optimizer, what: str) -> CheckpointError:
    return CheckpointError(
        f"The optimizer {type(optimizer).__name__} keeps {what}, which a checkpoint cannot hold: "
        "the run could not be resumed.",
        "A checkpoint holds tensors, numbers, booleans and None, in state[parameter] or in a "
        "group. Restart with another --optim and --overwrite, or change the class.",
    )
