"""Which images do tar shards (WebDataset's layout) hold? They are read in any order, not unpacked.

Each shard is read through once, header by header; the index of its images is kept in the user's
cache and is valid while the shard keeps its size and modification time. Tars are not
trusted, so they are parsed here, with every size checked before it is used: links, devices, names
that lead out of the folder and two members of one name are refused, though nothing is ever written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitc.data.config import DataConfig
from vitc.data.litter import is_image, is_litter, is_own_output, listed
from vitc.data.sources import base, index
from vitc.data.sources.columns import LABEL_NAMES, known, one_to_one
from vitc.data.sources.tar_members import BLOCK, Damaged, header, members
from vitc.data.sources.tree import Place, Tree, arrange, join
from vitc.data.split_words import SPLITS, parse_splits, read_names, shard_splits
from vitc.data.store import Ints, Names, label_codes, name_key, shown, stamp
from vitc.errors import DataError
from vitc.wording import counted

MAX_LABEL = 1 << 20  # bytes of a .cls or .json member
MIN_CAPTIONS = 20  # different texts that can be labels, however few the images of a shard are
MAX_MEMBERS = 10_000_000  # of one shard; each takes some 300 bytes of memory while it is indexed
LABEL_FIELDS = ("cls", "label", "class", "target")  # endings of members that hold a label
_NONE = "\0"  # the label of an image without a sidecar, in an index
_INDEX = 2  # version of what an index holds
_PACKERS = {
    b"\x1f\x8b": "gzip: gunzip",
    b"BZh": "bzip2: bunzip2",
    b"\xfd7zXZ": "xz: unxz",
    b"\x28\xb5\x2f\xfd": "zstd: unzstd",
}
_LAYOUT = (
    "Expected KEY.jpg with KEY.cls or KEY.json next to it (WebDataset's layout), or CLASS/KEY.jpg."
)


class Tar(base.Source):
    """The images in tar files: one, a folder of them, a pattern, or several joined by `::`.

    An image's label is its key's .cls, .json or .txt; where no image has one, folders are classes
    and splits as in a folder of images. A split may also be a word in the shard's name.
    """

    kind = origin = "tar"
    title = "tar shards"
    path = "tar shards: --data.path 'train-{000..012}.tar', a pattern with *, or a folder of them"
    suffixes = (".tar", ".tar.gz", ".tgz")
    settings = frozenset({"group", "label_column", "splits"})

    def matches(self, path: str) -> bool:
        if not os.path.isdir(path):
            return super().matches(path)
        names = listed(path)
        inside = [os.path.join(path, name) for name in names if not is_litter(name)]
        return any(name.endswith(".tar") for name in names) and all(
            is_own_output(place) for place in inside if os.path.isdir(place)
        )

    def absolute(self, path: str) -> str:
        return "::".join(map(super().absolute, path.split("::")))

    def read_any(self, config: DataConfig) -> base.Found:
        return self.read(config, strict=False)

    def read(self, config: DataConfig, strict: bool = True) -> base.Found:
        """Raises ConfigError: no such files; DataError: compressed, damaged or not trustworthy."""
        paths = index.find_files(str(config.path), self.suffixes)
        wanted = parse_splits(config.splits) if config.splits else None
        parts = [_indexed(path, config.label_column) for path in paths]
        if not any(len(part) for part in parts):
            raise DataError(f"No images in {base.some(paths)}.", _LAYOUT)
        others = sum(part.others for part in parts)
        notes = [f"{counted(others, 'member')} of the tar files not used."] if others else []
        without = sum(part.without for part in parts)
        if without:
            notes.append(
                f"{counted(without, '.json member')} without a label, not used; "
                "--data.label_column KEY names the key that is one."
            )
        try:
            shards = shard_splits(paths, wanted)
        except ValueError as e:
            raise DataError(f"{config.path}: {e}", "Rename it, or use --data.splits none.") from e
        inner = None if wanted and any(shards.splits) else wanted
        inside = _inside(str(config.path), parts, inner, strict)
        images, texts = index.joined(paths, paths, [part.stamp for part in parts], parts)
        named = [-1 if s is None else SPLITS.index(s) for s in shards.splits]
        if set(named) == {0}:  # train.tar may hold every split
            named = [-1] * len(named)
        splits = np.repeat(named, [len(part) for part in parts])
        _check_agree(images.names, splits, inside.splits)
        splits = np.maximum(np.where(inside.splits < 0, splits, inside.splits), 0)
        texts = ["" if text == _NONE else text for text in texts]
        noted: list[str] = []
        if inside.labels is None:
            images, texts = base.one_label_each(str(config.path), images, texts, noted)
        else:
            codes, texts = label_codes(inside.labels)
            images = replace(images, labels=codes)
        kept = np.flatnonzero(inside.kept)
        notes = [*notes, *shards.notes, *inside.notes, *noted]
        where, images = str(config.path), images.take(kept)
        return base.by_label(where, images, texts, splits[kept], notes, strict=strict)


# -- the index of one shard ------------------------------------------------------------------------


def _indexed(path: str, column: str | None) -> index.Index:
    """The shard's index: from the cache, or made and put there. column: data.label_column."""
    try:
        mark = stamp(os.stat(path))
        with open(path, "rb") as f:
            kept = index.cache_file("tars", f"{path}\0{column}\0{_INDEX}")
            found = index.load_index(kept, mark)
            if found is None or not _agrees(found, f):
                found = _make_index(path, f, mark, column)
                index.save_index(kept, found)
            return found
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}.") from e


