"""The data doctor's report as one HTML page: findings with pictures, classes, sizes.

It refers to nothing outside itself, runs no script, and every name in it is escaped.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitc.data.check_report import Finding, Report, to_values
from vitc.data.store import shown
from vitc.errors import BrokenFileError
from vitc.wording import counted

THUMB_SIDE = 112  # pixels
THUMBS = 12  # of a finding
MOST_CLASSES = 60  # with a bar of their own
WORDS = {"stop": "stops training", "warn": "harms", "note": "worth knowing"}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #f3f4f6; --line: #d0d4da;
  --stop: #a3161c; --warn: #8a4b00; --note: #31517a; --bar: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171b; --soft: #1e2227;
  --line: #3a4048; --stop: #ff8d86; --warn: #ffb454; --note: #9cc4f2; --bar: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p, li, td, h1, h3, figcaption { overflow-wrap: anywhere; } p, li { max-width: 75ch; }
.verdict { padding: .8rem 1rem; background: var(--soft); border-left: 4px solid var(--note); }
.stop { color: var(--stop); } .warn { color: var(--warn); } .note { color: var(--note); }
.verdict.stop, .verdict.warn { border-color: currentColor; }
section { border-top: 1px solid var(--line); padding: .4rem 0 1rem; }
h3 { font-size: 1rem; margin: .6rem 0 .2rem; }
.cure { margin: .2rem 0 .6rem; } code { background: var(--soft); padding: .1rem .3rem; }
.thumbs { display: flex; flex-wrap: wrap; gap: .6rem; }
figure { margin: 0; width: 116px; } figcaption { font-size: .7rem; line-height: 1.25; }
figure img, .lost { max-width: 112px; max-height: 112px; display: block; background: var(--soft); }
.lost { width: 112px; height: 72px; border: 1px dashed var(--line); font-size: .75rem;
  display: grid; place-items: center; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font: 12px sans-serif; }
svg rect { fill: var(--bar); }
"""


