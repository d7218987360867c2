"""`vitc plan RECIPE|CONFIG|IMAGES|RUN...`: what training would take, before anything is trained."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from typing import TYPE_CHECKING, Any, get_args

from vitc.cli.parser import Parser, Verb, emit, emit_json, number, seconds
from vitc.errors import ConfigError
from vitc.training.config import Start
from vitc.wording import counted, duration, size

if TYPE_CHECKING:
    from vitc.training.cost import Range, RunCost


def _options(parser: Parser) -> None:
    add = parser.add_argument
    about = "recipes, saved configs, images, or runs to resume or to train longer"
    add("what", nargs="+", metavar="RECIPE|CONFIG.json|IMAGES|RUN", help=about)
    about = "plan each of these models instead of the recipe's own"
    add("--models", nargs="+", default=[], metavar="MODEL", help=about)
    about = "where: this machine's (default: auto), or 8xV100, the paper's, for its recipes"
    add("--device", default="auto", metavar="auto|cuda|mps|cpu|8xV100", help=about)
    add("--budget", metavar="TIME", type=seconds, help="as for vitc train: 90s, 30m, 1h30m")
    add("--start", choices=get_args(Start), default="auto", help="with IMAGES, as for vitc train")
    about = "price of an hour on the machine, to show the price of the run"
    add("--price-per-hour", metavar="PRICE", type=number(0, 1e6), help=about)
    add("--json", action="store_true", help="print the plans on one line, last on stdout")


def _run(args: Namespace) -> int:
    from vitc.deploy.plan import plan
    from vitc.views.text import columns

    if args.models and "model" in args.settings:
        raise ConfigError("--model and --models name the model twice.", "Give one of them.")
    settings = [{**args.settings, "model": m} for m in args.models] or [args.settings]
    plans = [
        plan(what, device=args.device, budget=args.budget, start=args.start, **each)
        for what in args.what
        for each in settings
    ]
    if args.json:
        emit_json({"plans": [_values(p, args.price_per_hour) for p in plans]})
        return 0
    if len(plans) == 1:
        emit("\n".join(cost_lines(plans[0], args.price_per_hour)))
        return 0
    from vitc.views.model import Table

    rows = [_row(p, args.price_per_hour) for p in plans]
    emit(columns(Table.of("What each run takes, with 95 % intervals", rows)))
    known = dict.fromkeys(
        f"{p.name} is expected to reach: {p.expected}" for p in plans if p.expected
    )
    emit("\n".join([*known, *dict.fromkeys(n for p in plans for n in p.notes[:1])]))
    return 0


def _values(plan: RunCost, price_per_hour: float | None) -> dict[str, Any]:
    values = dataclasses.asdict(plan) | {"disk_bytes": plan.disk_bytes}
    prices = None if price_per_hour is None else plan.price(price_per_hour)
    ranges = {"epoch_seconds": plan.epoch_seconds, "seconds": plan.seconds, "price": prices}
    return values | {k: None if r is None else r._asdict() for k, r in ranges.items()}


def cost_lines(plan: RunCost, price_per_hour: float | None = None) -> list[str]:
    """One plan, a line for each thing."""
    images = "" if plan.images is None else f" on {counted(plan.images, 'training image')}"
    length = f"{plan.epochs:.3g} epochs" if plan.epochs != 1 else "1 epoch"
    steps = "" if plan.steps is None else f" ({counted(plan.steps, 'step')})"
    found = [
        f"{plan.name}: {plan.model}{images}, {length}{steps}, on {plan.device}",
        f"time: {_times(plan.seconds)} in all, {_times(plan.epoch_seconds)} an epoch with its "
        f"evaluation; {plan.measured}",
    ]
    if plan.memory_bytes is not None:
        there = "" if plan.memory_there is None else f" of {size(plan.memory_there)}"
        found.append(f"memory: {size(plan.memory_bytes)}{there}")
    if plan.disk_bytes is not None:
        cache = f", {size(plan.cache_bytes)} of decoded images" if plan.cache_bytes else ""
        free = "" if plan.free_disk is None else f"; {size(plan.free_disk)} are free"
        found.append(
            f"disk: {size(plan.checkpoint_bytes or 0)} of checkpoints{cache}, "
            f"{size(plan.metrics_bytes)} of metrics{free}"
        )
    if price_per_hour is not None:
        found.append(f"price: {_range(plan.price(price_per_hour))} at {price_per_hour:g} an hour")
    found += [f"limit: {plan.advice}"] if plan.advice else []
    found += [f"expected accuracy: {plan.expected}"] if plan.expected else []
    return [*found, *(f"note: {note}" for note in plan.notes)]


def _row(plan: RunCost, price_per_hour: float | None) -> dict[str, str]:
    """One plan among several."""
    row = {
        "what": plan.name,
        "model": plan.model,
        "images": "-" if plan.images is None else f"{plan.images:,}",
        "epochs": f"{plan.epochs:.3g}",
        "an epoch": duration_or_ms(plan.epoch_seconds.value),
        "in all": _times(plan.seconds),
        "memory": "-" if plan.memory_bytes is None else size(plan.memory_bytes),
        "disk": "-" if plan.disk_bytes is None else size(plan.disk_bytes),
        "limit": plan.limit or "-",
    }
    if price_per_hour is not None:
        row["price"] = _range(plan.price(price_per_hour))
    return row


def _times(r: Range) -> str:
    if r.low is None or r.high is None:
        return duration_or_ms(r.value)
    return f"{duration_or_ms(r.value)} ({duration_or_ms(r.low)} to {duration_or_ms(r.high)})"


def duration_or_ms(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _range(r: Range) -> str:
    if r.low is None or r.high is None:
        return f"{r.value:.2f}"
    return f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})"


VERB = Verb(
    summary="Estimate a run's time, memory, disk and price from a few of its steps; train nothing.",
    usage="RECIPE|CONFIG.json|IMAGES|RUN... [options] [--SETTING VALUE ...]",
    example="vitc plan fashion_vit_c\n"
    "vitc plan ~/photos --budget 30m --price-per-hour 0.5\n"
    "vitc plan fashion_vit_c --models vit_c_tiny vit_p_tiny vit_c_mini --train.epochs 10\n"
    "vitc plan imagenet_vit_c_4gf imagenet_resnet_50 --device 8xV100",
    options=_options,
    run=_run,
    takes_settings=True,
    runs=("what",),
    epilog="Nothing is written. The interval covers how the rate varied during the probes, about\n"
    "ten seconds for each: on a machine that is busy now and idle later, plan again.",
)
