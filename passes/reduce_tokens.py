"""The cut: visual tokens are reduced before one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.edit import Editor, batch_dim, crossing, depends_on, first_of_layer, replace_after, resized, token_dims
from lightvlm_fx.graph.match import before_rope, copied, hidden_state, is_positional
from lightvlm_fx.graph.pretty import excerpt, typed
from lightvlm_fx.graph.program import CutNodes, Program, value
from lightvlm_fx.methods import operators
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.registry import AnyCombine, AnyTokenScore
from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.passing.pass_base import Index, Pass, PassResult
from lightvlm_fx.schedule import Positions

OPS = torch.ops.lightvlm


@dataclass(frozen=True)
class ReduceTokens(Pass):
    """Before decoder layer `layer`, keep the best visual tokens of each image and combine or drop the rest.

    Before:    h[B,S,D], cos[B,S,d], sin[B,S,d], ... = layers[:layer]
    After:     s[B,S] = score(q, k of layer-1);  i[B,K] = select_tokens(s, segment, budget, K),
               K is the size of a new input, stay_<cut> [K]: one graph for pictures of every size
               with a score that adapts, budget' = minimum(budget, wanted(s)); what fills up to K is padding
               h'[B,K,D] = combine(h);  every other value with a token dimension = take_tokens(value, i)
    Requires:  a layer after every earlier cut; plain positions for `compact`.
    Ensures:   layers from `layer` on write K keys and values, earlier ones S; order of tokens unchanged.
    Source:    FastV arXiv 2403.06764, PyramidDrop 2410.17247, FEATHER 2412.13180, LightVLM 2509.00419 (rebuilt).
    """

    layer: Index = 1
    score: AnyTokenScore = LastQuery()
    combine: AnyCombine = Prune()
    positions: Positions = "keep"
    proportional: bool = False

    name = "reduce-tokens"
    stages = ("prefill",)

    def requires(self, program: Program) -> None:
        if self.proportional and not self.combine.counts:
            raise PreconditionError(f"{self}: proportional=True counts merged tokens, but combine={self.combine} merges none")
        if not 0 <= self.layer < program.facts.layers:
            raise PreconditionError(f"{self}: layer must be 0 to {program.facts.layers - 1}, got {self.layer}")
        if self.layer == 0 and not self.score.before_layers:
            raise PreconditionError(f"{self}: score {self.score.name!r} reads the layer before, got layer 0")
        if program.facts.cuts and program.facts.cuts[-1].layer >= self.layer:
            raise PreconditionError(f"{self}: layer must be after the cut before layer {program.facts.cuts[-1].layer}")
        if self.score.adapts and not program.facts.masked:
            raise PreconditionError(f"{self}: score {self.score.name!r} leaves fewer tokens than its budget, which only masks can hide")
        for method in (self.score, self.combine):
            if "tower" in method.reads and program.facts.cuts:
                said = f"only the first cut can use {method.what} {method.name!r}, which is of every token there was"
                raise PreconditionError(f"{self}: {said}")
        if program.facts.static_length:
            raise PreconditionError(f"{self}: tokens cannot leave a graph that was captured for one sequence length only")
        if self.positions == "compact" and program.facts.positions_rank != 2:
            raise PreconditionError(
                f"{self}: positions=compact renumbers one position a token, but this model has M-RoPE triples; use positions=keep"
            )

    def call(self, program: Program) -> PassResult:
        number = len(program.facts.cuts)
        cut = first_of_layer(program, self.layer)
        edit = Editor(program, cut)
        length = _length(program)
        values = crossing(program, cut)
        hidden = hidden_state(program, values, length)
        segment, size = self._state(program, edit)
        rows = value(hidden).shape[0]
        images = value(program.node(ports.BUDGET.at(0))).shape[1] if number else program.new_size("images")
        budget_input = program.add_input(ports.BUDGET, value(segment).new_empty(rows, images), number)
        image = edit.call(f"image_{number}", torch.ops.aten.clamp_min.default, segment, 0)
        budget = edit.call(f"budget_{number}", torch.ops.aten.gather.default, budget_input, 1, image)
        given = {"hidden": hidden, "segment": segment, "size": size, "budget": budget, "layer": self.layer}
        given |= self._brought(program, edit)
        asked = "stay" in self.score.reads
        score = None if asked else self._score(program, edit, given)
        stay = edit.call(f"staying_{number}", torch.ops.aten.sym_size.int, program.add_ruler(ports.STAY, number), 0)
        score = self._score(program, edit, given | {"stay": stay}) if asked else score
        if self.score.adapts:
            wanted = operators.call(edit, f"wanted_{number}", self.score, "wanted", **given | {"score": score})
            budget = given["budget"] = edit.call(f"lowered_{number}", torch.ops.aten.minimum.default, budget, wanted)
        selected = edit.call(f"selected_{number}", OPS.select_tokens.default, score, segment, budget, stay)
        index, left, rank = edit.parts(selected, f"index_{number}", f"left_{number}", f"rank_{number}")
        given |= {"score": score, "rank": rank, "index": index, "left": left}
        new_hidden, new_size, went = self._combine(edit, number, given)
        renumbered = index
        if self.positions == "compact":
            renumbered = edit.call(f"renumber_{number}", OPS.compact_index.default, segment, left)
        replace_after(program, cut, hidden, new_hidden)
        sizes: dict[fx.Node, fx.Node] = {}  # numbers computed from the length, made anew
        for old in [v for v in values if v is not hidden and v not in (segment, size)]:
            if isinstance(value(old), Tensor):
                new = self._carry(program, edit, number, old, given, renumbered, length)
            else:
                new = sizes[old] = resized(edit, str(number), old, stay, length, sizes)
            if new is not old:
                replace_after(program, cut, old, new)
        if self.proportional or program.facts.biased:
            self._bias(program, new_size)
        program.with_facts(
            biased=self.proportional or program.facts.biased,
            size=new_size.name if new_size is not None else "",
            cuts=(*program.facts.cuts, CutNodes(self.layer, index.name, left.name, went.name if went else "", self.positions)),
        )
        program.add_output(f"index.{number}", index)
        program.add_output(f"segment.{number}", left)
        for what, node in (("size", new_size), ("went", went)):
            if node is not None:
                program.add_output(f"{what}.{number}", node)
        return PassResult(1, 1, f"before layer {self.layer}")

    def _bias(self, program: Program, size: fx.Node | None) -> None:
        """Let every key count as the tokens it stands for, from this layer on."""
        for layer, marker in program.markers().items():
            if layer >= self.layer:
                marker.args = Marker.of(marker)._replace(size=size).args

    def _state(self, program: Program, edit: Editor) -> tuple[fx.Node, fx.Node | None]:
        """Segment [B, S] and, where sizes are carried, size [B, S] of the tokens that arrive."""
        segment = program.segment_at(self.layer)
        size = program.node(program.facts.size) if program.facts.size else None
        if self.combine.counts and size is None:
            size = edit.call("size", torch.ops.aten.ones_like.default, segment)
            size = edit.call("size_f32", torch.ops.aten.to.dtype, size, torch.float32)
        return segment, size

    def _brought(self, program: Program, edit: Editor) -> dict[str, fx.Node]:
        """What the methods read that the prompt brings, at the tokens that arrive."""
        reads, found = {*self.score.reads, *self.combine.reads}, {}
        embeds = value(program.sequence())
        kinds = {"tower": (ports.SALIENCE, (), torch.float32), "grid": (ports.GRID, (6,), torch.int64)}
        for what, (port, more, dtype) in kinds.items():
            if what in reads and port.name in program.inputs:
                found[what] = program.node(port.name)
            elif what in reads:
                found[what] = program.add_input(port, embeds.new_empty(*embeds.shape[:2], *more, dtype=dtype))
        if "embeds" in reads:
            found["embeds"] = program.sequence()
        if "noted" in reads:
            found["noted"] = self._noted(program, edit)
        for cut in program.facts.cuts:
            for what, x in found.items():
                found[what] = edit.call(f"{what}_{cut.layer}", OPS.take_tokens.default, x, program.node(cut.index), 0, 1)
        return found

    def _noted(self, program: Program, edit: Editor) -> fx.Node:
        """What the score notes of the prompt: the same for every cut by the same score."""
        given = {"embeds": program.sequence(), "segment": program.segment_at(-1)}
        made = operators.call(edit, f"noted_{len(program.facts.cuts)}", self.score, "note", **given)
        first = next(n for n in program.graph.nodes if n.target is made.target and n.args == made.args)
        if first is not made:
            program.graph.erase_node(made)
        return first

    def _score(self, program: Program, edit: Editor, given: dict[str, Any]) -> fx.Node:
        reads = self.score.reads
        if reads == ("tower",):  # the score itself is what the tower gave
            return given["tower"]
        if {"q", "k"} & set(reads):
            ahead = getattr(self.score, "ahead", False)
            marker = program.markers()[self.layer - (not ahead)]
            own = Marker.of(marker)
            q, k, mask = own.q, own.k, own.mask
            if not getattr(self.score, "rope", True):
                q, k = before_rope(program, q), before_rope(program, k)
            if ahead:
                q, k, mask = copied(edit, [q, k, mask], marker, "ahead")
            given = given | {"q": q, "k": k, "mask": mask, "scale": own.scale}
        if "previous" in reads:
            before = crossing(program, first_of_layer(program, self.layer - 1))
            given = given | {"previous": hidden_state(program, before, _length(program))}
        return operators.call(edit, f"score_{len(program.facts.cuts)}", self.score, "score", **given)

    def _combine(self, edit: Editor, number: int, given: dict[str, Any]) -> tuple[fx.Node, fx.Node | None, fx.Node | None]:
        """Hidden state and size of the survivors, and where each token went."""
        hidden, size, index = given["hidden"], given["size"], given["index"]
        if not self.combine.counts:
            kept = edit.call(f"kept_{number}", OPS.take_tokens.default, hidden, index, 0, 1)
            return kept, size and edit.call(f"size_{number}", OPS.take_tokens.default, size, index, 0, 1), None
        merged = operators.call(edit, f"merge_{number}", self.combine, "combine", **given)
        kept, size, went = edit.parts(merged, f"kept_{number}", f"size_{number}", f"went_{number}")
        return kept, size, went

    def _carry(
        self, program: Program, edit: Editor, number: int, old: fx.Node, given: dict[str, Any], renumbered: fx.Node, length: Any
    ) -> fx.Node:
        """The tensor that stands for `old` after the cut; `old` itself where it has no token dimension."""
        dims = token_dims(old, length)
        if not dims and any(depends_on(size, length) for size in value(old).shape):
            raise PreconditionError(
                f"{self}: expected dimensions of the sequence length to cross the cut, got {typed(value(old))}\n"
                + excerpt(program, old)
            )
        by = renumbered if is_positional(old) else given["index"]
        new, rows = old, value(by).shape[0]
        for dim in dims:
            at = batch_dim(value(new), dims[0], rows)
            new = edit.call(f"{old.name}_{number}", OPS.take_tokens.default, new, by, at, dim)
        if len(dims) == 2 and program.facts.masked:
            new = edit.call(f"{old.name}_{number}", OPS.mask_out.default, new, given["left"])
        return new

    def ensures(self, program: Program) -> None:
        kept = value(program.node(program.facts.cuts[-1].index)).shape[1]
        names = program.facts.outputs
        for what, node in zip(names, program.output_node().args[0], strict=True):
            kind, _, number = what.partition(".")
            if kind in ("keys", "values") and int(number) >= self.layer and str(value(node).shape[2]) != str(kept):
                raise PostconditionError(
                    f"{self}: {what} should hold {kept} tokens, holds {value(node).shape[2]}\n" + excerpt(program, node)
                )


def _length(program: Program) -> Any:
    """The number of tokens that arrive: of the latest cut's survivors, or of the input."""
    if program.facts.cuts:
        return value(program.node(program.facts.cuts[-1].index)).shape[1]
    return value(program.sequence()).shape[1]
