"""Which images does a run use, with which labels, in which split? Free of torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.decode import check_channels, to_channels
from vitc.data.identity import Images, images_of
from vitc.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vitc.data.sources import SOURCES, source_problems
from vitc.data.sources.base import Found, Split, some
from vitc.data.sources.folder import Folder, holds_classes
from vitc.data.split import (
    TEST,
    TRAIN,
    VAL,
    balanced_subset,
    hold_out,
    hold_out_fold,
    hold_out_fold_of_groups,
    hold_out_groups,
    proportional_subset,
)
from vitc.data.store import Pixels, name_key
from vitc.errors import BrokenFileError, ConfigError, DataError
from vitc.wording import counted

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG's Y and Pillow's "L"
SUBSETS = {  # of how many images may be asked for: which are taken
    "train": ("training", balanced_subset, "the classes as equal as they can be"),
    "val": ("validation", proportional_subset, "each class by its share"),
}


@dataclass(frozen=True, eq=False)
class DataSet:
    """An opened data set: its classes, and which image is in which split.

    splits: "train", and "val" and "test" unless they are empty. mean, std: in [0, 1], one per
    channel. notes: decisions and warnings, one sentence each, for the caller to print. listing: a
    hash of classes, splits and labels, with the names and sizes of files, or with all pixels.
    given: the splits that the source has itself; the others are held out.
    """

    source: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]
    listing: str
    given: frozenset[str] = frozenset()

    @cached_property
    def images(self) -> Images:
        """The digest of each image; the bytes are read when it is first asked for."""
        return images_of(self.classes, self.splits)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits, the same for the same images, classes and splits on any machine and in any
        place; a pack of unchanged images has the fingerprint of its source."""
        if all(split.pixels is not None for split in self.splits.values()):
            return self.listing
        return hashlib.sha256(self.listing.encode() + self.images.contents.tobytes()).hexdigest()[
            :32
        ]


def open_data(config: DataConfig, in_chans: int = 3) -> DataSet:
    """The data set that `config` names, split three ways, with pixels in `in_chans` channels.

    Splits of the source are kept. Without a validation split, one is held out from training, and
    without a test split either, that too. Raises ConfigError: a wrong path or setting; DataError:
    data that cannot be trained on.
    """
    check_channels(in_chans)
    found = read_source(config)
    classes, notes = found.classes, list(found.notes)
    splits = _split(config, classes, found.splits, notes)
    _at_most(config, classes, splits, notes)
    return _opened(config, in_chans, found, splits, notes)


def fold_counts(config: DataConfig) -> list[tuple[int, int]]:
    """How many images each of `data.folds` has to train on and to validate. Raises as
    `open_data`."""
    found, counts = read_source(config), []
    for fold in range(1, (config.folds or 0) + 1):
        splits = _split(replace(config, fold=fold), found.classes, found.splits, [])
        train = len(splits["train"])
        val = len(splits["val"]) if "val" in splits else 0
        counts.append((min(train, config.max_train or train), min(val, config.max_val or val)))
    return counts


def open_whole(config: DataConfig, in_chans: int = 3) -> DataSet:
    """The data set to measure or predict on: the splits of its source, nothing held out.

    Any number of classes, of which "train" may have none; the label of an image without one is -1.
    Raises as `open_data`.
    """
    check_channels(in_chans)
    found = read_source(config, strict=False)
    return _opened(config, in_chans, found, dict(found.splits), list(found.notes))


def _opened(
    config: DataConfig, in_chans: int, found: Found, splits: dict[str, Split], notes: list[str]
) -> DataSet:
    """The pixels of `found` in `in_chans` channels, with what is known of them."""
    classes = found.classes
    listing = _listing(found.origin, classes, splits, found.content)
    for name, split in splits.items():
        if split.pixels is not None:
            pixels = np.ascontiguousarray(to_channels(split.pixels, in_chans))
            writeable = pixels if pixels.flags.writeable else pixels.copy()
            splits[name] = replace(split, pixels=writeable)
    mean, std = _moments(next(iter(splits.values())).pixels, in_chans)
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
        if len(mean) != in_chans or len(std) != in_chans:
            raise ConfigError(
                f"data.mean {mean} and data.std {std} must have {in_chans} "
                f"entries each, as model.in_chans."
            )
    given = frozenset(found.splits)
    return DataSet(config.source, classes, splits, mean, std, tuple(notes), listing, given)


def read_source(config: DataConfig, strict: bool = True) -> Found:
    """The data set that `config` names, before anything is held out, in the source's own channels.

    `strict`: only what can be trained on; else see `open_whole`. Raises as `open_data`.
    """
    problems = source_problems(config)
    if problems:
        raise ConfigError(" ".join(problems))
    source = SOURCES[config.source]
    try:
        found = source.read(config) if strict else source.read_any(config)
    except (ConfigError, DataError) as error:
        place = os.path.expanduser(str(config.path))
        hopeless = source.kind == Folder.kind or not source.of_user
        if hopeless or isinstance(error, BrokenFileError) or not holds_classes(place):
            raise
        hint = f"{error.hint} " if error.hint else ""
        hint += f"If the images are in class folders: --data.source {Folder.kind}."
        raise type(error)(error.message, hint) from error
    return found if found.origin else replace(found, origin=source.origin)


