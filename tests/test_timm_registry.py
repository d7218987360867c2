"""The zoo in timm's registry, by timm's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitc.errors import ConfigError
from vitc.models.timm import import_peer
from vitc.models.zoo import MODELS

try:
    timm: Any = import_peer("timm")
except ImportError:
    pytest.skip("timm is not installed (extra `peers`)", allow_module_level=True)
registry: Any = import_peer("vitc.models.timm_registry")


def test_every_model_is_registered_and_says_where_its_first_and_last_layers_are() -> None:
    assert set(timm.list_models(module="timm_registry")) == set(MODELS)
    for name in MODELS:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=3)
        names = model.state_dict().keys()
        assert {f"{model.default_cfg[key]}.weight" for key in ("first_conv", "classifier")} <= names
        assert model.default_cfg["input_size"] == (3, *model.img_size)
        assert model.num_classes == 3


@pytest.mark.parametrize("name", ["vit_c_tiny", "effnet_lite0"])
def test_features_alone(name: str) -> None:
    model = timm.create_model(name, features_only=True, out_indices=(1, 2))
    maps = model(torch.randn(2, *model.default_cfg["input_size"]))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    side = model.default_cfg["input_size"][1]
    assert [-(-side // m.shape[2]) for m in maps] == model.feature_info.reduction()


@pytest.mark.parametrize("name", ["effnet_lite0", "regnety_1gf"])
def test_a_pyramid_has_one_map_of_each_resolution(name: str) -> None:
    reduction = timm.create_model(name, features_only=True).feature_info.reduction()
    assert reduction[-4:] == [4, 8, 16, 32]
    assert len(set(reduction)) == len(reduction)


def test_an_optimizer_of_timm_with_a_rate_for_each_layer() -> None:
    optim = import_peer("timm.optim")
    model = timm.create_model("vit_c_tiny", num_classes=3, drop_path_rate=0.1)
    groups = optim.param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scales = sorted({group["lr_scale"] for group in groups})
    assert len(scales) == 2 + model.config.depth
    exempt = {id(p) for g in groups if not g["weight_decay"] for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in exempt}
    assert names == model.no_weight_decay()


def test_what_its_trainer_asks_of_a_model() -> None:
    """The arguments of timm's train.py, at their defaults; then a step."""
    unset = ("drop_path_rate", "drop_block_rate", "global_pool", "bn_momentum", "bn_eps")
    settings = dict.fromkeys(unset) | {"drop_rate": 0.0, "scriptable": False, "in_chans": 3}
    model = timm.create_model("vit_c_tiny", num_classes=3, checkpoint_path="", **settings)
    model.set_grad_checkpointing(enable=True)
    data = import_peer("timm.data").resolve_data_config({}, model=model)
    assert (data["input_size"], data["crop_pct"]) == ((3, 32, 32), 0.875)
    optimizer = import_peer("timm.optim").create_optimizer_v2(model, opt="sgd", lr=0.1)
    model(torch.randn(4, *data["input_size"])).square().mean().backward()
    optimizer.step()


def test_settings() -> None:
    model = timm.create_model("vit_c_tiny", global_pool="avg", in_chans=1, img_size=64)
    assert (model.global_pool, model.in_chans, model.img_size) == ("avg", 1, (64, 64))
    assert timm.create_model("regnety_1gf", num_classes=0, global_pool="").global_pool == ""
    for name in ("regnety_1gf", "vit_c_tiny"):
        with pytest.raises(ConfigError, match=r"global_pool.*'max'"):
            timm.create_model(name, global_pool="max")
    with pytest.raises(ConfigError, match="no dropout"):
        timm.create_model("vit_c_tiny", drop_rate=0.1)
    with pytest.raises(RuntimeError, match=r"[Pp]retrained"):
        timm.create_model("vit_c_tiny", pretrained=True)
