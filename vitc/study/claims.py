"""What the paper claims of the convolutional stem, held against the trials of any study.

A claim is a difference between a ViT_C and the ViT_P it replaces, and the sign it should have. It
agrees or disagrees only where the whole 95 % interval lies on one side of zero; else it stays open.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.study import statistics as st
from vitc.study.analysis import Section
from vitc.study.findings import Finding, Table, cells, errors_of, mean, paired, shown
from vitc.study.measures import epochs_of
from vitc.study.plan import Group, Plan
from vitc.study.statistics import Interval

CLAIMS = "Against the paper's claims"  # title of the table
NEAR = 4.0  # points: "about 60 % of runs within 4 % of its best", section 5.3
Verdict = Literal["agrees", "disagrees", "open"]


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper for one pair. `difference` is the contender's minus the
    reference's, in points; `expected` is the sign the paper gives it."""

    says: str
    what: str
    contender: str
    reference: str
    optim: str
    n: int
    difference: Interval
    expected: Literal[-1, 1]

    @property
    def verdict(self) -> Verdict:
        return agreement(self.difference, self.expected)


def agreement(difference: Interval, expected: float) -> Verdict:
    """Whether a difference has the sign of `expected`; open while its interval holds zero."""
    low, high = sorted((difference.low * expected, difference.high * expected))
    return "agrees" if low > 0 else "disagrees" if high < 0 else "open"


def claims(s: Section | Finding) -> list[Claim]:
    """Those that a study of this measure bears on; none without a ViT_C and its ViT_P."""
    found = _of_draws(s) if isinstance(s, Section) else _of_runs(s)
    return [c for c in found if not math.isnan(c.difference.estimate)]


def claims_table(s: Section | Finding) -> Table | None:
    """None: the study bears on no claim."""
    found = claims(s)
    if not found:
        return None
    rows = [
        [c.says, f"{c.contender} - {c.reference}", c.optim, c.what, str(c.n),
         shown(c.difference, signed=True), c.verdict]
        for c in found
    ]  # fmt: skip
    head = ["the paper says of ViT_C against ViT_P", "here", "optimizer", "difference of",
            "n each", "points (95 %)", "verdict"]  # fmt: skip
    note = (
        "Open: the interval holds zero. Every interval is of its own row, not corrected for their "
        "number. The paper's claims are of larger models on ImageNet."
    )
    return Table(CLAIMS, head, rows, note)


def claim_values(s: Section | Finding) -> list[dict[str, Any]]:
    return [asdict(c) | {"verdict": c.verdict} for c in claims(s)]


# -- pairs -----------------------------------------------------------------------------------------


def pairs(plan: Plan) -> list[tuple[str, str]]:
    """(ViT_C, ViT_P) of the same image size, token size and width: contenders of the plan."""
    kinds: dict[str, dict[tuple[object, ...], str]] = {"c": {}, "p": {}}
    for group in plan.groups:
        kind = _kind(group)
        if kind is not None and isinstance(group.config.model, ViTConfig):
            m = group.config.model
            kinds[kind].setdefault((m.img_size, m.stem.reduction, m.embed_dim), group.contender)
    return [(c, kinds["p"][size]) for size, c in kinds["c"].items() if size in kinds["p"]]


def _kind(group: Group) -> Literal["c", "p"] | None:
    """Which of the paper's two models it is; None: a control, an ablation or another model."""
    m = group.config.model
    if not isinstance(m, ViTConfig) or group.seed_shift:
        return None
    if type(m.stem) is ConvStemConfig:
        plain = m.stem.norm == "bn" and m.stem.kernel_sizes is None
        return "c" if plain else None
    if type(m.stem) is PatchifyStemConfig:
        return None if m.stem.bn_relu else "p"
    return None


# -- by measure ------------------------------------------------------------------------------------


def _of_draws(s: Section) -> Iterator[Claim]:
    for c, p in pairs(s.plan):
        for optim in s.plan.optims:
            at = {g.contender: g.errors for g in s.of(optim)}
            if len(at.get(c, ())) and len(at.get(p, ())):
                mine, theirs = (st.share_within(at[x], None, NEAR) for x in (c, p))
                yield Claim(
                    says="more of the draws of lr and weight decay come near its best (5.3)",
                    what=f"share within {NEAR:g} points of its own best, in percent",
                    contender=c, reference=p, optim=optim, n=min(len(at[c]), len(at[p])),
                    difference=st.scaled(st.share_difference(mine, theirs), 100), expected=1,
                )  # fmt: skip


def _of_runs(f: Finding) -> Iterator[Claim]:
    by = cells(f.rows)
    points = list(dict.fromkeys(g.point for g in f.plan.groups))
    measure = f.plan.measure
    if measure not in ("length", "optimizer", "peak"):
        return
    first, last = points[0], points[-1]

    def errors(contender: str, optim: str, point: str) -> dict[int, float]:
        return errors_of(by.get((contender, optim, point), {}))

    def claim(says: str, what: str, c: str, p: str, optim: str,
              values: Sequence[dict[int, float]]) -> Iterator[Claim]:  # fmt: skip
        difference = paired(*values)
        m = mean(difference)
        if m is not None:
            yield Claim(says, what, c, p, optim, len(difference), m, -1)

    for c, p in pairs(f.plan):
        if measure == "peak":
            mine, theirs = (
                next(g.optim for g in f.plan.groups if g.contender == x) for x in (c, p)
            )
            yield from claim("its error is lower at the end (6)", f"error at {last}", c, p,
                             mine if mine == theirs else f"{mine}, {theirs}",
                             [errors(c, mine, last), errors(p, theirs, last)])  # fmt: skip
            continue
        if len(points) > 1:
            for optim in f.plan.optims:
                yield from claim(
                    "it loses less when training is shorter (5.1)",
                    f"loss from {epochs_of(last)} to {epochs_of(first)} epochs", c, p, optim,
                    [paired(errors(x, optim, first), errors(x, optim, last)) for x in (c, p)],
                )  # fmt: skip
        if measure == "optimizer":
            a, b = f.plan.optims[:2]
            yield from claim(
                f"its gap between {a} and {b} is smaller (5.2)", f"{b} - {a} at {last}", c, p, b,
                [paired(errors(x, b, last), errors(x, a, last)) for x in (c, p)],
            )  # fmt: skip
