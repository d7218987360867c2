"""What do IDX and CIFAR files hold? They come from strangers: nothing in them is executed, and no
size they declare is believed before it is compared with the file's."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitc.data.config import DataConfig
from vitc.data.sources.base import Found, Source, Split, entries
from vitc.data.store import Ints, Pixels
from vitc.errors import ConfigError, DataError

MAX_BYTES = 2 * 1024**3  # of one file, unpacked; EMNIST's largest holds 0.55 GB
DEFLATE_RATIO = 1032  # gzip cannot pack tighter: https://www.zlib.net/zlib_tech.html
DOWNLOAD_AGAIN = "The file is incomplete or damaged: download it again."

Parts = dict[str, tuple[Pixels, Ints]]  # "train", "test": pixels (n, H, W, C), labels (n,)


class Idx(Source):
    """MNIST and its kin: the files train-images-idx3-ubyte and so on, gzipped or not."""

    kind = origin = "idx"
    path = "a folder: --data.path DIR"

    def matches(self, path: str) -> bool:
        return any("-ubyte" in name for name in entries(path))

    def read(self, config: DataConfig) -> Found:
        path = Path(str(config.path)).expanduser()
        if not path.is_dir() and not (path.parent.is_dir() and path.parent != path):
            raise ConfigError(f"There is no folder {path}.", "idx data must lie there.")
        return read_idx_set(path)


class Cifar10(Source):
    """CIFAR-10, in its Python or its binary version."""

    kind = origin = "cifar10"
    path = "a folder: --data.path DIR"

    def matches(self, path: str) -> bool:
        names = entries(path)
        return any(n.startswith("data_batch_1") for n in names) or not names.isdisjoint(
            CIFAR10.folders
        )

    def read(self, config: DataConfig) -> Found:
        return _read_cifar(config, CIFAR10)


class Cifar100(Source):
    """CIFAR-100 with its fine labels, in its Python or its binary version."""

    kind = origin = "cifar100"
    path = "a folder: --data.path DIR"

    def matches(self, path: str) -> bool:
        names = entries(path)
        whole = {"train", "test", "meta"} <= names or {"train.bin", "test.bin"} <= names
        return whole or not names.isdisjoint(CIFAR100.folders)

    def read(self, config: DataConfig) -> Found:
        return _read_cifar(config, CIFAR100)


def _found(classes: tuple[str, ...], parts: Parts, notes: Iterable[str]) -> Found:
    splits = {
        part: Split(labels, [f"{part}/{i}" for i in range(len(labels))], pixels)
        for part, (pixels, labels) in parts.items()
    }
    return Found(classes, splits, tuple(notes))


# ---------------------------------------------------------------------------------------- IDX

_IDX_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train|t10k|test)-(?P<kind>images|labels)[.-]idx[13]-ubyte(\.gz)?$",
    re.IGNORECASE,
)


def read_idx(file: Path) -> Pixels:
    """The array in an IDX file of bytes, gzipped or not (yann.lecun.com/exdb/mnist).

    Raises DataError: not such a file, truncated, longer than it says, or beyond 2 GiB.
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


def read_idx_set(path: Path) -> Found:
    """The MNIST-like set in a folder (or its `raw`), or the one of several named FOLDER/PREFIX.

    EMNIST's images, stored with rows and columns exchanged, are turned upright, and its classes
    named by its mapping file. Raises ConfigError: nothing there, or several sets; DataError: a
    file is missing, damaged, or images and labels do not match.
    """
    folder, wanted = (path, None) if path.is_dir() else (path.parent, path.name)
    sets = _idx_sets(folder)
    if wanted is not None:
        sets = {k: v for k, v in sets.items() if k[1] == wanted}
    if not sets:
        raise ConfigError(
            f"No IDX files in {path}."
            if wanted is None
            else f"{path} is neither a folder nor what the names of IDX files begin with.",
            "Expected train-images-idx3-ubyte and train-labels-idx1-ubyte (.gz or not).",
        )
    if len(sets) > 1:
        names = ", ".join(sorted(str(f / p) for f, p in sets))
        raise ConfigError(
            f"{path} holds {len(sets)} IDX data sets: {names}.",
            "Choose one of these as --data.path.",
        )
    ((place, prefix), files) = next(iter(sets.items()))
    return _idx_arrays(place, prefix, files)


