"""What the paper claims of the convolutional stem, held against the trials of any study.

A claim is a difference between a ViT_C and the ViT_P it replaces, and the sign it should have. It
agrees or disagrees only where the whole 95 % interval lies on one side of zero; else it stays open.
A run that diverged counts as chance error, but never as the end that another is measured from, nor
as near to its contender's best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.stats import proportions
from vitc.stats.proportions import Interval
from vitc.study.design import HPARAMS, Plan
from vitc.study.measures.base import epochs_of
from vitc.study.measures.seeded import Cells, contender_optims, mean, paired, points_of, shown
from vitc.study.results import Result, Section
from vitc.views.model import Table

NEAR = 4.0  # points: "about 60 % of runs within 4 % of its best", section 5.3
Verdict = Literal["agrees", "disagrees", "open"]


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper for one pair. `difference` is the contender's minus the
    reference's, in points; `expected` is the sign the paper gives it."""

    claim: str
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


def claims(s: Section) -> list[Claim]:
    """Those that a study of this measure bears on; none without a ViT_C and its ViT_P."""
    found = _of_draws(s) if s.plan.measure == HPARAMS else _of_runs(s)
    return [c for c in found if not math.isnan(c.difference.estimate)]


def claims_table(s: Section) -> Table | None:
    """None: the study bears on no claim."""
    found = claims(s)
    if not found:
        return None
    rows = [
        {
            "the paper on ViT_C against ViT_P": c.claim,
            "here": f"{c.contender} - {c.reference}",
            "optimizer": c.optim,
            "difference of": c.what,
            "n each": str(c.n),
            "points (95 %)": shown(c.difference, signed=True),
            "verdict": c.verdict,
        }
        for c in found
    ]
    note = (
        "Open: the interval holds zero. Every interval is of its own row, not corrected for their "
        "number. The paper's claims are of larger models on ImageNet."
    )
    return Table.of("Against the paper's claims", rows, note, brief=s.plan.measure != HPARAMS)


def claim_values(s: Section) -> list[dict[str, Any]]:
    found = []
    for c in claims(s):
        values = asdict(c)
        found.append({"says": values.pop("claim"), **values, "verdict": c.verdict})
    return found


# -- pairs -----------------------------------------------------------------------------------------


def pairs(plan: Plan) -> list[tuple[str, str]]:
    """(ViT_C, ViT_P) among the contenders: same images, tokens and width, and one block fewer.

    The 72GF pair has equal depths, as the zoo's (paper, appendix C).
    """
    models = {
        g.contender: g.config.model
        for g in plan.groups
        if isinstance(g.config.model, ViTConfig) and not g.seed_shift and not g.config.train.freeze
    }
    ps = {_made(m, m.depth): c for c, m in reversed(models.items()) if _is_p(m)}
    found = []
    for contender, m in models.items():
        depth = m.depth if m.name.endswith("_72gf") else m.depth + 1
        if _is_c(m) and _made(m, depth) in ps:
            found.append((contender, ps[_made(m, depth)]))
    return found


def _made(m: ViTConfig, depth: int) -> tuple[object, ...]:
    return m.img_size, m.stem.reduction, m.embed_dim, depth


def _is_c(m: ViTConfig) -> bool:
    s = m.stem
    return type(s) is ConvStemConfig and s.norm == "bn" and s.kernel_sizes is None


def _is_p(m: ViTConfig) -> bool:
    return type(m.stem) is PatchifyStemConfig and not m.stem.bn_relu


# -- by measure ------------------------------------------------------------------------------------


def _of_draws(s: Section) -> Iterator[Claim]:
    for c, p in pairs(s.plan):
        for optim in s.plan.optims:
            at: dict[str, dict[int, Result]] = {c: {}, p: {}}
            for r in s.results:
                if r.optim == optim and r.contender in at and r.error is not None:
                    at[r.contender][r.draw] = r
            shared = sorted(at[c].keys() & at[p].keys())
            if not shared:
                continue
            mine, theirs = (_near_best([at[x][i] for i in shared]) for x in (c, p))
            difference = proportions.share_difference(mine, theirs)
            yield Claim(
                claim="more of the draws of lr and weight decay come near its best (5.3)",
                what=f"share within {NEAR:g} points of its own best: {100 * mine.estimate:.0f} % "
                f"against {100 * theirs.estimate:.0f} %",
                contender=c,
                reference=p,
                optim=optim,
                n=len(shared),
                difference=proportions.scaled(difference, 100),
                expected=1,
            )


def _near_best(results: Sequence[Result]) -> Interval:
    """Share of the draws that trained and came within `NEAR` points of the best of them."""
    errors = [r.error for r in results if r.error is not None and r.status != "diverged"]
    near = sum(e <= min(errors) + NEAR + 1e-9 for e in errors)
    return proportions.share(near, len(results))


def _of_runs(s: Section) -> Iterator[Claim]:
    cells, points, measure = Cells.of(s.plan, s.results), points_of(s.plan), s.plan.measure
    if measure not in ("length", "optimizer", "peak"):
        return
    first, last = points[0], points[-1]

    def claim(
        text: str, what: str, c: str, p: str, optim: str, values: Sequence[dict[int, float]]
    ) -> Iterator[Claim]:
        difference = paired(*values)
        m = mean(difference)
        if m is not None:
            yield Claim(text, what, c, p, optim, len(difference), m, -1)

    for c, p in pairs(s.plan):
        if measure == "peak":
            mine, theirs = (dict(contender_optims(s.plan))[x] for x in (c, p))
            yield from claim(
                "its error is lower at the end (6)",
                f"error at {last}",
                c,
                p,
                mine if mine == theirs else f"{mine}, {theirs}",
                [cells.errors(c, mine, last), cells.errors(p, theirs, last)],
            )
        elif len(points) > 1 and "adamw" in s.plan.optims:  # section 5.1 trains ViTs with AdamW
            yield from claim(
                "it loses less when training is shorter (5.1)",
                f"loss from {epochs_of(last)} to {epochs_of(first)} epochs",
                c,
                p,
                "adamw",
                [
                    paired(cells.errors(x, "adamw", first), cells.trained(x, "adamw", last))
                    for x in (c, p)
                ],
            )
        if measure == "optimizer" and {"adamw", "sgd"} <= set(s.plan.optims):
            yield from claim(
                "its gap between AdamW and SGD is smaller (5.2)",
                f"SGD - AdamW at {last}",
                c,
                p,
                "both",
                [
                    paired(cells.errors(x, "sgd", last), cells.trained(x, "adamw", last))
                    for x in (c, p)
                ],
            )
