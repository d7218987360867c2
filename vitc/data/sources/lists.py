"""Which images does a list name? CSV, TSV, text or JSON lines with a path and a label each."""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.litter import is_image, is_litter
from vitc.data.sources import base
from vitc.data.sources.columns import (
    LABEL_NAMES,
    MAX_VALUES,
    PATH_NAMES,
    SplitRule,
    check_header,
    choose_column,
    choose_label,
    is_known,
    known,
    split_rule,
    text_of,
    usage,
)
from vitc.data.store import Files, Ints, Names, label_codes, shown
from vitc.errors import ConfigError, DataError
from vitc.files import once
from vitc.wording import counted

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
MAX_LINE = 1 << 20  # bytes of one line of a list
MAX_LIST = 4 << 30  # bytes of a list
_OBJECT = 'A line holds each key once. For example: {"path": "a.jpg", "label": "cat"}'
MAX_COMPARED = 1000  # rows in which two columns of paths are compared
DELIMITERS = ",;\t|"
Row = tuple[int, Sequence[Any]]  # number of the line, a value for each heading


class List(base.Source):
    """A CSV, TSV, text or JSON-lines file with a path, a label and maybe a split an image."""

    kind = origin = "list"
    title = "a list of image files"
    path = "a list: --data.path FILE.csv (or .tsv, .txt, .jsonl)"
    suffixes = SUFFIXES
    settings = frozenset({"group", "image_column", "label_column", "split_column", "splits"})

    def read(self, config: DataConfig, strict: bool = True) -> base.Found:
        """Raises ConfigError: no such file or columns; DataError: an invalid line, a file that is
        missing or listed twice, or several labels an image."""
        file = Path(str(config.path))
        table = _survey(_open(file))
        images = _columns(table, config, strict)
        listed = _read(table, images, strict)
        sizes, notes = _find(table, listed, config.bad_files)
        _check_twice(listed)
        _check_one_path(table, listed, images)
        there = np.flatnonzero(sizes >= 0)
        codes, labels = label_codes(listed.labels)
        store = Files(file.parent, Names.of(listed.paths).take(there))
        split = base.Split(codes[there], store.names, store=store, sizes=sizes[there])
        splits = np.array(listed.splits, np.int64)[there]
        notes = [*images.notes, *notes]
        split, labels = base.one_label_each(str(file), split, labels, notes, strict)
        return base.by_label(str(file), split, labels, splits, notes, strict=strict)

    def read_any(self, config: DataConfig) -> base.Found:
        return self.read(config, strict=False)

    def columns(self, config: DataConfig) -> Sequence[str]:
        table = _open(Path(str(config.path)))
        next(table.rows(), None)
        return table.header


def listed_files(config: DataConfig) -> list[Path]:
    """The files that a list names, to predict: in its order, those that are missing among them.

    Raises ConfigError: no such list or column; DataError: an invalid line, or all are missing.
    """
    table = _survey(_open(Path(str(config.path))))
    path, others, _ = _paths(table, config)
    columns = _Columns(path, None, SplitRule(), [], others)
    listed = _read(table, columns, strict=False)
    _find(table, listed, "skip")
    _check_one_path(table, listed, columns)
    return [table.file.parent / path for path in listed.paths]


# -- the file --------------------------------------------------------------------------------------


