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

from vitc.cli import work
from vitc.cli.engines import engine_of, engine_options, settings_of, show_trials
from vitc.cli.parser import (
    Parser,
    Verb,
    count,
    emit,
    emit_json,
    note,
    seconds,
    take_settings,
)
from vitc.cli.report import protocol_option, report_on
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.study.contenders import Request
    from vitc.study.measures.base import Measure, Option
    from vitc.study.studies import Stage
    from vitc.study.study_folder import StudyFolder

QUICK_SECONDS = 240.0  # of training, so that install and report fit into a few minutes as well
EPILOG = (
    "Every trial is an ordinary run folder. Interrupted, the same command resumes; with more\n"
    "--{runs} it keeps the trials that ended. Dotted settings hold for every trial:\n"
    "--train.epochs 10. Progress, from another terminal: vitc study status DIR"
)
CONTROL_FLAGS = {
    "smaller_patch": "add every ViT_P at half its patch size",
    "swap_depth": "add every ViT_P and ViT_C with its twin's number of blocks",
    "bn_patchify": "add every ViT_P with BatchNorm and ReLU after its stem",
    "ln_conv": "add every ViT_C with LayerNorm in its stem",
    "frozen_patchify": "add every ViT_P with a random stem that is not trained",
    "time_matched": "add every contender trained for as long as the reference takes; needs "
    "--allow-mixed, for the epochs differ",
}


# -- options ---------------------------------------------------------------------------------------


def _measure_options(parser: Parser, measure: Measure) -> None:
    _contender_options(parser, measure.optims)
    for option in measure.options:
        _add(parser, option)
    default = f"default: {measure.default_runs}"
    if measure.runs == "draws":
        about = f"draws a contender and optimizer ({default})"
        parser.add_argument("--draws", metavar="N", type=count, dest="runs", help=about)
        _test_option(parser)
    else:
        about = f"runs at each point, seed i of all being a pair ({default})"
        parser.add_argument("--seeds", metavar="N", type=count, dest="runs", help=about)
    _study_options(parser, f"studies/{measure.name}")


def _add(parser: Parser, option: Option) -> None:
    words: dict[str, Any] = {"help": option.help, "default": option.default}
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


def _contender_options(parser: Parser, optims: Sequence[str]) -> None:
    """Who is compared: recipes x models x stems, under which optimizers, against whom."""
    add = parser.add_argument
    add("recipes", nargs="+", metavar="RECIPE", help="recipes, or config files")
    about = "contenders: these models under each recipe (default: each recipe's own)"
    add("--models", nargs="+", default=[], metavar="MODEL", help=about)
    about = (
        "contenders: each model with these stems: kinds (conv, patchify ...) or custom classes "
        "(my.py:MyStem); labelled MODEL+STEM"
    )
    add("--stems", nargs="+", default=[], metavar="STEM", help=about)
    about = f"default: {' '.join(optims)}"
    add("--optims", nargs="+", default=list(optims), metavar="OPTIM", help=about)
    add("--reference", metavar="NAME", help="the contender to compare with (default: the last)")
    add("--control", action="store_true", help="add the reference against itself, other seeds")
    about = (
        f"add contenders that answer a reviewer: {', '.join(CONTROL_FLAGS)}; see docs/studies.md"
    )
    add("--controls", nargs="+", choices=CONTROL_FLAGS, default=[], metavar="NAME", help=about)
    for name in CONTROL_FLAGS:  # the former spelling, a flag each
        add(
            f"--{name.replace('_', '-')}",
            action="append_const",
            const=name,
            dest="controls",
            help=argparse.SUPPRESS,
        )


def _test_option(parser: Parser) -> None:
    about = "at the end, read the test images with each contender's best draw"
    parser.add_argument("--test", action="store_true", help=about)


