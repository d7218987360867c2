"""A population against the best way to train its members one after the other, in one run.

    python benchmarks/population.py                                  # what pays here, eager
    python benchmarks/population.py --models vit_c_tiny --members 64 --compile --out gpu.json
    python benchmarks/population.py --members 4 --batch 32 --steps 5 # small, for a CPU

Ways to train one after the other: eager; with --compile also torch.compile as `train.compile`
does it, and on CUDA its mode reduce-overhead (CUDA graphs of forward and backward; batch, clipping,
update and average stay outside). The population: eager; with --compile
also compiled. All hold their images on the device and draw, cut and mix every batch, members with
seeds of their own. A step is the whole step of a run: batch, forward, backward, clipping where
asked for, update, average of the weights.

Each repeat times every way once, in turn, so that a drift of the machine hits all alike; quoted
are the median and the range, and the ratio to the *fastest* other way within a repeat. On a CPU
one thread is used: elsewhere the members would run one process a core, and so would populations.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import nn

from vitc.config import RunConfig, load_config
from vitc.data.loader import open_train
from vitc.data.sources import DataSet, open_data
from vitc.train.build import batch_plan, fresh_state, step_settings
from vitc.train.device import Processes, describe, machine_settings, pick_device
from vitc.train.freeze import train_mode
from vitc.train.population import held_images
from vitc.train.runlog import environment
from vitc.train.stack import Stack
from vitc.train.stack_batches import StackedBatches
from vitc.train.step import NormStatistics, train_step

Steps = Iterator[None]  # each item: one step was begun; on CUDA it may not have ended


def one_after_the_other(
    config: RunConfig, data: DataSet, epoch: int, device: torch.device, mode: str
) -> Steps:
    """The steps of one run; mode eager, compiled or graphs."""
    classes = len(data.classes)
    state = fresh_state(config, classes, epoch, device)
    settings = step_settings(config, device, Processes(), data.mean, data.std, classes)
    plan = batch_plan(config, Processes())
    train_mode(state.model)
    norms = NormStatistics(state.model, plan.micros_here, Processes())
    forward: nn.Module = state.model
    if mode != "eager":
        how: dict[str, Any] = {"mode": "reduce-overhead"} if mode == "graphs" else {}
        forward = torch.compile(state.model, dynamic=False, **how)  # type: ignore[assignment]
    lr = config.optim.peak_lr(config.train.batch) / 100
    total = epoch * config.train.epochs
    with open_train(data, config.data, plan, device, 0, total) as batches:
        for micros in batches:
            if mode == "graphs":
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            train_step(state, forward, micros, lr, norms, settings)
            state.step += 1
            if state.ema is not None:
                state.ema.update(state.model, state.step)
            yield


def together(
    configs: list[RunConfig], data: DataSet, epoch: int, device: torch.device, compiled: bool
) -> Steps:
    """The steps of a population."""
    first, classes = configs[0], len(data.classes)
    held, _ = held_images(first, data, device)
    states = [fresh_state(c, classes, epoch, torch.device("cpu")) for c in configs]
    stack = Stack(
        states,
        [c.optim for c in configs],
        device,
        precision=first.train.precision,
        compiled=compiled,
    )
    settings = step_settings(first, device, Processes(), data.mean, data.std, classes)
    plans = [batch_plan(c, Processes()) for c in configs]
    lrs = [c.optim.peak_lr(c.train.batch) / 100 for c in configs]
    total = epoch * first.train.epochs
    for micros in StackedBatches(held, first.data, plans, settings, range(total)):
        stack.step(micros, lrs)
        stack.update_average([0.01] * len(configs))
        yield


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(steps: Steps, count: int, device: torch.device) -> float:
    """Seconds of a step, mean of `count`."""
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    wait(device)
    return (time.perf_counter() - start) / count


def compare(
    ways: dict[str, tuple[Callable[[], Steps], int]],
    count: int,
    repeats: int,
    warm: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Member-steps a second of each way in each repeat; a way is its steps and its members."""
    begun: dict[str, Steps] = {}
    counters = torch._dynamo.utils.counters
    for name, (begin, _) in ways.items():
        start = time.perf_counter()
        counters.clear()
        try:
            begun[name] = begin()
            for _ in range(warm):
                next(begun[name])
            wait(device)
        except RuntimeError as error:  # of the compiler too: the other ways are still compared
            begun.pop(name, None)
            print(f"  {name}: FAILED: {str(error).splitlines()[0]}", flush=True)
            continue
        skips = counters["inductor"]["cudagraph_skips"]
        breaks = sum(counters["graph_break"].values())
        print(f"  {name}: first {warm} steps {time.perf_counter() - start:.1f} s, graph breaks "
              f"{breaks}, CUDA graphs skipped {skips}", flush=True)  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in begun}
    most = max((ways[name][1] for name in begun), default=0)
    for _ in range(repeats):
        for name, steps in begun.items():  # as many member-steps of each
            members = ways[name][1]
            rates[name].append(members / timed(steps, count * most // members, device))
            print(f"    {name}: {rates[name][-1]:.1f} member-steps a second", flush=True)
    return rates


def show(rates: dict[str, list[float]], batch: int) -> None:
    if not rates:
        print("  every way failed")
        return
    n = len(next(iter(rates.values())))
    print(f"  images a second, all members together (n = {n}; median [min-max])")
    for name, values in rates.items():
        a, b, c = (batch * f(values) for f in (statistics.median, min, max))
        print(f"    {name:34s} {a:11,.0f} [{b:,.0f}-{c:,.0f}]")
    ours = [n for n in rates if n.startswith("population")]
    theirs = [n for n in rates if n not in ours]
    for name in ours if theirs else ():
        each = [r / max(rates[t][i] for t in theirs) for i, r in enumerate(rates[name])]
        print(f"  -> {name} / fastest one after the other: {statistics.median(each):.2f} "
              f"[{min(each):.2f}-{max(each):.2f}]")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--recipe", default="fashion_vit_c")
    add("--models", nargs="+", default=["vit_c_tiny", "vit_p_tiny"])
    add("--optims", nargs="+", default=["adamw"], choices=["adamw", "sgd"])
    add("--members", nargs="+", type=int, default=[4, 16])
    add("--batch", type=int, default=128)
    add("--precision", default="fp32", choices=["fp32", "bf16"])
    add("--steps", type=int, default=10, help="of every member in a timing")
    add("--repeats", type=int, default=5)
    add("--compile", action="store_true", help="also compiled, and on CUDA graphs")
    add("--device", default="auto")
    add("--out", metavar="FILE", type=Path, help="the rates, machine and versions as JSON")
    args = parser.parse_args()
    device = pick_device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {describe(device)}, {time.strftime('%Y-%m-%d')}")
    found: list[dict[str, Any]] = []
    modes = ["eager"]
    if args.compile:
        modes += ["compiled", "graphs"] if device.type == "cuda" else ["compiled"]
    for model in args.models:
        for optim in args.optims:
            base = load_config(args.recipe, model=model, optim=optim, **{
                "train.batch": args.batch, "train.precision": args.precision,
                "train.device": device.type, "train.epochs": 1000,
            })  # fmt: skip
            with machine_settings(base.train, device):
                found += measure(base, args, modes, device)
                if args.out is not None:
                    write(args.out, found)


def write(out: Path, found: list[dict[str, Any]]) -> None:
    """What was measured so far, with all that is needed to read it."""
    values = {
        "command": sys.argv,
        **environment(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "unit": "member-steps a second, one number a repeat",
        "measured": found,
    }
    out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def measure(
    base: RunConfig, args: argparse.Namespace, modes: list[str], device: torch.device
) -> list[dict[str, Any]]:
    data = open_data(base.data, base.model.in_chans)
    _, epoch = held_images(base, data, device)
    found = []
    for members in args.members:
        configs = [load_config(base, **{"train.seed": i}) for i in range(members)]
        print(f"\n{base.model.name}, {type(base.optim).__name__}, {members} members, "
              f"{base.model.size[0]} px, batch {args.batch}, {args.precision}")  # fmt: skip
        ways: dict[str, tuple[Callable[[], Steps], int]] = {}
        for mode in modes:
            begin = functools.partial(one_after_the_other, base, data, epoch, device, mode)
            ways[f"one after the other, {mode}"] = begin, 1
        for compiled in (False, True) if args.compile else (False,):
            begin = functools.partial(together, configs, data, epoch, device, compiled)
            ways[f"population{', compiled' if compiled else ''}"] = begin, members
        rates = compare(ways, args.steps, args.repeats, warm=3, device=device)
        show(rates, args.batch)
        found.append({"model": base.model.name, "optim": type(base.optim).__name__,
                      "members": members, "batch": args.batch, "precision": args.precision,
                      "rates": rates})  # fmt: skip
    return found


if __name__ == "__main__":
    main()
