"""The same logits in and out of pycls, torchvision and timm, and words for what does not fit."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import vitc
from tests.pycls_reference import forward as pycls_forward
from vitc.cli.main import main
from vitc.errors import CheckpointError, ConfigError
from vitc.models import timm as timm_module
from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.models.timm import import_peer
from vitc.models.zoo import build_model
from vitc.weights import convert as convert_module
from vitc.weights.fit import load_weights, models_like
from vitc.weights.layouts import (
    LAYOUTS,
    Layout,
    Preprocessing,
    convention,
    describe,
    from_vitc,
    recognise,
    to_vitc,
)
from vitc.weights.load import pycls_settings, read_weights

P = ViTConfig(
    name="p",
    stem=PatchifyStemConfig(patch_size=8),
    embed_dim=48,
    depth=2,
    num_heads=3,
    mlp_ratio=2.0,
    img_size=32,
    num_classes=7,
)
C = dataclasses.replace(
    P, name="c", stem=ConvStemConfig(channels=(6, 8, 8, 12), strides=(2, 2, 1, 2))
)
CONFIGS = {"p": P, "c": C}
STRIDES = {"p": (), "c": (2, 2, 1, 2)}
PAIRS = [(k, x) for k in CONFIGS for x in LAYOUTS if (k, x) != ("c", "timm")]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor and buffer away from its default, so that none can be forgotten unseen."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in module.state_dict().items():
            if not t.is_floating_point():
                t.fill_(11)
            elif name.endswith("running_var"):
                t.copy_(torch.rand(t.shape, generator=g) + 0.5)
            elif t.ndim <= 1:
                mean = 1.0 if float(t.mean()) == 1 else 0.0
                t.copy_(mean + 0.3 * torch.randn(t.shape, generator=g))
            else:
                fan_in = t[0].numel() if name.endswith("weight") else 1
                t.copy_(torch.randn(t.shape, generator=g) * fan_in**-0.5)
    return module.eval()


def model_of(kind: str, seed: int = 0, **changes: Any) -> nn.Module:
    return randomise(build_model(dataclasses.replace(CONFIGS[kind], **changes)), seed)


def images(size: int = 32, n: int = 4) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    ours, theirs = ours.detach(), theirs.detach()
    assert float(theirs.std()) >= 0.1
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def peer(name: str) -> Any:
    try:
        return import_peer(name)
    except ImportError:
        root = name.partition(".")[0]
        pytest.skip(f"NOT COMPARED: {root} is not installed; pip install -e '.[peers]'")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# -- parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("layout", ["pycls", "pycls_branch"])
@pytest.mark.parametrize("train", [False, True])
def test_pycls_gives_the_same_logits(kind: str, layout: Layout, train: bool) -> None:
    theirs = from_vitc(dict(model_of(kind, seed=3).state_dict()), layout)
    ours = model_of(kind, seed=4)
    report = load_weights(ours, theirs)
    assert (report.source, report.missing, report.unexpected) == (layout, (), ())
    ours.train(train)
    expected = pycls_forward(theirs, images(), P.num_heads, STRIDES[kind], batch_statistics=train)
    assert_same_logits(ours(images()), expected)


def test_pycls_without_class_token_pools_the_tokens() -> None:
    changes = {"class_token": False, "global_pool": "avg"}
    theirs = from_vitc(dict(model_of("c", 3, **changes).state_dict()), "pycls")
    ours = model_of("c", 4, **changes)
    load_weights(ours, theirs)
    assert_same_logits(ours(images()), pycls_forward(theirs, images(), 3, STRIDES["c"]))


def test_both_orders_of_positions_are_read_with_either_attention_of_pycls() -> None:
    """Between two commits `main` had nn.MultiheadAttention with positions batch first."""
    model = model_of("p")
    theirs = from_vitc(dict(model.state_dict()), "pycls")
    theirs["pos_embedding"] = theirs["pos_embedding"].transpose(0, 1)
    ours, strangers = to_vitc(theirs, "pycls")
    assert same(ours, dict(model.state_dict()))
    assert not strangers


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("train", [False, True])
def test_torchvision_gives_the_same_logits(kind: str, train: bool) -> None:
    tv = peer("torchvision.models.vision_transformer")
    stem = None
    if kind == "c":
        widths = zip((6, 8, 8, 12), STRIDES["c"], strict=True)
        stem = [tv.ConvStemConfig(w, 3, s) for w, s in widths]
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48}
    theirs = randomise(
        tv.VisionTransformer(**sizes, mlp_dim=96, num_classes=7, conv_stem_configs=stem), seed=3
    )
    ours = model_of(kind, seed=4)
    report = load_weights(ours, theirs.state_dict())
    assert report.source == "torchvision"
    assert report.missing == report.unexpected == ()
    assert_same_logits(ours.train(train)(images()), theirs.train(train)(images()))

    back = from_vitc(dict(ours.state_dict()), "torchvision")
    theirs.load_state_dict(back, strict=True)
    assert same(dict(theirs.state_dict()), back)


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": True}, {"class_token": False, "global_pool": "avg"}, {"in_chans": 1}],
)
def test_timm_gives_the_same_logits(changes: dict[str, Any]) -> None:
    theirs = randomise(timm_vit(**changes), seed=3)
    ours = model_of("p", seed=4, **changes)
    report = load_weights(ours, theirs.state_dict())
    assert report.source == "timm"
    assert report.missing == report.unexpected == ()
    x = images()[:, : changes.get("in_chans", 3)]
    assert_same_logits(ours(x), theirs(x))

    other = randomise(timm_vit(**changes), seed=5)
    assert load_weights(other, ours.state_dict()).missing == ()  # ours into timm's model
    assert_same_logits(other(x), ours(x))


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_timm_registers_come_over_whatever_its_positions_cover(no_embed_class: bool) -> None:
    theirs = randomise(timm_vit(reg_tokens=4, no_embed_class=no_embed_class), seed=3)
    ours = model_of("p", seed=4, registers=4)
    load_weights(ours, theirs.state_dict())
    assert_same_logits(ours(images()), theirs(images()))
    if not no_embed_class:
        back = from_vitc(dict(ours.state_dict()), "timm")
        load_weights(theirs, back)
        assert_same_logits(ours(images()), theirs(images()))


def timm_vit(**changes: Any) -> nn.Module:
    vit = peer("timm.models.vision_transformer")
    if changes.get("global_pool") == "avg":
        changes = {**changes, "fc_norm": False}
    model: nn.Module = vit.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=2.0,
        num_classes=7,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **changes,
    )
    return model


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "layout"), PAIRS)
def test_there_and_back_is_bit_equal_and_recognised(kind: str, layout: Layout) -> None:
    ours = dict(model_of(kind).state_dict())
    theirs = from_vitc(ours, layout)
    assert recognise(theirs) == layout
    back, strangers = to_vitc(theirs, layout)
    assert same(back, ours)
    assert not strangers


def test_registers_go_to_timm_and_back_bit_equal() -> None:
    ours = dict(model_of("p", registers=3, qk_norm=True).state_dict())
    assert same(to_vitc(from_vitc(ours, "timm"), "timm")[0], ours)


def test_the_names_are_those_that_pycls_writes() -> None:
    """From the state dict of pycls's ViT_C-1GF, in paper.md's list."""
    names = set(from_vitc(dict(model_of("c").state_dict()), "pycls"))
    assert names >= {
        "class_token",
        "pos_embedding",
        "stem.cstem0_conv.weight",
        "stem.cstem3_bn.running_var",
        "stem.cstem0_bn.num_batches_tracked",
        "stem.cstem_last_conv.bias",
        "encoder.block_0.ln_1.weight",
        "encoder.block_1.self_attention.block.in_proj_weight",
        "encoder.block_0.self_attention.block.out_proj.bias",
        "encoder.block_0.mlp_block.linear_1.bias",
        "encoder.ln.bias",
        "head.head_fc.weight",
    }
    patchify = from_vitc(dict(model_of("p").state_dict()), "pycls")
    assert "stem.patchify.bias" in patchify
    assert patchify["pos_embedding"].shape == (17, 1, 48)


def test_torchvisions_older_names_are_read() -> None:
    ours = dict(model_of("p").state_dict())
    old = {
        n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t
        for n, t in from_vitc(ours, "torchvision").items()
    }
    assert any("linear_2" in n for n in old)
    assert same(to_vitc(old, "torchvision")[0], ours)


@pytest.mark.parametrize(
    ("changes", "layout", "words"),
    [
        ({"registers": 2}, "pycls", "no place for reg_token"),
        ({"qk_norm": True}, "torchvision", "no place for blocks.0.attn.q_norm.weight"),
        ({"class_token": False, "global_pool": "avg"}, "torchvision", "always has a class token"),
        ({"in_chans": 1}, "pycls", "takes 3 channels, these take 1"),
        ({"stem": C.stem}, "timm", "no convolutional stem"),
        (
            {"stem": ConvStemConfig(channels=(6, 6), strides=(2, 4), kernel_sizes=(3, 5))},
            "pycls_branch",
            "3x3 convolutions",
        ),
    ],
)
def test_what_a_library_cannot_compute_is_not_written_for_it(
    changes: dict[str, Any], layout: Layout, words: str
) -> None:
    tensors = dict(model_of("p", **changes).state_dict())
    with pytest.raises(CheckpointError, match=words):
        from_vitc(tensors, layout)


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ({"kind": "scaled_relu"}, "has no scaled_relu stem"),
        ({"kind": "conv", "act": "gelu"}, "has ReLUs, these gelu"),
    ],
)
def test_another_stem_is_refused_though_its_names_are_the_same(
    stem: dict[str, Any], words: str
) -> None:
    tensors = dict(model_of("c").state_dict())
    with pytest.raises(CheckpointError, match=words):
        from_vitc(tensors, "pycls", stem)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dist_token", "distilled DeiT"),
        ("fc_norm.weight", "after pooling"),
        ("blocks.0.ls1.gamma", "LayerScale"),
        ("norm_pre.weight", "before the first block"),
    ],
)
def test_architectures_that_ours_cannot_compute_are_refused_by_name(name: str, words: str) -> None:
    theirs = from_vitc(dict(model_of("p").state_dict()), "timm") | {name: torch.ones(48)}
    with pytest.raises(CheckpointError, match=words):
        load_weights(model_of("p"), theirs)


class Scaled(nn.Module):
    """A stand-in for a timm ViT with LayerScale: what it holds goes by timm's names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        theirs = from_vitc(dict(model_of("p", seed).state_dict()), "timm")
        for name, tensor in (theirs | {"blocks.0.ls1.gamma": torch.full((48,), seed / 7)}).items():
            self.register_buffer(name.replace(".", "/"), tensor.clone())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = super().state_dict(*args, **kwargs)
        return {name.replace("/", "."): tensor for name, tensor in found.items()}


