"""Which trials of a study keep their checkpoints: never too few, whoever removes and is killed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.invented import HERE, done, write_trial
from tests.test_study import plan
from vitc.cli.main import main
from vitc.errors import ConfigError
from vitc.study.design import Plan, Trial
from vitc.study.kept import disk_line, drop_checkpoints
from vitc.study.runner import conduct
from vitc.study.study_folder import Keep, StudyFolder

PLAN = plan(4)  # two contenders, draw by draw
TRIALS = list(PLAN.trials())


def study(path: Path, keep: Keep | None = None, made: Plan = PLAN) -> StudyFolder:
    folder = StudyFolder(path / "s")
    folder.start(made, HERE, "vitc study", keep)
    return folder


def end(folder: StudyFolder, trial: Trial, summary: dict[str, object], second: int) -> None:
    """A trial that has ended, or is running, and has a checkpoint of 1 MB."""
    write_trial(folder, trial, summary)
    checkpoint = folder.trial(trial) / "checkpoints" / "step_40"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(10**6))
    if summary:
        os.utime(folder.trial(trial) / "summary.json", (second, second))


def holding(folder: StudyFolder) -> set[int]:
    """The trials that have checkpoints, by their place in the plan."""
    return {i for i, t in enumerate(TRIALS) if (folder.trial(t) / "checkpoints").exists()}


TOP1 = [50.0, 70.0, 60.0, 70.0, 60.0, None, 40.0, 65.0]  # of the contenders in turn; None: diverged


def ended(folder: StudyFolder) -> None:
    for i, (trial, top1) in enumerate(zip(TRIALS, TOP1, strict=True)):
        end(folder, trial, {"status": "diverged"} if top1 is None else done(top1), i)


@pytest.mark.parametrize(
    ("keep", "left"),
    [(0, {1, 2}), (2, {1, 2, 6, 7}), (3, {1, 2, 5, 6, 7}), (8, {*range(8)}), ("all", {*range(8)})],
)
def test_the_best_of_each_group_and_the_last_keep_them(
    keep: Keep, left: set[int], tmp_path: Path
) -> None:
    folder = study(tmp_path)
    ended(folder)
    drop_checkpoints(folder, TRIALS, keep)
    assert holding(folder) == left
    assert f"{len(left)}.0 MB of it checkpoints of {len(left)} of 8 trials" in disk_line(
        folder, TRIALS, keep
    )


def test_what_may_be_resumed_keeps_them(tmp_path: Path) -> None:
    folder = study(tmp_path)
    ended(folder)
    for i, summary in enumerate([{"status": "failed"}, {}, {"status": "interrupted"}]):
        (folder.trial(TRIALS[i]) / "summary.json").unlink()
        end(folder, TRIALS[i], summary, 0)
    drop_checkpoints(folder, TRIALS, 0)
    assert holding(folder) == {0, 1, 2, 3, 4}  # three of them, and the best that have ended


@pytest.mark.parametrize("seed", range(5))
def test_removing_after_every_trial_or_dying_in_it_keeps_the_same_best(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    luck, folder = random.Random(seed), study(tmp_path)
    order = luck.sample(range(8), 8)
    replace = os.replace

    def dies(old: Path, new: Path) -> None:
        replace(old, new)
        if luck.random() < 0.5:
            raise KeyboardInterrupt

    for second, i in enumerate(order):
        top1 = TOP1[i]
        end(folder, TRIALS[i], {"status": "diverged"} if top1 is None else done(top1), second)
        with monkeypatch.context() as patch:
            patch.setattr("vitc.files.os.replace", dies)
            try:
                drop_checkpoints(folder, TRIALS, 0)
            except KeyboardInterrupt:
                continue
    drop_checkpoints(folder, TRIALS, 0)
    drop_checkpoints(folder, TRIALS, 0)
    assert holding(folder) == {1, 2}
    assert not list(folder.trials.glob("*/.tmp-*"))


def test_a_study_of_an_earlier_version_keeps_all_until_it_is_asked_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study(tmp_path)
    record = json.loads((folder.path / "plan.json").read_text())
    assert record.pop("keep") == 3
    (folder.path / "plan.json").write_text(json.dumps(record))
    ended(folder)
    conduct(folder, PLAN, quiet=True, allow_mixed=True)
    assert holding(folder) == {*range(8)}
    assert main(["study", "status", str(folder.path)]) == 0
    assert "every trial keeps its own" in capsys.readouterr().out
    conduct(folder, PLAN, quiet=True, allow_mixed=True, keep=1)
    assert holding(folder) == {1, 2, 7}
    assert "checkpoints that stay: 1, no longer all" in str(folder.read()[1]["history"])
    assert main(["study", "status", str(folder.path)]) == 0
    assert "3.0 MB of it checkpoints of 3 of 8 trials" in capsys.readouterr().out


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'all'"):
        conduct(StudyFolder(tmp_path / "s"), PLAN, keep=-1)
    assert main(["study", "quick", "--keep", "few", "--out", str(tmp_path / "s")]) == 2
    assert not (tmp_path / "s").exists()
