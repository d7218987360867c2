"""Frozen layers that run once on each training image (`train.cache_features`)."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitc
from tests.test_loop import assert_same_run, kill_and_resume
from vitc.config import RunConfig, cached_parts
from vitc.errors import ConfigError, InterruptedRun
from vitc.models.cnn import CNN
from vitc.models.zoo import model_config
from vitc.resolve import load_config
from vitc.runs.folder import Run
from vitc.training import cached_features
from vitc.training.device import pick_device
from vitc.training.loop import run
from vitc.training.parallel import Processes
from vitc.training.probe import image_seconds, probe
from vitc.training.stop import StopSignal

FROZEN = ("norms", "stem", "stages.0", "stages.1")


def config(**settings: Any) -> RunConfig:
    values = {
        "model": "effnet_lite0",
        "model.img_size": 32,
        "data": "synthetic",
        "data.max_train": 96,
        "data.workers": 0,
        "data.augment.flip": 0.0,
        "train.epochs": 2,
        "train.batch": 16,
        "train.threads": 1,
        "train.freeze": FROZEN,
        "train.cache_features": True,
        "train.precision": "fp32",
        "optim.lr": 1e-3,
        **settings,
    }
    return load_config(RunConfig(name="cached"), **values)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in Run(folder).metrics("train")]


def test_steps_on_features_are_those_on_images_that_are_not_augmented(tmp_path: Path) -> None:
    whole = {"train.log_every_steps": 1}
    run(config(**whole), tmp_path / "cached", quiet=True)
    run(config(**whole, **{"train.cache_features": False}), tmp_path / "images", quiet=True)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "images"), rel=1e-4)
    events = (tmp_path / "cached" / "events.log").read_text()
    assert "of 96 training images are kept on cpu" in events


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_bits(tmp_path: Path) -> None:
    often = {"train.save_every_steps": 2, "train.log_every_steps": 1, "train.epochs": 10}
    settled = config(**often, **{"train.freeze": FROZEN[1:]})
    run(settled, tmp_path / "whole", quiet=True)
    assert_same_run(tmp_path / "whole", kill_and_resume(settled, tmp_path, kill_at=5))


def test_the_two_halves_of_a_cnn_are_the_whole() -> None:
    model = vitc.create_model("effnet_lite0", num_classes=5, img_size=32).eval()
    assert isinstance(model, CNN)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for parts in range(1 + len(model.config.depths) + 1):
            torch.testing.assert_close(
                model.forward_from(model.forward_to(x, parts), parts), model(x)
            )


@pytest.mark.parametrize(
    ("freeze", "parts"),
    [
        (("stem",), 1),
        (("stages.0",), 0),
        (("stem", "stages.1"), 1),
        (FROZEN, 3),
        (("backbone",), 8),
        (("stem", "stages"), 8),
        ((), 0),
    ],
)
def test_only_layers_from_the_input_on_run_once(freeze: tuple[str, ...], parts: int) -> None:
    assert cached_parts(model_config("effnet_lite0"), freeze) == parts
    assert cached_parts(model_config("vit_c_tiny"), freeze) == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"model": "vit_c_tiny", "train.freeze": ("stem",)}, "needs a CNN"),
        ({"train.freeze": ("stages.0",)}, "from the input on"),
        ({"data.augment.flip": 0.5}, "--data.augment.flip 0"),
        ({"data.augment.crop": "shift"}, "--data.augment.crop none"),
        ({"data.augment.jitter": (0.3, 0.3, 0.3)}, "--data.augment.jitter 0 0 0"),
        ({"data.augment.mixup_alpha": 0.8}, "--data.augment.mixup_alpha 0"),
        ({"train.compile": True}, "train.compile cannot be combined"),
        ({"train.precise_bn_images": 96}, "train.precise_bn_images cannot be combined"),
    ],
)
def test_what_cannot_take_effect_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    assert problem in f"{caught.value} {caught.value.hint}"


def test_features_that_do_not_fit_into_memory_are_refused_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_features, "device_memory", lambda _: 10_000)
    with pytest.raises(ConfigError, match="a quarter of the"):
        run(config(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_asked_to_stop_while_features_are_computed_takes_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(self: StopSignal) -> StopSignal:
        self.number = signal.SIGTERM
        return self

    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__enter__", asked)
        with pytest.raises(InterruptedRun, match="SIGTERM while features") as caught:
            run(config(), tmp_path / "run", quiet=True)
    assert caught.value.run_exit_code == 143
    assert Run(tmp_path / "run").status == "interrupted"
    assert run(config(), tmp_path / "run", quiet=True).status == "done"


def test_broken_images_are_replaced_by_others(tmp_path: Path, photo_folder: Any) -> None:
    photos = photo_folder(classes=2, count=30)
    broken = sorted(photos.rglob("*.jpg"))[4]
    broken.write_bytes(broken.read_bytes()[:100])
    own = config(**{"data": str(photos), "data.bad_files": "skip", "data.max_train": None})
    assert run(own, tmp_path / "run", quiet=True).status == "done"
    assert np.isfinite(losses(tmp_path / "run")).all()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitc.data.dataset import open_data
    from vitc.training.build import set_up

    own = config()
    with pytest.raises(ConfigError, match="several processes"):
        set_up(own, open_data(own.data, 3), pick_device("cpu"), Processes(world=2))


def test_a_probe_and_a_measurement_know_what_a_step_on_features_costs() -> None:
    from vitc.data.dataset import open_data

    own, cpu = config(), pick_device("cpu")
    found = probe(own, open_data(own.data, 3), cpu, seconds=0.1, evaluates=False)
    assert found is not None
    assert found.step_seconds > 0
    times = image_seconds(own, cpu, [("norms",), FROZEN], 1)
    assert 0 < times.cached < math.inf
    assert times.feature_bytes in (2 * 24 * 8 * 8, 4 * 24 * 8 * 8)
    assert all(0 < step < math.inf for step in times.steps)
    few = image_seconds(own, cpu, [("norms",), FROZEN], 1, most=0)
    assert few.steps[0] == math.inf > few.steps[1]  # no time is lost on what there is no time for
    assert few.cached < math.inf
