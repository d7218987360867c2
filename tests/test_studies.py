"""A whole study from Python: `vitc.study.run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import Here
from vitc import Predictor, study
from vitc.errors import CheckpointError, ConfigError
from vitc.study.design import TUNING
from vitc.study.launch import LocalEngine
from vitc.study.study_folder import StudyFolder
from vitc.weights.load import read_weights

BRIEF: dict[str, Any] = {
    "train.epochs": 1,
    "train.batch": 64,
    "data.max_train": 128,
    "train.precision": "fp32",
}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_study_runs_from_python_and_is_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"models": ["vit_p_tiny"], "out": tmp_path / "s", "workers": 1}
    made = study.run("hparams", "debug", draws=1, **words, **BRIEF)
    assert "only contender" in made.verdict
    assert made.report.exists()
    assert len(made.frame) == 1
    assert set(dict(made.frame[0] if isinstance(made.frame, list) else made.frame.iloc[0])) >= {
        "contender",
        "error",
        "optim.lr",
    }
    assert made.figure("edf").axes
    with pytest.raises(ConfigError, match="no figure 'x'"):
        made.figure("x")
    monkeypatch.setattr(LocalEngine, "run", Here.run)
    more = study.run("hparams", "debug", draws=2, keep=0, **words, **BRIEF)
    assert [r.error for r in more.section.results][:1] == [made.section.results[0].error]
    best, other = sorted(more.section.results, key=lambda r: r.error or 0.0)
    blank = np.zeros((28, 28), np.uint8)
    assert len(Predictor(best.folder)(blank)) == 1
    with pytest.raises(CheckpointError, match="removed its checkpoints") as caught:
        Predictor(other.folder)
    assert best.folder in str(caught.value)
    with pytest.raises(CheckpointError, match="removed its checkpoints"):
        read_weights(other.folder)
    with pytest.raises(ConfigError, match="never removed"):
        study.run("hparams", "debug", draws=1, **words, **BRIEF)


@pytest.mark.slow
def test_a_measure_tunes_first_where_it_is_asked_to(tmp_path: Path) -> None:
    out = tmp_path / "s"
    words: dict[str, Any] = {"models": ["vit_p_tiny"], "out": out, "workers": 1, "quiet": True}
    made = study.run(
        "vary", "debug", set=[("train.batch", [32])], tune=1, seeds=1, **words, **BRIEF
    )
    tuned, _ = StudyFolder(out / TUNING).read()
    (group,) = made.section.plan.groups
    assert group.config.optim.lr == tuned.draw_values("adamw", 0)["optim.lr"]
    assert "best of 1 draws" in " ".join(made.section.plan.about)


@pytest.mark.parametrize(
    ("measure", "words", "text"),
    [
        ("hparam", {}, "Did you mean 'hparams'"),
        ("hparams", {"lenghts": [1]}, "lenghts"),
        ("hparams", {"look": 2}, "Unknown argument 'look'. Did you mean .looks"),
        ("hparams", {"draws": 0}, "draws is 0; it must be an integer of at least 1"),
        ("hparams", {"draws": 2.5}, "draws is 2.5"),
        ("hparams", {"control": True, "reference": "vit_x"}, "not a contender"),
    ],
)
def test_what_no_study_has_is_refused(
    measure: str, words: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        study.run(measure, "debug", **{"draws": 1, "out": tmp_path / "s", **words})
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.parametrize("given", ["file", pytest.param("standard input", marks=pytest.mark.slow)])
def test_a_script_without_a_main_guard_runs_a_study_once(given: str, tmp_path: Path) -> None:
    script = (
        "import vitc\n"
        f"made = vitc.study.run('hparams', 'debug', models=['vit_p_tiny'], draws=1, workers=1,\n"
        f"    out={str(tmp_path / 's')!r}, quiet=True, **{BRIEF!r})\n"
        "print('trials', len(made.frame))\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, "-" if given == "standard input" else file],
        input=script if given == "standard input" else None,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.splitlines() == ["trials 1"], done.stderr
