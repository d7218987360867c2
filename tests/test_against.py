"""Two models on the same images: counts from the probabilities, a page, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitc
from vitc.cli.main import main
from vitc.deploy.against import ModelComparison, comparison_page, images_csv, write_comparison
from vitc.deploy.evaluation import Evaluation
from vitc.errors import ConfigError, DataError
from vitc.resolve import load_config
from vitc.runs.results import test_results as results_of_test
from vitc.training.loop import run as train
from vitc.views.model import Thumbnails

EVIL = "<b>{{7*7}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and three runs: a and b held out the same ones, c others. Read-only."""
    folder, rng = tmp_path_factory.mktemp("against"), np.random.default_rng(0)
    for c, name in enumerate((EVIL, "other")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 200, (32, 32, 3)).astype(np.uint8)
            pixels[..., c] += np.uint8(16)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    settings: dict[str, Any] = {
        "model.img_size": 32,
        "data.workers": 0,
        "train.batch": 8,
        "train.epochs": 4,
        "optim.lr": 2e-3,
        "train.threads": 1,
        "train.device": "cpu",
        "data.val_fraction": 0.5,
    }
    for name, own in {"a": {}, "b": {"train.seed": 5}, "c": {"data.split_seed": 7}}.items():
        config = load_config(
            "debug", data=str(folder / "images"), model="vit_c_tiny", **{**settings, **own}
        )
        assert train(config, folder / name, quiet=True).status == "done"
    vitc.save_pretrained(folder / "b", folder / "saved")
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> ModelComparison:
    return vitc.compare(place / "a", place / "b")


def test_both_are_measured_on_the_same_images_and_counted(
    place: Path, found: ModelComparison
) -> None:
    a, b = (vitc.evaluate(place / name) for name in "ab")
    assert (found.a.top1, found.b.top1, found.a.names) == (a.top1, b.top1, b.names)
    right = [e.probabilities.argmax(axis=1) == e.labels for e in (a, b)]
    assert found.paired.only_a == int((right[0] & ~right[1]).sum()) == len(found.only_a)
    assert found.paired.only_b == int((right[1] & ~right[0]).sum()) == len(found.only_b)
    assert found.paired.difference == pytest.approx(a.top1 - b.top1)
    assert set(found.neither.tolist()) == set(np.flatnonzero(~right[0] & ~right[1]).tolist())
    confidence = found.a.probabilities.max(axis=1)[found.only_a]
    assert (np.diff(confidence) <= 0).all()


def test_a_model_against_itself_is_open(place: Path) -> None:
    same = vitc.compare(place / "a", place / "a")
    assert (same.paired.difference, same.paired.p) == (0, 1)
    assert "is open" in same.sentence


def test_a_saved_model_is_compared_too(place: Path, found: ModelComparison) -> None:
    saved = vitc.compare(place / "a", place / "saved")
    assert np.abs(saved.b.probabilities - found.b.probabilities).max() < 1e-5
    assert any("not known" in note for note in saved.b.notes)
    other = vitc.compare(place / "saved", place / "b", str(place / "images"))
    assert other.paired.n == 120


def test_images_that_one_of_them_was_trained_on_are_refused(place: Path) -> None:
    with pytest.raises(DataError, match=r"not trained on the same: .*a on 0, .*c on \d"):
        vitc.compare(place / "a", place / "c")


def test_as_many_training_images_are_not_the_same_ones(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "images", tmp_path / "more")
    Image.new("RGB", (32, 32)).save(tmp_path / "more" / "other" / "new.png")
    both = r"not trained on the same: .*a on 42, .*c on 42, both on (?!42)\d+\."
    with pytest.raises(DataError, match=both):
        vitc.compare(place / "a", place / "c", str(tmp_path / "more"))


def test_two_that_were_trained_on_the_same_images_may_be_compared_on_them(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "images", tmp_path / "more")
    Image.new("RGB", (32, 32)).save(tmp_path / "more" / "other" / "new.png")
    both = vitc.compare(place / "a", place / "b", str(tmp_path / "more"))
    assert both.paired.n == 121
    assert both.a.trained_on == both.b.trained_on == 42  # the others validate or test


