"""How do contenders compare with the reference? One record, one sentence and one table for all.

A measure gives what each run of a contender came out at, `Outcomes`; `contrasts` pairs them by draw
or seed. An error at chance never enters a difference: how often a contender failed to learn is
compared apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vitc.stats.compare import (
    Comparison,
    Luck,
    compare,
    compare_means,
    fewest_draws,
    look_level,
    smallest_gap,
)
from vitc.stats.effects import deviation
from vitc.stats.proportions import FloatArray
from vitc.stats.unpaired import UnpairedComparison
from vitc.stats.width import Widths
from vitc.study.design import HPARAMS, Plan
from vitc.study.results import Result
from vitc.views.model import Card, Table, Tone
from vitc.wording import bounds, counted, few

LEVEL = 0.05
MOST_CARDS, MOST_WORDS = 4, 40
SUMMARY = {  # verdicts as headings
    "lower": "Lower",
    "higher": "Higher",
    "mixed": "No winner",
    "fails more": "Fails more",
    "fails less": "Fails less",
    "equivalent": "Equivalent",
    "open": "Open",
}
Key = tuple[str, str, str]  # contender, optimizer, point
Pairs = Sequence[tuple[str, str]]  # contender, reference
Kind = Literal["error", "loss", "gap", "change"]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What the runs that learnt came out at, by draw or seed, and the ones that failed to learn."""

    values: Mapping[int, float]
    failed: frozenset[int] = frozenset()
    luck: FloatArray | None = None
    """Where settings were tuned: the best error of each resample of the tuning draws."""
    tuning_draws: int = 0

    @classmethod
    def of(cls, results: Sequence[Result]) -> Outcomes:
        """Errors; trials without a result are left out."""
        known = [(r.draw, r.error) for r in results if r.error is not None]
        failed = frozenset(r.draw for r in results if r.failed_to_learn and r.error is not None)
        return cls({i: e for i, e in known if i not in failed}, failed)

    def minus(self, other: Outcomes) -> Outcomes:
        """Differences where both learnt, of the draws that both have."""
        shared = self.draws & other.draws
        failed = frozenset((self.failed | other.failed) & shared)
        values = {i: self.values[i] - other.values[i] for i in sorted(shared - failed)}
        if self.luck is None or other.luck is None:
            return Outcomes(values, failed)
        return Outcomes(values, failed, self.luck - other.luck, self.tuning_draws)

    @property
    def draws(self) -> set[int]:
        return self.values.keys() | self.failed


@dataclass(frozen=True)
class Contrast:
    """A contender against the reference; differences in points, negative: it has less."""

    kind: Kind
    what: str
    """What is compared: its error, or its loss from 30 to 4 epochs."""
    contender: str
    reference: str
    optim: str
    point: str
    unit: str
    """What pairs are of: draw or seed."""
    found: Comparison
    pairs: int
    won: int
    """Pairs in which both learnt and the contender has less."""
    smallest_gap: tuple[float, float] | None
    """The gap found with 80 % power, at both ends of the interval of the differences' spread."""
    differences: Mapping[int, float]
    """By draw or seed, where both learnt."""
    is_control: bool = False
    width: Widths | None = None

    @property
    def values(self) -> dict[str, Any]:
        """As plain values, for results.json."""
        apart = ("found", "width", "is_control", "differences")
        found = {k: v for k, v in asdict(self).items() if k not in apart}
        found |= asdict(self.found) | {"control": self.is_control}
        if self.width is not None:
            found["width_octaves"] = asdict(self.width) | {"verdict": self.width.verdict}
        return found


def nominal_level(plan: Plan, family: int) -> float:
    """Of each of so many comparisons in each look."""
    return look_level(LEVEL / max(family, 1), plan.looks)


def pairs_of(plan: Plan) -> list[tuple[str, str]]:
    """Every contender with the reference."""
    return [(c, plan.baseline) for c in plan.contenders if c != plan.baseline]


