"""Which images do parquet and Arrow files hold?

Arrow files are read in place. Parquet is compressed in groups of rows, so that reading one image
means decoding hundreds: its images are copied once into the user's cache.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitc.data.broken import MAX_FILE_BYTES
from vitc.data.config import DataConfig
from vitc.data.litter import listed
from vitc.data.sources import base, index
from vitc.data.sources.columns import (
    LABEL_NAMES,
    MAX_VALUES,
    SplitRule,
    check_header,
    choose_column,
    choose_label,
    known,
    shared_split,
    split_rule,
    usage,
)
from vitc.data.sources.parquet_files import MAX_JSON, Files, folders_of_tables, table_files
from vitc.data.split_words import SPLITS, parse_splits, read_names
from vitc.data.store import Ints, Names, label_codes, stamp
from vitc.errors import ConfigError, DataError, VitcError, unknown
from vitc.files import FolderLock, replacing
from vitc.wording import counted

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "imagebytes", "bytes", "pixelvalues")
MAX_GROUP = 8 << 30  # bytes of a row group's images, unpacked
BATCH = 256  # rows at a time
ELSEWHERE = "Choose another place: XDG_CACHE_HOME=DIR."


class Parquet(base.Source):
    """Parquet or Arrow files: one, a pattern, or a folder (of the Hugging Face hub, or of
    `datasets`' save_to_disk)."""

    kind = origin = "parquet"
    title = "parquet or Arrow tables"
    path = "a .parquet or .arrow file, a pattern with *, or a folder: --data.path PATH"
    suffixes = (".parquet", ".arrow")
    settings = frozenset({"group", "image_column", "label_column", "split_column", "splits"})

    def matches(self, path: str) -> bool:
        if not os.path.isdir(path):
            return super().matches(path)
        names = listed(path)
        if not names.isdisjoint(("dataset_dict.json", "state.json")):
            return True
        if any(name.endswith(".parquet") for name in names):
            return True
        folders = [os.path.basename(folder) for folder in folders_of_tables(path)]
        return bool(folders) and (folders == ["data"] or len(read_names(folders)) == len(folders))

    def read_any(self, config: DataConfig) -> base.Found:
        return self.read(config, strict=False)

    def read(self, config: DataConfig, strict: bool = True) -> base.Found:
        """Raises ConfigError: pyarrow is missing, no such files, or ambiguous columns; DataError:
        damaged, rows without bytes, or several labels an image."""
        arrow = _pyarrow()
        wanted = parse_splits(config.splits) if config.splits else None
        files = table_files(str(config.path), wanted)
        parts, places = [], []
        columns: _Columns | None = None
        for path in files.paths:
            try:
                schema = _schema(arrow, path)
                columns = _columns(arrow, schema, config, path, columns)
                if path.endswith(".parquet"):
                    part, place = _copied(arrow, path, columns)
                else:
                    part, place = _arrow_index(arrow, path, columns), path
            except VitcError:
                raise
            except (arrow.ArrowException, OSError, ValueError, MemoryError) as e:
                raise DataError(f"{path} cannot be read: {e}.") from e
            parts.append(part)
            places.append(place)
        if columns is None or not any(len(part) for part in parts):
            raise DataError(f"{config.path} holds no images.")
        consumed = bool(wanted) and any(files.splits)
        rule = _split_columns(arrow, files.paths, schema, columns, config, consumed)
        splits = _row_splits(arrow, files, [len(part) for part in parts], rule)
        stamps = [part.stamp[-2:] for part in parts]  # of the file that is read
        images, texts = index.joined(files.paths, places, stamps, parts)
        used = (columns.image, columns.label, *rule.columns)
        notes = [usage(used, schema.names), *rule.notes, *(() if rule.columns else files.notes)]
        order = columns.classes
        return base.by_label(str(config.path), images, texts, splits, notes, order, strict)


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


class _Columns(NamedTuple):
    """The columns of images (bytes, or a struct with bytes) and of labels, and the names of the
    classes if the schema has them."""

    image: str
    label: str
    classes: list[str] | None


def _columns(
    arrow: Any, schema: Any, config: DataConfig, path: str, before: _Columns | None
) -> _Columns:
    types = {name: schema.field(name).type for name in schema.names}
    named = _class_names(schema)
    check_header(path, schema.names)
    images = [name for name, kind in types.items() if _is_image(kind)]
    about = [f"{name} ({str(kind)[:40]})" for name, kind in types.items()]
    hint = f"Columns of {path}: {', '.join(about)}."

    def values(name: str) -> Iterator[str]:
        return itertools.chain.from_iterable(_texts(arrow, path, schema, name))

    usual = known(images, IMAGE_NAMES)
    if config.image_column is None and len(images) > 1 and not usual:
        raise ConfigError(
            f"{path} has several columns that can be the image: {base.some(images, 5)}.",
            f"{hint} Choose one with --data.image_column NAME.",
        )
    image = choose_column("image_column", config.image_column, types, usual or images, path, hint)
    if image not in images:
        raise ConfigError(f"The column {image!r} of {path} holds {types[image]}, not image bytes.")
    labels = [name for name in known(types, LABEL_NAMES) if name != image] or list(named)
    label = choose_label(config.label_column, types, labels, values, path, hint)
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
    found = _Columns(image, label, named.get(label))
    if before is not None and found != before:
        raise DataError(f"{path} has other columns or class names than the files before it.")
    return found


def _split_columns(
    arrow: Any,
    paths: Sequence[str],
    schema: Any,
    columns: _Columns,
    config: DataConfig,
    consumed: bool,
) -> SplitRule:
    """How splits follow from columns of strings, integers and flags.

    consumed: the names of data.splits are those of files.
    """
    kinds = ("string", "large_string", "bool", "int", "uint", "dictionary")
    wanted = [
        name
        for name in schema.names
        if name not in (columns.image, columns.label)
        and str(schema.field(name).type).startswith(kinds)
    ]
    if config.split_column is not None and config.split_column not in wanted:
        if config.split_column in schema.names:
            kind = schema.field(config.split_column).type
            raise ConfigError(
                f"The column {config.split_column!r} holds {kind}; splits are strings, integers "
                "or true and false."
            )
        raise unknown("data.split_column", config.split_column, schema.names)
    values = {name: _distinct(arrow, paths, schema, name) for name in wanted}
    settings = replace(config, splits="none") if consumed else config
    return split_rule(settings, values, str(config.path))


def _distinct(arrow: Any, paths: Sequence[str], schema: Any, name: str) -> set[str] | None:
    """The different values of a column; None: too many for splits."""
    distinct: set[str] = set()
    for path in paths:
        for texts in _texts(arrow, path, schema, name):
            distinct.update(texts)
            if len(distinct) > MAX_VALUES:
                return None
    return distinct


def _texts(arrow: Any, path: str, schema: Any, name: str) -> Iterator[list[str]]:
    """The values of a column as texts, batch by batch; of a ClassLabel its class names."""
    classes = _class_names(schema).get(name)
    for column in _batches(arrow, path, name):
        values = column.to_pylist()
        if classes is not None:
            values = [
                classes[v] if isinstance(v, int) and 0 <= v < len(classes) else v for v in values
            ]
        yield [v.strip() if isinstance(v, str) else json.dumps(v) for v in values]


def _batches(arrow: Any, path: str, name: str) -> Iterator[Any]:
    """One column of a file, batch by batch, checked."""
    if path.endswith(".parquet"):
        with arrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=65_536, columns=[name]):
                yield batch.column(name)
        return
    with arrow.memory_map(path) as source:
        batches = _reader(arrow, source)
        if hasattr(batches, "num_record_batches"):
            batches = map(batches.get_batch, range(batches.num_record_batches))
        for batch in batches:
            column = batch.column(name)
            column.validate(full=True)
            yield column