def page(report: Report) -> str:
    """The report as HTML. Reads the pictures of the first examples once more."""
    title = f"Data check: {report.config.path or report.config.source}"
    body = [
        f"<h1>{_e(title)}</h1>",
        _verdict(report),
        _facts(report),
        "<h2>Findings</h2>",
        *(_finding(report, f) for f in report.findings),
        "" if report.findings else "<p>Nothing was found.</p>",
        "<h2>Classes</h2>",
        _classes(report),
        "<h2>Sizes</h2>",
        _sizes(report),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{_e(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _e(text: object) -> str:
    safe = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return html.escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in safe), quote=True)


def _verdict(report: Report) -> str:
    if report.fails:
        return '<p class="verdict stop">Training would fail. What stops it stands first.</p>'
    worst = "warn" if any(f.severity == "warn" for f in report.findings) else ""
    words = f"Training can start. {counted(len(report.findings), 'finding')}."
    return f'<p class="verdict {worst}">{words}</p>'


def _facts(report: Report) -> str:
    values = to_values(report)
    splits = ", ".join(f"{n:,} {split}" for split, n in values["images"].items()) or "none"
    rows = [
        ("images", splits),
        ("examined", f"{values['examined']:,}, of which {values['broken']:,} cannot be read"),
        ("formats", ", ".join(f"{k} {n:,}" for k, n in values["formats"].items())),
        ("modes", ", ".join(f"{k} {n:,}" for k, n in values["modes"].items())),
    ]
    if values["speed"]:
        speed = values["speed"]
        rows.append(
            (
                "reading and decoding",
                f"{speed['images_per_second_a_core']:,} images/s a "
                f"core; {speed['processes']} processes at most "
                f"{speed['images_per_second']:,}",
            )
        )
    cells = "".join(f"<tr><th>{_e(k)}</th><td>{_e(v)}</td></tr>" for k, v in rows)
    notes = "".join(f"<li>{_e(n)}</li>" for n in report.notes)
    return f'<div class="scroll"><table>{cells}</table></div><ul>{notes}</ul>'


# -- findings --------------------------------------------------------------------------------------


def _finding(report: Report, finding: Finding) -> str:
    head = f'<h3><span class="{finding.severity}">{WORDS[finding.severity]}</span> · '
    parts = [head, f"{_e(finding.text)}</h3>"]
    parts.append(f'<p class="cure">Cure: {_e(finding.cure)}.</p>')
    if finding.places is not None:
        shown_places = _chosen(finding)
        parts.append('<div class="thumbs">')
        parts += [_thumb(report, place) for place in shown_places]
        parts.append("</div>")
        if len(finding.places) > len(shown_places):
            parts.append(f"<p>and {len(finding.places) - len(shown_places):,} more.</p>")
    elif finding.names:
        items = "".join(f"<li>{_e(n)}</li>" for n in finding.names[:THUMBS])
        more = len(finding.names) - THUMBS
        parts.append(f"<ul>{items}</ul>" + (f"<p>and {more:,} more.</p>" if more > 0 else ""))
    return f"<section>{''.join(parts)}</section>"


def _chosen(finding: Finding) -> list[int]:
    """The images shown: the first ones, of groups at most three each, so that pairs are seen."""
    assert finding.places is not None
    if finding.groups is None:
        found: list[int] = finding.places[:THUMBS].tolist()
        return found
    chosen: list[int] = []
    taken: dict[int, int] = {}
    for place, group in zip(finding.places.tolist(), finding.groups.tolist(), strict=True):
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= 3:
            chosen.append(place)
        if len(chosen) >= THUMBS:
            break
    return chosen


def _thumb(report: Report, place: int) -> str:
    split, index = report.place(place)
    label = report.classes[int(report.splits[split].labels[index])]
    why = report.details.get(place, "")
    caption = _e(shown(report.names[place]))
    caption += f"<br>{_e(split)}: {_e(label)}" + (f"<br>{_e(why)}" if why else "")
    picture = '<div class="lost">no picture</div>'
    with contextlib.suppress(BrokenFileError):
        data = _small_jpeg(report, split, index)
        picture = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _small_jpeg(report: Report, split: str, index: int) -> str:
    image = Image.fromarray(report.splits[split].read(index, 3))
    image.thumbnail((THUMB_SIDE, THUMB_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()


# -- plots -----------------------------------------------------------------------------------------


def _classes(report: Report) -> str:
    if "train" not in report.counts:
        return "<p>None could be opened.</p>"
    train = report.counts["train"]
    order = np.argsort(-train, kind="stable")
    note = ""
    if len(order) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        note = f"<p>The {half} largest and the {half} smallest of {len(train):,} classes.</p>"
    bars = [(report.classes[i], int(train[i])) for i in order.tolist()]
    return note + "<p>Training images of each class.</p>" + _bars(bars)


def _sizes(report: Report) -> str:
    seen = report.records[report.readable]
    if not len(seen):
        return "<p>No image could be read.</p>"
    short = np.minimum(seen["height"], seen["width"]).astype(np.int64)
    powers = np.floor(np.log2(short) * 2).astype(int)
    bars = []
    for p in range(int(powers.min()), int(powers.max()) + 1):
        low, high = int(np.ceil(2 ** (p / 2))), int(np.ceil(2 ** ((p + 1) / 2))) - 1
        bars.append((f"{low:,} to {high:,}", int((powers == p).sum())))
    table = ""
    for name, values in report.quantiles().items():
        cells = "".join(f"<td>{v:,}</td>" for v in values)
        table += f"<tr><th>{_e(name.replace('_', ' '))}</th>{cells}</tr>"
    head = "".join(
        f"<th>{h}</th>" for h in ("", "least", "5 %", "25 %", "50 %", "75 %", "95 %", "most")
    )
    return (
        f'<div class="scroll"><table><tr>{head}</tr>{table}</table></div>'
        "<p>Images by their short side in pixels.</p>" + _bars(bars)
    )


def _bars(bars: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars, one below another, each with its name and number."""
    most = max((n for _, n in bars), default=0) or 1
    lines = []
    for i, (name, n) in enumerate(bars):
        y = 18 * i
        label = name if len(name) <= 28 else name[:27] + "…"
        lines.append(
            f'<text x="190" y="{y + 13}" text-anchor="end">{_e(label)}</text>'
            f'<rect x="198" y="{y + 3}" width="{420 * n / most:.1f}" height="12"/>'
            f'<text x="{204 + 420 * n / most:.1f}" y="{y + 13}">{n:,}</text>'
        )
    return (
        f'<svg viewBox="0 0 700 {18 * len(bars) + 4}" role="img" '
        f'style="max-width: 700px">{"".join(lines)}</svg>'
    )
