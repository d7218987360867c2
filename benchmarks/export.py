"""Does every family of models answer as before in every format, from photos as files?

    python benchmarks/export.py PHOTOS --count 1000 --sides 60 400
    python benchmarks/export.py PHOTOS --count 1000 --sides 60 400 --runs runs/a runs/b

PHOTOS has one sub-folder per class. `--count` of them are compared: the model as this library
answers from a file, against the exported file. ONNX files are run by the script of docs/export.md,
word for word, the others by their own engine on the same pixels. `--sides` first gives every photo
random sides of that many pixels, and uses photos again, in other sizes, where there are too few.
With `--runs` the models are those, trained; int8 takes its ranges from their training images.
Without, their weights are random, and half as many photos again set BatchNorms and a linear head
(ridge regression), so that answers depend on the photo; int8 takes its ranges from those. One
table, in Markdown, and for each format the photos that are answered differently: how close the
first two classes were.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import vitc
from vitc.data.decode import read_image
from vitc.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitc.deploy.classifier import Classifier
from vitc.deploy.export import compare
from vitc.errors import ConfigError, RunError
from vitc.stats.paired import compare_accuracy

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {
    "patchify stem": ("vit_p_tiny", {"img_size": 64}),
    "convolutional stem": ("vit_c_tiny", {"img_size": 64}),
    "residual stem": ("vit_r_tiny64", {}),
    "custom stem": (
        "vit_p_tiny",
        {"img_size": 64, "stem": f"{ROOT / 'examples/my_stem.py'}:MyStem"},
    ),
    "CNN": ("regnety_1gf", {"img_size": 64}),
    "timm": ("timm:resnet18", {"img_size": 64}),
}
FORMATS = {
    "onnx": (".onnx", "fp32"),
    "onnx-int8": (".onnx", "int8"),
    "openvino": (".xml", "fp32"),
    "openvino-int8": (".xml", "int8"),
    "torch": (".pt2", "fp32"),
    "safetensors": (".safetensors", "fp32"),
}
Logits = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("photos", type=Path)
    add("--count", type=int, default=1000, help="photos that are compared")
    add("--sides", type=int, nargs=2, metavar=("LOW", "HIGH"), help="resize them to random sides")
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    add("--runs", type=Path, nargs="+", default=[], metavar="RUN", help="trained, in their place")
    add("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    add("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    compare.BATCHES = ()  # no latency: benchmarks/inference.py
    head = "family | format | same class, % | largest logit difference | top-1 change, points | MB"
    print(f"| {head} |\n|{' --- |' * 6}")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fitted, compared = sorted_photos(args.photos, args.count, args.sides, folder, not args.runs)
        models = [(run.name, run) for run in args.runs] or [
            (family, untrained(family, fitted, folder)) for family in args.families
        ]
        for name, model in models:
            for row in measured(name, model, args.formats, None if args.runs else fitted, compared):
                low, high = row["interval"]
                change = f"{row['change']:+.2f} ({low:+.2f} to {high:+.2f})"
                print(
                    f"| {name}, `{row['model']}`, {row['top1']:.1f} % | {row['format']} "
                    f"| {row['agreement']:.2f} | {row['max_diff']:.1g} of {row['std']:.2g} "
                    f"| {change} | {row['mb']:.2f} |",
                    flush=True,
                )
                for photo, margin, difference in row["disagree"]:
                    print(f"  {photo}: margin {margin:.2g}, difference {difference:.2g}")
                rows.append(row)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1))
    print(f"\nn = {len(compared)} photos; difference: of logits with that standard deviation")


def sorted_photos(
    root: Path, count: int, sides: list[int] | None, folder: Path, fit: bool
) -> tuple[Path, list[Path]]:
    """The folder of photos that models are fitted to, and the files that are compared."""
    rng = random.Random(0)
    files = sorted(f for f in root.rglob("*.*") if f.suffix.lower() in (".jpg", ".jpeg", ".png"))
    rng.shuffle(files)
    first = count // 2 if fit else 0
    again = itertools.cycle(files) if sides else iter(files)
    for i, file in enumerate(itertools.islice(again, count + first)):
        group = folder / ("fitted" if i < first else "compared") / file.parent.name
        group.mkdir(parents=True, exist_ok=True)
        copy = group / f"{i}_{file.name}"
        if sides is None:
            copy.symlink_to(file.resolve())
        else:
            size = rng.randint(*sides), rng.randint(*sides)
            Image.open(file).convert("RGB").resize(size).save(copy, quality=90)
    return folder / "fitted", sorted((folder / "compared").rglob("*.*"))


def untrained(family: str, fitted: Path, folder: Path) -> Path:
    """A saved model of random weights whose head separates the classes of the fitted photos."""
    name, settings = FAMILIES[family]
    files = sorted(fitted.rglob("*.*"))
    classes = sorted({f.parent.name for f in files})
    torch.manual_seed(0)
    model: Any = vitc.create_model(name, num_classes=len(classes), **settings)
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop=0.875, img_size=(64, 64))
    fit(model, preprocessing, files, classes)
    saved = folder / family.replace(" ", "_")
    vitc.save_pretrained(model, saved, classes=classes, preprocessing=preprocessing)
    return saved


def measured(
    name: str, model: Path, formats: list[str], calibration: Path | None, compared: list[Path]
) -> Iterator[dict[str, Any]]:
    original = Classifier.load(model, "cpu")
    labels = np.array([original.classes.index(f.parent.name) for f in compared])
    of_model = answer(model)
    before = np.concatenate([of_model(f) for f in compared])
    share = np.bincount(before.argmax(1)).max() / len(before)
    if before.std() < 0.1 or share > 0.5:
        raise SystemExit(f"{name}: std {before.std():.2g}, {share:.0%} of one class")
    for kind in formats:
        suffix, precision = FORMATS[kind]
        file = compared[0].parents[2] / f"{name}-{kind}{suffix}"
        try:
            report = exported(model, file, calibration, precision)
        except ConfigError as refused:  # a custom model does not fit into a file of tensors
            print(f"| {name} | {kind} | {refused} | | | |", flush=True)
            continue
        of_file = script(file) if suffix == ".onnx" else answer(file)
        after = np.concatenate([of_file(f) for f in compared])
        right = [logits.argmax(1) == labels for logits in (before, after)]
        gained, lost = (int((a & ~b).sum()) for a, b in (right[::-1], right))
        change = compare_accuracy(gained, lost, len(compared))
        top, difference = np.sort(before, axis=1), np.abs(after - before).max(1)
        other = np.flatnonzero(before.argmax(1) != after.argmax(1))
        yield {
            "name": name,
            "model": original.config.model.name,
            "format": f"{kind}, exact resize" if report.exact_resize else kind,
            "n": len(compared),
            "agreement": 100 * (1 - len(other) / len(compared)),
            "disagree": [
                (compared[i].name, float(top[i, -1] - top[i, -2]), float(difference[i]))
                for i in other
            ],
            "max_diff": float(difference.max()),
            "std": float(before.std()),
            "top1": 100 * float(right[0].mean()),
            "change": change.difference,
            "interval": change.interval,
            "mb": sum(f.stat().st_size for f in written(file)) / 1e6,
        }


def exported(
    model: Path, file: Path, images: Path | None, precision: Literal["fp32", "int8"]
) -> vitc.ExportReport:
    """As `vitc export` does it, and what it refuses for its answers all the same."""
    data = str(images) if images else None
    try:
        return vitc.export(model, file, data=data, precision=precision)
    except RunError:
        return vitc.export(model, file, data=data, precision=precision, min_agreement=0)


def written(file: Path) -> list[Path]:
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def fit(model: Any, preprocessing: Preprocessing, files: list[Path], classes: list[str]) -> None:
    """Statistics of BatchNorms from these photos, and a head that separates their classes."""
    prepared = torch.stack([preprocessing.prepare(read_image(f, 3, str(f))) for f in files])
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    batches = ((prepared / 255 - mean) / std).split(100)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    kept: list[torch.Tensor] = []
    head = model.get_classifier()
    with torch.no_grad():
        for batch in batches:
            model(batch)
        model.eval()
        handle = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        for batch in batches:
            model(batch)
        handle.remove()
        features = torch.cat(kept).double()
        centre, scale = features.mean(0), features.std(0) + 1e-6
        x = (features - centre) / scale
        targets = torch.tensor([classes.index(f.parent.name) for f in files])
        y = nn.functional.one_hot(targets, len(classes)).double()
        ridge = len(files) * 0.1 * torch.eye(x.shape[1], dtype=torch.float64)
        weight = 10 * torch.linalg.solve(x.T @ x + ridge, x.T @ (y - y.mean(0)))
        head.weight.copy_((weight / scale[:, None]).T)
        head.bias.copy_(-(weight / scale[:, None]).T @ centre)


def answer(path: Path) -> Callable[[Path], Logits]:
    """This library's answer to a file: logits (1, K)."""
    classifier = Classifier.load(path, "cpu")
    run: Any = getattr(classifier.model, "run", None)

    def logits(file: Path) -> Logits:
        pixels = read_image(file, 3, str(file))
        if run is not None:
            return run(np.ascontiguousarray(pixels)[None])
        return classifier.logits(classifier.prepare(pixels)[None]).numpy()

    return logits


def script_parts() -> tuple[str, str]:
    """The script of docs/export.md: what opens `model`, and what classifies `photo`."""
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    opening, start, photo = code.partition("image = ")
    return opening.replace('"photos.onnx"', "model"), start + photo.replace('"photo.jpg"', "photo")


def script(file: Path) -> Callable[[Path], Logits]:
    """The script of docs/export.md: its session once, the rest for every photo."""
    opening, photo = script_parts()
    names: dict[str, Any] = {"model": str(file)}
    exec(opening, names)
    each = compile(photo, "docs/export.md", "exec")

    def logits(photo: Path) -> Logits:
        exec(each, names | {"photo": photo, "print": lambda *_: None}, out := {})
        return out["logits"]

    return logits


if __name__ == "__main__":
    main()
