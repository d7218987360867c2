"""`vitc predict RUN PATH...`: the class of each image, with its probability."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vitc.cli.parser import (
    Parser,
    Verb,
    count,
    device_option,
    emit,
    note,
    weights_option,
)
from vitc.errors import ConfigError
from vitc.files import replacing
from vitc.resolve import PREDICTS, check_is
from vitc.wording import counted


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run, a folder of folds, or of vitc save")
    add("paths", nargs="+", metavar="PATH", help="images, or folders of images")
    add("--topk", metavar="K", type=count, default=1, help="classes per image (default: 1)")
    add("--csv", metavar="FILE", type=Path, help="write a table to this file")
    weights_option(parser)
    device_option(parser)
    add("--json", action="store_true", help="print one line of JSON per image")


def run(args: Namespace) -> int:
    from vitc.deploy.predict import Form, Predictor, find_images, report

    if args.json and args.csv is not None:
        raise ConfigError("--json and --csv exclude each other.", "Choose one of them.")
    check_is(args.run_folder, *PREDICTS)
    files = find_images(args.paths)
    predictor = Predictor(args.run_folder, args.device, args.weights)
    for text in predictor.notes:
        note(text)
    form: Form = "json" if args.json else "csv" if args.csv is not None else "table"
    with _table(args.csv) if args.csv else contextlib.nullcontext(sys.stdout) as stream:
        broken = report(predictor, files, args.topk, form, stream, note)
    if args.csv is not None:
        emit(f"{counted(len(files) - broken, 'image')} -> {args.csv}")
    if broken:
        note(f"{broken:,} of {counted(len(files), 'image')} could not be read.")
    return 1 if broken else 0


@contextlib.contextmanager
def _table(path: Path) -> Iterator[TextIO]:
    """A file that is there once it is whole; a pipe or a terminal is written as it goes."""
    whole = path.is_file() or not path.exists()
    with (
        replacing(path) if whole else contextlib.nullcontext(path) as place,
        place.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        yield stream


VERB = Verb(
    summary="Classify images: the most probable classes of each.",
    usage="RUN PATH... [options]",
    example="vitc predict runs/fashion_vit_c photo.jpg more_photos/ --topk 3",
    options=options,
    run=run,
    runs=("run_folder",),
    in_files=lambda args: args.csv is not None,
)
