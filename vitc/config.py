"""RunConfig = model + data + optim + train: load, override, check, save. Free of torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitc.data.config import NEEDS_PATH, DataConfig
from vitc.errors import ConfigError, unknown
from vitc.models.config import STEM_KINDS, ViTConfig
from vitc.optim.config import OPTIMIZERS, AdamWConfig, OptimConfig
from vitc.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything one run depends on. Frozen; `checked` refuses what cannot work."""

    name: str = "run"
    """Name of the recipe it came from; the default place of the run is runs/<name>."""
    model: ViTConfig = field(default_factory=ViTConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    optim: OptimConfig = field(default_factory=AdamWConfig)
    """The optimizer, its schedule and the weight average."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Budget, batch, precision, seeds."""

    def problems(self) -> list[str]:
        """Everything wrong with it, one sentence each; empty when it can run."""
        found = [
            f"{name} {value} must be a finite number."
            for name, value in leaves(self).items()
            if any(isinstance(v, float) and not math.isfinite(v) for v in _as_tuple(value))
        ]
        if found:
            return found  # comparisons with nan would let it pass below
        found += [
            *self.model.problems(),
            *self.data.problems(),
            *self.optim.problems(),
            *self.train.problems(),
        ]
        warmup = self.optim.schedule.warmup_epochs
        if warmup is not None and warmup >= self.train.epochs:
            found.append(
                f"optim.schedule.warmup_epochs {warmup} leaves nothing of the "
                f"{self.train.epochs} train.epochs."
            )
        channels = self.data.mean, self.data.std
        for name, values in zip(("mean", "std"), channels, strict=True):
            if values is not None and len(values) != self.model.in_chans:
                found.append(
                    f"data.{name} {values} has {len(values)} entries for "
                    f"model.in_chans {self.model.in_chans}."
                )
        return found

    def checked(self) -> RunConfig:
        """Itself, or a ConfigError that lists every problem at once."""
        found = self.problems()
        if found:
            raise ConfigError("\n".join(found), "Settings and defaults: vitc show RECIPE")
        return self


# Components whose class is chosen by name: (field name, kinds, the class's entry in a saved config)
_KINDS: dict[str, Mapping[str, type[Any]]] = {"optim": OPTIMIZERS, "stem": STEM_KINDS}


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; components that have kinds carry their `kind`."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            kinds = _KINDS.get(f.name, {})
            kind = {"kind": k for k, cls in kinds.items() if type(value) is cls}
            value = {**kind, **to_dict(value)}
        elif isinstance(value, tuple):
            value = list(value)
        out[f.name] = value
    return out


def leaves(config: Any, path: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, in field order: {"model.depth": 12, ...}."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out |= leaves(value, f"{path}{f.name}.")
        else:
            out[f"{path}{f.name}"] = value
    return out


def leaf_types(config: Any, path: str = "") -> dict[str, Any]:
    """The annotated type of every setting, by its dotted name as in `leaves`."""
    hints = typing.get_type_hints(type(config))
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out |= leaf_types(value, f"{path}{f.name}.")
        else:
            out[f"{path}{f.name}"] = hints[f.name]
    return out


def all_leaf_types() -> dict[str, Any]:
    """The same over every kind of optimizer and stem: what may stand on a command line."""
    out: dict[str, Any] = {}
    for optim in OPTIMIZERS.values():
        for stem in STEM_KINDS.values():
            example = RunConfig(model=ViTConfig(stem=stem()), optim=optim())  # type: ignore[call-arg]
            out |= leaf_types(example)
    return out


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def from_dict(values: Mapping[str, Any], default: RunConfig | None = None) -> RunConfig:
    """A RunConfig from nested or dotted values laid over `default`; unknown names are refused."""
    return typing.cast(RunConfig, _overlay(default or RunConfig(), _nest(values), ""))


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.lr": 1, "optim": {"eps": 2}} -> {"optim": {"lr": 1, "eps": 2}}.

    A component's name may stand beside its details: {"optim": "sgd", "optim.lr": 1} ->
    {"optim": {"kind": "sgd", "lr": 1}}.
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = str(key).split(".")
        place = out
        for parent in parents:
            inner = place.setdefault(parent, {})
            if isinstance(inner, str):
                inner = place[parent] = {"kind": inner}
            if not isinstance(inner, dict):
                raise ConfigError(f"{key} is set inside a setting that is also set as a whole.")
            place = inner
        place[leaf] = _merged(place[leaf], value, str(key)) if leaf in place else _inner(value)
    return out


def _inner(value: Any) -> Any:
    return _nest(value) if isinstance(value, Mapping) else value


def _merged(old: Any, new: Any, key: str) -> dict[str, Any]:
    """Two statements about one component, as one table."""
    a, b = ({"kind": v} if isinstance(v, str) else _inner(v) for v in (old, new))
    if not (isinstance(a, dict) and isinstance(b, dict)):
        raise ConfigError(f"{key} is set twice.")
    twice = sorted(k for k in a.keys() & b.keys() if not isinstance(a[k], dict))
    if twice:
        raise ConfigError(f"{key}.{twice[0]} is set twice.")
    both = {k: {**a[k], **b[k]} for k in a.keys() & b.keys()}
    return {**a, **b, **both}


def _overlay(config: Any, values: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(type(config))
    names = [f.name for f in dataclasses.fields(config)]
    changed: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}{key}"
        if key not in names:
            raise unknown("setting", where, [f"{path}{n}" for n in names])
        old = getattr(config, key)
        if not dataclasses.is_dataclass(old):
            changed[key] = _coerce(value, hints[key], where)
            continue
        kinds = _KINDS.get(key, {})
        if isinstance(value, Mapping):
            value = dict(value)
            if kinds and "kind" in value:
                old = with_kind(old, key, value.pop("kind"), where)
            changed[key] = _overlay(old, value, f"{where}.")
        elif dataclasses.is_dataclass(value) and isinstance(value, hints[key]):
            changed[key] = value
        elif kinds and isinstance(value, str):
            changed[key] = with_kind(old, key, value, where)
        else:
            raise ConfigError(f"{where} must be a table of settings, not {value!r}.")
    return dataclasses.replace(config, **changed)


def with_kind(old: Any, key: str, kind: Any, where: str | None = None) -> Any:
    """`old` turned into another kind of the same component; settings both have are kept.

    An optimizer's lr and weight decay mean something else for another one, so they fall back to
    the new class's defaults (the paper's, per batch 2048) and lr_per_batch with them.
    """
    kinds = _KINDS[key]
    if kind not in kinds:
        raise unknown(where or key, str(kind), kinds)
    cls = kinds[kind]
    if type(old) is cls:
        return old
    own = {"lr", "weight_decay"} if key == "optim" else set()
    shared = {f.name for f in dataclasses.fields(old)} & {f.name for f in dataclasses.fields(cls)}
    kept = {n: getattr(old, n) for n in shared - own}
    if key == "optim":
        kept["lr_per_batch"] = 2048
    return cls(**kept)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, or a ConfigError that says what is allowed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in args:
            try:
                return _coerce(value, option, where)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in args:
            return value
        allowed = [str(a) for a in args]
        if isinstance(value, str):
            raise unknown(f"value of {where}:", value, allowed)
    elif origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(v, args[0], where) for v in value)
        if len(args) == len(value):
            return tuple(_coerce(v, a, where) for v, a in zip(value, args, strict=True))
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{where} is {value!r}; it must be {_type_name(hint)}.")


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(a) for a in args)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list of {_type_name(args[0])}"
        return f"{len(args)} values"
    names: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text",
                             bool: "true or false", type(None): "null"}  # fmt: skip
    return names.get(hint, str(hint))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a ConfigError that names the file, line and column."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}.") from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not JSON: {e}.") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not an object with settings.")
    return values


