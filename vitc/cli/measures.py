"""The verbs of the measures (`vitc study length` and so on), `vitc study paper`, `vitc bench`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.cli.engines import engine_of, placed, say_trials
from vitc.cli.parser import Parser, Verb, count, note, say, say_json, take_settings
from vitc.cli.study import (
    STUDY_EPILOG,
    check_contenders,
    contender_options,
    report_on,
    run_trials,
    shared_options,
)
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.study.bench import Bench
    from vitc.study.design import Group, Plan, StudyFolder
    from vitc.study.measures.base import Points
    from vitc.study.paper.exhibits import Scale
    from vitc.views.model import Table

EPILOG = STUDY_EPILOG.replace("--draws", "--seeds")
CHOSEN = (
    "chosen on the validation images that the errors are on; the measured runs have other seeds"
)


# -- what they share -------------------------------------------------------------------------------


def _options(
    parser: Parser, name: str, seeds: int = 3, optims: tuple[str, ...] = ("adamw",)
) -> None:
    contender_options(parser, optims)
    about = f"runs at each point, seed i of all being a pair (default: {seeds})"
    parser.add_argument("--seeds", metavar="N", type=count, help=about)
    parser.set_defaults(default_seeds=seeds)
    shared_options(parser, f"studies/{name}")


def _lengths(parser: Parser, default: str) -> None:
    about = f"epochs of the runs (default: {default})"
    parser.add_argument("--lengths", nargs="+", metavar="EPOCHS", type=count, help=about)


def _folder(args: Namespace, name: str, word: str = "--seeds") -> StudyFolder:
    """The study's folder; what an earlier start of it measured or chose here stays.

    `word` is what sets the number of runs at a point. Raises ConfigError: fewer than there are.
    """
    from vitc.study.design import TUNING, StudyFolder

    folder = StudyFolder(args.out or Path("studies") / name)
    for earlier in (StudyFolder(folder.path / TUNING), folder):
        if earlier.exists():
            old, _ = earlier.read()
            args.settings.setdefault("train.precision", old.groups[0].config.train.precision)
    begun = folder.read()[0].draws if folder.exists() else 0
    args.seeds = args.seeds or begun or args.default_seeds
    if args.seeds < begun:
        raise ConfigError(
            f"{folder.path} has {word} {begun}, more than {args.seeds}; runs are never taken back.",
            f"Use {word} {begun} or more.",
        )
    return folder


def _check_tuning(folder: StudyFolder, draws: int, word: str) -> None:
    """Raises ConfigError: so many draws of tuning would end the study, before any of them is run.

    Once it measures they are fixed: others could choose other settings. `word` is what sets them.
    """
    from vitc.study.design import TUNING, StudyFolder

    inside = StudyFolder(folder.path / TUNING)
    had = inside.read()[0].draws if inside.exists() else 0
    if folder.exists() and draws != had:
        without = "Leave --retune out" if word == "--retune" else f"Use {word} 0"
        state = f"the best of {had} draws" if had else "settings that were not tuned"
        raise ConfigError(
            f"{folder.path} already measures {state}: with {draws} it would be another study.",
            f"{f'Use {word} {had}' if had else without}, or give another --out.",
        )
    if draws < had:
        raise ConfigError(
            f"{inside.path} has {had} draws, more than {draws}; draws are never taken back.",
            f"Use {word} {had} or more, or give another --out.",
        )


def _groups(args: Namespace) -> list[Group]:
    from vitc.study.controls import control_groups
    from vitc.study.runner import contenders_of, reference_of

    check_contenders(args)
    groups = contenders_of(args.recipes, args.models, args.optims, args.stems, **args.settings)
    args.reference = reference_of(groups, args.reference or "")
    if "time_matched" in (args.controls or ()):
        raise ConfigError("--time-matched has no effect here.", "It is for vitc study hparams.")
    return [*groups, *control_groups(groups, args.controls or (), args.reference)]


def _points_of_lengths(args: Namespace, groups: Sequence[Group], shares: bool = True) -> Points:
    from vitc.study.measures.base import default_lengths, length_points

    epochs = groups[0].config.train.epochs
    if args.lengths and "train.epochs" in args.settings:
        raise ConfigError("--train.epochs has no effect with --lengths, which sets them.")
    return length_points(args.lengths or (default_lengths(epochs) if shares else [epochs]))


def _tuned(
    args: Namespace, folder: StudyFolder, groups: Sequence[Group], points: Points, draws: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Run the tuning study inside the folder; the best settings and their errors by key."""
    from vitc.study.design import TUNING, StudyFolder
    from vitc.study.measures.base import before_measuring, best_values, tuning_plan

    inside = StudyFolder(folder.path / TUNING)
    plan = tuning_plan(
        groups, points, draws=draws, seed=args.seed, name=f"{folder.path.name} tuning"
    )
    plan = before_measuring(plan)
    return best_values(inside, run_trials(args, inside, plan))


