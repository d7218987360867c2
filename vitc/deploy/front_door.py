"""From images, a recipe or a run to a trained model and its page: `vitc.train` and `vitc train`."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig, all_leaf_types, flat_values
from vitc.errors import ConfigError, VitcError, suggest_beside
from vitc.machine import several_processes
from vitc.progress import show_lines
from vitc.recipes import RECIPES
from vitc.resolve import check_arguments, load_config, what_is
from vitc.settings import coerce
from vitc.wording import read_duration

if TYPE_CHECKING:
    from vitc.deploy.folds import Folds
    from vitc.training.config import Start
    from vitc.training.loop import RunResult

FOLDS_DECIDE = ("data.folds", "data.fold", "data.val_fraction")  # settings that --folds overrides


@dataclass(frozen=True)
class Plan:
    """What will be trained, and where.

    `notes`: why it is so, for the run's events.log and the reader; `remarks` for the reader alone.
    `images`: images were named, so that settings are chosen for them.
    """

    config: RunConfig
    out: Path
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    images: bool = False
    group: str = ""
    """A data.group to ask about: see `Proposal.group`."""
    changes: bool = False
    """A run was named, whose learning rate and length may change: see `vitc.runs.legs`."""
    choosing: float = 0.0
    """Seconds that choosing settings took; 0: none were chosen."""
    folds: Folds | None = None
    """Several runs, whose folder is `out`."""


def train(
    config_or_recipe: RunConfig | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    budget: str | float | timedelta | None = None,
    start: Start = "auto",
    overwrite: bool = False,
    allow_changed_data: bool = False,
    folds: int | None = None,
    seeds: int | None = None,
    **overrides: Any,
) -> RunResult:
    """Train on images with settings chosen for them, or a recipe, config file or RunConfig; resume
    a run, or train a finished one longer, for `budget` or for so many `train.epochs` more.

    Images (a folder, a pack, a list, shards) are named in place of a recipe: model, size and
    schedule are chosen for the best classifier in `budget` ("6m", "1h30m", or seconds; None: at
    most 30 minutes), and the run ends with its page: see RunResult. `start`: from "pretrained"
    weights, from "scratch", or "auto": pretrained where some are here (docs/pretrained.md).

    `folds`: as many runs, each validated on another part of the images, times `seeds`, in a folder
    that is the classifier of all of them; the evaluation is of all images, each by the models that
    it was held out from. `budget` is of all runs together, choosing and their page included.

    The run goes to `out` (default runs/<name>; runs/photos_2 where runs/photos is trained longer).
    Overrides are dotted (`**{"optim.lr": 1e-3}`) or nested. An unfinished run of the same config in
    `out` is resumed, with other images than it began with only if `allow_changed_data`; `overwrite`
    discards it. Raises ConfigError, DataError, and RunError and its subclasses.
    """
    check_arguments(overrides, signature(train).parameters.keys() - {"overrides"})
    seconds = None if budget is None else read_duration(budget)
    times = fold_times(folds, seeds, overwrite, allow_changed_data)
    plan = plan_training(config_or_recipe, out, seconds, overrides, overwrite, start, times)
    show_lines("What is trained, and why", [*plan.remarks, *plan.notes])
    return train_plan(plan, overwrite=overwrite, allow_changed_data=allow_changed_data)


def fold_times(
    folds: int | None, seeds: int | None, overwrite: bool, allow_changed_data: bool
) -> tuple[int, int] | None:
    """How many folds and seeds; None: no folds. Raises ConfigError: too few of them, or options
    that have no effect."""
    if folds is None:
        if seeds is None:
            return None
        raise ConfigError(
            f"--seeds {seeds} has no effect without --folds.",
            "For example: vitc train FOLDER --folds 5 --seeds 2; another seed: --train.seed 1.",
        )
    for option in (overwrite and "overwrite", allow_changed_data and "allow-changed-data"):
        if option:
            raise ConfigError(
                f"--{option} has no effect with --folds.",
                "Choose another --out, or remove runs from the folder of folds.",
            )
    seeds = 1 if seeds is None else seeds
    if folds < 2 or seeds < 1:
        raise ConfigError(
            f"--folds {folds} --seeds {seeds}: there must be 2 folds or more, and 1 seed or more.",
            "For example: vitc train FOLDER --folds 5 --seeds 2",
        )
    return folds, seeds


def _folds_plan(
    what: RunConfig | str | os.PathLike[str],
    out: Path | None,
    budget: float | None,
    settings: Mapping[str, Any],
    start: str,
    times: tuple[int, int],
) -> Plan:
    from vitc.deploy.folds import plan_folds
    from vitc.training.auto import name_of

    if isinstance(what, RunConfig) or what_is(os.fspath(what)) != "images":
        raise ConfigError("--folds needs images.", "For example: vitc train FOLDER --folds 5")
    if several_processes():
        raise ConfigError(
            "--folds trains run after run in one process; torchrun has started several.",
            "Leave out torchrun, or --folds.",
        )
    if idle := [name for name in FOLDS_DECIDE if name in settings]:
        raise ConfigError(
            f"--{idle[0]} {settings[idle[0]]} has no effect with --folds {times[0]}: each image "
            "validates once.",
            "Leave it out, or train a single run without --folds.",
        )
    images = Path(what)
    place = out or Path("runs") / f"{name_of(images)}_folds"
    folds, notes, group = plan_folds(images, place, times, budget, start, settings)
    return Plan(
        folds.config, place, tuple(notes), _on_group(group), images=True, group=group, folds=folds
    )


def plan_training(
    what: RunConfig | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    budget: float | None,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    start: str = "auto",
    times: tuple[int, int] | None = None,
) -> Plan:
    """What `train` trains. `times`: see `fold_times`. Takes seconds for images, on which steps are
    timed."""
    from vitc.data.sources import SUFFIXES
    from vitc.data.sources.base import is_pattern

    place = None if out is None else Path(out)
    if times is not None:
        return _folds_plan(what, place, budget, _typed(settings), start, times)
    name = None if isinstance(what, RunConfig) else os.fspath(what)
    kind = None if name is None else what_is(name)
    if kind == "images" and name is not None:
        own = Path(name), place, budget, _typed(settings), overwrite, start
        if several_processes():
            from vitc.training.parallel import joined

            with joined() as procs:  # the first one measures and chooses for all
                return procs.follow(lambda: _images_plan(*own, procs.world))
        return _images_plan(*own)
    if name is not None and kind == "folds":
        from vitc.deploy.folds import Folds, page_command

        again = page_command(Folds.read(Path(name)))
        raise ConfigError(
            f"{name} is a folder of folds: they are trained by the name of their images.",
            f"Resume them, or add seeds: {again}",
        )
    if name is not None and is_pattern(name) and name.endswith(SUFFIXES):
        raise ConfigError(
            f"{name!r} is a pattern; settings are chosen for one folder or file.",
            f"Name a recipe: vitc train cifar10_vit_c --data {shlex.quote(name)}; or pack the "
            f"images: vitc data pack {shlex.quote(name)} OUT.vitc, then vitc train OUT.vitc.",
        )
    if start != "auto" and (name is None or kind is not None):
        raise ConfigError(
            f"--start has no effect here: {name or 'a config'} is not a folder of images.",
            "Name the weights with --init, for example --init pretrained:effnet_lite0.",
        )
    if name is not None and kind == "run" and not overwrite and place != Path(name):
        from vitc.runs.folder import Run
        from vitc.training.longer import longer

        finished = Run(Path(name)).status == "done"
        if budget is not None or (finished and "train.epochs" in flat_values(settings)):
            config, where, notes = longer(Path(name), budget, settings, place)
            return Plan(config, where, tuple(notes))
    if budget is not None and (name is None or kind is not None):
        raise ConfigError(
            f"--budget has no effect here: {name or 'a config'} is not a folder of images.",
            "Set a recipe's length with --train.epochs.",
        )
    config = load_config(what if isinstance(what, RunConfig) else str(name), **settings)
    untuned = RECIPES[name].untuned(settings.get("optim")) if name in RECIPES else None
    itself = kind == "run" and name is not None and place in (None, Path(name))
    if place is None:
        place = Path(name) if itself and name else _below_runs(config.name)
    return Plan(config, place, (untuned,) if untuned else (), changes=itself)


def _below_runs(name: str) -> Path:
    """runs/NAME. Raises ConfigError: a config of somebody else may name another place."""
    if name in ("", ".", "..") or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
        raise ConfigError(
            f"The config's name {name!r} is not that of a folder: its run has no place in runs/.",
            "Give one with --out DIR.",
        )
    return Path("runs") / name


def _typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, of their types, as the command line gives them."""
    types = all_leaf_types()
    flat = flat_values(settings)
    return {k: coerce(v, types[k], k) if k in types else v for k, v in flat.items()}


