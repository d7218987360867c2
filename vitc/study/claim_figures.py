"""The claim as figures: differences on the same draw, their intervals, and failures beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from vitc.study.contrasts import Contrast, headline
from vitc.study.design import Plan
from vitc.study.results import Result, Section
from vitc.views.model import GREY, Chart, Figures, Forest, ForestRow, Line
from vitc.wording import short

MOST_ON_ONE_FOREST = 8  # rows; more are a figure an optimizer
MOST_PANELS_FIRST = 4  # of differences before the forest; more follow it, as small multiples
PANELS_NOTE = "Each contender's error minus the reference's on the same draw."
SHORT = {"optim.lr": "lr", "optim.weight_decay": "weight decay"}

Names = Mapping[str, str]  # folder of a trial -> name of its curve in the page


def claim_figures(
    section: Section, index: int, names: Names
) -> tuple[list[Figures], list[Figures]]:
    """What is seen first, the forest of all comparisons and the differences draw by draw; where
    these are many they are the second part, small multiples to be read later."""
    found = section.finding.contrasts
    if not found:
        return [], []
    forests = _forests(found, section.plan, index)
    panels = list(_panels(section, index, names)) if section.finding.draws else []
    if len(panels) <= MOST_PANELS_FIRST:
        return [Figures([*panels, *forests])], []
    return [Figures(forests)], [Figures(panels, "Draw by draw", PANELS_NOTE)]


def looks(plan: Plan) -> dict[str, int]:
    """The number of every contender's colour, line style and marker; controls are grey."""
    plain = [c for c in plan.contenders if c not in plan.controls]
    return {c: i for i, c in enumerate(plain)} | dict.fromkeys(plan.controls, GREY)


