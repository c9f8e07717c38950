"""Combine: a few survivors are centres that absorb their nearest dropped tokens; the rest is dropped.

After iLLaVA (arXiv 2412.06263), the published sibling of LightVLM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, same_image, unit


@torch.library.custom_op("lightvlm::recover_tokens", mutates_args=())
def recover_tokens(
    hidden: Tensor,
    size: Tensor,
    score: Tensor,
    rank: Tensor,
    budget: Tensor,
    index: Tensor,
    segment: Tensor,
    left: Tensor,
    centres: float,
    group: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score-weighted mean of each centre and its `group` most similar dropped tokens.

    hidden [B, S, D]; size, score, rank, budget, segment [B, S]; index, left [B, K]. Of an image's budget m,
    the last round(centres * m) by rank are centres. Returns what `merge_tokens` returns.
    """
    n_centres = (budget.float() * centres + 0.5).floor().long()
    is_centre = (rank >= budget - n_centres) & (rank < budget) & (segment >= 0)
    centre = is_centre.gather(1, index) & (left >= 0)
    dropped = (rank >= budget) & (segment >= 0)
    x = unit(hidden)
    kept = x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    alike = x @ kept.transpose(1, 2)
    possible = same_image(segment, left) & dropped.unsqueeze(-1) & centre.unsqueeze(1)
    alike = alike.masked_fill(~possible, -2.0).transpose(1, 2)  # [B, K, S]
    best = alike.topk(min(group, alike.shape[2]), dim=-1)
    weight = torch.zeros_like(alike).scatter_(2, best.indices, (best.values > -2.0).float())
    weight = weight * score.unsqueeze(1)
    own = score.gather(1, index).clamp_min(1e-12)
    total = own + weight.sum(-1)
    mine = hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
    merged = (mine.float() * own.unsqueeze(-1) + weight @ hidden.float()) / total.unsqueeze(-1)
    merged = torch.where((weight.sum(-1) > 0).unsqueeze(-1), merged.to(hidden.dtype), mine)
    joined = (weight > 0).float()
    grown = size.gather(1, index) + (joined @ size.unsqueeze(-1)).squeeze(-1)
    went = torch.where(joined.sum(1) > 0, joined.argmax(1), -1)
    here = torch.arange(index.shape[1], device=index.device).expand_as(index)
    filler = (left == PADDING) & (segment.gather(1, index) != PADDING)  # dropped, though its slot is used
    return merged, grown, went.scatter(1, index, torch.where(filler, went.gather(1, index), here))


@recover_tokens.register_fake
def _(hidden, size, score, rank, budget, index, segment, left, centres, group):
    b, k = index.shape
    return hidden.new_empty(b, k, hidden.shape[2]), size.new_empty(b, k), torch.empty_like(segment)
