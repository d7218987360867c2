"""The verbs: words on a command line in, one call into the rooms, words or JSON out.

The only place that prints usage and decides exit codes: 0 good, 1 the run failed or diverged,
2 usage or config, 130 Ctrl-C, 143 SIGTERM with the state saved. Results go to stdout; progress,
notes and errors to stderr. Torch is imported by the verbs that need it, once their words are in
order. A new verb is one entry in `VERBS`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc import __version__
from vitc.cli.convert import CONVERT_VERB
from vitc.cli.data import DATA_VERBS
from vitc.cli.measures import BENCH_VERB, MEASURE_VERBS
from vitc.cli.parser import (
    Parser,
    Verb,
    count,
    indented,
    note,
    say,
    say_json,
    seconds,
    settings_help,
    take_settings,
    weights_option,
)
from vitc.cli.save import PUSH_VERBS
from vitc.cli.study import REPORT_VERB, STUDY_VERBS
from vitc.config import (
    RunConfig,
    all_leaf_types,
    load_config,
    read_json,
    resolve_config,
    to_dict,
)
from vitc.data.config import SUFFIXES, is_pattern
from vitc.data.sources.folder import counted
from vitc.errors import (
    ConfigError,
    DivergedError,
    InterruptedRun,
    VitcError,
    suggest,
    unknown,
)

if TYPE_CHECKING:
    from vitc.deploy.pictures import Kind, Request

# -- train -----------------------------------------------------------------------------------------


def _train_options(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "what",
        nargs="?",
        metavar="RECIPE|CONFIG.json|FOLDER|RUN",
        help="a recipe's name, a saved config, images (a folder, a pack, a list, shards), "
        "or a run to go on with",
    )
    add("--out", metavar="DIR", type=Path, help="the run's folder (default: runs/<recipe>)")
    add("--overwrite", action="store_true", help="start anew where a run is already")
    add("--budget", metavar="TIME", type=seconds, help="with FOLDER: how long, as 90s, 30m, 1h30m")
    add("--dry-run", action="store_true", help="say what would be run, and stop")
    add("--json", action="store_true", help="summary.json on one line, last on stdout")


def _train(args: Namespace) -> int:
    if args.what is None:
        raise ConfigError(
            "Train what? A recipe, a config file, a folder of images or a run folder is missing.",
            "For example: vitc train fashion_vit_c (all recipes: vitc show --list), "
            "or vitc train FOLDER with one sub-folder of images per class.",
        )
    config, out, notes = _train_plan(args)
    args.run_folder = out
    if args.overwrite or not (out / "config.json").exists():  # a run under way has its weights
        _check_start(config)
    if args.dry_run:
        return _dry_run(args, config, out, notes)
    from vitc.training.loop import run

    result = run(config, out, overwrite=args.overwrite, notes=notes)
    if args.json:
        say_json(result.summary)
    else:
        top1 = "" if result.top1 is None else f"top1 {result.top1:.2f} % on validation.  "
        say(f"{top1}Run: {result.path}")
        say(f"Next: vitc predict {out} IMAGE...; vitc show {out} --plot curves.png")
    return 0


def _check_start(config: RunConfig) -> None:
    """Weights to start from exist: answered before torch is imported."""
    weights = config.init.weights
    if weights and not weights.startswith("timm:") and not Path(weights).exists():
        parent = Path(weights).parent
        names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        raise ConfigError(
            f"--init {weights}: nothing of that name exists.{suggest(Path(weights).name, names)}",
            "Give a run folder, a weights file, a folder of vitc save, or timm:NAME.",
        )


def _train_help(parser: Parser, args: Namespace) -> None:
    print(parser.format_help())
    if args.what is not None and not _is_images(args.what):
        settings_help(resolve_config(args.what, **args.settings), f"vitc train {args.what}")


def _train_plan(args: Namespace) -> tuple[RunConfig, Path, list[str]]:
    """The config, the run's folder, and notes on why it is so."""
    what = Path(args.what)
    if _is_images(args.what):
        return _front_door(args, what)
    if is_pattern(args.what) and args.what.endswith(tuple(SUFFIXES)):
        raise ConfigError(
            f"{args.what!r} is a pattern: settings are chosen for one folder or file.",
            f"Name a recipe: vitc train cifar10_vit_c --data {shlex.quote(args.what)}; or pack the "
            f"images: vitc data pack {shlex.quote(args.what)} OUT.vitc, then vitc train OUT.vitc.",
        )
    if args.budget is not None:
        raise ConfigError(
            f"--budget has no effect here: {args.what} is not a folder of images.",
            "A recipe's length is --train.epochs.",
        )
    config = load_config(args.what, **args.settings)
    is_run = what.is_dir() and not _is_recipe(args.what)
    default = what if is_run else Path("runs") / config.name
    return config, args.out or default, []


