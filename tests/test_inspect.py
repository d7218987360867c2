"""Looking in: what is shown is what the model computes, and looking changes nothing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import vitc
from vitc.errors import ConfigError
from vitc.models.inspect import (
    _each_block,
    attention_distance,
    attention_rollout,
    class_attention,
    filter_components,
    pos_embed_similarity,
    stem_features,
    stem_filters,
)
from vitc.models.timm import import_peer
from vitc.models.vit import Attention, VisionTransformer

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"registers": 3},
    "qk_norm": {"qk_norm": True, "registers": 1},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "class token unread": {"global_pool": "avg"},
    "explicit": {"attention": "explicit"},
}


def made(zoo_name: str = "vit_p_tiny", **settings: Any) -> VisionTransformer:
    """A ViT whose every tensor is random, so that attention is not flat and nothing is hidden."""
    torch.manual_seed(3)
    model = cast(VisionTransformer, vitc.create_model(zoo_name, num_classes=5, **settings))
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    return model


def images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def attention_maps(model: nn.Module, x: Tensor) -> Tensor:
    """(depth, B, heads, N, N): the softmax of every head."""
    return torch.stack(_each_block(model, x, lambda weights: weights))


def block_inputs(model: VisionTransformer, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of every attention layer, by the model's own forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        cast(nn.Module, block.attn).register_forward_hook(
            lambda module, args, out: seen.append((args[0], out))
        )
        for block in model.blocks
    ]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return seen


# -- intermediate outputs --------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_intermediates_are_the_blocks_own_outputs(settings: dict[str, Any]) -> None:
    model, x = made(**settings).eval(), images()
    expected: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, a, out: expected.append(out)) for b in model.blocks]
    final, taken = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True)
    for hook in hooks:
        hook.remove()
    prefix = model.num_prefix_tokens
    assert torch.equal(final, model.forward_features(x))
    assert len(taken) == len(model.blocks)
    for out, pair in zip(expected, taken, strict=True):
        patches, before = pair
        assert before.shape == (2, prefix, 64)
        assert torch.equal(torch.cat([before, patches], dim=1), out)


def test_maps_are_the_tokens_row_by_row_also_when_not_square() -> None:
    model = made(img_size=(16, 32)).eval()
    x = images(height=16)
    maps = cast(list[Tensor], model.forward_intermediates(x, 1, intermediates_only=True))[0]
    rows = cast(
        list[Tensor],
        model.forward_intermediates(x, 1, output_fmt="NLC", intermediates_only=True),
    )[0]
    assert maps.shape == (2, 64, 2, 4)
    assert torch.equal(maps[:, :, 1, 3], rows[:, 1 * 4 + 3])


def test_intermediates_of_a_model_of_any_size_have_the_size_of_the_images() -> None:
    model = made("vit_c_tiny", dynamic_img_size=True, registers=2).eval()
    _, maps = model.forward_intermediates(images(height=64, width=40))
    assert [m.shape for m in cast(list[Tensor], maps)] == [(2, 64, 8, 5)] * len(model.blocks)


@pytest.mark.parametrize(
    ("indices", "chosen"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([3, 0, -2], [0, 2, 3]), ([-4], [0])]
)
def test_blocks_are_chosen_by_number_from_the_end_or_by_name(
    indices: Any, chosen: list[int]
) -> None:
    model, x = made().eval(), images()
    every = cast(list[Tensor], model.forward_intermediates(x, intermediates_only=True))
    some = cast(list[Tensor], model.forward_intermediates(x, indices, intermediates_only=True))
    assert len(some) == len(chosen)
    assert all(torch.equal(a, every[i]) for a, i in zip(some, chosen, strict=True))


@pytest.mark.parametrize("indices", [0, 5, -1, [], [4], [0, -5]])
def test_a_block_that_does_not_exist_is_refused(indices: Any) -> None:
    with pytest.raises(ConfigError, match=r"indices .*"):
        made().forward_intermediates(images(), indices)


def test_an_unknown_format_and_images_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="'NHWC' must be NCHW or NLC"):
        made().forward_intermediates(images(), output_fmt=cast(Any, "NHWC"))
    with pytest.raises(ConfigError, match="built for"):
        made().forward_intermediates(images(height=40))


def test_norm_puts_outputs_through_the_final_norm() -> None:
    model, x = made().eval(), images()
    final, last = model.forward_intermediates(x, 1, norm=True, output_fmt="NLC")
    assert torch.equal(cast(list[Tensor], last)[0], final[:, 1:])


def test_no_block_is_run_after_the_last_that_is_wanted() -> None:
    model = made().eval()
    model.blocks[2] = nn.Identity()  # would fail: it takes no drop_path
    model.forward_intermediates(images(), [0, 1], intermediates_only=True)
    with pytest.raises(TypeError):
        model.forward_intermediates(images(), [0, 1])


def test_intermediates_are_asked_for_in_timms_words() -> None:
    try:
        timm = import_peer("timm.models.vision_transformer")
    except ImportError:
        pytest.skip("timm is not installed: its words cannot be compared (extra `peers`)")
    ours = inspect.signature(VisionTransformer.forward_intermediates).parameters
    theirs = inspect.signature(timm.VisionTransformer.forward_intermediates).parameters
    assert set(ours) <= set(theirs)
    assert all(ours[name].default == theirs[name].default for name in ours)
    model = timm.VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=2)
    same = {"indices": [0, -1], "return_prefix_tokens": True, "norm": True}
    _, their_maps = model.forward_intermediates(images(), **same)
    _, our_maps = made().forward_intermediates(images(), **same)
    for theirs_, ours_ in zip(their_maps, our_maps, strict=True):
        assert [t.shape for t in theirs_] == [t.shape for t in ours_]


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_attention_maps_times_values_are_what_the_block_gives_out(settings: dict[str, Any]) -> None:
    model, x = made(**settings), images()
    maps = attention_maps(model, x)
    n = model.num_prefix_tokens + 16
    assert maps.shape == (4, 2, 2, n, n)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 2, 2, n))
    for block, weights, (given, out) in zip(
        model.blocks, maps, block_inputs(model, x), strict=True
    ):
        attention = cast(Attention, block.attn)
        v = attention.heads(given)[2]
        mixed = attention.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, out, rtol=1e-4, atol=1e-4)
    assert maps.std() > 0.01  # flat attention would pass with any queries and keys


def test_a_bf16_models_rows_still_sum_to_one() -> None:
    maps = attention_maps(made().to(torch.bfloat16), images().to(torch.bfloat16))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


def test_class_attention_is_the_class_tokens_row_after_class_token_and_registers() -> None:
    model, x = made(registers=2, img_size=(16, 32)), images(height=16)
    maps, over_patches = attention_maps(model, x), class_attention(model, x)
    assert over_patches.shape == (4, 2, 2, 2, 4)
    assert torch.equal(over_patches[1, 0, 1, 1, 2], maps[1, 0, 1, 0, 3 + 1 * 4 + 2])
    assert (over_patches.sum((-1, -2)) < 1).all()


@pytest.mark.parametrize("class_token", [False, True])
def test_a_head_that_reads_the_mean_has_the_mean_of_the_patches_rows(class_token: bool) -> None:
    model, x = made(class_token=class_token, global_pool="avg"), images()
    prefix = int(class_token)
    rows = attention_maps(model, x)[..., prefix:, prefix:].mean(-2)
    torch.testing.assert_close(class_attention(model, x).flatten(-2), rows)


def test_rollout_is_the_product_of_mixed_maps() -> None:
    model, x = made(registers=1), images()
    flow = torch.eye(18).expand(2, -1, -1)
    for weights in attention_maps(model, x):
        mixed = weights.mean(1) + torch.eye(18)
        flow = (mixed / mixed.sum(-1, keepdim=True)) @ flow
    torch.testing.assert_close(attention_rollout(model, x), flow[:, 0, 2:].reshape(2, 4, 4))


def test_rollout_of_a_model_without_class_token_shares_out_everything() -> None:
    rollout = attention_rollout(made(class_token=False, global_pool="avg"), images())
    torch.testing.assert_close(rollout.sum((1, 2)), torch.ones(2))


def test_heads_that_look_everywhere_alike_reach_the_mean_distance_of_all_patches() -> None:
    model = made(registers=2, img_size=(16, 32))
    for block in model.blocks:
        nn.init.zeros_(cast(Attention, block.attn).qkv.weight)
        nn.init.zeros_(cast(Attention, block.attn).qkv.bias)
    places = [(8 * i, 8 * j) for i in range(2) for j in range(4)]
    mean = sum(math.dist(a, b) for a in places for b in places) / len(places) ** 2
    distance = attention_distance(model, images(height=16))
    torch.testing.assert_close(distance, torch.full((4, 2), mean))


def test_distance_is_weighted_by_attention_among_the_patches_alone() -> None:
    model, x = made(registers=2, img_size=(16, 32)), images(height=16)
    maps, distance = attention_maps(model, x)[2, :, 1, 3:, 3:], 0.0
    for weights in maps:
        for i, row in enumerate(weights):
            away = torch.tensor([8 * math.dist(divmod(i, 4), divmod(j, 4)) for j in range(8)])
            distance += float((row * away).sum() / row.sum()) / 16
    assert float(attention_distance(model, x)[2, 1]) == pytest.approx(distance, rel=1e-5)


# -- position embedding and stem -------------------------------------------------------------------


def test_position_similarity_is_the_cosine_and_leaves_the_class_token_out() -> None:
    model = made(registers=2, img_size=(16, 32))
    similarity = pos_embed_similarity(model)
    assert similarity.shape == (2, 4, 2, 4)
    grid = model.pos_embed[0, 1:].detach()
    expected = torch.cosine_similarity(grid[1 * 4 + 2], grid[0 * 4 + 3], dim=0)
    torch.testing.assert_close(similarity[1, 2, 0, 3], expected)
    own = similarity.flatten(2).flatten(0, 1).diagonal()
    torch.testing.assert_close(own, torch.ones(8))


def test_filters_are_those_of_the_first_convolution() -> None:
    patchify, conv = made(), made("vit_c_tiny")
    assert torch.equal(stem_filters(patchify), cast(Tensor, patchify.stem.proj.weight))  # type: ignore[union-attr]
    assert torch.equal(stem_filters(conv), cast(Tensor, conv.stem.layers[0].conv.weight))  # type: ignore[union-attr,index,union-attr]
    assert stem_filters(conv).shape == (18, 3, 3, 3)
    assert not stem_filters(conv).requires_grad


def test_filters_of_any_cnn_are_shown_and_of_a_model_without_any_refused() -> None:
    cnn = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 7, 5), nn.Conv2d(7, 2, 1))
    assert stem_filters(cnn).shape == (7, 3, 5, 5)
    with pytest.raises(ConfigError, match="Linear has no 2-D convolution"):
        stem_filters(nn.Linear(3, 4))


def test_principal_components_rebuild_filters_made_of_two_patterns() -> None:
    torch.manual_seed(0)
    patterns, amounts = torch.randn(2, 3, 4, 4), torch.randn(20, 2)
    filters = torch.einsum("dn,nckl->dckl", amounts, patterns)
    components, share = filter_components(filters)
    assert components.shape == (20, 3, 4, 4)
    torch.testing.assert_close(share[:2].sum(), torch.tensor(1.0))
    assert share[0] >= share[1] > 0.01
    flat, basis = filters.flatten(1) - filters.flatten(1).mean(0), components[:2].flatten(1)
    torch.testing.assert_close(flat @ basis.T @ basis, flat, rtol=1e-4, atol=1e-4)
    largest = components.flatten(1).gather(1, components.flatten(1).abs().argmax(1)[:, None])
    assert (largest > 0).all()


def test_no_more_components_are_given_than_asked_for_or_than_there_are() -> None:
    assert filter_components(torch.randn(64, 3, 8, 8))[0].shape == (28, 3, 8, 8)
    assert filter_components(torch.randn(6, 1, 8, 8), 3)[0].shape == (3, 1, 8, 8)
    components, share = filter_components(torch.zeros(4, 1, 4, 4))
    assert components.isfinite().all()
    assert share.sum() == 0


def test_features_are_each_layers_own_output_in_order() -> None:
    model, x = made("vit_c_tiny").eval(), images()
    features = stem_features(model, x)
    assert [name for name, _ in features] == ["layers.0", "layers.1", "layers.2", "proj"]
    with torch.no_grad():
        assert torch.equal(features[0][1], model.stem.layers[0](x))  # type: ignore[index,operator,union-attr]
        assert torch.equal(features[-1][1], model.stem(x))


def test_a_layer_that_works_in_place_does_not_change_what_came_before_it() -> None:
    conv = nn.Conv2d(3, 4, 3)
    features = dict(stem_features(nn.Sequential(conv, nn.ReLU(inplace=True)), images()))
    assert features["0"].min() < 0 == features["1"].min()


class Halves(nn.Module):
    """A stem whose tokens are made outside any layer, as an outsider may write it."""

    reduction = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)) / 2


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x)).flatten(1)


def test_a_stem_from_outside_ends_with_its_own_output() -> None:
    model, x = vitc.create_model("vit_p_tiny", stem=Halves()), images()
    (first, before), (last, after) = stem_features(model, x)
    assert (first, last) == ("conv", "output")
    torch.testing.assert_close(before / 2, after)
    assert stem_filters(model).shape == (64, 3, 8, 8)


def test_a_model_that_gives_out_no_maps_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(ConfigError, match="No layer of Sequential outputs maps"):
        stem_features(flat, images())


# -- nothing is left behind ------------------------------------------------------------------------

LOOKS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "maps": attention_maps,
    "class": class_attention,
    "rollout": attention_rollout,
    "distance": attention_distance,
    "features": stem_features,
}


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_looking_changes_nothing_and_wants_no_gradient(
    look: Callable[[nn.Module, Tensor], object],
) -> None:
    model, x = made("vit_c_tiny", drop_path_rate=0.5).train(), images()
    model.stem.eval()  # a frozen part, which must stay as it is
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    first, again = look(model, x), look(model, x)
    assert [m.training for m in model.modules()] == modes
    assert hooks_of(model) == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for a, b in zip(tensors(first), tensors(again), strict=True):
        assert torch.equal(a, b)  # no drop path was drawn, no running statistics moved
        assert not a.requires_grad


def tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for _, t in cast(list[tuple[str, Tensor]], result)]


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_nothing_is_left_behind_when_the_images_do_not_fit(
    look: Callable[[nn.Module, Tensor], object],
) -> None:
    model = made("vit_c_tiny").train()
    with pytest.raises(ConfigError):
        look(model, images(height=36))
    assert hooks_of(model) == 0
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("look", [LOOKS[k] for k in ("maps", "class", "rollout", "distance")])
def test_attention_of_a_model_that_is_no_vit_is_refused_with_what_works(
    look: Callable[[nn.Module, Tensor], object],
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)Conv2d is not one of .*--features IMAGE"):
        look(nn.Conv2d(3, 4, 3), images())
    with pytest.raises(ConfigError, match="not one of vitc's ViTs"):
        pos_embed_similarity(nn.Conv2d(3, 4, 3))