def file_part(optim: str, plan: Plan) -> str:
    """An optimizer in names of files: itself, or of a path what may be in a name, and its place."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", optim)[-60:].strip("_.")
    return optim if safe == optim else f"{safe}_{plan.optims.index(optim)}"


def curve_names(results: Sequence[Result], index: int) -> dict[str, str]:
    """A name for the curve of every trial, by its folder."""
    return {r.folder: f"curve-{index}-{i}" for i, r in enumerate(results)}


def trial_title(r: Result) -> str:
    """What a trial was and came out at, over its point in a figure."""
    out = "no result" if r.error is None else f"{r.error:.1f} % error"
    out = f"failed to learn ({out})" if r.failed_to_learn else out
    return f"{short(r.contender, 60)}, draw {r.draw}: {out}; {_settings(r)}"


def _settings(r: Result) -> str:
    return ", ".join(f"{SHORT.get(n, n)} {v:.3g}" for n, v in r.values.items())


# -- all comparisons -------------------------------------------------------------------------------


def _forests(found: Sequence[Contrast], plan: Plan, index: int) -> list[Forest]:
    optims = list(dict.fromkeys(c.optim for c in found))
    whats = list(dict.fromkeys(c.what for c in found))
    apart = len(found) > MOST_ON_ONE_FOREST
    forests = []
    for n, what in enumerate(whats):
        for optim in optims if apart else [""]:
            mine = [c for c in found if c.what == what and c.optim in (optim or c.optim,)]
            if mine:
                more = f"_{n}" * (n > 0) + (f"_{file_part(optim, plan)}" if optim else "")
                forests.append(_forest(mine, plan, f"forest_{index}{more}", bool(optim)))
    return forests


def _forest(found: Sequence[Contrast], plan: Plan, name: str, of_one_optim: bool) -> Forest:
    first = found[0]
    runs = {c.pairs for c in found}
    against = {c.reference for c in found}
    many = len({c.optim for c in found}) > 1
    where = f" under {first.optim}" if of_one_optim and len(plan.optims) > 1 else ""
    rows = [
        ForestRow(
            label=" · ".join(filter(None, [_who(c), c.point, c.optim if many else ""])),
            verdict=_outcome(c),
            look=GREY if c.is_control else looks(plan)[c.contender],
            estimate=c.found.difference,
            low=c.found.interval[0],
            high=c.found.interval[1],
            dots=list(c.differences.values()),
            failed=[(c.found.failures["a"], c.pairs), (c.found.failures["b"], c.pairs)],
            titles=[f"seed {i}: {d:+.1f} points" for i, d in c.differences.items()]
            if c.unit == "seed"
            else (),
        )
        for c in found
    ]
    return Forest(
        name=name,
        title=f"{_sentence_case(first.what)} against {' and '.join(against)}{where}",
        xlabel="points; below 0: lower",
        failures="failed to learn" + (f", of {runs.pop()}" if len(runs) == 1 else ""),
        rows=rows,
    )


def _outcome(c: Contrast) -> str:
    if not c.is_control:
        return headline(c.found)
    return "pass" if c.found.verdict in ("open", "equivalent") else "FAILED"


def _who(c: Contrast) -> str:
    return f"A/A: {c.contender}" if c.is_control else c.contender


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- one comparison --------------------------------------------------------------------------------


def _panels(section: Section, index: int, names: Names) -> Iterator[Chart]:
    """A dot a draw: the difference against the learning rate, the A/A control behind."""
    plan, results = section.plan, section.results
    trials = {(r.contender, r.optim, r.draw): r for r in results}
    found = section.finding.contrasts
    for n, c in enumerate(c for c in found if not c.is_control):
        control = next((a for a in found if a.is_control and a.optim == c.optim), None)
        setting = _first_setting(plan, c.optim)
        mine, theirs = (
            {r.draw: r for r in results if (r.contender, r.optim) == (who, c.optim)}
            for who in (c.contender, c.reference)
        )

        def place(r: Result, setting: str = setting) -> float:
            return r.values.get(setting, float(r.draw))

        look = looks(plan)
        lines = _compared(c, look[c.contender], "a draw where both learnt", place, trials, names)
        sides = (c.contender, mine, 0.985), (c.reference, theirs, 0.015)
        for who, runs, height in sides:
            gone = [r for r in runs.values() if r.failed_to_learn]
            if gone:
                lines.append(
                    Line(
                        f"{len(gone)} of {c.pairs} failed to learn: {who}",
                        look[who],
                        [place(r) for r in gone],
                        [height] * len(gone),
                        form="rug",
                        titles=[trial_title(r) for r in gone],
                        names=[names.get(r.folder, "") for r in gone],
                    )
                )
        lines.append(Line("", GREY, [0.0], [0.0], form="level"))  # no difference: always in view
        if control is not None:
            lines += _compared(control, GREY, "A/A control", place, trials, {})
        ranges = plan.ranges.get(c.optim, {})
        where = f" under {c.optim}" if len(plan.optims) > 1 else ""
        yield Chart(
            f"claim_{index}_{file_part(c.optim, plan)}_{n}",
            f"{c.contender} against {c.reference}{where}: {headline(c.found)}",
            SHORT.get(setting, setting) or "draw",
            "difference in points; below 0: lower error",
            lines,
            log_x=setting in ranges and ranges[setting].log,
            brief=len(found) <= MOST_ON_ONE_FOREST,
        )


def _first_setting(plan: Plan, optim: str) -> str:
    """What the differences are drawn against: lr, or the first setting that was drawn."""
    drawn = plan.ranges.get(optim, {})
    return "optim.lr" if "optim.lr" in drawn else next(iter(drawn), "")


def _compared(
    c: Contrast,
    look: int,
    label: str,
    place: Callable[[Result], float],
    trials: Mapping[tuple[str, str, int], Result],
    names: Names,
) -> list[Line]:
    """The differences of a contender as dots, over the interval as a band."""
    runs = [trials[c.contender, c.optim, draw] for draw in c.differences]
    titles = []
    for r, difference in zip(runs, c.differences.values(), strict=True):
        other = trials[c.reference, c.optim, r.draw]
        errors = f"{r.error:.1f} % against {other.error:.1f} %"
        titles.append(f"draw {r.draw}: {difference:+.1f} points, {errors}; {_settings(r)}")
    f, grey, lines = c.found, look == GREY, []
    if all(map(math.isfinite, (f.difference, *f.interval))):
        text, low, high = "" if grey else "estimate and 95 % interval", *f.interval
        lines.append(Line(text, look, [0.0], [f.difference], [low], [high], form="level"))
    dots = Line(
        label,
        look,
        [place(r) for r in runs],
        list(c.differences.values()),
        form="scatter",
        titles=() if grey else titles,
        names=() if grey else [names.get(r.folder, "") for r in runs],
    )
    return [dots, *lines]