def test_a_reading_of_test_images_is_kept_for_each_run_that_they_are_the_test_of(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        shutil.copytree(place / name, tmp_path / name)
    both = vitc.compare(tmp_path / "a", tmp_path / "b", split="test")
    assert "Choose between runs on validation images" in caplog.text
    for name, e in (("a", both.a), ("b", both.b)):
        kept = results_of_test(tmp_path / name)
        assert [(r["top1"], r["n"]) for r in kept] == [(e.top1, e.n)]
    vitc.compare(tmp_path / "a", place / "saved")
    assert f"{place / 'saved'}: Whether the model was trained on" in caplog.text
    vitc.compare(tmp_path / "a", tmp_path / "b")
    assert len(results_of_test(tmp_path / "a")) == 1


def test_a_broken_image_is_no_difference_in_what_was_trained_on(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "images", tmp_path / "more")
    record = json.loads((place / "a" / "data.json").read_text())
    held_out = {name for names in record["held_out"].values() for name in names}
    trained_on = next(n for i in range(60) if (n := f"other/{i}.png") not in held_out)
    (tmp_path / "more" / trained_on).write_bytes(b"")
    both = vitc.compare(place / "a", place / "b", str(tmp_path / "more"), skip_broken=True)
    assert both.paired.n == 119


def test_the_page_shows_where_they_differ_and_hostile_names_have_no_power(
    found: ModelComparison, tmp_path: Path
) -> None:
    file = write_comparison(found, "the command", tmp_path / "page.html")
    page = file.read_text()
    assert EVIL not in page
    assert "the command" in page
    shown = [p for p in comparison_page(found).parts if isinstance(p, Thumbnails)]
    kinds = (found.only_a, found.only_b, found.neither)
    assert [len(p.pictures) for p in shown] == [
        min(most, len(k)) for most, k in zip((24, 24, 12), kinds, strict=True) if len(k)
    ]
    values = json.loads(file.with_suffix(".json").read_text())
    assert values["paired"]["only_a"] == found.paired.only_a
    rows = list(csv.DictReader(file.with_suffix(".csv").read_text().splitlines()))
    wins = sum(r["first"] == r["label"] != r["second"] for r in rows)
    assert (len(rows), wins) == (60, found.paired.only_a)


def test_no_class_is_a_formula_in_a_spreadsheet(
    found: ModelComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluation, "classes", [f"=1+{i}" for i in range(len(found.a.classes))])
    text = images_csv(found)
    assert "=1+1" in text
    assert not any(cell.startswith("=") for row in csv.reader(text.splitlines()) for cell in row)


def test_the_command_prints_the_verdict_and_writes_the_page(
    place: Path, found: ModelComparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(place / "a"), "--against", str(place / "b")]
    words += ["--report", str(tmp_path / "x.html")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert found.sentence in out
    assert f"Where they differ: {tmp_path / 'x.html'}" in out
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["paired"]["p"] == found.paired.p


def test_what_is_no_model_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(place / "a"), "--against", str(place / "images")]) == 2
    assert "is a folder or file of data" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="weights 'raw' has no effect"):
        vitc.compare(place / "a", place / "saved", weights="raw")


def test_models_of_other_classes_are_refused_without_an_option_that_has_no_effect(
    place: Path, tmp_path: Path
) -> None:
    for name in ("red", "blue"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (9 * i, 0, 0)).save(tmp_path / f"images/{name}/{i}.png")
    settings: dict[str, Any] = {
        "model.img_size": 32,
        "train.epochs": 1,
        "train.batch": 4,
        "train.device": "cpu",
    }
    config = load_config(
        "debug",
        data=str(tmp_path / "images"),
        model="vit_c_tiny",
        **{**settings, "data.workers": 0},
    )
    other = train(config, tmp_path / "other", quiet=True).path
    with pytest.raises(DataError, match=r"2 classes that .*/other does not know") as caught:
        vitc.compare(place / "a", other)
    assert "Only models of the same classes" in str(caught.value)
    assert "--skip" not in str(caught.value)
