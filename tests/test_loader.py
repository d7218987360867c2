"""Batches are the same whoever makes them; what goes wrong is reported."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import batches
from vitc.data import pixels as pixels_module
from vitc.data import workers as workers_module
from vitc.data.augment import ops
from vitc.data.augment.device import erase, finish
from vitc.data.augment.mixing import mix
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import DataSet
from vitc.data.loader import MicroBatch, open_eval, open_train
from vitc.data.sampling import BatchPlan
from vitc.data.sources.base import Split
from vitc.data.store import Files
from vitc.data.workers import Served, fitting
from vitc.errors import BrokenFileError, ConfigError, DataError, RunError
from vitc.recipes.imagenet import DEIT_AUGMENT, PAPER_AUGMENT

CPU = torch.device("cpu")
STRONG = AugmentConfig(crop="random_resized", mixup_alpha=0.8, cutmix_alpha=1.0)


plan = functools.partial(batches.plan, size=(32, 24))


def config(**changes: object) -> DataConfig:
    values: dict[str, object] = {"source": "folder", "path": ".", "workers": 0, "augment": STRONG}
    return DataConfig(**{**values, **changes})  # type: ignore[arg-type]


def data_set(split: Split) -> DataSet:
    return DataSet("folder", ("a", "b", "c"), {"train": split}, (0.5,) * 3, (0.2,) * 3, (), "")


def stored_in(files: Sequence[Path]) -> Files:
    return Files(files[0].parent, [f.name for f in files])


def files_of(folder: Path, sizes: Sequence[tuple[int, int]], suffix: str = "jpg") -> DataSet:
    """One image a size (width, height), each of another colour and with some texture."""
    rng = np.random.default_rng(0)
    files = []
    for i, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 196, 3)
        files.append(folder / f"image_{i:03d}.{suffix}")
        Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
    labels = np.arange(len(files), dtype=np.int64) % 3
    return data_set(Split(labels=labels, names=[f.name for f in files], store=stored_in(files)))


@pytest.fixture
def photos(tmp_path: Path) -> DataSet:
    """20 JPEGs of different sizes, too large to be held."""
    return files_of(tmp_path, [(70 + 3 * i, 90 - 2 * i) for i in range(20)])


@pytest.fixture
def thumbs(tmp_path: Path) -> DataSet:
    """20 small PNGs of one size."""
    return files_of(tmp_path, [(24, 32)] * 20, suffix="png")


def pixel_set(n: int = 30, size: tuple[int, int] = (32, 24)) -> DataSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, n)
    return data_set(Split(labels=labels, names=[str(i) for i in range(n)], pixels=pixels))


def breaks(data: DataSet, *indices: int) -> DataSet:
    store = data.splits["train"].store
    assert isinstance(store, Files)
    for i in indices:
        store.path(i).write_bytes(store.read(i)[:100])
    return data


def run(
    data: DataSet, config: DataConfig, plan: BatchPlan, start: int = 0, end: int = 5
) -> list[list[MicroBatch]]:
    with open_train(data, config, plan, CPU, start, end) as batches:
        return list(batches)


def evaluated(
    data: DataSet, config: DataConfig, plan: BatchPlan, batch: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(open_eval(data.splits["train"], data, config, plan, CPU, batch))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def assert_same(a: MicroBatch, b: MicroBatch, pixels: int = 0) -> None:
    """Bit-equal parameters; pixels equal, or at most so far apart."""
    assert (a.images.int() - b.images.int()).abs().max() <= pixels
    assert torch.equal(a.labels, b.labels)
    for name in ("flip", "lighting", "drop_path"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None and y is None) or torch.equal(x, y), name
    assert (a.erased is None) == (b.erased is None)
    assert type(a.mix) is type(b.mix)
    for one, other in ((a.erased, b.erased), (a.mix, b.mix)):
        for name in () if one is None else vars(one):
            x, y = getattr(one, name), getattr(other, name)
            assert (x is None and y is None) or np.array_equal(x, y), name
    assert a.skipped == b.skipped


def assert_same_run(a: list[list[MicroBatch]], b: list[list[MicroBatch]], pixels: int = 0) -> None:
    assert [len(step) for step in a] == [len(step) for step in b]
    for x, y in zip(a, b, strict=True):
        for m, n in zip(x, y, strict=True):
            assert_same(m, n, pixels)


# -- exactness ------------------------------------------------------------------------------------


def test_steps_are_lists_of_micro_batches(photos: DataSet) -> None:
    steps = run(photos, config(), plan())
    assert [len(step) for step in steps] == [2] * 5
    first = steps[0][0]
    assert (first.images.shape, first.images.dtype) == ((4, 3, 32, 24), torch.uint8)
    assert first.labels.dtype == torch.int64
    assert first.flip is not None
    assert first.flip.dtype == torch.bool
    assert first.drop_path is not None
    assert first.drop_path.shape == (4, 4)
    assert not torch.equal(first.images, steps[2][0].images)


def test_accumulation_changes_neither_order_nor_cuts(photos: DataSet) -> None:
    fine = run(photos, config(), plan(micro=2))
    coarse = run(photos, config(), plan(micro=8))
    for many, (one,) in zip(fine, coarse, strict=True):
        assert torch.equal(torch.cat([m.images for m in many]), one.images)
        assert torch.equal(torch.cat([m.labels for m in many]), one.labels)
        assert torch.equal(torch.cat([m.flip for m in many]), one.flip)  # type: ignore[arg-type, misc]


# -- exactness of what the model sees -------------------------------------------------------------

FULL = {
    "paper": PAPER_AUGMENT,
    "deit": replace(DEIT_AUGMENT, erase=0.5, mix_per="sample"),
    "deit 3": AugmentConfig(
        crop="random_resized",
        policy="three",
        jitter=(0.3, 0.3, 0.3),
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        repeats=2,
    ),
    "rest": AugmentConfig(
        crop="shift", policy="trivial", lighting=0.2, erase=0.5, erase_fill="mean"
    ),
    "autoaugment": AugmentConfig(crop="shift", policy="autoaugment"),
}


def digest(steps: list[list[MicroBatch]], augment: AugmentConfig) -> list[str]:
    """A hash a step of the float images, targets and drop-path that the model is trained on."""
    found = []
    for micros in steps:
        sha = hashlib.sha256()
        for m in micros:
            images = finish(m.images, m.flip, (0.5,) * 3, (0.2,) * 3, False, m.lighting)
            images = erase(images, m.erased)
            for out in mix(images, m.labels, m.mix, 3, augment.label_smoothing):
                sha.update(out.contiguous().numpy().tobytes())
            assert m.drop_path is not None
            sha.update(m.drop_path.numpy().tobytes())
        found.append(sha.hexdigest())
    return found


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("paper", "deit 3") else pytest.mark.slow) for n in FULL],
)
def test_batches_do_not_depend_on_workers_resume_or_processes(
    photos: DataSet, name: str, resident: bool
) -> None:
    augment, data = FULL[name], pixel_set() if resident else photos

    def batches(start: int = 0, workers: int = 0, **changes: int) -> list[list[MicroBatch]]:
        settings = config(augment=augment, workers=0 if resident else workers)
        return run(data, settings, plan(batch=12, micro=6, **changes), start, 4)

    whole = digest(batches(), augment)
    assert len(set(whole)) == 4
    for start, workers in ((0, 1), (0, 4), (1, 0), (2, 2), (3, 0)):
        assert digest(batches(start, workers), augment) == whole[start:]
    parts = [batches(rank=rank, world=2) for rank in (0, 1)]
    assert digest([a + b for a, b in zip(*parts, strict=True)], augment) == whole
    assert not set(digest(batches(seed_augment=2), augment)) & set(whole)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("policy", ["autoaugment", "v0", "randaugment", "trivial", "three"])
def test_held_images_are_changed_as_the_loader_changes_them(
    policy: str, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut is none or moved, so that both ways start from the same bytes."""
    monkeypatch.setattr(ops, "batches_are_faster", lambda device: batched)
    augment = AugmentConfig(crop="shift", policy=policy, jitter=(0.3, 0.3, 0.3))  # type: ignore[arg-type]
    data = pixel_set(60)
    changed = run(data, config(augment=augment), plan(), end=7)
    read = run(data, config(augment=augment, resident="off"), plan(), end=7)
    if platform.machine() in ("x86_64", "AMD64") or policy not in ("v0", "randaugment"):
        assert_same_run(changed, read)
    plain = run(data, config(augment=AugmentConfig(crop="shift")), plan(), end=7)
    flips = torch.cat([m.flip for step in plain for m in step if m.flip is not None])
    before, after = (torch.cat([m.images for s in r for m in s]) for r in (plain, changed))
    assert (before != after).flatten(1).any(1).float().mean() > 0.8
    assert all(m.flip is None for step in changed for m in step)
    assert 0 < flips.float().mean() < 1


