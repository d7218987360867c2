"""`vitc evaluate RUN [DATA]`: measure a trained model on images it was not trained on."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitc.cli.parser import (
    Parser,
    Verb,
    changed_data_option,
    device_option,
    emit,
    emit_json,
    note,
    weights_option,
)
from vitc.errors import ConfigError, RunError
from vitc.resolve import PREDICTS, check_is

if TYPE_CHECKING:
    from vitc.deploy.evaluation import Evaluation


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run folder, or a folder of vitc save")
    add("data", nargs="?", metavar="DATA", help="a data set or folder (default: the run's own)")
    about = (
        "default: val of the run's own images, all images of others; read test once, for the run "
        "chosen on val"
    )
    add("--split", choices=("val", "test"), help=about)
    changed_data_option(parser, "measure although the run's images changed since it was trained")
    about = "leave out images of classes that the model does not know"
    add("--skip-unknown-classes", action="store_true", help=about)
    about = "leave out images that cannot be read, and report them"
    add("--skip-broken", action="store_true", help=about)
    about = (
        "the run page, with FILE.json and FILE.csv (default: report.* in RUN, of its own images)"
    )
    add("--report", metavar="FILE.html", type=Path, help=about)
    about = "compare with another run or saved model on the same images: which is better?"
    add("--against", metavar="RUN", type=Path, help=about)
    weights_option(parser)
    device_option(parser)
    add("--json", action="store_true", help="print the result as JSON on the last line of stdout")


def run(args: Namespace) -> int:
    kind = check_is(args.run_folder, *PREDICTS)
    if args.report is not None and args.report.suffix != ".html":
        raise ConfigError(f"--report {args.report} is not an HTML file.", "Name it FILE.html.")
    if args.report is not None:
        from vitc.deploy.run_page import check_beside

        check_beside(args.report, args.data)
    if args.against is not None:
        return _against(args, kind)
    from vitc.deploy.evaluation import evaluate, evaluation_page
    from vitc.views.text import write

    if kind == "folds" and args.data is None:
        from vitc.deploy.folds import Folds, out_of_fold

        own = {"--split": args.split, "--allow-changed-data": args.allow_changed_data}
        own |= {"--skip-unknown-classes": args.skip_unknown_classes}
        own |= {"--skip-broken": args.skip_broken}
        own |= {"--weights": args.weights != "ema"}
        if idle := next((name for name, given in own.items() if given), None):
            raise ConfigError(
                f"{idle} has no effect on folds: each of their images is measured, by the weights "
                "that are deployed.",
                "Leave it out, or evaluate one of the runs in that folder.",
            )
        found = out_of_fold(Folds.read(args.run_folder), args.device)
    else:
        found = evaluate(
            args.run_folder,
            args.data,
            args.split,
            args.weights,
            args.device,
            allow_changed_data=args.allow_changed_data,
            skip_unknown_classes=args.skip_unknown_classes,
            skip_broken=args.skip_broken,
        )
    page, report = evaluation_page(found), None
    if args.report is not None or (kind in ("run", "folds") and args.data is None):
        report = _report(args, found)
    if args.json:
        emit_json({**page.values, "report": report and str(report)})
    else:
        write(page.parts, sys.stdout)
        if report is not None:
            emit(f"\nWhere it errs: {report}")
    return 0


def _against(args: Namespace, kind: str) -> int:
    check_is(args.against, *PREDICTS)
    if args.skip_unknown_classes:
        raise ConfigError("--skip-unknown-classes has no effect with --against.", "Leave it out.")
    from vitc.deploy.against import compare, comparison_page, write_comparison
    from vitc.views.text import write

    found = compare(
        args.run_folder,
        args.against,
        args.data,
        args.split,
        args.device,
        weights=args.weights,
        allow_changed_data=args.allow_changed_data,
        skip_broken=args.skip_broken,
    )
    command = shlex.join(_words(args))
    page, report = comparison_page(found), None
    if args.report is not None or kind == "run":
        report = _written(args, lambda: write_comparison(found, command, args.report))
    if args.json:
        emit_json({**found.to_dict(), "report": report and str(report)})
    else:
        write([part for part in page.parts if part.kind == "table"][:2], sys.stdout)
        emit(f"\n{found.sentence}")
        if report is not None:
            emit(f"Where they differ: {report}")
    return 0


def _report(args: Namespace, found: Evaluation) -> Path | None:
    from vitc.deploy.run_page import write_page

    return _written(args, lambda: write_page(found, shlex.join(_words(args)), args.report))


def _words(args: Namespace) -> list[str]:
    """The command that makes the page again."""
    words = ["vitc", "evaluate", str(args.run_folder)]
    words += [args.data] if args.data is not None else []
    words += ["--against", str(args.against)] if args.against is not None else []
    words += ["--split", args.split] if args.split is not None else []
    words += ["--weights", args.weights] if args.weights != "ema" else []
    words += ["--allow-changed-data"] if args.allow_changed_data else []
    words += ["--skip-unknown-classes"] if args.skip_unknown_classes else []
    words += ["--skip-broken"] if args.skip_broken else []
    words += ["--report", str(args.report)] if args.report is not None else []
    return words


def _written(args: Namespace, write: Callable[[], Path]) -> Path | None:
    """Write a page. One that nobody asked for may fail, in a folder that is read-only."""
    try:
        return write()
    except RunError as error:
        if args.report is not None:
            raise
        note(error.message)
        return None


VERB = Verb(
    summary="Measure a run's last checkpoint on validation or test images.",
    usage="RUN [DATA] [options]",
    example="vitc evaluate runs/fashion_vit_c --split test\n"
    "vitc evaluate runs/photos --against runs/photos_longer",
    options=options,
    run=run,
    runs=("run_folder", "against"),
)
