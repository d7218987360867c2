"""Damaged files of every kind: what Pillow's strict reading refuses is refused by name and counted
by decoder, loader and data doctor; everything else is read; nothing crashes or hangs."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.batches import plan
from tests.mutants import WAYS, Mutant, encoded, mutants, photo
from vitc.data.broken import MAX_PIXELS
from vitc.data.check import check
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import DataSet
from vitc.data.decode import read_image
from vitc.data.loader import open_eval, open_train
from vitc.data.sources.base import Split
from vitc.data.store import Files
from vitc.errors import BrokenFileError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF")
SECONDS = 5.0  # for one file, however slow the machine; they take milliseconds
NEVER_LISTED = ("folder.jpg", "gone.jpg")  # no images in a folder; the check reports them


def pillow_reads(file: Path) -> bool:
    """Pillow's strict verdict: checksums verified, and all of the first frame's pixels there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return False
                image.verify()
            with Image.open(file, formats=FORMATS) as image:
                image.load()
        except Exception:
            return False
    return True


def vitc_reads(file: Path) -> bool:
    try:
        pixels = read_image(file, 3, file.name)
    except BrokenFileError as error:
        assert repr(file.name) in error.message  # noqa: PT017
        return False
    assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
    return True


def written(files: Sequence[Mutant], folder: Path) -> list[Path]:
    """The files, in two classes, and beside them what only a file system can do."""
    paths = []
    for i, mutant in enumerate(files):
        path = folder / f"class{i % 2}" / mutant.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutant.data)
        paths.append(path)
    special = folder / "class0"
    (special / "folder.jpg").mkdir()
    (special / "gone.jpg").symlink_to(folder / "nothing")
    (special / "locked.jpg").write_bytes(encoded(photo(30, 30, 0), "JPEG"))
    (special / "locked.jpg").chmod(0)
    return [*paths, *(special / name for name in (*NEVER_LISTED, "locked.jpg"))]


def all_agree(paths: Sequence[Path]) -> set[str]:
    """Names of the broken files, when Pillow and vitc agree on every single one, and soon."""
    broken, differ = set(), []
    for path in paths:
        good = pillow_reads(path)
        started = time.monotonic()
        if vitc_reads(path) != good:
            differ.append((path.name, "Pillow reads it" if good else "Pillow refuses it"))
        assert time.monotonic() - started < SECONDS, path.name
        if not good:
            broken.add(path.name)
    assert not differ
    return broken


def loaders_skip(paths: Sequence[Path], broken: set[str], workers: int) -> None:
    """Training and evaluation go through all files, and name and count the broken ones.

    The good ones stand in the list several times: skipping is for a few broken files among many.
    """
    good = [path for path in paths if path.name not in broken]
    paths = [*paths, *good, *good, *good]
    names = [path.name for path in paths]
    sizes = np.zeros(len(paths), np.int64)
    labels = np.arange(len(paths)) % 2
    split = Split(labels, names, store=Files(Path(), map(str, paths)), sizes=sizes)
    third = (1 / 3, 1 / 3, 1 / 3)
    data = DataSet("folder", ("a", "b"), {"train": split, "val": split}, third, third, (), "")
    config = DataConfig(
        source="folder",
        path="x",
        bad_files="skip",
        workers=workers,
        resident="off",
        augment=AugmentConfig(crop="random_resized"),
    )
    ten, cpu = plan(batch=10, micro=10, size=(16, 16)), torch.device("cpu")
    with open_train(data, config, ten, cpu, 0, len(paths) // 10) as loader:
        met = {name for micros in loader for micro in micros for name in micro.skipped}
    assert met <= broken
    assert len(met) >= len(broken) * 0.9  # an epoch leaves out what makes no whole batch
    evaluation = open_eval(split, data, config, ten, cpu, 10)
    counted = sum(int((labels >= 0).sum()) for _, labels in evaluation)
    assert sorted(evaluation.skipped) == sorted(broken)
    assert counted == 4 * len(good) == len(paths) - len(broken)


def doctor_names(folder: Path, broken: set[str], workers: int) -> None:
    """The data doctor names and counts them, and says that training would fail."""
    report = check(DataConfig(source="folder", path=str(folder)), workers=workers)
    assert report.fails
    found = {
        Path(report.names[place]).name
        for finding in report.findings
        if finding.severity == "stop" and finding.places is not None
        for place in finding.places.tolist()
    }
    assert found == broken - set(NEVER_LISTED)
    assert int((~report.readable).sum()) == len(found)
    told = {Path(name).name for f in report.findings for name in f.names}
    assert told >= set(NEVER_LISTED)
    excused = check(DataConfig(source="folder", path=str(folder), bad_files="skip"), workers=1)
    assert [f.kind for f in excused.findings if f.severity == "stop"] == ["too_many"]


def run_all(count: int, folder: Path, workers: int, seed: int) -> None:
    files = list(mutants(count, seed))
    assert len({m.way for m in files}) == len(WAYS)
    paths = written(files, folder)
    if os.geteuid() == 0:
        print("ROOT READS ALL: the file without permissions counts as a good one here")
    broken = all_agree(paths)
    assert len(broken) >= 0.3 * len(paths)
    assert {"folder.jpg", "gone.jpg"} < broken
    assert ("locked.jpg" in broken) == (os.geteuid() != 0)
    loaders_skip(paths, broken, workers)
    doctor_names(folder, broken, workers)


def test_the_verdict_on_150_mutated_files_is_pillows_and_each_broken_one_is_named(
    tmp_path: Path,
) -> None:
    run_all(150, tmp_path / "images", workers=0, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_verdict_on_2000_mutated_files_is_pillows_and_each_broken_one_is_named(
    tmp_path: Path, seed: int
) -> None:
    run_all(2000, tmp_path / "images", workers=2, seed=seed)


def test_a_wrong_suffix_changes_no_verdict(tmp_path: Path) -> None:
    data = encoded(photo(40, 50, 1), "PNG")
    for name, content in (("a.jpg", data), ("b.jpg", data[:-30]), ("c.gif", b"GIF89a" + data)):
        (tmp_path / name).write_bytes(content)
    verdicts = [vitc_reads(tmp_path / n) for n in ("a.jpg", "b.jpg", "c.gif")]
    assert verdicts == [pillow_reads(tmp_path / n) for n in ("a.jpg", "b.jpg", "c.gif")]
    assert verdicts == [True, False, False]
