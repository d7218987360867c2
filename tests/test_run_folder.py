"""The run folder: who may begin, continue or overwrite a run, and what is in its files."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_checkpoint import in_child
from vitc import files
from vitc.config import RunConfig, from_dict, read_config
from vitc.errors import CheckpointError, ConfigError, DataError, RunError
from vitc.files import read_json
from vitc.runs import folder as runlog
from vitc.runs.folder import Run, RunFolder

DATA = {
    "source": "folder",
    "classes": ["cat", "chien à poil"],
    "counts": {"train": 3, "val": 1},
    "img_size": [32, 48],
    "in_chans": 3,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "fit": "crop",
    "eval_crop": 0.875,
    "fingerprint": "abc",
    "notes": [],
}


def config(**overrides: Any) -> RunConfig:
    """The default config with dotted settings changed: `train__epochs=3`."""
    return from_dict({name.replace("__", "."): value for name, value in overrides.items()})


def begin(path: Path, overwrite: bool = False, **overrides: Any) -> RunFolder:
    return RunFolder.open(path, config(**overrides), overwrite=overwrite)


def end(folder: RunFolder, status: str = "done", **values: Any) -> None:
    folder.write_summary({"status": status, **values})
    folder.close()


def everything(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with begin(tmp_path / "run") as folder:
        yield folder


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_run_writes_its_config_first(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "deep" / "run"
    if exists:
        path.mkdir(parents=True)
    with begin(path, train__epochs=3, model__stem="conv", optim="sgd") as folder:
        assert not folder.resumed
        assert folder.path == path
        assert folder.checkpoints == path / "checkpoints"
        assert read_config(path) == config(train__epochs=3, model__stem="conv", optim="sgd")
        assert Run(path).metrics() == []
        assert Run(path).summary == {}


@pytest.mark.parametrize("status", [None, "failed", "interrupted", "diverged"])
def test_an_unfinished_run_of_the_same_config_continues(tmp_path: Path, status: str | None) -> None:
    with begin(tmp_path, train__epochs=3) as folder:
        folder.metric({"kind": "train", "step": 1})
        if status is not None:
            folder.write_summary({"status": status})
        assert not folder.finished
    with begin(tmp_path, train__epochs=3) as folder:
        assert folder.resumed
        assert Run(tmp_path).metrics() == [{"kind": "train", "step": 1}]
        assert Run(tmp_path).summary == {}  # the old one was of the part before


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    end(folder, top1=84.25)
    assert folder.finished
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match=r"is finished \(top1 84\.25 %\)") as caught:
        begin(tmp_path)
    assert "--overwrite" in (caught.value.hint or "")
    assert "--out" in (caught.value.hint or "")
    assert caught.value.exit_code == 2
    assert everything(tmp_path).keys() == before.keys()
    assert all(everything(tmp_path)[k] == v for k, v in before.items() if k != ".lock")


def test_a_run_of_another_config_is_refused_with_the_settings_named(tmp_path: Path) -> None:
    begin(tmp_path, train__epochs=3, optim__lr=0.1).close()
    before = everything(tmp_path)
    with pytest.raises(ConfigError) as caught:
        begin(tmp_path, train__epochs=4, optim__lr=0.2, data__workers=2)
    assert "train.epochs: 3 -> 4" in caught.value.message
    assert "optim.lr: 0.1 -> 0.2" in caught.value.message
    assert "workers" not in caught.value.message
    assert "--overwrite" in (caught.value.hint or "")
    assert everything(tmp_path) == before | {".lock": everything(tmp_path)[".lock"]}
    with begin(tmp_path, train__epochs=3, optim__lr=0.1) as folder:  # the refused one freed it
        assert folder.resumed


def test_settings_that_do_not_change_what_is_learned_may_change(tmp_path: Path) -> None:
    begin(tmp_path, data__source="folder", data__path="/there").close()
    changed: dict[str, Any] = {
        "name": "other",
        "data__source": "folder",
        "data__path": "/elsewhere",
        "data__image_column": "file",
        "data__label_column": "kind",
        "data__split_column": "part",
        "data__splits": "none",
        "data__workers": 3,
        "train__compile": True,
        "train__device": "cpu",
        "train__threads": 2,
        "train__log_every_steps": 7,
        "train__save_every_seconds": 1.0,
        "train__save_every_steps": 5,
        "train__keep_checkpoints": 1,
        "train__keep_every_epochs": 2,
        "train__keep_best": True,
        "train__on_divergence": "rollback",
        "train__profile": True,
        "train__track": "tensorboard",
    }
    with begin(tmp_path, **changed) as folder:
        assert folder.resumed
    assert "train.device: auto -> cpu" in (tmp_path / "events.log").read_text()
    assert read_config(tmp_path) == config(**changed)
    assert {k.replace("__", ".") for k in changed} - {"data.source"} == runlog.HARMLESS


def test_overwrite_restarts_and_removes_only_what_a_run_wrote(tmp_path: Path) -> None:
    with begin(tmp_path, train__epochs=3) as folder:
        folder.metric({"kind": "train", "step": 1})
        folder.write_data(DATA)
        for name in ("step_1", "step_2.old"):
            (folder.checkpoints / name).mkdir(parents=True)
            (folder.checkpoints / name / "model.safetensors").write_bytes(b"x")
        (folder.checkpoints / "latest").write_text("step_1\n")
        for name in ("mine", "start", "best"):
            (folder.checkpoints / f"{name}.safetensors").write_bytes(b"x")
        (tmp_path / "notes.txt").write_text("mine")
        end(folder)
    with begin(tmp_path, overwrite=True, train__epochs=9) as folder:
        assert not folder.resumed
    assert read_config(tmp_path) == config(train__epochs=9)
    kept = ".lock config.json events.log notes.txt checkpoints/mine.safetensors"
    assert set(everything(tmp_path)) == set(kept.split())
    assert "restarted" in (tmp_path / "events.log").read_text()


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    "files",
    [
        {"holiday.jpg": "x"},
        {"config.json": '{"architectures": ["ViT"]}', "model.safetensors": "x"},
        {"config.json": "not json"},
        {"config.json": '{"model": 1, "data": 2, "optim": 3, "train": 4}'},
        {"summary.json": "{}"},
    ],
)
def test_a_folder_that_holds_something_else_is_never_touched(
    tmp_path: Path, files: dict[str, str], overwrite: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="not a run folder"):
        begin(tmp_path, overwrite=overwrite)
    assert everything(tmp_path) == {name: text.encode() for name, text in files.items()}


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot be made"):
            begin(path)


def test_a_run_of_another_version_is_continued_by_nobody_but_may_be_overwritten(
    tmp_path: Path,
) -> None:
    begin(tmp_path).close()
    values = read_json(tmp_path / "config.json")
    values["train"]["from_the_future"] = 1
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"another version: .*train\.from_the_future"):
        begin(tmp_path)
    with begin(tmp_path, overwrite=True) as folder:
        assert not folder.resumed


def test_a_process_that_only_reads_along_changes_nothing(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", config(), overwrite=True, writer=False) as folder:
        folder.metric({"kind": "train", "step": 1})
        folder.event("x")
        folder.write_data(DATA)
        folder.cut_back(0)
        folder.sync()
        folder.write_summary({"status": "done"})
        assert not folder.finished
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "case",
    [
        "new",
        pytest.param("overwrite an unfinished run", marks=pytest.mark.slow),
        "overwrite a finished run",
    ],
)
def test_a_kill_at_any_instant_of_a_beginning_leaves_a_whole_run_or_none(
    tmp_path: Path, case: str
) -> None:
    def prepare(path: Path) -> Path:
        if case != "new":
            with begin(path) as folder:
                for step in (1, 2):
                    folder.metric({"kind": "train", "step": step})
                    (folder.checkpoints / f"step_{step}").mkdir(parents=True)
                    (folder.checkpoints / f"step_{step}" / "model.safetensors").write_bytes(b"x")
                (folder.checkpoints / "latest").write_text("step_2\n")
                if case == "overwrite a finished run":
                    folder.write_summary({"status": "done"})
        return path

    overwrite = case != "new"
    path = prepare(tmp_path / "count")
    instants = in_child(lambda: begin(path, overwrite).close())
    assert instants >= 4
    for instant in range(1, instants + 1):
        path = prepare(tmp_path / str(instant))
        action = lambda path=path: begin(path, overwrite).close()  # noqa: E731
        assert in_child(action, die_after=instant) == -1
        if Run(path).summary.get("status") == "done":
            with pytest.raises(ConfigError, match="is finished"):
                begin(path)
        else:
            begin(path).close()
            steps = [m["step"] for m in Run(path).metrics()]
            kept = sorted(p.name for p in path.glob("checkpoints/step_*"))
            assert steps == [1, 2] or not kept  # metrics reach at least as far as checkpoints
        begin(path, overwrite=True).close()
        assert Run(path).metrics() == []
        assert not list(path.glob("checkpoints/*"))
        assert not list(path.glob(".tmp-*"))


HOLD = """
import sys, time
from pathlib import Path
from vitc.config import RunConfig
from vitc.runs.folder import RunFolder
folder = RunFolder.open(Path(sys.argv[1]), RunConfig(), overwrite=False)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            for overwrite in (True, False):
                with pytest.raises(ConfigError, match=f"written by process {other.pid} on"):
                    begin(tmp_path, overwrite=overwrite)
        finally:
            other.kill()
    with begin(tmp_path) as folder:
        assert folder.resumed


