"""Which folders are classes, and which are splits? One set of rules for folders and for tars."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from vitc.data.sources.base import some
from vitc.data.split_words import SPLIT_OF, SPLITS, as_setting, begun_name, read_names
from vitc.errors import DataError, suggest
from vitc.wording import counted

LAYOUTS = (
    "Expected FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg with val and test next to it."
)
_CLASSES = "--data.splits none makes every folder a class"
# Folders beside train that are no classes: a data set's other parts.
AUXILIARY = (
    *("extra", "mask", "masks", "annotation", "annotations", "label", "labels", "unlabeled"),
    *("unlabelled", "unsup", "meta", "metadata", "doc", "docs", "code", "notebooks"),
    *("seg", "segmentation", "segmentations", "gt", "groundtruth", "ground_truth", "bboxes"),
)
# Words of folders that, with a number, are parts of one data set: batch_1, image-parts-02.
_PARTS = (
    *("batch", "batches", "part", "parts", "fold", "folds", "chunk", "chunks", "shard", "shards"),
    *("set", "subset", "dataset", "data", "split", "volume", "vol", "archive", "disk", "disc"),
    *("section", "portion", "piece", "images", "imgs", "photos", "folder", "dir"),
)
_NUMBERED = re.compile(r"(.*?[^\W\d_])(?:[\W_]*\d+|[\W_]+[a-z])\W*", re.DOTALL)
# Folders in a class that are no classes themselves: years, numbers, cameras, patients, sides.
_GROUP = re.compile(
    r"[\W\d_]*|(?:year|date|day|week|month|cam|camera|lens|view|angle|patient|subject|person|user"
    r"|session|site|room|video|vid|clip|seq|sequence|series|scene|study|case|scan|slide|id)"
    r"[\W_]*[\W\d_]+[a-z]?"
    r"|left|right|front|back|top|bottom|north|south|east|west|day|night|indoor|outdoor"
)


@dataclass
class Place:
    """What one folder holds: its sub-folders, its images with their size (or number), and others.

    hidden: sub-folders passed over although they hold images, and no known program hides them.
    identity: device and inode, of a folder on a disk. error: why it cannot be read.
    """

    folders: list[str] = field(default_factory=list)
    images: list[tuple[str, int]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    identity: tuple[int, int] | None = None
    error: OSError | None = None


class Tree:
    """Folders by their path below the root, which is ""."""

    def __init__(self, places: dict[str, Place]) -> None:
        self.places = places

    def folders(self, path: str) -> list[str]:
        return self.places[path].folders

    def images(self, path: str) -> int:
        """Images directly in a folder."""
        return len(self.places[path].images)

    def images_below(self, path: str) -> int:
        """Images at any depth."""
        return self.images(path) + sum(
            self.images_below(join(path, name)) for name in self.folders(path)
        )


@dataclass
class Layout:
    """Split -> class -> the folders of its images; what was guessed or left out; and the names of
    folders -> the split that they stand for."""

    classes: dict[str, dict[str, list[str]]]
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def arrange(tree: Tree, where: str, wanted: Mapping[str, str] | None) -> Layout:
    """The classes and splits of a tree. wanted: `parse_splits` of data.splits, if given.

    Raises DataError: none, or ambiguous ones, with the setting that decides.
    """
    notes: list[str] = []
    top = _unwrapped(tree, "", where, notes)
    if wanted:
        return _as_wanted(tree, where, top, wanted, notes)
    if wanted is not None:
        return _without_splits(tree, top, notes)
    named = _sure(tree, top)
    if not named:
        guessed = _guessed(tree, where, top, notes)
        if guessed:
            return _of_splits(tree, where, top, guessed, notes)
        _check_parts(tree, where, top, notes)
        return _below_classes(tree, where, top, notes) or _without_splits(tree, top, notes)
    if not any(tree.folders(join(top, name)) for name in named):
        return _flat(tree, where, top, named, notes)
    return _of_splits(tree, where, top, named, notes)


def _unwrapped(
    tree: Tree, path: str, where: str, notes: list[str], known: Iterable[str] | None = None
) -> str:
    """The folder that holds the classes: below folders that hold nothing but one other folder.

    known: the classes of training, which are no such wrappers.
    """
    inner = path
    while len(tree.folders(inner)) == 1 and not tree.images(inner):
        (name,) = tree.folders(inner)
        below = join(inner, name)
        if not tree.folders(below) or tree.images(below):
            break
        if known is None and not path and _sure(tree, "", [name]) and not _several(tree, below):
            break  # train alone
        if known is not None and (name in known or not set(known) & set(tree.folders(below))):
            break
        inner = below
    if inner != path:
        notes.append(f"The folders in {inner!r} are read: {path or where} holds no other folder.")
    return inner


def _sure(tree: Tree, path: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """The folders in one, or some of them, that can hardly be anything but splits -> the split."""
    read = read_names(tree.folders(path) if names is None else names)
    return {name: r.split for name, r in read.items() if not r.rest}


def _several(tree: Tree, path: str) -> bool:
    """Whether a folder holds folders of several splits."""
    return len(set(_sure(tree, path).values())) > 1


def _check_parts(tree: Tree, where: str, top: str, notes: list[str]) -> None:
    """Class folders that hold folders of the same names may be parts of a set of those classes.

    Raises DataError: such as part1/cat and part2/cat, or masks/cat and images/cat.
    """
    inside = {name: below for name in tree.folders(top) if (below := tree.folders(join(top, name)))}
    if len(inside) < 2 or any(tree.images(join(top, name)) for name in tree.folders(top)):
        return
    _check_auxiliary(where, inside)
    for family in (*_families(inside), inside):
        parts = as_setting(dict.fromkeys(family, "train"))
        first = next(iter(family.values()))
        same = len(first) > 1 and all(below == first for below in family.values())
        shared = first if same else repeated(family)
        if not shared:
            continue
        how = "folders of the same names" if same else "nearly the same folders"
        about = f"{some(family)} in {where} hold {how}, {some(shared)}"
        letters = {re.sub(r"[\W\d_]+", "", name.lower()) for name in family}
        alike = len(letters) == 1 or any(name.lower() in AUXILIARY for name in family)
        if family is not inside or (same and alike):
            raise DataError(
                f"{about}: parts of one data set, or classes.",
                f"If they are parts: {parts}. If they are classes: {_CLASSES}.",
            )
        images = [folder for folder in shared if folder.lower() not in AUXILIARY]
        if len(images) < len(shared):
            alone = as_setting(dict.fromkeys(images or shared, "train"))
            notes.append(f"{about}, all of them read. To read some alone: {alone}.")
        elif len(family) > 3 or all(map(_is_group, family)):
            notes.append(f"{about}. If those are the classes: {parts}.")
        else:
            splits = as_setting(_likely(tree, top, family))
            if same and not all(map(_is_group, shared)) and not _sure(tree, top, shared):
                raise DataError(
                    f"{about}: splits of one data set, or classes.",
                    f"If they are splits: {splits}. If they are classes: {_CLASSES}.",
                )
            notes.append(f"{about}. If those are the classes: {splits}.")


def _likely(tree: Tree, top: str, names: Iterable[str]) -> dict[str, str]:
    """Two or three folders -> the split that each may be, by its name, or the largest is train."""
    by_size = sorted(names, key=lambda name: -tree.images_below(join(top, name)))
    found: dict[str, str] = {}
    for name in by_size:
        split = begun_name(name)
        if split and split not in found.values():
            found[name] = split
    order = ("train", "test") if len(by_size) == 2 else SPLITS
    free = [split for split in order if split not in found.values()]
    return found | dict(zip([name for name in by_size if name not in found], free, strict=False))


def _check_auxiliary(where: str, inside: Mapping[str, list[str]]) -> None:
    """Refuse masks, labels and the like, most of which are in folders that others have, too."""
    others = {n: below for n, below in inside.items() if n.lower() not in AUXILIARY}
    known = {folder for below in others.values() for folder in below}
    for name in [name for name in inside if name not in others]:
        shared = [folder for folder in inside[name] if folder in known]
        same = any(below == inside[name] for below in others.values())
        if 2 * len(shared) > len(inside[name]) and (same or not all(map(_is_group, shared))):
            images = {n: "train" for n, below in others.items() if set(shared) & set(below)}
            raise DataError(
                f"{name!r} in {where} holds folders of the same names as {some(images)}, "
                f"{some(shared)}: masks or labels of those images, or a class.",
                f"If it is no class: {as_setting(images)}. If they are classes: {_CLASSES}.",
            )


def _families(inside: Mapping[str, list[str]]) -> list[dict[str, list[str]]]:
    """Folders that differ in a number, or a letter, behind a word for parts: batch_1, batch_2."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, below in inside.items():
        numbered = _NUMBERED.fullmatch(name.lower())
        words = re.findall(r"[^\W\d_]+", numbered[1]) if numbered else []
        if words and words[-1] in _PARTS:
            found.setdefault(" ".join(words), {})[name] = below
    return [family for family in found.values() if len(family) > 1]


