"""The report of `vitc data check`: its records, and their values for JSON and CSV."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.data.check_images import BROKEN
from vitc.data.config import DataConfig
from vitc.data.dataset import find_image
from vitc.data.sources.base import Split, some
from vitc.data.split_words import SPLITS
from vitc.data.store import Ints, Names, shown
from vitc.machine import cores
from vitc.wording import counted

Severity = Literal["stop", "warn", "note"]  # training fails; results suffer; worth knowing
SEVERITIES: tuple[Severity, ...] = ("stop", "warn", "note")
EXAMPLES = 5  # of a finding
SAVED = ("kind", "severity", "count", "text", "cure")
COLUMNS = ("kind", "severity", "file", "split", "class", "detail", "group")


@dataclass(frozen=True, eq=False)
class Finding:
    """One kind of problem: how bad, how many, what cures it, and where.

    names: classes or files that are no image of the data set; places: int64 (n,), images by their
    number in `Report.names`; groups: int64 (n,), equal for images that belong together; setting:
    what cures it, by dotted name; figures: further numbers, by name.
    """

    kind: str
    severity: Severity
    count: int
    text: str
    cure: str
    examples: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    places: Ints | None = None
    groups: Ints | None = None
    setting: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def brief(self) -> str:
        """The cure in a few words: the settings, where there are any."""
        options = [f"--{name} {shlex.quote(value)}" for name, value in self.setting.items()]
        return f"Set {' '.join(options)}." if options else f"Fix: {self.cure.rstrip('.')}."


@dataclass(frozen=True, eq=False)
class Report:
    """A data set and what was found in it, worst first.

    counts: int64 (classes,) for each split. given: the splits that the source has itself.
    positions: int64 (examined,), the numbers of the images read, split after split; records: RECORD
    (examined,); details: why an image is broken or doubtful, by number; checked: what was looked
    for, and in what, or why it was not.
    """

    config: DataConfig
    classes: tuple[str, ...]
    splits: dict[str, Split]
    counts: dict[str, Ints]
    given: frozenset[str]
    positions: Ints
    records: NDArray[Any]
    details: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cores: int = field(default_factory=cores)
    checked: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @cached_property
    def names(self) -> Names:
        """Of all images, split after split, as the following two."""
        return Names.of(n for split in self.splits.values() for n in split.names)

    @cached_property
    def labels(self) -> Ints:
        none = np.zeros(0, np.int64)
        return np.concatenate([none, *(split.labels for split in self.splits.values())])

    @cached_property
    def sides(self) -> Ints:
        """The split that each image is in, by its number in SPLITS."""
        numbers = np.array([SPLITS.index(name) for name in self.splits], np.int64)
        return np.repeat(numbers, [len(split) for split in self.splits.values()])

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(f.severity == "stop" for f in self.findings)

    @property
    def status(self) -> str:
        return "would fail" if self.fails else "findings" if self.findings else "good"

    @property
    def readable(self) -> NDArray[np.bool_]:
        good: NDArray[np.bool_] = (self.records["marks"] & BROKEN) == 0
        return good

    @property
    def rate(self) -> float | None:
        """Images a second that one core reads and decodes; None: pixels are stored."""
        seen = self.records[self.readable]
        seconds = float(seen["seconds"].sum(dtype=np.float64))
        return len(seen) / seconds if seconds > 0 else None

    def quantiles(self) -> dict[str, list[int]]:
        """Short and long side, in pixels: smallest, 5 %, 25 %, 50 %, 75 %, 95 %, largest."""
        seen = self.records[self.readable]
        if not len(seen):
            return {}
        sides = np.stack([seen["height"], seen["width"]])
        at = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
        return {
            name: np.quantile(values, at, method="nearest").astype(int).tolist()
            for name, values in (("short_side", sides.min(0)), ("long_side", sides.max(0)))
        }

    def tally(self, column: str) -> dict[str, int]:
        """How many images are of each format, or mode, the most frequent first."""
        tallied = Counter(v.decode() for v in self.records[self.readable][column].tolist())
        return dict(sorted(tallied.items(), key=lambda item: (-item[1], item[0])))


def class_counts(splits: dict[str, Split], classes: Sequence[str]) -> dict[str, Ints]:
    """Images of each class, int64 (classes,), for each split."""
    return {k: np.bincount(s.labels, minlength=len(classes)) for k, s in splits.items()}


# -- makers of findings ----------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of finding: its name, how bad it is, the sentence after the count, the cure."""

    name: str
    severity: Severity
    text: str
    cure: str


