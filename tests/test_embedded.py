"""The images that need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.source_folders import counts, write_idx
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data
from vitc.data.sources.arrays import read_idx
from vitc.data.sources.base import Split
from vitc.data.sources.embedded import EMBEDDED, FASHION_CLASSES
from vitc.errors import ConfigError


def test_the_embedded_set_has_not_changed_and_is_exactly_balanced() -> None:
    data = open_data(DataConfig(), in_chans=1)
    assert counts(data) == {"train": [850] * 10, "val": [150] * 10, "test": [200] * 10}
    assert data.classes == FASHION_CLASSES
    pixels = data.splits["train"].pixels
    assert pixels is not None
    assert pixels.shape == (8500, 28, 28, 1)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert EMBEDDED.stat().st_size < 6e6
    assert "Zalando" in (EMBEDDED.parent / "LICENSE.fashion-mnist").read_text()
    assert data.fingerprint == "6fb61756a3cb952e203fd0c883d5aaab"
    train, val = (set(data.splits[k].names) for k in ("train", "val"))
    assert not train & val
    assert len(train) == 8500


def test_mean_and_std_are_those_of_the_training_pixels() -> None:
    data = open_data(DataConfig(), in_chans=3)
    pixels = data.splits["train"].pixels
    assert pixels is not None
    assert data.mean == pytest.approx((pixels.mean() / 255,) * 3, abs=1e-4)
    assert data.std == pytest.approx((pixels.std() / 255,) * 3, abs=1e-4)


def fashion_originals(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def test_the_build_script_is_balanced_and_reproducible_byte_for_byte(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "scripts" / "build_fashion.py"
    spec = importlib.util.spec_from_file_location("build_fashion", script)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    originals = fashion_originals(tmp_path)
    share = {"train": 3, "val": 2, "test": 4}
    arrays = build.subset(originals, share, 0)
    for split, count in share.items():
        assert np.bincount(arrays[f"{split}_labels"]).tolist() == [count] * 10
    assert not set(arrays["train_positions"].tolist()) & set(arrays["val_positions"].tolist())
    images = read_idx(originals / "train-images-idx3-ubyte.gz")
    assert (arrays["val_images"] == images[arrays["val_positions"]]).all()
    assert build.archive(arrays) == build.archive(build.subset(originals, share, 0))
    assert build.archive(arrays) != build.archive(build.subset(originals, share, 1))


def test_synthetic_images_are_the_same_everywhere_and_can_be_learned() -> None:
    data = open_data(DataConfig(source="synthetic"))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 512, "val": 128, "test": 128}
    assert data.fingerprint == "6e9b810d142d6187894a1d15afc273ab"

    def spectra(split: Split) -> NDArray[np.float64]:  # what a shift of the stripes leaves alone
        assert split.pixels is not None
        return np.abs(np.fft.rfft2(split.pixels / 255.0, axes=(1, 2))).reshape(len(split), -1)

    train, val = data.splits["train"], data.splits["val"]
    means = np.stack([spectra(train)[train.labels == k].mean(0) for k in range(10)])
    distances = np.linalg.norm(spectra(val)[:, None] - means, axis=2)
    assert (distances.argmin(1) == val.labels).mean() > 0.95


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_every_array_source_comes_in_the_channels_asked_for(in_chans: int) -> None:
    data = open_data(DataConfig(source="synthetic"), in_chans)
    for split in data.splits.values():
        assert split.pixels is not None
        assert split.pixels.shape[1:] == (32, 32, in_chans)
        assert split.pixels.dtype == np.uint8
    assert len(data.mean) == len(data.std) == in_chans


def test_a_mean_and_std_of_ones_own_are_used() -> None:
    own = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    data = open_data(DataConfig(source="synthetic", **own))
    assert {"mean": data.mean, "std": data.std} == own
    with pytest.raises(ConfigError, match="1 entries"):
        open_data(DataConfig(source="synthetic", **own), in_chans=1)
    with pytest.raises(ConfigError, match=r"in_chans 2.*1, 3 or 4"):
        open_data(DataConfig(), in_chans=2)
