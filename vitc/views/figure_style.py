"""How figures look: sizes in CSS pixels, colours, and places on a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

DPI = 96  # a CSS pixel is 1/96 inch, 0.75 points
WIDTH = 340  # of every figure: a phone's, three beside each other on a desk
EDGE = 2  # before text
TEXT, SMALL = 0.75 * 11, 0.75 * 10.5  # points
CHARACTER = 6.4  # pixels, the mean width of one of TEXT

# Okabe & Ito's order of hues, each with a contrast of 3 or more to white; page.css has the ones
# for dark pages. Line style and marker repeat the distinction for print and any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#008566", "#B0528F", "#96700A", "#4A90C2")
MUTED = "#767676"
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#1b1f24"  # text and axes; in HTML they take the page's own colour

STYLE: dict[Any, Any] = {
    "font.size": TEXT,
    "font.family": "sans-serif",
    "axes.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a `$` in a model's name is a `$`
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
}


def colour(look: int) -> str:
    """Of the look-th contender; grey below 0."""
    return MUTED if look < 0 else COLOURS[look % len(COLOURS)]


def style(look: int) -> Any:
    """The line style: no two pairs of colour and style alike up to 36."""
    return "-" if look < 0 else STYLES[(look + look // len(COLOURS)) % len(STYLES)]


def marker(look: int) -> str:
    return "o" if look < 0 else MARKERS[look % len(MARKERS)]


@dataclass(frozen=True)
class Place:
    """A rectangle of a figure; lengths are in pixels, from its top left corner."""

    figure: Figure
    left: float
    top: float
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float, **words: Any) -> Any:
        x, y = self._fraction(left, top + height)
        whole_width, whole_height = self.figure.get_size_inches() * DPI
        return self.figure.add_axes((x, y, width / whole_width, height / whole_height), **words)

    def text(self, x: float, y: float, text: str, **words: Any) -> None:
        self.figure.text(*self._fraction(x, y), text, **{"va": "center", **words})

    def legend(self, axes: Any, top: float, columns: int) -> None:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=self._fraction(EDGE, top),
            bbox_transform=self.figure.transFigure,
            ncols=columns,
            borderaxespad=0,
            borderpad=0,
            labelspacing=0.45,
            handlelength=1.8,
            handletextpad=0.5,
            columnspacing=1.2,
        )

    def _fraction(self, x: float, y: float) -> tuple[float, float]:
        width, height = self.figure.get_size_inches() * DPI
        return (self.left + x) / width, 1 - (self.top + y) / height


def fitting(text: str, width: float) -> str:
    """The text, cut to so many pixels."""
    most = max(4, int(width / CHARACTER))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def fits(texts: Sequence[str], width: float) -> bool:
    return all(len(text) * CHARACTER <= width for text in texts)


def address(name: str, title: str, target: bool = False) -> str:
    """What a mark carries through matplotlib as its link, until `figures` makes it a title."""
    return "\t".join(("target" if target else "mark", name, title))
