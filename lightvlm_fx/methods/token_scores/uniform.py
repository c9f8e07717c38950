"""Score: evenly spaced tokens of each image, the other baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Uniform(TokenScore):
    """1 for the image's `budget` tokens spread evenly over it in raster order, 0 for the others."""

    name = "uniform"
    source = "baseline"
    reads = ("budget",)

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import rank_in_segment

        segment, budget = view.segment, view.budget
        visual = (segment >= 0).float()
        place = rank_in_segment(torch.zeros_like(visual), segment)
        there = torch.arange(segment.shape[1], dtype=torch.float32, device=segment.device).expand_as(visual)
        n = place + rank_in_segment(there, segment) + 1  # those before, those after, and itself
        # exactly `budget` of the n steps cross a multiple of n; half a step in, so that one of many is the middle
        chosen = ((place + 1) * budget + n // 2) // n > (place * budget + n // 2) // n
        even: Tensor = chosen.float() * visual
        return even
