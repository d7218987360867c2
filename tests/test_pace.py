"""Does a run with a time to end in end then, with its schedule, and resume where it was?"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitc.training.pace as pacing
from vitc.config import RunConfig
from vitc.errors import InterruptedRun
from vitc.optim.config import EmaConfig, ema_alpha
from vitc.optim.ema import Ema
from vitc.optim.schedule import CosineConfig
from vitc.resolve import load_config
from vitc.training.loop import run
from vitc.training.pace import Pace


class Clock:
    """Time that passes by `advance` alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def raced(pace: Pace, clock: Clock, seconds: Any, start: int = 0) -> int:
    """Take steps of `seconds(step)` until the end; returns how many."""
    step = start
    while not pace.ended:
        clock.now += seconds(step)
        step += 1
        pace.advance()
        pace.replan(step)
    return step


@pytest.mark.parametrize(
    "seconds",
    [
        lambda step: 0.1,  # as planned: 1,000 steps
        lambda step: 0.02,  # faster than the probe said
        lambda step: 0.7,  # slower
        lambda step: 0.05 if step < 300 else 0.2,  # another process starts
        lambda step: 0.05 + (2.0 if step % 100 == 99 else 0),  # evaluations
    ],
)
def test_a_run_ends_with_its_time(seconds: Any) -> None:
    clock = Clock()
    pace = Pace(1000, 100.0, clock, clock.now)
    steps = raced(pace, clock, seconds)
    assert 95 <= pace.seconds() <= 103
    assert pace.position == 1000
    assert steps > 100


def test_a_run_with_far_more_time_than_it_was_planned_for_ends_early() -> None:
    clock = Clock()
    pace = Pace(10, 1e6, clock, clock.now)
    steps = raced(pace, clock, lambda step: 30_000.0 if step < 2 else 0.01)
    assert steps <= pace.most_steps
    assert pace.position == 10
    pace = Pace(20, 100.0, clock, clock.now)
    assert raced(pace, clock, lambda step: 0.001) <= pace.most_steps


def test_the_first_evaluation_is_allowed_for_before_it_was_timed() -> None:
    clock = Clock()
    pace = Pace(1000, 100.0, clock, clock.now, evaluation_steps=200)
    raced(pace, clock, lambda step: 0.1)
    assert 75 <= pace.seconds() <= 82  # 20 s are left for it
    pace = Pace(1000, 100.0, clock, clock.now, evaluation_steps=200)
    pace.reserve = 5.0  # that it took
    raced(pace, clock, lambda step: 0.1)
    assert 92 <= pace.seconds() <= 97


def test_a_run_that_was_rolled_back_ends_with_its_time() -> None:
    clock = Clock()
    pace = Pace(1000, 100.0, clock, clock.now)
    for step in range(1, 501):
        clock.now += 0.1
        pace.advance()
        pace.replan(step)
        if step == 100:
            kept = json.loads(json.dumps(pace.state))
    used = pace.seconds()
    pace.resume(kept, 100)
    pace.used = used
    raced(pace, clock, lambda step: 0.1, start=100)
    assert 95 <= pace.seconds() <= 103
    assert pace.position == 1000


def test_without_a_budget_a_step_counts_one() -> None:
    clock = Clock()
    pace = Pace(20, None, clock, clock.now)
    assert raced(pace, clock, lambda step: 5.0) == 20
    assert (pace.position, type(pace.position)) == (20, int)
    assert pace.state == {}
    assert pace.most_steps == 20


def test_a_run_that_was_ended_early_stays_ended_under_the_same_plan() -> None:
    pace = Pace(20, None, Clock(), 0.0)
    pace.end()
    for steps, ended in ((20, True), (40, False)):
        again = Pace(steps, None, Clock(), 0.0)
        again.resume(json.loads(json.dumps(pace.state)), 8)
        assert again.ended is ended


def test_a_resumed_run_has_the_position_and_the_time_it_had() -> None:
    clock = Clock()
    pace = Pace(1000, 100.0, clock, clock.now)
    for step in range(1, 301):
        clock.now += 0.05
        pace.advance()
        pace.replan(step)
    later = Clock()
    later.now = 5000.0
    again = Pace(1000, 100.0, later, later.now)
    again.resume(json.loads(json.dumps(pace.state)), 300)
    assert (again.position, again.rate) == (pace.position, pace.rate)
    assert again.seconds() == pytest.approx(15.0)
    raced(again, later, lambda step: 0.05, start=300)
    assert 95 <= again.seconds() <= 103


