"""How is a run or a model in memory saved for use elsewhere, as a folder of `vitc.deploy.saved`?"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitc.config import read_config
from vitc.data.preprocessing import KEYS as PREPROCESSING
from vitc.data.preprocessing import Preprocessing
from vitc.deploy.card import card, cost_of, results_of
from vitc.deploy.saved import (
    CARD,
    CONFIG,
    WEIGHTS,
    Saved,
    classes_problem,
    is_pretrained,
    prepared_problem,
    saved_values,
)
from vitc.errors import CheckpointError, ConfigError
from vitc.files import TEMPORARY, discard, sync_folder, to_json, write_file
from vitc.models.config import ModelConfig
from vitc.plugins.consent import copies, with_sources
from vitc.plugins.names import SOURCES
from vitc.resolve import check_is
from vitc.runs.folder import Run

if TYPE_CHECKING:
    from torch import Tensor, nn


def save_pretrained(
    run_or_model: str | os.PathLike[str] | nn.Module,
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | Preprocessing | None = None,
    weights: Literal["ema", "raw"] = "ema",
    overwrite: bool = False,
) -> Path:
    """Save a model into `folder`, to be loaded by `from_pretrained` and `Predictor` or pushed.

    `run_or_model`: a run folder, to save the "ema" or "raw" `weights` of its last checkpoint with
    its classes and preprocessing; or a model of this library, optionally with `classes` (K names)
    and `preprocessing` (a table or a load report's). The folder is written whole or not at all.
    One that is not empty is refused; `overwrite` replaces a saved model.

    Returns the folder's path. Raises ConfigError: settings that exclude each other, a model
    without a config or that differs from its config, a folder that must not be replaced;
    CheckpointError: no checkpoint, a damaged one, or a failed write.
    """
    from torch import nn

    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights is {weights!r}; it must be 'ema' or 'raw'.")
    target = _target(Path(folder), overwrite)
    if isinstance(run_or_model, nn.Module):
        if weights != "ema":
            raise ConfigError("weights has no effect with a model in memory.")
        parts = _from_model(run_or_model, classes, preprocessing)
    elif isinstance(run_or_model, str | os.PathLike):
        if classes is not None or preprocessing is not None:
            raise ConfigError(
                "classes and preprocessing have no effect with a run: it has its own."
            )
        parts = _from_run(Path(run_or_model), weights)
    else:
        raise ConfigError(
            f"A {type(run_or_model).__name__} cannot be saved.", "Give a run folder or a model."
        )
    _write(target, *parts)
    return target


def _from_run(run: Path, weights: str) -> tuple[Saved, dict[str, Tensor], str]:
    """Config, weights and card of a run folder."""
    from vitc.runs.checkpoint import load_weights_of
    from vitc.runs.tensors import kinds
    from vitc.weights.files import blueprint

    check_is(run, "run")
    config = with_sources(read_config(run, CheckpointError).model, run)
    record = Run(run).data
    k = len(record["classes"])
    tensors = load_weights_of(run, ema=weights == "ema")
    cost, why_not = None, ""
    try:
        cost = cost_of(blueprint(config, k, kinds(tensors), str(run)), config)
    except ConfigError as error:  # needs timm, which is not installed
        why_not = error.message
    preprocessing, results = Preprocessing.from_run(record), results_of(run, weights)
    saved = Saved(config, k, tuple(record["classes"]), preprocessing, results)
    return saved, tensors, card(saved, tensors, cost, why_not, run)


def _from_model(
    model: nn.Module,
    classes: Sequence[str] | None,
    preprocessing: Mapping[str, Any] | Preprocessing | None,
) -> tuple[Saved, dict[str, Tensor], str]:
    """Config, weights and card of a model in memory."""
    from vitc.runs.tensors import kinds
    from vitc.weights.files import blueprint

    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise ConfigError(
            f"A {type(model).__name__} has no config of this library to save.",
            "Save a model of vitc.create_model, vitc.from_pretrained or a run folder.",
        )
    if any(t.is_meta for t in model.state_dict().values()):
        raise ConfigError("The model is on the meta device: it has no weights to save.")
    k = getattr(model, "num_classes", config.num_classes)
    k = 1000 if k is None else int(k)
    config = dataclasses.replace(config, num_classes=None)
    names = classes if classes is None or isinstance(classes, str) else tuple(classes)
    if not isinstance(preprocessing, Mapping | Preprocessing | None):
        raise ConfigError(
            f"preprocessing is a {type(preprocessing).__name__}; it must be a table of "
            f"{', '.join(PREPROCESSING)}, or the preprocessing of a load report."
        )
    given = preprocessing.to_dict() if isinstance(preprocessing, Preprocessing) else preprocessing
    values = given and {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
    problem = classes_problem(names, k) or prepared_problem(values, config.in_chans)
    if problem is not None:
        raise ConfigError(f"{problem[:1].upper()}{problem[1:]}.")
    tensors = dict(model.state_dict())
    hint = (
        "A stem given as a class or a module is not in the config: name it as "
        'stem="path/to/my.py:MyStem".'
    )
    try:
        twin = blueprint(config, k, kinds(tensors), "The model")
    except CheckpointError as error:
        raise ConfigError(f"The model differs from its config. {error.message}", hint) from error
    if type(getattr(twin, "stem", None)) is not type(getattr(model, "stem", None)):
        raise ConfigError(
            f"The model's stem is a {type(model.stem).__name__}, but its config names "
            f"{type(twin.stem).__name__}.",
            hint,
        )
    fit = preprocessing.fit if isinstance(preprocessing, Preprocessing) else "crop"
    prepared = None if values is None else Preprocessing.from_dict(values, fit)
    saved = Saved(config, k, None if names is None else tuple(names), prepared, None)
    return saved, tensors, card(saved, tensors, cost_of(twin, config))


# -- to the disk -----------------------------------------------------------------------------------


def _target(folder: Path, overwrite: bool) -> Path:
    """The folder to write. Raises ConfigError: it holds something that must not be replaced."""
    target = Path(os.path.realpath(folder.expanduser()))
    if not target.exists():
        return target
    if not target.is_dir():
        raise ConfigError(f"{folder} is a file.", "Name a folder, new or empty.")
    names = {p.name for p in target.iterdir()}
    if not names:
        return target
    if not overwrite:
        raise ConfigError(
            f"The folder {folder} is not empty; nothing was changed.",
            "Choose another one, or replace a saved model there with --overwrite (overwrite=True).",
        )
    others = sorted(names - {CONFIG, WEIGHTS, CARD, SOURCES})
    if others or not is_pretrained(target):
        what = f"it holds {others[0]!r}" if others else "it holds no saved model"
        raise ConfigError(
            f"The folder {folder} is not replaced: {what}. Nothing was changed.",
            "Choose another folder.",
        )
    return target


def _write(target: Path, saved: Saved, tensors: Mapping[str, Tensor], card: str) -> None:
    """Write everything into a temporary folder and rename that to `target`."""
    from vitc.runs.tensors import DTYPES, write_tensors

    odd = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if odd:
        raise ConfigError(f"{odd[0]} is {tensors[odd[0]].dtype}, which cannot be saved.")
    sources = copies(saved.config)
    temporary = target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        text = to_json(saved_values(saved), indent=2) + "\n"
        write_file(temporary / CONFIG, [text.encode("utf-8", "replace")])
        write_file(temporary / CARD, [card.encode("utf-8", "replace")])
        write_tensors(temporary / WEIGHTS, tensors, {"format": "pt"})  # as its readers expect
        if sources:
            (temporary / SOURCES).mkdir()
            for name, content in sources.items():
                write_file(temporary / SOURCES / name, [content])
            sync_folder(temporary / SOURCES)
        sync_folder(temporary)
        _put_in_place(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written: {error.strerror or error}.",
            "Free space or choose another folder. No partial files were left.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename; the old folder is kept until then, and restored if that fails."""
    if not target.exists() or not any(target.iterdir()):
        os.rename(temporary, target)
        return
    old = target.with_name(f"{TEMPORARY}old-{target.name}-{os.getpid()}")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise
    discard(old)