def test_weights_of_a_foreign_vit_still_fill_a_model_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = Scaled(1), Scaled(2)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert found.source == "timm"
    assert same(found.tensors, source.state_dict())
    load_weights(model, tmp_path / "x.pth")
    assert same(model.state_dict(), source.state_dict())
    with pytest.raises(CheckpointError, match=r"missing: norm\.bias"):
        load_weights(model, {n: t for n, t in source.state_dict().items() if n != "norm.bias"})
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "o.pth")]) == 1
    assert "LayerScale" in capsys.readouterr().err


def test_a_name_that_stands_twice_is_refused() -> None:
    theirs = from_vitc(dict(model_of("p").state_dict()), "torchvision")
    theirs["encoder.layers.encoder_layer_0.mlp.linear_1.bias"] = torch.ones(96)
    with pytest.raises(CheckpointError, match="twice"):
        load_weights(model_of("p"), theirs)


# -- wrappers --------------------------------------------------------------------------------------


def pycls_file(
    path: Path, kind: str = "c", cfg: str = "", **extra: Any
) -> tuple[nn.Module, nn.Module]:
    """A checkpoint as pycls writes it; returns the raw and the averaged model."""
    raw, ema = model_of(kind, seed=1), model_of(kind, seed=2)
    content = {
        "epoch": 99,
        "test_err": 21.5,
        "ema_err": 20.75,
        "model_state": OrderedDict(from_vitc(dict(raw.state_dict()), "pycls")),
        "ema_state": OrderedDict(from_vitc(dict(ema.state_dict()), "pycls")),
        "optimizer_state": {
            "state": {0: {"exp_avg": torch.ones(3)}},
            "param_groups": [{"lr": 0.1}],
        },
        "cfg": cfg,
    }
    torch.save(content | extra, path)
    return raw, ema


