"""Images in tables: parquet and Arrow files with image bytes, and lists of paths (CSV, JSON lines).

Arrow files are read where they lie. Parquet is compressed in groups of rows, so that one image
costs the decoding of hundreds: its images are copied, once, into the user's cache.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.decode import MAX_FILE_BYTES
from vitc.data.sources.folder import SPLIT_WORDS, some
from vitc.data.sources.index import (
    SPLIT_OF,
    Index,
    Labelled,
    cache_file,
    joined,
    load_index,
    save_index,
    split_of_name,
)
from vitc.data.sources.tar import find_files
from vitc.data.store import Ints, Names, label_codes, stamp
from vitc.errors import ConfigError, DataError, VitcError, suggest, unknown
from vitc.files import FolderLock, replacing
from vitc.wording import counted

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "category", "fine_label")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image")
SPLIT_COLUMNS = ("split", "subset", "partition")
MAX_JSON = 16 << 20  # bytes, of what a table says of itself
MAX_GROUP = 8 << 30  # bytes of a row group's images, unpacked
MAX_LINE = 1 << 20  # bytes of one line of a list
MAX_LIST = 4 << 30  # bytes of a list
BATCH = 256  # rows at a time


# -- parquet and Arrow -----------------------------------------------------------------------------


def read_tables(config: DataConfig, cache: Path | None = None) -> Labelled:
    """The images in parquet or Arrow files: a file, a pattern, or a folder (of the Hugging Face
    hub, or of `datasets`' save_to_disk).

    Raises ConfigError: pyarrow is missing, no such files, or the columns are not plain to see;
    DataError: damaged, rows without bytes, or several labels an image.
    """
    arrow = _pyarrow()
    assert config.path is not None
    files = _table_files(config.path)
    parts, places, stamps = [], [], []
    columns: _Columns | None = None
    for path, _ in files:
        try:
            columns = _columns(_schema(arrow, path), config, path, columns)
            if path.endswith(".parquet"):
                part, copy = _copied(arrow, path, columns, cache)
                places.append(str(copy))
                stamps.append(part.stamp[2:])
            else:
                part = _arrow_index(arrow, path, columns)
                places.append(path)
                stamps.append(part.stamp)
        except VitcError:
            raise
        except (arrow.ArrowException, OSError, ValueError, MemoryError) as e:
            raise DataError(f"{path} cannot be read: {e}.") from e
        parts.append(part)
    if columns is None or not any(len(part) for part in parts):
        raise DataError(f"{config.path} holds no images.")
    splits = np.repeat(np.array([s for _, s in files], np.int64), [len(part) for part in parts])
    paths = [path for path, _ in files]
    return joined(paths, places, stamps, parts, splits, [], columns.classes)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as e:
        raise ConfigError(
            "data.source 'parquet' needs pyarrow, which is not installed.",
            "pip install 'vitc[data]'",
        ) from e
    return pyarrow


def _table_files(path: str) -> list[tuple[str, int]]:
    """(file, its split as an index into SPLIT_WORDS), in order."""
    folder = Path(path)
    if not folder.is_dir():
        return [(file, split_of_name(file)) for file in find_files(path, (".parquet", ".arrow"))]
    if (folder / "dataset_dict.json").is_file():
        names = _small_json(folder / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DataError(f"{folder / 'dataset_dict.json'} names no splits.")
        strange = [n for n in names if n.lower() not in SPLIT_OF]
        if strange:
            raise DataError(
                f"{folder} has a split {strange[0]!r}.",
                "Known: train, val (validation), test. Give one part's folder, or "
                "save the set with such names.",
            )
        return [
            (file, list(SPLIT_WORDS).index(SPLIT_OF[name.lower()]))
            for name in names
            for file in _saved_files(folder / name)
        ]
    if (folder / "state.json").is_file():
        return [(file, 0) for file in _saved_files(folder)]
    for place in (folder, folder / "data", *sorted(p for p in folder.iterdir() if p.is_dir())):
        if place.is_dir() and any(p.suffix == ".parquet" for p in place.iterdir()):
            files = find_files(str(place), (".parquet",))
            return [(file, split_of_name(file)) for file in files]
    raise ConfigError(f"{folder} holds no .parquet files and no saved data set.")


def _saved_files(folder: Path) -> list[str]:
    """The Arrow files of one split saved by `datasets`, as its state.json lists them."""
    state = _small_json(folder / "state.json")
    if state.get("_indices_files"):
        raise DataError(f"{folder} is a selection of rows.", "Save it with flatten_indices().")
    listed = state.get("_data_files")
    names = (
        [f.get("filename") for f in listed if isinstance(f, dict)]
        if isinstance(listed, list)
        else []
    )
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise DataError(f"{folder / 'state.json'} names {name!r}, which is no file in it.")
    if not names:
        raise DataError(f"{folder / 'state.json'} lists no files.")
    gone = [str(name) for name in names if not (folder / str(name)).is_file()]
    if gone:
        raise DataError(f"{folder / gone[0]} is missing.")
    return [str(folder / str(name)) for name in names]


def _small_json(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as f:
            raw = f.read(MAX_JSON + 1)
        values = json.loads(raw) if len(raw) <= MAX_JSON else None
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{file} cannot be read: {e}.") from e
    if not isinstance(values, dict):
        raise DataError(f"{file} holds no object.")
    return values


class _Columns(NamedTuple):
    """Which column is the image, with bytes inside a struct or not, and which the label; the names
    of classes where the schema says them."""

    image: str
    struct: bool
    label: str
    classes: list[str] | None


def _schema(arrow: Any, path: str) -> Any:
    if path.endswith(".parquet"):
        return arrow.parquet.read_schema(path)
    with arrow.memory_map(path) as source:
        return _reader(arrow, source).schema


def _reader(arrow: Any, source: Any) -> Any:
    """`datasets` writes streams; others write files, which begin with ARROW1."""
    begin = source.read(6)
    source.seek(0)
    if begin == b"ARROW1":
        return arrow.ipc.open_file(source)
    return arrow.ipc.open_stream(source)


def _columns(schema: Any, config: DataConfig, path: str, before: _Columns | None) -> _Columns:
    types = {name: schema.field(name).type for name in schema.names}
    named = _class_names(schema)
    images = [name for name, kind in types.items() if _is_bytes(kind) or _has_bytes(kind)]
    labels = [name for name in types if name in named or name in LABEL_COLUMNS]
    image = _chosen("image_column", config.image_column, images, IMAGE_COLUMNS, types, path)
    label = _chosen("label_column", config.label_column, labels, LABEL_COLUMNS, types, path)
    if image not in images:
        raise ConfigError(f"The column {image!r} of {path} holds {types[image]}, not image bytes.")
    kind = str(types[label])
    if kind.startswith(("list", "large_list", "fixed_size_list")):
        raise DataError(
            f"The column {label!r} of {path} holds several labels an image ({kind}).",
            "One label an image is supported.",
        )
    if not kind.startswith(("int", "uint", "string", "large_string", "dictionary")):
        raise ConfigError(
            f"The column {label!r} of {path} holds {kind}: labels are whole numbers or texts."
        )
    found = _Columns(image, _has_bytes(types[image]), label, named.get(label))
    if before is not None and found != before:
        raise DataError(f"{path} has other columns or class names than the files before it.")
    return found


def _chosen(
    setting: str,
    wanted: str | None,
    candidates: list[str],
    usual: Sequence[str],
    types: dict[str, Any],
    path: str,
) -> str:
    """The column asked for, or the only candidate, or the one with the most usual name."""
    columns = ", ".join(f"{name} ({str(kind)[:40]})" for name, kind in types.items())
    if wanted is not None:
        if wanted not in types:
            raise unknown(f"data.{setting}", wanted, types, f"Columns of {path}: {columns}.")
        return wanted
    if len(candidates) == 1:
        return candidates[0]
    named = [name for name in usual if name in candidates]
    if named:
        return named[0]
    what = "Several columns" if candidates else "No column"
    raise ConfigError(
        f"{what} of {path} can be the {setting.partition('_')[0]}.",
        f"Choose one with --data.{setting} NAME. There are: {columns}.",
    )


def _is_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary")


def _has_bytes(kind: Any) -> bool:
    """Whether a type is that of an image of `datasets`: struct<bytes: binary, path: string>."""
    if not str(kind).startswith("struct<"):
        return False
    names = [kind.field(i).name for i in range(kind.num_fields)]
    return "bytes" in names and _is_bytes(kind.field(names.index("bytes")).type)


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> its class names, as `datasets` writes them into the schema."""
    raw = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw)["info"]["features"] if len(raw) <= MAX_JSON else {}
        found = {
            column: feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        column: names
        for column, names in found.items()
        if isinstance(names, list)
        and all(isinstance(n, str) for n in names)
        and len(set(names)) == len(names)
    }


