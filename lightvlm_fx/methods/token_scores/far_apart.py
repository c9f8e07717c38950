"""Score: tokens as unlike each other as possible, picked one by one (DivPrune, arXiv 2503.02175)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class FarApart(TokenScore):
    """The order in which a greedy max-min pick takes an image's tokens, first S, then S - 1, ...; 0 for those that stay behind.

    Distance is 1 - cosine of hidden states. First comes the token whose nearest neighbour is farthest, then always the one
    that is farthest from all that were taken. The source picks before the decoder, over what the projector gives.
    """

    name = "far-apart"
    source = "arXiv 2503.02175"
    reads = ("hidden", "budget", "stay")

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.pick_apart import nearest_distance, pick_apart
        from lightvlm_fx.ops.segments import unit

        x = unit(view.hidden)
        return pick_apart(x, view.segment, view.budget, view.stay, nearest_distance(x, view.segment))