def of_images(report: Report, rows: NDArray[np.bool_] | Ints, noun: str, kind: Kind) -> Finding:
    """The finding for the images at these rows of the records."""
    places = report.positions[rows]
    examples = []
    for place in places[:EXAMPLES].tolist():
        why = report.details.get(place)
        examples.append(shown(report.names[place]) + (f" ({why})" if why else ""))
    name, severity, text, cure = kind
    text = f"{counted(len(places), noun)} {text}{'' if text.endswith('?') else '.'}"
    return Finding(name, severity, len(places), text, cure, tuple(examples), places=places)


def of_names(names: Sequence[str], text: str, kind: Kind) -> Finding:
    """The finding for classes or stray files; `text` is the count with its noun."""
    text = f"{text}{' ' * bool(kind.text)}{kind.text}: {some(names)}."
    names = tuple(map(shown, names))
    return Finding(kind.name, kind.severity, len(names), text, kind.cure, names[:EXAMPLES], names)


# -- as values -------------------------------------------------------------------------------------


def to_values(report: Report) -> dict[str, Any]:
    """The report as JSON values; all but `speed` are the same for any number of processes."""
    rate, processes = report.rate, min(8, report.cores)
    speed = rate and {
        "images_per_second_a_core": round(rate, 1),
        "processes": processes,
        "images_per_second": round(rate * processes, 1),
    }
    return {
        "status": report.status,
        "source": report.config.source,
        "path": report.config.path,
        "images": {name: len(split) for name, split in report.splits.items()},
        "examined": len(report.positions),
        "broken": int((~report.readable).sum()),
        "classes": {
            name: {split: int(counts[i]) for split, counts in report.counts.items()}
            for i, name in enumerate(report.classes)
        },
        "sizes": report.quantiles(),
        "formats": report.tally("format"),
        "modes": report.tally("mode"),
        "findings": [
            {name: getattr(f, name) for name in SAVED}
            | {"examples": list(f.examples), "setting": dict(f.setting), "figures": dict(f.figures)}
            for f in report.findings
        ],
        "checked": dict(report.checked),
        "notes": list(report.notes),
        "speed": speed,
    }


def facts(report: Report) -> list[tuple[str, str]]:
    """Name and value of what is in the data set, for the terminal and the page."""
    values = to_values(report)
    splits = ", ".join(f"{n:,} {split}" for split, n in values["images"].items())
    examined = f"{values['examined']:,}, {values['broken']:,} broken"
    found = [("images", splits or "none"), ("examined", examined)]
    for side, (low, _, _, middle, _, _, high) in values["sizes"].items():
        text = f"{low:,} pixels"
        if low < high:
            text = f"{low:,} to {high:,} pixels, half up to {middle:,}"
        found.append((side.replace("_", " "), text))
    for name in ("formats", "modes"):
        if values[name]:
            found.append((name, ", ".join(f"{kind} {n:,}" for kind, n in values[name].items())))
    if values["speed"]:
        core, processes, total = values["speed"].values()
        text = f"{core:,.0f} images/s a core"
        if processes > 1:
            text += f"; at most {total:,.0f} with {processes} processes"
        found.append(("reading and decoding", text))
    return found


def checked(report: Report) -> list[str]:
    """What was checked and what was not, in a line each."""
    skipped = "not checked: "
    named = {what.replace("_", " "): n for what, n in report.checked.items()}
    did = [f"{what} ({n})" for what, n in named.items() if not n.startswith(skipped)]
    left = [f"{what} ({n[len(skipped) :]})" for what, n in named.items() if n.startswith(skipped)]
    return [f"Checked: {'; '.join(did)}."] + ([f"Not checked: {'; '.join(left)}."] if left else [])


def rows(report: Report) -> Iterator[tuple[str, ...]]:
    """One row of COLUMNS for each file of each finding."""
    for finding in report.findings:
        head = finding.kind, finding.severity
        for i, place in enumerate([] if finding.places is None else finding.places.tolist()):
            split, index = find_image(report.splits, place)
            label = report.classes[int(report.splits[split].labels[index])]
            group = "" if finding.groups is None else str(finding.groups[i])
            why = report.details.get(place, "")
            yield (*head, shown(report.names[place]), split, label, why, group)
        for name in finding.names:
            yield (*head, name, "", "", "", "")
