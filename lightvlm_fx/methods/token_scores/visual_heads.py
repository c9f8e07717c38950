"""Score: attention of the heads that look at pictures most (METEOR, arXiv 2507.20842, its third stage)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lightvlm_fx.frozen import Number, Positive
from lightvlm_fx.methods.base import ATTENTION, AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor

Rate = Annotated[Number, Field(ge=0, le=1000)]


class VisualHeads(AttentionScore):
    """Mean attention from the text after the pictures, over the `heads` of most attention to visual tokens (all, of fewer).

    The source has no code; its summary leaves open which layer and how many heads. Its number of tokens is a constant times the sum of
    what those heads pay the picture. With `rate`, int(rate * tokens * the mean of what they pay the picture) stay, one at least: the same
    where the constant is rate * tokens / heads. A graph's sizes are known before, so `keep` is a ceiling, ours: what is above the count is
    computed and not attended to. Without, `keep` stays. Pictures of a row share the heads, ours.
    """

    name = "visual-heads"
    source = "arXiv 2507.20842"
    by_text = True
    reads = (*ATTENTION, "mask")
    heads: Positive = 8
    rate: Rate = 0.0

    @property
    def adapts(self) -> bool:
        return self.rate > 0

    def wanted(self, view: View) -> Tensor:
        from lightvlm_fx.ops.segments import image_tokens, over_image

        there = image_tokens(view.segment) * over_image(view.score, view.segment)
        return (self.rate * there + 1e-4).floor().long().clamp_min(1)

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
