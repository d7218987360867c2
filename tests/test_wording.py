"""Wording: numbers, names and lists as messages show them."""

from __future__ import annotations

from vitc.wording import counted, duration, few, printable, short, size


def test_counts_lists_and_sizes() -> None:
    assert [counted(n, "image") for n in (0, 1, 2_000)] == ["0 images", "1 image", "2,000 images"]
    assert counted(2, "class", "classes") == "2 classes"
    assert few("abc", 3) == "a, b, c"
    assert few("abcde", 3) == "a, b, c and 2 more"
    assert (size(2_500_000), size(1_500_000_000)) == ("2.5 MB", "1.5 GB")


def test_durations() -> None:
    texts = ["0 s", "59 s", "1 min 00 s", "59 min 59 s", "2 h 05 min"]
    assert [duration(s) for s in (-1, 59.4, 60, 3599, 7500)] == texts


def test_text_of_strangers_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202e") == r"a\x1b[2Jb\u202e"
    assert short("a  b\nc\0") == r"a b c\x00"
    assert short("x" * 500, 20) == "x" * 17 + "..."
    assert short("x" * 20, 20) == "x" * 20