def _valid(batch: Any, name: str) -> Any:
    """A column whose every offset and text was checked: pyarrow itself believes them."""
    column = batch.column(name)
    column.validate(full=True)
    return column


def _label_texts(column: Any, columns: _Columns, path: str) -> list[str]:
    values = column.to_pylist()
    absent = sum(v is None for v in values)
    if absent:
        raise DataError(f"{path} has {counted(absent, 'image')} without a label.")
    names = columns.classes
    if names is None:
        return [str(v) for v in values]
    wrong = [v for v in values if not isinstance(v, int) or not 0 <= v < len(names)]
    if wrong:
        raise DataError(
            f"{path} has the label {wrong[0]!r}; its classes are 0 ... {len(names) - 1}."
        )
    return [names[v] for v in values]


def _image_arrays(column: Any, columns: _Columns, path: str) -> tuple[Any, list[str]]:
    """A batch's bytes, and the file names beside them ("" where there is none)."""
    paths = [""] * len(column)
    if columns.struct:
        kinds = {column.type.field(i).name for i in range(column.type.num_fields)}
        if "path" in kinds:
            paths = [os.path.basename(p) if p else "" for p in column.field("path").to_pylist()]
        nulls = column.null_count
        column = column.field("bytes")
        column_nulls = column.null_count + nulls
    else:
        column_nulls = column.null_count
    if column_nulls:
        raise DataError(
            f"{path} has {counted(column_nulls, 'row')} without image bytes.",
            "Where only paths are stored, embed the images, or give a list: path,label.",
        )
    return column, paths


