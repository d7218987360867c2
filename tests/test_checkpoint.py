"""Checkpoints: every bit comes back, and no kill, full disk or stranger breaks that."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitc.errors import CheckpointError
from vitc.optim.ema import Ema
from vitc.runs.checkpoint import TrainState, latest_checkpoint, load_weights_of

FILES = ("model.safetensors", "ema.safetensors", "optim.safetensors", "state.json")


class Tiny(nn.Module):
    """A convolution, BatchNorm's integer buffer, and buffers of every awkward kind."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 5)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("short", torch.tensor([1.5, math.nan], dtype=torch.bfloat16))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("scalar", torch.tensor(3, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.norm(self.stem(x))).mean((2, 3)))


def build_optimizer(name: str, model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if name == "fused":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9 if name == "sgd" else 0.0)


def fresh(
    optimizer: str = "adamw",
    channels_last: bool = True,
    ema: bool = True,
    seed: int = 0,
    width: int = 4,
    device: str = "cpu",
) -> TrainState:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = Tiny(width)
    model = model.to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    average = Ema(model, lambda before, position: max(1 / 16, 1 / position))
    return TrainState(model, build_optimizer(optimizer, model), average if ema else None)


def advance(state: TrainState, steps: int) -> TrainState:
    """Steps that are a pure function of the state, as a run's are."""
    device = state.model.get_parameter("head.weight").device
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        images = torch.randn(8, 3, 6, 6, generator=generator).to(device)
        labels = torch.randint(0, 5, (8,), generator=generator).to(device)
        for group in state.optimizer.param_groups:
            group["lr"] = 0.01 / (1 + state.step)
        loss = nn.functional.cross_entropy(state.model(images), labels)
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.sums["loss"] += loss.item()
        if state.ema is not None:
            state.ema.update(state.model, state.step)
    return state


