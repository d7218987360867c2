"""The verb `vitc convert`: weights of one library as another's, with what belongs to them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli.parser import Parser, Verb, say, say_json, weights_option
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.data.preprocessing import Preprocessing
    from vitc.weights.layouts import Shape
    from vitc.weights.load import Weights

NAMES = "vitc, pycls, pycls_branch, torchvision or timm"
FIRST = ("stem.layers.0.conv.weight", "stem.proj.weight")  # what reads the image, in our names
FEEDS = {"pycls": "bgr", "pycls_branch": "bgr"}  # what each library gives its models; else RGB


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help="a run, a weights file, a folder, or timm:NAME")
    add("out", metavar="OUT", type=Path, help="a new .safetensors, .pt, .pth or .pyth")
    add(
        "--from",
        dest="layout",
        metavar="NAMES",
        default="auto",
        help=f"whose names IN has: {NAMES} (default: recognised)",
    )
    add("--to", metavar="NAMES", default="vitc", help="whose names OUT gets (default: vitc)")
    add("--model", metavar="NAME", help="check that it is this model, and store its config in OUT")
    weights_option(parser)
    add(
        "--channels",
        choices=("rgb", "bgr"),
        help="make the weights take this order of colours (default: as IN)",
    )
    add("--overwrite", action="store_true", help="replace OUT")
    add("--json", action="store_true", help="what was done on one line, last on stdout")


def _convert(args: Namespace) -> int:
    if args.out.is_dir():
        raise ConfigError(f"{args.out} is a folder.", "Name a file: out.safetensors")
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists.", "Choose another name, or add --overwrite.")

    from vitc.weights.fit import models_like
    from vitc.weights.layouts import describe
    from vitc.weights.load import layout_named, read_weights, write_weights

    layout = layout_named(args.to)
    weights = read_weights(args.source, args.layout, args.weights)
    notes = list(weights.notes)
    if args.model is not None:
        weights = _checked(weights, args.model)
    if args.channels is not None:
        weights, said = _with_channels(weights, args.channels)
        notes += said
    notes += _mismatched_channels(weights.preprocessing, args.to)
    sha256 = write_weights(args.out, weights, layout)

    shape = describe(weights.tensors)
    models = [args.model] if args.model else models_like(shape) if shape else []
    pre = weights.preprocessing
    if args.json:
        record = {
            "status": "done",
            "in": args.source,
            "out": str(args.out),
            "source": weights.source,
            "layout": args.to,
            "looks_like": None if shape is None else str(shape),
            "models": models,
            "preprocessing": None if pre is None else pre.to_dict(),
            "classes": weights.classes,
            "notes": notes,
            "sha256": sha256,
        }
        say_json(record)
        return 0
    say(f"Read {weights.where}: names of {weights.source}{'' if shape is None else f', {shape}'}.")
    for note in notes:
        say(f"  {note}")
    unknown = "unknown; ask the author of the weights for mean, std, size and channel order"
    say(f"Preprocessing: {unknown if pre is None else pre.describe()}.")
    say(f"Wrote {args.out}: names of {args.to}, SHA-256 {sha256[:16]}...")
    say(f"Next: {_next(args.out, args.to, models, shape)}")
    return 0


def _checked(weights: Weights, name: str) -> Weights:
    """The weights with the model's config, once each tensor proves to fit it."""
    from dataclasses import replace
    from math import isqrt

    import torch

    from vitc.config import to_dict
    from vitc.models.config import ViTConfig
    from vitc.models.zoo import build_model, model_config
    from vitc.weights.fit import fill
    from vitc.weights.layouts import describe

    shape = describe(weights.tensors)
    config = model_config(name)
    overrides: dict[str, Any] = {}
    if shape is not None and isinstance(config, ViTConfig):
        overrides["num_classes"] = shape.classes
        side = isqrt(shape.tokens - config.class_token) * (config.stem.reduction or 1)
        overrides["img_size"] = side  # no square: the check then says that it does not fit
        first = next((weights.tensors[n] for n in FIRST if n in weights.tensors), None)
        overrides["in_chans"] = config.in_chans if first is None else first.shape[1]
    elif weights.classes is not None:
        overrides["num_classes"] = len(weights.classes)
    config = model_config(name, **overrides)
    with torch.device("meta"):  # only names and shapes count
        model = build_model(config, 0 if shape is not None and shape.classes is None else None)
    fill(model, weights)
    return replace(weights, model=weights.model or to_dict(config))


def _with_channels(weights: Weights, channels: str) -> tuple[Weights, list[str]]:
    from dataclasses import replace

    pre = weights.preprocessing
    if pre is None or pre.channels not in ("rgb", "bgr"):
        said = "does not say its channel order" if pre is None else f"has channels {pre.channels}"
        raise ConfigError(
            f"{weights.where} {said}: --channels {channels} has nothing to go by.",
            "Leave --channels out, or give a file whose library is known: --from pycls.",
        )
    if pre.channels == channels:
        return weights, [f"The channels are {channels.upper()} already."]
    name = next((n for n in FIRST if n in weights.tensors), None)
    if name is None or weights.tensors[name].shape[1] != 3:
        raise ConfigError(f"{weights.where} has no first convolution of 3 channels to reverse.")
    tensors = {**weights.tensors, name: weights.tensors[name].flip(1)}
    said = (
        f"The input channels of {name} were reversed, from {pre.channels.upper()} to "
        f"{channels.upper()}; so were mean and std."
    )
    return replace(weights, tensors=tensors, preprocessing=pre.reversed()), [said]


def _mismatched_channels(pre: Preprocessing | None, to: str) -> list[str]:
    """Weights for one order of colours, written for a library that feeds the other."""
    feeds = FEEDS.get(to, "rgb")
    if pre is None or pre.channels not in ("rgb", "bgr") or pre.channels == feeds:
        return []
    return [
        f"Mind: these weights take {pre.channels.upper()} images, {to} gives {feeds.upper()}; "
        f"--channels {feeds} reverses them."
    ]


def _next(out: Path, to: str, models: list[str], shape: Shape | None) -> str:
    if to == "vitc":
        return f"vitc train RECIPE --model {models[0] if models else 'NAME'} --init {out}"
    if "pycls" in to:
        return f"in pycls, TEST.WEIGHTS {out}"
    if to == "torchvision" and shape is not None and shape.stem:
        return (
            f"in torchvision, VisionTransformer(..., conv_stem_configs=...) and torch.load({out})"
        )
    call = "timm.create_model(NAME, checkpoint_path=" if to == "timm" else "load_state_dict("
    return f"in {to}, {call}{str(out)!r})"


CONVERT_VERB = Verb(
    summary="Write weights of pycls, torchvision, timm or a run for another of these.",
    usage="IN OUT [options]",
    example="vitc convert model.pyth vit_c_4gf.safetensors --channels rgb\n"
    "vitc convert runs/fashion_vit_c weights.safetensors\n"
    "vitc convert runs/imagenet_vit_p vit.pth --to timm",
    options=_options,
    run=_convert,
    epilog="Nothing in IN is executed: a file that would need it is refused. Preprocessing that\n"
    "IN states, or its library implies, is stored in OUT.safetensors beside the tensors.",
)
