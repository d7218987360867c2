"""The verbs that hand a model on: `vitc save RUN FOLDER` and `vitc push RUN|FOLDER REPO`."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import Parser, Verb, note, say, say_json, weights_option
from vitc.errors import ConfigError, suggest

# -- save ------------------------------------------------------------------------------------------


def _save_options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run folder")
    add("folder", metavar="FOLDER", type=Path, help="where to: a new or empty folder")
    weights_option(parser)
    add("--overwrite", action="store_true", help="replace a saved model that is there")
    add("--json", action="store_true", help="what was written, on one line, last on stdout")


def _save(args: Namespace) -> int:
    _check_there(args.run_folder, "run folder")
    from vitc.deploy.save import save_pretrained

    folder = save_pretrained(
        args.run_folder, args.folder, weights=args.weights, overwrite=args.overwrite
    )
    if args.json:
        say_json(
            {
                "status": "done",
                "folder": str(folder),
                "weights": args.weights,
                "files": _sizes(folder),
            }
        )
        return 0
    for name, size in _sizes(folder).items():
        say(f"{size:>14,} bytes  {name}")
    say(f"Saved: {folder} (read README.md, the model card, before you hand it on)")
    say(f"Next: vitc predict {args.folder} IMAGE...; vitc push {args.folder} USER/NAME")
    return 0


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def _check_there(folder: Path, what: str) -> None:
    """Answered before torch is imported."""
    if not folder.is_dir():
        near = suggest(folder.name, [p.name for p in folder.parent.glob("*") if p.is_dir()])
        raise ConfigError(f"There is no {what} {folder}.{near}", "vitc train makes one in runs/.")


# -- push ------------------------------------------------------------------------------------------


def _push_options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="RUN|FOLDER", type=Path, help="a run folder, or one of vitc save")
    add("repo_id", metavar="USER/NAME", help="its name on the hub; made if it is not there")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="for you alone (the default)")
    seen.add_argument("--public", action="store_true", help="for everybody")
    weights_option(parser)
    add("--message", metavar="TEXT", help="the commit's message")
    add("--dry-run", action="store_true", help="say what would be pushed, without network")
    add("--json", action="store_true", help="the result on one line, last on stdout")


def _push(args: Namespace) -> int:
    _check_there(args.source, "run folder or saved model")
    if args.dry_run:
        return _dry_run(args)
    from vitc.weights.hub import push_to_hub

    note(f"pushing {args.source} to {args.repo_id}")
    address = push_to_hub(
        args.source,
        args.repo_id,
        private=not args.public,
        message=args.message,
        weights=args.weights,
    )
    if args.json:
        say_json({"status": "done", "url": address, "private": not args.public})
        return 0
    say(f"Pushed: {address} ({'public' if args.public else 'private'})")
    say(f'Next, anywhere: python -c "import vitc; vitc.from_pretrained({args.repo_id!r})"')
    return 0


def _dry_run(args: Namespace) -> int:
    from vitc.weights.hub import check_repo_id, saved_folder

    check_repo_id(args.repo_id)
    with tempfile.TemporaryDirectory(prefix="vitc-push-") as temporary:
        files = _sizes(saved_folder(args.source, Path(temporary, "model"), args.weights))
    seen = "public" if args.public else "private"
    if args.json:
        say_json(
            {"status": "dry-run", "repo": args.repo_id, "private": not args.public, "files": files}
        )
        return 0
    for name, size in files.items():
        say(f"{size:>14,} bytes  {name}")
    say(f"Nothing was pushed. Without --dry-run it would go to {args.repo_id}, {seen}.")
    return 0


PUSH_VERBS: dict[str, Verb] = {
    "save": Verb(
        summary="Save a run's model to hand on: weights, config and model card in one folder.",
        usage="RUN FOLDER [options]",
        example="vitc save runs/fashion_vit_c fashion_model",
        options=_save_options,
        run=_save,
        runs=("run_folder",),
        epilog="The folder is read by vitc predict, vitc.Predictor and vitc.from_pretrained,\n"
        "without network and without running code from it.",
    ),
    "push": Verb(
        summary="Put a run's model, or a saved one, on the Hugging Face hub.",
        usage="RUN|FOLDER USER/NAME [options]",
        example="vitc push runs/fashion_vit_c me/fashion --dry-run\n"
        "vitc push fashion_model me/fashion --public",
        options=_push_options,
        run=_push,
        runs=("source",),
        epilog="Needs the extra `hub`, and a token: hf auth login, or HF_TOKEN.",
    ),
}
