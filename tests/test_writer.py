"""Checkpoints that are written while the run continues are those of the step they were saved at."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_checkpoint import advance, bits, fresh, in_child, loaded, names_in
from tests.test_divergence import poisoned_loader
from tests.test_loop import assert_same_run, tiny
from vitc.errors import CheckpointError, InterruptedRun, RunError
from vitc.runs import checkpoint, writer
from vitc.runs.checkpoint import Snapshot, latest_checkpoint
from vitc.runs.folder import Run, RunFolder
from vitc.runs.writer import Writer
from vitc.training import guard
from vitc.training.log import RunLog
from vitc.training.loop import run
from vitc.training.step import NormStatistics


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path / "checkpoints"


def opened(place: Path, notes: list[str] | None = None) -> Writer:
    return Writer(RunFolder(place.parent), (notes if notes is not None else []).append)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_steps_that_are_taken_during_a_write_are_not_in_it(place: Path, device: str) -> None:
    state, expected = fresh(device=device), []
    with opened(place) as w:
        for _ in range(3):  # the first has no optimizer's state yet, the others share buffers
            may_write = threading.Event()

            def write(snapshot: Snapshot, until: threading.Event = may_write) -> None:
                until.wait(10)
                snapshot.write(place, keep=3)

            expected.append({**bits(state), "best": dict(state.best)})
            w.save(state.snapshot({"left_out": [state.step]}), write)
            state.best["top1"] = state.step
            advance(state, 2)
            assert not (place / f"step_{2 * len(expected) - 2}").exists()
            may_write.set()
    for number, each in enumerate(expected):
        path = place / f"step_{2 * number}"
        assert bits(loaded(path, device=device)) == each
        assert fresh().load(path) == {"left_out": [2 * number]}


def test_checkpoints_are_complete_and_pruned_in_the_order_they_were_saved_in(place: Path) -> None:
    state, seen = fresh(), []

    def write(snapshot: Snapshot) -> None:
        seen.append((names_in(place) if place.exists() else [], snapshot.step))
        snapshot.write(place, keep=1, stays=lambda step: step == 1)

    with opened(place) as w:
        for _ in range(4):
            w.save(advance(state, 1).snapshot({}), write)
    assert seen == [
        ([], 1),
        (["latest", "step_1"], 2),
        (["latest", "step_1", "step_2"], 3),
        (["latest", "step_1", "step_3"], 4),
    ]
    assert names_in(place) == ["latest", "step_1", "step_4"]


def test_a_kill_during_a_write_leaves_the_checkpoint_before_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = advance(fresh(), 1)
    state.snapshot({}).write(place)
    before, encode = bits(state), checkpoint._encode

    def die(values: Mapping[str, Any], indent: int | None = None) -> str:
        os._exit(9)  # the tensors are written, state.json is not
        return encode(values, indent)

    def killed() -> None:
        checkpoint._encode = die
        with opened(place) as w:
            w.save(advance(state, 1).snapshot({}), lambda s: s.write(place))

    assert in_child(killed, die_after=10**9) == -1
    found, troubles = latest_checkpoint(place)
    assert (found, troubles) == (place / "step_1", [])
    assert bits(loaded(place / "step_1")) == before


def test_what_the_disk_refuses_is_raised_by_the_next_call_once(place: Path) -> None:
    def refuse(snapshot: Snapshot) -> None:
        raise CheckpointError("full")

    calls: list[Callable[[Writer], None]] = [
        Writer.check,
        Writer.wait,
        lambda w: w.save(fresh().snapshot({}), refuse),
    ]
    for call in calls:
        with opened(place) as w:
            w.save(fresh().snapshot({}), refuse)
            threading.Event().wait(0.05)
            with pytest.raises(CheckpointError, match="full"):
                call(w)
            w.wait()
    notes: list[str] = []
    with opened(place, notes) as w:
        w.save(fresh().snapshot({}), refuse)
    assert notes == ["Warning: full"]
    (place.parent / "config.json").unlink()
    with opened(place) as w:
        w.save(fresh().snapshot({}), lambda s: s.write(place))
        with pytest.raises(RunError, match="removed or moved"):
            w.wait()
    assert not place.exists()


def test_where_memory_is_short_a_save_waits_and_says_so_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(writer, "free_memory", lambda: 100)
    with opened(place, notes) as w:
        w.save(fresh().snapshot({}), lambda s: s.write(place))
        assert names_in(place) == ["latest", "step_0"]
    assert len(notes) == 1
    assert "of memory" in notes[0]


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Writing takes a while; (step, the latest checkpoint) when the summary was written."""
    write, close = Snapshot.write, RunLog.close
    found: list[tuple[int, str]] = []

    def slowly(snapshot: Snapshot, *args: Any, **named: Any) -> Path:
        time.sleep(0.1)
        return write(snapshot, *args, **named)

    def closing(log: RunLog, state: Any, *args: Any) -> Any:
        found.append((state.step, (log.folder.checkpoints / "latest").read_text().strip()))
        return close(log, state, *args)

    monkeypatch.setattr(Snapshot, "write", slowly)
    monkeypatch.setattr(RunLog, "close", closing)
    return found


BRIEF = {"train.epochs": 1, "train.save_every_steps": 2, "data.max_train": 64, "train.batch": 8}


def test_a_run_that_ends_or_is_asked_to_stop_waits_for_its_checkpoint(
    tmp_path: Path, slow_disk: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**BRIEF)
    run(config, tmp_path / "whole", quiet=True)
    after, steps = NormStatistics.after_step, iter(range(1, 100))

    def asked(norms: NormStatistics) -> None:
        after(norms)
        if next(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(NormStatistics, "after_step", asked)
    with pytest.raises(InterruptedRun):
        run(config, tmp_path / "cut", quiet=True)
    run(config, tmp_path / "cut", quiet=True)
    assert slow_disk == [(8, "step_8"), (5, "step_5"), (8, "step_8")]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_rollback_waits_for_the_good_states(
    tmp_path: Path, slow_disk: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "GOOD_EVERY", (2, 2))
    poisoned_loader(5, monkeypatch)
    config = tiny(**BRIEF, **{"train.on_divergence": "rollback"})
    result = run(config, tmp_path / "r", quiet=True)
    assert [r["to"] for r in result.summary["rollbacks"]] == [4]
    assert slow_disk == [(8, "step_8")]


def test_a_disk_that_fills_up_ends_the_run_by_its_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write_tensors

    def full(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
        if "step_4" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(CheckpointError, match=r"step 4 .*No space left .* good one is step_2"):
        run(tiny(**BRIEF), tmp_path / "r", quiet=True)
    summary = Run(tmp_path / "r").summary
    assert summary["status"] == "failed"
    assert 4 <= summary["step"] <= 6
    assert names_in(tmp_path / "r" / "checkpoints") == ["latest", "step_2"]
