"""`vitc export RUN OUT`: one file for other programs, compared with the model it is of."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import (
    Parser,
    Verb,
    changed_data_option,
    count,
    emit,
    emit_json,
    number,
    weights_option,
    writes_files,
)
from vitc.machine import sigterm_raises
from vitc.resolve import check_is

SCRIPT = """\
import json, numpy, onnxruntime
from PIL import Image, ImageOps
session = onnxruntime.InferenceSession("photos.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["vitc"])["classes"]
mode = "L" if session.get_inputs()[0].shape[3] == 1 else "RGB"
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)
logits = session.run(None, {"images": numpy.atleast_3d(image)[None]})[0]
print(classes[logits[0].argmax()])"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run, a folder of folds, or of vitc save")
    add("out", metavar="OUT", type=Path, help="a new .onnx, .xml (OpenVINO), .pt2 or .safetensors")
    about = "onnx, openvino, torch or safetensors (default: by the suffix of OUT)"
    add("--format", metavar="NAME", help=about)
    about = "quantize to 8 bits, with images of the training split where there is one"
    add("--int8", dest="precision", action="store_const", const="int8", default="fp32", help=about)
    about = "take prepared, normalised float32 (batch, channels, height, width) instead of pixels"
    add("--raw-input", action="store_true", help=about)
    about = "images to compare on (default: the validation split of RUN)"
    add("--data", metavar="DATA", help=about)
    add(
        "--images",
        metavar="N",
        type=count,
        default=2000,
        help="at most this many images (default: 2000)",
    )
    about = "least percentage of images with the same class (default: 99.9; with --int8 95)"
    add("--min-agreement", metavar="P", type=number(0, 100), help=about)
    changed_data_option(parser, "compare although the run's images changed since it was trained")
    weights_option(parser)
    add("--overwrite", action="store_true", help="replace OUT and the files beside it")
    add("--json", action="store_true", help="print the report as JSON on the last line of stdout")


def run(args: Namespace) -> int:
    check_is(args.run_folder, "run", "saved", "folds")
    from vitc.deploy.export.compare import report_page
    from vitc.deploy.export.export import export
    from vitc.views.text import write

    with sigterm_raises():
        report = export(
            args.run_folder,
            args.out,
            args.format,
            precision=args.precision,
            raw_input=args.raw_input,
            weights=args.weights,
            data=args.data,
            images=args.images,
            min_agreement=args.min_agreement,
            overwrite=args.overwrite,
            allow_changed_data=args.allow_changed_data,
        )
    page = report_page(report)
    if args.json:
        emit_json({"status": "done", **page.values})
        return 0
    write(page.parts, sys.stdout)
    emit(f"\nExported: {args.out} (report: {args.out}.json)")
    file = shlex.quote(str(args.out))
    emit(f"Next: vitc predict {file} IMAGE...; vitc serve {file}")
    return 0


VERB = Verb(
    summary="Export a model as one file, and check that its answers are the same.",
    usage="RUN OUT [options]",
    example="vitc export runs/photos photos.onnx",
    options=options,
    run=run,
    in_files=writes_files,
    runs=("run_folder",),
    epilog="The file takes photos as they are (uint8, any size; RGB, or grey where the model was\n"
    "trained on one channel): resizing, cropping and normalisation are in its graph. Without this\n"
    "library (pip install onnxruntime pillow):\n\n"
    + "\n".join(f"  {line}" for line in SCRIPT.splitlines())
    + "\n\nvitc predict and vitc evaluate take OUT in place of RUN.",
)
