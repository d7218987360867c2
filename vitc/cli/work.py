"""`vitc study work DIR`, and what every verb that runs trials takes: `--engine` and its flags."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitc.cli.parser import Parser, Verb, changed_data_option, count, emit, writes_files
from vitc.errors import ConfigError
from vitc.wording import counted

if TYPE_CHECKING:
    from vitc.study.design import Plan
    from vitc.study.launch import Engine
    from vitc.study.study_folder import StudyFolder


class Flag(NamedTuple):
    """A flag of engines; the engine's class has a field of its name."""

    engines: tuple[str, ...]
    kind: Callable[[str], Any]
    metavar: str | None
    help: str
    choices: tuple[str, ...] | None = None


_CLUSTERS, _SLURM = ("ray", "slurm"), ("slurm",)
FLAGS: dict[str, Flag] = {
    "workers": Flag(("local",), count, "N", "trials at a time (default: one a core, or four)"),
    "ray_address": Flag(
        ("ray",), str, "auto|HOST:PORT", "a running cluster (default: start a local one)"
    ),
    "gpus_per_trial": Flag(
        _CLUSTERS, float, "N", "GPUs of a trial (default: 0); ray: also a share, as 0.25"
    ),
    "cpus_per_trial": Flag(_CLUSTERS, count, "N", "cores of a trial (default: 1)"),
    "nodes_per_trial": Flag(_SLURM, count, "N", "nodes of a trial (default: 1)"),
    "pack": Flag(_SLURM, count, "N", "N trials of at most one GPU in one whole-node job"),
    "partition": Flag(_SLURM, str, "NAME", "as sbatch's"),
    "account": Flag(_SLURM, str, "NAME", "as sbatch's"),
    "qos": Flag(_SLURM, str, "NAME", "as sbatch's"),
    "constraint": Flag(_SLURM, str, "NAME", "as sbatch's"),
    "max_jobs": Flag(_SLURM, count, "N", "jobs at a time (default: 100)"),
    "hours": Flag(_SLURM, float, "H", "wall time of a job; trials may take longer (default: 24)"),
    "slurm_cluster": Flag(
        _SLURM, str, None, "local: run the jobs on this machine, as a test", ("slurm", "local")
    ),
}


def engine_options(parser: Parser, shown: bool = False) -> None:
    """What every verb that runs trials takes; no part of a study's plan. The flags of the engines
    are `shown` in the help of `vitc study work` alone."""
    add = parser.add_argument_group("where the trials run (docs/clusters.md)").add_argument
    add(
        "--engine",
        choices=("local", "ray", "slurm"),
        default="local",
        help="this machine (default), a Ray cluster, or SLURM; a study may change it"
        + ("" if shown else ". Their flags: vitc study work --help"),
    )
    add(
        "--dry-run",
        action="store_true",
        help="show how many trials would run, with slurm the job script; run nothing",
    )
    for name, flag in FLAGS.items():
        add(
            f"--{name.replace('_', '-')}",
            type=flag.kind,
            metavar=flag.metavar,
            choices=flag.choices,
            help=f"{', '.join(flag.engines)}: {flag.help}"
            if shown or name == "workers"
            else argparse.SUPPRESS,
        )


def engine_of(args: Namespace) -> Engine:
    """The engine with its flags. Raises ConfigError listing flags without an effect."""
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    found = [
        f"--{name.replace('_', '-')} has no effect with --engine {args.engine}; it is for: "
        f"{', '.join(FLAGS[name].engines)}."
        for name in given
        if args.engine not in FLAGS[name].engines
    ]
    if found:
        raise ConfigError("\n".join(found))
    from vitc.study.launch import ENGINES

    engine: Engine = ENGINES[args.engine](**given)
    return engine


def settings_of(args: Namespace) -> dict[str, Any]:
    """The dotted settings of a verb that runs trials, its engine's flags checked.

    For trials on other machines `train.device` is set by the flags: this machine's is irrelevant.
    """
    device = engine_of(args).device(args.settings.get("train.device"))
    return dict(args.settings) if device is None else {**args.settings, "train.device": device}


def show_trials(folder: StudyFolder, plan: Plan, engine: Engine) -> None:
    """How many trials of a plan would run, and with SLURM the job script."""
    from vitc.study.launch import device_of
    from vitc.study.launch_slurm import SlurmEngine
    from vitc.study.standing import standing, trials_by_id

    total = len(trials_by_id(plan))
    left = total - (standing(folder, plan).ended if folder.exists() else 0)
    emit(
        f"{folder.path}: {left} of {total} trials would run with engine {engine.name}, at most "
        f"{min(engine.size, max(left, 1))} at a time. Contenders: {', '.join(plan.contenders)}; "
        f"optimizers: {', '.join(plan.optims)}."
    )
    if isinstance(engine, SlurmEngine) and left:
        jobs = engine.tasks(left)
        emit(f"Jobs: {jobs}, about {counted(-(-left // jobs), 'trial')} in each. The job script:\n")
        emit(engine.script(folder.path, left, device_of(plan)))


# -- vitc study work ----------------------------------------------------------------------------


def options(parser: Parser) -> None:
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
    changed_data_option(parser, "run trials although images changed since others were run")
    engine_options(parser, shown=True)


def part(text: str) -> tuple[int, int]:
    """`2/4` as (2, 4)."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 1 to N, as 1/4")
    return int(first), int(last)


def run(args: Namespace) -> int:
    from vitc.study.runner import work_on
    from vitc.study.study_folder import StudyFolder

    folder, engine = StudyFolder(args.folder), engine_of(args)
    if args.dry_run:
        show_trials(folder, folder.read()[0], engine)
        return 0
    now = work_on(
        folder,
        engine,
        part=args.slice,
        allow_mixed=args.allow_mixed,
        allow_changed_data=args.allow_changed_data,
    )
    counts = ", ".join(f"{n} {status}" for status, n in now.counts.items())
    emit(f"{folder.path}: {now.ended} of {now.total} trials have ended; {counts}")
    return int(now.counts["failed"] > 0)


VERB = Verb(
    summary="Run the unfinished trials of a study, on any machine that sees its folder.",
    usage="DIR [--slice I/N] [options]",
    example="vitc study work /shared/studies/lr --workers 4\n"
    "vitc study work /shared/studies/lr --engine ray --ray-address auto",
    options=options,
    run=run,
    in_files=writes_files,
    runs=("folder",),
)