def repeated(inside: Mapping[str, Collection[str]]) -> list[str]:
    """The folders that occur in several others, where these hold nearly the same ones; else none.

    inside: folder -> the folders in it. Nearly: more than half of those in each. None if they are
    named like years, cameras, patients and the like, which classes may share.
    """
    often = Counter(folder for below in inside.values() for folder in set(below))
    common = sorted(folder for folder, count in often.items() if count > 1)
    if any(2 * len(set(common) & set(below)) <= len(below) for below in inside.values()):
        return []
    classes = [folder for folder in common if not _is_group(folder)]
    return common if len(classes) > 1 else []


def _is_group(folder: str) -> bool:
    return _GROUP.fullmatch(folder.lower()) is not None


def _without_splits(tree: Tree, top: str, notes: list[str]) -> Layout:
    classes = {name: [join(top, name)] for name in tree.folders(top)}
    return Layout({"train": classes}, notes)


def _flat(tree: Tree, where: str, top: str, named: Mapping[str, str], notes: list[str]) -> Layout:
    """Folders with the names of splits, none of which has sub-folders."""
    if len(named) > 1 or len(tree.folders(top)) == 1:
        raise DataError(
            f"{some(named)} in {where} have no sub-folders, so their images have no class.",
            f"{LAYOUTS} {_CLASSES}.",
        )
    ((name, split),) = named.items()
    if split != "train":
        count = counted(tree.images(join(top, name)), "image")
        raise DataError(
            f"{name!r} next to the class folders of {where} has the name of a {split} split, but "
            f"no class folders: its {count} have no label, or it is a class.",
            f"Move it elsewhere, or, if it is a class, {_CLASSES}.",
        )
    notes.append(f"{name!r} has no sub-folders, so it is a class, not a split.")
    return _without_splits(tree, top, notes)