def _agrees(found: index.Index, f: BinaryIO) -> bool:
    """Whether the headers of some images are where the index has them, with the same size."""
    n = len(found)
    for i in np.unique(np.linspace(0, n - 1, 16).astype(np.int64)).tolist() if n else []:
        f.seek(int(found.offset[i]) - BLOCK)
        with contextlib.suppress(Damaged):
            if header(f.read(BLOCK))[1] == found.size[i]:
                continue
        return False
    return True


def _make_index(path: str, f: BinaryIO, mark: tuple[int, int], column: str | None) -> index.Index:
    """The images of a shard with the labels of their sidecars; _NONE for those without one."""
    f.seek(0)
    start = f.read(8)
    for magic, name in _PACKERS.items():
        if start.startswith(magic):
            kind, _, tool = name.partition(": ")
            raise DataError(
                f"{path} is compressed ({kind}): its images can only be read in sequence, "
                "and training reads them in random order.",
                f"Decompress it once ({tool} {Path(path).name}); images are compressed already.",
            )
    try:
        contents = _contents(f, mark[0])
        labels = _labels(f, contents, column)
    except Damaged as e:
        hint = "Write the shards again, with plain files only."
        raise DataError(f"{path} is refused: {e}.", e.hint or hint) from None
    code, texts = label_codes(labels.get(name, _NONE) for name, _, _ in contents.images)
    where = np.array([image[1:] for image in contents.images], np.int64).reshape(-1, 2)
    names = Names.of(shown(image[0]) for image in contents.images)
    offset, size = where.T.copy()
    return index.Index(
        mark, names, offset, size, tuple(texts), code, contents.others, contents.without
    )


@dataclass
class _Contents:
    """The members of a shard, as (name, offset, size).

    sidecars: by their kind, "cls" or "json" or "txt". doubtful: keys of .json members that can be
    the label, where there are several, and their values.
    """

    images: list[tuple[str, int, int]] = field(default_factory=list)
    sidecars: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    doubtful: dict[tuple[str, ...], list[list[str]]] = field(default_factory=dict)
    others: int = 0
    without: int = 0  # .json members without a label


def _contents(f: BinaryIO, length: int) -> _Contents:
    found = _Contents()
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
        elif kind in ("cls", "json", "txt") and "." in name:
            found.sidecars.setdefault(kind, []).append(member)
        else:
            found.others += 1
    return found


def _key(name: str) -> tuple[str, str]:
    """WebDataset's key, up to the first dot of the file's name, and the field, up to the last.

    a/img0.resized.jpg -> (a/img0, resized).
    """
    folder, _, leaf = name.rpartition("/")
    stem, _, rest = leaf.partition(".")
    return f"{folder}/{stem}", rest.rpartition(".")[0]


