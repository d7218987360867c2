"""Which parquet and Arrow files make up a data set, and which split is each of?"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from vitc.data.litter import is_litter, listed
from vitc.data.sources import base, index
from vitc.data.split_words import as_setting, read_names, shard_splits, split_values
from vitc.errors import ConfigError, DataError

MAX_JSON = 16 << 20  # bytes of a file's metadata


class Files(NamedTuple):
    """The files in order, the split that each one's name speaks of or None, and notes."""

    paths: list[str]
    splits: list[str | None]
    notes: list[str]


def table_files(path: str, wanted: dict[str, str] | None) -> Files:
    folder = Path(path)
    if not folder.is_dir():
        return _named(path, index.find_files(path, (".parquet", ".arrow")), wanted)
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        names = _small_json(listing).get("splits")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DataError(f"{listing} names no splits.")
        known = split_values(names) if wanted is None else wanted
        strange = [name for name in names if wanted != {} and name not in known]
        if strange:
            raise DataError(
                f"{folder} has a split {strange[0]!r}.",
                "Known: train, val (validation), test. Give the folder of one split, or name them: "
                f"{as_setting({**split_values(names), strange[0]: 'train'})}.",
            )
        saved = [(file, known.get(n)) for n in names for file in _saved_files(folder / n)]
        return Files([file for file, _ in saved], [split for _, split in saved], [])
    if (folder / "state.json").is_file():
        files = _saved_files(folder)
        return Files(files, [None] * len(files), [])
    here = [path] if _has_tables(path) else []
    folders = here or folders_of_tables(path)
    if not folders:
        raise ConfigError(f"{folder} holds no .parquet files and no saved data set.")
    names = [os.path.relpath(place, path) for place in folders]
    read = read_names(names)
    if len(folders) > 1 and not all(n in read and not read[n].rest for n in names) and not wanted:
        raise ConfigError(
            f"{folder} holds several folders of .parquet files: {base.some(names)}.",
            "Give one of them, or name the splits: --data.splits train=FOLDER,test=FOLDER.",
        )
    files = [file for place in folders for file in index.find_files(place, (".parquet",))]
    return _named(path, files, wanted)


def is_saved(folder: str) -> bool:
    """Whether save_to_disk of `datasets` wrote a folder, by the keys of its JSON files, and the
    folders they name: other programs have files of these names, too."""
    with contextlib.suppress(DataError):
        if "_data_files" in _small_json(Path(folder, "state.json")):
            return True
    with contextlib.suppress(DataError):
        splits = _small_json(Path(folder, "dataset_dict.json")).get("splits")
        named = splits if isinstance(splits, list) else []
        return any(Path(folder, str(name), "state.json").is_file() for name in named)
    return False


def folders_of_tables(path: str) -> list[str]:
    """The sub-folders with .parquet files: data alone, as on the hub, or all that have any."""
    places = [os.path.join(path, name) for name in sorted(listed(path)) if not is_litter(name)]
    found = [place for place in places if _has_tables(place)]
    hub = os.path.join(path, "data")
    return [hub] if hub in found else found


def _has_tables(folder: str) -> bool:
    return any(name.endswith(".parquet") and not is_litter(name) for name in listed(folder))


def _named(path: str, files: list[str], wanted: dict[str, str] | None) -> Files:
    try:
        return Files(files, *shard_splits(files, wanted))
    except ValueError as e:
        raise DataError(f"{path}: {e}", "Rename it, or use --data.splits none.") from e


def _saved_files(folder: Path) -> list[str]:
    """The Arrow files of one split saved by `datasets`, as its state.json lists them."""
    file = folder / "state.json"
    state = _small_json(file)
    if state.get("_indices_files"):
        raise DataError(f"{folder} is a selection of rows.", "Save it with flatten_indices().")
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{file} lists no files.")
    found = []
    for entry in listed:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise DataError(f"{file} names {name!r}, which is not a file in it.")
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing.")
        found.append(str(folder / name))
    return found


def _small_json(file: Path) -> dict[str, Any]:
    if not file.is_file():  # a pipe may never end
        raise DataError(f"{file} is not a file, or not there.")
    try:
        with file.open("rb") as f:
            raw = f.read(MAX_JSON + 1)
        values = json.loads(raw) if len(raw) <= MAX_JSON else None
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{file} cannot be read: {e}.") from e
    if not isinstance(values, dict):
        raise DataError(f"{file} does not hold an object.")
    return values
