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
from vitc.errors import ConfigError, VitcError
from vitc.models.config import ModelConfig, ViTConfig
from vitc.models.stem_config import (
    STEM_KINDS,
    ConvStackConfig,
    CustomStemConfig,
    PatchifyStemConfig,
    StemConfig,
    carried,
)
from vitc.models.zoo import MODELS, build_model
from vitc.optim.optimizers import OPTIMIZERS, CustomOptimizerConfig
from vitc.optim.schedule import CustomScheduleConfig
from vitc.plugins.consent import customs, with_sources
from vitc.plugins.names import STEM, Custom
from vitc.resolve import load_config, resolve_config
from vitc.study.design import Group

OWN_OPTIM = "own optimizer"  # of groups of which some have another optimizer than the study's
CURVE_POINTS = 4  # evaluations of a trial, at most: one costs about a tenth of an epoch


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a study is asked to compare; the same words for every measure."""

    recipes: tuple[str, ...] = ()
    contenders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """In place of models and stems: the contenders by name, each with settings of its own."""
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


def groups_asked(request: Request) -> list[Group]:
    """One group a contender and optimizer of a request, without its controls. Raises ConfigError.

    Contenders with settings of their own take the rest from the recipe, lr and weight decay of a
    custom optimizer too. Where one of them names an optimizer, all are compared with each other.
    """
    if not request.contenders:
        return contenders_of(
            request.recipes, request.models, request.optims, request.stems, **request.settings
        )
    if request.models or request.stems or len(request.recipes) != 1:
        raise ConfigError("Contenders by name need one recipe, and neither models nor stems.")
    own_optims = any("optim" in own for own in request.contenders.values())
    if own_optims and len(request.optims) > 1:
        raise ConfigError("Contenders with optimizers of their own need a single --optims.")
    groups = []
    for optim, (name, own) in itertools.product(request.optims, request.contenders.items()):
        config = _own_config(request.recipes[0], optim, own, request.settings)
        groups.append(
            Group(contender=name, optim=OWN_OPTIM if own_optims else optim, config=config)
        )
    _check(groups)
    return groups


def _own_config(
    recipe: str, optim: str, own: Mapping[str, Any], settings: Mapping[str, Any]
) -> RunConfig:
    """The recipe with a contender's own settings over those of all. Raises ConfigError."""
    rest = {n: v for n, v in {**settings, **own}.items() if n not in ("model", "optim")}
    chosen = own.get("optim", optim)
    if ":" in chosen:  # what suits it is not known: the draws are around the recipe's
        base = load_config(recipe, optim=optim).optim
        kept = ("lr", "weight_decay", "lr_per_batch")
        rest = {**{f"optim.{n}": getattr(base, n) for n in kept}, **rest}
    stem = rest.get("model.stem")
    if isinstance(stem, str):
        bare = {n: v for n, v in rest.items() if n.partition(".")[0] == "data"}
        rest["model.stem"] = _stem_for(_config(recipe, own.get("model", ""), optim, bare), stem)
    config = _config(recipe, own.get("model", ""), chosen, rest)
    return dataclasses.replace(config, model=with_sources(config.model, recipe))


def _check(groups: Sequence[Group]) -> None:
    """Build what is custom, and ask its schedules for a rate, before a budget is spent on them.

    Raises ConfigError.
    """
    if any(group.config.train.patience is not None for group in groups):
        raise ConfigError(
            "train.patience keeps the weights that are best on validation; a study compares the "
            "last epochs of runs of one length.",
            "Leave it out.",
        )
    for model in {g.config.model for g in groups}:
        if any(customs(model)):
            build_model(model, 2)
    for optim in {g.config.optim for g in groups}:
        if isinstance(optim.schedule, CustomScheduleConfig):
            _try_schedule(optim.schedule)
        if isinstance(optim, CustomOptimizerConfig):
            from torch import nn, zeros

            optim.build([{"params": [nn.Parameter(zeros(2, 2))], "weight_decay": 0.0}], False)


