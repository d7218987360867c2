"""`train.profile`: a trace that is JSON, and the ten most expensive operations in the log."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tests.test_divergence import small
from vitc.training.loop import run


def test_a_profiled_run_writes_a_trace_and_lists_ten_operations(tmp_path: Path) -> None:
    config = small(**{"train.epochs": 1, "train.eval_every_epochs": 1, "train.profile": True})
    run(config, tmp_path / "r", quiet=True)
    with gzip.open(tmp_path / "r" / "trace.json.gz") as file:
        names = {e.get("name") for e in json.load(file)["traceEvents"]}
    assert "aten::addmm" in names
    events = (tmp_path / "r" / "events.log").read_text().splitlines()
    lines = [line.split("  ", 1)[1] for line in events]
    first = next(i for i, line in enumerate(lines) if line.startswith("profile of 5 steps: "))
    shares = [float(line.split("%")[0]) for line in lines[first + 1 : first + 11]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.5
    assert not any(" calls  " in line for line in lines[first + 11 :])
