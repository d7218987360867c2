"""Which images are there, with which labels, in which split? Free of torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from vitc.data.config import NEEDS_PATH, SOURCES, DataConfig
from vitc.data.decode import CHANNELS, file_bytes, read_image, to_channels
from vitc.data.sources.arrays import CIFAR10, CIFAR100, Arrays, read_cifar, read_idx_set
from vitc.data.sources.custom import load_outside
from vitc.data.sources.folder import SPLIT_WORDS, FolderSplit, name_key, scan_folder, shown, some
from vitc.data.sources.index import Labelled, classes_of
from vitc.data.sources.packed import PackedStore, as_array, open_pack, without_places
from vitc.data.sources.parquet import read_list, read_tables
from vitc.data.sources.tar import read_tars
from vitc.data.split import TEST, TRAIN, VAL, balanced_subset, hold_out, hold_out_groups
from vitc.data.store import Names, Store, Stored
from vitc.errors import ConfigError, DataError, unknown
from vitc.wording import counted

EMBEDDED = Path(__file__).parents[1] / "embedded" / "fashion_mnist_12k.npz"
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Of ImageNet's training images in RGB, as the field has used them since Torch7's fb.resnet.torch.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG's Y and Pillow's "L"

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]


class Files(Sequence[Path]):
    """Paths below one folder, made when asked for: a million Path objects would take a gigabyte."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, Names.of(names)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Files: ...
    def __getitem__(self, index: int | slice) -> Path | Files:
        if isinstance(index, slice):
            return Files(self.root, self.names[index])
        return self.root / self.names[index]


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split: all pixels, or one file an image, or places in a store.

    labels: int64 (n,). names: n short names for messages. pixels: uint8 (n, H, W, C) with C the
    in_chans asked for, contiguous and writeable; or files: n paths; or store and places: int64
    (n,). sizes: int64 (n,) bytes, of files and of what is in a store.
    """

    labels: Ints
    names: Sequence[str]
    pixels: Pixels | None = None
    files: Sequence[Path] | None = None
    sizes: Ints | None = None
    store: Store | None = None
    places: Ints | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, index: int) -> Stored:
        """An image as its source has it: the bytes of a file, or pixels uint8 (H, W, C).

        Raises BrokenFileError: it cannot be read.
        """
        if self.pixels is not None:
            pixels: Pixels = self.pixels[index]
            return pixels
        if self.files is not None:
            return file_bytes(self.files[index], self.names[index])
        assert self.store is not None
        assert self.places is not None
        return self.store.read(int(self.places[index]))

    def read(self, index: int, in_chans: int) -> Pixels:
        """An image's pixels, uint8 (H, W, in_chans). Raises BrokenFileError."""
        stored = self.stored(index)
        if isinstance(stored, bytes):
            return read_image(stored, in_chans, self.names[index])
        return to_channels(stored, in_chans)

    def take(self, positions: Ints) -> Split:
        """The images at `positions`, in that order."""
        if len(positions) == len(self) and (positions == np.arange(len(self))).all():
            return self
        files = self.files
        if isinstance(files, Files):
            files = Files(files.root, files.names.take(positions))
        elif files is not None:
            files = [files[i] for i in positions.tolist()]
        return Split(
            labels=self.labels[positions],
            names=Names.of(self.names).take(positions),
            pixels=None if self.pixels is None else self.pixels[positions],
            files=files,
            sizes=None if self.sizes is None else self.sizes[positions],
            store=self.store,
            places=None if self.places is None else self.places[positions],
        )


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, opened: what its classes are and which image is in which split.

    splits: always "train"; "val" and "test" where there is such a split, never an empty one.
    mean, std: in [0, 1], one a channel. notes: what was decided or noticed, one sentence each, for
    the caller to say aloud. fingerprint: 32 hex digits, the same for the same images, classes and
    splits on any machine; a pack that holds its source's images as they were has the source's.
    """

    source: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]
    fingerprint: str


def open_data(config: DataConfig, in_chans: int = 3) -> DataSet:
    """The data set that `config` names, split three ways, with pixels in `in_chans` channels.

    What the source itself divides stays so. Validation images are held out from training where it
    has none; test images too where it has neither (with its own train and val it keeps those two:
    a number on that val is what others compare with). Raises ConfigError: a wrong path or setting;
    DataError: what is there cannot be trained on.
    """
    if in_chans not in CHANNELS:
        raise ConfigError(
            f"model.in_chans {in_chans}: images have 1, 3 or 4 channels.",
            "1: grey; 3: RGB; 4: RGB and opacity.",
        )
    found = read_source(config)
    classes, notes = found.classes, list(found.notes)
    splits = _split(config, classes, found.splits, notes)
    splits["train"] = _at_most(config, classes, splits["train"], notes)
    fingerprint = _fingerprint(found.origin or config.source, classes, splits, found.content)
    splits = {name: _with_channels(split, in_chans) for name, split in splits.items()}
    mean, std = _moments(splits["train"].pixels, in_chans)
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
        if len(mean) != in_chans or len(std) != in_chans:
            raise ConfigError(
                f"data.mean {mean} and data.std {std} must have {in_chans} "
                f"entries each, as model.in_chans."
            )
    return DataSet(config.source, classes, splits, mean, std, tuple(notes), fingerprint)


# ----------------------------------------------------------------------- what each source brings


@dataclass(frozen=True, eq=False)
class Found:
    """What a source brings, as it divides it itself: classes, splits, what there is to say.

    origin: where it is another source's images unchanged, that one. content: bytes that tell these
    images from others of the same names and sizes, where the source has such.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: Sequence[str] = ()
    origin: str = ""
    content: bytes = b""


