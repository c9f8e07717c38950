"""What an artifact can be for: which package opens its stages here, what its graphs may hold, and what writes them.

A target is an entry here and an exporter in `exporters/`. Export and `verify` ask the same `Target.problems` of the same graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

# shapes that depend on data, and control flow: neither belongs into a graph whose every count is known
MOVING = {"NonZero", "Compress", "Unique", "If", "Loop", "Scan", "SequenceAt", "SplitToSequence", "ConcatFromSequence", "SequenceConstruct"}
# Of the operators that TensorRT's ONNX parser documents, those that these graphs need: no contrib operator. Attention, RMSNormalization,
# RotaryEmbedding and TensorScatter are left out: parsers take them partly, and opset 20 has none of them.
TENSORRT = frozenset({
    "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "Cos", "CumSum", "DequantizeLinear", "Div", "Einsum", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual", "Identity", "IsNaN",
    "LayerNormalization", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pad",
    "Pow", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape",
    "Resize", "Round", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Split", "Sqrt",
    "Squeeze", "Sub", "Sum", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`runtime`: the package that answers, empty for none, and `title`, its name. `any_length`: graphs may have symbolic sizes.

    `engine` opens stages and `exporter` writes them, each "module:Class". `instead`: what to do instead of an export in a precision that
    the target does not have. `onnx`: stages are ONNX graphs over one file of weights, of `opset` to `newest_opset`, of operators of
    `domains`; with `dialect` of these operators alone, no scatter that sums up, and every count constant. `compiles`: stages can also be
    compiled for this machine. `asks`: TensorRT's own parser is asked, where it is installed. `by_provider`: the runtime shares a graph
    out to execution providers.
    """

    runtime: str = "onnxruntime"
    title: str = "ONNX Runtime"
    engine: str = "lightvlm_fx.artifact.stages:OnnxRuntime"
    exporter: str = "lightvlm_fx.exporters.onnx:ToOnnx"
    any_length: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)
    onnx: bool = True
    opset: int = 24
    newest_opset: int = 26  # that ONNX Runtime 1.31 and 1.32 run
    domains: frozenset[str] = frozenset({"", "com.microsoft"})
    dialect: frozenset[str] | None = None
    compiles: bool = False
    asks: bool = False
    by_provider: bool = True

    def opens_with(self) -> Any:
        """The class of its engine."""
        return resolve_name(self.engine)

    def writes_with(self) -> Any:
        """The class of its exporter."""
        return resolve_name(self.exporter)

    def problems(self, model: Any) -> Iterator[str]:
        """What this target does not take of an ONNX model, a line each."""
        for used in model.opset_import:
            if used.domain not in self.domains:
                yield f"uses operators of the domain {used.domain!r}, which the target does not have"
            elif not used.domain and used.version > self.newest_opset:
                yield f"is stamped opset {used.version}, the target takes up to {self.newest_opset}"
        constant = {w.name for w in model.graph.initializer} | {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
        for node in model.graph.node:
            if node.op_type in MOVING or (self.dialect is not None and node.op_type not in self.dialect):
                yield f"node {node.name} is a {node.op_type}, which the target does not take"
            if self.dialect is not None and node.op_type == "TopK" and node.input[1] not in constant:
                yield f"node {node.name} is a TopK whose k is not constant"
            sums = next((a.s.decode() for a in node.attribute if a.name == "reduction" and a.s != b"none"), None)
            if sums is not None and self.dialect is not None:
                yield f"node {node.name} is a {node.op_type} that sums up ({sums}), which the target does not take"
            elif sums is not None and node.op_type == "ScatterND":
                yield f"node {node.name} sums up by ScatterND, whose threads overwrite each other's sums in ONNX Runtime: export again"


TARGETS = {
    "onnxruntime": Target(any_length=True),
    "openvino": Target("openvino", "OpenVINO", engine="lightvlm_fx.artifact.openvino:OpenVINO", any_length=True, instead={
        "bfloat16": "export in float32 and load with session_options={'INFERENCE_PRECISION_HINT': 'bf16'}: OpenVINO rounds by itself",
    }, by_provider=False),
    # the same graphs on ONNX Runtime say whether they answer right; opset 21 where weights are quantised
    "tensorrt": Target(exporter="lightvlm_fx.exporters.tensorrt:ToTensorRT", instead={"int4": "export with dtype='int8'"}, opset=20,
                       newest_opset=21, domains=frozenset({""}), dialect=TENSORRT, asks=True),
    "torch-export": Target("", "", "", "lightvlm_fx.exporters.torch_export:ToTorchExport", onnx=False, compiles=True, by_provider=False,
                           instead=dict.fromkeys(("int8", "int4"), "its stages hold the model's own weights; quantise those")),
}  # fmt: skip
