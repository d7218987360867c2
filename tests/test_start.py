"""`vitc train IMAGES --start`: from pretrained weights where there are any, else from scratch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitc
from tests.test_catalog import REAL, fake_package
from vitc.cli.main import main
from vitc.config import read_config
from vitc.errors import ConfigError
from vitc.machine import install_line
from vitc.optim.optimizers import MuonConfig
from vitc.recipes import get_recipe
from vitc.training import auto_rules as rules
from vitc.training import auto_start, probe
from vitc.training.auto import propose
from vitc.training.auto_start import find_starts, formula_models
from vitc.training.probe import ImageSeconds
from vitc.weights import catalog
from vitc.weights.catalog import PackagedWeights

Photos = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
LARGE, SMALL = ((300, 400),), ((28, 28),)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """Weights of a small model, in a package that is installed."""
    model = vitc.create_model("vit_r_tiny", num_classes=5)
    tensors = {f"other_{i}": t for i, t in enumerate(model.state_dict().values())}
    entry = fake_package(tmp_path / "site", tensors, "vit_r_tiny")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    return entry


def test_auto_takes_weights_where_they_are_and_the_images_are_large(fake: PackagedWeights) -> None:
    assert find_starts("auto", {}, LARGE) == [fake]
    assert find_starts("auto", {}, SMALL) == []
    assert find_starts("pretrained", {}, SMALL) == [fake]
    assert find_starts("scratch", {}, LARGE) == []
    assert find_starts("auto", {"model": "vit_r_mini"}, LARGE) == []
    assert find_starts("auto", {"model": "vit_r_tiny"}, LARGE) == [fake]
    assert find_starts("auto", {"model.in_chans": 1}, LARGE) == []
    assert find_starts("auto", {"init": "runs/mine"}, LARGE) == []


def test_what_cannot_be_is_refused(fake: PackagedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        find_starts("scratch", {"init": "runs/mine"}, LARGE)
    with pytest.raises(ConfigError, match="'pretraned'"):
        find_starts("pretraned", {}, LARGE)
    with pytest.raises(ConfigError, match="of vit_r_mini") as caught:
        find_starts("pretrained", {"model": "vit_r_mini"}, LARGE)
    assert "vit_r_tiny" in str(caught.value.hint)
    monkeypatch.setattr(catalog, "CATALOG", REAL)
    monkeypatch.setattr(catalog.PackagedWeights, "here", lambda _: False)
    monkeypatch.setattr(catalog.TimmWeights, "here", lambda _: False)
    with pytest.raises(ConfigError) as caught:
        find_starts("pretrained", {}, LARGE)
    assert install_line("pretrained") in str(caught.value.hint)
    assert find_starts("auto", {}, LARGE) == []


@pytest.mark.slow
def test_without_weights_the_run_is_from_scratch_and_a_line_says_what_would_be_better(
    photo_folder: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CATALOG", REAL)
    monkeypatch.setattr(catalog.PackagedWeights, "here", lambda _: False)
    monkeypatch.setattr(catalog.TimmWeights, "here", lambda _: False)
    fixed = {"model": "vit_r_tiny", "train.precision": "fp32", "train.channels_last": False}
    proposal = propose(photo_folder(), 10, fixed)
    assert proposal.config.init.weights is None
    assert proposal.config.init.probe_images == 0
    assert sum(install_line("pretrained") in line for line in proposal.lines) == 1
    assert not any(
        install_line("pretrained") in line
        for line in propose(tmp_path / "photos", 10, fixed, start="scratch").lines
    )


def test_a_run_from_pretrained_weights_is_an_ordinary_run(
    fake: PackagedWeights, photo_folder: Photos, tmp_path: Path, capsys: Capture
) -> None:
    photos, out = photo_folder(), tmp_path / "run"
    assert main(["train", str(photos), "--budget", "1m", "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert summary["status"] == "done"
    assert "licence MIT" in said.err
    assert "linear probe" in said.err
    config = read_config(out)
    assert config.init.weights == "pretrained:fake"
    assert config.init.probe_images > 0
    assert config.model.name == "vit_r_tiny"
    record = json.loads((out / "data.json").read_text())
    assert record["mean"] == [0.5] * 3
    assert record["std"] == [0.25] * 3
    assert "kept the" in (out / "report.html").read_text()
    assert main(["predict", str(out), str(next(photos.rglob("*.jpg")))]) == 0
    assert main(["evaluate", str(out)]) == 0
    assert main(["save", str(out), str(tmp_path / "saved")]) == 0


def test_another_optimizer_gets_a_rate_for_trained_weights_and_patience_sees_every_epoch(
    fake: PackagedWeights, photo_folder: Photos
) -> None:
    fixed = {"optim": "sgd", "train.patience": 2, "train.epochs": 8}
    config = propose(photo_folder(), 60, fixed).config
    assert config.init.weights == fake.where
    recipe = get_recipe(rules.RECIPE, "sgd")
    alike = recipe.optim.peak_lr(recipe.train.batch) * config.train.batch / recipe.train.batch
    assert config.optim.peak_lr(config.train.batch) < 0.5 * alike
    assert config.train.eval_every_epochs == 1


def test_where_the_first_weights_take_too_long_the_next_are_tried(
    fake: PackagedWeights, photo_folder: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, real = replace(fake, name="large"), auto_start.pretrained_trial
    monkeypatch.setattr(catalog, "CATALOG", (large, fake))

    def trial(*args: Any) -> Any:
        return None if large in args else real(*args)

    monkeypatch.setattr(auto_start, "pretrained_trial", trial)
    proposal = propose(photo_folder(), 60)
    assert proposal.config.init.weights == fake.where
    assert any("pretrained:large take too long" in line for line in proposal.lines)


def test_a_damaged_file_of_weights_ends_the_run_before_it_begins(
    fake: PackagedWeights, photo_folder: Photos, tmp_path: Path, capsys: Capture
) -> None:
    path = fake.path()
    path.write_bytes(path.read_bytes()[:-10])
    out = tmp_path / "run"
    assert main(["train", str(photo_folder()), "--budget", "1m", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "damaged" in said
    assert "Traceback" not in said
    assert not out.exists()


# -- weights learnt from formulas ------------------------------------------------------------------

MADE = catalog.FORMULA


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "FORMULA", MADE)


def test_formula_weights_are_whole_and_fit_their_models(made: None) -> None:
    for entry in MADE:
        assert entry.here()
        assert len(entry.path().read_bytes()) < 6e6
        for name in (entry.model, *entry.models):
            model = vitc.create_model(name, num_classes=5)
            before = model.state_dict()["stem.proj.weight"].clone()
            report = vitc.load_weights(model, entry.where, adapt=("head", "pos_embed"))
            assert report.missing == report.unexpected == ()
            assert not torch.equal(model.state_dict()["stem.proj.weight"], before)


@pytest.mark.parametrize(
    ("start", "fixed", "there"),
    [
        ("auto", {}, True),
        ("formula", {}, True),
        ("scratch", {}, False),
        ("pretrained", {}, False),
        ("auto", {"model": "vit_r_tiny64", "optim.lr": 1e-3, "model.img_size": 96}, True),
        ("auto", {"model.drop_path_rate": 0.1, "model.depth": 3}, False),
        ("auto", {"init": "runs/mine"}, False),
        ("auto", {"model.in_chans": 1}, False),
        ("auto", {"model": "vit_c_tiny"}, False),
    ],
)
def test_formula_weights_stand_in_for_a_fresh_draw(
    start: str, fixed: dict[str, Any], there: bool, made: None
) -> None:
    assert bool(formula_models(start, fixed)) == there


@pytest.mark.parametrize("fixed", [{"model": "vit_c_tiny"}, {"model.in_chans": 1}, {"init": "x"}])
def test_where_formula_weights_cannot_be_asking_for_them_is_refused(
    fixed: dict[str, Any], made: None
) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(fixed))}") as caught:
        formula_models("formula", fixed)
    assert "vit_r_tiny64" in str(caught.value.hint)


@pytest.mark.parametrize("side", [28, pytest.param(80, marks=pytest.mark.slow)])
def test_images_of_ones_own_start_from_formula_weights(
    side: int, photo_folder: Photos, tmp_path: Path, made: None
) -> None:
    photos = photo_folder(size=(side, side))
    if side == 28:  # gray ones are seen in three channels
        for path in photos.rglob("*.jpg"):
            Image.open(path).convert("L").save(path)
    out = tmp_path / "run"
    assert (
        main(["train", str(photos), "--start", "formula", "--train.epochs", "1", "--out", str(out)])
        == 0
    )
    config = read_config(out)
    assert config.init.weights == MADE[0].where
    assert config.model.in_chans == 3
    assert isinstance(config.optim, MuonConfig)
    events = (out / "events.log").read_text()
    assert f"start: {MADE[0].where}, licence MIT" in events


@pytest.mark.parametrize("words", [["fashion_vit_c"], ["debug"]])
def test_start_is_for_images(words: list[str], capsys: Capture) -> None:
    assert main(["train", *words, "--start", "pretrained"]) == 2
    assert "--init" in capsys.readouterr().err


def lite(
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, float, float],
    cached: float = math.inf,
    size: int = 0,
) -> None:
    """A machine on which an image takes so long: its features, steps with most layers and all, a
    step on kept features, of so many bytes."""
    entry = next(e for e in REAL if isinstance(e, PackagedWeights))
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    monkeypatch.setattr(catalog.PackagedWeights, "here", lambda _: True)

    def measured(
        config: Any, device: Any, frozen: Any, threads: int, most: float = math.inf
    ) -> ImageSeconds:
        some = (seconds[0] + seconds[1]) / 2
        steps = {1: seconds[2], 5: some, 7: seconds[1]}
        each = tuple(steps.get(len(f), some) for f in frozen)
        return ImageSeconds(seconds[0], seconds[0], each, cached, size)

    monkeypatch.setattr(probe, "image_seconds", measured)


@pytest.mark.slow
def test_the_time_decides_how_much_is_fine_tuned(
    photo_folder: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photo_folder(count=40, size=(120, 120))
    lite(monkeypatch, (0.01, 0.1, 0.8))
    little = propose(photos, 25).config
    assert "stages.4" in little.train.freeze
    assert "stages.5" not in little.train.freeze
    lite(monkeypatch, (0.01, 0.5, 0.8))
    short = propose(photos, 40)  # not three epochs of any layers: it ends within one
    assert short.seconds == pytest.approx(short.config.train.budget_seconds, abs=0.1)
    (line,) = (line for line in short.lines if line.startswith("fine-tuning"))
    assert "with more layers the time would be too short for 3 epochs" in line
    lite(monkeypatch, (1.0, 10.0, 12.0))  # not one epoch: the probe has the time
    probed = propose(photos, 100, {"data.val_fraction": 0.05}).config.init.probe_images
    assert auto_start.PROBE_SHARE * 100 < auto_start.READING * 1.0 * probed < 100
    lite(monkeypatch, (0.01, 0.1, 0.8))
    assert little.optim.layer_decay == auto_start.LAYER_DECAY
    plenty = propose(photos, 10_000).config
    assert plenty.train.freeze == ("norms",)
    assert plenty.train.epochs == auto_start.MOST_EPOCHS
    lite(monkeypatch, (10.0, 20.0, 50.0))
    never = propose(photos, 25)
    assert never.config.init.weights is None
    assert any("too long" in line for line in never.lines)
    lite(monkeypatch, (0.001, 0.002, 0.003))
    assert propose(photos, auto_start.LEAST_SECONDS - 1).config.init.weights is None


def test_where_time_is_short_frozen_layers_run_once(
    photo_folder: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photo_folder(count=40, size=(120, 120))
    lite(monkeypatch, (0.02, 0.3, 0.8), cached=0.02)
    found = propose(photos, 40)
    train, augment = found.config.train, found.config.data.augment
    assert train.cache_features
    assert found.config.cached_parts == 6
    assert train.epochs == auto_start.MOST_CACHED
    assert (augment.crop, augment.flip) == ("none", 0.0)
    lines = dict(line.partition(": ")[::2] for line in found.lines)
    assert lines["training crop"].startswith("none — because their features")
    assert lines["mirror"].startswith("0.0 — because their features")
    for own in (
        {"data.augment.flip": 0.5},
        {"train.cache_features": False},
        {"train.epochs": 2},
        {"train.freeze": ("stages.0",)},
        {"train.precise_bn_images": 32},
    ):
        assert not propose(photos, 40, own).config.train.cache_features, own
    assert not propose(photos, 40, processes=2).config.train.cache_features
    assert not propose(photos, 4_000).config.train.cache_features
    lite(monkeypatch, (0.02, 0.3, 0.8), cached=0.02, size=10**12)
    assert not propose(photos, 40).config.train.cache_features


def test_where_it_is_shorter_still_the_images_are_smaller(
    photo_folder: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photo_folder(count=40, size=(120, 120))
    images = 96  # to train on
    lite(monkeypatch, (0.02, 30.0, 80.0), cached=400 / images / auto_start.LEAST_CACHED)
    found = propose(photos, 400)
    assert found.config.model.size in ((160, 160), (192, 192))
    assert found.config.train.cache_features
    assert found.config.train.epochs >= auto_start.LEAST_CACHED
    assert found.config.init.probe_images == images
    (line,) = (line for line in found.lines if line.startswith("image size"))
    assert "the weights were trained at 224x224" in line
    own = propose(photos, 400, {"model.img_size": 224}).config
    assert own.model.size == (224, 224)
    assert not own.train.cache_features


def test_settings_of_the_user_are_kept(
    photo_folder: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite(monkeypatch, (0.01, 0.02, 0.05))
    own = {"optim.lr": 3e-4, "train.freeze": ("backbone",), "train.epochs": 2, "train.batch": 24}
    config = propose(photo_folder(count=40), 60, own).config
    assert config.optim.lr == 3e-4
    assert config.train.freeze == ("backbone",)
    assert config.train.epochs == 2
    assert config.train.batch == 24


def test_the_lines_name_what_is_trained_and_who_chose_it(
    photo_folder: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite(monkeypatch, (0.01, 0.02, 0.05))
    photos = photo_folder(count=80)
    for own in ({}, {"model.img_size": 160, "train.freeze": ("backbone",), "train.batch": 24}):
        found = propose(photos, 60, own)
        config, lines = found.config, dict(line.partition(": ")[::2] for line in found.lines)
        assert lines["batch"].startswith(f"{config.train.batch} — ")
        assert lines["image size"].startswith("{0}x{0} — ".format(config.model.size[0]))
        for what in ("image size", "batch", "fine-tuning"):
            assert ("because you set --" in lines[what]) == bool(own), what
        assert sum(line.startswith("batch: ") for line in found.lines) == 1


@pytest.mark.real_weights
def test_the_real_weights_give_a_classifier_of_photos(
    photo_folder: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = next(e for e in REAL if isinstance(e, PackagedWeights))
    if not entry.here():
        pytest.skip(f"the pretrained weights are not installed: {entry.advice}")
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    torch.set_num_threads(1)
    photos, out = photo_folder(count=30), tmp_path / "run"
    words = ["--budget", "40s", "--train.clock", "processor", "--out", str(out)]
    assert main(["train", str(photos), *words]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["top1"] > 90
    assert read_config(out).init.weights == entry.where