@dataclass
class _Table:
    """A list as a table. values: the different values of each column; None: too many."""

    file: Path
    encoding: str
    delimiter: str = ""
    skip: int = 0  # lines before the header
    header: list[str] = field(default_factory=list)
    values: dict[str, set[str] | None] = field(default_factory=dict)
    late: dict[str, None] = field(default_factory=dict)  # keys that the first line lacks

    def rows(self) -> Iterator[Row]:
        """Every row below the header. Raises ConfigError, DataError."""
        try:
            with self.file.open(encoding=self.encoding, newline="", errors="surrogateescape") as f:
                yield from self._json_rows(f) if not self.delimiter else self._csv_rows(f)
        except UnicodeError as e:
            raise DataError(
                f"{self.file} cannot be read as {self.encoding}: {e}.", "Save it as UTF-8."
            ) from e
        except OSError as e:
            raise DataError(f"{self.file} cannot be read: {e.strerror}.") from e

    def column(self, name: str) -> Iterator[str]:
        """The values of one column, as texts."""
        at = self.header.index(name)
        return (text_of(row[at]) for _, row in self.rows())

    def _csv_rows(self, f: Any) -> Iterator[Row]:
        lines = itertools.islice(f, self.skip, None)
        rows = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True)
        try:
            self.header = [name.strip() for name in next(rows, [])]
            while self.header and not self.header[-1]:
                self.header.pop()  # of a line that ends in a delimiter
            check_header(str(self.file), self.header)
            for row in rows:
                number = self.skip + rows.line_num
                if any(row):
                    while len(row) > len(self.header) and not row[-1]:
                        row.pop()
                    if len(row) != len(self.header):
                        raise DataError(
                            f"{self.file}, line {number}: {len(row)} values under "
                            f"{len(self.header)} headings."
                        )
                    yield number, [value.strip() for value in row]
        except csv.Error as e:
            raise DataError(f"{self.file}, line {self.skip + rows.line_num}: {e}.") from e

    def _json_rows(self, f: Any) -> Iterator[Row]:
        number = 0
        while line := f.readline(MAX_LINE):
            number += 1
            if not line.strip():
                continue
            where = f"{self.file}, line {number}"
            if len(line) == MAX_LINE:
                raise DataError(f"{where} is longer than {MAX_LINE:,} bytes.")
            try:
                values = json.loads(line, object_pairs_hook=once)
            except (ValueError, RecursionError) as e:
                raise DataError(f"{where} is not JSON: {e}.", _OBJECT) from e
            if not isinstance(values, dict):
                raise DataError(f"{where} is not an object.", _OBJECT)
            self.header = self.header or list(values)
            new = [key for key in values if key not in self.header and is_known(key)]
            if new:
                raise DataError(
                    f"{where} has a key {new[0]!r} that the first line lacks.",
                    "Give every line the same keys.",
                )
            if len(self.late) < MAX_VALUES:
                self.late.update(dict.fromkeys(key for key in values if key not in self.header))
            yield number, [values.get(name) for name in self.header]


def _open(file: Path) -> _Table:
    """The encoding and the delimiter of a list, by its beginning."""
    try:
        if file.stat().st_size > MAX_LIST:
            raise DataError(f"{file} is larger than {MAX_LIST:,} bytes.")
        with file.open("rb") as f:
            raw = f.read(MAX_LINE)
    except FileNotFoundError as e:
        raise ConfigError(f"There is no list {file}.") from e
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror}.") from e
    encoding = "utf-8-sig"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in raw[:4096]:
        raise DataError(
            f"{file} is not text, or UTF-16 without a byte order mark.", "Save it as UTF-8."
        )
    if file.suffix.lower() == ".jsonl":
        return _Table(file, encoding)
    skip, delimiter = 0, "\t" if file.suffix.lower() == ".tsv" else ""
    for line in re.split(r"\r\n|\r|\n", raw.decode(encoding, "replace")):
        marked = re.fullmatch(r"\s*sep=(.)\s*", line)  # as Excel writes it
        if line.strip() and not marked:
            break
        skip, delimiter = skip + 1, marked[1] if marked else delimiter
    bare = re.sub(r'"[^"]*"', "", line)
    if not delimiter or delimiter not in bare:
        delimiter = max(DELIMITERS, key=bare.count)
    return _Table(file, encoding, delimiter, skip)


def _survey(table: _Table) -> _Table:
    """The table with its header and the values of its columns."""
    for _, row in table.rows():
        for name, value in zip(table.header, row, strict=True):
            distinct = table.values.setdefault(name, set())
            if distinct is not None:
                distinct.add(text_of(value))
                if len(distinct) > MAX_VALUES:
                    table.values[name] = None
    return table


# -- the columns -----------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """The columns that are used, and how the splits follow from them."""

    path: str
    label: str | None
    rule: SplitRule
    notes: list[str]
    others: list[str]  # columns that can be the path, too


