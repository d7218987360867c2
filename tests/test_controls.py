"""The controls: each adds the contender it names and changes nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vitc.config import flat_values, to_dict
from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.study import controls
from vitc.study.design import Plan, Range, mixed
from vitc.study.measures.hparams import hparams_plan
from vitc.study.study_folder import from_json, to_json

MODELS = ["vit_c_tiny", "vit_p_tiny"]


def plan(*names: str, recipes: tuple[str, ...] = ("debug",), **settings: Any) -> Plan:
    models = MODELS if recipes == ("debug",) else []
    return hparams_plan(recipes, models, ["adamw"], draws=2, controls=names, **settings)


def changed(p: Plan, contender: str, base: str) -> dict[str, Any]:
    """The settings of a contender that are not those of its base."""
    configs = {g.contender: flat_values(to_dict(g.config)) for g in p.groups}
    return {k: v for k, v in configs[contender].items() if configs[base].get(k) != v}


@pytest.mark.parametrize(
    ("name", "contender", "base", "settings"),
    [
        ("smaller_patch", "vit_p_tiny, patch 4", "vit_p_tiny", {"model.stem.patch_size": 4}),
        ("swap_depth", "vit_p_tiny, 3 blocks", "vit_p_tiny", {"model.depth": 3}),
        ("swap_depth", "vit_c_tiny, 4 blocks", "vit_c_tiny", {"model.depth": 4}),
        ("bn_patchify", "vit_p_tiny, bn", "vit_p_tiny", {"model.stem.bn_relu": True}),
        ("ln_conv", "vit_c_tiny, ln", "vit_c_tiny", {"model.stem.norm": "ln"}),
        ("frozen_patchify", "vit_p_tiny, frozen stem", "vit_p_tiny", {"train.freeze": ["stem"]}),
    ],
)
def test_a_control_changes_one_thing(
    name: str, contender: str, base: str, settings: dict[str, Any]
) -> None:
    p = plan(name)
    assert changed(p, contender, base) == settings
    assert p.reference == "vit_p_tiny", "controls do not become the reference"
    assert mixed(p) == []


def test_a_control_that_fits_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="ln-conv"):
        hparams_plan(["debug"], ["vit_p_tiny"], ["adamw"], draws=1, controls=["ln_conv"])


def test_time_matched_contenders_take_the_references_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"vit_c_tiny": 30.0, "vit_p_tiny": 20.0}
    monkeypatch.setattr(controls, "_step_ms", lambda g: times[g.config.model.name])
    p = plan("time_matched", **{"train.epochs": 6})
    epochs = {g.contender: g.config.train.epochs for g in p.groups}
    assert epochs["vit_c_tiny, time-matched"] == 4
    assert any("epochs" in line for line in mixed(p)), "it is said that they differ"
    times["vit_c_tiny"] = 10.0
    again = plan("time_matched", begun=p.groups, **{"train.epochs": 6})
    assert again == p, "what was measured once stays"


def test_an_octave_moves_every_range() -> None:
    base, up, down = (plan(octave=o).ranges["adamw"] for o in (None, "up", "down"))
    for name, r in base.items():
        assert (up[name].low, up[name].high) == (2 * r.low, 2 * r.high)
        assert (down[name].low, down[name].high) == (r.low / 2, r.high / 2)


def test_separate_ranges_are_each_recipes_at_the_same_quantiles() -> None:
    recipes = ("debug", "fashion_vit_p")
    settings = {"train.batch": 64, "train.precision": "fp32"}
    p = plan(recipes=recipes, ranges="separate", **settings)
    own = {g.contender: p.ranges_of(g)["optim.lr"] for g in p.groups}
    assert own["debug vit_c_tiny"].low == pytest.approx(1e-3 / 8)
    assert own["fashion_vit_p vit_p_tiny"].low == pytest.approx(2e-3 / 8)
    lr = {t.contender: t.config.optim.lr for t in p.trials() if t.draw == 1}
    ratio = lr["fashion_vit_p vit_p_tiny"] / lr["debug vit_c_tiny"]
    assert ratio == pytest.approx(2, rel=1e-3)
    assert from_json(to_json(p)) == p
    union = plan(recipes=recipes, ranges="union", **settings).ranges["adamw"]["optim.lr"]
    assert (union.low, union.high) == pytest.approx((1e-3 / 8, 4 * 2e-3))


def test_separate_ranges_are_each_familys_whatever_the_first_contender() -> None:
    models = ["regnety_1gf", "vit_p_1gf"]
    base = {"train.precision": "fp32", "data": "synthetic", "model.img_size": 32}
    for order in (models, models[::-1]):
        p = hparams_plan(
            ["imagenet_vit_p_1gf"], order, ["adamw"], draws=1, ranges="separate", **base
        )
        own = {g.contender: p.ranges_of(g)["optim.lr"] for g in p.groups}
        assert own["regnety_1gf"] == Range(low=1.25e-3, high=4e-2)
        assert own["vit_p_1gf"] == Range(low=2.5e-4, high=8e-3)


def test_a_range_of_the_users_own_is_everybodys_under_each_rule() -> None:
    recipes = ("debug", "fashion_vit_p")
    settings = {"train.batch": 64, "train.precision": "fp32", "range": [("optim.lr", 1e-4, 1e-3)]}
    for rule in ("separate", "union"):
        p = plan(recipes=recipes, ranges=rule, **settings)
        assert {p.ranges_of(g)["optim.lr"] for g in p.groups} == {Range(low=1e-4, high=1e-3)}


@pytest.mark.parametrize("order", [("debug", "fashion_vit_p"), ("fashion_vit_p", "debug")])
def test_a_union_needs_a_range_of_everybody(order: tuple[str, str], tmp_path: Path) -> None:
    still = tmp_path / "still.json"
    still.write_text(json.dumps(to_dict(load_config("debug", **{"optim.weight_decay": 0.0}))))
    recipes = [str(still) if name == "debug" else name for name in order]
    settings = {"train.batch": 64, "train.precision": "fp32", "draws": 1, "ranges": "union"}
    with pytest.raises(ConfigError, match=r"no range of optim\.weight_decay"):
        hparams_plan(recipes, [], ["adamw"], **settings)
    asked = [("optim.weight_decay", 0.01, 0.1)]
    p = hparams_plan(recipes, [], ["adamw"], range=asked, **settings)
    assert p.ranges["adamw"]["optim.weight_decay"] == Range(low=0.01, high=0.1)


def test_uniform_ranges_have_no_octave() -> None:
    r = {"x": Range(low=0.5, high=2, log=False)}
    assert controls.shifted(r, "up") == r
    assert controls.shifted({"x": dataclasses.replace(r["x"], log=True)}, "up")["x"].high == 4
