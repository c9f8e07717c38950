"""Text apart from pictures: where it stands, what it sees, and putting it back among the visual tokens (ShortV, arXiv 2504.00502)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.ops.tiles import pick


@torch.library.custom_op("lightvlm::text_index", mutates_args=())
def text_index(segment: Tensor, length: int) -> Tensor:
    """Places [B, T] of the text of each row, rising; `length` T is at least the longest row's.

    segment [B, S]. A row with less text is filled with its padding, then with visual tokens.
    """
    order = torch.where(segment == TEXT, 0, torch.where(segment == PADDING, 1, 2))
    return torch.sort(order, dim=-1, stable=True).indices[:, :length].sort(-1).values


@text_index.register_fake
def _(segment, length):
    return segment.new_empty(segment.shape[0], length)


@torch.library.custom_op("lightvlm::text_mask", mutates_args=())
def text_mask(segment: Tensor, index: Tensor) -> Tensor:
    """What the tokens at `index` [B, T] see under a causal rule: boolean [B, 1, T, S]. segment [B, S]: how many tokens there are."""
    here = torch.arange(segment.shape[1], device=segment.device)
    return (here <= index.unsqueeze(-1)).unsqueeze(1)


@text_mask.register_fake
def _(segment, index):
    b, t = index.shape
    return index.new_empty(b, 1, t, segment.shape[1], dtype=torch.bool)


@torch.library.custom_op("lightvlm::put_tokens", mutates_args=())
def put_tokens(hidden: Tensor, part: Tensor, index: Tensor, segment: Tensor) -> Tensor:
    """`hidden` [B, S, D] with its text replaced by that of `part` [B, T, D], which stands at `index` [B, T]; segment [B, S]."""
    here = torch.arange(index.shape[1], device=index.device).expand_as(index)
    place = torch.zeros_like(segment).scatter(1, index, here)
    return torch.where((segment == TEXT).unsqueeze(-1), pick(part, place), hidden)


@put_tokens.register_fake
def _(hidden, part, index, segment):
    return torch.empty_like(hidden)
