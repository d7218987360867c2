"""The model card: what a model is, what it was trained on, how accurate it is, what is unknown.

Markdown with the hub's YAML front matter, by the template `card.md.j2`, from a run folder's files
alone. Every name in them is untrusted (a class is a folder's name): it is written as a code span,
where neither Markdown nor HTML is interpreted, or as a JSON string, which YAML reads alike.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig, flat_values, read_config, to_dict
from vitc.deploy.saved import Saved
from vitc.errors import CheckpointError, VitcError
from vitc.models.config import (
    CNNConfig,
    ModelConfig,
    TimmConfig,
    TorchvisionConfig,
    ViTConfig,
)
from vitc.plugins.consent import without_folders
from vitc.resolve import resolve_config
from vitc.runs.folder import Run
from vitc.runs.results import last_test
from vitc.stats.proportions import wilson

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitc.models.complexity import Complexity

FITS = {"pad": "padded", "squash": "squashed"}
TAGS: dict[type[ModelConfig], str] = {
    ViTConfig: "vision-transformer",
    CNNConfig: "cnn",
    TimmConfig: "timm",
    TorchvisionConfig: "torchvision",
}
CLASSES_LISTED = 50
PLACEHOLDER = "DATA"  # for paths of the machine that trained, which are private


def card(
    saved: Saved,
    tensors: Mapping[str, Tensor],
    cost: Complexity | None,
    why_not: str = "it cannot run without data",
    run: Path | None = None,
) -> str:
    """The card of a saved model with these weights; `run`: the one that trained it, if known.

    `cost`: None where it could not be counted, for the reason `why_not`. Raises CheckpointError:
    the run's files are damaged.
    """
    from vitc.views.markdown import document

    m, results = saved.config, saved.results
    facts = None if run is None else _run_facts(run, results["weights"] if results else "ema")
    ema = facts is not None and bool(facts["config"].optim.average)
    return document(
        "card.md.j2",
        model=m,
        kind=TAGS.get(type(m), "custom"),
        stem=type(m.stem).__name__.removesuffix("Config") if isinstance(m, ViTConfig) else "",
        size=f"{m.size[0]}x{m.size[1]}",
        num_classes=saved.num_classes,
        classes=saved.classes or (),
        listed=CLASSES_LISTED,
        placeholder=PLACEHOLDER,
        preprocessing=saved.preprocessing,
        cost=cost,
        numbers=sum(t.numel() for t in tensors.values()),
        why_not=why_not,
        run=facts,
        results=results,
        when=_when(results),
        averaged=ema and results is not None and results["weights"] == "ema",
    )


def _run_facts(run: Path, weights: str) -> dict[str, Any]:
    """What a run's files hold for the card of these weights.

    Values of the wrong type count as missing.
    """
    from vitc.data.sources import SOURCES

    titles = {name: s.title for s in SOURCES.values() for name in (s.kind, s.origin)}
    config, files = read_config(run, CheckpointError), Run(run)
    record, summary = files.data, files.summary
    source, counts, notes = (record.get(k) for k in ("source", "counts", "notes"))
    good = isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values())
    hardware, versions = summary.get("hardware"), summary.get("versions")
    cpu = hardware.get("cpu") if isinstance(hardware, dict) else None
    read = last_test(run, weights) or {}
    test = [_number(read.get(k)) for k in ("top1", "n", "top1_low", "top1_high")]
    start = config.init.weights
    return {
        "config": config,
        "record": record,
        "summary": summary,
        "source": titles.get(source, source) if isinstance(source, str) else "unknown",
        "counts": list(counts.items())[:10] if good and counts else [],
        "fingerprint": _text(record.get("fingerprint")),
        "fit": FITS.get(record["fit"], f"middle crop, {record['eval_crop']:g} of what fits"),
        "notes": notes[:10] if isinstance(notes, list) else [],
        "optim": to_dict(config)["optim"]["kind"],
        "step": _number(summary.get("step")),
        "total_steps": _number(summary.get("total_steps")),
        "start": _bare(start) if start else "",
        "command": training_command(config),
        "settings": json.dumps(_public(config), indent=2),  # ASCII: nothing ends the block
        "status": summary.get("status", "unfinished"),
        "test": None if None in test else test,
        "seconds": _number(summary.get("train_seconds")),
        "speed": _number(summary.get("images_per_second")),
        "hardware": [t for t in map(_text, (summary.get("device"), cpu)) if t],
        "versions": list(versions.items())[:10] if isinstance(versions, dict) else [],
        "commit": _text(summary.get("git_commit")),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def results_of(run: Path, weights: str) -> dict[str, Any] | None:
    """The validation of a finished run's EMA or raw weights; None: there was none.

    Percent, with Wilson's 95 % interval.
    """
    files = Run(run)
    summary = files.summary
    chosen: dict[str, Any] = {}
    every = [m for m in files.metrics("eval") if m.get("split", "val") == "val"]
    evals, many = every, summary.get("best_of")
    if isinstance(many, int) and many:  # the weights of an earlier evaluation were kept
        names = ("top1", "top1_raw", "top5")
        evals = [m for m in evals if all(m.get(k) == summary.get(k) for k in names)][:1]
        chosen = {"best_of": many}
        # The line of a linear probe that was kept is the second one of its step.
        if evals and evals[0] is next(m for m in every if m["step"] == evals[0]["step"]):
            chosen["epoch"] = evals[0].get("epoch")
    elif evals and evals[-1]["step"] != summary.get("step"):
        return None
    if summary.get("status") != "done" or not evals:
        return None
    last, suffix = evals[-1], "" if weights == "ema" else "_raw"
    top1, n = _number(last.get(f"top1{suffix}")), _number(last.get("n"))
    if top1 is None or n is None or n < 1 or not 0 <= top1 <= 100:
        return None
    low, high = wilson(top1, int(n))
    return {
        "split": "val",
        "weights": weights,
        "n": int(n),
        "top1": top1,
        "top1_low": low,
        "top1_high": high,
        "top5": _number(last.get(f"top5{suffix}")),
        "loss": _number(last.get(f"loss{suffix}")),
        "step": last["step"],
        **chosen,
    }


def _when(results: Mapping[str, Any] | None) -> str:
    """After which epoch the weights of these results were saved, and how they were chosen."""
    many, epoch, step = ((results or {}).get(k) for k in ("best_of", "epoch", "step"))
    if type(many) is not int:
        return "after the last epoch"
    where = f"after epoch {epoch} (step {step:,})" if type(epoch) is type(step) is int else ""
    chosen = f"the best of {many:,} evaluations on these images (slightly too good)"
    return f"{where}, {chosen}".removeprefix(", ")


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def cost_of(model: nn.Module, config: ModelConfig) -> Complexity | None:
    """The model's cost; None where it cannot be counted."""
    from vitc.models.complexity import complexity

    try:
        return complexity(model, config.size, config.in_chans)
    except VitcError:
        return None


