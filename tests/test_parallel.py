"""Several processes of one run: what they agree on, and what happens when one is lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import Group
from tests.test_divergence import poison
from tests.test_loop import MIXED, lines, tiny, weights
from vitc.config import RunConfig, read_config
from vitc.data.loader import TrainLoader
from vitc.deploy.front_door import train
from vitc.errors import ConfigError, DataError
from vitc.runs.folder import Run
from vitc.training import guard, loop, parallel
from vitc.training.loop import run
from vitc.training.parallel import joined
from vitc.training.settle import with_shares
from vitc.training.step import NormStatistics

ON_CPU = {"train.device": "cpu", "train.save_every_steps": 1}
SMALL = {"train.epochs": 1, "data.max_train": 256}


def together(config: RunConfig, out: Path, world: int = 2) -> list[Any]:
    return Group(world, lambda rank: run(config, out, quiet=True).status).results()


def assert_close(a: Path, b: Path) -> None:
    """The same run to float tolerance."""
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith("model") and value.is_floating_point():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=5e-5, msg=name)
    for x, y in zip(lines(a), lines(b), strict=True):
        assert x["step"] == y["step"]
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-3)


def at_step(step: int, act: Callable[[], object]) -> None:
    """In the process that calls it: `act` in the middle of a run's step `step`."""
    after, steps = NormStatistics.after_step, iter(range(1, 10_000))

    def then(norms: NormStatistics) -> None:
        if next(steps) == step:
            act()
        after(norms)

    NormStatistics.after_step = then  # type: ignore[method-assign]


# -- what they agree on ----------------------------------------------------------------------------


def test_values_are_gathered_and_the_first_decides_for_all() -> None:
    def work(rank: int) -> Any:
        with joined() as procs:
            found = [procs.gather(rank * 10), procs.follow(lambda: f"by {rank}"), procs.gather("x")]
            procs.agree({"lr": 1, "batch": 8}, "different settings", "")
            with pytest.raises(ConfigError, match="no such") as caught:
                procs.follow(lambda: _refuse())
            return [*found, caught.value.elsewhere]

    expected = [[0, 10, 20], "by 0", ["x"] * 3]
    assert Group(3, work).results() == [[*expected, elsewhere] for elsewhere in (False, True, True)]


def _refuse() -> None:
    raise ConfigError("no such thing")


def test_one_process_agrees_with_itself() -> None:
    with joined() as procs:
        procs.agree({"lr": 1}, "different settings", "")
        assert (procs.gather(3), procs.follow(lambda: 4), procs.world) == ([3], 4, 1)


def test_other_settings_of_a_process_are_named_before_anything_is_written(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        other = {"optim.lr": 0.5} if rank == 1 else {}
        return run(tiny(**other, **ON_CPU), tmp_path / "r", quiet=True)

    first, second = Group(2, work).results()
    name = f"on {socket.gethostname()}"
    assert first[0] == second[0] == "ConfigError"
    assert "optim.lr: 0.001 on rank 0" in first[1]
    assert "0.5 on rank 1 (process " in first[1]
    assert name in first[1]
    assert (first[2], second[2]) == (False, True)  # one of them reports it
    assert not (tmp_path / "r").exists()


def test_other_images_of_a_process_are_named_before_the_first_step(
    tmp_path: Path, photo_folder: Callable[..., Path]
) -> None:
    one = photo_folder(classes=2, count=12, name="here")
    two = tmp_path / "there"
    shutil.copytree(one, two)
    (two / "class_1" / "007.jpg").unlink()
    options = {"train.batch": 8, "data.val_fraction": 0.25, "data.workers": 0, **ON_CPU}

    def work(rank: int) -> Any:
        config = tiny(**{"data": str(one if rank == 0 else two), **options})
        return run(config, tmp_path / "r", quiet=True)

    first, second = Group(2, work).results()
    assert first[0] == second[0] == "DataError"
    assert DataError.exit_code == 2
    assert "rank 1 (process" in first[1].splitlines()[1]
    assert "class_1/007.jpg" in first[1]
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("batch", "micro", "world", "chosen"),
    [(128, None, 1, None), (128, None, 2, 64), (128, 32, 2, 32), (512, None, 2, None),
     (96, None, 4, 24), (100, None, 3, None)],
)  # fmt: skip
def test_a_micro_batch_is_chosen_where_processes_could_not_share_a_step(
    batch: int, micro: int | None, world: int, chosen: int | None
) -> None:
    config = tiny(**{"train.batch": batch, "train.micro_batch": micro})
    found, notes = with_shares(config, None, world)
    assert found.train.micro_batch == chosen
    assert bool(notes) == (chosen != micro)