def _arrow_index(arrow: Any, path: str, columns: _Columns) -> Index:
    """Where the images of an Arrow file lie in it."""
    mark = stamp(os.stat(path))
    names: list[str] = []
    texts: list[str] = []
    offsets, sizes = [], []
    with arrow.memory_map(path) as source:
        whole = source.read_buffer()
        reader = _reader(arrow, arrow.BufferReader(whole))
        for batch in _batches(reader):
            image, paths = _image_arrays(_valid(batch, columns.image), columns, path)
            start, size = _ranges(image, whole, path)
            offsets.append(start)
            sizes.append(size)
            names += [f"{len(names) + i:08d}{'/' * bool(p)}{p}" for i, p in enumerate(paths)]
            texts += _label_texts(_valid(batch, columns.label), columns, path)
    codes, labels = label_codes(texts)
    empty = [np.zeros(0, np.int64)]
    return Index(
        stamp=mark,
        names=Names.of(names),
        offset=np.concatenate(offsets or empty),
        size=np.concatenate(sizes or empty),
        labels=tuple(labels),
        code=codes,
    )


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
    else:
        yield from reader


def _ranges(image: Any, whole: Any, path: str) -> tuple[Ints, Ints]:
    """Offset in the file and size of each value of a binary array that lies in `whole`."""
    width = np.int64 if str(image.type) == "large_binary" else np.int32
    if not len(image):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, ends, data = image.buffers()
    if data is None or ends is None:
        raise DataError(f"{path} holds empty images only.")
    at = data.address - whole.address
    if at < 0 or at + data.size > whole.size:
        raise DataError(
            f"{path} holds compressed batches, which cannot be read image by image.",
            "Write it without compression, or as parquet.",
        )
    first = image.offset * np.dtype(width).itemsize
    edges = np.frombuffer(ends, width, len(image) + 1, first).astype(np.int64)
    return at + edges[:-1], np.diff(edges)