def base_config(name_or_path: str, optim: str | None = None) -> RunConfig:
    """The config behind a recipe's name, a config file or a run folder, before overrides.

    A recipe has its own settings for each optimizer it knows (`optim`); for a file, another
    optimizer starts from that class's defaults.
    """
    from vitc.recipes import RECIPES, get_recipe

    path = Path(name_or_path)
    if name_or_path in RECIPES or not (path.exists() or name_or_path.endswith(".json")):
        return get_recipe(name_or_path, optim)
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise ConfigError(
            f"{name_or_path} is neither a recipe nor a config file nor a run folder.",
            "Recipes: vitc show --list",
        )
    config = from_dict(read_json(file))
    if optim is not None:
        config = dataclasses.replace(config, optim=with_kind(config.optim, "optim", optim))
    return config


def with_model(config: RunConfig, name: str) -> RunConfig:
    """The same run with another model of the zoo; img_size and in_chans of the run are kept."""
    from vitc.models.zoo import model_config

    model = model_config(name)
    kept = {"img_size": config.model.img_size, "in_chans": config.model.in_chans,
            "num_classes": config.model.num_classes}  # fmt: skip
    return dataclasses.replace(config, model=dataclasses.replace(model, **kept))


def with_data(config: RunConfig, data: str) -> RunConfig:
    """The same run on other images: a source's name, or a folder."""
    from vitc.data.config import SOURCES

    kept: dict[str, Any] = {"path": None, "mean": None, "std": None}
    if data in SOURCES:
        kept["path"] = config.data.path if data in NEEDS_PATH else None
        kept["source"] = data
    elif Path(data).is_dir():
        kept |= {"source": guess_source(Path(data)), "path": data}
    else:
        raise unknown("data", data, SOURCES, f"Give a folder, or one of: {', '.join(SOURCES)}.")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **kept))


