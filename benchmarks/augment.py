"""Cost of augmentation on one core: ours for one image, ours for batches, torchvision's.

    python benchmarks/augment.py                       # about 5 minutes
    python benchmarks/augment.py --part pipeline --photos DIR
    python benchmarks/augment.py --device cuda         # the batched back end on a GPU

Part `operations`: one operation on 224-pixel photos. Part `policies`: all that a policy does to an
image, from uint8 pixels to uint8 pixels, its parameters' drawing included on both sides. Part
`pipeline`: from a JPEG file to the augmented uint8 cut of 224 pixels, as a loader process does it;
normalisation and mixing are excluded on both sides.

Photos are made (gradients, edges and texture, 500 x 375, quality 90) unless --photos names a
folder of JPEGs. torchvision works on Pillow images, as its reference pipeline does; its policies
are those of the same name, and AutoAugment beside our `v0`. "nearest" and "bilinear" state how
torchvision moves pixels: ours take the nearest for `autoaugment` and `trivial`, as torchvision
does by default, and are bilinear for `v0` and `randaugment`.

Peers: pip install -c constraints.txt -e ".[peers]". Each repeat times every candidate once, in
turn, so that a drift of the machine hits all alike; quoted are the median and the range.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitc.data.augment import ops
from vitc.data.augment.crop import train_image
from vitc.data.augment.ops import CODE, Chain, apply_chain
from vitc.data.augment.policies import chain, chain_draws
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.pixels import requests
from vitc.data.sampling import BatchPlan, uniform
from vitc.data.sources.base import Split
from vitc.data.store import Files
from vitc.data.workers import Reader
from vitc.models.timm import import_peer
from vitc.training.device import describe, pick_device

SIZE = (224, 224)
Times = dict[str, list[float]]

# Operation, our argument, torchvision's function of an image and the functional module.
OPERATIONS: dict[str, tuple[float, Callable[[Any, Image.Image], Any]]] = {
    "shear_x": (0.2, lambda f, i: f.affine(i, 0.0, [0, 0], 1.0, [11.3, 0.0], center=[0, 0])),
    "translate_y": (20.0, lambda f, i: f.affine(i, 0.0, [0, 20], 1.0, [0.0, 0.0])),
    "rotate": (20.0, lambda f, i: f.rotate(i, 20.0)),
    "posterize": (4.0, lambda f, i: f.posterize(i, 4)),
    "solarize": (110.0, lambda f, i: f.solarize(i, 110)),
    "invert": (0.0, lambda f, i: f.invert(i)),
    "brightness": (1.4, lambda f, i: f.adjust_brightness(i, 1.4)),
    "auto_contrast": (0.0, lambda f, i: f.autocontrast(i)),
    "equalize": (0.0, lambda f, i: f.equalize(i)),
    "contrast": (1.4, lambda f, i: f.adjust_contrast(i, 1.4)),
    "color": (1.4, lambda f, i: f.adjust_saturation(i, 1.4)),
    "sharpness": (1.4, lambda f, i: f.adjust_sharpness(i, 1.4)),
    "blur": (1.0, lambda f, i: f.gaussian_blur(i, [9, 9], [1.0, 1.0])),
}
MOVES = ("shear_x", "translate_y", "rotate")
POLICIES = {
    "autoaugment": AugmentConfig(policy="autoaugment"),
    "v0": AugmentConfig(policy="v0"),
    "randaugment": AugmentConfig(policy="randaugment"),
    "trivial": AugmentConfig(policy="trivial"),
    "three + jitter": AugmentConfig(policy="three", jitter=(0.3, 0.3, 0.3)),
}


def made_photo(seed: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3): gradients, an edge and texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    waves = [np.sin(9 * (x * rng.random() + y * rng.random()) + 6 * rng.random()) for _ in range(3)]
    pixels = 255 * (0.3 + 0.5 * rng.random(3)) * (0.7 + 0.3 * np.stack(waves, -1))
    pixels[(x - rng.random()) ** 2 + (y - rng.random()) ** 2 < 0.04] *= 0.4
    return (pixels + rng.normal(0, 9, pixels.shape)).clip(0, 255).astype(np.uint8)


def write_photos(folder: Path, count: int) -> list[Path]:
    for i in range(count):
        Image.fromarray(made_photo(i, (375, 500))).save(folder / f"{i:04d}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


def timed(candidates: dict[str, Callable[[], object]], images: int, repeats: int) -> Times:
    """Milliseconds an image of each candidate in each repeat: of processor time, which other
    programs on the machine disturb less, but of real time for a GPU's."""
    for run in candidates.values():
        run()
    times: Times = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            clock = time.perf_counter if "cuda" in name else time.process_time
            start = clock()
            run()
            times[name].append((clock() - start) * 1e3 / images)
    return times


