"""Which label has each image of a tar shard, and what speaks of its split: members beside it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from vitc.data.litter import is_image, is_litter
from vitc.data.sources import base
from vitc.data.sources.columns import (
    LABEL_NAMES,
    MAX_VALUES,
    known,
    may_split,
    one_to_one,
    text_of,
)
from vitc.data.sources.tar_members import Damaged, members
from vitc.data.store import shown
from vitc.files import once

MAX_LABEL = 1 << 20  # bytes of a .cls or .json member
MIN_CAPTIONS = 20  # different texts that can be labels, however few the images of a shard are
MAX_MEMBERS = 10_000_000  # of one shard; each takes some 300 bytes of memory while it is indexed
MAX_KEYS = 64  # names of keys that are reported
SHORT = 64  # bytes of text that may be a label, and characters of what may be a split
LABEL_FIELDS = ("cls", "label", "class", "target")  # endings of members that hold a label
FOLDER = "folder"  # data.label_column: the labels are the names of folders
_ONE_LABEL = "A .cls holds a number or a name as UTF-8 text, a .json one under a key such as label."
Member = tuple[str, int, int]  # name, offset, size
Fields = dict[str, dict[str, str]]  # key -> field -> image


@dataclass
class Contents:
    """The members of a shard, and what those beside the images hold.

    beside: by their kind, "cls" or "json" or "txt", or "" for others. unused: names of members
    that are not used. keys: of .json members, but those of labels. marks: image -> the keys that
    may speak of its split, with their values. doubtful: keys of .json members that can be the
    label, where there are several, and their values.
    """

    images: list[Member] = field(default_factory=list)
    beside: dict[str, list[Member]] = field(default_factory=lambda: defaultdict(list))
    unused: list[str] = field(default_factory=list)
    without: int = 0  # .json members without a label
    keys: dict[str, None] = field(default_factory=dict)
    marks: dict[str, dict[str, str]] = field(default_factory=dict)
    values: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    doubtful: dict[tuple[str, ...], list[list[str]]] = field(default_factory=dict)

    def mark(
        self, images: Iterable[str], found: Mapping[str, Any], split_column: str | None
    ) -> None:
        """Note the keys of an image's .json, and of those that may be its split the values."""
        kept: dict[str, str] = {}
        for key, value in found.items():
            if len(self.keys) < MAX_KEYS:
                self.keys.setdefault(key)
            text = "" if value is None else text_of(value)
            if isinstance(value, list | dict) or len(text) > SHORT:
                continue
            if key == split_column or may_split(key, value):
                seen = self.values[key]
                if len(seen) <= MAX_VALUES:
                    seen.add(text)
                kept[key] = text if text in seen else next(iter(seen))  # too many for a split
        for image in images:
            self.marks.setdefault(image, {}).update(kept)


def read_contents(f: BinaryIO, length: int) -> Contents:
    """The images and the members beside them. Raises Damaged."""
    found = Contents()
    seen: set[str] = set()
    for member in members(f, length):
        name = member[0]
        if name in seen:
            raise Damaged(f"two members are named {shown(name)!r}")
        seen.add(name)
        if len(seen) > MAX_MEMBERS:
            raise Damaged(f"it has more than {MAX_MEMBERS:,} members")
        if any(is_litter(part) for part in name.split("/")):
            continue
        suffix = name.rpartition("/")[2].rpartition(".")[2].lower()
        kind = "cls" if suffix in LABEL_FIELDS else suffix
        if is_image(name.rpartition("/")[2], base.IMAGE_SUFFIXES):
            found.images.append(member)
        else:
            labelled = kind in ("cls", "json", "txt") and "." in name
            found.beside[kind if labelled else ""].append(member)
    return found


def _key(name: str) -> tuple[str, str]:
    """WebDataset's key, up to the first dot of the file's name, and the field, up to the last.

    a/img0.resized.jpg -> (a/img0, resized).
    """
    folder, _, leaf = name.rpartition("/")
    stem, _, rest = leaf.partition(".")
    return f"{folder}/{stem}", rest.rpartition(".")[0]


