"""Let the KV score `attention` read what the layer's own attention knows of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import fx

from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph.attention import Attend
from lightvlm_fx.graph.edit import Editor
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.methods import operators
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.ops.attention import attend, attend_and_norm
from lightvlm_fx.passing.pass_base import Pass, PassResult

OPS = torch.ops.lightvlm
READ = attrgetter("q", "k", "mask", "scale")


@dataclass(frozen=True)
class ShareSoftmax(Pass):
    """Sum up a layer's attention without computing it a second time, on a processor, whose fused attention tells how large rows are.

    Before:    s[B,G,S] = kv_score_attention(q, k, segment, mask, scale);  o[B,S,H,d] = attend(q, k, v, mask, scale, 0, size)
    After:     o, n[B,H,S] = attend_and_norm(q, k, v, mask, scale, size);  s[B,G,S] = received(q, k, n, segment, mask, scale, text)
               `text` where pictures are raised above all text, whatever they received
    Ensures:   where attention was so shared, no score computes it again.
    Source:    ours; logarithms of row sums after FlashAttention, arXiv 2205.14135.
    """

    name = "share-softmax"
    stages = ("prefill",)
    after = ("lower-attention",)

    def requires(self, program: Program) -> None:
        pass

    def call(self, program: Program) -> PassResult:
        pairs = _pairs(program)
        for score, attention in pairs:
            q, k, v, mask, scale, _, size = Attend.of(attention)
            segment = score.args[operators.arguments(Attention, "prompt").index("segment")]
            edit = Editor(program, score)  # right before the attention, so that all that it reads is there
            both = edit.call(f"{attention.name}_and_norm", attend_and_norm, q, k, v, mask, scale, *([] if size is None else [size]))
            out, norm = edit.parts(both, f"{attention.name}_shared", f"{score.name}_norm")
            sums = edit.call(f"{score.name}_received", OPS.received.default, q, k, norm, segment, mask, scale, _guarded(score))
            attention.replace_all_uses_with(out)
            score.replace_all_uses_with(sums)
            for node in (attention, score):
                program.graph.erase_node(node)
        return PassResult(len(pairs), len(pairs))

    def ensures(self, program: Program) -> None:
        if left := _pairs(program):
            raise PostconditionError(f"{self}: {left[0][0].name} still computes the attention of {left[0][1].name}")


def _pairs(program: Program) -> list[tuple[fx.Node, fx.Node]]:
    """Scores, each with the attention that it sums up, where that is of a kind that tells how large its rows are."""
    arguments = operators.arguments(Attention, "prompt")
    scores = {}
    for node in program.graph.nodes:
        if operators.method_of(node.target) == (Attention, "prompt"):
            scores[tuple(node.args[arguments.index(name)] for name in ("q", "k", "mask", "scale"))] = node
    out = []
    for node in program.graph.find_nodes(op="call_function", target=attend):
        attention = Attend.of(node)
        score, q, v = scores.get(READ(attention)), value(attention.q), value(attention.v)
        if score is not None and not attention.softcap and q.device.type == "cpu" and q.shape[3] == v.shape[3]:
            out.append((score, node))
    return out


def _guarded(score: fx.Node) -> bool:
    """Whether all that reads a score, or its mean over heads, raises pictures above text."""
    means = [user for user in score.users if user.target == torch.ops.aten.mean.dim]
    return all(user.target == OPS.guard_visual.default for node in (score, *means) for user in node.users if user not in means)