def test_two_processes_train_a_step_of_one_micro_batch_as_one_process_does_in_two(
    tmp_path: Path,
) -> None:
    config = tiny(**MIXED, **ON_CPU, **SMALL, **{"train.batch": 64})
    assert together(config, tmp_path / "two") == ["done", "done"]
    saved = read_config(tmp_path / "two")
    assert saved.train.micro_batch == 32
    assert "micro-batches of 32 images" in (tmp_path / "two" / "events.log").read_text()
    run(saved, tmp_path / "one", quiet=True)
    assert_close(tmp_path / "one", tmp_path / "two")


def test_a_folder_of_images_is_trained_as_the_first_process_chooses(
    tmp_path: Path, photo_folder: Callable[..., Path]
) -> None:
    folder = photo_folder(classes=2, count=40)
    own = {"train.epochs": 1, "model": "vit_c_tiny", "model.img_size": 32, "data.workers": 0}

    def work(rank: int) -> Any:
        result = train(str(folder), tmp_path / "r", budget="1m", start="scratch", **own)
        return result.status, result.report is not None

    assert Group(2, work).results() == [("done", True), ("done", False)]
    chosen = read_config(tmp_path / "r").train
    assert chosen.budget_seconds is None
    assert chosen.batch // chosen.micro % 2 == 0


