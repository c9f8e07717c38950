"""Selection: which cache entries stay, as sorted indices of a known count."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, TEXT


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
    tiers = _at(tier, by_score)
    if visual_share:
        tiers = tiers + 8 * _fits(by_score, segment, protected, count, visual_share).int()
    tiers, by_tier = torch.sort(tiers, dim=-1, descending=True, stable=True)
    order = by_score.gather(2, by_tier)[..., :length]
    here = torch.arange(length, device=segment.device)
    live = (here < count[:, None, None]) & (tiers[..., :length] >= (8 if visual_share else 4))
    index, at = torch.sort(order, dim=-1)
    return index, torch.where(live.gather(2, at), index, -1)


def _fits(by_score: Tensor, segment: Tensor, protected: Tensor, count: Tensor, share: float) -> Tensor:
    """Whether each entry [B, G, S], in the order `by_score`, is among the best of its kind that the budget of its kind takes.

    Of text the protected entries are the best, in their own order.
    """
    picture, text = segment >= 0, segment == TEXT
    first = text & protected
    visual = torch.minimum(picture.sum(1), (count * share + 0.5).long())
    rest = count - visual - first.sum(1)  # for text that nothing protects; below 0 where not even protected text has room
    fits = first & (first.cumsum(1) <= (count - visual).unsqueeze(1))
    seen, other = _at(picture, by_score), _at(text & ~first, by_score)
    fits = _at(fits, by_score) | (seen & (seen.cumsum(2) <= visual[:, None, None]))
    return fits | (other & (other.cumsum(2) <= rest[:, None, None]))


def _at(x: Tensor, order: Tensor) -> Tensor:
    """X [B, S] in the order [B, G, S] of each head."""
    return x.unsqueeze(1).expand(order.shape).gather(2, order)


@keep_entries.register_fake
def _(score, segment, count, length, sinks, recent, of_visual, text_first, visual_share):
    index = segment.new_empty(*score.shape[:2], length)
    return index, torch.empty_like(index)
