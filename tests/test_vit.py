"""The transformer against a plain reference, its behaviour, its names, and the named models."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitc
from vitc.errors import ConfigError
from vitc.models.complexity import complexity
from vitc.models.config import ViTConfig
from vitc.models.stem_config import STEM_KINDS, ConvStemConfig, PatchifyStemConfig
from vitc.models.vit import VisionTransformer, resample_pos_embed
from vitc.models.zoo import (
    REPORTED,
    build_model,
    create_model,
    list_models,
    model_config,
    patchify_twin,
)

SMALL: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "depth": 3, "mlp_ratio": 3.0}
PATCH = PatchifyStemConfig(patch_size=8)
CONV = ConvStemConfig(channels=(8, 16, 16, 32), strides=(2, 2, 1, 2))


def small(**overrides: Any) -> VisionTransformer:
    settings = {"img_size": 32, "num_classes": 5, "stem": PATCH, **SMALL, **overrides}
    return build_model(ViTConfig(**settings))


def filled(model: VisionTransformer, seed: int = 0) -> VisionTransformer:
    """Every parameter and float buffer away from its default, so that no fault hides behind it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim > 2 and "embed" not in name and "token" not in name:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif tensor.ndim == 2:
                tensor.copy_(noise / tensor.shape[1] ** 0.5)
            else:
                tensor.copy_(0.5 * noise + (1 if "norm" in name and "weight" in name else 0))
    return model


# ------------------------------------------------------------------------------------ the network


def test_gradients_of_explicit_attention_and_sdpa_agree() -> None:
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    grads = []
    for attention in ("explicit", "sdpa"):
        model = filled(small(attention=attention)).double()
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


def test_auto_attention_is_explicit_for_bf16_on_cpu_and_fused_for_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[torch.dtype] = []
    fused = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.dtype)
        return fused(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model, x = small(depth=1).eval(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    assert calls == []
    model(x)
    assert calls == [torch.float32]


@pytest.mark.parametrize("attention", ["explicit", "sdpa", "auto"])
@pytest.mark.parametrize("options", [{"stem": CONV}, {"qk_norm": True, "registers": 2}])
def test_bf16_autocast_stays_near_float32_and_keeps_residuals_in_float32(
    attention: str, options: dict[str, Any]
) -> None:
    model = filled(small(attention=attention, **options)).eval()
    attn: Any = model.blocks[0].attn  # type: ignore[union-attr]
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.forward_features(x)
            rough = model.forward_head(features)
            assert {t.dtype for t in attn.heads(torch.randn(2, 5, 32))} == {torch.bfloat16}
    assert features.dtype == torch.float32
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_a_whole_model_in_bf16_runs_with_a_float32_drop_path_mask() -> None:
    model = small().to(torch.bfloat16)
    out = model.forward_features(torch.randn(2, 3, 32, 32).bfloat16(), torch.ones(6, 2))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("stem", [PATCH, CONV], ids=["patchify", "conv"])
def test_any_divisible_size_and_any_number_of_channels_are_taken(stem: Any) -> None:
    for size, in_chans in [((16, 40), 1), ((24, 8), 4), (8, 2)]:
        model = small(stem=stem, img_size=size, in_chans=in_chans).eval()
        h, w = (size, size) if isinstance(size, int) else size
        x = torch.randn(2, in_chans, h, w)
        assert model(x).shape == (2, 5)
        assert model.forward_features(x).shape == (2, 1 + h * w // 64, 32)


def test_an_input_it_was_not_built_for_is_refused_with_both_shapes() -> None:
    model = small()
    for shape in [(2, 3, 40, 40), (2, 1, 32, 32), (2, 3, 30, 32), (3, 32, 32)]:
        with pytest.raises(ConfigError) as e:
            model(torch.zeros(shape))
        assert str(shape) in e.value.message
        assert "(batch, 3, 32, 32)" in e.value.message


def test_timms_habits_hold() -> None:
    model = filled(small()).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert model.num_features == 32
    torch.testing.assert_close(model.forward_head(features), model(x))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features[:, 0])
    model.reset_classifier(9)
    assert model.num_classes == 9
    assert model(x).shape == (2, 9)
    assert not model(x).any()
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features[:, 0])
    with pytest.raises(ConfigError, match="-1 must be at least 0"):
        model.reset_classifier(-1)
    assert create_model("vit_p_tiny", num_classes=0)(x).shape == (2, 64)


# -------------------------------------------------------------------------------------- drop path


def test_drop_path_multiplies_each_branch_of_each_sample() -> None:
    model = filled(small(depth=2)).eval()
    x = torch.randn(3, 3, 32, 32)
    mask = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1], [0.5, 1, 0]])
    out = model.forward_features(x, mask)
    tokens = model.stem(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.cls_token.expand(3, -1, -1), tokens], 1) + model.pos_embed  # type: ignore[union-attr]
    for i, block in enumerate(model.blocks):
        attend, mlp = block.attn, block.mlp
        assert isinstance(attend, nn.Module)
        assert isinstance(mlp, nn.Module)
        tokens = tokens + mask[2 * i].view(3, 1, 1) * attend(block.norm1(tokens))  # type: ignore[operator]
        tokens = tokens + mask[2 * i + 1].view(3, 1, 1) * mlp(block.norm2(tokens))  # type: ignore[operator]
    torch.testing.assert_close(out, model.norm(tokens))
    assert not torch.allclose(out, model.forward_features(x))