def _ending(name: str) -> str:
    """What follows the key: a/img0.cls.txt -> cls.txt."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def fields_of(contents: Contents) -> Fields:
    """The images of each key."""
    of_key: Fields = {}
    for name, _, _ in contents.images:
        key, part = _key(name)
        fields = of_key.setdefault(key, {})
        if part in fields:
            fields[f"\0{len(fields)}"] = name  # x.png beside x.jpg
        else:
            fields[part] = name
    return of_key


def _beside(of_key: Fields, name: str) -> list[str]:
    """The images that a member stands beside: that of its field, or all of its key."""
    key, part = _key(name)
    fields = of_key.get(key, {})
    return [fields[part]] if part in fields and len(fields) > 1 else [*fields.values()]


def _labelled(of_key: Fields, name: str) -> str:
    """The one image that a label belongs to. Raises Damaged: its key has several."""
    key, images = _key(name)[0], _beside(of_key, name)
    fields = of_key[key]
    if len(images) > 1 or any(part[:1] == "\0" for part in fields):
        both = [shown(image) for image in [*fields.values()][:2]]
        raise Damaged(
            f"{shown(key.lstrip('/'))!r} has two images: {both[0]!r} and {both[1]!r}",
            "One key, the name up to its first dot, is one image: rename them without further "
            "dots.",
        )
    return images[0]


# -- labels ----------------------------------------------------------------------------------------


def read_labels(
    f: BinaryIO, contents: Contents, of_key: Fields, column: str | None, split_column: str | None
) -> dict[str, str]:
    """Image -> label, of those that have one: in a .cls, else a .json, else a .txt of its key.

    column: data.label_column, a key of the .json members or the ending of those that count instead.
    Members that hold no label are noted in `contents`. Raises Damaged.
    """
    chosen = _of_ending(contents, column)
    kinds = {"cls": contents.beside["cls"] if column is None else chosen}
    kinds["json"] = contents.beside["json"] if chosen != contents.beside["json"] else []
    found: dict[str, dict[str, str]] = {"json": {}, "cls": {}}  # the later one counts
    for kind, of_kind in found.items():
        for member in kinds[kind]:
            name = member[0]
            images = _beside(of_key, name)
            if not images:
                contents.unused.append(name)
                continue
            values = _content(f, member, "json" if name.lower().endswith(".json") else kind)
            key = _label_key(contents, values, column) if isinstance(values, dict) else None
            if isinstance(values, dict):
                others = {k: v for k, v in values.items() if k != key}
                contents.mark(images, others, split_column)
            if kind == "json" and chosen:
                continue
            label = _label(name, values, key, kind)
            if label is None:
                contents.without += column != FOLDER
                continue
            image = _labelled(of_key, name)
            if of_kind.setdefault(image, label) != label:
                raise Damaged(
                    f"{shown(image)!r} has two labels",
                    "Keep one, or choose the ending of the members that count, such as cls, with "
                    "--data.label_column ENDING.",
                )
    used = {*kinds["cls"], *kinds["json"]}
    if column is None:
        _check_agree(contents, found["json"], found["cls"])
    labels = found["json"] | found["cls"]
    if not labels and column is None and contents.beside["txt"]:
        labels = _text_labels(f, contents, of_key)
        used |= set(contents.beside["txt"]) if labels else set()
    rest = (m for kind in contents.beside.values() for m in kind if m not in used)
    contents.unused += [name for name, _, _ in rest]
    return labels


def _of_ending(contents: Contents, column: str | None) -> list[Member]:
    """The members whose ending data.label_column names; none where it is a key of .json."""
    if column is None:
        return []
    every = [member for kind in contents.beside.values() for member in kind]
    lower = column.lower()
    exact = [member for member in every if _ending(member[0]) == lower]
    return exact or [member for member in every if _ending(member[0]).endswith(f".{lower}")]


def _label_key(contents: Contents, values: Mapping[str, Any], column: str | None) -> str | None:
    """The key of a .json member that holds the label."""
    if column is not None:
        return column if column in values else None
    found = known(values, LABEL_NAMES)
    if len(found) > 1:
        rows = contents.doubtful.setdefault(tuple(found), [])
        rows.append([str(values[key]) for key in found])
    return found[0] if found else None


def _check_agree(contents: Contents, json_: dict[str, str], cls: dict[str, str]) -> None:
    """Raises Damaged: keys of .json, or .json and .cls, that label the images differently."""
    for keys, rows in contents.doubtful.items():
        if not all(one_to_one((row[0], row[i]) for row in rows) for i in range(1, len(keys))):
            raise Damaged(
                f"its .json members have several keys that can be the label: {base.some(keys, 5)}",
                "Choose one with --data.label_column NAME.",
            )
    both = [image for image in json_ if image in cls]
    texts = [(base.label_text(json_[image]), base.label_text(cls[image])) for image in both]
    if not one_to_one(texts):
        first, (a, b) = both[0], texts[0]
        ending = next(_ending(name) for name, _, _ in contents.beside["cls"])
        raise Damaged(
            f"its .json and .{ending} members label the images differently: {shown(first)!r} is "
            f"{a[:40]!r} and {b[:40]!r}",
            f"Choose with --data.label_column: {ending}, or a key of the .json.",
        )


def _text_labels(f: BinaryIO, contents: Contents, of_key: Fields) -> dict[str, str]:
    """Labels in .txt members: where there are no folders, and far fewer texts than images."""
    texts = contents.beside["txt"]
    keyed = [(of_key.get(_key(t[0])[0], {}), t) for t in texts]
    plain = all("/" not in name for name, _, _ in contents.images)
    if not plain or any(len(fields) != 1 or t[2] > 1000 for fields, t in keyed):
        return {}
    labels = {}
    for fields, member in keyed:
        label = _label(member[0], _content(f, member, "txt"), None, "txt")
        if label is not None:
            labels[next(iter(fields.values()))] = label
    distinct = len(set(labels.values()))
    if distinct > max(MIN_CAPTIONS, len(labels) // 2):
        raise Damaged(
            f"its .txt members hold {distinct:,} different texts for {len(labels):,} images: "
            "captions, not labels",
            "Add a .cls or .json with a label to each image.",
        )
    return labels


def short_texts(f: BinaryIO, contents: Contents, of_key: Fields) -> tuple[str, ...]:
    """(ending, member, text): the members of an ending that may be labels, although they are not
    read as such; empty: there are none.

    Every image has one, with a short text that several images share, and that differs within a
    folder: labels by folders would not be the same.
    """
    of_ending: dict[str, dict[str, Member]] = defaultdict(dict)
    for kind in ("txt", ""):
        for member in contents.beside[kind]:
            images = _beside(of_key, member[0])
            if len(images) == 1:
                of_ending[_ending(member[0])].setdefault(images[0], member)
    for ending, of_image in of_ending.items():
        if len(of_image) < len(contents.images):
            continue
        seen: set[str] = set()
        of_folder: dict[str, set[str]] = defaultdict(set)
        for image, member in of_image.items():
            text = _short(f, member)
            seen.add(text)
            of_folder[os.path.dirname(image)].add(text)
            if not text or 2 * len(seen) > len(of_image):
                break
        else:
            if any(len(texts) > 1 for texts in of_folder.values()):
                return ending, shown(member[0]), text
    return ()


def _short(f: BinaryIO, member: Member) -> str:
    """The one line of a short text; empty: it is none."""
    _, offset, size = member
    if size > SHORT:
        return ""
    f.seek(offset)
    text = f.read(size).decode("utf-8-sig", "replace").strip()
    return text if text.isprintable() and "\ufffd" not in text else ""


def _content(f: BinaryIO, member: Member, kind: str) -> Any:
    """The text of a member, or the value of a .json. Raises Damaged."""
    name, offset, size = member
    if size > MAX_LABEL:
        raise Damaged(f"the label {shown(name)!r} has {size:,} bytes", _ONE_LABEL)
    f.seek(offset)
    try:
        text = f.read(size).decode("utf-8-sig").strip()
        return json.loads(text, object_pairs_hook=once) if kind == "json" else text
    except (ValueError, RecursionError) as e:
        raise Damaged(f"the label {shown(name)!r} cannot be read: {e}", _ONE_LABEL) from None


def _label(name: str, values: Any, key: str | None, kind: str) -> str | None:
    """The label in a member's content; None for a .json without one."""
    if isinstance(values, dict):
        if key is None:
            return None
        values = values[key]
    elif kind == "json" and not isinstance(values, int | str) and not base.label_of(values):
        return None
    label = base.label_of(values)
    if not label:
        raise Damaged(
            f"the label {shown(name)!r} is {str(values)[:40]!r}, not a number or a name "
            "(multi-label data is not supported)",
            _ONE_LABEL,
        )
    return label