def _is_recipe(name: str) -> bool:
    from vitc.recipes import RECIPES

    return name in RECIPES


def _is_images(what: str) -> bool:
    """Whether it is a folder of images, or a file that holds or lists some."""
    path = Path(what)
    if path.is_dir():
        return not (path / "config.json").exists() and not _is_recipe(what)
    return path.is_file() and what.lower().endswith(tuple(SUFFIXES))


def _front_door(args: Namespace, images: Path) -> tuple[RunConfig, Path, list[str]]:
    """Images and no recipe: go on with their run, or let the front door choose everything."""
    from vitc.training.auto import name_of, propose

    out = args.out or Path("runs") / name_of(images)
    under_way = None if args.overwrite else _run_on(images, out, args.settings)
    if under_way is not None:
        note(f"{out} is a run on {images}: going on with its settings.")
        if args.budget is not None:
            note("--budget has no effect on it: its length was chosen when it began.")
        return under_way, out, []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each would measure, and choose, for itself
        raise ConfigError(
            f"Several processes cannot choose settings for {images} together.",
            f"Choose first: vitc train {images} --dry-run; then run the config it saves.",
        )
    proposal = propose(images, args.budget, args.settings)
    tell = say if args.dry_run and not args.json else note
    for line in proposal.lines:
        tell(line)
    return proposal.config, out, list(proposal.lines)


def _run_on(images: Path, out: Path, settings: Mapping[str, Any]) -> RunConfig | None:
    """The config of the run on `images` in `out`, with the settings given anew; None: no such run.

    Those that the run was begun with change nothing; others it refuses by their names. Nothing
    that the run no longer needs is read.
    """
    if "data" in settings or "data.path" in settings or not (out / "config.json").exists():
        return None
    config = load_config(out)
    if config.data.path is None or Path(config.data.path).resolve() != images.resolve():
        return None
    return load_config(config, **settings)


def _dry_run(args: Namespace, config: RunConfig, out: Path, notes: list[str]) -> int:
    """Say what would run. What the front door chose is saved, so that just that can be run."""
    from vitc.deploy.show import config_page
    from vitc.views.model import write

    page = config_page(config)
    saved = None
    if notes:
        saved = Path(f"{out}.json")
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
    if args.json:
        about = {"out": str(out), "notes": notes, "config": str(saved) if saved else None}
        say_json({**page.values, **about})
    elif saved:
        where = f" --out {out}" if args.out else ""
        say(f"Nothing was run. Run these settings with: vitc train {saved}{where}")
    else:
        write(page, sys.stdout)
        say(f"Nothing was run. Without --dry-run it would go to {out}.")
    return 0


# -- eval ------------------------------------------------------------------------------------------


