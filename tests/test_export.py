"""An exported file answers as its original, from the pixels of photos, or does not exist."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vitc
from vitc.cli import export as verb
from vitc.cli.main import main
from vitc.data.preprocessing import Fit, Preprocessing
from vitc.deploy.classifier import Classifier
from vitc.deploy.export import compare as comparison
from vitc.deploy.export import export as module
from vitc.deploy.export.archive import Archive
from vitc.deploy.export.base import FileModel, Record
from vitc.deploy.export.formats import format_of
from vitc.deploy.export.graph import Prepare
from vitc.deploy.saved import read_pretrained
from vitc.errors import CheckpointError, ConfigError, RunError
from vitc.models.folding import folded
from vitc.plugins import trust
from vitc.views.text import plain

CLASSES = ("blue", "green", "red")
Capture = pytest.CaptureFixture[str]
Make = Callable[..., Path]


def filled(model: nn.Module) -> nn.Module:
    """Every tensor with other values than a fresh model has, so that its answers depend on all."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if "running_var" in name:
            tensor.copy_(1 + noise.abs() / 2)
        elif "head" in name and tensor.ndim > 1:
            tensor.copy_(noise)
        else:
            tensor.add_(noise * (0.1 if tensor.ndim == 1 else 0.3 * tensor.std()))
    return model.eval()


@pytest.fixture(autouse=True, scope="module")
def brief_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "ENOUGH_SECONDS", 0.0)
        patch.setattr(comparison, "BATCHES", (1, 2))
        yield


