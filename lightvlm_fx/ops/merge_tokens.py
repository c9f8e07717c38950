"""Combine: every dropped token is averaged into the survivor that it goes to."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.tiles import pick


def sums(hidden: Tensor, weight: Tensor, went: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Weighted sums [B, kept, D] float32 of the tokens hidden [B, S, D] that went to each place, and of the weights [B, kept].

    went [B, S], -1 for nowhere; weight [B, S].
    """
    rows, width = hidden.shape[0], hidden.shape[2]
    belongs, weight = went.clamp_min(0), weight * (went >= 0)
    total = weight.new_zeros(rows, kept).scatter_add_(1, belongs, weight)
    flat = (belongs + torch.arange(rows, device=hidden.device).unsqueeze(-1) * kept).flatten()
    out = torch.zeros(rows * kept, width, dtype=torch.float32, device=hidden.device)
    out.index_add_(0, flat, (hidden.float() * weight.unsqueeze(-1)).flatten(0, 1))
    return out.view(rows, kept, width), total


@torch.library.custom_op("lightvlm::merge_tokens", mutates_args=())
def merge_tokens(hidden: Tensor, size: Tensor, index: Tensor, went: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of all that went to each survivor, weighed by size: hidden [B, K, D], and the survivors' sizes [B, K].

    hidden [B, S, D], size [B, S] float32 (original tokens each stands for), index [B, K] of the survivors, went [B, S]
    from `nearest_survivor`.
    """
    merged, total = sums(hidden, size, went, index.shape[1])
    merged = (merged / total.unsqueeze(-1)).to(hidden.dtype)
    alone = (total == size.gather(1, index)) | (total == 0)  # nothing joined: keep the exact value
    return torch.where(alone.unsqueeze(-1), pick(hidden, index), merged), total


@merge_tokens.register_fake
def _(hidden, size, index, went):
    b, k = index.shape
    return hidden.new_empty(b, k, hidden.shape[2]), size.new_empty(b, k)