def test_a_policy_sees_the_mirrored_cut() -> None:
    """Shears and translations have a direction: mirrored first is not mirrored last."""
    data = pixel_set(40)
    one = AugmentConfig(crop="none", flip=1.0, policy="trivial")
    none = AugmentConfig(crop="none", flip=0.0, policy="trivial")
    for where in ("auto", "off"):
        mirrored = run(data, config(augment=one, resident=where), plan(), end=5)
        split = data.splits["train"]
        assert split.pixels is not None
        turned = data_set(replace(split, pixels=split.pixels[:, :, ::-1].copy()))
        assert_same_run(run(turned, config(augment=none, resident=where), plan()), mirrored)


# -- the two ways agree ---------------------------------------------------------------------------

CROPS = [
    (AugmentConfig(crop="none", mixup_alpha=0.8), 0),
    (AugmentConfig(crop="shift", cutmix_alpha=1.0), 0),
    (STRONG, 1),  # another arithmetic: see augment.resample
]


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(32, 24), (16, 16), (40, 56)])
@pytest.mark.parametrize(("augment", "pixels"), CROPS)
def test_held_pixels_give_the_batches_of_the_loader(
    augment: AugmentConfig, pixels: int, size: tuple[int, int], fit: str
) -> None:
    data, where = pixel_set(), plan(size=size)
    held = run(data, config(augment=augment, fit=fit), where)
    read = run(data, config(augment=augment, fit=fit, resident="off"), where)
    assert held[0][0].images.shape == (4, 3, *size)
    assert_same_run(held, read, pixels)


