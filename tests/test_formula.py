"""Images made from formulas: the same everywhere, different where they should be, and a start."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitc.cli.main import main
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data
from vitc.data.sources.formula import FormulaStore, Spec, contours, fractal, parse_spec
from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.runs.folder import Run

SPEC = Spec(classes=12, images=3, side=48, seed=5)

IN_ANOTHER_PROCESS = """
import hashlib
from vitc.data.sources.formula import FormulaStore, Spec
store = FormulaStore(Spec(*{spec}))
print(hashlib.sha256(b"".join(store.read(i).tobytes() for i in range(36))).hexdigest())
"""


def test_the_same_pixels_on_another_thread_count_and_in_any_order() -> None:
    store = FormulaStore(SPEC)
    images = {i: store.read(i) for i in reversed(range(36))}
    here = hashlib.sha256(b"".join(images[i].tobytes() for i in range(36))).hexdigest()
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS.format(spec=tuple(SPEC))]
    done = subprocess.run(
        command, env={"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == here
    assert all(image.shape == (48, 48, 3) and image.dtype == np.uint8 for image in images.values())


def test_images_seeds_and_data_sets_differ() -> None:
    own = [FormulaStore(SPEC).read(i).tobytes() for i in range(36)]
    other = [FormulaStore(SPEC._replace(seed=6)).read(i).tobytes() for i in range(36)]
    assert len({*own, *other}) == 72
    names = ("formula:classes=4,images=2", "formula:classes=4,images=3", "formula:classes=4,seed=1")
    sets = [open_data(DataConfig(source="formula", path=name)) for name in names]
    assert len({data.fingerprint for data in sets}) == 3


def test_every_drawing_can_be_seen() -> None:
    store = FormulaStore(Spec(classes=40, images=2))
    for place in range(80):
        image = store.read(place).astype(float)
        edges = np.abs(np.diff(image, axis=1)).max(axis=2) > 24  # the ramps are far smoother
        assert edges.mean() > 0.004, place


@pytest.mark.parametrize("draw", [fractal, contours])
def test_images_of_a_class_are_more_alike_than_those_of_two(draw: object) -> None:
    rng = np.random.default_rng(0)

    def picture(label: int) -> np.ndarray:
        x, y = draw(0, label, rng.random(64))  # type: ignore[operator]
        counts, *_ = np.histogram2d(x - x.mean(), y - y.mean(), bins=10, range=[[-1.5, 1.5]] * 2)
        return np.sqrt(counts / counts.sum())

    first = 0 if draw is fractal else 1
    pictures = {label: [picture(label) for _ in range(6)] for label in range(first, first + 40, 2)}
    within = [
        np.linalg.norm(a - b)
        for own in pictures.values()
        for a, b in itertools.combinations(own, 2)
    ]
    between = [
        np.linalg.norm(pictures[a][0] - pictures[b][0])
        for a, b in itertools.combinations(pictures, 2)
    ]
    assert np.mean(within) < 0.85 * np.mean(between)


def test_the_numbers_of_a_name() -> None:
    assert parse_spec("formula") == Spec()
    assert parse_spec("formula:side=96,classes=10") == Spec(classes=10, side=96)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("formula:clases=10", "'clases=10' is not a setting"),
        ("formula:classes=10,classes=11", "'classes=11' is not a setting"),
        ("formula:side=9999", "side must be 8 to 1,024"),
        ("formula:classes=1", "classes must be 2 to 100,000"),
        ("formula:classes=100000,images=1000000", "At most 10,000,000 images|are too many"),
        ("formula:images=-1", "'images=-1' is not a setting"),
        ("fractals", "'fractals' is not a setting"),
    ],
)
def test_other_names_are_refused_with_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_data(DataConfig(source="formula", path=name))


@pytest.mark.slow
def test_pretraining_gives_weights_that_training_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = str(tmp_path / "start")
    small = ["--model", "vit_r_tiny", "--train.batch", "16", "--train.precision", "fp32"]
    images = ["--data", "formula:classes=4,images=8,side=32"]
    short = ["--train.epochs", "2", "--train.device", "cpu"]
    assert main(["pretrain", "formula", *small, *images, *short, "--out", out]) == 0
    printed = capsys.readouterr()
    assert f"vitc train PHOTOS --init {out}" in printed.out
    assert "time: " in printed.err
    assert Run(Path(out)).status == "done"
    config = load_config(
        "debug", model="vit_r_tiny", init=out, **{"train.epochs": 1, "train.device": "cpu"}
    )
    from vitc.training.loop import run

    assert run(config, tmp_path / "fine").status == "done"
    assert "the head is fresh" in (tmp_path / "fine" / "events.log").read_text()


def test_only_what_pretrains_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "debug"]) == 2
    assert "Known: formula" in capsys.readouterr().err