def read_source(config: DataConfig) -> Found:
    """The data set that `config` names, before anything is held out, in the source's own channels.

    Raises as `open_data`.
    """
    if config.source == "fashion":
        return Found(FASHION_CLASSES, _fashion())
    if config.source == "synthetic":
        return Found(tuple(f"pattern {i}" for i in range(10)), _synthetic())
    if not config.path:
        raise ConfigError(f"data.source {config.source!r} needs {NEEDS_PATH[config.source]}.")
    path = Path(config.path).expanduser()
    if config.source == "folder":
        return _folder(path)
    if config.source == "packed":
        return _packed(path)
    if config.source == "tar":
        return _labelled(read_tars(config.path), config.path)
    if config.source == "parquet":
        return _labelled(read_tables(config), config.path)
    if config.source == "list":
        return _labelled(read_list(config), config.path)
    if config.source == "outside":
        return _outside(config)
    prefix = config.source == "idx" and path.parent.is_dir() and path.parent != path
    if not path.is_dir() and not prefix:
        raise ConfigError(f"There is no folder {path}.", f"{config.source} data must lie there.")
    if config.source == "idx":
        return _from_arrays(read_idx_set(path))
    if config.source == "cifar10":
        return _from_arrays(read_cifar(path, CIFAR10))
    if config.source == "cifar100":
        return _from_arrays(read_cifar(path, CIFAR100))
    raise unknown("data.source", config.source, SOURCES)


def _from_arrays(arrays: Arrays) -> Found:
    splits = {
        part: Split(labels, [f"{part}/{i}" for i in range(len(labels))], pixels)
        for part, (pixels, labels) in arrays.parts.items()
    }
    return Found(arrays.classes, splits, arrays.notes)


def _folder(path: Path) -> Found:
    listing = scan_folder(path)
    splits = {name: _files(path, part) for name, part in listing.splits.items()}
    return Found(listing.classes, splits, listing.notes)


def _files(root: Path, part: FolderSplit) -> Split:
    files = Files(root, part.names)
    plain = all(shown(n) == n for n in part.names)
    return Split(
        labels=np.array(part.labels, dtype=np.int64),
        names=files.names if plain else Names.of(shown(n) for n in part.names),
        files=files,
        sizes=np.array(part.sizes, dtype=np.int64),
    )


def _labelled(found: Labelled, where: str) -> Found:
    classes, labels = classes_of(found, where)
    splits = {}
    for code, name in enumerate(SPLIT_WORDS):
        places = np.flatnonzero(found.splits == code)
        if not len(places):
            continue
        names, sizes = found.names.take(places), found.sizes[places]
        if found.store is None:
            files = Files(found.root, names)
            splits[name] = Split(labels[places], names, files=files, sizes=sizes)
        else:
            splits[name] = Split(
                labels[places], names, sizes=sizes, store=found.store, places=places
            )
    return Found(classes, splits, found.notes)


def _outside(config: DataConfig) -> Found:
    outside = load_outside(config)
    splits, first = {}, 0
    for name, labels in outside.labels.items():
        places = np.arange(first, first + len(labels), dtype=np.int64)
        first += len(labels)
        splits[name] = Split(
            labels=labels,
            names=outside.names.take(places),
            sizes=np.full(len(labels), -1, np.int64),  # not known
            store=outside,
            places=places,
        )
    return Found(outside.classes, splits, content=outside.content)


