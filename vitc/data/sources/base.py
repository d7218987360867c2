"""What is a source of images? The class that each kind extends, and what all of them return."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vitc.data.config import DataConfig
from vitc.data.decode import read_image, to_channels
from vitc.data.split_words import SPLITS
from vitc.data.store import (
    Ints,
    Names,
    Pixels,
    Store,
    Stored,
    label_codes,
    name_key,
    sample_of,
    shown,
)
from vitc.errors import BrokenFileError, DataError, suggest
from vitc.wording import counted, few, short

JPEG_SUFFIXES = ("jpg", "jpeg", "jpe", "jfif")
PLAIN_SUFFIXES = ("png", "bmp", "dib", "gif", "webp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")
RARE_SUFFIXES = ("jp2", "j2k", "avif", "ico", "heic", "heif")
IMAGE_SUFFIXES = frozenset((*JPEG_SUFFIXES, *PLAIN_SUFFIXES, *RARE_SUFFIXES))
# Settings that only some sources use, and their value when nobody gave one.
OPTIONAL = {
    "group": None,
    "image_column": None,
    "label_column": None,
    "split_column": None,
    "splits": "",
    "path_sha256": "",
}
# Cyrillic and Greek letters in lower case: they or their capitals look like these Latin ones.
_LOOK_ALIKE = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455"
    "\u03b1\u03b2\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c7",
    "abekmhopctyxijsabeikvoptx",
)
_MISSING = frozenset(
    {"None", "NULL", "null", "N/A", "n/a", "#N/A", "<NA>"}
)  # by Python, SQL, Excel

# What may join several labels, and the share of the labels up to which those that seem so are
# names: `ice cream` beside `ice` and `cream`, or a list of synonyms.
_MARKS = {",": ("comma", 0.01), ";": ("semicolon", 0.01), " ": ("space", 0.3)}


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split: all pixels at once, or places in a store.

    labels: int64 (n,). names: n short names for messages. pixels: uint8 (n, H, W, C); or store,
    and the images' places in it, int64 (n,), None for 0 ... n - 1. sizes: int64 (n,) bytes of what
    is in the store.
    """

    labels: Ints
    names: Sequence[str]
    pixels: Pixels | None = None
    store: Store | None = None
    places: Ints | None = None
    sizes: Ints | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, index: int) -> Stored:
        """An image as its source has it: the bytes of a file, or pixels uint8 (H, W, C).

        Raises BrokenFileError: it cannot be read.
        """
        if self.pixels is not None:
            pixels: Pixels = self.pixels[index]
            return pixels
        assert self.store is not None
        return self.store.read(index if self.places is None else int(self.places[index]))

    def read(self, index: int, in_chans: int) -> Pixels:
        """An image's pixels, uint8 (H, W, in_chans). Raises BrokenFileError."""
        stored = self.stored(index)
        if isinstance(stored, bytes):
            return read_image(stored, in_chans, self.names[index])
        return to_channels(stored, in_chans)

    def sample(self, index: int, limit: int) -> bytes:
        """What identifies an image: its size, and at most `limit` bytes of it; 0: all.

        Empty: the store does not let it be read, or it cannot be read.
        """
        if self.pixels is not None:
            return sample_of(self.pixels[index], 0)
        place = index if self.places is None else int(self.places[index])
        read: Callable[[int, int], bytes] | None = getattr(self.store, "sample", None)
        try:
            return sample_of(self.stored(index), limit) if read is None else read(place, limit)
        except BrokenFileError:
            return b""

    def take(self, positions: Ints) -> Split:
        """The images at `positions`, in that order."""
        if len(positions) == len(self) and (positions == np.arange(len(self))).all():
            return self
        places = None
        if self.store is not None:
            places = positions if self.places is None else self.places[positions]
        return Split(
            labels=self.labels[positions],
            names=Names.of(self.names).take(positions),
            pixels=None if self.pixels is None else self.pixels[positions],
            store=self.store,
            places=places,
            sizes=None if self.sizes is None else self.sizes[positions],
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What a source holds, divided as it divides it itself.

    splits: "train" and, where the source has them, "val" and "test". notes: what was guessed, left
    out or is suspicious, one sentence each. origin: see `Source.origin`; a pack of another source's
    unchanged images has that one's. content: distinguishes these images from others of the same
    names and sizes, where the source can.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    origin: str = ""
    content: bytes = b""


class Source:
    """One kind of data set: how it is recognised and read. An instance of each is in `SOURCES`."""

    kind: ClassVar[str]
    """Its name: `data.source`."""
    origin: ClassVar[str]
    """Its name in fingerprints and in packs, which never changes."""
    title: ClassVar[str]
    """What the images are, for a model card."""
    path: ClassVar[str] = ""
    """What `data.path` has to be, for messages; empty for a source without one."""
    made: ClassVar[bool] = False
    """Whether `data.path` is no place on a machine, but numbers to make images from."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of the files that are recognised as this source."""
    settings: ClassVar[frozenset[str]] = frozenset()
    """The settings of `OPTIONAL` that it uses."""

    @property
    def of_user(self) -> bool:
        """Whether its images are a user's own, at `data.path`: neither shipped nor made."""
        return bool(self.path) and not self.made

    def matches(self, path: str) -> bool:
        """Whether a folder, file, pattern of files or class looks like one of this source."""
        return path.lower().endswith(self.suffixes) and (os.path.isfile(path) or is_pattern(path))

    def absolute(self, path: str) -> str:
        """The path, independent of the working directory."""
        return os.path.abspath(os.path.expanduser(path))

    def named(self, config: DataConfig) -> DataConfig:
        """The config of a source that the user has just named."""
        return config

    def read(self, config: DataConfig) -> Found:
        """Raises ConfigError: a wrong path or setting; DataError: unusable data."""
        raise NotImplementedError

    def read_any(self, config: DataConfig) -> Found:
        """As `read`, of images that are not trained on: classes and labels may be missing (-1)."""
        return self.read(config)

    def columns(self, config: DataConfig) -> Sequence[str]:
        """The names of the columns of a table; empty: it is none. Raises as `read`."""
        return ()

    def problems(self, config: DataConfig) -> list[str]:
        """Settings that this source lacks, or that have no effect on it."""
        found = []
        if self.path and config.path is None:
            found.append(f"data.source {self.kind!r} needs {self.path}.")
        idle = [] if self.path or config.path is None else ["path"]
        idle += [
            name
            for name, default in OPTIONAL.items()
            if name not in self.settings and getattr(config, name) != default
        ]
        found += [f"data.{name} has no effect with data.source {self.kind!r}." for name in idle]
        return found


def is_pattern(path: str) -> bool:
    """Whether a path names several files: *, ?, [..], a brace range, or parts with ::."""
    return any(mark in path for mark in ("*", "?", "[", "{", "::"))


# -- names and labels ------------------------------------------------------------------------------


def some(names: Iterable[str], most: int = 3) -> str:
    """`'a', 'b', 'c' and 4 more`."""
    return few((repr(shown(name)) for name in names), most)


def folded(name: str) -> str:
    """A class's name for comparing: without case and invisible characters, in the letters and
    digits that it looks like; 01 is 1."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)  # full-width letters are others
        name = "".join(c for c in name if unicodedata.category(c) != "Cf")
    name = name.casefold().translate(_LOOK_ALIKE)
    return (name.lstrip("0") or name) if name.isdecimal() else name


def spelt(names: Sequence[str]) -> list[str]:
    """Class names for a message on how they differ: with codes in place of letters that may look
    like others."""
    plain = {name.casefold() for name in names}
    return [repr(shown(n)) if n.isascii() or len(plain) == 1 else ascii(n) for n in names]


def similar_classes(classes: Iterable[str]) -> list[str]:
    """A note on classes that differ only in case, spaces, hyphens, underscores, invisible
    characters, or letters that look the same."""
    near: dict[str, list[str]] = {}
    for name in sorted(classes):
        alike = folded(name)
        alike = re.sub(r"[\s_-]+", "", alike) if re.search(r"[^\W\d_]", alike) else alike
        near.setdefault(alike, []).append(name)
    doubtful = [text for group in near.values() if len(group) > 1 for text in spelt(group)]
    if not doubtful:
        return []
    return [f"Classes with almost the same name: {few(doubtful, 6)}. Are they one?"]


def label_text(text: str) -> str:
    """A label in a table, list or tar as the name of its class; empty: as programs write those
    that are missing."""
    text = name_key(text.strip())
    return "" if text.lower() == "nan" or text in _MISSING else text


def label_of(value: object) -> str | None:
    """A value of JSON or of a table as a label: a string, an integer, or 3.0 as the integer 3;
    empty: NaN or nothing. None: it is none of these."""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else None
    if value is None or isinstance(value, str):
        return value or ""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def one_label_each(
    where: str, images: Split, texts: Sequence[str], notes: list[str], strict: bool = True
) -> tuple[Split, list[str]]:
    """Images whose labels are `texts` as a table, list or tar holds them, as those of `label_text`.

    A note is added where spellings of one label differ. Raises DataError: several labels an image,
    as `a|b`, an array or, if `strict`, as `a,b` beside `a` and `b`.
    """
    several = np.array([_is_several(text) for text in texts], np.bool_)[images.labels]
    if several.any():
        first = int(np.flatnonzero(several)[0])
        raise DataError(
            f"{where} gives {counted(int(several.sum()), 'image')} several labels: "
            f"{shown(images.names[first])!r} has {short(texts[images.labels[first]], 60)!r}.",
            "Give each image one label: multi-label data is not supported. No class may have | in "
            "its name.",
        )
    spellings, names = label_codes(map(label_text, texts))
    count = np.bincount(spellings, minlength=len(names))
    merged = [name for name, n in zip(names, count, strict=True) if name and n > 1]
    if merged:
        notes.append(
            "Labels that differ only in spaces around them, or in how accents are stored, are one "
            f"class: {some(merged)}."
        )
    codes, whole = label_codes(_whole(names))
    if whole != names:
        notes.append("Labels such as 1.0 are read as integers, such as 1.")
    images = replace(images, labels=codes[spellings][images.labels])
    for mark in _MARKS if strict else ():
        _check_joined(where, images, whole, mark, notes)
    return images, whole


def _whole(texts: Sequence[str]) -> list[str]:
    """Labels that are all integers, some with .0 as pandas writes those with gaps, without it."""
    numbers = [re.fullmatch(r"(-?[0-9]{1,18})(?:\.0*)?", text) for text in texts if text]
    if not numbers or not all(numbers):
        return list(texts)
    return [text.partition(".")[0] for text in texts]


def _is_several(text: str) -> bool:
    """Whether a label is `a|b`, or an array as JSON or Python writes it."""
    if "|" in text:
        return True
    if not re.fullmatch(r"\s*\[.*\]\s*", text, re.DOTALL):
        return False
    for array in (text, text.replace("'", '"')):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(array)
            return True
    return False


def _check_joined(
    where: str, images: Split, labels: Sequence[str], mark: str, notes: list[str]
) -> None:
    """Raises DataError: labels are joined by `mark`; of few that may be, a note is added."""
    joined = _joined(labels, mark)
    places = np.flatnonzero(np.array([text in joined for text in labels], np.bool_)[images.labels])
    if not len(places):
        return
    name, most = _MARKS[mark]
    if len(joined) <= most * len(labels):
        pairs = few((f"{short(a, 60)!r} beside {some(b)}" for a, b in joined.items()), 3)
        notes.append(f"Labels that may be several in one are taken for one class each: {pairs}.")
        return
    label = labels[images.labels[places[0]]]
    raise DataError(
        f"{where} gives {counted(len(places), 'image')} several labels: "
        f"{shown(images.names[int(places[0])])!r} has {short(label, 60)!r}, beside the labels "
        f"{some(joined[label])}.",
        "Give each image one label: multi-label data is not supported. If it is the name of one "
        f"class, write it without the {name}.",
    )


def _joined(labels: Sequence[str], mark: str) -> dict[str, list[str]]:
    """Labels that may be several, joined by `mark`, and those that show it: all of their parts are
    labels, or another one has the same parts in another order."""
    pieces = {text: tuple(filter(None, map(str.strip, text.split(mark)))) for text in labels}
    alike: dict[tuple[str, ...], list[str]] = {}
    for text, parts in pieces.items():
        alike.setdefault(tuple(sorted(parts)), []).append(text)
    found = {}
    for text, parts in pieces.items():
        if len(parts) < 2:
            continue
        turned = [other for other in alike[tuple(sorted(parts))] if pieces[other] != parts]
        if turned or all(part in pieces for part in parts):
            found[text] = turned or list(dict.fromkeys(parts))
    return found


def by_label(
    where: str,
    images: Split,
    texts: Sequence[str],
    splits: Ints,
    given_notes: Iterable[str] = (),
    order: Sequence[str] | None = None,
    strict: bool = True,
) -> Found:
    """The classes and splits of images that are labelled by texts.

    images: all of them, their labels being indices into `texts`. splits: int64 (n,), indices into
    SPLITS. Classes are those of training images: in `order`, where the source has one; by number,
    where all are numbers; by name. Raises DataError: one class, or others outside training. If not
    `strict`, of all images; the label of those without one is -1.
    """
    notes = list(given_notes)
    if not strict:
        none = without_label(texts) if set(texts) - {"", "-1"} else np.ones(len(texts), np.bool_)
        there = [text for text, absent in zip(texts, none, strict=True) if not absent]
        return _divided(images, texts, splits, _in_order(there, order), notes)
    images, splits = _labelled(where, images, texts, splits, notes)
    present = np.zeros((len(SPLITS), len(texts)), np.bool_)
    present[splits, images.labels] = True
    train = [text for text, there in zip(texts, present[0], strict=True) if there]
    if not train:
        raise DataError(
            f"{where} has no training images.",
            "Splits are train, val and test; --data.splits none takes all images as one.",
        )
    strange = [text for i, text in enumerate(texts) if present[:, i].any() and not present[0, i]]
    if strange:
        raise DataError(
            f"{where} has {counted(len(strange), 'class', 'classes')} outside training only: "
            f"{some(strange, 5)}.{suggest(strange[0], train)}",
            f"Those of training: {some(sorted(train), 10)}.",
        )
    notes += similar_classes(train)
    if len(train) < 2:
        raise DataError(
            f"{where} has one class only, {train[0]!r}; a classifier needs two or more.",
            "Where labels are looked for: docs/sources.md",
        )
    return _divided(images, texts, splits, _in_order(train, order), notes)


def _in_order(texts: Sequence[str], order: Sequence[str] | None) -> list[str]:
    """Classes in `order`; by number, where all are numbers; by name."""
    if order is not None:
        there = set(texts)
        return [text for text in order if text in there]
    if all(re.fullmatch(r"0|[1-9][0-9]{0,17}", text) for text in texts):
        return sorted(texts, key=int)
    return sorted(texts, key=name_key)


def _divided(
    images: Split, texts: Sequence[str], splits: Ints, classes: list[str], notes: list[str]
) -> Found:
    label_of = {text: i for i, text in enumerate(classes)}
    label = np.array([label_of.get(text, -1) for text in texts], np.int64)
    labelled = replace(images, labels=label[images.labels])
    parts = {name: np.flatnonzero(splits == code) for code, name in enumerate(SPLITS)}
    divided = {name: labelled.take(places) for name, places in parts.items() if len(places)}
    return Found(tuple(classes), divided, tuple(notes))


def without_label(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which texts stand for no label: an empty one, or -1 where the others are numbers from 0, as
    published tests are."""
    numbers = [text for text in texts if re.fullmatch(r"0|[1-9][0-9]{0,17}", text)]
    numeric = len(numbers) > 1 and len(numbers) == len(texts) - texts.count("-1")
    return np.array([not text or (text == "-1" and numeric) for text in texts], np.bool_)


def _labelled(
    where: str, images: Split, texts: Sequence[str], splits: Ints, notes: list[str]
) -> tuple[Split, Ints]:
    """The images and their splits without a val or test split that has no labels.

    Raises DataError: only some images have none.
    """
    without = without_label(texts)[images.labels]
    for code, name in enumerate(SPLITS):
        count = int((without & (splits == code)).sum())
        total = int((splits == code).sum())
        if not count:
            continue
        if count < total or not code:
            first = images.names[int(np.flatnonzero(without & (splits == code))[0])]
            raise DataError(
                f"{where} has {counted(count, 'image')} without a label (empty, nan, None, null, "
                f"N/A or -1) in the {name} split, which has {total:,}: {shown(first)!r}.",
                "Label them, or leave them out; a class named so needs another name.",
            )
        notes.append(
            f"The {name} split is left out: its {counted(total, 'image')} have no labels; vitc "
            "predict names their classes."
        )
    kept = np.flatnonzero(~without)
    return images.take(kept), splits[kept]
