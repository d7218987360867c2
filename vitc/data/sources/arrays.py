"""What do IDX and CIFAR files hold? They are not trusted: nothing in them is executed, and every
size they declare is checked against the file's before memory is allocated."""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.litter import listed
from vitc.data.sources.base import Found, Source, Split
from vitc.data.sources.folder import holds_classes
from vitc.data.store import Ints, Pixels
from vitc.errors import ConfigError, DataError

MAX_BYTES = 2 * 1024**3  # of one file, unpacked; EMNIST's largest holds 0.55 GB
DEFLATE_RATIO = 1032  # the most that gzip can pack: https://www.zlib.net/zlib_tech.html
DOWNLOAD_AGAIN = "The file is incomplete or damaged: download it again."
Part = tuple[Pixels, Ints]  # pixels (n, H, W, C), labels (n,)


def _found(classes: Iterable[str], parts: dict[str, Part], notes: Iterable[str]) -> Found:
    splits = {
        part: Split(labels, [f"{part}/{i}" for i in range(len(labels))], pixels)
        for part, (pixels, labels) in parts.items()
    }
    return Found(tuple(classes), splits, tuple(notes))


# -- IDX -------------------------------------------------------------------------------------------

_IDX_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train|t10k|test)-(?P<kind>images|labels)[.-]idx[13]-ubyte(\.gz)?$",
    re.IGNORECASE,
)


class Idx(Source):
    """MNIST and data sets like it: train-images-idx3-ubyte and so on, gzipped or not.

    The set in a folder (or its `raw`), or the one of several that is named FOLDER/PREFIX. EMNIST's
    images, stored with rows and columns exchanged, are turned upright, and its classes are named by
    its mapping file. It is known by its name: of the files, or of the folder that they are in.
    """

    kind = origin = "idx"
    title = "a data set in IDX files"
    path = "a folder: --data.path DIR"

    def matches(self, path: str) -> bool:
        named = [name for name in listed(path) if _IDX_NAME.fullmatch(name)]
        there = any(os.path.isfile(os.path.join(path, name)) for name in named)
        return there and not holds_classes(path)

    def read(self, config: DataConfig) -> Found:
        """Raises ConfigError: not there, or several sets; DataError: a file is missing or damaged,
        or images and labels do not match."""
        path = Path(str(config.path)).expanduser()
        folder, wanted = (path, None) if path.is_dir() else (path.parent, path.name)
        if not folder.is_dir() or path.parent == path:
            raise ConfigError(f"There is no folder {path}.", "Give the folder of the IDX files.")
        # (folder, prefix) -> (part, kind) -> file; torchvision keeps them in NAME/raw.
        sets: dict[tuple[Path, str], dict[tuple[str, str], Path]] = {}
        for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
            names = sorted(listed(str(place)), reverse=True)  # .gz before plain: plain wins
            for match in filter(None, map(_IDX_NAME.fullmatch, names)):
                part = "train" if match["part"].lower() == "train" else "test"
                prefix = match["prefix"].rstrip("-_. ")
                if wanted in (None, prefix):
                    files = sets.setdefault((place, prefix), {})
                    files[part, match["kind"].lower()] = place / match[0]
        if not sets:
            what = "" if wanted is None else ": neither a folder nor the beginning of their names"
            raise ConfigError(
                f"No IDX files in {path}{what}.",
                "Expected train-images-idx3-ubyte and train-labels-idx1-ubyte (.gz or not).",
            )
        if len(sets) > 1:
            choices = ", ".join(sorted(str(f / p) for f, p in sets))
            raise ConfigError(
                f"{path} holds {len(sets)} IDX data sets: {choices}.",
                "Choose one of these as --data.path.",
            )
        (((place, prefix), files),) = sets.items()
        return _idx_arrays(place, prefix, files)


