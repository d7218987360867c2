"""A screening card: run what is missing of it, and write it as one page and one JSON file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitc.config import to_dict
from vitc.files import to_json, write_atomically
from vitc.machine import cores
from vitc.stats import curves, proportions
from vitc.stats.compare import smallest_gap
from vitc.stats.effects import deviation
from vitc.study.contrasts import (
    Contrast,
    contrast_table,
    controls,
    gap_sentence,
    nominal_level,
    sentence,
    signed_interval,
)
from vitc.study.launch import LocalEngine
from vitc.study.measures.draws import GroupDraws
from vitc.study.measures.hparams import interval_text
from vitc.study.results import left_out, uncounted_note
from vitc.study.runner import conduct
from vitc.study.screening import (
    BUDGET,
    CONTROL,
    DRAWS,
    EPOCHS,
    REFERENCE,
    REFERENCES,
    SEEDS,
    SHORT,
    Card,
    Replay,
    card_stages,
    read_card,
)
from vitc.views.model import Bullets, Details, Heading, Page, Part, Table, Text
from vitc.wording import counted, duration

PAGE, VALUES = "card.html", "card.json"


def card(
    contender: str | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    own_references: bool = False,
    workers: int | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
    command: str = "",
) -> Card:
    """Run a screening card of one stem or model and write its page; what has ended is kept.

    `contender`: a name or FILE.py:Class, or {name: it}, which may be a class or function; see
    `vitc.study.run`. `out` defaults to studies/card_<name>. `own_references`: run all reference
    trials here, in place of those that ship. Raises ConfigError, DataError,
    InterruptedRun.
    """
    folder = folder_of(contender, out)
    given = [contender] if isinstance(contender, str) else contender
    for inside, plan in card_stages(given, folder, own_references):
        conduct(
            inside,
            plan,
            engine=LocalEngine(workers=workers or cores()),
            retry_failed=retry_failed,
            quiet=quiet,
            command=command,
        )
    found = read_card(folder)
    write_card(found, command)
    return found


def folder_of(contender: str | Mapping[str, Any], out: str | Path | None) -> Path:
    """Where a card is: `out`, or a folder of the contender's name."""
    if out is not None:
        return Path(out)
    name = contender if isinstance(contender, str) else "_".join(contender)
    bare = name.partition("=")[0].rpartition(":")[2]
    return Path("studies") / ("card_" + re.sub(r"\W+", "_", bare).strip("_"))


def write_card(card: Card, command: str = "") -> Path:
    """Write the page and the JSON file into the card's folder; returns the page."""
    from vitc.views import html

    page = Page(f"Screening card: {card.name}", parts(card, command))
    write_atomically(card.path / VALUES, to_json(values(card), indent=1))
    write_atomically(card.path / PAGE, html.render(page))
    return card.path / PAGE


def parts(card: Card, command: str = "") -> list[Part]:
    """The card, the verdict first, how it was made last."""
    rivals = [c for c in card.contrasts if not c.is_control]
    uncounted = {g.contender: g.uncounted for g in card.groups if g.cost is None}
    doubt = replay_doubt(card.replay)
    config = card.plan.groups[0].config
    return [
        Heading(f"Screening card: {card.name}", level=1),
        Text(
            f"Is {card.name} easier to train than {' or '.join(REFERENCES)}? Fashion-MNIST subset, "
            f"{BUDGET['data.max_train']} training images · {config.model.img_size} px · {EPOCHS} "
            f"epochs, batch {BUDGET['train.batch']} · {DRAWS} draws of lr and weight decay an "
            f"optimizer, set {card.draw_set} · {card.record['created'][:10]}"
        ),
        *([Text(left_out(card.unfinished), "warning")] if card.unfinished else []),
        *([Text(doubt, "warning")] if doubt else []),
        *(Text(sentence(c, card.plan), "verdict") for c in rivals),
        *contrast_table(card.contrasts, "Error on the same draws", card.plan),
        Bullets([*controls(card.contrasts, card.plan), gap_text(card), references_text(card)]),
        *(
            [Bullets([uncounted_note(*u) for u in uncounted.items()], "warning")]
            if uncounted
            else []
        ),
        contenders_table(card),
        *contrast_table(card.losses, "Lost by shorter training", card.plan),
        *card.sensitivity,
        Heading("What this card does not show"),
        Text(limits(card)),
        conditions(card, command),
        Details("Every setting", json.dumps(to_dict(config), indent=1)),
    ]


