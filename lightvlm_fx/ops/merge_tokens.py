"""Combine: every dropped token is averaged into the survivor of its image that it resembles most."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, same_image


def nearest_survivor(alike: Tensor, index: Tensor, segment: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """For each token the survivor it belongs to [B, S], and whether it has one [B, S].

    Survivors belong to themselves; others, fillers among them, to the survivor of the same image with the
    largest cosine: where a token goes must not depend on how long the other rows of the batch are.
    """
    best = torch.where(same_image(segment, left), alike, -2.0).max(-1)
    here = torch.arange(index.shape[1], device=index.device).expand_as(index)
    filler = (left == PADDING) & (segment.gather(1, index) != PADDING)
    some = best.values > -2.0
    belongs = best.indices.scatter(1, index, torch.where(filler, best.indices.gather(1, index), here))
    has = some.scatter(1, index, ~filler | some.gather(1, index))
    return belongs, has


@torch.library.custom_op("lightvlm::merge_tokens", mutates_args=())
def merge_tokens(
    hidden: Tensor, size: Tensor, alike: Tensor, index: Tensor, segment: Tensor, left: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Size-weighted mean into the most similar survivor (ToMe's rule, arXiv 2210.09461, on a fixed set).

    hidden [B, S, D], size [B, S] float32 (original tokens each stands for), alike [B, S, K] (how much each
    resembles each survivor), index and left [B, K] from `select_tokens`, segment [B, S]. Returns hidden
    [B, K, D], size [B, K], and where each token went [B, S] (an index into the survivors, -1 for nowhere).
    """
    belongs, has = nearest_survivor(alike, index, segment, left)
    weight = size * has
    total = torch.zeros_like(index, dtype=torch.float32).scatter_add_(1, belongs, weight)
    rows, kept, width = *index.shape, hidden.shape[2]
    flat = (belongs + torch.arange(rows, device=hidden.device).unsqueeze(-1) * kept).flatten()
    merged = torch.zeros(rows * kept, width, device=hidden.device)
    merged.index_add_(0, flat, (hidden.float() * weight.unsqueeze(-1)).flatten(0, 1))
    merged = merged.view(rows, kept, width)
    merged = (merged / total.unsqueeze(-1)).to(hidden.dtype)
    alone = (total == size.gather(1, index)) | (total == 0)  # nothing joined: keep the exact value
    own = hidden.gather(1, index.unsqueeze(-1).expand_as(merged))
    merged = torch.where(alone.unsqueeze(-1), own, merged)
    return merged, total, torch.where(has, belongs, -1)


@merge_tokens.register_fake
def _(hidden, size, alike, index, segment, left):
    b, k = index.shape
    return hidden.new_empty(b, k, hidden.shape[2]), size.new_empty(b, k), torch.empty_like(segment)
