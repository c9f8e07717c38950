"""Decode over one buffer a layer, each as long as its span of layers asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.edit import every_layer_marked
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.ops.cached_attention import attend_cached, cache_mask, hold
from lightvlm_fx.passing.pass_base import Index, Pass, PassResult
from lightvlm_fx.schedule import token_set

SLOTS = 64  # that buffers of any size are traced at, or more: as many as the new tokens of an example


@dataclass(frozen=True)
class AttachCache(Pass):
    """Give each layer its cache buffers; a span of layers, between two cuts, shares slots and mask.

    Before:    o[B,Q,H,d] = lightvlm.attention(q, k, v, ...)                        sees the new tokens only
    After:     p[B,C] = hold(position_s, slot_s, query_index);  m = cache_mask(p, query_index, window)
               o[B,Q,H,d] = attend_cached(q, k, v, keys_l[B,G,C,d], values_l, slot_s, m, ...)
    Requires:  one marker a layer; `layers` rising, within the decoder.
    Ensures:   no marker is left; the hidden state is the only output; buffers are written in place.
    Source:    ours (static-shape cache of methods-decode.md 1.5, appending).
    """

    layers: tuple[Index, ...] = ()  # first layer of every span but the first
    biased: tuple[Index, ...] = ()  # spans whose keys count as the tokens they stand for
    capacity: Index = 0  # slots of every buffer, where that is a number; 0: the buffers may have any size

    name = "attach-cache"
    stages = ("decode",)
    after = ("shift-positions",)
    drops = ("keys", "values")

    def requires(self, program: Program) -> None:
        depth = every_layer_marked(self, program)
        if list(self.layers) != sorted(set(self.layers) & set(range(depth))):
            raise PreconditionError(f"{self}: layers must rise within 0 to {depth - 1}, got {self.layers}")
        if not set(self.biased) <= set(range(len(self.layers) + 1)):
            raise PreconditionError(f"{self}: biased must name spans of layers, 0 to {len(self.layers)}, got {self.biased}")
        if self.capacity < 0:
            raise PreconditionError(f"{self}: capacity must be a number of slots, or 0 for any, got {self.capacity}")

    def call(self, program: Program) -> PassResult:
        markers = program.markers()
        graph = program.graph
        embeds = value(program.sequence())
        rows, queries = embeds.shape[:2]
        integers = embeds.new_empty(queries, dtype=torch.int64)
        query = program.add_input(ports.QUERY, integers)
        spans = range(len(self.layers) + 1)
        capacity = [self.capacity or program.new_size(f"capacity_{s}", SLOTS) for s in spans]
        positions = [program.add_input(ports.POSITION, integers.new_empty(rows, capacity[s]), s) for s in spans]
        sizes = {s: program.add_input(ports.SIZE, embeds.new_empty(rows, capacity[s], dtype=torch.float32), s) for s in self.biased}
        slots = [program.add_input(ports.SLOT, integers.new_empty(queries), s) for s in spans]
        masks: dict[tuple[int, int], fx.Node] = {}
        held: dict[int, fx.Node] = {}
        start = program.first()  # masks are made before the layers, so that layers of a span compute the same
        for layer, marker in sorted(markers.items()):
            span = token_set(self.layers, layer)
            q, k, v, _, scale, _, window, softcap, _ = Marker.of(marker)
            kv = [buffer(program, port, layer, value(x), capacity[span]) for port, x in ((ports.KEYS, k), (ports.VALUES, v))]
            with graph.inserting_before(start):
                if span not in held:
                    held[span] = graph.create_node(
                        "call_function", hold, (positions[span], slots[span], query), {}, name=f"held_{span}"
                    )
                if (span, window) not in masks:
                    masks[span, window] = graph.create_node(
                        "call_function", cache_mask, (held[span], query, window, sizes.get(span)), {}, name=f"mask_{span}_{window}"
                    )
            with graph.inserting_before(marker):
                arguments = (q, k, v, *kv, slots[span], masks[span, window], scale, softcap)
                node = graph.create_node("call_function", attend_cached, arguments, {}, name=f"attend_{layer}")
            marker.replace_all_uses_with(node)
            graph.erase_node(marker)
        end = program.output_node()
        end.args = ((end.args[0][0],),)
        program.with_facts(outputs=("hidden",))
        return PassResult(len(markers), program.facts.layers, f"{len(self.layers) + 1} spans of layers")

    def ensures(self, program: Program) -> None:
        if program.markers():
            raise PostconditionError(f"{self}: markers left in layers {sorted(program.markers())}")


def buffer(program: Program, port: ports.Port, layer: int, new: Tensor, capacity: Any) -> fx.Node:
    """An input for a cache buffer [B, G, C, d] that takes `new` [B, G, Q, d]; C is `capacity`."""
    rows, heads, _, width = new.shape
    return program.add_input(port, new.new_empty(rows, heads, capacity, width), layer)
