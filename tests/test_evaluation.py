"""`vitc.evaluate`: the numbers of a run's own evaluation, by class, of a run or a saved model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitc
from tests.oracle import invented
from vitc.cli.main import main
from vitc.data.preprocessing import Preprocessing
from vitc.deploy import measures
from vitc.deploy.classifier import Classifier
from vitc.deploy.evaluation import evaluate, measure, predict_split
from vitc.errors import CheckpointError, ConfigError
from vitc.runs.folder import Run
from vitc.training.evaluate import Counts, evaluate_run


def test_it_has_the_numbers_of_the_runs_last_evaluation_and_adds_up(trained: Path) -> None:
    found = vitc.evaluate(trained)
    assert found.to_dict() == evaluate_run(trained)
    last = Run(trained).metrics("eval")[-1]
    assert (found.n, found.top1) == (last["n"], last["top1"])
    assert found.interval[0] < found.top1 < found.interval[1]
    correct = sum(c.correct for c in found.per_class)
    assert found.top1 == pytest.approx(100 * correct / found.n)
    assert sum(c.n for c in found.per_class) == found.confusion.sum() == found.n
    assert [c.correct for c in found.per_class] == np.diag(found.confusion).tolist()
    raw = evaluate(trained, weights="raw")
    assert raw.top1 == last["top1_raw"]


def test_weights_are_called_what_they_are(trained: Path) -> None:
    ema = Classifier.load(trained, "cpu")
    assert (ema.average, ema.name.rpartition(", ")[2]) == ("EMA", "EMA weights")
    raw = Classifier.load(trained, "cpu", "raw")
    assert (raw.average, raw.name.rpartition(", ")[2]) == ("", "last weights")
    optim = replace(ema.config.optim, ema=replace(ema.config.optim.ema, kind="none"))
    without = replace(ema, config=replace(ema.config, optim=optim))
    assert without.average == ""
    assert replace(ema, run=None).average is None
    found = evaluate(trained)
    assert found.measured_on == f"{found.n:,} validation images, EMA weights"
    assert replace(found, average="").measured_on.endswith(" images, last weights")
    assert replace(found, average=None, split="all").measured_on == f"{found.n:,} images"


def test_a_split_has_a_name_a_label_and_logits_for_every_image(trained: Path) -> None:
    classifier = Classifier.load(trained, "cpu")
    found = predict_split(classifier, split="test")
    assert len(set(found.names)) == len(found.labels) == len(found.logits)
    assert found.logits.shape[1] == len(classifier.classes)
    with pytest.raises(ConfigError, match="no train2 images"):
        predict_split(classifier, split="train2")


def test_answers_that_are_not_finite_are_no_result(trained: Path, tmp_path: Path) -> None:
    model = vitc.from_pretrained(vitc.save_pretrained(trained, tmp_path / "saved"))
    model.get_parameter("head.bias").data[0] = float("nan")
    classifier = replace(Classifier.load(trained, "cpu"), model=model)
    with pytest.raises(CheckpointError, match=r"not finite: 1 of 10 numbers of head\.bias"):
        predict_split(classifier)


def test_images_that_cannot_be_read_are_named_and_not_counted(
    trained: Path,
    photo_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved = vitc.save_pretrained(
        vitc.create_model("vit_p_tiny", num_classes=3, img_size=32, in_chans=3),
        tmp_path / "saved",
        classes=[f"class_{i}" for i in range(3)],
        preprocessing=Preprocessing(
            mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bilinear", crop=1.0, img_size=(32, 32)
        ),
    )
    images, file = photo_folder(count=5), tmp_path / "page.html"
    (images / "class_1" / "003.jpg").write_bytes(b"no image")
    good = (images / "class_2" / "004.jpg").read_bytes()
    (images / "class_2" / "004.jpg").write_bytes(good[: len(good) // 2])
    words = ["evaluate", str(saved), str(images), "--report", str(file)]
    assert main(words) == 1
    assert "vitc evaluate with --skip-broken" in capsys.readouterr().err
    assert main([*words, "--skip-broken"]) == 0
    note = "2 of 15 images could not be read: class_1/003.jpg, class_2/004.jpg."
    shown = capsys.readouterr().out
    assert note in caplog.text
    assert ": 13 images" in shown
    assert "all 1" not in shown
    assert note in file.read_text()
    assert "--skip-broken" in file.read_text()
    assert note in json.loads(file.with_suffix(".json").read_text())["notes"]
    both = vitc.compare(saved, saved, str(images), skip_broken=True)
    assert both.paired.n == 13
    assert note in both.a.notes


def test_a_saved_model_answers_as_its_run(trained: Path, tmp_path: Path) -> None:
    saved = vitc.save_pretrained(trained, tmp_path / "saved")
    mine, theirs = (evaluate(path, data="synthetic") for path in (trained, saved))
    assert theirs.top1 == mine.top1
    assert theirs.loss == pytest.approx(mine.loss)
    with pytest.raises(ConfigError, match="has no effect"):
        evaluate(saved, weights="raw")


def test_of_equal_logits_the_first_is_the_answer_as_in_the_confusion_matrix() -> None:
    counts = Counts(torch.device("cpu"))
    logits = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)).bfloat16().round()
    labels = torch.arange(500) % 12
    counts.add(logits, labels)
    right = logits.float().numpy().argmax(axis=1) == labels.numpy()
    assert counts.result()["top1"] == pytest.approx(100 * right.mean())


def test_a_temperature_of_a_part_of_the_images_is_cross_fitted_on_these(trained: Path) -> None:
    """The others are those that the model was trained on."""
    classifier = Classifier.load(trained, "cpu")
    found = predict_split(classifier)
    n, k = found.logits.shape
    labels, logits = invented(n, k)
    seen = np.arange(n) % 10 == 3
    part = replace(found, labels=labels, logits=logits, seen=seen)
    e = measure(classifier, part, str(trained), look_for_copies=False)
    c, rest = e.calibration, np.flatnonzero(~seen)
    fitted = measures.best_temperature(labels[rest], logits[rest])
    assert (c.temperature, c.cross_fitted, e.fit.n) == (fitted, True, len(rest))
    probs = measures.probabilities(logits, fitted or 0.0)
    for half, other in ((rest[::2], rest[1::2]), (rest[1::2], rest[::2])):
        t = measures.best_temperature(labels[other], logits[other])
        probs[half] = measures.probabilities(logits[half], t or 0.0)
    assert c.ece_after == pytest.approx(measures.calibration_error(labels, probs)[1])
