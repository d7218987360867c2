"""Predictions: the run's own preparation of images, whatever they come as and however many."""

from __future__ import annotations

import copy
import csv
import dataclasses
import importlib.util
import io
import itertools
import json
import math
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vitc.cli.main import main
from vitc.config import RunConfig
from vitc.deploy.predict import Predictions, Predictor, find_images, report
from vitc.errors import BrokenFileError, CheckpointError, ConfigError
from vitc.resolve import load_config
from vitc.training.evaluate import evaluate_run
from vitc.training.loop import run

CLASSES = ("blue", "green", "red")
CHANNEL = {"red": 0, "green": 1, "blue": 2}
Capture = pytest.CaptureFixture[str]


def photo(label: str, seed: int, size: tuple[int, int] = (48, 60)) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[..., CHANNEL[label]] += np.uint8(120)
    return pixels


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    for part, count in (("train", 16), ("val", 5)):
        for label in CLASSES:
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(photo(label, 100 * count + i))
                image.save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(
        RunConfig(),
        model="vit_c_tiny",
        data=str(photos),
        optim={"lr": 3e-3, "weight_decay": 0.0, "ema": {"horizon": 0.5}},
        train={"epochs": 4, "batch": 16, "threads": 1},
        **{"model.img_size": 32, "data.workers": 0, "data.augment.flip": 0.0},
    )
    out = tmp_path_factory.mktemp("runs") / "photos"
    assert run(config, out, quiet=True).status == "done"
    return out


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor(trained)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    file = tmp_path / "torn.jpg"
    Image.fromarray(photo("red", 1)).save(file)
    file.write_bytes(file.read_bytes()[:700])
    return file


# -- which files -----------------------------------------------------------------------------------


