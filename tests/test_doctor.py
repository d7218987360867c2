"""`vitc doctor`: what it finds, what it names, and that nothing broken ends it in a traceback."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitc import machine
from vitc.cli.main import main
from vitc.deploy import doctor
from vitc.training import selftest
from vitc.training.selftest import FirstStep, differences, first_step

ROOT = Path(__file__).parents[1]
GOOD = {"device": "cpu", "about": "cpu", "ok": True, "loss": 1e-7, "gradient": 1e-6}
GOOD |= {"next_loss": 1e-7, "worst": "head.weight", "against": "the CPU in fp64"}


@pytest.fixture(scope="module")
def reference() -> FirstStep:
    return first_step(torch.device("cpu"), torch.float64)


def test_fp32_agrees_with_fp64_and_every_parameter_has_a_gradient(reference: FirstStep) -> None:
    found = differences(first_step(torch.device("cpu"), torch.float32), reference)
    assert found["ok"]
    assert 0 < found["gradient"] < 1e-4
    assert all(g.abs().sum() > 0 for g in reference.gradients.values())
    assert reference.next_loss < reference.loss


@pytest.mark.parametrize(
    ("change", "worst", "size"),
    [
        (lambda g: {**g, "blocks.1.mlp.fc1.weight": -g["blocks.1.mlp.fc1.weight"]}, "fc1", 2.0),
        (lambda g: {**g, "head.bias": g["head.bias"] * 1.01}, "head.bias", 0.01),
        (lambda g: {**g, "head.bias": g["head.bias"] * math.nan}, "head.bias", math.nan),
    ],
    ids=["sign", "scale", "nan"],
)
def test_a_wrong_gradient_is_found_with_its_tensor_and_size(
    reference: FirstStep, change: Any, worst: str, size: float
) -> None:
    found = differences(reference._replace(gradients=change(reference.gradients)), reference)
    assert not found["ok"]
    assert worst in found["worst"]
    assert found["gradient"] == pytest.approx(size, nan_ok=True)


def test_a_wrong_update_is_found_by_the_next_loss(reference: FirstStep) -> None:
    found = differences(reference._replace(next_loss=reference.loss), reference)
    assert (found["ok"], found["loss"], found["gradient"]) == (False, 0, 0)


def test_each_device_is_compared_and_one_that_fails_does_not_end_it(
    reference: FirstStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(device: torch.device, dtype: torch.dtype) -> FirstStep:
        if device.index == 1:
            raise RuntimeError("no kernel image\nis available")
        return reference._replace(loss=9.0) if device.type == "cuda" else reference

    cards = [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(selftest, "devices", lambda: cards)
    monkeypatch.setattr(selftest, "first_step", step)
    monkeypatch.setattr("vitc.training.device.describe", str)
    lines = [line for line in selftest.self_test() if "device" in line]
    assert [line["ok"] for line in lines] == [True, False, False]
    assert lines[1]["loss"] > 0.5
    assert lines[2]["error"] == "RuntimeError: no kernel image is available"


def examined(monkeypatch: pytest.MonkeyPatch, *lines: dict[str, Any], end: str = "") -> Any:
    monkeypatch.setattr(doctor, "_run_self_test", lambda words: (list(lines), end))
    return doctor.examine()


def test_a_wrong_device_is_an_error_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**GOOD, "device": "mps", "about": "mps", "ok": False, "gradient": 0.25}
    found = examined(monkeypatch, GOOD, wrong)
    assert len(found.errors) == 1
    assert all(part in found.errors[0] for part in ("mps", "head.weight", "2.5e-01"))
    assert found.record["status"] == "failed"
    doctor.page(found)


def test_a_torchvision_of_another_build_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions.get(name, "99"))
    why = "RuntimeError: operator torchvision::nms does not exist"
    found = examined(monkeypatch, GOOD, {"module": "torchvision", "error": why})
    assert not found.errors
    assert "torchvision 0.28.0 beside torch 2.13.0+cpu" in found.warnings[0]
    assert "'torchvision==0.28.0+cpu'" in found.warnings[0]


def test_what_cannot_be_imported_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"module": "PIL", "error": "ImportError: x.so"}, {"failed": "NameError: torch"}]
    found = examined(monkeypatch, *lines)
    (error,) = found.errors
    assert "x.so" in error
    assert "--force-reinstall pillow" in error


def test_extras_and_versions_follow_what_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["pillow>=1", "torch>=999", "nowhere>=2; extra == 'far'", "numpy; extra == 'near'"]
    monkeypatch.setattr(machine, "SOURCE", tmp_path)  # no pyproject.toml there
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    found = examined(monkeypatch, GOOD)
    (error,) = found.errors
    assert "torch" in error
    assert "needs 999" in error
    extras = found.values["extras"]
    assert extras["near"] == {"present": True, "lacking": [], "install": None}
    assert extras["far"]["lacking"] == ["nowhere (absent)"]
    assert extras["far"]["install"] == "pip install 'vitc[far]'"


def test_the_source_tree_names_every_extra() -> None:
    assert {"data", "peers", "pretrained", "test"} < doctor.requirements().keys()
    assert "torch" in doctor.requirements()[""]


@pytest.mark.parametrize(
    ("last", "named"),
    [("kill -ILL $$", "SIGILL"), ("exec sleep 30", "did not end"), ("exit 3", "exit code 3")],
)
def test_a_process_that_dies_or_hangs_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, named: str
) -> None:
    stub = tmp_path / "python"
    stub.write_text(f"""#!/bin/sh\necho '{{"begin": "import torch"}}'\necho noise\n{last}\n""")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setattr(doctor, "TEST_SECONDS", 1.0)
    (error,) = doctor.examine().errors
    assert error.startswith("Import torch ")
    assert named in error


def test_broken_libraries_end_in_a_report_and_no_traceback(tmp_path: Path) -> None:
    for name in ("torch", "rich", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('libmissing.so')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "vitc", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    for name in ("torch", "rich", "numpy"):
        assert f"{name} cannot be imported: ImportError: libmissing.so" in done.stdout


@pytest.mark.slow
def test_this_machine_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["status"] == "good"
    assert values["devices"][0]["device"] == "cpu"
    assert values["versions"]["torch"] == torch.__version__
    assert values["memory_bytes"] > values["free_memory_bytes"] > 0
