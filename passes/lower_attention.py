"""Turn attention markers into the fused attention of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.program import Program
from lightvlm_fx.ops.attention import attend
from lightvlm_fx.passing.pass_base import Pass, PassResult


@dataclass(frozen=True)
class LowerAttention(Pass):
    """Replace every marker by `attend`, which torch.compile traces into.

    Before:    o[B,S,H,d] = lightvlm.attention(q, k, v, mask, scale, layer, window, softcap, size)
    After:     o[B,S,H,d] = attend(q, k, v, mask, scale, softcap, size)
    Ensures:   no marker is left.
    Source:    ours.
    """

    name = "lower-attention"
    stages = ("prefill",)
    after = ("reduce-tokens", "bound-prefill", "freeze-tokens")

    def requires(self, program: Program) -> None:
        pass

    def call(self, program: Program) -> PassResult:
        markers = program.markers()
        for marker in markers.values():
            with program.graph.inserting_before(marker):
                node = program.graph.create_node("call_function", attend, Marker.of(marker).lowered.args, {})
            node.meta["val"] = marker.meta["val"]
            marker.replace_all_uses_with(node)
            program.graph.erase_node(marker)
        return PassResult(len(markers), program.facts.layers)

    def ensures(self, program: Program) -> None:
        if program.markers():
            raise PostconditionError(f"{self}: markers left in layers {sorted(program.markers())}")
