"""Does `vitc plan` predict what runs take? Plans small runs, runs them, compares.

    python benchmarks/plan.py --cases 2              # the first two
    python benchmarks/plan.py --out plan.json        # all twelve
    python benchmarks/plan.py photos_96 --images ~/photos

Each case is planned (`vitc plan ... --json`) and then trained (`vitc train` with the same words) in
processes of their own. Compared are the time from the command to its end, the processor time of all
its processes, and the peak memory of the run's main process (summary.json). On a machine that
other programs use, the processor time is the comparison that means something.
Photos are made here, noise of random sizes, unless --images names a folder of one's own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
# Recipes and folders of photos; models, batches, lengths, sizes, optimizers.
CASES = {
    "fashion_c": "fashion_vit_c --train.epochs 3",
    "photos_64": "{photos} --budget 10m --train.epochs 6 --start scratch",
    "fashion_p_sgd": "fashion_vit_p --optim sgd --train.batch 64 --train.epochs 5",
    "fashion_mini": "fashion_vit_c --model vit_c_mini --train.batch 256 --train.epochs 1",
    "fashion_no_val": "fashion_vit_p --train.epochs 6 --train.eval_every_epochs 6",
    "fashion_micro": "fashion_vit_c --train.batch 512 --train.micro_batch 128 --train.epochs 4",
    "fashion_large": "fashion_vit_c --model vit_c_small64 --model.img_size 64 --train.batch 64 "
    "--data.max_train 2000 --train.epochs 2",
    "photos_96": "{photos} --model vit_c_mini96 --train.epochs 3 --start scratch",
    "photos_budget": "{photos} --budget 90s --start scratch",
    "photos_resnet": "{photos} --model resnet_50 --model.img_size 96 --train.batch 32 "
    "--train.epochs 2 --start scratch",
    "photos_1gf": "{photos} --model vit_c_1gf --model.img_size 224 --train.batch 16 "
    "--data.max_train 320 --train.epochs 1 --start scratch",
    "photos_decoded": "fashion_vit_c --data {photos} --model vit_c_small64 --model.img_size 64 "
    "--model.in_chans 3 --data.augment.crop random_resized --data.val_fraction 0.2 "
    "--train.batch 64 --train.epochs 3",
}
# Chosen by measuring otherwise, and so perhaps another in the plan than in the run.
FIXED = "--train.device cpu --train.precision fp32 --train.channels_last false --train.threads"


def make_photos(folder: Path, classes: int = 5, count: int = 160) -> Path:
    """Smooth noise, with the colour of its class, about as large as a photo on the web."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        place = folder / f"class_{c}"
        place.mkdir(parents=True)
        for i in range(count):
            width, height = rng.integers(300, 500, 2).tolist()
            small = rng.integers(0, 160, (16, 16, 3), dtype=np.uint8)
            small[..., c % 3] += np.uint8(20 * c)
            image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            image.save(place / f"{i:03d}.jpg", quality=85)
    return folder


def called(words: list[str], cache: Path) -> tuple[dict[str, Any], float, float]:
    """The JSON that `vitc WORDS` prints; its wall and processor seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "vitc", *words], capture_output=True, text=True, env=environment
    )
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"vitc {' '.join(words)}\n{done.stderr}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), wall, processor


def compared(name: str, words: list[str], work: Path) -> dict[str, Any]:
    """One case: what was planned, and what it took."""
    answer, _, _ = called(["plan", *words, "--json"], work / "cache")
    plan = answer["plans"][0]
    out = ["--out", str(work / name), "--json"]
    summary, wall, processor = called(["train", *words, *out], work / "cache")
    seconds = plan["seconds"]
    found = {
        "case": name,
        "planned_seconds": seconds["value"],
        "low": seconds["low"],
        "high": seconds["high"],
        "seconds": wall,
        "planned_processor": plan["processor_seconds"],
        "processor": processor,
        "planned_memory": plan["process_bytes"],
        "memory": summary["peak_memory_bytes"],
    }
    for what in ("seconds", "processor", "memory"):
        found[f"{what}_error"] = found[f"planned_{what}"] / found[what] - 1
    inside = seconds["low"] is not None and seconds["low"] <= wall <= seconds["high"]
    return {**found, "inside": inside, "spent": summary["time_spent"], "words": words}


def row(found: dict[str, Any]) -> str:
    low, high = (f"{found[k]:.0f}" if found[k] is not None else "-" for k in ("low", "high"))
    return (
        f"{found['case']:<15} {found['planned_seconds']:>7.0f} ({low:>4} to {high:>4}) "
        f"{found['seconds']:>7.0f} {found['seconds_error']:>+7.0%}   "
        f"{found['planned_processor']:>7.0f} {found['processor']:>7.0f} "
        f"{found['processor_error']:>+7.0%}   {found['planned_memory'] / 1e6:>7,.0f} "
        f"{found['memory'] / 1e6:>7,.0f} {found['memory_error']:>+7.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    parser.add_argument("--images", type=Path, help="a folder of photos of one's own")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    parser.add_argument("--out", type=Path, help="write the results to a JSON file")
    args = parser.parse_args()
    if unknown := set(args.names) - CASES.keys():
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")
    found = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        photos = args.images or make_photos(work / "photos")
        head = f"{'seconds':^43}   {'processor seconds':^23}   {'memory, MB':^23}"
        print(
            f"{'':<15} {head}\n{'case':<15} {'planned (95 %)      measured   error':>43}   ", end=""
        )
        print(f"{'planned measured  error':>23}   {'planned measured  error':>23}", flush=True)
        for name in args.names or list(CASES)[: args.cases]:
            case = f"{CASES[name]} {FIXED} {args.threads}".split()
            words = [word.format(photos=photos) for word in case]
            found.append(compared(name, words, work))
            print(row(found[-1]), flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(found, indent=1) + "\n")
    largest = {
        what: max((abs(f[f"{what}_error"]), f["case"]) for f in found)
        for what in ("seconds", "processor", "memory")
    }
    errors = ", ".join(f"{what} {error:.0%} ({case})" for what, (error, case) in largest.items())
    inside = sum(f["inside"] for f in found)
    print(f"largest errors of {len(found)}: {errors}; {inside} of {len(found)} in the interval")


if __name__ == "__main__":
    main()
