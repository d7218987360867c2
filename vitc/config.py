"""RunConfig = model + data + optim + train: load, override, check, save under a schema.

Saved JSON carries `"schema"`. A setting that is renamed, moved or retired later goes into `CHANGES`
under a new schema, and `upgrade` brings every older file up to date. Free of torch.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
import typing
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vitc.data.config import DataConfig
from vitc.errors import ConfigError, VitcError, refuse, unknown
from vitc.files import read_json
from vitc.models.config import MODEL_KINDS, CNNConfig, ModelConfig, ViTConfig
from vitc.models.stem_config import STEM_KINDS, CustomStemConfig, carried
from vitc.optim.config import OptimConfig
from vitc.optim.optimizers import OPTIMIZERS, AdamWConfig, CustomOptimizerConfig, switched
from vitc.optim.schedule import SCHEDULES, CustomScheduleConfig
from vitc.plugins.names import STEM, Custom
from vitc.settings import Settings, coerce, table
from vitc.training.config import InitConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything one run depends on. Frozen; `checked` refuses what cannot work."""

    name: str = "run"
    """Name of the recipe it came from; the default place of the run is runs/<name>."""
    model: ModelConfig = field(default_factory=ViTConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    optim: OptimConfig = field(default_factory=AdamWConfig)
    """The optimizer, its schedule and the weight average."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Budget, batch, precision, seeds."""
    init: InitConfig = field(default_factory=InitConfig)
    """Weights to start from."""

    def problems(self) -> list[str]:
        """Everything wrong with it, one sentence each; empty when it can run."""
        found = []
        for name, value in leaves(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(v) for v in numbers if isinstance(v, float)):
                found.append(f"{name} {value} must be a finite number.")
            if not all(-(2**63) <= v < 2**63 for v in numbers if isinstance(v, int)):
                found.append(f"{name} {value} must be an integer of 64 bits.")
        if found:
            return found  # comparisons with nan would let it pass below
        from vitc.data.sources import source_problems  # late: it imports numpy

        found += [
            *self.model.problems(),
            *self.data.problems(),
            *source_problems(self.data),
            *self.optim.problems(),
            *self.train.problems(),
            *self.init.problems(),
        ]
        found += self.optim.schedule.misfits(self.train.epochs)
        if self.data.augment.lighting > 0 and self.model.in_chans == 1:
            found.append("data.augment.lighting needs colours, but model.in_chans is 1.")
        if self.optim.layer_decay < 1 and "backbone" in self.train.freeze:
            found.append(
                f"optim.layer_decay {self.optim.layer_decay} has no effect with train.freeze "
                f"backbone: only the head is trained."
            )
        if self.train.cache_features:
            found += self._cache_problems()
        for name, values in (("mean", self.data.mean), ("std", self.data.std)):
            if values is not None and len(values) != self.model.in_chans:
                found.append(
                    f"data.{name} {values} has {len(values)} entries for "
                    f"model.in_chans {self.model.in_chans}."
                )
        return found

    @property
    def cached_parts(self) -> int:
        """How many of a CNN's stem and stages, from the input, run once on each training image
        (`train.cache_features`); 0: every step takes images."""
        return cached_parts(self.model, self.train.freeze) if self.train.cache_features else 0

    def _cache_problems(self) -> list[str]:
        """Why `train.cache_features` cannot be."""
        found = []
        if not isinstance(self.model, CNNConfig):
            found.append(f"train.cache_features needs a CNN of the zoo; {self.model.name} is none.")
        elif not self.cached_parts:
            found.append(
                "train.cache_features needs frozen layers from the input on: --train.freeze stem "
                "stages.0, or more of them."
            )
        augment, optim = self.data.augment, self.optim
        without_effect = {
            "data.augment.crop": augment.crop != "none",
            "data.augment.flip": augment.flip,
            "data.augment.policy": augment.policy != "none",
            "data.augment.jitter": any(augment.jitter),
            "data.augment.lighting": augment.lighting,
            "data.augment.erase": augment.erase,
            "data.augment.mixup_alpha": augment.mixup_alpha,
            "data.augment.cutmix_alpha": augment.cutmix_alpha,
        }
        for name in (name for name, given in without_effect.items() if given):
            off = "none" if name.endswith(("crop", "policy")) else "0"
            off = "0 0 0" if name.endswith("jitter") else off
            found.append(
                f"{name} cannot take effect with train.cache_features, which keeps the features "
                f"of each image as it is: use --{name} {off}."
            )
        refused = {
            "train.compile": self.train.compile,
            "train.precise_bn_images": self.train.precise_bn_images,
            "a schedule-free optimizer": optim.schedule_free,
        }
        found += [
            f"{name} cannot be combined with train.cache_features."
            for name, given in refused.items()
            if given
        ]
        return found

    def checked(self) -> RunConfig:
        """Itself, or a ConfigError that lists every problem at once."""
        refuse(self.problems(), "Settings and defaults: vitc show RECIPE")
        return self


def cached_parts(model: ModelConfig, freeze: Collection[str]) -> int:
    """How many of a CNN's stem and stages `freeze` names, from the input on; 0 of other models."""
    if not isinstance(model, CNNConfig):
        return 0
    parts = ["stem", *(f"stages.{i}" for i in range(len(model.depths)))]
    frozen = [bool({part, part.partition(".")[0], "backbone"} & set(freeze)) for part in parts]
    return [*frozen, False].index(False)


# Components with several kinds, chosen by name.
_KINDS: dict[str, Mapping[str, type[Any]]] = {
    "optim": OPTIMIZERS,
    "schedule": SCHEDULES,
    "stem": STEM_KINDS,
    "model": MODEL_KINDS,
}
CUSTOM_PARTS = ("model", "model.stem", "optim", "optim.schedule")  # can be a class of the user's
_CUSTOM: dict[str, Any] = {
    "optim": CustomOptimizerConfig,
    "schedule": CustomScheduleConfig,
    "stem": CustomStemConfig,
}


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; components that have kinds carry their `kind`."""
    out: dict[str, Any] = {}
    for name in _names(config.__class__):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            kinds = _KINDS.get(name, {})
            own = [k for k, cls in kinds.items() if type(value) is cls]
            value = {**({"kind": own[0]} if own else {}), **to_dict(value)}
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Settings):
            value = dict(value)
        out[name] = value
    return out


def _settings(config: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted name, its component, the name there) of every setting, in field order."""
    for name in _names(config.__class__):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", config, name


def leaves(config: Any, path: str = "") -> dict[str, Any]:
    """Every setting by its dotted name: {"model.depth": 12, ...}; tables by their entries."""
    out: dict[str, Any] = {}
    for name, component, leaf in _settings(config, path):
        value = getattr(component, leaf)
        if isinstance(value, Settings):
            out |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            out[name] = value
    return out


def setting_docs(config: Any) -> dict[str, str]:
    """What every setting means, by its dotted name: the string below its field."""
    return {name: _docs(part.__class__).get(leaf, "") for name, part, leaf in _settings(config)}


@cache
def _docs(component: Hashable) -> dict[str, str]:
    about: dict[str, str] = {}
    for cls in reversed(component.__mro__[:-1]):  # type: ignore[attr-defined]
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for node, after in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                about[ast.unparse(node.target)] = " ".join(ast.literal_eval(after.value).split())
    return about


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    """The annotated types of a class's fields; slow to read, and the same every time."""
    types = typing.get_type_hints(cls)
    return {f.name: types[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def leaf_types(config: Any, path: str = "") -> dict[str, Any]:
    """The annotated type of every setting, by its dotted name."""
    return {name: _hints(part.__class__)[leaf] for name, part, leaf in _settings(config, path)}


@cache
def all_leaf_types() -> dict[str, Any]:
    """The same over every kind of every component: the settings of the command line."""
    out = leaf_types(RunConfig())
    for path in ("optim", "optim.schedule", "model", "model.stem"):
        for kind in _KINDS[path.rpartition(".")[2]].values():
            out |= leaf_types(kind(), f"{path}.")
    return out


def from_dict(values: Mapping[str, Any], default: RunConfig | None = None) -> RunConfig:
    """A RunConfig from nested or dotted values laid over `default`; unknown names are refused.

    A component's name may come with its details: {"optim": "sgd", "optim.lr": 0.5}.
    """
    return typing.cast(RunConfig, _overlay(default or RunConfig(), flat_values(values), ""))


def flat_values(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"optim.lr": 1, "optim": {"eps": 2}} -> {"optim.lr": 1, "optim.eps": 2}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}{key}"
        inside = isinstance(value, Mapping) and value  # an empty table still names something
        new = flat_values(value, f"{name}.") if inside else {name: value}
        if not out.keys().isdisjoint(new):
            raise ConfigError(f"{min(out.keys() & new.keys())} is set twice.")
        out |= new
    return out


def _overlay(config: Any, flat: Mapping[str, Any], path: str) -> Any:
    hints = _hints(config.__class__)
    groups: dict[str, dict[str, Any]] = {}  # first part of the name -> {rest, or "": value}
    for name, value in flat.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    changed: dict[str, Any] = {}
    for head, group in groups.items():
        where = f"{path}{head}"
        if head not in hints:
            raise _unknown_setting(where, config, path)
        old = getattr(config, head)
        if dataclasses.is_dataclass(old):
            changed[head] = _component(old, head, group, hints[head], where)
        elif hints[head] is Settings:
            changed[head] = table(old, group, where)
        elif set(group) == {""}:
            changed[head] = coerce(group[""], hints[head], where)
        else:
            raise ConfigError(f"{where} is one value, not a table of settings.")
    return dataclasses.replace(config, **changed)


def _component(old: Any, key: str, group: dict[str, Any], hint: Any, where: str) -> Any:
    """`old` with the values of `group`; "" holds a whole component, or the name of its kind."""
    details = {name: value for name, value in group.items() if name}
    if "" in group:
        whole = group[""]
        if whole == {}:
            pass
        elif dataclasses.is_dataclass(whole) and isinstance(whole, hint):
            old = whole
        elif key in _KINDS and isinstance(whole, str):
            old = with_kind(old, key, whole, where)
        elif key == "stem" and isinstance(whole, type):
            raise ConfigError(
                f"{where} is the class {whole.__name__}; a run, to be repeated, needs its file.",
                f"Name it as 'path/to/file.py:{whole.__name__}'; create_model takes the class.",
            )
        else:
            raise ConfigError(f"{where} must be a table of settings, not {whole!r}.")
    if key in _KINDS and "kind" in details:
        old = with_kind(old, key, details.pop("kind"), where)
    return _overlay(old, details, f"{where}.")


def _unknown_setting(where: str, config: Any, path: str) -> ConfigError:
    """Unknown here: perhaps it belongs to another kind, to another place, or is misspelt."""
    everywhere = all_leaf_types()
    component, leaf = path[:-1], where.rpartition(".")[2]
    if where in everywhere:  # so it exists with another kind of this component
        kinds = _KINDS[component.rpartition(".")[2]]
        mine = next((k for k, cls in kinds.items() if type(config) is cls), type(config).__name__)
        owner = next(
            k for k, cls in kinds.items() if any(f.name == leaf for f in dataclasses.fields(cls))
        )
        return ConfigError(
            f"{where} has no effect with {component} {mine!r}; it is a setting of {owner!r}.",
            f"Choose that with --{component} {owner}, or leave {where} out.",
        )
    elsewhere = [name for name in everywhere if name.rpartition(".")[2] == leaf]
    if elsewhere:
        return ConfigError(f"Unknown setting {where!r}. Did you mean {elsewhere[0]!r}?")
    here = [f"{path}{name}" for name in _names(config.__class__)]
    return unknown("setting", where, [*here, *everywhere], f"Known there: {', '.join(here)}.")


@cache
def _names(cls: Hashable) -> tuple[str, ...]:
    """The names of a class's fields, in their order."""
    return tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]


def with_kind(old: Any, key: str, kind: Any, where: str | None = None) -> Any:
    """`old` turned into another kind of the same component, or a custom class (FILE.py:Class).

    Settings that both have are kept; of optimizers and stems, those that mean the same.
    """
    kinds = _KINDS[key]
    custom = _CUSTOM.get(key)
    if custom and isinstance(kind, str) and (":" in kind or kind.endswith(".py")):
        new: Any = custom(source=kind)
    elif kind in kinds:
        cls = kinds[kind]
        if type(old) is cls:
            return old
        if key == "stem":
            return cls(**carried(old, cls))
        new = cls()
    else:
        raise unknown(where or key, str(kind), kinds)
    if key == "optim":
        return switched(old, new)
    shared = {*_names(old.__class__)} & {*_names(new.__class__)}
    return dataclasses.replace(new, **{n: getattr(old, n) for n in shared - {"source", "sha256"}})


# -- saved configs and their schema ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How settings of the schema before are called in this one, by their dotted names."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Old name -> new name; the name of a component moves all its settings."""
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    """Name (the new one) -> old value -> new value."""
    retired: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Name -> the values that mean what is done today without the setting; a file with another
    value cannot be repeated. Empty: the setting never changed a result, so any value will do."""


SCHEMA = 2
# Schema -> what it changed; 1: files without a schema.
CHANGES: dict[int, Changes] = {
    2: Changes(
        values={
            "data.source": {"outside": "custom"},
            "model.stem.kind": {"outside": "custom"},
        }
    )
}


def upgrade(values: Mapping[str, Any], schema: int | None = None) -> dict[str, Any]:
    """Saved settings, nested or dotted, under today's names: dotted, with today's `schema`.

    `schema`: that of the values where they do not carry it themselves; without any it is 1.
    Raises ConfigError: a newer schema, or a retired setting that changed results.
    """
    flat = flat_values(values)
    found = flat.pop("schema", 1 if schema is None else schema)
    if type(found) is not int or found < 1:
        raise ConfigError(f"schema is {found!r}; it must be an integer of at least 1.")
    if found > SCHEMA:
        raise ConfigError(
            f"The settings are of schema {found}; this version of vitc reads schemas up to "
            f"{SCHEMA}.",
            "Use the version of vitc that wrote them, or a newer one.",
        )
    for number in range(found + 1, SCHEMA + 1):
        flat = _changed(flat, CHANGES[number])
    return {"schema": SCHEMA, **flat}


def _changed(flat: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in flat.items():
        same = changes.retired.get(name)
        if same is not None:
            if same and value not in same:
                raise ConfigError(
                    f"{name} is {value!r}, but the setting was retired; what is done today is that "
                    f"of {' or '.join(map(repr, same))}.",
                    "Use the version of vitc that wrote the file.",
                )
            continue
        moved = [old for old in changes.renamed if name == old or name.startswith(f"{old}.")]
        if moved:
            old = max(moved, key=len)
            name = changes.renamed[old] + name[len(old) :]
        single = isinstance(value, str | int | float)
        out[name] = changes.values.get(name, {}).get(value, value) if single else value
    return out


def to_saved(config: RunConfig) -> dict[str, Any]:
    """What is written to disk: `to_dict` under its schema."""
    return {"schema": SCHEMA, **to_dict(config)}


def from_saved(values: Mapping[str, Any], where: object) -> RunConfig:
    """The config that was saved as `values`, of this or an older schema.

    Raises ConfigError, which names `where`: a newer schema, or a setting that neither today's
    components nor `CHANGES` know.
    """
    try:
        flat = upgrade(values)
        del flat["schema"]
        return from_dict(flat)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", error.hint) from error


def read_config(path: Path, error: type[VitcError] = ConfigError) -> RunConfig:
    """The config in a file, or in the folder of a run. Raises ConfigError, which names the file;
    `error` where it cannot be read."""
    file = path / "config.json" if path.is_dir() else path
    return from_saved(read_json(file, error), file)


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """The settings in which two configs differ: `optim.lr: 0.001 -> 0.002`, in field order.

    A custom class in a moved file is the same: its hash identifies it.
    """
    x, y = flat_values(to_dict(a)), flat_values(to_dict(b))
    for part in CUSTOM_PARTS:
        source, sha256 = f"{part}.source", f"{part}.sha256"
        same_file = x.get(sha256) and x.get(sha256) == y.get(sha256)
        if same_file and Custom(STEM, x[source]).what == Custom(STEM, y[source]).what:
            y[source] = x[source]
    absent = "(absent)"
    return [
        f"{k}: {x.get(k, absent)} -> {y.get(k, absent)}"
        for k in dict.fromkeys([*x, *y])
        if x.get(k, absent) != y.get(k, absent)
    ]
