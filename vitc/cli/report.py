"""`vitc report DIR...`: the report of one study or of several, from their trials alone."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitc.cli.parser import Parser, Verb, changed_data_option, emit, emit_json, writes_files
from vitc.files import read_json

if TYPE_CHECKING:
    from vitc.study.results import Protocol


def protocol_option(parser: Parser, hidden: bool = False) -> None:
    about = (
        "a run's error: after its last epoch (default), or as in the authors' sweeps the least of "
        "all its epochs (paper; the report names it, and goes to report_paper)"
    )
    help_of = argparse.SUPPRESS if hidden else about
    parser.add_argument("--protocol", choices=("last", "paper"), default="last", help=help_of)


def report_on(
    folders: Sequence[Path],
    out: Path | None,
    as_json: bool,
    markdown: Path | None = None,
    protocol: Protocol = "last",
    ran: bool = False,
    allow_changed_data: bool = False,
) -> int:
    """Make and print the report. 1 where the trials just `ran` and some failed or have no result;
    diverged ones are results."""
    from vitc.study.reporting import report, summary_text
    from vitc.study.study_folder import looks_taken

    page, sections = report(folders, out, markdown, protocol, allow_changed_data)
    unfinished = sum(section.unfinished for section in sections)
    failed = sum(r.status == "failed" for section in sections for r in section.results)
    code = int(ran and bool(failed or unfinished))
    if as_json:
        emit_json(read_json(page.parent / "results.json") | {"report": str(page)})
        return code
    for section in sections:
        emit(summary_text(section))
    emit(f"Report: {page} (figures, trials.csv, table.tex and results.json beside it)")
    if markdown is not None:
        emit(f"Page: {markdown} (its figures and numbers in {markdown.with_suffix('')})")
    if failed:
        where = " or ".join(f"vitc study status {folder}" for folder in folders)
        emit(f"Failed: {failed} trial(s); why: {where}; again: the same command and --retry-failed")
    if unfinished:
        emit(f"Next: the same command runs the {unfinished} trial(s) that have no result yet")
    elif len(folders) == 1:
        (section,) = sections
        plan, (taken, _) = section.plan, looks_taken(section.records[0])
        more = "--count" if plan.exhibit else "--draws" if plan.measure == "hparams" else "--seeds"
        if taken < plan.looks:
            emit(
                f"Next: look {taken + 1} of the {plan.looks} planned is the same command with "
                f"{more} {2 * plan.draws} (trials that ended are kept)"
            )
    return code


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", type=Path, help="one or more studies")
    add("--out", metavar="DIR", type=Path, help="where to (default: <study>/report)")
    about = "a Markdown page of it as well, for a repository"
    add("--page", metavar="FILE.md", type=Path, help=about)
    protocol_option(parser)
    about = "report although trials were run on different images; these are not compared"
    changed_data_option(parser, about)
    add("--json", action="store_true", help="results.json on one line, last on stdout")


def _run(args: Namespace) -> int:
    allow = args.allow_changed_data
    return report_on(
        args.folders, args.out, args.json, args.page, args.protocol, allow_changed_data=allow
    )


VERB = Verb(
    summary="Make the report of a study again, or one of several studies.",
    usage="DIR... [options]",
    example="vitc report studies/quick\nvitc report studies/a studies/b --out both\n"
    "vitc report studies/quick --page docs/quick.md",
    options=_options,
    run=_run,
    in_files=writes_files,
    runs=("folders",),
)