def _try_schedule(schedule: CustomScheduleConfig) -> None:
    for step in (0, 1, 2):
        try:
            rate = schedule.lr(step, peak=1.0, epochs=1, steps_per_epoch=2)
        except VitcError:
            raise
        except Exception as error:
            raise ConfigError(
                f"The schedule {schedule.custom.what} fails at step {step} of 2: {error!r}."
            ) from error
        if not (math.isfinite(rate) and rate >= 0):
            raise ConfigError(
                f"The schedule {schedule.custom.what} gives {rate} at step {step} of 2; it must be "
                "a share of the peak, 0 or more."
            )


def differ_by_design(request: Request) -> tuple[str, ...]:
    """What of `design.MUST_AGREE` contenders set for themselves: the question is about that."""
    own = {name for settings in request.contenders.values() for name in settings}
    parts = {"schedule": "optim.schedule", "ema": "optim.ema"}
    chosen = [str(settings.get("optim")) for settings in request.contenders.values()]
    if any(OPTIMIZERS[o].schedule_free for o in chosen if o in OPTIMIZERS):
        own |= {"optim.schedule", "optim.ema"}
    return tuple(n for n, part in parts.items() if any(f"{o}.".startswith(f"{part}.") for o in own))


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
                    config = _with_stem(config, stem)
                config = dataclasses.replace(config, model=with_sources(config.model, recipe))
                kind = stem or overrides.get("model.stem", "")
                label = _label(config, kind if isinstance(kind, str) else "", stems)
                label = label if len(recipes) == 1 else f"{recipe} {label}"
                groups.append(Group(contender=label, optim=optim, config=config))
    _check(groups)
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


def reference_of(groups: Sequence[Group], reference: str, begun: Sequence[Group] = ()) -> str:
    """The contender to compare with: this one; else the first with a patchify stem, or the first.

    `begun`: the groups of the study that is in the folder already. Raises ConfigError: the
    reference is not there.
    """
    contenders = list(dict.fromkeys(g.contender for g in groups))
    if not reference:
        plain = (g.contender for g in groups if _is_plain(g.config.model))
        reference = next(plain, contenders[0])
    if reference not in contenders:
        known = f"Contenders: {', '.join(contenders)}."
        if reference in {g.contender for g in begun}:
            raise ConfigError(
                f"The folder holds another study: its reference, {reference}, is no contender now.",
                f"{known} Give another --out, or the contenders it was started with.",
            )
        raise ConfigError(f"The reference {reference!r} is not a contender.", known)
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
    """A stem of this kind as the zoo gives it to the model or its twin, one of convolutions with
    the channels and strides that it gives another; else the word itself."""
    kind = STEM_KINDS.get(stem)
    models = [m for m in (config.model, twin_of(config.model)) if isinstance(m, ViTConfig)]
    for model in models:
        if type(model.stem) is kind:
            return model.stem
    if kind is not None and issubclass(kind, ConvStackConfig):
        for model in models:
            if isinstance(model.stem, ConvStackConfig):
                return kind(**carried(model.stem, kind))
    return stem


def _with_stem(config: RunConfig, stem: str) -> RunConfig:
    """The config with a stem of this kind. Raises ConfigError: its tokens would be others."""
    found = load_config(config, **{"model.stem": _stem_for(config, stem)})
    assert isinstance(config.model, ViTConfig)
    assert isinstance(found.model, ViTConfig)
    before, after = config.model.stem.reduction, found.model.stem.reduction
    if before is not None and after is not None and before != after:
        raise ConfigError(
            f"--stems {stem} reduces the size of images {after} times, the stem of "
            f"{config.model.name} {before} times: the contenders would differ in their tokens.",
            "Name the stem with its strides as a contender of its own (docs/notebook.md).",
        )
    return found


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
            "Set --train.precision bf16 (or fp32) for trials that run on other machines.",
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
    """The config as a trial: on CPU one thread, as many trials share the cores; evaluated every
    second epoch at most, four times in all, so that the time goes into training; and compiled only
    if that is asked for, as some trials would be and others not."""
    from vitc.training.device import pick_device

    named = config.train.device  # another engine may have it, though it is not here
    device = pick_device().type if named == "auto" else named
    threads = 1 if device == "cpu" else config.train.threads
    epochs = config.train.epochs
    every = max(config.train.eval_every_epochs, min(2, epochs), math.ceil(epochs / CURVE_POINTS))
    return load_config(
        config,
        **{
            "train.device": device,
            "train.threads": threads,
            "train.eval_every_epochs": every,
            "train.compile": config.train.compile is True,
        },
    )
