"""Which weights are in a run, a file, a folder, timm or a state dict, and what is known of them?

Known beside the tensors are preprocessing, classes and the model's config, where they are stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vitc.config import to_dict
from vitc.data.preprocessing import Fit, Preprocessing
from vitc.errors import CheckpointError, unknown
from vitc.files import read_json
from vitc.models.timm import timm_with
from vitc.models.zoo import build_model, model_config
from vitc.resolve import what_is
from vitc.runs.checkpoint import load_weights_of
from vitc.runs.folder import CHECKPOINTS, Run
from vitc.runs.tensors import dtype_shape
from vitc.weights import layouts
from vitc.weights.catalog import PREFIX, packaged
from vitc.weights.files import no_weights_in, read_weights_file
from vitc.weights.hub import offline_unless_reachable
from vitc.weights.layouts import LAYOUTS, recognise
from vitc.wording import few

Average = Literal["ema", "raw"]
OTHER = "other"  # the layout of tensors that are not those of a known ViT


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's tensors and what is known of them."""

    tensors: dict[str, Tensor]
    """In our layout where the model is a ViT, else as stored; on CPU."""
    source: str
    """The layout they were stored in: one of LAYOUTS, or `other`."""
    where: str
    """Where they were read from, for messages."""
    preprocessing: Preprocessing | None
    """None: unknown."""
    classes: tuple[str, ...] | None
    """Names of the classes, in the order of the logits; None: unknown."""
    sha256: str
    """Of the file, in hex; of the tensors themselves where there is no one file."""
    model: dict[str, Any] | None = None
    """The model's config as saved by this package; None for the weights of others."""
    notes: tuple[str, ...] = ()
    """What else a user should know: which of two sets was taken, which convention is assumed."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the tensors do not show, where known: num_heads, global_pool, stem, strides, ..."""

    def reversed(self, first: str) -> Weights:
        """The same for images with their channels in reverse order; the convolution `first` reads
        them. Exact: only the order of a sum changes."""
        tensors = {**self.tensors, first: self.tensors[first].flip(1)}
        pre = self.preprocessing and self.preprocessing.reversed()
        return replace(self, tensors=tensors, preprocessing=pre)


# -- reading ---------------------------------------------------------------------------------------


def read_weights(
    where: str | Path | Mapping[str, Any], source: str = "auto", average: Average = "ema"
) -> Weights:
    """Weights from a run, a `step_N`, a file, a folder, `timm:NAME`, `pretrained:NAME` (of the
    catalog) or a state dict, on CPU.

    `source` is their layout. A ViT's tensors come in our layout if our ViT can compute it, others
    as stored. Raises CheckpointError: nothing readable there, or of another layout; ConfigError: an
    unknown layout, timm is not installed.
    """
    return by_our_names(read_stored(where, source, average), strict=False)


def read_stored(where: str | Path | Mapping[str, Any], source: str, average: str) -> Weights:
    """The tensors as stored, and their layout."""
    if source not in ("auto", *LAYOUTS):
        raise unknown("source of weights", source, ("auto", *LAYOUTS))
    if average not in ("ema", "raw"):
        raise unknown("average", str(average), ("ema", "raw"))
    if isinstance(where, Mapping):
        found = _from_content(where, "The state dict", "", {}, average)
    elif str(where).startswith("timm:"):
        found = _from_timm(str(where))
    elif str(where).startswith(PREFIX):
        found = _from_catalog(str(where))
    elif Path(where).is_dir():
        found = _from_folder(Path(where), average)
    else:
        found = _from_file(Path(where), average)
    return _checked_source(found, source)


def by_our_names(weights: Weights, strict: bool = True) -> Weights:
    """The same with a ViT's tensors in our layout; another model's as they are.

    Raises CheckpointError if `strict`: a ViT that ours cannot compute.
    """
    layout = recognise(weights.tensors)
    if layout is None or (not strict and layouts.foreign_part(weights.tensors)):
        return weights
    return replace(weights, tensors=layouts.to_vitc(weights.tensors, layout)[0])


