"""Sums over repeated indices as matrix products, for a target whose scatter cannot sum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.values import dims, initializer, new, swap


def scatter_as_matmul(model: ir.Model) -> int:
    """Replace ScatterElements(x, index, updates, reduction="add") by x + MatMul(index == slot, updates).

    TensorRT takes no scatter with a reduction. x [P.., M, R..] along `axis`, index [P.., n], the same for all of R..
    (PyTorch expands it), updates [P.., n, R..]: the product costs P * M * n * R multiplications. Returns how many there
    were; raises CaptureError where an index differs along R.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type != "ScatterElements" or reduction(node) != "add":
            continue
        data, index, updates = (x for x in node.inputs if x is not None)
        shape, axis = _dims(data), node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        axis %= len(shape)
        lead, slots, rest = shape[:axis], shape[axis], math.prod(shape[axis + 1 :])
        index, own = _narrow(node, index, axis)
        n, rows = _dims(updates)[axis], math.prod(own)
        if own != lead and rows != 1:
            raise CaptureError(f"node {node.name}: an index of rows {own} for values of rows {lead}: a defect of lightvlm_fx")
        row = new("Reshape", [index, dims(model, [rows, 1, n])], [rows, 1, n], index)
        slot = initializer(model, f"slots_{slots}", np.arange(slots, dtype=np.int64).reshape(1, slots, 1))
        here = new("Equal", [row, slot], [rows, slots, n], ir.DataType.BOOL)
        hot = new("Cast", [here], [rows, slots, n], data, to=data.dtype)
        lines = [math.prod(lead), n, rest]
        flat = new("Reshape", [updates, dims(model, lines)], lines, data)
        summed = new("MatMul", [hot, flat], [lines[0], slots, rest], data)
        back = new("Reshape", [summed, dims(model, shape)], shape, data)
        swap(model, [node], [row, here, hot, flat, summed, back, new("Add", [data, back], shape, data)])
        done += 1
    return done


def reduction(node: ir.Node) -> str:
    """How a scatter reduces what it writes to one place, "none" where it does not."""
    return node.attributes["reduction"].as_string() if "reduction" in node.attributes else "none"


def _narrow(node: ir.Node, index: ir.Value, axis: int) -> tuple[ir.Value, list[int]]:
    """An index with one column along all that follows `axis`, and its leading dimensions."""
    while math.prod(_dims(index)[axis + 1 :]) != 1:
        before = index.producer()
        if before is None or before.op_type != "Expand" or before.inputs[0] is None or len(_dims(before.inputs[0])) != len(_dims(index)):
            raise CaptureError(f"node {node.name} sums by an index that differs along axes after {axis}: a defect of lightvlm_fx")
        index = before.inputs[0]
    return index, _dims(index)[:axis]


def _dims(value: Any) -> list[int]:
    return [int(d) for d in value.shape]