def read_idx(file: Path) -> Pixels:
    """The array in an IDX file of bytes, gzipped or not (yann.lecun.com/exdb/mnist).

    Raises DataError: not an IDX file, truncated, longer than declared, or beyond 2 GiB.
    """
    try:
        packed = file.stat().st_size
        zipped = file.suffix.lower() == ".gz"
        with gzip.open(file, "rb") if zipped else file.open("rb") as f:
            magic = f.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] not in (1, 3):
                raise DataError(
                    f"{file} is not an IDX file of 8-bit labels or images: it starts with "
                    f"{magic.hex(' ') or 'nothing'}, not with 00 00 08 01 or 00 00 08 03.",
                )
            raw = f.read(4 * magic[3])
            if len(raw) < 4 * magic[3]:
                raise DataError(f"{file} ends within its header.", DOWNLOAD_AGAIN)
            shape = tuple(int(n) for n in np.frombuffer(raw, ">u4"))
            size = math.prod(shape)
            room = packed * DEFLATE_RATIO if zipped else packed - 4 - len(raw)
            if size > min(room, MAX_BYTES):
                raise DataError(
                    f"{file} declares {size:,} bytes of {'x'.join(map(str, shape))}, more than "
                    f"a file of {packed:,} bytes can hold or than the {MAX_BYTES:,} allowed.",
                    DOWNLOAD_AGAIN,
                )
            data = f.read(size + 1)  # one more: it must end here, and gzip then checks its CRC
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{file} cannot be read: {e}.", DOWNLOAD_AGAIN) from e
    if len(data) != size:
        more = "more" if len(data) > size else f"only {len(data):,}"
        raise DataError(f"{file} declares {size:,} bytes and holds {more}.", DOWNLOAD_AGAIN)
    return np.frombuffer(data, np.uint8).reshape(shape)


def _idx_arrays(place: Path, prefix: str, files: dict[tuple[str, str], Path]) -> Found:
    raw: dict[str, tuple[Pixels, Pixels]] = {}
    for part in ("train", "test"):
        missing = [kind for kind in ("images", "labels") if (part, kind) not in files]
        if part == "test" and len(missing) == 2:
            continue
        if missing:
            name = f"{prefix}-{part}" if prefix else part
            raise DataError(
                f"{place} lacks the {part} {' and '.join(missing)} of {prefix or 'the data set'}.",
                f"Expected {name}-images-idx3-ubyte and {name}-labels-idx1-ubyte (.gz or not).",
            )
        labels, images = read_idx(files[part, "labels"]), read_idx(files[part, "images"])
        if labels.ndim != 1 or images.ndim != 3 or len(labels) != len(images):
            raise DataError(
                f"{files[part, 'images']} holds {'x'.join(map(str, images.shape))} and "
                f"{files[part, 'labels'].name} {'x'.join(map(str, labels.shape))}: they must be "
                "n images of height x width, and n labels.",
            )
        if images.size == 0:
            raise DataError(f"{files[part, 'images']} holds no image.")
        raw[part] = images, labels

    values = np.unique(raw["train"][1])
    notes = []
    transposed = _is_emnist(place, prefix)
    if transposed:
        notes.append("EMNIST stores its images with rows and columns exchanged: turned upright.")
    parts = {}
    for part, (images, labels) in raw.items():
        strange = np.setdiff1d(labels, values)
        if len(strange):
            raise DataError(f"The {part} labels of {place} hold {strange[0]}, not in training.")
        upright = images.transpose(0, 2, 1) if transposed else images
        parts[part] = upright[..., None], np.searchsorted(values, labels).astype(np.int64)
    return _found(_idx_classes(place, prefix, values), parts, notes)


def _is_emnist(place: Path, prefix: str) -> bool:
    """By the beginning of the files' names, or the name of their folder; not of those above it."""
    folder = Path(os.path.abspath(place))
    name = folder.parent.name if folder.name.lower() == "raw" else folder.name
    return any(re.search(r"(?<![^\W\d_])emnist", text, re.IGNORECASE) for text in (prefix, name))


def _idx_classes(place: Path, prefix: str, values: Pixels) -> tuple[str, ...]:
    """The labels' numbers, or the characters that EMNIST's mapping file gives them.

    Each line has a label, then the ASCII codes of the characters it means.
    """
    numbers = tuple(str(v) for v in values.tolist())
    mapping = place / f"{prefix}-mapping.txt"
    if not mapping.is_file() or mapping.stat().st_size > 2**20:
        return numbers
    lines = re.findall(r"^(\d{1,3})[ \t]+(\d{2,3})\b", mapping.read_text("latin1"), re.MULTILINE)
    characters = {label: chr(int(code)) for label, code in lines if 32 < int(code) < 127}
    named = tuple(characters.get(n, n) for n in numbers)
    return named if len(set(named)) == len(named) else numbers


# -- CIFAR -----------------------------------------------------------------------------------------


