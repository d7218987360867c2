"""Progress: plain lines where stderr is no terminal, with rate and time left."""

from __future__ import annotations

import time

import pytest

from vitc.progress import Progress


def test_a_plain_line_counts_rate_and_time_left_from_where_it_began(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("packing") as progress:
        progress.update(50, 250)  # 50 had been there before
        clock[0] += 5
        progress.update(60, 250)
        assert capsys.readouterr().err == ""  # no line every moment
        clock[0] += 5
        progress.update(70, 250)
    assert capsys.readouterr().err.split() == [
        "packing",
        "70/250",
        "2",
        "img/s",
        "about",
        "1",
        "min",
        "30",
        "s",
        "left",
    ]
    assert progress.left() == "about 1 min 30 s left"
    with Progress("training", 100, "steps") as slow:
        clock[0] += 10
        slow.update(4)
    assert "training  4/100  0.4 steps/s" in capsys.readouterr().err


def test_quiet_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("run", 10, "steps", quiet=True, plain_seconds=0) as progress:
        progress.line("a line")
        progress.update(5, note="loss 1")
    assert capsys.readouterr().err == ""


def test_a_line_keeps_brackets_and_length(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("run", 10) as progress:
        progress.line(f"[3/4] {'long ' * 40}")
    assert capsys.readouterr().err == f"[3/4] {'long ' * 40}\n"
