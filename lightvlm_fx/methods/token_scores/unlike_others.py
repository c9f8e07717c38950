"""Score: how little a token resembles those of the row's other pictures (METEOR, arXiv 2507.20842, its second stage)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class UnlikeOthers(TokenScore):
    """Minus the sum of a token's cosines with all tokens of the row's other pictures: what they say too is redundant.

    The source sums over the tokens of other encoders, whose runs stand in the prompt as pictures do. Beside no other picture, over its own.
    """

    name = "unlike-others"
    source = "arXiv 2507.20842"
    reads = ("hidden",)
    across_pictures = True

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.merge_tokens import sums
        from lightvlm_fx.ops.segments import unit
        from lightvlm_fx.ops.tiles import pick

        segment, visual = view.segment, (view.segment >= 0).float()
        x = unit(view.hidden) * visual.unsqueeze(-1)
        own = sums(x, visual, segment, segment.shape[1])[0]  # cosines with many tokens are one product with the sum of their directions
        whole, single = own.sum(1, keepdim=True), segment.amax(1) <= 0
        other: Tensor = whole - pick(own, segment.clamp_min(0)) * ~single[:, None, None]
        return -(x * other).sum(-1)
