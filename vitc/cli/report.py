"""`vitc report DIR|FILE...`: the report of studies from their trials, or of trials in files."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli.parser import Parser, Verb, changed_data_option, count, emit, emit_json, writes_files
from vitc.errors import ConfigError
from vitc.files import read_json
from vitc.wording import counted

if TYPE_CHECKING:
    from vitc.study.results import Protocol


FILES = (".csv", ".tsv", ".jsonl", ".ndjson")  # of trials from elsewhere
TRIAL_OPTIONS = {
    "error": "top-1 error; in JSON a dot leads inside: curve.-1.error",
    "accuracy": "in place of --error: top-1 accuracy",
    "contender": "what is compared (default: a contender a file)",
    "draw": "trials of one draw share settings or seed (default: none do)",
    "failed": "true, or a state such as diverged, where a run failed",
    "settings": "hyperparameters, which must agree on a draw",
    "unit": "of errors and accuracies: percent (default), or share of 1",
    "classes": "classes of the data: runs near chance then failed to learn as well",
    "reference": "the contender to compare with (default: the first)",
}


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
        emit(
            f"Failed: {counted(failed, 'trial')}; why: {where}; "
            "again: the same command and --retry-failed"
        )
    if unfinished:
        emit(f"Next: the same command runs the {counted(unfinished, 'trial')} without a result")
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
    about = "one or more studies; or files of trials from elsewhere (.csv, .tsv, .jsonl)"
    add("folders", nargs="+", metavar="DIR|FILE", type=Path, help=about)
    about = "where to (default: <study>/report; beside a file: <name>_report)"
    add("--out", metavar="DIR", type=Path, help=about)
    about = "a Markdown page of it as well, for a repository"
    add("--page", metavar="FILE.md", type=Path, help=about)
    protocol_option(parser)
    about = "report although trials were run on different images; these are not compared"
    changed_data_option(parser, about)
    add("--json", action="store_true", help="results.json on one line, last on stdout")
    group = parser.add_argument_group("columns of trials from elsewhere (docs/trials.md)")
    for name, about in TRIAL_OPTIONS.items():
        words: dict[str, Any] = {"metavar": "COLUMN", "help": about}
        if name == "settings":
            words |= {"nargs": "+"}
        elif name == "reference":
            words["metavar"] = "NAME"
        elif name == "classes":
            words |= {"metavar": "K", "type": count}
        elif name == "unit":
            words |= {"metavar": None, "choices": ("percent", "share")}
        group.add_argument(f"--{name}", **words)


def _run(args: Namespace) -> int:
    given = [f"--{name}" for name in TRIAL_OPTIONS if getattr(args, name)]
    files = [f for f in args.folders if f.suffix.lower() in FILES and not f.is_dir()]
    if files:
        return _trials(args, files)
    if given and (odd := next((f for f in args.folders if f.is_file()), None)):
        raise ConfigError(
            f"{odd} is no file of trials: its name ends in {odd.suffix!r}.",
            f"Supported: {', '.join(FILES)}; in the last two a JSON object a line, no array.",
        )
    if given:
        raise ConfigError(
            f"{given[0]} has no effect on studies; it is for files of trials.",
            f"Give such files: {', '.join(f'TRIALS{suffix}' for suffix in FILES)}.",
        )
    allow = args.allow_changed_data
    return report_on(
        args.folders, args.out, args.json, args.page, args.protocol, allow_changed_data=allow
    )


def _trials(args: Namespace, files: Sequence[Path]) -> int:
    """The report of trials from elsewhere."""
    from vitc.study.trials_file import Columns
    from vitc.study.trials_report import trials_report
    from vitc.views.text import columns as plain

    if len(files) < len(args.folders):
        raise ConfigError("Studies and files of trials cannot be in one report.")
    lost = {"--page": args.page, "--protocol": args.protocol != "last"}
    lost["--allow-changed-data"] = args.allow_changed_data
    for option, value in lost.items():
        if value:
            raise ConfigError(f"{option} has no effect on files of trials; it is for studies.")
    named = {n: getattr(args, n) for n in TRIAL_OPTIONS if getattr(args, n)}
    reference, classes = named.pop("reference", ""), named.pop("classes", 0)
    named["settings"] = tuple(named.get("settings", ()))
    out = args.out or files[0].with_name(f"{files[0].stem}_report")
    made = trials_report(files, out, Columns(**named), reference, classes)
    if args.json:
        emit_json(read_json(out / "results.json") | {"report": str(made.path)})
        return 0
    for text in (*made.verdicts, *made.found.notes, *map(plain, made.tables)):
        emit(text)
    emit(f"Report: {made.path} (figures, trials.csv, table.tex and results.json beside it)")
    return 0


VERB = Verb(
    summary="Make the report of studies again, or one of trials that other programs ran.",
    usage="DIR|FILE... [options]",
    example="vitc report studies/quick\nvitc report studies/a studies/b --out both\n"
    "vitc report studies/quick --page docs/quick.md\n"
    "vitc report sweep.csv --contender model --draw seed --error val_error --classes 10",
    options=_options,
    run=_run,
    in_files=writes_files,
    runs=("folders",),
)