def _eval_options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run folder")
    add("data", nargs="?", metavar="DATA", help="a data set or folder (default: the run's own)")
    add(
        "--split",
        choices=("val", "test"),
        default="val",
        help="default: val; read test once, for the run that val chose",
    )
    weights_option(parser)
    add("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="default: auto")
    add("--json", action="store_true", help="the result on one line, last on stdout")


def _eval(args: Namespace) -> int:
    _check_run(args.run_folder)
    from vitc.training.evaluate import evaluate_run

    result = evaluate_run(args.run_folder, args.data, args.split, args.weights, args.device)
    if args.json:
        say_json(result)
        return 0
    from vitc.deploy.show import evaluation_page
    from vitc.views.model import write

    write(evaluation_page(result), sys.stdout)
    return 0


def _check_run(run: Path) -> None:
    """A run folder, or a ConfigError: answered before torch is imported."""
    if not run.exists():
        near = suggest(run.name, [p.name for p in run.parent.glob("*") if p.is_dir()])
        raise ConfigError(f"There is no run folder {run}.{near}", "vitc train makes one in runs/.")
    missing = [name for name in ("config.json", "data.json") if not (run / name).exists()]
    if missing:
        raise ConfigError(
            f"{run} is not a run folder: it has no {' and no '.join(missing)}.",
            "Give the folder that vitc train named when it ended.",
        )


# -- predict ---------------------------------------------------------------------------------------


def _predict_options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run folder, or one of vitc save")
    add("paths", nargs="+", metavar="PATH", help="images, or folders of images")
    add("--topk", metavar="K", type=count, default=1, help="how many classes (default: 1)")
    add("--csv", metavar="FILE", type=Path, help="write a table to this file")
    weights_option(parser)
    add("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="default: auto")
    add("--json", action="store_true", help="one line of JSON per image")


def _predict(args: Namespace) -> int:
    from vitc.deploy.predict import Form, Predictor, find_images, report

    if args.json and args.csv is not None:
        raise ConfigError("--json and --csv exclude each other.", "Choose one form.")
    if not (args.run_folder / "model.safetensors").exists():  # else: of vitc save
        _check_run(args.run_folder)
    files = find_images(args.paths)
    predictor = Predictor(args.run_folder, args.device, args.weights)
    for text in predictor.notes:
        note(text)
    form: Form = "json" if args.json else "csv" if args.csv is not None else "table"
    with _output(args.csv) as stream:
        broken = report(predictor, files, args.topk, form, stream)
    for error in broken:
        note(f"broken: {error.message}")
    if args.csv is not None:
        say(f"{counted(len(files) - len(broken), 'image')} -> {args.csv}")
    if broken:
        note(f"{len(broken):,} of {counted(len(files), 'image')} could not be read.")
    return 1 if broken else 0


@contextlib.contextmanager
def _output(file: Path | None) -> Iterator[Any]:
    if file is None:
        yield sys.stdout
        return
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream


# -- show ------------------------------------------------------------------------------------------


def _show_options(parser: Parser) -> None:
    add = parser.add_argument
    add("what", nargs="?", metavar="MODEL|RECIPE|RUN", help="a name or a run folder")
    add("--list", action="store_true", help="every model and recipe")
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="RECIPE: lr over the run; RUN: curves; or the picture's file (.png ...)",
    )
    picture = parser.add_argument_group("pictures, one at a time, of a RUN or of a fresh MODEL")
    add = picture.add_argument
    add("--attention", metavar="IMAGE", type=Path, help="what a ViT's blocks attend to in an image")
    add("--block", metavar="N", type=int, help="with --attention: also block N's single heads")
    add("--positions", action="store_true", help="how alike a ViT's position embeddings are")
    add("--filters", action="store_true", help="the first convolution's filters")
    add("--features", metavar="IMAGE", type=Path, help="what the stem makes of an image")
    parser.add_argument("--json", action="store_true", help="the same as one line of JSON")


def _show(args: Namespace) -> int:
    from vitc.deploy import show
    from vitc.views.model import write

    if args.list == (args.what is not None):
        raise ConfigError("Show what? Give one model, recipe or run folder, or --list alone.")
    if args.list and args.plot is not None:
        raise ConfigError("--plot has no effect with --list.")
    picture = _picture(args)
    if args.list and picture is not None:
        raise ConfigError(f"--{picture.kind} has no effect with --list.")
    page = (
        show.list_page() if args.list else show.page(args.what, args.settings, args.plot, picture)
    )
    if args.json:
        say_json(page.values)
        return 0
    write(page, sys.stdout)
    return 0


def _picture(args: Namespace) -> Request | None:
    """The picture that the words ask for, if any."""
    kinds: tuple[Kind, ...] = ("attention", "positions", "filters", "features")
    asked = [kind for kind in kinds if getattr(args, kind) not in (None, False)]
    if len(asked) > 1:
        raise ConfigError(
            f"{' and '.join(f'--{kind}' for kind in asked)}: only one picture at a time.",
            "Call vitc show once for each.",
        )
    if args.block is not None and asked != ["attention"]:
        raise ConfigError("--block has no effect without --attention IMAGE.")
    if not asked:
        return None
    from vitc.deploy.pictures import Request

    image = getattr(args, asked[0])
    return Request(asked[0], image if isinstance(image, Path) else None, args.block)


# -- all of them -----------------------------------------------------------------------------------

VERBS: dict[str, Verb] = {
    "train": Verb(
        summary="Train a recipe, or a good first model for a folder of images; go on with a run.",
        usage="RECIPE|CONFIG.json|FOLDER|RUN [options] [--SETTING VALUE ...]",
        example="vitc train fashion_vit_c\n"
        "vitc train fashion_vit_c --optim sgd --optim.lr 0.1 --train.epochs 5 --out runs/mine\n"
        "vitc train ~/photos --budget 30m",
        options=_train_options,
        run=_train,
        runs=("what", "out"),
        takes_settings=True,
        more_help=_train_help,
        epilog="settings:\n"
        "  --model NAME, --data NAME|PATH, --optim NAME, --model.stem KIND choose a component;\n"
        "  --model.stem FILE.py:CLASS takes a stem of your own (docs/stems.md);\n"
        "  --init RUN|FILE|FOLDER|timm:NAME starts from weights; --train.freeze backbone: probe;\n"
        "  dotted ones set a detail: --train.epochs 20. In any order.\n"
        "  Every setting of a recipe with its value: vitc train RECIPE --help\n"
        "  All recipes and models: vitc show --list",
    ),
    "eval": Verb(
        summary="Measure a run's last checkpoint on validation or test images.",
        usage="RUN [DATA] [options]",
        example="vitc eval runs/fashion_vit_c --split test",
        options=_eval_options,
        run=_eval,
        runs=("run_folder",),
    ),
    "convert": CONVERT_VERB,
    "predict": Verb(
        summary="Name the class of images, with its probability.",
        usage="RUN PATH... [options]",
        example="vitc predict runs/fashion_vit_c photo.jpg more_photos/ --topk 3",
        options=_predict_options,
        run=_predict,
        runs=("run_folder",),
    ),
    "show": Verb(
        summary="Show what a model is made of, what a recipe does, or what a run came to.",
        usage="MODEL|RECIPE|RUN [options] [--SETTING VALUE ...] | --list",
        example="vitc show vit_c_4gf\nvitc show fashion_vit_c --optim sgd --plot lr.png\n"
        "vitc show runs/fashion_vit_c --attention photo.jpg --plot attention.png",
        options=_show_options,
        run=_show,
        runs=("what",),
        takes_settings=True,
    ),
    "report": REPORT_VERB,
    "bench": BENCH_VERB,
    **PUSH_VERBS,
}


# Verbs that are groups of verbs: their first word chooses one.
GROUPS: dict[str, dict[str, Verb]] = {"study": STUDY_VERBS | MEASURE_VERBS, "data": DATA_VERBS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default: sys.argv) and return its exit code; never exits by itself."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name need not be text
            stream.reconfigure(errors="backslashreplace")
    args = Namespace(verb=None, json="--json" in words, debug="--debug" in words, run_folder=None)
    try:
        code = _dispatch([word for word in words if word != "--debug"], args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, as in `vitc show --list | head`
        with contextlib.suppress(OSError):  # so that the flush at exit does not complain again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _report(InterruptedRun("Interrupted."), args)
    except Exception as error:
        # Ctrl-C in the middle of an import can come out as that import's failure.
        if not isinstance(error, VitcError) and _has_interrupt(error):
            error = InterruptedRun("Interrupted.")
        return _report(error, args)
    return code


def _has_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _dispatch(words: list[str], args: Namespace) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        say(f"vitc {__version__}")
        return 0
    name, *rest = words
    if name in GROUPS:
        if not rest or rest[0] in ("-h", "--help"):
            print(_group_help(name), file=sys.stdout if rest else sys.stderr)
            return 0 if rest else 2
        args.verb = name
        if rest[0] not in GROUPS[name]:
            raise unknown(f"{name} command", rest[0], GROUPS[name])
        verb = GROUPS[name][rest[0]]
        name, rest = f"{name} {rest[0]}", rest[1:]
    elif name in VERBS:
        verb = VERBS[name]
    else:
        raise unknown("command", name, [*VERBS, *GROUPS])
    args.verb = name
    parser = verb.parser(name)
    asked = [word for word in rest if word not in ("-h", "--help")]
    if asked != rest and (verb.more_help is None or not asked):
        print(parser.format_help(), end="")
        return 0
    args.settings, own = take_settings(asked) if verb.takes_settings else ({}, asked)
    parser.read(own, all_leaf_types() if verb.takes_settings else {}, args)
    if verb.runs and args.trust:
        _trust([getattr(args, name) for name in verb.runs])
    if asked != rest and verb.more_help is not None:
        verb.more_help(parser, args)
        return 0
    return verb.run(args)


def _trust(named: list[Any]) -> None:
    """--trust: admit the classes from outside that these folders and configs name, and say so."""
    from vitc.plugins import trust

    words = [w for value in named for w in (value if isinstance(value, list) else [value])]
    paths = [Path(w) for w in words if w is not None]
    files = ("config.json", "plan.json")
    paths = [p for p in paths if p.is_file() or any((p / name).is_file() for name in files)]
    trusted = [one for path in paths for one in trust(path)]
    for one in trusted:
        note(f"trusted: {one.source} (SHA-256 {one.sha256[:12]}...)")
    if not trusted:
        note("--trust has no effect: no stem or source from outside is named there.")


def _group_help(group: str) -> str:
    verbs = GROUPS[group]
    width = max(map(len, verbs))
    lines = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items())
    examples = "\n".join(indented(verb.example.splitlines()[0]) for verb in verbs.values())
    return (
        f"usage: vitc {group} COMMAND ...\n\ncommands:\n{lines}\n\nexamples:\n{examples}\n\n"
        f"'vitc {group} COMMAND --help' says more."
    )


def _overview() -> str:
    every = VERBS | {f"{g} {n}": verb for g, verbs in GROUPS.items() for n, verb in verbs.items()}
    width = max(map(len, every))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in every.items())
    examples = "\n".join(indented(verb.example.splitlines()[0]) for verb in every.values())
    return (
        "Vision Transformers that optimise as easily as CNNs.\n\n"
        f"usage: vitc COMMAND ...\n\ncommands:\n{verbs}\n\nexamples:\n{examples}\n\n"
        "'vitc COMMAND --help' says more; 'vitc --version' which version this is."
    )


