"""Runs killed at random moments, alone and in two processes, end with the same bits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from scripts.kills import differences, series


def test_a_difference_of_one_bit_is_found() -> None:
    a = {"step": "step_3", "w": torch.zeros(3)}
    assert differences(a, {"step": "step_3", "w": torch.zeros(3)}) == []
    changed = torch.zeros(3)
    changed[1] = 2.0**-149
    assert differences(a, {"step": "step_3", "w": changed, "more": 1}) != []
    assert sorted(differences(a, {"w": changed})) == ["step", "w"]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "times"), [(1, 6), (2, 4)])
def test_runs_that_are_killed_at_random_moments_end_with_the_same_bits(
    world: int, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert series(1, world, 3, tmp_path, random.randrange(1000)) == []
    assert series(times, world, 3, tmp_path, random.randrange(1000)) == []
    assert f"{times} kills" in capsys.readouterr().out
    done = (tmp_path / "done.jsonl").read_text().splitlines()
    killed = [json.loads(line)["killed"] for line in done]
    assert sum(sum(each.values()) for each in killed) == times
