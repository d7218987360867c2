"""`vitc study ...`: parse a study's words, run it (`vitc.study.studies`), print its report."""

from __future__ import annotations

import argparse
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli import study_card, work
from vitc.cli.parser import (
    Parser,
    Verb,
    changed_data_option,
    count,
    emit,
    emit_json,
    note,
    seconds,
    take_settings,
    writes_files,
)
from vitc.cli.report import protocol_option, report_on
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.study.design import Plan
    from vitc.study.measures.base import Measure, Option
    from vitc.study.studies import Stage
    from vitc.study.study_folder import Keep, StudyFolder

QUICK_SECONDS = 240.0  # of training, so that install and report fit into a few minutes as well
EPILOG = (
    "Every trial is an ordinary run folder. Interrupted, the same command resumes; with more\n"
    "--{runs} it keeps the trials that ended. Dotted settings hold for every trial:\n"
    "--train.epochs 10. Progress, from another terminal: vitc study status DIR"
)


# -- options ---------------------------------------------------------------------------------------


def _measure_options(parser: Parser, measure: Measure) -> None:
    """Who is compared, the measure's own options, how many runs, and what every study takes."""
    from vitc.study.controls import CONTROL_NAMES

    add = parser.add_argument
    add("recipes", nargs="+", metavar="RECIPE", help="recipes, or config files")
    about = (
        "instead of --models and --stems: models, stems, optimizers or schedules, each a name or "
        "FILE.py:Class, as VALUE or NAME=VALUE; the rest is the recipe's"
    )
    add("--contenders", nargs="+", default=[], metavar="[NAME=]VALUE", help=about)
    about = "contenders: these models under each recipe (default: each recipe's own)"
    add("--models", nargs="+", default=[], metavar="MODEL", help=about)
    about = (
        "contenders: each model with these stems: kinds (conv, patchify ...) or custom classes "
        "(my.py:MyStem); labelled MODEL+STEM"
    )
    add("--stems", nargs="+", default=[], metavar="STEM", help=about)
    optims = list(measure.optims)
    about = f"default: {' '.join(optims)}"
    add("--optims", nargs="+", default=optims, metavar="OPTIM", help=about)
    about = "the contender to compare with (default: the first with a patchify stem)"
    add("--reference", metavar="NAME", help=about)
    add("--control", action="store_true", help="add the reference against itself, other seeds")
    about = "contenders whose errors differ by fewer points are equivalent (default: not tested)"
    add("--margin", metavar="POINTS", type=float, help=about)
    about = f"add contenders that answer a reviewer: {', '.join(CONTROL_NAMES)}; see docs/paper.md"
    add("--controls", nargs="+", choices=CONTROL_NAMES, default=[], metavar="NAME", help=about)
    for name in CONTROL_NAMES:  # the former spelling, a flag each
        hidden: dict[str, Any] = {"dest": "controls", "const": name, "help": argparse.SUPPRESS}
        add(f"--{name.replace('_', '-')}", action="append_const", **hidden)
    for option in measure.options:
        _add(parser, option)
    of = {"draws": "draws a contender and optimizer", "seeds": "runs at each point, paired by seed"}
    about = f"{of[measure.runs]} (default: {measure.default_runs})"
    add(f"--{measure.runs}", metavar="N", type=count, dest="runs", help=about)
    _study_options(parser, f"studies/{measure.name}", test=measure.runs == "draws")


def _add(parser: Parser, option: Option) -> None:
    words: dict[str, Any] = {"help": option.help or argparse.SUPPRESS, "default": option.default}
    if option.choices:
        words["choices"] = option.choices
    if option.least is not None:
        words["type"] = count if option.least == 1 else int
    if option.words is not None:
        words["nargs"] = option.words
    if option.repeated:
        words |= {"action": "append", "default": []}
    if option.metavar is not None:
        words["metavar"] = option.metavar
    parser.add_argument(f"--{option.name.replace('_', '-')}", **words)


def _study_options(parser: Parser, out: str, test: bool = False) -> None:
    """What every study takes; `test`: it has draws, of which the best may read the test images."""
    add = parser.add_argument
    if test:
        about = "at the end, read the test images with each contender's best draw"
        add("--test", action="store_true", help=about)
    add("--out", metavar="DIR", type=Path, help=f"the study's folder (default: {out})")
    add("--seed", metavar="N", type=int, default=0, help="seed of the draws (default: 0)")
    about = "planned looks at the results, each with at most twice the runs (default: 1)"
    add("--looks", metavar="K", type=count, default=0, help=about)
    about = "compare although settings, versions or machines differ; reported"
    add("--allow-mixed", action="store_true", help=about)
    about = (
        "trials that keep their checkpoints: each group's best and the last N to end, or all "
        "(default: 3)"
    )
    add("--keep", metavar="N|all", type=_keep, help=about)
    # what is printed names these two where they are of use
    changed_data_option(parser, argparse.SUPPRESS)
    add("--retry-failed", action="store_true", help=argparse.SUPPRESS)
    protocol_option(parser, hidden=True)  # vitc report has it too
    add("--json", action="store_true", help="results.json on one line, last on stdout")
    work.engine_options(parser)


