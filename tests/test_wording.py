"""Wording: numbers, names and lists as messages show them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from vitc.errors import ConfigError
from vitc.wording import counted, duration, few, printable, read_duration, short, size


def test_counts_lists_and_sizes() -> None:
    assert [counted(n, "image") for n in (0, 1, 2_000)] == ["0 images", "1 image", "2,000 images"]
    assert counted(2, "class", "classes") == "2 classes"
    assert few("abc", 3) == "a, b, c"
    assert few("abcde", 3) == "a, b, c and 2 more"
    assert (size(2_500_000), size(1_500_000_000)) == ("2.5 MB", "1.5 GB")


def test_durations() -> None:
    texts = ["0 s", "59 s", "1 min 00 s", "59 min 59 s", "2 h 05 min"]
    assert [duration(s) for s in (-1, 59.4, 60, 3599, 7500)] == texts


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *[("6m", 360), ("6 min", 360), ("6min", 360), ("6 minutes", 360), ("6M", 360)],
        *[("1h30", 5400), ("1h30m", 5400), ("1 h 30 min", 5400), ("1 hour, 30 minutes", 5400)],
        *[("90s", 90), ("90 sec", 90), ("1.5h", 5400), ("2m30", 150), ("1d2h", 93600)],
        *[(360, 360), (0.5, 0.5), (timedelta(minutes=6), 360)],
    ],
)
def test_a_time_is_read_in_every_way_people_write_it(time: Any, seconds: float) -> None:
    assert read_duration(time) == seconds


@pytest.mark.parametrize(
    "time",
    [
        *["360", "6", "", "m", "six minutes", "6 parsecs", "30m1h", "1h30s20", "1:30", "1m1m"],
        *["-5m", "0s", 0, -1, float("nan"), float("inf"), True, None, "5m extra", "1e3s"],
    ],
)
def test_no_time_is_guessed(time: Any) -> None:
    with pytest.raises(ConfigError, match="must be a time such as 90s"):
        read_duration(time)


def test_text_of_strangers_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202e") == r"a\x1b[2Jb\u202e"
    assert short("a  b\nc\0") == r"a b c\x00"
    assert short("x" * 500, 20) == "x" * 17 + "..."
    assert short("x" * 20, 20) == "x" * 20
