"""`vitc train RECIPE|CONFIG.json|IMAGES|RUN`: train a recipe, a folder of images, resume a run."""

from __future__ import annotations

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli.parser import (
    Parser,
    Verb,
    changed_data_option,
    emit,
    emit_json,
    note,
    seconds,
    settings_help,
    writes_files,
)
from vitc.config import RunConfig, to_saved
from vitc.errors import ConfigError, VitcError, suggest_beside
from vitc.recipes import RECIPES
from vitc.resolve import load_config, resolve_config, what_is

if TYPE_CHECKING:
    from vitc.training.loop import RunResult

MOST_REPORTED = 20_000  # validation images, for a run page without being asked

# What people change most; `--help-all` lists every setting.
COMMON_SETTINGS = (
    "data.path",
    "data.val_fraction",
    "data.group",
    "data.fit",
    "data.bad_files",
    "data.augment.crop",
    "data.augment.policy",
    "data.augment.mixup_alpha",
    "data.augment.cutmix_alpha",
    "model.img_size",
    "model.drop_path_rate",
    "optim.lr",
    "optim.weight_decay",
    "train.epochs",
    "train.batch",
    "train.precision",
    "train.device",
    "train.seed",
    "train.freeze",
    "init.weights",
)


def options(parser: Parser) -> None:
    add = parser.add_argument
    about = (
        "a recipe's name, a saved config, images (a folder, a pack, a list, shards), or a run to "
        "resume"
    )
    add("what", nargs="?", metavar="RECIPE|CONFIG.json|IMAGES|RUN", help=about)
    add("--out", metavar="DIR", type=Path, help="the run folder (default: runs/<recipe>)")
    add("--overwrite", action="store_true", help="discard a run in that folder and start over")
    about = "with IMAGES: training time: 90s, 30m, 1h30m"
    add("--budget", metavar="TIME", type=seconds, help=about)
    add("--dry-run", action="store_true", help="show what would run, and stop")
    changed_data_option(parser, "resume although images changed since the run began")
    add("--json", action="store_true", help="print summary.json on the last line of stdout")


def run(args: Namespace) -> int:
    if args.what is None:
        raise ConfigError(
            "Nothing to train: give a recipe, a config file, a folder of images or a run folder.",
            "For example: vitc train fashion_vit_c (list recipes with vitc show --list), "
            "or vitc train FOLDER with one sub-folder of images per class.",
        )
    config, out, notes = _plan(args)
    args.run_folder = out
    if args.overwrite or not (out / "config.json").exists():  # a resumed run has its weights
        _check_weights(config)
    if args.dry_run:
        return _dry_run(args, config, out, notes)
    from vitc.training.loop import run as train

    result = train(
        config,
        out,
        overwrite=args.overwrite,
        notes=notes,
        allow_changed_data=args.allow_changed_data,
        inspect=what_is(args.what) != "images",  # they were inspected when settings were chosen
    )
    report = _report(config, result)
    if args.json:
        emit_json(result.summary)
    else:
        top1 = "" if result.top1 is None else f"top1 {result.top1:.2f} % on validation.  "
        emit(f"{top1}Run: {result.path}")
        if report is not None:
            emit(f"Where it errs: {report}")
        run_folder = shlex.quote(str(out))
        emit(f"Next: vitc predict {run_folder} IMAGE...; vitc show {run_folder} --plot curves.png")
    return 0


def _report(config: RunConfig, result: RunResult) -> Path | None:
    """Write the run page of a run on images of one's own."""
    from vitc.data.sources import SOURCES
    from vitc.deploy.evaluation import evaluate
    from vitc.deploy.run_page import write_page
    from vitc.runs.folder import Run

    first = os.environ.get("RANK", "0") == "0"
    if not first or result.top1 is None or not SOURCES[config.data.source].path:
        return None
    command = shlex.join(["vitc", "evaluate", str(result.path)])
    last = Run(result.path).metrics("eval")[-1:]
    if not last or last[0].get("n", 0) > MOST_REPORTED:
        note(f"Where it errs: {command}")
        return None
    try:
        return write_page(evaluate(result.path, device=config.train.device), command)
    except VitcError as error:  # the run itself is done
        note(f"There is no run page: {error.message}")
        return None


def _check_weights(config: RunConfig) -> None:
    """Raises ConfigError, before torch is imported, where init.weights does not exist."""
    weights = config.init.weights
    if weights and what_is(weights) is None:
        raise ConfigError(
            f"--init {weights} does not exist.{suggest_beside(Path(weights))}",
            "Give a run folder, a weights file, a folder of vitc save, or timm:NAME.",
        )


def _help(parser: Parser, args: Namespace) -> None:
    print(parser.format_help())
    if args.what is not None and what_is(args.what) != "images":
        names = None if args.help_all else COMMON_SETTINGS
        settings_help(resolve_config(args.what, **args.settings), names)
        if names is not None:
            print(f"Every setting: vitc train {shlex.quote(args.what)} --help-all")


