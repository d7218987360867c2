"""The pictures of a report, each a small figure of its own, readable on a phone and in print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from vitc.stats import curves as st
from vitc.study.design import Range
from vitc.study.measures.hparams import GroupDraws
from vitc.study.results import Chart, Line, Section

# Okabe & Ito's palette (jfly.uni-koeln.de/color) and a grey: told apart with any colour vision;
# line style and marker repeat the distinction for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
FEWEST_FOR_BEST_RANGE = 16  # draws: the filter takes the best of a quarter of them
MOST_TICKS = 6  # labels that have room beside each other
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#1b1f24"  # text and axes; the HTML replaces it by the page's own colour

STYLE: dict[Any, Any] = {
    "figure.figsize": (4.7, 3.5),
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a `$` in somebody's model name is a `$`
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
}


@dataclass(frozen=True)
class Picture:
    """One figure with a file name, and a caption that says what to see."""

    name: str
    part: str
    optim: str
    title: str
    figure: Figure


def pictures(section: Section, index: int) -> Iterator[Picture]:
    """All figures of a section, in the report's order; `part` groups them."""
    yield from draws_pictures(section, index)
    yield from chart_pictures(section, index)


def draws_pictures(section: Section, index: int) -> Iterator[Picture]:
    """The error distributions of random draws."""
    with mpl.rc_context(STYLE):
        for optim in section.plan.optims:
            mine = [g for g in section.finding.draws if g.optim == optim]
            groups = [g for g in mine if g.known]
            if not groups:
                continue
            stem = f"{index}_{optim}"
            looks = {g.contender: i for i, g in enumerate(mine)}
            yield Picture(
                f"tuning_{stem}",
                "tuning",
                optim,
                f"{optim}: best after k draws",
                _tuning(groups, looks, compute=False),
            )
            yield Picture(
                f"compute_{stem}",
                "tuning",
                optim,
                f"{optim}: best after some compute",
                _tuning(groups, looks, compute=True),
            )
            yield Picture(f"edf_{stem}", "edf", optim, f"{optim}: all draws", _edf(groups, looks))
            yield Picture(
                f"delta_{stem}",
                "edf",
                optim,
                f"{optim}: distance to the best draw",
                _delta(groups, looks),
            )
            for name, x, logarithmic in _settings(section, optim):
                safe = name.replace(" ", "").replace("·", "_times_").replace(".", "_")
                title = f"{optim}: error against {name}"
                yield Picture(
                    f"scatter_{stem}_{safe}",
                    "scatter",
                    optim,
                    title,
                    _scatter(groups, looks, name, x, logarithmic),
                )
            if any(len(c[0]) > 1 for g in groups for c in g.curves):
                title = f"{optim}: validation error by epoch"
                yield Picture(
                    f"curves_{stem}",
                    "curves",
                    optim,
                    title,
                    _curves(
                        groups,
                        looks,
                        [g.curves for g in groups],
                        "top-1 error of the EMA weights (%)",
                    ),
                )
            if any(len(c[0]) > 1 for g in groups for c in g.losses):
                yield Picture(
                    f"losses_{stem}",
                    "curves",
                    optim,
                    f"{optim}: training loss by epoch",
                    _curves(
                        groups,
                        looks,
                        [g.losses for g in groups],
                        "training loss (of the augmented images)",
                    ),
                )


def chart_pictures(section: Section, index: int) -> Iterator[Picture]:
    """The charts of a measure that hold anything."""
    with mpl.rc_context(STYLE):
        for chart in section.finding.charts:
            if any(line.x for line in chart.lines):
                name = f"{chart.name}_{index}"
                yield Picture(name, "chart", "", chart.title, _chart(chart))