@pytest.mark.parametrize("average", ["ema", "raw"])
def test_a_pycls_file_gives_the_weights_that_are_asked_for(tmp_path: Path, average: Any) -> None:
    raw, ema = pycls_file(tmp_path / "model.pyth")
    model = model_of("c", seed=9)
    report = load_weights(model, tmp_path / "model.pyth", average=average)
    assert same(dict(model.state_dict()), dict((ema if average == "ema" else raw).state_dict()))
    assert any("test_err 21.50, ema_err 20.75" in note for note in report.adapted)
    pycls_file(tmp_path / "raw.pyth", ema_state=None, cfg=CFG.replace("1.0e-06", "1.0e-05"))
    report = load_weights(model, tmp_path / "raw.pyth")
    assert same(dict(model.state_dict()), dict(raw.state_dict()))
    assert any("no moving average" in note for note in report.adapted)
    assert any("LayerNorm eps 1e-05" in note for note in report.adapted)


@pytest.mark.parametrize(
    "wrapper", ["model", "state_dict", "model_ema", "module", "compiled", "ddp"]
)
def test_common_wrappers_are_opened(wrapper: str) -> None:
    source = model_of("p", seed=1)
    tensors = dict(from_vitc(dict(source.state_dict()), "timm"))
    content: dict[str, Any] = {
        "model": {"model": tensors, "args": argparse.Namespace(lr=1)},
        "state_dict": {"state_dict": tensors, "epoch": 3},
        "model_ema": {
            "model_ema": {f"module.{n}": t for n, t in tensors.items()}
            | {"n_averaged": torch.tensor(5)}
        },
        "module": {f"module.{n}": t for n, t in tensors.items()},
        "compiled": {f"_orig_mod.{n}": t for n, t in tensors.items()},
        "ddp": {f"module._orig_mod.{n}": t for n, t in tensors.items()},
    }[wrapper]
    model = model_of("p", seed=2)
    assert load_weights(model, content).source == "timm"
    assert same(dict(model.state_dict()), dict(source.state_dict()))


