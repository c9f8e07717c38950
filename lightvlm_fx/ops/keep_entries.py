"""Selection: which cache entries stay, as sorted indices of a known count."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, TEXT, rank_in_segment


@torch.library.custom_op("lightvlm::keep_entries", mutates_args=())
def keep_entries(
    score: Tensor, segment: Tensor, count: Tensor, length: int, sinks: int, recent: int, of_visual: bool, text_first: bool,
    visual_share: float,
) -> tuple[Tensor, Tensor]:
    """Keep the `count` [B] entries of highest score of each row, protected ones among them.

    score [B, G, S] (or [B, 1, S], shared by the heads), segment [B, S]. The row's first `sinks` and last `recent`
    entries are protected; with `of_visual`, all text is, and beside it `count` visual entries stay. With
    `text_first`, no visual entry stays before a text entry goes; with a `visual_share`, that share of `count` is for visual
    entries, none of them protected, and the rest, with what they leave of it, for text. Returns index [B, G, K] (rising) and where each
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
    tiers = tier.unsqueeze(1).expand(score.shape)
    if visual_share:
        first = (protected & (segment == TEXT)).unsqueeze(1)
        tiers = tiers + 8 * _fits(score.masked_fill(first, float("inf")), segment, count, visual_share).int()
    tiers = tiers.gather(2, by_score)
    tiers, by_tier = torch.sort(tiers, dim=-1, descending=True, stable=True)
    order = by_score.gather(2, by_tier)[..., :length]
    here = torch.arange(length, device=segment.device)
    live = (here < count[:, None, None]) & (tiers[..., :length] >= (8 if visual_share else 4))
    index, at = torch.sort(order, dim=-1)
    return index, torch.where(live.gather(2, at), index, -1)


def _fits(score: Tensor, segment: Tensor, count: Tensor, share: float) -> Tensor:
    """Whether each entry [B, G, S] is among the best of its kind that the budget of its kind takes."""
    kind = segment.clamp_max(0)
    visual = torch.minimum((kind == 0).sum(1), (count * share + 0.5).long())
    budget = torch.where(kind == 0, visual.unsqueeze(1), (count - visual).unsqueeze(1)).unsqueeze(1)
    rank = rank_in_segment(score.flatten(0, 1), kind.repeat_interleave(score.shape[1], 0)).view(score.shape)
    return (rank < budget) & (kind != PADDING).unsqueeze(1)


@keep_entries.register_fake
def _(score, segment, count, length, sinks, recent, of_visual, text_first, visual_share):
    index = segment.new_empty(*score.shape[:2], length)
    return index, torch.empty_like(index)
