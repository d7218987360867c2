"""What does the folder of a saved model hold, and how is it loaded? No code in it runs.

    config.json         {"schema", "format", "library", "vitc_version", "model", "num_classes",
                         "classes", "preprocessing", "fit", "results"}
    model.safetensors   the state_dict under this library's names
    README.md           the model card
    sources/            a copy of the source of a custom stem

It is read without network and without any extra; a name on the hub (user/name) needs the extra
`hub`. `preprocessing` and `fit` are a `vitc.data.preprocessing.Preprocessing`, or null.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vitc.config import SCHEMA, RunConfig, from_saved, to_dict
from vitc.data.preprocessing import Fit, Preprocessing, preprocessing_problem
from vitc.errors import CheckpointError, ConfigError
from vitc.files import read_json
from vitc.machine import own_version
from vitc.models.config import ModelConfig, TimmConfig, TorchvisionConfig
from vitc.plugins.consent import customs, with_sources, without_folders

if TYPE_CHECKING:
    from torch import nn

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
FLOATING = ("F16", "BF16", "F32", "F64")  # dtypes, by their names in a safetensors file
MOST_CLASSES = 10_000_000


@dataclass(frozen=True)
class Saved:
    """The contents of a saved model's config.json."""

    config: ModelConfig
    num_classes: int  # K; 0: no head
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    results: dict[str, Any] | None


# -- load ------------------------------------------------------------------------------------------


def from_pretrained(
    folder_or_repo_id: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    revision: str | None = None,
) -> nn.Module:
    """A saved model in evaluation mode on CPU: (B, C, H, W) float32 -> (B, K) logits.

    `folder_or_repo_id`: a folder of `save_pretrained`, or `user/name` on the Hugging Face hub
    (extra `hub`); `revision`: its branch, tag or commit. `num_classes`: a number other than the
    saved one gives a fresh head (0: none, for features). Nothing is unpickled and no code of the
    folder is imported; a custom class has to be trusted.

    Raises ConfigError: no such folder, a missing extra, a custom class that is not trusted;
    CheckpointError: files that are missing, damaged, of a newer format or of different models,
    a hub that cannot be reached or refuses access.
    """
    if num_classes is not None and (type(num_classes) is not int or num_classes < 0):
        raise ConfigError(f"num_classes is {num_classes!r}; it must be a number of at least 0.")
    given = os.fspath(folder_or_repo_id)
    folder = Path(given).expanduser()
    if folder.exists():
        if revision is not None:
            raise ConfigError(f"revision has no effect with the folder {folder}.")
        if not folder.is_dir():
            raise ConfigError(f"{folder} is a file.", "Give the folder that save_pretrained wrote.")
    else:
        from vitc.weights.hub import download, is_repo_id

        if not is_repo_id(given):
            raise ConfigError(
                f"There is no folder {given!r}, and it is not a name on the hub (user/name)."
            )
        folder = download(given, revision)
    model, saved = load_pretrained(folder)
    if num_classes is not None and num_classes != saved.num_classes:
        reset = getattr(model, "reset_classifier", None)
        if reset is None:
            raise ConfigError(f"{saved.config.name} cannot take another number of classes.")
        reset(num_classes)
    return model.eval()