def _report(error: Exception, args: Namespace) -> int:
    """Say an error, to people on stderr and under --json on stdout; return its exit code."""
    message, hint, code, status = _explained(error)
    if args.debug or (message is None):
        traceback.print_exception(error)
    if message is None:
        message, hint = f"{type(error).__name__}: {error}", "This is a fault of vitc, not yours."
    label = "" if isinstance(error, InterruptedRun) else "error: "
    lines = [f"{label}{message}", *([hint] if hint else [])]
    if isinstance(error, ConfigError):
        lines.append(f"Try 'vitc {args.verb} --help'." if args.verb else "Try 'vitc --help'.")
    with contextlib.suppress(OSError):  # a closed stderr is no reason for another exit code
        print("\n".join(lines), file=sys.stderr)
        if args.json:
            about = {"status": status, "error": message, "hint": hint}
            say_json(_last_summary(args, status) | about)
            sys.stdout.flush()
    return code


def _explained(error: Exception) -> tuple[str | None, str | None, int, str]:
    """(message, hint, exit code, status) of an error; no message where it is our own fault."""
    if isinstance(error, InterruptedRun):
        return error.message, error.hint, error.run_exit_code, "interrupted"
    if isinstance(error, VitcError):
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        return error.message, error.hint, error.exit_code, status
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}.", None, 1, "failed"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be imported here
        hint = "Lower --train.batch, or add --train.grad_checkpointing."
        return f"The device's memory is not enough: {error}", hint, 1, "failed"
    return None, None, 1, "failed"


def _last_summary(args: Namespace, status: str) -> dict[str, Any]:
    """What a run that started and then failed wrote about itself."""
    if args.verb != "train" or args.run_folder is None:
        return {}
    with contextlib.suppress(ConfigError):
        summary = read_json(args.run_folder / "summary.json")
        if summary.get("status") == status:
            return summary
    return {}
