"""New nodes in an onnx-ir graph: values with dtypes and shapes, constants, and one expression in place of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


def new(kind: str, inputs: Sequence[ir.Value], shape: Sequence[Any], like: ir.Value | ir.DataType, **attributes: Any) -> ir.Value:
    """The output of a new node, of a dtype or with that of `like`."""
    value = ir.node(kind, inputs, attributes).outputs[0]
    value.shape, value.type = ir.Shape(shape), ir.TensorType(like) if isinstance(like, ir.DataType) else like.type
    return value


def swap(model: ir.Model, old: Sequence[ir.Node], by: Sequence[ir.Value]) -> None:
    """Put the nodes that make `by` where `old` ends; the last of each stands for the other."""
    gone, instead = old[-1].outputs[0], by[-1]
    model.graph.insert_after(old[-1], [v.producer() for v in by])  # type: ignore[misc]
    instead.name, gone.name = gone.name, None  # it may be an output of the model
    gone.replace_all_uses_with(instead, replace_graph_outputs=True)
    model.graph.remove(old, safe=True)


def initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """`array` as the initializer `name`, one for all that ask for it."""
    if name not in model.graph.initializers:
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]


def dims(model: ir.Model, of: Sequence[int]) -> ir.Value:
    """A shape as an initializer."""
    return initializer(model, "shape_" + "x".join("n" if d < 0 else str(d) for d in of), np.array(of, np.int64))