def _idx_sets(folder: Path) -> dict[tuple[Path, str], dict[tuple[str, str], Path]]:
    """(folder, prefix) -> (part, kind) -> file; torchvision keeps them in NAME/raw."""
    sets: dict[tuple[Path, str], dict[tuple[str, str], Path]] = {}
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        if not place.is_dir():
            continue
        for file in sorted(place.iterdir(), reverse=True):  # .gz before plain: plain wins
            match = _IDX_NAME.fullmatch(file.name)
            if match:
                part = "train" if match["part"].lower() == "train" else "test"
                prefix = match["prefix"].rstrip("-_. ")
                sets.setdefault((place, prefix), {})[part, match["kind"].lower()] = file
    return sets


def _idx_arrays(place: Path, prefix: str, files: dict[tuple[str, str], Path]) -> Found:
    raw: dict[str, tuple[Pixels, Pixels]] = {}
    for part in ("train", "test"):
        missing = [kind for kind in ("images", "labels") if (part, kind) not in files]
        if part == "test" and len(missing) == 2:
            continue
        if missing:
            raise DataError(
                f"{place} lacks the {' and the '.join(missing)} of {prefix or 'the data set'}'s "
                f"{part} part.",
                f"Expected a name like {prefix + '-' if prefix else ''}{part}-{missing[0]}-idx"
                f"{3 if missing[0] == 'images' else 1}-ubyte.gz.",
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
    transposed = "emnist" in prefix.lower() or "emnist" in str(place).lower()
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


def _idx_classes(place: Path, prefix: str, values: Pixels) -> tuple[str, ...]:
    """The label's number, or the character that EMNIST's mapping file gives it.

    A line of it: the label, then the ASCII codes of the characters it stands for.
    """
    numbers = tuple(str(v) for v in values.tolist())
    mapping = place / f"{prefix}-mapping.txt"
    if not mapping.is_file() or mapping.stat().st_size > 2**20:
        return numbers
    lines = re.findall(r"^(\d{1,3})[ \t]+(\d{2,3})\b", mapping.read_text("latin1"), re.MULTILINE)
    characters = {label: chr(int(code)) for label, code in lines if 32 < int(code) < 127}
    named = tuple(characters.get(n, n) for n in numbers)
    return named if len(set(named)) == len(named) else numbers


# -------------------------------------------------------------------------------------- CIFAR


@dataclass(frozen=True)
class _Cifar:
    """The file names of one CIFAR in its two versions (www.cs.toronto.edu/~kriz/cifar.html)."""

    name: str
    num_classes: int
    folders: tuple[str, str]  # Python, binary
    train: tuple[str, ...]
    test: str
    label_key: str  # Python version
    label_bytes: int  # binary version: bytes before the pixels, the last of them the label
    meta: tuple[str, str]  # Python file, its key
    words: str  # binary version's file of class names


CIFAR10 = _Cifar(
    "CIFAR-10",
    10,
    ("cifar-10-batches-py", "cifar-10-batches-bin"),
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test_batch",
    "labels",
    1,
    ("batches.meta", "label_names"),
    "batches.meta.txt",
)
CIFAR100 = _Cifar(
    "CIFAR-100",
    100,
    ("cifar-100-python", "cifar-100-binary"),
    ("train",),
    "test",
    "fine_labels",
    2,
    ("meta", "fine_label_names"),
    "fine_label_names.txt",
)


def _read_cifar(config: DataConfig, kind: _Cifar) -> Found:
    """Raises ConfigError: the files are not there; DataError: one is missing or damaged."""
    path = Path(str(config.path)).expanduser()
    if not path.is_dir():
        raise ConfigError(f"There is no folder {path}.", f"{config.source} data must lie there.")
    for folder in (path, *(path / f for f in kind.folders)):
        for suffix in ("", ".bin"):
            if (folder / (kind.train[0] + suffix)).is_file():
                return _cifar_arrays(folder, suffix, kind)
    packed = sorted(p.name for p in path.iterdir() if p.name.endswith((".tar.gz", ".tgz")))
    raise ConfigError(
        f"No {kind.name} in {path}: neither {kind.train[0]} nor {kind.train[0]}.bin is there, "
        f"nor in {' or '.join(kind.folders)}.",
        f"Unpack it first: tar -xzf {packed[0]}" if packed else None,
    )


def _cifar_arrays(folder: Path, suffix: str, kind: _Cifar) -> Found:
    read = _cifar_binary if suffix else _cifar_python
    train = [read(folder / (name + suffix), kind) for name in kind.train]
    parts = {
        "train": (np.concatenate([p for p, _ in train]), np.concatenate([n for _, n in train])),
        "test": read(folder / (kind.test + suffix), kind),
    }
    notes = []
    for part, expected in (("train", 50_000), ("test", 10_000)):
        count = len(parts[part][1])
        if count != expected:
            notes.append(f"{kind.name} has {expected:,} {part} images; this copy has {count:,}.")
        absent = kind.num_classes - len(np.unique(parts[part][1]))
        if absent and part == "train":
            raise DataError(
                f"{folder} has training images of only {kind.num_classes - absent} of the "
                f"{kind.num_classes} classes.",
                DOWNLOAD_AGAIN,
            )
    return _found(_cifar_classes(folder, suffix, kind), parts, notes)


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


def _cifar_binary(file: Path, kind: _Cifar) -> tuple[Pixels, Ints]:
    data = _bytes_of(file)
    record = kind.label_bytes + 3072
    if not data or len(data) % record:
        raise DataError(
            f"{file} has {len(data):,} bytes, not a multiple of {record:,} (label and 32x32x3).",
            DOWNLOAD_AGAIN,
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = rows[:, kind.label_bytes - 1].astype(np.int64)
    return _cifar_checked(file, rows[:, kind.label_bytes :], labels, kind)


def _cifar_python(file: Path, kind: _Cifar) -> tuple[Pixels, Ints]:
    batch = _unpickled(file)
    data, labels = batch.get("data"), batch.get(kind.label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise DataError(f"{file} has no 'data' of n x 3,072 bytes.", DOWNLOAD_AGAIN)
    if not isinstance(labels, list) or not labels or len(labels) != len(data):
        labels = [None]
    if not all(type(n) is int for n in labels):
        raise DataError(
            f"{file} has no {kind.label_key!r} with a whole number for each of its "
            f"{len(data):,} images.",
            f"For {kind.name} choose --data.source {kind.name.lower().replace('-', '')}, "
            "or download it again.",
        )
    known = [n if 0 <= n < kind.num_classes else -1 for n in labels]  # n may exceed 64 bits
    return _cifar_checked(file, data, np.array(known, dtype=np.int64), kind)


def _cifar_checked(file: Path, rows: Pixels, labels: Ints, kind: _Cifar) -> tuple[Pixels, Ints]:
    if labels.min() < 0 or labels.max() >= kind.num_classes:
        raise DataError(
            f"{file} holds labels outside 0 … {kind.num_classes - 1} of {kind.name}.",
            DOWNLOAD_AGAIN,
        )
    planes = rows.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _cifar_classes(folder: Path, suffix: str, kind: _Cifar) -> tuple[str, ...]:
    """The names beside the data; the labels' numbers where that file is not there."""
    file = folder / (kind.words if suffix else kind.meta[0])
    if not file.is_file():
        return tuple(str(i) for i in range(kind.num_classes))
    if suffix:
        names: Any = _bytes_of(file).decode("utf-8", "replace").split()
    else:
        names = _unpickled(file).get(kind.meta[1])
        if isinstance(names, list):
            names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names]
    good = isinstance(names, list) and all(isinstance(n, str) for n in names)
    if not good or len(set(names)) != kind.num_classes or len(names) != kind.num_classes:
        raise DataError(
            f"{file} does not name the {kind.num_classes} classes of {kind.name}.", DOWNLOAD_AGAIN
        )
    return tuple(names)


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
# them, since they allocate what a file tells them to.


class _Array:
    """Where numpy's __setstate__ would fill an array: only bytes of the size the shape says."""

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


_ADMITTED = {
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
        admitted = _ADMITTED.get(f"{module}.{name}")
        if admitted is None:
            raise DataError(
                f"it asks for {module}.{name}, and only arrays are admitted.",
                "Take the file from www.cs.toronto.edu/~kriz/cifar.html, or the binary version.",
            )
        return admitted()
