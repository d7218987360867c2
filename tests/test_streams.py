"""A program outlives its terminal: closed, full and broken streams, and locales without UTF-8."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import pytest
from PIL import Image

from vitc.cli.main import main
from vitc.progress import Progress
from vitc.streams import Stream, guarded

PIPE, FULL, CLOSED = "broken", "full", "closed"


class Full(io.StringIO):
    """A stream whose disk is full from the start."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_lost_output_is_remembered_and_only_needed_output_raises() -> None:
    stream = Stream(Full())
    assert stream.write("one") == 3
    assert stream.lost == "No space left on device"
    stream.flush()
    needed = Stream(Full(), needed=True)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            needed.write("one")
    absent = Stream(None)
    absent.write("one")
    assert absent.lost == "it is closed"
    kept = Stream(io.StringIO())
    kept.write("one")
    assert (kept.getvalue(), kept.lost) == ("one", "")


def test_streams_are_put_back() -> None:
    before = sys.stdout, sys.stderr
    with guarded() as (out, err):
        assert sys.stdout is cast(TextIO, out)
        assert out.needed
        assert not err.needed
    assert (sys.stdout, sys.stderr) == before


def test_progress_goes_on_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    for broken in (None, Full()):
        monkeypatch.setattr(sys, "stderr", broken)
        with Progress("run", 10, plain_seconds=0) as progress:
            progress.update(5)
            progress.line("a line")
        assert progress.lost


def test_a_result_that_does_not_fit_is_exit_code_1_and_a_run_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["show", "--list"]) == 1
    assert "could not be written to stdout: No space left" in capsys.readouterr().err
    run = ["train", "debug", "--train.epochs", "1", "--data.max_train", "64", "--out"]
    assert main([*run, "a"]) == 0
    assert json.loads(Path("a/summary.json").read_text())["status"] == "done"
    assert main([*run, "b", "--json"]) == 1
    assert json.loads(Path("b/summary.json").read_text())["status"] == "done"


def test_a_run_without_stderr_notes_that_in_its_events(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    brief = ["--train.epochs", "1", "--data.max_train", "64"]
    assert main(["train", "debug", *brief, "--out", str(tmp_path / "r")]) == 0
    assert "stderr is lost (No space left on device)" in (tmp_path / "r" / "events.log").read_text()


# -- whole processes -------------------------------------------------------------------------------


def opened(how: str) -> int | None:
    """A file descriptor of that kind; None: closed."""
    if how == CLOSED:
        return None
    if how == FULL:
        return os.open("/dev/full", os.O_WRONLY)
    reading, writing = os.pipe()
    if how == PIPE:
        os.close(reading)
    return writing


def started(words: list[str], out: str, err: str, cwd: Path) -> subprocess.Popen[bytes]:
    numbers = {1: opened(out), 2: opened(err)}

    def arrange() -> None:  # in the child, before exec
        for number, found in numbers.items():
            if found is None:
                os.close(number)
            else:
                os.dup2(found, number)

    process = subprocess.Popen([sys.executable, "-m", "vitc", *words], cwd=cwd, preexec_fn=arrange)
    for found in numbers.values():
        if found is not None:
            os.close(found)
    return process


def status(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text("utf-8"))["status"])


LONG = ["train", "debug", "--train.log_every_steps", "1", "--out", "r"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "err"), list(itertools.product((PIPE, FULL, CLOSED), (PIPE, FULL, CLOSED)))
)
def test_a_run_finishes_whatever_its_streams_are(out: str, err: str, tmp_path: Path) -> None:
    assert started(["train", "debug", "--out", "r"], out, err, tmp_path).wait(timeout=600) == 0
    assert status(tmp_path / "r") == "done"
    assert (tmp_path / "r/checkpoints/latest").exists()
    assert "stderr is lost" in (tmp_path / "r/events.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("how", [PIPE, FULL, CLOSED])
def test_a_study_finishes_whatever_its_streams_are(how: str, tmp_path: Path) -> None:
    words = ["study", "hparams", "debug", "--draws", "2", "--workers", "2", "--out", "s"]
    assert started(words, how, how, tmp_path).wait(timeout=600) == 0


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 2, 5, 20])
def test_a_reader_that_goes_away_in_the_middle_loses_nothing(lines: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitc", *LONG]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stderr is not None
    assert run.stdout is not None
    for _ in range(lines):
        run.stderr.readline()
    run.stderr.close()
    run.stdout.close()
    assert run.wait(timeout=600) == 0
    assert status(tmp_path / "r") == "done"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.6])
def test_a_terminal_that_hangs_up_leaves_a_run_to_resume(seconds: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitc"]
    run = subprocess.Popen([*command, *LONG], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (tmp_path / "r/metrics.jsonl").exists() and run.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    run.send_signal(signal.SIGHUP)
    code = run.wait(timeout=600)
    assert code in (0, 128 + signal.SIGHUP)
    if code:
        assert status(tmp_path / "r") == "interrupted"
        again = [*command, "train", "r"]
        assert subprocess.run(again, cwd=tmp_path, check=False).returncode == 0
    assert status(tmp_path / "r") == "done"


@pytest.mark.slow
def test_names_beyond_ascii_in_a_locale_without_utf_8(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("ü", "猫", "plain"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"é{i}.png")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (
        ["data", "check", "photos"],
        ["train", "photos", "--train.epochs", "1", "--out", "r"],
        ["predict", "r", "photos"],
        ["evaluate", "r"],
        ["show", "r"],
    ):
        command = [sys.executable, "-m", "vitc", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **plain}, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
    assert "猫" in json.loads((tmp_path / "r/data.json").read_text("utf-8"))["classes"]