def _row_splits(arrow: Any, files: Files, counts: Sequence[int], rule: SplitRule) -> Ints:
    """The split of every row: by its columns, else by the name of its file, else train."""
    found: list[int] = []
    for path, named, count in zip(files.paths, files.splits, counts, strict=True):
        if not rule.columns:
            found += [SPLITS.index(named or "train")] * count
            continue
        schema = _schema(arrow, path)
        columns = [itertools.chain(*_texts(arrow, path, schema, name)) for name in rule.columns]
        for values in zip(*columns, strict=True):
            try:
                split = rule.split(values)
            except ValueError as e:
                raise DataError(f"{path}: {e}.") from e
            found.append(shared_split(named if len(counts) > 1 else None, split, path))
    return np.array(found, np.int64)


def _is_image(kind: Any) -> bool:
    """Whether a type is bytes, or that of an image of `datasets`: struct<bytes, path>."""
    if str(kind).startswith("struct<"):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        kind = fields.get("bytes")
    return str(kind) in ("binary", "large_binary")


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> its class names, as `datasets` writes them into the schema."""
    raw = (schema.metadata or {}).get(b"huggingface", b"{}")
    found = {}
    try:
        features = json.loads(raw)["info"]["features"] if len(raw) <= MAX_JSON else {}
        for column, feature in features.items():
            if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
                continue
            names = feature["names"]
            strings = isinstance(names, list) and all(isinstance(n, str) for n in names)
            if strings and len(set(names)) == len(names):
                found[column] = names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return found


@dataclass
class _Rows:
    """Names and labels of a file's images, gathered batch by batch."""

    path: str
    columns: _Columns
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, batch: Any) -> Any:
        """The batch's images, a binary array. Raises DataError: rows without bytes or label."""
        image, label = batch.column(self.columns.image), batch.column(self.columns.label)
        for column in (image, label):
            column.validate(full=True)  # every offset and string: pyarrow itself trusts the file
        files, nulls = [""] * len(image), image.null_count
        if str(image.type).startswith("struct<"):
            if any(image.type.field(i).name == "path" for i in range(image.type.num_fields)):
                files = [os.path.basename(p or "") for p in image.field("path").to_pylist()]
            image = image.field("bytes")
            nulls += image.null_count
        if nulls:
            raise DataError(
                f"{self.path} has {counted(nulls, 'row')} without image bytes.",
                "If it stores only paths, embed the images, or give a list: path,label.",
            )
        self.names += [f"{len(self.names) + i:08d}{'/' * bool(f)}{f}" for i, f in enumerate(files)]
        values, classes = label.to_pylist(), self.columns.classes
        if classes is None:
            self.texts += ["" if v is None else str(v) for v in values]
            return image
        values = [None if v == -1 else v for v in values]  # as published tests have it
        wrong = [v for v in values if v is not None and v not in range(len(classes))]
        if wrong:
            raise DataError(
                f"{self.path} has the label {wrong[0]!r}; its classes are 0 ... {len(classes) - 1}."
            )
        self.texts += ["" if v is None else classes[v] for v in values]
        return image

    def index(self, stamp: tuple[int, ...], offset: Ints, size: Ints) -> index.Index:
        codes, labels = label_codes(self.texts)
        return index.Index(stamp, Names.of(self.names), offset, size, tuple(labels), codes)


