"""Lists of paths with labels: CSV, TSV and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.source_folders import WHOLE, png
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data, open_whole
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


def test_quotes_after_a_comma_and_a_space_are_no_part_of_a_name(tmp_path: Path) -> None:
    lines = ['"in/{i}.png", "{c}"', "in/{i}.png, {c}", 'in/{i}.png , "{c}" ']
    rows = [lines[i % 3].format(i=i, c="ab"[i % 2]) for i in range(6)]
    data = opened(listed(tmp_path, '"path", "label"\n' + "\n".join(rows) + "\n \n"))
    assert data.classes == ("a", "b")
    assert data.splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("text", ['["a","b"]', "['a', 'b']", "a|b"])
def test_several_labels_as_text_are_refused(tmp_path: Path, text: str) -> None:
    rows = [f"in/{i}.png;{text if i > 3 else 'a'}" for i in range(6)]
    with pytest.raises(DataError, match=r"gives 2 images several labels: 'in/4\.png' has"):
        opened(listed(tmp_path, "path;label\n" + "\n".join(rows) + "\n"))


@pytest.mark.parametrize(
    ("labels", "beside"),
    [
        (["a", "b", "a,b"], "'a', 'b'"),
        (["a", "b", "c", "a; c"], "'a', 'c'"),
        (["a,b", "b, a", "c"], "'b, a'"),
        (["a", "b", "a b"], "'a', 'b'"),
        (["1", "2", "1,2"], "'1', '2'"),
    ],
)
def test_labels_made_of_other_labels_are_refused(
    tmp_path: Path, labels: list[str], beside: str
) -> None:
    rows = [f'in/{i}.png,"{label}"' for i, label in enumerate(labels)]
    file = listed(tmp_path, "path,label\n" + "\n".join(rows))
    with pytest.raises(DataError, match=f"several labels: .*, beside the labels {beside}") as e:
        opened(file)
    assert "write it without the " in str(e.value)
    assert len(open_whole(DataConfig(source="list", path=str(file))).classes) == len(labels)


def test_names_of_several_words_are_classes(tmp_path: Path) -> None:
    names = ["polar bear", "bear", "New York, NY", "York, New", "ice", "cream", *"abcdef"]
    for labels, noted in ((names, False), ([*names, "ice cream"], True)):
        rows = [f'in/{i % 6}.png,"{label}"' for i, label in enumerate(labels)]
        files = [row.replace("in/", f"in/{i}_") for i, row in enumerate(rows)]
        file = listed(tmp_path, "path,label\n" + "\n".join(files))
        for row in files:
            (tmp_path / row.split(",")[0]).write_bytes(png(1))
        data = opened(file)
        assert data.classes == tuple(sorted(labels))
        note = "are taken for one class each: 'ice cream' beside 'ice', 'cream'."
        assert any(note in text for text in data.notes) == noted


def test_two_spellings_of_an_accent_are_one_class(tmp_path: Path) -> None:
    labels = ("caf\u00e9", "cafe\u0301", "[x]")
    rows = [f"in/{i}.png,{labels[i % 3]}" for i in range(6)]
    data = opened(listed(tmp_path, "path,label\n" + "\n".join(rows) + "\n"))
    assert data.classes == ("[x]", "caf\u00e9")
    assert "are one class: 'caf\u00e9'." in " ".join(data.notes)


def test_a_test_split_whose_labels_are_nan_is_left_out(tmp_path: Path) -> None:
    file = listed(
        tmp_path,
        rows(
            "path,label,split", "in/{i}.png,{l},{s}", l="a b a b nan nan", s="train " * 4 + "t t"
        ).replace(",t\n", ",test\n"),
    )
    data = opened(file)
    assert list(data.splits) == ["train"]
    assert "The test split is left out" in " ".join(data.notes)


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


def rows(header: str, row: str, **values: str) -> str:
    """Six lines below a header; {i} is the number, {c} the class, and each value a letter a row."""
    lines = [
        row.format(i=i, c="ab"[i % 2], **{k: v.split()[i] for k, v in values.items()})
        for i in range(6)
    ]
    return "\n".join([header, *lines]) + "\n"


SPLIT = "train train train train val val"


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("Split", SPLIT),
        ("SET", "Training TRAIN train training_set valid Validation"),
        ("partition", "train train trn train dev dev"),
        ("is_valid", "False False False False True True"),
        ("IsVal", "0 0 0 0 1 1"),
        ("is valid", "no no no no yes yes"),
        ("Usage", "Training Training Training Training PublicTest PublicTest"),
        ("purpose", SPLIT),
        ("val", "0 0 0 0 1 1"),
        ("fold", SPLIT),
        ("in_val", "0 0 0 0 1 1"),
        ("is_holdout", "no no no no yes yes"),
        ("is_val_image", "0 0 0 0 1 1"),
        ("valid_flag", "0.0 0.0 0.0 0.0 1.0 1.0"),
    ],
)
def test_a_column_of_splits_is_used_whatever_its_case(
    tmp_path: Path, header: str, values: str
) -> None:
    text = rows(f"Path,Label,{header},by", "in/{i}.png,{c},{s},Ann", s=values)
    data = opened(listed(tmp_path, text))
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {
        "train": [0, 1, 0, 1],
        "val": [0, 1],
    }
    assert data.notes[0] == f"Columns used: Path, Label, {header}; not used: by."
    chosen = {"image_column": "Path", "label_column": "Label"}
    assert opened(tmp_path / "list.csv", **chosen).fingerprint == data.fingerprint
    assert len(opened(tmp_path / "list.csv", splits="none").splits["train"]) == 6
    sure = header.lower().startswith(("is", "s", "partition", "usage"))
    assert ("Guessed" in " ".join(data.notes)) == (not sure or header == "is_holdout")


def test_two_flags_and_folds_and_other_words(tmp_path: Path) -> None:
    flags = listed(
        tmp_path,
        rows(
            "path,label,is_val,is_test", "in/{i}.png,{c},{v},{t}", v="0 0 0 1 1 0", t="0 0 0 0 0 1"
        ),
    )
    assert {k: len(s) for k, s in opened(flags).splits.items()} == {"train": 3, "val": 2, "test": 1}
    fold = listed(tmp_path, rows("path,label,fold", "in/{i}.png,{c},{f}", f="0 1 2 0 1 2"))
    data = opened(fold)
    assert len(data.splits["train"]) == 6
    assert "--data.split_column fold --data.splits val=0" in " ".join(data.notes)
    data = opened(fold, split_column="fold", splits="val=0,test=1")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 2, "val": 2, "test": 2}
    words = listed(tmp_path, rows("path,label,role", "in/{i}.png,{c},{r}", r="x x x x y y"))
    assert len(opened(words, splits="train=x,val=y").splits["val"]) == 2


def test_doubtful_columns_are_refused_with_the_setting_that_decides(tmp_path: Path) -> None:
    def refused(header: str, row: str, message: str, cure: str, **values: str) -> Path:
        file = listed(tmp_path, rows(header, row, **values))
        with pytest.raises((ConfigError, DataError), match=message) as error:
            opened(file)
        assert cure in (error.value.hint or "")
        return file

    text = "in/{i}.png,{c},{x}"
    file = refused(
        "path,label,class", text, "'label', 'class'", "data.label_column", x="a b c a b c"
    )
    assert opened(file, label_column="class").classes == ("a", "b", "c")
    refused("path,label,label", text, "two columns named 'label'", "Rename", x="a b c a b c")
    refused("path,Label,label", text, "'Label', 'label'", "label_column", x="a b c a b c")
    refused("path,label,set", text, "unknown split '0', '1'", "--data.splits", x="0 0 0 0 1 1")
    refused("path,label,is_train", text, "leaves open", "train=1,val=0", x="1 1 1 1 0 0")
    refused("path,label,is_valid", text, "true or false", "--data.splits", x="a a a a b b")
    refused("path,label,train_flag", text, "leaves open", "train=1,val=0", x="1 1 1 1 0 0")
    refused("path,label,valid", text, "may mark", "--data.splits none", x="1 1 1 1 1 0")
    both = "in/{i}.png,{c},{x},{y}"
    refused(
        "path,label,split,is_valid",
        both,
        "'split', 'is_valid'",
        "split_column",
        x=SPLIT,
        y="1 0 0 0 0 0",
    )
    file = listed(
        tmp_path, rows("path,label,is_val,is_test", both, x="0 0 0 0 1 1", y="0 0 0 0 0 1")
    )
    with pytest.raises(DataError, match="line 7: contradicting"):
        opened(file)
    same = listed(tmp_path, rows("path,class_id,class_name", text, x="a b a b a b"))
    assert opened(same).classes == ("a", "b")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "path;label\r\n{};Löwe\r\n{};b\r\n"),
        ("utf-8-sig", "\n \npath\tlabel\n{}\tLöwe\n{}\tb\n"),
        ("utf-16", "path,label\n{},Löwe\n{},b\n"),
        ("cp1252", "path|label\n{}|Löwe\n{}|b\n"),
        ("utf-8", 'sep=;\n"path";"label";\n{};"Löwe";\n{};b;\n'),
        ("utf-8", "path,label\r{},Löwe\r{},b\r"),
    ],
)
@pytest.mark.parametrize("path", ["in/{}.png", "in\\{}.png", "{}.png", "{}"])
def test_lists_of_other_programs_are_read(
    tmp_path: Path, encoding: str, text: str, path: str
) -> None:
    file = listed(tmp_path, "")
    file.write_bytes(text.format(path.format(0), path.format(1)).encode(encoding))
    data = opened(file)
    assert data.classes == ("Löwe", "b")
    assert [data.splits["train"].stored(i) for i in range(2)] == [png(0), png(1)]


def test_flags_of_three_splits_and_flags_that_divide_nothing(tmp_path: Path) -> None:
    text = rows(
        "path,label,in_val,is_holdout",
        "in/{i}.png,{c},{v},{h}",
        v="0 0 0 1 1 0",
        h="0 0 0 0 0 1",
    )
    data = opened(listed(tmp_path, text))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 3, "val": 2, "test": 1}
    for header, values in (
        ("in_val", "1 1 1 1 1 1"),
        ("in_val", "a b a b a b"),
        ("valid", "1 " * 6),
    ):
        data = opened(
            listed(tmp_path, rows(f"path,label,{header}", "in/{i}.png,{c},{v}", v=values))
        )
        assert data.notes[0] == f"Columns used: path, label; not used: {header}."


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_whole_floats_are_integers_and_others_are_names_or_refused(
    tmp_path: Path, suffix: str
) -> None:
    def read(labels: str) -> DataSet:
        text = rows("path,label", "in/{i}.png,{l}", l=labels)
        if suffix == "jsonl":
            pairs = [line.split(",") for line in text.splitlines()[1:]]
            text = "\n".join(f'{{"path": "{path}", "label": {label}}}' for path, label in pairs)
        return opened(listed(tmp_path, text, f"l.{suffix}"))

    data = read("0.0 10.0 2.0 0 10 2")
    assert data.classes == ("0", "2", "10")
    assert data.splits["train"].labels.tolist() == [0, 2, 1, 0, 2, 1]
    if suffix == "csv":
        assert "Labels such as 1.0 are read as integers" in " ".join(data.notes)
        assert read("1.0 2.5 1.0 2.5 1.0 2.5").classes == ("1.0", "2.5")
    else:
        with pytest.raises(DataError, match="also as 3"):
            read("1.0 2.5 1.0 2.5 1.0 2.5")


@pytest.mark.parametrize("text", ["None", "null", "NULL", "N/A", "n/a", "#N/A", "<NA>"])
def test_what_programs_write_for_a_missing_label_is_no_class(tmp_path: Path, text: str) -> None:
    splits = "train train train train test test"
    file = listed(
        tmp_path,
        rows("path,label,split", "in/{i}.png,{l},{s}", l=f"a b a b {text} {text}", s=splits),
    )
    data = opened(file)
    assert data.classes == ("a", "b")
    assert "The test split is left out" in " ".join(data.notes)
    with pytest.raises(DataError, match=f"no label, but '{text}'") as error:
        opened(listed(tmp_path, rows("path,label", "in/{i}.png,{l}", l=f"a b a b a {text}")))
    assert "rename the class" in (error.value.hint or "")


def test_two_columns_that_name_different_images_are_refused(tmp_path: Path) -> None:
    text = "image_path,file_path,label\n" + "".join(
        f"in/{i}.png,{{}}{5 - i}.png,{i % 2}\n" for i in range(6)
    )
    file = listed(tmp_path, text.replace("{}", "in/"))
    with pytest.raises(DataError, match="which name different images") as error:
        opened(file)
    assert "data.image_column" in (error.value.hint or "")
    assert opened(file, image_column="image_path").splits["train"].stored(0) == png(0)
    (tmp_path / "lists").mkdir()
    moved = file.rename(tmp_path / "lists" / "list.csv")
    moved.write_text(text.replace("in/", "").replace("{}", ""))
    with pytest.raises(DataError, match="which name different images"):
        opened(moved)  # found in the folder beside it
    same = "".join(f"in/{i}.png,./in/{i}.png,{i}.png,{i % 2}\n" for i in range(6))
    file = listed(tmp_path, "image_path,file_path,image_id,label\n" + same)
    assert "not used: image_path, image_id" in opened(file).notes[0]


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ("\u200bcat", "\\u200b"),
        ("c\xadat", "\\xad"),
        ("\uff43\uff41\uff54", "\\uff43"),
        ("c\u0430t", "\\u0430"),
        ("Cat", "'Cat'"),
    ],
)
def test_labels_that_look_the_same_are_named(tmp_path: Path, other: str, shown: str) -> None:
    labels = ["cat", other, "dog"]
    text = "".join(f"in/{i}.png,{labels[i % 3]}\n" for i in range(6))
    data = opened(listed(tmp_path, f"path,label\n{text}"))
    assert len(data.classes) == 3
    assert shown in next(note for note in data.notes if "almost the same name" in note)


def test_paths_are_found_in_one_folder_around_the_list_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    listed(tmp_path, "")
    file = tmp_path / "lists" / "all.csv"
    for path in ("in/{}.png", "{}.png", "{}"):
        file.write_text(
            "image_id,label\n" + "".join(f"{path.format(i)},{i % 2}\n" for i in range(6))
        )
        data = opened(file)
        assert [data.splits["train"].stored(i) for i in range(6)] == [png(i) for i in range(6)]
        assert "Paths are read as" in " ".join(data.notes)
    (tmp_path / "lists" / "0.png").touch()  # one of six is no place
    assert len(opened(file).splits["train"]) == 6
    (tmp_path / "copy").mkdir()
    for i in range(6):
        (tmp_path / "copy" / f"{i}.png").write_bytes(png(9))
    with pytest.raises(DataError, match=r"several folders: '\.\./copy', '\.\./in'"):
        opened(file)
    file.write_text("path,label\nx/y/0.png,a\nx/y/1.png,b\n")
    (tmp_path / "x" / "y").mkdir(parents=True)
    for i in range(2):
        (tmp_path / "x" / "y" / f"{i}.png").write_bytes(png(i))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="missing") as error:
        opened(file.rename(tmp_path / "deep" / "er" / "all.csv"))
    assert "not to the current one" in (error.value.hint or "")


def test_test_images_without_labels_are_left_out_and_others_refused(tmp_path: Path) -> None:
    splits = "train train train train test test"
    for labels in ("0 1 0 1 -1 -1", "0 1 0 1 , ,"):
        file = listed(
            tmp_path,
            rows("path,label,split", "in/{i}.png,{l},{s}", l=labels, s=splits).replace(",,,", ",,"),
        )
        data = opened(file)
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 4}
        assert "The test split is left out: its 2 images" in " ".join(data.notes)
    for labels, message in (
        ("0 1 -1 1 0 1", "1 image without a label"),
        ("a b nan a b a", "'nan'"),
    ):
        file = listed(tmp_path, rows("path,label,split", "in/{i}.png,{l},{s}", l=labels, s=splits))
        with pytest.raises(DataError, match=message):
            opened(file)
    assert opened(
        listed(tmp_path, rows("path,label", "in/{i}.png,{l}", l="-1 1 -1 1 1 1"))
    ).classes == ("-1", "1")
    near = opened(
        listed(tmp_path, rows("path,label", "in/{i}.png,{l}", l="cat Cat dog dog dog dog"))
    )
    assert "almost the same name: 'Cat', 'cat'" in " ".join(near.notes)


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        (b"in/0.png 0\nin/1.png 1\n", "separated by a comma"),
        (b"in/0.png,a\nin/1.png,b\n", "put a line such as path,label above"),
        ("path,label\nin/0.png,a\n".encode("utf-16-le"), "Save it as UTF-8"),
        ("path,label\nin/0.png,a\n".encode("utf-16") + b"x", "Save it as UTF-8"),
        (b"path,label\nC:\\x\\0.png,a\nC:\\x\\1.png,b\n", "relative to the list's folder"),
    ],
)
def test_a_list_that_cannot_be_read_names_the_cure(tmp_path: Path, text: bytes, cure: str) -> None:
    file = listed(tmp_path, "", "list.txt")
    file.write_bytes(text)
    with pytest.raises((ConfigError, DataError)) as error:
        opened(file)
    assert cure in (error.value.hint or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nin/1.png,a|b\nin/2.png,a\n", "1 image several labels"),
        ("path,label\nin/1.png,a\nin/1.png,a\n", "1 path listed twice"),
        ("path,label\nin/1.png,a\nin/1.png,b\n", "different labels: 'in.1.png' is 'a' and 'b'"),
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
        (
            '{"path": "in/1.png", "label": "a"}\n{"path": "x", "label": "b", "split": "val"}',
            "'split'",
        ),
        ('{"path": "in/1.png", "label": "x", "label": "cat"}', "'label' appears twice"),
        ("[1]", "not an object"),
        ("[" * 100_000, "not JSON"),
        ('{"path": 3, "label": "a"}', "must be strings"),
        ('{"path": "a", "label": true}', "strings"),
        ('{"path": "in/1.png", "label": ["a", "b"]}', "several labels"),
        ('{"path": "' + "x" * 2_000_000 + '", "label": "a"}', "is longer than"),
    ],
    ids=range(9),
)
def test_invalid_json_lines_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(listed(tmp_path, line + "\n", "l.jsonl"))


def test_a_key_that_the_first_line_lacks_is_reported(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"path": f"in/{i}.png", "label": "ab"[i % 2]} | ({"kept_for": "val"} if i > 3 else {})
        for i in range(6)
    ]
    file = listed(tmp_path, "\n".join(map(json.dumps, lines)), "l.jsonl")
    assert opened(file).notes[0] == "Columns used: path, label; not used: kept_for."
    with pytest.raises(ConfigError, match="'kept_for', which the first line lacks"):
        opened(file, split_column="kept_for")


def test_a_list_that_is_not_there_or_has_no_header_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no list"):
        opened(tmp_path / "gone.csv")
    with pytest.raises(ConfigError, match=r"no column that can be the image"):
        opened(listed(tmp_path, "in/1.png,a\nin/2.png,b\n"))
    with pytest.raises(ConfigError) as error:
        opened(listed(tmp_path, ""))
    assert "it is empty" in (error.value.hint or "")
