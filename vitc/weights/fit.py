"""Do these weights fit a model, and what has to be adapted? Nothing is adapted unasked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitc.config import to_dict
from vitc.data.preprocessing import Preprocessing
from vitc.errors import CheckpointError, ConfigError, suggest, unknown
from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.models.vit import VisionTransformer, resample_pos_embed
from vitc.models.zoo import MODELS, classifier_name
from vitc.runs.tensors import Kind, dtype_name, kinds, misfits
from vitc.weights import layouts
from vitc.weights.load import Average, Weights, by_our_names, read_stored, settings_of
from vitc.wording import few

ADAPTABLE = {
    "head": "another number of classes: the model keeps its own classifier",
    "pos_embed": "another resolution: the position embedding is resampled",
    "channels": "BGR weights become RGB: the first convolution's input channels are reversed",
}


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did."""

    source: str
    """The layout of the tensors: vitc, pycls, pycls_branch, torchvision, timm, or other."""
    missing: tuple[str, ...]
    """Names that the weights lack, or have in another shape: the model keeps its own there."""
    unexpected: tuple[str, ...]
    """Names that the model has no place for."""
    adapted: tuple[str, ...]
    """What was changed, and what to know about the weights, a sentence each."""
    preprocessing: Preprocessing | None
    """How images must be prepared for these weights; None: unknown."""


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

    `source`: the layout of the tensors (auto: recognised); that of pycls, torchvision and timm is
    converted to the model's. `strict`: every tensor must fit; otherwise what fits is taken and the
    rest reported. `adapt`: what may be changed to make it fit, of "head", "pos_embed", "channels".
    `only`: parts to take, by the beginning of the model's names up to a dot. `average`: of a run
    or checkpoint that has both, the moving average ("ema") or the last weights ("raw").

    Channels are not reordered unless asked for: pycls trains on BGR images, and
    `report.preprocessing.channels` is "bgr" then. Heads and strides leave no trace in the tensors;
    if the weights come with a config they are compared.

    Raises CheckpointError (nothing readable there; another model: naming what is missing,
    unexpected, or of another shape) and ConfigError (an unknown name in `adapt`, `source`, `only`);
    the model is unchanged then.
    """
    for name in (adapt,) if isinstance(adapt, str) else adapt:  # before a large file is read
        if name not in ADAPTABLE:
            raise unknown("adaptation", name, ADAPTABLE)
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

    `fresh_head`: the model keeps its own classifier, even if theirs would fit.
    """
    only = (only,) if isinstance(only, str) else only
    wanted = layouts.without_wrappers(dict(model.state_dict(keep_vars=True)))
    for name in ("_orig_mod", "module", "_orig_mod"):  # torch.compile, DistributedDataParallel
        model = getattr(model, name, model)
    head = f"{classifier_name(model)}."
    weights = _in_layout_of(wanted, stored)
    first = layouts.first_convolution(wanted)
    if only:
        wanted = _part_of(wanted, only)
        weights = replace(weights, tensors=_in_parts(weights.tensors, only))
    if fresh_head:  # on both sides, so that everything else is still compared
        wanted = {n: t for n, t in wanted.items() if not n.startswith(head)}
        others = {n: t for n, t in weights.tensors.items() if not n.startswith(head)}
        weights = replace(weights, tensors=others)
    notes = list(weights.notes)
    if "channels" in adapt:
        weights = _as_rgb(weights, first, notes)
    if "pos_embed" in adapt:
        weights = _resampled(weights, wanted, model, notes)
    values = dict(weights.tensors)
    if "head" in adapt:
        wanted, values = _without_head(wanted, values, head, notes)
    # torch before 0.4.1 had no counters of batches
    wanted = {
        n: t for n, t in wanted.items() if n in values or not n.endswith(".num_batches_tracked")
    }
    here, there = kinds(wanted), kinds(values)
    if strict and here != there:
        raise _misfit(weights, here, there, head)
    pairs = {n: (values[n], t) for n, t in wanted.items() if here[n] == there.get(n)}
    _check_settings(weights, model, takes_head=f"{head}weight" in pairs)
    _copy(weights, pairs, notes)
    if weights.preprocessing is not None and weights.preprocessing.channels == "bgr":
        notes.append("The channels stay BGR; adapt 'channels' makes them RGB.")
    return LoadReport(
        weights.source,
        tuple(n for n in wanted if n not in pairs),
        tuple(n for n in values if n not in wanted),
        tuple(notes),
        weights.preprocessing,
    )