def _guessed(tree: Tree, where: str, top: str, notes: list[str]) -> dict[str, str]:
    """Folders such as dogs_train and dogs_test -> their splits; none where they are classes."""
    read = read_names(tree.folders(top))
    found = {name: r.split for name, r in read.items()}
    if "train" not in found.values() or len(set(found.values())) < 2:
        return _begun(tree, top, notes)
    train = {r.rest for r in read.values() if r.split == "train"}
    held = {r.rest for r in read.values() if r.split != "train"}
    if len(train | held) == 1 and all(tree.folders(join(top, name)) for name in found):
        return _noted_guess(found, notes)
    if not train & held:
        return {}
    raise DataError(
        f"{some(found)} in {where} are named like splits, but hold no class folders.",
        f"{LAYOUTS} {_CLASSES}.",
    )


def _begun(tree: Tree, top: str, notes: list[str]) -> dict[str, str]:
    """Folders such as Trainingsdaten and Testdaten -> their splits, where they hold the same class
    folders, or nearly; none where they do not."""
    inside = {name: tree.folders(join(top, name)) for name in tree.folders(top)}
    found = {name: split for name in inside if (split := begun_name(name)) is not None}
    splits = set(found.values())
    whole = len(splits) == len(found) == len(inside) > 1 and "train" in splits
    return _noted_guess(found, notes) if whole and repeated(inside) else {}


def _noted_guess(found: dict[str, str], notes: list[str]) -> dict[str, str]:
    about = ", ".join(f"{name!r} is {split}" for name, split in found.items())
    notes.append(
        f"Guessed from words in the names of folders: {about}. Fixed by {as_setting(found)}, "
        "or none."
    )
    return found


def _below_classes(tree: Tree, where: str, top: str, notes: list[str]) -> Layout | None:
    """Splits inside the class folders: cat/train, cat/val, dog/train, dog/val."""
    inside = {name: tree.folders(join(top, name)) for name in tree.folders(top)}
    named = {name: _sure(tree, join(top, name)) for name in inside}
    splits = {split for below in named.values() for split in below.values()}
    if not splits or splits == {"train"}:
        return None
    pure = all(len(named[n]) == len(inside[n]) and not tree.images(join(top, n)) for n in inside)
    if not pure or "train" not in splits:
        name = next(n for n, below in named.items() if set(below.values()) - {"train"})
        raise DataError(
            f"The class folder {name!r} of {where} holds {some(named[name])}, named like splits, "
            "next to other images or classes without them.",
            f"Give every class the same splits, or, if they are parts of a class, {_CLASSES}.",
        )
    layout = Layout({}, notes)
    for name, below in named.items():
        for folder, split in below.items():
            layout.names[folder] = split
            _add(layout, split, name, join(join(top, name), folder))
    notes.append("The splits are the folders inside the class folders.")
    return _in_order(layout)


