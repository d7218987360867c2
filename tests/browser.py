"""How a page looks in a browser, for the tests of pages."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --allow-file-access-from-files --enable-logging=stderr --v=0 --virtual-time-budget=4000"""


class Tags(HTMLParser):
    """The tags of a page and their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def measured(page: Path, width: int, folder: Path, **counts: str) -> dict[str, Any]:
    """Widths of the page's content and window, and `counts`, expressions of its document d.

    The page is in a frame of that width, for a headless window is at least 500 pixels wide and the
    page itself may run no script. Skips without Debian's Chromium: scripts/install_browser.sh.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NO CHROMIUM: run scripts/install_browser.sh to have the page looked at")
    counts = {
        "scroll": "d.documentElement.scrollWidth",
        "client": "d.documentElement.clientWidth",
        **counts,
    }
    values = ", ".join(f"{name}: {expression}" for name, expression in counts.items())
    probe = folder / "probe.html"
    probe.write_text(
        f'<iframe id="f" width="{width}" height="3000" src="{page.as_uri()}"></iframe>'
        '<pre id="o"></pre><script>onload = () => { const d = f.contentDocument; '
        f"o.textContent = JSON.stringify({{{values}}}); }}</script>"
    )
    window = f"--window-size={max(width, 500) + 40},1200"
    words = [chromium, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", window]
    words += ["--dump-dom", probe.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True)
    assert "CONSOLE" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout.partition('id="o">')[2].partition("</pre>")[0])
    return found
