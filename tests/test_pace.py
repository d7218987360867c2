"""Does a run with a time to end in end then, with its schedule, and resume where it was?"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import vitc.training.pace as pacing
from vitc.config import RunConfig
from vitc.errors import InterruptedRun
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


def short(**settings: Any) -> RunConfig:
    return load_config("debug", **{"train.epochs": 2, "train.log_every_steps": 5, **settings})


@pytest.fixture(autouse=True)
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs get a clock by which each look at it takes a tenth of a second, on any machine."""
    ticks = itertools.count()
    monkeypatch.setitem(pacing.CLOCKS, "wall", lambda: next(ticks) / 10)


def test_a_run_of_a_budget_takes_as_many_steps_as_fit_and_lr_ends_at_zero(tmp_path: Path) -> None:
    result = run(short(**{"train.budget_seconds": 10.0}), tmp_path / "run", quiet=True)
    assert 80 <= result.summary["step"] <= 100
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
