"""What a run uses while it goes, for who looks on; nothing of it changes what is learned."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.test_loop import lines, tiny
from vitc.deploy.live import live_page
from vitc.deploy.show_run import _progress, _uses, run_page
from vitc.files import LOCK, read_json
from vitc.resolve import load_config
from vitc.runs.folder import HEARTBEAT, RunFolder
from vitc.training import usage
from vitc.training.loop import run
from vitc.views.model import Table

FEW = {"train.epochs": 1, "data.max_train": 128, "train.log_every_steps": 2}


def test_a_run_shows_what_it_uses_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny(**FEW), tmp_path / "quiet", quiet=True)
    monkeypatch.setattr(usage, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(usage, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(usage, "model_utilisation", lambda *_: 1e-4)
    seen: list[dict[str, Any]] = []
    pages: list[dict[str, str]] = []
    beat = RunFolder.beat

    def looked_at(folder: RunFolder, values: Any) -> None:
        beat(folder, values)
        seen.append(read_json(folder.path / HEARTBEAT))
        table = live_page(folder.path).parts[0]
        assert isinstance(table, Table)
        pages.append({str(name): str(value) for name, value in table.rows})

    monkeypatch.setattr(RunFolder, "beat", looked_at)
    run(tiny(**FEW), tmp_path / "r", quiet=True)
    assert [values["step"] for values in seen] == [2, 4, 6, 8]
    now = seen[-1]
    assert 0 < now["cores_computing"] < 64
    assert now["cores_loading"] < 64
    assert now["memory_bytes"] > 1 << 20
    assert now["mfu"] == pytest.approx(1e-4 * 8 * 16 / now["time_spent"]["steps"], rel=0.1)
    assert {"steps", "loading", "preparing"} <= now["time_spent"].keys()
    page = pages[-1]
    assert "cores" in page["processors"]
    assert "training steps" in page["time so far"]
    assert "computing limits the rate" in page["limit"]
    assert page["of matmul rate (MFU)"].endswith(" %")
    assert not (tmp_path / "r" / HEARTBEAT).exists()
    assert lines(tmp_path / "r") == lines(tmp_path / "quiet")


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["alive", "killed"])
@pytest.mark.parametrize("beat", ["{}", "[1", '{"cores_computing": 1.5, "time_spent": 3}', None])
def test_a_killed_run_uses_nothing_and_a_damaged_heartbeat_is_passed_over(
    writer: str, beat: str | None, tmp_path: Path
) -> None:
    run(tiny(**FEW), tmp_path / "r", quiet=True)
    (tmp_path / "r/summary.json").unlink()
    whole = {"cores_computing": 1.0, "cores_loading": 0.0, "cores": 2, "memory_bytes": 10**9}
    whole |= {"time_spent": {"steps": 1.0}, "limit": "-", "mfu": None}
    (tmp_path / "r" / HEARTBEAT).write_text(json.dumps(whole) if beat is None else beat)
    process = os.getpid() if writer == "alive" else 999_999_999
    (tmp_path / "r" / LOCK).write_text(f"process {process} on {socket.gethostname()}\n")
    (table, *_) = run_page(tmp_path / "r").parts
    assert isinstance(table, Table)
    names = {str(name) for name, _ in table.rows}
    assert "last written" in names
    assert ("processors" in names) == (writer == "alive" and beat is None)


def test_a_gpu_is_shown_with_its_memory(trained: Path, tmp_path: Path) -> None:
    now = {"cores_computing": 1.0, "cores_loading": 7.0, "cores": 8, "memory_bytes": 2 * 10**9}
    now |= {"gpu_memory_bytes": 10**10, "gpu_memory_total": 8 * 10**10, "gpu_use": 0.97}
    rows = dict(_uses({**now, "time_spent": {"steps": 1.0}, "limit": "-", "mfu": None}))
    assert rows["processors"] == "8.0 of 8 cores: 1.0 computing, 7.0 loading images"
    assert rows["memory"] == "2.0 GB; GPU 97 % busy, 10.0 GB of 80.0 GB"
    assert "of matmul rate (MFU)" not in rows


def test_the_time_left_of_a_budget_counts_what_was_spent_on_anything(tmp_path: Path) -> None:
    config = load_config("debug", **{"train.budget_seconds": 100.0, "train.epochs": 2})
    (tmp_path / "metrics.jsonl").touch()
    train = {"kind": "train", "step": 5, "epoch": 1.0, "lr": 0.1, "seconds": 10.0}
    pace = {"kind": "pace", "step": 5, "used_seconds": 70.0}
    for metrics, left in (([train], "1 min 40 s"), ([pace, train], "30 s")):
        assert dict(_progress(tmp_path, config, metrics))["time left"].startswith(f"about {left}")
