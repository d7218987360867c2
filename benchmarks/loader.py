"""Images a second of the data loader, against torchvision, Pillow and webdataset.

    python benchmarks/loader.py --images DIR_OR_TAR      # one core, then all; about 6 minutes
    python benchmarks/loader.py --part one --repeats 15
    python benchmarks/loader.py --device cuda            # normalised on a GPU, on our side

Two stages. `cut`: an encoded image to a random resized crop, uint8, 224 pixels, without any
augmentation, stacked to a batch. `full`: the same, mirrored, changed by AutoAugment, normalised, as
a float32 batch; ours normalises batches on the device, which is counted here: on the CPU, and on
the core that does the rest where one core is measured.

Candidates: ours from a folder, from a pack of 256-pixel JPEGs of quality 95, and from a pack of
256-pixel raw pixels; torchvision's reference pipeline (Pillow back end); a plain Dataset that cuts
with Pillow's own `resize`; webdataset, whose tar shards hold the very files, with torchvision's
transforms. All but the packs begin with the same files, which lie in the page cache.

Part `one`: everything in this process, on one thread; images a second of processor time, which
other programs disturb less than real time. Part `all`: as many loader processes as cores, whose
batches are received and dropped, or normalised, by the main process; real time, and the memory that
a process has for itself (USS).

Photos are made (gradients, edges and texture, 500 x 375, quality 90) unless --images names a folder
or tar of JPEGs. Peers: pip install -c constraints.txt -e ".[peers]" webdataset. Each repeat times
every candidate once, in turn, so that a drift of the machine hits all alike; quoted are the median
and range of the rates, and of the ratios within a repeat.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augment import write_photos
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vitc.data.augment.device import finish
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import DataSet, read_source
from vitc.data.loader import open_train
from vitc.data.pack import PackOptions, pack
from vitc.data.pixels import requests
from vitc.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vitc.data.sampling import BatchPlan
from vitc.data.sources.base import Split
from vitc.data.workers import Reader
from vitc.machine import cores
from vitc.models.timm import import_peer
from vitc.training.device import describe, pick_device

SIZE, BATCH = (224, 224), 50
LONG = 1_000_000  # steps: more than are ever taken
STAGES = {
    "cut": AugmentConfig(crop="random_resized", flip=0.0),
    "full": AugmentConfig(crop="random_resized", policy="autoaugment"),
}
TITLES = {
    "cut": "Encoded image to uint8 224-pixel crop",
    "full": "The same with AutoAugment, mirrored, to a normalised float batch",
}
PEER = "torchvision, reference pipeline"
Batches = Iterator[object]
Rates = dict[str, list[float]]


# -- the images -----------------------------------------------------------------------------------


def gather(images: Path | None, count: int, folder: Path) -> Path:
    """Up to `count` JPEGs, a multiple of the batch, as a folder of two classes."""
    if images is None:
        raw = folder / "made"
        raw.mkdir()
        contents = [file.read_bytes() for file in write_photos(raw, count)]
    elif images.is_dir():
        found = sorted(p for p in images.rglob("*") if is_jpeg(p.name))
        contents = [file.read_bytes() for file in found[:count]]
    else:
        with tarfile.open(images) as tar:
            found = sorted((m for m in tar if m.isfile() and is_jpeg(m.name)), key=lambda m: m.name)
            contents = [tar.extractfile(m).read() for m in found[:count]]  # type: ignore[union-attr]
    if len(contents) < BATCH:
        raise SystemExit(f"{len(contents)} JPEGs in {images}; at least {BATCH} are needed.")
    root = folder / "images"
    for i, content in enumerate(contents[: len(contents) // BATCH * BATCH]):
        file = root / "ab"[i % 2] / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def is_jpeg(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg"))


def describe_images(files: list[Path], made: bool) -> str:
    sides = np.array([Image.open(file).size for file in files])
    w, h = np.median(sides, axis=0)
    kb = sum(file.stat().st_size for file in files) / len(files) / 1e3
    what = "MADE photos (no --images)" if made else "photos"
    return f"{len(files)} {what}, median {w:.0f} x {h:.0f} px, mean {kb:.0f} kB"


# -- ours -----------------------------------------------------------------------------------------


def batch_plan() -> BatchPlan:
    return BatchPlan(
        batch=BATCH, micro=BATCH, seed_order=0, seed_augment=0, size=SIZE, in_chans=3, depth=1
    )


def ours(split: Split, stage: str, workers: int, device: torch.device) -> Batches:
    """Batches of ours; workers 0: what a loader process does, in this one."""
    augment = STAGES[stage]
    config = DataConfig(source="folder", path=".", augment=augment, resident="off", workers=workers)
    plan = batch_plan()
    if workers == 0:
        reader = Reader(split, config, plan)
        for asked in requests(plan, config, split.labels, 0, LONG):
            answer = reader[asked]
            if isinstance(answer, Exception):
                raise answer
            yield normalised(answer.images.to(device)) if stage == "full" else answer
        return
    data = DataSet("folder", ("a", "b"), {"train": split}, IMAGENET_MEAN, IMAGENET_STD, (), "")
    where = device if stage == "full" else torch.device("cpu")
    with open_train(data, config, plan, where, 0, LONG) as batches:
        for (micro,) in batches:
            yield normalised(micro.images) if stage == "full" else micro


def normalised(images: torch.Tensor) -> torch.Tensor:
    return finish(images, None, IMAGENET_MEAN, IMAGENET_STD, False)


# -- theirs ---------------------------------------------------------------------------------------


class Photos(Dataset[tuple[torch.Tensor, int]]):
    """Files, opened by Pillow and transformed, as torchvision's ImageFolder does it."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.transform = [str(file) for file in files], transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.files[index], "rb") as f, Image.open(f) as image:
            return self.transform(image.convert("RGB")), index % 2