def guess_source(folder: Path) -> str:
    """Which kind of data set a folder holds, by the names of its files."""
    names = {p.name for p in folder.iterdir()}
    if any(n.startswith("data_batch_1") for n in names) or names & {
        "cifar-10-batches-py", "cifar-10-batches-bin"}:  # fmt: skip
        return "cifar10"
    if {"train", "test", "meta"} <= names or {"train.bin", "test.bin"} <= names or names & {
        "cifar-100-python", "cifar-100-binary"}:  # fmt: skip
        return "cifar100"
    if any("-ubyte" in n for n in names):
        return "idx"
    return "folder"


def load_config(path_or_recipe: str | Path | RunConfig | Callable[..., RunConfig],
                **overrides: Any) -> RunConfig:  # fmt: skip
    """A checked RunConfig from a recipe's name, a JSON file, a run folder or a config.

    Overrides are dotted (`**{"optim.lr": 1e-3}`) or nested (`optim={"lr": 1e-3}`); `model`,
    `optim` and `data` also take a name. Raises ConfigError: unknown name or setting (with a
    suggestion), a value of the wrong type, or settings that cannot work together.
    """
    nested = _nest(overrides)
    names = {k: nested.pop(k) for k in ("model", "optim", "data") if isinstance(nested.get(k), str)}
    optim = names.get("optim")
    if optim is None and isinstance(nested.get("optim"), dict):
        optim = nested["optim"].pop("kind", None)
    if isinstance(path_or_recipe, RunConfig):
        config = path_or_recipe
        if optim is not None:
            config = dataclasses.replace(config, optim=with_kind(config.optim, "optim", optim))
    else:
        config = base_config(str(path_or_recipe), optim)
    if "model" in names:
        config = with_model(config, names["model"])
    if "data" in names:
        config = with_data(config, names["data"])
    return from_dict(nested, config).checked()


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """The settings in which two configs differ: `optim.lr: 0.001 -> 0.002`, in field order."""

    def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, Mapping):
                out |= flat(value, f"{path}{key}.")
            else:
                out[f"{path}{key}"] = value
        return out

    x, y = flat(to_dict(a)), flat(to_dict(b))
    absent = "(absent)"
    return [f"{k}: {x.get(k, absent)} -> {y.get(k, absent)}"
            for k in dict.fromkeys([*x, *y]) if x.get(k, absent) != y.get(k, absent)]  # fmt: skip
