"""Edits that passes share: where a layer begins, what crosses there, and giving all of it a new length.

Each keeps names readable and `meta["val"]` true, so that the graph prints and lints after every step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import SymInt, Tensor, fx

from lightvlm_fx.compat import expression, fake_mode, on_fakes, pytree
from lightvlm_fx.errors import PreconditionError
from lightvlm_fx.graph.pretty import excerpt
from lightvlm_fx.graph.program import Program, value


def module_path(node: fx.Node) -> str:
    """Dotted path of the module that a node was traced from, below the decoder ("" for the decoder)."""
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return path.removeprefix("decoder").removeprefix(".")


def first_of_layer(program: Program, layer: int) -> fx.Node:
    """The first node that decoder layer `layer` owns."""
    prefix = f"layers.{layer}"
    for node in program.graph.nodes:
        path = module_path(node)
        if path == prefix or path.startswith(prefix + "."):
            return node
    raise PreconditionError(f"no node was traced from {prefix}; the graph has {program.facts.layers} layers")


def layer_nodes(program: Program, layer: int) -> list[fx.Node]:
    """The nodes that compute something in decoder layer `layer`, in graph order."""
    prefix = f"layers.{layer}"
    paths = ((n, module_path(n)) for n in program.graph.nodes if n.op == "call_function")
    return [n for n, path in paths if path == prefix or path.startswith(prefix + ".")]


def every_layer_marked(pass_: object, program: Program) -> int:
    """The number of layers; raises PreconditionError where one has no attention marker."""
    found, depth = sorted(program.markers()), program.facts.layers
    if found != list(range(depth)):
        raise PreconditionError(f"{pass_}: expected an attention marker in each of {depth} layers, found layers {found}")
    return depth


def crossing(program: Program, cut: fx.Node) -> list[fx.Node]:
    """Values made before `cut` and used at or after it, weights left out, in graph order."""
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    at = order[cut]
    return [
        n
        for n in program.graph.nodes
        if order[n] < at and n.op != "get_attr" and any(order[u] >= at and u.op != "output" for u in n.users)
    ]


def token_dims(node: fx.Node, length: Any) -> list[int]:
    """Dimensions of a node's tensor whose size is the sequence length."""
    val = value(node)
    return [d for d, size in enumerate(val.shape) if _same(size, length)] if isinstance(val, Tensor) else []


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same expression (never a new guard)."""
    if isinstance(a, SymInt) or isinstance(b, SymInt):
        return isinstance(a, SymInt) and isinstance(b, SymInt) and expression(a) == expression(b)
    return bool(a == b)


def depends_on(val: Any, length: Any) -> bool:
    """Whether a symbolic number is an expression in the sequence length."""
    if not (isinstance(val, SymInt) and isinstance(length, SymInt)):
        return False
    return bool(expression(val).free_symbols & expression(length).free_symbols)


def batch_dim(val: Tensor, dim: int, rows: Any) -> int:
    """The dimension before `dim` that tells rows apart: the last of size B, else the last of size 1, else -1."""
    sizes = list(val.shape[:dim])
    for wanted in (rows, 1):
        at = [d for d, size in enumerate(sizes) if _same(size, wanted)]
        if at:
            return at[-1]
    return -1


class Editor:
    """Inserts calls before one node, with values inferred and names kept readable."""

    def __init__(self, program: Program, before: fx.Node) -> None:
        self.program, self.before = program, before

    def call(self, name: str, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        with self.program.graph.inserting_before(self.before):
            node = self.program.graph.create_node("call_function", target, args, kwargs, name=name)
        fakes, named = pytree.tree_map_only(fx.Node, value, (args, kwargs))
        node.meta["val"] = self._infer(node, target, fakes, named)
        return node

    def parts(self, of: fx.Node, *names: str) -> list[fx.Node]:
        """The first results of an op that returns several, each with a name."""
        return [self.call(name, operator.getitem, of, i) for i, name in enumerate(names)]

    def _infer(self, node: fx.Node, target: Callable[..., Any], fakes: Any, named: Any) -> Any:
        mode = next(filter(None, map(fake_mode, [*pytree.tree_leaves((fakes, named)), value(self.program.sequence())])))
        try:
            with mode:
                return on_fakes(target, fakes, named)
        except Exception as error:
            error.add_note(f"while inserting\n{excerpt(self.program, node)}")
            raise


def replace_after(program: Program, cut: fx.Node, old: fx.Node, new: fx.Node, keep: Iterable[fx.Node] = ()) -> None:
    """Make the users of `old` at or after `cut` read `new`; outputs and the nodes in `keep` stay as they are."""
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    spared = set(keep)
    for user in list(old.users):
        if order[user] >= order[cut] and user.op != "output" and user not in spared:
            user.replace_input_with(old, new)


def resized(edit: Editor, suffix: str, old: fx.Node, stay: fx.Node, length: Any, made: dict[fx.Node, fx.Node]) -> fx.Node:
    """The number `old` computed from the new length `stay`, called `old`_`suffix`; itself where it does not depend on the old one."""
    val = value(old)
    if old in made or not depends_on(val, length):
        return made.get(old, old)
    if expression(val) == expression(length):
        return stay
    args = [resized(edit, suffix, a, stay, length, made) if isinstance(a, fx.Node) else a for a in old.args]
    made[old] = edit.call(f"{old.name}_{suffix}", old.target, *args)
    return made[old]
