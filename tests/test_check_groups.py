"""People, bursts and scenes on both sides of a split are found, with the setting that mends it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.mutants import encoded
from vitc.cli.main import main
from vitc.data.check import check
from vitc.data.check_quick import quick_findings
from vitc.data.check_report import Finding, Report
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data

PEOPLE, SHOTS = 9, 10  # of each person in each class
Name = Callable[[str, int, int], str]  # of class, person and shot


def picture(scene: int, shot: int) -> Image.Image:
    """The scene's 4 x 4 colours with noise of the shot."""
    colours = np.random.default_rng(scene).integers(40, 216, (4, 4, 3))
    noise = np.random.default_rng([scene, shot]).integers(-25, 26, (24, 24, 3))
    pixels = colours.repeat(6, 0).repeat(6, 1) + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def build(root: Path, name: Name, alike: bool = True, taken: bool = False) -> Path:
    """Two classes of PEOPLE times SHOTS images; `alike`: those of one person in one scene."""
    for number in range(2 * PEOPLE * SHOTS):
        label, person, shot = "ab"[number // (PEOPLE * SHOTS)], number // SHOTS, number % SHOTS
        exif = Image.Exif()
        if taken:
            exif[0x010F] = "Maker"
            hour, minute = divmod(person, 50)
            time = f"2024:05:01 {10 + hour:02}:{minute:02}:{3 * shot:02}"
            exif.get_ifd(0x8769)[0x9003] = time
        image = picture(person if alike else 1000 + number, number)
        file = root / label / name(label, person, shot)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(image, "JPEG", exif=exif, quality=90))
    return root


def examine(folder: Path, **settings: object) -> Report:
    return check(DataConfig(source="folder", path=str(folder), **settings), workers=1)  # type: ignore[arg-type]


def groups(report: Report) -> list[Finding]:
    return [f for f in report.findings if f.kind.startswith("group_")]


def plain(label: str, person: int, shot: int) -> str:
    return f"{person * SHOTS + shot:04}.jpg"


def shuffled(label: str, person: int, shot: int) -> str:
    order = np.random.default_rng(0).permutation(2 * PEOPLE * SHOTS)
    return f"{order[person * SHOTS + shot]:04}.jpg"


CASES: dict[str, tuple[Name, bool, bool, str]] = {
    "names": (lambda c, p, s: f"person{p}_{s}.jpg", False, False, "group_names"),
    "names of no word": (lambda c, p, s: f"q{p:02}x{s}.jpg", True, False, "group_names"),
    "people's names": (
        lambda c, p, s: f"{'abcdefghijklmnopqrstuvwxyz'[p]}o_{s}.jpg",
        True,
        False,
        "group_words",
    ),
    "folders": (lambda c, p, s: f"scene{p}/{s}.jpg", False, False, "group_folders"),
    "copies": (
        lambda c, p, s: f"{c}{p:03}_png.rf.{p * SHOTS + s:032x}.jpg",
        False,
        False,
        "group_copies",
    ),
    "in a row": (plain, True, False, "group_neighbours"),
    "burst": (plain, False, True, "group_times"),
    "times in names": (
        lambda c, p, s: f"IMG_20240501_10{p:02}{3 * s:02}.jpg",
        False,
        False,
        "group_times",
    ),
}


AGAIN = ("names of no word", "times in names")  # of a kind that another case finds


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c in AGAIN else ()) for c in CASES]
)
def test_groups_across_splits_are_found_and_the_setting_keeps_them_together(
    tmp_path: Path, case: str
) -> None:
    name, alike, taken, kind = CASES[case]
    root = build(tmp_path / "x", name, alike, taken)
    (finding,) = groups(examine(root))
    assert (finding.kind, finding.severity) == (kind, "warn")
    assert finding.count > 12
    regex = finding.setting["data.group"]
    config = DataConfig(source="folder", path=str(root))
    (quick,) = quick_findings(config, open_data(config), seconds=60)
    assert (quick.kind, quick.brief) == (kind, f"Set --data.group '{regex}'.")
    assert f"--data.group '{regex}'" in finding.cure
    most_left = 0.3 * finding.count if case == "in a row" else 0  # neighbours of other people
    assert finding.figures["left"] <= most_left
    assert finding.figures["in_several_splits"] > 8
    assert " ~ " in finding.examples[0]
    assert groups(examine(root, group=regex)) == []
    splits = open_data(replace(config, group=regex)).splits
    held = [{m[1] for n in s.names if (m := re.search(regex, n))} for s in splits.values()]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    assert len(splits["val"]) >= 10


