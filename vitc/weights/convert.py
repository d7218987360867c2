"""How are weights written for another library, with what belongs to them?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from vitc.config import to_dict
from vitc.errors import CheckpointError, ConfigError, unknown
from vitc.files import replacing
from vitc.models.config import ViTConfig
from vitc.models.zoo import build_model, model_config
from vitc.runs.tensors import DTYPES, dtype_shape, write_tensors
from vitc.weights import layouts
from vitc.weights.files import SAFETENSORS, TORCH
from vitc.weights.fit import fill, models_like
from vitc.weights.load import Average, Weights, by_our_names, read_weights
from vitc.wording import few

FEEDS = {"pycls": "bgr", "pycls_branch": "bgr"}  # what each library feeds its models; else RGB


@dataclass(frozen=True)
class Converted:
    """What `convert` read and wrote."""

    weights: Weights
    shape: layouts.Shape | None
    """Of the ViT; None: another model."""
    models: list[str]
    """Names of the models that have this shape."""
    notes: list[str]
    sha256: str
    """Of the file written, in hex."""


def convert(
    where: str | Path,
    out: Path,
    to: str = "vitc",
    *,
    source: str = "auto",
    average: Average = "ema",
    model: str | None = None,
    channels: str | None = None,
) -> Converted:
    """Read weights as `read_weights` and write them to the file `out` in the layout `to`.

    `model`: the name of the model that they must fit, whose config is stored with them. `channels`:
    "rgb" or "bgr", the order of colours that the written weights take. Raises ConfigError and
    CheckpointError as `read_weights` and `write_weights`.
    """
    layout = next((name for name in layouts.LAYOUTS if name == to), None)
    if layout is None:
        raise unknown("layout", to, layouts.LAYOUTS)
    weights = read_weights(where, source, average)
    notes = list(weights.notes)
    if model is not None:
        weights = _checked(weights, model)
    if channels is not None:
        weights, note = _with_channels(weights, channels)
        notes.append(note)
    pre, feeds = weights.preprocessing, FEEDS.get(to, "rgb")
    if pre is not None and pre.channels in ("rgb", "bgr") and pre.channels != feeds:
        notes.append(
            f"Warning: these weights take {pre.channels.upper()} images, {to} feeds "
            f"{feeds.upper()}; --channels {feeds} reverses them."
        )
    sha256 = write_weights(out, weights, layout)
    shape = layouts.describe(weights.tensors)
    models = [model] if model else models_like(shape) if shape else []
    return Converted(weights, shape, models, notes, sha256)


def _checked(weights: Weights, name: str) -> Weights:
    """The weights with the config of the model `name`, once every tensor fits it."""
    shape = layouts.describe(weights.tensors)
    config = model_config(name)
    overrides: dict[str, Any] = {}
    if shape is not None and isinstance(config, ViTConfig):
        overrides["num_classes"] = shape.classes
        side = isqrt(shape.tokens - config.class_token) * (config.stem.reduction or 1)
        overrides["img_size"] = side  # if the grid is not a square, `fill` reports the misfit
        overrides["in_chans"] = shape.in_chans or config.in_chans
    elif weights.classes is not None:
        overrides["num_classes"] = len(weights.classes)
    config = model_config(name, **overrides)
    with torch.device("meta"):  # only names and shapes count
        model = build_model(config, 0 if shape is not None and shape.classes is None else None)
    fill(model, weights)
    return replace(weights, model=weights.model or to_dict(config))


def _with_channels(weights: Weights, channels: str) -> tuple[Weights, str]:
    """The weights for another order of colours, and a note."""
    pre = weights.preprocessing
    if pre is None or pre.channels not in ("rgb", "bgr"):
        order = "unknown" if pre is None else pre.channels
        raise ConfigError(
            f"--channels {channels} cannot be applied: the channel order of {weights.where} is "
            f"{order}.",
            "Leave --channels out, or name the layout if it implies the order: --from pycls.",
        )
    if pre.channels == channels:
        return weights, f"The channels are {channels.upper()} already."
    first = layouts.first_convolution(weights.tensors)
    if not first:
        raise ConfigError(f"{weights.where} has no first convolution of 3 channels to reverse.")
    return weights.reversed(first), (
        f"The input channels of {first} were reversed, from {pre.channels.upper()} to "
        f"{channels.upper()}; so were mean and std."
    )


def write_weights(path: Path, weights: Weights, layout: layouts.Layout) -> str:
    """Write a ViT's weights (in our layout) in that of a library, whole or not at all.

    `.safetensors` keeps source, layout, preprocessing, classes and the model's config as JSON
    strings in its metadata; `.pt`, `.pth`, `.pyth`, ... is a plain state dict, for pycls within the
    wrapper it reads. Returns the SHA-256 in hex. Raises ConfigError: another suffix;
    CheckpointError: that library has no place for these weights, an unsupported type, a full disk.
    """
    suffix = path.suffix.lower()
    if suffix not in (*SAFETENSORS, *TORCH):
        raise ConfigError(
            f"{path} must end in one of {', '.join((*SAFETENSORS, *TORCH))}.",
            "safetensors also keeps preprocessing and classes.",
        )
    weights = by_our_names(weights)
    tensors = weights.tensors
    if layouts.recognise(tensors) is not None:
        stem = (weights.model or {}).get("stem")
        tensors = layouts.from_vitc(tensors, layout, stem if isinstance(stem, Mapping) else None)
    elif (layout, weights.source) != ("vitc", "vitc"):
        raise CheckpointError(
            f"{weights.where} is not a known ViT; only ViTs are converted between libraries.",
            f"Its tensors are named {few(tensors, 2)}.",
        )
    odd = [f"{n} ({dtype_shape(t)})" for n, t in tensors.items() if t.dtype not in DTYPES]
    if odd:
        raise CheckpointError(f"{weights.where} has unsupported types: {few(odd)}.")
    pre = weights.preprocessing
    known = {
        "source": {"layout": weights.source, "where": weights.where, "sha256": weights.sha256},
        "preprocessing": pre and pre.to_dict(),
        "fit": pre and pre.fit != "crop" and pre.fit,
        "classes": weights.classes,
        "model": weights.model,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            if suffix in SAFETENSORS:
                texts = {name: json.dumps(v, allow_nan=False) for name, v in known.items() if v}
                metadata = {"format": "pt", "library": "vitc", "layout": layout, **texts}
                return write_tensors(temporary, tensors, metadata)
            plain = {n: t.detach().clone().contiguous() for n, t in tensors.items()}
            # pycls reads the epoch, and takes model_state where there are no errors to compare.
            wrapped = {"epoch": 0, "model_state": plain} if "pycls" in layout else plain
            torch.save(wrapped, temporary)
            with open(temporary, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be written: {reason}.") from error
