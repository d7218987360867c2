"""A torch.export archive: the graph for PyTorch itself, without the code of the model.

Its reader evaluates expressions and unpickles, so that a file from a stranger can run code: it is
opened only if its content is trusted on this machine, as a custom class is. What `vitc export`
writes is trusted where it was written.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitc.deploy.export.base import KEY, FileModel, Format, Made, Record, damaged
from vitc.deploy.export.graph import quiet
from vitc.plugins.consent import trust, trusted_archive

RECORD = f"{KEY}.json"


class Archive(Format):
    kind = "torch"
    title = "a torch.export archive"
    suffix = ".pt2"

    def write(self, made: Made, file: Path) -> None:
        assert made.program is not None
        with quiet():
            torch.export.save(made.program, file, extra_files={RECORD: made.record.to_json()})
        trust(file)

    def open(self, file: Path, threads: int) -> tuple[Record, nn.Module]:
        content = trusted_archive(file)
        kept: dict[str, Any] = {RECORD: ""}
        try:
            with quiet():
                module = torch.export.load(io.BytesIO(content), extra_files=kept).module()
        except Exception as error:
            raise damaged(file, self.title, error) from error
        record = Record.from_json(kept[RECORD] or None, file)

        def run(images: NDArray[Any]) -> NDArray[np.float32]:
            with torch.inference_mode():
                found: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
            return found

        return record, FileModel(run, record, file)
