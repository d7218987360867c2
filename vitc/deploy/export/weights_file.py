"""safetensors: the tensors with their record, for this library and for `vitc convert`."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from vitc.deploy.export.base import KEY, Format, Made, Record
from vitc.deploy.saved import load_tensors
from vitc.errors import ConfigError
from vitc.plugins.consent import customs
from vitc.runs.tensors import opened, write_tensors


class WeightsFile(Format):
    kind = "safetensors"
    title = "safetensors"
    suffix = ".safetensors"
    graph = False

    def write(self, made: Made, file: Path) -> None:
        saved = made.record.saved
        if any(customs(saved.config)):
            raise ConfigError(
                "A model with a custom class needs its code beside the weights.",
                "Save it as a folder (vitc save), or export its graph: OUT.onnx",
            )
        text = made.record.to_json()
        values = json.loads(text)
        metadata = {"format": "pt", "library": "vitc", "layout": "vitc", KEY: text}
        names = ("model", "classes", "preprocessing", "fit")  # as `vitc convert` writes them
        metadata |= {name: json.dumps(values[name]) for name in names if values[name] is not None}
        write_tensors(file, dict(made.model.state_dict()), metadata)

    def open(self, file: Path, threads: int) -> tuple[Record, nn.Module]:
        with opened(file) as content:
            text = (content.metadata() or {}).get(KEY)
        record = Record.from_json(text, file)
        return record, load_tensors(file, record.saved)
