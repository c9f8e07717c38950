"""Score: what the vision tower attends to most, then tokens evenly spaced among the others (VisionZip, arXiv 2412.04467)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View
from lightvlm_fx.methods.options import Part

if TYPE_CHECKING:
    from torch import Tensor


class SalientThenEven(TokenScore):
    """2 for the most salient tokens; 1 for the round(even * budget) others that stay; 0 for what goes.

    Those others are every n-th of the rest in raster order, n = max(1, rest // their number), from the first on (read from code).
    The source's attention is of the tower's last layer but one, and its summary token stays too; ours is of the last layer, of patches.
    """

    name = "salient-then-even"
    source = "arXiv 2412.04467"
    reads = ("budget", "tower")
    even: Part = 1 / 6

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import PADDING, over_image, portion, rank_in_segment

        segment, visual = view.segment, view.segment >= 0
        even = portion(view.budget, self.even)
        dominant = view.budget - even
        salient = visual & (rank_in_segment(view.tower, segment) < dominant)
        rest = over_image(visual, segment).long() - dominant
        place = rank_in_segment(torch.zeros_like(view.tower), torch.where(visual & ~salient, segment, PADDING))
        step = (rest // even.clamp_min(1)).clamp_min(1)
        target = visual & ~salient & (place % step == 0) & (place // step < even)
        return torch.where(salient, 2.0, target.float())
