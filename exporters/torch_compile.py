"""Target: torch.compile. A rewritten program as a callable whose token and cache dimensions stay symbolic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx import compat
from lightvlm_fx.compat import maybe_dynamic
from lightvlm_fx.errors import NotSupported, UnknownName
from lightvlm_fx.exporters.regions import ByLayer, dynamic_dims
from lightvlm_fx.graph.program import Program
from lightvlm_fx.ops.packed_linear import can_pack

Compiled = Callable[..., tuple[Tensor, ...]]


def compiled_graphs() -> int:
    """How many graphs were compiled in this process."""
    return compat.compiled_graphs() + ByLayer.compiled


def check_backend(backend: str) -> None:
    """Raise UnknownName for a backend that torch.compile does not know; "eager" needs none."""
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UnknownName.of("backend", backend, known)


def check_prepack(model: nn.Module, backend: str, static: bool, options: dict[str, Any]) -> None:
    """Raise NotSupported where weights cannot be packed, with the reason."""
    weights = next(model.parameters())
    if backend != "inductor" or static or options:
        raise NotSupported("prepack=True packs weights for graphs that inductor compiles by layer; leave backend, static and torch.compile "
                           "options at their defaults, or leave prepack out")  # fmt: skip
    if weights.device.type != "cpu" or not can_pack(weights.dtype):
        raise NotSupported(
            f"prepack=True is for weights of float32 or bfloat16 on a processor whose oneDNN has them, got {weights.dtype} on "
            f"{weights.device}; leave prepack out"
        )


def freeze(made: Iterable[Compiled], frozen: bool) -> None:
    """Whether what `lower` made may compile no more for sizes that it has not met."""
    for one in made:
        if isinstance(one, ByLayer):
            one.frozen = frozen


def lower(program: Program, backend: str, options: dict[str, Any], static: bool = False, prepack: bool = False) -> Compiled:
    """The program as a function of its inputs in order. `backend="eager"` runs the graph as it stands.

    Inductor compiles equal decoder layers once (`ByLayer`). With `static`, no size is symbolic (whoever calls it sees to it that they are
    always the same), and the graph is compiled in one piece, as CUDA graphs want it.
    """
    if backend == "eager" and not options:
        return program.graph_module
    if backend == "inductor" and not static and not options:
        return ByLayer(program, prepack)
    dims = [] if static else dynamic_dims(program)
    options = {"dynamic": False} | options if static else options
    compiled = torch.compile(program.graph_module, backend=backend, fullgraph=True, **options)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        if any(inputs[i].shape[d] < 2 for i, d in dims):  # torch.compile makes graphs of their own for sizes of 1
            return program.graph_module(*inputs)
        if options.get("dynamic") is not False:
            for i, d in dims:
                maybe_dynamic(inputs[i], d)
        return compiled(*inputs)

    return run
