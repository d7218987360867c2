"""Who classifies a folder of images best in the same processor time: vitc, or a plain script?

    python benchmarks/race.py ~/photos --seconds 360 --seeds 3 --out race.json

Each entry gets the same images: train, val and test of the folder, of which val and test are drawn
from the images to train on where there are none, seeded, 15 % of each class. Each gets one thread
and the same number of processor seconds, which include reading the images, probes and evaluation.
Entries are interleaved: seed 0 of each, then seed 1. Test images are read once, at the end of each
run.

Entries:
  vitc        `vitc train FOLDER --budget ... --start scratch` of this checkout
  vitc_formula  the same with `--start formula`: weights learnt from fractals and contours,
              the default where no weights learnt from photos are installed
  vitc_pretrained  the same with `--start pretrained`
  resnet18    ResNet-18 from scratch in a plain PyTorch script (below): bf16 where it is faster,
              channels_last, AdamW, one-cycle on processor time, images decoded once, random resized
              crops and flips
  resnet18_mix  the same with mixup or CutMix on four of five batches and twice the weight decay
  fastai      fastai's own recipe for networks from scratch (xresnet18, Ranger, flat-cosine), where
              fastai and torchvision are installed; in fp32, as fastai has bf16 on CUDA alone
  NAME=DIR    `vitc train` of another checkout at DIR, as the front door of an earlier version; a
              setting that it does not have is left out, which its row notes
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vitc.data.sources.folder import scan_folder
from vitc.data.sources.tree import LAYOUTS
from vitc.data.store import Files
from vitc.errors import VitcError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
PEERS = ("resnet18", "resnet18_mix", "fastai")
TEST_SHARE = 0.03  # of the time, kept by every entry for reading and answering the test images
CLOCK = ["--train.clock", "processor"]
OURS = {
    name: [*CLOCK, "--start", start]
    for name, start in (
        ("vitc", "scratch"),
        ("vitc_formula", "formula"),
        ("vitc_pretrained", "pretrained"),
    )
}


# -- images ------------------------------------------------------------------------------------


def prepared(folder: Path, work: Path) -> Path:
    """A folder with train/, val/ and test/, by links: those given, and seeded ones for the others.

    Splits and classes are read as `vitc train` reads them. Ends the race where it would refuse.
    """
    try:
        found = scan_folder(folder)
    except VitcError as error:
        raise SystemExit(f"{error.message} {LAYOUTS}") from None
    out, rng = work / "images", np.random.default_rng(0)
    missing = [split for split in ("val", "test") if split not in found.splits]
    for split, part in found.splits.items():
        assert isinstance(part.store, Files)
        for label, kind in enumerate(found.classes):
            inside = [part.store.path(i) for i in np.flatnonzero(part.labels == label).tolist()]
            files = sorted(file for file in inside if file.suffix.lower() in SUFFIXES)
            if split == "train" and missing:
                rng.shuffle(files)  # type: ignore[arg-type]
                held = max(1, round(0.15 * len(files)))
                for drawn in missing:
                    _link(files[:held], out / drawn / kind)
                    files = files[held:]
            _link(files, out / split / kind)
    return out


def _link(files: list[Path], place: Path) -> None:
    place.mkdir(parents=True)
    for i, file in enumerate(files):
        (place / f"{i:06}{file.suffix.lower()}").symlink_to(file.resolve())


# -- the plain script ----------------------------------------------------------------------------


def resnet18(classes: int) -> Any:
    """ResNet-18 (arXiv 1512.03385) with its 7x7 stem."""
    from torch import nn

    def conv(i: int, o: int, k: int, s: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o))

    class Block(nn.Module):
        def __init__(self, i: int, o: int, s: int) -> None:
            super().__init__()
            self.a, self.b = conv(i, o, 3, s), conv(o, o, 3, 1)
            self.short = nn.Identity() if s == 1 and i == o else conv(i, o, 1, s)

        def forward(self, x: Any) -> Any:
            return (self.b(self.a(x).relu()) + self.short(x)).relu()

    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(widths[i], widths[i + 1], 2 if i in (2, 4, 6) else 1) for i in range(8)]
    stem = nn.Sequential(conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    model = nn.Sequential(stem, *blocks, head)
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return model


def plain(folder: Path, seconds: float, seed: int, mixing: bool, size: int = 64) -> dict[str, Any]:
    """Train and test the plain script; `seconds` of processor time from here on."""
    import torch
    from PIL import Image
    from torch.nn import functional as F

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    start = time.process_time()
    names = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())

    def read(split: str) -> tuple[list[Any], Any]:
        images, labels = [], []
        for label, name in enumerate(names):
            for file in sorted((folder / split / name).glob("*")):
                with Image.open(file) as picture:
                    picture.draft("RGB", (2 * size, 2 * size))
                    picture = picture.convert("RGB")
                scale = 1.6 * size / min(picture.size)
                if scale < 1:
                    w, h = (max(size, round(side * scale)) for side in picture.size)
                    picture = picture.resize((w, h), Image.Resampling.BILINEAR)
                images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
                labels.append(label)
        return images, torch.tensor(labels)

    def resized(image: Any) -> Any:
        return F.interpolate(
            image[None].float(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )[0]

    def square(image: Any) -> Any:
        h, w = image.shape[1:]
        side = min(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        return resized(image[:, top : top + side, left : left + side])

    def cut(image: Any) -> Any:
        """A random crop of 0.35 to 1 of the area, aspect 3/4 to 4/3, mirrored half of the time."""
        height, width = image.shape[1:]
        area, ratio = rng.uniform(0.35, 1) * height * width, math.exp(rng.uniform(-0.288, 0.288))
        w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        out = resized(image[:, top : top + h, left : left + w])
        return out.flip(2) if rng.random() < 0.5 else out

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255

    def ready(images: list[Any]) -> Any:
        batch = (torch.stack(images) - mean) / std
        return batch.contiguous(memory_format=torch.channels_last)

    images, labels = read("train")
    model = resnet18(len(names)).to(memory_format=torch.channels_last)
    bf16 = _bf16_is_faster(model, ready([square(i) for i in images[:16]]))
    decay = 0.1 if mixing else 0.05
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    step, epoch, used = 0, 0, 0.0
    batch_size = min(64, len(images))
    while used < 1:
        model.train()
        order = torch.randperm(len(images))
        epoch += 1
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            used = (time.process_time() - start) / (seconds * (1 - TEST_SHARE))
            if used >= 1:
                break
            warm = 0.25
            lr = (
                used / warm if used < warm else 0.5 * (1 + math.cos(math.pi * (used - warm) / 0.75))
            )
            optimizer.param_groups[0]["lr"] = 1e-3 * max(lr, 1e-3)
            x = ready([cut(images[i]) for i in rows.tolist()])
            y = F.one_hot(labels[rows], len(names)).float()
            if mixing and rng.random() < 0.8:
                x, y = _mixed(x, y, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1

    def accuracy(split: str) -> tuple[float, int]:
        images, labels = read(split)
        model.eval()
        right = 0
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for i in range(0, len(images), 256):
                logits = model(ready([square(x) for x in images[i : i + 256]]))
                right += int((logits.argmax(1) == labels[i : i + 256]).sum())
        return 100 * right / len(images), len(images)

    val, _ = accuracy("val")
    test, n = accuracy("test")
    note = f"{epoch} epochs, {step} steps, {'bf16' if bf16 else 'fp32'}"
    return {"val": val, "test": test, "n_test": n, "note": note}


def fastai(folder: Path, seconds: float, seed: int, size: int = 64) -> dict[str, Any]:
    """Train and test with fastai as its example for Imagenette does, on images resized once.

    The schedule follows processor time: fastai's takes a number of epochs.
    """
    from vitc.models.timm import import_peer

    import_peer("torchvision")
    from fastai.vision import all as fv  # type: ignore[import-not-found, unused-ignore]

    start = time.process_time()

    class Budget(fv.Callback):  # type: ignore[misc, unused-ignore]
        order = 50  # after fastai has counted the step, before its schedule reads it

        def before_batch(self) -> None:
            used = (time.process_time() - start) / (seconds * (1 - TEST_SHARE))
            if self.training:
                self.learn.pct_train = min(used, 1)
            if used >= 1:
                raise fv.CancelFitException

    fv.set_seed(seed)
    with tempfile.TemporaryDirectory() as small:
        fv.resize_images(folder, max_workers=0, max_size=2 * size, recurse=True, dest=Path(small))
        data = fv.ImageDataLoaders.from_folder(
            small,
            valid="val",
            bs=64,
            num_workers=0,
            item_tfms=[fv.RandomResizedCrop(size, min_scale=0.35), fv.FlipItem(0.5)],
            batch_tfms=fv.Normalize.from_stats(*fv.imagenet_stats),
        )
        learner = fv.Learner(
            data,
            fv.xresnet18(n_out=data.c),
            loss_func=fv.LabelSmoothingCrossEntropy(),
            opt_func=fv.ranger,
            metrics=fv.accuracy,
            cbs=Budget(),
        )
        with learner.no_bar(), learner.no_logging():
            learner.fit_flat_cos(10_000, 8e-3)
            learner.remove_cb(Budget)
            val = 100 * learner.validate()[1]
            files = fv.get_image_files(Path(small) / "test")
            test = 100 * learner.validate(dl=data.test_dl(files, with_labels=True))[1]
    note = f"xresnet18 at {size}, {learner.opt.state_dict()['state'][0].get('step', 0)} steps"
    return {"val": val, "test": test, "n_test": len(files), "note": note}


def _bf16_is_faster(model: Any, x: Any) -> bool:
    import torch

    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(3):
        for bf16, found in times.items():
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                model(x).float().sum().backward()
            found.append(time.process_time() - start)
    model.zero_grad()
    return min(times[True]) < min(times[False])


def _mixed(x: Any, y: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    import torch

    partner = torch.randperm(len(x))
    if rng.random() < 0.5:
        lam = rng.beta(0.8, 0.8)
        return x.lerp(x[partner], 1 - lam), y.lerp(y[partner], 1 - lam)
    h, w = x.shape[2:]
    side = (1 - rng.beta(1, 1)) ** 0.5
    bh, bw = int(h * side), int(w * side)
    top, left = rng.integers(h - bh + 1), rng.integers(w - bw + 1)
    x = x.clone()
    x[:, :, top : top + bh, left : left + bw] = x[partner, :, top : top + bh, left : left + bw]
    return x, y.lerp(y[partner], bh * bw / (h * w))


# -- the race ------------------------------------------------------------------------------------


def run_plain(entry: str, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """A peer, in a process of its own so that its processor time is its own."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        str(folder),
        "--entry",
        entry,
        "--seconds",
        str(seconds),
    ]
    return dict(json.loads(_printed([*command, "--seed", str(seed)], _one_thread())))


