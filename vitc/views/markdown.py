"""Markdown: a page for a repository with links to its figures, and documents by template."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from vitc.views.model import Bullets, Cards, Figures, Heading, Part, Table, Text
from vitc.wording import counted, short


def render(parts: Sequence[Part], folder: str) -> str:
    """The parts as Markdown; `folder`: where the PNG of every chart is, relative to the page.

    Figures show their brief charts, and details are left out.
    """
    return "\n\n".join(filter(None, (_part(part, folder) for part in parts))) + "\n"


def escape(text: str) -> str:
    """Plain text on one line, with nothing in it that is markup."""
    return re.sub(r"([\\`*\[\]<>|~#&])", r"\\\1", " ".join(text.split()))


def _part(part: Part, folder: str) -> str:
    if isinstance(part, Text):
        verdict = part.tone.startswith("verdict")
        return f"**{escape(part.text)}**" if verdict else escape(part.text)
    if isinstance(part, Heading):
        return f"{'#' * part.level} {escape(part.text)}"
    if isinstance(part, Bullets):
        return "\n".join(f"- {escape(item)}" for item in part.items)
    if isinstance(part, Cards):
        return "\n\n".join(f"**{escape(card.text)}**" for card in part.cards)
    if isinstance(part, Figures):
        links = [
            f"![{escape(c.title)}]({quote(folder)}/{quote(c.name)}.png)"
            for c in part.charts
            if c.brief
        ]
        title = [f"## {escape(part.title)}"] if part.title else []
        note = [escape(part.note)] if part.note else []
        return "\n\n".join([*title, *note, "\n".join(links)]) if links else ""
    return _table(part) if isinstance(part, Table) else ""


def _table(table: Table) -> str:
    title, note = f"{'#' * table.level} {escape(table.title)}", escape(table.note)
    if not table.rows:
        return f"{title}\n\n{note}"
    head, *rows = ([escape(cell) for cell in row] for row in [table.head, *table.rows])
    lines = [head, ["---"] * len(head), *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, [title, body, note]))


# -- documents by template -------------------------------------------------------------------------


def document(template: str, **values: object) -> str:
    """A Markdown template with its values; untrusted names go through the filter `code`."""
    environment = Environment(
        loader=PackageLoader("vitc.views"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "quoted": quoted,
        "counted": counted,
        "numbers": lambda values: ", ".join(f"{v:g}" for v in values),
    }
    return environment.get_template(template).render(values)


def code(value: object, most: int = 120) -> str:
    """Any text as a Markdown code span on one line: none of it is interpreted."""
    text = short(str(value), most) or " "
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or text.startswith(" ") or text.endswith(" ") else ""
    return f"{fence}{space}{text}{space}{fence}"


def quoted(value: object) -> str:
    """Any text as a double-quoted string of JSON, which YAML reads alike."""
    return json.dumps(short(str(value), 120), ensure_ascii=False)
