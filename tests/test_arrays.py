"""IDX and CIFAR files: read exactly, and never trusted."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.source_folders import counts, notes, write_idx
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.sources.arrays import read_idx
from vitc.errors import ConfigError, DataError

# -- IDX -------------------------------------------------------------------------------------------


def idx_set(folder: Path, prefix: str = "", end: str = ".gz", sep: str = "-") -> Path:
    rng = np.random.default_rng(1)
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        labels = (np.arange(count) % 3 + 1).astype(np.uint8)
        write_idx(folder / f"{prefix}{part}-images{sep}idx3-ubyte{end}", images)
        write_idx(folder / f"{prefix}{part}-labels{sep}idx1-ubyte{end}", labels)
    return folder


def from_idx(path: Path, in_chans: int = 1) -> DataSet:
    return open_data(DataConfig(source="idx", path=str(path)), in_chans)


@pytest.mark.parametrize(("end", "sep"), [(".gz", "-"), ("", "-"), ("", "."), (".gz", ".")])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, end: str, sep: str) -> None:
    data = from_idx(idx_set(tmp_path, end=end, sep=sep))
    assert data.classes == ("1", "2", "3")  # the labels there are
    assert counts(data) == {"train": [17] * 3, "val": [3] * 3, "test": [7, 7, 6]}
    images = read_idx(tmp_path / f"train-images{sep}idx3-ubyte{end}")
    train = data.splits["train"]
    assert train.pixels is not None
    for pixels, name, label in zip(train.pixels, train.names, train.labels, strict=True):
        place = int(name.removeprefix("train/"))
        assert (pixels[..., 0] == images[place]).all()
        assert label == place % 3


def test_idx_files_may_lie_in_raw_as_torchvision_leaves_them(tmp_path: Path) -> None:
    idx_set(tmp_path / "MNIST" / "raw")
    assert len(from_idx(tmp_path).splits["test"]) == 20
    assert len(from_idx(tmp_path / "MNIST").splits["test"]) == 20


def test_emnist_is_turned_upright_named_by_its_mapping_and_chosen_by_prefix(
    tmp_path: Path,
) -> None:
    idx_set(tmp_path, "emnist-letters-")
    idx_set(tmp_path, "emnist-digits-")
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
    with pytest.raises(ConfigError, match=r"2 IDX data sets: .*emnist-digits"):
        from_idx(tmp_path)
    data = from_idx(tmp_path / "emnist-letters")
    assert data.classes == ("A", "B", "C")
    assert "turned upright" in notes(data)
    pixels = data.splits["test"].pixels
    assert pixels is not None
    images = read_idx(tmp_path / "emnist-letters-t10k-images-idx3-ubyte.gz")
    assert (pixels[..., 0] == images.transpose(0, 2, 1)).all()


@pytest.mark.parametrize(
    ("place", "transposed"),
    [
        ("mnist", False),
        ("my-emnist-project/mnist", False),
        ("emnist/mnist/raw", False),
        ("noisemnist", False),
        ("KEMNIST/raw", False),
        ("EMNIST", True),
        ("emnist/raw", True),
        ("my_emnist", True),
    ],
)
def test_only_the_name_of_the_files_or_of_their_folder_makes_a_set_emnist(
    tmp_path: Path, place: str, transposed: bool
) -> None:
    (tmp_path / place).mkdir(parents=True)
    folder = idx_set(tmp_path / place)
    data = from_idx(folder)
    assert ("turned upright" in notes(data)) == transposed
    pixels = data.splits["test"].pixels
    assert pixels is not None
    assert pixels.shape[1:] == ((5, 6, 1) if transposed else (6, 5, 1))


@pytest.mark.parametrize(
    ("place", "message"),
    [("", "No IDX files"), ("mnist", "neither a folder nor"), ("no/mnist", "no folder")],
)
def test_a_folder_without_idx_files_is_a_config_error(
    tmp_path: Path, place: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        from_idx(tmp_path / place)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx_files_are_refused(tmp_path: Path, end: str) -> None:
    file = tmp_path / f"train-images-idx3-ubyte{end}"
    idx_set(tmp_path, end=end)
    whole = file.read_bytes()
    for data in (b"", whole[:3], whole[:9], whole[:-50], whole + b"more", b"GIF89a" + whole):
        file.write_bytes(data)
        with pytest.raises(DataError, match="train-images"):
            from_idx(tmp_path)


def test_a_size_that_no_such_file_can_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for end in ("", ".gz"):
        file = tmp_path / f"x-idx3-ubyte{end}"
        head = struct.pack(">IIII", 0x803, 60_000, 2**15, 2**15)
        write_idx(file, np.zeros((2, 3, 3), np.uint8), head)
        with pytest.raises(DataError, match="more than a file of"):
            read_idx(file)
    bomb = tmp_path / "bomb-idx3-ubyte.gz"  # packs well, and holds far more than it declares
    write_idx(bomb, np.zeros((3000, 100, 100), np.uint8), struct.pack(">IIII", 0x803, 3, 100, 100))
    with pytest.raises(DataError, match="declares 30,000 bytes and holds more"):
        read_idx(bomb)


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    idx_set(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    test_labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    write_idx(test_labels, np.full(20, 9, np.uint8))
    with pytest.raises(DataError, match="hold 9, not in training"):
        from_idx(tmp_path)
    write_idx(labels, np.zeros(59, np.uint8))
    with pytest.raises(DataError, match="60x6x5"):
        from_idx(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="lacks the train labels") as error:
        from_idx(tmp_path)
    assert "train-labels-idx1-ubyte" in str(error.value.hint)


# -- CIFAR -----------------------------------------------------------------------------------------


def cifar_rows(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def cifar10(folder: Path, version: str, count: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class{i}" for i in range(10)]
    labels = [i % 10 for i in range(count)]
    for seed, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = cifar_rows(count, seed)
        if version == "binary":
            records = np.column_stack([np.array(labels, np.uint8), rows])
            (folder / f"{batch}.bin").write_bytes(records.tobytes())
        else:
            content = {b"data": rows, b"labels": labels, b"filenames": [b"x.png"] * count}
            (folder / batch).write_bytes(pickled(content, version))
    if version == "binary":
        (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    else:
        (folder / "batches.meta").write_bytes(pickled({b"label_names": names}, version))
    return folder


def pickled(content: dict[bytes, Any], version: str) -> bytes:
    if version == "text keys":
        content = {k.decode(): v for k, v in content.items()}
    return pickle.dumps(content, protocol=4 if version == "protocol 4" else 2)


def from_cifar(path: Path, source: Any = "cifar10") -> DataSet:
    return open_data(DataConfig(source=source, path=str(path)))


VERSIONS = ("binary", "protocol 2", "protocol 4", "text keys")


@pytest.mark.parametrize("version", VERSIONS)
def test_cifar10_is_read_in_both_versions(tmp_path: Path, version: str) -> None:
    data = from_cifar(cifar10(tmp_path, version))
    assert data.classes == tuple(f"class{i}" for i in range(10))
    assert counts(data) == {"train": [17] * 10, "val": [3] * 10, "test": [4] * 10}
    assert "cifar10 has 50,000 train images; this copy has 200." in notes(data)
    pixels = data.splits["test"].pixels
    assert pixels is not None
    expected = cifar_rows(40, 5).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert (pixels == expected).all()


def test_every_version_of_cifar10_has_one_fingerprint(tmp_path: Path) -> None:
    found = {}
    for version in VERSIONS:  # in the folder that its archive unpacks to
        name = f"cifar-10-batches-{'bin' if version == 'binary' else 'py'}"
        cifar10(tmp_path / version / name, version)
        found[version] = from_cifar(tmp_path / version).fingerprint
    assert len(set(found.values())) == 1


def test_a_python_2_pickle_as_the_authors_published_is_read(tmp_path: Path) -> None:
    """Python 2 wrote its byte strings as the opcodes S, T and U, and arrays through dtype('u1')."""
    cifar10(tmp_path, "protocol 2")
    raw = cifar_rows(40, 5).tobytes()
    labels = b"".join(b"K" + bytes([i % 10]) for i in range(40))
    program = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x28M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tbU\x06labelsq\x08]("
        + labels
        + b"eu."
    )
    (tmp_path / "test_batch").write_bytes(program)
    pixels = from_cifar(tmp_path).splits["test"].pixels
    assert pixels is not None
    assert (pixels == cifar_rows(40, 5).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()


@pytest.mark.parametrize("version", ["binary", "protocol 2"])
def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path, version: str) -> None:
    binary = version == "binary"
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir()
    names = [f"fine{i}" for i in range(100)]
    for part, count in (("train", 300), ("test", 100)):
        fine = [i % 100 for i in range(count)]
        rows = cifar_rows(count, count)
        if binary:
            coarse = np.full(count, 7, np.uint8)
            records = np.column_stack([coarse, np.array(fine, np.uint8), rows])
            (folder / f"{part}.bin").write_bytes(records.tobytes())
        else:
            content = {b"data": rows, b"fine_labels": fine, b"coarse_labels": [7] * count}
            (folder / part).write_bytes(pickled(content, version))
    if binary:
        (folder / "fine_label_names.txt").write_text("\n".join(names))
    else:
        (folder / "meta").write_bytes(pickled({b"fine_label_names": names}, version))
    data = from_cifar(tmp_path, "cifar100")
    assert data.classes == tuple(names)
    assert counts(data) == {"train": [2] * 100, "val": [1] * 100, "test": [1] * 100}


def test_missing_cifar_files_are_named_and_class_names_are_optional(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No cifar10 in"):
        from_cifar(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(ConfigError) as error:
        from_cifar(tmp_path)
    assert error.value.hint == "Unpack it first: tar -xzf cifar-10-python.tar.gz"
    with pytest.raises(ConfigError, match="There is no folder"):
        from_cifar(tmp_path / "gone")
    cifar10(tmp_path, "binary")
    (tmp_path / "batches.meta.txt").unlink()
    assert from_cifar(tmp_path).classes == tuple("0123456789")
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing"):
        from_cifar(tmp_path)


@pytest.mark.parametrize("version", ["binary", "protocol 2", "protocol 4"])
def test_truncated_and_garbled_cifar_files_are_refused(tmp_path: Path, version: str) -> None:
    cifar10(tmp_path, version)
    file = tmp_path / ("data_batch_2" + (".bin" if version == "binary" else ""))
    whole = file.read_bytes()
    damaged = (b"", whole[:100], whole[: len(whole) // 2 + 7], b"\0hello", b"(((((((", b"]" * 99)
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(DataError, match="data_batch_2"):
            from_cifar(tmp_path)


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    cifar10(tmp_path, "binary")
    file = tmp_path / "data_batch_2.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    with pytest.raises(DataError, match="labels outside 0"):
        from_cifar(tmp_path)
    cifar10(tmp_path / "py", "protocol 2")
    for wrong in ([3] * 39, [3.0] * 40, ["3"] * 40, [2**90] * 40, 7):
        content = {b"data": cifar_rows(40, 1), b"labels": wrong}
        (tmp_path / "py" / "data_batch_2").write_bytes(pickled(content, "protocol 2"))
        with pytest.raises(DataError, match="data_batch_2"):
            from_cifar(tmp_path / "py")


class Runs:
    """Unpickled by pickle.loads, it makes a file."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    cifar10(tmp_path, "protocol 2")
    mark = tmp_path / "ran"
    for protocol in (0, 2, 4):
        program = pickle.dumps({"data": Runs(os.system, f"touch {mark}")}, protocol)
        (tmp_path / "data_batch_1").write_bytes(program)
        with pytest.raises(DataError, match=r"asks for (posix|nt)\.system"):
            from_cifar(tmp_path)
    calls: Any = ((eval, "1"), (getattr, "", "upper"), (np.load, "x"), (np.empty, 9))
    for call in calls:
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Runs(*call)))
        with pytest.raises(DataError, match="only arrays are allowed"):
            from_cifar(tmp_path)
    assert not mark.exists()


def test_a_pickle_cannot_ask_numpy_for_memory_or_for_objects(tmp_path: Path) -> None:
    cifar10(tmp_path, "protocol 2")
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    huge = b"\x80\x02" + empty + b"(I1000000000000\ntS'b'\ntR."
    called = b"\x80\x02cnumpy\nndarray\n(I1000000000000\ntR."
    objects = pickle.dumps({"data": np.array([{}, []], dtype=object), "labels": [0, 1]}, 2)
    array = empty + b"(I0\ntS'b'\ntR(I1\n(I9\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS'abc'\ntb"
    wrong_size = b"\x80\x02}(S'data'\n" + array + b"u."  # nine bytes declared, three there
    memo = b"\x80\x02]r\xff\xff\xff\x7f."  # C's unpickler would allocate 16 GB for this index
    changes = b"\x80\x02cnumpy\ndtype\n(N}(S'__call__'\nI1\nutb."
    for program in (huge, called, objects, wrong_size, memo, changes):
        (tmp_path / "data_batch_1").write_bytes(program)
        with pytest.raises(DataError):
            from_cifar(tmp_path)
