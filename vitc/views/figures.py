"""Charts as figures as wide as a phone: their text has one size on every screen and in print."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vitc.views import forest
from vitc.views.figure_style import (
    CHARACTER,
    COLOURS,
    DPI,
    EDGE,
    INK,
    MUTED,
    STYLE,
    WIDTH,
    Place,
    address,
    colour,
    fits,
    fitting,
    marker,
    style,
)
from vitc.views.model import GREY, Chart, Forest, Line

MOST_TICKS = 6  # labels that fit on an axis
LEFT, RIGHT, HEAD, PLOT = 42, 12, 24, 176  # pixels
TICKS, XLABEL, LEGEND_ROW, TITLE = 20, 18, 17, 36
MOST_LEGEND = WIDTH - 40  # of one label
COLUMNS = 3  # at most, of figures drawn as one


class Sheet(Figure):
    """A figure that a notebook shows at its size, twice as sharp."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=2 * DPI)
        width, height = self.get_size_inches() * DPI
        return buffer.getvalue(), {"width": round(width), "height": round(height)}


def draw(charts: Sequence[Chart | Forest], titled: bool = False) -> Figure:
    """The charts beside each other, without a window system and pyplot's global state."""
    columns = math.ceil(len(charts) / math.ceil(len(charts) / COLUMNS))  # four are 2 x 2
    rows = [charts[i : i + columns] for i in range(0, len(charts), columns)]
    title = TITLE if titled else 0
    heights = [title + max(map(_height, row)) for row in rows]
    with mpl.rc_context(STYLE):
        figure = Sheet(figsize=(columns * WIDTH / DPI, sum(heights) / DPI), dpi=DPI)
        for i, row in enumerate(rows):
            for j, chart in enumerate(row):
                top = sum(heights[:i])
                if titled:
                    text = "\n".join(textwrap.wrap(chart.title, 44, max_lines=2, placeholder="…"))
                    here = Place(figure, j * WIDTH, top, WIDTH, title)
                    here.text(EDGE, title / 2 - 2, text, weight="bold")
                place = Place(figure, j * WIDTH, top + title, WIDTH, _height(chart))
                forest.draw(chart, place) if isinstance(chart, Forest) else _draw(chart, place)
    return figure


def save(chart: Chart | Forest, folder: Path) -> tuple[Figure, str]:
    """The chart as SVG and PDF in `folder`, a main one (`brief`) also as PNG.

    Returns the figure, and the SVG for an HTML page.
    """
    figure = draw([chart])
    for suffix in ("png", "pdf") if chart.brief else ("pdf",):
        figure.savefig(folder / f"{chart.name}.{suffix}", dpi=200)
    svg = _svg(figure, chart)
    (folder / f"{chart.name}.svg").write_text(_with_titles(svg, links=False), encoding="utf-8")
    return figure, _inline(svg, chart.title)


def inline(chart: Chart | Forest) -> str:
    """The chart as SVG for an HTML page, in no file of its own."""
    return _inline(_svg(draw([chart]), chart), chart.title)


# -- SVG -------------------------------------------------------------------------------------------


