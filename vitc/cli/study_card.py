"""`vitc study card STEM|MODEL`: run what a screening card needs, and write its page."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import Parser, Verb, count, emit, emit_json, note, writes_files
from vitc.files import read_json

LONGEST = 600.0  # seconds that a card is meant to take on two cores


def _options(parser: Parser) -> None:
    add = parser.add_argument
    about = "a model or stem: its name, FILE.py:Class, timm:NAME or torchvision:NAME; NAME=VALUE"
    add("contender", metavar="[NAME=]STEM|MODEL", help=about)
    about = "the card's folder (default: studies/card_<name>)"
    add("--out", metavar="DIR", type=Path, help=about)
    about = (
        "run all reference trials here instead of using the bundled ones (always done where none "
        "are bundled)"
    )
    add("--own-references", action="store_true", help=about)
    add("--workers", metavar="N", type=count, help="trials at a time (default: one a core)")
    add("--retry-failed", action="store_true", help="rerun trials that failed with an error")
    about = "show how many trials would run, and about how long; run nothing"
    add("--dry-run", action="store_true", help=about)
    add("--json", action="store_true", help="card.json on one line, last on stdout")


def _run(args: Namespace) -> int:
    from vitc.machine import cores
    from vitc.study.screening import card_stages, expected_seconds
    from vitc.study.screening_page import PAGE, VALUES, card, folder_of, parts
    from vitc.views.text import plain
    from vitc.wording import counted, duration

    folder = folder_of(args.contender, args.out)
    stages = card_stages([args.contender], folder, args.own_references)
    workers = args.workers or cores()
    seconds = expected_seconds(stages) / workers
    slow = f", more than the {duration(LONGEST)} meant for a card" if seconds > LONGEST else ""
    note(f"About {duration(seconds)} with {counted(workers, 'trial')} at a time{slow}.")
    if args.dry_run:
        for _, plan in stages:
            emit(f"{plan.name}: {len(list(plan.trials()))} trials of {', '.join(plan.contenders)}")
        emit("Nothing was run or written (--dry-run).")
        return 0
    command = shlex.join(["vitc", *sys.argv[1:]])
    made = card(
        args.contender,
        folder,
        own_references=args.own_references,
        workers=workers,
        retry_failed=args.retry_failed,
        command=command,
    )
    if args.json:
        emit_json(read_json(folder / VALUES) | {"page": str(folder / PAGE)})
    else:
        for text in filter(None, map(plain, parts(made, command)[1:])):
            emit(text)
        emit(f"Card: {folder / PAGE} ({VALUES} beside it)")
    return int(made.unfinished > 0)


VERB = Verb(
    summary="A screening card of your stem or model in minutes, against ViT_P and ViT_C.",
    usage="STEM|MODEL [options]",
    example="vitc study card my_stem.py:MyStem\nvitc study card torchvision:resnet18",
    options=_options,
    run=_run,
    in_files=writes_files,
    runs=("out",),
    epilog="The draws are fixed, 24 an optimizer, and a card is never extended; interrupted, the\n"
    "same command resumes. What it shows and what it does not: docs/card.md.",
)
