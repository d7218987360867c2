"""The verb `vitc data check`: what is wrong with a data set, before it is trained on."""

from __future__ import annotations

import csv
import sys
import textwrap
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli.parser import Parser, Verb, count, note, say, say_json
from vitc.config import RunConfig, resolve_config, with_data
from vitc.errors import ConfigError
from vitc.wording import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from vitc.data.check import Report
    from vitc.data.config import DataConfig

PLAIN_EVERY_SECONDS = 10.0  # between plain progress lines
WORDS = {"stop": "STOP", "warn": "warn", "note": "note"}
COMMAND_WIDTH = 100


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="a folder of images, or whatever --data takes")
    add("--html", metavar="FILE", type=Path, help="write a page with pictures of the findings")
    add("--csv", metavar="FILE", type=Path, help="write the files of every finding, one a row")
    add(
        "--sample",
        metavar="N",
        type=count,
        help="look at N images only, evenly spaced (default: all)",
    )
    add("--workers", metavar="N", type=count, help="processes (default: one a core)")
    add("--json", action="store_true", help="the report on one line, last on stdout")


def _check(args: Namespace) -> int:
    config = _config(args.path, args.settings)
    for file in (args.html, args.csv):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"There is no folder {file.absolute().parent} to write {file} into.")
    from vitc.data import check as doctor

    with _Progress() as progress:
        report = doctor.check(config, workers=args.workers, sample=args.sample, progress=progress)
    if args.csv is not None:
        with args.csv.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out:
            table = csv.writer(out)
            table.writerow(doctor.COLUMNS)
            table.writerows(doctor.rows(report))
    if args.html is not None:
        from vitc.data.check_page import page

        args.html.write_text(page(report), encoding="utf-8")
    if args.json:
        say_json(doctor.to_values(report))
    else:
        _say(report)
        for file in (args.html, args.csv):
            if file is not None:
                say(f"Written: {file}")
    return 1 if report.fails else 0


def _config(path: str, settings: dict[str, Any]) -> DataConfig:
    from vitc.data.sources import source_problems

    other = [name for name in settings if not name.startswith("data.")]
    if other:
        raise ConfigError(
            f"--{other[0]} has no effect on a check of data.",
            "Settings that have: --data.bad_files, --data.group, --data.val_fraction "
            "and others of --data.",
        )
    config = resolve_config(with_data(RunConfig(), path), **settings).data
    problems = [*config.problems(), *source_problems(config)]
    if problems:
        raise ConfigError(" ".join(problems))
    return config


def _say(report: Report) -> None:
    """The report as text: what there is, the findings worst first, the verdict."""
    from vitc.data.check import to_values
    from vitc.wording import counted

    values = to_values(report)
    splits = ", ".join(f"{n:,} {name}" for name, n in values["images"].items())
    say(
        f"{report.config.path or report.config.source}: "
        f"{counted(len(report.classes), 'class', 'classes')}, "
        f"{counted(sum(values['images'].values()), 'image')} ({splits or 'none'}), "
        f"{values['examined']:,} examined, {values['broken']:,} broken."
    )
    if values["sizes"]:
        for side, numbers in values["sizes"].items():
            low, *_, middle, _, _, high = (f"{n:,}" for n in numbers)
            say(f"  {side.replace('_', ' ')}: {low} to {high} pixels, half up to {middle}")
        say("  formats: " + ", ".join(f"{k} {n:,}" for k, n in values["formats"].items()))
        say("  modes: " + ", ".join(f"{k} {n:,}" for k, n in values["modes"].items()))
    if values["speed"]:
        speed = values["speed"]
        say(
            f"  reading and decoding here: {speed['images_per_second_a_core']:,.0f} images/s a "
            f"core, so {counted(speed['processes'], 'loader process', 'loader processes')} can "
            f"give at most "
            f"{speed['images_per_second']:,.0f}"
        )
    for text in values["notes"]:
        say(f"  {text}")
    say("")
    for finding in report.findings:
        head = f"{WORDS[finding.severity]}  "
        blank = " " * len(head)
        say(
            textwrap.fill(
                finding.text,
                COMMAND_WIDTH,
                initial_indent=head,
                subsequent_indent=blank,
                break_on_hyphens=False,
            )
        )
        if finding.places is not None:
            for example in finding.examples[:3]:
                say(f"{blank}{printable(example)}")
            if len(finding.examples) > 3:
                say(f"{blank}...")
        say(f"{blank}-> {finding.cure}")
    if report.fails:
        say("Training would fail: see STOP.")
    else:
        say("Training can start." if report.findings else "Nothing was found: training can start.")


class _Progress:
    """A bar with rate and ETA on a terminal's stderr, elsewhere a plain line now and then."""

    def __init__(self) -> None:
        self.started = self.told = time.monotonic()
        self.stack = ExitStack()
        self.bar: Progress | None = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            self._show(done, total)
            return
        now = time.monotonic()
        if now - self.told < PLAIN_EVERY_SECONDS:
            return
        self.told = now
        rate = done / (now - self.started)
        left = (total - done) / rate
        note(
            f"checked {done:,} of {total:,}  {rate:,.0f} img/s  "
            f"{left // 60:.0f}:{left % 60:02.0f} left"
        )

    def _show(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        if self.bar is None:
            columns = (
                TextColumn("checking"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            console = Console(file=sys.stderr)
            self.bar = self.stack.enter_context(Progress(*columns, console=console, transient=True))
            self.bar.add_task("", total=total, rate="")
        rate = done / max(1e-9, time.monotonic() - self.started)
        self.bar.update(self.bar.task_ids[0], completed=done, rate=f"{rate:,.0f} img/s")


CHECK_VERB = Verb(
    summary="Find what is wrong with a data set before it is trained on, and what cures it.",
    usage="PATH [options] [--data.SETTING VALUE ...]",
    example="vitc data check ~/photos\n"
    "vitc data check ~/photos --html findings.html --csv files.csv\n"
    "vitc data check ~/imagenet --sample 100000 --data.bad_files skip",
    options=_options,
    run=_check,
    takes_settings=True,
    epilog="It reads every image as training would: broken, doubtful and odd files, copies within\n"
    "a class, across classes (label conflicts) and across splits (leaks), exact and near;\n"
    "class balance and names; sizes; what lies beside. Nothing is changed. Near copies differ\n"
    "in at most 4 of the 64 bits of a perceptual hash, and by 6 of 255 grey levels in the mean.\n"
    "Exit code 1 if training would fail with the same --data. settings, 0 if it can start.",
)
