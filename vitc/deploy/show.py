"""What is there to say about a model, a recipe or a run: as tables, as JSON, as a picture."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig, flat_values, read_config, resolve_config, to_dict
from vitc.errors import ConfigError, DataError, suggest
from vitc.files import read_json
from vitc.views.model import Page, Part, Table, Text
from vitc.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vitc.models.complexity import Complexity
    from vitc.models.config import ModelConfig
    from vitc.models.model_config import Reported

# -- what was asked for ----------------------------------------------------------------------------


def page(what: str, settings: Mapping[str, Any], plot: Path | None) -> Page:
    """The page of a recipe, a model, a run folder or a config file, under changed settings.

    `plot`: also draw a recipe's learning rate, or a run's curves, into that file. Raises
    ConfigError: an unknown name, with a suggestion; settings or a plot that have no effect here.
    """
    from vitc.deploy.save import is_pretrained
    from vitc.models.zoo import MODELS
    from vitc.plugins.consent import with_sources
    from vitc.recipes import RECIPES, recipe_doc

    if plot is not None:
        check_plot(plot)
    path = Path(what)
    if what in RECIPES:
        return _with_lr_plot(resolve_config(what, **settings), recipe_doc(what), plot)
    if what in MODELS or what.startswith(("timm:", "regnetz")):  # the last has its own reason
        if plot is not None:
            raise ConfigError("--plot has no effect with a model: give a recipe or a run.")
        return model_page(model_with(what, settings))
    if path.is_dir() and is_pretrained(path):
        return _saved_page(path)
    if path.is_dir() and (path / "config.json").exists():
        if settings:
            raise ConfigError(f"Settings have no effect on what {what} has run already.")
        with_sources(resolve_config(what).model, path)  # trusted, or refused
        return run_page(path, plot)
    if path.is_file():
        config = resolve_config(what, **settings)
        with_sources(config.model, path.parent)
        return _with_lr_plot(config, "", plot)
    near = suggest(what, [*RECIPES, *MODELS])
    what_is_it = "a folder, but not of a run" if path.is_dir() else "no model, recipe or run folder"
    raise ConfigError(f"{what} is {what_is_it}.{near}", "Models and recipes: vitc show --list")


def _saved_page(folder: Path) -> Page:
    """A folder of `save_pretrained`: the model, its classes and how its images are prepared."""
    from vitc.deploy.save import read_pretrained

    saved = read_pretrained(folder)
    shown = model_page(dataclasses.replace(saved.config, num_classes=saved.num_classes or None))
    about = {
        "classes": ", ".join(saved.classes) if saved.classes else "unknown",
        **(saved.preprocessing.to_dict() if saved.preprocessing else {"preprocessing": "unknown"}),
        **(saved.results or {}),
    }
    rows = [(name, _plain(value)) for name, value in about.items()]
    parts: list[Part] = [
        Table(f"The saved model {folder}", ("", "value"), rows),
        *shown.parts,
        Text(f"Use it: vitc predict {folder} IMAGE..."),
    ]
    return Page(str(folder), parts, {**shown.values, "saved": str(folder)})


def list_page() -> Page:
    """Every model and every recipe, with one line on each."""
    from vitc.models.config import ConvStemConfig, ViTConfig
    from vitc.models.zoo import MODELS, REPORTED
    from vitc.recipes import RECIPES, recipe_summary

    models, cnns = [], []
    for name, m in MODELS.items():
        if not isinstance(m, ViTConfig):
            cnns.append(_cnn_row(m, REPORTED[name]))
            continue
        stem = "conv" if isinstance(m.stem, ConvStemConfig) else "patchify"
        body = (str(m.depth), str(m.embed_dim), str(m.num_heads), str(m.img_size))
        reported = f"{REPORTED[name].gflops:g} G" if name in REPORTED else ""
        models.append((name, stem, *body, str(m.stem.reduction), reported))
    header = ("model", "stem", "blocks", "dim", "heads", "image", "patch", "paper's flops")
    recipes = [(name, recipe_summary(name)) for name in RECIPES]
    return Page(
        "Models and recipes",
        [
            Table("Models (vitc show MODEL)", header, models),
            Table(
                "CNNs the paper compares with; test: evaluation's shorter side before the crop",
                CNN_HEADER,
                cnns,
            ),
            Table("Recipes (vitc show RECIPE, vitc train RECIPE)", ("recipe", "what"), recipes),
        ],
        {"models": list(MODELS), "recipes": list(RECIPES)},
    )


CNN_HEADER = ("model", "stem", "stages", "widths", "image", "test", "paper's flops", "params")


def _cnn_row(m: ModelConfig, paper: Reported) -> tuple[str, ...]:
    from vitc.models.config import CNNConfig

    assert isinstance(m, CNNConfig)
    stages, widths = ("-".join(map(str, values)) for values in (m.depths, m.widths))
    return (
        m.name,
        m.stem_type,
        stages,
        widths,
        str(m.img_size),
        str(m.test_size),
        f"{paper.gflops:g} G",
        f"{paper.params_m:g} M",
    )


# -- a model ---------------------------------------------------------------------------------------


def model_with(name: str, settings: Mapping[str, Any]) -> ModelConfig:
    """The config of a named model under changed settings. Raises ConfigError: others than its."""
    from vitc.models.zoo import model_config

    foreign = [s for s in settings if not s.startswith("model.")]
    if foreign:
        raise ConfigError(f"--{foreign[0]} has no effect with a model: only --model.* has.")
    config = resolve_config(RunConfig(model=model_config(name)), **settings).model
    if config.problems():
        raise ConfigError("\n".join(config.problems()))
    return config


def model_page(config: ModelConfig) -> Page:
    """Its parts with their cost, beside what the paper reports, and how well it is matched."""
    import torch

    from vitc.models.complexity import Complexity, complexity, parts, twin_match
    from vitc.models.config import ViTConfig
    from vitc.models.zoo import (
        MODELS,
        REPORTED,
        REPORTED_GFLOPS,
        REPORTED_STEMS,
        SLIPS,
        build_model,
    )

    with torch.device("meta"):
        model = build_model(config)
    total, pieces = complexity(model), parts(model)
    counted = (total.flops, total.params, total.activations)
    rows = [
        (p.name, str(p.repeats), *map(_whole, (p.each.flops, p.each.params, p.each.activations)))
        for p in pieces
    ]
    rows.append(("total", "", *map(_whole, counted)))
    values: dict[str, Any] = {
        "model": config.name,
        "settings": to_dict(config),
        **dict(zip(("flops", "params", "activations"), counted, strict=True)),
        "parts": [
            {
                "name": p.name,
                "repeats": p.repeats,
                "flops": p.each.flops,
                "params": p.each.params,
                "activations": p.each.activations,
            }
            for p in pieces
        ],
    }
    header = ("part", "times", "flops", "params", "activations")
    classes = 1000 if config.num_classes is None else config.num_classes
    size = f"{config.size[0]}x{config.size[1]}"
    shown: list[Part] = [
        Text(
            f"{config.name}: {config.summary}, "
            f"on {size} images with {config.in_chans} channels and {classes:,} classes"
        ),
        Table("Cost of one image; flops are multiply-adds, a part's cost is each", header, rows),
    ]
    as_in_paper = config == MODELS.get(config.name)
    stem = Complexity()
    if isinstance(config, ViTConfig):
        costs = {p.name.partition(".")[0]: p.each for p in pieces}
        stem = costs.get("stem", stem)
        values["stem_over_block"] = stem.flops / costs["blocks"].flops
    if as_in_paper and config.name in REPORTED:
        values["reported"] = _printed(REPORTED[config.name])
        table = 1 if isinstance(config, ViTConfig) else 2
        shown.append(_compared(f"Beside the paper's Table {table}", total, REPORTED[config.name]))
    if as_in_paper and config.name in REPORTED_STEMS:
        values["reported_stem"] = _printed(REPORTED_STEMS[config.name])
        shown.append(
            _compared("The stem beside the paper's Table 3", stem, REPORTED_STEMS[config.name])
        )
    if as_in_paper and config.name in REPORTED_GFLOPS:
        at_sizes = REPORTED_GFLOPS[config.name]
        flops = {size: complexity(model, size).flops for size in at_sizes}
        values["flops_at"] = {str(size): count for size, count in flops.items()}
        values["reported_flops_at"] = {str(size): g * 1e9 for size, g in at_sizes.items()}
        shown.append(
            Table(
                "Flops beside the paper's appendix C",
                ("image", "counted", "reported", "difference"),
                [(str(s), *_beside(flops[s], g * 1e9, 1e9, "G")) for s, g in at_sizes.items()],
            )
        )
    if as_in_paper and config.name in SLIPS:
        values["slip"] = SLIPS[config.name]
        shown.append(Text(SLIPS[config.name]))
    match = twin_match(config.name) if as_in_paper else None
    if match is not None:
        values |= {"twin": match.twin, "flops_mismatch": match.flops_mismatch}
    if "stem_over_block" in values:
        whole = (
            ""
            if match is None
            else (f"; the whole {100 * match.flops_mismatch:+.1f} % of the flops of {match.twin}")
        )
        shown.append(Text(f"Its stem costs {values['stem_over_block']:.2f} of one block{whole}."))
    return Page(config.name, shown, values)


def _printed(paper: Reported) -> dict[str, float]:
    return {
        "flops": paper.gflops * 1e9,
        "params": paper.params_m * 1e6,
        "activations": paper.activations_m * 1e6,
    }


def _compared(title: str, counted: Complexity, paper: Reported) -> Table:
    rows = []
    for name, printed in _printed(paper).items():
        unit, sign = (1e9, "G") if printed >= 1e9 else (1e6, "M")
        rows.append((name, *_beside(getattr(counted, name), printed, unit, sign)))
    return Table(title, ("", "counted", "reported", "difference"), rows)


def _beside(ours: float, theirs: float, unit: float, sign: str) -> tuple[str, str, str]:
    difference = f"{100 * (ours / theirs - 1):+.1f} %"
    return f"{ours / unit:.2f} {sign}", f"{theirs / unit:g} {sign}", difference


def _whole(number: float) -> str:
    return f"{number:,}"


# -- a recipe or config ----------------------------------------------------------------------------


def config_page(config: RunConfig, doc: str = "") -> Page:
    """What the run is, its schedule in numbers, and every setting."""
    schedule = schedule_numbers(config)
    rows = [(name, _plain(value)) for name, value in flat_values(to_dict(config)).items()]
    problems = config.problems()
    if schedule["train_images"] is not None and schedule["steps_per_epoch"] is None:
        problems.append(
            f"train.batch {config.train.batch} exceeds the {schedule['train_images']} "
            "training images."
        )
    parts: list[Part] = [
        *([Text(doc)] if doc else []),
        Table("Schedule", ("", "value", "why"), _schedule_rows(config, schedule)),
        Table("Settings (their meaning: vitc train RECIPE --help)", ("setting", "value"), rows),
    ]
    if problems:
        parts.append(Text("It cannot run yet:\n" + "\n".join(f"  {p}" for p in problems)))
    values = {
        "recipe": config.name,
        "settings": to_dict(config),
        "schedule": schedule,
        "problems": problems,
    }
    return Page(config.name, parts, values)


def schedule_numbers(config: RunConfig) -> dict[str, Any]:
    """The schedule as numbers; steps only where the training images can be counted."""
    from vitc.optim.schedule import lr_at, warmup_epochs, warmup_steps

    t, optim = config.train, config.optim
    images = count_images(config)
    peak = optim.peak_lr(t.batch)
    steps = None if images is None else images // t.batch or None
    grain = steps or 1000  # the curve over epochs is the same whatever an epoch has of steps
    lr = functools.partial(
        lr_at, peak=peak, schedule=optim.schedule, epochs=t.epochs, steps_per_epoch=grain
    )
    warm = warmup_epochs(optim.schedule, t.epochs)
    return {
        "train_images": images,
        "batch": t.batch,
        "micro_batch": t.micro,
        "epochs": t.epochs,
        "steps_per_epoch": steps,
        "total_steps": None if steps is None else steps * t.epochs,
        "warmup_epochs": warm,
        "warmup_steps": None if steps is None else warmup_steps(optim.schedule, t.epochs, steps),
        "first_lr": lr(0),
        "peak_lr": peak,
        "last_lr": None if steps is None else lr(steps * t.epochs - 1),
        "ema_horizon_steps": _horizon(config, steps),
        "ema_horizon_epochs": _horizon_epochs(config, steps),
    }


def _horizon(config: RunConfig, steps: int | None, unit: float = 1.0) -> float | None:
    from vitc.optim.schedule import horizon_steps

    ema, t = config.optim.ema, config.train
    if steps is None or ema.kind == "none":
        return None
    return unit * horizon_steps(ema, epochs=t.epochs, steps_per_epoch=steps, batch=t.batch)


def _horizon_epochs(config: RunConfig, steps: int | None) -> float | None:
    """pycls's formula has a horizon in steps, so in epochs only where those are known."""
    if steps is None and config.optim.ema.kind == "pycls":
        return None
    grain = steps or 1000
    return _horizon(config, grain, 1 / grain)