def test_drop_path_is_drawn_from_torchs_generator_in_training_only() -> None:
    model, x = filled(small(drop_path_rate=0.5)), torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    first, second = model(x), model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), first, rtol=0, atol=0)
    assert not torch.equal(first, second)
    model.eval()
    without = filled(small()).eval()
    state = torch.get_rng_state()
    torch.testing.assert_close(model(x), without(x), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_drawn_mask_keeps_each_block_at_its_rate_and_the_mean_at_one() -> None:
    torch.manual_seed(0)
    model = small(drop_path_rate=0.4)
    mask = model._draw_drop_path(torch.empty(20_000, 1))
    assert mask.shape == (6, 20_000)
    for row, rate in zip(mask, [0, 0, 0.2, 0.2, 0.4, 0.4], strict=True):
        assert (row == 0).float().mean().item() == pytest.approx(rate, abs=0.015)
        assert row.max().item() == pytest.approx(1 / (1 - rate))
        assert row.mean().item() == pytest.approx(1, abs=0.03)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(3, 2\); it must be .* \(6, 2\)"):
        small()(torch.zeros(2, 3, 32, 32), torch.ones(3, 2))


# ------------------------------------------------------------------- checkpointing, compile, meta


@pytest.mark.parametrize("masked", [False, True])
def test_grad_checkpointing_gives_equal_gradients_and_batch_norm_statistics(masked: bool) -> None:
    x = torch.randn(4, 3, 32, 32)
    mask = 1.25 * (torch.arange(24).reshape(6, 4) % 3 > 0) if masked else None
    plain, saving = (filled(small(stem=CONV, qk_norm=masked, registers=2)) for _ in range(2))
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(x, mask).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.abs().sum() > 0, name
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)
    for p, q in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_grad_checkpointing_recomputes_blocks_and_can_be_switched_off() -> None:
    model, calls = small(), [0]
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    x = torch.randn(2, 3, 32, 32)
    for enable, expected in [(True, 2), (False, 1)]:
        calls[0] = 0
        model.set_grad_checkpointing(enable)
        model.forward_features(x).sum().backward()
        assert calls[0] == expected


def test_drop_path_drawn_inside_is_the_same_in_the_recomputation() -> None:
    x = torch.randn(4, 3, 32, 32)
    grads = []
    for enable in (False, True):
        model = filled(small(drop_path_rate=0.5))
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"drop_path_rate": 0.5}, {"qk_norm": True, "registers": 2}])
def test_it_traces_into_one_graph(options: dict[str, Any]) -> None:
    model = filled(small(depth=2, stem=CONV, **options)).train()
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("init", ["2021", "2022"])
def test_it_builds_on_the_meta_device_and_takes_weights_afterwards(init: str) -> None:
    with torch.device("meta"):
        model = create_model("vit_c_tiny", 5, init=init)  # type: ignore[arg-type]
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    real = filled(create_model("vit_c_tiny", 5))
    model.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), real.eval()(x))


# --------------------------------------------------------------------------------- initialisation


def test_the_same_seed_draws_the_same_weights_and_another_init_only_another_stem() -> None:
    states = []
    for init in ("2021", "2021", "2022"):
        torch.manual_seed(5)
        states.append(create_model("vit_c_tiny", 5, init=init).state_dict())  # type: ignore[arg-type]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    changed = {k for k in states[0] if k.startswith("stem.") and k.endswith("weight")}
    differs = {k for k in changed if not torch.equal(states[0][k], states[2][k])}
    assert differs == {k for k in changed if "norm" not in k}


