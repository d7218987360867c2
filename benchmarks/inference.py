"""How fast is one model answered by each engine in one run?

    python benchmarks/inference.py vit_c_1gf --img-size 224 --batches 1 16 64

Eager fp32 and bf16 (where the CPU computes it), compiled (--compile), ONNX Runtime fp32 and int8,
OpenVINO fp32, bf16 and int8 (with bf16 between its int8 products), of those that are installed, and
with --peer NAME a model of timm or torchvision of the same shape. Engines alternate within each
repeat, so that other load meets all of them; the table has the median of the repeats' images a
second, the slowest and fastest repeat, and the ratio to eager fp32. On a machine with other work,
`--clock processor` counts the time of processors, which for one thread is about how long it takes
undisturbed. Weights are random: int8 is measured for speed alone (`vitc export --int8` measures its
accuracy).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitc
from vitc.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitc.deploy.export.base import Made, Record
from vitc.deploy.export.formats import FORMATS
from vitc.deploy.export.graph import Prepare, program_of
from vitc.deploy.saved import Saved
from vitc.machine import computes_bf16, environment, memory_kept
from vitc.models.folding import folded

Call = Callable[[torch.Tensor], Any]
CALIBRATION = 32  # images
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def eager(model: torch.nn.Module, dtype: torch.dtype | None) -> Call:
    def call(images: torch.Tensor) -> Any:
        context = contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)
        with torch.inference_mode(), context:
            return model((images.float() - 120) / 60)

    return call


def exported(args: argparse.Namespace, model: Any, kind: str, precision: Any, folder: str) -> Call:
    """The file of one format; its graph starts from uint8 pixels of the model's size."""
    size = model.config.size
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "rgb", "bilinear", 0.875, size)
    record = Record(Saved(model.config, 1000, None, preprocessing, None), precision=precision)
    example = torch.zeros(2, size[0] + 32, size[1] + 32, 3, dtype=torch.uint8)
    fast = folded(model)
    rng = np.random.default_rng(0)
    calibration = rng.integers(0, 256, (CALIBRATION, *size, 3), dtype=np.uint8)
    made = Made(program_of(fast, Prepare(preprocessing), example), fast, record, calibration)
    form = FORMATS[kind]
    file = Path(folder, f"{precision}{form.suffix}")
    form.write(made, file)
    _, graph = form.open(file, args.threads)
    return on_pixels(graph.run)


def on_pixels(run: Any) -> Call:
    return lambda images: run(images.permute(0, 2, 3, 1).contiguous().numpy())


def openvino_bf16(folder: str, threads: int) -> Call:
    """The fp32 file, computed in bf16."""
    import openvino

    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"}
    hints["PERFORMANCE_HINT"] = "LATENCY"
    compiled = openvino.Core().compile_model(Path(folder, "fp32.xml"), "CPU", hints)
    return on_pixels(lambda images: np.array(compiled([images])[0]))


def engines(args: argparse.Namespace, folder: str) -> dict[str, Call]:
    model: Any = vitc.create_model(args.model, img_size=args.img_size).eval()
    kinds: dict[str, torch.dtype | None] = {"fp32": None}
    kinds |= {"bf16": torch.bfloat16} if args.bf16 else {}
    found = {f"eager {kind}": eager(model, dtype) for kind, dtype in kinds.items()}
    if args.compile:
        compiled: Any = torch.compile(model)
        found |= {f"compiled {kind}": eager(compiled, dtype) for kind, dtype in kinds.items()}
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        found["ONNX Runtime fp32"] = exported(args, model, "onnx", "fp32", folder)
        found["ONNX Runtime int8"] = exported(args, model, "onnx", "int8", folder)
    if find_spec("openvino") and find_spec("onnxscript"):
        found["OpenVINO fp32"] = exported(args, model, "openvino", "fp32", folder)
        if args.bf16:
            found["OpenVINO bf16"] = openvino_bf16(folder, args.threads)
        if find_spec("nncf"):
            found["OpenVINO int8"] = exported(args, model, "openvino", "int8", folder)
    for name in args.peer:
        peer = vitc.create_model(name, img_size=args.img_size).eval()
        found |= {f"{name} {kind}": eager(peer, dtype) for kind, dtype in kinds.items()}
    return found


def measure(args: argparse.Namespace, calls: dict[str, Call], batch: int) -> dict[str, list[float]]:
    """Images a second of each engine in each repeat."""
    clock = CLOCKS[args.clock]
    shape = (batch, 3, args.img_size, args.img_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    for call in calls.values():
        call(images)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            count, start = 0, clock()
            while count == 0 or clock() - start < args.seconds:
                call(images)
                count += 1
            rates[name].append(count * batch / (clock() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("model", nargs="?", default="vit_c_1gf")
    add("--img-size", type=int, default=224)
    add("--batches", type=int, nargs="+", default=[1, 16, 64])
    add("--threads", type=int, default=1)
    add("--repeats", type=int, default=5)
    add("--seconds", type=float, default=1.0, help="of an engine in a repeat")
    add("--clock", choices=CLOCKS, default="wall")
    add("--peer", nargs="*", default=[], metavar="timm:NAME")
    here = computes_bf16(torch.device("cpu"))
    add("--bf16", action=argparse.BooleanOptionalAction, default=here, help="as the CPU has it")
    add("--compile", action="store_true", help="also torch.compile: a minute for each batch size")
    add("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[int, dict[str, list[float]]] = {}
    with memory_kept(), tempfile.TemporaryDirectory() as folder:  # as `vitc predict` does
        calls = engines(args, folder)
        for batch in args.batches:
            rates = results[batch] = measure(args, calls, batch)
            base = statistics.median(rates["eager fp32"])
            print(f"\n{args.model}, {args.img_size} px, batch {batch}, {args.threads} thread(s)")
            for name, found in rates.items():
                middle = statistics.median(found)
                spread = f"({min(found):.1f} to {max(found):.1f}, n = {len(found)})"
                print(f"  {name:<24} {middle:8.1f} images/s {spread:<32} {middle / base:5.2f} x")
            if args.json:
                about = {k: getattr(args, k) for k in ("model", "img_size", "threads", "clock")}
                text = json.dumps({**about, "rates": results, **environment()}, indent=2)
                args.json.write_text(text)


if __name__ == "__main__":
    main()