def row(what: str, times: Times, columns: list[str]) -> str:
    """One line: the median and range of each column, and ours / the peer as a ratio of rates."""
    cells = []
    for name in columns:
        values = times.get(name)
        text = (
            "-"
            if values is None
            else (f"{statistics.median(values):.3f} [{min(values):.3f}-{max(values):.3f}]")
        )
        cells.append(f"{text:>22s}")
    theirs = [times[c] for c in columns if c.startswith("torchvision") and c in times]
    ratio = "-"
    if theirs:
        each = [t / o for o, t in zip(times[columns[0]], theirs[0], strict=True)]
        ratio = f"{statistics.median(each):.2f} [{min(each):.2f}-{max(each):.2f}]"
    return f"  {what:26s}" + "".join(cells) + f"{ratio:>20s}"


def heading(title: str, columns: list[str], repeats: int) -> None:
    print(f"\n{title}   (n = {repeats}; ms an image: median [min-max])")
    print(f"  {'':26s}" + "".join(f"{c:>22s}" for c in columns) + f"{'torchvision / ours':>20s}")


def batched(images: torch.Tensor, what: Chain, device: torch.device) -> Callable[[], object]:
    def run() -> object:
        out = apply_chain(images, what)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return out

    return run


def one_by_one(photos: list[np.ndarray], what: Chain) -> Callable[[], object]:
    def run() -> object:
        rows = zip(photos, what.codes.tolist(), what.args.tolist(), strict=True)
        return [ops.apply(p, c, a, what.bilinear) for p, c, a in rows]

    return run


def peers() -> tuple[Any, Any] | None:
    """torchvision's transforms and their functional module, or None where it is not installed."""
    try:
        import_peer("torchvision")
        return import_peer("torchvision.transforms.v2"), import_peer(
            "torchvision.transforms.v2.functional"
        )
    except ImportError:
        print("\nPEER SKIPPED: pip install -c constraints.txt -e '.[peers]'")
        return None


def operations(photos: list[np.ndarray], repeats: int, device: torch.device, tv: Any) -> None:
    columns = ["ours", f"ours batched ({device.type})", "torchvision"]
    heading(f"Operations, {SIZE[0]} px, {len(photos)} photos", columns, repeats)
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous().to(device)
    for name, (arg, theirs) in OPERATIONS.items():
        for bilinear in (False, True) if name in MOVES else (True,):
            codes = np.full((len(photos), 1), CODE[name], np.int8)
            what = Chain(codes, np.full(codes.shape, arg), bilinear)
            candidates = {
                columns[0]: one_by_one(photos, what),
                columns[1]: batched(images, what, device),
            }
            if tv is not None:
                candidates[columns[2]] = functional(photos, theirs, tv, name, bilinear)
            label = f"{name} {'bilinear' if bilinear else 'nearest'}" if name in MOVES else name
            print(row(label, timed(candidates, len(photos), repeats), columns), flush=True)


def functional(
    photos: list[np.ndarray],
    theirs: Callable[[Any, Image.Image], Any],
    tv: Any,
    name: str,
    bilinear: bool,
) -> Callable[[], object]:
    transforms, f = tv
    if name in MOVES:
        mode = transforms.InterpolationMode
        how = mode.BILINEAR if bilinear else mode.NEAREST
        f = _Moves(f, {"interpolation": how, "fill": [128.0] * 3})
    return lambda: [np.asarray(theirs(f, Image.fromarray(p))) for p in photos]


class _Moves:
    """affine and rotate with options; `functools.partial` for two functions of a module."""

    def __init__(self, f: Any, options: dict[str, Any]) -> None:
        self.affine = lambda *a, **k: f.affine(*a, **k, **options)
        self.rotate = lambda *a: f.rotate(*a, **options)


def their_policies(tv: Any) -> dict[str, dict[str, Any]]:
    """For each of ours, torchvision's by how it moves pixels; the first is the like."""
    transforms, mode = tv[0], tv[0].InterpolationMode

    def of(kind: str, how: Any) -> Any:
        return getattr(transforms, kind)(interpolation=how, fill=128)

    jitter = transforms.ColorJitter(0.3, 0.3, 0.3)
    three = transforms.RandomChoice(
        [
            transforms.Grayscale(3),
            transforms.RandomSolarize(128, 1.0),
            transforms.GaussianBlur(9, (0.1, 2.0)),
        ]
    )
    return {
        "autoaugment": {
            "nearest": of("AutoAugment", mode.NEAREST),
            "bilinear": of("AutoAugment", mode.BILINEAR),
        },
        "v0": {"bilinear": of("AutoAugment", mode.BILINEAR)},
        "randaugment": {"bilinear": of("RandAugment", mode.BILINEAR)},
        "trivial": {
            "nearest": of("TrivialAugmentWide", mode.NEAREST),
            "bilinear": of("TrivialAugmentWide", mode.BILINEAR),
        },
        "three + jitter": {"": transforms.Compose([three, jitter])},
    }


