"""What outsiders call: the names, that they lead somewhere, and that they are the promised ones."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import pytest

import vitc

PROMISED = {
    "Complexity",
    "Predictions",
    "Predictor",
    "RunConfig",
    "RunResult",
    "complexity",
    "create_model",
    "errors",
    "from_pretrained",
    "list_models",
    "load_config",
    "push_to_hub",
    "save_pretrained",
    "study",
    "train",
}


def test_the_promised_names_are_public() -> None:
    assert set(vitc.__all__) >= PROMISED


@pytest.mark.parametrize("name", vitc.__all__)
def test_every_public_name_leads_somewhere_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(vitc, name))


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    assert set(dir(vitc)) == {*vitc.__all__, "__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vitc.trian  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        ("create_model", ["name", "num_classes", "img_size", "in_chans", "init", "overrides"]),
        ("list_models", ["pattern"]),
        (
            "load_weights",
            ["model", "path_or_state_dict", "source", "strict", "adapt", "only", "average"],
        ),
        ("load_config", ["path_or_recipe", "overrides"]),
        (
            "save_pretrained",
            ["run_or_model", "folder", "classes", "preprocessing", "weights", "overwrite"],
        ),
        ("from_pretrained", ["folder_or_repo_id", "num_classes", "revision"]),
        (
            "push_to_hub",
            ["run_or_folder", "repo_id", "private", "token", "message", "weights"],
        ),
    ],
)
def test_parameters_have_the_promised_names(call: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(vitc, call)).parameters) == parameters


def test_the_version_is_the_one_that_is_published() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert vitc.__version__ == project["project"]["version"]
