"""Target torch-export: each stage as a `.pt2` that `torch.export.load` opens; needs torch, not this package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx.compat import aoti_compile, pytree, tracing
from lightvlm_fx.errors import NotSupported
from lightvlm_fx.exporters.base import Exporter, StageExport
from lightvlm_fx.ops.bodies import InPortableAten


class ToTorchExport(Exporter):
    """`.pt2` files."""

    def write(self, name: str, suffix: str, stage: StageExport) -> dict[str, Any]:
        return save(stage.module, stage.inputs, stage.outputs, self.folder / f"{name}{suffix}.pt2", self.compiled)


@tracing()
def save(module: nn.Module, inputs: dict[str, Any], outputs: dict[str, Any], path: Path, aot_inductor: bool = False) -> dict[str, Any]:
    """Write one stage, as ATen alone, of operators that ExecuTorch's portable kernels know too; returns its entry of the manifest.

    All inputs and outputs are contiguous: what AOTInductor compiles reads its inputs with the example's strides, unchecked.
    With `aot_inductor`, also the stage compiled for this machine, `<stage>.aoti.pt2`, which `torch._inductor.aoti_load_package`
    opens. Raises NotSupported with the compiler's own words where it does not build.
    """
    hook = module.register_forward_hook(lambda module, args, out: _dense(out))
    try:
        with torch.no_grad(), InPortableAten():
            exported = torch.export.export(module, (), _dense(inputs), strict=False)
    finally:
        hook.remove()
    torch.export.save(exported, path)
    if aot_inductor:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # inductor talks about itself
                aoti_compile(exported, path.with_suffix(".aoti.pt2"))
        except Exception as error:
            why = str(error)[-1000:]
            raise NotSupported(f"AOTInductor does not build stage {path.stem!r}: {why}; export without aot_inductor") from error
    found: dict[str, int] = {}
    for node in exported.graph.nodes:
        if node.op == "call_function":
            found[str(node.target)] = found.get(str(node.target), 0) + 1
    return {"file": path.name, "inputs": _of(inputs), "outputs": _of(outputs), "operators": dict(sorted(found.items()))}


def _dense(values: dict[str, Any]) -> Any:
    return pytree.tree_map_only(Tensor, Tensor.contiguous, values)


def _of(values: dict[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    out = []
    for name, x in values.items():
        if isinstance(x, dict):
            out += _of(x, f"{prefix}{name}.")
        else:
            out.append({"name": prefix + name, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)})
    return out