def _copied(arrow: Any, path: str, columns: _Columns, cache: Path | None) -> tuple[Index, Path]:
    """The images of a parquet file in the cache, copied there if they are not.

    One process copies; others, as the processes of one run, wait for it.
    """
    key = f"{os.path.abspath(path)}\0{columns.image}\0{columns.label}"
    kept = cache_file("tables", key, cache)
    copy = kept.with_suffix(".images")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(kept.parent, f"{kept.stem}.lock", wait=True)
    except (OSError, ConfigError) as e:
        raise ConfigError(
            f"The images of parquet files are copied into a cache, and {kept.parent} cannot be "
            f"written: {getattr(e, 'strerror', e)}.",
            "Choose another place: XDG_CACHE_HOME=DIR.",
        ) from e
    with lock:
        index = load_index(kept, stamp(os.stat(path)))
        if index is None or not copy.is_file() or stamp(os.stat(copy)) != index.stamp[2:]:
            index = _copy(arrow, path, columns, kept, copy)
    return index, copy


def _copy(arrow: Any, path: str, columns: _Columns, kept: Path, copy: Path) -> Index:
    mark = stamp(os.stat(path))
    names: list[str] = []
    texts: list[str] = []
    sizes: list[int] = []
    with arrow.parquet.ParquetFile(path) as table:
        _check_room(table, columns, path, kept.parent)
        with replacing(copy) as temporary, temporary.open("wb") as f:
            wanted = [columns.image, columns.label]
            for batch in table.iter_batches(batch_size=BATCH, columns=wanted):
                image, paths = _image_arrays(_valid(batch, columns.image), columns, path)
                for i, value in enumerate(image):
                    raw = value.as_buffer()
                    if raw.size > MAX_FILE_BYTES:
                        raise DataError(f"{path} has an image of {raw.size:,} bytes.")
                    f.write(raw)
                    sizes.append(raw.size)
                    names.append(f"{len(names):08d}{'/' * bool(paths[i])}{paths[i]}")
                texts += _label_texts(_valid(batch, columns.label), columns, path)
    codes, labels = label_codes(texts)
    size = np.array(sizes, np.int64)
    index = Index(
        stamp=(*mark, *stamp(os.stat(copy))),
        names=Names.of(names),
        offset=np.cumsum(size) - size,
        size=size,
        labels=tuple(labels),
        code=codes,
    )
    save_index(kept, index)
    return index


def _check_room(table: Any, columns: _Columns, path: str, folder: Path) -> None:
    """Refuse row groups that unpack to more than memory should take, and a disk that is full."""
    total = 0
    about = table.metadata
    for group in range(about.num_row_groups):
        row_group = about.row_group(group)
        parts = [row_group.column(i) for i in range(row_group.num_columns)]
        size = sum(
            p.total_uncompressed_size
            for p in parts
            if p.path_in_schema.partition(".")[0] == columns.image
        )
        if size > MAX_GROUP:
            raise DataError(f"{path} has a row group of {size:,} bytes; {MAX_GROUP:,} are allowed.")
        total += size
    free = shutil.disk_usage(folder).free
    if total > free:
        raise ConfigError(
            f"The images of {path} take {total / 1e9:.1f} GB in the cache {folder}, where "
            f"{free / 1e9:.1f} GB are free.",
            "Choose another place: XDG_CACHE_HOME=DIR.",
        )


# -- lists -----------------------------------------------------------------------------------------


def read_list(config: DataConfig) -> Labelled:
    """The images of a CSV, TSV or JSON-lines list with a path, a label and maybe a split each.

    Raises ConfigError: no such file or columns; DataError: a line that cannot be, a file that is
    missing or listed twice, or several labels an image.
    """
    assert config.path is not None
    file = Path(config.path)
    paths: list[str] = []
    texts: list[str] = []
    splits: list[int] = []
    several = 0
    order = list(SPLIT_WORDS)
    for number, path, label, split in _rows(file, config):
        if isinstance(label, list) or "|" in label:
            several += 1
            continue
        if not path or not label or "\0" in path:
            raise DataError(f"{file}, line {number}: {'no path' if not path else 'no label'}.")
        if split.lower() not in SPLIT_OF:
            near = suggest(split, SPLIT_OF)
            raise DataError(
                f"{file}, line {number}: the split {split!r}.{near}",
                "Known: train, val (validation, dev), test.",
            )
        paths.append(path)
        texts.append(label)
        splits.append(order.index(SPLIT_OF[split.lower()]))
    if several:
        raise DataError(
            f"{file} gives {counted(several, 'image')} several labels. Training takes one label an "
            "image: its loss, mixing and accuracy are those of one class each.",
            "Give one label a line. Several labels an image are not supported.",
        )
    if not paths:
        raise DataError(f"{file} lists no images.")
    return _found_on_disk(config, file.parent, paths, texts, splits)


