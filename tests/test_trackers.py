"""What a tracker gets is what its own library reads back, also over a resume."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.test_divergence import small
from vitc.config import to_dict
from vitc.errors import ConfigError
from vitc.machine import install_line
from vitc.runs.folder import Run
from vitc.training import trackers
from vitc.training.loop import run
from vitc.training.trackers import TRACKERS, scalars

SHORT = {"train.epochs": 2, "train.eval_every_epochs": 1}


def expected(out: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of every line that has a number, as metrics.jsonl holds them."""
    kind, _, key = name.partition("/")
    return [(m["step"], m[key]) for m in Run(out).metrics(kind)]


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'vitc[track]'")


class Recorder:
    """A tracker that keeps what it gets."""

    package, remedy = "json", ""
    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def __init__(self, run: Path, name: str, settings: Mapping[str, Any], kept: str | None) -> None:
        self.calls.append(("init", name, settings["train.epochs"], kept))

    id = "the-run"

    def start(self, step: int) -> None:
        self.calls.append(("start", step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(values)))

    def close(self, status: str) -> None:
        self.calls.append(("close", status))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setitem(TRACKERS, "tensorboard", Recorder)
    return Recorder


def test_a_tracker_gets_every_line_and_a_resumed_run_continues_its_own(
    tmp_path: Path, recorder: type[Recorder]
) -> None:
    from tests.test_loop import stop_after

    config = small(**SHORT, **{"train.track": "tensorboard"})
    stop_after(config, tmp_path / "r", step=10)
    run(config, tmp_path / "r", quiet=True)
    begun = [c for c in recorder.calls if c[0] in ("init", "start", "close")]
    assert begun[0] == ("init", "debug", 2, None)
    assert begun[1:4] == [
        ("start", 0),
        ("close", "interrupted"),
        ("init", "debug", 2, "the-run"),
    ]
    assert begun[4][1] >= 10
    assert begun[5] == ("close", "done")
    got = {
        c[1]: c[2]["train/loss"] for c in recorder.calls if c[0] == "log" and "train/loss" in c[2]
    }
    assert sorted(got.items()) == expected(tmp_path / "r", "train/loss")
    assert any("eval/top1" in c[2] for c in recorder.calls if c[0] == "log")


def test_a_tracker_that_fails_stops_no_run(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Recorder, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("no such host")

    monkeypatch.setattr(recorder, "log", refuse)
    result = run(small(**SHORT, **{"train.track": "tensorboard"}), tmp_path / "r", quiet=True)
    assert result.status == "done"
    events = (tmp_path / "r" / "events.log").read_text()
    assert events.count("tracking has stopped (ConnectionError: no such host)") == 1


def test_one_that_is_not_installed_is_refused_with_the_line_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.Wandb, "package", "no_such_package")
    with pytest.raises(ConfigError, match="not installed") as caught:
        run(small(**{"train.track": "wandb"}), tmp_path / "r", quiet=True)
    assert install_line("track") in str(caught.value.hint)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("tensorboard", "pip install --upgrade tensorboard"),
        ("wandb", "WANDB_MODE=offline"),
        ("mlflow", "unset MLFLOW_TRACKING_URI"),
    ],
)
def test_what_cannot_start_a_run_names_a_remedy_of_its_own(
    kind: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Any:
        raise ConnectionError("no such host")

    monkeypatch.setattr(trackers.importlib, "import_module", refuse)
    with pytest.raises(ConfigError, match="cannot start a run: no such host") as caught:
        trackers.open_tracker(kind, tmp_path, "r", {})
    assert remedy in str(caught.value.hint)
    assert ("WANDB" in str(caught.value.hint)) == (kind == "wandb")


def test_scalars_are_finite_numbers_by_kind_and_position() -> None:
    line = {"kind": "watch", "step": 5, "a": [1, math.nan, 2.5], "b": 3, "c": "text", "d": None}
    assert scalars(line) == {"watch/a/0": 1.0, "watch/a/2": 2.5, "watch/b": 3.0}


# -- with the libraries themselves, in processes of their own: they leave threads and warnings ---

TRAIN = """
import sys, json, torch
torch.set_num_threads(1)
from pathlib import Path
from vitc.config import from_dict
from vitc.training.loop import run
run(from_dict(json.load(open(sys.argv[1]))), Path(sys.argv[2]), quiet=True)
"""


# The file of W&B is a log of LevelDB after 7 bytes: blocks of 32 KiB, records that may be divided.
READ_WANDB = """
import sys, json, struct
from wandb.proto import wandb_internal_pb2 as pb
data, at, whole, found = open(sys.argv[1], "rb").read(), 7, b"", []
while at + 7 <= len(data):
    left = 32768 - at % 32768
    if left < 7:
        at += left
        continue
    _, length, kind = struct.unpack("<IHB", data[at : at + 7])
    whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
    if kind not in (1, 4):  # the first or middle part of a record
        continue
    record = pb.Record()
    record.ParseFromString(whole)
    whole = b""
    if record.WhichOneof("record_type") == "history":
        items = record.history.item
        v = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
        if "train/loss" in v:
            found.append((v["step"], v["train/loss"]))
print(json.dumps(found))
"""


def tracked(tmp_path: Path, kind: str, **environment: str) -> Path:
    config = small(**SHORT, **{"train.track": kind})
    file, out = tmp_path / "c.json", tmp_path / "run"
    file.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-c", TRAIN, str(file), str(out)]
    env = {**os.environ, **environment}
    subprocess.run(command, check=True, timeout=300, capture_output=True, env=env)
    return out


def test_tensorboard_reads_its_files(tmp_path: Path) -> None:
    needs("tensorboard")
    out = tracked(tmp_path, "tensorboard")
    read = (
        "import sys, json\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "e = EventAccumulator(sys.argv[1]); e.Reload()\n"
        "names = e.Tags()['scalars']\n"
        "print(json.dumps({n: [(s.step, s.value) for s in e.Scalars(n)] for n in names}))"
    )
    command = [sys.executable, "-c", read, str(out / "tensorboard")]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    got = json.loads(done.stdout.splitlines()[-1])
    for name in ("train/loss", "train/lr", "eval/top1"):
        values = expected(out, name)
        assert [s for s, _ in got[name]] == [s for s, _ in values]
        assert [v for _, v in got[name]] == pytest.approx([v for _, v in values], rel=1e-6)


def test_mlflow_reads_its_file_store(tmp_path: Path) -> None:
    needs("mlflow")
    out = tracked(tmp_path, "mlflow")
    kept = json.loads((out / "tracker.json").read_text())
    folder = next((out / "mlflow").glob(f"*/{kept['id']}"))
    assert (folder / "params" / "train.epochs").read_text() == "2"
    lines = (folder / "metrics" / "train" / "loss").read_text().splitlines()
    got = [(int(step), float(value)) for _, value, step in (line.split()[:3] for line in lines)]
    assert got == expected(out, "train/loss")
    assert "status: 3" in (folder / "meta.yaml").read_text()  # finished


def test_wandb_reads_what_it_kept_offline(tmp_path: Path) -> None:
    needs("wandb")
    out = tracked(tmp_path, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    kept = json.loads((out / "tracker.json").read_text())
    file = next((out / "wandb").glob(f"offline-run-*-{kept['id']}/run-{kept['id']}.wandb"))
    command = [sys.executable, "-c", READ_WANDB, str(file)]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    got = [tuple(each) for each in json.loads(done.stdout.splitlines()[-1])]
    assert got == expected(out, "train/loss")
