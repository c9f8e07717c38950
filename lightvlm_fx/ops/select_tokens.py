"""Selection: which tokens stay, as sorted indices of a known count."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, TEXT, rank_in_segment


@torch.library.custom_op("lightvlm::select_tokens", mutates_args=())
def select_tokens(score: Tensor, segment: Tensor, budget: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep all text and, of each image, the `budget` tokens of highest score.

    score, segment, budget [B, S] (budget: tokens to keep of the token's own image); `length` K is the count
    of tokens that stay in every row. Returns index [B, K] (rising), the survivors' segment [B, K], and every
    token's rank in its image [B, S]. A row with fewer than K survivors is filled with its padding, then
    with dropped tokens, which become padding.
    """
    rank = rank_in_segment(score, segment)
    stays = (segment == TEXT) | ((segment >= 0) & (rank < budget))
    order = torch.where(stays, 0, torch.where(segment == PADDING, 1, 2))
    index = torch.sort(order, dim=-1, stable=True).indices[:, :length].sort(-1).values
    left = torch.where(stays, segment, PADDING).gather(1, index)
    return index, left, rank


@select_tokens.register_fake
def _(score, segment, budget, length):
    small = segment.new_empty(segment.shape[0], length)
    return small, torch.empty_like(small), torch.empty_like(segment)
