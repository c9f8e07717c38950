"""Score: evenly spaced tokens of each image, the other baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import rank_in_segment


@torch.library.custom_op("lightvlm::score_uniform", mutates_args=())
def score_uniform(segment: Tensor, budget: Tensor) -> Tensor:
    """Score [B, S]: 1 for `budget` tokens spread evenly over the image in raster order, 0 for the others.

    segment and budget [B, S].
    """
    visual = (segment >= 0).float()
    place = rank_in_segment(torch.zeros_like(visual), segment)
    there = torch.arange(segment.shape[1], dtype=torch.float32, device=segment.device).expand_as(visual)
    n = place + rank_in_segment(there, segment) + 1  # those before, those after, and itself
    # exactly `budget` of the n steps cross a multiple of n; half a step in, so that one of many is the middle
    chosen = ((place + 1) * budget + n // 2) // n > (place * budget + n // 2) // n
    return chosen.float() * visual


@score_uniform.register_fake
def _(segment, budget):
    return segment.new_empty(segment.shape, dtype=torch.float32)
