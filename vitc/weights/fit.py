"""Weights to start from: read from anywhere, fitted to a model, nothing adapted unasked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitc.config import to_dict
from vitc.data.preprocessing import Preprocessing
from vitc.errors import CheckpointError, ConfigError, suggest, unknown
from vitc.models.config import ConvStemConfig, PatchifyStemConfig, ViTConfig
from vitc.models.vit import VisionTransformer, resample_pos_embed
from vitc.models.zoo import MODELS, classifier_name
from vitc.runs.tensors import dtype_shape
from vitc.weights.layouts import (
    Shape,
    describe,
    first_convolution,
    from_vitc,
    recognise,
    without_wrappers,
)
from vitc.weights.load import (
    Average,
    Weights,
    by_our_names,
    by_our_names_if_ours,
    dtype_name,
    read_stored,
    settings_of,
)
from vitc.wording import few

ADAPTABLE = {
    "head": "another class count: the model keeps its own classifier, fresh",
    "pos_embed": "another resolution: the position embedding is resampled",
    "channels": "BGR weights are made RGB: the first convolution's input channels are reversed",
}


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did."""

    source: str
    """Whose names the tensors had: vitc, pycls, pycls_branch, torchvision, timm, or other."""
    missing: tuple[str, ...]
    """Names that the weights lack, or have in another shape: the model keeps its own there."""
    unexpected: tuple[str, ...]
    """Names that the model has no place for."""
    adapted: tuple[str, ...]
    """What was changed on the way, and what to know of the weights, a sentence each."""
    preprocessing: Preprocessing | None
    """How images must be prepared for these weights; None: the weights do not say."""


# -- into a model ----------------------------------------------------------------------------------


def load_weights(
    model: nn.Module,
    path_or_state_dict: str | Path | Mapping[str, Any],
    source: str = "auto",
    strict: bool = True,
    adapt: Collection[str] = (),
    only: Collection[str] = (),
    average: Average = "ema",
) -> LoadReport:
    """Fill a model with weights from a run, a file, a folder, `timm:NAME` or a state dict.

    `source`: whose names the tensors have (auto: recognised). Names of pycls, torchvision and timm
    become the model's. `strict`: every tensor must fit; otherwise what fits is taken and the rest
    reported. `adapt`: what may be changed to make it fit, of "head", "pos_embed", "channels".
    `only`: parts to take, by the beginning of the model's names up to a dot. `average`: of a run
    or checkpoint that has both, the moving average ("ema") or the last weights ("raw").

    Channels are not reordered unless asked for: pycls trains on BGR images, as
    `report.preprocessing.channels` says. Heads and strides leave no trace in the tensors; where
    the weights come with them they are compared.

    Raises CheckpointError (nothing readable there; another model: naming what is missing,
    unexpected, or of another shape) and ConfigError (an unknown word in `adapt`, `source`, `only`);
    the model is then unchanged.
    """
    _check_words(adapt)  # before a large file is read
    return fill(model, read_stored(path_or_state_dict, source, average), strict, adapt, only)


