"""Target: torch.compile. A rewritten program as a callable whose token and cache dimensions stay symbolic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor

from lightvlm_fx.compat import maybe_dynamic
from lightvlm_fx.errors import UnknownName
from lightvlm_fx.exporters.regions import by_layer, mark_cuts
from lightvlm_fx.program import Program

Compiled = Callable[..., tuple[Tensor, ...]]


def dynamic_dims(program: Program) -> list[tuple[int, int]]:
    """(input, dimension) of everything that may differ from call to call of one graph."""
    placeholders = enumerate(program.placeholders())
    return [(i, d) for i, node in placeholders for d, size in enumerate(node.meta["val"].shape) if isinstance(size, SymInt)]


def check_backend(backend: str) -> None:
    """Raise UnknownName for a backend that torch.compile does not know; "eager" needs none."""
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UnknownName.of("backend", backend, known)


def lower(program: Program, backend: str, options: dict[str, Any], static: bool = False) -> Compiled:
    """The program as a function of its inputs in order. `backend="eager"` runs the graph as it stands.

    Inductor compiles equal decoder layers once. With `static`, no size is symbolic (whoever calls it sees to it that they are
    always the same), and the graph is compiled in one piece, as CUDA graphs want it.
    """
    if backend == "eager" and not options:
        return program.graph_module
    dims = [] if static else dynamic_dims(program)
    options = {"dynamic": False} | options if static else options
    if backend == "inductor" and not static and not options:
        mark_cuts(program)
        compiled = torch.compile(program.graph_module, backend=by_layer, fullgraph=True)
    else:
        compiled = torch.compile(program.graph_module, backend=backend, fullgraph=True, **options)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        if any(inputs[i].shape[d] < 2 for i, d in dims):  # torch.compile makes graphs of their own for sizes of 1
            return program.graph_module(*inputs)
        if options.get("dynamic") is not False:
            for i, d in dims:
                maybe_dynamic(inputs[i], d)
        return compiled(*inputs)

    return run
