"""Target: torch.compile. A rewritten program as a callable whose token and cache dimensions stay symbolic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor

from lightvlm_fx.errors import UnknownName
from lightvlm_fx.program import Program

Compiled = Callable[..., tuple[Tensor, ...]]
CAPACITY_INPUTS = ("keys", "values", "position", "size", "score", "segment")  # of the decode passes, by the name before "_<number>"


def dynamic_dims(program: Program) -> list[tuple[int, int]]:
    """(input, dimension) of everything that may differ from call to call within one bucket."""
    out = []
    for i, node in enumerate(program.placeholders()):
        val = node.meta["val"]
        out += [(i, d) for d, size in enumerate(val.shape) if isinstance(size, SymInt)]
        if program.facts.fixed_cache:
            continue
        kind, _, number = node.name.rpartition("_")
        if kind in CAPACITY_INPUTS and number.isdigit():
            out.append((i, 2 if kind in ("keys", "values") else val.ndim - 1))
    return out


def check_backend(backend: str) -> None:
    """Raise UnknownName for a backend that torch.compile does not know; "eager" needs none."""
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UnknownName.of("backend", backend, known)


def lower(program: Program, backend: str, options: dict[str, Any]) -> Compiled:
    """The program as a function of its inputs in order. `backend="eager"` runs the graph as it stands."""
    module = program.graph_module
    if backend == "eager" and not options:
        return module
    dims = dynamic_dims(program)
    compiled = torch.compile(module, backend=backend, fullgraph=True, **options)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        if options.get("dynamic") is not False:
            for i, d in dims:
                if inputs[i].shape[d] > 1:
                    torch._dynamo.maybe_mark_dynamic(inputs[i], d)
        return compiled(*inputs)

    return run