def contrasts(
    plan: Plan,
    kind: Kind,
    what: str,
    outcomes: Mapping[Key, Outcomes],
    pairs: Pairs | None = None,
) -> list[Contrast]:
    """The contenders of each pair at the same point under the same optimizer.

    Random draws are compared by ranks, few seeds by means. The intervals hold together with 95 %
    (Bonferroni) over what is compared, and over the planned looks; the A/A controls are no part of
    that family, each is held against the same level alone.
    """
    every = pairs_of(plan) if pairs is None else pairs
    keys = [
        (key, (reference, *key[1:]))
        for key in outcomes
        for contender, reference in every
        if key[0] == contender and (reference, *key[1:]) in outcomes
    ]
    keys = [(a, b) for a, b in keys if outcomes[a].draws & outcomes[b].draws]
    family = sum(a[0] not in plan.controls for a, _ in keys)
    found = []
    for mine, theirs in keys:
        is_control = mine[0] in plan.controls
        a, b = outcomes[mine], outcomes[theirs]
        many = 1 if is_control else family
        settings: dict[str, Any] = {"family": many, "looks": plan.looks, "margin": plan.margin}
        difference = a.minus(b)
        shared, differences = sorted(a.draws & b.draws), list(difference.values.values())
        ours, others = ([x.values.get(i, math.nan) for i in shared] for x in (a, b))
        if plan.measure == HPARAMS:
            compared = compare(ours, others, **settings)
        else:
            compared = compare_means(ours, others, **settings, luck=_luck(difference))
        found.append(
            Contrast(
                kind=kind,
                what=what,
                contender=mine[0],
                reference=theirs[0],
                optim=mine[1],
                point=mine[2],
                unit=unit_of(plan),
                found=compared,
                pairs=len(shared),
                won=sum(d < -1e-9 for d in differences),
                smallest_gap=_smallest_gap(plan, differences, many),
                differences=difference.values,
                is_control=is_control,
            )
        )
    return sorted(found, key=lambda c: c.is_control)


def _luck(difference: Outcomes) -> Luck | None:
    """How much a difference would vary with other tuning draws; None: nothing was tuned."""
    if difference.luck is None or not np.ptp(difference.luck):
        return None
    return Luck(float(np.std(difference.luck)), difference.tuning_draws / 2)


def unit_of(plan: Plan) -> str:
    return "draw" if plan.measure == HPARAMS else "seed"


def _smallest_gap(
    plan: Plan, differences: Sequence[float], family: int
) -> tuple[float, float] | None:
    spread = deviation(differences)
    if spread is None:
        return None
    means = plan.measure != HPARAMS
    gap = smallest_gap(len(differences), nominal_level(plan, family), means)
    return gap * spread.low, gap * spread.high


# -- words -----------------------------------------------------------------------------------------


def sentence(c: Contrast, plan: Plan) -> str:
    """The verdict in at most 40 words: who has less, by how much, how certain, who fails."""
    f, gone = c.found, c.found.failures
    where = f"under {c.optim}, " if len(plan.optims) > 1 else ""
    where += f"at {c.point}, " if c.point else ""
    runs = counted(f.n, c.unit)
    size = f"{abs(f.difference):.1f} points ({_sizes(f)}; {runs})"
    signed = signed_interval(f, f" points, {runs}")
    fails = (
        f"{gone['a']} of {counted(c.pairs, c.unit)} fail to learn, {gone['b']} of {c.reference}'s"
    )
    less = "lower" if f.difference < 0 else "higher"
    if f.verdict in ("lower", "higher"):
        text = f"{c.contender}'s {c.what} is {f.verdict} than {c.reference}'s by {size}"
        text += f"; {fails}" if gone["a"] or gone["b"] else ""
    elif f.verdict == "mixed":
        text = (
            f"no winner: where both learn {c.contender}'s {c.what} is {less} by {size}, but {fails}"
        )
    elif f.verdict in ("fails more", "fails less"):
        often = f.verdict.removeprefix("fails ")
        text = f"{c.contender} fails to learn {often} often than {c.reference}: {fails}"
        text += f"; where both learn {c.what} differs by {signed}" if f.n else ""
    elif f.verdict == "equivalent":
        text = f"{c.contender} and {c.reference} are within {plan.margin:g} points: {signed}"
    else:
        text = f"no difference between {c.contender} and {c.reference} is shown: {c.what} {signed}"
        text += f"; {fails}" if gone["a"] or gone["b"] else ""
    text = where + text
    if not text.startswith(c.contender):
        text = text[0].upper() + text[1:]
    return f"{text}."


