"""The verbs of the data room: `vitc data pack | verify`."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

from vitc.cli.check import CHECK_VERB
from vitc.cli.parser import Parser, Verb, count, note, say, say_json
from vitc.config import RunConfig, with_data
from vitc.wording import counted

PLAIN_EVERY_SECONDS = 10.0  # between plain progress lines


# -- pack ------------------------------------------------------------------------------------------


def _pack_options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="a folder of images, or whatever --data takes")
    add("out", metavar="OUT.vitc", type=Path, help="the file to make")
    add(
        "--short-side",
        metavar="PIXELS",
        type=count,
        help="resize larger images to this and store them as JPEG",
    )
    add("--quality", metavar="1-100", type=count, help="of that JPEG (default: 95)")
    add(
        "--raw",
        action="store_true",
        help="store pixels, shorter side at most --short-side (default: 256)",
    )
    add(
        "--channels",
        metavar="1|3|4",
        type=count,
        help="of images made anew (default: 3): grey, RGB, with --raw also opacity",
    )
    add("--workers", metavar="N", type=count, help="processes (default: one a core)")
    add(
        "--bad-files",
        choices=("stop", "skip"),
        default="stop",
        help="a broken image: stop (default), or leave out, named and counted",
    )
    add("--overwrite", action="store_true", help="replace OUT.vitc, and begin anew")
    add("--json", action="store_true", help="the result on one line, last on stdout")


def _pack(args: Namespace) -> int:
    from vitc.data.pack import PackOptions, describe, pack

    options = PackOptions(
        short_side=args.short_side,
        quality=args.quality,
        raw=args.raw,
        channels=args.channels,
        bad_files=args.bad_files,
    )
    options.check()
    config = with_data(RunConfig(), args.source).data
    made = pack(
        config,
        args.out,
        options,
        workers=args.workers,
        overwrite=args.overwrite,
        progress=_Lines(),
    )
    if made.resumed:
        note(f"Went on after {counted(made.resumed, 'image')} made before.")
    for name in made.skipped:
        note(f"broken, left out: {name!r}")
    if made.skipped:
        were = "was" if len(made.skipped) == 1 else "were"
        note(f"{counted(len(made.skipped), 'broken image')} {were} left out.")
    if args.json:
        say_json(
            {
                "status": "done",
                "pack": str(made.path),
                "images": made.images,
                "bytes": made.bytes,
                "skipped": list(made.skipped),
                "resumed": made.resumed,
            }
        )
    else:
        say(f"{made.path}: {describe(made.path)}; {made.bytes / 1e6:,.1f} MB.")
        say(f"Next: vitc train RECIPE --data {made.path}")
    return 0


class _Lines:
    """A plain line now and then: how many, how fast, how long still."""

    def __init__(self) -> None:
        self.started = self.told = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int, size: int) -> None:
        now = time.monotonic()
        if self.first is None:  # what an earlier pack had made is no speed of this one
            self.first, self.started = done, now
            return
        if now - self.told < PLAIN_EVERY_SECONDS or done == self.first:
            return
        self.told = now
        rate = (done - self.first) / (now - self.started)
        left = (total - done) / rate
        note(
            f"packed {done:,} of {total:,}  {size / 1e6:,.0f} MB  {rate:,.0f} img/s  "
            f"{left // 60:.0f}:{left % 60:02.0f} left"
        )


# -- verify ----------------------------------------------------------------------------------------


def _verify_options(parser: Parser) -> None:
    parser.add_argument("pack", metavar="PACK", type=Path, help="a .vitc file")
    parser.add_argument("--json", action="store_true", help="the result on one line, on stdout")


def _verify(args: Namespace) -> int:
    from vitc.data.sources.packed import verify

    made = verify(args.pack)
    if args.json:
        size = args.pack.stat().st_size
        say_json({"status": "done", "pack": str(args.pack), "images": len(made), "bytes": size})
    else:
        say(f"{args.pack} is whole: the index and all {len(made):,} images match their checksums.")
    return 0


DATA_VERBS: dict[str, Verb] = {
    "check": CHECK_VERB,
    "pack": Verb(
        summary="Pack a data set into one file that trains the same, faster.",
        usage="SRC OUT.vitc [options]",
        example="vitc data pack ~/photos photos.vitc\n"
        "vitc data pack ~/imagenet imagenet_256.vitc --short-side 256 --quality 95\n"
        "vitc data pack ~/imagenet imagenet_raw.vitc --raw --bad-files skip",
        options=_pack_options,
        run=_pack,
        epilog="Without options the files' own bytes are stored. Order, labels, splits and names\n"
        "stay, so a run on the pack sees the same images in the same order. Interrupted, the\n"
        "same command goes on. The format: docs/pack-format.md",
    ),
    "verify": Verb(
        summary="Check every checksum of a packed file.",
        usage="PACK [options]",
        example="vitc data verify photos.vitc",
        options=_verify_options,
        run=_verify,
        epilog="Exit code 1 names the first record that does not match.",
    ),
}