def test_a_forked_worker_that_outlives_a_run_does_not_hold_its_folder(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside torch's threads
        child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent has closed its end
        os._exit(0)
    try:
        with pytest.raises(ConfigError, match="being written"):
            begin(tmp_path)  # the worker's end does not free the folder either
        folder.close()
        begin(tmp_path).close()
    finally:
        os.close(reader)
        os.close(writer)
        os.waitpid(child, 0)


def test_a_run_frees_its_folder_although_a_worker_just_forked_still_shares_the_lock(
    tmp_path: Path,
) -> None:
    folder = begin(tmp_path)
    lock = next(lock for lock in files._LOCKS if lock.held)
    share = os.dup(lock._number)  # as in a child that has not closed its own yet
    try:
        folder.close()
        begin(tmp_path).close()
    finally:
        os.close(share)


@pytest.mark.parametrize("platform_has_locks", [True, False])
def test_a_file_system_or_platform_without_locks_is_noted_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform_has_locks: bool
) -> None:
    def no_locks(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    if not platform_has_locks:
        monkeypatch.setattr(files, "fcntl", None)
    with begin(tmp_path) as folder:
        assert not folder.resumed
        assert "no file locks here" in (tmp_path / "events.log").read_text()
    with begin(tmp_path) as folder:
        assert folder.resumed


def test_metrics_come_back_with_all_their_bits(run: RunFolder) -> None:
    lines = [
        {"kind": "train", "step": 10, "loss": 0.1 + 0.2, "lr": 5e-324},
        {"kind": "eval", "step": 10, "top1": 100 / 3, "split": "val"},
        {"kind": "train", "step": 20, "loss": -0.0, "lr": 1e22},
    ]
    for line in lines:
        run.metric(line)
    assert Run(run.path).metrics() == lines
    assert Run(run.path).metrics("eval") == [lines[1]]
    assert math.copysign(1, Run(run.path).metrics("train")[1]["loss"]) == -1


def test_what_is_not_finite_is_written_as_null(run: RunFolder) -> None:
    run.metric({"kind": "train", "step": 1, "loss": math.nan, "more": [math.inf, {"x": -math.inf}]})
    run.write_summary({"status": "diverged", "loss": math.inf})
    for name in ("metrics.jsonl", "summary.json"):
        json.loads((run.path / name).read_text(), parse_constant=pytest.fail)
    assert Run(run.path).metrics() == [
        {"kind": "train", "step": 1, "loss": None, "more": [None, {"x": None}]}
    ]
    assert Run(run.path).summary == {"status": "diverged", "loss": None}


@pytest.mark.parametrize("tail", ["", '{"kind": "train", "st', '{"a": 1}\n', "\0" * 600, "\n\n"])
def test_cutting_back_keeps_the_bytes_up_to_the_step_and_drops_torn_lines(
    run: RunFolder, tail: str
) -> None:
    expected = b""
    for step in (1, 2, 3):
        for kind in ("train", "eval"):
            run.metric({"kind": kind, "step": step, "loss": 0.1 * step})
        if step == 2:
            expected = (run.path / "metrics.jsonl").read_bytes()
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(tail)
    run.cut_back(2)
    assert (run.path / "metrics.jsonl").read_bytes() == expected
    assert "cut back to step 2: 2 later lines" in (run.path / "events.log").read_text()
    run.metric({"kind": "train", "step": 3})
    assert [line["step"] for line in Run(run.path).metrics()] == [1, 1, 2, 2, 3]


def test_a_last_line_that_lacks_only_its_end_is_kept(run: RunFolder) -> None:
    run.metric({"kind": "train", "step": 1})
    whole = (run.path / "metrics.jsonl").read_bytes()
    (run.path / "metrics.jsonl").write_bytes(whole[:-1])
    assert Run(run.path).metrics() == [{"kind": "train", "step": 1}]
    run.cut_back(5)
    assert (run.path / "metrics.jsonl").read_bytes() == whole
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 2, "lo')
    assert Run(run.path).metrics() == [{"kind": "train", "step": 1}]  # readers leave it out


def test_cutting_back_nothing_writes_nothing(run: RunFolder) -> None:
    run.cut_back(0)
    run.metric({"kind": "train", "step": 1})
    before = everything(run.path)
    run.cut_back(1)
    assert everything(run.path) == before


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 1}', '{"kind": "train", "step": "1"}'])
def test_damage_before_the_last_line_is_reported_with_its_place(run: RunFolder, line: str) -> None:
    run.metric({"kind": "train", "step": 1})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    run.metric({"kind": "train", "step": 2})
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged at line 2"):
        Run(run.path).metrics()
    run.cut_back(2)  # continuing the run repairs it
    assert [v["step"] for v in Run(run.path).metrics()] == [1, 2]


