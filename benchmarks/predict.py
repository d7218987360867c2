"""What does `vitc predict` cost beside decoding and the model, and does its memory stay flat?

    python benchmarks/predict.py RUN PHOTOS --count 20000

RUN is anything that `vitc predict` takes; PHOTOS is a folder of JPEGs, linked until there are
`--count`. The command runs once on all of them and once on a single one, whose processor time is
taken off. Before and after, decoding and the model are measured alone, in this process, on
`--sample` of the photos in the same batches; the ratio is to the median. All times are processor
seconds, so that other work on the machine disturbs them less. Memory is that of the command's
process, read twice a second.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vitc.data.decode import read_image
from vitc.deploy.classifier import Classifier

BATCH = 64  # of vitc predict


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("run", type=Path)
    add("photos", type=Path)
    add("--count", type=int, default=20_000, help="files of the command")
    add("--sample", type=int, default=2_000, help="photos of a measurement of the parts")
    add("--repeats", type=int, default=3, help="of the parts, before and after")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    photos = sorted(f for f in args.photos.rglob("*.*") if f.suffix.lower() in (".jpg", ".jpeg"))
    photos = [f for f in photos if f.is_file()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "files")
        folder.mkdir()
        for i, photo in enumerate(itertools.islice(itertools.cycle(photos), args.count)):
            (folder / f"{i:06d}.jpg").symlink_to(photo.resolve())
        classifier = Classifier.load(args.run, "cpu")
        sample = sorted(folder.iterdir())[:: max(1, args.count // args.sample)][: args.sample]
        alone = [parts(classifier, sample) for _ in range(args.repeats)]
        start, _ = predict(args.run, sample[0], Path(name, "one.csv"))
        all_of_it, memory = predict(args.run, folder, Path(name, "all.csv"))
        alone += [parts(classifier, sample) for _ in range(args.repeats)]
        lines = Path(name, "all.csv").read_text().count("\n")
    decoding, model = (1e3 * statistics.median(times) for times in zip(*alone, strict=True))
    whole, both = 1e3 * (all_of_it - start) / args.count, sorted(1e3 * sum(p) for p in alone)
    print(f"{args.count:,} files, {lines:,} lines; processor ms an image, one thread")
    print(f"  decoding and resizing {decoding:.3f}, model {model:.3f}", end="")
    print(f" (together {both[0]:.3f} to {both[-1]:.3f}, n = {len(both)})")
    print(f"  vitc predict {whole:.3f}: {statistics.median(both) / whole:.2f} times their rate")
    print(f"  {all_of_it:.1f} s in all, {start:.1f} s of it for the first image")
    shares = [round(q * (len(memory) - 1)) for q in (0.25, 0.5, 0.75, 1)]
    quarters = ", ".join(f"{memory[i] / 2**20:.0f}" for i in shares)
    print(f"  memory at each quarter of the time, MiB: {quarters}; most {max(memory) / 2**20:.0f}")


def parts(classifier: Classifier, files: list[Path]) -> tuple[float, float]:
    """Processor seconds an image of decoding and resizing, and of the model."""
    seconds = [0.0, 0.0]
    for i in range(0, len(files), BATCH):
        group, marks = files[i : i + BATCH], [time.process_time()]
        images = [classifier.prepare(read_image(f, classifier.in_chans, f.name)) for f in group]
        marks.append(time.process_time())
        classifier.probabilities(images)
        marks.append(time.process_time())
        seconds = [s + b - a for s, a, b in zip(seconds, marks, marks[1:], strict=False)]
    return seconds[0] / len(files), seconds[1] / len(files)


def predict(run: Path, images: Path, out: Path) -> tuple[float, list[int]]:
    """Processor seconds of the command, and the bytes it held, read twice a second."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "vitc", "predict", str(run), str(images), "--out", str(out)]
    process = subprocess.Popen([*words, "--device", "cpu"], stdout=subprocess.DEVNULL)
    held = []
    while process.poll() is None:
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        held.append(int(pages) * resource.getpagesize())
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"vitc predict ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, held


if __name__ == "__main__":
    main()
