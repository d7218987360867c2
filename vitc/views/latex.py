"""Tables for a paper, in LaTeX; they need the booktabs package."""

from __future__ import annotations

import re

from vitc.views.model import Table

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}


def tabular(table: Table, columns: str = "") -> str:
    """One table under its title as a comment; `columns`: their alignment (default: left)."""
    lines = [
        f"% {escape(table.title)}",
        rf"\begin{{tabular}}{{{columns or 'l' * len(table.head)}}}",
        r"\toprule",
        " & ".join(map(escape, table.head)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escape, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Printable text; the sign of a number is a minus."""
    safe = "".join(ESCAPES.get(c, c) for c in text if c.isprintable())
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", safe)
