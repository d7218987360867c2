"""What timm's trainer and feature extractors, and torch.fx, ask of a model."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn

from vitc.errors import ConfigError
from vitc.models.backbone import chosen_layers
from vitc.models.zoo import create_model

NAMES = ["vit_c_tiny", "vit_p_tiny", "vit_r_tiny64", "effnet_lite0", "regnety_1gf"]


def filled(name: str, classes: int = 5, size: int = 32) -> Any:
    """A model with every tensor and buffer drawn, in evaluation mode."""
    torch.manual_seed(0)
    model = create_model(name, classes, img_size=64 if name.endswith("64") else size).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data + 0.1 * torch.rand_like(tensor)
    return model


def images(model: Any) -> Tensor:
    return torch.randn(2, 3, *model.img_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_traced_model_computes_the_same(name: str) -> None:
    model = filled(name)
    x = images(model)
    with torch.inference_mode():
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_as_feature_info_has_them_also_of_a_pruned_model(name: str) -> None:
    model = filled(name)
    x, info = images(model), model.feature_info
    with torch.inference_mode():
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        for about, found in zip(info, maps, strict=True):
            side = -(-model.img_size[0] // about["reduction"])
            assert found.shape == (2, about["num_chs"], side, side)
            assert about["module"] in dict(model.named_modules())
        pair = model.forward_intermediates(x, [0, 1], intermediates_only=True)
        places = model.prune_intermediate_layers([1, -len(maps)], prune_norm=True)
        assert places == [0, 1]
        pruned = model.forward_intermediates(x, places, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(pair, pruned, strict=True))
    assert len(model.feature_info) == 2
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_and_the_pooling_can_be_replaced(name: str) -> None:
    model = filled(name)
    x = images(model)
    assert model.get_classifier() is model.head
    assert model.head.in_features == model.head_hidden_size
    with torch.inference_mode():
        model.reset_classifier(0, "")
        assert torch.equal(model(x), model.forward_features(x))
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3)
    with pytest.raises(ConfigError, match="global_pool 'max' must be one of"):
        model.reset_classifier(3, "max")
    with pytest.raises(ConfigError, match="Without global_pool"):
        model.reset_classifier(3, "")


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_every_parameter(name: str) -> None:
    model = filled(name)
    groups = model.group_matcher()
    patterns = [groups["stem"], *(pattern for pattern, _ in groups["blocks"]), "^head"]
    for parameter, _ in model.named_parameters():
        assert sum(bool(re.match(p, parameter)) for p in patterns) == 1, parameter


def test_intermediate_layers_as_in_dino() -> None:
    model = filled("vit_c_tiny")
    x = images(model)
    with torch.inference_mode():
        (last,) = cast(list[Tensor], model.get_intermediate_layers(x, norm=True))
        assert torch.equal(last, model.forward_features(x)[:, 1:])
        (square,) = cast(list[Tensor], model.get_intermediate_layers(x, [0], reshape=True))
        assert square.shape == (2, 64, 4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_its_last_layers_as_tokens_or_maps(name: str) -> None:
    model = filled(name)
    x = images(model)
    with torch.inference_mode():
        maps = model.forward_intermediates(x, 2, intermediates_only=True)
        tokens = model.get_intermediate_layers(x, 2)
        squares = model.get_intermediate_layers(x, n=[-2, -1], reshape=True, norm=False)
    for square, token, expected in zip(squares, tokens, maps, strict=True):
        assert torch.equal(square, expected)
        assert torch.equal(token, expected.flatten(2).transpose(1, 2))
    with pytest.raises(ConfigError, match="exist"):
        model.get_intermediate_layers(x, 99)


def test_layers_are_chosen_by_number_or_by_place() -> None:
    assert chosen_layers(None, 3) == [0, 1, 2]
    assert chosen_layers(2, 3) == [1, 2]
    assert chosen_layers([-1, 0], 3) == [0, 2]
    with pytest.raises(ConfigError, match="there is no stage 4"):
        chosen_layers([4], 3, "stage")
    with pytest.raises(ConfigError, match="must be NCHW"):
        filled("regnety_1gf").forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")
