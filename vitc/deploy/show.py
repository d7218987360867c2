"""What is known of a model, recipe, run or saved model: as tables, values and curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitc.config import RunConfig, read_config, to_dict
from vitc.deploy.show_config import config_page, lr_chart, plain
from vitc.errors import ConfigError
from vitc.files import read_json
from vitc.models.config import CNNConfig, ViTConfig
from vitc.models.stem_config import ConvStemConfig, CustomStemConfig
from vitc.resolve import check_is, resolve_config, what_is
from vitc.views.model import Chart, Line, Page, Part, Table, Text

LATEST = 10  # evaluations of a run that are listed


def page(what: str, settings: Mapping[str, Any], plot: Path | None) -> Page:
    """The page of a recipe, a model, a run folder or a config file, under changed settings.

    `plot`: also draw a recipe's learning rate, or a run's curves, into that file. Raises
    ConfigError: an unknown name, with a suggestion; settings or a plot that have no effect here.
    """
    from vitc.deploy.show_model import model_page, model_with
    from vitc.models.zoo import MODELS
    from vitc.plugins.consent import with_sources
    from vitc.recipes import RECIPES, recipe_doc

    if plot is not None:
        check_plot(plot)
    kind = what_is(what)
    if kind in ("model", "timm") or what.startswith("regnetz"):  # the last has its own reason
        if plot is not None:
            raise ConfigError("--plot has no effect with a model: give a recipe or a run.")
        return model_page(model_with(what, settings))
    check_is(what, "recipe", "run", "saved", "config", known=[*RECIPES, *MODELS])
    if kind == "recipe":
        return _recipe_page(resolve_config(what, **settings), recipe_doc(what), plot)
    path = Path(what)
    if kind == "saved":
        return _saved_page(path)
    if kind == "run":
        if settings:
            raise ConfigError(f"Settings have no effect on {what}: it is trained already.")
        with_sources(resolve_config(what).model, path)  # trusted, or refused
        return run_page(path, plot)
    config = resolve_config(what, **settings)
    with_sources(config.model, path.parent)
    return _recipe_page(config, "", plot)


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


def _recipe_page(config: RunConfig, doc: str, plot: Path | None) -> Page:
    from vitc.views import figures

    shown = config_page(config, doc)
    if plot is None:
        return shown
    chart = lr_chart(config, shown.values["schedule"]["steps_per_epoch"])
    figures.save_row([chart], plot)
    parts = [*shown.parts, Text(f"Learning rate: {plot}")]
    return Page(shown.title, parts, {**shown.values, "plot": str(plot)})


def _saved_page(folder: Path) -> Page:
    """A folder of `save_pretrained`: the model, its classes and its preprocessing."""
    from vitc.deploy.saved import read_pretrained
    from vitc.deploy.show_model import model_page

    saved = read_pretrained(folder)
    shown = model_page(dataclasses.replace(saved.config, num_classes=saved.num_classes or None))
    about = {
        "classes": ", ".join(saved.classes) if saved.classes else "unknown",
        **(saved.preprocessing.to_dict() if saved.preprocessing else {"preprocessing": "unknown"}),
        **(saved.results or {}),
    }
    rows = [(name, plain(value)) for name, value in about.items()]
    parts: list[Part] = [
        Table(f"The saved model {folder}", ("", "value"), rows),
        *shown.parts,
        Text(f"Use it: vitc predict {folder} IMAGE..."),
    ]
    return Page(str(folder), parts, {**shown.values, "saved": str(folder)})


# -- the list --------------------------------------------------------------------------------------


def list_page() -> Page:
    """All models and recipes, one line each."""
    from vitc.models.zoo import MODELS, REPORTED
    from vitc.recipes import RECIPES, recipe_summary

    vits, cnns = [], []
    for name, m in MODELS.items():
        paper = REPORTED.get(name)
        flops = f"{paper.gflops:g} G" if paper else ""
        if isinstance(m, ViTConfig):
            stem = "conv" if isinstance(m.stem, ConvStemConfig) else "patchify"
            numbers = m.depth, m.embed_dim, m.num_heads, m.img_size, m.stem.reduction
            vits.append((name, stem, *map(str, numbers), flops))
        elif isinstance(m, CNNConfig) and paper:
            stages, widths = ("-".join(map(str, values)) for values in (m.depths, m.widths))
            sizes = str(m.img_size), str(m.test_size)
            cnns.append((name, m.stem_type, stages, widths, *sizes, flops, f"{paper.params_m:g} M"))
    recipes = [(name, recipe_summary(name)) for name in RECIPES]
    vit_head = ("model", "stem", "blocks", "dim", "heads", "image", "patch", "paper's flops")
    cnn_head = ("model", "stem", "stages", "widths", "image", "test", "paper's flops", "params")
    cnn_title = "CNNs the paper compares with; test: evaluation's shorter side before the crop"
    parts = [
        Table("Models (vitc show MODEL)", vit_head, vits),
        Table(cnn_title, cnn_head, cnns),
        Table("Recipes (vitc show RECIPE, vitc train RECIPE)", ("recipe", "what"), recipes),
    ]
    return Page("Models and recipes", parts, {"models": list(MODELS), "recipes": list(RECIPES)})


# -- a run -----------------------------------------------------------------------------------------


def run_page(path: Path, plot: Path | None = None) -> Page:
    """The settings, progress and results of a run."""
    from vitc.runs.folder import DATA, Run
    from vitc.views import figures

    config, run = read_config(path), Run(path)
    stem = getattr(config.model, "stem", None)
    classes = read_json(path / DATA).get("classes") if (path / DATA).exists() else None
    few = isinstance(classes, list) and len(classes) <= 5  # top-5 accuracy is always 100 %
    summary, metrics = run.summary, run.metrics()
    evals = [m for m in metrics if m["kind"] == "eval"]
    step = metrics[-1]["step"] if metrics else 0
    status = summary["status"] if summary else "unfinished"
    left_out = ["status", "step", "epochs", "run", *(["top5"] if few else [])]
    rows = [
        ("status", f"{status}, at step {summary['step'] if summary else step}"),
        ("model", config.model.name),
        *([("stem", stem.source)] if isinstance(stem, CustomStemConfig) else []),
        ("data", config.data.path or config.data.source),
        ("optimizer", f"{to_dict(config)['optim']['kind']}, lr {config.optim.lr:g}"),
        ("epochs", str(config.train.epochs)),
        *((k, plain(v)) for k, v in summary.items() if k not in left_out),
    ]
    parts: list[Part] = [Table(str(path), ("", "value"), rows)]
    if evals:
        measures = ("top1", "top1_raw", *(() if few else ("top5",)), "loss")
        head = ("epoch", "step", *(m.replace("_", " ") for m in measures))
        parts.append(Table("Validation", head, [_eval_row(e, measures) for e in evals[-LATEST:]]))
    if status != "done":
        parts.append(Text(f"Resume it: vitc train {path}"))
    if plot is not None:
        figures.save_row(_curves(str(path), metrics), plot)
        parts.append(Text(f"Curves: {plot}"))
    values = {
        "run": str(path),
        "status": status,
        "step": step,
        "settings": to_dict(config),
        "summary": summary or None,
        "evals": evals,
    }
    return Page(str(path), parts, values)


def _eval_row(line: Mapping[str, Any], measures: Sequence[str]) -> tuple[str, ...]:
    cells = [
        "" if line.get(m) is None else f"{line[m]:.3f}" if m == "loss" else f"{line[m]:.2f}"
        for m in measures
    ]
    return (str(line.get("epoch", "")), f"{line['step']:,}", *cells)


def _curves(title: str, metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Training loss and validation accuracy over the epochs of a run."""

    def line(kind: str, key: str, label: str, look: int) -> Line:
        known = [m for m in metrics if m["kind"] == kind and m.get(key) is not None]
        points = [m["epoch"] for m in known], [m[key] for m in known]
        return Line(label, look, *points, form="points" if kind == "eval" else "curve")

    accuracy = [line("eval", "top1", "EMA", 0), line("eval", "top1_raw", "raw", 1)]
    return [
        Chart("loss", title, "epoch", "training loss", [line("train", "loss", "", 0)]),
        Chart("top1", title, "epoch", "validation top-1 (%)", accuracy),
    ]
