"""Which images do parquet and Arrow files hold?

Arrow files are read in place. Parquet is compressed in groups of rows, so that reading one image
means decoding hundreds: its images are copied once into the user's cache.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
    SplitRule,
    check_header,
    choose_column,
    choose_label,
    is_split,
    known,
    shared_split,
    split_rule,
    usage,
)
from vitc.data.sources.folder import holds_classes
from vitc.data.sources.parquet_columns import (
    FLOATS,
    MAX_COLUMN,
    MAX_GROUP,
    MAX_TEXT,
    NUMBERS,
    TEXTS,
    arrow_batches,
    arrow_reader,
    class_names,
    column_texts,
    distinct_values,
    group_sizes,
    is_image,
    kind_of,
    pyarrow_modules,
    reading,
    schema_of,
    values,
)
from vitc.data.sources.parquet_files import Files, folders_of_tables, is_saved, table_files
from vitc.data.split_words import SPLITS, parse_splits, read_names
from vitc.data.store import Ints, Names, label_codes, stamp
from vitc.errors import ConfigError, DataError, unknown
from vitc.files import FolderLock, replacing
from vitc.wording import counted

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "imagebytes", "bytes", "pixelvalues")
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
        if is_saved(path):
            return True
        folders = [os.path.basename(folder) for folder in folders_of_tables(path)]
        named = bool(folders) and len(read_names(folders)) == len(folders)
        here = any(name.endswith(".parquet") for name in listed(path))
        return folders == ["data"] or ((here or named) and not holds_classes(path))

    def columns(self, config: DataConfig) -> Sequence[str]:
        arrow = pyarrow_modules()
        (path, *_) = table_files(str(config.path), None).paths
        with reading(arrow, path):
            names: list[str] = schema_of(arrow, path).names
            return names

    def read_any(self, config: DataConfig) -> base.Found:
        return self.read(config, strict=False)

    def read(self, config: DataConfig, strict: bool = True) -> base.Found:
        """Raises ConfigError: pyarrow is missing, no such files, or ambiguous columns; DataError:
        damaged, rows without bytes, or several labels an image."""
        arrow = pyarrow_modules()
        wanted = parse_splits(config.splits) if config.splits else None
        files = table_files(str(config.path), wanted)
        schemas: dict[str, Any] = {}
        parts, places = [], []
        columns: _Columns | None = None
        for path in files.paths:
            with reading(arrow, path):
                schemas[path] = schema_of(arrow, path)
                columns = _columns(arrow, schemas[path], config, path, columns, strict)
                if path.endswith(".parquet"):
                    part, place = _copied(arrow, path, columns)
                else:
                    part, place = _arrow_index(arrow, path, columns), path
            parts.append(part)
            places.append(place)
        if columns is None or not any(len(part) for part in parts):
            raise DataError(f"{config.path} holds no images.")
        consumed = bool(wanted) and any(files.splits)
        rule = _split_columns(arrow, schemas, columns, config, consumed)
        splits = _row_splits(arrow, files, schemas, [len(part) for part in parts], rule)
        stamps = [part.stamp[-2:] for part in parts]  # of the file that is read
        images, texts = index.joined(files.paths, places, stamps, parts)
        used = (columns.image, columns.label, *rule.columns)
        every = dict.fromkeys(name for schema in schemas.values() for name in schema.names)
        notes = [usage(used, every), *rule.notes, *(() if rule.columns else files.notes)]
        if columns.classes is None:
            images, texts = base.one_label_each(str(config.path), images, texts, notes, strict)
        order = columns.classes
        return base.by_label(str(config.path), images, texts, splits, notes, order, strict)


class _Columns(NamedTuple):
    """The columns of images (bytes, or a struct with bytes) and of labels, None without one, and
    the names of the classes if the schema has them."""

    image: str
    label: str | None
    classes: list[str] | None

    @property
    def wanted(self) -> list[str]:
        """The columns to read."""
        return [self.image] if self.label is None else [self.image, self.label]


def _columns(
    arrow: Any,
    schema: Any,
    config: DataConfig,
    path: str,
    before: _Columns | None,
    strict: bool,
) -> _Columns:
    """before: those of the file before. Without `strict` a column of labels may be missing."""
    types = {name: schema.field(name).type for name in schema.names}
    named = class_names(schema)
    check_header(path, schema.names)
    images = [name for name, kind in types.items() if is_image(kind)]
    about = [f"{name} ({str(kind)[:40]})" for name, kind in types.items()]
    hint = f"Columns of {path}: {', '.join(about)}."

    def texts(name: str) -> Iterator[str]:
        return itertools.chain.from_iterable(column_texts(arrow, path, schema, name))

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
    label: str | None = None
    if strict or labels or config.label_column is not None:
        label = choose_label(config.label_column, types, labels, texts, path, hint)
        _check_label(path, label, schema)
    found = _Columns(image, label, None if label is None else named.get(label))
    if before is not None and found != before:
        raise DataError(f"{path} has other columns or class names than the files before it.")
    return found


def _check_label(path: str, label: str, schema: Any) -> None:
    """Raises DataError: a list of labels an image; ConfigError: neither integers nor strings."""
    kind = str(schema.field(label).type)
    if kind.startswith(("list", "large_list", "fixed_size_list")):
        raise DataError(
            f"The column {label!r} of {path} holds several labels per image ({kind}).",
            "Multi-label data is not supported.",
        )
    if kind_of(schema, label) not in (*TEXTS, *NUMBERS, *FLOATS):
        raise ConfigError(
            f"The column {label!r} of {path} holds {kind}: labels must be integers or strings."
        )


def _split_columns(
    arrow: Any, schemas: Mapping[str, Any], columns: _Columns, config: DataConfig, consumed: bool
) -> SplitRule:
    """How splits follow from columns of strings, integers and flags that all files have.

    schemas: those of the files, by path. consumed: the names of data.splits are those of files.
    """
    settings = replace(config, splits="none") if consumed else config
    chosen = config.split_column
    if chosen is None and settings.splits and not parse_splits(settings.splits):
        return SplitRule()
    fitting = {
        path: [
            name
            for name in schema.names
            if name not in (columns.image, columns.label)
            and kind_of(schema, name)
            in (*TEXTS, *NUMBERS, "bool", *(FLOATS if is_split(name) or name == chosen else ()))
        ]
        for path, schema in schemas.items()
    }
    every = list(dict.fromkeys(name for names in fitting.values() for name in names))
    if chosen is not None and chosen not in every:
        for schema in schemas.values():
            if chosen in schema.names:
                raise ConfigError(
                    f"The column {chosen!r} holds {schema.field(chosen).type}; splits are strings, "
                    "integers or true and false."
                )
        known_names = {name for schema in schemas.values() for name in schema.names}
        raise unknown("data.split_column", chosen, sorted(known_names))
    named = [name for name in every if is_split(name)] if not settings.splits else []
    _check_all_have(fitting, named if chosen is None else [chosen])
    common = [name for name in every if all(name in names for names in fitting.values())]
    looked_at = common if chosen is None else [chosen]
    distinct = {name: distinct_values(arrow, schemas, name) for name in looked_at}
    return split_rule(settings, distinct, str(config.path))


def _check_all_have(fitting: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """Raises DataError: some files have a column that can be the split, and others lack it."""
    for name in names:
        lacking = [path for path, there in fitting.items() if name not in there]
        if lacking:
            having = next(path for path, there in fitting.items() if name in there)
            raise DataError(
                f"The column {name!r} divides the images of {having} into splits; "
                f"{base.some(lacking)} {'lacks' if len(lacking) == 1 else 'lack'} such a column.",
                "Splits are strings, integers or true and false. Give all files the column, or "
                "none; --data.splits none uses none.",
            )


def _row_splits(
    arrow: Any, files: Files, schemas: Mapping[str, Any], counts: Sequence[int], rule: SplitRule
) -> Ints:
    """The split of every row: by its columns, else by the name of its file, else train."""
    found: list[int] = []
    for path, named, count in zip(files.paths, files.splits, counts, strict=True):
        if not rule.columns:
            found += [SPLITS.index(named or "train")] * count
            continue
        schema = schemas[path]
        columns = [
            itertools.chain.from_iterable(column_texts(arrow, path, schema, name))
            for name in rule.columns
        ]
        for row in zip(*columns, strict=True):
            try:
                split = rule.split(row)
            except ValueError as e:
                raise DataError(f"{path}: {e}.") from e
            found.append(shared_split(named if len(counts) > 1 else None, split, path))
    return np.array(found, np.int64)


@dataclass
class _Rows:
    """Names and labels of a file's images, gathered batch by batch."""

    path: str
    columns: _Columns
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    distinct: dict[str, str] = field(default_factory=dict)  # each text once, however many rows

    def add(self, batch: Any) -> Any:
        """The batch's images, a binary array. Raises DataError: rows without bytes or label."""
        image = batch.column(self.columns.image)
        image.validate(full=True)  # every offset and string: pyarrow itself trusts the file
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
        self._label(None if self.columns.label is None else batch.column(self.columns.label), image)
        return image

    def _label(self, label: Any, image: Any) -> None:
        """The labels of a batch; none where the file has no column of them."""
        if label is None:
            self.texts += [""] * len(image)
            return
        label.validate(full=True)
        found, classes = values(label), self.columns.classes
        if classes is not None:
            found = [None if v == -1 else v for v in found]  # as published tests have it
            wrong = [v for v in found if v is not None and v not in range(len(classes))]
            if wrong:
                raise DataError(
                    f"{self.path} has the label {wrong[0]!r}; its classes are 0 ... "
                    f"{len(classes) - 1}."
                )
            found = [None if v is None else classes[v] for v in found]
        for v in found:
            text = base.label_of(v)
            if text is None:
                raise DataError(
                    f"{self.path} has the label {v!r}; labels must be integers or strings.",
                    "Choose another column with --data.label_column NAME.",
                )
            if len(text) > MAX_TEXT:
                raise DataError(
                    f"{self.path} has a label of {len(text):,} characters; {MAX_TEXT:,} are "
                    "allowed.",
                    "Choose another column with --data.label_column NAME.",
                )
            self.texts.append(self.distinct.setdefault(text, text))

    def index(self, stamp: tuple[int, ...], offset: Ints, size: Ints) -> index.Index:
        codes, labels = label_codes(self.texts)
        return index.Index(stamp, Names.of(self.names), offset, size, tuple(labels), codes)


