"""ONNX: the graph for ONNX Runtime and most other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitc.deploy.export.base import KEY, FileModel, Format, Made, Record, damaged
from vitc.deploy.export.graph import quiet, untraceable
from vitc.deploy.export.int8 import quantized_onnx

INPUT, OUTPUT = "images", "logits"
DIMS = {"image": ("batch", "height", "width"), "tensor": ("batch",)}


class Onnx(Format):
    kind = "onnx"
    title = "ONNX"
    suffix = ".onnx"
    extra = "export"
    packages = ("onnx", "onnxscript", "onnxruntime")
    precisions = ("fp32", "int8")
    own_resize = True

    def write(self, made: Made, file: Path) -> None:
        import onnx

        model = onnx_model(made)
        if made.record.precision == "int8":
            model = quantized_onnx(model, made, INPUT)
        onnx.save(recorded(model, made.record), file)

    def replace_record(self, file: Path, record: Record) -> None:
        import onnx

        onnx.save(recorded(onnx.load(file), record), file)

    def open(self, file: Path, threads: int) -> tuple[Record, nn.Module]:
        self.check_installed("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            providers = ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(file, options, providers)
        except Exception as error:  # its errors have no common class
            raise damaged(file, self.title, error) from error
        kept = session.get_modelmeta().custom_metadata_map
        record = Record.from_json(kept.get(KEY), file)

        def run(images: NDArray[Any]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
            return found

        return record, FileModel(run, record, file)


def onnx_model(made: Made) -> Any:
    """The graph as an onnx.ModelProto. Raises RunError: an operator of the model
    has no counterpart in ONNX."""
    import torch

    assert made.program is not None
    try:
        with quiet():
            program = torch.onnx.export(
                made.program,
                (),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
    except Exception as error:
        raise untraceable(error) from error
    assert program is not None
    model = program.model_proto
    dims = model.graph.input[0].type.tensor_type.shape.dim
    names = DIMS[made.record.input]
    named = {dim.dim_param: name for dim, name in zip(dims, names, strict=False)}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_param = named[dim.dim_param]
    return model


def recorded(model: Any, record: Record) -> Any:
    """The model with its record, and without what its makers noted: names of files and modules."""
    for part in (model, *model.graph.node, *model.graph.input, *model.graph.value_info):
        del part.metadata_props[:]
    for key, text in ((KEY, record.to_json()), ("producer", "vitc")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    return model
