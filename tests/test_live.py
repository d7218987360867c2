"""`vitc show RUN --live`: what a run is doing, until it ends; and the page that reloads itself."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from vitc.cli.main import main
from vitc.deploy import live
from vitc.deploy.live import bars, follow, live_page, write_live
from vitc.files import LOCK, FolderLock


@pytest.fixture
def going(trained: Path, tmp_path: Path) -> Path:
    """A run folder as this very process would be writing it."""
    for name in ("config.json", "data.json", "metrics.jsonl", "events.log"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


def test_a_run_that_ended_is_shown_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(trained), "--live"]) == 0
    out = capsys.readouterr().out
    assert out.count("done") == 1
    assert "top1" in out


def test_a_run_is_followed_until_it_ends(
    going: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, looks = FolderLock(going), iter(range(10))
    assert (going / LOCK).exists()

    def wait(seconds: float) -> None:
        look = next(looks)
        if look == 0:
            with open(going / "metrics.jsonl", "a") as file:
                file.write(
                    json.dumps({"kind": "train", "step": 99, "loss": 0.5, "epoch": 1}) + "\n"
                )
        if look == 1:
            (going / "summary.json").write_bytes((trained / "summary.json").read_bytes())

    monkeypatch.setattr(live.time, "sleep", wait)
    stream = io.StringIO()
    follow(going, stream, page=True)
    lock.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "running" in lines[0]
    assert "step 99" in lines[1]
    assert "loss 0.500" in lines[1]
    assert "done" in lines[2]
    assert 'http-equiv="refresh"' not in (going / "live.html").read_text()


def test_the_page_reloads_itself_while_the_run_is_going(going: Path) -> None:
    (going / "events.log").write_text(
        "2026-01-01T00:00:00+00:00  Warning: dead BatchNorm since step 5 (<stem>): all alike\n"
    )
    text = write_live(going, live_page(going), going=True).read_text()
    assert '<meta http-equiv="refresh" content="10">' in text
    assert "dead BatchNorm since step 5 (&lt;stem&gt;)" in text
    assert "<script" not in text
    assert "<svg" in text


def test_bars_go_from_the_smallest_to_the_largest() -> None:
    assert bars([3, 2, 1, 0], 4) == "█▆▃▁"
    assert bars([1.0] * 100, 10) == "▁" * 10
    assert len(bars(list(range(1000)), 60)) == 60
    assert len(bars([1, 2], 60)) == 2


@pytest.mark.parametrize(
    "words", ["show RUN --page", "show RUN --live --json", "show vit_c_tiny --live"]
)
def test_options_without_effect_are_refused(
    words: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([w.replace("RUN", str(trained)) for w in words.split()]) == 2
    error = capsys.readouterr().err
    assert "--live" in error or "not a run folder" in error