def find_image(splits: dict[str, Split], number: int) -> tuple[str, int]:
    """The split of an image, and its index there; images are numbered split after split."""
    for name, split in splits.items():
        if number < len(split):
            return name, number
        number -= len(split)
    raise IndexError(number)


# -- three splits, and how many --------------------------------------------------------------------


def _split(
    config: DataConfig, classes: tuple[str, ...], given: dict[str, Split], notes: list[str]
) -> dict[str, Split]:
    """The given splits, and those held out from the training images."""
    val = 0.0 if "val" in given else config.val_fraction
    if config.folds is not None:
        if "val" in given:
            raise ConfigError(
                f"data.folds {config.folds} divides the training images, but these have validation "
                "images of their own.",
                "Put both into one folder per class, or leave data.folds out.",
            )
        val = 1 / config.folds
    test = 0.0 if "val" in given or "test" in given else config.test_fraction
    if "val" in given and "test" not in given:
        notes.append(
            "No test split: the source's own train and val are kept, and data.test_fraction has "
            "no effect. Choices made on val make its result a little too good."
        )
    elif "test" not in given and not test:
        notes.append("No test split: data.test_fraction is 0.")
    if "val" not in given and not val:
        notes.append("No validation split: data.val_fraction is 0.")
    groups: dict[str, list[str | None]] = {}
    if config.group is not None:
        groups = {name: _groups(config.group, split, name, notes) for name, split in given.items()}
        if not any(g is not None for part in groups.values() for g in part):
            raise ConfigError(
                f"data.group {config.group!r} does not match any file name, e.g. "
                f"{given['train'].names[0]!r}.",
                "It is searched for in the path below the data folder, with / between folders.",
            )
    splits = given
    if val or test:
        splits = _held_out(config, classes, given, groups.get("train"), (val, test), notes)
    # Groups may be in several of the source's own splits; held-out splits never share one.
    members = {k: {g for g in part if g is not None} for k, part in groups.items()}
    for a, b in itertools.combinations(members, 2):
        shared = sorted(members[a] & members[b])
        if shared:
            notes.append(
                f"LEAK: {counted(len(shared), 'group')} of data.group in both {a} and {b}: "
                f"{some(shared)}. The {b} result will be too good."
            )
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def _held_out(
    config: DataConfig,
    classes: tuple[str, ...],
    given: dict[str, Split],
    groups: list[str | None] | None,
    fractions: tuple[float, float],
    notes: list[str],
) -> dict[str, Split]:
    train, (val, test) = given["train"], fractions
    units = "image" if groups is None else "group"
    keys = None if groups is None else [f"\0{i}" if g is None else g for i, g in enumerate(groups)]
    counts = np.bincount(train.labels, minlength=len(classes))
    if keys is not None:
        pairs = {(label, key) for label, key in zip(train.labels.tolist(), keys, strict=True)}
        counts = np.bincount([label for label, _ in pairs], minlength=len(classes))
    single = [c for c, n in zip(classes, counts, strict=True) if n < 2]
    if single:
        raise DataError(
            f"{counted(len(single), 'class', 'classes')} with one {units} only: "
            f"{some(single, 5)}. It cannot both train and {'validate' if val else 'test'}.",
            f"Add a second {units}, remove the class, or bring your own splits: "
            "FOLDER/train/<class>, FOLDER/val/<class>, FOLDER/test/<class>.",
        )
    names = [name_key(n) for n in train.names] if keys is None else keys
    if config.folds is not None:
        divide = hold_out_fold if keys is None else hold_out_fold_of_groups
        part = config.folds, config.fold - 1
        side = divide(train.labels, names, *part, test, config.split_seed)
    else:
        share_out = hold_out if keys is None else hold_out_groups
        side = share_out(train.labels, names, val, test, config.split_seed)
    splits = {name: split for name, split in given.items() if name != "train"}
    for name, code in {"train": TRAIN, "val": VAL, "test": TEST}.items():
        if (side == code).any():
            splits[name] = train.take(np.flatnonzero(side == code))

    parts = [
        f"{len(splits[name]):,} for {purpose}"
        for name, purpose in (("val", "validation"), ("test", "the test"))
        if name in splits and name not in given
    ]
    how = f"fold {config.fold} of {config.folds}, " if config.folds is not None else ""
    how += "class by class" if keys is None else f"by the groups of data.group {config.group!r}"
    notes.append(
        f"Held out of {counted(len(train), 'training image')}, {how}, seeded "
        f"(data.split_seed {config.split_seed}): {' and '.join(parts)}."
    )
    if config.folds is not None:  # classes of few images are not in every fold
        val = 0.0
    for name, fraction in (("train", 1.0), ("val", val), ("test", test)):
        there = set(splits[name].labels.tolist()) if fraction and name in splits else set()
        absent = [c for i, c in enumerate(classes) if fraction and i not in there]
        if absent and name == "test":
            notes.append(f"Too few {units}s to be in the test: {some(absent, 5)}.")
        elif absent:  # groups of several classes only; single ones are refused above
            raise DataError(
                f"The groups of data.group {config.group!r} connect the classes, so that "
                f"{some(absent, 5)} cannot be in the {name} split as well.",
                "Choose an expression that makes smaller groups, or bring your own splits.",
            )
    return splits


