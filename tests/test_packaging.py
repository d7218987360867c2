"""What is released and what is tested: the sdist, the workflow, and lines that install vitc."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOW = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
SERVE = (ROOT / "docs/serve.md").read_text(encoding="utf-8")


def test_the_sdist_has_all_that_tests_and_docs_read() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or "pyproject.toml" not in listed.stdout.split():
        pytest.skip("not a clone")
    tracked = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    included = set(PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert tracked - included <= {".ci", ".gitignore", "pyproject.toml"}  # hatch adds the last two
    assert included <= tracked


def test_the_workflow_covers_the_oldest_python_and_torch_and_the_extras() -> None:
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    jobs = dict(re.findall(r"^  (\w+):.*\n((?:    .*\n)+)", WORKFLOW.partition("jobs:\n")[2], re.M))
    assert f'"{least}"' in jobs["test"]
    assert f'"{least}"' in jobs["package"]
    pattern = re.search(r"sed -n '(.*?)' pyproject.toml", jobs["oldest"])
    assert pattern is not None
    words = ["sed", "-n", pattern[1], str(ROOT / "pyproject.toml")]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert f"torch>={found}" in PROJECT["project"]["dependencies"]
    assert "make check" in jobs["extras"]
    targets = re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    used = re.findall(r"make ([a-z./ -]+)", "".join(jobs.values()))
    assert {name for names in used for name in names.split()} <= {*targets}


def test_the_container_installs_the_wheel_that_is_built_before() -> None:
    (image,) = re.findall(r"```dockerfile\n(.*?)```", SERVE, re.S)
    assert "COPY vitc-*.whl" in image
    assert "vitc[" not in image
    shell = SERVE[SERVE.index(image) :]
    assert 0 < shell.index("-m build --wheel") < shell.index("docker build")
