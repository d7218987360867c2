"""The run page: each of its numbers follows from the probabilities, and no name has power in it."""

from __future__ import annotations

import base64
import csv
import functools
import html
import itertools
import json
import math
import re
import shutil
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vitc
from tests.browser import Tags, measured
from tests.oracle import bounds, class_rows, cross_entropy, ece, invented, written
from vitc.cli.main import main
from vitc.config import to_saved
from vitc.data import copies
from vitc.data.sources.base import Split
from vitc.deploy import measures
from vitc.deploy.classifier import Classifier
from vitc.deploy.evaluation import (
    Evaluation,
    SplitLogits,
    evaluate,
    kept_fit,
    measure,
    predict_split,
)
from vitc.deploy.run_page import _below_all, exact, run_page, time_rows, write_page
from vitc.resolve import load_config
from vitc.runs.results import test_results as results_of_test
from vitc.training.loop import run as train
from vitc.views.model import (
    Chart,
    Figures,
    Heading,
    Line,
    Matrix,
    Page,
    Part,
    Table,
    Text,
    Thumbnails,
)

EVIL = ("<script>alert(1)<\u2215script>", '"it\'s" & {{7*7}}', "مرحبا\nline", "x" * 200)
COUNTS = {"train": 12, "val": 30, "test": 8}
SECRET = "SECRET-PLACE"


