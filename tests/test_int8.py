"""Files of int8: the images of their ranges, what they are compared on, what stays in float."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitc
from tests.test_export import filled
from vitc.data.preprocessing import Preprocessing
from vitc.deploy.classifier import Classifier, Ensemble
from vitc.deploy.export import compare
from vitc.deploy.export import export as module
from vitc.deploy.export.base import Made, Record
from vitc.deploy.export.calibration import Calibration, choose_calibration
from vitc.deploy.export.formats import FORMATS, format_of
from vitc.deploy.export.weights_file import WeightsFile
from vitc.deploy.measures import Fit
from vitc.errors import ConfigError, DataError
from vitc.training.measured import Asked, choose_images
from vitc.views.text import plain

CLASSES = ("blue", "red")


def choose(model: Path, data: Path | None, most: int = 2000) -> Calibration:
    classifier = Classifier.load(model, "cpu")
    given = None if data is None else str(data)
    images = choose_images(classifier.training, Asked(given, trained_on=True))
    return choose_calibration(classifier, images, given, most)


@pytest.fixture(autouse=True)
def brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(compare, "BATCHES", (1, 2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = filled(vitc.create_model("vit_c_tiny", num_classes=2, img_size=32))
    p = Preprocessing((0.5,) * 3, (0.5,) * 3, "rgb", "bilinear", 1.0, (32, 32))
    return vitc.save_pretrained(model, tmp_path / "saved", classes=CLASSES, preprocessing=p)


def write(folder: Path, count: int, first: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """So many images of the model's size in each class; those of one number are the same."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            pixels = np.random.default_rng((label, i)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


def of_val_and_test(photos: Path) -> Path:
    """The images as a list without a training split: two thirds to validate, the others to test."""
    rows = [
        f"{file},{file.parent.name},{'test' if i % 3 == 0 else 'val'}"
        for i, file in enumerate(sorted(photos.rglob("*.png")))
    ]
    found = photos.parent / "list.csv"
    found.write_text("\n".join(["path,label,split", *rows]))
    return found


def compared_of(found: Calibration) -> list[bytes]:
    split = found.compared
    return [split.read(i, 3).transpose(2, 0, 1).tobytes() for i in range(len(split))]


def used_of(found: Calibration) -> list[bytes]:
    return [image.numpy().tobytes() for image in found.images]


def test_ranges_are_from_the_training_split_of_the_run(trained: Path, tmp_path: Path) -> None:
    own = choose(trained, None)
    assert len(own.images) == 128
    assert "from 128 images of the run's training split." in own.note
    others = write(tmp_path / "others", 30, classes=Classifier.load(trained).classes[:2])
    found = choose(trained, others)
    torch.testing.assert_close(found.images, own.images)
    assert found.note == own.note
    assert (len(found.compared), found.shared) == (60, 0)


def test_images_that_are_not_divided_are_used_once(saved: Path, tmp_path: Path) -> None:
    found = choose(saved, write(tmp_path / "photos", 30))
    used, compared = used_of(found), compared_of(found)
    assert (len(used), len(compared), len({*used, *compared})) == (30, 30, 60)
    assert "from 30 images of those to compare on, which are left out" in found.note
    few = choose(saved, tmp_path / "photos", most=12)
    assert (len(few.compared), few.shared) == (12, 0)
    assert not {*used_of(few)} & {*compared_of(few)}


def test_too_few_images_are_used_twice_with_a_note(saved: Path, tmp_path: Path) -> None:
    found = choose(saved, write(tmp_path / "photos", 18))
    assert (len(found.images), len(found.compared), found.shared) == (36, 36, 36)
    assert "36 of the 36 images compared are among them" in found.note


def test_copies_of_the_images_used_are_not_compared_on(saved: Path, tmp_path: Path) -> None:
    write(tmp_path / "photos" / "train", 20)
    write(tmp_path / "photos" / "val", 22, first=18)  # two a class are in both
    found = choose(saved, tmp_path / "photos")
    assert (len(found.images), len(found.compared), found.shared) == (40, 40, 0)
    assert not {*used_of(found)} & {*compared_of(found)}
    assert f"40 images of the training split of {tmp_path / 'photos'}." in found.note