def test_a_wrapped_model_is_filled_like_the_bare_one() -> None:
    source, inner = model_of("p", seed=1), model_of("p", seed=2)
    wrapped = nn.DataParallel(inner)
    load_weights(wrapped, dict(source.state_dict()))
    assert same(dict(inner.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        ({}, "it is empty"),
        ({"model": {"a": 1}}, "it also holds a"),
        ({"ema_state": {"a": torch.ones(1)}}, "moving average only"),
    ],
)
def test_what_is_no_state_dict_is_said(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "x.pth", average="raw")


# -- what does not fit -----------------------------------------------------------------------------


def assert_unchanged_by(model: nn.Module, words: str, *args: Any, **kwargs: Any) -> CheckpointError:
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as caught:
        load_weights(model, *args, **kwargs)
    assert same(before, dict(model.state_dict()))
    return caught.value


def test_another_model_is_named_with_what_is_missing_unexpected_and_misshapen() -> None:
    theirs = from_vitc(dict(model_of("c", embed_dim=24, depth=3).state_dict()), "pycls")
    error = assert_unchanged_by(model_of("p"), "is of another model", theirs)
    assert "unexpected: stem.layers.0.conv.weight" in error.message
    assert "cls_token ((1, 1, 24) in the file, (1, 1, 48) in the model)" in error.message
    assert error.hint is not None
    assert "3 blocks, 24 wide" in error.hint
    assert "(6, 8, 8, 12)" in error.hint
    tensors = dict(vitc.create_model("vit_c_tiny", num_classes=10).state_dict())
    error = assert_unchanged_by(model_of("p"), "is of another model", tensors)
    assert "vit_c_tiny" in str(error.hint)


def test_models_that_differ_in_the_stems_norm_are_told_apart() -> None:
    for name in ("vit_c_4gf", "vit_c_ln_4gf", "vit_p_bn_4gf", "vit_p_4gf"):
        with torch.device("meta"):
            shape = describe(dict(vitc.create_model(name).state_dict()))
        assert shape is not None
        assert models_like(shape) == [name]


def test_another_class_count_is_said_and_left_out_when_asked() -> None:
    theirs = from_vitc(dict(model_of("p", seed=1, num_classes=5).state_dict()), "timm")
    model = model_of("p", seed=2)
    head = model.state_dict()["head.weight"].clone()
    error = assert_unchanged_by(model, "its classifier has 5 classes, the model 7", theirs)
    assert "another model" not in error.message
    assert "adapt=('head',)" in str(error.hint)
    report = load_weights(model, theirs, adapt=["head"])
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert torch.equal(model.state_dict()["pos_embed"], theirs["pos_embed"])
    assert report.missing == report.unexpected == ()
    assert any("5 classes in the weights, 7 in the model" in said for said in report.adapted)


def test_a_classifier_on_one_side_only_is_left_out_when_asked() -> None:
    theirs = dict(model_of("p", seed=1).state_dict())
    bare = model_of("p", seed=2)
    bare.reset_classifier(0)  # type: ignore[operator]
    assert_unchanged_by(bare, "unexpected: head", theirs)
    assert load_weights(bare, theirs, adapt=["head"]).unexpected == ()
    without = {n: t for n, t in theirs.items() if not n.startswith("head.")}
    assert_unchanged_by(model_of("p"), "missing: head", without)
    assert load_weights(model_of("p"), without, adapt=["head"]).missing == ()


