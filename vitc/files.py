"""How is a file written so that nothing is lost, read as JSON, or locked? Used by every room.

A file or folder is written under a name that starts with `.tmp-`, synced, then renamed: a kill or
a power cut at any instant leaves the old content or the new. Whoever writes to the folder next
removes what a killed process left under such a name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitc.errors import ConfigError, VitcError

try:
    import fcntl
except ImportError:  # Windows, untested: nothing there keeps two processes out of one folder
    fcntl = None  # type: ignore[assignment]

LOCK, TEMPORARY = ".lock", ".tmp-"
JSON_LIMIT = 64 << 20  # bytes; a stranger's file must not fill the memory
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}  # some network file systems


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write a file and wait until the disk has it; returns its SHA-256 in hex. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Wait until the disk has what was written to a file. Raises OSError."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder: after creating, renaming, removing one."""
    if os.name == "nt":  # Windows opens no folders
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(number)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; once the block ends, that file replaces `path` as a whole.

    The name is this process's own. After an error in the block `path` is as it was and nothing is
    left over. Raises OSError.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_output(file: Path, inputs: Iterable[str]) -> None:
    """Raises ConfigError: there is no folder for a file that is to be written, or it is one of the
    files that are to be read."""
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder {file.parent}.", "Make it, or choose another one.")
    for path in inputs:
        with contextlib.suppress(OSError):
            if os.path.samefile(file, path):
                raise ConfigError(
                    f"{file} is read by this command: its output would replace it.",
                    "Choose another name.",
                )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: readers see the old or the new one. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def discard(path: Path) -> None:
    """Remove a file or a folder; a kill meanwhile leaves no half of it under its name."""
    hidden = path.with_name(TEMPORARY + "gone-" + path.name)
    with contextlib.suppress(OSError):  # what stays is tried again by remove_leftovers
        os.replace(path, hidden)
        if hidden.is_dir() and not hidden.is_symlink():
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            hidden.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left unfinished in a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def plain(value: Any, non_finite: Callable[[float], Any] = lambda _: None) -> Any:
    """`value` with every float that is not finite replaced, and containers JSON knows."""
    if isinstance(value, float) and not math.isfinite(value):
        return non_finite(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v, non_finite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, non_finite) for v in value]
    return value


def to_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """Strict JSON; floats keep all their bits, and those that are not finite become null."""
    return json.dumps(plain(values), indent=indent, allow_nan=False)


def write_json(path: Path, values: Mapping[str, Any], indent: int | None = 2) -> None:
    """Replace a file as a whole with `values` as strict JSON. Raises OSError."""
    write_atomically(path, to_json(values, indent) + "\n")


def read_json(
    path: Path,
    error: type[VitcError] = ConfigError,
    decode: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """The JSON object in a file. Raises `error`, which names the file and what is wrong with it."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise error(f"{path} is larger than {JSON_LIMIT >> 20} MiB, too large to be read.")
        values = json.loads(path.read_bytes(), object_hook=decode)
    except OSError as e:
        raise error(f"{path} cannot be read: {e.strerror}.") from e
    except (ValueError, RecursionError) as e:
        raise error(f"{path} is damaged or not JSON: {e}.") from e
    if not isinstance(values, dict):
        raise error(f"{path} is damaged: it holds {type(values).__name__}, not a JSON object.")
    return values


def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a stranger's JSON, as `object_pairs_hook`. Raises ValueError: a key appears
    twice, where Python would keep the last."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:40]!r} appears twice")
        values[key] = value
    return values


class FolderLock:
    """One process alone writes a folder, from here until `close`, or the end of a `with`.

    The lock goes with the process, however it dies. Workers forked from it give up their share,
    or a run that was killed could not be resumed while one of them is still alive. `held` is
    False where the platform or the file system has no locks; nothing is protected there. `wait`
    for the other process instead of raising. Raises ConfigError: another process has the lock
    (the message names it), or the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str = LOCK, *, wait: bool = False) -> None:
        self._number: int | None = None
        if fcntl is None:
            return
        try:
            number = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(
                f"The folder {folder} cannot be written: {error.strerror}.", "Choose another one."
            ) from error
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            holder = os.pread(number, 200, 0).decode(errors="replace").strip()
            os.close(number)
            if error.errno in NO_LOCKS:
                return
            raise ConfigError(
                f"The folder {folder} is being written by {holder or 'another process'}.",
                "Wait until it has ended, or choose another folder.",
            ) from error
        self._number = number
        _LOCKS.add(self)
        with contextlib.suppress(OSError):  # only for the message above
            os.ftruncate(number, 0)
            os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    @property
    def held(self) -> bool:
        return self._number is not None

    def close(self) -> None:
        """Let others write; may be called twice."""
        if self._number is not None:
            # Unlocked, not only closed: a worker forked this moment may still hold its share.
            with contextlib.suppress(OSError):
                fcntl.flock(self._number, fcntl.LOCK_UN)
        self._drop()

    def _drop(self) -> None:
        number, self._number = self._number, None
        _LOCKS.discard(self)
        if number is not None:
            os.close(number)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def writer_of(folder: Path) -> tuple[str, bool | None]:
    """(who wrote the lock's file last, whether that process is alive; None: on another machine).

    Asked without taking the lock, which would keep a starting process out. ("", False): nobody did.
    """
    try:
        text = (folder / LOCK).read_text(errors="replace")[:200].strip()
    except OSError:
        return "", False
    found = re.fullmatch(r"process (\d{1,9}) on (.+)", text)
    here = found is not None and found[2] == socket.gethostname()
    if found is None or not here or os.name == "nt":  # Windows has no signal that only asks
        return (text, None) if text else ("", False)
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return text, False
    except PermissionError:
        pass  # somebody else's
    return text, True


_LOCKS: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_locks() -> None:
    """In a forked child: close its share of the locks, which leaves them with the parent."""
    for lock in list(_LOCKS):
        lock._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)
