"""Combine: every dropped token is averaged into the survivor that it goes to."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.tiles import pick


@torch.library.custom_op("lightvlm::merge_tokens", mutates_args=())
def merge_tokens(hidden: Tensor, size: Tensor, index: Tensor, went: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of all that went to each survivor, weighed by size: hidden [B, K, D], and the survivors' sizes [B, K].

    hidden [B, S, D], size [B, S] float32 (original tokens each stands for), index [B, K] of the survivors, went [B, S]
    from `nearest_survivor`.
    """
    belongs, weight = went.clamp_min(0), size * (went >= 0)
    total = torch.zeros_like(index, dtype=torch.float32).scatter_add_(1, belongs, weight)
    rows, kept, width = *index.shape, hidden.shape[2]
    flat = (belongs + torch.arange(rows, device=hidden.device).unsqueeze(-1) * kept).flatten()
    merged = torch.zeros(rows * kept, width, dtype=torch.float32, device=hidden.device)
    merged.index_add_(0, flat, (hidden.float() * weight.unsqueeze(-1)).flatten(0, 1))
    merged = merged.view(rows, kept, width)
    merged = (merged / total.unsqueeze(-1)).to(hidden.dtype)
    alone = (total == size.gather(1, index)) | (total == 0)  # nothing joined: keep the exact value
    return torch.where(alone.unsqueeze(-1), pick(hidden, index), merged), total


@merge_tokens.register_fake
def _(hidden, size, index, went):
    b, k = index.shape
    return hidden.new_empty(b, k, hidden.shape[2]), size.new_empty(b, k)
