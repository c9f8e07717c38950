"""Target: ONNX for TensorRT. A dialect that is checked operator by operator, and the script that builds the engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lightvlm_fx.artifact.dialect import TENSORRT_OPERATORS, TENSORRT_OPSET
from lightvlm_fx.artifact.parser import installed
from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.precision import in_standard_operators
from lightvlm_fx.exporters.sums import reduction, scatter_as_matmul

DIALECT_OPSET = TENSORRT_OPSET
SCRIPT, OPTIONS = "build.sh", "tensorrt_provider.json"


def to_dialect(graph: ir.Model, stage: str) -> None:
    """Write sums over repeated indices as products and quantised products in standard operators, which TensorRT takes; check the rest.

    Raises CaptureError naming every operator that the dialect does not have, every scatter that still reduces, and every
    TopK whose k is not constant.
    """
    scatter_as_matmul(graph)
    in_standard_operators(graph)
    wrong = sorted({n.op_type for n in graph.graph if n.op_type not in TENSORRT_OPERATORS or n.domain}
                   | {f"{n.op_type}({reduction(n)})" for n in graph.graph if n.op_type.startswith("Scatter") and reduction(n) != "none"})
    counts = {n.name: n.inputs[1] for n in graph.graph if n.op_type == "TopK"}
    moving = [name for name, k in counts.items() if k is None or ir.convenience.get_const_tensor(k) is None]
    if wrong:
        raise CaptureError(f"stage {stage!r} uses {', '.join(wrong)}, which the TensorRT dialect does not have: a defect of lightvlm_fx")
    if moving:
        raise CaptureError(f"stage {stage!r}: TopK nodes {', '.join(map(str, moving))} have a k that is not constant")


def ask_parser(folder: Path, manifest: dict[str, Any]) -> str | None:
    """The name of TensorRT's parser where one is installed that takes every graph; raises CaptureError where it refuses one."""
    parser, _ = installed()
    wrong = [] if parser is None else list(parser.refused(folder, manifest))
    if wrong:
        raise CaptureError("\n".join([*wrong[:5], "a defect of lightvlm_fx's TensorRT dialect, or an operator newer than that TensorRT"]))
    return None if parser is None else parser.name


def build_script(folder: Path, buckets: list[dict[str, Any]]) -> None:
    """Write `build.sh`, one `trtexec` line a graph, and the options for ONNX Runtime's TensorRT provider.

    Every shape in the graphs is known, so each engine's only profile is the graph's own. Precision is what the graph
    says (strong typing). Caches are inputs and outputs of one static length.
    """
    lines = ["#!/usr/bin/env bash", "# Builds a TensorRT engine for every graph of this artifact. Needs trtexec; takes its flags from $@.",
             "set -euo pipefail", 'cd "$(dirname "$0")"', "mkdir -p engines"]  # fmt: skip
    files = [stage["file"] for bucket in buckets for stage in bucket["stages"].values()]
    lines += [
        f'trtexec --onnx={name} --saveEngine=engines/{name.removesuffix(".onnx")}.plan --stronglyTyped '
        '--timingCacheFile=engines/timing.cache "$@"'
        for name in files
    ]
    script = folder / SCRIPT
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    script.chmod(0o755)
    options = {"trt_engine_cache_enable": True, "trt_engine_cache_path": "engines", "trt_timing_cache_enable": True,
               "trt_timing_cache_path": "engines", "trt_fp16_enable": False}  # fmt: skip
    (folder / OPTIONS).write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
