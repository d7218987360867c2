"""Which images do tar shards (WebDataset's layout) hold? They are read in any order, not unpacked.

Each shard is read through once, header by header; the index of its images is kept in the user's
cache and is valid while the shard keeps its size and modification time. Tars are not
trusted, so they are parsed here, with every size checked before it is used: links, devices, names
that lead out of the folder and two members of one name are refused, though nothing is ever written.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitc.data.config import DataConfig
from vitc.data.litter import is_litter, is_own_output, listed
from vitc.data.sources import base, index
from vitc.data.sources.columns import MAX_VALUES, SplitRule, divides, split_rule, usage
from vitc.data.sources.tar_labels import (
    FOLDER,
    fields_of,
    read_contents,
    read_labels,
    short_texts,
)
from vitc.data.sources.tar_members import BLOCK, Damaged, header
from vitc.data.sources.tree import Place, Tree, arrange, join
from vitc.data.split_words import SPLITS, parse_splits, read_names, shard_splits
from vitc.data.store import Ints, Names, label_codes, name_key, shown, stamp
from vitc.errors import ConfigError, DataError, unknown
from vitc.wording import counted, few

_NONE = "\0"  # the label of an image without a sidecar, in an index
_INDEX = 3  # version of what an index holds
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
    settings = frozenset({"group", "label_column", "split_column", "splits"})

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
        where = str(config.path)
        paths = index.find_files(where, self.suffixes)
        wanted = parse_splits(config.splits) if config.splits else None
        parts = [_indexed(path, config) for path in paths]
        if not any(len(part) for part in parts):
            raise DataError(f"No images in {base.some(paths)}.", _LAYOUT)
        try:
            shards = shard_splits(paths, wanted)
        except ValueError as e:
            raise DataError(f"{where}: {e}", "Rename it, or use --data.splits none.") from e
        taken = bool(wanted) and any(shards.splits)
        rule, marked = _marked(config, parts, taken)
        inner = None if wanted and (taken or rule.columns) else wanted
        inside = _inside(config, parts, inner, strict)
        images, texts = index.joined(paths, paths, [part.stamp for part in parts], parts)
        named = [-1 if s is None else SPLITS.index(s) for s in shards.splits]
        if set(named) == {0}:  # train.tar may hold every split
            named = [-1] * len(named)
        of_shard = np.repeat(named, [len(part) for part in parts])
        splits = _agreed(images.names, of_shard, inside.splits, marked)
        texts = ["" if text == _NONE else text for text in texts]
        noted: list[str] = []
        if inside.labels is None:
            images, texts = base.one_label_each(where, images, texts, noted, strict)
        else:
            codes, texts = label_codes(inside.labels)
            images = replace(images, labels=codes)
        kept = np.flatnonzero(inside.kept)
        read = _reading(parts, rule)
        notes = [*read, *rule.notes, *shards.notes, *inside.notes, *noted]
        images = images.take(kept)
        return base.by_label(where, images, texts, splits[kept], notes, strict=strict)


def _reading(parts: Sequence[index.Index], rule: SplitRule) -> list[str]:
    """Notes on what in the shards is used, and what is not."""
    notes = []
    others = sum(part.others for part in parts)
    if others:
        first = [name for part in parts for name in part.unused][:3]
        more = f" and {others - len(first):,} more" if others > len(first) else ""
        names = ", ".join(map(repr, first)) + more
        notes.append(f"{counted(others, 'member')} of the tar files not used: {names}.")
    without = sum(part.without for part in parts)
    if without:
        notes.append(
            f"{counted(without, '.json member')} without a label, not used; "
            "--data.label_column KEY names the key that is one."
        )
    keys = dict.fromkeys([*rule.columns, *(key for part in parts for key in part.keys)])
    return [*notes, usage(rule.columns, keys, "Keys of .json members")] if keys else notes


# -- the index of one shard ------------------------------------------------------------------------


def _indexed(path: str, config: DataConfig) -> index.Index:
    """The shard's index: from the cache, or made and put there."""
    chosen = f"{config.label_column}\0{config.split_column}"
    try:
        mark = stamp(os.stat(path))
        with open(path, "rb") as f:
            kept = index.cache_file("tars", f"{path}\0{chosen}\0{_INDEX}")
            found = index.load_index(kept, mark)
            if found is None or not _agrees(found, f):
                found = _make_index(path, f, mark, config)
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


