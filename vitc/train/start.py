"""Weights to start from: read from anywhere, fitted to a model, nothing adapted unasked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitc.config import to_dict
from vitc.errors import CheckpointError, ConfigError, suggest, unknown
from vitc.models.borrowed import import_peer
from vitc.models.config import ConvStemConfig, PatchifyStemConfig, ViTConfig
from vitc.models.convert import (
    LAYOUTS,
    Channels,
    Layout,
    Preprocessing,
    Shape,
    convention,
    describe,
    from_vitc,
    recognise,
    to_vitc,
    without_wrappers,
)
from vitc.models.vit import VisionTransformer, resample_pos_embed
from vitc.models.weights_file import SAFETENSORS, TORCH, read_weights_file
from vitc.models.zoo import MODELS
from vitc.train.freeze import classifier_name
from vitc.train.runlog import CHECKPOINTS, read_data, read_object
from vitc.train.state import STATE, load_weights_of

Average = Literal["ema", "raw"]
ADAPTABLE = {
    "head": "another class count: the model keeps its own classifier, fresh",
    "pos_embed": "another resolution: the position embedding is resampled",
    "channels": "BGR weights are made RGB: the first convolution's input channels are reversed",
}
OTHER = "other"  # tensors of no ViT known here, by whatever names they were stored


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's tensors and what is known of them."""

    tensors: dict[str, Tensor]
    """By our names where the model is a ViT, else as stored; on CPU."""
    source: str
    """Whose names they had: one of LAYOUTS, or `other`."""
    where: str
    """Where they were read from, in words for people."""
    preprocessing: Preprocessing | None
    """What the images were made into; None: the weights do not say."""
    classes: tuple[str, ...] | None
    """Names of the classes, in the order of the logits; None: not said."""
    sha256: str
    """Of the file, in hex; of the tensors themselves where there is no one file."""
    model: dict[str, Any] | None = None
    """The model's config as saved by this package; None for the weights of others."""
    notes: tuple[str, ...] = ()
    """What else to say of them: which of two sets was taken, by whose convention."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the tensors do not show, where it is known: num_heads, global_pool, strides, norm_eps."""


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
    for word in [adapt] if isinstance(adapt, str) else adapt:
        if word not in ADAPTABLE:
            raise unknown("adaptation", word, ADAPTABLE)
    stored = _read(path_or_state_dict, source, average)
    target = without_wrappers(dict(model.state_dict(keep_vars=True)))
    bare = _bare(model)
    wanted = _part_of(target, only)
    head = f"{classifier_name(bare)}."

    weights = _by_names_of(stored, target)
    if only:
        chosen = {n: t for n, t in weights.tensors.items() if _in_parts(n, only)}
        weights = replace(weights, tensors=chosen)
    _check_settings(weights, bare, takes_head="head" not in adapt and f"{head}weight" in wanted)
    adapted = list(weights.notes)
    if "channels" in adapt:
        weights, said = _as_rgb(weights, wanted)
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
    theirs = recognise(target)
    if theirs is None or stored.source in (theirs, OTHER):
        return stored
    ours = _to_ours(stored)
    return ours if theirs == "vitc" else replace(ours, tensors=from_vitc(ours.tensors, theirs))


def _to_ours(stored: Weights) -> Weights:
    """By our names, where they are of a ViT."""
    if recognise(stored.tensors) is None:
        return stored
    layout = next(x for x in LAYOUTS if x == stored.source)
    return replace(stored, tensors=to_vitc(stored.tensors, layout)[0])


def _fits(value: Tensor, target: Tensor) -> bool:
    same_kind = value.is_floating_point() == target.is_floating_point() and not value.is_complex()
    return value.shape == target.shape and same_kind


