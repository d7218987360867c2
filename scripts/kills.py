"""Does a run that is killed again and again end with the bits of one that never was?

    python scripts/kills.py --times 100 --out kills

kills runs in one process and in two with SIGKILL at random moments: during a step, while a
checkpoint is written, during an evaluation, while it is rolled back and while resuming; of two
processes one or both. The pixels of one batch are infinite, so that each run is rolled back to a
good state once, half-way. Every run is resumed until it is done, and its weights, average,
optimizer and metrics are compared with those of an undisturbed run. Exit code 1 where a bit
differs. The same command again continues with the kills that are left: `kills/*/done.jsonl` has a
line for each run that is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # here once, not in every process
from safetensors.torch import load_file

from vitc.config import RunConfig
from vitc.data.loader import MicroBatch, TrainLoader
from vitc.resolve import load_config
from vitc.runs.checkpoint import Snapshot
from vitc.runs.folder import Run
from vitc.training import guard
from vitc.training.guard import Guard
from vitc.training.loop import run
from vitc.training.step import NormStatistics
from vitc.training.validate import Validation

MOMENTS: dict[str, tuple[Any, str]] = {  # at which processes are killed
    "step": (NormStatistics, "before_micro"),
    "checkpoint": (Snapshot, "write"),
    "evaluation": (Validation, "measure"),
    "rollback": (Guard, "roll_back"),
    "start": (Validation, "__init__"),
}
IMAGES, STEPS = 256, 8  # an epoch
WALL = {"seconds", "images_per_second"}  # of a line of metrics
WAIT = 300.0  # seconds for a process to end by itself


def config(epochs: int) -> RunConfig:
    """Small, with everything that has a state: an average, mixing, BatchNorm's statistics."""
    return load_config(
        "debug",
        **{
            "train.epochs": epochs,
            "train.batch": IMAGES // STEPS,
            "train.micro_batch": 16,
            "train.threads": 1,
            "train.device": "cpu",
            "train.log_every_steps": 1,
            "train.save_every_steps": 2,
            "train.precise_bn_images": 64,
            "data.max_train": IMAGES,
            "data.augment.mixup_alpha": 0.8,
            "optim.clip_norm": 1.0,
            "train.on_divergence": "rollback",
        },
    )