@pytest.mark.parametrize(("augment", "pixels"), CROPS)
def test_held_files_give_the_batches_of_the_loader(
    thumbs: DataSet, augment: AugmentConfig, pixels: int
) -> None:
    with open_train(thumbs, config(augment=augment), plan(), CPU, 0, 1) as batches:
        assert "resident on cpu" in batches.note
    held = run(thumbs, config(augment=augment), plan())
    read = run(thumbs, config(augment=augment, resident="off"), plan())
    assert_same_run(held, read, pixels)


@pytest.mark.parametrize("resident", ["auto", "off"])
def test_evaluation_sees_all_images_in_order(resident: str) -> None:
    data = pixel_set(n=20)
    split = data.splits["train"]
    assert split.pixels is not None
    batches = open_eval(split, data, config(resident=resident), plan(), CPU, batch=6)
    for _ in range(2):  # as often as wanted
        parts = list(batches)
        assert [len(images) for images, _ in parts] == [6] * 4 == [6] * len(batches)
        labels = torch.cat([p[1] for p in parts])
        assert torch.equal(labels[:20], torch.from_numpy(split.labels))
        assert labels[20:].tolist() == [-1] * 4
        images = torch.cat([p[0] for p in parts])[:20]
        assert torch.equal(images, torch.from_numpy(split.pixels).permute(0, 3, 1, 2))


def test_evaluation_does_not_depend_on_where_the_images_are(thumbs: DataSet) -> None:
    held = evaluated(thumbs, config(), plan(size=(16, 16)))
    for workers in (0, 2):
        read = evaluated(thumbs, config(resident="off", workers=workers), plan(size=(16, 16)))
        assert torch.equal(held[0], read[0])
        assert torch.equal(held[1], read[1])


@pytest.mark.parametrize("resident", ["auto", "off"])
def test_processes_share_the_evaluation(resident: str) -> None:
    data = pixel_set(n=21)
    alone = evaluated(data, config(resident=resident), plan())
    parts = [evaluated(data, config(resident=resident), plan(rank=r, world=2)) for r in (0, 1)]
    assert len(parts[0][1]) == len(parts[1][1])
    for i in (0, 1):
        together = torch.cat([p[i][p[1] >= 0] for p in parts])
        assert torch.equal(together, alone[i][alone[1] >= 0])


