"""Which images belong together by their names: people, videos, scenes, copies? Free of torch.

Every answer is a regular expression for `data.group`, found from the names alone. Names are divided
into runs of letters, digits and other characters; names of one shape (`a0_0` for person12_003) may
start with what names a group: something that varies within every class, while what follows varies
within it. Dates are left to `check_groups`, which knows when an image was taken.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitc.data.sources.base import IMAGE_SUFFIXES
from vitc.data.store import Ints

LEAST_GROUPS = 3  # in a class: one each to train, validate and test
FEW_NAMES = 6  # groups in all, where no word of the names stands for people or videos
COMMON = 0.02  # share of the images that have a shape, for it to be looked at
MOST_SHAPES = 8
HASH_SHAPES = 3  # of names of nothing but hexadecimal digits, from which they are hashes
COVERED = 0.2  # share of the images that have a name with such a start
COPIES = 3  # images with a copy beside them
BLOCKS = range(1, 7)  # digits that may be left out at the end of a number

# An identifier such as a UUID or a hash is one run, though it is of digits and letters.
_ID = (
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|(?<![^\W_])(?=(?:[a-fA-F]+\d+|\d+[a-fA-F]+){2})[0-9a-fA-F]{8,}(?![^\W_])"
)
_RUN = re.compile(rf"{_ID}|\d+|[^\W\d_]+|[\W_]+")
_HEX = re.compile(r"[0-9a-fA-F]{4,}")
_LETTERS = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?=\D*$)")
_DATE = re.compile(r"(?:19[89]|20[0-4])\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{6,9})?")
_MOMENT = re.compile(
    r"(?<!\d)((?:19[89]|20[0-4])\d)-?(\d\d)-?(\d\d)(?:[ _T-]+|[ _]at[ _])"
    r"(\d\d)[.:-]?(\d\d)[.:-]?(\d\d)"
)
_YEAR = re.compile(r"(?:19[89]|20[0-4])\d")
_ROBOFLOW = re.compile(r"\.rf\.[0-9a-zA-Z]{16,}")
# Words that stand for what is photographed several times.
_NAMED = re.compile(
    r"person|people|subj|subject|patient|pat|user|actor|speaker|signer|participant|volunteer|animal|plant"
    r"|indiv\w*|case|study|series|scene|shot|burst|seq\w*|clip|vid\w*|movie|film|cam|camera"
    r"|session|track|obj\w*|item|product|slide|scan|tile|site|place|room|id|pid|set|group|take",
    re.IGNORECASE,
)

Why = Literal["copies", "folders", "numbers", "words"]


class NameGroups(NamedTuple):
    """A regular expression for `data.group` and what it was found by.

    copies: a file and others that add a suffix to its name; folders: below the class folders;
    numbers, words: the start of the names, with a number that varies or only letters.
    named: whether a word such as "person" or "video" stands in it.
    """

    regex: str
    why: Why
    named: bool


def keys_of(regex: str, names: Sequence[str]) -> list[str | None]:
    """Each image's group, as `data.group` finds it; None: no match."""
    find = re.compile(regex)
    found = map(find.search, names)
    return [m[1 if find.groups else 0] if m else None for m in found]


def codes_of(keys: Sequence[str | None]) -> Ints:
    """int64 (n,): the same number for the same key; each None is a group of its own."""
    known: dict[str, int] = {}
    alone = iter(range(-1, -len(keys) - 1, -1))
    return np.array(
        [next(alone) if k is None else known.setdefault(k, len(known)) for k in keys], np.int64
    )


def divides(groups: Ints, labels: Ints) -> bool:
    """Whether groups could be shared out to splits: several in nearly every class, none huge."""
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    of_class = np.bincount(pairs[0])
    large = np.bincount(labels) >= 2 * LEAST_GROUPS
    if not large.any() or (of_class[large] >= LEAST_GROUPS).mean() < 0.9:
        return False
    sizes = np.unique(groups, return_counts=True)[1]
    return bool(len(sizes) > LEAST_GROUPS and sizes.max() <= 0.4 * len(groups))


