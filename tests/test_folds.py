"""K runs with a validation part each: every image once, by models that did not see it; an ensemble
of all."""

from __future__ import annotations

import io
import itertools
import json
import os
import shlex
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitc
import vitc.training.auto as auto
from vitc.cli.main import main
from vitc.config import RunConfig
from vitc.data.dataset import open_data
from vitc.data.split import (
    TEST,
    TRAIN,
    VAL,
    hold_out,
    hold_out_fold,
    hold_out_fold_of_groups,
)
from vitc.deploy import measures
from vitc.deploy.classifier import Classifier
from vitc.deploy.evaluation import predict_split
from vitc.deploy.folds import Folds, plan_folds
from vitc.errors import CheckpointError, ConfigError, DataError, InterruptedRun
from vitc.resolve import load_config
from vitc.training.loop import RunResult
from vitc.training.validate import Validation

SMALL: dict[str, Any] = {
    "model.img_size": 32,
    "train.epochs": 1,
    "train.batch": 8,
    "train.threads": 1,
    "train.device": "cpu",
    "data.workers": 0,
}


def places(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], list[str]]:
    labels = np.random.default_rng(seed).integers(0, classes, count)
    labels[: 2 * classes] = np.repeat(np.arange(classes), 2)
    return labels, [f"{i}.jpg" for i in range(count)]


@pytest.mark.parametrize(("folds", "test"), [(2, 0.0), (5, 0.0), (5, 0.2), (10, 0.1)])
def test_every_image_validates_once_or_tests(folds: int, test: float) -> None:
    labels, names = places(203, 7)
    sides = [hold_out_fold(labels, names, folds, f, test, 3) for f in range(folds)]
    tested = sides[0] == TEST
    assert all(((side == TEST) == tested).all() for side in sides)
    assert (tested == (hold_out(labels, names, 0.0, test, 3) == TEST)).all()
    assert (sum((side == VAL).astype(int) for side in sides) == ~tested).all()
    sizes = [int((side == VAL).sum()) for side in sides]
    assert max(sizes) - min(sizes) <= 7  # classes
    for side, c in itertools.product(sides, range(7)):
        assert (labels[side == TRAIN] == c).any()
        many = int((labels[~tested] == c).sum())
        assert many // folds <= int((labels[side == VAL] == c).sum()) <= -(-many // folds)