# -- what is held ---------------------------------------------------------------------------------


def note(data: DataSet, config: DataConfig, plan: BatchPlan) -> str:
    with open_train(data, config, plan, CPU, 0, 1) as batches:
        return batches.note


def test_a_set_with_all_its_splits_is_held_when_it_fits_a_quarter_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = 30 * 3 * 32 * 24
    monkeypatch.setattr(pixels_module, "device_memory", lambda device: 4 * need)
    assert "30 images of 3 x 32 x 24 are resident on cpu" in note(pixel_set(), config(), plan())
    monkeypatch.setattr(pixels_module, "device_memory", lambda device: 4 * need - 1)
    assert "more than a quarter of the 0.3 MB of cpu" in note(pixel_set(), config(), plan())
    assert "are resident" in note(pixel_set(), config(resident="on"), plan())
    monkeypatch.setattr(pixels_module, "device_memory", lambda device: need - 1)
    with pytest.raises(ConfigError, match="resident on is not possible: 30 images of 3 x 32 x 24"):
        note(pixel_set(), config(resident="on"), plan())
    data = pixel_set()
    data.splits["val"] = data.splits["train"]
    monkeypatch.setattr(pixels_module, "device_memory", lambda device: 4 * 30 * 3 * 32 * 24)
    assert "60 images of 3 x 32 x 24 take" in note(data, config(), plan())


def test_large_files_are_read_as_they_are_needed(photos: DataSet) -> None:
    text = note(photos, config(workers=0), plan())
    assert "by the main process" in text
    assert "the files are images of more than 64 pixels a side" in text


def test_files_that_need_no_common_size_are_held_when_asked(photos: DataSet) -> None:
    shifted = AugmentConfig(crop="shift")
    held = run(photos, config(augment=shifted, resident="on", workers=None), plan())
    assert_same_run(held, run(photos, config(augment=shifted), plan()))
    with pytest.raises(ConfigError, match="not possible: the images have different sizes"):
        run(photos, config(resident="on", workers=None), plan())


def test_strips_that_padding_makes_huge_are_not_held(tmp_path: Path) -> None:
    padded = AugmentConfig(crop="random_resized")
    strips = files_of(tmp_path, [(50_000, 1)] * 8, "png")
    with pytest.raises(ConfigError, match="an image of 50,000 x 1 pixels is padded to 50,000 x"):
        note(strips, config(augment=padded, fit="pad", resident="on"), plan())


def test_one_file_of_another_size_among_small_ones_turns_to_the_loader(tmp_path: Path) -> None:
    sizes = [(24, 32)] * 100
    sizes[1] = (25, 32)  # not among the sample
    data = files_of(tmp_path, sizes)
    assert "the images have different sizes" in note(data, config(), plan())
    assert "are resident" in note(data, config(augment=AugmentConfig(crop="shift")), plan())
    large = files_of(tmp_path, [*sizes[:1], (65, 32), *sizes[2:]])
    shifted = config(augment=AugmentConfig(crop="shift"))
    assert "more than 64 pixels" in note(large, shifted, plan())


# -- broken files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_stops_the_run_by_its_name(
    photos: DataSet, tmp_path: Path, workers: int
) -> None:
    with pytest.raises(BrokenFileError) as caught:
        run(breaks(photos, 7), config(workers=workers), plan(), end=3)
    assert type(caught.value) is BrokenFileError
    assert "image_007.jpg" in caught.value.message
    assert "Traceback" not in str(caught.value)
    with pytest.raises(BrokenFileError, match="image_007"):
        evaluated(photos, config(workers=workers), plan())
    assert multiprocessing.active_children() == []
    thumbs = files_of(tmp_path, [(24, 32)] * 20, suffix="png")  # these are held
    with pytest.raises(BrokenFileError, match="image_007"):
        run(breaks(thumbs, 7, 13), config(), plan())


