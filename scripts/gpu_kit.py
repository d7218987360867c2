"""Test, time and study on one GPU in at most ten minutes: one JSON file and one page.

    scripts/gpu.sh                    # into gpu/: gpu.json, gpu.html, a log and a file a part
    scripts/gpu.sh --data images.vitc # the study on these images (docs/pack-format.md)
    scripts/gpu.sh --again speed      # what is there of a part is measured again
    scripts/gpu.sh --small            # a try of seconds, on the CPU

Parts are processes of their own, each with a time limit, so that a slow one does not take the time
of the others. What a part has measured when its time is over is kept, and the same command runs
the parts that have not ended. Nothing is downloaded.

  tests    the tests marked cuda
  speed    the rate of matrix products, then a training step of every size against timm's ViT of
           the same width and depth: images a second, and the share of that rate that is used
  study    ViT_P and ViT_C at 128 px and batch 2048 under AdamW and SGD: does SGD cost the patchify
           stem more?
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.train_step import compare, import_peers, step_of
from vitc.errors import VitcError
from vitc.files import read_json, to_json, write_atomically, write_json
from vitc.machine import environment, install_line
from vitc.models.complexity import complexity
from vitc.models.zoo import create_model, model_config
from vitc.study.analysis import analyse
from vitc.training.device import describe, pick_device
from vitc.training.utilisation import matmul_rate
from vitc.views import html
from vitc.views.model import Heading, Page, Part, Table, Text
from vitc.wording import duration

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"tests": 80.0, "speed": 180.0, "study": 300.0}  # seconds: 40 are left for the rest
GRACE = 20.0  # seconds in which a stopped part saves what it has
SIZES = {"1gf": 512, "4gf": 256, "18gf": 128, "36gf": 64, "72gf": 32}  # the batch of each
STUDY = [
    *("imagenet_vit_p_1gf", "--models", "vit_p_1gf", "vit_c_1gf", "--seeds", "4"),
    *("--train.batch", "2048", "--train.precision", "bf16", "--model.img_size", "128"),
    *("--workers", "1"),
]
EMBEDDED = [
    "--data",
    "fashion",
    "--model.in_chans",
    "1",
    "--data.fit",
    "squash",
    "--lengths",
    "120",
]
GIVEN = ["--lengths", "20"]  # of 50,000 images as many steps as 120 epochs of the embedded ones
SMALL_STUDY = [
    *("fashion_vit_p", "--models", "vit_p_tiny", "vit_c_tiny", "--seeds", "2", "--lengths", "1"),
    *("--train.batch", "32", "--train.precision", "fp32", "--data.max_train", "64"),
]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="default: gpu")
    parser.add_argument("--data", help="images of the study: a pack or folder (default: embedded)")
    parser.add_argument("--again", nargs="+", choices=LIMITS, default=[], metavar="PART")
    parser.add_argument("--small", action="store_true", help="a try of seconds, on the CPU")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if not args.small and not torch.cuda.is_available():
        print(
            f"No GPU: torch {torch.__version__} sees no CUDA device here. Nothing was run.\n"
            "scripts/gpu.sh --small tries the kit on the CPU.",
            file=sys.stderr,
        )
        return 2
    if args.part:
        return PARTS[args.part](args)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.again:
        (args.out / f"{name}.json").unlink(missing_ok=True)
    for name in LIMITS:
        if known(args.out, name).get("status") != "done":
            run_part(name, args)
        write_page(args.out, args.small)
    failed = [name for name in LIMITS if known(args.out, name).get("status") != "done"]
    print(f"Page: {args.out / 'gpu.html'}; numbers: {args.out / 'gpu.json'}")
    if failed:
        print(f"Not finished: {', '.join(failed)}; the same command runs the rest of it.")
    return int(bool(failed))


def run_part(name: str, args: argparse.Namespace) -> None:
    """One part in a process of its own, stopped when its time is over; its state is noted."""
    log, started = args.out / f"{name}.log", time.monotonic()
    print(f"{name}: at most {duration(LIMITS[name])}, output in {log}", flush=True)
    with log.open("wb") as out:
        process = subprocess.Popen(command_of(name, args), stdout=out, stderr=subprocess.STDOUT)
        try:
            code = process.wait(LIMITS[name])
            status = "done" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    seconds = round(time.monotonic() - started, 1)
    save(args.out, name, status=status, seconds=seconds)
    print(f"{name}: {status} after {duration(seconds)}", flush=True)


def command_of(name: str, args: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "scripts.gpu_kit", "--part", name, "--out", str(args.out)]
    command += ["--data", args.data] if args.data else []
    return [*command, *(["--small"] if args.small else [])]


def known(out: Path, name: str) -> dict[str, Any]:
    """What a part has measured so far."""
    file = out / f"{name}.json"
    return dict(read_json(file)) if file.exists() else {}


def save(out: Path, name: str, **values: Any) -> None:
    write_json(out / f"{name}.json", known(out, name) | values, indent=1)


# -- the parts -------------------------------------------------------------------------------------


def tests(args: argparse.Namespace) -> int:
    """The tests marked cuda; --small: those of one file, which skip themselves."""
    where = [str(ROOT / "tests" / "test_checkpoint.py")] if args.small else [str(ROOT / "tests")]
    results = args.out / "tests.xml"
    words = ["-m", "cuda", "-q", "-n", "0", f"--junit-xml={results}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *where, *words, f"--rootdir={ROOT}"]
    code = subprocess.call(command)
    found = []
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        kinds = [child.tag for child in case]
        result = next((k for k in ("failure", "error", "skipped") if k in kinds), "passed")
        found.append({"name": case.get("name"), "result": result, "seconds": case.get("time")})
    save(args.out, "tests", results=found)
    return code


def speed(args: argparse.Namespace) -> int:
    """Eager steps of every size first, then compiled ones, which take a minute each to build."""
    device = pick_device("cpu" if args.small else "cuda")
    precision = "fp32" if args.small else "bf16"
    sizes = {"tiny": 4} if args.small else SIZES
    repeats, steps = (2, 1) if args.small else (5, 5)
    done: list[dict[str, Any]] = known(args.out, "speed").get("steps", [])
    rate = matmul_rate(device, 256 if args.small else 8192, precision)
    save(args.out, "speed", matmul_tflops=rate / 1e12, precision=precision)
    peers = import_peers()
    ready = {(s["model"], s["compiled"]) for s in done}
    for compiled in (False, *(() if args.small else (True,))):
        for size, batch in sizes.items():
            for name in (f"vit_p_{size}", f"vit_c_{size}", *([f"timm {size}"] if peers else [])):
                if (name, compiled) in ready:
                    continue
                torch.manual_seed(0)
                model = timm_twin(peers[0], size) if name[:4] == "timm" else create_model(name)
                pixels = model_config(f"vit_p_{size}").size[0]
                entry = {"model": name, "compiled": compiled, "batch": batch, "size": size}
                try:
                    built = torch.compile(model) if compiled else model
                    step = step_of(built, precision, batch, pixels, device)
                    rates = compare({name: step}, batch, repeats, steps)[name]
                    flops = flops_of(name if name[:4] != "timm" else f"vit_p_{size}")
                    used = 6 * flops * statistics.median(rates) / rate  # 2 a multiply-add, 3 passes
                    entry |= {"images_per_second": rates, "mfu": used, "flops": flops}
                except torch.OutOfMemoryError:
                    entry |= {"images_per_second": []}
                done.append(entry)
                save(args.out, "speed", steps=done, peers=peers is not None)
                print(entry, flush=True)
                model = built = step = None
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return 0


def flops_of(name: str) -> int:
    """Multiply-adds of an image's forward pass."""
    with torch.device("meta"):
        return complexity(create_model(name)).flops


