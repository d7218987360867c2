"""What a folder of images is taken for, whatever lies in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.source_folders import PNG, WHOLE, Tree, counts, notes, opened, plant, refusal
from vitc.data.sources import guess_source
from vitc.data.sources.folder import scan_folder
from vitc.data.store import Files, Names
from vitc.errors import ConfigError, DataError
from vitc.resolve import what_is


def put_json(root: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("tree", "split", "noted"),
    [
        ({"a": 40, "b": 20}, [[28, 14], [6, 3], [6, 3]], "9 for validation and 9 for the test"),
        ({"train/a": 20, "train/b": 20}, [[14, 14], [3, 3], [3, 3]], "Held out of 40"),
        ({"train/a": 20, "train/b": 20, "test/a": 5, "test/b": 5}, [[17, 17], [3, 3], [5, 5]], ""),
        ({"train/a": 20, "train/b": 20, "val/a": 5, "val/b": 5}, [[20, 20], [5, 5]], "No test"),
        (
            {"Training/a": 5, "Training/b": 4, "VALID/a": 2, "VALID/b": 1, "testing/a": 3},
            [[5, 4], [2, 1], [3, 0]],
            "The test split has no image of 1 class: 'b'.",
        ),
        (
            {"TRAIN/a": 5, "TRAIN/b": 4, "validation/a": 2, "Test/a": 3},
            [[5, 4], [2, 0], [3, 0]],
            "",
        ),
        ({"train/a": 5, "train/b": 4, "dev/a": 2, "test/b": 3}, [[5, 4], [2, 0], [0, 3]], ""),
        (
            {"train/a": 20, "train/b": 20, "test": 7},
            [[14, 14], [3, 3], [3, 3]],
            "'test' was skipped: it has no class sub-folders, so its 7 images",
        ),
        (
            {"train/a": 9, "train/b": 9, "extra/c": 3, "masks": 2},
            [[7, 7], [1, 1], [1, 1]],
            "'extra', 'masks' next to 'train' skipped",
        ),
        (
            {"a": 20, "b": 20, "pair": 2, "three": 3},
            [[14, 14, 1, 1], [3, 3, 1, 1], [3, 3, 0, 1]],
            "Too few images to be in the test: 'pair'.",
        ),
        ({"a": 5, "b": 5, ".": 2}, [[3, 3], [1, 1], [1, 1]], "2 files next to the class folders"),
        ({"train/a": 5, "train/b": 5, ".": 2}, [[3, 3], [1, 1], [1, 1]], "(2 images of no class)"),
        ({"train/a": 9, "train/b": 1, "val/a": 2, "test/b": 1}, [[9, 1], [2, 0], [0, 1]], ""),
    ],
)
def test_splits_are_the_folder_s_own_or_held_out_class_by_class(
    tmp_path: Path, tree: Tree, split: list[list[int]], noted: str
) -> None:
    data = opened(plant(tmp_path, tree))
    assert counts(data) == dict(zip(("train", "val", "test"), split, strict=False))
    assert noted in notes(data)
    names = [name for part in data.splits.values() for name in part.names]
    assert len(names) == len(set(names))
    for part in data.splits.values():
        assert isinstance(part.names, Names)  # flat in the process and its workers
        assert isinstance(part.store, Files)
        assert isinstance(part.store.names, Names)
        for i, (name, label) in enumerate(zip(part.names, part.labels, strict=True)):
            place = i if part.places is None else int(part.places[i])
            assert part.store.path(place) == tmp_path / name
            assert data.classes[label] in name.split("/")


def test_the_split_depends_on_its_seed_and_hardly_on_new_images(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 40, "b": 40})
    first, again = opened(tmp_path), opened(tmp_path)
    assert first.splits["val"].names == again.splits["val"].names
    assert first.fingerprint == again.fingerprint
    assert opened(tmp_path, split_seed=1).splits["val"].names != first.splits["val"].names
    (tmp_path / "a" / "new.png").write_bytes(PNG)
    kept = set(opened(tmp_path).splits["val"].names) & set(first.splits["val"].names)
    assert len(kept) >= len(first.splits["val"]) - 1


def test_fractions_of_zero_hold_nothing_out_and_say_so(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 20, "b": 20})
    no_test = opened(tmp_path, test_fraction=0.0)
    assert counts(no_test) == {"train": [17, 17], "val": [3, 3]}
    assert "No test split: data.test_fraction is 0." in notes(no_test)
    neither = opened(tmp_path, test_fraction=0.0, val_fraction=0.0)
    assert counts(neither) == {"train": [20, 20]}
    assert "No validation split" in notes(neither)


def test_a_flat_folder_named_like_a_split_beside_classes_is_a_class(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"bus": 9, "car": 9, "train": 9}))
    assert data.classes == ("bus", "car", "train")
    assert "'train' has no sub-folders, so it is a class" in notes(data)


RUN = {"model": {}, "data": {}, "optim": {}, "train": {}}
DATA = {"classes": ["a", "b"], "counts": {}, "img_size": [32, 32]}


@pytest.mark.parametrize(
    ("tree", "expected", "noted"),
    [
        (
            {"training_set/cat": 3, "training_set/dog": 3, "test_set/cat": 2, "test_set/dog": 2},
            {"train": [3, 3], "test": [2, 2]},
            "'training_set' is train, 'test_set' is test",
        ),
        (
            {"seg_train/seg_train/a": 3, "seg_train/seg_train/b": 3, "seg_test/seg_test/a": 2},
            {"train": [3, 3], "test": [2, 0]},
            "'seg_train/seg_train' are read",
        ),
        (
            {"TrainImages/a": 3, "TrainImages/b": 3, "val2017/a": 1},
            {"train": [3, 3], "val": [1, 0]},
            "",
        ),
        ({"train/a": 3, "train/b": 3, "holdout/a": 1}, {"train": [3, 3], "val": [1, 0]}, "holdout"),
        (
            {"train/a": 3, "train/b": 3, "dev/a": 1, "eval/a": 2},
            {"train": [3, 3], "val": [1, 0], "test": [2, 0]},
            "'eval' is test",
        ),
        (
            {"pets_train/a": 3, "pets_train/b": 3, "pets_test/b": 1},
            {"train": [3, 3], "test": [0, 1]},
            "Guessed from words in the names of folders",
        ),
        (
            {"a/train": 3, "b/train": 3, "a/val": 1, "b/val": 2},
            {"train": [3, 3], "val": [1, 2]},
            "inside the class folders",
        ),
        (
            {"photos/photos/a": 3, "photos/photos/b": 4},
            {"train": [3, 4]},
            "'photos/photos' are read",
        ),
        (
            {"train/train/a": 3, "train/train/b": 3, "train/val/a": 1},
            {"train": [3, 3], "val": [1, 0]},
            "",
        ),
        ({"x/train/a": 3, "x/train/b": 3, "x/val/a": 1}, {"train": [3, 3], "val": [1, 0]}, "'x'"),
        (
            {"left/a": 3, "left/b": 3, "right/a": 1, "right/b": 1},
            {"train": [6, 2]},
            "train=left,train=right",
        ),
        (
            {"Trainingsdaten/a": 3, "Trainingsdaten/b": 3, "Testdaten/a": 1, "Testdaten/b": 1},
            {"train": [3, 3], "test": [1, 1]},
            "Fixed by --data.splits train=Trainingsdaten,test=Testdaten, or none",
        ),
        (
            {f"{s}/{c}": n for s, n in (("tr", 3), ("va", 2), ("te", 1)) for c in "ab"},
            {"train": [3, 3], "val": [2, 2], "test": [1, 1]},
            "'va' is val",
        ),
        (
            {f"{s}/{c}": n for s, n in (("ｔｒａｉｎ", 3), ("ｔｅｓｔ", 1)) for c in "ab"},
            {"train": [3, 3], "test": [1, 1]},
            "is test",
        ),
        ({"trains/old": 3, "trains/new": 3, "valves/x": 2}, {"train": [6, 2]}, ""),
        ({"tr/2019": 3, "tr/2020": 3, "te/2019": 2, "te/2020": 1}, {"train": [3, 6]}, ""),
        ({"cat/left": 3, "cat/right": 3, "dog/left": 2, "dog/right": 1}, {"train": [6, 3]}, ""),
        (
            {f"{i}/{c}": 2 for i in ("gut", "schlecht") for c in "abc" if f"{i}{c}" != "gutb"},
            {"train": [4, 6]},
            "--data.splits train=schlecht,test=gut",
        ),
        ({"train station": 3, "test tube": 2}, {"train": [2, 3]}, ""),
        ({"rail/train": 3, "rail/tram": 3, "road/car": 2}, {"train": [6, 2]}, ""),
    ],
)
def test_splits_are_known_by_their_words(
    tmp_path: Path, tree: Tree, expected: dict[str, list[int]], noted: str
) -> None:
    data = opened(plant(tmp_path, tree), **WHOLE)
    assert counts(data) == expected
    assert noted in notes(data)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"bus": 3, "car": 3, "train/freight": 3, "train/metro": 3}, "'bus', 'car' next to it may"),
        ({"train/a": 3, "train/b": 3, "test/a": 1, "a": 2}, "'a' next to it may be classes"),
        ({"cat": 3, "dog": 3, "test": 3}, "its 3 images have no label, or it is a class"),
        ({"train_images": 3, "test_images": 3}, "have no sub-folders"),
        ({"cat_train": 3, "cat_test": 1, "dog_train": 3}, "named like splits"),
        ({"a/train": 3, "a/val": 1, "b": 3}, "'a' of"),
        ({"a": 2, "a/val": 1, "b": 2, "b/val": 1}, "next to other images"),
        ({"part1/a": 3, "part1/b": 3, "part2/a": 1, "part2/b": 1}, "parts of one data set"),
        (
            {f"batch_{i}/{c}": 2 for i in (1, 2, 3) for c in "abc" if (i, c) != (3, "c")},
            "'batch_1', 'batch_2', 'batch_3' in .* hold nearly the same folders, 'a', 'b', 'c'",
        ),
        (
            {f"fold-{i}/{c}": 2 for i in "ABC" for c in ("cat", "dog")} | {"fold-C/eel": 1},
            "parts of one data set",
        ),
        (
            {"data1/cat": 2, "data1/dog": 2, "data2/cat": 2, "data2/dog": 2, "other/eel": 2},
            "'data1', 'data2' in .* hold folders of the same names",
        ),
        (
            {"images/benign": 3, "images/none": 3, "masks/benign": 3},
            "'masks' in .* holds folders of the same names as 'images', 'benign': masks or labels",
        ),
        (
            {"photos/a": 3, "photos/b": 3, "photos/c": 2, "Annotations/a": 3, "Annotations/c": 2},
            "'Annotations' in .* masks or labels",
        ),
        ({"mask/left": 2, "mask/right": 2, "face/left": 2, "face/right": 2}, "'mask' in"),
        ({"train/train": 3, "train/test": 3, "val/a": 1}, "named like splits, as its classes"),
        ({"train1/a": 3, "train1/b": 3, "train2/a": 3}, "several folders for the train"),
        (
            {f"{s}/{c}": n for s, n in (("entrenamiento", 3), ("prueba", 1)) for c in "ab"},
            "'a', 'b': splits of one data set, or classes",
        ),
        (
            {f"{s}/{c}": n for s, n in (("训练", 3), ("验证", 1), ("测试", 2)) for c in "ab"},
            "splits of one data set, or classes",
        ),
    ],
)
def test_ambiguous_splits_are_refused_with_the_setting_that_decides(
    tmp_path: Path, tree: Tree, message: str
) -> None:
    plant(tmp_path, tree)
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path, **WHOLE)
    assert "--data.splits none" in (error.value.hint or "")
    classes = {folder.partition("/")[0] for folder in tree}
    assert set(opened(tmp_path, splits="none", **WHOLE).classes) == classes


@pytest.mark.parametrize(
    ("sizes", "setting"),
    [
        ({"seen": 2, "unseen": 3}, "train=unseen,test=seen"),
        ({"A": 1, "Testbilder": 4}, "train=A,test=Testbilder"),
        ({"x": 1, "Validierung": 4, "z": 2}, "train=z,val=Validierung,test=x"),
    ],
)
def test_the_setting_that_is_proposed_trains_on_one_of_them(
    tmp_path: Path, sizes: Tree, setting: str
) -> None:
    plant(tmp_path, {f"{name}/{c}": n for name, n in sizes.items() for c in "ab"})
    assert f"If they are splits: --data.splits {setting}. If" in refusal(tmp_path)
    splits = [part.partition("=")[0] for part in setting.split(",")]
    assert list(counts(opened(tmp_path, splits=setting, **WHOLE))) == splits


@pytest.mark.parametrize(
    "tree",
    [
        {"mask/2019": 2, "mask/2020": 2, "no_mask/2019": 2, "no_mask/2021": 2, "no_mask/2020": 2},
        {"mask/camera 1": 2, "mask/camera 2": 2, "face/camera 1": 2, "face/camera 2": 2}
        | {"face/camera 3": 1},
        {f"part_{i}/cam{c}": 2 for i in (1, 2) for c in range(i + 1)},
        {f"set{i}/patient_{c}": 2 for i in (1, 2, 3) for c in range(i + 2)},
        {
            f"grade_{i}/{c}": 2
            for i in (1, 2, 3)
            for c in ("left", "right")
            if (i, c) != (3, "left")
        },
        {f"{i}/{c}": 2 for i in range(4) for c in ("indoor", "outdoor", "night")[: 2 + i % 2]},
        {"part1/cat": 2, "part1/dog": 2, "part2/eel": 2, "part2/fox": 2},
        {"images/a": 2, "images/b": 2, "labels/x": 2, "labels/y": 2},
        {"batch 1/a": 2, "batch 1/b": 2, "cat/a": 2, "dog/c": 2},
    ],
)
def test_classes_may_have_folders_by_year_camera_patient_or_none_in_common(
    tmp_path: Path, tree: Tree
) -> None:
    data = opened(plant(tmp_path, tree), **WHOLE)
    assert set(data.classes) == {folder.partition("/")[0] for folder in tree}
    years = any(word in str(tree) for word in ("2019", "cam", "patient"))
    assert not years or "the same folders" not in notes(data)


def test_classes_with_nearly_the_same_folders_are_named(tmp_path: Path) -> None:
    tree = {f"{i}/{c}": 2 for i in ("north", "south") for c in ("cat", "dog", "eel")}
    del tree["south/eel"]
    found = notes(opened(plant(tmp_path, tree), **WHOLE))
    assert "hold nearly the same folders, 'cat', 'dog'. If those are the classes" in found
    assert "--data.splits train=north,train=south" in found


def test_masks_are_left_out_by_the_setting_that_the_refusal_names(tmp_path: Path) -> None:
    plant(tmp_path, {"images/benign": 3, "images/none": 3, "masks/benign": 3})
    with pytest.raises(DataError) as error:
        opened(tmp_path)
    assert str(error.value.hint).startswith("If it is no class: --data.splits train=images.")
    assert counts(opened(tmp_path, splits="train=images", **WHOLE)) == {"train": [3, 3]}


def test_data_splits_names_the_folders_of_splits(tmp_path: Path) -> None:
    plant(tmp_path, {"north/a": 3, "north/b": 3, "south/a": 2, "more/a": 1, "rest/c": 1})
    data = opened(tmp_path, splits="train=north,train=more,test=south", **WHOLE)
    assert counts(data) == {"train": [4, 3], "test": [2, 0]}
    assert "'rest' skipped" in notes(data)
    assert "Did you mean 'north'?" in refusal(tmp_path, splits="train=norht,test=south")
    plant(tmp_path / "below", {"a/1": 3, "b/1": 2, "a/2": 1, "b/2": 1, "b/3": 1})
    data = opened(tmp_path / "below", splits="train=1,val=2", **WHOLE)
    assert counts(data) == {"train": [3, 2], "val": [1, 1]}
    assert "'b/3' skipped" in notes(data)


def test_what_vitc_wrote_among_the_images_is_no_class(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "b": 3})
    before = opened(tmp_path)
    for run in ("runs/photos", "runs/other", "a/run1"):
        plant(tmp_path, {run: 2, f"{run}/checkpoints/step_3": 0})
        (tmp_path / run / "config.json").write_text(json.dumps(RUN))
    plant(tmp_path, {"runs": 1, "studies/quick/trials": 1, "model": 0})
    (tmp_path / "studies/quick/plan.json").write_text('{"plan": {}, "hash": "x"}')
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "model" / file).write_text('{"library": "vitc"}')
    (tmp_path / "a" / "config.json").write_text('{"name": "another program"}')
    after = opened(tmp_path)
    assert after.classes == ("a", "b")
    assert after.fingerprint == before.fingerprint
    passed = "written by vitc (a run, a saved model, runs): 'a/run1', 'model', 'runs', 'studies'"
    assert passed in notes(after)


@pytest.mark.parametrize(
    ("tree", "files", "left_out"),
    [
        ({"runs": 0}, {}, "'runs'"),
        ({"runs/x": 0}, {}, "'runs'"),
        ({}, {"runs/photos.json": RUN}, "'runs'"),
        ({}, {"a/runs/photos.json": RUN}, "'a/runs'"),
        ({"runs/plots": 3}, {"runs/x/config.json": RUN}, "'runs'"),
        ({"runs/plots": 3, "runs": 2}, {"runs/x/config.json": RUN, "runs/notes.md": 1}, "'runs'"),
        ({}, {"results/x/config.json": RUN, "results/tables/t.txt": 1}, "'results'"),
        (
            {"runs/x": 4},
            {f"runs/x/{name}": DATA for name in ("data.json", "metrics.jsonl", "events.log")},
            "'runs'",
        ),
    ],
)
def test_places_of_runs_are_no_class(
    tmp_path: Path, tree: Tree, files: dict[str, Any], left_out: str
) -> None:
    before = opened(plant(tmp_path, {"a": 4, "b": 4}))
    plant(tmp_path, tree)
    put_json(tmp_path, files)
    after = opened(tmp_path)
    assert after.classes == before.classes
    assert after.fingerprint == before.fingerprint
    assert f"): {left_out}." in notes(after)


@pytest.mark.parametrize("file", ["runs/photos.json", "runs/x/config.json", "runs/.lock"])
def test_shards_beside_a_place_of_runs_are_shards(tmp_path: Path, file: str) -> None:
    put_json(tmp_path, {"train-0.tar": 1, file: RUN})
    assert guess_source(tmp_path) == "tar"


@pytest.mark.parametrize(
    ("tree", "suffix"), [({"results": 4}, ".gif"), ({"results": 2}, ".png"), ({"c": 1}, ".png")]
)
def test_images_beside_a_run_may_be_pictures_of_it(tmp_path: Path, tree: Tree, suffix: str) -> None:
    plant(tmp_path, {"a": 4, "b": 4})
    plant(tmp_path, tree, suffix)
    (name,) = tree
    put_json(tmp_path, {f"{name}/exp1/config.json": RUN})
    message = refusal(tmp_path)
    assert f"holds a run that vitc wrote, '{name}/exp1'" in message
    assert f"move '{name}' elsewhere" in message
    plant(tmp_path, {name: 4})
    assert opened(tmp_path).classes == tuple(sorted(["a", "b", name]))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": {"model_type": "vit"}, "model.safetensors": 1},
        {"config.json": [], "summary.json": {}, "metrics.jsonl": {}},
        {"config.json": {}, "summary.json": {}, "events.log": {}},
        {"config.json": {"model": "resnet", "data": "x", "optim": "sgd", "train": True}},
        {"plan.json": {"x": 1}},
        {"folds.json": {"k": 5}},
        {"report.html": 1, "results.json": {}, "trials.csv": 1},
    ],
)
@pytest.mark.parametrize("place", ["", "a/"])
def test_files_of_other_programs_make_no_output_of_vitc(
    tmp_path: Path, files: dict[str, Any], place: str
) -> None:
    plant(tmp_path, {"a": 4, "b": 4, "c": 4})
    put_json(tmp_path, {f"{place}{name}": content for name, content in files.items()})
    folders = {"trials"} if "plan.json" in files else set()
    plant(tmp_path, dict.fromkeys((f"{place}{name}" for name in folders), 3))
    assert what_is(tmp_path) == "images"
    data = opened(tmp_path)
    assert set(data.classes) == {"a", "b", "c"} | (set() if place else folders)
    assert "written by vitc" not in notes(data)


def test_what_was_passed_over_is_named_where_the_rest_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 4, "b": 4})
    put_json(tmp_path, {"a/config.json": RUN})
    message = refusal(tmp_path)
    assert "one class only, 'b'" in message
    assert "Passed over, written by vitc (a run): 'a'." in message
    message = refusal(tmp_path / "a")
    assert "is no folder of images: by the files in it, vitc wrote a run there" in message


@pytest.mark.parametrize(
    "name", ["config.json", "plan.json", "state.json", "dataset_dict.json", "runs/x.json"]
)
def test_pipes_are_not_opened(tmp_path: Path, name: str) -> None:
    plant(tmp_path, {"a": 4, "b": 4, "runs": 0})
    os.mkfifo(tmp_path / name)
    if name.startswith("runs"):
        assert "'runs'" in refusal(tmp_path)
        return
    assert what_is(tmp_path) == "images"
    assert guess_source(tmp_path) == "folder"
    assert opened(tmp_path).classes == ("a", "b")


def test_a_refused_folder_is_referred_to_the_list_in_it(tmp_path: Path) -> None:
    text = "lists images with labels, give it in place of the folder: "
    plant(tmp_path, {"train": 3, "test": 3})
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n")
    assert f"If 'train/metadata.csv' {text}{tmp_path}/train/metadata.csv." in refusal(tmp_path)
    plant(tmp_path / "flat", {".": 3})
    (tmp_path / "flat" / "labels.csv").write_text("name,label\n")
    assert f"If 'labels.csv' {text}{tmp_path}/flat/labels.csv." in refusal(tmp_path / "flat")


@pytest.mark.parametrize("tree", [{".": 3}, {"train": 3, "test": 3}, {"images": 3}])
def test_of_several_lists_that_of_the_training_images_is_named(tmp_path: Path, tree: Tree) -> None:
    plant(tmp_path, tree)
    for name in ("test.csv", "sample_submission.csv", "labels.csv", "train_labels.csv"):
        (tmp_path / name).write_text("image,label\n")
    for name in ("train_labels.csv", "labels.csv", "sample_submission.csv"):
        assert f"If '{name}' lists images with labels, give it" in refusal(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("tree", "setting"),
    [
        ({"train": "ab", "valid": "ab", "test": ["unknown"]}, "train=train,val=valid"),
        ({"training_set": "ab", "test_set": ["images"]}, "train=training_set"),
        ({"a": ["train", "val"], "b": ["train", "val"], "none": ["test"]}, "train=train,val=val"),
    ],
)
def test_a_test_without_labels_is_left_out_as_its_refusal_proposes(
    tmp_path: Path, tree: dict[str, list[str]], setting: str
) -> None:
    plant(tmp_path, {f"{above}/{name}": 3 for above, below in tree.items() for name in below})
    assert f"have no labels, --data.splits {setting} leaves them out." in refusal(tmp_path)
    data = opened(tmp_path, **WHOLE, splits=setting)
    assert data.classes == ("a", "b")
    assert set(data.splits) == {part.partition("=")[0] for part in setting.split(",")}


def test_a_split_with_some_of_the_classes_is_not_taken_for_one_without_labels(
    tmp_path: Path,
) -> None:
    plant(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 1, "test/c": 1})
    assert "no labels" not in refusal(tmp_path)


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    data = opened(plant(tmp_path, {"a/2023/may": 5, "a/2024": 5, "a": 2, "b/x/y/z": 4}))
    assert sum(counts(data)[k][0] for k in data.splits) == 12
    assert "a/2023/may/000.png" in [n for s in data.splits.values() for n in s.names]


def test_litter_is_passed_over_and_other_files_are_counted_and_named(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 5, "b": 5, ".git": 3, "__MACOSX/a": 5, "a/.cache": 3, "@eaDir": 1})
    for litter in (".DS_Store", "a/Thumbs.db", "b/._000.png", "b/desktop.ini"):
        (tmp_path / litter).write_bytes(b"x")
    assert len(opened(tmp_path).notes) == 1  # the hold-out
    for name in ("a/notes.txt", "a/clip.mp4", "b/IMG.CR3", "b/x.csv", "README"):
        (tmp_path / name).write_bytes(b"x")
    noted = notes(opened(tmp_path))
    assert "4 files skipped, not images: 'a/clip.mp4', 'a/notes.txt', 'b/IMG.CR3' and 1 m" in noted
    assert "1 file next to the class folders" in noted
    assert "'README'" in noted


def test_hidden_folders_of_images_are_named_unless_a_known_program_hides_them(
    tmp_path: Path,
) -> None:
    plant(tmp_path, {"a": 5, "b": 5, ".hidden": 2, "..dots/more": 1, "b/.old": 1})
    plant(tmp_path, {".ipynb_checkpoints": 2, ".Trash-1000/files": 2, ".thumbnails": 1, "._a": 1})
    plant(tmp_path, {".empty": 0})
    (hidden,) = (line for line in opened(tmp_path).notes if "hidden" in line)
    assert hidden.startswith("3 hidden folders with images skipped: '..dots', '.hidden', 'b/.old'.")
    assert len(opened(tmp_path).splits["train"]) < 10


@pytest.mark.parametrize("name", ["@SynoResource", "@Recently-Snapshot", "Thumbnails", "_thumbs"])
def test_copies_that_programs_make_are_passed_over_and_named(tmp_path: Path, name: str) -> None:
    plant(tmp_path, {"a": 5, "b": 5, name: 3, f"b/{name}/x": 2})
    data = opened(tmp_path)
    assert data.classes == ("a", "b")
    assert f"2 folders named like copies that programs make of images skipped: '{name}'" in notes(
        data
    )
    assert sum(map(sum, counts(data).values())) == 10


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


def test_special_and_empty_files_are_named_at_once(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "b": 3})
    os.mkfifo(tmp_path / "a" / "pipe.png")  # never opened as an image
    (tmp_path / "a" / "zero.jpg").touch()
    assert "'a/pipe.png'" in notes(opened(tmp_path))
    assert "1 image file of 0 bytes, broken: 'a/zero.jpg'." in notes(opened(tmp_path))


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
            f.write(PNG)
    data = opened(tmp_path)
    assert data.classes == ("a", "caf\\xe9")
    for split in data.splits.values():
        "\n".join(split.names).encode()
        assert all(split.read(i, 3).shape == (3, 4, 3) for i in range(len(split)))


def test_accents_written_in_two_ways_are_one_class_with_one_fingerprint(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    rest = {"train/b": 4, "val/b": 2}
    one = opened(plant(tmp_path / "x", {f"train/{composed}": 4, f"val/{apart}": 2} | rest))
    two = opened(plant(tmp_path / "y", {f"train/{apart}": 4, f"val/{composed}": 2} | rest))
    assert counts(one) == {"train": [4, 4], "val": [2, 2]}
    assert one.classes == two.classes == ("b", composed)
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({".": 5}, "holds 5 images but no sub-folders"),
        ({".": 0}, "holds no sub-folders"),
        ({"cat": 9}, "one class only, 'cat'"),
        ({"flowers/rose": 9, "flowers": 9}, "one class only, 'flowers'"),
        ({"flowers/train/a": 9, "flowers/val/a": 9}, "one class only, 'a'"),
        ({"a": 9, "b": 9, "c": 0}, "1 class without any image to train on: 'c'."),
        ({"a": 9, "b": 9, "lonely": 1}, "1 class with one image only: 'lonely'. It cannot both"),
        ({"train/cat": 5, "train/dog": 5, "val/cta": 2}, "'cta'. Did you mean 'cat'?"),
        ({"train/a": 3, "train/b": 3, "val/a": 1, "valid/a": 1}, "several folders for the val"),
        ({"val/a": 3, "test/a": 3}, "no train folder"),
        ({"train": 3, "test": 3}, "have no sub-folders"),
        ({"train": 3, "test/a": 3}, "train has no sub-folders"),
        ({"train/a": 3, "train/b": 3, "val/a": 0, "val/b": 0}, "The val folder"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused(
    tmp_path: Path, tree: Tree, message: str
) -> None:
    assert message in refusal(plant(tmp_path, tree))


def test_what_lies_there_instead_of_images_is_named(tmp_path: Path) -> None:
    plant(tmp_path / "x", {".": 0})
    (tmp_path / "x" / "photos.tar.gz").write_bytes(b"x")
    assert "Unpack 'photos.tar.gz' first" in refusal(tmp_path / "x")
    message = refusal(plant(tmp_path / "y", {"a": 3, "b": 3}, suffix=".txt"))
    assert "No images in the class folders" in message
    assert "jpeg" in message
    plant(tmp_path / "z", {"a": 9, "b": 9, "empty": 0})
    (tmp_path / "z" / "empty" / "IMG_1.CR3").write_bytes(b"x")
    assert "'empty/IMG_1.CR3'" in refusal(tmp_path / "z")


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("default/train/0000.parquet", "default"),
        ("config_a/train-0.parquet", "config_a"),
        ("label=cat/0.parquet", "'label=cat'"),
        ("a/raw/train-images-idx3-ubyte", "a/raw"),
    ],
)
def test_tables_below_are_named(tmp_path: Path, file: str, place: str) -> None:
    plant(tmp_path, {"other": 0})
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    hint = f"For the data in {file!r}: --data "
    message = refusal(tmp_path)
    assert hint in message
    assert message.replace("'", "").endswith(f"{tmp_path}/{place}.".replace("'", ""))


def test_a_wrong_path_is_a_config_error_with_a_suggestion(tmp_path: Path) -> None:
    plant(tmp_path, {"photos/a": 2, "photos/b": 2})
    message = refusal(tmp_path / "photo", ConfigError)
    assert "There is no folder" in message
    assert "Did you mean 'photos'?" in message
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert "Unpack it" in refusal(tmp_path / "photos.zip", ConfigError)
    (tmp_path / "one.jpg").write_bytes(b"x")
    assert "is a file, not a folder" in refusal(tmp_path / "one.jpg", ConfigError)


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
