"""Score: peaks; tokens with a high score that no token with a higher one resembles."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import same_image


@torch.library.custom_op("lightvlm::score_peak", mutates_args=())
def score_peak(score: Tensor, alike: Tensor, segment: Tensor, power: float, base: float) -> Tensor:
    """Score [B, S] float32: (base + score)^power x cosine distance to the nearest token of the image with a higher score.

    score [B, S] not negative, alike [B, S, S] from `similarity`, segment [B, S]. Of equal scores the earlier
    token counts as higher. The parallel, static form of greedy importance x diversity (ours, after density-peak
    clustering).
    """
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    place = torch.arange(score.shape[1], dtype=torch.int32, device=score.device)
    rank = torch.empty_like(order, dtype=torch.int32).scatter_(1, order, place.expand(order.shape))
    rival = (rank.unsqueeze(1) < rank.unsqueeze(2)) & same_image(segment, segment)
    nearest = 2 - ((alike.float() + 1) * rival).amax(-1)  # of a rival its cosine, else -1; a product: runtimes select slower
    return torch.where(segment >= 0, (score.clamp_min(0) + base) ** power * nearest.clamp(0, 2), 0.0)


@score_peak.register_fake
def _(score, alike, segment, power, base):
    return segment.new_empty(segment.shape, dtype=torch.float32)
