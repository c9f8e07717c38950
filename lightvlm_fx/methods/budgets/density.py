"""Budgets: in proportion to how many entries the question attends to (VL-Cache, arXiv 2410.23317: one minus its sparsity)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, Budget, View

if TYPE_CHECKING:
    from torch import Tensor

NEGLIGIBLE = 0.01  # of the row's largest weight


class Density(Budget):
    """The share of entries that the text after the last visual token attends to with 1 % of its largest weight or more, mean over heads."""

    name = "density"
    source = "arXiv 2410.23317"
    adaptive = True
    reads = (*ATTENTION, "mask")

    def spread(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.column_sums import probabilities
        from lightvlm_fx.ops.segments import text_after_pictures

        rows = text_after_pictures(view.segment)
        total = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
        out_of = torch.zeros_like(total)
        for start, stop, attended, seen in probabilities(view.q, view.k, view.segment, view.mask, view.scale):
            counted = seen & rows[:, start:stop, None]
            used = (attended >= NEGLIGIBLE * attended.amax(-1, keepdim=True)) & counted[:, None, None]
            total += used.float().mean((1, 2)).sum((1, 2))
            out_of += counted.sum((1, 2))
        return total / out_of.clamp_min(1)

    def shares(self, view: View) -> Tensor:
        from lightvlm_fx.ops.kv_budgets import proportions

        return proportions(view.statistic)
