"""Which images does a folder hold, class by class and split by split?"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.litter import (
    OUTPUT_FOLDERS,
    is_config_file,
    is_image,
    is_litter,
    is_made,
    is_own_output,
    is_unknown,
    listed,
    own_output,
)
from vitc.data.sources import folder_hints
from vitc.data.sources.base import IMAGE_SUFFIXES, Found, Source, Split, similar_classes, some
from vitc.data.sources.tree import LAYOUTS, Layout, Place, Tree, arrange, join
from vitc.data.split_words import as_setting, parse_splits
from vitc.data.store import Files, Names, name_key, shown
from vitc.errors import ConfigError, DataError, suggest
from vitc.wording import counted

_MAX_LINKS = 3  # links to folders inside one another that are followed


class Folder(Source):
    """A folder of class folders, or of splits with class folders in them."""

    kind = origin = "folder"
    title = "a folder of images, one sub-folder per class"
    path = "a folder: --data.path DIR"
    settings = frozenset({"group", "splits"})

    def matches(self, path: str) -> bool:
        return os.path.isdir(path)

    def read(self, config: DataConfig) -> Found:
        wanted = parse_splits(config.splits) if config.splits else None
        return scan_folder(Path(str(config.path)).expanduser(), wanted)

    def read_any(self, config: DataConfig) -> Found:
        wanted = parse_splits(config.splits) if config.splits else None
        return scan_folder(Path(str(config.path)).expanduser(), wanted, strict=False)


@dataclass
class _Class:
    """One class's files: (path below the root, size) of images, paths of others."""

    images: list[tuple[str, int]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def scan_folder(root: Path, wanted: dict[str, str] | None = None, strict: bool = True) -> Found:
    """Every image below `root` with its class and split.

    A class is a sub-folder with everything nested in it. Hidden files, those of file managers and
    what vitc wrote are skipped; hidden folders of images that no known program made are named in
    the notes, and so are other files that are not images. wanted: see `arrange`. Raises
    ConfigError: no such folder; DataError: no classes and, if `strict`, only one, an empty one, or
    classes that differ between the splits.
    """
    if root.exists() and not root.is_dir():
        packed = root.name.lower().endswith(folder_hints.PACKED)
        hint = "Unpack it and give the folder." if packed else LAYOUTS
        raise ConfigError(f"{root} is a file, not a folder of images.", hint)
    if not root.exists():
        folders = [p.name for p in root.parent.glob("*") if p.is_dir()]
        raise ConfigError(f"There is no folder {root}.{suggest(root.name, folders)}", LAYOUTS)
    tree, own = walk(str(root))
    try:
        return _found(root, tree, own, wanted, strict)
    except DataError as error:
        if not own:
            raise
        raise DataError(error.message, " ".join([error.hint or "", *own_notes(own)])) from None


def _found(
    root: Path, tree: Tree, own: dict[str, str], wanted: dict[str, str] | None, strict: bool
) -> Found:
    if not tree.folders(""):
        raise folder_hints.no_folders(root, tree)
    layout = _arranged(root, tree, wanted)
    notes = [*own_notes(own), *layout.notes, *_loose_notes(root, tree, layout)]
    notes += hidden_notes(tree)
    found = {
        split: {name: _gather(root, tree, folders) for name, folders in classes.items()}
        for split, classes in layout.classes.items()
    }
    others = [file for part in found.values() for c in part.values() for file in c.others]
    if others:
        notes.append(f"{counted(len(others), 'file')} skipped, not images: {some(others)}.")
    if not strict:
        names = {name_key(name): name for part in reversed(found.values()) for name in part}
        classes = [names[key] for key in sorted(names)]
        splits = {split: _images(root, classes, part) for split, part in found.items()}
        splits = {split: part for split, part in splits.items() if len(part)}
        return Found(tuple(map(shown, classes)), splits, tuple(notes))
    _check_beside_output(root, layout, found, own)
    _check_classes(root, tree, layout, found)
    classes = sorted(found["train"], key=name_key)
    for split, part in found.items():
        have = {name_key(name) for name, c in part.items() if c.images}
        absent = [c for c in classes if name_key(c) not in have]
        if absent:
            lacking = f"{counted(len(absent), 'class', 'classes')}: {some(absent, 5)}"
            notes.append(f"The {split} split has no image of {lacking}.")
    notes += similar_classes(classes)
    images = [image for part in found.values() for c in part.values() for image in c.images]
    empty = [name for name, size in images if size == 0]
    if empty:
        notes.append(f"{counted(len(empty), 'image file')} of 0 bytes, broken: {some(empty)}.")
    splits = {split: _images(root, classes, part) for split, part in found.items()}
    return Found(tuple(map(shown, classes)), splits, tuple(notes))


def _arranged(root: Path, tree: Tree, wanted: dict[str, str] | None) -> Layout:
    """The layout; where it is refused, with the data of another kind that may be meant."""
    try:
        return arrange(tree, str(root), wanted)
    except DataError as error:
        hint = f"{error.hint or ''} {folder_hints.data_in(root, tree)}"
        raise DataError(error.message, hint.strip()) from None


def own_notes(own: dict[str, str]) -> list[str]:
    if not own:
        return []
    kinds = sorted(set(own.values()))
    return [f"Passed over, written by vitc ({', '.join(kinds)}): {some(sorted(own), 5)}."]


def _loose_notes(root: Path, tree: Tree, layout: Layout) -> list[str]:
    """Files next to class folders, or above them, belong to no class."""
    notes = []
    classes = [f for of in layout.classes.values() for folders in of.values() for f in folders]
    above = {str(parent) for folder in classes for parent in PurePosixPath(folder).parents}
    for path in sorted(above - set(classes)):
        path = "" if path == "." else path
        place = tree.places[path]
        files = sorted([*(name for name, _ in place.images), *place.others], key=name_key)
        if files:
            images = len(place.images)
            what = f"{counted(images, 'image')} of no class" if images else "no image"
            notes.append(
                f"{counted(len(files), 'file')} next to the class folders of "
                f"{Path(root, path).name!r} skipped ({what}): {some(files)}."
            )
    return notes


def hidden_notes(tree: Tree) -> list[str]:
    """A class may have a name that starts with a dot, or be of thumbnails."""
    hidden = [join(path, name) for path, place in tree.places.items() for name in place.hidden]
    made = sorted(path for path in hidden if is_made(path.rpartition("/")[2]))
    hidden = sorted(set(hidden) - set(made))
    notes = []
    if hidden:
        notes.append(
            f"{counted(len(hidden), 'hidden folder')} with images skipped: {some(hidden, 5)}. "
            "To use one, give it a name that does not start with a dot."
        )
    if made:
        notes.append(
            f"{counted(len(made), 'folder')} named like copies that programs make of images "
            f"skipped: {some(made, 5)}. To use one, rename it."
        )
    return notes


# -- every file below a folder ---------------------------------------------------------------------


def walk(root: str) -> tuple[Tree, dict[str, str]]:
    """All folders and files below `root` without litter, and what vitc wrote there: path -> kind.

    Links to folders are followed, but not to a folder that they are in. Raises DataError: `root`
    cannot be read, or vitc wrote it.
    """
    places: dict[str, Place] = {}
    own: dict[str, str] = {}
    chains: dict[str, frozenset[tuple[int, int]]] = {"": frozenset()}
    links = {"": 0}
    # Threads: on a network's file system each stat waits for the server, and waiting overlaps.
    with ThreadPoolExecutor(max_workers=16) as pool:
        level = [""]
        while level:
            listed = pool.map(lambda path: _list(os.path.join(root, path)), level)
            below: list[str] = []
            for path, (place, kind, linked) in zip(level, listed, strict=True):
                if kind and not path:
                    raise _is_own(root, kind)
                if kind:
                    own[path] = kind
                elif place.identity not in chains[path] and links[path] <= _MAX_LINKS:
                    places[path] = place
                    chain = chains[path] | ({place.identity} if place.identity else set())
                    for name in place.folders:
                        inner = join(path, name)
                        chains[inner], links[inner] = chain, links[path] + (name in linked)
                        below.append(inner)
            level = below
    if places[""].error is not None:
        raise _unreadable(root, places[""].error)
    _drop_absent(root, places, own)
    return Tree(places), own


def _drop_absent(root: str, places: dict[str, Place], own: dict[str, str]) -> None:
    """Remove folders that are not in the tree from their parents, and those of own output alone."""
    for path in sorted(places, key=lambda path: -path.count("/") if path else 1):
        if path not in places:
            continue
        place = places[path]
        mine = any(join(path, name) in own for name in place.folders)
        place.folders = [name for name in place.folders if join(path, name) in places]
        kind = _kind_of_runs(root, places, path, mine) if path else ""
        if kind:
            for inner in _inside(path, own):
                del own[inner]
            for inner in (path, *_inside(path, places)):
                del places[inner]
            own[path] = kind


def _kind_of_runs(root: str, places: dict[str, Place], path: str, mine: bool) -> str:
    """What a folder is that holds output of vitc (`mine`) and no images; "": it may hold data.

    In runs/ and studies/, where vitc writes, its output may have pictures beside it, or be a config
    or nothing yet.
    """
    named = path.rpartition("/")[2] in OUTPUT_FOLDERS
    if not (mine or named):
        return ""
    inside = [places[inner] for inner in (path, *_inside(path, places))]
    if any(place.images for place in inside):
        return "runs" if mine and named else ""
    if mine or any(is_config_file(os.path.join(root, path, name)) for name in places[path].others):
        return "runs"
    return "" if any(place.others for place in inside) else "an empty folder for runs"


def _inside(path: str, paths: Iterable[str]) -> list[str]:
    return [inner for inner in paths if inner.startswith(f"{path}/")]


def _list(folder: str) -> tuple[Place, str, set[str]]:
    """What a folder holds, what vitc wrote there if it is such a folder, and linked sub-folders."""
    place = Place()
    linked: set[str] = set()
    try:
        status = os.stat(folder)
        place.identity = status.st_dev, status.st_ino
        with os.scandir(folder) as listing:
            found = list(listing)
    except OSError as error:
        place.error = error
        return place, "", linked
    entries = [entry for entry in found if not is_litter(entry.name)]
    kind = own_output(folder, {entry.name for entry in entries})
    if kind:
        return place, kind, linked
    doubtful = [e for e in found if (is_unknown(e.name) or is_made(e.name)) and _is_dir(e)]
    place.hidden = [entry.name for entry in doubtful if _holds_images(entry.path)]
    for entry in sorted(entries, key=lambda entry: name_key(entry.name)):
        if _is_dir(entry):
            if is_made(entry.name):
                continue
            place.folders.append(entry.name)
            if entry.is_symlink():
                linked.add(entry.name)
        elif is_image(entry.name, IMAGE_SUFFIXES) and (size := _size(entry)) is not None:
            place.images.append((entry.name, size))
        else:
            place.others.append(entry.name)
    return place, "", linked


def holds_classes(folder: str, depth: int = 2) -> bool:
    """Whether two folders in one, or in a folder of it, hold images: classes or splits, not the
    litter beside files of another format."""
    names = (name for name in sorted(listed(folder)) if not is_litter(name))
    inside = [path for name in names if os.path.isdir(path := join(folder, name))]
    filled = (path for path in inside if _holds_images(path) and not is_own_output(path))
    if len(list(itertools.islice(filled, 2))) == 2:
        return True
    return depth > 0 and any(holds_classes(path, depth - 1) for path in inside)


def _holds_images(folder: str, depth: int = 2) -> bool:
    """Whether there is an image in a folder, or so many levels below it."""
    inside = [join(folder, name) for name in listed(folder) if not is_litter(name)]
    if any(is_image(path, IMAGE_SUFFIXES) and os.path.isfile(path) for path in inside):
        return True
    return depth > 0 and any(_holds_images(path, depth - 1) for path in inside)


def _is_own(folder: str, kind: str) -> DataError:
    return DataError(
        f"{shown(folder)} is no folder of images: by the files in it, vitc wrote {kind} there.",
        "Give the folder of the images. If it is this one, move the other files out of it.",
    )


def _unreadable(folder: str, error: OSError) -> DataError:
    return DataError(f"The folder {shown(folder)!r} cannot be read: {error.strerror}.")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a regular file; None for a pipe, a device or a link to nothing."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:
        return None


def _gather(root: Path, tree: Tree, folders: list[str]) -> _Class:
    """All files below class folders; a folder reached twice through links is read once."""
    found = _Class()
    seen: set[tuple[int, int]] = set()
    stack = folders[::-1]
    while stack:
        path = stack.pop()
        place = tree.places[path]
        if place.error is not None:
            raise _unreadable(str(root / path), place.error)
        if place.identity is not None:
            if place.identity in seen:
                continue
            seen.add(place.identity)
        found.images += [(join(path, name), size) for name, size in place.images]
        found.others += [join(path, name) for name in place.others]
        stack += [join(path, name) for name in reversed(place.folders)]
    found.images.sort(key=lambda image: name_key(image[0]))
    found.others.sort(key=name_key)
    return found


# -- are the classes usable ------------------------------------------------------------------------


def _check_classes(
    root: Path, tree: Tree, layout: Layout, found: dict[str, dict[str, _Class]]
) -> None:
    train = found["train"]
    if not any(c.images for c in train.values()):
        kinds = f"Supported: {', '.join(sorted(IMAGE_SUFFIXES))}. {folder_hints.tables(root, tree)}"
        raise DataError(f"No images in the class folders of {root}.", kinds.rstrip())
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
        raise DataError(
            f"{root} holds one class only, {shown(name)!r}: a classifier needs two or more.",
            f"Add a sub-folder for each other class. {LAYOUTS} "
            f"{folder_hints.lists(root, tree)}".rstrip(),
        )
    empty = [name for name, c in train.items() if not c.images]
    if empty:
        others = [o for name in empty for o in train[name].others]
        raise DataError(
            f"{counted(len(empty), 'class', 'classes')} without any image to train on: "
            f"{some(empty, 5)}." + (f" There are other files: {some(others)}." if others else ""),
            "Add images, or remove the folder."
            + (" Labels in files are read from a list: docs/sources.md." if others else ""),
        )
    known = {name_key(name) for name in train}
    for split, part in found.items():
        strange = [n for n, c in part.items() if c.images and name_key(n) not in known]
        if strange:
            raise DataError(
                f"The {split} split has {counted(len(strange), 'class', 'classes')} that "
                f"training lacks: {some(strange, 5)}.{suggest(strange[0], train)}",
                f"The {counted(len(train), 'class', 'classes')} of training: {some(train, 10)}."
                f"{_without_labels(layout, found)}",
            )


def _without_labels(layout: Layout, found: dict[str, dict[str, _Class]]) -> str:
    """A hint on splits that share no class with training, as test/unknown; "" without one."""
    train = {name_key(name) for name in found["train"]}
    there = {s: {name_key(n) for n, c in part.items() if c.images} for s, part in found.items()}
    kept = {name: s for name, s in layout.names.items() if train & there[s]}
    if len(kept) == len(layout.names):
        return ""
    left_out = some(name for name in layout.names if name not in kept)
    return f" If the images in {left_out} have no labels, {as_setting(kept)} leaves them out."


def _check_beside_output(
    root: Path, layout: Layout, found: dict[str, dict[str, _Class]], own: dict[str, str]
) -> None:
    """Refuse a class folder that holds output of vitc and images that may be pictures of it: few
    beside the other classes, or in formats that none of them has."""
    for split, part in found.items():
        holding = {
            name: inside[0]
            for name, folders in layout.classes[split].items()
            if (inside := [o for folder in folders for o in _inside(folder, own)])
        }
        others = [c.images for name, c in part.items() if name not in holding and c.images]
        known = {_suffix(name) for images in others for name, _ in images}
        for name, output in holding.items():
            images = part[name].images
            few = 2 * len(images) <= min(map(len, others), default=0)
            if images and others and (few or known.isdisjoint(_suffix(n) for n, _ in images)):
                raise DataError(
                    f"{shown(name)!r} in {root} holds {own[output]} that vitc wrote, "
                    f"{shown(output)!r}, and {counted(len(images), 'image')}: pictures of it, or "
                    "a class.",
                    f"If it is no class, move {shown(name)!r} elsewhere. If it is one, move "
                    f"{shown(output)!r} elsewhere.",
                )


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _images(root: Path, classes: Sequence[str], part: dict[str, _Class]) -> Split:
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