def timm_twin(timm: Any, size: str) -> torch.nn.Module:
    """timm's ViT with the width, depth, heads and patch of our ViT_P of a size: as many flops."""
    config: Any = model_config(f"vit_p_{size}")
    model: torch.nn.Module = timm.models.VisionTransformer(
        img_size=config.size,
        patch_size=config.stem.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
    )
    return model


def study(args: argparse.Namespace) -> int:
    """The audit's question at scale: what SGD costs each stem at a large batch."""
    words = SMALL_STUDY if args.small else [*STUDY, *(GIVEN if args.data else EMBEDDED)]
    if args.data:
        words = [*words, "--data", args.data]
    folder = args.out / "study"
    command = [sys.executable, "-m", "vitc", "study", "optimizer", *words, "--out", str(folder)]
    with subprocess.Popen(command) as process:

        def stop(number: int, frame: object) -> None:
            process.send_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)
        code = process.wait()
    if (folder / "plan.json").exists():
        (section,) = analyse([folder])
        save(
            args.out,
            "study",
            data=args.data or "embedded",
            command=command[1:],
            verdict=section.finding.verdict,
            unfinished=section.unfinished,
            values=json.loads(to_json(section.finding.values)),
        )
    return code


PARTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "tests": tests,
    "speed": speed,
    "study": study,
}


