"""The verbs of the study room: `vitc study quick | hparams | status` and `vitc report`."""

from __future__ import annotations

import argparse
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from vitc.cli.engines import engine_of, engine_options, only_say, placed, say_trials
from vitc.cli.parser import Parser, Verb, count, note, say, say_json, seconds
from vitc.errors import ConfigError, suggest
from vitc.files import read_json

if TYPE_CHECKING:
    from vitc.study.design import Group, Plan, Range, StudyFolder
    from vitc.study.results import Protocol

QUICK_SECONDS = 240.0  # of training, so that install and report fit into a few minutes as well


# -- quick and hparams -----------------------------------------------------------------------------


def _draw_options(parser: Parser, out: str) -> None:
    add = parser.add_argument
    add("--draws", metavar="N", type=count, help="draws a contender and optimizer")
    add(
        "--test",
        action="store_true",
        help="at the end, read the test images with each contender's best draw",
    )
    shared_options(parser, out)


def shared_options(parser: Parser, out: str) -> None:
    """What every study takes, `vitc study length` and the like too."""
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, help=f"the study's folder (default: {out})")
    add("--seed", metavar="N", type=int, default=0, help="seed of the draws (default: 0)")
    add(
        "--allow-mixed",
        action="store_true",
        help="compare though settings, versions or machines differ; reported",
    )
    add("--retry-failed", action="store_true", help="run trials again whose worker died")
    protocol_option(parser)
    add("--json", action="store_true", help="results.json on one line, last on stdout")
    engine_options(parser)


def protocol_option(parser: Parser) -> None:
    about = (
        "a run's error: after its last epoch (default), or as the authors' sweeps have it, the "
        "least of all its epochs (said in the report, which goes to report_paper)"
    )
    parser.add_argument("--protocol", choices=("last", "paper"), default="last", help=about)


def _quick_options(parser: Parser) -> None:
    _draw_options(parser, "studies/quick")
    about = f"time for the trials, as 5m: sets the draws (default: {QUICK_SECONDS:.0f}s)"
    parser.add_argument("--budget", metavar="TIME", type=seconds, default=QUICK_SECONDS, help=about)


def _quick(args: Namespace) -> int:
    from vitc.study.design import StudyFolder
    from vitc.study.launch import default_workers
    from vitc.study.quick import quick_plan

    if args.engine != "local" and args.draws is None:
        raise ConfigError(
            f"--engine {args.engine} needs --draws: the budget is measured on this machine.",
            "For example: --draws 32",
        )
    folder = StudyFolder(args.out or Path("studies/quick"))
    precision, draws = None, args.draws
    if folder.exists():  # what was measured or chosen at its start stays
        old, _ = folder.read()
        precision, draws = old.groups[0].config.train.precision, draws or old.draws
    workers = args.workers or default_workers()
    plan, why = quick_plan(
        args.budget, workers, draws=draws, seed=args.seed, precision=precision, **args.settings
    )
    note(why)
    return _conduct(args, folder, plan)


def _hparams_options(parser: Parser) -> None:
    add = parser.add_argument
    contender_options(parser)
    add(
        "--range",
        nargs=3,
        action="append",
        default=[],
        metavar=("SETTING", "LOW", "HIGH"),
        help="draw SETTING log-uniformly; OPTIM:SETTING for one optimizer. Default: lr and "
        "weight decay, from the paper's ranges or [c/8, 4c] around the recipe's own",
    )
    add(
        "--linear-range",
        nargs=3,
        action="append",
        default=[],
        metavar=("SETTING", "LOW", "HIGH"),
        help="the same, uniformly",
    )
    add(
        "--ranges",
        choices=("shared", "separate", "union"),
        default="shared",
        help="one range for all, the first recipe's whatever the models (default); each "
        "contender's own recipe's; or all of them together",
    )
    add("--octave", choices=("up", "down"), help="all log ranges doubled, or halved")
    _draw_options(parser, "studies/hparams")