class Endless(torch.utils.data.Sampler[list[int]]):
    """Batches of shuffled indices, epoch after epoch, in one stream: no worker is ever ended."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(self.n)
            for i in range(0, self.n, BATCH):
                yield order[i : i + BATCH].tolist()


def reference(stage: str) -> Callable[[Image.Image], torch.Tensor]:
    """torchvision's transforms as its reference training scripts put them together."""
    transforms = import_peer("torchvision.transforms")
    steps = [transforms.RandomResizedCrop(SIZE, antialias=True)]
    if stage == "cut":
        return transforms.Compose([*steps, transforms.PILToTensor()])  # type: ignore[no-any-return]
    return transforms.Compose(
        [  # type: ignore[no-any-return]
            *steps,
            transforms.RandomHorizontalFlip(),
            transforms.AutoAugment(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def plain_cut(image: Image.Image) -> torch.Tensor:
    """A random resized crop in a few lines, by Pillow's resize of a box."""
    width, height = image.size
    for _ in range(10):
        area, ratio = np.random.uniform(0.08, 1), math.exp(np.random.uniform(-0.2877, 0.2877))
        w, h = (round(math.sqrt(area * width * height * r)) for r in (ratio, 1 / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = h = min(width, height)
    left, top = np.random.randint(width - w + 1), np.random.randint(height - h + 1)
    box = (left, top, left + w, top + h)
    small = image.resize(SIZE[::-1], Image.Resampling.BILINEAR, box)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def loaded(data: Dataset[Any], workers: int, **settings: Any) -> Batches:
    """Batches of a plain DataLoader, which stacks the tensors."""
    loader = DataLoader(data, num_workers=workers, worker_init_fn=one_thread, **settings)
    yield from loader


def one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    np.random.seed(worker)


def write_shards(files: list[Path], folder: Path, shards: int) -> list[str]:
    names = []
    for s in range(shards):
        names.append(str(folder / f"shard-{s:03d}.tar"))
        with tarfile.open(names[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for i, file in list(enumerate(files))[s::shards]:
                for suffix, content in ((".jpg", file.read_bytes()), (".cls", b"%d" % (i % 2))):
                    info = tarfile.TarInfo(f"{i:06d}{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return names


def web(
    shards: list[str], transform: Callable[[Image.Image], torch.Tensor]
) -> IterableDataset[Any]:
    """webdataset as its own examples put it together: shuffled shards, decoded, stacked."""
    import webdataset as wds

    stream = wds.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(100).decode("pil")
    done: IterableDataset[Any] = (
        stream.to_tuple("jpg", "cls").map_tuple(transform, int).batched(BATCH)
    )
    return done


# -- measuring ------------------------------------------------------------------------------------


class Candidate:
    """One way to make batches; `open` gives endless ones."""

    def __init__(self, open: Callable[[int], Batches]) -> None:
        self.open = open
        self.running: Batches | None = None
        self.bytes: list[int] = []  # USS of each loader process seen

    def on_one_core(self, batches: int) -> float:
        if self.running is None:
            self.running = self.open(0)
            next(self.running)
        start = time.process_time()
        for _ in range(batches):
            next(self.running)
        return batches * BATCH / (time.process_time() - start)

    def on_all_cores(self, batches: int, workers: int) -> float:
        """In the steady state: what was made ahead, while nobody asked, is drained first."""
        running = self.open(workers)
        for _ in range(3 * workers + 1):
            next(running)
        start = time.perf_counter()
        for _ in range(batches):
            next(running)
        rate = batches * BATCH / (time.perf_counter() - start)
        pids = [p.pid for p in multiprocessing.active_children()]
        self.bytes += [own for pid in pids if pid and (own := own_bytes(pid))]
        running.close()  # type: ignore[attr-defined]
        return rate


def own_bytes(pid: int) -> int:
    """Memory that only this process has, in bytes (USS); 0 where the system does not report it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    private = [line.split() for line in lines if line.startswith("Private_")]
    return sum(int(words[1]) for words in private) * 1024


def candidates(
    stage: str,
    splits: dict[str, Split],
    files: list[Path],
    shards: list[str] | None,
    device: torch.device,
    torchvision: bool,
) -> dict[str, Candidate]:
    def our(split: Split) -> Candidate:
        return Candidate(lambda workers: ours(split, stage, workers, device))

    def their(transform: Callable[[Image.Image], torch.Tensor]) -> Candidate:
        data = Photos(files, transform)
        return Candidate(lambda w: loaded(data, w, batch_sampler=Endless(len(files))))

    found = {f"ours, {name}": our(split) for name, split in splits.items()}
    if torchvision:
        found[PEER] = their(reference(stage))
    if stage == "cut":
        found["plain DataLoader + Pillow"] = their(plain_cut)
    if shards is not None and torchvision:
        data = web(shards, reference(stage))
        found["webdataset + torchvision"] = Candidate(lambda w: loaded(data, w, batch_size=None))
    return found


def show(title: str, rates: Rates, found: dict[str, Candidate]) -> None:
    n = len(next(iter(rates.values())))
    print(f"\n{title}   (n = {n}; images a second: median [min-max])")
    for name, values in rates.items():
        text = f"{statistics.median(values):9.0f} [{min(values):.0f}-{max(values):.0f}]"
        ratio = memory = ""
        if PEER in rates and name != PEER:
            each = [r / p for r, p in zip(values, rates[PEER], strict=True)]
            ratio = (
                f"{statistics.median(each):6.2f} [{min(each):.2f}-{max(each):.2f}] x torchvision"
            )
        if found[name].bytes:
            memory = f"{statistics.median(found[name].bytes) / 1e6:6.0f} MB a process"
        print(f"  {name:34s}{text:24s}{ratio:38s}{memory}", flush=True)


def measure(found: dict[str, Candidate], repeats: int, run: Callable[[Candidate], float]) -> Rates:
    for candidate in found.values():
        run(candidate)  # once unmeasured
        candidate.bytes.clear()
    rates: Rates = {name: [] for name in found}
    for _ in range(repeats):
        for name, candidate in found.items():
            rates[name].append(run(candidate))
    return rates


def peers() -> tuple[bool, bool]:
    """Whether torchvision and webdataset are installed; prints which are not."""
    found = []
    for name in ("torchvision", "webdataset"):
        try:
            import_peer(name)
            found.append(True)
        except ImportError:
            print(f'PEER SKIPPED: {name} (pip install -c constraints.txt -e ".[peers]" webdataset)')
            found.append(False)
    return found[0], found[1]


def versions() -> str:
    parts = ["torch", "numpy", "pillow", "simplejpeg", "torchvision", "webdataset"]
    there = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return ", ".join(f"{p} {metadata.version(p)}" for p in parts if p in there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder or tar of JPEGs; default: made photos")
    parser.add_argument("--count", type=int, default=250, help="images used")
    parser.add_argument("--part", choices=["one", "all", "both"], default="both")
    parser.add_argument("--stage", choices=[*STAGES, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--workers", type=int, default=cores(), help="of part all")
    parser.add_argument("--device", default="auto", help="where ours normalises")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(args.device)
    print(f"{versions()}\n{describe(device)}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    torchvision, webdataset = peers()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = gather(args.images, args.count, folder)
        files = sorted(root.rglob("*.jpg"))
        print(describe_images(files, args.images is None))
        source = DataConfig(source="folder", path=str(root))
        small, raw = folder / "small.vitc", folder / "raw.vitc"
        pack(source, small, PackOptions(short_side=256, quality=95))
        pack(source, raw, PackOptions(short_side=256, raw=True))
        splits = {
            "folder": source,
            "pack, 256 px q95": DataConfig(source="packed", path=str(small)),
            "pack, 256 px raw": DataConfig(source="packed", path=str(raw)),
        }
        opened = {name: read_source(config).splits["train"] for name, config in splits.items()}
        shards = write_shards(files, folder, 2 * args.workers) if webdataset else None
        for stage in STAGES if args.stage == "both" else [args.stage]:
            found = candidates(stage, opened, files, shards, device, torchvision)
            if args.part in ("one", "both"):
                run = functools.partial(Candidate.on_one_core, batches=len(files) // BATCH)
                rates = measure(found, args.repeats, run)
                show(f"{TITLES[stage]}, one core", rates, found)
            if args.part in ("all", "both"):
                run = functools.partial(
                    Candidate.on_all_cores, batches=10 * args.workers, workers=args.workers
                )
                rates = measure(found, args.repeats, run)
                show(f"{TITLES[stage]}, {args.workers} processes", rates, found)


if __name__ == "__main__":
    main()
