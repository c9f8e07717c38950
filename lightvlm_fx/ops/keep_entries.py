"""Selection: which cache entries stay, as sorted indices of a known count."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, TEXT


@torch.library.custom_op("lightvlm::keep_entries", mutates_args=())
def keep_entries(
    score: Tensor, segment: Tensor, count: Tensor, length: int, sinks: int, recent: int, of_visual: bool, text_first: bool
) -> tuple[Tensor, Tensor]:
    """Keep the `count` [B] entries of highest score of each row, protected ones among them.

    score [B, G, S] (or [B, 1, S], shared by the heads), segment [B, S]. The row's first `sinks` and last `recent`
    entries are protected; with `of_visual`, all text is, and beside it `count` visual entries stay. With
    `text_first`, no visual entry stays before a text entry goes. Returns index [B, G, K] (rising) and where each
    slot's entry stood, index again or -1 for an empty slot; K is `length`.
    """
    valid = segment != PADDING
    nth = valid.cumsum(1) - 1
    protected = valid & ((nth < sinks) | (nth >= valid.sum(1, keepdim=True) - recent))
    if of_visual:
        protected = segment == TEXT
        count = count + protected.sum(1)
    tier = protected.int() * 2 + (text_first & (segment == TEXT)).int() + valid.int() * 4
    by_score = torch.sort(score, dim=-1, descending=True, stable=True).indices
    tiers = tier.unsqueeze(1).expand(score.shape).gather(2, by_score)
    order = by_score.gather(2, torch.sort(tiers, dim=-1, descending=True, stable=True).indices)[..., :length]
    here = torch.arange(length, device=segment.device)
    live = (here < count[:, None, None]) & valid.unsqueeze(1).expand(score.shape).gather(2, order)
    index, at = torch.sort(order, dim=-1)
    return index, torch.where(live.gather(2, at), index, -1)


@keep_entries.register_fake
def _(score, segment, count, length, sinks, recent, of_visual, text_first):
    index = segment.new_empty(*score.shape[:2], length)
    return index, torch.empty_like(index)
