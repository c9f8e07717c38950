"""Score: attention received from every token (column sums of the attention matrix)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Received(AttentionScore):
    """Attention received, divided by the number of rows that can see the token: that removes the bias towards early ones."""

    name = "received"
    source = "ours, after H2O, arXiv 2306.14048"
    reads = (*ATTENTION, "mask")

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.column_sums import column_sums
        from lightvlm_fx.ops.segments import PADDING

        rows = (view.segment != PADDING).float()
        total, seen_by = column_sums(view.q, view.k, view.segment, view.mask, view.scale, rows)
        return total.mean(1) / seen_by.clamp_min(1)
