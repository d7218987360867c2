"""Which files and folders among the images are no data: those of file managers, and vitc's own."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

_LITTER = frozenset(  # written by file managers, synchronisers and Python; lower case
    {
        "__macosx",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "@eadir",
        "@recycle",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
_HIDDEN = frozenset(  # folders that programs hide, which may hold images; lower case
    {
        *(".git", ".hg", ".svn", ".dvc", ".idea", ".vscode", ".venv", ".tox", ".ipynb_checkpoints"),
        *(".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".dropbox.cache"),
        *(".thumbnails", ".thumbs", ".@__thumb", ".picasaoriginals", ".stfolder", ".stversions"),
        *(".trash", ".trashes", ".appledouble", ".temporaryitems", ".fseventsd"),
        *(".spotlight-v100", ".documentrevisions-v100", ".huggingface"),
    }
)
_HIDDEN_STARTS = ("._", ".trash-", ".nfs", ".fuse_hidden", ".ds_store")
_RUN_KEYS = frozenset({"model", "data", "optim", "train"})
_RUN_FILES = frozenset({"metrics.jsonl", "events.log", "checkpoints", "summary.json"})
_STUDY_KEYS = frozenset({"plan", "hash"})
_MAX_JSON = 64 << 20  # bytes; a study's plan lists its trials


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is passed over: hidden, or a file manager's."""
    return name.startswith(".") or name.lower() in _LITTER


def is_unknown(name: str) -> bool:
    """Whether a folder of this name is hidden by no program that is known, so that it may have been
    meant as data."""
    lower = name.lower()
    return name.startswith(".") and lower not in _HIDDEN and not lower.startswith(_HIDDEN_STARTS)


def is_image(name: str, suffixes: Collection[str]) -> bool:
    """Whether a file of this name is an image, by its suffix."""
    return "." in name and name.rpartition(".")[2].lower() in suffixes


def holds_run(folder: str, names: Collection[str]) -> bool:
    """Whether a folder, which holds `names`, is a training run of vitc.

    By the keys of its config.json; where that is damaged, by the other files of a run.
    """
    if "config.json" not in names:
        return False
    values = _read(os.path.join(folder, "config.json"))
    return values.keys() >= _RUN_KEYS or len(_RUN_FILES.intersection(names)) >= 2


def holds_study(folder: str, names: Collection[str]) -> bool:
    """Whether a folder, which holds `names`, is a study of vitc."""
    if "plan.json" not in names:
        return False
    return "trials" in names or _read(os.path.join(folder, "plan.json")).keys() >= _STUDY_KEYS


def holds_checkpoint(folder: str, names: Collection[str]) -> bool:
    """Whether a folder, which holds `names`, is a checkpoint of vitc; other programs have a
    state.json, too."""
    if "state.json" not in names:
        return False
    return "model.safetensors" in names or "step" in _read(os.path.join(folder, "state.json"))


def own_output(folder: str, names: Collection[str]) -> str:
    """What vitc wrote into this folder, which holds `names`; "" where it is not vitc's."""
    if holds_run(folder, names):
        return "a run"
    if holds_study(folder, names):
        return "a study"
    if "config.json" in names and "model.safetensors" in names:
        return "a saved model"
    if {"report.html", "results.json", "trials.csv"} <= set(names):
        return "a report"
    return ""


def is_own_output(folder: str, depth: int = 2) -> bool:
    """Whether vitc wrote this folder, or all folders in it, such as in runs/."""
    names = listed(folder)
    if own_output(folder, names):
        return True
    inside = [path for name in names if os.path.isdir(path := os.path.join(folder, name))]
    return bool(inside) and depth > 0 and all(is_own_output(path, depth - 1) for path in inside)


def listed(folder: str) -> set[str]:
    """The names in a folder; none where it cannot be read."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _read(file: str) -> dict[str, Any]:
    """The object in a JSON file; empty where it is damaged or holds something else."""
    try:
        with open(file, "rb") as f:
            values = json.loads(f.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
