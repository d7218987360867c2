"""`vitc study work DIR`: run the unfinished trials of a study, from any machine that sees it."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from vitc.cli.engines import engine_of, engine_options, show_trials
from vitc.cli.parser import Parser, Verb, emit


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
    now = work_on(folder, engine, part=args.slice, allow_mixed=args.allow_mixed)
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
    runs=("folder",),
)
