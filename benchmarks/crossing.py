"""From how many images a class is training from scratch better than pretrained weights?

    python benchmarks/crossing.py ~/photos --per-class 10 30 100 300 --seconds 180 --seeds 3 \
        --out crossing.json

`vitc train FOLDER --start scratch` and `--start pretrained`: both with the same number of processor
seconds, one thread, the same subset of the training images, and the folder's val and test images.
Prints test accuracy by images a class: mean over seeds, and the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STARTS = ("scratch", "pretrained")


def one(folder: Path, start: str, images: int, seconds: float, seed: int, out: Path) -> float:
    """Test accuracy of one run, in percent."""
    settings = {
        "train.clock": "processor",
        "train.threads": 1,
        "train.seed": seed,
        "data.max_train": images,
    }
    words = [sys.executable, "-m", "vitc", "train", str(folder), "--start", start]
    words += ["--budget", f"{seconds:g}s", "--out", str(out), "--overwrite"]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    result = json.loads((out / "test.json").read_text())
    return float(result["results"][-1]["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="images with train, val and test")
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 30, 100, 300])
    parser.add_argument("--seconds", type=float, default=180, help="processor seconds of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("crossing.json"))
    args = parser.parse_args()
    train = next(p for name in ("train", "training") if (p := args.folder / name).is_dir())
    classes = sum(p.is_dir() for p in train.iterdir())
    work, rows = Path(tempfile.mkdtemp()), []
    try:
        for seed in range(args.seeds):  # interleaved: a machine that changes does so for both
            for count in args.per_class:
                for start in STARTS:
                    images = count * classes
                    top1 = one(args.folder, start, images, args.seconds, seed, work / "run")
                    rows.append({"per_class": count, "start": start, "seed": seed, "top1": top1})
                    print(f"{count:>5} a class  {start:<10} seed {seed}: {top1:.2f} %", flush=True)
                    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        shutil.rmtree(work)
    print(f"\n{'a class':>8} {'scratch':>22} {'pretrained':>22}")
    for count in args.per_class:
        cells = []
        for start in STARTS:
            found = [r["top1"] for r in rows if (r["per_class"], r["start"]) == (count, start)]
            mean = statistics.mean(found)
            cells.append(f"{mean:.1f} ({min(found):.1f}-{max(found):.1f})")
        print(f"{count:>8} {cells[0]:>22} {cells[1]:>22}")


if __name__ == "__main__":
    main()
