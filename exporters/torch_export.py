"""Target: torch.export. Each stage as a `.pt2` that `torch.export.load` opens; needs torch, not this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightvlm_fx.exporters.build import StageExport
from lightvlm_fx.ops.bodies import InAten


def save(stage: StageExport, path: Path) -> dict[str, Any]:
    """Write one stage, as ATen alone; returns its entry of the manifest."""
    with torch.no_grad(), InAten():
        exported = torch.export.export(stage.module, (), dict(stage.inputs), strict=False)
    torch.export.save(exported, path)
    found: dict[str, int] = {}
    for node in exported.graph.nodes:
        if node.op == "call_function":
            found[str(node.target)] = found.get(str(node.target), 0) + 1
    return {"file": path.name, "inputs": _of(stage.inputs), "outputs": _of(stage.outputs), "operators": dict(sorted(found.items()))}


def _of(values: dict[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    out = []
    for name, x in values.items():
        if isinstance(x, dict):
            out += _of(x, f"{prefix}{name}.")
        else:
            out.append({"name": prefix + name, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)})
    return out
