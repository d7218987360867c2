"""Tar shards: the same images as in folders, in an exact order; and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitc.data.sources.tar
from tests.source_folders import PNG, WHOLE, png
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.pack import PackOptions, pack
from vitc.data.sources.index import braces, cache_folder, find_files
from vitc.data.store import OPEN_FILES
from vitc.errors import BrokenFileError, ConfigError, DataError
from vitc.resolve import load_config

Members = dict[str, bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tar(file: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as f:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            f.addfile(info, io.BytesIO(content))
    return file


def samples(start: int, count: int, classes: int = 2) -> Members:
    """KEY.png and KEY.cls, as WebDataset writes them."""
    found: Members = {}
    for i in range(start, start + count):
        found[f"{i:06d}.png"] = png(i)
        found[f"{i:06d}.cls"] = str(i % classes).encode()
    return found


def opened(spec: Path | str, **settings: Any) -> DataSet:
    return open_data(DataConfig(source="tar", path=str(spec), **settings))


def whole(spec: Path | str, **settings: Any) -> DataSet:
    return opened(spec, **(WHOLE | settings))


def refusal(file: Path) -> str:
    """The message about a tar that is refused; nothing may be written beside it."""
    before = sorted(p for p in file.parent.rglob("*") if "cache" not in p.parts)
    with pytest.raises(DataError) as error:
        opened(file)
    assert before == sorted(p for p in file.parent.rglob("*") if "cache" not in p.parts)
    return str(error.value)


# -- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_and_labels_come_in_the_order_of_the_shards(tmp_path: Path, form: int) -> None:
    tar(tmp_path / "s-000.tar", samples(0, 6), form)
    tar(tmp_path / "s-001.tar", samples(6, 5), form)
    data = whole(tmp_path / "s-{000..001}.tar")
    split = data.splits["train"]
    assert data.classes == ("0", "1")
    assert split.labels.tolist() == [i % 2 for i in range(11)]
    assert [split.stored(i) for i in range(11)] == [png(i) for i in range(11)]
    assert split.names[6] == "s-001.tar/000006.png"
    again = pickle.loads(pickle.dumps(split))
    assert again.read(10, 3).tolist() == split.read(10, 3).tolist()


def test_labels_are_read_from_json_and_cls_goes_before_it(tmp_path: Path) -> None:
    members: Members = {}
    for i, key in enumerate(("label", "cls", "class_name")):
        members |= {f"{i}.jpg": png(i), f"{i}.json": json.dumps({key: f"c{i}"}).encode()}
    members |= {"9.jpg": png(9), "9.json": b'{"label": 5}', "9.cls": b"c0\n"}
    split = whole(tar(tmp_path / "s.tar", members)).splits["train"]
    assert split.labels.tolist() == [0, 1, 2, 0]
    tar(tmp_path / "t.tar", samples(0, 24, classes=12))  # in the order of numbers
    assert whole(tmp_path / "t.tar").classes == tuple(str(i) for i in range(12))


def test_without_labels_the_key_s_folder_is_the_class(tmp_path: Path) -> None:
    members = {f"./train/{c}/deep/{i}.png": png(i) for c in ("cat", "dog") for i in range(3)}
    members |= {f"./val/{c}/{i}.png": png(9) for c in ("cat", "dog") for i in range(2)}
    data = whole(tar(tmp_path / "s.tar", members))
    assert data.classes == ("cat", "dog")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 6, "val": 4}


def test_a_word_in_the_shard_s_name_is_its_split(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for word in ("train", "validation", "test"):
        tar(tmp_path / "set" / f"imagenet-{word}-0000.tar", samples(0, 4))
    data = opened(tmp_path / "set")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert load_config("debug", data=str(tmp_path / "set")).data.source == "tar"


def labelled(names: str, label: str, count: int = 6) -> Members:
    """Images and their sidecars: {i} is the number, {c} cat or dog; of `label`, NAME=CONTENT."""
    found: Members = {}
    for i in range(count):
        words = {"i": i, "c": ("cat", "dog")[i % 2], "half": i // 3}
        found[names.format(**words)] = png(i)
        name, _, content = label.partition("=")
        if name:
            found[name.format(**words)] = content.replace("C", words["c"]).encode()
    return found


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ("batch{half}/img{i}.resized.png", "batch{half}/img{i}.resized.cls=C\n"),
        ("batch{half}/img{i}.png", 'batch{half}/img{i}.json={"Label": "C"}'),
        ("img{i}.rgb.png", 'img{i}.json={"width": 4, "class_name": "C"}'),
        ("img{i}.png", "img{i}.label=C"),
        ("img{i}.png", "img{i}.txt=C"),
        ("{c}/ver 2.{i}.png", ""),
        ("photos/{c}/{i}.png", ""),
        ("__MACOSX/{c}/._{i}.png", "photos/{c}/{i}.png="),
    ],
)
def test_labels_are_those_of_the_sidecars_or_folders(
    tmp_path: Path, names: str, label: str
) -> None:
    data = whole(tar(tmp_path / "s.tar", labelled(names, label)))
    assert data.classes == ("cat", "dog")
    assert data.splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"part1/a.png": png(9)} | labelled("b/img{i}.png", "b/img{i}.cls=C"),
            "1 image of 7 have no",
        ),
        (labelled("train/{i}.png", "") | {"test/9.png": png(9)}, "have no sub-folders"),
        (labelled("{i}.png", '{i}.json={"label": "C", "class": "x"}'), "'label', 'class'"),
        (
            {
                k: v
                for i in range(60)
                for k, v in labelled(f"{i}.png", f"{i}.txt=no {i}", 1).items()
            },
            "60 different texts for 60 images: captions",
        ),
        (labelled("{c}/{i}.png", "{c}/{i}.a.cls=C") | {"cat/0.b.cls": b"dog"}, "two labels"),
    ],
)
def test_images_without_one_clear_label_are_refused(
    tmp_path: Path, members: Members, message: str
) -> None:
    assert message in refusal(tar(tmp_path / "s.tar", members))


def test_a_key_of_json_members_can_be_chosen_and_those_without_are_reported(tmp_path: Path) -> None:
    made = labelled("b{half}/{i}.png", 'b{half}/{i}.json={"species": "C", "label": 3}')
    file = tar(tmp_path / "s.tar", made)
    assert whole(file, label_column="species").classes == ("cat", "dog")
    file = tar(tmp_path / "t.tar", labelled("b{half}/{i}.png", 'b{half}/{i}.json={"width": 3}'))
    data = whole(file)
    assert data.classes == ("b0", "b1")
    assert "6 .json members without a label" in "\n".join(data.notes)


def marked(first: str, second: str, count: int = 6) -> Members:
    """As `labelled`, with a .json that holds `first`, from number 4 on `second`."""
    found: Members = {}
    for i in range(count):
        rest = first if i < 4 else second
        label = ("cat", "dog")[i % 2]
        found |= {f"{i}.png": png(i), f"{i}.json": f'{{"label": "{label}"{rest}}}'.encode()}
    return found


@pytest.mark.parametrize(
    ("first", "second", "settings", "split"),
    [
        (', "split": "train"', ', "split": "valid"', {}, "val"),
        (', "Usage": "Training", "w": 3', ', "Usage": "Test", "w": 3', {}, "test"),
        (', "is_valid": false', ', "is_valid": true', {}, "val"),
        (', "split": "train", "is_test": 0', ', "split": "val", "is_test": 0', {}, "val"),
        (', "purpose": "train"', ', "purpose": "dev"', {}, "val"),
        (', "fold": 1', ', "fold": 2', {"split_column": "fold", "splits": "val=2"}, "val"),
        (', "split": "a"', ', "split": "b"', {"splits": "train=a,test=b"}, "test"),
    ],
)
def test_a_key_of_json_members_divides_the_images(
    tmp_path: Path, first: str, second: str, settings: dict[str, Any], split: str
) -> None:
    tar(tmp_path / "s.tar", marked(first, second))
    data = whole(tmp_path / "s.tar", **settings)
    assert {k: s.labels.tolist() for k, s in data.splits.items()} == {
        "train": [0, 1, 0, 1],
        split: [0, 1],
    }
    key = first.split('"')[1]
    assert f"Keys of .json members used: {key}" in "\n".join(data.notes)
    assert whole(tmp_path / "s.tar", **settings).fingerprint == data.fingerprint  # of the cache
    data = whole(tmp_path / "s.tar", splits="none")
    assert len(data.splits["train"]) == 6
    assert f"Keys of .json members not used: {key}" in "\n".join(data.notes)


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        (', "split": "train"', "", {}, "unknown split ''"),
        (', "split": "train"', ', "split": "vall"', {}, "unknown split 'vall'"),
        (', "split": "train"', ', "split": "val"', {"split_column": "spilt"}, "mean 'split'"),
        ("", "", {"splits": "val=b"}, "no shard, folder or value of a key"),
        (', "split": "train", "is_val": 0', ', "split": "val", "is_val": 1', {}, "several columns"),
    ],
)
def test_keys_that_divide_the_images_in_doubt_are_refused(
    tmp_path: Path, first: str, second: str, settings: dict[str, Any], message: str
) -> None:
    tar(tmp_path / "s.tar", marked(first, second))
    with pytest.raises((ConfigError, DataError), match=message):
        whole(tmp_path / "s.tar", **settings)


def test_keys_that_are_no_splits_are_named_and_shards_and_keys_agree(tmp_path: Path) -> None:
    for values in (("3", "4"), ('"a"', '"b"'), ("true", "true")):
        made = marked(*(f', "{k}": {v}' for k, v in zip(("set", "set"), values, strict=True)))
        if values[0] == "true":
            made = marked(', "valid": true', ', "valid": true')
        data = whole(tar(tmp_path / "s.tar", made))
        assert len(data.splits["train"]) == 6
        assert "Keys of .json members not used: " in "\n".join(data.notes)
    tar(tmp_path / "train-0.tar", marked(', "split": "train"', ', "split": "val"'))
    tar(tmp_path / "test-0.tar", marked(', "split": "test"', ', "split": "test"'))
    data = whole(tmp_path / "{train,test}-0.tar")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 4, "val": 2, "test": 6}
    tar(tmp_path / "test-0.tar", marked(', "split": "test"', ', "split": "val"'))
    with pytest.raises(DataError, match=r"shard of the test split and with a [.]json of the val"):
        whole(tmp_path / "{train,test}-0.tar")


@pytest.mark.parametrize("ending", ["txt", "cls.txt", "lab", "category"])
def test_short_texts_in_folders_are_labels_or_not_by_a_setting(tmp_path: Path, ending: str) -> None:
    file = tar(tmp_path / "s.tar", labelled("b{half}/{i}.png", f"b{{half}}/{{i}}.{ending}=C"))
    with pytest.raises(DataError, match=rf"names of folders, or the texts of the \.{ending}"):
        whole(file)
    assert whole(file, label_column=ending).classes == ("cat", "dog")
    data = whole(file, label_column="folder")
    assert data.classes == ("b0", "b1")
    assert f"6 members of the tar files not used: 'b0/0.{ending}', " in "\n".join(data.notes)
    with pytest.raises(ConfigError, match=r"Unknown data\.label_column 'breed'"):
        whole(file, label_column="breed")
    same = labelled("{c}/{i}.png", f"{{c}}/{{i}}.{ending}=C")  # as the folders have it
    assert whole(tar(tmp_path / "t.tar", same)).classes == ("cat", "dog")
    captions = {k: v or k.encode() for k, v in labelled("{c}/{i}.png", "{c}/{i}.txt=").items()}
    assert whole(tar(tmp_path / "u.tar", captions)).classes == ("cat", "dog")


def test_a_cls_and_a_json_that_contradict_are_refused(tmp_path: Path) -> None:
    made = labelled("{i}.png", "{i}.cls=C") | labelled("{i}.png", '{i}.json={"label": "x{half}"}')
    for i in range(6):
        made[f"{i}.json"] = json.dumps({"label": f"x{i // 3}"}).encode()
    with pytest.raises(DataError, match=r"\.json and \.cls members label the images") as error:
        whole(tar(tmp_path / "s.tar", made))
    assert "--data.label_column: cls, or a key" in (error.value.hint or "")
    assert whole(tmp_path / "s.tar", label_column="cls").classes == ("cat", "dog")
    assert whole(tmp_path / "s.tar", label_column="label").classes == ("x0", "x1")
    for i in range(6):
        made[f"{i}.json"] = json.dumps({"label": i % 2}).encode()  # numbers of the names
    assert whole(tar(tmp_path / "s.tar", made)).classes == ("cat", "dog")


def test_folders_of_splits_are_those_of_a_folder(tmp_path: Path) -> None:
    parts = [("training_set/{c}/{i}.png", 6), ("test_set/{c}/x{i}.png", 2)]
    members = {k: v for names, count in parts for k, v in labelled(names, "", count).items()}
    data = whole(tar(tmp_path / "s.tar", members))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 6, "test": 2}
    members |= {"test_set/9.png": png(9), "readme/x.txt": b"x"}
    data = whole(tar(tmp_path / "u.tar", members))
    assert len(data.splits["test"]) == 2
    assert "1 image of no class left out: 'test_set/9.png'" in "\n".join(data.notes)
    members = labelled("train/{i}.png", "train/{i}.cls=C") | labelled(
        "dev/{i}.png", "dev/{i}.cls=C"
    )
    data = whole(tar(tmp_path / "t.tar", members))  # a folder is enough where sidecars have labels
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 6, "val": 6}
    assert "'dev' is val" in "\n".join(data.notes)
    assert len(whole(tmp_path / "t.tar", splits="none").splits["train"]) == 12


def test_a_word_in_some_shard_s_name_is_reported_and_not_taken(tmp_path: Path) -> None:
    for name in ("dev-board-photos-0", "phone-photos-0"):
        tar(tmp_path / f"{name}.tar", samples(0 if name < "e" else 6, 6))
    data = whole(tmp_path)
    assert len(data.splits["train"]) == 12
    assert "'dev-board-photos' is not taken as the val split" in "\n".join(data.notes)
    assert len(whole(tmp_path, splits="val=dev-board-photos").splits["val"]) == 6
    (tmp_path / "sub").mkdir()
    tar(tmp_path / "sub" / "val-pets-0.tar", samples(0, 4))
    tar(tmp_path / "sub" / "train-pets-0.tar", samples(4, 4))
    assert "Guessed from words" in "\n".join(whole(tmp_path / "sub").notes)
    for split in ("train", "valid"):
        (tmp_path / "set" / split).mkdir(parents=True)
        tar(tmp_path / "set" / split / "0.tar", samples(0 if split == "train" else 6, 6))
    assert len(whole(f"{tmp_path}/set/*/*.tar").splits["val"]) == 6


@pytest.mark.parametrize(
    ("names", "unnamed"),
    [
        (("train-0", "testA-0", "testB-0"), ""),
        (("cats-train-0", "dogs-train-0", "cats-holdout-0"), ""),
        (("train/x-0", "val/x-0", "dogs_test/x-0"), ""),
        (("train-0", "val-0", "extra-0", "unlabeled-0"), "'extra-0.tar', 'unlabeled-0.tar'"),
        (("00000", "00001", "val_00000"), "'00000.tar', '00001.tar'"),
    ],
)
def test_a_note_on_shards_names_all_and_its_setting_gives_the_same(
    tmp_path: Path, names: tuple[str, ...], unnamed: str
) -> None:
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar(tmp_path / f"{name}.tar", samples(4 * i, 4))
    path = f"{tmp_path}/*/*.tar" if "/" in names[0] else str(tmp_path)
    data = whole(path)
    note = next(note for note in data.notes if "names of files" in note)
    assert f"speak of none: {unnamed}." in note if unnamed else "Fixed by" in note
    if not unnamed:
        setting = note.partition("--data.splits ")[2].partition(", or none")[0]
        assert whole(path, splits=setting).fingerprint == data.fingerprint


def test_long_names_and_umlauts_are_read(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        long = "ü" * 40 + "/" + "x" * 80
        members = {f"{c}{long}.png": png(1) for c in ("a", "b")}
        file = tar(tmp_path / "s.tar", members, form)
        assert whole(file).splits["train"].names == [f"s.tar/{m}" for m in members]


def test_other_members_are_counted_and_a_shard_without_end_is_read(tmp_path: Path) -> None:
    file = tar(tmp_path / "s.tar", samples(0, 4) | {"readme.txt": b"x", "a.extra.npy": b"y"})
    raw = file.read_bytes().rstrip(b"\0")
    file.write_bytes(raw + b"\0" * (-len(raw) % 512))
    data = whole(file)
    assert len(data.splits["train"]) == 4
    assert "2 members" in "\n".join(data.notes)


def test_a_tar_and_the_pack_of_it_train_alike(tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", samples(0, 20))
    config = DataConfig(source="tar", path=str(tmp_path / "s.tar"))
    pack(config, tmp_path / "s.vitc", PackOptions(), workers=1)
    ours = open_data(DataConfig(source="packed", path=str(tmp_path / "s.vitc")))
    theirs = open_data(config)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.splits["val"].names == theirs.splits["val"].names


def test_more_shards_than_may_be_open_are_read(tmp_path: Path) -> None:
    count = OPEN_FILES + 10
    for i in range(count):
        tar(tmp_path / f"{i:03d}.tar", samples(2 * i, 2))
    split = whole(tmp_path / "*.tar").splits["train"]
    assert all(split.stored(i) == png(i) for i in (*range(2 * count), 0))
    store: Any = split.store
    assert len(store.files._open) == OPEN_FILES


# -- which files ----------------------------------------------------------------------------------


def test_braces_count_and_multiply() -> None:
    assert braces("a{8..11}") == ["a8", "a9", "a10", "a11"]
    assert braces("{train,val}-{00..01}") == ["train-00", "train-01", "val-00", "val-01"]
    assert braces("{x}") == ["{x}"]
    for wrong in ("{5..4}", "{0..99999999999}", "{0..999}{0..999}{0..999}"):
        with pytest.raises(ConfigError, match="must go up"):
            braces(wrong)


def test_patterns_that_find_nothing_or_the_same_twice_are_refused(tmp_path: Path) -> None:
    file = tar(tmp_path / "train-0.tar", samples(0, 4))
    with pytest.raises(ConfigError, match=r"train-1\.tar.*Did you mean 'train-0\.tar'"):
        find_files(str(tmp_path / "train-{0..1}.tar"), (".tar",))
    with pytest.raises(ConfigError, match="no file like"):
        find_files(str(tmp_path / "*.tgz"), (".tar",))
    with pytest.raises(ConfigError, match="There is no folder"):
        find_files(str(tmp_path / "no" / "x.tar"), (".tar",))
    with pytest.raises(ConfigError, match="twice"):
        find_files(f"{file}::{tmp_path}/*.tar", (".tar",))
    tar(tmp_path / "more.tar", samples(4, 4))
    config = load_config("debug", data=f"{file}::{tmp_path / 'more.tar'}")
    assert config.data.source == "tar"
    assert len(find_files(str(config.data.path), (".tar",))) == 2


# -- the index in the cache -----------------------------------------------------------------------


def test_a_shard_is_indexed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tar(tmp_path / "s.tar", samples(0, 6))
    first = whole(file)
    made: list[str] = []
    really = vitc.data.sources.tar._make_index

    def counted(path: str, *rest: Any) -> Any:
        made.append(path)
        return really(path, *rest)

    monkeypatch.setattr("vitc.data.sources.tar._make_index", counted)
    assert whole(file).fingerprint == first.fingerprint
    assert made == []
    (kept,) = (cache_folder() / "tars").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert whole(file).fingerprint == first.fingerprint
    assert len(made) == 1
    tar(file, {"longer" + name: content for name, content in samples(0, 6).items()})
    assert whole(file).fingerprint != first.fingerprint
    assert len(made) == 2
    status = os.stat(file)
    raw = bytearray(file.read_bytes())
    raw[:512] = raw[512:1024]  # of the same size and time, yet another content
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="checksum"):
        whole(file)
    split = whole(tar(file, samples(0, 4))).splits["train"]
    os.utime(file, (1, 1))  # during a run
    with pytest.raises(BrokenFileError, match="has changed since it was indexed"):
        split.stored(0)


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(whole(tar(tmp_path / "s.tar", samples(0, 4))).splits["train"]) == 4


# -- refused --------------------------------------------------------------------------------------


def with_entry(file: Path, name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Path:
    tar(file, samples(0, 4))
    with tarfile.open(file, "a") as f:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        f.addfile(info)
    return file


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "a\\..\\x.png", "a/.."]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    assert "leads outside" in refusal(with_entry(tmp_path / "s.tar", name))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of kind"),
    ],
)
def test_links_devices_and_the_like_are_refused(tmp_path: Path, kind: bytes, what: str) -> None:
    assert what in refusal(with_entry(tmp_path / "s.tar", "evil.png", kind, "/etc/passwd"))


def test_two_members_of_one_name_and_two_images_of_one_key_are_refused(tmp_path: Path) -> None:
    assert "two members are named '000001.png'" in refusal(
        with_entry(tmp_path / "s.tar", "000001.png")
    )
    both = samples(0, 4) | {"000002.jpg": png(2)}
    assert "two images" in refusal(tar(tmp_path / "t.tar", both))


@pytest.mark.parametrize(
    ("magic", "message"),
    [
        (gzip.compress(b"x" * 600, mtime=0), "gzip"),
        (b"BZh9" + b"x" * 600, "bzip2"),
        (b"\xfd7zXZ\0" + b"x" * 600, "xz"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, "zstd"),
    ],
)
def test_compressed_tars_are_refused_with_the_reason(
    tmp_path: Path, magic: bytes, message: str
) -> None:
    file = tmp_path / "s.tar.gz"
    file.write_bytes(magic)
    text = refusal(file)
    assert f"compressed ({message})" in text
    assert "random order" in text
    assert load_config("debug", data=str(file)).data.source == "tar"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"a.cls": b"x" * (2 << 20)}, "has 2,097,152 bytes"),
        ({"a.json": b"{"}, "cannot be read"),
        ({"a.json": b"[" * 100_000}, "cannot be read"),
        ({"a.cls": b"\xff\xfe"}, "cannot be read"),
        ({"a.json": b'{"label": [1, 2]}'}, "multi-label"),
        ({"a.cls": b" "}, "not a number"),
        ({"a.json": b'{"label": 1.5}'}, "not a number"),
        ({"a.json": b'{"width": 3}'}, "no label"),
        ({"a.json": b'{"label": "x", "label": "cat"}'}, "the key 'label' appears twice"),
        ({}, "no label"),
    ],
)
def test_invalid_labels_are_refused(tmp_path: Path, label: Members, message: str) -> None:
    assert message in refusal(tar(tmp_path / "s.tar", {"a.png": png(0)} | label))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("cat|dog", "gives 3 images several labels: 's.tar/1.png' has 'cat|dog'"),
        ('["cat", "dog"]', "gives 3 images several labels"),
        ("NaN", "3 images without a label"),
    ],
)
@pytest.mark.parametrize("name", ["{i}.cls", "{i}.txt"])
def test_labels_that_are_several_or_none_are_refused(
    tmp_path: Path, label: str, message: str, name: str
) -> None:
    members = labelled("{i}.png", f"{name}=cat")
    for i in (1, 3, 5):
        members[name.format(i=i)] = label.encode()
    assert message in refusal(tar(tmp_path / "s.tar", members))


def test_two_spellings_of_an_accent_are_one_class(tmp_path: Path) -> None:
    members = labelled("{i}.png", "{i}.cls=cat")
    members |= {"1.cls": "caf\u00e9".encode(), "3.cls": b" cafe\xcc\x81\n"}
    data = whole(tar(tmp_path / "s.tar", members))
    assert data.classes == ("caf\u00e9", "cat")
    assert data.splits["train"].labels.tolist() == [1, 0, 1, 0, 1, 1]
    assert "are one class: 'caf\u00e9'." in " ".join(data.notes)


def test_folders_may_have_any_name(tmp_path: Path) -> None:
    names = ("nan", "a|b", "None", "null")
    data = whole(tar(tmp_path / "s.tar", {f"{c}/{i}.png": png(i) for c in names for i in range(2)}))
    assert sorted(data.classes) == sorted(names)


def test_labels_with_a_byte_order_mark_or_whole_floats_are_read(tmp_path: Path) -> None:
    made = labelled("{i}.png", "{i}.cls=C") | {"0.cls": b"\xef\xbb\xbfcat"}
    assert whole(tar(tmp_path / "s.tar", made)).classes == ("cat", "dog")
    made = labelled("{i}.png", '{i}.json={"label": 1.0}') | {"0.json": b'{"label": 0.0}'}
    assert whole(tar(tmp_path / "t.tar", made)).classes == ("0", "1")


@pytest.mark.parametrize(
    ("members", "cure"),
    [
        ({"a.cls": "gr\u00fcn".encode("latin1")}, "UTF-8"),
        ({"a.json": b'{"label": 1.5}'}, "a number or a name"),
        ({"a.coarse.cls": b"x", "a.fine.cls": b"y"}, "--data.label_column ENDING"),
        ({"cat\\0.png": PNG}, "with / in names"),
    ],
)
def test_the_cure_fits_what_is_refused(tmp_path: Path, members: Members, cure: str) -> None:
    with pytest.raises(DataError) as error:
        opened(tar(tmp_path / "s.tar", {"a.png": PNG} | members))
    assert cure in (error.value.hint or "")


def test_litter_beside_shards_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    tar(tmp_path / "set" / "a.tar", samples(0, 4))
    (tmp_path / "set" / "._a.tar").write_bytes(b"\0\5\x16\7mac")
    assert len(whole(tmp_path / "set").splits["train"]) == 4
    (tmp_path / "set" / "a.tar").unlink()
    with pytest.raises(ConfigError, match="no file like"):
        find_files(str(tmp_path / "set"), (".tar",))


def test_one_class_no_images_or_too_many_members_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "one class only" in refusal(tar(tmp_path / "s.tar", samples(0, 4, classes=1)))
    assert "No images" in refusal(tar(tmp_path / "t.tar", {"a.txt": b"x"}))
    tar(tmp_path / "train-1.tar", samples(0, 4))
    tar(tmp_path / "val-1.tar", samples(0, 6, classes=3))
    with pytest.raises(DataError, match="outside training only: '2'"):
        opened(tmp_path / "{train,val}-1.tar")
    monkeypatch.setattr("vitc.data.sources.tar_labels.MAX_MEMBERS", 5)
    assert "more than 5 members" in refusal(tar(tmp_path / "s.tar", samples(0, 4)))


def header(size: bytes, name: bytes = b"a.png", kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"no tar" * 200,
        header(b"77777777777"),
        header(b"\xff" * 12),
        header(b"99"),
        header(b"\x80" + b"\xff" * 11),
        header(b"10000000", kind=b"x"),
        header(b"7", kind=b"L"),
        header(b"12", kind=b"x") + b"99 path=a\n".ljust(512, b"\0"),
        header(b"12", kind=b"x") + b"0 path=ab\n".ljust(512, b"\0"),
        header(b"12", kind=b"x") + b"10 size=x\n".ljust(512, b"\0") + header(b"0"),
        header(b"12", kind=b"g") + b"10 path=a\n".ljust(512, b"\0") + header(b"0"),
        header(b"22", kind=b"x") + b"18 linkpath=/etc/x\n".ljust(512, b"\0") + header(b"0"),
    ],
    ids=range(14),
)
def test_forged_headers_are_refused_before_memory_is_allocated(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "s.tar"
    file.write_bytes(raw)
    assert refusal(file)


def test_every_cut_and_most_flips_are_noticed_and_none_crashes(tmp_path: Path) -> None:
    file = tar(tmp_path / "s.tar", samples(0, 4), tarfile.USTAR_FORMAT)
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        raw = bytearray(good)
        at = int(rng.integers(0, 512 * 8))
        raw[at] ^= 1 << int(rng.integers(0, 8))
        cut = int(rng.integers(1, len(raw))) if rng.random() < 0.3 else len(raw)
        file.write_bytes(raw[:cut])
        try:
            data = whole(file)
        except DataError:
            continue
        split = data.splits["train"]
        assert all(isinstance(split.stored(i), bytes) for i in range(len(split)))


def test_base_256_sizes_are_read(tmp_path: Path) -> None:
    content = png(3)
    size = b"\x80" + struct.pack(">Q", len(content)).rjust(11, b"\0")
    blocks = b""
    for name in (b"a/x.png", b"b/x.png"):
        blocks += header(size, name) + content.ljust(-(-len(content) // 512) * 512, b"\0")
    (tmp_path / "s.tar").write_bytes(blocks + bytes(1024))
    assert whole(tmp_path / "s.tar").splits["train"].stored(1) == content


def test_a_photo_folder_in_a_tar_has_the_folder_s_images(
    photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = photo_folder(2, 5)
    with tarfile.open(tmp_path / "p.tar", "w") as f:
        for file in sorted(root.rglob("*.jpg")):
            f.add(file, file.relative_to(root))
    ours = whole(tmp_path / "p.tar")
    theirs = open_data(DataConfig(source="folder", path=str(root), **WHOLE))
    assert ours.classes == theirs.classes
    split, other = ours.splits["train"], theirs.splits["train"]
    assert (split.labels == other.labels).all()
    assert all(split.stored(i) == other.stored(i) for i in range(10))
