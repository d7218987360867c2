"""Who is compared: recipes x models x stems under each optimizer, as configs of trials."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitc.config import RunConfig, all_leaf_types, leaves
from vitc.errors import ConfigError
from vitc.models.config import ModelConfig, ViTConfig
from vitc.models.stem_config import (
    STEM_KINDS,
    CustomStemConfig,
    PatchifyStemConfig,
    StemConfig,
)
from vitc.models.zoo import MODELS, build_model
from vitc.plugins.consent import customs, with_sources
from vitc.plugins.names import STEM, Custom
from vitc.resolve import load_config, resolve_config
from vitc.study.design import Group

CURVE_POINTS = 4  # evaluations of a trial, at most: one costs about a tenth of an epoch


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a study is asked to compare; the same words for every measure."""

    recipes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """None: each recipe's own."""
    stems: tuple[str, ...] = ()
    """None: each model's own."""
    optims: tuple[str, ...] = ("adamw",)
    reference: str = ""
    """The contender that the others are compared with; "": see `reference_of`."""
    looks: int = 0
    """How often the results are looked at in all; 0: as the study was begun, or once."""
    margin: float | None = None
    """Points below which contenders are called equivalent."""
    control: bool = False
    """The reference is also compared with itself under other seeds (A/A)."""
    controls: tuple[str, ...] = ()
    """Further contenders, of `controls.CONTROL_NAMES`."""
    runs: int = 0
    """Draws, or seeds at each point; 0: as many as there are, or the measure's default."""
    seed: int = 0
    name: str = "study"
    begun: tuple[Group, ...] = ()
    """The groups of the study that is continued: what was measured for them stays."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The measure's own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings of every trial."""


def contenders_of(
    recipes: Sequence[str],
    models: Sequence[str],
    optims: Sequence[str],
    stems: Sequence[str] = (),
    **overrides: Any,
) -> list[Group]:
    """One group a contender and optimizer: recipes x models (none: each recipe's own) x stems.

    `stems` are kinds (`models.config.STEM_KINDS`) or custom classes (my.py:MyStem); where the zoo
    has the model with a stem of that kind, that one is taken: `conv` under vit_p_tiny is the stem
    of vit_c_tiny. Without `stems` every model keeps its own. `overrides` are settings for every
    trial. Raises ConfigError.
    """
    if not recipes or not optims:
        raise ConfigError("A study needs at least one recipe and one optimizer.")
    for name in ("optim", "model"):
        if name in overrides:
            raise ConfigError(
                f"--{name} has no effect in a study.", f"Name contenders with --{name}s."
            )
    twice = [name for name in overrides if name.startswith("model.stem")]
    if stems and twice:
        raise ConfigError(f"--{twice[0]} has no effect with --stems, which chooses the stems.")
    groups = []
    for optim in optims:
        for recipe in recipes:
            for model, stem in itertools.product(models or [""], stems or [""]):
                config = _config(recipe, model, optim, overrides)
                if stem and not isinstance(config.model, ViTConfig):
                    raise ConfigError(f"--stems has no effect with {config.model.name}: no ViT.")
                if stem:
                    config = load_config(config, **{"model.stem": _stem_for(config, stem)})
                config = dataclasses.replace(config, model=with_sources(config.model, recipe))
                kind = stem or overrides.get("model.stem", "")
                label = _label(config, kind if isinstance(kind, str) else "", stems)
                label = label if len(recipes) == 1 else f"{recipe} {label}"
                groups.append(Group(contender=label, optim=optim, config=config))
    for model_config in {g.config.model for g in groups}:  # before a budget is spent on them
        if any(customs(model_config)):
            build_model(model_config, 2)
    return groups


def _config(recipe: str, model: str, optim: str, settings: Mapping[str, Any]) -> RunConfig:
    """A contender's config. Raises ConfigError, also for a setting that only others have."""
    named = {"model": model} if model else {}
    try:
        return load_config(recipe, optim=optim, **named, **settings)
    except ConfigError as error:
        kept = {n: settings[n] for n in ("model", "data") if n in settings}
        bare = resolve_config(recipe, optim=optim, **named, **kept)
        lacking = _lacking(bare, settings)
        if not lacking:
            raise
        raise ConfigError(
            f"{lacking[0]} has no effect with contender {bare.model.name} under {optim}, and a "
            "setting of a study holds for every contender.",
            "Leave it out, or name only contenders that have it: vitc study hparams takes "
            "--models, --stems and --optims.",
        ) from error


