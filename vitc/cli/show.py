"""`vitc show`: what a model consists of, what a recipe does, how a run went; lists and pictures."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from vitc.cli.parser import Parser, Verb, emit_json, note
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.deploy.pictures import Kind, Request


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("what", nargs="?", metavar="MODEL|RECIPE|RUN", help="a name or a run folder")
    add("--list", action="store_true", help="list all models and recipes")
    about = "plot to this file: a recipe's lr, a run's curves, or the picture chosen below"
    add("--plot", metavar="FILE", type=Path, help=about)
    add("--live", action="store_true", help="follow a RUN until it ends")
    add("--page", action="store_true", help="with --live: keep RUN/live.html up to date as well")
    picture = parser.add_argument_group("pictures of a RUN or of a fresh MODEL, one at a time")
    add = picture.add_argument
    add("--attention", metavar="IMAGE", type=Path, help="what a ViT's blocks attend to in an image")
    add("--block", metavar="N", type=int, help="with --attention: also each head of block N")
    add("--positions", action="store_true", help="similarity of a ViT's position embeddings")
    add("--filters", action="store_true", help="the filters of the first convolution")
    add("--features", metavar="IMAGE", type=Path, help="the stem's feature maps of an image")
    parser.add_argument("--json", action="store_true", help="print it as one line of JSON")


def run(args: Namespace) -> int:
    from vitc.deploy import show
    from vitc.views.text import write

    if args.list == (args.what is not None):
        raise ConfigError("Nothing to show: give one model, recipe or run folder, or --list alone.")
    picture = _picture(args)
    given = [] if args.plot is None else ["plot"]
    given += [] if picture is None else [picture.kind]
    if args.list and given:
        raise ConfigError(f"--{given[-1]} has no effect with --list.")
    if args.live or args.page:
        return _follow(args, given)
    if picture is not None:
        from vitc.deploy.pictures import picture_page

        page = picture_page(args.what, args.settings, picture, args.plot)
    elif args.list:
        page = show.list_page()
    else:
        page = show.page(args.what, args.settings, args.plot)
    if args.json:
        emit_json(page.values)
        return 0
    write(page.parts, sys.stdout)
    return 0


def _follow(args: Namespace, given: list[str]) -> int:
    from vitc.deploy.live import PAGE, follow
    from vitc.resolve import check_is

    if not args.live:
        raise ConfigError("--page has no effect without --live.")
    if given or args.json or args.settings or args.list:
        raise ConfigError("--live shows a run folder, and takes --page alone.")
    check_is(args.what, "run")
    if args.page:
        note(f"{Path(args.what) / PAGE} is written, and reloads itself in a browser.")
    follow(Path(args.what), sys.stdout, args.page)
    return 0


def _picture(args: Namespace) -> Request | None:
    """The requested picture, if any."""
    kinds: tuple[Kind, ...] = ("attention", "positions", "filters", "features")
    asked = [kind for kind in kinds if getattr(args, kind) not in (None, False)]
    if len(asked) > 1:
        raise ConfigError(
            f"{' and '.join(f'--{kind}' for kind in asked)}: only one picture at a time.",
            "Call vitc show once for each.",
        )
    if args.block is not None and asked != ["attention"]:
        raise ConfigError("--block has no effect without --attention IMAGE.")
    if not asked:
        return None
    from vitc.deploy.pictures import Request

    image = getattr(args, asked[0])
    return Request(asked[0], image if isinstance(image, Path) else None, args.block)


VERB = Verb(
    summary="Show what a model consists of, what a recipe does, or how a run went.",
    usage="MODEL|RECIPE|RUN [options] [--SETTING VALUE ...] | --list",
    example="vitc show vit_c_4gf\nvitc show fashion_vit_c --optim sgd --plot lr.png\n"
    "vitc show runs/fashion_vit_c --attention photo.jpg --plot attention.png",
    options=options,
    run=run,
    runs=("what",),
    takes_settings=True,
)