def _keep(text: str) -> Keep:
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be all or a number of trials, as 3")
    return int(text)


def _value(option: Option, value: Any) -> Any:
    """An option's words as the measure takes them. Raises ConfigError."""
    if option.least is not None and isinstance(value, int) and value < option.least:
        raise ConfigError(f"--{option.name} {value} must be {option.least} or more.")
    if option.name not in ("set", "times", "setup"):
        return value
    return [_point(option.name, words) for words in value]


def _point(option: str, words: Sequence[str]) -> tuple[str, Any]:
    """The words of --set, --times or --setup: a name, and the values or settings there."""
    name, *values = words
    if option == "setup":
        return name, _settings(values, "--setup")
    if not values:
        hint = f"For example: --{option} {name} 1 2"
        raise ConfigError(f"--{option} {name} has no value.", hint)
    if option == "set":
        return name, [v for w in values for v in _settings([f"{name}={w}"], "--set").values()]
    try:
        return name, [float(w) for w in values]
    except ValueError:
        raise ConfigError(f"--times {name} needs numbers, not {' '.join(values)}.") from None


def _settings(words: Sequence[str], option: str) -> dict[str, Any]:
    wrong = [w for w in words if "=" not in w]
    found, rest = ({}, []) if wrong else take_settings([f"--{w}" for w in words])
    if wrong or rest or not words:
        what = repr([*wrong, *rest][0]) if wrong or rest else "nothing"
        raise ConfigError(f"{option}: {what} is not SETTING=VALUE of a known setting.")
    return found


# -- a study ---------------------------------------------------------------------------------------


def _folder(args: Namespace, name: str) -> StudyFolder:
    from vitc.study.study_folder import StudyFolder

    return StudyFolder(args.out or Path("studies") / name)


KEPT = ("control", "controls", "seed", "looks", "margin")  # of the command line, in a request


def _measure(args: Namespace, measure: Measure) -> int:
    from vitc.study.measures import base, hparams
    from vitc.study.named import settings_of
    from vitc.study.studies import continued, stages

    folder = _folder(args, measure.name)
    words = {name: getattr(args, name) for name in ("recipes", "models", "stems", "optims")}
    words |= {name: getattr(args, name) for name in KEPT}
    if args.contenders:
        words["contenders"] = settings_of(args.contenders, folder.path)
    words |= {o.name: _value(o, getattr(args, o.name)) for o in measure.options}
    words |= {"reference": args.reference or "", "runs": args.runs or 0}
    request = base.request_of(measure, **words, **work.settings_of(args))
    request = continued(request, folder, measure.name)

    def ranges(plan: Plan) -> list[str]:
        if measure.name != "hparams":
            return []
        return hparams.range_lines(plan, request.recipes[0], request.options["ranges"])

    return _run(args, folder, stages(measure.name, request, folder, dry=args.dry_run), ranges)


def _run(
    args: Namespace,
    folder: StudyFolder,
    stages: Iterable[Stage],
    before: Callable[[Plan], list[str]] = lambda plan: [],
) -> int:
    """Run what is missing of each stage, then report; `--dry-run`: show what would be run.

    `before`: lines to print before a stage is run.
    """
    from vitc.study.chosen import measure_chosen
    from vitc.study.contrasts import power_lines
    from vitc.study.paper.second import measure_second
    from vitc.study.runner import conduct

    second = getattr(args, "exhibit", "") == "fig11"  # it reads every run again
    last: Stage | None = None
    for last in stages:
        for line in [*before(last[1]), *(power_lines(last[1]) if args.dry_run else ())]:
            note(line)
        engine = work.engine_of(args)
        if args.dry_run:
            work.show_trials(*last, engine)
            continue
        conduct(
            *last,
            engine=engine,
            allow_mixed=args.allow_mixed,
            allow_changed_data=args.allow_changed_data,
            retry_failed=args.retry_failed,
            keep="all" if second else args.keep,
            command=shlex.join(["vitc", *sys.argv[1:]]),
        )
    assert last is not None, "a study has a stage"
    if args.dry_run:
        emit("Nothing was run or written (--dry-run).")
        return 0
    if getattr(args, "test", False):
        measure_chosen(*last, note, args.allow_changed_data)
    if second:
        measure_second(*last, args.second, note)
    return report_on(
        [folder.path],
        None,
        args.json,
        protocol=args.protocol,
        ran=True,
        allow_changed_data=args.allow_changed_data,
    )


