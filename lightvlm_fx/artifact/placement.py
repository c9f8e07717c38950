"""Which nodes of a graph ONNX Runtime's CUDA provider leaves to the CPU, with copies before and after: told without a GPU.

From the kernels that ONNX Runtime documents (docs/OperatorKernels.md at its commit 001d12d): for the operators that
artifacts use, the types of their data at the newest opset that it has them for. Sizes, and what is computed from sizes alone, stay on the
CPU without a copy. `lint` asks ONNX Runtime itself where it has that provider.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"})
HALF = FLOATS - {"BFLOAT16"}  # few elementwise kernels have bfloat16
WHOLE = frozenset({"INT32", "INT64"})
ALL = FLOATS | WHOLE | {"BOOL"}
KERNELS: dict[str, frozenset[str]] = {
    name: types
    for names, types in {
        "Cast Concat ConstantOfShape Expand Flatten Gather GatherElements Identity Reshape ScatterElements ScatterND Shape Slice Split "
        "Squeeze TensorScatter Transpose Trilu Unsqueeze": ALL,
        "And Not Or Xor": frozenset({"BOOL"}),
        "Abs Add Div Max Min Mod Mul Neg Pow ReduceSum Sign Sub Tile Where": FLOATS | WHOLE,
        "Equal": HALF | WHOLE | {"BOOL"},
        "CumSum Greater GreaterOrEqual Less LessOrEqual ReduceMax ReduceMin TopK": HALF | WHOLE,
        "ReduceL2 ReduceMean ReduceProd Resize": HALF | {"INT32"},
        "Range": WHOLE | {"FLOAT"},
        "Clip": HALF | {"INT64"},
        "GatherND": FLOATS | {"BOOL", "INT64"},
        "Pad": HALF | {"BOOL"},
        "DequantizeLinear": frozenset({"INT8"}),
        "Attention AveragePool Conv Erf Exp Gelu Gemm IsNaN LayerNormalization MatMul MatMulNBits Relu RMSNormalization "
        "RotaryEmbedding Sigmoid Softmax Sum Tanh": FLOATS,
        "ArgMax ArgMin Ceil Cos Einsum Floor GlobalAveragePool Log OneHot Reciprocal Round Sin Sqrt": HALF,
    }.items()
    for name in names.split()
}
DATA = {"Where": 1, "OneHot": 2}  # which input says the type, where it is not the first
# inputs that kernels read on the CPU: shapes, axes, counts
ON_HOST = {
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4),
    **dict.fromkeys(("CumSum", "Expand", "Pad", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape",
                     "Split", "Squeeze", "Tile", "TopK", "Trilu", "Unsqueeze"), (1,)),
}  # fmt: skip


def left_to_cpu(model: Any) -> Iterator[str]:
    """A line for each node of an onnx ModelProto that the CUDA provider has no kernel for, or whose shape or count is computed."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    held = {w.name: w.data_type for w in graph.initializer}
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)} | held
    fixed = set(held) | {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    sizes: set[str] = set()  # values that are computed from sizes alone
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type == "Shape" or (sizes.intersection(node.input) and sizes | fixed >= set(filter(None, node.input))):
            sizes.update(node.output)
            continue
        at = DATA.get(node.op_type, 0)
        kind = onnx.TensorProto.DataType.Name(types.get(node.input[at], 0)) if len(node.input) > at else "none"
        if kind not in KERNELS.get(node.op_type, ()):
            yield f"node {node.name}: the CUDA provider has no {node.op_type} of {kind}"
        for place in ON_HOST.get(node.op_type, ()):
            if len(node.input) > place and node.input[place] and node.input[place] not in fixed | sizes:
                yield f"node {node.name}: input {place} of a {node.op_type} is read on the CPU, and computed"
