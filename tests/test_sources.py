"""What is found, how it is split, and what is said of folders and files nobody expects."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vitc.config import load_config
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.sources.arrays import read_idx
from vitc.data.sources.base import Split
from vitc.data.sources.embedded import EMBEDDED, FASHION_CLASSES
from vitc.data.sources.folder import scan_folder
from vitc.data.split import balanced_subset, hashed, hold_out, hold_out_groups, shares
from vitc.data.store import Files, Names
from vitc.errors import BrokenFileError, ConfigError, DataError, VitcError

PNG = io.BytesIO()
Image.new("RGB", (4, 4), (10, 200, 30)).save(PNG, "PNG")

Tree = dict[str, int]


def plant(root: Path, tree: Tree, suffix: str = ".png") -> Path:
    """`{"train/cat": 3}` -> train/cat/000.png … 002.png, none of the same size."""
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i:03d}{suffix}").write_bytes(PNG.getvalue() + b"\0" * i)
    return root


def opened(root: Path, **settings: Any) -> DataSet:
    return open_data(DataConfig(source="folder", path=str(root), **settings))


def counts(data: DataSet) -> dict[str, list[int]]:
    """Images of each class in each split."""
    classes = len(data.classes)
    return {k: np.bincount(s.labels, minlength=classes).tolist() for k, s in data.splits.items()}


def said(data: DataSet) -> str:
    return "\n".join(data.notes)


def refusal(root: Path, kind: type[VitcError] = DataError, **settings: Any) -> str:
    with pytest.raises(kind) as error:
        opened(root, **settings)
    assert error.value.hint
    return str(error.value)


# ---------------------------------------------------------------------------- the embedded set


def test_the_embedded_set_has_its_stated_sizes_and_is_exactly_balanced() -> None:
    data = open_data(DataConfig(), in_chans=1)
    assert counts(data) == {"train": [850] * 10, "val": [150] * 10, "test": [200] * 10}
    assert data.classes == FASHION_CLASSES
    pixels = data.splits["train"].pixels
    assert pixels is not None
    assert pixels.shape == (8500, 28, 28, 1)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert EMBEDDED.stat().st_size < 6e6
    assert "Zalando" in (EMBEDDED.parent / "LICENSE.fashion-mnist").read_text()


def test_the_embedded_set_has_not_changed_and_no_image_is_in_two_splits() -> None:
    data = open_data(DataConfig(), in_chans=1)
    assert data.fingerprint == "6fb61756a3cb952e203fd0c883d5aaab"
    train, val = (set(data.splits[k].names) for k in ("train", "val"))
    assert not train & val
    assert len(train) == 8500


def test_mean_and_std_are_those_of_the_training_pixels() -> None:
    data = open_data(DataConfig(), in_chans=3)
    pixels = data.splits["train"].pixels
    assert pixels is not None
    assert data.mean == pytest.approx((pixels.mean() / 255,) * 3, abs=1e-4)
    assert data.std == pytest.approx((pixels.std() / 255,) * 3, abs=1e-4)


def fashion_originals(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def test_the_build_script_is_balanced_and_reproducible_byte_for_byte(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "scripts" / "build_fashion.py"
    spec = importlib.util.spec_from_file_location("build_fashion", script)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    originals = fashion_originals(tmp_path)
    share = {"train": 3, "val": 2, "test": 4}
    arrays = build.subset(originals, share, 0)
    for split, count in share.items():
        assert np.bincount(arrays[f"{split}_labels"]).tolist() == [count] * 10
    assert not set(arrays["train_positions"].tolist()) & set(arrays["val_positions"].tolist())
    images = read_idx(originals / "train-images-idx3-ubyte.gz")
    assert (arrays["val_images"] == images[arrays["val_positions"]]).all()
    assert build.archive(arrays) == build.archive(build.subset(originals, share, 0))
    assert build.archive(arrays) != build.archive(build.subset(originals, share, 1))


# ---------------------------------------------------------------------------------- synthetic


def test_synthetic_images_are_the_same_everywhere_and_can_be_learned() -> None:
    data = open_data(DataConfig(source="synthetic"))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 512, "val": 128, "test": 128}
    assert data.fingerprint == "6e9b810d142d6187894a1d15afc273ab"

    def spectra(split: Split) -> NDArray[np.float64]:  # what a shift of the stripes leaves alone
        assert split.pixels is not None
        return np.abs(np.fft.rfft2(split.pixels / 255.0, axes=(1, 2))).reshape(len(split), -1)

    train, val = data.splits["train"], data.splits["val"]
    means = np.stack([spectra(train)[train.labels == k].mean(0) for k in range(10)])
    distances = np.linalg.norm(spectra(val)[:, None] - means, axis=2)
    assert (distances.argmin(1) == val.labels).mean() > 0.95


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_every_array_source_comes_in_the_channels_asked_for(in_chans: int) -> None:
    data = open_data(DataConfig(source="synthetic"), in_chans)
    for split in data.splits.values():
        assert split.pixels is not None
        assert split.pixels.shape[1:] == (32, 32, in_chans)
        assert split.pixels.dtype == np.uint8
    assert len(data.mean) == len(data.std) == in_chans


def test_two_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"in_chans 2.*1, 3 or 4"):
        open_data(DataConfig(), in_chans=2)


def test_a_mean_and_std_of_ones_own_are_used() -> None:
    own = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    data = open_data(DataConfig(source="synthetic", **own))
    assert {"mean": data.mean, "std": data.std} == own
    with pytest.raises(ConfigError, match="1 entries"):
        open_data(DataConfig(source="synthetic", **own), in_chans=1)


# ------------------------------------------------------------------------------ image folders


def test_one_folder_of_classes_is_split_three_ways_class_by_class(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"cat": 40, "dog": 20}))
    assert data.classes == ("cat", "dog")
    assert counts(data) == {"train": [28, 14], "val": [6, 3], "test": [6, 3]}
    assert "Held out of 60 training images" in said(data)
    assert "9 for validation and 9 for the test" in said(data)
    names = [n for s in data.splits.values() for n in s.names]
    assert len(names) == len(set(names)) == 60
    for split in data.splits.values():
        assert isinstance(split.store, Files)
        for i, (name, label) in enumerate(zip(split.names, split.labels, strict=True)):
            file = split.store.path(i if split.places is None else int(split.places[i]))
            assert file == tmp_path / name
            assert file.is_file()
            assert name.startswith(data.classes[label])


def test_a_folder_s_names_are_flat_in_the_process_and_its_workers(tmp_path: Path) -> None:
    split = opened(plant(tmp_path, {"a": 20, "ü": 20})).splits["train"]
    assert isinstance(split.names, Names)
    assert isinstance(split.store, Files)
    assert isinstance(split.store.names, Names)


def test_the_split_depends_on_its_seed_and_hardly_on_new_images(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 40, "b": 40})
    first, again = opened(tmp_path), opened(tmp_path)
    assert first.splits["val"].names == again.splits["val"].names
    assert first.fingerprint == again.fingerprint
    assert opened(tmp_path, split_seed=1).splits["val"].names != first.splits["val"].names
    (tmp_path / "a" / "new.png").write_bytes(PNG.getvalue())
    kept = set(opened(tmp_path).splits["val"].names) & set(first.splits["val"].names)
    assert len(kept) >= len(first.splits["val"]) - 1


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "VALID", "testing"),
        ("TRAIN", "validation", "Test"),
        ("train", "dev", "test"),
    ],
)
def test_the_folders_own_splits_are_kept(tmp_path: Path, train: str, val: str, test: str) -> None:
    tree = {f"{train}/a": 5, f"{train}/b": 4, f"{val}/a": 2, f"{val}/b": 1, f"{test}/a": 3}
    data = opened(plant(tmp_path, tree))
    assert counts(data) == {"train": [5, 4], "val": [2, 1], "test": [3, 0]}
    assert "The test split has no image of 1 class: 'b'." in said(data)
    assert "Held out" not in said(data)


def test_train_and_test_alone_give_up_training_images_for_validation_only(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"train/a": 20, "train/b": 20, "test/a": 5, "test/b": 5}))
    assert counts(data) == {"train": [17, 17], "val": [3, 3], "test": [5, 5]}
    assert all(n.startswith("train/") for n in data.splits["val"].names)


def test_train_and_val_alone_are_kept_and_the_missing_test_is_said(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"train/a": 20, "train/b": 20, "val/a": 5, "val/b": 5}))
    assert counts(data) == {"train": [20, 20], "val": [5, 5]}
    assert "No test split" in said(data)


def test_train_alone_is_split_three_ways(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"train/a": 20, "train/b": 20}))
    assert counts(data) == {"train": [14, 14], "val": [3, 3], "test": [3, 3]}


def test_fractions_of_zero_hold_nothing_out_and_say_so(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 20, "b": 20})
    no_test = opened(tmp_path, test_fraction=0.0)
    assert counts(no_test) == {"train": [17, 17], "val": [3, 3]}
    assert "No test split: data.test_fraction is 0." in said(no_test)
    neither = opened(tmp_path, test_fraction=0.0, val_fraction=0.0)
    assert counts(neither) == {"train": [20, 20]}
    assert "No validation split" in said(neither)


def test_a_flat_folder_named_like_a_split_beside_classes_is_a_class(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"bus": 9, "car": 9, "train": 9}))
    assert data.classes == ("bus", "car", "train")
    assert "'train' has no sub-folders, so it is a class" in said(data)


def test_a_test_folder_without_labels_is_left_out_and_a_test_held_out(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"train/a": 20, "train/b": 20, "test": 7}))
    assert counts(data)["test"] == [3, 3]
    assert "'test' was skipped: it has no class sub-folders, so its 7 images" in said(data)


def test_folders_beside_the_splits_are_left_out_by_name(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"train/a": 9, "train/b": 9, "extra/c": 3, "masks": 2}))
    assert data.classes == ("a", "b")
    assert "'extra', 'masks' beside 'train' skipped" in said(data)


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"a/2023/may": 5, "a/2024": 5, "a": 2, "b/x/y/z": 4}))
    assert sum(counts(data)[k][0] for k in data.splits) == 12
    assert "a/2023/may/000.png" in [n for s in data.splits.values() for n in s.names]


def test_litter_is_passed_over_and_other_files_are_counted_and_named(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 5, "b": 5, ".git": 3, "__MACOSX/a": 5, "a/.cache": 3, "@eaDir": 1})
    for litter in (".DS_Store", "a/Thumbs.db", "b/._000.png", "b/desktop.ini"):
        (tmp_path / litter).write_bytes(b"x")
    assert len(opened(tmp_path).notes) == 1  # the hold-out
    for name in ("a/notes.txt", "a/clip.mp4", "b/IMG.HEIC", "b/x.csv", "README"):
        (tmp_path / name).write_bytes(b"x")
    notes = said(opened(tmp_path))
    assert "4 files skipped, not images: 'a/clip.mp4', 'a/notes.txt', 'b/IMG.HEIC' and 1 m" in notes
    assert "1 file beside the class folders" in notes
    assert "'README'" in notes


def test_images_beside_the_class_folders_are_said_to_have_no_class(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 5, "b": 5, ".": 2})
    assert "2 files beside the class folders" in said(opened(tmp_path))
    assert "2 images of no class" in said(opened(tmp_path))


def test_empty_image_files_are_named_at_once(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "zero.jpg").touch()
    assert "1 image file of 0 bytes, broken: 'a/zero.jpg'." in said(opened(tmp_path))


def test_links_in_circles_end_and_linked_folders_are_read(tmp_path: Path) -> None:
    plant(tmp_path, {"data/a": 3, "data/b": 3, "elsewhere": 4})
    root = tmp_path / "data"
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "b" / "self").symlink_to(root / "b" / "self")
    (root / "b" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    listing = scan_folder(root)
    names = listing.splits["train"].names
    assert "b/more/000.png" in names
    assert "b/gone.png" not in names
    assert len(names) < 20


def test_special_files_are_never_opened_as_images(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "b": 3})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert "'a/pipe.png'" in said(opened(tmp_path))


def test_odd_names_are_fine(tmp_path: Path) -> None:
    odd = ["größe", "猫 ", "it's; $(rm)", "tab\tname", "100%"]
    data = opened(plant(tmp_path, dict.fromkeys(odd, 3)))
    assert set(data.classes) == set(odd)


def test_names_that_are_no_text_can_still_be_printed_and_opened(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 4})
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(raw)
    except OSError:
        pytest.skip("this file system takes text only")
    for i in range(4):
        with open(raw + b"/\xff%d.png" % i, "wb") as f:
            f.write(PNG.getvalue())
    data = opened(tmp_path)
    assert data.classes == ("a", "caf\\xe9")
    for split in data.splits.values():
        "\n".join(split.names).encode()
        assert all(split.read(i, 3).shape == (4, 4, 3) for i in range(len(split)))


def test_accents_written_in_two_ways_are_one_class_with_one_fingerprint(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    rest = {"train/b": 4, "val/b": 2}
    one = opened(plant(tmp_path / "x", {f"train/{composed}": 4, f"val/{apart}": 2} | rest))
    two = opened(plant(tmp_path / "y", {f"train/{apart}": 4, f"val/{composed}": 2} | rest))
    assert counts(one) == {"train": [4, 4], "val": [2, 2]}
    assert one.classes == two.classes == ("b", composed)
    assert one.fingerprint == two.fingerprint


# ------------------------------------------------------------- folders that cannot be trained on


def test_a_wrong_path_is_a_config_error_with_a_suggestion(tmp_path: Path) -> None:
    plant(tmp_path, {"photos/a": 2, "photos/b": 2})
    message = refusal(tmp_path / "photo", ConfigError)
    assert "There is no folder" in message
    assert "Did you mean 'photos'?" in message


def test_an_archive_instead_of_a_folder_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert "Unpack it" in refusal(tmp_path / "photos.zip", ConfigError)
    (tmp_path / "one.jpg").write_bytes(b"x")
    assert "is a file, not a folder" in refusal(tmp_path / "one.jpg", ConfigError)


def test_images_without_sub_folders_have_no_class(tmp_path: Path) -> None:
    assert "holds 5 images but no sub-folders" in refusal(plant(tmp_path, {".": 5}))


def test_an_empty_folder_and_a_folder_without_images_are_refused(tmp_path: Path) -> None:
    assert "no image and no sub-folder" in refusal(plant(tmp_path / "x", {".": 0}))
    (tmp_path / "x" / "photos.tar.gz").write_bytes(b"x")
    assert "Unpack 'photos.tar.gz' first" in refusal(tmp_path / "x")
    message = refusal(plant(tmp_path / "y", {"a": 3, "b": 3}, suffix=".txt"))
    assert "No images in the class folders" in message
    assert "jpeg" in message


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    assert "one class only, 'cat'" in refusal(plant(tmp_path, {"cat": 9}))


def test_a_folder_around_the_data_set_is_recognised(tmp_path: Path) -> None:
    message = refusal(plant(tmp_path, {"flowers/rose": 9, "flowers/daisy": 9}))
    assert "'daisy', 'rose'" in message
    assert f"give {tmp_path / 'flowers'} as the folder" in message
    message = refusal(plant(tmp_path / "y", {"flowers/train/a": 9, "flowers/val/a": 9}))
    assert f"give {tmp_path / 'y' / 'flowers'} as the folder" in message


def test_an_empty_class_is_named_with_what_lies_there_instead(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 9, "b": 9, "empty": 0})
    (tmp_path / "empty" / "IMG_1.HEIC").write_bytes(b"x")
    message = refusal(tmp_path)
    assert "1 class without any image to train on: 'empty'." in message
    assert "'empty/IMG_1.HEIC'" in message


def test_a_class_of_one_picture_is_refused_by_name(tmp_path: Path) -> None:
    message = refusal(plant(tmp_path, {"a": 9, "b": 9, "lonely": 1}))
    assert "1 class with one image only: 'lonely'. It cannot both train and validate." in message


def test_a_class_of_one_picture_may_train_where_the_folder_has_its_own_splits(
    tmp_path: Path,
) -> None:
    tree = {"train/a": 9, "train/b": 1, "val/a": 2, "val/b": 1, "test/a": 1, "test/b": 1}
    assert counts(opened(plant(tmp_path, tree)))["train"] == [9, 1]


def test_a_class_of_two_pictures_trains_and_validates_and_is_said_to_miss_in_the_test(
    tmp_path: Path,
) -> None:
    data = opened(plant(tmp_path, {"a": 20, "b": 20, "pair": 2, "three": 3}))
    assert [counts(data)[k][2] for k in ("train", "val")] == [1, 1]
    assert [counts(data)[k][3] for k in ("train", "val", "test")] == [1, 1, 1]
    assert "Too few images to be in the test: 'pair'." in said(data)


def test_a_class_that_training_lacks_is_refused_by_name(tmp_path: Path) -> None:
    message = refusal(plant(tmp_path, {"train/cat": 5, "train/dog": 5, "val/cta": 2}))
    assert "The val split has 1 class that training lacks: 'cta'." in message
    assert "Did you mean 'cat'?" in message
    message = refusal(plant(tmp_path, {"test/cat": 2, "val/cta": 0, "test/bird": 1, "val/cat": 1}))
    assert "'bird'" in message or "'cta'" in message


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 3, "dog": 3})
    try:
        (tmp_path / "Cat").mkdir()
    except FileExistsError:
        pytest.skip("this file system cannot tell them apart")
    plant(tmp_path, {"Cat": 3})
    message = refusal(tmp_path)
    assert "'Cat' and 'cat'" in message
    assert "upper and lower case" in message


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    message = refusal(plant(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1, "valid/a": 1}))
    assert "'val', 'valid', several folders for the val split" in message


def test_splits_without_training_images_are_refused(tmp_path: Path) -> None:
    message = refusal(plant(tmp_path / "x", {"val/a": 3, "test/a": 3}))
    assert "no train folder" in message
    message = refusal(plant(tmp_path / "y", {"train": 3, "test": 3}))
    assert "'test', 'train'" in message
    assert "have no sub-folders" in message
    message = refusal(plant(tmp_path / "z", {"train": 3, "test/a": 3}))
    assert "train has no sub-folders" in message
    message = refusal(plant(tmp_path / "w", {"train/a": 3, "train/b": 3, "val/a": 0, "val/b": 0}))
    assert "The val folder" in message


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, {"a": 3, "secret": 3})
    scandir = os.scandir

    def refuse(place: str) -> Any:
        if place.endswith("secret"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"secret' cannot be read: Permission denied"):
        opened(tmp_path)


# --------------------------------------------------------------------------------------- groups


def burst(root: Path, classes: int = 3, bursts: int = 12, frames: int = 5) -> Path:
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for b in range(bursts):
            for f in range(1 + (b + f_offset(c)) % frames):
                (root / f"class{c}" / f"p{c}{b:02d}_{f}.png").write_bytes(PNG.getvalue())
    return root


def f_offset(c: int) -> int:
    return c * 2


def test_groups_stay_on_one_side_and_classes_stay_in_proportion(tmp_path: Path) -> None:
    data = opened(burst(tmp_path), group=r"/(p\d+)_")
    side = {}
    for name, split in data.splits.items():
        for path in split.names:
            assert side.setdefault(path.split("/")[1].split("_")[0], name) == name
    totals = np.sum([counts(data)[k] for k in data.splits], axis=0)
    for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert np.abs(np.array(counts(data)[name]) / totals - share).max() < 0.08
    assert "by the groups of data.group" in said(data)


def test_without_a_group_in_parentheses_the_whole_match_counts(tmp_path: Path) -> None:
    a = opened(burst(tmp_path), group=r"p\d+")
    b = opened(tmp_path, group=r"(p\d+)_")
    assert a.splits["val"].names == b.splits["val"].names


def test_groups_of_several_classes_still_leave_every_class_on_each_side() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        groups = [f"g{i}" for i in rng.integers(0, 15, 120)]
        labels = rng.integers(0, 4, 120)
        side = hold_out_groups(labels, groups, 0.15, 0.15, int(rng.integers(99)))
        assert len(set(zip(groups, side.tolist(), strict=True))) == len(set(groups))
        for s in (0, 1, 2):
            assert set(labels[side == s]) == {0, 1, 2, 3}


def test_two_groups_of_each_class_train_and_validate(tmp_path: Path) -> None:
    data = opened(burst(tmp_path, bursts=2), group=r"(p\d+)_")
    assert all(counts(data)["train"])
    assert all(counts(data)["val"])
    assert "test" not in data.splits
    assert "Too few groups to be in the test" in said(data)


def test_a_class_of_one_group_only_is_refused(tmp_path: Path) -> None:
    burst(tmp_path)
    plant(tmp_path, {"class9/p999_": 5})
    assert "1 class with one group only: 'class9'" in refusal(tmp_path, group=r"(p\d+)_")


def test_groups_that_tie_the_classes_together_are_refused(tmp_path: Path) -> None:
    """Three patients, each with images of two of the classes: two are needed for every class."""
    for name in ("a/p1_1", "b/p1_2", "a/p2_1", "c/p2_2", "b/p3_1", "c/p3_2"):
        plant(tmp_path, {name.split("/")[0]: 0})
        (tmp_path / f"{name}.png").write_bytes(PNG.getvalue())
    assert "connect the classes" in refusal(tmp_path, group=r"(p\d)_")


def test_groups_across_the_folders_own_splits_are_a_loud_leak(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for c in "ab":
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(3):
                (tmp_path / split / c / f"p{i if c == 'a' else split}_1.png").write_bytes(b"x")
    assert "LEAK: 3 groups of data.group in both train and val: '0', '1', '2'." in said(
        opened(tmp_path, group=r"p(\d)")
    )


def test_group_expressions_that_are_wrong_or_match_nothing_are_refused(tmp_path: Path) -> None:
    burst(tmp_path)
    with pytest.raises(ConfigError, match="not a regular expression"):
        opened(tmp_path, group="(")
    assert "does not match any file name, e.g. 'class0/p000_0.png'" in refusal(
        tmp_path, ConfigError, group="patient"
    )


def test_images_outside_any_group_are_counted_and_stand_alone(tmp_path: Path) -> None:
    burst(tmp_path)
    plant(tmp_path, {"class0/x": 4})
    assert "data.group does not match 4 train images" in said(opened(tmp_path, group=r"(p\d+)_"))


# ------------------------------------------------------------------------- shares and subsets


@pytest.mark.parametrize(
    ("count", "expected"), [(2, (1, 0)), (3, (1, 1)), (4, (1, 1)), (10, (2, 2)), (100, (15, 15))]
)
def test_shares_leave_training_then_validation_then_test_an_image(
    count: int, expected: tuple[int, int]
) -> None:
    assert shares(count, 0.15, 0.15) == expected


def test_shares_never_take_the_last_training_image() -> None:
    for count in range(2, 30):
        for val, test in ((0.9, 0.09), (0.01, 0.98), (0.5, 0.49), (0.0, 0.99), (0.99, 0.0)):
            n_val, n_test = shares(count, val, test)
            assert n_val + n_test < count
            assert (n_val > 0) == (val > 0)


def test_hold_out_is_the_same_whatever_the_order_of_the_images() -> None:
    names = [f"c{i % 3}/{i}.jpg" for i in range(90)]
    labels = np.array([i % 3 for i in range(90)])
    order = np.random.default_rng(0).permutation(90)
    side = hold_out(labels, names, 0.2, 0.1, 5)
    moved = hold_out(labels[order], [names[i] for i in order], 0.2, 0.1, 5)
    assert (side[order] == moved).all()


def test_a_subset_is_balanced_and_contained_in_a_larger_one() -> None:
    labels = np.repeat([0, 1, 2], [50, 5, 100])
    names = [str(i) for i in range(155)]
    before: set[int] = set()
    sizes = {3: [1, 1, 1], 15: [5, 5, 5], 26: [11, 5, 10], 105: [50, 5, 50], 140: [50, 5, 85]}
    for count, expected in sizes.items():
        chosen = balanced_subset(labels, names, count, 0)
        assert np.bincount(labels[chosen]).tolist() == expected
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())


def test_max_train_takes_a_balanced_subset_of_training_only() -> None:
    data = open_data(DataConfig(max_train=200), in_chans=1)
    assert counts(data) == {"train": [20] * 10, "val": [150] * 10, "test": [200] * 10}
    assert "200 of 8,500 training images are used" in said(data)
    assert "has no effect" in said(open_data(DataConfig(max_train=9000), in_chans=1))
    with pytest.raises(ConfigError, match="max_train 9 is less than one image"):
        open_data(DataConfig(max_train=9))


# --------------------------------------------------------------------------------- fingerprints


def test_the_fingerprint_tells_images_names_classes_and_splits_apart(tmp_path: Path) -> None:
    plant(tmp_path / "x", {"a": 9, "b": 9})
    first = opened(tmp_path / "x").fingerprint
    assert opened(plant(tmp_path / "y", {"a": 9, "b": 9})).fingerprint == first  # elsewhere
    assert opened(tmp_path / "x", split_seed=1).fingerprint != first
    assert opened(tmp_path / "x", max_train=4).fingerprint != first
    (tmp_path / "x" / "a" / "000.png").rename(tmp_path / "x" / "a" / "0.png")
    assert opened(tmp_path / "x").fingerprint != first
    (tmp_path / "y" / "a" / "000.png").write_bytes(PNG.getvalue() + b"1234")
    assert opened(tmp_path / "y").fingerprint != first


def test_the_fingerprint_does_not_depend_on_the_channels_asked_for() -> None:
    config = DataConfig(source="synthetic")
    assert open_data(config, 1).fingerprint == open_data(config, 4).fingerprint


def test_a_million_paths_stay_names_until_asked_for(tmp_path: Path) -> None:
    store = opened(plant(tmp_path, {"a": 9, "b": 9})).splits["train"].store
    assert isinstance(store, Files)
    assert store.path(0) == tmp_path / "a" / "000.png"
    assert len(pickle.dumps(store)) < 2000


# ------------------------------------------------------------------------------------------ IDX


def write_idx(file: Path, array: NDArray[np.uint8], head: bytes | None = None) -> None:
    head = head or struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    data = head + array.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)


def idx_set(folder: Path, prefix: str = "", end: str = ".gz", sep: str = "-") -> Path:
    rng = np.random.default_rng(1)
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        labels = (np.arange(count) % 3 + 1).astype(np.uint8)
        write_idx(folder / f"{prefix}{part}-images{sep}idx3-ubyte{end}", images)
        write_idx(folder / f"{prefix}{part}-labels{sep}idx1-ubyte{end}", labels)
    return folder


def from_idx(path: Path, in_chans: int = 1) -> DataSet:
    return open_data(DataConfig(source="idx", path=str(path)), in_chans)


@pytest.mark.parametrize(("end", "sep"), [(".gz", "-"), ("", "-"), ("", "."), (".gz", ".")])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, end: str, sep: str) -> None:
    data = from_idx(idx_set(tmp_path, end=end, sep=sep))
    assert data.classes == ("1", "2", "3")  # the labels there are
    assert counts(data) == {"train": [17] * 3, "val": [3] * 3, "test": [7, 7, 6]}
    images = read_idx(tmp_path / f"train-images{sep}idx3-ubyte{end}")
    train = data.splits["train"]
    assert train.pixels is not None
    for pixels, name, label in zip(train.pixels, train.names, train.labels, strict=True):
        place = int(name.removeprefix("train/"))
        assert (pixels[..., 0] == images[place]).all()
        assert label == place % 3


def test_idx_files_may_lie_in_raw_as_torchvision_leaves_them(tmp_path: Path) -> None:
    idx_set(tmp_path / "MNIST" / "raw")
    assert len(from_idx(tmp_path).splits["test"]) == 20
    assert len(from_idx(tmp_path / "MNIST").splits["test"]) == 20


def test_emnist_is_turned_upright_named_by_its_mapping_and_chosen_by_prefix(
    tmp_path: Path,
) -> None:
    idx_set(tmp_path, "emnist-letters-")
    idx_set(tmp_path, "emnist-digits-")
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
    with pytest.raises(ConfigError, match=r"2 IDX data sets: .*emnist-digits"):
        from_idx(tmp_path)
    data = from_idx(tmp_path / "emnist-letters")
    assert data.classes == ("A", "B", "C")
    assert "turned upright" in said(data)
    pixels = data.splits["test"].pixels
    assert pixels is not None
    images = read_idx(tmp_path / "emnist-letters-t10k-images-idx3-ubyte.gz")
    assert (pixels[..., 0] == images.transpose(0, 2, 1)).all()


def test_a_folder_without_idx_files_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No IDX files"):
        from_idx(tmp_path)
    with pytest.raises(ConfigError, match="neither a folder nor"):
        from_idx(tmp_path / "mnist")
    with pytest.raises(ConfigError, match="no folder"):
        from_idx(tmp_path / "no" / "mnist")


def test_missing_idx_files_are_named(tmp_path: Path) -> None:
    idx_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="lacks the labels") as error:
        from_idx(tmp_path)
    assert "train-labels-idx1-ubyte" in str(error.value.hint)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx_files_are_refused(tmp_path: Path, end: str) -> None:
    file = tmp_path / f"train-images-idx3-ubyte{end}"
    idx_set(tmp_path, end=end)
    whole = file.read_bytes()
    for data in (b"", whole[:3], whole[:9], whole[:-50], whole + b"more", b"GIF89a" + whole):
        file.write_bytes(data)
        with pytest.raises(DataError, match="train-images"):
            from_idx(tmp_path)


def test_a_size_that_no_such_file_can_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for end in ("", ".gz"):
        file = tmp_path / f"x-idx3-ubyte{end}"
        head = struct.pack(">IIII", 0x803, 60_000, 2**15, 2**15)
        write_idx(file, np.zeros((2, 3, 3), np.uint8), head)
        with pytest.raises(DataError, match="more than a file of"):
            read_idx(file)
    bomb = tmp_path / "bomb-idx3-ubyte.gz"  # packs well, and holds far more than it declares
    write_idx(bomb, np.zeros((3000, 100, 100), np.uint8), struct.pack(">IIII", 0x803, 3, 100, 100))
    with pytest.raises(DataError, match="declares 30,000 bytes and holds more"):
        read_idx(bomb)


def test_images_and_labels_must_be_as_many(tmp_path: Path) -> None:
    idx_set(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(59, np.uint8))
    with pytest.raises(DataError, match="60x6x5"):
        from_idx(tmp_path)


def test_a_test_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    idx_set(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(20, 9, np.uint8))
    with pytest.raises(DataError, match="hold 9, not in training"):
        from_idx(tmp_path)


# ---------------------------------------------------------------------------------------- CIFAR


def cifar_rows(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def cifar10(folder: Path, version: str, count: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class{i}" for i in range(10)]
    labels = [i % 10 for i in range(count)]
    for seed, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = cifar_rows(count, seed)
        if version == "binary":
            records = np.column_stack([np.array(labels, np.uint8), rows])
            (folder / f"{batch}.bin").write_bytes(records.tobytes())
        else:
            content = {b"data": rows, b"labels": labels, b"filenames": [b"x.png"] * count}
            (folder / batch).write_bytes(pickled(content, version))
    if version == "binary":
        (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    else:
        (folder / "batches.meta").write_bytes(pickled({b"label_names": names}, version))
    return folder


def pickled(content: dict[bytes, Any], version: str) -> bytes:
    if version == "text keys":
        content = {k.decode(): v for k, v in content.items()}
    return pickle.dumps(content, protocol=4 if version == "protocol 4" else 2)


def from_cifar(path: Path, source: Any = "cifar10") -> DataSet:
    return open_data(DataConfig(source=source, path=str(path)))


VERSIONS = ("binary", "protocol 2", "protocol 4", "text keys")


@pytest.mark.parametrize("version", VERSIONS)
def test_cifar10_is_read_in_both_versions(tmp_path: Path, version: str) -> None:
    data = from_cifar(cifar10(tmp_path, version))
    assert data.classes == tuple(f"class{i}" for i in range(10))
    assert counts(data) == {"train": [17] * 10, "val": [3] * 10, "test": [4] * 10}
    assert "cifar10 has 50,000 train images; this copy has 200." in said(data)
    pixels = data.splits["test"].pixels
    assert pixels is not None
    expected = cifar_rows(40, 5).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert (pixels == expected).all()


def test_both_versions_of_cifar10_have_one_fingerprint(tmp_path: Path) -> None:
    prints = {from_cifar(cifar10(tmp_path / v, v)).fingerprint for v in VERSIONS}
    assert len(prints) == 1


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-10-batches-bin"])
def test_cifar10_is_found_in_the_folder_its_archive_unpacks_to(tmp_path: Path, name: str) -> None:
    cifar10(tmp_path / name, "binary" if name.endswith("bin") else "protocol 2")
    assert len(from_cifar(tmp_path).splits["test"]) == 40


def test_a_python_2_pickle_as_the_authors_published_is_read(tmp_path: Path) -> None:
    """Python 2 wrote its byte strings as the opcodes S, T and U, and arrays through dtype('u1')."""
    cifar10(tmp_path, "protocol 2")
    raw = cifar_rows(40, 5).tobytes()
    labels = b"".join(b"K" + bytes([i % 10]) for i in range(40))
    program = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x28M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tbU\x06labelsq\x08]("
        + labels
        + b"eu."
    )
    (tmp_path / "test_batch").write_bytes(program)
    pixels = from_cifar(tmp_path).splits["test"].pixels
    assert pixels is not None
    assert (pixels == cifar_rows(40, 5).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()


@pytest.mark.parametrize("version", ["binary", "protocol 2"])
def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path, version: str) -> None:
    binary = version == "binary"
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir()
    names = [f"fine{i}" for i in range(100)]
    for part, count in (("train", 300), ("test", 100)):
        fine = [i % 100 for i in range(count)]
        rows = cifar_rows(count, count)
        if binary:
            coarse = np.full(count, 7, np.uint8)
            records = np.column_stack([coarse, np.array(fine, np.uint8), rows])
            (folder / f"{part}.bin").write_bytes(records.tobytes())
        else:
            content = {b"data": rows, b"fine_labels": fine, b"coarse_labels": [7] * count}
            (folder / part).write_bytes(pickled(content, version))
    if binary:
        (folder / "fine_label_names.txt").write_text("\n".join(names))
    else:
        (folder / "meta").write_bytes(pickled({b"fine_label_names": names}, version))
    data = from_cifar(tmp_path, "cifar100")
    assert data.classes == tuple(names)
    assert counts(data) == {"train": [2] * 100, "val": [1] * 100, "test": [1] * 100}


def test_class_names_missing_beside_the_data_become_numbers(tmp_path: Path) -> None:
    cifar10(tmp_path, "binary")
    (tmp_path / "batches.meta.txt").unlink()
    assert from_cifar(tmp_path).classes == tuple("0123456789")


def test_cifar_that_is_not_there_or_not_unpacked_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No cifar10 in"):
        from_cifar(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(ConfigError) as error:
        from_cifar(tmp_path)
    assert error.value.hint == "Unpack it first: tar -xzf cifar-10-python.tar.gz"
    with pytest.raises(ConfigError, match="There is no folder"):
        from_cifar(tmp_path / "gone")


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    cifar10(tmp_path, "binary")
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing"):
        from_cifar(tmp_path)


@pytest.mark.parametrize("version", ["binary", "protocol 2", "protocol 4"])
def test_truncated_and_garbled_cifar_files_are_refused(tmp_path: Path, version: str) -> None:
    cifar10(tmp_path, version)
    file = tmp_path / ("data_batch_2" + (".bin" if version == "binary" else ""))
    whole = file.read_bytes()
    for data in (
        b"",
        whole[:100],
        whole[: len(whole) // 2 + 7],
        b"\x00hello",
        b"(((((((",
        b"]" * 99,
    ):
        file.write_bytes(data)
        with pytest.raises(DataError, match="data_batch_2"):
            from_cifar(tmp_path)


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    cifar10(tmp_path, "binary")
    file = tmp_path / "data_batch_2.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    with pytest.raises(DataError, match="labels outside 0"):
        from_cifar(tmp_path)
    cifar10(tmp_path / "py", "protocol 2")
    for wrong in ([3] * 39, [3.0] * 40, ["3"] * 40, [2**90] * 40, 7):
        content = {b"data": cifar_rows(40, 1), b"labels": wrong}
        (tmp_path / "py" / "data_batch_2").write_bytes(pickled(content, "protocol 2"))
        with pytest.raises(DataError, match="data_batch_2"):
            from_cifar(tmp_path / "py")


class Runs:
    """Unpickled by pickle.loads, it makes a file."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    cifar10(tmp_path, "protocol 2")
    mark = tmp_path / "ran"
    for protocol in (0, 2, 4):
        program = pickle.dumps({"data": Runs(os.system, f"touch {mark}")}, protocol)
        (tmp_path / "data_batch_1").write_bytes(program)
        with pytest.raises(DataError, match=r"asks for (posix|nt)\.system"):
            from_cifar(tmp_path)
    for call, args in (
        (eval, ("1",)),
        (getattr, ("", "upper")),
        (np.load, ("x",)),
        (np.empty, (9,)),
    ):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Runs(call, *args)))
        with pytest.raises(DataError, match="only arrays are allowed"):
            from_cifar(tmp_path)
    assert not mark.exists()