def _printed(command: list[str], env: dict[str, str]) -> str:
    """The last line on stdout. A command that fails ends the race with its last errors."""
    with tempfile.TemporaryDirectory() as empty:  # `python -m` looks for modules here first
        done = subprocess.run(
            command, env=env, cwd=empty, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit("\n".join([" ".join(command), *done.stderr.splitlines()[-12:]]))
    return next(reversed(done.stdout.splitlines()), "")


def run_vitc(
    root: Path, folder: Path, seconds: float, seed: int, extra: list[str]
) -> dict[str, Any]:
    """`vitc train FOLDER --budget` of the checkout at `root`, then its accuracy on test."""
    env = {**_one_thread(), "PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory() as scratch:
        run = f"{scratch}/run"
        env["XDG_CACHE_HOME"] = f"{scratch}/cache"  # the cost of caching images is part of the race
        vitc = [sys.executable, "-m", "vitc"]
        budget = f"{seconds * (1 - TEST_SHARE):g}s"
        train = [*vitc, "train", str(folder), "--budget", budget, "--out", run]
        flags = ["--train.seed", str(seed), "--train.threads", "1", *extra]
        _printed([*train, *flags], env)
        answer = json.loads(_printed([*vitc, "eval", run, "--split", "test", "--json"], env))
        config = json.loads(Path(run, "config.json").read_text())
        summary = json.loads(Path(run, "summary.json").read_text())
        model = config["model"]
        note = f"{model['name']} at {model['img_size']}, {summary['step']} steps"
        return {
            "val": summary["top1"],
            "test": answer["top1"],
            "n_test": answer["n"],
            "note": f"{note}, {config['train']['precision']}",
        }


@cache
def settings_of(root: Path) -> frozenset[str]:
    """The settings that `vitc train` of the checkout at `root` has."""
    ask = "from vitc.config import all_leaf_types; print(*all_leaf_types())"
    env = {**_one_thread(), "PYTHONPATH": str(root)}
    return frozenset(_printed([sys.executable, "-c", ask], env).split())


def options_for(entry: str, given: list[str]) -> tuple[Path, list[str], str]:
    """Of `vitc` or NAME=DIR: the checkout, its options and the `given` ones, and a note on settings
    that it does not have."""
    name, _, where = entry.partition("=")
    options = [*OURS.get(name, CLOCK), *given]
    if not where:
        return Path(__file__).resolve().parents[1], options, ""
    root = Path(where).resolve()
    kept: list[str] = []
    absent: list[str] = []
    known = True
    for word in options:
        if word.startswith("--"):
            setting = word[2:].partition("=")[0]
            known = "." not in setting or setting in settings_of(root)
            if not known:
                absent.append(f"--{setting}")
        if known:
            kept.append(word)
    note = f", without {', '.join(absent)}" if absent else ""
    if CLOCK[0] in absent:
        note += ": its budget is wall time, not processor time"
    return root, kept, note


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def children_seconds() -> float:
    """Processor seconds, user and system, of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wilson(percent: float, n: int) -> tuple[float, float]:
    p, z = percent / 100, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * (middle - half), 100 * (middle + half)


def race(args: argparse.Namespace) -> dict[str, Any]:
    work = Path(tempfile.mkdtemp())
    found: dict[str, Any] = {"folder": args.folder.name, "budget": args.seconds, "runs": []}
    if args.out and args.out.is_file():
        found = json.loads(args.out.read_text())
        if (found["folder"], found["budget"]) != (args.folder.name, args.seconds):
            raise SystemExit(
                f"{args.out}: holds runs of {found['folder']} in {found['budget']:g} seconds; "
                "name another file"
            )
    done = {(run["entry"], run["seed"]) for run in found["runs"]}
    try:
        folder = prepared(args.folder, work)
        for seed in range(args.seed, args.seed + args.seeds):
            for entry in args.entries:
                name = entry.partition("=")[0]
                if (name, seed) in done:
                    continue
                root, options, note = options_for(entry, args.vitc)
                before, began = children_seconds(), time.monotonic()
                if name in PEERS:
                    run = run_plain(name, folder, args.seconds, seed)
                else:
                    run = run_vitc(root, folder, args.seconds, seed, options)
                    run["note"] += note
                run |= {"entry": name, "seed": seed}
                run["processor_seconds"] = round(children_seconds() - before, 1)
                run["seconds"] = round(time.monotonic() - began, 1)
                found["runs"].append(run)
                if args.out:
                    args.out.write_text(json.dumps(found, indent=1) + "\n")
                low, high = wilson(run["test"], run["n_test"])
                print(
                    f"{name:>14} seed {seed}: test {run['test']:.1f} ({low:.1f}-{high:.1f}), "
                    f"val {run['val']:.1f}, {run['processor_seconds']:.0f} processor s; "
                    f"{run['note']}",
                    flush=True,
                )
    finally:
        shutil.rmtree(work)
    return found


def report(found: dict[str, Any], first: str) -> str:
    """The table: mean test accuracy, and how far the entry `first` is ahead on the same seeds."""
    by: dict[str, dict[int, float]] = {}
    for run in found["runs"]:
        by.setdefault(run["entry"], {})[run["seed"]] = run["test"]
    lines = [f"{found['folder']}, {found['budget']:g} processor seconds"]
    for entry, scores in by.items():
        values = list(scores.values())
        spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
        line = f"{entry:>14} {statistics.mean(values):5.1f}{spread}"
        ours = by.get(first, {})
        pairs = [ours[s] - scores[s] for s in scores if s in ours and entry != first]
        if pairs:
            line += f"   {first} ahead by {statistics.mean(pairs):+.1f}"
            if len(pairs) > 1:
                from scipy.stats import t

                mean, spread_ = statistics.mean(pairs), statistics.stdev(pairs)
                half = t.ppf(0.975, len(pairs) - 1) * spread_ / len(pairs) ** 0.5
                line += f" (95 % {mean - half:+.1f} to {mean + half:+.1f})"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="one folder a class, or train/ val/ test/ of them"
    )
    parser.add_argument(
        "--seconds", type=float, default=360, help="processor seconds a run (default: 360)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each entry (default: 3)")
    parser.add_argument(
        "--entries",
        nargs="+",
        default=["vitc_formula", "vitc", "resnet18", "resnet18_mix"],
        help="see above; the table compares the first with the others",
    )
    parser.add_argument(
        "--vitc", nargs=argparse.REMAINDER, default=[], help="further settings for vitc"
    )
    parser.add_argument("--out", type=Path, help="JSON file of the runs; those in it are kept")
    parser.add_argument("--entry", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    args = parser.parse_args()
    if args.entry:
        if args.entry == "fastai":
            answer = fastai(args.folder, args.seconds, args.seed)
        else:
            answer = plain(args.folder, args.seconds, args.seed, args.entry.endswith("mix"))
        print(json.dumps(answer))
        return
    print(report(race(args), args.entries[0].partition("=")[0]))


if __name__ == "__main__":
    main()
