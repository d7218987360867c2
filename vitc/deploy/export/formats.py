"""Which format is a file of, or shall it have?"""

from __future__ import annotations

from pathlib import Path

from vitc.deploy.export.archive import Archive
from vitc.deploy.export.base import Format
from vitc.deploy.export.onnx import Onnx
from vitc.deploy.export.openvino import OpenVino
from vitc.deploy.export.weights_file import WeightsFile
from vitc.errors import ConfigError, unknown

FORMATS: dict[str, Format] = {f.kind: f for f in (Onnx(), OpenVino(), Archive(), WeightsFile())}


def format_of(file: Path, kind: str | None = None) -> Format:
    """By name, or by the file's suffix, which has to fit the name. Raises ConfigError."""
    suffixes = {f.suffix: f for f in FORMATS.values()}
    by_suffix = suffixes.get(file.suffix)
    if kind is not None and kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    found = by_suffix if kind is None else FORMATS[kind]
    if found is None or found is not by_suffix:
        wanted = f"{found.suffix} for {found.kind}" if found else "one of " + ", ".join(suffixes)
        raise ConfigError(
            f"{file} has the suffix {file.suffix!r}; it must be {wanted}.", "Choose another name."
        )
    return found