def _lacking(config: RunConfig, settings: Mapping[str, Any]) -> list[str]:
    """Those of the settings that other kinds of model, stem or optimizer have."""
    own = set(leaves(config))
    if isinstance(config.model, ViTConfig):
        own.add("model.stem")
        kind = settings.get("model.stem")
        if isinstance(kind, str):
            own = {n for n in own if not n.startswith("model.stem.")}
            own |= leaves(STEM_KINDS.get(kind, CustomStemConfig)(), "model.stem.").keys()
    everywhere = {*all_leaf_types(), "model.stem"}
    return [n for n in settings if n in everywhere and n not in own]


def reference_of(groups: Sequence[Group], reference: str) -> str:
    """The contender to compare with: this one; else the first with a patchify stem, or the first.

    Raises ConfigError: it is not there.
    """
    contenders = list(dict.fromkeys(g.contender for g in groups))
    if not reference:
        plain = (g.contender for g in groups if _is_plain(g.config.model))
        reference = next(plain, contenders[0])
    if reference not in contenders:
        raise ConfigError(
            f"The reference {reference!r} is not a contender.", f"Known: {', '.join(contenders)}."
        )
    return reference


def _is_plain(model: ModelConfig) -> bool:
    return isinstance(model, ViTConfig) and type(model.stem) is PatchifyStemConfig


def again(groups: Sequence[Group], reference: str) -> list[Group]:
    """The A/A control: the reference against itself with other seeds."""
    return [
        dataclasses.replace(g, contender=f"{reference} again", seed_shift=500_000)
        for g in groups
        if g.contender == reference
    ]


def twin_of(model: ModelConfig) -> ModelConfig | None:
    """The ViT_C of a ViT_P in the zoo, and the other way round."""
    kind = {"vit_p_": "vit_c_", "vit_c_": "vit_p_"}.get(model.name[:6], "")
    return MODELS.get(kind + model.name[6:])


def _stem_for(config: RunConfig, stem: str) -> StemConfig | str:
    """A stem of this kind as the zoo gives it to the model or its twin; else the word itself."""
    for model in (config.model, twin_of(config.model)):
        if isinstance(model, ViTConfig) and type(model.stem) is STEM_KINDS.get(stem):
            return model.stem
    return stem


def _label(config: RunConfig, stem: str, stems: Sequence[str]) -> str:
    """A contender's name: its model's, and its stem's where that was chosen, be it for all."""
    chosen = getattr(config.model, "stem", None)
    if isinstance(chosen, CustomStemConfig):
        own = chosen.custom
        same = [s for s in stems if Custom(STEM, s).what == own.what]
        stem = own.what if len(same) < 2 else f"{Path(own.place).stem}:{own.what}"
    return f"{config.model.name}+{stem}" if stem else config.model.name


def one_precision(groups: list[Group]) -> list[Group]:
    """Precision auto decided once, by the first group's model, for all of them."""
    from vitc.training.device import pick_device
    from vitc.training.probe import faster_precision

    undecided = [g for g in groups if g.config.train.precision == "auto"]
    if not undecided:
        return groups
    first = undecided[0].config
    try:
        device = pick_device(first.train.device)
    except ConfigError as error:
        raise ConfigError(
            f"{error.message} So which precision is faster there cannot be measured.",
            "Say --train.precision bf16 (or fp32) for trials that run on other machines.",
        ) from error
    precision, _ = faster_precision(first, device)
    return [
        g.with_config(load_config(g.config, **{"train.precision": precision}))
        if g in undecided
        else g
        for g in groups
    ]


def count_classes(config: RunConfig) -> int:
    """Classes of the data a run would see; opens it."""
    from vitc.data.dataset import open_data

    return len(open_data(config.data, config.model.in_chans).classes)


def for_study(config: RunConfig) -> RunConfig:
    """The config as a trial: on CPU one thread, as many trials share the cores; and evaluated
    every second epoch at most, four times in all, so that the time goes into training."""
    from vitc.training.device import pick_device

    named = config.train.device  # another engine may have it, though it is not here
    device = pick_device().type if named == "auto" else named
    threads = 1 if device == "cpu" else config.train.threads
    epochs = config.train.epochs
    every = max(config.train.eval_every_epochs, min(2, epochs), math.ceil(epochs / CURVE_POINTS))
    return load_config(
        config,
        **{"train.device": device, "train.threads": threads, "train.eval_every_epochs": every},
    )
