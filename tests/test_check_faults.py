"""A folder with twenty faults: each is named, and nothing in the folder is changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.mutants import encoded, photo, resaved
from tests.test_check import put
from vitc.cli.main import main
from vitc.data.check import check
from vitc.data.check_classes import _exact
from vitc.data.check_quick import quick_findings
from vitc.data.check_report import Finding, Report
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data
from vitc.machine import install_line

SIDES = 48, 64
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)
PAGE = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>" * 4


def picture(seed: int) -> np.ndarray:
    return photo(*SIDES, seed)


def taken(second: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0110] = "Phone"
    exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 10:{second // 60:02}:{second % 60:02}"
    return exif


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Splits of the data's own, with one fault of each sort: `FAULTS` names them."""
    root = tmp_path / "photos"
    seeds = iter(range(10_000))
    shares = {"train": {"cat": 60, "dog": 20, "hat": 20}, "val": {"cat": 10, "dog": 30}}
    for split, counts in shares.items():
        for label, count in counts.items():
            for _ in range(count):
                seed = next(seeds)
                put(root, f"{split}/{label}/{seed * 7919 % 10007:05x}.jpg", picture(seed))
    cat = "train/cat"
    put(root, f"{cat}/cut.jpg", encoded(picture(1000), "JPEG")[:-200])
    put(root, f"{cat}/heic.jpg", HEIC)
    put(root, f"{cat}/page.jpg", PAGE)
    put(root, f"{cat}/nothing.jpg", b"")
    put(root, f"{cat}/inks.jpg", Image.fromarray(picture(1001)).convert("CMYK"))
    put(root, f"{cat}/deep.png", Image.fromarray(picture(1002)[..., 0].astype(np.uint16) * 257))
    put(root, f"{cat}/really.jpg", encoded(picture(1003), "PNG"))
    flat = np.full((*SIDES, 3), 99) + np.random.default_rng(0).integers(0, 3, (*SIDES, 3))
    put(root, f"{cat}/flat.png", flat.astype(np.uint8))
    (root / cat / "gone.jpg").symlink_to("/nowhere")
    leak = put(root, f"{cat}/leak.jpg", picture(1004))
    shutil.copy(leak, root / "val/cat/leaked.jpg")
    twice = put(root, f"{cat}/twice.jpg", picture(1005))
    shutil.copy(twice, root / "train/dog/twice.jpg")
    put(root, f"{cat}/near.png", photo(120, 160, 1006))
    put(root, "val/cat/near.jpg", resaved(photo(120, 160, 1006), 0.7))
    for i in range(8):
        side = ("train", "val")[i % 2]
        put(root, f"{side}/dog/burst{'qwertyui'[i]}.jpg", picture(1010 + i), exif=taken(3 * i))
    for i in range(4):
        put(root, f"train/Hats/{'abcd'[i]}.jpg", picture(1020 + i))
        put(root, f"train/test2/{'abcd'[i]}.jpg", picture(1030 + i))
        put(root, f"train/New folder/{'abcd'[i]}.jpg", picture(1040 + i))
    put(root, "train/cat/dog/lost.jpg", picture(1050))
    put(root, "train/astray.jpg", picture(1051))
    for name in ("config.json", "metrics.jsonl", "checkpoints/step_1/weights"):
        put(root, f"runs/mine/{name}", b'{"model": {}, "data": {}, "optim": {}, "train": {}}')
    return root


FAULTS = {
    "damaged": "cut.jpg",
    "heif": "heic.jpg",
    "text": "page.jpg",
    "empty": "nothing.jpg",
    "cmyk": "inks.jpg",
    "deep": "deep.png",
    "suffix": "really.jpg",
    "nearly_constant": "flat.png",
    "links": "gone.jpg",
    "same_leak": "leak.jpg = val/cat/leaked.jpg",
    "same_conflict": "twice.jpg = train/dog/twice.jpg",
    "near_leak": "near.png ~ val/cat/near.jpg",
    "group_times": "burst",
    "label_shift": "cat is 5",
    "absent_val": "hat",
    "alike_names": "'Hats' ~ 'hat'",
    "rare": "Hats",
    "like_splits": "test2",
    "unnamed": "New folder",
    "misplaced": "cat/dog",
    "loose": "astray.jpg",
    "own_output": "runs/mine",
}


def examine(root: Path) -> Report:
    return check(DataConfig(source="folder", path=str(root)), workers=1)


def by_kind(report: Report) -> dict[str, Finding]:
    return {f.kind: f for f in report.findings}


def content(root: Path) -> str:
    """A hash of all names, contents and times of change below a folder."""
    h = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        h.update(str(path).encode() + str(os.lstat(path).st_mtime_ns).encode())
        if path.is_file():
            h.update(path.read_bytes())
    return h.hexdigest()