def joins(groups: Ints) -> float:
    """The share of the images that share their group with another."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return float((counts[inverse] > 1).mean())


def name_groups(names: Sequence[str], labels: Ints) -> list[NameGroups]:
    """What the names suggest, the most certain first. names: paths with "/"; labels int64 (n,)."""
    found = [*_copies(names, labels), *_starts(names, labels), *_folders(names, labels)]
    order: dict[Why, int] = {"copies": 0, "folders": 1, "numbers": 1, "words": 2}
    return sorted(found, key=lambda g: (not g.named and g.why != "copies", order[g.why]))


def time_of(name: str) -> float:
    """Seconds, from any fixed time, of the date and time in a file's name; nan: there is none."""
    found = _MOMENT.search(stem_of(name))
    if found is None:
        return math.nan
    try:
        year, month, day, hour, minute, second = map(int, found.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return math.nan


def stem_of(name: str) -> str:
    """A file's name without its folders and its image suffix."""
    base = name.rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    return stem if dot and suffix.lower() in IMAGE_SUFFIXES else base


# -- copies of a file ------------------------------------------------------------------------------


def _copies(names: Sequence[str], labels: Ints) -> Iterator[NameGroups]:
    """Copies that a tool wrote beside the original, or instead of it (Roboflow)."""
    bodies = [r"([^/]+)\.rf\."] if sum(map(bool, map(_ROBOFLOW.search, names))) > 1 else []
    suffixes = _copy_suffixes(names)
    if suffixes:
        ends = "|".join(_escaped(s).replace("0", r"\d+") for s in suffixes)
        bodies.append(rf"([^/]+?)(?:{ends})*(?:\.\w+)?$")
    for body in bodies:
        groups = codes_of(keys_of(body, names))
        pairs = np.unique(np.stack([groups, labels]), axis=1)[0]
        if (np.unique(pairs, return_counts=True)[1] > 1).mean() > 0.1:
            # The same names in several class folders are other images.
            body = body.replace("(", "([^/]+/", 1)
            groups = codes_of(keys_of(body, names))
        if joins(groups) > 0 and divides(groups, labels):
            yield NameGroups(body, "copies", False)


def _copy_suffixes(names: Sequence[str]) -> list[str]:
    """What is added to the name of another file of the same folder, numbers written as 0."""
    stems = {name.rpartition("/")[0] + "/" + stem_of(name) for name in names}
    bases: dict[str, set[str]] = defaultdict(set)
    for stem in stems:
        runs = _RUN.findall(stem.rpartition("/")[2])
        for cut in range(len(runs) - 1, max(0, len(runs) - 6), -1):
            if not runs[cut][0].isalnum():
                suffix = "".join(runs[cut:])
                base = stem[: -len(suffix)]
                if base in stems:
                    bases[re.sub(r"\d+", "0", suffix)].add(base)
                    break
    return sorted(s for s, of in bases.items() if len(of) >= COPIES)


# -- how names start -------------------------------------------------------------------------------


def _kind(run: str) -> str:
    """0 for a number, a for letters, # for an identifier; other characters stand for themselves."""
    if run.isdigit():
        return "0"
    return "a" if run.isalpha() else "#" if run[0].isalnum() else run


class _Start(NamedTuple):
    """The start of the names of one shape as a regular expression, and their groups."""

    regex: str
    why: Why
    rows: Ints
    groups: list[str]


def _starts(names: Sequence[str], labels: Ints) -> Iterator[NameGroups]:
    stems = [_ROBOFLOW.split(stem_of(name))[0] for name in names]
    shapes: dict[str, list[int]] = defaultdict(list)
    for i, stem in enumerate(stems):
        shapes["".join(map(_kind, _RUN.findall(stem)))].append(i)
    hashes = [
        s for s, of in shapes.items() if "0" in s and "a" in s and _HEX.fullmatch(stems[of[0]])
    ]
    if len(hashes) >= HASH_SHAPES:  # short hashes, whatever their first digits are
        for shape in hashes:
            del shapes[shape]
    common = sorted(shapes.values(), key=len, reverse=True)[:MOST_SHAPES]
    found = []
    for members in common:
        if len(members) >= max(2 * LEAST_GROUPS, COMMON * len(names)):
            rows = np.array(members)
            start = _start([_RUN.findall(stems[i]) for i in members], rows, labels[rows])
            if start is not None:
                found.append(start)
    for why in ("numbers", "words"):
        starts = [s for s in found if s.why == why]
        regex = _simplest(list(dict.fromkeys(s.regex for s in starts)), names)
        if regex is None:
            continue
        named = any(_NAMED.fullmatch(w) for w in _LETTERS.findall(regex.replace("\\d", "")))
        known = len({g for s in starts for g in s.groups})
        covered = sum(len(s.rows) for s in starts) / len(names)
        if covered >= COVERED and (named or known >= FEW_NAMES):
            yield NameGroups(regex, why, named)


def _start(runs: list[list[str]], rows: Ints, labels: Ints) -> _Start | None:
    """The shortest start that names a group, with a number in it if there is one.

    runs: those of each name, names of one shape.
    """
    columns = list(zip(*runs, strict=False))
    varies = [len(set(column)) > 1 for column in columns]
    times = _times(columns)
    words: _Start | None = None
    starts = [""] * len(runs)
    regex = ""
    for i, column in enumerate(columns[:-1]):
        starts = [start + run for start, run in zip(starts, column, strict=True)]
        regex += _run_regex(column, varies[i])
        if not varies[i] or not any(varies[i + 1 :]) or i in times:
            continue
        groups = codes_of(starts)
        if joins(groups) < 0.3 or not divides(groups, labels):
            continue
        numbered = any(
            v and not c[0].isalpha() for v, c in zip(varies[: i + 1], columns, strict=False)
        )
        if numbered:
            return _Start(regex, "numbers", rows, starts)
        words = words or _Start(regex, "words", rows, starts)
    return words


def _run_regex(column: Sequence[str], varies: bool) -> str:
    if not varies:
        return _escaped(column[0])
    return {"0": r"\d+", "a": r"[^\W\d_]+", "#": "[0-9a-fA-F-]+"}[_kind(column[0])]


def _times(columns: Sequence[Sequence[str]]) -> set[int]:
    """The columns that are a date, in one run of digits or in three, or the time after it."""
    found: set[int] = set()
    numbers = [i for i, column in enumerate(columns) if column[0].isdigit()]
    for place, i in enumerate(numbers):
        after = numbers[place + 1 :]
        if all(map(_DATE.fullmatch, columns[i])):
            found.update([i, *after[:1]])
        elif len(after) > 1 and all(map(_YEAR.fullmatch, columns[i])):
            month, day = (columns[j] for j in after[:2])
            if all(
                len(m) == len(d) == 2 and m <= "12" and d <= "31"
                for m, d in zip(month, day, strict=True)
            ):
                found.update([i, *after[:5]])
    return found


def _simplest(starts: list[str], names: Sequence[str]) -> str | None:
    """One expression for several starts of file names, with as few anchors as are needed."""
    if not starts:
        return None
    body = f"({'|'.join(starts)})"
    anchored = f"(?:^|/){body}[^/]*$"
    sample = names[:: max(1, len(names) // 5000)]
    wanted = keys_of(anchored, sample)
    return next(r for r in (body, f"{body}[^/]*$", anchored) if keys_of(r, sample) == wanted)


# -- folders below the class folders ---------------------------------------------------------------


def _folders(names: Sequence[str], labels: Ints) -> Iterator[NameGroups]:
    parents = [name.rpartition("/")[0] for name in names]
    last = [parent.rpartition("/")[2] for parent in parents]
    depth = Counter(parent.count("/") for parent in parents)
    if len(set(parents)) < 2 * LEAST_GROUPS or max(depth) < 1:
        return
    groups = codes_of(last)
    if joins(groups) >= 0.3 and divides(groups, labels):
        words = {word for folder in set(last) for word in _LETTERS.findall(folder)}
        named = any(_NAMED.fullmatch(word) for word in words)
        yield NameGroups(r"/([^/]+)/[^/]*$", "folders", named)


# -- numbered files --------------------------------------------------------------------------------


class Numbered(NamedTuple):
    """Files numbered one after the other: the order of images, int64 (m,); which of them follows
    directly on its neighbour in a series, bool (m - 1,); regular expressions that cut the series
    into blocks of 10, 100, ... numbers."""

    order: Ints
    follows: NDArray[np.bool_]
    blocks: list[str]


def numbered(names: Sequence[str]) -> Numbered | None:
    """The files as their numbers order them, over all folders where no number is used twice.

    None: the names have no numbers, or hardly two of them belong to one series.
    """
    stems = [stem_of(name) for name in names]
    found = [_NUMBER.search(stem) for stem in stems]
    rows = [i for i, m in enumerate(found) if m and len(m[0]) <= 18]
    if len(rows) < 2 * LEAST_GROUPS:
        return None
    ends = [(stems[i][: m.start()], stems[i][m.end() :]) for i in rows if (m := found[i])]
    numbers = np.array([int(m[0]) for i in rows if (m := found[i])], np.int64)
    series = codes_of(["\0".join(e) for e in ends])
    places = [names[i].rpartition("/")[0] for i in rows]
    apart = len(set(zip(series.tolist(), numbers.tolist(), strict=True))) < 0.98 * len(rows)
    if apart:  # every folder counts for itself
        series = codes_of(["\0".join((p, *e)) for p, e in zip(places, ends, strict=True)])
    order = np.lexsort((numbers, series))
    follows = np.diff(series[order]) == 0
    if follows.sum() < 0.5 * len(names):
        return None
    return Numbered(np.array(rows)[order], follows, _blocks(names, ends, apart))


def _blocks(names: Sequence[str], ends: list[tuple[str, str]], apart: bool) -> list[str]:
    """Expressions that leave out the last digits of a file's number.

    ends: what is before and after the number; apart: every folder counts for itself.
    """
    heads, tails = {a for a, _ in ends}, {b for _, b in ends}
    head = _escaped(*heads) if len(heads) == 1 else "[^/]*?"
    tail = _escaped(*tails) if len(tails) == 1 else r"[^\d/]*"
    start = rf"{head}(\d*)" if len(heads) == 1 else rf"({head}\d*)"
    if apart:
        start = rf"([^/]+/{head}\d*)"
    suffixed = all("." in name.rpartition("/")[2] for name in names)
    stop = r"\." if suffixed else r"(?:\.|$)"
    digits = [r"\d" * n if n < 3 else rf"\d{{{n}}}" for n in BLOCKS]
    return [f"{start}{of_block}{tail}{stop}" for of_block in digits]


def _escaped(text: str) -> str:
    """As a regular expression, without the escapes that only verbose ones need."""
    return re.sub(r"\\([-# ])", r"\1", re.escape(text))
