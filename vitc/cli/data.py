"""The verbs on data sets: `vitc data check | pack | verify`."""

from __future__ import annotations

import csv
import textwrap
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli.parser import Parser, Verb, count, emit, emit_json, note, writes_files
from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.files import check_output
from vitc.resolve import resolve_config, with_images
from vitc.wording import counted, no_formula, printable

if TYPE_CHECKING:
    from vitc.data.check_report import Report
    from vitc.data.config import DataConfig

WIDTH = 100  # characters of a line of the report
WORKERS = "processes (default: one per core)"
JSON = "print the result as one line of JSON, last on stdout"


# -- check -----------------------------------------------------------------------------------------


def _check_options(parser: Parser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="a folder of images, or another source as for --data")
    add("--html", metavar="FILE", type=Path, help="write a page with pictures of the findings")
    add("--csv", metavar="FILE", type=Path, help="write the files of every finding, one per row")
    add("--sample", metavar="N", type=count, help="check only N images, evenly spaced")
    add("--workers", metavar="N", type=count, help=WORKERS)
    add("--json", action="store_true", help=JSON)


def _check(args: Namespace) -> int:
    config = _config(args.path, args.settings, "check", "bad_files, group, splits, val_fraction")
    for file in (args.html, args.csv):
        if file is not None:
            check_output(file, [args.path])
    from vitc.data.check import check
    from vitc.data.check_report import COLUMNS, rows, to_values
    from vitc.progress import Progress

    with Progress("checking") as progress:
        report = check(config, workers=args.workers, sample=args.sample, progress=progress.update)
    if args.csv is not None:
        with args.csv.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out:
            table = csv.writer(out)
            table.writerow(COLUMNS)
            table.writerows([no_formula(cell) for cell in row] for row in rows(report))
    if args.html is not None:
        from vitc.data.check_page import page
        from vitc.views import html

        args.html.write_text(html.render(page(report)), encoding="utf-8")
    if args.json:
        emit_json(to_values(report))
    else:
        _print_report(report)
        for file in (args.html, args.csv):
            if file is not None:
                emit(f"Written: {file}")
    return 1 if report.fails else 0


def _config(path: str, settings: dict[str, Any], verb: str, allowed: str) -> DataConfig:
    """The data set at `path`. allowed: the settings that the verb takes, or examples of them."""
    from vitc.data.sources import source_problems

    known = [f"data.{name}" for name in allowed.split(", ")] if verb == "pack" else list(settings)
    other = [name for name in settings if not name.startswith("data.") or name not in known]
    if other:
        raise ConfigError(
            f"--{other[0]} has no effect on vitc data {verb}.",
            f"It takes data settings: {', '.join(f'--data.{n}' for n in allowed.split(', '))}.",
        )
    config = resolve_config(with_images(RunConfig(), path), **settings).data
    problems = [*config.problems(), *source_problems(config)]
    if problems:
        raise ConfigError(" ".join(problems))
    return config


def _print_report(report: Report) -> None:
    """The report as text: what there is, the findings worst first, the verdict."""
    from vitc.data.check_report import checked, facts

    classes = counted(len(report.classes), "class", "classes")
    emit(f"{report.config.path or report.config.source}: {classes}")
    for name, value in facts(report):
        emit(f"  {name}: {value}")
    for text in report.notes:
        emit(f"  {text}")
    emit("")
    for finding in report.findings:
        head = f"{'STOP' if finding.severity == 'stop' else finding.severity}  "
        blank = " " * len(head)
        lines = textwrap.wrap(finding.text, WIDTH - len(head), break_on_hyphens=False)
        if finding.places is not None:
            lines += map(printable, finding.examples[:3])
            lines += ["..."] if len(finding.examples) > 3 else []
        emit(head + f"\n{blank}".join([*lines, f"-> {finding.cure}"]))
    for line in checked(report):
        emit(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    if report.fails:
        emit("Training would fail: see STOP.")
    else:
        emit("Training can start." if report.findings else "No problems found.")


# -- pack ------------------------------------------------------------------------------------------


def _pack_options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="a folder of images, or another source as for --data")
    add("out", metavar="OUT.vitc", type=Path, help="the file to make")
    smaller = "resize larger images to this shorter side and store them as JPEG"
    add("--short-side", metavar="PIXELS", type=count, help=smaller)
    add(
        "--quality",
        metavar="1-100",
        type=count,
        help="JPEG quality with --short-side (default: 95)",
    )
    raw = "store decoded pixels, shorter side at most --short-side (default: 256)"
    add("--raw", action="store_true", help=raw)
    channels = "channels of re-encoded images: 1 grey, 3 RGB (default), with --raw 4 RGBA"
    add("--channels", metavar="1|3|4", type=count, help=channels)
    add("--workers", metavar="N", type=count, help=WORKERS)
    broken = "on a broken image: stop (default), or leave it out and report it"
    add("--bad-files", choices=("stop", "skip"), default="stop", help=broken)
    add("--overwrite", action="store_true", help="replace OUT.vitc and start over")
    add("--json", action="store_true", help=JSON)