def _labels(f: BinaryIO, contents: _Contents, column: str | None) -> dict[str, str]:
    """Image -> label, of those that have one: in a .cls, else a .json, else a .txt of its key."""
    of_key: dict[str, dict[str, str]] = {}  # key -> field -> image
    for name, _, _ in contents.images:
        key, part = _key(name)
        fields = of_key.setdefault(key, {})
        if part in fields:
            fields[f"\0{len(fields)}"] = name  # x.png beside x.jpg
        else:
            fields[part] = name
    labels: dict[str, str] = {}
    for kind in ("json", "cls"):  # the later one counts
        of_kind: dict[str, str] = {}
        for name, offset, size in contents.sidecars.get(kind, []):
            key, part = _key(name)
            fields = of_key.get(key, {})
            if not fields:
                contents.others += 1
                continue
            label = _label(f, contents, (name, offset, size), kind, column)
            if label is None:
                contents.without += 1
                continue
            images = [fields[part]] if part in fields and len(fields) > 1 else [*fields.values()]
            if len(images) > 1 or any(field[:1] == "\0" for field in fields):
                both = [shown(image) for image in [*fields.values()][:2]]
                raise Damaged(
                    f"{shown(key.lstrip('/'))!r} has two images: {both[0]!r} and {both[1]!r}",
                    "One key, the name up to its first dot, is one image: rename them without "
                    "further dots.",
                )
            if of_kind.setdefault(images[0], label) != label:
                raise Damaged(f"{shown(images[0])!r} has two labels")
        labels |= of_kind
    for keys, rows in contents.doubtful.items():
        if not all(one_to_one((row[0], row[i]) for row in rows) for i in range(1, len(keys))):
            raise Damaged(
                f"its .json members have several keys that can be the label: {base.some(keys, 5)}",
                "Choose one with --data.label_column NAME.",
            )
    if not labels and "txt" in contents.sidecars:
        return _text_labels(f, contents, of_key)
    contents.others += len(contents.sidecars.get("txt", []))
    return labels


