"""What `vitc show` and its like give: tables and sentences, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from vitc.config import RunConfig, resolve_config
from vitc.errors import ConfigError

if TYPE_CHECKING:
    from vitc.models.config import ModelConfig


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; cells that are numbers stand to the right."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Page:
    """Something shown: `values` for machines, `parts` for people."""

    values: dict[str, Any]
    parts: Sequence[str | Table]


def write(page: Page, stream: TextIO) -> None:
    """The page's parts: tables with lines on a terminal, plain columns elsewhere."""
    for i, part in enumerate(page.parts):
        if i:
            stream.write("\n")
        if isinstance(part, str):
            stream.write(part + "\n")
        elif stream.isatty():
            _write_rich(part, stream)
        else:
            _write_plain(part, stream)


def _write_rich(table: Table, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in zip(table.header, _right(table), strict=True):
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # Text: a [name] in brackets is no markup
    console = Console(file=stream, highlight=False)
    console.print(Text(table.title, style="bold"), drawn)


def _write_plain(table: Table, stream: TextIO) -> None:
    lines = [table.header, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    stream.write(f"{table.title}\n")
    for line in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, _right(table), strict=True)
        ]
        stream.write(("  " + "  ".join(cells)).rstrip() + "\n")


def _right(table: Table) -> list[bool]:
    """Which columns hold numbers."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
    return [any(column) and all(_numeric(cell) for cell in column) for column in columns]


def _numeric(cell: str) -> bool:
    bare = cell.strip("+-%×x GMk").replace(",", "").replace(" ", "")
    return not bare or bare.replace(".", "", 1).replace("e-", "", 1).isdigit()


def model_with(name: str, settings: Mapping[str, Any]) -> ModelConfig:
    """The config of a named model under changed settings. Raises ConfigError: others than its."""
    from vitc.models.zoo import model_config

    foreign = [s for s in settings if not s.startswith("model.")]
    if foreign:
        raise ConfigError(f"--{foreign[0]} has no effect with a model: only --model.* has.")
    config = resolve_config(RunConfig(model=model_config(name)), **settings).model
    if config.problems():
        raise ConfigError("\n".join(config.problems()))
    return config