# -- sentences -------------------------------------------------------------------------------------


def gap_text(card: Card) -> str:
    """The smallest gap that so many draws find, before any spread was seen."""
    family = sum(not c.is_control for c in card.contrasts) or 2 * len(REFERENCES)
    gap = smallest_gap(DRAWS, nominal_level(card.plan, family))
    return (
        f"{DRAWS} draws, {counted(family, 'comparison')}: {gap_sentence(gap)} "
        "The table gives the gap for the observed spread."
    )


def references_text(card: Card) -> str:
    """Where the reference trials are from."""
    if card.own_references:
        return "All reference trials were run here, on the same draws."
    return replay_text(card.replay)


def replay_text(replay: Replay) -> str:
    """Whether the shipped trials hold on this machine, and how much they differ if not."""
    n, same = len(replay.here), replay.identical
    if not n:
        return "No reference trial was run again here yet."
    start = f"Of the shipped reference trials {n} were run again here, and {same} came out the same"
    if same == n:
        return f"{start}, to the digit."
    c, spread = replay.comparison, deviation(replay.differences)
    text = f"{start}; the others differ by {signed_interval(c, ' points')}"
    if spread is not None:
        text += f", with a standard deviation of {spread.estimate:.1f}: the A/A spread of rounding"
    return f"{text}."


def replay_doubt(replay: Replay) -> str:
    """Why the card compares with nothing, where the shipped trials do not hold here; or ""."""
    found = replay.comparison.verdict if replay.here else "open"
    if found in ("open", "equivalent"):
        return ""
    return (
        f"The shipped reference trials do not hold on this machine: run again here, their error is "
        f"{found} ({replay.comparison.difference:+.1f} points). The comparisons below are not "
        "valid: run the references here, with --own-references."
    )


def limits(card: Card) -> str:
    """What a card does not show, in plain words."""
    return (
        "One small data set of grey 28-pixel images, models of a few megaflops, and runs of "
        f"{EPOCHS} epochs, 150 steps: larger images, models or batches and long training can come "
        "out otherwise, and the accuracy after tuning is not measured. The ranges of lr and weight "
        f"decay are those around what suits {REFERENCE}; a contender that needs others looks worse "
        "than it is. Every card on this set is compared with the same reference trials, and shares "
        "their luck. Open means that no difference was shown, not that there is none. The number "
        f"of draws is fixed: a card cannot be extended. Where it leaves a question open, ask it on "
        "new draws and with references of your own: vitc study hparams "
        f"{card.plan.groups[0].config.name} --draws 64 --seed 1."
    )


# -- tables ----------------------------------------------------------------------------------------


def contenders_table(card: Card) -> Table:
    """Of each contender and optimizer: failures, error, loss, width and cost."""
    seconds = _seconds_here(card)
    widths = _widths(card)
    rows = []
    for g in card.groups:
        gone = proportions.share(g.failed_to_learn, len(g.errors)) if len(g.errors) else None
        lost = _lost(card, g)
        here = seconds.get((g.contender, g.optim))
        rows.append(
            {
                "contender": g.contender,
                "optimizer": g.optim,
                "failed to learn, % (95 %)": "-" if gone is None else _percent(gone),
                "best error %": f"{g.best.error:.1f}" if g.best and g.best.error else "-",
                "median error % where it learnt (95 %)": interval_text(g.median),
                f"lost by {SHORT} epoch, points (95 %)": interval_text(
                    curves.median(lost) if lost else None
                ),
                "octaves of lr near the best": widths.get((g.contender, g.optim), "-"),
                "Mflops": f"{g.cost.flops / 1e6:,.2f}" if g.cost else "-",
                "params": f"{g.cost.params:,}" if g.cost else "-",
                "activations": f"{g.cost.activations:,}" if g.cost else "-",
                "s a trial here": "-" if here is None else f"{here:.1f}",
            }
        )
    note = (
        "Flops are multiply-adds of one image's forward pass. Seconds are of training, as the "
        "trials ran here, several at a time; those of the references are of the trials that ran "
        f"here. {CONTROL}: the same model with other seeds."
    )
    return Table.of("Contenders", rows, note)


