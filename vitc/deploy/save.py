"""How is a model saved for use elsewhere, and loaded: one folder of config, weights and card.

    config.json         {"format", "library", "vitc_version", "model", "num_classes", "classes",
                         "preprocessing", "fit", "results"}
    model.safetensors   the state_dict under this library's names
    README.md           the model card
    sources/            a copy of the source of a custom stem

No code in it runs. A folder is read without network and without any extra; a name on the hub
(user/name) needs the extra `hub`. `preprocessing` and `fit` are a
`vitc.data.preprocessing.Preprocessing`, or null.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitc.config import SCHEMA, RunConfig, from_saved, read_config, to_dict
from vitc.data.preprocessing import KEYS as PREPROCESSING
from vitc.data.preprocessing import Preprocessing, preprocessing_problem
from vitc.errors import CheckpointError, ConfigError
from vitc.files import TEMPORARY, discard, read_json, sync_folder, to_json, write_file
from vitc.models.config import ModelConfig, TimmConfig
from vitc.plugins.consent import copies, customs, with_sources, without_folders
from vitc.plugins.names import SOURCES
from vitc.runs.folder import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitc.weights.files import Kind


FORMAT = 1
LIBRARY = "vitc"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
KEYS = (
    "format",
    "library",
    "vitc_version",
    "model",
    "num_classes",
    "classes",
    "preprocessing",
    "fit",
    "results",
)
FITS = ("crop", "pad", "squash")
MOST_CLASSES = 10_000_000


@dataclass(frozen=True)
class Saved:
    """What config.json tells of a saved model."""

    config: ModelConfig
    num_classes: int
    """K; 0: no head."""
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    results: dict[str, Any] | None


# -- save ------------------------------------------------------------------------------------------


def save_pretrained(
    run_or_model: str | os.PathLike[str] | nn.Module,
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | Preprocessing | None = None,
    weights: Literal["ema", "raw"] = "ema",
    overwrite: bool = False,
) -> Path:
    """Write a model into `folder` as `from_pretrained`, `Predictor` and the hub take it.

    `run_or_model`: a run folder, of which `weights` ("ema" or "raw") of the last checkpoint are
    taken; or a model of ours, for which `classes` (K names) and `preprocessing` (see the module;
    or a load report's) may be given, as a run's own are known. The folder appears whole or not at
    all; one that holds anything is refused, or with `overwrite` replaced where it holds a saved
    model alone.

    Returns the folder's path. Raises ConfigError: settings that make no sense together, a model
    without a config or of another make than its config says, a folder that must not be replaced;
    CheckpointError: no checkpoint, a damaged one, or a disk that refuses.
    """
    from torch import nn

    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights is {weights!r}; it must be 'ema' or 'raw'.")
    target = _target(Path(folder), overwrite)
    if isinstance(run_or_model, nn.Module):
        if weights != "ema":
            raise ConfigError("weights has no effect with a model: it is saved as it is.")
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
    """What is to be written of a run folder: config, weights, card."""
    from vitc.deploy.card import ModelFacts, card, cost_of, results_of
    from vitc.runs.checkpoint import load_weights_of
    from vitc.weights.files import blueprint, kinds

    check_run(run)
    config = with_sources(read_config(run, CheckpointError).model, run)
    record = Run(run).data
    k = len(record["classes"])
    tensors = load_weights_of(run, ema=weights == "ema")
    cost, why_not = None, ""
    try:
        cost = cost_of(blueprint(config, k, kinds(tensors), str(run)), config)
    except ConfigError as error:  # needs timm, which is not there
        why_not = error.message
    preprocessing, results = Preprocessing.from_run(record), results_of(run, weights)
    saved = Saved(config, k, tuple(record["classes"]), preprocessing, results)
    numbers = sum(t.numel() for t in tensors.values())
    facts = ModelFacts(config, k, saved.classes, preprocessing, cost, numbers, why_not)
    return saved, tensors, card(facts, run, weights)


def check_run(run: Path) -> None:
    """Refuse what is no run folder, with what to give instead. Raises ConfigError."""
    if not run.is_dir():
        raise ConfigError(f"There is no run folder {run}.", "vitc train makes one in runs/.")
    if is_pretrained(run):
        raise ConfigError(
            f"{run} is a saved model already, not a run folder.", "Copy it, or vitc push it."
        )
    missing = [name for name in (CONFIG, "data.json") if not (run / name).exists()]
    if missing:
        raise ConfigError(f"{run} is not a run folder: it has no {' and no '.join(missing)}.")


def _from_model(
    model: nn.Module,
    classes: Sequence[str] | None,
    preprocessing: Mapping[str, Any] | Preprocessing | None,
) -> tuple[Saved, dict[str, Tensor], str]:
    """What is to be written of a model in memory: config, weights, card."""
    from vitc.deploy.card import ModelFacts, card, cost_of
    from vitc.weights.files import blueprint, kinds

    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise ConfigError(
            f"A {type(model).__name__} has no config of ours to save.",
            "Save a model of vitc.create_model, vitc.from_pretrained or a run folder.",
        )
    if any(t.is_meta for t in model.state_dict().values()):
        raise ConfigError("The model is on the meta device: it has no weights to save.")
    k = getattr(model, "num_classes", config.num_classes)
    k = 1000 if k is None else int(k)
    config = dataclasses.replace(config, num_classes=None)
    names = classes if classes is None or isinstance(classes, str) else tuple(classes)
    values = None if preprocessing is None else _plain_values(preprocessing)
    problem = _classes_problem(names, k) or _preprocessing_problem(values, config.in_chans)
    if problem is not None:
        raise ConfigError(f"{problem[:1].upper()}{problem[1:]}.")
    tensors = dict(model.state_dict())
    try:
        twin = blueprint(config, k, kinds(tensors), "The model")
    except CheckpointError as error:
        raise ConfigError(
            f"The model is not what its config says. {error.message}", _own_stem_hint()
        ) from error
    if type(getattr(twin, "stem", None)) is not type(getattr(model, "stem", None)):
        raise ConfigError(
            f"The model's stem is a {type(model.stem).__name__}, but its config says "
            f"{type(twin.stem).__name__}.",
            _own_stem_hint(),
        )
    prepared = None if values is None else Preprocessing.from_dict(values)
    saved = Saved(config, k, None if names is None else tuple(names), prepared, None)
    numbers = sum(t.numel() for t in tensors.values())
    facts = ModelFacts(config, k, saved.classes, prepared, cost_of(twin, config), numbers)
    return saved, tensors, card(facts)


def _own_stem_hint() -> str:
    return (
        "A stem given as a class or a module leaves no trace in the config: name it as "
        'stem="path/to/my.py:MyStem".'
    )


def _plain_values(values: Mapping[str, Any] | Preprocessing) -> dict[str, Any]:
    if isinstance(values, Preprocessing):
        return values.to_dict()
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"preprocessing is a {type(values).__name__}; it must be a table of "
            f"{', '.join(PREPROCESSING)}, or what load_weights reports."
        )
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


# -- to the disk -----------------------------------------------------------------------------------


def _target(folder: Path, overwrite: bool) -> Path:
    """The folder to write, or a ConfigError where something is there that must stay."""
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
            f"The folder {folder} is not empty; nothing in it was touched.",
            "Choose another one, or replace a saved model there with --overwrite (overwrite=True).",
        )
    others = sorted(names - {CONFIG, WEIGHTS, CARD, SOURCES})
    if others or not is_pretrained(target):
        what = f"it holds {others[0]!r}" if others else "it holds no saved model"
        raise ConfigError(
            f"The folder {folder} is not replaced: {what}. Nothing in it was touched.",
            "Choose another folder.",
        )
    return target


def _write(target: Path, saved: Saved, tensors: Mapping[str, Tensor], card: str) -> None:
    """Everything into a folder beside `target`, which then takes its name."""
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
        text = to_json(_config_values(saved), indent=2) + "\n"
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
            "Free space or choose another folder; nothing half-written was left.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _config_values(saved: Saved) -> dict[str, Any]:
    from vitc import __version__

    # num_classes stands beside it
    config = without_folders(dataclasses.replace(saved.config, num_classes=None))
    p = saved.preprocessing
    return {
        "format": FORMAT,
        "library": LIBRARY,
        "vitc_version": __version__,
        "schema": SCHEMA,
        "model": to_dict(RunConfig(model=config))["model"],
        "num_classes": saved.num_classes,
        "classes": saved.classes,
        "preprocessing": p and p.to_dict(),
        "fit": p.fit if p else "crop",
        "results": saved.results,
    }


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename; what was there is kept until then, and comes back if that fails."""
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


# -- load ------------------------------------------------------------------------------------------


def from_pretrained(
    folder_or_repo_id: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    revision: str | None = None,
) -> nn.Module:
    """A saved model in evaluation mode on CPU: (B, C, H, W) float32 -> (B, K) logits.

    `folder_or_repo_id`: a folder of `save_pretrained`, or `user/name` on the Hugging Face hub
    (extra `hub`), of which `revision` is a branch, tag or commit. `num_classes`: another number
    than it was saved with puts a fresh head on it (0: none, for features). Nothing is unpickled
    and no code of the folder is imported; a stem from outside has to be trusted by name.

    Raises ConfigError: no such folder, an extra that is missing, a stem that is not trusted;
    CheckpointError: files that are missing, damaged, of a newer format or of different models,
    a hub that cannot be reached or refuses.
    """
    if num_classes is not None and (type(num_classes) is not int or num_classes < 0):
        raise ConfigError(f"num_classes is {num_classes!r}; it must be a number of at least 0.")
    folder = _located(folder_or_repo_id, revision)
    model, saved = load_pretrained(folder)
    if num_classes is not None and num_classes != saved.num_classes:
        reset = getattr(model, "reset_classifier", None)
        if reset is None:
            raise ConfigError(f"{saved.config.name} cannot take another number of classes.")
        reset(num_classes)
    return model.eval()


def _located(folder_or_repo_id: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder, downloaded if it is a name on the hub."""
    given = os.fspath(folder_or_repo_id)
    folder = Path(given).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision has no effect with the folder {folder}.")
        return folder
    from vitc.weights.hub import download, is_repo_id

    if folder.exists():
        raise ConfigError(
            f"{folder} is a file.", "Give the folder that save_pretrained wrote, not a file in it."
        )
    if not is_repo_id(given):
        raise ConfigError(
            f"There is no folder {given!r}, and it is no name on the hub (user/name)."
        )
    return download(given, revision)


def is_pretrained(folder: Path) -> bool:
    """Whether a folder looks like one of `save_pretrained`, whatever its files hold."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def load_pretrained(folder: Path) -> tuple[nn.Module, Saved]:
    """The model of a local folder in evaluation mode on CPU, and what its config.json tells.

    Raises as `from_pretrained`.
    """
    from vitc.weights.files import blueprint

    saved = read_pretrained(folder)
    file = folder / WEIGHTS
    there = _header(file)
    saved = dataclasses.replace(saved, config=with_sources(saved.config, folder))
    skeleton = blueprint(saved.config, saved.num_classes, there, str(folder))
    tensors = _read(file, skeleton)
    return _filled(skeleton, saved, tensors).eval(), saved


def _filled(skeleton: nn.Module, saved: Saved, tensors: dict[str, Tensor]) -> nn.Module:
    """The skeleton with these tensors in it, or a model built anew where that is not all of it."""
    import torch

    from vitc.models.zoo import build_model

    config = saved.config
    if not any(customs(config)) and not isinstance(config, TimmConfig):
        skeleton.load_state_dict(tensors, assign=True)
        if not any(b.is_meta for b in skeleton.buffers()):
            return skeleton
    with torch.random.fork_rng(devices=[]):  # others keep tensors that no state_dict has
        model = build_model(config, saved.num_classes)
    model.load_state_dict(tensors)
    return model


def _header(file: Path) -> dict[str, Kind]:
    """Names, shapes and kinds in a safetensors file; nothing of that size is read or allocated."""
    from vitc.weights.files import Kind

    with _opened(file) as opened:
        found = {}
        for name in opened.keys():  # noqa: SIM118
            entry = opened.get_slice(name)
            floating = entry.get_dtype() in ("F16", "BF16", "F32", "F64")
            found[name] = Kind(tuple(entry.get_shape()), floating)
        return found


def _read(file: Path, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model, in its dtypes: views of the file where that has the same."""
    with _opened(file) as opened:
        return {
            name: opened.get_tensor(name).to(like.dtype)
            for name, like in model.state_dict().items()
        }


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield opened
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{file} is damaged, or no safetensors file: {str(error)[:200]}.",
            "Copy or download it again.",
        ) from error


# -- config.json -----------------------------------------------------------------------------------


def read_pretrained(folder: Path) -> Saved:
    """config.json of a saved model, every value of it checked.

    Raises CheckpointError: missing, not JSON, of something else or of a newer format, a value of
    the wrong type, an unknown name; ConfigError: the folder is a run's.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            if (folder / "data.json").exists():
                raise ConfigError(
                    f"{folder} is a run folder, not a saved model.",
                    f"Save its model first: vitc save {folder} FOLDER",
                )
            raise CheckpointError(
                f"{folder} holds no saved model: {name} is missing.",
                "Give a folder that vitc save or save_pretrained wrote.",
            )
    file = folder / CONFIG
    values = read_json(file, CheckpointError)
    if values.get("library") != LIBRARY or type(values.get("format")) is not int:
        raise CheckpointError(
            f"{file} is of another library's model, not of vitc's.",
            "Weights of other libraries: vitc convert",
        )
    if values["format"] > FORMAT:
        raise CheckpointError(
            f"{file} was written by a newer vitc (format {values['format']}, here {FORMAT}).",
            "Update vitc.",
        )
    problem = _problem(values)
    if problem is not None:
        raise CheckpointError(f"{file} is damaged: {problem}.")
    classes, prepared = values["classes"], values["preprocessing"]
    return Saved(
        _model_config(values["model"], values.get("schema", 1), file),
        values["num_classes"],
        None if classes is None else tuple(classes),
        None if prepared is None else Preprocessing.from_dict(prepared, values["fit"]),
        values["results"],
    )


def _problem(values: Mapping[str, Any]) -> str | None:
    """What is wrong with the values beside `model`, in words."""
    unknown = [k for k in values if k not in (*KEYS, "schema")]
    missing = [k for k in KEYS if k not in values]
    if unknown or missing:
        return f"{unknown[0][:60]!r} is unknown" if unknown else f"it has no {missing[0]!r}"
    if values["format"] < 1:
        return f"there is no format {values['format']}"
    if not isinstance(values["model"], dict):
        return "'model' is no table of settings"
    k, classes, results = values["num_classes"], values["classes"], values["results"]
    if type(k) is not int or not 0 <= k <= MOST_CLASSES:
        return f"num_classes is {str(k)[:60]}, which is no number of classes"
    if results is not None and not isinstance(results, dict):
        return "'results' is neither a table nor null"
    if values["fit"] not in FITS:
        return f"'fit' is none of {', '.join(FITS)}"
    in_chans = values["model"].get("in_chans", 3)
    return _classes_problem(classes, k) or _preprocessing_problem(values["preprocessing"], in_chans)


def _classes_problem(classes: Any, k: int) -> str | None:
    if classes is None:
        return None
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str) for c in classes):
        return "classes are no list of texts"
    return None if len(classes) == k else f"there are {len(classes)} classes for {k} outputs"


def _preprocessing_problem(values: Any, in_chans: Any) -> str | None:
    problem = None if values is None else preprocessing_problem(values, in_chans, complete=True)
    return None if problem is None else f"preprocessing: {problem}"


def _model_config(values: dict[str, Any], schema: Any, file: Path) -> ModelConfig:
    try:
        return from_saved({"schema": schema, "model": values}, file).model
    except (ConfigError, RecursionError, AttributeError, TypeError) as error:
        what = error.message if isinstance(error, ConfigError) else "nested in no known way"
        raise CheckpointError(
            f"{file} describes no model that this vitc knows: {what[:300]}",
            "It may be of a newer vitc, or damaged.",
        ) from error
