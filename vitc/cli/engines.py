"""The words that say where a study's trials run: `--engine` and its flags, and `--dry-run`."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from vitc.cli.parser import Parser, count, say
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.study.design import Plan, StudyFolder
    from vitc.study.launch import Engine
    from vitc.study.placement import Placement


def engine_options(parser: Parser) -> None:
    """What every verb that runs trials takes; none of it is part of a study's plan."""
    add = parser.add_argument_group("where the trials run (docs/clusters.md)").add_argument
    add(
        "--engine",
        choices=("local", "ray", "slurm"),
        default="local",
        help="this machine (default), a Ray cluster, or SLURM; a study may change it",
    )
    add(
        "--dry-run",
        action="store_true",
        help="say how many trials would run, with slurm the job script; run nothing",
    )
    add(
        "--gpus-per-trial",
        metavar="N",
        type=float,
        help="ray, slurm: GPUs of a trial; ray: also a share, as 0.25 (default: 0)",
    )
    add("--cpus-per-trial", metavar="N", type=count, help="ray, slurm: its cores (default: 1)")
    add(
        "--ray-address",
        metavar="auto|HOST:PORT",
        help="ray: a cluster that is there (default: a local one, for this study)",
    )
    add("--nodes-per-trial", metavar="N", type=count, help="slurm: nodes of a trial (default: 1)")
    add(
        "--pack",
        metavar="N",
        type=count,
        help="slurm: N trials of one GPU (or none) side by side in a whole-node job",
    )
    for name in ("partition", "account", "qos", "constraint"):
        add(f"--{name}", metavar="NAME", help="slurm: as sbatch's")
    add("--max-jobs", metavar="N", type=count, help="slurm: jobs at a time (default: 100)")
    add(
        "--hours",
        metavar="H",
        type=float,
        help="slurm: wall time of a job; trials may take longer (default: 24)",
    )
    add(
        "--slurm-cluster",
        choices=("slurm", "local"),
        help="local: submitit's stand-in on this machine, to try things out",
    )


def placement_of(args: Namespace) -> Placement:
    """The engine's flags, checked. Raises ConfigError."""
    import dataclasses

    from vitc.study.placement import Placement

    names = [field.name for field in dataclasses.fields(Placement)]
    return Placement(**{name: getattr(args, name) for name in names}).checked()


def engine_of(args: Namespace, plan: Plan) -> Engine:
    """The engine for a plan's trials. Raises ConfigError."""
    devices = {g.config.train.device for g in plan.groups}
    if len(devices) > 1:
        raise ConfigError(f"The trials are for several devices: {', '.join(sorted(devices))}.")
    return placement_of(args).make(devices.pop())


class _OnlySaid(Exception):
    """--dry-run has said what it has to say: the verb ends here."""


def placed(run: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """A verb that runs trials, with its engine's flags looked at first.

    For trials elsewhere `train.device` is set as the flags say, for what is here does not matter.
    """

    @functools.wraps(run)
    def verb(args: Namespace) -> int:
        device = placement_of(args).device(args.settings.get("train.device"))
        if device is not None:
            args.settings["train.device"] = device
        try:
            return run(args)
        except _OnlySaid:
            return 0

    return verb


def only_say(folder: StudyFolder, plan: Plan, engine: Engine) -> None:
    """--dry-run: say what would be run, write nothing, and end the verb."""
    say_trials(folder, plan, engine)
    say("Nothing was run or written (--dry-run).")
    raise _OnlySaid


def say_trials(folder: StudyFolder, plan: Plan, engine: Engine) -> None:
    """How many trials of a plan would run, and with SLURM the job script."""
    from vitc.study.launch_slurm import SlurmEngine
    from vitc.study.runner import standing, trials_by_id

    total = len(trials_by_id(plan))
    left = total - (standing(folder, plan).ended if folder.exists() else 0)
    say(
        f"{folder.path}: {left} of {total} trials would run with engine {engine.name}, at most "
        f"{min(engine.workers, max(left, 1))} at a time. Contenders: {', '.join(plan.contenders)}; "
        f"optimizers: {', '.join(plan.optims)}."
    )
    if isinstance(engine, SlurmEngine) and left:
        jobs = -(-left // engine.pack)
        say(f"Jobs: {jobs}, {engine.pack} trial(s) in each. The job script:\n")
        say(engine.script(folder.path, jobs))
