"""One weight file for all stages: every tensor once, whichever stages and buckets read it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lightvlm_fx.artifact.manifest import WEIGHTS as NAME

ALIGN = 4096  # bytes; so that a page of the file belongs to one tensor and can be mapped
ELEMENTWISE = {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Or", "Sub", "Where"}
LEAST = 1024  # bytes; smaller tensors stay in the graph


class WeightFile:
    """Written while stages are added; equal tensors share their bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = (folder / NAME).open("wb")
        self.places: dict[tuple[str, str, tuple[int, ...]], tuple[int, int]] = {}
        self.end = 0

    def take(self, model: ir.Model) -> None:
        """Move the large initializers of `model` here; it refers to them from now on."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < LEAST:
                continue
            data = tensor.tobytes()
            shape = tuple(int(d) for d in tensor.shape)
            key = (hashlib.sha256(data).hexdigest(), tensor.dtype.name, shape)
            if key not in self.places:
                self.file.write(bytes(-self.end % ALIGN))
                start = self.end + -self.end % ALIGN
                self.file.write(data)
                self.end = start + len(data)
                self.places[key] = (start, len(data))
            start, length = self.places[key]
            value.const_value = ir.ExternalTensor(
                NAME, start, length, tensor.dtype, shape=ir.Shape(shape), name=value.name or "", base_dir=str(self.folder)
            )

    def close(self) -> None:
        self.file.flush()
        self.file.close()


def transpose_weights(model: ir.Model) -> int:
    """Replace every Transpose of an initializer by the transposed tensor, so that no session makes a copy of its own.

    Returns how many there were.
    """
    done: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    nodes = [n for n in model.graph if n.op_type == "Transpose" and n.inputs[0] is not None and n.inputs[0].is_initializer()]
    for node in nodes:
        source, order = node.inputs[0], tuple(node.attributes["perm"].as_ints())
        assert source is not None
        assert source.const_value is not None
        key = (source.name or "", order)
        if key not in done:
            array = np.ascontiguousarray(source.const_value.numpy().transpose(order))
            name = f"{source.name}.{'x'.join(map(str, order))}"
            tensor = ir.Tensor(array, dtype=source.const_value.dtype, name=name)
            done[key] = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
            model.graph.register_initializer(done[key])
        node.outputs[0].replace_all_uses_with(done[key])
        model.graph.remove(node, safe=True)
        if not source.uses() and not source.is_graph_output():
            model.graph.initializers.pop(source.name or "")
    return len(nodes)


def shrink_constants(model: ir.Model) -> int:
    """Replace every large initializer of one repeated value by that value, where its users broadcast it anyway.

    Returns how many there were.
    """
    done = 0
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < LEAST or not all(_broadcasts(node, value) for node in value.consumers()):
            continue
        array = tensor.numpy()
        if (array != array.flat[0]).any():
            continue
        value.const_value = ir.Tensor(array.flat[:1].reshape([1] * array.ndim).copy(), dtype=tensor.dtype, name=name)
        value.shape = ir.Shape([1] * array.ndim)
        done += 1
    return done


def _broadcasts(node: ir.Node, value: ir.Value) -> bool:
    """Whether `node` gives the same where `value` has one element: another input has the shape of the result."""
    if node.op_type not in ELEMENTWISE or node.domain:
        return False
    shape = node.outputs[0].shape
    return shape is not None and any(x is not None and x is not value and x.shape == shape for x in node.inputs)
