"""The race: which images its entries get, and with which settings another checkout runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import race
from vitc.data.split_words import SPLITS


def folder_of(place: Path, *classes: str, count: int = 20) -> Path:
    for name in classes:
        (place / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(place / name / f"{i:02}.png")
    return place


def drawn(place: Path) -> dict[str, set[str]]:
    """Split/class -> the files that its links lead to, as split/name of the folder given."""
    found: dict[str, set[str]] = {}
    for link in place.glob("*/*/*"):
        key = link.parent.relative_to(place).as_posix()
        found.setdefault(key, set()).add("/".join(link.resolve().parts[-3:]))
    return found


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({"train": "train"}, {"train": 14, "val": 3, "test": 3}),
        ({"train": "train", "test": "test"}, {"train": 17, "val": 3, "test": 20}),
        ({"train": "Training", "val": "valid"}, {"train": 17, "val": 20, "test": 3}),
        ({"train": "train", "val": "dev", "test": "Test-Set"}, dict.fromkeys(SPLITS, 20)),
    ],
)
def test_splits_that_a_folder_lacks_are_drawn_from_its_training_images(
    given: dict[str, str], counts: dict[str, int], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "x", *(f"{n}/{c}" for n in given.values() for c in "ab"))
    found = drawn(race.prepared(folder, tmp_path / "once"))
    assert {k: len(v) for k, v in found.items()} == {
        f"{split}/{c}": n for split, n in counts.items() for c in "ab"
    }
    for c in "ab":
        for split in SPLITS:
            source = given.get(split, given["train"])
            assert {name.rpartition("/")[0] for name in found[f"{split}/{c}"]} == {f"{source}/{c}"}
        files = [name for split in SPLITS for name in found[f"{split}/{c}"]]
        assert len(files) == len(set(files)) == 20 * len(given)
    assert drawn(race.prepared(folder, tmp_path / "again")) == found


def test_a_folder_of_classes_is_divided(tmp_path: Path) -> None:
    found = drawn(race.prepared(folder_of(tmp_path / "x", "a", "b"), tmp_path / "out"))
    assert {k: len(v) for k, v in found.items()} == {
        f"{split}/{c}": n for split, n in (("train", 14), ("val", 3), ("test", 3)) for c in "ab"
    }


@pytest.mark.parametrize("names", [("val/a", "val/b", "test/a", "test/b"), ("train", "test")])
def test_splits_without_classes_to_train_on_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"Expected FOLDER/<class>/\*.jpg, or FOLDER/train/"):
        race.prepared(folder_of(tmp_path / "x", *names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- another checkout ------------------------------------------------------------------------------


def checkout(place: Path, *settings: str) -> Path:
    (place / "vitc").mkdir(parents=True)
    (place / "vitc" / "__init__.py").touch()
    text = f"def all_leaf_types():\n    return dict.fromkeys({settings!r})\n"
    (place / "vitc" / "config.py").write_text(text)
    return place


@pytest.mark.parametrize("clock", [True, False])
def test_another_checkout_gets_the_settings_that_it_has(
    clock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ("train.clock",) if clock else ()
    old = checkout(tmp_path / "old", "optim.lr", "model.img_size", *known)
    calls: list[Any] = []

    def run_vitc(root: Path, folder: Path, seconds: float, seed: int, extra: list[str]) -> Any:
        calls.append((root, extra))
        return {"val": 50.0, "test": 50.0, "n_test": 10, "note": "a model"}

    monkeypatch.setattr(race, "run_vitc", run_vitc)
    given = ["--start", "scratch", "--model.img_size", "32", "48", "--new.one", "1", "--optim.lr=2"]
    args = argparse.Namespace(
        folder=folder_of(tmp_path / "x", "a", "b"), entries=["vitc", f"old={old}"], vitc=given
    )
    args.seconds, args.seeds, args.seed, args.out = 60.0, 1, 0, None
    race.race(args)
    ours = ["--train.clock", "processor", "--start", "scratch", *given]
    theirs = ["--start", "scratch", "--model.img_size", "32", "48", "--optim.lr=2"]
    theirs = [*(("--train.clock", "processor") if clock else ()), *theirs]
    assert calls == [(Path(race.__file__).parents[1], ours), (old, theirs)]
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("; a model")
    assert second.endswith(
        "; a model, without --new.one"
        if clock
        else "; a model, without --train.clock, --new.one: its budget is wall time, "
        "not processor time"
    )
