"""How numbers, names and lists of them are written in messages."""

from __future__ import annotations

from collections.abc import Iterable


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def few(items: Iterable[str], most: int = 5, join: str = ", ") -> str:
    """`a, b, c and 4 more`."""
    items = list(items)
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return join.join(items[:most]) + more


def printable(text: str) -> str:
    """Control characters spelt out: a stranger's file name must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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


def size(count: int) -> str:
    """Bytes: `1.5 GB`, `23.4 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
