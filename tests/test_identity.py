"""The same images or not: digests, what changed, and the doors that compare: resume, evaluate."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitc
from tests.source_folders import opened
from vitc.cli.main import main
from vitc.config import RunConfig
from vitc.data import identity
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.identity import Images, changes, from_file, images_of, to_bytes, trained_on
from vitc.data.store import pieces
from vitc.errors import CheckpointError, ConfigError, DataError
from vitc.resolve import load_config
from vitc.runs.folder import CONFIG, RunFolder
from vitc.runs.images import LISTING
from vitc.training.build import data_record
from vitc.training.loop import run as train

CLASSES = ("cat", "dog")


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 24, 3), np.uint8))


def plant(root: Path, count: int = 10, suffix: str = ".bmp", first: int = 0) -> Path:
    """Noise in files of one size, each another."""
    for c, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            noise(1000 * c + i).save(root / name / f"{i:02d}{suffix}")
    return root


def config_of(root: Path, **settings: Any) -> RunConfig:
    base = {"data": str(root), "model": "vit_p_tiny", "model.img_size": 16, "data.workers": 0}
    train_ = {"train.epochs": 1, "train.batch": 4, "train.threads": 1, "train.device": "cpu"}
    return load_config("debug", **{**base, **train_, **settings})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and a finished run `run` on them. Read-only."""
    place = tmp_path_factory.mktemp("ran")
    config = config_of(plant(place / "images"))
    assert train(config, place / "run", quiet=True).status == "done"
    return place


@pytest.fixture
def place(ran: Path, tmp_path: Path) -> Path:
    """A copy of it whose run has the copied images as its own."""
    shutil.copytree(ran, tmp_path / "copy")
    config = tmp_path / "copy" / "run" / CONFIG
    values = json.loads(config.read_text())
    values["data"]["path"] = str(tmp_path / "copy" / "images")
    config.write_text(json.dumps(values))
    return tmp_path / "copy"


def test_images_saved_in_another_format_are_counted_by_their_names(tmp_path: Path) -> None:
    old, new = (
        opened(plant(tmp_path / suffix, suffix=suffix), val_fraction=0.0, test_fraction=0.0).images
        for suffix in (".bmp", ".png")
    )
    assert not trained_on(old, new).any()
    assert identity.count_alike(old, new) == 20


# -- six kinds of change ---------------------------------------------------------------------------


def held_out(run: Path) -> list[str]:
    splits = json.loads((run / "data.json").read_text())["held_out"]
    return [name for names in splits.values() for name in names]


def remove(images: Path) -> None:
    for name in held_out(images.parent / "run"):
        (images / name).unlink()


def add(images: Path) -> None:
    noise(9999).save(images / "cat" / "new.bmp")


def rename(images: Path) -> None:
    for file in sorted(images.rglob("*.bmp")):
        file.rename(file.with_name(f"x{file.name}"))


def exchange(images: Path) -> None:
    a, b, other = images / "cat" / "00.bmp", images / "cat" / "01.bmp", images / "t"
    a.rename(other)
    b.rename(a)
    other.rename(b)


def relabel(images: Path) -> None:
    (images / "cat" / "00.bmp").rename(images / "dog" / "from_cat.bmp")


def re_encode(images: Path) -> None:
    for file in sorted(images.rglob("*.bmp"))[:3]:
        with Image.open(file) as image:
            image.quantize(64).convert("RGB").save(file, "BMP")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "removed": (remove, "removed"),
    "added": (add, r"1 added \('cat/new\.bmp'\)"),
    "renamed": (rename, r"20 renamed \('cat/00.bmp' is now 'cat/x00.bmp'"),
    "exchanged": (exchange, r"2 exchanged with others \('cat/00\.bmp', 'cat/01\.bmp'\)"),
    "relabelled": (relabel, "1 of another class .*'dog/from_cat.bmp'"),
    "re-encoded": (re_encode, r"3 with other content \('cat/00\.bmp'"),
}
kinds = pytest.mark.parametrize("kind", CHANGES)


