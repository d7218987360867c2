"""What optimizers keep comes back with a checkpoint, bit for bit, or is refused as a run begins."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.test_checkpoint import forge_state
from tests.test_loop import assert_same_run, stop_after, tiny
from vitc.config import RunConfig
from vitc.errors import CheckpointError
from vitc.runs.checkpoint import TrainState
from vitc.runs.folder import Run
from vitc.training.loop import run

Build = Callable[[Any], torch.optim.Optimizer]


class Adaptive(torch.optim.SGD):
    """With a step size in its groups: a tensor, numbers that come later, a switch, a None."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group.update(d=torch.tensor(1e-3), warm=True, best=None, text="as given", pair=(1, 2))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["d"] = group["d"] * 1.5
            group["late"] = group.get("late", 0) + 1
            group["warm"] = group["late"] < 2
            group["best"] = None if group["warm"] else torch.zeros(3, dtype=torch.bfloat16)
            group["lr"] = float(group["d"]) * group["late"] * (1 if group["warm"] else 0.5)
        super().step()


class Sketch(torch.optim.SGD):
    """With tensors of any shape and every plain value beside its parameters."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                s = self.state[p]
                s["flat"] = s.get("flat", torch.zeros(p.numel())) + p.grad.flatten()
                s["square"] = torch.outer(p.grad.flatten(), p.grad.flatten())
                s["seen"], s["first"], s["none"] = s.get("seen", 0) + 1, "seen" not in s, None
                p.grad.add_(s["flat"].view_as(p), alpha=0.1 * s["seen"])
        super().step()


class Soap(torch.optim.SGD):
    """As SOAP and Shampoo: a factor per dimension and its eigenvectors, `[]` or None for none."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["seen"] = [*group.get("seen", []), len(group.get("seen", []))]
            group["momentum_span"] = (0.5, group["momentum_span"][1] * 0.9)
            for p in group["params"]:
                s, wide = self.state[p], p.ndim == 2
                if not s:
                    s["GG"] = [torch.zeros(n, n) if wide else [] for n in p.shape]
                    s["mode"], s["shape"], s["kept"] = "waiting", tuple(p.shape), [None, [None, []]]
                    s["by"] = {"z": (torch.zeros(2), "x"), "a/b": {}, "$float": "inf", "": math.nan}
                    s["Q"] = None
                elif wide:
                    for i, gram in enumerate(s["GG"]):
                        flat = p.grad.transpose(0, i)
                        gram.lerp_(flat @ flat.T, 0.1)
                    # By columns in memory, which changes the bits of products with it.
                    s["Q"] = [torch.linalg.eigh(gram).eigenvectors for gram in s["GG"]]
                    s["kept"] = [s["kept"][0], [p.grad.abs().mean().sqrt(), [None, -math.inf]]]
                    s["by"]["z"] = (s["by"]["z"][0] + p.grad.sum(), "y")
                    s["mode"] = "on"
                if s["mode"] == "on" and isinstance(s["shape"], tuple):
                    left, right = s["Q"]
                    p.grad.copy_(left @ (left.T @ p.grad @ right).sign() @ right.T)
                    p.grad.mul_(group["momentum_span"][1] * s["kept"][1][0] + s["by"]["z"][0][0])
        super().step()


def soap(params: Any) -> Soap:
    optimizer = Soap(params, lr=0.1)
    optimizer.param_groups[0]["momentum_span"] = (0.5, 1.0)
    return optimizer


BUILDERS: dict[str, Build] = {
    "soap": soap,
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "group": Adaptive,
    "sketch": lambda p: Sketch(p, lr=0.1),
}


