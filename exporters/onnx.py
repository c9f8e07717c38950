"""Targets onnxruntime and openvino: each stage as an ONNX graph, over one weight file."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from lightvlm_fx.exporters.base import Exporter, StageExport
from lightvlm_fx.exporters.onnx_graph import operators, signature, to_onnx
from lightvlm_fx.exporters.order import least_first
from lightvlm_fx.exporters.precision import BITS, quantise
from lightvlm_fx.exporters.weights import WeightFile


class ToOnnx(Exporter):
    """ONNX graphs. A target with operators of its own overrides `lower`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.weights = WeightFile(self.folder)

    def write(self, name: str, suffix: str, stage: StageExport) -> dict[str, Any]:
        quantised = self.dtype in BITS and name in ("prefill", "decode")
        graph = to_onnx(name, stage.module, stage.traced, self.target.opset, not quantised, stage.dynamic, stage.ranges)
        if quantised:
            graph = quantise(graph, self.dtype)
        self.lower(graph)
        if name == "prefill":
            least_first(graph)
        entry = {"file": f"{name}{suffix}.onnx", **signature(graph), "operators": operators(graph)}
        self.weights.take(graph)
        ir.save(graph, self.folder / entry["file"])
        return entry

    def lower(self, graph: ir.Model) -> None:
        """Rewrite what the target does not take, in place."""

    def finish(self, buckets: list[dict[str, Any]]) -> dict[str, Any]:
        self.weights.close()
        return {}