def _packed(path: Path) -> Found:
    pack = open_pack(path)
    about, store = pack.about, PackedStore(pack)
    sizes = pack.lengths
    splits = {}
    for name, part in pack.parts().items():
        places = np.arange(part.start, part.stop, dtype=np.int64)
        labels, names = pack.labels[places], pack.names.take(places)
        pixels = as_array(pack, part)
        if pixels is not None:
            splits[name] = Split(labels, names, pixels)
        else:
            splits[name] = Split(labels, names, sizes=sizes[places], store=store, places=places)
    if about.lossless:
        return Found(about.classes, splits, about.notes, origin=about.origin)
    return Found(
        about.classes,
        splits,
        about.notes,
        content=without_places(about).to_json() + pack.crc32.tobytes(),
    )


def _fashion() -> dict[str, Split]:
    """The embedded subset of Fashion-MNIST; a name is the image's place in the original files."""
    splits = {}
    with np.load(EMBEDDED, allow_pickle=False) as arrays:
        for name, original in (("train", "train"), ("val", "train"), ("test", "t10k")):
            splits[name] = Split(
                labels=arrays[f"{name}_labels"].astype(np.int64),
                names=[f"{original}/{i}" for i in arrays[f"{name}_positions"].tolist()],
                pixels=arrays[f"{name}_images"][..., None],
            )
    return splits


def _synthetic() -> dict[str, Split]:
    """Ten classes of noisy coloured stripes, 32x32: their direction and colour tell the class.

    Shifted at random by up to 3 of a period of 16 pixels. Integer arithmetic and a hash's bytes
    only, so that every machine makes the same pixels.
    """
    directions = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1))
    y, x = np.mgrid[:32, :32]
    splits = {}
    for name, count in (("train", 512), ("val", 128), ("test", 128)):
        noise = hashlib.shake_128(f"synthetic/{name}".encode()).digest(count * (32 * 32 * 3 + 1))
        phases = np.frombuffer(noise, np.uint8, count).astype(np.int64)
        grain = np.frombuffer(noise, np.uint8, offset=count).reshape(count, 32, 32, 3) // 2
        labels = np.arange(count, dtype=np.int64) % 10
        pixels = np.empty((count, 32, 32, 3), np.uint8)
        for i, label in enumerate(labels.tolist()):
            a, b = directions[label % 5]
            wave = np.abs((a * x + b * y + int(phases[i]) % 4) % 16 - 8) * 16  # 0 … 128
            tint = np.array((3, 2, 1) if label < 5 else (1, 2, 3))
            pixels[i] = wave[..., None] * tint // 3 + grain[i]
        splits[name] = Split(labels, [f"{name}/{i}" for i in range(count)], pixels)
    return splits


# --------------------------------------------------------------------- three splits, and how many