def test_another_resolution_is_said_and_resampled_when_asked() -> None:
    theirs = from_vitc(dict(model_of("c", seed=1).state_dict()), "pycls")
    model = model_of("c", seed=2, img_size=48)
    error = assert_unchanged_by(model, "another resolution", theirs)
    assert "(1, 17, 48)" in error.message
    assert "adapt=('pos_embed',)" in str(error.hint)
    report = load_weights(model, theirs, adapt=["pos_embed"])
    assert any("from 4x4 to 6x6" in said for said in report.adapted)
    assert report.preprocessing is not None
    assert report.preprocessing.img_size == (48, 48)
    twin = model_of("c", seed=3)
    load_weights(twin, theirs)
    twin.set_input_size(48)  # type: ignore[operator]
    assert_same_logits(model(images(48)), twin(images(48)))

    theirs = dict(model_of("c", seed=1, num_classes=3).state_dict())
    error = assert_unchanged_by(model, "3 classes, the model 7.*another resolution", theirs)
    assert "adapt=('head', 'pos_embed')" in str(error.hint)
    assert len(load_weights(model, theirs, adapt=("head", "pos_embed")).adapted) == 2


def test_a_grid_that_is_no_square_and_nowhere_said_is_not_guessed() -> None:
    theirs = dict(model_of("p", img_size=(16, 32)).state_dict())
    assert_unchanged_by(model_of("p"), "not a square", theirs, adapt=["pos_embed"])


def test_not_strict_takes_what_fits_and_reports_the_rest() -> None:
    theirs = dict(model_of("p", seed=1, num_classes=5).state_dict())
    theirs.pop("norm.bias")
    theirs["extra"] = torch.ones(1)
    model = model_of("p", seed=2)
    report = load_weights(model, theirs, strict=False)
    assert set(report.missing) == {"norm.bias", "head.weight", "head.bias"}
    assert report.unexpected == ("extra",)
    assert torch.equal(model.state_dict()["norm.weight"], theirs["norm.weight"])
    assert_unchanged_by(model_of("p"), "Nothing in", {"a": torch.ones(1)}, strict=False)


def test_only_some_parts_are_taken() -> None:
    source, model = model_of("c", seed=1), model_of("c", seed=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    load_weights(model, dict(source.state_dict()), only=["stem.layers", "blocks.0"])
    for name, tensor in model.state_dict().items():
        taken = name.startswith(("stem.layers.", "blocks.0."))
        assert torch.equal(tensor, source.state_dict()[name] if taken else before[name]), name
    theirs = dict(model_of("c", seed=1, num_classes=5).state_dict())
    load_weights(model, theirs, adapt="head", only="norm")  # single strings
    assert torch.equal(model.state_dict()["norm.bias"], theirs["norm.bias"])
    with pytest.raises(ConfigError, match=r"no part 'stm'.*'stem'"):
        load_weights(model, dict(source.state_dict()), only=["stm"])


def test_a_model_without_class_token_is_another_model_at_any_resolution() -> None:
    theirs = dict(model_of("p").state_dict())
    model = model_of("p", class_token=False, global_pool="avg")
    assert_unchanged_by(
        model, "(?s)another model.*unexpected: cls_token", theirs, adapt=["pos_embed"]
    )


def test_weights_that_are_not_finite_are_refused() -> None:
    theirs = dict(model_of("p").state_dict())
    theirs["norm.weight"] = theirs["norm.weight"].clone()
    theirs["norm.weight"][3] = torch.nan
    assert_unchanged_by(model_of("p", seed=1), "non-finite numbers in norm.weight", theirs)


def test_half_precision_is_cast_and_said() -> None:
    theirs = {
        n: t.half() if t.is_floating_point() else t for n, t in model_of("p").state_dict().items()
    }
    report = load_weights(model_of("p", seed=1), theirs)
    assert report.adapted == ("float16 was cast to float32.",)


def test_the_counter_that_old_torch_did_not_have_may_be_missing() -> None:
    theirs = {n: t for n, t in model_of("c").state_dict().items() if "num_batches" not in n}
    assert load_weights(model_of("c", seed=1), theirs).missing == ()


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"source": "torchvison"}, ConfigError, "Did you mean 'torchvision'"),
        ({"source": "timm"}, CheckpointError, "not in the layout of timm, but in that of pycls"),
        ({"adapt": ["pos_embedding"]}, ConfigError, "Did you mean 'pos_embed'"),
        ({"average": "mean"}, ConfigError, "Unknown average"),
    ],
)
def test_wrong_words_are_refused(words: dict[str, Any], error: Any, match: str) -> None:
    theirs = from_vitc(dict(model_of("p").state_dict()), "pycls")
    with pytest.raises(error, match=match):
        load_weights(model_of("p"), theirs, **words)
    assert load_weights(model_of("p"), theirs, source="pycls").source == "pycls"