def _casts(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[str]:
    found = {(v.dtype, t.dtype) for v, t in pairs if v.dtype != t.dtype}
    return [f"{_dtype(v)} was cast to {_dtype(t)}." for v, t in sorted(found, key=str)]


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- what the tensors do not show ------------------------------------------------------------------


def _settings_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's saved config: what computes something else with the same tensors."""
    stem = model.get("stem")
    found = {k: model[k] for k in ("num_heads", "global_pool") if k in model}
    if isinstance(stem, Mapping) and "strides" in stem:
        found["strides"] = stem["strides"]
    return found


def _check_settings(weights: Weights, model: nn.Module, takes_head: bool) -> None:
    """Raises CheckpointError where the model would compute something else with these tensors."""
    config = getattr(model, "config", None)
    if not isinstance(config, ViTConfig):
        return
    here = _settings_of(to_dict(config))
    words = {"num_heads": "attention heads", "strides": "strides in the stem",
             "global_pool": "as what the classifier sees"}  # fmt: skip
    for key, word in words.items():
        there = weights.settings.get(key, here.get(key))
        if there != here.get(key) and (key != "global_pool" or takes_head):
            raise CheckpointError(
                f"{weights.where} was trained with {there} {word}, the model has {here.get(key)}.",
                f"Build the model with that {key}; every tensor would fit, and the logits be wrong.",
            )


# -- adapting --------------------------------------------------------------------------------------


def _as_rgb(weights: Weights, wanted: Mapping[str, Tensor]) -> tuple[Weights, list[str]]:
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
    name = first_convolution(weights.tensors, wanted)
    if name is None:
        return weights, []  # `only` leaves the stem out
    tensors = {**weights.tensors, name: weights.tensors[name].flip(1)}
    said = f"The input channels of {name} were reversed: BGR weights, now for RGB images."
    return replace(weights, tensors=tensors, preprocessing=pre.reversed()), [said]


def first_convolution(
    tensors: Mapping[str, Tensor], order: Iterable[str] | None = None
) -> str | None:
    """The name of the tensor that reads the image: the first with 4 dimensions and 3 channels.

    `order`: names in the model's order; a file may have sorted its own.
    """
    names = sorted(tensors, key=lambda n: ("stem." not in n, n)) if order is None else order
    for name in names:
        tensor = tensors.get(name)
        if tensor is not None and tensor.ndim == 4 and tensor.shape[1] == 3:
            return name
    return None


def _resampled(
    weights: Weights, wanted: Mapping[str, Tensor], model: nn.Module
) -> tuple[Weights, list[str]]:
    """The position embedding for the model's grid, if it is of another; class token apart."""
    old, new = weights.tensors.get("pos_embed"), wanted.get("pos_embed")
    if old is None or new is None or old.shape == new.shape or old.ndim != 3:
        return weights, []
    if old.shape[2] != new.shape[2] or not isinstance(model, VisionTransformer):
        return weights, []
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
    return wanted, values, [
        f"The classifier was left out ({before} classes there, {now} here): the model's own stays."
    ]  # fmt: skip


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
            f"{n} ({_kind(values[n])} there, {_kind(wanted[n])} here)" for n in rest
        ],
    }
    if not any(groups.values()):
        return CheckpointError(
            f"{weights.where} does not fit the model: {'; '.join(parts)}.",
            f"{' and '.join(hints)}: {_adapt_words(of_head, of_grid)}.",
        )
    parts += [f"{what}: {_few(names)}" for what, names in groups.items() if names]
    return CheckpointError(
        f"{weights.where} is of another model. {'; '.join(parts)}.", _looks_like(weights)
    )


def _adapt_words(of_head: list[str], of_grid: list[str]) -> str:
    words = ["head"] * bool(of_head) + ["pos_embed"] * bool(of_grid)
    return f"load_weights(..., adapt={tuple(words)!r})"


def _same_inputs(a: Tensor, b: Tensor) -> bool:
    return a.shape[1:] == b.shape[1:]


def _kind(tensor: Tensor) -> str:
    return f"{_dtype(tensor.dtype)} {tuple(tensor.shape)}"


