"""Does vitc behave as the version that wrote tests/golden/? Numbers, names and keys, no prose.

What changed on purpose is listed in `golden_access` and in CHANGELOG.md. The goldens are written by
scripts/make_goldens.py.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import vitc
from tests import golden_cases as cases
from tests.golden_cases import config_differences, differences, golden
from vitc.config import to_dict
from vitc.resolve import resolve_config

SAME_MACHINE = cases.machine() == golden("trained")["machine"]


def test_every_recipe_has_the_same_settings() -> None:
    old: dict[str, dict[str, Any]] = golden("recipes")
    wrong: list[str] = []
    for key, settings in old.items():
        name, optim = key.split()
        new = to_dict(resolve_config(name, optim=optim))  # as `vitc show` has them
        wrong += [f"{key}: {d}" for d in config_differences(settings, new)]
    assert not wrong
    assert {key.split()[0] for key in old} <= set(cases.recipe_names())


@pytest.mark.parametrize("name", cases.FULL_MODELS)
def test_a_model_has_the_same_names_and_shapes(name: str) -> None:
    assert cases.names_and_shapes(name) == golden("models")[name]


@pytest.mark.slow
def test_all_models_have_the_same_names_and_shapes() -> None:
    old = golden("models")["hashes"]
    new = {m: cases.sha("\n".join(cases.names_and_shapes(m)).encode())[:16] for m in old}
    assert new == old
    assert set(old) <= set(vitc.list_models())


@pytest.mark.parametrize("name", cases.BATCHES)
def test_the_first_batches_are_the_same(name: str) -> None:
    old, new = golden("batches")[name], cases.batch_hashes(name)
    assert not differences(old, new, 1e-6 if SAME_MACHINE else 1e-3)
    if SAME_MACHINE:  # hashes are texts, which `differences` does not read
        assert new == old


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("c_adamw", "p_sgd") else pytest.mark.slow)
        for n in cases.TRAINED
    ],
)
def test_training_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    cases.run_json(*cases.TRAINED[name].split(), "--out", tmp_path)
    old = golden("trained")[name]
    new = {
        "state": cases.state_of(tmp_path),
        "metrics": cases.without(cases.metrics(tmp_path), cases.WALL),
    }
    if SAME_MACHINE:
        assert new == old
    assert not differences(old["metrics"], new["metrics"], None)
    assert not differences(old["state"], new["state"], 1e-2)


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cases.places(tmp_path_factory.mktemp("places"))


@pytest.mark.parametrize("name", cases.SITUATIONS)
def test_exit_codes(name: str, places: dict[str, Path]) -> None:
    words = cases.filled(cases.SITUATIONS[name], **places)
    code, out = cases.run(*words)
    assert code == golden("cli")["codes"][name]
    if "--json" in words and code:
        assert json.loads(out.splitlines()[-1])["status"] in ("failed", "diverged")


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]
)
def test_exit_codes_of_signals(number: signal.Signals, name: str, tmp_path: Path) -> None:
    assert cases.stopped(tmp_path / "run", number) == golden("cli")["codes"][name]


def test_a_misspelt_setting_is_answered_with_the_right_one(places: dict[str, Path]) -> None:
    _, out = cases.run(*cases.filled(cases.SITUATIONS["unknown setting"], **places))
    assert "'optim.lr'" in out.replace("--", "")


def test_the_results_on_one_line_have_the_same_keys(places: dict[str, Path]) -> None:
    old = golden("cli")
    for name, words in cases.JSON_VERBS.items():
        code, out = cases.run(*cases.filled(words, **places))
        assert code == 0, (name, out)
        new = cases.keys(json.loads(out.splitlines()[-1]))
        assert not differences(old["keys"][name], new, None), name
        assert not cases.type_differences(old["keys"][name], new), name
    kinds: dict[str, Any] = {}
    for line in cases.metrics(places["tmp"] / "fresh"):
        kinds.setdefault(line["kind"], cases.keys(line))
    assert not differences(old["metrics"], kinds, None)


# -- files for others ------------------------------------------------------------------------------


def test_a_saved_model_has_the_same_bytes(places: dict[str, Path], tmp_path: Path) -> None:
    old, folder = golden("runs")["saved"], tmp_path / "saved"
    cases.run_json("save", places["run"], folder)
    assert cases.sha((folder / "model.safetensors").read_bytes()) == old["model_sha256"]
    new = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert new == old["files"]
    config = json.loads((folder / "config.json").read_text())
    assert not config_differences(old["config"], config)


@pytest.mark.parametrize(
    ("name", "words"), [("photos.vitc", []), ("raw.vitc", ["--raw", "--short-side", "24"])]
)
def test_a_pack_has_the_same_bytes(
    name: str, words: list[str], places: dict[str, Path], tmp_path: Path
) -> None:
    old = golden("runs")["pack"][name]
    new = cases.run_json("data", "pack", places["images"], tmp_path / name, *words)
    assert not differences({k: v for k, v in old.items() if k != "sha256"}, new)
    if SAME_MACHINE or not words:  # raw pixels depend on the decoder
        assert cases.sha((tmp_path / name).read_bytes()) == old["sha256"]
