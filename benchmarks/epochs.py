"""What does reading an epoch of photos cost, with and without the cache of decoded images?

    python benchmarks/epochs.py FOLDER [FOLDER ...] --img-size 64 224

Processor seconds of one pass over the training images by one thread in this process, uint8 batches
of random resized crops, no training: *decoded each time* (no `data.cache_side`), the *first* epoch,
which fills the cache, and *later* ones, in turn, a few times over. The settings are those of
`vitc train FOLDER`: a shorter side of 1.3 times the image size, scaled decoding. The cache is a new
folder and is removed. A folder without sub-folders of classes is read as two classes.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.loader import open_train
from vitc.data.sampling import BatchPlan, steps_per_epoch
from vitc.machine import processor_seconds

BATCH, SCALE = 32, 1.3


def opened(folder: Path, made: Path) -> tuple[DataSet, DataConfig]:
    if not any(path.is_dir() for path in folder.iterdir()):
        root = made / folder.name
        for i, file in enumerate(sorted(p for p in folder.iterdir() if p.is_file())):
            (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            (root / "ab"[i % 2] / file.name).symlink_to(file.resolve())
        folder = root
    augment = AugmentConfig(crop="random_resized", scale=(0.35, 1.0))
    config = DataConfig(
        source="folder", path=str(folder), augment=augment, resident="off", workers=0
    )
    return open_data(config, 3), config


def epoch(data: DataSet, config: DataConfig, size: int) -> float:
    """Processor seconds of one pass."""
    plan = BatchPlan(
        batch=BATCH,
        micro=BATCH,
        seed_order=0,
        seed_augment=0,
        size=(size, size),
        in_chans=3,
        depth=1,
    )
    began = processor_seconds()
    count = steps_per_epoch(len(data.splits["train"]), BATCH)
    with open_train(data, config, plan, torch.device("cpu"), 0, count) as steps:
        for _ in steps:
            pass
    return processor_seconds() - began


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--img-size", nargs="+", type=int, default=[64, 224], metavar="PIXELS")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| photos | pixels | decoded each time | first epoch | later epochs |")
    print("| --- | --- | --- | --- | --- |")
    for folder in args.folders:
        with tempfile.TemporaryDirectory() as made:
            data, plain = opened(folder, Path(made))
            for size in args.img_size:
                cached = replace(plain, cache_side=math.ceil(SCALE * size), cache_decode="scaled")
                each, first, later = [], [], []
                for _ in range(args.repeats):
                    with tempfile.TemporaryDirectory() as cache:
                        os.environ["XDG_CACHE_HOME"] = cache
                        each.append(epoch(data, plain, size))
                        first.append(epoch(data, cached, size))
                        later.append(epoch(data, cached, size))
                n = len(data.splits["train"])
                row = [f"{folder.name}, {n:,}", size, *map(shown, (each, first, later))]
                print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