def _study_options(parser: Parser, out: str) -> None:
    """What every study takes."""
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, help=f"the study's folder (default: {out})")
    add("--seed", metavar="N", type=int, default=0, help="seed of the draws (default: 0)")
    about = "compare although settings, versions or machines differ; reported"
    add("--allow-mixed", action="store_true", help=about)
    add("--retry-failed", action="store_true", help="run trials again whose worker died")
    protocol_option(parser)
    add("--json", action="store_true", help="results.json on one line, last on stdout")
    engine_options(parser)


# -- a study ---------------------------------------------------------------------------------------


def _request(args: Namespace, measure: Measure, folder: StudyFolder) -> Request:
    from vitc.study.measures.base import request_of
    from vitc.study.studies import continued

    options = {o.name: _value(o, getattr(args, o.name)) for o in measure.options}
    request = request_of(
        measure,
        recipes=args.recipes,
        models=args.models,
        stems=args.stems,
        optims=args.optims,
        reference=args.reference or "",
        control=args.control,
        controls=args.controls,
        seed=args.seed,
        runs=args.runs or 0,
        **options,
        **settings_of(args),
    )
    return continued(request, folder, measure.name)


def _value(option: Option, value: Any) -> Any:
    """An option's words as the measure takes them. Raises ConfigError."""
    if option.least is not None and isinstance(value, int) and value < option.least:
        raise ConfigError(f"--{option.name} {value} must be {option.least} or more.")
    convert = {"set": _axis, "times": _factors, "setup": _setup}.get(option.name)
    return value if convert is None else [convert(words) for words in value]


def _axis(words: Sequence[str]) -> tuple[str, list[Any]]:
    name, *values = words
    if not values:
        raise ConfigError(f"--set {name} has no value.", f"For example: --set {name} 1 2")
    return name, [next(iter(_settings([f"{name}={v}"], "--set").values())) for v in values]


