"""Compact positions while decoding: each span of layers counts on from its own renumbered prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import fx

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.edit import crossing, first_of_layer, replace_after
from lightvlm_fx.graph.match import ancestors, is_positional
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.ops.cached_attention import shifted
from lightvlm_fx.passing.pass_base import Index, Pass, PassResult


def _current(copies: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return copies.get(node, node)


@dataclass(frozen=True)
class ShiftPositions(Pass):
    """From each layer in `layers` on, compute cos and sin again from position - shift.

    Before:    cos, sin = rotary(position_ids)                       read by every layer
    After:     cos', sin' = rotary(position_ids - shift_i[B])        read from the i-th layer on
    Requires:  positions [B, Q], not shifted yet; `layers` rising, within the decoder.
    Ensures:   one new input `shift_i` per layer named.
    Source:    PyramidDrop, arXiv 2410.17247.
    """

    layers: tuple[Index, ...] = ()

    name = "shift-positions"
    stages = ("decode",)

    def requires(self, program: Program) -> None:
        if program.facts.positions_rank != 2:
            raise PreconditionError(f"{self}: needs positions [B, Q], this model has M-RoPE triples")
        if ports.SHIFT.at(0) in program.inputs:
            raise PreconditionError(f"{self}: expected positions as the model computes them, these are shifted already")
        depth = program.facts.layers
        if list(self.layers) != sorted(set(self.layers) & set(range(depth))):
            raise PreconditionError(f"{self}: layers must rise within 0 to {depth - 1}, got {self.layers}")

    def call(self, program: Program) -> PassResult:
        matched = 0
        current: dict[fx.Node, fx.Node] = {}  # original positional value -> the one in force
        ids = next(n for n in program.placeholders() if n.name == "position_ids")
        for i, layer in enumerate(self.layers):
            cut = first_of_layer(program, layer)
            if not current:
                current = {n: n for n in crossing(program, cut) if is_positional(n)}
            rows = value(program.sequence()).shape[0]
            shift = program.add_input(ports.SHIFT, value(ids).new_empty(rows), i)
            with program.graph.inserting_before(cut):
                moved = program.graph.create_node("call_function", shifted, (ids, shift), {}, name=f"position_ids_{i}")
                moved.meta["val"] = value(ids).new_empty(rows, value(ids).shape[1])
                copies = {ids: moved}
                needed = ancestors(current)
                for node in [n for n in program.graph.nodes if n in needed and n is not ids]:
                    if node.op == "call_function" and is_positional(node):
                        copies[node] = program.graph.node_copy(node, partial(_current, copies))
            for original, latest in list(current.items()):
                replace_after(program, cut, latest, copies[original], copies.values())
                current[original] = copies[original]
            matched += 1
        return PassResult(matched, len(self.layers), "" if matched else "no layers given")

    def ensures(self, program: Program) -> None:
        missing = [i for i in range(len(self.layers)) if ports.SHIFT.at(i) not in program.inputs]
        if missing:
            raise PostconditionError(f"{self}: inputs shift_{missing} are missing")


