"""Studies on changed images: refused before trials are run and in reports, unless allowed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.invented import done, invent, write_trial
from tests.test_identity import CHANGES, exchange, plant
from vitc.cli.main import main
from vitc.data.dataset import open_data
from vitc.data.identity import to_bytes
from vitc.errors import ConfigError, DataError
from vitc.runs.images import LISTING, record_of
from vitc.study import runner
from vitc.study.analysis import analyse
from vitc.study.design import Plan, Trial
from vitc.study.measures.hparams import hparams_plan
from vitc.study.runner import conduct
from vitc.study.study_folder import StudyFolder

MODELS = ["vit_c_tiny", "vit_p_tiny"]


def plan(images: Path, draws: int = 2, **settings: Any) -> Plan:
    settings = {"train.epochs": 1, "train.batch": 4, "data": str(images), **settings}
    return hparams_plan(
        ["debug"], settings.pop("models", MODELS), ["adamw"], draws=draws, **settings
    )


def see(folder: StudyFolder, trial: Trial) -> None:
    """Give a trial without a record the one of the images as they are now."""
    run = folder.trial(trial)
    if (run / "data.json").exists():
        return
    data = open_data(trial.config.data)
    record = {**record_of(data), "counts": {k: len(s) for k, s in data.splits.items()}}
    (run / "data.json").write_text(json.dumps(record))
    (run / "images.npz").write_bytes(to_bytes(data.images))
    if (run / "summary.json").exists():
        summary = json.loads((run / "summary.json").read_text())
        summary["data_fingerprint"] = record["fingerprint"]
        (run / "summary.json").write_text(json.dumps(summary))


def made(path: Path, of: Plan) -> StudyFolder:
    """A study whose trials have ended on the images as they are now."""
    folder = StudyFolder(path)
    invent(folder, of, lambda trial: 20.0 + trial.draw)
    for trial in of.trials():
        see(folder, trial)
    return folder


@pytest.fixture
def run_trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """`conduct` makes results up at once; the trials that it ran."""
    ran: list[Trial] = []

    def made_up(folder: StudyFolder, _: Plan, trials: list[Trial], *a: Any, **k: Any) -> None:
        for trial in trials:
            ran.append(trial)
            write_trial(folder, trial, done(70.0))
            see(folder, trial)

    monkeypatch.setattr(runner, "_run", made_up)
    monkeypatch.setattr(runner, "_same_machine", lambda *a: None)
    return ran


@pytest.mark.parametrize("kind", sorted(set(CHANGES) - {"removed"}))
def test_a_study_is_not_extended_on_changed_images_unless_allowed(
    kind: str, tmp_path: Path, run_trials: list[Trial]
) -> None:
    change, text = CHANGES[kind]
    images = plant(tmp_path / "images")
    folder = made(tmp_path / "s", plan(images))
    change(images)
    before = (folder.path / "plan.json").read_bytes()
    with pytest.raises(DataError, match=text):
        conduct(folder, plan(images, 3), quiet=True)
    assert (folder.path / "plan.json").read_bytes() == before
    conduct(folder, plan(images, 3), quiet=True, allow_changed_data=True)
    assert [t.draw for t in run_trials] == [2, 2]
    assert any("images changed" in e["what"] for e in folder.read()[1]["history"])
    with pytest.raises(DataError, match=text):
        analyse([folder.path])
    (section,) = analyse([folder.path], allow_changed_data=True)
    assert "different images" in section.finding.warnings[0]
    assert [r.error for r in section.results].count(None) == 0  # in each draw the same images


def test_a_trial_without_a_record_of_its_images_is_noted(tmp_path: Path) -> None:
    folder = made(tmp_path / "study", plan(plant(tmp_path / "images")))
    assert not [
        n for n in analyse([folder.path])[0].finding.warnings if "record of the images" in n
    ]
    trial = folder.trial(next(iter(folder.read()[0].trials())))
    (trial / "data.json").unlink()
    summary = json.loads((trial / "summary.json").read_text())
    del summary["data_fingerprint"]
    (trial / "summary.json").write_text(json.dumps(summary))
    (note,) = [n for n in analyse([folder.path])[0].finding.warnings if "record of the images" in n]
    assert note.startswith(f"1 trial without a record of the images, {trial.name}")


def test_draws_on_different_images_are_left_out(tmp_path: Path) -> None:
    images = plant(tmp_path / "images")
    folder = made(tmp_path / "s", plan(images))
    exchange(images)
    trial = next(iter(plan(images).trials()))
    (folder.trial(trial) / "data.json").unlink()
    see(folder, trial)
    with pytest.raises(DataError, match="2 exchanged"):
        analyse([folder.path])
    (section,) = analyse([folder.path], allow_changed_data=True)
    left_out = [r for r in section.results if r.error is None]
    assert {(r.draw, r.status) for r in left_out} == {(trial.draw, "left out")}
    assert len(left_out) == 2
    assert "2 trials" in section.finding.warnings[0]


def test_unfinished_trials_on_other_images_are_begun_again(
    tmp_path: Path, run_trials: list[Trial]
) -> None:
    images = plant(tmp_path / "images")
    folder = made(tmp_path / "s", plan(images))
    trial = next(iter(plan(images).trials()))
    (folder.trial(trial) / "summary.json").unlink()
    exchange(images)
    with pytest.raises(DataError, match="2 exchanged"):
        conduct(folder, plan(images), quiet=True)
    assert folder.trial(trial).exists()
    conduct(folder, plan(images), quiet=True, allow_changed_data=True)
    record = json.loads((folder.trial(trial) / "data.json").read_text())
    assert record["fingerprint"] == open_data(trial.config.data).fingerprint


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_the_images_of_a_study_may_move(how: str, tmp_path: Path, run_trials: list[Trial]) -> None:
    images, other = plant(tmp_path / "images"), tmp_path / "elsewhere"
    folder = made(tmp_path / "s", plan(images))
    ids = [t.id for t in plan(images).trials()]
    (shutil.move if how == "moved" else shutil.copytree)(images, other)
    conduct(folder, plan(other, 3), quiet=True)
    assert [t.config.data.path for t in run_trials] == [str(other)] * 2
    again, record = folder.read()
    assert [t.id for t in again.trials()][: len(ids)] == ids
    assert {t.config.data.path for t in again.trials()} == {str(other)}
    assert any("are in" in e["what"] for e in record["history"])
    assert len(analyse([folder.path])) == 1


def test_other_images_elsewhere_are_refused_though_no_trial_is_left(
    tmp_path: Path, run_trials: list[Trial]
) -> None:
    images = plant(tmp_path / "images")
    folder = made(tmp_path / "s", plan(images))
    other = plant(tmp_path / "other", first=50)
    with pytest.raises(DataError, match="removed"):
        conduct(folder, plan(other), quiet=True)
    with pytest.raises(ConfigError, match=r"data\.val_fraction"):
        conduct(folder, plan(images, **{"data.val_fraction": 0.3}), quiet=True)
    assert not run_trials


def two(tmp_path: Path, between: Callable[[Path], None], moved: bool) -> list[Path]:
    """Two studies, each of one contender, and what happened to the images between them."""
    images = plant(tmp_path / "images")
    first = made(tmp_path / "a", plan(images, models=MODELS[:1]))
    if moved:
        images = Path(shutil.move(images, tmp_path / "elsewhere"))
    between(images)
    return [first.path, made(tmp_path / "b", plan(images, models=MODELS[1:])).path]


def test_studies_on_changed_images_are_not_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = two(tmp_path, exchange, moved=False)
    with pytest.raises(DataError, match="2 exchanged"):
        analyse(folders)
    words = ["report", *map(str, folders), "--out", str(tmp_path / "both")]
    assert main(words) == 2
    assert "--allow-changed-data" in capsys.readouterr().err
    sections = analyse(folders, allow_changed_data=True)
    assert len(sections) == 2
    assert "not compared: 2 exchanged" in sections[1].finding.warnings[0]


def test_studies_on_the_same_images_elsewhere_are_joined_and_on_others_they_are_not(
    tmp_path: Path,
) -> None:
    (section,) = analyse(two(tmp_path / "same", lambda images: None, moved=True))
    assert len(section.plan.contenders) == 2
    _, second = analyse(two(tmp_path / "others", exchange, moved=True))
    assert "2 exchanged" in second.finding.warnings[0]


def test_trials_of_an_earlier_version_are_compared_by_names_and_sizes(tmp_path: Path) -> None:
    images = plant(tmp_path / "images")
    folder = made(tmp_path / "s", plan(images))
    for trial in plan(images, 1).trials():  # the first draw, as an earlier version wrote it
        run = folder.trial(trial)
        record = json.loads((run / "data.json").read_text())
        summary = json.loads((run / "summary.json").read_text())
        old = {"fingerprint": record[LISTING], "counts": record["counts"]}
        (run / "data.json").write_text(json.dumps(old))
        (run / "summary.json").write_text(
            json.dumps({**summary, "data_fingerprint": record[LISTING]})
        )
        (run / "images.npz").unlink()
    (section,) = analyse([folder.path])
    assert "different images" not in " ".join(section.finding.warnings)
    (images / "cat" / "00.bmp").unlink()
    with pytest.raises(DataError, match=r"then, .* now"):
        conduct(folder, plan(images, 3), quiet=True)


def test_contenders_on_different_data_are_named_first(tmp_path: Path) -> None:
    a, b = plant(tmp_path / "one"), plant(tmp_path / "two", first=50)
    groups = (plan(a).groups[0], plan(b).groups[1])
    mixed = hparams_plan(["debug"], MODELS, ["adamw"], draws=2, data=str(a))
    folder = made(tmp_path / "s", dataclasses.replace(mixed, groups=groups))
    (section,) = analyse([folder.path], allow_changed_data=True)
    assert "different data" in " ".join(section.finding.warnings)
