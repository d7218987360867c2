"""The splits, channels and fingerprint that a run gets from any source."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.source_folders import PNG, counts, notes, opened, plant, refusal
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data
from vitc.data.store import Files
from vitc.errors import ConfigError


def burst(root: Path, classes: int = 3, bursts: int = 12, frames: int = 5) -> Path:
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for b in range(bursts):
            for f in range(1 + (b + 2 * c) % frames):
                (root / f"class{c}" / f"p{c}{b:02d}_{f}.png").write_bytes(PNG)
    return root


def test_groups_stay_on_one_side_and_classes_stay_in_proportion(tmp_path: Path) -> None:
    data = opened(burst(tmp_path), group=r"(p\d+)_")
    side = {}
    for name, split in data.splits.items():
        for path in split.names:
            assert side.setdefault(path.split("/")[1].split("_")[0], name) == name
    totals = np.sum([counts(data)[k] for k in data.splits], axis=0)
    for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert np.abs(np.array(counts(data)[name]) / totals - share).max() < 0.08
    assert "by the groups of data.group" in notes(data)
    whole_match = opened(tmp_path, group=r"p\d+")
    assert whole_match.splits["val"].names == data.splits["val"].names


def test_two_groups_of_each_class_train_and_validate(tmp_path: Path) -> None:
    data = opened(burst(tmp_path, bursts=2), group=r"(p\d+)_")
    assert all(counts(data)["train"])
    assert all(counts(data)["val"])
    assert "test" not in data.splits
    assert "Too few groups to be in the test" in notes(data)


def test_groups_that_tie_the_classes_together_are_refused(tmp_path: Path) -> None:
    """Three patients, each with images of two of the classes: two are needed for every class."""
    for name in ("a/p1_1", "b/p1_2", "a/p2_1", "c/p2_2", "b/p3_1", "c/p3_2"):
        plant(tmp_path, {name.split("/")[0]: 0})
        (tmp_path / f"{name}.png").write_bytes(PNG)
    assert "connect the classes" in refusal(tmp_path, group=r"(p\d)_")


def test_groups_across_the_folders_own_splits_are_a_loud_leak(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for c in "ab":
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(3):
                (tmp_path / split / c / f"p{i if c == 'a' else split}_1.png").write_bytes(b"x")
    assert "LEAK: 3 groups of data.group in both train and val: '0', '1', '2'." in notes(
        opened(tmp_path, group=r"p(\d)")
    )


def test_groups_that_are_wrong_match_nothing_or_are_a_class_are_refused(tmp_path: Path) -> None:
    burst(tmp_path)
    with pytest.raises(ConfigError, match="not a regular expression"):
        opened(tmp_path, group="(")
    assert "does not match any file name, e.g. 'class0/p000_0.png'" in refusal(
        tmp_path, ConfigError, group="patient"
    )
    plant(tmp_path, {"class9/p999_": 5})
    assert "1 class with one group only: 'class9'" in refusal(tmp_path, group=r"(p\d+)_")


def test_images_outside_any_group_are_counted_and_are_groups_of_their_own(tmp_path: Path) -> None:
    plant(burst(tmp_path), {"class0/x": 4})
    assert "data.group does not match 4 train images" in notes(opened(tmp_path, group=r"(p\d+)_"))


def test_max_train_takes_a_balanced_subset_of_training_only() -> None:
    data = open_data(DataConfig(max_train=200), in_chans=1)
    assert counts(data) == {"train": [20] * 10, "val": [150] * 10, "test": [200] * 10}
    assert "200 of 8,500 training images are used" in notes(data)
    assert "has no effect" in notes(open_data(DataConfig(max_train=9000), in_chans=1))
    with pytest.raises(ConfigError, match="max_train 9 is less than one image"):
        open_data(DataConfig(max_train=9))


def test_max_val_takes_a_sample_of_validation_only() -> None:
    data = open_data(DataConfig(max_val=200), in_chans=1)
    assert counts(data) == {"train": [850] * 10, "val": [20] * 10, "test": [200] * 10}
    assert "200 of 1,500 validation images are used (data.max_val), each class by its share" in (
        notes(data)
    )
    assert "data.max_val 1,500 has no effect" in notes(open_data(DataConfig(max_val=1500)))
    assert DataConfig(max_val=0).problems() == ["data.max_val 0 must be at least 1."]


def test_the_fingerprint_depends_on_images_names_classes_and_splits_alone(tmp_path: Path) -> None:
    plant(tmp_path / "x", {"a": 9, "b": 9})
    first = opened(tmp_path / "x").fingerprint
    assert opened(plant(tmp_path / "y", {"a": 9, "b": 9})).fingerprint == first  # elsewhere
    assert opened(tmp_path / "x", split_seed=1).fingerprint != first
    assert opened(tmp_path / "x", max_train=4).fingerprint != first
    (tmp_path / "x" / "a" / "000.png").rename(tmp_path / "x" / "a" / "0.png")
    assert opened(tmp_path / "x").fingerprint != first
    (tmp_path / "y" / "a" / "000.png").write_bytes(PNG + b"1234")
    assert opened(tmp_path / "y").fingerprint != first
    config = DataConfig(source="synthetic")
    assert open_data(config, 1).fingerprint == open_data(config, 4).fingerprint


def test_a_million_paths_stay_names_until_asked_for(tmp_path: Path) -> None:
    store = opened(plant(tmp_path, {"a": 9, "b": 9})).splits["train"].store
    assert isinstance(store, Files)
    assert store.path(0) == tmp_path / "a" / "000.png"
    assert len(pickle.dumps(store)) < 2000


def test_opening_checking_and_sampling_need_no_torch() -> None:
    code = (
        "import sys, vitc.data.check, vitc.data.sampling; from vitc.data.config import DataConfig;"
        "from vitc.data.dataset import open_data;"
        "open_data(DataConfig()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
