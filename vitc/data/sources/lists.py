"""Which images does a list name? CSV, TSV or JSON lines with a path and a label each."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.sources import base
from vitc.data.store import Files, Ints, Names, label_codes
from vitc.errors import ConfigError, DataError, suggest
from vitc.wording import counted

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image")
SPLIT_COLUMNS = ("split", "subset", "partition")
MAX_LINE = 1 << 20  # bytes of one line of a list
MAX_LIST = 4 << 30  # bytes of a list
Row = tuple[int, str, str | list[str], str]  # line, path, label or labels, split


class List(base.Source):
    """A CSV, TSV or JSON-lines file with a path, a label and maybe a split for each image."""

    kind = origin = "list"
    title = "a list of image files"
    path = "a list: --data.path FILE.csv (or .tsv, .jsonl)"
    suffixes = (".csv", ".tsv", ".jsonl")
    settings = frozenset({"group", "image_column", "label_column"})

    def read(self, config: DataConfig) -> base.Found:
        """Raises ConfigError: no such file or columns; DataError: an invalid line, a file that is
        missing or listed twice, or several labels an image."""
        file = Path(str(config.path))
        paths: list[str] = []
        texts: list[str] = []
        splits: list[int] = []
        several = 0
        for number, path, label, split in _rows(file, config):
            if isinstance(label, list) or "|" in label:
                several += 1
                continue
            if not path or not label or "\0" in path:
                raise DataError(f"{file}, line {number}: {'no path' if not path else 'no label'}.")
            if split.lower() not in base.SPLIT_OF:
                near = suggest(split, base.SPLIT_OF)
                raise DataError(
                    f"{file}, line {number}: unknown split {split!r}.{near}",
                    "Known: train, val (validation, dev), test.",
                )
            paths.append(path)
            texts.append(label)
            splits.append(base.SPLITS.index(base.SPLIT_OF[split.lower()]))
        if several:
            raise DataError(
                f"{file} gives {counted(several, 'image')} several labels.",
                "Give one label per line: multi-label data is not supported.",
            )
        if not paths:
            raise DataError(f"{file} lists no images.")
        twice = [path for path, count in Counter(paths).items() if count > 1]
        if twice:
            raise DataError(
                f"{counted(len(paths) - len(set(paths)), 'path')} listed twice: "
                f"{base.some(twice)}.",
                "List each image once; --data.balance weights classes.",
            )
        sizes, notes = _sizes(file, paths, config)
        there = np.flatnonzero(sizes >= 0)
        codes, labels = label_codes(texts)
        store = Files(file.parent, Names.of(paths).take(there))
        images = base.Split(codes[there], store.names, store=store, sizes=sizes[there])
        return base.by_label(str(file), images, labels, np.array(splits, np.int64)[there], notes)


def _sizes(file: Path, paths: list[str], config: DataConfig) -> tuple[Ints, list[str]]:
    """Bytes of each listed file, -1 for those that are missing, and notes."""

    def size(path: str) -> int:
        try:
            return os.stat(os.path.join(file.parent, path)).st_size
        except OSError:
            return -1

    with ThreadPoolExecutor(max_workers=16) as pool:  # as for folders: waiting overlaps
        sizes = np.fromiter(pool.map(size, paths), np.int64)
    missing = [paths[i] for i in np.flatnonzero(sizes < 0).tolist()]
    if not missing:
        return sizes, []
    text = f"{counted(len(missing), 'listed file')} missing: {base.some(missing)}."
    if config.bad_files == "stop":
        raise DataError(
            text, "Paths are relative to the list's folder. --data.bad_files skip leaves them out."
        )
    return sizes, [text]


def _rows(file: Path, config: DataConfig) -> Iterator[Row]:
    try:
        if file.stat().st_size > MAX_LIST:
            raise DataError(f"{file} is larger than {MAX_LIST:,} bytes.")
        with file.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as f:
            if file.suffix.lower() == ".jsonl":
                yield from _json_rows(file, f, config)
            else:
                yield from _csv_rows(file, f, config)
    except FileNotFoundError as e:
        raise ConfigError(f"There is no list {file}.") from e
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror}.") from e


def _csv_rows(file: Path, f: Iterable[str], config: DataConfig) -> Iterator[Row]:
    rows = csv.reader(f, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    try:
        header = [name.strip() for name in next(rows, [])]
        path, label, split = _list_columns(file, header, config)
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{file}, line {rows.line_num}: {len(row)} values under {len(header)} headings."
                )
            of = "train" if split is None else row[split].strip()
            yield rows.line_num, row[path].strip(), row[label].strip(), of
    except csv.Error as e:
        raise DataError(f"{file}, line {rows.line_num}: {e}.") from e


def _list_columns(file: Path, header: list[str], config: DataConfig) -> tuple[int, int, int | None]:
    hint = (
        f"The first line names the columns, such as path,label or path,label,split; it is "
        f"{', '.join(map(repr, header[:6])) or 'empty'}."
    )

    def column(setting: str, usual: tuple[str, ...]) -> int:
        near, wanted = [name for name in usual if name in header], getattr(config, setting)
        chosen = base.choose_column(setting, wanted, header, near, usual, str(file), hint)
        return header.index(chosen)

    path, label = column("image_column", PATH_COLUMNS), column("label_column", base.LABEL_COLUMNS)
    split = next((header.index(name) for name in SPLIT_COLUMNS if name in header), None)
    return path, label, split


def _json_rows(file: Path, f: Any, config: DataConfig) -> Iterator[Row]:
    number = 0
    while line := f.readline(MAX_LINE):
        number += 1
        if not line.strip():
            continue
        if len(line) == MAX_LINE:
            raise DataError(f"{file}, line {number} is longer than {MAX_LINE:,} bytes.")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{file}, line {number} is not JSON: {e}.") from e
        if not isinstance(values, dict):
            raise DataError(
                f"{file}, line {number} is not an object.",
                'For example: {"path": "a.jpg", "label": "cat"}',
            )
        path, label, split = _list_columns(file, list(values), config)
        row = list(values.values())
        of = "train" if split is None else row[split]
        if isinstance(row[label], list):
            row[label] = [str(v) for v in row[label]]
        elif isinstance(row[label], int) and not isinstance(row[label], bool):
            row[label] = str(row[label])
        good = isinstance(row[path], str) and isinstance(row[label], str | list)
        if not good or not isinstance(of, str):
            raise DataError(
                f"{file}, line {number}: path, label and split must be strings; a label may "
                "also be an integer."
            )
        yield number, row[path], row[label], of
