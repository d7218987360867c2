"""Folders outlive the settings: with one added, one renamed and one retired, nothing is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch.optim import AdamW, Optimizer

import vitc.config
from tests import golden_cases as cases
from tests.golden_cases import golden
from vitc.config import CHANGES, SCHEMA, Changes, read_config, to_saved, upgrade
from vitc.errors import ConfigError
from vitc.optim.config import OptimConfig
from vitc.optim.optimizers import OPTIMIZERS
from vitc.recipes import RECIPES
from vitc.recipes.recipe import Recipe
from vitc.study.design import NOT_HASHED
from vitc.study.study_folder import StudyFolder

SAME_MACHINE = cases.machine() == golden("runs")["machine"]


@dataclass(frozen=True, kw_only=True)
class LaterAdamW(OptimConfig):
    """AdamW of a later version: `eps` is called `epsilon`, `amsgrad` is new, `betas` is retired."""

    lr: float = 1e-3
    weight_decay: float = 0.24
    epsilon: float = 1e-8
    amsgrad: bool = False

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        return AdamW(groups, lr=self.lr, eps=self.epsilon, fused=fused)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next schema."""
    monkeypatch.setattr(vitc.config, "SCHEMA", SCHEMA + 1)
    changes = Changes(
        renamed={"optim.eps": "optim.epsilon"},
        retired={"optim.betas": ([0.9, 0.999],)},
    )
    monkeypatch.setitem(CHANGES, SCHEMA + 1, changes)
    monkeypatch.setitem(NOT_HASHED, SCHEMA + 1, NOT_HASHED[SCHEMA])
    monkeypatch.setattr("vitc.study.design.SCHEMA", SCHEMA + 1)
    monkeypatch.setitem(OPTIMIZERS, "adamw", LaterAdamW)
    debug = RECIPES["debug"]
    tuned = {**debug.tuned, "adamw": LaterAdamW(lr=1e-3, weight_decay=0.05)}
    monkeypatch.setitem(RECIPES, "debug", Recipe(debug.doc, debug.config, tuned))


@pytest.mark.usefixtures("later")
def test_an_old_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    run = cases.unpack("killed", tmp_path)
    summary = cases.run_json("train", run)
    assert summary["status"] == "done"
    assert ": " not in (run / "events.log").read_text().split("continued")[1].splitlines()[0]
    if SAME_MACHINE:
        assert cases.state_of(run) == golden("runs")["killed"]["state"]


@pytest.mark.usefixtures("later")
def test_every_trial_of_an_old_study_is_found_and_none_is_run_again(tmp_path: Path) -> None:
    study = cases.unpack("hparams", tmp_path)
    plan, record = StudyFolder(study).read()
    assert {t.id for t in plan.trials()} == {p.name for p in (study / "trials").iterdir()}
    trained = {p: p.read_text() for p in study.rglob("events.log")}
    with cases.figures_undrawn():
        cases.run_json(*cases.study_words("hparams", study), "--allow-mixed")
    assert {p: p.read_text() for p in study.rglob("events.log")} == trained
    assert json.loads((study / "plan.json").read_text())["hash"] == record["hash"]


@pytest.mark.usefixtures("later")
def test_a_real_difference_is_named_by_its_setting(tmp_path: Path) -> None:
    study = StudyFolder(cases.unpack("hparams", tmp_path))
    words = [
        *cases.study_words("hparams", study.path),
        "--allow-mixed",
        "--json",
        "--optim.clip_norm",
        "1",
    ]
    code, out = cases.run(*words)
    assert code == 2
    assert "optim.clip_norm: None -> 1.0" in out
    assert "epsilon" not in out


def saved(tmp_path: Path, **values: Any) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_saved(vitc.config.RunConfig()) | values))
    return file


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schema": SCHEMA + 7}, [f"schema {SCHEMA + 7}", f"up to {SCHEMA}"]),
        ({"schema": "new"}, ["schema is 'new'"]),
        ({"schema": 1, "trian": {"epochs": 3}}, ["'trian'"]),
        ({"trian": {"epochs": 3}}, ["'trian'"]),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_with_the_reason(
    values: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    file = saved(tmp_path, **values)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    for word in (str(file), *words):
        assert word in str(caught.value)


@pytest.mark.usefixtures("later")
def test_a_retired_setting_that_changed_the_result_is_an_error() -> None:
    old = {"optim.betas": [0.9, 0.999], "optim": {"eps": 1e-6}}
    assert upgrade(old) == {"schema": SCHEMA + 1, "optim.epsilon": 1e-6}
    with pytest.raises(ConfigError, match=r"optim\.betas is \[0\.9, 0\.95\], but .* retired"):
        upgrade({"optim.betas": [0.9, 0.95]})


def test_the_name_of_a_component_moves_all_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = Changes(renamed={"optim.ema": "average"}, values={"average.kind": {"none": "off"}})
    monkeypatch.setitem(CHANGES, SCHEMA, changes)
    old = {"optim": {"ema": {"kind": "none", "horizon": 0.1}}}
    assert upgrade(old) == {"schema": SCHEMA, "average.kind": "off", "average.horizon": 0.1}
    assert upgrade({**old, "schema": SCHEMA})["optim.ema.kind"] == "none"
