"""What is a name or path, and which config does it lead to with the user's settings?

A recipe, a config file, a run folder, a saved model, a study, weights, images. Free of torch.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitc.config import RunConfig, flat_values, from_dict, read_config, with_kind
from vitc.data.config import DataConfig
from vitc.data.litter import (
    holds_checkpoint,
    holds_folds,
    holds_model,
    holds_run,
    holds_study,
    listed,
)
from vitc.errors import ConfigError, suggest, suggest_beside, unknown
from vitc.models.config import ViTConfig
from vitc.models.zoo import MODELS, model_config
from vitc.optim.optimizers import SCHEDULE_FREE, SGDConfig
from vitc.plugins.consent import name_class, with_sources
from vitc.recipes import RECIPES
from vitc.settings import without_effect

if TYPE_CHECKING:
    from vitc.data.sources.base import Source

What = Literal[
    "recipe",
    "model",
    "timm",
    "torchvision",
    "pretrained",
    "checkpoint",
    "saved",
    "exported",
    "run",
    "folds",
    "study",
    "config",
    "images",
    "file",
]
EXPORTED = (".onnx", ".xml", ".pt2")  # of vitc export, which also writes .safetensors
HEADER_READ = 1 << 20  # bytes of a safetensors file: its metadata comes first
PREDICTS: tuple[What, ...] = ("run", "saved", "exported", "folds")
FOLDS = "folds.json"  # see vitc.deploy.folds
WHAT: dict[What, str] = {
    "recipe": "a recipe",
    "model": "the name of a model",
    "timm": "a model of timm",
    "torchvision": "a model of torchvision",
    "pretrained": "pretrained weights",
    "checkpoint": "a checkpoint",
    "saved": "a saved model",
    "exported": "an exported model",
    "run": "a run folder",
    "folds": "a folder of folds",
    "study": "a study",
    "config": "a config file",
    "images": "a folder or file of data",
    "file": "a file of another kind",
}


def what_is(name: str | Path) -> What | None:
    """What a name or path stands for; None: nothing of that name exists.

    "images": a folder, or a file that holds or lists some; "saved": a folder of `vitc save`, or of
    weights with a config.json; "exported": a file of `vitc export`; "file": one that none of the
    others is, such as weights.
    """
    text, path = str(name), Path(name)
    if text in RECIPES:
        return "recipe"
    if text in MODELS:
        return "model"
    if text.startswith("timm:"):
        return "timm"
    if text.startswith("torchvision:"):
        return "torchvision"
    if text.startswith("pretrained:"):
        return "pretrained"
    if path.is_dir():
        return _what_is_folder(path)
    if not path.is_file():
        return None
    if path.suffix == ".json":
        return "config"
    if path.suffix in EXPORTED or is_exported_weights(path):
        return "exported"
    from vitc.data.sources import SUFFIXES  # late: it imports numpy

    return "images" if text.lower().endswith(SUFFIXES) else "file"


def is_exported_weights(path: Path) -> bool:
    """Whether a file has the header of a safetensors file of `vitc export`."""
    if path.suffix != ".safetensors":
        return False
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return b'"vitc":"' in file.read(min(size, HEADER_READ))
    except OSError:
        return False


def _what_is_folder(path: Path) -> What:
    """By what its JSON files hold: other programs call theirs config.json and state.json too."""
    names = listed(str(path))
    if holds_checkpoint(str(path), names):
        return "checkpoint"
    if holds_run(str(path), names):
        return "run"
    if holds_folds(str(path), names):
        return "folds"
    if holds_study(str(path), names):
        return "study"
    if holds_model(str(path), names):
        return "saved"
    if "config.json" in names and names & {"model.safetensors", "pytorch_model.bin"}:
        from vitc.data.sources import holds_classes  # late: it imports numpy

        return "images" if holds_classes(str(path)) else "saved"
    return "images"


def check_is(name: str | Path, *wanted: What, known: Iterable[str] = ()) -> What:
    """What a name or path stands for, if that is one of `wanted`.

    `known`: names to suggest besides those of files. Raises ConfigError: it is something else.
    """
    what = what_is(name)
    if what in wanted:
        return what
    hint = "vitc train writes runs to runs/."
    if "recipe" in wanted:
        hint = f"Recipes and models: vitc show --list; {hint}"
    if what is None:
        near = suggest(str(name), known) or suggest_beside(Path(name))
        kinds = _either([WHAT[w].removeprefix("a ").removeprefix("an ") for w in wanted])
        raise ConfigError(f"There is no {kinds} {str(name)!r}.{near}", hint)
    if what == "images" and "recipe" not in wanted:
        hint = f"{hint[:-1]}: vitc train {name}"
    raise ConfigError(
        f"{str(name)!r} is {WHAT[what]}, not {_either([WHAT[w] for w in wanted])}.", hint
    )


def _either(kinds: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))


def check_arguments(given: Iterable[str], own: Iterable[str]) -> None:
    """Raises ConfigError: the misspelt name of one of a function's `own` arguments among those that
    it would take for settings."""
    own = list(own)
    sections = [field.name for field in dataclasses.fields(RunConfig)]
    for name in given:
        if name.isidentifier() and name not in (*own, *sections) and suggest(name, own):
            raise unknown("argument", name, own)


def base_config(name_or_path: str, optim: str | None = None) -> RunConfig:
    """The config behind a recipe's name, a config file or a run folder, before overrides.

    A recipe has its own settings for each optimizer it is tuned for (`optim`); for a file, another
    optimizer starts from that class's defaults.
    """
    what = check_is(name_or_path, "recipe", "run", "config", known=RECIPES)
    if what == "recipe":
        return RECIPES[name_or_path](optim)
    return _with_optim(read_config(Path(name_or_path)), optim)


def _with_optim(config: RunConfig, optim: str | None) -> RunConfig:
    if optim is None:
        return config
    new = with_kind(config.optim, "optim", optim)
    if new.schedule_free and not config.optim.schedule_free:
        logging.getLogger("vitc").warning(f"optim {optim}: {SCHEDULE_FREE}")
    return dataclasses.replace(config, optim=new)


def with_model(config: RunConfig, name: str) -> RunConfig:
    """The same run with another model of the zoo; img_size and in_chans of the run are kept."""
    kept = {leaf: getattr(config.model, leaf) for leaf in ("img_size", "in_chans", "num_classes")}
    return dataclasses.replace(config, model=dataclasses.replace(model_config(name), **kept))


def with_data(config: RunConfig, data: str) -> RunConfig:
    """The same run on other images: a source's name, or what one can be guessed from."""
    from vitc.data.sources import SOURCES, guess_source

    columns = ("image_column", "label_column", "split_column")
    own: dict[str, Any] = dict.fromkeys(("path", "mean", "std", *columns))
    own |= {"path_sha256": "", "splits": ""}
    if data in SOURCES:
        own["path"] = config.data.path if data == config.data.source else None
        return _located(_with(config, source=data, **own))
    source = guess_source(data)
    config = _located(_with(config, **{**own, "source": source, "path": data}))
    return dataclasses.replace(config, data=SOURCES[source].named(config.data))


