"""The example notebooks: short, and they run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitc.progress import Progress
from vitc.study.study_folder import StudyFolder

EXAMPLES = Path(__file__).parents[1] / "examples"
WITH_JUPYTER = all(importlib.util.find_spec(n) for n in ("nbclient", "ipykernel"))
# How each notebook is made shorter.
BRIEF = {
    "my_cnn": {"DRAWS = 8": "DRAWS = 2", '"data.max_train": 2000': '"data.max_train": 256'},
    "my_photos": {'BUDGET = "3m"': 'BUDGET = "8s"'},
}


def code_cells(name: str) -> list[str]:
    """The code of the notebook, on fewer images and draws or in less time."""
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
    text = "\0".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for old, new in BRIEF[name].items():
        assert old in text
        text = text.replace(old, new)
    return text.split("\0")


def run_cells(name: str, folder: Path, more: str) -> None:
    """Run the notebook as a script in `folder`, then `more`."""
    script = folder / "cells.py"
    script.write_text("\n\n".join([*code_cells(name), more]))
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", BRIEF)
def test_a_notebook_is_short_and_kept_without_outputs(name: str) -> None:
    lines = [line for cell in code_cells(name) for line in cell.splitlines() if line.strip()]
    assert len(lines) <= 60
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_the_study_runs_from_import_to_figure(tmp_path: Path) -> None:
    run_cells("my_cnn", tmp_path, "made.figure().savefig('figure.png')")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    plan, _ = StudyFolder(tmp_path / "studies" / "my_cnn").read()
    assert plan.contenders == ["my_cnn", "vit_c_tiny"]


@pytest.mark.slow
def test_photos_become_a_file_that_answers(
    photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    photo_folder(count=24)
    run_cells("my_photos", tmp_path, "figure.savefig('worst.png')")
    assert (tmp_path / "runs/photos/report.html").exists()
    assert (tmp_path / "photos.onnx").exists()
    assert (tmp_path / "worst.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.skipif(not WITH_JUPYTER, reason="nbclient or ipykernel is missing: NOT run in Jupyter")
def test_the_notebook_runs_in_jupyter(tmp_path: Path) -> None:
    import nbclient
    import nbformat

    book = nbformat.read(EXAMPLES / "my_cnn.ipynb", as_version=4)
    code = iter(code_cells("my_cnn"))
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source = next(code)
    nbclient.NotebookClient(
        book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    *_, run, frame, figure = (c for c in book.cells if c.cell_type == "code")
    pages = [o["data"].get("text/html", "") for o in run.outputs if "data" in o]
    assert "4/4" in pages[0]
    assert "verdict" in pages[-1]
    assert "my_cnn" in str(frame.outputs)
    assert "image/png" in str(figure.outputs) or "Figure" in str(figure.outputs)


def test_a_bar_in_a_notebook_changes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    class Display:
        def update(self, values: Any, raw: bool) -> None:
            shown.append(values["text/html"])

        def display(self, values: Any, raw: bool, display_id: bool) -> Any:
            shown.append(values["text/html"])
            return self

    monkeypatch.setitem(sys.modules, "IPython", Display())
    monkeypatch.setitem(sys.modules, "IPython.display", Display())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with Progress("a study", 4, "trials") as screen:
        screen.line("<b>draw 0</b>")
        screen.update(3, note="")
    assert "0/4" in shown[0]
    assert 'value="3" max="4"' in shown[-1]
    assert "&lt;b&gt;draw 0" in shown[-1]
