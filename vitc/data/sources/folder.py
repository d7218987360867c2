"""Which images does a folder hold, class by class and split by split?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.sources.base import IMAGE_SUFFIXES, SPLIT_OF, SPLITS, Found, Source, Split, some
from vitc.data.store import Files, Names, name_key, shown
from vitc.errors import ConfigError, DataError, suggest
from vitc.wording import counted

_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})  # written by file managers
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_LAYOUTS = (
    "Expected FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg with val and test next to it."
)


class Folder(Source):
    """A folder of class folders, or of splits with class folders in them."""

    kind = origin = "folder"
    title = "a folder of images, one sub-folder per class"
    path = "a folder: --data.path DIR"
    settings = frozenset({"group"})

    def matches(self, path: str) -> bool:
        return os.path.isdir(path)

    def read(self, config: DataConfig) -> Found:
        return scan_folder(Path(str(config.path)).expanduser())


@dataclass
class _Class:
    """One class folder's files: (path below the root, size) of images, paths of others."""

    images: list[tuple[str, int]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def scan_folder(root: Path, strict: bool = True) -> Found:
    """Every image below `root` with its class and split.

    A class is a sub-folder with everything nested in it. Hidden files and those of file managers
    are skipped; other files that are not images are named in the notes. Raises ConfigError: no
    such folder; DataError: no classes and, if `strict`, only one, an empty one, or classes that
    differ between the splits.
    """
    if root.exists() and not root.is_dir():
        packed = root.name.lower().endswith(_PACKED)
        hint = "Unpack it and give the folder." if packed else _LAYOUTS
        raise ConfigError(f"{root} is a file, not a folder of images.", hint)
    if not root.exists():
        folders = [p.name for p in root.parent.glob("*") if p.is_dir()]
        raise ConfigError(f"There is no folder {root}.{suggest(root.name, folders)}", _LAYOUTS)
    places, notes = _layout(root)
    found = {split: _classes_in(root, folder, notes) for split, folder in places.items()}
    others = [file for part in found.values() for c in part.values() for file in c.others]
    if others:
        notes.append(f"{counted(len(others), 'file')} skipped, not images: {some(others)}.")
    if not strict:
        names = {name_key(name): name for part in reversed(found.values()) for name in part}
        classes = [names[key] for key in sorted(names)]
        splits = {split: _gather(root, classes, part) for split, part in found.items()}
        splits = {split: part for split, part in splits.items() if len(part)}
        return Found(tuple(map(shown, classes)), splits, tuple(notes))
    _check_classes(root, found)
    classes = sorted(found["train"], key=name_key)
    for split, part in found.items():
        have = {name_key(name) for name, c in part.items() if c.images}
        absent = [c for c in classes if name_key(c) not in have]
        if absent:
            lacking = f"{counted(len(absent), 'class', 'classes')}: {some(absent, 5)}"
            notes.append(f"The {split} split has no image of {lacking}.")
    images = [image for part in found.values() for c in part.values() for image in c.images]
    empty = [name for name, size in images if size == 0]
    if empty:
        notes.append(f"{counted(len(empty), 'image file')} of 0 bytes, broken: {some(empty)}.")
    splits = {split: _gather(root, classes, part) for split, part in found.items()}
    return Found(tuple(map(shown, classes)), splits, tuple(notes))


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """Names of the sub-folders and of the other entries, sorted, without hidden ones and junk."""
    names: tuple[list[str], list[str]] = [], []
    for entry in _listing(folder):
        names[0 if _is_dir(entry) else 1].append(entry.name)
    return sorted(names[0], key=name_key), sorted(names[1], key=name_key)


def _listing(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, without hidden entries and junk. Raises DataError: unreadable."""
    try:
        with os.scandir(folder) as listing:
            return [e for e in listing if e.name[:1] != "." and e.name.lower() not in _JUNK]
    except OSError as e:
        raise _unreadable(folder, e) from e


def _unreadable(folder: str, error: OSError) -> DataError:
    return DataError(f"The folder {shown(folder)!r} cannot be read: {error.strerror}.")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


# -- which folder is which split -------------------------------------------------------------------


def _layout(root: Path) -> tuple[dict[str, str], list[str]]:
    """The folder of classes of each split ("train" alone: the root), and notes."""
    dirs, files = _entries(str(root))
    if not dirs:
        images = sum(_is_image(n) for n in files)
        what = f"{counted(images, 'image')} but no sub-folders" if images else "no sub-folders"
        packed = [n for n in files if n.lower().endswith(_PACKED) and not images]
        raise DataError(
            f"{root} holds {what}: the classes are the sub-folders.",
            f"Unpack {packed[0]!r} first." if packed else _LAYOUTS,
        )
    named = {d: SPLIT_OF[d.lower()] for d in dirs if d.lower() in SPLIT_OF}
    inside = {d: _entries(str(root / d)) for d in named}
    split_dirs = [d for d in named if inside[d][0]]
    if not named:
        return {"train": str(root)}, []
    if not split_dirs:
        if len(named) > 1 or len(dirs) == 1:
            raise DataError(
                f"{some(named)} in {root} have no sub-folders, so their images have no class.",
                _LAYOUTS,
            )
        note = f"{next(iter(named))!r} has no sub-folders, so it is a class, not a split."
        return {"train": str(root)}, [note]

    notes = []
    for d in named:
        if d in split_dirs:
            continue
        if named[d] == "train":
            raise DataError(
                f"{root / d} has no sub-folders, so its images have no class.", _LAYOUTS
            )
        count = sum(_is_image(n) for n in inside[d][1])
        notes.append(
            f"{d!r} was skipped: it has no class sub-folders, so its {counted(count, 'image')} "
            f"cannot serve as the {named[d]} split."
        )
    places: dict[str, str] = {}
    for split in SPLITS:
        mine = [d for d in split_dirs if named[d] == split]
        if len(mine) > 1:
            raise DataError(
                f"{root} holds {some(mine)}, several folders for the {split} split.",
                "Keep one, or merge them.",
            )
        if mine:
            places[split] = str(root / mine[0])
    if "train" not in places:
        raise DataError(
            f"{root} holds {some(split_dirs)} but no train folder.",
            f"{_LAYOUTS} If {split_dirs[0]!r} is a class, give that folder another name.",
        )
    others = [d for d in dirs if d not in named]
    if others:
        notes.append(f"{some(others)} next to {some(split_dirs)} skipped: no split has that name.")
    return places, notes


# -- the files of a class --------------------------------------------------------------------------


def _classes_in(root: Path, folder: str, notes: list[str]) -> dict[str, _Class]:
    """Class name -> its files, for each sub-folder of `folder`."""
    dirs, files = _entries(folder)
    if files:
        images = [n for n in files if _is_image(n)]
        what = f"{counted(len(images), 'image')} of no class" if images else "no image"
        notes.append(
            f"{counted(len(files), 'file')} next to the class folders of {Path(folder).name!r} "
            f"skipped ({what}): {some(files)}."
        )
    below = os.path.relpath(folder, root).replace(os.sep, "/")
    prefix = "" if below == "." else f"{below}/"
    # Threads: on a network's file system each stat waits for the server, and waiting overlaps.
    with ThreadPoolExecutor(max_workers=16) as pool:
        walked = pool.map(lambda d: _walk(os.path.join(folder, d), f"{prefix}{d}/"), dirs)
        return dict(zip(dirs, walked, strict=True))


def _walk(folder: str, prefix: str) -> _Class:
    """All files below a class folder; a folder reached twice through links is read once."""
    found = _Class()
    seen: set[tuple[int, int]] = set()
    stack = [(folder, prefix)]
    while stack:
        place, below = stack.pop()
        try:
            status = os.stat(place)
        except OSError as e:
            raise _unreadable(place, e) from e
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _listing(place):
            name = f"{below}{entry.name}"
            if _is_dir(entry):
                stack.append((entry.path, f"{name}/"))
            elif _is_image(name) and (size := _size(entry)) is not None:
                found.images.append((name, size))
            else:
                found.others.append(name)
    found.images.sort(key=lambda image: name_key(image[0]))
    found.others.sort(key=name_key)
    return found


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a regular file; None for a pipe, a device or a link to nothing."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:
        return None


# -- are the classes usable ------------------------------------------------------------------------


def _check_classes(root: Path, found: dict[str, dict[str, _Class]]) -> None:
    train = found["train"]
    if not any(c.images for c in train.values()):
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"No images in the class folders of {root}.", f"Supported: {kinds}.")
    for split, part in found.items():
        first: dict[str, str] = {}  # names that differ only in case, or in how accents are encoded
        for name in part:
            other = first.setdefault(name_key(name).casefold(), name)
            if other != name:
                raise DataError(
                    f"The {split} images have classes {shown(other)!r} and {shown(name)!r}, "
                    "names that differ only in upper and lower case.",
                    "Merge the folders, or rename one: to some systems they are the same.",
                )
        if not any(c.images for c in part.values()):
            raise DataError(
                f"The {split} folder of {root} holds class folders but no image.",
                "Add images, or remove it: the split is then held out from the training images.",
            )
    if len(train) == 1:
        (name,) = train
        inner = root / name
        deeper = _entries(str(inner))[0] if inner.is_dir() else []
        hint = f"Add a sub-folder for each other class. {_LAYOUTS}"
        if len(deeper) > 1:
            hint = f"If its sub-folders {some(deeper)} are the classes, give {shown(str(inner))}."
        raise DataError(
            f"{root} holds one class only, {shown(name)!r}: a classifier needs two or more.", hint
        )
    empty = [name for name, c in train.items() if not c.images]
    if empty:
        others = [o for name in empty for o in train[name].others]
        raise DataError(
            f"{counted(len(empty), 'class', 'classes')} without any image to train on: "
            f"{some(empty, 5)}." + (f" There are other files: {some(others)}." if others else ""),
            "Add images, or remove the folder.",
        )
    known = {name_key(name) for name in train}
    for split, part in found.items():
        strange = [n for n, c in part.items() if c.images and name_key(n) not in known]
        if strange:
            raise DataError(
                f"The {split} split has {counted(len(strange), 'class', 'classes')} that "
                f"training lacks: {some(strange, 5)}.{suggest(strange[0], train)}",
                f"The {counted(len(train), 'class', 'classes')} of training: {some(train, 10)}.",
            )


def _gather(root: Path, classes: Sequence[str], part: dict[str, _Class]) -> Split:
    """The images of one split, in order of class and name."""
    by_key = {name_key(name): c for name, c in part.items()}
    empty = _Class()
    images = [by_key.get(name_key(name), empty).images for name in classes]
    store = Files(root, Names.of(name for of_class in images for name, _ in of_class))
    sizes = [size for of_class in images for _, size in of_class]
    return Split(
        labels=np.repeat(np.arange(len(classes)), [len(of_class) for of_class in images]),
        names=store.shown,
        store=store,
        sizes=np.array(sizes, dtype=np.int64),
    )