def _found_on_disk(
    config: DataConfig, root: Path, paths: list[str], texts: list[str], splits: list[int]
) -> Labelled:
    twice = len(paths) - len(set(paths))
    if twice:
        seen: set[str] = set()
        again = [p for p in paths if p in seen or seen.add(p)]  # type: ignore[func-returns-value]
        raise DataError(
            f"{counted(twice, 'path')} listed twice: {some(again)}.",
            "List each image once; --data.balance weighs classes.",
        )
    with ThreadPoolExecutor(max_workers=16) as pool:  # as for folders: waiting overlaps
        sizes = np.fromiter(pool.map(lambda p: _size(root, p), paths, chunksize=1024), np.int64)
    notes = []
    gone = sizes < 0
    if gone.any():
        missing = [paths[i] for i in np.flatnonzero(gone).tolist()]
        text = f"{counted(len(missing), 'listed file')} missing: {some(missing)}."
        if config.bad_files == "stop":
            raise DataError(
                text,
                "Paths are relative to the list's folder. --data.bad_files skip leaves them out.",
            )
        notes.append(text)
    there = np.flatnonzero(~gone)
    codes, labels = label_codes(texts)
    return Labelled(
        store=None,
        root=root,
        names=Names.of(paths).take(there),
        sizes=sizes[there],
        labels=labels,
        codes=codes[there],
        splits=np.array(splits, np.int64)[there],
        notes=notes,
    )


def _size(root: Path, path: str) -> int:
    try:
        return os.stat(os.path.join(root, path)).st_size
    except OSError:
        return -1


def _rows(file: Path, config: DataConfig) -> Iterator[tuple[int, str, str | list[str], str]]:
    """(line, path, label or labels, split) of each row."""
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


def _csv_rows(
    file: Path, f: Iterable[str], config: DataConfig
) -> Iterator[tuple[int, str, str | list[str], str]]:
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
            told = row[split].strip() if split is not None else "train"
            yield rows.line_num, row[path].strip(), row[label].strip(), told
    except csv.Error as e:
        raise DataError(f"{file}, line {rows.line_num}: {e}.") from e


def _list_columns(file: Path, header: list[str], config: DataConfig) -> tuple[int, int, int | None]:
    def column(setting: str, wanted: str | None, usual: Sequence[str]) -> int:
        if wanted is not None and wanted not in header:
            raise unknown(f"data.{setting}", wanted, header)
        near = [name for name in usual if name in header]
        if wanted is None and not near:
            raise ConfigError(
                f"{file} has no column {' or '.join(usual[:2])}; its first line is "
                f"{', '.join(map(repr, header[:6])) or 'empty'}.",
                f"The first line names the columns: path,label or path,label,split. Or choose: "
                f"--data.{setting} NAME.",
            )
        return header.index(wanted if wanted is not None else near[0])

    path = column("image_column", config.image_column, PATH_COLUMNS)
    label = column("label_column", config.label_column, LABEL_COLUMNS)
    split = next((header.index(name) for name in SPLIT_COLUMNS if name in header), None)
    return path, label, split


def _json_rows(
    file: Path, f: Any, config: DataConfig
) -> Iterator[tuple[int, str, str | list[str], str]]:
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
                f"{file}, line {number} is no object.",
                'For example: {"path": "a.jpg", "label": "cat"}',
            )
        path, label, split = _list_columns(file, list(values), config)
        row = list(values.values())
        told = "train" if split is None else row[split]
        if isinstance(row[label], list):
            row[label] = [str(v) for v in row[label]]
        elif isinstance(row[label], int) and not isinstance(row[label], bool):
            row[label] = str(row[label])
        good = isinstance(row[path], str) and isinstance(row[label], str | list)
        if not good or not isinstance(told, str):
            raise DataError(
                f"{file}, line {number}: path, label and split must be texts (a label "
                "may be a whole number)."
            )
        yield number, row[path], row[label], told
