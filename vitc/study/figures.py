"""The figures of a study: the claim; of random draws the best of k, all, good settings, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vitc.stats import curves as st
from vitc.stats.proportions import FloatArray
from vitc.study.claim_figures import (
    SHORT,
    Names,
    claim_figures,
    curve_names,
    file_part,
    looks,
    trial_title,
)
from vitc.study.measures.draws import GroupDraws
from vitc.study.results import Result, Section
from vitc.views.model import Chart, Figures, Line

FEWEST_FOR_BEST_RANGE = 16  # draws: the filter takes the best of a quarter of them
MOST_SCATTERED = 5  # contenders whose draws are in one chart
MOST_BANDS, FEWEST_FOR_BANDS = 2, 32  # contenders; draws
BANDS = "Bands hold everywhere at once with 95 %."

Curves = Sequence[tuple[list[float], list[float]]]  # (epochs, values) of each trial with a result


class Marks(NamedTuple):
    """How trials are distinguished: by the look of their contender and the name of their curve."""

    looks: Mapping[str, int]
    names: Names


def claim_and_other_figures(section: Section, index: int) -> tuple[list[Figures], list[Figures]]:
    """The figures of a section: the claim, and what follows, an optimizer's beside each other."""
    finding = section.finding
    if not finding.draws:
        charts = [replace(c, name=f"{c.name}_{index}") for c in finding.charts]
        charts = [c for c in charts if any(line.x for line in c.lines)]
        return claim_figures(section, index, {})[0], [Figures(charts)] if charts else []
    with_curve = {r.folder for g in finding.draws for r in _with_curves(g)}
    names = {
        folder: name
        for folder, name in curve_names(section.results, index).items()
        if folder in with_curve
    }
    claim, panels = claim_figures(section, index, names)
    return claim, [*panels, *_draws_figures(section, index, names)]


def _with_curves(g: GroupDraws) -> list[Result]:
    return [r for (r, _), (x, _) in zip(g.known, g.curves, strict=True) if len(x) > 1]


def _draws_figures(section: Section, index: int, names: Names) -> list[Figures]:
    drawn = [[g for g in section.finding.draws if g.optim == o] for o in section.plan.optims]
    bands = f" {BANDS}" if any(map(_banded, drawn)) else ""
    wide = " The first table has how wide the good rates lie."
    if not any(c.width for c in section.finding.contrasts):
        wide = ""
    titles = {
        _tuning: (
            "Error against number of draws, and against compute",
            f"Expected best top-1 error after k random draws.{bands}",
        ),
        _distributions: (
            "All draws",
            "Share of draws at or below an error; and the same against each contender's own best "
            f"draw, one lucky run.{wide}{bands}",
        ),
        _scatters: ("Where the good settings lie", "A dot leads to its learning curve."),
        _learning: ("Learning curves", ""),
    }
    marks = Marks(looks(section.plan), names)
    found = []
    for make, (title, note) in titles.items():
        for optim in section.plan.optims:
            groups = [g for g in section.finding.draws if g.optim == optim and len(g.errors)]
            name = f"{index}_{file_part(optim, section.plan)}"
            charts = list(make(section, groups, marks, name)) if groups else []
            if charts:
                found.append(Figures(charts, title, note))
                title = note = ""
    return found


def bands_inform(draws: Sequence[int]) -> bool:
    """Of contenders with so many draws: bands of few span the figure, and those of many merge."""
    return len(draws) <= MOST_BANDS and min(draws, default=0) >= FEWEST_FOR_BANDS


def _banded(groups: Sequence[GroupDraws]) -> bool:
    """Controls have no band: they are behind the others."""
    return bands_inform([len(g.errors) for g in groups if not g.is_control])


def _tuning(
    section: Section, groups: Sequence[GroupDraws], marks: Marks, name: str
) -> Iterator[Chart]:
    optim = groups[0].optim
    means = np.concatenate([g.tuning.mean for g in groups if g.tuning is not None])
    low, high = float(means.min()), float(means.max())
    room = 0.35 * max(high - low, 2.0)  # where few draws bound nothing, the band leaves the figure
    ylim = max(0.0, low - room), min(100.0, high + room)
    for compute in (False, True):
        lines = []
        for g in sorted(groups, key=_final, reverse=True):  # as they end, from top to bottom
            if g.tuning is None or (compute and not g.seconds_a_trial):
                continue
            look, t = marks.looks[g.contender], g.tuning
            x = (t.ks * (g.seconds_a_trial if compute else 1.0)).tolist()
            lines.append(Line(g.contender, look, x, t.mean.tolist(), form="curve"))
            if _banded(groups) and not g.is_control:
                low_high = {"low": t.mean_low.tolist(), "high": t.mean_high.tolist()}
                lines.append(Line("", look, x, **low_high, form="band"))
        yield Chart(
            f"{'compute' if compute else 'tuning'}_{name}",
            f"{optim}: best after {'some compute' if compute else 'k draws'}",
            "training seconds spent on draws" if compute else "number of draws k",
            "expected best top-1 error (%)",
            lines,
            log_x=True,
            ylim=ylim,
            brief=not compute,
        )


def _final(g: GroupDraws) -> float:
    return float(g.tuning.mean[-1]) if g.tuning is not None else 0.0


