"""Which checkpoints a run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_loop import tiny
from vitc.runs.folder import Run
from vitc.training.config import TrainConfig
from vitc.training.loop import run
from vitc.training.retention import Retention


@pytest.mark.parametrize(
    ("settings", "staying", "count"),
    [
        ({}, [], 2),
        ({"keep_every_epochs": 2}, [8, 16, 24], 5),
        ({"keep_best": True}, [12], 3),
        ({"keep_best": True, "keep_every_epochs": 3, "keep_checkpoints": 1}, [12, 24], 4),
    ],
)
def test_steps_that_stay(settings: dict[str, int], staying: list[int], count: int) -> None:
    keep = Retention.of(TrainConfig(**settings), steps_per_epoch=4)
    assert [step for step in range(1, 25) if keep.stays(step, 12)] == staying
    assert keep.count(24) == count
    assert not keep.stays(0 + 5, None)


def test_a_run_keeps_the_best_every_other_epoch_and_the_last(tmp_path: Path) -> None:
    keep = {"train.keep_checkpoints": 1, "train.keep_every_epochs": 2, "train.keep_best": True}
    config = tiny(**keep, **{"train.epochs": 5, "train.batch": 32, "data.max_train": 128})
    run(config, tmp_path / "r", quiet=True)
    lines = Run(tmp_path / "r").metrics("eval")
    best = max(lines, key=lambda line: (line["top1"], -line["step"]))["step"]
    kept = {int(p.name[5:]) for p in (tmp_path / "r" / "checkpoints").glob("step_*")}
    assert kept == {8, 16, 20, best}