def with_images(config: RunConfig, data: str) -> RunConfig:
    """The same for the argument of a command, where a path that exists goes before the name of a
    source."""
    from vitc.data.sources import SOURCES

    return with_data(config, f"./{data}" if data in SOURCES and os.path.exists(data) else data)


def _with(config: RunConfig, **data: Any) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def load_config(
    path_or_recipe: str | Path | RunConfig | Callable[..., RunConfig], **overrides: Any
) -> RunConfig:
    """A checked RunConfig from a recipe's name, a JSON file, a run folder or a config.

    Overrides are dotted (`**{"optim.lr": 1e-3}`) or nested (`optim={"lr": 1e-3}`); `model`,
    `optim` and `data` also take a name. Raises ConfigError: unknown name or setting (with a
    suggestion), a value of the wrong type, or settings that cannot work together.
    """
    return resolve_config(path_or_recipe, **overrides).checked()


def resolve_config(
    path_or_recipe: str | Path | RunConfig | Callable[..., RunConfig], **overrides: Any
) -> RunConfig:
    """As `load_config`, without the check: a recipe with an open data.path is not refused."""
    flat = flat_values(overrides)
    named = ("model", "data", "optim", "optim.kind")
    names = {k: flat.pop(k) for k in named if isinstance(flat.get(k), str)}
    if "optim" in names and "optim.kind" in names:
        raise ConfigError("optim.kind is set twice.")
    optim = names.get("optim", names.get("optim.kind"))
    if "model.name" in flat:
        raise ConfigError(
            "model.name is only a label; setting it would not change the model.",
            "Choose a model of the zoo with --model NAME (in Python: model=NAME).",
        )
    if isinstance(path_or_recipe, RunConfig):
        config = _with_optim(path_or_recipe, optim)
    elif callable(path_or_recipe):
        config = path_or_recipe() if optim is None else path_or_recipe(optim)
    else:
        config = base_config(str(path_or_recipe), optim)
    if "model" in names:
        config = with_model(config, names["model"])
    if "data" in names:
        config = with_data(config, names["data"])
    if isinstance(flat.get("init"), str):  # --init RUN
        flat["init.weights"] = flat.pop("init")
    config = _located(from_dict(flat, config))
    config = _named(config, flat if optim is None else {**flat, "optim": optim})
    if "data.path" in flat:
        source = _source(config.data)
        if source is not None:
            config = dataclasses.replace(config, data=source.named(config.data))
    before = path_or_recipe if isinstance(path_or_recipe, RunConfig) else None
    config = _with_effect(config, flat, before)
    if isinstance(path_or_recipe, str | Path) and os.path.exists(path_or_recipe):
        config = with_sources(config, path_or_recipe, strict=False)
    return config


