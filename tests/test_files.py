"""Files: written as a whole or not at all, read as JSON with clear errors, locked."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from vitc import files
from vitc.errors import CheckpointError, ConfigError
from vitc.files import FolderLock, read_json, replacing, write_atomically, write_json


def test_any_folder_can_be_locked(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        assert lock.held
        with pytest.raises(ConfigError, match="being written"):
            FolderLock(tmp_path)
    FolderLock(tmp_path).close()
    with pytest.raises(ConfigError, match="cannot be written"):
        FolderLock(tmp_path / "nowhere")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def fsync(number: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(code, os.strerror(code))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_an_error_while_a_file_is_replaced_leaves_the_old_one_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:  # noqa: PT012
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "old"}


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "a.lock"):
        other = multiprocessing.get_context("spawn").Process(
            target=_lock_and_write, args=[tmp_path]
        )
        other.start()
        other.join(1)
        assert not (tmp_path / "written").exists()
    other.join(60)
    assert (tmp_path / "written").exists()


def _lock_and_write(folder: Path) -> None:
    with FolderLock(folder, "a.lock", wait=True):
        (folder / "written").touch()


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": (1, [float("inf")])})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [1, [None]]}


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "line 1"), ("[1]", "holds list"), ("[" * 100_000, "damaged"), ("\0", "damaged")],
)
@pytest.mark.parametrize("error", [ConfigError, CheckpointError])
def test_a_file_that_is_no_json_object_is_named(
    tmp_path: Path,
    content: str,
    words: str,
    error: type[ConfigError] | type[CheckpointError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(error, match="cannot be read"):
        read_json(file, error)
    file.write_text(content)
    with pytest.raises(error, match=words) as caught:
        read_json(file, error)
    assert str(file) in caught.value.message
    monkeypatch.setattr(files, "JSON_LIMIT", 0)
    with pytest.raises(error, match="larger than"):
        read_json(file, error)
