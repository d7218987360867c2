"""The charts of a study of random draws: best after k draws, all draws, good settings, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vitc.stats import curves as st
from vitc.stats.proportions import FloatArray
from vitc.study.measures.draws import GroupDraws
from vitc.study.results import Section
from vitc.views.model import Chart, Figures, Line

MOST_LINES = 64  # of a contender in one chart
FEWEST_FOR_BEST_RANGE = 16  # draws: the filter takes the best of a quarter of them
MOST_BANDS, FEWEST_FOR_BANDS = 2, 32  # contenders; draws
BANDS = "with simultaneous 95 % bands where two contenders have 32 draws or more"
SHORT = {"optim.lr": "lr", "optim.weight_decay": "weight decay"}

Looks = Mapping[str, int]  # contender -> number of its colour, line style and marker
Curves = Sequence[tuple[list[float], list[float]]]  # (epochs, values) of each trial with a result


def draw_figures(section: Section, index: int) -> list[Figures]:
    """All charts of a section in the report's order, an optimizer's beside each other."""
    titles = {
        _tuning: (
            "Error against number of draws, and against compute",
            f"Expected best top-1 error after k random draws, {BANDS}.",
        ),
        _distributions: (
            "All draws",
            f"Share of draws at or below an error, {BANDS}; and the same against each contender's "
            "own best draw, one lucky run: how wide the good rates lie is in the first table.",
        ),
        _scatters: ("Where the good settings lie", ""),
        _learning: ("Learning curves", ""),
    }
    found = []
    for make, (title, note) in titles.items():
        for optim in section.plan.optims:
            everybody = [g for g in section.finding.draws if g.optim == optim]
            groups = [g for g in everybody if len(g.errors)]
            looks = {g.contender: i for i, g in enumerate(everybody)}
            charts = list(make(section, groups, looks, f"{index}_{optim}")) if groups else []
            if charts:
                found.append(Figures(charts, title, note))
                title = note = ""
    return found


def _banded(groups: Sequence[GroupDraws]) -> bool:
    """Whether bands inform: those of few draws span the figure, and those of many merge."""
    return len(groups) <= MOST_BANDS and min(len(g.errors) for g in groups) >= FEWEST_FOR_BANDS


def _tuning(
    section: Section, groups: Sequence[GroupDraws], looks: Looks, name: str
) -> Iterator[Chart]:
    optim = groups[0].optim
    means = np.concatenate([g.tuning.mean for g in groups if g.tuning is not None])
    low, high = float(means.min()), float(means.max())
    room = 0.35 * max(high - low, 2.0)  # where few draws bound nothing, the band leaves the figure
    ylim = max(0.0, low - room), min(100.0, high + room)
    for compute in (False, True):
        lines = []
        for g in groups:
            if g.tuning is None or (compute and not g.seconds_a_trial):
                continue
            look, t = looks[g.contender], g.tuning
            x = (t.ks * (g.seconds_a_trial if compute else 1.0)).tolist()
            lines.append(Line(g.contender, look, x, t.mean.tolist(), form="curve"))
            if _banded(groups):
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


def _distributions(
    section: Section, groups: Sequence[GroupDraws], looks: Looks, name: str
) -> Iterator[Chart]:
    optim = groups[0].optim
    whole, apart = [], []
    for g in groups:
        look, band = looks[g.contender], st.edf_band(g.errors)
        low, high = band.low.tolist(), band.high.tolist()
        label = f"{g.contender} (n {len(g.errors)})"
        whole.append(_steps(label, look, *st.edf(g.errors)))
        if _banded(groups):
            x_of = band.x.tolist()
            whole.append(Line("", look, x_of, low=low, high=high, form="step band"))
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
    section: Section, groups: Sequence[GroupDraws], looks: Looks, name: str
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
    for label, read, log in settings:
        lines, bars = [], ""
        for g in groups:
            look = looks[g.contender]
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
                )
            )
            if len(y) >= FEWEST_FOR_BEST_RANGE:
                best = st.best_range(y, np.log10(x) if log else x)
                ends = [float(10**v) if log else float(v) for v in best]
                lines.append(Line("", look, ends, form="range"))
                bars = " (bars: best of resampled studies)"
        safe = label.replace(" ", "").replace("·", "_times_").replace(".", "_")
        yield Chart(
            f"scatter_{name}_{safe}",
            f"{groups[0].optim}: error against {label}",
            f"{label}{bars}",
            "top-1 error (%); x: failed to learn",
            lines,
            log_x=log,
            brief=False,
        )


def _learning(
    section: Section, groups: Sequence[GroupDraws], looks: Looks, name: str
) -> Iterator[Chart]:
    optim = groups[0].optim
    errors = f"{optim}: validation error by epoch", "top-1 error of the EMA weights (%)"
    losses = f"{optim}: training loss by epoch", "training loss (of the augmented images)"
    for stem, (title, ylabel), curves in (
        ("curves", errors, [g.curves for g in groups]),
        ("losses", losses, [g.losses for g in groups]),
    ):
        if any(len(epochs) > 1 for mine in curves for epochs, _ in mine):
            lines = [
                line
                for g, mine in zip(groups, curves, strict=True)
                for line in _runs(g, looks[g.contender], mine)
            ]
            first = [values[0] for mine in curves for _, values in mine if values]
            # the curves of diverging runs leave the figure
            ylim = 0 if min(first) < 1 else None, 1.1 * max(first)
            yield Chart(f"{stem}_{name}", title, "epoch", ylabel, lines, ylim=ylim, brief=False)


def _runs(g: GroupDraws, look: int, curves: Curves) -> Iterator[Line]:
    """One line a trial, that of the best draw strong; where trials are many, some share a line."""
    shared = max(1, len(g.known) // MOST_LINES)
    others = [c for (r, _), c in zip(g.known, curves, strict=True) if r is not g.best]
    for start in range(0, len(others), shared):
        x: list[float] = []
        y: list[float] = []
        for epochs, values in others[start : start + shared]:
            x += [*epochs, math.nan]  # a gap before the next trial
            y += [*values, math.nan]
        yield Line("", look, x[:-1], y[:-1], form="curve", strength="faint")
    for (result, _), (epochs, values) in zip(g.known, curves, strict=True):
        if result is g.best:
            label = f"{g.contender}, best draw"
            yield Line(label, look, epochs, values, form="curve", strength="strong")