def _distributions(
    section: Section, groups: Sequence[GroupDraws], marks: Marks, name: str
) -> Iterator[Chart]:
    optim = groups[0].optim
    whole, apart = [], []
    for g in groups:
        look = marks.looks[g.contender]
        label = f"{g.contender} (n {len(g.errors)})"
        whole.append(_steps(label, look, *st.edf(g.errors)))
        if _banded(groups) and not g.is_control:
            band = st.edf_band(g.errors)
            low_high = {"low": band.low.tolist(), "high": band.high.tolist()}
            whole.append(Line("", look, band.x.tolist(), **low_high, form="step band"))
        apart.append(_steps(g.contender, look, *st.edf_delta(g.errors)))
    share, ylim = "share of draws at or below", (0, 1.02)
    x = "top-1 error (%); failed to learn = chance"
    yield Chart(f"edf_{name}", f"{optim}: all draws", x, share, whole, ylim=ylim)
    title = f"{optim}: distance to the best draw"
    x = "points above the contender's own best draw"
    yield Chart(f"delta_{name}", title, x, share, apart, ylim=ylim)


def _steps(label: str, look: int, x: FloatArray, share: FloatArray) -> Line:
    values = x.tolist()
    return Line(label, look, [values[0], *values], [0.0, *share.tolist()], form="steps")


def _scatters(
    section: Section, groups: Sequence[GroupDraws], marks: Marks, name: str
) -> Iterator[Chart]:
    """Error against each drawn setting, and against lr times weight decay where both were."""
    ranges = section.plan.ranges[groups[0].optim]
    settings: list[tuple[str, Callable[[Mapping[str, float]], float], bool]] = [
        (SHORT.get(n, n), lambda values, n=n: values[n], r.log)  # type: ignore[misc]
        for n, r in ranges.items()
    ]
    if ranges.keys() >= SHORT.keys():
        settings.append(
            (
                "lr · weight decay",
                lambda values: values["optim.lr"] * values["optim.weight_decay"],
                True,
            )
        )
    shown, title = groups, f"{groups[0].optim}: error against"
    if len(groups) > MOST_SCATTERED:
        best = sorted(groups, key=_final)[: MOST_SCATTERED - 1]
        shown = [g for g in groups if g in best or g.contender == section.plan.baseline]
        title = f"{groups[0].optim}, the {len(best)} best and the reference: error against"
    for label, read, log in settings:
        lines, bars = [], ""
        for place, g in enumerate(shown):
            look = marks.looks[g.contender]
            x = np.array([read(r.values) for r, _ in g.known])
            y = g.errors
            gone = [r.failed_to_learn for r, _ in g.known]
            lines.append(
                Line(
                    g.contender,
                    look,
                    x.tolist(),
                    y.tolist(),
                    substituted=gone,
                    form="scatter",
                    titles=[trial_title(r) for r, _ in g.known],
                    names=[marks.names.get(r.folder, "") for r, _ in g.known],
                )
            )
            if len(y) >= FEWEST_FOR_BEST_RANGE:
                found = st.best_range(y, np.log10(x) if log else x)
                ends = [float(10**v) if log else float(v) for v in found]
                lines.append(Line("", look, ends, [0.015 + 0.03 * place], form="range"))
                bars = " (bars: best of resampled studies)"
        safe = label.replace(" ", "").replace("·", "_times_").replace(".", "_")
        yield Chart(
            f"scatter_{name}_{safe}",
            f"{title} {label}",
            f"{label}{bars}",
            "top-1 error (%); x: failed to learn",
            lines,
            log_x=log,
            brief=False,
        )


def _learning(
    section: Section, groups: Sequence[GroupDraws], marks: Marks, name: str
) -> Iterator[Chart]:
    optim = groups[0].optim
    errors = f"{optim}: validation error by epoch", "top-1 error of the EMA weights (%)"
    losses = f"{optim}: training loss by epoch", "training loss (of the augmented images)"
    for stem, (title, ylabel), curves in (
        ("curves", errors, [g.curves for g in groups]),
        ("losses", losses, [g.losses for g in groups]),
    ):
        if any(len(epochs) > 1 for mine in curves for epochs, _ in mine):
            names = marks.names if stem == "curves" else {}
            lines = [
                line
                for g, mine in zip(groups, curves, strict=True)
                for line in _runs(g, marks.looks[g.contender], mine, names)
            ]
            first = [values[0] for mine in curves for _, values in mine if values]
            # the curves of diverging runs leave the figure
            ylim = 0 if min(first) < 1 else None, 1.1 * max(first)
            yield Chart(f"{stem}_{name}", title, "epoch", ylabel, lines, ylim=ylim, brief=False)


def _runs(g: GroupDraws, look: int, curves: Curves, names: Names) -> Iterator[Line]:
    """One line a trial, that of the best draw strong."""
    for (r, _), (x, y) in zip(g.known, curves, strict=True):
        name = [names[r.folder]] if r.folder in names else []
        title = [trial_title(r)] if name else []
        best = r is g.best
        yield Line(
            f"{g.contender}, best draw" if best else "",
            look,
            x,
            y,
            form="curve",
            strength="strong" if best else "faint",
            titles=title,
            names=name,
        )
