"""Random layouts with a known truth are read right or refused, never silently otherwise."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from tests.layout_cases import MAKERS, Case, Maker
from tests.source_folders import WHOLE, png
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data
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
