"""`vitc evaluate RUN [DATA]`: measure a trained model on images it was not trained on."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import (
    Parser,
    Verb,
    changed_data_option,
    device_option,
    emit_json,
    weights_option,
)
from vitc.resolve import check_is


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
    weights_option(parser)
    device_option(parser)
    add("--json", action="store_true", help="print the result as JSON on the last line of stdout")


def run(args: Namespace) -> int:
    check_is(args.run_folder, "run", "saved")
    from vitc.deploy.evaluation import evaluate, evaluation_page
    from vitc.views.text import write

    found = evaluate(
        args.run_folder,
        args.data,
        args.split,
        args.weights,
        args.device,
        allow_changed_data=args.allow_changed_data,
        skip_unknown_classes=args.skip_unknown_classes,
    )
    page = evaluation_page(found)
    if args.json:
        emit_json(page.values)
    else:
        write(page.parts, sys.stdout)
    return 0


VERB = Verb(
    summary="Measure a run's last checkpoint on validation or test images.",
    usage="RUN [DATA] [options]",
    example="vitc evaluate runs/fashion_vit_c --split test",
    options=options,
    run=run,
    runs=("run_folder",),
)