# ------------------------------------------------------------------------------------------ names


def test_state_dict_names_are_public() -> None:
    block = [
        f"{part}.{kind}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    body = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    ends = ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    layer = ["conv.weight", *(f"norm.{n}" for n in norm)]
    stems = {
        "vit_p_tiny": ["stem.proj.weight", "stem.proj.bias"],
        "vit_c_tiny": [
            *(f"stem.layers.{i}.{n}" for i in range(3) for n in layer),
            *("stem.proj.weight", "stem.proj.bias"),
        ],
    }
    for name, stem in stems.items():
        with torch.device("meta"):
            names = list(create_model(name, depth=2).state_dict())
        assert names == ["cls_token", "pos_embed", *stem, *body, *ends]


@pytest.mark.parametrize("stem", [PATCH, CONV], ids=["patchify", "conv"])
def test_no_weight_decay_is_norm_gains_and_every_bias(stem: Any) -> None:
    model = small(stem=stem, qk_norm=True, registers=2)
    exempt = model.no_weight_decay()
    kept = {n: p for n, p in model.named_parameters() if n not in exempt}
    tokens = {"pos_embed", "cls_token", "reg_token"}
    assert tokens | {"head.weight", "stem.proj.weight"} <= kept.keys()
    assert all(p.ndim >= 2 for p in kept.values())
    assert not {n for n in kept if n.endswith("bias") or "norm" in n}
    names = {n for n, _ in model.named_parameters()}
    assert exempt == {n for n in names if n.endswith("bias") or "norm" in n}


def test_no_weight_decay_goes_by_owner_so_that_renaming_changes_nothing() -> None:
    class Renamed(nn.Module):
        reduction = 8

        def __init__(self) -> None:
            super().__init__()
            self.squash = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.GroupNorm(4, 32))
            self.normal_bias_like = nn.Linear(4, 4, bias=False)
            self.gain = nn.Parameter(torch.ones(32))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.squash(x)
            return out

    model = VisionTransformer(ViTConfig(img_size=32, **SMALL), Renamed())
    assert {n for n in model.no_weight_decay() if n.startswith("stem.")} == {
        "stem.squash.0.bias",
        "stem.squash.1.weight",
        "stem.squash.1.bias",
        "stem.gain",
    }


def test_a_stem_of_ones_own_is_taken_as_it_is() -> None:
    class Average(nn.Module):
        reduction = 4

        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(x, 4)

    config = ViTConfig(img_size=20, embed_dim=4, num_heads=1, depth=1, in_chans=4)
    model = VisionTransformer(config, Average())
    assert model.forward_features(torch.randn(2, 4, 20, 20)).shape == (2, 26, 4)
    with pytest.raises(ConfigError, match="img_size 18 is not divisible by the stem's reduction 4"):
        VisionTransformer(dataclasses.replace(config, img_size=18), Average())
    with pytest.raises(ConfigError, match=r"Identity.reduction is None"):
        VisionTransformer(config, nn.Identity())


# ------------------------------------------------------------------------------- another input size


def test_set_input_size_keeps_the_class_token_and_the_position_of_things() -> None:
    model = small(img_size=32)
    grid = torch.linspace(0, 1, 4)[:, None] + torch.linspace(0, 2, 4)[None]
    with torch.no_grad():
        model.pos_embed[0, 0] = 7
        model.pos_embed[0, 1:] = grid.reshape(-1, 1)
    model.set_input_size((64, 48))
    assert model.img_size == (64, 48)
    assert model.pos_embed.shape == (1, 1 + 8 * 6, 32)
    assert (model.pos_embed[0, 0] == 7).all()
    resampled = model.pos_embed[0, 1:, 0].reshape(8, 6)
    assert resampled.mean().item() == pytest.approx(1.5, abs=1e-5)
    assert (resampled.diff(dim=0) > -0.05).all()
    assert (resampled.diff(dim=1) > -0.05).all()
    assert model(torch.randn(1, 3, 64, 48)).shape == (1, 5)
    with pytest.raises(ConfigError, match="img_size 60 is not divisible"):
        model.set_input_size(60)
    assert model.img_size == (64, 48)


