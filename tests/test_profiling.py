"""`train.profile`: a trace that is JSON, and the ten most expensive operations in the log."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from tests.test_divergence import small
from vitc.resolve import load_config
from vitc.training.loop import run


def notes(run: Path) -> list[str]:
    lines = (run / "events.log").read_text().splitlines()
    return [line.split("  ", 1)[1] for line in lines]


def test_a_run_too_short_for_a_trace_notes_that(tmp_path: Path) -> None:
    config = small(**{"train.epochs": 1, "train.profile": True, "data.max_train": 5 * 32})
    config = load_config(config, **{"train.batch": 32, "train.eval_every_epochs": 1})
    run(config, tmp_path / "r", quiet=True)
    assert (
        "no trace: train.profile traces steps 4 to 8 after a start or resume, and the run ended "
        "after 5 steps"
    ) in notes(tmp_path / "r")
    assert not (tmp_path / "r" / "trace.json.gz").exists()
    assert not torch.autograd._profiler_enabled()


def test_a_profiled_run_writes_a_trace_and_lists_ten_operations(tmp_path: Path) -> None:
    config = small(**{"train.epochs": 1, "train.eval_every_epochs": 1, "train.profile": True})
    run(config, tmp_path / "r", quiet=True)
    with gzip.open(tmp_path / "r" / "trace.json.gz") as file:
        names = {e.get("name") for e in json.load(file)["traceEvents"]}
    assert "aten::addmm" in names
    lines = notes(tmp_path / "r")
    assert not any(line.startswith("no trace") for line in lines)
    first = next(i for i, line in enumerate(lines) if line.startswith("profile of 5 steps: "))
    shares = [float(line.split("%")[0]) for line in lines[first + 1 : first + 11]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.5
    assert not any(" calls  " in line for line in lines[first + 11 :])