def _in_parts(tensors: Mapping[str, Tensor], parts: Collection[str]) -> dict[str, Tensor]:
    starts = tuple(f"{part}." for part in parts)
    return {n: t for n, t in tensors.items() if n in parts or n.startswith(starts)}


def _part_of(target: dict[str, Tensor], only: Collection[str]) -> dict[str, Tensor]:
    for part in only:
        if not _in_parts(target, (part,)):
            known = list(dict.fromkeys(name.partition(".")[0] for name in target))
            raise ConfigError(
                f"The model has no part {part!r}.{suggest(part, [*known, *target])}",
                f"Its parts: {', '.join(known)}; a longer name selects a part of these.",
            )
    return _in_parts(target, only)


def _in_layout_of(target: Mapping[str, Tensor], stored: Weights) -> Weights:
    """The weights in the layout of the model's tensors, converted through ours if they differ."""
    here = layouts.recognise(target)
    if here is None or layouts.recognise(stored.tensors) in (None, here):
        return stored
    ours = by_our_names(stored)
    return ours if here == "vitc" else replace(ours, tensors=layouts.from_vitc(ours.tensors, here))


def _copy(weights: Weights, pairs: Mapping[str, tuple[Tensor, Tensor]], notes: list[str]) -> None:
    """Copy each value into its tensor, if all are finite and there is any."""
    if not pairs:
        raise CheckpointError(f"Nothing in {weights.where} fits the model.", _looks_like(weights))
    for name, (value, _) in pairs.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{weights.where} holds non-finite numbers in {name}.",
                "The weights are those of a diverged run, or damaged.",
            )
    casts = {(dtype_name(v), dtype_name(t)) for v, t in pairs.values() if v.dtype != t.dtype}
    notes += [f"{there} was cast to {here}." for there, here in sorted(casts)]
    with torch.no_grad():
        for value, tensor in pairs.values():
            tensor.copy_(value)


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
                f"Build the model with that {key}: the tensors would fit, but the logits be wrong.",
            )


# -- adapting --------------------------------------------------------------------------------------


def _as_rgb(weights: Weights, first: str, notes: list[str]) -> Weights:
    """BGR weights for RGB images; the convolution `first` reads them."""
    pre = weights.preprocessing
    if pre is None:
        raise ConfigError(
            f"The channel order of {weights.where} is unknown, so it cannot be adapted.",
            "If it is BGR, convert the file first: vitc convert IN OUT --channels rgb --from pycls",
        )
    if pre.channels != "bgr" or first not in weights.tensors:  # `only` may leave the stem out
        return weights
    notes.append(f"The input channels of {first} were reversed: BGR weights, now for RGB images.")
    return weights.reversed(first)


def _resampled(
    weights: Weights, wanted: Mapping[str, Tensor], model: nn.Module, notes: list[str]
) -> Weights:
    """The position embedding for the model's grid if that is another; the class token is kept."""
    old, new = weights.tensors.get("pos_embed"), wanted.get("pos_embed")
    if old is None or new is None or old.shape == new.shape or old.ndim != 3:
        return weights
    if old.shape[2] != new.shape[2] or not isinstance(model, VisionTransformer):
        return weights
    if ("cls_token" in weights.tensors) != (model.cls_token is not None):
        return weights  # another model, and refused as such
    h, w = model.grid
    prefix = new.shape[1] - h * w
    grid = _grid(old.shape[1] - prefix, weights)
    if grid is None:
        raise CheckpointError(
            f"The position embedding of {weights.where} has {old.shape[1]} positions, {prefix} of "
            f"them before the grid: the rest is not a square, and its rectangle is unknown.",
            "Load it into a model of its own img_size, then call model.set_input_size.",
        )
    tensors = {**weights.tensors, "pos_embed": resample_pos_embed(old, grid, (h, w))}
    pre = weights.preprocessing
    if pre is not None:
        pre = replace(pre, img_size=model.img_size)
    notes.append(f"pos_embed was resampled from {grid[0]}x{grid[1]} to {h}x{w} tokens (bicubic).")
    return replace(weights, tensors=tensors, preprocessing=pre)