def test_a_folder_stands_for_its_images_and_a_named_file_for_itself(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.PNG", "a/x.webp", "notes.txt", ".hidden/1.jpg", "b/.3.jpg"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "odd.name").touch()
    found = find_images([tmp_path / "odd.name", tmp_path / "in"])
    assert [f.relative_to(tmp_path).as_posix() for f in found] == [
        "odd.name",
        "in/a/x.webp",
        "in/b/10.PNG",
        "in/b/2.jpg",
    ]


def test_a_missing_file_and_a_folder_without_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").touch()
    with pytest.raises(ConfigError, match=r"no file .*cta\.txt\. Did you mean '.*cat\.txt'"):
        find_images([tmp_path / "cta.txt"])
    with pytest.raises(ConfigError, match=r"no image in the folder"):
        find_images([tmp_path])


def test_folders_are_walked_as_for_training(tmp_path: Path) -> None:
    for name in (
        "d/a/1.jpg",
        "d/@eaDir/1.jpg/T.jpg",
        "d/__MACOSX/2.jpg",
        "d/a/._1.jpg",
        "out/3.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d/z").symlink_to(tmp_path / "out")
    (tmp_path / "d/dead.jpg").symlink_to("nowhere")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    (tmp_path / "d/again").symlink_to(tmp_path / "d/a")
    run = tmp_path / "d/run"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl", "events.log", "plot.png"):
        (run / name).touch()
    found = [str(f) for f in find_images([tmp_path / "d"])]
    assert [f.removeprefix(f"{tmp_path}/") for f in found] == [
        "d/dead.jpg",
        "d/a/1.jpg",
        "d/z/3.jpg",
    ]


def test_what_no_image_can_be_read_from_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("d/a/1.jpg", "d/Thumbnails/1.jpg", "d/.old/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "d/pipe.jpg")
    (tmp_path / "d/null.png").symlink_to("/dev/null")
    (tmp_path / "d/cats").symlink_to("/mnt/unmounted")
    found = find_images([tmp_path / "d"])
    assert [str(f).removeprefix(f"{tmp_path}/") for f in found] == ["d/cats", "d/a/1.jpg"]
    assert "2 special files (pipe, socket, device) passed over: " in caplog.text
    assert "make of images skipped: 'Thumbnails'" in caplog.text
    assert "1 hidden folder with images skipped: '.old'" in caplog.text


def test_missing_names_beside_others_are_broken_images(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    names = [tmp_path / n for n in ("1.jpg", "gone.jpg", "gone.jpg", "x" * 300)]
    assert find_images(names) == [names[0], names[1], names[3]]
    with pytest.raises(ConfigError, match=r"no file .*gone\.jpg, nor any of 2 others"):
        find_images(names[1:])


def test_an_image_that_is_named_twice_is_predicted_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").touch()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    names = [tmp_path / "a/1.jpg", tmp_path / "a", tmp_path / "a/../a/1.jpg", tmp_path / "b"]
    assert find_images(names) == [tmp_path / "a/1.jpg"]


@pytest.mark.parametrize("kind", ["list", "bare list", "tar", "flat tar", "pack"])
def test_images_in_other_sources_are_predicted_labelled_or_not(
    kind: str, predictor: Predictor, trained: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    files = sorted((photos / "val").rglob("*.png"))
    if kind.endswith("list"):
        data = tmp_path / "x.csv"
        head = "path,label" if kind == "list" else "path"
        ends = [f",{f.parent.name}" if kind == "list" else "" for f in files]
        lines = [f"{f}{end}" for f, end in zip(files, ends, strict=True)]
        data.write_text("\n".join([head, *lines]))
    elif kind.endswith("tar"):
        data = tmp_path / "x.tar"
        with tarfile.open(data, "w") as tar:
            for i, f in enumerate(files):
                tar.add(f, f"{i:03d}.png" if kind == "flat tar" else f"{f.parent.name}/{f.name}")
    else:
        data = tmp_path / "x.vitc"
        assert main(["data", "pack", str(photos), str(data)]) == 0
    found = predictor(data)
    if kind == "pack":  # the training images are in it, too
        assert len(found) > len(files)
    else:
        assert np.allclose(found.probs, predictor(files).probs, atol=1e-5)
    capsys.readouterr()
    assert main(["predict", str(trained), str(data), "--json"]) == 0
    names = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert names == list(found.names)


def test_a_missing_file_of_a_list_has_a_row_and_one_listed_twice_is_predicted_once(
    trained: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    files = sorted((photos / "val").rglob("*.png"))[:3]
    (tmp_path / "x.csv").write_text(
        "path,label,split\n"
        f"{files[0]},red|blue,val\ngone.png,red,?\n{files[1]},red,train\n{files[0]},red,train\n"
    )
    words = ["predict", str(trained), str(tmp_path / "x.csv"), str(files[1]), str(files[2])]
    assert main([*words, "--json"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    names = [str(f) for f in (files[0], tmp_path / "gone.png", files[1], files[2])]
    assert [row["image"] for row in rows] == names
    assert "error" in rows[1]
    assert "1 of 4 images could not be read." in err
    (tmp_path / "x.csv").write_text("path\ngone.png\n")
    assert main(words[:3]) == 2
    assert "--data." not in capsys.readouterr().err


# -- what comes out --------------------------------------------------------------------------------


def test_probabilities_are_one_row_an_image_and_sum_to_one(
    predictor: Predictor, photos: Path
) -> None:
    found = predictor([photos / "val" / "red", photos / "val" / "blue" / "00.png"])
    assert isinstance(found, Predictions)
    assert found.probs.shape == (6, 3)
    assert found.probs.dtype == np.float32
    assert np.allclose(found.probs.sum(1), 1, atol=1e-5)
    assert found.classes == CLASSES
    assert found.names[-1] == str(photos / "val" / "blue" / "00.png")
    assert len(found) == 6
    one_by_one = predictor([photos / "val" / "red"], batch=1).probs
    assert np.allclose(found.probs[:5], one_by_one, atol=1e-5)


def test_the_likeliest_classes_come_first(predictor: Predictor) -> None:
    found = predictor([photo(label, 7) for label in CLASSES])
    assert [best[0][0] for best in found.topk(1)] == list(CLASSES)
    for row, best in zip(found.probs, found.topk(99), strict=True):
        assert [p for _, p in best] == sorted(row.tolist(), reverse=True)
        assert {c for c, _ in best} == set(CLASSES)
    with pytest.raises(ConfigError, match="k is 0"):
        found.topk(0)


def test_a_file_its_picture_and_its_pixels_agree_alone_and_together(
    predictor: Predictor, photos: Path
) -> None:
    file = photos / "val" / "green" / "03.png"
    with Image.open(file) as image:
        forms: list[Any] = [file, str(file), image, np.asarray(image)]
        together = predictor(forms).probs
        assert (together == together[0]).all()
        for alone in forms:
            assert np.allclose(predictor(alone).probs, together[:1], atol=1e-5)


def test_predictions_agree_with_the_evaluation_of_the_run(
    predictor: Predictor, trained: Path, photos: Path
) -> None:
    found = predictor([photos / "val"])
    best = [classes[0][0] for classes in found.topk(1)]
    right = [Path(n).parent.name == b for n, b in zip(found.names, best, strict=True)]
    assert evaluate_run(trained)["top1"] == pytest.approx(100 * np.mean(right))


def test_raw_and_averaged_weights_differ_and_no_image_gives_no_rows(trained: Path) -> None:
    ema, raw = (Predictor(trained, weights=w) for w in ("ema", "raw"))
    image = [photo("red", 3)]
    assert np.abs(ema(image).probs - raw(image).probs).max() > 1e-6
    assert raw([]).probs.shape == (0, 3)
    assert raw([]).topk(2) == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "HSV"])
def test_a_picture_of_any_mode_is_read_as_its_file_would_be(
    mode: str, predictor: Predictor, tmp_path: Path
) -> None:
    colour = Image.fromarray(photo("green", 5))
    image = colour.convert("L").convert("I;16") if mode == "I;16" else colour.convert(mode)
    saved = image.convert("RGB") if mode == "HSV" else image
    saved.save(tmp_path / "x.tif")
    assert np.array_equal(predictor(image).probs, predictor(tmp_path / "x.tif").probs)


def test_a_transparent_palette_and_a_turned_camera_are_seen_as_in_files(
    predictor: Predictor, tmp_path: Path
) -> None:
    palette = Image.fromarray(photo("red", 5)).convert("P")
    palette.save(tmp_path / "p.png", transparency=int(np.asarray(palette)[0, 0]))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo("red", 6)).save(tmp_path / "turned.png", exif=turned)
    for name in ("p.png", "turned.png"):
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(predictor(image).probs, predictor(tmp_path / name).probs)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3), (40, 50, 4)])
def test_arrays_may_be_grey_coloured_or_transparent(
    shape: tuple[int, ...], predictor: Predictor
) -> None:
    assert predictor(np.full(shape, 200, np.uint8)).probs.shape == (1, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_an_array_of_another_kind_is_refused(array: Any, predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match=r"image 0 is an array of .*shape"):
        predictor([array])


def test_what_is_no_image_is_refused(predictor: Predictor, photos: Path) -> None:
    file = photos / "val" / "red" / "00.png"
    wrong: list[tuple[Any, str]] = [
        (file.read_bytes(), "bytes"),
        ([file.read_bytes()], "bytes"),
        (torch.zeros(2, 3, 32, 32), "Tensor"),
        (5, "int"),
        (Image.new("RGB", (0, 5)), r"of size \(0, 5\)"),
    ]
    for images, what in wrong:
        with pytest.raises(ConfigError, match=rf"^image 0 is {what}\.") as refused:
            predictor(images)
        assert "a path, a PIL image or a uint8 array" in (refused.value.hint or "")
    with file.open("rb") as stream, pytest.raises(ConfigError, match="image 0 is BufferedReader"):
        predictor(stream)  # type: ignore[arg-type]


def test_images_are_read_one_batch_ahead_and_no_more(predictor: Predictor) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield photo("red", taken)

    results = predictor.each(endless(), batch=4)
    for expected in (4, 4, 4, 4, 8):
        next(results)
        assert taken == expected


# -- what is refused -------------------------------------------------------------------------------


def test_a_broken_file_is_named_and_does_not_stop_the_others(
    predictor: Predictor, broken: Path, photos: Path
) -> None:
    with pytest.raises(BrokenFileError, match=r"torn\.jpg"):
        predictor([broken])
    with Image.open(broken) as image, pytest.raises(BrokenFileError, match=r"torn\.jpg"):
        predictor([image])
    good = photos / "val" / "red" / "00.png"
    results = dict(predictor.each([good, broken, str(good.with_name("01.png"))], batch=2))
    assert isinstance(results[str(broken)], BrokenFileError)
    assert sum(isinstance(r, np.ndarray) for r in results.values()) == 2


def test_a_folder_without_a_trained_model_and_unknown_options_are_refused(
    tmp_path: Path, trained: Path
) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        Predictor(tmp_path)
    for wrong in ({"weights": "emma"}, {"device": "gpu"}):
        with pytest.raises(ConfigError, match=r"emma|gpu"):
            Predictor(trained, **wrong)  # type: ignore[arg-type]
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(CheckpointError, match="checkpoint"):
        Predictor(tmp_path)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_a_table(trained: Path, photos: Path, capsys: Capture) -> None:
    files = [str(photos / "val" / label / "00.png") for label in CLASSES]
    assert main(["predict", str(trained), "--topk", "2", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["image", "class", "probability", "class", "probability"]
    for line, file, label in zip(lines[1:], files, CLASSES, strict=True):
        cells = line.split()
        assert cells[:2] == [file, label]
        assert float(cells[2]) >= float(cells[5])


def test_the_command_prints_json_lines(
    trained: Path, photos: Path, predictor: Predictor, capsys: Capture
) -> None:
    file = photos / "val" / "red" / "00.png"
    assert main(["predict", str(trained), str(file), "--topk", "9", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    label, probability = predictor(file).topk(1)[0][0]
    assert values["image"] == str(file)
    assert values["top"][0] == {"class": label, "probability": probability}
    assert len(values["top"]) == 3


def test_the_command_writes_csv(
    trained: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = tmp_path / "out.csv"
    words = ["predict", str(trained), str(photos / "val"), "--csv", str(table), "--topk", "2"]
    assert main(words) == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 15
    assert list(rows[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert sum(float(rows[0][f"probability_{i}"]) for i in (1, 2)) <= 1.0001
    assert "15 images" in capsys.readouterr().out


def test_a_table_that_is_interrupted_leaves_the_one_before(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "out.csv"
    words = ["predict", str(trained), str(photos / "val"), "--csv", str(table)]
    assert main(words) == 0
    before = table.read_bytes()
    each = Predictor.each

    def interrupted(self: Predictor, files: Any) -> Iterator[Any]:
        yield from itertools.islice(each(self, files), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "each", interrupted)
    assert main(words) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
    assert table.read_bytes() == before


def test_the_list_that_is_read_is_not_replaced(
    trained: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    named = tmp_path / "mine.csv"
    image = next(photos.rglob("*.png"))
    named.write_text(f"image,label\n{image},red\n")
    (tmp_path / "link.csv").symlink_to(named)
    before = named.read_text()
    for out in ("mine.csv", "link.csv"):
        assert main(["predict", str(trained), str(named), "--csv", str(tmp_path / out)]) == 2
        assert "its output would replace it" in capsys.readouterr().err
        assert main(["data", "check", str(named), "--html", str(tmp_path / out)]) == 2
        assert "its output would replace it" in capsys.readouterr().err
    assert named.read_text() == before


def test_a_table_goes_through_a_link(trained: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    words = ["predict", str(trained), str(photos / "val"), "--csv", str(tmp_path / "link.csv")]
    assert main(words) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("image,class")


def test_a_table_on_stdout_is_alone_there(
    trained: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "out").symlink_to("/dev/stdout")
    words = ["predict", str(trained), str(photos / "val"), "--csv", str(tmp_path / "out")]
    assert main(words) == 0
    assert (tmp_path / "out").is_symlink()
    assert len(list(csv.DictReader(capsys.readouterr().out.splitlines()))) == 15


def test_sigterm_leaves_no_temporary_file(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, before = Predictor.each, signal.getsignal(signal.SIGTERM)

    def stopped(self: Predictor, files: Any) -> Iterator[Any]:
        yield from itertools.islice(each(self, files), 2)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Predictor, "each", stopped)
    words = ["predict", str(trained), str(photos / "val"), "--csv", str(tmp_path / "out.csv")]
    assert main(words) == 143
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("form", ["table", "csv"])
def test_names_neither_steer_a_terminal_nor_run_in_a_spreadsheet(
    form: str, predictor: Predictor
) -> None:
    classes = ("=1+1", "\x1b[31mred")
    fake = SimpleNamespace(
        classes=classes, each=lambda files: [(files[0], np.array([0.25, 0.75], np.float32))]
    )
    out = io.StringIO()
    report(fake, ["@now.jpg"], 2, form, out, print)  # type: ignore[arg-type, list-item]
    if form == "csv":
        assert next(csv.reader(out.getvalue().splitlines()[1:]))[:4:3] == ["'@now.jpg", "'=1+1"]
    else:
        assert "\x1b" not in out.getvalue()
        assert "\\x1b[31mred" in out.getvalue()


def test_weights_that_are_not_finite_predict_nothing(predictor: Predictor) -> None:
    model = copy.deepcopy(predictor.classifier.model)
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.fill_(math.nan)
    classifier = dataclasses.replace(predictor.classifier, model=model)
    with pytest.raises(CheckpointError, match="running_mean are nan or infinite"):
        classifier.probabilities([classifier.prepare(photo("red", 1))])


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv", "out.csv"]])
def test_the_command_lists_broken_files_goes_on_and_fails(
    form: list[str],
    trained: Path,
    photos: Path,
    broken: Path,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    good = str(photos / "val" / "red" / "00.png")
    assert main(["predict", str(trained), str(broken), good, *form]) == 1
    said = capsys.readouterr()
    assert "torn.jpg" in said.err
    assert "1 of 2 images could not be read" in said.err
    if form[:1] == ["--csv"]:
        rows = list(csv.reader(Path("out.csv").read_text().splitlines()))[1:]
        assert [row[0] for row in rows] == [str(broken), good]
        assert rows[0][1:] == ["", ""]
        return
    assert good in said.out
    assert "torn.jpg" in said.out
    if form:
        assert json.loads(said.out.splitlines()[0])["status"] == "failed"


@pytest.mark.parametrize(
    "form", [[], ["--json"], ["--csv", "out.csv"], ["--out", "out.PARQUET"], ["--out", "o.CSV"]]
)
def test_names_that_are_not_utf8_or_look_like_options_are_taken(
    form: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "out.PARQUET" in form:
        pytest.importorskip("pyarrow")
    Image.fromarray(photo("red", 1)).save("--json.png")
    try:
        Image.fromarray(photo("red", 1)).save(os.fsdecode(b"\xff-x.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    assert main(["predict", str(trained), *form, "--", ".", "--json.png"]) == 0
    if "out.PARQUET" in form:
        from pyarrow import parquet

        names = parquet.read_table("out.PARQUET").column("image").to_pylist()
        assert r"\udcff-x.png" in names


def test_names_come_from_stdin_and_rows_go_to_a_file(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    names = sorted(map(str, (photos / "val").rglob("*.png")))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(names) + "\n"))
    assert main(["predict", str(trained), "-", "--out", str(tmp_path / "a.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == names
    some = [names[0], "gone.jpg", names[1]]
    monkeypatch.setattr("sys.stdin", io.StringIO("\0".join(some) + "\0"))  # find -print0
    assert main(["predict", str(trained), "-", "--out", str(tmp_path / "b.jsonl")]) == 1
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == some
    assert [row.get("status") for row in rows] == [None, "failed", None]
    assert "gone.jpg" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["predict", str(trained), "-"]) == 2
    assert "no names on stdin" in capsys.readouterr().err
    assert main(["predict", str(trained), names[0], "--out", "a.txt"]) == 2


def test_features_are_what_the_head_reads(
    trained: Path, photos: Path, tmp_path: Path, predictor: Predictor, broken: Path
) -> None:
    file, out = photos / "val" / "red" / "00.png", tmp_path / "a.jsonl"
    words = ["predict", str(trained), str(file), str(broken), "--features"]
    assert main([*words, "--out", str(out)]) == 1
    row, failed = (json.loads(line) for line in out.read_text().splitlines())
    assert failed["status"] == "failed"
    assert len(row["features"]) == predictor.feature_width == 64
    model: Any = predictor.model
    with torch.no_grad():
        logits = model.head(torch.tensor(row["features"])[None])
    np.testing.assert_allclose(logits.softmax(1).numpy(), predictor(file).probs, atol=1e-5)
    assert main([*words, "--csv", str(tmp_path / "a.csv")]) == 1
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert float(rows[0]["feature_63"]) == pytest.approx(row["features"][63], rel=1e-6)
    assert rows[1]["feature_63"] == ""
    assert main(words) == 2


def test_rows_go_to_parquet(trained: Path, photos: Path, tmp_path: Path, broken: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "a.parquet"
    words = ["predict", str(trained), str(photos / "val"), str(broken), "--topk", "2"]
    assert main([*words, "--out", str(out)]) == 1
    rows = parquet.read_table(out).to_pylist()
    assert len(rows) == 16
    assert list(rows[0])[:3] == ["image", "class_1", "probability_1"]
    assert rows[0]["class_1"] in CLASSES
    assert rows[-1]["class_1"] is None
    assert "torn.jpg" in rows[-1]["error"]
    assert main([*words[:-2], "--features", "--out", str(out)]) == 1
    assert len(parquet.read_table(out).to_pylist()[0]["features"]) == 64


def test_parquet_without_its_library_is_one_message(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, package=None: None if name == "pyarrow" else find_spec(name, package),
    )
    words = ["predict", str(trained), str(photos / "val"), "--out", str(tmp_path / "a.parquet")]
    assert main(words) == 2
    assert "needs pyarrow" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_two_forms_and_missing_files(trained: Path, capsys: Capture) -> None:
    assert main(["predict", str(trained), "x.jpg", "--json", "--csv", "y"]) == 2
    assert main(["predict", str(trained), "x.jpg", "--features", "--topk", "2"]) == 2
    assert "--topk has no effect with --features" in capsys.readouterr().err
    assert main(["predict", str(trained), ""]) == 2
    assert "Write . for the current folder" in capsys.readouterr().err
    assert main(["predict", str(trained), "gone.jpg"]) == 2
    assert "no file gone.jpg" in capsys.readouterr().err
    assert main(["predict", str(trained), "x.jpg", "--out", "no/such/o.csv"]) == 2
    assert "There is no folder no/such." in capsys.readouterr().err
    assert main(["predict", str(trained), "x.jpg", "--out", "o.txt"]) == 2
    assert "must end in .csv, .jsonl or .parquet." in capsys.readouterr().err
