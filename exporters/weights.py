"""One weight file for all stages: every tensor once, whichever stages and buckets read it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir

NAME = "model.onnx.data"
ALIGN = 4096  # bytes; so that a page of the file belongs to one tensor and can be mapped
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
        assert source is not None and source.const_value is not None
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