def bits(state: TrainState) -> dict[str, Any]:
    """Everything in a state, tensors as dtype, shape, strides and raw bytes."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            device = value.device.type
            value = (value.dtype, value.shape, value.stride(), device, bytes(flat.numpy()))
        found[name] = value

    for name, tensor in state.model.state_dict().items():
        add(f"model {name}", tensor)
    for name, tensor in state.ema.module.state_dict().items() if state.ema else ():
        add(f"ema {name}", tensor)
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            add(f"optim {name} {key}", value)
    for i, group in enumerate(state.optimizer.param_groups):
        add(f"group {i}", {k: v for k, v in group.items() if k != "params"})
    for name in ("step", "best", "last_eval", "seconds", "skipped"):
        add(name, getattr(state, name))
    add("sums", dict(state.sums))
    return found


def loaded(path: Path, **kind: Any) -> TrainState:
    state = fresh(seed=99, **kind)
    state.load(path)
    return state


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "fused", "sgd", "plain sgd"])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    tmp_path: Path, optimizer: str, channels_last: bool, ema: bool
) -> None:
    straight = advance(fresh(optimizer, channels_last, ema), 3)
    path = straight.snapshot({}).write(tmp_path / "checkpoints")
    resumed = loaded(path, optimizer=optimizer, channels_last=channels_last, ema=ema)
    assert bits(resumed) == bits(straight)
    assert bits(advance(resumed, 3)) == bits(advance(straight, 3))


def test_loading_replaces_optimizer_state_that_was_there(tmp_path: Path) -> None:
    state = fresh("sgd")
    path = state.snapshot({}).write(tmp_path)
    moved = advance(fresh("sgd"), 2)
    moved.load(path)
    assert bits(moved) == bits(state)


@pytest.mark.parametrize("saved", [True, False])
def test_the_memory_format_is_that_of_the_checkpoint(tmp_path: Path, saved: bool) -> None:
    state = advance(fresh(channels_last=saved), 2)
    resumed = loaded(state.snapshot({}).write(tmp_path), channels_last=not saved)
    weight = resumed.model.get_parameter("stem.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) == saved
    assert bits(resumed) == bits(state)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_any_permuted_memory_format_comes_back(tmp_path: Path, order: tuple[int, ...]) -> None:
    def build(seed: int, order: tuple[int, ...]) -> TrainState:
        model = nn.Module()
        value = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
        back = sorted(range(3), key=order.__getitem__)
        model.register_parameter("w", nn.Parameter(value.permute(order).contiguous().permute(back)))
        return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))

    state, other = build(0, order), build(1, (0, 1, 2))
    other.load(state.snapshot({}).write(tmp_path))
    assert bits(other) == bits(state)
    assert other.model.w.stride() == state.model.w.stride()


def test_numbers_come_back_with_all_their_bits_and_their_type(tmp_path: Path) -> None:
    state = fresh()
    state.step, state.skipped, state.seconds = 7, 2, 0.1 + 0.2
    state.best = {"top1": 100 / 3, "epoch": 3}
    state.last_eval = {"split": "val", "n": 12, "loss": math.inf, "top5": -0.0, "none": None}
    state.sums.update(loss=-math.inf, tiny=5e-324, huge=1.7976931348623157e308)
    extra = {"threads": 3, "device": "cpu", "rng": {"order": [1, 2**63]}, "x": math.nan}
    path = state.snapshot(extra).write(tmp_path)
    resumed = fresh(seed=1)
    back = resumed.load(path)
    assert bits(resumed) == bits(state)
    assert type(resumed.best["epoch"]) is int
    assert math.copysign(1, resumed.last_eval["top5"]) == -1
    assert math.isnan(back.pop("x"))
    assert back == {k: v for k, v in extra.items() if k != "x"}
    resumed.sums["never seen"] += 1.0  # an absent sum is 0, as in a fresh state
    strict = json.loads((path / "state.json").read_text(), parse_constant=pytest.fail)
    assert strict["step"] == 7


def test_hyperparameters_that_are_numbers_come_back_and_switches_do_not(tmp_path: Path) -> None:
    state = fresh()
    state.optimizer.param_groups[1]["lr"] = 0.125
    path = state.snapshot({}).write(tmp_path)
    forged = {"lr": 0.5, "added later": 1.0, "amsgrad": 1, "fused": True, "betas": 3}
    forge_state(path, lambda v: v["optimizer"]["groups"][0].update(forged))
    resumed = loaded(path)
    first, second = resumed.optimizer.param_groups
    assert (first["lr"], second["lr"]) == (0.5, 0.125)
    assert first["added later"] == 1.0
    assert (first["amsgrad"], first["fused"], first["betas"]) == (False, None, (0.9, 0.999))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_files_are_plain_safetensors_with_readable_names(
    tmp_path: Path, optimizer: str
) -> None:
    state = advance(fresh(optimizer), 2)
    path = state.snapshot({}).write(tmp_path)
    assert names_in(path) == sorted(FILES)
    weights = state.model.state_dict()
    for name, expected in (("model", weights), ("ema", state.ema.module.state_dict())):
        found = load_file(path / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.dtype == expected[key].dtype
            assert torch.equal(tensor.nan_to_num(), expected[key].nan_to_num())
    keys = {"step", "exp_avg", "exp_avg_sq"} if optimizer == "adamw" else {"momentum_buffer"}
    names = {f"{n}/{k}" for n, _ in state.model.named_parameters() for k in keys}
    assert load_file(path / "optim.safetensors").keys() == names


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = fresh().snapshot({}).write(tmp_path / "checkpoints")
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in path.iterdir()} == {"0o644"}


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", ["adamw", "fused", "sgd"])
def test_a_state_on_a_gpu_comes_back_there_and_on_the_cpu(tmp_path: Path, optimizer: str) -> None:
    state = advance(fresh(optimizer, device="cuda"), 3)
    path = state.snapshot({}).write(tmp_path)
    assert bits(loaded(path, optimizer=optimizer, device="cuda")) == bits(state)
    here = loaded(path, optimizer=optimizer)
    for name, value in state.model.state_dict().items():
        assert torch.equal(here.model.state_dict()[name].nan_to_num(), value.cpu().nan_to_num())
    advance(here, 1)


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_newest_checkpoints_stay_and_latest_names_the_last(tmp_path: Path) -> None:
    state = fresh()
    for step in (1, 9, 10, 11):
        state.step = step
        state.snapshot({}).write(tmp_path, keep=2)
    assert names_in(tmp_path) == ["latest", "step_10", "step_11"]
    assert (tmp_path / "latest").read_text() == "step_11\n"
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_11", [])
    state.step = 12
    state.snapshot({}).write(tmp_path, keep=1)
    assert names_in(tmp_path) == ["latest", "step_12"]


def test_checkpoints_that_stay_do_beside_the_last_ones(tmp_path: Path) -> None:
    state = fresh()
    for step in (4, 8, 9, 10, 12, 14):
        state.step = step
        state.snapshot({}).write(tmp_path, keep=2, stays=lambda step: step in (4, 9))
    assert names_in(tmp_path) == ["latest", "step_12", "step_14", "step_4", "step_9"]


def test_a_run_taken_back_drops_the_checkpoints_of_its_former_future(tmp_path: Path) -> None:
    state = fresh()
    for step in (10, 20):
        state.step = step
        state.snapshot({}).write(tmp_path, keep=2)
    state.load(tmp_path / "step_10")
    state.step = 15
    state.snapshot({}).write(tmp_path, keep=2)
    assert names_in(tmp_path) == ["latest", "step_10", "step_15"]
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "step_15"


def test_saving_the_same_step_again_keeps_the_newer_state(tmp_path: Path) -> None:
    state = advance(fresh(), 2)
    state.snapshot({}).write(tmp_path)
    state.best = {"top1": 50.0}  # evaluated after the first save: same tensors
    state.snapshot({}).write(tmp_path)
    assert bits(loaded(tmp_path / "step_2")) == bits(state)
    other = advance(fresh(seed=5), 2)  # other tensors
    other.snapshot({}).write(tmp_path)
    flip(tmp_path / "step_2" / "model.safetensors")  # a damaged one is replaced too
    other.snapshot({}).write(tmp_path)
    assert bits(loaded(tmp_path / "step_2")) == bits(other)
    assert names_in(tmp_path) == ["latest", "step_2"]


STEPS_ON_DISK = {"write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir"}


def in_child(action: Callable[[], None], die_after: int | None = None) -> int:
    """Run `action` in a fork that dies after its n-th call that may touch the disk.

    Returns the number of such calls when it is not asked to die, else -1 when it did, 0 when
    `action` was over before.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside torch's threads
        child = os.fork()
    if child == 0:
        count = 0

        def profile(frame: object, event: str, function: Any) -> None:
            nonlocal count
            if event == "c_return" and getattr(function, "__name__", "") in STEPS_ON_DISK:
                count += 1
                if count == die_after:
                    os._exit(9)

        code = 1
        try:
            sys.setprofile(profile)
            action()
            sys.setprofile(None)
            os.write(writer, str(count).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    said = os.read(reader, 100)
    os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    if code == 9:
        return -1
    assert code == 0, "the child failed by itself"
    return int(said) if die_after is None else 0


def small(seed: int = 0, step: int = 0, best: float = 0.0) -> TrainState:
    """A state of few tensors, so that few instants lie inside its save."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(seed)
        model.bias.fill_(seed)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), step=step)
    for parameter in model.parameters():
        state.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, seed + 0.5)
    state.best = {"top1": best}
    return state


NEXT = {
    "the first checkpoint": small(1, step=10),
    "the next one": small(2, step=20),
    "the same step after an evaluation": small(1, step=10, best=50.0),
    "the same step with other weights": small(3, step=10),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if "same" in c else ()) for c in NEXT]
)
def test_a_kill_at_any_instant_of_a_save_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, case: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    old, new = small(1, step=10), NEXT[case]
    if case != "the first checkpoint":
        old.snapshot({}).write(base / "checkpoints")
    shutil.copytree(base, tmp_path / "count")
    instants = in_child(lambda: new.snapshot({}).write(tmp_path / "count" / "checkpoints", keep=1))
    assert instants > 20

    seen = set()
    for instant in range(1, instants + 1):
        run = tmp_path / f"run_{instant}"
        shutil.copytree(base, run)
        folder = run / "checkpoints"
        action = lambda folder=folder: new.snapshot({}).write(folder, keep=1)  # noqa: E731
        assert in_child(action, die_after=instant) == -1

        found, troubles = latest_checkpoint(folder)
        assert troubles == [] or (found is not None and found.name == "step_10.old")
        if found is None:
            assert case == "the first checkpoint"
            seen.add("none")
        else:
            after = small()
            after.load(found)
            seen.add("new" if bits(after) == bits(new) else "old")
            assert bits(after) in (bits(old), bits(new))
        later = small(7, step=30)
        later.snapshot({}).write(folder, keep=1)
        assert names_in(folder) == ["latest", "step_30"]
        shutil.rmtree(run)
    assert seen == {"none" if case == "the first checkpoint" else "old", "new"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name open files")
def test_everything_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut loses what was not synced: so each rename comes after its content's sync."""
    log: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(number: int) -> None:
        log.append(("sync", os.path.relpath(os.readlink(f"/proc/self/fd/{number}"), tmp_path)))
        fsync(number)

    def noted_replace(a: Path, b: Path) -> None:
        log.append(("rename", os.path.relpath(b, tmp_path)))
        replace(a, b)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    fresh().snapshot({}).write(tmp_path / "checkpoints")
    files = {("sync", f"checkpoints/.tmp-step_0/{name}") for name in FILES}
    assert log[0] == ("sync", ".")
    assert set(log[1:5]) == files
    assert log[5:] == [
        ("sync", "checkpoints/.tmp-step_0"),
        ("rename", "checkpoints/step_0"),
        ("sync", "checkpoints"),
        ("sync", f"checkpoints/.tmp-{os.getpid()}-latest"),
        ("rename", "checkpoints/latest"),
        ("sync", "checkpoints"),
    ]


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_disk_that_refuses_at_any_point_leaves_the_last_checkpoint_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    old, new, real = small(1, step=10), small(2, step=20), getattr(os, call)
    for refused in range(1, 50):
        folder = tmp_path / str(refused)
        old.snapshot({}).write(folder)
        calls = 0

        def refusing(*args: Any, at: int = refused, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refusing)
            error = None
            try:
                new.snapshot({}).write(folder)
            except CheckpointError as caught:
                error = caught
        found, troubles = latest_checkpoint(folder)
        assert found is not None
        assert troubles == []
        if error is not None:
            assert "No space left on device" in error.message
            assert f"The last good one is {found.name}" in error.message
            assert error.hint is not None
        else:
            assert calls < refused or call == "replace"  # pruning is tried again next time
        after = small()
        after.load(found)
        assert bits(after) in (bits(old), bits(new))
        assert not [n for n in names_in(folder) if n.startswith(".tmp-")]
        new.snapshot({}).write(folder, keep=1)  # space is free again
        assert names_in(folder) == ["latest", "step_20"]
        if calls < refused:
            break
    assert refused > {"mkdir": 1, "replace": 2, "fsync": 6}[call]


def test_a_file_size_limit_during_a_write_leaves_the_last_checkpoint_good(tmp_path: Path) -> None:
    old = advance(fresh(width=40), 2)
    old.snapshot({}).write(tmp_path)
    new = advance(fresh(width=40), 3)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        with pytest.raises(CheckpointError, match="File too large"):
            new.snapshot({}).write(tmp_path)

    in_child(limited)
    assert names_in(tmp_path) == ["latest", "step_2"]
    assert bits(loaded(tmp_path / "step_2", width=40)) == bits(old)
    new.snapshot({}).write(tmp_path)  # there is space again
    assert bits(loaded(tmp_path / "step_3", width=40)) == bits(new)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="There is no earlier one"):
        fresh().snapshot({}).write(tmp_path / "file" / "checkpoints")


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def two_checkpoints(folder: Path) -> TrainState:
    """step_1 and step_2 in a folder; returns the state at step 1."""
    state = advance(fresh(), 1)
    state.snapshot({}).write(folder)
    advance(fresh(), 2).snapshot({}).write(folder)
    return state


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(
    tmp_path: Path, file: str, damage: str
) -> None:
    first = two_checkpoints(tmp_path)
    path = tmp_path / "step_2" / file
    data = path.read_bytes()
    if damage == "flip":
        flip(path, len(data) // 2)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    found, troubles = latest_checkpoint(tmp_path)
    assert found == tmp_path / "step_1"
    assert len(troubles) == 1
    assert str(path) in troubles[0]
    assert bits(loaded(found)) == bits(first)
    with pytest.raises(CheckpointError, match="step_2"):
        loaded(tmp_path / "step_2")


def test_a_flipped_bit_of_state_json_that_changes_a_value_is_noticed(tmp_path: Path) -> None:
    path = small(1, step=10).snapshot({}).write(tmp_path) / "state.json"
    whole = path.read_bytes()
    before = json.loads(whole)
    for at in range(0, len(whole), 3):
        flip(path, at)
        try:
            same = json.loads(path.read_bytes()) == before
        except ValueError:
            same = False
        if not same:
            with pytest.raises(CheckpointError):
                small().load(path.parent)
        path.write_bytes(whole)


def test_all_checkpoints_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for step in (1, 2):
        flip(tmp_path / f"step_{step}" / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        latest_checkpoint(tmp_path)
    assert "step_1" in caught.value.message
    assert "step_2" in caught.value.message
    assert "--overwrite" in (caught.value.hint or "")


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") == (None, [])
    assert latest_checkpoint(tmp_path) == (None, [])
    (tmp_path / "step_x").mkdir()
    (tmp_path / "step_3").write_text("a file")
    assert latest_checkpoint(tmp_path) == (None, [])


@pytest.mark.parametrize("content", [b"", b"step_7", b"../../elsewhere", b"\xff\x00", b"x" * 9999])
def test_a_latest_that_names_nothing_here_is_reported_and_the_newest_taken(
    tmp_path: Path, content: bytes
) -> None:
    two_checkpoints(tmp_path)
    (tmp_path / "latest").write_bytes(content)
    found, troubles = latest_checkpoint(tmp_path)
    assert found == tmp_path / "step_2"
    assert len(troubles) == 1
    assert "latest" in troubles[0]


def test_checkpoints_that_latest_names_but_are_all_gone_are_an_error(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    (tmp_path / "latest").write_text("step_1\n")  # decides also where a newer one is there
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_1", [])
    for step in (1, 2):
        shutil.rmtree(tmp_path / f"step_{step}")
    with pytest.raises(CheckpointError, match="not there"):
        latest_checkpoint(tmp_path)


def forge_state(path: Path, change: Callable[[dict[str, Any]], Any] = len) -> None:
    """Change state.json and give it the checksums it needs to pass for whole."""
    values = json.loads((path / "state.json").read_text())
    values.pop("self")
    for name in values["sha256"]:
        if (path / name).exists():
            values["sha256"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    change(values)
    text = json.dumps(values, sort_keys=True)
    values["self"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(values))


def strides(part: str, value: list[int], name: str = "head.weight") -> Callable[..., Any]:
    return lambda v: v["memory_formats"].update({f"{part}.safetensors": {name: value}})


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a negative step": lambda v: v.update(step=-1),
    "a step that is a text": lambda v: v.update(step="5"),
    "seconds that are null": lambda v: v.update(seconds=None),
    "best that is a list": lambda v: v.update(best=[1]),
    "sums that are texts": lambda v: v.update(sums={"loss": "1"}),
    "no extra": lambda v: v.pop("extra"),
    "a file outside": lambda v: v["sha256"].update({"../../../etc/passwd": "0"}),
    "no model": lambda v: v["sha256"].pop("model.safetensors"),
    "no checksums": lambda v: v.update(sha256=None),
    "an old format": lambda v: v.update(format=0),
    "a format that is a text": lambda v: v.update(format="1"),
    "groups that are no objects": lambda v: v["optimizer"].update(groups=[1, 2]),
    "a hyperparameter that is an object": lambda v: v["optimizer"]["groups"][0].update(lr={}),
    "parameters in a group": lambda v: v["optimizer"]["groups"][0].update(params=1),
    "a hyperparameter that is a text": lambda v: v["optimizer"]["groups"][0].update(lr="1"),
    "places that are no list": lambda v: v["optimizer"].update(on_host=1),
    "a group too few": lambda v: v["optimizer"]["groups"].pop(),
    "optimizer state that is no object": lambda v: v["optimizer"].update(scalars={"x": 1}),
    "optimizer state of nothing": lambda v: v["optimizer"].update(scalars={"x": {"step": 1}}),
    "optimizer state that is a list": lambda v: v["optimizer"].update(
        scalars={"head.bias": {"step": [1]}}
    ),
    "huge strides": strides("model", [1 << 40, 1]),
    "overlapping strides": strides("model", [1, 1]),
    "negative strides": strides("ema", [-1, 5]),
    "strides of nothing": strides("optim", [1], name="x"),
    "strides of another rank": strides("model", [1]),
}


@pytest.mark.parametrize("what", list(FORGED))
def test_a_forged_state_is_refused_before_anything_changes(tmp_path: Path, what: str) -> None:
    path = advance(fresh(), 1).snapshot({}).write(tmp_path)
    forge_state(path, FORGED[what])
    state = fresh(seed=3)
    before = bits(state)
    with pytest.raises(CheckpointError):
        state.load(path)
    assert bits(state) == before


@pytest.mark.parametrize(
    "text",
    ["", "null", '"\ud800"', '{"a": 1' + "0" * 5000 + "}", '{"a":' * 600 + "1" + "}" * 600],
    ids=["nothing", "null", "surrogate", "huge number", "nested"],
)
def test_a_state_json_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = small().snapshot({}).write(tmp_path)
    (path / "state.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"state\.json"):
        small().load(path)


def test_a_checkpoint_of_a_newer_version_asks_for_an_update(tmp_path: Path) -> None:
    path = small().snapshot({}).write(tmp_path)
    forge_state(path, lambda v: v.update(format=99))
    with pytest.raises(CheckpointError, match="newer vitc"):
        small().load(path)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


HOSTILE = {
    "a pickle": pickle.dumps(Bomb()),
    "a header of exabytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "a tensor beyond the file": (
        b"\x50\0\0\0\0\0\0\0"
        + b'{"bias":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999996]}}'.ljust(80)
    ),
    "an unknown dtype": (
        b"\x40\0\0\0\0\0\0\0"
        + b'{"bias":{"dtype":"PKL","shape":[1],"data_offsets":[0,4]}}'.ljust(64)
        + b"0000"
    ),
    "nothing": b"",
}


@pytest.mark.parametrize("content", list(HOSTILE))
@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors"])
def test_a_hostile_tensor_file_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str
) -> None:
    path = small(1).snapshot({}).write(tmp_path / "checkpoints")
    (path / file).write_bytes(HOSTILE[content])
    forge_state(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=file):
        small().load(path)
    if file == "model.safetensors":
        with pytest.raises(CheckpointError, match=file):
            load_weights_of(path)
    assert not (tmp_path / "exploded").exists()


def test_tensors_of_another_shape_are_named_with_both_shapes(tmp_path: Path) -> None:
    path = fresh(width=4).snapshot({}).write(tmp_path)
    state = fresh(width=6)
    before = bits(state)
    with pytest.raises(CheckpointError) as caught:
        state.load(path)
    shapes = "stem.weight (float32 (4, 3, 3, 3) in the file, float32 (6, 3, 3, 3) in the model)"
    assert shapes in caught.value.message
    assert bits(state) == before
    model = nn.Linear(2, 1, bias=False)
    model.register_buffer("more", torch.zeros(1))
    other = TrainState(model.double(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match=r"missing: more; 1 unexpected: bias; .* float64"):
        other.load(small().snapshot({}).write(tmp_path / "small"))


@pytest.mark.parametrize("ema", [True, False])
def test_a_run_with_an_average_and_one_without_are_not_mixed(tmp_path: Path, ema: bool) -> None:
    path = fresh(ema=ema).snapshot({}).write(tmp_path)
    with pytest.raises(CheckpointError, match="average"):
        fresh(ema=not ema).load(path)


def test_another_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    path = advance(fresh("adamw"), 1).snapshot({}).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"AdamW.*SGD"):
        fresh("sgd").load(path)


@pytest.mark.parametrize("name", ["bias/momentum_buffer", "gone/momentum_buffer", "bias"])
def test_optimizer_state_that_fits_no_parameter_is_named(tmp_path: Path, name: str) -> None:
    path = small(1).snapshot({}).write(tmp_path)
    save_file({name: torch.zeros(70_000)}, path / "optim.safetensors")
    forge_state(path)
    with pytest.raises(CheckpointError, match=rf"{name}, float32 \(70000,\)"):
        small().load(path)


def same(found: dict[str, Tensor], module: nn.Module) -> bool:
    expected = module.state_dict()
    return list(found) == sorted(expected, key=list(found).index) and all(
        torch.equal(found[k].nan_to_num(), expected[k].nan_to_num()) for k in expected
    )


def test_weights_are_those_of_the_average_unless_raw_ones_are_asked(tmp_path: Path) -> None:
    state = advance(fresh(), 3)
    path = state.snapshot({}).write(tmp_path / "checkpoints")
    assert not same(load_weights_of(tmp_path), state.model)
    for place in (tmp_path, path, str(path)):
        assert same(load_weights_of(place), state.ema.module)
        assert same(load_weights_of(place, ema=False), state.model)
    fresh(seed=8).model.load_state_dict(load_weights_of(tmp_path))
    alone = advance(fresh(ema=False), 1)
    assert same(load_weights_of(alone.snapshot({}).write(tmp_path / "alone")), alone.model)
    for empty in (tmp_path / "alone", tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            load_weights_of(empty)
    with pytest.raises(CheckpointError, match="does not exist"):
        alone.load(tmp_path / "step_5")


@pytest.mark.parametrize("damage", ["flip", "gone", "folder gone"])
def test_damaged_weights_are_an_error_that_names_the_older_checkpoint(
    tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "checkpoints"
    two_checkpoints(folder)
    file = folder / "step_2" / "ema.safetensors"
    if damage == "flip":
        flip(file)
    elif damage == "gone":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
    with pytest.raises(CheckpointError, match="step_2") as caught:
        load_weights_of(tmp_path)
    assert damage == "folder gone" or str(file) in caught.value.message
    assert str(folder / "step_1") in (caught.value.hint or "")
    load_weights_of(folder / "step_1")
