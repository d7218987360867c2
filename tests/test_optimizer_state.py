"""What optimizers keep comes back with a checkpoint, bit for bit, or is refused as a run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.test_checkpoint import forge_state
from tests.test_loop import assert_same_run, stop_after, tiny
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


BUILDERS: dict[str, Build] = {
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
    return {
        k: (v.dtype, v.stride(), v.tolist()) if isinstance(v, Tensor) else (type(v), v)
        for k, v in found.items()
    }


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
        state.optimizer.state[p].update(host=torch.ones(2), device=torch.ones(2, device="cuda"))
    path = state.snapshot({}).write(tmp_path)
    resumed = build()
    resumed.load(path)
    entries = resumed.optimizer.state[next(resumed.model.parameters())]
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


def of_a_group(**values: Any) -> Callable[[Any], None]:
    return lambda o: o.param_groups[0].update(values)


REFUSED = {
    "global state": (globally, "state of 'global', no parameter"),
    "a list": (of_a_parameter([1.0, 2.0]), r"'odd' of 0\.weight as list"),
    "a text": (of_a_parameter("on"), r"'odd' of 0\.weight as str"),
    "complex numbers": (of_a_parameter(torch.zeros(2, dtype=torch.cfloat)), r"complex64 \(2,\)"),
    "a sparse tensor": (of_a_parameter(torch.eye(2).to_sparse()), "torch.sparse_coo"),
    "a huge tensor": (of_a_parameter(torch.zeros(70_000)), r"float32 \(70000,\)"),
    "a number as a key": (of_a_parameter(1.0, key=3), r"3 of 0\.weight as a name"),
    "a path as a key": (of_a_parameter(1.0, key="a/b"), r"'a/b' of 0\.weight as a name"),
    "a tuple that changes": (of_a_group(pair=(2, 2)), "'pair' of group 0, once tuple, as tuple"),
    "a text that changes": (of_a_group(text="other"), "'text' of group 0, once str, as str"),
    "tensors in a list": (of_a_group(more=[torch.zeros(1)]), "'more' of group 0 as list"),
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


def test_a_run_under_adafactor_resumes_bit_exactly(tmp_path: Path) -> None:
    config = tiny(optim="torch.optim:Adafactor", **{"optim.lr": 0.01})
    run(config, tmp_path / "straight", quiet=True)
    stop_after(config, tmp_path / "stopped", step=7)
    run(config, tmp_path / "stopped", quiet=True)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


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
