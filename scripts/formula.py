"""Make what ships of the formula weights again: the file itself, and the picture of their images.

    vitc pretrain formula --out runs/formula
    python scripts/formula.py weights runs/formula vitc/weights/formula_tiny.safetensors
    python scripts/formula.py picture docs/results/formula/images.jpg
    python scripts/formula.py chart docs/results/formula/transfer.png clothing=a.json signs=b.json

`weights` writes a run's averaged weights in fp16, without the head, and prints the sha256 that
`vitc/weights/catalog.py` names. `picture` has eight images each of ten fractals and ten contours.
`chart` draws the accuracies that `benchmarks/crossing.py` wrote, a panel a file: means over seeds,
and bars from the lowest to the highest.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from vitc.data.sources.formula import FormulaStore, Spec
from vitc.views import figures
from vitc.views.figure_style import DPI
from vitc.views.model import GREY, Chart, Line
from vitc.weights.load import read_weights

ROWS, COLUMNS = 10, 8


def weights(run: str, out: str) -> None:
    found = read_weights(run)
    tensors = {
        name: tensor.half().contiguous() if tensor.dtype == torch.float32 else tensor.contiguous()
        for name, tensor in found.tensors.items()
        if not name.startswith("head.")
    }
    save_file(tensors, out)
    content = Path(out).read_bytes()
    print(f"{len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    print(f"preprocessing: {found.preprocessing}")


def picture(out: str) -> None:
    store = FormulaStore(Spec())
    halves = []
    for first in (0, 1):
        rows = [
            [store.read(variation * store.spec.classes + label) for variation in range(COLUMNS)]
            for label in range(first, 2 * ROWS, 2)
        ]
        halves.append(np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    Image.fromarray(np.concatenate(halves, axis=1)).save(out, quality=88)


LOOKS = {"scratch": GREY, "longer": 1, "formula": 0}
LABELS = {
    "scratch": "from scratch",
    "longer": "scratch, twice the time",
    "formula": "formula weights",
}


def chart(out: str, *files: str) -> None:
    charts = []
    for name, _, file in (entry.partition("=") for entry in files):
        rows = json.loads(Path(file).read_text())
        lines = []
        for start, look in LOOKS.items():
            of = {
                images: [r["top1"] for r in rows if (r["start"], r["per_class"]) == (start, images)]
                for images in sorted({r["per_class"] for r in rows if r["start"] == start})
            }
            mean, low, high = ([float(f(t)) for t in of.values()] for f in (np.mean, min, max))
            if of:
                lines.append(Line(LABELS[start], look, list(of), mean, low, high))
        charts.append(Chart(name, name, "training images a class", "test accuracy, %", lines, True))
    figures.draw(charts, titled=True).savefig(out, dpi=2 * DPI)


if __name__ == "__main__":
    if sys.argv[1:2] == ["weights"] and len(sys.argv) == 4:
        weights(*sys.argv[2:])
    elif sys.argv[1:2] == ["picture"] and len(sys.argv) == 3:
        picture(sys.argv[2])
    elif sys.argv[1:2] == ["chart"] and len(sys.argv) >= 4:
        chart(*sys.argv[2:])
    else:
        sys.exit(__doc__)
