"""A class of the user's own as a source of images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.source_folders import counts, plant
from vitc.data.dataset import open_data
from vitc.data.sources import SOURCES
from vitc.errors import BrokenFileError, ConfigError, VitcError
from vitc.resolve import load_config

CUSTOM = """
import numpy as np
print("imported", flush=True)

class Stripes:
    classes = ("flat", "bright")

    def __init__(self, count=20, height=6):
        self.labels = {"train": [i % 2 for i in range(count)], "val": [0, 1]}
        self.height = height

    def read(self, split, index):
        if index == 13:
            raise OSError("scratched")
        if index == 15:
            return np.zeros((4, 4), np.uint8)
        value = 200 * self.labels[split][index] + index
        return np.full((self.height, 5, 3), value, np.uint8)
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VITC_TRUSTED", "")
    (tmp_path / "mine.py").write_text(CUSTOM)
    return tmp_path / "mine.py"


def test_a_custom_class_is_a_source(custom: Path) -> None:
    config = load_config("debug", data=f"{custom}:Stripes(height=7)")
    assert config.data.source == "custom"
    assert config.data.path_sha256 == hashlib.sha256(CUSTOM.encode()).hexdigest()
    data = open_data(config.data)
    assert data.classes == ("flat", "bright")
    assert counts(data) == {"train": [10, 10], "val": [1, 1]}
    split = pickle.loads(pickle.dumps(data.splits["train"]))
    assert split.read(3, 3).shape == (7, 5, 3)
    assert split.read(3, 3)[0, 0].tolist() == [203, 203, 203]
    assert split.names[3] == "train/3"
    with pytest.raises(BrokenFileError, match="'train/13' cannot be read: OSError: scratched"):
        split.read(13, 3)
    with pytest.raises(BrokenFileError, match=r"'train/15' is a ndarray uint8 \(4, 4\)"):
        split.read(15, 3)
    assert data.splits["val"].read(1, 1).shape == (7, 5, 1)
    custom.write_text(CUSTOM + "\nraise AssertionError('imported')\n")
    with pytest.raises(ConfigError, match="has changed since it was named"):
        open_data(config.data)


def test_a_custom_class_can_be_named_by_its_module(
    custom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mine_{custom.parent.name}".replace("-", "_")
    custom.rename(custom.parent / f"{name}.py")
    monkeypatch.syspath_prepend(str(custom.parent))
    data = open_data(load_config("debug", data=f"{name}:Stripes").data)
    assert len(data.splits["train"]) == 20
    with pytest.raises(ConfigError, match="There is no module 'mine_gone'"):
        load_config("debug", data="mine_gone:Stripes")


def test_every_process_makes_its_own_object(custom: Path) -> None:
    config = load_config("debug", data=f"{custom}:Stripes").data
    store: Any = open_data(config).splits["train"].store
    first = store._made
    store.read(0)
    assert store._made is first
    store._process = -1  # as after a fork
    store.read(0)
    assert store._made is not first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class Stripes", "class Other", "no class 'Stripes'"),
        ("def read", "def get", "has no read"),
        ("classes =", "kinds =", "has no classes"),
        ('"bright")', '"flat")', "different strings"),
        ("i % 2 for", "5 for", "outside 0"),
        ("i % 2 for", "0 for", "no training image of 'bright'"),
        ("i % 2 for", "[0, 1] for", "not a list of integers"),
        ('"val"', '"extra"', "the splits"),
        ("import numpy", "import nothing_such", "imported: line 2: ModuleNotFoundError"),
        ("self.height = height", "1 / 0", "cannot be built: line 10: ZeroDivisionError"),
        ("class", "cla$$", "invalid Python"),
        ('("flat", "bright")', "2", "has the classes 2, which is no list"),
        ('("flat", "bright")', '"ab"', "has the classes 'ab', which is no list"),
        ("self.labels =", "self.labels = [0, 1] #", "labels that are a list"),
        ("i % 2 for i in range(count)", "[0], [0, 1]", "not a list of integers"),
        ("self.height =", 'self.names = ["ab"] * 20; self.height =', "names that are a list"),
        ("self.height =", 'self.names = {"train": 3}; self.height =', "names 3, which is no list"),
        (
            "self.height =",
            'self.names = {"train": ["a"]}; self.height =',
            "20 train labels and 1",
        ),
    ],
)
def test_invalid_custom_classes_are_refused(custom: Path, old: str, new: str, message: str) -> None:
    custom.write_text(CUSTOM.replace(old, new, 1))
    with pytest.raises(VitcError, match=message):
        open_data(load_config("debug", data=f"{custom}:Stripes").data)


def test_names_of_none_are_as_without_them(custom: Path) -> None:
    custom.write_text(CUSTOM.replace("self.height =", "self.names = None; self.height =", 1))
    data = open_data(load_config("debug", data=f"{custom}:Stripes").data)
    assert data.splits["train"].names[3] == "train/3"


def test_the_example_of_the_page_on_sources_is_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VITC_TRUSTED", "")
    page = (Path(__file__).parents[1] / "docs" / "sources.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "scans.py").write_text(code)
    for kind in ("healthy", "ill"):
        plant(tmp_path / "scans", {kind: 4})
    data = open_data(
        load_config("debug", data=f"{tmp_path}/scans.py:Scans(root='{tmp_path}/scans')").data
    )
    assert counts(data)["train"] == [2, 2]
    assert data.splits["train"].read(0, 3).shape == (3, 4, 3)


def test_a_config_that_calls_it_outside_as_earlier_versions_did_is_read(
    custom: Path, tmp_path: Path
) -> None:
    now = load_config("debug", data=f"{custom}:Stripes").data
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"data": {**dataclasses.asdict(now), "source": "outside"}}))
    before = load_config(file).data
    assert before == now
    assert SOURCES[now.source].origin == "outside"  # so that its fingerprint is as it was