def fresh(build: Build, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    return TrainState(model, build(model.parameters()))


def advance(state: TrainState, steps: int) -> TrainState:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        state.optimizer.zero_grad()
        state.model(torch.randn(5, 4, generator=generator)).square().mean().backward()
        state.optimizer.step()
        state.step += 1
    return state


def all_of(state: TrainState) -> dict[str, Any]:
    o = state.optimizer
    found: dict[str, Any] = {f"model {k}": v for k, v in state.model.state_dict().items()}
    for i, p in enumerate(state.model.parameters()):
        found |= {f"state {i} {k}": v for k, v in o.state.get(p, {}).items()}
    for i, group in enumerate(o.param_groups):
        found |= {f"group {i} {k}": v for k, v in group.items() if k != "params"}
    return {k: exactly(v) for k, v in found.items()}


def exactly(value: Any) -> Any:
    """By type, order and bits (nan is no nan's equal)."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, value.stride(), value.tolist()
    if isinstance(value, dict):
        return dict, [(key, exactly(v)) for key, v in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [exactly(v) for v in value]
    return type(value), value.hex() if isinstance(value, float) else value


@pytest.mark.parametrize("name", list(BUILDERS))
@pytest.mark.parametrize("steps", [1, 3])
def test_tensors_of_any_shape_numbers_and_what_groups_hold_come_back(
    tmp_path: Path, name: str, steps: int
) -> None:
    straight = advance(fresh(BUILDERS[name]), steps)
    path = straight.snapshot({}).write(tmp_path)
    resumed = fresh(BUILDERS[name], seed=9)
    resumed.load(path)
    assert all_of(resumed) == all_of(straight)
    assert all_of(advance(resumed, 3)) == all_of(advance(straight, 3))


@pytest.mark.cuda
def test_what_lies_on_the_host_comes_back_there(tmp_path: Path) -> None:
    def build() -> TrainState:
        model = nn.Linear(4, 3).cuda()
        return TrainState(model, Adaptive(model.parameters()))

    state = build()
    for p in state.model.parameters():
        host, device = torch.ones(2), torch.ones(2, device="cuda")
        state.optimizer.state[p].update(host=host, device=device)
        state.optimizer.state[p]["both"] = [host.clone(), (device.clone(),)]
    path = state.snapshot({}).write(tmp_path)
    resumed = build()
    resumed.load(path)
    entries = resumed.optimizer.state[next(resumed.model.parameters())]
    host, (device,) = entries.pop("both")
    assert (host.device.type, device.device.type) == ("cpu", "cuda")
    assert {k: v.device.type for k, v in entries.items()} == {"host": "cpu", "device": "cuda"}
    assert resumed.optimizer.param_groups[0]["d"].device.type == "cpu"


def test_a_rollback_undoes_what_groups_have_got_since(tmp_path: Path) -> None:
    state = fresh(Adaptive)
    before = all_of(state)
    path = state.snapshot({}).write(tmp_path)
    advance(state, 3)
    state.load(path)
    assert all_of(state) == before


def globally(o: Any) -> None:
    o.state["global"] = {"k": 1}


def of_a_parameter(value: Any, key: Any = "odd") -> Callable[[Any], None]:
    return lambda o: o.state[o.param_groups[0]["params"][0]].update({key: value})


def deep(depth: int) -> list[Any]:
    return [deep(depth - 1)] if depth > 1 else []


def twice(o: Any) -> None:
    state = o.state[o.param_groups[0]["params"][0]]
    state["a"] = torch.zeros(2)
    state["b"] = [state["a"]]


def endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


def of_a_group(**values: Any) -> Callable[[Any], None]:
    return lambda o: o.param_groups[0].update(values)


REFUSED = {
    "global state": (globally, "state of 'global', no parameter"),
    "an object": (of_a_parameter(torch.Generator()), r"'odd' of 0\.weight as Generator,"),
    "an object in a list": (
        of_a_parameter([1, [2, {3}]]),
        r"as set within a container \(0\.weight/odd/1/1\)",
    ),
    "a tuple with names": (of_a_parameter(namedtuple("Pair", "a b")(1, 2)), "as Pair,"),
    "another dict": (of_a_parameter(OrderedDict(a=1)), "as OrderedDict,"),
    "a dict of numbers": (of_a_parameter({1: 2}), "as dict with the key 1, no short string"),
    "lists in lists": (of_a_parameter(deep(9)), "as containers nested more than 8 deep"),
    "a list in itself": (of_a_parameter(endless()), "as containers nested more than 8 deep"),
    "a long text": (of_a_parameter("x" * 1001), r"as str of 1001 characters \(at most 1000\)"),
    "a long list": (of_a_parameter([0] * 700_000), r"lists or dicts of more than 2\.0 MB as text"),
    "a huge tensor in a list": (of_a_parameter([torch.zeros(70_000)]), r"float32 \(70000,\)"),
    "one tensor twice": (twice, r"0\.weight/b/0 in the memory of 0\.weight/a \(no clone\)"),
    "a part of a parameter": (
        lambda o: of_a_parameter([o.param_groups[0]["params"][0][:4]])(o),
        r"0\.weight/odd/0 in the memory of 0\.weight \(no clone\)",
    ),
    "complex numbers": (of_a_parameter(torch.zeros(2, dtype=torch.cfloat)), r"complex64 \(2,\)"),
    "a sparse tensor": (of_a_parameter(torch.eye(2).to_sparse()), "torch.sparse_coo"),
    "a huge tensor": (of_a_parameter(torch.zeros(70_000)), r"float32 \(70000,\)"),
    "a number as a key": (of_a_parameter(1.0, key=3), r"3 of 0\.weight as a name"),
    "a path as a key": (of_a_parameter(1.0, key="a/b"), r"'a/b' of 0\.weight as a name"),
    "a tuple that becomes a list": (of_a_group(pair=[1, 2]), "'pair' of group 0, once tuple, as l"),
    "a number that becomes a list": (of_a_group(lr=[0.1]), "'lr' of group 0, once float, as list"),
    "a text that changes": (of_a_group(text="other"), "'text' of group 0, once str, as str"),
    "a text that becomes a number": (of_a_group(text=1), "'text' of group 0, once str, as int"),
    "another parameter": (
        lambda o: o.param_groups[0].update(params=[nn.Parameter(torch.zeros(2))]),
        r"a parameter \(2,\) that is not the model's",
    ),
    "another group": (
        lambda o: o.add_param_group({"params": [o.param_groups[0]["params"].pop()]}),
        "2 groups, not 1",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_a_checkpoint_cannot_hold_is_refused_by_the_optimizers_name(what: str) -> None:
    change, match = REFUSED[what]
    state = fresh(Adaptive)
    state.check_optimizer()
    change(state.optimizer)
    for refused in (state.check_optimizer, lambda: state.snapshot({})):
        with pytest.raises(CheckpointError, match=rf"The optimizer Adaptive keeps .*{match}"):
            refused()


def test_the_refusal_names_what_a_checkpoint_holds_and_what_to_do() -> None:
    state = fresh(Adaptive)
    of_a_parameter(torch.Generator())(state.optimizer)
    with pytest.raises(CheckpointError, match="as Generator, which a checkpoint cannot") as caught:
        state.check_optimizer()
    hint = caught.value.hint or ""
    assert "short strings, and lists, tuples and dicts of these" in hint
    assert "restart with another --optim" in hint


def test_all_that_fits_is_small_enough_to_be_read(tmp_path: Path) -> None:
    """What is not finite takes most room in the file, and the deepest the most to indent."""
    state = fresh(Adaptive)
    value: Any = [math.nan] * 390_000
    for _ in range(7):
        value = {"k": value}
    of_a_parameter(value)(state.optimizer)
    path = state.snapshot({}).write(tmp_path)
    resumed = fresh(Adaptive)
    resumed.load(path)
    assert all_of(resumed) == all_of(state)


def nested(made: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda v: v["optimizer"]["scalars"]["0.weight"].update(GG=made)


def nest(depth: int) -> list[Any]:
    return ["list", nest(depth - 1)] if depth else ["list"]


NOT_MADE = {
    "nested deep": nest(8),
    "nested deep in tensors": ["list", *[["tensor"]] * 2, nest(100)],
    "nothing": [],
    "an unknown sort": ["set", 1],
    "a sort that is no text": [["list"], 1],
    "a tensor with more": ["list", ["tensor", 1], ["tensor"]],
    "a bare tensor": ["tensor"],
    "a bare text": "on",
    "a text in a list": ["list", ["tensor"], ["tensor"], "on"],
    "a long text": ["str", "x" * 1001],
    "two texts": ["str", "a", "b"],
    "an object": ["list", {"a": 1}],
    "keys that are numbers": ["dict", [1, ["tensor"]]],
    "a dict without keys": ["dict", ["tensor"], ["tensor"]],
    "a key twice": ["dict", ["a", ["tensor"]], ["a", ["tensor"]]],
    "too much": ["list", ["tensor"], ["tensor"], *[0] * 700_000],
}
MISMATCHED = {
    "a tensor too many": ["list", ["tensor"], ["tensor"], ["tensor"]],
    "a tensor too few": ["list", ["tensor"]],
    "tensors elsewhere": ["list", ["list", ["tensor"]], ["tensor"]],
    "a number for all": 1,
}


@pytest.mark.parametrize("what", [*NOT_MADE, *MISMATCHED])
def test_a_forged_nesting_is_refused_as_damaged_before_anything_changes(
    tmp_path: Path, what: str
) -> None:
    path = advance(fresh(soap), 2).snapshot({}).write(tmp_path)
    record = json.loads((path / "state.json").read_text())["optimizer"]
    assert record["scalars"]["0.weight"]["GG"] == ["list", ["tensor"], ["tensor"]]
    forge_state(path, nested({**NOT_MADE, **MISMATCHED}[what]))
    state = fresh(soap, seed=3)
    before = all_of(state)
    where = r"state\.json is damaged" if what in NOT_MADE else "is damaged"
    with pytest.raises(CheckpointError, match=where):
        state.load(path)
    assert all_of(state) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.weight/GG/0", torch.zeros(70_000)),
        ("0.weight/GG/2", torch.zeros(1)),
        ("0.weight/GG", torch.zeros(1)),
        ("0.weight/GG/0/0", torch.zeros(1)),
        ("0.weight/mode", torch.zeros(1)),
    ],
)
def test_forged_tensors_of_a_nesting_are_refused_as_damaged(
    tmp_path: Path, name: str, value: Tensor
) -> None:
    path = advance(fresh(soap), 2).snapshot({}).write(tmp_path)
    tensors = load_file(path / "optim.safetensors")
    save_file({**tensors, name: value}, path / "optim.safetensors")
    forge_state(path)
    with pytest.raises(CheckpointError, match=f"is damaged or of another model: it holds {name}"):
        fresh(soap).load(path)


def test_a_missing_tensor_of_a_nesting_is_named(tmp_path: Path) -> None:
    path = advance(fresh(soap), 2).snapshot({}).write(tmp_path)
    tensors = load_file(path / "optim.safetensors")
    del tensors["0.weight/GG/1"]
    save_file(tensors, path / "optim.safetensors")
    forge_state(path)
    with pytest.raises(CheckpointError, match=r"is damaged: .* lacks 0\.weight/GG/1"):
        fresh(soap).load(path)


FORGED: dict[str, Tensor] = {
    ".groups.0/": torch.zeros(1),
    ".groups.7/d": torch.zeros(1),
    ".groups.0/d": torch.zeros(70_000),
    "0.weight/exp_avg": torch.zeros(5, 7),
    "0.weight/exp_avg_sq": torch.zeros(8, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("name", list(FORGED))
def test_forged_tensors_reach_no_fused_kernel_and_no_other_group(tmp_path: Path, name: str) -> None:
    """The kernel of the CPU walks over state without a look at its shape."""

    def build(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, fused=True)

    path = advance(fresh(build), 1).snapshot({}).write(tmp_path)
    tensors = load_file(path / "optim.safetensors")
    save_file({**tensors, name: FORGED[name]}, path / "optim.safetensors")
    forge_state(path)
    state = fresh(build)
    before = all_of(state)
    with pytest.raises(CheckpointError, match=f"it holds {name}"):
        state.load(path)
    assert all_of(state) == before


def test_a_group_of_an_earlier_version_takes_its_numbers(tmp_path: Path) -> None:
    """Its checkpoints hold numbers alone, and no tensors of groups."""
    state = advance(fresh(Adaptive), 1)
    path = state.snapshot({}).write(tmp_path)
    save_file({}, path / "optim.safetensors")
    forge_state(path, lambda v: v["optimizer"].update(groups=[{"lr": 0.25}]))
    state.load(path)
    group = state.optimizer.param_groups[0]
    assert (group["lr"], float(group["d"]), group["warm"]) == (0.25, pytest.approx(1e-3), True)


# -- whole runs ------------------------------------------------------------------------------------


def assert_resumes(config: RunConfig, tmp_path: Path) -> None:
    """A run that is stopped and resumed has the bits of one that is not."""
    run(config, tmp_path / "straight", quiet=True)
    stop_after(config, tmp_path / "stopped", step=7)
    run(config, tmp_path / "stopped", quiet=True)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_run_under_adafactor_resumes_bit_exactly(tmp_path: Path) -> None:
    config = tiny(optim="torch.optim:Adafactor", **{"optim.lr": 0.01})
    assert_resumes(config, tmp_path)


SOAP = """
import torch

class Soap(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                s = self.state[p]
                if p.ndim != 2:
                    s["GG"] = [[], None]
                    continue
                s.setdefault("GG", [torch.zeros(n, n) for n in p.shape])
                for i, gram in enumerate(s["GG"]):
                    flat = p.grad.transpose(0, i)
                    gram.lerp_(flat @ flat.T, 0.1)
                s["Q"] = tuple(torch.linalg.eigh(gram).eigenvectors for gram in s["GG"])
                s["mode"] = "on"
                left, right = s["Q"]
                p.grad.copy_(left @ (left.T @ p.grad @ right).tanh() @ right.T)
        super().step()
"""


def test_a_run_under_an_optimizer_with_lists_of_tensors_resumes_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOAP)
    config = tiny(optim="mine.py:Soap", **{"optim.lr": 0.01})
    assert_resumes(config, tmp_path)


CODE = """
import torch

class Global(torch.optim.SGD):
    def step(self, closure=None):
        self.state["global"] = {"k": self.state.get("global", {}).get("k", 0) + 1}
        super().step()
"""


def test_an_optimizer_that_cannot_be_resumed_is_refused_after_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    config = tiny(optim="mine.py:Global")
    with pytest.raises(CheckpointError, match="The optimizer Global keeps state of 'global'"):
        run(config, tmp_path / "r", quiet=True)
    assert Run(tmp_path / "r").summary["step"] == 1