def count_images(config: RunConfig) -> int | None:
    """How many images the run trains on; None where they are not at hand."""
    from vitc.data.dataset import open_data

    try:
        return len(open_data(config.data, config.model.in_chans).splits["train"])
    except (ConfigError, DataError, OSError):
        return None


def _several(number: str, noun: str) -> str:
    """`1 epoch`, `0.5 epochs`: of a number as it is printed."""
    return f"{number} {noun}{'s' * (number != '1')}"


def _schedule_rows(config: RunConfig, s: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    t, optim = config.train, config.optim
    known = s["steps_per_epoch"] is not None
    micros = t.batch // t.micro
    lr_why = (
        "absolute"
        if optim.lr_per_batch is None
        else f"{optim.lr:g} per {optim.lr_per_batch} images x batch {t.batch}"
    )
    given = optim.schedule.warmup_epochs is not None
    rows = [
        (
            "training images",
            "?" if s["train_images"] is None else f"{s['train_images']:,}",
            "the data is not at hand: no steps below" if s["train_images"] is None else "",
        ),
        (
            "step",
            counted(t.batch, "image"),
            f"{micros} micro-batches of {t.micro}" if micros > 1 else "",
        ),
        (
            "epochs",
            f"{t.epochs}",
            f"of {counted(s['steps_per_epoch'], 'step')}" if known else "",
        ),
        ("steps", f"{s['total_steps']:,}" if known else "?", ""),
        (
            "warm-up",
            _several(f"{s['warmup_epochs']:g}", "epoch")
            + (f", {counted(s['warmup_steps'], 'step')}" if known else ""),
            "as set" if given else "the smaller of 5 epochs and 10 %",
        ),
        ("lr, first", f"{s['first_lr']:.3g}", ""),
        ("lr, peak", f"{s['peak_lr']:.4g}", lr_why),
        (
            "lr, last",
            f"{s['last_lr']:.3g}" if known else "?",
            f"half a cosine, every {optim.schedule.per}",
        ),
        ("weight decay", f"{optim.weight_decay:g}", "not on norm gains and biases"),
    ]
    if s["ema_horizon_epochs"] is not None:
        epochs = _several(f"{s['ema_horizon_epochs']:.3g}", "epoch")
        steps = ", " + _several(f"{s['ema_horizon_steps']:,.0f}", "step") if known else ""
        rows.append(
            (
                "EMA reaches back",
                f"{epochs}{steps}",
                f"{100 * s['ema_horizon_epochs'] / t.epochs:.3g} % of the run",
            )
        )
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v not in (None, []))
    number = isinstance(value, float) and math.isfinite(value)
    return f"{value:g}" if number else str(value).replace("\n", " ")


