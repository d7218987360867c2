"""`vitc convert IN OUT`: write weights in the layout of another library."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from vitc.cli.parser import Parser, Verb, emit, emit_json, weights_option, writes_files
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.weights.layouts import Shape

LAYOUTS = "vitc, pycls, pycls_branch, torchvision or timm"


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help="a run, a weights file, a folder, or timm:NAME")
    add("out", metavar="OUT", type=Path, help="a new .safetensors, .pt, .pth or .pyth")
    about = f"tensor names of IN: {LAYOUTS} (default: recognised)"
    add("--from", dest="layout", metavar="LAYOUT", default="auto", help=about)
    add("--to", metavar="LAYOUT", default="vitc", help="tensor names of OUT (default: vitc)")
    add("--model", metavar="NAME", help="check that it is this model, and store its config in OUT")
    weights_option(parser)
    about = "the order of colours that OUT takes (default: as IN)"
    add("--channels", choices=("rgb", "bgr"), help=about)
    add("--overwrite", action="store_true", help="replace OUT")
    add("--json", action="store_true", help="print the result as JSON on the last line of stdout")


def run(args: Namespace) -> int:
    if args.out.is_dir():
        raise ConfigError(f"{args.out} is a folder.", "Name a file: out.safetensors")
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists.", "Choose another name, or add --overwrite.")

    from vitc.weights.convert import convert

    options = {"source": args.layout, "average": args.weights, "model": args.model}
    done = convert(args.source, args.out, args.to, channels=args.channels, **options)
    weights, shape, pre = done.weights, done.shape, done.weights.preprocessing
    if args.json:
        record = {
            "status": "done",
            "in": args.source,
            "out": str(args.out),
            "source": weights.source,
            "layout": args.to,
            "looks_like": None if shape is None else str(shape),
            "models": done.models,
            "preprocessing": None if pre is None else pre.to_dict(),
            "classes": weights.classes,
            "notes": done.notes,
            "sha256": done.sha256,
        }
        emit_json(record)
        return 0
    emit(f"Read {weights.where}: {weights.source} layout{'' if shape is None else f', {shape}'}.")
    for note in done.notes:
        emit(f"  {note}")
    unknown = "unknown; ask the author of the weights for mean, std, size and channel order"
    emit(f"Preprocessing: {unknown if pre is None else pre.describe()}.")
    emit(f"Wrote {args.out}: {args.to} layout, SHA-256 {done.sha256[:16]}...")
    emit(f"Next: {_next(args.out, args.to, done.models, shape)}")
    return 0


def _next(out: Path, to: str, models: list[str], shape: Shape | None) -> str:
    if to == "vitc":
        model = models[0] if models else "NAME"
        return f"vitc train RECIPE --model {model} --init {shlex.quote(str(out))}"
    if "pycls" in to:
        return f"in pycls, TEST.WEIGHTS {shlex.quote(str(out))}"
    if to == "torchvision" and shape is not None and shape.stem:
        call = f"torch.load({str(out)!r})"
        return f"in torchvision, VisionTransformer(..., conv_stem_configs=...) and {call}"
    call = "timm.create_model(NAME, checkpoint_path=" if to == "timm" else "load_state_dict("
    return f"in {to}, {call}{str(out)!r})"


VERB = Verb(
    summary="Convert weights between pycls, torchvision, timm and vitc.",
    usage="IN OUT [options]",
    example="vitc convert model.pyth vit_c_4gf.safetensors --channels rgb\n"
    "vitc convert runs/fashion_vit_c weights.safetensors\n"
    "vitc convert runs/imagenet_vit_p vit.pth --to timm",
    options=options,
    run=run,
    in_files=writes_files,
    epilog="No code in IN is run: a file that needs that is refused. Preprocessing that IN\n"
    "stores, or its library implies, is stored in OUT.safetensors with the tensors.",
)
