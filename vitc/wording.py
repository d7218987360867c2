"""How numbers, names and lists of them are written in messages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import timedelta

from vitc.errors import ConfigError

_UNITS = {
    86400: "d|days?",
    3600: "h|hrs?|hours?",
    60: "m|mins?|minutes?",
    1: "s|secs?|seconds?",
}
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)[\s,]*")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def few(items: Iterable[str], most: int = 5, join: str = ", ") -> str:
    """`a, b, c and 4 more`."""
    items = list(items)
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return join.join(items[:most]) + more


def bounds(interval: Iterable[float], form: str, unknown: str = "?") -> list[str]:
    """The bounds of an interval by a format such as "+.1f"; `unknown` for an infinite one."""
    return [unknown if math.isinf(x) else f"{x:{form}}" for x in interval]


def printable(text: str) -> str:
    """Control characters spelt out: a stranger's file name must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def no_formula(cell: object) -> object:
    """A cell that no spreadsheet runs: strings that start like a formula get an apostrophe.

    Numbers stay as they are, as strings too.
    """
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def short(text: str, most: int = 200) -> str:
    """The text as one printable line, cut to `most` characters."""
    text = printable(" ".join(text[: 4 * most].split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min`."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def read_duration(time: str | float | timedelta) -> float:
    """Seconds of `90s`, `6m`, `6 min`, `1h30`, `1.5 hours`; of a number, which is in seconds, or of
    a timedelta. Raises ConfigError: none of these, or not above 0."""
    seconds: float | None = None
    if isinstance(time, timedelta):
        seconds = time.total_seconds()
    elif isinstance(time, str):
        seconds = _seconds_of(time.strip().lower())
    elif isinstance(time, int | float) and not isinstance(time, bool):
        seconds = float(time)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigError(f"{time!r} must be a time such as 90s, 30m or 1h30m, and above 0.")
    return seconds


def _seconds_of(text: str) -> float | None:
    """Numbers with units, the largest first; the last may lack its unit: `1h30` is `1h30m`."""
    units = list(_UNITS)
    total, last = 0.0, -1
    for number, word in _NUMBER_AND_UNIT.findall(text):
        at = next((i for i, unit in enumerate(units) if re.fullmatch(_UNITS[unit], word)), None)
        if not word and 0 <= last < len(units) - 1:
            at = last + 1
        if at is None or at <= last:
            return None
        total, last = total + float(number) * units[at], at
    return None if _NUMBER_AND_UNIT.sub("", text) else total


def size(count: int) -> str:
    """Bytes: `1.5 GB`, `23.4 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
