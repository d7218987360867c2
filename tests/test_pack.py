"""Packed files: the same training as from the source, whole or refused, and never half lost."""

from __future__ import annotations

import hashlib
import json
import mmap
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.batches import plan
from tests.packs import folder_config, opened, packed
from vitc.cli.main import main
from vitc.config import RunConfig
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.loader import open_train
from vitc.data.pack import PackOptions, pack
from vitc.data.shrink import shrunk
from vitc.data.sources.packed import HEADER, PackedStore, open_pack
from vitc.data.workers import Reader
from vitc.errors import BrokenFileError, ConfigError, DataError, RunError
from vitc.resolve import load_config, with_data

Photos = Callable[..., Path]


def contents(data: DataSet) -> dict[str, list[tuple[str, int, bytes]]]:
    """Of each split, in order: name, label, pixels."""
    return {
        name: [
            (split.names[i], int(split.labels[i]), split.read(i, 3).tobytes())
            for i in range(len(split))
        ]
        for name, split in data.splits.items()
    }


# -- the same data set ----------------------------------------------------------------------------


def test_a_pack_trains_as_its_folder_does(photo_folder: Photos, tmp_path: Path) -> None:
    root, out = photo_folder(), tmp_path / "photos.vitc"
    made = packed(root, out)
    assert made.images == 36
    assert made.bytes == out.stat().st_size
    ours, theirs = opened(out), opened(root, "folder")
    assert contents(ours) == contents(theirs)
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.classes, ours.mean, ours.std) == (theirs.classes, theirs.mean, theirs.std)
    assert ours.source == "packed"
    group = r"(\d)\.jpg"
    ours, theirs = opened(out, group=group), opened(root, "folder", group=group)
    assert ours.splits["val"].names == theirs.splits["val"].names


