"""What a target does not take, or pays for, in an artifact's graphs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightvlm_fx.artifact.files import Files, inside
from lightvlm_fx.artifact.parser import installed
from lightvlm_fx.artifact.placement import left_to_cpu
from lightvlm_fx.artifact.schema import WEIGHTS
from lightvlm_fx.artifact.stages import check_providers, quiet_options
from lightvlm_fx.artifact.targets import TARGETS


def lint(folder: Path | Files, manifest: dict[str, Any], providers: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is wrong with an artifact, a folder or its open files, and what could not be checked, a line each."""
    target = TARGETS[manifest["target"]]
    if not target.onnx:
        return [], [f"lint: {manifest['target']} stages are no ONNX graphs"]
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        return [], ["lint: the package onnx is not installed"]
    files, wrong, unreadable = Files.of(folder, manifest), list[str](), False
    left = target.by_provider and target.dialect is None  # to a provider that takes some nodes, and others not
    on_cuda = left and (manifest.get("provider") == "cuda" or "CUDAExecutionProvider" in providers)
    for bucket in manifest["buckets"]:
        for name, stage in bucket["stages"].items():
            try:
                graph = onnx.load_from_string(files.data(stage["file"]))
            except DecodeError as error:
                wrong.append(f"{stage['file']}: is no ONNX graph ({error}); export again")
                unreadable = True
                continue
            free = {v["name"]: v["shape"] for v in stage["inputs"] + stage["outputs"]} if target.any_length else {}
            found = [*target.problems(graph), *_of(graph, files, free), *(left_to_cpu(graph) if on_cuda else ())]
            wrong += [f"{stage['file']}: {line}" for line in found]
            operators = sorted({f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in graph.graph.node})
            if operators != sorted(stage["operators"]):
                wrong.append(f"{stage['file']}: holds other operators than the manifest says of {name}")
    skipped: list[str] = []
    if unreadable:
        return wrong, skipped
    if target.asks:
        parser, why = installed()
        wrong += [] if parser is None else parser.refused(files.home, manifest)
        skipped += [f"TensorRT's parser: {why}"] if parser is None else []
    if target.by_provider and any(p != "CPUExecutionProvider" for p in providers):
        wrong += _copies(files.home, manifest, providers)
    return wrong, skipped


def _of(model: Any, files: Files, free: dict[str, list[Any]]) -> Iterator[str]:
    """What is wrong with one graph, whatever it is for.

    A size may be symbolic where `free`, the shapes that the manifest says, has it by the same name.
    """
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for weight in graph.initializer:
        if weight.name not in read:
            yield f"weight {weight.name} is not used"
        yield from _outside(weight, files)
    for value in (*graph.input, *graph.output):
        if not all(d.HasField("dim_value") or d.dim_param in free.get(value.name, ()) for d in value.type.tensor_type.shape.dim):
            yield f"{value.name} has a shape that is not known beforehand"


def _outside(weight: Any, files: Files) -> Iterator[str]:
    """Where a weight is to be read from another file than the one that was hashed, or from beyond its end."""
    place = {entry.key: entry.value for entry in weight.external_data}
    if not place:
        return
    end = files.listed[WEIGHTS]["bytes"]
    fits = all(re.fullmatch("[0-9]{1,18}", place.get(k, "0")) for k in ("offset", "length"))
    if place.get("location") != WEIGHTS or not fits or int(place.get("offset", 0)) + int(place.get("length", 0)) > end:
        yield f"weight {weight.name} is to be read from {place}, which is not in the {end} bytes of {WEIGHTS}"


def _copies(folder: Path, manifest: dict[str, Any], providers: Sequence[str]) -> Iterator[str]:
    """A line for each graph into which ONNX Runtime puts copies between devices on these providers."""
    import tempfile

    import onnx
    import onnxruntime

    check_providers(providers)
    for stage in manifest["buckets"][0]["stages"].values():
        with tempfile.TemporaryDirectory() as spare:
            options = quiet_options(onnxruntime)
            options.optimized_model_filepath = str(Path(spare) / "optimised.onnx")
            onnxruntime.InferenceSession(str(inside(folder, stage["file"])), options, providers=list(providers))
            nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
            copies = sum(n.op_type.startswith("Memcpy") for n in nodes)
            if copies:
                yield f"{stage['file']}: {copies} copies between devices at run time (Memcpy)"