def blotches(rng: np.random.Generator, tint: int) -> Image.Image:
    coarse = (rng.integers(0, 160, (6, 8, 3)) + 20 * tint).astype(np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on JPEGs with EXIF, in classes of hostile names. Read-only."""
    place, rng = tmp_path_factory.mktemp("ran"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        for c, name in enumerate(EVIL):
            folder = place / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = blotches(rng, c)
                exif = image.getexif()
                exif[270], exif[274] = SECRET, 6  # description; turned by 90 degrees
                image.save(folder / f"{split}{i}.jpg", quality=95, exif=exif)
    seen = place / "images" / "train" / EVIL[1] / "train3.jpg"
    with Image.open(seen) as image:  # once more in validation, smaller
        image.resize((40, 30)).save(
            place / "images" / "val" / EVIL[1] / "copy.jpg", exif=image.getexif()
        )
    config = load_config(
        "debug",
        data=str(place / "images"),
        model="vit_p_tiny",
        **{"model.img_size": 16, "data.workers": 0, "train.batch": 8, "train.epochs": 2},
        **{"train.threads": 1, "train.device": "cpu", "train.log_every_steps": 1},
    )
    assert train(config, place / "run", quiet=True).status == "done"
    return place


@pytest.fixture(scope="module")
def found(ran: Path) -> Evaluation:
    with pytest.MonkeyPatch.context() as patch:  # all images are looked at, on a busy machine too
        patch.setattr(copies, "time", types.SimpleNamespace(monotonic=lambda: 0.0))
        return evaluate(ran / "run")


@pytest.fixture
def run(ran: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(ran / "run", tmp_path / "run")
    return tmp_path / "run"


def with_answers(
    e: Evaluation, labels: NDArray[np.int64], logits: NDArray[np.float32], classes: list[str]
) -> Evaluation:
    """Invented answers on the run's images, evaluated as a run's own."""
    classifier = Classifier.load(e.run, "cpu")
    found = predict_split(classifier)
    names = tuple(f"{i}.jpg" for i in range(len(labels)))
    pictures = found.pictures.take(np.arange(len(labels)) % len(found.pictures))
    pictures = replace(pictures, labels=labels, names=names)
    answers = SplitLogits(names, labels, logits, found.images, pictures)
    return measure(replace(classifier, classes=tuple(classes)), answers, e.run)


@functools.cache
def page_of(e: Evaluation) -> Page:
    return run_page(e, "c")


def parts(e: Evaluation, kind: type[Part]) -> Iterator[Any]:
    return (part for part in page_of(e).parts if isinstance(part, kind))


def table(e: Evaluation, title: str) -> list[list[str]]:
    rows = next(t.rows for t in parts(e, Table) if t.title.partition(",")[0] == title)
    return [list(row) for row in rows]


def texts(e: Evaluation) -> str:
    return "\n".join(part.text for part in parts(e, Text))


# -- every number ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, pytest.param(10, marks=pytest.mark.slow), 81])
def many(request: pytest.FixtureRequest, found: Evaluation) -> Evaluation:
    """Evaluations of 2, 10 and 81 classes."""
    k = request.param
    return with_answers(found, *invented(500, k, k), [f"class {i}" for i in range(k)])


def test_accuracy_is_beside_its_interval_and_the_largest_class(many: Evaluation) -> None:
    answers = many.probabilities.argmax(axis=1)
    right, n = int((answers == many.labels).sum()), len(many.labels)
    low, high = bounds(right, n)
    counts = [many.labels.tolist().count(c) for c in range(len(many.classes))]
    text = texts(many)
    assert f"{100 * right / n:.1f} % of 500 validation images" in text
    assert f"interval {low:.1f} to {high:.1f}" in text
    assert (
        f"class {counts.index(max(counts))}, would be correct for {max(counts) / 5:.1f} %" in text
    )


def test_classes_are_counted_worst_first_and_those_not_learnt_head_the_page(
    many: Evaluation,
) -> None:
    labels, answers = many.labels.tolist(), many.probabilities.argmax(axis=1).tolist()
    assert table(many, "Classes") == class_rows(labels, answers, list(many.classes))
    missed = [
        c
        for c in range(len(many.classes))
        if (n := labels.count(c))
        and sum(y == c == a for y, a in zip(labels, answers, strict=True)) <= 0.1 * n
    ]
    assert {c.name for c in many.not_learnt} == {f"class {c}" for c in missed}
    first = next(parts(many, Text)).text
    assert first.startswith("Not learnt") == bool(missed)


def test_a_class_without_a_hit_is_the_first_line(found: Evaluation) -> None:
    labels, logits = invented(120, 3)
    logits[:, 2] = -20
    e = with_answers(found, labels, logits, ["cat", "dog", "hat"])
    n = int((labels == 2).sum())
    assert next(parts(e, Text)).text == f"Not learnt: hat (0 of {n} correct)."
    assert table(e, "Classes")[0][:4] == ["hat", f"0 of {n}", written(0, n), "–"]


def test_confusions_are_counted(many: Evaluation) -> None:
    k, answers = len(many.classes), many.probabilities.argmax(axis=1).tolist()
    counts = [[0] * k for _ in range(k)]
    for y, a in zip(many.labels.tolist(), answers, strict=True):
        counts[y][a] += 1
    pairs = [(counts[i][j], i, j) for i in range(k) for j in range(k) if i != j and counts[i][j]]
    if k <= 30:
        assert next(parts(many, Matrix)).counts == counts
    else:
        shown = [row[2] for row in table(many, "Most confused")]
        most = sorted((c for c, _, _ in pairs), reverse=True)[:20]
        assert [int(s.split()[0]) for s in shown] == most
    heads = [h.text for h in parts(many, Heading) if "→" in h.text]
    for head in heads:
        i, j, count, n = map(int, re.findall(r"\d+", head))
        assert (counts[i][j], sum(counts[i])) == (count, n)
    assert len(heads) == min(6, len(pairs))


def test_worst_images_and_likely_label_errors(many: Evaluation) -> None:
    labels, probs = many.labels.tolist(), many.probabilities.astype(np.float64)
    wrong = [i for i, y in enumerate(labels) if probs[i].argmax() != y]
    wrong.sort(key=lambda i: probs[i][labels[i]])
    assert many.worst.tolist() == wrong
    k = len(many.classes)
    mean = [
        np.mean([probs[i][c] for i, y in enumerate(labels) if y == c]) if c in labels else np.inf
        for c in range(k)
    ]
    suspected = []
    for i in wrong:
        over = [c for c in range(k) if probs[i][c] >= mean[c]]
        if over and max(over, key=lambda c: probs[i][c]) != labels[i]:
            suspected.append(i)
    assert many.label_errors.tolist() == suspected
    shown = list(parts(many, Thumbnails))
    worst = next(t for t in shown if len(t.pictures) > 4)
    assert [p.caption[-1] for p in worst.pictures] == [f"{i}.jpg" for i in wrong[:24]]
    y, a = labels[wrong[0]], int(probs[wrong[0]].argmax())
    percent = f"{100 * probs[wrong[0]].max():.0f} %"
    about = [f"label: class {y}", f"answer: class {a}", f"confidence: {percent}"]
    assert list(worst.pictures[0].caption[:3]) == about


def test_an_exchanged_label_is_suspected_first() -> None:
    labels, logits = invented(300, 4)
    logits[np.arange(300), labels] += 6
    wrong = labels.copy()
    wrong[17] = (labels[17] + 1) % 4
    found = measures.likely_label_errors(wrong, measures.probabilities(logits))
    assert found[:1].tolist() == [17]


def test_calibration_before_and_after_the_temperature() -> None:
    labels, logits = invented(400, 5)
    fit = measures.fit(labels, logits, "val")
    c = measures.calibration(labels, logits, fit, np.ones(len(logits), np.bool_))
    assert c.ece == pytest.approx(ece(labels, measures.probabilities(logits)), abs=1e-3)
    grid = np.exp(np.linspace(-1, 2, 1500))
    best = grid[np.argmin([cross_entropy(labels, logits, t) for t in grid])]
    assert c.temperature == pytest.approx(best, rel=0.01)
    crossed = np.empty_like(logits)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    for half, other in ((even, odd), (odd, even)):
        t = grid[np.argmin([cross_entropy(labels[other], logits[other], t) for t in grid])]
        crossed[half] = measures.probabilities(logits[half], t)
    assert c.cross_fitted
    assert c.ece_after == pytest.approx(ece(labels, crossed), abs=1.0)
    assert c.ece_after is not None
    assert c.ece_after < c.ece
    elsewhere = measures.calibration(*invented(300, 5, 1), fit, None)
    assert not elsewhere.cross_fitted
    few = measures.fit(labels[:99], logits[:99], "val")
    assert few.temperature is None


def test_without_an_error_or_a_right_answer_there_is_no_temperature(found: Evaluation) -> None:
    labels, logits = invented(300, 4)
    answers = logits.argmax(axis=1)
    all_right = measures.fit(answers, logits, "val")
    assert (all_right.temperature, all_right.why) == (
        None,
        "all of the 300 images are classified correctly",
    )
    all_wrong = measures.fit((answers + 1) % 4, logits, "val")
    assert all_wrong.temperature is None
    assert "bound of the search, 0.01 to 100" in all_wrong.why
    assert "fewer than 100" in measures.fit(labels[:99], logits[:99], "val").why
    e = with_answers(found, answers, logits, [f"class {i}" for i in range(4)])
    note = next(f for f in parts(e, Figures) if f.title == "How sure it is").note
    assert "No temperature is fitted: all of the 300 images are classified correctly." in note
    one_half = answers.copy()  # errors among the odd ones alone: a temperature, not cross-fitted
    one_half[1:40:2] = (answers[1:40:2] + 1) % 4
    fit = measures.fit(one_half, logits, "val")
    c = measures.calibration(one_half, logits, fit, np.ones(len(logits), np.bool_))
    assert c.temperature is not None
    assert not c.cross_fitted


def test_a_threshold_is_typed_with_as_few_decimals_as_keep_the_same_answers() -> None:
    confidence = np.array([0.99988, 0.99987, 0.99465, 0.9943, 0.7], np.float32).astype(np.float64)
    right = np.array([True, True, True, False, False])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1)).astype(np.float32)
    fit = measures.fit(np.where(right, 0, 1), logits, "val")
    assert fit.thresholds == (0.9946, 0.9946, 0.9946)
    assert exact(fit.thresholds[0] or 0) == "0.9946"
    assert exact(0.5) == "0.500"
    one = measures.fit(np.zeros(3, np.int64), np.array([[50.0, 0.0]] * 3, np.float32), "val")
    assert one.thresholds == (1.0,) * 3


def test_the_reliability_of_the_page_is_that_of_the_bins(many: Evaluation) -> None:
    confidence = many.probabilities.max(axis=1)
    right = many.probabilities.argmax(axis=1) == many.labels
    figures = next(f for f in parts(many, Figures) if f.title == "How sure it is")
    assert f"{ece(many.labels, many.probabilities):.1f} points" in figures.note
    line = next(x for x in figures.charts[0].lines if x.label == "as trained")
    for x, y, low, high in zip(line.x, line.y, line.low, line.high, strict=True):
        b = math.ceil(x * 15 / 100) - 1
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        assert x == pytest.approx(100 * confidence[inside].mean(), abs=1e-3)
        assert y == pytest.approx(100 * right[inside].mean())
        assert (low, high) == pytest.approx(bounds(int(right[inside].sum()), int(inside.sum())))


def test_thresholds_reach_the_accuracy_with_the_most_answers(many: Evaluation) -> None:
    confidence = many.probabilities.max(axis=1).astype(np.float64)
    right = many.probabilities.argmax(axis=1) == many.labels
    for row, target in zip(table(many, "When to answer “unknown”"), (90, 95, 99), strict=True):
        good = [c for c in confidence if right[confidence >= c].mean() >= target / 100]
        if not good:
            assert row[1:] == ["not reached", "–", "–"]
            continue
        kept = confidence >= min(good)
        typed = float(row[1])
        assert 0 <= min(good) - typed < 0.001
        assert np.array_equal(confidence >= typed, kept)
        assert row == [
            f"{target} %",
            row[1],
            written(int(kept.sum()), len(kept)),
            written(int(right[kept].sum()), int(kept.sum())),
        ]
    for x, y in many.coverage.curve:
        most = np.sort(confidence)[::-1][round(x * len(right) / 100) - 1]
        assert y == pytest.approx(100 * right[confidence >= most].mean())


def test_the_time_is_the_runs(ran: Path) -> None:
    summary = json.loads((ran / "run" / "summary.json").read_text())
    spent = summary["time_spent"]
    assert set(spent) == {"preparing", "loading", "steps", "evaluation", "saving"}
    assert min(spent.values()) >= 0
    assert spent["steps"] + spent["loading"] <= summary["train_seconds"] + 0.1
    assert time_rows(summary)[0][0] == "training steps"
    assert time_rows({"train_seconds": 60.0})[0][1:] == ("1 min 00 s", "100 %")


# -- near duplicates -------------------------------------------------------------------------------


def test_a_smaller_copy_of_a_training_image_is_found(found: Evaluation) -> None:
    assert found.copies is not None
    assert found.train is not None
    names = [(found.names[i], found.train.names[j]) for i, j in found.copies.pairs]
    assert [(a.rpartition("/")[2], b.rpartition("/")[2]) for a, b in names] == [
        ("copy.jpg", "train3.jpg")
    ]
    assert (found.copies.held_out, found.copies.train) == (found.n, len(found.train))
    assert "with a near duplicate in training" in texts(found)


def test_looking_for_copies_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((1000, 8, 8, 3), np.uint8)
    many = Split(np.zeros(len(pixels), np.int64), [""] * len(pixels), pixels)
    ticks = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks) * 0.01)  # a tick an image
    monkeypatch.setattr(copies, "time", clock)
    looked_at = copies.near_copies(many, many, seconds=0.2)
    assert 5 <= looked_at.held_out <= 10
    assert 5 <= looked_at.train <= 10


# -- the file --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(found, "vitc evaluate RUN", tmp_path_factory.mktemp("page") / "page.html")


def test_the_numbers_of_the_page_are_in_the_file(page: Path, found: Evaluation) -> None:
    text = html.unescape(page.read_text(encoding="utf-8"))
    cells = {cell for t in parts(found, Table) for row in t.rows for cell in row}
    assert len(cells) > 20
    assert not [cell for cell in cells | set(texts(found).split("\n")) if cell not in text]


def test_hostile_names_are_text_and_nothing_is_loaded(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert not {"script", "iframe", "object", "link href"} & {tag for tag, _ in tags.seen}
    assert all(not name.startswith("on") for _, attrs in tags.seen for name in attrs)
    sources = [v for _, attrs in tags.seen for k, v in attrs.items() if k in ("src", "href")]
    assert all(v and v.startswith(("data:", "#")) for v in sources)
    assert "&lt;script&gt;" in text
    assert "{{7*7}}" in text
    assert "x" * 41 not in text


def test_thumbnails_are_upright_and_carry_no_metadata(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    jpegs = [base64.b64decode(b) for b in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)]
    assert len(jpegs) > 10
    assert not any(SECRET.encode() in jpeg or b"Exif" in jpeg for jpeg in jpegs)
    assert SECRET not in text
    held = page.with_suffix(".html").parent / "one.jpg"
    held.write_bytes(jpegs[0])
    with Image.open(held) as image:
        assert image.height > image.width  # stored on its side


def test_numbers_and_images_are_beside_it(page: Path, found: Evaluation) -> None:
    values = json.loads(page.with_suffix(".json").read_text())
    assert values["top1"] == found.top1
    assert [c["correct"] for c in values["per_class"]] == np.diag(found.confusion).tolist()
    with open(page.with_suffix(".csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.n
    for i, row in enumerate(rows):
        best = int(found.probabilities[i].argmax())
        assert row["label"] == sorted(EVIL)[int(found.labels[i])]
        assert row["answer"] == found.classes[best]
        assert float(row["confidence"]) == pytest.approx(float(found.probabilities[i, best]))
        assert row["likely_label_error"] == str(int(i in found.label_errors))


def test_test_results_are_kept_and_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run)]) == 0
    assert "have not been read" in (run / "report.html").read_text()
    assert main(["evaluate", str(run), "--split", "test", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["report"] == str(run / "report.html")
    kept = results_of_test(run)
    assert [(r["top1"], r["n"], r["split"]) for r in kept] == [(printed["top1"], 32, "test")]
    fit = json.loads((run / "report.json").read_text())["fit"]
    assert (fit["split"], fit["n"]) == ("val", 121)  # thresholds are not chosen on test
    assert main(["evaluate", str(run)]) == 0
    assert f"Test: {printed['top1']:.1f} % of 32 images" in (run / "report.html").read_text()
    saved = vitc.save_pretrained(run, run.parent / "saved")
    assert f"On 32 test images: top-1 {printed['top1']:.2f} %" in (saved / "README.md").read_text()
    evaluate(run, split="test")
    assert len(results_of_test(run)) == 2


def test_a_restarted_run_loses_its_results(run: Path) -> None:
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    config = load_config(run, **{"train.epochs": 1})
    train(config, run, overwrite=True, quiet=True)
    assert not [p for p in run.iterdir() if p.name.startswith(("report", "test"))]


def test_training_on_images_of_ones_own_makes_the_page(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(ran / "run", **{"train.epochs": 1})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_saved(config)))
    assert main(["train", str(file), "--out", str(tmp_path / "new")]) == 0
    assert f"Where it errs: {tmp_path / 'new' / 'report.html'}" in capsys.readouterr().out
    assert (tmp_path / "new" / "report.html").stat().st_size < 2_000_000


def test_other_images_get_a_page_where_one_is_asked_for(
    run: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, file = str(ran / "images" / "test"), run.parent / "other.html"
    assert main(["evaluate", str(run), images]) == 0
    assert not (run / "report.html").exists()
    assert main(["evaluate", str(run), images, "--report", str(file)]) == 0
    assert "near duplicate" not in file.read_text()  # of images that the run did not hold out
    assert main(["evaluate", str(run), "--report", "page.pdf"]) == 2
    assert "FILE.html" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--report", str(run / "no" / "page.html")]) == 1


def test_a_report_replaces_no_file_but_an_earlier_report(
    run: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, file = str(ran / "images" / "test"), tmp_path / "labels.html"
    words = ["evaluate", str(run), images, "--report", str(file)]
    for suffix, content in ((".csv", "image,label\na.jpg,cat\n"), (".json", '{"schema": 1}')):
        other = file.with_suffix(suffix)
        other.write_text(content)
        assert main(words) == 2
        assert f"would replace {other}, which is no earlier report" in capsys.readouterr().err
        assert other.read_text() == content
        assert not file.exists()
        other.unlink()
    assert main(words) == 0
    assert main([*words, "--against", str(run)]) == 0
    assert main([*words, "--against", str(run)]) == 0
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words[:2], str(tmp_path / "labels.csv"), *words[3:]]) == 2
    assert "which is the images to measure on" in capsys.readouterr().err


def test_the_page_of_the_folder_that_one_is_in_has_its_name(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    assert main(["evaluate", "."]) == 0
    assert "<title>run: 121 validation images" in Path("report.html").read_text()


def test_nothing_is_fitted_on_images_that_were_trained_on(run: Path, ran: Path) -> None:
    e = evaluate(run, str(ran / "images" / "train"))
    assert e.trained_on == e.n == 48
    assert e.fit.temperature is None
    assert (e.fit.n, e.fit.thresholds) == (0, ())
    assert "the model was trained on all of these images" in texts(e)
    assert not [t for t in parts(e, Table) if "unknown" in t.title]
    shutil.copytree(ran / "images" / "test", run.parent / "some")
    for i in range(3):
        shutil.copy(
            ran / "images" / "train" / EVIL[0] / f"train{i}.jpg", run.parent / "some" / EVIL[0]
        )
    some = evaluate(run, str(run.parent / "some"))
    assert (some.n, some.trained_on, some.fit.n) == (35, 3, 32)
    assert some.fit.thresholds == evaluate(run, str(ran / "images" / "test")).fit.thresholds


def test_a_temperature_at_a_bound_that_an_earlier_version_kept_is_none(run: Path) -> None:
    assert main(["evaluate", str(run)]) == 0
    values = json.loads((run / "report.json").read_text())
    values["fit"]["temperature"] = 0.010006
    (run / "report.json").write_text(json.dumps(values))
    fit = kept_fit(Classifier.load(run, "cpu"))
    assert fit is not None
    assert fit.temperature is None
    assert "bound" in fit.why


def test_a_page_that_cannot_be_written_does_not_spoil_the_evaluation(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").mkdir()
    assert main(["evaluate", str(run)]) == 0
    assert "report.html cannot be written" in capsys.readouterr().err


def test_files_of_strangers_stop_no_page(run: Path) -> None:
    state = {"step": 1}
    summary = {"time_spent": {"steps": "x"}, "versions": 3, **state, "status": "done"}
    fit = {"split": "val", "n": []}
    report = {"state": {**state, "weights": "ema"}, "fit": fit}
    files = {"summary.json": summary, "report.json": report, "test.json": {"results": 5}}
    for name, values in files.items():
        (run / name).write_text(json.dumps(values))
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(data | {"counts": 7}))
    assert evaluate(run, split="test").fit.split == "test"
    assert main(["evaluate", str(run)]) == 0


def test_a_saved_model_gets_a_page_of_other_images(run: Path, ran: Path) -> None:
    saved, file = vitc.save_pretrained(run, run.parent / "saved"), run.parent / "page.html"
    images = str(ran / "images" / "test")
    assert main(["evaluate", str(saved), images, "--report", str(file)]) == 0
    assert "32 images" in file.read_text()


@pytest.mark.slow
def test_ten_thousand_images_take_five_seconds_and_two_megabytes(
    found: Evaluation, tmp_path: Path
) -> None:
    labels, logits = invented(10_000, 81)
    started = time.process_time()
    e = with_answers(found, labels, logits, [f"class {i}" for i in range(81)])
    file = write_page(e, "c", tmp_path / "page.html")
    assert time.process_time() - started < 5
    assert file.stat().st_size < 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_without_sideways_scrolling(
    page: Path, tmp_path: Path, width: int
) -> None:
    loaded = "[...d.images].filter(i => i.naturalWidth > 10).length"
    drawn = "[...d.querySelectorAll('figure svg')].filter(s => s.clientHeight > 100).length"
    seen = measured(page, width, tmp_path, images=loaded, all="d.images.length", charts=drawn)
    assert seen["images"] == seen["all"] > 10
    assert seen["charts"] == 4
    assert seen["scroll"] <= seen["client"]


@pytest.mark.parametrize(("least", "top"), [(98.0, 100.06), (40.0, 100.5), (100.0, 100.5)])
def test_an_axis_of_percents_has_no_room_for_a_label_above_100(least: float, top: float) -> None:
    line = Line("", 0, [0.0, 1.0], [100.0, least])
    assert _below_all(Chart("c", "", "", "", [line])).ylim == (None, pytest.approx(top))
