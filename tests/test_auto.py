"""A folder and no recipe: are the choices sensible, reasons said, the user's settings kept?"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vitc.training.probe as probing
from vitc.config import RunConfig, from_dict, leaves, to_dict
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.pack import PackOptions, pack
from vitc.data.split import TEST, VAL, hold_out
from vitc.errors import BrokenFileError, ConfigError, DataError
from vitc.models.stem_config import ConvStemConfig, ResidualStemConfig
from vitc.models.zoo import build_model, model_config
from vitc.optim.groups import build_optimizer
from vitc.optim.optimizers import AdamWConfig, MuonConfig, SGDConfig
from vitc.recipes import get_recipe
from vitc.resolve import load_config
from vitc.stats.proportions import wilson
from vitc.training import auto as front_door
from vitc.training import auto_model, auto_rules
from vitc.training.auto import Proposal, propose
from vitc.training.auto_rules import Look
from vitc.training.config import TrainConfig
from vitc.training.probe import Probe, faster_precision, probe

PHOTOS = Callable[..., Path]
COST = {"vit_r_tiny64": 1, "vit_r_mini64": 2, "vit_r_small64": 4}  # of a pixel; others: 1


class Machines:
    """Stands in for the probe: a machine as fast, and with as much memory, as a test wants."""

    def __init__(self) -> None:
        self.pixels_per_second = 1e9
        self.most_pixels = math.inf
        self.threads: dict[int | None, float] = {}  # how many times longer than with others
        self.asked: list[RunConfig] = []

    def __call__(
        self,
        config: RunConfig,
        data: DataSet,
        device: torch.device,
        seconds: float = 1.0,
        evaluates: bool = True,
    ) -> Probe | None:
        self.asked.append(config)
        h, w = config.model.size
        work = h * w * COST.get(config.model.name, 1)
        if work * config.train.micro > self.most_pixels:
            return None
        seconds = work / self.pixels_per_second
        seconds *= self.threads.get(config.train.threads, 1.0)
        return Probe(config.train.batch * seconds, seconds / 3, 500_000_000)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machines:
    fake = Machines()
    # However many programs this machine runs beside the tests: nobody waits for a core.
    monkeypatch.setattr(front_door, "core_seconds", lambda: (0.0, 0.0))
    monkeypatch.setattr(probing, "probe", fake)
    monkeypatch.setattr(probing, "faster_precision", lambda *_: ("bf16", "it is twice as fast"))
    monkeypatch.setattr(probing, "faster_channels_last", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return fake


def line(proposal: Proposal, what: str) -> str:
    """The one line about `what`."""
    (found,) = [text for text in proposal.lines if text.startswith(f"{what}:")]
    return found


def warnings(proposal: Proposal) -> str:
    return "\n".join(text for text in proposal.lines if text.startswith("warning:"))


def look(train: int = 240, side: int = 300, val: int = 60, classes: int = 10) -> Look:
    counts = tuple(train // classes + (i < train % classes) for i in range(classes))
    names = tuple(f"class {i}" for i in range(classes))
    return Look(names, counts, val, ((side, side * 4 // 3),))


@pytest.mark.parametrize("ladder", [auto_rules.PHOTO_RUNGS, auto_rules.SMALL_RUNGS])
def test_every_rung_is_a_conv_stem_model_of_the_zoo_with_enough_tokens(
    ladder: tuple[auto_rules.Rung, ...],
) -> None:
    for rung in ladder:
        model = model_config(rung.model, img_size=rung.img_size)
        assert isinstance(model.stem, ConvStemConfig | ResidualStemConfig)
        assert math.prod(model.grid) >= auto_rules.FEW_TOKENS
    assert [r.min_images for r in ladder] == sorted(r.min_images for r in ladder)
    assert ladder[0].min_images == 0
    flops = [
        auto_model._flops(RunConfig(model=model_config(r.model, img_size=r.img_size)))
        for r in ladder
    ]
    assert all(b > 0.95 * a for a, b in itertools.pairwise(flops))  # cheapest first


def test_more_images_allow_larger_models_and_small_images_none_larger_than_they_are() -> None:
    few, many = auto_rules.rungs_for(look(240)), auto_rules.rungs_for(look(200_000))
    assert few == many[: len(few)]
    assert len(few) < len(many)
    assert many[-1].img_size == 224
    assert all(r.img_size <= 1.25 * 80 for r in auto_rules.rungs_for(look(200_000, side=80)))
    assert all(r.img_size == 32 for r in auto_rules.rungs_for(look(50_000, side=28)))


def test_batches_have_sixteen_images_or_more_and_ten_steps_an_epoch() -> None:
    assert auto_rules.batch_size(5, "cpu") == 5
    assert auto_rules.batch_size(16, "cpu") == 16
    assert auto_rules.batch_size(240, "cpu") == 16
    assert auto_rules.batch_size(800, "cpu") == 64
    assert auto_rules.batch_size(50_000, "cpu") == 64
    assert auto_rules.batch_size(50_000, "cuda") == 256
    for n in range(160, 3000, 37):
        assert n // auto_rules.batch_size(n, "cuda") >= 10


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_more_images_want_fewer_epochs_but_more_steps(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert 300 >= auto_rules.wanted_epochs(low) >= auto_rules.wanted_epochs(high) >= 30


def test_few_images_keep_none_back_for_a_test() -> None:
    assert auto_rules.held_out_shares(300) == (0.2, 0.0)
    assert auto_rules.held_out_shares(5_000) == (0.15, 0.15)
    assert auto_rules.held_out_shares(30_000) == (0.05, 0.05)
    assert auto_rules.held_out_shares(10**6) == (0.02, 0.02)


@pytest.mark.parametrize(("of_each", "few"), [(3, True), (4, True), (6, False), (10, False)])
def test_a_handful_of_each_class_has_no_test(of_each: int, few: bool) -> None:
    counts = [of_each] * 1000
    assert auto_rules.too_few_for_a_test(counts, 0.15, 0.15) == few
    labels = np.repeat(np.arange(1000), of_each)
    side = hold_out(labels, [str(i) for i in range(len(labels))], 0.15, 0.15, seed=0)
    shares = ((side == VAL).mean(), (side == TEST).mean())
    assert auto_rules.held_out_of(counts, 0.15, 0.15) == pytest.approx(shares)
    assert (1 - sum(shares) < 0.6) == few


def test_shares_are_those_that_the_classes_give(photo_folder: PHOTOS) -> None:
    small = propose(photo_folder(classes=500, count=4, size=(8, 8)))
    assert (small.config.data.val_fraction, small.config.data.test_fraction) == (0.15, 0.0)
    assert line(small, "images").startswith("images: 1,500 to train on, 500 to validate;")
    assert "class by class it comes to 0.25" in line(small, "share held out for validation")
    assert "would leave 50% of 2,000 images" in line(small, "share held out for the test")
    usual = propose(photo_folder(classes=2, count=1000, name="usual", size=(8, 8)))
    assert (usual.config.data.val_fraction, usual.config.data.test_fraction) == (0.15, 0.15)
    assert "class by class" not in line(usual, "share held out for the test")


def test_the_fit_follows_the_shapes() -> None:
    assert auto_rules.fit_for([(300, 400), (400, 300)])[0] == "crop"
    assert auto_rules.fit_for([(200, 500), (210, 500)])[0] == "squash"
    assert auto_rules.fit_for([(200, 500), (500, 200), (100, 400)])[0] == "pad"
    assert auto_rules.fit_for([(28, 28)])[0] == "pad"
    assert auto_rules.fit_for([(32, 32)])[0] == "crop"


def test_balancing_starts_at_four_to_one() -> None:
    assert auto_rules.balance_for([39, 10])[0] == "none"
    kind, because = auto_rules.balance_for([1200, 300, 40])
    assert kind == "sqrt"
    assert "1,200" in because
    assert "40" in because


@pytest.mark.parametrize(
    ("classes", "flip"),
    [
        (("cat", "dog"), 0.5),
        (("0", "1", "2"), 0.0),
        (("turn_left", "turn_right"), 0.0),
        (("Left hand", "fist"), 0.0),
        (("bright", "cleft"), 0.5),
    ],
)
def test_nothing_is_mirrored_whose_mirror_image_is_of_another_class(
    classes: tuple[str, ...], flip: float
) -> None:
    assert auto_rules.flip_for(classes)[0] == flip


def test_the_learning_rate_is_the_recipes_at_its_own_batch_and_width() -> None:
    adamw, sgd = AdamWConfig(lr=2e-3), SGDConfig(lr=0.1)
    assert auto_rules.learning_rate(adamw, 128, 128, 64)[0] == 2e-3
    assert auto_rules.learning_rate(adamw, 128, 32, 64)[0] == 1e-3
    assert auto_rules.learning_rate(adamw, 128, 128, 256)[0] == 1e-3
    assert auto_rules.learning_rate(sgd, 128, 32, 64)[0] == 0.025
    assert get_recipe(auto_rules.RECIPE).model.embed_dim == auto_rules.TINY_WIDTH


@settings(deadline=None)
@given(
    epoch=st.floats(1e-3, 1e4),
    evaluation=st.floats(0, 1e3),
    budget=st.floats(10, 1e5),
    most=st.integers(1, 300),
)
def test_a_run_is_as_long_as_its_budget_allows(
    epoch: float, evaluation: float, budget: float, most: int
) -> None:
    length = auto_rules.run_length(epoch, evaluation, budget, most)
    evaluations = math.ceil(length.epochs / length.eval_every)
    assert 1 <= length.epochs <= most
    assert 1 <= length.eval_every <= length.epochs
    assert evaluations <= auto_rules.EVALUATIONS
    assert evaluations * evaluation <= 0.1 * length.epochs * epoch + evaluation * 1.001
    assert length.seconds <= budget or length.epochs == 1
    if length.epochs < most:  # a tenth for evaluations, and no epochs given away
        assert length.seconds + 1.2 * epoch + 1.1 * evaluation > 0.85 * budget


def test_a_folder_becomes_a_complete_config_with_a_reason_for_each_choice(
    photo_folder: PHOTOS,
) -> None:
    folder = photo_folder(classes=3, count=60, size=(240, 180))
    proposal = propose(folder)
    config = proposal.config
    assert config.problems() == []
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.data.path == str(folder)
    assert config.name == "photos"
    assert isinstance(config.model.stem, ResidualStemConfig)
    assert (config.train.precision, config.train.channels_last) == ("bf16", True)
    assert config.data.eval_crop == 1.0
    muon = get_recipe(auto_rules.RECIPE, "muon").optim
    assert (type(config.optim), config.optim.weight_decay) == (type(muon), muon.weight_decay)
    assert config.optim.schedule.warmup(config.train.epochs) == config.train.epochs / 4
    assert config.optim.lr_per_batch is None
    assert proposal.seconds > 0
    assert proposal.memory_bytes >= 500_000_000
    choices = "image size,model,batch,epochs,peak learning rate,precision,fit to a square"
    for what in (*choices.split(","), "balance of classes", "time", "memory"):
        assert re.search(r": .+ — because .+", line(proposal, what))


def test_a_slower_machine_or_a_smaller_budget_gets_less(
    photo_folder: PHOTOS, machine: Machines
) -> None:
    folder = photo_folder(classes=2, count=100, size=(100, 80))
    quick = propose(folder)
    assert quick.config.model.name == "vit_r_mini64"
    assert propose(folder, 3600).config.train.epochs > quick.config.train.epochs
    machine.pixels_per_second = 4e4
    slow, brief = propose(folder), propose(folder, 60)
    assert slow.config.model.name == "vit_r_tiny64"
    assert "vit_r_mini64" in line(slow, "model")  # what was not taken, and why
    assert slow.seconds <= auto_rules.DEFAULT_BUDGET_SECONDS
    assert brief.config.train.epochs < slow.config.train.epochs
    assert brief.seconds <= 60
    assert "budget is 1 min" in line(brief, "epochs")
    fixed = propose(folder, 10, {"train.epochs": 10_000})
    assert line(fixed, "epochs") == "epochs: 10000 — because you set --train.epochs"
    assert fixed.seconds > 10
    assert "not 10 s" in warnings(fixed)


def test_rungs_are_tried_on_images_decoded_once_and_the_chosen_one_has_its_own_size(
    photo_folder: PHOTOS, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs = (auto_rules.Rung("vit_r_tiny64", 64, 0), auto_rules.Rung("vit_c_mini96", 96, 0))
    monkeypatch.setattr(auto_rules, "PHOTO_RUNGS", rungs)
    config = propose(photo_folder(classes=2, count=60, size=(240, 200))).config
    assert len({c.model.name for c in machine.asked}) == 2
    (tried,) = {c.data.cache_side for c in machine.asked}
    assert tried == auto_rules.caching(look(side=200), 64)["data.cache_side"]
    assert config.model.name == "vit_c_mini96"
    assert config.data.cache_side == auto_rules.caching(look(side=200), 96)["data.cache_side"]


def test_when_not_one_epoch_fits_time_ends_it_or_fewer_images_are_used(
    photo_folder: PHOTOS, machine: Machines
) -> None:
    machine.pixels_per_second = 2e4
    folder = photo_folder(classes=2, count=100)
    ended = propose(folder, 20).config
    assert (ended.train.epochs, ended.data.max_train) == (1, None)
    assert ended.train.budget_seconds is not None
    proposal = propose(folder, 20, processes=2)  # whose clocks differ
    assert proposal.config.train.budget_seconds is None
    assert proposal.config.train.epochs == 1
    assert proposal.config.data.max_train is not None
    assert 16 <= proposal.config.data.max_train < 160
    assert "budget of 20 s" in line(proposal, "training images used")


def test_time_that_choosing_took_is_off_the_run_and_the_page_takes_longer_where_it_was_busy(
    photo_folder: PHOTOS, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder(classes=2, count=50)
    machine.pixels_per_second = 1e5
    readings = itertools.chain([0.0], itertools.repeat(30.0))
    monkeypatch.setitem(front_door.CLOCKS, "wall", lambda: next(readings))
    work = itertools.chain([0.0], itertools.repeat(15.0))
    monkeypatch.setattr(front_door, "processor_seconds", lambda: next(work))
    proposal = propose(folder, 60)
    page = auto_rules.PAGE_SECONDS + 20 * 64 * 64 / 3e5
    assert proposal.config.train.budget_seconds == pytest.approx(60 - 30 - 2 * page, abs=0.1)
    assert proposal.seconds <= proposal.config.train.budget_seconds
    assert "budget is 1 min 00 s, 16 s of it for training" in line(proposal, "epochs")
    assert "of 1 min 00 s, 16 s are left to train" in warnings(proposal)


def test_choosing_and_the_page_are_off_the_time_of_all_runs_once(
    photo_folder: PHOTOS, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder(classes=2, count=50)
    machine.pixels_per_second = 1e5
    readings = itertools.chain([0.0], itertools.repeat(30.0))
    monkeypatch.setitem(front_door.CLOCKS, "wall", lambda: next(readings))
    monkeypatch.setattr(front_door, "processor_seconds", itertools.count(0.0, 30.0).__next__)
    proposal = propose(folder, 300, {"data.folds": 5}, runs=5)
    page = auto_rules.PAGE_SECONDS + 100 * 64 * 64 / 3e5  # every image validates once
    each = proposal.config.train.budget_seconds
    assert each == pytest.approx((300 - 30 - page) / 5, abs=0.1)
    assert "budget is 1 min 00 s, 52 s of it for training" in line(proposal, "epochs")


def test_a_core_that_was_waited_for_is_a_busy_machine_though_two_threads_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front_door, "processor_seconds", itertools.count(0.0, 30.0).__next__)
    monkeypatch.setattr(front_door, "core_seconds", iter([(1.0, 0.0), (11.0, 15.0)]).__next__)
    time = front_door.Time(100, itertools.count(0.0, 30.0).__next__)
    assert time.busy == 2.5


def test_a_run_of_few_epochs_uses_the_rest_of_its_time_too(
    photo_folder: PHOTOS, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder(classes=2, count=100)
    monkeypatch.setitem(front_door.CLOCKS, "wall", lambda: 0.0)
    machine.pixels_per_second = 64 * 64 * 160 / 10  # an epoch takes ten seconds
    short = propose(folder, 40).config.train
    assert short.epochs < 4
    assert short.budget_seconds is not None
    assert 30 < short.budget_seconds < 40
    assert propose(folder, 40_000).config.train.budget_seconds is None  # long enough is enough


def test_no_more_images_are_used_than_a_third_of_the_time_is_enough_to_decode(
    photo_folder: PHOTOS, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder(classes=2, count=100, size=(150, 140))
    monkeypatch.setattr(front_door, "decoding_seconds", lambda *_, **__: 1.5)
    monkeypatch.setitem(front_door.CLOCKS, "wall", lambda: 0.0)
    few = propose(folder, 300, {"data.workers": 0})
    most = int(auto_rules.DECODE_SHARE * 300 / 1.5)
    assert few.config.data.max_train == most
    assert few.lines[0].startswith(f"images: {most} to train on")
    assert "decoding 160 would take 4 min 00 s" in line(few, "training images used")
    assert propose(folder, 3000, {"data.workers": 0}).config.data.max_train is None
    fixed = propose(folder, 300, {"data.workers": 0, "data.max_train": 150})
    assert fixed.config.data.max_train == 150
    monkeypatch.setattr(front_door, "decoding_seconds", lambda *_, **__: 1000.0)
    hopeless = propose(folder, 300, {"data.workers": 0})
    assert hopeless.config.data.max_train == 2  # one of each class


def test_no_more_validation_images_are_used_than_a_tenth_of_the_time_measures(
    photo_folder: PHOTOS, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(front_door.CLOCKS, "wall", lambda: 0.0)
    monkeypatch.setattr(auto_rules, "LEAST_VAL", 10)
    folder = photo_folder(classes=2, count=100)
    machine.pixels_per_second = 64 * 64 / 0.3  # an image is measured in 0.1 s, thrice a run
    few = propose(folder, 60)
    assert few.config.data.max_val == 20
    assert line(few, "validation images used") == (
        "validation images used: 20 — because measuring on all 40 would take more than a tenth of "
        "the time"
    )
    assert "measured on 20 validation images" in few.lines[-1]
    assert propose(folder, 20).config.data.max_val == 10  # the least
    assert propose(folder, 600).config.data.max_val is None
    assert propose(folder, 60, {"data.max_val": 30}).config.data.max_val == 30
    assert propose(folder, 300, {"data.folds": 5}, runs=5).config.data.max_val is None


def test_waiting_for_a_core_takes_no_processor_time() -> None:
    time = front_door.Time(100, front_door.CLOCKS["processor"])
    time.core_time = (0.0, -1e6)
    assert time.busy == 1


def test_any_model_is_taken_at_the_largest_size_that_the_budget_pays_for(
    photo_folder: PHOTOS, machine: Machines, tmp_path: Path
) -> None:
    folder = photo_folder(classes=2, count=100, size=(150, 140))
    own = tmp_path / "my_net.py"
    own.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, in_chans, img_size):\n"
        "        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(in_chans, 8, 3), nn.Linear(8, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.conv(x).mean((2, 3)))\n"
    )
    for model in ("resnet_50", f"{own}:Net"):
        machine.pixels_per_second = 4e7
        chosen = propose(folder, overrides={"model": model}).config
        assert chosen.model.img_size == 144
        assert chosen.optim.lr == 5e-4  # 1e-3 at batch 64, here 16
        machine.pixels_per_second = 4e4
        less = propose(folder, overrides={"model": model})
        assert less.config.model.img_size == 64
        assert "at 96 pixels" in line(less, "image size")


def test_a_folder_named_as_a_source_is_the_folder(
    photo_folder: PHOTOS, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder(name="fashion", classes=2, count=30)
    monkeypatch.chdir(folder.parent)
    data = propose(Path("fashion")).config.data
    assert (data.source, data.path) == ("folder", str(folder))


def test_a_model_too_large_for_the_memory_is_not_chosen(
    photo_folder: PHOTOS, machine: Machines
) -> None:
    machine.most_pixels = 16 * 64 * 64 * 1.5
    proposal = propose(photo_folder(classes=2, count=100, size=(100, 80)))
    assert proposal.config.model.name == "vit_r_tiny64"
    assert "does not fit" in line(proposal, "model")
    machine.most_pixels = 10
    with pytest.raises(ConfigError, match="does not fit into the memory") as caught:
        propose(photo_folder(name="other"))
    assert "--train.micro_batch" in str(caught.value)


def test_the_micro_batch_shrinks_to_what_the_memory_holds(
    photo_folder: PHOTOS, machine: Machines
) -> None:
    machine.most_pixels = 32 * 64 * 64
    fixed = {
        "train.batch": 128,
        "model": "vit_c_tiny",
        "model.img_size": 64,
        "data.balance": "full",
    }
    proposal = propose(photo_folder(classes=2, count=100), None, fixed)
    assert proposal.config.train.micro_batch == 32
    assert "memory" in line(proposal, "micro-batch")


def test_precision_is_what_a_measurement_says_and_auto_leaves_it_to_that(
    photo_folder: PHOTOS,
) -> None:
    for fixed in ({}, {"train.precision": "auto"}):
        proposal = propose(photo_folder(name=f"photos{len(fixed)}"), None, fixed)
        assert proposal.config.train.precision == "bf16"
        assert line(proposal, "precision") == "precision: bf16 — because it is twice as fast"


def test_threads_are_halved_for_as_long_as_that_is_faster(
    photo_folder: PHOTOS, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    folder = photo_folder()
    assert propose(folder).config.train.threads == 8
    machine.threads = {8: 50.0, 4: 30.0}
    proposal = propose(folder)
    assert proposal.config.train.threads == 2
    assert re.search(r"takes .+ ms with 2, .+ ms with 1", line(proposal, "threads"))
    assert propose(folder, None, {"train.threads": 8}).config.train.threads == 8


@pytest.mark.parametrize(
    "fixed",
    [
        {"model": "vit_p_tiny"},
        {"model": "vit_c_tiny", "model.img_size": 96, "model.drop_path_rate": 0.1},
        {"model.img_size": 48, "model.in_chans": 1},
        {"train.batch": 24, "train.micro_batch": 12, "train.epochs": 7},
        {"train.eval_every_epochs": 3, "train.precision": "fp32", "train.seed": 5},
        {"optim": "sgd", "optim.lr": 0.0123},
        {"optim.kind": "sgd", "optim.momentum": 0.8, "train.device": "cpu"},
        {"data.val_fraction": 0.3, "data.test_fraction": 0.1, "data.fit": "pad"},
        {"data.balance": "full", "data.max_train": 20},
        {"data.augment.crop": "none", "data.augment.mixup_alpha": 0.0, "data.augment.flip": 0.0},
        {"data.augment.scale": (0.5, 0.9)},
    ],
    ids=lambda fixed: ",".join(f"{k}={v}" for k, v in fixed.items()),
)
def test_what_the_user_fixed_stays(fixed: dict[str, Any], photo_folder: PHOTOS) -> None:
    config = propose(photo_folder(count=20), None, fixed).config
    kind = to_dict(config)["optim"]["kind"]
    values = {**leaves(config), "model": config.model.name, "optim": kind, "optim.kind": kind}
    assert {key: values[key] for key in fixed} == fixed


def test_another_optimizer_brings_its_own_learning_rate(photo_folder: PHOTOS) -> None:
    folder = photo_folder()
    config = propose(folder, None, {"optim": "sgd"}).config
    recipe = get_recipe(auto_rules.RECIPE, "sgd")
    expected, _ = auto_rules.learning_rate(
        recipe.optim, recipe.train.batch, config.train.batch, config.model.embed_dim
    )
    assert config.optim.lr == expected
    assert config.optim.weight_decay == recipe.optim.weight_decay  # AdamW's is not an SGD's
    per = propose(folder, None, {"optim": "sgd", "optim.lr_per_batch": 2048}).config
    assert per.optim.peak_lr(config.train.batch) == pytest.approx(expected)  # in another unit


@pytest.mark.parametrize("hidden", [False, True])
def test_the_optimizer_chosen_is_one_that_a_custom_model_can_use(
    hidden: bool,
    photo_folder: PHOTOS,
    machine: Machines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = "nn.Conv2d(8, 8, 3), " if hidden else ""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def Net(num_classes):\n"
        f"    return nn.Sequential(nn.Conv2d(3, 8, 5, 4), {more}nn.AdaptiveAvgPool2d(1),\n"
        "        nn.Flatten(), nn.Linear(8, num_classes))\n"
    )

    def stepping(config: RunConfig, *own: Any, **more: Any) -> Probe | None:
        build_optimizer(config.optim, build_model(config.model, 2))
        return machine(config, *own, **more)

    monkeypatch.setattr(probing, "probe", stepping)
    fixed = {"model": f"{tmp_path / 'net.py'}:Net", "train.precision": "fp32"}
    photos = photo_folder()
    proposal = propose(photos, 20.0, fixed, "scratch")
    assert isinstance(proposal.config.optim, MuonConfig if hidden else AdamWConfig)
    which = "muon — because from scratch" if hidden else "adamw — because muon is for hidden weight"
    assert line(proposal, "optimizer").startswith(f"optimizer: {which}")
    if not hidden:
        with pytest.raises(ConfigError, match="none is trained"):
            propose(photos, 20.0, {**fixed, "optim": "muon"}, "scratch")


@pytest.mark.parametrize(
    ("fixed", "epochs", "mixed", "share"),
    [
        ({}, 19, 0, 1),
        ({}, 20, 0.8, 0.8),
        ({"optim": "adamw"}, 99, 0, 1),
        ({"optim": "adamw"}, 100, 0.8, 1),
        ({"data.augment.mixup_alpha": 0.2}, 100, 0.2, 0.8),
    ],
)
def test_muon_mixes_earlier_and_not_every_batch(
    fixed: dict[str, Any], epochs: int, mixed: float, share: float, photo_folder: PHOTOS
) -> None:
    config = propose(photo_folder(), None, {**fixed, "train.epochs": epochs}).config
    augment = config.data.augment
    assert (augment.mixup_alpha, augment.cutmix_alpha > 0) == (mixed, mixed > 0)
    assert augment.mix_prob == share
    decay = config.optim.weight_decay
    assert not fixed.get("optim") or decay == auto_rules.ADAMW_DECAY


def test_gray_photos_are_trained_on_in_one_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for c in ("a cat", "a dog"):
        (tmp_path / "set" / c).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 255, (50, 50, 1), dtype=np.uint8).repeat(3, axis=2)
            Image.fromarray(pixels).save(tmp_path / "set" / c / f"{i}.jpg")  # RGB that is gray
    proposal = propose(tmp_path / "set")
    assert proposal.config.model.in_chans == 1
    assert "none of 12 images" in line(proposal, "channels")


def test_a_folder_with_its_own_validation_images_keeps_them(photo_folder: PHOTOS) -> None:
    train = photo_folder(classes=2, count=20, name="set/train")
    photo_folder(classes=2, count=5, name="set/val")
    proposal = propose(train.parent)
    assert "40 to train on, 10 to validate" in line(proposal, "images")
    assert not any("held out" in text for text in proposal.lines)
    assert len(open_data(proposal.config.data).splits["train"]) == 40


def test_images_of_32_pixels_are_treated_as_cifar_is(photo_folder: PHOTOS) -> None:
    config = propose(photo_folder(size=(32, 32))).config
    assert (config.model.img_size, config.model.name) == (32, "vit_r_mini")
    assert (config.data.augment.crop, config.data.eval_crop) == ("shift", 1.0)


def test_very_uneven_classes_are_balanced_and_the_baseline_is_said(
    tmp_path: Path, photo_folder: PHOTOS
) -> None:
    folder = photo_folder(classes=2, count=50)
    for file in sorted((folder / "class_1").iterdir())[5:]:
        file.unlink()
    proposal = propose(folder)
    assert proposal.config.data.balance == "sqrt"
    assert "always naming the largest class 90.9 %" in line(proposal, "expect")
    assert "Chance is 50.0 %" in line(proposal, "expect")


def test_what_to_expect_of_few_images_is_said_without_gloss(photo_folder: PHOTOS) -> None:
    proposal = propose(photo_folder(classes=3, count=20))
    assert "a rough model" in line(proposal, "expect")
    assert "48 images" in line(proposal, "expect")
    assert "pretrained" in line(proposal, "expect")
    low, high = wilson(50.0, 12)
    assert f"{(high - low) / 2:.1f} points" in line(proposal, "certainty")
    assert "12 validation images" in line(proposal, "certainty")


def test_fewer_than_sixteen_images_are_warned_of(photo_folder: PHOTOS) -> None:
    proposal = propose(photo_folder(classes=2, count=4))
    assert proposal.config.train.batch == 6
    assert "BatchNorm" in warnings(proposal)
    assert "fewer than 10 training images of class_0, class_1:" in warnings(proposal)
    few_tokens = propose(
        photo_folder(name="more"), None, {"model": "vit_c_1gf", "model.img_size": 32}
    )
    assert "only 4 tokens" in warnings(few_tokens)


def test_findings_in_the_images_are_warned_of_in_a_line_each_with_the_setting(
    tmp_path: Path,
) -> None:
    for i in range(120):
        folder = tmp_path / "x" / f"{'cat' if i % 2 else 'New folder'}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"person{i // 6}_{i}.jpg")
    proposal = propose(tmp_path / "x")
    found = warnings(proposal).splitlines()
    assert len(found) == 3
    assert "New folder" in found[0]
    assert "--data.group '(person\\d+)'" in found[1]
    assert f"vitc data check {tmp_path / 'x'}" in found[2]
    mended = propose(tmp_path / "x", overrides={"data.group": r"(person\d+)"})
    assert "--data.group" not in warnings(mended)


def test_a_broken_file_is_named_before_anything_is_trained_or_skipped_if_asked(
    photo_folder: PHOTOS,
) -> None:
    folder = photo_folder()
    (folder / "class_0" / "003.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    with pytest.raises(BrokenFileError, match=r"003\.jpg"):
        propose(folder, None, {"data.val_fraction": 0.01})
    assert propose(folder, None, {"data.bad_files": "skip"}).config.data.bad_files == "skip"


def test_a_batch_larger_than_the_set_is_refused(photo_folder: PHOTOS) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch 500 is more"):
        propose(photo_folder(), None, {"train.batch": 500})
    with pytest.raises(DataError):
        propose(photo_folder(classes=1, name="one class"))


@pytest.mark.parametrize("budget", [0, -5, math.inf, math.nan])
def test_a_budget_must_be_a_time(budget: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget"):
        propose(tmp_path, budget)


def test_what_no_choice_can_mend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        propose(tmp_path / "absent")
    with pytest.raises(ConfigError, match="--data fashion"):
        propose(tmp_path, None, {"data": "fashion"})


@pytest.mark.parametrize("size", [(60, 48), (32, 32)])
def test_a_pack_gets_what_the_folder_that_it_was_made_of_gets(
    size: tuple[int, int], photo_folder: PHOTOS, tmp_path: Path
) -> None:
    folder = photo_folder(size=size)
    pack(DataConfig(source="folder", path=str(folder)), tmp_path / "photos.vitc", PackOptions())
    expected, found = propose(folder), propose(tmp_path / "photos.vitc")
    there = DataConfig(source="packed", path=str(tmp_path / "photos.vitc"))
    data = dataclasses.replace(expected.config.data, source=there.source, path=there.path)
    assert found.config == dataclasses.replace(expected.config, data=data)
    assert found.lines == expected.lines


def test_a_list_and_a_folder_of_shards_get_what_their_images_get_as_a_folder(
    photo_folder: PHOTOS, tmp_path: Path
) -> None:
    folder = photo_folder()
    files = sorted(folder.glob("*/*.jpg"))
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files]
    (tmp_path / "list.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "train-000.tar", "w") as tar:
        for file in files:
            tar.add(file, f"{file.parent.name}/{file.name}")
    expected = propose(folder)
    for images, source in (("list.csv", "list"), ("shards", "tar")):
        found = propose(tmp_path / images)
        assert found.config.data.source == source
        assert found.config.model == expected.config.model
        assert found.config.train == expected.config.train
        assert found.lines == expected.lines


def test_a_run_is_named_as_its_images(photo_folder: PHOTOS, tmp_path: Path) -> None:
    (tmp_path / "pets.v2.vitc").touch()
    assert front_door.name_of(tmp_path / "pets.v2.vitc") == "pets.v2"
    assert front_door.name_of(photo_folder(name="my.photos")) == "my.photos"


def test_one_of_a_thing_is_said_as_one(photo_folder: PHOTOS) -> None:
    once = {"train.batch": 24, "optim.schedule.warmup_epochs": 1.0, "train.epochs": 3}
    proposal = propose(photo_folder(), None, once)
    assert line(proposal, "schedule").startswith("schedule: 1 epoch of warm-up")
    assert "has 1 step" in line(propose(photo_folder(name="few", count=6)), "batch")


def test_the_probe_measures_and_leaves_torch_as_it_was() -> None:
    config = RunConfig(
        model=model_config("vit_c_tiny", drop_path_rate=0.1), data=DataConfig(source="synthetic")
    )
    data = open_data(config.data)
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    cost = probe(config, data, torch.device("cpu"), seconds=0.01)
    assert cost is not None
    assert 0 < cost.eval_seconds < 60
    assert 0 < cost.step_seconds < 60
    assert cost.memory_bytes > 1e7
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before[1:]
    assert torch.is_grad_enabled()


def test_the_probe_may_take_more_steps_than_the_run() -> None:
    config = RunConfig(
        model=model_config("vit_c_tiny"),
        data=DataConfig(source="synthetic", max_train=20),
        train=TrainConfig(epochs=1, batch=16),
    )
    assert probe(config, open_data(config.data), torch.device("cpu"), seconds=0.5) is not None


def test_the_clock_may_be_too_coarse_for_what_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probing.CLOCKS, "wall", lambda: 0.0)
    monkeypatch.setattr(probing, "MOST_STEPS", 3)
    config = RunConfig(
        model=model_config("vit_c_tiny"),
        data=DataConfig(source="synthetic", max_train=20),
        train=TrainConfig(epochs=1, batch=16),
    )
    cost = probe(config, open_data(config.data), torch.device("cpu"))
    assert cost is not None
    assert (cost.step_seconds, cost.eval_seconds, cost.eval_share) == (0, 0, 1)


def test_the_probe_reports_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(probing, "_measure", full)
    config = RunConfig(model=model_config("vit_c_tiny"), data=DataConfig(source="synthetic"))
    assert probe(config, open_data(config.data), torch.device("cpu")) is None


def test_the_faster_precision_is_measured_only_where_bf16_is_native(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, cpu = RunConfig(model=model_config("vit_c_tiny")), torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    precision, why = faster_precision(config, cpu, repeats=1)
    assert precision in ("bf16", "fp32")
    assert "the rate of fp32" in why
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert faster_precision(config, cpu) == ("fp32", "this cpu has no bf16 instructions")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vitc.training.loop import run

    folder = tmp_path_factory.mktemp("weights") / "run"
    brief = {"train.epochs": 1, "train.threads": 1, "data.max_train": 64}
    run(load_config("debug", **brief), folder, quiet=True)
    return folder


def test_with_weights_their_model_and_size_are_taken_and_the_rate_is_lower(
    photo_folder: PHOTOS, weights: Path
) -> None:
    photos = photo_folder(classes=3, count=20)
    fresh = propose(photos, 20.0, {"model": "vit_c_tiny", "model.img_size": 32})
    tuned = propose(photos, 20.0, {"init": str(weights)})
    assert tuned.config.model.name == "vit_c_tiny"
    assert tuned.config.model.size == (32, 32)
    assert tuned.config.init.weights == str(weights)
    assert tuned.config.optim.lr == pytest.approx(0.3 * fresh.config.optim.lr, rel=0.05)
    assert line(tuned, "start") == f"start: {weights} — because you set --init"
    assert line(tuned, "model") == "model: vit_c_tiny — because the weights require it"
    assert "from scratch" not in "\n".join(tuned.lines)
    larger = propose(photos, 20.0, {"init": str(weights), "model.img_size": 48})
    assert larger.config.model.size == (48, 48)


def test_weights_that_do_not_say_their_model_ask_for_it(
    photo_folder: PHOTOS, weights: Path, tmp_path: Path
) -> None:
    file = next(weights.glob("checkpoints/step_*/model.safetensors"))
    with pytest.raises(ConfigError, match=r"does not name the model(.|\n)*--model NAME"):
        propose(photo_folder(), 20.0, {"init": str(file)})


@pytest.mark.parametrize(
    "own", [{}, {"data.group": "(person[0-9]+)"}, {"data.folds": 3, "data.fold": 2}]
)
def test_groups_are_named_before_images_are_split(own: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for c in range(2):
        (tmp_path / f"class_{c}").mkdir()
        for person, shot in itertools.product(range(8), range(6)):
            pixels = rng.integers(0, 255, (48, 48, 3)).astype(np.uint8)
            name = f"person{8 * c + person}_{shot}.jpg"
            Image.fromarray(pixels).save(tmp_path / f"class_{c}" / name)
    proposal = propose(tmp_path, 60, own)
    group = proposal.group
    assert bool(group) == ("data.group" not in own)
    assert bool(group) == ("--data.group" in warnings(proposal))
    if group:
        sides = open_data(DataConfig(source="folder", path=str(tmp_path), group=group)).splits
        people = [{n.split("_")[-2] for n in split.names} for split in sides.values()]
        assert len(set().union(*people)) == sum(map(len, people))