def _svg(figure: Figure, chart: Chart | Forest) -> str:
    buffer = io.StringIO()
    # Ids are hashed with the salt, so that several pictures in one page never share one.
    with mpl.rc_context({"svg.hashsalt": chart.name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _inline(svg: str, title: str) -> str:
    """An SVG file as an element of a page: in the page's ink and colours, at its own size."""
    svg = _with_titles(svg[svg.index("<svg") :], links=True).replace(INK, "currentColor")
    for i, light in enumerate((*COLOURS, MUTED)):
        svg = svg.replace(light.lower(), f"var(--c{i})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _with_titles(svg: str, links: bool) -> str:
    """Marks with their titles; with `links`, points lead to the curves of their names."""

    def marked(found: re.Match[str]) -> str:
        kind, name, title, inside = found.groups()
        inside = f"<title>{title}</title>{inside}"
        if kind == "target" and name:
            return f'<g id="{name}">{inside}</g>'
        return f'<a href="#{name}">{inside}</a>' if name and links else f"<g>{inside}</g>"

    pattern = r'<a xlink:href="(target|mark)\s([^"\s]*)\s([^"]*)"[^>]*>(.*?)</a>'
    return re.sub(pattern, marked, svg, flags=re.DOTALL)


# -- one chart -------------------------------------------------------------------------------------


def _labels(chart: Chart) -> list[str]:
    return [fitting(line.label, MOST_LEGEND) for line in chart.lines if line.label]


def _legend_columns(chart: Chart) -> int:
    labels = _labels(chart)
    return 2 if len(labels) > 1 and fits(labels, WIDTH / 2 - 40) else 1


def _legend_height(chart: Chart) -> int:
    rows = -(-len(_labels(chart)) // _legend_columns(chart))
    return LEGEND_ROW * rows + 6 if rows else 0


def _named_ticks(chart: Chart) -> tuple[list[str], bool]:
    """The names below the axis in lines that fit, or else cut and turned."""
    room = int((WIDTH - LEFT - RIGHT) / max(len(chart.ticks), 1) / CHARACTER)
    wrapped = [
        "\n".join(textwrap.wrap(t, max(room, 1), break_long_words=False)) for t in chart.ticks
    ]
    lines = [line for t in wrapped for line in t.split("\n")]
    if all(len(line) <= room for line in lines) and all(t.count("\n") < 3 for t in wrapped):
        return wrapped, False
    return [fitting(t, 24 * CHARACTER) for t in chart.ticks], True


def _ticks_height(chart: Chart) -> int:
    names, turned = _named_ticks(chart)
    if turned:
        return int(CHARACTER * max(map(len, names))) + 10
    return TICKS + 14 * max((t.count("\n") for t in names), default=0)


def _height(chart: Chart | Forest) -> int:
    if isinstance(chart, Forest):
        return forest.height(chart)
    xlabel = XLABEL if chart.xlabel else 0
    return HEAD + PLOT + _ticks_height(chart) + xlabel + _legend_height(chart)


def _draw(chart: Chart, place: Place) -> None:
    axes = place.axes(LEFT, HEAD, place.width - LEFT - RIGHT, PLOT)
    faint: dict[int, list[Line]] = {}  # hundreds of curves: one artist a contender
    for line in chart.lines:
        if len(line.x) and line.strength == "faint":
            faint.setdefault(line.look, []).append(line)
        elif len(line.x):
            _FORMS[line.form](axes, line)
    for look, lines in faint.items():
        curves = LineCollection(
            [list(zip(line.x, line.y, strict=True)) for line in lines],
            colors=colour(look),
            linestyles=[style(look)],
            alpha=0.2,
            linewidths=0.8,
        )
        if all(line.names for line in lines):
            curves.set_urls([address(x.names[0], "".join(x.titles), target=True) for x in lines])
        axes.add_collection(curves)
    axes.autoscale_view()
    if chart.log_x:
        _log_axis(axes)
        measured = sorted({x for line in chart.lines for x in line.x})
        if len(measured) <= MOST_TICKS and all(float(x).is_integer() for x in measured):
            axes.set_xticks(measured)  # lengths in epochs: those that were run
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    if chart.ticks:
        names, turned = _named_ticks(chart)
        axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0)
        axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(*chart.ylim)
    bottom = HEAD + PLOT + _ticks_height(chart)
    place.text(EDGE, HEAD / 2 - 1, chart.ylabel)
    place.text(LEFT + (place.width - LEFT - RIGHT) / 2, bottom + 6, chart.xlabel, ha="center")
    if _labels(chart):
        below = bottom + (XLABEL if chart.xlabel else 0) + 4
        place.legend(axes, below, _legend_columns(chart))


def _draw_points(axes: Any, line: Line) -> None:
    """Points with their intervals, joined; the line to a substituted point is dashed."""
    ink = colour(line.look)
    own = "-" if line.substituted else style(line.look)  # there dashed has a meaning
    shape = line.marker if line.marker != "o" else marker(line.look)
    substituted = line.substituted or [False] * len(line.x)
    for i in range(1, len(line.x)):
        axes.plot(
            line.x[i - 1 : i + 1],
            line.y[i - 1 : i + 1],
            color=ink,
            linewidth=1.3,
            linestyle="--" if substituted[i] else own,
        )
    for i, hollow in enumerate(substituted):
        axes.plot(
            line.x[i],
            line.y[i],
            marker=shape,
            color=ink,
            linestyle="none",
            markerfacecolor="none" if hollow else ink,
            markersize=5.5,
            label=_label(line) if i == 0 else None,
        )
    if len(line.low):
        axes.vlines(line.x, line.low, line.high, color=ink, alpha=0.5, linewidth=1.5)


def _draw_curve(axes: Any, line: Line) -> None:
    (drawn,) = axes.plot(
        line.x,
        line.y,
        label=_label(line),
        color=colour(line.look),
        linestyle=style(line.look),
        linewidth=1.8 if line.strength == "strong" else 1.4,
        drawstyle="steps-post" if line.form == "steps" else "default",
    )
    if line.names:
        drawn.set_url(address(line.names[0], "".join(line.titles), target=True))


def _draw_band(axes: Any, line: Line) -> None:
    step = "post" if line.form == "step band" else None
    ink = colour(line.look)
    axes.fill_between(line.x, line.low, line.high, step=step, color=ink, alpha=0.13, linewidth=0)


def _draw_range(axes: Any, line: Line) -> None:
    low, middle, high = line.x
    (height,) = line.y
    place = {"transform": axes.get_xaxis_transform(), "color": colour(line.look)}
    axes.plot([low, high], [height] * 2, linewidth=2.5, alpha=0.6, **place)
    axes.plot([middle], [height], marker="|", markersize=8, **place)


def _draw_level(axes: Any, line: Line) -> None:
    ink = colour(line.look)
    behind = {"zorder": 0.8 if line.look == GREY else 1.2}
    if len(line.low):
        axes.axhspan(line.low[0], line.high[0], color=ink, alpha=0.18, linewidth=0, **behind)
    width = 1.6 if len(line.low) else 0.9
    axes.axhline(line.y[0], color=ink, linewidth=width, label=_label(line), **behind)


def _draw_scatter(axes: Any, line: Line) -> None:
    """Markers, those of failed runs as crosses; a rug at a share of the axis, not at a value."""
    crossed, where = line.substituted or [False] * len(line.x), {}
    if line.form == "rug":
        crossed, where = [True] * len(line.x), {"transform": axes.get_xaxis_transform()}
        axes.update_datalim([(x, 0) for x in line.x], updatey=False)
    many = len(line.x) > 128
    dots = {"s": 9 if many else 16, "alpha": 0.35 if line.look == GREY or many else 0.65}
    for shape, wanted, look in (
        (marker(line.look), False, {**dots, "linewidths": 0}),
        ("x", True, {"s": 20, "linewidths": 1.1}),
    ):
        mine = [i for i, cross in enumerate(crossed) if cross == wanted]
        if not mine:
            continue
        drawn = axes.scatter(
            [line.x[i] for i in mine],
            [line.y[i] for i in mine],
            marker=shape,
            color=colour(line.look),
            zorder=1.0 if line.look == GREY else 2.0,
            label=None if wanted and not all(crossed) else _label(line),
            clip_on=False,
            **look,
            **where,
        )
        if line.titles:
            names = line.names or [""] * len(line.x)
            drawn.set_urls([address(names[i], line.titles[i]) for i in mine])


_FORMS = {
    "points": _draw_points,
    "curve": _draw_curve,
    "steps": _draw_curve,
    "band": _draw_band,
    "step band": _draw_band,
    "range": _draw_range,
    "level": _draw_level,
    "scatter": _draw_scatter,
    "rug": _draw_scatter,
}


def _label(line: Line) -> str | None:
    return fitting(line.label, MOST_LEGEND) if line.label else None


def _log_axis(axes: Any) -> None:
    """A log axis whose labels are plain numbers: names may hold `$`, so nothing is mathtext."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    ticks: Any = mpl.ticker.LogLocator(subs=steps)
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    if sum(low <= step * 10.0**ten <= high for ten in tens for step in steps) < 2:
        # The other would place many, whose labels overlap.
        some = mpl.ticker.MaxNLocator(3).tick_values(low, high)
        ticks = mpl.ticker.FixedLocator([v for v in some if low <= v <= high])
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