def _schema(arrow: Any, path: str) -> Any:
    if path.endswith(".parquet"):
        return arrow.parquet.read_schema(path)
    with arrow.memory_map(path) as source:
        return _reader(arrow, source).schema


def _reader(arrow: Any, source: Any) -> Any:
    """`datasets` writes streams; others write files, which begin with ARROW1."""
    begin = source.read(6)
    source.seek(0)
    return arrow.ipc.open_file(source) if begin == b"ARROW1" else arrow.ipc.open_stream(source)


def _arrow_index(arrow: Any, path: str, columns: _Columns) -> index.Index:
    """Where the images of an Arrow file are in it."""
    mark, rows = stamp(os.stat(path)), _Rows(path, columns)
    with arrow.memory_map(path) as source:
        whole = source.read_buffer()
        batches = _reader(arrow, arrow.BufferReader(whole))
        if hasattr(batches, "num_record_batches"):  # not read at once: they may be compressed
            batches = map(batches.get_batch, range(batches.num_record_batches))
        ranges = [_ranges(rows.add(batch), whole, path) for batch in batches]
    offset, size = np.concatenate(ranges or [np.zeros((2, 0), np.int64)], axis=1)
    return rows.index(mark, offset, size)


def _ranges(image: Any, whole: Any, path: str) -> Ints:
    """Offset and size in the file of each value of a binary array inside `whole`, (2, n)."""
    width = np.int64 if str(image.type) == "large_binary" else np.int32
    if not len(image):
        return np.zeros((2, 0), np.int64)
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
    return np.stack([at + edges[:-1], np.diff(edges)])