def policies(photos: list[np.ndarray], repeats: int, device: torch.device, tv: Any) -> None:
    columns = ["ours", f"ours batched ({device.type})", "torchvision"]
    heading(f"Policies, {SIZE[0]} px, {len(photos)} photos", columns, repeats)
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous().to(device)
    for name, augment in POLICIES.items():
        candidates = {
            columns[0]: drawn(photos, augment, images.new_empty(0), None),
            columns[1]: drawn(photos, augment, images, device),
        }
        for how, theirs in ({"": None} if tv is None else their_policies(tv)[name]).items():
            if theirs is not None:
                candidates[columns[2]] = with_transform(photos, theirs)
            label = f"{name} / {how}" if how else name
            print(row(label, timed(candidates, len(photos), repeats), columns), flush=True)


def drawn(
    photos: list[np.ndarray],
    augment: AugmentConfig,
    images: torch.Tensor,
    device: torch.device | None,
) -> Callable[[], object]:
    """Another epoch's parameters each time, drawn in it."""
    epoch = iter(range(1_000_000))

    def run() -> object:
        u = uniform(0, "policy", next(epoch), np.arange(len(photos)), chain_draws(augment))
        what = chain(augment, u, SIZE)
        return (one_by_one(photos, what) if device is None else batched(images, what, device))()

    return run


def with_transform(photos: list[np.ndarray], theirs: Any) -> Callable[[], object]:
    return lambda: [np.asarray(theirs(Image.fromarray(p))) for p in photos]


def pipeline(files: list[Path], repeats: int, tv: Any) -> None:
    columns = ["ours", "torchvision"]
    heading(f"From a JPEG file to the augmented cut, {len(files)} files", columns, repeats)
    their = {} if tv is None else their_policies(tv)
    whole = {"no policy": AugmentConfig(), **POLICIES}
    for name, augment in whole.items():
        augment = dataclasses.replace(augment, crop="random_resized")
        for how, transform in (their.get(name) or {"": None}).items():
            candidates = {"ours": our_pipeline(files, augment)}
            if tv is not None:
                candidates["torchvision"] = their_pipeline(files, tv, transform)
            label = f"{name} / {how}" if how else name
            print(row(label, timed(candidates, len(files), repeats), columns), flush=True)


def our_pipeline(files: list[Path], augment: AugmentConfig) -> Callable[[], object]:
    """What a loader process does with a micro-batch of all files, its parameters' drawing too."""
    n, config = len(files), DataConfig(source="folder", path=".", augment=augment)
    plan = BatchPlan(
        batch=n,
        micro=n,
        seed_order=0,
        seed_augment=0,
        size=SIZE,
        in_chans=3,
        depth=1,
        drop_path_rate=0.0,
    )
    labels = np.zeros(n, np.int64)
    store = Files(Path(), map(str, files))
    reader = Reader(Split(labels, store.names, store=store), config, plan)
    asked = requests(plan, config, labels, 0, 1_000_000)

    def run() -> object:
        answer = reader[next(asked)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return run


def their_pipeline(files: list[Path], tv: Any, policy: Any) -> Callable[[], object]:
    """Pillow's decoder, then transforms, as torchvision's reference recipes put them together."""
    transforms, _ = tv
    steps = [transforms.RandomResizedCrop(SIZE, antialias=True), transforms.RandomHorizontalFlip()]
    steps += [policy] if policy is not None else []
    change = transforms.Compose([*steps, transforms.PILToTensor()])
    images = torch.empty((len(files), 3, *SIZE), dtype=torch.uint8)

    def run() -> object:
        for i, file in enumerate(files):
            with Image.open(file) as image:
                images[i] = change(image.convert("RGB"))
        return images

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["operations", "policies", "pipeline"]
    parser.add_argument("--part", choices=[*parts, "all"], default="all")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; default: made ones")
    parser.add_argument("--count", type=int, default=64, help="photos used")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto", help="of the batched back end")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(args.device)
    print(f"torch {torch.__version__}, {describe(device)}, {time.strftime('%Y-%m-%d')}")
    tv = peers()
    with tempfile.TemporaryDirectory() as folder:
        if args.photos is None:
            files = write_photos(Path(folder), args.count)
        else:
            found = [
                p for p in sorted(args.photos.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")
            ]
            files = found[: args.count]
        whole = DataConfig(augment=AugmentConfig(crop="none"))
        cuts = [train_image(f.read_bytes(), f.name, 3, np.empty(0), SIZE, whole) for f in files]
        photos = [np.ascontiguousarray(c.permute(1, 2, 0).numpy()) for c in cuts]
        if args.part in ("operations", "all"):
            operations(photos, args.repeats, device, tv)
        if args.part in ("policies", "all"):
            policies(photos, args.repeats, device, tv)
        if args.part in ("pipeline", "all"):
            pipeline(files, args.repeats, tv)


if __name__ == "__main__":
    main()