def is_pretrained(folder: Path) -> bool:
    """Whether a folder has the files of a saved model, whatever they hold."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def load_pretrained(folder: Path) -> tuple[nn.Module, Saved]:
    """The model of a local folder in evaluation mode on CPU, and the contents of its config.json.

    Raises as `from_pretrained`.
    """
    saved = read_pretrained(folder)
    saved = dataclasses.replace(saved, config=with_sources(saved.config, folder))
    return load_tensors(folder / WEIGHTS, saved), saved


def load_tensors(path: Path, saved: Saved) -> nn.Module:
    """The model of `saved` in evaluation mode on CPU, with the tensors of a safetensors file.

    Raises CheckpointError: damaged, or the tensors of another model.
    """
    import torch

    from vitc.models.zoo import build_model
    from vitc.runs.tensors import Kind, opened
    from vitc.weights.files import blueprint

    there = {}
    with opened(path) as file:  # the header: no tensor is read or allocated yet
        for name in file.keys():  # noqa: SIM118
            entry = file.get_slice(name)
            numbers = "" if entry.get_dtype() in FLOATING else " integers"
            there[name] = Kind(tuple(entry.get_shape()), numbers)
    where = path.parent if path.name == WEIGHTS else path
    model = blueprint(saved.config, saved.num_classes, there, str(where))
    with opened(path) as file:  # in the model's dtypes: else views of the file
        tensors = {
            name: file.get_tensor(name).to(like.dtype) for name, like in model.state_dict().items()
        }
    outside = isinstance(saved.config, TimmConfig | TorchvisionConfig) or any(customs(saved.config))
    if not outside:
        model.load_state_dict(tensors, assign=True)
    if outside or any(b.is_meta for b in model.buffers()):  # it has tensors outside its state_dict
        with torch.random.fork_rng(devices=[]):
            model = build_model(saved.config, saved.num_classes)
        model.load_state_dict(tensors)
    return model.eval()


# -- config.json -----------------------------------------------------------------------------------


def read_pretrained(folder: Path) -> Saved:
    """config.json of a saved model, every value of it checked.

    Raises CheckpointError: missing, not JSON, of another library or of a newer format, a value of
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
    return saved_from(read_json(file, CheckpointError), file)


def saved_values(saved: Saved) -> dict[str, Any]:
    """The JSON values of a saved model's config.json."""
    p, config = saved.preprocessing, dataclasses.replace(saved.config, num_classes=None)
    return {
        "format": FORMAT,
        "library": LIBRARY,
        "vitc_version": own_version(),
        "schema": SCHEMA,
        "model": to_dict(RunConfig(model=without_folders(config)))["model"],
        "num_classes": saved.num_classes,
        "classes": saved.classes,
        "preprocessing": p and p.to_dict(),
        "fit": p.fit if p else "crop",
        "results": saved.results,
    }


def saved_from(values: Mapping[str, Any], file: Path) -> Saved:
    """The reverse of `saved_values`, every value checked; errors name `file`. Raises as
    `read_pretrained`."""
    if values.get("library") != LIBRARY or type(values.get("format")) is not int:
        raise CheckpointError(
            f"{file} describes a model of another library.",
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
    try:
        model = from_saved(
            {"schema": values.get("schema", 1), "model": values["model"]}, file
        ).model
    except (ConfigError, RecursionError, AttributeError, TypeError) as error:
        what = error.message if isinstance(error, ConfigError) else "it is nested in an unknown way"
        raise CheckpointError(
            f"{file} describes a model that this version of vitc does not know: {what[:300]}",
            "It may be from a newer vitc, or damaged.",
        ) from error
    classes, prepared = values["classes"], values["preprocessing"]
    return Saved(
        model,
        values["num_classes"],
        None if classes is None else tuple(classes),
        None if prepared is None else Preprocessing.from_dict(prepared, values["fit"]),
        values["results"],
    )


def _problem(values: Mapping[str, Any]) -> str | None:
    """What is invalid in the values other than `model`; None: nothing."""
    unknown = [k for k in values if k not in (*KEYS, "schema")]
    missing = [k for k in KEYS if k not in values]
    if unknown or missing:
        return f"{unknown[0][:60]!r} is unknown" if unknown else f"it has no {missing[0]!r}"
    if values["format"] < 1:
        return f"there is no format {values['format']}"
    if not isinstance(values["model"], dict):
        return "'model' is not a table of settings"
    k, classes, results = values["num_classes"], values["classes"], values["results"]
    if type(k) is not int or not 0 <= k <= MOST_CLASSES:
        return f"num_classes is {str(k)[:60]}, which is not a number of classes"
    if results is not None and not isinstance(results, dict):
        return "'results' is neither a table nor null"
    if values["fit"] not in get_args(Fit):
        return f"'fit' is none of {', '.join(get_args(Fit))}"
    in_chans = values["model"].get("in_chans", 3)
    return classes_problem(classes, k) or prepared_problem(values["preprocessing"], in_chans)


def classes_problem(classes: Any, k: int) -> str | None:
    if classes is None:
        return None
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str) for c in classes):
        return "classes is not a list of strings"
    return None if len(classes) == k else f"there are {len(classes)} classes for {k} outputs"


def prepared_problem(values: Any, in_chans: Any) -> str | None:
    problem = None if values is None else preprocessing_problem(values, in_chans, complete=True)
    return None if problem is None else f"preprocessing: {problem}"