# ---------------------------------------------------------------------------------- settings, zoo


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"img_size": 30}, "img_size 30 is not divisible by the stem's reduction 8; the nearest"),
        ({"img_size": (32, 37)}, "the nearest that is: (32, 40)"),
        ({"num_heads": 5}, "embed_dim 64 is not divisible by model.num_heads 5"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio 0.0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio nan"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0 must be in [0, 1)"),
        ({"depth": 1, "drop_path_rate": 0.1}, "has no effect with model.depth 1"),
        ({"in_chans": 0}, "in_chans 0 must be at least 1"),
        ({"class_token": False}, "needs model.class_token"),
        ({"init": "2020"}, "init '2020' must be one of 2021, 2022"),
        ({"attention": "flash"}, "Unknown value of model.attention: 'flash'"),
        ({"global_pool": "mean"}, "Unknown value of model.global_pool: 'mean'"),
        ({"stem": ConvStemConfig(strides=(2,))}, "model.stem.strides (2,) has 1 entries"),
        ({"drop_rate": 0.1}, "Unknown model setting 'drop_rate'. Did you mean"),
        ({"img_size": 30, "depth": 0}, "depth 0 must"),  # all problems at once
        ({"depth": "3"}, "model.depth is '3'; it must be an integer"),
        ({"depth": True}, "model.depth is True; it must be an integer"),
        ({"mlp_ratio": "3"}, "model.mlp_ratio is '3'; it must be a number"),
        ({"class_token": 1}, "model.class_token is 1; it must be true or false"),
        ({"global_pool": 3}, "model.global_pool is 3; it must be 'token' or 'avg'"),
        ({"name": "vit_c_1g"}, "Unknown model 'vit_c_1g'. Did you mean 'vit_c_1gf'?"),
        ({"name": 3}, "name is 3"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(
    overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as e:
        create_model(**{"name": "vit_p_tiny", **overrides})
    assert reason in e.value.message


@pytest.mark.parametrize("name", ["vit_c_tiny", "resnet_50"])
@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        *[
            ("img_size", v, "an integer or 2 values")
            for v in ("32", 32.0, True, (32,), (32, 32, 32), (32, "32"), (True, 32))
        ],
        *[("num_classes", v, "must be") for v in (-1, "10", 10.0, True, None)],
        *[("in_chans", v, "an integer") for v in ("3", 3.0, True, None)],
        ("in_chans", 0, "at least 1"),
        ("img_size", 0, ""),
        ("img_size", (0, 32), ""),
        ("img_size", -32, ""),
    ],
)
def test_values_of_a_wrong_type_are_refused_with_the_value_and_what_is_allowed(
    name: str, key: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ConfigError) as e:
        create_model(name, **{key: value})
    assert key in e.value.message
    assert repr(value) in e.value.message
    assert allowed in e.value.message


def test_numbers_of_numpy_and_two_sides_in_a_list_are_as_good() -> None:
    model = create_model("vit_c_tiny", num_classes=np.int64(3), img_size=[32, np.int32(40)])  # type: ignore[arg-type]
    assert model(torch.zeros(1, 3, 32, 40)).shape == (1, 3)
    assert type(model.config.img_size[1]) is int
    assert create_model("vit_p_tiny", mlp_ratio=2).config.mlp_ratio == 2.0


def test_the_papers_models_are_its_table_1() -> None:
    table = {  # width, MLP multiplier, heads, blocks
        "vit_p_1gf": (192, 3, 3, 12),
        "vit_p_4gf": (384, 3, 6, 12),
        "vit_p_18gf": (768, 4, 12, 12),
        "vit_p_36gf": (1024, 4, 16, 14),
        "vit_p_16gf": (384, 3, 6, 48),  # appendix B
        "vit_p_72gf": (1152, 4, 18, 22),  # appendix C
        "vit_p_bn_4gf": (384, 3, 6, 12),  # appendix A, and what follows
        "vit_c_1gf": (192, 3, 3, 11),
        "vit_c_4gf": (384, 3, 6, 11),
        "vit_c_18gf": (768, 4, 12, 11),
        "vit_c_36gf": (1024, 4, 16, 13),
        "vit_c_16gf": (384, 3, 6, 47),
        "vit_c_72gf": (1152, 4, 18, 22),
        "vit_c_ln_4gf": (384, 3, 6, 11),
        **{f"vit_s{i}_4gf": (384, 3, 6, 11) for i in (1, 2, 3, 4)},
    }
    assert set(table) == set(list_models("vit_*gf"))
    assert set(list_models("vit_?_*gf")) >= {n for n in REPORTED if n.startswith("vit")}
    for name, row in table.items():
        c = model_config(name)
        assert isinstance(c, ViTConfig)
        assert (c.embed_dim, c.mlp_ratio, c.num_heads, c.depth) == row
        assert (c.name, c.img_size, c.stem.reduction) == (name, 224, 16)
        assert (c.class_token, c.global_pool, c.drop_path_rate) == (True, "token", 0)