def fill(
    model: nn.Module,
    stored: Weights,
    strict: bool = True,
    adapt: Collection[str] = (),
    only: Collection[str] = (),
    fresh_head: bool = False,
) -> LoadReport:
    """`load_weights`, with weights that were already read.

    `fresh_head`: the model keeps its own classifier, also where theirs would fit.
    """
    _check_words(adapt)
    only = (only,) if isinstance(only, str) else only
    target = without_wrappers(dict(model.state_dict(keep_vars=True)))
    bare = _bare(model)
    wanted = _part_of(target, only)
    head = f"{classifier_name(bare)}."

    weights = _by_names_of(stored, target)
    if only:
        chosen = {n: t for n, t in weights.tensors.items() if _in_parts(n, only)}
        weights = replace(weights, tensors=chosen)
    if fresh_head:  # on both sides, so that everything else is still compared
        wanted = {n: t for n, t in wanted.items() if not n.startswith(head)}
        others = {n: t for n, t in weights.tensors.items() if not n.startswith(head)}
        weights = replace(weights, tensors=others)
    adapted = list(weights.notes)
    if "channels" in adapt:
        weights, said = _as_rgb(weights, target)
        adapted += said
    if "pos_embed" in adapt:
        weights, said = _resampled(weights, wanted, bare)
        adapted += said
    values = dict(weights.tensors)
    if "head" in adapt:
        wanted, values, said = _without_head(wanted, values, head)
        adapted += said
    counters = [n for n in wanted if n.endswith(".num_batches_tracked") and n not in values]
    wanted = {n: t for n, t in wanted.items() if n not in counters}  # torch before 0.4.1 had none

    missing = [n for n in wanted if n not in values]
    unexpected = [n for n in values if n not in target]
    misfits = [n for n in wanted if n in values and not _fits(values[n], wanted[n])]
    if strict and (missing or unexpected or misfits):
        raise _misfit(weights, wanted, values, missing, unexpected, misfits, head)
    taken = [n for n in wanted if n in values and n not in misfits]
    _check_settings(weights, bare, takes_head=f"{head}weight" in taken)
    if not taken:
        raise CheckpointError(f"Nothing in {weights.where} fits the model.", _looks_like(weights))
    for name in taken:
        if values[name].is_floating_point() and not bool(values[name].isfinite().all()):
            raise CheckpointError(
                f"{weights.where} holds numbers that are not finite, in {name}.",
                "They are of a diverged run, or damaged.",
            )
    adapted += _casts([(values[n], wanted[n]) for n in taken])
    if weights.preprocessing is not None and weights.preprocessing.channels == "bgr":
        adapted.append("The channels stay BGR; adapt 'channels' makes them RGB.")
    with torch.no_grad():
        for name in taken:
            wanted[name].copy_(values[name])
    return LoadReport(
        weights.source,
        tuple(missing + misfits),
        tuple(unexpected),
        tuple(adapted),
        weights.preprocessing,
    )


def _check_words(adapt: Collection[str]) -> None:
    for word in (adapt,) if isinstance(adapt, str) else adapt:
        if word not in ADAPTABLE:
            raise unknown("adaptation", word, ADAPTABLE)


def _bare(model: nn.Module) -> nn.Module:
    """The module inside torch.compile and DistributedDataParallel."""
    for name in ("_orig_mod", "module", "_orig_mod"):
        model = getattr(model, name, model)
    return model