def _few(names: list[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _looks_like(weights: Weights) -> str:
    """What the tensors are of, and which models here are."""
    shape = describe(_to_ours(weights).tensors)
    if shape is None:
        return f"Its tensors have names as {_few(list(weights.tensors), 2)}: no ViT known here."
    named = f" ({weights.source})" if weights.source != OTHER else ""
    names = models_like(shape)
    return f"It looks like {shape}{named}." + (f" Models so: {', '.join(names)}." if names else "")


def models_like(shape: Shape) -> list[str]:
    """Names of the ViTs here that have this shape, whatever their resolution and classes."""
    found = []
    for name, config in MODELS.items():
        if not isinstance(config, ViTConfig):
            continue
        stem = config.stem
        channels = stem.channels if isinstance(stem, ConvStemConfig) else ()
        patch = stem.patch_size if isinstance(stem, PatchifyStemConfig) else None
        body = (config.embed_dim, config.depth, config.mlp_dim)
        if (*body, channels, patch) == (
            shape.embed_dim, shape.depth, shape.mlp_dim, shape.stem, shape.patch_size
        ):  # fmt: skip
            found.append(name)
    return found


# -- reading ---------------------------------------------------------------------------------------


def read_weights(
    where: str | Path | Mapping[str, Any], source: str = "auto", average: Average = "ema"
) -> Weights:
    """Weights from a run, a `step_N`, a file, a folder, `timm:NAME` or a state dict, on CPU.

    A ViT's come by our names. Raises CheckpointError: nothing readable there, not of `source`, an
    architecture that ours cannot compute; ConfigError: an unknown source, timm without timm.
    """
    return _to_ours(_read(where, source, average))


def _read(where: str | Path | Mapping[str, Any], source: str, average: str) -> Weights:
    """The tensors as stored, and whose they are."""
    if source not in ("auto", *LAYOUTS):
        raise unknown("source of weights", source, ("auto", *LAYOUTS))
    if average not in ("ema", "raw"):
        raise unknown("average", str(average), ("ema", "raw"))
    if isinstance(where, Mapping):
        found = _from_content(where, "The state dict", "", {}, average)
    elif str(where).startswith("timm:"):
        found = _from_timm(str(where))
    elif Path(where).is_dir():
        found = _from_folder(Path(where), average)
    else:
        found = _from_file(Path(where), average)
    return _checked_source(found, source)


def _checked_source(weights: Weights, source: str) -> Weights:
    looks = recognise(weights.tensors)
    same = looks is not None and source.partition("_")[0] == looks.partition("_")[0]
    by_any_name = looks is None and source in ("vitc", "timm")  # models that are no ViTs
    if source != "auto" and not same and not by_any_name:
        raise CheckpointError(
            f"{weights.where} is not of {source}: it looks like {looks or 'no ViT known here'}.",
            f"Its tensors have names as {_few(list(weights.tensors), 2)}.",
        )
    if looks is None:
        return replace(weights, source=weights.source if source == "auto" else source)
    weights = replace(weights, source=looks)
    by_convention = convention(looks)
    if weights.preprocessing is None and by_convention is not None:
        size = weights.settings.get("img_size")
        crop = weights.settings.get("crop")
        pre = replace(by_convention, img_size=size, crop=crop)
        note = (
            f"Preprocessing is by convention of {looks.partition('_')[0]}, for ImageNet; the "
            f"weights do not say it."
        )
        weights = replace(weights, preprocessing=pre, notes=(*weights.notes, note))
    return weights


def _from_file(path: Path, average: str) -> Weights:
    file = read_weights_file(path)
    return _from_content(file.content, str(path), file.sha256, file.metadata, average)


_RAW = ("model_state", "model", "state_dict", "model_state_dict")
_AVERAGED = ("ema_state", "model_ema", "state_dict_ema", "ema_state_dict")


def _from_content(
    content: object, where: str, sha256: str, metadata: Mapping[str, str], average: str
) -> Weights:
    """The tensors in what a file holds, out of the wrappers that training scripts put around."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{where} holds a {type(content).__name__}, not tensors by name.",
            "Save the model's state_dict().",
        )
    raw = next((content[k] for k in _RAW if isinstance(content.get(k), Mapping)), None)
    averaged = next((content[k] for k in _AVERAGED if isinstance(content.get(k), Mapping)), None)
    notes: list[str] = []
    if raw is None and averaged is None:
        tensors = content
    elif average == "ema" and averaged is not None:
        tensors = averaged
        notes.append("Of the two sets of weights in it, the moving average was taken.")
    elif raw is not None:
        tensors = raw
        if average == "ema":
            notes.append("It holds no moving average; its only weights were taken.")
    else:
        raise CheckpointError(f"{where} holds the moving average only, and raw weights are asked.")
    if raw is not None and averaged is not None:
        notes += _errors_said(content)
    odd = [
        str(n) for n, t in tensors.items() if not isinstance(n, str) or not isinstance(t, Tensor)
    ]
    if odd or not tensors:
        what = f"beside tensors it holds {_few(odd)}" if odd else "there is nothing in it"
        raise CheckpointError(
            f"{where} holds no plain state dict: {what}.", f"Known wrappers: {', '.join(_RAW)}."
        )
    tensors = without_wrappers(tensors)
    cfg = content.get("cfg")
    settings = pycls_settings(cfg) if isinstance(cfg, str) else {}
    if settings.get("norm_eps", 1e-6) != 1e-6:
        notes.append(
            f"It was trained with LayerNorm eps {settings['norm_eps']}, here it is 1e-6: logits "
            f"differ slightly."
        )
    weights = Weights(
        tensors=tensors,
        source=OTHER,
        where=where,
        preprocessing=None,
        classes=None,
        sha256=sha256 or _digest(tensors),
        notes=tuple(notes),
        settings=settings,
    )
    return _with_metadata(weights, metadata)


def _errors_said(content: Mapping[Any, Any]) -> list[str]:
    """The errors of pycls's file; its best one keeps the two sets from different epochs."""
    errors = [f"{k} {content[k]:.2f}" for k in ("test_err", "ema_err") if _number(content.get(k))]
    return [f"The file says: {', '.join(errors)}."] if errors else []


def _number(value: object) -> bool:
    return type(value) in (int, float)


def _with_metadata(weights: Weights, metadata: Mapping[str, str]) -> Weights:
    """What `vitc convert` wrote into a safetensors file beside the tensors."""
    if metadata.get("library") != "vitc":
        return weights
    try:
        values = {k: json.loads(v) for k, v in metadata.items() if k in _METADATA}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{weights.where} is damaged: its metadata is no JSON.") from error
    return _with_record(weights, values)


_METADATA = ("preprocessing", "classes", "model")


def _with_record(weights: Weights, values: Mapping[str, Any]) -> Weights:
    """Model config, classes and preprocessing as this package saves them beside the tensors."""
    pre, classes, model = (values.get(k) for k in _METADATA)
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    ):
        raise CheckpointError(f"{weights.where} is damaged: its classes are no list of names.")
    if model is not None and not isinstance(model, dict):
        raise CheckpointError(f"{weights.where} is damaged: its model is no object.")
    return replace(
        weights,
        preprocessing=None if pre is None else Preprocessing.from_dict(pre),
        classes=None if classes is None else tuple(classes),
        model=model,
        settings=weights.settings if model is None else _settings_of(model),
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {_kind(tensors[name])}\n".encode())
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- folders ---------------------------------------------------------------------------------------


def _from_folder(path: Path, average: str) -> Weights:
    if (path / STATE).exists() or (
        (path / "config.json").exists() and (path / CHECKPOINTS).is_dir()
    ):
        return _from_run(path, average)
    config = read_object(path / "config.json") if (path / "config.json").exists() else {}
    names = ("model.safetensors", "pytorch_model.bin")
    file = next((path / n for n in names if (path / n).exists()), None)
    if file is None:
        read_weights_file(path)  # raises, and names the files there
        raise AssertionError
    weights = _from_file(file, average)
    if config.get("library") == "vitc":
        if type(config.get("format")) is int and config["format"] > 1:
            raise CheckpointError(f"{path} was written by a newer vitc.", "Update vitc.")
        return replace(_with_record(weights, config), where=str(path))
    if "architecture" in config or "pretrained_cfg" in config:
        cfg = config.get("pretrained_cfg", config)
        pre, classes = _timm_record(cfg) if isinstance(cfg, dict) else (None, None)
        return replace(weights, preprocessing=pre, classes=classes, where=str(path))
    return weights


def _from_run(path: Path, average: str) -> Weights:
    """A run folder's last checkpoint, or a `step_N`, with what the run says of its images."""
    tensors = load_weights_of(path, ema=average == "ema")
    run = path if (path / "config.json").exists() else path.parent.parent
    weights = Weights(
        tensors, recognise(tensors) or "vitc", str(path), None, None, _digest(tensors)
    )
    if not (run / "config.json").exists():
        return weights  # a step_N alone
    config = read_object(run / "config.json")
    data = read_data(run)
    kinds: dict[int, Channels] = {1: "gray", 3: "rgb"}
    pre = Preprocessing(
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        channels=kinds.get(data["in_chans"], "other"),
        interpolation="bilinear",
        crop=float(data["eval_crop"]) if data["fit"] == "crop" else None,
        img_size=(data["img_size"][0], data["img_size"][1]),
    )
    model = config.get("model")
    model = model if isinstance(model, dict) else {}
    return replace(
        weights,
        preprocessing=pre,
        classes=tuple(data["classes"]),
        model=model,
        settings=_settings_of(model),
    )


# -- pycls and timm --------------------------------------------------------------------------------


def pycls_settings(cfg: str) -> dict[str, Any]:
    """What the tensors do not show, from the YAML text in a pycls file: num_heads, strides,
    norm_eps, img_size, crop. Reads `SECTION:` / `  KEY: value` / `  - item` and no more of YAML."""
    values: dict[str, Any] = {}
    section = key = ""
    for line in cfg.splitlines()[:10_000]:
        text = line.strip()
        if text.startswith("- "):
            values.setdefault(key, [])
            if isinstance(values[key], list):
                values[key].append(_whole(text[2:]))
            continue
        name, colon, value = text.partition(":")
        if not colon:
            continue
        if not line.startswith(" "):
            section = name
        key = f"{section}.{name}"
        if value.strip():
            items = value.strip().removeprefix("[").removesuffix("]").split(",")
            values[key] = [_whole(v) for v in items] if "[" in value else _whole(value)
    out: dict[str, Any] = {}
    if type(values.get("VIT.NUM_HEADS")) is int:
        out["num_heads"] = values["VIT.NUM_HEADS"]
    strides = values.get("VIT.C_STEM_STRIDES")
    if values.get("VIT.STEM_TYPE") == "conv" and isinstance(strides, list):
        out["strides"] = strides[:-1]  # the last is the 1x1's
    if isinstance(values.get("LN.EPS"), float):
        out["norm_eps"] = values["LN.EPS"]
    train, test = values.get("TRAIN.IM_SIZE"), values.get("TEST.IM_SIZE")
    if type(train) is int and type(test) is int and 0 < train <= test:
        out |= {"img_size": (train, train), "crop": train / test}
    return out


def _whole(text: str) -> Any:
    """A whole number, a float, or the text itself."""
    text = text.strip().strip("'\"")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _timm_record(cfg: Mapping[str, Any]) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    """Preprocessing and classes of timm's pretrained_cfg; what it does not say stays open."""
    labels = cfg.get("label_names")
    classes = tuple(map(str, labels)) if isinstance(labels, list | tuple) and labels else None
    if "mean" not in cfg or "std" not in cfg:
        return None, classes
    size = cfg.get("input_size")
    size = list(size)[1:] if isinstance(size, list | tuple) and len(size) == 3 else None
    mean = cfg["mean"]
    channels = "rgb" if isinstance(mean, list | tuple) and len(mean) == 3 else "other"
    values = {"mean": mean, "std": cfg["std"], "channels": channels, "img_size": size,
              "interpolation": cfg.get("interpolation"), "crop": cfg.get("crop_pct")}  # fmt: skip
    return Preprocessing.from_dict(values), classes


def _from_timm(where: str) -> Weights:
    """timm's own pretrained weights, by timm: from its cache where there is no network."""
    try:
        timm = import_peer("timm")
    except ImportError as error:
        raise ConfigError(
            f"{where} needs the timm library, which is not installed.",
            'Install it with: pip install -c constraints.txt -e ".[peers]"',
        ) from error
    name = where.removeprefix("timm:")
    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        raise ConfigError(
            f"timm has no model {bare!r}.{suggest(bare, timm.list_models())}",
            f"timm {timm.__version__}; timm.list_pretrained() lists weights.",
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # no network, no such weights, a damaged cache: each in its own way
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"timm cannot give the weights {where}: {said}",
            "Without network they must be in its cache (HF_HOME); or give their folder or file. "
            f"timm.list_pretrained('{bare}*') lists what exists.",
        ) from error
    tensors = dict(model.state_dict())
    cfg = getattr(model, "pretrained_cfg", None)
    pre, classes = _timm_record(cfg) if isinstance(cfg, Mapping) else (None, None)
    settings = {}
    heads = [m.num_heads for m in model.modules() if type(getattr(m, "num_heads", 0)) is int]
    if any(h > 0 for h in heads):
        settings["num_heads"] = max(heads)
    return Weights(tensors, "timm", where, pre, classes, _digest(tensors), settings=settings)


SUFFIXES = (*SAFETENSORS, *TORCH)


def layout_named(name: str) -> Layout:
    """One of LAYOUTS by its name. Raises ConfigError with a suggestion."""
    for layout in LAYOUTS:
        if layout == name:
            return layout
    raise unknown("layout", name, LAYOUTS)
