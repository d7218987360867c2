"""The plan of a study: shared draws, fixed before the first trial, extended but never changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitc.config import SCHEMA, to_dict
from vitc.errors import ConfigError
from vitc.models.config import TimmConfig
from vitc.recipes.ranges import PAPER_RANGES, study_ranges
from vitc.resolve import load_config
from vitc.study.contenders import _with_stem
from vitc.study.design import Plan, hashed_settings, mixed
from vitc.study.measures.hparams import hparams_plan
from vitc.study.studies import run
from vitc.study.study_folder import StudyFolder, from_json, to_json

HERE: dict[str, Any] = {"versions": {}, "hardware": {}}


def plan(
    draws: int = 4,
    models: tuple[str, ...] = ("vit_c_tiny", "vit_p_tiny"),
    optims: tuple[str, ...] = ("adamw",),
    **overrides: Any,
) -> Plan:
    return hparams_plan(["debug"], models, optims, draws=draws, **overrides)


def test_contenders_share_draws_and_seeds() -> None:
    trials = list(plan(optims=("adamw", "sgd")).trials())
    assert len(trials) == 16
    for optim in ("adamw", "sgd"):
        for draw in range(4):
            pair = [t for t in trials if (t.optim, t.draw) == (optim, draw)]
            assert [t.contender for t in pair] == ["vit_c_tiny", "vit_p_tiny"]
            assert pair[0].values == pair[1].values
            assert pair[0].config.train.seed == pair[1].config.train.seed
            assert pair[0].config.optim.lr == pair[0].values["optim.lr"]


def test_more_draws_keep_the_first_ones() -> None:
    few, many = [t.id for t in plan(4).trials()], [t.id for t in plan(8).trials()]
    assert many[: len(few)] == few
    assert len(set(many)) == len(many)


def test_draws_are_log_uniform_in_their_range() -> None:
    p = plan(512, ("vit_p_tiny",))
    r = p.ranges["adamw"]["optim.lr"]
    lr = np.log([p.draw_values("adamw", i)["optim.lr"] for i in range(512)])
    u = (lr - np.log(r.low)) / np.log(r.high / r.low)
    assert u.min() > -1e-3
    assert u.max() < 1 + 1e-3
    counts, _ = np.histogram(u, 8, (0, 1))
    assert ((counts - 64) ** 2 / 64).sum() < 24.3  # chi-square, 7 degrees: 0.1 %


def test_another_seed_gives_other_draws() -> None:
    assert plan(seed=1).draw_values("adamw", 0) != plan().draw_values("adamw", 0)


def test_ranges_are_the_papers_for_its_recipes_and_its_rule_elsewhere() -> None:
    from vitc.recipes import get_recipe

    paper = get_recipe("imagenet_vit_p_4gf", "sgd")
    assert study_ranges(paper, "sgd") == PAPER_RANGES["vit"]["sgd"]
    for optim, lr, weight_decay in (
        ("adamw", (1.25e-3, 4e-2), (0.0075, 0.24)),
        ("sgd", (0.25, 8.0), (3e-6, 8e-5)),
    ):
        cnn = get_recipe("imagenet_regnety_4gf", optim)
        assert study_ranges(cnn, optim) == {"optim.lr": lr, "optim.weight_decay": weight_decay}
    resnet = get_recipe("imagenet_resnet_50")
    assert study_ranges(resnet, "sgd") == PAPER_RANGES["cnn"]["sgd"], "one SGD for all its CNNs"
    timm = dataclasses.replace(paper, model=TimmConfig(name="timm:resnet18"))
    assert study_ranges(timm, "sgd")["optim.lr"] == (1.9 / 8, 1.9 * 4), "of no family we know"
    own = get_recipe("fashion_vit_p")
    low, high = study_ranges(own, "adamw")["optim.lr"]
    assert (low, high) == (own.optim.lr / 8, own.optim.lr * 4)


def test_any_dotted_setting_can_be_drawn() -> None:
    ranges = {"range": [("train.epochs", 1, 9)], "linear_range": [("optim.clip_norm", 0.5, 2)]}
    trials = list(plan(16, ("vit_p_tiny",), **ranges).trials())
    assert all(0.5 <= (t.config.optim.clip_norm or 0) <= 2 for t in trials)
    assert len({t.config.train.epochs for t in trials}) > 2
    with pytest.raises(ConfigError, match=r"optim\.clip_norms"):
        plan(2, range=[("adamw:optim.clip_norms", 0.5, 2)])


def test_stems_of_a_study_give_the_model_as_many_tokens_as_its_own() -> None:
    kinds = ["patchify", "conv", "depthwise", "norm_free", "residual", "scaled_relu", "overlap"]
    p = hparams_plan(["fashion_vit_p"], [], ["adamw"], draws=1, stems=kinds)
    stems: list[Any] = [g.config.model.stem for g in p.groups]  # type: ignore[attr-defined]
    assert [stem.reduction for stem in stems] == [8] * len(kinds)
    assert len({(stem.channels, stem.strides) for stem in stems[1:5]}) == 1
    small = load_config("fashion_vit_p", **{"model.stem.patch_size": 4})
    with pytest.raises(ConfigError, match="reduces the size of images 8 times"):
        _with_stem(small, "norm_free")


def test_a_stem_for_all_contenders_is_in_their_names() -> None:
    p = plan(**{"model.stem": "dual_patchnorm"})
    assert p.contenders == ["vit_c_tiny+dual_patchnorm", "vit_p_tiny+dual_patchnorm"]


def test_the_recipes_own_model_need_not_have_a_contenders_setting() -> None:
    def made(**settings: Any) -> Plan:
        fp32 = {"train.precision": "fp32", **settings}
        return hparams_plan(["fashion_vit_p"], ["vit_c_tiny"], ["adamw"], draws=1, **fp32)

    p = made(**{"model.stem.norm": "ln"})
    assert p.groups[0].config.model.stem.norm == "ln"  # type: ignore[attr-defined]
    assert p.ranges == made().ranges


@pytest.mark.parametrize(
    ("models", "settings"),
    [
        (("vit_c_tiny", "vit_p_tiny"), {"model.stem.norm": "ln"}),
        (("vit_c_tiny", "resnet_50"), {"model.stem": "conv"}),
        (("vit_c_tiny", "vit_p_tiny"), {"optim.momentum": 0.8}),
    ],
)
def test_a_setting_that_one_contender_has_not_is_refused_with_its_name(
    models: tuple[str, ...], settings: dict[str, Any]
) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"{name} has no effect with contender") as caught:
        plan(models=models, optims=("sgd", "adamw"), **settings)
    assert "--model.stem " not in str(caught.value), "which would make all contenders the same"


def test_a_trials_id_is_its_config_but_not_where_it_logs() -> None:
    config = plan().groups[0].config
    settings: list[dict[str, Any]] = [{}, {"train.keep_checkpoints": 9}, {"train.batch": 64}]
    changed = [to_dict(load_config(config, **each)) for each in settings]
    own, saves, batch = (hashed_settings(values, SCHEMA) for values in changed)
    assert own == saves != batch


def test_the_control_differs_in_its_seeds_alone() -> None:
    p = plan(control=True)
    trials = {(t.contender, t.draw): t for t in p.trials()}
    a, b = trials["vit_p_tiny", 0], trials["vit_p_tiny again", 0]
    x, y = to_dict(a.config), to_dict(b.config)
    assert x["train"].pop("seed") != y["train"].pop("seed")
    assert x == y


def test_a_plan_survives_json() -> None:
    p = plan(optims=("adamw", "sgd"), control=True)
    assert from_json(json.loads(json.dumps(to_json(p)))) == p


def test_the_plan_is_written_and_hashed_and_a_change_is_seen(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    folder.start(plan(), HERE, "vitc study hparams")
    assert folder.read()[0] == plan()
    file = tmp_path / "s" / "plan.json"
    values = json.loads(file.read_text())
    values["plan"]["seed"] = 7
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="changed after it was written"):
        folder.read()


def test_more_draws_extend_a_study_and_are_recorded(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    first = folder.start(plan(4), HERE, "first")
    second = folder.start(plan(8), HERE, "second")
    assert second["first_hash"] == first["hash"] != second["hash"]
    assert second["history"][0]["what"] == "extended from 4 to 8 draws"
    assert second["history"][0]["command"] == "second"
    with pytest.raises(ConfigError, match="8 draws, more than 4"):
        folder.start(plan(4), HERE, "third")


def test_another_study_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    folder.start(plan(), HERE, "first")
    with pytest.raises(ConfigError, match="another study"):
        folder.start(plan(models=("vit_c_tiny",)), HERE, "second")
    with pytest.raises(ConfigError, match="another study: its reference, vit_p_tiny, is no cont"):
        run("hparams", "debug", models=("vit_c_tiny",), out=tmp_path / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty"):
        StudyFolder(tmp_path / "other").start(plan(), HERE, "")


def test_contenders_that_differ_in_precision_or_data_are_named() -> None:
    p = plan()
    assert mixed(p) == []
    other = p.groups[0].with_config(load_config(p.groups[0].config, **{"train.precision": "bf16"}))
    unfair = dataclasses.replace(p, groups=(other, p.groups[1]))
    assert any("precision" in line for line in mixed(unfair))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan(0), "at least 1 draw"),
        (lambda: plan(reference="vit_x"), "not a contender"),
        (lambda: plan(models=("vit_q_tiny",)), "Did you mean"),
        (lambda: plan(models=("vit_p_tiny", "vit_p_tiny")), "there twice"),
        (lambda: plan(range=[("optim.lr", 1, 0.1)]), "below high"),
        (lambda: plan(range=[("optim.lr", 0, 1)]), "above 0"),
        (lambda: plan(optims=("adan",)), "adamw"),
        (lambda: plan(**{"train.patience": 3}), "patience keeps the weights"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_the_reason(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_integer_is_drawn_inside_its_range_or_refused() -> None:
    p = plan(64, ("vit_p_tiny",), range=[("model.depth", "1.2", "4")])
    assert {p.draw_values("adamw", i)["model.depth"] for i in range(64)} == {2, 3, 4}
    with pytest.raises(ConfigError, match=r"model.depth is 1.2 to 1.8, in which there is no int"):
        plan(4, ("vit_p_tiny",), range=[("model.depth", "1.2", "1.8")])