@kinds
def test_changed_images_are_not_evaluated_on_unless_allowed(kind: str, place: Path) -> None:
    change, text = CHANGES[kind]
    change(place / "images")
    with pytest.raises(DataError, match=text) as refused:
        vitc.evaluate(place / "run")
    assert "--allow-changed-data" in (refused.value.hint or "")
    found = vitc.evaluate(place / "run", allow_changed_data=True)
    assert found.trained_on is not None
    assert len(found.notes) == 1 + (found.trained_on > 0)
    if kind in ("removed", "renamed"):  # the images held out now were trained on then
        assert found.trained_on > 0
        assert f"{found.trained_on} of the {found.n} images" in found.notes[-1]


@kinds
def test_a_run_is_not_resumed_on_changed_images_unless_allowed(kind: str, place: Path) -> None:
    change, text = CHANGES[kind]
    run, config = place / "run", load_config(place / "run")
    (run / "summary.json").unlink()
    before = (run / "images.npz").read_bytes()
    change(place / "images")
    with pytest.raises(DataError, match=text):
        train(config, run, quiet=True)
    assert (run / "images.npz").read_bytes() == before
    assert train(config, run, quiet=True, allow_changed_data=True).status == "done"
    assert "continued with changed data" in (run / "events.log").read_text()
    assert len(json.loads((run / "data.json").read_text())["changed"]) == 1
    again = vitc.evaluate(run)  # the images as they are now are the run's own
    if kind == "removed":  # and those that it saw before are still known
        assert again.trained_on == again.n


@pytest.mark.parametrize("how", ["moved", "copied", "linked", "touched", "packed"])
def test_the_same_images_elsewhere_are_the_same(how: str, place: Path) -> None:
    images, other = place / "images", place / "other"
    honest = vitc.evaluate(place / "run")
    if how == "moved":
        images.rename(other)
    elif how == "copied":
        shutil.copytree(images, other)
    elif how == "linked":
        other.symlink_to(images)
    elif how == "packed":
        other = place / "other.vitc"
        assert main(["data", "pack", str(images), str(other)]) == 0
    else:
        other = images
        for file in images.rglob("*.bmp"):
            os.utime(file, (1, 1))
    found = vitc.evaluate(place / "run", str(other))
    assert (found.top1, found.n, found.split) == (honest.top1, honest.n, "val")
    assert found.trained_on == 0
    assert not found.notes


def test_other_images_are_measured_whole_and_known_ones_are_counted(place: Path) -> None:
    other = plant(place / "other", 3, first=20)
    found = vitc.evaluate(place / "run", str(other))
    assert (found.n, found.split, found.trained_on, found.notes) == (6, "all", 0, ())
    held = {place / "images" / name for name in held_out(place / "run")}
    trained = sorted(set((place / "images").rglob("*.bmp")) - held)
    for i, file in enumerate(trained[:2]):  # by content: under another name
        shutil.copy(file, other / "cat" / f"seen{i}.bmp")
    found = vitc.evaluate(place / "run", str(other))
    assert (found.n, found.trained_on) == (8, 2)
    assert "2 of the 8 images measured on were trained on" in found.notes[0]
    shutil.rmtree(other)
    (other / "cat").mkdir(parents=True)
    shutil.copy(trained[0], other / "cat" / "alone.bmp")
    note = "The image measured on was trained on (the same content): the result is too good."
    assert note in vitc.evaluate(place / "run", str(other)).notes
    noise(12345).save(other / "cat" / "alone.bmp")
    shutil.move(other / "cat" / "alone.bmp", other / "cat" / trained[0].name)
    notes = vitc.evaluate(place / "run", str(other)).notes
    assert any(note.startswith("The image measured on has the name of an image") for note in notes)
    other = plant(other, 3, first=20)
    assert vitc.evaluate(place / "run", str(other), "test").split == "test"