def _in_parts(name: str, parts: Collection[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _part_of(target: dict[str, Tensor], only: Collection[str]) -> dict[str, Tensor]:
    for part in only:
        if not any(_in_parts(name, (part,)) for name in target):
            known = list(dict.fromkeys(name.partition(".")[0] for name in target))
            raise ConfigError(
                f"{part!r} is no part of the model.{suggest(part, [*known, *target])}",
                f"Its parts: {', '.join(known)}; a longer name says a part of these.",
            )
    return {n: t for n, t in target.items() if not only or _in_parts(n, only)}


def _by_names_of(stored: Weights, target: Mapping[str, Tensor]) -> Weights:
    """The tensors by the model's names: over ours, if both are known and differ."""
    here = recognise(target)
    if here is None or recognise(stored.tensors) in (None, here):
        return stored
    ours = by_our_names(stored)
    return ours if here == "vitc" else replace(ours, tensors=from_vitc(ours.tensors, here))


def _fits(value: Tensor, target: Tensor) -> bool:
    same_kind = value.is_floating_point() == target.is_floating_point() and not value.is_complex()
    return value.shape == target.shape and same_kind


def _casts(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[str]:
    found = {(v.dtype, t.dtype) for v, t in pairs if v.dtype != t.dtype}
    return [f"{dtype_name(v)} was cast to {dtype_name(t)}." for v, t in sorted(found, key=str)]


# -- what the tensors do not show ------------------------------------------------------------------


def _check_settings(weights: Weights, model: nn.Module, takes_head: bool) -> None:
    """Raises CheckpointError where the model would compute something else with these tensors."""
    config = getattr(model, "config", None)
    if not isinstance(config, ViTConfig):
        return
    here = settings_of(to_dict(config))
    words = {
        "num_heads": "attention heads",
        "stem": "as its stem",
        "act": "in the stem",
        "strides": "strides in the stem",
        "global_pool": "as global_pool",
    }
    for key, word in words.items():
        there = weights.settings.get(key, here.get(key))
        if there != here.get(key) and (key != "global_pool" or takes_head):
            raise CheckpointError(
                f"{weights.where} was trained with {there} {word}, the model has {here.get(key)}.",
                f"Build the model with that {key}: all tensors would fit, and the logits be wrong.",
            )


# -- adapting --------------------------------------------------------------------------------------


def _as_rgb(weights: Weights, target: Mapping[str, Tensor]) -> tuple[Weights, list[str]]:
    """BGR weights for RGB images: exact, as only the order of a sum changes."""
    pre = weights.preprocessing
    if pre is None:
        raise ConfigError(
            f"{weights.where} does not say in which order its channels are, so they cannot be "
            f"adapted.",
            "If they are BGR, convert the file first: vitc convert IN OUT --channels rgb, with "
            "--from pycls.",
        )
    if pre.channels != "bgr":
        return weights, []
    name = first_convolution(target)
    if name not in weights.tensors:
        return weights, []  # `only` leaves the stem out
    tensors = {**weights.tensors, name: weights.tensors[name].flip(1)}
    said = f"The input channels of {name} were reversed: BGR weights, now for RGB images."
    return replace(weights, tensors=tensors, preprocessing=pre.reversed()), [said]


def _resampled(
    weights: Weights, wanted: Mapping[str, Tensor], model: nn.Module
) -> tuple[Weights, list[str]]:
    """The position embedding for the model's grid, if it is of another; class token apart."""
    old, new = weights.tensors.get("pos_embed"), wanted.get("pos_embed")
    if old is None or new is None or old.shape == new.shape or old.ndim != 3:
        return weights, []
    if old.shape[2] != new.shape[2] or not isinstance(model, VisionTransformer):
        return weights, []
    if ("cls_token" in weights.tensors) != (model.cls_token is not None):
        return weights, []  # another model, and refused as such
    h, w = model.grid
    prefix = new.shape[1] - h * w
    grid = _grid(old.shape[1] - prefix, weights)
    if grid is None:
        raise CheckpointError(
            f"The position embedding of {weights.where} has {old.shape[1]} positions, {prefix} of "
            f"them before the grid: the rest is no square, and the weights do not say which "
            f"rectangle.",
            "Load it into a model of its own img_size, then call model.set_input_size.",
        )
    tensors = {**weights.tensors, "pos_embed": resample_pos_embed(old, grid, (h, w))}
    pre = weights.preprocessing
    if pre is not None:
        pre = replace(pre, img_size=model.img_size)
    said = f"pos_embed was resampled from {grid[0]}x{grid[1]} to {h}x{w} tokens (bicubic)."
    return replace(weights, tensors=tensors, preprocessing=pre), [said]


def _grid(tokens: int, weights: Weights) -> tuple[int, int] | None:
    """(h, w) of so many tokens: as the weights' own image size has it, else a square."""
    size = weights.model.get("img_size") if weights.model else None
    if size is None and weights.preprocessing is not None:
        size = weights.preprocessing.img_size
    if isinstance(size, list | tuple) and len(size) == 2:
        h = round((tokens * size[0] / size[1]) ** 0.5)
        if h > 0 and h * (tokens // h) == tokens:
            return h, tokens // h
    side = isqrt(max(tokens, 0))
    return (side, side) if side and side * side == tokens else None


def _without_head(
    wanted: dict[str, Tensor], values: dict[str, Tensor], head: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Leave the classifier out if it is of another class count, or only one side has one."""
    own = {n: t for n, t in wanted.items() if n.startswith(head)}
    theirs = {n: t for n, t in values.items() if n.startswith(head)}
    if own.keys() == theirs.keys() and all(_fits(theirs[n], own[n]) for n in own):
        return wanted, values, []
    wanted = {n: t for n, t in wanted.items() if n not in own}
    values = {n: t for n, t in values.items() if n not in theirs}
    before, now = _rows(theirs), _rows(own)
    return (
        wanted,
        values,
        [
            f"The classifier was left out ({before} classes there, {now} here): "
            "the model's own stays."
        ],
    )


def _rows(head: Mapping[str, Tensor]) -> str:
    return next((str(t.shape[0]) for n, t in head.items() if n.endswith("weight")), "no")


# -- what does not fit -----------------------------------------------------------------------------


def _misfit(
    weights: Weights,
    wanted: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misfits: list[str],
    head: str,
) -> CheckpointError:
    """What is wrong, the likely cause first: other classes, another resolution, another model."""
    parts, hints = [], []
    of_head = [n for n in misfits if n.startswith(head) and _same_inputs(values[n], wanted[n])]
    if of_head:
        there, here = (_rows({n: m[n] for n in of_head}) for m in (values, wanted))
        parts.append(f"its classifier has {there} classes, the model {here}")
        hints.append("adapt 'head' leaves the classifier out")
    of_grid = [n for n in misfits if n.endswith(("pos_embed", "pos_embedding"))]
    of_grid = [n for n in of_grid if values[n].shape[-1] == wanted[n].shape[-1]]
    for n in of_grid:
        there, here = (str(tuple(m[n].shape)) for m in (values, wanted))
        parts.append(
            f"its position embedding is of another resolution: {there}, the model's {here}"
        )
        hints.append("adapt 'pos_embed' resamples it")
    rest = [n for n in misfits if n not in of_head + of_grid]
    groups = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": [
            f"{n} ({dtype_shape(values[n])} there, {dtype_shape(wanted[n])} here)" for n in rest
        ],
    }
    if not any(groups.values()):
        return CheckpointError(
            f"{weights.where} does not fit the model: {'; '.join(parts)}.",
            f"{' and '.join(hints)}: {_adapt_words(of_head, of_grid)}.",
        )
    parts += [f"{what}: {few(names)}" for what, names in groups.items() if names]
    return CheckpointError(
        f"{weights.where} is of another model. {'; '.join(parts)}.", _looks_like(weights)
    )


def _adapt_words(of_head: list[str], of_grid: list[str]) -> str:
    words = ["head"] * bool(of_head) + ["pos_embed"] * bool(of_grid)
    return f"load_weights(..., adapt={tuple(words)!r})"


def _same_inputs(a: Tensor, b: Tensor) -> bool:
    return a.shape[1:] == b.shape[1:]


def _looks_like(weights: Weights) -> str:
    """What the tensors are of, and which models here are."""
    shape = describe(by_our_names_if_ours(weights).tensors)
    if shape is None:
        return f"Its tensors have names as {few(weights.tensors, 2)}: no ViT known here."
    names = models_like(shape)
    return f"It looks like {shape} ({weights.source})." + (
        f" Models so: {', '.join(names)}." if names else ""
    )


def models_like(shape: Shape) -> list[str]:
    """Names of the ViTs here that have this shape, whatever their resolution and classes."""
    found = []
    for name, config in MODELS.items():
        if not isinstance(config, ViTConfig):
            continue
        stem, patch, norm = config.stem, None, "none"
        channels: tuple[int, ...] = ()
        if isinstance(stem, ConvStemConfig):
            channels, norm = stem.channels, stem.norm
        elif isinstance(stem, PatchifyStemConfig):
            patch, norm = stem.patch_size, "bn" if stem.bn_relu else "none"
        own = (config.embed_dim, config.depth, config.mlp_dim, channels, patch, norm)
        if own == (
            shape.embed_dim,
            shape.depth,
            shape.mlp_dim,
            shape.stem,
            shape.patch_size,
            shape.stem_norm,
        ):
            found.append(name)
    return found
