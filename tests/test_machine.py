"""The machine: cores by affinity and quota, versions, and the commit of the working folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitc import machine
from vitc.errors import ConfigError
from vitc.machine import (
    check_installed,
    cores,
    environment,
    install_line,
    memory,
    processor_seconds,
    usable_cores,
)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_a_containers_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/job/step", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("0::/job/step", {"job/cpu.max": "max 100000", "job/step/cpu.max": "200000 100000"}, 2),
        (
            "4:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"},
            3,
        ),
        (
            "4:cpu,cpuacct:/docker/a\n2:memory:/",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/docker/a/cpu.cfs_quota_us": "400000",
                "cpu/docker/a/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        ("nothing", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "0"}, 8),
    ],
)
def test_quotas_of_both_versions_of_control_groups_limit_the_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    files: dict[str, str],
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "CGROUPS_HERE", tmp_path / "here")
    (tmp_path / "here").write_text(f"{lines}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "9000", "memory.current": "6000"}, 3000),
        (
            {
                "memory.max": "9000",
                "memory.current": "6000",
                "memory.stat": "anon 1000\ninactive_file 4000\nactive_file 500\n",
            },
            7500,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "9000",
                "memory/memory.usage_in_bytes": "9000",
                "memory/memory.stat": "inactive_file 1\nactive_file 1\n"
                "total_inactive_file 70\ntotal_active_file 7\n",
            },
            77,
        ),
    ],
)
def test_cached_files_are_not_taken_from_a_containers_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.free_memory() == free


def test_the_environment_names_versions_hardware_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment()
    assert set(found) == {"versions", "hardware", "git_commit"}
    assert set(found["versions"]) == {"vitc", "python", "torch", "numpy"}
    assert found["hardware"]["cpu"]
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["threads"] >= 1
    assert json.loads(json.dumps(found)) == found
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git_commit"] is None
    if shutil.which("git") is None:
        pytest.skip("needs git")
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q"], check=True)
    assert environment()["git_commit"] is None  # no commit yet
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", environment()["git_commit"])


def test_processes_of_one_machine_share_its_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert cores() == 8
    whole = memory()
    assert 1e8 < whole < 1e14
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert cores() == 2
    assert memory() == whole // 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cores() == 1


def test_processor_time_counts_children_that_run_and_that_ended() -> None:
    loop = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = processor_seconds()
    child = subprocess.Popen([sys.executable, "-c", loop], stdin=-1, stdout=-1)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    if sys.platform == "linux":
        assert processor_seconds() - before >= 0.28
    child.communicate(b"\n")
    assert 0.28 <= processor_seconds() - before < 5


@pytest.mark.parametrize("system", ["Linux", "Windows"])
def test_memory_is_kept_where_the_system_can_and_work_is_done_everywhere(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    with machine.memory_kept(), machine.memory_kept():
        block = bytearray(64 << 20)
    assert len(block) == 64 << 20


def test_missing_packages_are_named_with_the_line_to_install_them() -> None:
    check_installed("pytest", "test", "pytest")
    with pytest.raises(ConfigError, match=r"needs nowhere, which") as error:
        check_installed("vitc serve", "serve", "pytest", "nowhere")
    assert error.value.hint == f"Install it with: {install_line('serve')}"


def test_an_extra_is_installed_as_vitc_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone, wheel = tmp_path / "my clone", tmp_path / "site-packages"
    for folder in (clone, wheel):
        folder.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (clone / name).touch()
    monkeypatch.setattr(machine, "SOURCE", wheel)
    assert install_line("serve") == "pip install 'vitc[serve]'"
    monkeypatch.setattr(machine, "SOURCE", clone)
    named = ["pip", "install", "-c", f"{clone}/constraints.txt", "-e", f"{clone}[serve]"]
    assert shlex.split(install_line("serve")) == named
    monkeypatch.chdir(clone)
    assert install_line("serve") == "pip install -c constraints.txt -e '.[serve]'"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert shlex.split(install_line("serve")) == named


def test_the_line_that_installs_an_extra_is_written_in_one_place() -> None:
    package = Path(machine.__file__).parent
    pattern = re.compile(r"pip install [^\n]*(vitc\[|constraints)")
    found = [p.name for p in package.rglob("*.py") if pattern.search(p.read_text("utf-8"))]
    assert found == ["machine.py"]


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}])
def test_threads_spin_briefly_unless_the_user_has_it_otherwise(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, own.get(name, ""))  # restored afterwards
        if name not in own:
            monkeypatch.delenv(name)
    machine.threads_spin_briefly()
    found = {name: os.environ[name] for name in os.environ if name in own or "GOMP" in name}
    assert found == (own or {"GOMP_SPINCOUNT": "30000"})


def test_one_thread_is_for_a_while() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with machine.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