# -- a run -----------------------------------------------------------------------------------------


def run_page(run: Path, plot: Path | None = None) -> Page:
    """What a run is, how far it came and with what result."""
    from vitc.models.config import CustomStemConfig
    from vitc.runs.folder import DATA, Run

    config = read_config(run)
    classes = read_json(run / DATA).get("classes") if (run / DATA).exists() else None
    few = isinstance(classes, list) and not _tells_top5(len(classes))
    summary, metrics = Run(run).summary, Run(run).metrics()
    evals = [m for m in metrics if m["kind"] == "eval"]
    step = metrics[-1]["step"] if metrics else 0
    status = summary["status"] if summary else "unfinished"
    rows = [
        ("status", f"{status}, at step {summary['step'] if summary else step}"),
        ("model", config.model.name),
        ("data", config.data.path or config.data.source),
        ("optimizer", f"{to_dict(config)['optim']['kind']}, lr {config.optim.lr:g}"),
        ("epochs", str(config.train.epochs)),
    ]
    stem = getattr(config.model, "stem", None)
    if isinstance(stem, CustomStemConfig):
        rows.insert(2, ("stem", stem.source))
    left_out = ["status", "step", "epochs", "run", *(["top5"] if few else [])]
    rows += [(k, _plain(v)) for k, v in summary.items() if k not in left_out]
    parts: list[Part] = [Table(f"{run}", ("", "value"), rows)]
    if evals:
        measures = ("top1", "top1_raw", *(() if few else ("top5",)), "loss")
        header = ("epoch", "step", *(m.replace("_", " ") for m in measures))
        parts.append(Table("Validation", header, [_eval_row(e, measures) for e in evals[-10:]]))
    if status != "done":
        parts.append(Text(f"Resume it: vitc train {run}"))
    if plot is not None:
        draw_run(metrics, plot, str(run))
        parts.append(Text(f"Curves: {plot}"))
    values = {
        "run": str(run),
        "status": status,
        "step": step,
        "settings": to_dict(config),
        "summary": summary or None,
        "evals": evals,
    }
    return Page(str(run), parts, values)