# -- channels and what the tensors do not show -----------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_bgr_weights_become_rgb_exactly_and_only_when_asked(kind: str) -> None:
    theirs = from_vitc(dict(model_of(kind, seed=1).state_dict()), "pycls")
    as_is, rgb = model_of(kind, seed=2), model_of(kind, seed=3)
    report = load_weights(as_is, theirs)
    assert report.preprocessing is not None
    assert report.preprocessing.channels == "bgr"
    assert report.preprocessing.mean == (0.406, 0.456, 0.485)
    report = load_weights(rgb, theirs, adapt=["channels"])
    assert report.preprocessing is not None
    assert report.preprocessing.channels == "rgb"
    assert report.preprocessing.mean == (0.485, 0.456, 0.406)
    assert_same_logits(rgb(images()), as_is(images().flip(1)))
    assert any("reversed" in note for note in report.adapted)
    found = read_weights(from_vitc(dict(rgb.state_dict()), "torchvision"))
    assert found.preprocessing == convention("torchvision")
    assert any("convention of torchvision" in note for note in found.notes)


def test_an_unknown_order_of_channels_is_not_guessed() -> None:
    theirs = from_vitc(dict(model_of("p").state_dict()), "timm")
    assert load_weights(model_of("p"), theirs).preprocessing is None
    with pytest.raises(ConfigError, match=r"channel order of .* is unknown"):
        load_weights(model_of("p"), theirs, adapt=["channels"])


CFG = """\
LN:
  EPS: 1.0e-06
TEST:
  IM_SIZE: 256
TRAIN:
  IM_SIZE: 224
VIT:
  C_STEM_STRIDES:
  - 2
  - 2
  - 1
  - 2
  - 1
  NUM_HEADS: 3
  STEM_TYPE: conv
"""


def test_what_a_pycls_file_says_of_itself_is_read() -> None:
    assert pycls_settings(CFG) == {
        "num_heads": 3,
        "strides": [2, 2, 1, 2],
        "norm_eps": 1e-6,
        "img_size": (224, 224),
        "crop": 0.875,
    }
    flow = CFG.replace(
        "C_STEM_STRIDES:\n  - 2\n  - 2\n  - 1\n  - 2\n  - 1", "C_STEM_STRIDES: [2, 1]"
    )
    assert pycls_settings(flow)["strides"] == [2]
    assert pycls_settings("- - :\n:::\nVIT: [\n  - a") == {}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("NUM_HEADS: 3", "NUM_HEADS: 6", "trained with 6 attention heads, the model has 3"),
        ("- 1\n  - 2\n  - 1", "- 2\n  - 1\n  - 1", "strides in the stem"),
    ],
)
def test_settings_that_no_tensor_shows_are_compared(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    pycls_file(tmp_path / "good.pyth", cfg=CFG)
    found = load_weights(model_of("c"), tmp_path / "good.pyth").preprocessing
    assert found is not None
    assert (found.crop, found.img_size) == (0.875, (224, 224))
    assert old in CFG
    pycls_file(tmp_path / "bad.pyth", cfg=CFG.replace(old, new))
    assert_unchanged_by(model_of("c"), words, tmp_path / "bad.pyth")


# -- folders and timm ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a few steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    vitc.train("debug", out, **{"train.epochs": 1, "data.max_train": 64})
    return out


def test_a_run_folder_gives_its_average_with_what_belongs_to_it(run: Path) -> None:
    from vitc.runs.checkpoint import load_weights_of

    found = read_weights(run)
    expected = load_weights_of(run, ema=True)
    assert found.source == "vitc"
    assert same(found.tensors, expected)
    assert found.classes is not None
    assert found.preprocessing is not None
    assert found.preprocessing.channels == "rgb"
    assert found.model is not None
    raw = read_weights(run, average="raw")
    assert same(raw.tensors, load_weights_of(run, ema=False))
    step = next((run / "checkpoints").glob("step_*"))
    assert read_weights(step).classes == found.classes

    model = vitc.create_model(
        found.model["name"], num_classes=len(found.classes), img_size=found.preprocessing.img_size
    )
    assert vitc.load_weights(model, run).missing == ()


def write_folder(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    from safetensors.torch import save_file

    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, path / "model.safetensors")
    return path


def test_a_folder_of_save_pretrained_is_read(tmp_path: Path) -> None:
    pre = Preprocessing((0.5,) * 3, (0.25,) * 3, "rgb", "bilinear", 0.875, (32, 32))
    from vitc.config import to_dict

    source = model_of("c", seed=1)
    config = {
        "format": 1,
        "library": "vitc",
        "model": to_dict(C),
        "classes": list("abcdefg"),
        "preprocessing": pre.to_dict(),
    }
    folder = write_folder(tmp_path / "saved", config, dict(source.state_dict()))
    found = read_weights(folder)
    assert (found.preprocessing, found.classes, found.source) == (pre, tuple("abcdefg"), "vitc")
    assert_unchanged_by(model_of("c", num_heads=6), "attention heads", folder)
    load_weights(model := model_of("c"), folder)
    assert same(dict(model.state_dict()), dict(source.state_dict()))

    write_folder(tmp_path / "newer", config | {"format": 2}, dict(source.state_dict()))
    with pytest.raises(CheckpointError, match="newer vitc"):
        read_weights(tmp_path / "newer")
    write_folder(tmp_path / "odd", config | {"classes": 3}, dict(source.state_dict()))
    with pytest.raises(CheckpointError, match="classes are not a list"):
        read_weights(tmp_path / "odd")


@pytest.mark.parametrize("flat", [False, True])
def test_a_timm_folder_brings_its_preprocessing(tmp_path: Path, flat: bool) -> None:
    cfg = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "input_size": [3, 32, 32],
    }
    config = {"architecture": "x", **cfg} if flat else {"architecture": "x", "pretrained_cfg": cfg}
    tensors = from_vitc(dict(model_of("p").state_dict()), "timm")
    found = read_weights(write_folder(tmp_path / "hub", config, tensors))
    assert found.preprocessing == Preprocessing(
        (0.5,) * 3, (0.5,) * 3, "rgb", "bicubic", 0.9, (32, 32)
    )
    assert found.source == "timm"
    assert "stem.proj.weight" in found.tensors