# -- quick and status ------------------------------------------------------------------------------


def _quick_options(parser: Parser) -> None:
    about = f"time for the trials, such as 5m: sets the draws (default: {QUICK_SECONDS:.0f}s)"
    parser.add_argument("--budget", metavar="TIME", type=seconds, default=QUICK_SECONDS, help=about)
    about = "draws a contender and optimizer (default: as the budget allows)"
    parser.add_argument("--draws", metavar="N", type=count, help=about)
    _study_options(parser, "studies/quick", test=True)


def _quick(args: Namespace) -> int:
    from vitc.study.effect import check_effect
    from vitc.study.launch import default_workers
    from vitc.study.quick import quick_plan
    from vitc.study.studies import earlier_precision

    if args.engine != "local" and args.draws is None:
        raise ConfigError(
            f"--engine {args.engine} needs --draws: the budget is measured on this machine.",
            "For example: --draws 32",
        )
    folder = _folder(args, "quick")
    settings, draws = work.settings_of(args), args.draws
    old = folder.read()[0] if folder.exists() else None
    if old is not None:  # what was measured or chosen at its start stays
        settings = {**earlier_precision(folder), **settings}
        draws = draws or old.draws
    workers = args.workers or default_workers()
    words = {"seed": args.seed, "looks": args.looks or (old.looks if old is not None else 1)}
    plan, why = quick_plan(args.budget, workers, draws=draws, **words, **settings)
    if old is None:
        check_effect(work.settings_of(args), plan.groups)
    note(why)
    return _run(args, folder, [(folder, folder.joined(plan))])


def _status_options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a study's folder")


def _status(args: Namespace) -> int:
    from vitc.study.standing import status_lines
    from vitc.study.study_folder import StudyFolder

    for line in status_lines(StudyFolder(args.folder)):
        emit(line)
    return 0


# -- the paper -------------------------------------------------------------------------------------


def _paper_options(parser: Parser) -> None:
    from vitc.study.measures.base import LENGTHS

    add = parser.add_argument
    add("exhibit", metavar="FIGURE|TABLE", help="fig2 ... fig11, table1, table2, table3, table5")
    about = "small (default): tiny models, bundled images; full: the paper's"
    add("--scale", choices=("small", "full"), default="small", help=about)
    about = "seeds at a point, or draws (default: the exhibit's own)"
    add("--count", metavar="N", type=count, dest="runs", help=about)
    add(
        "--tune", metavar="N", type=count, help="draws that tune first (default: the exhibit's own)"
    )
    _add(parser, LENGTHS)
    add("--second", metavar="DIR", help="fig11: the second test set (default: the test split)")
    add("--iterations", metavar="N", type=count, default=30, help="fig9, table1: timed steps (30)")
    _study_options(parser, "studies/<exhibit>_<scale>")


def _paper(args: Namespace) -> int:
    from vitc.study.paper.exhibits import BENCH, NO_DATA, get_exhibit, scale_of
    from vitc.study.paper.plans import entry_groups

    exhibit, full = get_exhibit(args.exhibit), args.scale == "full"
    trains = exhibit.measure != BENCH
    _check_paper(args, trains)
    settings = work.settings_of(args)
    data = settings.pop("data", None)
    if full and data is None and trains and not args.dry_run:
        raise ConfigError(
            f"{args.exhibit} at full scale trains on ImageNet.",
            "Add --data DIR (with train/ and val/), or --dry-run to see plan and cost; "
            "--scale small needs no data.",
        )
    if full and args.dry_run:
        settings.setdefault("train.device", "cuda")  # the cluster's, whatever is here
    if not full and data is not None:
        settings["data"] = data
    images = (data or NO_DATA) if full else None
    if trains:
        return _paper_study(args, images, settings)
    from vitc.cli.bench import bench_exhibit

    return bench_exhibit(
        args, entry_groups(scale_of(exhibit, args.scale).entries, images, **settings)
    )