def _chart(chart: Chart) -> Figure:
    figure, axes = _axes()
    for line in chart.lines:
        if line.x:
            _draw(axes, line)
    if chart.log_x:
        _log_axis(axes)
        measured = sorted({x for line in chart.lines for x in line.x})
        if len(measured) <= MOST_TICKS and all(x.is_integer() for x in measured):
            axes.set_xticks(measured)  # lengths in epochs: those that were run
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), chart.ticks, rotation=25, ha="right", fontsize=8)
    axes.set_xlabel(chart.xlabel)
    axes.set_ylabel(chart.ylabel)
    _legend(axes, len(chart.lines))
    return figure


def _draw(axes: Any, line: Line) -> None:
    """Points with their intervals, joined; dashed on the way to a point that stands for another."""
    colour, own = _colour_and_style(line.look)
    style = "-" if line.substituted else own  # there dashed has a sense
    marker = line.marker if line.marker != "o" else MARKERS[line.look % len(MARKERS)]
    substituted = line.substituted or [False] * len(line.x)
    for i in range(1, len(line.x)):
        axes.plot(
            line.x[i - 1 : i + 1],
            line.y[i - 1 : i + 1],
            color=colour,
            linewidth=1.3,
            linestyle="--" if substituted[i] else style,
        )
    for i, hollow in enumerate(substituted):
        axes.plot(
            line.x[i],
            line.y[i],
            marker=marker,
            color=colour,
            linestyle="none",
            markerfacecolor="none" if hollow else colour,
            markersize=6,
            label=line.label if i == 0 else None,
        )
    if line.low:
        low, high = np.array(line.low), np.array(line.high)
        axes.vlines(line.x, low, high, color=colour, alpha=0.4, linewidth=1.5)


def _axes() -> tuple[Figure, Any]:
    figure = Figure(layout="constrained")
    return figure, figure.subplots()


