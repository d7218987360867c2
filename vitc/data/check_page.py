"""The report of the data check as a page: findings with pictures, classes, sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from vitc.data.check_report import Finding, Report, checked, facts
from vitc.data.dataset import find_image
from vitc.data.store import shown
from vitc.data.thumbnails import thumbnail
from vitc.errors import BrokenFileError
from vitc.views.model import Bars, Bullets, Heading, Page, Part, Table, Text, Thumbnail, Thumbnails
from vitc.wording import counted

THUMBS = 12  # of a finding
MOST_CLASSES = 60  # with a bar of their own
LABELS = {"stop": "stops training", "warn": "harms", "note": "worth knowing"}


def page(report: Report) -> Page:
    """The report as a page. Reads the pictures of the first examples once more."""
    if report.fails:
        verdict = Text("Training would fail: see what stops it below.", "verdict stop")
    else:
        harms = any(f.severity == "warn" for f in report.findings)
        text = f"Training can start. {counted(len(report.findings), 'finding')}."
        verdict = Text(text, "verdict warn" if harms else "verdict")
    title = f"Data check: {report.config.path or report.config.source}"
    parts = [
        Heading(title, level=1),
        verdict,
        Table("", ("", ""), facts(report)),
        Bullets(report.notes),
        Heading("Findings"),
        *(part for f in report.findings for part in _finding(report, f)),
        *([] if report.findings else [Text("No problems found.")]),
        *map(Text, checked(report)),
        Heading("Classes"),
        *_classes(report),
        Heading("Sizes"),
        *_sizes(report),
    ]
    return Page(title, parts)


def _finding(report: Report, finding: Finding) -> Iterator[Part]:
    severity = finding.severity
    yield Heading(finding.text, 3, LABELS[severity], severity)
    yield Text(f"Fix: {finding.cure.rstrip('.')}.")
    more = 0
    if finding.places is not None:
        chosen = _chosen(finding)
        yield Thumbnails([_thumbnail(report, place) for place in chosen])
        more = len(finding.places) - len(chosen)
    elif finding.names:
        yield Bullets(finding.names[:THUMBS])
        more = len(finding.names) - THUMBS
    if more > 0:
        yield Text(f"and {more:,} more.")


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


def _thumbnail(report: Report, place: int) -> Thumbnail:
    split, index = find_image(report.splits, place)
    label = report.classes[int(report.splits[split].labels[index])]
    caption = [shown(report.names[place]), f"{split}: {label}"]
    if place in report.details:
        caption.append(report.details[place])
    jpeg = None
    with contextlib.suppress(BrokenFileError):
        jpeg = thumbnail(report.splits[split], index)
    return Thumbnail(caption, jpeg)


def _classes(report: Report) -> Iterator[Part]:
    if "train" not in report.counts:
        yield Text("None could be opened.")
        return
    train = report.counts["train"]
    order = np.argsort(-train, kind="stable")
    if len(order) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        yield Text(f"The {half} largest and the {half} smallest of {len(train):,} classes.")
    yield Text("Training images of each class.")
    yield Bars([(report.classes[i], int(train[i])) for i in order.tolist()])


def _sizes(report: Report) -> Iterator[Part]:
    seen = report.records[report.readable]
    if not len(seen):
        yield Text("No image could be read.")
        return
    head = ("", "least", "5 %", "25 %", "50 %", "75 %", "95 %", "most")
    quantiles = report.quantiles().items()
    yield Table("", head, [(n.replace("_", " "), *map("{:,}".format, v)) for n, v in quantiles])
    short = np.minimum(seen["height"], seen["width"]).astype(np.int64)
    powers = np.floor(np.log2(short) * 2).astype(int)
    bars = []
    for p in range(int(powers.min()), int(powers.max()) + 1):
        low, high = int(np.ceil(2 ** (p / 2))), int(np.ceil(2 ** ((p + 1) / 2))) - 1
        bars.append((f"{low:,} to {high:,}", int((powers == p).sum())))
    yield Text("Images by their short side in pixels.")
    yield Bars(bars)
