"""`vitc train RECIPE|CONFIG.json|IMAGES|RUN`: train a recipe, a folder of images, resume a run."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import get_args

from vitc.cli.parser import (
    Parser,
    Verb,
    changed_data_option,
    count,
    emit,
    emit_json,
    note,
    seconds,
    settings_help,
    writes_files,
)
from vitc.config import to_saved
from vitc.data.litter import is_config_file
from vitc.deploy.front_door import Plan, check_weights, fold_times, plan_training, train_plan
from vitc.errors import ConfigError
from vitc.machine import several_processes
from vitc.resolve import resolve_config, what_is
from vitc.training.config import Start
from vitc.training.pace import CLOCKS

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
        "resume or, once finished, to train longer"
    )
    add("what", nargs="?", metavar="RECIPE|CONFIG.json|IMAGES|RUN", help=about)
    add("--out", metavar="DIR", type=Path, help="the run folder (default: runs/<recipe>)")
    add("--overwrite", action="store_true", help="discard a run in that folder and start over")
    about = "with IMAGES or a finished RUN: total time, such as 90s, 30m or 1h30m"
    add("--budget", metavar="TIME", type=seconds, help=about)
    add(
        "--start",
        choices=get_args(Start),
        default="auto",
        help="with IMAGES: from weights pretrained on photos, from the bundled formula-pretrained "
        "weights, or from scratch (default: the first that is available for these images and this "
        "model)",
    )
    about = "with IMAGES: train K runs, each validated on another part, and measure on all images"
    add("--folds", metavar="K", type=count, help=about)
    add("--seeds", metavar="N", type=count, help="with --folds: runs of each part (default: 1)")
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
    if args.dry_run and args.folds is not None:
        raise ConfigError("--dry-run has no effect with --folds.", "Leave one of them out.")
    times = fold_times(args.folds, args.seeds, args.overwrite, args.allow_changed_data)
    clock = CLOCKS[args.settings.get("train.clock", "wall")]
    began = clock()
    plan = plan_training(
        args.what, args.out, args.budget, args.settings, args.overwrite, args.start, times
    )
    used = clock() - began  # waiting for an answer does not count
    for line in plan.remarks:
        note(line)
    asks = plan.group and not (args.dry_run or args.json or several_processes())
    if asks and _agrees("Keep them together?"):
        settings = {**args.settings, "data.group": plan.group}
        left = None if args.budget is None else max(1.0, args.budget - used)
        first = plan.choosing
        plan = plan_training(args.what, args.out, left, settings, args.overwrite, args.start, times)
        plan = replace(plan, choosing=first + plan.choosing)
    args.run_folder = plan.out
    for line in plan.notes:
        (emit if args.dry_run and plan.images and not args.json else note)(line)
    if args.dry_run:
        check_weights(plan, args.overwrite)
        return _dry_run(args, plan)
    result = train_plan(plan, overwrite=args.overwrite, allow_changed_data=args.allow_changed_data)
    if args.json:
        emit_json(result.summary)
    elif plan.folds is not None:
        emit(
            f"{result.top1:.2f} % of {result.evaluation.n:,} images are classified correctly by "
            "models that they were held out from."
        )
        emit(f"Where they err: {result.report}")
        emit(f"Next: vitc predict {shlex.quote(str(result.path))} IMAGE... (the mean of all runs)")
    else:
        top1 = "" if result.top1 is None else f"top1 {result.top1:.2f} % on validation.  "
        emit(f"{top1}Run: {result.path}")
        if result.report is not None:
            emit(f"Where it errs: {result.report}")
        from vitc.runs.folder import Run

        run_folder = shlex.quote(str(plan.out))
        if result.report is not None and Run(result.path).data.get("counts", {}).get("test"):
            emit(f"Once it is the run you choose: vitc evaluate {run_folder} --split test")
        file = shlex.quote(f"{plan.out.name}.onnx")
        emit(f"Next: vitc predict {run_folder} IMAGE...; vitc export {run_folder} {file}")
    return 0


def _agrees(question: str) -> bool:
    """Ask somebody at a terminal; False: there is nobody, or the answer is not yes."""
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip(" ").lower() in ("\n", "y\n", "yes\n")


def _help(parser: Parser, args: Namespace) -> None:
    print(parser.format_help())
    if args.what is not None and what_is(args.what) != "images":
        names = None if args.help_all else COMMON_SETTINGS
        settings_help(resolve_config(args.what, **args.settings), names)
        if names is not None:
            print(f"Every setting: vitc train {shlex.quote(args.what)} --help-all")


def _config_file(out: Path) -> Path:
    """Where --dry-run writes the config of the run `out`. Raises ConfigError: another file is
    there."""
    file = Path(f"{out}.json")
    if file.exists() and not is_config_file(str(file)):
        raise ConfigError(
            f"--dry-run would replace {file}, which is no config written by vitc.",
            "Choose another --out, or move that file.",
        )
    return file


def _dry_run(args: Namespace, plan: Plan) -> int:
    """Show what would run. Settings that were chosen automatically are saved, to train them."""
    from vitc.deploy.show import config_page
    from vitc.views.text import write

    config, out = plan.config, plan.out
    page = config_page(config)
    saved = None
    if plan.notes:
        saved = _config_file(out)
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(to_saved(config), indent=2) + "\n", encoding="utf-8")
    if args.json:
        about = {
            "out": str(out),
            "notes": list(plan.notes),
            "config": str(saved) if saved else None,
        }
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
    "  --init RUN|FILE|FOLDER|timm:NAME|pretrained:NAME starts from weights;\n"
    "  --train.freeze backbone: a linear probe, norms: BatchNorms stay as they are;\n"
    "  dotted names set a detail: --train.epochs 20. In any order.\n"
    "  An unfinished run takes another --optim.lr, --optim.schedule or --train.epochs on the\n"
    "  way: vitc train runs/mine --optim.lr 3e-4. All else is fixed when it starts.\n"
    "  A finished run is trained longer, as a new run beside it, with --budget TIME or\n"
    "  --train.epochs N: vitc train runs/photos --budget 10m makes runs/photos_2.\n"
    "  The settings of a recipe with their values: vitc train RECIPE --help, or --help-all\n"
    "  All recipes and models: vitc show --list",
)