def test_a_folder_without_weights_says_what_is_there(tmp_path: Path) -> None:
    pycls_file(tmp_path / "model.pyth")
    with pytest.raises(CheckpointError, match=r"is a folder.*\n.*model.pyth"):
        read_weights(tmp_path)


class FakeTimm(nn.Module):
    """What of timm is asked for weights, with a model of ours in it under timm's names."""

    def __init__(self, cached: bool = True) -> None:
        super().__init__()
        self.tensors = from_vitc(dict(model_of("p").state_dict()), "timm")
        self.library = SimpleNamespace(
            is_model=lambda name: name == "vit_x",
            list_models=lambda: ["vit_x"],
            __version__="1",
            create_model=self.create,
        )
        self.cached = cached
        self.pretrained_cfg = {
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "input_size": (3, 32, 32),
            "interpolation": "bicubic",
            "crop_pct": 0.9,
        }

    def create(self, name: str, pretrained: bool) -> nn.Module:
        assert pretrained
        assert name == "vit_x.in1k"
        if not self.cached:
            raise OSError("no network")
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.tensors


def test_timm_weights_come_with_their_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTimm()
    monkeypatch.setattr(timm_module, "import_peer", lambda name: fake.library)
    found = read_weights("timm:vit_x.in1k")
    assert found.source == "timm"
    assert "stem.proj.weight" in found.tensors
    assert found.preprocessing is not None
    assert found.preprocessing.crop == 0.9
    with pytest.raises(ConfigError, match="Did you mean 'vit_x'"):
        read_weights("timm:vit_y.in1k")
    fake.cached = False
    with pytest.raises(CheckpointError, match=r"cannot load.*no network") as caught:
        read_weights("timm:vit_x.in1k")
    assert "cache" in str(caught.value.hint)

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(timm_module, "import_peer", missing)
    with pytest.raises(ConfigError, match="pip install"):
        read_weights("timm:vit_x.in1k")


# -- vitc convert ----------------------------------------------------------------------------------