def _images_plan(
    images: Path,
    out: Path | None,
    budget: float | None,
    settings: Mapping[str, Any],
    overwrite: bool,
    start: str,
    world: int = 1,
) -> Plan:
    """Images without a recipe: resume their run, or choose all settings automatically, for `world`
    processes."""
    from vitc.runs.folder import make_place
    from vitc.training.auto import name_of, propose

    out = out or Path("runs") / name_of(images)
    existing = None if overwrite else _run_on(images, out, settings)
    if existing is not None:
        from vitc.runs.folder import Run, finished

        if Run(out).status == "done":
            raise finished(out, "--train.epochs N" if budget is None else f"--budget {budget:g}s")
        remarks = [f"{out} is a run on {images}: resuming it with its settings."]
        if budget is not None:
            remarks.append("--budget has no effect: the run's length was chosen when it started.")
        if start != "auto":
            remarks.append("--start has no effect: the run has started already.")
        return Plan(existing, out, (), tuple(remarks), images=True)
    make_place(out, make=False)  # refused before settings are chosen
    began = time.monotonic()
    proposal = propose(images, budget, settings, start, world)
    took = time.monotonic() - began
    notes, group = tuple(proposal.lines), proposal.group
    return Plan(proposal.config, out, notes, _on_group(group), True, group, choosing=took)


