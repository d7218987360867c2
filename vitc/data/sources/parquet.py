"""Which images do parquet and Arrow files hold?

Arrow files are read in place. Parquet is compressed in groups of rows, so that reading one image
means decoding hundreds: its images are copied once into the user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.decode import MAX_FILE_BYTES
from vitc.data.sources.base import (
    LABEL_COLUMNS,
    SPLIT_OF,
    SPLITS,
    Found,
    Source,
    by_label,
    entries,
    split_of_name,
)
from vitc.data.sources.index import Index, cache_file, find_files, joined, load_index, save_index
from vitc.data.store import Ints, Names, label_codes, stamp
from vitc.errors import ConfigError, DataError, VitcError, unknown
from vitc.files import FolderLock, replacing
from vitc.wording import counted

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes", "pixel_values")
MAX_JSON = 16 << 20  # bytes of a file's metadata
MAX_GROUP = 8 << 30  # bytes of a row group's images, unpacked
BATCH = 256  # rows at a time


class Parquet(Source):
    """Parquet or Arrow files: one, a pattern, or a folder (of the Hugging Face hub, or of
    `datasets`' save_to_disk)."""

    kind = origin = "parquet"
    title = "parquet or Arrow tables"
    path = "a .parquet or .arrow file, a pattern with *, or a folder: --data.path PATH"
    suffixes = (".parquet", ".arrow")
    settings = frozenset({"group", "image_column", "label_column"})

    def matches(self, path: str) -> bool:
        if not os.path.isdir(path):
            return super().matches(path)
        names = entries(path)
        if not names.isdisjoint(("dataset_dict.json", "state.json")):
            return True
        return any(n.endswith(".parquet") for n in names | entries(os.path.join(path, "data")))

    def read(self, config: DataConfig) -> Found:
        """Raises ConfigError: pyarrow is missing, no such files, or ambiguous columns; DataError:
        damaged, rows without bytes, or several labels an image."""
        arrow = _pyarrow()
        files = _table_files(str(config.path))
        parts, places, stamps = [], [], []
        columns: _Columns | None = None
        for path, _ in files:
            try:
                if path.endswith(".parquet"):
                    schema = arrow.parquet.read_schema(path)
                else:
                    with arrow.memory_map(path) as source:
                        schema = _reader(arrow, source).schema
                columns = _columns(schema, config, path, columns)
                if path.endswith(".parquet"):
                    part, copy = _copied(arrow, path, columns)
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
        splits = np.repeat(np.array([s for _, s in files], np.int64), [len(p) for p in parts])
        images, texts = joined([path for path, _ in files], places, stamps, parts)
        return by_label(str(config.path), images, texts, splits, order=columns.classes)


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
    """(file, its split as an index into SPLITS), in order."""
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
            (file, SPLITS.index(SPLIT_OF[name.lower()]))
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
            raise DataError(f"{folder / 'state.json'} names {name!r}, which is not a file in it.")
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
        raise DataError(f"{file} does not hold an object.")
    return values


class _Columns(NamedTuple):
    """Which column is the image, with bytes inside a struct or not, and which the label; the names
    of classes where the schema has them."""

    image: str
    struct: bool
    label: str
    classes: list[str] | None


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
            f"The column {label!r} of {path} holds several labels per image ({kind}).",
            "Multi-label data is not supported.",
        )
    if not kind.startswith(("int", "uint", "string", "large_string", "dictionary")):
        raise ConfigError(
            f"The column {label!r} of {path} holds {kind}: labels must be integers or strings."
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
    """A column with every offset and string checked: pyarrow itself trusts the file."""
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
        batches = _reader(arrow, arrow.BufferReader(whole))
        if hasattr(batches, "num_record_batches"):  # not read at once: they may be compressed
            batches = map(batches.get_batch, range(batches.num_record_batches))
        for batch in batches:
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


def _copied(arrow: Any, path: str, columns: _Columns) -> tuple[Index, Path]:
    """The images of a parquet file in the cache, copied there if they are not.

    One process copies; others, as the processes of one run, wait for it.
    """
    key = f"{os.path.abspath(path)}\0{columns.image}\0{columns.label}"
    kept = cache_file("tables", key)
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
