"""`vitc save RUN FOLDER`: weights, config and model card of a run in one folder."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import Parser, Verb, emit, emit_json, weights_option, writes_files
from vitc.resolve import check_is


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run folder")
    add("folder", metavar="FOLDER", type=Path, help="a new or empty folder")
    weights_option(parser)
    add("--overwrite", action="store_true", help="replace a saved model in that folder")
    add("--json", action="store_true", help="print what was written as JSON, last on stdout")


def run(args: Namespace) -> int:
    check_is(args.run_folder, "run")
    from vitc.deploy.save import save_pretrained

    folder = save_pretrained(
        args.run_folder, args.folder, weights=args.weights, overwrite=args.overwrite
    )
    files = file_sizes(folder)
    if args.json:
        record = {"status": "done", "folder": str(folder), "weights": args.weights, "files": files}
        emit_json(record)
        return 0
    for name, size in files.items():
        emit(f"{size:>14,} bytes  {name}")
    emit(f"Saved: {folder} (read README.md, the model card, before you share it)")
    place = shlex.quote(str(args.folder))
    emit(f"Next: vitc predict {place} IMAGE...; vitc push {place} USER/NAME")
    return 0


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a saved model, by its path in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


VERB = Verb(
    summary="Save a run's model to share: weights, config and model card in one folder.",
    usage="RUN FOLDER [options]",
    example="vitc save runs/fashion_vit_c fashion_model",
    options=options,
    run=run,
    in_files=writes_files,
    runs=("run_folder",),
    epilog="vitc predict, vitc.Predictor and vitc.from_pretrained read the folder without network\n"
    "access and without running code from it.",
)