@pytest.mark.parametrize("test", [0.0, 0.2])
def test_groups_stay_whole(test: float) -> None:
    labels, _ = places(300, 4)
    groups = [f"g{i}" for i in np.random.default_rng(1).integers(0, 60, 300)]
    sides = [hold_out_fold_of_groups(labels, groups, 5, f, test, 0) for f in range(5)]
    tested = sides[0] == TEST
    assert (sum((side == VAL).astype(int) for side in sides) == ~tested).all()
    for side in sides:
        assert len(set(zip(groups, side.tolist(), strict=True))) == len(set(groups))
        share = (side == VAL).sum() / (~tested).sum()
        assert 0.15 < share < 0.25


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for c in range(2):
        folder = tmp_path / "photos" / f"class_{c}"
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 120, (36, 36, 3)).astype(np.uint8)
            pixels[..., c] += np.uint8(60)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The choice of settings is replaced by small ones; returns (budget, runs) of each."""
    calls: list[Any] = []

    def propose(
        folder: Path, budget: float | None, settings: Any, start: str, runs: int
    ) -> auto.Proposal:
        calls.append((budget, runs))
        own = {**SMALL, "model": "vit_c_tiny", **settings}
        config = load_config(RunConfig(name="photos"), data=str(folder), **own)
        return auto.Proposal(config, ["model: small — because few"], 5.0, 10**6)

    monkeypatch.setattr(auto, "propose", propose)
    return calls


def test_folds_are_trained_measured_resumed_extended_and_predict_together(
    images: Path, asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = vitc.train(images, out, budget="1m", folds=2)
    assert asked == [(60.0, 2)]
    assert (result.status, result.report) == ("done", out / "report.html")
    runs = [out / f"seed_1_fold_{fold}" for fold in (1, 2)]
    single = [vitc.evaluate(run) for run in runs]
    e = result.evaluation
    assert (e.n, e.split, e.trained_on) == (40, "all", 0)
    for one in single:
        rows = [e.names.index(name) for name in one.names]
        assert np.abs(e.probabilities[rows] - one.probabilities).max() < 1e-5
    assert e.top1 == pytest.approx(sum(one.top1 for one in single) / 2)
    page = (out / "report.html").read_text()
    assert "One model alone" in page
    assert "for the confidence of a single model of the folds" in page
    assert "that vitc predict prints" not in page
    # an ensemble: the mean of the probabilities
    photo = str(images / "class_0" / "3.png")
    mean = np.mean([vitc.Predictor(run)(photo).probs for run in runs], axis=0)
    assert vitc.Predictor(out)(photo).probs == pytest.approx(mean, abs=1e-6)
    # every image was trained on by one of its models, and none is held out from all
    again = vitc.evaluate(out, str(images))
    assert (again.split, again.n, again.trained_on) == ("all", 40, 40)
    assert again.fit.thresholds == ()
    with pytest.raises(DataError, match=r"not trained on the same: .*fold_1 on 0, .*out on 20"):
        vitc.compare(runs[0], out)
    with pytest.raises(ConfigError, match="2 models were together trained on all") as refused:
        vitc.export(out, tmp_path / "mine.pt2")
    assert "mine.pt2 --data FOLDER" in (refused.value.hint or "")
    # the same command again trains nothing; more seeds train these alone
    before = [(run / "summary.json").stat().st_mtime_ns for run in runs]
    capsys.readouterr()
    words = ["train", str(images), "--out", str(out), "--folds", "2", "--seeds", "2"]
    assert main([*words, "--json"]) == 0
    assert asked == [(60.0, 2)]
    assert [(run / "summary.json").stat().st_mtime_ns for run in runs] == before
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(summary["runs"]) == [f"seed_{s}_fold_{f}" for s in (1, 2) for f in (1, 2)]
    assert "for the confidence of the mean of 2 models of the" in (out / "report.html").read_text()
    assert main(["evaluate", str(out)]) == 0
    assert f"{summary['top1']:.2f} %" in capsys.readouterr().out


def test_copies_that_a_model_was_trained_on_are_counted_and_nothing_is_fitted_on_them(
    images: Path, asked: list[Any], tmp_path: Path
) -> None:
    for c, i in itertools.product(range(2), range(8)):
        shutil.copy(images / f"class_{c}" / f"{i}.png", images / f"class_{c}" / f"{i}_again.png")
    result = vitc.train(images, tmp_path / "out", folds=2)
    found = [predict_split(Classifier.load(tmp_path / "out" / f"seed_1_fold_{f}")) for f in (1, 2)]
    seen = {n for one in found for n, was in zip(one.names, one.seen, strict=True) if was}
    e = result.evaluation
    assert e.n == 56
    assert e.trained_on == len(seen) > 0
    note = f"{len(seen)} of the 56 images measured on were trained on (the same content)"
    assert [text.partition(":")[0] for text in e.notes[2:]] == [note]
    assert note in (tmp_path / "out" / "report.html").read_text()
    for file in ("report.json", "summary.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["trained_on"] == len(seen)
    rest = np.array([name not in seen for name in e.names])
    alone = measures.fit(e.labels[rest], np.log(e.probabilities[rest]), "all")
    assert (e.fit.n, e.fit.thresholds) == (56 - len(seen), alone.thresholds)
    assert e.fit.temperature == pytest.approx(alone.temperature)


def test_choices_and_warnings_reach_every_run_and_the_page_of_folds_when_resumed_too(
    images: Path, asked: list[Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    why = "model: small — because few"
    vitc.train(images, out, folds=2)
    assert json.loads((out / "folds.json").read_text())["notes"] == [why]
    shutil.rmtree(out / "seed_1_fold_2")
    (out / "report.html").unlink()
    vitc.train(images, out, folds=2)
    for fold in (1, 2):
        assert (out / f"seed_1_fold_{fold}" / "events.log").read_text().count(why) == 1
    page = (out / "report.html").read_text()
    assert page.count("Choices and events") == page.count(why) == 1
    values = json.loads((out / "folds.json").read_text())
    del values["notes"]  # as earlier versions wrote it
    (out / "folds.json").write_text(json.dumps(values))
    vitc.train(images, out, folds=2)
    assert "Choices and events" not in (out / "report.html").read_text()
    assert len(asked) == 1


def test_the_page_of_folds_notes_that_weights_were_chosen_on_the_images_measured_on(
    images: Path, asked: list[Any], tmp_path: Path
) -> None:
    note = "The weights in 2 of 2 runs are the best of 2 evaluations on the images that were held"
    patient = {"train.patience": 5, "train.epochs": 2, "train.eval_every_epochs": 1}
    e = vitc.train(images, tmp_path / "best", folds=2, **patient).evaluation
    assert [text.startswith(note) for text in e.notes] == [False, False, True]
    assert note in (tmp_path / "best" / "report.html").read_text()
    assert len(vitc.train(images, tmp_path / "last", folds=2).evaluation.notes) == 2


def test_folds_that_were_stopped_are_no_classifier_and_name_the_command_that_resumes_all(
    images: Path, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    words = ["vitc", "train", str(images), "--out", str(out), "--folds", "2", "--seeds", "1"]
    command = shlex.join(words)

    def stop(self: Validation, provider: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as stopping:
        stopping.setattr(Validation, "measure", stop)
        with pytest.raises(InterruptedRun) as stopped:
            vitc.train(images, out, folds=2)
    assert (stopped.value.hint, stopped.value.run_exit_code) == (f"Resume with: {command}", 143)
    for extra in ([], ["--budget", "1m"]):
        assert main(["train", str(out), *extra]) == 2
        assert command in capsys.readouterr().err
    vitc.train(images, out, folds=2)
    shutil.rmtree(out / "seed_1_fold_2")
    for verb in (["predict", str(out), str(images)], ["evaluate", str(out)]):
        assert main(verb) == 1
        shown = capsys.readouterr().err
        assert f"{out} has 1 unfinished run of 2: seed_1_fold_2." in shown
        assert command in shown


def test_folds_from_elsewhere_with_a_custom_class_run_once_they_are_trusted(
    images: Path, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file, out = tmp_path / "my_stem.py", tmp_path / "out"
    file.write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self, in_chans, embed_dim):\n"
        "        super().__init__()\n"
        "        self.reduction = 8\n"
        "        self.conv = torch.nn.Conv2d(in_chans, embed_dim, 8, 8)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x)\n"
    )
    vitc.train(images, out, folds=2, **{"model.stem": f"{file}:Mine"})
    file.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    monkeypatch.setenv("VITC_TRUSTED", "")
    words = ["predict", str(out), str(images / "class_0" / "3.png")]
    assert main(words) == 2
    assert "repeat the command with --trust" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0
    assert capsys.readouterr().err.count("trusted: ") == 1
    assert main(words) == 0


@pytest.mark.parametrize(("answer", "agreed"), [("\n", True), ("n\n", False), (None, False)])
def test_somebody_at_a_terminal_is_asked_about_groups_before_the_folds_are_drawn(
    answer: str | None,
    agreed: bool,
    images: Path,
    asked: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    propose, trained = auto.propose, list[Folds]()

    def with_groups(folder: Path, budget: Any, settings: Any, start: str, runs: int) -> Any:
        group = "" if "data.group" in settings else "/([0-9])"
        return replace(propose(folder, budget, settings, start, runs=runs), group=group)

    def train_folds(folds: Folds) -> RunResult:
        trained.append(folds)
        return RunResult(folds.path, "done", 50.0, {}, None, SimpleNamespace(n=40))

    monkeypatch.setattr(auto, "propose", with_groups)
    monkeypatch.setattr(vitc.deploy.folds, "train_folds", train_folds)
    terminal = io.StringIO(answer or "y\n")
    monkeypatch.setattr(terminal, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    words = ["train", str(images), "--out", str(tmp_path / "out"), "--folds", "2"]
    assert main(words) == 0
    shown = capsys.readouterr().err
    assert "will be too good. Keep them together: --data.group '/([0-9])'" in shown
    assert ("[Y/n]" in shown) == (answer is not None)
    assert trained[0].config.data.group == ("/([0-9])" if agreed else None)
    assert len(asked) == 1 + agreed


def test_other_folds_in_a_folder_are_refused(
    images: Path, asked: list[Any], tmp_path: Path
) -> None:
    plan_folds(images, tmp_path / "out", (3, 1), None, "auto", {})[0].write()
    with pytest.raises(ConfigError, match="holds 3 folds"):
        vitc.train(images, tmp_path / "out", folds=2)
    with pytest.raises(CheckpointError, match="out has 3 unfinished runs of 3: seed_1_fold_1, "):
        vitc.Predictor(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"another config: optim\.lr: .* -> 0\.5"):
        vitc.train(images, tmp_path / "out", folds=3, **{"optim.lr": 0.5})
    # What was decided when they started, as where the first command had it.
    repeated = {"train.precision": "auto"}
    _, notes, _ = plan_folds(images, tmp_path / "out", (3, 1), 60.0, "scratch", repeated)
    assert [note.split(" has no effect")[0] for note in notes[1:]] == ["--budget", "--start"]


@pytest.mark.parametrize(
    ("folds", "group", "most"), [(30, {}, 21), (12, {"data.group": r"/(\d)"}, 10)]
)
def test_more_folds_than_there_are_images_for_are_refused_before_training(
    folds: int, group: dict[str, str], most: int, images: Path, asked: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"only {most} folds would have images") as refused:
        vitc.train(images, tmp_path / "out", folds=folds, **group)
    assert (refused.value.hint, asked) == (f"Use --folds {most}, or fewer.", [])
    assert not (tmp_path / "out").exists()
    plan_folds(images, tmp_path / "out", (most, 1), None, "auto", group)


def test_settings_are_chosen_for_the_fold_with_the_fewest_training_images(
    asked: list[Any], tmp_path: Path
) -> None:
    for c, i in itertools.product(range(3), range(5)):
        (tmp_path / "few" / f"class_{c}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (36, 36), (i, c, 0)).save(tmp_path / "few" / f"class_{c}" / f"{i}.png")
    folds, *_ = plan_folds(tmp_path / "few", tmp_path / "out", (7, 1), None, "auto", {})
    counts = [len(open_data(run.data).splits["train"]) for run in folds.runs().values()]
    assert counts[folds.config.data.fold - 1] == min(counts) < counts[0]  # so is its batch


def test_a_folder_with_something_else_gets_no_folds(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not empty, and holds no folds"):
        vitc.train(images, tmp_path / "run", folds=2)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "words", [["--split", "test"], ["--weights", "raw"], ["--skip-unknown-classes"]]
)
def test_options_that_cannot_take_effect_on_folds_are_refused(
    words: list[str], images: Path, asked: list[Any], tmp_path: Path, capsys: Any
) -> None:
    plan_folds(images, tmp_path / "out", (2, 1), None, "auto", {})[0].write()
    assert main(["evaluate", str(tmp_path / "out"), *words]) == 2
    assert f"{words[0]} has no effect on folds" in capsys.readouterr().err


@pytest.mark.parametrize(("folds", "seeds"), [(1, None), (3, 0)])
def test_numbers_that_are_no_folds_are_refused(folds: int, seeds: int | None, images: Path) -> None:
    with pytest.raises(ConfigError, match="there must be 2 folds or more"):
        vitc.train(images, folds=folds, seeds=seeds)


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--overwrite"]])
def test_seeds_without_folds_are_refused(words: list[str], images: Path, capsys: Any) -> None:
    assert main(["train", str(images), "--seeds", "2", *words]) == 2
    assert "--seeds 2 has no effect without --folds." in capsys.readouterr().err


def test_what_folds_cannot_do_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("overwrite", "allow_changed_data"):
        with pytest.raises(ConfigError, match=f"{option.replace('_', '-')} has no effect"):
            vitc.train(images, folds=2, **{option: True})
    assert main(["train", str(images), "--folds", "2", "--dry-run"]) == 2
    assert "--dry-run has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["data.folds", "data.fold", "data.val_fraction"])
def test_settings_that_folds_override_are_refused(
    name: str, images: Path, asked: list[Any], tmp_path: Path
) -> None:
    value = 0.5 if name == "data.val_fraction" else 2
    with pytest.raises(ConfigError, match=f"--{name} {value} has no effect with --folds 3"):
        vitc.train(images, tmp_path / "out", folds=3, **{name: value})
    assert (asked, (tmp_path / "out").exists()) == ([], False)


def test_folds_need_images_without_validation_of_their_own(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--folds needs images"):
        vitc.train("debug", folds=3)
    for c in range(2):
        for split, count in {"train": 4, "val": 2}.items():
            folder = tmp_path / "split" / split / f"class_{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, c, count)).save(folder / f"{i}.png")
    config = load_config(RunConfig(), data=str(tmp_path / "split"), **{"data.folds": 2})
    with pytest.raises(ConfigError, match="validation images of their own"):
        open_data(config.data)
    with pytest.raises(ConfigError, match=r"data\.fold 3 must be at most"):
        load_config(RunConfig(), data="fashion", **{"data.folds": 2, "data.fold": 3})