def test_convert_writes_what_it_read_and_what_belongs_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ema = pycls_file(tmp_path / "model.pyth", cfg=CFG)
    out = tmp_path / "new folder" / "c.safetensors"
    assert main(["convert", str(tmp_path / "model.pyth"), str(out), "--channels", "rgb"]) == 0
    said = capsys.readouterr().out
    assert "pycls layout" in said
    assert "2 blocks, 48 wide" in said
    assert "from BGR to RGB" in said
    assert "convention of pycls" in said
    assert f"--init '{out}'" in said
    assert "mean 0.485, 0.456, 0.406" in said
    assert "0.875" in said
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["preprocessing"])["channels"] == "rgb"
    again = read_weights(out)
    assert again.preprocessing is not None
    assert again.preprocessing.channels == "rgb"
    model = model_of("c", seed=9)
    load_weights(model, out)
    assert_same_logits(model(images()), ema(images().flip(1)))
    assert [p.name for p in out.parent.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(("kind", "layout"), PAIRS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_convert_to_every_layout_and_back_is_bit_equal(
    tmp_path: Path, kind: str, layout: str, suffix: str
) -> None:
    source = model_of(kind)
    torch.save(source.state_dict(), tmp_path / "in.pt")
    out, back = tmp_path / f"out{suffix}", tmp_path / "back.safetensors"
    assert main(["convert", str(tmp_path / "in.pt"), str(out), "--to", layout]) == 0
    assert main(["convert", str(out), str(back)]) == 0
    assert same(read_weights(back).tensors, dict(source.state_dict()))


def test_a_file_for_pycls_has_its_wrapper(tmp_path: Path) -> None:
    torch.save(model_of("c").state_dict(), tmp_path / "in.pt")
    assert (
        main(["convert", str(tmp_path / "in.pt"), str(tmp_path / "o.pyth"), "--to", "pycls"]) == 0
    )
    content = torch.load(tmp_path / "o.pyth", weights_only=True)
    assert set(content) == {"epoch", "model_state"}
    assert "stem.cstem_last_conv.weight" in content["model_state"]


def test_convert_of_a_run_keeps_classes_and_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w.safetensors"
    assert main(["convert", str(run), str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    before, after = read_weights(run), read_weights(out)
    assert record["classes"] == list(before.classes or ())
    assert (after.classes, after.preprocessing, after.model) == (
        before.classes,
        before.preprocessing,
        before.model,
    )
    assert same(after.tensors, before.tensors)


def test_convert_with_a_model_checks_it_and_stores_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = vitc.create_model("vit_c_tiny", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "in.pt")
    words = ["convert", str(tmp_path / "in.pt"), str(tmp_path / "o.safetensors"), "--model"]
    assert main([*words, "vit_p_tiny"]) == 1
    assert "another model" in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()
    assert main([*words, "vit_c_tiny"]) == 0
    found = read_weights(tmp_path / "o.safetensors")
    assert found.model is not None
    assert found.model["name"] == "vit_c_tiny"
    assert_unchanged_by(
        vitc.create_model("vit_c_tiny", 10, num_heads=4),
        "attention heads",
        tmp_path / "o.safetensors",
    )
    source = vitc.create_model("vit_p_tiny", num_classes=4, img_size=48, in_chans=1)
    torch.save(source.state_dict(), tmp_path / "in.pt")
    assert main([*words, "vit_p_tiny", "--overwrite"]) == 0
    model = read_weights(tmp_path / "o.safetensors").model
    assert model is not None  # size and channels are those of the weights
    assert (model["img_size"], model["in_chans"], model["num_classes"]) == (48, 1, 4)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["in.pt", "in.pt"], 2, "exists"),
        (["in.pt", "."], 2, "is a folder"),
        (["in.pt", "out.onnx"], 2, "must end in one of"),
        (["in.pt", "o.pt", "--to", "tim"], 2, "Did you mean 'timm'"),
        (["in.pt", "o.pt", "--from", "pycls"], 1, "in that of vitc"),
        (["in.pt", "o.pt", "--to", "timm"], 1, "no convolutional stem"),
        (["in.pt", "o.pt", "--channels", "bgr"], 2, "the channel order of in.pt is unknown"),
        (["odd.pt", "o.pt"], 1, "is not a known ViT"),
        (["im.pt", "o.pt"], 1, "Did you mean 'in.pt'"),
    ],
)
def test_convert_refuses_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(model_of("c").state_dict(), "in.pt")
    torch.save({"conv.weight": torch.ones(2)}, "odd.pt")
    assert main(["convert", *words]) == code
    assert said in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"in.pt", "odd.pt"}


def test_convert_overwrites_its_own_input_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.pyth"
    _, ema = pycls_file(path, "p")
    assert main(["convert", str(path), str(path), "--to", "torchvision", "--overwrite"]) == 0
    assert "take BGR images, torchvision feeds RGB; --channels rgb" in capsys.readouterr().out
    assert same(read_weights(path).tensors, dict(ema.state_dict()))


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(model_of("c").state_dict(), tmp_path / "in.pt")

    def full(path: Path, *_: Any) -> str:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "write_tensors", full)
    words = ["convert", str(tmp_path / "in.pt"), str(tmp_path / "o.safetensors")]
    assert main(words) == 1
    assert "cannot be written: No space left" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in.pt"]