@pytest.fixture(scope="module")
def archive(
    brief_timing: None, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A .pt2 of `trained`, which another user made, and the report of its export."""
    out, printed = tmp_path_factory.mktemp("archive") / "mine.pt2", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["export", str(trained), str(out), "--images", "100", "--json"]) == 0
    return out, json.loads(printed.getvalue().splitlines()[-1])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 photos of odd sizes, as JPEG and PNG."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("images") / "photos"
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for i in range(12):
            height, width = rng.integers(20, 130, 2)
            coarse = rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
            pixels = coarse.repeat(9, 0).repeat(9, 1)[:height, :width]
            Image.fromarray(pixels).save(root / label / f"{i:02d}.{'png' if i % 3 else 'jpg'}")
    return root


@pytest.fixture
def saved(tmp_path: Path) -> Make:
    def make(name: str = "vit_p_tiny", fit: Fit = "crop", **overrides: Any) -> Path:
        settings = {"img_size": 32, "in_chans": 3} | overrides
        model = filled(vitc.create_model(name, num_classes=3, **settings))
        channels = settings["in_chans"]
        size = settings["img_size"]
        preprocessing = Preprocessing(
            mean=(0.4,) * channels,
            std=(0.2,) * channels,
            channels="rgb" if channels == 3 else "gray",
            interpolation="bilinear",
            crop=0.875 if fit == "crop" else None,
            img_size=(size, size) if isinstance(size, int) else size,
            fit=fit,
        )
        folder = tmp_path / f"saved_{name}_{fit}"
        return vitc.save_pretrained(
            model, folder, classes=CLASSES, preprocessing=preprocessing, overwrite=True
        )

    return make


def logits(path: Path, photos: Path) -> np.ndarray[Any, Any]:
    classifier = Classifier.load(path, "cpu")
    files = sorted(photos.rglob("*.*"))
    pixels = [np.asarray(Image.open(f).convert("RGB")) for f in files]
    if classifier.in_chans == 1:
        pixels = [p.mean(axis=2, keepdims=True).astype(np.uint8) for p in pixels]
    found: np.ndarray[Any, Any] = classifier.logits(
        torch.stack([classifier.prepare(p) for p in pixels])
    ).numpy()
    return found


# -- the proof -------------------------------------------------------------------------------------


def test_an_archive_answers_as_its_run_and_predict_and_evaluate_take_it(
    archive: tuple[Path, dict[str, Any]], trained: Path, tmp_path: Path
) -> None:
    out, report = archive
    trust(out)
    assert report["agreement"] == 100
    assert report["n"] == 100
    assert report["max_diff"] < 1e-5
    assert [b["batch"] for b in report["latency"]] == [1, 2]
    assert report["top1"] == report["top1_original"]
    assert report["top1_interval"][0] <= 0 <= report["top1_interval"][1]
    beside = json.loads((out.parent / "mine.pt2.json").read_text())
    assert beside["top1_change"] == report["top1_change"] == 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["mine.pt2", "mine.pt2.json"]

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    image.save(tmp_path / "photo.png")
    probs = [vitc.Predictor(p)(tmp_path / "photo.png").probs for p in (trained, out)]
    np.testing.assert_allclose(probs[0], probs[1], atol=1e-6)
    ours = vitc.evaluate(trained, "synthetic", split="val")
    its = vitc.evaluate(out, "synthetic", split="val")
    assert (its.top1, its.n) == (ours.top1, ours.n)


def test_temperature_and_thresholds_of_the_validation_images_are_in_the_file(
    archive: tuple[Path, dict[str, Any]], trained: Path
) -> None:
    file, _ = archive
    trust(file)
    record, _ = format_of(file).open(file, 1)
    assert isinstance(record, Record)
    assert record.temperature is not None
    assert record.temperature > 0
    assert set(record.thresholds or ()) == {"90", "95", "99"}
    assert record.saved.classes == Classifier.load(trained).classes


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"fit": "crop", "in_chans": 1}, {"fit": "pad"}])
def test_onnx_answers_as_the_original_from_pixels(
    saved: Make, photos: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: Any
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = saved("vit_c_tiny", **options)
    report = vitc.export(folder, tmp_path / "photos.onnx", data=str(photos))
    assert report.agreement == 100
    assert report.n == 36
    assert report.max_diff < 0.02  # a few pixels of its Resize differ by 1 of 255
    before, after = (logits(p, photos) for p in (folder, tmp_path / "photos.onnx"))
    assert before.std() > 0.1
    np.testing.assert_allclose(after, before, atol=1e-4)
    check_script(folder, photos, tmp_path, monkeypatch)


def check_script(folder: Path, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The script of `vitc export --help`, for every photo."""
    monkeypatch.chdir(tmp_path)
    predictor = vitc.Predictor(folder)
    for photo in sorted(photos.rglob("*.*")):
        shutil.copy(photo, tmp_path / "photo.jpg")
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            exec(verb.SCRIPT, {})
        assert text.getvalue().strip() == predictor(photo).topk(1)[0][0][0]


def test_a_file_of_weights_is_a_model_and_starts_a_run(
    trained: Path, tmp_path: Path, photos: Path
) -> None:
    out = tmp_path / "mine.safetensors"
    report = vitc.export(trained, out, images=50)
    assert (report.agreement, report.max_diff) == (100, 0)
    model = vitc.create_model("vit_c_tiny", num_classes=10, img_size=32)
    assert vitc.load_weights(model, out).source == "vitc"
    vitc.Predictor(out)(sorted(photos.rglob("*.png"))[0])


def test_int8_is_smaller_and_its_change_is_reported(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "mine.onnx"
    report = vitc.export(trained, out, precision="int8", raw_input=True, images=60, min_agreement=0)
    assert report.precision == "int8"
    assert report.input == "tensor"
    assert len(report.kept_float) == 2
    assert report.size < 0.8 * report.size_original
    assert report.max_diff > 1e-5
    assert report.agreement > 80
    low, high = report.top1_interval
    assert low <= report.top1_change <= high
    its = vitc.evaluate(out, "synthetic", split="val")
    assert abs(its.top1 - vitc.evaluate(trained, "synthetic", split="val").top1) < 20


FAMILIES = [
    ("vit_p_tiny", {}),
    ("vit_r_tiny", {}),
    ("vit_c_small64", {"img_size": 64}),
    ("vit_c_tiny", {"img_size": (32, 48)}),
    ("regnety_1gf", {"img_size": 64}),
    ("resnet_50", {"img_size": 64}),
    ("effnet_lite0", {"img_size": 64}),
]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2", ".safetensors"])
@pytest.mark.parametrize(("name", "settings"), FAMILIES)
def test_every_family_in_every_format(
    saved: Make, photos: Path, tmp_path: Path, name: str, settings: dict[str, Any], suffix: str
) -> None:
    for package in {".onnx": ("onnxruntime", "onnxscript"), ".xml": ("openvino",)}.get(suffix, ()):
        pytest.importorskip(package)
    folder = saved(name, **settings)
    assert logits(folder, photos).std() > 0.1
    report = vitc.export(folder, tmp_path / f"model{suffix}", data=str(photos))
    assert report.agreement == 100


@pytest.mark.slow
def test_openvino_in_int8_reports_its_change(saved: Make, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    report = vitc.export(
        saved("vit_c_tiny"), tmp_path / "m.xml", data=str(photos), precision="int8", min_agreement=0
    )
    assert report.size < 0.9 * report.size_original
    assert report.agreement > 80
    assert len(report.kept_float) == 2


@pytest.mark.slow
def test_depthwise_convolutions_stay_in_float_in_onnx(
    saved: Make, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = saved("effnet_lite0", img_size=64)
    out = tmp_path / "m.onnx"
    report = vitc.export(folder, out, data=str(photos), precision="int8", min_agreement=0)
    assert len(report.kept_float) == 2 + 16  # one in each of its 16 blocks
    assert report.size < 0.4 * report.size_original
    shown = map(plain, comparison.report_page(report).parts)
    assert any("15 more (in the report)" in (text or "") for text in shown)


# -- failures --------------------------------------------------------------------------------------


def test_a_failed_comparison_is_a_failed_export(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def wrong(model: nn.Module) -> nn.Module:
        other = folded(model)
        other.get_parameter("head.weight").mul_(-1)
        return other

    monkeypatch.setattr(module, "folded", wrong)
    words = ["export", str(trained), str(tmp_path / "mine.pt2"), "--images", "20"]
    assert main(words) == 1
    assert "below the 99.9 % required" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*words, "--min-agreement", "0"]) == 0


class Blind(Prepare):
    """An engine whose own Resize loses the image."""

    def _resize(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        resized = super()._resize(x, height, width)
        return resized if self.exact else resized * 0


def test_where_too_many_answers_differ_images_are_resized_as_by_pytorch(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(module, "Prepare", Blind)
    words = ["export", str(trained), str(tmp_path / "mine.pt2"), "--images", "20"]
    assert main(words) == 1  # PyTorch's own, as in evaluation
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Archive, "own_resize", True)
    assert main(words) == 0
    assert "to PyTorch's pixels" in capsys.readouterr().out
    assert json.loads((tmp_path / "mine.pt2.json").read_text())["exact_resize"] is True
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "mine.pt2").unlink()
    blind = [*words, "--min-agreement", "0", "--overwrite"]
    assert main(blind) == 0
    assert json.loads((tmp_path / "mine.pt2.json").read_text())["exact_resize"] is False


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("m.onnx", "onnxruntime"), ("m.xml", "openvino")])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_engines_resize_as_pytorch_does_where_they_have_to(
    saved: Make,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    package: str,
    fit: Fit,
) -> None:
    pytest.importorskip(package)
    pytest.importorskip("onnxscript")
    folder = saved("vit_c_tiny", fit=fit)
    monkeypatch.setattr(module, "Prepare", lambda p, _: Prepare(p, exact=True))
    report = vitc.export(folder, tmp_path / name, data=str(photos))
    assert report.agreement == 100
    assert report.max_diff < 1e-4  # 0.02 where single pixels are off


def test_a_file_that_is_there_stays_until_the_new_one_has_passed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        vitc.export(trained, out)
    monkeypatch.setitem(module.AGREEMENT, "fp32", 101)
    with pytest.raises(RunError):
        vitc.export(trained, out, images=5, overwrite=True)
    assert out.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("out", "other"),
    [("a.xml", "a.bin"), ("a.xml", "a.xml.json"), ("a.safetensors", "a.safetensors.json")],
)
def test_no_other_file_is_replaced(trained: Path, tmp_path: Path, out: str, other: str) -> None:
    (tmp_path / other).write_text("precious")
    with pytest.raises(ConfigError, match=rf"{other} exists"):
        vitc.export(trained, tmp_path / out, images=5)
    assert [file.name for file in tmp_path.iterdir()] == [other]
    if out != "a.xml":
        vitc.export(trained, tmp_path / out, images=5, overwrite=True)
        assert {file.name for file in tmp_path.iterdir()} == {out, other}