# Settings that others can leave without effect, beyond the `needs` of a component: the test, by
# what, and the value that stands for none.
_ACROSS: dict[str, tuple[Callable[[RunConfig], Any], str, Any]] = {
    "optim.layer_decay": (
        lambda c: c.optim.layer_decay < 1 and "backbone" in c.train.freeze,
        "train.freeze backbone",
        1.0,
    ),
    "data.augment.lighting": (
        lambda c: c.data.augment.lighting and c.model.in_chans == 1,
        "model.in_chans 1",
        0.0,
    ),
    "data.workers": (
        lambda c: c.data.workers and c.data.resident == "on",
        "data.resident on",
        None,
    ),
    "optim.nesterov": (
        lambda c: isinstance(c.optim, SGDConfig) and c.optim.nesterov and not c.optim.momentum,
        "optim.momentum 0",
        False,
    ),
}


def _with_effect(
    config: RunConfig, given: Mapping[str, Any], before: RunConfig | None
) -> RunConfig:
    """The same without settings that lost their effect by what is `given`.

    `before`: a config of the caller's own, which decided on those that had none already; None: a
    recipe or a file.
    """
    decided = {} if before is None else _ineffective(before)
    for setting, (why, instead) in _ineffective(config).items():
        is_given = any(setting == g or setting.startswith(f"{g}.") for g in given)
        if setting not in decided and not is_given:
            logging.getLogger("vitc").warning(f"{why} It is left out.")
            config = from_dict({setting: instead}, config)
    return config


def _ineffective(config: RunConfig) -> dict[str, tuple[str, Any]]:
    """The settings without effect by their dotted names: why, and the value to leave them at."""
    parts = [
        "data",
        "data.augment",
        "model",
        "optim",
        "optim.schedule",
        "optim.ema",
        "train",
        "init",
    ]
    found: dict[str, tuple[str, Any]] = {}
    for part in parts:
        component = attrgetter(part)(config)
        for name, why in without_effect(component, part).items():
            found[f"{part}.{name}"] = why, getattr(type(component)(), name)
    for name, (test, by, instead) in _ACROSS.items():
        if test(config):
            found[name] = f"{name} has no effect with {by}.", instead
    return found


def _source(config: DataConfig) -> Source | None:
    from vitc.data.sources import SOURCES

    return SOURCES.get(config.source)


def _located(config: RunConfig) -> RunConfig:
    """The same with absolute paths: a run is resumed from any working directory."""
    path, source = config.data.path, _source(config.data)
    if path is not None and source is not None:
        config = _with(config, path=source.absolute(path))
    weights = config.init.weights
    if weights and not weights.startswith(("timm:", "pretrained:")):
        weights = os.path.abspath(os.path.expanduser(weights))
        init = dataclasses.replace(config.init, weights=weights)
        config = dataclasses.replace(config, init=init)
    return config


def _named(config: RunConfig, flat: Mapping[str, Any]) -> RunConfig:
    """The same with the custom classes looked up that the user has just named."""
    schedule = _looked_up(config.optim.schedule, "optim.schedule", flat)
    optim = dataclasses.replace(_looked_up(config.optim, "optim", flat), schedule=schedule)
    model = _looked_up(config.model, "model", flat)
    if isinstance(model, ViTConfig):
        model = dataclasses.replace(model, stem=_looked_up(model.stem, "model.stem", flat))
    return dataclasses.replace(config, optim=optim, model=model)


def _looked_up(component: Any, path: str, flat: Mapping[str, Any]) -> Any:
    """A custom class with its absolute path and hash, if it is the user who names it here."""
    if not hasattr(component, "custom") or not component.source:
        return component
    by_name = isinstance(flat.get(path), str) or f"{path}.source" in flat
    parents = {path, path.partition(".")[0]} & flat.keys()
    if not by_name and (component.sha256 or not parents):
        return component  # a hash alone names nothing: the config may be another user's
    one = name_class(component.custom.kind, component.source)
    wanted = flat.get(f"{path}.sha256", one.sha256)
    if wanted != one.sha256:
        raise ConfigError(
            f"{path}.sha256 {wanted!r} is not that of {component.source}: {one.sha256}.",
            "Leave it out: it is filled in when a class is named.",
        )
    return dataclasses.replace(component, source=one.source, sha256=one.sha256)
