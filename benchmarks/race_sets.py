"""The folders of images that docs/performance.md races on, drawn from four data sets.

    python benchmarks/race_sets.py OUT --clothing DIR --signs DIR --cifar10 DIR

DIR are folders of images, one sub-folder a class: clothing with train/, validation/ and test/,
CIFAR-10 with train/ and test/, sign digits with classes alone. Fashion-MNIST comes with vitc.
Each folder made has train/, val/ and test/:

  clothing   its own splits
  signs      70, 15 and 15 % of each class
  cifar300   10 classes of 300 training images, 60 for validation, 200 for test
  cifar1000  the same with 1,000 and 150
  fashion    850 training images a class, 150 and 200
  mixture    40 classes, 10 of each of the four: 33 training images, 12 for validation, and at most
             30 for test

Files are linked, Fashion-MNIST is written as PNG. The draw is seeded: the same images give the
same folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vitc.data.sources.embedded import EMBEDDED, FASHION_CLASSES

SUFFIXES = {".jpg", ".jpeg", ".png"}
Images = dict[str, dict[str, list[Path]]]  # by class, then by split


def images(splits: dict[str, Path]) -> Images:
    """The files of each class and split, in a seeded order."""
    rng = np.random.default_rng(0)
    found: Images = {}
    for split, place in splits.items():
        for folder in sorted(p for p in place.iterdir() if p.is_dir()):
            files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
            rng.shuffle(files)  # type: ignore[arg-type]
            found.setdefault(folder.name, {})[split] = files
    return found


def some(found: Images, train: int, val: int, test: int) -> Images:
    """So many images a class; those of a split that a class lacks come from its training images."""
    drawn: Images = {}
    for name, splits in found.items():
        rest = splits["train"][train:]
        drawn[name] = {"train": splits["train"][:train]}
        for split, count in (("val", val), ("test", test)):
            drawn[name][split] = splits.get(split, rest)[:count]
            rest = rest if split in splits else rest[count:]
    return drawn


def link(found: Images, out: Path) -> None:
    for name, splits in found.items():
        for split, files in splits.items():
            place = out / split / name
            place.mkdir(parents=True)
            for file in files:
                (place / file.name).symlink_to(file.resolve())
    counts = (
        f"{sum(len(c[split]) for c in found.values()):,} {split}"
        for split in ("train", "val", "test")
    )
    print(f"{out}: {len(found)} classes, {', '.join(counts)}")


def write_fashion(out: Path) -> dict[str, Path]:
    with np.load(EMBEDDED, allow_pickle=False) as arrays:
        for split in ("train", "val", "test"):
            labels = arrays[f"{split}_labels"].tolist()
            for i, (pixels, label) in enumerate(
                zip(arrays[f"{split}_images"], labels, strict=True)
            ):
                place = out / split / FASHION_CLASSES[label].replace("/", " or ")
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / f"{i:05}.png")
    return {split: out / split for split in ("train", "val", "test")}


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("out", type=Path)
    for name in ("clothing", "signs", "cifar10"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True)
    own = {"train": "train", "val": "validation", "test": "test"}
    clothing = images({split: args.clothing / name for split, name in own.items()})
    signs = images({"train": args.signs})
    cifar10 = images({split: args.cifar10 / split for split in ("train", "test")})
    fashion = images(write_fashion(out / "fashion"))
    link(clothing, out / "clothing")
    divided: Images = {}
    for name, splits in signs.items():
        held = round(0.15 * len(splits["train"]))
        divided |= some({name: splits}, len(splits["train"]) - 2 * held, held, held)
    link(divided, out / "signs")
    link(some(cifar10, 300, 60, 200), out / "cifar300")
    link(some(cifar10, 1000, 150, 200), out / "cifar1000")
    mixture: Images = {}
    sources = {"clothing": clothing, "cifar10": cifar10, "signs": signs, "fashion": fashion}
    for source, found in sources.items():
        drawn = some(found, 33, 12, 30)
        mixture |= {f"{source} {name}": splits for name, splits in drawn.items()}
    link(mixture, out / "mixture")


if __name__ == "__main__":
    main()