def _tells_top5(classes: int) -> bool:
    """Whether the top-5 accuracy tells anything: of five classes or fewer it is always 100 %."""
    return classes > 5


def _eval_row(line: Mapping[str, Any], measures: Sequence[str]) -> tuple[str, ...]:
    cells = [
        "" if line.get(m) is None else f"{line[m]:.3f}" if m == "loss" else f"{line[m]:.2f}"
        for m in measures
    ]
    return (str(line.get("epoch", "")), f"{line['step']:,}", *cells)


# -- pictures --------------------------------------------------------------------------------------


def check_plot(file: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.removeprefix(".").lower() not in known:
        raise ConfigError(
            f"--plot {file} does not end in a picture's suffix.", f"Known: {', '.join(known)}."
        )
    if not file.parent.is_dir():
        raise ConfigError(f"--plot {file}: there is no folder {file.parent}.")


def _with_lr_plot(config: RunConfig, doc: str, plot: Path | None) -> Page:
    shown = config_page(config, doc)
    if plot is None:
        return shown
    draw_lr(config, shown.values["schedule"], plot)
    parts = [*shown.parts, Text(f"Learning rate: {plot}")]
    return Page(shown.title, parts, {**shown.values, "plot": str(plot)})


def draw_lr(config: RunConfig, schedule: Mapping[str, Any], file: Path) -> None:
    """The learning rate over the epochs of a run, as the loop will set it."""
    from vitc.optim.schedule import lr_at

    t = config.train
    steps = schedule["steps_per_epoch"] or 1000
    stride = max(1, steps * t.epochs // 4000)
    at = range(0, steps * t.epochs, stride)
    lr = [
        lr_at(
            step,
            peak=schedule["peak_lr"],
            schedule=config.optim.schedule,
            epochs=t.epochs,
            steps_per_epoch=steps,
        )
        for step in at
    ]

    def draw(axes: Sequence[Axes]) -> None:
        axes[0].plot([step / steps for step in at], lr)
        axes[0].set(xlabel="epoch", ylabel="learning rate", title=config.name)

    _draw(file, 1, draw)


def draw_run(metrics: Sequence[Mapping[str, Any]], file: Path, title: str) -> None:
    """Training loss and validation accuracy over the epochs of a run."""
    train = [m for m in metrics if m["kind"] == "train" and m.get("loss") is not None]
    evals = [m for m in metrics if m["kind"] == "eval"]

    def draw(axes: Sequence[Axes]) -> None:
        axes[0].plot([m["epoch"] for m in train], [m["loss"] for m in train])
        axes[0].set(xlabel="epoch", ylabel="training loss", title=title)
        for key, label in (("top1", "EMA"), ("top1_raw", "raw")):
            known = [m for m in evals if m.get(key) is not None]
            axes[1].plot([m["epoch"] for m in known], [m[key] for m in known], "o-", label=label)
        axes[1].set(xlabel="epoch", ylabel="validation top-1, %")
        axes[1].legend()

    _draw(file, 2, draw)


def _draw(file: Path, columns: int, draw: Callable[[Sequence[Axes]], None]) -> None:
    """One row of axes into a file, without a window system and without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 3.5), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
    draw(list(axes))
    figure.savefig(file, dpi=150)
