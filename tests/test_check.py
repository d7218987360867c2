"""The data doctor finds what is planted in a data set, and only that, and names what cures it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.browser import Tags, measured
from tests.mutants import encoded, photo, png_bomb, resaved
from vitc.cli.data import DATA_VERBS
from vitc.cli.main import main
from vitc.data import check_images
from vitc.data.check import check
from vitc.data.check_classes import _alike_names
from vitc.data.check_page import page
from vitc.data.check_report import Finding, Report, rows, to_values
from vitc.data.config import DataConfig
from vitc.data.near_duplicates import NEAR_BITS, NEAR_GREY
from vitc.errors import RunError
from vitc.views import html
from vitc.views.model import Thumbnail, Thumbnails

Pixels = NDArray[np.uint8]
PICTURES = [photo(60, 80, seed) for seed in range(62)]


def put(root: Path, name: str, data: bytes | Pixels | Image.Image, **options: Any) -> Path:
    """A file of a data set; pixels in the format of the name's suffix."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(data, bytes):
        suffix = name.rpartition(".")[2]
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        data = encoded(data, kind, **options)
    path.write_bytes(data)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixteen good photographs in each of two classes."""
    root = tmp_path / "photos"
    for i in range(32):
        put(root, f"{'cat' if i < 16 else 'dog'}/{i:02}.jpg", PICTURES[i])
    return root


def examine(folder: Path, **settings: Any) -> Report:
    return check(DataConfig(source="folder", path=str(folder), **settings), workers=1)


def kinds(report: Report) -> dict[str, Finding]:
    found = {finding.kind: finding for finding in report.findings}
    assert len(found) == len(report.findings)
    return found


def files(report: Report, finding: Finding) -> set[str]:
    assert finding.places is not None
    return {report.names[place] for place in finding.places.tolist()}


def test_nothing_is_found_in_a_good_data_set(folder: Path) -> None:
    report = examine(folder)
    assert report.findings == []
    assert report.status == "good"
    assert report.rate is not None
    assert report.quantiles()["short_side"] == [60] * 7
    assert report.quantiles()["long_side"] == [80] * 7
    assert report.tally("format") == {"JPEG": 32}
    assert report.tally("mode") == {"RGB": 32}


# -- single files ----------------------------------------------------------------------------------


def broken_files(root: Path) -> dict[str, str]:
    """Plants one broken file of each kind: kind -> name."""
    put(root, "cat/cut.jpg", encoded(PICTURES[50], "JPEG")[:-200])
    put(root, "cat/words.jpg", b"these are words" * 20)
    put(root, "cat/empty.jpg", b"")
    put(root, "cat/bomb.png", png_bomb(50_000, 50_000))
    return {
        "damaged": "cat/cut.jpg",
        "no_image": "cat/words.jpg",
        "empty": "cat/empty.jpg",
        "bomb": "cat/bomb.png",
    }


def test_broken_files_stop_training_and_the_cure_makes_it_start(folder: Path) -> None:
    planted = broken_files(folder)
    report = examine(folder)
    assert report.fails
    assert {kind: files(report, f) for kind, f in kinds(report).items()} == {
        kind: {name} for kind, name in planted.items()
    }
    assert all(f.severity == "stop" for f in report.findings)
    assert all("--data.bad_files skip" in f.cure for f in report.findings)
    cured = examine(folder, bad_files="skip")
    assert not cured.fails
    assert kinds(cured).keys() == planted.keys()


@pytest.mark.skipif(os.geteuid() == 0, reason="ROOT MAY READ ALL: cannot be tested as root")
def test_a_file_without_permission_is_named(folder: Path) -> None:
    put(folder, "cat/locked.jpg", PICTURES[50]).chmod(0)
    assert "Permission denied" in kinds(examine(folder))["unreadable"].examples[0]


def test_too_many_broken_files_to_skip_stop_training(folder: Path) -> None:
    for i in range(4):
        put(folder, f"bird/{i}.jpg", b"nothing")
    found = kinds(examine(folder, bad_files="skip"))
    assert found["emptied"].severity == "stop"
    assert found["emptied"].names == ("bird",)
    for i in range(32):
        put(folder, f"{'cat' if i < 16 else 'dog'}/bad{i}.jpg", b"nothing")
    found = kinds(examine(folder, bad_files="skip"))
    assert found["too_many"].severity == "stop"
    assert found["no_image"].severity == "warn"


def test_odd_files_are_each_recognised(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    many = [Image.fromarray(p) for p in PICTURES[41:44]]
    jpeg = encoded(PICTURES[40], "JPEG")
    planted = {
        "doubtful": put(folder, "cat/doubt.jpg", jpeg[: len(jpeg) // 2] + b"\xff\xd9"),
        "constant": put(folder, "cat/flat.png", np.full((50, 50, 3), 77, np.uint8)),
        "suffix": put(folder, "cat/really_png.jpg", encoded(PICTURES[45], "PNG")),
        "animated": put(folder, "cat/film.gif", many[0], save_all=True, append_images=many[1:]),
        "cmyk": put(folder, "cat/inks.jpg", Image.fromarray(PICTURES[46]).convert("CMYK")),
        "palette": put(folder, "cat/few.png", Image.fromarray(PICTURES[47]).quantize(16)),
        "alpha": put(folder, "cat/clear.png", Image.fromarray(PICTURES[48]).convert("RGBA")),
        "rotated": put(folder, "cat/phone.jpg", PICTURES[49], exif=exif),
        "grey": put(folder, "cat/grey.jpg", PICTURES[51][..., 0]),
        "narrow": put(folder, "cat/strip.png", photo(50, 200, 60)),
    }
    report = examine(folder)
    found = kinds(report)
    assert found.keys() == planted.keys()
    for kind, path in planted.items():
        assert files(report, found[kind]) == {f"cat/{path.name}"}, kind
    assert not report.fails
    assert {f.kind for f in report.findings if f.severity == "warn"} == {"doubtful", "constant"}
    assert "premature end" in found["doubtful"].examples[0]
    assert report.tally("mode")["CMYK"] == 1
    assert report.quantiles()["short_side"][0] == 50


def test_sixteen_bits_are_noticed_and_wider_values_cannot_be_decoded(folder: Path) -> None:
    for suffix in ("png", "tif"):
        deep = PICTURES[50][..., 0].astype(np.uint16) * 257
        put(folder, f"cat/deep.{suffix}", Image.fromarray(deep))
    put(folder, "cat/wide.tif", Image.fromarray(np.full((40, 40), 70_000, np.int32)))
    report = examine(folder)
    found = kinds(report)
    assert files(report, found["deep"]) == {"cat/deep.png", "cat/deep.tif"}
    assert found["unsupported"].examples[0].startswith("cat/wide.tif (it is a TIFF of signed")


def test_icons_among_photographs_are_noticed_but_a_set_of_small_images_is_not(
    tmp_path: Path, folder: Path
) -> None:
    for i in range(33):
        put(folder, f"cat/large{i}.jpg", Image.fromarray(PICTURES[i]).resize((90, 80)).rotate(90))
    put(folder, "cat/icon.png", photo(16, 16, 61))
    report = examine(folder)
    assert files(report, kinds(report)["tiny"]) == {"cat/icon.png"}
    for i in range(24):
        put(tmp_path / "small", f"{i % 2}/{i}.png", photo(20, 20, i))
    assert "tiny" not in kinds(examine(tmp_path / "small"))


def test_packing_is_advised_for_large_photographs(tmp_path: Path) -> None:
    root = tmp_path / "large photos"
    for i in range(4):
        put(root, f"{'ab'[i % 2]}/{i}.jpg", np.tile(PICTURES[i], (9, 9, 1)))
    found = kinds(examine(root, val_fraction=0.0, test_fraction=0.0))
    assert "vitc data pack" in found["large"].cure
    assert "--short-side 256" in found["large"].cure


# -- copies ----------------------------------------------------------------------------------------


def splits(tmp_path: Path) -> Path:
    """Ten images of two classes in train and in val, none alike."""
    root = tmp_path / "splits"
    for i in range(20):
        part, label = ("train", "val")[i // 10], ("cat", "dog")[i % 2]
        put(root, f"{part}/{label}/{i:02}.png", photo(120, 160, i))
    return root


def test_copies_are_found_within_a_class_across_classes_and_across_splits(tmp_path: Path) -> None:
    root = splits(tmp_path)
    assert {"rare"} == kinds(examine(root)).keys()
    shutil.copy(root / "train/cat/00.png", root / "train/cat/copy.png")
    put(root, "train/dog/again.webp", photo(120, 160, 2), lossless=True)  # of cat/02
    shutil.copy(root / "train/cat/04.png", root / "val/cat/leaked.png")
    put(root, "train/dog/near.jpg", resaved(photo(120, 160, 1)))
    put(root, "train/cat/near.jpg", resaved(photo(120, 160, 3), 0.5))
    put(root, "val/dog/near.jpg", resaved(photo(120, 160, 5), 0.7))
    report = examine(root)
    found = kinds(report)
    assert {kind: files(report, f) for kind, f in found.items() if f.places is not None} == {
        "same_leak": {"train/cat/04.png", "val/cat/leaked.png"},
        "same_conflict": {"train/cat/02.png", "train/dog/again.webp"},
        "same_copies": {"train/cat/00.png", "train/cat/copy.png"},
        "near_leak": {"train/dog/05.png", "val/dog/near.jpg"},
        "near_conflict": {"train/dog/03.png", "train/cat/near.jpg"},
        "near_copies": {"train/dog/01.png", "train/dog/near.jpg"},
    }
    order = [f.kind for f in report.findings]
    assert order.index("same_leak") < order.index("near_conflict") < order.index("near_copies")
    assert found["same_leak"].severity == "warn"
    assert found["same_copies"].severity == "note"
    assert "--data.group" in found["near_leak"].cure
    assert found["same_leak"].examples == ("train/cat/04.png = val/cat/leaked.png",)


def test_a_copy_on_the_other_side_of_the_hold_out_is_a_leak_until_its_group_is_named(
    folder: Path,
) -> None:
    for i in range(12):
        put(folder, f"cat/{i:02}_again.jpg", resaved(PICTURES[i], quality=85))
    assert kinds(examine(folder))["near_leak"].count >= 2
    cured = kinds(examine(folder, group=r"(\w+/\d+)"))
    assert "near_leak" not in cured
    assert cured["near_copies"].count == 24


# -- classes, and what lies beside -----------------------------------------------------------------


def test_class_troubles_are_found_with_their_cure(tmp_path: Path) -> None:
    root = tmp_path / "classes"
    for i in range(30):
        put(root, f"train/cat/{i}.jpg", PICTURES[i])
    for i in range(3):
        put(root, f"train/cats/{i}.jpg", PICTURES[30 + i])
        put(root, f"val/cat/{i}.jpg", PICTURES[40 + i])
    put(root, "train/Dog /0.jpg", PICTURES[50])
    found = kinds(examine(root))
    assert found["alike_names"].names == ("cat", "cats")
    for other in ("c\u0430t", "\uff43\uff41\uff54", "c\xadat", "cat\u200b"):
        text = " ".join(finding.text for finding in _alike_names(("cat", "dog", other)))
        assert ascii(other) in text
    assert [f.names for f in _alike_names(("1", "01", "10"))] == [("1", "01")]
    assert not [*_alike_names(("кот", "\u043a\u0438\u0442", "10", "100"))]
    assert found["single"].names == ("Dog ",)
    assert found["rare"].names == ("cats",)
    assert "--data.balance sqrt" in found["unbalanced"].cure
    assert "30 times" in found["unbalanced"].text
    assert found["absent_val"].names == ("Dog ", "cats")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat/0.jpg", "cat/1.jpg", "dog/0.jpg"], "one image only: 'dog'"),
        (["cat/0.jpg", "cat/1.jpg"], "one class only"),
        (["cat/0.jpg", "Cat/0.jpg"], "upper and lower case"),
        (["cat/0.jpg", "cat/1.jpg", "dog/readme.txt"], "without any image"),
        (["train/a/0.jpg", "train/b/0.jpg", "val/c/0.jpg"], "that training lacks: 'c'"),
        (["0.jpg", "1.jpg"], "no sub-folders"),
        (["train/a/0.jpg", "train/b/0.jpg", "val/a/notes.txt"], "no image"),
    ],
)
def test_what_training_refuses_is_reported_and_the_rest_is_still_examined(
    tmp_path: Path, names: list[str], words: str
) -> None:
    for i, name in enumerate(names):
        put(tmp_path / "x", name, b"words" if name.endswith("txt") else PICTURES[i])
    broken = put(tmp_path / "x", f"{Path(names[0]).parent}/zz.jpg", b"nothing")
    report = examine(tmp_path / "x")
    first = report.findings[0]
    assert (first.kind, first.severity) == ("refused", "stop")
    assert words in first.text
    if "/" in names[0]:
        assert files(report, kinds(report)["no_image"]) == {str(broken.relative_to(tmp_path / "x"))}


def test_what_is_ignored_is_named(folder: Path) -> None:
    (folder / "cat" / "gone.jpg").symlink_to("/nowhere/at/all")
    (folder / "cat" / "loop").symlink_to(folder)
    put(folder, "cat/folder.jpg/inside.jpg", PICTURES[40])
    put(folder, "cat/.hidden.jpg", PICTURES[41])
    put(folder, "dog/notes.txt", b"words")
    put(folder, "astray.jpg", PICTURES[42])
    os.mkfifo(folder / "dog" / "pipe.jpg")
    report = examine(folder)
    named = {kind: f.names for kind, f in kinds(report).items() if f.places is None}
    assert named == {
        "loose": ("astray.jpg",),
        "links": ("cat/gone.jpg",),
        "folders": ("cat/folder.jpg",),
        "special": ("dog/pipe.jpg",),
        "other": ("dog/notes.txt",),
        "hidden": ("cat/.hidden.jpg",),
    }
    assert "cat/folder.jpg/inside.jpg" in list(report.names)


def test_images_beside_the_classes_of_a_split_are_loose_but_those_of_a_class_named_so_are_not(
    tmp_path: Path,
) -> None:
    for i in range(24):
        put(tmp_path / "x", f"{('train', 'other')[i % 2]}/{i}.jpg", PICTURES[i])
    assert "loose" not in kinds(examine(tmp_path / "x"))  # here train is a class
    root = splits(tmp_path)
    put(root, "train/astray.png", PICTURES[40])
    put(root, "test/unlabelled.png", PICTURES[41])
    assert kinds(examine(root))["loose"].names == ("test/unlabelled.png", "train/astray.png")


# -- other sources, samples and workers ------------------------------------------------------------


def test_stored_pixels_are_examined_as_files_are() -> None:
    report = check(DataConfig(source="synthetic"), workers=1)
    assert len(report.positions) == 768
    assert report.rate is None
    assert report.tally("format") == {"pixels": 768}
    assert not report.fails


def test_a_pack_has_the_findings_of_its_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "cat/00.jpg", folder / "dog/again.jpg")
    put(folder, "cat/film.gif", PICTURES[40])
    out = tmp_path / "p.vitc"
    assert main(["data", "pack", str(folder), str(out), "--workers", "1"]) == 0
    a = examine(folder)
    b = check(DataConfig(source="packed", path=str(out)), workers=1)
    assert len(a.findings) > 0
    assert [(f.kind, f.count, f.examples) for f in a.findings] == [
        (f.kind, f.count, f.examples) for f in b.findings
    ]


def test_a_sample_is_spread_evenly_and_only_it_is_read(folder: Path) -> None:
    report = check(DataConfig(source="folder", path=str(folder)), workers=1, sample=6)
    assert len(report.positions) == 6
    assert report.positions[[0, -1]].tolist() == [0, 31]
    assert to_values(report)["examined"] == 6


def test_a_process_that_dies_ends_the_check_and_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        shutil.copy(folder / "cat/00.jpg", folder / f"cat/more{i}.jpg")
    original = check_images._record

    def fatal(split: Any, index: int) -> Any:
        if split.names[index] == "cat/more3.jpg":
            os._exit(9)  # as the kernel ends a process that takes too much memory
        return original(split, index)

    monkeypatch.setattr(check_images, "_record", fatal)
    with pytest.raises(RunError, match=r"process died on 'cat/.*or one of the \d+ images after"):
        check(DataConfig(source="folder", path=str(folder)), workers=2)


def test_any_number_of_workers_finds_the_same(folder: Path) -> None:
    broken_files(folder)
    for i in range(70):
        put(folder, f"dog/more{i}.jpg", PICTURES[i % 40] if i % 7 else resaved(PICTURES[i % 40]))
    config = DataConfig(source="folder", path=str(folder))
    reports = [check(config, workers=workers) for workers in (1, 2, 3)]
    first, *others = [({**to_values(r), "speed": None}, list(rows(r))) for r in reports]
    assert len(first[1]) > 30
    assert others == [first, first]


# -- the verb --------------------------------------------------------------------------------------


def test_the_exit_code_is_whether_training_would_fail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "check", str(folder), "--workers", "1"]
    assert main(command) == 0
    assert "No problems found" in capsys.readouterr().out
    broken_files(folder)
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "STOP" in out
    assert "cat/words.jpg" in out
    assert "Training would fail" in out
    assert main([*command, "--data.bad_files", "skip"]) == 0
    assert "Training can start" in capsys.readouterr().out


def test_a_folder_named_like_a_source_is_the_one_that_is_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.rename(folder.parent / "fashion").parent)
    assert main(["data", "check", "fashion", "--workers", "1"]) == 0
    assert "fashion: 2 classes" in capsys.readouterr().out


def test_usage_errors_exit_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["/no/such/folder"],
        [str(folder), "--sample", "0"],
        [str(folder), "--optim.lr", "0.1"],
        [str(folder), "--data.group", "absent(x)"],
        [str(folder), "--html", "/no/such/folder/page.html"],
    ):
        assert main(["data", "check", *words]) == 2, words
    assert "no folder" in capsys.readouterr().err


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Images and a class with a name that tries to be HTML and to steer the terminal."""
    for i in range(12):
        put(tmp_path / "x", f"{HOSTILE * 2 if i % 2 else 'cat'}/{i}{HOSTILE}.jpg", PICTURES[i // 2])
    put(tmp_path / "x", f"cat/{HOSTILE}.jpg", b"broken")
    return tmp_path / "x"


def test_json_csv_and_page_are_written_and_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = broken_files(folder)
    before = sorted(p for p in tmp_path.rglob("*"))
    table, html_page = tmp_path / "t.csv", tmp_path / "p.html"
    words = ["--json", "--csv", str(table), "--html", str(html_page), "--workers", "1"]
    assert main(["data", "check", str(folder), *words]) == 1
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["status"] == "would fail"
    assert {f["kind"] for f in values["findings"]} == planted.keys()
    assert values["broken"] == 4
    assert sum(values["classes"]["cat"].values()) == 20
    with table.open(newline="", encoding="utf-8") as f:
        assert {(r["kind"], r["file"]) for r in csv.DictReader(f)} == set(planted.items())
    assert sorted(p for p in tmp_path.rglob("*")) == sorted([*before, table, html_page])


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J'.replace("/", "\u2215")


def test_the_page_escapes_names_has_pictures_and_refers_to_nothing_outside(hostile: Path) -> None:
    text = html.render(page(examine(hostile)))
    tags = Tags(text).seen
    assert "script" not in {tag for tag, _ in tags}
    assert not any(key.startswith("on") for _, attrs in tags for key in attrs)
    sources = [str(attrs["src"]) for tag, attrs in tags if tag == "img"]
    assert len(sources) > 5
    assert all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert [attrs["href"] for _, attrs in tags if "href" in attrs] == ["data:,"]
    assert not any("url" in str(attrs) for _, attrs in tags)
    assert "\x1b" not in text
    assert text.count('class="bars"') == 2


def test_a_caption_keeps_a_percent_sign_with_its_number_and_is_escaped() -> None:
    text = html.fragment([Thumbnails([Thumbnail(["<b> 52 %\x1b"], None)])])
    assert "&lt;b&gt; 52&nbsp;%\\x1b</figcaption>" in text


def test_a_hostile_name_reaches_no_terminal_as_it_is(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(hostile), "--workers", "1"]) == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_without_sideways_scrolling(
    hostile: Path, tmp_path: Path, width: int
) -> None:
    shown = tmp_path / "page.html"
    shown.write_text(html.render(page(examine(hostile))), encoding="utf-8")
    loaded = "[...d.images].filter(i => i.naturalWidth > 10).length"
    found = measured(shown, width, tmp_path, images=loaded, all="d.images.length")
    assert found["images"] == found["all"] > 5
    assert found["scroll"] <= found["client"]


def test_the_help_states_the_thresholds_that_hold() -> None:
    assert f"at most {NEAR_BITS} of the 64 bits" in DATA_VERBS["check"].epilog
    assert f"{NEAR_GREY:g} of 255 grey levels" in DATA_VERBS["check"].epilog