def _on_group(group: str) -> tuple[str, ...]:
    """What a reader is to know before being asked about this data.group, if there is one."""
    if not group:
        return ()
    return (
        "Images that seem to belong together are in both training and validation: the result "
        f"will be too good. Keep them together: --data.group {shlex.quote(group)}",
    )


def _run_on(images: Path, out: Path, settings: Mapping[str, Any]) -> RunConfig | None:
    """The config of the run on `images` in `out`, with the settings given; None: no such run.

    Settings equal to the run's own change nothing; the run refuses others by name. Weights that
    the run no longer needs are not read. Raises ConfigError: a run on other images.
    """
    if "data" in settings or "data.path" in settings or not (out / "config.json").exists():
        return None
    config = load_config(out)
    place = config.data.path
    if place is not None and Path(place).resolve() == images.resolve():
        return load_config(config, **settings)
    from vitc.data.sources import guess_source
    from vitc.runs.folder import Run

    hint = "Choose another --out."
    if Run(out).status != "done" and guess_source(images) == config.data.source:
        resume = shlex.join(["vitc", "train", str(out), "--data.path", str(images)])
        hint += f" If they are the same images, moved: {resume}"
    raise ConfigError(
        f"{out} is a run on {place or config.data.source}, not on {images.absolute()}.", hint
    )


def check_weights(plan: Plan, overwrite: bool) -> None:
    """Raises ConfigError, before torch is imported, where init.weights does not exist."""
    weights = plan.config.init.weights
    if not overwrite and (plan.out / "config.json").exists():  # a resumed run has its weights
        return
    if weights and what_is(weights) is None:
        raise ConfigError(
            f"--init {weights} does not exist.{suggest_beside(Path(weights))}",
            "Give a run folder, a weights file, a folder of vitc save, or timm:NAME.",
        )


def train_plan(
    plan: Plan, *, overwrite: bool = False, allow_changed_data: bool = False
) -> RunResult:
    """Train it, and write the run page of images of one's own."""
    if plan.folds is not None:
        from vitc.deploy.folds import train_folds

        return train_folds(plan.folds)
    check_weights(plan, overwrite)
    from vitc.training.loop import run

    result = run(
        plan.config,
        plan.out,
        overwrite=overwrite,
        notes=list(plan.notes),
        allow_changed_data=allow_changed_data,
        inspect=not plan.images,  # they were inspected when settings were chosen
        changes=plan.changes,
        choosing=plan.choosing,
    )
    return _with_page(plan, result)


def _with_page(plan: Plan, result: RunResult) -> RunResult:
    """The same with its run page. Test images are not read: that is for the run that is chosen."""
    from vitc.data.sources import SOURCES

    first = os.environ.get("RANK", "0") == "0"
    if not first or result.top1 is None or not SOURCES[plan.config.data.source].of_user:
        return result
    from vitc.deploy.classifier import Classifier
    from vitc.deploy.evaluation import measure, predict_split
    from vitc.deploy.run_page import write_page
    from vitc.runs.folder import Run
    from vitc.training.auto_rules import MOST_REPORTED
    from vitc.training.device import machine_settings

    path = str(result.path)
    command = shlex.join(["vitc", "evaluate", path])
    try:
        counts = Run(result.path).data.get("counts", {})
        if counts.get("val", 0) > MOST_REPORTED:
            logging.getLogger("vitc").warning(f"Where it errs: {command}")
            return result
        classifier = Classifier.load(path, plan.config.train.device)
        with machine_settings(plan.config.train, classifier.device):
            found = measure(classifier, predict_split(classifier), path)
        return replace(result, report=write_page(found, command), evaluation=found)
    except VitcError as error:  # the run itself is done
        logging.getLogger("vitc").warning(f"There is no run page: {error.message}")
        return result
