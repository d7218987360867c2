"""What is known of a model, recipe, run or saved model: as tables, values and curves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig, flat_values, to_dict
from vitc.deploy.show_run import curves, plain, run_page
from vitc.errors import ConfigError, DataError, refuse
from vitc.models import zoo
from vitc.models.config import CNNConfig, ModelConfig, ViTConfig
from vitc.models.stem_config import STEM_KINDS
from vitc.optim.config import horizon_steps
from vitc.plugins.consent import customs, with_sources
from vitc.recipes import RECIPES
from vitc.resolve import check_is, resolve_config, what_is
from vitc.runs.folder import Run
from vitc.runs.legs import lr_at
from vitc.views.model import Chart, Line, Page, Part, Table, Text
from vitc.wording import counted

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity
    from vitc.models.zoo import Reported

UNKNOWN_STEPS = 1000  # an epoch, where images cannot be counted: over epochs curves look the same
MOST_POINTS = 4000  # of a curve
COSTS = ("flops", "params", "activations")


def page(what: str, settings: Mapping[str, Any], plot: Path | None) -> Page:
    """The page of a recipe, a model, a run folder or a config file, under changed settings.

    `plot`: also draw a recipe's learning rate, or a run's curves, into that file. Raises
    ConfigError: an unknown name, with a suggestion; settings or a plot that have no effect here.
    """
    if plot is not None:
        check_plot(plot)
    kind = what_is(what)
    named = kind in ("model", "timm", "torchvision")
    if named or what.startswith("regnetz"):  # the last has its own reason
        if plot is not None:
            raise ConfigError("--plot has no effect with a model: give a recipe or a run.")
        return model_page(model_with(what, settings))
    check_is(what, "recipe", "run", "saved", "config", known=[*RECIPES, *zoo.MODELS])
    path = Path(what)
    if kind == "saved":
        return _saved_page(path)
    if kind == "run":
        if settings:
            raise ConfigError(f"Settings have no effect on {what}: it is trained already.")
        with_sources(resolve_config(what).model, path)  # trusted, or refused
        shown = run_page(path)
        if plot is None:
            return shown
        _draw(curves(str(path), Run(path).metrics()), plot)
        return replace(shown, parts=[*shown.parts, Text(f"Curves: {plot}")])
    config = resolve_config(what, **settings)
    if kind == "config":
        with_sources(config.model, path.parent)
    shown = _with_groups(config_page(config, RECIPES[what].doc if kind == "recipe" else ""), config)
    if plot is None:
        return shown
    _draw([_lr_chart(config, shown.values["schedule"]["steps_per_epoch"])], plot)
    parts = [*shown.parts, Text(f"Learning rate: {plot}")]
    return Page(shown.title, parts, {**shown.values, "plot": str(plot)})


def check_plot(file: Path) -> None:
    """Raises ConfigError: matplotlib writes no such file, or its folder does not exist."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.removeprefix(".").lower() not in known:
        raise ConfigError(
            f"--plot {file} does not end in a picture's suffix.", f"Known: {', '.join(known)}."
        )
    if not file.parent.is_dir():
        raise ConfigError(f"--plot {file}: there is no folder {file.parent}.")


def _draw(charts: Sequence[Chart], file: Path) -> None:
    from vitc.views import figures  # late: matplotlib takes its time

    figures.draw(charts, titled=True).savefig(file, dpi=200)


def _saved_page(folder: Path) -> Page:
    """A folder of `save_pretrained`: the model, its classes and its preprocessing."""
    from vitc.deploy.saved import read_pretrained

    saved = read_pretrained(folder)
    shown = model_page(replace(saved.config, num_classes=saved.num_classes or None))
    about = {
        "classes": ", ".join(saved.classes) if saved.classes else "unknown",
        **(saved.preprocessing.to_dict() if saved.preprocessing else {"preprocessing": "unknown"}),
        **(saved.results or {}),
    }
    rows = [(name, plain(value)) for name, value in about.items()]
    parts: list[Part] = [
        Table(f"The saved model {folder}", ("", "value"), rows),
        *shown.parts,
        Text(f"Use it: vitc predict {shlex.quote(str(folder))} IMAGE..."),
    ]
    return Page(str(folder), parts, {**shown.values, "saved": str(folder)})


# -- the list --------------------------------------------------------------------------------------