def contender_options(parser: Parser, optims: tuple[str, ...] = ("adamw",)) -> None:
    """Who is compared: recipes x models x stems, under which optimizers, against whom."""
    add = parser.add_argument
    add("recipes", nargs="+", metavar="RECIPE", help="recipes, or config files")
    add(
        "--models",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="contenders: these models under each recipe (default: each recipe's own)",
    )
    add(
        "--stems",
        nargs="+",
        default=[],
        metavar="STEM",
        help="contenders: each model with these stems: kinds (conv, patchify ...) or classes from "
        "outside (my.py:MyStem); labelled MODEL+STEM",
    )
    add(
        "--optims",
        nargs="+",
        default=list(optims),
        metavar="OPTIM",
        help=f"default: {' '.join(optims)}",
    )
    add("--reference", metavar="NAME", help="the contender to compare with (default: the last)")
    add("--control", action="store_true", help="add the reference against itself, other seeds")
    for name, about in CONTROL_FLAGS.items():
        add(
            f"--{name.replace('_', '-')}",
            action="append_const",
            const=name,
            dest="controls",
            help=about,
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


def _hparams(args: Namespace) -> int:
    from vitc.study.design import StudyFolder
    from vitc.study.runner import hparams_plan, range_lines

    folder = StudyFolder(args.out or Path("studies/hparams"))
    settings = dict(args.settings)
    draws = args.draws or 16
    begun: tuple[Group, ...] = ()
    if folder.exists():
        old, _ = folder.read()
        begun = old.groups
        settings.setdefault("train.precision", old.groups[0].config.train.precision)
        draws = args.draws or old.draws
    check_contenders(args)
    plan = hparams_plan(
        args.recipes,
        args.models,
        args.optims,
        stems=args.stems,
        draws=draws,
        seed=args.seed,
        ranges=_ranges(args),
        control=args.control,
        controls=args.controls or (),
        range_rule=args.ranges,
        octave=args.octave,
        old=begun,
        reference=args.reference or "",
        name=folder.path.name,
        **settings,
    )
    for line in range_lines(plan, args.recipes[0], args.ranges):
        note(line)
    return _conduct(args, folder, plan)


def check_contenders(args: Namespace) -> None:
    """Raises ConfigError: a setting that `contender_options` chooses already."""
    for name in ("optim", "model"):
        if name in args.settings:
            raise ConfigError(
                f"--{name} has no effect in a study.", f"Name contenders with --{name}s."
            )
    twice = [name for name in args.settings if name.startswith("model.stem")]
    if args.stems and twice:
        raise ConfigError(f"--{twice[0]} has no effect with --stems, which chooses the stems.")


def _ranges(args: Namespace) -> dict[str, dict[str, Range]]:
    """`--range` words by optimizer. Raises ConfigError where a bound is not a number."""
    from vitc.study.design import Range

    found: dict[str, dict[str, Range]] = {optim: {} for optim in args.optims}
    for words, log in ((args.range, True), (args.linear_range, False)):
        for name, low, high in words:
            prefix, colon, setting = name.rpartition(":")
            if colon and prefix not in found:
                raise ConfigError(
                    f"The range {name} is for optimizer {prefix!r}, which is not in the study."
                    f"{suggest(prefix, found)}",
                    f"In the study: {', '.join(found)}.",
                )
            try:
                new = Range(low=float(low), high=float(high), log=log)
            except ValueError:
                raise ConfigError(
                    f"The range {name} {low} {high} needs two numbers.",
                    "For example: --range optim.lr 1e-4 1e-2",
                ) from None
            for optim in [prefix] if colon else args.optims:
                found[optim][setting] = new
    return found


def run_trials(args: Namespace, folder: StudyFolder, plan: Plan) -> Plan:
    """Run what is missing of a plan, as the options of `shared_options` ask; the plan as stored."""
    from vitc.study.runner import conduct

    plan = folder.joined(plan)
    engine = engine_of(args)
    if args.dry_run:
        only_say(folder, plan, engine)
    conduct(
        folder,
        plan,
        engine=engine,
        allow_mixed=args.allow_mixed,
        retry_failed=args.retry_failed,
        command=shlex.join(["vitc", *sys.argv[1:]]),
    )
    return plan


def _conduct(args: Namespace, folder: StudyFolder, plan: Plan) -> int:
    plan = run_trials(args, folder, plan)
    if args.test:
        from vitc.study.chosen import measure_chosen

        measure_chosen(folder, plan, note)
    return report_on([folder.path], None, args.json, protocol=args.protocol, ran=True)


def report_on(
    folders: list[Path],
    out: Path | None,
    as_json: bool,
    markdown: Path | None = None,
    protocol: Protocol = "last",
    ran: bool = False,
) -> int:
    """Make and tell the report. 1 where the trials just `ran` and some failed or have no result;
    diverged ones are results."""
    from vitc.study.report import report
    from vitc.study.summary import summary_text

    page, sections = report(folders, out, markdown, protocol)
    unfinished = sum(section.unfinished for section in sections)
    failed = sum(row.status == "failed" for section in sections for row in section.results)
    code = int(ran and bool(failed or unfinished))
    if as_json:
        say_json(read_json(page.parent / "results.json") | {"report": str(page)})
        return code
    for section in sections:
        say(summary_text(section))
    say(f"Report: {page} (figures, trials.csv, table.tex and results.json beside it)")
    if markdown is not None:
        say(f"Page: {markdown} (its figures and numbers in {markdown.with_suffix('')})")
    if failed:
        where = " or ".join(f"vitc study status {folder}" for folder in folders)
        say(f"Failed: {failed} trial(s); why: {where}; again: the same command and --retry-failed")
    if unfinished:
        say(f"Next: the same command goes on with {unfinished} trial(s) that have no result yet")
    elif len(folders) == 1:
        plan = sections[0].plan
        more = "--count" if plan.exhibit else "--draws" if plan.measure == "hparams" else "--seeds"
        say(
            f"Next, for tighter intervals: the same command with {more} {2 * plan.draws} "
            "(trials that ended are kept)"
        )
    return code


# -- status and report -----------------------------------------------------------------------------


def _status_options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a study's folder")


def _status(args: Namespace) -> int:
    from vitc.study.design import StudyFolder
    from vitc.study.runner import status_lines

    for line in status_lines(StudyFolder(args.folder)):
        say(line)
    return 0


def _work_options(parser: Parser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="a study's folder, which other machines may share")
    add(
        "--slice",
        metavar="I/N",
        type=part,
        default=(1, 1),
        help="the I-th of N equal parts of the trials, as 1/4 (default: all)",
    )
    add("--allow-mixed", action="store_true", help="run trials though versions differ; reported")
    engine_options(parser, shown=True)


def part(text: str) -> tuple[int, int]:
    """`2/4` as (2, 4)."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 1 to N, as 1/4")
    return int(first), int(last)


def _work(args: Namespace) -> int:
    from vitc.study.design import StudyFolder
    from vitc.study.runner import work_on

    folder, engine = StudyFolder(args.folder), engine_of(args)
    if args.dry_run:
        say_trials(folder, folder.read()[0], engine)
        return 0
    now = work_on(folder, engine, part=args.slice, allow_mixed=args.allow_mixed)
    counts = ", ".join(f"{n} {status}" for status, n in now.counts.items())
    say(f"{folder.path}: {now.ended} of {now.total} trials have ended; {counts}")
    return int(now.counts["failed"] > 0)


def _report_options(parser: Parser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", type=Path, help="one or more studies")
    add("--out", metavar="DIR", type=Path, help="where to (default: <study>/report)")
    add(
        "--page",
        metavar="FILE.md",
        type=Path,
        help="a Markdown page of it as well, for a repository",
    )
    protocol_option(parser)
    add("--json", action="store_true", help="results.json on one line, last on stdout")


def _report(args: Namespace) -> int:
    return report_on(args.folders, args.out, args.json, args.page, args.protocol)


STUDY_EPILOG = (
    "Every trial is an ordinary run folder. Interrupted, the same command goes on; with more\n"
    "--draws it keeps the trials that ended. Dotted settings hold for every trial:\n"
    "--train.epochs 10. How far it is, from another terminal: vitc study status DIR"
)

STUDY_VERBS: dict[str, Verb] = {
    "quick": Verb(
        summary="Is a ViT_C easier to train than a ViT_P? A study in minutes, no download.",
        usage="[options] [--SETTING VALUE ...]",
        example="vitc study quick --budget 20m --out studies/longer",
        options=_quick_options,
        run=placed(_quick),
        runs=("out",),
        takes_settings=True,
        epilog=STUDY_EPILOG,
    ),
    "hparams": Verb(
        summary="Train contenders on the same random draws of lr, weight decay or any setting.",
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example="vitc study hparams fashion_vit_p --models vit_c_tiny vit_p_tiny --draws 16\n"
        "vitc study hparams fashion_vit_p --stems conv patchify my.py:MyStem\n"
        "vitc study hparams cifar10_vit_c cifar10_vit_p --data ~/cifar10 --optims adamw sgd\n"
        "vitc study hparams debug --range optim.lr 1e-4 1e-2 "
        "--linear-range optim.clip_norm 0.5 2",
        options=_hparams_options,
        run=placed(_hparams),
        runs=("recipes", "out"),
        takes_settings=True,
        epilog=STUDY_EPILOG,
    ),
    "work": Verb(
        summary="Run the unfinished trials of a study, on any machine that sees its folder.",
        usage="DIR [--slice I/N] [options]",
        example="vitc study work /shared/studies/lr --workers 4\n"
        "vitc study work /shared/studies/lr --engine ray --ray-address auto",
        options=_work_options,
        run=_work,
        runs=("folder",),
    ),
    "status": Verb(
        summary="Say how far a study is.",
        usage="DIR",
        example="vitc study status studies/quick",
        options=_status_options,
        run=_status,
    ),
}

REPORT_VERB = Verb(
    summary="Make the report of a study again, or one of several studies.",
    usage="DIR... [options]",
    example="vitc report studies/quick\nvitc report studies/a studies/b --out both\n"
    "vitc report studies/quick --page docs/quick.md",
    options=_report_options,
    run=_report,
    runs=("folders",),
)