def _check_paper(args: Namespace, trains: bool) -> None:
    """Raises ConfigError: words that have no effect with this exhibit."""
    nothing = f"with {args.exhibit}, which trains nothing."
    idle = {
        "second": (
            args.second and args.exhibit != "fig11",
            f"with {args.exhibit}; it is for fig11.",
        ),
        "keep": (args.keep is not None and args.exhibit == "fig11", "with fig11: it needs all."),
        "count": (args.runs and not trains, nothing),
        "tune": (args.tune and not trains, nothing),
        "lengths": (args.lengths and not trains, nothing),
        "protocol": (args.protocol != "last" and not trains, nothing),
        "model": ("model" in args.settings, f"here: {args.exhibit} has its own."),
        "optim": ("optim" in args.settings, f"here: {args.exhibit} has its own."),
        "train.epochs": ("train.epochs" in args.settings, "here. Use --lengths."),
    }
    found = [f"--{name} has no effect {why}" for name, (given, why) in idle.items() if given]
    if found:
        raise ConfigError("\n".join(found))


def _paper_study(args: Namespace, images: str | None, settings: dict[str, Any]) -> int:
    from vitc.study.paper import exhibits, plans
    from vitc.study.studies import check_runs, earlier_precision

    exhibit = exhibits.get_exhibit(args.exhibit)
    scale = exhibits.scale_of(exhibit, args.scale)
    folder = _folder(args, f"{args.exhibit}_{args.scale}")
    begun = folder.read()[0] if folder.exists() else None
    had = begun.draws if begun is not None else 0
    runs = args.runs or had or scale.count
    check_runs(folder, runs, had, "--count")
    settings = {**earlier_precision(folder), **settings}
    stages = plans.exhibit_stages(
        args.exhibit,
        args.scale,
        plans.entry_groups(scale.entries, images, **settings),
        folder,
        tune=args.tune,
        dry=args.dry_run,
        settings=settings,
        count=runs,
        looks=args.looks or (begun.looks if begun is not None else 1),
        lengths=args.lengths,
        seed=args.seed,
        classes=exhibits.CLASSES[args.scale] if args.dry_run else None,
    )
    if not args.dry_run:
        return _run(args, folder, stages)
    every = list(stages)
    lines = plans.cost_lines([plan for _, plan in every])
    if args.json:
        from vitc.study.study_folder import to_json

        values = {"exhibit": args.exhibit, "scale": args.scale, "cost": lines}
        emit_json({**values, "plans": [to_json(plan) for _, plan in every]})
        return 0
    emit(f"{args.exhibit}, {args.scale} scale. {exhibit.title}: {exhibit.about}")
    for line in lines:
        emit(line)
    for inside, plan in every if args.engine == "slurm" else ():
        work.show_trials(inside, plan, work.engine_of(args))
    emit("Nothing was run. --json has every setting of every contender.")
    return 0


# -- verbs -----------------------------------------------------------------------------------------


@cache
def study_verbs() -> dict[str, Verb]:
    """The verbs of `vitc study`: one a measure, and those that are not."""
    from vitc.study.measures import MEASURES

    measures = {name: _measure_verb(measure) for name, measure in MEASURES.items()}
    others = {
        "card": study_card.VERB,
        "paper": PAPER_VERB,
        "work": work.VERB,
        "status": STATUS_VERB,
    }
    return {"quick": QUICK_VERB, **measures, **others}


def _measure_verb(measure: Measure) -> Verb:
    return Verb(
        summary=measure.summary,
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example=measure.example,
        options=lambda parser: _measure_options(parser, measure),
        run=lambda args: _measure(args, measure),
        in_files=writes_files,
        runs=("recipes", "out"),
        takes_settings=True,
        epilog=EPILOG.format(runs=measure.runs),
    )


QUICK_VERB = Verb(
    summary="Is a ViT_C easier to train than a ViT_P? A study in minutes, no download.",
    usage="[options] [--SETTING VALUE ...]",
    example="vitc study quick --budget 20m --out studies/longer",
    options=_quick_options,
    run=_quick,
    in_files=writes_files,
    runs=("out",),
    takes_settings=True,
    epilog=EPILOG.format(runs="draws"),
)
STATUS_VERB = Verb(
    summary="Show a study's progress.",
    usage="DIR",
    example="vitc study status studies/quick",
    options=_status_options,
    run=_status,
)
PAPER_VERB = Verb(
    summary="Set up a figure or table of the paper, full scale or small, beside its numbers.",
    usage="FIGURE|TABLE [--scale small|full] [--dry-run] [options] [--SETTING VALUE ...]",
    example="vitc study paper fig2\nvitc study paper table2 --scale full --dry-run\n"
    "vitc study paper fig4 --scale full --data ~/imagenet",
    options=_paper_options,
    run=_paper,
    in_files=writes_files,
    runs=("out",),
    takes_settings=True,
    epilog=EPILOG.format(runs="count"),
)
