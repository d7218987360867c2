"""Build the embedded subset of Fashion-MNIST from the original files.

    apt-get install dataset-fashion-mnist        # or the four .gz files from the authors' page
    python scripts/build_fashion.py /usr/share/datasets/fashion-mnist

8,500 training and 1,500 validation images come from the original training files, 2,000 test images
from the original test files; all ten classes equal in each. In each class the images are ordered
by a hash of the seed and their place in the original file: the first 850 train, the next 150
validate; of the test files, the first 200. The archive is the same byte for byte wherever zlib is
(the arrays are in any case): `--check` compares with what the package holds.
Source: https://github.com/zalandoresearch/fashion-mnist, MIT licence, (c) 2017 Zalando SE.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitc.data.sources.arrays import read_idx
from vitc.data.sources.embedded import EMBEDDED
from vitc.data.split import by_class, hashed

SEED = 0
PER_CLASS = {"train": 850, "val": 150, "test": 200}


def subset(originals: Path, per_class: dict[str, int], seed: int) -> dict[str, NDArray[np.uint8]]:
    """For each split its images uint8 (n, 28, 28), labels uint8 (n,) and positions uint16 (n,)."""
    arrays = {}
    for prefix, splits in (("train", ("train", "val")), ("t10k", ("test",))):
        images = read_idx(originals / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(originals / f"{prefix}-labels-idx1-ubyte.gz")
        names = (f"{prefix}/{i}" for i in range(len(labels)))
        members = by_class(labels.astype(np.int64), hashed(seed, "fashion", names))
        start = 0
        for split in splits:
            stop = start + per_class[split]
            positions = np.sort(np.concatenate([m[start:stop] for m in members]))
            arrays[f"{split}_images"] = images[positions]
            arrays[f"{split}_labels"] = labels[positions]
            arrays[f"{split}_positions"] = positions.astype(np.uint16)
            start = stop
    return arrays


def archive(arrays: dict[str, NDArray[np.uint8]]) -> bytes:
    """The arrays as a compressed .npz, with nothing of the day or the machine in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.compress_type = zipfile.ZIP_DEFLATED
            raw = io.BytesIO()
            np.lib.format.write_array(raw, np.ascontiguousarray(array), version=(1, 0))
            packed.writestr(entry, raw.getvalue(), compresslevel=9)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("originals", type=Path, help="folder with the four original .gz files")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()

    built = archive(subset(args.originals, PER_CLASS, SEED))
    if not args.check:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(built)
        print(f"{args.out}: {len(built):,} bytes")
        return 0
    there = args.out.read_bytes()
    if there == built:
        print(f"{args.out}: the same, byte for byte")
        return 0
    with np.load(io.BytesIO(there)) as a, np.load(io.BytesIO(built)) as b:
        same = a.files == b.files and all(np.array_equal(a[k], b[k]) for k in b.files)
    print(f"{args.out}: {'the same arrays, packed by another zlib' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
