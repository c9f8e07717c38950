"""Fake values of an edited graph: shapes follow the edit, so that a stale length shows at its very line.

A cut gives thousands of values after it another length and nothing else. Where every argument of a node went from S to
another length, its value does too, as a graph captured for any S computes the same for that one; writing that down takes a
tenth of the time of running the operator on symbolic sizes. Whatever changed in another way is run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from lightvlm_fx.compat import at_least_one, equal_sizes, expression, fake_mode, on_fakes, pytree
from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph.pretty import exact, excerpt, typed
from lightvlm_fx.graph.program import Program, value

Record = dict[fx.Node, tuple[Any, ...]]  # every node with its target, args and kwargs


def record(program: Program) -> Record:
    """Every node with what it computes from what."""
    return {n: (n.target, n.args, dict(n.kwargs)) for n in program.graph.nodes}


def infer_shapes(program: Program, before: Record) -> None:
    """Make `meta["val"]` of every node true again after an edit; `before` is a record made ahead of it.

    Starts from the nodes that changed and follows their users as long as a value changes.
    Raises PostconditionError with the neighbourhood of the node that no longer fits.
    """
    mode = next(fake_mode(v) for n in program.placeholders() if isinstance(v := n.meta.get("val"), Tensor))
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    todo = {n for n in nodes if before.get(n) != (n.target, n.args, dict(n.kwargs))}
    shifts = _Shifts(before)
    with mode:
        for node in nodes:
            if node not in todo:
                continue
            old = node.meta.get("val")
            new = shifts.value(node)
            node.meta["val"] = _run(program, node) if new is None else new
            if new is not None or exact(old) != exact(node.meta["val"]):
                shifts.was[node] = old
                todo |= node.users.keys()


def check_shapes(program: Program) -> None:
    """Raise PostconditionError where a node's value is of another dtype or size than torch's own inference over all nodes gives.

    For tests and LIGHTVLM_DEBUG=4: `infer_shapes` runs few of them.
    """
    inputs = [value(n) for n in program.placeholders()]
    plain = program.clone()
    _Plain(plain.graph_module, next(filter(None, map(fake_mode, inputs)))).propagate_dont_convert_inputs(*inputs)
    symbols = sorted({s for x in inputs for n in x.shape if isinstance(n, SymInt) for s in expression(n).free_symbols}, key=str)
    numbers = {symbol: 77 + 101 * i for i, symbol in enumerate(symbols)}

    def at_numbers(val: Any) -> Any:
        if isinstance(val, tuple | list):
            return tuple(map(at_numbers, val))
        if isinstance(val, Tensor):
            return val.dtype, at_numbers(val.shape)
        return int(expression(val).subs(numbers)) if isinstance(val, SymInt) else val

    for ours, theirs in zip(program.graph.nodes, plain.graph.nodes, strict=True):
        if ours.op == "call_function" and at_numbers(value(ours)) != at_numbers(value(theirs)):
            raise PostconditionError(
                f"expected {exact(value(theirs))} at %{ours.name}, as torch infers it, found {exact(value(ours))}\n"
                f"{excerpt(program, ours)}\nThis is a defect of lightvlm_fx; dump=... keeps the graphs."
            )


class _Plain(FakeTensorProp):
    """Weights are as fake as the inputs, and operators called as everywhere here."""

    def run_node(self, n: fx.Node) -> Any:
        return n.meta["val"] if n.op == "get_attr" else super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return on_fakes(target, args, kwargs)


def _run(program: Program, node: fx.Node) -> Any:
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, dict(node.kwargs)))
    like = value(program.sequence())
    known = equal_sizes(like)
    try:
        val = on_fakes(node.target, args, kwargs)
        if taken := equal_sizes(like) - known:  # torch notes such things where an operator meets a length that is gone, and goes on
            raise PostconditionError(f"it takes sizes for equal, or for numbers: {', '.join(sorted(taken))}")
        return val
    except Exception as error:
        raise PostconditionError(
            f"shapes no longer fit at %{node.name} ({typed(node.meta.get('val'))}): {error}\n"
            f"{excerpt(program, node)}\nThis is a defect of lightvlm_fx; dump=... keeps the graphs."
        ) from error


class _Shifts:
    """Values that only went from one length to another."""

    def __init__(self, before: Record) -> None:
        self.before = before
        self.was: dict[fx.Node, Any] = {}  # values that changed, as they were
        self.made: dict[Any, Tensor] = {}

    def value(self, node: fx.Node) -> Tensor | None:
        """The value of `node` where in all that it reads one size S became another T + n; None where that is not so."""
        old = node.meta.get("val")
        if node not in self.before or not isinstance(old, Tensor) or self.before[node][0] != node.target:
            return None
        read, shape = pytree.tree_flatten(self.before[node][1:])
        reads, same = pytree.tree_flatten((node.args, dict(node.kwargs)))
        if shape != same:
            return None
        pairs = self._pairs(read, reads)
        if pairs is None:
            return None
        moves, stayed, length = set(), set(), None
        for x, y in pairs:
            was, now = _linear(x), _linear(y)
            if was is None or now is None or was[1] != now[1]:
                return None
            move = (was[0], now[0], (now[2] - was[2]) / was[1])
            if move[0] == move[1] and not move[2]:
                stayed.add(move[0])
                continue
            moves.add(move)
            length = (y, now[2]) if now[1] == 1 else length
        if not moves:
            return old  # it reads what it read; torch 2.11 would take symbolic sizes for numbers if it ran a matmul again
        if len(moves) != 1 or length is None:
            return None
        [(symbol, _, shift)] = moves
        return None if symbol in stayed else self._moved(old, symbol, shift, *length)

    def _pairs(self, read: list[Any], reads: list[Any]) -> list[tuple[Any, Any]] | None:
        """The symbolic sizes of what a node read and reads, two by two; None where more than such sizes differ."""
        out = []
        for a, b in zip(read, reads, strict=True):
            if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
                if a is not b and a != b:
                    return None
                continue
            pairs = _sizes(self.was.get(a, a.meta.get("val")), b.meta.get("val"))
            if pairs is None or any(x != y for x, y in pairs if not isinstance(x, SymInt) and not isinstance(y, SymInt)):
                return None
            out += [(x, y) for x, y in pairs if isinstance(x, SymInt) or isinstance(y, SymInt)]
        return out

    def _moved(self, old: Tensor, symbol: Any, shift: Any, length: SymInt, offset: Any) -> Tensor | None:
        """`old` with (`length` - `offset`) + `shift` for `symbol`; other sizes stay."""

        def moved(size: Any) -> Any:
            linear = _linear(size)
            if linear is None or linear[0] != symbol:
                return size
            a, b = linear[1:]
            return int(a) * length + int(b + a * (shift - offset))

        parts = (*old.shape, *old.stride())
        linear = [_linear(size) for size in parts if isinstance(size, SymInt)]
        if any(x is None for x in linear) or not any(x[0] == symbol for x in linear):
            return None
        key = (old.dtype, old.device, symbol, shift, str(length), *(str(size) for size in parts), old.ndim)
        if key not in self.made:
            self.made[key] = torch.empty_strided(
                [*map(moved, old.shape)], [*map(moved, old.stride())], dtype=old.dtype, device=old.device
            )
        return self.made[key]


def _sizes(a: Any, b: Any) -> list[tuple[Any, Any]] | None:
    """Sizes and strides of a value before and after, pair by pair; None where more than numbers differ."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = (a.dtype, a.device, a.ndim) == (b.dtype, b.device, b.ndim)
        return [*zip((*a.shape, *a.stride()), (*b.shape, *b.stride()), strict=True)] if same else None
    numbers = isinstance(a, int | SymInt) and isinstance(b, int | SymInt)
    return [(a, b)] if numbers else None


def _linear(size: Any) -> tuple[Any, Any, Any] | None:
    """(s, a, b) where a size is a * s + b of one symbol s."""
    return _coefficients(expression(size)) if isinstance(size, SymInt) else None


@cache
def _coefficients(expr: Any) -> tuple[Any, Any, Any] | None:
    expr = at_least_one(expr)
    if len(expr.free_symbols) != 1:
        return None
    [symbol] = expr.free_symbols
    b = expr.subs(symbol, 0)
    a = expr.subs(symbol, 1) - b
    whole = a.is_Integer and b.is_Integer and a != 0
    return (symbol, a, b) if whole and (a * symbol + b - expr).expand() == 0 else None