@pytest.mark.parametrize("name", ["folder", "fashion", "cifar10"])
def test_a_folder_goes_before_the_source_of_its_name(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    if name != "fashion":  # which is shipped
        with pytest.raises(ConfigError, match=f"'{name}' is a data source that needs a path") as e:
            vitc.evaluate(place / "run", name)
        assert "Give its path instead, a folder: DIR." in str(e.value)
    plant(place / name, 3, first=20)
    found = vitc.evaluate(place / "run", name)
    assert (found.n, found.split, found.trained_on) == (6, "all", 0)


def test_the_columns_that_a_run_was_trained_on_are_those_of_another_list(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(name: str, folder: str, header: str) -> Path:
        files = sorted((place / folder).rglob("*.bmp"))
        rows = [f"{f.relative_to(place)},{f.parent.name},x,{i}" for i, f in enumerate(files)]
        (place / name).write_text("\n".join([header, *rows]))
        return place / name

    header = "pic,species,label,class"  # two that can be labels, as they are called
    columns = {"data.image_column": "pic", "data.label_column": "species"}
    config = config_of(listed("a.csv", "images", header), **columns)
    run = place / "of_list"
    assert train(config, run, quiet=True).status == "done"
    plant(place / "other", 3, first=20)
    found = vitc.evaluate(run, str(listed("b.csv", "other", header)))
    assert (found.n, [c.n for c in found.per_class]) == (6, [3, 3])
    assert main(["predict", str(run), str(place / "b.csv"), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    renamed = str(listed("c.csv", "other", "photo,kind,label,class"))
    cure = "Name columns path and label, or as those trained on, pic, species; "
    for command in ("evaluate", "predict"):
        assert main([command, str(run), renamed]) == ConfigError.exit_code
        error = capsys.readouterr().err
        assert cure in error
        assert "--data." not in error


def test_splits_of_other_images_are_named(place: Path) -> None:
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        plant(place / "other" / split, count, first=30 if split == "val" else 40)
    found = vitc.evaluate(place / "run", str(place / "other"))
    assert (found.split, found.n) == ("val", 6)
    assert "train 8, val 6, test 4" in found.notes[0]
    assert vitc.evaluate(place / "run", str(place / "other"), "test").n == 4


def test_classes_are_matched_by_name(place: Path) -> None:
    other = plant(place / "other", 3, first=20)
    shutil.copytree(other / "cat", other / "ant")
    with pytest.raises(DataError, match=r"1 class .*'ant' \(3 images\)") as refused:
        vitc.evaluate(place / "run", str(other))
    assert "'cat', 'dog'" in (refused.value.hint or "")
    found = vitc.evaluate(place / "run", str(other), skip_unknown_classes=True)
    assert found.n == 6
    assert [c.n for c in found.per_class] == [3, 3]
    assert "'ant' (3 images)" in found.notes[0]
    for name in ("cat", "dog"):
        shutil.rmtree(other / name)
    with pytest.raises(DataError, match=r"'ant' \(3 images\)") as refused:
        vitc.evaluate(place / "run", str(other), skip_unknown_classes=True)
    assert "Give images of these." in str(refused.value)
    assert "--skip" not in str(refused.value)


def test_fewer_classes_and_one_image_each_can_be_measured(place: Path) -> None:
    plant(place / "other", 1, first=20)
    shutil.rmtree(place / "other" / "dog")
    found = vitc.evaluate(place / "run", str(place / "other"))
    assert (found.n, [c.n for c in found.per_class]) == (1, [1, 0])
    assert "No image of 1 class of the model: 'dog'." in found.notes


@pytest.mark.parametrize("labels", [["-1"] * 4, [""] * 4, None, ["cat", "", "dog", "-1"]])
def test_images_without_labels_are_not_measured(labels: list[str] | None, place: Path) -> None:
    other = plant(place / "other", 2, first=20)
    files = sorted(other.rglob("*.bmp"))
    table = place / "list.csv"
    ends = [""] * 4 if labels is None else [f",{label}" for label in labels]
    lines = [f"{file}{end}" for file, end in zip(files, ends, strict=True)]
    table.write_text("\n".join(["path" if labels is None else "path,label", *lines]))
    if labels and "cat" in labels:
        with pytest.raises(DataError, match="does not know: '-1'"):
            vitc.evaluate(place / "run", str(table))
        found = vitc.evaluate(place / "run", str(table), skip_unknown_classes=True)
        assert found.n == 2
        assert any("1 image without a label" in note for note in found.notes)
        return
    with pytest.raises(DataError, match=r"4 images .* no labels") as refused:
        vitc.evaluate(place / "run", str(table))
    assert "vitc predict" in (refused.value.hint or "")


def test_a_folder_without_classes_is_for_predict(place: Path) -> None:
    (place / "flat").mkdir()
    noise(1).save(place / "flat" / "1.png")
    with pytest.raises(DataError) as refused:
        vitc.evaluate(place / "run", str(place / "flat"))
    assert "vitc predict" in (refused.value.hint or "")


def test_the_order_of_classes_does_not_matter(place: Path) -> None:
    honest = vitc.evaluate(place / "run")
    names = held_out(place / "run")
    val = json.loads((place / "run" / "data.json").read_text())["held_out"]["val"]
    assert set(val) <= set(names)
    lines = [f"{place / 'images' / name},{name.split('/')[0]}" for name in reversed(val)]
    (place / "list.csv").write_text("\n".join(["path,label", *lines]))
    found = vitc.evaluate(place / "run", str(place / "list.csv"))
    assert (found.n, found.top1, found.split) == (honest.n, honest.top1, "all")


def test_a_run_of_an_earlier_version_is_compared_by_names_and_sizes(place: Path) -> None:
    file = place / "run" / "data.json"
    values = json.loads(file.read_text())
    values["fingerprint"] = values.pop(LISTING)
    del values["held_out"]
    file.write_text(json.dumps(values))
    (place / "run" / "images.npz").unlink()
    found = vitc.evaluate(place / "run")
    assert "earlier version" in found.notes[0]
    assert found.trained_on == 0
    add(place / "images")
    with pytest.raises(DataError, match=r"then, .* now"):
        vitc.evaluate(place / "run")


def test_converted_images_of_the_same_names_are_reported(place: Path) -> None:
    shutil.copytree(place / "images", place / "other")
    for file in (place / "other").rglob("*.bmp"):
        with Image.open(file) as image:
            image.quantize(64).convert("RGB").save(file, "BMP")
    found = vitc.evaluate(place / "run", str(place / "other"))
    assert found.trained_on == 0
    assert f"{20 - len(held_out(place / 'run'))} of the 20" in found.notes[-1]
    assert "other content" in found.notes[-1]


def test_images_that_the_initial_weights_were_trained_on_are_a_leak(
    place: Path, tmp_path: Path
) -> None:
    rename(place / "images")  # other images are held out now
    config = config_of(place / "images", init=str(place / "run"))
    out = tmp_path / "second"
    assert train(config, out, quiet=True).status == "done"
    events = (out / "events.log").read_text()
    assert "LEAK: the weights that this run starts from were trained on" in events
    found = vitc.evaluate(out)
    assert found.trained_on
    assert f" {found.trained_on:,} of the {found.n:,} val images" in events


def test_without_its_record_a_change_is_still_refused(place: Path) -> None:
    (place / "run" / "images.npz").unlink()
    exchange(place / "images")
    with pytest.raises(DataError, match="which ones is not known"):
        vitc.evaluate(place / "run")


def test_a_saved_model_needs_the_images_to_measure_on(place: Path) -> None:
    saved = vitc.save_pretrained(place / "run", place / "saved")
    with pytest.raises(ConfigError, match="does not record"):
        vitc.evaluate(saved)
    found = vitc.evaluate(saved, str(place / "images"))
    assert (found.n, found.trained_on) == (20, None)
    assert "not known" in found.notes[-1]


# -- digests ---------------------------------------------------------------------------------------


def images(data: DataSet, limit: int | None = None) -> Images:
    return images_of(data.classes, data.splits, limit)


def test_large_sets_are_sampled_and_small_ones_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path / "x")
    file = root / "cat" / "00.bmp"
    whole = images(opened(root))
    sampled = images(opened(root), 400)
    assert (whole.limit, sampled.limit) == (0, 400)
    monkeypatch.setattr(identity, "SMALL_SET", 10)
    assert images(opened(root)).limit == identity.SAMPLE
    raw = bytearray(file.read_bytes())
    raw[150] ^= 1  # between the first and the second piece
    file.write_bytes(raw)
    assert changes(sampled, images(opened(root), 400)) == []
    assert len(changes(whole, images(opened(root), 0))) == 1
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert len(changes(sampled, images(opened(root), 400))) == 1


@pytest.mark.parametrize(("size", "limit"), [(0, 8), (8, 8), (9, 8), (1000, 8), (7, 0)])
def test_pieces_lie_inside_and_reach_both_ends(size: int, limit: int) -> None:
    found = pieces(size, limit)
    assert found[0][0] == 0
    assert sum(found[-1]) == size
    assert sum(length for _, length in found) == (min(size, limit) if limit else size)


def test_digests_of_a_large_set_are_read_once_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "SMALL_SET", 10)
    root = plant(tmp_path / "photos")
    first = images(opened(root))
    assert not (tmp_path / "cache").exists()  # the files are younger than two seconds
    monkeypatch.setattr(identity, "SETTLED_NS", 0)
    assert (images(opened(root)).contents == first.contents).all()
    reads: list[int] = []
    real = identity.Split.sample
    monkeypatch.setattr(
        identity.Split, "sample", lambda s, i, limit: reads.append(i) or real(s, i, limit)
    )
    assert (images(opened(root)).contents == first.contents).all()
    assert reads == []
    a, b = sorted((root / "cat").iterdir())[:2]  # exchanged, times of modification and all
    a.rename(root / "between")
    b.rename(a)
    (root / "between").rename(b)
    assert sorted(images(opened(root)).contents.tolist()) == sorted(first.contents.tolist())
    assert (images(opened(root)).contents != first.contents).sum() == 2
    assert len(reads) > 0


def test_an_unreadable_image_is_known_by_its_name(tmp_path: Path) -> None:
    root = plant(tmp_path / "x")
    before = images(opened(root))
    data = opened(root)
    (root / "cat" / "00.bmp").unlink()
    now = images(data)
    assert (now.contents == identity.UNKNOWN).sum() == 1
    assert changes(before, now) == []
    assert (
        trained_on(before, now)[list(now.names).index("cat/00.bmp")]
        == before.trained[list(before.names).index("cat/00.bmp")]
    )


def test_images_survive_their_file_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    data = open_data(DataConfig(source="synthetic"))
    file = tmp_path / "images.npz"
    file.write_bytes(to_bytes(data.images))
    again = from_file(file)
    assert changes(again, data.images) == []
    assert (again.labels == data.images.labels).all()
    assert list(again.names) == list(data.images.names)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"images\.npz"):
        from_file(file)


def test_a_run_on_images_of_the_package_keeps_no_list_of_them(tmp_path: Path) -> None:
    data = open_data(DataConfig(source="synthetic"))
    config = load_config("debug")
    with RunFolder.open(tmp_path / "run", config, overwrite=False) as folder:
        folder.write_data(data_record(config, data), data)
    assert not (tmp_path / "run" / "images.npz").exists()
    assert len(json.loads((tmp_path / "run" / "data.json").read_text())["held_out"]["val"]) == 128
