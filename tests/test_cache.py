"""Are cached pixels those of the files, written once, and do without when they cannot be kept?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitc.data import cache
from vitc.data.cache import Shrunk, training_split
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.loader import open_train
from vitc.data.sampling import BatchPlan
from vitc.data.shrink import shrunk
from vitc.data.sources.base import Split
from vitc.errors import BrokenFileError

PLAN = BatchPlan(batch=4, micro=4, seed_order=0, seed_augment=0, size=(16, 16), in_chans=3, depth=0)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            shape = (60 + 3 * i, 90 - 2 * i, 3)
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def config_of(folder: Path, **settings: Any) -> DataConfig:
    values = {"cache_side": 24, "workers": 0, **settings}
    augment = AugmentConfig(crop="random_resized")
    return DataConfig(source="folder", path=str(folder), augment=augment, **values)


def kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "vitc" / "pixels").glob("*.vitc"))


def read_all(data: DataSet, config: DataConfig) -> tuple[list[np.ndarray], str]:
    split, note = training_split(data, config, 3)
    return [split.read(i, 3) for i in range(len(split))], note


def test_pixels_are_those_of_the_shrunk_files_and_written_once(photos: Path) -> None:
    config = config_of(photos)
    data = open_data(config)
    files = data.splits["train"]
    found, note = read_all(data, config)
    for i, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, shrunk(files.read(i, 3), 3, "", 24))
        assert min(pixels.shape[:2]) == 24
    (file,) = kept(photos)
    assert str(file) in note
    before = file.stat().st_mtime_ns
    again, _ = read_all(open_data(config), config)
    assert file.stat().st_mtime_ns == before
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a, b)


def batches(data: DataSet, config: DataConfig) -> list[torch.Tensor]:
    with open_train(data, config, PLAN, torch.device("cpu"), 0, 5) as loader:
        return [micro.images.clone() for micros in loader for micro in micros]


def test_batches_are_the_same_with_the_cache_without_it_and_from_loader_processes(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (200, 220, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / "cat" / f"large{i}.jpg")
    config = config_of(photos, cache_decode="scaled")
    data = open_data(config)
    cached = batches(data, config)
    served = batches(data, config_of(photos, workers=2, cache_decode="scaled"))
    shutil.rmtree(photos.parent / "cache")
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: full)
    assert "decoded in every epoch" in training_split(data, config, 3)[1]
    without = batches(data, config)
    assert kept(photos) == []
    for a, b, c in zip(cached, served, without, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_other_images_sizes_and_channels_have_files_of_their_own(photos: Path) -> None:
    for config, channels in ((config_of(photos), 3), (config_of(photos, cache_side=20), 3)):
        training_split(open_data(config, channels), config, channels)
    assert len(kept(photos)) == 2
    Image.new("RGB", (70, 50), "red").save(photos / "cat" / "0.png")  # another picture, same name
    config = config_of(photos)
    found, _ = read_all(open_data(config), config)
    assert len(kept(photos)) == 3
    data = open_data(config)
    for i, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, shrunk(data.splits["train"].read(i, 3), 3, "", 24))


def test_large_jpegs_are_decoded_at_a_fraction_and_look_the_same(photos: Path) -> None:
    rng = np.random.default_rng(1)
    for i, turn in enumerate((1, 6)):
        blocks = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = turn
        picture = Image.fromarray(blocks).resize((405, 303), Image.Resampling.BICUBIC)
        picture.save(photos / "cat" / f"large{i}.jpg", quality=95, exif=exif)
    full, scaled = config_of(photos), config_of(photos, cache_decode="scaled")
    data = open_data(full)
    names = data.splits["train"].names
    found, _ = read_all(data, full)
    fast, _ = read_all(data, scaled)
    assert len(kept(photos)) == 2
    large = 0
    for name, a, b in zip(names, found, fast, strict=True):
        assert a.shape == b.shape
        far = np.abs(a.astype(int) - b.astype(int))
        large += "large" in name
        assert 0 < far.mean() < 3 if "large" in name else far.max() == 0
    assert large
    for a, b in zip(batches(data, scaled), batches(data, scaled), strict=True):
        assert torch.equal(a, b)


def undivided(photos: Path, workers: int) -> tuple[DataConfig, Split]:
    """All photos, to train on."""
    config = config_of(photos, val_fraction=0.0, test_fraction=0.0, workers=workers)
    return config, open_data(config).splits["train"]


def test_decoding_is_timed_over_a_second_at_most_and_without_the_first(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, train = undivided(photos, workers=1)
    now = [0.0]
    took = iter([10.0, *[0.4] * 50])
    monkeypatch.setattr(cache, "shrunk", lambda *_: now.__setitem__(0, now[0] + next(took)))
    assert cache.decoding_seconds(train, config, 3, lambda: now[0]) == pytest.approx(0.4)
    assert now[0] == pytest.approx(11.2)
    never = config_of(photos, cache_side=None)
    assert cache.decoding_seconds(train, never, 3) == 0


def test_several_processes_decode_sooner_with_no_less_processor_time(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, train = undivided(photos, workers=4)
    now = [0.0]
    monkeypatch.setattr(cache, "shrunk", lambda *_: now.__setitem__(0, now[0] + 0.4))
    assert cache.decoding_seconds(train, config, 3, lambda: now[0]) == pytest.approx(0.1)
    monkeypatch.setattr(cache, "processor_seconds", clock := lambda: now[0])
    assert cache.decoding_seconds(train, config, 3, clock) == pytest.approx(0.4)


def test_a_damaged_file_is_written_again(photos: Path) -> None:
    config = config_of(photos)
    found, _ = read_all(open_data(config), config)
    (file,) = kept(photos)
    file.write_bytes(file.read_bytes()[:-7])
    again, note = read_all(open_data(config), config)
    assert str(file) in note
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_broken_image_is_met_where_it_would_be_without_the_cache(photos: Path) -> None:
    config = config_of(photos, val_fraction=0.1, test_fraction=0.0)
    names = open_data(config).splits["train"].names
    broken = 5
    (photos / names[broken]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = open_data(config)
    split, _ = training_split(data, config, 3)
    assert isinstance(split.store, Shrunk)
    with pytest.raises(BrokenFileError):
        split.read(broken, 3)
    for i in set(range(len(split))) - {broken}:
        expected = shrunk(data.splits["train"].read(i, 3), 3, "", 24)
        np.testing.assert_array_equal(split.read(i, 3), expected)


def test_without_the_setting_and_for_pixels_nothing_is_cached(photos: Path) -> None:
    config = config_of(photos, cache_side=None)
    data = open_data(config)
    assert training_split(data, config, 3) == (data.splits["train"], "")
    fashion = DataConfig(cache_side=8)
    data = open_data(fashion, 1)
    assert training_split(data, fashion, 1) == (data.splits["train"], "")
    assert kept(photos) == []
