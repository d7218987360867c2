"""The engine `population`: trials that are alike together, the others by the workers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vitc.config import load_config
from vitc.errors import ConfigError
from vitc.study.conduct import conduct, hparams_plan
from vitc.study.engine_population import PopulationEngine, alike_jobs, even_parts
from vitc.study.engines import Job, LocalEngine, Outcome
from vitc.study.placement import Placement
from vitc.study.plan import StudyFolder
from vitc.study.runs import read_run


def job(folder: Path, name: str, **settings: Any) -> Job:
    base = {"model.depth": 1, "train.batch": 128, "train.epochs": 1, "train.device": "cpu",
            "train.threads": 1, "train.log_every_steps": 2}  # fmt: skip
    config = load_config("debug", model="vit_p_tiny", **{**base, **settings})
    return Job(name, name, config, folder / "trials" / name)


def ran(engine: PopulationEngine, jobs: Sequence[Job]) -> dict[str, Outcome]:
    found: list[Outcome] = []
    engine.run(jobs, found.append, lambda running: None)
    assert len({o.job.id for o in found}) == len(found)
    return {o.job.id: o for o in found}


def always(config: object, members: int) -> tuple[bool, str]:
    return True, "for the test"


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the workers of this machine are given; they say it is done."""
    given: list[str] = []

    def run(self: LocalEngine, jobs: Sequence[Job], done: Any, tick: Any) -> None:
        given.extend(j.id for j in jobs)
        for one in jobs:
            done(Outcome(one, "done", 1.0))

    monkeypatch.setattr(LocalEngine, "run", run)
    return given


def test_trials_that_are_alike_train_together_and_the_others_alone(
    tmp_path: Path, local: list[str]
) -> None:
    jobs = [
        job(tmp_path, "a", **{"train.seed": 1}),
        job(tmp_path, "other", **{"model.depth": 2}),
        job(tmp_path, "b", **{"train.seed": 2, "optim.lr": 2e-3}),
        job(tmp_path, "wild", **{"optim.lr": 1e30, "optim.weight_decay": 0.0}),
    ]
    outcomes = ran(PopulationEngine(pays=always), jobs)
    assert local == ["other"]
    assert {i: o.status for i, o in outcomes.items()} == {
        "a": "done", "b": "done", "wild": "diverged", "other": "done",
    }  # fmt: skip
    assert outcomes["wild"].error is not None
    for name in ("a", "b"):
        run = read_run(tmp_path / "trials" / name)
        assert run.summary["population"] == 3
        assert run.top1 is not None
        assert "placed by engine population" in (run.path / "events.log").read_text()


def test_what_does_not_pay_is_left_to_the_workers(tmp_path: Path, local: list[str]) -> None:
    asked: list[int] = []

    def never(config: object, members: int) -> tuple[bool, str]:
        asked.append(members)
        return False, "0.8x"

    engine = PopulationEngine(members=2, pays=never)
    jobs = [job(tmp_path, str(i), **{"train.seed": i}) for i in range(5)]
    assert set(ran(engine, jobs)) == set(local) == set("01234")
    assert asked == [2]  # once a size; the one alone is not asked about
    assert engine.said == ["2 trials one by one: 0.8x"]


def test_what_ends_a_population_leaves_its_trials_to_the_workers(
    tmp_path: Path, local: list[str]
) -> None:
    jobs = [job(tmp_path, str(i), **{"train.seed": i}) for i in range(2)]
    (tmp_path / "trials" / "1").mkdir(parents=True)
    (tmp_path / "trials" / "1" / "somebody's").touch()
    engine = PopulationEngine(pays=always)
    ran(engine, jobs)
    assert set(local) == {"0", "1"}
    assert "is not empty and not a run folder" in engine.said[-1]


def test_a_stop_saves_the_trials_and_the_rest_is_not_begun(
    tmp_path: Path, local: list[str]
) -> None:
    engine = PopulationEngine(members=2, pays=always)
    found: list[Outcome] = []
    jobs = [job(tmp_path, str(i), **{"train.seed": i}) for i in range(4)]
    engine.run(jobs, found.append, lambda running: engine.stop.set())
    assert [o.status for o in found] == ["interrupted"] * 2
    assert local == []
    engine.stop = threading.Event()
    outcomes = ran(engine, jobs)
    assert {o.status for o in outcomes.values()} == {"done"}
    assert "resumed at step 2" in (tmp_path / "trials" / "0" / "events.log").read_text()


def test_trials_at_different_steps_are_not_put_together(tmp_path: Path, local: list[str]) -> None:
    engine = PopulationEngine(pays=always)
    jobs = [job(tmp_path, str(i), **{"train.seed": i}) for i in range(4)]
    engine.run(jobs[:2], lambda o: None, lambda running: engine.stop.set())
    groups = alike_jobs(jobs)
    assert [[j.id for j in g] for g in groups] == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize(("count", "most", "sizes"), [
    (5, 64, [5]), (65, 64, [32, 33]), (64, 64, [64]), (7, 3, [2, 2, 3]),
])  # fmt: skip
def test_parts_are_even(tmp_path: Path, count: int, most: int, sizes: list[int]) -> None:
    one = job(tmp_path, "a")
    assert [len(p) for p in even_parts([one] * count, most)] == sizes


def test_a_study_reads_a_population_as_any_other_trials(tmp_path: Path) -> None:
    settings = {"model.depth": 1, "train.batch": 128, "train.epochs": 1, "train.device": "cpu"}
    plan = hparams_plan(["debug"], ["vit_p_tiny"], ["adamw"], draws=2, **settings)
    folder = StudyFolder(tmp_path / "study")
    result = conduct(folder, plan, engine=PopulationEngine(pays=always), quiet=True)
    assert result.counts["done"] == result.total == 2
    assert [r.summary["population"] for r in result.runs.values()] == [2, 2]
    assert all(r.top1 is not None for r in result.runs.values())
    assert conduct(folder, plan, quiet=True).counts["done"] == 2


def test_a_population_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        PopulationEngine(members=1)


def test_the_words_of_the_command_make_the_engine() -> None:
    engine = Placement(engine="population", members=8, workers=3).make("cpu")
    assert isinstance(engine, PopulationEngine)
    assert (engine.members, engine.beside, engine.workers) == (8, 3, 8)
    with pytest.raises(ConfigError, match="--members has no effect with --engine local"):
        Placement(members=8).checked()
