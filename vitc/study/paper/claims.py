"""What the paper claims of the convolutional stem, held against the trials of any study.

A claim is a comparison of a ViT_C with the ViT_P it replaces, and the sign it should have: the very
comparison that the report of the measure has, at its corrected level. It agrees or disagrees only
where that is not open. What the A/A control shows of the same quantity stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vitc.models.config import ViTConfig
from vitc.models.stem_config import ConvStemConfig, PatchifyStemConfig
from vitc.study.contrasts import Contrast, shown_width, signed_interval
from vitc.study.design import HPARAMS, Plan
from vitc.study.results import Section
from vitc.views.model import Table

Verdict = Literal["agrees", "disagrees", "open"]
CLAIMS = {  # measure and kind of comparison -> the paper's sentence, with its section
    (HPARAMS, "error"): "more of the learning rates come near its best (5.3)",
    ("length", "loss"): "it loses less when training is shorter (5.1)",
    ("optimizer", "loss"): "it loses less when training is shorter (5.1)",
    ("optimizer", "gap"): "its gap between AdamW and SGD is smaller (5.2)",
    ("peak", "error"): "its error is lower at the end (6)",
}
AGREEMENT: dict[str, Verdict] = {  # by the verdict of the comparison; else open
    **dict.fromkeys(("wider", "lower", "fails less"), "agrees"),
    **dict.fromkeys(("narrower", "higher", "fails more"), "disagrees"),
}


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper for one pair, and the same of the A/A control if there is one."""

    claim: str
    contrast: Contrast
    control: Contrast | None

    @property
    def verdict(self) -> Verdict:
        return _agreement(self.contrast)


def _agreement(c: Contrast) -> Verdict:
    word = c.width.verdict if c.width is not None else c.found.verdict
    found = AGREEMENT.get(word, "open")
    if c.kind == "gap" and c.optim == "adamw" and found != "open":  # a gap to SGD, not of it
        return "disagrees" if found == "agrees" else "agrees"
    return found


def _shown(c: Contrast) -> str:
    """The quantity that a claim is about, with its interval."""
    if c.width is not None:
        return shown_width(c.width)
    gone = c.found.failures
    text = f"{signed_interval(c.found)} points"
    return text + (
        f"; {gone['a']} and {gone['b']} failed to learn" if gone["a"] + gone["b"] else ""
    )


def agreement(low: float, high: float, expected: float) -> Verdict:
    """Whether an interval has the sign of `expected`; open while it holds zero."""
    low, high = sorted((low * expected, high * expected))
    return "agrees" if low > 0 else "disagrees" if high < 0 else "open"


def claims(s: Section) -> list[Claim]:
    """Those that a study of this measure bears on; none without a ViT_C and its ViT_P.

    Section 5.1 trains ViTs with AdamW, so the loss by length under SGD is no claim of it.
    """
    wanted = pairs(s.plan)
    have = {(c.contender, c.reference) for c in s.finding.contrasts}
    lacking = [pair for pair in wanted if pair not in have]
    further = s.finding.compare(lacking) if lacking and s.finding.compare is not None else []
    every = [*s.finding.contrasts, *further]
    controls = {(c.kind, c.optim, c.reference): c for c in every if c.is_control}
    return [
        Claim(text, c, controls.get((c.kind, c.optim, c.reference)))
        for c in every
        if (c.contender, c.reference) in wanted
        and (text := CLAIMS.get((s.plan.measure, c.kind))) is not None
        and not (s.plan.measure == HPARAMS and c.width is None)
        and not (c.kind == "loss" and c.optim != "adamw")
        and not (c.kind == "gap" and set(s.plan.optims) != {"adamw", "sgd"})
    ]


def claims_table(s: Section) -> Table | None:
    """None: the study bears on no claim."""
    found = claims(s)
    if not found:
        return None
    rows = [
        {
            "the paper on ViT_C against ViT_P": c.claim,
            "here": f"{c.contrast.contender} - {c.contrast.reference}",
            "optimizer": "both" if c.contrast.kind == "gap" else c.contrast.optim or "its best",
            "of": "octaves of lr near the best" if c.contrast.width else c.contrast.what,
            "n": str(c.contrast.pairs),
            "(95 %)": _shown(c.contrast),
            "verdict": c.verdict,
            "the A/A control": f"{_shown(c.control)}: {_agreement(c.control)}"
            if c.control is not None
            else "none in this study",
        }
        for c in found
    ]
    note = (
        "The intervals are those of the comparisons above. Open: no difference is shown. A control "
        "that is not open is a warning: such a verdict can be noise here. The paper's claims "
        "are of larger models on ImageNet."
    )
    return Table.of("Against the paper's claims", rows, note, brief=s.plan.measure != HPARAMS)


def claim_values(s: Section) -> list[dict[str, Any]]:
    return [
        {
            "claim": c.claim,
            **c.contrast.values,
            "agreement": c.verdict,
            "control": None if c.control is None else c.control.values,
        }
        for c in claims(s)
    ]


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