def _lost(card: Card, g: GroupDraws) -> list[float]:
    """By shorter training, on each draw where it learnt with both lengths."""
    found = card.loss_of.get((g.contender, g.optim, ""))
    return list(found.values.values()) if found else []


def _percent(share: proportions.Interval) -> str:
    return f"{100 * share.estimate:.0f} ({100 * share.low:.0f}-{100 * share.high:.0f})"


def _seconds_here(card: Card) -> dict[tuple[str, str], float]:
    """(contender, optimizer) -> the mean training time of its trials on this machine."""
    found = {(g.contender, g.optim): g.seconds_a_trial for g in card.groups if g.seconds_a_trial}
    for key in {(r.contender, r.optim) for r in card.replay.here}:
        each = [
            r.train_seconds
            for r in card.replay.here
            if (r.contender, r.optim) == key and r.status == "done" and r.train_seconds
        ]
        found |= {key: sum(each) / len(each)} if each else {}
    return found


def _widths(card: Card) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for c in card.contrasts:
        if c.width is not None:
            for who, octaves in ((c.contender, c.width.a), (c.reference, c.width.b)):
                found[who, c.optim] = f"{octaves:.1f}"
    return found


def conditions(card: Card, command: str) -> Table:
    """Where the trials of both sides come from."""
    made = card.shipped
    here = _machine(card.record["environment"])
    there = "run here"
    if not card.own_references:
        there = f"{_machine(made['environment'])}; made {made['made']} by {made['command']}"
    spent = sum(
        r.train_seconds or 0.0
        for r in [*(r for g in card.groups for r in g.results), *card.replay.here]
    )
    rows = [
        [
            "set of draws",
            f"{card.draw_set}, by the contender's content",
        ],
        ["seed of the draws", str(SEEDS[card.draw_set])],
        ["plan hash", card.record["hash"]],
        ["trials here", here],
        ["reference trials", there],
        ["training time here", duration(spent)],
        ["command", command or card.record["command"]],
        ["trials", shlex.quote(str(card.path / "trials"))],
    ]
    return Table("Conditions", ["what", "value"], [r for r in rows if r[1]])


def _machine(environment: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    return f"{environment['hardware'].get('cpu')}; {versions}"


# -- numbers ---------------------------------------------------------------------------------------


def values(card: Card) -> dict[str, Any]:
    """The card for machines."""
    seconds = _seconds_here(card)
    return {
        "schema": 1,
        "contender": card.name,
        "draw_set": card.draw_set,
        "draws": DRAWS,
        "unfinished": card.unfinished,
        "comparisons": _contrast_values(card.contrasts),
        "losses": _contrast_values(card.losses),
        "sensitivity": [
            dict(zip(t.head, row, strict=True)) for t in card.sensitivity for row in t.rows
        ],
        "contenders": [_group_values(card, g, seconds) for g in card.groups],
        "replay": {
            "n": len(card.replay.here),
            "identical": card.replay.identical,
            "differences": card.replay.differences,
            "comparison": asdict(card.replay.comparison) if card.replay.here else None,
            "valid": not replay_doubt(card.replay),
        },
        "own_references": card.own_references,
        "not_shown": limits(card),
        "plan_hash": card.record["hash"],
        "environment": card.record["environment"],
    }


def _contrast_values(found: Sequence[Contrast]) -> list[dict[str, Any]]:
    return [c.values for c in found]


def _group_values(
    card: Card, g: GroupDraws, seconds: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    lost = _lost(card, g)
    return {
        "contender": g.contender,
        "optim": g.optim,
        "n": len(g.errors),
        "failed_to_learn": g.failed_to_learn,
        "best_error": g.best.error if g.best else None,
        "median_error": asdict(g.median) if g.median else None,
        "loss": asdict(curves.median(lost)) if lost else None,
        "flops": g.cost.flops if g.cost else None,
        "params": g.cost.params if g.cost else None,
        "activations": g.cost.activations if g.cost else None,
        "seconds_a_trial": seconds.get((g.contender, g.optim)),
    }