def _plan(
    args: Namespace,
    folder: StudyFolder,
    measure: str,
    groups: Sequence[Group],
    points: Points,
    chosen: Mapping[str, Mapping[str, float]],
    about: Sequence[str],
) -> Plan:
    from vitc.study.measures.base import measure_plan

    return measure_plan(
        measure,
        groups,
        points,
        seeds=args.seeds,
        seed=args.seed,
        name=folder.path.name,
        reference=args.reference or "",
        control=args.control,
        chosen=chosen,
        about=about,
    )


def _ready(
    args: Namespace, folder: StudyFolder, measure: str, groups: Sequence[Group], points: Points
) -> list[Group]:
    """The groups as they are tuned and then measured: their precision decided once for both.

    The plan to be measured is made for it, so its mistakes are told before a budget is spent.
    """
    from vitc.study.measures.base import with_precision

    return with_precision(groups, _plan(args, folder, measure, groups, points, {}, ()))


def _finish(args: Namespace, folder: StudyFolder, plan: Plan) -> int:
    run_trials(args, folder, plan)
    return report_on([folder.path], None, args.json, protocol=args.protocol, ran=True)


FIXED = "lr and weight decay are the recipe's at every length, as in the paper"


def _told(values: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(
        f"{key}: " + ", ".join(f"{n.removeprefix('optim.')} {v:g}" for n, v in best.items())
        for key, best in values.items()
    )


# -- length and optimizer --------------------------------------------------------------------------


def _retune(parser: Parser) -> None:
    about = "tune lr and weight decay with N draws at every length first (default: as the recipe)"
    parser.add_argument("--retune", metavar="N", type=count, help=about)


def _length_options(parser: Parser) -> None:
    _lengths(parser, "1/8, 1/4, 1/2 and all of the recipe's, as the paper's 50 100 200 400")
    _retune(parser)
    _options(parser, "length")


def _optimizer_options(parser: Parser) -> None:
    _lengths(parser, "1/8, 1/4, 1/2 and all of the recipe's, as the paper's 50 100 200 400")
    _retune(parser)
    _options(parser, "optimizer", optims=("adamw", "sgd"))


def _over_lengths(args: Namespace, measure: str) -> int:
    folder = _folder(args, measure)
    _check_tuning(folder, args.retune or 0, "--retune")
    groups = _groups(args)
    points = _points_of_lengths(args, groups)
    chosen: dict[str, dict[str, float]] = {}
    about = [FIXED]
    if args.retune:
        groups = _ready(args, folder, measure, groups, points)
        chosen, _ = _tuned(args, folder, groups, points, args.retune)
        about = [
            f"lr and weight decay were tuned at every length with {args.retune} draws, "
            f"{CHOSEN}: {_told(chosen)}"
        ]
    return _finish(args, folder, _plan(args, folder, measure, groups, points, chosen, about))


def _length(args: Namespace) -> int:
    return _over_lengths(args, "length")


def _optimizer(args: Namespace) -> int:
    if len(set(args.optims)) != 2:
        raise ConfigError(
            f"A gap is between two optimizers, not {len(set(args.optims))}.",
            "For example: --optims adamw sgd",
        )
    return _over_lengths(args, "optimizer")


# -- peak ------------------------------------------------------------------------------------------


def _tune_options(parser: Parser, default: int) -> None:
    add = parser.add_argument
    about = f"draws of lr and weight decay first; 0: the recipe's own (default: {default})"
    add("--tune", metavar="N", type=int, default=default, help=about)
    add(
        "--tune-epochs",
        metavar="EPOCHS",
        type=count,
        help="length of the draws (default: an eighth of the recipe's)",
    )


def _peak_options(parser: Parser) -> None:
    _lengths(parser, "the recipe's")
    _tune_options(parser, 8)
    _options(parser, "peak")


def _peak(args: Namespace) -> int:
    from vitc.study.measures.base import best_optimizer

    folder = _folder(args, "peak")
    if len(args.optims) > 1 and not args.tune:
        raise ConfigError(
            "Without --tune nothing says which optimizer is best.",
            "Give one --optims, or --tune N.",
        )
    groups = _groups(args)
    points = _points_of_lengths(args, groups, shares=False)
    groups, chosen, errors, about = _tune_short(args, folder, "peak", groups, points)
    if len(args.optims) > 1:
        groups = best_optimizer(groups, errors)
        about.append("of each contender the optimizer whose best draw was best is run")
    return _finish(args, folder, _plan(args, folder, "peak", groups, points, chosen, about))


def _tune_short(
    args: Namespace, folder: StudyFolder, measure: str, groups: Sequence[Group], points: Points
) -> tuple[list[Group], dict[str, dict[str, float]], dict[str, float], list[str]]:
    """The groups as they are to be measured at the points, settings and errors by key, and what
    the report says of how they were come by."""
    from vitc.study.measures.base import default_lengths, length_points

    if args.tune < 0:
        raise ConfigError(f"--tune {args.tune} must be 0 or more draws.")
    _check_tuning(folder, args.tune, "--tune")
    if not args.tune:
        return list(groups), {}, {}, ["lr and weight decay are the recipe's"]
    groups = _ready(args, folder, measure, groups, points)
    epochs = args.tune_epochs or default_lengths(groups[0].config.train.epochs)[0]
    chosen, errors = _tuned(args, folder, groups, length_points([epochs]), args.tune)
    return (
        groups,
        chosen,
        errors,
        [
            f"lr and weight decay are the best of {args.tune} draws of {epochs} epochs, {CHOSEN}: "
            f"{_told(chosen)}"
        ],
    )


# -- seeds and vary --------------------------------------------------------------------------------


def _seeds_options(parser: Parser) -> None:
    _options(parser, "seeds", seeds=10)


def _seeds(args: Namespace) -> int:
    from vitc.study.measures.base import seed_plan

    folder = _folder(args, "seeds")
    plan = seed_plan(
        _groups(args),
        seeds=args.seeds,
        seed=args.seed,
        name=folder.path.name,
        reference=args.reference or "",
        control=args.control,
    )
    return _finish(args, folder, plan)


def _vary_options(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--set",
        nargs="+",
        action="append",
        default=[],
        metavar="SETTING",
        dest="sets",
        help="SETTING VALUE...: points at which a setting has these values",
    )
    add(
        "--times",
        nargs="+",
        action="append",
        default=[],
        metavar="SETTING",
        help="SETTING FACTOR...: points at which it is its value times these; with --tune times "
        "the best one found",
    )
    add(
        "--setup",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME",
        dest="setups",
        help="NAME SETTING=VALUE...: a point of several settings together",
    )
    _tune_options(parser, 0)
    _options(parser, "vary")


def _vary(args: Namespace) -> int:
    from vitc.study.measures.base import vary_points

    folder = _folder(args, "vary")
    points = vary_points(
        [_axis(words, "--set") for words in args.sets],
        [(name, _factors(name, values)) for name, *values in args.times],
        [(name, _settings(values, "--setup")) for name, *values in args.setups],
    )
    groups, chosen, _, about = _tune_short(args, folder, "vary", _groups(args), points)
    return _finish(args, folder, _plan(args, folder, "vary", groups, points, chosen, about))


def _axis(words: Sequence[str], option: str) -> tuple[str, list[Any]]:
    name, *values = words
    if not values:
        raise ConfigError(f"{option} {name} has no value.", f"For example: {option} {name} 1 2")
    return name, [next(iter(_settings([f"{name}={v}"], option).values())) for v in values]


def _settings(words: Sequence[str], option: str) -> dict[str, Any]:
    wrong = [w for w in words if "=" not in w]
    found, rest = ({}, []) if wrong else take_settings([f"--{w}" for w in words])
    if wrong or rest or not words:
        what = repr([*wrong, *rest][0]) if wrong or rest else "nothing"
        raise ConfigError(f"{option}: {what} is not SETTING=VALUE of a known setting.")
    return found


def _factors(name: str, words: Sequence[str]) -> list[float]:
    try:
        factors = [float(w) for w in words]
    except ValueError:
        raise ConfigError(f"--times {name} needs numbers, not {' '.join(words)}.") from None
    if not factors:
        raise ConfigError(f"--times {name} has no factor.", f"For example: --times {name} 1 2 4 8")
    return factors


# -- bench -----------------------------------------------------------------------------------------


def _bench_options(parser: Parser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="names of models")
    add("--iterations", metavar="N", type=count, default=30, help="timed ones (default: 30)")
    add("--warm-up", metavar="N", type=int, default=3, help="before them (default: 3)")
    add("--out", metavar="FILE", type=Path, help="write the results to a JSON file")
    add("--json", action="store_true", help="the same on one line, last on stdout")


def _bench(args: Namespace) -> int:
    import dataclasses
    import json

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
    values = {
        "protocol": f"{args.warm_up} warm-up and {args.iterations} timed iterations; medians and "
        "quartiles in ms a batch; pycls's test_fw, train_fw, train_bw, and the whole step",
        "models": [
            dataclasses.asdict(r)
            | {
                "paper_epoch_minutes_on_8_v100": TABLE2[r.model].minutes
                if r.model in TABLE2
                else None
            }
            for r in results
        ],
        "correlations": correlation_values(costs),
        "environment": environment(),
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if args.json:
        say_json(values)
        return 0
    say(columns(bench_table(results)))
    if len(results) > 1:
        say(columns(time_correlations(costs)[0]))
    return 0


def bench_table(results: Sequence[Bench], imagenet: bool = True) -> Table:
    """Times of models beside the paper's minutes an epoch; those only of models for `imagenet`."""
    from vitc.study.paper.numbers import TABLE2
    from vitc.views.model import Table

    rows = [
        [
            r.model,
            str(r.batch),
            r.precision,
            *(f"{t.median:.1f}" for t in (r.test_fw, r.train_fw, r.train_bw)),
            f"{r.step.median:.1f} ({r.step.low:.1f} to {r.step.high:.1f})",
            f"{1e3 * r.batch / r.step.median:,.0f}",
            "-" if r.memory_mib is None else f"{r.memory_mib:,.0f}",
            *(
                [
                    f"{r.epoch_minutes_pycls:,.1f}",
                    f"{r.epoch_minutes:,.1f}",
                    f"{TABLE2[r.model].minutes:g}" if r.model in TABLE2 else "-",
                ]
                if imagenet
                else []
            ),
        ]
        for r in results
    ]
    return Table(
        f"Times on this {results[0].device}, ms a batch",
        [
            "model",
            "batch",
            "precision",
            "test_fw",
            "train_fw",
            "train_bw",
            "step (quartiles)",
            "images/s",
            "memory MiB",
            *(["min an ImageNet epoch, fw + bw", "step", "paper, 8 V100"] if imagenet else []),
        ],
        rows,
    )


# -- the paper -------------------------------------------------------------------------------------


def _paper_options(parser: Parser) -> None:
    add = parser.add_argument
    add("exhibit", metavar="FIGURE|TABLE", help="fig2 ... fig11, table1, table2, table3, table5")
    about = "small (default): tiny models, images inside the package; full: the paper's"
    add("--scale", choices=("small", "full"), default="small", help=about)
    add("--count", metavar="N", type=count, help="seeds at a point, or draws (default: its own)")
    add("--tune", metavar="N", type=count, help="draws first, where it tunes (default: its own)")
    _lengths(parser, "its own")
    add("--second", metavar="DIR", help="fig11: the second test set (default: the test split)")
    add("--iterations", metavar="N", type=count, default=30, help="fig9, table1: timed (30)")
    shared_options(parser, "studies/<exhibit>_<scale>")


def _paper(args: Namespace) -> int:
    from vitc.study.paper.exhibits import BENCH, NO_DATA, entry_groups, get_exhibit, scale_of

    exhibit = get_exhibit(args.exhibit)
    check_paper(args, exhibit.measure)
    scale = scale_of(exhibit, args.scale)
    name = f"{args.exhibit}_{args.scale}"
    args.default_seeds, args.seeds = scale.count, args.count
    folder = _folder(args, name, "--count")
    data = args.settings.pop("data", None)
    if args.scale == "full" and data is None:
        if not args.dry_run and exhibit.measure != BENCH:
            raise ConfigError(
                f"{args.exhibit} at full scale trains on ImageNet.",
                "Add --data DIR (with train/ and val/), or --dry-run to see plan and cost; "
                "--scale small needs no data.",
            )
        data = NO_DATA
    if args.scale == "full" and args.dry_run:
        args.settings.setdefault("train.device", "cuda")  # the cluster's, whatever is here
    if args.scale == "small" and data is not None:
        args.settings["data"], data = data, None
    groups = entry_groups(scale.entries, data, **args.settings)
    if exhibit.measure == BENCH:
        return _paper_bench(args, groups, scale)
    return _paper_study(args, folder, groups, scale)


def check_paper(args: Namespace, measure: str) -> None:
    """Raises ConfigError: words that have no effect with this exhibit."""
    from vitc.study.paper.exhibits import BENCH

    if args.second is not None and args.exhibit != "fig11":
        raise ConfigError(f"--second has no effect with {args.exhibit}; it is for fig11.")
    for word in ("model", "optim"):
        if word in args.settings:
            raise ConfigError(f"--{word} has no effect here: {args.exhibit} has its own.")
    for word in ("count", "tune", "lengths"):
        if measure == BENCH and getattr(args, word) is not None:
            raise ConfigError(f"--{word} has no effect with {args.exhibit}, which trains nothing.")
    if measure == BENCH and args.protocol != "last":
        raise ConfigError(f"--protocol has no effect with {args.exhibit}, which trains nothing.")
    if "train.epochs" in args.settings:
        raise ConfigError("--train.epochs has no effect here.", "Use --lengths.")


def _paper_study(
    args: Namespace, folder: StudyFolder, groups: Sequence[Group], scale: Scale
) -> int:
    from vitc.study.design import TUNING, StudyFolder
    from vitc.study.measures.base import (
        before_measuring,
        best_values,
        length_points,
        with_precision,
    )
    from vitc.study.paper.exhibits import CLASSES, draws_plan, exhibit_plan

    classes = CLASSES[args.scale] if args.dry_run else None
    settings: dict[str, Any] = {"seed": args.seed, "classes": classes}
    tune, about = args.tune or scale.tune, list[str]()
    steps: list[tuple[StudyFolder, Plan]] = []
    chosen: dict[str, dict[str, float]] = {}
    if args.tune and not scale.tune:
        raise ConfigError(f"--tune has no effect with {args.exhibit}: the paper's rates are used.")

    def measured() -> Plan:
        return exhibit_plan(
            args.exhibit,
            args.scale,
            groups,
            count=args.seeds,
            lengths=args.lengths,
            study=folder.path.name,
            chosen=chosen,
            about=about,
            **settings,
        )

    if tune:
        _check_tuning(folder, tune, "--tune")
        groups = with_precision(groups, measured())
        epochs = max(1, min(scale.tune_epochs, *(args.lengths or scale.lengths)))
        first = before_measuring(
            draws_plan(
                groups,
                length_points([epochs]),
                draws=tune,
                name=f"{folder.path.name} tuning",
                **settings,
            )
        )
        about = [f"lr and weight decay are the best of {tune} draws of {epochs} epochs, {CHOSEN}"]
        steps.append((StudyFolder(folder.path / TUNING), first))
        if not args.dry_run:
            inside, first = steps[0]
            chosen, _ = best_values(inside, run_trials(args, inside, first))
            about = [f"{about[0]}: {_told(chosen)}"]
    plan = measured()
    if args.dry_run:
        return _paper_dry_run(args, [*steps, (folder, folder.joined(plan))])
    plan = run_trials(args, folder, plan)
    if args.exhibit == "fig11":
        from vitc.study.paper.second import measure_second

        measure_second(folder, plan, args.second, note)
    return report_on([folder.path], None, args.json, protocol=args.protocol, ran=True)


def _paper_dry_run(args: Namespace, steps: Sequence[tuple[StudyFolder, Plan]]) -> int:
    from vitc.study.design import to_json
    from vitc.study.paper.exhibits import cost_lines, get_exhibit

    lines = cost_lines([plan for _, plan in steps])
    exhibit = get_exhibit(args.exhibit)
    if not args.json:
        say(f"{args.exhibit}, {args.scale} scale. {exhibit.title}: {exhibit.about}")
        for line in lines:
            say(line)
    for folder, plan in steps if args.engine == "slurm" else ():
        say_trials(folder, plan, engine_of(args))
    if args.json:
        say_json(
            {
                "exhibit": args.exhibit,
                "scale": args.scale,
                "cost": lines,
                "plans": [to_json(plan) for _, plan in steps],
            }
        )
        return 0
    say("Nothing was run. --json has every setting of every contender.")
    return 0


def _paper_bench(args: Namespace, groups: Sequence[Group], scale: Scale) -> int:
    """Table 1 and Figure 9: nothing is trained, models are counted and timed."""
    import dataclasses

    from vitc.study.bench import bench
    from vitc.study.measures.peak import correlation_values, time_correlations
    from vitc.study.paper.exhibits import CLASSES, get_exhibit, models_table
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
            batch = args.settings.get("train.batch", 64)
            train = dataclasses.replace(
                group.config.train, batch=batch, micro_batch=None, precise_bn_images=0
            )
            train = dataclasses.replace(
                train, precision="fp32" if train.precision == "auto" else train.precision
            )
            results.append(
                bench(dataclasses.replace(group.config, train=train), 3, args.iterations, classes)
            )
            note(f"{group.contender}: a step {results[-1].step.median:.1f} ms")
        costs = [(r.params, r.flops, r.activations, r.step.median / r.batch) for r in results]
        shown += [bench_table(results, imagenet), time_correlations(costs)[0]]
        times = [dataclasses.asdict(r) for r in results]
        values |= {
            "times": [
                {
                    name: value
                    for name, value in each.items()
                    if imagenet or not name.startswith("epoch_minutes")
                }
                for each in times
            ],
            "correlations": correlation_values(costs),
        }
    if args.json:
        say_json(values)
        return 0
    say(f"{args.exhibit}, {args.scale} scale. {exhibit.title}: {exhibit.about}")
    for each in shown:
        say(columns(each))
    if args.dry_run:
        say(f"Nothing was timed. {len(groups)} models would be, on the device at hand.")
    return 0


PAPER_VERB = Verb(
    summary="Set up a figure or table of the paper, full scale or small, beside its numbers.",
    usage="FIGURE|TABLE [--scale small|full] [--dry-run] [options] [--SETTING VALUE ...]",
    example="vitc study paper fig2\nvitc study paper table2 --scale full --dry-run\n"
    "vitc study paper fig4 --scale full --data ~/imagenet",
    options=_paper_options,
    run=placed(_paper),
    runs=("out",),
    takes_settings=True,
    epilog=EPILOG.replace("--seeds", "--count"),
)

BENCH_VERB = Verb(
    summary="Time models: forward, backward, whole step, memory, minutes an ImageNet epoch.",
    usage="MODEL... [options] [--SETTING VALUE ...]",
    example="vitc bench vit_c_1gf vit_p_1gf --train.batch 64 --train.precision bf16",
    options=_bench_options,
    run=_bench,
    takes_settings=True,
    epilog="Images are made up and lie on the device: loading is not timed. By pycls's protocol\n"
    "(forward and backward, no optimizer), and by the step that vitc train runs.",
)

MEASURE_VERBS: dict[str, Verb] = {
    "length": Verb(
        summary="How much is lost by shorter training? Error above the longest schedule's.",
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example="vitc study length fashion_vit_p --models vit_c_tiny vit_p_tiny "
        "--lengths 5 10 20 40\n"
        "vitc study length fashion_vit_p --models vit_c_tiny vit_p_tiny --retune 8 --seeds 5",
        options=_length_options,
        run=placed(_length),
        runs=("recipes", "out"),
        takes_settings=True,
        epilog=EPILOG,
    ),
    "optimizer": Verb(
        summary="How much is lost with SGD? Its error above AdamW's, at each length.",
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example="vitc study optimizer fashion_vit_p --models vit_c_tiny vit_p_tiny "
        "--lengths 5 10 20 40",
        options=_optimizer_options,
        run=placed(_optimizer),
        runs=("recipes", "out"),
        takes_settings=True,
        epilog=EPILOG,
    ),
    "peak": Verb(
        summary="Tune a little, train long: error against flops, params, activations and time.",
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example="vitc study peak fashion_vit_p --models vit_c_tiny vit_p_tiny vit_p_tiny_patch4 "
        "--tune 8 --optims adamw sgd",
        options=_peak_options,
        run=placed(_peak),
        runs=("recipes", "out"),
        takes_settings=True,
        epilog=EPILOG,
    ),
    "seeds": Verb(
        summary="What makes runs differ: initial weights, order, augmentation? Seeds a gap needs.",
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example="vitc study seeds fashion_vit_p --models vit_c_tiny vit_p_tiny --seeds 20",
        options=_seeds_options,
        run=placed(_seeds),
        runs=("recipes", "out"),
        takes_settings=True,
        epilog=EPILOG,
    ),
    "paper": PAPER_VERB,
    "vary": Verb(
        summary="How sensitive is it to a setting? Error and share of diverged runs at its values.",
        usage="RECIPE... [options] [--SETTING VALUE ...]",
        example="vitc study vary fashion_vit_p --set optim.schedule.warmup_epochs 0 1 2 5\n"
        "vitc study vary fashion_vit_p --models vit_c_tiny vit_p_tiny --tune 8 "
        "--times optim.lr 1 2 4 8\n"
        "vitc study vary fashion_vit_p --set train.batch 32 64 128\n"
        "vitc study vary cifar10_vit_c --data ~/cifar10 --setup plain data.augment.flip=0.5 "
        "--setup strong data.augment.policy=randaugment data.augment.erase=0.25",
        options=_vary_options,
        run=placed(_vary),
        runs=("recipes", "out"),
        takes_settings=True,
        epilog=EPILOG,
    ),
}
