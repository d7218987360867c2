"""Room for checkpoints is looked for before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitc.errors import RunError
from vitc.resolve import load_config
from vitc.training.build import fresh_state
from vitc.training.device import pick_device
from vitc.training.loop import run
from vitc.training.space import checkpoint_bytes, room_for_checkpoints


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count))


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_the_estimate_is_what_a_checkpoint_takes(optim: str, tmp_path: Path) -> None:
    config = load_config("debug", optim=optim, **{"train.epochs": 1, "data.max_train": 32})
    state = fresh_state(config, 10, 1, pick_device("cpu"))
    estimate = checkpoint_bytes(state.model, config.optim, state.ema is not None)
    result = run(config, tmp_path / "r", quiet=True)
    written = next((result.path / "checkpoints").glob("step_*"))
    total = sum(file.stat().st_size for file in written.iterdir())
    assert 0.9 * total < estimate < 1.1 * total


def test_no_room_is_refused_and_little_room_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free(monkeypatch, 10_000_000)
    assert room_for_checkpoints(tmp_path, 1_000_000, keep=2) == ""
    warning = room_for_checkpoints(tmp_path, 4_000_000, keep=2)
    assert "4.0 MB" in warning
    assert "10.0 MB are free" in warning
    for number in (1, 2):
        (tmp_path / "checkpoints" / f"step_{number}").mkdir(parents=True)
    assert room_for_checkpoints(tmp_path, 4_000_000, keep=2) == ""  # it replaces one of them
    with pytest.raises(RunError, match=r"takes about 11\.0 MB.*10\.0 MB free"):
        room_for_checkpoints(tmp_path, 11_000_000, keep=2)


def test_a_run_without_room_takes_no_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, 1000)
    config = load_config("debug", **{"train.epochs": 1})
    with pytest.raises(RunError, match=r"0\.0 MB free"):
        run(config, tmp_path / "r", quiet=True)
    assert not (tmp_path / "r" / "metrics.jsonl").exists()
    monkeypatch.undo()
    assert run(config, tmp_path / "r", quiet=True).status == "done"