def _grid(tokens: int, weights: Weights) -> tuple[int, int] | None:
    """(h, w) of that many tokens: from the image size of the weights, else a square."""
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
    wanted: dict[str, Tensor], values: dict[str, Tensor], head: str, notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leave the classifier out if its classes differ in number, or only one side has one."""
    own = {n: t for n, t in wanted.items() if n.startswith(head)}
    theirs = {n: t for n, t in values.items() if n.startswith(head)}
    if kinds(own) == kinds(theirs):
        return wanted, values
    ours, other = (_rows(kinds(part).items()) for part in (own, theirs))
    notes.append(
        f"The classifier was left out ({other} classes in the weights, {ours} in the model): the "
        "model keeps its own."
    )
    wanted = {n: t for n, t in wanted.items() if n not in own}
    return wanted, {n: t for n, t in values.items() if n not in theirs}


def _rows(head: Iterable[tuple[str, Kind]]) -> str:
    return next((str(kind.shape[0]) for n, kind in head if n.endswith("weight")), "no")


# -- what does not fit -----------------------------------------------------------------------------


def _misfit(
    weights: Weights, here: Mapping[str, Kind], there: Mapping[str, Kind], head: str
) -> CheckpointError:
    """What is wrong, the likely cause first: other classes, another resolution, another model."""
    problems, adapt = [], []
    both = {n: (there[n], kind) for n, kind in here.items() if there.get(n, kind) != kind}
    of_head = {n: k for n, k in both.items() if n.startswith(head)}
    of_head = {n: (a, b) for n, (a, b) in of_head.items() if a.shape[1:] == b.shape[1:]}
    if of_head:
        theirs, ours = (_rows((n, k[i]) for n, k in of_head.items()) for i in range(2))
        problems.append(f"its classifier has {theirs} classes, the model {ours}")
        adapt.append("head")
    grid = {n: k for n, k in both.items() if n.endswith(("pos_embed", "pos_embedding"))}
    grid = {n: (a, b) for n, (a, b) in grid.items() if a.shape[-1:] == b.shape[-1:]}
    for a, b in grid.values():
        problems.append(f"its position embedding is of another resolution: {a}, the model's {b}")
        adapt.append("pos_embed")
    known = {*of_head, *grid}
    rest = misfits(*({n: k for n, k in part.items() if n not in known} for part in (there, here)))
    if not rest:
        ways = {"head": "leaves the classifier out", "pos_embed": "resamples it"}
        hints = " and ".join(f"adapt {name!r} {ways[name]}" for name in adapt)
        return CheckpointError(
            f"{weights.where} does not fit the model: {'; '.join(problems)}.",
            f"{hints}: load_weights(..., adapt={tuple(adapt)!r}).",
        )
    return CheckpointError(
        f"{weights.where} is of another model. {'; '.join([*problems, rest])}.",
        _looks_like(weights),
    )


def _looks_like(weights: Weights) -> str:
    """Which ViT the tensors are of, and which models are the same."""
    shape = layouts.describe(by_our_names(weights, strict=False).tensors)
    if shape is None:
        return f"Its tensors are named {few(weights.tensors, 2)}: not a known ViT."
    names = models_like(shape)
    return f"It looks like {shape} ({weights.source})." + (
        f" Models with this shape: {', '.join(names)}." if names else ""
    )


def models_like(shape: layouts.Shape) -> list[str]:
    """Names of the zoo's ViTs of this shape, at any resolution and number of classes."""
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
        body = config.embed_dim, config.depth, config.mlp_dim
        if astuple(shape)[:6] == (*body, channels, patch, norm):
            found.append(name)
    return found
