"""What a run logs: the line on what bounds the rate, with what to change."""

from __future__ import annotations

import pytest

from vitc.training.utilisation import what_limits


@pytest.mark.parametrize(
    ("wait", "workers", "device", "words"),
    [
        (0.5, 4, "cpu", ("computing limits", "5 %", "--model")),
        (0.5, 4, "cuda", ("computing limits", "--train.compile")),
        (
            5.0,
            2,
            "cuda",
            ("the loader limits", "50 %", "--data.workers 8 (now 2", "vitc data pack"),
        ),
        (5.0, 8, "cuda", ("the loader limits", "vitc data pack")),
        (0.0, None, "cuda", ("computing limits", "resident on cuda")),
    ],
)
def test_the_line_names_the_limit_and_the_cure(
    wait: float, workers: int | None, device: str, words: tuple[str, ...]
) -> None:
    line = what_limits(wait, 10.0, workers, 8, device)
    for word in words:
        assert word in line
    assert "\n" not in line


def test_a_loader_that_shares_the_cores_is_named_as_the_cause_not_as_a_cure() -> None:
    line = what_limits(5.0, 10.0, 1, 1, "cpu")
    assert "as it shares 1 core with training; faster: pack" in line


def test_no_more_processes_are_advised_than_there_are_cores() -> None:
    assert "--data.workers" not in what_limits(9.0, 10.0, 8, 8, "cuda")
