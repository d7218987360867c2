"""The named configs: complete, honest about what they are, and refusing what they cannot do."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_loop import assert_same_run, stop_after, tiny
from tests.test_optim import need_package_of
from vitc.cli.parser import take_settings
from vitc.config import RunConfig, from_dict, to_dict
from vitc.errors import ConfigError
from vitc.models.zoo import CNNS
from vitc.optim.optimizers import OPTIMIZERS
from vitc.optim.schedule import ConstantConfig
from vitc.recipes import RECIPES, find_recipe, get_recipe
from vitc.recipes.ranges import study_ranges
from vitc.resolve import load_config
from vitc.study.measures.hparams import hparams_plan
from vitc.training.loop import run

BOTH = [n for n in RECIPES if not re.search("36gf|resnet|effnet|imagenet21k|finetune|deit", n)]
PRETRAIN = [name for name in RECIPES if name.startswith("imagenet21k")]
FINETUNE = [name for name in RECIPES if "finetune" in name]
DEIT = [name for name in RECIPES if name.endswith("_deit")]
IMAGENET = [n for n in RECIPES if n.startswith("imagenet") and n not in DEIT]
SMALL = [name for name in RECIPES if not name.startswith("imagenet")]


def complete(config: RunConfig) -> RunConfig:
    """With the folder, and the weights, that a user has to name."""
    if config.init.weights == "":
        init = dataclasses.replace(config.init, weights="run")
        config = dataclasses.replace(config, init=init)
    if config.data.source in ("folder", "cifar10"):
        return dataclasses.replace(config, data=dataclasses.replace(config.data, path="images"))
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_run_survives_its_file_and_is_documented(name: str) -> None:
    config = complete(get_recipe(name)).checked()
    assert config.name == name
    assert from_dict(to_dict(config)) == config
    assert config.model.num_classes is None, "the data has the number of classes"
    text = find_recipe(name).doc
    for part in ("Source: ", f"Command: vitc train {name}", "Cost: ", "Expected: ", "measured"):
        assert part in text, f"{name} has no {part!r}"
    assert text.startswith(find_recipe(name).summary)
    assert find_recipe(name).summary[-1] in ".?"
    recipe = get_recipe(name)
    assert ("--data DIR" in text) == (config.data != recipe.data)
    assert ("--init RUN" in text) == (config.init != recipe.init)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_each_optimizer_has_its_own_rate_and_nothing_else_changes(name: str, optim: str) -> None:
    config = complete(get_recipe(name, optim)).checked()
    assert type(config.optim) is OPTIMIZERS[optim]
    default = complete(get_recipe(name))
    assert dataclasses.replace(config, optim=default.optim) == default
    assert get_recipe(name, "adamw").optim.lr != get_recipe(name, "sgd").optim.lr


RESUMED = {"muon", "adamw_schedulefree"}  # by `make test` too; the others by `make check`
NEW = ["nadamw", "muon", "lion", "adamw_schedulefree", "sgd_schedulefree"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_every_optimizer_with_rates_that_follow_from_its_own(name: str) -> None:
    recipe = RECIPES[name]
    for kind in [kind for kind in NEW if kind not in recipe.tuned]:
        config = complete(get_recipe(name, kind)).checked()
        like, own = config.optim.like, config.optim
        assert like is not None
        base = recipe.tuned.get(like.optim, OPTIMIZERS[like.optim](lr_per_batch=2048))
        assert own.lr == pytest.approx(base.lr * like.lr)
        assert own.weight_decay == pytest.approx(base.weight_decay * like.weight_decay)
        assert own.lr_per_batch == base.lr_per_batch
        note = recipe.untuned(kind) or ""
        assert f"no tuned settings for {kind}" in note
        assert (f"those of {like.optim} times {like.lr:g}" in note) == (like.optim in recipe.tuned)
        free = own.schedule_free
        assert ("averages the weights itself" in note) == free
        assert own.schedule.decays != free
        assert own.schedule.warmup(50) == recipe().optim.schedule.warmup(50)
        assert own.average == ("schedule-free" if free else recipe().optim.average)
        assert from_dict(to_dict(config)) == config
    assert recipe.untuned(None) is None


def test_studies_per_batch_2048_draw_from_the_papers_ranges_times_the_factors() -> None:
    lion = study_ranges(get_recipe("imagenet_vit_c_1gf", "lion"), "lion")
    assert lion["optim.lr"] == pytest.approx((0.2 * 2.5e-4, 0.2 * 8.0e-3))
    assert lion["optim.weight_decay"] == pytest.approx((5 * 0.02, 5 * 0.8))
    free = study_ranges(get_recipe("imagenet_regnety_4gf", "sgd_schedulefree"), "sgd_schedulefree")
    assert free["optim.lr"] == pytest.approx((2.5, 80.0))


def test_a_file_switched_to_a_schedule_free_optimizer_has_a_note_on_what_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(tiny(**{"optim.schedule.warmup_epochs": 1.0}))))
    config = load_config(file, optim="adamw_schedulefree")
    assert config.optim.schedule == ConstantConfig(warmup_epochs=1.0)
    assert config.optim.lr == 2 * tiny().optim.lr
    assert "averages the weights itself" in caplog.text
    caplog.clear()
    load_config(config, **{"optim.lr": 1e-3})
    assert not caplog.text


def assert_resumes(config: RunConfig, folder: Path) -> None:
    """A run that was stopped ends with the same weights as one that was not."""
    run(config, folder / "whole", quiet=True)
    stop_after(config, folder / "cut", step=5)
    run(load_config(folder / "cut"), folder / "cut", quiet=True)
    assert_same_run(folder / "whole", folder / "cut")


@pytest.mark.parametrize(
    "kind", [k if k in RESUMED else pytest.param(k, marks=pytest.mark.slow) for k in NEW]
)
def test_every_optimizer_trains_resumes_and_is_studied(kind: str, tmp_path: Path) -> None:
    need_package_of(kind)
    small = {"train.epochs": 3, "data.max_train": 64, "optim.layer_decay": 0.9}
    config = tiny(optim=kind, **small, **{"optim.clip_norm": 1.0})
    assert_resumes(config, tmp_path)
    started = config.optim
    plan = hparams_plan(["debug"], ["vit_p_tiny"], [kind], draws=2, **{"train.epochs": 1})
    assert plan.ranges[kind]["optim.lr"].low == pytest.approx(started.lr / 8)
    assert plan.ranges[kind]["optim.weight_decay"].high == pytest.approx(4 * started.weight_decay)
    assert len({t.id for t in plan.trials()}) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "adamw_schedulefree", "optim.schedule": "cosine"}, "optim.schedule constant"),
        (
            {"optim": "sgd_schedulefree", "optim.ema.kind": "fraction"},
            "averages the weights itself",
        ),
        ({"optim": "lion", "optim.eps": 1e-6}, "optim.eps has no effect with optim 'lion'"),
        ({"optim": "sgd_schedulefree", "optim.momentum": 1.0}, "optim.momentum 1.0 must be in"),
        ({"optim.schedule": "wsd", "optim.schedule.per": "epoch"}, "it is a setting of 'cosine'"),
        ({"optim.schedule": "step", "optim.schedule.drops": (0.01,)}, "epochs of warm-up"),
    ],
)
def test_settings_that_an_optimizer_or_schedule_cannot_follow_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("debug", **settings)
    assert message in f"{caught.value.message} {caught.value.hint}"


CUSTOM = """
import torch

