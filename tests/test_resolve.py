"""What a folder is taken for: a run, a study, a saved model, a checkpoint or images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.source_folders import plant
from vitc.cli.main import main
from vitc.config import to_dict
from vitc.errors import ConfigError
from vitc.resolve import check_is, load_config, what_is
from vitc.study import load_runs

OURS = to_dict(load_config("debug"))


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"config.json": OURS}, "run"),
        ({"config.json": "{damaged", "metrics.jsonl": "", "events.log": ""}, "run"),
        ({"config.json": {"name": "export", "version": 3}}, "images"),
        ({"config.json": "{damaged"}, "images"),
        ({"config.json": [1], "data.json": {}, "manifest.json": {}}, "images"),
        ({"config.json": {"library": "vitc"}, "model.safetensors": ""}, "saved"),
        ({"plan.json": {"plan": {}, "hash": "x"}}, "study"),
        ({"plan.json": {"weeks": 3}}, "images"),
        ({"state.json": {"step": 3}}, "checkpoint"),
        ({"state.json": "{damaged", "model.safetensors": ""}, "checkpoint"),
        ({"state.json": {"epoch": 3}}, "images"),
        ({"state.json": "{damaged"}, "images"),
        ({"state.json": {"_data_files": []}, "data-00000-of-00001.arrow": ""}, "images"),
    ],
)
def test_a_folder_is_recognised_by_the_keys_of_its_json(
    tmp_path: Path, files: dict[str, Any], what: str
) -> None:
    plant(tmp_path, {"a": 2, "b": 2})
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    assert what_is(tmp_path) == what


def test_runs_are_listed_without_other_programs_configs(tmp_path: Path) -> None:
    for name, values in (("a", OURS), ("b", {"name": "export"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    assert [run.path.name for run in load_runs(tmp_path)] == ["a"]


def test_a_damaged_config_of_a_run_is_named(tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "events.log"):
        (tmp_path / name).write_text("{damaged")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path)


def test_a_run_inside_its_own_images_is_resumed_evaluated_and_restarted(
    photo_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = photo_folder(2, 14)
    (root / "config.json").write_text('{"name": "export", "version": 3}')
    monkeypatch.chdir(root)
    words = ["train", "debug", "--data", ".", "--train.epochs", "1", "--out", "runs/one"]
    assert main(words) == 0
    run = root / "runs" / "one"
    first = json.loads((run / "data.json").read_text())
    for name in ("curves.png", "attention.png"):  # as `show --plot` leaves them there
        (run / name).write_bytes(next(root.glob("*/*.jpg")).read_bytes())
    assert main(["eval", str(run)]) == 0
    assert main([*words, "--overwrite"]) == 0
    again = json.loads((run / "data.json").read_text())
    assert again["classes"] == first["classes"]
    assert again["fingerprint"] == first["fingerprint"]
    assert "written by vitc (runs): 'runs'" in capsys.readouterr().err


def test_what_is_missing_or_of_another_kind_is_named_with_what_to_do(tmp_path: Path) -> None:
    plant(tmp_path / "photos", {"a": 2, "b": 2})
    kinds = ("run", "saved", "exported", "folds")
    with pytest.raises(ConfigError) as missing:
        check_is(tmp_path / "photo", *kinds)
    text = str(missing.value)
    assert "no run folder, saved model, exported model or folder of folds '" in text
    assert f"Did you mean '{tmp_path / 'photos'}'?" in text
    assert "recipes" not in text.lower()
    with pytest.raises(ConfigError) as other:
        check_is(tmp_path / "photos", *kinds)
    assert f"vitc train {tmp_path / 'photos'}" in str(other.value)
    with pytest.raises(ConfigError, match="vitc show --list"):
        check_is(tmp_path / "photos", "recipe", "config")