@pytest.mark.slow
def test_every_named_model_runs_at_its_size() -> None:
    for name in list_models():
        blocks = {"depth": 2} if isinstance(model_config(name), ViTConfig) else {}
        with torch.device("meta"):
            model: Any = create_model(name, 7, **blocks)
            assert model(torch.empty(1, 3, *model.img_size)).shape == (1, 7)


def test_a_conv_model_differs_from_its_twin_by_stem_and_one_block() -> None:
    for name in [*list_models("vit_c_*"), *list_models("vit_s?_4gf")]:
        twin = patchify_twin(name)
        assert twin is not None
        c, p = model_config(name), model_config(twin)
        assert isinstance(c, ViTConfig)
        assert isinstance(p, ViTConfig)
        less = 0 if name == "vit_c_72gf" else 1  # appendix C removes none
        assert c == dataclasses.replace(p, name=name, stem=c.stem, depth=p.depth - less)
        assert isinstance(c.stem, ConvStemConfig)
        assert c.stem.reduction == p.stem.reduction
        ablation = name.startswith("vit_s") or name == "vit_c_ln_4gf"
        assert twin == ("vit_p_4gf" if ablation else name.replace("_c_", "_p_"))
    assert patchify_twin("vit_p_bn_4gf") is None


def test_list_models_takes_a_pattern() -> None:
    sizes = ("1gf", "4gf", "16gf", "18gf", "36gf", "72gf", "ln_4gf")
    assert list_models("vit_c_*gf") == [f"vit_c_{size}" for size in sizes]
    assert {"vit_p_tiny", "vit_c_tiny_patch4"} <= set(list_models("*tiny*"))
    assert list_models("resnext*") == []
    assert vitc.list_models() == list_models()


def test_naming_and_checking_models_needs_no_torch() -> None:
    code = (
        "import sys, vitc.models.zoo as m; m.list_models(); m.model_config('vit_c_4gf', depth=3); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- options ---

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "registers": {"registers": 4},
    "both": {"qk_norm": True, "registers": 3},
    "pooled": {"registers": 2, "global_pool": "avg"},
    "class token unread": {"global_pool": "avg"},
    "no class token": {"registers": 2, "class_token": False, "global_pool": "avg"},
}


