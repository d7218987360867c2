"""Random layouts with a known truth are read right or refused, never silently otherwise."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from tests.layout_cases import MAKERS, Case, Maker, random_tree, write_tar
from tests.source_folders import WHOLE, opened, png
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet, open_data
from vitc.data.pack import PackOptions, pack
from vitc.errors import VitcError

NUMBER = {png(i): i for i in range(1000)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def outcome(case: Case, packed: bool = False) -> tuple[str, str]:
    """right, refused or wrong, and why."""
    config = DataConfig(source=case.source, path=str(case.path), **(WHOLE | case.settings))
    try:
        if packed:
            out = case.path.parent / "packed.vitc"
            pack(config, out, PackOptions(), workers=1)
            config = DataConfig(source="packed", path=str(out), **WHOLE)
        data = open_data(config)
    except VitcError as error:
        return "refused", str(error)
    found = {
        NUMBER[bytes(split.stored(i))]: (data.classes[split.labels[i]], name)  # type: ignore[arg-type]
        for name, split in data.splits.items()
        for i in range(len(split))
    }
    silent = [word for word in case.unused if word not in "\n".join(data.notes)]
    if silent:
        return "wrong", f"{silent} unused, but not reported: {data.notes}"
    if found == case.truth and case.readable:
        return "right", ""
    pairs = [(n, case.truth.get(n), found.get(n)) for n in sorted(found.keys() | case.truth)]
    return "wrong", f"{[p for p in pairs if p[1] != p[2]][:4]} {data.notes}"


def run(kind: str, seeds: range, root: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        case = MAKERS[kind](Maker(seed, root))
        result, why = outcome(case, packed=seed % 8 == 7)
        told = f"{kind} {seed}: {case.about} {case.path}\n{why}"
        assert result != "wrong", told
        assert not (result == "refused" and case.clear and case.readable), told
        ambiguous = " (ambiguous)" if result == "refused" and case.readable else ""
        counts[result + ambiguous] += 1
    return counts


def kinds() -> list[str]:
    without = [] if importlib.util.find_spec("pyarrow") else ["table"]
    return [kind for kind in MAKERS if kind not in without]


@pytest.mark.parametrize("kind", kinds())
def test_layouts_are_read_right_or_refused(kind: str, tmp_path: Path) -> None:
    counts = run(kind, range(12), tmp_path)
    assert counts["right"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_hundreds_of_layouts_are_read_right_or_refused(kind: str, tmp_path: Path) -> None:
    counts = run(kind, range(1000, 1200), tmp_path)
    print(f"{kind}: {dict(counts)}")
    assert counts["right"] >= 150
    assert counts["refused (ambiguous)"] <= 30


def sides(data: DataSet) -> dict[str, tuple[str, int]]:
    """Name of an image, without its tar -> split and label."""
    return {
        name.removeprefix("set.tar/"): (split, int(part.labels[i]))
        for split, part in data.splits.items()
        for i, name in enumerate(part.names)
    }


def reported(image: str, notes: str, root: Path) -> bool:
    """Whether the notes name a folder that the image is in, or the files beside it."""
    *folders, file = image.split("/")
    beside = f"next to the class folders of {(folders or [root.name])[-1]!r}"
    return beside in notes or any(repr(name) in notes for name in (*folders, file))


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(150, 3000), marks=pytest.mark.slow)], ids=len
)
def test_no_image_of_a_random_tree_is_lost_without_a_note(seeds: range, tmp_path: Path) -> None:
    read = 0
    for seed in seeds:
        root = tmp_path / str(seed)
        images = random_tree(seed, root)
        try:
            data = opened(root, **WHOLE)
        except VitcError:
            continue
        read += 1
        used = sides(data)
        notes = "\n".join(data.notes)
        lost = [name for name in images if name not in used and not reported(name, notes, root)]
        assert not lost, (seed, images, notes)
        write_tar(root / "set.tar", {name: (root / name).read_bytes() for name in images})
        config = DataConfig(source="tar", path=str(root / "set.tar"), **WHOLE)
        if any("/" not in name for name in images):  # a sample of a tar without a label
            with pytest.raises(VitcError, match="has no label"):
                open_data(config)
            continue
        same = open_data(config)
        tarred = sides(same)
        assert tarred == used
        assert same.classes == data.classes
        assert len(tarred) == len(images) or "of no class left out" in "\n".join(same.notes)
    assert read > len(seeds) / 20