def list_page() -> Page:
    """All models and recipes, one line each."""
    vits, cnns = [], []
    for name, m in zoo.MODELS.items():
        paper = zoo.REPORTED.get(name)
        flops = f"{paper.gflops:g} G" if paper else ""
        if isinstance(m, ViTConfig):
            stem = next(kind for kind, cls in STEM_KINDS.items() if type(m.stem) is cls)
            numbers = m.depth, m.embed_dim, m.num_heads, m.img_size, m.stem.reduction
            vits.append((name, stem, *map(str, numbers), flops))
        elif isinstance(m, CNNConfig):
            stages, widths = ("-".join(map(str, values)) for values in (m.depths, m.widths))
            sizes = str(m.img_size), str(m.test_size)
            params = f"{paper.params_m:g} M" if paper else ""
            cnns.append((name, m.stem_type, stages, widths, *sizes, flops, params))
    recipes = [(name, recipe.summary) for name, recipe in RECIPES.items()]
    vit_head = ("model", "stem", "blocks", "dim", "heads", "image", "patch", "paper's flops")
    cnn_head = ("model", "stem", "stages", "widths", "image", "test", "paper's flops", "params")
    cnn_title = "CNNs, most of them compared in the paper; test: evaluation's side before the crop"
    parts = [
        Table("Models (vitc show MODEL)", vit_head, vits),
        Table(cnn_title, cnn_head, cnns),
        Table("Recipes (vitc show RECIPE, vitc train RECIPE)", ("recipe", "what"), recipes),
    ]
    return Page("Models and recipes", parts, {"models": list(zoo.MODELS), "recipes": list(RECIPES)})


# -- a recipe or config ----------------------------------------------------------------------------


def config_page(config: RunConfig, doc: str = "") -> Page:
    """What the run is, its schedule in numbers, and every setting."""
    schedule = schedule_numbers(config)
    rows = [(name, plain(value)) for name, value in flat_values(to_dict(config)).items()]
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


