"""Decode over bounded buffers: a new token takes the slot of the entry that is worth least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.frozen import Count
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.edit import Editor, every_layer_marked
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.methods import operators
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.methods.registry import AnyEntryScore
from lightvlm_fx.ops.bounded_attention import attend_bounded
from lightvlm_fx.passes.attach_cache import SLOTS, buffer
from lightvlm_fx.passing.pass_base import Index, Pass, PassResult


@dataclass(frozen=True)
class BoundDecode(Pass):
    """Give each layer its own buffers, positions and, where the rule has one, running scores.

    Before:    o[B,Q,H,d] = lightvlm.attention(q, k, v, ...)                     sees the new tokens only
    After:     o[B,Q,H,d] = attend_bounded(q, k, v, keys_l[B,G,C,d], values_l, position_l[B,G,C], score_l[B,G,C], ...)
    Requires:  one marker a layer.
    Ensures:   no marker is left; the hidden state is the only output, beside the scores of a `question`; buffers are written in place.
    Source:    patterns S1 to S6 of methods-decode.md 1.5: H2O arXiv 2306.14048, Scissorhands 2305.17118, StreamingLLM 2309.17453.
    """

    append: bool = False  # new tokens go to the slots given, not over victims
    capacity: Index = 0  # slots of every buffer, where that is a number; 0: the buffers may have any size
    limited: bool = False  # what is dropped is masked, not overwritten: the input `limit` [B, L] says how many entries may stay
    score: AnyEntryScore = Attention()
    shared: bool = False
    sinks: Count = 4
    recent: Count = 32
    question: AnyEntryScore | None = None  # scores the entries for the new tokens, which ask a question
    biased: tuple[Index, ...] = ()  # layers whose keys count as the tokens they stand for

    name = "bound-decode"
    stages = ("decode",)
    after = ("shift-positions",)
    drops = ("keys", "values")

    def requires(self, program: Program) -> None:
        depth = every_layer_marked(self, program)
        if not set(self.biased) <= set(range(depth)):
            raise PreconditionError(f"{self}: biased must name layers, 0 to {depth - 1}, got {self.biased}")
        if self.capacity < 0:
            raise PreconditionError(f"{self}: capacity must be a number of slots, or 0 for any, got {self.capacity}")

    def call(self, program: Program) -> PassResult:
        markers, embeds = program.markers(), value(program.sequence())
        rows, queries = embeds.shape[:2]
        integers = embeds.new_empty(rows, dtype=torch.int64)
        query = program.add_input(ports.QUERY, integers.new_empty(queries))
        start = program.add_input(ports.START, integers)
        asked: list[fx.Node] = []
        limits = program.add_input(ports.LIMIT, integers.new_empty(rows, len(markers))) if self.limited else None
        scored = self.score.carried
        for layer, marker in sorted(markers.items()):
            q, k, v, _, scale, _, window, softcap, _ = Marker.of(marker)
            heads = 1 if self.shared else value(k).shape[1]
            capacity = self.capacity or program.new_size(f"capacity_{layer}", SLOTS)
            held = integers.new_empty(rows, heads, capacity)
            kv = [buffer(program, port, layer, value(x), capacity) for port, x in ((ports.KEYS, k), (ports.VALUES, v))]
            position = program.add_input(ports.POSITION, held, layer)
            score = program.add_input(ports.SCORE, held.float(), layer) if scored else None
            size = program.add_input(ports.SIZE, held.float(), layer) if layer in self.biased else None
            slot = program.add_input(ports.SLOT, integers.new_empty(queries), layer) if self.append else None
            limit = limits and Editor(program, marker).call(f"limit_{layer}", torch.ops.aten.select.int, limits, 1, layer)
            arguments: tuple[fx.Node | str | float | None, ...] = (
                q, k, v, *kv, position, score, size, query, start, slot, scale, softcap, window,
                self.score.name, self.sinks, self.recent, self.score.decay, limit,
            )  # fmt: skip
            if self.question is not None:
                segment = program.add_input(ports.ASKED, integers.new_empty(rows, capacity), layer)
                read = {"q": q, "k": kv[0], "segment": segment, "scale": scale}
                asked.append(operators.call(Editor(program, marker), f"asked_{layer}", self.question, "ask", **read))
            with program.graph.inserting_before(marker):
                node = program.graph.create_node("call_function", attend_bounded, arguments, {}, name=f"attend_{layer}")
            marker.replace_all_uses_with(node)
            program.graph.erase_node(marker)
        end = program.output_node()
        end.args = ((end.args[0][0], *asked),)
        outputs = ("hidden", *(f"asked.{layer}" for layer in range(len(asked))))
        program.with_facts(outputs=outputs)
        return PassResult(len(markers), program.facts.layers)

    def ensures(self, program: Program) -> None:
        if program.markers():
            raise PostconditionError(f"{self}: markers left in layers {sorted(program.markers())}")