def _paths(table: _Table, config: DataConfig) -> tuple[str, list[str], str]:
    """The column of paths, others that can be it, and what the header is, for a hint."""
    where, header = str(table.file), table.header
    shown = ", ".join(map(repr, header[:6])) or "empty"
    hint = (
        f"The first line names the columns, such as path,label or path,label,split; it is {shown}."
    )
    if len(header) == 1 and " " in header[0]:
        hint = f"Columns are separated by a comma, semicolon, tab or |; the first line is {shown}."
    elif not config.image_column and any(is_image(name, base.IMAGE_SUFFIXES) for name in header):
        hint = f"Its first line names an image: put a line such as path,label above it ({shown})."
    for chosen in (config.image_column, config.label_column, config.split_column):
        if chosen in table.late:
            raise ConfigError(
                f"{where} has lines with the key {chosen!r}, which the first line lacks.",
                "Give every line the same keys.",
            )
    paths = known(header, PATH_NAMES)
    path = choose_column("image_column", config.image_column, header, paths, where, hint)
    others = [] if config.image_column else [name for name in paths if name != path]
    return path, others, hint


def _columns(table: _Table, config: DataConfig, strict: bool) -> _Columns:
    where, header = str(table.file), table.header
    path, others, hint = _paths(table, config)
    labels = [name for name in known(header, LABEL_NAMES) if name != path]
    label: str | None = None
    if strict or labels or config.label_column is not None:
        label = choose_label(config.label_column, header, labels, table.column, where, hint)
    values = {
        name: distinct for name, distinct in table.values.items() if name not in (path, label)
    }
    rule = split_rule(config, values, where)
    used = [name for name in (path, label, *rule.columns) if name is not None]
    notes = [usage(used, [*header, *table.late]), *rule.notes]
    return _Columns(path, label, rule, notes, [name for name in others if name not in used])


# -- the rows --------------------------------------------------------------------------------------


@dataclass
class _Listed:
    """The images of a list, in its order."""

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)


def _read(table: _Table, columns: _Columns, strict: bool) -> _Listed:
    listed = _Listed()
    path_at = table.header.index(columns.path)
    label_at = None if columns.label is None else table.header.index(columns.label)
    split_at = [table.header.index(name) for name in columns.rule.columns]
    for number, row in table.rows():
        where = f"{table.file}, line {number}"
        path, label = row[path_at], "" if label_at is None else row[label_at]
        # Several labels are refused when all are read.
        label = json.dumps(label) if isinstance(label, list) else base.label_of(label)
        if not isinstance(path, str) or label is None:
            raise DataError(
                f"{where}: path and label must be strings; a label may be an integer, also as 3.0.",
                _OBJECT,
            )
        path, label = path.strip(), label.strip()
        try:
            split = columns.rule.split([text_of(row[at]) for at in split_at])
        except ValueError as e:
            raise DataError(f"{where}: {e}.") from e
        if not path or "\0" in path:
            raise DataError(f"{where}: no path.")
        if strict and split == 0 and not base.label_text(label):
            raise DataError(
                f"{where}: no label{label and f', but {label!r}'}.",
                "Fill it in, remove the line, or rename the class.",
            )
        listed.paths.append(path)
        listed.labels.append(label)
        listed.splits.append(split)
    if not listed.paths:
        raise DataError(f"{table.file} lists no images.")
    return listed


def _check_twice(listed: _Listed) -> None:
    """Raises DataError: an image stands in several lines, with one label or with several."""
    labels: dict[str, list[str]] = {}
    for path, label in zip(map(os.path.normpath, listed.paths), listed.labels, strict=True):
        labels.setdefault(path, []).append(label)
    torn = {path: sorted(set(own)) for path, own in labels.items() if len(set(own)) > 1}
    if torn:
        path, own = next(iter(torn.items()))
        raise DataError(
            f"{counted(len(torn), 'image')} listed with different labels: {shown(path)!r} is "
            f"{' and '.join(map(repr, map(shown, own)))}.",
            "Keep the right line of each image: multi-label data is not supported.",
        )
    twice = [path for path, own in labels.items() if len(own) > 1]
    if twice:
        raise DataError(
            f"{counted(len(listed.paths) - len(labels), 'path')} listed twice: {base.some(twice)}.",
            "List each image once; --data.balance weights classes.",
        )


def _check_one_path(table: _Table, listed: _Listed, columns: _Columns) -> None:
    """Raises DataError: another column names other images that exist, in the first rows."""
    folder = table.file.parent
    for column in columns.others:
        named = zip(table.column(columns.path), table.column(column), listed.paths, strict=True)
        for written, other, path in itertools.islice(named, MAX_COMPARED):
            if "\0" in other or not is_image(other, base.IMAGE_SUFFIXES):
                continue
            before, found, _ = path.partition(written)  # where the path was found
            places = [folder, folder / before] if found else [folder]
            theirs = [place / other.replace("\\", "/") for place in places]
            there = next((file for file in theirs if file.is_file()), None)
            if there and (folder / path).is_file() and not there.samefile(folder / path):
                raise DataError(
                    f"{table.file} has several columns that can be the path, {columns.path!r} and "
                    f"{column!r}, which name different images: {written!r} and {other!r}.",
                    "Choose one with --data.image_column NAME.",
                )


