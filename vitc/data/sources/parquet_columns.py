"""What do the columns of parquet and Arrow files hold? Read batch by batch, within limits.

Such a file may come from a stranger: a few hundred bytes of parquet can stand for gigabytes of one
repeated string. Strings are therefore read with their dictionary, in which each is held once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitc.data.sources.columns import MAX_VALUES, text_of
from vitc.data.sources.parquet_files import MAX_JSON
from vitc.errors import ConfigError, DataError, VitcError
from vitc.machine import install_line

MAX_GROUP = 8 << 30  # bytes of a row group's images, unpacked
MAX_COLUMN = 1 << 30  # bytes of another column in a row group, unpacked
MAX_TEXT = 1 << 16  # characters of a label, or of a value that can be a split
TEXT_BATCH = 4096  # rows at a time
TEXTS = ("string", "large_string")
FLOATS = ("halffloat", "float", "double")  # pandas writes integers and flags with gaps so
NUMBERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def pyarrow_modules() -> Any:
    """pyarrow with what is used of it. Raises ConfigError: it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as e:
        raise ConfigError(
            "data.source 'parquet' needs pyarrow, which is not installed.",
            f"Install it with: {install_line('data')}",
        ) from e
    return pyarrow


@contextlib.contextmanager
def reading(arrow: Any, what: str) -> Iterator[None]:
    """Errors of pyarrow, and of the disk, as a DataError that names `what` is read."""
    try:
        yield
    except VitcError:
        raise
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as e:
        raise DataError(
            f"{what} cannot be read: {e}.", "It may be damaged: copy or write it again."
        ) from e


# -- the schema ------------------------------------------------------------------------------------


def schema_of(arrow: Any, path: str) -> Any:
    """The columns of a file and their types."""
    if path.endswith(".parquet"):
        return arrow.parquet.read_schema(path)
    with arrow.memory_map(path) as source:
        return arrow_reader(arrow, source).schema


def kind_of(schema: Any, name: str) -> str:
    """The type of a column's values, such as string or int64."""
    kind = schema.field(name).type
    return str(getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind)


def is_image(kind: Any) -> bool:
    """Whether a type is bytes, or that of an image of `datasets`: struct<bytes, path>."""
    if str(kind).startswith("struct<"):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        kind = fields.get("bytes")
    return str(kind) in ("binary", "large_binary")


def class_names(schema: Any) -> dict[str, list[str]]:
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


# -- the values ------------------------------------------------------------------------------------


def arrow_reader(arrow: Any, source: Any, columns: Sequence[int] = ()) -> Any:
    """A reader of an Arrow file. columns: the numbers of those that are unpacked, and may be
    copied; none: all, where they lie if they are not compressed.

    `datasets` writes streams; others write files, which begin with ARROW1.
    """
    begin = source.read(6)
    source.seek(0)
    new = arrow.ipc.open_file if begin == b"ARROW1" else arrow.ipc.open_stream
    return new(source, options=arrow.ipc.IpcReadOptions(included_fields=[*columns] or None))


def arrow_batches(reader: Any) -> Iterator[Any]:
    """The batches of an Arrow file, one at a time: they may be compressed."""
    if hasattr(reader, "num_record_batches"):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


def values(column: Any) -> list[Any]:
    """The values of an array; one that stands in many rows is held once."""
    if not hasattr(column, "dictionary"):
        return list(column.to_pylist())
    used = column.indices.unique().drop_null()
    words = dict(zip(used.to_pylist(), column.dictionary.take(used).to_pylist(), strict=True))
    return [None if i is None else words[i] for i in column.indices.to_pylist()]


def column_texts(arrow: Any, path: str, schema: Any, name: str) -> Iterator[list[str]]:
    """The values of a column as texts, batch by batch; of a ClassLabel its class names.

    Raises DataError: it is damaged.
    """
    classes = class_names(schema).get(name)
    with reading(arrow, f"The column {name!r} of {path}"):
        for column in _batches(arrow, path, schema, name):
            found = values(column)
            if classes is not None:
                found = [
                    classes[v] if isinstance(v, int) and 0 <= v < len(classes) else v for v in found
                ]
            yield [text_of(v) for v in found]


def _batches(arrow: Any, path: str, schema: Any, name: str) -> Iterator[Any]:
    """One column of a file, batch by batch, checked."""
    if path.endswith(".parquet"):
        with arrow.parquet.ParquetFile(path, read_dictionary=[name]) as table:
            for batch in table.iter_batches(batch_size=TEXT_BATCH, columns=[name]):
                column = batch.column(name)
                column.validate(full=True)
                yield column
        return
    with arrow.memory_map(path) as source:
        reader = arrow_reader(arrow, source, [schema.get_field_index(name)])
        for batch in arrow_batches(reader):
            column = batch.column(name)
            column.validate(full=True)
            yield column


def distinct_values(arrow: Any, schemas: Mapping[str, Any], name: str) -> set[str] | None:
    """The different values of a column of all files; None: too many, or too long, for splits.

    schemas: those of the files, by path.
    """
    distinct: set[str] = set()
    for path, schema in schemas.items():
        if path.endswith(".parquet"):
            with reading(arrow, path):
                sizes = group_sizes(arrow.parquet.read_metadata(path), name)
            if max(sizes, default=0) > MAX_COLUMN:
                return None
        for texts in column_texts(arrow, path, schema, name):
            distinct.update(texts)
            if len(distinct) > MAX_VALUES or any(len(text) > MAX_TEXT for text in distinct):
                return None
    return distinct


def group_sizes(metadata: Any, name: str) -> list[int]:
    """The bytes of a column in each row group of a parquet file, unpacked, by its metadata."""
    return [
        sum(
            column.total_uncompressed_size
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.")
        )
        for group in map(metadata.row_group, range(metadata.num_row_groups))
    ]