# -- the command to train it again -----------------------------------------------------------------


def _bare(path: str) -> str:
    return path if path.startswith("timm:") else PurePath(path).name


def _public(config: RunConfig) -> dict[str, Any]:
    """The settings without the folders of the machine that trained."""
    settings: dict[str, Any] = to_dict(without_folders(config))
    if settings["data"]["path"] is not None and _of_user(settings["data"]["source"]):
        settings["data"]["path"] = PLACEHOLDER
    if settings["init"]["weights"]:
        settings["init"]["weights"] = _bare(settings["init"]["weights"])
    return settings


def _of_user(source: str) -> bool:
    """Whether `data.path` is a place of the machine that trained."""
    from vitc.data.sources import SOURCES

    return source not in SOURCES or SOURCES[source].of_user


def training_command(config: RunConfig) -> str | None:
    """`vitc train RECIPE --SETTING VALUE ...` that gives this config again; the folder of its
    images is DATA. None: it has no recipe's name, or no command line gives it."""
    from vitc.recipes import RECIPES, get_recipe

    if config.name not in RECIPES:
        return None
    kind = to_dict(config)["optim"]["kind"]
    chosen: dict[str, Any] = {}
    try:
        if to_dict(get_recipe(config.name))["optim"]["kind"] != kind:
            chosen["optim"] = kind
        base = resolve_config(config.name, **chosen)
        if base.model.name != config.model.name:
            chosen["model"] = config.model.name
            base = resolve_config(config.name, **chosen)
        there, here = (flat_values(to_dict(c)) for c in (base, config))
        private = {"data.path": None} if _of_user(config.data.source) else {}
        changed = {k: v for k, v in here.items() if there.get(k, ...) != v and k not in private}
        again = resolve_config(config.name, **chosen, **changed)
    except VitcError:
        return None
    whole, ours = flat_values(to_dict(again)), flat_values(to_dict(config))
    if {**whole, **private} != {**ours, **private}:
        return None
    words = []
    for name, value in {**chosen, **changed}.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = ",".join(value) or None
        if isinstance(value, bool):
            value = str(value).lower()
        if name == "init.weights" and value:
            value = _bare(value)
        values = value if isinstance(value, list) else [value]
        written = ("none" if v is None else str(v) for v in values)
        words += [f"--{name}", *written]
    if private and config.data.path is not None:
        words += ["--data.path", PLACEHOLDER]
    if any(not word.isprintable() for word in words):
        return None
    return shlex.join(["vitc", "train", config.name, *words])
