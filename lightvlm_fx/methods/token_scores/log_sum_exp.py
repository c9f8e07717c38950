"""Score: log-sum-exp of a token's own attention logits (iLLaVA, arXiv 2412.06263, its code of 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor


class LogSumExp(AttentionScore):
    """What fused attention kernels hand back beside their result: log of the sum of exp of a token's row of q k^T, mean over heads.

    It says how strongly a token asks as a query, not how much it is attended to, although the source calls it so (read from its code of
    2026: of the layer before the cut). A causal row of a later token has more terms.
    """

    name = "log-sum-exp"
    source = "arXiv 2412.06263"
    reads = (*ATTENTION, "mask")

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.column_sums import logits
        from lightvlm_fx.ops.segments import PADDING

        rows = [x.logsumexp(-1).mean((1, 2)) for _, _, x, _ in logits(view.q, view.k, view.segment, view.mask, view.scale)]
        return torch.cat(rows, 1).masked_fill(view.segment == PADDING, 0.0)