def test_a_graph_that_gives_something_else_is_one_message(saved: Make, tmp_path: Path) -> None:
    record = Record(read_pretrained(saved()))
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for shape in ((), (2,), (2, 4), (3, 3)):
        model = FileModel(lambda _, s=shape: np.zeros(s, np.float32), record, tmp_path / "a.onnx")
        with pytest.raises(CheckpointError, match=r"a\.onnx is damaged: its graph gives"):
            model.run(images)


def test_a_folder_that_cannot_be_written_is_one_message(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        vitc.export(trained, tmp_path / "file" / "mine.safetensors", images=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine.tflite"], r"suffix '.tflite'; it must be one of .onnx, .xml, .pt2, .safetensors"),
        (["mine.ONNX"], r"suffix '.ONNX'; it must be one of .onnx,"),
        (["mine.onnx", "--format", "torch"], "must be .pt2 for torch"),
        (["mine.onnx", "--format", "onxx"], "Did you mean 'onnx'"),
        (["mine.pt2", "--int8"], "mine.pt2 cannot be in int8"),
        (["mine.onnx", "--images", "0"], "at least 1"),
        (["mine.safetensors", "--raw-input"], "no effect"),
        (["mine.pt2", "--min-agreement", "101"], "from 0 to 100"),
    ],
)
def test_wrong_options_are_named_before_anything_is_computed(
    trained: Path, tmp_path: Path, words: list[str], message: str, capsys: Capture
) -> None:
    assert main(["export", str(trained), str(tmp_path / words[0]), *words[1:]]) == 2
    assert message.replace("\\", "") in capsys.readouterr().err