class Cifar(Source):
    """CIFAR in its Python or its binary version (www.cs.toronto.edu/~kriz/cifar.html).

    A binary file holds records of the labels, one byte each, the last of them the fine one, and
    32x32x3 bytes of pixels; a Python file is a pickled dictionary.
    """

    path = "a folder: --data.path DIR"
    signs: ClassVar[tuple[set[str], ...]]  # files by which a folder is recognised
    num_classes: ClassVar[int]
    folders: ClassVar[tuple[str, str]]  # that the archives of the two versions unpack to
    train: ClassVar[tuple[str, ...]]  # files; the binary ones end in .bin
    test: ClassVar[str]
    label_key: ClassVar[str]
    label_bytes: ClassVar[int]
    names_file: ClassVar[tuple[str, str]]  # of the Python version: file and key
    names_text: ClassVar[str]  # the file of the binary version

    def matches(self, path: str) -> bool:
        folder = Path(path)
        if self._place(folder, self.folders) is not None:
            return True
        there = any(all((folder / name).is_file() for name in sign) for sign in self.signs)
        return there and not holds_classes(path)

    def read(self, config: DataConfig) -> Found:
        """Raises ConfigError: the files are not there; DataError: one is missing or damaged."""
        path = Path(str(config.path)).expanduser()
        if not path.is_dir():
            raise ConfigError(f"There is no folder {path}.", f"Give the folder of {self.kind}.")
        place = self._place(path, ("", *self.folders))
        if place is not None:
            return self._read(*place)
        packed = sorted(p.name for p in path.iterdir() if p.name.endswith((".tar.gz", ".tgz")))
        raise ConfigError(
            f"No {self.kind} in {path}: neither {self.train[0]} nor {self.train[0]}.bin is there, "
            f"nor in {' or '.join(self.folders)}.",
            f"Unpack it first: tar -xzf {packed[0]}" if packed else None,
        )

    def _place(self, path: Path, folders: Iterable[str]) -> tuple[Path, str] | None:
        """The first of some folders in `path` that holds training images; and their suffix."""
        for folder in (path / name for name in folders):
            for suffix in ("", ".bin"):
                if (folder / (self.train[0] + suffix)).is_file():
                    return folder, suffix
        return None

    def _read(self, folder: Path, suffix: str) -> Found:
        batch = self._binary if suffix else self._pickled
        train = [batch(folder / (name + suffix)) for name in self.train]
        parts = {
            "train": (np.concatenate([p for p, _ in train]), np.concatenate([n for _, n in train])),
            "test": batch(folder / (self.test + suffix)),
        }
        present = len(np.unique(parts["train"][1]))
        if present < self.num_classes:
            what = f"training images of only {present} of the {self.num_classes} classes"
            raise DataError(f"{folder} has {what}.", DOWNLOAD_AGAIN)
        notes = [
            f"{self.kind} has {expected:,} {part} images; this copy has {len(parts[part][1]):,}."
            for part, expected in (("train", 50_000), ("test", 10_000))
            if len(parts[part][1]) != expected
        ]
        return _found(self._classes(folder, suffix), parts, notes)

    def _binary(self, file: Path) -> Part:
        data = _bytes_of(file)
        record = self.label_bytes + 3072
        if not data or len(data) % record:
            raise DataError(
                f"{file} has {len(data):,} bytes, not a multiple of {record:,} (label, 32x32x3).",
                DOWNLOAD_AGAIN,
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, record)
        labels = rows[:, self.label_bytes - 1].astype(np.int64)
        return self._checked(file, rows[:, self.label_bytes :], labels)

    def _pickled(self, file: Path) -> Part:
        batch = _unpickled(file)
        data: Any = batch.get("data")
        labels: Any = batch.get(self.label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise DataError(f"{file} has no 'data' of n x 3,072 bytes.", DOWNLOAD_AGAIN)
        whole = isinstance(labels, list) and 0 < len(labels) == len(data)
        if not whole or not all(type(n) is int for n in labels):
            raise DataError(
                f"{file} has no {self.label_key!r} with an integer for each of its "
                f"{len(data):,} images.",
                f"Use --data.source {self.kind} for the files of {self.kind} only, or download "
                "them again.",
            )
        known = [n if 0 <= n < self.num_classes else -1 for n in labels]  # n may exceed 64 bits
        return self._checked(file, data, np.array(known, dtype=np.int64))

    def _checked(self, file: Path, rows: Pixels, labels: Ints) -> Part:
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise DataError(
                f"{file} holds labels outside 0 ... {self.num_classes - 1} of {self.kind}.",
                DOWNLOAD_AGAIN,
            )
        planes = rows.reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels

    def _classes(self, folder: Path, suffix: str) -> list[str]:
        """The names in the file next to the data; without that file, the labels' numbers."""
        file = folder / (self.names_text if suffix else self.names_file[0])
        if not file.is_file():
            return [str(i) for i in range(self.num_classes)]
        if suffix:
            names: Any = _bytes_of(file).split()
        else:
            names = _unpickled(file).get(self.names_file[1])
        if isinstance(names, list):
            names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names]
        good = isinstance(names, list) and all(isinstance(n, str) for n in names)
        if not good or not len(set(names)) == len(names) == self.num_classes:
            raise DataError(
                f"{file} does not name the {self.num_classes} classes of {self.kind}.",
                DOWNLOAD_AGAIN,
            )
        return list(names)