def headline(f: Comparison | UnpairedComparison) -> str:
    """The verdict in a few words."""
    if f.verdict in ("lower", "higher"):
        return f"{f.verdict} by {abs(f.difference):.1f}"
    return {"mixed": "no winner"}.get(f.verdict, f.verdict)


def cards(found: Sequence[Contrast], texts: Sequence[str], plan: Plan) -> list[Card]:
    """The verdict to be read first: its sentences, or where they are many a summary of each
    optimizer's comparisons, if it has several."""
    by_sentence = {sentence(c, plan): c for c in found if not c.is_control}
    if len(texts) <= MOST_CARDS:
        return [_card(text, by_sentence.get(text), plan) for text in texts]
    made = []
    for what, optim in dict.fromkeys((c.what, c.optim) for c in by_sentence.values()):
        mine = [c for c in by_sentence.values() if (c.what, c.optim) == (what, optim)]
        if len(mine) == 1:
            made.append(_card(sentence(mine[0], plan), mine[0], plan))
            continue
        label = f"{what} against {', '.join(dict.fromkeys(c.reference for c in mine))}"
        label += f" · {optim}" if len(plan.optims) > 1 else ""
        counts = Counter(SUMMARY[c.found.verdict].lower() for c in mine)
        head = " · ".join(f"{n} {kind}" for kind, n in counts.items())
        made.append(Card(summary(mine), label, head))
    return made


def _card(text: str, c: Contrast | None, plan: Plan) -> Card:
    if c is None:
        return Card(text)
    what = f"{c.what[:1].upper()}{c.what[1:]}"
    label = [f"{what} of {c.contender} against {c.reference}", c.point]
    label += [c.optim] if len(plan.optims) > 1 else []
    return card(text, " · ".join(filter(None, label)), c.found)


def card(text: str, label: str, f: Comparison | UnpairedComparison) -> Card:
    """The verdict of one comparison, with its claim in large letters."""
    size = f"{abs(f.difference):.1f} points"
    heads: dict[str, tuple[str, Tone]] = {
        "lower": (f"Lower by {size}", "good"),
        "higher": (f"Higher by {size}", "stop"),
        "mixed": ("No winner", "warn"),
        "fails more": ("Fails to learn more often", "stop"),
        "fails less": ("Fails to learn less often", "good"),
        "equivalent": ("Equivalent within the margin", ""),
        "open": ("No difference shown", ""),
    }
    return Card(text, label, *heads[f.verdict])


def summary(found: Sequence[Contrast]) -> str:
    """Who has less, more or neither, in at most 40 words."""
    kinds: dict[str, list[str]] = {}
    for c in found:
        name = ", ".join(filter(None, (c.contender, c.point)))
        kinds.setdefault(SUMMARY[c.found.verdict], []).append(name)
    room = MOST_WORDS - sum(len(kind.split()) for kind in kinds)
    parts = []
    for done, (kind, names) in enumerate(kinds.items()):
        own = room // (len(kinds) - done) - 3  # of the others "and 12 more" is left
        n = len(names)
        while n > 1 and sum(len(name.split()) for name in names[:n]) > own + 3 * (n == len(names)):
            n -= 1
        room -= sum(len(name.split()) for name in names[:n]) + 3 * (n < len(names))
        parts.append(f"{kind}: {few(names, n, '; ')}")
    return f"{'. '.join(parts)}."


def _sizes(f: Comparison) -> str:
    low, high = sorted(map(abs, f.interval))
    return f"95 % interval {low:.1f} to {high:.1f}"


def signed_interval(f: Comparison, unit: str = "") -> str:
    """`-5.2 (-6.4 to -4.5)`, with ? for a bound that so few runs do not give."""
    if not f.n:
        return "-"
    low, high = bounds(f.interval, "+.1f")
    interval = "too few for an interval" if low == high == "?" else f"{low} to {high}"
    return f"{f.difference:+.1f}{unit} ({interval})"


def shown_width(w: Widths) -> str:
    """`2.0 against 2.5: -0.5 (-1.1 to +0.4), open`."""
    if min(w.a, w.b) >= w.span:
        return "the whole range for both, open"
    low, high = w.interval
    return (
        f"{w.a:.1f} against {w.b:.1f}: {w.difference:+.1f} ({low:+.1f} to {high:+.1f}), {w.verdict}"
    )


