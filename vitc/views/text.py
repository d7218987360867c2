"""A page on the terminal: tables with lines there, plain columns in a pipe or file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from vitc.views.model import Bullets, Cards, Heading, Part, Table, Text


def write(parts: Sequence[Part], stream: TextIO) -> None:
    """The parts with an empty line between them; figures and details are left out."""
    first = True
    for part in parts:
        text = plain(part)
        if text is None:
            continue
        if not first:
            stream.write("\n")
        first = False
        if isinstance(part, Table) and stream.isatty():
            _write_rich(part, stream)
        else:
            stream.write(text + "\n")


def plain(part: Part) -> str | None:
    """A part as plain text; None: it cannot be shown so."""
    if isinstance(part, Text | Heading):
        return part.text
    if isinstance(part, Bullets):
        return "\n".join(f"- {item}" for item in part.items)
    if isinstance(part, Cards):
        return "\n".join(card.text for card in part.cards)
    return columns(part) if isinstance(part, Table) else None


def columns(table: Table) -> str:
    """A table with its columns in line; those that hold numbers are aligned to the right."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    found = [table.title]
    for line in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, _numeric_columns(table), strict=True)
        ]
        found.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(found)


def _write_rich(table: Table, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in zip(table.head, _numeric_columns(table), strict=True):
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(RichText, row))  # RichText: a [name] in brackets is no markup
    console = Console(file=stream, highlight=False)
    console.print(RichText(table.title, style="bold"), drawn)


def _numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers; they are aligned to the right."""
    columns: Iterable[Sequence[str]] = zip(*table.rows, strict=True)
    if not table.rows:
        columns = [()] * len(table.head)
    return [any(column) and all(map(_is_number, column)) for column in columns]


def _is_number(cell: str) -> bool:
    bare = cell.strip("+-%×x GMk").replace(",", "").replace(" ", "")
    return not bare or bare.replace(".", "", 1).replace("e-", "", 1).isdigit()