def _make_index(path: str, f: BinaryIO, mark: tuple[int, int], config: DataConfig) -> index.Index:
    """The images of a shard with the labels of their sidecars; _NONE for those without one."""
    column = config.label_column
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
        contents = read_contents(f, mark[0])
        of_key = fields_of(contents)
        labels = read_labels(f, contents, of_key, column, config.split_column)
        doubt = short_texts(f, contents, of_key) if not labels and column is None else ()
    except Damaged as e:
        hint = "Write the shards again, with plain files only."
        raise DataError(f"{path} is refused: {e}.", e.hint or hint) from None
    code, texts = label_codes(labels.get(name, _NONE) for name, _, _ in contents.images)
    where = np.array([image[1:] for image in contents.images], np.int64).reshape(-1, 2)
    names = Names.of(shown(image[0]) for image in contents.images)
    offset, size = where.T.copy()
    found = index.Index(mark, names, offset, size, tuple(texts), code)
    marks: Ints | None = None
    distinct: list[str] = []
    if contents.values:
        rows = (json.dumps(contents.marks.get(name, {})) for name, _, _ in contents.images)
        marks, distinct = label_codes(rows)
    return replace(
        found,
        others=len(contents.unused),
        without=contents.without,
        unused=tuple(map(shown, contents.unused[:3])),
        keys=tuple(contents.keys),
        doubt=doubt,
        marks=tuple(distinct),
        mark=marks,
    )


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
    config: DataConfig,
    parts: Sequence[index.Index],
    wanted: Mapping[str, str] | None,
    strict: bool,
) -> _Inside:
    """Labels and splits by folders; only splits where sidecars hold the labels."""
    where = str(config.path)
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
    column = config.label_column
    if strict and column not in (None, FOLDER):
        keys = {key for part in parts for key in part.keys}
        raise unknown(
            "data.label_column",
            str(column),
            keys | {FOLDER},
            f"No .json member has such a key, and no member such an ending; {FOLDER}: the names "
            f"of folders. Keys: {few(sorted(keys), 12) or 'none'}.",
        )
    doubt = next((part.doubt for part in parts if part.doubt), ())
    if loose:
        first = next(name for name in bare if "/" not in name)
        raise DataError(
            f"{first!r} in {where} has no label: no .cls, no .json with label, class or the "
            "like, and no folder.",
            f"If {doubt[1]!r} holds it: --data.label_column {doubt[0]}." if doubt else _LAYOUT,
        )
    if doubt and strict:
        raise DataError(
            f"{where}: labels may be the names of folders, or the texts of the .{doubt[0]} "
            f"members, such as {doubt[2]!r} in {doubt[1]!r}.",
            f"Choose: --data.label_column {FOLDER} or --data.label_column {doubt[0]}.",
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
    if wanted and not used:
        raise ConfigError(
            f"data.splits names {base.some(wanted)}, and no shard, folder or value of a key in "
            ".json members is named so.",
            "Name the key with --data.split_column KEY.",
        )
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


def _marked(
    config: DataConfig, parts: Sequence[index.Index], taken: bool
) -> tuple[SplitRule, Ints]:
    """How splits follow from keys of .json members, and that of each image; -1 without.

    taken: the names of data.splits are those of shards.
    """
    full = [part for part in parts if len(part)]
    rows = [json.loads(text) for part in full for text in part.marks or ("{}",)]
    values: dict[str, set[str] | None] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        distinct = {row.get(key, "") for row in rows}
        values[key] = distinct if len(distinct) <= MAX_VALUES else None
    chosen, nowhere = config.split_column, np.full(sum(map(len, parts)), -1, np.int64)
    if chosen is not None and chosen not in values:
        raise unknown("data.split_column", chosen, {key for part in parts for key in part.keys})
    wanted = parse_splits(config.splits) if config.splits and not taken else {}
    if chosen is None and not wanted:
        values = {key: found for key, found in values.items() if divides(key, found)}
    elif chosen is None and not any(found and wanted.keys() <= found for found in values.values()):
        return SplitRule(), nowhere
    settings = replace(config, splits="none") if taken else config
    rule = split_rule(settings, values, str(config.path))
    if not rule.columns:
        return rule, nowhere
    try:
        of_row = [rule.split([row.get(key, "") for key in rule.columns]) for row in rows]
    except ValueError as e:
        raise DataError(f"{config.path}: {e}.") from e
    counts = [len(part.marks) or 1 for part in full]
    first = np.cumsum(counts) - counts
    places = [
        start + (np.zeros(len(part), np.int64) if part.mark is None else part.mark)
        for start, part in zip(first.tolist(), full, strict=True)
    ]
    return rule, np.array(of_row, np.int64)[np.concatenate(places)]


def _agreed(names: Sequence[str], shards: Ints, folders: Ints, keys: Ints) -> Ints:
    """The split of each image by the key of its .json, its folder or its shard, else train.

    A shard of the training split may hold others by key. Raises DataError: they contradict.
    """
    held = np.where((shards == 0) & (keys >= 0), -1, shards)
    places = {"in a shard": held, "in a folder": folders, "with a .json": keys}
    for (a, left), (b, right) in itertools.combinations(places.items(), 2):
        wrong = np.flatnonzero((left >= 0) & (right >= 0) & (left != right))
        if len(wrong):
            i = int(wrong[0])
            raise DataError(
                f"{names[i]!r} is {a} of the {SPLITS[left[i]]} split and {b} of the "
                f"{SPLITS[right[i]]} split.",
                "Rename one of them, or decide with --data.splits.",
            )
    found = np.where(keys >= 0, keys, np.where(folders >= 0, folders, shards))
    return np.maximum(found, 0)
