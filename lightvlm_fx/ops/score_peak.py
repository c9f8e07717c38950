"""Score: density peaks; important tokens that no more important token resembles."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import same_image, unit


@torch.library.custom_op("lightvlm::score_peak", mutates_args=())
def score_peak(score: Tensor, hidden: Tensor, segment: Tensor, power: float) -> Tensor:
    """Score [B, S]: score^power x cosine distance to the nearest token of the image with a higher score.

    score [B, S] not negative, hidden [B, S, D] (centred on the mean visual token first), segment [B, S].
    The parallel, static form of greedy importance x diversity (ours, after density-peak clustering).
    """
    visual = segment >= 0
    weight = visual.unsqueeze(-1).float()
    mean = (hidden.float() * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
    x = unit(hidden.float() - mean)
    distance = 1 - x @ x.transpose(1, 2)
    place = torch.arange(score.shape[1], device=score.device)
    tie = (score[:, None, :] == score[:, :, None]) & (place[None, :] < place[:, None])
    rival = same_image(segment, segment) & ((score[:, None, :] > score[:, :, None]) | tie)
    nearest = distance.masked_fill(~rival, 2.0).amin(-1).clamp(0, 2)
    return torch.where(visual, score.clamp_min(0) ** power * nearest, 0.0)


@score_peak.register_fake
def _(score, hidden, segment, power):
    return segment.new_empty(segment.shape, dtype=torch.float32)
