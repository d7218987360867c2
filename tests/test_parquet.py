"""Parquet and Arrow files with image bytes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitc.data.sources.parquet
from tests.source_folders import WHOLE, png
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.sources.index import cache_folder
from vitc.deploy.predict import Inside, find_images
from vitc.errors import BrokenFileError, ConfigError, DataError
from vitc.resolve import load_config

pa = pytest.importorskip("pyarrow", reason="parquet and Arrow are NOT tested without vitc[data]")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(path: Path | str, **settings: Any) -> DataSet:
    return open_data(DataConfig(source="parquet", path=str(path), **(WHOLE | settings)))


def counts(data: DataSet) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def table(
    count: int = 10, start: int = 0, names: list[str] | None = None, plain: bool = False
) -> Any:
    """As `datasets` writes it; plain: a binary column and labels as they are."""
    raw = [png(start + i) for i in range(count)]
    image: Any = raw if plain else [{"bytes": b, "path": f"p{i}.png"} for i, b in enumerate(raw)]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([i % 2 for i in range(count)], pa.int64())
    made = pa.table({"image": pa.array(image, kind), "label": labels})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}}).encode()
    return made.replace_schema_metadata({b"huggingface": about})


def write_arrow(file: Path, made: Any, form: str = "stream", **options: Any) -> Path:
    settings = pa.ipc.IpcWriteOptions(**options)
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with pa.OSFile(str(file), "wb") as sink, new(sink, made.schema, options=settings) as writer:
        writer.write_table(made, max_chunksize=3)
    return file


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("form", ["stream", "file", "snappy", "zstd", "none"])
def test_images_and_labels_are_read_from_tables(tmp_path: Path, form: str, plain: bool) -> None:
    made = table(names=["dog", "cat"], plain=plain)
    if form in ("stream", "file"):
        file = write_arrow(tmp_path / "t.arrow", made, form)
    else:
        file = tmp_path / "t.parquet"
        pq.write_table(made, file, compression=form, row_group_size=4)
    for _ in range(2):  # the second time from the cache
        data = opened(file)
        split = data.splits["train"]
        assert data.classes == ("dog", "cat")
        assert split.labels.tolist() == [i % 2 for i in range(10)]
        assert [split.stored(i) for i in range(10)] == [png(i) for i in range(10)]
        assert split.sizes is not None
        assert split.sizes.tolist() == [len(png(i)) for i in range(10)]
        assert split.names[3] == f"{file.name}/00000003{'' if plain else '/p3.png'}"
        assert pickle.loads(pickle.dumps(split)).stored(9) == png(9)
    assert load_config("debug", data=str(file)).data.source == "parquet"


def test_the_hub_s_layout_is_read_with_its_splits(tmp_path: Path) -> None:
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 8), ("validation", 4), ("test", 2)):
        pq.write_table(table(count, names=["a", "b"]), data / f"{split}-00000-of-00001.parquet")
    config = load_config("debug", data=str(tmp_path / "set"))
    assert config.data.source == "parquet"
    assert counts(opened(tmp_path / "set")) == {"train": 8, "val": 4, "test": 2}


def test_a_column_of_splits_is_used_and_others_are_reported(tmp_path: Path) -> None:
    file, plain = tmp_path / "t.parquet", table(plain=True)
    words = plain.append_column("Split", pa.array(["train"] * 6 + ["validation"] * 4))
    pq.write_table(words.append_column("note", pa.array([f"n{i}" for i in range(10)])), file)
    data = opened(file)
    assert counts(data) == {"train": 6, "val": 4}
    assert "Columns used: image, label, Split; not used: note." in data.notes
    assert counts(opened(file, splits="none")) == {"train": 10}
    pq.write_table(plain.append_column("is_test", pa.array([False] * 7 + [True] * 3)), file)
    assert counts(opened(file)) == {"train": 7, "test": 3}
    pq.write_table(plain.append_column("fold", pa.array([i % 5 for i in range(10)])), file)
    assert "--data.split_column fold" in " ".join(opened(file).notes)
    assert counts(opened(file, split_column="fold", splits="val=0")) == {"train": 8, "val": 2}
    pq.write_table(plain.append_column("class", pa.array([i % 3 for i in range(10)])), file)
    with pytest.raises(ConfigError, match="several columns that can be the label"):
        opened(file)
    labels = pa.array([0, 1] * 4 + [-1, -1])
    pq.write_table(words.set_column(1, "label", labels), file)
    with pytest.raises(DataError, match="2 images without a label"):
        opened(file)
    write_arrow(tmp_path / "t.arrow", words)
    assert counts(opened(tmp_path / "t.arrow")) == {"train": 6, "val": 4}


def test_flags_and_labels_stored_as_floats_are_those_of_integers(tmp_path: Path) -> None:
    file, plain = tmp_path / "t.parquet", table(plain=True)
    pq.write_table(plain.append_column("is_valid", pa.array([0.0] * 6 + [1.0] * 4)), file)
    data = opened(file)
    assert counts(data) == {"train": 6, "val": 4}
    pq.write_table(plain.append_column("in_val", pa.array([False] * 6 + [True] * 4)), file)
    assert counts(opened(file)) == {"train": 6, "val": 4}
    pq.write_table(plain.append_column("score", pa.array([0.0] * 6 + [1.0] * 4)), file)
    assert "not used: score" in " ".join(opened(file).notes)
    floats = plain.set_column(1, "label", pa.array([float(i % 2) for i in range(10)]))
    pq.write_table(floats, file)
    assert opened(file).classes == ("0", "1")


def two_files(folder: Path, first: Any, second: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(first, folder / "a.parquet")
    pq.write_table(second, folder / "b.parquet")
    return folder


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("name", "column"),
    [("split", ["train"] * 6 + ["test"] * 4), ("is_test", [False] * 6 + [True] * 4)],
)
def test_a_split_column_that_some_files_lack_is_refused(
    tmp_path: Path, name: str, column: list[Any], turned: bool
) -> None:
    with_it, without = table().append_column(name, pa.array(column)), table(start=10)
    tables = (without, with_it) if turned else (with_it, without)
    folder = two_files(tmp_path / "set", *tables)
    lacks = "a.parquet" if turned else "b.parquet"
    for settings in ({}, {"split_column": name}):
        with pytest.raises(DataError, match=f"'{name}' divides .*{lacks}' lacks") as error:
            opened(folder, **settings)
        assert "--data.splits none" in (error.value.hint or "")
    data = opened(folder, splits="none")
    assert len(data.splits["train"]) == 20
    assert f"Columns used: image, label; not used: {name}." in data.notes
    nulls = without.append_column(name, pa.nulls(10))
    two_files(folder, with_it, nulls)
    with pytest.raises(DataError, match=r"b\.parquet' lacks"):
        opened(folder)
    two_files(folder, with_it, without.append_column(name, pa.array(column)))
    assert counts(opened(folder)) == {"train": 12, "test": 8}


@pytest.mark.parametrize("turned", [False, True])
def test_other_columns_of_some_files_are_reported_and_not_looked_at(
    tmp_path: Path, turned: bool
) -> None:
    more = table(start=10).append_column("note", pa.array(["train", "test"] * 5))
    folder = two_files(tmp_path / "set", *((more, table()) if turned else (table(), more)))
    data = opened(folder)
    assert counts(data) == {"train": 20}
    assert "Columns used: image, label; not used: note." in data.notes


def test_labels_of_one_class_are_one_and_others_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"

    def labels(*texts: str) -> Path:
        column = pa.array([texts[i % len(texts)] for i in range(10)])
        pq.write_table(table(plain=True).set_column(1, "label", column), file)
        return file

    data = opened(labels("cat", "cat ", "caf\u00e9", "cafe\u0301", "dog"))
    assert data.classes == ("café", "cat", "dog")
    assert data.splits["train"].labels.tolist() == [1, 1, 0, 0, 2] * 2
    assert "are one class: 'cat', 'café'." in " ".join(data.notes)
    assert "are one class" not in " ".join(opened(labels("cat", "[dog]", "dog")).notes)
    for text in ("cat|dog", '["cat", "dog"]', "['cat', 'dog']", " [1] "):
        with pytest.raises(DataError, match="gives 5 images several labels: 't"):
            opened(labels("cat", text))
    for text in ("nan", " NaN"):
        with pytest.raises(DataError, match="5 images without a label"):
            opened(labels("cat", text))
    made = table(names=["nan", "a|b"])  # the schema's own names are classes as they stand
    pq.write_table(made, file)
    assert opened(file).classes == ("nan", "a|b")


def test_a_table_without_labels_is_predicted(tmp_path: Path) -> None:
    pq.write_table(table().drop(["label"]), tmp_path / "t.parquet")
    write_arrow(tmp_path / "t.arrow", table().drop(["label"]))
    for name in ("t.parquet", "t.arrow"):
        found = [image for image in find_images([tmp_path / name]) if isinstance(image, Inside)]
        assert [image.split.stored(image.index) for image in found] == [png(i) for i in range(10)]
        with pytest.raises(ConfigError, match="no column that can be the label"):
            opened(tmp_path / name)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_a_table_is_predicted_with_the_columns_that_were_trained_on(
    tmp_path: Path, name: str
) -> None:
    made = table().rename_columns(["left", "side"])
    made = made.append_column("right", table(start=20)["image"])
    pq.write_table(made, tmp_path / name) if "q" in name else write_arrow(tmp_path / name, made)
    with pytest.raises(ConfigError, match="several columns that can be the image") as e:
        find_images([tmp_path / name], DataConfig(label_column="species"))
    assert "--data." not in str(e.value)
    own = DataConfig(image_column="right", label_column="species")
    found = [image for image in find_images([tmp_path / name], own) if isinstance(image, Inside)]
    assert [image.split.stored(image.index) for image in found] == [png(20 + i) for i in range(10)]


def test_litter_beside_tables_is_passed_over(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b" / "data"):
        folder.mkdir(parents=True)
        pq.write_table(table(), folder / "x.parquet")
        (folder / "._x.parquet").write_bytes(b"\0\5\x16\7mac")
    (tmp_path / "b" / "._data.parquet").touch()
    for name in ("a", "b"):
        assert len(opened(tmp_path / name).splits["train"]) == 10


def bomb(file: Path, column: str, size: int, rows: int = 4000) -> None:
    """Hundreds of bytes that stand for rows x size bytes of one repeated string."""
    none = pa.array(np.zeros(rows, np.int32))
    columns = {
        "image": pa.DictionaryArray.from_arrays(none, pa.array([png(0)])),
        "label": pa.array(["a", "b"] * (rows // 2)),
        column: pa.DictionaryArray.from_arrays(none, pa.array(["x" * size])),
    }
    pq.write_table(pa.table(columns), file, store_schema=False, compression="zstd")
    assert file.stat().st_size < 10_000


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["note", "split", "label"])
def test_a_string_that_is_repeated_takes_memory_once(
    tmp_path: Path, column: str, form: str
) -> None:
    file = tmp_path / "t.parquet"
    bomb(file, column, 1_000_000)
    if form == "arrow":
        dictionaries = pq.ParquetFile(file, read_dictionary=[column]).read()
        file = write_arrow(tmp_path / "t.arrow", dictionaries.combine_chunks())
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        if column == "label":
            with pytest.raises(DataError, match="a label of 1,000,000 characters"):
                opened(file)
        else:
            assert f"not used: {column}" in " ".join(opened(file).notes)
        peak = max(pool.max_memory(), tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert peak < 64e6


def test_a_column_too_large_to_unpack_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.parquet"
    made = table(plain=True).append_column("role", pa.array(["train"] * 6 + ["test"] * 4))
    pq.write_table(made, file)
    assert counts(opened(file)) == {"train": 6, "test": 4}
    monkeypatch.setattr("vitc.data.sources.parquet_columns.MAX_COLUMN", 10)
    assert counts(opened(file)) == {"train": 10}
    monkeypatch.setattr("vitc.data.sources.parquet.MAX_COLUMN", 10)
    os.utime(file, (1, 1))
    with pytest.raises(DataError, match="bytes in the column 'label'; 10 are allowed"):
        opened(file)


def test_a_damaged_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    rng = np.random.default_rng(0)
    notes = ["".join(map(chr, rng.integers(97, 122, 200))) for _ in range(10)]
    made = table(plain=True).append_column("note", pa.array(notes))
    pq.write_table(made, file, compression="gzip", use_dictionary=False)
    with pq.ParquetFile(file) as whole:
        column = whole.metadata.row_group(0).column(2)
        at = column.data_page_offset + column.total_compressed_size // 2
    raw = bytearray(file.read_bytes())
    raw[at : at + 200] = b"\xff" * 200
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"The column 'note' of .* cannot be read"):
        opened(file)
    assert len(opened(file, splits="none").splits["train"]) == 10


def test_dictionaries_of_other_types_are_no_splits_and_no_labels(tmp_path: Path) -> None:
    file, made = tmp_path / "t.parquet", table(plain=True)
    for kind in (pa.binary(), pa.date32()):
        values: Any = [b"x"] * 10 if kind == pa.binary() else [0, 1] * 5
        coded = pa.array(values, kind).dictionary_encode()
        pq.write_table(made.append_column("code", coded), file)
        assert "not used: code" in " ".join(opened(file).notes)
        arrow = write_arrow(tmp_path / "t.arrow", made.append_column("code", coded))
        assert "not used: code" in " ".join(opened(arrow).notes)
        with pytest.raises(ConfigError, match="labels must be integers or strings"):
            opened(arrow, label_column="code")
    words = made.set_column(1, "label", pa.array(["x", "y"] * 5).dictionary_encode())
    words = words.append_column("split", pa.array(["train"] * 8 + ["val"] * 2).dictionary_encode())
    pq.write_table(words, file)
    for path in (file, write_arrow(tmp_path / "t.arrow", words)):
        data = opened(path)
        assert data.classes == ("x", "y")
        assert counts(data) == {"train": 8, "val": 2}
        assert data.splits["train"].labels.tolist() == [0, 1] * 4


def test_folders_of_tables_are_splits_or_refused(tmp_path: Path) -> None:
    for name, count in (("train", 6), ("test", 4)):
        (tmp_path / "set" / name).mkdir(parents=True)
        pq.write_table(table(count), tmp_path / "set" / name / "0000.parquet")
    assert load_config("debug", data=str(tmp_path / "set")).data.source == "parquet"
    assert counts(opened(tmp_path / "set")) == {"train": 6, "test": 4}
    for name in ("train", "test"):
        (tmp_path / "set" / name).rename(tmp_path / "set" / name.replace("t", "x"))
    with pytest.raises(ConfigError, match="several folders of"):
        opened(tmp_path / "set")


def saved(folder: Path, splits: dict[str, int]) -> Path:
    """As `datasets`' save_to_disk writes it."""
    for name, count in splits.items():
        part = folder / name
        part.mkdir(parents=True)
        write_arrow(part / "data-00000-of-00001.arrow", table(count, names=["a", "b"]))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
        (part / "state.json").write_text(json.dumps(state))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def test_a_saved_data_set_is_read_where_it_lies(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", {"train": 8, "validation": 4})
    assert load_config("debug", data=str(folder)).data.source == "parquet"
    assert counts(opened(folder)) == {"train": 8, "val": 4}
    assert counts(opened(folder / "train")) == {"train": 8}
    assert not (cache_folder() / "tables").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is missing")
def test_what_datasets_itself_saves_is_read(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"img": [{"bytes": png(i), "path": None} for i in range(8)], "label": [0, 1] * 4}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "set"))
    made.to_parquet(str(tmp_path / "x.parquet"))
    for data in (opened(tmp_path / "set"), opened(tmp_path / "x.parquet")):
        split = data.splits["train"]
        assert data.classes == ("cat", "dog")
        assert [split.stored(i) for i in range(8)] == [png(i) for i in range(8)]


