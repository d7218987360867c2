"""How does a run or a saved model get on the Hugging Face hub?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from vitc.deploy.save import save_pretrained
from vitc.deploy.saved import load_pretrained
from vitc.errors import ConfigError
from vitc.machine import own_version
from vitc.resolve import check_is
from vitc.weights.hub import check_repo_id, upload


def push_to_hub(
    run_or_folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    message: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
) -> str:
    """Put a run's model, or a folder of `save_pretrained`, on the hub; returns its address.

    `weights`: of a run folder, "ema" or "raw". The other arguments, and errors, are those of
    `vitc.weights.hub.upload`; ConfigError also: nothing to push; CheckpointError: damaged weights.
    """
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="vitc-push-") as temporary:
        folder = saved_folder(Path(run_or_folder), Path(temporary, "model"), weights)
        note = message or f"Upload with vitc {own_version()}"
        return upload(folder, repo_id, private=private, token=token, message=note)


def saved_folder(run_or_folder: Path, target: Path, weights: Literal["ema", "raw"]) -> Path:
    """The folder itself if it is a saved model that loads, else the run saved into `target`."""
    if check_is(run_or_folder, "run", "saved") == "run":
        return save_pretrained(run_or_folder, target, weights=weights)
    if weights != "ema":
        raise ConfigError("weights has no effect with a saved model: it holds one set.")
    linked = [p for p in run_or_folder.rglob("*") if p.is_symlink()]
    if linked:  # in an untrusted folder a link can lead to any file
        raise ConfigError(
            f"{linked[0]} is a link; only plain files are pushed.", "Replace it by a copy."
        )
    load_pretrained(run_or_folder)  # a model that cannot be loaded is not published
    return run_or_folder
