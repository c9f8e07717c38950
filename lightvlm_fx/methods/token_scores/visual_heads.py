"""Score: attention of the heads that look at pictures most (METEOR, arXiv 2507.20842, its third stage)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import ATTENTION, AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor


class VisualHeads(AttentionScore):
    """Mean attention from the text after the pictures, over the `heads` of most attention to visual tokens (all, of fewer).

    The source has no code; its summary leaves open which layer and how many heads. Its number of tokens grows with what those heads pay
    the picture; a cut's is known before, so `keep` is a ceiling, ours. Pictures of a row share the heads, ours.
    """

    name = "visual-heads"
    source = "arXiv 2507.20842"
    reads = (*ATTENTION, "mask")
    heads: Positive = 8

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.column_sums import column_sums
        from lightvlm_fx.ops.segments import text_after_pictures

        asks = text_after_pictures(view.segment).float()
        asks = asks / asks.sum(1, keepdim=True).clamp_min(1)
        each = view.k.repeat_interleave(view.q.shape[1] // view.k.shape[1], 1)
        paid = column_sums(view.q, each, view.segment, view.mask, view.scale, asks)[0]  # [B, H, S]
        mass = (paid * (view.segment >= 0).unsqueeze(1)).sum(2)
        most = mass.sort(dim=1, descending=True, stable=True).indices[:, : self.heads]
        return paid.gather(1, most.unsqueeze(2).expand(-1, -1, paid.shape[2])).mean(1)
