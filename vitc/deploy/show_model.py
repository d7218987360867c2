"""What does a model consist of: its parts with their cost, and the numbers of the paper?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig, to_dict
from vitc.errors import ConfigError
from vitc.models.config import ModelConfig, ViTConfig
from vitc.models.zoo import (
    MODELS,
    REPORTED,
    REPORTED_GFLOPS,
    REPORTED_STEMS,
    SLIPS,
    build_model,
    model_config,
)
from vitc.resolve import resolve_config
from vitc.views.model import Page, Part, Table, Text

if TYPE_CHECKING:
    from vitc.models.complexity import Complexity
    from vitc.models.zoo import Reported

COSTS = ("flops", "params", "activations")


def model_with(name: str, settings: Mapping[str, Any]) -> ModelConfig:
    """The config of a named model under changed settings. Raises ConfigError: others than its."""
    foreign = [s for s in settings if not s.startswith("model.")]
    if foreign:
        raise ConfigError(f"--{foreign[0]} has no effect with a model: only --model.* has.")
    config = resolve_config(RunConfig(model=model_config(name)), **settings).model
    if config.problems():
        raise ConfigError("\n".join(config.problems()))
    return config


def model_page(config: ModelConfig) -> Page:
    """A model's parts with their cost, and, if it is one of the paper's, what the paper reports."""
    import torch

    from vitc.models.complexity import complexity, parts

    with torch.device("meta"):
        model = build_model(config)
    total, pieces = complexity(model), parts(model)
    costs = [(p.name, str(p.repeats), p.each) for p in pieces] + [("total", "", total)]
    rows = [(name, times, *(f"{getattr(c, k):,}" for k in COSTS)) for name, times, c in costs]
    values: dict[str, Any] = {
        "model": config.name,
        "settings": to_dict(config),
        **{k: getattr(total, k) for k in COSTS},
        "parts": [{"name": p.name, "repeats": p.repeats, **asdict(p.each)} for p in pieces],
    }
    classes = 1000 if config.num_classes is None else config.num_classes
    about = (
        f"{config.name}: {config.summary}, on {config.size[0]}x{config.size[1]} images with "
        f"{config.in_chans} channels and {classes:,} classes"
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
    if config == MODELS.get(config.name):
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
    if name in REPORTED:
        values["reported"] = _printed(REPORTED[name])
        table = 1 if isinstance(config, ViTConfig) else 2
        shown.append(_compared(f"Compared with the paper's Table {table}", total, REPORTED[name]))
    if name in REPORTED_STEMS and stem is not None:
        values["reported_stem"] = _printed(REPORTED_STEMS[name])
        title = "The stem compared with the paper's Table 3"
        shown.append(_compared(title, stem, REPORTED_STEMS[name]))
    if name in REPORTED_GFLOPS:
        reported = {size: g * 1e9 for size, g in REPORTED_GFLOPS[name].items()}
        flops = {size: complexity(model, size).flops for size in reported}
        values["flops_at"] = {str(size): count for size, count in flops.items()}
        values["reported_flops_at"] = {str(size): count for size, count in reported.items()}
        rows = [(str(s), *_difference(flops[s], r, 1e9, "G")) for s, r in reported.items()]
        head = ("image", "counted", "reported", "difference")
        shown.append(Table("Flops compared with the paper's appendix C", head, rows))
    if name in SLIPS:
        values["slip"] = SLIPS[name]
        shown.append(Text(SLIPS[name]))
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