def _groups(pattern: str, split: Split, name: str, notes: list[str]) -> list[str | None]:
    """Each image's group: what the pattern's first group, or all of it, matches in its path."""
    try:
        find = re.compile(pattern)
    except re.error as e:
        raise ConfigError(f"data.group {pattern!r} is not a regular expression: {e}.") from e
    groups: list[str | None] = []
    for path in split.names:
        match = find.search(path)
        groups.append(match[1 if find.groups else 0] if match else None)
    alone = [path for path, group in zip(split.names, groups, strict=True) if group is None]
    if alone and len(alone) < len(groups):
        notes.append(
            f"data.group does not match {counted(len(alone), f'{name} image')}; each is a "
            f"group of its own: {some(alone)}."
        )
    return groups


def _at_most(
    config: DataConfig, classes: tuple[str, ...], splits: dict[str, Split], notes: list[str]
) -> None:
    """Leave data.max_train training images, and data.max_val validation images, in `splits`."""
    if config.max_train is not None and config.max_train < len(classes):
        raise ConfigError(
            f"data.max_train {config.max_train} is less than one image for each of the "
            f"{len(classes)} classes."
        )
    for name, (kind, choose, how) in SUBSETS.items():
        setting, count = f"data.max_{name}", getattr(config, f"max_{name}")
        if count is None:
            continue
        have = len(splits.get(name, ()))
        if count >= have:
            notes.append(f"{setting} {count:,} has no effect: there are {have:,} {kind} images.")
            continue
        split, seed = splits[name], config.split_seed
        names = [name_key(n) for n in split.names]
        splits[name] = split.take(choose(split.labels, names, count, seed))
        notes.append(
            f"{count:,} of {have:,} {kind} images are used ({setting}), {how}, seeded "
            f"(data.split_seed {seed})."
        )


# -- channels, moments, listing --------------------------------------------------------------------


def _moments(pixels: Pixels | None, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: of the pixels, or ImageNet's for files.

    ImageNet's grey: the mean of a luminance is the luminance of the means; its deviation is taken
    as if the channels moved together, which they nearly do. Opacity, mostly 1, is mapped to ±1.
    """
    if pixels is None:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if in_chans == 1:
            grey = [sum(w * v for w, v in zip(LUMINANCE, c, strict=True)) for c in (mean, std)]
            return (round(grey[0], 4),), (round(grey[1], 4),)
    else:
        colours = pixels[..., :3]
        total = np.zeros(colours.shape[1:], np.int64)
        squares = np.zeros(colours.shape[1:], np.int64)
        for start in range(0, len(colours), 1024):  # 1024 * 255² fits 32 bits
            block = colours[start : start + 1024].astype(np.uint32)
            total += block.sum(axis=0, dtype=np.uint32)
            squares += (block * block).sum(axis=0, dtype=np.uint32)
        means = total.mean(axis=(0, 1)) / len(colours)
        variances = squares.mean(axis=(0, 1)) / len(colours) - means**2
        stds = np.sqrt(np.maximum(variances, 1.0))  # at least one step of 255
        mean = tuple(round(v / 255, 4) for v in means.tolist())
        std = tuple(round(v / 255, 4) for v in stds.tolist())
    return (*mean, 0.5)[:in_chans], (*std, 0.5)[:in_chans]


def _listing(
    origin: str, classes: tuple[str, ...], splits: dict[str, Split], content: bytes = b""
) -> str:
    """A hash of pixels (as the source stores them) or names and sizes, of classes and splits.

    It never changes: it is all that runs of earlier versions know of their images.
    """
    counts = {name: len(split) for name, split in splits.items()}
    h = hashlib.sha256(json.dumps([origin, classes, counts]).encode() + content)
    for split in splits.values():
        h.update(split.labels.astype("<i8").tobytes())
        if split.pixels is not None:
            h.update(str(split.pixels.shape).encode())
            h.update(np.ascontiguousarray(split.pixels).data)
        else:
            assert split.sizes is not None
            names = "\0".join(name_key(n) for n in split.names)
            h.update(names.encode("utf-8", "surrogateescape"))
            h.update(split.sizes.astype("<i8").tobytes())
    return h.hexdigest()[:32]
