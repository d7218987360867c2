"""`vitc bench MODEL...`: how long forward, backward and a whole training step take here."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli.parser import Parser, Verb, count, emit, emit_json, note
from vitc.errors import ConfigError
from vitc.files import write_json

if TYPE_CHECKING:
    from vitc.study.bench import Bench
    from vitc.study.design import Group
    from vitc.views.model import Table


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="names of models")
    add("--iterations", metavar="N", type=count, default=30, help="timed ones (default: 30)")
    add("--warm-up", metavar="N", type=int, default=3, help="before them (default: 3)")
    add("--out", metavar="FILE", type=Path, help="write the results to a JSON file")
    add("--json", action="store_true", help="the same on one line, last on stdout")


def _run(args: Namespace) -> int:
    from vitc.machine import environment
    from vitc.study.bench import bench, bench_config
    from vitc.study.measures.peak import correlation_values, time_correlations
    from vitc.study.paper.numbers import TABLE2
    from vitc.views.text import columns

    if "model" in args.settings:
        raise ConfigError("--model has no effect here.", "Name the models: vitc bench MODEL...")
    configs = [bench_config(name, **args.settings) for name in args.models]  # errors first
    results = []
    for config in configs:
        results.append(bench(config, args.warm_up, args.iterations))
        r = results[-1]
        note(f"{r.model}: a step of {r.batch} images {r.step.median:.1f} ms")
    costs = [(r.params, r.flops, r.activations, r.step.median / r.batch) for r in results]
    paper = {name: row.minutes for name, row in TABLE2.items()}
    values = {
        "protocol": f"{args.warm_up} warm-up and {args.iterations} timed iterations; medians and "
        "quartiles in ms a batch; pycls's test_fw, train_fw, train_bw, and the whole step",
        "models": [
            dataclasses.asdict(r) | {"paper_epoch_minutes_on_8_v100": paper.get(r.model)}
            for r in results
        ],
        "correlations": correlation_values(costs),
        "environment": environment(),
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, values, indent=1)
    if args.json:
        emit_json(values)
        return 0
    emit(columns(bench_table(results)))
    if len(results) > 1:
        emit(columns(time_correlations(costs)[0]))
    return 0


def bench_table(results: Sequence[Bench], imagenet: bool = True) -> Table:
    """Times of models and, for `imagenet`, minutes an epoch with the paper's."""
    from vitc.study.paper.numbers import TABLE2
    from vitc.views.model import Table

    head = ["model", "batch", "precision", "test_fw", "train_fw", "train_bw", "step (quartiles)"]
    head += ["images/s", "memory MiB"]
    if imagenet:
        head += ["min an ImageNet epoch, fw + bw", "step", "paper, 8 V100"]
    rows = []
    for r in results:
        row = [r.model, str(r.batch), r.precision]
        row += [f"{t.median:.1f}" for t in (r.test_fw, r.train_fw, r.train_bw)]
        row.append(f"{r.step.median:.1f} ({r.step.low:.1f} to {r.step.high:.1f})")
        row.append(f"{1e3 * r.batch / r.step.median:,.0f}")
        row.append("-" if r.memory_mib is None else f"{r.memory_mib:,.0f}")
        if imagenet:
            row += [f"{r.epoch_minutes_pycls:,.1f}", f"{r.epoch_minutes:,.1f}"]
            row.append(f"{TABLE2[r.model].minutes:g}" if r.model in TABLE2 else "-")
        rows.append(row)
    return Table(f"Times on this {results[0].device}, ms a batch", head, rows)


def bench_exhibit(args: Namespace, groups: Sequence[Group]) -> int:
    """Table 1 and Figure 9: nothing is trained, models are counted and timed."""
    from vitc.study.bench import bench
    from vitc.study.measures.peak import correlation_values, time_correlations
    from vitc.study.paper.beside import models_table
    from vitc.study.paper.exhibits import CLASSES, get_exhibit
    from vitc.views.text import columns

    classes, imagenet = CLASSES[args.scale], args.scale == "full"
    table = models_table([g.config for g in groups], classes)
    exhibit = get_exhibit(args.exhibit)
    values: dict[str, Any] = {
        "exhibit": args.exhibit,
        "scale": args.scale,
        "about": exhibit.about,
        "models": [table.head, *table.rows],
    }
    shown = [table]
    if not args.dry_run:
        results = []
        for group in groups:
            train = dataclasses.replace(
                group.config.train,
                batch=args.settings.get("train.batch", 64),
                micro_batch=None,
                precise_bn_images=0,
            )
            if train.precision == "auto":
                train = dataclasses.replace(train, precision="fp32")
            config = dataclasses.replace(group.config, train=train)
            results.append(bench(config, 3, args.iterations, classes))
            note(f"{group.contender}: a step {results[-1].step.median:.1f} ms")
        costs = [(r.params, r.flops, r.activations, r.step.median / r.batch) for r in results]
        shown += [bench_table(results, imagenet), time_correlations(costs)[0]]
        times = [dataclasses.asdict(r) for r in results]
        if not imagenet:
            times = [{k: v for k, v in t.items() if k[:13] != "epoch_minutes"} for t in times]
        values |= {"times": times, "correlations": correlation_values(costs)}
    if args.json:
        emit_json(values)
        return 0
    emit(f"{args.exhibit}, {args.scale} scale. {exhibit.title}: {exhibit.about}")
    for each in shown:
        emit(columns(each))
    if args.dry_run:
        emit(f"Nothing was timed (--dry-run); {len(groups)} models would be, on this machine.")
    return 0


VERB = Verb(
    summary="Time models: forward, backward, whole step, memory, minutes an ImageNet epoch.",
    usage="MODEL... [options] [--SETTING VALUE ...]",
    example="vitc bench vit_c_1gf vit_p_1gf --train.batch 64 --train.precision bf16",
    options=_options,
    run=_run,
    takes_settings=True,
    epilog="Images are random and stay on the device: loading is not timed. By pycls's protocol\n"
    "(forward and backward, no optimizer), and by the step that vitc train runs.",
)
