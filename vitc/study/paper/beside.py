"""The paper's printed numbers beside those of a study, and its table of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitc.config import RunConfig
from vitc.models.zoo import REPORTED
from vitc.study.contrasts import LEVEL, Outcomes
from vitc.study.measures.seeded import Cells, mean, shown
from vitc.study.paper.claims import agreement
from vitc.study.paper.exhibits import EXHIBITS, Printed, scale_of
from vitc.study.paper.numbers import TABLE2, TABLE5
from vitc.study.results import Section
from vitc.views.model import Table


@dataclass(frozen=True)
class Ours:
    """One printed number and what stands for it here: seed -> the same difference or error."""

    printed: Printed
    contender: str
    optim: str
    epochs: int
    outcomes: Outcomes


def beside(section: Section) -> list[Table]:
    """The paper's printed numbers with ours, and whether contenders come in its order.

    Nothing where it prints none, or the study is no exhibit.
    """
    name, _, scale = section.plan.exhibit.partition(" ")
    found = _ours(section, name, scale) if name in EXHIBITS else []
    if not found:
        return []
    whats = {
        "error": "error %",
        "delta": "error above the longest, points",
        "gap": "SGD - AdamW, points",
    }
    rows = [
        [
            *(o.printed.contender, o.optim, str(o.printed.epochs), whats[o.printed.what]),
            *(f"{o.printed.value:g}", o.contender, str(o.epochs), shown(mean(o.outcomes.values))),
        ]
        for o in found
    ]
    note = EXHIBITS[name].about
    if scale != "full":
        note += " Ours are tiny models on other images: only signs and orders can be compared."
    head = ["paper's model", "optimizer", "epochs", "what", "paper", "ours", "epochs", "(95 %)"]
    table = Table("Beside the paper", head, rows, note, brief=True)
    order = _order(found, whats)
    return [table, order] if order.rows else [table]


def _ours(section: Section, name: str, scale: str) -> list[Ours]:
    exhibit = EXHIBITS[name]
    cells = Cells.of(section.plan, section.results)
    entries = scale_of(exhibit, "full" if scale == "full" else "small").entries
    ours_of = {e.stands_for or e.label: e.label for e in entries}
    measured = sorted({g.config.train.epochs for g in section.plan.groups})
    longest = measured[-1]
    paper_lengths = sorted({p.epochs for p in exhibit.printed} | set(exhibit.full.lengths))
    found = []
    for p in exhibit.printed:
        mine = ours_of.get(p.contender)
        if mine is None:
            continue
        epochs = p.epochs
        if scale != "full" and len(measured) == len(paper_lengths):
            epochs = measured[paper_lengths.index(p.epochs)]
        optim = p.optim or next((o for c, o, _ in cells.runs if c == mine), "")
        at = cells.outcomes(mine, optim, f"{epochs} epochs")
        if p.what == "delta":
            if scale == "full" and longest != paper_lengths[-1]:
                continue  # the paper's is measured from its own longest schedule
            at = at.minus(cells.outcomes(mine, optim, f"{longest} epochs"))
        elif p.what == "gap":
            at = at.minus(cells.outcomes(mine, "adamw", f"{epochs} epochs"))
        found.append(Ours(p, mine, optim, epochs, at))
    return found


def _order(found: Sequence[Ours], whats: Mapping[str, str]) -> Table:
    """Each printed number minus that of the ViT_P beside it, as printed and as ours."""
    based = [(o, next((b for b in found if _is_base(b, o)), None)) for o in found]
    ordered = [(o, b) for o, b in based if b is not None and o.printed.value != b.printed.value]
    rows = []
    for o, base in ordered:
        printed = o.printed.value - base.printed.value
        ours = mean(o.outcomes.minus(base.outcomes).values, 1 - LEVEL / len(ordered))
        sign = agreement(ours.low, ours.high, printed) if ours is not None else "open"
        rows.append(
            {
                "paper's model": o.printed.contender,
                "against": base.printed.contender,
                "optimizer": o.optim,
                "epochs": str(o.printed.epochs),
                "difference of": whats[o.printed.what],
                "paper": f"{printed:+.1f}",
                "ours (95 %)": shown(ours, signed=True),
                "sign": sign,
            }
        )
    note = "Open: our interval holds zero. The intervals hold together with 95 % (Bonferroni)."
    return Table.of("In the paper's order?", rows, note, brief=True)


def _is_base(base: Ours, of: Ours) -> bool:
    """The plain ViT_P of the same size; in Table 5, whose rows are of one model, its first row."""
    a, b = base.printed, of.printed
    same = (a.epochs, a.what, base.optim) == (b.epochs, b.what, of.optim)
    *row, model = b.contender.split()
    if row:
        firsts = {m: row_name for row_name, (m, *_) in reversed(TABLE5.items())}
        return same and a is not b and a.contender == f"{firsts[model]} {model}"
    return same and a is not b and a.contender == f"vit_p_{model.rsplit('_', 1)[1]}"


def models_table(configs: Sequence[RunConfig], classes: int) -> Table:
    """Table 1: what the models are made of and cost, ours counted, the paper's as printed."""
    import torch

    from vitc.models.complexity import complexity
    from vitc.models.config import ViTConfig
    from vitc.models.zoo import build_model

    rows = []
    for config in configs:
        m = config.model
        with torch.device("meta"):
            cost = complexity(build_model(m, classes))
        made = ["-"] * 4
        if isinstance(m, ViTConfig):
            made = [str(m.embed_dim), f"{m.mlp_ratio:g}", str(m.num_heads), str(m.depth)]
        paper, known = REPORTED.get(m.name), TABLE2.get(m.name)
        printed = "-"
        if paper is not None:
            printed = f"{paper.gflops:g} / {paper.params_m:g} / {paper.activations_m:g}"
        rows.append(
            {
                "model": m.name,
                **dict(zip(("hidden", "MLP mult", "heads", "blocks"), made, strict=True)),
                "Gflops": f"{cost.flops / 1e9:.3f}",
                "params (M)": f"{cost.params / 1e6:.3f}",
                "acts (M)": f"{cost.activations / 1e6:.3f}",
                "paper: Gflops / params / acts": printed,
                "paper: min/epoch, 8 V100": "-" if known is None else f"{known.minutes:g}",
            }
        )
    return Table.of("Models", rows)