def _checked_source(weights: Weights, source: str) -> Weights:
    looks = recognise(weights.tensors)
    same = looks is not None and source.partition("_")[0] == looks.partition("_")[0]
    by_any_name = looks is None and source in ("vitc", "timm")  # models other than ViTs
    if source != "auto" and not same and not by_any_name:
        raise CheckpointError(
            f"{weights.where} is not in the layout of {source}, but in that of "
            f"{looks or 'no known ViT'}.",
            f"Its tensors are named {few(weights.tensors, 2)}.",
        )
    if looks is None:
        return replace(weights, source=weights.source if source == "auto" else source)
    weights = replace(weights, source=looks)
    by_convention = layouts.convention(looks)
    if weights.preprocessing is None and by_convention is not None:
        size = weights.settings.get("img_size")
        crop = weights.settings.get("crop")
        pre = replace(by_convention, img_size=size, crop=crop)
        note = (
            f"Preprocessing is not stored; the convention of {looks.partition('_')[0]} for "
            f"ImageNet is assumed."
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
    """The tensors in the content of a file, without the wrappers of training scripts."""
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
        notes.append("It holds two sets of weights; the moving average was taken.")
    elif raw is not None:
        tensors = raw
        if average == "ema":
            notes.append("It holds no moving average; its only weights were taken.")
    else:
        raise CheckpointError(f"{where} holds the moving average only; raw weights were asked for.")
    if raw is not None and averaged is not None:
        # pycls's best file keeps the two sets from different epochs
        errors = {k: content.get(k) for k in ("test_err", "ema_err")}
        stored = [f"{k} {v:.2f}" for k, v in errors.items() if type(v) in (int, float)]
        notes += [f"Errors stored in the file: {', '.join(stored)}."] if stored else []
    odd = [
        str(n) for n, t in tensors.items() if not isinstance(n, str) or not isinstance(t, Tensor)
    ]
    if odd or not tensors:
        what = f"it also holds {few(odd)}" if odd else "it is empty"
        raise CheckpointError(
            f"{where} is not a plain state dict: {what}.", f"Known wrappers: {', '.join(_RAW)}."
        )
    tensors = layouts.without_wrappers(tensors)
    cfg = content.get("cfg")
    settings = pycls_settings(cfg) if isinstance(cfg, str) else {}
    if settings.get("norm_eps", 1e-6) != 1e-6:
        notes.append(
            f"It was trained with LayerNorm eps {settings['norm_eps']}, here it is 1e-6: logits "
            f"differ slightly."
        )
    digest = sha256 or _digest(tensors)
    known: dict[str, Any] = {"notes": tuple(notes), "settings": settings}
    weights = Weights(tensors, OTHER, where, None, None, digest, **known)
    if metadata.get("library") != "vitc":
        return weights
    try:  # what `vitc convert` wrote beside the tensors
        values = {k: json.loads(v) for k, v in metadata.items() if k in _METADATA}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{weights.where} is damaged: its metadata is not JSON.") from error
    return _with_record(weights, values)


_METADATA = ("preprocessing", "classes", "model", "fit")


def _with_record(weights: Weights, values: Mapping[str, Any]) -> Weights:
    """Model config, classes and preprocessing as this package saves them beside the tensors."""
    pre, classes, model = (values.get(k) for k in _METADATA[:3])
    problem, fit = None, values.get("fit", "crop")
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    ):
        problem = "its classes are not a list of names"
    if model is not None and not isinstance(model, dict):
        problem = "its model is not an object"
    if fit not in get_args(Fit):
        problem = f"fit is none of {get_args(Fit)}"
    if problem is not None:
        raise CheckpointError(f"{weights.where} is damaged: {problem}.")
    return replace(
        weights,
        source="vitc",
        preprocessing=None if pre is None else Preprocessing.from_dict(pre, fit),
        classes=None if classes is None else tuple(classes),
        model=model,
        settings=weights.settings if model is None else settings_of(model),
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {dtype_shape(tensors[name])}\n".encode())
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a saved model that change the logits but leave no trace in the tensors."""
    stem = model.get("stem")
    found = {k: model[k] for k in ("num_heads", "global_pool") if k in model}
    if isinstance(stem, Mapping):
        found |= {k: stem[k] for k in ("strides", "act") if k in stem}
        if "kind" in stem:
            kind = stem["kind"]
            found["stem"] = "custom" if kind == "outside" else kind  # its name in schema 1
    return found


# -- folders ---------------------------------------------------------------------------------------


def _from_folder(path: Path, average: str) -> Weights:
    if what_is(path) == "checkpoint" or (what_is(path) == "run" and (path / CHECKPOINTS).is_dir()):
        return _from_run(path, average)
    config = (
        read_json(path / "config.json", CheckpointError) if (path / "config.json").exists() else {}
    )
    names = ("model.safetensors", "pytorch_model.bin")
    file = next((path / n for n in names if (path / n).exists()), None)
    if file is None and what_is(path) == "run":
        return _from_run(path, average)  # raises with the reason
    if file is None:
        raise no_weights_in(path)
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
    """The last checkpoint of a run, or a `step_N`, with the run's preprocessing and classes."""
    tensors = load_weights_of(path, ema=average == "ema")
    run = path if (path / "config.json").exists() else path.parent.parent
    weights = Weights(
        tensors, recognise(tensors) or "vitc", str(path), None, None, _digest(tensors)
    )
    if not (run / "config.json").exists():
        return weights  # a step_N alone
    config = read_json(run / "config.json", CheckpointError)
    data = Run(run).data
    model = config.get("model")
    model = model if isinstance(model, dict) else {}
    return replace(
        weights,
        preprocessing=Preprocessing.from_run(data),
        classes=tuple(data["classes"]),
        model=model,
        settings=settings_of(model),
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
    """An integer, a float, or the string itself."""
    text = text.strip().strip("'\"")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _timm_record(cfg: Mapping[str, Any]) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    """Preprocessing and classes of timm's pretrained_cfg, where it has them."""
    labels = cfg.get("label_names")
    classes = tuple(map(str, labels)) if isinstance(labels, list | tuple) and labels else None
    if "mean" not in cfg or "std" not in cfg:
        return None, classes
    size = cfg.get("input_size")
    size = list(size)[1:] if isinstance(size, list | tuple) and len(size) == 3 else None
    mean = cfg["mean"]
    channels = "rgb" if isinstance(mean, list | tuple) and len(mean) == 3 else "other"
    values = {
        "mean": mean,
        "std": cfg["std"],
        "channels": channels,
        "img_size": size,
        "interpolation": cfg.get("interpolation"),
        "crop": cfg.get("crop_pct"),
    }
    return Preprocessing.from_dict(values), classes


def _from_timm(where: str) -> Weights:
    """timm's own pretrained weights, by timm: from its cache where there is no network."""
    timm, bare = timm_with(where)
    try:
        with offline_unless_reachable():
            model = timm.create_model(where.removeprefix("timm:"), pretrained=True)
    except Exception as error:  # no network, no such weights, a damaged cache: each in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"timm cannot load the weights {where}: {reason}",
            "Without network they must be in its cache (HF_HOME); or give their folder or file. "
            f"timm.list_pretrained('{bare}*') lists what exists.",
        ) from error
    tensors = dict(model.state_dict())
    cfg = getattr(model, "pretrained_cfg", None)
    pre, classes = _timm_record(cfg) if isinstance(cfg, Mapping) else (None, None)
    heads = [m.num_heads for m in model.modules() if type(getattr(m, "num_heads", None)) is int]
    settings = {"num_heads": heads[0]} if len(set(heads)) == 1 else {}
    return Weights(tensors, "timm", where, pre, classes, _digest(tensors), settings=settings)


def _from_catalog(where: str) -> Weights:
    """Weights of the catalog, under our names: those of a pip package are in the model's order."""
    entry = packaged(where)
    file, config = read_weights_file(entry.path()), model_config(entry.model)
    with torch.device("meta"):
        names = build_model(config).state_dict()
    content = file.content
    tensors = dict(zip(names, content.values(), strict=True)) if entry.package else dict(content)
    note = f"licence of {where}: {entry.licence}"
    return Weights(
        tensors,
        OTHER,
        where,
        entry.preprocessing,
        None,
        file.sha256,
        model=to_dict(config),
        notes=(note,),
    )