def test_without_a_training_split_they_are_some_of_the_others(saved: Path, tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", 60)
    found = choose(saved, of_val_and_test(photos))
    assert (len(found.images), len(found.compared), found.shared) == (40, 40, 0)
    assert not {*used_of(found)} & {*compared_of(found)}


def test_unreadable_training_images_are_replaced_with_a_note(saved: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write(photos / "train", 20)
    write(photos / "val", 25, first=50)
    train = sorted((photos / "train").rglob("*.png"))
    for file in train[1:]:
        file.write_bytes(b"\x89PNG" + file.name.encode())
    assert "from 1 image of the training split" in choose(saved, photos).note
    train[0].write_bytes(b"\x89PNG")
    found = choose(saved, photos)
    assert (len(found.images), len(found.compared)) == (25, 25)
    assert f"None of the 40 images of the training split of {photos} can be read." in found.note
    assert "from 25 images of those to compare on" in found.note


def test_no_readable_image_is_one_message(saved: Path, tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", 3)
    for file in photos.rglob("*.png"):
        file.write_bytes(b"\x89PNG" + file.name.encode())
    with pytest.raises(DataError, match="None of the images can be read"):
        choose(saved, photos)


# -- the files -------------------------------------------------------------------------------------


def test_int8_of_a_list_without_a_training_split_has_thresholds_of_its_own(
    saved: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    data, out = str(of_val_and_test(write(tmp_path / "photos", 18))), tmp_path / "m.onnx"
    report = vitc.export(saved, out, data=data, precision="int8", raw_input=True, min_agreement=0)
    assert (report.images, report.n, report.calibrated) == ("val", 24, 24)
    assert "too good" in report.calibration
    record, _ = format_of(out).open(out, 1)
    levels = vitc.evaluate(out, data, split="val").fit.thresholds
    assert list((record.thresholds or {}).values()) == pytest.approx(list(levels))
    assert report.size == out.stat().st_size


class EightBits(WeightsFile):
    """A stand-in for int8 that needs no extra: it doubles the logits."""

    precisions = ("fp32", "int8")

    def write(self, made: Made, file: Path) -> None:
        model = copy.deepcopy(made.model)
        for part in ("weight", "bias"):
            model.get_parameter(f"head.{part}").data.mul_(2)
        super().write(replace(made, model=model), file)

    def replace_record(self, file: Path, record: Record) -> None:
        model = self.open(file, 1)[1]
        file.unlink()  # it is mapped into memory
        super().write(Made(None, model, record), file)


def test_int8_has_the_temperature_of_its_own_answers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Fit(7.5, (0.5, 0.5, 0.5), "val", 100)
    monkeypatch.setattr(module, "kept_fit", lambda _: kept)
    monkeypatch.setitem(FORMATS, "safetensors", EightBits())
    out = tmp_path / "mine.safetensors"
    report = vitc.export(trained, out, precision="int8", min_agreement=0)
    assert report.calibration == "Ranges of int8: from 128 images of the run's training split."
    assert (report.not_fitted, report.size) == ("", out.stat().st_size)
    record, _ = format_of(out).open(out, 1)
    own = vitc.evaluate(out, "synthetic", split="val").fit
    assert record.temperature == pytest.approx(own.temperature, rel=0.01)
    assert list((record.thresholds or {}).values()) == pytest.approx(list(own.thresholds))

    vitc.export(trained, out, overwrite=True)
    assert format_of(out).open(out, 1)[0].temperature == 7.5


def test_int8_without_images_to_fit_on_has_no_temperature(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "safetensors", EightBits())
    photos, out = write(tmp_path / "photos", 18), tmp_path / "mine.safetensors"
    report = vitc.export(saved, out, data=str(photos), precision="int8", min_agreement=0)
    assert "no temperature or thresholds: the images compared on are no val" in report.not_fitted
    assert format_of(out).open(out, 1)[0].thresholds is None
    shown = [plain(part) for part in compare.report_page(report).parts]
    assert any("36 of the 36 images compared are among them" in (text or "") for text in shown)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_leaves_the_first_and_last_product_of_each_member_in_float(
    saved: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in {".onnx": ("onnxruntime", "onnxscript"), ".xml": ("nncf",)}[suffix]:
        pytest.importorskip(package)
    load = Classifier.load

    def mean(path: Path, device: str, weights: str = "ema") -> Classifier:
        found = load(path, device, weights)
        other = copy.deepcopy(found.model)
        for weight in other.parameters():
            weight.data.mul_(1.01)  # the same products would be computed once
        model = Ensemble([found.model, other]).eval()
        return replace(found, model=model) if path == saved else found

    monkeypatch.setattr(module.Classifier, "load", mean)
    photos, out = write(tmp_path / "photos", 18), tmp_path / f"m{suffix}"
    report = vitc.export(saved, out, data=str(photos), precision="int8", min_agreement=0)
    assert len(report.kept_float) == 4
    # as it was compared, before its record was replaced
    assert vitc.evaluate(out, str(photos)).top1 == pytest.approx(report.top1)


def test_what_int8_needs_is_looked_for_before_anything_is_computed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec, there = importlib.util.find_spec, importlib.util.find_spec("json")
    extras = {"openvino": there, "onnx": there, "onnxscript": there, "nncf": None}
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, package=None: extras[name] if name in extras else find_spec(name, package),
    )
    monkeypatch.setattr(Classifier, "load", None)
    with pytest.raises(ConfigError, match=r"needs nncf.*\n.*\[openvino\]"):
        vitc.export(trained, tmp_path / "mine.xml", precision="int8")
