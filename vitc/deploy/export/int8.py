"""How is a graph quantized to 8 bits? Statically, with ranges from calibration images.

Weights per channel, activations per tensor. Left in float: the first convolution and the head (of
each model in a mean of several), whose errors nothing behind or before them averages out; in ONNX
depthwise convolutions, which NNCF quantizes with less error (docs/export.md) and which are few of
the operations; products of two activations (attention), and everything between matrix products.
"""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitc.deploy.export.base import Made
from vitc.deploy.export.graph import quiet

BATCH = 16  # calibration images at a time
Node = tuple[str, Sequence[str], Sequence[str]]
"""Its name, the values that it reads, and those that it writes."""


def batches(images: NDArray[Any], name: str) -> Iterator[dict[str, NDArray[Any]]]:
    for start in range(0, len(images), BATCH):
        yield {name: images[start : start + BATCH]}


def quantized_onnx(model: Any, made: Made, name: str) -> Any:
    """An onnx.ModelProto with int8 products, by ONNX Runtime's quantizer. name: of its input."""
    import onnx
    from onnxruntime import quantization

    assert made.calibration is not None
    left = _left_in_float(model)
    made.kept_float.extend(left)

    feed = batches(made.calibration, name)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(feed, None)

    with quiet(), tempfile.TemporaryDirectory(prefix="vitc-int8-") as folder:
        plain, out = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, plain)
        quantization.quantize_static(
            plain,
            out,
            Reader(),
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            # Weights of 7 bits: on a processor without VNNI sums of two products of 8 bits overflow
            # 16 bits, and the file would answer differently there than where it was compared.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=left,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(out)


def _left_in_float(model: Any) -> list[str]:
    """Names of the outermost nodes that multiply by weights, and of the depthwise ones."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    products = {
        node.name: weights[node.input[1]]
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in weights
    }
    # A convolution's weights are (outputs, inputs of a group, height, width).
    depthwise = [name for name, dims in products.items() if len(dims) == 4 and dims[1] == 1]
    nodes = [
        (node.name, list(filter(None, node.input)), list(filter(None, node.output)))
        for node in model.graph.node
        if node.op_type != "Shape"
    ]
    first, last = _outermost(nodes, products)
    return list(dict.fromkeys([*first, *depthwise, *last]))


def _outermost(nodes: Sequence[Node], products: Container[str]) -> tuple[list[str], list[str]]:
    """The products that depend on no other one, and those that no other one depends on.

    nodes: in the order of their computation. In a mean of models that is one of each per model.
    """
    turned = [(name, writes, reads) for name, reads, writes in reversed(nodes)]
    return _first(nodes, products), _first(turned, products)[::-1]


def _first(nodes: Iterable[Node], products: Container[str]) -> list[str]:
    found, behind = [], set[str]()  # values that depend on a product
    for name, reads, writes in nodes:
        depends = not behind.isdisjoint(reads)
        if name in products and not depends:
            found.append(name)
        if name in products or depends:
            behind.update(writes)
    return found


def quantized_openvino(model: Any, made: Made, name: str) -> Any:
    """An openvino.Model with int8 products, by NNCF."""
    import nncf

    assert made.calibration is not None
    ops = [op for op in model.get_ordered_ops() if op.get_type_name() != "ShapeOf"]
    products = {
        op.get_friendly_name()
        for op in ops
        if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
        and op.input_value(1).get_node().get_type_name() in ("Constant", "Convert")
    }
    first, last = _outermost([_node(op) for op in ops], products)
    left = list(dict.fromkeys([*first, *last]))
    made.kept_float.extend(left)
    data = nncf.Dataset(list(batches(made.calibration, name)))
    with quiet():
        return nncf.quantize(
            model,
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(made.calibration),
            ignored_scope=nncf.IgnoredScope(names=left),
        )


def _node(op: Any) -> Node:
    """An operation of OpenVINO."""
    reads = [value.get_node().get_friendly_name() for value in op.input_values()]
    return op.get_friendly_name(), reads, [op.get_friendly_name()]