def _lr_chart(config: RunConfig, steps_per_epoch: int | None) -> Chart:
    """The learning rate over the epochs of a run."""
    steps = steps_per_epoch or UNKNOWN_STEPS
    total = steps * config.train.epochs
    at = range(0, total, max(1, total // MOST_POINTS))
    lr = [lr_at(config, (), step, steps) for step in at]
    line = Line("", 0, [step / steps for step in at], lr, form="curve")
    return Chart("lr", config.name, "epoch", "learning rate", [line])


def group_numbers(config: RunConfig) -> list[dict[str, Any]]:
    """Peak lr and weight decay of each group of the optimizer; empty for a custom model, which is
    built in training alone. Raises ConfigError: the model cannot be built or trained so."""
    if any(customs(config.model)):
        return []
    import torch

    from vitc.optim.groups import parameter_groups
    from vitc.training.build import freeze

    with torch.device("meta"):
        model = zoo.build_model(config.model)
    freeze(model, config.train.freeze)
    optim, peak = config.optim, config.optim.peak_lr(config.train.batch)
    return [
        {
            "parameters": group["name"],
            "tensors": len(group["params"]),
            "numbers": sum(p.numel() for p in group["params"]),
            "peak_lr": peak * group.get("lr_scale", 1.0),
            "weight_decay": group["weight_decay"],
        }
        for group in parameter_groups(optim, model)
        if group["params"]
    ]


def _with_groups(shown: Page, config: RunConfig) -> Page:
    """The page with the groups of the optimizer after the schedule, or why there are none."""
    try:
        groups = group_numbers(config)
    except ConfigError as error:
        problems = shown.values["problems"]
        values = {**shown.values, "groups": [], "problems": [*problems, error.message]}
        new = [] if error.message in problems else [Text(f"It cannot run yet: {error.message}")]
        return Page(shown.title, [*shown.parts, *new], values)
    parts = list(shown.parts)
    after = next(i for i, part in enumerate(parts) if isinstance(part, Table)) + 1
    parts[after:after] = [_group_table(groups)] if groups else []
    return Page(shown.title, parts, {**shown.values, "groups": groups})


def _group_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    head = ("parameters", "tensors", "numbers", "lr, peak", "weight decay")
    rows = [
        (g["parameters"], str(g["tensors"]), f"{g['numbers']:,}", *map(plain, list(g.values())[3:]))
        for g in groups
    ]
    return Table("Groups of the optimizer", head, rows)


def count_images(config: RunConfig) -> int | None:
    """How many images the run trains on; None where they are not at hand."""
    from vitc.data.dataset import open_data

    try:
        return len(open_data(config.data, config.model.in_chans).splits["train"])
    except (ConfigError, DataError, OSError):
        return None


def schedule_numbers(config: RunConfig) -> dict[str, Any]:
    """The schedule as numbers; steps only where the training images can be counted."""
    t, optim = config.train, config.optim
    images = count_images(config)
    steps = None if images is None else images // t.batch or None
    grain = steps or UNKNOWN_STEPS
    horizon = None
    if optim.ema.kind != "none":
        horizon = horizon_steps(optim.ema, epochs=t.epochs, steps_per_epoch=grain, batch=t.batch)
    # pycls's formula has a horizon in steps, so in epochs only where those are known
    in_epochs = horizon is not None and (steps is not None or optim.ema.kind != "pycls")
    return {
        "train_images": images,
        "batch": t.batch,
        "micro_batch": t.micro,
        "epochs": t.epochs,
        "steps_per_epoch": steps,
        "total_steps": steps and steps * t.epochs,
        "warmup_epochs": optim.schedule.warmup(t.epochs),
        "warmup_steps": steps and optim.schedule.warmup_steps(t.epochs, steps),
        "first_lr": lr_at(config, (), 0, grain),
        "peak_lr": optim.peak_lr(t.batch),
        "last_lr": steps and lr_at(config, (), steps * t.epochs - 1, steps),
        "ema_horizon_steps": steps and horizon,
        "ema_horizon_epochs": horizon * (1 / grain) if in_epochs and horizon is not None else None,
    }


def _schedule_rows(config: RunConfig, s: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    t, optim, images = config.train, config.optim, s["train_images"]
    known, micros = s["steps_per_epoch"] is not None, t.batch // t.micro
    count = ("?", "the images are not here: steps are unknown")
    if images is not None:
        count = (f"{images:,}", "")
    warmup = _several(f"{s['warmup_epochs']:g}", "epoch")
    steps, last, per_epoch = "?", "?", ""
    if known:
        steps, last = f"{s['total_steps']:,}", f"{s['last_lr']:.3g}"
        warmup += f", {counted(s['warmup_steps'], 'step')}"
        per_epoch = f"of {counted(s['steps_per_epoch'], 'step')}"
    default_warmup = getattr(optim.schedule, "warmup_epochs", 0) is None
    peak = "absolute"
    if optim.lr_per_batch is not None:
        peak = f"{optim.lr:g} per {optim.lr_per_batch} images x batch {t.batch}"
    parts = f"{micros} micro-batches of {t.micro}" if micros > 1 else ""
    rows = [
        ("training images", *count),
        ("step", counted(t.batch, "image"), parts),
        ("epochs", str(t.epochs), per_epoch),
        ("steps", steps, ""),
        ("warm-up", warmup, "the smaller of 5 epochs and 10 %" if default_warmup else "set"),
        ("lr, first", f"{s['first_lr']:.3g}", ""),
        ("lr, peak", f"{s['peak_lr']:.4g}", peak),
        ("lr, last", last, optim.schedule.summary),
        ("weight decay", f"{optim.weight_decay:g}", "not on norm gains and biases"),
    ]
    epochs = s["ema_horizon_epochs"]
    if epochs is not None:
        horizon = _several(f"{epochs:.3g}", "epoch")
        if known:
            horizon += ", " + _several(f"{s['ema_horizon_steps']:,.0f}", "step")
        rows.append(("EMA horizon", horizon, f"{100 * epochs / t.epochs:.3g} % of the run"))
    if optim.schedule_free:
        rows.append(("average", optim.average, "the optimizer's own, evaluated and deployed"))
    return rows


def _several(number: str, noun: str) -> str:
    """`1 epoch`, `0.5 epochs`: for a formatted number."""
    return f"{number} {noun}{'s' * (number != '1')}"


# -- a model ---------------------------------------------------------------------------------------


def model_with(name: str, settings: Mapping[str, Any]) -> ModelConfig:
    """The config of a named model under changed settings. Raises ConfigError: others than its."""
    foreign = [s for s in settings if not s.startswith("model.")]
    if foreign:
        raise ConfigError(f"--{foreign[0]} has no effect with a model: only --model.* has.")
    config = resolve_config(RunConfig(model=zoo.model_config(name)), **settings).model
    refuse(config.problems())
    return config


def model_page(config: ModelConfig) -> Page:
    """A model's parts with their cost, and, if it is one of the paper's, what the paper reports."""
    import torch

    from vitc.models.complexity import complexity, parts

    with torch.device("meta"):
        model = zoo.build_model(config)
    total, pieces = complexity(model), parts(model)
    costs = [(p.name, str(p.repeats), p.each) for p in pieces] + [("total", "", total)]
    rows = [(name, times, *(f"{getattr(c, k):,}" for k in COSTS)) for name, times, c in costs]
    values: dict[str, Any] = {
        "model": config.name,
        "settings": to_dict(config),
        **{k: getattr(total, k) for k in COSTS},
        "parts": [{"name": p.name, "repeats": p.repeats, **asdict(p.each)} for p in pieces],
    }
    about = (
        f"{config.name}: {config.summary}, on {config.size[0]}x{config.size[1]} images with "
        f"{config.in_chans} channels and {config.head_classes:,} classes"
    )
    title = "Cost of one image; flops are multiply-adds, a part's cost is each"
    shown: list[Part] = [Text(about), Table(title, ("part", "times", *COSTS), rows)]
    stem = None
    if isinstance(config, ViTConfig):
        by_name = {p.name.partition(".")[0]: p.each for p in pieces}
        stem = by_name.get("stem")
        flops = 0 if stem is None else stem.flops
        values["stem_over_block"] = flops / by_name["blocks"].flops
    whole = ""
    if config == zoo.MODELS.get(config.name):
        whole = _compare_with_paper(config, model, total, stem, shown, values)
    if "stem_over_block" in values:
        shown.append(Text(f"Its stem costs {values['stem_over_block']:.2f} of one block{whole}."))
    return Page(config.name, shown, values)


def _compare_with_paper(
    config: ModelConfig,
    model: Any,
    total: Complexity,
    stem: Complexity | None,
    shown: list[Part],
    values: dict[str, Any],
) -> str:
    """Add what the paper reports of its model; returns how well it matches its twin's flops."""
    from vitc.models.complexity import complexity, twin_match

    name = config.name
    if name in zoo.REPORTED:
        values["reported"] = _printed(zoo.REPORTED[name])
        table = 1 if isinstance(config, ViTConfig) else 2
        shown.append(
            _compared(f"Compared with the paper's Table {table}", total, zoo.REPORTED[name])
        )
    if name in zoo.REPORTED_STEMS and stem is not None:
        values["reported_stem"] = _printed(zoo.REPORTED_STEMS[name])
        title = "The stem compared with the paper's Table 3"
        shown.append(_compared(title, stem, zoo.REPORTED_STEMS[name]))
    if name in zoo.REPORTED_GFLOPS:
        reported = {size: g * 1e9 for size, g in zoo.REPORTED_GFLOPS[name].items()}
        flops = {size: complexity(model, size).flops for size in reported}
        values["flops_at"] = {str(size): count for size, count in flops.items()}
        values["reported_flops_at"] = {str(size): count for size, count in reported.items()}
        rows = [(str(s), *_difference(flops[s], r, 1e9, "G")) for s, r in reported.items()]
        head = ("image", "counted", "reported", "difference")
        shown.append(Table("Flops compared with the paper's appendix C", head, rows))
    if name in zoo.SLIPS:
        values["slip"] = zoo.SLIPS[name]
        shown.append(Text(zoo.SLIPS[name]))
    match = twin_match(name)
    if match is None:
        return ""
    values |= {"twin": match.twin, "flops_mismatch": match.flops_mismatch}
    return f"; the whole {100 * match.flops_mismatch:+.1f} % of the flops of {match.twin}"


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
        rows.append((name, *_difference(getattr(counted, name), printed, unit, sign)))
    return Table(title, ("", "counted", "reported", "difference"), rows)


def _difference(ours: float, theirs: float, unit: float, sign: str) -> tuple[str, str, str]:
    percent = f"{100 * (ours / theirs - 1):+.1f} %"
    return f"{ours / unit:.2f} {sign}", f"{theirs / unit:g} {sign}", percent
