"""Score: a uniform sample of the picture first, then what the vision tower attends to most (PruMerge+, arXiv 2403.15388)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View
from lightvlm_fx.methods.options import Part

if TYPE_CHECKING:
    from torch import Tensor


class EvenThenSalient(TokenScore):
    """2 for round(even * budget) evenly spaced tokens, and the salience, below 1, for the others.

    Spaced: every n-th in raster order, n = tokens // their number, from n // 2 on (read from code, the variant of a fixed count). There
    a token may come in both ways, twice; here the next salient one stays instead, so that the count is as told. The source's attention
    is one product over all heads at once; ours is the mean of the heads'.
    """

    name = "even-then-salient"
    source = "arXiv 2403.15388"
    reads = ("budget", "tower")
    even: Part = 0.5

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import over_image, portion, rank_in_segment

        segment, visual = view.segment, view.segment >= 0
        even = portion(view.budget, self.even)
        place = rank_in_segment(torch.zeros_like(view.tower), segment)
        step = (over_image(visual, segment).long() // even.clamp_min(1)).clamp_min(1)
        spaced = visual & (place % step == step // 2) & (place // step < even)
        return torch.where(spaced, 2.0, view.tower)
