"""From how many images a class is training from scratch better than other starts?

    python benchmarks/crossing.py ~/photos --per-class 10 30 100 300 --seconds 180 --seeds 3 \
        --out crossing.json
    python benchmarks/crossing.py ~/photos --starts scratch formula longer --seconds 60 --seeds 5

Starts, by name: scratch, pretrained and formula are those of `vitc train FOLDER --start`; longer is
scratch for twice the time. All have the same number of processor seconds but for the last, one
thread, the same subset of the training images (another for each seed), and the folder's val and
test images. Prints accuracy by images a class as a table in Markdown: the mean over seeds, and the
paired difference from scratch with its 95 % interval (Student's t over seeds), over all sizes too.
Runs that are in the output file already are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

STARTS = ("scratch", "pretrained", "formula", "longer")


def one(args: argparse.Namespace, start: str, images: int, seed: int, out: Path) -> float:
    """Accuracy of one run, in percent."""
    settings = {
        "train.clock": "processor",
        "train.threads": 1,
        "train.seed": seed,
        "data.max_train": images,
        "data.split_seed": seed,
    }
    seconds = args.seconds * (2 if start == "longer" else 1)
    vitc = [sys.executable, "-m", "vitc"]
    words = [*vitc, "train", str(args.folder), "--budget", f"{seconds:g}s"]
    words += ["--start", "scratch" if start == "longer" else start]
    words += ["--out", str(out), "--overwrite"]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    answer = [*vitc, "evaluate", str(out), "--split", args.split, "--json"]
    done = subprocess.run(answer, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["top1"])


def gained(rows: list[dict[str, Any]], start: str, counts: list[int]) -> str:
    """The mean accuracy of a start over `counts` and the seeds that have them all, and what it is
    ahead of scratch: an interval over seeds, each one's mean over `counts`."""
    of = {(r["per_class"], r["start"], r["seed"]): r["top1"] for r in rows}
    seeds = [
        seed
        for seed in sorted({r["seed"] for r in rows})
        if all((c, s, seed) in of for c in counts for s in (start, "scratch"))
    ]
    if not seeds:
        return ""
    there, scratch = (
        np.mean([[of[c, s, seed] for c in counts] for seed in seeds], axis=1)
        for s in (start, "scratch")
    )
    text = f"{there.mean():.1f}"
    if start == "scratch":
        return text
    ahead = there - scratch
    text += f" ({ahead.mean():+.1f}"
    if ahead.size > 1:
        half = t.ppf(0.975, ahead.size - 1) * ahead.std(ddof=1) / ahead.size**0.5
        text += f", {ahead.mean() - half:+.1f} to {ahead.mean() + half:+.1f}"
    return f"{text})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="images with train, val and test")
    add("--per-class", type=int, nargs="+", default=[10, 30, 100, 300])
    add(
        "--starts",
        nargs="+",
        choices=STARTS,
        default=["scratch", "pretrained"],
        metavar="START",
        help=f"of {', '.join(STARTS)}",
    )
    add("--seconds", type=float, default=180, help="processor seconds of a run")
    add("--seeds", type=int, default=3, help="default: 3")
    add("--split", choices=("val", "test"), default="test", help="what is answered (default: test)")
    add("--out", type=Path, default=Path("crossing.json"))
    args = parser.parse_args()
    train = next(p for name in ("train", "training") if (p := args.folder / name).is_dir())
    classes = sum(p.is_dir() for p in train.iterdir())
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    there = {(r["per_class"], r["start"], r["seed"]) for r in rows}
    with tempfile.TemporaryDirectory() as work:
        for seed in range(args.seeds):  # interleaved: a machine that changes does so for all
            for count, start in itertools.product(args.per_class, args.starts):
                if (count, start, seed) in there:
                    continue
                top1 = one(args, start, count * classes, seed, Path(work, "run"))
                rows.append({"per_class": count, "start": start, "seed": seed, "top1": top1})
                print(f"{count:>5} a class  {start:<10} seed {seed}: {top1:.2f} %", flush=True)
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n| a class | " + " | ".join(args.starts) + " |")
    print("| --- " * (1 + len(args.starts)) + "|")
    for counts in ([c] for c in args.per_class):
        print(f"| {counts[0]} | " + " | ".join(gained(rows, s, counts) for s in args.starts) + " |")
    print("| all | " + " | ".join(gained(rows, s, args.per_class) for s in args.starts) + " |")


if __name__ == "__main__":
    main()
