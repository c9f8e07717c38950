"""Where the text of each row stands, apart from pictures (ShortV, arXiv 2504.00502)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, TEXT


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
