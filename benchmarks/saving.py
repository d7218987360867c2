"""How long does training wait for its checkpoints?

    python benchmarks/saving.py --models vit_p_4gf vit_p_18gf --saves 6

trains each model on a CPU with AdamW and an average of the weights (16 bytes a parameter), on
images of 32 pixels so that steps are short, and saves as often. Shown are the seconds that the
steps waited for a save, by the clock and of processor time, which other programs disturb less;
those until it was complete on disk; and those of a step with and without a checkpoint being written
beside it: median [min-max].
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitc.resolve import load_config
from vitc.runs.checkpoint import Snapshot
from vitc.runs.writer import Writer
from vitc.training.loop import run
from vitc.training.step import NormStatistics
from vitc.wording import size

BATCH, IMAGES = 8, 512


class Times:
    """Of one run: when it was saved, for how long its steps waited, when its steps ended."""

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.worked: list[float] = []  # processor time of the same
        self.written: list[tuple[float, float]] = []
        self.steps: list[float] = []
        self.bytes = 0
        save, write, after = Writer.save, Snapshot.write, NormStatistics.after_step

        def saved(writer: Writer, *args: Any) -> None:
            started, worked = time.monotonic(), time.thread_time()
            save(writer, *args)
            self.waited.append(time.monotonic() - started)
            self.worked.append(time.thread_time() - worked)

        def written(snapshot: Snapshot, *args: Any, **named: Any) -> Path:
            started = time.monotonic()
            path = write(snapshot, *args, **named)
            self.written.append((started, time.monotonic()))
            self.bytes = sum(file.stat().st_size for file in path.iterdir())
            return path

        def stepped(norms: NormStatistics) -> None:
            after(norms)
            self.steps.append(time.monotonic())

        Writer.save, Snapshot.write = saved, written  # type: ignore[method-assign, assignment]
        NormStatistics.after_step = stepped  # type: ignore[method-assign]

    def step_seconds(self, writing: bool) -> list[float]:
        """Of steps beside a write, or of those without; no step that a save lies in."""
        found = []
        for a, b in zip(self.steps, self.steps[1:], strict=False):
            if any(a <= start <= b or a <= end <= b for start, end in self.written):
                continue
            if any(start < a and b < end for start, end in self.written) == writing:
                found.append(b - a)
        return found


def shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.3f} [{low:.3f}-{high:.3f}], n = {len(values)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", default=["vit_p_4gf", "vit_p_18gf"])
    add("--saves", type=int, default=6, help="of each (default: 6)")
    add("--every", type=int, default=16, help="steps between two (default: 16)")
    add("--out", type=Path, help="a folder on the disk to measure (default: a temporary one)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    times = Times()
    for model in args.models:
        vars(times).update(waited=[], worked=[], written=[], steps=[])
        config = load_config(
            "debug",
            model=model,
            **{
                "model.img_size": 32,
                "data.max_train": args.every * BATCH,
                "train.batch": BATCH,
                "train.epochs": args.saves,
                "train.eval_every_epochs": args.saves,
                "train.save_every_steps": args.every,
                "train.save_every_seconds": 1e6,
                "train.threads": 1,
                "train.device": "cpu",
                "train.keep_checkpoints": 1,
            },
        )
        with tempfile.TemporaryDirectory(dir=args.out) as folder:
            run(config, Path(folder) / "run", quiet=True)
        disk = [end - start for start, end in times.written]
        print(f"{model}: checkpoints of {size(times.bytes)}")
        print(f"  seconds that steps waited   {shown(times.waited)}")
        print(f"  of processor time           {shown(times.worked)}")
        print(f"  seconds until it is on disk {shown(disk)}")
        print(f"  seconds of a step           {shown(times.step_seconds(False))}")
        print(f"  beside a write              {shown(times.step_seconds(True))}", flush=True)


if __name__ == "__main__":
    main()