class Cifar10(Cifar):
    """CIFAR-10."""

    kind = origin = "cifar10"
    title = "CIFAR-10"
    signs = {"data_batch_1"}, {"data_batch_1.bin"}
    num_classes = 10
    folders = "cifar-10-batches-py", "cifar-10-batches-bin"
    train, test = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
    label_key, label_bytes = "labels", 1
    names_file, names_text = ("batches.meta", "label_names"), "batches.meta.txt"


class Cifar100(Cifar):
    """CIFAR-100 with its fine labels."""

    kind = origin = "cifar100"
    title = "CIFAR-100"
    signs = {"train", "test", "meta"}, {"train.bin", "test.bin"}
    num_classes = 100
    folders = "cifar-100-python", "cifar-100-binary"
    train, test = ("train",), "test"
    label_key, label_bytes = "fine_labels", 2
    names_file, names_text = ("meta", "fine_label_names"), "fine_label_names.txt"


def _bytes_of(file: Path) -> bytes:
    """The whole file, or a DataError that names it."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file} is larger than the {MAX_BYTES:,} bytes allowed.")
        return file.read_bytes()
    except FileNotFoundError as e:
        raise DataError(f"{file} is missing.", "Unpack the whole archive again.") from e
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror}.") from e


def _unpickled(file: Path) -> dict[str, Any]:
    """The dictionary in a Python CIFAR file, its keys as text."""
    data = _bytes_of(file)
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except DataError as e:
        raise DataError(f"{file} was not loaded: {e.message}", e.hint) from e
    except Exception as e:  # a garbled pickle raises nearly anything
        raise DataError(
            f"{file} is not a Python CIFAR file: {type(e).__name__}: {e}.", DOWNLOAD_AGAIN
        ) from e
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, not a dictionary.")
    plain: dict[str, Any] = {}
    for key, value in content.items():
        name = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
        if isinstance(name, str):
            plain[name] = getattr(value, "array", None) if isinstance(value, _Array) else value
    return plain


# A pickle is a program. These stand-ins are all it can reach: they hold no reference to anything
# else, and their empty __slots__ leave it nothing to set. numpy's own functions are not among
# them, since they allocate as much memory as the file asks for.


class _Array:
    """Where numpy's __setstate__ would fill an array: only bytes, as many as its shape needs."""

    __slots__ = ("array",)

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise TypeError("an array of other than bytes")
        order: Any = "F" if fortran else "C"
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order=order)


class _Dtype:
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _MakeArray:
    __slots__ = ()

    def __call__(self, _kind: Any, _shape: Any, _code: Any) -> _Array:
        return _Array()


class _MakeDtype:
    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _Dtype:
        if code not in ("u1", b"u1", "|u1"):
            raise TypeError(f"an array of {code!r}, not of bytes")
        return _Dtype()


class _MakeBytes:
    """How Python 3 writes bytes in the pickles of protocol 2: as Latin-1 text to be encoded."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise TypeError("bytes in another encoding than Latin-1")
        return text.encode("latin1")


_ALLOWED = {
    "numpy.core.multiarray._reconstruct": _MakeArray,
    "numpy._core.multiarray._reconstruct": _MakeArray,
    "numpy.ndarray": object,  # only ever handed to _reconstruct
    "numpy.dtype": _MakeDtype,
    "_codecs.encode": _MakeBytes,
}


class _ArraysOnly(pickle._Unpickler):
    """The unpickler written in Python: its memo is a dict, where the one in C allocates a table
    as long as the largest index that the file names."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get(f"{module}.{name}")
        if allowed is None:
            raise DataError(
                f"it asks for {module}.{name}, and only arrays are allowed.",
                "Take the file from www.cs.toronto.edu/~kriz/cifar.html, or the binary version.",
            )
        return allowed()
