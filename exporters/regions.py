"""A backend of torch.compile that compiles equal decoder layers once, with inductor.

A decoder is one layer over and over. Dynamo traces the whole graph, so that its guards hold for all of it; then the graph is cut up
at the layers, and of parts that compute the same only the first is compiled: minutes become seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import SymInt, Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from lightvlm_fx.compat import expression, inductor, traced_guards
from lightvlm_fx.edit import module_path
from lightvlm_fx.program import Program

CUT = "cut"


def mark_cuts(program: Program) -> None:
    """Give the nodes of cuts a place of their own among the modules that nodes are traced from, which dynamo hands on."""
    for node in program.graph.nodes:
        if node.meta.get("lightvlm_pass") == "reduce-tokens":
            node.meta["nn_module_stack"] = {CUT: (CUT, nn.Module)}


def _place(node: fx.Node) -> str:
    """The layer that a node is of, or the cut; empty where nothing says."""
    path = module_path(node).split(".")
    return ".".join(path[:2]) if path[0] == "layers" else path[0]


def by_layer(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend: `graph`, as dynamo traced it, with its layers, and what lies between them, compiled part by part."""
    number, place, places = 0, "", dict[fx.Node, int]()
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        here = _place(node)
        if here and here != place and not here.startswith("L["):
            number, place = number + 1, here
        places[node] = number  # a node that a pass put in belongs where it stands
    whole = split_module(graph, None, lambda node: places.get(node, 0), keep_original_order=True)
    known: dict[Any, Callable[..., Any]] = {}
    for node in whole.graph.nodes:
        if node.op == "call_module":
            part = getattr(whole, node.target)
            if not _is_choice(part):
                setattr(whole, node.target, _Part(part, known))
    return whole


def _is_choice(part: fx.GraphModule) -> bool:
    """Whether a part chooses tokens or entries and computes no layer: ops that a compiler does not look into."""
    targets = [str(node.target) for node in part.graph.nodes]
    return any(name.startswith("lightvlm.") for name in targets) and "aten.linear.default" not in targets


class _Part(nn.Module):
    """A compiled part in the place of its graph."""

    def __init__(self, part: fx.GraphModule, known: dict[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.single = not isinstance(_results(part), tuple | list)
        self.run = _compiled(part, known)

    def forward(self, *values: Any) -> Any:
        out = self.run(*values)
        return out[0] if self.single else out


def _results(part: fx.GraphModule) -> Any:
    return next(iter(reversed(part.graph.nodes))).args[0]


def _compiled(part: fx.GraphModule, known: dict[Any, Callable[..., Any]]) -> Callable[..., Any]:
    """What inductor makes of a part, or made of an equal one before."""
    key, symbols = _key(part)
    if key in known:
        return known[key]
    if (key, symbols) in known:
        return known[key, symbols]
    results = _results(part)
    if not isinstance(results, tuple | list):
        next(iter(reversed(part.graph.nodes))).args = ((results,),)
    part.recompile()
    before = traced_guards()
    run = inductor(part, [node.meta["example_value"] for node in part.graph.nodes if node.op == "placeholder"])
    # what was assumed of these sizes, dynamo checks of these alone: parts of other sizes are not equal then
    known[key if traced_guards() == before else (key, symbols)] = run
    return run


def _key(part: fx.GraphModule) -> tuple[str, tuple[str, ...]]:
    """What a part computes, with its values and symbolic sizes numbered in order; and those sizes by name."""
    values: dict[fx.Node, str] = {}
    symbols: dict[str, str] = {}

    def named(size: Any) -> str:
        text = str(expression(size)) if isinstance(size, SymInt) else str(size)
        return re.sub(r"\b[su]\d+\b", lambda m: symbols.setdefault(m[0], f"n{len(symbols)}"), text)

    def shown(x: Any) -> str:
        if isinstance(x, fx.Node):
            return values[x]
        if isinstance(x, list | tuple):
            return f"[{','.join(map(shown, x))}]"
        if isinstance(x, dict):
            return f"{{{','.join(f'{k}:{shown(v)}' for k, v in x.items())}}}"
        return f"{type(x).__name__}:{x}"

    lines = []
    for node in part.graph.nodes:
        values[node] = f"%{len(values)}"
        like = node.meta.get("example_value")
        if isinstance(like, Tensor):
            kind = f"{like.dtype}{like.device}{[*map(named, like.shape)]}{[*map(named, like.stride())]}"
        else:
            kind = named(like) if isinstance(like, SymInt | int) else ""
        what = "" if node.op == "placeholder" else f"{node.target}{shown(node.args)}{shown(node.kwargs)}"
        lines.append(f"{node.op} {what} {kind}")
    return "\n".join(lines), tuple(symbols)
