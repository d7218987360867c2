"""What every source of images keeps, a new one too: add its builder to BUILDERS."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.source_folders import png
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data
from vitc.data.decode import read_image
from vitc.data.pack import PackOptions, pack
from vitc.data.sources import SOURCES, guess_source
from vitc.data.sources.base import Found, Source, Split, by_label
from vitc.data.store import Names, Stored
from vitc.errors import ConfigError, DataError
from vitc.machine import install_line
from vitc.resolve import load_config

CLASSES, IMAGES = ("cat", "dog"), 12


# -- a source of one class: what a person writes who adds one --------------------------------------


class Toy(Source):
    """A JSON file of [class, hexadecimal bytes of an image file] pairs."""

    kind = origin = "toy"
    title = "toy images"
    path = "a toy file: --data.path FILE.toy"
    suffixes = (".toy",)

    def read(self, config: DataConfig) -> Found:
        try:
            pairs = json.loads(Path(str(config.path)).read_text())
            labels = np.array([CLASSES.index(name) for name, _ in pairs], np.int64)
            store = ToyStore([bytes.fromhex(text) for _, text in pairs])
        except FileNotFoundError as e:
            raise ConfigError(f"There is no file {config.path}.") from e
        except ValueError as e:
            raise DataError(f"{config.path} cannot be read: {e}.") from e
        names = [f"image {i}" for i in range(len(labels))]
        sizes = np.array([len(image) for image in store.images], np.int64)
        images = Split(labels, names, store=store, sizes=sizes)
        return by_label(str(config.path), images, CLASSES, np.zeros(len(labels), np.int64))


class ToyStore:
    def __init__(self, images: list[bytes]) -> None:
        self.images = images

    def read(self, place: int) -> Stored:
        return self.images[place]


# -- a small data set of each kind -----------------------------------------------------------------


def toy(root: Path) -> str:
    pairs = [(CLASSES[i % 2], png(i).hex()) for i in range(IMAGES)]
    (root / "set.toy").write_text(json.dumps(pairs))
    return str(root / "set.toy")


def folder(root: Path) -> str:
    for i in range(IMAGES):
        (root / "set" / CLASSES[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "set" / CLASSES[i % 2] / f"{i:02d}.png").write_bytes(png(i))
    return str(root / "set")


def tar(root: Path) -> str:
    with tarfile.open(root / "set.tar", "w") as f:
        for i in range(IMAGES):
            for suffix, content in ((".png", png(i)), (".cls", CLASSES[i % 2].encode())):
                info = tarfile.TarInfo(f"{i:02d}{suffix}")
                info.size = len(content)
                f.addfile(info, io.BytesIO(content))
    return str(root / "set.tar")


def listed(root: Path) -> str:
    folder(root)
    rows = [f"set/{CLASSES[i % 2]}/{i:02d}.png,{CLASSES[i % 2]}" for i in range(IMAGES)]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]))
    return str(root / "list.csv")


def parquet(root: Path) -> str:
    arrow = pytest.importorskip("pyarrow", reason="parquet is NOT tested without pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    images, labels = [png(i) for i in range(IMAGES)], [CLASSES[i % 2] for i in range(IMAGES)]
    tables.write_table(arrow.table({"image": images, "label": labels}), root / "set.parquet")
    return str(root / "set.parquet")


def packed(root: Path) -> str:
    config = DataConfig(source="folder", path=folder(root))
    pack(config, root / "set.vitc", PackOptions(), workers=1)
    return str(root / "set.vitc")


def idx(root: Path) -> str:
    (root / "set").mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = np.arange(IMAGES, dtype=np.uint8) % 2
        images = rng.integers(0, 256, (IMAGES, 6, 5), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            (root / "set" / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
    return str(root / "set")


def cifar(root: Path, batches: dict[str, int], label_bytes: int) -> str:
    (root / "set").mkdir()
    for seed, (name, count) in enumerate(batches.items()):
        rows = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % (10 if label_bytes == 1 else 100)
        records = np.column_stack([*[labels] * label_bytes, rows])
        (root / "set" / f"{name}.bin").write_bytes(records.tobytes())
    return str(root / "set")


def cifar10(root: Path) -> str:
    return cifar(root, {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 10}, 1)


def cifar100(root: Path) -> str:
    return cifar(root, {"train": 200, "test": 100}, 2)


def custom(root: Path) -> str:
    (root / "mine.py").write_text(
        "import numpy as np\n"
        "class Mine:\n"
        f"    classes = {CLASSES}\n"
        f"    labels = {{'train': [i % 2 for i in range({IMAGES})]}}\n"
        "    def read(self, split, index):\n"
        "        return np.full((4, 5, 3), 20 * index, np.uint8)\n"
    )
    return f"{root / 'mine.py'}:Mine"


BUILDERS: dict[str, Callable[[Path], str] | None] = {
    "fashion": None,  # without a path
    "synthetic": None,
    "formula": lambda _: "formula:classes=4,images=5,side=16",
    "packed": packed,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "idx": idx,
    "parquet": parquet,
    "tar": tar,
    "list": listed,
    "custom": custom,
    "folder": folder,
    "toy": toy,
}
WITH_PATH = [kind for kind, build in BUILDERS.items() if build is not None]
FILES = [kind for kind in WITH_PATH if kind not in ("custom", "formula")]


@pytest.fixture(autouse=True)
def _a_toy_source_and_an_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "toy", Toy())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(kind: str, root: Path) -> DataConfig:
    """The config of a small data set of this kind, as a user gets it."""
    build = BUILDERS[kind]
    if build is None:
        return load_config("debug", data=kind).data
    root.mkdir(parents=True, exist_ok=True)
    return load_config("debug", data=build(root)).data


def test_every_source_is_tested_here() -> None:
    assert set(BUILDERS) == set(SOURCES)
    assert all(kind == source.kind for kind, source in SOURCES.items())
    assert len({source.origin for source in SOURCES.values()}) == len(SOURCES)


# -- what each one keeps ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILDERS)
def test_splits_labels_and_names_belong_together(kind: str, tmp_path: Path) -> None:
    config = made(kind, tmp_path)
    data = open_data(config)
    assert config.source == data.source == kind
    assert list(data.splits) == [s for s in ("train", "val", "test") if s in data.splits]
    assert len(data.classes) == len(set(data.classes)) >= 2
    assert set(data.splits["train"].labels.tolist()) == set(range(len(data.classes)))
    names = [name for split in data.splits.values() for name in split.names]
    assert len(names) == len(set(names))
    for split in data.splits.values():
        assert len(split) == len(split.names) == len(split.labels) > 0
        assert split.labels.dtype == np.int64
        assert set(split.labels.tolist()) <= set(range(len(data.classes)))


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_image_is_the_same_in_another_process(kind: str, tmp_path: Path) -> None:
    for split in open_data(made(kind, tmp_path)).splits.values():
        assert isinstance(split.names, Names | list)
        other = pickle.loads(pickle.dumps(split))
        for i in (0, len(split) - 1):
            pixels, stored = split.read(i, 3), split.stored(i)
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            assert (other.read(i, 3) == pixels).all()
            if isinstance(stored, bytes):
                assert (read_image(stored, 3, "x") == pixels).all()
        last = split.take(np.array([len(split) - 1]))
        assert last.names[0] == split.names[len(split) - 1]
        assert (last.read(0, 3) == split.read(len(split) - 1, 3)).all()


@pytest.mark.parametrize("kind", BUILDERS)
def test_fingerprint_names_and_splits_depend_neither_on_the_place_nor_on_the_order_of_listing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_data(made(kind, tmp_path / "a"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", backwards(os.listdir))
        patch.setattr(os, "scandir", backwards_scan(os.scandir))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        second = open_data(made(kind, tmp_path / "b"))
    assert second.fingerprint == first.fingerprint
    assert second.classes == first.classes
    for name, split in first.splits.items():
        assert list(second.splits[name].names) == list(split.names)
        assert second.splits[name].labels.tolist() == split.labels.tolist()


def backwards(listdir: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda *args: sorted(listdir(*args), reverse=True)


def backwards_scan(scandir: Callable[..., Any]) -> Callable[..., Any]:
    @contextlib.contextmanager
    def scan(*args: Any) -> Iterator[Iterator[Any]]:
        with scandir(*args) as entries:
            yield iter(sorted(entries, key=lambda e: e.name, reverse=True))

    return scan


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_fingerprint_does_not_follow_the_name_of_the_source(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(kind, tmp_path)
    before = open_data(config).fingerprint
    renamed = type("Renamed", (type(SOURCES[kind]),), {"kind": "renamed"})()
    monkeypatch.setitem(SOURCES, "renamed", renamed)
    values = {**vars(config), "source": "renamed"}
    assert open_data(DataConfig(**values)).fingerprint == before


@pytest.mark.parametrize("kind", WITH_PATH)
def test_its_path_is_needed_and_is_recognised(kind: str, tmp_path: Path) -> None:
    config = made(kind, tmp_path)
    assert SOURCES[kind].matches(str(config.path))
    assert guess_source(str(config.path)) == kind
    with pytest.raises(ConfigError, match=rf"'{kind}' needs .*--data\.path"):
        open_data(DataConfig(source=kind))


@pytest.mark.parametrize("kind", [k for k in BUILDERS if k not in WITH_PATH])
def test_a_source_without_a_path_refuses_one(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.path has no effect"):
        open_data(DataConfig(source=kind, path="x"))


@pytest.mark.parametrize("kind", FILES)
def test_a_path_to_nothing_is_a_config_error_that_names_it(kind: str, tmp_path: Path) -> None:
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("parquet is NOT tested without pyarrow")
    suffix = SOURCES[kind].suffixes[0] if SOURCES[kind].suffixes else ""
    gone = str(tmp_path / "none" / f"gone{suffix}")
    with pytest.raises(ConfigError, match="none"):
        open_data(DataConfig(source=kind, path=gone))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("damage", ["empty", "cut off", "garbled", "of another format"])
def test_damaged_data_is_refused_when_opened_or_when_read(
    kind: str, damage: str, tmp_path: Path
) -> None:
    config = made(kind, tmp_path)
    whole = Path(str(config.path))
    for file in [whole] if whole.is_file() else sorted(p for p in whole.rglob("*") if p.is_file()):
        content = file.read_bytes()
        new = {
            "empty": b"",
            "cut off": content[: len(content) // 2 + 7],
            "garbled": bytes(b ^ 0x5A for b in content),
            "of another format": b"%PDF-1.7\n" + content,
        }
        file.write_bytes(new[damage])

    def read_all() -> None:
        for split in open_data(config).splits.values():
            for i in range(len(split)):
                split.read(i, 3)

    with pytest.raises((DataError, ConfigError)):
        read_all()


@pytest.mark.parametrize("kind", ["packed", "parquet", "tar", "list", "toy"])
def test_a_file_of_another_suffix_is_not_taken_for_it(kind: str, tmp_path: Path) -> None:
    path = Path(str(made(kind, tmp_path).path))
    assert guess_source(path) == kind
    other = path.with_suffix(".bin")
    path.rename(other)
    with pytest.raises(ConfigError, match="not in a format"):
        guess_source(other)


def test_a_source_that_is_unknown_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'foldr' is unknown.*Did you mean 'folder'"):
        open_data(DataConfig(source="foldr", path="x"))


def test_without_pyarrow_the_way_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return really(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="needs pyarrow") as error:
        open_data(DataConfig(source="parquet", path=str(tmp_path / "x.parquet")))
    assert error.value.hint == f"Install it with: {install_line('data')}"
