"""Score: attention from the text that follows the picture, averaged over its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor


class TextMean(AttentionScore):
    """Mean attention row of the text tokens after the first visual token."""

    name = "text-mean"
    source = "ours, after SparseVLM, arXiv 2410.04417"
    by_text = True
    reads = (*ATTENTION, "mask")

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.column_sums import column_sums
        from lightvlm_fx.ops.segments import TEXT

        after = (view.segment >= 0).cumsum(1) > 0
        rows = ((view.segment == TEXT) & after).float()
        weight = rows / rows.sum(1, keepdim=True).clamp_min(1)
        return column_sums(view.q, view.k, view.segment, view.mask, view.scale, weight)[0].mean(1)