def _find(table: _Table, listed: _Listed, bad_files: str) -> tuple[Ints, list[str]]:
    """Bytes of each listed file, -1 for those that are missing, and notes.

    Paths are brought to the form in which they are found: with / for \\, and, in a list that is not
    UTF-8, as Windows-1252.
    """
    notes = []
    sizes = _sizes(table.file.parent, listed.paths)
    if (sizes < 0).any() and _foreign(listed.paths):
        listed.paths = [_western(path) for path in listed.paths]
        sizes = _sizes(table.file.parent, listed.paths)
    if _foreign(listed.labels):
        listed.labels = [_western(label) for label in listed.labels]
        notes.append(f"{table.file.name} is not UTF-8: read as Windows-1252 (Latin-1).")
    if (sizes < 0).any() and any("\\" in path for path in listed.paths):
        slashed = [path.replace("\\", "/") for path in listed.paths]
        again = _sizes(table.file.parent, slashed)
        if (again >= 0).sum() > (sizes >= 0).sum():
            listed.paths, sizes = slashed, again
            notes.append("Paths with \\ are read with /.")
    if (sizes < 0).all():
        place, suffix = _elsewhere(table.file.absolute().parent, listed.paths)
        if place or suffix:
            listed.paths = [os.path.join(place, path) + suffix for path in listed.paths]
            sizes = _sizes(table.file.parent, listed.paths)
            notes.append(f"Paths are read as {listed.paths[0]!r}.")
    missing = [listed.paths[i] for i in np.flatnonzero(sizes < 0).tolist()]
    if not missing:
        return sizes, notes
    text = f"{counted(len(missing), 'listed file')} missing: {base.some(missing)}."
    if bad_files == "stop" or len(missing) == len(listed.paths):
        hint = "Paths are relative to the list's folder."
        if Path(missing[0]).is_file():
            hint = "Paths are relative to the list's folder, not to the current one: move the list."
        elif len(missing) < len(listed.paths):
            hint += " --data.bad_files skip, or in vitc evaluate --skip-broken, leaves them out."
        raise DataError(text, hint)
    return sizes, [*notes, text]


def _sizes(folder: Path, paths: Sequence[str]) -> Ints:
    def size(path: str) -> int:
        try:
            return os.stat(os.path.join(folder, path)).st_size
        except (OSError, ValueError):
            return -1

    with ThreadPoolExecutor(max_workers=16) as pool:  # as for folders: waiting overlaps
        return np.fromiter(pool.map(size, paths), np.int64)


def _foreign(texts: Sequence[str]) -> bool:
    return any("\udc80" <= c <= "\udcff" for text in texts if not text.isascii() for c in text)


def _western(text: str) -> str:
    """Bytes that are no UTF-8 as Windows-1252, which contains Latin-1's letters."""
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeError:
        return raw.decode("cp1252", "replace")


def _elsewhere(folder: Path, paths: Sequence[str]) -> tuple[str, str]:
    """The folder around the list, and the suffix that is left out, with which all paths are found.

    Raises DataError: there are several.
    """
    found: list[tuple[str, str]] = []
    for around in ("", ".."):  # what lies beside the list's folder only if nothing in it fits
        names: list[str] = []
        with contextlib.suppress(OSError), os.scandir(folder / around) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not is_litter(e.name))
        places = [around, *(os.path.join(around, name) for name in names if name != folder.name)]
        found = found or [
            (place, suffix)
            for place in places
            for suffix in ("", ".jpg", ".jpeg", ".png")
            if (folder / place / f"{paths[0]}{suffix}").is_file()
            and (_sizes(folder / place, [path + suffix for path in paths]) >= 0).all()
        ]
    if len(found) > 1:
        raise DataError(
            f"The paths are found in several folders: {base.some(p or '.' for p, _ in found)}.",
            "Write the folder into the list.",
        )
    return found[0] if found else ("", "")