def test_splits_of_the_source_are_kept(photo_folder: Photos, tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        photo_folder(2, 3, f"set/{name}")
    packed(tmp_path / "set", tmp_path / "x.vitc")
    ours, theirs = opened(tmp_path / "x.vitc"), opened(tmp_path / "set", "folder")
    assert list(ours.splits) == ["train", "val", "test"]
    assert contents(ours) == contents(theirs)
    assert ours.fingerprint == theirs.fingerprint


def test_a_set_of_pixels_packs_into_itself(tmp_path: Path) -> None:
    pack(DataConfig(source="synthetic"), tmp_path / "s.vitc", PackOptions(), workers=1)
    ours, theirs = opened(tmp_path / "s.vitc"), open_data(DataConfig(source="synthetic"))
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
    for name, split in theirs.splits.items():
        pixels = ours.splits[name].pixels
        assert pixels is not None
        assert pixels.flags.writeable
        assert (pixels == split.pixels).all()


def test_re_encoded_images_are_small_upright_and_near_the_original(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((200, 150))
    )
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(smooth).save(tmp_path / "set" / name / "tall.jpg", quality=95, exif=exif)
        Image.fromarray(smooth[:40, :50]).save(tmp_path / "set" / name / "small.png")
    for options in ({"short_side": 64}, {"raw": True, "short_side": 64}):
        packed(tmp_path / "set", tmp_path / "x.vitc", **options)
        data = opened(tmp_path / "x.vitc", val_fraction=0.0, test_fraction=0.0)
        original = opened(tmp_path / "set", "folder", val_fraction=0.0, test_fraction=0.0)
        split = data.splits["train"]
        assert [split.read(i, 3).shape for i in (0, 1)] == [(40, 50, 3), (85, 64, 3)]
        for i in range(4):
            want = shrunk(original.splits["train"].read(i, 3), 3, "", 64).astype(int)
            far = np.abs(split.read(i, 3).astype(int) - want).mean()
            assert far < 2 if "raw" not in options else far == 0
        assert data.fingerprint != original.fingerprint


def test_fingerprints_depend_on_how_images_are_stored(photo_folder: Photos, tmp_path: Path) -> None:
    root = photo_folder()
    prints = set()
    smaller: dict[str, Any] = {"short_side": 32}
    for options in (
        {},
        {"raw": True},
        {"raw": True, "channels": 1},
        smaller,
        smaller | {"quality": 80},
    ):
        packed(root, tmp_path / "x.vitc", **options)
        prints.add(opened(tmp_path / "x.vitc").fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize("options", [{}, {"short_side": 32}, {"raw": True}])
def test_any_number_of_workers_makes_the_same_bytes(
    photo_folder: Photos, tmp_path: Path, options: dict[str, Any]
) -> None:
    root = photo_folder(3, 30)
    for workers in (1, 3):
        packed(root, tmp_path / f"{workers}.vitc", workers, **options)
    assert (tmp_path / "1.vitc").read_bytes() == (tmp_path / "3.vitc").read_bytes()


def test_raw_pixels_are_neither_decoded_nor_copied(photo_folder: Photos, tmp_path: Path) -> None:
    packed(photo_folder(), tmp_path / "x.vitc", raw=True)
    store = PackedStore(open_pack(tmp_path / "x.vitc"))
    pixels = store.read(3)
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (48, 60, 3)
    assert pixels.base is not None
    assert not pixels.flags.writeable
    root = tmp_path / "photos"
    packed(root, tmp_path / "x.vitc", raw=True, channels=1)  # for grey and colour models
    split = opened(tmp_path / "x.vitc").splits["train"]
    assert split.read(0, 3).shape == (48, 60, 3)
    assert (split.read(0, 1) == opened(root, "folder").splits["train"].read(0, 1)).all()


def test_loader_processes_read_a_pack_they_were_sent(photo_folder: Photos, tmp_path: Path) -> None:
    root = photo_folder()
    packed(root, tmp_path / "x.vitc")
    config = DataConfig()
    answers = []
    for data in (opened(tmp_path / "x.vitc"), opened(root, "folder")):
        reader = pickle.loads(
            pickle.dumps(Reader(data.splits["train"], config, plan(size=(32, 32))))
        )
        answer = reader[np.arange(4)]
        assert not isinstance(answer, Exception)
        answers.append(answer.images)
    assert torch.equal(*answers)


@pytest.mark.parametrize("options", [{}, {"raw": True}])
def test_batches_of_a_pack_are_those_of_its_folder_for_any_number_of_loader_processes(
    photo_folder: Photos, tmp_path: Path, options: dict[str, Any]
) -> None:
    root, out = photo_folder(), tmp_path / "x.vitc"
    packed(root, out, **options)
    augment = AugmentConfig(crop="random_resized")
    hashes = set()
    for source, path, workers in (("folder", root, 0), ("packed", out, 0), ("packed", out, 2)):
        config = DataConfig(
            source=source,
            path=str(path),
            augment=augment,
            workers=workers,  # type: ignore[arg-type]
            resident="off",
        )
        data = open_data(config)
        h = hashlib.sha256()
        with open_train(data, config, plan(), torch.device("cpu"), 0, 6) as loader:
            for step in loader:
                for micro in step:
                    h.update(micro.images.contiguous().numpy())
                    h.update(micro.labels.numpy())
        hashes.add(h.hexdigest())
    assert len(hashes) == 1


# -- the page that describes it --------------------------------------------------------------------


def test_a_pack_can_be_read_by_its_page_alone(photo_folder: Photos, tmp_path: Path) -> None:
    """As docs/pack-format.md says, with the standard library only."""
    root, out = photo_folder(2, 5), tmp_path / "x.vitc"
    packed(root, out)
    with out.open("rb") as f:
        m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, zero, payload, n, names, about = struct.unpack_from("<8sIIQQQQ", m)
        assert (magic, version, zero, n) == (b"\x89VITC\r\n\n", 1, 0, 10)
        index = 64 + payload
        assert len(m) == index + 24 * n + names + about + 40
        assert m[-8:] == b"VITCEND\n"
        assert hashlib.sha256(m[:64] + m[index:-40]).digest() == m[-40:-8]
        length, crc, label, height, width, name_length = (
            struct.unpack_from(f"<{n}I", m, index + 4 * n * k) for k in range(6)
        )
        blob = m[index + 24 * n :][:names]
        meta = json.loads(m[index + 24 * n + names :][:about])
        at, text = 64, 0
        expected = sorted(root.rglob("*.jpg"))
        for i, file in enumerate(expected):
            record = m[at : at + length[i]]
            assert record == file.read_bytes()
            assert zlib.crc32(record) == crc[i]
            assert (height[i], width[i]) == (48, 60)
            name = blob[text : text + name_length[i]].decode()
            assert name == file.relative_to(root).as_posix()
            assert meta["classes"][label[i]] == file.parent.name
            at, text = at + length[i], text + name_length[i]
        assert at == index
        assert meta["counts"] == {"train": 10}
        assert (meta["encoding"], meta["lossless"]) == ("source", True)
        m.close()
    page = (Path(__file__).parents[1] / "docs" / "pack-format.md").read_text()
    assert all(f"`{key}`" in page for key in meta)


# -- broken images ---------------------------------------------------------------------------------


def broken_folder(photo_folder: Photos) -> Path:
    root = photo_folder(2, 20)
    (root / "class_0" / "007.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    whole = (root / "class_1" / "011.jpg").read_bytes()
    (root / "class_1" / "011.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_image_stops_the_pack_and_is_named(
    photo_folder: Photos, tmp_path: Path, workers: int
) -> None:
    root, out = broken_folder(photo_folder), tmp_path / "x.vitc"
    with pytest.raises(BrokenFileError, match=r"class_0/007\.jpg") as error:
        packed(root, out, workers)
    assert "--bad-files skip" in (error.value.hint or "")
    assert not out.exists()
    made = pack(folder_config(root), out, PackOptions(bad_files="skip"), workers=workers)
    assert made.resumed == 7
    assert made.skipped == ("class_0/007.jpg", "class_1/011.jpg")
    assert made.images == 38
    assert open_pack(out).about.skipped == made.skipped
    packed(root, tmp_path / "y.vitc", bad_files="skip")
    assert out.read_bytes() == (tmp_path / "y.vitc").read_bytes()


def test_a_class_that_is_all_broken_is_refused(photo_folder: Photos, tmp_path: Path) -> None:
    root = photo_folder(2, 2)
    for file in (root / "class_1").iterdir():
        file.write_bytes(b"\xff\xd8\xff no")
    with pytest.raises(DataError, match="All training images of 'class_1' are broken"):
        packed(root, tmp_path / "x.vitc", bad_files="skip")


def test_the_verbs_report_what_they_made_and_what_is_broken(
    photo_folder: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = broken_folder(photo_folder), tmp_path / "x.vitc"
    words = ["data", "pack", str(root), str(out), "--workers", "1"]
    assert main(words) == 1
    assert "class_0/007.jpg" in capsys.readouterr().err
    assert main([*words, "--bad-files", "skip", "--json"]) == 0
    text = capsys.readouterr()
    assert json.loads(text.out.splitlines()[-1])["skipped"] == [
        "class_0/007.jpg",
        "class_1/011.jpg",
    ]
    assert "2 broken images left out" in text.err
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["data", "verify", str(out)]) == 0
    assert "38 images match" in capsys.readouterr().out
    damaged = bytearray(out.read_bytes())
    damaged[HEADER.size + 50] ^= 1
    out.write_bytes(damaged)
    assert main(["data", "verify", str(out)]) == 1
    assert "first of them 'class_0/000.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 0}, "short-side 0"),
        ({"quality": 101}, "quality 101"),
        ({"raw": True, "quality": 90}, "--quality has no effect with --raw"),
        ({"channels": 1}, "--channels has no effect"),
        ({"channels": 2, "raw": True}, "--channels 2"),
        ({"channels": 4, "short_side": 9}, "--channels 4"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PackOptions(**options).check()


def test_places_that_cannot_be_written_are_refused(photo_folder: Photos, tmp_path: Path) -> None:
    root = photo_folder(2, 2)
    for out, message in (("x.zip", "must end in .vitc"), ("no/x.vitc", "There is no folder")):
        with pytest.raises(ConfigError, match=message):
            packed(root, tmp_path / out)
    (tmp_path / "d.vitc").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        packed(root, tmp_path / "d.vitc")


# -- killed ----------------------------------------------------------------------------------------


def test_a_killed_pack_resumes_and_is_the_same(photo_folder: Photos, tmp_path: Path) -> None:
    root = photo_folder(2, 1, size=(500, 400))
    for file in list(root.rglob("*.jpg")):
        for i in range(1, 150):
            (file.parent / f"{i:03d}.jpg").write_bytes(file.read_bytes())
    out, journal = tmp_path / "x.vitc", tmp_path / "x.vitc.journal"
    words = [sys.executable, "-m", "vitc", "data", "pack", str(root), str(out), "--workers", "2"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (journal.exists() and journal.stat().st_size > 24 * 32):
        assert process.poll() is None, "it was to be killed before it ended"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists()
    assert resumed(root, out) > 16
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "whole.vitc", "x.vitc"]


def resumed(root: Path, out: Path) -> int:
    """After how many images the pack resumes; the file is the same as one made at once."""
    made = pack(folder_config(root), out, PackOptions(), workers=1)
    packed(root, out.with_name("whole.vitc"))
    assert out.read_bytes() == out.with_name("whole.vitc").read_bytes()
    return made.resumed


def interrupted(root: Path, out: Path, after: int) -> None:
    """A pack of `root` ended by Ctrl-C when `after` images or more are done."""

    def stop(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr("vitc.data.pack.time.monotonic", iter(range(10**6)).__next__)  # no waiting
        pack(folder_config(root), out, PackOptions(), workers=1, progress=stop)


@pytest.mark.parametrize("damage", ["payload", "journal", "cut payload", "cut journal", "none"])
def test_what_was_lost_of_an_unfinished_pack_is_made_again(
    photo_folder: Photos, tmp_path: Path, damage: str
) -> None:
    """As after a power cut, which may keep any part of what was not yet synced."""
    root, out = photo_folder(2, 40), tmp_path / "x.vitc"
    interrupted(root, out, 48)
    file = tmp_path / ("x.vitc.journal" if "journal" in damage else "x.vitc.partial")
    raw = bytearray(file.read_bytes())
    if damage != "none":
        raw[len(raw) // 2] ^= 255
        file.write_bytes(raw[: len(raw) // 2] if "cut" in damage else raw)
    images = resumed(root, out)
    assert images == 48 if damage == "none" else 10 < images < 40


def test_an_unfinished_pack_of_other_images_is_not_resumed(
    photo_folder: Photos, tmp_path: Path
) -> None:
    root, out = photo_folder(2, 40), tmp_path / "x.vitc"
    interrupted(root, out, 16)
    with pytest.raises(ConfigError, match="started with other images"):
        pack(folder_config(root), out, PackOptions(raw=True), workers=1)
    (root / "class_1" / "039.jpg").unlink()
    with pytest.raises(ConfigError, match="started with other images"):
        pack(folder_config(root), out, PackOptions(), workers=1)
    assert packed(root, out).resumed == 0


def test_a_full_disk_loses_nothing(photo_folder: Photos, tmp_path: Path) -> None:
    root, out = photo_folder(2, 40), tmp_path / "x.vitc"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot be written") as error:
            pack(folder_config(root), out, PackOptions(), workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "to resume" in (error.value.hint or "")
    assert not out.exists()
    assert resumed(root, out) >= 16


def test_two_processes_do_not_write_one_pack(photo_folder: Photos, tmp_path: Path) -> None:
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); time.sleep(60)"
    )
    partial = tmp_path / "x.vitc.partial"
    partial.touch()
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(partial)], stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match="Another process is writing"):
            packed(photo_folder(2, 2), tmp_path / "x.vitc")
        other.send_signal(signal.SIGKILL)


def test_a_pack_is_known_by_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown data"):
        with_data(RunConfig(), str(tmp_path / "gone.vitc"))
    (tmp_path / "x.vitc").touch()
    config = load_config("debug", data=str(tmp_path / "x.vitc")).data
    assert config == with_data(load_config("debug"), str(tmp_path / "x.vitc")).data
    assert (config.source, config.path) == ("packed", str(tmp_path / "x.vitc"))
