"""The GPU kit: its parts on the CPU, its time limits, what it writes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import gpu_kit

ROOT = Path(__file__).parents[1]
SAVES = """
from pathlib import Path
from scripts.gpu_kit import save
save(Path({out!r}), {name!r}, verdict=["so"], unfinished=1, data="x")
"""


def small(out: Path) -> argparse.Namespace:
    return argparse.Namespace(out=out, data=None, again=[], small=True, part=None)


def values(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_run_and_one_line_states_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_kit.main(["--out", str(tmp_path / "gpu")]) == 2
    shown = capsys.readouterr().err
    assert "No GPU" in shown
    assert "--small" in shown
    assert not (tmp_path / "gpu").exists()


def test_training_steps_are_timed_against_the_rate_of_matrix_products(tmp_path: Path) -> None:
    assert gpu_kit.speed(small(tmp_path)) == 0
    found = gpu_kit.known(tmp_path, "speed")
    assert {"vit_p_tiny", "vit_c_tiny"} <= {s["model"] for s in found["steps"]}
    assert found["matmul_tflops"] > 0
    for step in found["steps"]:
        assert len(step["images_per_second"]) == 2
        assert 0 < step["mfu"] < 2
    before = found["steps"]
    gpu_kit.speed(small(tmp_path))
    assert gpu_kit.known(tmp_path, "speed")["steps"] == before, "what is timed stays"
    gpu_kit.write_page(tmp_path, True)
    page = (tmp_path / "gpu.html").read_text()
    assert "vit_c_tiny" in page
    assert "TFLOP/s" in page
    assert values(tmp_path)["speed"]["steps"] == before


@pytest.mark.slow
def test_a_slow_part_is_stopped_keeps_what_it_has_and_leaves_the_others_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    code = {
        "tests": "raise SystemExit(1)",
        "speed": "import time; time.sleep(60)",
        "study": SAVES.format(out=str(tmp_path), name="study"),
    }

    def command(name: str, args: argparse.Namespace) -> list[str]:
        calls.append(name)
        return [sys.executable, "-c", code[name]]

    monkeypatch.setattr(gpu_kit, "command_of", command)
    monkeypatch.setattr(gpu_kit, "LIMITS", {"tests": 60.0, "speed": 0.5, "study": 60.0})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["--small", "--out", str(tmp_path)]
    assert gpu_kit.main(words) == 1
    states = {name: values(tmp_path)[name]["status"] for name in code}
    assert states == {"tests": "failed", "speed": "out of time", "study": "done"}
    assert "Not finished: tests, speed" in capsys.readouterr().out
    assert "1 runs have no result yet" in (tmp_path / "gpu.html").read_text()
    code["tests"] = code["speed"] = "pass"
    calls.clear()
    assert gpu_kit.main(words) == 0
    assert calls == ["tests", "speed"], "what ended is not run again"
    calls.clear()
    assert gpu_kit.main([*words, "--again", "study"]) == 0
    assert calls == ["study"]


def test_the_time_limits_leave_room_within_ten_minutes() -> None:
    assert sum(gpu_kit.LIMITS.values()) + 2 * gpu_kit.GRACE <= 600


@pytest.mark.slow
def test_the_whole_kit_on_the_cpu(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "scripts" / "gpu.sh"), "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    found = values(tmp_path)
    assert {found[name]["status"] for name in gpu_kit.LIMITS} == {"done"}
    assert {r["result"] for r in found["tests"]["results"]} <= {"skipped", "passed"}
    assert found["study"]["unfinished"] == 0