def test_a_metrics_file_of_absurd_size_is_not_read(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.metric({"kind": "train", "step": 1})
    monkeypatch.setattr(runlog, "METRICS_LIMIT", 10)
    with pytest.raises(CheckpointError, match="larger"):
        Run(run.path).metrics()


def test_events_are_one_line_each_with_the_time_and_nothing_a_terminal_obeys(
    run: RunFolder,
) -> None:
    run.event("skipped broken file a\nb\x1b[2J\udcff é.jpg")
    line = (run.path / "events.log").read_text().splitlines()[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  .*", line)
    assert line.endswith(r"skipped broken file a | b\x1b[2J\udcff é.jpg")


@pytest.mark.parametrize("key", ["fingerprint", "classes"])
def test_a_run_does_not_resume_with_other_images(run: RunFolder, key: str) -> None:
    run.write_data(DATA)
    run.write_data({**DATA, "notes": ["found again"], "classes": tuple(DATA["classes"])})
    assert Run(run.path).data["notes"] == ["found again"]
    with pytest.raises(DataError, match=key) as caught:
        run.write_data({**DATA, key: ["other"] * 100})
    assert "--data.path" in (caught.value.hint or "")
    assert len(caught.value.message) < 400
    assert Run(run.path).data["notes"] == ["found again"]


INCOMPLETE = [("classes", None), ("classes", [1]), ("in_chans", "3"), ("mean", [0.5])]
INCOMPLETE += [("std", ["a", "b", "c"]), ("img_size", [32]), ("img_size", 32)]
INCOMPLETE += [("fit", "__import__"), ("eval_crop", "1"), ("eval_crop", None)]


@pytest.mark.parametrize(("key", "value"), INCOMPLETE)
def test_a_data_json_that_is_incomplete_is_refused(run: RunFolder, key: str, value: Any) -> None:
    (run.path / "data.json").write_text(json.dumps({**DATA, key: value}))
    with pytest.raises(CheckpointError, match=r"data\.json"):
        assert Run(run.path).data


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_run_on_images_of_any_number_of_channels_is_read(run: RunFolder, channels: int) -> None:
    mean = [0.5] * channels
    (run.path / "data.json").write_text(
        json.dumps({**DATA, "in_chans": channels, "mean": mean, "std": mean})
    )
    assert Run(run.path).data["mean"] == mean


def test_damaged_files_are_named(run: RunFolder) -> None:
    for name in ("data.json", "summary.json"):
        (run.path / name).write_text("{")
        with pytest.raises(CheckpointError, match=re.escape(str(run.path / name))):
            getattr(Run(run.path), name.removesuffix(".json"))


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    assert Run(tmp_path).metrics() == []
    assert Run(tmp_path).summary == {}
    with pytest.raises(CheckpointError, match="cannot be read"):
        assert Run(tmp_path).data


def test_the_summary_is_replaced_as_a_whole(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_summary({"status": "failed", "top1": 1.5})

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(RunError, match="No space left"):
                run.write_summary({"status": "done", "top1": 99.0})
        assert Run(run.path).summary == {"status": "failed", "top1": 1.5}
        assert not run.finished
        assert not list(run.path.glob(".tmp-*"))


def test_a_full_disk_under_the_metrics_is_a_clear_error(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: No space") as caught:
        run.metric({"kind": "train", "step": 1})
    assert "resumes from the last checkpoint" in (caught.value.hint or "")


def test_sync_makes_metrics_durable(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.metric({"kind": "train", "step": 1})
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (synced.append(os.fstat(n).st_ino), real(n))[1])
    run.sync()
    names = ("metrics.jsonl", "events.log", "")
    assert synced == [(run.path / n).stat().st_ino for n in names]


def test_reading_a_run_needs_no_torch() -> None:
    code = "import sys; from vitc.runs.folder import Path, Run; Run(Path('.')).metrics()"
    code += "; exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
