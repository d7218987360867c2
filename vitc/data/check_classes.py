"""Which classes are rare, absent, uneven, or have nearly the same name?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vitc.data.check_report import EXAMPLES, Finding, Report, Severity
from vitc.data.sources.base import some
from vitc.data.store import name_key
from vitc.wording import counted

RARE = 10  # training images; a class with fewer is pointed out
UNEVEN = 10  # times as many images in the largest class as in the smallest


def class_findings(report: Report) -> Iterator[Finding]:
    if not report.classes or "train" not in report.counts:
        return
    yield from _alike_names(report.classes)
    train = report.counts["train"]
    alone = [c for c, n in zip(report.classes, train.tolist(), strict=True) if n == 1]
    rare = [c for c, n in zip(report.classes, train.tolist(), strict=True) if 1 < n < RARE]
    if alone:
        yield _of_classes(
            "single", "warn", alone, "with one training image", "add images, or remove the class"
        )
    if rare:
        yield _of_classes(
            "rare",
            "note",
            rare,
            f"with fewer than {RARE} training images",
            "add images; --data.balance sqrt shows them more often",
        )
    there = train[train > 0]
    if len(there) and there.max() >= UNEVEN * there.min():
        low, high = int(there.min()), int(there.max())
        small = report.classes[int(np.flatnonzero(train == low)[0])]
        large = report.classes[int(np.argmax(train))]
        yield Finding(
            "unbalanced",
            "warn",
            int((train > 0).sum()),
            f"The largest class has {high / low:,.0f} times as many training images as "
            f"the smallest: {large!r} {high:,}, {small!r} {low:,}.",
            "--data.balance sqrt (or full) shows rare classes more often",
        )
    for split, counts in report.counts.items():
        missing = (counts == 0) & ((train > 0) if split != "train" else True)
        absent = [c for c, gone in zip(report.classes, missing.tolist(), strict=True) if gone]
        if absent:
            cure = "add images there, or let the split be held out: remove its folder"
            yield _of_classes(
                f"absent_{split}",
                "warn",
                absent,
                f"without {split} images",
                "add images" if split == "train" else cure,
            )


def _of_classes(
    kind: str, severity: Severity, names: Sequence[str], text: str, cure: str
) -> Finding:
    noun = counted(len(names), "class", "classes")
    return Finding(
        kind,
        severity,
        len(names),
        f"{noun} {text}: {some(names)}.",
        cure,
        tuple(names[:EXAMPLES]),
        names=tuple(names),
    )


def _alike_names(classes: Iterable[str]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_plain(name), []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if alike:
        examples = tuple(" ~ ".join(map(repr, names)) for names in alike[:EXAMPLES])
        yield Finding(
            "alike_names",
            "warn",
            len(alike),
            f"{counted(len(alike), 'group')} of class names that are nearly one name: "
            f"{'; '.join(examples[:3])}.",
            "merge the folders where one class was meant",
            examples,
            names=tuple(n for names in alike for n in names),
        )


def _plain(name: str) -> str:
    """The name without case, spaces, punctuation and a plural's s."""
    letters = re.sub(r"[\W_]+", "", name_key(name).casefold())
    if len(letters) > 3 and letters.endswith("s") and not letters.endswith("ss"):
        letters = letters[:-1]
    return letters or name
