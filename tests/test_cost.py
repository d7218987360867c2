"""What a run takes: the estimate, `vitc.plan` and `vitc plan`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitc
from tests.test_loop import stop_after
from vitc.cli.main import main
from vitc.config import RunConfig
from vitc.data.cache import cache_bytes, training_split
from vitc.data.dataset import DataSet, open_data
from vitc.data.sources.index import cache_aside, cache_folder
from vitc.errors import ConfigError
from vitc.recipes.imagenet import ROWS
from vitc.resolve import load_config
from vitc.training import auto_rules as rules
from vitc.training import cost as costs
from vitc.training import probe as probing
from vitc.training.cost import LAUNCH_SECONDS, Around, Range, RunCost, estimate, step_seconds
from vitc.training.probe import Probe, probe

Capture = pytest.CaptureFixture[str]
CPU = torch.device("cpu")
FIXED = LAUNCH_SECONDS + rules.START_SECONDS
SMALL = {"model.img_size": 32, "train.batch": 16, "train.epochs": 10, "train.threads": 1}
STEPS = Probe(0.1, 0.01, 500_000_000, (0.1,) * 8, processor_seconds=0.1, checkpoint_bytes=1000)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Probes of two steps, and a cache and folder of one's own."""
    monkeypatch.setattr(costs, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(probing, "EVAL_IMAGES", 8)
    monkeypatch.setattr(probing, "faster_precision", lambda *_: ("fp32", "it is as fast"))
    monkeypatch.setattr(probing, "faster_channels_last", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def images(**settings: Any) -> tuple[RunConfig, DataSet]:
    """160 training images of 32 pixels, 128 validation images: 10 steps an epoch."""
    config = load_config("debug", **{**SMALL, "data.max_train": 160, **settings})
    return config, open_data(config.data, config.model.in_chans)


def estimated(
    monkeypatch: pytest.MonkeyPatch, found: Probe | None, around: Around | None = None, **own: Any
) -> RunCost:
    monkeypatch.setattr(costs, "probe", lambda *_, **__: found)
    return estimate(*images(**own), CPU, around or Around())


# -- the estimate ----------------------------------------------------------------------------------


def test_a_steady_step_has_a_narrow_interval_and_two_steps_have_none() -> None:
    assert step_seconds([(0.5,) * 8, (0.5,) * 8]) == pytest.approx((0.5, 0.5, 0.5))
    assert step_seconds([(0.5,), (0.7,)]) == (0.6, None, None)


def test_the_interval_holds_a_later_segment_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        level = rng.normal(1.0, 0.1, 9)  # of each segment: how busy the machine is
        times = [tuple(np.repeat(level[i : i + 4], 5).tolist()) for i in (0, 4)]
        found = step_seconds(times)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= level[8] <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_a_range_is_scaled_with_its_bounds() -> None:
    assert Range(2.0, 1.0, 4.0).scaled(3, 1) == (7.0, 4.0, 13.0)
    assert Range(2.0).scaled(3) == (6.0, None, None)


def test_time_is_that_of_steps_evaluations_and_what_is_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = dataclasses.replace(STEPS, models=1)  # no average is kept
    found = estimated(monkeypatch, alone)
    assert (found.epochs, found.steps, found.images) == (10, 100, 160)
    assert found.seconds == pytest.approx((FIXED + 100 * 0.1 + 10 * 1.28,) * 3)
    assert found.processor_seconds == pytest.approx(found.seconds.value)
    assert found.epoch_seconds.value == pytest.approx(1.0 + 1.28)
    assert found.price(3600).value == pytest.approx(found.seconds.value)
    both = estimated(monkeypatch, STEPS)  # the weights and their average are evaluated
    assert both.seconds.value == pytest.approx(found.seconds.value + 10 * 1.28)
    seldom = estimated(monkeypatch, STEPS, **{"train.eval_every_epochs": 4})
    assert seldom.seconds.value == pytest.approx(FIXED + 10 + 3 * 2.56)
    half = estimated(monkeypatch, alone, Around(begun=50))
    assert half.seconds.value == pytest.approx(FIXED + 5 + 5 * 1.28)
    bound = estimated(monkeypatch, STEPS, **{"train.budget_seconds": 60})
    assert bound.seconds == pytest.approx((60 + LAUNCH_SECONDS,) * 3)
    assert "budget" in " ".join(bound.notes)


def test_a_run_with_a_budget_takes_what_it_has_not_used_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = {"train.budget_seconds": 60}  # 100 steps are planned
    for begun, position, rate in ((300, 40.0, 0.1), (8, 40.0, 5.0)):  # faster, slower than planned
        kept = {"position": position, "rate": rate, "used": 24.0}
        found = estimated(monkeypatch, STEPS, Around(begun=begun, kept=kept), **budget)
        assert found.seconds == pytest.approx((36 + LAUNCH_SECONDS,) * 3)
        assert found.steps == round(60 / rate)
        assert found.epochs == pytest.approx(6 / rate)
        assert "at its pace so far" in " ".join(found.notes)
    kept = {"position": 100.0, "rate": 0.1, "used": 63.0}
    over = estimated(monkeypatch, STEPS, Around(begun=900, kept=kept), **budget)
    assert (over.steps, over.seconds.value) == (0, pytest.approx(LAUNCH_SECONDS))
    kept = {"position": 99.0, "rate": 0.1, "used": 63.0}  # it took longer than expected
    late = estimated(monkeypatch, STEPS, Around(begun=900, kept=kept), **budget)
    assert late.seconds.value == pytest.approx(LAUNCH_SECONDS)
    unknown = estimated(monkeypatch, STEPS, Around(begun=25), **budget)  # of an earlier version
    assert (unknown.steps, unknown.seconds.value) == (75, pytest.approx(60 + LAUNCH_SECONDS))


@pytest.mark.usefixtures("quick")
def test_an_interrupted_run_with_a_budget_is_planned_from_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(costs, "probe", lambda *_, **__: STEPS)  # of a machine that is not busy
    out = tmp_path / "run"
    own = {"data.max_train": 160, "train.budget_seconds": 600.0, "train.log_every_steps": 1}
    config = load_config("debug", **{**SMALL, **own})
    stop_after(config, out, step=12)
    (file,) = out.glob("checkpoints/step_*/state.json")
    used = json.loads(file.read_text())["extra"]["used"]
    assert used > 0
    found = vitc.plan(out)
    assert found.seconds.value == pytest.approx(600 - used + LAUNCH_SECONDS, abs=2.0)


def test_disk_is_that_of_the_checkpoints_there_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert estimated(monkeypatch, STEPS).checkpoint_bytes == 1000  # short: only the last
    often = estimated(monkeypatch, STEPS, **{"train.save_every_steps": 10})
    assert often.checkpoint_bytes == 3000  # two are kept, one is written
    assert often.disk_bytes == 3000 + often.metrics_bytes > 3000 + 10 * 190


def test_a_busy_machine_is_noted_and_slows_what_is_around_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = estimated(monkeypatch, STEPS)
    slow = dataclasses.replace(STEPS, processor_seconds=0.02, eval_share=0.2)
    busy = estimated(monkeypatch, slow)
    assert not calm.notes
    assert "20 %" in busy.notes[0]
    assert busy.seconds.value == pytest.approx(calm.seconds.value + 4 * FIXED)
    assert busy.processor_seconds == pytest.approx(0.2 * (calm.seconds.value - FIXED) + FIXED)
    unlike = estimated(monkeypatch, dataclasses.replace(slow, eval_share=1.0))  # calm by then
    assert unlike.processor_seconds == pytest.approx(busy.processor_seconds + 0.8 * 10 * 2.56)


@pytest.mark.parametrize(
    ("change", "limit", "advice"),
    [
        ({"workers": None, "wait_share": 0.9}, "compute", "resident"),
        ({"workers": 2, "wait_share": 0.9}, "loader", "vitc data pack"),
        ({"workers": 2, "wait_share": 0.05}, "compute", "not the loader"),
        ({"workers": 2, "memory_bytes": 1 << 50}, "memory", "--train.micro_batch"),
    ],
)
def test_what_limits_the_run_is_named_with_what_to_change(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], limit: str, advice: str
) -> None:
    found = estimated(monkeypatch, dataclasses.replace(STEPS, **change))
    assert found.limit == limit
    assert advice in found.advice


def test_memory_counts_loader_processes_and_images_that_a_probe_did_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = estimated(monkeypatch, dataclasses.replace(STEPS, workers=2, unheld_bytes=7))
    assert found.process_bytes == 500_000_007 + costs.OWN_BYTES
    assert found.memory_bytes == (found.process_bytes or 0) + 2 * rules.WORKER_BYTES
    assert rules.memory_bytes("cuda", dataclasses.replace(STEPS, workers=2)) == 500_000_000
    often = estimated(monkeypatch, STEPS, **{"train.save_every_steps": 10})
    assert often.process_bytes == 500_000_000 + costs.OWN_BYTES + STEPS.checkpoint_bytes
    with pytest.raises(ConfigError, match="does not fit"):
        estimated(monkeypatch, None)


def test_a_probe_knows_what_it_did_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST_STEPS", 2)
    monkeypatch.setattr(probing, "EVAL_IMAGES", 8)
    config, data = images()
    found = probe(config, data, CPU, seconds=10)
    assert found is not None
    left = len(data.splits["train"]) - 2 * 16 + len(data.splits["val"]) - 8
    assert found.unheld_bytes == left * config.model.in_chans * 32 * 32
    assert found.processor_seconds > 0
    assert found.checkpoint_bytes > 10_000
    assert found.workers is None


def test_slow_steps_are_timed_more_than_once_unless_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, data = images()
    for patience, counted in ((1e9, 2), (1.0, 1)):  # of steps, the first half does not count
        monkeypatch.setattr(probing, "PATIENCE", patience)
        found = probe(config, data, CPU, seconds=1e-6, evaluates=False, steps=4)
        assert found is not None
        assert len(found.times) == counted


# -- the cache, as it is left ----------------------------------------------------------------------


def test_the_cache_can_be_read_aside_and_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (cache_folder() / "pixels").mkdir(parents=True)
    (cache_folder() / "pixels" / "a").write_text("kept")
    before = cache_folder()
    with cache_aside():
        assert cache_folder() != before
        assert (cache_folder() / "pixels" / "a").read_text() == "kept"
        (cache_folder() / "pixels" / "b").write_text("gone")
        place = cache_folder()
    assert cache_folder() == before
    assert not place.exists()
    assert [p.name for p in before.glob("*/*")] == ["a"]


def listing(folder: Path) -> set[tuple[Path, int]]:
    return {(p, p.stat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.mark.usefixtures("quick")
def test_planning_decodes_for_the_cache_and_writes_nothing(
    photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    photos = photo_folder(size=(160, 120))
    settings = {**SMALL, "data.path": str(photos), "data.source": "folder", "data.cache_side": 48}
    settings |= {"data.val_fraction": 0.2, "data.workers": 0, "train.batch": 8}
    before = listing(tmp_path)
    found = vitc.plan("debug", **settings)
    assert listing(tmp_path) == before
    assert found.cache_bytes == cache_bytes(found.images or 0, 3, 48)
    config = load_config("debug", **settings)
    training_split(open_data(config.data), config.data, config.model.in_chans)  # as a run does
    assert vitc.plan("debug", **settings).cache_bytes == 0


# -- recipes, images, runs, other machines ---------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_images_are_planned_as_they_are_trained(
    photo_folder: Callable[..., Path], capsys: Capture, tmp_path: Path
) -> None:
    photos = str(photo_folder())
    before = listing(tmp_path)
    assert main(["plan", photos, "--train.epochs", "2", "--price-per-hour", "2", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert listing(tmp_path) == before
    assert (plan["name"], plan["model"], plan["epochs"]) == ("photos", "vit_r_tiny64", 2)
    assert plan["price"]["value"] == pytest.approx(2 / 3600 * plan["seconds"]["value"])
    assert any(note.startswith("model: vit_r_tiny64") for note in plan["notes"])


@pytest.mark.usefixtures("quick")
def test_several_models_are_one_table(capsys: Capture) -> None:
    words = ["plan", "fashion_vit_c", "--train.threads", "1", "--train.batch", "8"]
    assert main([*words, "--models", "vit_c_tiny", "vit_p_tiny"]) == 0
    table = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in table if line.split()[:1] == ["fashion_vit_c"]]
    assert [row[1] for row in rows] == ["vit_c_tiny", "vit_p_tiny"]


@pytest.mark.usefixtures("quick")
def test_one_recipe_is_shown_with_what_is_known_of_it(capsys: Capture) -> None:
    assert main(["plan", "fashion_vit_c", "--train.threads", "1"]) == 0
    shown = capsys.readouterr().out
    for part in ("1,980 steps", "time: ", "memory: ", "disk: ", "limit: ", "88.2 (87.3-88.8)"):
        assert part in shown
    assert main(["plan", "fashion_vit_c", "--train.threads", "1", "--train.epochs", "1"]) == 0
    assert "expected accuracy" not in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_run_is_planned_from_where_it_is(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has finished"):
        vitc.plan(trained)
    longer = vitc.plan(trained, **{"train.epochs": 3})
    assert longer.epochs == 3
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    before = listing(copy)
    assert vitc.plan(copy).steps == 0  # its last checkpoint holds all of them
    assert listing(copy) == before


def test_the_papers_times_ship_and_nothing_else_does(capsys: Capture) -> None:
    found = vitc.plan("imagenet_vit_c_4gf", device="8xV100", **{"train.epochs": 100})
    assert found.seconds == (60 * ROWS["vit_c_4gf"].minutes * 100, None, None)
    assert found.memory_bytes is None
    assert "20.9" in found.expected
    assert found.checkpoint_bytes
    assert found.checkpoint_bytes > 3 * 4 * 4 * 17e6  # weights, average, two moments
    words = ["plan", "imagenet_vit_c_1gf", "imagenet_resnet_50", "--device", "8xV100"]
    assert main(words) == 0
    assert "18 h 00 min" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("fashion_vit_c --device 8xV100", ["fashion_vit_c", "imagenet_vit_c_4gf"]),
        ("imagenet_vit_c_4gf --device 8xV100 --train.batch 64", ["--train.batch"]),
        ("imagenet_vit_c_4gf --device 8xV100 --budget 1h", ["--budget"]),
        ("fashion_vit_c --device cuda", ["'cuda' is not available", "run vitc plan there"]),
        ("imagenet_vit_c_4gf", ["--device 8xV100"]),
        ("fashion_vit_c --price-per-hour -1", ["'-1'"]),
        ("fashion_vit_c --models vit_c_tiny --model vit_p_tiny", ["--models"]),
        ("fashion_vit_d", ["Did you mean 'fashion_vit_"]),
        ("fashion_vit_c --budget 1h", ["--train.epochs"]),
    ],
)
def test_what_cannot_be_planned_is_named_with_what_can_be_done(
    words: str, named: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", *words.split()]) == 2
    shown = capsys.readouterr().err
    assert all(part in shown for part in named), shown


def test_a_machine_without_measurements_is_refused() -> None:
    with pytest.raises(ConfigError, match="'a100'"):
        vitc.plan("fashion_vit_c", device="a100")
