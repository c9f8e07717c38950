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
    # in falling order of score (ties: the earlier token first), a token's rivals are those before it
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    x = unit(hidden.float() - mean).gather(1, order.unsqueeze(-1).expand_as(hidden))
    ranked = segment.gather(1, order)
    n = score.shape[1]
    rival = torch.ones(n, n, dtype=torch.bool, device=score.device).tril(-1) & same_image(ranked, ranked)
    nearest = 1 - (x @ x.transpose(1, 2)).masked_fill_(~rival, -1.0).amax(-1)
    nearest = torch.empty_like(nearest).scatter_(1, order, nearest).clamp(0, 2)
    return torch.where(visual, score.clamp_min(0) ** power * nearest, 0.0)


@score_peak.register_fake
def _(score, hidden, segment, power):
    return segment.new_empty(segment.shape, dtype=torch.float32)