def _of_splits(
    tree: Tree, where: str, top: str, named: Mapping[str, str], notes: list[str]
) -> Layout:
    """Splits with class folders in them."""
    with_classes = [name for name in named if tree.folders(join(top, name))]
    for name in named:
        if name in with_classes:
            continue
        count = counted(tree.images(join(top, name)), "image")
        if named[name] == "train":
            raise DataError(
                f"{where}/{join(top, name)} has no sub-folders, so its {count} have no class.",
                LAYOUTS,
            )
        notes.append(
            f"{name!r} was skipped: it has no class sub-folders, so its {count} cannot serve as "
            f"the {named[name]} split."
        )
    found: dict[str, str] = {}
    for split in SPLITS:
        mine = [name for name in with_classes if named[name] == split]
        if len(mine) > 1:
            setting = as_setting({name: named[name] for name in with_classes})
            raise DataError(
                f"{where} holds {some(mine)}, several folders for the {split} split.",
                f"Keep one, or merge them: {setting}; if they are classes, {_CLASSES}.",
            )
        if mine:
            found[mine[0]] = split
    if "train" not in found.values():
        raise DataError(
            f"{where} holds {some(with_classes)} but no train folder.",
            f"{LAYOUTS} If {with_classes[0]!r} is a class, {_CLASSES}.",
        )
    if not notes and any(name.lower() not in SPLIT_OF for name in found):
        about = ", ".join(f"{name!r} is {split}" for name, split in found.items())
        notes.append(f"Splits by the names of folders: {about}. {_CLASSES}.")
    layout = _collect(tree, where, top, found, notes)
    others = [name for name in tree.folders(top) if name not in named]
    _check_others(tree, where, top, others, found, layout)
    if others:
        notes.append(
            f"{some(others)} next to {some(with_classes)} skipped: no split has that name."
        )
    return layout


def _check_others(
    tree: Tree, where: str, top: str, others: list[str], found: Mapping[str, str], layout: Layout
) -> None:
    """Refuse folders with images next to splits that may be classes."""
    classes = layout.classes["train"]
    again = [name for name in others if name in classes]
    filled = [
        name
        for name in others
        if name.lower() not in AUXILIARY and tree.images_below(join(top, name))
    ]
    doubtful = again if len(set(found.values())) > 1 else again or filled
    if doubtful:
        words = {name: r.split for name, r in read_names(others).items()}
        setting = as_setting({**words, **found})
        raise DataError(
            f"{some(found)} in {where} {'is' if len(found) == 1 else 'are'} named like a split, "
            f"but {some(doubtful)} next to it may be classes.",
            f"{setting} uses the splits alone; {_CLASSES}.",
        )


def _as_wanted(
    tree: Tree, where: str, top: str, wanted: Mapping[str, str], notes: list[str]
) -> Layout:
    """The splits of data.splits: folders at the top, or inside every class."""
    names = tree.folders(top)
    absent = [name for name in wanted if name not in names]
    if not absent:
        layout = _collect(tree, where, top, wanted, notes)
        others = [name for name in names if name not in wanted]
        if others:
            notes.append(f"{some(others)} skipped: data.splits does not name them.")
        return layout
    layout = Layout({}, notes, dict(wanted))
    left_out: list[str] = []
    for name in names:
        for folder in tree.folders(join(top, name)):
            path = join(join(top, name), folder)
            if folder in wanted:
                _add(layout, wanted[folder], name, path)
            else:
                left_out.append(path)
        left_out += [
            join(join(top, name), image) for image, _ in tree.places[join(top, name)].images
        ]
    below = {f for name in names for f in tree.folders(join(top, name))}
    if "train" not in layout.classes or not below.issuperset(wanted):
        raise DataError(
            f"data.splits names {some(absent)}, and {where} has no such folder."
            f"{suggest(absent[0], [*names, *below])}",
            f"Folders there: {some(names, 10)}.",
        )
    if left_out:
        notes.append(f"{some(left_out)} skipped: data.splits does not name them.")
    return _in_order(layout)


def _collect(
    tree: Tree, where: str, top: str, found: Mapping[str, str], notes: list[str]
) -> Layout:
    """The class folders in the folders of splits, folder -> split."""
    layout = Layout({}, notes, dict(found))
    for split in SPLITS:
        for name in [name for name, of in found.items() if of == split]:
            known = None if split == "train" else layout.classes.get("train")
            base = _unwrapped(tree, join(top, name), where, notes, known)
            if _several(tree, base):
                raise DataError(
                    f"{base!r} in {where} holds {some(_sure(tree, base))}, named like splits, as "
                    "its classes.",
                    f"{LAYOUTS} {_CLASSES}.",
                )
            layout.classes.setdefault(split, {})
            for class_name in tree.folders(base):
                _add(layout, split, class_name, join(base, class_name))
    return layout


def _add(layout: Layout, split: str, name: str, folder: str) -> None:
    layout.classes.setdefault(split, {}).setdefault(name, []).append(folder)


def _in_order(layout: Layout) -> Layout:
    layout.classes = {split: layout.classes[split] for split in SPLITS if split in layout.classes}
    return layout