def _split(
    config: DataConfig, classes: tuple[str, ...], given: dict[str, Split], notes: list[str]
) -> dict[str, Split]:
    """The given splits, and those held out from the training images."""
    val = 0.0 if "val" in given else config.val_fraction
    test = 0.0 if "val" in given or "test" in given else config.test_fraction
    train = given["train"]
    if "val" in given and "test" not in given:
        notes.append(
            "No test split: train and val are kept as they came, and data.test_fraction takes "
            "nothing from them. Choices made on val make its own number a little too good; "
            "a test folder beside it gives one that is not."
        )
    elif "test" not in given and not test:
        notes.append("No test split: data.test_fraction is 0.")
    if "val" not in given and not val:
        notes.append("No validation split: data.val_fraction is 0, nothing is there to choose by.")
    groups = None
    if config.group is not None:
        groups = {name: _groups(config.group, split, name, notes) for name, split in given.items()}
        if not any(g is not None for part in groups.values() for g in part):
            raise ConfigError(
                f"data.group {config.group!r} is found in no file name, e.g. not in "
                f"{train.names[0]!r}.",
                "It is searched for in the path below the data folder, with / between folders.",
            )
    if not val and not test:
        splits = dict(given)
    else:
        mine = None if groups is None else groups["train"]
        splits = _held_out(config, classes, given, mine, (val, test), notes)
    if groups is not None:
        _say_groups_across(groups, notes)
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

    if keys is None:
        names = [name_key(n) for n in train.names]
        side = hold_out(train.labels, names, val, test, config.split_seed)
    else:
        side = hold_out_groups(train.labels, keys, val, test, config.split_seed)
    sides = {"train": TRAIN, "val": VAL, "test": TEST}
    splits = {name: split for name, split in given.items() if name != "train"}
    for name, code in sides.items():
        if (side == code).any():
            splits[name] = train.take(np.flatnonzero(side == code))

    purposes = {"val": "validation", "test": "the test"}
    parts = [
        f"{len(splits[name]):,} for {purpose}"
        for name, purpose in purposes.items()
        if name in splits and name not in given
    ]
    how = "class by class" if keys is None else f"by the groups of data.group {config.group!r}"
    notes.append(
        f"Held out of {counted(len(train), 'training image')}, {how}, seeded "
        f"(data.split_seed {config.split_seed}): {' and '.join(parts)}."
    )
    for name, fraction in (("train", 1.0), ("val", val), ("test", test)):
        there = set(splits[name].labels.tolist()) if fraction and name in splits else set()
        absent = [c for i, c in enumerate(classes) if fraction and i not in there]
        if absent and name == "test":
            notes.append(f"Too few {units}s to be in the test: {some(absent, 5)}.")
        elif absent:  # groups of several classes only; single ones are refused above
            raise DataError(
                f"The groups of data.group {config.group!r} tie the classes together so that "
                f"{some(absent, 5)} cannot be in the {name} split too.",
                "Choose an expression that makes smaller groups, or bring your own splits.",
            )
    return splits


def _groups(pattern: str, split: Split, name: str, notes: list[str]) -> list[str | None]:
    """Each image's group: what the pattern's first group, or all of it, matches in its path."""
    try:
        find = re.compile(pattern)
    except re.error as e:
        raise ConfigError(f"data.group {pattern!r} is no regular expression: {e}.") from e
    groups: list[str | None] = []
    for path in split.names:
        match = find.search(path)
        groups.append(match[1 if find.groups else 0] if match else None)
    alone = [path for path, group in zip(split.names, groups, strict=True) if group is None]
    if alone and len(alone) < len(groups):
        notes.append(
            f"data.group is not found in {counted(len(alone), f'{name} image')}, each taken as "
            f"its own group: {some(alone)}."
        )
    return groups


def _say_groups_across(groups: dict[str, list[str | None]], notes: list[str]) -> None:
    """Groups that the source's own splits tear apart; held-out ones are whole by construction."""
    members = {name: {g for g in part if g is not None} for name, part in groups.items()}
    for a, b in itertools.combinations(members, 2):
        torn = sorted(members[a] & members[b])
        if torn:
            notes.append(
                f"LEAK: {counted(len(torn), 'group')} of data.group in both {a} and {b}: "
                f"{some(torn)}. The {b} number will be too good."
            )


def _at_most(config: DataConfig, classes: tuple[str, ...], train: Split, notes: list[str]) -> Split:
    """At most data.max_train training images, the classes as equal as they can be."""
    count = config.max_train
    if count is None:
        return train
    if count < len(classes):
        raise ConfigError(
            f"data.max_train {count} is less than one image for each of the {len(classes)} classes."
        )
    if count >= len(train):
        notes.append(
            f"data.max_train {count:,} changes nothing: there are {len(train):,} training images."
        )
        return train
    names = [name_key(n) for n in train.names]
    subset = train.take(balanced_subset(train.labels, names, count, config.split_seed))
    notes.append(
        f"{count:,} of {len(train):,} training images are used (data.max_train), the classes "
        f"as equal as they can be, seeded (data.split_seed {config.split_seed})."
    )
    return subset


# --------------------------------------------------------------- channels, moments, fingerprint


def _with_channels(split: Split, in_chans: int) -> Split:
    if split.pixels is None:
        return split
    pixels = np.ascontiguousarray(to_channels(split.pixels, in_chans))
    return replace(split, pixels=pixels if pixels.flags.writeable else pixels.copy())


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


def _fingerprint(
    source: str, classes: tuple[str, ...], splits: dict[str, Split], content: bytes = b""
) -> str:
    """A hash of pixels (as the source stores them) or names and sizes, of classes and splits."""
    counts = {name: len(split) for name, split in splits.items()}
    h = hashlib.sha256(json.dumps([source, classes, counts]).encode() + content)
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
