"""One stage as an ONNX graph, through transformers' own exporter."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from functools import cache
from typing import Any
from unittest import mock

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from onnxscript import optimizer, values
from torch import nn

from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.compat import onnx_program, tracing
from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.linear import gemm_as_matmul, linear_as_gemm
from lightvlm_fx.exporters.values import new, swap
from lightvlm_fx.exporters.weights import shrink_constants, transpose_weights
from lightvlm_fx.ops.bodies import InAten
from lightvlm_fx.quiet import muted, quiet
from lightvlm_fx.releases import releases_first

OPSET = TARGETS["onnxruntime"].opset
ANY = (2, 1 << 20)  # of a symbolic size


def to_onnx(
    name: str, module: nn.Module, inputs: dict[str, Any], opset: int = OPSET, gemm: bool = True,
    dynamic: dict[str, dict[int, str]] | None = None, ranges: dict[str, tuple[int, int]] | None = None,
) -> ir.Model:  # fmt: skip
    """`module(**inputs)` as a model with every shape known, but for the dimensions that `dynamic` names, whose sizes lie in `ranges`;
    inputs and outputs are named as the module names them.

    Linear layers are Gemm, or with `gemm=False` MatMul over transposed weights, which quantisers look for.
    Raises CaptureError naming the stage, with the exporter's own error as its cause.
    """
    return to_onnx_with_metadata(name, module, inputs, opset, gemm, dynamic, ranges)[0]


@releases_first()
@tracing()
def to_onnx_with_metadata(
    name: str, module: nn.Module, inputs: dict[str, Any], opset: int = OPSET, gemm: bool = True,
    dynamic: dict[str, dict[int, str]] | None = None, ranges: dict[str, tuple[int, int]] | None = None,
) -> tuple[ir.Model, Any]:  # fmt: skip
    """`to_onnx`, and what transformers' exporter noted of it."""
    with quiet(), torch.no_grad(), InAten(), _parsed_once(), muted("stdout"):
        try:
            model, metadata = onnx_program(module, dict(inputs), opset, dimensions(dynamic or {}, inputs, ranges))
        except Exception as error:
            raise CaptureError(f"stage {name!r} could not be exported to ONNX: {type(error).__name__}: {str(error)[:500]}") from error
    model.graph.name = name
    common.InlinePass()(model)
    name_sizes(model, dynamic or {})
    if gemm:
        linear_as_gemm(model)
    simplify(model)
    if not gemm:
        gemm_as_matmul(model)
    clean(model)
    return model, metadata


def dimensions(
    axes: dict[str, dict[int, str]], inputs: dict[str, Any], ranges: dict[str, tuple[int, int]] | None = None
) -> dict[str, Any] | None:
    """What torch.export is told of symbolic sizes: of each input its dimensions with a name, or a multiple of one ("4*tokens").

    Inputs may be dictionaries; what is in one is called by both names, with a dot. `ranges`: between what a size lies.
    """
    if not axes:
        return None
    known = ranges or {}

    def dim(name: str) -> Any:
        times, _, base = name.rpartition("*")
        least, most = known.get(base, ANY)
        size = torch.export.Dim(base, min=least, max=most)
        return int(times) * size if times else size

    def of(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: of(f"{name}.{key}", x) for key, x in value.items()}
        return {d: dim(axis) for d, axis in axes.get(name, {}).items()} or None

    return {name: of(name, value) for name, value in inputs.items()}


def name_sizes(model: ir.Model, axes: dict[str, dict[int, str]]) -> None:
    """Call symbolic sizes what `axes` calls them, in the shapes of all values; torch.export numbers them."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for d, axis in axes.get(value.name or "", {}).items():
            names[str(value.shape[d].value).rpartition("*")[2]] = axis.rpartition("*")[2]
    if not names:
        return
    pattern = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    for value in (*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph for v in node.outputs)):
        for d, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[d] = pattern.sub(lambda found: names[found[0]], str(size.value))


PARSED = property(cache(values.TracedOnnxFunction.__dict__["function_ir"].fget))


def _parsed_once() -> AbstractContextManager[Any]:
    """While active, onnxscript parses the source of each of its 500 operators once a process.

    The exporter asks for them anew for every graph: an eighth of the export of a small model.
    tests/artifact/test_graphs.py tells when onnxscript does it elsewhere.
    """
    return mock.patch.object(values.TracedOnnxFunction, "function_ir", PARSED)


def simplify(model: ir.Model) -> None:
    """Constants folded, equal expressions once, no identities.

    Instead of the exporter's own optimiser, whose pattern rules take time quadratic in the number of nodes: minutes
    for 24 layers. ONNX Runtime has those patterns itself.
    """
    optimizer.fold_constants(model, onnx_shape_inference=True)
    for node in list(model.graph):
        if node.op_type == "Pad" and _is_zero(node.inputs[1]):
            swap(model, [node], [new("Identity", node.inputs[:1], node.outputs[0].shape, node.outputs[0])])
        elif node.op_type == "Conv" and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
            node.replace_input_with(2, None)  # torchlib makes a bias of zeros where there is none, of two dimensions for a Conv3d
    common.RemoveUnusedNodesPass()(model)
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)  # first: expressions of equal constants are equal
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedFunctionsPass()(model)


def _is_zero(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and not tensor.numpy().any()


def clean(model: ir.Model) -> None:
    """Take out what a runtime must not pay for or must not see: copies, unused weights, notes on this machine."""
    transpose_weights(model)
    shrink_constants(model)
    for graph in (model.graph, *model.functions.values()):
        for node in graph:
            node.metadata_props.clear()
            node.meta.clear()
            node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name, model.producer_version, model.doc_string = "lightvlm_fx", "", None
    for output in list(model.graph.outputs):  # what a step hands through unchanged needs no writing
        made = output.producer()
        if made is not None and made.op_type == "Identity" and made.inputs[0] is not None and made.inputs[0].is_graph_input():
            model.graph.outputs.remove(output)
            model.graph.remove(made, safe=True)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.NameFixPass()(model)


def signature(model: ir.Model) -> dict[str, list[dict[str, Any]]]:
    """Names, dtypes and shapes of a model's inputs and outputs; a symbolic size is its name."""

    def of(values: Any) -> list[dict[str, Any]]:
        return [{"name": v.name, "dtype": v.dtype.numpy().name, "shape": _shape(v)} for v in values]

    return {"inputs": of(model.graph.inputs), "outputs": of(model.graph.outputs)}


def _shape(value: ir.Value) -> list[int | str]:
    return [d if isinstance(d, int) else str(d.value) for d in value.shape or ()]


def operators(model: ir.Model) -> dict[str, int]:
    """How often each operator stands in the graph, by name."""
    found: dict[str, int] = {}
    for node in model.graph:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