# -- one is lost -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_others_end_when_one_is_killed_and_any_number_resumes(tmp_path: Path) -> None:
    config = tiny(**ON_CPU, **SMALL, **{"train.batch": 32, "train.micro_batch": 8})
    out = tmp_path / "r"

    def work(rank: int) -> Any:
        if rank == 1:
            at_step(4, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return run(config, out, quiet=True).status

    begun = time.monotonic()
    kind, text, elsewhere = Group(2, work).results()[0]
    assert time.monotonic() - begun < 60
    assert (kind, elsewhere) == ("LostProcess", False)
    assert f"on {socket.gethostname()}) at step 3" in text
    assert text.startswith("Lost rank 1 (process")
    assert Run(out).status == "interrupted"
    assert together(config, out, 4) == ["done"] * 4
    assert "resumed at step 3" in (out / "events.log").read_text()
    run(config, tmp_path / "one", quiet=True)
    assert_close(tmp_path / "one", out)


@pytest.mark.slow
def test_all_roll_back_to_one_state_and_leave_out_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is in the second process, which alone can name it. Killed before it or after the
    rollback, and resumed, all end with the same bits."""
    monkeypatch.setattr(guard, "GOOD_EVERY", (20, 20))
    rolls = {"train.on_divergence": "rollback", "train.save_every_steps": 7, "train.batch": 8}
    config = tiny(**{**ON_CPU, **rolls, "data.max_train": 96, "train.epochs": 4})

    def work(out: Path, kill: int | None, rank: int) -> Any:
        trainers: list[loop.Trainer] = []
        begin, make = loop.Trainer.run, TrainLoader._step

        def kept(trainer: loop.Trainer) -> Any:
            trainers.append(trainer)
            return begin(trainer)

        def spoiled(loader: TrainLoader, index: int) -> Any:
            micros = make(loader, index)
            if rank == 1 and index == 26:
                poison(None, micros)  # type: ignore[arg-type]
            return micros

        loop.Trainer.run = kept  # type: ignore[method-assign]
        TrainLoader._step = spoiled  # type: ignore[method-assign]
        if rank == 1 and kill is not None:
            at_step(kill, lambda: os.kill(os.getpid(), signal.SIGKILL))
        result = run(config, out, quiet=True)
        (t,) = trainers
        models = [t.state.model, *([t.state.ema.module] if t.state.ema else [])]
        values = torch.cat([v.double().flatten() for m in models for v in m.state_dict().values()])
        bits = hashlib.sha256(values.numpy().tobytes()).hexdigest()
        return result.status, t.guard.rollbacks, t.guard.left_out, bits

    one, two = Group(2, partial(work, tmp_path / "whole", None)).results()
    assert one == two
    record = {"at": 27, "since": 27, "cause": "poisoned batch", "lr_factor": 0.5, "to": 20}
    record["lr"] = config.optim.lr
    assert one[:3] == ("done", [record], [27])
    text = (tmp_path / "whole" / "events.log").read_text()
    assert text.count("rolled back from step 27 to step 20: poisoned batch") == 1
    assert "its pixels are not finite" in text
    for kill in (24, 30):
        out = tmp_path / str(kill)
        assert Group(2, partial(work, out, kill)).results()[1] == -signal.SIGKILL
        assert Group(2, partial(work, out, None)).results() == [one, one]


def test_the_error_of_one_process_is_that_of_the_run(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        if rank == 1:
            at_step(3, lambda: 1 / 0)
        return run(tiny(**ON_CPU), tmp_path / "r", quiet=True)

    first, second = Group(2, work).results()
    assert second == "ZeroDivisionError: division by zero"
    assert (first[0], first[2]) == ("LostProcess", True)
    assert "rank 1" in first[1]
    assert "ended at step 2: ZeroDivisionError: division by zero" in first[1]


@pytest.mark.slow
def test_a_process_that_is_stopped_is_named_and_so_is_its_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "SILENT_SECONDS", 1.5)
    monkeypatch.setattr(parallel, "BEAT_SECONDS", 0.2)

    def work(rank: int) -> Any:
        if rank == 1:
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        return run(tiny(**ON_CPU, **SMALL), tmp_path / "r", quiet=True).status

    group, events = Group(2, work), tmp_path / "r" / "events.log"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        events.exists() and "no sign of life since" in events.read_text()
    ):
        time.sleep(0.1)
    group.signal(1, signal.SIGCONT)
    assert group.results() == ["done", "done"]
    text = events.read_text()
    assert "rank 1 (process" in text.partition("has shown no sign of life since")[0]
    assert re.search(r"at step [0-3]: the others wait for it", text)  # that of its last beat
    assert "is back after" in text


def test_a_signal_to_one_process_stops_all_and_one_process_resumes(tmp_path: Path) -> None:
    config = tiny(**ON_CPU, **SMALL, **{"train.batch": 64, "train.log_every_steps": 50})

    def work(rank: int) -> Any:
        if rank == 1:
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        return run(config, tmp_path / "r", quiet=True)

    found = Group(2, work).results()
    assert [f[0] for f in found] == ["InterruptedRun"] * 2
    assert "at step 3" in found[0][1]
    run(config, tmp_path / "r", quiet=True)  # with the micro-batch that was chosen
    assert (
        "micro-batches of 32 images, as the run began"
        in (tmp_path / "r" / "events.log").read_text()
    )
    with pytest.raises(ConfigError, match="3 processes cannot share a step"):
        with_shares(config, tmp_path / "r", 3)


def test_torchruns_restart_does_not_discard_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    out = tmp_path / "r"
    run(tiny(**SMALL), out, quiet=True)
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    run(tiny(**SMALL), out, quiet=True, overwrite=True)
    assert "resumed at step" in (out / "events.log").read_text()
