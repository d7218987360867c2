"""How does a checkpoint reach the disk while the run continues?

Its steps wait for a copy of the state alone: on a CPU into buffers that are used again, from a GPU
into pinned memory, by transfers that the GPU makes before its next step. One thread then hashes,
writes, syncs, renames and prunes, one checkpoint after another, in the order they were saved in.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from vitc.machine import free_memory
from vitc.runs.checkpoint import Snapshot
from vitc.runs.folder import RunFolder
from vitc.wording import size

SPARE = 2  # times the memory of a copy must be free


class Writer:
    """Writes the checkpoints of one run; the end of its `with` waits for the last one.

    What the disk refuses is raised by the next `save`, `check` or `wait`: CheckpointError, or
    RunError where the run folder was removed.
    """

    def __init__(self, folder: RunFolder, note: Callable[[str], None]) -> None:
        self.folder, self.note = folder, note
        self.thread = ThreadPoolExecutor(1, "checkpoints")
        self.writing: Future[None] | None = None
        self.copies: dict[tuple[str, str], Tensor] = {}

    def save(self, snapshot: Snapshot, write: Callable[[Snapshot], object]) -> None:
        """Have `write` called with a copy of `snapshot`, after the checkpoint before it is written.

        Where memory for a copy is short, waits until it is written instead.
        """
        self.wait()
        tensors = {(f, n): t for f, part in snapshot.parts.items() for n, t in part.items()}
        copied = self._has_room(tensors)
        if copied:
            for key, tensor in tensors.items():
                self.copies[key].copy_(tensor, non_blocking=tensor.is_cuda)
            parts = {f: {n: self.copies[f, n] for n in p} for f, p in snapshot.parts.items()}
            snapshot = replace(snapshot, parts=parts)
        devices = {t.device for t in tensors.values() if t.is_cuda}
        transfers = [torch.cuda.current_stream(d).record_event() for d in devices]

        def work() -> None:
            for transfer in transfers:
                transfer.synchronize()
            self.folder.sync()
            write(snapshot)

        self.writing = self.thread.submit(work)
        if not copied:
            self.wait()

    def check(self) -> None:
        """Raise what the disk refused, as far as is known by now."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all that was saved is complete on disk."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _has_room(self, tensors: dict[tuple[str, str], Tensor]) -> bool:
        """Whether there is memory for copies; `copies` then fit the tensors."""
        if {k: (t.shape, t.dtype) for k, t in self.copies.items()} == {
            k: (t.shape, t.dtype) for k, t in tensors.items()
        }:
            return True
        self.copies = {}
        needed, free = SPARE * sum(t.nbytes for t in tensors.values()), free_memory()
        if free is not None and free < needed:
            self.note(
                "steps wait until a checkpoint is written: to copy the state first, "
                f"{size(needed)} of memory have to be free"
            )
            return False
        for key, tensor in tensors.items():
            self.copies[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return True

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.shutdown()
        if self.writing is not None and (failure := self.writing.exception()) is not None:
            self.note(f"Warning: {failure}")
