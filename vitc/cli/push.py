"""`vitc push RUN|FOLDER USER/NAME`: upload a model to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import Parser, Verb, emit, emit_json, note, weights_option, writes_files
from vitc.cli.save import file_sizes
from vitc.resolve import check_is


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="RUN|FOLDER", type=Path, help="a run folder, or a folder of vitc save")
    add("repo_id", metavar="USER/NAME", help="the repository; created if it does not exist")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="visible to you alone (the default)")
    seen.add_argument("--public", action="store_true", help="visible to everybody")
    weights_option(parser)
    add("--message", metavar="TEXT", help="commit message")
    add("--dry-run", action="store_true", help="list what would be uploaded, without network")
    add("--json", action="store_true", help="print the result as JSON on the last line of stdout")


def run(args: Namespace) -> int:
    check_is(args.source, "run", "saved")
    if args.dry_run:
        return _dry_run(args)
    from vitc.deploy.push import push_to_hub

    note(f"pushing {args.source} to {args.repo_id}")
    address = push_to_hub(
        args.source,
        args.repo_id,
        private=not args.public,
        message=args.message,
        weights=args.weights,
    )
    if args.json:
        emit_json({"status": "done", "url": address, "private": not args.public})
        return 0
    emit(f"Pushed: {address} ({'public' if args.public else 'private'})")
    emit(f'Next, anywhere: python -c "import vitc; vitc.from_pretrained({args.repo_id!r})"')
    return 0


def _dry_run(args: Namespace) -> int:
    from vitc.deploy.push import saved_folder
    from vitc.weights.hub import check_repo_id

    check_repo_id(args.repo_id)
    with tempfile.TemporaryDirectory(prefix="vitc-push-") as temporary:
        files = file_sizes(saved_folder(args.source, Path(temporary, "model"), args.weights))
    private = not args.public
    if args.json:
        about = {"status": "dry-run", "repo": args.repo_id, "private": private, "files": files}
        emit_json(about)
        return 0
    for name, size in files.items():
        emit(f"{size:>14,} bytes  {name}")
    seen = "private" if private else "public"
    emit(f"Nothing was pushed. Without --dry-run: to {args.repo_id}, {seen}.")
    return 0


VERB = Verb(
    summary="Upload a run's model, or a saved one, to the Hugging Face hub.",
    usage="RUN|FOLDER USER/NAME [options]",
    example="vitc push runs/fashion_vit_c me/fashion --dry-run\n"
    "vitc push fashion_model me/fashion --public",
    options=options,
    run=run,
    in_files=writes_files,
    runs=("source",),
    epilog="Needs the extra `hub`, and a token: hf auth login, or HF_TOKEN.",
)