def test_a_skipped_file_is_replaced_by_the_same_image_everywhere(thumbs: DataSet) -> None:
    whole = run(thumbs, config(), plan(), end=6)
    breaks(thumbs, 7, 13)
    held = run(thumbs, config(bad_files="skip"), plan(), end=6)
    assert_same_run(run(thumbs, config(bad_files="skip"), plan(), 3, 6), held[3:])
    for workers in (0, 2):
        read = run(thumbs, config(bad_files="skip", resident="off", workers=workers), plan(), end=6)
        assert_same_run(held, read, pixels=1)
    skipped = [name for step in held for micro in step for name in micro.skipped]
    assert set(skipped) == {"image_007.png", "image_013.png"}
    changed = 0
    for a, b in zip(chain(*whole), chain(*held), strict=True):
        rows = (a.images != b.images).flatten(1).any(1)
        assert rows.sum() <= len(b.skipped)
        changed += int(rows.sum())
    assert 0 < changed <= len(skipped)


@pytest.mark.parametrize("resident", ["auto", "off"])
def test_a_skipped_file_has_no_label_in_evaluation(thumbs: DataSet, resident: str) -> None:
    breaks(thumbs, 7, 13)
    split = thumbs.splits["train"]
    batches = open_eval(
        split, thumbs, config(bad_files="skip", resident=resident), plan(), CPU, batch=5
    )
    for _ in range(2):
        labels = torch.cat([labels for _, labels in batches])
        expected = torch.from_numpy(split.labels).clone()
        expected[[7, 13]] = -1
        assert torch.equal(labels, expected)
        assert batches.skipped == ("image_007.png", "image_013.png")


@pytest.mark.parametrize("resident", ["auto", "off"])
def test_a_set_of_broken_files_ends_the_run(thumbs: DataSet, resident: str) -> None:
    breaks(thumbs, *range(1, 20))
    with pytest.raises(DataError, match="Eleven images drawn in a row are broken"):
        run(thumbs, config(bad_files="skip", resident=resident), plan())


# -- loader processes -----------------------------------------------------------------------------


def workers_now() -> list[int]:
    return [p.pid for p in multiprocessing.active_children() if p.pid is not None]


def test_leaving_early_ends_the_workers(photos: DataSet) -> None:
    with open_train(photos, config(workers=2), plan(), CPU, 0, 1000) as batches:
        next(iter(batches))
        assert len(workers_now()) == 2
        started = time.monotonic()
    assert workers_now() == []
    assert time.monotonic() - started < 3

    def body() -> None:
        with open_train(photos, config(workers=2), plan(), CPU, 0, 1000) as batches:
            for _ in batches:
                raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        body()
    assert workers_now() == []
    for _ in open_eval(photos.splits["train"], photos, config(workers=2), plan(), CPU, 4):
        break
    assert workers_now() == []


def test_an_evaluation_in_the_middle_of_training_disturbs_nothing(photos: DataSet) -> None:
    alone, seen = run(photos, config(), plan()), evaluated(photos, config(), plan())
    steps = []
    with open_train(photos, config(workers=2), plan(), CPU, 0, 5) as batches:
        for micros in batches:
            steps.append(micros)
            images, labels = evaluated(photos, config(workers=1), plan())
            assert torch.equal(images, seen[0])
            assert torch.equal(labels, seen[1])
    assert_same_run(steps, alone)


def test_a_killed_worker_ends_the_run_with_an_error_of_its_own(photos: DataSet) -> None:
    with open_train(photos, config(workers=2), plan(), CPU, 0, 10_000) as batches:
        steps = iter(batches)
        next(steps)
        os.kill(workers_now()[0], signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(RunError, match="A loader process died or could not start") as caught:
            list(steps)
        assert time.monotonic() - started < 20
        assert "--data.workers than 2" in str(caught.value.hint)
    assert workers_now() == []


class Trap:
    """A store of plain images whose image 7 ends the process that reads it, or keeps it waiting."""

    def __init__(self, what: str) -> None:
        self.what = what

    def read(self, place: int) -> np.ndarray:
        if place == 7:
            if self.what == "exit":
                os._exit(3)
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "bug":
                raise RuntimeError("a bug in the store")
            time.sleep(float(self.what))
        return np.full((40, 40, 3), place, np.uint8)


def trapped(what: str, n: int = 20) -> DataSet:
    names = [f"trap/{i:03d}.jpg" for i in range(n)]
    return data_set(Split(labels=np.arange(n) % 3, names=names, store=Trap(what)))


served = functools.partial(config, workers=2, resident="off")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["exit", "kill"])
def test_an_image_that_kills_its_process_is_named_and_an_error_is_no_death(what: str) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match=r"process \d \(pid \d+\) was reading 'trap/007.jpg'"):
        run(trapped(what), served(), plan(), end=10)
    with pytest.raises(RunError, match=r"was reading 'trap/007.jpg'"):
        evaluated(trapped(what), served(), plan())
    assert time.monotonic() - started < 20
    with pytest.raises(RuntimeError, match="a bug in the store"):
        run(trapped("bug"), served(), plan(), end=10)
    assert workers_now() == []


