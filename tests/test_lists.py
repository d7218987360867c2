"""Lists of paths with labels: CSV, TSV and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.source_folders import WHOLE, png
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.errors import ConfigError, DataError
from vitc.resolve import load_config


def opened(path: Path | str, **settings: Any) -> DataSet:
    return open_data(DataConfig(source="list", path=str(path), **(WHOLE | settings)))


def listed(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / "in").mkdir(exist_ok=True)
    for i in range(6):
        (folder / "in" / f"{i}.png").write_bytes(png(i))
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_list_names_files_labels_and_splits(tmp_path: Path) -> None:
    rows = [
        f"in/{i}.png,{'cat' if i % 2 else 'dog'},{'val' if i > 3 else 'train'}" for i in range(6)
    ]
    file = listed(tmp_path, "\ufeffpath,label,split\n" + "\n".join(rows) + "\n")
    data = opened(file)
    assert data.classes == ("cat", "dog")
    split = data.splits["train"]
    assert split.labels.tolist() == [1, 0, 1, 0]
    assert data.splits["val"].labels.tolist() == [1, 0]
    assert split.names == [f"in/{i}.png" for i in range(4)]
    assert [split.stored(i) for i in range(4)] == [png(i) for i in range(4)]
    assert load_config("debug", data=str(file)).data.source == "list"


def test_csv_tsv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    pairs = [(f"in/{i}.png", str(i % 3)) for i in range(6)]
    csv = listed(tmp_path, "label,path\r\n" + "".join(f'{b},"{a}"\r\n' for a, b in pairs))
    tsv = listed(tmp_path, "path\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in pairs), "l.tsv")
    lines = [json.dumps({"label": int(b), "path": a, "more": [1]}) for a, b in pairs]
    jsonl = listed(tmp_path, "\n".join(lines) + "\n\n", "l.jsonl")
    assert len({opened(file).fingerprint for file in (csv, tsv, jsonl)}) == 1


def test_absolute_paths_and_other_columns_are_read(tmp_path: Path) -> None:
    rows = [f"{tmp_path}/in/{i}.png,{i % 2},{i % 3}" for i in range(6)]
    file = listed(tmp_path, "where,label,species\n" + "\n".join(rows))
    data = opened(file, image_column="where", label_column="species")
    assert data.classes == ("0", "1", "2")
    assert data.splits["train"].stored(5) == png(5)
    with pytest.raises(ConfigError, match="no column that can be the image"):
        opened(file)
    with pytest.raises(ConfigError, match=r"specie'.*Did you mean 'species'"):
        opened(file, image_column="where", label_column="specie")


def test_files_that_are_missing_stop_or_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [f"in/{i}.png,{i % 2}" for i in range(6)]
    file = listed(tmp_path, "path,label\n" + "\n".join([*rows, "in/gone.png,1"]))
    with pytest.raises(DataError, match=r"1 listed file missing: 'in/gone\.png'"):
        opened(file)
    data = opened(file, bad_files="skip")
    assert len(data.splits["train"]) == 6
    assert "in/gone.png" in "\n".join(data.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nin/1.png,a|b\nin/2.png,a\n", "1 image several labels"),
        ("path,label\nin/1.png,a\nin/1.png,a\n", "1 path listed twice"),
        ("path,label\nin/1.png\n", "line 2: 1 values under 2 headings"),
        ("path,label\n,a\n", "line 2: no path"),
        ("path,label\nx.png,\n", "line 2: no label"),
        ("path,label,split\nin/1.png,a,trian\n", r"'trian'\. Did you mean 'train'"),
        ("path,label\n", "lists no images"),
        ("path,label\nin/1.png,a\n", "one class only"),
        (
            "path,label,split\nin/1.png,a,train\nin/2.png,b,train\nin/3.png,c,val\n",
            "outside training",
        ),
        ("path,label,split\nin/1.png,a,val\n", "no training images"),
        ("path,label\n" + "x" * 200_000 + ",a\n", "field larger"),
    ],
)
def test_invalid_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(listed(tmp_path, text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "not an object"),
        ("[" * 100_000, "not JSON"),
        ('{"path": 3, "label": "a"}', "must be strings"),
        ('{"path": "a", "label": true}', "strings"),
        ('{"path": "in/1.png", "label": ["a", "b"]}', "several labels"),
        ('{"path": "' + "x" * 2_000_000 + '", "label": "a"}', "is longer than"),
    ],
    ids=range(7),
)
def test_invalid_json_lines_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(listed(tmp_path, line + "\n", "l.jsonl"))


def test_a_list_that_is_not_there_or_has_no_header_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no list"):
        opened(tmp_path / "gone.csv")
    with pytest.raises(ConfigError, match=r"no column that can be the image"):
        opened(listed(tmp_path, "in/1.png,a\nin/2.png,b\n"))
    with pytest.raises(ConfigError) as error:
        opened(listed(tmp_path, ""))
    assert "it is empty" in (error.value.hint or "")