def _text_labels(
    f: BinaryIO, contents: _Contents, of_key: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Labels in .txt members: where there are no folders, and far fewer texts than images."""
    texts = contents.sidecars["txt"]
    keyed = [(of_key.get(_key(t[0])[0], {}), t) for t in texts]
    plain = all("/" not in name for name, _, _ in contents.images)
    if not plain or any(len(fields) != 1 or t[2] > 1000 for fields, t in keyed):
        contents.others += len(texts)
        return {}
    labels = {}
    for fields, (name, offset, size) in keyed:
        label = _label(f, contents, (name, offset, size), "txt", None)
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


def _label(
    f: BinaryIO,
    contents: _Contents,
    member: tuple[str, int, int],
    kind: str,
    column: str | None,
) -> str | None:
    """The label in a member; None for a .json without one."""
    name, offset, size = member
    if size > MAX_LABEL:
        raise Damaged(f"the label {shown(name)!r} has {size:,} bytes")
    f.seek(offset)
    try:
        text = f.read(size).decode("utf-8").strip()
        values: Any = json.loads(text) if kind == "json" else text
    except (ValueError, RecursionError) as e:
        raise Damaged(f"the label {shown(name)!r} cannot be read: {e}") from None
    if isinstance(values, dict):
        found = known(values, LABEL_NAMES)
        if (column is None and not found) or (column is not None and column not in values):
            return None
        if column is None and len(found) > 1:
            rows = contents.doubtful.setdefault(tuple(found), [])
            rows.append([str(values[key]) for key in found])
        values = values[found[0] if column is None else column]
    elif kind == "json" and not isinstance(values, int | str):
        return None
    if isinstance(values, bool) or not isinstance(values, int | str) or values == "":
        raise Damaged(
            f"the label {shown(name)!r} is {str(values)[:40]!r}, not a number or a name "
            "(multi-label data is not supported)"
        )
    return str(values)


# -- labels and splits of all shards ---------------------------------------------------------------


@dataclass
class _Inside:
    """What follows for each image from the folders inside the tars.

    splits: indices into SPLITS, -1 where no folder has the name of one. labels: by folder; None
    where sidecars hold them. kept: which images are used.
    """

    splits: Ints
    labels: list[str] | None
    kept: NDArray[np.bool_]
    notes: list[str]


def _inside(
    where: str, parts: Sequence[index.Index], wanted: Mapping[str, str] | None, strict: bool
) -> _Inside:
    """Labels and splits by folders; only splits where sidecars hold the labels."""
    names = [name for part in parts for name in part.names]
    labelled = np.concatenate(
        [np.array([text != _NONE for text in part.labels], np.bool_)[part.code] for part in parts]
    )
    every = np.ones(len(names), np.bool_)
    loose = any("/" not in name for name in names)
    if labelled.all() or (not strict and (labelled.any() or loose)):
        notes = ["Labels are those of the .cls, .json or .txt members."]
        return _Inside(_folder_splits(names, wanted, notes), None, every, notes)
    bare = [name for name, has in zip(names, labelled, strict=True) if not has]
    if labelled.any():
        raise DataError(
            f"{where}: {counted(len(bare), 'image')} of {len(names):,} have no label: "
            f"{base.some(bare)}.",
            "Give each a .cls or .json of the same name up to the first dot, or leave them out.",
        )
    if loose:
        first = next(name for name in bare if "/" not in name)
        raise DataError(
            f"{first!r} in {where} has no label: no .cls, no .json with label, class or the "
            "like, and no folder.",
            _LAYOUT,
        )
    layout = arrange(_tree(names), where, wanted)
    place = {
        folder: (SPLITS.index(split), name)
        for split, classes in layout.classes.items()
        for name, folders in classes.items()
        for folder in folders
    }
    several = len(layout.classes) > 1
    splits, labels = np.full(len(names), -1, np.int64), [""] * len(names)
    for i, name in enumerate(names):
        parts_of = name.split("/")
        for depth in range(1, len(parts_of)):
            found = place.get("/".join(parts_of[:depth]))
            if found is not None:
                splits[i], labels[i] = found[0] if several else -1, shown(found[1])
                break
    kept = np.array([label != "" for label in labels], np.bool_)
    notes = ["Labels are the names of folders.", *layout.notes]
    left = [name for name, label in zip(names, labels, strict=True) if not label]
    if left:
        notes.append(f"{counted(len(left), 'image')} of no class left out: {base.some(left)}.")
    return _Inside(splits, labels, kept, notes)


def _folder_splits(
    names: Sequence[str], wanted: Mapping[str, str] | None, notes: list[str]
) -> Ints:
    """The split by a folder with the name of one, the outermost; -1 without."""
    if wanted == {}:
        return np.full(len(names), -1, np.int64)
    folders = {name.rpartition("/")[0] for name in names}
    read = read_names({part for folder in folders for part in folder.split("/")})
    of_part = wanted or {part: name.split for part, name in read.items() if not name.rest}
    of_folder = {
        folder: next((of_part[part] for part in folder.split("/") if part in of_part), None)
        for folder in folders
    }
    used = {
        part: of_part[part] for folder in folders for part in folder.split("/") if part in of_part
    }
    if used and wanted is None:
        about = ", ".join(f"{part!r} is {split}" for part, split in sorted(used.items()))
        notes.append(f"Splits by the names of folders: {about}. --data.splits none: none is.")
    splits = [of_folder[name.rpartition("/")[0]] for name in names]
    return np.array([-1 if s is None else SPLITS.index(s) for s in splits], np.int64)


def _tree(names: Iterable[str]) -> Tree:
    """The folders of images, as those of a disk."""
    places = {"": Place()}
    for number, name in enumerate(names):
        *folders, leaf = name.split("/")
        path = ""
        for folder in folders:
            below = join(path, folder)
            if below not in places:
                places[below] = Place()
                places[path].folders.append(folder)
            path = below
        places[path].images.append((leaf, number))
    for place in places.values():
        place.folders.sort(key=name_key)
    return Tree(places)


def _check_agree(names: Sequence[str], shards: Ints, inside: Ints) -> None:
    """Raises DataError: an image in a folder of another split than its shard's."""
    wrong = np.flatnonzero((shards >= 0) & (inside >= 0) & (shards != inside))
    if len(wrong):
        name = names[int(wrong[0])]
        raise DataError(
            f"{name!r} is in a shard of the {SPLITS[shards[wrong[0]]]} split and in a folder "
            f"of the {SPLITS[inside[wrong[0]]]} split.",
            "Rename one of them, or decide with --data.splits.",
        )