def test_each_fault_is_named_with_its_cure_and_no_file_is_changed(
    faulty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    before = content(faulty)
    assert main(["data", "check", str(faulty), "--workers", "1", "--json"]) == 1
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content(faulty) == before
    found = {f["kind"]: f for f in values["findings"]}
    missing = FAULTS.keys() - found.keys()
    assert not missing
    for kind, words in FAULTS.items():
        finding = found[kind]
        assert words in " ".join([finding["text"], *finding["examples"]]), kind
        assert finding["count"] > 0
        assert finding["cure"]
    others = found.keys() - FAULTS.keys()
    assert others <= {"grey", "other", "hidden", "unbalanced"}
    assert install_line("heif") in found["heif"]["cure"]
    assert values["checked"]["image_files"].startswith("175 of 175")
    assert {"setting", "figures"} <= values["findings"][0].keys()


def test_a_file_without_permission_is_named(faulty: Path) -> None:
    (faulty / "train/cat/leak.jpg").chmod(0)
    words = [sys.executable, "-m", "vitc", "data", "check", str(faulty), "--workers", "1", "--json"]
    if os.geteuid() == 0:  # as root, without the right to read all
        if shutil.which("setpriv") is None:
            pytest.skip("ROOT MAY READ ALL: needs setpriv of util-linux")
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    findings = json.loads(done.stdout.splitlines()[-1])["findings"]
    examples = {f["kind"]: f["examples"] for f in findings}["unreadable"]
    assert examples == ["train/cat/leak.jpg (Permission denied)"]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["cat", "cats", "dog"], "alike_names"),
        (["cat", "Copy of cat", "dog"], "alike_names"),
        (["cat", "cat (2)", "dog"], "alike_names"),
        (["cat", "cat - Copy", "dog"], "alike_names"),
        (["cat", "dog", "Train2"], "like_splits"),
        (["cat", "dog", "train_images"], "like_splits"),
        (["cat", "dog", "New folder (2)"], "unnamed"),
        (["cat", "dog", "images"], "unnamed"),
        (["cat", "dog", "masks"], "unnamed"),
        (["n/cat", "n/dog", "n/eel", "s/cat", "s/dog", "s/eel", "e/cat", "e/dog"], "like_classes"),
        (["n/cam1", "n/cam2", "n/cam3", "s/cam1", "s/cam3", "e/cam2", "e/cam3"], ""),
        (["class 1", "class 2", "train station"], ""),
        (["old", "new", "test tube"], ""),
        (["dress", "dresses", "glass", "glas"], ""),
        (["0", "1", "00"], ""),
    ],
    ids=lambda names: " ".join(names) if isinstance(names, list) else "",
)
def test_names_of_classes_that_look_odd_are_reported(
    tmp_path: Path, names: list[str], kind: str
) -> None:
    for i, name in enumerate(names):
        for j in range(12):
            put(tmp_path / "x" / "train", f"{name}/{j}.png", photo(9, 9, 100 * i + j))
            put(tmp_path / "x" / "val", f"{name}/{j}.png", photo(9, 9, 5000 + 100 * i + j))
    odd = {"alike_names", "like_splits", "unnamed", "like_classes", "misplaced"}
    assert by_kind(examine(tmp_path / "x")).keys() & odd == ({kind} if kind else set())


def test_parts_that_do_not_hold_all_classes_are_refused_by_the_check(tmp_path: Path) -> None:
    for name in ("1/cat", "1/dog", "1/eel", "2/cat", "2/dog"):
        put(tmp_path, f"batch_{name}/a.png", photo(9, 9, len(name)))
    refused = by_kind(examine(tmp_path))["refused"]
    assert "nearly the same folders" in refused.text
    assert "--data.splits train=batch_1,train=batch_2" in refused.cure


# -- masks -----------------------------------------------------------------------------------------