def spoil_half_way(whole: RunConfig) -> None:
    """Have this process's runs meet a spoiled batch, and keep a good state every few steps."""
    make, spoiled = TrainLoader._step, whole.train.epochs * STEPS // 2 + 3
    guard.GOOD_EVERY = (STEPS // 2, STEPS // 2)

    def step(loader: TrainLoader, index: int) -> list[MicroBatch]:
        micros = make(loader, index)
        if index == spoiled:
            lighting = torch.full((len(micros[0].images), 3), math.inf)
            micros[0] = dataclasses.replace(micros[0], lighting=lighting)
        return micros

    TrainLoader._step = step  # type: ignore[method-assign]


def kill_at(moment: str, count: int, delay: float) -> None:
    """Have this process killed `delay` seconds after the `count`-th time of a moment begins."""
    owner, name = MOMENTS[moment]
    begin, times = getattr(owner, name), iter(range(1, 1_000_000))

    def begun(*args: Any, **kwargs: Any) -> Any:
        if next(times) == count:
            kill = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
        return begin(*args, **kwargs)

    setattr(owner, name, begun)


def start(world: int, work: Callable[[int], object]) -> list[Any]:
    """`world` forked processes of one run; their exit codes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def begin(rank: int) -> None:
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a process that lost another one prints
        work(rank)

    context = multiprocessing.get_context("fork")
    processes: list[Any] = [context.Process(target=begin, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    end = time.monotonic() + WAIT
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
            raise RuntimeError("a process hangs")
    return [process.exitcode for process in processes]


def result(out: Path) -> dict[str, Any]:
    """Every tensor of the last checkpoint, and the metrics but for times."""
    step = (out / "checkpoints" / "latest").read_text().strip()
    files = sorted((out / "checkpoints" / step).glob("*.safetensors"))
    tensors = {f"{file.name} {key}": t for file in files for key, t in load_file(file).items()}
    lines = [{k: v for k, v in line.items() if k not in WALL} for line in Run(out).metrics()]
    return {"step": step, "metrics": lines, **tensors}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    def same(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else bool(x == y)

    return [
        key for key in a.keys() | b.keys() if not (key in a and key in b and same(a[key], b[key]))
    ]


@dataclasses.dataclass(frozen=True)
class Kill:
    """One to come: of these ranks, `delay` seconds after the `count`-th time of a moment begins."""

    moment: str
    count: int
    delay: float
    ranks: tuple[int, ...]

    @staticmethod
    def drawn(world: int, luck: random.Random) -> Kill:
        moment = luck.choice(list(MOMENTS))
        count = luck.randint(1, {"step": 16, "checkpoint": 4}.get(moment, 1))
        delay = luck.uniform(0, 0.3 if moment == "start" else 0.04)
        return Kill(moment, count, delay, luck.choice(((0,), (world - 1,), tuple(range(world)))))


def attempt(whole: RunConfig, out: Path, kill: Kill | None, rank: int) -> None:
    spoil_half_way(whole)
    if kill is not None and rank in kill.ranks:
        kill_at(kill.moment, kill.count, kill.delay)
    run(whole, out, quiet=True)


def series(times: int, world: int, epochs: int, folder: Path, seed: int) -> list[str]:
    """Kill runs of `world` processes so often; which differ from an undisturbed one, and how."""
    whole, file = config(epochs), folder / "done.jsonl"
    if not file.exists():
        codes = start(world, functools.partial(attempt, whole, folder / "whole", None))
        if any(codes):
            raise RuntimeError(f"the undisturbed run ended with exit codes {codes}")
        file.touch()
    done = [json.loads(line) for line in file.read_text().splitlines()]
    killed = sum((Counter(line["killed"]) for line in done), Counter[str]())
    found = [text for line in done for text in line["found"]]
    while killed.total() < times:
        number = len(done) + 1
        out, luck = folder / f"run_{number}", random.Random(f"{seed} {world} {number}")
        if out.exists():  # its kills were not counted
            shutil.rmtree(out)
        here = killed_until_done(whole, out, world, times - killed.total(), luck)
        different = differences(result(folder / "whole"), result(out))
        line = {"killed": here, "found": []}
        if different:
            line["found"] = [f"{out} differs in {len(different)}: {different[:3]}"]
        else:
            shutil.rmtree(out)
        with open(file, "a") as lines:
            lines.write(json.dumps(line) + "\n")
        done.append(line)
        killed += here
        found += line["found"]
        moments = ", ".join(f"{count} {moment}" for moment, count in killed.items())
        print(f"{world} process(es), run {number} is done: {killed.total()} kills ({moments})")
    return found


def killed_until_done(
    whole: RunConfig, out: Path, world: int, most: int, luck: random.Random
) -> Counter[str]:
    """Resume one run until it is done, killing it so often at most; at which moments it was."""
    killed: Counter[str] = Counter()
    while not (out / "config.json").exists() or Run(out).status != "done":
        kill = Kill.drawn(world, luck) if killed.total() < most else None
        codes = start(world, functools.partial(attempt, whole, out, kill))
        if kill is not None and -signal.SIGKILL in codes:
            killed[kill.moment] += 1
        elif any(codes):
            raise RuntimeError(f"{out} ended with exit codes {codes}")
    return killed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--times", type=int, default=100, help="kills (default: 100)")
    add("--epochs", type=int, default=6, help="of a run (default: 6)")
    add("--seed", type=int, default=0, help="of the moments (default: 0)")
    add("--out", type=Path, help="where to continue (default: a temporary folder, all at once)")
    add("--processes", type=int, choices=(1, 2), help="of a run (default: half of the kills each)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shares = {1: args.times - args.times // 2, 2: args.times // 2}
    if args.processes:
        shares = {args.processes: args.times}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for world, times in shares.items():
            place = (args.out or Path(folder)) / str(world)
            place.mkdir(parents=True, exist_ok=True)
            found += series(times, world, args.epochs, place, args.seed)
    print("\n".join(found) or f"{args.times} kills: every run ended with the same bits.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
