"""OpenVINO: the graph for Intel's engine, FILE.xml with its tensors in FILE.bin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitc.deploy.export.base import KEY, FileModel, Format, Made, Record, damaged
from vitc.deploy.export.int8 import quantized_openvino
from vitc.deploy.export.onnx import INPUT, onnx_model


class OpenVino(Format):
    kind = "openvino"
    title = "OpenVINO"
    suffix = ".xml"
    extra = "openvino"
    packages = ("openvino", "onnx", "onnxscript")
    int8_packages = ("nncf",)
    beside = (".bin",)
    precisions = ("fp32", "int8")
    own_resize = True

    def write(self, made: Made, file: Path) -> None:
        import onnx
        import openvino

        source = file.with_suffix(".onnx")
        onnx.save(onnx_model(made), source)
        model = openvino.convert_model(source)
        source.unlink()
        resize_like_pillow(model)
        if made.record.precision == "int8":
            model = quantized_openvino(model, made, INPUT)
        model.set_rt_info(made.record.to_json(), [KEY])
        openvino.save_model(model, file, compress_to_fp16=False)

    def replace_record(self, file: Path, record: Record) -> None:
        import openvino

        model = openvino.Core().read_model(file)
        model.set_rt_info(record.to_json(), [KEY])
        new = file.with_name(
            f"new_{file.name}"
        )  # the tensors of a model in memory stay in its file
        openvino.save_model(model, new, compress_to_fp16=False)
        for suffix in (self.suffix, *self.beside):
            os.replace(new.with_suffix(suffix), file.with_suffix(suffix))

    def open(self, file: Path, threads: int) -> tuple[Record, nn.Module]:
        self.check_installed("openvino")
        import openvino

        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        try:
            core = openvino.Core()
            model = core.read_model(file)
            text = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None
            # Of its own accord it rounds to bf16, which int8 gains more from than it loses.
            exact = "f32" if text and '"precision": "int8"' not in text else "bf16"
            settings["INFERENCE_PRECISION_HINT"] = exact
            compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:
            raise damaged(file, self.title, error) from error
        record = Record.from_json(text, file)

        def run(images: NDArray[Any]) -> NDArray[np.float32]:
            return np.array(compiled({INPUT: images})[0], np.float32)

        return record, FileModel(run, record, file)


def resize_like_pillow(model: Any) -> None:
    """Its own reading of ONNX's antialiased Resize is off by 2.2 levels of 255 on average (photos
    to 224 pixels); its Pillow mode is the filter of evaluation."""
    from openvino import opset13

    for node in model.get_ops():
        if node.get_type_name() == "Interpolate":
            image, size = (node.input(i).get_source_output() for i in range(2))
            height_width = opset13.gather(size, np.array([2, 3]), np.array(0))  # of (B, C, h, w)
            axes = np.array([2, 3])
            new = opset13.interpolate(image, height_width, "bilinear_pillow", "sizes", axes=axes)
            node.output(0).replace(new.output(0))
