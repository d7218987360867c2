"""Which files and folders among the images are no data: those of file managers, and vitc's own."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Set
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
OUTPUT_FOLDERS = frozenset({"runs", "studies"})  # where vitc writes unless --out names a place
_MADE = frozenset({"thumbnails", "_thumbnails", "_thumbs"})  # copies by programs; lower case
_MADE_STARTS = ("@syno", "@recently-snapshot", "@__thumb")
_SECTIONS = ("model", "data", "optim", "train")  # of a RunConfig
_RUN_FILES = frozenset({"metrics.jsonl", "events.log", "checkpoints", "summary.json"})
_DATA_KEYS = frozenset({"classes", "counts", "img_size"})  # of a run's data.json
_REPORT_FILES = frozenset({"report.html", "results.json", "trials.csv"})
_MAX_JSON = 64 << 20  # bytes; a study's plan lists its trials


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is passed over: hidden, or a file manager's."""
    return name.startswith(".") or name.lower() in _LITTER


def is_made(name: str) -> bool:
    """Whether a folder of this name holds copies of images that a program made."""
    return name.lower() in _MADE or name.lower().startswith(_MADE_STARTS)


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

    By the sections of its config.json; where that is damaged, by the other files of a run.
    """
    if "config.json" not in names:
        return False
    values = _read(folder, "config.json")
    if values is None:
        return len(_RUN_FILES.intersection(names)) >= 2
    return _is_config(values)


def _is_config(values: dict[str, Any]) -> bool:
    return all(isinstance(values.get(section), dict) for section in _SECTIONS)


def _holds_rest_of_run(folder: str, names: Collection[str]) -> bool:
    """Whether a folder is a run that has lost its config.json."""
    known = _RUN_FILES.intersection(names)
    return bool(known) and "data.json" in names and _has(folder, "data.json", _DATA_KEYS)


def holds_folds(folder: str, names: Collection[str]) -> bool:
    """Whether a folder, which holds `names`, is one of folds of vitc."""
    if "folds.json" not in names:
        return False
    values = _read(folder, "folds.json")
    return values is None or values.keys() >= {"seeds", "config"}


def holds_study(folder: str, names: Collection[str]) -> bool:
    """Whether a folder, which holds `names`, is a study of vitc."""
    if "plan.json" not in names:
        return False
    values = _read(folder, "plan.json")
    return "trials" in names if values is None else values.keys() >= {"plan", "hash"}


def holds_checkpoint(folder: str, names: Collection[str]) -> bool:
    """Whether a folder, which holds `names`, is a checkpoint of vitc; other programs have a
    state.json, too."""
    if "state.json" not in names:
        return False
    values = _read(folder, "state.json")
    return "model.safetensors" in names if values is None else "step" in values


def holds_model(folder: str, names: Collection[str]) -> bool:
    """Whether a folder, which holds `names`, is a model that vitc saved."""
    if not {"config.json", "model.safetensors"} <= set(names):
        return False
    return (_read(folder, "config.json") or {}).get("library") == "vitc"


def own_output(folder: str, names: Collection[str]) -> str:
    """What vitc wrote into this folder, which holds `names`; "" where it is not vitc's.

    By what the files hold: other programs use the same names.
    """
    if holds_run(folder, names) or _holds_rest_of_run(folder, names):
        return "a run"
    if holds_study(folder, names):
        return "a study"
    if holds_folds(folder, names):
        return "folds"
    if holds_model(folder, names):
        return "a saved model"
    if set(names) >= _REPORT_FILES and _has(folder, "results.json", {"protocol", "sections"}):
        return "a report"
    return ""


def is_config_file(file: str) -> bool:
    """Whether vitc wrote this file, as `vitc train IMAGES --dry-run` writes runs/<name>.json."""
    folder, name = os.path.split(file)
    return name.endswith(".json") and _is_config(_read(folder, name) or {})


def is_own_output(folder: str, depth: int = 2) -> bool:
    """Whether vitc wrote this folder, or all folders in it, such as in runs/."""
    names = {name for name in listed(folder) if not is_litter(name)}
    if own_output(folder, names):
        return True
    inside = [path for name in names if os.path.isdir(path := os.path.join(folder, name))]
    place = os.path.basename(folder) in OUTPUT_FOLDERS
    if not inside and (place or depth < 2):
        return not names or any(is_config_file(os.path.join(folder, name)) for name in names)
    return bool(inside) and depth > 0 and all(is_own_output(path, depth - 1) for path in inside)


def listed(folder: str) -> set[str]:
    """The names in a folder; none where it cannot be read."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _has(folder: str, name: str, keys: Set[str]) -> bool:
    return (_read(folder, name) or {}).keys() >= keys


def _read(folder: str, name: str) -> dict[str, Any] | None:
    """The object in a JSON file, empty where it holds something else; None: it is damaged.

    A pipe or a device is not opened: it may never end.
    """
    file = os.path.join(folder, name)
    if not os.path.isfile(file):
        return {}
    try:
        with open(file, "rb") as f:
            values = json.loads(f.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else {}
