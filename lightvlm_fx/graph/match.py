"""Finding values in a captured graph by structure; every miss says what was looked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import SymInt, Tensor, fx

from lightvlm_fx.compat import pytree, schema
from lightvlm_fx.errors import PreconditionError
from lightvlm_fx.graph.edit import Editor, module_path, token_dims
from lightvlm_fx.graph.pretty import excerpt
from lightvlm_fx.graph.program import Program, value


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and everything they are computed from."""
    seen: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += node.all_input_nodes
    return seen


def copied(edit: Editor, wanted: list[Any], reader: fx.Node, suffix: str) -> list[Any]:
    """What nodes among `wanted` hold when `reader` runs, computed once more at the editor's place; anything else as it is."""
    order = list(edit.program.graph.nodes)
    after = order[order.index(edit.before) : order.index(reader)]
    needed = ancestors(x for x in wanted if isinstance(x, fx.Node))
    for node in after:
        if _is_mutable(node) and not needed.isdisjoint(ancestors(node.args[:1])):  # it writes what is needed
            needed |= ancestors([node])
    copies: dict[fx.Node, fx.Node] = {}
    for node in after:
        if node in needed:
            args, kwargs = pytree.tree_map_only(fx.Node, lambda x: copies.get(x, x), (node.args, dict(node.kwargs)))
            copies[node] = edit.call(f"{node.name}_{suffix}", node.target, *args, **kwargs)
    return [copies.get(x, x) for x in wanted]


def inputs_of(node: fx.Node) -> set[str]:
    """Names of the placeholders a value is computed from."""
    return {n.name for n in ancestors([node]) if n.op == "placeholder"}


def is_positional(node: fx.Node) -> bool:
    """Whether a tensor is computed from the position ids alone: cos, sin, the ids; of all tokens or those that cuts left."""
    todo, seen, found = [node] if isinstance(value(node), Tensor) else [], set(), False
    while todo:
        at = todo.pop()
        if at in seen or isinstance(value(at), int | SymInt):  # a length is not what a value is made of
            continue
        seen.add(at)
        if at.op == "placeholder" and at.name != "position_ids":
            return False
        found |= at.op == "placeholder"
        # which tokens stay is a cut's choice, not what the value is made of
        todo += at.all_input_nodes[:1] if at.target is torch.ops.lightvlm.take_tokens.default else at.all_input_nodes
    return found


def hidden_state(program: Program, values: list[fx.Node], length: object) -> fx.Node:
    """The residual stream among values that cross a cut: the last one made of shape [B, S, D]."""
    wanted = program.facts.hidden
    for node in reversed(values):
        val = value(node)
        fits = isinstance(val, Tensor) and val.ndim == 3 and val.is_floating_point() and val.shape[-1] == wanted
        if fits and token_dims(node, length) == [1] and "inputs_embeds" in inputs_of(node):  # a side input is none
            return node
    raise PreconditionError(f"expected a hidden state [B, S, {wanted}] to cross the cut, found {', '.join(n.name for n in values)}")


def before_rope(program: Program, rotated: fx.Node) -> fx.Node:
    """The query or key of an attention marker as it was before rotary embedding.

    Walks back from `rotated` over nodes that read cos or sin, and returns the last value that all of their
    other inputs are computed from. Raises PreconditionError where that is not a tensor of the same shape.
    """
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    frontier: set[fx.Node] = set()
    todo, seen = [rotated], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if _reads_positions_nearby(node):
            todo += [n for n in node.all_input_nodes if not is_positional(n) and n.op != "get_attr"]
        else:
            frontier.add(node)
    shape = list(value(rotated).shape)
    layer = module_path(rotated).split(".")[:2]  # an earlier layer's query is an ancestor too, and of the same shape
    common = set.intersection(*(ancestors([n]) for n in frontier)) if frontier else set()
    for node in sorted(common, key=order.__getitem__, reverse=True):
        val = value(node)
        same = isinstance(val, Tensor) and list(map(str, val.shape)) == list(map(str, shape))
        if same and module_path(node).split(".")[:2] == layer and not _is_written(node):
            return node
    raise PreconditionError(
        f"no value of shape {shape} before rotary embedding leads to %{rotated.name}; use rope=True\n" + excerpt(program, rotated)
    )


def _is_written(node: fx.Node) -> bool:
    """Whether the value, or a view of it, is written in place: then a graph does not say what it is made of."""
    users = [user for user in node.users if user.args and user.args[0] is node]
    if any(map(_is_mutable, users)):
        return True
    return any(_is_written(user) for user in users if str(user.target).startswith(("aten.slice", "aten.select", "aten.view")))


def _is_mutable(node: fx.Node) -> bool:
    found = schema(node.target)
    return found is not None and bool(found.is_mutable)


def _reads_positions_nearby(node: fx.Node, reach: int = 12) -> bool:
    """Whether `node` mixes in cos or sin, itself or through few steps of its own layer."""
    todo = [(node, 0)]
    seen = set()
    while todo:
        at, depth = todo.pop()
        if at in seen or depth > reach:
            continue
        seen.add(at)
        if at is not node and is_positional(at):
            return True
        if len(at.all_input_nodes) and str(at.target).startswith("aten.linear"):
            continue
        todo += [(n, depth + 1) for n in at.all_input_nodes if n.op == "call_function"]
    return False
