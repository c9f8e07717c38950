"""After the prompt, every layer hands on the cache entries that stay."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import fx

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.frozen import Count, Positive
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.edit import Editor, every_layer_marked
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.kv import AnyBudget, VisualShare
from lightvlm_fx.methods import operators
from lightvlm_fx.methods.base import EntryScore
from lightvlm_fx.methods.budgets.uniform import Uniform
from lightvlm_fx.methods.entry_merges.none import NoMerge
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.methods.registry import AnyEntryMerge, AnyEntryScore
from lightvlm_fx.ops.segments import PADDING
from lightvlm_fx.passing.pass_base import Pass, PassResult

OPS = torch.ops.lightvlm


@dataclass(frozen=True)
class BoundPrefill(Pass):
    """Score the entries of each layer and keep the best of them, as many as an input is long.

    Before:    return hidden, keys.l [B,G,S,d], values.l [B,G,S,d], ...
    After:     s_l [B,G,S] = score(q, k of layer l);  i_l [B,G,K], e_l = keep_entries(s_l, segment, count[:, l], K)
               return hidden, keys.l' [B,G,K,d] = take_entries(keys.l, i_l), values.l', entry.l = e_l, score.l'
               K is the size of a new input, kv_stay_<sizes[l]> [K]
               with adaptive budgets, count = kv_budgets(statistics of all layers, count, at most kv_most[B,L])
    Requires:  attention markers; one size a layer.
    Ensures:   each bounded layer writes K keys and values; a protected entry is never dropped.
    Source:    H2O arXiv 2306.14048, SnapKV 2404.14469, Scissorhands 2305.17118, StreamingLLM 2309.17453,
               VL-Cache 2410.23317, AirCache 2503.23956, LOOK-M 2406.18139, MEDA 2502.17599, SparseVILA 2510.17777.
    """

    sizes: tuple[Count, ...] = ()  # of each layer, the number of the input whose size says how many stay; layers may share one
    score: AnyEntryScore = Attention()
    shared: bool = False
    layers: Positive = 1  # so many in a row that have the same tokens keep what the first of them chooses, by what it scores
    sinks: Count = 4
    recent: Count = 32
    of_visual: bool = False
    text_first: bool = False
    visual_share: VisualShare = 0.0
    budgets: AnyBudget = Uniform()  # that the kept counts follow from, where those adapt to the prompt
    merge: AnyEntryMerge = NoMerge()
    running: AnyEntryScore | None = None  # the score that the steps carry on, handed on with the entries
    store: bool = False  # hand all keys and values on, with index and entry: which of them are to be read

    name = "bound-prefill"
    stages = ("prefill",)
    after = ("reduce-tokens",)

    def requires(self, program: Program) -> None:
        if ports.KV_COUNT.name in program.inputs:
            raise PreconditionError(f"{self}: the layers' entries are bounded already")
        if self.running is not None and not self.running.steps:
            raise PreconditionError(f"{self}: running must be a KV score that steps carry on, got {self.running.name!r}")
        if self.budgets.by_layer:
            raise PreconditionError(f"{self}: budgets {self.budgets.name!r} are known beforehand: the counts that are given hold them")
        if self.budgets.from_score not in ("", self.score.name):
            raise PreconditionError(
                f"{self}: budgets {self.budgets.name!r} need score {self.budgets.from_score!r}, got {self.score.name!r}"
            )
        depth = every_layer_marked(self, program)
        if len(self.sizes) != depth or sorted(set(self.sizes)) != list(range(max(self.sizes) + 1)):
            raise PreconditionError(f"{self}: expected a size for each of {depth} layers, numbered from 0, got {self.sizes}")

    def call(self, program: Program) -> PassResult:
        carried = self.running is not None and self.running.carried
        markers, end = program.markers(), program.output_node()
        first = program.sequence()
        rows = value(first).shape[0]
        segments = [program.segment_at(layer) for layer in range(program.facts.layers)]
        count = program.add_input(ports.KV_COUNT, value(first).new_empty(rows, program.facts.layers, dtype=torch.int64))
        most = None if not self.budgets.adaptive else program.add_input(ports.KV_MOST, value(count).new_empty(value(count).shape))
        outputs = dict(zip(program.facts.outputs, end.args[0], strict=True))
        lengths = self._lengths(program)
        firsts = [segments.index(segment) for segment in segments]
        leads = [layer - (layer - first) % self.layers for layer, first in enumerate(firsts)]
        scores = [self._score(self.score, program, markers[layer], segments[layer], layer) if lead == layer else None
                  for layer, lead in enumerate(leads)]  # fmt: skip
        edit = Editor(program, end)
        worth = self._worth(program, edit, markers, segments, scores, leads) if carried else [None] * len(scores)
        if most is not None:
            count = outputs["kv_count"] = self._budgets(program, edit, markers, segments, scores, count, most)
        for lead, group in groupby(range(len(leads)), leads.__getitem__):
            layers, segment = list(group), segments[lead]
            own = edit.call(f"kv_count_{lead}", torch.ops.aten.select.int, count, 1, lead)
            kept = edit.call(
                f"kv_kept_{lead}", OPS.keep_entries.default, scores[lead], segment, own, lengths[lead], self.sinks,
                self.recent, self.of_visual, self.text_first, self.visual_share,
            )  # fmt: skip
            index, entry = edit.parts(kept, f"kv_index_{lead}", f"kv_entry_{lead}")
            self._each(edit, outputs, layers, "entry", "entry", entry)
            if self.store:
                outputs |= {f"kv_index.{layer}": index for layer in layers}
            else:
                self._shorten(edit, outputs, layers, worth[lead], _counted_size(markers[lead]), segment, index)
        end.args = (tuple(outputs.values()),)
        program.with_facts(outputs=tuple(outputs))
        return PassResult(len(markers), len(lengths))

    def _lengths(self, program: Program) -> list[fx.Node]:
        """Of each layer, how many entries stay, read off an input's size."""
        rulers = [program.add_ruler(ports.KV_STAY, number) for number in range(max(self.sizes) + 1)]
        first = Editor(program, program.first())
        read = [first.call(f"kv_staying_{i}", torch.ops.aten.sym_size.int, ruler, 0) for i, ruler in enumerate(rulers)]
        return [read[number] for number in self.sizes]

    def _worth(
        self, program: Program, edit: Editor, markers: dict[int, fx.Node], segments: list[fx.Node], scores: list[fx.Node | None],
        leads: list[int],
    ) -> list[fx.Node]:  # fmt: skip
        """Of every layer, the scores that its steps carry on."""
        out: list[fx.Node] = []
        for layer, (score, lead) in enumerate(zip(scores, leads, strict=True)):
            if lead < layer:
                out.append(out[lead])
                continue
            assert score is not None
            if self.running is not None and self.running != self.score:
                score = self._score(self.running, program, markers[layer], segments[layer], layer, "worth")
            if self.visual_share:
                score = edit.call(f"kv_guarded_{layer}", OPS.guard_visual.default, score, segments[layer])
            out.append(score)
        return out

    def _shorten(
        self, edit: Editor, outputs: dict[str, fx.Node], layers: list[int], worth: fx.Node | None, size: fx.Node | None,
        segment: fx.Node, index: fx.Node,
    ) -> None:  # fmt: skip
        """Replace what layers of one choice hand on by the entries at `index`."""
        first = layers[0]
        if not self.merge.joins:
            for what, layer in product(("keys", "values"), layers):
                taken = edit.call(f"kv_{what}_{layer}", OPS.take_entries.default, outputs[f"{what}.{layer}"], index)
                outputs[f"{what}.{layer}"] = taken
        else:
            held = {"segment": segment, "index": index, "size": size, "worth": worth}
            held |= {what: outputs[f"{what}.{first}"] for what in ("keys", "values", "entry")}
            if "went" in self.merge.reads:
                held["went"] = operators.call(edit, f"kv_went_{first}", self.merge, "went", **held)
            for _, alike in groupby(layers, lambda layer: [value(outputs[f"{what}.{layer}"]).shape for what in ("keys", "values")]):
                self._merge(edit, outputs, list(alike), **held)
        if worth is not None and not self.merge.counts:
            self._each(edit, outputs, layers, "score", "scores", edit.call(f"kv_scores_{first}", OPS.take_entries.default, worth, index))

    def _merge(self, edit: Editor, outputs: dict[str, fx.Node], layers: list[int], **held: fx.Node | None) -> None:
        """Merge the entries of layers of one choice and equal shapes, whose heads are side by side as if they were one layer's."""
        first = layers[0]
        for what in ("keys", "values"):
            whole = [outputs[f"{what}.{layer}"] for layer in layers]
            held[what] = whole[0] if len(whole) == 1 else edit.call(f"kv_{what}_from_{first}", torch.ops.aten.cat.default, whole, 1)
        merged = operators.call(edit, f"kv_merge_{first}", self.merge, "merge", **held)
        made = {"keys": "keys", "values": "values"}  # outputs by the names of their nodes, in the op's order
        if self.merge.counts:
            made |= {"size": "kv_size"} | ({} if held["worth"] is None else {"scores": "score"})
        for (name, what), part in zip(made.items(), edit.parts(merged, *(f"kv_{name}_{first}" for name in made)), strict=True):
            if what not in ("keys", "values") or len(layers) == 1:
                self._each(edit, outputs, layers, what, name, part)
                continue
            heads = value(part).shape[1] // len(layers)
            for nth, layer in enumerate(layers):
                own = edit.call(f"kv_{name}_heads_{layer}", torch.ops.aten.slice.Tensor, part, 1, nth * heads, (nth + 1) * heads)
                own = edit.call(f"kv_{name}_own_{layer}", torch.ops.aten.clone.default, own, memory_format=torch.contiguous_format)
                outputs[f"{what}.{layer}"] = own

    def _each(self, edit: Editor, outputs: dict[str, fx.Node], layers: list[int], what: str, name: str, made: fx.Node) -> None:
        """Hand `made` on for all `layers`, a copy for each but the first: each layer's steps write into their own."""
        for layer in layers:
            own = made if layer == layers[0] else edit.call(f"kv_{name}_{layer}", torch.ops.aten.clone.default, made)
            outputs[f"{what}.{layer}"] = own

    def _budgets(
        self, program: Program, edit: Editor, markers: dict[int, fx.Node], segments: list[fx.Node],
        scores: list[fx.Node], count: fx.Node, most: fx.Node,
    ) -> fx.Node:  # fmt: skip
        """Counts [B, L] by the statistics of all layers; at most what a layer has, and `most` [B, L] of a row's share of its buffer."""
        statistics, numbers = [], []
        for layer, (segment, score) in enumerate(zip(segments, scores, strict=True)):
            if self.budgets.from_score:
                statistic = edit.call(f"kv_statistic_{layer}", operator.getitem, score.args[0], 1)
            else:
                at, own = Editor(program, markers[layer]), Marker.of(markers[layer])
                read = {"q": own.q, "k": own.k, "segment": segment, "mask": own.mask, "scale": own.scale}
                statistic = operators.call(at, f"kv_spread_{layer}", self.budgets, "spread", **read)
                statistic = edit.call(f"kv_statistic_{layer}", torch.ops.aten.unsqueeze.default, statistic, 1)
            statistics.append(statistic)
            low = 0 if self.of_visual else PADDING + 1
            there = edit.call(f"kv_there_{layer}", torch.ops.aten.ge.Scalar, segment, low)
            numbers.append(edit.call(f"kv_number_{layer}", torch.ops.aten.sum.dim_IntList, there, [1]))
        table = edit.call("kv_statistics", torch.ops.aten.stack.default, statistics, 1)
        limits = edit.call("kv_there", torch.ops.aten.stack.default, numbers, 1)
        limits = edit.call("kv_limits", torch.ops.aten.minimum.default, limits, most)
        least = 1 if self.of_visual else self.sinks + self.recent + 1
        share = operators.call(edit, "kv_shares", self.budgets, "shares", statistic=table)
        return edit.call("kv_budgets", OPS.kv_budgets.default, share, count, limits, least)

    def _score(self, kind: EntryScore, program: Program, marker: fx.Node, segment: fx.Node, layer: int, what: str = "score") -> fx.Node:
        """Scores [B, G, S] of one kind, or [B, 1, S] where the heads share one selection."""
        at = marker if "q" in kind.reads else program.output_node()  # keys and values are held anyway: so those choices run close together
        edit, name = Editor(program, at), f"kv_{what}_{layer}"
        of = Marker.of(marker)
        given = {"q": of.q, "k": of.k, "v": of.v, "mask": of.mask, "scale": of.scale, "segment": segment, "shared": self.shared}
        own = name if not kind.statistics else f"{name}_{kind.name}"
        score = operators.call(edit, own, kind, "prompt", **given)
        if kind.statistics:
            score = edit.call(name, operator.getitem, score, 0)
        if self.shared and not kind.one_choice and "shared" not in kind.reads:
            score = edit.call(f"{name}_shared", torch.ops.aten.mean.dim, score, [1], True)
        return score

    def ensures(self, program: Program) -> None:
        outputs = dict(zip(program.facts.outputs, program.output_node().args[0], strict=True))
        for layer, number in enumerate(self.sizes):
            got, kept = value(outputs[f"keys.{layer}"]).shape[2], value(program.node(ports.KV_STAY.at(number))).shape[0]
            if str(got) != str(kept) and not self.store:
                raise PostconditionError(f"{self}: keys.{layer} should hold {kept} entries, holds {got}")


def _counted_size(marker: fx.Node) -> fx.Node | None:
    """The tokens [B, S] that each key counts as in this layer's attention; None: one each."""
    size = Marker.of(marker).size
    return size if isinstance(size, fx.Node) else None
