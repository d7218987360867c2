"""A config goes to JSON and back, takes overrides, and refuses what cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.source_folders import plant
from vitc.config import (
    RunConfig,
    all_leaf_types,
    differences,
    from_dict,
    leaf_types,
    leaves,
    to_dict,
)
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import open_data
from vitc.data.sources import guess_source
from vitc.errors import ConfigError, VitcError
from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.optim.optimizers import AdamWConfig, SGDConfig
from vitc.recipes import RECIPES
from vitc.resolve import base_config, load_config, resolve_config, with_data, with_model


def refused(*words: str, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig(), **overrides)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# -- to JSON and back ------------------------------------------------------------------------------


def test_a_config_survives_json_with_its_kinds_and_tuples() -> None:
    config = RunConfig(
        model=ViTConfig(stem=ConvStemConfig(), img_size=(32, 64), embed_dim=384),
        data=DataConfig(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        optim=SGDConfig(lr=0.5, lr_per_batch=None),
    )
    text = json.dumps(to_dict(config))
    assert from_dict(json.loads(text)) == config
    assert '"kind": "sgd"' in text
    assert '"kind": "conv"' in text


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "train.epochs": st.integers(1, 10**6),
            "optim.lr": st.floats(1e-9, 1e3),
            "train.compile": st.booleans(),
            "train.seed_init": st.none() | st.integers(0, 2**40),
            "data.fit": st.sampled_from(["crop", "pad", "squash"]),
            "model.img_size": st.integers(1, 64).map(lambda n: 16 * n)
            | st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda s: (16 * s[0], 16 * s[1])),
        },
    )
)
def test_overrides_arrive_and_nothing_else_changes(overrides: dict[str, Any]) -> None:
    before, after = leaves(RunConfig()), leaves(load_config(RunConfig(), **overrides))
    assert {k: after[k] for k in overrides} == overrides
    assert {k: v for k, v in after.items() if k not in overrides} == {
        k: v for k, v in before.items() if k not in overrides
    }


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().name = "x"  # type: ignore[misc]


# -- overrides -------------------------------------------------------------------------------------


def test_dotted_and_nested_overrides_mean_the_same() -> None:
    a = load_config(RunConfig(), **{"optim.lr": 0.5, "optim.schedule.floor": 0.1})
    b = load_config(RunConfig(), optim={"lr": 0.5, "schedule": {"floor": 0.1}})
    c = load_config(RunConfig(), optim={"schedule.floor": 0.1, "lr": 0.5})
    assert a == b == c
    assert a.optim.schedule.floor == 0.1


def test_a_component_and_its_details_may_come_in_any_order() -> None:
    pairs = [("optim", "sgd"), ("optim.momentum", 0.5)]
    for overrides in (dict(pairs), dict(reversed(pairs))):
        assert load_config(RunConfig(), **overrides).optim == dataclasses.replace(
            load_config(RunConfig(), optim="sgd").optim, momentum=0.5
        )
    details = {"model.stem.channels": [8, 16, 32, 64], "model.stem": "conv"}
    config = load_config(RunConfig(), **details)
    assert config.model.stem == ConvStemConfig(channels=(8, 16, 32, 64))
    same = load_config(RunConfig(), model={"stem": {"kind": "conv", "channels": [8, 16, 32, 64]}})
    assert same == config


def test_another_optimizer_keeps_what_both_have_but_neither_lr_nor_weight_decay() -> None:
    start = RunConfig(optim=AdamWConfig(lr=7.0, weight_decay=0.7, clip_norm=1.0))
    config = load_config(start, optim="sgd")
    assert config.optim == SGDConfig(clip_norm=1.0, lr_per_batch=2048)


def test_a_component_may_be_given_whole() -> None:
    optim = SGDConfig(lr=0.25)
    assert load_config(RunConfig(), optim=optim).optim == optim
    assert load_config(RunConfig(), optim=optim, **{"optim.lr": 0.5}).optim == SGDConfig(lr=0.5)


def test_a_model_of_the_zoo_keeps_the_size_of_the_runs_images() -> None:
    start = load_config(RunConfig(), **{"model.img_size": 64, "model.in_chans": 1})
    config = with_model(start, "vit_c_4gf")
    assert (config.model.img_size, config.model.in_chans) == (64, 1)
    assert isinstance(config.model.stem, ConvStemConfig)


def test_a_whole_number_will_do_for_a_number_but_not_the_other_way_round() -> None:
    assert load_config(RunConfig(), **{"optim.lr": 1}).optim.lr == 1.0
    refused("train.epochs is 1.5", "an integer", **{"train.epochs": 1.5})


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.lrr", 1.0, ["optim.lrr", "Did you mean 'optim.lr'", "optim.weight_decay"]),
        ("epochs", 3, ["'epochs'", "Did you mean 'train.epochs'"]),
        ("train.lr", 3, ["'train.lr'", "Did you mean 'optim.lr'"]),
        ("trian.epochs", 3, ["'trian'"]),
        ("optim.momentum", 0.9, ["no effect with optim 'adamw'", "--optim sgd"]),
        ("model.stem.channels", [8], ["no effect with model.stem 'patchify'", "--model.stem conv"]),
        ("optim", "adam", ["'adam'", "Did you mean 'adamw'"]),
        ("model.stem", "convv", ["'convv'", "Did you mean 'conv'"]),
        ("model", "vit_c_4fg", ["'vit_c_4fg'", "Did you mean 'vit_c_4gf'"]),
        ("data", "fashon", ["'fashon'", "Did you mean 'fashion'"]),
        ("data.fit", "corp", ["data.fit", "'corp'", "Did you mean 'crop'", "squash"]),
        ("train.epochs", "5", ["train.epochs is '5'", "an integer"]),
        ("train.epochs", True, ["train.epochs is True", "an integer"]),
        ("train.compile", 1, ["train.compile is 1", "true or false"]),
        ("model.img_size", [1, 2, 3], ["model.img_size", "an integer or 2 values"]),
        ("data.mean", ["a"], ["data.mean", "a list of a number or null"]),
        ("train", 3, ["train must be a table of settings, not 3"]),
        ("optim", None, ["optim must be a table of settings, not None"]),
        ("optim.lr", {"x": 1}, ["optim.lr is one value"]),
        ("optim.lr", {}, ["optim.lr is {}", "a number"]),
        ("model.name", "vit_c_4gf", ["only a label", "--model NAME"]),
        ("optim.lr", float("nan"), ["optim.lr nan must be a finite number"]),
        ("optim.weight_decay", float("inf"), ["optim.weight_decay inf must be a finite number"]),
        ("train.epochs", 0, ["train.epochs 0 must be at least 1"]),
        ("data.path", "/x", ["data.path has no effect with data.source 'fashion'"]),
        ("data.source", "folder", ["needs a folder"]),
        ("optim.schedule.warmup_epochs", 99, ["warmup_epochs 99", "train.epochs"]),
        ("optim.ema.alpha", 0.1, ["no effect with optim.ema.kind 'fraction'"]),
        ("data.augment.scale", (0.5, 1.0), ["no effect", "--data.augment.crop random_resized"]),
    ],
)
def test_what_is_wrong_is_said_with_its_value_and_what_is_allowed(
    key: str, value: Any, words: list[str]
) -> None:
    refused(*words, **{key: value})


def test_all_problems_are_said_at_once() -> None:
    refused("train.epochs 0", "optim.lr -1", **{"train.epochs": 0, "optim.lr": -1.0})


@pytest.mark.parametrize(
    "overrides",
    [
        {"optim": {"lr": 1.0}, "optim.lr": 2.0},
        {"model": {"stem": {"patch_size": 8}}, "model.stem.patch_size": 8},
        {"optim": "sgd", "optim.kind": "adamw"},
    ],
)
def test_a_setting_given_twice_is_refused(overrides: dict[str, Any]) -> None:
    refused("is set twice", **overrides)


def test_mean_and_std_must_have_one_entry_a_channel() -> None:
    values = {"data.mean": [0.5] * 3, "data.std": [0.5] * 3, "model.in_chans": 1}
    refused("data.mean", "3 entries", "model.in_chans 1", **values)


# -- where configs come from -----------------------------------------------------------------------


def test_a_config_is_read_from_a_file_and_from_a_run_folder(tmp_path: Path) -> None:
    config = load_config(RunConfig(), **{"train.epochs": 7})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert load_config(tmp_path) == config
    assert load_config(tmp_path / "config.json") == config
    assert load_config(tmp_path, **{"train.epochs": 8}).train.epochs == 8


def test_a_recipe_is_found_by_its_name_and_by_itself() -> None:
    assert load_config("debug") == load_config(RECIPES["debug"])
    assert load_config("debug", optim="sgd") == load_config(RECIPES["debug"], optim="sgd")
    assert isinstance(load_config("debug", optim="sgd").optim, SGDConfig)


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("{", ["not JSON", "line 1"]),
        ("[1]", ["not a JSON object"]),
        ('{"trian": {}}', ["'trian'"]),
        ('{"trian": {"epochs": 1}}', ["'trian'"]),
        ('{"optim": {"kind": "adan"}}', ["'adan'", "adamw"]),
    ],
)
def test_a_damaged_config_file_is_named(tmp_path: Path, content: str, pieces: list[str]) -> None:
    file = tmp_path / "c.json"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert all(piece in str(caught.value) for piece in pieces)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("fashion_vit_x", ["'fashion_vit_x'", "Did you mean 'fashion_vit_"]),
        ("photograps", ["Did you mean 'photographs'"]),
        ("../here/photograps", ["Did you mean '../here/photographs'?"]),
        ("runs/gone", ["'runs/gone'", "There is no recipe"]),
        ("gone.json", ["'gone.json'", "There is no recipe"]),
        (__file__, ["not a recipe, a run folder or a config file"]),
    ],
)
def test_a_name_that_leads_nowhere_is_named(
    name: str, pieces: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "photographs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError) as caught:
        base_config(name)
    assert all(piece in str(caught.value) for piece in pieces)


def test_a_recipe_that_lacks_its_data_can_be_shown_but_not_loaded() -> None:
    name = next(n for n in RECIPES if n.startswith("imagenet"))
    assert resolve_config(name).problems()
    with pytest.raises(ConfigError, match=r"--data\.path"):
        load_config(name)


# -- data ------------------------------------------------------------------------------------------


def test_a_folder_becomes_the_data_under_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    start = RunConfig(data=DataConfig(mean=(0.5,) * 3, std=(0.5,) * 3))
    data = with_data(start, "photos").data
    assert (data.source, data.path) == ("folder", str(tmp_path / "photos"))
    assert data.mean is data.std is None  # those were of other images
    config = load_config(RunConfig(), **{"data.path": "photos", "data": "cifar10"})
    assert (config.data.source, config.data.path) == ("cifar10", str(tmp_path / "photos"))
    assert with_data(config, "cifar10").data.path == config.data.path
    assert with_data(config, "idx").data.path is None  # that path was of another source


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (["data_batch_1", "test_batch"], "cifar10"),
        (["cifar-10-batches-bin/data_batch_1.bin"], "cifar10"),
        (["cifar-100-python/train", "flowers/a.jpg", "pets/b.jpg"], "cifar100"),
        (["train", "test", "meta"], "cifar100"),
        (["train.bin", "test.bin"], "cifar100"),
        (["train-images-idx3-ubyte.gz"], "idx"),
        (["x.parquet", "figures/a.png"], "parquet"),
        (["train/x.parquet", "test/x.parquet"], "parquet"),
        (["data/train.parquet", "figures/a.png", "photos/b.png"], "parquet"),
        (["cats", "dogs"], "folder"),
        (["train/cat/1.jpg", "test/cat/1.jpg", "meta/cat/1.jpg"], "folder"),
        (["photos/cat/1.jpg", "photos/dog/1.jpg", "data_batch_1"], "folder"),
        (["cat/1.jpg", "dog/1.jpg", "train-images-idx3-ubyte"], "folder"),
        (["notes-ubyte.txt", "train-images-idx3-ubyte.txt"], "folder"),
        (["cat/1.jpg", "dog/a/1.jpg", "x.parquet"], "folder"),
        (["train/cat/1.jpg", "test/cat/1.jpg", "train/x.parquet", "test/x.parquet"], "folder"),
    ],
)
def test_the_kind_of_a_data_folder_is_read_from_its_files(
    tmp_path: Path, files: list[str], source: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert guess_source(tmp_path) == source


@pytest.mark.parametrize(
    ("name", "values", "source"),
    [
        ("dataset_dict.json", {"splits": ["train"]}, "folder"),
        ("dataset_dict.json", {"splits": ["train", "saved"]}, "parquet"),
        ("state.json", {"_data_files": [{"filename": "a.arrow"}]}, "parquet"),
        ("dataset_dict.json", {"cat": 3}, "folder"),
        ("state.json", {"version": 1}, "folder"),
        ("state.json", ["_data_files"], "folder"),
    ],
)
def test_json_files_of_other_programs_are_no_saved_data_set(
    tmp_path: Path, name: str, values: Any, source: str
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    (tmp_path / name).write_text(json.dumps(values))
    assert guess_source(tmp_path) == source


def test_a_source_that_fails_on_class_folders_names_the_one_of_folders(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "state.json").write_text('{"_data_files": []}')
    config = DataConfig(source=guess_source(tmp_path), path=str(tmp_path))
    with pytest.raises(VitcError, match=r"lists no files|needs pyarrow") as error:
        open_data(config)
    assert str(error.value.hint).endswith("class folders: --data.source folder.")
    with pytest.raises(ConfigError, match="No cifar10 in") as refused:
        open_data(DataConfig(source="cifar10", path=str(tmp_path)))
    assert str(refused.value.hint).endswith("class folders: --data.source folder.")
    assert open_data(DataConfig(path=str(tmp_path), source="folder")).classes == ("cat", "dog")


# -- differences and types -------------------------------------------------------------------------


def test_differences_name_the_settings_old_and_new_also_across_kinds() -> None:
    a = RunConfig()
    b = load_config(a, **{"train.epochs": 11, "optim": "sgd"})
    lines = differences(a, b)
    assert "train.epochs: 10 -> 11" in lines
    assert "optim.kind: adamw -> sgd" in lines
    assert "optim.momentum: (absent) -> 0.9" in lines
    assert differences(a, a) == []


def test_every_setting_has_a_type_and_every_kind_its_settings() -> None:
    assert leaf_types(RunConfig()).keys() == leaves(RunConfig()).keys()
    assert {"optim.betas", "optim.momentum", "model.stem.patch_size", "model.stem.channels"} <= (
        all_leaf_types().keys()
    )
    assert isinstance(RunConfig().model.stem, PatchifyStemConfig)


def test_a_setting_of_the_recipe_that_lost_its_effect_is_dropped_and_a_given_one_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = load_config("fashion_vit_c", **{"data.augment.crop": "none"})
    assert config.data.augment.shift_pixels == AugmentConfig().shift_pixels
    assert "data.augment.shift_pixels" in caplog.text
    for more in ({"data.augment.shift_pixels": 2}, {"data": {"augment": {"shift_pixels": 2}}}):
        with pytest.raises(ConfigError, match=r"shift_pixels has no effect .*crop shift"):
            load_config("fashion_vit_c", **{"data.augment.crop": "none"}, **more)
    with pytest.raises(ConfigError, match=r"erase_fill has no effect without data\.augment\.erase"):
        load_config("debug", **{"data.augment.erase_fill": "mean"})


EXTREMES = (0, -1, 10**9, 2**63, -(10**30), 1e20, 1e-300, math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        pytest.param({"optim": "sgd"}, marks=pytest.mark.slow),
        {"model": "resnet_50"},
    ],
)
def test_extreme_numbers_are_accepted_or_refused_by_name(overrides: dict[str, Any]) -> None:
    base = load_config("debug", **overrides)
    types = leaf_types(base)
    for name, value in leaves(base).items():
        if not re.search("int|float", str(types.get(name))):
            continue
        for extreme in EXTREMES:
            shaped = [(extreme,) * len(value)] if isinstance(value, tuple) else [extreme]
            for number in [*shaped, extreme]:
                try:
                    load_config("debug", **overrides, **{name: number})
                except ConfigError as error:
                    assert name.rpartition(".")[2].partition("_")[0].rstrip("s") in error.message  # noqa: PT017


def test_sizes_seeds_and_counts_have_bounds() -> None:
    for name, value in (
        ("train.seed", 10**20),
        ("train.seed_order", -(2**63) - 1),
        ("data.split_seed", 2**63),
        ("train.threads", 10_000),
        ("data.workers", 10_000),
        ("model.depth", 10**9),
        ("model.embed_dim", 10**9),
        ("model.img_size", 10**9),
        ("train.batch", 10**12),
    ):
        with pytest.raises(ConfigError, match=rf"{name} {value} must "):
            load_config("debug", **{name: value})
    for seed in (-(2**63), -1, 2**63 - 1):
        assert load_config("debug", **{"train.seed": seed}).train.seed == seed


@pytest.mark.parametrize(
    ("base", "given", "dropped", "left_at"),
    [
        ({"data.fit": "crop", "data.eval_crop": 0.9}, {"data.fit": "pad"}, "data.eval_crop", 0.875),
        ({"optim": "sgd"}, {"optim.momentum": 0.0}, "optim.nesterov", False),
        ({"optim.layer_decay": 0.7}, {"train.freeze": ("backbone",)}, "optim.layer_decay", 1.0),
        ({"data.workers": 1}, {"data.resident": "on"}, "data.workers", None),
        (
            {"data.augment.policy": "randaugment", "data.augment.rand_ops": 3},
            {"data.augment.policy": "none"},
            "data.augment.rand_ops",
            2,
        ),
    ],
)
def test_a_setting_that_only_an_override_left_without_effect_is_dropped_with_a_note(
    base: dict[str, Any],
    given: dict[str, Any],
    dropped: str,
    left_at: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = load_config("debug", **base)
    changed = load_config(config, **given)
    assert leaves(changed)[dropped] == left_at
    assert f"{dropped} has no effect" in caplog.text
    value = leaves(config)[dropped]
    if value is not True:  # nesterov: its default, which nobody needs to give
        with pytest.raises(ConfigError, match=f"{dropped}.* no effect"):
            load_config("debug", **{**base, **given, dropped: value})
