"""From how many images a class is training from scratch better than pretrained weights?

    python benchmarks/crossing.py ~/photos --per-class 10 30 100 300 --seconds 180 --seeds 3 \
        --out crossing.json

`vitc train FOLDER --start scratch` and `--start pretrained`: both with the same number of processor
seconds, one thread, the same subset of the training images (another for each seed), and the
folder's val and test images. Prints test accuracy by images a class: the mean over seeds, and the
paired difference with its 95 % interval (Student's t). Runs that are in the output file already
are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import t

STARTS = ("scratch", "pretrained")


def one(folder: Path, start: str, images: int, seconds: float, seed: int, out: Path) -> float:
    """Test accuracy of one run, in percent."""
    settings = {
        "train.clock": "processor",
        "train.threads": 1,
        "train.seed": seed,
        "data.max_train": images,
        "data.split_seed": seed,
    }
    vitc = [sys.executable, "-m", "vitc"]
    words = [*vitc, "train", str(folder), "--start", start]
    words += ["--budget", f"{seconds:g}s", "--out", str(out), "--overwrite"]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    test = [*vitc, "evaluate", str(out), "--split", "test", "--json"]
    done = subprocess.run(test, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="images with train, val and test")
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 30, 100, 300])
    parser.add_argument("--seconds", type=float, default=180, help="processor seconds of a run")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2 (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("crossing.json"))
    args = parser.parse_args()
    train = next(p for name in ("train", "training") if (p := args.folder / name).is_dir())
    classes = sum(p.is_dir() for p in train.iterdir())
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    there = {(r["per_class"], r["start"], r["seed"]) for r in rows}
    with tempfile.TemporaryDirectory() as work:
        for seed in range(args.seeds):  # interleaved: a machine that changes does so for both
            for count, start in itertools.product(args.per_class, STARTS):
                if (count, start, seed) in there:
                    continue
                images = count * classes
                top1 = one(args.folder, start, images, args.seconds, seed, Path(work, "run"))
                rows.append({"per_class": count, "start": start, "seed": seed, "top1": top1})
                print(f"{count:>5} a class  {start:<10} seed {seed}: {top1:.2f} %", flush=True)
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{'a class':>8} {'scratch':>8} {'pretrained':>11}  difference (95 %)")
    for count in args.per_class:
        scratch, pretrained = (
            np.array(
                [
                    r["top1"]
                    for r in sorted(rows, key=lambda r: r["seed"])
                    if (r["per_class"], r["start"]) == (count, start)
                ]
            )
            for start in STARTS
        )
        gained = pretrained - scratch
        half = t.ppf(0.975, gained.size - 1) * gained.std(ddof=1) / gained.size**0.5
        print(
            f"{count:>8} {scratch.mean():>8.1f} {pretrained.mean():>11.1f}  "
            f"{gained.mean():+.1f} ({gained.mean() - half:+.1f} to {gained.mean() + half:+.1f})"
        )


if __name__ == "__main__":
    main()
