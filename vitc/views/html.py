"""A page as one HTML file that refers to nothing outside itself and runs no script.

Every string of the page is escaped by the template engine, whatever a file's or a contender's
name holds; the policy in the head forbids a browser to load or run anything.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vitc.views.model import Page, Part
from vitc.wording import printable


def render(page: Page, svgs: Mapping[str, str] | None = None) -> str:
    """The page as HTML; `svgs`: the figure of every chart by the chart's name."""
    return _environment().get_template("page.html").render(page=page, svgs=svgs or {})


def render_template(template: str, **values: object) -> str:
    """A page with a layout of its own, whose values are escaped as everywhere."""
    return _environment().get_template(template).render(values)


def fragment(parts: Sequence[Part]) -> str:
    """Parts without figures as HTML to put into another page, such as a notebook."""
    empty = {"page": Page("", ()), "svgs": {}}
    shown = _environment().get_template("page.html").make_module(empty).shown  # type: ignore[attr-defined]
    return "".join(str(shown(part)) for part in parts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vitc.views"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["unbroken"] = _unbroken
    return environment


def _printable(value: Any) -> Any:
    """Without control characters and halves of characters, which a file's name can hold."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    safe = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "\n".join(map(printable, safe.split("\n")))


def _unbroken(text: str) -> Markup:
    """A number and its percent sign on one line, where lines are short."""
    return escape(_printable(text)).replace(" %", Markup("&nbsp;%"))