def test_an_image_that_is_waited_for_long_is_named_once_and_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workers_module, "SLOW_SECONDS", 0.2)
    whole = plan(batch=20, micro=20)
    steps = run(trapped("0.8"), served(), whole, end=1)
    (warning,) = [r.message for r in caplog.records if r.name == "vitc"]
    assert "has been reading 'trap/007.jpg' for 0 s, and the run is waiting" in warning
    monkeypatch.setattr(workers_module, "SLOW_SECONDS", 60.0)
    caplog.clear()
    again = run(trapped("0.1"), served(), whole, end=1)
    assert_same_run(steps, again)
    assert not caplog.records


def test_a_stuck_process_is_not_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "END_SECONDS", 0.2)
    data = trapped("1000", n=8)
    with open_train(data, served(), plan(batch=8, micro=4), CPU, 0, 4) as some:
        steps = iter(some)
        monkeypatch.setattr(workers_module._Watch, "warn_slow", raise_key_error)
        with pytest.raises(KeyError):
            list(steps)
        time.sleep(0.3)
        started = time.monotonic()
    assert time.monotonic() - started < 3
    assert workers_now() == []


def raise_key_error(*_: object) -> None:
    raise KeyError("as Ctrl-C would, in the middle of waiting")


def program(folder: Path, ending: str) -> str:
    """A script in the folder that trains on its JPEGs with two loader processes."""
    script = folder / "program.py"
    script.write_text(
        "from tests.test_loader import *\n"
        f"files = sorted(Path({str(folder)!r}).glob('*.jpg'))\n"
        "data = data_set(Split(labels=np.zeros(len(files), np.int64),"
        " names=[f.name for f in files], store=stored_in(files)))\n"
        "steps = iter(open_train(data, config(workers=2), plan(), CPU, 0, 1_000_000))\n"
        f"next(steps)\nprint(*workers_now(), flush=True)\n{ending}\n"
    )
    return str(script)


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.getcwd()}


def with_sigint() -> None:
    """A shell starts programs in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_program_is_ended(
    photos: DataSet, tmp_path: Path, how: signal.Signals
) -> None:
    words = [sys.executable, program(tmp_path, "list(steps)")]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        preexec_fn=with_sigint,
    ) as started:
        assert started.stdout is not None
        pids = [int(pid) for pid in started.stdout.readline().split()]
        assert len(pids) == 2
        started.send_signal(how)
        started.wait(30)
        until = time.monotonic() + 30  # orphans look every 5 seconds
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_program_that_forgets_to_close_still_ends(photos: DataSet, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "error", program(tmp_path, "")]
    done = subprocess.run(
        words, check=True, timeout=60, capture_output=True, text=True, env=ENVIRONMENT
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert done.stderr == ""


def own_bytes(pid: int) -> int:
    """Memory that only this process has (USS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="NO smaps_rollup HERE")
@pytest.mark.slow
def test_memory_of_the_processes_is_flat_over_epochs(tmp_path: Path) -> None:
    """5 epochs of 3,000 files: what the first one needs is all."""
    Image.new("RGB", (8, 8), (200, 10, 90)).save(tmp_path / "one.png")
    names = [f"{i:05d}.png" for i in range(3000)]
    for name in names:
        os.link(tmp_path / "one.png", tmp_path / name)
    store = Files(tmp_path, names)
    data = data_set(Split(labels=np.arange(3000) % 3, names=names, store=store))
    epoch, seen = 3000 // 200, []
    where = plan(batch=200, micro=200, size=(8, 8))
    with open_train(data, served(), where, CPU, 0, 5 * epoch) as batches:
        for step, _ in enumerate(batches, 1):
            if step % epoch == 0 and step < 5 * epoch:
                seen.append([own_bytes(pid) for pid in workers_now()])
    assert np.max(seen[-1]) < np.max(seen[0]) + 2e6


