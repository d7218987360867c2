"""`vitc doctor`: versions, extras, devices, memory and disk, and a self-test of every device."""

from __future__ import annotations

from argparse import Namespace

from vitc.cli.parser import Parser, Verb, emit, emit_json


def _options(parser: Parser) -> None:
    about = "print everything on one line, last on stdout"
    parser.add_argument("--json", action="store_true", help=about)


def _run(args: Namespace) -> int:
    from vitc.deploy.doctor import examine, page
    from vitc.views.text import plain

    found = examine()
    if args.json:
        emit_json(found.record)
    else:
        emit("\n\n".join(plain(part) or "" for part in page(found)))
    return 1 if found.errors else 0


VERB = Verb(
    summary="Check this machine: versions, extras, memory, and that its devices compute correctly.",
    usage="[options]",
    example="vitc doctor\npython -m vitc doctor --json",
    options=_options,
    run=_run,
    epilog="The self-test compares the first training step of a small ViT_C on every device with\n"
    "the CPU's in fp32 (and that with fp64): loss, gradients, and the loss after one update.\n"
    "Exit code 1: a device computes wrongly, or something vitc needs cannot be imported.",
)
