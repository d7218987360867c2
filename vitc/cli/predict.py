"""`vitc predict RUN PATH...`: the class of each image, with its probability."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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
from vitc.files import check_output, replacing
from vitc.machine import sigterm_raises
from vitc.resolve import PREDICTS, check_is
from vitc.wording import counted


def options(parser: Parser) -> None:
    add = parser.add_argument
    about = "a run, a folder of folds or of vitc save, or a file of vitc export"
    add("run_folder", metavar="RUN", type=Path, help=about)
    about = (
        "images, or folders of images; - reads their names from stdin, one a line, or ended by NUL"
    )
    add("paths", nargs="+", metavar="PATH", help=about)
    add("--topk", metavar="K", type=count, help="classes per image (default: 1)")
    about = "write the rows to a .csv, .jsonl or .parquet file"
    add("--out", metavar="FILE", type=Path, help=about)
    add("--csv", metavar="FILE", type=Path, help="write a table to this file, whatever its name")
    about = "write what the head reads (embeddings) instead of classes"
    add("--features", action="store_true", help=about)
    weights_option(parser)
    device_option(parser)
    add("--json", action="store_true", help="print one line of JSON per image")


def run(args: Namespace) -> int:
    from vitc.deploy.predict import Predictor, find_images, report
    from vitc.deploy.rows import SUFFIXES

    if sum((args.json, args.csv is not None, args.out is not None)) > 1:
        raise ConfigError("--json, --csv and --out exclude each other.", "Choose one of them.")
    if args.features and args.topk is not None:
        raise ConfigError("--topk has no effect with --features.", "Leave one of them out.")
    out, form = args.csv or args.out, "json" if args.json else "csv" if args.csv else "table"
    if args.out is not None:
        if args.out.suffix.lower() not in SUFFIXES:
            *most, last = SUFFIXES
            raise ConfigError(f"{args.out} must end in {', '.join(most)} or {last}.", "Rename it.")
        form = SUFFIXES[args.out.suffix.lower()]
    named = list(_named(args.paths))
    if out is not None:
        check_output(out, named)
    check_is(args.run_folder, *PREDICTS)
    predictor = Predictor(args.run_folder, args.device, args.weights)
    files = find_images(named, predictor.classifier.config.data)
    for text in predictor.notes:
        note(text)
    # Both for `--csv /dev/stdout`: a table among whose rows nothing else is printed.
    to_stdout = out is None or _is_stdout(out)
    with sigterm_raises(), _stream(None if to_stdout else out, form) as stream:
        broken = report(predictor, files, args.topk or 1, form, stream, note, args.features)
    if not to_stdout:
        emit(f"{counted(len(files) - broken, 'image')} -> {out}")
    if broken:
        note(f"{broken:,} of {counted(len(files), 'image')} could not be read.")
    return 1 if broken else 0


def _named(paths: list[str]) -> Iterator[str]:
    """The paths, and in place of - those on stdin. Raises ConfigError: there are none."""
    for path in paths:
        if not path:
            raise ConfigError("A name of an image is empty.", "Write . for the current folder.")
        if path != "-":
            yield path
            continue
        text = sys.stdin.read()
        lines = text.split("\0" if "\0" in text else "\n")  # NUL: of find -print0
        names = [name for line in lines if (name := line.rstrip("\r\n"))]
        if not names:
            raise ConfigError("There are no names on stdin.", "Send one a line: find . | vitc ...")
        yield from names


def _is_stdout(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(1))
    return False


@contextlib.contextmanager
def _stream(path: Path | None, form: str) -> Iterator[IO[Any]]:
    """A file that is there once it is whole; a pipe or a terminal is written as it goes. None:
    stdout."""
    if path is None:
        if form != "parquet":
            yield sys.stdout
            return
        with open(1, "wb", closefd=False) as binary:
            yield binary
        return
    path = Path(os.path.realpath(path))  # a link stays one
    whole = path.is_file() or not path.exists()
    with (
        replacing(path) if whole else contextlib.nullcontext(path) as place,
        (
            place.open("wb")
            if form == "parquet"
            else place.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        ) as stream,
    ):
        yield stream


VERB = Verb(
    summary="Classify images: the most probable classes of each.",
    usage="RUN PATH... [options]",
    example="vitc predict runs/fashion_vit_c photo.jpg more_photos/ --topk 3\n"
    "find photos -name '*.jpg' | vitc predict runs/photos - --out answers.parquet",
    options=options,
    run=run,
    runs=("run_folder",),
    in_files=lambda args: (out := args.csv or args.out) is not None and not _is_stdout(out),
)