@pytest.mark.cuda
def test_batches_come_to_cuda_as_they_are_while_it_computes(photos: DataSet) -> None:
    alone = run(photos, config(), plan())
    busy = torch.randn(4096, 4096, device="cuda")
    with open_train(photos, config(workers=2), plan(), torch.device("cuda"), 0, 5) as batches:
        assert batches.stream is not None
        for micros, expected in zip(batches, alone, strict=True):
            for m, e in zip(micros, expected, strict=True):
                for _ in range(5):
                    busy = busy @ busy / 4096  # the host asks for the next batch meanwhile
                assert m.images.is_cuda
                assert torch.equal(m.images.cpu(), e.images)
                assert torch.equal(m.labels.cpu(), e.labels)
    seen = evaluated(photos, config(), plan())
    split = photos.splits["train"]
    parts = list(open_eval(split, photos, config(workers=2), plan(), torch.device("cuda"), 6))
    assert torch.equal(torch.cat([p[0] for p in parts]).cpu(), seen[0])
    assert torch.equal(torch.cat([p[1] for p in parts]).cpu(), seen[1])


def test_signals_to_all_processes_of_a_job_do_not_stop_the_workers(photos: DataSet) -> None:
    with open_train(photos, config(workers=2), plan(), CPU, 0, 40) as batches:
        steps = iter(batches)
        next(steps)
        for pid in workers_now():
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        assert len(list(steps)) == 39


def test_loading_leaves_random_states_and_signals_alone(photos: DataSet) -> None:
    names = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
    signals = [signal.getsignal(name) for name in names]
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    run(photos, config(workers=1), plan(), end=2)
    evaluated(photos, config(workers=1), plan())
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[arg-type]
    assert [signal.getsignal(name) for name in names] == signals


def test_waiting_is_measured(photos: DataSet) -> None:
    with open_train(photos, config(), plan(), CPU, 0, 2) as batches:
        steps = iter(batches)
        assert batches.wait_seconds == 0
        next(steps)
        first = batches.wait_seconds
        assert first > 0
        time.sleep(1)  # what the caller takes does not count
        next(steps)
        assert first < batches.wait_seconds < first + 1


def test_the_number_of_workers_follows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(workers: int | None) -> int:
        split = Split(labels=np.zeros(0, np.int64), names=[])
        return Served(split, config(workers=workers), plan(), CPU, "", 1).workers

    monkeypatch.setattr(workers_module, "cores", lambda: 3)
    assert count(None) == 3
    monkeypatch.setattr(workers_module, "cores", lambda: 30)
    assert (count(None), count(0)) == (8, 0)


@pytest.mark.parametrize(
    ("wanted", "batch", "free", "expected"),
    [
        (8, 400_000, None, (8, 2)),
        (8, 400_000, 10**9, (8, 2)),
        (8, 400_000, 64 << 20, (8, 2)),
        (8, 3_000_000, 64 << 20, (8, 1)),
        (8, 6_000_000, 64 << 20, (3, 1)),
        (8, 400_000, 1 << 20, (0, 1)),
        (2, 400_000, 0, (0, 1)),
        (0, 400_000, 0, (0, 1)),
    ],
)
def test_loader_processes_are_as_many_as_shared_memory_has_room_for(
    wanted: int, batch: int, free: int | None, expected: tuple[int, int]
) -> None:
    assert fitting(wanted, batch, free) == expected


def test_a_small_shared_memory_is_named_with_its_cure_and_changes_no_batch(
    photos: DataSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pixels() -> list[torch.Tensor]:
        with open_train(photos, config(workers=2, resident="off"), plan(), CPU, 0, 2) as opened:
            return [micro.images for step in opened for micro in step]

    before = pixels()
    assert not caplog.messages
    monkeypatch.setattr(workers_module, "free_shared_memory", lambda: 1000)
    after = pixels()
    assert "--shm-size" in caplog.text
    assert "the main process, not by 2" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