def with_masks(root: Path, image: str, mask: str, count: int = 12, masks: int = 12) -> Path:
    """Two classes of images, the first of which have masks; names with {c}lass and {i}."""
    for c, name in enumerate(("benign", "malignant")):
        for i in range(count):
            put(root, f"{name}/{image.format(c=name, i=i)}", photo(9, 9, 100 * c + i))
            if i < masks:
                shape = np.zeros((9, 9), np.uint8)
                shape[i % 5 : 7, 1 + c : 3 + i % 6] = 255
                put(root, f"{name}/{mask.format(c=name, i=i)}", shape)
    return root


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{c} ({i}).png", "{c} ({i})_mask.png"),
        ("{c} ({i}).png", "{c} ({i})_mask_1.png"),
        ("{i}.jpg", "{i}.mask.png"),
        ("{i}.jpg", "{i}_seg.png"),
        ("{i}.jpg", "{i}-Segmentation.png"),
        ("{i}.jpg", "{i}_label.png"),
        ("{i}.jpg", "{i}_gt.bmp"),
        ("images/{i}.jpg", "masks/{i}.png"),
        ("images/{i}.jpg", "masks/{i}_mask.png"),
    ],
)
def test_masks_beside_their_images_are_reported(tmp_path: Path, image: str, mask: str) -> None:
    with_masks(tmp_path, image, mask)
    config = DataConfig(source="folder", path=str(tmp_path))
    found = by_kind(check(config, workers=1))["masks"]
    own, of = (re.escape(f"benign/{name.replace('{c}', 'benign')}") for name in (mask, image))
    pair = f"'{own}' of '{of}'".replace(r"\{i\}", r"(\d+)", 1).replace(r"\{i\}", r"\1")
    assert "24 of 48 images look like masks of others by their names: " in found.text
    assert re.search(pair, found.text)
    assert "in another split than their image" in found.text
    assert found.figures["apart"] > 0
    assert found.severity == "warn"
    assert found.cure.startswith("move the masks out of the data set")
    assert ("--data.splits train=images" in found.cure) == ("/" in image)
    assert found.places is not None
    assert len(found.places) == 24
    assert "masks" in {f.kind for f in quick_findings(config, open_data(config))}
    if "/" in image:
        assert "To read some alone: --data.splits train=images." in " ".join(
            open_data(config).notes
        )
        alone = DataConfig(source="folder", path=str(tmp_path), splits="train=images")
        assert "masks" not in by_kind(check(alone, workers=1))


def test_masks_in_tars_are_reported(tmp_path: Path) -> None:
    folder = with_masks(tmp_path / "x", "{i}.jpg", "{i}.mask.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder, ".")
    found = by_kind(check(DataConfig(source="tar", path=str(tmp_path / "x.tar")), workers=1))
    assert re.search(r"'x.tar/benign/(\d+).mask.png' of 'x.tar/benign/\1.jpg'", found["masks"].text)


@pytest.mark.parametrize(
    ("image", "mask", "masks"),
    [
        ("{i}.png", "{i}_mask.png", 1),  # too few
        ("{i}.png", "face{i}_mask.png", 12),  # of no image here
        ("{i}.png", "{i}_masked.png", 12),
        ("{i}.png", "unmasked/{i}.png", 12),
        ("{i}.png", "label {i}.png", 12),
    ],
)
def test_names_that_are_like_those_of_masks_are_no_finding(
    tmp_path: Path, image: str, mask: str, masks: int
) -> None:
    with_masks(tmp_path, image, mask, masks=masks)
    assert "masks" not in by_kind(examine(tmp_path))


# -- label shares ----------------------------------------------------------------------------------


def shares(root: Path, train: list[int], val: list[int]) -> Path:
    """Classes of one pixel images: as many in train and val as these."""
    for split, counts in (("train", train), ("val", val)):
        for label, count in enumerate(counts):
            for i in range(count):
                pixels = np.random.default_rng([label, i, split == "val"]).integers(
                    0, 256, (9, 9, 3)
                )
                put(root, f"{split}/{'abcd'[label]}/{i}.png", pixels.astype(np.uint8))
    return root


def test_shares_of_a_class_that_shift_are_shown_and_equal_ones_are_not(tmp_path: Path) -> None:
    found = by_kind(examine(shares(tmp_path / "x", [26, 74, 100], [13, 36, 51])))
    assert "label_shift" not in found
    shifted = by_kind(examine(shares(tmp_path / "y", [13, 87, 100], [39, 61, 100])))["label_shift"]
    assert "a is 6.5% of train, 19.5% of val" in shifted.text
    assert shifted.names == ("a",)


def test_shares_of_held_out_splits_are_not_tested(tmp_path: Path) -> None:
    root = shares(tmp_path / "x", [30, 60], [1, 1])
    report = examine(root / "train")
    assert report.checked["label_shares"].startswith("not checked")


def test_the_exact_test_is_fishers() -> None:
    from scipy.stats import fisher_exact

    rng = np.random.default_rng(0)
    for _ in range(20):
        train, other = rng.integers(0, 60, 5), rng.integers(0, 30, 5)
        tables = [
            [[a, train.sum() - a], [b, other.sum() - b]] for a, b in zip(train, other, strict=True)
        ]
        expected = [fisher_exact(table).pvalue for table in tables]
        assert np.allclose(_exact(train, other), expected)