def _copied(arrow: Any, path: str, columns: _Columns) -> tuple[index.Index, str]:
    """The images of a parquet file in the cache, copied there if they are not yet.

    One process copies; others, such as the processes of the same run, wait for it.
    """
    key = f"{os.path.abspath(path)}\0{columns.image}\0{columns.label}"
    kept = index.cache_file("tables", key)
    copy = kept.with_suffix(".images")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(kept.parent, f"{kept.stem}.lock", wait=True)
    except (OSError, ConfigError) as e:
        raise ConfigError(
            f"The images of parquet files are copied into a cache, and {kept.parent} cannot be "
            f"written: {getattr(e, 'strerror', e)}.",
            ELSEWHERE,
        ) from e
    with lock:
        mark = stamp(os.stat(path))
        found = index.load_index(kept, mark)
        if found is None or not copy.is_file() or stamp(os.stat(copy)) != found.stamp[2:]:
            rows, size = _copy(arrow, path, columns, copy)
            found = rows.index((*mark, *stamp(os.stat(copy))), np.cumsum(size) - size, size)
            index.save_index(kept, found)
    return found, str(copy)


def _copy(arrow: Any, path: str, columns: _Columns, copy: Path) -> tuple[_Rows, Ints]:
    """Write the images of a parquet file one after another into `copy`; their sizes in bytes."""
    rows, sizes = _Rows(path, columns), []
    with arrow.parquet.ParquetFile(path) as table:
        _check_room(table, columns, path, copy.parent)
        with replacing(copy) as temporary, temporary.open("wb") as f:
            wanted = [columns.image, columns.label]
            for batch in table.iter_batches(batch_size=BATCH, columns=wanted):
                for value in rows.add(batch):
                    raw = value.as_buffer()
                    if raw.size > MAX_FILE_BYTES:
                        raise DataError(f"{path} has an image of {raw.size:,} bytes.")
                    f.write(raw)
                    sizes.append(raw.size)
    return rows, np.array(sizes, np.int64)


def _check_room(table: Any, columns: _Columns, path: str, folder: Path) -> None:
    """Refuse row groups that are too large for memory once unpacked, and a full disk."""
    total = 0
    for group in map(table.metadata.row_group, range(table.metadata.num_row_groups)):
        size = sum(
            column.total_uncompressed_size
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema.partition(".")[0] == columns.image
        )
        if size > MAX_GROUP:
            raise DataError(f"{path} has a row group of {size:,} bytes; {MAX_GROUP:,} are allowed.")
        total += size
    free = shutil.disk_usage(folder).free
    if total > free:
        raise ConfigError(
            f"The images of {path} take {total / 1e9:.1f} GB in the cache {folder}, where "
            f"{free / 1e9:.1f} GB are free.",
            ELSEWHERE,
        )