# -- the page --------------------------------------------------------------------------------------


def write_page(out: Path, small: bool) -> None:
    found = {name: known(out, name) for name in LIMITS}
    values = {"schema": 1, "small": small, "environment": environment(), **found}
    write_atomically(out / "gpu.json", to_json(values, indent=1))
    device = describe(pick_device("cpu" if small else "cuda"))
    parts: list[Part] = [
        Heading("On a GPU", level=1),
        Text(f"{device}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}."),
        *([Text("A try on the CPU (--small): no number here means anything.", "warning")] * small),
        parts_table(found),
        *tests_parts(found["tests"]),
        *speed_parts(found["speed"]),
        *study_parts(found["study"]),
    ]
    write_atomically(out / "gpu.html", html.render(Page("On a GPU", parts)))


def parts_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        {
            "part": name,
            "state": str(f.get("status", "not run")),
            "took": duration(f["seconds"]) if "seconds" in f else "-",
            "limit": duration(LIMITS[name]),
        }
        for name, f in found.items()
    ]
    return Table.of("Parts", rows)


def tests_parts(found: Mapping[str, Any]) -> list[Part]:
    results: Sequence[Mapping[str, str]] = found.get("results", ())
    if not results:
        return [Heading("Tests marked cuda"), Text("None ran.")]
    counts = Counter(r["result"] for r in results)
    rows = [{"test": r["name"], "result": r["result"], "s": r["seconds"]} for r in results]
    note = ", ".join(f"{n} {what}" for what, n in counts.items())
    return [Table.of("Tests marked cuda", rows, f"{note}.")]


def speed_parts(found: Mapping[str, Any]) -> list[Part]:
    if "matmul_tflops" not in found:
        return [Heading("Training steps"), Text("None was timed.")]
    rows = []
    for s in found.get("steps", ()):
        rates = s.get("images_per_second")
        rows.append(
            {
                "model": s["model"],
                "compiled": "yes" if s["compiled"] else "no",
                "batch": str(s["batch"]),
                "images/s (least to most)": "out of memory"
                if not rates
                else f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
                "of the matmul rate, %": f"{100 * s['mfu']:.0f}" if rates else "-",
            }
        )
    peers = "" if found.get("peers") else f" timm is not installed: {install_line('peers')}."
    note = (
        f"Matrix products run at {found['matmul_tflops']:,.1f} TFLOP/s here "
        f"({found['precision']}). The last column is six floating-point operations a multiply-add "
        "of the forward pass, over that rate. What is missing was not reached in its time."
        f"{peers}"
    )
    return [Table.of("Training steps", rows, note)]


def study_parts(found: Mapping[str, Any]) -> list[Part]:
    if "verdict" not in found:
        return [Heading("Does SGD cost the patchify stem more?"), Text("No trial has ended.")]
    left = found["unfinished"]
    return [
        Heading("Does SGD cost the patchify stem more?"),
        Text(f"Images: {found['data']}. The whole report: vitc report on the folder study/."),
        *([Text(f"{left} runs have no result yet.", "warning")] if left else []),
        *(Text(text, "verdict") for text in found["verdict"]),
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VitcError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(2)