def _log_axis(axes: Any) -> None:
    """A log axis whose labels are plain numbers: names may hold `$`, so nothing is mathtext."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.tick_params(axis="x", labelsize=7.5)


def _legend(axes: Any, count: int) -> None:
    axes.figure.legend(loc="outside lower center", ncols=2 if count > 1 else 1, fontsize=8)


def _look(i: int) -> dict[str, Any]:
    colour, style = _colour_and_style(i)
    return {"color": colour, "linestyle": style}


def _colour_and_style(i: int) -> tuple[str, Any]:
    """Colour and line style of the i-th contender: no two pairs alike up to seven times six."""
    return COLOURS[i % len(COLOURS)], STYLES[(i + i // len(COLOURS)) % len(STYLES)]


def _tuning(groups: list[GroupDraws], looks: dict[str, int], compute: bool) -> Figure:
    figure, axes = _axes()
    for g in groups:
        t = g.tuning
        if t is None or (compute and not g.seconds_a_trial):
            continue
        look = _look(looks[g.contender])
        x = t.ks * (g.seconds_a_trial if compute else 1.0)
        axes.plot(x, t.mean, label=g.contender, **look)
        axes.fill_between(x, t.mean_low, t.mean_high, color=look["color"], alpha=0.13, linewidth=0)
    _log_axis(axes)
    axes.set_xlabel("training seconds spent on draws" if compute else "number of draws k")
    axes.set_ylabel("expected best top-1 error (%)")
    _tight_y(axes, groups)
    _legend(axes, len(groups))
    return figure


def _tight_y(axes: Any, groups: list[GroupDraws]) -> None:
    """The curves fill the figure; where so few draws bound nothing, the band runs off it."""
    means = np.concatenate([g.tuning.mean for g in groups if g.tuning is not None])
    low, high = float(means.min()), float(means.max())
    room = max(high - low, 2.0)
    axes.set_ylim(max(0.0, low - 0.35 * room), min(100.0, high + 0.35 * room))


def _edf(groups: list[GroupDraws], looks: dict[str, int]) -> Figure:
    figure, axes = _axes()
    for g in groups:
        look = _look(looks[g.contender])
        band = st.edf_band(g.errors)
        x, share = st.edf(g.errors)
        axes.step(
            [x[0], *x],
            [0, *share],
            where="post",
            label=f"{g.contender} (n {len(g.errors)})",
            **look,
        )
        axes.fill_between(
            band.x, band.low, band.high, step="post", color=look["color"], alpha=0.10, linewidth=0
        )
    axes.set_xlabel("top-1 error (%); diverged = chance")
    axes.set_ylabel("share of draws at or below")
    axes.set_ylim(0, 1.02)
    _legend(axes, len(groups))
    return figure


def _delta(groups: list[GroupDraws], looks: dict[str, int]) -> Figure:
    figure, axes = _axes()
    for g in groups:
        x, share = st.edf_delta(g.errors)
        axes.step(
            [x[0], *x], [0, *share], where="post", label=g.contender, **_look(looks[g.contender])
        )
    axes.set_xlabel("points above the contender's own best draw")
    axes.set_ylabel("share of draws at or below")
    axes.set_ylim(0, 1.02)
    _legend(axes, len(groups))
    return figure


def _settings(section: Section, optim: str) -> Iterator[tuple[str, Any, bool]]:
    """(label, how to read it off a row's values, log axis) of each drawn setting, and of lr*wd."""
    ranges: dict[str, Range] = section.plan.ranges[optim]
    short = {"optim.lr": "lr", "optim.weight_decay": "weight decay"}
    for name, r in ranges.items():
        yield short.get(name, name), (lambda values, name=name: values[name]), r.log
    if {"optim.lr", "optim.weight_decay"} <= set(ranges):
        yield "lr · weight decay", _product, True


def _product(values: dict[str, float]) -> float:
    return values["optim.lr"] * values["optim.weight_decay"]


def _scatter(
    groups: list[GroupDraws], looks: dict[str, int], name: str, read: Any, log: bool
) -> Figure:
    figure, axes = _axes()
    bars = ""
    for g in groups:
        i = looks[g.contender]
        rows = [r for r in g.results if r.error is not None]
        x = np.array([read(r.values) for r in rows])
        y = np.array([r.error for r in rows])
        diverged = np.array([r.status == "diverged" for r in rows])
        colour = COLOURS[i % len(COLOURS)]
        axes.scatter(
            x[~diverged],
            y[~diverged],
            s=16,
            alpha=0.75,
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            label=g.contender,
            linewidths=0,
        )
        axes.scatter(x[diverged], y[diverged], s=22, color=colour, marker="x")
        if len(rows) >= FEWEST_FOR_BEST_RANGE:
            best = st.best_range(y, np.log10(x) if log else x)
            low, middle, high = (10**v if log else v for v in best)
            place = {"transform": axes.get_xaxis_transform(), "color": colour}
            axes.plot([low, high], [0.015 + 0.03 * i] * 2, linewidth=2.5, alpha=0.6, **place)
            axes.plot([middle], [0.015 + 0.03 * i], marker="|", markersize=8, **place)
            bars = " (bars: best of resampled studies)"
    if log:
        _log_axis(axes)
    axes.set_xlabel(f"{name}{bars}")
    axes.set_ylabel("top-1 error (%); x: diverged")
    _legend(axes, len(groups))
    return figure


Curves = list[tuple[list[float], list[float]]]  # (epochs, values) of each trial with a result


def _curves(
    groups: list[GroupDraws], looks: dict[str, int], curves: list[Curves], ylabel: str
) -> Figure:
    figure, axes = _axes()
    for g, mine in zip(groups, curves, strict=True):
        look = _look(looks[g.contender])
        for row, (epochs, values) in zip(
            [r for r in g.results if r.error is not None], mine, strict=True
        ):
            chosen = row is g.best
            axes.plot(
                epochs,
                values,
                color=look["color"],
                alpha=0.95 if chosen else 0.18,
                linewidth=1.8 if chosen else 0.7,
                linestyle=look["linestyle"],
                label=f"{g.contender}, best draw" if chosen else None,
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    first = [values[0] for mine in curves for _, values in mine if values]
    axes.set_ylim(top=1.1 * max(first), bottom=0 if min(first) < 1 else None)  # diverging: off it
    _legend(axes, len(groups))
    return figure
