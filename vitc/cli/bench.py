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
    from vitc.config import RunConfig
    from vitc.study.bench import Bench
    from vitc.study.design import Group
    from vitc.views.model import Table


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="names of models")
    add("--iterations", metavar="N", type=count, default=30, help="timed steps (default: 30)")
    add(
        "--warm-up", metavar="N", type=int, default=3, help="untimed steps before them (default: 3)"
    )
    add("--out", metavar="FILE", type=Path, help="write the results to a JSON file")
    add("--json", action="store_true", help="print the results as JSON on the last line of stdout")


def _run(args: Namespace) -> int:
    from vitc.machine import environment
    from vitc.study.bench import bench_config
    from vitc.study.paper.numbers import TABLE2
    from vitc.views.text import columns

    if "model" in args.settings:
        raise ConfigError("--model has no effect here.", "Name the models: vitc bench MODEL...")
    configs = [bench_config(name, **args.settings) for name in args.models]  # errors first
    results, tables, correlations = _timed(configs, args.warm_up, args.iterations)
    paper = {name: row.minutes for name, row in TABLE2.items()}
    values = {
        "protocol": f"{args.warm_up} warm-up and {args.iterations} timed iterations; medians and "
        "quartiles in ms a batch; pycls's test_fw, train_fw, train_bw, and the whole step",
        "models": [
            dataclasses.asdict(r) | {"paper_epoch_minutes_on_8_v100": paper.get(r.model)}
            for r in results
        ],
        "correlations": correlations,
        "environment": environment(),
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, values, indent=1)
    if args.json:
        emit_json(values)
        return 0
    for table in tables[: len(results)]:  # nothing goes with the time of one model
        emit(columns(table))
    return 0


def _timed(
    configs: Sequence[RunConfig], warm_up: int, iterations: int, classes: int = 1000
) -> tuple[list[Bench], list[Table], dict[str, Any]]:
    """Times of models; the tables of them and of what they go with; the same as values.

    With ImageNet's classes the minutes of its epoch stand beside the paper's.
    """
    from vitc.study.bench import CLASSES, bench
    from vitc.study.measures.peak import correlation_values, time_correlations
    from vitc.study.paper.numbers import TABLE2
    from vitc.views.model import Table

    results, rows = [], []
    for config in configs:
        r = bench(config, warm_up, iterations, classes)
        results.append(r)
        note(f"{r.model}: a step of {r.batch} images {r.step.median:.1f} ms")
        if r.busy:
            note(r.busy)
        row = {"model": r.model, "batch": str(r.batch), "precision": r.precision}
        for name in ("test_fw", "train_fw", "train_bw"):
            row[name] = f"{getattr(r, name).median:.1f}"
        row["step (quartiles)"] = f"{r.step.median:.1f} ({r.step.low:.1f} to {r.step.high:.1f})"
        row["images/s"] = f"{1e3 * r.batch / r.step.median:,.0f}"
        row["memory MiB"] = "-" if r.memory_mib is None else f"{r.memory_mib:,.0f}"
        if classes == CLASSES:
            row["min an ImageNet epoch, fw + bw"] = f"{r.epoch_minutes_pycls:,.1f}"
            row["step"] = f"{r.epoch_minutes:,.1f}"
            row["paper, 8 V100"] = f"{TABLE2[r.model].minutes:g}" if r.model in TABLE2 else "-"
        rows.append(row)
    costs = [(r.params, r.flops, r.activations, r.step.median / r.batch) for r in results]
    times = Table.of(f"Times on this {results[0].device}, ms a batch", rows)
    return results, [times, time_correlations(costs)[0]], correlation_values(costs)


def bench_exhibit(args: Namespace, groups: Sequence[Group]) -> int:
    """Table 1 and Figure 9: nothing is trained, models are counted and timed."""
    from vitc.study.paper.beside import models_table
    from vitc.study.paper.exhibits import CLASSES, get_exhibit
    from vitc.views.text import columns

    classes = CLASSES[args.scale]
    shown = [models_table([g.config for g in groups], classes)]
    exhibit = get_exhibit(args.exhibit)
    values: dict[str, Any] = {
        "exhibit": args.exhibit,
        "scale": args.scale,
        "about": exhibit.about,
        "models": [shown[0].head, *shown[0].rows],
    }
    if not args.dry_run:
        configs = []
        for config in (g.config for g in groups):
            train = dataclasses.replace(
                config.train,
                batch=args.settings.get("train.batch", 64),
                micro_batch=None,
                precise_bn_images=0,
                precision="fp32" if config.train.precision == "auto" else config.train.precision,
            )
            configs.append(dataclasses.replace(config, train=train))
        results, tables, correlations = _timed(configs, 3, args.iterations, classes)
        shown += tables
        times = [dataclasses.asdict(r) for r in results]
        if args.scale != "full":
            times = [{k: v for k, v in t.items() if k[:13] != "epoch_minutes"} for t in times]
        values |= {"times": times, "correlations": correlations}
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