def shares(ema: EmaConfig, seconds: float) -> tuple[list[float], list[float]]:
    """Of a run of 1,000 planned steps in 100 seconds: where each of its steps ends in the plan, and
    the share of the model after it in the average of the end."""
    clock = Clock()
    pace = Pace(1000, 100.0, clock, clock.now)
    plan = {"epochs": 10, "steps_per_epoch": 100, "batch": 10}
    positions, found = [], []
    while not pace.ended:
        clock.now += seconds
        before = pace.position
        pace.advance()
        alpha = ema_alpha(pace.position, ema, CosineConfig(), before=before, **plan)
        found = [share * (1 - alpha) for share in found] + [alpha]
        positions.append(pace.position)
        pace.replan(len(found))
    return positions, found


@pytest.mark.parametrize("seconds", [0.03, 0.1, 0.4, 1.5], ids=["3x", "as planned", "1/4", "1/15"])
@pytest.mark.parametrize("ema", [EmaConfig(), EmaConfig(kind="pycls", period=32, alpha=0.01)])
def test_the_average_of_a_run_reaches_as_far_back_in_its_plan_as_planned(
    ema: EmaConfig, seconds: float
) -> None:
    positions, found = shares(ema, seconds)
    assert sum(found) == pytest.approx(1)
    early = sum(s for place, s in zip(positions, found, strict=True) if place <= 500)
    assert early < 0.01
    assert sum(found[: len(found) // 2]) < 0.01
    late = sum(s for place, s in zip(positions, found, strict=True) if place > 760)
    assert late > 0.9  # the default's 95 % on the last 24 %, on the grid of long steps
    places = [p for p, s in zip(positions, found, strict=True) if s and p > 500]
    steps = [b - a for a, b in itertools.pairwise(positions)]
    gaps = [b - a for a, b in itertools.pairwise([500, *places, 1000])]
    assert max(gaps) <= 32 + 2 * max(steps)  # a period


def short(**settings: Any) -> RunConfig:
    return load_config("debug", **{"train.epochs": 2, "train.log_every_steps": 5, **settings})


@pytest.fixture(autouse=True)
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs get a clock by which each look at it takes a tenth of a second, on any machine."""
    ticks = itertools.count()
    monkeypatch.setitem(pacing.CLOCKS, "wall", lambda: next(ticks) / 10)


def test_a_run_of_a_budget_takes_as_many_steps_as_fit_and_lr_ends_at_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(short(**{"train.budget_seconds": 10.0}), tmp_path / "run")
    printed, steps = capsys.readouterr().err, result.summary["step"]
    assert 80 <= steps <= 100
    assert "about 2 epochs of 32 steps" in printed
    last = (
        f"step {steps}/{steps}  val" if steps % 32 else f"epoch {steps // 32:>3}/{steps // 32}  val"
    )
    assert last in printed
    lines = [json.loads(text) for text in (result.path / "metrics.jsonl").read_text().splitlines()]
    paces = [line for line in lines if line["kind"] == "pace"]
    lrs = [line["lr"] for line in lines if line["kind"] == "train"]
    assert result.status == "done"
    assert result.summary["step"] == result.summary["total_steps"]
    assert paces
    assert lrs[-1] < 0.1 * max(lrs)
    assert [line for line in lines if line["kind"] == "eval"][-1]["step"] == result.summary["step"]


def test_a_stopped_run_of_a_budget_resumes_at_its_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(**{"train.budget_seconds": 5.0, "train.save_every_steps": 10})
    steps = iter(range(10**6))
    real = Pace.advance

    def advance(pace: Pace) -> None:
        real(pace)
        if next(steps) == 20:
            raise InterruptedRun("stopped", "", 15)

    monkeypatch.setattr(pacing.Pace, "advance", advance)
    with pytest.raises(InterruptedRun):
        run(config, tmp_path / "run", quiet=True)
    monkeypatch.setattr(pacing.Pace, "advance", real)
    result = run(config, tmp_path / "run", quiet=True)
    assert result.status == "done"
    log = (tmp_path / "run" / "events.log").read_text()
    assert "resumed at step 20" in log


PYCLS = {"optim.ema.kind": "pycls", "optim.ema.alpha": 0.04, "optim.ema.period": 2}


@pytest.mark.parametrize("ema", [{}, PYCLS], ids=["fraction", "pycls"])
def test_a_run_beyond_its_planned_steps_is_averaged_to_its_end(
    ema: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[bool] = []
    real = Ema.update

    def update(average: Ema, model: nn.Module, *places: Any) -> None:
        before = [p.clone() for p in average.module.parameters()]
        real(average, model, *places)
        pairs = zip(before, average.module.parameters(), strict=True)
        changed.append(not all(torch.equal(a, b) for a, b in pairs))

    monkeypatch.setattr(Ema, "update", update)
    config = short(**{"train.budget_seconds": 10.0, "data.max_train": 96, **ema})
    planned = 2 * 96 // config.train.batch
    result = run(config, tmp_path / "run", quiet=True)
    assert result.summary["step"] > 3 * planned
    assert any(changed[len(changed) // 2 :])
