"""Are the classes what was meant: their names, sizes, and shares of the splits?"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from vitc.data.check_report import EXAMPLES, Finding, Kind, Report, of_names
from vitc.data.sources.base import folded, some, spelt
from vitc.data.sources.tree import AUXILIARY, repeated
from vitc.data.split_words import read_name
from vitc.data.store import Ints, name_key, shown
from vitc.wording import counted, few

RARE = 10  # training images; a class with fewer is reported
UNEVEN = 10  # times as many images in the largest class as in the smallest
SURE = 0.01  # level of the tests of label shares, all classes of all splits together
SHIFT, SHIFT_POINTS = 1.25, 0.02  # ratio or difference of shares that matters

# What file managers add to the name of a copy.
_COPY = re.compile(
    r"^(?:copy of|kopie von|copie de|copia de)\s|[ _-]+(?:copy|kopie|copie|copia)(?:\s*\(?\d+\)?)?$"
    r"|\s*\(\d+\)$"
)
# Names of folders that hardly name what is in a picture.
_UNNAMED = re.compile(
    r"(?:new|untitled|unnamed) folder|neuer ordner|nouveau dossier|nueva carpeta|untitled|unnamed"
    r"|images?|imgs?|pics|pictures|photos?|data|dataset|downloads?|temp|tmp|backup|trash|outputs?|runs|results"
    r"|logs|thumbs|thumbnails|cache|annotations|masks|labels|unsorted|todo|to sort"
)


def class_findings(report: Report) -> Iterator[Finding]:
    if not report.classes or "train" not in report.counts:
        return
    yield from _alike_names(report.classes)
    yield from _odd_names(report)
    yield from _shifts(report)
    train = report.counts["train"]

    def those(chosen: NDArray[np.bool_], kind: Kind) -> Iterator[Finding]:
        names = [report.classes[i] for i in np.flatnonzero(chosen).tolist()]
        if names:
            yield of_names(names, counted(len(names), "class", "classes"), kind)

    add = "add images, or remove the class"
    yield from those(train == 1, Kind("single", "warn", "with one training image", add))
    text = f"with fewer than {RARE} training images"
    cure = "add images; --data.balance sqrt shows them more often"
    yield from those((train > 1) & (train < RARE), Kind("rare", "note", text, cure))
    there = train[train > 0]
    if len(there) and there.max() >= UNEVEN * there.min():
        low, high = int(there.min()), int(there.max())
        small = report.classes[int(np.flatnonzero(train == low)[0])]
        large = report.classes[int(np.argmax(train))]
        yield Finding(
            "unbalanced",
            "warn",
            len(there),
            f"The largest class has {high / low:,.0f} times as many training images as "
            f"the smallest: {large!r} {high:,}, {small!r} {low:,}.",
            "--data.balance sqrt (or full) shows rare classes more often",
        )
    for split, counts in report.counts.items():
        cure = "add images there, or remove the split's folder, so that images are held out for it"
        kind = Kind(f"absent_{split}", "warn", f"without {split} images", cure)
        if split == "train":
            yield from those(counts == 0, kind._replace(cure="add images"))
        else:
            yield from those((counts == 0) & (train > 0), kind)


def _shifts(report: Report) -> Iterator[Finding]:
    """Classes whose share of a split that the data brings differs from that of training.

    By Fisher's exact test of each class in each split, corrected by Holm for all of them.
    """
    train = report.counts["train"]
    tested = [
        (split, i, p)
        for split, counts in report.counts.items()
        if split != "train" and (split in report.given or report.config.group is not None)
        for i, p in enumerate(_exact(train, counts).tolist())
        if train[i] and counts[i]  # classes that a split lacks are a finding of their own
    ]
    tested.sort(key=lambda t: t[2])
    found: list[tuple[float, str, str]] = []
    for rank, (split, i, p) in enumerate(tested):
        if p * (len(tested) - rank) > SURE:
            break
        counts = report.counts[split]
        a, b = float(train[i] / train.sum()), float(counts[i] / counts.sum())
        ratio = max(a, b) / max(min(a, b), 1e-9)
        if abs(a - b) >= SHIFT_POINTS or (ratio >= SHIFT and abs(a - b) >= SHIFT_POINTS / 4):
            name = report.classes[i]
            found.append((-abs(a - b), f"{name} is {a:.1%} of train, {b:.1%} of {split}", name))
    if found:
        texts = [text for _, text, _ in sorted(found)]
        yield Finding(
            "label_shift",
            "warn",
            len(found),
            "The splits have other shares of the classes, by more than chance (exact test, "
            f"p < {SURE} after Holm): {few(texts, 3, '; ')}.",
            "compare accuracies class by class, or divide the images at random: put all into one "
            "folder per class, without splits",
            tuple(texts[:EXAMPLES]),
            tuple(dict.fromkeys(name for _, _, name in sorted(found))),
        )


def _exact(train: Ints, other: Ints) -> NDArray[np.float64]:
    """Two-sided p, float64 (classes,), that each class has the same share of both splits."""
    total, drawn = int(train.sum() + other.sum()), int(other.sum())
    found = np.ones(len(train))
    for i, (a, b) in enumerate(zip(train.tolist(), other.tolist(), strict=True)):
        members = a + b
        x = np.arange(max(0, members + drawn - total), min(members, drawn) + 1)
        log = -betaln(x + 1, members - x + 1) - betaln(
            drawn - x + 1, total - members - drawn + x + 1
        )
        chance = np.exp(log - log.max())
        found[i] = chance[chance <= chance[b - x[0]] * (1 + 1e-7)].sum() / chance.sum()
    return found


def _odd_names(report: Report) -> Iterator[Finding]:
    """Classes that are named like splits or like no class; folders of one class within another."""
    classes = report.classes
    like_splits = [c for c in classes if (read := read_name(c)) and not read.rest]
    if like_splits:
        text = f"{counted(len(like_splits), 'class', 'classes')} named like a split"
        cure = "if they are splits, name them in --data.splits (docs/sources.md), or move them out"
        yield of_names(like_splits, text, Kind("like_splits", "warn", "", cure))
    unnamed = [
        c for c in classes if _UNNAMED.fullmatch(_COPY.sub("", c.casefold()).strip(" 0123456789"))
    ]
    if unnamed:
        text = f"{counted(len(unnamed), 'class', 'classes')} named like a folder of anything"
        cure = "rename it if it is a class, else move it out of the data set"
        yield of_names(unnamed, text, Kind("unnamed", "warn", "", cure))
    yield from _folders_of_others(report)


def _folders_of_others(report: Report) -> Iterator[Finding]:
    """Sub-folders of a class that are named like another class, or the same in all classes."""
    classes = {name_key(c) for c in report.classes}
    below: dict[str, set[str]] = defaultdict(set)
    misplaced: dict[str, int] = Counter()
    for split in report.splits.values():
        for name, label in zip(split.names, split.labels.tolist(), strict=True):
            parts = name.split("/")[:-1]
            own = report.classes[label]
            if own not in parts or parts[-1] == own:
                continue
            inner = parts[parts.index(own) + 1 :]
            below[own].add(inner[0])
            if any(name_key(p) in classes for p in inner):
                misplaced[f"{own}/{'/'.join(inner)}"] += 1
    if misplaced:
        count = sum(misplaced.values())
        cure = "move them up into the folder of their class, if that is what they show"
        text = "in a folder of one class within another"
        text = f"{counted(count, 'image')} {text}: {some(misplaced)}."
        names = tuple(map(shown, misplaced))
        yield Finding("misplaced", "warn", count, text, cure, names[:EXAMPLES], names)
    if misplaced or not len(below) == len(report.classes) > 1:
        return
    shared = set.intersection(*below.values())
    least = max(2, len(report.classes))
    nearly = len(shared) < least
    if nearly:
        shared = set(repeated(below))
    if len(shared) >= least and not any(folder.lower() in AUXILIARY for folder in shared):
        yield Finding(
            "like_classes",
            "warn",
            len(shared),
            f"Every class holds {'nearly ' * nearly}the same folders, {some(sorted(shared))}: are "
            f"those the classes, and {some(report.classes)} splits or places?",
            "make one folder for each class; splits are named train, val and test",
            tuple(sorted(map(shown, shared)))[:EXAMPLES],
            tuple(sorted(map(shown, shared))),
        )


def _alike_names(classes: Sequence[str]) -> Iterator[Finding]:
    """Class names equal but for case, spaces, punctuation, a plural's s, words of copies, invisible
    characters, and letters that look the same."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        letters = _COPY.sub("", folded(name))
        letters = re.sub(r"[\W_]+", "", letters)
        if len(letters) > 3 and letters.endswith("s") and not letters.endswith("ss"):
            letters = letters[:-1]
        groups.setdefault(letters or name, []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if alike:
        examples = tuple(" ~ ".join(spelt(names)) for names in alike[:EXAMPLES])
        yield Finding(
            "alike_names",
            "warn",
            len(alike),
            f"{counted(len(alike), 'group')} of class names that are nearly equal: "
            f"{'; '.join(examples[:3])}.",
            "merge the folders where one class was meant",
            examples,
            tuple(n for names in alike for n in names),
        )