def logits(model: VisionTransformer, x: Tensor) -> Tensor:
    """The options from torch's functions and the model's tensors, written out flat."""
    w, c = model.state_dict(), model.config
    d, heads = c.embed_dim, c.num_heads
    patches = model.stem(x).flatten(2).transpose(1, 2)
    n = len(x)
    if c.class_token:
        patches = patches + w["pos_embed"][:, 1:]
        parts = [(w["cls_token"] + w["pos_embed"][:, :1]).expand(n, -1, -1)]
    else:
        patches, parts = patches + w["pos_embed"], []
    if c.registers:
        parts.append(w["reg_token"].expand(n, -1, -1))
    t = torch.cat([*parts, patches], dim=1)
    for i in range(c.depth):
        p = f"blocks.{i}."
        y = F.layer_norm(t, (d,), w[p + "norm1.weight"], w[p + "norm1.bias"], 1e-6)
        y = F.linear(y, w[p + "attn.qkv.weight"], w[p + "attn.qkv.bias"])
        out = []
        for head in range(heads):
            at = [
                slice(j * d + head * d // heads, j * d + (head + 1) * d // heads) for j in (0, 1, 2)
            ]
            q, k, v = (y[..., s] for s in at)
            if c.qk_norm:
                q, k = (
                    F.layer_norm(
                        z,
                        z.shape[-1:],
                        w[f"{p}attn.{name}.weight"],
                        w[f"{p}attn.{name}.bias"],
                        1e-6,
                    )
                    for z, name in ((q, "q_norm"), (k, "k_norm"))
                )
            scores = q @ k.transpose(1, 2) / math.sqrt(d // heads)
            out.append(scores.softmax(-1) @ v)
        y = torch.cat(out, dim=-1)
        t = t + F.linear(y, w[p + "attn.proj.weight"], w[p + "attn.proj.bias"])
        y = F.layer_norm(t, (d,), w[p + "norm2.weight"], w[p + "norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, w[p + "mlp.fc1.weight"], w[p + "mlp.fc1.bias"]))
        t = t + F.linear(y, w[p + "mlp.fc2.weight"], w[p + "mlp.fc2.bias"])
    t = F.layer_norm(t, (d,), w["norm.weight"], w["norm.bias"], 1e-6)
    first = int(c.class_token) + c.registers
    pooled = t[:, 0] if c.global_pool == "token" else t[:, first:].mean(1)
    return F.linear(pooled, w["head.weight"], w["head.bias"])


# --------------------------------------------------------------------------- QK-norm and registers


@pytest.mark.parametrize("attention", ["explicit", "sdpa", "auto"])
@pytest.mark.parametrize("stem", [PATCH, CONV], ids=["patchify", "conv"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_options_compute_what_is_written_out(
    options: dict[str, Any], stem: Any, attention: str
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        model = filled(small(stem=stem, attention=attention, **options)).to(dtype).eval()
        x = torch.randn(4, 3, 32, 32, dtype=dtype)
        with torch.no_grad():
            ours, theirs = model(x), logits(model, x)
        assert theirs.std() >= 0.1
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_registers_stand_after_the_class_token_and_no_head_reads_them() -> None:
    model = filled(small(registers=3, depth=1)).eval()
    assert model.num_prefix_tokens == 4
    assert model.pos_embed.shape == (1, 1 + 16, 32)
    x = torch.randn(2, 3, 32, 32)
    assert model.forward_features(x).shape == (2, 1 + 3 + 16, 32)
    tokens = model.embed(x)
    assert model.reg_token is not None
    torch.testing.assert_close(tokens[:, 1:4], model.reg_token.expand(2, -1, -1))
    features = torch.randn(2, 20, 32)
    other = features.clone()
    other[:, 1:4] += 1
    for pool in ("token", "avg"):
        pooled = filled(small(registers=3, global_pool=pool))
        torch.testing.assert_close(pooled.forward_head(features), pooled.forward_head(other))


def test_the_options_names_are_timms() -> None:
    with torch.device("meta"):
        plain, model = (set(small(**o).state_dict()) for o in ({}, OPTIONS["both"]))
    norms = {
        f"blocks.{i}.attn.{n}_norm.{k}" for i in range(3) for n in "qk" for k in ("weight", "bias")
    }
    assert model - plain == norms | {"reg_token"}
    assert plain < model


def test_qk_norm_bounds_the_attention_logits_whatever_the_weights() -> None:
    model = small(qk_norm=True)
    attn: Any = model.blocks[0].attn  # type: ignore[union-attr]
    nn.init.normal_(attn.qkv.weight, std=100)
    q, k, _ = attn.heads(torch.randn(2, 9, 32))
    assert (q @ k.transpose(-2, -1)).abs().max() <= 16.01  # |q| |k| = D / heads with unit gains


# ---------------------------------------------------------------------------------- any image size


def smooth(h: int, w: int, width: float, dim: int = 64) -> Tensor:
    """(1, 1 + h w, dim): random fields correlated over `width` tokens, of variance 1."""
    generator = torch.Generator().manual_seed(0)
    radius = math.ceil(3 * width)
    taps = torch.exp(-((torch.arange(-radius, radius + 1) / width) ** 2) / 2)
    noise = torch.randn(dim, 1, h + 2 * radius, w + 2 * radius, generator=generator)
    field = F.conv2d(F.conv2d(noise, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
    field = (field / field.std()).view(1, dim, h * w).transpose(1, 2)
    return torch.cat([torch.full((1, 1, dim), 7.0), field], dim=1)


@pytest.mark.parametrize(("width", "error"), [(2.0, 0.012), (3.0, 0.007)])
@pytest.mark.parametrize("between", [(24, 24), (20, 30)])
def test_a_smooth_embedding_survives_the_round_trip_to_a_finer_grid(
    width: float, error: float, between: tuple[int, int]
) -> None:
    old = smooth(14, 14, width)
    there = resample_pos_embed(old, (14, 14), between)
    assert there.shape == (1, 1 + between[0] * between[1], 64)
    back = resample_pos_embed(there, between, (14, 14))
    for tokens in (there, back):
        assert torch.equal(tokens[:, 0], old[:, 0])
    assert (back - old)[:, 1:].norm() < error * old[:, 1:].norm()
    assert (there[:, 1:].std() - 1).abs() < 0.05


def test_the_same_grid_gives_the_same_tensor_and_dtypes_are_kept() -> None:
    embedding = smooth(6, 4, 1.0)
    assert resample_pos_embed(embedding, (6, 4), (6, 4)) is embedding
    for dtype in (torch.float64, torch.bfloat16):
        assert resample_pos_embed(embedding.to(dtype), (6, 4), (4, 6)).dtype == dtype


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_rows_and_columns_of_an_oblong_grid_are_not_mixed_up(prefix: int) -> None:
    rows = torch.arange(6.0)[:, None].expand(6, 4).reshape(1, 24, 1)
    embedding = torch.cat([torch.full((1, prefix, 1), -1.0), rows], dim=1)
    grid = resample_pos_embed(embedding, (6, 4), (12, 10))
    assert (grid[:, :prefix] == -1).all()
    image = grid[0, prefix:, 0].reshape(12, 10)
    torch.testing.assert_close(image, image[:, :1].expand(12, 10))
    assert (image[:, 0].diff() > 0).all()


@pytest.mark.parametrize("stem", [PATCH, CONV], ids=["patchify", "conv"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_dynamic_size_gives_what_set_input_size_does(options: dict[str, Any], stem: Any) -> None:
    fixed, dynamic = (
        filled(small(stem=stem, dynamic_img_size=d, **options)).eval() for d in (False, True)
    )
    before = dynamic.pos_embed.clone()
    for size in [(32, 32), (64, 64), (16, 40), (8, 8)]:
        x = torch.randn(2, 3, *size)
        at_size = filled(small(stem=stem, **options)).eval()
        at_size.set_input_size(size)
        assert torch.equal(dynamic(x), at_size(x))
        if size == (32, 32):
            assert torch.equal(dynamic(x), fixed(x))
    assert torch.equal(dynamic.pos_embed, before)
    assert dynamic.img_size == (32, 32)


def test_a_dynamic_size_trains_its_position_embedding_and_traces() -> None:
    model = filled(small(dynamic_img_size=True))
    x = torch.randn(2, 3, 48, 24)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    model(x).square().sum().backward()
    assert model.pos_embed.grad is not None
    assert (model.pos_embed.grad.abs().sum(dim=2) > 0).all()


def test_sizes_that_the_stem_cannot_divide_are_refused_also_when_dynamic() -> None:
    model = small(dynamic_img_size=True)
    for h, w in [(36, 32), (32, 7), (4, 8), (8, 0)]:
        with pytest.raises(ConfigError, match=f"{h}x{w} are not divisible .* reduction 8"):
            model(torch.zeros(1, 3, h, w))
    with pytest.raises(ConfigError, match=r"\(batch, 3, height, width\)"):
        model(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ConfigError, match=r"\(batch, 3, height, width\)"):
        model(torch.zeros(3, 32, 32))
    with pytest.raises(ConfigError, match="dynamic_img_size"):
        small()(torch.zeros(1, 3, 40, 40))


def test_set_input_size_leaves_registers_and_frozen_embeddings_as_they_are() -> None:
    model = small(registers=3)
    model.pos_embed.requires_grad_(False)
    registers = model.reg_token
    model.set_input_size((64, 16))
    assert model.reg_token is registers
    assert model.pos_embed.shape == (1, 1 + 8 * 2, 32)
    assert not model.pos_embed.requires_grad
    assert model(torch.randn(1, 3, 64, 16)).shape == (1, 5)


@pytest.mark.parametrize("kind", sorted(STEM_KINDS.keys() - {"custom"}))
def test_every_stem_goes_to_another_size_and_is_counted_there(kind: str) -> None:
    model: Any = create_model("vit_c_tiny", 5, stem=kind, dynamic_img_size=True)
    small_cost, large_cost = complexity(model), complexity(model, (64, 48))
    assert model.grid == (4, 4)
    model.set_input_size((64, 48))
    assert complexity(model) == large_cost
    assert large_cost.flops > 2.5 * small_cost.flops
    assert model(torch.randn(1, 3, 64, 48)).shape == (1, 5)
    assert model(torch.randn(1, 3, 16, 32)).shape == (1, 5)


# ---------------------------------------------------------------------------------- foreign stems


class Wrong(nn.Module):
    """A stem that gives what it is told to."""

    reduction = 8

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (torch.zeros(2, 16, 32), "Wrong returned (2, 16, 32)"),  # tokens, not a grid
        (torch.zeros(2, 31, 4, 4), "Wrong returned (2, 31, 4, 4)"),  # another width
        (torch.zeros(2, 32, 2, 2), "Wrong returned (2, 32, 2, 2)"),  # another reduction
        (torch.zeros(2, 32, 8, 2), "Wrong returned (2, 32, 8, 2)"),  # as many tokens, another grid
        (torch.zeros(1, 32, 4, 4), "Wrong returned (1, 32, 4, 4)"),  # would broadcast
        ((torch.zeros(2, 32, 4, 4), None), "Wrong returned tuple"),
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_stem_that_gives_another_shape_is_named_with_what_was_expected(
    output: Any, told: str, dynamic: bool
) -> None:
    config = ViTConfig(img_size=32, num_classes=5, dynamic_img_size=dynamic, **SMALL)
    model = VisionTransformer(config, Wrong(output))
    with pytest.raises(ConfigError) as e:
        model(torch.zeros(2, 3, 32, 32))
    assert told in e.value.message
    assert "(batch, embed_dim, h, w) = (2, 32, 4, 4)" in e.value.message


# ------------------------------------------------------------------------------- names by layer


@pytest.mark.parametrize("kind", sorted(STEM_KINDS.keys() - {"custom"}))
def test_layers_name_every_parameter_once_from_input_to_output(kind: str) -> None:
    model: Any = create_model("vit_c_tiny", 5, stem=kind, qk_norm=True, registers=2, depth=11)
    layers = model.layers()
    assert len(layers) == 1 + 11 + 1
    names = [name for layer in layers for name in layer]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in model.named_parameters()}
    assert {"cls_token", "reg_token", "pos_embed", "stem.proj.weight"} <= set(layers[0])
    for i in range(11):
        assert {n.split(".")[:2][1] for n in layers[1 + i]} == {str(i)}
    assert set(layers[-1]) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


# ----------------------------------------------------------------------------------- how it starts


def spread(tensor: Tensor, std: float) -> None:
    assert tensor.numel() >= 10_000
    assert tensor.std().item() == pytest.approx(std, rel=0.03)
    assert abs(tensor.mean().item()) < 4 * std / tensor.numel() ** 0.5


@pytest.mark.parametrize("init", ["2021", "2022"])
def test_every_kind_of_tensor_of_the_body_starts_as_its_generation_says(init: Any) -> None:
    torch.manual_seed(0)
    d, mlp = 256, 768
    config = ViTConfig(
        embed_dim=d,
        num_heads=4,
        depth=2,
        img_size=128,
        stem=PATCH,
        init=init,
        qk_norm=True,
        registers=64,
        num_classes=50,
    )
    model = build_model(config)
    started = set()
    for name, p in model.named_parameters():
        if name.startswith("stem."):
            continue
        if name in ("pos_embed", "reg_token"):
            spread(p, 0.02)
        elif name.endswith("attn.qkv.weight"):  # Xavier over the joint matrix
            spread(p, (2 / (d + 3 * d)) ** 0.5)
        elif name.endswith("attn.proj.weight"):  # as torch makes a Linear
            spread(p, (3 * d) ** -0.5)
        elif name.endswith(("fc1.weight", "fc2.weight")):
            spread(p, (2 / (d + mlp)) ** 0.5)
        elif name.endswith(("fc1.bias", "fc2.bias")):
            assert p.std().item() == pytest.approx(1e-6, rel=0.2)
        elif "norm" in name and name.endswith("weight"):
            assert (p == 1).all(), name
            norm: Any = model.get_submodule(name.removesuffix(".weight"))
            assert norm.eps == 1e-6
        else:
            assert name == "cls_token" or name.startswith("head.") or name.endswith("bias"), name
            assert not p.any(), name
        started.add(name.rpartition("blocks.")[2].lstrip("01."))
    assert len(started) == 16 + 7  # of a block, and around the blocks


@pytest.mark.parametrize("kind", sorted(STEM_KINDS.keys() - {"custom"}))
@pytest.mark.parametrize("init", ["2021", "2022"])
def test_every_fresh_model_has_live_features_and_logits_of_zero(kind: str, init: Any) -> None:
    torch.manual_seed(0)
    model: Any = create_model("vit_c_tiny", 7, stem=kind, init=init, qk_norm=True, registers=2)
    x = torch.randn(2, 3, 32, 32)
    assert not model(x).any()
    features = model.forward_features(x)
    assert features.shape == (2, 1 + 2 + 16, 64)
    assert features.std() > 0.5
    assert features[0, 3:].std(dim=0).mean() > 0.1  # patches differ