def test_a_pickle_cannot_ask_numpy_for_memory_or_for_objects(tmp_path: Path) -> None:
    cifar10(tmp_path, "protocol 2")
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    huge = b"\x80\x02" + empty + b"(I1000000000000\ntS'b'\ntR."
    called = b"\x80\x02cnumpy\nndarray\n(I1000000000000\ntR."
    objects = pickle.dumps({"data": np.array([{}, []], dtype=object), "labels": [0, 1]}, 2)
    array = empty + b"(I0\ntS'b'\ntR(I1\n(I9\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS'abc'\ntb"
    wrong_size = b"\x80\x02}(S'data'\n" + array + b"u."  # nine bytes declared, three there
    memo = b"\x80\x02]r\xff\xff\xff\x7f."  # C's unpickler would allocate 16 GB for this index
    changes = b"\x80\x02cnumpy\ndtype\n(N}(S'__call__'\nI1\nutb."
    for program in (huge, called, objects, wrong_size, memo, changes):
        (tmp_path / "data_batch_1").write_bytes(program)
        with pytest.raises(DataError):
            from_cifar(tmp_path)


# ---------------------------------------------------------------------------------------- house


def test_opening_needs_no_torch() -> None:
    code = (
        "import sys; from vitc.data.dataset import open_data;"
        "from vitc.data.config import DataConfig;"
        "open_data(DataConfig()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_source_that_needs_a_path_says_so() -> None:
    for source in ("folder", "idx", "cifar10", "cifar100"):
        with pytest.raises(ConfigError, match=r"--data\.path DIR"):
            open_data(DataConfig(source=source))  # type: ignore[arg-type]


def test_the_hash_that_orders_images_never_changes() -> None:
    expected = int.from_bytes(hashlib.blake2b(b"0/split/a", digest_size=8).digest(), "little")
    assert hashed(0, "split", ["a"]).tolist() == [expected] == [0x76DDA08F7AC739D2]


# ------------------------------------------------------------------------- from outside the package

OUTSIDE = """
import numpy as np
print("imported", flush=True)

class Stripes:
    classes = ("flat", "bright")

    def __init__(self, count=20, height=6):
        self.labels = {"train": [i % 2 for i in range(count)], "val": [0, 1]}
        self.height = height

    def read(self, split, index):
        if index == 13:
            raise OSError("scratched")
        if index == 15:
            return np.zeros((4, 4), np.uint8)
        value = 200 * self.labels[split][index] + index
        return np.full((self.height, 5, 3), value, np.uint8)
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VITC_TRUSTED", "")
    (tmp_path / "mine.py").write_text(OUTSIDE)
    return tmp_path / "mine.py"


def test_a_class_from_outside_is_a_source(outside: Path) -> None:
    config = load_config("debug", data=f"{outside}:Stripes(height=7)")
    assert config.data.source == "outside"
    assert config.data.path_sha256 == hashlib.sha256(OUTSIDE.encode()).hexdigest()
    data = open_data(config.data)
    assert data.classes == ("flat", "bright")
    assert counts(data) == {"train": [10, 10], "val": [1, 1]}
    split = pickle.loads(pickle.dumps(data.splits["train"]))
    assert split.read(3, 3).shape == (7, 5, 3)
    assert split.read(3, 3)[0, 0].tolist() == [203, 203, 203]
    assert split.names[3] == "train/3"
    with pytest.raises(BrokenFileError, match="'train/13' cannot be read: OSError: scratched"):
        split.read(13, 3)
    with pytest.raises(BrokenFileError, match=r"'train/15' is a ndarray uint8 \(4, 4\)"):
        split.read(15, 3)
    assert data.splits["val"].read(1, 1).shape == (7, 5, 1)


def test_a_class_from_outside_can_be_named_by_its_module(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mine_{outside.parent.name}".replace("-", "_")
    outside.rename(outside.parent / f"{name}.py")
    monkeypatch.syspath_prepend(str(outside.parent))
    data = open_data(load_config("debug", data=f"{name}:Stripes").data)
    assert len(data.splits["train"]) == 20
    with pytest.raises(ConfigError, match="There is no module 'mine_gone'"):
        load_config("debug", data="mine_gone:Stripes")


def test_every_process_makes_its_own_object(outside: Path) -> None:
    config = load_config("debug", data=f"{outside}:Stripes").data
    store: Any = open_data(config).splits["train"].store
    first = store._made
    store.read(0)
    assert store._made is first
    store._process = -1  # as after a fork
    store.read(0)
    assert store._made is not first


def test_naming_runs_nothing_and_a_foreign_config_is_not_imported(
    outside: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = DataConfig(
        source="outside",
        path=f"{outside}:Stripes",
        path_sha256=hashlib.sha256(OUTSIDE.encode()).hexdigest(),
    )
    with pytest.raises(ConfigError, match="not trusted on this machine"):
        open_data(config)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"data": dataclasses.asdict(config)}))
    with pytest.raises(ConfigError, match="not trusted on this machine"):
        open_data(load_config(file).data)
    with pytest.raises(ConfigError, match="not trusted on this machine"):
        open_data(load_config(file, data="outside").data)
    load_config("debug", data=f"{outside}:Stripes")
    assert "imported" not in capsys.readouterr().out
    open_data(load_config(file).data)  # now it is known


def test_a_class_that_has_changed_since_is_not_imported(outside: Path) -> None:
    config = load_config("debug", data=f"{outside}:Stripes").data
    outside.write_text(OUTSIDE + "\n# changed\n")
    with pytest.raises(ConfigError, match="has changed since it was named"):
        open_data(config)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("class Stripes", "class Other", "no class 'Stripes'"),
        ("def read", "def get", "has no read"),
        ("classes =", "kinds =", "has no classes"),
        ('"bright")', '"flat")', "different strings"),
        ("i % 2 for", "5 for", "outside 0"),
        ("i % 2 for", "0 for", "no training image of 'bright'"),
        ("i % 2 for", "[0, 1] for", "not a list of integers"),
        ('"val"', '"extra"', "the splits"),
        ("import numpy", "import nothing_such", "imported: line 2: ModuleNotFoundError"),
        ("self.height = height", "1 / 0", "cannot be built: line 10: ZeroDivisionError"),
        ("class", "cla$$", "invalid Python"),
    ],
)
def test_classes_from_outside_that_cannot_be_are_refused(
    outside: Path, old: str, new: str, said: str
) -> None:
    outside.write_text(OUTSIDE.replace(old, new, 1))
    with pytest.raises(VitcError, match=said):
        open_data(load_config("debug", data=f"{outside}:Stripes").data)


def test_settings_of_a_class_from_outside_are_checked(outside: Path) -> None:
    with pytest.raises(ConfigError, match="no setting 'width'"):
        open_data(load_config("debug", data=f"{outside}:Stripes(width=3)").data)
    with pytest.raises(ConfigError, match="are invalid"):
        load_config("debug", data=f"{outside}:Stripes(height=open('x'))")
    with pytest.raises(ConfigError, match=r"no class 'Stripe'\. Did you mean 'Stripes'"):
        load_config("debug", data=f"{outside}:Stripe")
    with pytest.raises(ConfigError, match=r"mime\.py.*Did you mean 'mine\.py'"):
        load_config("debug", data=f"{outside.parent}/mime.py:Stripes")


def test_the_example_of_the_page_on_sources_is_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VITC_TRUSTED", "")
    page = (Path(__file__).parents[1] / "docs" / "sources.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "scans.py").write_text(code)
    for kind in ("healthy", "ill"):
        plant(tmp_path / "scans", {kind: 4})
    data = open_data(
        load_config("debug", data=f"{tmp_path}/scans.py:Scans(root='{tmp_path}/scans')").data
    )
    assert counts(data)["train"] == [2, 2]
    assert data.splits["train"].read(0, 3).shape == (4, 4, 3)
