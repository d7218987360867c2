"""Which images do parquet and Arrow files hold?

Arrow files are read in place. Parquet is compressed in groups of rows, so that reading one image
means decoding hundreds: its images are copied once into the user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitc.data.broken import MAX_FILE_BYTES
from vitc.data.config import DataConfig
from vitc.data.sources import base, index
from vitc.data.store import Ints, Names, label_codes, stamp
from vitc.errors import ConfigError, DataError, VitcError
from vitc.files import FolderLock, replacing
from vitc.wording import counted

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes", "pixel_values")
MAX_JSON = 16 << 20  # bytes of a file's metadata
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
    settings = frozenset({"group", "image_column", "label_column"})

    def matches(self, path: str) -> bool:
        if not os.path.isdir(path):
            return super().matches(path)
        names = base.entries(path)
        if not names.isdisjoint(("dataset_dict.json", "state.json")):
            return True
        inside = base.entries(os.path.join(path, "data"))
        return any(name.endswith(".parquet") for name in names | inside)

    def read(self, config: DataConfig) -> base.Found:
        """Raises ConfigError: pyarrow is missing, no such files, or ambiguous columns; DataError:
        damaged, rows without bytes, or several labels an image."""
        arrow = _pyarrow()
        files = _table_files(str(config.path))
        parts, places = [], []
        columns: _Columns | None = None
        for path, _ in files:
            try:
                if path.endswith(".parquet"):
                    schema = arrow.parquet.read_schema(path)
                    columns = _columns(schema, config, path, columns)
                    part, place = _copied(arrow, path, columns)
                else:
                    with arrow.memory_map(path) as source:
                        schema = _reader(arrow, source).schema
                    columns = _columns(schema, config, path, columns)
                    part, place = _arrow_index(arrow, path, columns), path
            except VitcError:
                raise
            except (arrow.ArrowException, OSError, ValueError, MemoryError) as e:
                raise DataError(f"{path} cannot be read: {e}.") from e
            parts.append(part)
            places.append(place)
        if columns is None or not any(len(part) for part in parts):
            raise DataError(f"{config.path} holds no images.")
        splits = np.repeat(np.array([s for _, s in files], np.int64), [len(p) for p in parts])
        stamps = [part.stamp[-2:] for part in parts]  # of the file that is read
        images, texts = index.joined([path for path, _ in files], places, stamps, parts)
        return base.by_label(str(config.path), images, texts, splits, order=columns.classes)


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
        files = index.find_files(path, (".parquet", ".arrow"))
        return [(file, base.split_of_name(file)) for file in files]
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        names = _small_json(listing).get("splits")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DataError(f"{listing} names no splits.")
        for name in names:
            if name.lower() not in base.SPLIT_OF:
                raise DataError(
                    f"{folder} has a split {name!r}.",
                    "Known: train, val (validation), test. Give the folder of one split, or "
                    "rename the splits.",
                )
        return [
            (file, base.SPLITS.index(base.SPLIT_OF[name.lower()]))
            for name in names
            for file in _saved_files(folder / name)
        ]
    if (folder / "state.json").is_file():
        return [(file, 0) for file in _saved_files(folder)]
    for place in (folder, folder / "data", *sorted(p for p in folder.iterdir() if p.is_dir())):
        if any(name.endswith(".parquet") for name in base.entries(str(place))):
            files = index.find_files(str(place), (".parquet",))
            return [(file, base.split_of_name(file)) for file in files]
    raise ConfigError(f"{folder} holds no .parquet files and no saved data set.")


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
    """The columns of images (bytes, or a struct with bytes) and of labels, and the names of the
    classes if the schema has them."""

    image: str
    label: str
    classes: list[str] | None


def _columns(schema: Any, config: DataConfig, path: str, before: _Columns | None) -> _Columns:
    types = {name: schema.field(name).type for name in schema.names}
    named = _class_names(schema)
    images = [name for name, kind in types.items() if _is_image(kind)]
    labels = [name for name in types if name in named or name in base.LABEL_COLUMNS]
    about = [f"{name} ({str(kind)[:40]})" for name, kind in types.items()]
    hint = f"Columns of {path}: {', '.join(about)}."

    def chosen(setting: str, candidates: list[str], usual: tuple[str, ...]) -> str:
        name = getattr(config, setting)
        return base.choose_column(setting, name, types, candidates, usual, path, hint)

    image = chosen("image_column", images, IMAGE_COLUMNS)
    label = chosen("label_column", labels, base.LABEL_COLUMNS)
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
    found = _Columns(image, label, named.get(label))
    if before is not None and found != before:
        raise DataError(f"{path} has other columns or class names than the files before it.")
    return found


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
        absent = sum(v is None for v in values)
        if absent:
            raise DataError(f"{self.path} has {counted(absent, 'image')} without a label.")
        if classes is None:
            self.texts += map(str, values)
            return image
        wrong = [v for v in values if not isinstance(v, int) or not 0 <= v < len(classes)]
        if wrong:
            raise DataError(
                f"{self.path} has the label {wrong[0]!r}; its classes are 0 ... {len(classes) - 1}."
            )
        self.texts += [classes[v] for v in values]
        return image

    def index(self, stamp: tuple[int, ...], offset: Ints, size: Ints) -> index.Index:
        codes, labels = label_codes(self.texts)
        return index.Index(stamp, Names.of(self.names), offset, size, tuple(labels), codes)


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
