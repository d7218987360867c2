"""What does a checkpoint hold of an optimizer, and how does it come back?

What it keeps for a parameter (`state[parameter]`) and in its groups, where that is tensors,
numbers, booleans, None or short strings, or lists, tuples and dicts of these. Anything else would
be missing after a resume, and the rest of the run would be another one without notice: it is
refused when the run begins, not when it is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitc.errors import CheckpointError
from vitc.runs.nested import CONTAINERS, MOST, PLAIN, Unfit, flattened, rebuilt, too_much
from vitc.runs.tensors import DTYPES, dtype_shape
from vitc.wording import size

KERNELS = frozenset({"fused", "foreach", "capturable", "differentiable"})
"""Entries of a group that choose torch's kernels: of this process, whatever a checkpoint holds."""
GROUP = ".groups."  # before a group's number in the file; no parameter's name begins with a dot
SMALL = 1 << 16  # elements of a tensor that any parameter may have

Groups = list[dict[str, Any]]


class Held(NamedTuple):
    """As it goes to disk."""

    tensors: dict[str, Tensor]
    """`<parameter>/<key>` and `.groups.<number>/<key>`; within containers, with the places."""
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
    within: list[str] = []  # names of tensors in containers
    on_host: list[str] = []

    def keep(name: str, key: Any, value: Any, like: Owner, plain: dict[str, Any]) -> None:
        def add(full: str, tensor: Tensor) -> None:
            if problem := _problem(tensor, like):
                raise Unfit(problem)
            if full in tensors:
                raise Unfit(f"two tensors of one name ({full})")
            tensors[full] = tensor
            if tensor is not value:
                within.append(full)
            if tensor.device.type == "cpu" != like.device.type:
                on_host.append(full)

        try:
            if not isinstance(key, str) or not key or "/" in key:
                raise Unfit("a name")
            made = flattened(value, f"{name}/{key}", add)
        except Unfit as error:
            place = name.replace(GROUP, "group ")
            raise _refused(optimizer, f"{key!r} of {place} as {error}") from error
        if not isinstance(value, Tensor):
            plain[key] = made

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
    if too_much(_values([*scalars.values(), *groups])):
        raise _refused(optimizer, f"strings, lists or dicts of more than {size(MOST)} as text")
    if twice := _shared(tensors, within, owned):
        raise _refused(optimizer, f"{twice[0]} in the memory of {twice[1]} (no clone)")
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
        and all(_rebuilds(group) and "params" not in group for group in record["groups"])
        and isinstance(record.get("scalars"), dict)
        and all(_rebuilds(plain) for plain in record["scalars"].values())
        and not too_much(_values([*record["scalars"].values(), *record["groups"]]))
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
    left = dict(values)

    def take(full: str, owner: Owner | None, counter: bool = False) -> Tensor:
        if full not in left:
            raise CheckpointError(f"{file.parent} is damaged: {file.name} lacks {full}.")
        value = left.pop(full)
        if owner is None or not _fits(value, owner):
            raise CheckpointError(
                f"{file} is damaged or of another model: it holds {full}, {dtype_shape(value)}.",
                "Use the config that the checkpoint was written with.",
            )
        # As torch: counters stay on the host unless the kernel reads them.
        host = full in on_host or (counter and not owner.on_device)
        device = torch.device("cpu") if host else owner.device
        copy = torch.empty_strided(value.shape, strides[full], dtype=value.dtype, device=device)
        return copy.copy_(value)

    found: dict[str, dict[str, Any]] = {}
    plain = {f"{GROUP}{i}": numbers for i, numbers in enumerate(record["groups"])}
    for name in record["scalars"]:
        if name not in owned:
            raise CheckpointError(f"{file.parent} is damaged: optimizer state of {name!r}.")
    for name, entries in {**record["scalars"], **plain}.items():
        of = partial(take, owner=owners[name])
        found[name] = {k: rebuilt(made, f"{name}/{k}", of) for k, made in entries.items()}
    for full in list(left):  # those in no container
        name, _, key = full.rpartition("/")
        entries = found.setdefault(name, {})
        owner = owners.get(name) if key and key not in entries else None
        entries[key] = take(full, owner, key in ("step", "mu_product"))
    state = {owned[name][0]: entries for name, entries in found.items() if name in owned}
    return state, [found[name] for name in plain]


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


def _problem(value: Tensor, owner: Owner) -> str:
    """Why a checkpoint cannot hold it; empty: it can."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        return f"{type(value).__name__} ({value.layout})"
    return "" if _fits(value, owner) else f"{dtype_shape(value)}"


def _shared(
    tensors: Mapping[str, Tensor], within: list[str], owned: Mapping[str, tuple[Tensor, Owner]]
) -> tuple[str, str] | None:
    """A tensor of a container that begins where another or a parameter does, and that one: what
    changes one changes both, which after a resume would be apart."""
    if not within:  # nearly always
        return None
    places = {parameter.data_ptr(): name for name, (parameter, _) in owned.items()}
    inner = set(within)
    places |= {t.data_ptr(): name for name, t in tensors.items() if name not in inner}
    for name in within:
        other = places.setdefault(tensors[name].data_ptr(), name)
        if other != name and tensors[name].numel():
            return name, other
    return None


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
    """Whether an entry of a group, given as in `before`, may have become `value`: what a switch or
    a container was stays one, what a string or a function was stays as it was."""
    if key in KERNELS:
        return False
    was = before.get(key)
    if type(was) in (bool, *CONTAINERS):
        return type(value) is type(was)
    number = isinstance(was, int | float | Tensor) and type(value) not in (str, *CONTAINERS)
    return was is None or number


def _rebuilds(values: object) -> bool:
    if not isinstance(values, dict):
        return False
    try:
        for made in values.values():
            rebuilt(made, "", lambda _: None)
    except Unfit:
        return False
    return True


def _values(of: list[dict[str, Any]]) -> list[Any]:
    return [value for one in of for value in one.values()]


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
        "A checkpoint holds tensors, numbers, booleans, None and short strings, and lists, tuples "
        "and dicts of these, in state[parameter] or in a group. Keep it in that way in the class, "
        "or restart with another --optim and --overwrite.",
    )