def test_one_person_under_the_same_name_in_each_class_is_found(tmp_path: Path) -> None:
    for i in range(120):
        label, person = "ab"[i // 60], i % 60
        file = tmp_path / "x" / label / f"{person * 7 % 61:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture(person, i), "JPEG"))
    (finding,) = groups(examine(tmp_path / "x"))
    assert finding.kind == "group_same_names"
    assert finding.setting == {"data.group": "([^/]+)$"}
    assert groups(examine(tmp_path / "x", group="([^/]+)$")) == []


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        (plain, False),
        (shuffled, True),
        (lambda c, p, s: f"{c}_{p * SHOTS + s}.jpg", False),
        (lambda c, p, s: f"{(p * SHOTS + s) * 2654435761 % 2**32:08x}.jpg", True),
        (lambda c, p, s: f"x{p}y{s}.jpg", False),  # the images do not look alike
    ],
    ids=["numbers", "shuffled numbers", "class and number", "hashes", "two numbers"],
)
def test_no_group_is_found_where_there_is_none(tmp_path: Path, name: Name, alike: bool) -> None:
    report = examine(build(tmp_path / "x", name, alike))
    assert groups(report) == []
    assert "not checked: no image has a time" in report.checked["groups_by_time"]


def test_times_that_no_camera_wrote_are_no_burst(tmp_path: Path) -> None:
    root = tmp_path / "x"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2000:01:01 00:00:00"
    for i in range(80):
        file = root / "ab"[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture(i, i), "JPEG", exif=exif))
    assert groups(examine(root)) == []


def test_splits_of_the_data_itself_are_not_divided_again(tmp_path: Path) -> None:
    build(tmp_path / "x/train", lambda c, p, s: f"person{p}_{s}.jpg", False)
    build(tmp_path / "x/val", lambda c, p, s: f"person{p}_{s + SHOTS}.jpg", False)
    (finding,) = groups(examine(tmp_path / "x"))
    assert finding.count == 2 * PEOPLE * SHOTS
    assert "one folder per class, without splits" in finding.cure
    for label in "ab":  # each person in one split only
        for file in (tmp_path / "x/val" / label).iterdir():
            file.rename(file.with_name(f"other_{file.name}".replace("person", "person9")))
    assert groups(examine(tmp_path / "x")) == []


def test_near_copies_across_splits_come_with_the_setting_that_keeps_them_together(
    tmp_path: Path,
) -> None:
    root = tmp_path / "x"
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        for quality in (95, 60):
            (folder / f"{i:03}-q{quality}.jpg").write_bytes(encoded(image, "JPEG", quality=quality))
    found = {f.kind: f for f in examine(root).findings}
    regex = found["near_leak"].setting["data.group"]
    assert "near_leak" not in {f.kind for f in examine(root, group=regex).findings}


# -- in two seconds --------------------------------------------------------------------------------


def test_the_quick_check_ends_in_time_and_finds_what_needs_no_image(tmp_path: Path) -> None:
    root = build(tmp_path / "x", lambda c, p, s: f"person{p}_{s}.jpg", False)
    (root / "a/person3_1.jpg").write_bytes(b"")
    config = DataConfig(source="folder", path=str(root))
    found = quick_findings(config, open_data(config), seconds=0)
    assert [f.kind for f in found] == ["empty", "group_names"]


def test_a_recipe_on_ones_own_images_warns_once_and_a_resumed_run_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build(tmp_path / "x", lambda c, p, s: f"person{p}_{s}.jpg", False)
    out = tmp_path / "run"
    words = ["train", "debug", "--data", str(root), "--out", str(out), "--train.epochs", "1"]
    assert main([*words, "--train.batch", "64"]) == 0
    log = (out / "events.log").read_text()
    assert log.count("--data.group '(person\\d+)'") == 1
    assert "vitc data check" in log
    assert "Warning: " in capsys.readouterr().err
    (out / "summary.json").unlink()
    main(["train", str(out)])
    assert (out / "events.log").read_text().count("--data.group '(person\\d+)'") == 1
