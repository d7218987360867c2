"""A ViT's options: QK-norm, registers, any image size, foreign stems, names by layer, its start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.test_models import CONV, PATCH, SMALL, filled, small
from vitc.errors import ConfigError
from vitc.models.complexity import complexity
from vitc.models.config import ViTConfig
from vitc.models.stem_config import STEM_KINDS
from vitc.models.vit import VisionTransformer, resample_pos_embed
from vitc.models.zoo import build_model, create_model

OPTIONS: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": True},
    "registers": {"registers": 4},
    "both": {"qk_norm": True, "registers": 3},
    "pooled": {"registers": 2, "global_pool": "avg"},
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


@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
@pytest.mark.parametrize("stem", [PATCH, CONV], ids=["patchify", "conv"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_options_compute_what_is_written_out(
    options: dict[str, Any], stem: Any, attention: str
) -> None:
    model = filled(small(stem=stem, attention=attention, **options)).double().eval()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = model(x), logits(model, x)
    assert theirs.std() >= 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


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


def test_gains_of_qk_norm_are_not_decayed_and_registers_are_as_the_class_token_is() -> None:
    model = small(qk_norm=True, registers=2)
    exempt = model.no_weight_decay()
    assert {n for n, _ in model.named_parameters() if "q_norm" in n or "k_norm" in n} < exempt
    assert not {"reg_token", "cls_token", "pos_embed"} & exempt


@pytest.mark.parametrize("attention", ["explicit", "sdpa", "auto"])
def test_qk_norm_in_bf16_keeps_products_in_bf16_and_stays_near_float32(attention: str) -> None:
    model = filled(small(qk_norm=True, registers=2, attention=attention)).eval()
    x = torch.randn(8, 3, 32, 32)
    attn: Any = model.blocks[0].attn  # type: ignore[union-attr]
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
            assert {t.dtype for t in attn.heads(torch.randn(2, 5, 32))} == {torch.bfloat16}
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_qk_norm_bounds_the_attention_logits_whatever_the_weights() -> None:
    model = small(qk_norm=True)
    attn: Any = model.blocks[0].attn  # type: ignore[union-attr]
    nn.init.normal_(attn.qkv.weight, std=100)
    q, k, _ = attn.heads(torch.randn(2, 9, 32))
    assert (q @ k.transpose(-2, -1)).abs().max() <= 16.01  # |q| |k| = D / heads with unit gains


def test_the_options_train_trace_and_checkpoint() -> None:
    x, options = torch.randn(2, 3, 32, 32), {"qk_norm": True, "registers": 2, "depth": 2}
    model = filled(small(**options))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
    saving = filled(small(**options))
    saving.set_grad_checkpointing()
    saving(x).square().sum().backward()
    for p, q in zip(model.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_without_options_the_same_seed_draws_the_same_weights_as_with_them_off() -> None:
    states = []
    for options in ({}, {"qk_norm": False, "registers": 0, "dynamic_img_size": True}):
        torch.manual_seed(3)
        states.append(small(**options).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_it_gives_timms_logits_with_qk_norm_and_registers() -> None:
    from vitc.models.timm import import_peer

    try:
        import_peer("timm")
    except ImportError as e:
        pytest.skip(f"NOT COMPARED with timm, which is not installed: {e}")
    from timm.models.vision_transformer import (  # type: ignore[import-not-found, unused-ignore]
        VisionTransformer as Theirs,
    )

    for options in ({}, {"qk_norm": True}, {"registers": 4}, {"qk_norm": True, "registers": 4}):
        ours = filled(small(**options), seed=1).eval()
        r = ours.config.registers
        theirs = Theirs(
            img_size=32,
            patch_size=8,
            num_classes=5,
            embed_dim=32,
            depth=3,
            num_heads=2,
            mlp_ratio=3.0,
            qk_norm=ours.config.qk_norm,
            reg_tokens=r,
        ).eval()
        state = {k.replace("stem.", "patch_embed."): v for k, v in ours.state_dict().items()}
        pos = state["pos_embed"]  # timm's covers the registers, too
        state["pos_embed"] = torch.cat([pos[:, :1], torch.zeros(1, r, 32), pos[:, 1:]], dim=1)
        theirs.load_state_dict(state)
        x = torch.randn(4, 3, 32, 32)
        with torch.no_grad():
            a, b = ours(x), theirs(x)
        assert b.std() >= 0.1
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


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


def test_the_round_trip_is_nearer_without_antialiasing() -> None:
    for width in (0.1, 1.0, 2.0, 3.0):
        image = smooth(14, 14, width)[:, 1:].transpose(1, 2).reshape(1, 64, 14, 14)
        errors = []
        for antialias in (False, True):
            back = image
            for size in ((24, 24), (14, 14)):
                back = F.interpolate(back, size, mode="bicubic", antialias=antialias)
            errors.append((back - image).norm().item())
        assert errors[0] < 0.7 * errors[1]


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
@pytest.mark.parametrize("options", [{}, *OPTIONS.values()])
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


def test_layers_of_a_model_without_class_token_and_head_are_as_many() -> None:
    model = small(class_token=False, global_pool="avg")
    model.reset_classifier(0)
    layers = model.layers()
    assert len(layers) == 5
    assert layers[-1] == ["norm.weight", "norm.bias"]
    assert "cls_token" not in layers[0]


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
