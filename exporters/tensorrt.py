"""Target tensorrt: ONNX in the dialect that TensorRT takes, and the script that builds the engines."""

from __future__ import annotations

import json
from typing import Any

import onnx_ir as ir

from lightvlm_fx.artifact.parser import installed
from lightvlm_fx.exporters.onnx import ToOnnx
from lightvlm_fx.exporters.precision import in_standard_operators
from lightvlm_fx.exporters.sums import scatter_as_matmul

SCRIPT, OPTIONS = "build.sh", "tensorrt_provider.json"


class ToTensorRT(ToOnnx):
    """Graphs in which every shape is known, so that each engine's only profile is the graph's own.

    Precision is what the graph says (strong typing). Caches are inputs and outputs of one static length.
    """

    def lower(self, graph: ir.Model) -> None:
        """Write sums over repeated indices as products, and quantised products in standard operators."""
        scatter_as_matmul(graph)
        in_standard_operators(graph)

    def finish(self, buckets: list[dict[str, Any]]) -> dict[str, Any]:
        """Also `build.sh`, one `trtexec` line a graph, and the options for ONNX Runtime's TensorRT provider."""
        super().finish(buckets)
        lines = ["#!/usr/bin/env bash",
                 "# Builds a TensorRT engine for every graph of this artifact. Needs trtexec; takes its flags from $@.",
                 "set -euo pipefail", 'cd "$(dirname "$0")"', "mkdir -p engines"]  # fmt: skip
        files = [stage["file"] for bucket in buckets for stage in bucket["stages"].values()]
        lines += [
            f'trtexec --onnx={name} --saveEngine=engines/{name.removesuffix(".onnx")}.plan --stronglyTyped '
            '--timingCacheFile=engines/timing.cache "$@"'
            for name in files
        ]
        script = self.folder / SCRIPT
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        script.chmod(0o755)
        options = {"trt_engine_cache_enable": True, "trt_engine_cache_path": "engines", "trt_timing_cache_enable": True,
                   "trt_timing_cache_path": "engines", "trt_fp16_enable": False}  # fmt: skip
        (self.folder / OPTIONS).write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
        parser, _ = installed()
        return {"parser": None if parser is None else parser.name}
