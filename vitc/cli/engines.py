"""Where do a study's trials run, by the command line? `--engine` and its flags, and `--dry-run`."""

from __future__ import annotations

import argparse
import functools
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from vitc.cli.parser import Parser, count, say

if TYPE_CHECKING:
    from vitc.study.design import Plan, StudyFolder
    from vitc.study.launch import Engine


def engine_options(parser: Parser, shown: bool = False) -> None:
    """What every verb that runs trials takes; no part of a study's plan. The flags of the engines
    are `shown` in the help of `vitc study work` alone."""
    from vitc.study.launch import FLAGS, engines_of

    add = parser.add_argument_group("where the trials run (docs/clusters.md)").add_argument
    add(
        "--engine",
        choices=("local", "ray", "slurm"),
        default="local",
        help="this machine (default), a Ray cluster, or SLURM; a study may change it. Their flags: "
        "vitc study work --help",
    )
    add(
        "--dry-run",
        action="store_true",
        help="show how many trials would run, with slurm the job script; run nothing",
    )
    for name, flag in FLAGS.items():
        about = f"{', '.join(engines_of(name))}: {flag.help}"
        add(
            f"--{name.replace('_', '-')}",
            type=count if flag.kind is int else flag.kind,
            metavar=None if flag.choices else flag.metavar,
            choices=flag.choices or None,
            help=about if shown or name == "workers" else argparse.SUPPRESS,
        )


def engine_of(args: Namespace) -> Engine:
    """The engine with its flags, checked. Raises ConfigError."""
    from vitc.study.launch import FLAGS, make_engine

    return make_engine(args.engine, {name: getattr(args, name) for name in FLAGS})


class _OnlySaid(Exception):
    """--dry-run has said what it has to say: the verb ends here."""


def placed(run: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """A verb that runs trials, with its engine's flags checked first.

    For trials on other machines `train.device` is set by the flags: this machine's is irrelevant.
    """

    @functools.wraps(run)
    def verb(args: Namespace) -> int:
        device = engine_of(args).device(args.settings.get("train.device"))
        if device is not None:
            args.settings["train.device"] = device
        try:
            return run(args)
        except _OnlySaid:
            return 0

    return verb


def only_say(folder: StudyFolder, plan: Plan, engine: Engine) -> None:
    """--dry-run: show what would be run, write nothing, and end the verb."""
    say_trials(folder, plan, engine)
    say("Nothing was run or written (--dry-run).")
    raise _OnlySaid


def say_trials(folder: StudyFolder, plan: Plan, engine: Engine) -> None:
    """How many trials of a plan would run, and with SLURM the job script."""
    from vitc.study.launch import device_of
    from vitc.study.launch_slurm import SlurmEngine
    from vitc.study.runner import standing, trials_by_id

    total = len(trials_by_id(plan))
    left = total - (standing(folder, plan).ended if folder.exists() else 0)
    say(
        f"{folder.path}: {left} of {total} trials would run with engine {engine.name}, at most "
        f"{min(engine.size, max(left, 1))} at a time. Contenders: {', '.join(plan.contenders)}; "
        f"optimizers: {', '.join(plan.optims)}."
    )
    if isinstance(engine, SlurmEngine) and left:
        jobs = engine.tasks(left)
        say(f"Jobs: {jobs}, about {-(-left // jobs)} trial(s) in each. The job script:\n")
        say(engine.script(folder.path, left, device_of(plan)))