def verdict(found: Sequence[Contrast], plan: Plan) -> list[str]:
    """One sentence a contender and optimizer, or why there is none."""
    rivals = [sentence(c, plan) for c in found if not c.is_control]
    if not rivals and not set(plan.contenders) - plan.controls - {plan.baseline}:
        return [f"{plan.baseline} is the only contender: it is compared with none."]
    return rivals or ["There is nothing to compare yet."]


def controls(found: Sequence[Contrast], plan: Plan) -> list[str]:
    """One sentence an A/A control."""
    sentences = []
    for c in found:
        where = f" under {c.optim}" if len(plan.optims) > 1 else ""
        shown = f"{c.what} {signed_interval(c.found, f' points, {counted(c.found.n, c.unit)}')}"
        if c.is_control and c.found.verdict in ("open", "equivalent"):
            sentences.append(f"The A/A control{where} shows no difference: {shown}.")
        elif c.is_control:
            text = sentence(c, plan)
            sentences.append(
                f"The A/A control FAILED: it shows a difference, "
                f"either by chance or because of a bug. {text}"
            )
    return sentences


def contrast_table(found: Sequence[Contrast], title: str, plan: Plan) -> list[Table]:
    """One column a contrast, or where they are many one row; none where nothing was compared."""
    if not found:
        return []
    rows = []
    for c in found:
        f, gone, w = c.found, c.found.failures, c.width
        low, high = c.smallest_gap or (math.inf, math.inf)
        row = {
            "contender": c.contender + (" (A/A control)" if c.is_control else ""),
            "against": c.reference,
            "optimizer": c.optim,
            **({"point": c.point} if c.point else {}),
            f"{c.what} on the same {c.unit}, points (95 %)": signed_interval(f),
            "verdict": f.verdict,
            f"{c.unit}s won": f"{c.won} of {f.n}",
            "failed to learn": f"{gone['a']} of {c.pairs}, against {gone['b']}",
        }
        if any(x.width is not None for x in found):
            row["octaves of lr near the best (95 %)"] = "-" if w is None else shown_width(w)
        row["smallest gap it finds, points"] = (
            f"{low:.1f} to {high:.1f}" if high < math.inf else "-"
        )
        rows.append(row)
    family = sum(not c.is_control for c in found)
    note = (
        "Negative: lower for the contender. Differences are of the runs where both learnt. "
        + (f"The {family} intervals hold together with 95 % (Bonferroni). " if family > 1 else "")
        + (f"The plan has {plan.looks} looks, at one level. " if plan.looks > 1 else "")
        + "The smallest gap is what so many runs find with 80 % power, by the spread of the "
        "differences; it is as uncertain as that."
    )
    table = Table.of(title, rows, note, brief=True)
    return [table.transposed() if len(rows) <= 4 else table]


# -- before the first trial ------------------------------------------------------------------------


def power_lines(plan: Plan) -> list[str]:
    """What a plan can find, and a warning where it can show nothing at all."""
    points = len({g.point for g in plan.groups})
    rivals = {(g.contender, g.optim) for g in plan.groups if g.contender != plan.baseline}
    family = sum(c not in plan.controls for c, _ in rivals) * (
        points if plan.measure == "vary" else 1
    )
    if not family or plan.measure == "seeds" or plan.seed_start:  # the latter: draws that tune
        return []
    level, unit = nominal_level(plan, family), unit_of(plan)
    means = plan.measure != HPARAMS
    gap = smallest_gap(plan.draws, level, means)
    compared = (
        f"{counted(family, 'comparison')} with {plan.baseline}, {counted(plan.looks, 'look')}"
    )
    if math.isinf(gap):
        least = 2 if means else fewest_draws(level)
        return [
            f"Warning: {counted(plan.draws, unit)} {'is' if plan.draws == 1 else 'are'} too "
            f"few to reach significance ({compared}); at least {least} are needed. The verdict "
            "will be open."
        ]
    return [f"{counted(plan.draws, unit)}, {compared}: {gap_sentence(gap)}"]


def gap_sentence(gap: float) -> str:
    """How large a gap is found, in standard deviations and for likely ones in points."""
    return (
        f"a gap of {gap:.2g} standard deviations of the paired differences is found with 80 % "
        f"power; {gap:.1f} to {4 * gap:.1f} points where they vary by 1 to 4."
    )