def _pack(args: Namespace) -> int:
    from vitc.data.pack import PackOptions, describe, pack
    from vitc.data.sources.packed import open_pack
    from vitc.progress import Progress

    names = ("short_side", "quality", "raw", "channels", "bad_files")
    options = PackOptions(**{name: getattr(args, name) for name in names})
    options.check()
    allowed = "image_column, label_column, split_column, splits"
    config = _config(args.source, args.settings, "pack", allowed)
    how = {"workers": args.workers, "overwrite": args.overwrite}
    with Progress("packing") as progress:
        made = pack(config, args.out, options, **how, progress=progress.update)
    if made.resumed:
        note(f"Resumed after {counted(made.resumed, 'image')} packed earlier.")
    for name in made.skipped:
        note(f"broken, left out: {name!r}")
    if made.skipped:
        note(f"{counted(len(made.skipped), 'broken image')} left out.")
    for text in open_pack(made.path).about.notes:
        note(text)
    if args.json:
        values = made._asdict()
        emit_json({"status": "done", "pack": str(values.pop("path")), **values})
    else:
        emit(f"{made.path}: {describe(made.path)}; {made.bytes / 1e6:,.1f} MB.")
        emit(f"Next: vitc train RECIPE --data {made.path}")
    return 0


# -- verify ----------------------------------------------------------------------------------------


def _verify_options(parser: Parser) -> None:
    parser.add_argument("pack", metavar="PACK", type=Path, help="a .vitc file")
    parser.add_argument("--json", action="store_true", help=JSON)


def _verify(args: Namespace) -> int:
    from vitc.data.sources.packed import verify

    made = verify(args.pack)
    if args.json:
        size = args.pack.stat().st_size
        emit_json({"status": "done", "pack": str(args.pack), "images": len(made), "bytes": size})
    else:
        emit(f"{args.pack} is intact: index and {len(made):,} images match their checksums.")
    return 0


DATA_VERBS: dict[str, Verb] = {
    "check": Verb(
        summary="Find problems in a data set before training on it, and how to fix them.",
        usage="PATH [options] [--data.SETTING VALUE ...]",
        example="vitc data check ~/photos\n"
        "vitc data check ~/photos --html findings.html --csv files.csv\n"
        "vitc data check ~/imagenet --sample 100000 --data.bad_files skip",
        options=_check_options,
        run=_check,
        takes_settings=True,
        epilog="Every image is read as in training. Reported are broken, doubtful and odd files;\n"
        "duplicates, exact and near, within a class, across classes (label conflicts) and across\n"
        "splits (leaks); class balance and names; image sizes; stray files. Nothing is changed.\n"
        "Near duplicates differ in at most 4 of the 64 bits of a perceptual hash, and by at most\n"
        "6 of 255 grey levels on average.\n"
        "Exit code 1 if training would fail with the same --data. settings, 0 if it can start.",
    ),
    "pack": Verb(
        summary="Pack a data set into one file: the same training, read faster.",
        usage="SRC OUT.vitc [options]",
        example="vitc data pack ~/photos photos.vitc\n"
        "vitc data pack ~/imagenet imagenet_256.vitc --short-side 256 --quality 95\n"
        "vitc data pack ~/imagenet imagenet_raw.vitc --raw --bad-files skip",
        options=_pack_options,
        run=_pack,
        takes_settings=True,
        in_files=writes_files,
        epilog="Without options, files are stored as they are. Order, labels, splits and names\n"
        "are kept, so a run on the pack sees the same images in the same order. If interrupted,\n"
        "run the same command again to resume. The format: docs/pack-format.md",
    ),
    "verify": Verb(
        summary="Check every checksum of a packed file.",
        usage="PACK [options]",
        example="vitc data verify photos.vitc",
        options=_verify_options,
        run=_verify,
        epilog="Exit code 1, with the first record that does not match, if the file is damaged.",
    ),
}