def test_state_files_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", {"train": 8})
    state = folder / "train" / "state.json"
    for name in ("../../x.arrow", "/etc/passwd", "..", "", 3):
        state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match="not a file in it"):
            opened(folder)
    state.write_text(json.dumps({"_data_files": [], "_indices_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(DataError, match="selection of rows"):
        opened(folder)
    state.write_text("[" * 100_000)
    with pytest.raises(DataError, match="cannot be read"):
        opened(folder)
    (folder / "dataset_dict.json").write_text('{"splits": ["extra"]}')
    with pytest.raises(DataError, match="a split 'extra'"):
        opened(folder)


def test_tables_that_cannot_be_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    good = table()

    def refused(made: Any, message: str, **settings: Any) -> None:
        pq.write_table(made, file)
        with pytest.raises((DataError, ConfigError), match=message):
            opened(file, **settings)

    refused(good.drop(["image"]), "no column that can be the image")
    refused(good.drop(["label"]), "no column that can be the label")
    refused(good, r"Unknown data\.label_column 'lable'.*'label'", label_column="lable")
    refused(good, "not image bytes", image_column="label")
    several = pa.array([[0, 1]] * 10)
    refused(good.set_column(1, "label", several), "several labels")
    refused(good.set_column(1, "label", pa.array([0.5] * 10)), "integers or strings")
    refused(good.set_column(1, "label", pa.array([None] + [1] * 9)), "1 image without a label")
    gone = pa.array([{"bytes": None, "path": "a.png"}] * 10, good.schema.field("image").type)
    refused(good.set_column(0, "image", gone), "10 rows without image bytes")
    refused(table(names=["only"]), "its classes are 0")
    two = good.append_column("img", good["image"]).rename_columns(["a", "label", "b"])
    refused(two, "several columns")
    pq.write_table(two, file)
    assert len(opened(file, image_column="b").splits["train"]) == 10
    raw = bytearray(file.read_bytes())
    for cut in (b"", b"PAR1", bytes(raw[: len(raw) // 2]), bytes(raw[:-4]) + b"PARX"):
        file.write_bytes(cut)
        with pytest.raises(DataError, match="cannot be read"):
            opened(file, image_column="b")
    compressed = write_arrow(tmp_path / "t.arrow", good, compression="zstd")
    with pytest.raises(DataError, match="compressed batches"):
        opened(compressed)


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_damaged_tables_are_refused_or_read_but_never_crash(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"t.{suffix}"
    if suffix == "arrow":
        write_arrow(file, table())
    else:
        pq.write_table(table(), file)
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        raw = bytearray(good)
        raw[int(rng.integers(0, len(raw)))] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(raw[: int(rng.integers(1, len(raw)))] if rng.random() < 0.3 else raw)
        try:
            split = opened(file).splits["train"]
        except (DataError, ConfigError):
            continue
        for i in range(len(split)):
            with contextlib.suppress(BrokenFileError):
                assert isinstance(split.stored(i), bytes)


def test_a_copy_is_made_once_and_again_when_it_or_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(table(), file)
    first = opened(file).fingerprint
    made: list[Any] = []
    really = vitc.data.sources.parquet._copy
    monkeypatch.setattr("vitc.data.sources.parquet._copy", lambda *a: made.append(1) or really(*a))
    assert opened(file).fingerprint == first
    assert made == []
    (copy,) = (cache_folder() / "tables").glob("*.images")
    copy.write_bytes(copy.read_bytes()[:-1])
    assert opened(file).splits["train"].stored(9) == png(9)
    assert len(made) == 1
    pq.write_table(table(12), file)
    os.utime(file, (1, 1))
    assert len(opened(file).splits["train"]) == 12
    assert len(made) == 2
    there = sorted(p.suffix for p in (cache_folder() / "tables").iterdir())
    assert there == [".images", ".index", ".lock"]


def test_processes_of_one_run_share_one_copy(tmp_path: Path) -> None:
    pq.write_table(table(3000), tmp_path / "t.parquet")
    code = (
        "import sys; from vitc.data.dataset import open_data;"
        "from vitc.data.config import DataConfig; print('ready', flush=True); sys.stdin.readline();"
        "split = open_data(DataConfig(source='parquet', path=sys.argv[1])).splits['train'];"
        "sys.stdin.readline(); [split.stored(i) for i in range(len(split))]"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "t.parquet")]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(words, **pipes) for _ in range(2)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    for rank in ranks:
        rank.communicate("\n")
        assert rank.returncode == 0


def test_a_cache_without_room_and_a_huge_row_group_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(table(), file)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(file))
        with pytest.raises(ConfigError, match="cannot be written"):
            opened(file)
    with monkeypatch.context() as patch:
        patch.setattr("vitc.data.sources.parquet.MAX_GROUP", 10)
        with pytest.raises(DataError, match="row group"):
            opened(file)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Namespace(free=3))
    with pytest.raises(ConfigError, match="are free"):
        opened(file)
