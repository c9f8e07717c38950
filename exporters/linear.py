"""Linear layers as Gemm over their weights as PyTorch stores them, [N, K], or as MatMul where a quantiser comes next."""

from __future__ import annotations

import math

import onnx_ir as ir

from lightvlm_fx.exporters.values import dims, new, swap

PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}  # Gemm's attributes where none are given


def linear_as_gemm(model: ir.Model) -> int:
    """Replace MatMul(x [..., K], Transpose(W [N, K])), and the bias added after it, by Reshape, Gemm(transB=1), Reshape.

    With one row, ONNX Runtime streams such a weight nearly as fast as a rearranged copy, so no session makes one
    (docs/decisions/0008); a tied embedding stays one tensor. Returns how many there were.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        (x, turned), out = node.inputs, node.outputs[0]
        weight = _turned(turned)
        if weight is None or weight.shape is None or x is None or x.shape is None or len(x.shape) < 3:
            continue
        if sum(not isinstance(d, int) for d in x.shape[:-1]) > 1:
            continue  # a reshape can leave one size open
        replaced, bias = [node], _bias(out)
        if bias is not None:
            replaced.append(out.consumers()[0])
        (n, k), rows = [int(d) for d in weight.shape], [d if isinstance(d, int) else -1 for d in x.shape[:-1]]
        every = math.prod(rows) if -1 not in rows else None
        flat = new("Reshape", [x, dims(model, [-1, k])], [every, k], x)
        product = new("Gemm", [flat, weight, *([] if bias is None else [bias])], [every, n], x, transB=1)
        back = new("Reshape", [product, dims(model, [*rows, n])], [*x.shape[:-1], n], x)
        swap(model, replaced, [flat, product, back])
        done += 1
    return done


def gemm_as_matmul(model: ir.Model) -> int:
    """Replace Gemm(x, W [N, K], bias) by MatMul(x, Transpose(W)) and Add, the form that quantisers know. Returns how many there were."""
    done = 0
    for node in list(model.graph):
        if node.op_type != "Gemm" or PLAIN | {a.name: a.value for a in node.attributes.values()} != PLAIN | {"transB": 1}:
            continue
        x, weight, bias = (*node.inputs, None)[:3]
        if x is None or weight is None or not weight.is_initializer() or weight.shape is None:
            continue
        out, shape = node.outputs[0], [int(d) for d in weight.shape]
        turned = new("Transpose", [weight], shape[::-1], weight, perm=[1, 0])
        made = [turned, new("MatMul", [x, turned], [int(d) for d in out.shape or ()], x)]
        if bias is not None:
            made.append(new("Add", [made[-1], bias], [int(d) for d in out.shape or ()], x))
        swap(model, [node], made)
        done += 1
    return done


def _turned(value: ir.Value | None) -> ir.Value | None:
    """W, where `value` is the transpose of a matrix W that is an initializer."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None or not node.inputs[0].is_initializer():
        return None
    return node.inputs[0] if list(node.attributes["perm"].as_ints()) == [1, 0] else None


def _bias(product: ir.Value) -> ir.Value | None:
    """The one-dimensional initializer that is added to `product`, where nothing else reads that."""
    users = product.consumers()
    if len(users) != 1 or users[0].op_type != "Add" or product.is_graph_output():
        return None
    other = next((i for i in users[0].inputs if i is not product), None)
    return other if other is not None and other.is_initializer() and other.shape is not None and len(other.shape) == 1 else None
