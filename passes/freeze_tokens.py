"""Frozen tokens: in some layers visual tokens keep their hidden state, and only text is computed on."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.edit import Editor, batch_dim, crossing, first_of_layer, layer_nodes, resized, token_dims
from lightvlm_fx.graph.match import ancestors, hidden_state
from lightvlm_fx.graph.pretty import excerpt
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.passing.pass_base import Index, Pass, PassResult

OPS = torch.ops.lightvlm


@dataclass(frozen=True)
class FreezeTokens(Pass):
    """In each of `layers`, all tokens give keys and values, but queries, output projection and MLP run for text alone.

    Before:    h'[B,S,D] = layer(h[B,S,D])
    After:     i[B,T] = text_index(segment);  k, v[B,G,S,d] of all of h;  q[B,H,T,d], attention, MLP of h[i]: p[B,T,D]
               h'[B,S,D] = put_tokens(h, p, i, segment);  T is the size of a new input, stay_text [T]
    Requires:  an attention marker in each layer; after every pass that reads queries: those read all rows.
    Ensures:   the layers' keys, values and outputs have the shapes that they had; one marker a layer, of T rows.
    Source:    ShortV, arXiv 2504.00502.
    """

    layers: tuple[Index, ...] = ()

    name = "freeze-tokens"
    stages = ("prefill",)
    after = ("reduce-tokens", "bound-prefill")

    def requires(self, program: Program) -> None:
        depth = program.facts.layers
        if list(self.layers) != sorted(set(self.layers) & set(range(depth))):
            raise PreconditionError(f"{self}: layers must rise within 0 to {depth - 1}, got {self.layers}")
        if ports.STAY_TEXT.name in program.inputs:
            raise PreconditionError(f"{self}: visual tokens are frozen already")
        if program.facts.static_length:
            raise PreconditionError(f"{self}: rows cannot leave a graph that was captured for one sequence length only")
        missing = set(self.layers) - program.markers().keys()
        if missing:
            raise PreconditionError(f"{self}: expected an attention marker in layers {self.layers}, found none in {sorted(missing)}")

    def call(self, program: Program) -> PassResult:
        if not self.layers:
            return PassResult(0, 0)
        ruler = program.add_ruler(ports.STAY_TEXT)
        rows = Editor(program, program.first()).call("staying_text", torch.ops.aten.sym_size.int, ruler, 0)
        chosen: dict[fx.Node, fx.Node] = {}  # of the tokens that a layer sees, the places of text
        for layer in self.layers:
            self._freeze(program, layer, rows, chosen)
        return PassResult(len(self.layers), len(self.layers))

    def _freeze(self, program: Program, layer: int, rows: fx.Node, chosen: dict[fx.Node, fx.Node]) -> None:
        marker, nodes = program.markers()[layer], layer_nodes(program, layer)
        order = {n: i for i, n in enumerate(program.graph.nodes)}
        after = next(n for n in program.graph.nodes if order[n] > order[nodes[-1]])
        segment = program.segment_at(layer)
        length = value(segment).shape[1]
        before = hidden_state(program, crossing(program, first_of_layer(program, layer)), length)
        attention = Marker.of(marker)
        kept = ancestors([attention.k, attention.v])  # what keys and values are made of: of all tokens
        own = [n for n in nodes if n not in kept]
        out = hidden_state(program, crossing(program, after), length)
        if out not in own:
            raise PreconditionError(f"{self}: expected layer {layer} to end in its hidden state, found\n" + excerpt(program, out))
        edit = Editor(program, after)
        if segment not in chosen:
            at = Editor(program, nodes[0])
            chosen[segment] = at.call(f"text_index_{layer}", OPS.text_index.default, segment, rows)
        made = _Rows(edit, chosen[segment], rows, length)
        for node in own:
            if value(node) is None or isinstance(value(node), int | SymInt):
                continue  # checks of all rows; and numbers, which are made where they are read
            if node.target is operator.getitem and node.args[0] not in made.copies:  # a part of what all tokens have
                made.copies[node] = made.of(node)
                continue
            args = tuple(made.of(x) for x in node.args)
            if node is marker:
                mask = attention.mask
                seen = edit.call(f"seen_{layer}", OPS.text_mask.default, segment, made.index) if mask is None else made.taken(mask, 2)
                args = attention._replace(q=args[0], mask=seen).args
            made.copies[node] = edit.call(f"{node.name}_text", node.target, *args, **{k: made.of(x) for k, x in node.kwargs.items()})
            made.copies[node].meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        full = edit.call(f"frozen_{layer}", OPS.put_tokens.default, before, made.copies[out], made.index, segment)
        out.replace_all_uses_with(full, lambda user: user is not full)
        for node in reversed(own):  # writes in place would stay otherwise
            if not node.users:
                program.graph.erase_node(node)

    def ensures(self, program: Program) -> None:
        markers = program.markers()
        for layer in self.layers:
            attention = Marker.of(markers[layer])
            q, k = (value(x).shape[2] for x in (attention.q, attention.k))
            if str(q) == str(k):
                raise PostconditionError(f"{self}: layer {layer} still attends from all {q} tokens\n" + excerpt(program, markers[layer]))


class _Rows:
    """The values of one layer, made anew for text alone: [.., T, ..] for [.., S, ..]."""

    def __init__(self, edit: Editor, index: fx.Node, rows: fx.Node, length: Any) -> None:
        self.edit, self.index, self.rows, self.length = edit, index, rows, length
        self.copies: dict[fx.Node, fx.Node] = {}
        self.sizes: dict[fx.Node, fx.Node] = {}  # numbers
        self.parts: dict[tuple[fx.Node, int], fx.Node] = {}  # of what all tokens have

    def of(self, x: Any) -> Any:
        """What stands for the argument `x`."""
        if isinstance(x, list | tuple):
            return type(x)(map(self.of, x))
        if not isinstance(x, fx.Node):
            return x
        if x in self.copies:
            return self.copies[x]
        if isinstance(value(x), Tensor):
            dims = token_dims(x, self.length)
            return self.taken(x, dims[0]) if dims else x
        return resized(self.edit, "text", x, self.rows, self.length, self.sizes)

    def taken(self, x: fx.Node, dim: int) -> fx.Node:
        """`x` at the places of text in its token dimension `dim`."""
        if (x, dim) not in self.parts:
            at = batch_dim(value(x), dim, value(self.index).shape[0])
            self.parts[x, dim] = self.edit.call(f"{x.name}_of_text", OPS.take_tokens.default, x, self.index, at, dim)
        return self.parts[x, dim]