class Nudge(torch.optim.SGD):
    def __init__(self, params, lr, rho=0.5):
        super().__init__(params, lr=lr, momentum=rho)

class Down:
    def __init__(self, power=1):
        self.power = power

    def lr(self, step, total_steps):
        return (1 - step / total_steps) ** self.power
"""


def test_an_optimizer_and_a_schedule_of_the_users_own_train_resume_and_are_studied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("VITC_TRUSTED", raising=False)
    file = tmp_path / "own.py"
    file.write_text(CUSTOM)
    settings, _ = take_settings(
        f"--optim {file}:Nudge --optim.schedule {file}:Down --optim.settings.rho 0.9 "
        "--optim.schedule.settings.power 2 --optim.lr 0.01 --train.epochs 3 "
        "--data.max_train 64".split()
    )
    config = tiny(**settings)
    assert config.optim.schedule.lr(50, peak=1.0, epochs=10, steps_per_epoch=10) == 0.25
    assert from_dict(to_dict(config)) == config
    assert_resumes(config, tmp_path)
    drawn = [("optim.settings.rho", 0.1, 0.9)]
    plan = hparams_plan(["debug"], ["vit_p_tiny"], [f"{file}:Nudge"], draws=2, range=drawn)
    rho = {t.config.optim.settings["rho"] for t in plan.trials()}  # type: ignore[attr-defined]
    assert len(rho) == 2
    with pytest.raises(ConfigError, match="no setting 'rhoo'"):
        tiny(optim=f"{file}:Nudge(rhoo=1)").optim.build([], fused=False)
    file.write_text("")  # the run keeps its own copy
    kept = load_config(tmp_path / "whole").optim
    for source in (kept.source, kept.schedule.source):  # type: ignore[attr-defined]
        assert source.startswith(str(tmp_path / "whole" / "sources"))


@pytest.mark.parametrize("name", SMALL)
def test_small_recipes_state_absolute_rates_and_horizons_that_follow_the_run(name: str) -> None:
    for optim in ("adamw", "sgd"):
        config = get_recipe(name, optim).optim
        assert config.lr_per_batch is None
        assert config.peak_lr(7) == config.lr
        assert config.ema.kind == "fraction"
        assert config.schedule.warmup_epochs is None


@pytest.mark.parametrize(
    ("model", "adamw", "sgd"),
    [
        ("vit_p_1gf", (1e-3, 0.24), (1.9, 1.3e-5)),
        ("vit_p_4gf", (1e-3, 0.24), (1.9, 1.3e-5)),
        ("vit_p_18gf", (1e-3, 0.24), (1.1, 1.2e-5)),
        ("vit_p_36gf", (6e-4, 0.28), None),
        ("vit_c_1gf", (1e-3, 0.24), (1.9, 1.3e-5)),
        ("vit_c_4gf", (1e-3, 0.24), (1.3, 2.2e-5)),
        ("vit_c_18gf", (1e-3, 0.24), (1.1, 2.7e-5)),
        ("vit_c_36gf", (6e-4, 0.28), None),
    ],
)
def test_imagenet_rates_are_the_papers_for_batch_2048(
    model: str, adamw: tuple[float, float], sgd: tuple[float, float] | None
) -> None:
    name = f"imagenet_{model}"
    config = get_recipe(name)
    assert config.model.name == model
    assert (config.optim.lr, config.optim.weight_decay) == adamw
    assert config.train.batch == config.optim.lr_per_batch == 2048
    assert config.train.micro == 256, "8 GPUs of the authors"
    if sgd is None:
        assert "sgd" not in RECIPES[name].tuned
    else:
        other = get_recipe(name, "sgd").optim
        assert (other.lr, other.weight_decay) == sgd


@pytest.mark.parametrize("model", CNNS)
def test_cnns_train_with_the_papers_sgd_at_their_own_sizes(model: str) -> None:
    name = f"imagenet_{model}"
    config = get_recipe(name)
    assert config.model == CNNS[model]
    assert type(config.optim) is OPTIMIZERS["sgd"]
    assert (config.optim.lr, config.optim.weight_decay) == (2.54, 2.4e-5)
    assert config.optim.lr_per_batch == 2048
    small = {"effnet_b4": 512, "effnet_b5": 256}  # the paper: below 2048, but not how far
    assert config.train.batch == small.get(model, 2048)
    assert config.optim.peak_lr(config.train.batch) == 2.54 * config.train.batch / 2048
    if model in small:
        assert "our choice" in find_recipe(name).doc
    if model.startswith("regnety"):
        other = get_recipe(name, "adamw").optim
        assert (other.lr, other.weight_decay) == (3.8e-3, 0.1)
    else:
        assert "adamw" not in RECIPES[name].tuned


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipes_follow_the_authors_schedule_average_and_augmentation(name: str) -> None:
    config = get_recipe(name)
    schedule, ema, augment = config.optim.schedule, config.optim.ema, config.data.augment
    assert (schedule.per, schedule.warmup_start, schedule.floor) == ("epoch", 0.1, 0.005)
    assert (ema.kind, ema.alpha, ema.period) == ("pycls", 1e-5, 32)
    assert augment.crop == "random_resized"
    assert (augment.scale, augment.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (augment.mixup_alpha, augment.cutmix_alpha, augment.label_smoothing) == (0.8, 1.0, 0.1)
    assert (augment.policy, augment.lighting, augment.erase, augment.repeats) == ("v0", 0.1, 0, 1)
    assert config.train.precise_bn_images == 8192
    test_size = {n: c.test_size for n, c in CNNS.items()}.get(config.model.name, 256)
    train_size = 224 if "384" in name else config.model.size[0]  # fine-tuned larger: same share
    assert (augment.flip, train_size / config.data.eval_crop) == (0.5, test_size)
    assert config.train.epochs == (90 if name in PRETRAIN else 20 if name in FINETUNE else 400)
    assert getattr(config.model, "drop_path_rate", 0) == 0
    assert config.optim.clip_norm is None


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_scales_the_papers_rate_to_batch_4096(name: str) -> None:
    config = get_recipe(name)
    lr, decay = {"36gf": (6e-4, 0.28), "72gf": (6e-4, 0.15)}.get(name.split("_")[3], (1e-3, 0.24))
    assert config.train.batch == 4096
    assert config.optim.peak_lr(4096) == pytest.approx(2 * lr)
    assert config.optim.weight_decay == decay
    kept = ("stem.layers",) if name.endswith("vit_c_72gf") else ()  # from another model's stem
    assert config.init.only == config.train.freeze == kept


@pytest.mark.parametrize("name", DEIT)
def test_the_deit_set_up_is_that_of_its_table_and_has_no_average(name: str) -> None:
    config = get_recipe(name)
    augment = config.data.augment
    assert (augment.policy, augment.rand_magnitude, augment.rand_std) == ("randaugment", 9, 0.5)
    assert (augment.erase, augment.repeats, augment.mixup_alpha) == (0.25, 3, 0.8)
    assert (augment.cutmix_alpha, augment.label_smoothing) == (1.0, 0.1)
    assert config.optim.ema.kind == "none"
    assert config.model.drop_path_rate == 0.1
    assert config.optim.weight_decay == (0.5 if "18gf" in name else 0.2)


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_needs_weights_and_decays_none(name: str) -> None:
    config = get_recipe(name)
    assert config.optim.weight_decay == 0
    with pytest.raises(ConfigError, match=r"init\.weights is open.*--init"):
        dataclasses.replace(complete(config), init=config.init).checked()
    assert config.model.size == ((384, 384) if "384" in name else (224, 224))


@pytest.mark.parametrize("pair", ["fashion", "cifar10"])
def test_a_pair_differs_in_its_model_and_nothing_else(pair: str) -> None:
    c, p = get_recipe(f"{pair}_vit_c"), get_recipe(f"{pair}_vit_p")
    assert c.model != p.model
    assert dataclasses.replace(c, name=p.name, model=p.model) == p


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'fashion_vit_c'"):
        get_recipe("fashion_vitc")
    with pytest.raises(ConfigError, match=r"Unknown optimizer 'adam'\. Did you mean 'adamw'"):
        get_recipe("debug", "adam")
    with pytest.raises(ConfigError, match="Unknown recipe"):
        find_recipe("nothing")


def test_recipes_are_listed_without_torch() -> None:
    code = (
        "import sys, vitc.recipes as r; [r.get_recipe(n) for n in r.RECIPES];"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