def _plan(args: Namespace) -> tuple[RunConfig, Path, list[str]]:
    """The config, the run's folder, and the reasons for what was chosen automatically."""
    from vitc.data.sources import SUFFIXES
    from vitc.data.sources.base import is_pattern

    what = Path(args.what)
    if what_is(args.what) == "images":
        return _images_plan(args, what)
    if is_pattern(args.what) and args.what.endswith(SUFFIXES):
        raise ConfigError(
            f"{args.what!r} is a pattern; settings are chosen for one folder or file.",
            f"Name a recipe: vitc train cifar10_vit_c --data {shlex.quote(args.what)}; or pack the "
            f"images: vitc data pack {shlex.quote(args.what)} OUT.vitc, then vitc train OUT.vitc.",
        )
    if args.budget is not None:
        raise ConfigError(
            f"--budget has no effect here: {args.what} is not a folder of images.",
            "Set a recipe's length with --train.epochs.",
        )
    config = load_config(args.what, **args.settings)
    optim = args.settings.get("optim")
    untuned = RECIPES[args.what].untuned(optim) if args.what in RECIPES else None
    if untuned:
        note(untuned)
    default = what if what_is(what) == "run" else Path("runs") / config.name
    return config, args.out or default, [untuned] if untuned else []


def _images_plan(args: Namespace, images: Path) -> tuple[RunConfig, Path, list[str]]:
    """Images without a recipe: resume their run, or choose all settings automatically."""
    from vitc.training.auto import name_of, propose

    out = args.out or Path("runs") / name_of(images)
    existing = None if args.overwrite else _run_on(images, out, args.settings)
    if existing is not None:
        note(f"{out} is a run on {images}: resuming it with its settings.")
        if args.budget is not None:
            note("--budget has no effect: the run's length was chosen when it started.")
        return existing, out, []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each would measure, and choose, for itself
        raise ConfigError(
            f"Several processes cannot choose settings for {images} together.",
            f"Choose first: vitc train {shlex.quote(str(images))} --dry-run; then train the "
            "config it saves.",
        )
    proposal = propose(images, args.budget, args.settings)
    show = emit if args.dry_run and not args.json else note
    for line in proposal.lines:
        show(line)
    return proposal.config, out, list(proposal.lines)


def _run_on(images: Path, out: Path, settings: Mapping[str, Any]) -> RunConfig | None:
    """The config of the run on `images` in `out`, with the settings given; None: no such run.

    Settings equal to the run's own change nothing; the run refuses others by name. Weights that
    the run no longer needs are not read.
    """
    if "data" in settings or "data.path" in settings or not (out / "config.json").exists():
        return None
    config = load_config(out)
    if config.data.path is None or Path(config.data.path).resolve() != images.resolve():
        return None
    return load_config(config, **settings)


def _dry_run(args: Namespace, config: RunConfig, out: Path, notes: list[str]) -> int:
    """Show what would run. Settings that were chosen automatically are saved, to train them."""
    from vitc.deploy.show import config_page
    from vitc.views.text import write

    page = config_page(config)
    saved = None
    if notes:
        saved = Path(f"{out}.json")
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(to_saved(config), indent=2) + "\n", encoding="utf-8")
    if args.json:
        about = {"out": str(out), "notes": notes, "config": str(saved) if saved else None}
        emit_json({**page.values, **about})
    elif saved:
        where = f" --out {shlex.quote(str(out))}" if args.out else ""
        command = f"vitc train {shlex.quote(str(saved))}{where}"
        emit(f"Nothing was trained. Train these settings: {command}")
    else:
        write(page.parts, sys.stdout)
        emit(f"Nothing was trained. Without --dry-run the run goes to {out}.")
    return 0


VERB = Verb(
    summary="Train a recipe, or a folder of images with settings chosen for it; resume a run.",
    usage="RECIPE|CONFIG.json|IMAGES|RUN [options] [--SETTING VALUE ...]",
    example="vitc train fashion_vit_c\n"
    "vitc train fashion_vit_c --optim sgd --optim.lr 0.1 --train.epochs 5 --out runs/mine\n"
    "vitc train ~/photos --budget 30m",
    options=options,
    run=run,
    runs=("what", "out"),
    takes_settings=True,
    in_files=writes_files,
    more_help=_help,
    epilog="settings:\n"
    "  --model NAME, --data NAME|PATH, --optim NAME, --model.stem KIND choose a component;\n"
    "  --model.stem FILE.py:CLASS uses a custom stem (docs/stems.md);\n"
    "  --init RUN|FILE|FOLDER|timm:NAME starts from weights; --train.freeze backbone: probe;\n"
    "  dotted names set a detail: --train.epochs 20. In any order.\n"
    "  The settings of a recipe with their values: vitc train RECIPE --help, or --help-all\n"
    "  All recipes and models: vitc show --list",
)
