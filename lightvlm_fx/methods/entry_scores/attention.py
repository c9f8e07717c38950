"""KV score: attention that each entry received so far (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Attention(EntryScore):
    """Column sums of the attention matrix, mean over the heads of each KV head; every step adds its row."""

    name = "attention"
    source = "arXiv 2306.14048"
    reads = (*ATTENTION, "mask")
    steps = True

    def prompt(self, view: View) -> Tensor:
        from lightvlm_fx.ops.column_sums import column_sums
        from lightvlm_fx.ops.segments import PADDING

        rows = (view.segment != PADDING).float()
        return column_sums(view.q, view.k, view.segment, view.mask, view.scale, rows)[0]

    @staticmethod
    def carry(score: Tensor, probabilities: Tensor, seen: Tensor, decay: float) -> None:
        from lightvlm_fx.ops.bounded_attention import over_heads

        score.add_(over_heads(probabilities, score).sum(2))