def _arrow_index(arrow: Any, path: str, columns: _Columns) -> index.Index:
    """Where the images of an Arrow file are in it."""
    mark, rows = stamp(os.stat(path)), _Rows(path, columns)
    with arrow.memory_map(path) as source:
        whole = source.read_buffer()
        batches = arrow_batches(arrow_reader(arrow, arrow.BufferReader(whole)))
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
    key = "\0".join([os.path.abspath(path), *columns.wanted])
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
    with arrow.parquet.ParquetFile(path, read_dictionary=columns.wanted[1:]) as table:
        _check_room(table.metadata, columns, path, copy.parent)
        with replacing(copy) as temporary, temporary.open("wb") as f:
            for batch in table.iter_batches(batch_size=BATCH, columns=columns.wanted):
                for value in rows.add(batch):
                    raw = value.as_buffer()
                    if raw.size > MAX_FILE_BYTES:
                        raise DataError(f"{path} has an image of {raw.size:,} bytes.")
                    f.write(raw)
                    sizes.append(raw.size)
    return rows, np.array(sizes, np.int64)


def _check_room(metadata: Any, columns: _Columns, path: str, folder: Path) -> None:
    """Refuse row groups that are too large for memory once unpacked, and a full disk."""
    for name, most in zip(columns.wanted, (MAX_GROUP, MAX_COLUMN), strict=False):
        largest = max(group_sizes(metadata, name), default=0)
        if largest > most:
            raise DataError(
                f"{path} has a row group with {largest:,} bytes in the column {name!r}; {most:,} "
                "are allowed.",
                "Write it with smaller row groups.",
            )
    total = sum(group_sizes(metadata, columns.image))
    free = shutil.disk_usage(folder).free
    if total > free:
        raise ConfigError(
            f"The images of {path} take {total / 1e9:.1f} GB in the cache {folder}, where "
            f"{free / 1e9:.1f} GB are free.",
            ELSEWHERE,
        )