def _setup(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    return words[0], _settings(words[1:], "--setup")


def _settings(words: Sequence[str], option: str) -> dict[str, Any]:
    wrong = [w for w in words if "=" not in w]
    found, rest = ({}, []) if wrong else take_settings([f"--{w}" for w in words])
    if wrong or rest or not words:
        what = repr([*wrong, *rest][0]) if wrong or rest else "nothing"
        raise ConfigError(f"{option}: {what} is not SETTING=VALUE of a known setting.")
    return found


def _factors(words: Sequence[str]) -> tuple[str, list[float]]:
    name, *values = words
    try:
        factors = [float(w) for w in values]
    except ValueError:
        raise ConfigError(f"--times {name} needs numbers, not {' '.join(values)}.") from None
    if not factors:
        raise ConfigError(f"--times {name} has no factor.", f"For example: --times {name} 1 2 4 8")
    return name, factors


def _folder(args: Namespace, name: str) -> StudyFolder:
    from vitc.study.study_folder import StudyFolder

    return StudyFolder(args.out or Path("studies") / name)


def _measure(args: Namespace, measure: Measure) -> int:
    from vitc.study.studies import stages

    folder = _folder(args, measure.name)
    request = _request(args, measure, folder)
    found: Iterable[Stage] = stages(measure.name, request, folder, dry=args.dry_run)
    if measure.name == "hparams":
        found = _with_range_lines(found, request)
    return _run(args, folder, found)


def _with_range_lines(found: Iterable[Stage], request: Request) -> Iterable[Stage]:
    from vitc.study.measures.hparams import range_lines

    for folder, plan in found:
        for line in range_lines(plan, request.recipes[0], request.options["ranges"]):
            note(line)
        yield folder, plan


def _run(
    args: Namespace,
    folder: StudyFolder,
    stages: Iterable[Stage],
    after: Callable[[Stage], None] | None = None,
) -> int:
    """Run what is missing of each stage, then report; `--dry-run`: show what would be run."""
    from vitc.study.chosen import measure_chosen
    from vitc.study.runner import conduct

    last: Stage | None = None
    for last in stages:
        engine = engine_of(args)
        if args.dry_run:
            show_trials(*last, engine)
            continue
        conduct(
            *last,
            engine=engine,
            allow_mixed=args.allow_mixed,
            retry_failed=args.retry_failed,
            command=shlex.join(["vitc", *sys.argv[1:]]),
        )
    assert last is not None, "a study has a stage"
    if args.dry_run:
        emit("Nothing was run or written (--dry-run).")
        return 0
    if getattr(args, "test", False):
        measure_chosen(*last, note)
    if after is not None:
        after(last)
    return report_on([folder.path], None, args.json, protocol=args.protocol, ran=True)


# -- quick and status ------------------------------------------------------------------------------


def _quick_options(parser: Parser) -> None:
    about = f"time for the trials, as 5m: sets the draws (default: {QUICK_SECONDS:.0f}s)"
    parser.add_argument("--budget", metavar="TIME", type=seconds, default=QUICK_SECONDS, help=about)
    about = "draws a contender and optimizer (default: as the budget allows)"
    parser.add_argument("--draws", metavar="N", type=count, help=about)
    _test_option(parser)
    _study_options(parser, "studies/quick")


def _quick(args: Namespace) -> int:
    from vitc.study.launch import default_workers
    from vitc.study.quick import quick_plan

    if args.engine != "local" and args.draws is None:
        raise ConfigError(
            f"--engine {args.engine} needs --draws: the budget is measured on this machine.",
            "For example: --draws 32",
        )
    folder = _folder(args, "quick")
    settings, draws = settings_of(args), args.draws
    if folder.exists():  # what was measured or chosen at its start stays
        old, _ = folder.read()
        settings.setdefault("train.precision", old.groups[0].config.train.precision)
        draws = draws or old.draws
    workers = args.workers or default_workers()
    plan, why = quick_plan(args.budget, workers, draws=draws, seed=args.seed, **settings)
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
    about = "small (default): tiny models, images inside the package; full: the paper's"
    add("--scale", choices=("small", "full"), default="small", help=about)
    about = "seeds at a point, or draws (default: its own)"
    add("--count", metavar="N", type=count, dest="runs", help=about)
    add("--tune", metavar="N", type=count, help="draws first, where it tunes (default: its own)")
    _add(parser, LENGTHS)
    add("--second", metavar="DIR", help="fig11: the second test set (default: the test split)")
    add("--iterations", metavar="N", type=count, default=30, help="fig9, table1: timed (30)")
    _study_options(parser, "studies/<exhibit>_<scale>")


def _paper(args: Namespace) -> int:
    from vitc.study.paper.exhibits import BENCH, NO_DATA, get_exhibit, scale_of
    from vitc.study.paper.plans import entry_groups

    exhibit = get_exhibit(args.exhibit)
    _check_paper(args, exhibit.measure)
    settings = settings_of(args)
    data = settings.pop("data", None)
    if args.scale == "full" and data is None:
        if not args.dry_run and exhibit.measure != BENCH:
            raise ConfigError(
                f"{args.exhibit} at full scale trains on ImageNet.",
                "Add --data DIR (with train/ and val/), or --dry-run to see plan and cost; "
                "--scale small needs no data.",
            )
        data = NO_DATA
    if args.scale == "full" and args.dry_run:
        settings.setdefault("train.device", "cuda")  # the cluster's, whatever is here
    if args.scale == "small" and data is not None:
        settings["data"], data = data, None
    scale = scale_of(exhibit, args.scale)
    if exhibit.measure == BENCH:
        from vitc.cli.bench import bench_exhibit

        return bench_exhibit(args, entry_groups(scale.entries, data, **settings))
    return _paper_study(args, data, settings)


def _check_paper(args: Namespace, measure: str) -> None:
    """Raises ConfigError: words that have no effect with this exhibit."""
    from vitc.study.paper.exhibits import BENCH

    if args.second is not None and args.exhibit != "fig11":
        raise ConfigError(f"--second has no effect with {args.exhibit}; it is for fig11.")
    for word in ("model", "optim"):
        if word in args.settings:
            raise ConfigError(f"--{word} has no effect here: {args.exhibit} has its own.")
    for word, value in (("count", args.runs), ("tune", args.tune), ("lengths", args.lengths)):
        if measure == BENCH and value is not None:
            raise ConfigError(f"--{word} has no effect with {args.exhibit}, which trains nothing.")
    if measure == BENCH and args.protocol != "last":
        raise ConfigError(f"--protocol has no effect with {args.exhibit}, which trains nothing.")
    if "train.epochs" in args.settings:
        raise ConfigError("--train.epochs has no effect here.", "Use --lengths.")


def _paper_study(args: Namespace, data: str | None, settings: dict[str, Any]) -> int:
    from vitc.study.paper.exhibits import CLASSES, get_exhibit, scale_of
    from vitc.study.paper.plans import entry_groups, exhibit_stages
    from vitc.study.paper.second import measure_second
    from vitc.study.studies import check_runs, earlier_precision

    exhibit = get_exhibit(args.exhibit)
    scale = scale_of(exhibit, args.scale)
    folder = _folder(args, f"{args.exhibit}_{args.scale}")
    had = folder.read()[0].draws if folder.exists() else 0
    runs = args.runs or had or scale.count
    check_runs(folder, runs, had, "--count")
    groups = entry_groups(scale.entries, data, **{**earlier_precision(folder), **settings})
    stages = exhibit_stages(
        args.exhibit,
        args.scale,
        groups,
        folder,
        tune=args.tune,
        dry=args.dry_run,
        count=runs,
        lengths=args.lengths,
        seed=args.seed,
        classes=CLASSES[args.scale] if args.dry_run else None,
    )
    if args.dry_run:
        return _paper_dry_run(args, list(stages))

    def read_second(stage: Stage) -> None:
        if args.exhibit == "fig11":
            measure_second(*stage, args.second, note)

    return _run(args, folder, stages, read_second)


def _paper_dry_run(args: Namespace, stages: Sequence[Stage]) -> int:
    from vitc.study.paper.exhibits import get_exhibit
    from vitc.study.paper.plans import cost_lines
    from vitc.study.study_folder import to_json

    lines = cost_lines([plan for _, plan in stages])
    if args.json:
        values = {"exhibit": args.exhibit, "scale": args.scale, "cost": lines}
        emit_json({**values, "plans": [to_json(plan) for _, plan in stages]})
        return 0
    exhibit = get_exhibit(args.exhibit)
    emit(f"{args.exhibit}, {args.scale} scale. {exhibit.title}: {exhibit.about}")
    for line in lines:
        emit(line)
    for folder, plan in stages if args.engine == "slurm" else ():
        show_trials(folder, plan, engine_of(args))
    emit("Nothing was run. --json has every setting of every contender.")
    return 0


# -- verbs -----------------------------------------------------------------------------------------


@cache
def study_verbs() -> dict[str, Verb]:
    """The verbs of `vitc study`: one a measure, and those that are not."""
    from vitc.study.measures import MEASURES

    measures = {name: _measure_verb(measure) for name, measure in MEASURES.items()}
    return {"quick": QUICK_VERB, **measures, "paper": PAPER_VERB, **OTHER_VERBS}


def _measure_verb(measure: Measure) -> Verb:
    return Verb(
        summary=measure.summary,
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example=measure.example,
        options=lambda parser: _measure_options(parser, measure),
        run=lambda args: _measure(args, measure),
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
OTHER_VERBS = {"work": work.VERB, "status": STATUS_VERB}
PAPER_VERB = Verb(
    summary="Set up a figure or table of the paper, full scale or small, beside its numbers.",
    usage="FIGURE|TABLE [--scale small|full] [--dry-run] [options] [--SETTING VALUE ...]",
    example="vitc study paper fig2\nvitc study paper table2 --scale full --dry-run\n"
    "vitc study paper fig4 --scale full --data ~/imagenet",
    options=_paper_options,
    run=_paper,
    runs=("out",),
    takes_settings=True,
    epilog=EPILOG.format(runs="count"),
)
