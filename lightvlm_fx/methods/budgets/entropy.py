"""Budgets: by a softmax of the attention's entropy (MEDA, arXiv 2502.17599, as its code does it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, Budget, View

if TYPE_CHECKING:
    from torch import Tensor


class Entropy(Budget):
    """Mean entropy in nats of all rows' attention, mean over heads."""

    name = "entropy"
    source = "arXiv 2502.17599"
    adaptive = True
    reads = (*ATTENTION, "mask")

    def spread(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.column_sums import probabilities
        from lightvlm_fx.ops.segments import PADDING

        rows = view.segment != PADDING
        total = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
        for start, stop, attended, _ in probabilities(view.q, view.k, view.segment, view.mask, view.scale):
            entropy = torch.special.entr(attended).sum(-1).mean((1, 2))  # [B, tile]
            total += (entropy * rows[:, start:stop]).sum(1)
        return total / rows.sum(1).clamp_min(1)

    def shares(self, view: View) -> Tensor:
        share: Tensor = view.statistic[..., 0].softmax(1)
        return share
