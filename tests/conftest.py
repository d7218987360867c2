"""What many tests share: tiny configs and folders of small images."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # bit-equality between processes, and quick tests on small machines


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_collection_finish() -> None:
    """Garbage is collected after each module alone; as it comes, it took a tenth of the time."""
    gc.collect()
    gc.freeze()  # what was imported is here for good
    gc.disable()


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    yield
    gc.collect()


_homes = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes what the person who runs it trusts, module fixtures included."""
    home = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home))
        patch.setenv("VITC_TRUSTED", "")
        yield home


@pytest.fixture(autouse=True)
def nothing_trusted(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is another user, who has named no custom class yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state_home / f"user_{next(_homes)}"))
    monkeypatch.setenv("VITC_TRUSTED", "")


@pytest.fixture(autouse=True)
def nothing_pretrained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed here does not decide what `vitc train IMAGES` does in a test."""
    if "real_weights" not in request.keywords:
        from vitc.weights import catalog

        monkeypatch.setattr(catalog, "CATALOG", ())
        monkeypatch.setattr(catalog, "FORMULA", ())


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs of each model are counted for its first report alone."""
    from vitc.study import results

    def cost_of(group: Any, classes: int) -> Any:
        key = repr(group.config.model), classes
        if key not in _costs:
            _costs[key] = count(group, classes)
        return _costs[key]

    count = results.cost_of
    for measure in ("draws", "peak"):
        monkeypatch.setattr(f"vitc.study.measures.{measure}.cost_of", cost_of)


@pytest.fixture
def undrawn(counted_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without their figures, each model counted once: both take most of their time."""
    monkeypatch.setattr("vitc.views.figures.save", lambda chart, folder: (None, "<svg/>"))


_costs: dict[tuple[str, int], Any] = {}


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of JPEGs, `classes` sub-folders of `count` images; learnable by colour."""

    def make(
        classes: int = 3, count: int = 12, name: str = "photos", size: tuple[int, int] = (60, 48)
    ) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / name
        for c in range(classes):
            folder = root / f"class_{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
                pixels[..., c % 3] += np.uint8(120)
                Image.fromarray(pixels).save(folder / f"{i:03d}.jpg", quality=90)
        return root

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model, with EMA weights that differ from the raw ones. Read-only."""
    from vitc.config import RunConfig
    from vitc.resolve import load_config
    from vitc.training.loop import run

    config = load_config(
        RunConfig(name="mine"),
        model="vit_c_tiny",
        data="synthetic",
        optim={"lr": 1e-3, "ema": {"horizon": 0.5}},
        train={"epochs": 1, "batch": 128, "threads": 1},
        **{"model.img_size": 32, "data.workers": 0},
    )
    out = tmp_path_factory.mktemp("secret_home") / "run"
    assert run(config, out, quiet=True).status == "done"
    return out