def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec, missing = importlib.util.find_spec, ("onnx", "openvino", "nncf")
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, package=None: None if name.startswith(missing) else find_spec(name, package),
    )
    with pytest.raises(ConfigError, match=r"onnx, onnxscript, onnxruntime.*\n.*\[export\]"):
        vitc.export(trained, tmp_path / "mine.onnx")
    with pytest.raises(ConfigError, match=r"openvino.*\n.*\[openvino\]"):
        vitc.export(trained, tmp_path / "mine.xml")


def test_a_saved_model_needs_images_to_compare_on(saved: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not record") as refused:
        vitc.export(saved(), tmp_path / "mine.pt2")
    assert "mine.pt2 --data FOLDER" in (refused.value.hint or "")


def test_a_run_without_validation_images_is_compared_on_those_it_was_trained_on(
    photo_folder: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    run, out = tmp_path / "run", tmp_path / "run.safetensors"
    settings = "--data.val_fraction 0 --data.test_fraction 0 --model vit_c_tiny --model.img_size 32"
    settings += " --train.epochs 1 --train.batch 8 --train.threads 1 --data.workers 0"
    words = ["train", "cifar10_vit_c", "--data", str(photo_folder(count=4)), "--out", str(run)]
    assert main([*words, *settings.split()]) == 0
    command = ["export", str(run), str(out)]
    assert f"vitc export {run} run.onnx\n" in capsys.readouterr().out
    for own in ([], ["--data", words[3]]):
        assert main([*command, *own, "--overwrite", "--json"]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["images"] == "train"
        note = "The file has no temperature or thresholds: 12 of the 12 images were trained on."
        assert report["not_fitted"] == note
    others = photo_folder(count=2, name="others")
    assert main([*command, "--data", str(others), "--overwrite"]) == 0
    shutil.copytree(words[3], others / "val")
    shutil.copytree(words[3], others / "train")
    for i in range(3):
        shutil.rmtree(others / f"class_{i}")
    capsys.readouterr()
    assert main([*command, "--data", str(others), "--overwrite"]) == 0
    assert note in capsys.readouterr().out


def test_an_archive_of_another_machine_is_read_once_it_is_trusted(
    archive: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: Capture
) -> None:
    out, _ = archive
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    words = ["predict", str(out), str(tmp_path / "photo.png")]
    assert main(words) == 2
    assert "It was not read" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0
    trust(out)


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_a_damaged_file_is_one_message(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"not a model")
    if name.endswith("pt2"):
        trust(file)
    else:
        pytest.importorskip("onnxruntime")
    with pytest.raises(CheckpointError, match="cannot be read"):
        vitc.Predictor(file)


@pytest.mark.parametrize("change", [{"export": 3}, {"classes": ["a"]}, {"fit": "tile"}])
def test_a_damaged_record_is_refused(saved: Make, change: dict[str, Any], tmp_path: Path) -> None:
    values = json.loads(Record(read_pretrained(saved())).to_json())
    assert Record.from_json(json.dumps(values), tmp_path).saved.classes == CLASSES
    with pytest.raises(CheckpointError, match="damaged"):
        Record.from_json(json.dumps(values | change), tmp_path)
    newer = values | {"export": values["export"] | {"format": 99}}
    with pytest.raises(CheckpointError, match="newer"):
        Record.from_json(json.dumps(newer), tmp_path)
